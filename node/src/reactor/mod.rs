//! One core's executor and sockets: everything that knows glommio or io_uring.
//!
//! ```text
//!  thread "core-0" ──► CoreExecutor (glommio, pinned) ──► the core's one main task
//!                                                          │ wait ─► turn ─► events ─► send …
//!                                                          ▼
//!    other threads ── Waker ──► eventfd ──► CoreRing (own io_uring) ◄── sockets, log files
//! ```
//!
//! The main task owns the [`CoreRing`] and everything of its core; nothing here is shared but
//! [`Waker`]s. It loops: [`CoreRing::wait`], [`CoreRing::turn`], handle the events, which
//! includes sending. There is no task per connection and none per request.
//!
//! # Hazards
//! - A ring belongs to the thread that made it (`SINGLE_ISSUER`): make it inside the executor.
//! - While a future of [`spawn_local`] lives, waiting goes through glommio, which costs a few
//!   more system calls a wake-up than sleeping in the ring itself. Long-lived futures do not
//!   belong on a core.
//! - A [`ReceivedBuffer`] that is not given back is lost to the core until it stops.

mod blocking;
mod cores;
mod cpus;
mod error;
mod listen;
mod probe;
mod ring;
mod waker;
mod writeback;

pub use blocking::{BlockingPool, Job};
pub use cores::{CoreConfig, CoreExecutor, FailureHook, LocalTask, sleep, spawn_local, yield_now};
pub use cpus::{cpus_allowed, place_cores, run_in_background};
pub use error::ReactorError;
pub use listen::{bind_shared, bind_tcp, bind_unix, check_unix, start_listening};
pub use probe::{probe, raise_limits};
pub use ring::{
    Closing, ConnectionId, CoreRing, Event, Flush, ListenerId, ReceivedBuffer, RingConfig,
    RingCounters, StableBytes, Turn,
};
pub use waker::Waker;
pub use writeback::start_writeback;
