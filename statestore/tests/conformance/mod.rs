//! The one suite that every state store passes.
//!
//! A store is driven through random steps side by side with a model, a `BTreeMap`: batches, reads,
//! fetches, work that is taken, run and finished in any order with the rest, snapshots while
//! writes go on, loads, the reclaiming of expired records. A new store calls [`check`] with a way to make an empty one.
//!
//! A failure prints the seed and the smallest failing steps; `STATESIDE_TEST_SEED` replays it,
//! `STATESIDE_TEST_EFFORT` multiplies the cases.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, RandomState},
    ops::Bound,
};

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, RngSeed, TestRunner},
};
use stateside_statestore::{
    Lookup, PageRequest, PageStep, RequestLimits, RequestWindow, SnapshotRecord, SnapshotStep,
    StateStore, Work, WorkDone,
};
use stateside_types::{
    Change, ExpireAt, Expiry, Reason, Record, Refusal, RequestId, RequestMark, Sequence, Timestamp,
    WallClock, WriteEntry, limits,
};

/// So few that they are reached.
const REQUESTS: RequestLimits =
    RequestLimits { answers_max: 20, clients_max: 5, client_keep_ms: 0 };

type Stored = (Vec<u8>, Sequence, Timestamp, Option<ExpireAt>);
type Records = BTreeMap<Vec<u8>, Stored>;

/// What a step puts: the value's length and first byte, and how long from now on it exists.
type Put = (usize, u8, Option<u16>);

/// What one step does. Numbers are reduced to what makes sense when the step runs.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Applies a batch: keys and what is put; None removes. With the number of a client: of a request with
    /// an id.
    Apply(Vec<(u16, Option<Put>)>, Option<u8>),
    /// Records that a client's request was refused: a batch without entries.
    Refuse(u8),
    /// Time passes, milliseconds.
    Time(u16),
    /// So many expired records may be reclaimed.
    Reclaim(u8),
    /// The log becomes durable up to this many batches below the last one.
    Durable(u8),
    /// Reads keys without blocking.
    Get(Vec<u16>),
    /// Fetches keys that are unknown.
    Fetch(Vec<u16>),
    /// Drops what was fetched.
    Forget,
    /// Takes the next work, if none is under way.
    TakeWork,
    /// Runs the work that was taken.
    RunWork,
    /// Hands its outcome back.
    FinishWork,
    /// Takes, runs and finishes work until there is none.
    RunDry,
    /// Asks the store to cover what it applied.
    Cover,
    /// Reads a page from one key to another, of at most so many records and bytes.
    Page(u16, u16, usize, usize),
    /// Starts a snapshot, abandoning one under way.
    SnapshotStart,
    /// One step of it.
    SnapshotNext(usize),
    /// Abandons it.
    SnapshotEnd,
    /// Loads this many records, some of them through abandoned attempts.
    Load(u16),
}

/// Sizes of keys and values that the store at hand should meet.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// How many cases to run.
    pub(crate) cases: u32,
    /// Most steps in a case.
    pub(crate) steps: usize,
    /// Keys to choose from.
    pub(crate) keys: u16,
    /// Longest value.
    pub(crate) value_bytes_max: usize,
}

fn step(shape: Shape) -> impl Strategy<Value = Step> {
    let key = 0..shape.keys;
    let value = prop_oneof![
        6 => 0..200usize,
        2 => 80..120usize,
        1 => 0..=shape.value_bytes_max,
    ];
    let ttl_ms = proptest::option::weighted(0.3, 1..2_000u16);
    let entry = (key.clone(), proptest::option::weighted(0.75, (value, any::<u8>(), ttl_ms)));
    let budget = prop_oneof![Just(0), 1..2_000usize, Just(1 << 20)];
    prop_oneof![
        10 => (vec(entry, 1..40), proptest::option::of(0..9_u8))
            .prop_map(|(entries, client)| Step::Apply(entries, client)),
        2 => (0..9_u8).prop_map(Step::Refuse),
        4 => (0..6u8).prop_map(Step::Durable),
        3 => vec(key.clone(), 1..20).prop_map(Step::Get),
        3 => vec(key.clone(), 1..20).prop_map(Step::Fetch),
        3 => (key.clone(), key, 1..60usize, 0..20_000usize)
            .prop_map(|(from, to, records, bytes)| Step::Page(from, to, records, bytes)),
        1 => Just(Step::Forget),
        6 => Just(Step::TakeWork),
        6 => Just(Step::RunWork),
        6 => Just(Step::FinishWork),
        2 => Just(Step::RunDry),
        1 => Just(Step::Cover),
        1 => Just(Step::SnapshotStart),
        6 => budget.prop_map(Step::SnapshotNext),
        1 => Just(Step::SnapshotEnd),
        1 => (0..300u16).prop_map(Step::Load),
        3 => (0..1_000u16).prop_map(Step::Time),
        3 => any::<u8>().prop_map(Step::Reclaim),
    ]
}

