//! The engine: every contender of a row is measured in turn, round after round, in one run.
//! Absolute numbers depend on the machine and on what else it does; what disturbs one contender
//! in a round disturbs the next as well, so the ratios of a round hardly do.

use serde_json::{Value, json};

use crate::{
    loads::{Latency, Load},
    peers::Server,
    process::{cpu_seconds, disk_bytes_written, ended_children_cpu_seconds, memory},
    statistics::{median, spread},
};

/// A run before the measured ones: caches, branch predictors, connection pools.
const WARM_UP_SECONDS: u32 = 1;

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Length of one measurement.
    pub seconds: u32,
    /// Measurements of each contender, in turn.
    pub rounds: u32,
}

/// A server under one load.
pub struct Contender<'s> {
    /// For the table.
    pub name: String,
    /// None for what no server does.
    pub server: Option<&'s dyn Server>,
    /// What calls it.
    pub load: Box<dyn Load + 's>,
    /// Pairs in a call: rates and costs are given for pairs.
    pub pairs: usize,
    /// Partitions that a call's pairs are spread over, evenly.
    pub parts: usize,
}

impl<'s> Contender<'s> {
    /// A server and a load of single pairs.
    pub fn new(name: impl Into<String>, server: &'s dyn Server, load: impl Load + 's) -> Self {
        Self { name: name.into(), server: Some(server), load: Box::new(load), pairs: 1, parts: 1 }
    }

    /// The same with this many pairs in a call.
    #[must_use]
    pub fn of_pairs(self, pairs: usize) -> Self {
        Self { pairs, ..self }
    }

    /// The same with a call's pairs spread over this many partitions.
    #[must_use]
    pub fn in_parts(self, parts: usize) -> Self {
        Self { parts, ..self }
    }
}

/// One measurement of one contender. "Operations" are pairs.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Work done, refused calls not counted.
    pub operations_per_s: f64,
    /// The server's CPU time.
    pub cpu_us_per_operation: f64,
    /// The server's share of a core.
    pub busy: f64,
    /// The load's.
    pub load_busy: f64,
    /// Of calls, not of pairs.
    pub latency: Option<Latency>,
    /// Calls refused, also while times were taken.
    pub refused: u64,
    /// Parts of batches refused, also while times were taken.
    pub refused_parts: u64,
    /// Parts of calls that changed cores, per call.
    pub hops_per_call: f64,
    /// Durable writes per call, as the server counts them.
    pub disk_writes_per_call: f64,
    /// As the kernel counts them.
    pub disk_bytes_per_call: f64,
}

/// All measurements of one contender.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The contender's.
    pub name: String,
    /// The load, described.
    pub load: String,
    /// One a round.
    pub samples: Vec<Sample>,
    /// The most memory that the server ever had, bytes; None without a server.
    pub peak_memory: Option<u64>,
}

