//! The log stage: every accepted write goes to the core's write-ahead log.

use stateside_types::{Refusal, StageKind};

use crate::{Outlet, Progress, Stage, Write};

/// Appends writes to the log; asynchronous: it is done with a write when the log is durable.
#[derive(Debug, Default)]
pub struct LogStage;

impl Stage for LogStage {
    fn kind(&self) -> StageKind {
        StageKind::Log
    }

    fn admit(&mut self, write: &Write<'_>, outlet: &mut dyn Outlet) -> Result<(), Refusal> {
        outlet.log_admit(write)
    }

    fn accept(&mut self, write: &mut Write<'_>, outlet: &mut dyn Outlet) -> Progress {
        outlet.log_append(write);
        Progress::Pending
    }
}
