//! One round of reconciliation: from the plan to manifest, cores and routes.

use std::{io, sync::Arc, time::Duration};

use stateside_partition_mgr::{HoldReason, Holding, Manifest, Plan, Removal, Step, plan};
use stateside_router::RoutingTable;
use stateside_types::{CoreId, HashRange, PartitionId, PartitionState, Reason, Refusal, limits};
use tokio::time::{Instant, timeout};

use super::{
    Manager, REPORT_WAIT,
    owed::{Owed, Work},
};
use crate::core::command::{CoreCommand, CoreReport, PartitionReport};

/// How long a round waits for a core to do one thing before it goes on to the next.
pub(super) const STEP_WAIT: Duration = Duration::from_secs(5);

impl Manager {
    /// One round: everything that can be done now is.
    pub(super) async fn reconcile(&mut self) {
        self.reconciled_at = Instant::now();
        self.is_dirty = false;
        self.left.clear();
        if self.is_unsaved {
            self.save_again().await;
        }
        if !self.is_unsaved {
            self.pay_what_is_due().await;
            let plan = self.make_plan().await;
            self.held = plan.held.iter().map(ToString::to_string).collect();
            self.carry_out(plan).await;
            let manifest = &self.manifest;
            self.confirmed.retain(|id| manifest.partitions.contains_key(id));
        }
        // Who could not be told is told in the next round.
        let _ = self.publish().await;
        self.answer_restores();
        self.answer_store_calls();
        self.show();
    }

    /// Plans without asking the cores, and asks them only when the plan depends on records.
    async fn make_plan(&self) -> Plan {
        let plan_with = |holding: &dyn Fn(PartitionId) -> Holding| {
            plan(&self.manifest, &self.desired, &self.defaults, &self.confirmed, holding)
        };
        let blind = plan_with(&|_| Holding::Unknown);
        let depends_on_records = |reason: &HoldReason| {
            matches!(
                reason,
                HoldReason::RemovalUnconfirmed { .. }
                    | HoldReason::RangeChange { .. }
                    | HoldReason::LogChange { .. }
            )
        };
        if !blind.held.iter().any(|held| depends_on_records(&held.reason)) {
            return blind;
        }
        let reports = self.cores.reports(REPORT_WAIT).await;
        plan_with(&|id| self.holding(id, &reports))
    }

    /// What is known of a partition's records.
    pub(super) fn holding(&self, id: PartitionId, reports: &[Option<CoreReport>]) -> Holding {
        let Some(placed) = self.manifest.partitions.get(&id) else { return Holding::Empty };
        let Some(Some(report)) = reports.get(usize::from(placed.core.0)) else {
            return Holding::Unknown;
        };
        match report.partitions.iter().find(|partition| partition.spec.id == id) {
            Some(partition) => holding_of(partition),
            // Never created, so it never held anything.
            None if self.owed.get(&id).is_some_and(|owed| matches!(owed.work, Work::Add(_))) => {
                Holding::Empty
            }
            None => Holding::Unknown,
        }
    }

    /// Carries out a plan, and notes what could not be done now.
    async fn carry_out(&mut self, plan: Plan) {
        let mut ranges_still_taken = false;
        let mut additions = Vec::new();
        for step in plan.steps {
            if self.stores.is_under_way(step.id()) && matches!(step, Step::ChangeStore { .. }) {
                continue;
            }
            let outcome = match self.why_not_now(&step) {
                Some(why) => Err(why),
                None => match &step {
                    Step::Remove { id, removal, .. } => {
                        self.take_out(*id, &step, *removal).await.map_err(|why| why.to_string())
                    }
                    Step::Update { spec, .. } => {
                        let work = Work::Update(spec.clone());
                        self.commit_step(&step, work).await.map_err(|why| why.to_string())
                    }
                    Step::ChangeStore { id, to, .. } => self.begin_store_change(*id, *to).await,
                    Step::Add(placed) => {
                        if ranges_still_taken && self.is_taken(placed.spec.range) {
                            Err("its range is not free yet".to_owned())
                        } else {
                            additions.push(step);
                            continue;
                        }
                    }
                },
            };
            if let Err(why) = outcome {
                ranges_still_taken |= matches!(step, Step::Remove { .. });
                self.left.push(format!("{step}: {why}"));
            }
        }
        for batch in additions.chunks(limits::ADDS_PER_MANIFEST_WRITE) {
            if let Err(why) = self.add_all(batch).await {
                self.left.extend(batch.iter().map(|step| format!("{step}: {why}")));
            }
        }
    }

