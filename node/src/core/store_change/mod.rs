//! Changes a partition's store while it serves.
//!
//! ```text
//!  waiting ─► snapshot ─► copy ─► catch-up ⇄ rounds ─► closed ─► switch ─► clean-up ─► done
//!             core, pool  pool    core       pool        │       core      pool
//!                └── writes go to the own store and leave a trail ──┘
//!                                     manager: close ────┘ manifest └─ switch
//! ```
//! Reads and writes go on in the own store until the switch, which is one turn of the core: it applies
//! the last few writes to the other store and puts it in place.
//!
//! **What a crash leaves.** The manifest names one store at any time, and that one is whole: with what
//! it holds on disk (or the snapshot) and what the log has after that. So from the snapshot on, the
//! log keeps everything that the *other* store lacks on disk, also when the own store has it: see
//! [`StoreChange::hold`]. The content stays what it was: same epochs, same sequences; so log,
//! snapshots and records in Kafka mean the same to either store. What belongs to the store that the
//! manifest does not name is deleted at the end, or by the sweep of the next start.
//!
//! Hazard: the other store on disk must not hold a write that the log may still lose. Rounds are
//! given durable writes only; the rest comes with the switch, and waits in memory as any write does.

mod backlog;
mod copy;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use stateside_partition::{CopyPace, Successor};
use stateside_statestore::StateStore;
use stateside_types::{
    PartitionId, PartitionSpec, PartitionState, Reason, Refusal, Sequence, StoreKind,
    limits::{
        STORE_CHANGE_CLOSED_BYTES_MAX, STORE_CHANGE_MEMORY_BYTES_MAX, STORE_CHANGE_STEP_BYTES,
    },
};

pub(crate) use self::copy::Copied;
use self::{
    backlog::Backlog,
    copy::{CopyProgress, apply_here, catch_up, clean_up, fill, memory_full, unspilled},
};
use super::{
    command::{CopyReport, Reply, SnapshotReport, StoreChangeReport},
    executor::{Executor, Hosted},
    partition_files::{PartitionFiles, SnapshotInfo},
    pool::PoolDone,
};

/// Bytes of a trail that are taken along before there is something to do with them.
const TAKEN_ALONG_BYTES: usize = 256 << 10;
/// Whoever stops a partition, or takes it out of service, waits for the change of its store.
const STAYS: &str = "nothing else is done to a partition whose store changes";
/// What a record in memory costs beside key and value, roughly: to refuse early what cannot fit.
const RECORD_MEMORY_BYTES: u64 = 48;

enum Phase {
    /// For a snapshot of the partition that is being made; or for the end, when given up.
    Waiting,
    /// The snapshot is being made.
    Snapshot,
    /// The pool has the other store: it is being filled.
    Filling,
    /// The other store holds the snapshot and some of the trail. None: the pool has it, for a round.
    CatchingUp(Option<Box<dyn StateStore>>),
    /// The pool has the other store for the last round before the manifest.
    Closing,
    /// The manifest may name it from here on.
    Closed(Box<dyn StateStore>),
    /// The manifest names it.
    Switching(Successor),
    /// The partition has it; the pool still works with the store before.
    Leaving(Box<dyn StateStore>),
    /// The pool deletes what nothing needs any more.
    CleaningUp,
}

/// What a step led to.
pub(crate) enum Step {
    /// There is more to do now.
    Busy,
    /// Something else has to happen first.
    Waiting,
    /// The partition is to be snapshotted to this file, as of now.
    Snapshot(PathBuf),
    /// The partition serves from its other store, whose newest snapshot this is.
    Switched(Option<SnapshotInfo>),
    /// Nothing is left to do.
    Ended,
}

/// The snapshot that the copy begins with.
struct Base {
    sequence: Sequence,
    path: PathBuf,
    created_unix_ms: u64,
    /// It was there before, so it stays if the change is given up.
    is_old: bool,
}

