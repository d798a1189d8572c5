//! The data plane's codec: requests are read where they lie, answers are written where they leave.
//!
//! The prost types own every key and value; at a thousand pairs a batch those allocations would
//! cost more than the store. So the four hot messages are decoded into borrowed entries here, on
//! prost's wire primitives, with every limit of the contract checked on the way. Property tests
//! hold both codecs against each other.
//!
//! Hazard: these bytes come from the network. Every length is checked against what is left.

mod answers;

use prost::{
    DecodeError,
    encoding::{self, DecodeContext, WireType},
};
use stateside_types::{
    Ack, Condition, Expiry, Operator, Reason, Refusal, RequestId, Sequence, UpdateEntry,
    WriteEntry,
    limits::{
        BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, KEY_BYTES_MAX, REQUEST_CLIENT_BYTES_MAX,
        ROUTING_KEY_BYTES_MAX, TTL_MS_MAX,
    },
};

pub use self::answers::{
    RECORD_OVERHEAD_MAX, WriteResultBytes, encode_record, encode_record_refused,
    encode_update_result, encode_write_refused, encode_write_results,
};
use crate::session::{GET_SESSION, WRITE_SESSION, each_token};

/// What a write request says besides its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteHead<'a> {
    /// Places all entries when set.
    pub routing_key: Option<&'a [u8]>,
    /// Refuse a batch that spans partitions.
    pub atomic: bool,
    /// None: the partition's default.
    pub ack: Option<Ack>,
    /// The answer is to have tokens.
    pub has_session: bool,
    /// The request's name, if it has one.
    pub request: Option<RequestId<'a>>,
    /// Of an update: answer with the new values.
    pub return_values: bool,
}

/// What a read says besides its keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GetHead<'a> {
    /// Places all keys when set.
    pub routing_key: Option<&'a [u8]>,
    /// There are tokens for [`decode_session`](crate::session::decode_session), or at least the answer is to have some.
    pub has_session: bool,
}

/// Decodes an `UpsertRequest`; `entries` is cleared and filled.
///
/// # Errors
/// `MALFORMED_REQUEST`, `EMPTY_BATCH`, `BATCH_TOO_LARGE`, `EMPTY_KEY`, `KEY_TOO_LARGE`,
/// `INVALID_CONDITION`, `INVALID_TTL`, `INVALID_REQUEST_ID`.
pub fn decode_upsert<'a>(
    message: &'a [u8],
    entries: &mut Vec<WriteEntry<'a>>,
) -> Result<WriteHead<'a>, Refusal> {
    decode_write(message, entries, |entry, index| {
        if let Some((key, value)) = plain_pair(entry) {
            return Ok(WriteEntry::put(key, value));
        }
        let mut reader = Reader(entry);
        let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
        let (mut if_absent, mut if_version, mut ttl_ms) = (false, None, 0);
        while let Some((field, wire)) = reader.key()? {
            match field {
                1 => key = reader.bytes(wire)?,
                2 => value = reader.bytes(wire)?,
                3 => if_absent = reader.varint(wire)? != 0,
                4 => if_version = Some(Sequence(reader.varint(wire)?)),
                5 => ttl_ms = reader.varint(wire)?,
                _ => reader.skip(wire, field)?,
            }
        }
        let condition = condition(if_absent, if_version, index)?;
        let expiry = expiry(ttl_ms, index)?;
        Ok(WriteEntry::put(key, value).under(condition).expiring(expiry))
    })
}

/// An entry as every encoder writes it when it has a key below 128 bytes, a value below 16 KiB and no
/// condition. None: it may be an entry all the same. Takes a third of the time of the way for
/// everything, which is a tenth of a large batch.
#[inline]
fn plain_pair(entry: &[u8]) -> Option<(&[u8], &[u8])> {
    const KEY: u8 = tag(1, WireType::LengthDelimited);
    const VALUE: u8 = tag(2, WireType::LengthDelimited);
    let [KEY, key_bytes @ ..0x80, rest @ ..] = entry else { return None };
    let (key, rest) = rest.split_at_checked(usize::from(*key_bytes))?;
    let (value_bytes, value) = match rest {
        [VALUE, low @ ..0x80, value @ ..] => (usize::from(*low), value),
        [VALUE, low, high @ ..0x80, value @ ..] => {
            (usize::from(low & 0x7f) | usize::from(*high) << 7, value)
        }
        _ => return None,
    };
    (value.len() == value_bytes).then_some((key, value))
}

