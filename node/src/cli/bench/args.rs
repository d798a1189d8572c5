//! The flags of `bench`, and what they mean together.

use std::{path::PathBuf, time::Duration};

use clap::{ArgGroup, Args};
use serde_json::{Map, Value, json};
use stateside_client::Options;
use stateside_types::limits::{
    BATCH_ENTRIES_MAX, BENCH_CALLS_MAX, BENCH_CONNECTIONS_MAX, BENCH_RECORDS_MAX,
    BENCH_THREADS_MAX, BENCH_VALUE_BYTES_MAX, KEY_BYTES_MAX,
};

use super::{
    measure::Extent,
    records::Records,
    schedule::{Arrivals, Pace},
    steps::Steps,
    workload::{Distribution, Mix, Shape, Workload},
};
use crate::{
    cli::{
        connection::{AckArgs, DataArgs},
        failure::Failure,
        quantity::{parse_duration, parse_duration_or_none, parse_rate},
    },
    exit::Exit,
};

/// Calls under way of a closed loop, and at most of an open one.
const CALLS_CLOSED: usize = 256;
const CALLS_OPEN: usize = 1_024;

/// Measure a node under load: rate and latency, without coordinated omission.
///
/// The workloads are YCSB's: a half reads, half updates; b 95 % reads, 5 % updates; c reads only;
/// d 95 % reads of the latest records, 5 % inserts; e 95 % scans of 1 to 100 records, 5 % inserts; f half
/// reads, half read-modify-writes (a read and a write of the same records, without a condition). Scans
/// need a store that orders its keys: memory-ordered, lsm, tiered or sled.
///
/// With --rate, calls begin by a schedule that waits for nobody, and a latency counts from when its
/// call was due: a stall counts for every call that it delays. With --rate max, the default, as many
/// calls are under way as --concurrency says, and each answer makes the next one begin: that
/// finds the peak; its latencies say little about a node that is not at its peak.
///
/// Refused and failed calls are counted by reason and are no work done. Nothing is sent again.
///
/// It writes records whose keys begin with --key-prefix and leaves them behind. Run it where their
/// memory and disk space can be spared.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("loads").args(["sweep", "steps"])),
    after_help = "Examples:
  stateside bench --workload b
  stateside bench --workload a --rate 20k/s --arrivals poisson --duration 1m
  stateside bench --workload c --records 10000000 --value-bytes 1000 --no-load
  stateside bench --mix update=100 --ack memory --batch 100
  stateside bench --workload b --sweep --plot latency.svg
  stateside bench --workload b --steps 5k,10k,20k -o json")]
