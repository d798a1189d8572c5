//! Token buckets: how many writes pass, by prefix of their keys.
//!
//! ```text
//!   rate_per_s ──► ┌─────────┐ burst
//!                  │ ● ● ● ● │ ──► one token a write
//!                  └─────────┘     too few: refused, with the time until there are enough
//! ```
//! Time is what the wall clock said when the write arrived. When the clock jumps back a bucket
//! just does not fill until it has caught up with the time of its last filling; when it jumps
//! ahead it fills, to `burst` at most.
//!
//! A bucket that is full is as good as none. So with one bucket for each prefix met, full ones
//! are forgotten when there are too many; prefixes that still find no room share one bucket:
//! whoever invents prefixes gets at most one rate more.

use std::{collections::BTreeMap, mem};

use stateside_types::{WallClock, limits::RATE_BUCKETS_MAX};

/// How often full buckets are looked for at most, milliseconds: each time costs a pass over all.
const SWEEP_EVERY_MS: u64 = 1_000;
/// Tokens are counted in thousandths: a rate of n a second is n thousandths a millisecond.
const TOKEN: u64 = 1_000;
/// The bucket of prefixes that found no room.
const SHARED: usize = 0;

/// Which bucket a write takes its tokens from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RateBy<'a> {
    /// One of a fixed number.
    Slot(usize),
    /// The one of this beginning of the key.
    Beginning(&'a [u8]),
}

/// Too few tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Short {
    /// Writes that were asked for.
    pub(crate) asked: u64,
    /// Milliseconds until there are enough; None: the bucket never holds so many.
    pub(crate) enough_in_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    thousandths: u64,
    filled_at: WallClock,
    /// Writes that the batch at hand asks of it.
    asked: u64,
}

/// The buckets of one stage. A write is asked for, checked, and then takes its tokens or not:
/// [`Self::begin`], [`Self::ask`] for each entry, [`Self::check`], and [`Self::take`] only if
/// nothing else refuses it.
#[derive(Debug)]
pub(crate) struct RateLimit {
    rate_per_s: u64,
    burst: u64,
    /// The shared one, the fixed ones, then those of `by_beginning`.
    buckets: Vec<Bucket>,
    fixed: usize,
    by_beginning: BTreeMap<Box<[u8]>, usize>,
    swept_at: WallClock,
    /// Buckets that the batch at hand asks.
    touched: Vec<usize>,
}

impl RateLimit {
    /// Buckets for a rate, `slots` of them fixed.
    pub(crate) fn new(rate_per_s: u64, burst: u64, slots: usize) -> Self {
        assert!(rate_per_s > 0 && burst > 0, "a rate lets something pass");
        let mut new = Self {
            rate_per_s,
            burst,
            buckets: Vec::new(),
            fixed: slots + 1,
            by_beginning: BTreeMap::new(),
            swept_at: WallClock(0),
            touched: Vec::new(),
        };
        new.buckets = vec![new.full(WallClock(0)); new.fixed];
        new
    }

    /// A write is asked for. What an earlier one asked and did not take is forgotten.
    pub(crate) fn begin(&mut self, now: WallClock) {
        for at in self.touched.drain(..) {
            self.buckets[at].asked = 0;
        }
        let is_due = now.0.abs_diff(self.swept_at.0) >= SWEEP_EVERY_MS;
        if self.by_beginning.len() >= RATE_BUCKETS_MAX && is_due {
            self.sweep(now);
        }
    }

    /// One entry of the write.
    pub(crate) fn ask(&mut self, by: RateBy<'_>, now: WallClock) {
        let at = match by {
            RateBy::Slot(slot) => slot + 1,
            RateBy::Beginning(beginning) => match self.by_beginning.get(beginning) {
                Some(at) => *at,
                None if self.by_beginning.len() >= RATE_BUCKETS_MAX => SHARED,
                None => {
                    self.by_beginning.insert(beginning.into(), self.buckets.len());
                    self.buckets.push(self.full(now));
                    self.buckets.len() - 1
                }
            },
        };
        if self.buckets[at].asked == 0 {
            self.touched.push(at);
        }
        self.buckets[at].asked += 1;
    }

    /// Whether every bucket has what is asked of it.
    ///
    /// # Errors
    /// The bucket that is shortest of what it is asked.
    pub(crate) fn check(&mut self, now: WallClock) -> Result<(), Short> {
        let mut worst: Option<Short> = None;
        for &at in &self.touched {
            let bucket = &mut self.buckets[at];
            bucket.fill(now, self.rate_per_s, self.burst);
            let asked = bucket.asked;
            let missing = (asked * TOKEN).saturating_sub(bucket.thousandths);
            if missing == 0 {
                continue;
            }
            let enough_in_ms =
                (asked <= self.burst).then(|| missing.div_ceil(self.rate_per_s).max(1));
            let short = Short { asked, enough_in_ms };
            let later = |one: Short| one.enough_in_ms.unwrap_or(u64::MAX);
            if worst.is_none_or(|worst| later(short) > later(worst)) {
                worst = Some(short);
            }
        }
        worst.map_or(Ok(()), Err)
    }

