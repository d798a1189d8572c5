//! The figures that a release states: replay and cold start with a million records, bytes of
//! memory per record, sizes and build time.

use std::{fs, path::Path, process::Command, time::Instant};

use stateside_e2e::{
    config::{Config, Store},
    node_process::{Site, binary},
    requirements::workspace_root,
    rpc,
};
use stateside_proto::v1::{ListPartitionsRequest, StatusRequest};
use tokio::runtime::Runtime;

use crate::{
    calls::{self, BATCH_PAIRS},
    outcome::{Bar, Outcome},
    peers::stateside::site_with,
    statistics::median,
};

const RECORDS: usize = 1_000_000;
const STARTS: usize = 3;

/// A million records are replayed in half a second.
const REPLAYED_PER_S: f64 = 2_000_000.0;
const BYTES_PER_RECORD: f64 = 48.0;

/// Measures everything but the build time.
///
/// # Errors
/// A sentence: something could not be run.
pub fn run(runtime: &Runtime) -> Result<Outcome, String> {
    let mut outcome = Outcome::default();
    from_log(runtime, &mut outcome)?;
    from_snapshots(runtime, &mut outcome)?;
    binary_size(&mut outcome)?;
    outcome.notes.push(format!("starts are medians of {STARTS}, each after kill -9"));
    Ok(outcome)
}

/// One core, pinned, as in the comparison.
fn site(config: Config) -> Site {
    site_with(Config { cores: 1, store: Store::Memory, ..config })
}

/// Restart after kill -9 when nothing but the log has the records.
fn from_log(runtime: &Runtime, outcome: &mut Outcome) -> Result<(), String> {
    let site = site(Config { log_segment_mb: 64, log_max_mb: 8_192, ..Config::default() });
    let empty = median_start(&site)?;
    let mut node = site.start();
    let written = fill(runtime, &site)?;
    let per_record = memory_per_record(runtime, &site)?;
    node.kill();
    drop(node);
    let start = median_start(&site)?;
    let replay = RECORDS as f64 / (start - empty).max(0.001);
    outcome.figure("start, empty", empty, "s");
    outcome.figure(format!("durable writes in batches of {BATCH_PAIRS}"), written, "records/s");
    outcome.figure(format!("start, {RECORDS} records in the log"), start, "s");
    outcome.bars.extend([
        Bar::at_least("records replayed per second", Some(replay.into()), REPLAYED_PER_S, "/s"),
        Bar::at_most(
            "memory of the store per record over key and value",
            Some(per_record.into()),
            BYTES_PER_RECORD,
            "B",
        ),
    ]);
    Ok(())
}

/// Restart when background snapshots have most of the records.
fn from_snapshots(runtime: &Runtime, outcome: &mut Outcome) -> Result<(), String> {
    let site = site(Config { log_segment_mb: 8, log_max_mb: 16, ..Config::default() });
    let mut node = site.start();
    fill(runtime, &site)?;
    node.kill();
    drop(node);
    let start = median_start(&site)?;
    outcome.figure(format!("start, {RECORDS} records in snapshots and log"), start, "s");
    Ok(())
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
    calls::fill(runtime, &site.data_address(), RECORDS)?;
    Ok(RECORDS as f64 / begun.elapsed().as_secs_f64())
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

/// As built, and without symbols as a package would ship it.
fn binary_size(outcome: &mut Outcome) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let megabytes = |path: &Path| {
        fs::metadata(path).map(|file| file.len() as f64 / 1e6).map_err(|error| error.to_string())
    };
    let stripped = folder.path().join("stateside.stripped");
    let made = Command::new("strip").arg("-o").arg(&stripped).arg(binary()).status();
    outcome.figure("binary with symbols", megabytes(&binary())?, "MB");
    // Without binutils there is no strip, and no figure.
    if made.is_ok_and(|status| status.success()) {
        outcome.figure("binary stripped", megabytes(&stripped)?, "MB");
    }
    Ok(())
}

/// Builds the release binary from nothing, into a folder of its own.
///
/// # Errors
/// It does not build.
pub fn clean_build() -> Result<Outcome, String> {
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
    let mut outcome = Outcome::default();
    outcome.figure("clean release build", begun.elapsed().as_secs_f64(), "s");
    Ok(outcome)
}
