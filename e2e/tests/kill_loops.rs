//! A short run of the kill loops on each store; `cargo xtask kill-loops` runs a hundred.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use stateside_e2e::{
    config::Store,
    kill_loops::{Plan, run},
    random::Random,
};

/// Enough to hit a snapshot and a recovery in every run.
const LOOPS: u32 = 10;

#[test]
fn kill_9_under_load_breaks_no_promise_of_the_memory_store() {
    kill_loops(Store::Memory);
}

#[test]
fn kill_9_under_load_breaks_no_promise_of_the_sled_store() {
    kill_loops(Store::Sled);
}

#[test]
fn kill_9_under_load_breaks_no_promise_of_the_lsm_store() {
    kill_loops(Store::Lsm);
}

#[test]
fn kill_9_under_load_breaks_no_promise_of_the_tiered_store() {
    kill_loops(Store::Tiered);
}

fn kill_loops(store: Store) {
    let seed = Random::fresh_seed();
    println!("seed {seed}");
    let outcome = run(Plan { loops: LOOPS, store, ack: "durable", seed }, |_, _| {})
        .unwrap_or_else(|violations| panic!("seed {seed}: {violations}"));
    println!("{outcome:?}");
    assert!(outcome.acknowledged > 100, "hardly any load: {outcome:?}");
}

/// A test of the test: a node that acknowledges what is not on disk loses some of it.
#[test]
fn the_oracle_notices_a_node_that_acknowledges_from_memory() {
    let plan = Plan { loops: LOOPS, store: Store::Memory, ack: "memory", seed: 7 };
    let violations = run(plan, |_, _| {}).expect_err("acknowledged from memory, and nothing lost?");
    assert!(violations.contains("promises broken"), "{violations}");
}
