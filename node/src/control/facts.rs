//! What the control thread's servers share: addresses, counters, and the ways to ask the manager
//! and the cores.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use stateside_partition_mgr::PlacedPartition;
use stateside_types::{PartitionSpec, PartitionState, limits};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::Instant,
};

use super::{
    cores::Cores,
    manager::{Call, Described, View},
    phase::{Phase, RecoveryProgress},
};
use crate::{
    core::command::{CoreReport, PartitionReport},
    metrics::NodeMetrics,
};

/// How long a core may take to describe itself for `Status`, a list or a scrape.
pub(crate) const REPORT_WAIT: Duration = Duration::from_secs(1);

/// Shared by the servers of the control thread; lives as long as it.
pub(crate) struct Facts {
    pub(crate) started: Instant,
    pub(crate) data_address: String,
    pub(crate) control_address: String,
    pub(crate) metrics_address: String,
    pub(crate) core_addresses: Vec<String>,
    pub(crate) data_dir: String,
    pub(crate) memory_limit_bytes: u64,
    pub(crate) cores: Cores,
    pub(crate) metrics: Arc<NodeMetrics>,
    pub(crate) recovery: Arc<RecoveryProgress>,
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) calls: mpsc::Sender<Call>,
    /// Permits of calls that change something.
    pub(crate) changes: Semaphore,
    /// Permits of calls that ask.
    pub(crate) reads: Semaphore,
    /// Every partition has been open at least once, or has been given up, since this start.
    pub(crate) all_opened: AtomicBool,
}

impl Facts {
    pub(crate) fn new_permits() -> (Semaphore, Semaphore) {
        (Semaphore::new(limits::CONTROL_CHANGES_MAX), Semaphore::new(limits::CONTROL_READS_MAX))
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// The cores' descriptions. Cores that recover do not answer, so they are not asked then.
    pub(crate) async fn reports(&self) -> Vec<Option<CoreReport>> {
        match self.phase() {
            Phase::Recovering => self.cores.ids().map(|_| None).collect(),
            Phase::Serving | Phase::Draining => self.cores.reports(REPORT_WAIT).await,
        }
    }
}

impl Facts {
    /// While the node serves: what of its start is still to come. Partitions with their logs in Kafka are
    /// opened beside the others, for the brokers may be away. Once they have been open this says
    /// nothing more: a partition that is added later, or opened anew, makes no node unready.
    pub(crate) async fn still_opening(&self) -> Option<String> {
        if self.all_opened.load(Ordering::Acquire) {
            return None;
        }
        let view = self.view();
        let in_kafka = |spec: &PartitionSpec| spec.is_logged_in_kafka();
        let count =
            view.manifest.partitions.values().filter(|placed| in_kafka(&placed.spec)).count();
        let said = if count == 0 { None } else { self.opening_of(&view, count).await };
        if said.is_none() {
            self.all_opened.store(true, Ordering::Release);
        }
        said
    }

    async fn opening_of(&self, view: &View, count: usize) -> Option<String> {
        let all = describe_all(view, &self.reports().await);
        let mut opening = all.iter().filter(|one| {
            one.placed.spec.is_logged_in_kafka() && one.state() == PartitionState::Init
        });
        let first = opening.next()?;
        let id = first.placed.spec.id;
        let detail = match &first.report {
            Some(report) => report.detail.as_str(),
            None => "its core has not answered",
        };
        let others = 1 + opening.count();
        Some(format!(
            "opening: {others} of {count} partitions with their logs in Kafka; partition {id}: {detail}"
        ))
    }
}

/// Puts together what the manifest and the cores say of every partition, by id.
pub(crate) fn describe_all(view: &View, reports: &[Option<CoreReport>]) -> Vec<Described> {
    let find = |placed: &PlacedPartition| {
        let report = reports.get(usize::from(placed.core.0))?.as_ref()?;
        let at = report.partitions.binary_search_by_key(&placed.spec.id, |one| one.spec.id).ok()?;
        Some(report.partitions[at].clone())
    };
    let described =
        |placed: &PlacedPartition| Described { placed: placed.clone(), report: find(placed) };
    view.manifest.partitions.values().map(described).collect()
}

impl Described {
    /// Where the partition is in its life: what its core does not serve yet begins.
    pub(crate) fn state(&self) -> PartitionState {
        self.report.as_ref().map_or(PartitionState::Init, |report| report.state)
    }

    pub(crate) fn count(&self, pick: impl Fn(&PartitionReport) -> u64) -> u64 {
        self.report.as_ref().map_or(0, pick)
    }
}
