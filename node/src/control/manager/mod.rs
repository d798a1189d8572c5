//! The manager: brings what the node has to what it should have. One task on the control thread;
//! it alone changes the manifest.
//!
//! ```text
//!   registry poll ──┐                        ┌─► manifest (disk)
//!   control calls ──┼─► desired ─► plan ─► step ─► cores: Add, Update, Remove, …
//!   retry, period ──┘                        └─► routes, to every core
//! ```
//! Level-triggered: whatever woke it, it looks at the whole difference and works on that. So
//! nothing is lost when a wake-up is, and a failed step is simply still a difference.
//!
//! The order of a change is what survives a crash between any two of its steps:
//! ```text
//!   add      manifest (new epoch) ─► core creates ─► routes
//!            └ crash: the core creates it at the start, as for any partition without files
//!   remove   routes without it ─► is it still empty? ─► manifest without it ─► core deletes
//!            └ crash before the manifest: nothing happened   └ after: the sweep at the start deletes
//!   restore  core installs a copy ─► manifest (new epoch) ─► core swaps ─► routes
//!            └ crash before the manifest: the sweep deletes the copy   └ after: the start loads it
//!   store    registry ─► core copies ─► manifest (new store, same epoch) ─► core switches
//!            └ crash before the manifest: begins anew   └ after: the start opens the new store
//! ```
//! Hazard: a manifest whose directory could not be synced may or may not survive a crash. Then
//! the new one counts, no core hears of it until a rewrite has succeeded, and nothing else
//! happens before.

mod changes;
mod copies;
mod owed;
mod reconcile;
mod stores;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use stateside_partition_mgr::{Defaults, Manifest, PlacedPartition};
use stateside_registry::{Polled, Registry, ReplaceError};
use stateside_router::{Route, RoutingTable};
use stateside_types::{
    Ack, CoreId, DesiredSet, HashRange, PartitionId, Reason, Refusal, StoreKind,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{cores::Cores, phase::Phase};
use crate::{
    core::command::{CopyReport, PartitionReport, SnapshotReport},
    data_dir::DataDir,
    metrics::NodeMetrics,
};
use copies::{Copied, RestoreCall, Restored};
use owed::Owed;
use stores::StoreChanges;

/// How often the registry is looked at.
const POLL_PERIOD: Duration = Duration::from_millis(500);
/// How often a core that owes an answer is looked at.
const ANSWER_PERIOD: Duration = Duration::from_millis(20);
/// How often everything is looked at although nothing is known to have changed.
const RECONCILE_PERIOD: Duration = Duration::from_secs(5);
/// How long a control call waits for its change before it says that it goes on without it.
const CALL_WAIT: Duration = Duration::from_secs(30);
/// How long a core may take to describe itself.
const REPORT_WAIT: Duration = Duration::from_secs(2);

/// Where the manifest is kept. The data directory is; tests have others.
pub(crate) trait ManifestStore: Send + Sync {
    /// Replaces the manifest, atomically and durably. Blocks.
    fn write(&mut self, manifest: &Manifest) -> Result<(), ReplaceError>;
}

impl ManifestStore for Arc<DataDir> {
    fn write(&mut self, manifest: &Manifest) -> Result<(), ReplaceError> {
        self.write_manifest(manifest)
    }
}

/// What a control call asks of the manager.
pub(crate) enum Call {
    Add { wanted: Wanted, reply: Answer<PartitionId> },
    Remove { target: Target, confirm: bool, reply: Answer<Described> },
    Snapshot { id: PartitionId, path: PathBuf, reply: Answer<SnapshotReport> },
    Restore { id: PartitionId, path: PathBuf, confirm: bool, reply: Answer<Restored> },
    ChangeStore { id: PartitionId, to: StoreKind, reply: Answer<CopyReport> },
}

/// Where the answer to a call goes. Nobody listens any more when the client gave up.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

/// A partition to add.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) id: Option<PartitionId>,
    pub(crate) range: HashRange,
    pub(crate) store: Option<StoreKind>,
    pub(crate) ack: Option<Ack>,
}

/// Which partition to remove.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Id(PartitionId),
    Range(HashRange),
}

/// A partition as manifest and core describe it.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    pub(crate) placed: PlacedPartition,
    /// None: its core did not tell.
    pub(crate) report: Option<PartitionReport>,
}

/// What the other tasks of the control thread see of the manager.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) manifest: Arc<Manifest>,
    /// Changes that are not carried out, in words.
    pub(crate) pending: Vec<String>,
    /// Where the desired set comes from.
    pub(crate) registry: String,
}

