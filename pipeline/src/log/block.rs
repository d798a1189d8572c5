//! The block: what the log writes, stamps and judges. 4 KiB, of eight sectors.
//!
//! ```text
//!  0        4            8         16      18       20             24                  52
//! ┌────────┬────────────┬─────────┬───────┬────────┬──────────────┬───────────────────┬───────────┐
//! │ crc32c │ generation │ group   │ index │ blocks │ stream bytes │ 7 displaced words │ body …    │ sector 0
//! ├────────┴───┬────────┴─────────┴───────┴────────┴──────────────┴───────────────────┴───────────┤ 512
//! │ generation │ … body …                                                                         │ sector 1
//! ├────────────┼──────────────────────────────────────────────────────────────────────────────────┤
//! │    ⋮       │                                                                                  │ … sector 7
//! └────────────┴──────────────────────────────────────────────────────────────────────────────────┘ 4096
//! ```
//! All integers are little-endian. `crc32c` covers bytes 4..52. `group` counts the groups of a log,
//! `index` is this block's place among the group's `blocks`, `stream bytes` the length of the
//! group's record stream, which is the concatenation of the bodies, 4,044 bytes each.
//!
//! **Why a stamp per sector.** A disk promises to write a sector whole, not a block. If power fails
//! in the middle of a block, a stamp in its header alone would call the block fresh while half its
//! bytes are old, and recovery would report damage to acknowledged writes where there only was a
//! torn one. So, as XFS does in its log and NTFS in its update sequence, the first word of each
//! further sector is moved into the header and the segment's generation put in its place. 52 bytes
//! in 4,096.
//!
//! **The hazard**: a flipped bit must not make a fresh block look stale, for stale means "never
//! acknowledged, cut it". Hence a header that fails its checksum is stale only when all seven
//! sector stamps say so, and a stamp that disagrees counts only when the records do not check out.

use super::{Generation, GroupNumber};

/// What the log is written in, and aligned to.
pub const BLOCK_BYTES: usize = 4096;
/// The part of a disk's write that is never torn.
pub(super) const SECTOR_BYTES: usize = 512;
const STAMPS: usize = BLOCK_BYTES / SECTOR_BYTES - 1;
const WORDS_AT: usize = 24;
/// Header of a block.
pub(super) const BLOCK_HEADER_BYTES: usize = WORDS_AT + STAMPS * 4;
/// Record stream that one block carries.
pub(super) const BODY_BYTES: usize = BLOCK_BYTES - BLOCK_HEADER_BYTES;

const _: () = assert!(BLOCK_HEADER_BYTES == 52 && BODY_BYTES == 4044);
const _: () = assert!(BLOCK_HEADER_BYTES <= SECTOR_BYTES, "the header itself is never torn");

/// Blocks of one group at most: part of the format, so that a reader knows how far to look.
pub(super) const GROUP_BLOCKS_MAX: usize =
    stateside_types::limits::LOG_GROUP_BYTES_MAX / BLOCK_BYTES;
const _: () = assert!(GROUP_BLOCKS_MAX <= u16::MAX as usize);

/// The stamp of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockHeader {
    pub(super) generation: Generation,
    pub(super) group: GroupNumber,
    pub(super) index: u16,
    pub(super) blocks: u16,
    pub(super) stream_bytes: u32,
}

/// What a block's header says, seen from a segment's generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockState {
    /// Written in this generation.
    Fresh(BlockHeader),
    /// Not written in this generation: zeros, or content of an earlier one.
    Stale,
    /// Neither can be said.
    Invalid,
}

/// What the stamps of a fresh block's further sectors say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SectorState {
    /// All were written with the header.
    Fresh,
    /// Some hold older content: the block was torn.
    SomeStale,
    /// Some hold neither this generation nor an earlier one.
    SomeInvalid,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn stamp_at(sector: usize) -> usize {
    sector * SECTOR_BYTES
}

/// Where byte `offset` of a group's record stream lies, counted from the group's first block.
pub(super) fn stream_to_block(offset: usize) -> usize {
    offset / BODY_BYTES * BLOCK_BYTES + BLOCK_HEADER_BYTES + offset % BODY_BYTES
}

/// Blocks that a record stream of this length takes.
pub(super) const fn blocks_for(stream_bytes: usize) -> usize {
    stream_bytes.div_ceil(BODY_BYTES)
}

/// Stamps a block whose body is in place.
pub(super) fn seal(block: &mut [u8], header: BlockHeader) {
    assert_eq!(block.len(), BLOCK_BYTES);
    assert!(header.generation.0 != 0, "generation 0 would look like a block never written");
    assert!(header.index < header.blocks);
    block[4..8].copy_from_slice(&header.generation.0.to_le_bytes());
    block[8..16].copy_from_slice(&header.group.0.to_le_bytes());
    block[16..18].copy_from_slice(&header.index.to_le_bytes());
    block[18..20].copy_from_slice(&header.blocks.to_le_bytes());
    block[20..24].copy_from_slice(&header.stream_bytes.to_le_bytes());
    for sector in 1..=STAMPS {
        let (at, saved) = (stamp_at(sector), WORDS_AT + (sector - 1) * 4);
        block.copy_within(at..at + 4, saved);
        block[at..at + 4].copy_from_slice(&header.generation.0.to_le_bytes());
    }
    let crc = crc32c::crc32c(&block[4..BLOCK_HEADER_BYTES]);
    block[..4].copy_from_slice(&crc.to_le_bytes());
}

