//! When the log's next write waits a little for more records.
//!
//! Callers that have just been answered mostly call again soon. If the next write starts with the
//! first of them, the others wait for that write and then for one of their own: two callers get
//! less together than one alone, each waiting for the other's write. If it waits until all are
//! back, they share one. Of many callers one half is better on disk while the other half calls;
//! without any wait groups get smaller than that, and more of them pay a write's fixed cost.
//!
//! So after a write that several shared the next one waits, for at most half as long as the write
//! took and never longer than a millisecond, until everyone is there; where that mostly fails, until
//! most of them are, for half of that time; and where that mostly fails as well, not at all. A lone
//! caller never waits.
//! PostgreSQL has this as `commit_delay`, a fixed time that is best at half of a flush, and
//! `commit_siblings`.

use std::time::{Duration, Instant};

use stateside_types::limits::{LOG_COMPANY_MAX, LOG_COMPANY_WAIT_MAX_US};

use crate::habit::Habit;

/// Decides for one log. Pure: told what happened, asked before each write.
#[derive(Debug, Default)]
pub(super) struct CommitDelay {
    everyone: Habit,
    most: Habit,
    /// What the next write waits for, if it waits.
    wait: Option<Wait>,
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    since: Instant,
    longest: Duration,
    /// Records of the last write and those that came during it.
    company: u32,
    /// Chosen when the first record is there.
    goal: Option<Goal>,
}

#[derive(Clone, Copy, Debug)]
enum Goal {
    Everyone,
    Most,
}

impl CommitDelay {
    /// A write has ended `now` that took so long and held `written` records; `waiting` more came
    /// meanwhile.
    pub(super) fn ended(&mut self, now: Instant, took: Duration, written: u32, waiting: u32) {
        let company = written.saturating_add(waiting);
        let is_shared = (2..=LOG_COMPANY_MAX).contains(&company);
        // A disk that stood still for seconds says nothing about when callers are back.
        let longest = (took / 2).min(Duration::from_micros(LOG_COMPANY_WAIT_MAX_US));
        self.wait = is_shared.then_some(Wait { since: now, longest, company, goal: None });
    }

