//! The stores on disk pass the conformance suite.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(all(feature = "sled", feature = "lsm"))]

mod conformance;

use std::{cell::Cell, path::Path, sync::Arc, time::Duration};

use conformance::Shape;
use stateside_statestore::{
    Database, DiskEngine, FAST_CAPACITY_BYTES_MIN, FastTierOptions, Lsm, LsmOptions, Sled,
    SledOptions, StateStore, TierFigures, Tiered, TieredOptions,
};
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

/// With so little room that entries go all the time: for an index of a few sets, or for the file.
fn tiered(directory: &Path, cover_interval: Duration, index_bytes: u64) -> TieredOptions {
    let fast = FastTierOptions {
        directory: directory.join("fast"),
        capacity_bytes: FAST_CAPACITY_BYTES_MIN,
        free_bytes_min: 0,
        index_bytes,
        retry_after: Duration::from_secs(10),
        report: |problem| panic!("nothing is wrong with the fast tier: {problem}"),
    };
    TieredOptions { slow: lsm(cover_interval), fast, figures: Arc::new(TierFigures::default()) }
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
fn tiered_conforms_to_the_model_while_its_file_is_too_small() {
    let directory = tempfile::tempdir().unwrap();
    let options = tiered(directory.path(), EAGER, 1 << 20);
    let figures = Arc::clone(&options.figures);
    check::<Tiered>(directory.path(), options, MANY_KEYS);
    let stats = figures.stats();
    println!("{stats:?}");
    assert!(stats.read_hits > 0 && stats.read_misses > 0 && stats.other_hits > 0, "{stats:?}");
    assert!(stats.evicted > 0 && stats.damaged == 0 && !stats.is_down, "{stats:?}");
}

#[test]
fn tiered_conforms_to_the_model_when_a_few_keys_are_hot() {
    let directory = tempfile::tempdir().unwrap();
    // A single set: all keys of all cases are in each other's way.
    let options = tiered(directory.path(), LAZY, 1);
    let figures = Arc::clone(&options.figures);
    remove_all(&check::<Tiered>(directory.path(), options, HOT_KEYS));
    let stats = figures.stats();
    println!("{stats:?}");
    assert!(stats.read_hits > 0 && stats.entries <= 8 && stats.damaged == 0, "{stats:?}");
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
