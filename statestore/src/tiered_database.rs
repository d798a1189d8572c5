//! The engine of stores of kind `tiered`: the engine of `lsm` on a slow directory, and a bounded cache of its
//! records on a fast one.
//!
//! ```text
//!            ┌ fast directory: cache ┐           ┌ slow directory: everything ┐
//!   look-up ─┤ known ────────────────┼─► answer  │                            │
//!            │ not known ────────────┼──────────►│ look-up ─┬─► answer        │
//!            │ admitted ◄────────────┼───────────┼──────────┘                 │
//!   batch ───┤ 1 forgotten, written  ├──────────►│ 2 written                  │
//!            │ 3 found from here on  │◄──────────┤                            │
//!            └───────────────────────┘  ranges ─►│ scans, snapshots, loads'   │
//!                                                └ clearing; sync, recovery ──┘
//! ```
//! **The slow tier alone is the truth.** What the fast one has are copies that no recovery, sync or
//! scan relies on, and they begin empty with each opening; so losing them at any moment loses nothing. A tree is
//! used by one thread at a time, so between a look-up that missed and its admission, or between the three
//! steps of a batch, nobody else reads or changes the same key. When the slow tier refuses a batch it
//! may have it or not: then the keys of the batch stay forgotten.
//!
//! What is cached: records and the pieces of long values, and that a key has none. A tree's own lines (its
//! meta, moments, requests) are few and hot, and the slow tier has them in memory.

mod entry;
mod fast_tier;
mod index;

use std::{
    collections::HashMap,
    ops::Bound,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

pub use self::fast_tier::{FAST_CAPACITY_BYTES_MIN, FastTierOptions};
use self::{
    entry::Value,
    fast_tier::{FastTier, Found},
};
use crate::{
    Lsm, LsmOptions, LsmTree, TierFigures,
    disk_store::{
        Database, DiskEngine, DiskLimits, DiskStore, EngineError, Tree, TreeChange, holds_record,
    },
};

/// One database on a slow directory with its cache on a fast one, shared by all partitions.
pub type TieredEngine = DiskEngine<Tiered>;
/// Records of one partition in it.
pub type TieredStore = DiskStore<Tiered>;

/// How an engine is run.
#[derive(Clone, Debug)]
pub struct TieredOptions {
    /// The slow tier; its directory is the engine's path.
    pub slow: LsmOptions,
    /// The fast tier.
    pub fast: FastTierOptions,
    /// What the fast tier counts.
    pub figures: Arc<TierFigures>,
}

/// An open database.
pub struct Tiered {
    slow: Lsm,
    fast: Arc<FastTier>,
    figures: Arc<TierFigures>,
    trees: Mutex<TreeNumbers>,
}

/// A tree that was dropped and one of the same name that is made later have different numbers.
#[derive(Default)]
struct TreeNumbers {
    by_name: HashMap<String, u32>,
    next: u32,
}

/// A partition's keyspace and its copies.
pub struct TieredTree {
    slow: LsmTree,
    fast: Arc<FastTier>,
    figures: Arc<TierFigures>,
    number: u32,
}

/// A value, from whichever tier.
pub enum TieredBytes {
    /// From the slow one.
    Slow(<LsmTree as Tree>::Bytes),
    /// From the fast one.
    Fast(FastBytes),
}

/// A value that the fast tier brought.
pub struct FastBytes(Value);

impl AsRef<[u8]> for TieredBytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Slow(bytes) => bytes.as_ref(),
            Self::Fast(bytes) => bytes.0.as_ref(),
        }
    }
}

