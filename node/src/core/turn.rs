//! The turns of a core. See the module's drawing.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use stateside_partition::Input;
use stateside_pipeline::log::{LogFailed, Placement, Retention, WriterLimits};
use stateside_router::RoutingTable;
use stateside_types::{
    CoreId, PartitionSpec, Reason, Refusal, WallClock,
    limits::{CORE_COMMANDS_MAX, HOPS_PER_CORE_PAIR_MAX, PARTITIONS_PER_TICK},
};
use stateside_wire::{Endpoint, Millis, SessionConfig};

use super::{
    command::{CoreCommand, CoreReport, PartitionReport},
    connections::{Connections, millis},
    coverage::Coverage,
    executor::{Executor, Hosted},
    hop::{HopAnswers, HopRequests},
    kafka::{CoreKafka, KafkaLink},
    late_recovery::LateRecovery,
    log::{CoreLog, LOG_WRITE},
    operations::Operations,
    partition_files::PartitionFiles,
    pool::{PoolDone, PoolHandle},
    recovery::{Evidence, Recovery},
    service::{self, METHODS, Node},
    snapshots::Purpose,
    world::{MemoryBudget, World},
};
use crate::{
    control::RecoveryProgress,
    log_files::{LogCatalog, LogConfig, LogError, OrphanedLog, RecoveringCore, SegmentKeeper},
    metrics::{CoreMetrics, Method},
    reactor::{BlockingPool, CoreRing, Event, ReactorError, RingConfig, Turn, Waker},
};

/// How long a start waits for the log's first segment. On a full disk it goes on without: there
/// is no segment to write to, but records to read.
const SEGMENT_PATIENCE: Duration = Duration::from_secs(5);
/// How often the log is looked at for segments that can go.
const RETENTION_INTERVAL: Duration = Duration::from_millis(250);

/// A core as others reach it. One list, shared by all threads of the node.
pub struct Peer {
    /// Commands of the manager.
    pub commands: flume::Sender<CoreCommand>,
    requests: flume::Sender<(CoreId, HopRequests)>,
    answers: flume::Sender<(CoreId, HopAnswers)>,
    /// Set by the core when it starts; until then it has not slept and looks by itself.
    waker: OnceLock<Waker>,
    /// Bytes of memory of its stores, as of its last tick.
    memory_bytes: AtomicU64,
    /// It has no call of its own under way any more, and takes none.
    has_drained: AtomicBool,
}

impl Peer {
    /// Has the core look at its mailboxes.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }
}

/// A core's ends of what others send it.
pub struct Mailboxes {
    commands: flume::Receiver<CoreCommand>,
    requests: flume::Receiver<(CoreId, HopRequests)>,
    answers: flume::Receiver<(CoreId, HopAnswers)>,
}

/// The peers of a node with so many cores, and each core's mailboxes.
pub fn peers(cores: usize) -> (Arc<[Peer]>, Vec<Mailboxes>) {
    // A message has at least one request, so as many messages as requests always fit.
    let hops = HOPS_PER_CORE_PAIR_MAX * cores;
    let mut peers = Vec::new();
    let mut mailboxes = Vec::new();
    for _ in 0..cores {
        let (commands, commands_in) = flume::bounded(CORE_COMMANDS_MAX);
        let (requests, requests_in) = flume::bounded(hops);
        let (answers, answers_in) = flume::bounded(hops);
        peers.push(Peer {
            commands,
            requests,
            answers,
            waker: OnceLock::new(),
            memory_bytes: AtomicU64::new(0),
            has_drained: AtomicBool::new(false),
        });
        mailboxes.push(Mailboxes {
            commands: commands_in,
            requests: requests_in,
            answers: answers_in,
        });
    }
    (peers.into(), mailboxes)
}

