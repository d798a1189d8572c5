//! Everything that calls sled. Blocking, all of it: never on an executor's thread.
//!
//! One [`SledEngine`] per disk holds one tree for each partition:
//!
//! ```text
//!   tree "partition-0000002a-0000000000000007"         (id, epoch)
//!     00              ─► meta: state, applied sequence and timestamp, record count, bytes
//!     01 key          ─► version u64, timestamp u64, value length u32, value if it is short
//!     02 key piece u32─► a piece of a long value
//! ```
//! Integers in keys are big-endian, in values little-endian.
//!
//! **Why a crash leaves a prefix.** A write batch changes records and meta of one tree by one sled
//! batch. sled writes it into its one log between a manifest that names the batch's end and that end;
//! recovery reads the log in order and stops at the first torn message, and at a manifest whose end
//! it does not find (`LogRead::BatchManifest` in sled's `pagecache/iterator.rs`). So every tree is
//! recovered at the end of some batch, and its meta says which. Only batches that our own log holds
//! durably are handed to sled, so it is never ahead of that log.
//!
//! **What sled does not do itself**, and this file does:
//! - `Db::flush` ends in `sync_file_range`, which neither flushes the disk's cache nor the file's
//!   size. The data file gets an `fdatasync` of its own before anything counts as covered.
//! - A killed process may leave `snap.*.generating` behind, half written; sled then takes it for
//!   the newest snapshot of its page table and refuses to open. It is removed first: sled renames
//!   the file when it is complete.
//! - `conf` is not written atomically. A new directory is made under another name and renamed.
//! - Pages over a quarter of a segment go to files of their own that sled never syncs, and whose
//!   loss its recovery passes over in silence. Segments of 8 MiB and values cut to pieces of 16 KiB
//!   keep the largest page (an inner node of 256 keys of 4 KiB) below that.
//! - After any failed write sled fails everything until it is opened anew. A full disk is
//!   therefore refused before sled meets it; if it does, it is reopened once there is room.
//! - Panics on damaged files: caught, and reported as damage.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use stateside_types::{
    Epoch, PartitionId, Sequence, Timestamp,
    limits::{BATCH_BYTES_MAX, KEY_BYTES_MAX},
};

use super::{SledStore, overlay::OverlayBatch};
use crate::StoreError;

const META_KEY: [u8; 1] = [0];
const RECORD_TAG: u8 = 1;
const PIECE_TAG: u8 = 2;
const META_VERSION: u8 = 1;
const META_BYTES: usize = 38;
const RECORD_HEADER_BYTES: usize = 20;
/// Longest value kept with its record, and length of the pieces of longer ones.
const PIECE_BYTES: usize = 16 << 10;
/// Records deleted by one sled batch while a tree is emptied.
const CLEAR_BATCH: usize = 1_024;
/// How long a reopening waits for sled's own threads to let go of the file.
const REOPEN_WAIT: Duration = Duration::from_secs(5);

/// How an engine is run.
#[derive(Clone, Copy, Debug)]
pub struct SledOptions {
    /// Size of sled's page cache, bytes. sled uses several times that at its worst.
    pub cache_bytes: u64,
    /// Writes are refused as `DiskFull` while the disk has less room than this, bytes.
    pub free_bytes_min: u64,
    /// Longest time between two writes that only the first of them is covered by.
    pub cover_interval: Duration,
    /// Size of sled's segments: a power of two. Fixed when the directory is made.
    pub segment_bytes: usize,
}

impl Default for SledOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            free_bytes_min: 64 << 20,
            cover_interval: Duration::from_secs(1),
            segment_bytes: 8 << 20,
        }
    }
}

/// One sled database, shared by all partitions whose stores are on its disk. Cheap to clone.
#[derive(Clone)]
pub struct SledEngine {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    options: SledOptions,
    /// None after a failed reopening.
    database: RwLock<Option<sled::Db>>,
    /// The first failure that sled itself will not get over.
    failure: Mutex<Option<Failure>>,
    data_file: File,
    /// When the last flush ended; held during one.
    flush: Mutex<Instant>,
    /// How often the database was reopened. What was written to an earlier one and not flushed is
    /// lost, so no later flush covers it.
    generation: AtomicU64,
    flushes_started: AtomicU64,
    /// Number of the last flush that succeeded.
    flushes_done: AtomicU64,
    open_trees: Mutex<BTreeSet<(PartitionId, Epoch)>>,
}

#[derive(Clone)]
enum Failure {
    DiskFull,
    Other(String),
}

