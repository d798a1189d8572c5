//! A partition: one single-threaded state machine, its pipeline in front of its state store.
//!
//! ```text
//!  Read | Write | LogDurable | WorkDone | Tick ──► Partition::step ──► Effects
//!                                                                     (answer, log, work)
//! ```
//! Pure: no IO, no clock, no randomness, no `.await`. The node performs the effects, a simulator
//! can do so as well.
//!
//! **When a write is visible.** A batch is applied to the store as soon as it is accepted, so
//! conditions and later requests see it at once; its answer waits for the log. A read that saw
//! something not yet durable waits for the same edge. So no answer ever tells of a state that a
//! crash could take back, and no request waits for a write that it did not depend on. (Applying
//! only after the log is durable was turned down: conditions would need a second index of the
//! writes under way, and writes that ask for `memory` would wait behind durable ones.)

mod change_store;
mod held;
mod json_merge;
mod operators;
mod owned;
mod partition;
mod replaced;
mod retries;
mod scan;
mod snapshot;
mod split;
mod trail;
mod waiting;

pub use change_store::{Successor, apply};
pub use partition::{Effects, Input, Partition, SnapshotHead, Ticket};
pub use scan::{PageEnd, Scan};
pub use trail::{CopyPace, Trail, TrailPiece};
