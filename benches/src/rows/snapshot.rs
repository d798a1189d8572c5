//! What snapshots do to the times of calls, at half the load that the node could bear: at full
//! load the queues hide it.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use stateside_e2e::{node_process::Node, rpc};
use stateside_proto::v1::{Ack, ListPartitionsRequest, SnapshotRequest};

use super::Context;
use crate::{
    calls::{GET, UPSERT, fill, get_one, numbered_key, upsert_one},
    comparison::Ratio,
    loads::{
        Latency, Load,
        h2load::{Call, H2load, Shape},
    },
    outcome::{Bar, Outcome},
    peers::{metric, stateside::site},
    process::{forget_peak, memory},
    statistics::{median, spread},
};

const RECORDS: usize = 10_000_000;
const SHAPE: Shape = Shape { connections: 8, streams: 32 };
const LOAD_SHARE: f64 = 0.5;
const P99_TIMES: f64 = 2.0;
const EXTRA_MEMORY_PERCENT: f64 = 10.0;
/// The log of the filling is longer than the node keeps: the snapshots that shorten it are over
/// when none has ended for this long.
const SETTLED: Duration = Duration::from_secs(2);
const SETTLED_LIMIT: Duration = Duration::from_secs(120);

/// Snapshots taken while a load ran.
#[derive(Clone, Copy, Default)]
struct Taken {
    count: u32,
    seconds: f64,
    bytes: u64,
}

/// Times of calls without snapshots and with them, round by round.
#[derive(Default)]
struct Times {
    quiet: Vec<Latency>,
    during: Vec<Latency>,
    taken: Taken,
}

pub(super) fn under_load(context: &Context<'_>) -> Result<Outcome, String> {
    let site = site();
    let node = site.start();
    fill(context.runtime, &site.data_address(), RECORDS)?;
    settle(&node)?;
    let mut outcome = Outcome::default();
    let key = numbered_key(7);
    let calls = [
        ("Get", Call::new(context.folder, "snapshot-get", GET, &get_one(&key))?),
        (
            "Upsert ack=memory",
            Call::new(context.folder, "snapshot-upsert", UPSERT, &upsert_one(&key, Ack::Memory))?,
        ),
    ];
    for (name, call) in calls {
        let mut load = call.load(&site.data_address(), SHAPE);
        let full = load.run(context.effort.seconds)?;
        load.calls_per_s = Some(LOAD_SHARE * full.calls as f64 / full.seconds);
        forget_peak(node.pid())?;
        let before = memory(node.pid())?.resident;
        let times = in_rounds(context, &node, &load)?;
        report(name, &load, &times, &mut outcome);
        let extra = memory(node.pid())?.peak.saturating_sub(before) as f64;
        let share = 100.0 * extra / before as f64;
        let what = format!("{name}: memory added meanwhile");
        outcome.bars.push(Bar::at_most(what, Some(share.into()), EXTRA_MEMORY_PERCENT, "%"));
    }
    outcome.notes.push(format!(
        "{RECORDS} records of 16 B + 100 B in 8 partitions; one partition after another is snapshot, without a pause; calls go to one record"
    ));
    Ok(outcome)
}

fn settle(node: &Node<'_>) -> Result<(), String> {
    let taken = || metric(&node.metrics(), "stateside_snapshots_total", |_| true);
    let begun = Instant::now();
    let (mut last, mut since) = (taken(), Instant::now());
    while since.elapsed() < SETTLED {
        if begun.elapsed() > SETTLED_LIMIT {
            return Err("the node does not stop taking snapshots by itself".to_owned());
        }
        thread::sleep(SETTLED / 10);
        let now = taken();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(())
}

fn in_rounds(context: &Context<'_>, node: &Node<'_>, load: &H2load) -> Result<Times, String> {
    let mut times = Times::default();
    let measure = || {
        let latency = load.latency(context.effort.seconds)?;
        latency.ok_or_else(|| "h2load wrote no times".to_owned())
    };
    for _ in 0..context.effort.rounds {
        times.quiet.push(measure()?);
        let stop = AtomicBool::new(false);
        let (during, taken) = thread::scope(|scope| {
            let taking = scope.spawn(|| take_snapshots(context, node, &stop));
            let during = measure();
            stop.store(true, Ordering::SeqCst);
            (during, taking.join().map_err(|_| "taking snapshots panicked".to_owned()))
        });
        times.during.push(during?);
        let taken = taken??;
        times.taken.count += taken.count;
        times.taken.seconds += taken.seconds;
        times.taken.bytes += taken.bytes;
    }
    Ok(times)
}

fn report(name: &str, load: &H2load, times: &Times, outcome: &mut Outcome) {
    let p99 = |latencies: &[Latency]| -> Vec<f64> {
        latencies.iter().map(|latency| latency.p99_us).collect()
    };
    let (quiet, during) = (p99(&times.quiet), p99(&times.during));
    let each: Vec<f64> = during.iter().zip(&quiet).map(|(with, without)| with / without).collect();
    let (lowest, highest) = spread(&each);
    let ratio = Ratio { value: median(&during) / median(&quiet), lowest, highest };
    let what = format!("{name}, {}: p99 during snapshots / p99 without", load.describe());
    outcome.bars.push(Bar::at_most(what, Some(ratio), P99_TIMES, "x"));
    outcome.figure(format!("{name}: p99 without snapshots"), median(&quiet), "us");
    outcome.figure(format!("{name}: p99 during snapshots"), median(&during), "us");
    let count = f64::from(times.taken.count.max(1));
    outcome.figure(format!("{name}: snapshots taken"), f64::from(times.taken.count), "");
    outcome.figure(format!("{name}: seconds of each"), times.taken.seconds / count, "s");
    outcome.figure(format!("{name}: size of each"), times.taken.bytes as f64 / 1e6 / count, "MB");
}

/// Snapshots one partition after another until told to stop; at least one.
fn take_snapshots(
    context: &Context<'_>,
    node: &Node<'_>,
    stop: &AtomicBool,
) -> Result<Taken, String> {
    context.runtime.block_on(async {
        let address = node.site().control_address();
        let mut control = rpc::control(&address).await.map_err(|error| error.to_string())?;
        let said = |status: tonic::Status| status.to_string();
        let list = control.list_partitions(ListPartitionsRequest {}).await.map_err(said)?;
        // Removed when the load is over: freeing a file's pages would take the CPU from someone.
        let folder = node.site().folder().join("under-load");
        let io = |error: std::io::Error| format!("{}: {error}", folder.display());
        fs::create_dir(&folder).map_err(io)?;
        let mut taken = Taken::default();
        for partition in list.into_inner().partitions.iter().cycle() {
            let path = folder.join(taken.count.to_string());
            let begun = Instant::now();
            let request =
                SnapshotRequest { partition: partition.id, path: path.to_string_lossy().into() };
            let done = control.snapshot(request).await.map_err(said)?.into_inner();
            taken.count += 1;
            taken.seconds += begun.elapsed().as_secs_f64();
            taken.bytes += done.bytes;
            if stop.load(Ordering::SeqCst) {
                break;
            }
        }
        fs::remove_dir_all(&folder).map_err(io)?;
        Ok(taken)
    })
}
