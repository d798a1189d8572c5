//! Replay: which of a log's records a partition still needs, and whether it got all of them.
//!
//! ```text
//!                     unknown damage in its log
//!            ┌───────┐ ───────────────────────► ┌─────────┐  the log ends
//!       ──►  │ whole │                          │ suspect │ ────────────────┐
//!            └───┬───┘ ◄─────────────────────── └────┬────┘                 ▼
//!                │      a record or roll call of it   │ a gap          ┌─────────┐
//!                │      without a gap                 └──────────────► │ damaged │
//!                └───── a gap, or its own record is damaged ─────────► └─────────┘
//! ```
//! A partition's sequences have no gaps and lie in one log (per placement) in rising order. So a
//! record with the next sequence, or one that a snapshot covers already, proves that whatever was
//! lost before it belonged to others. Roll calls prove the same for partitions that write seldom.
//! A damaged partition gets nothing more: it keeps a prefix of its writes, and is named.

use std::{collections::BTreeMap, fmt};

use stateside_types::{CoreId, Epoch, PartitionId, RequestMark, Sequence, WriteEntry};

use super::{
    Damage, DamageKind, DamageScope, Generation, Holding, Placement, RecordHead, ReplaySink,
    Retention, RollCallEntry, partition_map::EpochMap,
};

/// Findings that are kept; a file of garbage has one for every block.
const FINDINGS_MAX: usize = 1_024;

/// A partition whose records are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionBase {
    /// The partition.
    pub partition: PartitionId,
    /// Its epoch: records of another epoch are none of its.
    pub epoch: Epoch,
    /// Its snapshot or store holds everything up to here.
    pub covered: Sequence,
}

/// What a damaged partition has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Exactly these.
    Sequences {
        /// The first one.
        first: Sequence,
        /// The last one known to be lost. Later ones may exist; they cannot be applied.
        last: Sequence,
    },
    /// Perhaps something behind this one: it cannot be said.
    UnknownAfter(Sequence),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sequences { first, last } if first == last => write!(f, "sequence {first}"),
            Self::Sequences { first, last } => write!(f, "sequences {first} to {last}"),
            Self::UnknownAfter(sequence) => write!(f, "unknown, after sequence {sequence}"),
        }
    }
}

/// A partition that must not serve: writes of it are lost, or may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionDamage {
    /// The partition.
    pub partition: PartitionId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Whose log.
    pub core: CoreId,
    /// Segment of that log.
    pub generation: Generation,
    /// Byte in the segment's file.
    pub offset: u64,
    /// What does not fit there; None: the bytes are good, earlier records are not there at all.
    pub kind: Option<DamageKind>,
    /// What is lost.
    pub lost: Lost,
}

/// Counters of a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayStats {
    /// Records that checked out.
    pub records: u64,
    /// Records that were delivered.
    pub delivered: u64,
    /// Damaged places; the first 1,024 are listed.
    pub damages: u64,
}

/// What a replay found out.
#[derive(Debug)]
pub struct ReplayOutcome {
    /// For each log that was read: what its segments hold.
    pub retentions: BTreeMap<CoreId, Retention>,
    /// Partitions that lost records, or may have. The segments that show it are held in
    /// `retentions`, until nobody asks for the partition in that epoch any more.
    pub damaged: Vec<PartitionDamage>,
    /// Every damaged place, whoever's it was.
    pub damages: Vec<(CoreId, Damage)>,
    /// Counters.
    pub stats: ReplayStats,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Whole,
    Suspect(Cause),
    Damaged(Cause, Lost),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cause {
    core: CoreId,
    generation: Generation,
    offset: u64,
    kind: Option<DamageKind>,
}

#[derive(Clone, Copy, Debug)]
struct Track {
    next: Sequence,
    state: State,
    /// The log that had a record of it last, and under which placement.
    seen: Option<(Placement, CoreId)>,
}

/// Takes the records of any number of runs, oldest placement first, and hands on those that the
/// partitions still need. Lives on a core during its recovery.
#[derive(Debug)]
pub struct Replay<D> {
    deliver: D,
    tracks: EpochMap<Track>,
    core: CoreId,
    placement: Placement,
    retention: Retention,
    retentions: BTreeMap<CoreId, Retention>,
    wanted: Option<RecordHead>,
    damages: Vec<(CoreId, Damage)>,
    stats: ReplayStats,
}

impl<D: FnMut(&RecordHead, Option<&RequestMark<'_>>, &[WriteEntry<'_>])> Replay<D> {
    /// A replay for these partitions; `deliver` gets each partition's missing writes in order.
    pub fn new(partitions: impl IntoIterator<Item = PartitionBase>, deliver: D) -> Self {
        let track = |base: PartitionBase| {
            let next = base.covered.next();
            ((base.partition, base.epoch), Track { next, state: State::Whole, seen: None })
        };
        Self {
            deliver,
            tracks: partitions.into_iter().map(track).collect(),
            core: CoreId(0),
            placement: Placement(0),
            retention: Retention::new(),
            retentions: BTreeMap::new(),
            wanted: None,
            damages: Vec::new(),
            stats: ReplayStats::default(),
        }
    }