pub(in crate::cli) struct BenchArgs {
    /// What the calls do: a to f of YCSB.
    #[arg(long, value_enum, value_name = "a|b|c|d|e|f", hide_possible_values = true,
        ignore_case = true, default_value = "b", help_heading = WORK)]
    workload: Workload,
    /// What the calls do, in percent of read, update, insert, read-modify-write and scan, such as
    /// read=80,update=20.
    #[arg(long, value_name = "SHARES", conflicts_with = "workload", help_heading = WORK)]
    mix: Option<Mix>,
    /// Which records are chosen; latest for workload d, else zipfian without this.
    #[arg(long, value_enum, help_heading = WORK)]
    distribution: Option<Distribution>,
    /// Skew of zipfian and latest, between 0 (even) and 1.
    #[arg(long, value_name = "SKEW", default_value_t = 0.99, value_parser = parse_theta,
        help_heading = WORK)]
    theta: f64,
    /// Records to work on.
    #[arg(long, value_name = "N", default_value_t = 100_000,
        value_parser = clap::value_parser!(u64).range(1..=BENCH_RECORDS_MAX), help_heading = WORK)]
    records: u64,
    /// Bytes of a key.
    #[arg(long, value_name = "N", default_value_t = 16,
        value_parser = clap::value_parser!(u64).range(1..=KEY_BYTES_MAX as u64), help_heading = WORK)]
    key_bytes: u64,
    /// What keys begin with; their records are overwritten.
    #[arg(long, value_name = "TEXT", default_value = "bench/", help_heading = WORK)]
    key_prefix: String,
    /// Bytes of a value.
    #[arg(long, value_name = "N", default_value_t = 100,
        value_parser = clap::value_parser!(u64).range(0..=BENCH_VALUE_BYTES_MAX as u64),
        help_heading = WORK)]
    value_bytes: u64,
    /// Records in one call.
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=BATCH_ENTRIES_MAX as u64),
        help_heading = WORK)]
    batch: u64,
    #[command(flatten)]
    ack: AckArgs,
    /// Seeds keys, choices and arrivals: the same seed makes the same calls.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = WORK)]
    seed: u64,
    /// Write the records first; the default.
    #[arg(long, overrides_with = "no_load", help_heading = WORK)]
    load: bool,
    /// The records are there from an earlier run.
    #[arg(long, overrides_with = "load", help_heading = WORK)]
    no_load: bool,

    /// Calls a second, such as 5000/s or 5k/s, or max.
    #[arg(long, value_name = "RATE", default_value = "max", value_parser = parse_rate_or_max,
        help_heading = LOAD)]
    rate: Rate,
    /// How calls arrive: evenly, or at random as from many users.
    #[arg(long, value_enum, default_value_t = Arrivals::Constant, help_heading = LOAD)]
    arrivals: Arrivals,
    /// Find the peak, then measure latency at 10 %, 25 %, 50 %, 75 % and 90 % of it.
    #[arg(long, conflicts_with = "rate", help_heading = LOAD)]
    sweep: bool,
    /// Measure latency at each of these loads: shares of the peak, which is found first, or rates.
    #[arg(long, value_name = "LOAD,...", conflicts_with = "rate", help_heading = LOAD)]
    steps: Option<Steps>,
    /// With --sweep or --steps: draw latency against load, as SVG.
    #[arg(long, value_name = "FILE.svg", requires = "loads", help_heading = LOAD)]
    plot: Option<PathBuf>,
    /// How long each load is measured.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration,
        help_heading = LOAD)]
    duration: Duration,
    /// How long each load is applied before it is measured; may be 0.
    #[arg(long, value_name = "DURATION", default_value = "2s",
        value_parser = parse_duration_or_none, help_heading = LOAD)]
    warm_up: Duration,
    /// Calls under way at once: so many with --rate max [default: 256], at most so many else
    /// [default: 1024].
    #[arg(long, value_name = "N", help_heading = LOAD,
        value_parser = clap::value_parser!(u64).range(1..=BENCH_CALLS_MAX as u64))]
    concurrency: Option<u64>,
    /// Connections to each core of the node.
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = LOAD,
        value_parser = clap::value_parser!(u64).range(1..=BENCH_CONNECTIONS_MAX as u64))]
    connections: u64,
    /// Threads that generate the load [default: half of the CPUs].
    #[arg(long, value_name = "N", help_heading = LOAD,
        value_parser = clap::value_parser!(u64).range(1..=BENCH_THREADS_MAX as u64))]
    threads: Option<u64>,

    /// Show progress also where stderr is no terminal.
    #[arg(long)]
    pub(super) progress: bool,
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// Time that a call may take; and for which late calls are sent after the end.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration,
        display_order = 801)]
    timeout: Duration,
    /// Send everything to the endpoint, not to the ports of the cores.
    #[arg(long)]
    no_routing: bool,
}

const WORK: &str = "Work";
const LOAD: &str = "Load";

/// What `--rate` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rate {
    Max,
    CallsPerSecond(u64),
}

/// The flags, understood.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) shape: Shape,
    /// `b`, or `mix`.
    workload: &'static str,
    pub(super) records: u64,
    key_bytes: usize,
    key_prefix: String,
    value_bytes: usize,
    pub(super) ack: Option<stateside_client::Ack>,
    pub(super) seed: u64,
    pub(super) load: bool,
    pub(super) arrivals: Arrivals,
    pub(super) loads: Loads,
    pub(super) plot: Option<PathBuf>,
    pub(super) timeout: Duration,
    routing: bool,
    duration: Duration,
    warm_up: Duration,
    concurrency: Option<usize>,
    connections: usize,
    threads: usize,
}

