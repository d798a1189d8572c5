//! Changes of partitions' stores: what makes the records move to the store that is declared.
//!
//! ```text
//!  call ─► registry ─┐                                     ┌─ refused: the registry as before
//!  file edit ────────┴─► plan ─► core copies ─► close ─► manifest ─► core switches ─► answer
//!                                └ crash: begins again     └ crash: the start opens the new store
//! ```
//! The registry comes first, so a change that was begun goes on after a restart. A change
//! that was called for and fails is taken back there, and told to the caller; one that was declared
//! is tried again later, in sight of `Status`.

use std::{collections::BTreeMap, time::Duration};

use stateside_partition_mgr::Step;
use stateside_registry::Edit;
use stateside_types::{CoreId, PartitionId, PartitionSpec, Reason, Refusal, StoreKind};
use tokio::time::{Instant, timeout};

use super::{
    Answer, CALL_WAIT, Manager,
    copies::Copied,
    owed::{Owed, Work},
    reconcile::STEP_WAIT,
};
use crate::core::{
    cannot_move,
    command::{CopyReport, CoreCommand},
};

/// Each attempt copies the whole partition.
const BACKOFF_FIRST: Duration = Duration::from_secs(15);
const BACKOFF_MAX: Duration = Duration::from_secs(10 * 60);

/// What the manager knows of changes of stores.
#[derive(Default)]
pub(super) struct StoreChanges {
    /// Copies that cores make, and to which store.
    under_way: BTreeMap<PartitionId, (CoreId, StoreKind)>,
    /// Who waits for one.
    calls: BTreeMap<PartitionId, StoreCall>,
    /// Declared changes that failed.
    failed: BTreeMap<PartitionId, Failed>,
}

struct StoreCall {
    reply: Answer<CopyReport>,
    /// What was declared before.
    before: Option<StoreKind>,
    /// Another partition of its core goes first.
    waits: bool,
    /// Set when the manifest names the new store.
    report: Option<CopyReport>,
}

struct Failed {
    to: StoreKind,
    attempts: u32,
    due_at: Instant,
    refusal: Refusal,
}

impl StoreChanges {
    /// Whether the core makes the copy already.
    pub(super) fn is_under_way(&self, id: PartitionId) -> bool {
        self.under_way.contains_key(&id)
    }

    /// What is going on, in words.
    pub(super) fn describe(&self) -> impl Iterator<Item = String> + '_ {
        self.under_way.iter().map(|(id, (core, to))| {
            format!("partition {id}: the change of its store to {to} on core {core} is under way")
        })
    }

    /// Why a change is not tried now.
    fn why_not_now(&self, id: PartitionId, core: CoreId, to: StoreKind) -> Option<String> {
        if let Some((other, _)) = self.under_way.iter().find(|(_, (at, _))| *at == core) {
            return Some(format!("core {core} changes the store of partition {other} first"));
        }
        let failed = self.failed.get(&id).filter(|failed| failed.to == to)?;
        let wait = failed.due_at.checked_duration_since(Instant::now())?;
        let (seconds, refusal) = (wait.as_secs() + 1, &failed.refusal);
        Some(format!("tried again in {seconds} s, failed {} times: {refusal}", failed.attempts))
    }

    fn note_failure(&mut self, id: PartitionId, to: StoreKind, refusal: Refusal) {
        let before = self.failed.get(&id).filter(|failed| failed.to == to);
        let attempts = before.map_or(0, |failed| failed.attempts);
        let backoff = BACKOFF_FIRST * 2_u32.saturating_pow(attempts.min(16));
        let due_at = Instant::now() + backoff.min(BACKOFF_MAX);
        self.failed.insert(id, Failed { to, attempts: attempts + 1, due_at, refusal });
    }
}

impl Manager {
    /// Declares another store for a partition and has its records moved there.
    pub(super) async fn change_store(
        &mut self,
        id: PartitionId,
        to: StoreKind,
        reply: Answer<CopyReport>,
    ) {
        let before = match self.declare_store(id, to).await {
            Ok(before) => before,
            Err(refusal) => return drop(reply.send(Err(refusal))),
        };
        let call = StoreCall { reply, before, waits: false, report: None };
        self.stores.calls.insert(id, call);
        self.stores.failed.remove(&id);
        self.reconcile().await;
        let is_idle = |call: &StoreCall| !call.waits && call.report.is_none();
        if !self.stores.is_under_way(id) && self.stores.calls.get(&id).is_some_and(is_idle) {
            let why = self.what_is_said_of(id);
            let text = format!("the store of partition {id} cannot be changed now: {why}");
            self.store_change_failed(id, to, Refusal::new(Reason::PartitionBusy, text)).await;
        }
    }

    /// Everything that can be said before anything is changed; then the registry. Returns what it said.
    async fn declare_store(
        &mut self,
        id: PartitionId,
        to: StoreKind,
    ) -> Result<Option<StoreKind>, Refusal> {
        let store = self.placed(id)?.spec.store;
        self.refuse_if_busy(id)?;
        if self.stores.calls.contains_key(&id) {
            let text = format!("partition {id}: another change of its store is to come");
            return Err(Refusal::new(Reason::PartitionBusy, text));
        }
        if store == to {
            let text = format!("partition {id} has a {to} store");
            return Err(Refusal::new(Reason::StoreUnchanged, text));
        }
        if store.is_unlogged() || to.is_unlogged() {
            return Err(cannot_move(id, store, to));
        }
        let Some(declared) = self.desired.get(id) else {
            let text = format!("partition {id} is not declared any more and waits for its removal");
            return Err(Refusal::new(Reason::PartitionBusy, text));
        };
        let before = declared.store;
        self.edit(Edit::SetStore(id, Some(to))).await?;
        Ok(before)
    }

