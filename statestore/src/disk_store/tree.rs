//! What a partition's tree holds, and what work does with it.
//!
//! ```text
//!   tree "partition-0000002a-0000000000000007"         (id, epoch)
//!     00              ─► meta: state, applied sequence and timestamp, record count, bytes, next moment
//!     01 key          ─► version u64, timestamp u64, value length u32, value if it is short;
//!                        with bit 31 of the length: the moment, u64, stands before the value
//!     02 key piece u32─► a piece of a long value
//!     03 moment u64 key ─► nothing: the records that expire, in the order in which they do
//!     04 sequence u64   ─► a request's answer  } see `requests.rs`, and for what is in them
//!     05 client         ─► a requests' client  } `request_window.rs`
//! ```
//! Integers in keys are big-endian, in values little-endian. Every change to a tree is one
//! batch, meta included: so whatever the engine recovers is the state at the sequence that meta says.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use stateside_types::{
    ExpireAt, Record, Sequence, Timestamp, WallClock,
    limits::{BATCH_BYTES_MAX, KEY_BYTES_MAX},
};

use super::{
    engine::{Change, Database, EngineError, Entry, Stamp, TreeSession},
    overlay::OverlayBatch,
    requests::{ANSWER_TAG, RequestLine, line_change},
};
use crate::StoreError;

/// Whether a key of a tree is that of a record or of a piece of one: what readers ask for.
#[cfg(feature = "lsm")]
pub(crate) fn holds_record(key: &[u8]) -> bool {
    matches!(key.first(), Some(&(RECORD_TAG | PIECE_TAG)))
}

const META_KEY: [u8; 1] = [0];
const RECORD_TAG: u8 = 1;
const PIECE_TAG: u8 = 2;
const MOMENT_TAG: u8 = 3;
/// Version 2 knows records that expire, version 3 requests. A tree of version 2 is one without requests.
const META_VERSION: u8 = 3;
const META_VERSION_MIN: u8 = 2;
const META_BYTES: usize = 46;
const RECORD_HEADER_BYTES: usize = 20;
/// In the length of a value: the record has a moment.
const EXPIRES: u32 = 1 << 31;
const _: () = assert!(BATCH_BYTES_MAX < EXPIRES as usize);
/// Longest value kept with its record, and length of the pieces of longer ones.
const PIECE_BYTES: usize = 16 << 10;
/// Records deleted by one batch while a tree is emptied.
const CLEAR_BATCH: usize = 1_024;
/// What a tree says about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Meta {
    /// A load is under way; `applied` then counts its chunks.
    pub(super) loading: bool,
    pub(super) applied: Sequence,
    pub(super) timestamp: Timestamp,
    pub(super) records: u64,
    pub(super) payload_bytes: u64,
    /// No record expires before this moment; none: none expires at all.
    pub(super) next_moment: Option<ExpireAt>,
}

/// A record as it was read from the disk.
#[derive(Debug)]
pub(super) struct StoredRecord {
    /// None when it was to be left there.
    pub(super) value: Option<Box<[u8]>>,
    pub(super) value_len: usize,
    pub(super) version: Sequence,
    pub(super) timestamp: Timestamp,
    pub(super) expire_at: Option<ExpireAt>,
}

/// A record with its key.
pub(super) type KeyedRecord = (Box<[u8]>, StoredRecord);
/// A key and what was found under it.
pub(super) type KeyedLookup = (Box<[u8]>, Option<StoredRecord>);

/// How much of a record is read, and for whom.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// All but its value.
    Header,
    /// All, for a reader, who may come again.
    Again,
    /// All, on the way past it.
    Once,
}

/// Which records a write must bring back before it overwrites them: a snapshot has not got to
/// them yet.
pub(super) struct KeepRule {
    pub(super) sequence: Sequence,
    /// Last key handed out.
    pub(super) after: Option<Box<[u8]>>,
}

/// What a write did.
pub(super) struct Written {
    pub(super) meta: Meta,
    pub(super) kept: Vec<KeyedRecord>,
    pub(super) stamp: Stamp,
}

/// What a scan found.
pub(super) struct Scanned {
    pub(super) records: Vec<KeyedRecord>,
    /// Last key looked at; none when the tree's end was reached.
    pub(super) cursor: Option<Box<[u8]>>,
}

