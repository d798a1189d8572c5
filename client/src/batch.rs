//! The batches of the data plane: what callers hand in, how it is encoded, what comes back.
//!
//! Entries are borrowed and encoded straight into the request: prost's types own every key and value,
//! and a retry would copy them all again.

use std::{ops::Deref, time::Duration, vec};

use prost::encoding::{self, WireType, encode_key, encode_varint, encoded_len_varint};
use stateside_proto::v1;
use stateside_types::{
    Ack, Condition, ExpireAt, Reason, Sequence, Timestamp,
    limits::{
        BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, KEY_BYTES_MAX, REQUEST_CLIENT_BYTES_MAX,
        ROUTING_KEY_BYTES_MAX, TTL_MS_MAX,
    },
};

use crate::{Error, RequestId, error::Effect, session::InSession};

/// One record to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upsert<'a> {
    /// 1 to 4096 bytes, each once in a batch.
    pub key: &'a [u8],
    /// Any bytes.
    pub value: &'a [u8],
    /// What must hold of the key's record.
    pub condition: Condition,
    /// How long the record exists from the write on, whole milliseconds, up to a hundred years.
    /// None: until it is removed or written anew.
    pub ttl: Option<Duration>,
}

impl<'a> Upsert<'a> {
    /// An unconditional write.
    pub fn new(
        key: &'a (impl AsRef<[u8]> + ?Sized),
        value: &'a (impl AsRef<[u8]> + ?Sized),
    ) -> Self {
        let (key, value) = (key.as_ref(), value.as_ref());
        Self { key, value, condition: Condition::None, ttl: None }
    }

    /// Write only if the key has no record.
    #[must_use]
    pub fn if_absent(self) -> Self {
        Self { condition: Condition::IfAbsent, ..self }
    }

    /// Write only if the key's record has exactly this version.
    #[must_use]
    pub fn if_version(self, version: Sequence) -> Self {
        Self { condition: Condition::IfVersion(version), ..self }
    }

    /// Have the record cease to exist this long after the write.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { ttl: Some(ttl), ..self }
    }

    fn ttl_ms(&self) -> u64 {
        ttl_ms(self.ttl)
    }
}

/// One record to delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removal<'a> {
    /// 1 to 4096 bytes, each once in a batch.
    pub key: &'a [u8],
    /// Delete only if the key's record has exactly this version.
    pub if_version: Option<Sequence>,
}

impl<'a> Removal<'a> {
    /// An unconditional delete.
    pub fn new(key: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        Self { key: key.as_ref(), if_version: None }
    }

    /// Delete only if the key's record has exactly this version.
    #[must_use]
    pub fn if_version(self, version: Sequence) -> Self {
        Self { if_version: Some(version), ..self }
    }
}

/// A write that took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The version of every record that the batch wrote in its partition.
    pub version: Sequence,
    /// When, by the partition's clock.
    pub timestamp: Timestamp,
}

/// A record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its bytes.
    pub value: Vec<u8>,
    /// For `if_version`.
    pub version: Sequence,
    /// When it was written, by the partition's clock.
    pub timestamp: Timestamp,
    /// From when on it is absent, by the partition's clock. None: it stays.
    pub expire_at: Option<ExpireAt>,
}

/// One result per entry, in the batch's order. Partitions succeed and fail on their own, so a
/// batch that spans several may be applied in part.
#[derive(Clone, Debug)]
#[must_use = "entries may have failed one by one: ask `all`"]
pub struct Results<T>(Vec<Result<T, Error>>);

impl<T> Results<T> {
    pub(crate) fn new(results: Vec<Result<T, Error>>) -> Self {
        Self(results)
    }

    /// Every result, or the first error.
    ///
    /// # Errors
    /// The first entry's that failed; other entries may have succeeded.
    pub fn all(self) -> Result<Vec<T>, Error> {
        self.0.into_iter().collect()
    }
}

