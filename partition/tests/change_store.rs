//! A partition whose store is changed under it, against one whose store is not.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use stateside_partition::{Effects, Input, PageEnd, Partition, Ticket};
use stateside_pipeline::{Outlet, Write, trail::next_write};
use stateside_statestore::{
    Lookup, MemoryStore, SledEngine, SledOptions, SnapshotRecord, SnapshotStep, StateStore, Work,
};
use stateside_types::{
    Ack, DEFAULT_PIPELINE, Epoch, Expiry, HashRange, PartitionId, PartitionSpec, Reason, Record,
    Refusal, Sequence, StoreKind, Timestamp, WallClock, WriteEntry,
};

const KEYS: u8 = 12;

/// Value and version of a record.
type Seen = (Vec<u8>, u64);

/// What the partition told, and the work that it handed out.
#[derive(Default)]
struct World {
    now: u64,
    records: Vec<(Vec<u8>, Option<Seen>)>,
    reads: Vec<Result<(), Refusal>>,
    writes: Vec<Result<(Sequence, Timestamp), Refusal>>,
    work: Vec<Work>,
}

impl Outlet for World {
    fn log_admit(&mut self, _: &Write<'_>) -> Result<(), Refusal> {
        Ok(())
    }

    fn log_append(&mut self, _: &Write<'_>) {}

    fn node(&self) -> &str {
        "n"
    }
}

impl Effects for World {
    fn record(&mut self, _: Ticket, key: &[u8], record: Option<Record<'_>>) {
        let record = record.map(|record| (record.value.to_vec(), record.version.0));
        self.records.push((key.to_vec(), record));
    }

    fn value(&mut self, _: Ticket, _: &[u8]) {}

    fn page_end(&mut self, _: Ticket, _: PageEnd<'_>) {}

    fn read_done(&mut self, _: Ticket, outcome: Result<(), Refusal>) {
        self.reads.push(outcome);
    }

    fn written(&mut self, _: Ticket, outcome: Result<(Sequence, Timestamp), Refusal>) {
        self.writes.push(outcome);
    }

    fn run(&mut self, work: Work) {
        self.work.push(work);
    }

    fn now(&self) -> WallClock {
        WallClock(1_700_000_000_000 + self.now)
    }

    fn memory_available(&self) -> u64 {
        u64::MAX
    }
}

fn partition(store: Box<dyn StateStore>, kind: StoreKind) -> Partition {
    let spec = PartitionSpec {
        id: PartitionId(1),
        range: HashRange::FULL,
        store: kind,
        ack: Ack::Durable,
        pipeline: DEFAULT_PIPELINE.into(),
        first_epoch: Epoch(4),
        epoch: Epoch(4),
        base_sequence: Sequence::ZERO,
    };
    Partition::new(spec, store).unwrap()
}

/// Runs all work that is out; as the pool would, and the core with its outcome.
fn run_all(partition: &mut Partition, world: &mut World) {
    while let Some(work) = world.work.pop() {
        partition.step(Input::WorkDone(work()), world);
    }
}

/// What happens between two steps of a copy.
#[derive(Clone, Debug)]
enum Step {
    Put { key: u8, ttl: u64 },
    Remove { key: u8 },
    Durable,
    Time(u64),
    CopySome,
    TakeTrail,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..KEYS, prop_oneof![Just(0), 1_u64..50]).prop_map(|(key, ttl)| Step::Put { key, ttl }),
        2 => (0..KEYS).prop_map(|key| Step::Remove { key }),
        1 => Just(Step::Durable),
        1 => (1_u64..20).prop_map(Step::Time),
        2 => Just(Step::CopySome),
        1 => Just(Step::TakeTrail),
    ]
}

