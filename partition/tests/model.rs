//! A partition against a model: random batches with conditions, reads, log progress, blocking
//! store work and crashes. After every crash the partition goes on from some point between what
//! was durable and what was appended, as a disk may choose.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "model/map_store.rs"]
mod map_store;
#[path = "model/update.rs"]
mod update;

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
};

use proptest::prelude::*;
use stateside_partition::{Effects, Input, PageEnd, Partition, Ticket};
use stateside_pipeline::{Outlet, Write};
use stateside_statestore::{RequestWindow, StateStore, Work, WorkDone};
use stateside_types::{
    Ack, AtLeast, Change, Condition, DEFAULT_PIPELINE, Epoch, ExpireAt, Expiry, HashRange,
    Operator, OptionValue, PartitionId, PartitionSpec, PartitionState, Reason, Record, Refusal,
    Sequence, StageKind, StageSpec, StoreKind, Timestamp, UpdateEntry, WallClock, WriteEntry,
};

use map_store::MapStore;

type Content = BTreeMap<Vec<u8>, Stored>;

#[derive(Clone, Debug, PartialEq)]
struct Stored {
    value: Vec<u8>,
    version: Sequence,
    timestamp: Timestamp,
    expire_at: Option<ExpireAt>,
}

impl Stored {
    fn is_expired(&self, now: WallClock) -> bool {
        self.expire_at.is_some_and(|moment| moment.has_come(now))
    }
}

/// Value and moment.
type LoggedPut = (Vec<u8>, Option<ExpireAt>);

#[derive(Clone)]
struct Logged {
    sequence: Sequence,
    timestamp: Timestamp,
    /// Keys and what was put; None removes.
    entries: Vec<(Vec<u8>, Option<LoggedPut>)>,
}

/// A key and what a read said of it.
type Seen = (Vec<u8>, Option<(Vec<u8>, Sequence)>);

#[derive(Default)]
struct World {
    now: u64,
    /// The latest time that the partition was told.
    told: Cell<u64>,
    log: Vec<Logged>,
    work: Vec<Work>,
    /// What reads were told, and when.
    records: HashMap<u64, (WallClock, Vec<Seen>)>,
    /// What updates made, by ticket.
    values: HashMap<u64, Vec<Vec<u8>>>,
    done: Vec<(u64, Result<Option<Sequence>, Refusal>)>,
}

impl Outlet for World {
    fn node(&self) -> &str {
        "vm-1"
    }

    fn log_admit(&mut self, _: &Write<'_>) -> Result<(), Refusal> {
        Ok(())
    }