impl<T> Deref for Results<T> {
    type Target = [Result<T, Error>];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<T> IntoIterator for Results<T> {
    type Item = Result<T, Error>;
    type IntoIter = vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// What a request says besides its entries.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Head<'a> {
    pub(crate) routing_key: &'a [u8],
    pub(crate) atomic: bool,
    pub(crate) ack: Option<Ack>,
    pub(crate) session: Option<InSession<'a>>,
    /// Its requests get ids.
    pub(crate) has_id: bool,
    /// Of an update: answer with the new values.
    pub(crate) return_values: bool,
}

/// Most bytes of a request's id: field key and length; a name of 32 bytes and two numbers with theirs.
const REQUEST_ID_BYTES_MAX: usize = 2 + 34 + 2 * 11;

impl Head<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        if !self.routing_key.is_empty() {
            put_bytes(out, 2, self.routing_key);
        }
        if self.atomic {
            put_varint(out, 3, 1);
        }
        if let Some(ack) = self.ack {
            put_varint(out, 4, v1::Ack::from(ack) as u64);
        }
        if self.return_values {
            put_varint(out, 5, 1);
        }
    }

    /// Bytes at most: three field keys, one length, two one-byte values, and the id.
    fn length_max(&self) -> usize {
        let id = if self.has_id { REQUEST_ID_BYTES_MAX } else { 0 };
        let session = self.session.map_or(0, |session| session.length_max());
        self.routing_key.len() + 12 + 2 * usize::from(self.return_values) + id + session
    }
}

/// A batch of one kind: what the client needs to place, encode and answer it.
pub(crate) trait Batch: Sync {
    type Output: Clone + Send;
    type Answer: prost::Message + Default + 'static;
    /// Path of the method.
    const PATH: &'static str;
    /// Field of the request's session.
    const SESSION: u32;

    fn head(&self) -> Head<'_>;
    fn len(&self) -> usize;
    fn key(&self, index: usize) -> &[u8];
    /// Bytes of the entry's content, without its own field key and length.
    fn content_length(&self, index: usize) -> usize;
    /// Writes the entry as a field of the request.
    fn encode_entry(&self, index: usize, out: &mut Vec<u8>);
    fn effect(&self, index: usize) -> Effect;
    fn session_of(answer: &Self::Answer) -> Option<&v1::Session>;
    fn unpack(answer: Self::Answer) -> Vec<Result<Self::Output, Error>>;

    /// What a node refuses of this kind of entry alone.
    fn check_entry(&self, index: usize) -> Result<(), Error> {
        let _ = index;
        Ok(())
    }

    /// Bytes of the entry in a request.
    fn entry_length(&self, index: usize) -> usize {
        let length = self.content_length(index);
        1 + encoded_len_varint(length as u64) + length
    }

    /// Bytes left for entries in one request.
    fn entries_bytes_max(&self) -> usize {
        BATCH_BYTES_MAX - self.head().length_max()
    }

    fn encode(&self, picks: &[u32], entries_bytes: usize, id: Option<&RequestId>) -> Vec<u8> {
        let mut out = Vec::with_capacity(entries_bytes + self.head().length_max());
        for &pick in picks {
            self.encode_entry(pick as usize, &mut out);
        }
        debug_assert_eq!(out.len(), entries_bytes, "entry_length and encode_entry agree");
        self.head().encode(&mut out);
        if let Some(RequestId { client, number, settled }) = id {
            let id = v1::RequestId { client: client.clone(), number: *number, settled: *settled };
            encoding::message::encode(6, &id, &mut out);
        }
        out
    }

    /// Finds an id that every node refuses, and a batch too large for one.
    fn check_id(&self, id: &RequestId) -> Result<(), Error> {
        if id.number == 0 || !(1..=REQUEST_CLIENT_BYTES_MAX).contains(&id.client.len()) {
            let text = "a request id has a client of 1 to 32 bytes and a number from 1";
            return Err(Error::refused(Reason::InvalidRequestId, text));
        }
        let bytes: usize = (0..self.len()).map(|index| self.entry_length(index)).sum();
        if bytes > self.entries_bytes_max() || self.len() > BATCH_ENTRIES_MAX {
            let text =
                "a batch with a request id of its own is never split, and this one is too large";
            return Err(Error::refused(Reason::BatchTooLarge, text));
        }
        Ok(())
    }

