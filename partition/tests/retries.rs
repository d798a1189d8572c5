//! Requests with an id: executed once, answered alike, through crashes, restarts from snapshots and
//! restores, with a window that is much too small.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use stateside_partition::{Effects, Input, PageEnd, Partition, Ticket};
use stateside_pipeline::{Outlet, Write};
use stateside_statestore::{
    MemoryStore, RequestLimits, RequestRow, SnapshotRecord, SnapshotStep, StateStore, Work,
};
use stateside_types::{
    Ack, Change, Condition, DEFAULT_PIPELINE, Epoch, Expiry, HashRange, Operator, PartitionId,
    PartitionSpec, Reason, Record, Refusal, RequestId, RequestMark, Sequence, StoreKind, Timestamp,
    UpdateEntry, WallClock, WriteEntry, limits::REQUEST_VALUES_BYTES_MAX,
};

type Answer = Result<(Sequence, Timestamp), Refusal>;

/// A record of the log, in bytes as far as requests go.
#[derive(Clone)]
struct Logged {
    sequence: Sequence,
    timestamp: Timestamp,
    mark: Option<Vec<u8>>,
    entries: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

#[derive(Default)]
struct World {
    now: u64,
    log: Vec<Logged>,
    log_is_full: bool,
    values: Vec<(u64, Vec<u8>)>,
    done: Vec<(u64, Answer)>,
}

impl Outlet for World {
    fn node(&self) -> &str {
        "vm-1"
    }

    fn log_admit(&mut self, _: &Write<'_>) -> Result<(), Refusal> {
        if self.log_is_full {
            return Err(Refusal::new(Reason::DiskFull, "the log's disk is full"));
        }
        Ok(())
    }

    fn log_append(&mut self, write: &Write<'_>) {
        let value = |change: Change<'_>| match change {
            Change::Put(value) => Some(value.to_vec()),
            Change::Remove => None,
        };
        let mark = write.request.map(|mark| {
            let mut bytes = Vec::new();
            mark.encode(&mut |piece| bytes.extend_from_slice(piece));
            bytes
        });
        let entries = write.entries.iter().map(|e| (e.key.to_vec(), value(e.change))).collect();
        let (sequence, timestamp) = (write.sequence, write.timestamp);
        self.log.push(Logged { sequence, timestamp, mark, entries });
    }
}

