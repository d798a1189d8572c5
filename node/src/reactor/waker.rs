//! Waking a core from another thread, without a system call when the core is awake.
//!
//! ```text
//!             wake: RUNNING → WOKEN (no system call)
//!          ┌──────────────────────────────────────────┐
//!          │                                          ▼
//!      RUNNING ──park (only from RUNNING)──► PARKED   WOKEN ──taken by the turn──► RUNNING
//!          ▲                                   │      ▲        (park refuses)
//!          └──────────── unpark ───────────────┤      │
//!                                              └──────┘
//!                         wake: PARKED → WOKEN, and write the eventfd
//! ```
//!
//! # Why no wake-up is lost
//! A producer first publishes its message (pushes to a queue), then calls [`Waker::wake`]. The core
//! first takes the wake-up ([`CoreWaker::take`]), then empties its queues. All changes of the
//! state are read-modify-writes on one atomic, hence totally ordered; each is `AcqRel` and `wake`
//! puts a full fence between the publication and its look at the state, `take` one between its
//! change of the state and the core's look at the queues (the store-load pair that x86 would
//! otherwise reorder). So for a message M, its `wake` W and any `take` or `park` P of the core:
//! - W before P: P sees WOKEN. A park is refused and the core empties its queues, where M is
//!   visible (the state's modification order carries the release of W). This covers the short
//!   cut in `wake` too: it returns early only when it read WOKEN, fenced after publishing M; the
//!   core's `take` that clears that WOKEN comes later in the order, and its fence makes the
//!   queues be read after M.
//! - W after a park: W sees PARKED and writes the eventfd. The ring polls it (multishot, armed at
//!   start, edge-triggered on every write), so the sleeping core's wait ends.
//! - W after an unpark, before the next take: the state is RUNNING → WOKEN, the next park is refused.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering, fence},
    },
};

use rustix::event::{EventfdFlags, eventfd};

const RUNNING: u32 = 0;
const PARKED: u32 = 1;
const WOKEN: u32 = 2;

struct Shared {
    state: AtomicU32,
    eventfd: OwnedFd,
}

/// Wakes one core. Any thread may hold clones; it stays harmless after the core has stopped.
#[derive(Clone)]
pub struct Waker {
    shared: Arc<Shared>,
}

impl Waker {
    /// Wakes nobody: for a core that runs without a ring.
    pub(crate) fn without_ring() -> io::Result<Self> {
        Ok(CoreWaker::new()?.waker())
    }

    /// Makes the core take another turn that reports `woken`. Call it after the message is in
    /// the core's queue. Costs a fence while the core runs, one system call when it sleeps.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.shared.state.load(Ordering::Relaxed) == WOKEN {
            return;
        }
        if self.shared.state.swap(WOKEN, Ordering::AcqRel) == PARKED {
            // The counter is never read back, so a write fails only when it would overflow
            // after 2^64 wake-ups; and the eventfd lives as long as this Waker.
            let written = rustix::io::write(&self.shared.eventfd, &1u64.to_ne_bytes());
            debug_assert!(written.is_ok(), "a write to an eventfd cannot fail: {written:?}");
        }
    }
}

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waker").finish_non_exhaustive()
    }
}

/// The core's end of its [`Waker`]s. Lives in the ring, on the core's thread.
pub(super) struct CoreWaker {
    shared: Arc<Shared>,
}

impl CoreWaker {
    pub(super) fn new() -> io::Result<Self> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { shared: Arc::new(Shared { state: AtomicU32::new(RUNNING), eventfd }) })
    }

    pub(super) fn waker(&self) -> Waker {
        Waker { shared: Arc::clone(&self.shared) }
    }

    /// What the ring polls.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.shared.eventfd.as_fd()
    }

    /// Announces that the core is about to sleep. False: it was woken meanwhile and must not.
    #[must_use]
    pub(super) fn park(&self) -> bool {
        let parked = self.shared.state.compare_exchange(
            RUNNING,
            PARKED,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        // PARKED already: an earlier wait was dropped before it could unpark.
        matches!(parked, Ok(_) | Err(PARKED))
    }

    /// The core is awake again. A wake-up that came meanwhile stays for [`take`](Self::take).
    pub(super) fn unpark(&self) {
        // Fails when a waker has made it WOKEN: exactly what must be kept.
        let _ = self.shared.state.compare_exchange(
            PARKED,
            RUNNING,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
    }

    /// Whether a wake-up waits to be taken. A hint for spinning.
    pub(super) fn is_woken(&self) -> bool {
        self.shared.state.load(Ordering::Relaxed) == WOKEN
    }

    /// Takes the wake-up, if there is one. The caller looks at its queues after this.
    pub(super) fn take(&self) -> bool {
        // A plain load in the common case: a wake-up missed here by a moment refuses the next park.
        if !self.is_woken() {
            return false;
        }
        let before = self.shared.state.swap(RUNNING, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        before == WOKEN
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::AtomicU64,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn waking_a_running_core_writes_nothing() {
        let core = CoreWaker::new().unwrap();
        core.waker().wake();
        core.waker().wake();
        let mut count = [0u8; 8];
        assert!(
            rustix::io::read(core.descriptor(), &mut count).is_err(),
            "the eventfd is untouched"
        );
        assert!(!core.park(), "a woken core does not sleep");
        assert!(core.take());
        assert!(!core.take());
        assert!(core.park());
        core.waker().wake();
        assert!(
            rustix::io::read(core.descriptor(), &mut count).is_ok(),
            "a parked core is written to"
        );
        core.unpark();
        assert!(core.take(), "the wake-up outlives the unpark");
    }

    /// A core that sleeps on the eventfd and threads that publish and wake: every message is seen
    /// although the core sleeps without a time limit of its own.
    #[test]
    fn no_wake_up_is_lost_between_publishing_and_parking() {
        const MESSAGES: u64 = 100_000;
        let core = CoreWaker::new().unwrap();
        let published = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (waker, published) = (core.waker(), Arc::clone(&published));
                std::thread::spawn(move || {
                    for _ in 0..MESSAGES {
                        published.fetch_add(1, Ordering::Relaxed);
                        waker.wake();
                    }
                })
            })
            .collect();
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut seen = 0;
        while seen < 2 * MESSAGES {
            assert!(Instant::now() < deadline, "stuck at {seen}");
            if core.take() {
                seen = published.load(Ordering::Relaxed);
                continue;
            }
            if core.park() {
                let mut polls = [rustix::event::PollFd::from_borrowed_fd(
                    core.descriptor(),
                    rustix::event::PollFlags::IN,
                )];
                let limit = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
                let ready = rustix::event::poll(&mut polls, Some(&limit)).unwrap();
                assert_eq!(ready, 1, "slept through a wake-up");
                let _ = rustix::io::read(core.descriptor(), &mut [0u8; 8]);
                core.unpark();
            }
        }
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