    /// What comes next is a run of this log.
    pub fn begin_run(&mut self, core: CoreId, placement: Placement) {
        self.put_retention_away();
        self.core = core;
        self.placement = placement;
        self.retention = self.retentions.remove(&core).unwrap_or_default();
    }

    fn put_retention_away(&mut self) {
        let retention = std::mem::take(&mut self.retention);
        if retention.segments() > 0 {
            self.retentions.insert(self.core, retention);
        }
    }

    /// Counters so far.
    pub fn stats(&self) -> ReplayStats {
        self.stats
    }

    /// The logs have been read: who is still suspect has no proof to come.
    pub fn finish(mut self) -> ReplayOutcome {
        self.put_retention_away();
        let mut damaged: Vec<PartitionDamage> = self
            .tracks
            .iter()
            .filter_map(|(&(partition, epoch), track)| {
                let (cause, lost) = match track.state {
                    State::Whole => return None,
                    State::Suspect(cause) => (cause, Lost::UnknownAfter(before(track.next))),
                    State::Damaged(cause, lost) => (cause, lost),
                };
                let Cause { core, generation, offset, kind } = cause;
                Some(PartitionDamage { partition, epoch, core, generation, offset, kind, lost })
            })
            .collect();
        damaged.sort_by_key(|damage| (damage.partition, damage.epoch));
        for damage in &damaged {
            if let Some(retention) = self.retentions.get_mut(&damage.core) {
                retention.hold(damage.generation, damage.partition, damage.epoch);
            }
        }
        ReplayOutcome {
            retentions: self.retentions,
            damaged,
            damages: self.damages,
            stats: self.stats,
        }
    }
}

fn before(sequence: Sequence) -> Sequence {
    Sequence(sequence.0 - 1)
}

impl Track {
    /// The log shows that this partition's writes went up to `last` here.
    fn missing_up_to(&mut self, last: Sequence, here: Cause) {
        let cause = match self.state {
            State::Suspect(cause) => cause,
            State::Whole => here,
            State::Damaged(..) => return,
        };
        self.state = State::Damaged(cause, Lost::Sequences { first: self.next, last });
    }

    fn is_damaged(&self) -> bool {
        matches!(self.state, State::Damaged(..))
    }
}

impl<D: FnMut(&RecordHead, Option<&RequestMark<'_>>, &[WriteEntry<'_>])> ReplaySink for Replay<D> {
    fn wants(&mut self, generation: Generation, offset: u64, head: &RecordHead) -> bool {
        let &RecordHead { partition, epoch, sequence, .. } = head;
        self.stats.records += 1;
        self.retention.note(generation, Holding { partition, epoch, sequence });
        let Some(track) = self.tracks.get_mut(&(partition, epoch)) else { return false };
        track.seen = Some((self.placement, self.core));
        if track.is_damaged() {
            return false;
        }
        if sequence > track.next {
            let here = Cause { core: self.core, generation, offset, kind: None };
            track.missing_up_to(before(sequence), here);
            return false;
        }
        track.state = State::Whole;
        if sequence < track.next {
            return false;
        }
        track.next = sequence.next();
        self.wanted = Some(*head);
        true
    }