/// Decodes a `RemoveRequest`; `entries` is cleared and filled.
///
/// # Errors
/// As [`decode_upsert`].
pub fn decode_remove<'a>(
    message: &'a [u8],
    entries: &mut Vec<WriteEntry<'a>>,
) -> Result<WriteHead<'a>, Refusal> {
    decode_write(message, entries, |entry, _| {
        let mut reader = Reader(entry);
        let mut key: &[u8] = &[];
        let mut condition = Condition::None;
        while let Some((field, wire)) = reader.key()? {
            match field {
                1 => key = reader.bytes(wire)?,
                2 => condition = Condition::IfVersion(Sequence(reader.varint(wire)?)),
                _ => reader.skip(wire, field)?,
            }
        }
        Ok(WriteEntry::remove(key).under(condition))
    })
}

/// Decodes an `UpdateRequest`; `entries` is cleared and filled.
///
/// # Errors
/// As [`decode_upsert`]; `INVALID_OPERATOR`.
pub fn decode_update<'a>(
    message: &'a [u8],
    entries: &mut Vec<UpdateEntry<'a>>,
) -> Result<WriteHead<'a>, Refusal> {
    decode_batch(message, entries, |entry, index| {
        let mut reader = Reader(entry);
        let mut key: &[u8] = &[];
        let (mut operator, mut operators) = (None, 0);
        let (mut if_absent, mut if_version, mut ttl_ms) = (false, None, 0);
        while let Some((field, wire)) = reader.key()? {
            operators += usize::from((2..=6).contains(&field));
            match field {
                1 => key = reader.bytes(wire)?,
                2 => operator = Some(Operator::Add(zigzag(reader.varint(wire)?))),
                3 => operator = Some(Operator::Append(reader.bytes(wire)?)),
                4 => operator = Some(Operator::Max(zigzag(reader.varint(wire)?))),
                5 => operator = Some(Operator::Min(zigzag(reader.varint(wire)?))),
                6 => operator = Some(Operator::Merge(reader.bytes(wire)?)),
                7 => if_absent = reader.varint(wire)? != 0,
                8 => if_version = Some(Sequence(reader.varint(wire)?)),
                9 => ttl_ms = reader.varint(wire)?,
                _ => reader.skip(wire, field)?,
            }
        }
        // protobuf lets the last of several win; an operator that is passed over is a lost update.
        let Some(operator) = operator.filter(|_| operators == 1) else {
            let message = format!("entry {index} has {operators} operators");
            return Err(Refusal::new(Reason::InvalidOperator, message).with("entry", index));
        };
        let condition = condition(if_absent, if_version, index)?;
        Ok((key, UpdateEntry { key, operator, condition, expiry: expiry(ttl_ms, index)? }))
    })
}

/// Decodes a `GetRequest`: `keys` is cleared and filled.
///
/// # Errors
/// `MALFORMED_REQUEST`, `EMPTY_BATCH`, `BATCH_TOO_LARGE`, `EMPTY_KEY`, `KEY_TOO_LARGE`.
pub fn decode_get<'a>(message: &'a [u8], keys: &mut Vec<&'a [u8]>) -> Result<GetHead<'a>, Refusal> {
    check_size(message)?;
    keys.clear();
    let (mut routing_key, mut has_session): (&[u8], bool) = (&[], false);
    let mut reader = Reader(message);
    let mut push = |key| {
        check_key(key, keys.len())?;
        check_entries(keys.len())?;
        keys.push(key);
        Ok(())
    };
    loop {
        while let Some(key) = reader.short_bytes(1) {
            push(key)?;
        }
        let Some((field, wire)) = reader.key()? else { break };
        match field {
            1 => push(reader.bytes(wire)?)?,
            2 => routing_key = reader.bytes(wire)?,
            GET_SESSION => {
                has_session = true;
                each_token(reader.bytes(wire)?, |_| ())?;
            }
            _ => reader.skip(wire, field)?,
        }
    }
    if keys.is_empty() {
        return Err(Refusal::new(Reason::EmptyBatch, "the request names no key"));
    }
    Ok(GetHead { routing_key: check_routing_key(routing_key)?, has_session })
}