impl Effects for World {
    fn record(&mut self, _: Ticket, _: &[u8], _: Option<&Record<'_>>) {}

    fn page_end(&mut self, _: Ticket, _: PageEnd<'_>) {}

    fn read_done(&mut self, _: Ticket, _: Result<Sequence, Refusal>) {}

    fn value(&mut self, ticket: Ticket, value: &[u8]) {
        self.values.push((ticket.0, value.to_vec()));
    }

    fn written(&mut self, ticket: Ticket, outcome: Answer) {
        self.done.push((ticket.0, outcome));
    }

    fn run(&mut self, _: Work) {
        unreachable!("a store in memory has no work");
    }

    fn now(&self) -> WallClock {
        WallClock(self.now)
    }

    fn memory_available(&self) -> u64 {
        u64::MAX
    }
}

/// The state after some sequence.
#[derive(Clone, Default)]
struct Snapshot {
    sequence: Sequence,
    timestamp: Timestamp,
    rows: Vec<Vec<u8>>,
    records: Vec<(Vec<u8>, Vec<u8>, Sequence, Timestamp)>,
}

const LIMITS: RequestLimits =
    RequestLimits { answers_max: 6, clients_max: 100, client_keep_ms: 1_000_000 };

fn store(limits: RequestLimits, from: &Snapshot, at: Sequence, log: &[Logged]) -> MemoryStore {
    let mut store = MemoryStore::new(7);
    store.limit_requests(limits);
    store.load_start();
    for bytes in &from.rows {
        store.load_request(&RequestRow::decode(bytes).unwrap().0);
    }
    for (key, value, version, timestamp) in &from.records {
        let (version, timestamp) = (*version, *timestamp);
        let record = Record { value, version, timestamp, expire_at: None };
        store.load(&[SnapshotRecord { key, record }]);
    }
    store.load_end(at, from.timestamp);
    for Logged { sequence, timestamp, mark, entries } in log.iter().filter(|r| r.sequence > at) {
        if let Some(mark) = mark {
            store.remember(*sequence, *timestamp, &RequestMark::decode(mark).unwrap().0);
        }
        let entries: Vec<_> = entries
            .iter()
            .map(|(key, value)| {
                WriteEntry::new(key, value.as_deref().map_or(Change::Remove, Change::Put))
            })
            .collect();
        store.apply(*sequence, *timestamp, &entries);
    }
    store
}

fn partition(store: MemoryStore, stages: bool) -> Partition {
    let spec = PartitionSpec {
        id: PartitionId(1),
        range: HashRange::FULL,
        store: StoreKind::Memory,
        ack: if stages { Ack::Durable } else { Ack::Memory },
        pipeline: if stages { DEFAULT_PIPELINE.into() } else { Vec::new().into() },
        first_epoch: Epoch(1),
        epoch: Epoch(1),
        base_sequence: Sequence::ZERO,
    };
    Partition::new(spec, Box::new(store)).unwrap()
}

/// A partition with its log, and how far that is durable.
struct Node {
    partition: Partition,
    world: World,
    durable: Sequence,
    tickets: u64,
}

impl Node {
    fn new(limits: RequestLimits) -> Self {
        let store = store(limits, &Snapshot::default(), Sequence::ZERO, &[]);
        let world = World { now: 1_000_000, ..World::default() };
        Self { partition: partition(store, true), world, durable: Sequence::ZERO, tickets: 0 }
    }

    fn write(&mut self, id: RequestId<'_>, entry: WriteEntry<'_>, ack: Option<Ack>) -> u64 {
        self.tickets += 1;
        let (ticket, request) = (Ticket(self.tickets), Some(id));
        let input = Input::Write { ticket, entries: &[entry], ack, request };
        self.partition.step(input, &mut self.world);
        self.tickets
    }

    /// Writes with the log on disk at once.
    fn answer(&mut self, id: RequestId<'_>, entry: WriteEntry<'_>) -> Answer {
        let ticket = self.write(id, entry, None);
        self.log_is_durable(self.partition.applied());
        let (of, answer) = self.world.done.pop().expect("answered");
        assert_eq!(of, ticket);
        answer
    }

    fn log_is_durable(&mut self, up_to: Sequence) {
        self.durable = up_to;
        self.partition.step(Input::LogDurable(up_to), &mut self.world);
    }

    fn snapshot(&mut self) -> Snapshot {
        let head = self.partition.snapshot_start().unwrap();
        let mut snapshot =
            Snapshot { sequence: head.sequence, timestamp: head.timestamp, ..Snapshot::default() };
        self.partition.request_rows(|row| {
            let mut bytes = Vec::new();
            row.encode(&mut bytes);
            snapshot.rows.push(bytes);
        });
        loop {
            let mut emit = |SnapshotRecord { key, record }: SnapshotRecord<'_>| {
                let record =
                    (key.to_vec(), record.value.to_vec(), record.version, record.timestamp);
                snapshot.records.push(record);
            };
            let step = self.partition.snapshot_next(100, &mut emit, &mut self.world).unwrap();
            if step == SnapshotStep::Done {
                self.partition.snapshot_end();
                return snapshot;
            }
        }
    }
}

fn id(client: &[u8], number: u64) -> RequestId<'_> {
    RequestId { client, number, settled: 0 }
}

fn put(value: &[u8]) -> WriteEntry<'_> {
    WriteEntry::put(b"k", value)
}

