//! When a core looks for work a little longer before it sleeps.
//!
//! A sleeping core is woken by an interrupt, and on a virtual machine leaving the halt costs tens of
//! microseconds: a client that makes one call after the other pays them at every call. A core that
//! looks on finds the next call in a fraction of that, and since it saves going to sleep and waking
//! up, a call costs it no more. It is a waste in every other case:
//! - calls come slowly: each look would be in vain;
//! - calls come fast, from several clients: in the time that a sleep takes others arrive, and
//!   several calls in one turn are cheaper than a turn for each.
//!
//! So a core spins while waits are short, requests are [`APART_NS`] apart or more, and most spins
//! succeed ([`Habit`]).
//! Waits for a disk are told apart from waits for clients, for they have a length of their own; a
//! flush is always slept for ([`WaitFor::Flush`]).

use std::time::{Duration, Instant};

use crate::habit::Habit;

/// Requests that are closer than this on average make a sleep pay by what it gathers: it takes
/// 20 to 30 us. One client that calls again as soon as it has its answer takes longer for that.
const APART_NS: u64 = 16_000;
/// A pause counts as this long at most, so that it is soon forgotten.
const APART_CAP_NS: u64 = 200_000;
/// Averages move by this share, a power of two: the last dozens count.
const SHIFT: u32 = 3;

/// What a wait is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitFor {
    /// Clients, other cores.
    Calls,
    /// Those, and a file write that is under way.
    Disk,
    /// Those, and a flush: a thread of the ring does it, on the core's CPU. It would wait for the end
    /// of a spin, so there is none.
    Flush,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    wait_ns: u64,
    spins: Habit,
}

/// Decides for one core. Pure: told what happened, asked before each wait.
#[derive(Debug)]
pub(super) struct SpinPolicy {
    limit_ns: u64,
    seen: [Seen; 3],
    /// Time from one request, or end of a write, to the next.
    apart_ns: u64,
    last: Instant,
}

impl SpinPolicy {
    /// Spins last at most `limit`; zero: never.
    pub(super) fn new(limit: Duration, now: Instant) -> Self {
        let limit_ns = limit.as_nanos() as u64;
        let seen = Seen { wait_ns: limit_ns * 4, spins: Habit::default() };
        Self { limit_ns, seen: [seen; 3], apart_ns: APART_CAP_NS, last: now }
    }

    /// Whether the next wait begins with a spin.
    pub(super) fn wants(&mut self, what: WaitFor) -> bool {
        // A sleep's wait is measured with its wake-up, so it may be longer than what it waits for.
        let seen = &mut self.seen[what as usize];
        let pays = seen.wait_ns < self.limit_ns * 2 && self.apart_ns >= APART_NS;
        if what == WaitFor::Flush || !pays {
            return false;
        }
        seen.spins.wants()
    }

    /// How a spin ended.
    pub(super) fn spun(&mut self, what: WaitFor, found: bool) {
        self.seen[what as usize].spins.done(found);
    }

    /// How long a wait took.
    pub(super) fn waited(&mut self, what: WaitFor, ns: u64) {
        let seen = &mut self.seen[what as usize];
        // Capped, so that an idle time is soon forgotten.
        seen.wait_ns -= seen.wait_ns >> SHIFT;
        seen.wait_ns += ns.min(self.limit_ns * 4) >> SHIFT;
    }

