//! A partition's pipeline: the stages that every write passes before the state store.
//!
//! ```text
//!            admit ─────────────────────────────────► may refuse, changes nothing
//!  write ──► clock ──► dispatcher ──► log ──► line monitor ──► state store ──► answer
//!            accept ────────────────────────────────► cannot fail, takes effect
//!                                      │                 ▲
//!                                      └── completed ────┘ (later, in any order)
//! ```
//! Two passes keep refusals free of traces: a write is first admitted: its conditions are checked and every stage
//! is asked, and only then does it get a sequence and take effect. So sequences
//! have no gaps and no stage needs an undo.
//!
//! Pure: no IO, no clock, no randomness. What stages do to the world goes through [`Outlet`].

mod clock;
mod dispatcher;
pub mod kafka;
mod kafka_stage;
mod line_monitor;
pub mod log;
mod log_stage;
mod stage;

pub use clock::Clock;
pub use dispatcher::Dispatcher;
pub use kafka_stage::KafkaStage;
pub use line_monitor::LineMonitor;
pub use log_stage::LogStage;
pub use stage::{Completed, Outlet, Pipeline, Progress, Stage, StageIndex, Write};
