//! The bytes of a trail: writes that a partition accepted while its records are copied to another
//! store, on their way there. They stay in the process, or in a file that ends with it.
//!
//! ```text
//!  0        4               8         10       12         20          28
//! ┌────────┬───────────────┬─────────┬────────┬──────────┬───────────┬──────────────────────┐
//! │ crc32c │ payload bytes │ entries │ marked │ sequence │ timestamp │ payload, as in a log │
//! │ u32    │ u32           │ u16     │ u16    │ u64      │ u64       │                      │
//! └────────┴───────────────┴─────────┴────────┴──────────┴───────────┴──────────────────────┘
//!  marked 1: the payload begins with the mark of the write's request
//! ```
//! Little-endian. The checksum covers every byte but its own four: a disk that gives back other bytes
//! than it was given must not get them into a store unnoticed.

use stateside_types::{RequestMark, Sequence, Timestamp, WriteEntry};

use crate::log::{decode_entries, decode_mark, encode_entries};

const HEADER_BYTES: usize = 28;

/// The bytes are not those of a trail that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a write on its way to the new store reads back damaged")]
pub struct TrailDamaged;

/// A write as it reads back; its entries go where the reader says.
#[derive(Debug, PartialEq)]
pub struct TrailWrite<'a> {
    /// Its position in the partition.
    pub sequence: Sequence,
    /// When the clock stage saw it.
    pub timestamp: Timestamp,
    /// The request that it answers, if that has an id.
    pub request: Option<RequestMark<'a>>,
}

/// Appends a write that was accepted.
///
/// # Panics
/// On entries outside their limits: they were checked when the batch was accepted.
pub fn push_write(
    out: &mut Vec<u8>,
    sequence: Sequence,
    timestamp: Timestamp,
    request: Option<&RequestMark<'_>>,
    entries: &[WriteEntry<'_>],
) {
    let start = out.len();
    let count = u16::try_from(entries.len()).expect("a batch has a limit");
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&u16::from(request.is_some()).to_le_bytes());
    out.extend_from_slice(&sequence.0.to_le_bytes());
    out.extend_from_slice(&timestamp.0.to_le_bytes());
    if let Some(mark) = request {
        mark.encode(&mut |piece| out.extend_from_slice(piece));
    }
    encode_entries(timestamp, entries, |piece| out.extend_from_slice(piece));
    let payload_bytes = u32::try_from(out.len() - start - HEADER_BYTES).expect("a batch is small");
    out[start + 4..start + 8].copy_from_slice(&payload_bytes.to_le_bytes());
    let crc = crc32c::crc32c(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Takes the next write off `rest`, its entries into `entries`. `None`: there is none left.
///
/// # Errors
/// [`TrailDamaged`]: nothing of `rest` can be trusted.
pub fn next_write<'a>(
    rest: &mut &'a [u8],
    entries: &mut Vec<WriteEntry<'a>>,
) -> Result<Option<TrailWrite<'a>>, TrailDamaged> {
    if rest.is_empty() {
        return Ok(None);
    }
    let (header, after) = rest.split_first_chunk::<HEADER_BYTES>().ok_or(TrailDamaged)?;
    let u64_at = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight"));
    let crc = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let payload_bytes = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    let (payload, after) = after.split_at_checked(payload_bytes as usize).ok_or(TrailDamaged)?;
    if crc32c::crc32c(&rest[4..HEADER_BYTES + payload.len()]) != crc {
        return Err(TrailDamaged);
    }
    let count = u16::from_le_bytes([header[8], header[9]]);
    let (request, payload) = decode_mark(payload, header[10] == 1).ok_or(TrailDamaged)?;
    decode_entries(payload, count, entries).ok_or(TrailDamaged)?;
    *rest = after;
    Ok(Some(TrailWrite {
        sequence: Sequence(u64_at(12)),
        timestamp: Timestamp(u64_at(20)),
        request,
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stateside_types::{ExpireAt, Expiry, RequestId, WallClock};

    use super::*;

    fn id() -> RequestId<'static> {
        RequestId { client: b"till 7", number: 5, settled: 0 }
    }

    fn sample() -> Vec<u8> {
        let timestamp = Timestamp::from_wall(WallClock(100));
        let mut bytes = Vec::new();
        let first = [WriteEntry::put(b"k", b"v"), WriteEntry::remove(b"gone")];
        push_write(&mut bytes, Sequence(7), timestamp, None, &first);
        let second = [WriteEntry::put(b"session", b"").expiring(Expiry::After(20))];
        let mark = RequestMark::new(id(), 9);
        push_write(&mut bytes, Sequence(8), timestamp, Some(&mark), &second);
        bytes
    }

    #[test]
    fn writes_come_back_in_their_order_with_moments_in_place_of_times_to_live() {
        let bytes = sample();
        let (mut rest, mut entries) = (bytes.as_slice(), Vec::new());
        let timestamp = Timestamp::from_wall(WallClock(100));
        let write = |sequence, request| TrailWrite { sequence, timestamp, request };
        let first = Ok(Some(write(Sequence(7), None)));
        assert_eq!(next_write(&mut rest, &mut entries), first);
        assert_eq!(entries, [WriteEntry::put(b"k", b"v"), WriteEntry::remove(b"gone")]);
        let second = Ok(Some(write(Sequence(8), Some(RequestMark::new(id(), 9)))));
        assert_eq!(next_write(&mut rest, &mut entries), second);
        let moment = Expiry::At(ExpireAt::from_millis(120).unwrap());
        assert_eq!(entries, [WriteEntry::put(b"session", b"").expiring(moment)]);
        assert_eq!(next_write(&mut rest, &mut entries), Ok(None));
    }

    proptest! {
        #[test]
        fn other_bytes_than_were_written_are_noticed(at in 0_usize..200, flip in 1_u8..) {
            let mut bytes = sample();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            let (mut rest, mut entries) = (bytes.as_slice(), Vec::new());
            let mut outcomes = Vec::new();
            while let Ok(Some(_)) = next_write(&mut rest, &mut entries) {
                outcomes.push(rest.len());
            }
            prop_assert!(outcomes.len() < 2, "a changed write was taken for one that was written");
        }
    }
}
