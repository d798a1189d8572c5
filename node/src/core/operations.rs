//! What a core does for the manager: adding, changing, removing, snapshotting and restoring its
//! partitions. Each of these may take a while; requests are served meanwhile.

use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    sync::Arc,
};

use stateside_partition::{Input, Partition};
use stateside_statestore::RequestStats;
use stateside_types::{
    Epoch, PartitionId, PartitionSpec, PartitionState, Reason, Refusal, Sequence,
};

use super::{
    command::{KafkaReport, PartitionReport, Reply, RestoreReport},
    executor::{Executor, Hosted},
    kafka::{CoreKafka, FromKafka, OpenedLog},
    partition_files::{PartitionFiles, SnapshotInfo},
    pool::PoolDone,
    recovery::stopped,
    snapshots::{Progress, Purpose, SnapshotJob},
    store_change::StoreChange,
    world::without_kafka,
};
use crate::metrics::CoreMetrics;

/// Snapshots that a core makes at a time: each walks a little in every turn.
const SNAPSHOTS_AT_A_TIME: usize = 4;
/// Turns that bring requests, of which one has a step of the snapshots: they go on under any load.
const TURNS_PER_STEP: u32 = 4;

/// Something that waits for the pool.
enum Pending {
    /// A store is being opened for this partition.
    Open(PartitionSpec, Reply<Result<(), Refusal>>),
    /// A snapshot is being verified and installed.
    Prepare(PartitionId, Reply<Result<RestoreReport, Refusal>>),
    /// Files are being deleted.
    Remove(Reply<Result<(), Refusal>>),
}

/// A partition that is out of service, and what is done when nothing works on it any more.
type Retiring = (Box<Partition>, AtRest);

/// See [`Retiring`].
enum AtRest {
    /// It was removed: its files go, and somebody waits for that.
    Delete(Reply<Result<(), Refusal>>),
    /// Its log in Kafka is over and can be claimed again: it begins anew with what its files and the
    /// log hold. What clients hear meanwhile.
    Reopen(Refusal),
}

/// The operations under way on a core. Lives on its thread.
pub(crate) struct Operations {
    pub(super) files: Arc<PartitionFiles>,
    pub(super) metrics: Arc<CoreMetrics>,
    next_number: u64,
    pending: HashMap<u64, Pending>,
    pub(super) snapshots: Vec<SnapshotJob>,
    /// Changes of partitions' stores.
    pub(super) store_changes: Vec<StoreChange>,
    /// Partitions out of service whose last piece of store work, or snapshot, is still out.
    retiring: Vec<Retiring>,
    /// The newest snapshot of each partition of this core.
    pub(super) newest: HashMap<PartitionId, SnapshotInfo>,
    /// Partitions to be snapshotted, one after the other.
    background: VecDeque<PartitionId>,
    /// Something can go on in the next turn without anything happening.
    pub(super) busy: bool,
    /// Turns since the snapshots' last step.
    passed_over: u32,
}

impl Operations {
    pub(crate) fn new(
        files: Arc<PartitionFiles>,
        newest: HashMap<PartitionId, SnapshotInfo>,
        metrics: Arc<CoreMetrics>,
    ) -> Self {
        Self {
            files,
            metrics,
            next_number: 0,
            pending: HashMap::new(),
            snapshots: Vec::new(),
            store_changes: Vec::new(),
            retiring: Vec::new(),
            newest,
            background: VecDeque::new(),
            busy: false,
            passed_over: 0,
        }
    }

