//! The engine sled, for stores of kind `sled`. The only file that calls it.
//!
//! **Why a crash leaves a prefix.** sled writes a batch into its one log between a manifest that names
//! the batch's end and that end; recovery reads the log in order and stops at the first torn message, and
//! at a manifest whose end it does not find (`LogRead::BatchManifest` in sled's `pagecache/iterator.rs`).
//! So every tree is recovered at the end of some batch.
//!
//! **What sled does not do itself**, and this file or `disk_store/engine.rs` does:
//! - `Db::flush` ends in `sync_file_range`, which neither flushes the disk's cache nor the file's
//!   size. The data file gets an `fdatasync` of its own before anything counts as covered.
//! - A killed process may leave `snap.*.generating` behind, half written; sled then takes it for
//!   the newest snapshot of its page table and refuses to open. It is removed first: sled renames
//!   the file when it is complete.
//! - The lock of a directory is let go of by sled's own threads, some time after the database was dropped: opening
//!   it again at once waits for that.
//! - `conf` is not written atomically. A new directory is made under another name and renamed.
//! - Pages over a quarter of a segment go to files of their own that sled never syncs, and whose
//!   loss its recovery passes over in silence. Segments of 8 MiB and values cut to pieces of 16 KiB
//!   keep the largest page (an inner node of 256 keys of 4 KiB) below that.
//! - After any failed write sled fails everything until it is opened anew.
//! - Panics on damaged files: caught, and reported as damage.

use std::{
    fs::{self, File},
    ops::Bound,
    path::Path,
    thread,
    time::Duration,
};

use crate::disk_store::{
    Database, DiskEngine, DiskLimits, DiskStore, EngineError, Tree, TreeChange,
};

/// How often, and after what pause, a directory is tried that is still locked.
const LOCK_TRIES: u32 = 200;
const LOCK_STEP: Duration = Duration::from_millis(10);

/// One sled database, shared by all partitions whose stores are on its disk.
pub type SledEngine = DiskEngine<Sled>;
/// Records of one partition in sled.
pub type SledStore = DiskStore<Sled>;

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

/// An open database.
pub struct Sled {
    database: sled::Db,
    data_file: File,
}

/// Tries to open a database until the threads of whoever had it open have ended.
fn open_when_unlocked(mut open: impl FnMut() -> sled::Result<sled::Db>) -> sled::Result<sled::Db> {
    let is_locked = |error: &sled::Error| error.to_string().contains("could not acquire lock");
    for _ in 1..LOCK_TRIES {
        match open() {
            Err(error) if is_locked(&error) => thread::sleep(LOCK_STEP),
            opened => return opened,
        }
    }
    open()
}

impl Database for Sled {
    type Options = SledOptions;
    type Tree = sled::Tree;
    const KIND: &'static str = "sled";

    fn limits(options: &SledOptions) -> DiskLimits {
        let SledOptions { free_bytes_min, cover_interval, .. } = *options;
        DiskLimits { free_bytes_min, cover_interval }
    }

    fn open(path: &Path, options: &SledOptions) -> Result<Self, EngineError> {
        for entry in fs::read_dir(path).map_err(EngineError::Io)? {
            let file = entry.map_err(EngineError::Io)?.path();
            if file.extension().is_some_and(|extension| extension == "generating") {
                fs::remove_file(file).map_err(EngineError::Io)?;
            }
        }
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(options.cache_bytes)
            .segment_size(options.segment_bytes);
        let database = open_when_unlocked(|| config.open())?;
        let data_file = File::open(path.join("db")).map_err(EngineError::Io)?;
        Ok(Self { database, data_file })
    }

    fn tree_names(&self) -> Result<Vec<Vec<u8>>, EngineError> {
        Ok(self.database.tree_names().iter().map(|name| name.to_vec()).collect())
    }

    fn tree(&self, name: &str) -> Result<sled::Tree, EngineError> {
        Ok(self.database.open_tree(name)?)
    }

    fn drop_tree(&self, name: &str) -> Result<bool, EngineError> {
        // Its space is free as sled goes on writing.
        Ok(self.database.drop_tree(name)?)
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.database.flush()?;
        // The kernel may have marked the pages clean: a second try would prove nothing.
        self.data_file.sync_data().map_err(|error| EngineError::Failed(error.to_string()))
    }

    fn disk_bytes(&self) -> Result<u64, EngineError> {
        Ok(self.database.size_on_disk()?)
    }
}

impl Tree for sled::Tree {
    type Bytes = sled::IVec;

    fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, EngineError> {
        Ok(sled::Tree::get(self, key)?)
    }

    fn range(
        &self,
        from: Bound<Vec<u8>>,
        to: Bound<Vec<u8>>,
    ) -> impl Iterator<Item = Result<(sled::IVec, sled::IVec), EngineError>> {
        sled::Tree::range::<Vec<u8>, _>(self, (from, to)).map(|entry| Ok(entry?))
    }

    fn apply(&self, batch: Vec<TreeChange>) -> Result<(), EngineError> {
        let mut sled_batch = sled::Batch::default();
        for change in batch {
            match change {
                TreeChange::Put(key, value) => sled_batch.insert(key, value),
                TreeChange::Remove(key) => sled_batch.remove(key),
            }
        }
        Ok(self.apply_batch(sled_batch)?)
    }
}

impl From<sled::Error> for EngineError {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) => Self::Io(error),
            sled::Error::Corruption { at, .. } => Self::Damaged(match at {
                Some(at) => format!("sled found corruption at {at:?}"),
                None => "sled found corruption".to_owned(),
            }),
            sled::Error::CollectionNotFound(_) | sled::Error::ReportableBug(_) => {
                Self::Damaged(error.to_string())
            }
            other => Self::Failed(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node's first start makes the database, closes it, moves it to its place and opens it there. Now and then
    /// that failed with "could not acquire lock", and the node served nothing.
    #[test]
    fn a_database_that_was_open_a_moment_ago_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let options = SledOptions::default();
        drop(Sled::open(directory.path(), &options).unwrap());
        let config = sled::Config::new().path(directory.path()).segment_size(options.segment_bytes);
        let lock = File::open(directory.path().join("db")).unwrap();
        lock.lock().unwrap();
        let mut tries = 0;
        let opened = open_when_unlocked(|| {
            tries += 1;
            let opened = config.open();
            if tries == 1 {
                lock.unlock().unwrap();
            }
            opened
        });
        assert_eq!((opened.map(drop), tries), (Ok(()), 2));
    }
}