/// Hands an emptied vector on to entries of another lifetime, keeping its allocation: collecting
/// a vector's own iterator reuses its memory.
pub fn recycle_entries<'b>(mut entries: Vec<WriteEntry<'_>>) -> Vec<WriteEntry<'b>> {
    entries.clear();
    entries.into_iter().map(|_| WriteEntry::remove(&[])).collect()
}

/// As [`recycle_entries`], for updates.
pub fn recycle_updates<'b>(mut entries: Vec<UpdateEntry<'_>>) -> Vec<UpdateEntry<'b>> {
    entries.clear();
    let empty = |_| -> UpdateEntry<'b> { unreachable!("it is empty") };
    entries.into_iter().map(empty).collect()
}

/// As [`recycle_entries`], for keys.
pub fn recycle_keys<'b>(mut keys: Vec<&[u8]>) -> Vec<&'b [u8]> {
    keys.clear();
    keys.into_iter().map(|_| -> &'b [u8] { &[] }).collect()
}

fn decode_write<'a>(
    message: &'a [u8],
    entries: &mut Vec<WriteEntry<'a>>,
    entry: impl Fn(&'a [u8], usize) -> Result<WriteEntry<'a>, Refusal>,
) -> Result<WriteHead<'a>, Refusal> {
    decode_batch(message, entries, |bytes, index| {
        entry(bytes, index).map(|entry| (entry.key, entry))
    })
}

/// `entry` gives each entry with its key.
fn decode_batch<'a, E>(
    message: &'a [u8],
    entries: &mut Vec<E>,
    entry: impl Fn(&'a [u8], usize) -> Result<(&'a [u8], E), Refusal>,
) -> Result<WriteHead<'a>, Refusal> {
    check_size(message)?;
    entries.clear();
    let mut routing_key: &[u8] = &[];
    let mut head = WriteHead::default();
    let mut reader = Reader(message);
    let mut push = |bytes| {
        check_entries(entries.len())?;
        let (key, entry) = entry(bytes, entries.len())?;
        check_key(key, entries.len())?;
        entries.push(entry);
        Ok(())
    };
    loop {
        while let Some(bytes) = reader.short_bytes(1) {
            push(bytes)?;
        }
        let Some((field, wire)) = reader.key()? else { break };
        match field {
            1 => push(reader.bytes(wire)?)?,
            2 => routing_key = reader.bytes(wire)?,
            3 => head.atomic = reader.varint(wire)? != 0,
            4 => {
                head.ack = match reader.varint(wire)? {
                    0 => None,
                    1 => Some(Ack::Memory),
                    2 => Some(Ack::Durable),
                    // Never guess what safety an unknown level asks for.
                    other => {
                        return Err(malformed(format!("ack {other} is not a known level")));
                    }
                }
            }
            // No other request has a field of this number.
            5 => head.return_values = reader.varint(wire)? != 0,
            WRITE_SESSION => {
                head.has_session = true;
                each_token(reader.bytes(wire)?, |_| ())?;
            }
            6 => head.request = Some(decode_request_id(reader.bytes(wire)?)?),
            _ => reader.skip(wire, field)?,
        }
    }
    if entries.is_empty() {
        return Err(Refusal::new(Reason::EmptyBatch, "the request has no entries"));
    }
    head.routing_key = check_routing_key(routing_key)?;
    Ok(head)
}

#[cold]
fn decode_request_id(message: &[u8]) -> Result<RequestId<'_>, Refusal> {
    let mut reader = Reader(message);
    let mut id = RequestId { client: &[], number: 0, settled: 0 };
    while let Some((field, wire)) = reader.key()? {
        match field {
            1 => id.client = reader.bytes(wire)?,
            2 => id.number = reader.varint(wire)?,
            3 => id.settled = reader.varint(wire)?,
            _ => reader.skip(wire, field)?,
        }
    }
    if id.client.is_empty() || id.client.len() > REQUEST_CLIENT_BYTES_MAX {
        let text = format!("the client of the request id has {} bytes", id.client.len());
        return Err(Refusal::new(Reason::InvalidRequestId, text));
    }
    if id.number == 0 {
        return Err(Refusal::new(Reason::InvalidRequestId, "the request id has no number"));
    }
    Ok(id)
}

