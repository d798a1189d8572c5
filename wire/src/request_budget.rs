//! Bounds the request bytes that one connection holds, without ever deadlocking it.
//!
//! Were the connection's window alone the bound, thirty streams could each fill a part of it
//! with an unfinished batch, and none could finish. So the bound is in two halves:
//!
//! ```text
//!  small half: bytes of messages within their stream's first window (256 KiB).
//!              Full: the stream that wanted more is refused as OVERLOADED.
//!  large half: whole messages above that, reserved when their prefix is read, first come
//!              first served. Not free yet: the stream waits for its WINDOW_UPDATE.
//! ```
//! A reserved message can always finish, since the connection's window is given back at once;
//! so the large half empties, and those that wait get their turn.

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

impl RequestBudget {
    pub(crate) const fn new(bytes_max: usize) -> Self {
        Self { small_bytes: 0, large_bytes: 0, half_bytes_max: bytes_max / 2 }
    }

    /// Bytes arrived on a stream. False: it may not keep them.
    #[inline]
    pub(crate) fn receive(&mut self, holding: &mut Holding, bytes: usize) -> bool {
        let Holding::Small(held) = holding else { return true };
        if self.small_bytes + bytes > self.half_bytes_max {
            return false;
        }
        self.small_bytes += bytes;
        *held += bytes as u32;
        true
    }

    /// Reserves a whole message of `total_bytes`. False: not now.
    pub(crate) fn reserve(&mut self, holding: &mut Holding, total_bytes: u32) -> bool {
        let total = total_bytes as usize;
        // Alone it always fits, whatever the configuration says: nothing may wait forever.
        if self.large_bytes > 0 && self.large_bytes + total > self.half_bytes_max {
            return false;
        }
        self.release(holding);
        self.large_bytes += total;
        *holding = Holding::Large(total_bytes);
        true
    }

    /// The message was handed out or dropped.
    #[inline]
    pub(crate) fn release(&mut self, holding: &mut Holding) {
        match std::mem::replace(holding, Holding::NONE) {
            Holding::Small(held) => self.small_bytes -= held as usize,
            Holding::Large(total) => self.large_bytes -= total as usize,
        }
    }

    #[cfg(test)]
    pub(crate) const fn is_empty(&self) -> bool {
        self.small_bytes == 0 && self.large_bytes == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_bounded_and_empty_again() {
        let mut budget = RequestBudget::new(200);
        let mut streams = [Holding::NONE; 4];
        assert!(budget.receive(&mut streams[0], 60));
        assert!(budget.receive(&mut streams[1], 40));
        assert!(!budget.receive(&mut streams[2], 1));

        // A reservation takes the stream's bytes out of the small half.
        assert!(budget.reserve(&mut streams[0], 90));
        assert!(budget.receive(&mut streams[0], 30));
        assert!(budget.receive(&mut streams[2], 60));
        assert!(!budget.reserve(&mut streams[1], 11));
        budget.release(&mut streams[0]);
        // Alone, even a message above the half is let through.
        assert!(budget.reserve(&mut streams[1], 500));
        assert!(!budget.reserve(&mut streams[3], 1));
        for stream in &mut streams {
            budget.release(stream);
        }
        assert!(budget.is_empty());
    }
}
