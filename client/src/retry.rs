//! Whether a failed entry is tried again, when, and what must happen first. Pure.
//!
//! Safe to retry is what changed nothing: a read, a refusal, a call that was never sent; and whatever has a
//! request id. Among
//! refusals only those are worth it that pass by themselves soon: a full queue, a partition that
//! starts, a node that drains. A full disk or full memory needs an operator; waiting for one inside a
//! call would only hide it, so the caller gets the refusal with the node's hint.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use stateside_types::{Reason, limits::CLIENT_REROUTES_MAX};

use crate::{
    Error, Options,
    error::{Effect, Refused},
};

/// What to do about a failed entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Tell the caller.
    GiveUp,
    /// Try again, not before this delay (the node's hint; the backoff may be longer).
    Retry {
        /// At least this long from now.
        not_before: Duration,
    },
    /// Ask for a fresh topology, then try again.
    Reroute,
    /// The answer would have been too large: ask for fewer keys at once.
    Halve,
}

/// Decides. `attempt` counts from 0: the attempt that failed.
/// `named`: the request has an id, so that it is executed once however often it is sent.
pub(crate) fn decide(
    error: &Error,
    effect: Effect,
    named: bool,
    attempt: u32,
    options: &Options,
) -> Verdict {
    if effect.is_read() && error.reason() == Some(Reason::ResponseTooLarge) {
        // No failure to be waited out: it ends when a single key is left. Not counted.
        return Verdict::Halve;
    }
    if attempt >= options.retries {
        return Verdict::GiveUp;
    }
    const SOON: Verdict = Verdict::Retry { not_before: Duration::ZERO };
    match error {
        Error::Refused(refused) => decide_refused(refused, named, attempt),
        // Not sent: nothing was applied.
        Error::Unreachable { .. } => SOON,
        Error::ConnectionLost { .. } => SOON,
        Error::OutcomeUnknown { .. } => {
            let repeatable = effect == Effect::Write { only_once: false };
            let retries = named || (repeatable && options.retry_unknown_writes);
            if retries { SOON } else { Verdict::GiveUp }
        }
        Error::DeadlineExceeded { .. } | Error::Protocol { .. } | Error::InvalidEndpoint { .. } => {
            Verdict::GiveUp
        }
    }
}

fn decide_refused(refused: &Refused, named: bool, attempt: u32) -> Verdict {
    match refused.reason {
        Some(
            Reason::Overloaded
            | Reason::PartitionStarting
            | Reason::PartitionBusy
            | Reason::SessionBehind
            | Reason::ShuttingDown,
        ) => Verdict::Retry { not_before: refused.retry_after.unwrap_or_default() },
        // Its outcome may be unknown, which the id settles.
        Some(Reason::LogUnavailable) if named => {
            Verdict::Retry { not_before: refused.retry_after.unwrap_or_default() }
        }
        Some(Reason::BadNode) if attempt < CLIENT_REROUTES_MAX => Verdict::Reroute,
        _ => Verdict::GiveUp,
    }
}

/// Waits between attempts: doubling from `backoff_initial` to `backoff_max`, each cut by a random
/// part of up to a half, so that clients that were refused together spread out.
#[derive(Debug)]
pub(crate) struct Backoff {
    initial: Duration,
    max: Duration,
    state: AtomicU64,
}

