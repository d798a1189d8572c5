//! The control thread as operators meet it: through gRPC and HTTP clients, over real sockets.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    time::Instant as RealInstant,
};

use stateside_proto::v1::{self, control_plane_client::ControlPlaneClient};
use stateside_types::{CoreId, PartitionId, PartitionState, StageKind, limits};
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus as Told, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use super::{
    fake_cores::{Budget, FakeCores},
    *,
};
use crate::config::Surroundings;

/// A control plane over fake cores of two threads.
struct Node {
    dir: tempfile::TempDir,
    plane: Option<ControlPlane>,
    cores: FakeCores,
    progress: Arc<RecoveryProgress>,
}

fn settings(dir: &tempfile::TempDir) -> Settings {
    let surroundings = Surroundings { available_cores: 2, environment: Box::new(|_| None) };
    let mut settings = Settings::defaults(&surroundings);
    settings.node.id = Some("vm-1".to_owned());
    settings.node.data_dir = dir.path().join("data");
    settings.control.listen.set_port(0);
    settings.metrics.listen.set_port(0);
    settings.memory.limit_mb = 3;
    settings
}

fn start(
    dir: &tempfile::TempDir,
    settings: &Settings,
) -> Result<(ControlPlane, FakeCores, Arc<RecoveryProgress>), ControlError> {
    let Bootstrap { data_dir, manifest, registry, desired, .. } = bootstrap(settings).unwrap();
    let cores =
        FakeCores::recover(&manifest, dir.path().join("data/partitions"), Budget::unlimited());
    let (handles, mailboxes) = cores.handles();
    for (mailbox, id) in mailboxes.into_iter().zip(0..) {
        let cores = cores.clone();
        // Ends when the control plane has let go of its handles.
        std::thread::spawn(move || {
            while let Ok(command) = mailbox.recv() {
                cores.handle(CoreId(id), command);
            }
        });
    }
    let progress = Arc::new(RecoveryProgress::default());
    let plane = ControlPlane::start(ControlSetup {
        settings: settings.clone(),
        data_dir,
        manifest,
        registry,
        desired,
        cores: handles,
        core_addresses: vec!["127.0.0.1:7410".to_owned(), "127.0.0.1:7411".to_owned()],
        data_address: "127.0.0.1:7400".parse().unwrap(),
        metrics: Arc::new(NodeMetrics::new(2)),
        progress: Arc::clone(&progress),
        failed: Box::new(|error| panic!("the control thread failed: {error}")),
    })?;
    Ok((plane, cores, progress))
}

impl Node {
    fn start() -> Self {
        Self::start_with(|_| ())
    }

    fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(&dir);
        change(&mut settings);
        let (plane, cores, progress) = start(&dir, &settings).unwrap();
        Self { dir, plane: Some(plane), cores, progress }
    }

    fn serving() -> Self {
        let node = Self::start();
        node.plane().set_phase(Phase::Serving);
        node
    }

    fn plane(&self) -> &ControlPlane {
        self.plane.as_ref().unwrap()
    }

    async fn channel(&self) -> Channel {
        let address = format!("http://{}", self.plane().address());
        Channel::from_shared(address).unwrap().connect().await.unwrap()
    }

    async fn client(&self) -> ControlPlaneClient<Channel> {
        ControlPlaneClient::new(self.channel().await)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An HTTP/1 request to the metrics address: status line and body.
    fn http(&self, request: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.plane().metrics_address()).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }
}

fn reason(status: &Status) -> String {
    let info = status.get_error_details();
    let info = info.error_info().expect("every refusal carries ErrorInfo");
    assert_eq!(info.domain, "stateside.dev");
    info.reason.clone()
}

fn removal(id: u32, confirm: bool) -> v1::RemovePartitionRequest {
    let target = Some(v1::remove_partition_request::Target::Id(id));
    v1::RemovePartitionRequest { target, confirm }
}

