//! Read-modify-write: the entries of an update, how they are encoded, what comes back.

use std::time::Duration;

use prost::encoding::{self, WireType, encode_key, encode_varint};
use stateside_proto::v1;
use stateside_types::{Condition, Operator, Sequence, Timestamp};

use crate::{
    Error,
    batch::{Batch, Head, bytes_length, check_ttl, put_bytes, put_varint, terms_length, ttl_ms},
    error::Effect,
};

/// One record to change where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update<'a> {
    /// 1 to 4096 bytes, each once in a batch.
    pub key: &'a [u8],
    /// What becomes of the value. Integers are decimal text.
    pub operator: Operator<'a>,
    /// What must hold of the key's record.
    pub condition: Condition,
    /// How long the record exists from this write on, whole milliseconds, up to a hundred years.
    /// None: as long as it did.
    pub ttl: Option<Duration>,
}

impl<'a> Update<'a> {
    /// An unconditional change.
    pub fn new(key: &'a (impl AsRef<[u8]> + ?Sized), operator: Operator<'a>) -> Self {
        Self { key: key.as_ref(), operator, condition: Condition::None, ttl: None }
    }

    /// Adds to an integer; an absent record counts as 0.
    pub fn add(key: &'a (impl AsRef<[u8]> + ?Sized), operand: i64) -> Self {
        Self::new(key, Operator::Add(operand))
    }

    /// Puts bytes behind those that are there.
    pub fn append(
        key: &'a (impl AsRef<[u8]> + ?Sized),
        bytes: &'a (impl AsRef<[u8]> + ?Sized),
    ) -> Self {
        Self::new(key, Operator::Append(bytes.as_ref()))
    }

    /// Stores this integer where the present one is lower, or there is none.
    pub fn max(key: &'a (impl AsRef<[u8]> + ?Sized), operand: i64) -> Self {
        Self::new(key, Operator::Max(operand))
    }

    /// Stores this integer where the present one is higher, or there is none.
    pub fn min(key: &'a (impl AsRef<[u8]> + ?Sized), operand: i64) -> Self {
        Self::new(key, Operator::Min(operand))
    }

    /// Merges a JSON document into the present one (RFC 7396): members that are null go.
    pub fn merge_json(
        key: &'a (impl AsRef<[u8]> + ?Sized),
        document: &'a (impl AsRef<[u8]> + ?Sized),
    ) -> Self {
        Self::new(key, Operator::Merge(document.as_ref()))
    }

    /// Change only if the key has no record.
    #[must_use]
    pub fn if_absent(self) -> Self {
        Self { condition: Condition::IfAbsent, ..self }
    }

    /// Change only if the key's record has exactly this version.
    #[must_use]
    pub fn if_version(self, version: Sequence) -> Self {
        Self { condition: Condition::IfVersion(version), ..self }
    }

    /// Have the record cease to exist this long after the change.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { ttl: Some(ttl), ..self }
    }
}

/// An update that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Updated {
    /// The version of every record that the batch wrote in its partition.
    pub version: Sequence,
    /// When, by the partition's clock.
    pub timestamp: Timestamp,
    /// The value as it was stored. None when it was not asked for, or when the values of one answer
    /// have more than 14 MiB: the update took effect all the same.
    pub value: Option<Vec<u8>>,
}

pub(crate) struct UpdateBatch<'a> {
    pub(crate) head: Head<'a>,
    pub(crate) entries: &'a [Update<'a>],
}

