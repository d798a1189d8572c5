//! Batches that were accepted and that the engine does not hold safely yet, with an index of their keys.
//!
//! ```text
//!   batches  ┌─────┬─────┬─────┬─────┬─────┐    one for each sequence, without gaps
//!            │ 41  │ 42  │ 43  │ 44  │ 45  │
//!            └─────┴─────┴─────┴─────┴─────┘
//!              │ written, not yet covered │ accepted
//!   index    key ─► (sequence, entry) of its newest change
//! ```
//! A batch leaves when the store covers it: then the engine has it on disk, whatever happens to
//! the process. Batches are shared with the work that writes them, never copied.

use std::{
    collections::VecDeque,
    mem::size_of,
    ops::{Bound, RangeBounds},
    sync::Arc,
};

use hashbrown::HashTable;
use stateside_types::{Change, ExpireAt, Expiry, Record, Sequence, Timestamp, WriteEntry};
use xxhash_rust::xxh3::xxh3_64;

use super::requests::RequestLine;

const REMOVED: u32 = u32::MAX;
/// The moment of a record that expires, ahead of its key.
const MOMENT_BYTES: usize = 8;

/// One accepted batch: its bytes once, and where in them the entries are.
pub(super) struct OverlayBatch {
    pub(super) sequence: Sequence,
    pub(super) timestamp: Timestamp,
    bytes: Box<[u8]>,
    entries: Box<[EntryPlace]>,
    /// What the request's id changes; empty for most.
    pub(super) requests: Box<[RequestLine]>,
}

#[derive(Clone, Copy)]
struct EntryPlace {
    start: u32,
    key_len: u16,
    /// The moment stands before `start`.
    expires: bool,
    /// `REMOVED` for a removal.
    value_len: u32,
}

impl OverlayBatch {
    fn new(
        sequence: Sequence,
        timestamp: Timestamp,
        entries: &[WriteEntry<'_>],
        requests: Box<[RequestLine]>,
    ) -> Self {
        let total = entries.iter().map(entry_bytes).sum();
        assert!(total < REMOVED as usize, "the caller checked the batch");
        let mut bytes = Vec::with_capacity(total);
        let places = entries.iter().map(|entry| {
            let moment = match entry.change {
                Change::Put(_) => entry.expiry.fixed_by(timestamp),
                Change::Remove => None,
            };
            if let Some(moment) = moment {
                bytes.extend_from_slice(&moment.millis().to_le_bytes());
            }
            let start = bytes.len() as u32;
            bytes.extend_from_slice(entry.key);
            let value_len = match entry.change {
                Change::Put(value) => {
                    bytes.extend_from_slice(value);
                    value.len() as u32
                }
                Change::Remove => REMOVED,
            };
            let key_len = entry.key.len() as u16;
            EntryPlace { start, key_len, expires: moment.is_some(), value_len }
        });
        let entries = places.collect();
        Self { sequence, timestamp, bytes: bytes.into(), entries, requests }
    }

    /// Keys and what became of them: a record, or none for a removal.
    pub(super) fn changes(&self) -> impl Iterator<Item = (&[u8], Option<Record<'_>>)> {
        (0..self.entries.len()).map(|entry| (self.key(entry), self.record(entry)))
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.bytes.len()
            + self.entries.len() * size_of::<EntryPlace>()
            + self.requests.iter().map(RequestLine::memory_bytes).sum::<usize>()
            + size_of::<Arc<Self>>()
    }

    fn key(&self, entry: usize) -> &[u8] {
        let EntryPlace { start, key_len, .. } = self.entries[entry];
        &self.bytes[start as usize..][..usize::from(key_len)]
    }

    fn record(&self, entry: usize) -> Option<Record<'_>> {
        let EntryPlace { start, key_len, expires, value_len } = self.entries[entry];
        if value_len == REMOVED {
            return None;
        }
        let start = start as usize;
        let value = &self.bytes[start + usize::from(key_len)..][..value_len as usize];
        let moment = || self.bytes[..start].last_chunk::<MOMENT_BYTES>();
        let expire_at = moment().filter(|_| expires).map(|bytes| u64::from_le_bytes(*bytes));
        Some(Record {
            value,
            version: self.sequence,
            timestamp: self.timestamp,
            expire_at: expire_at.and_then(ExpireAt::from_millis),
        })
    }
}

fn entry_bytes(entry: &WriteEntry<'_>) -> usize {
    let moment = if entry.expiry == Expiry::Never { 0 } else { MOMENT_BYTES };
    match entry.change {
        Change::Put(value) => moment + entry.key.len() + value.len(),
        Change::Remove => entry.key.len(),
    }
}

#[derive(Clone, Copy)]
struct NewestChange {
    sequence: Sequence,
    entry: u32,
}

/// The overlay of one store. Lives on its core's thread.
#[derive(Default)]
pub(super) struct Overlay {
    batches: VecDeque<Arc<OverlayBatch>>,
    newest: HashTable<NewestChange>,
    batch_bytes: usize,
}

