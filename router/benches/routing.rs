//! What placing a request costs: key to partition, for one key and for a batch of a thousand, in
//! tables of 8 and 1,000 partitions; and the check for duplicate keys, which a batch pays too.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use stateside_router::{BatchPlan, Placement, Route, RoutingTable};
use stateside_types::{CoreId, Epoch, HashRange, PartitionId};

const BATCH: usize = 1_000;

fn table(partitions: u32) -> RoutingTable {
    let routes = HashRange::split_evenly(partitions).into_iter().enumerate().map(|(at, range)| {
        Route { id: PartitionId(at as u32), range, epoch: Epoch(1), core: CoreId(0) }
    });
    RoutingTable::new(1, routes.collect()).expect("an even split is disjoint")
}

fn keys() -> Vec<[u8; 16]> {
    (0..BATCH as u64)
        .map(|number| {
            let mut key = *b"key-000000000000";
            key[4..12].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
            key
        })
        .collect()
}

fn routing(criterion: &mut Criterion) {
    let keys = keys();
    let mut plan = BatchPlan::new(42);
    let mut group = criterion.benchmark_group("routing");
    for partitions in [8, 1_000] {
        let table = table(partitions);
        let mut at = 0;
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("1 key", partitions), |bencher| {
            bencher.iter(|| {
                // Another key each time, or the branches would know the way.
                at = (at + 1) % BATCH;
                let key = [black_box(&keys[at]).as_slice()];
                let placed = plan.place(&table, key.into_iter(), None);
                assert!(matches!(placed, Placement::One(route) if route < partitions));
            });
        });
        group.throughput(Throughput::Elements(BATCH as u64));
        group.bench_function(BenchmarkId::new("1,000 keys", partitions), |bencher| {
            bencher.iter(|| {
                let keys = black_box(&keys).iter().map(|key| key.as_slice());
                assert_eq!(plan.place(&table, keys, None), Placement::Several);
                black_box(plan.routes());
            });
        });
    }
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("duplicates among 1,000 keys", |bencher| {
        bencher.iter(|| plan.check_duplicates(BATCH, |at| black_box(&keys[at])).expect("none"));
    });
    group.finish();
}

criterion_group!(benches, routing);
criterion_main!(benches);
