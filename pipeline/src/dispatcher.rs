//! The dispatcher stage: linearizable, one queue.
//!
//! A partition executes one request at a time. When its store has to ask the disk, the requests
//! behind wait in arrival order; this stage is what lets them wait. Without it such requests are
//! refused as `OVERLOADED` instead. (A mode with separate read and write queues fits here.)

use stateside_types::StageKind;

use crate::Stage;

/// Keeps the requests of a partition in their order of arrival.
#[derive(Debug, Default)]
pub struct Dispatcher;

impl Stage for Dispatcher {
    fn kind(&self) -> StageKind {
        StageKind::Dispatcher
    }
}