/// What a tree says about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Meta {
    /// A load is under way; `applied` then counts its chunks.
    pub(super) loading: bool,
    pub(super) applied: Sequence,
    pub(super) timestamp: Timestamp,
    pub(super) records: u64,
    pub(super) payload_bytes: u64,
}

/// A record as it was read from the disk.
#[derive(Debug)]
pub(super) struct StoredRecord {
    /// None when it was to be left there.
    pub(super) value: Option<Box<[u8]>>,
    pub(super) value_len: usize,
    pub(super) version: Sequence,
    pub(super) timestamp: Timestamp,
}

/// A record with its key.
pub(super) type KeyedRecord = (Box<[u8]>, StoredRecord);
/// A key and what was found under it.
pub(super) type KeyedLookup = (Box<[u8]>, Option<StoredRecord>);

/// Which records a write must bring back before it overwrites them: a snapshot has not got to
/// them yet.
pub(super) struct KeepRule {
    pub(super) sequence: Sequence,
    /// Last key handed out.
    pub(super) after: Option<Box<[u8]>>,
}

/// What a write did.
pub(super) struct Written {
    pub(super) meta: Meta,
    pub(super) kept: Vec<KeyedRecord>,
    pub(super) stamp: Stamp,
}

/// When a write was done, for telling later whether it is covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Of the database.
    pub(super) generation: u64,
    /// Number of the first flush that covers the write.
    pub(super) covered_by: u64,
}

/// What became of a write since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteFate {
    /// sled has it in memory, at least.
    Open,
    /// It survives a crash.
    Covered,
    /// sled was reopened since: it may be lost.
    Uncertain,
}

/// What a scan found.
pub(super) struct Scanned {
    pub(super) records: Vec<KeyedRecord>,
    /// Last key looked at; none when the tree's end was reached.
    pub(super) cursor: Option<Box<[u8]>>,
}

