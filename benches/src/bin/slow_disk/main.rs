//! `lsm` on a slow disk, and `tiered` with the same slow disk behind a fast one: what a reader notices. The
//! table is in `docs/stores.md`.
//!
//! ```text
//! slow-disk [--store lsm|tiered|all] [--records N] [--memory-mb N] [--fast-mb N] [--iops N] [--mb-per-s N]
//!           [--warm-up-s N] [--seconds N] [--directory DIR]
//! ```
//! The slow disk is an ext4 file system on a loop device, throttled by the kernel's block layer to so many
//! reads and writes and so many MiB a second (control groups, version 1 or 2), for the node alone. The records are
//! loaded first. Then the node is started again, with a limit on its memory, page cache included, so that they do
//! not hide in it; and read from for a while, so that both stores' caches hold what they would hold after hours. Then the throttle is
//! set. All else is on `--directory`: log, fast directory, and of course the load
//! generator, `stateside bench`, is not throttled. Needs root, `losetup`, `mkfs.ext4` and `mount`.
//!
//! Version 1 of the control groups does not see writes that the kernel does in the background; reads, and what
//! a sync waits for, are throttled by either.

mod throttle;

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use serde_json::Value;
use stateside_e2e::{
    command_line::stateside,
    config::{Config, Store},
    exposition::Page,
    node_process::{Node, Site},
    until::until,
};

use throttle::{Groups, SlowDisk, succeed};

const VALUE_BYTES: u64 = 1_000;
const CONCURRENCY: &str = "32";

struct Arguments {
    stores: Vec<Store>,
    records: u64,
    memory_mb: u64,
    fast_mb: u64,
    iops: u64,
    mb_per_s: u64,
    warm_up_s: u64,
    seconds: u64,
    directory: PathBuf,
}

