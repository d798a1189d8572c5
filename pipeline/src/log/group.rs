//! A group while it collects records: encoded straight into the memory that will be written.
//!
//! The stream skips the stamps: a record that does not end in its block goes on in the body of the
//! next. The stamps themselves come last, when the number of blocks is known.

use std::{ops::Range, time::Instant};

use stateside_types::{RequestMark, WriteEntry};

use super::{
    AlignedBuffer, BLOCK_BYTES, Durable, Generation, GroupNumber, RecordHead, RollCallEntry,
    block::{self, BLOCK_HEADER_BYTES, BODY_BYTES, BlockHeader, blocks_for, stream_to_block},
    record::{
        RECORD_HEADER_BYTES, RecordHeader, RecordKind, checksum, encode_entries,
        encode_roll_call_entry, roll_call_bytes,
    },
};

/// Where a group will lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupPlace {
    pub(super) generation: Generation,
    pub(super) number: GroupNumber,
    /// First block, counted from the segment's start.
    pub(super) first_block: u32,
    /// Blocks it may take.
    pub(super) blocks_max: u32,
}

/// One group. Belongs to a core's writer, which uses it over and over.
#[derive(Debug)]
pub(super) struct Group {
    buffer: AlignedBuffer,
    pub(super) place: GroupPlace,
    stream_bytes: usize,
    /// Writes in it.
    pub(super) records: u32,
    /// The last sequence of each partition that has records here.
    pub(super) last: Vec<Durable>,
    /// A reply waits for this group.
    pub(super) is_urgent: bool,
    /// When the first record came.
    pub(super) since: Option<Instant>,
}

impl Group {
    pub(super) fn new(bytes: usize, place: GroupPlace) -> Self {
        let buffer = AlignedBuffer::zeroed(bytes);
        let mut group = Self {
            buffer,
            place,
            stream_bytes: 0,
            records: 0,
            last: Vec::new(),
            is_urgent: false,
            since: None,
        };
        group.reset(place);
        group
    }

    /// Empties the group for its next use.
    pub(super) fn reset(&mut self, place: GroupPlace) {
        assert!(place.blocks_max as usize <= self.buffer.len() / BLOCK_BYTES);
        self.place = place;
        self.stream_bytes = 0;
        self.records = 0;
        self.last.clear();
        self.is_urgent = false;
        self.since = None;
    }

    pub(super) fn stream_bytes(&self) -> usize {
        self.stream_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.stream_bytes == 0
    }

    /// Blocks taken so far.
    pub(super) fn blocks(&self) -> u32 {
        u32::try_from(blocks_for(self.stream_bytes)).expect("at most blocks_max")
    }

    pub(super) fn fits(&self, record_bytes: usize) -> bool {
        blocks_for(self.stream_bytes + record_bytes) <= self.place.blocks_max as usize
    }

    /// Adds a write whose encoded size is `record_bytes`.
    pub(super) fn append_write(
        &mut self,
        head: RecordHead,
        request: Option<&RequestMark<'_>>,
        entries: &[WriteEntry<'_>],
        record_bytes: usize,
    ) {
        let count = u16::try_from(entries.len()).expect("at most BATCH_ENTRIES_MAX");
        let kind = if request.is_some() { RecordKind::MarkedWrite } else { RecordKind::Write };
        self.append(head, kind, count, record_bytes, |stream| {
            if let Some(mark) = request {
                mark.encode(&mut |piece| stream.put(piece));
            }
            encode_entries(head.timestamp, entries, |piece| stream.put(piece));
        });
        self.records += 1;
    }

    /// Adds a roll call of `count` lines.
    pub(super) fn append_roll_call(
        &mut self,
        count: u16,
        lines: impl Iterator<Item = RollCallEntry>,
    ) {
        let nobody = RecordHead {
            partition: Default::default(),
            epoch: Default::default(),
            sequence: Default::default(),
            timestamp: Default::default(),
        };
        let record_bytes = roll_call_bytes(usize::from(count));
        self.append(nobody, RecordKind::RollCall, count, record_bytes, |stream| {
            lines.for_each(|line| stream.put(&encode_roll_call_entry(&line)));
        });
    }

    fn append(
        &mut self,
        head: RecordHead,
        kind: RecordKind,
        entries: u16,
        record_bytes: usize,
        encode: impl FnOnce(&mut Stream<'_>),
    ) {
        assert!(self.fits(record_bytes), "the caller opens a new group first");
        let generation = self.place.generation;
        let payload_bytes = record_bytes - RECORD_HEADER_BYTES;
        let mut header = RecordHeader {
            head,
            kind,
            entries,
            payload_bytes: u32::try_from(payload_bytes).expect("far below 4 GiB"),
            payload_crc: 0,
        };
        let start = self.stream_bytes;
        let payload = start + RECORD_HEADER_BYTES..start + record_bytes;
        let mut stream = Stream::at(&mut self.buffer, payload.start);
        encode(&mut stream);
        assert_eq!(stream.offset(), payload.end, "the size given is the size encoded");
        header.payload_crc = stream_checksum(&self.buffer, payload, generation.0);
        Stream::at(&mut self.buffer, start).put(&header.encode(generation));
        self.stream_bytes += record_bytes;
    }

    /// Stamps the blocks. Returns how many bytes of the buffer to write.
    pub(super) fn seal(&mut self) -> usize {
        assert!(!self.is_empty());
        let blocks = self.blocks() as usize;
        // The end of the last block still holds what this buffer was used for before: other
        // people's records do not belong on the disk a second time.
        let end = stream_to_block(self.stream_bytes - 1) + 1;
        self.buffer[end..blocks * BLOCK_BYTES].fill(0);
        for (index, block) in
            self.buffer[..blocks * BLOCK_BYTES].chunks_exact_mut(BLOCK_BYTES).enumerate()
        {
            let header = BlockHeader {
                generation: self.place.generation,
                group: self.place.number,
                index: u16::try_from(index).expect("GROUP_BLOCKS_MAX fits"),
                blocks: u16::try_from(blocks).expect("GROUP_BLOCKS_MAX fits"),
                stream_bytes: u32::try_from(self.stream_bytes).expect("at most 2 MiB"),
            };
            block::seal(block, header);
        }
        blocks * BLOCK_BYTES
    }

    /// The sealed bytes, and whatever lies behind them.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer
    }
}

/// The checksum of a part of the stream, around the stamps. Of what has been encoded, a block at a
/// time: piece by piece, most of the time would go into the pieces' unaligned ends.
fn stream_checksum(buffer: &[u8], part: Range<usize>, seed: u32) -> u32 {
    let (mut crc, mut offset) = (seed, part.start);
    while offset < part.end {
        let at = stream_to_block(offset);
        let bytes = (BODY_BYTES - offset % BODY_BYTES).min(part.end - offset);
        crc = checksum(crc, &buffer[at..at + bytes]);
        offset += bytes;
    }
    crc
}

/// Writes to the stream, around the stamps.
struct Stream<'a> {
    buffer: &'a mut [u8],
    /// The next byte's place in the buffer.
    at: usize,
    /// Bytes up to the end of its block.
    room: usize,
}