impl SledEngine {
    /// Opens the database in the directory `path`, making it if there is none. Blocks: sled reads
    /// what its log holds beyond its last page table.
    ///
    /// # Errors
    /// [`StoreError`]; `Io` also when another process has it open.
    pub fn open(path: &Path, options: SledOptions) -> Result<Self, StoreError> {
        if !path.exists() {
            make_directory(path, &options)?;
        }
        let database = open_database(path, &options)?;
        let data_file = File::open(path.join("db")).map_err(|error| io_error(path, &error))?;
        let shared = Shared {
            path: path.to_owned(),
            options,
            database: RwLock::new(Some(database)),
            failure: Mutex::new(None),
            data_file,
            flush: Mutex::new(Instant::now()),
            generation: AtomicU64::new(0),
            flushes_started: AtomicU64::new(0),
            flushes_done: AtomicU64::new(0),
            open_trees: Mutex::default(),
        };
        // What was recovered may be in the page cache only, and a store tells on opening what it
        // covers. Not by `flush`: a full disk is no reason not to read.
        shared.read(|database| database.flush())?;
        shared.data_file.sync_data().map_err(|error| io_error(path, &error))?;
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Opens a partition's store, making it if there is none. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when a load of it was interrupted: [`Self::remove`] it and
    /// load again. [`StoreError::Io`] when it is open already.
    pub fn partition(&self, id: PartitionId, epoch: Epoch) -> Result<SledStore, StoreError> {
        let open = OpenTree::claim(&self.shared, id, epoch)?;
        let tree = TreeAccess { open, name: tree_name(id, epoch) };
        let name = tree.name.as_bytes();
        let exists =
            self.shared.read(|db| Ok(db.tree_names().iter().any(|other| other == name)))?;
        // Only making a tree needs room on the disk.
        let session = if exists { tree.reading()? } else { tree.writing()? };
        let meta = session.recover()?;
        drop(session);
        Ok(SledStore::new(tree, meta))
    }

    /// Drops a partition's store; sled frees its space as it goes on writing. False when there was
    /// none. Blocks for as long as reading the tree's pages takes. A crash meanwhile may leave some
    /// of its space taken.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the store is open or its work is under way.
    pub fn remove(&self, id: PartitionId, epoch: Epoch) -> Result<bool, StoreError> {
        let _open = OpenTree::claim(&self.shared, id, epoch)?;
        let name = tree_name(id, epoch);
        let removed = self.shared.write(|database| database.drop_tree(&name))?;
        self.shared.flush(self.shared.flushes_started.load(Ordering::SeqCst) + 1)?;
        Ok(removed)
    }

    /// The partitions that have a store here.
    ///
    /// # Errors
    /// [`StoreError`] when the database could not be opened again after a full disk.
    pub fn partitions(&self) -> Result<Vec<(PartitionId, Epoch)>, StoreError> {
        let names = self.shared.read(|database| Ok(database.tree_names()))?;
        Ok(names.iter().filter_map(|name| parse_tree_name(name)).collect())
    }

    /// Bytes that the database takes on the disk.
    ///
    /// # Errors
    /// [`StoreError`] when the files cannot be looked at.
    pub fn disk_bytes(&self) -> Result<u64, StoreError> {
        self.shared.read(|database| database.size_on_disk())
    }
}

impl Shared {
    /// Calls sled, turning its errors and panics into ours.
    fn call<T>(&self, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
        match catch_unwind(AssertUnwindSafe(call)) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                let error = store_error(&self.path, error);
                if matches!(error, StoreError::DiskFull { .. }) {
                    // sled's own threads write too; a read may be the first to hear of it.
                    self.note_failure(&error);
                }
                Err(error)
            }
            Err(panic) => Err(self.damaged(panic_text(&*panic))),
        }
    }

    /// Calls sled to read.
    fn read<T>(&self, call: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = &*database else { return Err(self.disk_full()) };
        self.call(|| call(database))
    }

    /// Makes sure that a write is worth trying.
    fn prepare_write(&self) -> Result<(), StoreError> {
        self.check_room()?;
        self.get_over_failure()
    }

    /// Calls sled to write: if there is room, and if it has not failed.
    fn write<T>(&self, call: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, StoreError> {
        self.prepare_write()?;
        let answer = self.read(call);
        if let Err(error) = &answer {
            self.note_failure(error);
        }
        answer
    }

    /// Remembers an error that sled will answer every further write with.
    fn note_failure(&self, error: &StoreError) {
        let failure = match error {
            StoreError::DiskFull { .. } => Failure::DiskFull,
            StoreError::Io { message, .. } => Failure::Other(message.clone()),
            // One tree's pages: the others can go on.
            StoreError::Damaged { .. } => return,
        };
        lock(&self.failure).get_or_insert(failure);
    }

    fn check_room(&self) -> Result<(), StoreError> {
        let disk = rustix::fs::statvfs(&self.path)
            .map_err(|error| io_error(&self.path, &io::Error::from(error)))?;
        if disk.f_bavail * disk.f_frsize < self.options.free_bytes_min {
            return Err(self.disk_full());
        }
        Ok(())
    }

    /// Opens sled anew if it met a full disk: nothing else ends its refusals.
    fn get_over_failure(&self) -> Result<(), StoreError> {
        let failure = lock(&self.failure).clone();
        match failure {
            None => return Ok(()),
            Some(Failure::Other(message)) => return Err(self.io(message)),
            Some(Failure::DiskFull) => {}
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if lock(&self.failure).is_none() {
            return Ok(());
        }
        let old = database.take();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(old))) {
            return Err(self.damaged(panic_text(&*panic)));
        }
        let deadline = Instant::now() + REOPEN_WAIT;
        loop {
            match open_database(&self.path, &self.options) {
                Ok(opened) => {
                    *database = Some(opened);
                    self.generation.fetch_add(1, Ordering::SeqCst);
                    *lock(&self.failure) = None;
                    return Ok(());
                }
                // sled's own threads may still hold the file that they wrote to.
                Err(StoreError::Io { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes everything written so far survive a crash, unless flush `number` has done so.
    fn flush(&self, number: u64) -> Result<(), StoreError> {
        let mut last = lock(&self.flush);
        if self.flushes_done.load(Ordering::SeqCst) >= number {
            return Ok(());
        }
        let this = self.flushes_started.fetch_add(1, Ordering::SeqCst) + 1;
        self.write(|database| database.flush())?;
        if let Err(error) = self.data_file.sync_data() {
            // The kernel may have marked the pages clean: a second try would prove nothing.
            let error = io_error(&self.path, &error);
            *lock(&self.failure) = Some(Failure::Other(error.to_string()));
            return Err(error);
        }
        self.flushes_done.store(this, Ordering::SeqCst);
        *last = Instant::now();
        Ok(())
    }

    fn flush_is_due(&self) -> bool {
        // A flush under way is none too few.
        self.flush.try_lock().is_ok_and(|last| last.elapsed() >= self.options.cover_interval)
    }

    fn disk_full(&self) -> StoreError {
        StoreError::DiskFull { path: self.path.display().to_string() }
    }

    fn io(&self, message: String) -> StoreError {
        StoreError::Io { path: self.path.display().to_string(), message }
    }

    fn damaged(&self, message: String) -> StoreError {
        StoreError::Damaged { path: self.path.display().to_string(), message }
    }
}

/// The right to use a tree: one at a time, given back on drop.
struct OpenTree {
    shared: Arc<Shared>,
    id: PartitionId,
    epoch: Epoch,
}

impl OpenTree {
    fn claim(shared: &Arc<Shared>, id: PartitionId, epoch: Epoch) -> Result<Self, StoreError> {
        if !lock(&shared.open_trees).insert((id, epoch)) {
            return Err(shared.io(format!("the store of partition {id}, epoch {epoch}, is in use")));
        }
        Ok(Self { shared: Arc::clone(shared), id, epoch })
    }
}

impl Drop for OpenTree {
    fn drop(&mut self) {
        lock(&self.shared.open_trees).remove(&(self.id, self.epoch));
    }
}

/// A partition's tree. Shared by its store and the work under way.
pub(super) struct TreeAccess {
    open: OpenTree,
    name: String,
}

impl TreeAccess {
    /// What became of a write. Does not block.
    pub(super) fn fate(&self, stamp: Stamp) -> WriteFate {
        // In this order: a flush after a reopening is counted after the reopening is.
        let done = self.shared().flushes_done.load(Ordering::SeqCst);
        let generation = self.shared().generation.load(Ordering::SeqCst);
        if generation != stamp.generation {
            WriteFate::Uncertain
        } else if done >= stamp.covered_by {
            WriteFate::Covered
        } else {
            WriteFate::Open
        }
    }

    /// Covers all writes before flush `number`, and whoever else's there are.
    pub(super) fn flush(&self, number: u64) -> Result<(), StoreError> {
        self.shared().flush(number)
    }

    /// Whether it has been long enough since the last flush for another.
    pub(super) fn flush_is_due(&self) -> bool {
        self.shared().flush_is_due()
    }

    /// That the disk is full, with this tree's path.
    pub(super) fn disk_full(&self) -> StoreError {
        self.shared().disk_full()
    }

    /// That the tree is not what was written.
    pub(super) fn damaged(&self, message: &str) -> StoreError {
        self.shared().damaged(format!("{}: {message}", self.name))
    }

    fn shared(&self) -> &Shared {
        &self.open.shared
    }

    /// For reads only: goes on when writes have failed.
    pub(super) fn reading(&self) -> Result<TreeSession<'_>, StoreError> {
        let database = self.shared().database.read().unwrap_or_else(PoisonError::into_inner);
        let tree = match &*database {
            Some(database) => self.shared().call(|| database.open_tree(&self.name))?,
            None => return Err(self.shared().disk_full()),
        };
        Ok(TreeSession { access: self, tree, _database: database })
    }

    /// For writes.
    pub(super) fn writing(&self) -> Result<TreeSession<'_>, StoreError> {
        self.shared().prepare_write()?;
        self.reading()
    }
}

/// Calls on one tree during which the database is not reopened: what one call read still holds
/// when the next writes.
pub(super) struct TreeSession<'a> {
    access: &'a TreeAccess,
    tree: sled::Tree,
    _database: RwLockReadGuard<'a, Option<sled::Db>>,
}

impl TreeSession<'_> {
    fn read<T>(&self, call: impl FnOnce(&sled::Tree) -> sled::Result<T>) -> Result<T, StoreError> {
        self.access.shared().call(|| call(&self.tree))
    }

    fn apply(&self, batch: sled::Batch) -> Result<(), StoreError> {
        let answer = self.read(|tree| tree.apply_batch(batch));
        if let Err(error) = &answer {
            self.access.shared().note_failure(error);
        }
        answer
    }

    /// To be taken after the write: a flush that starts from then on covers it.
    fn stamp(&self) -> Stamp {
        let shared = self.access.shared();
        Stamp {
            generation: shared.generation.load(Ordering::SeqCst),
            covered_by: shared.flushes_started.load(Ordering::SeqCst) + 1,
        }
    }

    fn damaged(&self, message: &str) -> StoreError {
        self.access.damaged(message)
    }

    /// What the tree holds after a start.
    fn recover(&self) -> Result<Meta, StoreError> {
        let meta = self.meta()?;
        if meta.loading {
            return Err(self.damaged("a load was interrupted"));
        }
        let records = self.read(|tree| tree.range([RECORD_TAG]..).next().transpose())?;
        if records.is_some() != (meta.records > 0) {
            return Err(self.damaged("there are records and the count says none, or the reverse"));
        }
        Ok(meta)
    }

    fn meta(&self) -> Result<Meta, StoreError> {
        match self.read(|tree| tree.get(META_KEY))? {
            None => Ok(Meta::default()),
            Some(bytes) => {
                Meta::decode(&bytes).ok_or_else(|| self.damaged("its meta does not read"))
            }
        }
    }

    /// Reads one record; its value only while `budget` lasts.
    fn record(&self, key: &[u8], with_value: bool) -> Result<Option<StoredRecord>, StoreError> {
        let Some(stored) = self.read(|tree| tree.get(record_key(key)))? else { return Ok(None) };
        self.complete(key, &stored, with_value).map(Some)
    }

    /// A record from what its record key holds.
    fn complete(
        &self,
        key: &[u8],
        stored: &[u8],
        with_value: bool,
    ) -> Result<StoredRecord, StoreError> {
        let (mut record, inline) =
            decode_record(stored).ok_or_else(|| self.damaged("a record does not read"))?;
        if !with_value {
            return Ok(record);
        }
        if record.value_len <= PIECE_BYTES {
            record.value = Some(inline.into());
            return Ok(record);
        }
        let mut value = Vec::with_capacity(record.value_len);
        for piece in 0..pieces(record.value_len) {
            match self.read(|tree| tree.get(piece_key(key, piece)))? {
                Some(bytes) => value.extend_from_slice(&bytes),
                None => return Err(self.damaged("a piece of a value is missing")),
            }
        }
        if value.len() != record.value_len {
            return Err(self.damaged("the pieces of a value do not make it up"));
        }
        record.value = Some(value.into());
        Ok(record)
    }

    /// Looks up keys; values as long as they stay below `budget_bytes` together.
    pub(super) fn fetch(
        &self,
        keys: &[Box<[u8]>],
        mut budget_bytes: usize,
    ) -> Result<Vec<KeyedLookup>, StoreError> {
        let mut fetched = Vec::with_capacity(keys.len());
        for key in keys {
            let mut record = self.record(key, false)?;
            if let Some(found) = &record
                && found.value_len <= budget_bytes
            {
                budget_bytes -= found.value_len;
                record = self.record(key, true)?;
            }
            fetched.push((key.clone(), record));
        }
        Ok(fetched)
    }

    /// Writes batches, those of them that the tree does not hold yet, and brings back what
    /// `keep` asks for.
    pub(super) fn write(
        &self,
        batches: &[Arc<OverlayBatch>],
        keep: Option<&KeepRule>,
    ) -> Result<Written, StoreError> {
        let mut meta = self.meta()?;
        if meta.loading {
            return Err(self.damaged("a load was interrupted"));
        }
        let mut changes = BTreeMap::new();
        let before = meta.applied;
        for batch in batches.iter().filter(|batch| batch.sequence > before) {
            if batch.sequence != meta.applied.next() {
                // After reopening sled it may hold less than it did: start from there.
                break;
            }
            meta.applied = batch.sequence;
            meta.timestamp = batch.timestamp;
            for (key, value) in batch.changes() {
                changes.insert(key, (batch, value));
            }
        }
        let mut sled_batch = sled::Batch::default();
        let mut kept = Vec::new();
        for (key, (batch, value)) in changes {
            let old = self.record(key, false)?;
            if let Some(old) = &old {
                meta.records -= 1;
                meta.payload_bytes -= (key.len() + old.value_len) as u64;
                let needed = keep.is_some_and(|keep| {
                    old.version <= keep.sequence && keep.after.as_deref().is_none_or(|a| key > a)
                });
                if needed && let Some(old) = self.record(key, true)? {
                    kept.push((key.into(), old));
                }
            }
            let old_len = old.map_or(0, |old| old.value_len);
            if let Some(value) = value {
                meta.records += 1;
                meta.payload_bytes += (key.len() + value.len()) as u64;
                insert(&mut sled_batch, key, value, batch.sequence, batch.timestamp);
            } else {
                sled_batch.remove(record_key(key));
            }
            for piece in pieces(value.map_or(0, <[u8]>::len))..pieces(old_len) {
                sled_batch.remove(piece_key(key, piece));
            }
        }
        if meta.applied > before {
            sled_batch.insert(&META_KEY, &meta.encode()[..]);
            self.apply(sled_batch)?;
        }
        Ok(Written { meta, kept, stamp: self.stamp() })
    }

    /// Reads on from `after`: records up to `sequence`, about `budget_bytes` of them.
    pub(super) fn scan(
        &self,
        after: Option<&[u8]>,
        sequence: Sequence,
        budget_bytes: usize,
    ) -> Result<Scanned, StoreError> {
        let from = match after {
            Some(key) => Bound::Excluded(record_key(key)),
            None => Bound::Included(vec![RECORD_TAG]),
        };
        let to = Bound::Excluded(vec![RECORD_TAG + 1]);
        let mut entries = self.read(|tree| Ok(tree.range::<Vec<u8>, _>((from, to))))?;
        let (mut records, mut bytes) = (Vec::new(), 0);
        while bytes < budget_bytes.max(1) {
            let Some((key, stored)) = self.read(|_| entries.next().transpose())? else {
                return Ok(Scanned { records, cursor: None });
            };
            let key: Box<[u8]> = key[1..].into();
            let record = self.complete(&key, &stored, false)?;
            bytes += key.len() + RECORD_HEADER_BYTES;
            if record.version <= sequence {
                let record = self.complete(&key, &stored, true)?;
                bytes += record.value_len;
                records.push((key, record));
            } else if bytes >= budget_bytes {
                // Ends between records that are not wanted, too.
                return Ok(Scanned { records, cursor: Some(key) });
            }
        }
        let cursor = records.last().map(|(key, _)| key.clone());
        Ok(Scanned { records, cursor })
    }

    /// Empties the tree ahead of a load; from here to [`Self::load_end`] a crash leaves it unusable.
    pub(super) fn load_start(&self) -> Result<(), StoreError> {
        let loading = Meta { loading: true, ..Meta::default() };
        let mut batch = sled::Batch::default();
        batch.insert(&META_KEY, &loading.encode()[..]);
        self.apply(batch)?;
        loop {
            let keys: Vec<sled::IVec> = self.read(|tree| {
                tree.range([RECORD_TAG]..).keys().take(CLEAR_BATCH).collect::<sled::Result<_>>()
            })?;
            if keys.is_empty() {
                return Ok(());
            }
            let mut batch = sled::Batch::default();
            keys.into_iter().for_each(|key| batch.remove(key));
            self.apply(batch)?;
        }
    }

    /// Adds chunk `number` of a load, the first being 0.
    pub(super) fn load_chunk(
        &self,
        number: u64,
        records: &[KeyedRecord],
    ) -> Result<Meta, StoreError> {
        let mut meta = self.meta()?;
        if !meta.loading || meta.applied.0 > number + 1 || meta.applied.0 < number {
            return Err(self.damaged("a load lost what it had written"));
        }
        if meta.applied.0 == number + 1 {
            // Handed out again after an error that came too late to prevent it.
            return Ok(meta);
        }
        let mut batch = sled::Batch::default();
        for (key, record) in records {
            let value = record.value.as_deref().expect("a loaded record has its value");
            meta.records += 1;
            meta.payload_bytes += (key.len() + value.len()) as u64;
            insert(&mut batch, key, value, record.version, record.timestamp);
        }
        meta.applied = meta.applied.next();
        batch.insert(&META_KEY, &meta.encode()[..]);
        self.apply(batch)?;
        Ok(meta)
    }

    /// Ends a load of `chunks` chunks.
    pub(super) fn load_end(
        &self,
        chunks: u64,
        applied: Sequence,
        timestamp: Timestamp,
    ) -> Result<Written, StoreError> {
        let mut meta = self.meta()?;
        if meta.loading {
            if meta.applied.0 != chunks {
                return Err(self.damaged("a load lost what it had written"));
            }
            meta = Meta { loading: false, applied, timestamp, ..meta };
            let mut batch = sled::Batch::default();
            batch.insert(&META_KEY, &meta.encode()[..]);
            self.apply(batch)?;
        }
        Ok(Written { meta, kept: Vec::new(), stamp: self.stamp() })
    }
}

