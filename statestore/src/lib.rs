//! State stores: the trait and its implementations.

mod store;

pub use store::{
    Lookup, SnapshotRecord, SnapshotStep, StateStore, StoreError, StoreStats, Work, WorkDone,
};
