//! The figures that a release states: replay and cold start with a million records, bytes of
//! memory per record, snapshots and what they do to latency, sizes and build time.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use stateside_e2e::{
    config::{Config, Store},
    node_process::{Node, Site, binary},
    requirements::{profile_folder, workspace_root},
    rpc,
};
use stateside_proto::v1::{
    Ack, GetRequest, ListPartitionsRequest, SnapshotRequest, StatusRequest, UpsertEntry,
    UpsertRequest,
};
use tokio::runtime::Runtime;

use crate::{
    h2load::{Load, Shape, call_times_us},
    process::SERVER_CPU,
    statistics::{median, percentile},
};

const RECORDS: usize = 1_000_000;
const VALUE_BYTES: usize = 100;
const BATCH: usize = 1_000;
/// Batches under way while the records are written.
const WRITERS: usize = 8;
/// Before what was refused as `OVERLOADED` is sent again.
const BACK_OFF: Duration = Duration::from_millis(5);
const STARTS: usize = 3;
const LATENCY_SECONDS: u32 = 5;

/// Measures and prints everything but the build time; answers it as JSON.
///
/// # Errors
/// A sentence: something could not be run.
pub fn run(folder: &Path) -> Result<Value, String> {
    let runtime = Runtime::new().map_err(|error| error.to_string())?;
    let from_log = from_log(&runtime)?;
    let from_snapshots = from_snapshots(&runtime)?;
    let snapshots = snapshots_under_load(&runtime, folder)?;
    Ok(json!({
        "records": RECORDS,
        "from_log": from_log,
        "from_snapshots": from_snapshots,
        "snapshots": snapshots,
        "binary": binary_size(folder)?,
    }))
}

/// One core, pinned, as in the comparison.
fn site(config: Config) -> Site {
    let mut site = Site::new(Config { cores: 1, store: Store::Memory, ..config });
    site.prefix = ["taskset", "-c", SERVER_CPU].map(str::to_owned).to_vec();
    site
}

/// Restart after kill -9 when nothing but the log has the records.
fn from_log(runtime: &Runtime) -> Result<Value, String> {
    let site = site(Config { log_segment_mb: 64, log_max_mb: 8_192, ..Config::default() });
    let empty = median_start(&site)?;
    let mut node = site.start();
    let written = fill(runtime, &site)?;
    let per_record = memory_per_record(runtime, &site)?;
    node.kill();
    drop(node);
    let start = median_start(&site)?;
    let replay = RECORDS as f64 / (start - empty).max(0.001);
    println!("cold start, empty                  {empty:.3} s");
    println!("durable writes in batches of {BATCH}  {written:.0} records/s");
    println!("memory per record beyond key+value {per_record:.1} B");
    println!("cold start, {RECORDS} records in log {start:.3} s, {replay:.0} records/s replayed");
    Ok(json!({
        "cold_start_empty_s": empty,
        "records_written_per_s": written,
        "memory_bytes_per_record": per_record,
        "cold_start_s": start,
        "records_replayed_per_s": replay,
    }))
}

/// Restart when background snapshots have most of the records.
fn from_snapshots(runtime: &Runtime) -> Result<Value, String> {
    let site = site(Config { log_segment_mb: 8, log_max_mb: 16, ..Config::default() });
    let mut node = site.start();
    fill(runtime, &site)?;
    node.kill();
    drop(node);
    let start = median_start(&site)?;
    println!("cold start, {RECORDS} records, snapshots and log {start:.3} s");
    Ok(json!({ "cold_start_s": start }))
}

/// Seconds from launch to ready; each start is killed again.
fn median_start(site: &Site) -> Result<f64, String> {
    let mut seconds = Vec::new();
    for _ in 0..STARTS {
        let begun = Instant::now();
        let mut node = site.start();
        seconds.push(begun.elapsed().as_secs_f64());
        node.kill();
    }
    Ok(median(&seconds))
}

