//! What stages before the clock cost: a write through 0, 3 and 8 of them beside each other, and
//! through each kind alone. 16 B keys, values of 100 B that are a JSON object, `ack = memory`, the
//! memory store, and a log that takes everything.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use stateside_partition::{Effects, Input, PageEnd, Partition, Ticket};
use stateside_pipeline::{Outlet, Write, read_stage};
use stateside_statestore::{MemoryStore, Work};
use stateside_types::{
    Ack, Epoch, HashRange, OptionValue, PartitionId, PartitionSpec, PipelineSpec, Record, Refusal,
    Sequence, StageSpec, StoreKind, Timestamp, WallClock, WriteEntry,
};

const RECORDS: u64 = 100_000;
const VALUE: &[u8; 100] = br#"{"name":"Ada Lovelace","card":{"number":"4111111111111111","cvc":"123"},"amount":12.50,"open":true }"#;

/// Takes everything; counts the answers.
struct World {
    written: u64,
    appended: Sequence,
    now: u64,
}

impl Outlet for World {
    fn log_admit(&mut self, _: &Write<'_>) -> Result<(), Refusal> {
        Ok(())
    }

    fn node(&self) -> &str {
        "vm-1"
    }

    fn log_append(&mut self, write: &Write<'_>) {
        black_box(write.entries);
        self.appended = write.sequence;
    }
}

impl Effects for World {
    fn record(&mut self, _: Ticket, _: &[u8], _: Option<&Record<'_>>) {}

    fn page_end(&mut self, _: Ticket, _: PageEnd<'_>) {}

    fn value(&mut self, _: Ticket, _: &[u8]) {}

    fn read_done(&mut self, _: Ticket, _: Result<Sequence, Refusal>) {}

    fn written(&mut self, _: Ticket, outcome: Result<(Sequence, Timestamp), Refusal>) {
        outcome.expect("every write passes");
        self.written += 1;
    }

    fn run(&mut self, _: Work) {
        unreachable!("the memory store has no work");
    }

    fn now(&self) -> WallClock {
        WallClock(self.now)
    }

    fn memory_available(&self) -> u64 {
        u64::MAX
    }
}

fn texts(texts: &[&str]) -> OptionValue {
    OptionValue::Texts(texts.iter().map(|text| (*text).to_owned()).collect())
}

fn stage(name: &str, options: &[(&str, OptionValue)]) -> StageSpec {
    let options = options.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    read_stage(name, options.collect()).expect("the options are right")
}

/// Each kind of stage, and what it is called in the report. None refuses what is written here.
fn stages() -> Vec<(&'static str, StageSpec)> {
    let rate = OptionValue::Integer(1_000_000_000);
    let text = |text: &str| OptionValue::Text(text.to_owned());
    vec![
        (
            "filter, 3 prefixes denied",
            stage("filter", &[("deny", texts(&["tmp/", "test/", "x/"]))]),
        ),
        ("filter, value size", stage("filter", &[("value_bytes_max", OptionValue::Integer(4096))])),
        ("filter, rate", stage("filter", &[("rate_per_s", rate.clone())])),
        (
            "sanitizer of other keys",
            stage(
                "sanitizer",
                &[("prefix", texts(&["order/", "user/"])), ("drop", texts(&["/x"]))],
            ),
        ),
        (
            "enricher of other keys",
            stage("enricher", &[("prefix", texts(&["order/", "user/"])), ("node", text("node"))]),
        ),
        (
            "filter, 8 prefixes denied",
            stage("filter", &[("deny", texts(&["a/", "b/", "c/", "d/", "e/", "f/", "g/", "h/"]))]),
        ),
        (
            "filter, rate of other keys",
            stage("filter", &[("prefix", texts(&["t/"])), ("rate_per_s", rate.clone())]),
        ),
        (
            "filter, size of other keys",
            stage(
                "filter",
                &[("prefix", texts(&["u/"])), ("value_bytes_max", OptionValue::Integer(9))],
            ),
        ),
        (
            "filter, rate by beginning",
            stage("filter", &[("rate_per_s", rate), ("rate_by", text("-"))]),
        ),
        ("sanitizer, JSON, nothing found", stage("sanitizer", &[("drop", texts(&["/card/pin"]))])),
        (
            "sanitizer, JSON, one dropped, one masked",
            stage(
                "sanitizer",
                &[("drop", texts(&["/card/cvc"])), ("mask", texts(&["/card/number"]))],
            ),
        ),
        (
            "enricher, JSON, time and node",
            stage("enricher", &[("timestamp", text("at")), ("node", text("by"))]),
        ),
    ]
}

fn partition(front: &[StageSpec]) -> Partition {
    let behind = PipelineSpec::default();
    let pipeline: Vec<_> = front.iter().chain(behind.iter()).cloned().collect();
    let spec = PartitionSpec {
        id: PartitionId(1),
        range: HashRange::FULL,
        store: StoreKind::Memory,
        ack: Ack::Memory,
        pipeline: pipeline.into(),
        first_epoch: Epoch(1),
        epoch: Epoch(1),
        base_sequence: Sequence::ZERO,
    };
    Partition::new(spec, Box::new(MemoryStore::new(42))).expect("a pipeline")
}

fn write(partition: &mut Partition, world: &mut World, number: u64) {
    let mut key = *b"key-000000000000";
    key[4..12]
        .copy_from_slice(&(number % RECORDS).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    let entry = WriteEntry::put(&key, VALUE);
    partition.step(
        Input::Write { ticket: Ticket(1), entries: &[entry], ack: None, request: None },
        world,
    );
    if number.is_multiple_of(32) {
        partition.step(Input::LogDurable(world.appended), world);
    }
}

fn measure(criterion: &mut Criterion) {
    let kinds = stages();
    let specs: Vec<StageSpec> = kinds.iter().map(|(_, spec)| spec.clone()).collect();
    let mut rows: Vec<(String, Vec<StageSpec>)> = [0, 3, 8]
        .iter()
        .map(|count| (format!("{count} stages"), specs[..*count].to_vec()))
        .collect();
    rows.extend(kinds.into_iter().map(|(name, spec)| (name.to_owned(), vec![spec])));
    let mut group = criterion.benchmark_group("stages");
    group.throughput(Throughput::Elements(1));
    for (name, front) in rows {
        let mut partition = partition(&front);
        let mut world = World { written: 0, appended: Sequence::ZERO, now: 1_700_000_000_000 };
        let mut number = 0;
        for _ in 0..RECORDS {
            number += 1;
            write(&mut partition, &mut world, number);
        }
        group.bench_function(&name, |bencher| {
            bencher.iter(|| {
                number += 1;
                // A thousand writes a millisecond.
                world.now += u64::from(number.is_multiple_of(1_000));
                write(&mut partition, &mut world, number);
            });
        });
        assert_eq!(world.written, number);
    }
    group.finish();
}

criterion_group!(benches, measure);
criterion_main!(benches);