impl Measured {
    /// The median of something over the rounds.
    pub fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(&self.samples.iter().map(of).collect::<Vec<_>>())
    }

    /// The median of a time over the rounds; None when the load takes no times.
    pub fn time_us(&self, of: impl Fn(&Latency) -> f64) -> Option<f64> {
        self.time(of).map(|time| time.value)
    }

    /// A time with its lowest and highest of the rounds.
    pub fn time(&self, of: impl Fn(&Latency) -> f64) -> Option<Ratio> {
        let times: Vec<f64> =
            self.samples.iter().filter_map(|sample| sample.latency.as_ref().map(&of)).collect();
        let (lowest, highest) = spread(&times);
        (!times.is_empty()).then(|| Ratio { value: median(&times), lowest, highest })
    }

    /// The median rate.
    pub fn rate(&self) -> f64 {
        self.median(|sample| sample.operations_per_s)
    }

    /// How often the rate is the other's: the ratio of the medians, and the lowest and highest of
    /// the rounds.
    pub fn times(&self, other: &Self) -> Ratio {
        self.ratio(other, |sample| sample.operations_per_s)
    }

    /// The same of anything.
    pub fn ratio(&self, other: &Self, of: impl Fn(&Sample) -> f64) -> Ratio {
        let of = &of;
        let each: Vec<f64> =
            self.samples.iter().zip(&other.samples).map(|(a, b)| of(a) / of(b)).collect();
        let (lowest, highest) = spread(&each);
        Ratio { value: self.median(of) / other.median(of), lowest, highest }
    }

    /// By how much the median call took longer than the other's, microseconds; None when one of
    /// the loads takes no times.
    pub fn behind_us(&self, other: &Self) -> Option<Ratio> {
        let p50 = |sample: &Sample| sample.latency.map(|latency| latency.p50_us);
        let each: Vec<f64> = self
            .samples
            .iter()
            .zip(&other.samples)
            .filter_map(|(ours, theirs)| Some(p50(ours)? - p50(theirs)?))
            .collect();
        let value =
            self.time_us(|latency| latency.p50_us)? - other.time_us(|latency| latency.p50_us)?;
        let (lowest, highest) = spread(&each);
        Some(Ratio { value, lowest, highest })
    }

    /// Calls refused in all rounds.
    pub fn refused(&self) -> u64 {
        self.samples.iter().map(|sample| sample.refused).sum()
    }

    /// Parts of batches refused in all rounds, within calls that were answered.
    pub fn refused_parts(&self) -> u64 {
        self.samples.iter().map(|sample| sample.refused_parts).sum()
    }

    /// For the JSON file: every sample, and the medians.
    pub fn json(&self) -> Value {
        let samples: Vec<Value> = self.samples.iter().map(Sample::json).collect();
        json!({
            "name": self.name,
            "load": self.load,
            "operations_per_s": self.rate(),
            "cpu_us_per_operation": self.median(|sample| sample.cpu_us_per_operation),
            "server_busy": self.median(|sample| sample.busy),
            "load_busy": self.median(|sample| sample.load_busy),
            "p50_us": self.time_us(|latency| latency.p50_us),
            "p99_us": self.time_us(|latency| latency.p99_us),
            "p999_us": self.time_us(|latency| latency.p999_us),
            "peak_memory_bytes": self.peak_memory,
            "calls_refused": self.refused(),
            "parts_refused": self.refused_parts(),
            "samples": samples,
        })
    }
}

impl Sample {
    fn json(&self) -> Value {
        json!({
            "operations_per_s": self.operations_per_s,
            "cpu_us_per_operation": self.cpu_us_per_operation,
            "server_busy": self.busy,
            "load_busy": self.load_busy,
            "p50_us": self.latency.map(|latency| latency.p50_us),
            "p99_us": self.latency.map(|latency| latency.p99_us),
            "p999_us": self.latency.map(|latency| latency.p999_us),
            "calls_refused": self.refused,
            "parts_refused": self.refused_parts,
            "hops_per_call": self.hops_per_call,
            "disk_writes_per_call": self.disk_writes_per_call,
            "disk_bytes_per_call": self.disk_bytes_per_call,
        })
    }
}

/// A ratio or a difference, and where it lay in the single rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// Of the medians.
    pub value: f64,
    /// Of the rounds.
    pub lowest: f64,
    /// Of the rounds.
    pub highest: f64,
}

