//! Running a node: start, stop, and the exit code when either fails.
//!
//! ```text
//!  settings ─► io_uring? ─► data directory ─► ports ─► control plane ─► cores recover ─► cores open
//!                                                                          their logs ─► listen
//!  SIGTERM ─► listeners close, GOAWAY ─► calls under way end ─► logs are flushed ─► exit 0
//! ```
//! The control plane is up while the cores still recover, so that `status` can tell how far they
//! are. The data plane's ports are taken at once, so that a port in use is told before anything is
//! read, but nobody listens on them until every partition is ready to answer: who connects before is
//! refused by the kernel, at once, and knows that trying again makes sense.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};
use stateside_partition_mgr::{Manifest, ManifestError};
use stateside_pipeline::log::Placement;
use stateside_types::{CoreId, PartitionSpec, Refusal, StoreKind, limits};
use tracing_subscriber::filter::LevelFilter;

use crate::{
    config::{Loaded, LoggingFormat, LoggingLevel, Settings},
    control::{
        Bootstrap, BootstrapError, ControlError, ControlPlane, ControlSetup, CoreHandle, Phase,
        RecoveryProgress, bootstrap,
    },
    core::kafka::{KafkaConfig, KafkaError, KafkaLink},
    core::{
        self, CoreError, CoreSetup, Coverage, Evidence, Node, PartitionFiles, Peer, StoreEngines,
        command::CoreCommand,
    },
    data_dir::{DataDir, DataDirError},
    exit::Exit,
    log_files::{LogCatalog, LogConfig, LogError, SegmentKeeper},
    metrics::NodeMetrics,
    reactor::{
        self, BlockingPool, CoreConfig, CoreExecutor, FailureHook, ReactorError, bind_shared,
        bind_unix, check_unix, start_listening,
    },
    tiered_dirs::{self, TieredDirs, TieredDirsError},
};

/// How long a start waits for ports that are in use, and how often it looks.
const PORT_PATIENCE: Duration = Duration::from_secs(5);
const PORT_RETRY: Duration = Duration::from_millis(20);
/// How long cores may take to end after their drain timed out.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Why a node could not start or go on. Prints as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// io_uring, ports, threads.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
    /// Data directory, manifest, registry.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// Control plane or metrics.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A core.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// The logs' files.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Leftovers of removed partitions.
    #[error("{0}")]
    Sweep(Refusal),
    /// The log in Kafka.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The directories of `tiered` stores. With the place of the setting.
    #[error("{place}: {error}")]
    Tiered {
        /// File and line, variable or `default`.
        place: String,
        /// What is wrong.
        error: TieredDirsError,
    },
    /// Something else of the environment.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl ServeError {
    /// The process's exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Reactor(error) | Self::Core(CoreError::Reactor(error)) => match error {
                ReactorError::AddressInUse { .. } | ReactorError::SocketInUse { .. } => {
                    Exit::PortInUse
                }
                ReactorError::UringMissing
                | ReactorError::UringForbidden { .. }
                | ReactorError::KernelTooOld { .. }
                | ReactorError::MemlockTooLow { .. } => Exit::IoUringUnavailable,
                _ => Exit::Failure,
            },
            Self::Bootstrap(error) => match error {
                BootstrapError::DataDir(DataDirError::Locked { .. }) => Exit::DataDirLocked,
                BootstrapError::DataDir(
                    DataDirError::FormatVersion { .. }
                    | DataDirError::Manifest { source: ManifestError::Version { .. }, .. },
                ) => Exit::FileVersion,
                BootstrapError::DataDir(_) | BootstrapError::Manifest { .. } => {
                    Exit::DataDirDamaged
                }
                BootstrapError::Registry(_)
                | BootstrapError::OtherNode { .. }
                | BootstrapError::TooManyCores { .. } => Exit::ConfigInvalid,
            },
            Self::Control(error) if error.is_address_in_use() => Exit::PortInUse,
            Self::Log(LogError::Version { .. })
            | Self::Core(CoreError::Log(LogError::Version { .. })) => Exit::FileVersion,
            Self::Tiered { error, .. } if error.is_locked => Exit::DataDirLocked,
            Self::Tiered { .. } | Self::Kafka(KafkaError::Config(_)) => Exit::ConfigInvalid,
            Self::Log(_) | Self::Sweep(_) | Self::Core(CoreError::Log(_)) => Exit::DataDirDamaged,
            _ => Exit::Failure,
        }
    }
}