    /// Finds what every node refuses, before anything is sent: a batch that is split must not be
    /// applied in part because one of its entries could never have been.
    fn check(&self) -> Result<(), Error> {
        if self.len() == 0 {
            return Err(Error::refused(Reason::EmptyBatch, "the batch has no entries"));
        }
        let routing_key_length = self.head().routing_key.len();
        if routing_key_length > ROUTING_KEY_BYTES_MAX {
            let message = format!(
                "the routing key has {routing_key_length} bytes, the limit is {ROUTING_KEY_BYTES_MAX}"
            );
            return Err(Error::refused(Reason::KeyTooLarge, message));
        }
        let entry_max = self.entries_bytes_max();
        for index in 0..self.len() {
            let key_length = self.key(index).len();
            if key_length == 0 {
                return Err(Error::refused(
                    Reason::EmptyKey,
                    format!("entry {index} has an empty key"),
                ));
            }
            if key_length > KEY_BYTES_MAX {
                let message = format!(
                    "the key of entry {index} has {key_length} bytes, the limit is {KEY_BYTES_MAX}"
                );
                return Err(Error::refused(Reason::KeyTooLarge, message));
            }
            self.check_entry(index)?;
            let length = self.entry_length(index);
            if length > entry_max {
                let message =
                    format!("entry {index} alone has {length} bytes, a request takes {entry_max}");
                return Err(Error::refused(Reason::BatchTooLarge, message));
            }
        }
        Ok(())
    }
}

/// Bytes that a condition and a time to live take in an entry; their tags have a byte each.
pub(crate) fn terms_length(condition: Condition, ttl_ms: u64) -> usize {
    let condition = match condition {
        Condition::None => 0,
        Condition::IfAbsent => 2,
        Condition::IfVersion(version) => 1 + encoded_len_varint(version.0),
    };
    let ttl = if ttl_ms == 0 { 0 } else { 1 + encoded_len_varint(ttl_ms) };
    condition + ttl
}

/// Refuses what no node would take.
pub(crate) fn check_ttl(index: usize, ttl_ms: u64) -> Result<(), Error> {
    if ttl_ms <= TTL_MS_MAX {
        return Ok(());
    }
    let message = format!("entry {index} is to live for {ttl_ms} ms");
    Err(Error::refused(Reason::InvalidTtl, message))
}

pub(crate) struct UpsertBatch<'a> {
    pub(crate) head: Head<'a>,
    pub(crate) entries: &'a [Upsert<'a>],
}

pub(crate) struct RemoveBatch<'a> {
    pub(crate) head: Head<'a>,
    pub(crate) entries: &'a [Removal<'a>],
}

pub(crate) struct GetBatch<'a, K> {
    pub(crate) head: Head<'a>,
    pub(crate) keys: &'a [K],
}

impl Batch for UpsertBatch<'_> {
    type Output = Written;
    type Answer = v1::UpsertResponse;
    const PATH: &'static str = "/stateside.v1.DataPlane/Upsert";
    const SESSION: u32 = 15;

    fn head(&self) -> Head<'_> {
        self.head
    }

    fn len(&self) -> usize {
        self.entries.len()
    }

    fn key(&self, index: usize) -> &[u8] {
        self.entries[index].key
    }

    fn content_length(&self, index: usize) -> usize {
        let entry = &self.entries[index];
        let value = if entry.value.is_empty() { 0 } else { bytes_length(entry.value) };
        bytes_length(entry.key) + value + terms_length(entry.condition, entry.ttl_ms())
    }

    fn encode_entry(&self, index: usize, out: &mut Vec<u8>) {
        let entry = &self.entries[index];
        encode_key(1, WireType::LengthDelimited, out);
        encode_varint(self.content_length(index) as u64, out);
        put_bytes(out, 1, entry.key);
        if !entry.value.is_empty() {
            put_bytes(out, 2, entry.value);
        }
        match entry.condition {
            Condition::None => {}
            Condition::IfAbsent => put_varint(out, 3, 1),
            Condition::IfVersion(version) => put_varint(out, 4, version.0),
        }
        if entry.ttl.is_some() {
            put_varint(out, 5, entry.ttl_ms());
        }
    }

    fn check_entry(&self, index: usize) -> Result<(), Error> {
        check_ttl(index, self.entries[index].ttl_ms())
    }

    fn effect(&self, index: usize) -> Effect {
        Effect::Write { only_once: self.entries[index].condition != Condition::None }
    }

    fn session_of(answer: &Self::Answer) -> Option<&v1::Session> {
        answer.session.as_ref()
    }

    fn unpack(answer: Self::Answer) -> Vec<Result<Written, Error>> {
        answer.results.into_iter().map(written).collect()
    }
}

