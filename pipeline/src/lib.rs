//! A partition's pipeline: the stages that every write passes before the state store.
//!
//! ```text
//!            enter · admit ──────────────────────────────────► may refuse, changes nothing
//!  write ──► filter … ──► clock ──► dispatcher ──► log ──► line monitor ──► state store ──► answer
//!            accept ─────────────────────────────────────────► cannot fail, takes effect
//!                                                   │                 ▲
//!                                                   └── completed ────┘ (later, in any order)
//! ```
//! Stages before the clock (filters, sanitizers, enrichers and stages of one's own) stand in any number and order; what
//! they are and which options they take is declared in one table each, see [`StageDefinition`].
//!
//! Two passes keep refusals free of traces: a write is first admitted: its conditions are checked and every stage
//! is asked, and only then does it get a sequence and take effect. So sequences
//! have no gaps and no stage needs an undo.
//!
//! Pure: no IO, no clock, no randomness. What stages do to the world goes through [`Outlet`].

mod catalogue;
mod changes;
mod clock;
mod descriptor_set;
mod dispatcher;
mod enricher;
mod field_path;
mod filter;
mod json;
pub mod kafka;
mod kafka_stage;
mod line_monitor;
pub mod log;
mod log_stage;
mod options;
mod pipeline;
mod prefixes;
mod protobuf;
mod rate;
mod sanitizer;
mod stage;
pub mod trail;

pub use catalogue::{
    RegisterError, definition, definitions, read_stage, read_stage_with_files, register,
};
pub use changes::Changes;
pub use clock::Clock;
pub use descriptor_set::ReadFile;
pub use dispatcher::Dispatcher;
pub use kafka_stage::KafkaStage;
pub use line_monitor::LineMonitor;
pub use log_stage::LogStage;
pub use options::{NAME, OptionDefinition, OptionError, OptionKind, StageDefinition};
pub use pipeline::{Pipeline, StageCounts, recycle};
pub use prefixes::{PREFIX, Prefixes};
pub use stage::{Completed, Outlet, Progress, Stage, StageIndex, Write};