    /// Whether the next turn has something to do here.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
            && self.snapshots.is_empty()
            && self.store_changes.iter().all(StoreChange::is_parked)
            && self.background.is_empty()
            && self.retiring.is_empty()
    }

    /// Creates a partition, empty.
    pub(crate) fn add(
        &mut self,
        spec: PartitionSpec,
        reply: Reply<Result<(), Refusal>>,
        executor: &mut Executor,
    ) {
        let text = format!("partition {} is being created", spec.id);
        self.open(spec, Refusal::new(Reason::PartitionStarting, text), reply, executor);
    }

    /// Puts new settings in force.
    pub(crate) fn update(
        &mut self,
        spec: PartitionSpec,
        executor: &mut Executor,
    ) -> Result<(), Refusal> {
        let id = spec.id;
        match executor.partition(id) {
            Some((partition, _)) => partition.update(spec),
            None => Err(unknown(id)),
        }
    }

    /// Takes a partition out of service and deletes its files.
    pub(crate) fn remove(
        &mut self,
        id: PartitionId,
        reply: Reply<Result<(), Refusal>>,
        executor: &mut Executor,
    ) {
        if let Some((partition, mut effects)) = executor.partition(id) {
            let text = format!("partition {id} was removed from this node");
            partition.halt(Refusal::new(Reason::BadNode, text), &mut effects);
        }
        executor.world.log.forget(id);
        if let Some(kafka) = &mut executor.world.kafka {
            kafka.close(id);
        }
        self.newest.remove(&id);
        match executor.unhost(id) {
            Some(Hosted::Here(partition)) => {
                self.retiring.push((partition, AtRest::Delete(reply)));
                self.retire(executor);
            }
            Some(Hosted::Down(..)) | None => {
                let mut retiring = self.retiring.iter_mut();
                match retiring.find(|(partition, _)| partition.spec().id == id) {
                    Some((_, then)) => *then = AtRest::Delete(reply),
                    None => self.delete_files(id, reply, executor),
                }
            }
        }
    }

    /// Starts a snapshot that an operator asked for.
    pub(crate) fn snapshot(
        &mut self,
        id: PartitionId,
        path: PathBuf,
        purpose: Purpose,
        executor: &mut Executor,
    ) {
        let busy = self.snapshots.iter().any(|job| job.partition == id);
        let started = if busy || self.snapshots.len() >= SNAPSHOTS_AT_A_TIME {
            let text = format!("a snapshot of partition {id} or of several others is being made");
            Err((Refusal::new(Reason::PartitionBusy, text), purpose))
        } else {
            SnapshotJob::start(self.number(), id, path, purpose, executor)
        };
        match started {
            Ok(job) => self.snapshots.push(job),
            Err((refusal, Purpose::Operator(reply))) => answer(&reply, Err(refusal)),
            Err((_, Purpose::StoreChange { .. })) => unreachable!("it starts its own"),
            Err((refusal, Purpose::Background)) => {
                self.metrics.snapshot_failures.increment();
                tracing::warn!(partition = id.0, %refusal, "no background snapshot");
            }
        }
    }

    /// Has a partition snapshotted when its turn comes, to let go of old log segments.
    pub(crate) fn background_snapshot(&mut self, id: PartitionId) {
        if !self.background.contains(&id) {
            self.background.push_back(id);
        }
    }

    /// Has every partition snapshotted whose records lie in logs that this core does not write.
    pub(crate) fn snapshot_all(&mut self, executor: &Executor) {
        self.background.extend(executor.all().map(|hosted| hosted.spec().id));
    }

    /// Has every partition without a log snapshotted that was written to since its last one: nothing else
    /// of it survives a crash, or the end of the process.
    pub(crate) fn snapshot_unlogged(&mut self, executor: &Executor) {
        for hosted in executor.all() {
            if let Hosted::Here(partition) = hosted
                && !partition.spec().is_logged()
                && self.covered(partition) < partition.applied()
            {
                self.background_snapshot(partition.spec().id);
            }
        }
    }

    /// Starts the next background snapshot, unless one is being made.
    fn next_background(&mut self, executor: &mut Executor) {
        if self.snapshots.iter().any(|job| matches!(job.purpose, Purpose::Background)) {
            return;
        }
        let Some(id) = self.background.pop_front() else { return };
        let Some((partition, mut effects)) = executor.partition(id) else { return };
        // The change of its store makes one, and has the log kept anyway. Without a log, the last one
        // before the end is made when the change has ended.
        if self.store_change(id).is_some() {
            if effects.world.is_draining && !partition.spec().is_logged() {
                self.background.push_back(id);
            }
            return;
        }
        if self.covered(partition) >= partition.applied() {
            return;
        }
        let spec = partition.spec();
        let (epoch, sequence) = (spec.first_epoch, partition.applied());
        if spec.store.is_on_disk() {
            // What it holds is on disk but for the last of it: cheaper than a snapshot.
            return partition.cover(&mut effects);
        }
        match self.files.prepare_snapshot(id, epoch, sequence) {
            Ok(path) => self.snapshot(id, path, Purpose::Background, executor),
            Err(error) => {
                self.metrics.snapshot_failures.increment();
                tracing::warn!(partition = id.0, %error, "no background snapshot");
            }
        }
    }

    /// Verifies a snapshot and installs a copy of it; writes are refused from here.
    pub(crate) fn prepare_restore(
        &mut self,
        id: PartitionId,
        path: PathBuf,
        epoch: Epoch,
        reply: Reply<Result<RestoreReport, Refusal>>,
        executor: &mut Executor,
    ) {
        let refusal = match executor.hosted(id) {
            None => Some(unknown(id)),
            Some(hosted) if hosted.spec().is_logged_in_kafka() => Some(Refusal::new(
                Reason::InvalidArgument,
                format!(
                    "the content of partition {id} is its log in Kafka, which a restore cannot change; restore into a partition with a local log"
                ),
            )),
            Some(_) if self.is_under_way(id) => Some(busy(id)),
            Some(_) => None,
        };
        if let Some(refusal) = refusal {
            return answer(&reply, Err(refusal));
        }
        let mut own = Sequence::ZERO;
        let mut spec = None;
        if let Some((partition, _)) = executor.partition(id) {
            partition.freeze(Some(busy(id)));
            own = partition.applied();
            spec = Some(partition.spec().clone());
        } else if let Some(hosted) = executor.hosted(id) {
            spec = Some(hosted.spec().clone());
        }
        let Some(spec) = spec else { return answer(&reply, Err(unknown(id))) };
        let number = self.number();
        self.pending.insert(number, Pending::Prepare(id, reply));
        let files = Arc::clone(&self.files);
        executor.world.pool.submit(move || {
            PoolDone::RestorePrepared(number, files.install_snapshot(&spec, &path, epoch, own))
        });
    }

    /// The manifest has the new epoch, or the restore is abandoned.
    pub(crate) fn finish_restore(
        &mut self,
        id: PartitionId,
        spec: Option<PartitionSpec>,
        reply: Reply<Result<(), Refusal>>,
        executor: &mut Executor,
    ) {
        if let Some(spec) = spec {
            if let Some((partition, mut effects)) = executor.partition(id) {
                partition.halt(busy(id), &mut effects);
            }
            executor.world.log.forget(id);
            self.newest.remove(&id);
            let text = format!("partition {id} is being restored");
            self.open(spec, Refusal::new(Reason::PartitionStarting, text), reply, executor);
        } else {
            if let Some((partition, _)) = executor.partition(id) {
                partition.freeze(None);
            }
            answer(&reply, Ok(()));
        }
    }

    /// Something came back from the pool.
    pub(crate) fn pool_done(&mut self, done: PoolDone, executor: &mut Executor) {
        match done {
            PoolDone::Store(id, done, took) => {
                self.metrics.store_work.observe(took);
                if let Some((partition, mut effects)) = executor.partition(id) {
                    let input = stateside_partition::Input::WorkDone(done);
                    partition.step(input, &mut effects);
                } else {
                    let retiring = self.retiring.iter_mut().find(|(p, _)| p.spec().id == id);
                    if let Some((partition, _)) = retiring {
                        partition.work_ended();
                    }
                }
                self.retire(executor);
                self.busy = true;
            }
            PoolDone::SnapshotFile(number, done) => {
                if let Some(at) = self.snapshots.iter().position(|job| job.number == number) {
                    let progress = self.snapshots[at].file_done(done, executor);
                    self.progress(at, progress, executor);
                }
            }
            PoolDone::RestorePrepared(number, result) => {
                if let Some(Pending::Prepare(id, reply)) = self.pending.remove(&number) {
                    if result.is_err()
                        && let Some((partition, _)) = executor.partition(id)
                    {
                        partition.freeze(None);
                    }
                    answer(&reply, result);
                }
            }
            PoolDone::StoreOpened(number, result) => {
                if let Some(Pending::Open(spec, reply)) = self.pending.remove(&number) {
                    let result = result.and_then(|(store, newest)| {
                        if let Some(newest) = newest {
                            self.newest.insert(spec.id, newest);
                        }
                        if spec.is_logged_in_kafka() {
                            // It may have been removed while its store was opened.
                            return match executor.hosted(spec.id) {
                                Some(Hosted::Down(here, ..))
                                    if here.first_epoch == spec.first_epoch =>
                                {
                                    replay_from_kafka(spec, store, executor)
                                }
                                _ => Err(unknown(spec.id)),
                            };
                        }
                        serve(spec, store, executor)
                    });
                    answer(&reply, result);
                }
            }
            PoolDone::KafkaFiled(id, position, result) => {
                if let Err(error) = &result {
                    tracing::warn!(partition = id.0, %error, "where its log in Kafka is replayed from cannot be noted");
                }
                if let Some(kafka) = &mut executor.world.kafka {
                    kafka.filed(id, result.is_ok().then_some(*position));
                }
            }
            PoolDone::LateRecovered(_) => unreachable!("the core hands it to its late recovery"),
            PoolDone::StoreChange(number, done) => {
                if let Some(at) = self.store_changes.iter().position(|one| one.number == number) {
                    let step = self.store_changes[at].pool_done(done, executor);
                    self.store_change_stepped(at, step, executor);
                }
            }
            PoolDone::FilesRemoved(number, result) => {
                if let Some(Pending::Remove(reply)) = self.pending.remove(&number) {
                    answer(&reply, result);
                }
            }
        }
    }

    /// A little of what goes on in the background.
    pub(crate) fn step(&mut self, executor: &mut Executor) {
        let was_busy = std::mem::take(&mut self.busy);
        if !self.retiring.is_empty() {
            self.retire(executor);
        }
        self.next_background(executor);
        // Requests come in bursts, which a step after each piece would make longer.
        self.passed_over += 1;
        if executor.world.requests > 0 && self.passed_over < TURNS_PER_STEP {
            self.busy |= was_busy;
        } else {
            self.passed_over = 0;
            self.step_snapshots(executor);
        }
        self.step_store_changes(executor);
    }

    fn step_snapshots(&mut self, executor: &mut Executor) {
        let mut at = 0;
        while at < self.snapshots.len() {
            let progress = self.snapshots[at].step(executor);
            if !self.progress(at, progress, executor) {
                at += 1;
            }
        }
    }

    /// Up to where a partition survives without the log: newest snapshot, or its own store.
    pub(crate) fn covered(&self, partition: &Partition) -> Sequence {
        let id = partition.spec().id;
        let snapshot = self.newest.get(&id).map(|newest| newest.sequence);
        let covered = partition.covered().max(snapshot.unwrap_or(partition.spec().base_sequence));
        // The store that it changes to must find the rest in the log.
        self.store_change(id).map_or(covered, |change| covered.min(change.hold()))
    }

    /// A partition has this snapshot on disk.
    pub(crate) fn has_snapshot(&mut self, id: PartitionId, newest: SnapshotInfo) {
        self.newest.insert(id, newest);
    }

    /// Describes a hosted partition.
    pub(crate) fn report(&self, hosted: &Hosted, kafka: Option<KafkaReport>) -> PartitionReport {
        let spec = hosted.spec().clone();
        let newest = self.newest.get(&spec.id);
        match hosted {
            Hosted::Here(partition) => {
                let stats = partition.stats();
                let (state, detail) = partition.state();
                let (requests, retries_answered) = partition.requests();
                PartitionReport {
                    kafka,
                    store_change: self.describe_store_change(spec.id),
                    state,
                    records: stats.records,
                    payload_bytes: stats.payload_bytes,
                    memory_bytes: stats.memory_bytes,
                    reclaimed: stats.reclaimed,
                    sequence: partition.applied(),
                    durable_sequence: partition.passed(),
                    snapshot_sequence: self.covered(partition),
                    snapshot_unix_ms: newest.map_or(0, |newest| newest.created_unix_ms),
                    requests,
                    retries_answered,
                    stages: partition.stage_counts().collect(),
                    detail: detail.to_owned(),
                    spec,
                }
            }
            Hosted::Down(_, state, refusal) => PartitionReport {
                kafka,
                store_change: None,
                state: *state,
                records: 0,
                payload_bytes: 0,
                memory_bytes: 0,
                reclaimed: 0,
                sequence: Sequence::ZERO,
                durable_sequence: Sequence::ZERO,
                snapshot_sequence: newest.map_or(spec.base_sequence, |newest| newest.sequence),
                snapshot_unix_ms: newest.map_or(0, |newest| newest.created_unix_ms),
                requests: RequestStats::default(),
                retries_answered: 0,
                stages: Vec::new(),
                detail: refusal.message.clone().into_owned(),
                spec,
            },
        }
    }

    fn open(
        &mut self,
        spec: PartitionSpec,
        meanwhile: Refusal,
        reply: Reply<Result<(), Refusal>>,
        executor: &mut Executor,
    ) {
        executor.host(Hosted::Down(spec.clone(), PartitionState::Init, meanwhile));
        let number = self.number();
        let files = Arc::clone(&self.files);
        self.pending.insert(number, Pending::Open(spec.clone(), reply));
        executor.world.pool.submit(move || PoolDone::StoreOpened(number, files.open_store(&spec)));
    }

    fn delete_files(
        &mut self,
        id: PartitionId,
        reply: Reply<Result<(), Refusal>>,
        executor: &mut Executor,
    ) {
        let number = self.number();
        let files = Arc::clone(&self.files);
        self.pending.insert(number, Pending::Remove(reply));
        executor.world.pool.submit(move || PoolDone::FilesRemoved(number, files.remove(id)));
    }

    /// Partitions whose store is at rest lose their files, or are opened anew.
    fn retire(&mut self, executor: &mut Executor) {
        let snapshots = &self.snapshots;
        let is_at_rest = |(partition, then): &Retiring| {
            // A snapshot under way belongs to what the partition was: it must not see what it becomes.
            let id = partition.spec().id;
            let reopens = matches!(then, AtRest::Reopen(_));
            partition.is_quiet() && !(reopens && snapshots.iter().any(|job| job.partition == id))
        };
        let (at_rest, others) =
            std::mem::take(&mut self.retiring).into_iter().partition(is_at_rest);
        self.retiring = others;
        let at_rest: Vec<Retiring> = at_rest;
        for (partition, then) in at_rest {
            let spec = partition.spec().clone();
            drop(partition);
            match then {
                AtRest::Delete(reply) => self.delete_files(spec.id, reply, executor),
                AtRest::Reopen(meanwhile) => {
                    // Nobody waits for the answer: what comes of it is the partition's state.
                    let (reply, _) = flume::bounded(1);
                    self.open(spec, meanwhile, reply, executor);
                }
            }
        }
    }

    /// A partition's log in Kafka is over for now: what was not acknowledged is let go of, and the rest
    /// is read again, as after a restart.
    pub(super) fn reopen(&mut self, id: PartitionId, meanwhile: Refusal, executor: &mut Executor) {
        if let Some(change) = self.store_change_of(id) {
            return change.reopen_after(meanwhile, executor);
        }
        if let Some(Hosted::Here(partition)) = executor.unhost(id) {
            let spec = partition.spec().clone();
            executor.host(Hosted::Down(spec, PartitionState::Init, meanwhile.clone()));
            self.retiring.push((partition, AtRest::Reopen(meanwhile)));
            self.retire(executor);
        }
    }

    /// Books how far a snapshot got; true when it has ended and left the list.
    fn progress(&mut self, at: usize, progress: Progress, executor: &mut Executor) -> bool {
        let result = match progress {
            Progress::Busy => {
                self.busy = true;
                return false;
            }
            Progress::Waiting => return false,
            Progress::Ended(result) => result,
        };
        let job = self.snapshots.swap_remove(at);
        match &result {
            Ok(report) => {
                self.metrics.snapshots.increment();
                self.metrics.snapshot_bytes.add(report.bytes);
            }
            Err(_) => self.metrics.snapshot_failures.increment(),
        }
        match job.purpose {
            Purpose::Operator(reply) => answer(&reply, result),
            Purpose::StoreChange { .. } => {
                self.store_change_snapshot(job.partition, result, executor)
            }
            Purpose::Background => match result {
                Ok(report) => {
                    tracing::debug!(
                        partition = job.partition.0,
                        sequence = report.sequence.0,
                        records = report.records,
                        bytes = report.bytes,
                        "background snapshot"
                    );
                    let newest = SnapshotInfo {
                        sequence: report.sequence,
                        created_unix_ms: job.created_unix_ms,
                    };
                    self.newest.insert(job.partition, newest);
                }
                Err(refusal) => {
                    tracing::warn!(partition = job.partition.0, %refusal, "a background snapshot failed");
                }
            },
        }
        true
    }

    /// Opens a partition with its log in Kafka that was there before this start.
    pub(crate) fn open_logged_in_kafka(&mut self, spec: PartitionSpec, executor: &mut Executor) {
        let text = format!("partition {} waits for its log in Kafka", spec.id);
        // Nobody waits for the answer: what comes of it is the partition's state.
        let (reply, _) = flume::bounded(1);
        self.open(spec, Refusal::new(Reason::PartitionStarting, text), reply, executor);
    }

    /// What Kafka's threads have left for this core.
    pub(crate) fn take_kafka_mail(&mut self, executor: &mut Executor) {
        let Some(mail) = executor.world.kafka.as_ref().and_then(CoreKafka::take_mail) else {
            return;
        };
        for (id, anchor) in mail.passed {
            let kafka = executor.world.kafka.as_mut();
            let passed = kafka.and_then(|kafka| kafka.passed(id, anchor));
            if let (Some(passed), Some((partition, mut effects))) = (passed, executor.partition(id))
            {
                partition.step(Input::LogDurable(passed), &mut effects);
            }
        }
        for event in mail.events {
            self.take_kafka_event(event, executor);
        }
    }

    fn take_kafka_event(&mut self, event: FromKafka, executor: &mut Executor) {
        match event {
            FromKafka::Progress { partition: id, offset, lag, detail } => {
                if let Some(kafka) = &mut executor.world.kafka {
                    kafka.progress(id, offset, lag);
                }
                let refusal = Refusal::new(Reason::PartitionStarting, detail);
                if let Some(Hosted::Down(spec, PartitionState::Init, _)) = executor.hosted(id) {
                    let spec = spec.clone();
                    executor.host(Hosted::Down(spec, PartitionState::Init, refusal));
                }
            }
            FromKafka::Opened { partition: id, first_epoch, result } => {
                // It may have been removed meanwhile, and added again.
                let spec = match executor.hosted(id) {
                    Some(Hosted::Down(spec, ..)) if spec.first_epoch == first_epoch => spec.clone(),
                    _ => return,
                };
                let hosted = match result {
                    Err(refusal) => {
                        tracing::error!(partition = id.0, %refusal, "a partition cannot serve");
                        stopped(spec, refusal)
                    }
                    Ok(opened) => {
                        let OpenedLog { store, claim, position } = *opened;
                        let partition = Partition::new(spec.clone(), store);
                        if let (Some(kafka), Ok(_)) = (&mut executor.world.kafka, &partition) {
                            kafka.adopt(id, claim, position);
                        }
                        tracing::debug!(
                            partition = id.0,
                            epoch = claim.epoch.0,
                            offset = claim.offset,
                            "claimed its log in Kafka"
                        );
                        match partition {
                            Ok(partition) => Hosted::Here(Box::new(partition)),
                            Err(error) => stopped(
                                spec,
                                Refusal::new(Reason::PartitionStopped, error.to_string()),
                            ),
                        }
                    }
                };
                executor.host(hosted);
            }
            FromKafka::Over { partition: id, epoch, held, later, reopens } => {
                let Some(kafka) = &mut executor.world.kafka else { return };
                if !kafka.has_claim(id, epoch) {
                    return;
                }
                kafka.close(id);
                if let Some((partition, mut effects)) = executor.partition(id) {
                    // Who waits does not know what came of it; who comes can be told where to go.
                    partition.halt(held, &mut effects);
                    partition.halt(later.clone(), &mut effects);
                }
                if reopens {
                    self.reopen(id, later, executor);
                }
            }
        }
    }

    /// Goes through the partitions with logs in Kafka: what has waited too long, what a snapshot has
    /// passed, what needs a snapshot.
    pub(crate) fn tend_kafka(&mut self, executor: &mut Executor) {
        let Some(kafka) = &mut executor.world.kafka else { return };
        for id in kafka.due_for_snapshot() {
            if !self.is_under_way(id) {
                self.background_snapshot(id);
            }
        }
        for id in kafka.partitions() {
            let Some((partition, _)) = executor.partition(id) else { continue };
            let covered = self.covered(partition);
            let kafka = executor.world.kafka.as_mut();
            let Some(position) = kafka.and_then(|kafka| kafka.file_position(id, covered)) else {
                continue;
            };
            let files = Arc::clone(&self.files);
            executor.world.pool.submit(move || {
                let written = files.write_kafka_position(id, &position);
                PoolDone::KafkaFiled(id, Box::new(position), written)
            });
        }
    }

    /// Whether something is being done to a partition.
    pub(crate) fn is_under_way(&self, id: PartitionId) -> bool {
        self.snapshots.iter().any(|job| job.partition == id)
            || self.store_change(id).is_some()
            || self.pending.values().any(|pending| match pending {
                Pending::Open(spec, _) => spec.id == id,
                Pending::Prepare(other, _) => *other == id,
                Pending::Remove(_) => false,
            })
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }
}

