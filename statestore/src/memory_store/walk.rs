//! A snapshot on its way out of a [`MemoryStore`](crate::MemoryStore) while writes go on.
//!
//! ```text
//!   hashes   0 ───────────────── cursor ──────────── last of segment ────────────── 2^64-1
//!            │ handed out         │ pending (sorted)  │ not looked at                │
//!   a write  │ changes freely     └── keeps the old record if it is as old as the snapshot ──┘
//! ```
//! The walk takes one index segment at a time, in hash order, and hands its records out by hash. A
//! record is handed out already exactly if its hash is below the cursor, so one comparison tells
//! a write whether it must keep what it overwrites. Segments may split and merge meanwhile: hashes
//! do not change. Records newer than the snapshot are passed over; what was kept comes first, and is
//! freed as soon as it has been handed out.

use std::{cmp::Reverse, collections::VecDeque, mem::size_of};

use stateside_types::Sequence;

use super::{
    arena::{Arena, Handle},
    index::{Index, SlotHash},
};
use crate::{SnapshotRecord, SnapshotStep};

/// What looking at one index entry counts against the budget, so that a step stays short where
/// nearly every record is newer than the snapshot.
const LOOK_BYTES: usize = 16;

/// State of one snapshot. Owned by its store.
pub(super) struct Walk {
    /// Records with a higher version are not part of the snapshot.
    sequence: Sequence,
    /// The lowest hash not handed out; none when all are.
    cursor: Option<SlotHash>,
    /// Records of the segment under way, sorted by hash, the next one last.
    pending: Vec<(SlotHash, Handle)>,
    /// Where the walk goes on after `pending`.
    after_pending: Option<SlotHash>,
    /// Records that were overwritten or removed before they were handed out.
    kept: VecDeque<Handle>,
}

impl Walk {
    pub(super) fn new(sequence: Sequence) -> Self {
        Self {
            sequence,
            cursor: Some(SlotHash(0)),
            pending: Vec::new(),
            after_pending: Some(SlotHash(0)),
            kept: VecDeque::new(),
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.pending.capacity() * size_of::<(SlotHash, Handle)>()
            + self.kept.capacity() * size_of::<Handle>()
    }

    /// At most this much more memory once `records` more have been kept.
    pub(super) fn growth_max(&self, records: usize) -> usize {
        (self.kept.capacity() + 2 * records + 4) * size_of::<Handle>()
    }

    /// Whether the record must survive its own overwriting or removal.
    #[inline]
    pub(super) fn needs(&self, hash: SlotHash, version: Sequence) -> bool {
        self.cursor.is_some_and(|cursor| hash >= cursor) && version <= self.sequence
    }

    /// Takes over a record that left the index and that [`Self::needs`] asked for.
    pub(super) fn keep(&mut self, hash: SlotHash, handle: Handle) {
        // Sorted downwards; equal hashes of different keys stand side by side.
        let first = self.pending.partition_point(|(pending, _)| *pending > hash);
        for (pending, place) in &mut self.pending[first..] {
            if *pending != hash {
                break;
            }
            if *place == handle {
                *place = Handle::NONE;
            }
        }
        self.kept.push_back(handle);
    }

    /// What is kept, for whoever abandons the walk.
    pub(super) fn into_kept(self) -> VecDeque<Handle> {
        self.kept
    }

    pub(super) fn step(
        &mut self,
        budget_bytes: usize,
        arena: &mut Arena,
        index: &Index,
        hash_of: impl Fn(&Arena, Handle) -> SlotHash,
        emit: &mut dyn FnMut(SnapshotRecord<'_>),
    ) -> SnapshotStep {
        let mut bytes = 0;
        let mut hand_out = |arena: &Arena, handle| {
            let record = SnapshotRecord { key: arena.key(handle), record: arena.record(handle) };
            emit(record);
            record.key.len() + record.record.value.len() + LOOK_BYTES
        };
        while bytes < budget_bytes.max(1) {
            if let Some(handle) = self.kept.pop_front() {
                bytes += hand_out(arena, handle);
                arena.free(handle);
                continue;
            }
            let Some(&(hash, _)) = self.pending.last() else {
                self.cursor = self.after_pending;
                let Some(cursor) = self.cursor else {
                    return SnapshotStep::Done;
                };
                bytes += self.look_at(cursor, arena, index, &hash_of);
                continue;
            };
            // Keys of one hash go out together: the cursor cannot stand between them.
            while let Some((_, handle)) = self.pending.pop_if(|(next, _)| *next == hash) {
                if handle != Handle::NONE {
                    bytes += hand_out(arena, handle);
                }
            }
            self.cursor = match self.pending.last() {
                Some((next, _)) => Some(*next),
                None => self.after_pending,
            };
        }
        SnapshotStep::More
    }

    /// Takes the segment at `cursor` under way.
    fn look_at(
        &mut self,
        cursor: SlotHash,
        arena: &Arena,
        index: &Index,
        hash_of: &impl Fn(&Arena, Handle) -> SlotHash,
    ) -> usize {
        let (handles, last) = index.segment(cursor);
        let mut looked = 1;
        // First all of them, each independent of the others, so that the processor waits for many
        // records at a time: one after the other, a segment is a tenth of a millisecond of waiting.
        for handle in handles.clone() {
            std::hint::black_box(arena.touch(handle));
        }
        for handle in handles {
            looked += 1;
            if arena.version(handle) > self.sequence {
                continue;
            }
            let hash = hash_of(arena, handle);
            // A merge may have widened the segment to hashes already handed out.
            if hash >= cursor {
                self.pending.push((hash, handle));
            }
        }
        self.pending.sort_unstable_by_key(|(hash, _)| Reverse(*hash));
        self.after_pending = last.0.checked_add(1).map(SlotHash);
        looked * LOOK_BYTES
    }
}