/// What is measured.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Loads {
    One(Pace),
    Sweep(Steps),
}

impl BenchArgs {
    pub(super) fn plan(&self) -> Result<Plan, Failure> {
        let usage = |message: &str| Failure::new(Exit::Usage, message);
        let mix = match self.mix {
            Some(mix) => mix,
            None => self.workload.mix(),
        };
        if self.batch > self.records {
            return Err(usage("--batch is larger than --records: a call names a record once"));
        }
        if self.plot.as_ref().is_some_and(|path| path.extension().is_some_and(|e| e != "svg")) {
            return Err(usage("--plot draws SVG; give it a file name that ends in .svg"));
        }
        let loads = match (&self.steps, self.rate) {
            (Some(steps), _) => Loads::Sweep(steps.clone()),
            (None, _) if self.sweep => Loads::Sweep(Steps::default()),
            (None, Rate::Max) => Loads::One(Pace::Closed),
            (None, Rate::CallsPerSecond(calls_per_second)) => {
                Loads::One(Pace::Open { calls_per_second, arrivals: self.arrivals })
            }
        };
        let distribution = match self.mix {
            _ if self.distribution.is_some() => self.distribution.unwrap_or(Distribution::Uniform),
            Some(_) => Distribution::Zipfian,
            None => self.workload.distribution(),
        };
        let batch = self.batch as usize;
        let threads = self.threads.map_or_else(half_of_the_cpus, |threads| threads as usize);
        let concurrency = self.concurrency.map(|calls| calls as usize);
        let connections = self.connections as usize;
        Ok(Plan {
            shape: Shape { mix, distribution, theta: self.theta, batch },
            workload: if self.mix.is_some() { "mix" } else { self.workload.as_str() },
            records: self.records,
            key_bytes: self.key_bytes as usize,
            key_prefix: self.key_prefix.clone(),
            value_bytes: self.value_bytes as usize,
            ack: self.ack.ack,
            seed: self.seed,
            load: self.load || !self.no_load,
            arrivals: self.arrivals,
            loads,
            plot: self.plot.clone(),
            timeout: self.timeout,
            routing: !self.no_routing,
            duration: self.duration,
            warm_up: self.warm_up,
            concurrency,
            connections,
            // A thread without a connection, or without a call, would do nothing.
            threads: threads.min(connections).min(concurrency.unwrap_or(CALLS_CLOSED)),
        })
    }
}

impl Plan {
    pub(super) fn records_to_work_on(&self) -> Result<Records, Failure> {
        Records::new(&self.key_prefix, self.key_bytes, self.value_bytes, self.records, self.seed)
            .map_err(|message| Failure::new(Exit::Usage, message))
    }

    /// Options of the clients that make the calls: one attempt each, and no limit but the pacer's.
    pub(super) fn options(&self) -> Options {
        Options {
            routing: self.routing,
            deadline: self.timeout,
            retries: 0,
            calls_max: usize::MAX,
            jitter_seed: self.seed,
            ..Options::default()
        }
    }

    /// Options of the client that loads: it has to get through.
    pub(super) fn load_options(&self) -> Options {
        Options {
            retries: u32::MAX,
            retry_unknown_writes: true,
            calls_max: Options::default().calls_max,
            ..self.options()
        }
    }

    pub(super) fn extent(&self, pace: Pace) -> Extent {
        let default = if pace == Pace::Closed { CALLS_CLOSED } else { CALLS_OPEN };
        let calls_max = self.concurrency.unwrap_or(default);
        Extent {
            threads: self.threads,
            connections: self.connections,
            calls_max,
            warm_up: self.warm_up,
            duration: self.duration,
            grace: self.timeout,
        }
    }