impl<D: Database> TreeSession<'_, D> {
    /// What the tree holds after a start.
    pub(super) fn recover(&self) -> Result<Meta, StoreError> {
        let meta = self.meta()?;
        if meta.loading {
            return Err(self.damaged("a load was interrupted"));
        }
        let (from, to) = (vec![RECORD_TAG], vec![ANSWER_TAG]);
        let first = self.next(&mut self.range(Bound::Included(from), Bound::Excluded(to))?)?;
        if first.is_some() != (meta.records > 0) {
            return Err(self.damaged("there are records and the count says none, or the reverse"));
        }
        Ok(meta)
    }

    fn meta(&self) -> Result<Meta, StoreError> {
        match self.get(&META_KEY)? {
            None => Ok(Meta::default()),
            Some(bytes) => match Meta::decode(bytes.as_ref()) {
                Ok(meta) => Ok(meta),
                Err(Some(version)) => Err(self.damaged(&format!(
                    "it has format {version} and this release reads formats {META_VERSION_MIN} to {META_VERSION}: \
                     use the release that wrote it, or restore the partition from a snapshot"
                ))),
                Err(None) => Err(self.damaged("its meta does not read")),
            },
        }
    }

    /// Reads one record that is replaced or removed next.
    fn record_before_write(
        &self,
        key: &[u8],
        with_value: bool,
    ) -> Result<Option<StoredRecord>, StoreError> {
        let Some(stored) = self.get_once(&record_key(key))? else { return Ok(None) };
        let wanted = if with_value { Wanted::Once } else { Wanted::Header };
        self.complete(key, stored.as_ref(), wanted).map(Some)
    }

    /// A record from what its record key holds.
    fn complete(
        &self,
        key: &[u8],
        stored: &[u8],
        wanted: Wanted,
    ) -> Result<StoredRecord, StoreError> {
        let (mut record, inline) =
            decode_record(stored).ok_or_else(|| self.damaged("a record does not read"))?;
        if wanted == Wanted::Header {
            return Ok(record);
        }
        if record.value_len <= PIECE_BYTES {
            record.value = Some(inline.into());
            return Ok(record);
        }
        let mut value = Vec::with_capacity(record.value_len);
        for piece in 0..pieces(record.value_len) {
            let piece_key = piece_key(key, piece);
            let found = match wanted {
                Wanted::Again => self.get(&piece_key)?,
                Wanted::Header | Wanted::Once => self.get_once(&piece_key)?,
            };
            match found {
                Some(bytes) => value.extend_from_slice(bytes.as_ref()),
                None => return Err(self.damaged("a piece of a value is missing")),
            }
        }
        if value.len() != record.value_len {
            return Err(self.damaged("the pieces of a value do not make it up"));
        }
        record.value = Some(value.into());
        Ok(record)
    }

    /// Entries of the records between two keys, to be advanced with `next` and read with
    /// [`Self::record_of`].
    pub(super) fn records(
        &self,
        (from, to): (Bound<&[u8]>, Bound<&[u8]>),
    ) -> Result<impl Iterator<Item = Result<Entry<D>, EngineError>>, StoreError> {
        let from = match from {
            Bound::Unbounded => Bound::Included(vec![RECORD_TAG]),
            bound => bound.map(record_key_of_bound),
        };
        let to = match to {
            Bound::Unbounded => Bound::Excluded(vec![RECORD_TAG + 1]),
            bound => bound.map(record_key_of_bound),
        };
        self.range(from, to)
    }

    /// The record that an entry of [`Self::records`] holds, with its key.
    pub(super) fn record_of(&self, key: &[u8], stored: &[u8]) -> Result<KeyedRecord, StoreError> {
        let key: Box<[u8]> = key[1..].into();
        let record = self.complete(&key, stored, Wanted::Once)?;
        Ok((key, record))
    }

    /// Looks up keys; values as long as they stay below `budget_bytes` together.
    pub(super) fn fetch(
        &self,
        keys: &[Box<[u8]>],
        mut budget_bytes: usize,
    ) -> Result<Vec<KeyedLookup>, StoreError> {
        let mut fetched = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(stored) = self.get(&record_key(key))? else {
                fetched.push((key.clone(), None));
                continue;
            };
            let mut record = self.complete(key, stored.as_ref(), Wanted::Header)?;
            if record.value_len <= budget_bytes {
                budget_bytes -= record.value_len;
                record = self.complete(key, stored.as_ref(), Wanted::Again)?;
            }
            fetched.push((key.clone(), Some(record)));
        }
        Ok(fetched)
    }

    /// Writes batches, those of them that the tree does not hold yet, and brings back what
    /// `keep` asks for.
    pub(super) fn write(
        &self,
        batches: &[Arc<OverlayBatch>],
        keep: Option<&KeepRule>,
    ) -> Result<Written, StoreError> {
        let mut meta = self.meta()?;
        if meta.loading {
            return Err(self.damaged("a load was interrupted"));
        }
        let mut changes = BTreeMap::new();
        let mut requests = BTreeMap::new();
        let before = meta.applied;
        for batch in batches.iter().filter(|batch| batch.sequence > before) {
            if batch.sequence != meta.applied.next() {
                // After a reopening the engine may hold less than it did: start from there.
                break;
            }
            meta.applied = batch.sequence;
            meta.timestamp = batch.timestamp;
            changes.extend(batch.changes());
            let lines = batch.requests.iter();
            requests.extend(lines.map(|line| (&*line.key, line.row.as_deref())));
        }
        let mut engine_batch = Vec::new();
        let mut kept = Vec::new();
        for (key, record) in changes {
            let old = self.record_before_write(key, false)?;
            if let Some(old) = &old {
                meta.records -= 1;
                meta.payload_bytes -= (key.len() + old.value_len) as u64;
                if let Some(moment) = old.expire_at {
                    engine_batch.push(Change::Remove(moment_key(moment, key)));
                }
                let needed = keep.is_some_and(|keep| {
                    old.version <= keep.sequence && keep.after.as_deref().is_none_or(|a| key > a)
                });
                if needed && let Some(old) = self.record_before_write(key, true)? {
                    kept.push((key.into(), old));
                }
            }
            let old_len = old.map_or(0, |old| old.value_len);
            if let Some(record) = record {
                meta.count(key, record);
                insert(&mut engine_batch, key, record);
            } else {
                engine_batch.push(Change::Remove(record_key(key)));
            }
            for piece in pieces(record.map_or(0, |record| record.value.len()))..pieces(old_len) {
                engine_batch.push(Change::Remove(piece_key(key, piece)));
            }
        }
        engine_batch.extend(requests.into_iter().map(|(key, row)| line_change(key, row)));
        if meta.applied > before {
            engine_batch.push(meta.change());
            self.apply(engine_batch)?;
        }
        Ok(Written { meta, kept, stamp: self.stamp() })
    }

    /// Takes out records whose moment has come, `records_max` at most.
    pub(super) fn reclaim(
        &self,
        now: WallClock,
        records_max: usize,
    ) -> Result<(Meta, u64), StoreError> {
        let mut meta = self.meta()?;
        if meta.loading {
            return Err(self.damaged("a load was interrupted"));
        }
        let mut batch = Vec::new();
        let mut reclaimed = 0;
        meta.next_moment = None;
        let (from, to) = (vec![MOMENT_TAG], vec![MOMENT_TAG + 1]);
        let mut moments = self.range(Bound::Included(from), Bound::Excluded(to))?;
        while let Some((moment_key, _)) = self.next(&mut moments)? {
            let moment_key = moment_key.as_ref();
            let (moment, key) = split_moment_key(moment_key)
                .ok_or_else(|| self.damaged("a moment does not read"))?;
            if !moment.has_come(now) || reclaimed == records_max as u64 {
                meta.next_moment = Some(moment);
                break;
            }
            let record =
                self.record_before_write(key, false)?.filter(|r| r.expire_at == Some(moment));
            let record =
                record.ok_or_else(|| self.damaged("a moment is not that of its record"))?;
            for piece in 0..pieces(record.value_len) {
                batch.push(Change::Remove(piece_key(key, piece)));
            }
            batch.push(Change::Remove(record_key(key)));
            batch.push(Change::Remove(moment_key.to_vec()));
            meta.records -= 1;
            meta.payload_bytes -= (key.len() + record.value_len) as u64;
            reclaimed += 1;
        }
        drop(moments);
        batch.push(meta.change());
        self.apply(batch)?;
        Ok((meta, reclaimed))
    }

    /// Reads on from `after`: records up to `sequence`, about `budget_bytes` of them.
    pub(super) fn scan(
        &self,
        after: Option<&[u8]>,
        sequence: Sequence,
        budget_bytes: usize,
    ) -> Result<Scanned, StoreError> {
        let from = match after {
            Some(key) => Bound::Excluded(record_key(key)),
            None => Bound::Included(vec![RECORD_TAG]),
        };
        let to = Bound::Excluded(vec![RECORD_TAG + 1]);
        let mut entries = self.range(from, to)?;
        let (mut records, mut bytes) = (Vec::new(), 0);
        while bytes < budget_bytes.max(1) {
            let Some((key, stored)) = self.next(&mut entries)? else {
                return Ok(Scanned { records, cursor: None });
            };
            let (key, stored) = (Box::<[u8]>::from(&key.as_ref()[1..]), stored.as_ref());
            let record = self.complete(&key, stored, Wanted::Header)?;
            bytes += key.len() + RECORD_HEADER_BYTES;
            if record.version <= sequence {
                let record = self.complete(&key, stored, Wanted::Once)?;
                bytes += record.value_len;
                records.push((key, record));
            } else if bytes >= budget_bytes {
                // Ends between records that are not wanted, too.
                return Ok(Scanned { records, cursor: Some(key) });
            }
        }
        let cursor = records.last().map(|(key, _)| key.clone());
        Ok(Scanned { records, cursor })
    }

    /// Empties the tree ahead of a load; from here to [`Self::load_end`] a crash leaves it unusable.
    pub(super) fn load_start(&self) -> Result<(), StoreError> {
        let loading = Meta { loading: true, ..Meta::default() };
        self.apply(vec![loading.change()])?;
        loop {
            let mut entries = self.range(Bound::Included(vec![RECORD_TAG]), Bound::Unbounded)?;
            let mut batch = Vec::new();
            while batch.len() < CLEAR_BATCH
                && let Some((key, _)) = self.next(&mut entries)?
            {
                batch.push(Change::Remove(key.as_ref().to_vec()));
            }
            drop(entries);
            if batch.is_empty() {
                return Ok(());
            }
            self.apply(batch)?;
        }
    }

    /// Adds chunk `number` of a load, the first being 0.
    pub(super) fn load_chunk(
        &self,
        number: u64,
        records: &[KeyedRecord],
    ) -> Result<Meta, StoreError> {
        let mut meta = self.meta()?;
        if !meta.loading || meta.applied.0 > number + 1 || meta.applied.0 < number {
            return Err(self.damaged("a load lost what it had written"));
        }
        if meta.applied.0 == number + 1 {
            // Handed out again after an error that came too late to prevent it.
            return Ok(meta);
        }
        let mut batch = Vec::new();
        for (key, record) in records {
            let record = record.as_record();
            meta.count(key, record);
            insert(&mut batch, key, record);
        }
        meta.applied = meta.applied.next();
        batch.push(meta.change());
        self.apply(batch)?;
        Ok(meta)
    }

    /// Ends a load of `chunks` chunks.
    pub(super) fn load_end(
        &self,
        chunks: u64,
        applied: Sequence,
        timestamp: Timestamp,
        requests: &[RequestLine],
    ) -> Result<Written, StoreError> {
        let mut meta = self.meta()?;
        if meta.loading {
            if meta.applied.0 != chunks {
                return Err(self.damaged("a load lost what it had written"));
            }
            self.load_requests(requests)?;
            meta = Meta { loading: false, applied, timestamp, ..meta };
            self.apply(vec![meta.change()])?;
        }
        Ok(Written { meta, kept: Vec::new(), stamp: self.stamp() })
    }
}