impl Backoff {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            initial: options.backoff_initial,
            max: options.backoff_max,
            state: AtomicU64::new(options.jitter_seed),
        }
    }

    /// The wait after `attempt` (from 0) failed, at least `not_before`. Jitter is added to a
    /// node's hint rather than cut from it.
    pub(crate) fn delay(&self, attempt: u32, not_before: Duration) -> Duration {
        let full = self.initial.saturating_mul(1_u32 << attempt.min(20)).min(self.max);
        let jitter = full.mul_f64(self.random_unit() / 2.0);
        (full - jitter).max(not_before + jitter)
    }

    /// splitmix64, uniform in [0, 1). Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom
    /// Number Generators", 2014.
    fn random_unit(&self) -> f64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.state.fetch_add(GAMMA, Ordering::Relaxed).wrapping_add(GAMMA);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Effect = Effect::Write { only_once: false };
    const ONCE: Effect = Effect::Write { only_once: true };

    fn options() -> Options {
        Options { jitter_seed: 7, ..Options::default() }
    }

    fn unknown() -> Error {
        Error::OutcomeUnknown { why: "reset".into() }
    }

    fn unreachable() -> Error {
        Error::Unreachable { address: "n:1".into(), why: "refused".into() }
    }

    fn retries(verdict: Verdict) -> bool {
        verdict != Verdict::GiveUp
    }

    #[test]
    fn an_unknown_write_is_retried_only_on_request_and_never_what_may_be_done_only_once() {
        let mut options = options();
        assert!(!retries(decide(&unknown(), PLAIN, false, 0, &options)));
        options.retry_unknown_writes = true;
        assert!(retries(decide(&unknown(), PLAIN, false, 0, &options)));
        assert!(!retries(decide(&unknown(), ONCE, false, 0, &options)));
        // Under an id it is executed once, whatever it is.
        options.retry_unknown_writes = false;
        assert!(retries(decide(&unknown(), ONCE, true, 0, &options)));
        let silent = Error::refused(Reason::LogUnavailable, "x");
        assert!(retries(decide(&silent, PLAIN, true, 0, &options)));
    }

    #[test]
    fn what_was_never_sent_is_retried_for_reads_and_writes_up_to_the_limit() {
        let options = options();
        for effect in [Effect::Read, PLAIN, ONCE] {
            assert!(retries(decide(&unreachable(), effect, false, 0, &options)));
            assert!(retries(decide(&unreachable(), effect, false, options.retries - 1, &options)));
            assert!(!retries(decide(&unreachable(), effect, true, options.retries, &options)));
        }
    }

    #[test]
    fn every_reason_is_retried_only_when_it_passes_by_itself() {
        let options = options();
        for &reason in Reason::ALL {
            let error = Error::refused(reason, "x");
            let expected = match reason {
                Reason::Overloaded
                | Reason::PartitionStarting
                | Reason::PartitionBusy
                | Reason::SessionBehind
                | Reason::ShuttingDown => Verdict::Retry { not_before: Duration::ZERO },
                Reason::BadNode => Verdict::Reroute,
                _ => Verdict::GiveUp,
            };
            assert_eq!(decide(&error, ONCE, false, 0, &options), expected, "{reason:?}");
        }
        let too_large = Error::refused(Reason::ResponseTooLarge, "x");
        assert_eq!(decide(&too_large, Effect::Read, false, 0, &options), Verdict::Halve);
        let bad_node = Error::refused(Reason::BadNode, "x");
        assert!(!retries(decide(&bad_node, PLAIN, false, CLIENT_REROUTES_MAX, &options)));
    }

    #[test]
    fn backoff_doubles_up_to_its_maximum_and_honours_the_nodes_hint() {
        let options = options();
        let backoff = Backoff::new(&options);
        for attempt in 0..40 {
            let full = options.backoff_initial * (1 << attempt.min(20));
            let full = full.min(options.backoff_max);
            for _ in 0..100 {
                let delay = backoff.delay(attempt, Duration::ZERO);
                assert!(delay >= full / 2 && delay <= full, "{attempt}: {delay:?}");
                let hint = Duration::from_secs(3);
                assert!(backoff.delay(attempt, hint) >= hint);
            }
        }
    }

    #[test]
    fn one_seed_replays_and_another_diverges() {
        let delays = |jitter_seed| {
            let backoff = Backoff::new(&Options { jitter_seed, ..options() });
            (0..8).map(|attempt| backoff.delay(attempt, Duration::ZERO)).collect::<Vec<_>>()
        };
        assert_eq!(delays(1), delays(1));
        assert_ne!(delays(1), delays(2));
    }
}
