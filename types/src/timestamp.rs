//! Hybrid logical timestamps: 48 bits of milliseconds since 1970, 16 bits of counter.
//!
//! ```text
//!  63                        16 15        0
//! ┌────────────────────────────┬───────────┐
//! │ milliseconds since 1970    │ counter   │
//! └────────────────────────────┴───────────┘
//! ```
//! Source: Kulkarni et al., "Logical Physical Clocks", 2014; the packing is CockroachDB's and
//! YugabyteDB's idea in one word, so timestamps compare as integers.

use std::fmt;

/// What the wall clock said, in milliseconds since 1970. Passed in: pure code reads no clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallClock(pub u64);

/// A hybrid logical timestamp. Integers compare as timestamps do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Before any write.
    pub const ZERO: Self = Self(0);
    const COUNTER_BITS: u32 = 16;

    /// The first timestamp of a millisecond.
    pub const fn from_wall(now: WallClock) -> Self {
        Self(now.0 << Self::COUNTER_BITS)
    }

    /// The physical part, milliseconds since 1970.
    pub const fn millis(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }

    /// The logical part: distinguishes timestamps of one millisecond.
    pub const fn counter(self) -> u16 {
        (self.0 & 0xffff) as u16
    }

    /// The smallest timestamp after `self` that is not before `now`. More than 65,536 in one
    /// millisecond carry into the physical part, which then runs ahead of the wall clock.
    #[must_use]
    pub const fn advance(self, now: WallClock) -> Self {
        let wall = Self::from_wall(now);
        if wall.0 > self.0 { wall } else { Self(self.0 + 1) }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.millis(), self.counter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advance_is_strictly_monotonic_when_the_wall_clock_jumps_back() {
        let mut last = Timestamp::from_wall(WallClock(1_000));
        for now in [1_000, 1_000, 400, 0, 1_001, 999, 5_000] {
            let next = last.advance(WallClock(now));
            assert!(next > last);
            assert!(next.millis() >= now);
            last = next;
        }
        assert_eq!(last, Timestamp::from_wall(WallClock(5_000)));
    }

    #[test]
    fn a_full_counter_carries_into_the_milliseconds() {
        let full = Timestamp((7 << 16) | 0xffff);
        let next = full.advance(WallClock(7));
        assert_eq!((next.millis(), next.counter()), (8, 0));
    }
}
