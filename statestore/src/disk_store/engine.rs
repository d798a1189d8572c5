//! What every engine on disk shares: opening, failures, flushes, and whose tree is open. What is in
//! a tree is `tree.rs`'s business. Blocking, all of it: never on an executor's thread. One
//! [`DiskEngine`] per disk holds one tree for each partition.
//!
//! An engine is asked for little: atomic batches on a tree, of which a crash leaves a prefix; and one
//! sync for all trees. Only batches that our own log holds durably are handed to it, so it is never ahead
//! of that log.
//!
//! ```text
//!   write ─► in the engine's memory ─ sync n ─► on disk        Stamp { generation, covered_by: n }
//!                  │ a failed write
//!                  ▼
//!            engine refuses everything ─ room again ─► opened anew: next generation; what was not
//!                                                      synced may be lost, and is written again
//! ```
//! After a failed write an engine fails everything until it is opened anew. A full disk is therefore
//! refused before the engine meets it; if it does, it is reopened once there is room.

use std::{
    any::Any,
    collections::BTreeSet,
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

use stateside_types::{Epoch, PartitionId};

use super::DiskStore;
use crate::StoreError;

/// How long a reopening waits for the engine's own threads to let go of its files.
const REOPEN_WAIT: Duration = Duration::from_secs(5);

/// An engine: one database in one directory, with a tree of its own for each partition.
pub trait Database: Sized + Send + Sync + 'static {
    /// How it is run.
    type Options: Clone + Send + Sync;
    /// One partition's tree.
    type Tree: Tree;
    /// The name that configuration uses for stores on this engine.
    const KIND: &'static str;

    /// When to refuse and when to sync.
    fn limits(options: &Self::Options) -> DiskLimits;

    /// Opens the database, making it if there is none.
    ///
    /// # Errors
    /// [`EngineError`].
    fn open(path: &Path, options: &Self::Options) -> Result<Self, EngineError>;

    /// The names of its trees, possibly with others that are none of ours.
    ///
    /// # Errors
    /// [`EngineError`].
    fn tree_names(&self) -> Result<Vec<Vec<u8>>, EngineError>;

    /// Opens a tree, making it if there is none.
    ///
    /// # Errors
    /// [`EngineError`].
    fn tree(&self, name: &str) -> Result<Self::Tree, EngineError>;

    /// Drops a tree that nobody has open. False when there was none.
    ///
    /// # Errors
    /// [`EngineError`].
    fn drop_tree(&self, name: &str) -> Result<bool, EngineError>;

    /// Returns when everything written before survives a crash of the machine.
    ///
    /// # Errors
    /// [`EngineError`].
    fn sync(&self) -> Result<(), EngineError>;

    /// Bytes that the database takes on the disk.
    ///
    /// # Errors
    /// [`EngineError`].
    fn disk_bytes(&self) -> Result<u64, EngineError>;
}

/// An ordered map of byte strings. Used by one thread at a time.
pub trait Tree {
    /// What a read brings.
    type Bytes: AsRef<[u8]>;

    /// The value of `key`.
    ///
    /// # Errors
    /// [`EngineError`].
    fn get(&self, key: &[u8]) -> Result<Option<Self::Bytes>, EngineError>;

    /// As [`Self::get`], of what nobody is likely to ask for again: it is changed next, or everything is
    /// read in its order. An engine that keeps copies need not make one.
    ///
    /// # Errors
    /// [`EngineError`].
    fn get_once(&self, key: &[u8]) -> Result<Option<Self::Bytes>, EngineError> {
        self.get(key)
    }

    /// Entries between two keys, in the order of keys; what is written meanwhile may show or not.
    fn range(
        &self,
        from: Bound<Vec<u8>>,
        to: Bound<Vec<u8>>,
    ) -> impl Iterator<Item = Result<(Self::Bytes, Self::Bytes), EngineError>>;

    /// Applies changes in their order: all or none, also across a crash.
    ///
    /// # Errors
    /// [`EngineError`].
    fn apply(&self, batch: Vec<Change>) -> Result<(), EngineError>;
}

/// A change of one entry.
#[derive(Debug)]
pub enum Change {
    /// Key, value.
    Put(Vec<u8>, Vec<u8>),
    /// Key.
    Remove(Vec<u8>),
}

/// Why an engine did not do what it was asked for.
#[derive(Debug)]
pub enum EngineError {
    /// The system refused; a full disk too.
    Io(io::Error),
    /// The engine refuses everything since an earlier failure: it may go on when it is opened anew.
    Stopped,
    /// It will not go on, not even when it is opened anew.
    Failed(String),
    /// Its files are not what it wrote.
    Damaged(String),
}