impl StoredRecord {
    /// The record, of which the value was read.
    pub(super) fn as_record(&self) -> Record<'_> {
        Record {
            value: self.value.as_deref().expect("the value was asked for"),
            version: self.version,
            timestamp: self.timestamp,
            expire_at: self.expire_at,
        }
    }
}

impl Meta {
    /// Counts a record that is added.
    fn count(&mut self, key: &[u8], record: Record<'_>) {
        self.records += 1;
        self.payload_bytes += (key.len() + record.value.len()) as u64;
        let moments = [self.next_moment, record.expire_at];
        self.next_moment = moments.into_iter().flatten().min();
    }

    /// ```text
    ///  0         1         2         10          18        26              34            42
    /// ┌─────────┬─────────┬─────────┬───────────┬─────────┬───────────────┬─────────────┬────────┐
    /// │ version │ loading │ applied │ timestamp │ records │ payload bytes │ next moment │ CRC32C │
    /// └─────────┴─────────┴─────────┴───────────┴─────────┴───────────────┴─────────────┴────────┘
    /// ```
    fn encode(self) -> [u8; META_BYTES] {
        let mut out = [0; META_BYTES];
        out[0] = META_VERSION;
        out[1] = u8::from(self.loading);
        out[2..10].copy_from_slice(&self.applied.0.to_le_bytes());
        out[10..18].copy_from_slice(&self.timestamp.0.to_le_bytes());
        out[18..26].copy_from_slice(&self.records.to_le_bytes());
        out[26..34].copy_from_slice(&self.payload_bytes.to_le_bytes());
        let moment = self.next_moment.map_or(0, ExpireAt::millis);
        out[34..42].copy_from_slice(&moment.to_le_bytes());
        let crc = crc32c::crc32c(&out[..42]);
        out[42..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn change(self) -> Change {
        Change::Put(META_KEY.to_vec(), self.encode().to_vec())
    }

    /// # Errors
    /// The version, where that is what does not fit.
    fn decode(bytes: &[u8]) -> Result<Self, Option<u8>> {
        let (fields, crc) = bytes.split_last_chunk().ok_or(None)?;
        if u32::from_le_bytes(*crc) != crc32c::crc32c(fields) {
            return Err(None);
        }
        match fields.first() {
            Some(META_VERSION_MIN..=META_VERSION) => {}
            Some(&version) => return Err(Some(version)),
            None => return Err(None),
        }
        if bytes.len() != META_BYTES || fields[1] > 1 {
            return Err(None);
        }
        let word = |at: usize| {
            u64::from_le_bytes(*fields[at..].first_chunk().expect("the length was checked"))
        };
        Ok(Self {
            loading: fields[1] == 1,
            applied: Sequence(word(2)),
            timestamp: Timestamp(word(10)),
            records: word(18),
            payload_bytes: word(26),
            next_moment: ExpireAt::from_millis(word(34)),
        })
    }
}

fn insert(batch: &mut Vec<Change>, key: &[u8], record: Record<'_>) {
    let Record { value, version, timestamp, expire_at } = record;
    let inline = if value.len() <= PIECE_BYTES { value } else { &[] };
    let flags = if expire_at.is_some() { EXPIRES } else { 0 };
    let mut stored = Vec::with_capacity(RECORD_HEADER_BYTES + size_of::<u64>() + inline.len());
    stored.extend_from_slice(&version.0.to_le_bytes());
    stored.extend_from_slice(&timestamp.0.to_le_bytes());
    stored.extend_from_slice(&(value.len() as u32 | flags).to_le_bytes());
    if let Some(moment) = expire_at {
        stored.extend_from_slice(&moment.millis().to_le_bytes());
        batch.push(Change::Put(moment_key(moment, key), Vec::new()));
    }
    stored.extend_from_slice(inline);
    batch.push(Change::Put(record_key(key), stored));
    if inline.len() < value.len() {
        for (number, piece) in value.chunks(PIECE_BYTES).enumerate() {
            batch.push(Change::Put(piece_key(key, number as u32), piece.to_vec()));
        }
    }
}

fn decode_record(stored: &[u8]) -> Option<(StoredRecord, &[u8])> {
    let (version, rest) = stored.split_first_chunk()?;
    let (timestamp, rest) = rest.split_first_chunk()?;
    let (length, mut inline) = rest.split_first_chunk()?;
    let length = u32::from_le_bytes(*length);
    let mut expire_at = None;
    if length & EXPIRES != 0 {
        let (moment, rest) = inline.split_first_chunk()?;
        expire_at = Some(ExpireAt::from_millis(u64::from_le_bytes(*moment))?);
        inline = rest;
    }
    let value_len = (length & !EXPIRES) as usize;
    let expected = if value_len <= PIECE_BYTES { value_len } else { 0 };
    let record = StoredRecord {
        value: None,
        value_len,
        version: Sequence(u64::from_le_bytes(*version)),
        timestamp: Timestamp(u64::from_le_bytes(*timestamp)),
        expire_at,
    };
    (inline.len() == expected && value_len <= BATCH_BYTES_MAX).then_some((record, inline))
}

/// How many pieces a value is cut to: none if it is short.
fn pieces(value_len: usize) -> u32 {
    if value_len <= PIECE_BYTES { 0 } else { value_len.div_ceil(PIECE_BYTES) as u32 }
}

/// As [`record_key`], for what is compared with keys and need not be one.
fn record_key_of_bound(bound: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + bound.len());
    out.push(RECORD_TAG);
    out.extend_from_slice(bound);
    out
}

fn record_key(key: &[u8]) -> Vec<u8> {
    debug_assert!(!key.is_empty() && key.len() <= KEY_BYTES_MAX);
    let mut out = Vec::with_capacity(1 + key.len());
    out.push(RECORD_TAG);
    out.extend_from_slice(key);
    out
}

/// The number comes last and is always as long, so no two keys have a piece key in common.
fn piece_key(key: &[u8], piece: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(5 + key.len());
    out.push(PIECE_TAG);
    out.extend_from_slice(key);
    out.extend_from_slice(&piece.to_be_bytes());
    out
}

/// Big-endian, so that the tree's order is that of the moments.
fn moment_key(moment: ExpireAt, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(9 + key.len());
    out.push(MOMENT_TAG);
    out.extend_from_slice(&moment.millis().to_be_bytes());
    out.extend_from_slice(key);
    out
}

fn split_moment_key(bytes: &[u8]) -> Option<(ExpireAt, &[u8])> {
    let (moment, key) = bytes.get(1..)?.split_first_chunk()?;
    Some((ExpireAt::from_millis(u64::from_be_bytes(*moment))?, key))
}

#[cfg(test)]
#[cfg(feature = "sled")]
mod tests {
    use stateside_types::{self as types, Epoch, PartitionId, WriteEntry};