/// Key number `number`: short, long and shared-prefix ones.
pub(crate) fn key(number: u16) -> Vec<u8> {
    let mut key = format!("key/{number:05}").into_bytes();
    match number % 97 {
        0 => key.resize(limits::KEY_BYTES_MAX, b'x'),
        1..8 => key.resize(40 + number as usize % 200, 0),
        8..20 => key = number.to_be_bytes().to_vec(),
        _ => {}
    }
    key
}

fn value(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| seed.wrapping_add(i as u8)).collect()
}

enum WorkState {
    None,
    Taken(Work),
    Ran(WorkDone),
}

struct Snapshot {
    expected: Records,
    seen: Records,
}

/// A store, its model, and what is under way.
pub(crate) struct Harness<S> {
    store: S,
    model: Records,
    /// What the store must know of requests.
    requests: RequestWindow,
    durable: Sequence,
    /// Rises with every batch, and as time passes.
    timestamp: Timestamp,
    work: WorkState,
    /// Keys whose fetch waits for work to be taken, is in the work under way, is done.
    fetches: [BTreeSet<Vec<u8>>; 3],
    snapshot: Option<Snapshot>,
}

impl<S: StateStore> Harness<S> {
    /// Of an empty store.
    pub(crate) fn new(mut store: S) -> Self {
        store.limit_requests(REQUESTS);
        let mut requests = RequestWindow::default();
        requests.set_limits(REQUESTS);
        assert_eq!((store.applied(), store.stats().records), (Sequence::ZERO, 0));
        Self {
            store,
            model: Records::new(),
            requests,
            durable: Sequence::ZERO,
            timestamp: Timestamp::from_wall(WallClock(1)),
            work: WorkState::None,
            fetches: Default::default(),
            snapshot: None,
        }
    }

    /// Does one step and checks what it can.
    pub(crate) fn step(&mut self, step: &Step) {
        match step {
            Step::Apply(entries, client) => self.apply(entries, *client),
            Step::Refuse(client) => self.refuse(*client),
            Step::Durable(lag) => {
                let target = self.store.applied().0.saturating_sub(u64::from(*lag));
                self.durable = self.durable.max(Sequence(target));
            }
            Step::Get(keys) => keys.iter().for_each(|number| self.check_get(&key(*number))),
            Step::Fetch(keys) => {
                let keys: Vec<Vec<u8>> = keys.iter().map(|number| key(*number)).collect();
                self.store.fetch(&keys.iter().map(Vec::as_slice).collect::<Vec<_>>());
                self.fetches[0].extend(keys);
            }
            Step::Forget => {
                self.store.forget_fetched();
                self.fetches[2].clear();
            }
            Step::TakeWork => self.take_work(),
            Step::RunWork => self.run_work(),
            Step::FinishWork => self.finish_work(),
            Step::RunDry => self.run_dry(),
            Step::Cover => self.store.cover(),
            Step::Page(from, to, records_max, bytes_max) => {
                let bound = |number: u16| match number % 3 {
                    0 => Bound::Included(key(number).into()),
                    1 => Bound::Excluded(key(number).into()),
                    _ => Bound::Unbounded,
                };
                let (records_max, bytes_max) = (*records_max, *bytes_max);
                let (from, to) = (bound(*from), bound(*to));
                self.check_page(&PageRequest { from, to, records_max, bytes_max });
            }
            Step::SnapshotStart => {
                self.store.snapshot_start();
                let expected = self.model.clone();
                self.snapshot = Some(Snapshot { expected, seen: Records::new() });
            }
            Step::SnapshotNext(budget) => {
                self.snapshot_next(*budget);
            }
            Step::SnapshotEnd => {
                self.store.snapshot_end();
                self.snapshot = None;
            }
            Step::Load(count) => self.load(*count),
            Step::Time(ms) => {
                let now = self.timestamp.millis() + u64::from(*ms);
                self.timestamp = self.timestamp.max(Timestamp::from_wall(WallClock(now)));
            }
            Step::Reclaim(most) => self.reclaim((*most).into()),
        }
        assert!(self.store.covered() <= self.durable, "covered what the log may lose");
        assert_eq!(self.store.requests().stats(), self.requests.stats());
        self.fetches[2].iter().for_each(|key| self.check_get(key));
    }