/// A change that is under way. Lives on its partition's core.
pub(crate) struct StoreChange {
    pub(crate) number: u64,
    /// The partition as it is.
    spec: PartitionSpec,
    to: StoreKind,
    phase: Phase,
    /// Who waits until the copy has caught up.
    caught_up: Option<Reply<Result<CopyReport, Refusal>>>,
    /// Who wants the copy to stand by itself.
    close: Option<Reply<Result<(), Refusal>>>,
    /// Who waits for the end.
    ended: Option<Reply<Result<(), Refusal>>>,
    /// Why the partition keeps the store that it has.
    given_up: Option<Refusal>,
    /// The partition is to be opened anew at the end.
    reopens: Option<Refusal>,
    base: Option<Base>,
    report: CopyReport,
    records_total: u64,
    backlog: Backlog,
    pace: CopyPace,
    progress: Arc<CopyProgress>,
    /// What the other store survives a crash with.
    covered: Sequence,
    since: Instant,
}

impl StoreChange {
    /// Begins a change of a partition that serves.
    ///
    /// # Errors
    /// `UNKNOWN_PARTITION`, or why it does not serve; `STORE_UNCHANGED`; `INVALID_ARGUMENT` when the build
    /// has no such store; `MEMORY_FULL`. The answer's way comes back.
    pub(crate) fn start(
        number: u64,
        id: PartitionId,
        to: StoreKind,
        caught_up: Reply<Result<CopyReport, Refusal>>,
        files: &PartitionFiles,
        executor: &mut Executor,
    ) -> Result<Self, (Refusal, Reply<Result<CopyReport, Refusal>>)> {
        match check(id, to, files, executor) {
            Err(refusal) => Err((refusal, caught_up)),
            Ok((spec, records_total)) => Ok(Self {
                number,
                spec,
                to,
                phase: Phase::Waiting,
                caught_up: Some(caught_up),
                close: None,
                ended: None,
                given_up: None,
                reopens: None,
                base: None,
                report: CopyReport { records: 0, bytes: 0 },
                records_total,
                backlog: Backlog::default(),
                pace: CopyPace::default(),
                progress: Arc::default(),
                covered: Sequence(u64::MAX),
                since: Instant::now(),
            }),
        }
    }

    /// Which partition.
    pub(crate) fn partition(&self) -> PartitionId {
        self.spec.id
    }

    /// Up to where the log may be let go of at most. What the other store lacks stays, for when the
    /// manifest names it.
    pub(crate) fn hold(&self) -> Sequence {
        self.covered
    }

