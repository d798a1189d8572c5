//! What the memory store promises at size: bytes a record, honest accounting, memory that comes
//! back, and snapshots that stay right while segments split, merge and pages are drained.
//!
//! One test function: the allocator counts for the whole process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/counting_allocator.rs"]
mod counting_allocator;

use std::collections::HashMap;

use counting_allocator::{CountingAllocator, held_bytes};
use stateside_statestore::{Lookup, MemoryStore, SnapshotStep, StateStore};
use stateside_types::{Change, Timestamp, WriteEntry};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const SEED: u64 = 20_261_121;

/// A stream of numbers; the same seed gives the same.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

fn key(number: u64) -> [u8; 16] {
    let mut key = *b"user/00000000/kv";
    key[5..13].copy_from_slice(&number.to_be_bytes());
    key
}

fn write(store: &mut MemoryStore, changes: &[(u64, Option<&[u8]>)]) {
    let keys: Vec<[u8; 16]> = changes.iter().map(|(number, _)| key(*number)).collect();
    let entries: Vec<WriteEntry<'_>> = changes
        .iter()
        .zip(&keys)
        .map(|((_, value), key)| WriteEntry::new(key, value.map_or(Change::Remove, Change::Put)))
        .collect();
    store.apply(store.applied().next(), Timestamp(1), &entries);
}

fn check_accounting(store: &MemoryStore, before: isize) {
    let held = held_bytes() - before;
    let told = store.stats().memory_bytes as isize;
    // The store itself stands on the stack here, and its own size is told too.
    assert!((held - told).abs() <= 2_048, "the process holds {held} bytes, the store tells {told}");
}

/// 16-byte keys and 100-byte values, every fill level up to a million records.
fn a_record_costs_48_bytes_at_most() {
    let before = held_bytes();
    let mut store = MemoryStore::new(SEED);
    let value = [7; 100];
    let mut worst = (0.0, 0);
    for number in 0..1_000_000 {
        write(&mut store, &[(number, Some(&value))]);
        let records = number + 1;
        // Every 500 is close enough: a growth adds a few hundred records' worth at most.
        if records >= 10_000 && records % 500 == 0 {
            let over = (held_bytes() - before) as f64 / records as f64 - 116.0;
            if over > worst.0 {
                worst = (over, records);
            }
        }
        if records % 50_000 == 0 {
            check_accounting(&store, before);
        }
    }
    println!("worst {:.1} B over key and value, at {} records", worst.0, worst.1);
    assert!(worst.0 <= 48.0, "{:.1} B a record at {} records", worst.0, worst.1);

    // Overwriting in random order, at the same sizes, costs nothing more.
    let mut numbers = Numbers(SEED);
    let full = held_bytes();
    for _ in 0..100_000 {
        write(&mut store, &[(numbers.below(1_000_000), Some(&value))]);
    }
    assert!(held_bytes() <= full, "overwriting took {} bytes", held_bytes() - full);

    // Removing one and adding another keeps the size too: tombstones must not double the index.
    for number in 0..300_000 {
        write(&mut store, &[(number, None), (1_000_000 + number, Some(&value))]);
    }
    let over = (held_bytes() - before) as f64 / 1_000_000.0 - 116.0;
    println!("{over:.1} B over key and value after 30 % were replaced");
    assert!(over <= 48.0, "{over:.1} B a record after replacing");
    check_accounting(&store, before);

    // Removing half gives half back, removing all gives all back.
    for number in 300_000..800_000 {
        write(&mut store, &[(number, None)]);
    }
    let over = (held_bytes() - before) as f64 / 500_000.0 - 116.0;
    println!("{over:.1} B over key and value after half were removed");
    assert!(over <= 75.0, "{over:.1} B a record after half were removed");
    for number in 800_000..1_300_000 {
        write(&mut store, &[(number, None)]);
    }
    assert_eq!(store.stats().records, 0);
    check_accounting(&store, before);
    assert!(held_bytes() - before < 4_096, "an empty store holds {}", held_bytes() - before);
}

