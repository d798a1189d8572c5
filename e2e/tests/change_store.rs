//! Changing a partition's store, through the command line, while clients read and write.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use serde_json::Value;
use stateside_e2e::{
    command_line::{Ran, stateside},
    config::{Config, Store},
    exposition::Page,
    node_process::Site,
    random::Random,
    rpc::{self, Data, Failure},
    until::until,
};
use stateside_proto::v1::{ChangeStoreRequest, GetRequest, RequestId, Session, UpsertRequest};
use stateside_router::key_hash;
use stateside_types::HashRange;
use tokio::{runtime::Runtime, task::JoinHandle};

/// The partition that changes.
const PARTITION: &str = "0";
const PARTITION_ID: u64 = 0;
const WRITERS: usize = 4;
const READERS: usize = 4;
const KEYS_PER_WRITER: usize = 2_000;
/// No read may take longer; a read that waits for a copy would.
const READ_LIMIT: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);
const SPLIT: &str = "partition.pipeline = [\"clock\", { stage = \"dispatcher\", mode = \"split\" }, \"log\", \"line-monitor\"]\n";
const UNLOGGED: &str = "partition.pipeline = [\"clock\", \"dispatcher\", \"line-monitor\"]\n";
/// So often a writer sends its last request again.
const REPEATED: u64 = 5;

fn json(site: &Site, arguments: &[&str]) -> Value {
    stateside(site, arguments.iter().copied().chain(["-o", "json"])).json()
}

fn refused(site: &Site, arguments: &[&str], reason: &str) {
    let ran: Ran = stateside(site, arguments.iter().copied().chain(["-o", "json"]));
    ran.refused(reason);
}

fn partition(site: &Site) -> Value {
    let list = json(site, &["partition", "list"]);
    let all = list["partitions"].as_array().unwrap();
    all.iter().find(|one| one["id"] == PARTITION_ID).unwrap().clone()
}

