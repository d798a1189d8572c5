//! The control thread: everything of the node that is not on the path of a request. The one home
//! of tokio and tonic in the node.
//!
//! ```text
//!   control.listen ─► ControlPlane · health · reflection ─┐
//!   metrics.listen ─► /metrics · /healthz · /readyz ──────┼─► view, core reports
//!   registry file ──► manager ── commands ─► cores        │
//!                        └─────────── view ───────────────┘
//! ```
//! One thread with a single-threaded runtime; blocking file work goes to its blocking pool, so
//! that probes are answered while a disk is slow. A panic of a task ends the thread: half a
//! control plane would keep reporting a node that nobody manages.

mod bootstrap;
mod cores;
mod facts;
#[cfg(test)]
mod fake_cores;
mod manager;
mod metrics_http;
mod phase;
mod service;
mod status;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    sync::atomic::AtomicBool,
    thread::JoinHandle,
    time::Duration,
};

use stateside_partition_mgr::Manifest;
use stateside_proto::v1::control_plane_server::ControlPlaneServer;
use stateside_registry::FileRegistry;
use stateside_types::DesiredSet;
use tokio::{
    runtime::Runtime,
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic_health::{ServingStatus, server::HealthReporter};

pub use bootstrap::{Bootstrap, BootstrapError, bootstrap};
pub use cores::CoreHandle;
pub use phase::{Phase, RecoveryProgress};

use crate::{
    config::Settings, data_dir::DataDir, metrics::NodeMetrics, reactor::run_in_background,
};
use cores::Cores;
use facts::Facts;
use manager::{Manager, ManagerParts};
use service::ControlService;

/// Health is told for these; the empty name stands for the node as a whole.
const HEALTH_SERVICES: [&str; 3] = ["", "stateside.v1.ControlPlane", "stateside.v1.DataPlane"];
/// Largest control request, bytes: a path and some numbers.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Calls that wait in the manager's mailbox; more than there are permits for.
const CALLS_WAITING: usize = stateside_types::limits::CONTROL_CHANGES_MAX;
/// How long open control calls may take once the thread is told to stop.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// What the control thread works with.
pub struct ControlSetup {
    /// The settings in force.
    pub settings: Settings,
    /// The open data directory.
    pub data_dir: Arc<DataDir>,
    /// As on disk, and as the cores begin with it.
    pub manifest: Manifest,
    /// Where the desired set is declared.
    pub registry: FileRegistry,
    /// The desired set.
    pub desired: DesiredSet,
    /// The cores, by id.
    pub cores: Vec<CoreHandle>,
    /// Each core's own port as `host:port`, by id.
    pub core_addresses: Vec<String>,
    /// Where the data plane listens.
    pub data_address: SocketAddr,
    /// The counters, with one set for each core.
    pub metrics: Arc<NodeMetrics>,
    /// How far the cores' recovery got.
    pub progress: Arc<RecoveryProgress>,
    /// Told when the thread panics: the process must not go on without it.
    pub failed: Box<dyn FnOnce(&str) + Send>,
}

/// Why the control thread cannot start. Prints as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// An address cannot be listened on.
    #[error("{what} cannot listen on {address} ({key}): {}", why(source))]
    Listen {
        /// The control plane or the metrics.
        what: &'static str,
        /// The configuration key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The system gives no thread or runtime.
    #[error("the control thread cannot start: {0}")]
    Thread(io::Error),
}

/// The running control thread. Begins in [`Phase::Recovering`]: it answers `Status`, health and
/// metrics at once, also while the cores recover, and refuses changes until [`Phase::Serving`].
pub struct ControlPlane {
    phase: watch::Sender<Phase>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    control: SocketAddr,
    metrics: SocketAddr,
}

impl ControlError {
    /// Whether another process has the port.
    pub fn is_address_in_use(&self) -> bool {
        matches!(self, Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
    }
}

fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "the port is in use by another process".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this host has no such address".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "not permitted; ports below 1024 need a privilege".to_owned()
        }
        _ => error.to_string(),
    }
}

impl ControlPlane {
    /// Binds the addresses and starts the thread.
    ///
    /// # Errors
    /// [`ControlError`].
    ///
    /// # Panics
    /// When there are not as many cores as the manifest says.
    pub fn start(setup: ControlSetup) -> Result<Self, ControlError> {
        let cores = usize::from(setup.manifest.cores);
        assert_eq!(setup.cores.len(), cores, "the manifest's cores and the node's");
        let listeners = Listeners::bind(&setup.settings)?;
        let local = |listener: &TcpListener| listener.local_addr().map_err(ControlError::Thread);
        let (control, metrics) = (local(&listeners.control)?, local(&listeners.metrics)?);
        let (phase, seen_phase) = watch::channel(Phase::Recovering);
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .thread_name("control-files")
            .on_thread_start(run_in_background)
            .build()
            .map_err(ControlError::Thread)?;
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                run_in_background();
                run(runtime, listeners, setup, seen_phase, stopped);
            })
            .map_err(ControlError::Thread)?;
        Ok(Self { phase, stop: Some(stop), thread: Some(thread), control, metrics })
    }

    /// Tells everyone what the node is doing now.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Where the control plane listens.
    pub fn address(&self) -> SocketAddr {
        self.control
    }

    /// Where metrics listen.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// Ends the thread: no new connections, a moment for open calls, then out. To be called after
    /// the cores have drained, so that `Status` answers until then.
    pub fn stop(mut self) {
        self.phase.send_replace(Phase::Draining);
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            // A panic was told to `failed` when it happened.
            let _ = thread.join();
        }
    }
}

