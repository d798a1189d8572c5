//! The stage trait, and what stages work on.

use stateside_types::{
    Ack, Epoch, PartitionId, Reason, Refusal, RequestMark, Sequence, StageKind, Timestamp,
    WallClock, WriteEntry,
};

use crate::Changes;

/// A write batch on its way through the stages.
#[derive(Debug)]
pub struct Write<'a> {
    /// The partition that executes it.
    pub partition: PartitionId,
    /// The epoch that this content of the partition began with: what tells its log records
    /// from those of a removed or replaced partition of the same id.
    pub epoch: Epoch,
    /// The entries; keys are unique.
    pub entries: &'a [WriteEntry<'a>],
    /// The name of the request, when it has one. One that is refused for good has a place in the log
    /// as well, without entries.
    pub request: Option<&'a RequestMark<'a>>,
    /// What the wall clock said when the write arrived.
    pub now: WallClock,
    /// What must hold before the answer leaves.
    pub ack: Ack,
    /// Position in the partition; set before `accept`.
    pub sequence: Sequence,
    /// Set by the clock stage in `accept`; zero without one.
    pub timestamp: Timestamp,
    /// The stages that were asynchronous about this write so far, a bit each.
    pub pending: u8,
}

impl<'a> Write<'a> {
    /// The same write with other entries.
    pub fn with<'b>(&self, entries: &'b [WriteEntry<'b>]) -> Write<'b>
    where
        'a: 'b,
    {
        Write {
            partition: self.partition,
            epoch: self.epoch,
            entries,
            request: self.request,
            now: self.now,
            ack: self.ack,
            sequence: self.sequence,
            timestamp: self.timestamp,
            pending: self.pending,
        }
    }
}

/// Whether a stage is done with a write when `accept` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing more to wait for.
    Done,
    /// The stage will report [`Completed`] later.
    Pending,
}

/// Position of a stage among those from the clock on, at most 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageIndex(pub u8);

impl StageIndex {
    /// The stage's bit in [`Write::pending`].
    pub const fn bit(self) -> u8 {
        1 << self.0
    }
}

/// What an asynchronous stage has finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completed {
    /// One write; stages that work on several at once finish them in any order.
    One(Sequence),
    /// Every write up to and including this one.
    Through(Sequence),
    /// The stage gave up on this write: it may have taken effect where the stage works, or not.
    /// It and everything behind it is never acknowledged.
    Failed(Sequence),
}

/// What stages do to the world. The node implements it; tests record it.
pub trait Outlet {
    /// Whether the log takes a record of this write now. After `Ok`, one `log_append` of
    /// it cannot fail.
    ///
    /// # Errors
    /// `OVERLOADED`, `DISK_FULL`, `PARTITION_STOPPED`.
    fn log_admit(&mut self, write: &Write<'_>) -> Result<(), Refusal>;

    /// The name of the node that the write is executed on.
    fn node(&self) -> &str;

    /// Appends the write to the log. Its durability is reported to the partition later.
    fn log_append(&mut self, write: &Write<'_>);

    /// As `log_admit`, for the log in Kafka. An outlet that has none refuses.
    ///
    /// # Errors
    /// `OVERLOADED`, `LOG_UNAVAILABLE`, `BATCH_TOO_LARGE`, `PARTITION_STOPPED`.
    fn kafka_admit(&mut self, write: &Write<'_>) -> Result<(), Refusal> {
        let _ = write;
        Err(Refusal::new(Reason::PartitionStopped, "this node has no Kafka client"))
    }

    /// As `log_append`, for the log in Kafka.
    fn kafka_append(&mut self, write: &Write<'_>) {
        unreachable!("a write of {} was admitted by an outlet without Kafka", write.partition)
    }
}

/// One element of a partition's pipeline. Lives on the partition's core; it may be made elsewhere,
/// where the partition is recovered, hence `Send`.
pub trait Stage: Send {
    /// Which stage this is.
    fn kind(&self) -> StageKind;

    /// First pass. A refusal ends the write; nothing has changed, so nothing is undone.
    ///
    /// # Errors
    /// Why the write is not let through.
    fn admit(&mut self, write: &Write<'_>, outlet: &mut dyn Outlet) -> Result<(), Refusal> {
        let _ = (write, outlet);
        Ok(())
    }

    /// Still the first pass, after [`Self::admit`]: puts other values in place of those that came
    /// with the write. Stages before the clock only: what they make is what later stages see, what
    /// is logged and what is stored, so a replay has nothing left to decide.
    ///
    /// # Errors
    /// Why the write is not let through.
    fn change(
        &mut self,
        write: &Write<'_>,
        changes: &mut Changes,
        outlet: &mut dyn Outlet,
    ) -> Result<(), Refusal> {
        let _ = (write, changes, outlet);
        Ok(())
    }

    /// Second pass: every stage admitted the write and its conditions hold. Must take effect.
    fn accept(&mut self, write: &mut Write<'_>, outlet: &mut dyn Outlet) -> Progress {
        let _ = (write, outlet);
        Progress::Done
    }

    /// An asynchronous stage finished something.
    fn completed(&mut self, stage: StageIndex, what: Completed) {
        let _ = (stage, what);
    }

    /// The sequence through which every stage before this one is done, if this stage keeps
    /// track of that.
    fn passed(&self) -> Option<Sequence> {
        None
    }

    /// The first write that a stage before this one failed, if this stage keeps track of that.
    fn failed(&self) -> Option<Sequence> {
        None
    }

    /// Continues after the last write of an earlier life of the partition.
    fn resume(&mut self, sequence: Sequence, timestamp: Timestamp) {
        let _ = (sequence, timestamp);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Takes everything and keeps nothing.
    pub(crate) struct Nowhere;

    impl Outlet for Nowhere {
        fn log_admit(&mut self, _: &Write<'_>) -> Result<(), Refusal> {
            Ok(())
        }

        fn log_append(&mut self, _: &Write<'_>) {}

        fn node(&self) -> &str {
            "vm-1"
        }
    }

    /// A write of these entries that has just arrived.
    pub(crate) fn write_of<'a>(entries: &'a [WriteEntry<'a>], now: u64) -> Write<'a> {
        Write {
            partition: PartitionId(0),
            epoch: Epoch(1),
            entries,
            request: None,
            now: WallClock(now),
            ack: Ack::Durable,
            sequence: Sequence::ZERO,
            timestamp: Timestamp::ZERO,
            pending: 0,
        }
    }
}
