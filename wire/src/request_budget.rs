//! Bounds the request bytes that one connection holds, without ever deadlocking it.
//!
//! Were the connection's window alone the bound, thirty streams could each fill a part of it
//! with an unfinished batch, and none could finish. So the bound is in two halves:
//!
//! ```text
//!  small half: bytes of messages within their stream's first window (128 KiB).
//!              Full: the stream that wanted more is refused as OVERLOADED.
//!  large half: whole messages above that, reserved when their prefix is read, first come
//!              first served. Not free yet: the stream waits for its WINDOW_UPDATE.
//! ```
//! A reserved message can always finish, since the connection's window is given back at once;
//! so the large half empties, and those that wait get their turn.
//!
//! A core's connections together have a bound of their own: an [`Account`] that they share. There
//! nobody waits, since what would end the wait happens in another session: full means refused.

use std::cell::Cell;

/// Bytes that the sessions of a core hold together, of one kind, and their limit.
pub(crate) struct Account {
    bytes: Cell<usize>,
    bytes_max: usize,
}

impl Account {
    pub(crate) const fn new(bytes_max: usize) -> Self {
        Self { bytes: Cell::new(0), bytes_max }
    }

    /// Adds to what is held. False: there is no room, and nothing was added.
    #[inline]
    pub(crate) fn add(&self, bytes: usize) -> bool {
        let sum = self.bytes.get() + bytes;
        let fits = sum <= self.bytes_max;
        if fits {
            self.bytes.set(sum);
        }
        fits
    }

    #[inline]
    pub(crate) fn subtract(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() - bytes);
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.get()
    }
}

/// What a connection's request messages hold.
pub(crate) struct RequestBudget {
    small_bytes: usize,
    large_bytes: usize,
    half_bytes_max: usize,
}

/// What one stream holds of the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holding {
    /// Bytes received so far.
    Small(u32),
    /// The whole message, reserved.
    Large(u32),
}

impl Holding {
    pub(crate) const NONE: Self = Self::Small(0);
}

/// What became of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reserved {
    /// The whole message may come.
    Yes,
    /// Other messages of the connection have to be finished first.
    NotYet,
    /// The core holds too much.
    Refused,
}

impl RequestBudget {
    pub(crate) const fn new(bytes_max: usize) -> Self {
        Self { small_bytes: 0, large_bytes: 0, half_bytes_max: bytes_max / 2 }
    }

    /// Bytes arrived on a stream. False: it may not keep them.
    #[inline]
    pub(crate) fn receive(&mut self, core: &Account, holding: &mut Holding, bytes: usize) -> bool {
        let Holding::Small(held) = holding else { return true };
        if self.small_bytes + bytes > self.half_bytes_max || !core.add(bytes) {
            return false;
        }
        self.small_bytes += bytes;
        *held += bytes as u32;
        true
    }

    /// Reserves a whole message of `total_bytes`.
    pub(crate) fn reserve(
        &mut self,
        core: &Account,
        holding: &mut Holding,
        total_bytes: u32,
    ) -> Reserved {
        let total = total_bytes as usize;
        // Alone it always fits, whatever the configuration says: nothing may wait forever.
        if self.large_bytes > 0 && self.large_bytes + total > self.half_bytes_max {
            return Reserved::NotYet;
        }
        self.release(core, holding);
        if !core.add(total) {
            return Reserved::Refused;
        }
        self.large_bytes += total;
        *holding = Holding::Large(total_bytes);
        Reserved::Yes
    }

    /// The message was handed out or dropped.
    #[inline]
    pub(crate) fn release(&mut self, core: &Account, holding: &mut Holding) {
        match std::mem::replace(holding, Holding::NONE) {
            Holding::Small(held) => {
                self.small_bytes -= held as usize;
                core.subtract(held as usize);
            }
            Holding::Large(total) => {
                self.large_bytes -= total as usize;
                core.subtract(total as usize);
            }
        }
    }

    /// All that is held.
    pub(crate) const fn held_bytes(&self) -> usize {
        self.small_bytes + self.large_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_bounded_and_empty_again() {
        let core = Account::new(10_000);
        let mut budget = RequestBudget::new(200);
        let mut streams = [Holding::NONE; 4];
        assert!(budget.receive(&core, &mut streams[0], 60));
        assert!(budget.receive(&core, &mut streams[1], 40));
        assert!(!budget.receive(&core, &mut streams[2], 1));

        // A reservation takes the stream's bytes out of the small half.
        assert_eq!(budget.reserve(&core, &mut streams[0], 90), Reserved::Yes);
        assert!(budget.receive(&core, &mut streams[0], 30));
        assert!(budget.receive(&core, &mut streams[2], 60));
        assert_eq!(budget.reserve(&core, &mut streams[1], 11), Reserved::NotYet);
        budget.release(&core, &mut streams[0]);
        // Alone, even a message above the half is let through.
        assert_eq!(budget.reserve(&core, &mut streams[1], 500), Reserved::Yes);
        assert_eq!(budget.reserve(&core, &mut streams[3], 1), Reserved::NotYet);
        assert_eq!((budget.held_bytes(), core.bytes()), (560, 560));
        for stream in &mut streams {
            budget.release(&core, stream);
        }
        assert_eq!((budget.held_bytes(), core.bytes()), (0, 0));
    }

    #[test]
    fn what_connections_hold_together_is_bounded() {
        let core = Account::new(150);
        let (mut one, mut other) = (RequestBudget::new(200), RequestBudget::new(200));
        let mut streams = [Holding::NONE; 2];
        assert!(one.receive(&core, &mut streams[0], 100));
        assert!(!other.receive(&core, &mut streams[1], 51));
        assert_eq!(other.reserve(&core, &mut streams[1], 51), Reserved::Refused);
        assert!(other.receive(&core, &mut streams[1], 50));
        one.release(&core, &mut streams[0]);
        assert_eq!(other.reserve(&core, &mut streams[1], 150), Reserved::Yes);
    }
}
