//! Which records there are while new ones are inserted. Pure.
//!
//! Inserts overtake each other, so the newest number that was handed out may not be stored yet, or
//! ever. Reads choose below the lowest number that is still under way, as YCSB does: a read that
//! finds nothing then says something about the node, not about this program.

use std::collections::BTreeSet;

/// Numbers of the records: `0..stored` are there, `stored..next` are under way or done ahead of one that is.
#[derive(Debug)]
pub(super) struct Inserts {
    next: u64,
    stored: u64,
    done_ahead: BTreeSet<u64>,
}

impl Inserts {
    /// `0..records` are there.
    pub(super) fn new(records: u64) -> Self {
        Self { next: records, stored: records, done_ahead: BTreeSet::new() }
    }

    /// The number of a new record.
    pub(super) fn take(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Its insert has ended. Also when it failed: otherwise nothing behind it would ever be read.
    pub(super) fn ended(&mut self, number: u64) {
        assert!(
            number >= self.stored && number < self.next,
            "a number ends once, after it was taken"
        );
        let new = self.done_ahead.insert(number);
        assert!(new, "a number ends once");
        while self.done_ahead.remove(&self.stored) {
            self.stored += 1;
        }
    }

    /// Records below this number may be read.
    pub(super) fn stored(&self) -> u64 {
        self.stored
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_may_be_read_is_everything_before_the_first_insert_under_way(
            records in 1..10_u64, choices in prop::collection::vec(any::<(bool, u8)>(), 0..200),
        ) {
            let mut inserts = Inserts::new(records);
            let mut under_way: Vec<u64> = Vec::new();
            let mut taken = records;
            for (take, choice) in choices {
                if take || under_way.is_empty() {
                    let number = inserts.take();
                    prop_assert_eq!(number, taken);
                    taken += 1;
                    under_way.push(number);
                } else {
                    inserts.ended(under_way.remove(usize::from(choice) % under_way.len()));
                }
                prop_assert_eq!(inserts.stored(), under_way.iter().copied().min().unwrap_or(taken));
            }
        }
    }
}