/// What a core is made from; sent to its thread.
pub struct CoreSetup {
    /// Which core.
    pub core: CoreId,
    /// All cores of the node.
    pub peers: Arc<[Peer]>,
    /// This core's.
    pub mailboxes: Mailboxes,
    /// What every core answers alike.
    pub node: Arc<Node>,
    /// The logs that this start found.
    pub catalog: Arc<LogCatalog>,
    /// Where the logs are.
    pub log: LogConfig,
    /// Makes segments.
    pub keeper: Arc<SegmentKeeper>,
    /// The manifest's placement.
    pub placement: Placement,
    /// Bytes of one core's log above which partitions are snapshotted.
    pub log_target_bytes: u64,
    /// How often partitions without a log are snapshotted.
    pub unlogged_snapshot_interval: Duration,
    /// How long records wait when no answer waits for them.
    pub log_lazy_delay: Duration,
    /// What every core's partitions have without the log.
    pub coverage: Arc<Coverage>,
    /// Files of partitions.
    pub files: Arc<PartitionFiles>,
    /// Partitions to recover and serve.
    pub partitions: Vec<stateside_types::PartitionSpec>,
    /// The node's partition set.
    pub table: Arc<RoutingTable>,
    /// Counters.
    pub metrics: Arc<CoreMetrics>,
    /// The node's blocking pool.
    pub pool: BlockingPool,
    /// Memory for all stores of the node, bytes; 0: no limit.
    pub memory_limit_bytes: u64,
    /// How long a drain may take.
    pub drain_timeout: Duration,
    /// Longest look for the next call before sleeping.
    pub spin: Duration,
    /// A secret number, against keys crafted to collide.
    pub hash_seed: u64,
    /// The log in Kafka, when the node uses it.
    pub kafka: Option<KafkaLink>,
    /// Told about as recovery goes.
    pub progress: Arc<RecoveryProgress>,
    /// Damage that the cores' recoveries find.
    pub evidence: Arc<Evidence>,
    /// Told when recovery has ended, and again when the core is ready to serve.
    pub reached: flume::Sender<CoreId>,
    /// Says that every core has recovered; then, what to listen on.
    pub proceed: flume::Receiver<Vec<OwnedFd>>,
}

/// Why a core cannot start or go on: the process ends.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// The kernel or a ring.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
    /// The log's files.
    #[error(transparent)]
    Log(#[from] LogError),
    /// No segment could be made for the log.
    #[error(
        "the log of core {0} has no room: no segment could be made on the data directory's disk within {1:?}"
    )]
    NoSegment(CoreId, Duration),
    /// The node gave up while the core was starting.
    #[error("the start was abandoned")]
    Abandoned,
    /// Sessions.
    #[error(transparent)]
    Session(#[from] stateside_wire::Closed),
}

/// Draining: since when, and until when at most.
#[derive(Clone, Copy)]
enum Life {
    Serving,
    Draining { until: Instant },
    Flushing { until: Instant },
}

struct Core {
    id: CoreId,
    ring: CoreRing,
    peers: Arc<[Peer]>,
    mailboxes: Mailboxes,
    pool_done: flume::Receiver<PoolDone>,
    proceed: flume::Receiver<Vec<OwnedFd>>,
    listening: Vec<crate::reactor::ListenerId>,
    executor: Executor,
    connections: Connections,
    operations: Operations,
    late_recovery: LateRecovery,
    node: Arc<Node>,
    metrics: Arc<CoreMetrics>,
    drain_timeout: Duration,
    life: Life,
    start: Instant,
    /// When the last tick was.
    ticked_at: Millis,
    /// Ticks until what partitions hold is counted again.
    ticks_to_count: usize,
    next_retention: Instant,
    unlogged_snapshot_interval: Duration,
    next_unlogged_snapshots: Instant,
    /// Partitions without a log have had their snapshots for the end.
    last_snapshots_asked: bool,
    log_failed: bool,
    coverage: Arc<Coverage>,
    orphans: Vec<OrphanedLog>,
}

