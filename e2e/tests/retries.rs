//! Requests with an id against a node that is killed again and again: each is executed once and answered
//! alike, by whatever process and after whatever restore.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use stateside_e2e::{
    config::{Config, Store},
    node_process::Site,
    random::Random,
    rpc::{self, Data},
    until::until,
};
use stateside_proto::v1::{
    RequestId, RestoreRequest, SnapshotRequest, StatusRequest, UpsertEntry, UpsertRequest,
};
use tokio::runtime::Runtime;
use tonic::{Code, Status};

/// Clients, each with a counter of its own that it increments under a condition.
const CLIENTS: usize = 8;
const KILLS: u32 = 6;
/// Requests that a client sends again now and then although it has their answers.
const REPEATED: u64 = 6;
const LIMIT: Duration = Duration::from_secs(60);

/// Version and timestamp, or the stable part of a refusal: reason, message, metadata.
type Answer = Result<(u64, u64), (String, String)>;

/// A client that numbers its requests and sends each until it has an answer.
struct Client {
    name: String,
    address: String,
    connection: Option<Data>,
    number: u64,
    /// Of the last requests: what was asked, and the answer.
    answered: Vec<(UpsertRequest, Answer)>,
    retries: u64,
}

impl Client {
    fn new(name: String, address: String) -> Self {
        Self { name, address, connection: None, number: 0, answered: Vec::new(), retries: 0 }
    }

    fn request(&self, number: u64, value: u64, if_version: Option<u64>) -> UpsertRequest {
        let request_id = RequestId {
            client: self.name.clone().into_bytes(),
            number,
            settled: number.saturating_sub(REPEATED),
        };
        let key = self.name.clone().into_bytes();
        let value = value.to_string().into_bytes();
        let entry = UpsertEntry {
            key,
            value,
            if_absent: value_is_first(if_version),
            if_version,
            ttl_ms: 0,
        };
        UpsertRequest {
            entries: vec![entry],
            request_id: Some(request_id),
            ..UpsertRequest::default()
        }
    }

