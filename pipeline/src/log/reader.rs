//! The reader: one run of segments back into records, and a verdict on whatever does not fit.
//!
//! A run is what one process wrote; its groups are numbered without gaps and follow each other from
//! block to block and from segment to segment. At every step the reader expects group `G` at one
//! place and finds there:
//!
//! ```text
//!  block at the place        and                                  verdict
//!  ───────────────────────   ──────────────────────────────────   ─────────────────────────────
//!  fresh, G, index 0         its blocks all fresh, records good    deliver, expect G+1
//!                            all fresh, a record bad               damage (may be acknowledged)
//!                              … and a sector older than the group torn *
//!                            some stale, none invalid              torn *
//!                            some invalid                          damage
//!  stale                     nothing fresh behind it               end of the run
//!                            the next segment begins with G        go on there
//!                            only blocks of G behind it            torn *
//!                            a group above G behind it             damage
//!  anything else                                                   damage
//!
//!  * torn, if nothing of a later group exists anywhere: else damage. One write is under way at a
//!    time, so a later group proves that this one was complete, and perhaps acknowledged.
//! ```
//! After damage the reader goes on at the next block that begins a group above `G`.
//!
//! Groups from the next run's first on are void (`segment_header` says why), and are not looked at.
//!
//! **The hazard** is to call damage torn: it would drop acknowledged writes without a word. Every
//! doubt is therefore settled the other way, and `reader_tests` flips every byte of a log to see.

use stateside_types::{RequestMark, WriteEntry};

use super::{
    BLOCK_BYTES, Generation, GroupNumber, RecordHead, RollCallEntry,
    block::{
        BlockHeader, BlockState, GROUP_BLOCKS_MAX, SectorState, blocks_for, judge, judge_sectors,
        stream_to_block, unseal,
    },
    record::{
        RECORD_HEADER_BYTES, RecordHeader, RecordKind, checksum, decode_entries, decode_mark,
        decode_roll_call,
    },
};

/// The bytes of one segment file.
pub trait SegmentSource {
    /// Fills `into` with what lies at `offset`, and returns how much of it exists: less than asked
    /// only where the file ends. Blocks that the medium cannot read are to be filled with
    /// [`Self::UNREADABLE`], which no judgement takes for anything.
    fn read(&mut self, offset: u64, into: &mut [u8]) -> usize;

    /// What stands for a byte that could not be read.
    const UNREADABLE: u8 = 0xdb;
}

/// One segment of a run.
#[derive(Debug)]
pub struct SegmentInput<S> {
    /// From its header (or, when that is damaged, from its file's name).
    pub generation: Generation,
    /// From its header.
    pub blocks: u32,
    /// Its header is damaged in both copies: nothing of the segment is believed, and `blocks` does
    /// not matter. It stands in its place so that the loss is judged there.
    pub is_header_damaged: bool,
    /// Its bytes.
    pub source: S,
}

/// Which groups to expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunRange {
    /// The run's first group, from its headers.
    pub first_group: GroupNumber,
    /// Whether the run's first segment is among those to read; otherwise it was released, and the
    /// oldest that is left begins anywhere from `first_group` on.
    pub has_first_segment: bool,
    /// The first group of the next run: from here on this one is void. None: this is the last.
    pub cut: Option<GroupNumber>,
}

/// Where a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunEnd {
    /// The group that a next run begins with.
    pub next_group: GroupNumber,
    /// The last write of the run was torn, and is cut.
    pub torn: Option<TornTail>,
    /// Groups whose records were all read.
    pub groups: u64,
}

/// A group that never was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// Segment.
    pub generation: Generation,
    /// Byte in its file where the group was to begin.
    pub offset: u64,
    /// The group.
    pub group: GroupNumber,
}

/// Bytes that are not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Segment.
    pub generation: Generation,
    /// First byte in its file that is lost.
    pub offset: u64,
    /// How many bytes are lost with it.
    pub bytes: u64,
    /// What does not fit.
    pub kind: DamageKind,
    /// Whose records were there.
    pub scope: DamageScope,
}