/// The sockets of the control thread, bound before the thread starts so that `start` can say what
/// is wrong with them.
struct Listeners {
    control: TcpListener,
    metrics: TcpListener,
}

impl Listeners {
    fn bind(settings: &Settings) -> Result<Self, ControlError> {
        let bind = |what, key, address: SocketAddr| {
            let bound = TcpListener::bind(address).and_then(|listener| {
                listener.set_nonblocking(true)?;
                Ok(listener)
            });
            bound.map_err(|source| ControlError::Listen { what, key, address, source })
        };
        Ok(Self {
            control: bind("the control plane", "control.listen", settings.control.listen)?,
            metrics: bind("the metrics", "metrics.listen", settings.metrics.listen)?,
        })
    }
}

/// The thread.
fn run(
    runtime: Runtime,
    listeners: Listeners,
    mut setup: ControlSetup,
    phase: watch::Receiver<Phase>,
    stopped: oneshot::Receiver<()>,
) {
    let failed = std::mem::replace(&mut setup.failed, Box::new(|_| ()));
    let served = runtime.block_on(serve(listeners, setup, phase, stopped));
    // Work on a disk that does not answer must not keep the process from ending.
    runtime.shutdown_background();
    if let Err(error) = served {
        failed(&error);
    }
}

/// The thread's main task. An error is a bug: a task ended before it was told to.
async fn serve(
    listeners: Listeners,
    setup: ControlSetup,
    phase: watch::Receiver<Phase>,
    stopped: oneshot::Receiver<()>,
) -> Result<(), String> {
    let what = |error: io::Error| error.to_string();
    let address = |listener: &TcpListener| listener.local_addr().map(|address| address.to_string());
    let control_address = address(&listeners.control).map_err(what)?;
    let metrics_address = address(&listeners.metrics).map_err(what)?;
    let control = tokio::net::TcpListener::from_std(listeners.control).map_err(what)?;
    let metrics_listener = tokio::net::TcpListener::from_std(listeners.metrics).map_err(what)?;
    let (settings, metrics) = (setup.settings, setup.metrics);
    let cores = Cores::new(setup.cores);
    let (manager, view) = Manager::new(ManagerParts {
        manifest: setup.manifest,
        manifests: Box::new(Arc::clone(&setup.data_dir)),
        registry: Box::new(setup.registry),
        desired: setup.desired,
        defaults: bootstrap::defaults(&settings),
        cores: cores.clone(),
        metrics: Arc::clone(&metrics),
    });
    let (calls, mailbox) = mpsc::channel(CALLS_WAITING);
    let (changes, reads) = Facts::new_permits();
    let facts = Arc::new(Facts {
        started: Instant::now(),
        data_address: setup.data_address.to_string(),
        control_address,
        metrics_address,
        core_addresses: setup.core_addresses,
        data_dir: setup.data_dir.root().display().to_string(),
        memory_limit_bytes: settings.memory.limit_mb << 20,
        cores,
        metrics,
        recovery: setup.progress,
        phase: phase.clone(),
        view,
        calls,
        changes,
        reads,
        all_opened: AtomicBool::new(false),
    });
    let mut manager = tokio::spawn(manager.run(mailbox, phase.clone()));
    let mut http = tokio::spawn(metrics_http::serve(metrics_listener, Arc::clone(&facts)));
    let (reporter, health) = tonic_health::server::health_reporter();
    set_health(&reporter, *phase.borrow()).await;
    let mut health_task = tokio::spawn(follow_phase(reporter, phase));
    let (stop_serving, serving_stopped) = oneshot::channel::<()>();
    let service = ControlPlaneServer::new(ControlService::new(facts))
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    let reflection = descriptors().build_v1().map_err(|error| error.to_string())?;
    let reflection_alpha = descriptors().build_v1alpha().map_err(|error| error.to_string())?;
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_service(service)
        .add_service(health)
        .add_service(reflection)
        .add_service(reflection_alpha)
        .serve_with_incoming_shutdown(TcpListenerStream::new(control), async {
            let _ = serving_stopped.await;
        });
    let mut server = tokio::spawn(server);
    let mut stopped = stopped;
    let (who, ended) = tokio::select! {
        _ = &mut stopped => {
            let _ = stop_serving.send(());
            // Clients that stay connected are cut off after the wait, with the runtime.
            let _ = timeout(STOP_WAIT, server).await;
            return Ok(());
        }
        ended = &mut manager => ("the manager", ended),
        ended = &mut http => ("the metrics server", ended),
        ended = &mut health_task => ("the health task", ended),
        ended = &mut server => ("the control plane", ended.map(drop)),
    };
    let how = ended.map_or_else(|error| error.to_string(), |()| "ended by itself".to_owned());
    Err(format!("{who}: {how}"))
}

async fn follow_phase(reporter: HealthReporter, mut phase: watch::Receiver<Phase>) {
    while phase.changed().await.is_ok() {
        let now = *phase.borrow_and_update();
        set_health(&reporter, now).await;
    }
}

async fn set_health(reporter: &HealthReporter, phase: Phase) {
    let status = match phase {
        Phase::Serving => ServingStatus::Serving,
        Phase::Recovering | Phase::Draining => ServingStatus::NotServing,
    };
    for service in HEALTH_SERVICES {
        reporter.set_service_status(service, status).await;
    }
}

/// Descriptors of everything that is served here, health included.
fn descriptors() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(stateside_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

#[cfg(test)]
mod tests;
