//! Prints what a record costs in the memory store, how long reads and writes take, the longest
//! pause, and what a snapshot costs the writes beside it.
//!
//! `cargo run --release -p stateside-statestore --example memory_figures [RECORDS] [ordered]`;
//! with `ordered` of the store that keeps its keys in order as well.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use stateside_statestore::{Lookup, MemoryStore, SnapshotStep, StateStore};
use stateside_types::{Change, Sequence, Timestamp, WriteEntry};

#[path = "../tests/support/counting_allocator.rs"]
mod counting_allocator;

#[global_allocator]
static ALLOCATOR: counting_allocator::CountingAllocator = counting_allocator::CountingAllocator;

/// CPU time of this thread: what else runs on the machine does not show.
#[derive(Clone, Copy)]
struct Instant(Duration);

impl Instant {
    fn now() -> Self {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Self(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }

    fn elapsed(self) -> Duration {
        Self::now().0 - self.0
    }
}

const PAYLOAD_BYTES: isize = 116;

fn key(number: u64) -> [u8; 16] {
    let mut key = *b"key-000000000000";
    key[4..12].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    key
}

fn put(store: &mut MemoryStore, number: u64, value: &[u8]) {
    let key = key(number);
    let entry = WriteEntry::put(&key, value);
    store.apply(store.applied().next(), Timestamp(1), &[entry]);
}

/// Calls `work` with numbers below `records` in no order and returns nanoseconds a call.
fn timed(records: u64, calls: u64, mut work: impl FnMut(u64)) -> f64 {
    let start = Instant::now();
    let mut number = 1u64;
    for _ in 0..calls {
        number =
            number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        work((number >> 33) % records);
    }
    start.elapsed().as_nanos() as f64 / calls as f64
}

fn main() {
    let most = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1_000_000u64);
    let ordered = std::env::args().nth(2).is_some_and(|text| text == "ordered");
    let new = |seed| if ordered { MemoryStore::ordered(seed) } else { MemoryStore::new(seed) };
    let value = [7; 100];
    let mut store = new(41);
    let start = Instant::now();
    for number in 0..most {
        put(&mut store, number, &value);
    }
    let one_by_one = start.elapsed().as_nanos() as f64 / most as f64;
    drop(store);
    let mut store = new(40);
    let start = Instant::now();
    for first in (0..most).step_by(32) {
        let keys: [[u8; 16]; 32] = std::array::from_fn(|i| key(first + i as u64));
        let entries = keys.each_ref().map(|key| WriteEntry::new(key, Change::Put(&value)));
        store.apply(store.applied().next(), Timestamp(1), &entries);
    }
    let batched = start.elapsed().as_nanos() as f64 / most as f64;
    drop(store);
    println!("insert {one_by_one:.0} ns, in batches of 32 {batched:.0} ns");
    let before = counting_allocator::held_bytes();
    let mut store = new(42);
    let (mut worst_bytes, mut worst_at, mut worst_pause) = (0.0f64, 0, Duration::ZERO);
    let mut pauses = vec![0u32; 6];
    let mut next_print = 1_000;
    for number in 0..most {
        let start = Instant::now();
        put(&mut store, number, &value);
        let took = start.elapsed();
        worst_pause = worst_pause.max(took);
        pauses[(took.as_micros().max(1).ilog10() as usize).min(5)] += 1;
        let records = number + 1;
        if records >= 10_000 && records % 500 == 0 {
            let held = counting_allocator::held_bytes() - before;
            let over = (held - PAYLOAD_BYTES * records as isize) as f64 / records as f64;
            if over > worst_bytes {
                (worst_bytes, worst_at) = (over, records);
            }
        }
        if records == next_print || records == most {
            let held = counting_allocator::held_bytes() - before;
            let stats = store.stats().memory_bytes;
            let over = (held - PAYLOAD_BYTES * records as isize) as f64 / records as f64;
            println!(
                "{records:>9} records: {over:5.1} B over key and value; held {held}, stats {stats}"
            );
            next_print *= 10;
        }
    }
    println!("worst fill from 10 K on: {worst_bytes:.1} B a record at {worst_at}");
    println!("longest insert {worst_pause:?}");
    println!("pauses <10us, <100us, <1ms, <10ms, <100ms: {pauses:?}");

