//! One measurement: starts the threads together, shows how they do, collects what they counted.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{
        mpsc::{Receiver, channel},
        watch,
    },
    time::{Interval, MissedTickBehavior, interval},
};

use super::{
    cpu::Busy,
    drive::{Driver, EVENTS_PER_THREAD, Event, Order, Problem, Run, Share},
    progress::Progress,
    schedule::{Pace, Part},
    statistics::{Recent, Recorder},
};
use crate::{cli::failure::Failure, exit::Exit};

/// How often progress is looked at.
const TICK: Duration = Duration::from_millis(500);

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) threads: usize,
    /// Over all threads, at least one each.
    pub(super) connections: usize,
    /// Over all threads, at least one each.
    pub(super) calls_max: usize,
    pub(super) warm_up: Duration,
    /// After the warm-up.
    pub(super) duration: Duration,
    /// How long after the end late calls are still sent.
    pub(super) grace: Duration,
}

/// What was measured.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) pace: Pace,
    /// Calls that were allowed under way.
    pub(super) calls_max: usize,
    pub(super) recorder: Recorder,
    /// From the end of the warm-up to the last answer, at least the duration of an open loop.
    pub(super) seconds: f64,
    pub(super) unsent: u64,
    /// Of the busiest thread.
    pub(super) busiest: Busy<f64>,
    /// False: somebody stopped it.
    pub(super) complete: bool,
}

impl Measured {
    pub(super) fn calls_per_second(&self) -> f64 {
        self.recorder.done() as f64 / self.seconds
    }

    pub(super) fn records_per_second(&self) -> f64 {
        self.recorder.records as f64 / self.seconds
    }
}

/// The threads of one measurement.
struct Threads {
    handles: Vec<JoinHandle<()>>,
    recorders: Vec<Arc<Mutex<Recorder>>>,
    orders: watch::Sender<Order>,
    events: Receiver<Event>,
}

/// What ends a measurement early.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// Measures.
pub(super) async fn measure(
    run: &Run,
    extent: Extent,
    progress: &mut Progress,
) -> Result<Measured, Failure> {
    let mut signals = Signals::listen()?;
    let mut threads = Threads::start(run, extent)?;
    let mut complete = true;
    let mut shares = Vec::new();
    let mut ready = 0;
    let mut begun = None;
    let mut ticks = ticks();
    while shares.len() < extent.threads {
        tokio::select! {
            event = threads.events.recv() => match event {
                Some(Event::Ready) => {
                    ready += 1;
                    if ready == extent.threads && complete {
                        let now = Instant::now();
                        begun = Some(now);
                        ticks.reset();
                        threads.order(Order::Begin(now));
                    }
                }
                Some(Event::Ended(share)) => shares.push(share),
                Some(Event::Failed(problem)) => {
                    threads.order(Order::Stop);
                    return Err(failure(problem));
                }
                None => threads.join(),
            },
            _ = ticks.tick(), if begun.is_some() => {
                let elapsed = begun.map_or(Duration::ZERO, |begun| begun.elapsed());
                progress.tick(elapsed, &threads.recent());
            }
            () = signals.any() => {
                complete = false;
                threads.order(Order::Stop);
            }
        }
    }
    let elapsed = begun.map_or(Duration::ZERO, |begun| begun.elapsed());
    threads.join();
    Ok(summed(run.pace, extent, threads.recorders, &shares, complete, elapsed))
}

fn summed(
    pace: Pace,
    extent: Extent,
    recorders: Vec<Arc<Mutex<Recorder>>>,
    shares: &[Share],
    complete: bool,
    elapsed: Duration,
) -> Measured {
    let mut recorder = Recorder::new(extent.warm_up);
    for own in recorders {
        recorder.merge(lock(&own).clone());
    }
    let counted = recorder.counted();
    // An open loop ends with its schedule, also when the last call of it was answered before.
    let planned = if complete {
        extent.duration
    } else {
        extent.duration.min(elapsed.saturating_sub(extent.warm_up))
    };
    let seconds = match pace {
        Pace::Open { .. } => counted.max(planned),
        Pace::Closed => counted,
    };
    let busy = shares.iter().map(|share| share.busy);
    let busiest = busy.max_by(|a, b| a.wanted().total_cmp(&b.wanted()));
    Measured {
        pace,
        calls_max: extent.calls_max,
        recorder,
        seconds: seconds.as_secs_f64().max(1e-9),
        unsent: shares.iter().map(|share| share.unsent).sum(),
        busiest: busiest.unwrap_or_default(),
        complete,
    }
}

impl Threads {
    fn start(run: &Run, extent: Extent) -> Result<Self, Failure> {
        let (orders, listen) = watch::channel(Order::Connect);
        let (tell, events) = channel(EVENTS_PER_THREAD * extent.threads);
        let end = extent.warm_up + extent.duration;
        let mut threads = Self { handles: Vec::new(), recorders: Vec::new(), orders, events };
        for thread in 0..extent.threads {
            let recorder = Arc::new(Mutex::new(Recorder::new(extent.warm_up)));
            threads.recorders.push(Arc::clone(&recorder));
            let part = Part {
                thread,
                threads: extent.threads,
                in_flight_max: share_of(extent.calls_max, thread, extent.threads),
                end,
                give_up: end + extent.grace,
            };
            let connections = share_of(extent.connections, thread, extent.threads);
            let driver = Driver { run: run.clone(), part, connections, recorder };
            let (listen, tell) = (listen.clone(), tell.clone());
            let handle = std::thread::Builder::new()
                .name(format!("bench-{thread}"))
                .spawn(move || driver.run(listen, &tell))
                .map_err(|error| {
                    Failure::new(Exit::Failure, format!("cannot start a thread: {error}"))
                })?;
            threads.handles.push(handle);
        }
        Ok(threads)
    }

    fn order(&self, order: Order) {
        self.orders.send_replace(order);
    }

    fn recent(&self) -> Recent {
        let mut recent = Recent::new();
        for recorder in &self.recorders {
            lock(recorder).take_recent(&mut recent);
        }
        recent
    }

    /// Passes a panic on: a thread ends without a word only by one.
    fn join(&mut self) {
        for handle in self.handles.drain(..) {
            if let Err(panic) = handle.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(Exit::Failure, format!("cannot listen for signals: {error}"))
            })
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Thread `index`'s part of `total`; the first ones take what is left over.
fn share_of(total: usize, index: usize, threads: usize) -> usize {
    total / threads + usize::from(index < total % threads)
}

fn ticks() -> Interval {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn lock(recorder: &Mutex<Recorder>) -> MutexGuard<'_, Recorder> {
    recorder.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failure(problem: Problem) -> Failure {
    match problem {
        Problem::Client(error) => error.into(),
        Problem::System(error) => {
            Failure::new(Exit::Failure, format!("cannot generate load: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_differ_by_one_at_most() {
        for (total, threads) in [(8, 3), (64, 64), (5, 2), (1_000, 7)] {
            let shares: Vec<_> =
                (0..threads).map(|index| share_of(total, index, threads)).collect();
            assert_eq!(shares.iter().sum::<usize>(), total);
            assert!(shares.iter().all(|&share| share.abs_diff(total / threads) <= 1 && share > 0));
        }
    }
}