/// Recovers a core and runs it until it is drained. The core's one task.
///
/// # Errors
/// What ends the process.
pub async fn run(setup: CoreSetup) -> Result<(), CoreError> {
    let start = Instant::now();
    let ring = CoreRing::new(RingConfig { spin: setup.spin, ..RingConfig::default() }, start)?;
    let peer = &setup.peers[usize::from(setup.core.0)];
    // Whoever finds no waker relies on the first turn, which looks into every mailbox.
    let _ = peer.waker.set(ring.waker());
    let (pool, pool_done) = PoolHandle::new(setup.pool, ring.waker());
    let who = RecoveringCore {
        core: setup.core,
        cores: setup.peers.len() as u16,
        placement: setup.placement,
    };
    let recovery = Recovery {
        who,
        catalog: Arc::clone(&setup.catalog),
        config: setup.log.clone(),
        files: Arc::clone(&setup.files),
        progress: Arc::clone(&setup.progress),
        evidence: Arc::clone(&setup.evidence),
    };
    let (in_kafka, local): (Vec<_>, Vec<_>) =
        setup.partitions.into_iter().partition(PartitionSpec::is_logged_in_kafka);
    let mut recovered = recovery.run(local)?;
    setup.reached.send(setup.core).map_err(|_| CoreError::Abandoned)?;
    setup.proceed.recv().map_err(|_| CoreError::Abandoned)?;

    let mut retention = recovered.retentions.remove(&setup.core).unwrap_or_default();
    setup.evidence.hold(setup.core, &mut retention);
    let limits = WriterLimits { lazy_delay: setup.log_lazy_delay, ..WriterLimits::default() };
    let first_group = recovered.first_group;
    let (mut writer, mut files) =
        setup.keeper.open(&setup.catalog, who, limits, first_group, retention)?;
    if !files.wait_ready(&mut writer, Instant::now() + SEGMENT_PATIENCE) {
        tracing::error!(
            core = setup.core.0,
            directory = %setup.log.root.display(),
            "no log segment can be made (is the disk full?): writes are refused until one can, reads go on"
        );
    }
    let orphans =
        orphans(&setup.keeper, &setup.catalog, who, recovered.retentions, &setup.evidence);
    let mut log =
        CoreLog::new(writer, files, setup.log.segment_bytes, setup.log_target_bytes, start);
    for hosted in &recovered.hosted {
        if let Hosted::Here(partition) = hosted {
            let spec = partition.spec();
            log.adopt(spec.id, spec.first_epoch, partition.applied());
        }
    }
    let world = World {
        calls: Default::default(),
        log,
        kafka: setup.kafka.map(|link| CoreKafka::new(link, start)),
        pool,
        node: setup.node.id.as_str().into(),
        memory: MemoryBudget::new(setup.memory_limit_bytes),
        wall: wall_clock(),
        turn_ns: 0,
        answered_at_once: Default::default(),
        requests: 0,
        hops: 0,
        is_draining: false,
    };
    let cores = setup.peers.len();
    let mut executor = Executor::new(setup.core, cores, world, setup.hash_seed);
    for hosted in recovered.hosted {
        executor.host(hosted);
    }
    executor.set_table(setup.table);
    let mut core = Core {
        id: setup.core,
        ring,
        peers: setup.peers,
        mailboxes: setup.mailboxes,
        pool_done,
        proceed: setup.proceed,
        listening: Vec::new(),
        executor,
        connections: Connections::new(Endpoint::new(SessionConfig::new(METHODS))?),
        operations: Operations::new(setup.files, recovered.newest, Arc::clone(&setup.metrics)),
        late_recovery: LateRecovery::new(recovery, start),
        node: setup.node,
        metrics: setup.metrics,
        drain_timeout: setup.drain_timeout,
        life: Life::Serving,
        start,
        ticked_at: Millis(0),
        ticks_to_count: 0,
        next_retention: start,
        unlogged_snapshot_interval: setup.unlogged_snapshot_interval,
        next_unlogged_snapshots: start + setup.unlogged_snapshot_interval,
        last_snapshots_asked: false,
        log_failed: false,
        coverage: setup.coverage,
        orphans,
    };
    if setup.catalog.has_older_placements(who.placement) {
        core.operations.snapshot_all(&core.executor);
    }
    for spec in in_kafka {
        core.operations.open_logged_in_kafka(spec, &mut core.executor);
    }
    setup.reached.send(setup.core).map_err(|_| CoreError::Abandoned)?;
    core.take_turns().await?;
    core.executor.world.log.close();
    Ok(())
}

