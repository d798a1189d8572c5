//! State stores: the trait and its implementations.

mod counters;
#[cfg(any(feature = "sled", feature = "lsm"))]
mod disk_store;
#[cfg(feature = "lsm")]
mod lsm_database;
mod memory_store;
mod page;
mod request_window;
#[cfg(feature = "sled")]
mod sled_database;
mod snapshot_format;
mod store;
mod tier_figures;
#[cfg(feature = "lsm")]
mod tiered_database;

pub use counters::{CountersStore, is_counter};
#[cfg(any(feature = "sled", feature = "lsm"))]
pub use disk_store::{Database, DiskEngine, DiskLimits, DiskStore, EngineError, Tree, TreeChange};
#[cfg(feature = "lsm")]
pub use lsm_database::{Lsm, LsmEngine, LsmOptions, LsmStore, LsmTree};
pub use memory_store::MemoryStore;
pub use page::{PageRequest, PageStep};
pub use request_window::{
    Known, PastAnswer, RequestChange, RequestLimits, RequestRow, RequestStats, RequestWindow,
};
#[cfg(feature = "sled")]
pub use sled_database::{Sled, SledEngine, SledOptions, SledStore};
pub use snapshot_format::{
    SNAPSHOT_HEADER_BYTES, SNAPSHOT_VERSION, SNAPSHOT_VERSION_MIN, SnapshotBlock, SnapshotError,
    SnapshotHeader, SnapshotReader, SnapshotSummary, SnapshotWriter,
};
pub use store::{
    Lookup, Reclaimed, SnapshotRecord, SnapshotStep, StateStore, StoreError, StoreStats, Work,
    WorkDone,
};
pub use tier_figures::{TierFigures, TierStats};
#[cfg(feature = "lsm")]
pub use tiered_database::{
    FAST_CAPACITY_BYTES_MIN, FastBytes, FastTierOptions, Tiered, TieredBytes, TieredEngine,
    TieredOptions, TieredStore, TieredTree,
};