/// What does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DamageKind {
    /// A block's stamp fails its checksum.
    #[error("a block's stamp is damaged")]
    Block,
    /// The file is shorter than its header says.
    #[error("the file ends too early")]
    FileTooShort,
    /// A complete group has to be here.
    #[error("group {expected} is missing")]
    GroupMissing {
        /// The group.
        expected: GroupNumber,
    },
    /// A group is incomplete though a later one exists.
    #[error("group {group} is incomplete although later ones exist")]
    GroupIncomplete {
        /// The group.
        group: GroupNumber,
    },
    /// A record's header fails its checksum; the rest of its group is lost with it.
    #[error("a record's header is damaged")]
    RecordHeader,
    /// A record's payload fails its checksum or is malformed.
    #[error("a record's payload is damaged")]
    RecordPayload,
    /// A segment's header is damaged; without it the segment is not read.
    #[error("the segment's header is damaged")]
    SegmentHeader,
}

/// Whose records were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageScope {
    /// Any partition of the log may have had records there.
    Unknown,
    /// Exactly this record.
    Record(RecordHead),
    /// Nobody's: a roll call.
    Nobody,
}

/// Takes what the reader finds, in the order of the log.
pub trait ReplaySink {
    /// A write that checks out. Whether its entries are wanted.
    fn wants(&mut self, generation: Generation, offset: u64, head: &RecordHead) -> bool;
    /// The entries of the write that was wanted last, and the mark of its request.
    fn write(
        &mut self,
        head: &RecordHead,
        request: Option<&RequestMark<'_>>,
        entries: &[WriteEntry<'_>],
    );
    /// A line of a roll call.
    fn roll_call(&mut self, generation: Generation, offset: u64, line: RollCallEntry);
    /// Something is lost.
    fn damage(&mut self, damage: Damage);
}

/// Memory that reading needs; one set serves any number of runs.
#[derive(Debug)]
pub struct ReadBuffers {
    window: Vec<u8>,
    stream: Vec<u8>,
    entries: Vec<WriteEntry<'static>>,
}

const WINDOW_BYTES: usize = 2 * GROUP_BLOCKS_MAX * BLOCK_BYTES;

impl Default for ReadBuffers {
    fn default() -> Self {
        Self { window: vec![0; WINDOW_BYTES], stream: Vec::new(), entries: Vec::new() }
    }
}

/// Reads a run: its segments in the order of their generations.
pub fn read_run<S: SegmentSource>(
    segments: &mut [SegmentInput<S>],
    range: RunRange,
    buffers: &mut ReadBuffers,
    sink: &mut impl ReplaySink,
) -> RunEnd {
    let ReadBuffers { window, stream, entries } = buffers;
    let window = Window { bytes: window, segment: usize::MAX, first_block: 0, blocks: 0 };
    let mut reader = RunReader { segments, window, stream, cut: range.cut, sink, groups: 0 };
    let mut recycled = std::mem::take(entries);
    let end = reader.run(range, &mut recycled);
    *entries = recycled;
    end
}

/// A place in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    segment: usize,
    block: u32,
}

/// What the reader waits for.
#[derive(Clone, Copy, Debug)]
struct Expected {
    group: GroupNumber,
    /// False: this group or any later one.
    is_exact: bool,
}

/// What is under a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Fresh(BlockHeader),
    Stale,
    Invalid,
    /// Behind the end of the file.
    Missing,
}

/// How a group with fresh beginning turned out.
enum GroupVerdict {
    /// Its records were delivered or reported one by one.
    Read,
    /// Never acknowledged, unless a later group exists.
    Incomplete,
    Damaged(DamageKind),
}

struct RunReader<'a, S, K> {
    segments: &'a mut [SegmentInput<S>],
    window: Window<'a>,
    stream: &'a mut Vec<u8>,
    cut: Option<GroupNumber>,
    sink: &'a mut K,
    groups: u64,
}