    let calls = most.clamp(1_000_000, 4_000_000);
    let mut hits = 0;
    let get = timed(most, calls, |number| {
        hits += u64::from(matches!(store.get(&key(number)), Lookup::Found(_)));
    });
    assert_eq!(hits, calls);
    hits = 0;
    let overwrite = timed(most, calls, |number| put(&mut store, number, &value));
    println!("get {get:.0} ns, overwrite in place {overwrite:.0} ns");

    let mut start = 0u64;
    let batch = timed(most, calls / 32, |_| {
        let keys: [[u8; 16]; 32] = std::array::from_fn(|_| {
            start = start
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            key((start >> 33) % most)
        });
        let keys: [&[u8]; 32] = keys.each_ref().map(|key| key.as_slice());
        store.get_all(&keys, &mut |_, found| {
            hits += u64::from(matches!(found, Lookup::Found(record) if record.value[0] == 7));
        });
    });
    let put_batch = timed(most, calls / 32, |_| {
        let keys: [[u8; 16]; 32] = std::array::from_fn(|_| {
            start = start
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            key((start >> 33) % most)
        });
        let entries = keys.each_ref().map(|key| WriteEntry::new(key, Change::Put(&value)));
        store.apply(store.applied().next(), Timestamp(1), &entries);
    });
    println!("in batches of 32: get {:.0} ns, overwrite {:.0} ns", batch / 32.0, put_batch / 32.0);

    store.snapshot_start();
    let base = store.stats().memory_bytes;
    let (mut records, mut bytes, mut walking, mut longest) =
        (0u64, 0, Duration::ZERO, Duration::ZERO);
    let (mut writes, mut writing, mut most_memory) = (0u64, Duration::ZERO, base);
    let mut number = 1u64;
    loop {
        let start = Instant::now();
        let step = store.snapshot_next(64 << 10, &mut |record| {
            records += 1;
            bytes += record.key.len() + record.record.value.len();
        });
        let took = start.elapsed();
        walking += took;
        longest = longest.max(took);
        if step.expect("memory does not fail") == SnapshotStep::Done {
            break;
        }
        let start = Instant::now();
        for _ in 0..20 {
            number = number
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            put(&mut store, (number >> 33) % most, &value);
        }
        writing += start.elapsed();
        writes += 20;
        most_memory = most_memory.max(store.stats().memory_bytes);
    }
    store.snapshot_end();
    assert_eq!(records, most);
    println!(
        "snapshot: {:.0} MB/s, longest 64 KiB step {longest:?}; writes beside it {:.0} ns; {:.1} % more memory after {writes} overwrites",
        bytes as f64 / walking.as_secs_f64() / 1e6,
        writing.as_nanos() as f64 / writes.max(1) as f64,
        (most_memory - base) as f64 * 100.0 / base as f64,
    );

    let longer = [9; 120];
    let shift = timed(most, 2 * calls, |number| put(&mut store, number, &longer));
    let stats = store.stats();
    println!(
        "values 100 to 120 B: {shift:.0} ns a write, then {:.1} B over key and value",
        (stats.memory_bytes - stats.payload_bytes) as f64 / stats.records as f64
    );
    let (mut longest, mut longest_at) = (Duration::ZERO, 0);
    for number in 0..most {
        let key = key(number);
        let entry = WriteEntry::remove(&key);
        let at = Instant::now();
        let sequence = Sequence(store.applied().0 + 1);
        store.apply(sequence, Timestamp(1), &[entry]);
        if at.elapsed() > longest {
            (longest, longest_at) = (at.elapsed(), most - number);
        }
    }
    println!(
        "removing all: longest {longest:?} with {longest_at} left; empty store {} B, process {} B",
        store.stats().memory_bytes,
        counting_allocator::held_bytes() - before
    );
}
