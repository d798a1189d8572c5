//! Control calls that change the desired set: add and remove. The registry is edited first, so
//! that the change survives a restart; what is refused after that is taken back.

use stateside_partition_mgr::{Holding, Manifest};
use stateside_registry::{Edit, RegistryError};
use stateside_types::{DesiredPartition, PartitionId, Reason, Refusal, check_ack, limits};

use super::{
    CALL_WAIT, Described, Manager, Target, Wanted,
    owed::{Owed, Work},
    reconcile::{confirmation_required, holding_of},
    unknown,
};

impl Manager {
    /// Adds a partition and waits until it serves.
    pub(super) async fn add(&mut self, wanted: Wanted) -> Result<PartitionId, Refusal> {
        let id = wanted.id.unwrap_or_else(|| self.lowest_free_id());
        self.check_addition(id, &wanted)?;
        let Wanted { range, store, ack, .. } = wanted;
        let declared = DesiredPartition { id, range, store, ack, pipeline: None };
        self.edit(Edit::Add(declared)).await?;
        self.reconcile().await;
        self.wait_for_answer(id, CALL_WAIT).await;
        let refusal = match (self.manifest.partitions.contains_key(&id), self.owed.get(&id)) {
            (true, None) => {
                self.is_dirty |= self.publish().await.is_err();
                self.show();
                return Ok(id);
            }
            (true, Some(owed)) => match &owed.error {
                Some(error) => error.clone(),
                None => return Err(still_under_way(id, "being created")),
            },
            (false, _) => self.why_not_added(id),
        };
        self.take_back(id).await;
        self.reconcile().await;
        Err(refusal)
    }

    /// Removes a partition and waits until its files are gone. The answer says what it was.
    pub(super) async fn remove(
        &mut self,
        target: Target,
        confirm: bool,
    ) -> Result<Described, Refusal> {
        let id = self.resolve(target)?;
        self.refuse_if_busy(id)?;
        let placed = self.placed(id)?.clone();
        let core = placed.core;
        let report = self.report(id, core).await;
        let holding = report.as_ref().map_or(Holding::Unknown, holding_of);
        if holding != Holding::Empty && !confirm {
            return Err(confirmation_required(id, core, holding));
        }
        let was_declared = self.desired.get(id).is_some();
        if was_declared {
            self.edit(Edit::Remove(id)).await?;
        }
        if confirm {
            self.confirmed.insert(id);
        }
        self.reconcile().await;
        if self.manifest.partitions.contains_key(&id) {
            self.confirmed.remove(&id);
            let refusal = self.why_not_removed(id, confirm);
            if was_declared {
                self.undo().await;
                self.reconcile().await;
            }
            return Err(refusal);
        }
        self.wait_for_answer(id, CALL_WAIT).await;
        self.show();
        Ok(Described { placed, report })
    }

    fn resolve(&self, target: Target) -> Result<PartitionId, Refusal> {
        let found = match target {
            Target::Id(id) => self.manifest.partitions.contains_key(&id).then_some(id),
            Target::Range(range) => {
                let mut all = self.manifest.partitions.values();
                all.find(|placed| placed.spec.range == range).map(|placed| placed.spec.id)
            }
        };
        found.ok_or_else(|| unknown(&target))
    }

    /// The lowest id that nobody has, wants or has left files under.
    fn lowest_free_id(&self) -> PartitionId {
        let is_free = |id: &PartitionId| {
            !self.manifest.partitions.contains_key(id)
                && self.desired.get(*id).is_none()
                && !self.owed.contains_key(id)
        };
        (0..).map(PartitionId).find(is_free).expect("there are more ids than partitions")
    }

