//! Compares the state stores through the real binary and its own load generator, with more data than
//! memory. The table is in `docs/stores.md`.
//!
//! ```text
//! store-table [STORE ...] [--records N] [--memory-mb N] [--seconds N] [--config LINE]...
//! ```
//! The node has one core and runs in a memory control group, page cache included (needs root): twice as
//! much data cannot hide in it. A store in memory gets the room that it needs, and says so in its row.
//! `stateside bench` runs on the other CPU. One line of the table a store; all else on stderr.

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use serde_json::Value;
use stateside_benches::{memory_cgroup::MemoryCgroup, peers::stateside::config, process};
use stateside_e2e::{
    config::{Config, Store},
    node_process::{Node, Site, binary},
    until::until,
};

const VALUE_BYTES: u64 = 1_000;
const KEY_BYTES: u64 = 16;
/// Calls under way: enough to keep the disk busy, few enough that a latency is the store's.
const CONCURRENCY: &str = "32";
/// Each with its seed: a seed makes the same calls again, and these would be in the page cache.
const WORKLOADS: [(&str, &str); 4] = [("c", "11"), ("b", "12"), ("a", "13"), ("f", "14")];
/// How long a store may take until what it was given is in its files.
const SETTLE: Duration = Duration::from_secs(60);

struct Arguments {
    stores: Vec<Store>,
    records: u64,
    memory_mb: u64,
    seconds: u64,
    more: String,
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!("store-table: {problem}");
            return ExitCode::from(2);
        }
    };
    println!(
        "| store | memory, MiB | load | C | p99 | B | p99 of reads | A | p99 of reads | F | disk per byte | most memory, MiB |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|"
    );
    for store in &arguments.stores {
        match measure(*store, &arguments) {
            Ok(row) => println!("{row}"),
            Err(problem) => {
                eprintln!("store-table: {}: {problem}", store.as_str());
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn arguments() -> Result<Arguments, String> {
    let mut arguments = Arguments {
        stores: Vec::new(),
        records: 512 << 10,
        memory_mb: 256,
        seconds: 10,
        more: String::new(),
    };
    let mut given = std::env::args().skip(1);
    while let Some(word) = given.next() {
        let mut value = || given.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: String| text.parse().map_err(|_| format!("`{text}` is no number"));
        match word.as_str() {
            "--records" => arguments.records = number(value()?)?,
            "--memory-mb" => arguments.memory_mb = number(value()?)?,
            "--seconds" => arguments.seconds = number(value()?)?,
            "--config" => arguments.more += &format!("{}\n", value()?),
            name => match Store::ALL.into_iter().find(|store| store.as_str() == name) {
                Some(store) => arguments.stores.push(store),
                None => return Err(format!("`{name}` is neither a store nor an option")),
            },
        }
    }
    if arguments.stores.is_empty() {
        arguments.stores = Store::ALL.to_vec();
    }
    Ok(arguments)
}

/// Loads a node with the store and puts it through the workloads; a row of the table.
fn measure(store: Store, arguments: &Arguments) -> Result<String, String> {
    let data_bytes = arguments.records * (KEY_BYTES + VALUE_BYTES);
    let in_memory = matches!(store, Store::Memory | Store::MemoryOrdered);
    // Records, what each costs beside them, the log's page cache, and the node itself.
    let memory_mb = if in_memory { (data_bytes >> 20) * 3 / 2 + 512 } else { arguments.memory_mb };
    let group = MemoryCgroup::new(memory_mb << 20).map_err(|error| {
        format!("no memory control group (is this root, and are they mounted?): {error}")
    })?;
    let mut site =
        Site::new(Config { store, ack: "durable", more: arguments.more.clone(), ..config() });
    // Joins the group, then becomes the node.
    let join =
        format!("echo $$ > {} && exec taskset -c {} \"$@\"", group.procs(), process::SERVER_CPU);
    site.prefix = ["sh", "-c", &join, "sh"].map(str::to_owned).to_vec();
    let mut node = site.start();
    eprintln!("{}: loading {} records", store.as_str(), arguments.records);
    let loaded = bench(&site, arguments, &["--workload", "c", "--duration", "1s", "--batch", "8"])?;
    settle(&node);
    let mut cells = vec![
        store.as_str().to_owned(),
        memory_mb.to_string(),
        thousands(&loaded["load"]["records_per_second"]),
    ];
    let duration = format!("{}s", arguments.seconds);
    for (workload, seed) in WORKLOADS {
        eprintln!("{}: workload {workload}", store.as_str());
        let ran = bench(
            &site,
            arguments,
            &["--no-load", "--workload", workload, "--seed", seed, "--duration", &duration],
        )?;
        let run = &ran["runs"][0];
        cells.push(thousands(&run["calls_per_second"]));
        if workload != "f" {
            cells.push(p99_of_reads(run));
        }
    }
    settle(&node);
    let disk = disk_bytes(site.data_dir(), store);
    cells.push(format!("{:.2}", disk as f64 / data_bytes as f64));
    cells.push((group.peak_bytes() >> 20).to_string());
    node.terminate();
    drop(node);
    Ok(format!("| {} |", cells.join(" | ")))
}

/// Runs the load generator on the other CPU; what it found.
fn bench(site: &Site, arguments: &Arguments, more: &[&str]) -> Result<Value, String> {
    let mut command = process::pinned(process::LOAD_CPU, binary());
    command
        .args(["bench", "-o", "json", "--concurrency", CONCURRENCY, "--connections", "4"])
        .args(["--threads", "1", "--endpoint", &site.data_address()])
        .args(["--records", &arguments.records.to_string()])
        .args(["--value-bytes", &VALUE_BYTES.to_string(), "--key-bytes", &KEY_BYTES.to_string()])
        .args(more);
    let output = run(&mut command)?;
    serde_json::from_slice(&output).map_err(|error| format!("not JSON: {error}"))
}

fn run(command: &mut Command) -> Result<Vec<u8>, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{:?}: {}: {said}", command.get_program(), output.status));
    }
    Ok(output.stdout)
}

/// Waits until stores and log have written what they were given: nothing is written any more.
fn settle(node: &Node<'_>) {
    let written = || process::disk_bytes_written(node.pid()).unwrap_or_default();
    let mut before = written();
    let mut quiet = 0;
    until("the disk is quiet", SETTLE, || {
        let now = written();
        quiet = if now == before { quiet + 1 } else { 0 };
        before = now;
        (quiet > 100).then_some(())
    });
}

/// What the store's files take; for a store in memory its snapshots and the log, which are its files.
fn disk_bytes(data_dir: &Path, store: Store) -> u64 {
    match store {
        Store::Memory | Store::MemoryOrdered => {
            allocated(&data_dir.join("partitions")) + allocated(&data_dir.join("log"))
        }
        other => allocated(&data_dir.join(other.as_str())),
    }
}

fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => allocated(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

fn thousands(value: &Value) -> String {
    value.as_f64().map_or_else(|| "?".to_owned(), |rate| format!("{:.1}", rate / 1_000.0))
}

fn p99_of_reads(run: &Value) -> String {
    let us = run["operations"]["read"]["latency_us"]["p99"].as_f64();
    us.map_or_else(|| "?".to_owned(), |us| format!("{us:.0} us"))
}
