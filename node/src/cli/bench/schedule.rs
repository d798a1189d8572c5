//! When calls begin. Pure: times are parameters, counted from the start of the run.
//!
//! An open loop has a schedule that does not wait for answers, as users do not wait for each
//! other. A call that cannot be sent when it is due, because the node keeps too many others waiting,
//! is sent later, and its latency still counts from when it was due. A generator that counts from the
//! sending leaves out exactly the calls that a stall hurt most: "coordinated omission" (Gil
//! Tene, "How NOT to Measure Latency").
//!
//! ```text
//!  due      |  |  |  |  |  |  |  |          the schedule goes on
//!  sent     |  |        ||||  |  |          two in flight at most, and a stall
//!  answered  |          |||||  |  |
//!  counted  └┘ └────────┘                   from due to answered
//!                 └─────┘                   … also for those that were not sent in time
//! ```

use std::time::Duration;

use clap::ValueEnum;
use fastrand::Rng;

/// How calls arrive in an open loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Arrivals {
    /// One every 1 / rate seconds.
    Constant,
    /// At random times, as from many users who know nothing of each other.
    Poisson,
}

impl Arrivals {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Poisson => "poisson",
        }
    }
}

/// What makes the next call begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// The schedule: so many calls a second, over all threads.
    Open { calls_per_second: u64, arrivals: Arrivals },
    /// An answer: as many calls are under way all the time as are allowed.
    Closed,
}

/// One thread's part of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) thread: usize,
    pub(super) threads: usize,
    /// Calls that it may have under way.
    pub(super) in_flight_max: usize,
    /// No call is due at or after this.
    pub(super) end: Duration,
    /// Calls that are still not sent then are never sent.
    pub(super) give_up: Duration,
}

/// What a thread has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Send a call.
    Send {
        due: Duration,
        /// It waited for a place among the calls under way, not for this program.
        held_back: bool,
    },
    /// Nothing is due before this time.
    Wait(Duration),
    /// A call is due, and has to wait for an answer to another one; until this time at most.
    WaitForAnswer(Duration),
    /// All calls are sent, or given up.
    Finished,
}

/// One thread's schedule.
#[derive(Debug)]
pub(super) struct Pacer {
    part: Part,
    clock: Clock,
    /// The last time that a call was due and there was no place for it.
    full_at: Option<Duration>,
    unsent: u64,
}

#[derive(Debug)]
enum Clock {
    /// Call n of this thread is call `n * threads + thread` of the run; computed, so that rounding
    /// does not add up.
    Constant {
        calls_per_second: u64,
        sent: u64,
    },
    /// Independent threads add up to what one would do, so each has its share of the rate.
    Poisson {
        mean_s: f64,
        random: Rng,
        due_s: f64,
    },
    Closed,
}

impl Pacer {
    pub(super) fn new(pace: Pace, part: Part, random: Rng) -> Self {
        let clock = match pace {
            Pace::Closed => Clock::Closed,
            Pace::Open { calls_per_second, arrivals: Arrivals::Constant } => {
                Clock::Constant { calls_per_second, sent: 0 }
            }
            Pace::Open { calls_per_second, arrivals: Arrivals::Poisson } => {
                let mean_s = part.threads as f64 / calls_per_second as f64;
                Clock::Poisson { mean_s, random, due_s: 0.0 }
            }
        };
        let mut pacer = Self { part, clock, full_at: None, unsent: 0 };
        if matches!(pacer.clock, Clock::Poisson { .. }) {
            // The first gap is as random as the others.
            pacer.advance();
        }
        pacer
    }

    /// What to do at `now` with `in_flight` calls under way. After `Send` the call counts as sent.
    pub(super) fn next(&mut self, now: Duration, in_flight: usize) -> Next {
        let due = self.due().unwrap_or(now);
        if due >= self.part.end {
            return Next::Finished;
        }
        if now >= self.part.give_up {
            self.unsent += self.count_to_end();
            return Next::Finished;
        }
        if due > now {
            return Next::Wait(due);
        }
        if in_flight >= self.part.in_flight_max {
            // In a closed loop a call is due when there is a place: it never waits for one.
            if !matches!(self.clock, Clock::Closed) {
                self.full_at = Some(now);
            }
            return Next::WaitForAnswer(self.part.give_up);
        }
        self.advance();
        Next::Send { due, held_back: self.full_at.is_some_and(|full_at| due <= full_at) }
    }

