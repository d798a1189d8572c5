//! The stage trait, and the pipeline that runs a list of stages.

use stateside_types::{
    Ack, Epoch, PartitionId, PipelineError, Reason, Refusal, Sequence, StageKind, Timestamp,
    WallClock, WriteEntry, check_ack, check_pipeline,
};

use crate::{Clock, Dispatcher, KafkaStage, LineMonitor, LogStage};

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

/// Whether a stage is done with a write when `accept` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing more to wait for.
    Done,
    /// The stage will report [`Completed`] later.
    Pending,
}

/// Position of a stage in its pipeline, at most 7.
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
}

/// What stages do to the world. The node implements it; tests record it.
pub trait Outlet {
    /// Whether the log takes a record of these entries now. After `Ok`, one `log_append` of
    /// them cannot fail.
    ///
    /// # Errors
    /// `OVERLOADED`, `DISK_FULL`, `PARTITION_STOPPED`.
    fn log_admit(&mut self, entries: &[WriteEntry<'_>]) -> Result<(), Refusal>;

    /// Appends the write to the log. Its durability is reported to the partition later.
    fn log_append(&mut self, write: &Write<'_>);

    /// As `log_admit`, for the log in Kafka. An outlet that has none refuses.
    ///
    /// # Errors
    /// `OVERLOADED`, `LOG_UNAVAILABLE`, `BATCH_TOO_LARGE`, `PARTITION_STOPPED`.
    fn kafka_admit(&mut self, entries: &[WriteEntry<'_>]) -> Result<(), Refusal> {
        let _ = entries;
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

    /// Continues after the last write of an earlier life of the partition.
    fn resume(&mut self, sequence: Sequence, timestamp: Timestamp) {
        let _ = (sequence, timestamp);
    }
}

/// The stages of one partition, in order.
pub struct Pipeline {
    stages: Vec<Box<dyn Stage>>,
    log: Option<StageIndex>,
}

impl Pipeline {
    /// Builds the stages.
    ///
    /// # Errors
    /// [`PipelineError`] when the stages do not fit each other, or not the acknowledgement.
    pub fn new(kinds: &[StageKind], ack: Ack) -> Result<Self, PipelineError> {
        check_pipeline(kinds)?;
        check_ack(ack, kinds)?;
        let stages = kinds
            .iter()
            .map(|kind| -> Box<dyn Stage> {
                match kind {
                    StageKind::Clock => Box::<Clock>::default(),
                    StageKind::Dispatcher => Box::new(Dispatcher),
                    StageKind::Log => Box::new(LogStage),
                    StageKind::KafkaLog => Box::new(KafkaStage),
                    StageKind::LineMonitor => Box::<LineMonitor>::default(),
                }
            })
            .collect();
        let log = kinds.iter().position(|kind| kind.is_log());
        Ok(Self { stages, log: log.map(|at| StageIndex(at as u8)) })
    }

    /// Where the log stage is, if there is one.
    pub fn log(&self) -> Option<StageIndex> {
        self.log
    }

    /// Whether a stage of this kind is in the pipeline.
    pub fn has(&self, kind: StageKind) -> bool {
        self.stages.iter().any(|stage| stage.kind() == kind)
    }

    /// First pass.
    ///
    /// # Errors
    /// The first stage's refusal.
    pub fn admit(&mut self, write: &Write<'_>, outlet: &mut dyn Outlet) -> Result<(), Refusal> {
        self.stages.iter_mut().try_for_each(|stage| stage.admit(write, outlet))
    }

    /// Second pass.
    pub fn accept(&mut self, write: &mut Write<'_>, outlet: &mut dyn Outlet) {
        for (at, stage) in self.stages.iter_mut().enumerate() {
            if stage.accept(write, outlet) == Progress::Pending {
                write.pending |= StageIndex(at as u8).bit();
            }
        }
    }

    /// Tells the stages behind `stage` what it finished.
    pub fn completed(&mut self, stage: StageIndex, what: Completed) {
        for later in &mut self.stages[usize::from(stage.0) + 1..] {
            later.completed(stage, what);
        }
    }

    /// The sequence through which every asynchronous stage is done; None without a line
    /// monitor: then there is no asynchronous stage, and every accepted write has passed.
    pub fn passed(&self) -> Option<Sequence> {
        self.stages.iter().rev().find_map(|stage| stage.passed())
    }

    /// Continues after the last write of an earlier life of the partition.
    pub fn resume(&mut self, sequence: Sequence, timestamp: Timestamp) {
        self.stages.iter_mut().for_each(|stage| stage.resume(sequence, timestamp));
    }
}
