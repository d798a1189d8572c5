//! sled itself: opening, failures, flushes, and whose tree is open. What is in a tree is `tree.rs`'s
//! business; together they are the only files that call sled. Blocking, all of it: never on an
//! executor's thread. One [`SledEngine`] per disk holds one tree for each partition.
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
    collections::BTreeSet,
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use stateside_types::{Epoch, PartitionId};

use super::SledStore;
use crate::StoreError;

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
            free_bytes_min: 32 << 20,
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
    /// Calls sled to read.
    pub(super) fn read<T>(
        &self,
        call: impl FnOnce(&sled::Tree) -> sled::Result<T>,
    ) -> Result<T, StoreError> {
        self.access.shared().call(|| call(&self.tree))
    }

    /// Applies a batch: whole or not at all, also across a crash.
    pub(super) fn apply(&self, batch: sled::Batch) -> Result<(), StoreError> {
        let answer = self.read(|tree| tree.apply_batch(batch));
        if let Err(error) = &answer {
            self.access.shared().note_failure(error);
        }
        answer
    }

    /// To be taken after the write: a flush that starts from then on covers it.
    pub(super) fn stamp(&self) -> Stamp {
        let shared = self.access.shared();
        Stamp {
            generation: shared.generation.load(Ordering::SeqCst),
            covered_by: shared.flushes_started.load(Ordering::SeqCst) + 1,
        }
    }

    /// That the tree is not what was written.
    pub(super) fn damaged(&self, message: &str) -> StoreError {
        self.access.damaged(message)
    }
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
    use super::*;

    #[test]
    fn tree_names_parse_back_and_others_do_not() {
        let (id, epoch) = (PartitionId(u32::MAX), Epoch(17));
        assert_eq!(parse_tree_name(tree_name(id, epoch).as_bytes()), Some((id, epoch)));
        for other in ["__sled__default", "partition-", "partition-x-1", "partition-1"] {
            assert_eq!(parse_tree_name(other.as_bytes()), None);
        }
    }
}
