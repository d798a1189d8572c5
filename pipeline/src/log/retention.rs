//! Which segments are still needed: per segment, the highest sequence of each partition in it.
//! Segments that hold nothing are not listed.
//!
//! Segments go oldest first, and only whole. Were a younger one let go before an older one, the
//! reader would see groups missing in the middle and have to call it damage.

use std::collections::VecDeque;

use stateside_types::{Epoch, PartitionId, Sequence};

use super::{Generation, partition_map::EpochMap};

/// What a segment holds of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The partition.
    pub partition: PartitionId,
    /// The epoch its records were written in.
    pub epoch: Epoch,
    /// Its highest sequence in the segment; `u64::MAX` when records of it were lost there.
    pub sequence: Sequence,
}

#[derive(Debug)]
struct SegmentUse {
    generation: Generation,
    highest: EpochMap<Sequence>,
}

/// The segments of one log that hold records, oldest first. Lives with the core's writer; for the
/// log of a core that no longer exists, with whoever deletes its files.
#[derive(Debug, Default)]
pub struct Retention {
    segments: VecDeque<SegmentUse>,
}

impl Retention {
    /// A log without segments.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the newest segment.
    ///
    /// # Panics
    /// When its generation does not rise.
    pub fn begin(&mut self, generation: Generation) {
        if let Some(last) = self.segments.back() {
            assert!(last.generation < generation, "segments are used in the order of generations");
        }
        self.segments.push_back(SegmentUse { generation, highest: EpochMap::default() });
    }

    /// Notes that a segment holds a record.
    pub(super) fn note(&mut self, generation: Generation, holding: Holding) {
        let highest = self.segment(generation).highest.entry((holding.partition, holding.epoch));
        let highest = highest.or_default();
        *highest = (*highest).max(holding.sequence);
    }

    /// Notes that a segment holds something, if only damage.
    pub(super) fn note_damage(&mut self, generation: Generation) {
        self.segment(generation);
    }

    /// Keeps a segment, until nobody asks for the partition in this epoch any more, because the
    /// partition lost records there. Otherwise the evidence would go, and after the next restart
    /// the partition would look whole.
    pub fn hold(&mut self, generation: Generation, partition: PartitionId, epoch: Epoch) {
        self.note(generation, Holding { partition, epoch, sequence: Sequence(u64::MAX) });
    }

    fn segment(&mut self, generation: Generation) -> &mut SegmentUse {
        // Nearly always the newest.
        let behind = self.segments.iter().rposition(|segment| segment.generation <= generation);
        match behind {
            Some(index) if self.segments[index].generation == generation => {
                &mut self.segments[index]
            }
            other => {
                let index = other.map_or(0, |index| index + 1);
                let segment = SegmentUse { generation, highest: EpochMap::default() };
                self.segments.insert(index, segment);
                &mut self.segments[index]
            }
        }
    }

    /// Lets go of the oldest segments older than `before` whose records are all covered.
    ///
    /// `covered` says up to which sequence a snapshot or a store holds a partition without the
    /// log; `None`: nobody needs the records of this partition and epoch any more.
    pub fn release(
        &mut self,
        before: Generation,
        covered: impl Fn(PartitionId, Epoch) -> Option<Sequence>,
        mut released: impl FnMut(Generation),
    ) {
        while let Some(oldest) = self.segments.front() {
            if oldest.generation >= before || oldest.blockers(&covered).next().is_some() {
                return;
            }
            released(oldest.generation);
            self.segments.pop_front();
        }
    }

    /// What keeps the oldest segment: snapshot these partitions, and it can go.
    pub fn blockers(
        &self,
        covered: impl Fn(PartitionId, Epoch) -> Option<Sequence>,
    ) -> impl Iterator<Item = Holding> {
        self.segments
            .front()
            .into_iter()
            .flat_map(move |oldest| oldest.blockers(&covered).collect::<Vec<_>>())
    }

    /// Segments that hold records, the one being written included.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Their generations, oldest first.
    pub fn generations(&self) -> impl Iterator<Item = Generation> {
        self.segments.iter().map(|segment| segment.generation)
    }
}

impl SegmentUse {
    fn blockers(
        &self,
        covered: &impl Fn(PartitionId, Epoch) -> Option<Sequence>,
    ) -> impl Iterator<Item = Holding> {
        self.highest.iter().filter_map(move |(&(partition, epoch), &sequence)| {
            let needed = covered(partition, epoch).is_some_and(|covered| covered < sequence);
            needed.then_some(Holding { partition, epoch, sequence })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(partition: u32, sequence: u64) -> Holding {
        Holding { partition: PartitionId(partition), epoch: Epoch(1), sequence: Sequence(sequence) }
    }

    fn released(
        retention: &mut Retention,
        before: u32,
        covered: impl Fn(PartitionId, Epoch) -> Option<Sequence>,
    ) -> Vec<u32> {
        let mut out = Vec::new();
        retention.release(Generation(before), covered, |generation| out.push(generation.0));
        out
    }

    fn three_segments() -> Retention {
        let mut retention = Retention::new();
        for (generation, held) in
            [(1, [(1, 10), (2, 5)]), (2, [(1, 12), (1, 20)]), (3, [(2, 6), (1, 21)])]
        {
            retention.begin(Generation(generation));
            for (partition, sequence) in held {
                retention.note(Generation(generation), holding(partition, sequence));
            }
        }
        retention
    }

    #[test]
    fn segments_go_oldest_first_once_everything_in_them_is_covered() {
        let mut retention = three_segments();
        let up_to = |one: u64, two: u64| {
            move |partition: PartitionId, _| {
                Some(Sequence(if partition.0 == 1 { one } else { two }))
            }
        };
        assert_eq!(released(&mut retention, 9, up_to(99, 4)), [] as [u32; 0]);
        assert_eq!(retention.blockers(up_to(99, 4)).collect::<Vec<_>>(), [holding(2, 5)]);
        assert_eq!(released(&mut retention, 9, up_to(19, 5)), [1]);
        assert_eq!(released(&mut retention, 3, up_to(99, 99)), [2], "3 is being written");
        assert_eq!(released(&mut retention, 9, up_to(99, 99)), [3]);
        assert_eq!(retention.segments(), 0);
    }

    #[test]
    fn records_of_a_removed_partition_hold_nothing() {
        let mut retention = three_segments();
        let covered = |partition: PartitionId, _| (partition.0 == 1).then_some(Sequence(20));
        assert_eq!(released(&mut retention, 9, covered), [1, 2]);
    }

    #[test]
    fn a_segment_in_which_a_partition_lost_records_stays_until_the_partition_has_a_new_epoch() {
        let mut retention = three_segments();
        retention.hold(Generation(1), PartitionId(7), Epoch(1));
        let all = Some(Sequence(u64::MAX - 1));
        assert_eq!(released(&mut retention, 9, |_, _| all), [] as [u32; 0]);
        let covered = |partition: PartitionId, _| if partition.0 == 7 { None } else { all };
        assert_eq!(released(&mut retention, 9, covered), [1, 2, 3]);
    }
}
