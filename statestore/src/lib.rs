//! State stores: the trait and its implementations.

mod memory_store;
mod store;

pub use memory_store::MemoryStore;
pub use store::{
    Lookup, SnapshotRecord, SnapshotStep, StateStore, StoreError, StoreStats, Work, WorkDone,
};
