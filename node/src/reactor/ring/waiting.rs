//! Sleeping between turns: where, how long, and who may end it.
//!
//! There are two ways to sleep:
//! - **In the ring**, when the core's main task is the only one on its executor (the rule): one
//!   `io_uring_enter` submits, runs deferred work and sleeps until a completion, a [`Waker`] or
//!   the tick. glommio's own rings are not involved; this saves half a dozen system calls a
//!   wake-up.
//! - **In glommio**, while other futures live on the executor and run meanwhile. Two eventfds are
//!   awaited through `PollableFd`s: one that is registered with the ring, which completions
//!   write, and the one that [`Waker`]s write. (The ring's own descriptor would not do: with deferred
//!   task work it never becomes readable to another ring. Nor would the first eventfd alone,
//!   although the ring polls the second: a completion that arises inside a write to an
//!   eventfd must not write another there and then, so the kernel puts it off, and Linux 6.18
//!   was seen to do so once and then never again.)
//!
//! The tick bounds both. glommio can park although a task is runnable; `cores.rs` tells how that
//! is kept from happening, and the first way to sleep cannot meet it at all.
//!
//! [`Waker`]: crate::reactor::Waker

use std::{
    future::{Future, poll_fn},
    io,
    os::fd::{AsFd, OwnedFd},
    pin::pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use glommio::io::{PollState, PollableFd};
use rustix::event::{EventfdFlags, eventfd};

use super::{CoreRing, RingConfig, spinning::WaitFor};
use crate::reactor::{cores, error::ReactorError};

/// With other futures on the executor, they get their turn at least this often.
const SHARED_SLICE: Duration = Duration::from_micros(500);

/// When and how the core sleeps.
pub(super) struct Sleep {
    /// The last `wait` has entered the ring already: the turn need not.
    entered: bool,
    /// The last `wait`: for what, and since when.
    wait: Option<(WaitFor, Instant)>,
    /// The last turn found something to do.
    active: bool,
    last_active: Instant,
    next_tick: Instant,
    last_yield: Instant,
    /// For sleeping in glommio; made when first needed.
    signal: Option<Signal>,
}

/// What glommio awaits for us.
struct Signal {
    completions: AwaitedFd,
    wakes: AwaitedFd,
}

/// An eventfd and glommio's poll of it.
struct AwaitedFd {
    eventfd: PollableFd<OwnedFd>,
    poll: PollState,
}

impl AwaitedFd {
    fn new(eventfd: OwnedFd) -> io::Result<Self> {
        Ok(Self { eventfd: PollableFd::new(eventfd)?, poll: PollState::new() })
    }

    /// Ready when the eventfd has been written; its counter is back at zero then. A poll that is
    /// not ready stays armed for the next call, in this wait or a later one.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ready = ready!(self.eventfd.poll_readable(context, &mut self.poll));
        // It may be zero already: the poll can be older than the last read.
        let _ = rustix::io::read(self.eventfd.get_ref(), &mut [0u8; 8]);
        Poll::Ready(ready.map_err(io::Error::from))
    }
}

impl Sleep {
    pub(super) fn new(config: &RingConfig, now: Instant) -> Self {
        Self {
            entered: false,
            wait: None,
            active: true,
            last_active: now,
            next_tick: now + config.tick_busy,
            last_yield: now,
            signal: None,
        }
    }

    pub(super) fn take_entered(&mut self) -> bool {
        std::mem::take(&mut self.entered)
    }

    pub(super) fn take_wait(&mut self) -> Option<(WaitFor, Instant)> {
        self.wait.take()
    }

    /// Notes how the turn went; true when the tick was due.
    pub(super) fn end_turn(&mut self, now: Instant, config: &RingConfig, active: bool) -> bool {
        self.active = active;
        if active {
            self.last_active = now;
            // The first turn after a quiet time: back to the short tick.
            self.next_tick = self.next_tick.min(now + config.tick_busy);
        }
        let due = now >= self.next_tick;
        if due {
            let quiet = now.saturating_duration_since(self.last_active) > config.tick_idle;
            self.next_tick = now + if quiet { config.tick_idle } else { config.tick_busy };
            cores::set_quiet(quiet);
        }
        due
    }
}

impl CoreRing {
    /// Tells how many requests this turn has brought, which says when it pays to sleep: what a client
    /// sends in one piece is one completion, and may be many requests.
    pub fn took_requests(&mut self, count: usize) {
        self.came = self.came.max(count);
    }