impl Meta {
    /// ```text
    ///  0         1         2         10          18        26              34
    /// ┌─────────┬─────────┬─────────┬───────────┬─────────┬───────────────┬────────┐
    /// │ version │ loading │ applied │ timestamp │ records │ payload bytes │ CRC32C │
    /// └─────────┴─────────┴─────────┴───────────┴─────────┴───────────────┴────────┘
    /// ```
    fn encode(self) -> [u8; META_BYTES] {
        let mut out = [0; META_BYTES];
        out[0] = META_VERSION;
        out[1] = u8::from(self.loading);
        out[2..10].copy_from_slice(&self.applied.0.to_le_bytes());
        out[10..18].copy_from_slice(&self.timestamp.0.to_le_bytes());
        out[18..26].copy_from_slice(&self.records.to_le_bytes());
        out[26..34].copy_from_slice(&self.payload_bytes.to_le_bytes());
        let crc = crc32c::crc32c(&out[..34]);
        out[34..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; META_BYTES] = bytes.try_into().ok()?;
        let crc = u32::from_le_bytes(*bytes.last_chunk()?);
        if crc != crc32c::crc32c(&bytes[..34]) || bytes[0] != META_VERSION || bytes[1] > 1 {
            return None;
        }
        let word = |at: usize| bytes[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        Some(Self {
            loading: bytes[1] == 1,
            applied: Sequence(word(2)?),
            timestamp: Timestamp(word(10)?),
            records: word(18)?,
            payload_bytes: word(26)?,
        })
    }
}

fn insert(
    batch: &mut sled::Batch,
    key: &[u8],
    value: &[u8],
    version: Sequence,
    timestamp: Timestamp,
) {
    let inline = if value.len() <= PIECE_BYTES { value } else { &[] };
    let mut stored = Vec::with_capacity(RECORD_HEADER_BYTES + inline.len());
    stored.extend_from_slice(&version.0.to_le_bytes());
    stored.extend_from_slice(&timestamp.0.to_le_bytes());
    stored.extend_from_slice(&(value.len() as u32).to_le_bytes());
    stored.extend_from_slice(inline);
    batch.insert(record_key(key), stored);
    if inline.len() < value.len() {
        for (number, piece) in value.chunks(PIECE_BYTES).enumerate() {
            batch.insert(piece_key(key, number as u32), piece);
        }
    }
}

fn decode_record(stored: &[u8]) -> Option<(StoredRecord, &[u8])> {
    let (version, rest) = stored.split_first_chunk()?;
    let (timestamp, rest) = rest.split_first_chunk()?;
    let (length, inline) = rest.split_first_chunk()?;
    let value_len = u32::from_le_bytes(*length) as usize;
    let expected = if value_len <= PIECE_BYTES { value_len } else { 0 };
    let record = StoredRecord {
        value: None,
        value_len,
        version: Sequence(u64::from_le_bytes(*version)),
        timestamp: Timestamp(u64::from_le_bytes(*timestamp)),
    };
    (inline.len() == expected && value_len <= BATCH_BYTES_MAX).then_some((record, inline))
}

/// How many pieces a value is cut to: none if it is short.
fn pieces(value_len: usize) -> u32 {
    if value_len <= PIECE_BYTES { 0 } else { value_len.div_ceil(PIECE_BYTES) as u32 }
}

fn record_key(key: &[u8]) -> Vec<u8> {
    debug_assert!(!key.is_empty() && key.len() <= KEY_BYTES_MAX);
    let mut out = Vec::with_capacity(1 + key.len());
    out.push(RECORD_TAG);
    out.extend_from_slice(key);
    out
}

/// The number comes last and is always as long, so no two keys have a piece key in common.
fn piece_key(key: &[u8], piece: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(5 + key.len());
    out.push(PIECE_TAG);
    out.extend_from_slice(key);
    out.extend_from_slice(&piece.to_be_bytes());
    out
}

fn tree_name(id: PartitionId, epoch: Epoch) -> String {
    format!("partition-{:08x}-{:016x}", id.0, epoch.0)
}

fn parse_tree_name(name: &[u8]) -> Option<(PartitionId, Epoch)> {
    let name = std::str::from_utf8(name).ok()?.strip_prefix("partition-")?;
    let (id, epoch) = name.split_once('-')?;
    let id = u32::from_str_radix(id, 16).ok()?;
    Some((PartitionId(id), Epoch(u64::from_str_radix(epoch, 16).ok()?)))
}

/// Makes an empty database beside `path` and moves it there: whole or not at all.
fn make_directory(path: &Path, options: &SledOptions) -> Result<(), StoreError> {
    let fail = |error: io::Error| io_error(path, &error);
    let name = path.file_name().ok_or_else(|| fail(io::ErrorKind::InvalidInput.into()))?;
    let mut new_name = name.to_owned();
    new_name.push(".new");
    let new = path.with_file_name(new_name);
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    fs::create_dir_all(&new).map_err(fail)?;
    drop(open_database(&new, options)?);
    for entry in fs::read_dir(&new).map_err(fail)? {
        File::open(entry.map_err(fail)?.path()).and_then(|file| file.sync_all()).map_err(fail)?;
    }
    File::open(&new).and_then(|directory| directory.sync_all()).map_err(fail)?;
    fs::rename(&new, path).map_err(fail)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(fail)
}

fn open_database(path: &Path, options: &SledOptions) -> Result<sled::Db, StoreError> {
    let fail = |error: io::Error| io_error(path, &error);
    for entry in fs::read_dir(path).map_err(fail)? {
        let file = entry.map_err(fail)?.path();
        if file.extension().is_some_and(|extension| extension == "generating") {
            fs::remove_file(file).map_err(fail)?;
        }
    }
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(options.cache_bytes)
        .segment_size(options.segment_bytes);
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(error)) => Err(store_error(path, error)),
        Err(panic) => Err(StoreError::Damaged {
            path: path.display().to_string(),
            message: panic_text(&*panic),
        }),
    }
}

