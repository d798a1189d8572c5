//! The stores on disk pass the conformance suite.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(all(feature = "sled", feature = "lsm"))]

mod conformance;

use std::{cell::Cell, path::Path, time::Duration};

use conformance::Shape;
use stateside_statestore::{Database, DiskEngine, Lsm, LsmOptions, Sled, SledOptions, StateStore};
use stateside_types::{Epoch, PartitionId};

/// Every write is covered at once, so that what the overlay forgets is tried too.
const EAGER: Duration = Duration::ZERO;
const LAZY: Duration = Duration::from_secs(1);

fn sled(cover_interval: Duration) -> SledOptions {
    SledOptions { cache_bytes: 4 << 20, cover_interval, ..SledOptions::default() }
}

/// With memtables that are full soon: tables are written and merged meanwhile.
fn lsm(cover_interval: Duration) -> LsmOptions {
    let small =
        LsmOptions { cache_bytes: 4 << 20, memtable_bytes: 64 << 10, ..LsmOptions::default() };
    LsmOptions { cover_interval, ..small }
}

/// All cases share an engine, as partitions do; each has a store of its own.
fn check<D: Database>(directory: &Path, options: D::Options, shape: Shape) -> DiskEngine<D> {
    let engine = DiskEngine::<D>::open(&directory.join(D::KIND), options).unwrap();
    let next = Cell::new(0);
    conformance::check(shape, || {
        next.set(next.get() + 1);
        engine.partition(PartitionId(next.get()), Epoch(1)).unwrap()
    });
    engine
}

const MANY_KEYS: Shape = Shape { cases: 48, steps: 150, keys: 400, value_bytes_max: 70_000 };
const HOT_KEYS: Shape = Shape { cases: 48, steps: 200, keys: 12, value_bytes_max: 40_000 };

#[test]
fn sled_conforms_to_the_model() {
    let directory = tempfile::tempdir().unwrap();
    check::<Sled>(directory.path(), sled(EAGER), MANY_KEYS);
    let blobs = std::fs::read_dir(directory.path().join("sled/blobs")).unwrap().count();
    assert_eq!(blobs, 0, "no page may outgrow sled's log");
}

#[test]
fn lsm_conforms_to_the_model() {
    let directory = tempfile::tempdir().unwrap();
    check::<Lsm>(directory.path(), lsm(EAGER), MANY_KEYS);
}

#[test]
fn sled_conforms_to_the_model_when_a_few_keys_are_hot() {
    let directory = tempfile::tempdir().unwrap();
    remove_all(&check::<Sled>(directory.path(), sled(LAZY), HOT_KEYS));
}

#[test]
fn lsm_conforms_to_the_model_when_a_few_keys_are_hot() {
    let directory = tempfile::tempdir().unwrap();
    remove_all(&check::<Lsm>(directory.path(), lsm(LAZY), HOT_KEYS));
}

fn remove_all<D: Database>(engine: &DiskEngine<D>) {
    let left = engine.partitions().unwrap();
    assert!(!left.is_empty());
    for (id, epoch) in left {
        assert!(engine.remove(id, epoch).unwrap());
        assert!(!engine.remove(id, epoch).unwrap());
    }
    assert!(engine.partitions().unwrap().is_empty());
    let store = engine.partition(PartitionId(1), Epoch(1)).unwrap();
    assert_eq!(store.stats().records, 0);
}
