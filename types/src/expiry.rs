//! When a record ceases to exist.
//!
//! A client gives a *time to live*; what counts is a *moment*, and it is fixed once: when the clock
//! stage has stamped the write, at that timestamp plus the time to live. The log, snapshots and
//! stores hold the moment, so a replay, a restored copy and another store let go of the record at
//! the same instant as the first.
//!
//! ```text
//!   request: After(ttl) ─ clock stage: timestamp ─► log, store, snapshot: At(timestamp + ttl)
//! ```
//! The entry keeps what the client said and whoever stores it asks for the moment with
//! [`Expiry::fixed_by`]: entries are borrowed from the request, and rewriting them would copy every
//! batch for the sake of the few that expire.

use std::{fmt, num::NonZeroU64};

use crate::{Timestamp, WallClock};

/// The moment from which on a record is absent: milliseconds since 1970, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExpireAt(NonZeroU64);

impl ExpireAt {
    /// The moment so many milliseconds after 1970; None at 0, which stands for never.
    pub const fn from_millis(millis: u64) -> Option<Self> {
        match NonZeroU64::new(millis) {
            Some(millis) => Some(Self(millis)),
            None => None,
        }
    }

    /// Milliseconds since 1970.
    pub const fn millis(self) -> u64 {
        self.0.get()
    }

    /// Whether the moment has come.
    pub const fn has_come(self, now: WallClock) -> bool {
        now.0 >= self.0.get()
    }
}

impl fmt::Display for ExpireAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How long the record that an entry writes exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expiry {
    /// Until it is removed or overwritten.
    #[default]
    Never,
    /// This long after the write's timestamp, milliseconds: what a client asks for.
    After(u64),
    /// Until this moment: what was fixed before, as the log and snapshots tell it.
    At(ExpireAt),
}

impl Expiry {
    /// The moment, given the timestamp of the entry's batch.
    #[inline]
    pub fn fixed_by(self, timestamp: Timestamp) -> Option<ExpireAt> {
        match self {
            Self::Never => None,
            Self::After(ttl_ms) => {
                // At 0 only a batch without timestamp could end up; the next moment is as past.
                ExpireAt::from_millis(timestamp.millis().saturating_add(ttl_ms).max(1))
            }
            Self::At(moment) => Some(moment),
        }
    }
}

impl From<Option<ExpireAt>> for Expiry {
    fn from(moment: Option<ExpireAt>) -> Self {
        moment.map_or(Self::Never, Self::At)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moment_is_the_timestamp_plus_the_time_to_live() {
        let timestamp = Timestamp::from_wall(WallClock(1_000));
        assert_eq!(Expiry::Never.fixed_by(timestamp), None);
        let moment = Expiry::After(500).fixed_by(timestamp).unwrap();
        assert_eq!(moment.millis(), 1_500);
        assert!(!moment.has_come(WallClock(1_499)) && moment.has_come(WallClock(1_500)));
        assert_eq!(Expiry::At(moment).fixed_by(Timestamp(u64::MAX)), Some(moment));
        assert_eq!(Expiry::After(u64::MAX).fixed_by(timestamp).unwrap().millis(), u64::MAX);
        assert_eq!(size_of::<Option<ExpireAt>>(), 8, "a record pays one word");
    }
}
