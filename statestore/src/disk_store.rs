//! Stores on disk: a core half that answers from memory, and work that calls an engine.
//!
//! What is here is the same for every engine: the overlay of batches that are not on disk yet, what a
//! partition's tree holds, snapshots, loads, and getting over a full disk. An engine
//! implements [`Database`] and [`Tree`], in one file: `sled_database.rs`, `lsm_database.rs`.
//!
//! ```text
//!            ┌ core's thread ──────────────────────────┐          ┌ blocking pool ────────────┐
//!   apply ──►│ overlay: batches not covered yet ───────┼─ write ─►│ records + meta, one batch │
//!   get ────►│ overlay, then what was fetched, else    │◄─ fetch ─┤ lookups                   │
//!            │ Unknown                                 │◄─ scan ──┤ snapshot chunks           │
//!            │ covered ◄───────────────────────────────┼─ flush ──┤ fdatasync, for all at once│
//!            └─────────────────────────────────────────┘          └───────────────────────────┘
//!   applied ≥ written ≥ covered           accepted ≥ engine has it ≥ engine has it on disk
//! ```
//! A batch stays in the overlay until it is covered, so that nothing is lost when the engine must be
//! reopened (see `engine.rs`).
//!
//! A snapshot begins when the tree stands exactly at its sequence: writes beyond wait until then.
//! From there on the tree is scanned in key order, and a write that overwrites a record ahead of the
//! scan brings the old one back to be handed out from memory.
//!
//! Expired records are taken out by work of its own, which changes nothing that anyone can see (see
//! `store.rs`): it is not in the overlay, needs no flush, and what a crash takes back of it is done again.

mod engine;
mod overlay;
mod page;
mod requests;
mod tree;

use std::{
    collections::{BTreeMap, VecDeque},
    mem::size_of,
    sync::Arc,
};

use stateside_types::{
    Change, Record, RequestMark, Sequence, Timestamp, WallClock, WriteEntry,
    limits::{STORE_FETCH_BYTES_MAX, STORE_LOAD_BYTES_MAX, STORE_OVERLAY_BYTES_MAX},
};

pub use self::engine::{Change as TreeChange, Database, DiskEngine, DiskLimits, EngineError, Tree};
#[cfg(feature = "lsm")]
pub(crate) use self::tree::holds_record;
use self::{
    engine::{Stamp, TreeAccess, TreeSession, WriteFate},
    overlay::{Overlay, OverlayBatch},
    page::Page,
    requests::RequestLine,
    tree::{KeepRule, KeyedLookup, KeyedRecord, Meta, Scanned, StoredRecord, Written},
};
use crate::{
    Lookup, PageRequest, PageStep, Reclaimed, RequestChange, RequestLimits, RequestRow,
    RequestWindow, SnapshotRecord, SnapshotStep, StateStore, StoreError, StoreStats, Work,
    WorkDone,
};

/// Batches of one write: enough to make the engine's batch worthwhile, few enough to end soon.
const WRITE_BYTES: usize = 1 << 20;
/// Uncovered batches above which a write is followed by a flush.
const FLUSH_BYTES: usize = STORE_OVERLAY_BYTES_MAX / 8;
/// Old records kept for a snapshot above which writes wait for it.
const KEPT_BYTES_MAX: usize = STORE_OVERLAY_BYTES_MAX;
/// Smallest and largest piece that a scan reads at once.
const SCAN_BYTES: std::ops::RangeInclusive<usize> = 4 << 10..=1 << 20;
/// What a record held in memory on its way costs beside its bytes, roughly.
const HELD_RECORD_BYTES: usize = size_of::<KeyedRecord>() + 16;