    use super::*;
    use crate::{SledEngine, SledOptions, SledStore, StateStore};

    /// Number of pieces in the store's tree.
    fn stored_pieces(store: &SledStore) -> usize {
        let session = store.tree.reading().unwrap();
        let from = Bound::Included(vec![PIECE_TAG]);
        let mut entries = session.range(from, Bound::Unbounded).unwrap();
        std::iter::from_fn(|| session.next(&mut entries).unwrap()).count()
    }

    fn write(store: &mut SledStore, change: types::Change<'_>) {
        let entry = WriteEntry::new(b"key", change);
        let sequence = store.applied().next();
        store.apply(sequence, Timestamp(1), &[entry]);
        let work = store.take_work(sequence).unwrap();
        store.finish_work(work()).unwrap();
    }

    #[test]
    fn pieces_of_a_value_go_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sled");
        let engine = SledEngine::open(&path, SledOptions::default()).unwrap();
        let mut store = engine.partition(PartitionId(1), Epoch(1)).unwrap();
        for (pieces, length) in [
            (0, PIECE_BYTES),
            (2, PIECE_BYTES + 1),
            (5, 5 * PIECE_BYTES),
            (3, 3 * PIECE_BYTES),
            (0, 7),
        ] {
            write(&mut store, types::Change::Put(&vec![1; length]));
            assert_eq!(stored_pieces(&store), pieces, "of a value of {length} bytes");
        }
        write(&mut store, types::Change::Put(&vec![1; 2 * PIECE_BYTES]));
        write(&mut store, types::Change::Remove);
        assert_eq!(stored_pieces(&store), 0);
        assert_eq!(store.stats().records, 0);
    }

    #[test]
    fn damaged_meta_and_records_do_not_read() {
        let next_moment = ExpireAt::from_millis(77);
        let meta = Meta { applied: Sequence(5), records: 3, next_moment, ..Meta::default() };
        assert_eq!(Meta::decode(&meta.encode()), Ok(meta));
        for at in 0..META_BYTES {
            let mut bytes = meta.encode();
            bytes[at] ^= 1;
            assert_eq!(Meta::decode(&bytes), Err(None), "byte {at}");
        }
        let mut first_format = vec![0; 34];
        first_format[0] = 1;
        first_format.extend_from_slice(&crc32c::crc32c(&first_format).to_le_bytes());
        assert_eq!(Meta::decode(&first_format), Err(Some(1)));
        for length in 0..RECORD_HEADER_BYTES {
            assert!(decode_record(&vec![0; length]).is_none());
        }
        let mut long = vec![0; RECORD_HEADER_BYTES];
        long[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(decode_record(&long).is_none());
    }
}
