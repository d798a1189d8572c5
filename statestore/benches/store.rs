//! Reads, writes and snapshots of the stores, at 100 K and 1 M records of 16 B keys and 100 B values.
//!
//! `cargo bench -p stateside-statestore --features sled`; memory a record and pauses are told by
//! the example `memory_figures`.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use stateside_statestore::{
    Lookup, MemoryStore, SnapshotHeader, SnapshotStep, SnapshotWriter, StateStore,
};
use stateside_types::{Change, Epoch, HashRange, PartitionId, Timestamp, WallClock, WriteEntry};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VALUE: [u8; 100] = [7; 100];
/// Requests that a turn of a core finds, roughly: 8 connections of 32 streams have up to 256.
const TURN: usize = 32;

fn key(number: u64) -> [u8; 16] {
    let mut key = *b"key-000000000000";
    key[4..12].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    key
}

/// Keys in no order.
struct RandomKeys {
    state: u64,
    records: u64,
}

impl RandomKeys {
    fn new(records: u64) -> Self {
        Self { state: 1, records }
    }

    fn next(&mut self) -> [u8; 16] {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        key((self.state >> 33) % self.records)
    }
}

fn apply(store: &mut impl StateStore, keys: &[[u8; 16]], change: Change<'_>) {
    let entries: Vec<WriteEntry<'_>> =
        keys.iter().map(|key| WriteEntry::new(key, change)).collect();
    store.apply(store.applied().next(), Timestamp(1), &entries);
}

fn filled(records: u64) -> MemoryStore {
    let mut store = MemoryStore::new(42);
    for first in (0..records).step_by(1_000) {
        let keys: Vec<[u8; 16]> = (first..first + 1_000).map(key).collect();
        apply(&mut store, &keys, Change::Put(&VALUE));
    }
    store
}

fn get(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("memory/get");
    for records in [100_000, 1_000_000] {
        let store = filled(records);
        let mut keys = RandomKeys::new(records);
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("one", records), |bencher| {
            bencher.iter(|| match store.get(&keys.next()) {
                Lookup::Found(record) => black_box(record.value[99]),
                other => panic!("{other:?}"),
            });
        });
        group.throughput(Throughput::Elements(TURN as u64));
        group.bench_function(BenchmarkId::new("a turn of 32", records), |bencher| {
            bencher.iter(|| {
                let turn: [[u8; 16]; TURN] = std::array::from_fn(|_| keys.next());
                let turn = turn.each_ref().map(|key| key.as_slice());
                store.get_all(&turn, &mut |_, found| match found {
                    Lookup::Found(record) => _ = black_box(record.value[99]),
                    other => panic!("{other:?}"),
                });
            });
        });
    }
}

fn upsert(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("memory/upsert");
    for records in [100_000, 1_000_000] {
        let mut store = filled(records);
        let mut random = RandomKeys::new(records);
        for (name, batch) in [("overwrite one", 1), ("overwrite 32 in a batch", TURN)] {
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::new(name, records), |bencher| {
                bencher.iter(|| {
                    let keys: Vec<[u8; 16]> = (0..batch).map(|_| random.next()).collect();
                    apply(&mut store, &keys, Change::Put(&VALUE));
                });
            });
        }
        let mut number = records;
        for (name, batch) in [("add one, remove one", 1), ("add 32, remove 32", TURN as u64)] {
            group.throughput(Throughput::Elements(2 * batch));
            group.bench_function(BenchmarkId::new(name, records), |bencher| {
                bencher.iter(|| {
                    // The store keeps its size however long this runs.
                    let old = number - records;
                    let new: Vec<[u8; 16]> = (number..number + batch).map(key).collect();
                    apply(&mut store, &new, Change::Put(&VALUE));
                    let old: Vec<[u8; 16]> = (old..old + batch).map(key).collect();
                    apply(&mut store, &old, Change::Remove);
                    number += batch;
                });
            });
        }
    }
}