/// Records of one partition in an engine. Owned by the partition, used on its core's thread; work
/// taken from it runs elsewhere.
pub struct DiskStore<D: Database> {
    tree: Arc<TreeAccess<D>>,
    overlay: Overlay,
    requests: RequestWindow,
    /// What the batch that is applied next changes of `requests`.
    remembered: Vec<RequestLine>,
    applied: Sequence,
    applied_timestamp: Timestamp,
    /// What the tree holds, as of the last finished work.
    meta: Meta,
    written: Sequence,
    covered: Sequence,
    /// Writes that are not known to be covered, oldest first.
    uncovered: VecDeque<(Sequence, Stamp)>,
    cover_asked: bool,
    /// What the next work is to reclaim: by which time, and how many records at most.
    expired: Option<(WallClock, usize)>,
    reclaimed: u64,
    busy: bool,
    fetch_queue: Vec<Box<[u8]>>,
    fetched: BTreeMap<Box<[u8]>, Option<StoredRecord>>,
    fetched_bytes: usize,
    page_wanted: Option<PageRequest>,
    /// The page that the last fetch brought, as the tree had it.
    page: Option<(PageRequest, Page)>,
    load: Option<Load>,
    scan: Option<Scan>,
    /// Counts scans and loads: tells the outcome of an abandoned one from the present one's.
    attempts: u64,
    /// What the last work did: the next does something else if there is anything.
    last: LastWork,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum LastWork {
    #[default]
    Other,
    FetchAlone,
    Scan,
}

/// A load under way. Everything in the queue becomes work in its order.
struct Load {
    number: u64,
    queue: VecDeque<LoadStep>,
    filling: Vec<KeyedRecord>,
    filling_bytes: usize,
    queued_bytes: usize,
    chunks: u64,
    /// `load_end` was called.
    ended: bool,
}

enum LoadStep {
    Start,
    Chunk { number: u64, bytes: usize, records: Arc<Vec<KeyedRecord>> },
    End { chunks: u64, applied: Sequence, timestamp: Timestamp, requests: Box<[RequestLine]> },
}

struct Scan {
    number: u64,
    sequence: Sequence,
    /// It cannot go on: the engine did not read, or was reopened, and what was kept may be kept twice.
    disturbed: bool,
    cursor: Option<Box<[u8]>>,
    reached_end: bool,
    /// Bytes to read next; 0 when none are wanted.
    wanted: usize,
    ready: VecDeque<KeyedRecord>,
    ready_bytes: usize,
    /// How much of `ready_bytes` was kept by writes.
    kept_bytes: usize,
}

/// What one piece of work does, on the blocking pool.
struct Task {
    fetch: Vec<Box<[u8]>>,
    fetch_bytes: usize,
    page: Option<PageRequest>,
    action: Action,
}

enum Action {
    Nothing,
    Load { number: u64, step: LoadStep },
    Write { batches: Vec<Arc<OverlayBatch>>, keep: Option<KeepRule>, scan: u64, flush: bool },
    Scan { number: u64, after: Option<Box<[u8]>>, sequence: Sequence, bytes: usize },
    Flush { number: u64 },
    Reclaim { now: WallClock, records_max: usize },
}

/// What it brought. A part that failed gives back what it needs to be tried again.
struct TaskDone {
    fetched: Vec<KeyedLookup>,
    page: Option<(PageRequest, Page)>,
    outcome: Outcome,
    /// What kept it from writing or scanning.
    error: Option<StoreError>,
    /// What kept it from fetching.
    fetch_error: Option<StoreError>,
}

enum Outcome {
    Nothing,
    LoadFailed { number: u64, step: LoadStep },
    Loaded { number: u64, step: LoadStep, meta: Meta, stamp: Option<Stamp> },
    Written { scan: u64, written: Written },
    Scanned { number: u64, scanned: Scanned },
    ScanFailed { number: u64 },
    Reclaimed { meta: Meta, records: u64 },
}

impl<D: Database> DiskStore<D> {
    fn new(tree: TreeAccess<D>, meta: Meta, requests: RequestWindow) -> Self {
        Self {
            tree: Arc::new(tree),
            overlay: Overlay::default(),
            requests,
            remembered: Vec::new(),
            applied: meta.applied,
            applied_timestamp: meta.timestamp,
            meta,
            written: meta.applied,
            // Opening the engine flushed what it found.
            covered: meta.applied,
            uncovered: VecDeque::new(),
            cover_asked: false,
            expired: None,
            reclaimed: 0,
            busy: false,
            fetch_queue: Vec::new(),
            fetched: BTreeMap::new(),
            fetched_bytes: 0,
            page_wanted: None,
            page: None,
            load: None,
            scan: None,
            attempts: 0,
            last: LastWork::Other,
        }
    }