/// When an engine refuses and when it syncs.
#[derive(Clone, Copy, Debug)]
pub struct DiskLimits {
    /// Writes are refused as `DiskFull` while the disk has less room than this, bytes.
    pub free_bytes_min: u64,
    /// Longest time between two writes that only the first of them is covered by.
    pub cover_interval: Duration,
}

/// One database, shared by all partitions whose stores are on its disk. Cheap to clone.
pub struct DiskEngine<D: Database> {
    shared: Arc<Shared<D>>,
}

impl<D: Database> Clone for DiskEngine<D> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<D: Database> {
    path: PathBuf,
    options: D::Options,
    limits: DiskLimits,
    /// None after a failed reopening.
    database: RwLock<Option<D>>,
    /// The first failure that the engine itself will not get over.
    failure: Mutex<Option<Failure>>,
    /// When the last flush ended; held during one.
    flush: Mutex<Instant>,
    /// How often the database was reopened. What was written to an earlier one and not flushed is
    /// lost, so no later flush covers it.
    generation: AtomicU64,
    flushes_started: AtomicU64,
    /// Number of the last flush that succeeded.
    flushes_done: AtomicU64,
    /// `flushes_done` when the database was last reopened because it had stopped.
    reopened_at: Mutex<Option<u64>>,
    open_trees: Mutex<BTreeSet<(PartitionId, Epoch)>>,
}

#[derive(Clone)]
enum Failure {
    DiskFull,
    /// It does not say why: a thread of its own failed.
    Stopped,
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
    /// The engine has it in memory, at least.
    Open,
    /// It survives a crash.
    Covered,
    /// The engine was reopened since: it may be lost.
    Uncertain,
}

impl<D: Database> DiskEngine<D> {
    /// Opens the database in the directory `path`, making it if there is none. Blocks: the engine
    /// reads what it needs to.
    ///
    /// # Errors
    /// [`StoreError`]; `Io` also when another process has it open.
    pub fn open(path: &Path, options: D::Options) -> Result<Self, StoreError> {
        if !path.exists() {
            make_directory::<D>(path, &options)?;
        }
        let database = open_database::<D>(path, &options)?;
        let shared = Shared {
            path: path.to_owned(),
            limits: D::limits(&options),
            options,
            database: RwLock::new(Some(database)),
            failure: Mutex::new(None),
            flush: Mutex::new(Instant::now()),
            generation: AtomicU64::new(0),
            flushes_started: AtomicU64::new(0),
            flushes_done: AtomicU64::new(0),
            reopened_at: Mutex::new(None),
            open_trees: Mutex::default(),
        };
        // What was recovered may be in the page cache only, and a store tells on opening what it
        // covers. Not by `flush`: a full disk is no reason not to read.
        shared.read(D::sync)?;
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Opens a partition's store, making it if there is none. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when a load of it was interrupted: [`Self::remove`] it and
    /// load again. [`StoreError::Io`] when it is open already.
    pub fn partition(&self, id: PartitionId, epoch: Epoch) -> Result<DiskStore<D>, StoreError> {
        let open = OpenTree::claim(&self.shared, id, epoch)?;
        let tree = TreeAccess { open, name: tree_name(id, epoch) };
        let name = tree.name.as_bytes();
        let exists =
            self.shared.read(|db| Ok(db.tree_names()?.iter().any(|other| other == name)))?;
        // Only making a tree needs room on the disk.
        let session = if exists { tree.reading()? } else { tree.writing()? };
        let meta = session.recover()?;
        let requests = session.read_requests()?;
        drop(session);
        Ok(DiskStore::new(tree, meta, requests))
    }

    /// Drops a partition's store; its space is free again at once or as the engine goes on writing.
    /// False when there was none. Blocks. A crash meanwhile may leave some of its space taken.
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
        let names = self.shared.read(D::tree_names)?;
        Ok(names.iter().filter_map(|name| parse_tree_name(name)).collect())
    }

    /// Bytes that the database takes on the disk.
    ///
    /// # Errors
    /// [`StoreError`] when the files cannot be looked at.
    pub fn disk_bytes(&self) -> Result<u64, StoreError> {
        self.shared.read(D::disk_bytes)
    }
}

