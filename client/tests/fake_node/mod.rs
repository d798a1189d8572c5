//! A node as a client sees it, for what a real one cannot be made to do on demand: refuse the next
//! call, go silent, close the connection in the middle of a write, pretend to be another node.
//!
//! Runs on a runtime of its own, so that dropping it closes every socket at once, as a kill does.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use stateside_client::{Reason, v1};
use stateside_proto::v1::data_plane_server::{DataPlane, DataPlaneServer};
use tokio::{runtime::Runtime, sync::oneshot};
use tonic::{Code, Request, Response, Status, transport::server::TcpIncoming};
use tonic_types::{ErrorDetails, StatusExt};

/// What the next call of a method gets instead of its answer.
pub enum Script {
    /// A refusal of the whole call; not applied.
    Refuse(Reason),
    /// A refusal of the entries whose key begins so; the rest is applied.
    RefuseKeys(&'static [u8], Reason),
    /// Applied, but answered never.
    ApplyAndHang,
    /// Applied, then the node dies without an answer.
    ApplyAndDie,
}

/// Value and version by key.
type Records = HashMap<Vec<u8>, (Vec<u8>, u64)>;

#[derive(Default)]
pub struct State {
    /// The ids of upserts.
    pub ids: Mutex<Vec<Option<v1::RequestId>>>,
    pub records: Mutex<Records>,
    pub scripts: Mutex<VecDeque<Script>>,
    pub topology: Mutex<v1::TopologyResponse>,
    pub topology_calls: AtomicUsize,
    /// Keys of each data call, in the order of arrival.
    pub calls: Mutex<Vec<Vec<Vec<u8>>>>,
    pub timeouts: Mutex<Vec<Option<String>>>,
    /// Larger answers to `Get` are refused.
    pub records_max: AtomicUsize,
    version: AtomicU64,
    kill: Mutex<Option<oneshot::Sender<()>>>,
}

impl State {
    pub fn script(&self, script: Script) {
        self.scripts.lock().unwrap().push_back(script);
    }

    pub fn calls(&self) -> Vec<Vec<Vec<u8>>> {
        self.calls.lock().unwrap().clone()
    }

    pub fn value(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.records.lock().unwrap().get(key).map(|(value, _)| value.clone())
    }

    /// Sets the partitions: (start, end, core's port or 0 for nobody's, core), all of one owner.
    pub fn set_topology(&self, owner: &str, partitions: &[(u64, u64, u16)]) {
        let mut topology = self.topology.lock().unwrap();
        topology.node_id = owner.to_owned();
        topology.version += 1;
        topology.partitions = partitions
            .iter()
            .enumerate()
            .map(|(id, &(start, end, port))| v1::PartitionLocation {
                id: id as u32,
                range: Some(v1::HashRange { start, end }),
                epoch: 1,
                owner: owner.to_owned(),
                core_address: format!(":{port}"),
                core: 0,
            })
            .collect();
    }
}

/// One listening address of a fake node.
pub struct FakeNode {
    pub state: Arc<State>,
    pub address: SocketAddr,
    runtime: Option<Runtime>,
    killed: Option<oneshot::Receiver<()>>,
}

impl FakeNode {
    pub fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), Arc::new(State::default()))
    }

    pub fn start_at(address: SocketAddr, state: Arc<State>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (kill, killed) = oneshot::channel();
        *state.kill.lock().unwrap() = Some(kill);
        let incoming = {
            let _inside = runtime.enter();
            TcpIncoming::bind(address).unwrap()
        };
        let address = incoming.local_addr().unwrap();
        let service = DataPlaneServer::new(Service(Arc::clone(&state)));
        runtime.spawn(
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming),
        );
        Self { state, address, runtime: Some(runtime), killed: Some(killed) }
    }

    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// Waits for `Script::ApplyAndDie`, then closes every socket.
    pub async fn die_when_told(mut self) -> (SocketAddr, Arc<State>) {
        let told = self.killed.take().unwrap();
        tokio::time::timeout(Duration::from_secs(10), told).await.unwrap().unwrap();
        self.die()
    }

    /// Closes every socket.
    pub fn die(mut self) -> (SocketAddr, Arc<State>) {
        let runtime = self.runtime.take().unwrap();
        // On a thread of its own: a runtime may not wait for another's end.
        let ended = std::thread::spawn(|| runtime.shutdown_timeout(Duration::from_secs(5)));
        ended.join().unwrap();
        (self.address, Arc::clone(&self.state))
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Service(Arc<State>);

/// What the script left to be done.
#[derive(PartialEq)]
enum After {
    Answer,
    Hang,
    Die,
}

type Refuse = Option<(&'static [u8], Reason)>;

impl Service {
    fn begin<T>(
        &self,
        request: &Request<T>,
        keys: Vec<Vec<u8>>,
    ) -> Result<(After, Refuse), Status> {
        self.0.calls.lock().unwrap().push(keys);
        let timeout = request.metadata().get("grpc-timeout");
        self.0.timeouts.lock().unwrap().push(timeout.map(|t| t.to_str().unwrap().to_owned()));
        match self.0.scripts.lock().unwrap().pop_front() {
            None => Ok((After::Answer, None)),
            Some(Script::Refuse(reason)) => Err(refusal(reason)),
            Some(Script::RefuseKeys(prefix, reason)) => Ok((After::Answer, Some((prefix, reason)))),
            Some(Script::ApplyAndHang) => Ok((After::Hang, None)),
            Some(Script::ApplyAndDie) => Ok((After::Die, None)),
        }
    }

    async fn finish(&self, after: After) {
        if after == After::Die {
            self.0.kill.lock().unwrap().take().unwrap().send(()).unwrap();
        }
        if after != After::Answer {
            std::future::pending::<()>().await;
        }
    }
}

fn refusal(reason: Reason) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason.as_str(), "stateside.dev", HashMap::<String, String>::new());
    Status::with_error_details(Code::from_i32(reason.code() as i32), "scripted", details)
}