impl Batch for RemoveBatch<'_> {
    type Output = Written;
    type Answer = v1::RemoveResponse;
    const PATH: &'static str = "/stateside.v1.DataPlane/Remove";
    const SESSION: u32 = 15;

    fn head(&self) -> Head<'_> {
        self.head
    }

    fn len(&self) -> usize {
        self.entries.len()
    }

    fn key(&self, index: usize) -> &[u8] {
        self.entries[index].key
    }

    fn content_length(&self, index: usize) -> usize {
        let entry = &self.entries[index];
        let condition = entry.if_version.map_or(0, |version| 1 + encoded_len_varint(version.0));
        bytes_length(entry.key) + condition
    }

    fn encode_entry(&self, index: usize, out: &mut Vec<u8>) {
        encode_key(1, WireType::LengthDelimited, out);
        encode_varint(self.content_length(index) as u64, out);
        put_bytes(out, 1, self.entries[index].key);
        if let Some(version) = self.entries[index].if_version {
            put_varint(out, 2, version.0);
        }
    }

    fn effect(&self, index: usize) -> Effect {
        Effect::Write { only_once: self.entries[index].if_version.is_some() }
    }

    fn session_of(answer: &Self::Answer) -> Option<&v1::Session> {
        answer.session.as_ref()
    }

    fn unpack(answer: Self::Answer) -> Vec<Result<Written, Error>> {
        answer.results.into_iter().map(written).collect()
    }
}

impl<K: AsRef<[u8]> + Sync> Batch for GetBatch<'_, K> {
    type Output = Option<Record>;
    type Answer = v1::GetResponse;
    const PATH: &'static str = "/stateside.v1.DataPlane/Get";
    const SESSION: u32 = 3;

    fn head(&self) -> Head<'_> {
        self.head
    }

    fn len(&self) -> usize {
        self.keys.len()
    }

    fn key(&self, index: usize) -> &[u8] {
        self.keys[index].as_ref()
    }

    fn content_length(&self, index: usize) -> usize {
        self.key(index).len()
    }

    fn encode_entry(&self, index: usize, out: &mut Vec<u8>) {
        put_bytes(out, 1, self.key(index));
    }

    fn effect(&self, _index: usize) -> Effect {
        Effect::Read
    }

    fn session_of(answer: &Self::Answer) -> Option<&v1::Session> {
        answer.session.as_ref()
    }

    fn unpack(answer: Self::Answer) -> Vec<Result<Option<Record>, Error>> {
        let read = |record: v1::Record| match record.error {
            Some(error) => Err(error.into()),
            None => Ok(record.found.then_some(Record {
                value: record.value,
                version: Sequence(record.version),
                timestamp: Timestamp(record.timestamp),
                expire_at: ExpireAt::from_millis(record.expire_at_ms),
            })),
        };
        answer.records.into_iter().map(read).collect()
    }
}

fn written(result: v1::WriteResult) -> Result<Written, Error> {
    match result.error {
        Some(error) => Err(error.into()),
        None => Ok(Written {
            version: Sequence(result.version),
            timestamp: Timestamp(result.timestamp),
        }),
    }
}

/// As a request has it: at least 1 where there is a time to live, for 0 stands for none.
pub(crate) fn ttl_ms(ttl: Option<Duration>) -> u64 {
    ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1))
}

