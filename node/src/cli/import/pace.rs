//! The rate limit: when the next records may go. Pure.

use std::time::Duration;

/// Spreads records evenly: after `n` records, `n / rate` seconds have passed. Time that was lost waiting
/// for something else is not made up for by a burst.
#[derive(Debug)]
pub(super) struct Pace {
    rate_per_second: u64,
    /// When the next record is due, since the start.
    due: Duration,
}

impl Pace {
    pub(super) fn new(rate_per_second: u64) -> Self {
        assert!(rate_per_second > 0, "a rate of nothing would never end");
        Self { rate_per_second, due: Duration::ZERO }
    }

    /// How many records to let go at once: a tenth of a second's.
    pub(super) fn step(&self) -> usize {
        usize::try_from(self.rate_per_second / 10).unwrap_or(usize::MAX).max(1)
    }

    /// How long to wait before `records` may go, when `now` has passed since the start.
    pub(super) fn wait(&mut self, now: Duration, records: u64) -> Duration {
        let due = self.due.max(now);
        self.due = due + Duration::from_secs_f64(records as f64 / self.rate_per_second as f64);
        due - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_spread_evenly_and_lost_time_is_not_made_up_for() {
        let mut pace = Pace::new(100);
        assert_eq!(pace.step(), 10);
        let ms = Duration::from_millis;
        assert_eq!(pace.wait(ms(0), 10), ms(0));
        assert_eq!(pace.wait(ms(0), 10), ms(100));
        assert_eq!(pace.wait(ms(150), 10), ms(50));
        assert_eq!(pace.wait(ms(5_000), 10), ms(0));
        assert_eq!(pace.wait(ms(5_000), 10), ms(100));
        assert_eq!(Pace::new(3).step(), 1);
    }
}
