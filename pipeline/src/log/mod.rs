//! The local log of a core: what it looks like on disk, how it is written, how it is read back.
//!
//! ```text
//!  DATA/log/core-000/   0000000007.segment   0000000008.segment   0000000009.segment …
//!                                 │
//!  segment   ┌────────┬───────────┴──────┬─────────┬───────────────┬──────────────┐
//!            │ header │ group 41         │ group 42│ group 43      │ not written  │   4 KiB blocks
//!            └────────┴──────────────────┴────┬────┴───────────────┴──────────────┘
//!  group     ┌───────────────────┬────────────┴──────┬───────────────────┐
//!            │ stamp │ body      │ stamp │ body      │ stamp │ body │ 0  │   one durable write
//!            └───────┴─────┬─────┴───────┴───────────┴───────┴──────┴────┘
//!  stream    ┌─────────┬───┴─────────────┬────────┬─────────────┐
//!            │ record  │ record          │ record │ record      │            one write batch each
//!            └─────────┴─────────────────┴────────┴─────────────┘
//! ```
//! One log per core, shared by its partitions; one write under way at a time, and whatever arrives
//! meanwhile makes up the next group. So a group on disk proves that every earlier one was complete,
//! and only the very last may be torn. Everything else that does not fit is damage, and is named.
//!
//! | file | holds |
//! |---|---|
//! | `block` | the 4 KiB block with its stamps |
//! | `segment_header` | the first block of a file; runs, and how a torn tail is cut |
//! | `record` | the record, its entries, the roll call |
//! | `group` | a group being encoded into the memory that will be written |
//! | `writer` | group commit, admission, durable watermarks |
//! | `retention` | which segments are still needed |
//! | `runs` | which segments one process wrote, and where its run is cut |
//! | `reader` | one run of segments back into records: torn, damaged, or whole |
//! | `replay` | which records to apply, and whose records were lost |
//!
//! Pure: the bytes come and go through the node (`stateside_node::log_files`, and its ring).

mod aligned_buffer;
mod block;
#[cfg(test)]
mod crash_tests;
mod group;
mod partition_map;
mod reader;
#[cfg(test)]
mod reader_tests;
mod record;
mod replay;
mod retention;
mod runs;
mod segment_header;
#[cfg(test)]
mod simulated_disk;
mod writer;
#[cfg(test)]
mod writer_tests;

use std::fmt;

pub use aligned_buffer::AlignedBuffer;
pub use block::BLOCK_BYTES;
pub use reader::{
    Damage, DamageKind, DamageScope, ReadBuffers, ReplaySink, RunEnd, RunRange, SegmentInput,
    SegmentSource, TornTail, read_run,
};
pub use record::{RECORD_BYTES_MAX, RecordHead, RollCallEntry, record_bytes};
pub(crate) use record::{decode_entries, decode_mark, encode_entries};
pub use replay::{Lost, PartitionBase, PartitionDamage, Replay, ReplayOutcome, ReplayStats};
pub use retention::{Holding, Retention};
pub use runs::{ContradictingSegments, FoundSegment, RunPlan, plan_runs};
pub use segment_header::{FORMAT_VERSION, FORMAT_VERSION_MIN, HeaderError, SegmentHeader};
pub use writer::{
    Durable, LogFailed, LogWriter, PendingWrite, Refused, Reservation, WriterLimits, WriterStats,
};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Number of a segment: unique in its log, rising, never 0. A recycled file gets a new one.
    Generation(u32)
);
number!(
    /// Number of a group: rises by one within a run. A u32 would wrap within a week of small writes.
    GroupNumber(u64)
);
number!(
    /// Which distribution of partitions over cores is in force. The manifest raises it whenever a
    /// partition changes its core, which happens at a start only. Within one placement all
    /// records of a partition are in one log.
    Placement(u64)
);

impl GroupNumber {
    /// The group after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        assert!(self.0 != u64::MAX, "group numbers are exhausted");
        Self(self.0 + 1)
    }
}

impl Generation {
    /// The generation after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        assert!(self.0 != u32::MAX, "generations are exhausted: 256 PiB went through this log");
        Self(self.0 + 1)
    }
}
