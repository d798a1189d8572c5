//! What a partition does while its records are copied to another store: it keeps the writes that
//! it accepts for the other store too.
//!
//! ```text
//!               copy begins                                    switch
//!   writes ─────────┼──────────────────────────────────────────────┼──────────► own store
//!                   │ trail: piece │ piece │ piece │ open …        │
//!                   ▼              └───────┴── rounds ─────────────┤
//!   other store   records as of here, then the trail's writes ─────┘
//! ```
//! Writers are only held back where they would keep the copy from ever ending: the room for waiting
//! writes shrinks with every round that the other store has caught up by.

use std::{collections::VecDeque, mem};

use stateside_pipeline::trail::push_write;
use stateside_types::{
    RequestMark, Sequence, Timestamp, WriteEntry,
    limits::{STORE_CHANGE_BACKLOG_BYTES_MAX, STORE_CHANGE_ROUND_BYTES, STORE_CHANGE_SWITCH_BYTES},
};

/// Bytes after which a piece ends.
const PIECE_BYTES: usize = 256 << 10;

/// Writes in their order, encoded as [`stateside_pipeline::trail`] says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TrailPiece {
    /// The writes.
    pub bytes: Vec<u8>,
    /// The last of them.
    pub last: Sequence,
}

/// Writes accepted since a copy began. Owned by its partition, used on its core's thread.
#[derive(Debug)]
pub struct Trail {
    pieces: VecDeque<TrailPiece>,
    open: TrailPiece,
    bytes: usize,
    room: usize,
}

impl Trail {
    pub(crate) fn new() -> Self {
        Self {
            pieces: VecDeque::new(),
            open: TrailPiece::default(),
            bytes: 0,
            room: STORE_CHANGE_BACKLOG_BYTES_MAX,
        }
    }

    pub(crate) fn record(
        &mut self,
        sequence: Sequence,
        timestamp: Timestamp,
        request: Option<&RequestMark<'_>>,
        entries: &[WriteEntry<'_>],
    ) {
        let before = self.open.bytes.len();
        push_write(&mut self.open.bytes, sequence, timestamp, request, entries);
        self.bytes += self.open.bytes.len() - before;
        self.open.last = sequence;
        if self.open.bytes.len() >= PIECE_BYTES {
            self.pieces.push_back(mem::take(&mut self.open));
        }
    }

    /// Whether writes have to wait until some of these have been taken.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes > self.room
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that may be held from now on.
    pub fn allow(&mut self, room: usize) {
        self.room = room;
    }

    /// Takes out what there is, in its order.
    pub fn take(&mut self) -> impl Iterator<Item = TrailPiece> + use<> {
        if !self.open.bytes.is_empty() {
            self.pieces.push_back(mem::take(&mut self.open));
        }
        self.bytes = 0;
        mem::take(&mut self.pieces).into_iter()
    }
}

/// How the other store catches up with the writes, so that it gets there whatever they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyPace {
    room: usize,
}

impl Default for CopyPace {
    fn default() -> Self {
        Self { room: STORE_CHANGE_BACKLOG_BYTES_MAX }
    }
}

impl CopyPace {
    /// Bytes that may wait for the other store. Above that, writes are refused as overloaded.
    pub const fn room(self) -> usize {
        self.room
    }

    /// A round begins with so many bytes waiting: how many of them it applies. While it does, at
    /// most half as many may come: every round leaves less than the one before.
    pub fn round(&mut self, waiting: usize) -> usize {
        let taken = waiting.min(STORE_CHANGE_ROUND_BYTES);
        let floor = STORE_CHANGE_SWITCH_BYTES / 2;
        self.room = (waiting - taken / 2).clamp(floor.min(self.room), self.room);
        taken
    }

    /// Whether so few bytes are waiting that the stores can be switched.
    pub const fn is_close(waiting: usize) -> bool {
        waiting <= STORE_CHANGE_SWITCH_BYTES
    }
}

#[cfg(test)]
mod tests {
    use stateside_pipeline::trail::next_write;
    use stateside_types::{WallClock, limits::BATCH_BYTES_MAX};

    use super::*;

    #[test]
    fn what_is_recorded_comes_out_once_and_in_order() {
        let mut trail = Trail::new();
        let value = vec![7; 1_000];
        let mut seen = Vec::new();
        for sequence in 1..=1_000 {
            let entries = [WriteEntry::put(b"key", &value)];
            trail.record(Sequence(sequence), Timestamp::from_wall(WallClock(1)), None, &entries);
            if sequence % 400 == 0 || sequence == 1_000 {
                let pieces: Vec<_> = trail.take().collect();
                assert!(pieces.len() > 1 || sequence == 1_000, "long runs come in several pieces");
                assert_eq!(pieces.last().map(|piece| piece.last), Some(Sequence(sequence)));
                for piece in &pieces {
                    assert!(piece.bytes.len() < PIECE_BYTES + 1_100);
                    let (mut rest, mut entries) = (piece.bytes.as_slice(), Vec::new());
                    while let Some(write) = next_write(&mut rest, &mut entries).unwrap() {
                        seen.push(write.sequence.0);
                    }
                    assert_eq!(seen.last(), Some(&piece.last.0));
                }
                assert_eq!(trail.bytes(), 0);
            }
        }
        assert_eq!(seen, (1..=1_000).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_trail_says_so_until_it_is_taken() {
        let mut trail = Trail::new();
        trail.allow(10);
        assert!(!trail.is_full());
        trail.record(Sequence(1), Timestamp::ZERO, None, &[WriteEntry::put(b"key", b"value")]);
        assert!(trail.is_full() && trail.bytes() > 10);
        assert_eq!(trail.take().count(), 1);
        assert!(!trail.is_full());
    }

    /// Writers that use all the room that there is, with the largest batches, and a store that is
    /// slower than they: it still gets there, and in a number of rounds that is known.
    #[test]
    fn the_other_store_catches_up_with_the_greediest_writers() {
        for start in [0, 1, STORE_CHANGE_SWITCH_BYTES, 100 << 20, STORE_CHANGE_BACKLOG_BYTES_MAX] {
            let mut pace = CopyPace::default();
            let mut waiting = start;
            let mut rounds = 0;
            while !CopyPace::is_close(waiting) {
                let before = waiting;
                let taken = pace.round(waiting);
                assert!(taken > 0 && taken <= STORE_CHANGE_ROUND_BYTES);
                waiting -= taken;
                if waiting <= pace.room() {
                    // Up to the brim, and one batch that found the last byte of room.
                    waiting = pace.room() + BATCH_BYTES_MAX + (300 << 10);
                }
                assert!(waiting < before || before < 3 * STORE_CHANGE_SWITCH_BYTES);
                rounds += 1;
                assert!(rounds < 60, "from {start}: still {waiting} after {rounds} rounds");
            }
        }
    }
}