    /// Has a core begin a copy.
    ///
    /// # Errors
    /// Why it has not, in words.
    pub(super) async fn begin_store_change(
        &mut self,
        id: PartitionId,
        to: StoreKind,
    ) -> Result<(), String> {
        let core = self.placed(id).map_err(|refusal| refusal.to_string())?.core;
        let why_not = self.stores.why_not_now(id, core, to);
        if let Some(call) = self.stores.calls.get_mut(&id) {
            call.waits = why_not.is_some();
        }
        if let Some(why_not) = why_not {
            return Err(why_not);
        }
        let answer = self.cores.ask(core, |reply| CoreCommand::CopyStore { id, to, reply }).await;
        let answer = answer.map_err(|refusal| refusal.to_string())?;
        tracing::info!(partition = id.0, %to, "its store is being changed");
        self.busy.insert(id, "the change of its store");
        self.stores.under_way.insert(id, (core, to));
        self.copying.spawn(async move {
            let result = answer.recv_async().await;
            let result = result.unwrap_or_else(|_| Err(super::super::cores::gone(core)));
            Copied::Store(id, core, to, result)
        });
        Ok(())
    }

    /// A copy has caught up with the writes, or has been given up.
    pub(super) async fn store_copied(
        &mut self,
        id: PartitionId,
        core: CoreId,
        to: StoreKind,
        result: Result<CopyReport, Refusal>,
    ) {
        let outcome = match result {
            Ok(report) => self.finish_store_change(id, core, to).await.map(|()| report),
            Err(refusal) => Err(refusal),
        };
        self.busy.remove(&id);
        self.stores.under_way.remove(&id);
        match outcome {
            Ok(report) => {
                self.stores.failed.remove(&id);
                if let Some(call) = self.stores.calls.get_mut(&id) {
                    call.report = Some(report);
                }
                self.pay(id, STEP_WAIT).await;
            }
            Err(refusal) => self.store_change_failed(id, to, refusal).await,
        }
    }

    /// The copy has caught up: names it in the manifest, or abandons it.
    async fn finish_store_change(
        &mut self,
        id: PartitionId,
        core: CoreId,
        to: StoreKind,
    ) -> Result<(), Refusal> {
        let outcome = self.name_other_store(id, core, to).await;
        if outcome.is_err() {
            let abandon = |reply| CoreCommand::SwitchStore { id, spec: None, reply };
            match self.cores.ask(core, abandon).await {
                Ok(answer) => drop(timeout(CALL_WAIT, answer.recv_async()).await),
                Err(refusal) => {
                    tracing::error!(partition = id.0, %refusal, "an abandoned copy goes on");
                }
            }
        }
        outcome
    }

    async fn name_other_store(
        &mut self,
        id: PartitionId,
        core: CoreId,
        to: StoreKind,
    ) -> Result<(), Refusal> {
        let from = self.placed(id)?.spec.store;
        if self.desired.get(id).is_none_or(|declared| declared.store != Some(to)) {
            let text = format!("partition {id} is not declared with a {to} store any more");
            return Err(Refusal::new(Reason::PartitionBusy, text));
        }
        if self.is_unsaved {
            self.save_again().await;
        }
        if let (true, Some(problem)) = (self.is_unsaved, &self.manifest_problem) {
            return Err(problem.clone());
        }
        let answer = self.cores.ask(core, |reply| CoreCommand::CloseCopy { id, reply }).await?;
        match timeout(CALL_WAIT, answer.recv_async()).await {
            Ok(Ok(closed)) => closed?,
            Ok(Err(_)) => return Err(super::super::cores::gone(core)),
            Err(_) => {
                let text = format!("the copy of partition {id} does not catch up with its writes");
                return Err(Refusal::new(Reason::PartitionBusy, text));
            }
        }
        let step = Step::ChangeStore { id, from, to };
        let mut next = self.manifest.clone();
        next.apply(&step);
        let spec: PartitionSpec = next.partitions[&id].spec.clone();
        self.commit(next).await?;
        tracing::info!(%step, "carried out");
        self.owed.insert(id, Owed::new(core, Work::SwitchStore(spec)));
        Ok(())
    }

    /// A change has failed: takes it back when it was called for.
    async fn store_change_failed(&mut self, id: PartitionId, to: StoreKind, refusal: Refusal) {
        tracing::warn!(partition = id.0, %to, %refusal, "its store was not changed");
        self.is_dirty = true;
        // What a stop cut short goes on after the restart.
        let is_stopping = refusal.reason == Reason::ShuttingDown;
        let Some(call) = self.stores.calls.remove(&id) else {
            return self.stores.note_failure(id, to, refusal);
        };
        let is_declared = self.desired.get(id).is_some_and(|one| one.store == Some(to));
        if !is_stopping
            && is_declared
            && let Err(error) = self.edit(Edit::SetStore(id, call.before)).await
        {
            tracing::warn!(partition = id.0, %error, "a refused change could not be taken back");
            self.stores.note_failure(id, to, refusal.clone());
        }
        let _ = call.reply.send(Err(refusal));
    }

    /// Answers calls whose partition has its new store.
    pub(super) fn answer_store_calls(&mut self) {
        let is_settled = |id: &PartitionId, call: &StoreCall| {
            call.report.is_some() && !self.owed.contains_key(id)
        };
        let calls = &self.stores.calls;
        let settled = calls.iter().filter(|(id, call)| is_settled(id, call)).map(|(id, _)| *id);
        for id in settled.collect::<Vec<_>>() {
            let call = self.stores.calls.remove(&id);
            if let Some(StoreCall { reply, report: Some(report), .. }) = call {
                let _ = reply.send(Ok(report));
            }
        }
    }
}