impl<'a> Stream<'a> {
    fn at(buffer: &'a mut [u8], offset: usize) -> Self {
        Self { at: stream_to_block(offset), room: BODY_BYTES - offset % BODY_BYTES, buffer }
    }

    /// How far the stream has come.
    fn offset(&self) -> usize {
        let full_blocks = (self.at + self.room) / BLOCK_BYTES;
        full_blocks * BODY_BYTES - self.room
    }

    #[inline]
    fn put(&mut self, piece: &[u8]) {
        if piece.len() <= self.room {
            copy(&mut self.buffer[self.at..self.at + piece.len()], piece);
            self.at += piece.len();
            self.room -= piece.len();
        } else {
            self.put_split(piece);
        }
    }

    #[cold]
    fn put_split(&mut self, mut piece: &[u8]) {
        while piece.len() > self.room {
            let (now, later) = piece.split_at(self.room);
            self.buffer[self.at..self.at + now.len()].copy_from_slice(now);
            self.at += self.room + BLOCK_HEADER_BYTES;
            self.room = BODY_BYTES;
            piece = later;
        }
        self.buffer[self.at..self.at + piece.len()].copy_from_slice(piece);
        self.at += piece.len();
        self.room -= piece.len();
    }
}

/// Keys are short, and a call to copy one costs more than the copy.
#[inline]
fn copy(to: &mut [u8], from: &[u8]) {
    const SHORT: usize = 16;
    if let (SHORT..=32, Some(first), Some(last)) =
        (from.len(), from.first_chunk::<SHORT>(), from.last_chunk::<SHORT>())
    {
        // Two that overlap.
        to[..SHORT].copy_from_slice(first);
        to[from.len() - SHORT..].copy_from_slice(last);
    } else {
        to.copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_every_length_land_in_the_stream_around_the_stamps() {
        const BLOCKS: usize = 3;
        let whole: Vec<u8> = (0..BLOCKS * BODY_BYTES).map(|at| (at % 251) as u8 + 1).collect();
        for length in (0..70).chain([BODY_BYTES - 1, BODY_BYTES, BODY_BYTES + 1, whole.len()]) {
            let mut buffer = vec![0; BLOCKS * BLOCK_BYTES];
            let mut stream = Stream::at(&mut buffer, 0);
            for piece in whole.chunks(length.max(1)) {
                stream.put(&piece[..0]);
                stream.put(piece);
            }
            assert_eq!(stream.offset(), whole.len(), "pieces of {length}");
            for (block, body) in buffer.chunks(BLOCK_BYTES).zip(whole.chunks(BODY_BYTES)) {
                let (stamps, found) = block.split_at(BLOCK_HEADER_BYTES);
                assert!(stamps.iter().all(|byte| *byte == 0), "pieces of {length}");
                assert_eq!(found, body, "pieces of {length}");
            }
        }
    }
}