    fn why_not_now(&self, step: &Step) -> Option<String> {
        if self.is_unsaved {
            return Some("the manifest must be written first".to_owned());
        }
        if let Some(what) = self.busy.get(&step.id()) {
            return Some(format!("{what} is under way"));
        }
        let owed = self.owed.get(&step.id())?;
        let may_overtake = match (&owed.work, step) {
            (Work::Update(_), Step::Update { .. } | Step::Remove { .. })
            | (Work::Add(_), Step::Remove { .. }) => !owed.awaits_answer(),
            _ => false,
        };
        (!may_overtake).then(|| format!("{} is under way", owed.work_name()))
    }

    fn is_taken(&self, range: HashRange) -> bool {
        self.manifest.partitions.values().any(|placed| placed.spec.range.overlaps(range))
    }

    /// Removes a partition: no route leads to it before the manifest forgets it, and its core
    /// deletes nothing before the manifest has.
    async fn take_out(
        &mut self,
        id: PartitionId,
        step: &Step,
        removal: Removal,
    ) -> Result<(), Refusal> {
        let core = self.placed(id)?.core;
        self.fenced.insert(id);
        let mut outcome = self.publish().await;
        if removal != Removal::Confirmed && outcome.is_ok() {
            outcome = self.check_still_empty(id, core).await;
        }
        if outcome.is_ok() {
            outcome = self.commit_step(step, Work::Remove).await;
        }
        self.fenced.remove(&id);
        if outcome.is_err() {
            // It stays, so it is to be found again. A core that cannot be told now is told in
            // the next round.
            let _ = self.publish().await;
        }
        outcome
    }

    /// With no route leading to it: whether the partition holds nothing. The first round of
    /// reports comes after each core's new routes, so no core sends it anything from there on;
    /// what was sent before has arrived by the second.
    async fn check_still_empty(&self, id: PartitionId, core: CoreId) -> Result<(), Refusal> {
        let first = self.cores.reports(REPORT_WAIT).await;
        if let Some(silent) = first.iter().position(Option::is_none) {
            return Err(Refusal::new(
                Reason::PartitionBusy,
                format!("core {silent} did not answer in time"),
            ));
        }
        let second = self.cores.reports(REPORT_WAIT).await;
        match self.holding(id, &second) {
            Holding::Empty => Ok(()),
            holding => Err(confirmation_required(id, core, holding)),
        }
    }

    /// Writes the manifest after a step, then has the core do its part.
    async fn commit_step(&mut self, step: &Step, work: Work) -> Result<(), Refusal> {
        let mut next = self.manifest.clone();
        let core = self.placed(step.id())?.core;
        next.apply(step);
        self.commit(next).await?;
        tracing::info!(%step, "carrying out");
        self.owed.insert(step.id(), Owed::new(core, work));
        self.pay(step.id(), STEP_WAIT).await;
        Ok(())
    }

    /// Takes partitions into the manifest in one write, then has the cores create them.
    async fn add_all(&mut self, steps: &[Step]) -> Result<(), Refusal> {
        if self.is_unsaved {
            return Err(Refusal::new(Reason::Internal, "the manifest must be written first"));
        }
        let mut next = self.manifest.clone();
        steps.iter().for_each(|step| next.apply(step));
        self.commit(next).await?;
        for step in steps {
            let Step::Add(placed) = step else { unreachable!("only additions are batched") };
            tracing::info!(%step, "carrying out");
            let work = Work::Add(placed.spec.clone());
            self.owed.insert(step.id(), Owed::new(placed.core, work));
        }
        for step in steps {
            self.pay(step.id(), STEP_WAIT).await;
        }
        Ok(())
    }

    /// Makes `next` the manifest. When this returns `Ok` and the manifest is not unsaved, it is
    /// on disk.
    pub(super) async fn commit(&mut self, mut next: Manifest) -> Result<(), Refusal> {
        assert!(!self.is_unsaved, "an unsaved manifest is written again before anything changes");
        next.set_version = next.set_version.max(self.table.version() + 1);
        let copy = next.clone();
        match self.on_disk(move |files| files.manifests.write(&copy)).await {
            Ok(()) => {
                self.manifest = next;
                self.manifest_problem = None;
                Ok(())
            }
            Err(error) => {
                let refusal = unwritten(&error.source);
                tracing::error!("{}", refusal.message);
                self.manifest_problem = Some(refusal.clone());
                if error.is_in_doubt {
                    self.manifest = next;
                    self.is_unsaved = true;
                    return Ok(());
                }
                Err(refusal)
            }
        }
    }

