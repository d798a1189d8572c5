//! State stores: the trait and its implementations.

mod memory_store;
#[cfg(feature = "sled")]
mod sled_store;
mod snapshot_format;
mod store;

pub use memory_store::MemoryStore;
#[cfg(feature = "sled")]
pub use sled_store::{SledEngine, SledOptions, SledStore};
pub use snapshot_format::{
    SNAPSHOT_HEADER_BYTES, SNAPSHOT_VERSION, SnapshotBlock, SnapshotError, SnapshotHeader,
    SnapshotReader, SnapshotSummary, SnapshotWriter,
};
pub use store::{
    Lookup, Reclaimed, SnapshotRecord, SnapshotStep, StateStore, StoreError, StoreStats, Work,
    WorkDone,
};