fn keys(site: &Site, count: usize) -> Vec<String> {
    let partition = partition(site);
    let hex = |name: &str| {
        u64::from_str_radix(partition[name].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    };
    let range = HashRange::new(hex("range_start"), hex("range_end")).unwrap();
    let all = (0..).map(|number| format!("key/{number}"));
    all.filter(|key| range.contains(key_hash(key.as_bytes()))).take(count).collect()
}

/// What clients were told.
#[derive(Default)]
struct Told {
    /// By key: the newest version that was acknowledged, and its value.
    records: Mutex<BTreeMap<String, (u64, String)>>,
    versions: Mutex<Vec<u64>>,
    /// By writer.
    last: Mutex<BTreeMap<u64, Last>>,
    reads: Mutex<(u64, Duration)>,
    writes: Mutex<(u64, Duration)>,
    stop: AtomicBool,
}

fn note(figures: &Mutex<(u64, Duration)>, took: Duration) {
    let mut figures = figures.lock().unwrap();
    *figures = (figures.0 + 1, figures.1.max(took));
}

/// Sends a write until it is taken: refused as overloaded it was not executed.
async fn send(data: &mut Data, request: &UpsertRequest) -> (u64, u64, Option<Session>) {
    loop {
        match data.upsert(request.clone()).await.map(tonic::Response::into_inner) {
            Ok(mut answer) => {
                let result = answer.results.remove(0);
                assert_eq!(result.error, None);
                return (result.version, result.timestamp, answer.session);
            }
            Err(status) => {
                let failure = Failure::from(&status);
                assert_eq!(failure.reason, "OVERLOADED", "{status}");
                tokio::time::sleep(failure.retry_after.unwrap()).await;
            }
        }
    }
}

/// Writes its keys one after the other, under request ids and in a session: no call may fail, what is
/// sent again is answered as before, and the session reads what it wrote.
async fn write(name: u64, address: String, keys: Vec<String>, told: Arc<Told>) {
    let mut random = Random::new(name + 1);
    let mut data = rpc::data(&address).await.unwrap();
    let mut number = told.last.lock().unwrap().get(&name).map_or(0, |last| last.number);
    let mut session = Session::default();
    while !told.stop.load(SeqCst) {
        number += 1;
        let key = &keys[random.below(keys.len() as u64) as usize];
        let value = format!("{:016x}{}", random.next_u64(), ".".repeat(100));
        let client = format!("writer {name}").into_bytes();
        let request = UpsertRequest {
            entries: vec![rpc::entry(key.as_str(), value.as_str())],
            request_id: Some(RequestId { client, number, settled: number.saturating_sub(1) }),
            session: Some(session.clone()),
            ..UpsertRequest::default()
        };
        let began = Instant::now();
        let (version, timestamp, after) = send(&mut data, &request).await;
        note(&told.writes, began.elapsed());
        session = after.unwrap();
        told.versions.lock().unwrap().push(version);
        let before = told.records.lock().unwrap().insert(key.clone(), (version, value));
        assert!(before.is_none_or(|(before, _)| before < version), "versions rise");
        let own = GetRequest {
            keys: vec![key.clone().into_bytes()],
            session: Some(session.clone()),
            ..GetRequest::default()
        };
        let record = data.get(own).await.unwrap().into_inner().records.remove(0);
        assert_eq!(record.version, version, "{key} is this writer's alone");
        let last = Last { number, request, version, timestamp };
        if number.is_multiple_of(REPEATED) {
            last.send_again(&mut data).await;
        }
        told.last.lock().unwrap().insert(name, last);
    }
}

/// A writer's last request, and its answer.
struct Last {
    number: u64,
    request: UpsertRequest,
    version: u64,
    timestamp: u64,
}

impl Last {
    async fn send_again(&self, data: &mut Data) {
        let (version, timestamp, _) = send(data, &self.request).await;
        assert_eq!((version, timestamp), (self.version, self.timestamp), "executed twice");
    }
}

/// Reads keys at random: each read succeeds and shows what was acknowledged before it began, or newer.
async fn read(address: String, keys: Vec<String>, told: Arc<Told>, mut random: Random) {
    let mut data = rpc::data(&address).await.unwrap();
    while !told.stop.load(SeqCst) {
        let key = &keys[random.below(keys.len() as u64) as usize];
        let known = told.records.lock().unwrap().get(key).map_or(0, |(version, _)| *version);
        let began = Instant::now();
        let record = rpc::get(&mut data, key).await.unwrap();
        note(&told.reads, began.elapsed());
        assert!(record.found && record.version >= known, "{key}: {record:?}, not {known}");
    }
}

fn start_load(
    runtime: &Runtime,
    site: &Site,
    keys: &[String],
    told: &Arc<Told>,
) -> Vec<JoinHandle<()>> {
    told.stop.store(false, SeqCst);
    let mut tasks = Vec::new();
    for (number, own) in keys.chunks(KEYS_PER_WRITER).enumerate() {
        let told = Arc::clone(told);
        tasks.push(runtime.spawn(write(number as u64, site.data_address(), own.to_vec(), told)));
    }
    for number in 0..READERS {
        let random = Random::new(number as u64 + 100);
        let (keys, told) = (keys.to_vec(), Arc::clone(told));
        tasks.push(runtime.spawn(read(site.data_address(), keys, told, random)));
    }
    tasks
}

fn stop_load(runtime: &Runtime, tasks: Vec<JoinHandle<()>>, told: &Told) {
    told.stop.store(true, SeqCst);
    for task in tasks {
        runtime.block_on(task).unwrap();
    }
}

/// Every record is the newest that was acknowledged, each version was given once, and what is sent
/// again is answered as before.
fn check(runtime: &Runtime, site: &Site, told: &Told, first: u64) {
    runtime.block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        let acknowledged: Vec<_> = told.records.lock().unwrap().clone().into_iter().collect();
        for batch in acknowledged.chunks(500) {
            let keys = batch.iter().map(|(key, _)| key.clone().into_bytes()).collect();
            let request = GetRequest { keys, ..GetRequest::default() };
            let records = data.get(request).await.unwrap().into_inner().records;
            assert_eq!(records.len(), batch.len());
            for (record, (key, (version, value))) in records.iter().zip(batch) {
                assert_eq!((record.version, &*record.value), (*version, value.as_bytes()), "{key}");
            }
        }
        let lasts = std::mem::take(&mut *told.last.lock().unwrap());
        for last in lasts.values() {
            last.send_again(&mut data).await;
        }
        *told.last.lock().unwrap() = lasts;
    });
    let mut versions = told.versions.lock().unwrap().clone();
    versions.sort_unstable();
    let all: Vec<u64> = (first..).take(versions.len()).collect();
    assert!(versions == all, "versions from {first} on have gaps, or were given twice");
}

