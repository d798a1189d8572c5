//! The changes of partitions' stores among a core's operations.

use stateside_types::{PartitionId, Reason, Refusal, StoreKind};

use super::{
    command::{CopyReport, Reply, SnapshotReport, StoreChangeReport},
    executor::Executor,
    operations::{Operations, answer, busy, unknown},
    snapshots::{Purpose, SnapshotJob},
    store_change::{Step, StoreChange},
};

impl Operations {
    /// Begins to copy a partition's records to another store.
    pub(crate) fn copy_store(
        &mut self,
        id: PartitionId,
        to: StoreKind,
        reply: Reply<Result<CopyReport, Refusal>>,
        executor: &mut Executor,
    ) {
        // A snapshot is waited for; anything else makes another partition of it.
        let is_snapshot = self.snapshots.iter().any(|job| job.partition == id);
        if self.is_under_way(id) && !is_snapshot || self.store_change(id).is_some() {
            return answer(&reply, Err(busy(id)));
        }
        let number = self.number();
        match StoreChange::start(number, id, to, reply, &self.files, executor) {
            Ok(change) => {
                self.store_changes.push(change);
                self.busy = true;
            }
            Err((refusal, reply)) => answer(&reply, Err(refusal)),
        }
    }

    /// The manifest is about to name the other store.
    pub(crate) fn close_copy(&mut self, id: PartitionId, reply: Reply<Result<(), Refusal>>) {
        match self.store_change_of(id) {
            Some(change) => change.close(reply),
            None => answer(&reply, Err(unknown(id))),
        }
        self.busy = true;
    }

    /// The manifest names the other store, or the change is given up.
    pub(crate) fn switch_store(
        &mut self,
        id: PartitionId,
        to: Option<StoreKind>,
        reply: Reply<Result<(), Refusal>>,
        executor: &mut Executor,
    ) {
        match (self.store_change_of(id), to) {
            (Some(change), Some(_)) => change.switch(reply, executor),
            (Some(change), None) => change.abandon(reply, executor),
            // It was given up already.
            (None, None) => answer(&reply, Ok(())),
            (None, Some(to)) => {
                let text = format!("partition {id} has no copy in a {to} store");
                answer(&reply, Err(Refusal::new(Reason::Internal, text)));
            }
        }
        self.busy = true;
    }

    /// Memory of stores that are not their partitions' yet, bytes.
    pub(crate) fn copies_memory_bytes(&self) -> u64 {
        self.store_changes.iter().map(StoreChange::memory_bytes).sum()
    }

    pub(super) fn store_change(&self, id: PartitionId) -> Option<&StoreChange> {
        self.store_changes.iter().find(|change| change.partition() == id)
    }

    pub(super) fn store_change_of(&mut self, id: PartitionId) -> Option<&mut StoreChange> {
        self.store_changes.iter_mut().find(|change| change.partition() == id)
    }

    pub(super) fn describe_store_change(&self, id: PartitionId) -> Option<StoreChangeReport> {
        let job = self.snapshots.iter().find(|job| job.partition == id);
        self.store_change(id).map(|change| change.describe(job.map_or(0, SnapshotJob::records)))
    }

    pub(super) fn step_store_changes(&mut self, executor: &mut Executor) {
        let mut at = 0;
        while at < self.store_changes.len() {
            let change = &mut self.store_changes[at];
            if executor.world.is_draining && !change.is_parked() && !change.is_last() {
                let refusal = Refusal::new(Reason::ShuttingDown, "the node is stopping");
                change.give_up(refusal, executor);
            }
            let id = change.partition();
            let waits = change.is_new() && self.snapshots.iter().any(|job| job.partition == id);
            let step = if waits { Step::Waiting } else { change.step(&self.files, executor) };
            if !self.store_change_stepped(at, step, executor) {
                at += 1;
            }
        }
    }

    /// Books what a step led to; true when the change has ended and left the list.
    pub(super) fn store_change_stepped(
        &mut self,
        at: usize,
        step: Step,
        executor: &mut Executor,
    ) -> bool {
        let id = self.store_changes[at].partition();
        match step {
            Step::Waiting => {}
            Step::Busy => self.busy = true,
            Step::Snapshot(path) => {
                let number = self.number();
                let supersedes = self.store_changes[at].is_from_memory();
                let purpose = Purpose::StoreChange { supersedes };
                let job = SnapshotJob::start(number, id, path, purpose, executor);
                let change = &mut self.store_changes[at];
                match job {
                    Ok(job) => {
                        change.snapshot_started(job.created_unix_ms);
                        self.snapshots.push(job);
                    }
                    Err((refusal, _)) => change.snapshot_done(Err(refusal), &self.files, executor),
                }
                self.busy = true;
            }
            Step::Switched(snapshot) => {
                let took = self.store_changes[at].switch_took();
                self.metrics.store_switch.observe(took);
                let before = self.newest.remove(&id);
                if let Some(snapshot) = snapshot {
                    let same = before.filter(|before| before.sequence == snapshot.sequence);
                    self.newest.insert(id, same.unwrap_or(snapshot));
                }
                self.busy = true;
            }
            Step::Ended => {
                let mut change = self.store_changes.swap_remove(at);
                let metrics = &self.metrics;
                match change.was_given_up() {
                    false => metrics.store_changes.increment(),
                    true => metrics.store_change_failures.increment(),
                }
                if let Some(meanwhile) = change.reopens() {
                    self.reopen(id, meanwhile, executor);
                }
                self.busy = true;
                return true;
            }
        }
        false
    }

    /// The snapshot that a change begins with has ended.
    pub(super) fn store_change_snapshot(
        &mut self,
        id: PartitionId,
        result: Result<SnapshotReport, Refusal>,
        executor: &mut Executor,
    ) {
        let at = self.store_changes.iter().position(|change| change.partition() == id);
        let Some(at) = at else { return };
        let change = &mut self.store_changes[at];
        if result.is_ok()
            && let Some(snapshot) = change.new_snapshot()
        {
            self.newest.insert(id, snapshot);
        }
        change.snapshot_done(result, &self.files, executor);
        self.busy = true;
    }
}
