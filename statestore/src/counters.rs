//! The smallest store: integers in memory, in the order of their keys.
//!
//! A B-tree from key to counter and nothing beside it: no index, no arena, no log in front of it (see
//! docs/stores.md). The value of a counter is its decimal text, which is what `Update` adds to and what
//! every reader shows. It is kept as text, 20 bytes at most: a lookup lends bytes, and those of a
//! number would have to be made for it first.
//!
//! A snapshot walks the keys in order while writes go on. Who changes a record that the walk has still to
//! come by keeps it for the walk as it was:
//!
//! ```text
//!   counters   a b c │ d e' g       e was written and f removed since the snapshot began
//!   kept             │   e f        handed out in their places, and e' is not
//! ```
//! Whoever applies a batch or loads records has asked [`is_counter`] of each value.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    ops::Bound,
};

use stateside_types::{
    Change, ExpireAt, Expiry, Record, RequestMark, Sequence, Timestamp, WallClock, WriteEntry,
};

use crate::{
    Lookup, PageRequest, PageStep, Reclaimed, RequestLimits, RequestRow, RequestWindow,
    SnapshotRecord, SnapshotStep, StateStore, StoreError, StoreStats,
};

/// Digits of the longest 64-bit integer, and its sign.
const TEXT_BYTES_MAX: usize = 20;
/// What a record takes beside its key's bytes: its place in a leaf two thirds full, its share of the
/// inner nodes, and the rounding of the key's allocation.
const ENTRY_BYTES: usize = (size_of::<Box<[u8]>>() + size_of::<Counter>()) * 3 / 2 + 16;
/// The same of a note that a record expires.
const EXPIRATION_BYTES: usize = size_of::<(ExpireAt, Box<[u8]>)>() * 3 / 2 + 16;
/// What one record costs a step of a snapshot beside its bytes.
const WALK_BYTES: usize = 32;

/// Whether a value is a counter's: the decimal text of a 64-bit integer with a sign, as Rust and most
/// others write it. A number has one text, so zeros or a plus sign in front are none.
pub fn is_counter(value: &[u8]) -> bool {
    match value {
        b"0" => true,
        [b'1'..=b'9', ..] | [b'-', b'1'..=b'9', ..] => {
            std::str::from_utf8(value).is_ok_and(|text| text.parse::<i64>().is_ok())
        }
        _ => false,
    }
}

#[derive(Clone, Copy)]
struct Counter {
    text: [u8; TEXT_BYTES_MAX],
    text_bytes: u8,
    version: Sequence,
    timestamp: Timestamp,
    expire_at: Option<ExpireAt>,
}

impl Counter {
    fn new(record: Record<'_>) -> Self {
        let Record { value, version, timestamp, expire_at } = record;
        assert!(is_counter(value), "whoever writes has asked");
        let mut text = [0; TEXT_BYTES_MAX];
        text[..value.len()].copy_from_slice(value);
        Self { text, text_bytes: value.len() as u8, version, timestamp, expire_at }
    }

    fn record(&self) -> Record<'_> {
        let Self { version, timestamp, expire_at, .. } = *self;
        Record { value: &self.text[..usize::from(self.text_bytes)], version, timestamp, expire_at }
    }
}

type Counters = BTreeMap<Box<[u8]>, Counter>;

/// A snapshot under way.
struct Walk {
    /// It shows the state after this sequence.
    at: Sequence,
    /// The key that was handed out last.
    after: Option<Box<[u8]>>,
    /// Records behind that as they were then.
    kept: Counters,
    kept_key_bytes: usize,
}

impl Walk {
    fn keep(&mut self, key: &[u8], old: Counter) {
        let is_ahead = self.after.as_deref().is_none_or(|after| key > after);
        if is_ahead && old.version <= self.at {
            self.kept.insert(key.into(), old);
            self.kept_key_bytes += key.len();
        }
    }

    /// Everything up to this key is out.
    fn pass(&mut self, key: Box<[u8]>) {
        let mut ahead = self.kept.split_off(&key);
        let this = ahead.remove_entry(&key);
        let passed = mem::replace(&mut self.kept, ahead).into_iter().chain(this);
        self.kept_key_bytes -= passed.map(|(key, _)| key.len()).sum::<usize>();
        self.after = Some(key);
    }

    fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        (self.after.as_deref().map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
    }
}