fn condition(
    if_absent: bool,
    if_version: Option<Sequence>,
    index: usize,
) -> Result<Condition, Refusal> {
    match (if_absent, if_version) {
        (false, None) => Ok(Condition::None),
        (true, None) => Ok(Condition::IfAbsent),
        (false, Some(version)) => Ok(Condition::IfVersion(version)),
        (true, Some(_)) => Err(Refusal::new(
            Reason::InvalidCondition,
            format!("entry {index} sets both if_absent and if_version"),
        )
        .with("entry", index)),
    }
}

fn expiry(ttl_ms: u64, index: usize) -> Result<Expiry, Refusal> {
    match ttl_ms {
        0 => Ok(Expiry::Never),
        1..=TTL_MS_MAX => Ok(Expiry::After(ttl_ms)),
        _ => {
            let message = format!("entry {index} has a ttl_ms of {ttl_ms}");
            Err(Refusal::new(Reason::InvalidTtl, message).with("entry", index))
        }
    }
}

/// A `sint64` as it stands on the wire.
const fn zigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

fn check_size(message: &[u8]) -> Result<(), Refusal> {
    if message.len() <= BATCH_BYTES_MAX {
        return Ok(());
    }
    Err(Refusal::new(
        Reason::BatchTooLarge,
        format!("the request has {} bytes, the limit is {BATCH_BYTES_MAX}", message.len()),
    ))
}

fn check_entries(before: usize) -> Result<(), Refusal> {
    if before < BATCH_ENTRIES_MAX {
        return Ok(());
    }
    Err(Refusal::new(
        Reason::BatchTooLarge,
        format!("the request has more than {BATCH_ENTRIES_MAX} entries"),
    ))
}

fn check_key(key: &[u8], index: usize) -> Result<(), Refusal> {
    if key.is_empty() {
        return Err(Refusal::new(Reason::EmptyKey, format!("entry {index} has an empty key"))
            .with("entry", index));
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(Refusal::new(
            Reason::KeyTooLarge,
            format!(
                "the key of entry {index} has {} bytes, the limit is {KEY_BYTES_MAX}",
                key.len()
            ),
        )
        .with("entry", index));
    }
    Ok(())
}

fn check_routing_key(routing_key: &[u8]) -> Result<Option<&[u8]>, Refusal> {
    if routing_key.len() > ROUTING_KEY_BYTES_MAX {
        return Err(Refusal::new(
            Reason::KeyTooLarge,
            format!(
                "the routing key has {} bytes, the limit is {ROUTING_KEY_BYTES_MAX}",
                routing_key.len()
            ),
        ));
    }
    Ok(if routing_key.is_empty() { None } else { Some(routing_key) })
}

fn malformed(what: impl std::fmt::Display) -> Refusal {
    Refusal::new(Reason::MalformedRequest, format!("the request is not valid protobuf: {what}"))
}

/// A cursor over protobuf fields.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn key(&mut self) -> Result<Option<(u32, WireType)>, Refusal> {
        // One-byte keys are all that this contract uses; the rest takes prost's path.
        match self.0.first() {
            None => Ok(None),
            Some(&byte) if (0x08..0x80).contains(&byte) => {
                let wire = WireType::try_from(u64::from(byte & 7)).map_err(malformed)?;
                self.0 = &self.0[1..];
                Ok(Some((u32::from(byte >> 3), wire)))
            }
            Some(_) => encoding::decode_key(&mut self.0).map(Some).map_err(malformed),
        }
    }

    fn varint(&mut self, wire: WireType) -> Result<u64, Refusal> {
        expect_wire(wire, WireType::Varint)?;
        encoding::decode_varint(&mut self.0).map_err(malformed)
    }

    /// The next field if it is this one, of bytes, with a length of one byte: as nearly all are, and
    /// without a result that has room for a refusal.
    fn short_bytes(&mut self, field: u8) -> Option<&'a [u8]> {
        let (&[found, length], rest) = self.0.split_first_chunk()?;
        if found != tag(field, WireType::LengthDelimited) || length >= 0x80 {
            return None;
        }
        let (bytes, rest) = rest.split_at_checked(usize::from(length))?;
        self.0 = rest;
        Some(bytes)
    }

    pub(crate) fn bytes(&mut self, wire: WireType) -> Result<&'a [u8], Refusal> {
        expect_wire(wire, WireType::LengthDelimited)?;
        let length = match self.0.first() {
            Some(&byte) if byte < 0x80 => {
                self.0 = &self.0[1..];
                usize::from(byte)
            }
            _ => usize::try_from(encoding::decode_varint(&mut self.0).map_err(malformed)?)
                .map_err(malformed)?,
        };
        let (bytes, rest) = self
            .0
            .split_at_checked(length)
            .ok_or_else(|| malformed("a field is longer than its message"))?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(crate) fn skip(&mut self, wire: WireType, field: u32) -> Result<(), Refusal> {
        encoding::skip_field(wire, field, &mut self.0, DecodeContext::default()).map_err(malformed)
    }
}

