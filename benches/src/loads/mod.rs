//! What makes the calls: programs that others wrote, so that no load favours the system that it
//! came with. Each runs on the load's core and reports calls made, time taken and, where it can,
//! how long single calls took.

pub mod direct_write;
pub mod h2load;
pub mod memcaslap;
pub mod open_loop;
pub mod redis_benchmark;

use crate::statistics::percentile;

/// Times of single calls, microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Half of the calls took at most this.
    pub p50_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
    /// 999 of 1,000.
    pub p999_us: f64,
}

impl Latency {
    /// From the time of every call; None when there was none.
    pub fn of(times_us: &mut [u64]) -> Option<Self> {
        if times_us.is_empty() {
            return None;
        }
        let mut at = |share| percentile(times_us, share) as f64;
        Some(Self { p50_us: at(0.5), p99_us: at(0.99), p999_us: at(0.999) })
    }
}

/// What a run showed.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Calls answered.
    pub calls: u64,
    /// How long it took, seconds.
    pub seconds: f64,
    /// When the load takes times while it runs at full speed.
    pub latency: Option<Latency>,
}

/// A load that is ready to run against one server.
pub trait Load {
    /// Program and shape, for the table.
    fn describe(&self) -> String;

    /// Calls for about so many seconds. All calls made are in the answer but for those of the
    /// first run, whose result nobody uses.
    ///
    /// # Errors
    /// The program did not run, or calls failed.
    fn run(&self, seconds: u32) -> Result<Run, String>;

    /// A run of its own that takes times, for loads that [`Load::run`] takes none of because
    /// writing them down would cost the load part of its core. None: this load takes no times.
    ///
    /// # Errors
    /// As [`Load::run`].
    fn latency(&self, _seconds: u32) -> Result<Option<Latency>, String> {
        Ok(None)
    }
}

/// Several loads at once, as one. They share the load's core.
pub struct Together<L>(
    /// The loads.
    pub Vec<L>,
);

impl<L: Load + Sync> Load for Together<L> {
    fn describe(&self) -> String {
        let one = self.0.first().map_or(String::new(), Load::describe);
        format!("{} of: {one}", self.0.len())
    }

    fn run(&self, seconds: u32) -> Result<Run, String> {
        let runs: Result<Vec<Run>, String> = std::thread::scope(|scope| {
            let started: Vec<_> =
                self.0.iter().map(|load| scope.spawn(|| load.run(seconds))).collect();
            started
                .into_iter()
                .map(|thread| thread.join().map_err(|_| "a load panicked".to_owned())?)
                .collect()
        });
        let runs = runs?;
        let longest = runs.iter().map(|run| run.seconds).fold(0.0, f64::max);
        let calls = runs.iter().map(|run| run.calls).sum();
        Ok(Run { calls, seconds: longest, latency: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_need_calls() {
        assert_eq!(Latency::of(&mut []), None);
        let latency = Latency::of(&mut (0..=1000).collect::<Vec<_>>()).unwrap();
        assert_eq!((latency.p50_us, latency.p99_us, latency.p999_us), (500.0, 990.0, 999.0));
    }
}