    /// Memory of the other store while it is not the partition's.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.progress.memory_bytes() + self.backlog.memory_bytes() as u64
    }

    /// Whether a drain need not wait for it: only the manager can go on with it.
    pub(crate) fn is_parked(&self) -> bool {
        matches!(self.phase, Phase::Closed(_))
    }

    /// Whether the partition's own store is in memory.
    pub(crate) fn is_from_memory(&self) -> bool {
        !self.spec.store.is_on_disk()
    }

    /// Whether it has not begun.
    pub(crate) fn is_new(&self) -> bool {
        matches!(self.phase, Phase::Waiting) && self.base.is_none()
    }

    /// Whether the partition is at, or on, its way to the other store for good, or the change ends.
    pub(crate) fn is_last(&self) -> bool {
        matches!(self.phase, Phase::Switching(_) | Phase::Leaving(_) | Phase::CleaningUp)
    }

    /// Whether the partition has kept its store.
    pub(crate) fn was_given_up(&self) -> bool {
        self.given_up.is_some()
    }

    /// Has the copy made to stand by itself, once it has caught up.
    pub(crate) fn close(&mut self, reply: Reply<Result<(), Refusal>>) {
        self.close = Some(reply);
    }

    /// The manifest names the other store.
    ///
    /// # Panics
    /// When the copy was not closed: the manager asks for that first.
    pub(crate) fn switch(&mut self, reply: Reply<Result<(), Refusal>>, executor: &mut Executor) {
        self.since = Instant::now();
        self.ended = Some(reply);
        let Phase::Closed(store) = std::mem::replace(&mut self.phase, Phase::Waiting) else {
            panic!("the manifest names a store that is not closed")
        };
        let (partition, _) = executor.partition(self.spec.id).expect(STAYS);
        self.phase = Phase::Switching(partition.succeed(store));
    }

    /// The manager gives the change up.
    pub(crate) fn abandon(&mut self, reply: Reply<Result<(), Refusal>>, executor: &mut Executor) {
        self.ended = Some(reply);
        let text = format!("the change of the store of partition {} was given up", self.spec.id);
        self.give_up(Refusal::new(Reason::PartitionBusy, text), executor);
    }

    /// Gives the change up: the manifest names the store that the partition has. What is out on the
    /// pool comes back first.
    pub(crate) fn give_up(&mut self, refusal: Refusal, executor: &mut Executor) {
        self.progress.cancel();
        if let Some((partition, _)) = executor.partition(self.spec.id) {
            partition.trail_end();
        }
        self.given_up.get_or_insert(refusal);
    }

    /// The partition has stopped and is to be opened anew, which waits until it is settled in which
    /// store. `meanwhile`: what clients hear.
    pub(crate) fn reopen_after(&mut self, meanwhile: Refusal, executor: &mut Executor) {
        if !self.is_parked() && !self.is_last() {
            self.give_up(meanwhile.clone(), executor);
        }
        self.reopens = Some(meanwhile);
    }

    /// What clients hear while the partition is opened anew, if it is to be when this has ended.
    pub(crate) fn reopens(&mut self) -> Option<Refusal> {
        self.reopens.take()
    }

    /// The snapshot has ended.
    pub(crate) fn snapshot_done(
        &mut self,
        result: Result<SnapshotReport, Refusal>,
        files: &Arc<PartitionFiles>,
        executor: &mut Executor,
    ) {
        self.phase = Phase::Waiting;
        match result {
            Ok(_) if self.given_up.is_some() => {}
            Ok(report) => {
                self.report = CopyReport { records: report.records, bytes: report.bytes };
                self.records_total = report.records;
                self.fill(files, executor);
            }
            Err(refusal) => self.give_up(refusal, executor),
        }
    }

    /// The pool has done its part.
    pub(crate) fn pool_done(&mut self, done: Copied, executor: &mut Executor) -> Step {
        match done {
            Copied::Store(Ok(store)) => self.store_done(store, executor),
            Copied::Store(Err(refusal)) => {
                self.phase = Phase::Waiting;
                self.give_up(refusal, executor);
            }
            Copied::Spilled(Ok((file, spilled))) => self.backlog.spilled(file, spilled),
            Copied::Spilled(Err(error)) => {
                self.backlog = Backlog::default();
                self.give_up(unspilled(self.spec.id, &error), executor);
            }
            Copied::CleanedUp(result) => {
                if let Err(refusal) = &result {
                    // The next start sweeps, and the next change begins by removing it.
                    tracing::warn!(partition = self.spec.id.0, %refusal, "files of a store stay for now");
                }
                if let Some(refusal) = &self.given_up {
                    let caught_up = self.caught_up.take();
                    caught_up.map(|reply| reply.try_send(Err(refusal.clone())));
                    self.close.take().map(|reply| reply.try_send(Err(refusal.clone())));
                }
                self.ended.take().map(|reply| reply.try_send(Ok(())));
                return Step::Ended;
            }
        }
        Step::Busy
    }

    fn store_done(&mut self, store: Box<dyn StateStore>, executor: &mut Executor) {
        if self.to.is_on_disk() {
            self.covered = store.covered();
        }
        let closes = matches!(self.phase, Phase::Closing) && self.given_up.is_none();
        self.phase = if closes { Phase::Closed(store) } else { Phase::CatchingUp(Some(store)) };
        if closes && let Some(reply) = self.close.take() {
            if let Some((partition, _)) = executor.partition(self.spec.id)
                && let Some(trail) = partition.trail()
            {
                trail.allow(STORE_CHANGE_CLOSED_BYTES_MAX);
            }
            let _ = reply.try_send(Ok(()));
        }
    }

    /// A little of what can be done on the core.
    pub(crate) fn step(&mut self, files: &Arc<PartitionFiles>, executor: &mut Executor) -> Step {
        if self.given_up.is_some() {
            return self.end(files, executor);
        }
        match std::mem::replace(&mut self.phase, Phase::Waiting) {
            Phase::Waiting => self.begin(files, executor),
            Phase::CatchingUp(Some(store)) => self.go_on(store, executor),
            Phase::Switching(next) => self.apply_rest(next, executor),
            Phase::Leaving(before) => {
                let partition = executor.partition(self.spec.id);
                if partition.is_some_and(|(partition, _)| partition.is_leaving()) {
                    self.phase = Phase::Leaving(before);
                    return Step::Waiting;
                }
                // A store in memory needs the snapshot, one on disk has outgrown it.
                let base = self.base.take().filter(|_| self.to.is_on_disk());
                self.clean_up(files, self.spec.clone(), Some(before), base, executor);
                Step::Waiting
            }
            out @ (Phase::Snapshot | Phase::Filling | Phase::CatchingUp(None) | Phase::Closing) => {
                self.phase = out;
                self.take_along(TAKEN_ALONG_BYTES, executor);
                Step::Waiting
            }
            parked @ (Phase::Closed(_) | Phase::CleaningUp) => {
                self.phase = parked;
                Step::Waiting
            }
        }
    }

    /// Given up: deletes what has been made, once nothing of it is out on the pool.
    fn end(&mut self, files: &Arc<PartitionFiles>, executor: &mut Executor) -> Step {
        if self.backlog.is_spilling() {
            return Step::Waiting;
        }
        let store = match std::mem::replace(&mut self.phase, Phase::Waiting) {
            Phase::Waiting => None,
            Phase::CatchingUp(Some(store)) | Phase::Closed(store) => Some(store),
            out => {
                self.phase = out;
                return Step::Waiting;
            }
        };
        // Of a store in memory it is the newest snapshot now.
        let base = self.base.take();
        let base = base.filter(|base| !base.is_old && self.spec.store.is_on_disk());
        let target = PartitionSpec { store: self.to, ..self.spec.clone() };
        self.clean_up(files, target, store, base, executor);
        Step::Waiting
    }

    /// Has the snapshot made, or takes the one that is there.
    fn begin(&mut self, files: &Arc<PartitionFiles>, executor: &mut Executor) -> Step {
        let Some((partition, _)) = executor.partition(self.spec.id) else {
            self.give_up(gone(self.spec.id), executor);
            return Step::Busy;
        };
        let sequence = partition.applied();
        let path = match files.prepare_snapshot(self.spec.id, self.spec.first_epoch, sequence) {
            Ok(path) => path,
            Err(error) => {
                self.give_up(unspilled(self.spec.id, &error), executor);
                return Step::Busy;
            }
        };
        // From the same moment on as the snapshot, which is started in this turn.
        partition.trail_start();
        self.covered = sequence;
        let is_old = path.exists();
        self.base = Some(Base { sequence, path: path.clone(), created_unix_ms: 0, is_old });
        if is_old {
            self.fill(files, executor);
            return Step::Waiting;
        }
        self.phase = Phase::Snapshot;
        Step::Snapshot(path)
    }

    /// The snapshot is being made, and since when.
    pub(crate) fn snapshot_started(&mut self, created_unix_ms: u64) {
        if let Some(base) = &mut self.base {
            base.created_unix_ms = created_unix_ms;
        }
    }

    /// What a store in memory has on disk now, when the change is given up or not.
    pub(crate) fn new_snapshot(&self) -> Option<SnapshotInfo> {
        let base = self.base.as_ref()?;
        let Base { sequence, created_unix_ms, .. } = *base;
        (!self.spec.store.is_on_disk()).then_some(SnapshotInfo { sequence, created_unix_ms })
    }

    fn fill(&mut self, files: &Arc<PartitionFiles>, executor: &mut Executor) {
        let base = self.base.as_ref().expect("there is a snapshot");
        let (sequence, path) = (base.sequence, base.path.clone());
        let spec = PartitionSpec { store: self.to, ..self.spec.clone() };
        let limit = if self.to.is_on_disk() { u64::MAX } else { executor.world.memory.available() };
        let (files, progress, number) =
            (Arc::clone(files), Arc::clone(&self.progress), self.number);
        self.phase = Phase::Filling;
        executor.world.pool.submit(move || {
            let filled = fill(&files, &spec, &path, sequence, &progress, limit);
            PoolDone::StoreChange(number, Copied::Store(filled))
        });
    }

    /// The other store is here: has it catch up, or says that it has.
    fn go_on(&mut self, store: Box<dyn StateStore>, executor: &mut Executor) -> Step {
        self.take_along(0, executor);
        let Some((partition, _)) = executor.partition(self.spec.id) else {
            self.phase = Phase::CatchingUp(Some(store));
            self.give_up(gone(self.spec.id), executor);
            return Step::Busy;
        };
        let (state, detail) = partition.state();
        if state != PartitionState::Primary {
            let refusal = stopped(self.spec.id, state, detail);
            self.phase = Phase::CatchingUp(Some(store));
            self.give_up(refusal, executor);
            return Step::Busy;
        }
        let durable = partition.passed();
        let waiting = self.backlog.bytes();
        let is_close = CopyPace::is_close(waiting);
        if is_close && let Some(reply) = self.caught_up.take() {
            let _ = reply.try_send(Ok(self.report));
        }
        let taken = self.pace.round(waiting);
        let portions = self.backlog.take(taken, durable);
        let closes = is_close && self.backlog.is_in_memory() && self.close.is_some();
        if portions.is_empty() && !closes {
            self.phase = Phase::CatchingUp(Some(store));
            return Step::Waiting;
        }
        self.phase = if closes { Phase::Closing } else { Phase::CatchingUp(None) };
        self.allow(executor);
        let (progress, number) = (Arc::clone(&self.progress), self.number);
        // In memory it has the snapshot to begin with after a crash, and the log from there on.
        let covers = closes && self.to.is_on_disk();
        executor.world.pool.submit(move || {
            let caught_up = catch_up(store, portions, covers, &progress);
            PoolDone::StoreChange(number, Copied::Store(caught_up))
        });
        Step::Waiting
    }

    /// Takes what the trail has, if it is so much, and has it written to the file when it is a lot.
    fn take_along(&mut self, bytes_min: usize, executor: &mut Executor) {
        if let Some((partition, _)) = executor.partition(self.spec.id)
            && let Some(trail) = partition.trail()
            && trail.bytes() > bytes_min
        {
            trail.take().for_each(|piece| self.backlog.push(piece));
        }
        self.allow(executor);
        if let Some(spill) = self.backlog.spill() {
            let number = self.number;
            let directory = self.base.as_ref().and_then(|base| base.path.parent());
            let directory = directory.map(Path::to_owned).expect("a snapshot is in a directory");
            executor.world.pool.submit(move || {
                PoolDone::StoreChange(number, Copied::Spilled(spill.write(&directory)))
            });
        }
    }

    /// Tells the trail how much it may hold.
    fn allow(&self, executor: &mut Executor) {
        let in_all = self.pace.room().saturating_sub(self.backlog.bytes());
        let in_memory = STORE_CHANGE_MEMORY_BYTES_MAX.saturating_sub(self.backlog.memory_bytes());
        if let Some((partition, _)) = executor.partition(self.spec.id)
            && let Some(trail) = partition.trail()
        {
            trail.allow(in_all.min(in_memory));
        }
    }

    /// Applies a step's worth of the last writes; when nothing is left, the partition serves from the
    /// other store in the same turn.
    fn apply_rest(&mut self, mut next: Successor, executor: &mut Executor) -> Step {
        let began = Instant::now();
        let (partition, mut effects) = executor.partition(self.spec.id).expect(STAYS);
        let trail = partition.trail().expect("it goes on until the switch");
        trail.take().for_each(|piece| self.backlog.push(piece));
        // Writers that fill a step in every turn would put the switch off for ever.
        trail.allow(STORE_CHANGE_STEP_BYTES / 2);
        let mut applied = 0;
        while applied < STORE_CHANGE_STEP_BYTES
            && let Some(piece) = self.backlog.take_piece(Sequence(u64::MAX))
        {
            applied += piece.bytes.len();
            if let Some(rest) = apply_here(partition, &mut next, piece) {
                self.backlog.put_back(rest);
                self.phase = Phase::Switching(next);
                executor.world.log.hurry();
                return Step::Waiting;
            }
        }
        if self.backlog.bytes() > 0 {
            self.phase = Phase::Switching(next);
            return Step::Busy;
        }
        let before = partition.change_store(self.to, next, &mut effects);
        tracing::info!(
            partition = self.spec.id.0,
            from = %self.spec.store,
            to = %self.to,
            last_step_us = began.elapsed().as_micros() as u64,
            switch_us = self.since.elapsed().as_micros() as u64,
            "the store was changed"
        );
        self.progress = Arc::default();
        self.phase = Phase::Leaving(before);
        let base = self.base.as_ref().filter(|_| !self.to.is_on_disk());
        Step::Switched(base.map(|base| SnapshotInfo {
            sequence: base.sequence,
            created_unix_ms: base.created_unix_ms,
        }))
    }

    /// How long the partition has been on its way to the other store since the manifest named it.
    pub(crate) fn switch_took(&self) -> Duration {
        self.since.elapsed()
    }

    fn clean_up(
        &mut self,
        files: &Arc<PartitionFiles>,
        spec: PartitionSpec,
        store: Option<Box<dyn StateStore>>,
        base: Option<Base>,
        executor: &mut Executor,
    ) {
        self.phase = Phase::CleaningUp;
        let (files, number) = (Arc::clone(files), self.number);
        executor.world.pool.submit(move || {
            let path = base.as_ref().map(|base| base.path.as_path());
            PoolDone::StoreChange(number, Copied::CleanedUp(clean_up(&files, &spec, store, path)))
        });
    }

    /// Describes it; `in_snapshot`: records that its snapshot has so far.
    pub(crate) fn describe(&self, in_snapshot: u64) -> StoreChangeReport {
        let (phase, records) = match &self.phase {
            Phase::Waiting => ("waiting", 0),
            Phase::Snapshot => ("snapshot", in_snapshot),
            Phase::Filling => ("copy", self.progress.records()),
            Phase::CatchingUp(_) | Phase::Closing => ("catch-up", self.progress.records()),
            Phase::Closed(_) | Phase::Switching(_) => ("switch", self.progress.records()),
            Phase::Leaving(_) | Phase::CleaningUp => ("clean-up", self.records_total),
        };
        StoreChangeReport {
            to: self.to,
            phase,
            records,
            records_total: self.records_total,
            waiting_bytes: self.backlog.bytes() as u64,
        }
    }
}

