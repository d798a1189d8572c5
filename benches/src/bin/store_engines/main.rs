//! Compares engines that a state store on disk can stand on: sled, fjall and redb, each by itself, on
//! YCSB's six workloads with more data than memory. The table is in `docs/stores.md`.
//!
//! ```text
//! store-engines sled|fjall|redb [--records N] [--memory-mb N] [--seconds N] [--directory DIR]
//! ```
//! Engines are used as a store uses them: writes in batches that are atomic but not synced one by one
//! (the log has them already), and a sync a second that makes everything so far durable. `--memory-mb` puts
//! the process into a memory cgroup (v1 or v2, needs root): page cache counts, so that
//! twice as much data cannot hide in it.

mod engines;
mod workloads;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use self::{
    engines::{Engine, open},
    workloads::{Choice, Operation, Workload, key},
};

/// Writes that become one atomic batch: what gathers while the batch before is written.
const BATCH: usize = 32;
const VALUE_BYTES: usize = 1_000;
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

struct Arguments {
    engine: String,
    records: u64,
    memory_mb: u64,
    seconds: u64,
    directory: PathBuf,
}

fn main() -> ExitCode {
    match arguments().and_then(|arguments| run(&arguments).map_err(|error| error.to_string())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("store-engines: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Result<Arguments, String> {
    let mut given = std::env::args().skip(1);
    let engine = given.next().ok_or("name an engine: sled, fjall or redb")?;
    let mut arguments = Arguments {
        engine,
        records: 512 << 10,
        memory_mb: 256,
        seconds: 10,
        directory: std::env::temp_dir(),
    };
    while let Some(option) = given.next() {
        let value = given.next().ok_or_else(|| format!("{option} takes a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{option}: not a number"));
        match option.as_str() {
            "--records" => arguments.records = number()?.max(1_000),
            "--memory-mb" => arguments.memory_mb = number()?,
            "--seconds" => arguments.seconds = number()?,
            "--directory" => arguments.directory = value.into(),
            _ => return Err(format!("unknown option {option}")),
        }
    }
    Ok(arguments)
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let Arguments { engine: name, records, memory_mb, seconds, directory } = arguments;
    let directory = tempfile::tempdir_in(directory)?;
    let cgroup = match memory_mb {
        0 => None,
        mb => Some(stateside_benches::memory_cgroup::MemoryCgroup::enter(mb << 20)?),
    };
    // A quarter to the engine's own cache: the rest is its buffers and the page cache.
    let engine = open(name, directory.path(), (memory_mb.max(&64) << 20) / 4)?;
    let mut values = Values::new();
    let load = load(&*engine, *records, &mut values)?;
    println!(
        "{name}: {records} records of {VALUE_BYTES} B, {memory_mb} MiB of memory; loaded in {:.1} s, {:.0} K/s, {} MiB on disk",
        load.as_secs_f64(),
        *records as f64 / load.as_secs_f64() / 1e3,
        disk_bytes(directory.path())? >> 20,
    );
    let mut choice = Choice::new(*records);
    for workload in Workload::ALL {
        let duration = Duration::from_secs(*seconds);
        let figures = measure(&*engine, workload, &mut choice, &mut values, duration)?;
        println!(
            "{name} {workload:?}: {figures}, {} MiB on disk",
            disk_bytes(directory.path())? >> 20
        );
    }
    drop(engine);
    let start = Instant::now();
    let engine = open(name, directory.path(), (memory_mb.max(&64) << 20) / 4)?;
    println!("{name}: opened again in {:.2} s", start.elapsed().as_secs_f64());
    drop(engine);
    drop(cgroup);
    Ok(())
}

/// Values that no compression makes smaller: what an engine gains by it depends on the application.
struct Values {
    random: fastrand::Rng,
    value: Vec<u8>,
}

impl Values {
    fn new() -> Self {
        Self { random: fastrand::Rng::with_seed(1), value: vec![0; VALUE_BYTES] }
    }

    fn next(&mut self) -> Vec<u8> {
        self.random.fill(&mut self.value);
        self.value.clone()
    }
}

fn load(
    engine: &dyn Engine,
    records: u64,
    values: &mut Values,
) -> Result<Duration, Box<dyn std::error::Error>> {
    let start = Instant::now();
    let mut synced = start;
    let mut batch = Vec::with_capacity(BATCH);
    for number in 0..records {
        batch.push((key(number), values.next()));
        if batch.len() == BATCH || number + 1 == records {
            engine.write(std::mem::take(&mut batch))?;
            if synced.elapsed() >= SYNC_INTERVAL {
                engine.sync()?;
                synced = Instant::now();
            }
        }
    }
    engine.sync()?;
    Ok(start.elapsed())
}

struct Figures {
    per_second: f64,
    read_p99: Duration,
    batch_p99: Duration,
    longest: Duration,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.1} K/s, read p99 {:.0} us, batch p99 {:.1} ms, longest {:.0} ms",
            self.per_second / 1e3,
            self.read_p99.as_secs_f64() * 1e6,
            self.batch_p99.as_secs_f64() * 1e3,
            self.longest.as_secs_f64() * 1e3,
        )
    }
}

fn measure(
    engine: &dyn Engine,
    workload: Workload,
    choice: &mut Choice,
    values: &mut Values,
    duration: Duration,
) -> Result<Figures, Box<dyn std::error::Error>> {
    let (mut reads, mut batches) = (Vec::new(), Vec::new());
    let mut batch = Vec::with_capacity(BATCH);
    let mut operations = 0u64;
    let start = Instant::now();
    let mut synced = start;
    while start.elapsed() < duration {
        let begun = Instant::now();
        operations += 1;
        match workload.next(choice) {
            // What is not handed to the engine yet, a store answers from its overlay.
            Operation::Read(number) if batch.iter().any(|(other, _)| *other == key(number)) => {}
            Operation::Read(number) => {
                engine.read(&key(number))?;
                reads.push(begun.elapsed());
            }
            Operation::Scan(number, count) => {
                engine.scan(&key(number), count)?;
                reads.push(begun.elapsed());
            }
            Operation::Write(number) => batch.push((key(number), values.next())),
            Operation::ReadThenWrite(number) => {
                engine.read(&key(number))?;
                reads.push(begun.elapsed());
                batch.push((key(number), values.next()));
            }
        }
        if batch.len() == BATCH {
            let begun = Instant::now();
            engine.write(std::mem::take(&mut batch))?;
            if synced.elapsed() >= SYNC_INTERVAL {
                engine.sync()?;
                synced = Instant::now();
            }
            batches.push(begun.elapsed());
        }
    }
    engine.write(batch)?;
    engine.sync()?;
    let elapsed = start.elapsed();
    let longest = reads.iter().chain(&batches).max().copied().unwrap_or_default();
    Ok(Figures {
        per_second: operations as f64 / elapsed.as_secs_f64(),
        read_p99: p99(&mut reads),
        batch_p99: p99(&mut batches),
        longest,
    })
}

fn p99(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}

/// Bytes that the files take: blocks, not lengths.
fn disk_bytes(path: &std::path::Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        // A file that the engine deleted meanwhile is none.
        let Ok(meta) = entry.metadata() else { continue };
        bytes += if meta.is_dir() { disk_bytes(&entry.path())? } else { meta.blocks() * 512 };
    }
    Ok(bytes)
}
