//! What one step of a partition costs: a read, a write acknowledged from memory, a write held until
//! it is durable. Default stages, 100 K records of 16 B keys and 100 B values in the memory store, a
//! real log writer whose groups go nowhere.
//!
//! A turn of the core brings 1 or 32 requests; the log is written once a turn, so the second shows
//! what a group shares.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::{hint::black_box, time::Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use stateside_partition::{Effects, Input, PageEnd, Partition, Ticket};
use stateside_pipeline::{
    Outlet, Write,
    log::{
        Generation, GroupNumber, LogWriter, RecordHead, Reservation, Retention, WriterLimits,
        record_bytes,
    },
};
use stateside_statestore::{MemoryStore, Work};
use stateside_types::{
    Ack, DEFAULT_PIPELINE, Epoch, HashRange, PartitionId, PartitionSpec, Record, Refusal, Sequence,
    StoreKind, Timestamp, WallClock, WriteEntry,
};

const RECORDS: u64 = 100_000;
const SEGMENT_BYTES: u64 = 1 << 30;
const VALUE: [u8; 100] = [7; 100];

fn key(number: u64) -> [u8; 16] {
    let mut key = *b"key-000000000000";
    key[4..12].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    key
}

/// Counts the answers, keeps the log going.
struct World {
    writer: LogWriter,
    generation: Generation,
    reservation: Option<Reservation>,
    answered: u64,
    value_bytes: u64,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let writer = LogWriter::new(WriterLimits::default(), GroupNumber(1), Retention::new());
        Self {
            writer,
            generation: Generation(0),
            reservation: None,
            answered: 0,
            value_bytes: 0,
            now: Instant::now(),
        }
    }

    /// The next group, if one is due: said to be on disk at once. Up to where that is.
    fn write_log(&mut self) -> Option<Sequence> {
        while self.writer.segments_wanted() > 0 {
            self.generation = self.generation.next();
            self.writer.add_segment(self.generation, SEGMENT_BYTES);
        }
        let write = self.writer.next_write(self.now)?;
        let bytes = black_box(write.bytes()).len();
        let durable = self.writer.written(write, Ok::<_, String>(bytes)).expect("memory");
        durable.first().map(|durable| durable.sequence)
    }
}

impl Outlet for World {
    fn node(&self) -> &str {
        "vm-1"
    }

    fn log_admit(&mut self, write: &Write<'_>) -> Result<(), Refusal> {
        self.reservation = Some(self.writer.reserve(record_bytes(write.entries, write.request))?);
        Ok(())
    }

    fn log_append(&mut self, write: &Write<'_>) {
        let head = RecordHead {
            partition: write.partition,
            epoch: write.epoch,
            sequence: write.sequence,
            timestamp: write.timestamp,
        };
        let reservation = self.reservation.take().expect("admitted");
        let Write { request, entries, ack, .. } = *write;
        self.writer.append_reserved(reservation, head, request, entries, ack, self.now);
    }
}

impl Effects for World {
    fn record(&mut self, _: Ticket, _: &[u8], record: Option<&Record<'_>>) {
        let record = record.expect("every key has a record");
        self.value_bytes += black_box(record.value).len() as u64;
    }

    fn page_end(&mut self, _: Ticket, _: PageEnd<'_>) {
        unreachable!("nothing is scanned here");
    }

    fn read_done(&mut self, _: Ticket, outcome: Result<Sequence, Refusal>) {
        outcome.expect("a read is never refused here");
        self.answered += 1;
    }

    fn value(&mut self, _: Ticket, _: &[u8]) {}

    fn written(&mut self, _: Ticket, outcome: Result<(Sequence, Timestamp), Refusal>) {
        outcome.expect("a write is never refused here");
        self.answered += 1;
    }

    fn run(&mut self, _: Work) {
        unreachable!("the memory store has no work");
    }

    fn now(&self) -> WallClock {
        WallClock(1_700_000_000_000)
    }

    fn memory_available(&self) -> u64 {
        u64::MAX
    }
}

fn partition(world: &mut World) -> Partition {
    let spec = PartitionSpec {
        id: PartitionId(1),
        range: HashRange::FULL,
        store: StoreKind::Memory,
        ack: Ack::Memory,
        pipeline: DEFAULT_PIPELINE.into(),
        first_epoch: Epoch(1),
        epoch: Epoch(1),
        base_sequence: Sequence::ZERO,
    };
    world.writer.adopt(spec.id, spec.first_epoch, Sequence::ZERO);
    let mut partition =
        Partition::new(spec, Box::new(MemoryStore::new(42))).expect("the default pipeline");
    world.write_log();
    for number in 0..RECORDS {
        put(&mut partition, world, &key(number), Ack::Durable);
        settle(&mut partition, world);
    }
    partition
}

fn put(partition: &mut Partition, world: &mut World, key: &[u8], ack: Ack) {
    let entry = WriteEntry::put(key, &VALUE);
    let input =
        Input::Write { ticket: Ticket(1), entries: &[entry], ack: Some(ack), request: None };
    partition.step(input, world);
}

/// The end of a turn. What `memory` writes left behind may fill a group before this turn's.
fn settle(partition: &mut Partition, world: &mut World) {
    while let Some(durable) = world.write_log() {
        partition.step(Input::LogDurable(durable), world);
    }
}

fn step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("partition step");
    let mut world = World::new();
    let mut partition = partition(&mut world);
    let mut state = 1_u64;
    let mut next_key = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        key((state >> 33) % RECORDS)
    };
    for per_turn in [1_u64, 32] {
        group.throughput(Throughput::Elements(per_turn));
        for (name, ack) in [
            ("Get", None),
            ("Upsert, ack = memory", Some(Ack::Memory)),
            ("Upsert, ack = durable", Some(Ack::Durable)),
        ] {
            group.bench_function(BenchmarkId::new(name, per_turn), |bencher| {
                bencher.iter(|| {
                    let answered = world.answered;
                    for _ in 0..per_turn {
                        let key = next_key();
                        match ack {
                            Some(ack) => put(&mut partition, &mut world, &key, ack),
                            None => {
                                let input =
                                    Input::Read { ticket: Ticket(1), keys: &[&key], session: None };
                                partition.step(input, &mut world);
                            }
                        }
                    }
                    settle(&mut partition, &mut world);
                    assert_eq!(world.answered - answered, per_turn);
                });
            });
        }
        // What `memory` left unwritten is not the next turn's.
        world.writer.hurry();
        settle(&mut partition, &mut world);
    }
    assert!(world.value_bytes > 0);
    group.finish();
}

criterion_group!(benches, step);
criterion_main!(benches);