    fn log_append(&mut self, write: &Write<'_>) {
        let entries = write.entries.iter().map(|entry| {
            let value = match entry.change {
                // What the log keeps of an entry is the moment.
                Change::Put(value) => {
                    Some((value.to_vec(), entry.expiry.fixed_by(write.timestamp)))
                }
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
    fn record(&mut self, ticket: Ticket, key: &[u8], record: Option<&Record<'_>>) {
        let record = record.map(|record| (record.value.to_vec(), record.version));
        let (time, records) = self.records.entry(ticket.0).or_default();
        *time = WallClock(self.told.get());
        records.push((key.to_vec(), record));
    }

    fn page_end(&mut self, _: Ticket, _: PageEnd<'_>) {
        unreachable!("the model makes no scans");
    }

    fn read_done(&mut self, ticket: Ticket, outcome: Result<Sequence, Refusal>) {
        self.done.push((ticket.0, outcome.map(Some)));
    }

    fn value(&mut self, ticket: Ticket, value: &[u8]) {
        self.values.entry(ticket.0).or_default().push(value.to_vec());
    }

    fn written(&mut self, ticket: Ticket, outcome: Result<(Sequence, Timestamp), Refusal>) {
        self.done.push((ticket.0, outcome.map(|(sequence, _)| Some(sequence))));
    }

    fn run(&mut self, work: Work) {
        self.work.push(work);
    }

    fn now(&self) -> WallClock {
        self.told.set(self.told.get().max(self.now));
        WallClock(self.now)
    }

    fn memory_available(&self) -> u64 {
        u64::MAX
    }
}

fn replay(log: &[Logged], cold: bool) -> MapStore {
    let mut store = MapStore {
        content: Content::new(),
        requests: RequestWindow::default(),
        applied: Sequence::ZERO,
        timestamp: Timestamp::ZERO,
        cold,
        tree: Content::new(),
        overlay: Vec::new(),
        known: HashMap::new(),
        wanted: Vec::new(),
        out: false,
    };
    for record in log {
        let entries: Vec<_> = record
            .entries
            .iter()
            .map(|(key, put)| match put {
                Some((value, moment)) => WriteEntry::put(key, value).expiring((*moment).into()),
                None => WriteEntry::remove(key),
            })
            .collect();
        store.apply(record.sequence, record.timestamp, &entries);
    }
    store.settle();
    store
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<Planned>, Option<Ack>),
    /// Append these bytes, one to each of these keys.
    Append(Vec<(u8, u8)>, Option<Ack>),
    /// Keys, and what its session knows: at this share of 100 of what was accepted.
    Read(Vec<u8>, Option<u8>),
    /// So many milliseconds go by.
    Tick(u8),
    /// The log becomes durable up to this share of what is not yet.
    Log(u8),
    /// The log gives up on a write: at this share of those that are not durable yet.
    Fail(u8),
    Work,
    /// The disk is full, so that the engine did not even read.
    NoWork,
    Crash(u8),
    /// The wall clock moves, also backwards.
    Clock(i16),
    /// So many expired records may go.
    Reclaim(u8),
}

/// An entry: key, value (none removes), condition, time to live.
type Planned = (u8, Option<u8>, Guess, Option<u16>);

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
    let entries = prop::collection::btree_map(
        0..12_u8,
        (any::<Option<u8>>(), guess, proptest::option::of(1..20_000_u16)),
        1..4,
    )
    .prop_map(|map| {
        let plan = |(key, (value, guess, ttl_ms))| (key, value, guess, ttl_ms);
        map.into_iter().map(plan).collect()
    });
    let ack = prop_oneof![Just(None), Just(Some(Ack::Memory)), Just(Some(Ack::Durable))];
    let appends = prop::collection::btree_map(0..12_u8, any::<u8>(), 1..4);
    let step = prop_oneof![
        3 => (appends, ack.clone()).prop_map(|(map, ack)| Step::Append(map.into_iter().collect(), ack)),
        6 => (entries, ack).prop_map(|(entries, ack)| Step::Write(entries, ack)),
        5 => (prop::collection::vec(0..12_u8, 1..4), proptest::option::weighted(0.3, 0..130_u8))
            .prop_map(|(keys, session)| Step::Read(keys, session)),
        1 => any::<u8>().prop_map(Step::Tick),
        4 => any::<u8>().prop_map(Step::Log),
        4 => Just(Step::Work),
        1 => Just(Step::NoWork),
        1 => any::<u8>().prop_map(Step::Crash),
        1 => any::<u8>().prop_map(Step::Fail),
        2 => any::<i16>().prop_map(Step::Clock),
        2 => any::<u8>().prop_map(Step::Reclaim),
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
    /// Work failed: what waited for it was refused.
    unreadable: bool,
    ack: Ack,
    split: bool,
    age_ms: u64,
    reads: HashMap<u64, Asked>,
    writes: HashMap<u64, Option<Ack>>,
    /// Updates under way: keys and what is appended to each.
    appends: HashMap<u64, Vec<(u8, u8)>>,
}

/// A read under way.
struct Asked {
    keys: usize,
    /// What its session knows, and until when it may wait for that.
    session: (Sequence, u64),
}

/// How long reads may wait for their session.
const SESSION_MS: u32 = 300;

impl Run {
    fn new(ack: Ack, cold: bool) -> Self {
        Self::in_mode(ack, cold, false)
    }

    fn in_mode(ack: Ack, cold: bool, split: bool) -> Self {
        Self {
            partition: partition(ack, cold, split, replay(&[], cold)),
            world: World { now: 1_000_000, ..World::default() },
            states: vec![Content::new()],
            durable: 0,
            failed: None,
            cold,
            unreadable: false,
            ack,
            split,
            age_ms: 0,
            reads: HashMap::new(),
            writes: HashMap::new(),
            appends: HashMap::new(),
        }
    }

    fn step(&mut self, ticket: u64, step: Step) {
        match step {
            Step::Write(entries, ack) => {
                let keys: Vec<_> = entries.iter().map(|(key, ..)| vec![*key]).collect();
                let values: Vec<_> =
                    entries.iter().map(|(_, value, ..)| value.map(|v| vec![v; 3])).collect();
                // Conditions are aimed at the content as this run knows it now.
                let current = self.states.last().unwrap();
                let entries: Vec<_> = entries
                    .iter()
                    .zip(&keys)
                    .zip(&values)
                    .map(|(((_, _, guess, ttl_ms), key), value)| WriteEntry {
                        key,
                        change: value.as_deref().map_or(Change::Remove, Change::Put),
                        condition: match guess {
                            Guess::None => Condition::None,
                            Guess::IfAbsent => Condition::IfAbsent,
                            Guess::Current => Condition::IfVersion(
                                current.get(key).map_or(Sequence(77_777), |record| record.version),
                            ),
                            Guess::Wrong => Condition::IfVersion(Sequence(88_888)),
                        },
                        expiry: ttl_ms.map_or(Expiry::Never, |ttl| Expiry::After(ttl.into())),
                    })
                    .collect();
                self.writes.insert(ticket, ack);
                self.feed(Input::Write {
                    ticket: Ticket(ticket),
                    entries: &entries,
                    ack,
                    request: None,
                });
            }
            Step::Append(appends, ack) => {
                let bytes: Vec<_> = appends.iter().map(|(key, byte)| ([*key], [*byte])).collect();
                let entries: Vec<_> = bytes
                    .iter()
                    .map(|(key, byte)| UpdateEntry {
                        key,
                        operator: Operator::Append(byte),
                        condition: Condition::None,
                        expiry: Expiry::Never,
                    })
                    .collect();
                self.writes.insert(ticket, ack);
                self.appends.insert(ticket, appends);
                let ticket = Ticket(ticket);
                let input = Input::Update {
                    ticket,
                    entries: &entries,
                    ack,
                    request: None,
                    return_values: true,
                };
                self.feed(input);
            }
            Step::Tick(ms) => {
                self.age_ms += u64::from(ms);
                self.feed(Input::Tick(ms.into()));
            }
            Step::Read(keys, session) => {
                let bytes: Vec<_> = keys.iter().map(|key| vec![*key]).collect();
                let slices: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
                let session = session.map(|share| AtLeast {
                    epoch: Epoch(1),
                    sequence: Sequence(self.world.log.len() as u64 * u64::from(share) / 100),
                    wait_ms: SESSION_MS,
                });
                let knows = session.map_or(Sequence::ZERO, |session| session.sequence);
                let session_until = (knows, self.age_ms + u64::from(SESSION_MS));
                self.reads.insert(ticket, Asked { keys: keys.len(), session: session_until });
                self.feed(Input::Read { ticket: Ticket(ticket), keys: &slices, session });
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
            Step::NoWork => {
                if self.world.work.pop().is_some() {
                    self.unreadable = true;
                    self.feed(Input::WorkDone(WorkDone(Box::new(()))));
                    assert!(self.world.work.is_empty(), "it would fail again at once");
                }
            }
            Step::Clock(by) => {
                self.world.now = self.world.now.saturating_add_signed(i64::from(by));
            }
            Step::Crash(share) => self.crash(share),
            Step::Reclaim(most) => {
                let reclaimed = self.partition.reclaim(most.into(), &mut self.world);
                assert!(reclaimed <= most.into());
            }
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
                    Some((value, expire_at)) => {
                        let (value, expire_at) = (value.clone(), *expire_at);
                        let (version, timestamp) = (record.sequence, record.timestamp);
                        let stored = Stored { value, version, timestamp, expire_at };
                        content.insert(key.clone(), stored);
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
        self.world.values.clear();
        self.reads.clear();
        self.writes.clear();
        self.appends.clear();
        let store = replay(&self.world.log, self.cold);
        self.world.told.set(store.timestamp.millis());
        self.age_ms = 0;
        self.partition = partition(self.ack, self.cold, self.split, store);
    }

    fn check(&mut self) {
        // Whatever the log says of what lies behind a failed write, nobody is told of it.
        let durable_to = self.failed.map_or(self.durable, |failed| self.durable.min(failed - 1));
        for (ticket, outcome) in std::mem::take(&mut self.world.done) {
            if let Some(Asked { keys, session: (knows, until_ms) }) = self.reads.remove(&ticket) {
                let (time, records) = self.world.records.remove(&ticket).unwrap_or_default();
                let passed = self.partition.passed();
                let seen = match outcome {
                    Ok(seen) => seen.expect("reads tell what they saw").0 as usize,
                    Err(refusal) if refusal.reason == Reason::SessionBehind => {
                        let shown = if self.split { passed } else { self.partition.applied() };
                        assert!(shown < knows && self.age_ms >= until_ms, "waited too short");
                        continue;
                    }
                    Err(refusal) if refusal.reason == Reason::DiskFull && self.unreadable => {
                        continue;
                    }
                    Err(refusal) => {
                        assert_eq!(refusal.reason, Reason::PartitionStopped);
                        assert!(self.failed.is_some(), "the log did not fail");
                        continue;
                    }
                };
                assert_eq!(records.len(), keys);
                // Some state explains the whole answer, and a crash could not take it back.
                let explains = |state: &Content| {
                    records.iter().all(|(key, record)| {
                        let live = state.get(key).filter(|stored| !stored.is_expired(time));
                        live.map(|stored| (stored.value.clone(), stored.version)) == *record
                    })
                };
                let limit =
                    if self.ack == Ack::Durable { durable_to + 1 } else { self.states.len() };
                assert!(
                    self.states[..limit].iter().any(explains),
                    "no durable state explains {records:?}"
                );
                let from = knows.0 as usize;
                assert!(
                    self.states[from..].iter().any(explains),
                    "{records:?} is older than {knows}, which the session knows"
                );
                assert!(explains(&self.states[seen]), "{records:?} is not the state after {seen}");
                if self.split {
                    // Not any durable state: the newest.
                    let newest = passed.0 as usize;
                    assert!(newest <= durable_to && newest >= from && seen <= newest);
                    assert!(explains(&self.states[newest]), "{records:?} is not the newest");
                }
            } else {
                let ack = self.writes.remove(&ticket).expect("a ticket is answered once");
                match outcome {
                    Ok(sequence) => {
                        let sequence = sequence.expect("writes answer a sequence").0 as usize;
                        let durable = ack.map_or(self.ack, |ack| ack.max(self.ack)) == Ack::Durable;
                        assert!(!durable || sequence <= durable_to, "acknowledged too early");
                        assert!(sequence < self.states.len());
                        if let Some(appends) = self.appends.remove(&ticket) {
                            self.check_appended(ticket, sequence, &appends);
                        }
                    }
                    Err(refusal) if refusal.reason == Reason::DiskFull => {
                        assert!(self.unreadable, "the disk was not full");
                    }
                    Err(refusal) if refusal.reason == Reason::PartitionStopped => {
                        assert!(self.failed.is_some(), "nothing failed");
                    }
                    Err(refusal) => {
                        assert_eq!(refusal.reason, Reason::ConditionFailed);
                        let told = refusal.metadata.iter().find(|(key, _)| *key == "version");
                        let version: u64 = told.unwrap().1.parse().unwrap();
                        assert!(!self.split || version <= self.partition.passed().0);
                    }
                }
            }
        }
    }

    /// An update made its values of those that the write before it left, and nothing came between.
    fn check_appended(&mut self, ticket: u64, sequence: usize, appends: &[(u8, u8)]) {
        let told = self.world.values.remove(&ticket).expect("values come before the answer");
        assert_eq!(told.len(), appends.len());
        for ((key, byte), told) in appends.iter().zip(told) {
            let value = |state: &Content| state.get(&vec![*key]).map(|stored| stored.value.clone());
            let after = value(&self.states[sequence]).expect("the update wrote it");
            // A record that had expired counts as none.
            let before = value(&self.states[sequence - 1]).unwrap_or_default();
            let appended = [&before[..], &[*byte]].concat();
            assert!(after == appended || after == [*byte], "{after:?} after {before:?}");
            assert_eq!(after, told);
        }
    }

    /// With the log durable and all work done, nothing may stay unanswered.
    fn settle(&mut self) {
        // Whoever waits for a state that there is not yet is told, and a full disk is tried again.
        self.step(u64::MAX, Step::Tick(u8::MAX));
        self.step(u64::MAX, Step::Tick(u8::MAX));
        self.durable = self.world.log.len();
        self.feed(Input::LogDurable(Sequence(self.durable as u64)));
        while let Some(work) = self.world.work.pop() {
            self.feed(Input::WorkDone(work()));
            self.check();
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
        self.partition.reclaim(usize::MAX, &mut self.world);
        let now = self.world.now();
        let now = WallClock(self.world.told.get().max(now.0));
        let live = self.states.last().unwrap().values().filter(|stored| !stored.is_expired(now));
        assert_eq!(self.partition.stats().records as usize, live.count());
    }
}

fn partition(ack: Ack, cold: bool, split: bool, store: MapStore) -> Partition {
    let mode = vec![("mode", OptionValue::Text("split".to_owned()))];
    let stages = DEFAULT_PIPELINE.iter().map(|kind| match kind {
        StageKind::Dispatcher if split => StageSpec::checked(*kind, mode.clone()),
        kind => StageSpec::from(*kind),
    });
    let spec = PartitionSpec {
        id: PartitionId(1),
        range: HashRange::FULL,
        store: if cold { StoreKind::Sled } else { StoreKind::Memory },
        ack,
        pipeline: stages.collect::<Vec<_>>().into(),
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
        steps in steps(), durable in any::<bool>(), cold in any::<bool>(), split in any::<bool>(),
    ) {
        let mut run = Run::in_mode(if durable { Ack::Durable } else { Ack::Memory }, cold, split);
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
        let entries = [WriteEntry::put(b"k", b"v").under(condition)];
        run.partition.step(
            Input::Write { ticket: Ticket(ticket), entries: &entries, ack: None, request: None },
            &mut run.world,
        );
    };
    write(&mut run, 1, Condition::IfAbsent);
    write(&mut run, 2, Condition::IfAbsent);
    write(&mut run, 3, Condition::IfVersion(Sequence(1)));
    write(&mut run, 4, Condition::IfVersion(Sequence(1)));
    assert!(run.world.done.is_empty(), "what a crash could take back is not told");
    run.partition.step(Input::LogDurable(Sequence(1)), &mut run.world);
    let answers = |run: &mut Run| {
        let done = std::mem::take(&mut run.world.done).into_iter();
        done.map(|(ticket, outcome)| (ticket, outcome.map_err(|refusal| refusal.metadata)))
            .collect::<Vec<_>>()
    };
    let failed = |version: &str| {
        Err(vec![("entry".into(), "0".to_owned()), ("version".into(), version.to_owned())])
    };
    assert_eq!(answers(&mut run), [(1, Ok(Some(Sequence(1)))), (2, failed("1"))]);
    run.partition.step(Input::LogDurable(Sequence(2)), &mut run.world);
    assert_eq!(answers(&mut run), [(3, Ok(Some(Sequence(2)))), (4, failed("2"))]);
    write(&mut run, 5, Condition::IfAbsent);
    assert_eq!(answers(&mut run), [(5, failed("2"))], "of durable state it is told at once");
}

/// A key's version as a read tells it.
fn read(run: &mut Run, ticket: u64, key: &[u8]) -> Option<Sequence> {
    run.partition
        .step(Input::Read { ticket: Ticket(ticket), keys: &[key], session: None }, &mut run.world);
    let (_, records) = run.world.records.remove(&ticket).expect("answered");
    records[0].1.as_ref().map(|(_, version)| *version)
}

#[test]
fn a_record_is_absent_from_its_moment_on_for_reads_and_conditions_and_stays_so() {
    let mut run = Run::new(Ack::Memory, false);
    run.world.now = 1_000;
    let write = |run: &mut Run, ticket, entry: WriteEntry<'_>| {
        let entries = [entry];
        run.partition.step(
            Input::Write { ticket: Ticket(ticket), entries: &entries, ack: None, request: None },
            &mut run.world,
        );
        run.world.done.pop().expect("answered at once").1.map_err(|refusal| refusal.reason)
    };
    let entry = WriteEntry::put(b"k", b"v").expiring(Expiry::After(500));
    assert_eq!(write(&mut run, 1, entry), Ok(Some(Sequence(1))));
    run.world.now = 1_499;
    assert_eq!(read(&mut run, 2, b"k"), Some(Sequence(1)));
    assert_eq!(write(&mut run, 3, entry.under(Condition::IfAbsent)), Err(Reason::ConditionFailed));
    run.world.now = 1_500;
    let stale = entry.under(Condition::IfVersion(Sequence(1)));
    assert_eq!(write(&mut run, 4, stale), Err(Reason::ConditionFailed));
    assert_eq!(read(&mut run, 5, b"k"), None);
    // The wall clock jumps back; what has ceased to exist does not come back.
    run.world.now = 10;
    assert_eq!(read(&mut run, 6, b"k"), None);
    assert_eq!(write(&mut run, 7, entry.under(Condition::IfAbsent)), Ok(Some(Sequence(2))));
    assert_eq!(read(&mut run, 8, b"k"), Some(Sequence(2)));
    // The second life ends when its own time is over, and its record can be taken out.
    run.world.now = 1_999;
    assert_eq!(run.partition.reclaim(10, &mut run.world), 0);
    run.world.now = 2_000;
    assert_eq!(read(&mut run, 9, b"k"), None);
    assert_eq!(run.partition.reclaim(10, &mut run.world), 1);
    assert_eq!((read(&mut run, 10, b"k"), run.partition.stats().records), (None, 0));
}

#[test]
fn an_absence_that_a_reclaimed_record_left_waits_for_the_log() {
    let mut run = Run::new(Ack::Durable, false);
    run.world.now = 1_000;
    let lasting = [WriteEntry::put(b"k", b"v")];
    let brief = [WriteEntry::put(b"k", b"v").expiring(Expiry::After(1))];
    for (ticket, entries) in [(1, &lasting), (2, &brief)] {
        let input = Input::Write { ticket: Ticket(ticket), entries, ack: None, request: None };
        run.partition.step(input, &mut run.world);
    }
    run.partition.step(Input::LogDurable(Sequence(1)), &mut run.world);
    run.world.now = 2_000;
    assert_eq!(run.partition.reclaim(1, &mut run.world), 1);
    run.world.done.clear();
    run.partition
        .step(Input::Read { ticket: Ticket(3), keys: &[b"k"], session: None }, &mut run.world);
    // A crash now would bring the lasting record back.
    assert!(run.world.done.is_empty());
    run.partition.step(Input::LogDurable(Sequence(2)), &mut run.world);
    assert_eq!(run.world.done.len(), 2);
}

#[test]
fn without_a_clock_stage_nothing_can_be_given_a_time_to_live() {
    let mut run = Run::new(Ack::Memory, false);
    let spec = PartitionSpec { pipeline: Vec::new().into(), ..run.partition.spec().clone() };
    run.partition = Partition::new(spec, Box::new(replay(&[], false))).unwrap();
    let entries = [WriteEntry::put(b"k", b"v").expiring(Expiry::After(500))];
    run.partition.step(
        Input::Write { ticket: Ticket(1), entries: &entries, ack: None, request: None },
        &mut run.world,
    );
    let (_, outcome) = run.world.done.pop().expect("answered at once");
    assert_eq!(outcome.unwrap_err().reason, Reason::InvalidTtl);
}

#[test]
fn a_failed_write_waits_for_those_ahead_of_it_and_lets_none_behind_it_pass() {
    let mut run = Run::new(Ack::Durable, false);
    for ticket in 1..=4_u64 {
        let key = [ticket as u8];
        let entry = WriteEntry::put(&key, b"v");
        let input =
            Input::Write { ticket: Ticket(ticket), entries: &[entry], ack: None, request: None };
        run.partition.step(input, &mut run.world);
    }
    run.partition
        .step(Input::Read { ticket: Ticket(5), keys: &[&[4]], session: None }, &mut run.world);
    let refusal = Refusal::new(Reason::PartitionStopped, "the log gave up");
    run.partition.step(Input::LogFailed(Sequence(3), refusal), &mut run.world);
    assert!(run.world.done.is_empty(), "1 and 2 are not done, and 3 does not overtake them");
    // New writes are told at once, reads of what is durable go on.
    let entry = WriteEntry::put(b"k", b"v");
    let input = Input::Write { ticket: Ticket(6), entries: &[entry], ack: None, request: None };
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
    let entries = [WriteEntry::put(b"k", b"v")];
    run.partition.step(
        Input::Write { ticket: Ticket(1), entries: &entries, ack: None, request: None },
        &mut run.world,
    );
    run.partition
        .step(Input::Read { ticket: Ticket(2), keys: &[b"k"], session: None }, &mut run.world);
    assert!(run.world.done.is_empty(), "the write and the read that saw it wait for the log");
    run.partition.halt(Refusal::new(Reason::PartitionStopped, "disk gone"), &mut run.world);
    run.partition
        .step(Input::Read { ticket: Ticket(3), keys: &[b"k"], session: None }, &mut run.world);
    let reasons: Vec<_> =
        run.world.done.iter().map(|(_, outcome)| outcome.as_ref().unwrap_err().reason).collect();
    assert_eq!(reasons, [Reason::PartitionStopped; 3]);
    assert!(run.partition.snapshot_start().is_err());
}