#[test]
fn a_retry_of_what_is_under_way_waits_for_the_same_write() {
    let mut node = Node::new(LIMITS);
    let first = node.write(id(b"c", 1), put(b"v"), None);
    let second = node.write(id(b"c", 1), put(b"v"), None);
    assert!(node.world.done.is_empty(), "neither is on disk");
    let hasty = node.write(id(b"c", 1), put(b"v"), Some(Ack::Memory));
    assert!(node.world.done.is_empty(), "the partition's default is not lowered, {hasty}");
    node.log_is_durable(Sequence(1));
    let tickets: Vec<u64> = node.world.done.iter().map(|(ticket, _)| *ticket).collect();
    assert_eq!(tickets, [first, second, hasty]);
    let answers: Vec<_> =
        node.world.done.iter().map(|(_, answer)| answer.clone().unwrap()).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!((node.world.log.len(), node.partition.requests().1), (1, 2));
}

#[test]
fn a_refused_condition_stays_refused_when_it_would_hold_by_now() {
    let mut node = Node::new(LIMITS);
    let conditional = put(b"w").under(Condition::IfAbsent);
    node.answer(id(b"c", 1), put(b"v")).unwrap();
    let ticket = node.write(id(b"c", 2), conditional, None);
    assert!(node.world.done.is_empty(), "the refusal is not in the log yet");
    node.log_is_durable(Sequence(2));
    let (of, refusal) = node.world.done.pop().unwrap();
    let refusal = refusal.unwrap_err();
    assert_eq!((of, refusal.reason), (ticket, Reason::ConditionFailed));
    assert!(node.world.log[1].entries.is_empty(), "it has a place and no entries");
    node.answer(id(b"c", 3), WriteEntry::remove(b"k")).unwrap();
    // Replayed, or not.
    let log = node.world.log.clone();
    let replayed = store(LIMITS, &Snapshot::default(), Sequence::ZERO, &log);
    assert_eq!(node.answer(id(b"c", 2), conditional), Err(refusal.clone()));
    node.partition = partition(replayed, true);
    assert_eq!(node.answer(id(b"c", 2), conditional), Err(refusal));
    assert_eq!(node.answer(id(b"c", 4), conditional).unwrap().0, Sequence(4));
}

#[test]
fn a_retried_update_tells_its_own_values_and_refusals_though_the_record_has_moved_on() {
    let mut node = Node::new(LIMITS);
    let update = |node: &mut Node, number, operator, return_values| {
        node.tickets += 1;
        let (condition, expiry) = (Condition::None, Expiry::Never);
        let entries = [UpdateEntry { key: b"n", operator, condition, expiry }];
        let (ticket, request) = (Ticket(node.tickets), Some(id(b"c", number)));
        let input = Input::Update { ticket, entries: &entries, ack: None, request, return_values };
        node.partition.step(input, &mut node.world);
        node.log_is_durable(node.partition.applied());
        let (of, answer) = node.world.done.pop().expect("answered");
        assert_eq!(of, ticket.0);
        let values = std::mem::take(&mut node.world.values);
        let told: Vec<_> = values.into_iter().filter(|(of, _)| *of == ticket.0).collect();
        (answer, told.into_iter().map(|(_, value)| value).collect::<Vec<_>>())
    };
    let add = Operator::Add(5);
    let (first, five) = update(&mut node, 1, add, true);
    assert_eq!(five, [b"5"]);
    let (second, ten) = update(&mut node, 2, add, true);
    assert_eq!(ten, [b"10"]);
    let (silent, none) = update(&mut node, 3, add, false);
    assert!(none.is_empty());
    update(&mut node, 4, Operator::Append(b" and text"), false).0.unwrap();
    let (wrong, _) = update(&mut node, 5, add, true);
    assert_eq!(wrong.as_ref().unwrap_err().reason, Reason::WrongType);
    node.answer(id(b"d", 1), WriteEntry::remove(b"n")).unwrap();
    let log = node.world.log.clone();
    for _ in 0..2 {
        assert_eq!(update(&mut node, 1, add, true), (first.clone(), vec![b"5".to_vec()]));
        assert_eq!(update(&mut node, 2, add, true), (second.clone(), vec![b"10".to_vec()]));
        assert_eq!(update(&mut node, 3, add, false), (silent.clone(), vec![]));
        assert_eq!(update(&mut node, 5, add, true), (wrong.clone(), vec![]));
        let (reused, _) = update(&mut node, 3, add, true);
        assert_eq!(reused.unwrap_err().reason, Reason::RequestIdReused);
        assert_eq!(node.world.log.len(), log.len());
        // Once more, from the log.
        let store = store(LIMITS, &Snapshot::default(), Sequence::ZERO, &log);
        node.partition = partition(store, true);
    }
    // More values than are remembered: told once, the rest of the answer as often as it is asked for.
    let long = vec![b'x'; REQUEST_VALUES_BYTES_MAX];
    let (appended, told) = update(&mut node, 6, Operator::Append(&long), true);
    assert_eq!(told, [&long[..]]);
    assert_eq!(update(&mut node, 6, Operator::Append(&long), true), (appended, vec![]));
}

