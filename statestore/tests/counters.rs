//! The store of counters passes the conformance suite, with integers for values.

mod conformance;

use conformance::Shape;
use stateside_statestore::CountersStore;

#[test]
fn conforms_to_the_model() {
    let shape = Shape { cases: 96, steps: 150, keys: 600, value_bytes_max: 20_000 };
    conformance::check(shape, CountersStore::default);
}

#[test]
fn conforms_to_the_model_when_a_few_keys_are_hot() {
    let shape = Shape { cases: 96, steps: 200, keys: 12, value_bytes_max: 20_000 };
    conformance::check(shape, CountersStore::default);
}