/// The logs of cores that are no more: the first core sees to it that they go.
fn orphans(
    keeper: &SegmentKeeper,
    catalog: &LogCatalog,
    who: RecoveringCore,
    mut retentions: BTreeMap<CoreId, Retention>,
    evidence: &Evidence,
) -> Vec<OrphanedLog> {
    if who.core != CoreId(0) {
        return Vec::new();
    }
    catalog
        .cores()
        .filter(|core| core.0 >= who.cores)
        .map(|core| {
            let mut retention = retentions.remove(&core).unwrap_or_default();
            evidence.hold(core, &mut retention);
            keeper.adopt_orphan(catalog, core, retention)
        })
        .collect()
}

impl Core {
    async fn take_turns(&mut self) -> Result<(), CoreError> {
        let mut events = Vec::new();
        let mut first = true;
        loop {
            let now = Instant::now();
            self.executor.world.wall = wall_clock();
            self.executor.world.log.set_now(now);
            if let Some(kafka) = &mut self.executor.world.kafka {
                kafka.set_now(now);
            }
            self.executor.world.turn_ns = (now - self.start).as_nanos() as u64;
            let Turn { woken, tick, .. } = self.ring.turn(now, &mut events)?;
            for event in events.drain(..) {
                self.on_event(event, now);
            }
            if woken || first {
                self.read_mailboxes(now);
            }
            if tick || first {
                self.tick(now);
            }
            first = false;
            self.operations.step(&mut self.executor);
            self.write_ahead()?;
            self.answer_and_send();
            self.executor.world.log.poll_keeper();
            if self.is_over(now) {
                return Ok(());
            }
            let more = self.connections.has_more()
                || self.executor.world.calls.has_ready()
                || self.operations.is_busy();
            let until = if more { Some(now) } else { self.executor.world.log.next_deadline() };
            let requests = std::mem::take(&mut self.executor.world.requests);
            self.ring.took_requests(requests);
            self.ring.wait(until).await?;
        }
    }

    fn on_event(&mut self, event: Event, now: Instant) {
        let at = millis(self.start, now);
        let Self { connections, ring, executor, node, metrics, .. } = self;
        match event {
            Event::Accepted { connection, .. } => {
                connections.accepted(connection, at);
            }
            Event::AcceptFailed { error, .. } => {
                tracing::warn!(core = self.id.0, %error, "cannot accept connections for now");
            }
            Event::Received { connection, buffer } => {
                connections.received(connection, buffer, ring, at, &mut |id, session, event| {
                    service::on_event(executor, node, metrics, id, session, event);
                });
            }
            Event::PeerClosed { connection } => connections.peer_closed(connection),
            Event::Failed { connection, error } => {
                tracing::debug!(%error, "a connection broke");
                connections.failed(connection);
            }
            Event::Sent { connection } => connections.sent(connection),
            Event::FileWritten { token, result } => {
                assert_eq!(token, LOG_WRITE, "nothing else is written on the ring");
                self.log_written(result);
            }
        }
    }

    fn log_written(&mut self, result: io::Result<()>) {
        if let Err(failed) = self.executor.log_written(result, &self.metrics) {
            self.log_failed(&failed);
        }
    }

    /// The log is over: nothing of this core is acknowledged any more.
    fn log_failed(&mut self, failed: &LogFailed) {
        tracing::error!(core = self.id.0, %failed, "the log failed: its partitions stop");
        self.log_failed = true;
        let refusal = Refusal::new(Reason::PartitionStopped, failed.to_string());
        self.executor.halt_all(&refusal);
    }

    fn read_mailboxes(&mut self, now: Instant) {
        while let Ok((from, batch)) = self.mailboxes.requests.try_recv() {
            self.metrics.hops_received.add(batch.requests().len() as u64);
            self.executor.hopped(from, &batch);
        }
        while let Ok((from, batch)) = self.mailboxes.answers.try_recv() {
            self.executor.hop_answered(from, batch);
        }
        while let Ok(done) = self.pool_done.try_recv() {
            let Self { executor, operations, late_recovery, .. } = self;
            match done {
                PoolDone::LateRecovered(result) => {
                    late_recovery.done(result, operations, executor, now);
                }
                done => operations.pool_done(done, executor),
            }
        }
        self.operations.take_kafka_mail(&mut self.executor);
        while let Ok(command) = self.mailboxes.commands.try_recv() {
            self.on_command(command, now);
        }
        while let Ok(sockets) = self.proceed.try_recv() {
            let Self { ring, listening, .. } = self;
            listening.extend(sockets.into_iter().map(|socket| ring.listen(socket)));
        }
    }

