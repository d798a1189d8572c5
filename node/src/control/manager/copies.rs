//! Snapshots and restores. Both may take minutes, so the manager does not wait for the cores in
//! line: a task waits for each and brings what came of it.

use std::path::{Path, PathBuf};

use stateside_partition_mgr::Holding;
use stateside_types::{CoreId, Epoch, PartitionId, Reason, Refusal, StoreKind};
use tokio::time::timeout;

use super::{
    Answer, CALL_WAIT, Manager,
    owed::{Owed, Work},
    reconcile::{confirmation_required, holding_of},
};
use crate::core::command::{CopyReport, CoreCommand, RestoreReport, SnapshotReport};

/// A restore that is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restored {
    /// Records that the partition holds now.
    pub(crate) records: u64,
}

/// Somebody waits for a restore.
pub(super) struct RestoreCall {
    reply: Answer<Restored>,
    confirm: bool,
    records: u64,
}

/// What came of a snapshot, or of the first half of a restore or of a change of store.
pub(super) enum Copied {
    Snapshot(PartitionId, Result<SnapshotReport, Refusal>, Answer<SnapshotReport>),
    Prepared(PartitionId, CoreId, Epoch, Result<RestoreReport, Refusal>),
    Store(PartitionId, CoreId, StoreKind, Result<CopyReport, Refusal>),
}

impl Manager {
    /// Has the core write a snapshot. The core knows best whether the file can be made; what can
    /// be told from here is told before the core is bothered.
    pub(super) async fn snapshot(
        &mut self,
        id: PartitionId,
        path: PathBuf,
        reply: Answer<SnapshotReport>,
    ) {
        let asked = match self.check_copy(id, &path) {
            Ok(core) => self
                .cores
                .ask(core, |reply| CoreCommand::Snapshot { id, path, reply })
                .await
                .map(|answer| (core, answer)),
            Err(refusal) => Err(refusal),
        };
        match asked {
            Err(refusal) => drop(reply.send(Err(refusal))),
            Ok((core, answer)) => {
                self.busy.insert(id, "a snapshot");
                self.copying.spawn(async move {
                    let result = answer.recv_async().await;
                    let result = result.unwrap_or_else(|_| Err(super::super::cores::gone(core)));
                    Copied::Snapshot(id, result, reply)
                });
            }
        }
    }

    /// Begins a restore: the core verifies and installs the file under an epoch that nobody had.
    pub(super) async fn restore(
        &mut self,
        id: PartitionId,
        path: PathBuf,
        confirm: bool,
        reply: Answer<Restored>,
    ) {
        match self.prepare_restore(id, path, confirm).await {
            Err(refusal) => drop(reply.send(Err(refusal))),
            Ok(()) => {
                self.restores.insert(id, RestoreCall { reply, confirm, records: 0 });
            }
        }
    }

    /// A snapshot has ended, a restore has its file installed, or a copy has caught up.
    pub(super) async fn copied(&mut self, copied: Copied) {
        match copied {
            Copied::Snapshot(id, result, reply) => {
                // Free first: whoever gets the answer may ask for the next thing at once.
                self.busy.remove(&id);
                let _ = reply.send(result);
            }
            Copied::Store(id, core, to, result) => self.store_copied(id, core, to, result).await,
            Copied::Prepared(id, core, epoch, result) => {
                let outcome = match result {
                    Ok(report) => self.swap(id, core, epoch, report).await,
                    Err(refusal) => Err(refusal),
                };
                self.busy.remove(&id);
                if let Err(refusal) = outcome
                    && let Some(call) = self.restores.remove(&id)
                {
                    let _ = call.reply.send(Err(refusal));
                }
            }
        }
        self.is_dirty = true;
    }