    /// Many keys at once are found as each alone.
    fn check_get_all(&self, keys: &[&[u8]]) {
        let mut left = keys.iter();
        self.store.get_all(keys, &mut |key, found| {
            assert_eq!(Some(&key), left.next(), "in their order");
            assert_eq!(found, &self.store.get(key));
        });
        assert_eq!(left.next(), None, "none is left out");
    }

    /// The store is told of a request of this client, with the batch that comes next.
    fn remember(&mut self, client: u8, is_refused: bool) {
        let refusal =
            is_refused.then(|| Refusal::new(Reason::ConditionFailed, "no").with("entry", 3).into());
        let (sequence, timestamp) = (self.store.applied().next(), self.timestamp);
        let settled = if client.is_multiple_of(2) { sequence.0.saturating_sub(9) } else { 0 };
        let id = RequestId { client: &[client], number: sequence.0, settled };
        let mark = RequestMark { refusal, ..RequestMark::new(id, !sequence.0) };
        self.requests.record(sequence, timestamp, &mark, &mut |_| {});
        self.store.remember(sequence, timestamp, &mark);
    }

    fn refuse(&mut self, client: u8) {
        if self.store.is_saturated() {
            return;
        }
        self.timestamp.0 += 3;
        let sequence = self.store.applied().next();
        self.remember(client, true);
        self.store.apply(sequence, self.timestamp, &[]);
        assert_eq!(self.store.applied(), sequence);
    }

    fn apply(&mut self, entries: &[(u16, Option<Put>)], client: Option<u8>) {
        if self.store.is_saturated() {
            return;
        }
        let put = |(len, seed, ttl_ms): Put| {
            let expiry = match ttl_ms {
                None => Expiry::Never,
                // Both ways to say it: as a request does, and as the log does.
                Some(ttl_ms) if ttl_ms % 2 == 0 => Expiry::After(ttl_ms.into()),
                Some(ttl_ms) => {
                    let moment = self.timestamp.millis() + u64::from(ttl_ms);
                    ExpireAt::from_millis(moment).into()
                }
            };
            (self.value(len, seed), expiry)
        };
        let entries: BTreeMap<Vec<u8>, Option<(Vec<u8>, Expiry)>> =
            entries.iter().map(|(number, entry)| (key(*number), entry.map(put))).collect();
        let borrowed: Vec<WriteEntry<'_>> = entries
            .iter()
            .map(|(key, put)| match put {
                Some((value, expiry)) => WriteEntry::put(key, value).expiring(*expiry),
                None => WriteEntry::remove(key),
            })
            .collect();
        let keys: Vec<&[u8]> = entries.keys().map(Vec::as_slice).collect();
        let sequence = self.store.applied().next();
        self.timestamp.0 += 3;
        let timestamp = self.timestamp;

        if let Some(client) = client {
            self.remember(client, false);
        }
        let before = self.store.stats().memory_bytes as i64;
        let (mut most, growth) = (self.store.growth_max(&borrowed), self.store.growth(&borrowed));
        assert!(growth <= most as i64, "growth {growth} is above its bound {most}");
        if borrowed.iter().all(|entry| entry.change == Change::Remove) {
            assert!(growth <= 0 || !self.is_in_memory(), "removing grew by {growth}");
        }
        if client.is_some() {
            most += RequestWindow::GROWTH_MAX;
        }
        self.check_get_all(&keys);
        self.store.apply(sequence, timestamp, &borrowed);
        self.check_get_all(&keys);
        let grown = self.store.stats().memory_bytes as i64 - before;
        assert!(grown <= most as i64, "memory grew by {grown}, the bound was {most}");

        assert_eq!(self.store.applied(), sequence);
        assert_eq!(self.store.applied_timestamp(), timestamp);
        for (key, value) in entries {
            match value {
                Some((value, expiry)) => {
                    let stored = (value, sequence, timestamp, expiry.fixed_by(timestamp));
                    self.model.insert(key, stored)
                }
                None => self.model.remove(&key),
            };
        }
    }