#[test]
fn what_did_not_follow_from_the_records_is_tried_anew() {
    let mut node = Node::new(LIMITS);
    node.world.log_is_full = true;
    assert_eq!(node.answer(id(b"c", 1), put(b"v")).unwrap_err().reason, Reason::DiskFull);
    let conditional = put(b"v").under(Condition::IfVersion(Sequence(9)));
    // What cannot be recorded is not decided.
    assert_eq!(node.answer(id(b"c", 2), conditional).unwrap_err().reason, Reason::DiskFull);
    node.world.log_is_full = false;
    assert_eq!(node.answer(id(b"c", 1), put(b"v")).unwrap().0, Sequence(1));
    assert_eq!(node.answer(id(b"c", 2), conditional).unwrap_err().reason, Reason::ConditionFailed);
}

#[test]
fn an_id_belongs_to_one_request_and_numbers_that_are_forgotten_are_not_executed() {
    let mut node = Node::new(LIMITS);
    node.answer(id(b"c", 1), put(b"v")).unwrap();
    let other = node.answer(id(b"c", 1), put(b"w")).unwrap_err();
    assert_eq!(other.reason, Reason::RequestIdReused);
    assert_eq!(node.answer(id(b"d", 1), put(b"w")).unwrap().0, Sequence(2));
    for number in 2..10 {
        node.answer(id(b"c", number), put(b"v")).unwrap();
    }
    let forgotten = node.answer(id(b"c", 1), put(b"v")).unwrap_err();
    assert_eq!(forgotten.reason, Reason::RequestForgotten);
    assert_eq!(forgotten.metadata, [("forgotten".into(), "3".to_owned())]);
    assert_eq!(node.partition.requests().0.answers, 6);
}

#[test]
fn a_client_too_many_is_refused_until_one_has_been_idle_for_long() {
    let limits = RequestLimits { clients_max: 2, client_keep_ms: 1_000, ..LIMITS };
    let mut node = Node::new(limits);
    node.answer(id(b"a", 1), put(b"v")).unwrap();
    node.world.now += 600;
    node.answer(id(b"b", 1), put(b"v")).unwrap();
    let refusal = node.answer(id(b"c", 1), put(b"v")).unwrap_err();
    assert_eq!(refusal.reason, Reason::RequestClientsFull);
    assert!(refusal.retry_after_ms.is_some());
    assert_eq!(node.partition.applied(), Sequence(2), "nothing was written");
    node.answer(id(b"b", 2), put(b"v")).unwrap();
    node.world.now += 400;
    node.answer(id(b"c", 1), put(b"v")).unwrap();
    assert_eq!(node.partition.requests().0.clients, 2);
}

#[test]
fn without_a_clock_stage_there_are_no_request_ids() {
    let mut node = Node::new(LIMITS);
    let store = store(LIMITS, &Snapshot::default(), Sequence::ZERO, &[]);
    node.partition = partition(store, false);
    let refusal = node.answer(id(b"a", 1), put(b"v")).unwrap_err();
    assert_eq!(refusal.reason, Reason::InvalidRequestId);
}