#[tokio::test]
async fn an_operators_day() {
    let node = Node::serving();
    let mut client = node.client().await;
    let list = client.list_partitions(v1::ListPartitionsRequest {}).await.unwrap().into_inner();
    assert_eq!(list.partitions.len(), 16);
    assert!(list.partitions.windows(2).all(|pair| pair[0].id < pair[1].id));
    let first = &list.partitions[0];
    assert_eq!(first.state(), v1::PartitionState::Primary);
    assert_eq!((first.ack(), first.store.as_str()), (v1::Ack::Durable, "memory"));
    assert_eq!(first.stages, ["clock", "dispatcher", "log", "line-monitor"]);

    // By range, then added again with other settings.
    let range = first.range.unwrap();
    let target = Some(v1::remove_partition_request::Target::Range(range));
    let request = v1::RemovePartitionRequest { target, confirm: false };
    let removed = client.remove_partition(request).await.unwrap().into_inner();
    assert_eq!(removed.partition.unwrap().id, 0);
    let request = v1::AddPartitionRequest {
        id: Some(40),
        range: Some(range),
        store: "sled".to_owned(),
        ack: v1::Ack::Memory.into(),
    };
    let added = client.add_partition(request).await.unwrap().into_inner().partition.unwrap();
    assert_eq!((added.id, added.store.as_str(), added.ack()), (40, "sled", v1::Ack::Memory));
    assert_eq!(added.state(), v1::PartitionState::Primary);

    // Records, a snapshot, a loss, a restore.
    assert!(node.cores.write(PartitionId(3), 12));
    let path = node.path("three.snapshot").display().to_string();
    let request = v1::SnapshotRequest { partition: 3, path: path.clone() };
    let snapshot = client.snapshot(request.clone()).await.unwrap().into_inner();
    assert_eq!((snapshot.partition, snapshot.records, &snapshot.path), (3, 12, &path));
    let again = client.snapshot(request).await.unwrap_err();
    assert_eq!((again.code(), reason(&again).as_str()), (Code::AlreadyExists, "SNAPSHOT_EXISTS"));
    assert!(node.cores.write(PartitionId(3), 5));
    let mut request = v1::RestoreRequest { partition: 3, path, confirm: false };
    let refused = client.restore(request.clone()).await.unwrap_err();
    assert_eq!(reason(&refused), "CONFIRMATION_REQUIRED");
    request.confirm = true;
    let restored = client.restore(request).await.unwrap().into_inner();
    let partition = restored.partition.unwrap();
    assert_eq!((restored.records, partition.records), (12, 12));

    let status = client.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.node_id.as_str(), status.state.as_str()), ("vm-1", "serving"));
    assert_eq!(status.partitions["primary"], 16);
    assert_eq!(status.cores.len(), 2);
    assert_eq!(status.cores[1].address, "127.0.0.1:7411");
    assert_eq!((status.records, status.memory_limit_bytes), (12, 3 << 20));
    assert_eq!(status.pending_changes, [""; 0]);
    assert_eq!(status.control_address, node.plane().address().to_string());
    assert!(status.registry.ends_with("data/registry.toml"), "{}", status.registry);
    assert!(status.resident_bytes > 0);
}

#[tokio::test]
async fn every_bad_request_is_refused_with_its_reason() {
    let node = Node::serving();
    let mut client = node.client().await;
    assert!(node.cores.write(PartitionId(2), 1));
    let range = |start, end| Some(v1::HashRange { start, end });
    let add = |id, range| v1::AddPartitionRequest { id, range, ..Default::default() };
    for (request, code, expected) in [
        (add(None, None), Code::InvalidArgument, "INVALID_RANGE"),
        (add(None, range(5, 5)), Code::InvalidArgument, "INVALID_RANGE"),
        (add(Some(3), range(0, 1)), Code::AlreadyExists, "PARTITION_EXISTS"),
        (add(None, range(0, 1)), Code::FailedPrecondition, "RANGE_OVERLAP"),
        (
            v1::AddPartitionRequest { store: "tape".to_owned(), ..add(None, range(0, 1)) },
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
        ),
        (
            v1::AddPartitionRequest { ack: 9, ..add(None, range(0, 1)) },
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
        ),
    ] {
        let refused = client.add_partition(request.clone()).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (code, expected), "{request:?}");
    }
    let none = v1::RemovePartitionRequest { target: None, confirm: true };
    for (request, expected) in [
        (none, "INVALID_ARGUMENT"),
        (removal(99, true), "UNKNOWN_PARTITION"),
        (removal(2, false), "CONFIRMATION_REQUIRED"),
    ] {
        let refused = client.remove_partition(request).await.unwrap_err();
        assert_eq!(reason(&refused), expected);
    }
    for (partition, path, expected) in [
        (99, "/tmp/x".to_owned(), "UNKNOWN_PARTITION"),
        (2, String::new(), "INVALID_ARGUMENT"),
        (2, "relative".to_owned(), "INVALID_ARGUMENT"),
        (2, "/".repeat(limits::PATH_BYTES_MAX + 1), "INVALID_ARGUMENT"),
    ] {
        let refused = client.snapshot(v1::SnapshotRequest { partition, path: path.clone() }).await;
        assert_eq!(reason(&refused.unwrap_err()), expected);
        let request = v1::RestoreRequest { partition, path, confirm: true };
        assert_eq!(reason(&client.restore(request).await.unwrap_err()), expected);
    }
    let list = client.list_partitions(v1::ListPartitionsRequest {}).await.unwrap().into_inner();
    assert_eq!(list.partitions.len(), 16);
}

