//! How a thread of the generator spends its time: computing, waiting for a CPU, or idle.
//!
//! A generator that shares its CPUs is the limit long before it computes all the time: what it lacks, it
//! waits for. Only the kernel knows that wait.

use std::{fs, time::Duration};

use rustix::time::{ClockId, clock_gettime};

/// "computed, waited for a CPU, times run", nanoseconds. Source: the kernel's scheduler/sched-stats.rst.
const SCHEDSTAT: &str = "/proc/thread-self/schedstat";

/// Time of a thread, so far; or shares of a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Busy<T> {
    pub(super) computed: T,
    /// Ready to compute, on a CPU that others had. 0 where the kernel does not count it.
    pub(super) waited: T,
}

impl Busy<Duration> {
    /// Of the calling thread.
    pub(super) fn so_far() -> Self {
        fs::read_to_string(SCHEDSTAT).ok().and_then(|text| parse(&text)).unwrap_or_else(|| {
            let time = clock_gettime(ClockId::ThreadCPUTime);
            let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
            let computed = Duration::new(time.tv_sec.cast_unsigned(), nanos);
            Self { computed, waited: Duration::ZERO }
        })
    }

    /// What came on top of `before`, as shares of `passed`.
    pub(super) fn shares_since(self, before: Self, passed: Duration) -> Busy<f64> {
        let share = |now: Duration, before: Duration| {
            now.saturating_sub(before).as_secs_f64() / passed.as_secs_f64().max(1e-9)
        };
        Busy {
            computed: share(self.computed, before.computed),
            waited: share(self.waited, before.waited),
        }
    }
}

impl Busy<f64> {
    /// The share of the time that the thread had something to compute.
    pub(super) fn wanted(self) -> f64 {
        self.computed + self.waited
    }
}

fn parse(text: &str) -> Option<Busy<Duration>> {
    let mut numbers = text.split_ascii_whitespace().map(|number| number.parse().ok());
    let mut next = || numbers.next().flatten().map(Duration::from_nanos);
    Some(Busy { computed: next()?, waited: next()? })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_thread_that_computes_is_seen_to() {
        let (before, begun) = (Busy::so_far(), Instant::now());
        let mut sum = 0_u64;
        while begun.elapsed() < Duration::from_millis(20) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let busy = Busy::so_far().shares_since(before, begun.elapsed());
        assert!(busy.computed > 0.0 && busy.computed <= 1.1, "{busy:?}");
    }

    #[test]
    fn the_kernels_counts_are_read() {
        let nanos = Duration::from_nanos;
        let expected = Busy { computed: nanos(794_986), waited: nanos(2_717_584) };
        assert_eq!(parse("794986 2717584 2\n"), Some(expected));
        assert_eq!(parse("794986"), None);
        assert_eq!(parse("a b c"), None);
        let shares = expected.shares_since(Busy::default(), nanos(10_000_000));
        assert!((shares.wanted() - 0.351_257).abs() < 1e-9);
    }
}
