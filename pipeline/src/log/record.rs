//! The record: one write batch of one partition, as it lies in a group's stream.
//!
//! ```text
//!  0            4               8             12          16      24         32          40        42     43    44
//! ┌────────────┬───────────────┬─────────────┬───────────┬───────┬──────────┬───────────┬─────────┬──────┬─────┐
//! │ header     │ payload bytes │ payload     │ partition │ epoch │ sequence │ timestamp │ entries │ kind │ 0   │ payload …
//! │ crc32c u32 │ u32           │ crc32c u32  │ u32       │ u64   │ u64      │ u64       │ u16     │ u8   │ u8  │
//! └────────────┴───────────────┴─────────────┴───────────┴───────┴──────────┴───────────┴─────────┴──────┴─────┘
//!
//! kind 1, write batch: `entries` times            kind 2, roll call: `entries` times
//! ┌────┬─────────┬───────────┬─────┬───────┐      ┌───────────┬───────┬──────────┐
//! │ op │ key len │ value len │ key │ value │      │ partition │ epoch │ sequence │
//! │ u8 │ u16     │ u32       │     │       │      │ u32       │ u64   │ u64      │
//! └────┴─────────┴───────────┴─────┴───────┘      └───────────┴───────┴──────────┘
//!  op 1: put, op 2: remove (value len 0), op 3: put, and before the key, u64: from when on the record
//!  is absent, milliseconds since 1970
//!
//! kind 3, write batch of a request with an id: its mark (see types/src/request_id.rs), then `entries`
//! as for kind 1, none if the request was refused
//! ```
//! Little-endian. Both checksums start from the segment's generation, so what an earlier generation
//! left in a recycled file never checks out. The header's covers bytes 4..44, the payload's checksum
//! among them: a header that checks out names its partition and finds the next record even when its
//! own payload is damaged.
//!
//! A **roll call** opens every segment: up to which sequence each partition of the log had been
//! written by then. It bears witness for partitions that write seldom: damage before it cannot have
//! cost them anything that the roll call does not count.

use stateside_types::{
    Change, Epoch, ExpireAt, Expiry, PartitionId, REQUEST_MARK_BYTES_MAX, RequestMark, Sequence,
    Timestamp, WriteEntry, limits,
};

use super::Generation;

/// Header of a record.
pub(super) const RECORD_HEADER_BYTES: usize = 44;
/// What an entry takes besides key and value.
const ENTRY_HEADER_BYTES: usize = 7;
/// What an entry takes whose record expires.
const MOMENT_BYTES: usize = 8;
/// One line of a roll call.
const ROLL_CALL_ENTRY_BYTES: usize = 20;

/// Largest encoded record: a full batch, every entry's header included.
pub const RECORD_BYTES_MAX: usize = RECORD_HEADER_BYTES
    + REQUEST_MARK_BYTES_MAX
    + limits::BATCH_BYTES_MAX
    + limits::BATCH_ENTRIES_MAX * (ENTRY_HEADER_BYTES + MOMENT_BYTES);
const _: () = assert!(limits::BATCH_ENTRIES_MAX <= u16::MAX as usize);
const _: () = assert!(limits::PARTITIONS_PER_NODE_MAX <= u16::MAX as usize);
const _: () = assert!(limits::KEY_BYTES_MAX <= u16::MAX as usize);

const OP_PUT: u8 = 1;
const OP_REMOVE: u8 = 2;
const OP_PUT_EXPIRING: u8 = 3;

/// Whose write a record is, and its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// The partition that accepted the write.
    pub partition: PartitionId,
    /// The partition's epoch when it did.
    pub epoch: Epoch,
    /// The write's position in the partition.
    pub sequence: Sequence,
    /// When the clock stage saw it.
    pub timestamp: Timestamp,
}

/// One line of a roll call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RollCallEntry {
    /// A partition whose writes go to this log.
    pub partition: PartitionId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The last write of it that this log or an earlier one was given.
    pub sequence: Sequence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum RecordKind {
    Write = 1,
    RollCall = 2,
    /// A write with the mark of its request.
    MarkedWrite = 3,
}

/// A record's header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) head: RecordHead,
    pub(super) kind: RecordKind,
    pub(super) entries: u16,
    pub(super) payload_bytes: u32,
    pub(super) payload_crc: u32,
}

/// Bytes that a write takes in the log: what `LogWriter::reserve` wants to know.
pub fn record_bytes(entries: &[WriteEntry<'_>], request: Option<&RequestMark<'_>>) -> usize {
    let mark = request.map_or(0, RequestMark::encoded_bytes);
    RECORD_HEADER_BYTES + mark + entries.iter().map(entry_bytes).sum::<usize>()
}

pub(super) const fn roll_call_bytes(entries: usize) -> usize {
    RECORD_HEADER_BYTES + entries * ROLL_CALL_ENTRY_BYTES
}

fn entry_bytes(entry: &WriteEntry<'_>) -> usize {
    let rest = match entry.change {
        Change::Put(value) if entry.expiry == Expiry::Never => value.len(),
        Change::Put(value) => MOMENT_BYTES + value.len(),
        Change::Remove => 0,
    };
    ENTRY_HEADER_BYTES + entry.key.len() + rest
}

/// Continues a checksum; starts one from the generation.
pub(super) fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(seed, bytes)
}