    /// Calls of the schedule that were given up.
    pub(super) fn unsent(&self) -> u64 {
        self.unsent
    }

    /// When the next call is due; `None`: whenever there is a place.
    fn due(&self) -> Option<Duration> {
        match &self.clock {
            Clock::Constant { calls_per_second, sent } => {
                let call = u128::from(*sent) * self.part.threads as u128 + self.part.thread as u128;
                let nanos = call * 1_000_000_000 / u128::from(*calls_per_second);
                Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
            }
            Clock::Poisson { due_s, .. } => Some(Duration::from_secs_f64(*due_s)),
            Clock::Closed => None,
        }
    }

    fn advance(&mut self) {
        match &mut self.clock {
            Clock::Constant { sent, .. } => *sent += 1,
            // Gaps of a Poisson process are exponential; 1 - unit is never 0.
            Clock::Poisson { mean_s, random, due_s } => {
                *due_s += -(1.0 - random.f64()).ln() * *mean_s;
            }
            Clock::Closed => {}
        }
    }

    /// Runs through the rest of the schedule.
    fn count_to_end(&mut self) -> u64 {
        let mut count = 0;
        while self.due().is_some_and(|due| due < self.part.end) {
            self.advance();
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::{super::workload::stream, *};

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn part(thread: usize, threads: usize, in_flight_max: usize) -> Part {
        Part { thread, threads, in_flight_max, end: ms(1_000), give_up: ms(3_000) }
    }

    fn open(calls_per_second: u64, arrivals: Arrivals) -> Pace {
        Pace::Open { calls_per_second, arrivals }
    }

    fn pacer(pace: Pace, part: Part, seed: u64) -> Pacer {
        Pacer::new(pace, part, stream(seed, "arrivals", part.thread))
    }

    /// Every due time when nothing is ever in the way.
    fn schedule(pace: Pace, part: Part, seed: u64) -> Vec<Duration> {
        let mut pacer = pacer(pace, part, seed);
        let mut times = Vec::new();
        let mut now = Duration::ZERO;
        loop {
            match pacer.next(now, 0) {
                Next::Send { due, held_back } => {
                    assert!(!held_back && due <= now);
                    times.push(due);
                }
                Next::Wait(until) => now = until,
                Next::WaitForAnswer(_) => panic!("there is always a place"),
                Next::Finished => return times,
            }
        }
    }

    #[test]
    fn constant_arrivals_of_all_threads_together_are_even() {
        for threads in [1, 2, 3] {
            let pace = open(700, Arrivals::Constant);
            let mut all: Vec<_> =
                (0..threads).flat_map(|t| schedule(pace, part(t, threads, 1), 1)).collect();
            all.sort_unstable();
            let expected: Vec<_> =
                (0..700).map(|n| Duration::from_nanos(n * 1_000_000_000 / 700)).collect();
            assert_eq!(all, expected, "{threads} threads");
        }
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_spread_of_the_definition() {
        let pace = open(100_000, Arrivals::Poisson);
        let mut all: Vec<_> = (0..2).flat_map(|t| schedule(pace, part(t, 2, 1), 5)).collect();
        all.sort_unstable();
        // Five standard deviations, which are the root of the count.
        assert!(all.len().abs_diff(100_000) < 1_600, "{}", all.len());
        let gaps: Vec<f64> = all.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // Exponential gaps deviate by as much as they last, and 1 / e of them last longer than that.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05);
        let longer = gaps.iter().filter(|&&gap| gap > mean).count() as f64 / gaps.len() as f64;
        assert!((longer - (-1.0_f64).exp()).abs() < 0.01, "{longer}");
    }

    #[test]
    fn the_same_seed_replays_and_another_diverges() {
        let pace = open(1_000, Arrivals::Poisson);
        assert_eq!(schedule(pace, part(0, 1, 1), 1), schedule(pace, part(0, 1, 1), 1));
        assert_ne!(schedule(pace, part(0, 1, 1), 1), schedule(pace, part(0, 1, 1), 2));
        assert_ne!(schedule(pace, part(0, 2, 1), 1), schedule(pace, part(1, 2, 1), 1));
    }

    #[test]
    fn a_closed_loop_keeps_its_calls_under_way_until_the_end() {
        let mut pacer = pacer(Pace::Closed, part(0, 1, 2), 1);
        let sent = |due| Next::Send { due, held_back: false };
        assert_eq!(pacer.next(ms(0), 0), sent(ms(0)));
        assert_eq!(pacer.next(ms(0), 1), sent(ms(0)));
        assert!(matches!(pacer.next(ms(5), 2), Next::WaitForAnswer(_)));
        assert_eq!(pacer.next(ms(7), 1), sent(ms(7)), "it is due when there is a place");
        assert_eq!(pacer.next(ms(1_000), 0), Next::Finished);
        assert_eq!(pacer.unsent(), 0);
    }

    #[test]
    fn calls_that_are_never_sent_are_counted() {
        let mut pacer = pacer(open(100, Arrivals::Constant), part(0, 1, 1), 1);
        assert!(matches!(pacer.next(ms(0), 0), Next::Send { .. }));
        assert_eq!(pacer.next(ms(10), 1), Next::WaitForAnswer(ms(3_000)));
        assert_eq!(pacer.next(ms(3_000), 1), Next::Finished);
        assert_eq!(pacer.unsent(), 99);
    }

    /// A server that answers after `service`, but nothing at all between `stall.0` and `stall.1`.
    /// Returns due and answered of every call.
    fn run(
        pacer: &mut Pacer,
        service: Duration,
        stall: (Duration, Duration),
    ) -> Vec<(Duration, Duration)> {
        let mut under_way: VecDeque<(Duration, Duration)> = VecDeque::new();
        let mut done = Vec::new();
        let mut now = Duration::ZERO;
        loop {
            while under_way.front().is_some_and(|call| call.1 <= now) {
                done.extend(under_way.pop_front());
            }
            let answer = under_way.front().map_or(Duration::MAX, |call| call.1);
            match pacer.next(now, under_way.len()) {
                Next::Send { due, .. } => {
                    let mut answered = now + service;
                    if answered > stall.0 && answered < stall.1 {
                        answered = stall.1;
                    }
                    under_way.push_back((due, answered));
                }
                Next::Wait(until) | Next::WaitForAnswer(until) => now = until.min(answer),
                Next::Finished if under_way.is_empty() => return done,
                Next::Finished => now = answer,
            }
        }
    }

    #[test]
    fn a_stall_counts_for_every_call_that_was_due_in_it() {
        // 1,000 calls a second, 1 ms each; the server stands still for 400 ms, and only 10
        // calls may be under way. Counted from the sending, 10 calls would have seen the stall.
        let mut pacer = pacer(open(1_000, Arrivals::Constant), part(0, 1, 10), 1);
        let done = run(&mut pacer, ms(1), (ms(300), ms(700)));
        assert_eq!((done.len(), pacer.unsent()), (1_000, 0));
        let slower_than =
            |limit| done.iter().filter(|(due, answered)| *answered - *due > limit).count();
        // Due x ms into the stall, a call waits for its end, 400 - x, and then for those before it, ten
        // a millisecond: more than 100 ms for x below 333, more than 200 ms for x below 222.
        assert!(slower_than(ms(100)).abs_diff(333) <= 3, "{}", slower_than(ms(100)));
        assert!(slower_than(ms(200)).abs_diff(222) <= 3, "{}", slower_than(ms(200)));
        let longest = done.iter().map(|(due, answered)| *answered - *due).max();
        assert!(longest.is_some_and(|longest| longest >= ms(400) && longest <= ms(402)));
    }

    proptest! {
        #[test]
        fn every_call_is_sent_once_in_time_or_given_up(
            rate in 1..3_000_u64, poisson in any::<bool>(), places in 1..20_usize, service in 1..200_u64, seed in any::<u64>(),
        ) {
            let arrivals = if poisson { Arrivals::Poisson } else { Arrivals::Constant };
            let all = schedule(open(rate, arrivals), part(0, 1, 1), seed);
            let mut pacer = pacer(open(rate, arrivals), part(0, 1, places), seed);
            let done = run(&mut pacer, ms(service), (ms(0), ms(0)));
            prop_assert_eq!(done.len() as u64 + pacer.unsent(), all.len() as u64);
            prop_assert!(done.iter().map(|call| &call.0).eq(all.iter().take(done.len())));
            prop_assert!(done.iter().all(|(due, answered)| *answered >= *due + ms(service)));
        }
    }
}