/// Writes a million records; answers records per second.
fn fill(runtime: &Runtime, site: &Site) -> Result<f64, String> {
    let begun = Instant::now();
    let address = site.data_address();
    let tasks: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let address = address.clone();
            runtime.spawn(async move {
                let mut data = rpc::data(&address).await.map_err(|error| error.to_string())?;
                for batch in (writer..RECORDS / BATCH).step_by(WRITERS) {
                    while !write(&mut data, batch).await? {
                        tokio::time::sleep(BACK_OFF).await;
                    }
                }
                Ok::<_, String>(())
            })
        })
        .collect();
    for task in tasks {
        runtime.block_on(task).map_err(|error| error.to_string())??;
    }
    Ok(RECORDS as f64 / begun.elapsed().as_secs_f64())
}

/// False when the node asks to come back later with all of the batch or some of it: written anew
/// as a whole, it is the same.
async fn write(data: &mut rpc::Data, batch: usize) -> Result<bool, String> {
    let failures: Vec<(String, String)> = match data.upsert(batch_request(batch)).await {
        Ok(answer) => {
            let errors = answer.into_inner().results.into_iter().filter_map(|result| result.error);
            errors.map(|error| (error.reason, error.message)).collect()
        }
        Err(status) => vec![(rpc::reason(&status), status.message().to_owned())],
    };
    match failures.iter().find(|(reason, _)| reason != rpc::OVERLOADED) {
        Some((_, message)) => Err(format!("while filling: {message}")),
        None => Ok(failures.is_empty()),
    }
}

fn key(number: usize) -> Vec<u8> {
    format!("key-{number:012}").into_bytes()
}

fn batch_request(batch: usize) -> UpsertRequest {
    let numbers = batch * BATCH..(batch + 1) * BATCH;
    let entry = |number| UpsertEntry {
        key: key(number),
        value: vec![b'v'; VALUE_BYTES],
        ..UpsertEntry::default()
    };
    UpsertRequest { entries: numbers.map(entry).collect(), ..UpsertRequest::default() }
}

fn memory_per_record(runtime: &Runtime, site: &Site) -> Result<f64, String> {
    runtime.block_on(async {
        let mut control = rpc::control(&site.control_address()).await.map_err(|e| e.to_string())?;
        let status =
            control.status(StatusRequest {}).await.map_err(|e| e.to_string())?.into_inner();
        let list =
            control.list_partitions(ListPartitionsRequest {}).await.map_err(|e| e.to_string())?;
        let payload: u64 = list.into_inner().partitions.iter().map(|p| p.payload_bytes).sum();
        Ok((status.memory_bytes as f64 - payload as f64) / status.records as f64)
    })
}

/// Snapshots of all partitions, one after another and again, while calls are made.
fn snapshots_under_load(runtime: &Runtime, folder: &Path) -> Result<Value, String> {
    let site = site(Config { ack: "memory", log_max_mb: 8_192, ..Config::default() });
    let node = site.start();
    fill(runtime, &site)?;
    let get = GetRequest { keys: vec![key(7)], routing_key: Vec::new() };
    let upsert = UpsertRequest {
        entries: vec![stateside_e2e::rpc::entry(key(7), vec![b'w'; VALUE_BYTES])],
        ack: Ack::Memory.into(),
        ..UpsertRequest::default()
    };
    let mut results = Vec::new();
    for (name, load) in [
        ("Get", Load::new(folder, "p99-get", "stateside.v1.DataPlane/Get", &get)?),
        (
            "Upsert ack=memory",
            Load::new(folder, "p99-upsert", "stateside.v1.DataPlane/Upsert", &upsert)?,
        ),
    ] {
        let quiet = p99(&load, &site, folder)?;
        let stop = std::sync::atomic::AtomicBool::new(false);
        let (during, snapshots) = std::thread::scope(|scope| {
            let taking = scope.spawn(|| take_snapshots(runtime, &node, &stop));
            let during = p99(&load, &site, folder);
            stop.store(true, std::sync::atomic::Ordering::SeqCst);
            (during, taking.join().expect("taking snapshots does not panic"))
        });
        let (during, (count, seconds, bytes)) = (during?, snapshots?);
        let each = seconds / f64::from(count.max(1));
        println!(
            "{name}, 8 x 32: p99 {quiet} us, {during} us during snapshots ({:.2}x); {count} snapshots, {each:.3} s and {:.1} MB each",
            during as f64 / quiet as f64,
            bytes as f64 / 1e6 / f64::from(count.max(1)),
        );
        results.push(json!({
            "calls": name, "p99_us": quiet, "p99_us_during_snapshots": during,
            "snapshots": count, "seconds_each": each,
        }));
    }
    Ok(Value::Array(results))
}

