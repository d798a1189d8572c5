//! A partition whose store is changed under it, against one whose store is not.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use stateside_partition::{Effects, Input, PageEnd, Partition, Successor, Ticket, apply};
use stateside_pipeline::{
    Outlet, Write,
    trail::{TrailWrite, next_write},
};
use stateside_statestore::{
    Lookup, MemoryStore, RequestRow, SledEngine, SledOptions, SnapshotRecord, SnapshotStep,
    StateStore, Work,
};
use stateside_types::{
    Ack, Condition, DEFAULT_PIPELINE, Epoch, ExpireAt, Expiry, HashRange, OptionValue, PartitionId,
    PartitionSpec, Reason, Record, Refusal, RequestId, Sequence, StageKind, StageSpec, StoreKind,
    Timestamp, WallClock, WriteEntry, limits::REPLACED_BYTES_MAX,
};

const KEYS: u8 = 12;

/// Value and version of a record.
type Seen = Option<(Vec<u8>, u64)>;

/// What the partition told, and the work that it handed out.
#[derive(Default)]
struct World {
    now: u64,
    records: BTreeMap<u64, Vec<Seen>>,
    reads: BTreeMap<u64, Result<Sequence, Refusal>>,
    writes: BTreeMap<u64, Result<(Sequence, Timestamp), Refusal>>,
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
    fn record(&mut self, ticket: Ticket, _: &[u8], record: Option<&Record<'_>>) {
        let record = record.map(|record| (record.value.to_vec(), record.version.0));
        self.records.entry(ticket.0).or_default().push(record);
    }

    fn value(&mut self, _: Ticket, _: &[u8]) {}

