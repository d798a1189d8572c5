//! A core's start: stores from their snapshots, then what the logs have beyond them.
//!
//! ```text
//!  snapshots ─► stores ─► replay ─┬─ whole ───► served
//!                                 └─ damaged ─► says so, keeps its log, serves nothing
//! ```
//! Blocks: a core has nothing else to do before it serves. All cores of a node recover before any
//! of them opens its log, because opening deletes files that another may still have to read.
//!
//! A store that needs room to open, on a full disk, is recovered later, on the blocking pool: the
//! logs of before this start are read once more for it. Until it is up, no log is let go of.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use stateside_partition::Partition;
use stateside_pipeline::log::{GroupNumber, PartitionBase, PartitionDamage, RecordHead, Retention};
use stateside_statestore::StateStore;
use stateside_types::{
    CoreId, PartitionId, PartitionSpec, PartitionState, Reason, Refusal, RequestMark, WriteEntry,
};

use super::{
    executor::Hosted,
    partition_files::{PartitionFiles, SnapshotInfo, work},
};
use crate::control::RecoveryProgress;
use crate::log_files::{self, CoreRecovery, LogCatalog, LogConfig, LogError, RecoveringCore};

/// Damage that any core's recovery found, in any log: the log's segment that shows it is kept until
/// the partition is restored. Else the partition would look whole once the segment is gone.
/// Shared by the cores while they start.
#[derive(Debug, Default)]
pub struct Evidence {
    found: Mutex<Vec<PartitionDamage>>,
}

impl Evidence {
    fn add(&self, damaged: &[PartitionDamage]) {
        self.lock().extend_from_slice(damaged);
    }