fn write(partition: &mut Partition, world: &mut World, step: &Step, number: usize) {
    let value = format!("value {number}");
    let key = |key: &u8| [b'k', *key];
    match step {
        Step::Put { key: name, ttl } => {
            let expiry = if *ttl == 0 { Expiry::Never } else { Expiry::After(*ttl) };
            let key = key(name);
            let entries = [WriteEntry::put(&key, value.as_bytes()).expiring(expiry)];
            partition.step(
                Input::Write { ticket: Ticket(0), entries: &entries, ack: None, request: None },
                world,
            );
        }
        Step::Remove { key: name } => {
            let key = key(name);
            let entries = [WriteEntry::remove(&key)];
            partition.step(
                Input::Write { ticket: Ticket(0), entries: &entries, ack: None, request: None },
                world,
            );
        }
        Step::Durable => partition.step(Input::LogDurable(partition.applied()), world),
        Step::Time(ms) => world.now += ms,
        Step::CopySome | Step::TakeTrail => {}
    }
}

/// Every key as a reader sees it.
fn read_all(partition: &mut Partition, world: &mut World) -> Vec<Option<Seen>> {
    partition.step(Input::LogDurable(partition.applied()), world);
    world.records.clear();
    world.reads.clear();
    let keys: Vec<[u8; 2]> = (0..KEYS).map(|key| [b'k', key]).collect();
    let keys: Vec<&[u8]> = keys.iter().map(<[u8; 2]>::as_slice).collect();
    partition.step(Input::Read { ticket: Ticket(0), keys: &keys }, world);
    run_all(partition, world);
    assert_eq!(world.reads, [Ok(())]);
    world.records.drain(..).map(|(_, record)| record).collect()
}