/// A thousand partitions with nothing or little in them.
fn an_idle_partition_costs_little() {
    let before = held_bytes();
    let mut stores: Vec<MemoryStore> = (0..1_000).map(MemoryStore::new).collect();
    let empty = (held_bytes() - before) / 1_000;
    for store in &mut stores {
        write(store, &[(1, Some(&[1; 100]))]);
    }
    let one = (held_bytes() - before) / 1_000;
    println!("an empty partition's store {empty} B, with one record {one} B");
    assert!(empty < 1_024 && one < 8_192);
}

/// Random writes of changing sizes beside snapshots, against a plain map.
fn snapshots_hold_while_everything_moves() {
    let before = held_bytes();
    let mut numbers = Numbers(SEED);
    let mut store = MemoryStore::new(SEED);
    let mut model: HashMap<u64, (usize, u64)> = HashMap::new();
    let bytes = vec![3; 12_000];
    for phase in 0..8u64 {
        // Phases grow, shift sizes, and shrink, so that segments split and merge meanwhile.
        let writes = 30_000 + 10_000 * (phase % 2);
        let removes = [0, 10, 90, 30, 5, 50, 95, 10][phase as usize];
        let size = [100, 60, 200, 100, 40, 300, 20, 10][phase as usize];
        let expected = model.clone();
        let base = store.stats();
        store.snapshot_start();
        let (mut seen, mut overwritten) = (HashMap::new(), 0);
        let mut ended = false;
        for _ in 0..writes {
            let number = numbers.below(60_000);
            let sequence = store.applied().0 + 1;
            let len = match numbers.below(1_000) {
                0 => numbers.below(12_000) as usize,
                _ => size + numbers.below(16) as usize,
            };
            overwritten += model.get(&number).map_or(0, |(len, _)| len + 150);
            if numbers.below(100) < removes {
                model.remove(&number);
                write(&mut store, &[(number, None)]);
            } else {
                model.insert(number, (len, sequence));
                write(&mut store, &[(number, Some(&bytes[..len]))]);
            }
            if !ended && numbers.below(10) == 0 {
                let step = store.snapshot_next(2_000, &mut |record| {
                    let number = u64::from_be_bytes(record.key[5..13].try_into().unwrap());
                    let found = (record.record.value.len(), record.record.version.0);
                    assert_eq!(seen.insert(number, found), None, "phase {phase}: twice");
                });
                ended = step.unwrap() == SnapshotStep::Done;
            }
            if phase == 5 && seen.len() > 10_000 {
                // One is given up half-way; what it kept is freed with the next writes.
                store.snapshot_end();
                (ended, seen) = (true, HashMap::new());
            }
        }
        while !ended {
            let step = store.snapshot_next(1 << 20, &mut |record| {
                let number = u64::from_be_bytes(record.key[5..13].try_into().unwrap());
                let found = (record.record.value.len(), record.record.version.0);
                assert_eq!(seen.insert(number, found), None, "phase {phase}: twice");
            });
            ended = step.unwrap() == SnapshotStep::Done;
        }
        store.snapshot_end();
        if phase != 5 {
            assert!(seen == expected, "phase {phase}: the snapshot is not the state at its start");
        }
        let stats = store.stats();
        let payload: usize = model.values().map(|(len, _)| len + 16).sum();
        assert_eq!((stats.records, stats.payload_bytes), (model.len() as u64, payload as u64));
        println!(
            "phase {phase}: {} records, memory {} -> {} (overwritten {overwritten})",
            stats.records, base.memory_bytes, stats.memory_bytes
        );
    }
    for (number, (len, version)) in &model {
        let key = key(*number);
        let Lookup::Found(record) = store.get(&key) else { panic!("{number} is gone") };
        assert_eq!((record.value.len(), record.version.0), (*len, *version));
    }
    for number in 0..60_000 {
        write(&mut store, &[(number, None)]);
    }
    drop((model, bytes));
    assert!(held_bytes() - before < 4_096, "an empty store holds {}", held_bytes() - before);
}

#[test]
fn promises_about_memory_hold() {
    a_record_costs_48_bytes_at_most();
    an_idle_partition_costs_little();
    snapshots_hold_while_everything_moves();
}
