//! Snapshot files: bytes of a partition's records, written and read without any IO.
//!
//! ```text
//!  file    ┌────────┬───────┬───────┬─ ─ ─┬────────┐    integers little-endian
//!          │ header │ block │ block │     │ footer │
//!          └────────┴───────┴───────┴─ ─ ─┴────────┘
//!  header  0        8         10       12          16            24          32      40
//!          ┌────────┬─────────┬────────┬───────────┬─────────────┬───────────┬───────┬──────────┐
//!          │ magic  │ version │ length │ partition │ range start │ range end │ epoch │ sequence │
//!          └────────┴─────────┴────────┴───────────┴─────────────┴───────────┴───────┴──────────┘
//!          48          56              64           80         84
//!          ┌───────────┬───────────────┬────────────┬──────────┬───────┐
//!          │ timestamp │ created, ms   │ store kind │ reserved │ CRC32C│
//!          └───────────┴───────────────┴────────────┴──────────┴───────┘
//!  block   0              4         8       12
//!          ┌──────────────┬─────────┬───────┬─────────┐ ┌─────────┬───────────┬─────────┬───────────┬─────┬───────┐
//!          │ payload bytes│ records │ CRC32C│ payload │=│ key len │ value len │ version │ timestamp │ key │ value │…
//!          └──────────────┴─────────┴───────┴─────────┘ └ u16 ────┴ u32 ──────┴ u64 ────┴ u64 ──────┴─────┴───────┘
//!          with bit 31 of value len: the record expires, and its moment, u64, stands before the key;
//!          with bit 31 of records: the payload is rows of request ids, see `request_window.rs`
//!  footer  0          4         12        20              28                  32
//!          ┌──────────┬─────────┬─────────┬───────────────┬───────────────────┬───────┐
//!          │ 0 u32    │ blocks  │ records │ payload bytes │ CRC of block CRCs │ CRC32C│
//!          └──────────┴─────────┴─────────┴───────────────┴───────────────────┴───────┘
//! ```
//! Magic, version, length and a CRC at the end of the header stay where they are in every
//! later version, so that damage can be told from a file of another version. A block's CRC also
//! covers the header's CRC and the block's number: a block of another snapshot, or one out
//! of place, does not pass. No block is longer than one record or [`BLOCK_BYTES`], so a reader's
//! memory is bounded whatever the bytes say.
//!
//! Whether a record's key lies in the header's hash range cannot be checked here: records written
//! under a routing key hash to where that key says, and it is not stored.

use std::{borrow::Cow, fmt};

use stateside_types::{
    Epoch, ExpireAt, HashRange, PartitionId, Record, Sequence, Timestamp, WallClock,
    limits::{BATCH_BYTES_MAX, KEY_BYTES_MAX},
};

use crate::{RequestRow, SnapshotRecord};

/// Version of the format that this release writes.
///
/// Version 2 knows records that expire, version 3 request ids. What version 2 has reads the same.
pub const SNAPSHOT_VERSION: u16 = 3;
/// The oldest version that this release reads.
pub const SNAPSHOT_VERSION_MIN: u16 = 2;
/// Length of a snapshot's header in this version, bytes.
pub const SNAPSHOT_HEADER_BYTES: usize = 88;

const MAGIC: [u8; 8] = *b"STSDSNAP";
/// A block is closed once its payload is this long.
const BLOCK_BYTES: usize = 64 << 10;
const BLOCK_HEADER_BYTES: usize = 12;
const FOOTER_BYTES: usize = 36;
const RECORD_HEADER_BYTES: usize = 22;
const MOMENT_BYTES: usize = 8;
/// In the length of a value: the record has a moment.
const EXPIRES: u32 = 1 << 31;
const PAYLOAD_BYTES_MAX: usize =
    BLOCK_BYTES + RECORD_HEADER_BYTES + MOMENT_BYTES + KEY_BYTES_MAX + BATCH_BYTES_MAX;