    fn write(
        &mut self,
        head: &RecordHead,
        request: Option<&RequestMark<'_>>,
        entries: &[WriteEntry<'_>],
    ) {
        assert_eq!(self.wanted.take().as_ref(), Some(head));
        self.stats.delivered += 1;
        (self.deliver)(head, request, entries);
    }

    fn roll_call(&mut self, generation: Generation, offset: u64, line: RollCallEntry) {
        let Some(track) = self.tracks.get_mut(&(line.partition, line.epoch)) else { return };
        track.seen = Some((self.placement, self.core));
        if track.is_damaged() {
            return;
        }
        if line.sequence >= track.next {
            let here = Cause { core: self.core, generation, offset, kind: None };
            track.missing_up_to(line.sequence, here);
        } else {
            track.state = State::Whole;
        }
    }

    fn damage(&mut self, damage: Damage) {
        let cause = Cause {
            core: self.core,
            generation: damage.generation,
            offset: damage.offset,
            kind: Some(damage.kind),
        };
        self.retention.note_damage(damage.generation);
        match damage.scope {
            DamageScope::Nobody => {}
            DamageScope::Record(head) => {
                let RecordHead { partition, epoch, sequence, .. } = head;
                self.retention.note(damage.generation, Holding { partition, epoch, sequence });
                if let Some(track) = self.tracks.get_mut(&(partition, epoch)) {
                    if self.wanted.take() == Some(head) {
                        track.next = sequence;
                    }
                    if sequence >= track.next && !track.is_damaged() {
                        let lost = Lost::Sequences { first: track.next, last: sequence };
                        track.state = State::Damaged(cause, lost);
                    }
                }
            }
            DamageScope::Unknown => {
                let (here, now) = (self.core, self.placement);
                for track in self.tracks.values_mut() {
                    // Within one placement a partition has its records in one log only.
                    let lives_elsewhere = track
                        .seen
                        .is_some_and(|(placement, core)| placement == now && core != here);
                    if track.state == State::Whole && !lives_elsewhere {
                        track.state = State::Suspect(cause);
                    }
                }
            }
        }
        self.stats.damages += 1;
        if self.damages.len() < FINDINGS_MAX {
            self.damages.push((self.core, damage));
        }
    }
}

#[cfg(test)]
mod tests {
    use stateside_types::Timestamp;

    use super::*;

    type Delivered = Vec<(u32, u64)>;

    fn head(partition: u32, sequence: u64) -> RecordHead {
        RecordHead {
            partition: PartitionId(partition),
            epoch: Epoch(1),
            sequence: Sequence(sequence),
            timestamp: Timestamp(0),
        }
    }

    fn lost_something() -> Damage {
        Damage {
            generation: Generation(4),
            offset: 8_192,
            bytes: 4_096,
            kind: DamageKind::Block,
            scope: DamageScope::Unknown,
        }
    }

    enum Event {
        Run(u16, u64),
        Record(u32, u64),
        Damage,
        DamagedRecord(u32, u64),
        RollCall(u32, u64),
    }
    use Event::{Damage as Hole, DamagedRecord, Record, RollCall, Run};

    /// Partitions 1 and 2, covered up to 10 and 20.
    fn replay(events: &[Event]) -> (Delivered, ReplayOutcome) {
        let base = |(id, covered)| PartitionBase {
            partition: PartitionId(id),
            epoch: Epoch(1),
            covered: Sequence(covered),
        };
        let mut delivered = Delivered::new();
        let mut replay = Replay::new(
            [(1, 10), (2, 20)].map(base),
            |head: &RecordHead, _: Option<&RequestMark<'_>>, _: &[_]| {
                delivered.push((head.partition.0, head.sequence.0));
            },
        );
        let generation = Generation(4);
        for event in events {
            match *event {
                Run(core, placement) => replay.begin_run(CoreId(core), Placement(placement)),
                Record(partition, sequence) => {
                    if replay.wants(generation, 0, &head(partition, sequence)) {
                        replay.write(&head(partition, sequence), None, &[]);
                    }
                }
                Hole => replay.damage(lost_something()),
                DamagedRecord(partition, sequence) => {
                    let scope = DamageScope::Record(head(partition, sequence));
                    replay.damage(Damage { scope, ..lost_something() });
                }
                RollCall(partition, sequence) => {
                    let RecordHead { partition, epoch, sequence, .. } = head(partition, sequence);
                    replay.roll_call(generation, 0, RollCallEntry { partition, epoch, sequence });
                }
            }
        }
        let outcome = replay.finish();
        (delivered, outcome)
    }

    fn damaged(events: &[Event]) -> Vec<(u32, Lost)> {
        let (_, outcome) = replay(events);
        outcome.damaged.iter().map(|damage| (damage.partition.0, damage.lost)).collect()
    }