#[derive(Clone, Debug)]
enum Step {
    /// A client's next request: an increment of the counter it read last, or of a stale one.
    Next { client: u8, stale: bool, settled: bool },
    /// A client sends an earlier request of its own again.
    Retry { client: u8, back: u8 },
    /// A client sends something else under an earlier number.
    Reuse { client: u8, back: u8 },
    /// The log becomes durable up to this share of what is not yet.
    Log(u8),
    /// The node dies; this share of what was not durable survives.
    Crash(u8),
    /// A snapshot; the next crash goes on from there.
    Snapshot,
    /// The state of the last snapshot replaces what there is.
    Restore,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let client = 0..3_u8;
    let step = prop_oneof![
        12 => (client.clone(), any::<bool>(), any::<bool>())
            .prop_map(|(client, stale, settled)| Step::Next { client, stale, settled }),
        12 => (client.clone(), 0..9_u8).prop_map(|(client, back)| Step::Retry { client, back }),
        2 => (client, 0..9_u8).prop_map(|(client, back)| Step::Reuse { client, back }),
        8 => any::<u8>().prop_map(Step::Log),
        2 => any::<u8>().prop_map(Step::Crash),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Restore),
    ];
    prop::collection::vec(step, 1..150)
}

/// What clients know.
#[derive(Default)]
struct Clients {
    /// Every request: the version that it is conditional on, and what it calls settled.
    requests: BTreeMap<(u8, u64), (Sequence, u64)>,
    /// Which request a ticket is of; none for one under a number of another.
    tickets: BTreeMap<u64, Option<(u8, u64)>>,
    /// What each was told.
    told: BTreeMap<(u8, u64), Answer>,
}

struct Run {
    node: Node,
    clients: Clients,
    snapshot: Snapshot,
    /// Sequences that a restore has taken back, of answers told before it.
    restored_to: Sequence,
}

impl Run {
    fn step(&mut self, step: Step) {
        let last = |clients: &Clients, client| {
            let of_client = clients.requests.range((client, 0)..=(client, u64::MAX));
            of_client.last().map_or(0, |((_, number), _)| *number)
        };
        match step {
            Step::Next { client, stale, settled } => {
                let number = last(&self.clients, client) + 1;
                let version = self.node.partition.applied();
                let version = Sequence(version.0 + u64::from(stale));
                let settled = if settled { number.saturating_sub(3) } else { 0 };
                self.clients.requests.insert((client, number), (version, settled));
                self.send(client, number, false);
            }
            Step::Retry { client, back } | Step::Reuse { client, back } => {
                let number = last(&self.clients, client).saturating_sub(back.into());
                if number > 0 {
                    self.send(client, number, matches!(step, Step::Reuse { .. }));
                }
            }
            Step::Log(share) => {
                let open = self.node.partition.applied().0 - self.node.durable.0;
                let durable = self.node.durable.0 + open * u64::from(share) / 255;
                self.node.log_is_durable(Sequence(durable));
            }
            Step::Crash(share) => self.crash(share),
            Step::Snapshot => {
                // It is published when the log is durable up to it.
                self.node.log_is_durable(self.node.partition.applied());
                self.snapshot = self.node.snapshot();
            }
            Step::Restore => self.restore(),
        }
        self.check();
    }

    fn send(&mut self, client: u8, number: u64, reuse: bool) {
        let (version, settled) = self.clients.requests[&(client, number)];
        let (name, value) = ([client + 1], number.to_le_bytes());
        // About half of the conditions hold: the counter's version is the last sequence or not.
        let entry = if reuse {
            WriteEntry::remove(b"elsewhere")
        } else if version.0.is_multiple_of(3) {
            put(&value)
        } else {
            put(&value).under(Condition::IfVersion(version))
        };
        let id = RequestId { client: &name, number, settled };
        let ticket = self.node.write(id, entry, None);
        self.clients.tickets.insert(ticket, (!reuse).then_some((client, number)));
    }