const _: () = assert!(BATCH_BYTES_MAX < EXPIRES as usize);
/// In a block's number of records: they are rows of request ids.
const REQUESTS: u32 = 1 << 31;
const KIND_BYTES: usize = 16;
/// Headers of later versions may be longer, up to this.
const HEADER_BYTES_MAX: usize = 4 << 10;
/// Bytes that every version keeps at its start: magic, version, length.
const STABLE_BYTES: usize = 12;

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// The partition it was taken of.
    pub partition: PartitionId,
    /// The partition's hash range.
    pub range: HashRange,
    /// The partition's epoch.
    pub epoch: Epoch,
    /// The state is as of this sequence: what was applied before the snapshot began.
    pub sequence: Sequence,
    /// Timestamp of that sequence.
    pub timestamp: Timestamp,
    /// When the snapshot began.
    pub created: WallClock,
    /// Kind of the store it was taken from: at most 16 ASCII bytes. Any store can load it.
    pub store_kind: String,
}

/// What a whole snapshot held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotSummary {
    /// Number of records.
    pub records: u64,
    /// Bytes of their keys and values.
    pub payload_bytes: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
}

/// Why bytes are not a snapshot that can be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The first bytes are not a snapshot's.
    #[error("not a Stateside snapshot: it begins with {found:02x?}")]
    Foreign {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// Written by another version of the format.
    #[error(
        "snapshot format {found}: this release reads formats {SNAPSHOT_VERSION_MIN} to {SNAPSHOT_VERSION}"
    )]
    Version {
        /// The file's version.
        found: u16,
    },
    /// Truncated, or not the bytes that were written.
    #[error("damaged at offset {offset}: {message}")]
    Damaged {
        /// Where in the file the part begins that does not fit.
        offset: u64,
        /// What does not fit.
        message: Cow<'static, str>,
    },
}

/// Turns records into the bytes of a snapshot.
pub struct SnapshotWriter {
    header_crc: u32,
    block: Vec<u8>,
    block_records: u32,
    /// [`REQUESTS`] while the block is of rows of request ids.
    block_kind: u32,
    blocks: u64,
    blocks_crc: u32,
    summary: SnapshotSummary,
}

impl SnapshotWriter {
    /// Begins a snapshot: appends its header to `out`.
    ///
    /// # Panics
    /// When the store's kind is not 1 to 16 ASCII bytes.
    pub fn new(header: &SnapshotHeader, out: &mut Vec<u8>) -> Self {
        let bytes = header.encode();
        out.extend_from_slice(&bytes);
        Self {
            header_crc: crc_at_end(&bytes),
            block: Vec::with_capacity(BLOCK_BYTES + BLOCK_BYTES / 8),
            block_records: 0,
            block_kind: 0,
            blocks: 0,
            blocks_crc: 0,
            summary: SnapshotSummary { file_bytes: bytes.len() as u64, ..Default::default() },
        }
    }

    /// Adds a record. Appends to `out` whenever a block is full; what is appended between two
    /// calls may be taken out and written at once.
    ///
    /// # Panics
    /// When key or value exceed the limits.
    pub fn push(&mut self, record: SnapshotRecord<'_>, out: &mut Vec<u8>) {
        let SnapshotRecord { key, record } = record;
        let Record { value, version, timestamp, expire_at } = record;
        assert!(!key.is_empty() && key.len() <= KEY_BYTES_MAX, "a stored key is within its limit");
        assert!(value.len() <= BATCH_BYTES_MAX, "a stored value is within its limit");
        if self.block_kind != 0 {
            self.close_block(out);
            self.block_kind = 0;
        }
        self.block.extend_from_slice(&(key.len() as u16).to_le_bytes());
        let flags = if expire_at.is_some() { EXPIRES } else { 0 };
        self.block.extend_from_slice(&(value.len() as u32 | flags).to_le_bytes());
        self.block.extend_from_slice(&version.0.to_le_bytes());
        self.block.extend_from_slice(&timestamp.0.to_le_bytes());
        if let Some(moment) = expire_at {
            self.block.extend_from_slice(&moment.millis().to_le_bytes());
        }
        self.block.extend_from_slice(key);
        self.block.extend_from_slice(value);
        self.block_records += 1;
        self.summary.records += 1;
        self.summary.payload_bytes += (key.len() + value.len()) as u64;
        if self.block.len() >= BLOCK_BYTES {
            self.close_block(out);
        }
    }