    /// What the store at hand can hold: any bytes, or the text of an integer.
    fn value(&self, len: usize, seed: u8) -> Vec<u8> {
        if self.store.kind() == "counters" {
            let number = (len as i64 - 100).wrapping_mul(i64::from(seed) << (seed % 56));
            return number.to_string().into_bytes();
        }
        value(len, seed)
    }

    fn now(&self) -> WallClock {
        WallClock(self.timestamp.millis())
    }

    fn is_expired(&self, stored: &Stored) -> bool {
        stored.3.is_some_and(|moment| moment.has_come(self.now()))
    }

    fn reclaim(&mut self, records_max: usize) {
        let before = self.store.stats();
        let reclaimed = self.store.reclaim(self.now(), records_max);
        let after = self.store.stats();
        assert!(reclaimed.records <= records_max);
        assert_eq!(after.records, before.records - reclaimed.records as u64);
        assert_eq!(after.reclaimed, before.reclaimed + reclaimed.records as u64);
        assert!(reclaimed.newest <= self.store.applied());
    }

    fn check_get(&self, key: &[u8]) {
        // An expired record may be there or not, but never as something else.
        let expected = self.model.get(key);
        match self.store.get(key) {
            Lookup::Found(record) => {
                let found = owned(record);
                // What was fetched before its moment stays known; the model has let go of it.
                let forgotten = expected.is_none() && self.is_expired(&found);
                assert!(forgotten || Some(&found) == expected, "{} differs", start_of(key));
            }
            Lookup::Absent => {
                assert_eq!(None, expected.filter(|stored| !self.is_expired(stored)));
            }
            Lookup::Unknown => {
                assert!(!self.fetches[2].contains(key), "a fetched key is unknown");
                assert!(!self.is_in_memory());
            }
            Lookup::Withheld { .. } => panic!("this test fetches little"),
        }
    }

    /// Reads a page, through the disk if need be, and compares it. Where it ends.
    fn check_page(&mut self, request: &PageRequest) -> Option<Box<[u8]>> {
        let mut seen = Vec::new();
        let mut step = self.store.page(request, &mut |SnapshotRecord { key, record }| {
            seen.push((key.to_vec(), owned(record)));
        });
        if step == PageStep::Unordered {
            assert!(seen.is_empty());
            return None;
        }
        if step == PageStep::Unknown {
            assert!(seen.is_empty() && !self.is_in_memory());
            self.run_work();
            self.finish_work();
            self.store.fetch_page(request);
            self.take_work();
            assert!(!matches!(self.work, WorkState::None), "a page wanted is work");
            self.run_work();
            self.finish_work();
            step = self.store.page(request, &mut |SnapshotRecord { key, record }| {
                seen.push((key.to_vec(), owned(record)));
            });
        }
        let (last, to) = match step {
            PageStep::End => (None, request.to.clone()),
            PageStep::More(last) => (Some(last.clone()), Bound::Included(last)),
            other => panic!("a page that was fetched is {other:?}"),
        };
        let covered = PageRequest { to, ..request.clone() };
        let expected: Vec<_> = if covered.is_empty() {
            Vec::new()
        } else {
            let range = self.model.range::<[u8], _>(covered.bounds());
            let range = range.filter(|(_, stored)| !self.is_expired(stored));
            range.map(|(key, stored)| (key.clone(), stored.clone())).collect()
        };
        let handed_out = seen.len();
        seen.retain(|(_, stored)| !self.is_expired(stored));
        assert!(seen == expected, "{covered:?} has {} records, not {}", seen.len(), expected.len());
        assert!(handed_out <= request.records_max, "{handed_out} records");
        last
    }

    /// What the store knows of requests, row by row.
    fn check_requests(&self) {
        assert_eq!(request_rows(self.store.requests()), request_rows(&self.requests));
    }

    fn is_in_memory(&self) -> bool {
        let kind = self.store.kind();
        kind.starts_with("memory") || kind == "counters"
    }

    fn take_work(&mut self) {
        if matches!(self.work, WorkState::None) {
            if let Some(work) = self.store.take_work(self.durable) {
                self.work = WorkState::Taken(work);
                self.fetches[1] = std::mem::take(&mut self.fetches[0]);
            } else {
                assert!(self.fetches[0].is_empty() || self.is_in_memory());
            }
        } else {
            assert!(self.store.take_work(self.durable).is_none(), "two works at a time");
        }
    }