impl<S: SegmentSource, K: ReplaySink> RunReader<'_, S, K> {
    fn run(&mut self, range: RunRange, entries: &mut Vec<WriteEntry<'static>>) -> RunEnd {
        let mut place = Place { segment: 0, block: 1 };
        let mut expected = Expected { group: range.first_group, is_exact: range.has_first_segment };
        loop {
            if self.cut.is_some_and(|cut| expected.group >= cut) {
                return self.end(expected.group, None);
            }
            let Some(place_now) = self.normalise(place) else {
                return self.end_of_segments(place, expected);
            };
            place = place_now;
            let found = self.look(place);
            let begins = match found {
                Found::Fresh(header) if header.index == 0 && expected.admits(header.group) => {
                    Some(header)
                }
                _ => None,
            };
            let Some(header) = begins else {
                match self.without_group(place, expected, found) {
                    Ok((next_place, next_expected)) => {
                        (place, expected) = (next_place, next_expected);
                        continue;
                    }
                    Err(end) => return end,
                }
            };
            if self.cut.is_some_and(|cut| header.group >= cut) {
                // Only possible while the beginning is unknown: all that is left is void.
                return self.end(expected.group, None);
            }
            let group = header.group;
            let behind = Place { block: place.block + u32::from(header.blocks), ..place };
            match self.read_group(place, header, entries) {
                GroupVerdict::Read => {
                    self.groups += 1;
                    (place, expected) = (behind, Expected::exactly(group.next()));
                }
                GroupVerdict::Incomplete => {
                    if self.cut.is_none() && self.find_after(place, group.next(), false).is_none() {
                        return self.torn(place, group);
                    }
                    let kind = DamageKind::GroupIncomplete { group };
                    match self.resync(place, header.blocks, group, kind) {
                        Ok(next) => (place, expected) = next,
                        Err(end) => return end,
                    }
                }
                GroupVerdict::Damaged(kind) => match self.resync(place, header.blocks, group, kind)
                {
                    Ok(next) => (place, expected) = next,
                    Err(end) => return end,
                },
            }
        }
    }

    /// The place is not where the group begins that is expected.
    fn without_group(
        &mut self,
        place: Place,
        expected: Expected,
        found: Found,
    ) -> Result<(Place, Expected), RunEnd> {
        let kind = match found {
            Found::Missing if self.segments[place.segment].is_header_damaged => {
                DamageKind::SegmentHeader
            }
            Found::Missing => DamageKind::FileTooShort,
            Found::Invalid => DamageKind::Block,
            Found::Fresh(_) => DamageKind::GroupMissing { expected: expected.group },
            Found::Stale => {
                let Some((at, header)) = self.find_after(place, expected.group, false) else {
                    return self.end_of_fresh(place, expected);
                };
                let begins_segment = at.segment > place.segment && at.block == 1;
                if begins_segment && header.index == 0 && expected.admits(header.group) {
                    return Ok((at, expected));
                }
                // Where the group that this block belongs to began.
                let begin = Place { block: at.block - u32::from(header.index), ..at };
                let is_here = begin == place || (at.segment > place.segment && begin.block == 1);
                let is_last = header.index > 0
                    && is_here
                    && expected.admits(header.group)
                    && self.cut.is_none()
                    && self.find_after(at, header.group.next(), false).is_none();
                if is_last {
                    return Err(self.torn(begin, header.group));
                }
                DamageKind::GroupMissing { expected: expected.group }
            }
        };
        self.resync(place, 1, expected.group, kind)
    }

    /// Nothing fresh is left behind a stale place: the run ends here, unless the next one says
    /// that it went on.
    fn end_of_fresh(
        &mut self,
        place: Place,
        expected: Expected,
    ) -> Result<(Place, Expected), RunEnd> {
        if expected.is_exact
            && let Some(cut) = self.cut
        {
            assert!(expected.group < cut, "checked before the place was looked at");
            let kind = DamageKind::GroupMissing { expected: expected.group };
            return self.resync(place, 1, expected.group, kind);
        }
        Err(self.end(expected.group, None))
    }

    /// No segment is left to look into.
    fn end_of_segments(&mut self, place: Place, expected: Expected) -> RunEnd {
        if expected.is_exact && self.cut.is_some() && !self.segments.is_empty() {
            // The last segment is full, and the one behind it is gone.
            let segment = &self.segments[place.segment.min(self.segments.len() - 1)];
            self.sink.damage(Damage {
                generation: segment.generation,
                offset: u64::from(segment.blocks) * BLOCK_BYTES as u64,
                bytes: 0,
                kind: DamageKind::GroupMissing { expected: expected.group },
                scope: DamageScope::Unknown,
            });
        }
        self.end(expected.group, None)
    }

    fn end(&self, next_group: GroupNumber, torn: Option<TornTail>) -> RunEnd {
        RunEnd { next_group: self.cut.unwrap_or(next_group), torn, groups: self.groups }
    }

    fn torn(&self, place: Place, group: GroupNumber) -> RunEnd {
        let (generation, offset) = (self.generation(place), offset_of(place));
        self.end(group, Some(TornTail { generation, offset, group }))
    }

    /// Reports that `group`, expected at `place`, is lost with at least `blocks`, and finds where
    /// to go on.
    fn resync(
        &mut self,
        place: Place,
        blocks: u16,
        group: GroupNumber,
        kind: DamageKind,
    ) -> Result<(Place, Expected), RunEnd> {
        // A group found where it does not belong begins no sequence that could be trusted: only
        // those above the one that is lost.
        let next = self.find_after(place, group.next(), true);
        let end_block = match next {
            Some((at, _)) if at.segment == place.segment => at.block,
            _ if kind == DamageKind::FileTooShort => self.segments[place.segment].blocks,
            _ => place.block + u32::from(blocks),
        };
        self.sink.damage(Damage {
            generation: self.generation(place),
            offset: offset_of(place),
            bytes: u64::from(end_block - place.block) * BLOCK_BYTES as u64,
            kind,
            scope: DamageScope::Unknown,
        });
        match next {
            Some((at, header)) => Ok((at, Expected::exactly(header.group))),
            None => {
                // Parts of later groups may lie here without their beginnings: their numbers are
                // used up.
                let mut next_group = group.next();
                let mut from = place;
                while let Some((at, header)) = self.find_after(from, next_group, false) {
                    next_group = header.group.next();
                    from = at;
                }
                Err(self.end(next_group, None))
            }
        }
    }

    /// Moves from behind a segment's last block to the next segment. None: there is no next.
    fn normalise(&self, place: Place) -> Option<Place> {
        let segment = self.segments.get(place.segment)?;
        if place.block < segment.blocks.max(2) {
            return Some(place);
        }
        let next = Place { segment: place.segment + 1, block: 1 };
        (next.segment < self.segments.len()).then_some(next)
    }

    fn generation(&self, place: Place) -> Generation {
        self.segments[place.segment].generation
    }

    /// The first fresh block behind `place` of a group from `group` on (and not void); of its
    /// first block only, if `beginning` is set.
    fn find_after(
        &mut self,
        place: Place,
        group: GroupNumber,
        beginning: bool,
    ) -> Option<(Place, BlockHeader)> {
        let mut place = Place { block: place.block + 1, ..place };
        while place.segment < self.segments.len() {
            // Segments are made ahead of time, so there may be whole ones at the end that were
            // never written to. It is enough to see that not even a lost first group can have
            // been followed by anything.
            let mut is_unused = place.block == 1;
            while place.block < self.segments[place.segment].blocks {
                match self.look(place) {
                    Found::Fresh(header)
                        if header.group >= group
                            && self.cut.is_none_or(|cut| header.group < cut)
                            && (header.index == 0 || !beginning) =>
                    {
                        return Some((place, header));
                    }
                    Found::Missing => break,
                    found => is_unused &= found == Found::Stale,
                }
                if is_unused && place.block as usize > GROUP_BLOCKS_MAX {
                    break;
                }
                place.block += 1;
            }
            place = Place { segment: place.segment + 1, block: 1 };
        }
        None
    }

    fn look(&mut self, place: Place) -> Found {
        let segment = &mut self.segments[place.segment];
        if segment.is_header_damaged {
            return Found::Missing;
        }
        let Some(block) = self.window.blocks(segment, place, 1) else { return Found::Missing };
        match judge(block, segment.generation) {
            // A group does not reach over its segment's end, nor begin before its data.
            BlockState::Fresh(header)
                if u32::from(header.index) < place.block
                    && place.block - u32::from(header.index) + u32::from(header.blocks)
                        <= segment.blocks =>
            {
                Found::Fresh(header)
            }
            BlockState::Fresh(_) | BlockState::Invalid => Found::Invalid,
            BlockState::Stale => Found::Stale,
        }
    }

    fn read_group(
        &mut self,
        place: Place,
        first: BlockHeader,
        entries: &mut Vec<WriteEntry<'static>>,
    ) -> GroupVerdict {
        let segment = &mut self.segments[place.segment];
        let generation = segment.generation;
        let count = u32::from(first.blocks);
        let Some(blocks) = self.window.blocks(segment, place, count) else {
            return GroupVerdict::Damaged(DamageKind::FileTooShort);
        };
        let mut is_complete = true;
        let mut sectors = SectorState::Fresh;
        self.stream.clear();
        for (index, block) in blocks.chunks_exact(BLOCK_BYTES).enumerate() {
            let wanted = BlockHeader { index: index as u16, ..first };
            match judge(block, generation) {
                BlockState::Fresh(header) if header == wanted => {
                    sectors = sectors.max(judge_sectors(block, generation));
                    unseal(block, self.stream);
                }
                BlockState::Stale => is_complete = false,
                BlockState::Fresh(_) | BlockState::Invalid => {
                    return GroupVerdict::Damaged(DamageKind::Block);
                }
            }
        }
        if !is_complete {
            return GroupVerdict::Incomplete;
        }
        assert_eq!(
            blocks_for(first.stream_bytes as usize),
            count as usize,
            "judged with the stamp"
        );
        self.stream.truncate(first.stream_bytes as usize);
        if sectors == SectorState::SomeStale && !checks_out(self.stream, generation) {
            return GroupVerdict::Incomplete;
        }
        let base = offset_of(place);
        let recycled = recycle(std::mem::take(entries));
        *entries = recycle(deliver(self.stream, generation, base, self.sink, recycled));
        GroupVerdict::Read
    }
}