    /// Records added so far.
    pub fn records(&self) -> u64 {
        self.summary.records
    }

    /// Adds what is known of a request. As [`Self::push`]; a client comes before its answers.
    pub fn push_request(&mut self, row: &RequestRow<'_>, out: &mut Vec<u8>) {
        if self.block_kind != REQUESTS {
            self.close_block(out);
            self.block_kind = REQUESTS;
        }
        row.encode(&mut self.block);
        self.block_records += 1;
        if self.block.len() >= BLOCK_BYTES {
            self.close_block(out);
        }
    }

    /// Ends the snapshot: appends the last block and the footer to `out`.
    pub fn finish(mut self, out: &mut Vec<u8>) -> SnapshotSummary {
        self.close_block(out);
        let mut footer = Vec::with_capacity(FOOTER_BYTES);
        footer.extend_from_slice(&0u32.to_le_bytes());
        footer.extend_from_slice(&self.blocks.to_le_bytes());
        footer.extend_from_slice(&self.summary.records.to_le_bytes());
        footer.extend_from_slice(&self.summary.payload_bytes.to_le_bytes());
        footer.extend_from_slice(&self.blocks_crc.to_le_bytes());
        footer.extend_from_slice(&footer_crc(self.header_crc, &footer).to_le_bytes());
        assert_eq!(footer.len(), FOOTER_BYTES);
        out.extend_from_slice(&footer);
        self.summary.file_bytes += FOOTER_BYTES as u64;
        self.summary
    }

    fn close_block(&mut self, out: &mut Vec<u8>) {
        if self.block.is_empty() {
            return;
        }
        assert!(
            self.block.len() <= PAYLOAD_BYTES_MAX,
            "a block is one record over its size at most"
        );
        let records = self.block_records | self.block_kind;
        let crc = block_crc(self.header_crc, self.blocks, records, &self.block);
        out.extend_from_slice(&(self.block.len() as u32).to_le_bytes());
        out.extend_from_slice(&records.to_le_bytes());
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&self.block);
        self.summary.file_bytes += (BLOCK_HEADER_BYTES + self.block.len()) as u64;
        self.blocks += 1;
        self.blocks_crc = crc32c::crc32c_append(self.blocks_crc, &crc.to_le_bytes());
        self.block.clear();
        self.block_records = 0;
    }
}

/// Turns the bytes of a snapshot, in pieces of any size, into its records.
///
/// ```text
///   push(bytes) ─► next_block() ─► Some(block): its records, then call again
///                                  None: push more, or at the end of the file: finish()
/// ```
/// Records come out of blocks whose checksum held; that the snapshot is whole is only known when
/// [`Self::finish`] says so.
#[derive(Default)]
pub struct SnapshotReader {
    buffer: Vec<u8>,
    /// Where in `buffer` the part begins that was not taken yet.
    start: usize,
    /// Offset in the file of that part.
    offset: u64,
    header: Option<(SnapshotHeader, u32)>,
    blocks: u64,
    blocks_crc: u32,
    summary: SnapshotSummary,
    ended: bool,
}

/// A block of records, or of rows of request ids, that arrived intact.
pub struct SnapshotBlock<'a> {
    payload: &'a [u8],
    records: usize,
    requests: usize,
}