    /// One line for people.
    pub(super) fn title(&self) -> String {
        let batch = match self.shape.batch {
            1 => String::new(),
            some => format!(", {some} in a call"),
        };
        let ack = self.ack.map_or_else(String::new, |ack| format!(", ack {ack}"));
        format!(
            "workload {} ({}), {} among {} records of {} + {} B{batch}{ack}",
            self.workload,
            self.shape.mix,
            self.shape.distribution.as_str(),
            self.records,
            self.key_bytes,
            self.value_bytes,
        )
    }

    /// For programs.
    pub(super) fn settings(&self) -> Map<String, Value> {
        let settings = json!({
            "workload": self.workload,
            "mix": self.shape.mix.to_string(),
            "distribution": self.shape.distribution.as_str(),
            "theta": self.shape.theta,
            "key_count": self.records,
            "key_bytes": self.key_bytes,
            "value_bytes": self.value_bytes,
            "batch": self.shape.batch,
            "ack": self.ack.map(stateside_client::Ack::as_str),
            "seed": self.seed,
            "duration_seconds": self.duration.as_secs_f64(),
            "warm_up_seconds": self.warm_up.as_secs_f64(),
            "connections": self.connections,
            "threads": self.threads,
        });
        match settings {
            Value::Object(settings) => settings,
            _ => unreachable!("it is written as an object above"),
        }
    }
}

fn half_of_the_cpus() -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    (cpus / 2).clamp(1, BENCH_THREADS_MAX)
}

fn parse_rate_or_max(text: &str) -> Result<Rate, String> {
    if text == "max" { Ok(Rate::Max) } else { parse_rate(text).map(Rate::CallsPerSecond) }
}

fn parse_theta(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|&theta: &f64| theta > 0.0 && theta < 1.0)
        .ok_or_else(|| format!("`{text}` is not a skew between 0 and 1, such as 0.99"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn plan(line: &str) -> Result<Plan, Failure> {
        let words = ["bench"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).unwrap().bench.plan()
    }

    #[test]
    fn without_flags_the_peak_of_workload_b_is_measured() {
        let plan = plan("").unwrap();
        assert_eq!(plan.loads, Loads::One(Pace::Closed));
        assert_eq!((plan.workload, plan.shape.distribution), ("b", Distribution::Zipfian));
        assert!(plan.load && plan.threads > 0);
        assert_eq!(plan.extent(Pace::Closed).calls_max, CALLS_CLOSED);
    }

    #[test]
    fn each_workload_has_its_distribution_unless_told_otherwise() {
        let distribution = |line| plan(line).unwrap().shape.distribution;
        assert_eq!(distribution("--workload D"), Distribution::Latest);
        assert_eq!(distribution("--workload d --distribution uniform"), Distribution::Uniform);
        assert_eq!(distribution("--mix read=95,insert=5"), Distribution::Zipfian);
        assert_eq!(distribution("--mix insert=100 --distribution latest"), Distribution::Latest);
    }

    #[test]
    fn a_rate_makes_the_loop_open() {
        let plan = plan("--rate 5k/s --arrivals poisson").unwrap();
        let pace = Pace::Open { calls_per_second: 5_000, arrivals: Arrivals::Poisson };
        assert_eq!(plan.loads, Loads::One(pace));
        assert_eq!(plan.extent(pace).calls_max, CALLS_OPEN);
    }

    #[test]
    fn threads_that_would_have_nothing_to_do_are_not_started() {
        assert_eq!(plan("--threads 8 --connections 3").unwrap().threads, 3);
        assert_eq!(plan("--threads 8 --concurrency 2").unwrap().threads, 2);
    }

    #[test]
    fn the_last_word_on_loading_counts() {
        assert!(!plan("--no-load").unwrap().load);
        assert!(plan("--no-load --load").unwrap().load);
        assert!(!plan("--load --no-load").unwrap().load);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert_eq!(plan("--workload e").unwrap().workload, "e");
        assert!(plan("--batch 9 --records 8").unwrap_err().message().contains("--records"));
        for line in ["--sweep --steps 10%", "--sweep --rate 9", "--plot a.svg", "--warm-up -1s"] {
            let words = ["bench"].into_iter().chain(line.split(' '));
            assert!(Line::try_parse_from(words).is_err(), "{line}");
        }
    }
}