impl Expected {
    fn exactly(group: GroupNumber) -> Self {
        Self { group, is_exact: true }
    }

    fn admits(self, group: GroupNumber) -> bool {
        if self.is_exact { group == self.group } else { group >= self.group }
    }
}

fn offset_of(place: Place) -> u64 {
    u64::from(place.block) * BLOCK_BYTES as u64
}

/// Empties the vector and keeps its memory for entries that borrow from elsewhere: collecting an
/// emptied vector's iterator into a vector of the same layout reuses the allocation.
fn recycle<'a>(mut entries: Vec<WriteEntry<'_>>) -> Vec<WriteEntry<'a>> {
    entries.clear();
    entries.into_iter().map(|_| unreachable!("emptied just now")).collect()
}

/// The record at `offset` of a stream: its header and its payload. None: the header is damaged.
fn record_at(
    stream: &[u8],
    offset: usize,
    generation: Generation,
) -> Option<(RecordHeader, &[u8])> {
    let (header, rest) = stream[offset..].split_first_chunk::<RECORD_HEADER_BYTES>()?;
    let header = RecordHeader::decode(header, generation)?;
    Some((header, rest.get(..header.payload_bytes as usize)?))
}

/// Whether every record of a stream passes its checksums.
fn checks_out(stream: &[u8], generation: Generation) -> bool {
    let mut offset = 0;
    while offset < stream.len() {
        match record_at(stream, offset, generation) {
            Some((header, payload)) if checksum(generation.0, payload) == header.payload_crc => {
                offset += RECORD_HEADER_BYTES + payload.len();
            }
            _ => return false,
        }
    }
    true
}

