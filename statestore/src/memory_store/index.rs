//! The index of a [`MemoryStore`](crate::MemoryStore): key hash to block handle.
//!
//! One hash table over everything would stop the core for a second when ten million entries are
//! rehashed. Extendible hashing cuts the table into segments by the hash's leading bits; a segment
//! that is full splits in two, and only it is rehashed.
//!
//! ```text
//!   hash  63       63-depth                                      0
//!        ┌──────────┬─────────────────────────────────────────────┐
//!        │ directory│ rotated by half, the table's own hash       │
//!        └────┬─────┴─────────────────────────────────────────────┘
//!             ▼
//!   directory 00 01 10 11      depth 2
//!              │  │  └──┴─► segment, depth 1, prefix 1: not split yet, so two entries name it
//!              │  └───────► segment, depth 2, prefix 01
//!              └──────────► segment, depth 2, prefix 00
//! ```
//! A bucket is 4 bytes and 1 byte of control. A full segment, seven eighths of 1,024 buckets,
//! splits into two that are half as full, so the index costs 5.7 to 11.4 bytes a record.

use std::mem::size_of;

use hashbrown::HashTable;

use super::arena::Handle;

/// Hash of a key, seeded per store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SlotHash(pub(super) u64);

impl SlotHash {
    /// What the segment's table takes as its hash. It reads the lowest bits and the highest seven;
    /// the highest of ours are equal within a segment, so they go to the middle.
    fn in_table(self) -> u64 {
        self.0.rotate_left(32)
    }

    fn directory_slot(self, depth: u32) -> usize {
        // In two shifts, because a shift by 64 is none.
        (self.0 >> 1 >> (63 - depth)) as usize
    }
}

/// Buckets of a segment that splits when it is full: 4 KiB of handles, and its 896 records
/// are rehashed in some tens of microseconds.
const SEGMENT_BUCKETS_MAX: usize = 1_024;
/// Below this a half of a split segment gets a table of its size only: hashes came out uneven.
const SMALL_HALF: usize = SEGMENT_BUCKETS_MAX / 4;
/// Deepest directory; it serves more records than handles can name.
const DEPTH_MAX: u32 = 24;
/// Directory entries a segment, on average, above which segments grow instead of splitting. Hashes
/// that spread need two to four; with others (which the seed prevents) every split would double
/// the directory.
const DIRECTORY_SHARE_MAX: usize = 32;
/// Two sibling segments merge when they hold no more than this together: a quarter of a full one,
/// so that a merge is not undone by the next writes.
const MERGED_LEN_MAX: usize = SEGMENT_BUCKETS_MAX / 4;

struct Segment {
    table: HashTable<Handle>,
    /// The leading `depth` bits that all its hashes share.
    prefix: u32,
    depth: u32,
}

/// Index of one store.
pub(super) struct Index {
    /// Segment number by leading hash bits; `2^depth` entries.
    directory: Vec<u32>,
    depth: u32,
    segments: Vec<Segment>,
    /// Segments whose depth is the directory's: none left means it can be halved.
    deepest: usize,
    len: usize,
    table_bytes: usize,
}

