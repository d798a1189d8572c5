//! The clock stage: a hybrid logical timestamp per write, monotonic in its partition across
//! restarts and also when the wall clock jumps back.

use stateside_types::{Sequence, StageKind, Timestamp};

use crate::{Outlet, Progress, Stage, Write};

/// Hands out timestamps. Remembers only the last one; a restart tells it that of the last write
/// that survived.
#[derive(Debug, Default)]
pub struct Clock {
    last: Timestamp,
}

impl Stage for Clock {
    fn kind(&self) -> StageKind {
        StageKind::Clock
    }

    fn accept(&mut self, write: &mut Write<'_>, _: &mut dyn Outlet) -> Progress {
        self.last = self.last.advance(write.now);
        write.timestamp = self.last;
        Progress::Done
    }

    fn resume(&mut self, _: Sequence, timestamp: Timestamp) {
        self.last = self.last.max(timestamp);
    }
}