    /// Has a log keep what shows damage. Once every core has recovered.
    pub(crate) fn hold(&self, log: CoreId, retention: &mut Retention) {
        for damage in self.lock().iter().filter(|damage| damage.core == log) {
            retention.hold(damage.generation, damage.partition, damage.epoch);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PartitionDamage>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a core recovers from. Kept for what can only be recovered later.
#[derive(Clone)]
pub(crate) struct Recovery {
    pub(crate) who: RecoveringCore,
    pub(crate) catalog: Arc<LogCatalog>,
    pub(crate) config: LogConfig,
    pub(crate) files: Arc<PartitionFiles>,
    pub(crate) progress: Arc<RecoveryProgress>,
    pub(crate) evidence: Arc<Evidence>,
}

/// What a core's recovery found.
pub(crate) struct Recovered {
    pub(crate) hosted: Vec<Hosted>,
    pub(crate) newest: HashMap<PartitionId, SnapshotInfo>,
    pub(crate) first_group: GroupNumber,
    pub(crate) retentions: BTreeMap<CoreId, Retention>,
}

impl Recovery {
    /// Recovers partitions of a core.
    ///
    /// # Errors
    /// [`LogError`]: the logs are from another release or another node's. Damage is no error: it is
    /// told of each partition.
    pub(crate) fn run(&self, specs: Vec<PartitionSpec>) -> Result<Recovered, LogError> {
        recover(self, &self.catalog, specs)
    }

    /// Recovers partitions that the start had no room for, while the core serves others. No log may
    /// be let go of meanwhile, and none if damage is found: until the next start, which finds it too.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(crate) fn run_late(&self, specs: Vec<PartitionSpec>) -> Result<Recovered, LogError> {
        // What opening the logs deleted had nothing in it that anyone needs.
        recover(self, &self.catalog.that_still_exists(), specs)
    }
}

fn recover(
    recovery: &Recovery,
    catalog: &LogCatalog,
    specs: Vec<PartitionSpec>,
) -> Result<Recovered, LogError> {
    let Recovery { who, config, files, progress, evidence, .. } = recovery;
    let mut newest = HashMap::new();
    let mut down = Vec::new();
    let mut open = HashMap::new();
    for spec in specs {
        match files.open_store(&spec) {
            Ok((store, info)) => {
                if let Some(info) = info {
                    newest.insert(spec.id, info);
                }
                open.insert(spec.id, Open { spec, store, failed: None });
            }
            Err(refusal) => {
                tracing::error!(partition = spec.id.0, %refusal, "a partition cannot serve");
                down.push((spec, refusal));
            }
        }
    }
    let bases: Vec<PartitionBase> = open
        .values()
        .map(|open| PartitionBase {
            partition: open.spec.id,
            epoch: open.spec.first_epoch,
            covered: open.store.applied(),
        })
        .collect();
    let open = RefCell::new(open);
    let mut told = log_files::Progress::default();
    let recovery = log_files::recover(
        catalog,
        *who,
        bases,
        |head, request, entries| {
            if let Some(open) = open.borrow_mut().get_mut(&head.partition) {
                open.apply(head, request, entries);
            }
        },
        |now| {
            progress.expect(now.bytes_total - told.bytes_total);
            progress.advance(now.bytes_done.saturating_sub(told.bytes_done));
            told = now;
        },
    )?;
    report(who.core, &recovery);
    let mut open = open.into_inner();
    evidence.add(&recovery.damaged);
    for damage in &recovery.damaged {
        let Some(Open { spec, .. }) = open.remove(&damage.partition) else { continue };
        let file = config.segment_path(damage.core, damage.generation);
        let what = damage.kind.map_or_else(|| "records are missing".to_owned(), |k| k.to_string());
        let text =
            format!("{} at byte {}: {what}; lost: {}", file.display(), damage.offset, damage.lost);
        tracing::error!(partition = spec.id.0, %text, "a partition is damaged");
        down.push((spec, Refusal::new(Reason::PartitionDamaged, text)));
    }
    let mut hosted: Vec<Hosted> = open.into_values().map(Open::into_hosted).collect();
    hosted.extend(down.into_iter().map(|(spec, refusal)| stopped(spec, refusal)));
    Ok(Recovered {
        hosted,
        newest,
        first_group: recovery.first_group,
        retentions: recovery.retentions,
    })
}

/// A partition whose log is being replayed.
struct Open {
    spec: PartitionSpec,
    store: Box<dyn StateStore>,
    failed: Option<Refusal>,
}

impl Open {
    fn apply(
        &mut self,
        &RecordHead { sequence, timestamp, .. }: &RecordHead,
        request: Option<&RequestMark<'_>>,
        entries: &[WriteEntry<'_>],
    ) {
        if self.failed.is_some() {
            return;
        }
        if let Some(mark) = request {
            self.store.remember(sequence, timestamp, mark);
        }
        self.store.apply(sequence, timestamp, entries);
        // A store on disk holds what it has not written in memory, up to a limit.
        while self.store.is_saturated() {
            if let Err(refusal) = work(self.store.as_mut()) {
                self.failed = Some(refusal);
                return;
            }
        }
    }

    fn into_hosted(self) -> Hosted {
        let Self { spec, store, failed } = self;
        if let Some(refusal) = failed {
            return stopped(spec, refusal);
        }
        match Partition::new(spec.clone(), store) {
            Ok(partition) => Hosted::Here(Box::new(partition)),
            Err(error) => stopped(spec, Refusal::new(Reason::PartitionStopped, error.to_string())),
        }
    }
}

/// A partition that does not serve, and why.
pub(crate) fn stopped(spec: PartitionSpec, refusal: Refusal) -> Hosted {
    let state = match refusal.reason {
        Reason::PartitionDamaged => PartitionState::Damaged,
        // Recovered as soon as there is room.
        Reason::DiskFull => PartitionState::Init,
        _ => PartitionState::Stopped,
    };
    Hosted::Down(spec, state, refusal)
}

fn report(core: CoreId, recovery: &CoreRecovery) {
    for torn in &recovery.torn {
        tracing::info!(
            file = %torn.file.display(),
            offset = torn.tail.offset,
            "the last write was torn by a crash; it was never acknowledged and is cut"
        );
    }
    for place in &recovery.damages {
        tracing::error!(
            file = %place.file.display(),
            offset = place.damage.offset,
            bytes = place.damage.bytes,
            what = %place.damage.kind,
            "the log is damaged"
        );
    }
    tracing::debug!(
        core = core.0,
        records = recovery.stats.records,
        replayed = recovery.stats.delivered,
        "log replayed"
    );
}