    /// Everything that can be said before anything is changed.
    fn check_addition(&self, id: PartitionId, wanted: &Wanted) -> Result<(), Refusal> {
        let range = wanted.range;
        if self.manifest.partitions.contains_key(&id) || self.desired.get(id).is_some() {
            return Err(Refusal::new(
                Reason::PartitionExists,
                format!("this node has a partition {id} already"),
            ));
        }
        self.refuse_if_busy(id)?;
        let taken_by = overlap_in_manifest(&self.manifest, wanted).or_else(|| {
            self.desired.partitions().find(|one| one.range.overlaps(range)).map(|one| one.id)
        });
        if let Some(other) = taken_by {
            return Err(Refusal::new(
                Reason::RangeOverlap,
                format!("the range {range} shares hashes with partition {other}"),
            )
            .with("partition", other));
        }
        let &Wanted { store, ack, .. } = wanted;
        let declared = DesiredPartition { id, range, store, ack, pipeline: None };
        let store = store.unwrap_or(self.defaults.store);
        let (ack, pipeline) = self.defaults.settings(&declared, store);
        check_ack(ack, &pipeline)
            .map_err(|error| Refusal::new(Reason::InvalidArgument, error.to_string()))?;
        let count = self.manifest.partitions.len().max(self.desired.partitions().len());
        if count >= limits::PARTITIONS_PER_NODE_MAX {
            return Err(Refusal::new(
                Reason::TooManyPartitions,
                format!("this node has {count} partitions, the most it may"),
            ));
        }
        Ok(())
    }

    /// Why a partition that is desired did not come to be.
    fn why_not_added(&self, id: PartitionId) -> Refusal {
        if let Some(problem) = &self.manifest_problem {
            return problem.clone();
        }
        let why = self.what_is_said_of(id);
        Refusal::new(Reason::PartitionBusy, format!("partition {id} cannot be added now: {why}"))
    }

    /// Why a partition that is not desired any more is still there.
    fn why_not_removed(&self, id: PartitionId, confirm: bool) -> Refusal {
        if let Some(problem) = &self.manifest_problem {
            return problem.clone();
        }
        // Without a confirmation the one thing that stops a removal which was checked before is
        // a record that arrived meanwhile.
        let reason = if confirm { Reason::PartitionBusy } else { Reason::ConfirmationRequired };
        let why = self.what_is_said_of(id);
        Refusal::new(reason, format!("partition {id} cannot be removed now: {why}"))
    }

    pub(super) fn what_is_said_of(&self, id: PartitionId) -> String {
        let (before, after) = (format!("partition {id},"), format!("partition {id}:"));
        let lines = self.left.iter().chain(&self.held);
        let lines = lines.filter(|line| line.contains(&before) || line.contains(&after));
        lines.map(String::as_str).collect::<Vec<_>>().join("; ")
    }

    /// Takes an addition back that its core, or the disk, refused.
    async fn take_back(&mut self, id: PartitionId) {
        self.undo().await;
        if self.desired.get(id).is_some() {
            // Somebody else changed the registry since; take out this one alone.
            let _ = self.edit(Edit::Remove(id)).await;
        }
        if self.is_unsaved || !self.manifest.partitions.contains_key(&id) {
            return;
        }
        let mut next = self.manifest.clone();
        let Some(placed) = next.partitions.remove(&id) else { return };
        if self.commit(next).await.is_ok() {
            // What the core made before it gave up goes as well.
            self.owed.insert(id, Owed::new(placed.core, Work::Remove));
        }
    }

    pub(super) async fn edit(&mut self, edit: Edit) -> Result<(), Refusal> {
        let edited = self.on_disk(move |files| files.registry.edit(&edit)).await;
        self.desired = edited.map_err(|error| registry_refusal(&error))?;
        Ok(())
    }

    async fn undo(&mut self) {
        match self.on_disk(|files| files.registry.undo_edit()).await {
            Ok(desired) => self.desired = desired,
            Err(error) => tracing::warn!(%error, "a refused change could not be taken back"),
        }
    }
}

fn overlap_in_manifest(manifest: &Manifest, wanted: &Wanted) -> Option<PartitionId> {
    let mut all = manifest.partitions.values();
    all.find(|placed| placed.spec.range.overlaps(wanted.range)).map(|placed| placed.spec.id)
}

fn still_under_way(id: PartitionId, what: &str) -> Refusal {
    Refusal::new(
        Reason::DeadlineExceeded,
        format!(
            "partition {id} is still {what} after {} s and goes on; Status tells",
            CALL_WAIT.as_secs()
        ),
    )
}

fn registry_refusal(error: &RegistryError) -> Refusal {
    Refusal::new(Reason::RegistryUnavailable, error.to_string())
}
