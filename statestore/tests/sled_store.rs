//! The sled store passes the conformance suite.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "sled")]

mod conformance;

use std::{cell::Cell, time::Duration};

use conformance::Shape;
use stateside_statestore::{SledEngine, SledOptions, StateStore};
use stateside_types::{Epoch, PartitionId};

/// Every write is covered at once, so that what the overlay forgets is tried too.
fn eager() -> SledOptions {
    SledOptions { cache_bytes: 4 << 20, cover_interval: Duration::ZERO, ..SledOptions::default() }
}

fn lazy() -> SledOptions {
    SledOptions { cache_bytes: 4 << 20, ..SledOptions::default() }
}

#[test]
fn conforms_to_the_model() {
    let directory = tempfile::tempdir().unwrap();
    let engine = SledEngine::open(&directory.path().join("sled"), eager()).unwrap();
    let next = Cell::new(0);
    let shape = Shape { cases: 48, steps: 150, keys: 400, value_bytes_max: 70_000 };
    // All cases share an engine, as partitions do; each has a store of its own.
    conformance::check(shape, || {
        next.set(next.get() + 1);
        engine.partition(PartitionId(next.get()), Epoch(1)).unwrap()
    });
    let blobs = std::fs::read_dir(directory.path().join("sled/blobs")).unwrap().count();
    assert_eq!(blobs, 0, "no page may outgrow sled's log");
}

#[test]
fn conforms_to_the_model_when_a_few_keys_are_hot() {
    let directory = tempfile::tempdir().unwrap();
    let engine = SledEngine::open(&directory.path().join("sled"), lazy()).unwrap();
    let next = Cell::new(0);
    let shape = Shape { cases: 48, steps: 200, keys: 12, value_bytes_max: 40_000 };
    conformance::check(shape, || {
        next.set(next.get() + 1);
        engine.partition(PartitionId(next.get()), Epoch(1)).unwrap()
    });
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
