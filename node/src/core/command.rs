//! What the manager, on the control thread, asks of a core.
//!
//! Commands travel over a bounded flume channel and the core's waker; each answer comes back
//! through its own one-slot channel, so a core never waits for the control thread.

use std::{path::PathBuf, sync::Arc};

use stateside_pipeline::StageCounts;
use stateside_router::RoutingTable;
use stateside_statestore::RequestStats;
use stateside_types::{PartitionId, PartitionSpec, PartitionState, Refusal, Sequence, StoreKind};

pub use super::kafka::KafkaReport;

/// One slot for one answer.
pub type Reply<T> = flume::Sender<T>;

/// A command to one core.
pub enum CoreCommand {
    /// Create the partition, empty, and serve it. Its files do not exist yet.
    Add {
        /// What to create.
        spec: PartitionSpec,
        /// Answer once it serves.
        reply: Reply<Result<(), Refusal>>,
    },
    /// Change a partition's settings (ack, pipeline, range, epoch) in place.
    Update {
        /// The new settings; `id`, `store` and `first_epoch` are as before.
        spec: PartitionSpec,
        /// Answer once they are in force.
        reply: Reply<Result<(), Refusal>>,
    },
    /// Stop serving the partition, then delete its files.
    Remove {
        /// Which one.
        id: PartitionId,
        /// Answer once its files are gone. Removing what is not there succeeds.
        reply: Reply<Result<(), Refusal>>,
    },
    /// Write a snapshot to a new file while the partition serves.
    Snapshot {
        /// Which one.
        id: PartitionId,
        /// Absolute path of the file.
        path: PathBuf,
        /// Answer once the file is whole and on disk.
        reply: Reply<Result<SnapshotReport, Refusal>>,
    },
    /// Replace the partition's content by a snapshot's. The manager has not changed the manifest
    /// yet: the core verifies the file, installs a copy of it as the partition's own snapshot
    /// for `spec.epoch` and answers with it; the swap takes effect with the manifest.
    PrepareRestore {
        /// Which one.
        id: PartitionId,
        /// Absolute path of the snapshot.
        path: PathBuf,
        /// The partition's next epoch: names the installed copy, which an older manifest ignores.
        epoch: stateside_types::Epoch,
        /// Answer with what the partition will hold. Writes are refused (`PARTITION_BUSY`) from
        /// here until `FinishRestore`.
        reply: Reply<Result<RestoreReport, Refusal>>,
    },
    /// The manifest has the new epoch (or the restore is abandoned): go on.
    FinishRestore {
        /// Which one.
        id: PartitionId,
        /// The partition as the manifest now has it; `None` abandons the restore.
        spec: Option<PartitionSpec>,
        /// Answer once the partition serves the restored content.
        reply: Reply<Result<(), Refusal>>,
    },
    /// Copy the partition's records to another store while it serves, and keep that one up with its
    /// writes. The manager has not changed the manifest yet.
    CopyStore {
        /// Which one.
        id: PartitionId,
        /// The other store.
        to: StoreKind,
        /// Answer once the copy has caught up with the writes, or with why it is given up.
        reply: Reply<Result<CopyReport, Refusal>>,
    },
    /// The manifest is about to name the other store: let the copy stand by itself.
    CloseCopy {
        /// Which one.
        id: PartitionId,
        /// Answer once the copy survives a crash and the log has what it lacks; from here until
        /// `SwitchStore` nothing of it is given up.
        reply: Reply<Result<(), Refusal>>,
    },
    /// The manifest names the other store (or the change is abandoned): go on.
    SwitchStore {
        /// Which one.
        id: PartitionId,
        /// The partition as the manifest now has it; `None` abandons the change.
        spec: Option<PartitionSpec>,
        /// Answer once the partition serves from the other store and the files of the one before
        /// are gone.
        reply: Reply<Result<(), Refusal>>,
    },
    /// The node's partition set changed.
    Route(Arc<RoutingTable>),
    /// Describe the core and its partitions.
    Report {
        /// The description.
        reply: Reply<CoreReport>,
    },
    /// Stop intake, finish what is under way, flush the log, then end the core's thread.
    Drain,
}

/// A finished snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotReport {
    /// The snapshot holds the state after this sequence.
    pub sequence: Sequence,
    /// Records in it.
    pub records: u64,
    /// Size of the file.
    pub bytes: u64,
}

/// A snapshot ready to become a partition's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreReport {
    /// Where the partition's versions go on from: the higher of its own and the snapshot's.
    pub sequence: Sequence,
    /// Records in the snapshot.
    pub records: u64,
}

/// A copy of a partition's records in another store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyReport {
    /// Records in the snapshot that it began with.
    pub records: u64,
    /// Size of that snapshot.
    pub bytes: u64,
}

/// How far the change of a partition's store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreChangeReport {
    /// The store that it changes to.
    pub to: StoreKind,
    /// What is being done: `waiting`, `snapshot`, `copy`, `catch-up`, `switch`, `clean-up`.
    pub phase: &'static str,
    /// Records through this phase, or the one before.
    pub records: u64,
    /// Records in all, as of the beginning.
    pub records_total: u64,
    /// Bytes of writes that wait for the new store.
    pub waiting_bytes: u64,
}

/// A core as it describes itself.
#[derive(Clone, Debug, Default)]
pub struct CoreReport {
    /// Its partitions, by id.
    pub partitions: Vec<PartitionReport>,
    /// Open connections.
    pub connections: u64,
    /// Requests served since the start.
    pub requests: u64,
    /// Bytes of log segments in use.
    pub log_bytes: u64,
    /// Log segments in use.
    pub log_segments: u64,
    /// Empty, or why writes are refused.
    pub log_problem: String,
    /// `direct` or `buffered`.
    pub log_mode: &'static str,
    /// Bytes of memory of the core's stores.
    pub memory_bytes: u64,
}

/// A partition as its core describes it.
#[derive(Clone, Debug)]
pub struct PartitionReport {
    /// The settings in force.
    pub spec: PartitionSpec,
    /// Where it is in its life.
    pub state: PartitionState,
    /// Records held.
    pub records: u64,
    /// Bytes of keys and values.
    pub payload_bytes: u64,
    /// Bytes of memory, everything included.
    pub memory_bytes: u64,
    /// Expired records taken out of the store.
    pub reclaimed: u64,
    /// Last batch applied.
    pub sequence: Sequence,
    /// Up to where it is durable.
    pub durable_sequence: Sequence,
    /// What its newest snapshot, or its store, covers.
    pub snapshot_sequence: Sequence,
    /// When that snapshot was made, milliseconds since 1970; 0: none.
    pub snapshot_unix_ms: u64,
    /// What it remembers of requests with an id.
    pub requests: RequestStats,
    /// Retries that it answered from that.
    pub retries_answered: u64,
    /// What each of its stages before the clock did.
    pub stages: Vec<StageCounts>,
    /// What went wrong, when stopped or damaged.
    pub detail: String,
    /// The change of its store, while there is one.
    pub store_change: Option<StoreChangeReport>,
    /// Its log in Kafka, if it has one there.
    pub kafka: Option<KafkaReport>,
}