impl<D: Database> Shared<D> {
    /// Calls the engine, turning its errors and panics into ours.
    fn call<T>(&self, call: impl FnOnce() -> Result<T, EngineError>) -> Result<T, StoreError> {
        match catch_unwind(AssertUnwindSafe(call)) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(EngineError::Stopped)) => {
                lock(&self.failure).get_or_insert(Failure::Stopped);
                // Transient until a reopening has shown otherwise.
                Err(self.disk_full())
            }
            Ok(Err(error)) => {
                let error = store_error(&self.path, error);
                if matches!(error, StoreError::DiskFull { .. }) {
                    // The engine's own threads write too; a read may be the first to hear of it.
                    self.note_failure(&error);
                }
                Err(error)
            }
            Err(panic) => Err(self.damaged(panic_text::<D>(&*panic))),
        }
    }

    /// Calls the engine to read.
    fn read<T>(&self, call: impl FnOnce(&D) -> Result<T, EngineError>) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = &*database else { return Err(self.disk_full()) };
        self.call(|| call(database))
    }

    /// Makes sure that a write is worth trying.
    fn prepare_write(&self) -> Result<(), StoreError> {
        self.check_room()?;
        self.get_over_failure()
    }

    /// Calls the engine to write: if there is room, and if it has not failed.
    fn write<T>(&self, call: impl FnOnce(&D) -> Result<T, EngineError>) -> Result<T, StoreError> {
        self.prepare_write()?;
        let answer = self.read(call);
        if let Err(error) = &answer {
            self.note_failure(error);
        }
        answer
    }

    /// Remembers an error that the engine will answer every further write with.
    fn note_failure(&self, error: &StoreError) {
        let failure = match error {
            StoreError::DiskFull { .. } | StoreError::Unreadable { .. } => Failure::DiskFull,
            StoreError::Io { message, .. } => Failure::Other(message.clone()),
            // One tree's pages: the others can go on.
            StoreError::Damaged { .. } => return,
        };
        lock(&self.failure).get_or_insert(failure);
    }

    fn check_room(&self) -> Result<(), StoreError> {
        let disk = rustix::fs::statvfs(&self.path)
            .map_err(|error| io_error(&self.path, &io::Error::from(error)))?;
        if disk.f_bavail * disk.f_frsize < self.limits.free_bytes_min {
            return Err(self.disk_full());
        }
        Ok(())
    }

    fn met_a_full_disk(&self) -> bool {
        matches!(*lock(&self.failure), Some(Failure::DiskFull))
    }

    /// Opens the engine anew if it met a full disk: nothing else ends its refusals.
    fn get_over_failure(&self) -> Result<(), StoreError> {
        let failure = lock(&self.failure).clone();
        match failure {
            None => return Ok(()),
            Some(Failure::Other(message)) => return Err(self.io(message)),
            Some(Failure::DiskFull | Failure::Stopped) => {}
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let failure = lock(&self.failure).clone();
        if let Some(Failure::Stopped) = failure {
            // It stopped although there was room, was opened anew, and stopped before it had
            // synced anything: a third time would end the same way.
            let done = self.flushes_done.load(Ordering::SeqCst);
            if lock(&self.reopened_at).replace(done) == Some(done) {
                let message = format!("{} stops again and again; its own log may say why", D::KIND);
                *lock(&self.failure) = Some(Failure::Other(message.clone()));
                return Err(self.io(message));
            }
        }
        if failure.is_none() {
            return Ok(());
        }
        let old = database.take();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(old))) {
            return Err(self.damaged(panic_text::<D>(&*panic)));
        }
        let deadline = Instant::now() + REOPEN_WAIT;
        loop {
            match open_database::<D>(&self.path, &self.options) {
                Ok(opened) => {
                    *database = Some(opened);
                    self.generation.fetch_add(1, Ordering::SeqCst);
                    *lock(&self.failure) = None;
                    return Ok(());
                }
                // The engine's own threads may still hold the files that they wrote to.
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
        self.write(D::sync)?;
        self.flushes_done.store(this, Ordering::SeqCst);
        *last = Instant::now();
        Ok(())
    }

    fn flush_is_due(&self) -> bool {
        // A flush under way is none too few.
        self.flush.try_lock().is_ok_and(|last| last.elapsed() >= self.limits.cover_interval)
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
struct OpenTree<D: Database> {
    shared: Arc<Shared<D>>,
    id: PartitionId,
    epoch: Epoch,
}

impl<D: Database> OpenTree<D> {
    fn claim(shared: &Arc<Shared<D>>, id: PartitionId, epoch: Epoch) -> Result<Self, StoreError> {
        if !lock(&shared.open_trees).insert((id, epoch)) {
            return Err(shared.io(format!("the store of partition {id}, epoch {epoch}, is in use")));
        }
        Ok(Self { shared: Arc::clone(shared), id, epoch })
    }
}

impl<D: Database> Drop for OpenTree<D> {
    fn drop(&mut self) {
        lock(&self.shared.open_trees).remove(&(self.id, self.epoch));
    }
}

/// A partition's tree. Shared by its store and the work under way.
pub(super) struct TreeAccess<D: Database> {
    open: OpenTree<D>,
    name: String,
}

impl<D: Database> TreeAccess<D> {
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

    fn shared(&self) -> &Shared<D> {
        &self.open.shared
    }

    /// For reads only: goes on when writes have failed, if the engine does.
    pub(super) fn reading(&self) -> Result<TreeSession<'_, D>, StoreError> {
        // An engine that met a full disk may refuse reads too, and nobody may want to write.
        if self.shared().met_a_full_disk() && self.shared().check_room().is_ok() {
            self.shared().get_over_failure()?;
        }
        let database = self.shared().database.read().unwrap_or_else(PoisonError::into_inner);
        let tree = match &*database {
            Some(database) => self.shared().call(|| database.tree(&self.name))?,
            None => return Err(self.shared().disk_full()),
        };
        Ok(TreeSession { access: self, tree, _database: database })
    }

    /// For writes.
    pub(super) fn writing(&self) -> Result<TreeSession<'_, D>, StoreError> {
        self.shared().prepare_write()?;
        self.reading()
    }
}

