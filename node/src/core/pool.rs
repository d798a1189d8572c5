//! A core's way to the blocking pool, and what comes back from it.

use std::{collections::VecDeque, io, time::Duration};

use stateside_pipeline::kafka::Position;
use stateside_statestore::WorkDone;
use stateside_types::{PartitionId, Refusal};

use super::{
    command::RestoreReport, partition_files::OpenedStore, recovery::Recovered,
    snapshots::SnapshotFile, store_change::Copied,
};
use crate::{
    log_files::LogError,
    reactor::{BlockingPool, Job, Waker},
};

/// Something that ran on the pool for this core.
pub(crate) enum PoolDone {
    /// A piece of a store's work, and how long it took.
    Store(PartitionId, WorkDone, Duration),
    /// A step of writing a snapshot's file.
    SnapshotFile(u64, io::Result<SnapshotFile>),
    /// A snapshot was verified and installed as a partition's own.
    RestorePrepared(u64, Result<RestoreReport, Refusal>),
    /// A partition's store was opened: a new one, or one restored from its snapshot.
    StoreOpened(u64, Result<OpenedStore, Refusal>),
    /// A step of changing a partition's store.
    StoreChange(u64, Copied),
    /// Partitions that the start had no room for were tried again.
    LateRecovered(Result<Recovered, LogError>),
    /// Where a partition's log in Kafka is replayed from was noted, or not.
    KafkaFiled(PartitionId, Box<Position>, io::Result<()>),
    /// A partition's files were deleted, or not.
    FilesRemoved(u64, Result<(), Refusal>),
}

/// Runs jobs on the pool and brings their outcomes to this core. Lives on the core's thread.
pub(crate) struct PoolHandle {
    pool: BlockingPool,
    done: flume::Sender<PoolDone>,
    waker: Waker,
    /// Jobs that the pool had no room for. Bounded by what a core has under way: one piece of
    /// work a partition, one operation a partition.
    waiting: VecDeque<Job>,
}

impl PoolHandle {
    /// A handle, and where the outcomes come.
    pub(crate) fn new(pool: BlockingPool, waker: Waker) -> (Self, flume::Receiver<PoolDone>) {
        // As many outcomes as jobs, which are bounded as said above: sending never blocks a thread.
        let (done, outcomes) = flume::unbounded();
        (Self { pool, done, waker, waiting: VecDeque::new() }, outcomes)
    }

    /// Runs `job` soon; its outcome arrives later.
    pub(crate) fn submit(&mut self, job: impl FnOnce() -> PoolDone + Send + 'static) {
        let done = self.done.clone();
        let waker = self.waker.clone();
        let job: Job = Box::new(move || {
            // The core has gone only when the process ends.
            if done.send(job()).is_ok() {
                waker.wake();
            }
        });
        if !self.waiting.is_empty() {
            self.waiting.push_back(job);
        } else if let Err(job) = self.pool.submit(job) {
            self.waiting.push_back(job);
        }
    }

    /// Tries again what the pool had no room for.
    pub(crate) fn retry(&mut self) {
        while let Some(job) = self.waiting.pop_front() {
            if let Err(job) = self.pool.submit(job) {
                self.waiting.push_front(job);
                return;
            }
        }
    }
}
