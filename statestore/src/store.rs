//! The contract between a partition and the place where its records live.
//!
//! A store has two halves. The *core half* (`get`, `apply`, …) runs on the partition's executor
//! thread: it never blocks and never fails. Stores that must block (a disk engine) answer from
//! memory what they can and hand out [`Work`], closures that the node runs on its blocking pool,
//! one at a time per partition, and whose outcome comes back through `finish_work`.
//!
//! ```text
//!   partition ── get ──► Found | Absent            memory: always
//!                        Unknown ─ fetch(keys) ─┐  disk: not in the overlay
//!             ── apply ─► overlay ──────────────┤
//!                                               ▼
//!                 node: take_work(durable) ─► blocking pool ─► finish_work
//! ```
//! **Records that expire** stay in the store until it reclaims them; `get` and snapshots hand them
//! out with their moment, and the partition decides by its own clock whether they still exist. So a store
//! keeps no time, and it makes no difference to anyone when, or whether, a record is reclaimed:
//! reclaiming is not a write, has no sequence, is in no log, and a replay need not repeat it. What a
//! write meant was settled when it was accepted; replay stores outcomes and judges nothing anew.
//!
//! **Request ids** are a part of the state, so they are where the records are: replay, snapshots and
//! loads bring them along, and a store on disk writes them in the same atomic batch as the entries. Every
//! store has a [`RequestWindow`] and passes on to it; deciding by it is the partition's business.
//!
//! A store on disk writes only what the log already holds durably (`take_work` is told up to
//! where), so after a crash the store is never ahead of the log; and it remembers in the same
//! atomic write up to which sequence it has applied, so replay applies nothing twice.

use std::any::Any;

use stateside_types::{ExpireAt, Record, RequestMark, Sequence, Timestamp, WallClock, WriteEntry};

use crate::{PageRequest, PageStep, RequestLimits, RequestRow, RequestWindow};

/// Answer of [`StateStore::get`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// The record.
    Found(Record<'a>),
    /// There is none.
    Absent,
    /// Only the disk knows: `fetch` the key, run the work, ask again.
    Unknown,
    /// There is one, but its value was left on the disk: what was fetched together exceeds
    /// `limits::STORE_FETCH_BYTES_MAX`. Enough to check a condition; a read of so much at once
    /// does not fit an answer either.
    Withheld {
        /// Sequence of the batch that wrote it.
        version: Sequence,
        /// Timestamp of the batch that wrote it.
        timestamp: Timestamp,
        /// Length of the value.
        value_bytes: usize,
        /// From when on it is absent. None: it stays.
        expire_at: Option<ExpireAt>,
    },
}

/// A blocking piece of a store's work. Runs off the executor; at most one per store at a time.
pub type Work = Box<dyn FnOnce() -> WorkDone + Send>;

/// What a piece of [`Work`] brought back; opaque to everyone but the store that made it.
pub struct WorkDone(pub Box<dyn Any + Send>);

/// Sizes of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Records held. For a store on disk: as of its last finished work.
    pub records: u64,
    /// Bytes of keys and values of those records.
    pub payload_bytes: u64,
    /// Bytes of memory the store uses for them, everything included.
    pub memory_bytes: u64,
    /// Expired records that `reclaim` has taken out since the store was made or loaded.
    pub reclaimed: u64,
}

/// What one call of [`StateStore::reclaim`] took out at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Number of records.
    pub records: usize,
    /// The newest version among them.
    pub newest: Sequence,
}

/// A store failed; its partition stops.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full. Transient: the same work is handed out again later.
    #[error("{path}: no space left on the disk")]
    DiskFull {
        /// File or directory.
        path: String,
    },
    /// The engine met a full disk and does not even read until there is room. Transient: what was to
    /// be fetched is forgotten, whoever wants it asks again.
    #[error("{path}: no space left on the disk; reads that need it fail as well")]
    Unreadable {
        /// File or directory.
        path: String,
    },
    /// The environment refused: permission, IO error. Permanent for this process.
    #[error("{path}: {message}")]
    Io {
        /// File or directory.
        path: String,
        /// What the system said.
        message: String,
    },
    /// The store's files are not what the store wrote. Permanent.
    #[error("{path}: damaged: {message}")]
    Damaged {
        /// File or directory.
        path: String,
        /// What does not fit.
        message: String,
    },
}

/// How far a snapshot got in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotStep {
    /// Go on: there may be more. Usually records were handed out.
    More,
    /// Run the store's work, then call again. There may be none until the log is durable up to
    /// where the snapshot began.
    Wait,
    /// Every record was handed out.
    Done,
}

/// A record on its way into a snapshot or out of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotRecord<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Value, version, timestamp.
    pub record: Record<'a>,
}

/// Where a partition's records live. Owned by one partition, used on one core's thread; `Send`, so that
/// it can be filled from a snapshot on another before it is put to use.
pub trait StateStore: Send {
    /// The name that configuration uses, such as `memory`.
    fn kind(&self) -> &'static str;

    /// The record of `key`, without blocking. Sees every batch applied before.
    fn get(&self, key: &[u8]) -> Lookup<'_>;