    fn on_command(&mut self, command: CoreCommand, now: Instant) {
        let Self { operations, executor, .. } = self;
        match command {
            CoreCommand::Add { spec, reply } => operations.add(spec, reply, executor),
            CoreCommand::Update { spec, reply } => {
                let _ = reply.try_send(operations.update(spec, executor));
            }
            CoreCommand::Remove { id, reply } => operations.remove(id, reply, executor),
            CoreCommand::Snapshot { id, path, reply } => {
                operations.snapshot(id, path, Purpose::Operator(reply), executor);
            }
            CoreCommand::PrepareRestore { id, path, epoch, reply } => {
                operations.prepare_restore(id, path, epoch, reply, executor);
            }
            CoreCommand::FinishRestore { id, spec, reply } => {
                operations.finish_restore(id, spec, reply, executor);
            }
            CoreCommand::CopyStore { id, to, reply } => {
                operations.copy_store(id, to, reply, executor);
            }
            CoreCommand::CloseCopy { id, reply } => operations.close_copy(id, reply),
            CoreCommand::SwitchStore { id, spec, reply } => {
                operations.switch_store(id, spec.map(|spec| spec.store), reply, executor);
            }
            CoreCommand::Route(table) => executor.set_table(table),
            CoreCommand::Report { reply } => {
                let _ = reply.try_send(self.report());
            }
            CoreCommand::Drain => {
                if matches!(self.life, Life::Serving) {
                    self.life = Life::Draining { until: now + self.drain_timeout };
                    for listener in self.listening.drain(..) {
                        self.ring.stop_listening(listener);
                    }
                    self.executor.world.is_draining = true;
                    self.connections.go_away(millis(self.start, now));
                }
            }
        }
    }

    fn report_of(&self, hosted: &Hosted) -> PartitionReport {
        let kafka = self.executor.world.kafka.as_ref();
        self.operations.report(hosted, kafka.and_then(|kafka| kafka.report(hosted.spec().id)))
    }

    fn report(&self) -> CoreReport {
        let mut partitions: Vec<_> =
            self.executor.all().map(|hosted| self.report_of(hosted)).collect();
        partitions.sort_by_key(|partition| partition.spec.id);
        let log = self.executor.world.log.status();
        CoreReport {
            memory_bytes: partitions.iter().map(|partition| partition.memory_bytes).sum(),
            partitions,
            connections: self.connections.len() as u64,
            requests: self.metrics.requests_total(),
            log_bytes: log.bytes,
            log_segments: log.segments,
            log_problem: log.problem,
            log_mode: log.mode,
        }
    }

    fn tick(&mut self, now: Instant) {
        let at = millis(self.start, now);
        let Self { connections, executor, node, metrics, .. } = self;
        connections.tick(at, &mut |id, session, event| {
            service::on_event(executor, node, metrics, id, session, event);
        });
        self.executor.world.pool.retry();
        if let Some(failed) = self.executor.world.log.take_open_failure() {
            self.log_failed(&failed);
        }
        let elapsed_ms = at.0.saturating_sub(self.ticked_at.0);
        self.ticked_at = at;
        self.executor.step_all(|| Input::Tick(elapsed_ms));
        self.executor.tell_who_waits_for_kafka();
        self.executor.reclaim_expired();
        self.late_recovery.tick(&mut self.executor, now);
        self.count_levels();
        if now >= self.next_retention {
            self.next_retention = now + RETENTION_INTERVAL;
            self.let_go_of_log();
            self.operations.tend_kafka(&mut self.executor);
        }
        if now >= self.next_unlogged_snapshots {
            self.next_unlogged_snapshots = now + self.unlogged_snapshot_interval;
            self.operations.snapshot_unlogged(&self.executor);
        }
    }

