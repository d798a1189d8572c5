//! The engines of stores on disk: one of each kind per node, opened when the first partition needs it
//! and shared by all. Everything here blocks.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use stateside_statestore::{Database, DiskEngine, Sled, SledOptions, StateStore, TierFigures};
#[cfg(feature = "lsm")]
use stateside_statestore::{FastTierOptions, Lsm, LsmOptions, Tiered, TieredOptions};
use stateside_types::{Epoch, PartitionId, Refusal, StoreKind};

use super::partition_files::store_failed;
#[cfg(feature = "lsm")]
use crate::tiered_dirs::TieredDirs;
use crate::{config::StoreSettings, data_dir::DataDir};

/// See the file's header.
pub struct StoreEngines {
    sled: Lazy<Sled>,
    #[cfg(feature = "lsm")]
    lsm: Lazy<Lsm>,
    #[cfg(feature = "lsm")]
    tiered: Lazy<Tiered>,
}

impl StoreEngines {
    /// Engines of a data directory; none is opened yet. `tier_figures`: where the fast tier of
    /// `tiered` stores counts.
    pub fn new(
        data_dir: &DataDir,
        settings: &StoreSettings,
        tier_figures: &Arc<TierFigures>,
    ) -> Self {
        let sled = SledOptions {
            cache_bytes: u64::from(settings.sled.cache_mb) << 20,
            cover_interval: Duration::from_millis(u64::from(settings.sled.flush_ms)),
            ..SledOptions::default()
        };
        #[cfg(feature = "lsm")]
        let lsm = LsmOptions {
            cache_bytes: u64::from(settings.lsm.cache_mb) << 20,
            memtable_bytes: u64::from(settings.lsm.memtable_mb) << 20,
            cover_interval: Duration::from_millis(u64::from(settings.lsm.flush_ms)),
            ..LsmOptions::default()
        };
        #[cfg(feature = "lsm")]
        let tiered_dirs = TieredDirs::below(&data_dir.tiered(), &settings.tiered);
        #[cfg(feature = "lsm")]
        let tiered = tiered_options(settings, &tiered_dirs, tier_figures);
        #[cfg(feature = "lsm")]
        let database = tiered_dirs.database();
        #[cfg(not(feature = "lsm"))]
        let _ = tier_figures;
        Self {
            sled: Lazy::new(data_dir.sled(), sled),
            #[cfg(feature = "lsm")]
            lsm: Lazy::new(data_dir.lsm(), lsm),
            #[cfg(feature = "lsm")]
            tiered: Lazy {
                prepare: Box::new(move || tiered_dirs.prepare().map_err(|error| error.refusal())),
                ..Lazy::new(database, tiered)
            },
        }
    }

    /// Opens a partition's store, making it if there is none.
    ///
    /// # Errors
    /// As the engine says; `INVALID_ARGUMENT` when this build has none for `kind`.
    pub(super) fn open_store(
        &self,
        kind: StoreKind,
        id: PartitionId,
        epoch: Epoch,
    ) -> Result<Box<dyn StateStore>, Refusal> {
        match kind {
            StoreKind::Sled => self.sled.open_store(id, epoch),
            #[cfg(feature = "lsm")]
            StoreKind::Lsm => self.lsm.open_store(id, epoch),
            #[cfg(feature = "lsm")]
            StoreKind::Tiered => self.tiered.open_store(id, epoch),
            #[cfg(not(feature = "lsm"))]
            StoreKind::Lsm | StoreKind::Tiered => Err(Refusal::new(
                stateside_types::Reason::InvalidArgument,
                format!("this build has no `{kind}` store: it was made without the feature `lsm`"),
            )),
            StoreKind::Memory | StoreKind::MemoryOrdered | StoreKind::Counters => {
                unreachable!("it has no engine")
            }
        }
    }

    /// Removes the stores, of all kinds, that `gone` names.
    ///
    /// # Errors
    /// As the engines say.
    pub(super) fn remove_stores(
        &self,
        gone: impl Fn(StoreKind, PartitionId, Epoch) -> bool,
    ) -> Result<(), Refusal> {
        self.sled.remove_stores(|id, epoch| gone(StoreKind::Sled, id, epoch))?;
        #[cfg(feature = "lsm")]
        {
            self.lsm.remove_stores(|id, epoch| gone(StoreKind::Lsm, id, epoch))?;
            self.tiered.remove_stores(|id, epoch| gone(StoreKind::Tiered, id, epoch))?;
        }
        Ok(())
    }
}

#[cfg(feature = "lsm")]
fn tiered_options(
    settings: &StoreSettings,
    dirs: &TieredDirs,
    figures: &Arc<TierFigures>,
) -> TieredOptions {
    use stateside_types::limits;
    let settings = &settings.tiered;
    let slow = LsmOptions {
        cache_bytes: u64::from(settings.cache_mb) << 20,
        memtable_bytes: u64::from(settings.memtable_mb) << 20,
        cover_interval: Duration::from_millis(u64::from(settings.flush_ms)),
        ..LsmOptions::default()
    };
    let fast = FastTierOptions {
        directory: dirs.fast.clone(),
        capacity_bytes: u64::from(settings.fast_capacity_mb) << 20,
        free_bytes_min: limits::TIERED_FREE_BYTES_MIN,
        index_bytes: u64::from(settings.index_mb) << 20,
        retry_after: Duration::from_millis(limits::TIERED_RETRY_MS),
        report: |problem| tracing::warn!("{problem}"),
    };
    TieredOptions { slow, fast, figures: Arc::clone(figures) }
}

/// An engine that is opened when it is asked for first: a node without such partitions has none.
struct Lazy<D: Database> {
    path: PathBuf,
    options: D::Options,
    /// Says whether it may be opened. Called once before it is, and after each refusal.
    prepare: Box<dyn Fn() -> Result<(), Refusal> + Send + Sync>,
    engine: Mutex<Option<DiskEngine<D>>>,
}

impl<D: Database> Lazy<D> {
    fn new(path: PathBuf, options: D::Options) -> Self {
        Self { path, options, prepare: Box::new(|| Ok(())), engine: Mutex::new(None) }
    }

    fn engine(&self) -> Result<DiskEngine<D>, Refusal> {
        let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = &*engine {
            return Ok(engine.clone());
        }
        (self.prepare)()?;
        let opened =
            DiskEngine::open(&self.path, self.options.clone()).map_err(|e| store_failed(&e))?;
        Ok(engine.insert(opened).clone())
    }

    fn open_store(&self, id: PartitionId, epoch: Epoch) -> Result<Box<dyn StateStore>, Refusal> {
        let store = self.engine()?.partition(id, epoch).map_err(|error| store_failed(&error))?;
        Ok(Box::new(store))
    }

    fn remove_stores(&self, gone: impl Fn(PartitionId, Epoch) -> bool) -> Result<(), Refusal> {
        // Without files there never was one.
        if !has_entries(&self.path) {
            return Ok(());
        }
        let engine = self.engine()?;
        let stores = engine.partitions().map_err(|error| store_failed(&error))?;
        for (id, epoch) in stores.into_iter().filter(|&(id, epoch)| gone(id, epoch)) {
            engine.remove(id, epoch).map_err(|error| store_failed(&error))?;
        }
        Ok(())
    }
}

fn has_entries(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
}
