//! The engine fjall, a log-structured merge tree, for stores of kind `lsm`. The only file that calls it.
//!
//! ```text
//!   batch ─► journal (one for all partitions) ─► memtable of its keyspace ─► tables, level by level
//!            fdatasync covers every partition
//! ```
//! A partition is a keyspace: a directory of tables of its own, so that removing a partition is
//! removing a directory. Journals, block cache, open files and threads are shared by all.
//!
//! **Why a crash leaves a prefix.** A batch stands in the journal between a start and an end with a
//! checksum over it; recovery reads journals in order and cuts at the first batch that is not whole. A
//! memtable becomes a table only after the journal was synced (`WorkerMessage::Flush` in
//! fjall's `worker_pool.rs`), so no table is ahead of the journal.
//!
//! **What fjall does not do itself**, and this file or `disk_store/engine.rs` does:
//! - A new database is not made atomically: it is made under another name and renamed.
//! - When one of its threads fails it refuses all writes until it is opened anew, without saying why;
//!   and a write that finds four full memtables, or thirty tables at level 0, then waits
//!   for a thread that is no more. So a write waits here, in front of it, where a failed thread is
//!   noticed and the wait ends.
//! - Memtables are bounded one by one, and by the journals that they keep alive: 64 MiB of sealed
//!   ones at most, then those that hold the oldest are written out. With a thousand partitions
//!   that, and not the size of one memtable, bounds their memory.

use std::{
    ops::Bound,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use fjall::{KeyspaceCreateOptions, PersistMode};

use crate::disk_store::{
    Database, DiskEngine, DiskLimits, DiskStore, EngineError, Tree, TreeChange,
};

/// Sealed journals above which fjall writes out the memtables that keep the oldest. Its smallest.
const JOURNAL_BYTES_MAX: u64 = 64 << 20;
/// Files that are kept open: tables of all partitions.
const OPEN_FILES_MAX: usize = 256;
/// Full memtables of a partition, and tables at its level 0, above which a write waits. fjall itself waits
/// from 4 and 30 on; one write adds one to either at most.
const MEMTABLES_MAX: usize = 2;
const LEVEL_0_TABLES_MAX: usize = 20;
/// How long a write waits for them before it is handed out anew, and between two looks.
const STALL_MAX: Duration = Duration::from_secs(60);
const STALL_STEP: Duration = Duration::from_millis(2);

/// One fjall database, shared by all partitions whose stores are on its disk.
pub type LsmEngine = DiskEngine<Lsm>;
/// Records of one partition in a log-structured merge tree.
pub type LsmStore = DiskStore<Lsm>;

/// How an engine is run.
#[derive(Clone, Copy, Debug)]
pub struct LsmOptions {
    /// Blocks of tables that are kept in memory, bytes. Memtables come on top.
    pub cache_bytes: u64,
    /// Size that a partition's memtable is written out at, bytes.
    pub memtable_bytes: u64,
    /// Threads that write out memtables and merge tables.
    pub threads: usize,
    /// Writes are refused as `DiskFull` while the disk has less room than this, bytes: merging writes new
    /// tables before it deletes the old.
    pub free_bytes_min: u64,
    /// Longest time between two writes that only the first of them is covered by.
    pub cover_interval: Duration,
}

impl Default for LsmOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            memtable_bytes: 16 << 20,
            threads: 1,
            free_bytes_min: 128 << 20,
            cover_interval: Duration::from_secs(1),
        }
    }
}

/// An open database.
pub struct Lsm {
    database: fjall::Database,
    memtable_bytes: u64,
}

/// A partition's keyspace.
pub struct LsmTree {
    database: fjall::Database,
    keyspace: fjall::Keyspace,
}

impl Database for Lsm {
    type Options = LsmOptions;
    type Tree = LsmTree;
    const KIND: &'static str = "lsm";