/// Calls on one tree during which the database is not reopened: what one call read still holds
/// when the next writes.
pub(super) struct TreeSession<'a, D: Database> {
    access: &'a TreeAccess<D>,
    tree: D::Tree,
    _database: RwLockReadGuard<'a, Option<D>>,
}

/// What an engine's tree reads are.
type Bytes<D> = <<D as Database>::Tree as Tree>::Bytes;
/// A key and its value.
pub(super) type Entry<D> = (Bytes<D>, Bytes<D>);

impl<D: Database> TreeSession<'_, D> {
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes<D>>, StoreError> {
        self.access.shared().call(|| self.tree.get(key))
    }

    pub(super) fn get_once(&self, key: &[u8]) -> Result<Option<Bytes<D>>, StoreError> {
        self.access.shared().call(|| self.tree.get_once(key))
    }

    /// To be advanced with [`Self::next`] alone.
    pub(super) fn range(
        &self,
        from: Bound<Vec<u8>>,
        to: Bound<Vec<u8>>,
    ) -> Result<impl Iterator<Item = Result<Entry<D>, EngineError>>, StoreError> {
        self.access.shared().call(|| Ok(self.tree.range(from, to)))
    }

    pub(super) fn next(
        &self,
        entries: &mut impl Iterator<Item = Result<Entry<D>, EngineError>>,
    ) -> Result<Option<Entry<D>>, StoreError> {
        self.access.shared().call(|| entries.next().transpose())
    }

    /// Applies a batch: whole or not at all, also across a crash.
    pub(super) fn apply(&self, batch: Vec<Change>) -> Result<(), StoreError> {
        let answer = self.access.shared().call(|| self.tree.apply(batch));
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

/// Makes an empty database beside `path` and moves it there: whole or not at all. Engines do not make
/// theirs atomically.
fn make_directory<D: Database>(path: &Path, options: &D::Options) -> Result<(), StoreError> {
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
    drop(open_database::<D>(&new, options)?);
    sync_all(&new).map_err(fail)?;
    fs::rename(&new, path).map_err(fail)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(fail)
}

/// Brings a directory and all below it to disk.
fn sync_all(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_all(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(directory)?.sync_all()
}

fn open_database<D: Database>(path: &Path, options: &D::Options) -> Result<D, StoreError> {
    match catch_unwind(AssertUnwindSafe(|| D::open(path, options))) {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(error)) => Err(store_error(path, error)),
        Err(panic) => Err(StoreError::Damaged {
            path: path.display().to_string(),
            message: panic_text::<D>(&*panic),
        }),
    }
}

fn store_error(path: &Path, error: EngineError) -> StoreError {
    let path_text = path.display().to_string();
    match error {
        EngineError::Io(error) => io_error(path, &error),
        EngineError::Stopped => StoreError::DiskFull { path: path_text },
        EngineError::Failed(message) => StoreError::Io { path: path_text, message },
        EngineError::Damaged(message) => StoreError::Damaged { path: path_text, message },
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

fn panic_text<D: Database>(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("{} panicked: {}", D::KIND, text.unwrap_or("without a message"))
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