    /// Takes note of what flushes have covered meanwhile, those of other partitions too.
    fn note_covered(&mut self) {
        while let Some((sequence, stamp)) = self.uncovered.front().copied() {
            match self.tree.fate(stamp) {
                WriteFate::Open => break,
                WriteFate::Covered => {
                    self.covered = sequence;
                    self.uncovered.pop_front();
                }
                WriteFate::Uncertain => {
                    // Write again what the engine may have lost; it tells which batches it still has.
                    self.uncovered.clear();
                    self.written = self.covered;
                    if let Some(scan) = &mut self.scan {
                        scan.disturbed = true;
                    }
                }
            }
        }
        let Self { overlay, fetched, fetched_bytes, covered, .. } = self;
        overlay.drop_up_to(*covered, |key, record| {
            if let Some(known) = fetched.get_mut(key) {
                // What was fetched is older than what only the overlay knew until now.
                *fetched_bytes -= held_bytes(key, known.as_ref());
                *known = record.map(stored);
                *fetched_bytes += held_bytes(key, known.as_ref());
            }
        });
        if self.covered == self.applied {
            self.cover_asked = false;
        }
    }

    fn note_written(&mut self, sequence: Sequence, stamp: Stamp) {
        self.written = sequence;
        match self.uncovered.back_mut() {
            Some((last, same)) if *same == stamp => *last = sequence,
            _ => self.uncovered.push_back((sequence, stamp)),
        }
    }

    fn next_action(&mut self, durable: Sequence) -> Action {
        if let Some(load) = &mut self.load {
            let number = load.number;
            let step = load.queue.pop_front();
            return step.map_or(Action::Nothing, |step| Action::Load { number, step });
        }
        let mut last = durable.min(self.applied);
        let mut may_write = true;
        let mut may_scan = false;
        let mut keep = None;
        if let Some(scan) = &self.scan {
            if self.written < scan.sequence {
                last = last.min(scan.sequence);
            } else {
                may_write = scan.kept_bytes < KEPT_BYTES_MAX;
                // Asked for while the last piece was on its way: there is no more.
                may_scan = scan.wanted > 0 && !scan.reached_end;
                keep = (!scan.reached_end)
                    .then(|| KeepRule { sequence: scan.sequence, after: scan.cursor.clone() });
            }
        }
        let wants_write = may_write && self.written < last;
        if let Some(scan) = self.scan.as_mut().filter(|_| may_scan)
            && !(wants_write && self.last == LastWork::Scan)
        {
            self.last = LastWork::Scan;
            let bytes = std::mem::take(&mut scan.wanted);
            let (number, sequence) = (scan.number, scan.sequence);
            return Action::Scan { number, after: scan.cursor.clone(), sequence, bytes };
        }
        self.last = LastWork::Other;
        let much = self.overlay.batch_bytes() >= FLUSH_BYTES;
        if wants_write {
            let batches = self.overlay.range(self.written, last, WRITE_BYTES);
            let takes_all = batches.last().is_some_and(|batch| batch.sequence == last);
            let flush = much || (self.cover_asked && takes_all);
            return Action::Write { batches, keep, scan: self.attempts, flush };
        }
        if durable == Sequence::ZERO {
            return Action::Nothing;
        }
        match self.uncovered.back() {
            Some((_, stamp)) if self.cover_asked || much => {
                Action::Flush { number: stamp.covered_by }
            }
            // Once for each time that it was asked for.
            _ => self
                .expired
                .take()
                .map_or(Action::Nothing, |(now, records_max)| Action::Reclaim { now, records_max }),
        }
    }