    /// A turn that began `now` brought so much: requests, ends of writes.
    pub(super) fn came(&mut self, now: Instant, count: usize) {
        if count == 0 {
            return;
        }
        let since = now.saturating_duration_since(self.last).as_nanos() as u64;
        self.last = now;
        // Each counts once, so that a burst weighs what it is; capped as waits are.
        let apart = since.min(APART_CAP_NS) / count as u64;
        for _ in 0..count.min(1 << SHIFT) {
            self.apart_ns -= self.apart_ns >> SHIFT;
            self.apart_ns += apart >> SHIFT;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);

    /// A policy and the time that it lives in.
    struct Played {
        policy: SpinPolicy,
        now: Instant,
    }

    impl Played {
        fn new(limit: Duration) -> Self {
            let now = Instant::now();
            Self { policy: SpinPolicy::new(limit, now), now }
        }

        /// Plays so many waits that last `gap_us` (plus a wake-up of 30 us when slept through),
        /// each ended by `calls` of 5 us, and counts spins.
        fn play(&mut self, what: WaitFor, waits: u32, gap_us: u64, calls: usize) -> u32 {
            let mut spins = 0;
            for _ in 0..waits {
                let mut wait_us = gap_us + 30;
                if self.policy.wants(what) {
                    spins += 1;
                    let found = gap_us <= 50;
                    self.policy.spun(what, found);
                    if found {
                        wait_us = gap_us;
                    }
                }
                self.now += Duration::from_micros(wait_us);
                self.policy.waited(what, wait_us * 1_000);
                self.policy.came(self.now, calls);
                self.now += Duration::from_micros(5 * calls as u64);
            }
            spins
        }
    }

    #[test]
    fn one_call_after_the_other_is_spun_for_and_a_slow_trickle_is_not() {
        let mut core = Played::new(LIMIT);
        core.play(WaitFor::Calls, 64, 25, 1);
        assert_eq!(core.play(WaitFor::Calls, 100, 25, 1), 100);
        core.play(WaitFor::Calls, 64, 1_000, 1);
        assert_eq!(core.play(WaitFor::Calls, 1_000, 1_000, 1), 0);
        core.play(WaitFor::Calls, 64, 25, 1);
        assert_eq!(core.play(WaitFor::Calls, 100, 25, 1), 100, "it comes back");
    }

    #[test]
    fn gaps_just_too_long_are_tried_now_and_then_only() {
        let mut core = Played::new(LIMIT);
        core.play(WaitFor::Calls, 64, 60, 1);
        let spins = core.play(WaitFor::Calls, 6_500, 60, 1);
        assert!((90..=110).contains(&spins), "{spins}");
    }

    #[test]
    fn many_calls_at_a_time_are_slept_for() {
        let mut core = Played::new(LIMIT);
        core.play(WaitFor::Calls, 64, 10, 8);
        assert_eq!(core.play(WaitFor::Calls, 1_000, 10, 8), 0);
    }

    #[test]
    fn calls_that_follow_each_other_closely_are_slept_for() {
        let mut core = Played::new(LIMIT);
        // Slept through, such a wait gathers eight; spun through, it would end with one each time.
        core.play(WaitFor::Calls, 4, 4, 1);
        core.play(WaitFor::Calls, 8, 4, 8);
        assert_eq!(core.play(WaitFor::Calls, 1_000, 4, 8), 0);
    }

    #[test]
    fn a_slow_disk_does_not_keep_the_core_from_spinning_for_clients() {
        let mut core = Played::new(LIMIT);
        let (mut clients, mut disk) = (0, 0);
        for _ in 0..500 {
            clients += core.play(WaitFor::Calls, 1, 25, 1);
            disk += core.play(WaitFor::Disk, 1, 140, 1);
        }
        assert!(clients > 400, "{clients}");
        assert!(disk < 10, "{disk}");
    }

    #[test]
    fn a_flush_is_never_spun_for_and_its_length_is_not_the_writes() {
        let mut core = Played::new(LIMIT);
        let mut writes = 0;
        for _ in 0..500 {
            writes += core.play(WaitFor::Disk, 1, 25, 1);
            assert_eq!(core.play(WaitFor::Flush, 1, 25, 1), 0);
            assert_eq!(core.play(WaitFor::Flush, 1, 500, 1), 0);
        }
        assert!(writes > 400, "{writes}");
    }

    #[test]
    fn a_limit_of_zero_never_spins() {
        let mut core = Played::new(Duration::ZERO);
        assert_eq!(core.play(WaitFor::Calls, 1_000, 1, 1), 0);
    }
}