impl Index {
    pub(super) fn new() -> Self {
        Self {
            directory: vec![0],
            depth: 0,
            segments: vec![Segment { table: HashTable::new(), prefix: 0, depth: 0 }],
            deepest: 1,
            len: 0,
            table_bytes: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.table_bytes
            + self.directory.capacity() * size_of::<u32>()
            + self.segments.capacity() * size_of::<Segment>()
    }

    /// At most this much more memory once `entries` have been added.
    pub(super) fn growth_max(&self, entries: usize) -> usize {
        let table_bytes_max = SEGMENT_BUCKETS_MAX * (size_of::<Handle>() + 1) + 64;
        // Twelve bytes an entry is above the worst fill; each entry may also be the one that
        // splits its segment into tables that are emptier than that.
        let spread = entries.min(self.segments.len()) * table_bytes_max + entries * 12;
        let segments = self.segments.capacity() + entries / 64 + 2;
        spread + segments * size_of::<Segment>() + 2 * self.directory.capacity() * size_of::<u32>()
    }

    #[inline]
    fn segment_number(&self, hash: SlotHash) -> usize {
        self.directory[hash.directory_slot(self.depth)] as usize
    }

    #[inline]
    pub(super) fn find(&self, hash: SlotHash, is: impl Fn(Handle) -> bool) -> Option<Handle> {
        let segment = &self.segments[self.segment_number(hash)];
        segment.table.find(hash.in_table(), |handle| is(*handle)).copied()
    }

    /// The place of the key's handle, if it has one.
    #[inline]
    pub(super) fn find_mut(
        &mut self,
        hash: SlotHash,
        is: impl Fn(Handle) -> bool,
    ) -> Option<&mut Handle> {
        let number = self.segment_number(hash);
        self.segments[number].table.find_mut(hash.in_table(), |handle| is(*handle))
    }

    /// Adds a handle whose key the index does not hold.
    #[inline]
    pub(super) fn insert(
        &mut self,
        hash: SlotHash,
        handle: Handle,
        hash_of: impl Fn(Handle) -> SlotHash,
    ) {
        let number = self.number_with_room(hash, &hash_of);
        let table = &mut self.segments[number].table;
        table.insert_unique(hash.in_table(), handle, |_| unreachable!("room was made"));
        self.len += 1;
    }

    /// The segment of a hash, with room for one more. Nearly always the first look suffices.
    #[inline]
    fn number_with_room(&mut self, hash: SlotHash, hash_of: &impl Fn(Handle) -> SlotHash) -> usize {
        let number = self.segment_number(hash);
        let table = &self.segments[number].table;
        // Capacity leaves out the slots that removed entries have used up.
        if table.len() < table.capacity() { number } else { self.make_room(hash, hash_of) }
    }

    #[cold]
    fn make_room(&mut self, hash: SlotHash, hash_of: &impl Fn(Handle) -> SlotHash) -> usize {
        loop {
            let number = self.segment_number(hash);
            let splits = self.may_split(number);
            let table = &mut self.segments[number].table;
            let (len, buckets) = (table.len(), table.num_buckets());
            let capacity_when_new = buckets / 8 * 7;
            let mostly_removed = len < capacity_when_new - capacity_when_new / 8;
            if len < table.capacity() {
                return number;
            }
            if buckets < SEGMENT_BUCKETS_MAX || mostly_removed || !splits {
                // hashbrown itself would double a table in which removed entries used up the
                // slots, from half full on; removing and adding would double the index.
                let capacity = if mostly_removed { capacity_when_new } else { len + 1 };
                let before = table.allocation_size();
                let mut wider = HashTable::with_capacity(capacity);
                for handle in table.iter() {
                    let hash = hash_of(*handle).in_table();
                    wider.insert_unique(hash, *handle, |_| unreachable!("room was made"));
                }
                *table = wider;
                self.table_bytes = self.table_bytes - before + table.allocation_size();
            } else {
                self.split(number, hash_of);
            }
        }
    }

    pub(super) fn remove(
        &mut self,
        hash: SlotHash,
        is: impl Fn(Handle) -> bool,
        hash_of: impl Fn(Handle) -> SlotHash,
    ) -> Option<Handle> {
        let number = self.segment_number(hash);
        let table = &mut self.segments[number].table;
        let entry = table.find_entry(hash.in_table(), |handle| is(*handle)).ok()?;
        let (handle, _) = entry.remove();
        self.len -= 1;
        let table = &mut self.segments[number].table;
        if table.len() * 4 < table.capacity() {
            let before = table.allocation_size();
            // Half as much again as it holds, so that the next few inserts do not grow it.
            let room = table.len() + table.len() / 2;
            table.shrink_to(room, |handle| hash_of(*handle).in_table());
            self.table_bytes = self.table_bytes - before + table.allocation_size();
            self.merge_with_sibling(number, &hash_of);
        }
        Some(handle)
    }

    /// The handles of the segment that `hash` falls into, and the last hash it can hold.
    pub(super) fn segment(
        &self,
        hash: SlotHash,
    ) -> (impl Iterator<Item = Handle> + Clone, SlotHash) {
        let segment = &self.segments[self.segment_number(hash)];
        // In two shifts, because a shift by 64 is none.
        let first = u64::from(segment.prefix) << 1 << (63 - segment.depth);
        let last = first | (u64::MAX >> segment.depth);
        (segment.table.iter().copied(), SlotHash(last))
    }

    fn may_split(&self, number: usize) -> bool {
        let doubles = self.segments[number].depth == self.depth;
        let share_max = DIRECTORY_SHARE_MAX * (self.segments.len() + DIRECTORY_SHARE_MAX);
        !doubles || (self.depth < DEPTH_MAX && 2 * self.directory.len() <= share_max)
    }

    fn split(&mut self, number: usize, hash_of: &impl Fn(Handle) -> SlotHash) {
        if self.segments[number].depth == self.depth {
            self.double_directory();
        }
        let segment = &mut self.segments[number];
        let old = std::mem::take(&mut segment.table);
        segment.depth += 1;
        segment.prefix <<= 1;
        let (depth, prefix) = (segment.depth, segment.prefix);
        let side = |hash: SlotHash| (hash.0 >> (64 - depth)) as usize & 1;

        let mut hashed = Vec::with_capacity(old.len());
        hashed.extend(old.iter().map(|handle| (hash_of(*handle), *handle)));
        let upper = hashed.iter().filter(|(hash, _)| side(*hash) == 1).count();
        // Room to grow to the next split: smaller tables would be rehashed at once, since a split
        // segment's halves are half full and so is the largest table half its size.
        let capacity = |len: usize| match len {
            SMALL_HALF.. => SEGMENT_BUCKETS_MAX / 8 * 7,
            _ => len,
        };
        let mut halves =
            [hashed.len() - upper, upper].map(|len| HashTable::with_capacity(capacity(len)));
        for (hash, handle) in hashed {
            halves[side(hash)].insert_unique(hash.in_table(), handle, |_| {
                unreachable!("the table was made large enough")
            });
        }
        self.table_bytes += halves[0].allocation_size() + halves[1].allocation_size();
        self.table_bytes -= old.allocation_size();
        let [lower, upper] = halves;
        self.segments[number].table = lower;
        self.segments.push(Segment { table: upper, prefix: prefix | 1, depth });
        self.point_directory_at(self.segments.len() - 1);
        if depth == self.depth {
            self.deepest += 2;
        }
    }

    fn merge_with_sibling(&mut self, number: usize, hash_of: &impl Fn(Handle) -> SlotHash) {
        let Segment { depth, prefix, ref table } = self.segments[number];
        if depth == 0 || table.len() > MERGED_LEN_MAX {
            return;
        }
        let sibling = self.directory[((prefix ^ 1) as usize) << (self.depth - depth)] as usize;
        if self.segments[sibling].depth != depth
            || table.len() + self.segments[sibling].table.len() > MERGED_LEN_MAX
        {
            return;
        }
        let from = std::mem::take(&mut self.segments[sibling].table);
        let into = &mut self.segments[number];
        self.table_bytes -= into.table.allocation_size() + from.allocation_size();
        for handle in from {
            let hash = hash_of(handle).in_table();
            into.table.insert_unique(hash, handle, |handle| hash_of(*handle).in_table());
        }
        self.table_bytes += into.table.allocation_size();
        into.depth -= 1;
        into.prefix >>= 1;
        if depth == self.depth {
            self.deepest -= 2;
        }
        self.point_directory_at(number);
        self.segments.swap_remove(sibling);
        if sibling < self.segments.len() {
            // The last segment took the sibling's number. Unless it is the merged one, whose
            // directory entries overlap nobody else's, this is the same single rewrite.
            self.point_directory_at(sibling);
        }
        if self.segments.len() * 4 < self.segments.capacity() {
            self.segments.shrink_to(self.segments.len() * 2);
        }
        if self.deepest == 0 && self.depth > 0 {
            self.halve_directory();
        }
    }

    /// Makes every directory entry of the segment's prefix name it.
    fn point_directory_at(&mut self, number: usize) {
        let Segment { prefix, depth, .. } = self.segments[number];
        let spare = self.depth - depth;
        let first = (prefix as usize) << spare;
        self.directory[first..first + (1 << spare)].fill(number as u32);
    }

    fn double_directory(&mut self) {
        let mut doubled = Vec::with_capacity(self.directory.len() * 2);
        doubled.extend(self.directory.iter().flat_map(|segment| [*segment; 2]));
        self.directory = doubled;
        self.depth += 1;
        self.deepest = 0;
    }

    fn halve_directory(&mut self) {
        self.directory = self.directory.iter().copied().step_by(2).collect();
        self.depth -= 1;
        self.deepest = self.segments.iter().filter(|s| s.depth == self.depth).count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An index whose handles are numbers below `count`, hashed by `hash_of`.
    fn filled(count: u32, hash_of: impl Fn(Handle) -> SlotHash) -> Index {
        let mut index = Index::new();
        for number in 0..count {
            let handle = Handle::from_number(number);
            index.insert(hash_of(handle), handle, &hash_of);
        }
        index
    }

    fn spread(handle: Handle) -> SlotHash {
        SlotHash(xxhash_rust::xxh3::xxh3_64(&handle.number().to_ne_bytes()))
    }

    fn check(index: &Index, present: std::ops::Range<u32>, hash_of: impl Fn(Handle) -> SlotHash) {
        assert_eq!(index.len(), present.len());
        assert_eq!(index.directory.len(), 1 << index.depth);
        let deepest = index.segments.iter().filter(|s| s.depth == index.depth).count();
        assert_eq!(index.deepest, deepest);
        let bytes: usize = index.segments.iter().map(|s| s.table.allocation_size()).sum();
        assert_eq!(index.table_bytes, bytes);
        for number in present {
            let handle = Handle::from_number(number);
            assert_eq!(index.find(hash_of(handle), |other| other == handle), Some(handle));
        }
        // By segments in the order of their hashes, each once.
        let (mut at, mut seen) = (SlotHash(0), 0);
        loop {
            let (handles, last) = index.segment(at);
            for handle in handles {
                assert!((at..=last).contains(&hash_of(handle)));
                seen += 1;
            }
            match last.0.checked_add(1) {
                Some(next) => at = SlotHash(next),
                None => break,
            }
        }
        assert_eq!(seen, index.len());
    }

    #[test]
    fn segments_split_and_merge_again() {
        let mut index = filled(30_000, spread);
        assert!(index.segments.len() > 30);
        check(&index, 0..30_000, spread);
        for number in 0..29_990 {
            let handle = Handle::from_number(number);
            assert_eq!(index.remove(spread(handle), |other| other == handle, spread), Some(handle));
            assert_eq!(index.find(spread(handle), |other| other == handle), None);
            if number % 6_000 == 0 {
                check(&index, number + 1..30_000, spread);
            }
        }
        check(&index, 29_990..30_000, spread);
        assert_eq!((index.segments.len(), index.directory.len()), (1, 1));
    }

    /// Without a seed, a partition's keys share the leading bits that its range fixes.
    #[test]
    fn hashes_that_do_not_spread_cost_no_directory() {
        let skewed = |handle: Handle| SlotHash(spread(handle).0 >> 40);
        let index = filled(4_000, skewed);
        check(&index, 0..4_000, skewed);
        assert!(index.directory.len() <= 4_096, "{} entries", index.directory.len());
        let same = |_: Handle| SlotHash(7);
        check(&filled(2_000, same), 0..2_000, same);
    }
}
