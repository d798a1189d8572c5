//! Where in the fast tier an entry is, by the hash of its key. All in memory, of a size that is fixed
//! when it is made.
//!
//! ```text
//!   set of a hash: 8 slots of 16 bytes
//!   ┌──────────┬───────────────────────────────────────────────────────┐
//!   │ hash u64 │ fill 32 bits │ offset 20 bits │ length 12 bits, x 16 B │   0: the slot is empty
//!   └──────────┴───────────────────────────────────────────────────────┘
//! ```
//! A cache may forget, so a set that is full gives up its oldest entry; a hash map would have to grow, and
//! stand still while it does. Whoever reads an entry compares its key: a hash that two keys share costs a miss.

/// Slots that a hash may be in.
const SET_SLOTS: usize = 8;
const SLOT_WORDS: usize = 2;
/// Memory of a set, bytes: the least that an index can have.
pub(super) const SET_BYTES: usize = SET_SLOTS * SLOT_WORDS * size_of::<u64>();
/// What entries are aligned to, bytes.
pub(super) const UNIT_BYTES: usize = 16;
const OFFSET_BITS: u32 = 20;
const LENGTH_BITS: u32 = 12;
/// Longest region that a place can point into, bytes.
pub(super) const REGION_BYTES_MAX: usize = UNIT_BYTES << OFFSET_BITS;
/// Longest entry that a place can describe, bytes.
pub(super) const ENTRY_BYTES_MAX: usize = UNIT_BYTES * ((1 << LENGTH_BITS) - 1);

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Which filling of a region it came with.
    pub(super) fill: u32,
    /// Within the region, bytes; a multiple of the unit.
    pub(super) offset: usize,
    /// With its padding, bytes; a multiple of the unit and not 0.
    pub(super) length: usize,
}

/// See the file's header.
pub(super) struct Index {
    words: Vec<u64>,
}

impl Index {
    /// An empty index of so many bytes, rounded down to whole sets.
    pub(super) fn new(bytes: u64) -> Self {
        let sets = (bytes / SET_BYTES as u64).max(1) as usize;
        Self { words: vec![0; sets * SET_SLOTS * SLOT_WORDS] }
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        (self.words.len() * size_of::<u64>()) as u64
    }

    /// Where the entry of a hash is, or was: the caller knows which fills are gone.
    pub(super) fn get(&self, hash: u64) -> Option<Place> {
        let slot = self.slot_of(hash)?;
        Some(Place::decode(self.words[slot + 1]))
    }

    /// Notes an entry in place of what the hash had, of one whose fill is below `first_live`, or of the
    /// oldest of its set. Returns what went.
    pub(super) fn put(&mut self, hash: u64, place: Place, first_live: u32) -> Option<Place> {
        let slot = self.slot_of(hash).unwrap_or_else(|| self.slot_to_take(hash, first_live));
        let before = std::mem::replace(&mut self.words[slot + 1], place.encode());
        self.words[slot] = hash;
        (before != 0).then(|| Place::decode(before))
    }

    /// Forgets a hash. Returns what it had.
    pub(super) fn remove(&mut self, hash: u64) -> Option<Place> {
        let slot = self.slot_of(hash)?;
        Some(Place::decode(std::mem::take(&mut self.words[slot + 1])))
    }

    fn slots(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let sets = self.words.len() / (SET_SLOTS * SLOT_WORDS);
        let set = ((u128::from(hash) * sets as u128) >> 64) as usize;
        let first = set * SET_SLOTS * SLOT_WORDS;
        (first..first + SET_SLOTS * SLOT_WORDS).step_by(SLOT_WORDS)
    }

    fn slot_of(&self, hash: u64) -> Option<usize> {
        self.slots(hash).find(|&slot| self.words[slot] == hash && self.words[slot + 1] != 0)
    }

    fn slot_to_take(&self, hash: u64, first_live: u32) -> usize {
        let age = |&slot: &usize| match self.words[slot + 1] {
            0 => None,
            word => Some(Place::decode(word).fill).filter(|fill| *fill >= first_live),
        };
        self.slots(hash).min_by_key(age).expect("a set has slots")
    }
}

impl Place {
    fn encode(self) -> u64 {
        let (offset, length) = (self.offset / UNIT_BYTES, self.length / UNIT_BYTES);
        assert!(self.offset.is_multiple_of(UNIT_BYTES) && offset < 1 << OFFSET_BITS);
        assert!(self.length.is_multiple_of(UNIT_BYTES) && length < 1 << LENGTH_BITS && length > 0);
        u64::from(self.fill) << (OFFSET_BITS + LENGTH_BITS)
            | (offset as u64) << LENGTH_BITS
            | length as u64
    }

    fn decode(word: u64) -> Self {
        let units = |word: u64, bits: u32| (word & ((1 << bits) - 1)) as usize * UNIT_BYTES;
        Self {
            fill: (word >> (OFFSET_BITS + LENGTH_BITS)) as u32,
            offset: units(word >> LENGTH_BITS, OFFSET_BITS),
            length: units(word, LENGTH_BITS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(fill: u32, number: usize) -> Place {
        Place { fill, offset: number * UNIT_BYTES, length: UNIT_BYTES }
    }

    #[test]
    fn places_are_packed_without_loss() {
        for fill in [0, 1, u32::MAX] {
            for offset in [0, UNIT_BYTES, REGION_BYTES_MAX - UNIT_BYTES] {
                for length in [UNIT_BYTES, ENTRY_BYTES_MAX] {
                    let place = Place { fill, offset, length };
                    assert_eq!(Place::decode(place.encode()), place);
                    assert_ne!(place.encode(), 0);
                }
            }
        }
    }

    #[test]
    fn a_hash_has_one_place_the_last() {
        let mut index = Index::new(1 << 12);
        assert_eq!(index.put(7, place(1, 1), 0), None);
        assert_eq!(index.put(7, place(2, 5), 0), Some(place(1, 1)));
        assert_eq!(index.get(7), Some(place(2, 5)));
        assert_eq!(index.remove(7), Some(place(2, 5)));
        assert_eq!((index.get(7), index.remove(7)), (None, None));
    }

    #[test]
    fn a_full_set_gives_up_the_dead_first_and_then_the_oldest() {
        let mut index = Index::new(SET_BYTES as u64);
        assert_eq!(index.memory_bytes(), SET_BYTES as u64);
        for number in 0..SET_SLOTS {
            assert_eq!(index.put(number as u64, place(10 + number as u32, number), 0), None);
        }
        assert_eq!(index.put(100, place(50, 1), 0), Some(place(10, 0)));
        // The fills 11 and 12 are gone; one of them makes room.
        let taken = index.put(101, place(51, 1), 13).unwrap();
        assert!([11, 12].contains(&taken.fill));
        assert_eq!(index.get(13 - 10), Some(place(13, 3)));
        assert_eq!(index.get(101), Some(place(51, 1)));
    }
}