fn p99(load: &Load, site: &Site, folder: &Path) -> Result<u64, String> {
    let log = folder.join("times.log");
    let _ = fs::remove_file(&log);
    let shape = Shape { connections: 8, streams: 32 };
    load.run(&site.data_address(), shape, LATENCY_SECONDS, Some(&log))?;
    let mut times = call_times_us(&log)?;
    if times.is_empty() {
        return Err("h2load wrote no times".to_owned());
    }
    Ok(percentile(&mut times, 0.99))
}

/// Snapshots one partition after another until told to stop: number, seconds, bytes.
fn take_snapshots(
    runtime: &Runtime,
    node: &Node<'_>,
    stop: &std::sync::atomic::AtomicBool,
) -> Result<(u32, f64, u64), String> {
    runtime.block_on(async {
        let address = node.site().control_address();
        let mut control = rpc::control(&address).await.map_err(|e| e.to_string())?;
        let list =
            control.list_partitions(ListPartitionsRequest {}).await.map_err(|e| e.to_string())?;
        let (mut count, mut seconds, mut bytes) = (0, 0.0, 0);
        for partition in list.into_inner().partitions.iter().cycle() {
            if stop.load(std::sync::atomic::Ordering::SeqCst) {
                break;
            }
            let path = node.site().folder().join("under-load.snapshot");
            let _ = fs::remove_file(&path);
            let path = path.to_string_lossy().into_owned();
            let begun = Instant::now();
            let request = SnapshotRequest { partition: partition.id, path };
            let done = control.snapshot(request).await.map_err(|e| e.to_string())?.into_inner();
            count += 1;
            seconds += begun.elapsed().as_secs_f64();
            bytes += done.bytes;
        }
        Ok((count, seconds, bytes))
    })
}

/// As built, and without symbols as a package would ship it.
fn binary_size(folder: &Path) -> Result<Value, String> {
    let size = |path: &Path| fs::metadata(path).map(|m| m.len()).map_err(|error| error.to_string());
    let stripped = folder.join("stateside.stripped");
    let made = Command::new("strip").arg("-o").arg(&stripped).arg(binary()).status();
    let built = size(&profile_folder().join("stateside"))?;
    let stripped = match made {
        Ok(status) if status.success() => Some(size(&stripped)?),
        _ => None,
    };
    let shown = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    println!("binary {}, stripped {}", shown(built), stripped.map_or("-".to_owned(), shown));
    Ok(json!({ "bytes": built, "stripped_bytes": stripped }))
}

/// Builds the release binary from nothing, into a folder of its own.
///
/// # Errors
/// It does not build.
pub fn clean_build() -> Result<Value, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let begun = Instant::now();
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(workspace_root())
        .args(["build", "--release", "--locked", "--quiet", "--package", "stateside-node"])
        .env("CARGO_TARGET_DIR", folder.path())
        .status()
        .map_err(|error| format!("cargo did not start: {error}"))?;
    if !status.success() {
        return Err(format!("the clean build failed: {status}"));
    }
    let took: Duration = begun.elapsed();
    println!("clean release build {:.0} s", took.as_secs_f64());
    Ok(json!({ "seconds": took.as_secs_f64() }))
}