    fn run_work(&mut self) {
        self.work = match std::mem::replace(&mut self.work, WorkState::None) {
            WorkState::Taken(work) => WorkState::Ran(work()),
            other => other,
        };
    }

    fn finish_work(&mut self) {
        self.work = match std::mem::replace(&mut self.work, WorkState::None) {
            WorkState::Ran(done) => {
                self.store.finish_work(done).expect("the disk is fine");
                self.fetches[2].append(&mut self.fetches[1].clone());
                let fetched = std::mem::take(&mut self.fetches[1]);
                fetched.iter().for_each(|key| self.check_get(key));
                WorkState::None
            }
            other => other,
        };
    }

    /// Does the store's work until there is none.
    pub(crate) fn run_dry(&mut self) {
        loop {
            self.run_work();
            self.finish_work();
            self.take_work();
            if matches!(self.work, WorkState::None) {
                return;
            }
        }
    }

    fn snapshot_next(&mut self, budget: usize) -> bool {
        let Some(snapshot) = &mut self.snapshot else { return true };
        let mut handed_out = 0;
        let step = self.store.snapshot_next(budget, &mut |record| {
            handed_out += record.key.len() + record.record.value.len();
            let twice = snapshot.seen.insert(record.key.to_vec(), owned(record.record));
            assert_eq!(twice, None, "{} was handed out twice", start_of(record.key));
        });
        let step = step.expect("the disk is fine");
        let most = budget + limits::KEY_BYTES_MAX + limits::BATCH_BYTES_MAX;
        assert!(handed_out <= most, "{handed_out} bytes on a budget of {budget}");
        if step != SnapshotStep::Done {
            return false;
        }
        let Some(Snapshot { mut expected, seen }) = self.snapshot.take() else { return true };
        expected.retain(|key, stored| seen.contains_key(key) || !self.is_expired(stored));
        assert_eq!(seen, expected, "the snapshot is not the state at its start");
        self.store.snapshot_end();
        true
    }

    /// Everything the store holds, by a snapshot.
    fn whole_snapshot(&mut self, budget: usize) -> Records {
        self.durable = self.store.applied();
        self.step(&Step::SnapshotStart);
        let mut seen = Records::new();
        loop {
            let step = self.store.snapshot_next(budget, &mut |record| {
                assert!(seen.insert(record.key.to_vec(), owned(record.record)).is_none());
            });
            match step.expect("the disk is fine") {
                SnapshotStep::More => {}
                SnapshotStep::Wait => {
                    self.take_work();
                    assert!(
                        !matches!(self.work, WorkState::None),
                        "waits for work it does not have"
                    );
                    self.run_work();
                    self.finish_work();
                }
                SnapshotStep::Done => break,
            }
        }
        self.store.snapshot_end();
        self.snapshot = None;
        seen
    }

    /// Loads `count` new records over whatever the store holds.
    fn load(&mut self, count: u16) {
        // A restore begins with a partition at rest.
        self.finish_everything();
        self.step(&Step::Forget);
        let sequence = Sequence(self.store.applied().0 + 1_000);
        self.timestamp.0 += 1_000;
        let timestamp = self.timestamp;
        let now = timestamp.millis();
        self.model = (0..count)
            .map(|number| {
                let version = Sequence(u64::from(number) % sequence.0 + 1);
                // Some expire, some of them have done so before they are loaded.
                let moment = (number % 4 == 0).then_some((now + u64::from(number)) / 2 + 1);
                let expire_at = moment.and_then(ExpireAt::from_millis);
                let stored =
                    (self.value(number as usize % 300, 9), version, Timestamp(5), expire_at);
                (key(number * 7), stored)
            })
            .collect();
        let model = self.model.clone();
        let records: Vec<SnapshotRecord<'_>> = model
            .iter()
            .map(|(key, stored)| SnapshotRecord { key, record: borrowed(stored) })
            .collect();
        self.store.load_start();
        // An attempt that is given up leaves nothing behind.
        self.store.load(&records[..records.len() / 3]);
        self.store.load_start();
        for chunk in records.chunks(50) {
            if !self.store.load(chunk) {
                self.run_dry();
            }
        }
        // What a snapshot has of requests; those of before the load are none of its.
        let mut loaded = RequestWindow::default();
        loaded.set_limits(REQUESTS);
        self.requests.rows(|row| {
            if row.sequence().0 % 2 == 0 {
                loaded.load(&row);
                self.store.load_request(&row);
            }
        });
        self.requests = loaded;
        self.store.load_end(sequence, timestamp);
        self.durable = sequence;
        self.run_dry();
        assert_eq!(self.store.applied(), sequence);
        assert_eq!(self.store.applied_timestamp(), timestamp);
    }

