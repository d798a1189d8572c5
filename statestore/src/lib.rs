//! State stores: the trait and its implementations.

mod memory_store;
mod snapshot_format;
mod store;

pub use memory_store::MemoryStore;
pub use snapshot_format::{
    SNAPSHOT_HEADER_BYTES, SNAPSHOT_VERSION, SnapshotBlock, SnapshotError, SnapshotHeader,
    SnapshotReader, SnapshotSummary, SnapshotWriter,
};
pub use store::{
    Lookup, SnapshotRecord, SnapshotStep, StateStore, StoreError, StoreStats, Work, WorkDone,
};