impl Overlay {
    /// Bytes that a batch of these entries takes at most, while the index grows with it.
    pub(super) fn growth_max(&self, entries: &[WriteEntry<'_>]) -> usize {
        let bytes: usize = entries.iter().map(entry_bytes).sum();
        // A bucket is 16 bytes and one of control; doubled, and at most 7 of 8 in use.
        let index = self.newest.allocation_size() + 64 + entries.len() * 17 * 3;
        let batches = (self.batches.capacity() + 8) * size_of::<Arc<OverlayBatch>>();
        let places = entries.len() * size_of::<EntryPlace>();
        bytes + places + size_of::<OverlayBatch>() + size_of::<usize>() * 2 + index + batches
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.batch_bytes
            + self.newest.allocation_size()
            + self.batches.capacity() * size_of::<Arc<OverlayBatch>>()
    }

    /// Bytes of the batches alone: what the limit is on.
    pub(super) fn batch_bytes(&self) -> usize {
        self.batch_bytes
    }

    pub(super) fn push(
        &mut self,
        sequence: Sequence,
        timestamp: Timestamp,
        entries: &[WriteEntry<'_>],
        requests: Box<[RequestLine]>,
    ) {
        let batch = Arc::new(OverlayBatch::new(sequence, timestamp, entries, requests));
        self.batch_bytes += batch.memory_bytes();
        self.batches.push_back(batch);
        let Self { batches, newest, .. } = self;
        for (entry, WriteEntry { key, .. }) in entries.iter().enumerate() {
            let change = NewestChange { sequence, entry: entry as u32 };
            let hash = xxh3_64(key);
            if let Some(old) = newest.find_mut(hash, |old| key_of(batches, *old) == *key) {
                *old = change;
            } else {
                newest.insert_unique(hash, change, |other| xxh3_64(key_of(batches, *other)));
            }
        }
    }

    /// What the batches here make of a key: nothing known, removed, or a record.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Record<'_>>> {
        if self.batches.is_empty() {
            return None;
        }
        let is = |change: &NewestChange| key_of(&self.batches, *change) == key;
        let change = self.newest.find(xxh3_64(key), is)?;
        let batch = batch_of(&self.batches, change.sequence);
        Some(batch.record(change.entry as usize))
    }

    /// What the batches here make of the keys between two bounds, in the order of keys. Looks at every
    /// key here: there are few, and no other question needs them in order.
    pub(super) fn between(
        &self,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
    ) -> Vec<(&[u8], Option<Record<'_>>)> {
        let mut found: Vec<_> = self
            .newest
            .iter()
            .filter_map(|change| {
                let batch = batch_of(&self.batches, change.sequence);
                let (entry, key) = (change.entry as usize, batch.key(change.entry as usize));
                bounds.contains(key).then(|| (key, batch.record(entry)))
            })
            .collect();
        found.sort_unstable_by_key(|(key, _)| *key);
        found
    }

    /// The batches after `after` up to `last`, as many as make up `bytes`; one at least.
    pub(super) fn range(
        &self,
        after: Sequence,
        last: Sequence,
        bytes: usize,
    ) -> Vec<Arc<OverlayBatch>> {
        let Some(first) = self.batches.front() else { return Vec::new() };
        let skip = (after.0 + 1).saturating_sub(first.sequence.0) as usize;
        let mut taken = 0;
        self.batches
            .iter()
            .skip(skip)
            .take_while(|batch| {
                let fits = taken < bytes && batch.sequence <= last;
                taken += batch.memory_bytes();
                fits
            })
            .cloned()
            .collect()
    }

    /// Drops the batches up to `last`. `newest` is told of every key whose last change was among
    /// them: from here on only the engine knows it.
    pub(super) fn drop_up_to(
        &mut self,
        last: Sequence,
        mut newest: impl FnMut(&[u8], Option<Record<'_>>),
    ) {
        while self.batches.front().is_some_and(|batch| batch.sequence <= last) {
            let batch = Arc::clone(&self.batches[0]);
            for (entry, (key, record)) in batch.changes().enumerate() {
                let this = |change: &NewestChange| {
                    change.sequence == batch.sequence && change.entry as usize == entry
                };
                if let Ok(found) = self.newest.find_entry(xxh3_64(key), this) {
                    found.remove();
                    newest(key, record);
                }
            }
            self.batch_bytes -= batch.memory_bytes();
            self.batches.pop_front();
        }
        if self.batches.is_empty() {
            // What a burst made them grow to is given back.
            *self = Self::default();
        }
    }
}

fn batch_of(batches: &VecDeque<Arc<OverlayBatch>>, sequence: Sequence) -> &OverlayBatch {
    let first = batches.front().expect("the index names batches that are here").sequence;
    let batch = &batches[(sequence.0 - first.0) as usize];
    assert_eq!(batch.sequence, sequence, "batches are without gaps");
    batch
}

fn key_of(batches: &VecDeque<Arc<OverlayBatch>>, change: NewestChange) -> &[u8] {
    batch_of(batches, change.sequence).key(change.entry as usize)
}
