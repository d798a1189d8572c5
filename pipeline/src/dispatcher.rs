//! The dispatcher stage: how the requests of a partition wait, and what reads see.
//!
//! A partition executes one request at a time. When its store has to ask the disk, requests wait; this
//! stage is what lets them. Without it such requests are refused as `OVERLOADED` instead.
//!
//! ```text
//!   linearizable   reads and writes ─► one queue, in arrival order; a read sees every write accepted
//!                                      before it, and waits until what it saw is durable
//!   split          writes ─► a queue;  reads ─► another: a read sees what is durable, and waits for
//!                                      nothing but its disk and its session
//! ```
//! Reads pass no stage: the modes are the partition's own (see that crate's `split.rs`), and declared
//! here.

use stateside_types::StageKind;

use crate::{OptionDefinition, OptionKind, Stage, StageDefinition};

pub(crate) const DEFINITION: StageDefinition = StageDefinition {
    kind: StageKind::Dispatcher,
    doc: "Lets requests wait while the store asks its disk, and says what reads see. Without it such requests are refused with OVERLOADED.",
    options: &[MODE],
    build: |_| Ok(Box::new(Dispatcher)),
};

const MODE: OptionDefinition = OptionDefinition {
    name: "mode",
    kind: OptionKind::Choice(&["linearizable", "split"]),
    default: "\"linearizable\"",
    doc: "`linearizable`: one queue; requests are executed in their order of arrival, and a read waits until what it saw is durable. `split`: reads and writes have a queue each, and a read shows the newest durable state at once; see below.",
};

/// Declares how requests wait; nothing of a write is its business.
#[derive(Debug, Default)]
pub struct Dispatcher;

impl Stage for Dispatcher {
    fn kind(&self) -> StageKind {
        StageKind::Dispatcher
    }
}