#[test]
fn reads_and_writes_go_on_while_the_store_changes_and_nothing_is_lost() {
    changes_under_load(Log::Kept, "", &EVERY_STORE);
}

#[test]
fn in_split_mode_too_the_store_changes_under_readers_writers_and_their_sessions() {
    changes_under_load(Log::Kept, SPLIT, &EVERY_STORE);
}

#[test]
fn without_a_log_the_store_changes_as_well_and_an_orderly_end_keeps_everything() {
    changes_under_load(Log::None, UNLOGGED, &[Store::Lsm, Store::Tiered, Store::Memory]);
}

/// Back to where it began.
const EVERY_STORE: [Store; 5] =
    [Store::Lsm, Store::MemoryOrdered, Store::Tiered, Store::Sled, Store::Memory];

/// What the partition's pipeline has.
#[derive(Clone, Copy, PartialEq)]
enum Log {
    /// What was acknowledged survives kill -9.
    Kept,
    /// It survives an orderly end.
    None,
}

fn changes_under_load(log: Log, more: &str, stores: &[Store]) {
    let more = more.to_owned();
    let site = Site::new(Config {
        cores: 2,
        ack: if log == Log::Kept { "durable" } else { "memory" },
        log_segment_mb: 8,
        log_max_mb: 24,
        more,
        ..Config::default()
    });
    let runtime = Runtime::new().unwrap();
    let mut node = site.start();
    let keys = keys(&site, WRITERS * KEYS_PER_WRITER);
    let told = Arc::new(Told::default());
    runtime.block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        for batch in keys.chunks(500) {
            let entries = batch.iter().map(|key| rpc::entry(key.as_str(), key.as_str()));
            let results = rpc::put_all(&mut data, entries.collect()).await.unwrap();
            for (key, result) in batch.iter().zip(results) {
                let record = (result.version, key.clone());
                told.records.lock().unwrap().insert(key.clone(), record);
            }
        }
    });
    stateside(&site, ["upsert", keys[0].as_str(), "v", "--ttl", "1h"]).ok();
    let moment = json(&site, &["get", &keys[0]])["records"][0]["expire_at_unix_ms"].clone();
    assert!(moment.is_number());
    let (keys, session) = (&keys[1..], &keys[0]);
    told.records.lock().unwrap().remove(session);
    let first = partition(&site)["sequence"].as_u64().unwrap() + 1;
    for &store in stores {
        let tasks = start_load(&runtime, &site, keys, &told);
        let changed = json(&site, &["partition", "change-store", PARTITION, store.as_str()]);
        assert_eq!(changed["partition"]["store"], store.as_str(), "{changed}");
        assert!(changed["records"].as_u64().unwrap() >= keys.len() as u64, "{changed}");
        // For a while in the new store too.
        let written = told.versions.lock().unwrap().len();
        until("more is written", PATIENCE, || {
            (told.versions.lock().unwrap().len() > written + 200).then_some(())
        });
        stop_load(&runtime, tasks, &told);
        let (reads, longest_read) = std::mem::take(&mut *told.reads.lock().unwrap());
        let (writes, longest_write) = std::mem::take(&mut *told.writes.lock().unwrap());
        let page = Page::parse(&node.metrics()).unwrap();
        let switch = page.sum("stateside_store_switch_duration_seconds_sum", &[]);
        println!(
            "to {}: {} ms, {reads} reads, the longest {longest_read:?}; {writes} writes, the longest {longest_write:?}; switches so far {switch} s",
            store.as_str(),
            changed["duration_ms"]
        );
        assert!(longest_read < READ_LIMIT, "a read took {longest_read:?}");
        check(&runtime, &site, &told, first);
        let record = &json(&site, &["get", session])["records"][0];
        assert_eq!(record["expire_at_unix_ms"], moment, "the moment has moved along");
        no_leftovers(&site, store);
        match log {
            Log::Kept => drop(node.kill()),
            Log::None => assert!(node.terminate().success()),
        }
        drop(node);
        node = site.start();
        assert_eq!(partition(&site)["store"], store.as_str(), "after a restart");
        check(&runtime, &site, &told, first);
    }
}