impl Tiered {
    fn numbers(&self) -> MutexGuard<'_, TreeNumbers> {
        self.trees.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Database for Tiered {
    type Options = TieredOptions;
    type Tree = TieredTree;
    const KIND: &'static str = "tiered";

    fn limits(options: &TieredOptions) -> DiskLimits {
        Lsm::limits(&options.slow)
    }

    fn open(path: &Path, options: &TieredOptions) -> Result<Self, EngineError> {
        let slow = Lsm::open(path, &options.slow)?;
        let fast = FastTier::open(&options.fast, &options.figures).map_err(EngineError::Io)?;
        let (fast, figures) = (Arc::new(fast), Arc::clone(&options.figures));
        Ok(Self { slow, fast, figures, trees: Mutex::default() })
    }

    fn tree_names(&self) -> Result<Vec<Vec<u8>>, EngineError> {
        self.slow.tree_names()
    }

    fn tree(&self, name: &str) -> Result<TieredTree, EngineError> {
        let slow = self.slow.tree(name)?;
        let mut numbers = self.numbers();
        let number = match numbers.by_name.get(name) {
            Some(&number) => number,
            None => {
                let number = numbers.next;
                // Taken anew for as many partitions as were ever made while this engine was open.
                numbers.next = number.checked_add(1).ok_or_else(|| {
                    EngineError::Failed("there are no more numbers for trees".to_owned())
                })?;
                numbers.by_name.insert(name.to_owned(), number);
                number
            }
        };
        let (fast, figures) = (Arc::clone(&self.fast), Arc::clone(&self.figures));
        Ok(TieredTree { slow, fast, figures, number })
    }

    fn drop_tree(&self, name: &str) -> Result<bool, EngineError> {
        // Its copies cannot be found any more, and go in their turn.
        self.numbers().by_name.remove(name);
        self.slow.drop_tree(name)
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.slow.sync()
    }

    fn disk_bytes(&self) -> Result<u64, EngineError> {
        self.slow.disk_bytes()
    }
}

/// Counts.
fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Relaxed);
}

impl TieredTree {
    fn known(&self, key: &[u8], promotes: bool) -> Option<Option<TieredBytes>> {
        match self.fast.look_up(self.number, key, promotes) {
            Found::Known(value) => Some(value.map(|value| TieredBytes::Fast(FastBytes(value)))),
            Found::Nothing => None,
        }
    }
}

impl Tree for TieredTree {
    type Bytes = TieredBytes;

    fn get(&self, key: &[u8]) -> Result<Option<TieredBytes>, EngineError> {
        if !holds_record(key) {
            return Ok(self.slow.get(key)?.map(TieredBytes::Slow));
        }
        if let Some(known) = self.known(key, true) {
            add(&self.figures.read_hits, 1);
            return Ok(known);
        }
        let value = self.slow.get(key)?;
        add(&self.figures.read_misses, 1);
        self.fast.admit(self.number, key, value.as_deref());
        Ok(value.map(TieredBytes::Slow))
    }

    fn get_once(&self, key: &[u8]) -> Result<Option<TieredBytes>, EngineError> {
        if let Some(known) = self.known(key, false) {
            add(&self.figures.other_hits, 1);
            return Ok(known);
        }
        add(&self.figures.other_misses, 1);
        Ok(self.slow.get(key)?.map(TieredBytes::Slow))
    }

    fn range(
        &self,
        from: Bound<Vec<u8>>,
        to: Bound<Vec<u8>>,
    ) -> impl Iterator<Item = Result<(TieredBytes, TieredBytes), EngineError>> {
        let slow = |(key, value)| (TieredBytes::Slow(key), TieredBytes::Slow(value));
        self.slow.range(from, to).map(move |entry| entry.map(slow))
    }

    fn apply(&self, batch: Vec<TreeChange>) -> Result<(), EngineError> {
        let staged: Vec<_> = batch
            .iter()
            .filter_map(|change| match change {
                TreeChange::Put(key, value) => {
                    holds_record(key).then(|| self.fast.stage(self.number, key, Some(value)))
                }
                TreeChange::Remove(key) => {
                    holds_record(key).then(|| self.fast.forget(self.number, key))
                }
            })
            .collect();
        self.slow.apply(batch)?;
        staged.iter().for_each(|staged| self.fast.publish(staged));
        Ok(())
    }
}