    pub(super) async fn save_again(&mut self) {
        let copy = self.manifest.clone();
        match self.on_disk(move |files| files.manifests.write(&copy)).await {
            Ok(()) => {
                self.is_unsaved = false;
                self.manifest_problem = None;
            }
            Err(error) => self.manifest_problem = Some(unwritten(&error.source)),
        }
    }

    async fn pay_what_is_due(&mut self) {
        let due = |(id, owed): (&PartitionId, &Owed)| owed.is_due().then_some(*id);
        let due: Vec<_> = self.owed.iter().filter_map(due).collect();
        for id in due {
            self.pay(id, STEP_WAIT).await;
        }
    }

    /// Has a core do what it owes, and waits a while for it.
    pub(super) async fn pay(&mut self, id: PartitionId, wait: Duration) {
        if self.is_unsaved {
            return;
        }
        let Some(owed) = self.owed.get_mut(&id) else { return };
        if owed.answer.is_none() {
            let ask = self.cores.ask(owed.core, |reply| owed.command(id, reply)).await;
            match ask {
                Ok(answer) => owed.answer = Some(answer),
                Err(refusal) => return owed.failed(refusal),
            }
        }
        let Some(answer) = owed.answer.as_ref() else { return };
        let outcome = match timeout(wait, answer.recv_async()).await {
            Err(_) => return,
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(super::super::cores::gone(owed.core)),
        };
        match outcome {
            Ok(()) => {
                self.metrics.control.changes_done.increment();
                self.owed.remove(&id);
            }
            Err(refusal) => {
                self.metrics.control.changes_failed.increment();
                tracing::warn!(partition = id.0, core = owed.core.0, %refusal, "{} failed", owed.work_name());
                owed.failed(refusal);
            }
        }
    }

    /// Waits for a core that was asked already.
    pub(super) async fn wait_for_answer(&mut self, id: PartitionId, wait: Duration) {
        if self.owed.get(&id).is_some_and(Owed::awaits_answer) {
            self.pay(id, wait).await;
        }
    }

    /// Gives every core the routes to what serves.
    ///
    /// # Errors
    /// A core could not be told; it is told in the next round.
    pub(super) async fn publish(&mut self) -> Result<(), Refusal> {
        let routes = self.manifest.routes(|id| {
            let is_new = |owed: &Owed| matches!(owed.work, Work::Add(_));
            self.fenced.contains(&id) || self.owed.get(&id).is_some_and(is_new)
        });
        if routes != self.routes {
            let version = self.manifest.set_version.max(self.table.version() + 1);
            let table = RoutingTable::new(version, routes.clone());
            self.table = Arc::new(table.expect("the ranges of a manifest do not overlap"));
            self.routes = routes;
        }
        let mut outcome = Ok(());
        for core in self.cores.ids() {
            if self.delivered[usize::from(core.0)] == self.table.version() {
                continue;
            }
            match self.cores.send(core, CoreCommand::Route(Arc::clone(&self.table))).await {
                Ok(()) => self.delivered[usize::from(core.0)] = self.table.version(),
                Err(refusal) => {
                    self.is_dirty = true;
                    outcome = Err(refusal);
                }
            }
        }
        outcome
    }
}

/// What a partition's description says of its records.
pub(super) fn holding_of(partition: &PartitionReport) -> Holding {
    // A store on disk counts its records as of its last write to it.
    let is_flushed =
        !partition.spec.store.is_on_disk() || partition.snapshot_sequence >= partition.sequence;
    let writes_pending = partition.sequence > partition.durable_sequence;
    if partition.state != PartitionState::Primary {
        Holding::Unknown
    } else if partition.records > 0 {
        Holding::Records(partition.records)
    } else if writes_pending || !is_flushed {
        Holding::Unknown
    } else {
        Holding::Empty
    }
}

pub(super) fn confirmation_required(id: PartitionId, core: CoreId, holding: Holding) -> Refusal {
    let refusal = Refusal::new(
        Reason::ConfirmationRequired,
        format!("partition {id} on core {core} would lose its records: {holding}"),
    );
    match holding {
        Holding::Records(count) => refusal.with("records", count),
        _ => refusal,
    }
}

/// A manifest that cannot be written.
fn unwritten(error: &io::Error) -> Refusal {
    let reason = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Reason::DiskFull,
        _ => Reason::Internal,
    };
    Refusal::new(reason, format!("the manifest cannot be written: {error}"))
}
