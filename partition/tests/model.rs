//! A partition against a model: random batches with conditions, reads, log progress, blocking
//! store work and crashes. After every crash the partition goes on from some point between what
//! was durable and what was appended, as a disk may choose.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use stateside_partition::{Effects, Input, Partition, Ticket};
use stateside_pipeline::{Outlet, Write};
use stateside_statestore::{
    Lookup, SnapshotRecord, SnapshotStep, StateStore, StoreError, StoreStats, Work, WorkDone,
};
use stateside_types::{
    Ack, Change, Condition, DEFAULT_PIPELINE, Epoch, HashRange, PartitionId, PartitionSpec,
    PartitionState, Reason, Record, Refusal, Sequence, StoreKind, Timestamp, WallClock, WriteEntry,
};

type Content = BTreeMap<Vec<u8>, (Vec<u8>, Sequence, Timestamp)>;

/// A store with everything in a map. With `cold`, lookups are `Unknown` until fetched by work,
/// as in a store on disk, except for what was written since.
struct MapStore {
    content: Content,
    applied: Sequence,
    timestamp: Timestamp,
    cold: bool,
    known: Vec<Vec<u8>>,
    wanted: Vec<Vec<u8>>,
    out: bool,
}

impl StateStore for MapStore {
    fn kind(&self) -> &'static str {
        "map"
    }

    fn get(&self, key: &[u8]) -> Lookup<'_> {
        if self.cold && !self.known.iter().any(|known| known == key) {
            return Lookup::Unknown;
        }
        match self.content.get(key) {
            None => Lookup::Absent,
            Some((value, version, timestamp)) => {
                Lookup::Found(Record { value, version: *version, timestamp: *timestamp })
            }
        }
    }

    fn apply(&mut self, sequence: Sequence, timestamp: Timestamp, entries: &[WriteEntry<'_>]) {
        assert_eq!(sequence, self.applied.next(), "sequences have no gaps");
        assert!(timestamp > self.timestamp, "timestamps rise");
        for entry in entries {
            match entry.change {
                Change::Put(value) => {
                    self.content.insert(entry.key.to_vec(), (value.to_vec(), sequence, timestamp));
                }
                Change::Remove => {
                    self.content.remove(entry.key);
                }
            }
        }
        (self.applied, self.timestamp) = (sequence, timestamp);
    }

    fn applied(&self) -> Sequence {
        self.applied
    }

    fn applied_timestamp(&self) -> Timestamp {
        self.timestamp
    }

    fn covered(&self) -> Sequence {
        Sequence::ZERO
    }

    fn stats(&self) -> StoreStats {
        StoreStats { records: self.content.len() as u64, ..StoreStats::default() }
    }

    fn growth_max(&self, entries: &[WriteEntry<'_>]) -> u64 {
        entries.len() as u64
    }

    fn growth(&self, entries: &[WriteEntry<'_>]) -> i64 {
        entries.iter().filter(|e| matches!(e.change, Change::Put(_))).count() as i64
    }

    fn snapshot_start(&mut self) {}

    fn snapshot_next(
        &mut self,
        _: usize,
        _: &mut dyn FnMut(SnapshotRecord<'_>),
    ) -> Result<SnapshotStep, StoreError> {
        Ok(SnapshotStep::Done)
    }

    fn snapshot_end(&mut self) {}

    fn load_start(&mut self) {}

    fn load(&mut self, _: &[SnapshotRecord<'_>]) -> bool {
        true
    }

    fn load_end(&mut self, _: Sequence, _: Timestamp) {}

    fn fetch(&mut self, keys: &[&[u8]]) {
        self.wanted.extend(keys.iter().map(|key| key.to_vec()));
    }

    fn forget_fetched(&mut self) {
        self.known.clear();
    }

    fn take_work(&mut self, _: Sequence) -> Option<Work> {
        if self.out || self.wanted.is_empty() {
            return None;
        }
        self.out = true;
        let keys = std::mem::take(&mut self.wanted);
        Some(Box::new(move || WorkDone(Box::new(keys))))
    }

    fn finish_work(&mut self, done: WorkDone) -> Result<(), StoreError> {
        self.out = false;
        self.known.extend(*done.0.downcast::<Vec<Vec<u8>>>().unwrap());
        Ok(())
    }
}

#[derive(Clone)]
struct Logged {
    sequence: Sequence,
    timestamp: Timestamp,
    entries: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// A key and what a read said of it.
type Seen = (Vec<u8>, Option<(Vec<u8>, Sequence)>);

#[derive(Default)]
struct World {
    now: u64,
    log: Vec<Logged>,
    work: Vec<Work>,
    records: HashMap<u64, Vec<Seen>>,
    done: Vec<(u64, Result<Option<Sequence>, Refusal>)>,
}

impl Outlet for World {
    fn node(&self) -> &str {
        "vm-1"
    }

    fn log_admit(&mut self, _: &[WriteEntry<'_>]) -> Result<(), Refusal> {
        Ok(())
    }

    fn log_append(&mut self, write: &Write<'_>) {
        let entries = write.entries.iter().map(|entry| {
            let value = match entry.change {
                Change::Put(value) => Some(value.to_vec()),
                Change::Remove => None,
            };
            (entry.key.to_vec(), value)
        });
        self.log.push(Logged {
            sequence: write.sequence,
            timestamp: write.timestamp,
            entries: entries.collect(),
        });
    }
}

impl Effects for World {
    fn record(&mut self, ticket: Ticket, key: &[u8], record: Option<Record<'_>>) {
        let record = record.map(|record| (record.value.to_vec(), record.version));
        self.records.entry(ticket.0).or_default().push((key.to_vec(), record));
    }

    fn read_done(&mut self, ticket: Ticket, outcome: Result<(), Refusal>) {
        self.done.push((ticket.0, outcome.map(|()| None)));
    }

    fn written(&mut self, ticket: Ticket, outcome: Result<(Sequence, Timestamp), Refusal>) {
        self.done.push((ticket.0, outcome.map(|(sequence, _)| Some(sequence))));
    }

    fn run(&mut self, work: Work) {
        self.work.push(work);
    }

    fn now(&self) -> WallClock {
        WallClock(self.now)
    }

    fn memory_available(&self) -> u64 {
        u64::MAX
    }
}

fn replay(log: &[Logged], cold: bool) -> MapStore {
    let mut store = MapStore {
        content: Content::new(),
        applied: Sequence::ZERO,
        timestamp: Timestamp::ZERO,
        cold,
        known: Vec::new(),
        wanted: Vec::new(),
        out: false,
    };
    for record in log {
        let entries: Vec<_> = record
            .entries
            .iter()
            .map(|(key, value)| WriteEntry {
                key,
                change: value.as_deref().map_or(Change::Remove, Change::Put),
                condition: Condition::None,
            })
            .collect();
        store.apply(record.sequence, record.timestamp, &entries);
    }
    store
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<(u8, Option<u8>, Guess)>, Option<Ack>),
    Read(Vec<u8>),
    /// The log becomes durable up to this share of what is not yet.
    Log(u8),
    /// The log gives up on a write: at this share of those that are not durable yet.
    Fail(u8),
    Work,
    Crash(u8),
    /// The wall clock moves, also backwards.
    Clock(i16),
}

/// A condition, aimed to hold about half of the time.
#[derive(Clone, Copy, Debug)]
enum Guess {
    None,
    IfAbsent,
    Current,
    Wrong,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let guess = prop_oneof![
        4 => Just(Guess::None), 1 => Just(Guess::IfAbsent), 1 => Just(Guess::Current), 1 => Just(Guess::Wrong)
    ];
    let entries = prop::collection::btree_map(0..12_u8, (any::<Option<u8>>(), guess), 1..4)
        .prop_map(|map| map.into_iter().map(|(key, (value, guess))| (key, value, guess)).collect());
    let ack = prop_oneof![Just(None), Just(Some(Ack::Memory)), Just(Some(Ack::Durable))];
    let step = prop_oneof![
        6 => (entries, ack).prop_map(|(entries, ack)| Step::Write(entries, ack)),
        5 => prop::collection::vec(0..12_u8, 1..4).prop_map(Step::Read),
        4 => any::<u8>().prop_map(Step::Log),
        4 => Just(Step::Work),
        1 => any::<u8>().prop_map(Step::Crash),
        1 => any::<u8>().prop_map(Step::Fail),
        1 => any::<i16>().prop_map(Step::Clock),
    ];
    prop::collection::vec(step, 1..120)
}

struct Run {
    partition: Partition,
    world: World,
    /// Content after each sequence; index 0 is the empty partition.
    states: Vec<Content>,
    durable: usize,
    /// The first sequence that the log gave up on: it and what is behind it is never acknowledged.
    failed: Option<usize>,
    cold: bool,
    ack: Ack,
    reads: HashMap<u64, Vec<u8>>,
    writes: HashMap<u64, Option<Ack>>,
}

impl Run {
    fn new(ack: Ack, cold: bool) -> Self {
        Self {
            partition: partition(ack, cold, replay(&[], cold)),
            world: World { now: 1_000_000, ..World::default() },
            states: vec![Content::new()],
            durable: 0,
            failed: None,
            cold,
            ack,
            reads: HashMap::new(),
            writes: HashMap::new(),
        }
    }

    fn step(&mut self, ticket: u64, step: Step) {
        match step {
            Step::Write(entries, ack) => {
                let keys: Vec<_> = entries.iter().map(|(key, ..)| vec![*key]).collect();
                let values: Vec<_> =
                    entries.iter().map(|(_, value, _)| value.map(|v| vec![v; 3])).collect();
                // Conditions are aimed at the content as this run knows it now.
                let current = self.states.last().unwrap();
                let entries: Vec<_> = entries
                    .iter()
                    .zip(&keys)
                    .zip(&values)
                    .map(|(((_, _, guess), key), value)| WriteEntry {
                        key,
                        change: value.as_deref().map_or(Change::Remove, Change::Put),
                        condition: match guess {
                            Guess::None => Condition::None,
                            Guess::IfAbsent => Condition::IfAbsent,
                            Guess::Current => Condition::IfVersion(
                                current.get(key).map_or(Sequence(77_777), |record| record.1),
                            ),
                            Guess::Wrong => Condition::IfVersion(Sequence(88_888)),
                        },
                    })
                    .collect();
                self.writes.insert(ticket, ack);
                self.feed(Input::Write { ticket: Ticket(ticket), entries: &entries, ack });
            }
            Step::Read(keys) => {
                let bytes: Vec<_> = keys.iter().map(|key| vec![*key]).collect();
                let slices: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
                self.reads.insert(ticket, keys);
                self.feed(Input::Read { ticket: Ticket(ticket), keys: &slices });
            }
            Step::Log(share) => {
                let open = self.world.log.len() - self.durable;
                self.durable += open * usize::from(share) / 255;
                self.feed(Input::LogDurable(Sequence(self.durable as u64)));
            }
            Step::Fail(share) => {
                let open = self.world.log.len() - self.durable;
                if open > 0 {
                    let at = self.durable + 1 + (open - 1) * usize::from(share) / 255;
                    self.failed = Some(self.failed.map_or(at, |failed| failed.min(at)));
                    let refusal = Refusal::new(Reason::PartitionStopped, "the log gave up");
                    self.feed(Input::LogFailed(Sequence(at as u64), refusal));
                }
            }
            Step::Work => {
                if let Some(work) = self.world.work.pop() {
                    self.feed(Input::WorkDone(work()));
                }
            }
            Step::Clock(by) => {
                self.world.now = self.world.now.saturating_add_signed(i64::from(by));
            }
            Step::Crash(share) => self.crash(share),
        }
        self.check();
    }

    fn feed(&mut self, input: Input<'_>) {
        self.partition.step(input, &mut self.world);
        // The model follows the log: what the partition accepted, in its order.
        while self.states.len() <= self.world.log.len() {
            let record = &self.world.log[self.states.len() - 1];
            let mut content = self.states.last().unwrap().clone();
            for (key, value) in &record.entries {
                match value {
                    Some(value) => {
                        content.insert(
                            key.clone(),
                            (value.clone(), record.sequence, record.timestamp),
                        );
                    }
                    None => {
                        content.remove(key);
                    }
                }
            }
            assert_eq!(record.sequence, Sequence(self.states.len() as u64));
            self.states.push(content);
        }
    }

    fn crash(&mut self, share: u8) {
        let open = self.world.log.len() - self.durable;
        let survived = self.durable + open * usize::from(share) / 255;
        self.world.log.truncate(survived);
        self.states.truncate(survived + 1);
        self.durable = survived;
        self.failed = None;
        self.world.work.clear();
        self.world.records.clear();
        self.reads.clear();
        self.writes.clear();
        let store = replay(&self.world.log, self.cold);
        self.partition = partition(self.ack, self.cold, store);
    }

    fn check(&mut self) {
        // Whatever the log says of what lies behind a failed write, nobody is told of it.
        let durable_to = self.failed.map_or(self.durable, |failed| self.durable.min(failed - 1));
        for (ticket, outcome) in std::mem::take(&mut self.world.done) {
            if let Some(keys) = self.reads.remove(&ticket) {
                let records = self.world.records.remove(&ticket).unwrap_or_default();
                if let Err(refusal) = outcome {
                    assert_eq!(refusal.reason, Reason::PartitionStopped);
                    assert!(self.failed.is_some(), "reads are refused when the log failed alone");
                    continue;
                }
                assert_eq!(records.len(), keys.len());
                // Some state explains the whole answer, and a crash could not take it back.
                let explains = |state: &Content| {
                    records.iter().all(|(key, record)| {
                        state.get(key).map(|(value, version, _)| (value.clone(), *version))
                            == *record
                    })
                };
                let limit =
                    if self.ack == Ack::Durable { durable_to + 1 } else { self.states.len() };
                assert!(
                    self.states[..limit].iter().any(explains),
                    "no durable state explains {records:?}"
                );
            } else {
                let ack = self.writes.remove(&ticket).expect("a ticket is answered once");
                match outcome {
                    Ok(sequence) => {
                        let sequence = sequence.expect("writes answer a sequence").0 as usize;
                        let durable = ack.map_or(self.ack, |ack| ack.max(self.ack)) == Ack::Durable;
                        assert!(!durable || sequence <= durable_to, "acknowledged too early");
                        assert!(sequence < self.states.len());
                    }
                    Err(refusal) if refusal.reason == Reason::PartitionStopped => {
                        assert!(self.failed.is_some(), "nothing failed");
                    }
                    Err(refusal) => assert_eq!(refusal.reason, Reason::ConditionFailed),
                }
            }
        }
    }

    /// With the log durable and all work done, nothing may stay unanswered.
    fn settle(&mut self) {
        self.durable = self.world.log.len();
        self.feed(Input::LogDurable(Sequence(self.durable as u64)));
        while let Some(work) = self.world.work.pop() {
            self.feed(Input::WorkDone(work()));
            self.durable = self.world.log.len();
            self.feed(Input::LogDurable(Sequence(self.durable as u64)));
        }
        self.check();
        assert!(self.reads.is_empty() && self.writes.is_empty(), "an answer is missing");
        assert!(self.partition.is_quiet());
        if let Some(failed) = self.failed {
            assert_eq!(self.partition.passed(), Sequence(failed as u64 - 1));
            assert_eq!(self.partition.state().0, PartitionState::Stopped);
            return;
        }
        assert_eq!(self.partition.passed(), self.partition.applied());
        assert_eq!(self.partition.stats().records as usize, self.states.last().unwrap().len());
    }
}

fn partition(ack: Ack, cold: bool, store: MapStore) -> Partition {
    let spec = PartitionSpec {
        id: PartitionId(1),
        range: HashRange::FULL,
        store: if cold { StoreKind::Sled } else { StoreKind::Memory },
        ack,
        pipeline: DEFAULT_PIPELINE.into(),
        first_epoch: Epoch(1),
        epoch: Epoch(1),
        base_sequence: Sequence::ZERO,
    };
    Partition::new(spec, Box::new(store)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn answers_agree_with_the_model_and_survive_crashes(
        steps in steps(), durable in any::<bool>(), cold in any::<bool>(),
    ) {
        let mut run = Run::new(if durable { Ack::Durable } else { Ack::Memory }, cold);
        for (ticket, step) in steps.into_iter().enumerate() {
            run.step(ticket as u64, step);
        }
        run.settle();
    }
}

#[test]
fn conditions_decide_against_everything_accepted_before() {
    let mut run = Run::new(Ack::Durable, false);
    let write = |run: &mut Run, ticket, condition| {
        let entries = [WriteEntry { key: b"k", change: Change::Put(b"v"), condition }];
        run.partition.step(
            Input::Write { ticket: Ticket(ticket), entries: &entries, ack: None },
            &mut run.world,
        );
    };
    write(&mut run, 1, Condition::IfAbsent);
    write(&mut run, 2, Condition::IfAbsent);
    write(&mut run, 3, Condition::IfVersion(Sequence(1)));
    write(&mut run, 4, Condition::IfVersion(Sequence(1)));
    let refused: Vec<_> =
        run.world.done.iter().map(|(ticket, outcome)| (*ticket, outcome.is_err())).collect();
    assert_eq!(refused, [(2, true), (4, true)], "refusals leave at once, acknowledgements wait");
    let refusal = run.world.done[1].1.as_ref().unwrap_err();
    assert!(refusal.metadata.contains(&("version", "2".to_owned())));
    run.partition.step(Input::LogDurable(Sequence(2)), &mut run.world);
    let written: Vec<_> = run.world.done[2..]
        .iter()
        .map(|(ticket, outcome)| (*ticket, outcome.clone().unwrap()))
        .collect();
    assert_eq!(written, [(1, Some(Sequence(1))), (3, Some(Sequence(2)))]);
}

#[test]
fn a_failed_write_waits_for_those_ahead_of_it_and_lets_none_behind_it_pass() {
    let mut run = Run::new(Ack::Durable, false);
    for ticket in 1..=4_u64 {
        let key = [ticket as u8];
        let entry = WriteEntry { key: &key, change: Change::Put(b"v"), condition: Condition::None };
        let input = Input::Write { ticket: Ticket(ticket), entries: &[entry], ack: None };
        run.partition.step(input, &mut run.world);
    }
    run.partition.step(Input::Read { ticket: Ticket(5), keys: &[&[4]] }, &mut run.world);
    let refusal = Refusal::new(Reason::PartitionStopped, "the log gave up");
    run.partition.step(Input::LogFailed(Sequence(3), refusal), &mut run.world);
    assert!(run.world.done.is_empty(), "1 and 2 are not done, and 3 does not overtake them");
    // New writes are told at once, reads of what is durable go on.
    let entry = WriteEntry { key: b"k", change: Change::Put(b"v"), condition: Condition::None };
    let input = Input::Write { ticket: Ticket(6), entries: &[entry], ack: None };
    run.partition.step(input, &mut run.world);
    assert!(matches!(run.world.done[..], [(6, Err(_))]));
    // The log says more than the failed write lets through.
    run.partition.step(Input::LogDurable(Sequence(4)), &mut run.world);
    let outcomes: Vec<_> =
        run.world.done[1..].iter().map(|(ticket, outcome)| (*ticket, outcome.is_ok())).collect();
    assert_eq!(outcomes, [(1, true), (2, true), (3, false), (4, false), (5, false)]);
    assert_eq!(run.partition.state().0, PartitionState::Stopped);
}

#[test]
fn a_halted_partition_answers_everything_with_the_reason() {
    let mut run = Run::new(Ack::Durable, false);
    let entries = [WriteEntry { key: b"k", change: Change::Put(b"v"), condition: Condition::None }];
    run.partition
        .step(Input::Write { ticket: Ticket(1), entries: &entries, ack: None }, &mut run.world);
    run.partition.step(Input::Read { ticket: Ticket(2), keys: &[b"k"] }, &mut run.world);
    assert!(run.world.done.is_empty(), "the write and the read that saw it wait for the log");
    run.partition.halt(Refusal::new(Reason::PartitionStopped, "disk gone"), &mut run.world);
    run.partition.step(Input::Read { ticket: Ticket(3), keys: &[b"k"] }, &mut run.world);
    let reasons: Vec<_> =
        run.world.done.iter().map(|(_, outcome)| outcome.as_ref().unwrap_err().reason).collect();
    assert_eq!(reasons, [Reason::PartitionStopped; 3]);
    assert!(run.partition.snapshot_start().is_err());
}
