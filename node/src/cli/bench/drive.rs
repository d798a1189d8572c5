//! One thread of the generator: connections, schedule and calls of its own, and a runtime that no
//! other thread shares. It performs what `schedule` and `workload` decide.
//!
//! ```text
//!  connect ─► Ready ──────────► calls until the schedule is through ─► answers ─► Ended
//!                    Begin(at)                              Stop: at once
//! ```

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use stateside_client::{Client, Error, Options};
use tokio::sync::{mpsc::Sender, watch};

use super::{
    caller::{Target, Turn},
    cpu::Busy,
    schedule::{Next, Pace, Pacer, Part},
    statistics::Recorder,
    timer::Timer,
    workload::{Generator, Shape, stream},
};

/// Calls that are sent one after the other before connections get to write them.
const SENDS_AT_ONCE: u32 = 32;

/// What all threads of a run share.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) target: Arc<Target>,
    pub(super) endpoint: String,
    pub(super) options: Options,
    pub(super) shape: Shape,
    pub(super) seed: u64,
    pub(super) pace: Pace,
}

/// One thread of a run.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) run: Run,
    pub(super) part: Part,
    pub(super) connections: usize,
    pub(super) recorder: Arc<Mutex<Recorder>>,
}

/// What the threads are told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    Connect,
    /// Time 0 of the schedule.
    Begin(Instant),
    Stop,
}

/// Ready, and how it ended.
pub(super) const EVENTS_PER_THREAD: usize = 2;

/// What a thread tells.
#[derive(Debug)]
pub(super) enum Event {
    Ready,
    Ended(Share),
    Failed(Problem),
}

/// What a thread did besides what the recorder has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// Calls of the schedule that were never sent.
    pub(super) unsent: u64,
    /// Shares of the time.
    pub(super) busy: Busy<f64>,
}

/// Why a thread cannot go on.
#[derive(Debug)]
pub(super) enum Problem {
    Client(Error),
    System(io::Error),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl Driver {
    /// The whole life of the thread.
    pub(super) fn run(self, orders: watch::Receiver<Order>, events: &Sender<Event>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let ended = match runtime {
            Ok(runtime) => runtime.block_on(self.live(orders, events)),
            Err(error) => Err(error.into()),
        };
        let event = match ended {
            Ok(share) => Event::Ended(share),
            Err(problem) => Event::Failed(problem),
        };
        // There is room for all events; nobody listens any more when another thread has failed.
        drop(events.try_send(event));
    }

    async fn live(
        &self,
        mut orders: watch::Receiver<Order>,
        events: &Sender<Event>,
    ) -> Result<Share, Problem> {
        let mut clients = Vec::with_capacity(self.connections);
        for _ in 0..self.connections {
            let options = self.run.options.clone();
            let client = Client::connect(&self.run.endpoint, options).await;
            clients.push(client.map_err(Problem::Client)?);
        }
        drop(events.try_send(Event::Ready));
        let idle = Share { unsent: 0, busy: Busy::default() };
        let begun = loop {
            let order = *orders.borrow_and_update();
            match order {
                Order::Begin(at) => break at,
                Order::Stop => return Ok(idle),
                Order::Connect if orders.changed().await.is_err() => return Ok(idle),
                Order::Connect => {}
            }
        };
        let before = Busy::so_far();
        let unsent = self.drive(&clients, begun, &mut orders).await?;
        let busy = Busy::so_far().shares_since(before, begun.elapsed());
        Ok(Share { unsent, busy })
    }

    /// Makes the calls of the schedule; the number of those that were never sent.
    async fn drive(
        &self,
        clients: &[Client],
        begun: Instant,
        orders: &mut watch::Receiver<Order>,
    ) -> Result<u64, Problem> {
        let Run { pace, seed, .. } = self.run;
        let thread = self.part.thread;
        let mut pacer = Pacer::new(pace, self.part, stream(seed, "arrivals", thread));
        let mut generator = Generator::new(&self.run.shape, seed, thread);
        let mut timer = Timer::new()?;
        let mut under_way = FuturesUnordered::new();
        let mut connections = clients.iter().cycle();
        let mut sent_at_once = 0;
        loop {
            // Once the schedule is through, only the answers are waited for.
            let until = match pacer.next(begun.elapsed(), under_way.len()) {
                Next::Send { due, held_back } => {
                    let operation = generator.next(self.run.target.stored());
                    let client = connections.next().expect("there is a connection").clone();
                    let turn = Turn { begun, due, held_back, closed: pace == Pace::Closed };
                    under_way.push(self.run.target.call(client, operation, turn));
                    // Polled once, it is handed to its connection.
                    if let Some(Some(ended)) = under_way.next().now_or_never() {
                        self.recorder().record(ended);
                    }
                    sent_at_once += 1;
                    if sent_at_once == SENDS_AT_ONCE {
                        sent_at_once = 0;
                        tokio::task::yield_now().await;
                    }
                    continue;
                }
                Next::Wait(until) | Next::WaitForAnswer(until) => Some(begun + until),
                Next::Finished if under_way.is_empty() => return Ok(pacer.unsent()),
                Next::Finished => None,
            };
            sent_at_once = 0;
            tokio::select! {
                biased;
                Some(ended) = under_way.next(), if !under_way.is_empty() => {
                    self.recorder().record(ended);
                }
                waited = timer.until(until.unwrap_or(begun)), if until.is_some() => waited?,
                _ = orders.changed() => return Ok(pacer.unsent()),
            }
        }
    }

    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        // Counts are whole after every record: a panic elsewhere does not spoil them.
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