    fn sequences(first: u64, last: u64) -> Lost {
        Lost::Sequences { first: Sequence(first), last: Sequence(last) }
    }

    #[test]
    fn a_partition_gets_what_its_snapshot_does_not_cover() {
        let events = [
            Record(1, 9),
            Record(2, 20),
            Record(1, 10),
            Record(1, 11),
            Record(7, 1),
            Record(2, 21),
        ];
        let (delivered, outcome) = replay(&events);
        assert_eq!(delivered, [(1, 11), (2, 21)]);
        assert_eq!(outcome.damaged, []);
        assert_eq!((outcome.stats.records, outcome.stats.delivered), (6, 2));
    }

    #[test]
    fn a_gap_stops_a_partition_and_names_what_is_missing() {
        let (delivered, outcome) = replay(&[Record(1, 11), Record(1, 14), Record(1, 15)]);
        assert_eq!(delivered, [(1, 11)]);
        assert_eq!(outcome.damaged[0].lost, sequences(12, 13));
        assert_eq!(outcome.damaged[0].kind, None);
        assert_eq!(outcome.damaged[0].lost.to_string(), "sequences 12 to 13");
    }

    #[test]
    fn after_damage_everyone_is_suspect_until_the_next_record_fits() {
        let unknown = |sequence| Lost::UnknownAfter(Sequence(sequence));
        assert_eq!(damaged(&[Record(1, 11), Hole]), [(1, unknown(11)), (2, unknown(20))]);
        assert_eq!(damaged(&[Record(1, 11), Hole, Record(1, 12)]), [(2, unknown(20))]);
        assert_eq!(damaged(&[Hole, Record(1, 13), Record(2, 20)]), [(1, sequences(11, 12))]);
        assert_eq!(
            damaged(&[Hole, Record(1, 4), Record(2, 21)]),
            [],
            "4 is covered: all before is"
        );
        assert_eq!(damaged(&[Hole, Record(1, 11), Hole, Record(2, 21)]), [(1, unknown(11))]);
    }

    #[test]
    fn a_roll_call_bears_witness_for_the_silent() {
        assert_eq!(damaged(&[Hole, RollCall(1, 10), RollCall(2, 20)]), []);
        assert_eq!(damaged(&[Hole, RollCall(1, 12), RollCall(2, 3)]), [(1, sequences(11, 12))]);
        assert_eq!(damaged(&[RollCall(1, 11)]), [(1, sequences(11, 11))], "even without damage");
    }

    #[test]
    fn a_damaged_record_names_its_partition_and_nobody_else() {
        let (delivered, outcome) =
            replay(&[Record(1, 11), DamagedRecord(1, 12), Record(1, 13), Record(2, 21)]);
        assert_eq!(delivered, [(1, 11), (2, 21)]);
        assert_eq!(outcome.damaged.len(), 1);
        assert_eq!(outcome.damaged[0].lost.to_string(), "sequence 12");
        assert_eq!(outcome.damaged[0].offset, 8_192);
        assert_eq!(damaged(&[DamagedRecord(1, 10)]), [], "the snapshot has it");
    }

    #[test]
    fn damage_in_one_log_does_not_touch_partitions_that_lived_in_another() {
        let events = [Run(0, 1), Record(1, 11), Run(1, 1), Hole];
        assert_eq!(damaged(&events), [(2, Lost::UnknownAfter(Sequence(20)))]);
        // Under another placement it may have moved here.
        let events = [Run(0, 1), Record(1, 11), Run(1, 2), Hole, Record(2, 21)];
        assert_eq!(damaged(&events), [(1, Lost::UnknownAfter(Sequence(11)))]);
    }

    #[test]
    fn the_segment_that_shows_the_loss_is_held() {
        let (_, mut outcome) = replay(&[Run(3, 1), Hole, Record(2, 20)]);
        let retention = outcome.retentions.get_mut(&CoreId(3)).unwrap();
        let all = Some(Sequence(u64::MAX - 1));
        let blockers: Vec<_> = retention.blockers(|_, _| all).collect();
        assert_eq!(blockers.len(), 1);
        assert_eq!(blockers[0].partition, PartitionId(1));
        assert_eq!(retention.blockers(|id, _| all.filter(|_| id.0 != 1)).count(), 0);
    }
}