/// What the main thread waits for.
enum Happening {
    Signal,
    CoreEnded(CoreId, Result<(), CoreError>),
}

/// Runs a node until it is told to stop.
pub fn serve(loaded: &Loaded) -> Exit {
    start_logging(&loaded.settings);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    match run(loaded) {
        Ok(()) => Exit::Done,
        Err(error) => {
            tracing::error!("{error}");
            error.exit()
        }
    }
}

fn run(loaded: &Loaded) -> Result<(), ServeError> {
    let settings = &loaded.settings;
    let (happened, happenings) = flume::unbounded();
    catch_signals(happened.clone())?;
    reactor::raise_limits();
    reactor::probe()?;
    let cores = usize::from(settings.node.cores);
    let places = reactor::place_cores(cores)
        .map_err(|source| ServeError::Io { what: "asking for the CPUs", source })?;

    let Bootstrap { data_dir, manifest, registry, desired, moves, is_fresh } = bootstrap(settings)?;
    if !moves.is_empty() {
        tracing::info!(partitions = moves.len(), cores, "partitions move to other cores");
    }
    let sockets = Sockets::bind_patiently(settings)?;
    let metrics = Arc::new(NodeMetrics::new(settings.node.cores));
    let progress = Arc::new(RecoveryProgress::default());
    let (peers, mailboxes) = core::peers(cores);

    let log = LogConfig {
        segment_bytes: u64::from(settings.log.segment_mb) << 20,
        free_segments_max: (settings.log.max_mb / settings.log.segment_mb) as usize,
        ..LogConfig::new(data_dir.log())
    };
    let catalog = Arc::new(LogCatalog::scan(&log)?);
    let keeper = SegmentKeeper::start(log.clone())
        .map_err(|source| ServeError::Io { what: "starting the log keeper", source })?;
    let keeper = Arc::new(keeper);
    let seed = secret();
    prepare_tiered(loaded, &data_dir, &manifest)?;
    let engines = StoreEngines::new(&data_dir, &settings.store, &metrics.tiered);
    let files =
        PartitionFiles::new(Arc::clone(&data_dir), engines, seed, (&settings.request_ids).into());
    let specs: Vec<PartitionSpec> =
        manifest.partitions.values().map(|placed| placed.spec.clone()).collect();
    files.sweep(&specs).map_err(ServeError::Sweep)?;
    let files = Arc::new(files);

    let failed: FailureHook = Arc::new(|error: ReactorError| {
        tracing::error!(%error, "a bug: the process ends, for the other cores must not go on alone");
        std::process::exit(i32::from(Exit::Failure.code()));
    });
    let pool = BlockingPool::new(limits::BLOCKING_THREADS_MAX, Arc::clone(&failed));
    let table = Arc::new(manifest.routing_table());
    let node = Arc::new(Node {
        id: manifest.node_id.clone(),
        core_addresses: sockets.core_addresses(&settings.advertise_host()),
    });
    let control = ControlPlane::start(ControlSetup {
        settings: settings.clone(),
        data_dir: Arc::clone(&data_dir),
        manifest: manifest.clone(),
        registry,
        desired,
        cores: handles(&peers),
        core_addresses: node.core_addresses.clone(),
        data_address: sockets.shared_address,
        metrics: Arc::clone(&metrics),
        progress: Arc::clone(&progress),
        failed: Box::new(|error| {
            tracing::error!(error, "a bug: the process ends, for nobody manages it any more");
            std::process::exit(i32::from(Exit::Failure.code()));
        }),
    })?;

    let (kafka, mut links) = start_kafka(settings, &node.id, &specs, &files, &peers)?;
    let coverage = Arc::new(Coverage::new(cores));
    let evidence = Arc::new(Evidence::default());
    let (reached, reaches) = flume::unbounded();
    let mut proceeds = Vec::new();
    let mut executors = Vec::new();
    let mut by_core: BTreeMap<CoreId, Vec<PartitionSpec>> = BTreeMap::new();
    for placed in manifest.partitions.values() {
        by_core.entry(placed.core).or_default().push(placed.spec.clone());
    }
    let since = Instant::now();
    for ((index, mailboxes), cpu) in mailboxes.into_iter().enumerate().zip(places) {
        let core = CoreId(index as u16);
        let (proceed, proceed_in) = flume::bounded(2);
        proceeds.push(proceed);
        let setup = CoreSetup {
            core,
            peers: Arc::clone(&peers),
            mailboxes,
            node: Arc::clone(&node),
            catalog: Arc::clone(&catalog),
            log: log.clone(),
            keeper: Arc::clone(&keeper),
            placement: Placement(manifest.placement),
            log_target_bytes: u64::from(settings.log.max_mb) << 20,
            unlogged_snapshot_interval: Duration::from_secs(
                settings.partition.snapshot_interval_s.into(),
            ),
            log_lazy_delay: Duration::from_millis(u64::from(settings.log.flush_after_ms)),
            coverage: Arc::clone(&coverage),
            files: Arc::clone(&files),
            partitions: by_core.remove(&core).unwrap_or_default(),
            table: Arc::clone(&table),
            metrics: Arc::clone(&metrics.cores[index]),
            pool: pool.clone(),
            memory_limit_bytes: settings.memory.limit_mb << 20,
            drain_timeout: Duration::from_millis(u64::from(settings.drain.timeout_ms)),
            spin: Duration::from_micros(u64::from(settings.node.spin_us)),
            hash_seed: seed,
            kafka: links.next(),
            progress: Arc::clone(&progress),
            evidence: Arc::clone(&evidence),
            reached: reached.clone(),
            proceed: proceed_in,
        };
        let happened = happened.clone();
        let config = CoreConfig { core, cpu };
        executors.push(CoreExecutor::start(config, Arc::clone(&failed), move || async move {
            let ended = Box::pin(core::run(setup)).await;
            // The main thread outlives its cores.
            let _ = happened.send(Happening::CoreEnded(core, ended));
        })?);
    }
    drop(reached);

    // Every core recovers, then every core opens its log, then all listen.
    let data_address = sockets.shared_address;
    let go_on = |sockets: Vec<Vec<OwnedFd>>| {
        for (proceed, sockets) in proceeds.iter().zip(sockets) {
            // A core that has ended in between is heard of by whoever waits for the cores next.
            let _ = proceed.send(sockets);
        }
        peers.iter().for_each(Peer::wake);
    };
    if !wait_for_cores(cores, &reaches, &happenings)? {
        return Ok(());
    }
    go_on((0..cores).map(|_| Vec::new()).collect());
    if !wait_for_cores(cores, &reaches, &happenings)? {
        return Ok(());
    }
    go_on(sockets.listen(cores)?);
    control.set_phase(Phase::Serving);
    tracing::info!(
        node = %node.id,
        data = %data_address,
        control = %control.address(),
        metrics = %control.metrics_address(),
        cores,
        partitions = specs.len(),
        fresh = is_fresh,
        start_ms = since.elapsed().as_millis() as u64,
        "serving"
    );
    notify(&[sd_notify::NotifyState::Ready]);

    match happenings.recv() {
        Ok(Happening::CoreEnded(core, Err(error))) => {
            tracing::error!(core = core.0, "the core has ended");
            return Err(error.into());
        }
        Ok(Happening::CoreEnded(_, Ok(()))) | Err(_) => {}
        Ok(Happening::Signal) => {
            tracing::info!("stopping: calls under way are finished; a second signal stops at once");
        }
    }
    notify(&[sd_notify::NotifyState::Stopping]);
    control.set_phase(Phase::Draining);
    for peer in peers.iter() {
        // A full channel is emptied by a core that runs; the drain waits for it.
        let _ = peer.commands.send_timeout(CoreCommand::Drain, STOP_GRACE);
        peer.wake();
    }
    let drain = Duration::from_millis(u64::from(settings.drain.timeout_ms)) * 2 + STOP_GRACE;
    let until = Instant::now() + drain;
    let mut ended = 0;
    while ended < cores {
        match happenings.recv_deadline(until) {
            Ok(Happening::CoreEnded(_, result)) => {
                result?;
                ended += 1;
            }
            Ok(Happening::Signal) => {
                tracing::warn!("stopped at once by a second signal");
                std::process::exit(i32::from(Exit::Failure.code()));
            }
            Err(_) => {
                tracing::error!("cores did not end in time");
                std::process::exit(i32::from(Exit::Failure.code()));
            }
        }
    }
    for executor in executors {
        executor.join()?;
    }
    control.stop();
    if let Some(path) = &settings.data.unix_socket {
        // Nobody listens any more; the next start would replace it too.
        let _ = std::fs::remove_file(path);
    }
    pool.shutdown();
    drop(kafka);
    drop(files);
    drop(keeper);
    drop(data_dir);
    tracing::info!("stopped");
    Ok(())
}