    fn finish_outcome(&mut self, outcome: Outcome) -> Result<(), StoreError> {
        match outcome {
            Outcome::Nothing => {}
            Outcome::LoadFailed { number, step } => {
                if let Some(load) = &mut self.load
                    && load.number == number
                {
                    load.queue.push_front(step);
                }
            }
            Outcome::Loaded { number, step, meta, stamp } => {
                self.finish_load_step(number, &step, meta, stamp);
            }
            // Of the records before a load.
            Outcome::Written { .. } if self.load.is_some() => {}
            Outcome::Written { scan: number, written } => {
                if written.meta.applied < self.covered {
                    return Err(self.tree.damaged("the engine lost what it had on disk"));
                }
                if let Some(scan) = &mut self.scan
                    && scan.number == number
                {
                    for (key, record) in written.kept {
                        scan.kept_bytes += held_bytes(&key, Some(&record));
                        scan.take(key, record);
                    }
                }
                self.meta = written.meta;
                self.note_written(written.meta.applied, written.stamp);
            }
            // Of the records before a load.
            Outcome::Reclaimed { .. } if self.load.is_some() => {}
            Outcome::Reclaimed { meta, records } => {
                self.meta = meta;
                self.reclaimed += records;
            }
            // Tried again it would fail again, at once: whoever wants the snapshot begins anew.
            Outcome::ScanFailed { number } => {
                if let Some(scan) = &mut self.scan
                    && scan.number == number
                {
                    scan.disturbed = true;
                }
            }
            Outcome::Scanned { number, scanned } => {
                if let Some(scan) = &mut self.scan
                    && scan.number == number
                {
                    scan.reached_end = scanned.cursor.is_none();
                    scan.cursor = scanned.cursor;
                    for (key, record) in scanned.records {
                        scan.take(key, record);
                    }
                }
            }
        }
        Ok(())
    }

    fn finish_load_step(&mut self, number: u64, step: &LoadStep, meta: Meta, stamp: Option<Stamp>) {
        let Some(load) = self.load.as_mut().filter(|load| load.number == number) else { return };
        if let LoadStep::Chunk { bytes, .. } = step {
            load.queued_bytes -= bytes;
        }
        if let Some(stamp) = stamp {
            self.load = None;
            self.meta = meta;
            self.note_written(meta.applied, stamp);
        }
    }
}

impl Load {
    fn new(number: u64) -> Self {
        Self {
            number,
            queue: VecDeque::from([LoadStep::Start]),
            filling: Vec::new(),
            filling_bytes: 0,
            queued_bytes: 0,
            chunks: 0,
            ended: false,
        }
    }

    fn close_chunk(&mut self) {
        if self.filling.is_empty() {
            return;
        }
        let records = Arc::new(std::mem::take(&mut self.filling));
        let bytes = std::mem::take(&mut self.filling_bytes);
        self.queue.push_back(LoadStep::Chunk { number: self.chunks, bytes, records });
        self.queued_bytes += bytes;
        self.chunks += 1;
    }
}

impl Scan {
    fn take(&mut self, key: Box<[u8]>, record: StoredRecord) {
        self.ready_bytes += held_bytes(&key, Some(&record));
        self.ready.push_back((key, record));
    }
}

impl Task {
    fn run(self, tree: &TreeAccess<impl Database>) -> TaskDone {
        let mut done = TaskDone {
            fetched: Vec::new(),
            page: None,
            outcome: Outcome::Nothing,
            error: None,
            fetch_error: None,
        };
        done.error = self.action.run(tree, &mut done.outcome).err();
        let fetch = || {
            if !self.fetch.is_empty() {
                done.fetched = tree.reading()?.fetch(&self.fetch, self.fetch_bytes)?;
            }
            if let Some(request) = self.page {
                let page = tree.reading()?.page(&request)?;
                done.page = Some((request, page));
            }
            Ok(())
        };
        done.fetch_error = fetch().err();
        done
    }
}

impl Action {
    fn run(
        self,
        tree: &TreeAccess<impl Database>,
        outcome: &mut Outcome,
    ) -> Result<(), StoreError> {
        match self {
            Self::Nothing => {}
            Self::Load { number, step } => match step.run(tree) {
                Ok((meta, stamp)) => *outcome = Outcome::Loaded { number, step, meta, stamp },
                Err(error) => {
                    *outcome = Outcome::LoadFailed { number, step };
                    return Err(error);
                }
            },
            Self::Write { batches, keep, scan, flush } => {
                let written = tree.writing()?.write(&batches, keep.as_ref())?;
                let number = written.stamp.covered_by;
                // Written it is, whatever becomes of the flush.
                *outcome = Outcome::Written { scan, written };
                if flush || tree.flush_is_due() {
                    tree.flush(number)?;
                }
            }
            Self::Scan { number, after, sequence, bytes } => {
                *outcome = Outcome::ScanFailed { number };
                let scanned = tree.reading()?.scan(after.as_deref(), sequence, bytes)?;
                *outcome = Outcome::Scanned { number, scanned };
            }
            Self::Flush { number } => tree.flush(number)?,
            Self::Reclaim { now, records_max } => {
                let (meta, records) = tree.writing()?.reclaim(now, records_max)?;
                *outcome = Outcome::Reclaimed { meta, records };
            }
        }
        Ok(())
    }
}

impl LoadStep {
    fn run(&self, tree: &TreeAccess<impl Database>) -> Result<(Meta, Option<Stamp>), StoreError> {
        let session = tree.writing()?;
        match self {
            Self::Start => session.load_start().map(|()| (Meta::default(), None)),
            Self::Chunk { number, records, .. } => {
                session.load_chunk(*number, records).map(|meta| (meta, None))
            }
            Self::End { chunks, applied, timestamp, requests } => {
                let written = session.load_end(*chunks, *applied, *timestamp, requests)?;
                drop(session);
                tree.flush(written.stamp.covered_by)?;
                Ok((written.meta, Some(written.stamp)))
            }
        }
    }
}

impl<D: Database> StateStore for DiskStore<D> {
    fn kind(&self) -> &'static str {
        D::KIND
    }