    /// Takes what was asked for and checked.
    pub(crate) fn take(&mut self) {
        for at in self.touched.drain(..) {
            let bucket = &mut self.buckets[at];
            let asked = mem::take(&mut bucket.asked);
            bucket.thousandths -= asked * TOKEN;
        }
    }

    fn full(&self, now: WallClock) -> Bucket {
        Bucket { thousandths: self.burst * TOKEN, filled_at: now, asked: 0 }
    }

    /// Forgets buckets that are full.
    fn sweep(&mut self, now: WallClock) {
        self.swept_at = now;
        let mut kept = self.buckets[..self.fixed].to_vec();
        let (rate, burst) = (self.rate_per_s, self.burst);
        let buckets = &mut self.buckets;
        self.by_beginning.retain(|_, at| {
            let bucket = &mut buckets[*at];
            bucket.fill(now, rate, burst);
            *at = kept.len();
            let is_full = bucket.thousandths == burst * TOKEN;
            if !is_full {
                kept.push(*bucket);
            }
            !is_full
        });
        self.buckets = kept;
    }
}

impl Bucket {
    fn fill(&mut self, now: WallClock, rate_per_s: u64, burst: u64) {
        let elapsed_ms = now.0.saturating_sub(self.filled_at.0);
        let filled = self.thousandths.saturating_add(elapsed_ms.saturating_mul(rate_per_s));
        self.thousandths = filled.min(burst * TOKEN);
        self.filled_at = self.filled_at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(limit: &mut RateLimit, by: RateBy<'_>, entries: u64, now: u64) -> Result<(), Short> {
        let now = WallClock(now);
        limit.begin(now);
        (0..entries).for_each(|_| limit.ask(by, now));
        limit.check(now)?;
        limit.take();
        Ok(())
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut limit = RateLimit::new(10, 3, 1);
        let slot = RateBy::Slot(0);
        assert_eq!(write(&mut limit, slot, 3, 1_000), Ok(()));
        let short = Short { asked: 1, enough_in_ms: Some(100) };
        assert_eq!(write(&mut limit, slot, 1, 1_000), Err(short));
        // Refused writes take nothing; what they were told holds.
        assert_eq!(write(&mut limit, slot, 1, 1_099).unwrap_err().enough_in_ms, Some(1));
        assert_eq!(write(&mut limit, slot, 1, 1_100), Ok(()));
        assert_eq!(write(&mut limit, slot, 4, 9_999).unwrap_err().enough_in_ms, None);
        assert_eq!(write(&mut limit, slot, 3, 9_999), Ok(()));
        // The clock jumps back: nothing fills, nothing breaks.
        assert_eq!(write(&mut limit, slot, 1, 5), Err(Short { asked: 1, enough_in_ms: Some(100) }));
        assert_eq!(write(&mut limit, slot, 1, 10_099), Ok(()));
    }

    #[test]
    fn beginnings_have_a_bucket_each_until_there_are_too_many() {
        let mut limit = RateLimit::new(1, 1, 0);
        let name = |n: usize| format!("tenant-{n}/").into_bytes();
        for n in 0..RATE_BUCKETS_MAX {
            assert_eq!(write(&mut limit, RateBy::Beginning(&name(n)), 1, 5_000), Ok(()));
        }
        // Two that find no room share a bucket.
        assert_eq!(write(&mut limit, RateBy::Beginning(b"late"), 1, 5_000), Ok(()));
        assert!(write(&mut limit, RateBy::Beginning(b"later"), 1, 5_000).is_err());
        assert!(write(&mut limit, RateBy::Beginning(&name(7)), 1, 5_000).is_err());
        // All are full again: they are forgotten, and everyone has a bucket of its own.
        assert_eq!(write(&mut limit, RateBy::Beginning(b"late"), 1, 6_000), Ok(()));
        assert_eq!(write(&mut limit, RateBy::Beginning(b"later"), 1, 6_000), Ok(()));
        assert_eq!(limit.by_beginning.len(), 2);
        assert!(write(&mut limit, RateBy::Beginning(b"late"), 1, 6_000).is_err());
    }

    proptest! {
        /// Over any stretch of time no more passes than the burst and the rate, and whoever waits
        /// as long as told gets through.
        #[test]
        fn never_more_than_the_rate_and_no_one_waits_in_vain(
            rate in 1_u64..5_000,
            burst in 1_u64..100,
            steps in prop::collection::vec((0_u64..200, 1_u64..20), 1..60),
        ) {
            let mut limit = RateLimit::new(rate, burst, 1);
            let (mut now, mut passed) = (1_000_000, 0);
            let start = now;
            for (wait, entries) in steps {
                now += wait;
                match write(&mut limit, RateBy::Slot(0), entries, now) {
                    Ok(()) => passed += entries,
                    Err(Short { enough_in_ms: None, .. }) => prop_assert!(entries > burst),
                    Err(Short { enough_in_ms: Some(wait), .. }) => {
                        now += wait;
                        prop_assert_eq!(write(&mut limit, RateBy::Slot(0), entries, now), Ok(()));
                        passed += entries;
                    }
                }
                prop_assert!(passed * 1_000 <= burst * 1_000 + (now - start) * rate);
            }
        }
    }
}
