//! A message's value: one write batch, or a claim.
//!
//! ```text
//!  0         1      2         4        8              12          16      24         32          40
//! ┌─────────┬──────┬─────────┬────────┬───────────────┬───────────┬───────┬──────────┬───────────┐
//! │ version │ kind │ entries │ crc32c │ payload bytes │ partition │ epoch │ sequence │ timestamp │ payload …
//! │ u8      │ u8   │ u16     │ u32    │ u32           │ u32       │ u64   │ u64      │ u64       │
//! └─────────┴──────┴─────────┴────────┴───────────────┴───────────┴───────┴──────────┴───────────┘
//!
//! kind 3, write batch of a request with an id (version 2): its mark, see types/src/request_id.rs, then
//! `entries` as for kind 1, none if the request was refused
//!
//! kind 1, write batch: `entries` as in the local log     kind 2, claim (entries, sequence, timestamp 0)
//! ┌────┬─────────┬───────────┬─────┬───────┐             ┌─────────────┬───────────┬───────┬─────────┐
//! │ op │ key len │ value len │ key │ value │             │ range start │ range end │ nonce │ node id │
//! │ u8 │ u16     │ u32       │     │       │             │ u64         │ u64       │ u64   │ …       │
//! └────┴─────────┴───────────┴─────┴───────┘             └─────────────┴───────────┴───────┴─────────┘
//! ```
//! Little-endian. The checksum covers every byte but its own four. Kafka has checksums too, but
//! they begin at its client; this one begins where the write was accepted, and names a message: a
//! node that comes back knows by it whether it looks at the same topic.

use stateside_types::{
    Epoch, HashRange, PartitionId, RequestMark, Sequence, Timestamp, WriteEntry,
    limits::NODE_ID_BYTES_MAX,
};

use crate::log::{RECORD_BYTES_MAX, decode_entries, decode_mark, encode_entries, record_bytes};

/// Version of the messages' format that this release reads, with every earlier one. A message has the
/// lowest version that knows its kind: whoever reads version 1 stops where a request has an id, and nowhere else.
pub const KAFKA_FORMAT_VERSION: u8 = 2;
/// The version of writes without an id, and of claims.
const FIRST_VERSION: u8 = 1;

const HEADER_BYTES: usize = 40;
const CLAIM_FIXED_BYTES: usize = 24;
/// A local record's header is longer than a message's.
const LOCAL_HEADER_BYTES: usize = 44;

/// Largest message value.
pub const KAFKA_RECORD_BYTES_MAX: usize = RECORD_BYTES_MAX - LOCAL_HEADER_BYTES + HEADER_BYTES;
/// Largest claim.
pub const CLAIM_BYTES_MAX: usize = HEADER_BYTES + CLAIM_FIXED_BYTES + NODE_ID_BYTES_MAX;

const KIND_WRITE: u8 = 1;
const KIND_CLAIM: u8 = 2;
const KIND_MARKED_WRITE: u8 = 3;

/// What every message says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageHead {
    /// Whose log it belongs to.
    pub partition: PartitionId,
    /// The claim under which it was written; in a claim, the epoch that it claims.
    pub epoch: Epoch,
    /// The write's position in the partition; 0 in a claim.
    pub sequence: Sequence,
    /// When the clock stage saw it; 0 in a claim.
    pub timestamp: Timestamp,
    /// Its checksum.
    pub crc: u32,
}

/// A node says that it owns a partition from here on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Above that of every claim that the node has read.
    pub epoch: Epoch,
    /// The key hashes of the partition.
    pub range: HashRange,
    /// Tells this claim from every other, also from the same node's for the same epoch.
    pub nonce: u64,
    /// Who claims.
    pub node: String,
}

/// A message, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A write batch.
    Write {
        /// Whose and which.
        head: MessageHead,
        /// The mark of its request, when that has an id.
        request: Option<RequestMark<'a>>,
        /// Number of entries in the payload.
        entries: u16,
        /// The entries; see [`Message::entries`].
        payload: &'a [u8],
    },
    /// A claim.
    Claim {
        /// Whose and which.
        head: MessageHead,
        /// What it claims.
        claim: Claim,
    },
}

/// Why bytes are no message of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not written by Stateside, or damaged.
    #[error("it is no record of Stateside, or damaged")]
    Damaged,
    /// Another release's.
    #[error("it has format version {0}; this release reads versions 1 to {KAFKA_FORMAT_VERSION}")]
    Version(u8),
}

impl MessageError {
    /// Whether another release could read it.
    pub const fn is_version(self) -> bool {
        matches!(self, Self::Version(_))
    }
}