/// Measures all, in turn.
///
/// # Errors
/// A load or a server failed.
pub fn in_turn(effort: Effort, contenders: &[Contender<'_>]) -> Result<Vec<Measured>, String> {
    let failed = |contender: &Contender<'_>, error| format!("{}: {error}", contender.name);
    let mut measured: Vec<Measured> = contenders
        .iter()
        .map(|contender| Measured {
            name: contender.name.clone(),
            load: contender.load.describe(),
            samples: Vec::new(),
            peak_memory: None,
        })
        .collect();
    for contender in contenders {
        contender.load.run(WARM_UP_SECONDS).map_err(|error| failed(contender, error))?;
    }
    for round in 1..=effort.rounds {
        for (contender, measured) in contenders.iter().zip(&mut measured) {
            let sample = sample(effort, contender).map_err(|error| failed(contender, error))?;
            eprintln!(
                "    round {round} of {}: {:<28} {:>12.0}/s",
                effort.rounds, contender.name, sample.operations_per_s
            );
            measured.samples.push(sample);
        }
    }
    for (contender, measured) in contenders.iter().zip(&mut measured) {
        if let Some(server) = contender.server {
            measured.peak_memory = Some(memory(server.pid())?.peak);
        }
    }
    Ok(measured)
}

fn sample(effort: Effort, contender: &Contender<'_>) -> Result<Sample, String> {
    let counters = || contender.server.map_or(Ok(Default::default()), Server::counters);
    let cpu = || contender.server.map_or(Ok(0.0), |server| cpu_seconds(server.pid()));
    let disk = || contender.server.map_or(Ok(0), |server| disk_bytes_written(server.pid()));
    let (counted, cpu_before, disk_before) = (counters()?, cpu()?, disk()?);
    let load_before = ended_children_cpu_seconds()?;
    let run = contender.load.run(effort.seconds)?;
    let (cpu, disk, after) = (cpu()? - cpu_before, disk()? - disk_before, counters()?);
    let load_cpu = ended_children_cpu_seconds()? - load_before;
    let latency = match run.latency {
        Some(latency) => Some(latency),
        None => contender.load.latency((effort.seconds / 2).max(1))?,
    };
    let done = run.calls.saturating_sub(after.refused - counted.refused) as f64;
    if done == 0.0 {
        return Err("every call was refused".to_owned());
    }
    let parts_refused = (after.refused_parts - counted.refused_parts) as f64;
    let pairs = contender.pairs as f64;
    let operations = done * pairs - parts_refused * pairs / contender.parts as f64;
    if operations <= 0.0 {
        return Err("every part of every call was refused".to_owned());
    }
    let at_end = counters()?;
    Ok(Sample {
        operations_per_s: operations / run.seconds,
        cpu_us_per_operation: cpu * 1e6 / operations,
        busy: cpu / run.seconds,
        load_busy: load_cpu / run.seconds,
        latency,
        refused: at_end.refused - counted.refused,
        refused_parts: at_end.refused_parts - counted.refused_parts,
        hops_per_call: (after.hops - counted.hops) as f64 / done,
        disk_writes_per_call: (after.disk_writes - counted.disk_writes) as f64 / done,
        disk_bytes_per_call: disk as f64 / done,
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::{loads::Run, peers::Counters};

    /// Counts what the load tells it to refuse.
    #[derive(Default)]
    struct Refusing {
        calls: Cell<u64>,
        parts: Cell<u64>,
    }

    impl Server for Refusing {
        fn pid(&self) -> u32 {
            std::process::id()
        }

        fn counters(&self) -> Result<Counters, String> {
            let (refused, refused_parts) = (self.calls.get(), self.parts.get());
            Ok(Counters { refused, refused_parts, ..Counters::default() })
        }
    }

    /// A hundred calls a second, of which the server refuses so many calls and parts a run.
    struct Calls<'s>(&'s Refusing, u64, u64);

    impl Load for Calls<'_> {
        fn describe(&self) -> String {
            "calls".to_owned()
        }

        fn run(&self, seconds: u32) -> Result<Run, String> {
            self.0.calls.set(self.0.calls.get() + self.1);
            self.0.parts.set(self.0.parts.get() + self.2);
            Ok(Run { calls: 100 * u64::from(seconds), seconds: f64::from(seconds), latency: None })
        }
    }

    const EFFORT: Effort = Effort { seconds: 2, rounds: 3 };

    #[test]
    fn refused_calls_are_no_work_done() {
        let server = Refusing::default();
        let contender = Contender::new("x", &server, Calls(&server, 50, 0)).of_pairs(10);
        let measured = &in_turn(EFFORT, &[contender]).unwrap()[0];
        assert_eq!((measured.rate(), measured.refused()), (750.0, 150));
        let all = Contender::new("x", &server, Calls(&server, 200, 0));
        assert!(in_turn(EFFORT, &[all]).is_err());
    }

    #[test]
    fn a_refused_part_takes_its_share_of_the_pairs_and_no_more() {
        let server = Refusing::default();
        let load = Calls(&server, 0, 80);
        let contender = Contender::new("x", &server, load).of_pairs(10).in_parts(5);
        let measured = &in_turn(EFFORT, &[contender]).unwrap()[0];
        // 200 calls of 10 pairs, less 80 parts of 2, in 2 seconds.
        assert_eq!((measured.rate(), measured.refused_parts()), (920.0, 240));
    }
}
