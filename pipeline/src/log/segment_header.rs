//! The first block of a segment file: which log and which run of it the segment belongs to.
//!
//! ```text
//!  0          8         12       16           20     22    24          32               40
//! ┌──────────┬─────────┬────────┬────────────┬──────┬─────┬───────────┬────────────────┬──────
//! │ magic    │ version │ crc32c │ generation │ core │ 0   │ placement │ run's first    │
//! │ STSDLOG\n│ u32     │ u32    │ u32        │ u16  │ u16 │ u64       │ group, u64     │
//! └──────────┴─────────┴────────┴────────────┴──────┴─────┴───────────┴────────────────┴──────
//!  40           44   48              56                     64
//! ┌────────────┬────┬───────────────┬──────────────────────┐
//! │ run's first│ 0  │ segment bytes │ 0                    │   the same 64 bytes again at 2048;
//! │ generation │    │ u64           │                      │   the rest of the block is zero
//! └────────────┴────┴───────────────┴──────────────────────┘
//! ```
//! `crc32c` covers the 64 bytes with itself taken as zero. Magic, version, checksum and these 64
//! bytes keep their places in every later version, so any release can name the version it found.
//! There are two copies, in different sectors: one damaged sector does not cost a segment.
//!
//! **The run's first group** is how a torn tail stays cut. A *run* is what one process wrote, from
//! its start to its end: segments with one `run's first generation`. Every run begins in a segment
//! of its own, and states in each of its headers which group it began with. Whatever earlier runs
//! hold from that group on is void, whether it was torn, or was still on its way to the disk when
//! its process was killed and landed after recovery had looked. Nothing is erased to cut a tail, so
//! there is no step at which a crash could leave it half cut.

use stateside_types::CoreId;

use super::{BLOCK_BYTES, Generation, GroupNumber, Placement};

/// The version of the log's format that this release writes. Version 2 knows records that expire, version
/// 3 request ids. What version 2 has reads the same.
pub const FORMAT_VERSION: u32 = 3;
/// The oldest version that this release reads.
pub const FORMAT_VERSION_MIN: u32 = 2;
const MAGIC: [u8; 8] = *b"STSDLOG\n";
const COPY_BYTES: usize = 64;
const COPIES_AT: [usize; 2] = [0, BLOCK_BYTES / 2];

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The segment's own number: unique in its log and rising; a recycled file gets a new one.
    pub generation: Generation,
    /// Whose log it is.
    pub core: CoreId,
    /// Which distribution of partitions over cores the run was written under.
    pub placement: Placement,
    /// The group that the run began with; what earlier runs hold from there on is void.
    pub run_first_group: GroupNumber,
    /// Generation of the run's first segment: names the run.
    pub run_first_generation: Generation,
    /// Size of the file, bytes.
    pub segment_bytes: u64,
}

/// Why a block is no segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Written by another version of the format.
    #[error(
        "log format version {found}, this release reads versions {FORMAT_VERSION_MIN} to {FORMAT_VERSION}"
    )]
    Version {
        /// The version in the file.
        found: u32,
    },
    /// Neither copy checks out.
    #[error("the segment's header is damaged")]
    Damaged,
}

impl SegmentHeader {
    /// Blocks of the segment, its header included.
    pub fn blocks(&self) -> u32 {
        u32::try_from(self.segment_bytes / BLOCK_BYTES as u64)
            .expect("checked when the header was read, and by configuration when written")
    }