    /// Sends until there is an answer: over new connections, to whichever process answers.
    async fn answer(&mut self, request: &UpsertRequest) -> Answer {
        let until = tokio::time::Instant::now() + LIMIT;
        loop {
            assert!(tokio::time::Instant::now() < until, "{}: no answer", self.name);
            if self.connection.is_none() {
                self.connection = rpc::data(&self.address).await.ok();
            }
            if let Some(connection) = &mut self.connection {
                match connection.upsert(request.clone()).await {
                    Ok(response) => {
                        let result = response.into_inner().results.remove(0);
                        assert_eq!(result.error, None);
                        return Ok((result.version, result.timestamp));
                    }
                    Err(status) if is_passing(&status) => self.retries += 1,
                    Err(status) => {
                        return Err((rpc::reason(&status), status.message().to_owned()));
                    }
                }
                self.connection = None;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Increments the counter; with every third request tries to do so on a version that is gone.
    async fn next(&mut self) {
        let number = self.number + 1;
        let last = self.answered.iter().rev().find_map(|(request, answer)| {
            let value = std::str::from_utf8(&request.entries[0].value).unwrap();
            answer.as_ref().ok().map(|(version, _)| (*version, value.parse::<u64>().unwrap()))
        });
        let is_stale = number.is_multiple_of(3);
        let request = match last {
            None => self.request(number, 1, None),
            Some((version, value)) => {
                let version = if is_stale { version + 1_000_000 } else { version };
                self.request(number, value + 1, Some(version))
            }
        };
        let answer = self.answer(&request).await;
        match &answer {
            Ok(_) => assert!(last.is_none() || !is_stale, "a condition held that cannot"),
            Err((reason, message)) => {
                assert_eq!(reason, "CONDITION_FAILED", "{message}");
                assert!(is_stale, "request {number} of {}: executed twice? {message}", self.name);
            }
        }
        self.number = number;
        self.answered.push((request, answer));
        let spare = self.answered.len().saturating_sub(REPEATED as usize);
        self.answered.drain(..spare);
    }

    /// Sends what it has the answers of again.
    async fn repeat(&mut self) {
        for (request, answer) in self.answered.clone() {
            let number = request.request_id.as_ref().unwrap().number;
            let again = self.answer(&request).await;
            assert_eq!(again, answer, "request {number} of {}", self.name);
        }
    }
}

fn value_is_first(if_version: Option<u64>) -> bool {
    if_version.is_none()
}

/// Whether the request may have been executed or not, or will be possible soon.
fn is_passing(status: &Status) -> bool {
    let lost = [Code::Unavailable, Code::Cancelled, Code::Unknown, Code::DeadlineExceeded];
    lost.contains(&status.code()) || ["OVERLOADED", "BAD_NODE"].contains(&&*rpc::reason(status))
}

#[test]
fn retries_of_conditional_increments_over_kills_are_exact_with_the_memory_store() {
    increments_over_kills(Store::Memory);
}

#[test]
fn retries_of_conditional_increments_over_kills_are_exact_with_the_sled_store() {
    increments_over_kills(Store::Sled);
}

#[test]
fn retries_of_conditional_increments_over_kills_are_exact_with_the_lsm_store() {
    increments_over_kills(Store::Lsm);
}

fn increments_over_kills(store: Store) {
    let seed = Random::fresh_seed();
    println!("seed {seed}");
    let mut random = Random::new(seed);
    // Small segments, so that background snapshots and stores let go of the log under way.
    let site = Site::new(Config {
        cores: 2,
        store,
        log_segment_mb: 8,
        log_max_mb: 16,
        ..Config::default()
    });
    let runtime = Runtime::new().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let mut node = site.start();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|at| {
            let mut client = Client::new(format!("client {at}"), site.data_address());
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            runtime.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    client.next().await;
                    if done.fetch_add(1, Ordering::SeqCst).is_multiple_of(23) {
                        client.repeat().await;
                    }
                }
                client.repeat().await;
                client
            })
        })
        .collect();
    for _ in 0..KILLS {
        let from = done.load(Ordering::SeqCst);
        let more = 50 + random.below(300);
        until("requests are answered", LIMIT, || {
            (done.load(Ordering::SeqCst) >= from + more).then_some(())
        });
        node.kill();
        drop(node);
        node = site.start();
    }
    stop.store(true, Ordering::SeqCst);
    let mut retries = 0;
    for client in clients {
        let client = runtime.block_on(client).unwrap();
        retries += client.retries;
        runtime.block_on(async {
            let mut data = rpc::data(&site.data_address()).await.unwrap();
            let record = rpc::get(&mut data, &client.name).await.unwrap();
            // Of any three numbers from the second on, one is refused.
            let increments = client.number - client.number / 3;
            assert_eq!(record.value, increments.to_string().into_bytes(), "{}", client.name);
        });
    }
    println!("{} requests, {retries} retries", done.load(Ordering::SeqCst));
    assert!(retries > 0, "no kill hit a request");
    let status = runtime.block_on(async {
        let mut control = rpc::control(&site.control_address()).await.unwrap();
        control.status(StatusRequest {}).await.unwrap().into_inner()
    });
    let ids = status.request_ids.unwrap();
    assert_eq!(ids.clients, CLIENTS as u64);
    assert!(ids.answers >= CLIENTS as u64 && ids.oldest_unix_ms > 0 && ids.retries_answered > 0);
    let metrics = node.metrics();
    let shows = |name: &str| {
        let of_name = metrics.lines().filter(|line| line.starts_with(name));
        of_name.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
    };
    assert_eq!(shows("stateside_partition_request_answers{"), ids.answers as f64);
    assert!(shows("stateside_partition_request_oldest_age_seconds{") > 0.0);
    assert!(shows("stateside_partition_retries_answered_total{") > 0.0);
}