/// Finds out at the start, and not when the first partition is opened, whether the directories of `tiered`
/// stores can be used.
fn prepare_tiered(
    loaded: &Loaded,
    data_dir: &DataDir,
    manifest: &Manifest,
) -> Result<(), ServeError> {
    let settings = &loaded.settings;
    let mut stores = manifest.partitions.values().map(|placed| placed.spec.store);
    let has_partitions = stores.any(|store| store == StoreKind::Tiered);
    if !cfg!(feature = "lsm") || !tiered_dirs::are_wanted(settings, data_dir, has_partitions) {
        return Ok(());
    }
    TieredDirs::below(&data_dir.tiered(), &settings.store.tiered)
        .prepare()
        .map_err(|error| ServeError::Tiered { place: loaded.origin(error.key).to_string(), error })
}

/// Starts the Kafka client when there are brokers to talk to: it, and a link for each core.
#[cfg(feature = "kafka")]
fn start_kafka(
    settings: &Settings,
    node: &str,
    specs: &[PartitionSpec],
    files: &Arc<PartitionFiles>,
    peers: &Arc<[Peer]>,
) -> Result<(Option<core::kafka::KafkaClient>, std::vec::IntoIter<KafkaLink>), ServeError> {
    let Some(config) = kafka_config(settings, node, specs) else {
        return Ok((None, Vec::new().into_iter()));
    };
    let peers = Arc::clone(peers);
    let wake = move |core: CoreId| peers[usize::from(core.0)].wake();
    let cores = settings.node.cores;
    let (client, links) = core::kafka::KafkaClient::start(&config, cores, Arc::clone(files), wake)?;
    Ok((Some(client), links.into_iter()))
}