fn store_error(path: &Path, error: sled::Error) -> StoreError {
    let path_text = path.display().to_string();
    match error {
        sled::Error::Io(error) => io_error(path, &error),
        sled::Error::Corruption { at, .. } => StoreError::Damaged {
            path: path_text,
            message: match at {
                Some(at) => format!("sled found corruption at {at:?}"),
                None => "sled found corruption".to_owned(),
            },
        },
        sled::Error::CollectionNotFound(_) | sled::Error::ReportableBug(_) => {
            StoreError::Damaged { path: path_text, message: error.to_string() }
        }
        other => StoreError::Io { path: path_text, message: other.to_string() },
    }
}

fn io_error(path: &Path, error: &io::Error) -> StoreError {
    let path = path.display().to_string();
    match error.kind() {
        // A quota and a limit on the file's size end like a full disk: someone makes room.
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            StoreError::DiskFull { path }
        }
        _ => StoreError::Io { path, message: error.to_string() },
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("sled panicked: {}", text.unwrap_or("without a message"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use stateside_types::{Change, Condition, WriteEntry};

    use super::*;
    use crate::StateStore;

    /// Number of pieces in the tree.
    fn stored_pieces(engine: &SledEngine) -> usize {
        let tree = engine.shared.read(|db| db.open_tree(tree_name(PartitionId(1), Epoch(1))));
        tree.unwrap().scan_prefix([PIECE_TAG]).count()
    }

    fn write(store: &mut SledStore, change: Change<'_>) {
        let entry = WriteEntry { key: b"key", change, condition: Condition::None };
        let sequence = store.applied().next();
        store.apply(sequence, Timestamp(1), &[entry]);
        let work = store.take_work(sequence).unwrap();
        store.finish_work(work()).unwrap();
    }

    #[test]
    fn pieces_of_a_value_go_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sled");
        let engine = SledEngine::open(&path, SledOptions::default()).unwrap();
        let mut store = engine.partition(PartitionId(1), Epoch(1)).unwrap();
        for (pieces, length) in [
            (0, PIECE_BYTES),
            (2, PIECE_BYTES + 1),
            (5, 5 * PIECE_BYTES),
            (3, 3 * PIECE_BYTES),
            (0, 7),
        ] {
            write(&mut store, Change::Put(&vec![1; length]));
            assert_eq!(stored_pieces(&engine), pieces, "of a value of {length} bytes");
        }
        write(&mut store, Change::Put(&vec![1; 2 * PIECE_BYTES]));
        write(&mut store, Change::Remove);
        assert_eq!(stored_pieces(&engine), 0);
        assert_eq!(store.stats().records, 0);
    }

    #[test]
    fn tree_names_parse_back_and_others_do_not() {
        let (id, epoch) = (PartitionId(u32::MAX), Epoch(17));
        assert_eq!(parse_tree_name(tree_name(id, epoch).as_bytes()), Some((id, epoch)));
        for other in ["__sled__default", "partition-", "partition-x-1", "partition-1"] {
            assert_eq!(parse_tree_name(other.as_bytes()), None);
        }
    }

    #[test]
    fn damaged_meta_and_records_do_not_read() {
        let meta = Meta { applied: Sequence(5), records: 3, ..Meta::default() };
        assert_eq!(Meta::decode(&meta.encode()), Some(meta));
        for at in 0..META_BYTES {
            let mut bytes = meta.encode();
            bytes[at] ^= 1;
            assert_eq!(Meta::decode(&bytes), None, "byte {at}");
        }
        for length in 0..RECORD_HEADER_BYTES {
            assert!(decode_record(&vec![0; length]).is_none());
        }
        let mut long = vec![0; RECORD_HEADER_BYTES];
        long[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(decode_record(&long).is_none());
    }
}
