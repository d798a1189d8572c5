//! What the comparison measures against: the same data plane contract on tonic and tokio, one
//! thread, one hash map behind a mutex, as one would write it in an afternoon.
//!
//! ```text
//! tonic-peer HOST:PORT LOG_FILE
//! ```
//! It is no stand-in for a node: there are no partitions, records are lost at the end, the log is
//! written and never read. What both do alike is what the comparison is about: the same messages
//! are decoded, checked, applied and answered, and a durable write is on disk before its answer,
//! many in one `fdatasync`.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{SystemTime, UNIX_EPOCH},
};

use hashbrown::HashMap;
use prost::Message;
use stateside_proto::v1::{
    Ack, GetRequest, GetResponse, HashRange, PartitionLocation, Record, RemoveRequest,
    RemoveResponse, ScanRequest, ScanResponse, TopologyRequest, TopologyResponse, UpsertEntry,
    UpsertRequest, UpsertResponse, WriteResult,
    data_plane_server::{DataPlane, DataPlaneServer},
};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, transport::Server};

const KEY_BYTES_MAX: usize = 4 << 10;

/// One record.
struct Stored {
    value: Vec<u8>,
    version: u64,
    timestamp: u64,
}

/// The map and the number of the last batch.
#[derive(Default)]
struct State {
    records: HashMap<Vec<u8>, Stored>,
    sequence: u64,
}

/// A batch for the log, and whom to tell when it is on disk.
struct LogEntry {
    bytes: Vec<u8>,
    done: oneshot::Sender<bool>,
}

/// The service; shared by all connections.
struct Peer {
    state: Arc<Mutex<State>>,
    log: mpsc::Sender<LogEntry>,
}

impl Peer {
    fn locked<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn make_durable(&self, bytes: Vec<u8>) -> Result<(), Status> {
        let (done, written) = oneshot::channel();
        self.log
            .send(LogEntry { bytes, done })
            .map_err(|_| Status::unavailable("the log has stopped"))?;
        match written.await {
            Ok(true) => Ok(()),
            _ => Err(Status::unavailable("the log could not be written")),
        }
    }
}

#[tonic::async_trait]
impl DataPlane for Peer {
    async fn upsert(
        &self,
        request: Request<UpsertRequest>,
    ) -> Result<Response<UpsertResponse>, Status> {
        let request = request.into_inner();
        let logged = (request.ack() != Ack::Memory).then(|| request.encode_to_vec());
        check_keys(request.entries.iter().map(|entry| entry.key.as_slice()))?;
        let results = self.locked(|state| {
            for entry in &request.entries {
                check_condition(state, entry)?;
            }
            state.sequence += 1;
            let (version, timestamp) = (state.sequence, now());
            let count = request.entries.len();
            for entry in request.entries {
                state.records.insert(entry.key, Stored { value: entry.value, version, timestamp });
            }
            Ok::<_, Status>(vec![WriteResult { version, timestamp, error: None }; count])
        })?;
        if let Some(bytes) = logged {
            self.make_durable(bytes).await?;
        }
        Ok(Response::new(UpsertResponse { results, session: None }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let request = request.into_inner();
        check_keys(request.keys.iter().map(Vec::as_slice))?;
        let records = self.locked(|state| {
            let read = |key: Vec<u8>| match state.records.get(&key) {
                Some(stored) => Record {
                    found: true,
                    key,
                    value: stored.value.clone(),
                    version: stored.version,
                    timestamp: stored.timestamp,
                    ..Record::default()
                },
                None => Record { key, ..Record::default() },
            };
            request.keys.into_iter().map(read).collect()
        });
        Ok(Response::new(GetResponse { records, session: None }))
    }

    async fn remove(
        &self,
        request: Request<RemoveRequest>,
    ) -> Result<Response<RemoveResponse>, Status> {
        let request = request.into_inner();
        let logged = (request.ack() != Ack::Memory).then(|| request.encode_to_vec());
        check_keys(request.entries.iter().map(|entry| entry.key.as_slice()))?;
        let results = self.locked(|state| {
            state.sequence += 1;
            for entry in &request.entries {
                state.records.remove(&entry.key);
            }
            let result = WriteResult { version: state.sequence, timestamp: now(), error: None };
            vec![result; request.entries.len()]
        });
        if let Some(bytes) = logged {
            self.make_durable(bytes).await?;
        }
        Ok(Response::new(RemoveResponse { results, session: None }))
    }

    async fn update(
        &self,
        _: Request<stateside_proto::v1::UpdateRequest>,
    ) -> Result<Response<stateside_proto::v1::UpdateResponse>, Status> {
        Err(Status::unimplemented("Update"))
    }

    async fn scan(&self, _: Request<ScanRequest>) -> Result<Response<ScanResponse>, Status> {
        Err(Status::unimplemented("this peer keeps no order"))
    }

    async fn topology(
        &self,
        _: Request<TopologyRequest>,
    ) -> Result<Response<TopologyResponse>, Status> {
        let whole = PartitionLocation {
            range: Some(HashRange { start: 0, end: 0 }),
            epoch: 1,
            owner: "tonic-peer".to_owned(),
            ..PartitionLocation::default()
        };
        let answer =
            TopologyResponse { partitions: vec![whole], node_id: "tonic-peer".into(), version: 1 };
        Ok(Response::new(answer))
    }
}

fn check_keys<'k>(keys: impl ExactSizeIterator<Item = &'k [u8]>) -> Result<(), Status> {
    if keys.len() == 0 {
        return Err(Status::invalid_argument("the batch is empty"));
    }
    for key in keys {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(Status::invalid_argument("keys are 1 to 4096 bytes"));
        }
    }
    Ok(())
}

fn check_condition(state: &State, entry: &UpsertEntry) -> Result<(), Status> {
    let version = || state.records.get(&entry.key).map(|stored| stored.version);
    let absent_fails = entry.if_absent && version().is_some();
    let version_fails = entry.if_version.is_some_and(|wanted| version() != Some(wanted));
    if absent_fails || version_fails {
        return Err(Status::failed_precondition("the condition does not hold"));
    }
    Ok(())
}

/// Milliseconds since 1970 in the upper 48 bits.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| (d.as_millis() as u64) << 16)
}

/// Writes everything that has arrived, makes it durable with one `fdatasync`, answers all.
fn write_log(mut file: File, entries: &mpsc::Receiver<LogEntry>) {
    let mut buffer = Vec::new();
    let mut waiting = Vec::new();
    while let Ok(first) = entries.recv() {
        for entry in std::iter::once(first).chain(entries.try_iter()) {
            buffer.extend_from_slice(&(entry.bytes.len() as u32).to_le_bytes());
            buffer.extend_from_slice(&entry.bytes);
            waiting.push(entry.done);
        }
        let written = file.write_all(&buffer).and_then(|()| file.sync_data()).is_ok();
        buffer.clear();
        for done in waiting.drain(..) {
            // A caller that has gone does not want to know.
            let _ = done.send(written);
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, log_file] = arguments.as_slice() else {
        return Err("usage: tonic-peer HOST:PORT LOG_FILE".into());
    };
    let file = OpenOptions::new().create(true).append(true).open(log_file)?;
    let (log, entries) = mpsc::channel();
    std::thread::spawn(move || write_log(file, &entries));
    let peer = Peer { state: Arc::default(), log };
    Server::builder()
        .tcp_nodelay(true)
        .add_service(DataPlaneServer::new(peer))
        .serve(address.parse()?)
        .await?;
    Ok(())
}