/// What the manager is made of.
pub(crate) struct ManagerParts {
    pub(crate) manifest: Manifest,
    pub(crate) manifests: Box<dyn ManifestStore>,
    pub(crate) registry: Box<dyn Registry>,
    pub(crate) desired: DesiredSet,
    pub(crate) defaults: Defaults,
    pub(crate) cores: Cores,
    pub(crate) metrics: Arc<NodeMetrics>,
}

/// See the module's header. Owned by its task.
pub(crate) struct Manager {
    manifest: Manifest,
    /// The manifest in memory is not surely the one on disk.
    is_unsaved: bool,
    /// Away while a blocking thread works with them.
    files: Option<Files>,
    registry_origin: String,
    desired: DesiredSet,
    defaults: Defaults,
    cores: Cores,
    metrics: Arc<NodeMetrics>,
    /// What cores have yet to do so that they have what the manifest says.
    owed: BTreeMap<PartitionId, Owed>,
    /// Removals that a call confirmed.
    confirmed: BTreeSet<PartitionId>,
    /// Partitions that are on their way out: no route leads to them.
    fenced: BTreeSet<PartitionId>,
    /// Partitions with a snapshot, a restore or a change of store under way, and which.
    busy: BTreeMap<PartitionId, &'static str>,
    restores: BTreeMap<PartitionId, RestoreCall>,
    stores: StoreChanges,
    copying: JoinSet<Copied>,
    routes: Vec<Route>,
    table: Arc<RoutingTable>,
    /// Version of the table that each core has.
    delivered: Vec<u64>,
    /// Changes that were not carried out in the last round, in words.
    left: Vec<String>,
    /// Changes that cannot be carried out, in words.
    held: Vec<String>,
    registry_problem: Option<String>,
    manifest_problem: Option<Refusal>,
    is_dirty: bool,
    reconciled_at: Instant,
    view: watch::Sender<Arc<View>>,
}

struct Files {
    manifests: Box<dyn ManifestStore>,
    registry: Box<dyn Registry>,
}

impl Manager {
    /// A manager whose cores have exactly the manifest's partitions and its routing table.
    pub(crate) fn new(parts: ManagerParts) -> (Self, watch::Receiver<Arc<View>>) {
        let ManagerParts { manifest, manifests, registry, desired, defaults, cores, metrics } =
            parts;
        let registry_origin = registry.origin();
        let (view, seen) = watch::channel(Arc::new(View {
            manifest: Arc::new(manifest.clone()),
            pending: Vec::new(),
            registry: registry_origin.clone(),
        }));
        let table = Arc::new(manifest.routing_table());
        let manager = Self {
            routes: manifest.routes(|_| false),
            delivered: cores.ids().map(|_| table.version()).collect(),
            table,
            manifest,
            is_unsaved: false,
            files: Some(Files { manifests, registry }),
            registry_origin,
            desired,
            defaults,
            cores,
            metrics,
            owed: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            fenced: BTreeSet::new(),
            busy: BTreeMap::new(),
            restores: BTreeMap::new(),
            stores: StoreChanges::default(),
            copying: JoinSet::new(),
            left: Vec::new(),
            held: Vec::new(),
            registry_problem: None,
            manifest_problem: None,
            is_dirty: true,
            reconciled_at: Instant::now(),
            view,
        };
        (manager, seen)
    }

    /// Works until the node drains and nobody can call any more.
    pub(crate) async fn run(
        mut self,
        mut calls: mpsc::Receiver<Call>,
        mut phase: watch::Receiver<Phase>,
    ) {
        let mut poll_at = Instant::now();
        loop {
            let wake_at = if self.awaits_answer() {
                poll_at.min(Instant::now() + ANSWER_PERIOD)
            } else {
                poll_at
            };
            tokio::select! {
                changed = phase.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                call = calls.recv() => {
                    let Some(call) = call else { return };
                    // As of now: the phase may have changed while this waited.
                    let now = *phase.borrow();
                    match now {
                        Phase::Serving => self.take(call).await,
                        Phase::Recovering | Phase::Draining => call.refuse(not_serving(now)),
                    }
                }
                Some(done) = self.copying.join_next(), if !self.copying.is_empty() => {
                    match done {
                        Ok(copied) => self.copied(copied).await,
                        Err(error) => std::panic::resume_unwind(error.into_panic()),
                    }
                }
                () = sleep_until(wake_at) => {
                    if Instant::now() >= poll_at {
                        poll_at = Instant::now() + POLL_PERIOD;
                        self.poll_registry().await;
                    }
                }
            }
            if *phase.borrow() == Phase::Serving && self.wants_to_reconcile() {
                self.reconcile().await;
            }
        }
    }