/// See the module's header. Owned by one partition, used on its core's thread.
#[derive(Default)]
pub struct CountersStore {
    counters: Counters,
    /// Records that expire, by their moment.
    expirations: BTreeSet<(ExpireAt, Box<[u8]>)>,
    requests: RequestWindow,
    walk: Option<Walk>,
    payload_bytes: u64,
    key_bytes: usize,
    expiring_key_bytes: usize,
    reclaimed: u64,
    applied: Sequence,
    applied_timestamp: Timestamp,
}

impl CountersStore {
    fn put(&mut self, key: &[u8], record: Record<'_>) {
        let counter = Counter::new(record);
        self.payload_bytes += (key.len() + record.value.len()) as u64;
        match self.counters.get_mut(key) {
            Some(place) => {
                let old = mem::replace(place, counter);
                self.let_go(key, old);
            }
            None => {
                self.key_bytes += key.len();
                self.counters.insert(key.into(), counter);
            }
        }
        if let Some(moment) = record.expire_at {
            self.expirations.insert((moment, key.into()));
            self.expiring_key_bytes += key.len();
        }
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some(old) = self.counters.remove(key) {
            self.key_bytes -= key.len();
            self.let_go(key, old);
        }
    }

    /// The record of this key has been replaced or taken out.
    fn let_go(&mut self, key: &[u8], old: Counter) {
        self.payload_bytes -= (key.len() + usize::from(old.text_bytes)) as u64;
        if let Some(moment) = old.expire_at {
            let was_here = self.expirations.remove(&(moment, key.into()));
            assert!(was_here, "every record that expires is noted");
            self.expiring_key_bytes -= key.len();
        }
        if let Some(walk) = &mut self.walk {
            walk.keep(key, old);
        }
    }
}

/// What a record takes.
fn record_bytes(key: &[u8], expires: bool) -> usize {
    let noted = if expires { EXPIRATION_BYTES + key.len() } else { 0 };
    ENTRY_BYTES + key.len() + noted
}