    /// Sleeps until there is something for [`turn`](Self::turn) to do, the tick is due, or
    /// `until` has passed. Returns at once when there is something already. May return for no
    /// reason. Dropping the future half-way loses nothing.
    ///
    /// # Errors
    /// Only when the ring itself is broken: the core cannot go on.
    pub async fn wait(&mut self, until: Option<Instant>) -> Result<(), ReactorError> {
        let now = Instant::now();
        self.spin.came(self.now, std::mem::take(&mut self.came));
        let shared = cores::has_local_tasks();
        if shared && now.saturating_duration_since(self.sleep.last_yield) >= SHARED_SLICE {
            cores::yield_now().await;
            self.sleep.last_yield = now;
        }
        let wake_at = until.map_or(self.sleep.next_tick, |until| until.min(self.sleep.next_tick));
        let patience = wake_at.saturating_duration_since(now);
        if patience.is_zero() || self.has_work() {
            return Ok(());
        }
        let what = match self.file_writes.count() {
            0 => WaitFor::Calls,
            _ if self.file_writes.is_flushing() => WaitFor::Flush,
            _ => WaitFor::Disk,
        };
        self.sleep.wait = Some((what, now));
        if self.sleep.active && self.spin.wants(what) {
            let found = self.look(now, patience)?;
            self.spin.spun(what, found);
            if found {
                return Ok(());
            }
        }
        if !self.waker.park() {
            return Ok(());
        }
        self.counters.sleeps += 1;
        let slept = if shared {
            self.sleep_in_glommio(patience).await
        } else {
            self.sleep.entered = true;
            self.uring.enter_and_wait(patience)
        };
        self.waker.unpark();
        slept
    }

    /// Whether a turn would find work without any completion.
    fn has_work(&self) -> bool {
        !self.deferred.is_empty()
            || (!self.starved.is_empty() && self.uring.buffers().in_kernel() > 0)
    }

    /// Looks for work for a while without sleeping; true when there is some.
    fn look(&mut self, start: Instant, patience: Duration) -> Result<bool, ReactorError> {
        self.uring.enter()?;
        if self.uring.has_completions() {
            self.sleep.entered = true;
            return Ok(true);
        }
        let limit = self.config.spin.min(patience);
        loop {
            // A look at shared memory is cheap, one at the clock is not.
            for _ in 0..32 {
                if self.uring.has_deferred_work() || self.waker.is_woken() {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            if start.elapsed() >= limit {
                return Ok(false);
            }
        }
    }

    async fn sleep_in_glommio(&mut self, patience: Duration) -> Result<(), ReactorError> {
        let mut signal = match self.sleep.signal.take() {
            Some(signal) => signal,
            None => self.make_signal()?,
        };
        self.uring.signal_completions(true);
        // Work that came before the signals were on is found by this; what comes after signals.
        self.uring.enter()?;
        if self.uring.has_completions() {
            self.sleep.entered = true;
        } else {
            let mut timer = pin!(cores::sleep(patience));
            poll_fn(|context| {
                // All three are polled, so that each has this task's waker.
                let timer = timer.as_mut().poll(context);
                let wakes = signal.wakes.poll(context);
                let completions = signal.completions.poll(context);
                match (completions, wakes, timer) {
                    (Poll::Pending, Poll::Pending, Poll::Pending) => Poll::Pending,
                    (Poll::Ready(Err(error)), ..) | (_, Poll::Ready(Err(error)), _) => {
                        Poll::Ready(Err(error))
                    }
                    _ => Poll::Ready(Ok(())),
                }
            })
            .await
            .map_err(|error| ReactorError::io("awaiting the ring's eventfds", error))?;
            self.sleep.last_yield = Instant::now();
        }
        self.uring.signal_completions(false);
        self.sleep.signal = Some(signal);
        Ok(())
    }

    fn make_signal(&mut self) -> Result<Signal, ReactorError> {
        let mut attempt = || {
            let completions = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            self.uring.register_eventfd(completions.as_fd())?;
            let wakes = self.waker.descriptor().try_clone_to_owned()?;
            Ok(Signal { completions: AwaitedFd::new(completions)?, wakes: AwaitedFd::new(wakes)? })
        };
        attempt().map_err(|error: io::Error| ReactorError::io("making the ring's eventfds", error))
    }
}
