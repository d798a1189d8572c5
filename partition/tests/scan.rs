//! Scans: what pages show, what ends a scan, and when an answer leaves.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::Bound;

use stateside_partition::{Effects, Input, PageEnd, Partition, Scan, Ticket};
use stateside_pipeline::{Outlet, Write};
use stateside_statestore::{MemoryStore, PageRequest, Work};
use stateside_types::{
    Ack, Change, DEFAULT_PIPELINE, Epoch, HashRange, PartitionId, PartitionSpec, Reason, Record,
    Refusal, Sequence, StoreKind, Timestamp, WallClock, WriteEntry,
};

/// What the partition told.
#[derive(Default)]
struct World {
    keys: Vec<Vec<u8>>,
    end: Option<(Sequence, Option<Vec<u8>>)>,
    answer: Option<Result<(), Refusal>>,
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
    fn record(&mut self, _: Ticket, key: &[u8], record: Option<&Record<'_>>) {
        assert!(record.is_some(), "a scan finds what it shows");
        self.keys.push(key.to_vec());
    }

    fn page_end(&mut self, _: Ticket, end: PageEnd<'_>) {
        assert_eq!(end.epoch, Epoch(4));
        self.end = Some((end.sequence, end.after.map(<[u8]>::to_vec)));
    }

    fn read_done(&mut self, _: Ticket, outcome: Result<Sequence, Refusal>) {
        assert!(self.answer.replace(outcome.map(drop)).is_none(), "answered twice");
    }

    fn value(&mut self, _: Ticket, _: &[u8]) {
        unreachable!("nothing is updated here");
    }

    fn written(&mut self, _: Ticket, outcome: Result<(Sequence, Timestamp), Refusal>) {
        outcome.unwrap();
    }

    fn run(&mut self, _: Work) {
        unreachable!("a store in memory has no work");
    }

    fn now(&self) -> WallClock {
        WallClock(1_700_000_000_000)
    }

    fn memory_available(&self) -> u64 {
        u64::MAX
    }
}

fn partition(store: MemoryStore, kind: StoreKind) -> Partition {
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
    Partition::new(spec, Box::new(store)).unwrap()
}

fn ordered() -> Partition {
    partition(MemoryStore::ordered(5), StoreKind::MemoryOrdered)
}

fn write(partition: &mut Partition, key: &[u8], change: Change<'_>) {
    let entry = WriteEntry::new(key, change);
    let input = Input::Write { ticket: Ticket(0), entries: &[entry], ack: None, request: None };
    partition.step(input, &mut World::default());
}

fn durable(partition: &mut Partition, world: &mut World) {
    partition.step(Input::LogDurable(partition.applied()), world);
}

fn scan(partition: &mut Partition, after: Option<&[u8]>, at: Option<Sequence>) -> World {
    let mut world = World::default();
    let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.into()));
    let page = PageRequest { from, to: Bound::Unbounded, records_max: 3, bytes_max: 1 << 20 };
    let scan = Scan { page, at: at.map(|sequence| (Epoch(4), sequence)) };
    partition.step(Input::Scan { ticket: Ticket(1), scan: &scan, session: None }, &mut world);
    world
}

/// A partition with the durable records a to g, and the first page of a scan.
fn begun() -> (Partition, Sequence) {
    let mut partition = ordered();
    for key in [b"d", b"b", b"a", b"g", b"c", b"f", b"e"] {
        write(&mut partition, key, Change::Put(b"1"));
    }
    durable(&mut partition, &mut World::default());
    let world = scan(&mut partition, None, None);
    assert_eq!(world.keys, [b"a", b"b", b"c"]);
    assert_eq!(world.end, Some((Sequence(7), Some(b"c".to_vec()))));
    assert_eq!(world.answer, Some(Ok(())));
    (partition, Sequence(7))
}

#[test]
fn pages_are_the_state_of_the_first() {
    let (mut partition, at) = begun();
    // Behind the scan: no concern of its.
    write(&mut partition, b"a", Change::Put(b"2"));
    durable(&mut partition, &mut World::default());
    let world = scan(&mut partition, Some(b"c"), Some(at));
    assert_eq!(world.keys, [b"d", b"e", b"f"]);
    assert_eq!(world.end, Some((at, Some(b"f".to_vec()))));
    let world = scan(&mut partition, Some(b"f"), Some(at));
    assert_eq!((world.keys, world.end), (vec![b"g".to_vec()], Some((at, None))));
    assert_eq!(world.answer, Some(Ok(())));
}

#[test]
fn a_write_ahead_of_the_scan_ends_it_and_so_does_any_removal() {
    for (key, change) in [(b"e", Change::Put(b"2")), (b"x", Change::Remove), (b"a", Change::Remove)]
    {
        let (mut partition, at) = begun();
        write(&mut partition, key, change);
        let world = scan(&mut partition, Some(b"c"), Some(at));
        let refusal = world.answer.unwrap().unwrap_err();
        assert_eq!(refusal.reason, Reason::ScanMoved, "{key:?} {change:?}");
        // Each page for itself goes on.
        let mut world = scan(&mut partition, Some(b"c"), None);
        durable(&mut partition, &mut world);
        assert_eq!((world.answer, world.keys.len()), (Some(Ok(())), 3));
        assert_eq!(world.end.unwrap().0, Sequence(8));
    }
}

#[test]
fn a_scan_of_other_content_or_of_a_lost_sequence_is_over() {
    let (mut partition, _) = begun();
    let world = scan(&mut partition, Some(b"c"), Some(Sequence(9)));
    assert_eq!(world.answer.unwrap().unwrap_err().reason, Reason::ScanMoved);
    let page = PageRequest {
        from: Bound::Unbounded,
        to: Bound::Unbounded,
        records_max: 3,
        bytes_max: 100,
    };
    let scan = Scan { page, at: Some((Epoch(3), Sequence(7))) };
    let mut world = World::default();
    partition.step(Input::Scan { ticket: Ticket(1), scan: &scan, session: None }, &mut world);
    assert_eq!(world.answer.unwrap().unwrap_err().reason, Reason::ScanMoved);
}

#[test]
fn an_answer_waits_until_what_it_shows_is_durable() {
    let (mut partition, at) = begun();
    write(&mut partition, b"b", Change::Put(b"2"));
    let mut world = scan(&mut partition, None, None);
    assert_eq!((&world.answer, world.keys.len()), (&None, 3));
    durable(&mut partition, &mut world);
    assert_eq!(world.answer, Some(Ok(())));
    assert_eq!(world.end.unwrap().0, Sequence(8));
    // What is not in the page does not hold it, and does not count.
    write(&mut partition, b"z", Change::Put(b"2"));
    let world = scan(&mut partition, Some(b"c"), Some(at));
    assert_eq!((world.answer, world.keys.len()), (Some(Ok(())), 3));
}

#[test]
fn a_store_without_order_refuses() {
    let mut partition = partition(MemoryStore::new(5), StoreKind::Memory);
    write(&mut partition, b"a", Change::Put(b"1"));
    let world = scan(&mut partition, None, None);
    assert_eq!(world.answer.unwrap().unwrap_err().reason, Reason::StoreNotOrdered);
    assert!(world.keys.is_empty() && world.end.is_none());
}