    /// `waiting` records could be written, one at least: until when to wait for more, if at all.
    /// Once it says "not at all" that holds until the next write.
    pub(super) fn waits(&mut self, now: Instant, waiting: u32) -> Option<Instant> {
        let Wait { since, longest, company, goal } = self.wait.take()?;
        let (for_everyone, for_most) = (since + longest, since + longest / 2);
        let most = company / 2 + 1;
        let goal = match goal {
            Some(goal) => goal,
            None if now < for_everyone && self.everyone.wants() => Goal::Everyone,
            None if now < for_most && waiting < most && self.most.wants() => Goal::Most,
            None => return None,
        };
        let (wanted, until, habit) = match goal {
            Goal::Everyone => (company, for_everyone, &mut self.everyone),
            Goal::Most => (most, for_most, &mut self.most),
        };
        let is_reached = waiting >= wanted;
        if is_reached || now >= until {
            habit.done(is_reached);
            return None;
        }
        self.wait = Some(Wait { since, longest, company, goal: Some(goal) });
        Some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Duration = Duration::from_micros(200);

    /// What happened in a model of a core, a disk that takes [`WRITE`] and callers.
    #[derive(Debug, Default)]
    struct Played {
        records: u32,
        writes: u32,
        waits: u32,
        in_vain: u32,
    }

    /// Plays callers of which each calls again so long after its answer, one answer every
    /// `apart` of the core's time, for a second.
    fn play_callers(delay: &mut Option<CommitDelay>, callers: u64, apart: Duration) -> Played {
        let start = Instant::now();
        let mut next: Vec<Instant> = (0..callers).map(|i| start + apart * i as u32).collect();
        play(delay, start, &mut next, |answered, nth| Some(answered + apart * (nth + 1)))
    }

    /// Plays records that come at these times, and again when `again` says so.
    fn play(
        delay: &mut Option<CommitDelay>,
        start: Instant,
        next: &mut Vec<Instant>,
        again: impl Fn(Instant, u32) -> Option<Instant>,
    ) -> Played {
        let mut played = Played::default();
        let mut now = start;
        let take = |next: &mut Vec<Instant>, until: Instant| {
            let before = next.len();
            next.retain(|at| *at > until);
            (before - next.len()) as u32
        };
        let mut waiting = 0;
        while now < start + Duration::from_secs(1) {
            waiting += take(next, now);
            let first = next.iter().min().copied();
            if waiting == 0 {
                let Some(first) = first else { break };
                now = first;
                continue;
            }
            if let Some(until) = delay.as_mut().and_then(|delay| delay.waits(now, waiting)) {
                played.waits += 1;
                match first.filter(|first| *first < until) {
                    Some(first) => now = first,
                    None => (now, played.in_vain) = (until, played.in_vain + 1),
                }
                continue;
            }
            let written = std::mem::take(&mut waiting);
            now += WRITE;
            waiting = take(next, now);
            played.records += written;
            played.writes += 1;
            if let Some(delay) = delay {
                delay.ended(now, WRITE, written, waiting);
            }
            next.extend((0..written).filter_map(|nth| again(now, nth)));
        }
        played
    }

    #[test]
    fn a_few_callers_share_each_write() {
        for callers in 2..=6 {
            let apart = Duration::from_micros(15);
            let without = play_callers(&mut None, callers, apart);
            let with = play_callers(&mut Some(CommitDelay::default()), callers, apart);
            let shared = f64::from(with.records) / f64::from(with.writes);
            assert!(shared > 0.95 * callers as f64, "{callers} callers: {with:?}");
            assert!(with.records * 10 > without.records * 13, "{callers}: {with:?} {without:?}");
        }
    }

    #[test]
    fn many_callers_lose_nothing() {
        for callers in [16, 32, 50, 64, 200] {
            let apart = Duration::from_micros(10);
            let without = play_callers(&mut None, callers, apart);
            let with = play_callers(&mut Some(CommitDelay::default()), callers, apart);
            assert!(with.records * 20 > without.records * 19, "{callers}: {with:?} {without:?}");
            assert!(with.writes <= without.writes, "{callers}: {with:?} {without:?}");
        }
    }

    #[test]
    fn a_lone_caller_and_large_groups_never_wait() {
        let apart = Duration::from_micros(15);
        assert_eq!(play_callers(&mut Some(CommitDelay::default()), 1, apart).waits, 0);
        let (mut delay, now) = (CommitDelay::default(), Instant::now());
        for (written, waiting) in
            [(1, 0), (0, 1), (LOG_COMPANY_MAX, 1), (1, LOG_COMPANY_MAX), (u32::MAX, 1)]
        {
            delay.ended(now, WRITE, written, waiting);
            assert_eq!(delay.waits(now, 1), None, "{written} {waiting}");
        }
    }

    #[test]
    fn callers_that_do_not_come_back_are_soon_not_waited_for() {
        // Each record is of a caller of its own, at any time: nothing says when the next comes.
        let start = Instant::now();
        let mut random = 12_345_u64;
        let mut at = start;
        let mut next = Vec::new();
        while at < start + Duration::from_secs(1) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let share = ((random >> 11) as f64 / (1_u64 << 53) as f64).max(1e-9);
            at += WRITE.mul_f64(-share.ln());
            next.push(at);
        }
        let played = play(&mut Some(CommitDelay::default()), start, &mut next, |_, _| None);
        assert!(played.in_vain * 10 < played.writes, "{played:?}");
    }

    #[test]
    fn what_came_before_the_time_is_up_ends_the_wait() {
        let (mut delay, now) = (CommitDelay::default(), Instant::now());
        delay.ended(now, WRITE, 1, 1);
        assert_eq!(delay.waits(now, 1), Some(now + WRITE / 2));
        assert_eq!(delay.waits(now + WRITE / 4, 1), Some(now + WRITE / 2), "still");
        assert_eq!(delay.waits(now + WRITE / 4, 2), None, "everyone is there");
        assert_eq!(delay.waits(now + WRITE / 4, 1), None, "and that was it");
        delay.ended(now, WRITE, 2, 0);
        assert_eq!(delay.waits(now + WRITE / 2, 1), None, "too late to begin");
    }

    #[test]
    fn a_disk_that_stood_still_makes_nobody_wait_longer() {
        let (mut delay, now) = (CommitDelay::default(), Instant::now());
        delay.ended(now, Duration::from_secs(20), 1, 1);
        let longest = Duration::from_micros(LOG_COMPANY_WAIT_MAX_US);
        assert_eq!(delay.waits(now, 1), Some(now + longest));
        assert_eq!(delay.waits(now + longest, 1), None);
    }
}
