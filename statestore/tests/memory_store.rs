//! The memory store passes the conformance suite, and keeps its promises about memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod conformance;

use conformance::Shape;
use stateside_statestore::MemoryStore;

#[test]
fn conforms_to_the_model() {
    let shape = Shape { cases: 96, steps: 120, keys: 600, value_bytes_max: 20_000 };
    conformance::check(shape, || MemoryStore::new(7));
}

#[test]
fn conforms_to_the_model_when_a_few_keys_are_hot() {
    let shape = Shape { cases: 96, steps: 200, keys: 12, value_bytes_max: 70_000 };
    conformance::check(shape, || MemoryStore::new(8));
}

#[test]
fn the_ordered_store_conforms_to_the_model() {
    let shape = Shape { cases: 96, steps: 150, keys: 600, value_bytes_max: 20_000 };
    conformance::check(shape, || MemoryStore::ordered(9));
}