fn refused_entry(reason: Reason) -> v1::EntryError {
    v1::EntryError {
        code: reason.code() as i32,
        reason: reason.as_str().to_owned(),
        message: "scripted".to_owned(),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl DataPlane for Service {
    async fn upsert(
        &self,
        request: Request<v1::UpsertRequest>,
    ) -> Result<Response<v1::UpsertResponse>, Status> {
        let keys = request.get_ref().entries.iter().map(|entry| entry.key.clone()).collect();
        self.0.ids.lock().unwrap().push(request.get_ref().request_id.clone());
        let (after, refuse) = self.begin(&request, keys)?;
        let version = self.0.version.fetch_add(1, Ordering::Relaxed) + 1;
        let results = {
            let mut records = self.0.records.lock().unwrap();
            let apply = |entry: v1::UpsertEntry| match refuse {
                Some((prefix, reason)) if entry.key.starts_with(prefix) => {
                    v1::WriteResult { error: Some(refused_entry(reason)), ..Default::default() }
                }
                _ => {
                    records.insert(entry.key, (entry.value, version));
                    v1::WriteResult { version, timestamp: version << 16, error: None }
                }
            };
            request.into_inner().entries.into_iter().map(apply).collect()
        };
        self.finish(after).await;
        Ok(Response::new(v1::UpsertResponse { results, session: None }))
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let keys = request.get_ref().keys.clone();
        let (after, refuse) = self.begin(&request, keys.clone())?;
        let records_max = self.0.records_max.load(Ordering::Relaxed);
        if records_max > 0 && keys.len() > records_max {
            return Err(refusal(Reason::ResponseTooLarge));
        }
        let records = {
            let records = self.0.records.lock().unwrap();
            let read = |key: Vec<u8>| match (refuse, records.get(&key)) {
                (Some((prefix, reason)), _) if key.starts_with(prefix) => {
                    v1::Record { key, error: Some(refused_entry(reason)), ..Default::default() }
                }
                (_, None) => v1::Record { key, ..Default::default() },
                (_, Some((value, version))) => v1::Record {
                    found: true,
                    key,
                    value: value.clone(),
                    version: *version,
                    ..Default::default()
                },
            };
            keys.into_iter().map(read).collect()
        };
        self.finish(after).await;
        Ok(Response::new(v1::GetResponse { records, session: None }))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveRequest>,
    ) -> Result<Response<v1::RemoveResponse>, Status> {
        let keys: Vec<_> =
            request.get_ref().entries.iter().map(|entry| entry.key.clone()).collect();
        let (after, _) = self.begin(&request, keys.clone())?;
        for key in &keys {
            self.0.records.lock().unwrap().remove(key);
        }
        self.finish(after).await;
        let results = keys.iter().map(|_| v1::WriteResult::default()).collect();
        Ok(Response::new(v1::RemoveResponse { results, session: None }))
    }

    async fn update(
        &self,
        _: Request<v1::UpdateRequest>,
    ) -> Result<Response<v1::UpdateResponse>, Status> {
        Err(Status::unimplemented("Update"))
    }

    /// Two records a page; the continuation is the last key.
    async fn scan(
        &self,
        request: Request<v1::ScanRequest>,
    ) -> Result<Response<v1::ScanResponse>, Status> {
        let (after, _) = self.begin(&request, Vec::new())?;
        let v1::ScanRequest { prefix, continuation, .. } = request.into_inner();
        let mut records: Vec<v1::Record> = {
            let records = self.0.records.lock().unwrap();
            let found = records.iter().filter(|(key, _)| key.starts_with(&prefix));
            let behind = found.filter(|(key, _)| **key > continuation);
            let read = |(key, (value, version)): (&Vec<u8>, &(Vec<u8>, u64))| v1::Record {
                found: true,
                key: key.clone(),
                value: value.clone(),
                version: *version,
                ..Default::default()
            };
            behind.map(read).collect()
        };
        records.sort_by(|one, other| one.key.cmp(&other.key));
        let more = records.len() > 2;
        records.truncate(2);
        let continuation = records.last().filter(|_| more).map(|record| record.key.clone());
        self.finish(after).await;
        Ok(Response::new(v1::ScanResponse {
            session: None,
            records,
            continuation: continuation.unwrap_or_default(),
            sequence: 7,
            partition: 0,
        }))
    }

    async fn topology(
        &self,
        _: Request<v1::TopologyRequest>,
    ) -> Result<Response<v1::TopologyResponse>, Status> {
        self.0.topology_calls.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(self.0.topology.lock().unwrap().clone()))
    }
}