    /// The header as the segment's first block.
    pub fn encode(&self, block: &mut [u8]) {
        assert_eq!(block.len(), BLOCK_BYTES);
        assert!(self.is_consistent(), "an inconsistent header must not reach the disk: {self:?}");
        let mut copy = [0; COPY_BYTES];
        copy[..8].copy_from_slice(&MAGIC);
        copy[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        copy[16..20].copy_from_slice(&self.generation.0.to_le_bytes());
        copy[20..22].copy_from_slice(&self.core.0.to_le_bytes());
        copy[24..32].copy_from_slice(&self.placement.0.to_le_bytes());
        copy[32..40].copy_from_slice(&self.run_first_group.0.to_le_bytes());
        copy[40..44].copy_from_slice(&self.run_first_generation.0.to_le_bytes());
        copy[48..56].copy_from_slice(&self.segment_bytes.to_le_bytes());
        let crc = crc32c::crc32c(&copy);
        copy[12..16].copy_from_slice(&crc.to_le_bytes());
        block.fill(0);
        for at in COPIES_AT {
            block[at..at + COPY_BYTES].copy_from_slice(&copy);
        }
    }

    /// Reads a segment's first block.
    ///
    /// # Errors
    /// [`HeaderError`]; a wrong version is named only when nothing of this version is there.
    pub fn decode(block: &[u8]) -> Result<Self, HeaderError> {
        let mut error = HeaderError::Damaged;
        for at in COPIES_AT {
            let Some(copy) = block.get(at..at + COPY_BYTES) else { continue };
            match Self::decode_copy(copy) {
                Ok(header) => return Ok(header),
                Err(HeaderError::Version { found }) => error = HeaderError::Version { found },
                Err(HeaderError::Damaged) => {}
            }
        }
        Err(error)
    }

    fn decode_copy(copy: &[u8]) -> Result<Self, HeaderError> {
        let u32_at = |at: usize| u32::from_le_bytes(copy[at..at + 4].try_into().expect("four"));
        let u64_at = |at: usize| u64::from_le_bytes(copy[at..at + 8].try_into().expect("eight"));
        if copy[..8] != MAGIC {
            return Err(HeaderError::Damaged);
        }
        let version = u32_at(8);
        if !(FORMAT_VERSION_MIN..=FORMAT_VERSION).contains(&version) {
            // Not checked against the checksum: a header that names another version is refused in
            // either case, and this sentence helps more than "damaged".
            return Err(HeaderError::Version { found: version });
        }
        let mut unsummed: [u8; COPY_BYTES] = copy.try_into().expect("the caller cut it to size");
        unsummed[12..16].fill(0);
        if crc32c::crc32c(&unsummed) != u32_at(12) {
            return Err(HeaderError::Damaged);
        }
        let header = Self {
            generation: Generation(u32_at(16)),
            core: CoreId((u32_at(20) & 0xffff) as u16),
            placement: Placement(u64_at(24)),
            run_first_group: GroupNumber(u64_at(32)),
            run_first_generation: Generation(u32_at(40)),
            segment_bytes: u64_at(48),
        };
        if header.is_consistent() { Ok(header) } else { Err(HeaderError::Damaged) }
    }

    fn is_consistent(&self) -> bool {
        let blocks = self.segment_bytes / BLOCK_BYTES as u64;
        self.generation.0 != 0
            && self.run_first_generation.0 != 0
            && self.run_first_generation <= self.generation
            && self.segment_bytes.is_multiple_of(BLOCK_BYTES as u64)
            && blocks >= 2
            && u32::try_from(blocks).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> SegmentHeader {
        SegmentHeader {
            generation: Generation(12),
            core: CoreId(3),
            placement: Placement(7),
            run_first_group: GroupNumber(1 << 40),
            run_first_generation: Generation(11),
            segment_bytes: 64 << 20,
        }
    }

    #[test]
    fn a_header_survives_any_flipped_byte() {
        let mut block = vec![0; BLOCK_BYTES];
        sample().encode(&mut block);
        for at in 0..BLOCK_BYTES {
            for mask in [0x01, 0x80, 0xff] {
                block[at] ^= mask;
                assert_eq!(SegmentHeader::decode(&block), Ok(sample()), "byte {at}");
                block[at] ^= mask;
            }
        }
    }

    #[test]
    fn another_version_is_named_and_garbage_is_damaged() {
        let mut block = vec![0; BLOCK_BYTES];
        sample().encode(&mut block);
        for at in COPIES_AT {
            block[at + 8] = 9;
        }
        assert_eq!(SegmentHeader::decode(&block), Err(HeaderError::Version { found: 9 }));
        sample().encode(&mut block);
        block[8] = FORMAT_VERSION_MIN as u8;
        block[12..16].fill(0);
        let crc = crc32c::crc32c(&block[..COPY_BYTES]);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
        block[COPIES_AT[1]] = 0;
        assert_eq!(SegmentHeader::decode(&block), Ok(sample()), "the version before is read");
        for garbage in [&[][..], &[0; 63], &[0xab; BLOCK_BYTES], &[0; BLOCK_BYTES]] {
            assert_eq!(SegmentHeader::decode(garbage), Err(HeaderError::Damaged));
        }
    }
}