/// Whether a partition's store can be changed; what it is, and how many records it has.
fn check(
    id: PartitionId,
    to: StoreKind,
    files: &PartitionFiles,
    executor: &mut Executor,
) -> Result<(PartitionSpec, u64), Refusal> {
    files.check_store(to)?;
    let available = executor.world.memory.available();
    match executor.hosted(id) {
        None => Err(gone(id)),
        Some(Hosted::Down(_, _, refusal)) => Err(refusal.clone()),
        Some(Hosted::Here(partition)) => {
            let (state, detail) = partition.state();
            if state != PartitionState::Primary {
                return Err(stopped(id, state, detail));
            }
            let spec = partition.spec();
            if spec.store == to {
                let text = format!("partition {id} has a {to} store");
                return Err(Refusal::new(Reason::StoreUnchanged, text));
            }
            if spec.store.is_unlogged() || to.is_unlogged() {
                return Err(cannot_move(id, spec.store, to));
            }
            let stats = partition.stats();
            let needed = stats.payload_bytes + stats.records * RECORD_MEMORY_BYTES;
            if !to.is_on_disk() && needed > available {
                return Err(memory_full(available));
            }
            Ok((spec.clone(), stats.records))
        }
    }
}

/// Records do not move between a store that keeps integers without a log and others.
pub(crate) fn cannot_move(id: PartitionId, from: StoreKind, to: StoreKind) -> Refusal {
    let text = format!(
        "the store of partition {id} cannot be changed from {from} to {to}: counters keeps integers alone, \
         without a log; add another partition and write them there"
    );
    Refusal::new(Reason::InvalidArgument, text)
}

fn gone(id: PartitionId) -> Refusal {
    Refusal::new(Reason::UnknownPartition, format!("core hosts no partition {id} that serves"))
}

fn stopped(id: PartitionId, state: PartitionState, detail: &str) -> Refusal {
    let reason = match state {
        PartitionState::Damaged => Reason::PartitionDamaged,
        _ => Reason::PartitionStopped,
    };
    Refusal::new(reason, format!("partition {id} is {state}: {detail}"))
}