fn snapshot(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("memory/snapshot");
    group.sample_size(10);
    for records in [100_000u64, 1_000_000] {
        let mut store = filled(records);
        let mut keys = RandomKeys::new(records);
        group.throughput(Throughput::Bytes(records * 116));
        group.bench_function(BenchmarkId::new("to the file format", records), |bencher| {
            bencher.iter(|| write_snapshot(&mut store, |_| {}));
        });
        group.bench_function(BenchmarkId::new("20 overwrites each 64 KiB", records), |bencher| {
            bencher.iter(|| {
                write_snapshot(&mut store, |store| {
                    for _ in 0..20 {
                        apply(store, &[keys.next()], Change::Put(&VALUE));
                    }
                })
            });
        });
    }
}

fn write_snapshot(store: &mut MemoryStore, mut between: impl FnMut(&mut MemoryStore)) -> u64 {
    let header = SnapshotHeader {
        partition: PartitionId(1),
        range: HashRange::FULL,
        epoch: Epoch(1),
        sequence: store.applied(),
        timestamp: store.applied_timestamp(),
        created: WallClock(0),
        store_kind: store.kind().to_owned(),
    };
    let mut out = Vec::new();
    let mut writer = SnapshotWriter::new(&header, &mut out);
    store.snapshot_start();
    loop {
        let step =
            store.snapshot_next(64 << 10, &mut |record| writer.push(record, &mut out)).unwrap();
        out.clear();
        if step == SnapshotStep::Done {
            break;
        }
        between(store);
    }
    store.snapshot_end();
    writer.finish(&mut out).records
}

#[cfg(feature = "sled")]
fn sled(criterion: &mut Criterion) {
    use stateside_statestore::{SledEngine, SledOptions};

    let directory = tempfile::tempdir().unwrap();
    let engine = SledEngine::open(&directory.path().join("sled"), SledOptions::default()).unwrap();
    let mut store = engine.partition(PartitionId(1), Epoch(1)).unwrap();
    let records = 100_000;
    for first in (0..records).step_by(1_000) {
        let keys: Vec<[u8; 16]> = (first..first + 1_000).map(key).collect();
        apply(&mut store, &keys, Change::Put(&VALUE));
        work(&mut store);
    }
    store.cover();
    work(&mut store);
    let mut group = criterion.benchmark_group("sled");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    let mut random = RandomKeys::new(records);
    group.throughput(Throughput::Elements(TURN as u64));
    group.bench_function(BenchmarkId::new("fetch and get 32", records), |bencher| {
        bencher.iter(|| {
            let turn: [[u8; 16]; TURN] = std::array::from_fn(|_| random.next());
            store.fetch(&turn.each_ref().map(|key| key.as_slice()));
            work(&mut store);
            for key in &turn {
                assert!(matches!(store.get(key), Lookup::Found(_)));
            }
            store.forget_fetched();
        });
    });
    group.throughput(Throughput::Elements(1_000));
    group.bench_function(BenchmarkId::new("overwrite 1,000, written", records), |bencher| {
        bencher.iter(|| {
            let keys: Vec<[u8; 16]> = (0..1_000).map(|_| random.next()).collect();
            // The same key twice is one change, as it is in a batch from a client.
            let keys: Vec<[u8; 16]> =
                keys.into_iter().collect::<std::collections::BTreeSet<_>>().into_iter().collect();
            apply(&mut store, &keys, Change::Put(&VALUE));
            work(&mut store);
        });
    });
    group.throughput(Throughput::Bytes(records * 116));
    group.bench_function(BenchmarkId::new("snapshot", records), |bencher| {
        bencher.iter(|| {
            store.snapshot_start();
            let mut bytes = 0;
            while store
                .snapshot_next(1 << 20, &mut |record| bytes += record.record.value.len())
                .unwrap()
                != SnapshotStep::Done
            {
                work(&mut store);
            }
            store.snapshot_end();
            bytes
        });
    });
}

#[cfg(feature = "sled")]
fn work(store: &mut stateside_statestore::SledStore) {
    while let Some(work) = store.take_work(store.applied()) {
        store.finish_work(work()).unwrap();
    }
}

#[cfg(not(feature = "sled"))]
fn sled(_: &mut Criterion) {}

criterion_group! {
    name = stores;
    config = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    targets = get, upsert, snapshot, sled
}
criterion_main!(stores);
