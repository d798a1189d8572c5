//! Answers, written where they leave.

use prost::encoding::{self, WireType};
use stateside_types::{Record, Refusal, Sequence, Timestamp};

use super::{tag, varint_length};

/// Writes `count` equal `WriteResult`s of an `UpsertResponse` or `RemoveResponse`: all entries of
/// one partition's batch share version and timestamp.
pub fn encode_write_results(
    out: &mut Vec<u8>,
    count: usize,
    version: Sequence,
    timestamp: Timestamp,
) {
    let one = WriteResultBytes::new(version, timestamp);
    out.reserve(count * one.length + one.bytes.len());
    for _ in 0..count {
        one.append_to(out);
    }
}

/// A `WriteResult` of an `UpsertResponse` or `RemoveResponse`, encoded.
#[derive(Clone, Copy, Debug)]
pub struct WriteResultBytes {
    bytes: [u8; 2 + 2 * 11],
    length: usize,
}

impl WriteResultBytes {
    /// Encodes it once for all entries of a batch's part.
    pub fn new(version: Sequence, timestamp: Timestamp) -> Self {
        let mut bytes = [0_u8; 2 + 2 * 11];
        let mut length = 2;
        length += put_field(&mut bytes[length..], 1, version.0);
        length += put_field(&mut bytes[length..], 2, timestamp.0);
        bytes[0] = tag(1, WireType::LengthDelimited);
        bytes[1] = (length - 2) as u8; // at most 22
        Self { bytes, length }
    }

    /// Writes it.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        put_front(out, &self.bytes, self.length);
    }
}

/// Writes one `UpdateResult`.
pub fn encode_update_result(
    out: &mut Vec<u8>,
    version: Sequence,
    timestamp: Timestamp,
    value: Option<&[u8]>,
) {
    let mut head = [0_u8; 2 * 11];
    let mut head_length = put_field(&mut head, 1, version.0);
    head_length += put_field(&mut head[head_length..], 2, timestamp.0);
    let value_length = value.map_or(0, |value| 1 + varint_length(value.len() as u64) + value.len());
    out.reserve(head_length + value_length + 6);
    out.push(tag(1, WireType::LengthDelimited));
    encoding::encode_varint((head_length + value_length) as u64, out);
    out.extend_from_slice(&head[..head_length]);
    if let Some(value) = value {
        out.push(tag(4, WireType::LengthDelimited));
        encoding::encode_varint(value.len() as u64, out);
        out.extend_from_slice(value);
    }
}

/// Writes one refused `WriteResult`; an `UpdateResult` looks the same.
pub fn encode_write_refused(out: &mut Vec<u8>, refusal: &Refusal) {
    let result = crate::v1::WriteResult { error: Some(refusal.into()), ..Default::default() };
    encoding::message::encode(1, &result, out);
}

/// Bytes that [`encode_record`] adds at most beyond key and value.
pub const RECORD_OVERHEAD_MAX: usize = 60;

/// Writes one `Record` of a `GetResponse`.
pub fn encode_record(out: &mut Vec<u8>, key: &[u8], record: Option<Record<'_>>) {
    let mut head = [0_u8; 16];
    let mut tail = [0_u8; 36];
    let mut tail_length = 0;
    let value: &[u8] = record.map_or(&[], |record| record.value);
    if let Some(record) = record {
        tail_length += put_field(&mut tail, 4, record.version.0);
        tail_length += put_field(&mut tail[tail_length..], 5, record.timestamp.0);
        if let Some(moment) = record.expire_at {
            tail_length += put_field(&mut tail[tail_length..], 7, moment.millis());
        }
    }
    let found_length = if record.is_some() { 2 } else { 0 };
    let value_length =
        if value.is_empty() { 0 } else { 1 + varint_length(value.len() as u64) + value.len() };
    let length =
        found_length + 1 + varint_length(key.len() as u64) + key.len() + value_length + tail_length;

    head[0] = tag(1, WireType::LengthDelimited);
    let mut at = 1 + put_varint(&mut head[1..], length as u64);
    if record.is_some() {
        head[at] = tag(1, WireType::Varint);
        head[at + 1] = 1;
        at += 2;
    }
    out.reserve(at + length + tail.len());
    head[at] = tag(2, WireType::LengthDelimited);
    at += 1;
    at += put_varint(&mut head[at..], key.len() as u64);
    put_front(out, &head, at);
    out.extend_from_slice(key);
    if !value.is_empty() {
        head[0] = tag(3, WireType::LengthDelimited);
        let at = 1 + put_varint(&mut head[1..], value.len() as u64);
        put_front(out, &head, at);
        out.extend_from_slice(value);
    }
    put_front(out, &tail, tail_length);
}

/// Appends the first bytes of an array: a copy of its whole length is a few instructions where one of
/// `length` is a call.
fn put_front<const N: usize>(out: &mut Vec<u8>, array: &[u8; N], length: usize) {
    let end = out.len() + length;
    out.extend_from_slice(array);
    out.truncate(end);
}

/// Writes one `Record` that could not be read.
pub fn encode_record_refused(out: &mut Vec<u8>, key: &[u8], refusal: &Refusal) {
    let record =
        crate::v1::Record { key: key.to_vec(), error: Some(refusal.into()), ..Default::default() };
    encoding::message::encode(1, &record, out);
}

/// Writes a varint to the front of `out`, returns its length.
fn put_varint(out: &mut [u8], mut value: u64) -> usize {
    let mut at = 0;
    while value >= 0x80 {
        out[at] = value as u8 | 0x80;
        value >>= 7;
        at += 1;
    }
    out[at] = value as u8;
    at + 1
}

/// Writes a varint field as proto3 does: not at all when it is 0.
fn put_field(out: &mut [u8], field: u8, value: u64) -> usize {
    if value == 0 {
        return 0;
    }
    out[0] = tag(field, WireType::Varint);
    1 + put_varint(&mut out[1..], value)
}