/// Hands out the records of a complete group and reports those that do not check out.
fn deliver<'a>(
    stream: &'a [u8],
    generation: Generation,
    base: u64,
    sink: &mut impl ReplaySink,
    mut entries: Vec<WriteEntry<'a>>,
) -> Vec<WriteEntry<'a>> {
    let place = |offset: usize| base + stream_to_block(offset) as u64;
    let damage = |from: usize, to: usize, kind, scope| Damage {
        generation,
        offset: place(from),
        bytes: place(to - 1) + 1 - place(from),
        kind,
        scope,
    };
    let mut offset = 0;
    while offset < stream.len() {
        let Some((header, payload)) = record_at(stream, offset, generation) else {
            let lost = damage(offset, stream.len(), DamageKind::RecordHeader, DamageScope::Unknown);
            sink.damage(lost);
            return entries;
        };
        let end = offset + RECORD_HEADER_BYTES + payload.len();
        let is_good = checksum(generation.0, payload) == header.payload_crc
            && match header.kind {
                RecordKind::Write | RecordKind::MarkedWrite
                    if !sink.wants(generation, place(offset), &header.head) =>
                {
                    true
                }
                RecordKind::Write | RecordKind::MarkedWrite => {
                    let is_marked = header.kind == RecordKind::MarkedWrite;
                    let decoded = decode_mark(payload, is_marked).and_then(|(request, payload)| {
                        decode_entries(payload, header.entries, &mut entries)?;
                        Some(request)
                    });
                    if let Some(request) = &decoded {
                        sink.write(&header.head, request.as_ref(), &entries);
                    }
                    decoded.is_some()
                }
                RecordKind::RollCall => match decode_roll_call(payload, header.entries) {
                    Some(lines) => {
                        lines.for_each(|line| sink.roll_call(generation, place(offset), line));
                        true
                    }
                    None => false,
                },
            };
        if !is_good {
            let scope = match header.kind {
                RecordKind::Write | RecordKind::MarkedWrite => DamageScope::Record(header.head),
                RecordKind::RollCall => DamageScope::Nobody,
            };
            sink.damage(damage(offset, end, DamageKind::RecordPayload, scope));
        }
        offset = end;
    }
    entries
}