impl RecordHeader {
    pub(super) fn encode(&self, generation: Generation) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[4..8].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.payload_crc.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.head.partition.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.head.epoch.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.head.sequence.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.head.timestamp.0.to_le_bytes());
        bytes[40..42].copy_from_slice(&self.entries.to_le_bytes());
        bytes[42] = self.kind as u8;
        let crc = checksum(generation.0, &bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// None: these bytes are no record header of this generation.
    pub(super) fn decode(
        bytes: &[u8; RECORD_HEADER_BYTES],
        generation: Generation,
    ) -> Option<Self> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        if checksum(generation.0, &bytes[4..]) != u32_at(0) {
            return None;
        }
        let kind = match bytes[42] {
            1 => RecordKind::Write,
            2 => RecordKind::RollCall,
            3 => RecordKind::MarkedWrite,
            _ => return None,
        };
        Some(Self {
            head: RecordHead {
                partition: PartitionId(u32_at(12)),
                epoch: Epoch(u64_at(16)),
                sequence: Sequence(u64_at(24)),
                timestamp: Timestamp(u64_at(32)),
            },
            kind,
            entries: u16::from_le_bytes([bytes[40], bytes[41]]),
            payload_bytes: u32_at(4),
            payload_crc: u32_at(8),
        })
    }
}

/// Hands the payload of a write to `put`, piece by piece.
///
/// # Panics
/// On a key outside its limits: the batch was checked when it was accepted, and a log that cannot
/// be read back must not be written.
pub(crate) fn encode_entries(
    timestamp: Timestamp,
    entries: &[WriteEntry<'_>],
    mut put: impl FnMut(&[u8]),
) {
    for entry in entries {
        let (op, value, moment) = match entry.change {
            Change::Put(value) => match entry.expiry.fixed_by(timestamp) {
                None => (OP_PUT, value, None),
                moment => (OP_PUT_EXPIRING, value, moment),
            },
            Change::Remove => (OP_REMOVE, &[][..], None),
        };
        assert!(!entry.key.is_empty() && entry.key.len() <= limits::KEY_BYTES_MAX);
        let value_bytes = u32::try_from(value.len()).expect("a batch is at most 1 MiB");
        // Put together in a register: what is stored in pieces and copied in larger ones waits in
        // the processor until the pieces have left its store buffer.
        let header =
            u64::from(op) | ((entry.key.len() as u64) << 8) | (u64::from(value_bytes) << 24);
        put(&header.to_le_bytes()[..ENTRY_HEADER_BYTES]);
        if let Some(moment) = moment {
            put(&moment.millis().to_le_bytes());
        }
        put(entry.key);
        put(value);
    }
}

/// Reads the entries of a write's payload into `out`, which is emptied first. `None`: malformed.
pub(crate) fn decode_entries<'a>(
    payload: &'a [u8],
    count: u16,
    out: &mut Vec<WriteEntry<'a>>,
) -> Option<()> {
    out.clear();
    let mut rest = payload;
    for _ in 0..count {
        let (header, mut after) = rest.split_first_chunk::<ENTRY_HEADER_BYTES>()?;
        let key_bytes = usize::from(u16::from_le_bytes([header[1], header[2]]));
        let value_bytes = u32::from_le_bytes([header[3], header[4], header[5], header[6]]);
        let value_bytes = usize::try_from(value_bytes).ok()?;
        if key_bytes == 0 || key_bytes > limits::KEY_BYTES_MAX {
            return None;
        }
        let mut expiry = Expiry::Never;
        if header[0] == OP_PUT_EXPIRING {
            let (moment, behind) = after.split_first_chunk::<MOMENT_BYTES>()?;
            expiry = Expiry::At(ExpireAt::from_millis(u64::from_le_bytes(*moment))?);
            after = behind;
        }
        let (key, after) = after.split_at_checked(key_bytes)?;
        let (value, after) = after.split_at_checked(value_bytes)?;
        let change = match header[0] {
            OP_PUT | OP_PUT_EXPIRING => Change::Put(value),
            OP_REMOVE if value.is_empty() => Change::Remove,
            _ => return None,
        };
        out.push(WriteEntry::new(key, change).expiring(expiry));
        rest = after;
    }
    rest.is_empty().then_some(())
}

/// Reads the mark that stands before the entries of a write of this kind. `None`: malformed.
pub(crate) fn decode_mark(
    payload: &[u8],
    is_marked: bool,
) -> Option<(Option<RequestMark<'_>>, &[u8])> {
    if !is_marked {
        return Some((None, payload));
    }
    RequestMark::decode(payload).map(|(mark, entries)| (Some(mark), entries))
}