/// A bytes field, its field key (one byte: all numbers are below 16) and length included.
pub(crate) fn bytes_length(bytes: &[u8]) -> usize {
    1 + encoded_len_varint(bytes.len() as u64) + bytes.len()
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

pub(crate) fn put_varint(out: &mut Vec<u8>, field: u32, value: u64) {
    encode_key(field, WireType::Varint, out);
    encode_varint(value, out);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    fn condition() -> impl Strategy<Value = Condition> {
        prop_oneof![
            Just(Condition::None),
            Just(Condition::IfAbsent),
            any::<u64>().prop_map(|version| Condition::IfVersion(Sequence(version))),
        ]
    }

    fn ack() -> impl Strategy<Value = Option<Ack>> {
        prop_oneof![Just(None), Just(Some(Ack::Memory)), Just(Some(Ack::Durable))]
    }

    fn encode_all<B: Batch>(batch: &B, id: Option<&RequestId>) -> Vec<u8> {
        let picks: Vec<u32> = (0..batch.len() as u32).collect();
        let bytes = (0..batch.len()).map(|index| batch.entry_length(index)).sum();
        let out = batch.encode(&picks, bytes, id);
        assert!(out.len() <= bytes + batch.head().length_max());
        out
    }

    proptest! {
        #[test]
        fn requests_are_what_prost_would_write(
            entries in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 1..300), prop::collection::vec(any::<u8>(), 0..300), condition(), any::<Option<u32>>()),
                1..20,
            ),
            routing_key in prop::collection::vec(any::<u8>(), 0..200), atomic in any::<bool>(), ack in ack(),
            id in prop::option::of((prop::collection::vec(any::<u8>(), 1..33), 1_u64.., any::<u64>())),
        ) {
            let has_id = id.is_some();
            let head = Head { routing_key: &routing_key, atomic, ack, has_id, ..Head::default() };
            let id = id.map(|(client, number, settled)| RequestId { client, number, settled });
            let request_id = id.clone().map(|RequestId { client, number, settled }| {
                v1::RequestId { client, number, settled }
            });
            let ack = ack.map_or(v1::Ack::Default, v1::Ack::from) as i32;

            let upserts: Vec<_> = entries
                .iter()
                .map(|(key, value, condition, ttl_ms)| {
                    let ttl = ttl_ms.map(|ttl_ms| Duration::from_millis(ttl_ms.into()));
                    Upsert { key, value, condition: *condition, ttl }
                })
                .collect();
            let theirs = v1::UpsertRequest {
                entries: entries.iter().map(|(key, value, condition, ttl_ms)| v1::UpsertEntry {
                    key: key.clone(),
                    value: value.clone(),
                    if_absent: *condition == Condition::IfAbsent,
                    if_version: if let Condition::IfVersion(version) = condition { Some(version.0) } else { None },
                    ttl_ms: ttl_ms.map_or(0, |ttl_ms| u64::from(ttl_ms.max(1))),
                }).collect(),
                routing_key: routing_key.clone(), atomic, ack, request_id: request_id.clone(),
                session: None,
            };
            let ours = encode_all(&UpsertBatch { head, entries: &upserts }, id.as_ref());
            prop_assert_eq!(v1::UpsertRequest::decode(&ours[..]).unwrap(), theirs.clone());
            prop_assert_eq!(ours, theirs.encode_to_vec());

            let removals: Vec<_> = entries
                .iter()
                .map(|(key, _, condition, _)| Removal {
                    key,
                    if_version: if let Condition::IfVersion(version) = condition { Some(*version) } else { None },
                })
                .collect();
            let theirs = v1::RemoveRequest {
                entries: removals.iter().map(|r| v1::RemoveEntry { key: r.key.to_vec(), if_version: r.if_version.map(|v| v.0) }).collect(),
                routing_key: routing_key.clone(), atomic, ack, request_id: request_id.clone(),
                session: None,
            };
            prop_assert_eq!(encode_all(&RemoveBatch { head, entries: &removals }, id.as_ref()), theirs.encode_to_vec());

            let keys: Vec<_> = entries.iter().map(|(key, ..)| key.clone()).collect();
            let head = Head { routing_key: &routing_key, ..Head::default() };
            let theirs = v1::GetRequest { keys: keys.clone(), routing_key: routing_key.clone(), session: None };
            prop_assert_eq!(encode_all(&GetBatch { head, keys: &keys }, None), theirs.encode_to_vec());
        }
    }

    #[test]
    fn what_every_node_refuses_is_refused_before_it_is_sent() {
        let reason = |keys: &[&[u8]], routing_key: &[u8]| {
            let head = Head { routing_key, ..Head::default() };
            GetBatch { head, keys }.check().err().and_then(|error| error.reason())
        };
        let long = vec![b'k'; KEY_BYTES_MAX + 1];
        assert_eq!(reason(&[], b""), Some(Reason::EmptyBatch));
        assert_eq!(reason(&[b"k", b""], b""), Some(Reason::EmptyKey));
        assert_eq!(reason(&[b"k", &long], b""), Some(Reason::KeyTooLarge));
        assert_eq!(reason(&[b"k"], &long), Some(Reason::KeyTooLarge));
        assert_eq!(reason(&[b"k", &long[1..]], &long[1..]), None);

        let value = vec![0; BATCH_BYTES_MAX];
        let largest = BATCH_BYTES_MAX - 12 - 11;
        for (length, refused) in [(BATCH_BYTES_MAX, true), (largest, false)] {
            let entries = [Upsert::new("k", &value[..length])];
            let batch = UpsertBatch { head: Head::default(), entries: &entries };
            assert_eq!(batch.check().is_err(), refused);
            if !refused {
                assert!(encode_all(&batch, None).len() <= BATCH_BYTES_MAX);
            }
        }
    }
}