    /// Applies a batch. `sequence` is exactly one above [`Self::applied`]; keys are unique in
    /// the batch; conditions were checked by the caller and are ignored.
    fn apply(&mut self, sequence: Sequence, timestamp: Timestamp, entries: &[WriteEntry<'_>]);

    /// The requests with an id that the state knows.
    fn requests(&self) -> &RequestWindow;

    /// Remembers the answer to a request. Followed at once by the `apply` of the same sequence, which
    /// has no entries when the request was refused.
    fn remember(&mut self, sequence: Sequence, timestamp: Timestamp, mark: &RequestMark<'_>);

    /// How many requests to remember, from the next one on.
    fn limit_requests(&mut self, limits: RequestLimits);

    /// Looks up each key, as [`Self::get`] does: stores in memory wait for many of them at once instead
    /// of for one after the other.
    fn get_all(&self, keys: &[&[u8]], each: &mut dyn FnMut(&[u8], &Lookup<'_>)) {
        for key in keys {
            each(key, &self.get(key));
        }
    }

    /// Sequence of the last batch applied (or loaded).
    fn applied(&self) -> Sequence;

    /// Timestamp of the last batch applied (or loaded).
    fn applied_timestamp(&self) -> Timestamp;

    /// Up to which sequence the store itself survives a crash, without log or snapshot.
    /// `Sequence::ZERO` for stores in memory.
    fn covered(&self) -> Sequence;

    /// Current sizes. Cheap: kept up to date, not counted.
    fn stats(&self) -> StoreStats;

    /// Bytes of memory that `entries` would add at most; an upper bound, without lookups.
    fn growth_max(&self, entries: &[WriteEntry<'_>]) -> u64;

    /// Bytes that `entries` would add given what is stored now; below zero when they shrink the
    /// store. Exact for the records, their headers and padding included; memory is taken for them
    /// in pages, and index and pages show in `growth_max` only. Only asked near the memory limit.
    fn growth(&self, entries: &[WriteEntry<'_>]) -> i64;

    /// Whether `apply` must wait: the overlay of unwritten records is full. Then the caller
    /// refuses writes as overloaded until work has been done.
    fn is_saturated(&self) -> bool {
        false
    }

    /// Takes out records whose moment has come, `records_max` of them at most; a store on disk
    /// notes to do so with its next work and tells of nothing at once. Called from the standing tick;
    /// costs next to nothing while no record expires.
    fn reclaim(&mut self, now: WallClock, records_max: usize) -> Reclaimed {
        let _ = (now, records_max);
        Reclaimed::default()
    }

    /// Starts a snapshot of the records as of [`Self::applied`]. Writes go on meanwhile and do
    /// not show in it; records that are reclaimed meanwhile may be missing. One at a time; a
    /// second start abandons the first.
    fn snapshot_start(&mut self);

    /// Hands out about `budget_bytes` of the snapshot's records (one record may exceed it), in
    /// no particular order, each exactly once. Searching counts against the budget too, so that
    /// a step is short even where it finds nothing.
    ///
    /// # Errors
    /// [`StoreError`] when the records cannot be read; the snapshot is abandoned.
    fn snapshot_next(
        &mut self,
        budget_bytes: usize,
        emit: &mut dyn FnMut(SnapshotRecord<'_>),
    ) -> Result<SnapshotStep, StoreError>;

    /// Ends or abandons the snapshot and frees what was kept for it.
    fn snapshot_end(&mut self);

    /// Empties the store ahead of `load`, of requests too; what it covered is forgotten.
    fn load_start(&mut self);

    /// Adds what a snapshot knows of a request; after `load_start`, in the snapshot's order.
    fn load_request(&mut self, row: &RequestRow<'_>);

    /// Adds records of a snapshot. `false`: run the store's work before the next call.
    fn load(&mut self, records: &[SnapshotRecord<'_>]) -> bool;

    /// Ends loading: the store now stands at this sequence and timestamp. A store on disk
    /// covers it once its work has run dry.
    fn load_end(&mut self, sequence: Sequence, timestamp: Timestamp);

    /// Asks for keys whose lookup was `Unknown`. Once the work that [`Self::take_work`] hands
    /// out next has finished, `get` knows them until [`Self::forget_fetched`], whatever is applied
    /// meanwhile. Work that was under way already does not count.
    fn fetch(&mut self, keys: &[&[u8]]) {
        let _ = keys;
    }

    /// As [`Self::get`], without what was applied and is not on disk yet: what `fetch` brought.
    /// For whoever knows that every change of the key that was applied is to be left out.
    fn get_fetched(&self, key: &[u8]) -> Lookup<'_> {
        self.get(key)
    }

    /// Drops what `fetch` brought.
    fn forget_fetched(&mut self) {}

    /// Asks the store to bring [`Self::covered`] up to [`Self::applied`] with its next work, as
    /// far as the log is durable: the log wants to let a segment go, or the node stops.
    /// Without it a store on disk covers its writes now and then as it writes more; the last ones
    /// before a pause stay uncovered.
    fn cover(&mut self) {}

    /// Hands out records in the order of their keys, without blocking. Sees every batch applied
    /// before. Stores that do not order their keys answer [`PageStep::Unordered`].
    fn page(&self, request: &PageRequest, emit: &mut dyn FnMut(SnapshotRecord<'_>)) -> PageStep {
        let _ = (request, emit);
        PageStep::Unordered
    }

    /// Asks for a page that was `Unknown`, in place of one asked for before. As with [`Self::fetch`] it
    /// is known once the next work has finished; until the work after that is taken.
    fn fetch_page(&mut self, request: &PageRequest) {
        let _ = request;
    }

    /// The next piece of blocking work, if there is any and none is under way. Batches above
    /// `durable` (the log's durable sequence of this partition) must not be written yet. With
    /// [`Sequence::ZERO`] it is reads alone, and no flush either: the disk is full.
    fn take_work(&mut self, durable: Sequence) -> Option<Work> {
        let _ = durable;
        None
    }

    /// Brings the outcome of the work taken last.
    ///
    /// # Errors
    /// [`StoreError`]: after `DiskFull` and `Unreadable` writes are handed out again by `take_work`.
    fn finish_work(&mut self, done: WorkDone) -> Result<(), StoreError> {
        drop(done);
        Ok(())
    }
}