/// Reads a block's header.
pub(super) fn judge(block: &[u8], generation: Generation) -> BlockState {
    assert_eq!(block.len(), BLOCK_BYTES);
    let bytes = &block[..BLOCK_HEADER_BYTES];
    if word(bytes, 0) == crc32c::crc32c(&bytes[4..]) {
        let header = BlockHeader {
            generation: Generation(word(bytes, 4)),
            group: GroupNumber(u64::from(word(bytes, 8)) | u64::from(word(bytes, 12)) << 32),
            index: (word(bytes, 16) & 0xffff) as u16,
            blocks: (word(bytes, 16) >> 16) as u16,
            stream_bytes: word(bytes, 20),
        };
        return match header.generation.0.cmp(&generation.0) {
            std::cmp::Ordering::Equal if header.is_consistent() => BlockState::Fresh(header),
            std::cmp::Ordering::Less if header.generation.0 != 0 => BlockState::Stale,
            _ => BlockState::Invalid,
        };
    }
    // Zeros (a checksum of zeros is not zero), or a stale block whose header was damaged: whoever
    // wrote this block in this generation would have left stamps in it.
    let never_written = bytes.iter().all(|byte| *byte == 0);
    let stamps_stale =
        (1..=STAMPS).all(|sector| is_stale(word(block, stamp_at(sector)), generation));
    if never_written || stamps_stale { BlockState::Stale } else { BlockState::Invalid }
}

fn is_stale(stamp: u32, generation: Generation) -> bool {
    stamp < generation.0
}

impl BlockHeader {
    fn is_consistent(&self) -> bool {
        self.index < self.blocks
            && usize::from(self.blocks) <= GROUP_BLOCKS_MAX
            && blocks_for(self.stream_bytes as usize) == usize::from(self.blocks)
    }
}

/// Judges the sector stamps of a block whose header is fresh.
pub(super) fn judge_sectors(block: &[u8], generation: Generation) -> SectorState {
    let mut state = SectorState::Fresh;
    for sector in 1..=STAMPS {
        let stamp = word(block, stamp_at(sector));
        if stamp != generation.0 {
            let found = if is_stale(stamp, generation) {
                SectorState::SomeStale
            } else {
                SectorState::SomeInvalid
            };
            state = state.max(found);
        }
    }
    state
}

/// Appends the block's body to `stream`, with the displaced words back in place.
pub(super) fn unseal(block: &[u8], stream: &mut Vec<u8>) {
    assert_eq!(block.len(), BLOCK_BYTES);
    let start = stream.len();
    stream.extend_from_slice(&block[BLOCK_HEADER_BYTES..]);
    for sector in 1..=STAMPS {
        let to = start + stamp_at(sector) - BLOCK_HEADER_BYTES;
        let from = WORDS_AT + (sector - 1) * 4;
        stream[to..to + 4].copy_from_slice(&block[from..from + 4]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(generation: u32) -> (Vec<u8>, Vec<u8>) {
        let mut block: Vec<u8> = (0..BLOCK_BYTES).map(|i| (i * 31 % 251) as u8 | 0x80).collect();
        let body = block[BLOCK_HEADER_BYTES..].to_vec();
        let header = BlockHeader {
            generation: Generation(generation),
            group: GroupNumber(0x1_0000_0007),
            index: 1,
            blocks: 3,
            stream_bytes: (2 * BODY_BYTES + 1) as u32,
        };
        seal(&mut block, header);
        (block, body)
    }

    #[test]
    fn a_sealed_block_reads_back_and_its_body_is_whole() {
        let (block, body) = sample(9);
        let BlockState::Fresh(header) = judge(&block, Generation(9)) else { panic!() };
        assert_eq!((header.group.0, header.index, header.blocks), (0x1_0000_0007, 1, 3));
        assert_eq!(judge_sectors(&block, Generation(9)), SectorState::Fresh);
        let mut stream = Vec::new();
        unseal(&block, &mut stream);
        assert_eq!(stream, body);
    }

    #[test]
    fn earlier_generations_and_zeros_are_stale_and_later_ones_invalid() {
        let (block, _) = sample(9);
        assert_eq!(judge(&block, Generation(10)), BlockState::Stale);
        assert_eq!(judge(&block, Generation(8)), BlockState::Invalid);
        assert_eq!(judge(&vec![0; BLOCK_BYTES], Generation(1)), BlockState::Stale);
    }

    #[test]
    fn no_flipped_byte_makes_a_fresh_block_stale_or_a_stale_block_fresh() {
        let (block, _) = sample(9);
        for at in 0..BLOCK_BYTES {
            for mask in [0x01, 0x80, 0xff] {
                let mut flipped = block.clone();
                flipped[at] ^= mask;
                let fresh = judge(&flipped, Generation(9));
                assert_ne!(fresh, BlockState::Stale, "byte {at}");
                assert_eq!(fresh == BlockState::Invalid, at < BLOCK_HEADER_BYTES, "byte {at}");
                assert_eq!(judge(&flipped, Generation(10)), BlockState::Stale, "byte {at}");
            }
        }
    }

    #[test]
    fn a_sector_that_did_not_land_shows() {
        let (old, _) = sample(8);
        let (new, _) = sample(9);
        for sector in 1..=STAMPS {
            let mut torn = new.clone();
            let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
            torn[range.clone()].copy_from_slice(&old[range.clone()]);
            assert_eq!(judge_sectors(&torn, Generation(9)), SectorState::SomeStale);
            torn[range].fill(0xee);
            assert_eq!(judge_sectors(&torn, Generation(9)), SectorState::SomeInvalid);
        }
        let mut torn = new;
        torn[..SECTOR_BYTES].copy_from_slice(&old[..SECTOR_BYTES]);
        assert_eq!(judge(&torn, Generation(9)), BlockState::Stale);
    }
}