fn expect_wire(found: WireType, expected: WireType) -> Result<(), Refusal> {
    encoding::check_wire_type(expected, found).map_err(|error: DecodeError| malformed(error))
}

const fn tag(field: u8, wire: WireType) -> u8 {
    (field << 3) | wire as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use stateside_types::{Change, ExpireAt, Record, Timestamp};

    use super::*;
    use crate::v1;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![8 => prop::collection::vec(any::<u8>(), 1..40), 1 => prop::collection::vec(any::<u8>(), 0..5000)]
    }

    fn upsert() -> impl Strategy<Value = v1::UpsertRequest> {
        let entry = (
            key(),
            prop::collection::vec(any::<u8>(), 0..300),
            any::<bool>(),
            any::<Option<u64>>(),
            prop_oneof![2 => Just(0), 1 => 1..=TTL_MS_MAX],
        )
            .prop_map(|(key, value, if_absent, if_version, ttl_ms)| v1::UpsertEntry {
                key,
                value,
                if_absent,
                if_version: if if_absent { None } else { if_version },
                ttl_ms,
            });
        let request_id = (prop::collection::vec(any::<u8>(), 1..33), 1_u64.., any::<u64>())
            .prop_map(|(client, number, settled)| v1::RequestId { client, number, settled });
        (
            prop::collection::vec(entry, 0..8),
            prop::collection::vec(any::<u8>(), 0..30),
            any::<bool>(),
            0..3_i32,
            prop::option::of(request_id),
            prop::option::of(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..3)),
        )
            .prop_map(|(entries, routing_key, atomic, ack, request_id, tokens)| {
                let session = tokens.map(|tokens| v1::Session { tokens });
                v1::UpsertRequest { entries, routing_key, atomic, ack, request_id, session }
            })
    }

    proptest! {
        #[test]
        fn upsert_decodes_to_what_prost_encoded(request in upsert()) {
            let bytes = request.encode_to_vec();
            let mut entries = Vec::new();
            let outcome = decode_upsert(&bytes, &mut entries);
            if request.entries.is_empty() {
                prop_assert_eq!(outcome.unwrap_err().reason, Reason::EmptyBatch);
            } else if let Some(bad) = request.entries.iter().find(|e| e.key.is_empty() || e.key.len() > KEY_BYTES_MAX) {
                let expected = if bad.key.is_empty() { Reason::EmptyKey } else { Reason::KeyTooLarge };
                prop_assert_eq!(outcome.unwrap_err().reason, expected);
            } else {
                let head = outcome.unwrap();
                prop_assert_eq!(head.routing_key.unwrap_or_default(), &request.routing_key[..]);
                prop_assert_eq!(head.atomic, request.atomic);
                prop_assert_eq!(head.has_session, request.session.is_some());
                prop_assert_eq!(head.ack, [None, Some(Ack::Memory), Some(Ack::Durable)][request.ack as usize]);
                prop_assert_eq!(head.request, request.request_id.as_ref().map(|id| RequestId {
                    client: &id.client, number: id.number, settled: id.settled,
                }));
                for (ours, theirs) in entries.iter().zip(&request.entries) {
                    prop_assert_eq!(ours.key, &theirs.key[..]);
                    prop_assert_eq!(ours.change, Change::Put(&theirs.value));
                    let condition = match (theirs.if_absent, theirs.if_version) {
                        (true, _) => Condition::IfAbsent,
                        (_, Some(version)) => Condition::IfVersion(Sequence(version)),
                        _ => Condition::None,
                    };
                    prop_assert_eq!(ours.condition, condition);
                    let expiry = if theirs.ttl_ms == 0 { Expiry::Never } else { Expiry::After(theirs.ttl_ms) };
                    prop_assert_eq!(ours.expiry, expiry);
                }
                prop_assert_eq!(entries.len(), request.entries.len());
            }
        }

        #[test]
        fn flipped_and_cut_requests_never_panic_and_agree_with_prost_on_validity(
            request in upsert(), at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = request.encode_to_vec();
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
                bytes.truncate(cut.index(bytes.len()) + 1);
            }
            let ours = decode_upsert(&bytes, &mut Vec::new());
            if v1::UpsertRequest::decode(&bytes[..]).is_err() {
                prop_assert!(ours.is_err());
            }
            let _ = decode_remove(&bytes, &mut Vec::new());
            let _ = decode_update(&bytes, &mut Vec::new());
            let _ = decode_get(&bytes, &mut Vec::new());
        }

        #[test]
        fn get_and_remove_decode_to_what_prost_encoded(
            keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 1..9),
            routing_key in prop::collection::vec(any::<u8>(), 0..9), version in any::<Option<u64>>(),
        ) {
            let bytes = v1::GetRequest { keys: keys.clone(), routing_key: routing_key.clone(), session: None }.encode_to_vec();
            let mut found = Vec::new();
            let routed = decode_get(&bytes, &mut found).unwrap();
            prop_assert_eq!(&found, &keys);
            prop_assert_eq!(routed.routing_key.unwrap_or_default(), &routing_key[..]);

            let entries = keys.iter().map(|key| v1::RemoveEntry { key: key.clone(), if_version: version }).collect();
            let bytes = v1::RemoveRequest { entries, routing_key, atomic: true, ..Default::default() }.encode_to_vec();
            let mut found = Vec::new();
            let head = decode_remove(&bytes, &mut found).unwrap();
            prop_assert!(head.atomic);
            for (entry, key) in found.iter().zip(&keys) {
                prop_assert_eq!(entry.key, &key[..]);
                prop_assert_eq!(entry.condition, version.map_or(Condition::None, |v| Condition::IfVersion(Sequence(v))));
            }
        }

        #[test]
        fn update_decodes_to_what_prost_encoded(
            key in prop::collection::vec(any::<u8>(), 1..40), operand in any::<i64>(), which in 0..5,
            bytes in prop::collection::vec(any::<u8>(), 0..300), if_version in any::<Option<u64>>(),
            ttl_ms in prop_oneof![Just(0), 1..=TTL_MS_MAX], return_values in any::<bool>(),
        ) {
            use v1::update_entry::Operator as Theirs;
            let (ours, theirs) = match which {
                0 => (Operator::Add(operand), Theirs::Add(operand)),
                1 => (Operator::Append(&bytes), Theirs::Append(bytes.clone())),
                2 => (Operator::Max(operand), Theirs::Max(operand)),
                3 => (Operator::Min(operand), Theirs::Min(operand)),
                _ => (Operator::Merge(&bytes), Theirs::MergeJson(bytes.clone())),
            };
            let entry = v1::UpdateEntry {
                key: key.clone(), operator: Some(theirs), if_absent: false, if_version, ttl_ms,
            };
            let request = v1::UpdateRequest { entries: vec![entry], return_values, ..Default::default() };
            let message = request.encode_to_vec();
            let mut entries = Vec::new();
            let head = decode_update(&message, &mut entries).unwrap();
            prop_assert_eq!(head.return_values, return_values);
            let condition = if_version.map_or(Condition::None, |v| Condition::IfVersion(Sequence(v)));
            let expiry = if ttl_ms == 0 { Expiry::Never } else { Expiry::After(ttl_ms) };
            prop_assert_eq!(&entries, &[UpdateEntry { key: &key, operator: ours, condition, expiry }]);
        }

        #[test]
        fn answers_are_byte_for_byte_what_prost_writes(
            key in prop::collection::vec(any::<u8>(), 1..300), value in prop::collection::vec(any::<u8>(), 0..20_000),
            version in any::<u64>(), timestamp in any::<u64>(), found in any::<bool>(), count in 0..4_usize,
            expire_at_ms in prop_oneof![Just(0), any::<u64>()],
        ) {
            let ours_value = value.clone();
            let mut ours = Vec::new();
            let expire_at = ExpireAt::from_millis(expire_at_ms);
            let record = Record { value: &value, version: Sequence(version), timestamp: Timestamp(timestamp), expire_at };
            encode_record(&mut ours, &key, found.then_some(&record));
            prop_assert!(ours.len() <= key.len() + value.len() + RECORD_OVERHEAD_MAX);
            let theirs = v1::GetResponse { session: None, records: vec![if found {
                v1::Record { found, key, value, version, timestamp, error: None, expire_at_ms }
            } else {
                v1::Record { key, ..Default::default() }
            }] };
            prop_assert_eq!(ours, theirs.encode_to_vec());

            let mut ours = Vec::new();
            let told = found.then_some(&ours_value[..]);
            encode_update_result(&mut ours, Sequence(version), Timestamp(timestamp), told);
            let theirs = v1::UpdateResponse { session: None, results: vec![v1::UpdateResult {
                version, timestamp, error: None, value: told.map(<[u8]>::to_vec),
            }] };
            prop_assert_eq!(ours, theirs.encode_to_vec());

            let mut ours = Vec::new();
            encode_write_results(&mut ours, count, Sequence(version), Timestamp(timestamp));
            let theirs = v1::UpsertResponse { results: vec![v1::WriteResult { version, timestamp, error: None }; count], session: None };
            prop_assert_eq!(ours, theirs.encode_to_vec());
        }
    }

    #[test]
    fn an_update_has_one_operator() {
        // Entries with key `k`: none, and both add and append.
        for entry in [&[0x0a, 1, b'k'][..], &[0x0a, 1, b'k', 0x10, 2, 0x1a, 0]] {
            let message = [&[0x0a, entry.len() as u8], entry].concat();
            let refusal = decode_update(&message, &mut Vec::new()).unwrap_err();
            assert_eq!(refusal.reason, Reason::InvalidOperator);
        }
    }

    #[test]
    fn too_many_entries_both_conditions_endless_ttl_and_unknown_ack_are_refused() {
        let many = v1::GetRequest {
            keys: vec![b"k".to_vec(); BATCH_ENTRIES_MAX + 1],
            ..Default::default()
        };
        assert_eq!(
            decode_get(&many.encode_to_vec(), &mut Vec::new()).unwrap_err().reason,
            Reason::BatchTooLarge
        );
        let entry = v1::UpsertEntry {
            key: b"k".to_vec(),
            if_absent: true,
            if_version: Some(1),
            ..Default::default()
        };
        let both = v1::UpsertRequest { entries: vec![entry], ..Default::default() };
        assert_eq!(
            decode_upsert(&both.encode_to_vec(), &mut Vec::new()).unwrap_err().reason,
            Reason::InvalidCondition
        );
        let entry =
            v1::UpsertEntry { key: b"k".to_vec(), ttl_ms: TTL_MS_MAX + 1, ..Default::default() };
        let endless = v1::UpsertRequest { entries: vec![entry], ..Default::default() };
        assert_eq!(
            decode_upsert(&endless.encode_to_vec(), &mut Vec::new()).unwrap_err().reason,
            Reason::InvalidTtl
        );
        for (client, number) in [(vec![], 1), (vec![b'c'; 33], 1), (vec![b'c'], 0)] {
            let request_id = Some(v1::RequestId { client, number, settled: 0 });
            let entries = vec![v1::UpsertEntry { key: b"k".to_vec(), ..Default::default() }];
            let bad = v1::UpsertRequest { entries, request_id, ..Default::default() };
            assert_eq!(
                decode_upsert(&bad.encode_to_vec(), &mut Vec::new()).unwrap_err().reason,
                Reason::InvalidRequestId
            );
        }
        let ack = v1::UpsertRequest { ack: 7, ..Default::default() };
        assert_eq!(
            decode_upsert(&ack.encode_to_vec(), &mut Vec::new()).unwrap_err().reason,
            Reason::MalformedRequest
        );
        let long = v1::GetRequest { keys: vec![vec![b'k'; 4000]; 300], ..Default::default() };
        assert_eq!(
            decode_get(&long.encode_to_vec(), &mut Vec::new()).unwrap_err().reason,
            Reason::BatchTooLarge
        );
    }
}