    fn get(&self, key: &[u8]) -> Lookup<'_> {
        match self.overlay.get(key) {
            Some(known) => known.map_or(Lookup::Absent, Lookup::Found),
            None => self.get_fetched(key),
        }
    }

    fn get_fetched(&self, key: &[u8]) -> Lookup<'_> {
        match self.fetched.get(key) {
            Some(Some(record)) => match &record.value {
                Some(_) => Lookup::Found(record.as_record()),
                None => Lookup::Withheld {
                    version: record.version,
                    timestamp: record.timestamp,
                    value_bytes: record.value_len,
                    expire_at: record.expire_at,
                },
            },
            Some(None) => Lookup::Absent,
            // What is on its way to an empty tree is in the overlay.
            None if self.meta.records == 0 && self.load.is_none() => Lookup::Absent,
            None => Lookup::Unknown,
        }
    }

    fn apply(&mut self, sequence: Sequence, timestamp: Timestamp, entries: &[WriteEntry<'_>]) {
        assert_eq!(sequence, self.applied.next(), "a batch was left out or applied twice");
        assert!(
            self.load.as_ref().is_none_or(|load| load.ended),
            "a store is loaded before it is written"
        );
        let remembered = std::mem::take(&mut self.remembered);
        self.overlay.push(sequence, timestamp, entries, remembered.into());
        self.applied = sequence;
        self.applied_timestamp = timestamp;
    }

    fn requests(&self) -> &RequestWindow {
        &self.requests
    }

    fn remember(&mut self, sequence: Sequence, timestamp: Timestamp, mark: &RequestMark<'_>) {
        debug_assert!(sequence == self.applied.next() && self.remembered.is_empty());
        let lines = &mut self.remembered;
        let mut changed = |change: RequestChange<'_>| lines.push(RequestLine::of(&change));
        self.requests.record(sequence, timestamp, mark, &mut changed);
    }

    fn limit_requests(&mut self, limits: RequestLimits) {
        self.requests.set_limits(limits);
    }

    fn applied(&self) -> Sequence {
        self.applied
    }

    fn applied_timestamp(&self) -> Timestamp {
        self.applied_timestamp
    }

    fn covered(&self) -> Sequence {
        self.covered
    }

    fn stats(&self) -> StoreStats {
        let scan = self.scan.as_ref().map_or(0, |scan| scan.ready_bytes);
        let load = self.load.as_ref().map_or(0, |load| load.queued_bytes + load.filling_bytes);
        let bytes = size_of::<Self>()
            + self.overlay.memory_bytes()
            + self.uncovered.capacity() * size_of::<(Sequence, Stamp)>()
            + self.fetched_bytes
            + self.page.as_ref().map_or(0, |(_, page)| page.bytes)
            + scan
            + load;
        StoreStats {
            records: self.meta.records,
            payload_bytes: self.meta.payload_bytes,
            memory_bytes: bytes as u64 + self.requests.memory_bytes(),
            reclaimed: self.reclaimed,
        }
    }

    fn growth_max(&self, entries: &[WriteEntry<'_>]) -> u64 {
        self.overlay.growth_max(entries) as u64
    }

    fn growth(&self, entries: &[WriteEntry<'_>]) -> i64 {
        // Removing is never refused for want of memory: the overlay has its own limit, and what
        // it takes for a removal it gives back.
        let bytes_of = |entry: &WriteEntry<'_>| match entry.change {
            Change::Put(value) => (entry.key.len() + value.len()) as i64,
            Change::Remove => 0,
        };
        entries.iter().map(bytes_of).sum()
    }

    fn is_saturated(&self) -> bool {
        self.overlay.batch_bytes() >= STORE_OVERLAY_BYTES_MAX
    }

    fn reclaim(&mut self, now: WallClock, records_max: usize) -> Reclaimed {
        let has_expired = self.meta.next_moment.is_some_and(|moment| moment.has_come(now));
        if has_expired && self.load.is_none() && records_max > 0 {
            self.expired = Some((now, records_max));
        }
        Reclaimed::default()
    }

    fn snapshot_start(&mut self) {
        self.attempts += 1;
        self.scan = Some(Scan {
            number: self.attempts,
            sequence: self.applied,
            disturbed: false,
            cursor: None,
            reached_end: false,
            wanted: 0,
            ready: VecDeque::new(),
            ready_bytes: 0,
            kept_bytes: 0,
        });
    }

    fn snapshot_next(
        &mut self,
        budget_bytes: usize,
        emit: &mut dyn FnMut(SnapshotRecord<'_>),
    ) -> Result<SnapshotStep, StoreError> {
        let scan = self.scan.as_mut().expect("a snapshot was started");
        if scan.disturbed {
            self.scan = None;
            return Err(self.tree.disk_full());
        }
        let mut bytes = 0;
        while bytes < budget_bytes.max(1)
            && let Some((key, record)) = scan.ready.pop_front()
        {
            let held = held_bytes(&key, Some(&record));
            bytes += held;
            scan.ready_bytes -= held;
            emit(SnapshotRecord { key: &key, record: record.as_record() });
        }
        if !scan.ready.is_empty() {
            return Ok(SnapshotStep::More);
        }
        scan.kept_bytes = 0;
        if scan.reached_end {
            return Ok(SnapshotStep::Done);
        }
        scan.wanted = budget_bytes.clamp(*SCAN_BYTES.start(), *SCAN_BYTES.end());
        Ok(SnapshotStep::Wait)
    }

    fn snapshot_end(&mut self) {
        self.scan = None;
    }

    fn load_start(&mut self) {
        self.overlay = Overlay::default();
        self.requests.clear();
        self.uncovered.clear();
        self.meta = Meta::default();
        self.expired = None;
        self.reclaimed = 0;
        (self.applied, self.applied_timestamp) = (Sequence::ZERO, Timestamp::ZERO);
        (self.written, self.covered) = (Sequence::ZERO, Sequence::ZERO);
        self.scan = None;
        self.fetch_queue.clear();
        self.page_wanted = None;
        self.forget_fetched();
        self.attempts += 1;
        self.load = Some(Load::new(self.attempts));
    }

    fn load_request(&mut self, row: &RequestRow<'_>) {
        self.requests.load(row);
    }

    fn load(&mut self, records: &[SnapshotRecord<'_>]) -> bool {
        let load = self.load.as_mut().expect("a load was started");
        for SnapshotRecord { key, record } in records {
            let (key, record): KeyedRecord = ((*key).into(), stored(*record));
            load.filling_bytes += held_bytes(&key, Some(&record));
            load.filling.push((key, record));
            if load.filling_bytes >= WRITE_BYTES {
                load.close_chunk();
            }
        }
        load.queued_bytes < STORE_LOAD_BYTES_MAX
    }

    fn load_end(&mut self, sequence: Sequence, timestamp: Timestamp) {
        let load = self.load.as_mut().expect("a load was started");
        load.close_chunk();
        let chunks = load.chunks;
        let requests = RequestLine::all(&self.requests);
        load.queue.push_back(LoadStep::End { chunks, applied: sequence, timestamp, requests });
        load.ended = true;
        (self.applied, self.applied_timestamp) = (sequence, timestamp);
    }

    fn fetch(&mut self, keys: &[&[u8]]) {
        self.fetch_queue.extend(keys.iter().map(|key| Box::from(*key)));
    }

    fn forget_fetched(&mut self) {
        self.fetched.clear();
        self.fetched_bytes = 0;
        self.page = None;
    }

    fn page(&self, request: &PageRequest, emit: &mut dyn FnMut(SnapshotRecord<'_>)) -> PageStep {
        if request.is_empty() {
            return PageStep::End;
        }
        match &self.page {
            Some((known, page)) if known == request => page.merge(request, &self.overlay, emit),
            _ => PageStep::Unknown,
        }
    }

    fn fetch_page(&mut self, request: &PageRequest) {
        self.page_wanted = Some(request.clone());
    }

    fn cover(&mut self) {
        self.cover_asked = self.covered < self.applied;
    }

    fn take_work(&mut self, durable: Sequence) -> Option<Work> {
        if self.busy {
            return None;
        }
        // A page is what the tree was when the last work ended: from here batches may leave the
        // overlay that it does not have.
        self.page = None;
        self.note_covered();
        let fetch = std::mem::take(&mut self.fetch_queue);
        // Somebody waits for a fetch: it does not wait for a write as well. But every other time
        // it does, so that reads cannot hold writes back for good.
        let page = self.page_wanted.take();
        let reads = !fetch.is_empty() || page.is_some();
        let action = if reads && self.last != LastWork::FetchAlone {
            self.last = LastWork::FetchAlone;
            Action::Nothing
        } else {
            self.next_action(durable)
        };
        if !reads && matches!(action, Action::Nothing) {
            return None;
        }
        let fetch_bytes = STORE_FETCH_BYTES_MAX.saturating_sub(self.fetched_bytes);
        let task = Task { fetch, fetch_bytes, page, action };
        let tree = Arc::clone(&self.tree);
        self.busy = true;
        Some(Box::new(move || WorkDone(Box::new(task.run(&tree)))))
    }

    fn finish_work(&mut self, done: WorkDone) -> Result<(), StoreError> {
        assert!(self.busy, "work is finished once");
        self.busy = false;
        let done = done.0.downcast::<TaskDone>().expect("this store's own work comes back");
        for (key, record) in done.fetched {
            self.fetched_bytes += held_bytes(&key, record.as_ref());
            if let Some(before) = self.fetched.insert(key.clone(), record) {
                self.fetched_bytes -= held_bytes(&key, before.as_ref());
            }
        }
        self.page = done.page;
        self.finish_outcome(done.outcome)?;
        self.note_covered();
        match (done.fetch_error, done.error) {
            (Some(StoreError::DiskFull { path }), None | Some(StoreError::DiskFull { .. })) => {
                Err(StoreError::Unreadable { path })
            }
            (_, Some(error)) | (Some(error), None) => Err(error),
            (None, None) => Ok(()),
        }
    }
}

fn stored(record: Record<'_>) -> StoredRecord {
    StoredRecord {
        value: Some(record.value.into()),
        value_len: record.value.len(),
        version: record.version,
        timestamp: record.timestamp,
        expire_at: record.expire_at,
    }
}

fn held_bytes(key: &[u8], record: Option<&StoredRecord>) -> usize {
    let value = record.and_then(|record| record.value.as_ref()).map_or(0, |value| value.len());
    HELD_RECORD_BYTES + key.len() + value
}