/// Only a store in memory has snapshots in the partition's folder; nothing is half done.
fn no_leftovers(site: &Site, store: Store) {
    let folder = site.data_dir().join("partitions").join(PARTITION);
    let is_in_memory = matches!(store, Store::Memory | Store::MemoryOrdered);
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    for name in names.map(|name| name.into_string().unwrap()) {
        assert!(name.ends_with(".snapshot") && is_in_memory, "{name} is left over");
    }
}

#[test]
fn what_cannot_be_changed_is_refused_and_stays_as_it_is() {
    let site = Site::new(Config { store: Store::Sled, memory_limit_mb: 40, ..Config::default() });
    let mut node = site.start();
    let declared = fs::read_to_string(site.data_dir().join("registry.toml")).unwrap();
    fill(&site);
    let change = |store: &'static str| ["partition", "change-store", PARTITION, store];
    refused(&site, &change("sled"), "STORE_UNCHANGED");
    refused(&site, &["partition", "change-store", "99", "lsm"], "UNKNOWN_PARTITION");
    refused(&site, &change("counters"), "INVALID_ARGUMENT");
    stateside(&site, change("tape")).failed_with(2, &["tape"]);
    Runtime::new().unwrap().block_on(async {
        let mut control = rpc::control(&site.control_address()).await.unwrap();
        let request = ChangeStoreRequest { partition: 0, store: "tape".to_owned() };
        let status = control.change_store(request).await.unwrap_err();
        assert_eq!(rpc::reason(&status), "INVALID_ARGUMENT", "{status}");
    });
    refused(&site, &change("memory"), "MEMORY_FULL");
    assert_eq!(partition(&site)["store"], "sled");
    let now = fs::read_to_string(site.data_dir().join("registry.toml")).unwrap();
    assert_eq!(now, declared, "a refused change is taken back");

    // One at a time; what is under way when the node stops goes on when it is back.
    std::thread::scope(|scope| {
        // How the call ends depends on how far the change got; how the change ends does not.
        scope.spawn(|| stateside(&site, change("lsm")));
        let is_under_way = || (!partition(&site)["store_change"].is_null()).then_some(());
        until("the change is under way", PATIENCE, is_under_way);
        refused(&site, &change("memory-ordered"), "PARTITION_BUSY");
        refused(&site, &["partition", "remove", PARTITION, "--yes"], "PARTITION_BUSY");
        assert!(node.terminate().success());
    });
    drop(node);
    let _node = site.start();
    until("the change has ended", PATIENCE, || (partition(&site)["store"] == "lsm").then_some(()));
    until("and its files are gone", PATIENCE, || {
        partition(&site)["store_change"].is_null().then_some(())
    });
    no_leftovers(&site, Store::Lsm);
    assert_eq!(partition(&site)["records"], RECORDS);
}

const RECORDS: usize = 50_000;

/// More than the memory limit lets a store in memory hold.
fn fill(site: &Site) {
    let keys = keys(site, RECORDS);
    Runtime::new().unwrap().block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        for batch in keys.chunks(500) {
            let entries = batch.iter().map(|key| rpc::entry(key.as_str(), vec![b'x'; 1_000]));
            rpc::put_all(&mut data, entries.collect()).await.unwrap();
        }
    });
    until("all is on disk", PATIENCE, || (partition(site)["records"] == RECORDS).then_some(()));
}
