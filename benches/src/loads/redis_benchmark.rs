//! redis-benchmark: one command, again and again, at a pipeline depth.
//!
//! It counts calls, not seconds: the first run, which is the warm-up, finds out how many calls fill
//! the time; a later run takes the rate of the one before. Hazard: trials within a measured run
//! would be charged to the server and counted by nobody. At depth above one its times are those of a whole pipeline, from the first byte sent to the answer.

use std::cell::Cell;

use super::{Latency, Load, Run};
use crate::process::{LOAD_CPU, pinned};

/// The run that the number of calls is taken from.
const TRIAL_SECONDS: f64 = 0.3;
const FIRST_CALLS: u64 = 2_000;

/// redis-benchmark against one server.
pub struct RedisBenchmark {
    /// Where Redis listens.
    pub port: u16,
    /// Connections.
    pub connections: u32,
    /// Commands sent before an answer is awaited, on each connection.
    pub depth: u32,
    /// `__rand_int__` in the command becomes 12 digits below this.
    pub keys: Option<usize>,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Calls per second of the run before.
    rate: Cell<Option<f64>>,
}

impl RedisBenchmark {
    /// A command at a depth, on so many connections.
    pub fn new(port: u16, connections: u32, depth: u32, command: &[&str]) -> Self {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        Self { port, connections, depth, keys: None, command, rate: Cell::new(None) }
    }

    /// Calls per second, from runs that grow until one is long enough to tell.
    fn find_rate(&self) -> Result<f64, String> {
        let mut trial = self.make(FIRST_CALLS)?;
        while trial.seconds < TRIAL_SECONDS {
            let more = (2.0 * TRIAL_SECONDS / trial.seconds).clamp(2.0, 50.0);
            trial = self.make((trial.calls as f64 * more) as u64)?;
        }
        Ok(trial.calls as f64 / trial.seconds)
    }

    fn make(&self, calls: u64) -> Result<Run, String> {
        let mut command = pinned(LOAD_CPU, "redis-benchmark");
        command
            .args(["-h", "127.0.0.1", "--precision", "3"])
            .arg("-p")
            .arg(self.port.to_string())
            .arg("-c")
            .arg(self.connections.to_string())
            .arg("-P")
            .arg(self.depth.to_string())
            .arg("-n")
            .arg(calls.to_string());
        if let Some(keys) = self.keys {
            command.arg("-r").arg(keys.to_string());
        }
        let output = command
            .args(&self.command)
            .output()
            .map_err(|error| format!("taskset or redis-benchmark did not start: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "\n");
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!("redis-benchmark failed: {errors}"));
        }
        let parsed = parse(&text, calls);
        parsed.ok_or_else(|| "cannot make sense of redis-benchmark's output".to_owned())
    }
}

impl Load for RedisBenchmark {
    fn describe(&self) -> String {
        format!("redis-benchmark -c {} -P {}", self.connections, self.depth)
    }

    fn run(&self, seconds: u32) -> Result<Run, String> {
        let rate = match self.rate.get() {
            Some(rate) => rate,
            None => self.find_rate()?,
        };
        let run = self.make(((rate * f64::from(seconds)) as u64).max(1))?;
        self.rate.set(Some(run.calls as f64 / run.seconds));
        Ok(run)
    }
}

/// Everything from the last summary; None when there is none.
fn parse(text: &str, calls: u64) -> Option<Run> {
    let rate = text.lines().find_map(|line| line.trim().strip_prefix("throughput summary:"))?;
    let rate: f64 = rate.split_whitespace().next()?.parse().ok()?;
    let (_, distribution) = text.split_once("Latency by percentile distribution:")?;
    let (distribution, _) = distribution.split_once("Cumulative distribution")?;
    // `99.902% <= 0.415 milliseconds (cumulative count 99904)`
    let rows: Vec<(f64, f64)> = distribution
        .lines()
        .filter_map(|line| {
            let (share, rest) = line.trim().split_once("% <= ")?;
            Some((share.parse().ok()?, rest.split(' ').next()?.parse().ok()?))
        })
        .collect();
    // The rows halve the rest each time; the first at or above is at most this far off.
    let at = |share: f64| {
        rows.iter().find(|row| row.0 >= share).map(|(_, milliseconds)| milliseconds * 1e3)
    };
    let latency = Latency { p50_us: at(50.0)?, p99_us: at(99.0)?, p999_us: at(99.9)? };
    Some(Run { calls, seconds: calls as f64 / rate, latency: Some(latency) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "====== SET ======\n  100 requests completed in 0.00 seconds\n\
        Latency by percentile distribution:\n\
        0.000% <= 0.111 milliseconds (cumulative count 1)\n\
        50.000% <= 0.311 milliseconds (cumulative count 52873)\n\
        98.438% <= 0.791 milliseconds (cumulative count 98444)\n\
        99.219% <= 9.527 milliseconds (cumulative count 99224)\n\
        99.902% <= 17.615 milliseconds (cumulative count 99904)\n\
        100.000% <= 27.647 milliseconds (cumulative count 100000)\n\n\
        Cumulative distribution of latencies:\n0.000% <= 0.103 milliseconds (cumulative count 0)\n\
        Summary:\n  throughput summary: 50000.00 requests per second\n";

    #[test]
    fn rate_and_times_are_read() {
        let run = parse(OUTPUT, 100).unwrap();
        assert_eq!((run.calls, run.seconds), (100, 0.002));
        let latency = run.latency.unwrap();
        assert_eq!((latency.p50_us, latency.p99_us, latency.p999_us), (311.0, 9527.0, 17615.0));
    }

    #[test]
    fn half_an_output_is_no_result() {
        assert!(parse(OUTPUT.split("Summary").next().unwrap(), 100).is_none());
        assert!(parse("", 100).is_none());
    }
}