impl<'a> SnapshotBlock<'a> {
    fn new(payload: &'a [u8], records: u32) -> Self {
        let count = (records & !REQUESTS) as usize;
        let (records, requests) = if records & REQUESTS == 0 { (count, 0) } else { (0, count) };
        Self { payload, records, requests }
    }
}

impl SnapshotReader {
    /// A reader at the start of a file.
    pub fn new() -> Self {
        Self::default()
    }

    /// The header, once enough bytes were pushed and [`Self::next_block`] has looked at them.
    pub fn header(&self) -> Option<&SnapshotHeader> {
        self.header.as_ref().map(|(header, _)| header)
    }

    /// Adds the next bytes of the file. Take the blocks out before pushing more: what is not
    /// taken stays in memory.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next block that is there in full.
    ///
    /// # Errors
    /// [`SnapshotError`]; the reader must not be used any more.
    pub fn next_block(&mut self) -> Result<Option<SnapshotBlock<'_>>, SnapshotError> {
        let Some(header_crc) = self.read_header()? else { return Ok(None) };
        let rest = &self.buffer[self.start..];
        if self.ended {
            if rest.is_empty() {
                return Ok(None);
            }
            return Err(self.damaged("there are bytes after the footer"));
        }
        let Some(length) = rest.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize)
        else {
            return Ok(None);
        };
        if length == 0 {
            if rest.len() >= FOOTER_BYTES {
                self.read_footer(header_crc)?;
                // Says whether anything follows.
                return self.next_block();
            }
            return Ok(None);
        }
        if length > PAYLOAD_BYTES_MAX {
            return Err(self.damaged(format!("a block of {length} bytes is longer than any")));
        }
        if rest.len() < BLOCK_HEADER_BYTES + length {
            return Ok(None);
        }
        let records = u32_at(rest, 4);
        let crc = u32_at(rest, 8);
        let payload = &rest[BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + length];
        if crc != block_crc(header_crc, self.blocks, records, payload) {
            return Err(self.damaged("a block's checksum does not hold"));
        }
        let block = SnapshotBlock::new(payload, records);
        let payload_bytes = match block.check(self.header().expect("it was read above")) {
            Ok(payload_bytes) => payload_bytes,
            Err(message) => return Err(self.damaged(message)),
        };
        self.summary.records += block.records as u64;
        self.summary.payload_bytes += payload_bytes;
        self.blocks += 1;
        self.blocks_crc = crc32c::crc32c_append(self.blocks_crc, &crc.to_le_bytes());
        let begin = self.start + BLOCK_HEADER_BYTES;
        self.advance(BLOCK_HEADER_BYTES + length);
        Ok(Some(SnapshotBlock::new(&self.buffer[begin..begin + length], records)))
    }

    /// Says that the file ends here.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] when the snapshot is not whole, [`SnapshotError::Foreign`]
    /// when it is none.
    pub fn finish(mut self) -> Result<SnapshotSummary, SnapshotError> {
        if self.next_block()?.is_some() {
            return Err(self.damaged("blocks were not taken"));
        }
        if !self.ended {
            let rest = &self.buffer[self.start..];
            let known = rest.len().min(MAGIC.len());
            if self.header.is_none() && rest[..known] != MAGIC[..known] {
                return Err(SnapshotError::Foreign { found: rest[..known].to_vec() });
            }
            let end = self.offset + rest.len() as u64;
            return Err(SnapshotError::Damaged {
                offset: end,
                message: "the file ends here, before its footer".into(),
            });
        }
        Ok(self.summary)
    }

    fn read_header(&mut self) -> Result<Option<u32>, SnapshotError> {
        if let Some((_, crc)) = &self.header {
            return Ok(Some(*crc));
        }
        let rest = &self.buffer[self.start..];
        if rest.len() < STABLE_BYTES {
            return Ok(None);
        }
        if rest[..8] != MAGIC {
            return Err(SnapshotError::Foreign { found: rest[..8].to_vec() });
        }
        let version = u16_at(rest, 8);
        let length = usize::from(u16_at(rest, 10));
        if !(STABLE_BYTES + 4..=HEADER_BYTES_MAX).contains(&length) {
            return Err(self.damaged(format!("a header of {length} bytes")));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let bytes = &rest[..length];
        if crc_at_end(bytes) != crc32c::crc32c(&bytes[..length - 4]) {
            return Err(self.damaged("the header's checksum does not hold"));
        }
        if !(SNAPSHOT_VERSION_MIN..=SNAPSHOT_VERSION).contains(&version) {
            return Err(SnapshotError::Version { found: version });
        }
        let header = SnapshotHeader::decode(bytes).map_err(|message| self.damaged(message))?;
        let crc = crc_at_end(bytes);
        self.header = Some((header, crc));
        self.advance(length);
        Ok(Some(crc))
    }

    fn read_footer(&mut self, header_crc: u32) -> Result<(), SnapshotError> {
        let footer = &self.buffer[self.start..self.start + FOOTER_BYTES];
        if crc_at_end(footer) != footer_crc(header_crc, &footer[..FOOTER_BYTES - 4]) {
            return Err(self.damaged("the footer's checksum does not hold"));
        }
        let told = (u64_at(footer, 4), u64_at(footer, 12), u64_at(footer, 20), u32_at(footer, 28));
        let SnapshotSummary { records, payload_bytes, .. } = self.summary;
        if told != (self.blocks, records, payload_bytes, self.blocks_crc) {
            return Err(self.damaged("the footer tells of other blocks than these"));
        }
        self.ended = true;
        self.advance(FOOTER_BYTES);
        self.summary.file_bytes = self.offset;
        Ok(())
    }

    fn advance(&mut self, bytes: usize) {
        self.start += bytes;
        self.offset += bytes as u64;
    }

    fn damaged(&self, message: impl Into<Cow<'static, str>>) -> SnapshotError {
        SnapshotError::Damaged { offset: self.offset, message: message.into() }
    }
}