/// The lines of a roll call, as bytes.
pub(super) fn encode_roll_call_entry(entry: &RollCallEntry) -> [u8; ROLL_CALL_ENTRY_BYTES] {
    let mut bytes = [0; ROLL_CALL_ENTRY_BYTES];
    bytes[..4].copy_from_slice(&entry.partition.0.to_le_bytes());
    bytes[4..12].copy_from_slice(&entry.epoch.0.to_le_bytes());
    bytes[12..].copy_from_slice(&entry.sequence.0.to_le_bytes());
    bytes
}

/// Reads a roll call's payload. `None`: malformed.
pub(super) fn decode_roll_call(
    payload: &[u8],
    count: u16,
) -> Option<impl Iterator<Item = RollCallEntry> + '_> {
    let (lines, rest) = payload.as_chunks::<ROLL_CALL_ENTRY_BYTES>();
    (rest.is_empty() && lines.len() == usize::from(count)).then(|| {
        lines.iter().map(|line| RollCallEntry {
            partition: PartitionId(u32::from_le_bytes(line[..4].try_into().expect("four"))),
            epoch: Epoch(u64::from_le_bytes(line[4..12].try_into().expect("eight"))),
            sequence: Sequence(u64::from_le_bytes(line[12..].try_into().expect("eight"))),
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stateside_types::WallClock;

    use super::*;

    use WriteEntry as Entry;

    fn encoded(entries: &[WriteEntry<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_entries(Timestamp::from_wall(WallClock(100)), entries, |piece| {
            bytes.extend_from_slice(piece)
        });
        bytes
    }

    #[test]
    fn entries_read_back_and_their_size_is_known_beforehand() {
        let long = vec![7; limits::KEY_BYTES_MAX];
        let entries = [
            Entry::put(b"k", b"v"),
            Entry::remove(b"gone"),
            Entry::put(&long, b""),
            Entry::put(b"session", b"v").expiring(Expiry::After(20)),
        ];
        let bytes = encoded(&entries);
        assert_eq!(bytes.len() + RECORD_HEADER_BYTES, record_bytes(&entries, None));
        let mut out = Vec::new();
        decode_entries(&bytes, 4, &mut out).unwrap();
        assert_eq!(out[..3], entries[..3]);
        let moment = Expiry::At(ExpireAt::from_millis(120).unwrap());
        assert_eq!(out[3], entries[3].expiring(moment), "the moment is what lasts");
        for count in [0, 2, 3, 5] {
            assert_eq!(decode_entries(&bytes, count, &mut out), None);
        }
    }

    #[test]
    fn a_header_of_another_generation_or_kind_is_none() {
        let header = RecordHeader {
            head: RecordHead {
                partition: PartitionId(7),
                epoch: Epoch(8),
                sequence: Sequence(9),
                timestamp: Timestamp(10),
            },
            kind: RecordKind::Write,
            entries: 11,
            payload_bytes: 12,
            payload_crc: 13,
        };
        let bytes = header.encode(Generation(5));
        assert_eq!(RecordHeader::decode(&bytes, Generation(5)), Some(header));
        assert_eq!(RecordHeader::decode(&bytes, Generation(4)), None);
        for at in 0..bytes.len() {
            let mut flipped = bytes;
            flipped[at] ^= 0x10;
            assert_eq!(RecordHeader::decode(&flipped, Generation(5)), None, "byte {at}");
        }
        assert_eq!(RecordHeader::decode(&[0; 44], Generation(5)), None);
    }

    #[test]
    fn a_roll_call_reads_back() {
        let line = RollCallEntry {
            partition: PartitionId(1),
            epoch: Epoch(u64::MAX),
            sequence: Sequence(3),
        };
        let bytes = encode_roll_call_entry(&line);
        assert_eq!(decode_roll_call(&bytes, 1).unwrap().collect::<Vec<_>>(), [line]);
        assert!(decode_roll_call(&bytes, 2).is_none());
        assert!(decode_roll_call(&bytes[1..], 1).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_entry_decoder_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), count in 0_u16..20,
        ) {
            let mut out = Vec::new();
            if decode_entries(&bytes, count, &mut out).is_some() {
                prop_assert_eq!(encoded(&out), bytes);
            }
        }

        #[test]
        fn a_changed_payload_either_decodes_to_exactly_its_bytes_or_to_nothing(
            at in 0_usize..60, byte in any::<u8>(),
        ) {
            let mut bytes = encoded(&[
                Entry::put(b"first", b"value").expiring(Expiry::After(7)),
                Entry::put(b"second", b"another value"),
            ]);
            let at = at % bytes.len();
            bytes[at] = byte;
            let mut out = Vec::new();
            if decode_entries(&bytes, 2, &mut out).is_some() {
                prop_assert_eq!(encoded(&out), bytes);
            }
        }
    }
}