    /// What has expired can be taken out to the last record, a few at a time, and nothing else.
    fn check_reclaimed(&mut self) {
        let live = self.model.values().filter(|stored| !self.is_expired(stored)).count() as u64;
        let mut before = u64::MAX;
        while self.store.stats().records < before {
            before = self.store.stats().records;
            assert!(before >= live, "a record was reclaimed before its moment");
            self.reclaim(7);
            self.run_dry();
        }
        assert_eq!(before, live, "expired records stay");
        let now = self.now();
        self.model.retain(|_, stored| !stored.3.is_some_and(|moment| moment.has_come(now)));
    }

    fn finish_everything(&mut self) {
        self.durable = self.store.applied();
        if self.snapshot.take().is_some() {
            self.store.snapshot_end();
        }
        self.store.cover();
        self.run_dry();
    }

    /// Compares all of it, after the last step.
    pub(crate) fn check_all(&mut self, budget: usize) {
        self.finish_everything();
        self.check_reclaimed();
        if !self.is_in_memory() {
            assert_eq!(self.store.covered(), self.store.applied(), "asked to cover everything");
        }
        let payload: usize =
            self.model.iter().map(|(key, stored)| key.len() + stored.0.len()).sum();
        self.check_requests();
        let stats = self.store.stats();
        assert_eq!((stats.records, stats.payload_bytes), (self.model.len() as u64, payload as u64));
        assert_eq!(self.whole_snapshot(budget), self.model);
        let keys: Vec<Vec<u8>> = self.model.keys().cloned().collect();
        self.store.fetch(&keys.iter().map(Vec::as_slice).collect::<Vec<_>>());
        self.fetches[0].extend(keys);
        self.run_dry();
        let model = self.model.clone();
        model.keys().for_each(|key| self.check_get(key));
        // All of it page by page: each is compared, and each gets further.
        let mut from = Bound::Unbounded;
        loop {
            let request =
                PageRequest { from, to: Bound::Unbounded, records_max: 7, bytes_max: 1 << 20 };
            match self.check_page(&request) {
                None => return,
                Some(last) => {
                    assert!(request.bounds().0 != Bound::Excluded(&*last), "no further");
                    from = Bound::Excluded(last);
                }
            }
        }
    }
}

/// The rows of a window, as they are written.
pub(crate) fn request_rows(window: &RequestWindow) -> Vec<Vec<u8>> {
    let mut rows = Vec::new();
    window.rows(|row| {
        let mut bytes = Vec::new();
        row.encode(&mut bytes);
        rows.push(bytes);
    });
    rows
}

/// Enough of a key to know it by.
fn start_of(key: &[u8]) -> String {
    String::from_utf8_lossy(&key[..key.len().min(16)]).into_owned()
}

fn owned(record: Record<'_>) -> Stored {
    (record.value.to_vec(), record.version, record.timestamp, record.expire_at)
}

fn borrowed(stored: &Stored) -> Record<'_> {
    let (value, version, timestamp, expire_at) = stored;
    Record { value, version: *version, timestamp: *timestamp, expire_at: *expire_at }
}

/// Runs random steps against stores that `make` makes. Each case gets its own store.
pub(crate) fn check<S: StateStore>(shape: Shape, make: impl Fn() -> S) {
    let seed = match std::env::var("STATESIDE_TEST_SEED") {
        Ok(text) => text.parse().expect("STATESIDE_TEST_SEED is a number"),
        Err(_) => RandomState::new().hash_one(0),
    };
    let effort: u32 = match std::env::var("STATESIDE_TEST_EFFORT") {
        Ok(text) => text.parse().expect("STATESIDE_TEST_EFFORT is a number"),
        Err(_) => 1,
    };
    println!("replay with STATESIDE_TEST_SEED={seed}");
    let config = Config {
        cases: shape.cases * effort,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 2_000,
        ..Config::default()
    };
    let steps = vec(step(shape), 1..shape.steps);
    let result = TestRunner::new(config).run(&steps, |steps| {
        let mut harness = Harness::new(make());
        steps.iter().for_each(|step| harness.step(step));
        harness.check_all(500);
        Ok(())
    });
    if let Err(error) = result {
        panic!("seed {seed}: {error}");
    }
}