#[test]
fn a_restored_snapshot_brings_the_answers_of_its_time_and_none_of_later() {
    for store in [Store::Memory, Store::Sled, Store::Lsm] {
        let site = Site::new(Config { store, ..Config::default() });
        let mut node = site.start();
        let runtime = Runtime::new().unwrap();
        runtime.block_on(async {
            let mut control = rpc::control(&site.control_address()).await.unwrap();
            let mut client = Client::new("client".to_owned(), site.data_address());
            for _ in 0..4 {
                client.next().await;
            }
            let mut data = rpc::data(&site.data_address()).await.unwrap();
            let topology = rpc::topology(&mut data).await.unwrap();
            let hash = stateside_router::key_hash(b"client");
            let owner = topology.partitions.iter().find(|partition| {
                let range = partition.range.unwrap();
                hash.0 >= range.start && (range.end == 0 || hash.0 < range.end)
            });
            let partition = owner.unwrap().id;
            let path = site.folder().join("requests.snapshot").display().to_string();
            let snapshot = SnapshotRequest { partition, path: path.clone() };
            control.snapshot(snapshot).await.unwrap();
            let kept = client.answered.clone();

            client.next().await;
            let (later, _) = client.answered.last().unwrap().clone();
            let restore = RestoreRequest { partition, path, confirm: true };
            control.restore(restore).await.unwrap();
            client.answered = kept;
            client.repeat().await;
            // It has not happened in what was restored: now it does, on a version that goes on.
            let again = client.answer(&later).await.unwrap();
            assert_eq!(client.answer(&later).await, Ok(again), "{store:?}");
            node.kill();
            drop(node);
            let _node = site.start();
            client.repeat().await;
            assert_eq!(client.answer(&later).await, Ok(again), "{store:?}");
        });
    }
}

#[test]
fn a_batch_over_partitions_and_cores_is_remembered_by_each_and_limits_are_told() {
    let more = "request_ids.answers_max = 3\nrequest_ids.clients_max = 1\n";
    let site = Site::new(Config { cores: 2, more: more.to_owned(), ..Config::default() });
    let mut node = site.start();
    let runtime = Runtime::new().unwrap();
    let batch = |number: u64, client: &str| UpsertRequest {
        entries: (0..64).map(|key| rpc::entry(format!("key/{key}"), number.to_string())).collect(),
        request_id: Some(RequestId { client: client.into(), number, settled: 0 }),
        ..UpsertRequest::default()
    };
    runtime.block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        let first = data.upsert(batch(1, "a")).await.unwrap().into_inner();
        assert!(first.results.iter().all(|result| result.error.is_none()));
        let again = data.upsert(batch(1, "a")).await.unwrap().into_inner();
        assert_eq!(again, first);
        node.kill();
        drop(node);
        let _node = site.start();
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        assert_eq!(data.upsert(batch(1, "a")).await.unwrap().into_inner(), first);

        let reasons = |results: Vec<stateside_proto::v1::WriteResult>| {
            let mut reasons: Vec<_> =
                results.into_iter().map(|result| result.error.unwrap().reason).collect();
            reasons.dedup();
            reasons
        };
        let other = UpsertRequest { request_id: batch(1, "a").request_id, ..batch(2, "a") };
        let reused = data.upsert(other).await.unwrap().into_inner();
        assert_eq!(reasons(reused.results), ["REQUEST_ID_REUSED"]);
        let full = data.upsert(batch(1, "b")).await.unwrap().into_inner();
        assert_eq!(reasons(full.results), ["REQUEST_CLIENTS_FULL"]);
        for number in 2..=5 {
            data.upsert(batch(number, "a")).await.unwrap();
        }
        let forgotten = data.upsert(batch(2, "a")).await.unwrap().into_inner();
        assert_eq!(reasons(forgotten.results), ["REQUEST_FORGOTTEN"]);
        let record = rpc::get(&mut data, "key/7").await.unwrap();
        assert_eq!(record.value, b"5", "what is forgotten is not executed");
    });
}