/// Bytes of the message that these entries make.
pub fn kafka_record_bytes(entries: &[WriteEntry<'_>], request: Option<&RequestMark<'_>>) -> usize {
    record_bytes(entries, request) - LOCAL_HEADER_BYTES + HEADER_BYTES
}

/// Encodes a write batch; `head.crc` is filled in.
///
/// # Panics
/// On entries outside their limits: they were checked when the write was accepted.
pub fn encode_write(
    head: &mut MessageHead,
    request: Option<&RequestMark<'_>>,
    entries: &[WriteEntry<'_>],
) -> Vec<u8> {
    let count = u16::try_from(entries.len()).expect("a batch has at most 16384 entries");
    let mut bytes = Vec::with_capacity(kafka_record_bytes(entries, request));
    let kind = if request.is_some() { KIND_MARKED_WRITE } else { KIND_WRITE };
    begin(&mut bytes, kind, count, head);
    if let Some(mark) = request {
        mark.encode(&mut |piece| bytes.extend_from_slice(piece));
    }
    encode_entries(head.timestamp, entries, |piece| bytes.extend_from_slice(piece));
    head.crc = finish(&mut bytes);
    bytes
}

/// Encodes a claim; its checksum comes with it.
///
/// # Panics
/// On a node id above its limit.
pub fn encode_claim(partition: PartitionId, claim: &Claim) -> (Vec<u8>, u32) {
    assert!(claim.node.len() <= NODE_ID_BYTES_MAX, "node ids are checked at the start");
    let head = MessageHead {
        partition,
        epoch: claim.epoch,
        sequence: Sequence::ZERO,
        timestamp: Timestamp::ZERO,
        crc: 0,
    };
    let mut bytes = Vec::with_capacity(CLAIM_BYTES_MAX);
    begin(&mut bytes, KIND_CLAIM, 0, &head);
    bytes.extend_from_slice(&claim.range.start().to_le_bytes());
    bytes.extend_from_slice(&claim.range.end().to_le_bytes());
    bytes.extend_from_slice(&claim.nonce.to_le_bytes());
    bytes.extend_from_slice(claim.node.as_bytes());
    let crc = finish(&mut bytes);
    (bytes, crc)
}

fn begin(bytes: &mut Vec<u8>, kind: u8, entries: u16, head: &MessageHead) {
    let version = if kind == KIND_MARKED_WRITE { KAFKA_FORMAT_VERSION } else { FIRST_VERSION };
    bytes.extend_from_slice(&[version, kind]);
    bytes.extend_from_slice(&entries.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]); // checksum and payload bytes: see `finish`
    bytes.extend_from_slice(&head.partition.0.to_le_bytes());
    bytes.extend_from_slice(&head.epoch.0.to_le_bytes());
    bytes.extend_from_slice(&head.sequence.0.to_le_bytes());
    bytes.extend_from_slice(&head.timestamp.0.to_le_bytes());
}

fn finish(bytes: &mut [u8]) -> u32 {
    let payload = u32::try_from(bytes.len() - HEADER_BYTES).expect("a batch is at most 1 MiB");
    bytes[8..12].copy_from_slice(&payload.to_le_bytes());
    let crc = checksum(bytes);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    crc
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..4]), &bytes[8..])
}

/// Reads a message's value.
///
/// # Errors
/// [`MessageError`].
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, MessageError> {
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
    if bytes.len() < HEADER_BYTES
        || u32_at(8) as usize != bytes.len() - HEADER_BYTES
        || checksum(bytes) != u32_at(4)
    {
        return Err(MessageError::Damaged);
    }
    if !(FIRST_VERSION..=KAFKA_FORMAT_VERSION).contains(&bytes[0]) {
        return Err(MessageError::Version(bytes[0]));
    }
    let head = MessageHead {
        partition: PartitionId(u32_at(12)),
        epoch: Epoch(u64_at(16)),
        sequence: Sequence(u64_at(24)),
        timestamp: Timestamp(u64_at(32)),
        crc: u32_at(4),
    };
    if head.epoch.0 == u64::MAX || head.sequence.0 == u64::MAX {
        // Nothing could follow it; nobody gets there by counting.
        return Err(MessageError::Damaged);
    }
    let payload = &bytes[HEADER_BYTES..];
    let entries = u16::from_le_bytes([bytes[2], bytes[3]]);
    match bytes[1] {
        KIND_WRITE | KIND_MARKED_WRITE => {
            let is_marked = bytes[1] == KIND_MARKED_WRITE;
            let (request, payload) =
                decode_mark(payload, is_marked).ok_or(MessageError::Damaged)?;
            Ok(Message::Write { head, request, entries, payload })
        }
        KIND_CLAIM if payload.len() >= CLAIM_FIXED_BYTES && bytes.len() <= CLAIM_BYTES_MAX => {
            let (start, end, nonce) = (u64_at(40), u64_at(48), u64_at(56));
            let node = str::from_utf8(&payload[CLAIM_FIXED_BYTES..]);
            match (HashRange::new(start, end), node) {
                (Ok(range), Ok(node)) => {
                    let claim = Claim { epoch: head.epoch, range, nonce, node: node.to_owned() };
                    Ok(Message::Claim { head, claim })
                }
                _ => Err(MessageError::Damaged),
            }
        }
        _ => Err(MessageError::Damaged),
    }
}

