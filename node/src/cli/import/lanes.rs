//! Which records travel together, and up to where everything has arrived. Pure.
//!
//! Batches are under way at the same time and may overtake each other, but two records of one key
//! must not: the later one in the input has to win. So every key belongs to one lane, and a lane sends
//! one batch at a time. Lanes follow partitions, which makes a batch one request that one partition
//! writes at once.
//!
//! ```text
//!  input ─► lane 0  [waiting ... ] ─► one batch under way ─► node
//!           lane 1  [waiting ... ] ─► one batch under way ─► node
//!  low water: the place before the first record that is waiting or under way in any lane
//! ```

use std::collections::{HashMap, VecDeque};

use super::rows::Position;

/// One record on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    /// Line that it begins on.
    pub(super) line: u64,
    /// The place before it.
    pub(super) before: Position,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.key.len() + self.value.len()
    }
}

/// Largest batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchLimits {
    pub(super) entries: usize,
    pub(super) bytes: usize,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Entry>,
    waiting_bytes: usize,
    /// The place before the first record under way.
    under_way: Option<Position>,
}

/// All lanes of an import.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    limits: BatchLimits,
    /// The place behind everything that was read.
    read_to: Position,
}

/// A batch to send: each key once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) lane: usize,
    pub(super) entries: Vec<Entry>,
    /// Records that a later one of the same key replaced.
    pub(super) replaced: u64,
}

impl Lanes {
    pub(super) fn new(count: usize, limits: BatchLimits, from: Position) -> Self {
        let lanes = (0..count.max(1)).map(|_| Lane::default()).collect();
        Self { lanes, limits, read_to: from }
    }