fn main() -> ExitCode {
    match arguments().and_then(|arguments| run(&arguments).map_err(|error| error.to_string())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("slow-disk: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Result<Arguments, String> {
    let mut arguments = Arguments {
        stores: vec![Store::Lsm, Store::Tiered],
        records: 1_000_000,
        memory_mb: 256,
        fast_mb: 512,
        iops: 500,
        mb_per_s: 60,
        warm_up_s: 20,
        seconds: 15,
        directory: std::env::temp_dir(),
    };
    let mut given = std::env::args().skip(1);
    while let Some(option) = given.next() {
        let value = given.next().ok_or_else(|| format!("{option} takes a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{option}: not a number"));
        match option.as_str() {
            "--store" => {
                arguments.stores.retain(|store| value == "all" || value == store.as_str());
                if arguments.stores.is_empty() {
                    return Err(format!("{value} is not measured here: lsm, tiered or all"));
                }
            }
            "--records" => arguments.records = number()?.max(1_000),
            "--memory-mb" => arguments.memory_mb = number()?,
            "--fast-mb" => arguments.fast_mb = number()?,
            "--iops" => arguments.iops = number()?.max(1),
            "--mb-per-s" => arguments.mb_per_s = number()?.max(1),
            "--warm-up-s" => arguments.warm_up_s = number()?,
            "--seconds" => arguments.seconds = number()?.max(1),
            "--directory" => arguments.directory = value.into(),
            _ => return Err(format!("unknown option {option}")),
        }
    }
    Ok(arguments)
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    println!(
        "{} records of {VALUE_BYTES} B; node with {} MiB of memory, page cache included; slow disk: {} reads and writes \
         and {} MiB a second; fast directory: {} MiB; {CONCURRENCY} calls at once, zipfian",
        arguments.records,
        arguments.memory_mb,
        arguments.iops,
        arguments.mb_per_s,
        arguments.fast_mb,
    );
    println!("| store | workload | calls/s | p50 | p99 | hit rate |\n|---|---|---|---|---|---|");
    for &store in &arguments.stores {
        measure(arguments, store)?;
    }
    Ok(())
}

fn measure(arguments: &Arguments, store: Store) -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir_in(&arguments.directory)?;
    let disk = SlowDisk::mount(folder.path(), arguments.records * VALUE_BYTES * 4 + (1 << 30))?;
    let data_dir = folder.path().join("data");
    let more = format!(
        "store.lsm = {{ cache_mb = 32, memtable_mb = 2 }}\n\
         store.tiered = {{ cache_mb = 32, memtable_mb = 2, slow_dir = \"{}\", fast_dir = \"{}\", \
         fast_capacity_mb = {}, index_mb = {} }}\n",
        disk.mounted_at().join("tiered").display(),
        folder.path().join("fast").display(),
        arguments.fast_mb,
        // 16 bytes for each record that there is room for.
        arguments.fast_mb / 64 + 1
    );
    let config = Config { store, log_segment_mb: 16, log_max_mb: 256, more, ..Config::default() };
    let site = Site::new(config).with_data_dir(data_dir.clone());
    if store == Store::Lsm {
        // Its database has its place in the data directory: moved to the slow disk, with a link to it.
        site.start().terminate();
        succeed(Command::new("mv").arg(data_dir.join("lsm")).arg(disk.mounted_at()))?;
        std::os::unix::fs::symlink(disk.mounted_at().join("lsm"), data_dir.join("lsm"))?;
    }
    let mut node = site.start();
    let records = arguments.records.to_string();
    let bench = |more: &[&str]| -> Result<Value, String> {
        let value_bytes = VALUE_BYTES.to_string();
        let mut line =
            vec!["bench", "-o", "json", "--records", &records, "--value-bytes", &value_bytes];
        line.extend(more);
        let ran = stateside(&site, &line);
        match ran.code {
            Some(0) => Ok(ran.json()),
            _ => Err(format!("{line:?}: {ran:?}")),
        }
    };
    let begun = Instant::now();
    // Batches; the short run behind the load is nothing that is looked at.
    bench(&["--batch", "50", "--concurrency", "4", "--duration", "1s", "--warm-up", "0s"])?;
    settle(&node);
    eprintln!("{}: loaded in {:.0} s", store.as_str(), begun.elapsed().as_secs_f64());
    node.terminate();
    drop(node);
    let groups = Groups::make(arguments.memory_mb << 20)?;
    let node = site.start();
    groups.take_in(node.pid())?;

    let seconds = format!("{}s", arguments.seconds);
    let calls = ["--no-load", "--concurrency", CONCURRENCY, "--warm-up", "0s", "--timeout", "60s"];
    if arguments.warm_up_s > 0 {
        let warm_up = format!("{}s", arguments.warm_up_s);
        let mut line = calls.to_vec();
        line.extend(["--workload", "c", "--duration", &warm_up]);
        row(store, "c, not throttled yet", || bench(&line), &node)?;
    }
    groups.throttle(&disk, arguments.iops, arguments.mb_per_s << 20)?;
    for workload in ["c", "b"] {
        let mut line = calls.to_vec();
        line.extend(["--workload", workload, "--duration", &seconds]);
        row(store, workload, || bench(&line), &node)?;
    }
    drop(node);
    drop(groups);
    Ok(())
}

fn row(
    store: Store,
    name: &str,
    bench: impl FnOnce() -> Result<Value, String>,
    node: &Node<'_>,
) -> Result<(), String> {
    let (fast_before, slow_before) = reads(node);
    let answer = bench()?;
    let (fast, slow) = reads(node);
    let (hits, misses) = (fast - fast_before, slow - slow_before);
    let hit_rate = match hits + misses {
        0.0 => "–".to_owned(),
        all => format!("{:.1} %", 100.0 * hits / all),
    };
    let run = &answer["runs"][0];
    if run["failed_calls"].as_u64() != Some(0) {
        return Err(format!("calls failed: {run}"));
    }
    let ms = |quantile: &str| run["latency_us"][quantile].as_f64().unwrap_or(f64::NAN) / 1e3;
    println!(
        "| `{}` | {name} | {:.0} | {:.2} ms | {:.1} ms | {hit_rate} |",
        store.as_str(),
        run["calls_per_second"].as_f64().unwrap_or(f64::NAN),
        ms("p50"),
        ms("p99"),
    );
    Ok(())
}

/// Reads that the two tiers answered.
fn reads(node: &Node<'_>) -> (f64, f64) {
    let page = Page::parse(&node.metrics()).unwrap_or_default();
    let of =
        |tier| page.sum("stateside_tiered_lookups_total", &[("purpose", "read"), ("tier", tier)]);
    (of("fast"), of("slow"))
}

/// Waits until the engine has written and merged what was loaded: its work stands still.
fn settle(node: &Node<'_>) {
    let work = || {
        let page = Page::parse(&node.metrics()).unwrap_or_default();
        page.sum("process_cpu_seconds_total", &[])
    };
    until("the load has settled", Duration::from_secs(120), || {
        let before = work();
        std::thread::sleep(Duration::from_secs(1));
        (work() - before < 0.3).then_some(())
    });
}