#[tokio::test]
async fn while_the_cores_recover_status_tells_how_far_they_are_and_changes_are_refused() {
    let node = Node::start();
    node.progress.expect(1_000);
    node.progress.advance(300);
    let mut client = node.client().await;
    let status = client.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.state, "recovering");
    assert_eq!((status.recovery_bytes_read, status.recovery_bytes_total), (300, 1_000));
    assert_eq!(status.partitions["init"], 16);
    let refused = client.remove_partition(removal(1, true)).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::Unavailable, "PARTITION_STARTING")
    );
    assert!(refused.get_error_details().retry_info().is_some());
    node.plane().set_phase(Phase::Draining);
    let refused = client.remove_partition(removal(1, true)).await.unwrap_err();
    assert_eq!(reason(&refused), "SHUTTING_DOWN");
}

#[tokio::test]
async fn health_follows_the_node() {
    let node = Node::start();
    let mut client = HealthClient::new(node.channel().await);
    for (phase, expected) in [
        (Phase::Recovering, Told::NotServing),
        (Phase::Serving, Told::Serving),
        (Phase::Draining, Told::NotServing),
    ] {
        node.plane().set_phase(phase);
        for service in HEALTH_SERVICES {
            // Told by a stream, which ends the wait the moment it changes.
            let request = HealthCheckRequest { service: service.to_owned() };
            let mut told = client.watch(request.clone()).await.unwrap().into_inner();
            while told.message().await.unwrap().unwrap().status() != expected {}
            assert_eq!(client.check(request).await.unwrap().into_inner().status(), expected);
        }
    }
    let unknown = HealthCheckRequest { service: "none".to_owned() };
    assert_eq!(client.check(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn reflection_lists_every_service_in_both_versions() {
    let node = Node::serving();
    let expected = ["grpc.health.v1.Health", "stateside.v1.ControlPlane", "stateside.v1.DataPlane"];
    macro_rules! services {
        ($version:ident) => {{
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
            };
            let request = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(MessageRequest::ListServices(String::new())),
            };
            let mut client = ServerReflectionClient::new(node.channel().await);
            let answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap();
            let answer = answers.into_inner().message().await.unwrap().unwrap();
            let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
                panic!("{answer:?}");
            };
            list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
        }};
    }
    for services in [services!(v1), services!(v1alpha)] {
        for name in expected {
            assert!(services.iter().any(|have| have == name), "{name} is not in {services:?}");
        }
    }
}

#[tokio::test]
async fn more_changes_than_a_few_are_refused_and_status_still_answers() {
    let node = Node::serving();
    node.cores.silence("snapshot");
    let client = node.client().await;
    let calls: Vec<_> = (0..limits::CONTROL_CHANGES_MAX as u32)
        .map(|partition| {
            let mut client = client.clone();
            let path = node.path(&format!("{partition}")).display().to_string();
            tokio::spawn(
                async move { client.snapshot(v1::SnapshotRequest { partition, path }).await },
            )
        })
        .collect();
    let mut client = client;
    let deadline = RealInstant::now() + Duration::from_secs(20);
    while node.cores.unanswered() < limits::CONTROL_CHANGES_MAX {
        assert!(RealInstant::now() < deadline);
        tokio::task::yield_now().await;
    }
    let refused = client.remove_partition(removal(99, true)).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::ResourceExhausted, "OVERLOADED")
    );
    assert!(refused.get_error_details().retry_info().is_some());
    let status = client.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.state, "serving");
    node.cores.speak();
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn metrics_and_probes_answer_over_plain_http() {
    let node = Node::start();
    node.progress.expect(10);
    let (head, body) = node.http("GET /readyz");
    assert!(head.starts_with("HTTP/1.1 503") && body == "recovering: 0 of 10 bytes\n", "{head}");
    assert!(node.http("GET /healthz").0.starts_with("HTTP/1.1 200"));
    node.plane().set_phase(Phase::Serving);
    assert!(node.http("GET /readyz").0.starts_with("HTTP/1.1 200"));
    node.cores.write(PartitionId(3), 9);
    let (head, body) = node.http("GET /metrics");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let core = node.cores.core_of(PartitionId(3)).unwrap();
    let line = format!("stateside_partition_records{{core=\"{core}\",partition=\"3\"}} 9");
    assert!(body.lines().any(|have| have == line), "{body}");
    assert!(body.contains("stateside_node_state{state=\"serving\"} 1"));
    assert!(body.contains("stateside_cores_unreported 0"));
    assert!(node.http("GET /").0.starts_with("HTTP/1.1 404"));
    assert!(node.http("POST /metrics").0.starts_with("HTTP/1.1 405"));
    let (head, body) = node.http("HEAD /healthz");
    assert!(head.starts_with("HTTP/1.1 200") && body.is_empty());
    node.plane().set_phase(Phase::Draining);
    assert_eq!(node.http("GET /readyz").1, "draining\n");
}