    /// Brings the levels up to date that nothing on the way of a request keeps.
    fn count_levels(&mut self) {
        let own_bytes = match self.ticks_to_count.checked_sub(1) {
            Some(left) => {
                self.ticks_to_count = left;
                let counted =
                    self.peers[usize::from(self.id.0)].memory_bytes.load(Ordering::Relaxed);
                counted.saturating_add_signed(self.executor.world.memory.grown_bytes())
            }
            None => self.count_partitions(),
        };
        let peers = &self.peers;
        peers[usize::from(self.id.0)].memory_bytes.store(own_bytes, Ordering::Relaxed);
        let used = peers.iter().map(|peer| peer.memory_bytes.load(Ordering::Relaxed)).sum();
        self.executor.world.memory.counted(used);

        let (metrics, world) = (&self.metrics, &self.executor.world);
        metrics.connections.set(self.connections.len() as u64);
        metrics.received_bytes.set(self.connections.bytes_in);
        metrics.sent_bytes.set(self.connections.bytes_out);
        metrics.protocol_errors.set(self.connections.protocol_errors);
        let ring = self.ring.counters();
        metrics.connections_accepted.set(ring.accepted);
        metrics.accept_errors.set(ring.accept_failures + ring.refused);
        service::count_rejections(metrics, self.connections.take_rejections());
        metrics.calls.set(world.calls.len() as u64);
        metrics.hops_sent.set(world.hops);
        metrics.hops_pending.set(self.executor.hops_pending() as u64);
        let in_kafka = world.kafka.as_ref().map_or(0, CoreKafka::pending_bytes);
        metrics.log_pending_bytes.set((world.log.staged_bytes() + in_kafka) as u64);
    }

    /// Counts what the partitions hold; bytes of memory of their stores.
    fn count_partitions(&mut self) -> u64 {
        let mut memory_bytes = self.operations.copies_memory_bytes();
        let (mut window_writes, mut held_reads) = (0, 0);
        let (mut queued_reads, mut queued_writes) = (0, 0);
        let (mut session_reads, mut replaced_bytes) = (0, 0);
        let mut count = 0_usize;
        for hosted in self.executor.all() {
            if let Hosted::Here(partition) = hosted {
                count += 1;
                memory_bytes += partition.stats().memory_bytes;
                window_writes += partition.window_writes();
                held_reads += partition.held_reads() as u64;
                let (reads, writes) = partition.queued();
                queued_reads += reads as u64;
                queued_writes += writes as u64;
                session_reads += partition.session_reads() as u64;
                replaced_bytes += partition.replaced_bytes();
            }
        }
        self.ticks_to_count = count.saturating_sub(1) / PARTITIONS_PER_TICK;
        let metrics = &self.metrics;
        metrics.window_writes.set(window_writes);
        metrics.held_reads.set(held_reads);
        metrics.queued_reads.set(queued_reads);
        metrics.queued_writes.set(queued_writes);
        metrics.session_reads.set(session_reads);
        metrics.replaced_bytes.set(replaced_bytes);
        memory_bytes
    }

    /// Segments that nothing needs any more go; when the log has grown long, the partitions that
    /// hold the oldest one are snapshotted.
    fn let_go_of_log(&mut self) {
        let Self { executor, operations, late_recovery, orphans, .. } = self;
        let covered = (!late_recovery.needs_all_logs(executor))
            .then(|| executor.coverage(|partition| operations.covered(partition)));
        self.coverage.publish(self.id, covered);
        let Some(all) = self.coverage.all() else { return };
        let covered = |partition, epoch| all.get(&(partition, epoch)).copied();
        executor.world.log.release(covered);
        orphans.retain_mut(|orphan| !orphan.release(covered));
        for holding in executor.world.log.blockers(covered) {
            operations.background_snapshot(holding.partition);
        }
    }

    /// Has the disk work on the next group while this turn's answers are made and sent, which may
    /// take as long as the write. With nothing to answer it goes with the next wait, for free.
    fn write_ahead(&mut self) -> Result<(), ReactorError> {
        let Self { ring, executor, .. } = self;
        if executor.world.calls.has_ready() && executor.world.log.pump(ring) {
            ring.submit()?;
        }
        Ok(())
    }

