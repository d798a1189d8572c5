//! Answers, written where they leave.

use prost::encoding::{self, WireType};
use stateside_types::{Record, Refusal, Sequence, Timestamp};

use super::tag;

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
    bytes: [u8; 2 + 2 * Short::FIELD_BYTES],
    length: usize,
}

impl WriteResultBytes {
    /// Encodes it once for all entries of a batch's part.
    pub fn new(version: Sequence, timestamp: Timestamp) -> Self {
        let (version, timestamp) = (Short::field(1, version.0), Short::field(2, timestamp.0));
        let inside = version.length + timestamp.length;
        let front = Short::prefix(1, inside).then(version);
        let mut bytes = [0; 2 + 2 * Short::FIELD_BYTES];
        bytes[..size_of::<u128>()].copy_from_slice(&front.bytes.to_le_bytes());
        bytes[front.length..][..Short::FIELD_BYTES]
            .copy_from_slice(&timestamp.bytes.to_le_bytes()[..Short::FIELD_BYTES]);
        Self { bytes, length: front.length + timestamp.length }
    }

    /// Writes it. A copy of all bytes there could be is a few instructions where one of `length` is
    /// a call.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        let end = out.len() + self.length;
        out.extend_from_slice(&self.bytes);
        out.truncate(end);
    }
}

/// Writes one `UpdateResult`.
pub fn encode_update_result(
    out: &mut Vec<u8>,
    version: Sequence,
    timestamp: Timestamp,
    value: Option<&[u8]>,
) {
    let (version, timestamp) = (Short::field(1, version.0), Short::field(2, timestamp.0));
    let value_head = value.map(|value| Short::prefix(4, value.len()));
    let value_length = value_head.map_or(0, |head| head.length) + value.map_or(0, <[u8]>::len);
    Short::prefix(1, version.length + timestamp.length + value_length).append_to(out);
    version.append_to(out);
    timestamp.append_to(out);
    if let (Some(head), Some(value)) = (value_head, value) {
        head.append_to(out);
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

/// `found` of a record that was.
const FOUND: Short = Short { bytes: 0x0108, length: 2 };

/// Writes one `Record` of a `GetResponse`.
pub fn encode_record(out: &mut Vec<u8>, key: &[u8], record: Option<&Record<'_>>) {
    let key_head = Short::prefix(2, key.len());
    let Some(record) = record else {
        Short::prefix(1, key_head.length + key.len()).append_to(out);
        key_head.append_to(out);
        out.extend_from_slice(key);
        return;
    };
    let value_head = match record.value.len() {
        0 => Short::NONE,
        length => Short::prefix(3, length),
    };
    let (version, timestamp) =
        (Short::field(4, record.version.0), Short::field(5, record.timestamp.0));
    let moment = record.expire_at.map_or(Short::NONE, |moment| Short::field(7, moment.millis()));
    let inside = FOUND.length
        + (key_head.length + key.len())
        + (value_head.length + record.value.len())
        + (version.length + timestamp.length + moment.length);
    out.reserve(inside + RECORD_OVERHEAD_MAX);
    Short::prefix(1, inside).append_to(out);
    FOUND.then(key_head).append_to(out);
    out.extend_from_slice(key);
    value_head.append_to(out);
    out.extend_from_slice(record.value);
    version.append_to(out);
    timestamp.append_to(out);
    moment.append_to(out);
}

/// Writes one `Record` that could not be read.
pub fn encode_record_refused(out: &mut Vec<u8>, key: &[u8], refusal: &Refusal) {
    let record =
        crate::v1::Record { key: key.to_vec(), error: Some(refusal.into()), ..Default::default() };
    encoding::message::encode(1, &record, out);
}

/// A few encoded bytes, in a register: what is stored byte by byte and then copied at once waits in
/// the processor until the bytes have left its store buffer.
#[derive(Clone, Copy, Debug)]
struct Short {
    bytes: u128,
    length: usize,
}

impl Short {
    /// As much as a varint field has: its tag and ten bytes.
    const FIELD_BYTES: usize = 11;
    /// No field.
    const NONE: Self = Self { bytes: 0, length: 0 };

    /// A varint field as proto3 has it: none when it is 0.
    fn field(field: u8, value: u64) -> Self {
        if value == 0 { Self::NONE } else { Self::tagged(field, WireType::Varint, value) }
    }

    /// What stands before a field of so many bytes.
    fn prefix(field: u8, bytes: usize) -> Self {
        Self::tagged(field, WireType::LengthDelimited, bytes as u64)
    }

    fn tagged(field: u8, wire: WireType, value: u64) -> Self {
        let (varint, length) = varint(value);
        Self { bytes: (varint << 8) | u128::from(tag(field, wire)), length: 1 + length }
    }

    /// This one and another behind it, when both are short enough.
    fn then(self, next: Self) -> Self {
        Self {
            bytes: self.bytes | (next.bytes << (8 * self.length)),
            length: self.length + next.length,
        }
    }

    /// Copies all bytes there could be, see [`WriteResultBytes::append_to`].
    fn append_to(self, out: &mut Vec<u8>) {
        let end = out.len() + self.length;
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.truncate(end);
    }
}

/// A number as varint, its first byte lowest, and how many bytes it has: 1 to 10.
#[inline]
fn varint(value: u64) -> (u128, usize) {
    const MORE: u64 = 0x8080_8080_8080_8080;
    if value < 0x80 {
        return (u128::from(value), 1);
    }
    // Groups of seven bits move apart, pairs of groups at a time.
    let low = value & ((1 << 56) - 1);
    let low = (low & 0x0fff_ffff) | ((low & 0x00ff_ffff_f000_0000) << 4);
    let low = (low & 0x0000_3fff_0000_3fff) | ((low & 0x0fff_c000_0fff_c000) << 2);
    let low = (low & 0x007f_007f_007f_007f) | ((low & 0x3f80_3f80_3f80_3f80) << 1);
    match value >> 56 {
        0 => {
            let last = (63 - low.leading_zeros() as usize) & !7;
            (u128::from(low | (MORE & ((1 << last) - 1))), last / 8 + 1)
        }
        high if high < 0x80 => (u128::from(low | MORE) | (u128::from(high) << 64), 9),
        high => (u128::from(low | MORE) | (u128::from(high | 0x100) << 64), 10),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_varint_is_prosts(value in any::<u64>(), bits in 0_u32..64) {
            for value in [value >> bits, 1 << bits, (1 << bits) - 1, u64::MAX >> bits] {
                let mut theirs = Vec::new();
                encoding::encode_varint(value, &mut theirs);
                let (bytes, length) = varint(value);
                prop_assert_eq!(&bytes.to_le_bytes()[..length], &theirs[..]);
                prop_assert_eq!(bytes >> (8 * length), 0, "nothing behind it");
            }
        }
    }
}
