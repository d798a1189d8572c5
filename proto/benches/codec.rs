//! What the data plane's codec costs: requests decoded to borrowed entries, answers encoded. 16 B
//! keys, 100 B values; prost's owning types beside it, the alternative that was turned down.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use prost::Message;
use stateside_proto::{
    codec,
    v1::{Ack, GetRequest, UpsertEntry, UpsertRequest},
};
use stateside_types::{Record, Sequence, Timestamp};

const BATCHES: [usize; 2] = [1, 1_000];
const VALUE: [u8; 100] = [7; 100];
const VERSION: Sequence = Sequence(1_000_000);
const TIMESTAMP: Timestamp = Timestamp(1_700_000_000_000 << 16);

fn key(number: usize) -> Vec<u8> {
    format!("key-{number:012}").into_bytes()
}

fn upsert(entries: usize) -> Vec<u8> {
    let entry =
        |number| UpsertEntry { key: key(number), value: VALUE.to_vec(), ..Default::default() };
    UpsertRequest {
        entries: (0..entries).map(entry).collect(),
        ack: Ack::Memory.into(),
        ..Default::default()
    }
    .encode_to_vec()
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    let message = GetRequest { keys: vec![key(1)], ..Default::default() }.encode_to_vec();
    let mut keys = Vec::new();
    group.throughput(Throughput::Elements(1));
    group.bench_function("Get, 1 key", |bencher| {
        bencher.iter(|| {
            codec::decode_get(black_box(&message), &mut keys).expect("valid");
            assert_eq!(keys.len(), 1);
        });
    });
    for count in BATCHES {
        let message = upsert(count);
        let mut entries = Vec::new();
        group.throughput(Throughput::Bytes(message.len() as u64));
        group.bench_function(BenchmarkId::new("Upsert", count), |bencher| {
            bencher.iter(|| {
                codec::decode_upsert(black_box(&message), &mut entries).expect("valid");
                assert_eq!(entries.len(), count);
            });
        });
        group.bench_function(BenchmarkId::new("Upsert, by prost", count), |bencher| {
            bencher.iter(|| UpsertRequest::decode(black_box(message.as_slice())).expect("valid"));
        });
    }
    group.finish();
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    let mut out = Vec::new();
    for count in BATCHES {
        let keys: Vec<Vec<u8>> = (0..count).map(key).collect();
        let (version, timestamp) = (VERSION, TIMESTAMP);
        let record = Record { value: &VALUE, version, timestamp, expire_at: None };
        group.throughput(Throughput::Bytes((count * (16 + VALUE.len())) as u64));
        group.bench_function(BenchmarkId::new("records of a Get", count), |bencher| {
            bencher.iter(|| {
                out.clear();
                for key in black_box(&keys) {
                    codec::encode_record(&mut out, key, Some(&record));
                }
                black_box(&out);
            });
        });
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new("results of an Upsert", count), |bencher| {
            bencher.iter(|| {
                out.clear();
                codec::encode_write_results(&mut out, black_box(count), VERSION, TIMESTAMP);
                black_box(&out);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode, encode);
criterion_main!(benches);