    /// Answers what is ready, writes the log, sends to cores and clients. What is left is for the
    /// next turn.
    fn answer_and_send(&mut self) {
        self.time_answers();
        let Self { ring, executor, connections, node, metrics, .. } = self;
        service::answer_ready(executor, metrics, connections);
        executor.world.log.pump(ring);
        for (peer, requests) in self.peers.iter().zip(&mut executor.requests_out) {
            if !requests.is_empty() {
                let message = (self.id, std::mem::take(requests));
                match peer.requests.try_send(message) {
                    Ok(()) => peer.wake(),
                    // The channel is as wide as what may be out, and a core outlives the drains of
                    // the others: only one that failed is gone, and then the process ends.
                    Err(error) => tracing::error!(%error, "a core is gone"),
                }
            }
        }
        for (peer, answers) in self.peers.iter().zip(&mut executor.answers_out) {
            if !answers.answers.is_empty() {
                let message = (self.id, std::mem::take(answers));
                // A core that has drained takes no answers; nobody waits for them then.
                if peer.answers.try_send(message).is_ok() {
                    peer.wake();
                }
            }
        }
        connections.flush(ring, &mut |id, session, event| {
            service::on_event(executor, node, metrics, id, session, event);
        });
        // Last: sending may have let waiting calls start.
        if let Some(kafka) = &mut executor.world.kafka {
            kafka.flush();
        }
        self.time_answers();
    }

    /// Books how long the calls took that were answered in the turn that took them.
    fn time_answers(&mut self) {
        let world = &mut self.executor.world;
        if world.answered_at_once.iter().all(|calls| *calls == 0) {
            return;
        }
        let now_ns = self.start.elapsed().as_nanos() as u64;
        let took_ns = now_ns.saturating_sub(world.turn_ns);
        world.turn_ns = now_ns;
        for (method, calls) in Method::ALL.iter().zip(&mut world.answered_at_once) {
            if *calls > 0 {
                self.metrics.took(*method, took_ns, std::mem::take(calls));
            }
        }
    }

    /// Goes on with a drain; true when nothing is left to do.
    fn is_over(&mut self, now: Instant) -> bool {
        match self.life {
            Life::Serving => false,
            Life::Draining { until } => {
                let quiet = self.connections.len() == 0 && self.executor.world.calls.is_empty();
                if quiet || now >= until {
                    if !quiet {
                        tracing::warn!(
                            core = self.id.0,
                            connections = self.connections.len(),
                            calls = self.executor.world.calls.len(),
                            "the drain took too long: what is under way is cut off"
                        );
                        self.connections.cut(&mut self.ring);
                    }
                    self.life = Life::Flushing { until: now + self.drain_timeout };
                    self.peers[usize::from(self.id.0)].has_drained.store(true, Ordering::Release);
                    self.peers.iter().for_each(Peer::wake);
                    self.executor.world.log.hurry();
                    self.executor.world.log.pump(&mut self.ring);
                }
                false
            }
            Life::Flushing { until } => {
                let World { log, kafka, .. } = &mut self.executor.world;
                let in_kafka = kafka.as_ref().is_none_or(CoreKafka::is_idle);
                let written = (log.is_idle() || self.log_failed) && in_kafka;
                if !written {
                    log.hurry();
                }
                if now >= until && !written {
                    tracing::error!(core = self.id.0, "the log could not be flushed in time");
                }
                // Other cores' calls may still need this core's partitions.
                let others = self.peers.iter().all(|peer| peer.has_drained.load(Ordering::Acquire));
                if others && !self.last_snapshots_asked {
                    self.last_snapshots_asked = true;
                    self.operations.snapshot_unlogged(&self.executor);
                }
                let quiet = self.executor.is_quiet() && self.operations.is_idle();
                if now >= until && !self.operations.is_idle() {
                    tracing::error!(
                        core = self.id.0,
                        "not every snapshot could be finished in time"
                    );
                }
                (written && others && quiet) || now >= until
            }
        }
    }
}

fn wall_clock() -> WallClock {
    // A clock before 1970 counts as 1970: timestamps are monotonic whatever it says.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallClock(since.as_millis() as u64)
}