    pub(super) fn count(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn push(&mut self, lane: usize, entry: Entry) {
        let lane = &mut self.lanes[lane];
        lane.waiting_bytes += entry.bytes();
        lane.waiting.push_back(entry);
    }

    /// Everything before `position` was read and handed in, or was found to be no record.
    pub(super) fn read_to(&mut self, position: Position) {
        self.read_to = position;
    }

    /// Whether a lane has a batch waiting behind the one under way: time to read no further.
    pub(super) fn is_full(&self) -> bool {
        self.lanes.iter().any(|lane| lane.under_way.is_some() && self.is_batch(lane))
    }

    /// Whether nothing is waiting. Batches may be under way.
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.waiting.is_empty())
    }

    /// The next batch of a lane that has none under way; a partial one only on request.
    pub(super) fn take(&mut self, index: usize, partial: bool) -> Option<Batch> {
        let lane = &self.lanes[index];
        if lane.under_way.is_some() || lane.waiting.is_empty() || !(partial || self.is_batch(lane))
        {
            return None;
        }
        let (limits, lane) = (self.limits, &mut self.lanes[index]);
        let mut entries: Vec<Entry> = Vec::new();
        let mut by_key: HashMap<Vec<u8>, usize> = HashMap::new();
        let (mut bytes, mut replaced) = (0, 0);
        while let Some(next) = lane.waiting.front() {
            if entries.len() >= limits.entries || (bytes > 0 && bytes + next.bytes() > limits.bytes)
            {
                break;
            }
            let entry = lane.waiting.pop_front().expect("the front was just seen");
            lane.under_way.get_or_insert(entry.before);
            lane.waiting_bytes -= entry.bytes();
            bytes += entry.bytes();
            match by_key.get(&entry.key) {
                Some(&at) => {
                    replaced += 1;
                    entries[at] = entry;
                }
                None => {
                    by_key.insert(entry.key.clone(), entries.len());
                    entries.push(entry);
                }
            }
        }
        Some(Batch { lane: index, entries, replaced })
    }

    /// The batch under way in this lane has arrived.
    pub(super) fn arrived(&mut self, lane: usize) {
        let was = self.lanes[lane].under_way.take();
        assert!(was.is_some(), "a batch was under way in lane {lane}");
    }

    /// Up to here everything has arrived.
    pub(super) fn low_water(&self) -> Position {
        let first = |lane: &Lane| lane.under_way.or(lane.waiting.front().map(|entry| entry.before));
        let lowest = self.lanes.iter().filter_map(first).min_by_key(|position| position.offset);
        lowest.unwrap_or(self.read_to)
    }

    fn is_batch(&self, lane: &Lane) -> bool {
        lane.waiting.len() >= self.limits.entries || lane.waiting_bytes >= self.limits.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(key: &str, record: u64) -> Entry {
        let before = Position { offset: record * 10, line: record, records: record };
        Entry { key: key.into(), value: record.to_string().into_bytes(), line: record + 1, before }
    }

    fn lanes(count: usize, entries: usize) -> Lanes {
        Lanes::new(count, BatchLimits { entries, bytes: 1_000 }, Position::default())
    }

    fn keys(batch: &Batch) -> Vec<&str> {
        batch.entries.iter().map(|entry| std::str::from_utf8(&entry.key).unwrap()).collect()
    }

    #[test]
    fn a_lane_sends_one_batch_at_a_time_and_partial_ones_on_request() {
        let mut lanes = lanes(1, 2);
        lanes.push(0, entry("a", 0));
        assert_eq!(lanes.take(0, false), None);
        lanes.push(0, entry("b", 1));
        lanes.push(0, entry("c", 2));
        let batch = lanes.take(0, false).unwrap();
        assert_eq!(keys(&batch), ["a", "b"]);
        assert_eq!(lanes.take(0, true), None, "one is under way");
        assert!(!lanes.is_full());
        lanes.push(0, entry("d", 3));
        assert!(lanes.is_full());
        lanes.arrived(0);
        assert_eq!(keys(&lanes.take(0, true).unwrap()), ["c", "d"]);
        assert!(lanes.is_empty());
    }

    #[test]
    fn the_last_of_equal_keys_wins_within_a_batch() {
        let mut lanes = lanes(1, 10);
        for (record, key) in ["a", "b", "a", "a"].into_iter().enumerate() {
            lanes.push(0, entry(key, record as u64));
        }
        let batch = lanes.take(0, true).unwrap();
        assert_eq!((keys(&batch), batch.replaced), (vec!["a", "b"], 2));
        assert_eq!(batch.entries[0].value, b"3");
        assert_eq!(lanes.low_water().records, 0, "the first of them is not stored yet");
    }

    #[test]
    fn a_batch_is_cut_by_bytes_too_and_a_large_record_still_goes() {
        let mut lanes = Lanes::new(1, BatchLimits { entries: 10, bytes: 4 }, Position::default());
        for record in 0..3 {
            lanes.push(0, entry("kk", record));
        }
        lanes.push(0, entry("a key above the limit", 3));
        let mut sizes = Vec::new();
        while let Some(batch) = lanes.take(0, true) {
            sizes.push(batch.entries.len() + batch.replaced as usize);
            lanes.arrived(0);
        }
        assert_eq!(sizes, [1, 1, 1, 1]);
    }

    proptest! {
        /// Whatever arrives in whatever order: nothing below the low water mark is missing, and
        /// records of one key arrive in the input's order.
        #[test]
        fn low_water_never_passes_a_record_that_has_not_arrived(
            keys in prop::collection::vec(0..6_u8, 1..60), choices in prop::collection::vec(any::<u8>(), 1..200),
        ) {
            let mut lanes = lanes(3, 4);
            let mut next = 0;
            let mut under_way: Vec<Batch> = Vec::new();
            let mut arrived = vec![false; keys.len()];
            let mut stored = std::collections::HashMap::new();
            for choice in choices {
                if choice % 2 == 0 && next < keys.len() {
                    let key = keys[next];
                    lanes.push(usize::from(key) % 3, entry(&key.to_string(), next as u64));
                    next += 1;
                    let here = next as u64;
                    lanes.read_to(Position { offset: here * 10, line: here, records: here });
                } else if choice % 4 == 1 {
                    under_way.extend(lanes.take(usize::from(choice) % 3, choice % 8 == 1));
                } else if !under_way.is_empty() {
                    let batch = under_way.remove(usize::from(choice) % under_way.len());
                    for entry in &batch.entries {
                        let record = entry.before.records as usize;
                        // Everything of the same key before it is stored or replaced with it.
                        for (index, key) in keys.iter().enumerate().take(record + 1) {
                            if *key == keys[record] { arrived[index] = true; }
                        }
                        prop_assert!(stored.insert(entry.key.clone(), record).is_none_or(|old| old < record));
                    }
                    lanes.arrived(batch.lane);
                }
                let low = lanes.low_water().records as usize;
                prop_assert!(low <= next && arrived[..low].iter().all(|&done| done), "low water {low}");
            }
        }
    }
}