#[tokio::test]
async fn a_node_is_ready_when_each_log_in_kafka_has_been_open_once() {
    let node = Node::start_with(|settings| {
        let stages = [StageKind::Clock, StageKind::KafkaLog, StageKind::LineMonitor];
        settings.partition.pipeline = stages.as_slice().into();
    });
    let ids: Vec<PartitionId> = node.cores.hosted().into_keys().collect();
    for id in &ids {
        node.cores.be(*id, PartitionState::Init);
    }
    node.plane().set_phase(Phase::Serving);
    for (open, id) in ids.iter().enumerate() {
        let (head, body) = node.http("GET /readyz");
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        let says = format!(
            "opening: {} of {} partitions with their logs in Kafka; partition {id}: ",
            ids.len() - open,
            ids.len()
        );
        assert!(body.starts_with(&says), "{body}");
        // One that cannot serve is no reason to keep the others from their clients.
        let state = if open == 0 { PartitionState::Stopped } else { PartitionState::Primary };
        node.cores.be(*id, state);
    }
    assert!(node.http("GET /readyz").0.starts_with("HTTP/1.1 200"));
    // One that is opened anew does not take the node away from the others.
    node.cores.be(ids[0], PartitionState::Init);
    assert!(node.http("GET /readyz").0.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn counters_tell_what_the_control_plane_did() {
    let node = Node::serving();
    let mut client = node.client().await;
    client.remove_partition(removal(1, false)).await.unwrap();
    client.remove_partition(removal(1, false)).await.unwrap_err();
    let (_, body) = node.http("GET /metrics");
    for line in [
        "stateside_control_calls_total{outcome=\"ok\"} 1",
        "stateside_control_calls_total{outcome=\"refused\"} 1",
        "stateside_partition_changes_total{outcome=\"done\"} 1",
        "stateside_pending_changes 0",
        "stateside_registry_broken 0",
    ] {
        assert!(body.lines().any(|have| have == line), "{line}\n{body}");
    }
}

#[test]
fn a_port_in_use_is_one_clear_sentence() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for key in ["control.listen", "metrics.listen"] {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(&dir);
        match key {
            "control.listen" => settings.control.listen = address,
            _ => settings.metrics.listen = address,
        }
        let Err(error) = start(&dir, &settings) else { panic!("{key}: the port is taken") };
        assert!(error.is_address_in_use());
        let what = if key == "control.listen" { "the control plane" } else { "the metrics" };
        let sentence = format!(
            "{what} cannot listen on {address} ({key}): the port is in use by another process"
        );
        assert_eq!(error.to_string(), sentence);
    }
}

#[tokio::test]
async fn stopping_does_not_wait_for_clients_that_stay_or_calls_that_hang() {
    let mut node = Node::serving();
    node.cores.silence("snapshot");
    let idle = node.client().await;
    let mut hanging = idle.clone();
    let path = node.path("never").display().to_string();
    let call =
        tokio::spawn(
            async move { hanging.snapshot(v1::SnapshotRequest { partition: 1, path }).await },
        );
    let half_sent = TcpStream::connect(node.plane().metrics_address()).unwrap();
    let deadline = RealInstant::now() + Duration::from_secs(20);
    while node.cores.unanswered() == 0 {
        assert!(RealInstant::now() < deadline);
        tokio::task::yield_now().await;
    }
    let plane = node.plane.take().unwrap();
    let (control, metrics) = (plane.address(), plane.metrics_address());
    let began = RealInstant::now();
    tokio::task::spawn_blocking(move || plane.stop()).await.unwrap();
    assert!(began.elapsed() < STOP_WAIT + Duration::from_secs(5));
    assert!(call.await.unwrap().is_err());
    drop((idle, half_sent));
    for address in [control, metrics] {
        assert!(TcpStream::connect(address).is_err(), "{address} is closed");
    }
    // Nothing holds the data directory any more.
    fs::remove_dir_all(node.path("data/partitions")).unwrap();
    fs::create_dir(node.path("data/partitions")).unwrap();
    assert!(bootstrap(&settings(&node.dir)).is_ok());
}