    fn page_end(&mut self, _: Ticket, _: PageEnd<'_>) {}

    fn read_done(&mut self, ticket: Ticket, outcome: Result<Sequence, Refusal>) {
        assert!(self.reads.insert(ticket.0, outcome).is_none(), "a read is answered once");
    }

    fn written(&mut self, ticket: Ticket, outcome: Result<(Sequence, Timestamp), Refusal>) {
        assert!(self.writes.insert(ticket.0, outcome).is_none(), "a write is answered once");
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

fn partition(store: Box<dyn StateStore>, kind: StoreKind, split: bool) -> Partition {
    let mode = || vec![("mode", OptionValue::Text("split".to_owned()))];
    let stages = DEFAULT_PIPELINE.iter().map(|kind| match kind {
        StageKind::Dispatcher if split => StageSpec::checked(*kind, mode()),
        kind => StageSpec::from(*kind),
    });
    let spec = PartitionSpec {
        id: PartitionId(1),
        range: HashRange::FULL,
        store: kind,
        ack: Ack::Durable,
        pipeline: stages.collect::<Vec<_>>().into(),
        first_epoch: Epoch(4),
        epoch: Epoch(4),
        base_sequence: Sequence::ZERO,
    };
    Partition::new(spec, store).unwrap()
}

/// What happens to both, and to the copy.
#[derive(Clone, Debug)]
enum Step {
    Put {
        key: u8,
        ttl: u64,
        absent: bool,
        with_id: bool,
    },
    Remove {
        key: u8,
    },
    /// One of the last requests with an id, again.
    Retry {
        back: u8,
    },
    Read {
        key: u8,
    },
    Durable,
    /// What is durable goes to the store's disk, and is not in memory any more.
    Cover,
    Time(u64),
    CopySome,
    TakeTrail,
}

fn any_step() -> impl Strategy<Value = Step> {
    let key = || 0..KEYS;
    let put = (key(), prop_oneof![Just(0), 1_u64..50], any::<bool>(), any::<bool>());
    prop_oneof![
        5 => put.prop_map(|(key, ttl, absent, with_id)| Step::Put { key, ttl, absent, with_id }),
        2 => key().prop_map(|key| Step::Remove { key }),
        2 => (0..5_u8).prop_map(|back| Step::Retry { back }),
        3 => key().prop_map(|key| Step::Read { key }),
        2 => Just(Step::Durable),
        2 => Just(Step::Cover),
        1 => (1_u64..20).prop_map(Step::Time),
        2 => Just(Step::CopySome),
        1 => Just(Step::TakeTrail),
    ]
}

/// A write with an id, so that it can come again.
#[derive(Clone)]
struct Request {
    key: u8,
    value: String,
    ttl: u64,
    absent: bool,
    number: u64,
}

struct One {
    partition: Partition,
    world: World,
}

impl One {
    fn new(split: bool) -> Self {
        let store = Box::new(MemoryStore::new(5));
        let partition = partition(store, StoreKind::Memory, split);
        Self { partition, world: World::default() }
    }

    fn step(&mut self, input: Input<'_>) {
        self.partition.step(input, &mut self.world);
    }

    fn put(&mut self, ticket: u64, put: &Request, with_id: bool) {
        let key = [b'k', put.key];
        let expiry = if put.ttl == 0 { Expiry::Never } else { Expiry::After(put.ttl) };
        let condition = if put.absent { Condition::IfAbsent } else { Condition::None };
        let entry = WriteEntry::put(&key, put.value.as_bytes()).expiring(expiry).under(condition);
        let id = RequestId { client: b"till", number: put.number, settled: 0 };
        let request = with_id.then_some(id);
        let ticket = Ticket(ticket);
        self.step(Input::Write { ticket, entries: &[entry], ack: None, request });
    }

    fn read(&mut self, ticket: u64, keys: std::ops::Range<u8>) {
        let keys: Vec<[u8; 2]> = keys.map(|key| [b'k', key]).collect();
        let keys: Vec<&[u8]> = keys.iter().map(<[u8; 2]>::as_slice).collect();
        self.step(Input::Read { ticket: Ticket(ticket), keys: &keys, session: None });
    }

    fn durable(&mut self) {
        self.step(Input::LogDurable(self.partition.applied()));
    }

    /// Runs all work that is out; as the pool would, and the core with its outcome.
    fn run_all(&mut self) {
        while let Some(work) = self.world.work.pop() {
            self.step(Input::WorkDone(work()));
        }
    }
}

/// The partition whose store changes, and the one whose store does not.
struct Pair {
    changed: One,
    twin: One,
    tickets: u64,
    requests: Vec<Request>,
}

impl Pair {
    fn new(split: bool) -> Self {
        Self { changed: One::new(split), twin: One::new(split), tickets: 0, requests: Vec::new() }
    }

    /// The same to both. Work is run at once but for `lazy`: then what needs the disk waits.
    fn step(&mut self, step: &Step, lazy: bool) {
        self.tickets += 1;
        let ticket = self.tickets;
        match step {
            Step::Put { key, ttl, absent, with_id } => {
                let number = self.requests.len() as u64 + 1;
                let (value, absent, ttl) = (format!("value {ticket}"), *absent, *ttl);
                let put = Request { key: *key, value, ttl, absent, number };
                self.both(|one| one.put(ticket, &put, *with_id));
                if *with_id {
                    self.requests.push(put);
                }
            }
            Step::Retry { back } => {
                let at = self.requests.len().checked_sub(usize::from(*back) + 1);
                if let Some(put) = at.map(|at| self.requests[at].clone()) {
                    self.both(|one| one.put(ticket, &put, true));
                }
            }
            Step::Remove { key } => {
                let (key, ticket) = ([b'k', *key], Ticket(ticket));
                let entries = [WriteEntry::remove(&key)];
                self.both(|one| {
                    one.step(Input::Write { ticket, entries: &entries, ack: None, request: None });
                });
            }
            Step::Read { key } => self.both(|one| one.read(ticket, *key..*key + 1)),
            Step::Durable => self.both(One::durable),
            Step::Cover => self.both(|one| one.partition.cover(&mut one.world)),
            Step::Time(ms) => self.both(|one| one.world.now += ms),
            Step::CopySome | Step::TakeTrail => {}
        }
        if !lazy {
            self.changed.run_all();
        }
    }

    fn both(&mut self, mut act: impl FnMut(&mut One)) {
        act(&mut self.changed);
        act(&mut self.twin);
    }

    /// A reader of all keys, and everyone before, is told the same.
    fn compare(&mut self) -> Result<(), TestCaseError> {
        self.tickets += 1;
        let ticket = self.tickets;
        self.both(|one| one.read(ticket, 0..KEYS));
        self.changed.run_all();
        let (changed, twin) = (&self.changed, &self.twin);
        prop_assert!(changed.partition.is_quiet() && !changed.partition.is_leaving());
        prop_assert_eq!(changed.partition.applied(), twin.partition.applied());
        prop_assert_eq!(changed.partition.passed(), twin.partition.passed());
        prop_assert_eq!(&changed.world.records, &twin.world.records);
        prop_assert_eq!(&changed.world.reads, &twin.world.reads);
        prop_assert_eq!(changed.world.writes.len(), twin.world.writes.len());
        prop_assert!(changed.world.writes == twin.world.writes, "the same is told to writers");
        prop_assert_eq!(changed.partition.requests(), twin.partition.requests());
        Ok(())
    }
}

/// Key, value, version, timestamp, end.
type Copied = (Vec<u8>, Vec<u8>, Sequence, Timestamp, Option<ExpireAt>);

/// A snapshot as far as it is.
#[derive(Default)]
struct Copy {
    rows: Vec<Vec<u8>>,
    records: Vec<Copied>,
    is_whole: bool,
}

impl Copy {
    fn go_on(&mut self, pair: &mut Pair) {
        let mut emit = |SnapshotRecord { key, record }: SnapshotRecord<'_>| {
            let Record { value, version, timestamp, expire_at } = record;
            self.records.push((key.to_vec(), value.to_vec(), version, timestamp, expire_at));
        };
        let One { partition, world } = &mut pair.changed;
        match partition.snapshot_next(60, &mut emit, world).unwrap() {
            SnapshotStep::Done => {
                partition.snapshot_end();
                self.is_whole = true;
            }
            SnapshotStep::More => {}
            SnapshotStep::Wait => {
                pair.both(One::durable);
                pair.changed.run_all();
            }
        }
    }

    fn load(&self, store: &mut dyn StateStore, sequence: Sequence, timestamp: Timestamp) {
        store.load_start();
        self.rows.iter().for_each(|row| store.load_request(&RequestRow::decode(row).unwrap().0));
        for (key, value, version, timestamp, expire_at) in &self.records {
            let (version, timestamp, expire_at) = (*version, *timestamp, *expire_at);
            let record = Record { value, version, timestamp, expire_at };
            assert!(store.load(&[SnapshotRecord { key, record }]), "these are few");
        }
        store.load_end(sequence, timestamp);
    }
}

/// Brings everything to the disk, as the pool does at the end of a round.
fn cover(store: &mut dyn StateStore) {
    store.cover();
    while let Some(work) = store.take_work(store.applied()) {
        store.finish_work(work()).unwrap();
    }
}

/// The writes in a piece of a trail.
fn each(bytes: &[u8], mut take: impl FnMut(&TrailWrite<'_>, &[WriteEntry<'_>])) {
    let (mut rest, mut entries) = (bytes, Vec::new());
    while let Some(write) = next_write(&mut rest, &mut entries).unwrap() {
        take(&write, &entries);
    }
}

/// Copies as the node does, with steps in between; at the end the store holds what the partition does.
fn copy(pair: &mut Pair, mut store: Box<dyn StateStore>, steps: &[Step]) -> Successor {
    pair.changed.partition.trail_start();
    let head = pair.changed.partition.snapshot_start().unwrap();
    let mut copy = Copy::default();
    pair.changed.partition.request_rows(|row| {
        let mut bytes = Vec::new();
        row.encode(&mut bytes);
        copy.rows.push(bytes);
    });
    let mut pieces = Vec::new();
    let (first, last) = steps.split_at(steps.len() / 2);
    for step in first {
        pair.step(step, false);
        match step {
            Step::CopySome if !copy.is_whole => copy.go_on(pair),
            Step::TakeTrail => pieces.extend(pair.changed.partition.trail().unwrap().take()),
            _ => {}
        }
    }
    while !copy.is_whole {
        copy.go_on(pair);
    }
    // It is published when the log is durable up to it; and a round has durable writes alone.
    if pair.changed.partition.passed() < head.sequence {
        pair.both(One::durable);
        pair.changed.run_all();
    }
    copy.load(store.as_mut(), head.sequence, head.timestamp);
    let passed = pair.changed.partition.passed();
    pieces.extend(pair.changed.partition.trail().unwrap().take());
    for piece in &pieces {
        each(&piece.bytes, |write, entries| {
            if write.sequence <= passed {
                apply(store.as_mut(), write, entries);
            }
        });
    }
    cover(store.as_mut());
    // From here on it is the last step's: the rest, whether durable or not.
    for step in last {
        pair.step(step, false);
    }
    let partition = &mut pair.changed.partition;
    pieces.extend(partition.trail().unwrap().take());
    let mut next = partition.succeed(store);
    for piece in &pieces {
        each(&piece.bytes, |write, entries| {
            if write.sequence > passed {
                assert!(partition.apply_last(&mut next, write, entries));
            }
        });
    }
    next
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Keys, values, versions, expiry, answers to retries and the next sequence are those of a partition that
    /// kept its store, from memory to order to disk, to another disk and back, in both modes of the
    /// dispatcher, with writes that are not durable yet.
    #[test]
    fn a_reader_cannot_tell_that_the_store_was_changed(
        split in any::<bool>(),
        before in prop::collection::vec(any_step(), 0..20),
        legs in prop::collection::vec(
            (prop::collection::vec(any_step(), 0..40), prop::collection::vec(0..KEYS, 0..3)), 4,
        ),
    ) {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let engines =
            folders.each_ref().map(|at| SledEngine::open(at.path(), SledOptions::default()).unwrap());
        let mut pair = Pair::new(split);
        before.iter().for_each(|step| pair.step(step, false));
        let sled = |at: usize| -> Box<dyn StateStore> {
            Box::new(engines[at].partition(PartitionId(1), Epoch(4)).unwrap())
        };
        let stores: [(StoreKind, Box<dyn StateStore>); 4] = [
            (StoreKind::MemoryOrdered, Box::new(MemoryStore::ordered(5))),
            (StoreKind::Sled, sled(0)),
            (StoreKind::Sled, sled(1)),
            (StoreKind::Memory, Box::new(MemoryStore::new(5))),
        ];
        for ((steps, reads), (kind, store)) in legs.iter().zip(stores) {
            let next = copy(&mut pair, store, steps);
            // Reads, and a write behind them, that wait for the disk of the store before are answered
            // from the other.
            for key in reads {
                pair.step(&Step::Read { key: *key }, true);
            }
            pair.step(&Step::Put { key: 3, ttl: 0, absent: true, with_id: true }, true);
            let mut trail = Vec::new();
            trail.extend(pair.changed.partition.trail().unwrap().take());
            let mut next = next;
            for piece in &trail {
                each(&piece.bytes, |write, entries| {
                    assert!(pair.changed.partition.apply_last(&mut next, write, entries));
                });
            }
            let One { partition, world } = &mut pair.changed;
            drop(partition.change_store(kind, next, world));
            prop_assert_eq!(pair.changed.partition.spec().store, kind);
            pair.changed.run_all();
            let passed = pair.changed.partition.passed();
            if passed < pair.changed.partition.applied() && !split {
                // There reads of what is not durable are held.
                pair.both(One::durable);
            }
            pair.compare()?;
            pair.both(One::durable);
            pair.compare()?;
        }
    }
}

/// In split mode the other store, in memory, would show what is not durable, and one on disk what its
/// disk had before the last rounds: each has to be told what the last writes replace.
#[test]
fn what_is_not_durable_stays_out_of_sight_through_the_change() {
    let folder = tempfile::tempdir().unwrap();
    let engine = SledEngine::open(folder.path(), SledOptions::default()).unwrap();
    let stores: [(StoreKind, Box<dyn StateStore>); 3] = [
        (StoreKind::Sled, Box::new(engine.partition(PartitionId(1), Epoch(4)).unwrap())),
        (StoreKind::MemoryOrdered, Box::new(MemoryStore::ordered(5))),
        (StoreKind::Memory, Box::new(MemoryStore::new(5))),
    ];
    let mut pair = Pair::new(true);
    let put = |key| Step::Put { key, ttl: 0, absent: false, with_id: false };
    pair.step(&put(1), false);
    for (kind, store) in stores {
        pair.step(&Step::Durable, false);
        pair.step(&Step::Cover, false);
        pair.step(&Step::Read { key: 1 }, false);
        let shown = pair.changed.world.records.last_entry().unwrap().get().clone();
        assert!(shown[0].is_some());
        let next = copy(&mut pair, store, &[put(2), Step::Durable, put(1), put(1)]);
        let One { partition, world } = &mut pair.changed;
        drop(partition.change_store(kind, next, world));
        pair.step(&Step::Read { key: 1 }, false);
        assert_eq!(*pair.changed.world.records.last_entry().unwrap().get(), shown, "{kind}");
        pair.compare().unwrap();
    }
}

/// Bug's story: what the last writes replace was on the disk of the store before, and is in memory in the
/// other one: as much as there is, had it no bound.
#[test]
fn the_last_writes_wait_where_what_they_replace_would_be_too_much() {
    let folder = tempfile::tempdir().unwrap();
    let engine = SledEngine::open(folder.path(), SledOptions::default()).unwrap();
    let sled = Box::new(engine.partition(PartitionId(1), Epoch(4)).unwrap());
    let mut one =
        One { partition: partition(sled, StoreKind::Sled, true), world: World::default() };
    let mut ordered = MemoryStore::ordered(5);
    let large = "x".repeat(REPLACED_BYTES_MAX / 4);
    let put = |key, value: &str| {
        let value = value.to_owned();
        Request { key, value, ttl: 0, absent: false, number: 0 }
    };
    for key in 1..=6 {
        one.partition.trail_start();
        one.put(key.into(), &put(key, &large), false);
        one.durable();
        one.partition.cover(&mut one.world);
        one.run_all();
        for piece in one.partition.trail().unwrap().take() {
            each(&piece.bytes, |write, entries| apply(&mut ordered, write, entries));
        }
    }
    for key in 1..=6 {
        one.put(10 + u64::from(key), &put(key, "small"), false);
    }
    assert_eq!(one.partition.window_writes(), 6, "on the disk it is nothing to keep");
    let mut next = one.partition.succeed(Box::new(ordered));
    let pieces: Vec<_> = one.partition.trail().unwrap().take().collect();
    let mut waited = Vec::new();
    for piece in &pieces {
        each(&piece.bytes, |write, entries| {
            if !one.partition.apply_last(&mut next, write, entries) {
                waited.push(write.sequence.0);
                one.step(Input::LogDurable(Sequence(write.sequence.0 - 1)));
                assert!(one.partition.apply_last(&mut next, write, entries));
            }
        });
    }
    assert!(!waited.is_empty(), "all six at once are more than may be kept");
    let One { partition, world } = &mut one;
    partition.change_store(StoreKind::MemoryOrdered, next, world);
    one.run_all();
    one.read(99, 6..7);
    assert!(one.world.reads[&99].is_ok());
    assert_eq!(one.world.records[&99][0].as_ref().unwrap().0.len(), large.len());
}

#[test]
fn writers_that_outrun_the_other_store_are_told_to_wait_and_readers_are_not() {
    let mut one = One::new(false);
    one.partition.trail_start();
    one.partition.trail().unwrap().allow(0);
    let put = Request { key: 1, value: "v".to_owned(), ttl: 0, absent: false, number: 0 };
    for (ticket, refused) in [(1, false), (2, true)] {
        one.put(ticket, &put, false);
        one.durable();
        let outcome = &one.world.writes[&ticket];
        assert_eq!(outcome.as_ref().is_err_and(|r| r.reason == Reason::Overloaded), refused);
    }
    one.read(3, 1..2);
    assert!(one.world.records[&3][0].is_some());
    assert_eq!(one.partition.trail().unwrap().take().count(), 1);
    one.put(4, &put, false);
    one.durable();
    assert!(one.world.writes[&4].is_ok());
}

#[test]
#[should_panic(expected = "the stores hold the same writes")]
fn a_store_that_lags_behind_is_not_taken() {
    let mut one = One::new(false);
    let put = Request { key: 1, value: "v".to_owned(), ttl: 0, absent: false, number: 0 };
    one.put(1, &put, false);
    let other = MemoryStore::ordered(5);
    assert_eq!(other.get(b"k\x01"), Lookup::Absent);
    let next = one.partition.succeed(Box::new(other));
    one.partition.change_store(StoreKind::MemoryOrdered, next, &mut one.world);
}