impl<'a> SnapshotBlock<'a> {
    /// The block's records.
    pub fn records(&self) -> impl Iterator<Item = SnapshotRecord<'a>> + use<'a> {
        let mut rest = self.payload;
        (0..self.records).map(move |_| {
            let (record, after) = split_record(rest).expect("the block was checked");
            rest = after;
            record
        })
    }

    /// The block's rows of request ids.
    pub fn requests(&self) -> impl Iterator<Item = RequestRow<'a>> + use<'a> {
        let mut rest = if self.requests > 0 { self.payload } else { &[] };
        (0..self.requests).map(move |_| {
            let (row, after) = RequestRow::decode(rest).expect("the block was checked");
            rest = after;
            row
        })
    }

    /// Bytes of keys and values, if the records are sound.
    fn check(&self, header: &SnapshotHeader) -> Result<u64, &'static str> {
        let mut rest = self.payload;
        let mut bytes = 0;
        for _ in 0..self.requests {
            let Some((row, after)) = RequestRow::decode(rest) else {
                return Err("a block's requests do not fit into it");
            };
            if row.sequence() > header.sequence {
                return Err("a request is newer than its snapshot");
            }
            rest = after;
        }
        for _ in 0..self.records {
            let Some((SnapshotRecord { key, record }, after)) = split_record(rest) else {
                return Err("a block's records do not fit into it");
            };
            if key.is_empty() || key.len() > KEY_BYTES_MAX || record.value.len() > BATCH_BYTES_MAX {
                return Err("a record is beyond the limits");
            }
            if record.version > header.sequence {
                return Err("a record is newer than its snapshot");
            }
            bytes += (key.len() + record.value.len()) as u64;
            rest = after;
        }
        if rest.is_empty() { Ok(bytes) } else { Err("a block holds more than its records") }
    }
}