/// The part of a segment that is in memory.
struct Window<'a> {
    bytes: &'a mut [u8],
    segment: usize,
    first_block: u32,
    blocks: u32,
}

impl Window<'_> {
    /// `count` blocks from `place` on. None: the file ends before them.
    fn blocks<S: SegmentSource>(
        &mut self,
        segment: &mut SegmentInput<S>,
        place: Place,
        count: u32,
    ) -> Option<&[u8]> {
        assert!(count as usize * BLOCK_BYTES <= self.bytes.len(), "a group fits the window");
        let is_inside = |window: &Self| {
            window.segment == place.segment
                && window.first_block <= place.block
                && place.block + count <= window.first_block + window.blocks
        };
        if !is_inside(self) {
            self.fill(segment, place);
            if !is_inside(self) {
                return None;
            }
        }
        let start = (place.block - self.first_block) as usize * BLOCK_BYTES;
        Some(&self.bytes[start..start + count as usize * BLOCK_BYTES])
    }

    /// Makes the window begin at `place`, keeping what it has of it.
    fn fill<S: SegmentSource>(&mut self, segment: &mut SegmentInput<S>, place: Place) {
        let window_end = self.first_block + self.blocks;
        let overlaps =
            self.segment == place.segment && (self.first_block..window_end).contains(&place.block);
        let mut have = 0;
        if overlaps {
            let from = (place.block - self.first_block) as usize * BLOCK_BYTES;
            let to = self.blocks as usize * BLOCK_BYTES;
            self.bytes.copy_within(from..to, 0);
            have = to - from;
        }
        let wanted = (segment.blocks.saturating_sub(place.block) as usize * BLOCK_BYTES)
            .min(self.bytes.len());
        let offset = offset_of(place) + have as u64;
        let got = if have < wanted {
            segment.source.read(offset, &mut self.bytes[have..wanted])
        } else {
            0
        };
        self.segment = place.segment;
        self.first_block = place.block;
        self.blocks = u32::try_from((have + got) / BLOCK_BYTES).expect("the window is small");
    }
}