/// Stands for the client in a build without it.
#[cfg(not(feature = "kafka"))]
struct NoKafka;

/// Without the feature there is no client; who has configured brokers is told so.
#[cfg(not(feature = "kafka"))]
fn start_kafka(
    settings: &Settings,
    node: &str,
    specs: &[PartitionSpec],
    _: &Arc<PartitionFiles>,
    _: &Arc<[Peer]>,
) -> Result<(Option<Box<NoKafka>>, std::vec::IntoIter<KafkaLink>), ServeError> {
    if kafka_config(settings, node, specs).is_some() {
        let text = "brokers are set, and this binary has no Kafka client: build it with the cargo feature kafka";
        return Err(KafkaError::Config(text.to_owned()).into());
    }
    Ok((None, Vec::new().into_iter()))
}

fn kafka_config(settings: &Settings, node: &str, specs: &[PartitionSpec]) -> Option<KafkaConfig> {
    let kafka = &settings.kafka;
    Some(KafkaConfig {
        brokers: kafka.brokers.clone()?,
        topic: kafka.topic.clone(),
        partitions: kafka.partitions,
        replication: kafka.replication,
        ack_timeout: Duration::from_millis(u64::from(kafka.ack_timeout_ms)),
        snapshot_bytes: u64::from(kafka.snapshot_mb) << 20,
        options: kafka.options.clone(),
        node: node.to_owned(),
        needed: specs.iter().map(|spec| spec.id.0.saturating_add(1)).max().unwrap_or(1),
    })
}

/// Waits until every core has got where all must be. False: told to stop meanwhile.
fn wait_for_cores(
    cores: usize,
    reaches: &flume::Receiver<CoreId>,
    happenings: &flume::Receiver<Happening>,
) -> Result<bool, ServeError> {
    for _ in 0..cores {
        if !wait_for_core(reaches, happenings)? {
            tracing::info!("stopped before the start was complete");
            return Ok(false);
        }
    }
    Ok(true)
}

/// Waits until one more core has got there. False: told to stop meanwhile.
fn wait_for_core(
    reaches: &flume::Receiver<CoreId>,
    happenings: &flume::Receiver<Happening>,
) -> Result<bool, ServeError> {
    flume::Selector::new()
        .recv(happenings, |happening| match happening {
            Ok(Happening::CoreEnded(_, Err(error))) => Err(error.into()),
            Ok(Happening::CoreEnded(_, Ok(()))) | Err(_) => Err(CoreError::Abandoned.into()),
            Ok(Happening::Signal) => Ok(false),
        })
        .recv(reaches, |reached| match reached {
            Ok(_) => Ok(true),
            // All cores are gone; the first to go says why.
            Err(_) => match happenings.recv() {
                Ok(Happening::CoreEnded(_, Err(error))) => Err(error.into()),
                _ => Err(CoreError::Abandoned.into()),
            },
        })
        .wait()
}