impl SnapshotHeader {
    fn encode(&self) -> [u8; SNAPSHOT_HEADER_BYTES] {
        let kind = self.store_kind.as_bytes();
        assert!(
            (1..=KIND_BYTES).contains(&kind.len()) && kind.is_ascii(),
            "a store's kind is 1 to 16 ASCII bytes"
        );
        let mut out = [0; SNAPSHOT_HEADER_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&SNAPSHOT_VERSION.to_le_bytes());
        out[10..12].copy_from_slice(&(SNAPSHOT_HEADER_BYTES as u16).to_le_bytes());
        out[12..16].copy_from_slice(&self.partition.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.range.start().to_le_bytes());
        out[24..32].copy_from_slice(&self.range.end().to_le_bytes());
        out[32..40].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.sequence.0.to_le_bytes());
        out[48..56].copy_from_slice(&self.timestamp.0.to_le_bytes());
        out[56..64].copy_from_slice(&self.created.0.to_le_bytes());
        out[64..64 + kind.len()].copy_from_slice(kind);
        let crc = crc32c::crc32c(&out[..SNAPSHOT_HEADER_BYTES - 4]);
        out[SNAPSHOT_HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Of bytes whose checksum held.
    fn decode(bytes: &[u8]) -> Result<Self, Cow<'static, str>> {
        if bytes.len() != SNAPSHOT_HEADER_BYTES {
            return Err("the header is not as long as its version says".into());
        }
        let range = HashRange::new(u64_at(bytes, 16), u64_at(bytes, 24));
        let kind = bytes[64..64 + KIND_BYTES].split(|byte| *byte == 0).next().unwrap_or_default();
        let kind = std::str::from_utf8(kind).map_err(|_| "the store's kind is no text")?;
        Ok(Self {
            partition: PartitionId(u32_at(bytes, 12)),
            range: range.map_err(|error| error.to_string())?,
            epoch: Epoch(u64_at(bytes, 32)),
            sequence: Sequence(u64_at(bytes, 40)),
            timestamp: Timestamp(u64_at(bytes, 48)),
            created: WallClock(u64_at(bytes, 56)),
            store_kind: kind.to_owned(),
        })
    }
}

impl fmt::Display for SnapshotHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "snapshot of partition {} ({}, epoch {}) at sequence {}",
            self.partition, self.range, self.epoch, self.sequence
        )
    }
}

fn split_record(bytes: &[u8]) -> Option<(SnapshotRecord<'_>, &[u8])> {
    let (header, mut rest) = bytes.split_first_chunk::<RECORD_HEADER_BYTES>()?;
    let value_len = u32_at(header, 2);
    let mut expire_at = None;
    if value_len & EXPIRES != 0 {
        let (moment, after) = rest.split_first_chunk::<MOMENT_BYTES>()?;
        expire_at = Some(ExpireAt::from_millis(u64::from_le_bytes(*moment))?);
        rest = after;
    }
    let (key, rest) = rest.split_at_checked(usize::from(u16_at(header, 0)))?;
    let (value, rest) = rest.split_at_checked((value_len & !EXPIRES) as usize)?;
    let version = Sequence(u64_at(header, 6));
    let timestamp = Timestamp(u64_at(header, 14));
    let record = Record { value, version, timestamp, expire_at };
    Some((SnapshotRecord { key, record }, rest))
}

fn block_crc(header_crc: u32, number: u64, records: u32, payload: &[u8]) -> u32 {
    let mut start = [0; 20];
    start[..4].copy_from_slice(&header_crc.to_le_bytes());
    start[4..12].copy_from_slice(&number.to_le_bytes());
    start[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    start[16..].copy_from_slice(&records.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&start), payload)
}

fn footer_crc(header_crc: u32, fields: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header_crc.to_le_bytes()), fields)
}

fn crc_at_end(bytes: &[u8]) -> u32 {
    u32_at(bytes, bytes.len() - 4)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(*bytes[at..].first_chunk().expect("the caller checked the length"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("the caller checked the length"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("the caller checked the length"))
}