impl<'a> Message<'a> {
    /// What the message says of itself.
    pub const fn head(&self) -> &MessageHead {
        match self {
            Self::Write { head, .. } | Self::Claim { head, .. } => head,
        }
    }

    /// Reads the entries of a write into `out`, which is emptied first; a claim has none.
    ///
    /// # Errors
    /// [`MessageError::Damaged`].
    pub fn entries(&self, out: &mut Vec<WriteEntry<'a>>) -> Result<(), MessageError> {
        match self {
            Self::Write { entries, payload, .. } => {
                decode_entries(payload, *entries, out).ok_or(MessageError::Damaged)
            }
            Self::Claim { .. } => {
                out.clear();
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use stateside_types::{Change, Reason, Refusal, RequestId};

    use super::*;

    fn head() -> MessageHead {
        MessageHead {
            partition: PartitionId(7),
            epoch: Epoch(3),
            sequence: Sequence(9),
            timestamp: Timestamp(11),
            crc: 0,
        }
    }

    fn entries() -> [WriteEntry<'static>; 2] {
        [WriteEntry::put(b"k", b"v"), WriteEntry::new(b"gone", Change::Remove)]
    }

    #[test]
    fn a_write_reads_back_and_its_size_is_known_beforehand() {
        let mut head = head();
        let bytes = encode_write(&mut head, None, &entries());
        assert_eq!(bytes.len(), kafka_record_bytes(&entries(), None));
        let message = decode(&bytes).unwrap();
        assert_eq!(*message.head(), head);
        let mut out = Vec::new();
        message.entries(&mut out).unwrap();
        assert_eq!(out, entries());
    }

    #[test]
    fn the_mark_of_a_request_goes_along_and_only_then_the_version_is_2() {
        let id = RequestId { client: b"c", number: 4, settled: 2 };
        for refusal in [None, Some(Arc::new(Refusal::new(Reason::ConditionFailed, "no")))] {
            let all = entries();
            let written = if refusal.is_some() { &[] } else { &all[..] };
            let mark = RequestMark { refusal, ..RequestMark::new(id, 5) };
            let bytes = encode_write(&mut head(), Some(&mark), written);
            assert_eq!(bytes.len(), kafka_record_bytes(written, Some(&mark)));
            assert_eq!(bytes[..2], [2, 3]);
            let message = decode(&bytes).unwrap();
            let Message::Write { request, .. } = &message else { panic!("a write") };
            assert_eq!(request.as_ref(), Some(&mark));
            let mut out = Vec::new();
            message.entries(&mut out).unwrap();
            assert_eq!(out, written);
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let bytes = encode_write(&mut head(), None, &entries()[..1]);
        assert_eq!(&bytes[..4], [1, 1, 1, 0]);
        assert_eq!(&bytes[8..16], [9, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(&bytes[16..24], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[24..32], [9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[32..40], [11, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_claim_reads_back() {
        let range = HashRange::new(10, 0).unwrap();
        let claim = Claim { epoch: Epoch(4), range, nonce: 5, node: "vm-1".to_owned() };
        let (bytes, crc) = encode_claim(PartitionId(2), &claim);
        let Ok(Message::Claim { head, claim: read }) = decode(&bytes) else { panic!("no claim") };
        assert_eq!((read, head.crc, head.partition), (claim, crc, PartitionId(2)));
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_noticed() {
        let bytes = encode_write(&mut head(), None, &entries());
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert_eq!(decode(&flipped), Err(MessageError::Damaged), "byte {at}");
            }
            assert_eq!(decode(&bytes[..at]), Err(MessageError::Damaged));
        }
    }

    #[test]
    fn another_version_is_told_apart_from_damage() {
        let mut bytes = encode_write(&mut head(), None, &entries());
        bytes[0] = 3;
        let crc = checksum(&bytes);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&bytes), Err(MessageError::Version(3)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            if bytes.len() >= HEADER_BYTES {
                // With length and checksum right, whatever else they are.
                bytes[0] = KAFKA_FORMAT_VERSION;
                bytes[1] = 1 + bytes[1] % 4;
                finish(&mut bytes);
                if let Ok(message) = decode(&bytes) {
                    let _ = message.entries(&mut Vec::new());
                }
            }
        }
    }
}