    async fn take(&mut self, call: Call) {
        match call {
            Call::Add { wanted, reply } => {
                let _ = reply.send(self.add(wanted).await);
            }
            Call::Remove { target, confirm, reply } => {
                let _ = reply.send(self.remove(target, confirm).await);
            }
            Call::Snapshot { id, path, reply } => self.snapshot(id, path, reply).await,
            Call::Restore { id, path, confirm, reply } => {
                self.restore(id, path, confirm, reply).await;
            }
            Call::ChangeStore { id, to, reply } => self.change_store(id, to, reply).await,
        }
    }

    async fn poll_registry(&mut self) {
        match self.on_disk(|files| files.registry.poll()).await {
            Polled::Unchanged => {}
            Polled::Changed(desired) => {
                if self.registry_problem.take().is_some() || self.desired != desired {
                    tracing::info!(registry = self.registry_origin, "the registry changed");
                }
                self.desired = desired;
                self.is_dirty = true;
            }
            Polled::Broken(error) => {
                tracing::error!(%error, "the registry cannot be used; the last good set stays in force");
                self.registry_problem = Some(error.to_string());
                self.is_dirty = true;
            }
        }
    }

    fn wants_to_reconcile(&self) -> bool {
        self.is_dirty
            || self.is_unsaved
            || !self.left.is_empty()
            || self.owed.values().any(Owed::is_due)
            || self.reconciled_at.elapsed() >= RECONCILE_PERIOD
    }

    fn awaits_answer(&self) -> bool {
        self.owed.values().any(Owed::awaits_answer)
    }

    /// Runs blocking work on manifest and registry off this thread, which serves health checks
    /// meanwhile.
    async fn on_disk<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Files) -> T + Send + 'static,
    ) -> T {
        let mut files = self.files.take().expect("one piece of work at a time");
        let task = tokio::task::spawn_blocking(move || {
            let result = work(&mut files);
            (files, result)
        });
        match task.await {
            Ok((files, result)) => {
                self.files = Some(files);
                result
            }
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Shows the others what is pending.
    fn show(&mut self) {
        let mut pending = Vec::new();
        pending.extend(
            self.registry_problem
                .iter()
                .map(|problem| format!("registry: {problem}; the last good set stays in force")),
        );
        pending.extend(self.manifest_problem.iter().map(|problem| problem.message.to_string()));
        pending.extend(self.stores.describe());
        pending.extend(self.owed.iter().map(|(id, owed)| owed.describe(*id)));
        pending.extend(self.left.iter().cloned());
        pending.extend(self.held.iter().cloned());
        let control = &self.metrics.control;
        control.pending_changes.set(pending.len() as u64);
        control.registry_broken.set(u64::from(self.registry_problem.is_some()));
        self.view.send_replace(Arc::new(View {
            manifest: Arc::new(self.manifest.clone()),
            pending,
            registry: self.registry_origin.clone(),
        }));
    }

    /// Where a partition is.
    fn placed(&self, id: PartitionId) -> Result<&PlacedPartition, Refusal> {
        self.manifest.partitions.get(&id).ok_or_else(|| unknown(&Target::Id(id)))
    }

    /// What a partition's core tells of it.
    async fn report(&self, id: PartitionId, core: CoreId) -> Option<PartitionReport> {
        let mut reports = self.cores.reports(REPORT_WAIT).await;
        let report = reports.get_mut(usize::from(core.0))?.take()?;
        report.partitions.into_iter().find(|partition| partition.spec.id == id)
    }

    fn refuse_if_busy(&self, id: PartitionId) -> Result<(), Refusal> {
        let what = match (self.busy.get(&id), self.owed.get(&id)) {
            (Some(what), _) => (*what).to_owned(),
            (None, Some(owed)) => owed.work_name().to_owned(),
            (None, None) => return Ok(()),
        };
        Err(Refusal::new(Reason::PartitionBusy, format!("partition {id}: {what} is under way")))
    }
}

impl Call {
    fn refuse(self, refusal: Refusal) {
        match self {
            Self::Add { reply, .. } => drop(reply.send(Err(refusal))),
            Self::Remove { reply, .. } => drop(reply.send(Err(refusal))),
            Self::Snapshot { reply, .. } => drop(reply.send(Err(refusal))),
            Self::Restore { reply, .. } => drop(reply.send(Err(refusal))),
            Self::ChangeStore { reply, .. } => drop(reply.send(Err(refusal))),
        }
    }
}

fn not_serving(phase: Phase) -> Refusal {
    match phase {
        Phase::Draining => Refusal::new(Reason::ShuttingDown, "the node is stopping"),
        _ => Refusal::new(Reason::PartitionStarting, "the node is still recovering"),
    }
}

fn unknown(target: &Target) -> Refusal {
    let text = match target {
        Target::Id(id) => format!("this node has no partition {id}"),
        Target::Range(range) => {
            format!("this node has no partition with exactly the range {range}")
        }
    };
    Refusal::new(Reason::UnknownPartition, text)
}

#[cfg(test)]
mod tests;