    /// Answers restores whose core has done its part, or has said why not.
    pub(super) fn answer_restores(&mut self) {
        let settled: Vec<_> = self
            .restores
            .keys()
            .filter(|id| !self.busy.contains_key(id))
            .filter_map(|id| match self.owed.get(id) {
                None => Some((*id, None)),
                Some(owed) => owed.error.clone().map(|error| (*id, Some(error))),
            })
            .collect();
        for (id, error) in settled {
            let Some(call) = self.restores.remove(&id) else { continue };
            let _ = call.reply.send(match error {
                None => Ok(Restored { records: call.records }),
                Some(error) => Err(error),
            });
        }
    }

    fn check_copy(&self, id: PartitionId, path: &Path) -> Result<CoreId, Refusal> {
        let core = self.placed(id)?.core;
        if !path.is_absolute() {
            return Err(Refusal::new(
                Reason::InvalidArgument,
                format!("path: `{}` is not absolute", path.display()),
            ));
        }
        self.refuse_if_busy(id)?;
        Ok(core)
    }

    async fn prepare_restore(
        &mut self,
        id: PartitionId,
        path: PathBuf,
        confirm: bool,
    ) -> Result<(), Refusal> {
        let core = self.check_copy(id, &path)?;
        if !confirm {
            self.check_holds_nothing(id, core).await?;
        }
        // Taken in memory; the manifest that makes it the partition's remembers it as used. If
        // that manifest is never written, the sweep deletes the copy before the next use.
        let epoch = self.manifest.take_epoch();
        let command = |reply| CoreCommand::PrepareRestore { id, path, epoch, reply };
        let answer = self.cores.ask(core, command).await?;
        self.busy.insert(id, "a restore");
        self.copying.spawn(async move {
            let result = answer.recv_async().await;
            let result = result.unwrap_or_else(|_| Err(super::super::cores::gone(core)));
            Copied::Prepared(id, core, epoch, result)
        });
        Ok(())
    }

    async fn check_holds_nothing(&self, id: PartitionId, core: CoreId) -> Result<(), Refusal> {
        let report = self.report(id, core).await;
        match report.as_ref().map_or(Holding::Unknown, holding_of) {
            Holding::Empty => Ok(()),
            holding => Err(confirmation_required(id, core, holding)),
        }
    }

    /// The copy is installed and writes are refused: makes it the partition's content, or
    /// abandons it.
    async fn swap(
        &mut self,
        id: PartitionId,
        core: CoreId,
        epoch: Epoch,
        report: RestoreReport,
    ) -> Result<(), Refusal> {
        let outcome = self.try_swap(id, core, epoch, report).await;
        if outcome.is_err() {
            let abandon = |reply| CoreCommand::FinishRestore { id, spec: None, reply };
            match self.cores.ask(core, abandon).await {
                Ok(answer) => drop(timeout(CALL_WAIT, answer.recv_async()).await),
                Err(refusal) => {
                    tracing::error!(partition = id.0, %refusal, "an abandoned restore still refuses writes");
                }
            }
        }
        outcome
    }

    async fn try_swap(
        &mut self,
        id: PartitionId,
        core: CoreId,
        epoch: Epoch,
        report: RestoreReport,
    ) -> Result<(), Refusal> {
        let call = self.restores.get_mut(&id).expect("somebody asked for the restore");
        call.records = report.records;
        if !call.confirm {
            // Records may have arrived between the first look and the moment when the core began
            // to refuse writes.
            self.check_holds_nothing(id, core).await?;
        }
        if self.is_unsaved {
            self.save_again().await;
        }
        if let (true, Some(problem)) = (self.is_unsaved, &self.manifest_problem) {
            return Err(problem.clone());
        }
        let mut next = self.manifest.clone();
        next.set_restored(id, epoch, report.sequence);
        let spec = next.partitions[&id].spec.clone();
        self.commit(next).await?;
        tracing::info!(partition = id.0, epoch = epoch.0, records = report.records, "restored");
        self.owed.insert(id, Owed::new(core, Work::FinishRestore(spec)));
        Ok(())
    }
}