/// The data plane's sockets: bound, until `listen` has them listen.
struct Sockets {
    shared_address: SocketAddr,
    shared: Vec<OwnedFd>,
    own: Vec<(SocketAddr, OwnedFd)>,
    unix: Option<PathBuf>,
}

impl Sockets {
    /// Binds, and waits a moment for ports that are in use: the kernel takes a killed process's
    /// rings down in its own time, and the listening sockets in them stay open until then.
    fn bind_patiently(settings: &Settings) -> Result<Self, ReactorError> {
        let until = Instant::now() + PORT_PATIENCE;
        loop {
            match Self::bind(settings) {
                Err(ReactorError::AddressInUse { .. }) if Instant::now() < until => {
                    thread::sleep(PORT_RETRY);
                }
                done => return done,
            }
        }
    }

    fn bind(settings: &Settings) -> Result<Self, ReactorError> {
        let cores = settings.node.cores;
        let (shared_address, shared) = bind_shared(settings.data.listen, usize::from(cores))?;
        let mut own = Vec::new();
        for core in 0..cores {
            let port = settings.core_port(CoreId(core));
            let (address, mut sockets) =
                bind_shared(SocketAddr::new(settings.data.listen.ip(), port), 1)?;
            own.extend(sockets.pop().map(|socket| (address, socket)));
        }
        let unix = settings.data.unix_socket.clone();
        unix.as_deref().map_or(Ok(()), check_unix)?;
        Ok(Self { shared_address, shared, own, unix })
    }

    fn core_addresses(&self, host: &str) -> Vec<String> {
        self.own.iter().map(|(address, _)| format!("{host}:{}", address.port())).collect()
    }

    /// Has all sockets listen. The sockets of each core: its share of the shared port, its own, and
    /// on core 0 the Unix socket.
    fn listen(self, cores: usize) -> Result<Vec<Vec<OwnedFd>>, ReactorError> {
        let mut unix = self.unix.as_deref().map(bind_unix).transpose()?;
        start_listening(self.shared_address, &self.shared)?;
        for (address, socket) in &self.own {
            start_listening(*address, std::slice::from_ref(socket))?;
        }
        let per_core = self.shared.into_iter().zip(self.own).take(cores);
        Ok(per_core
            .map(|(shared, (_, own))| {
                let mut sockets = vec![shared, own];
                sockets.extend(unix.take());
                sockets
            })
            .collect())
    }
}

fn handles(peers: &Arc<[Peer]>) -> Vec<CoreHandle> {
    (0..peers.len())
        .map(|index| {
            let peer = Arc::clone(peers);
            CoreHandle {
                commands: peers[index].commands.clone(),
                wake: Arc::new(move || peer[index].wake()),
            }
        })
        .collect()
}

fn catch_signals(happened: flume::Sender<Happening>) -> Result<(), ServeError> {
    let failed = |source| ServeError::Io { what: "catching signals", source };
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(failed)?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for _ in &mut signals {
                if happened.send(Happening::Signal).is_err() {
                    return;
                }
            }
        })
        .map_err(failed)?;
    Ok(())
}

/// Tells systemd, when it started us.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd was not told");
    }
}

/// A number that nobody outside can guess: hash maps seeded with it cannot be attacked with keys
/// crafted to collide.
fn secret() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

fn start_logging(settings: &Settings) {
    let level = match settings.logging.level {
        LoggingLevel::Error => LevelFilter::ERROR,
        LoggingLevel::Warn => LevelFilter::WARN,
        LoggingLevel::Info => LevelFilter::INFO,
        LoggingLevel::Debug => LevelFilter::DEBUG,
        LoggingLevel::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    // Only tests start logging twice in a process; the first stays. Starting also takes in the lines
    // of libraries that use the `log` crate: the executor and the store on disk.
    let _ = match settings.logging.format {
        LoggingFormat::Json => builder.json().try_init(),
        LoggingFormat::Text => {
            let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(colours).with_target(false).try_init()
        }
    };
    // Of libraries only what an operator has to know, whatever the level is for our own lines.
    log::set_max_level(log::LevelFilter::Warn.min(log::max_level()));
}
