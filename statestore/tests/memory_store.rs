//! The memory store passes the conformance suite, and keeps its promises about memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod conformance;

use conformance::Shape;
use stateside_statestore::{Lookup, MemoryStore, StateStore};
use stateside_types::{Sequence, Timestamp, WriteEntry};

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

/// In so large an index many a key is not the first one that its control byte fits.
#[test]
fn many_keys_at_once_are_found_as_each_alone_also_where_a_first_guess_is_wrong() {
    let keys: Vec<Vec<u8>> = (0..40_000_u32).map(|i| format!("key-{i}").into_bytes()).collect();
    let (there, absent) = keys.split_at(20_000);
    let mut store = MemoryStore::new(10);
    for (number, batch) in (1..).zip(there.chunks(500)) {
        let entries: Vec<_> = batch.iter().map(|key| WriteEntry::put(key, key)).collect();
        store.apply(Sequence(number), Timestamp(number), &entries);
    }
    let mixed: Vec<&[u8]> =
        there.iter().zip(absent).flat_map(|(one, other)| [&one[..], &other[..]]).collect();
    let mut values = 0;
    store.get_all(&mixed, &mut |key, found| {
        if let Lookup::Found(record) = found {
            assert_eq!(record.value, key);
            values += 1;
        }
        assert_eq!(found, &store.get(key));
    });
    assert_eq!(values, there.len());
}