impl StateStore for CountersStore {
    fn kind(&self) -> &'static str {
        "counters"
    }

    fn get(&self, key: &[u8]) -> Lookup<'_> {
        self.counters.get(key).map_or(Lookup::Absent, |counter| Lookup::Found(counter.record()))
    }

    fn page(&self, request: &PageRequest, emit: &mut dyn FnMut(SnapshotRecord<'_>)) -> PageStep {
        if request.is_empty() {
            return PageStep::End;
        }
        let (mut records, mut bytes, mut last) = (0, 0, None);
        for (key, counter) in self.counters.range::<[u8], _>(request.bounds()) {
            if let Some(last) = last
                && (records == request.records_max || bytes >= request.bytes_max)
            {
                return PageStep::More(Box::clone(last));
            }
            let record = counter.record();
            emit(SnapshotRecord { key, record });
            records += 1;
            bytes += key.len() + record.value.len();
            last = Some(key);
        }
        PageStep::End
    }

    fn apply(&mut self, sequence: Sequence, timestamp: Timestamp, entries: &[WriteEntry<'_>]) {
        assert_eq!(sequence, self.applied.next(), "a batch was left out or applied twice");
        for entry in entries {
            match entry.change {
                Change::Put(value) => {
                    let expire_at = entry.expiry.fixed_by(timestamp);
                    let record = Record { value, version: sequence, timestamp, expire_at };
                    self.put(entry.key, record);
                }
                Change::Remove => self.remove(entry.key),
            }
        }
        self.applied = sequence;
        self.applied_timestamp = timestamp;
    }

    fn requests(&self) -> &RequestWindow {
        &self.requests
    }

    fn remember(&mut self, sequence: Sequence, timestamp: Timestamp, mark: &RequestMark<'_>) {
        self.requests.record(sequence, timestamp, mark, &mut |_| {});
    }

    fn limit_requests(&mut self, limits: RequestLimits) {
        self.requests.set_limits(limits);
    }

    fn applied(&self) -> Sequence {
        self.applied
    }

    fn applied_timestamp(&self) -> Timestamp {
        self.applied_timestamp
    }

    fn covered(&self) -> Sequence {
        Sequence::ZERO
    }

    fn stats(&self) -> StoreStats {
        let kept = self.walk.as_ref();
        let kept = kept.map_or(0, |walk| walk.kept.len() * ENTRY_BYTES + walk.kept_key_bytes);
        let counters = self.counters.len() * ENTRY_BYTES + self.key_bytes;
        let expirations = self.expirations.len() * EXPIRATION_BYTES + self.expiring_key_bytes;
        StoreStats {
            records: self.counters.len() as u64,
            payload_bytes: self.payload_bytes,
            memory_bytes: (size_of::<Self>() + counters + expirations + kept) as u64
                + self.requests.memory_bytes(),
            reclaimed: self.reclaimed,
        }
    }

    fn growth_max(&self, entries: &[WriteEntry<'_>]) -> u64 {
        let kept = if self.walk.is_some() { ENTRY_BYTES } else { 0 };
        let bytes = entries.iter().map(|entry| match entry.change {
            Change::Put(_) => record_bytes(entry.key, entry.expiry != Expiry::Never),
            Change::Remove => 0,
        });
        let kept = entries.iter().filter(|_| kept > 0).map(|entry| kept + entry.key.len());
        bytes.chain(kept).sum::<usize>() as u64
    }

    fn growth(&self, entries: &[WriteEntry<'_>]) -> i64 {
        let mut growth = 0;
        for entry in entries {
            if let Some(counter) = self.counters.get(entry.key) {
                growth -= record_bytes(entry.key, counter.expire_at.is_some()) as i64;
            }
            if let Change::Put(_) = entry.change {
                growth += record_bytes(entry.key, entry.expiry != Expiry::Never) as i64;
            }
        }
        growth
    }

    fn reclaim(&mut self, now: WallClock, records_max: usize) -> Reclaimed {
        let mut reclaimed = Reclaimed::default();
        while reclaimed.records < records_max
            && let Some((moment, key)) = self.expirations.first()
            && moment.has_come(now)
        {
            let key = key.clone();
            let version = self.counters[&key].version;
            reclaimed.records += 1;
            reclaimed.newest = reclaimed.newest.max(version);
            self.remove(&key);
        }
        self.reclaimed += reclaimed.records as u64;
        reclaimed
    }

    fn snapshot_start(&mut self) {
        self.walk =
            Some(Walk { at: self.applied, after: None, kept: Counters::new(), kept_key_bytes: 0 });
    }

    fn snapshot_next(
        &mut self,
        budget_bytes: usize,
        emit: &mut dyn FnMut(SnapshotRecord<'_>),
    ) -> Result<SnapshotStep, StoreError> {
        let walk = self.walk.as_mut().expect("a snapshot was started");
        let mut live = self.counters.range::<[u8], _>(walk.bounds()).peekable();
        let mut kept = walk.kept.range::<[u8], _>(walk.bounds()).peekable();
        let (mut bytes, mut last) = (0, None);
        let step = loop {
            // Of the same key the kept one comes first, and the live one is too new.
            let (key, counter) = match (live.peek(), kept.peek()) {
                (None, None) => break SnapshotStep::Done,
                (Some((key, _)), Some((kept_key, _))) if key < kept_key => live.next(),
                (Some(_), None) => live.next(),
                _ => kept.next(),
            }
            .expect("it was peeked at");
            if last.is_some() && last != Some(key) && bytes >= budget_bytes {
                break SnapshotStep::More;
            }
            let record = counter.record();
            if record.version <= walk.at {
                emit(SnapshotRecord { key, record });
            }
            bytes += key.len() + record.value.len() + WALK_BYTES;
            last = Some(key);
        };
        if let Some(last) = last.cloned() {
            walk.pass(last);
        }
        Ok(step)
    }

    fn snapshot_end(&mut self) {
        self.walk = None;
    }

    fn load_start(&mut self) {
        let mut requests = mem::take(&mut self.requests);
        requests.clear();
        *self = Self { requests, ..Self::default() };
    }

    fn load_request(&mut self, row: &RequestRow<'_>) {
        self.requests.load(row);
    }

    fn load(&mut self, records: &[SnapshotRecord<'_>]) -> bool {
        for SnapshotRecord { key, record } in records {
            self.put(key, *record);
        }
        true
    }

    fn load_end(&mut self, sequence: Sequence, timestamp: Timestamp) {
        self.applied = sequence;
        self.applied_timestamp = timestamp;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_has_one_text() {
        for value in ["0", "7", "-7", "10", "9223372036854775807", "-9223372036854775808"] {
            assert!(is_counter(value.as_bytes()), "{value}");
        }
        for value in
            ["", "-", "-0", "00", "07", "+7", " 7", "7 ", "7.0", "1e3", "9223372036854775808"]
        {
            assert!(!is_counter(value.as_bytes()), "{value}");
        }
        assert!(!is_counter(b"7\xff"));
    }

    #[test]
    fn a_counter_is_small() {
        assert_eq!(size_of::<Counter>(), 48);
    }
}