/// Copies as the node does, with steps in between; returns the pieces of the trail that are left.
fn copy(
    partition: &mut Partition,
    world: &mut World,
    other: &mut dyn StateStore,
    steps: &[Step],
    numbers: &mut usize,
) {
    partition.trail_start();
    let head = partition.snapshot_start().unwrap();
    let mut snapshot = Vec::new();
    let mut pieces = Vec::new();
    let mut is_whole = false;
    let mut copy_some = |partition: &mut Partition, world: &mut World| {
        if is_whole {
            return true;
        }
        let mut emit = |SnapshotRecord { key, record }: SnapshotRecord<'_>| {
            let Record { value, version, timestamp, expire_at } = record;
            snapshot.push((key.to_vec(), value.to_vec(), version, timestamp, expire_at));
        };
        match partition.snapshot_next(60, &mut emit, world).unwrap() {
            SnapshotStep::Done => {
                partition.snapshot_end();
                is_whole = true;
            }
            SnapshotStep::More => {}
            SnapshotStep::Wait => {
                partition.step(Input::LogDurable(partition.applied()), world);
                run_all(partition, world);
            }
        }
        is_whole
    };
    for step in steps {
        *numbers += 1;
        write(partition, world, step, *numbers);
        match step {
            Step::CopySome => drop(copy_some(partition, world)),
            Step::TakeTrail => pieces.extend(partition.trail().unwrap().take()),
            _ => {}
        }
    }
    while !copy_some(partition, world) {}
    other.load_start();
    for (key, value, version, timestamp, expire_at) in &snapshot {
        let record =
            Record { value, version: *version, timestamp: *timestamp, expire_at: *expire_at };
        if !other.load(&[SnapshotRecord { key, record }]) {
            let work = other.take_work(Sequence(u64::MAX)).unwrap();
            other.finish_work(work()).unwrap();
        }
    }
    other.load_end(head.sequence, head.timestamp);
    while let Some(work) = other.take_work(head.sequence) {
        other.finish_work(work()).unwrap();
    }
    pieces.extend(partition.trail().unwrap().take());
    for piece in pieces {
        let (mut rest, mut entries) = (piece.bytes.as_slice(), Vec::new());
        while let Some(write) = next_write(&mut rest, &mut entries).unwrap() {
            other.apply(write.sequence, write.timestamp, &entries);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Keys, values, versions, expiry and the next sequence are those of a partition that kept its store,
    /// from memory to order to disk and back.
    #[test]
    fn a_reader_cannot_tell_that_the_store_was_changed(
        before in prop::collection::vec(any_step(), 0..20),
        legs in prop::collection::vec(prop::collection::vec(any_step(), 0..30), 3),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let engine = SledEngine::open(folder.path(), SledOptions::default()).unwrap();
        let (mut world, mut twin_world) = (World::default(), World::default());
        let mut changed = partition(Box::new(MemoryStore::new(5)), StoreKind::Memory);
        let mut twin = partition(Box::new(MemoryStore::new(5)), StoreKind::Memory);
        let mut number = 0;
        for step in &before {
            number += 1;
            write(&mut changed, &mut world, step, number);
            write(&mut twin, &mut twin_world, step, number);
        }
        let kinds = [StoreKind::MemoryOrdered, StoreKind::Sled, StoreKind::Memory];
        for (steps, kind) in legs.iter().zip(kinds) {
            let mut other: Box<dyn StateStore> = match kind {
                StoreKind::Sled => Box::new(engine.partition(PartitionId(1), Epoch(4)).unwrap()),
                StoreKind::MemoryOrdered => Box::new(MemoryStore::ordered(5)),
                _ => Box::new(MemoryStore::new(5)),
            };
            let start = number;
            copy(&mut changed, &mut world, other.as_mut(), steps, &mut number);
            for (step, number) in steps.iter().zip(start + 1..) {
                write(&mut twin, &mut twin_world, step, number);
            }
            // A read that waits for the disk of the store before is answered from the other.
            world.records.clear();
            world.reads.clear();
            changed.step(Input::LogDurable(changed.applied()), &mut world);
            changed.step(Input::Read { ticket: Ticket(9), keys: &[b"k\x03"] }, &mut world);
            let was_answered = world.reads.len();
            let old = changed.change_store(kind, other, &mut world);
            if kind == StoreKind::Memory {
                prop_assert_eq!(world.reads.len(), 1, "answered before: {}", was_answered);
            }
            run_all(&mut changed, &mut world);
            prop_assert_eq!(world.reads.clone(), vec![Ok(())]);
            prop_assert!(!changed.is_leaving() && changed.is_quiet());
            drop(old);
            twin_world.now = world.now;
            prop_assert_eq!(changed.applied(), twin.applied());
            prop_assert_eq!(
                read_all(&mut changed, &mut world),
                read_all(&mut twin, &mut twin_world)
            );
            prop_assert_eq!(changed.spec().store, kind);
        }
        prop_assert_eq!(&world.writes.len(), &twin_world.writes.len());
        prop_assert!(world.writes == twin_world.writes, "the same versions and times were told");
    }
}

#[test]
fn writers_that_outrun_the_other_store_are_told_to_wait_and_readers_are_not() {
    let mut world = World::default();
    let mut partition = partition(Box::new(MemoryStore::new(5)), StoreKind::Memory);
    partition.trail_start();
    partition.trail().unwrap().allow(0);
    for (number, refused) in [(1, false), (2, true)] {
        write(&mut partition, &mut world, &Step::Put { key: 1, ttl: 0 }, number);
        partition.step(Input::LogDurable(partition.applied()), &mut world);
        let last = world.writes.last().unwrap();
        assert_eq!(last.as_ref().is_err_and(|r| r.reason == Reason::Overloaded), refused);
    }
    assert!(read_all(&mut partition, &mut world)[1].is_some());
    assert_eq!(partition.trail().unwrap().take().count(), 1);
    write(&mut partition, &mut world, &Step::Put { key: 1, ttl: 0 }, 3);
    partition.step(Input::LogDurable(partition.applied()), &mut world);
    assert!(world.writes.last().unwrap().is_ok());
}

#[test]
#[should_panic(expected = "the stores hold the same writes")]
fn a_store_that_lags_behind_is_not_taken() {
    let mut world = World::default();
    let mut partition = partition(Box::new(MemoryStore::new(5)), StoreKind::Memory);
    write(&mut partition, &mut world, &Step::Put { key: 1, ttl: 0 }, 1);
    let other = MemoryStore::ordered(5);
    assert_eq!(other.get(b"k\x01"), Lookup::Absent);
    partition.change_store(StoreKind::MemoryOrdered, Box::new(other), &mut world);
}