    fn crash(&mut self, share: u8) {
        let open = self.node.partition.applied().0 - self.node.durable.0;
        let survived = Sequence(self.node.durable.0 + open * u64::from(share) / 255);
        let log = &mut self.node.world.log;
        log.retain(|record| record.sequence <= survived);
        self.node.durable = survived;
        self.clients.tickets.clear();
        self.node.world.done.clear();
        let at = self.snapshot.sequence.max(self.restored_to);
        let store = store(LIMITS, &self.snapshot, at, log);
        assert_eq!(store.applied(), survived);
        self.node.partition = partition(store, true);
    }

    fn restore(&mut self) {
        self.node.log_is_durable(self.node.partition.applied());
        self.check();
        // Versions go on from the higher of the two histories.
        self.restored_to = self.node.partition.applied();
        let store = store(LIMITS, &self.snapshot, self.restored_to, &[]);
        self.node.partition = partition(store, true);
        // What came after the snapshot has not happened: it may be executed, and told otherwise.
        let kept = self.snapshot.sequence;
        let log = &mut self.node.world.log;
        log.retain(|record| record.sequence <= kept);
        let recorded: BTreeSet<(u8, u64)> = log.iter().filter_map(request_of).collect();
        self.clients.told.retain(|request, _| recorded.contains(request));
        self.snapshot.sequence = kept;
    }

    fn check(&mut self) {
        for (ticket, answer) in std::mem::take(&mut self.node.world.done) {
            let request = self.clients.tickets.remove(&ticket).expect("answered once");
            let reason = answer.as_ref().err().map(|refusal| refusal.reason);
            let Some(request) = request else {
                let expected = [Reason::RequestIdReused, Reason::RequestForgotten];
                // Unless the original is lost, and this came first.
                if !reason.is_some_and(|reason| expected.contains(&reason)) {
                    let place = self
                        .node
                        .world
                        .log
                        .iter()
                        .find(|r| Some(r.sequence) == answer.as_ref().ok().map(|a| a.0));
                    assert!(place.is_some_and(|r| r.entries[0].0 == b"elsewhere"), "{answer:?}");
                }
                continue;
            };
            match reason {
                Some(Reason::RequestForgotten | Reason::RequestIdReused) => continue,
                None | Some(Reason::ConditionFailed) => {}
                other => panic!("{request:?} was refused with {other:?}"),
            }
            if let Ok((sequence, _)) = &answer {
                assert!(*sequence <= self.node.durable, "acknowledged too early");
            }
            let told = self.clients.told.entry(request).or_insert_with(|| answer.clone());
            assert_eq!(*told, answer, "{request:?} was told something else before");
        }
        let mut seen = BTreeSet::new();
        for request in self.node.world.log.iter().filter_map(request_of) {
            assert!(seen.insert(request), "{request:?} was executed twice");
        }
    }
}

fn request_of(record: &Logged) -> Option<(u8, u64)> {
    let (mark, _) = RequestMark::decode(record.mark.as_ref()?).unwrap();
    Some((mark.id.client[0] - 1, mark.id.number))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn every_request_is_executed_once_and_told_one_answer(steps in steps()) {
        let (node, clients) = (Node::new(LIMITS), Clients::default());
        let (snapshot, restored_to) = (Snapshot::default(), Sequence::ZERO);
        let mut run = Run { node, clients, snapshot, restored_to };
        steps.into_iter().for_each(|step| run.step(step));
        run.node.log_is_durable(run.node.partition.applied());
        run.check();
        prop_assert!(run.clients.tickets.is_empty(), "an answer is missing");
        let told = run.clients.told.values().filter(|answer| answer.is_ok()).count();
        let logged = run.node.world.log.iter().filter(|record| !record.entries.is_empty()).count();
        prop_assert!(told <= logged);
    }
}