impl Batch for UpdateBatch<'_> {
    type Output = Updated;
    type Answer = v1::UpdateResponse;
    const PATH: &'static str = "/stateside.v1.DataPlane/Update";
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
        let operator = match &entry.operator {
            Operator::Add(operand) | Operator::Max(operand) | Operator::Min(operand) => {
                encoding::sint64::encoded_len(2, operand)
            }
            Operator::Append(bytes) | Operator::Merge(bytes) => bytes_length(bytes),
        };
        bytes_length(entry.key) + operator + terms_length(entry.condition, ttl_ms(entry.ttl))
    }

    fn encode_entry(&self, index: usize, out: &mut Vec<u8>) {
        let entry = &self.entries[index];
        encode_key(1, WireType::LengthDelimited, out);
        encode_varint(self.content_length(index) as u64, out);
        put_bytes(out, 1, entry.key);
        match &entry.operator {
            Operator::Add(operand) => encoding::sint64::encode(2, operand, out),
            Operator::Append(bytes) => put_bytes(out, 3, bytes),
            Operator::Max(operand) => encoding::sint64::encode(4, operand, out),
            Operator::Min(operand) => encoding::sint64::encode(5, operand, out),
            Operator::Merge(document) => put_bytes(out, 6, document),
        }
        match entry.condition {
            Condition::None => {}
            Condition::IfAbsent => put_varint(out, 7, 1),
            Condition::IfVersion(version) => put_varint(out, 8, version.0),
        }
        if entry.ttl.is_some() {
            put_varint(out, 9, ttl_ms(entry.ttl));
        }
    }

    fn check_entry(&self, index: usize) -> Result<(), Error> {
        check_ttl(index, ttl_ms(self.entries[index].ttl))
    }

    fn effect(&self, index: usize) -> Effect {
        let entry = &self.entries[index];
        let accumulates = matches!(entry.operator, Operator::Add(_) | Operator::Append(_));
        Effect::Write { only_once: accumulates || entry.condition != Condition::None }
    }

    fn session_of(answer: &Self::Answer) -> Option<&v1::Session> {
        answer.session.as_ref()
    }

    fn unpack(answer: Self::Answer) -> Vec<Result<Updated, Error>> {
        let updated = |result: v1::UpdateResult| match result.error {
            Some(error) => Err(error.into()),
            None => Ok(Updated {
                version: Sequence(result.version),
                timestamp: Timestamp(result.timestamp),
                value: result.value,
            }),
        };
        answer.results.into_iter().map(updated).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    proptest! {
        #[test]
        fn requests_are_what_prost_would_write(
            key in prop::collection::vec(any::<u8>(), 1..300), bytes in prop::collection::vec(any::<u8>(), 0..300),
            operand in any::<i64>(), which in 0..5, condition in 0..3, version in any::<u64>(),
            ttl in any::<Option<u32>>(), return_values in any::<bool>(),
        ) {
            use v1::update_entry::Operator as Theirs;
            let (operator, theirs) = match which {
                0 => (Operator::Add(operand), Theirs::Add(operand)),
                1 => (Operator::Append(&bytes), Theirs::Append(bytes.clone())),
                2 => (Operator::Max(operand), Theirs::Max(operand)),
                3 => (Operator::Min(operand), Theirs::Min(operand)),
                _ => (Operator::Merge(&bytes), Theirs::MergeJson(bytes.clone())),
            };
            let condition = match condition {
                0 => Condition::None,
                1 => Condition::IfAbsent,
                _ => Condition::IfVersion(Sequence(version)),
            };
            let ttl = ttl.map(|ttl_ms| Duration::from_millis(ttl_ms.into()));
            let entries = [Update { key: &key, operator, condition, ttl }];
            let head = Head { return_values, ..Head::default() };
            let batch = UpdateBatch { head, entries: &entries };
            let entry = v1::UpdateEntry {
                key: key.clone(),
                operator: Some(theirs),
                if_absent: condition == Condition::IfAbsent,
                if_version: if let Condition::IfVersion(version) = condition { Some(version.0) } else { None },
                ttl_ms: ttl.map_or(0, |ttl| ttl.as_millis().max(1) as u64),
            };
            let theirs = v1::UpdateRequest { entries: vec![entry], return_values, ..Default::default() };
            let ours = batch.encode(&[0], batch.entry_length(0), None);
            prop_assert_eq!(ours, theirs.encode_to_vec());
        }
    }

    #[test]
    fn what_would_count_twice_is_never_repeated_in_doubt() {
        let entries = [
            Update::add("k", 1),
            Update::append("k", "x"),
            Update::max("k", 1),
            Update::min("k", 1),
            Update::merge_json("k", "{}"),
            Update::max("k", 1).if_absent(),
        ];
        let batch = UpdateBatch { head: Head::default(), entries: &entries };
        let once: Vec<_> = (0..entries.len()).map(|index| batch.effect(index)).collect();
        let expected = [true, true, false, false, false, true];
        assert_eq!(once, expected.map(|only_once| Effect::Write { only_once }));
    }
}