/// Puts a partition with its opened store into service.
fn serve(
    spec: PartitionSpec,
    store: Box<dyn stateside_statestore::StateStore>,
    executor: &mut Executor,
) -> Result<(), Refusal> {
    let partition = Partition::new(spec, store)
        .map_err(|error| Refusal::new(Reason::InvalidArgument, error.to_string()))?;
    let spec = partition.spec();
    executor.world.log.adopt(spec.id, spec.first_epoch, partition.applied());
    executor.host(Hosted::Here(Box::new(partition)));
    Ok(())
}

/// Has a partition's log in Kafka replayed into its store. It serves when it is claimed.
fn replay_from_kafka(
    spec: PartitionSpec,
    store: Box<dyn stateside_statestore::StateStore>,
    executor: &mut Executor,
) -> Result<(), Refusal> {
    match &mut executor.world.kafka {
        Some(kafka) => kafka.open(spec, store),
        None => {
            let refusal = without_kafka(spec.id);
            executor.host(Hosted::Down(spec, PartitionState::Stopped, refusal));
        }
    }
    Ok(())
}

pub(super) fn answer<T>(reply: &Reply<T>, value: T) {
    // Whoever asked may have given up; the work is done all the same.
    let _ = reply.try_send(value);
}

pub(super) fn unknown(id: PartitionId) -> Refusal {
    Refusal::new(Reason::UnknownPartition, format!("this node has no partition {id}"))
}

pub(super) fn busy(id: PartitionId) -> Refusal {
    Refusal::new(Reason::PartitionBusy, format!("partition {id} is being changed"))
}