    fn limits(options: &LsmOptions) -> DiskLimits {
        let LsmOptions { free_bytes_min, cover_interval, .. } = *options;
        DiskLimits { free_bytes_min, cover_interval }
    }

    fn open(path: &Path, options: &LsmOptions) -> Result<Self, EngineError> {
        let database = fjall::Database::builder(path)
            .cache_size(options.cache_bytes)
            .worker_threads(options.threads.max(1))
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .max_cached_files(Some(OPEN_FILES_MAX))
            .open()?;
        Ok(Self { database, memtable_bytes: options.memtable_bytes })
    }

    fn tree_names(&self) -> Result<Vec<Vec<u8>>, EngineError> {
        let names = self.database.list_keyspace_names();
        Ok(names.iter().map(|name| name.as_bytes().to_vec()).collect())
    }

    fn tree(&self, name: &str) -> Result<LsmTree, EngineError> {
        let options = || KeyspaceCreateOptions::default().max_memtable_size(self.memtable_bytes);
        let keyspace = self.database.keyspace(name, options)?;
        Ok(LsmTree { database: self.database.clone(), keyspace })
    }

    fn drop_tree(&self, name: &str) -> Result<bool, EngineError> {
        if !self.database.keyspace_exists(name) {
            return Ok(false);
        }
        // Its directory goes with the last handle; a journal that still names it holds one.
        self.database.delete_keyspace(self.tree(name)?.keyspace)?;
        Ok(true)
    }

    fn sync(&self) -> Result<(), EngineError> {
        Ok(self.database.persist(PersistMode::SyncData)?)
    }

    fn disk_bytes(&self) -> Result<u64, EngineError> {
        Ok(self.database.disk_space()?)
    }
}

impl LsmTree {
    /// Waits until fjall's threads have caught up with this tree.
    fn wait_for_room(&self) -> Result<(), EngineError> {
        let behind = || {
            self.keyspace.sealed_memtable_count() > MEMTABLES_MAX
                || self.keyspace.l0_table_count() > LEVEL_0_TABLES_MAX
        };
        let deadline = Instant::now() + STALL_MAX;
        while behind() {
            // Costs nothing when nothing is buffered, and tells whether a thread has failed.
            self.database.persist(PersistMode::Buffer)?;
            if Instant::now() > deadline {
                return Err(EngineError::Stopped);
            }
            thread::sleep(STALL_STEP);
        }
        Ok(())
    }
}

impl Tree for LsmTree {
    type Bytes = fjall::Slice;

    fn get(&self, key: &[u8]) -> Result<Option<fjall::Slice>, EngineError> {
        Ok(self.keyspace.get(key)?)
    }

    fn range(
        &self,
        from: Bound<Vec<u8>>,
        to: Bound<Vec<u8>>,
    ) -> impl Iterator<Item = Result<(fjall::Slice, fjall::Slice), EngineError>> {
        self.keyspace.range::<Vec<u8>, _>((from, to)).map(|guard| Ok(guard.into_inner()?))
    }

    fn apply(&self, batch: Vec<TreeChange>) -> Result<(), EngineError> {
        self.wait_for_room()?;
        let mut writes = self.database.batch();
        for change in batch {
            match change {
                TreeChange::Put(key, value) => writes.insert(&self.keyspace, key, value),
                TreeChange::Remove(key) => writes.remove(&self.keyspace, key),
            }
        }
        Ok(writes.commit()?)
    }
}

impl From<fjall::Error> for EngineError {
    fn from(error: fjall::Error) -> Self {
        match error {
            fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
                Self::Io(error)
            }
            fjall::Error::Poisoned => Self::Stopped,
            fjall::Error::Locked => {
                Self::Io(std::io::Error::other("another process has the database open"))
            }
            fjall::Error::KeyspaceDeleted => Self::Failed("the keyspace was deleted".to_owned()),
            damage => Self::Damaged(damage.to_string()),
        }
    }
}
