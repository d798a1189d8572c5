//! The arena of a [`MemoryStore`](crate::MemoryStore): blocks of records in pages.
//!
//! One allocation a record would cost 16 to 32 bytes of the allocator's own each and leave
//! holes that nobody can close. Here a record is a block in a page, addressed by a 4-byte handle.
//!
//! ```text
//!  handle   31          15 14            0
//!          ┌──────────────┬───────────────┐      pages grow with the arena, 4 to 256 KiB,
//!          │ page         │ granule (8 B) │      so that an empty partition costs nothing
//!          └──────────────┴───────────────┘      and a page is never over 1/64 of the arena
//!
//!  block    0         8          16        18      20           24    24+key
//!          ┌─────────┬──────────┬─────────┬───────┬────────────┬─────┬─────────┬─────────┐
//!   live   │ version │ timestamp│ key len │ state │ value len  │ key │ value   │ to 8 B  │
//!          ├────┬────┼──────────┼─────────┼───────┼────────────┼─────┴─────────┴─────────┤
//!   free   │prev│next│ granules │         │ state │            │                         │
//!          └────┴────┴──────────┴─────────┴───────┴────────────┴─────────────────────────┘
//! ```
//! A record that expires has its moment, 8 bytes, between key and value; its state says so, and
//! no other record pays for it.
//!
//! Values that do not fit a block live in allocations of their own; the block holds the slot's
//! number instead. Freed blocks wait in one list per exact size: overwriting and replacing records
//! of a size wastes nothing. When sizes change for good, free blocks pile up; above one sixteenth
//! of the arena the emptiest page is *drained*: its free blocks leave the lists, then its
//! records move elsewhere, a few blocks at every write, and the page is given back.
//!
//! All multi-byte fields are native-endian: these bytes never leave the process.

use std::mem::size_of;

use stateside_types::{ExpireAt, Record, Sequence, Timestamp, limits::KEY_BYTES_MAX};

const GRANULE_BYTES: usize = 8;
const GRANULE_BITS: u32 = 15;
const PAGE_BYTES_MIN: usize = 4 << 10;
const PAGE_BYTES_MAX: usize = GRANULE_BYTES << GRANULE_BITS;
const PAGES_MAX: usize = 1 << (32 - GRANULE_BITS);
/// Pages kept back when the arena says it is full, so that batches under way still fit.
const PAGES_RESERVED: usize = 64;
const HEADER_BYTES: usize = 24;
/// The moment of a record that expires.
const MOMENT_BYTES: usize = 8;
/// Largest block; values that would make a larger one are allocated on their own.
const BLOCK_BYTES_MAX: usize = 8 << 10;
/// A drain starts when more than 1/`FREE_SHARE_MAX` of the arena is free.
const FREE_SHARE_MAX: usize = 16;
/// A drain is not worth its copies below this.
const FREE_BYTES_MIN: usize = 32 << 10;

const _: () = assert!(PAGE_BYTES_MAX == 256 << 10);
const _: () =
    assert!(HEADER_BYTES + KEY_BYTES_MAX + MOMENT_BYTES + size_of::<u32>() <= BLOCK_BYTES_MAX);
const _: () = assert!(KEY_BYTES_MAX <= u16::MAX as usize);

/// Address of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Handle(u32);

impl Handle {
    /// No block. The last granule of the last page can hold no block, so nothing is lost.
    pub(super) const NONE: Self = Self(u32::MAX);

    fn new(page: usize, offset: usize) -> Self {
        debug_assert!(page < PAGES_MAX && offset < PAGE_BYTES_MAX);
        Self((page as u32) << GRANULE_BITS | (offset / GRANULE_BYTES) as u32)
    }

    #[cfg(test)]
    pub(super) fn from_number(number: u32) -> Self {
        Self(number)
    }

    #[cfg(test)]
    pub(super) fn number(self) -> u32 {
        self.0
    }

    fn page(self) -> usize {
        (self.0 >> GRANULE_BITS) as usize
    }

    fn offset(self) -> usize {
        (self.0 & ((1 << GRANULE_BITS) - 1)) as usize * GRANULE_BYTES
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum BlockState {
    /// A record; its value is in the block.
    Live = 1,
    /// A record; the block holds the slot of its value.
    LiveLarge = 2,
    /// Free, in its size's list.
    Listed = 3,
    /// Free, in no list: its page is being drained.
    Unlisted = 4,
    /// As `Live`, with a moment.
    Expiring = 5,
    /// As `LiveLarge`, with a moment.
    ExpiringLarge = 6,
}

impl BlockState {
    const fn live(is_large: bool, expires: bool) -> Self {
        match (is_large, expires) {
            (false, false) => Self::Live,
            (true, false) => Self::LiveLarge,
            (false, true) => Self::Expiring,
            (true, true) => Self::ExpiringLarge,
        }
    }

    const fn is_large(self) -> bool {
        matches!(self, Self::LiveLarge | Self::ExpiringLarge)
    }

    /// What lies between key and value.
    const fn moment_bytes(self) -> usize {
        match self {
            Self::Expiring | Self::ExpiringLarge => MOMENT_BYTES,
            _ => 0,
        }
    }
}

#[derive(Clone, Copy)]
struct Header {
    version: Sequence,
    timestamp: Timestamp,
    key_len: u16,
    state: BlockState,
    value_len: u32,
}

impl Header {
    fn encode(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..8].copy_from_slice(&self.version.0.to_ne_bytes());
        out[8..16].copy_from_slice(&self.timestamp.0.to_ne_bytes());
        out[16..18].copy_from_slice(&self.key_len.to_ne_bytes());
        out[18..20].copy_from_slice(&(self.state as u16).to_ne_bytes());
        out[20..24].copy_from_slice(&self.value_len.to_ne_bytes());
        out
    }

    fn block_bytes(self) -> usize {
        let stored = if self.state.is_large() { size_of::<u32>() } else { self.value_len as usize };
        block_bytes(self.key_len as usize, self.state.moment_bytes() + stored)
    }

    /// Where in the block the value begins, or the number of its slot.
    fn value_offset(self) -> usize {
        HEADER_BYTES + self.key_len as usize + self.state.moment_bytes()
    }
}

struct Page {
    /// Filled by appending up to its capacity, which never changes.
    bytes: Vec<u8>,
    /// Bytes of free blocks among them.
    free_bytes: usize,
    draining: bool,
}

#[derive(Clone, Copy)]
enum DrainPhase {
    Unlist,
    Move,
}

#[derive(Clone, Copy)]
struct Drain {
    page: usize,
    offset: usize,
    phase: DrainPhase,
}

/// The blocks of one store. Owned by it, used on its core's thread.
#[derive(Default)]
pub(super) struct Arena {
    pages: Vec<Page>,
    /// Page numbers without a page.
    vacant_pages: Vec<u32>,
    /// The page that new blocks are appended to.
    open: Option<usize>,
    /// First free block by size in granules.
    lists: Vec<u32>,
    large: LargeValues,
    /// Capacity of all pages.
    page_bytes: usize,
    free_bytes: usize,
    drain: Option<Drain>,
}

/// Bytes of the block of a record that has `stored` bytes besides its key.
const fn block_bytes(key_len: usize, stored: usize) -> usize {
    (HEADER_BYTES + key_len + stored).next_multiple_of(GRANULE_BYTES)
}

const fn is_large(key_len: usize, value_len: usize, expires: bool) -> bool {
    block_bytes(key_len, moment_bytes(expires) + value_len) > BLOCK_BYTES_MAX
}

const fn moment_bytes(expires: bool) -> usize {
    if expires { MOMENT_BYTES } else { 0 }
}

impl Arena {
    /// Bytes of memory a record takes, without the index.
    pub(super) const fn record_bytes(key_len: usize, value_len: usize, expires: bool) -> usize {
        let moment = moment_bytes(expires);
        if is_large(key_len, value_len, expires) {
            block_bytes(key_len, moment + size_of::<u32>()) + value_len + LargeValues::SLOT_BYTES
        } else {
            block_bytes(key_len, moment + value_len)
        }
    }

    /// Bytes of memory in use, all included.
    pub(super) fn memory_bytes(&self) -> usize {
        self.page_bytes
            + self.pages.capacity() * size_of::<Page>()
            + self.vacant_pages.capacity() * size_of::<u32>()
            + self.lists.capacity() * size_of::<u32>()
            + self.large.memory_bytes()
    }

    /// At most this much more memory once records of `record_bytes` in sum have been added:
    /// every page may lose less than one block at its end, one more page may be open, and a
    /// drain may open another.
    pub(super) fn growth_max(&self, record_bytes: usize, records: usize) -> usize {
        2 * record_bytes
            + 2 * self.next_page_bytes(BLOCK_BYTES_MAX)
            + self.large.growth_max(records)
            + self.pages.capacity().max(4) * size_of::<Page>()
            + 2 * (record_bytes / PAGE_BYTES_MIN) * size_of::<Page>()
            + self.vacant_pages.capacity().max(4) * size_of::<u32>()
            + (BLOCK_BYTES_MAX / GRANULE_BYTES + 1) * size_of::<u32>()
    }

    /// Whether the handles run out: no new page can be had much longer.
    pub(super) fn is_full(&self) -> bool {
        self.pages.len() - self.vacant_pages.len() > PAGES_MAX - PAGES_RESERVED
    }

    pub(super) fn insert(&mut self, key: &[u8], record: Record<'_>) -> Handle {
        let Record { value, version, timestamp, expire_at } = record;
        assert!(!key.is_empty() && key.len() <= KEY_BYTES_MAX, "the caller checked the key");
        assert!(value.len() <= u32::MAX as usize, "the caller checked the value");
        let is_large = is_large(key.len(), value.len(), expire_at.is_some());
        let header = Header {
            version,
            timestamp,
            key_len: key.len() as u16,
            state: BlockState::live(is_large, expire_at.is_some()),
            value_len: value.len() as u32,
        };
        if is_large {
            let slot = self.large.insert(value).to_ne_bytes();
            self.place(header, key, expire_at, &slot)
        } else {
            self.place(header, key, expire_at, value)
        }
    }

    /// Writes a new value over a record's, if that fits its block exactly.
    #[inline]
    pub(super) fn overwrite(&mut self, handle: Handle, record: Record<'_>) -> bool {
        let Record { value, version, timestamp, expire_at } = record;
        let old = self.header(handle);
        let key_len = old.key_len as usize;
        let state = BlockState::live(false, expire_at.is_some());
        let header = Header {
            version,
            timestamp,
            state,
            value_len: value.len() as u32,
            key_len: old.key_len,
        };
        if old.state.is_large()
            || is_large(key_len, value.len(), expire_at.is_some())
            || header.block_bytes() != old.block_bytes()
        {
            return false;
        }
        let block = &mut self.pages[handle.page()].bytes[handle.offset()..];
        block[..HEADER_BYTES].copy_from_slice(&header.encode());
        if let Some(moment) = expire_at {
            let moment = moment.millis().to_ne_bytes();
            block[HEADER_BYTES + key_len..][..MOMENT_BYTES].copy_from_slice(&moment);
        }
        block[header.value_offset()..][..value.len()].copy_from_slice(value);
        true
    }

    /// Writes a new value over the record in this block if it is this key's, fits exactly, and
    /// expires neither now nor then; the length of the value that was there. The handle may be one
    /// whose block was freed since: then it is no record, or another's.
    #[inline]
    pub(super) fn renew(
        &mut self,
        handle: Handle,
        key: &[u8],
        record: Record<'_>,
    ) -> Option<usize> {
        let block = &mut self.pages[handle.page()].bytes[handle.offset()..];
        let (header, stored) = block.split_first_chunk_mut::<HEADER_BYTES>()?;
        let is_live = field(header, 18) == (BlockState::Live as u16).to_ne_bytes();
        let is_keys = is_live
            && usize::from(u16::from_ne_bytes(field(header, 16))) == key.len()
            && stored[..key.len()] == *key;
        if !is_keys || record.expire_at.is_some() {
            return None;
        }
        let old_len = u32::from_ne_bytes(field(header, 20)) as usize;
        let value = record.value;
        if block_bytes(key.len(), value.len()) != block_bytes(key.len(), old_len) {
            return None;
        }
        header[0..8].copy_from_slice(&record.version.0.to_ne_bytes());
        header[8..16].copy_from_slice(&record.timestamp.0.to_ne_bytes());
        header[20..24].copy_from_slice(&(value.len() as u32).to_ne_bytes());
        stored[key.len()..][..value.len()].copy_from_slice(value);
        Some(old_len)
    }

    /// Frees a record's block and its large value.
    pub(super) fn free(&mut self, handle: Handle) {
        let header = self.header(handle);
        if header.state.is_large() {
            let slot = self.large_slot(handle, header);
            self.large.remove(slot);
        }
        self.free_block(handle, header.block_bytes());
    }

    #[inline]
    pub(super) fn key(&self, handle: Handle) -> &[u8] {
        let block = self.block(handle);
        let key_len = u16::from_ne_bytes([block[16], block[17]]) as usize;
        &block[HEADER_BYTES..HEADER_BYTES + key_len]
    }

    /// Reads from each cache line that a small record reaches into.
    #[inline]
    pub(super) fn touch(&self, handle: Handle) -> u8 {
        let block = self.block(handle);
        block[0] ^ block.get(64).copied().unwrap_or(0) ^ block.get(128).copied().unwrap_or(0)
    }

    pub(super) fn value_len(&self, handle: Handle) -> usize {
        self.header(handle).value_len as usize
    }

    #[inline]
    pub(super) fn version(&self, handle: Handle) -> Sequence {
        Sequence(u64::from_ne_bytes(field(self.block(handle), 0)))
    }

    #[inline]
    pub(super) fn record(&self, handle: Handle) -> Record<'_> {
        let header = self.header(handle);
        let value = match header.state {
            BlockState::Live | BlockState::Expiring => {
                &self.block(handle)[header.value_offset()..][..header.value_len as usize]
            }
            BlockState::LiveLarge | BlockState::ExpiringLarge => {
                self.large.get(self.large_slot(handle, header))
            }
            BlockState::Listed | BlockState::Unlisted => unreachable!("a free block was read"),
        };
        let expire_at = self.moment(handle, header);
        Record { value, version: header.version, timestamp: header.timestamp, expire_at }
    }

    /// From when on a record is absent.
    #[inline]
    pub(super) fn expire_at(&self, handle: Handle) -> Option<ExpireAt> {
        self.moment(handle, self.header(handle))
    }

    #[inline]
    fn moment(&self, handle: Handle, header: Header) -> Option<ExpireAt> {
        if header.state.moment_bytes() == 0 {
            return None;
        }
        let at = HEADER_BYTES + header.key_len as usize;
        ExpireAt::from_millis(u64::from_ne_bytes(field(self.block(handle), at)))
    }

    /// Drains up to `blocks` blocks if the arena is sparse. `moved(arena, old, new)` is told of every
    /// record that moved, while both handles still read.
    pub(super) fn drain(&mut self, blocks: usize, mut moved: impl FnMut(&Self, Handle, Handle)) {
        for _ in 0..blocks {
            let Some(drain) = self.drain.or_else(|| self.start_drain()) else { return };
            self.drain = self.drain_one(drain, &mut moved);
        }
    }

    fn start_drain(&mut self) -> Option<Drain> {
        if self.free_bytes < FREE_BYTES_MIN
            || self.free_bytes * FREE_SHARE_MAX < self.page_bytes
            || self.page_bytes >= PAGE_BYTES_MAX * (PAGES_MAX - 1)
        {
            return None;
        }
        let (page, victim) = self
            .pages
            .iter()
            .enumerate()
            .filter(|(number, page)| Some(*number) != self.open && page.free_bytes > 0)
            // The share, in 1/1024, not the bytes: pages differ in size.
            .max_by_key(|(_, page)| page.free_bytes * 1024 / page.bytes.len())?;
        if victim.free_bytes * 2 * FREE_SHARE_MAX < victim.bytes.len() {
            return None;
        }
        self.pages[page].draining = true;
        Some(Drain { page, offset: 0, phase: DrainPhase::Unlist })
    }

    fn drain_one(
        &mut self,
        drain: Drain,
        moved: &mut impl FnMut(&Self, Handle, Handle),
    ) -> Option<Drain> {
        let Drain { page, offset, phase } = drain;
        if offset == self.pages[page].bytes.len() {
            return match phase {
                DrainPhase::Unlist => Some(Drain { offset: 0, phase: DrainPhase::Move, ..drain }),
                DrainPhase::Move => {
                    self.release_page(page);
                    None
                }
            };
        }
        let handle = Handle::new(page, offset);
        let state = self.state(handle);
        let bytes = match state {
            BlockState::Listed | BlockState::Unlisted => self.free_block_bytes(handle),
            _ => self.header(handle).block_bytes(),
        };
        match (phase, state) {
            (DrainPhase::Unlist, BlockState::Listed) => {
                self.unlist(handle);
                self.set_state(handle, BlockState::Unlisted);
            }
            (DrainPhase::Move, BlockState::Listed) => {
                unreachable!("a draining page has no listed blocks left")
            }
            (_, BlockState::Unlisted) | (DrainPhase::Unlist, _) => {}
            (DrainPhase::Move, _) => {
                // Taken out so that it can be read while another page is written; nothing of it
                // is listed, so nothing looks for it.
                let source = std::mem::take(&mut self.pages[page].bytes);
                let target = self.place_block(&source[offset..offset + bytes]);
                self.pages[page].bytes = source;
                moved(self, handle, target);
                self.free_block(handle, bytes);
            }
        }
        Some(Drain { offset: offset + bytes, ..drain })
    }

    fn release_page(&mut self, number: usize) {
        let page = &mut self.pages[number];
        assert_eq!(page.free_bytes, page.bytes.len(), "a drained page holds a record");
        self.free_bytes -= page.free_bytes;
        self.page_bytes -= page.bytes.capacity();
        *page = Page { bytes: Vec::new(), free_bytes: 0, draining: false };
        self.vacant_pages.push(number as u32);
        let used =
            self.pages.iter().rposition(|page| page.bytes.capacity() > 0).map_or(0, |n| n + 1);
        if used < self.pages.len() {
            self.pages.truncate(used);
            self.vacant_pages.retain(|vacant| (*vacant as usize) < used);
        }
    }

    fn next_page_bytes(&self, block_bytes: usize) -> usize {
        let share = (self.page_bytes / 64).next_multiple_of(PAGE_BYTES_MIN);
        // Four blocks at least, so that what is lost at a page's end stays small.
        share.max(4 * block_bytes).clamp(PAGE_BYTES_MIN, PAGE_BYTES_MAX)
    }

    fn place(
        &mut self,
        header: Header,
        key: &[u8],
        expire_at: Option<ExpireAt>,
        stored: &[u8],
    ) -> Handle {
        let bytes = header.block_bytes();
        let value_offset = header.value_offset();
        let header = header.encode();
        if let Some(handle) = self.take_listed(bytes) {
            let block = &mut self.pages[handle.page()].bytes[handle.offset()..][..bytes];
            block[..HEADER_BYTES].copy_from_slice(&header);
            block[HEADER_BYTES..][..key.len()].copy_from_slice(key);
            if let Some(moment) = expire_at {
                let moment = moment.millis().to_ne_bytes();
                block[HEADER_BYTES + key.len()..][..MOMENT_BYTES].copy_from_slice(&moment);
            }
            block[value_offset..][..stored.len()].copy_from_slice(stored);
            return handle;
        }
        let number = self.page_with_room(bytes);
        let page = &mut self.pages[number].bytes;
        let offset = page.len();
        page.extend_from_slice(&header);
        page.extend_from_slice(key);
        if let Some(moment) = expire_at {
            page.extend_from_slice(&moment.millis().to_ne_bytes());
        }
        page.extend_from_slice(stored);
        page.resize(offset + bytes, 0);
        Handle::new(number, offset)
    }

    /// Puts a copy of a whole block somewhere.
    fn place_block(&mut self, block: &[u8]) -> Handle {
        let bytes = block.len();
        if let Some(handle) = self.take_listed(bytes) {
            self.pages[handle.page()].bytes[handle.offset()..][..bytes].copy_from_slice(block);
            return handle;
        }
        let number = self.page_with_room(bytes);
        let page = &mut self.pages[number].bytes;
        let offset = page.len();
        page.extend_from_slice(block);
        Handle::new(number, offset)
    }

    #[inline]
    fn page_with_room(&mut self, bytes: usize) -> usize {
        if let Some(open) = self.open {
            let page = &self.pages[open].bytes;
            if page.capacity() - page.len() >= bytes {
                return open;
            }
        }
        self.open_page(bytes)
    }

    #[cold]
    fn open_page(&mut self, bytes: usize) -> usize {
        let capacity = self.next_page_bytes(bytes);
        let mut buffer = Vec::new();
        buffer.reserve_exact(capacity);
        // What the allocator gave beyond the request is not used: a handle reaches no farther.
        assert_eq!(buffer.capacity(), capacity, "byte vectors are given exactly what they ask for");
        self.page_bytes += capacity;
        let page = Page { bytes: buffer, free_bytes: 0, draining: false };
        let number = match self.vacant_pages.pop() {
            Some(number) => {
                self.pages[number as usize] = page;
                number as usize
            }
            None => {
                assert!(self.pages.len() < PAGES_MAX, "writes are refused before handles run out");
                self.pages.push(page);
                self.pages.len() - 1
            }
        };
        self.open = Some(number);
        number
    }

    fn free_block(&mut self, handle: Handle, bytes: usize) {
        let page = &mut self.pages[handle.page()];
        page.free_bytes += bytes;
        self.free_bytes += bytes;
        let draining = page.draining;
        let granules = (bytes / GRANULE_BYTES) as u32;
        self.set_word(handle, 8, granules);
        if draining {
            self.set_state(handle, BlockState::Unlisted);
        } else {
            self.set_state(handle, BlockState::Listed);
            self.list(handle, granules);
        }
    }

    fn list(&mut self, handle: Handle, granules: u32) {
        let class = granules as usize;
        if self.lists.len() <= class {
            self.lists.reserve_exact(class + 1 - self.lists.len());
            self.lists.resize(class + 1, Handle::NONE.0);
        }
        let next = Handle(std::mem::replace(&mut self.lists[class], handle.0));
        self.set_word(handle, 0, Handle::NONE.0);
        self.set_word(handle, 4, next.0);
        if next != Handle::NONE {
            self.set_word(next, 0, handle.0);
        }
    }

    fn unlist(&mut self, handle: Handle) {
        let previous = Handle(self.word(handle, 0));
        let next = Handle(self.word(handle, 4));
        if previous == Handle::NONE {
            let class = self.word(handle, 8) as usize;
            assert_eq!(self.lists[class], handle.0, "the first block of a list heads it");
            self.lists[class] = next.0;
        } else {
            self.set_word(previous, 4, next.0);
        }
        if next != Handle::NONE {
            self.set_word(next, 0, previous.0);
        }
    }

    #[inline]
    fn take_listed(&mut self, bytes: usize) -> Option<Handle> {
        let handle = Handle(*self.lists.get(bytes / GRANULE_BYTES)?);
        if handle == Handle::NONE {
            return None;
        }
        self.unlist(handle);
        self.pages[handle.page()].free_bytes -= bytes;
        self.free_bytes -= bytes;
        Some(handle)
    }

    #[inline]
    fn block(&self, handle: Handle) -> &[u8] {
        &self.pages[handle.page()].bytes[handle.offset()..]
    }

    #[inline]
    fn header(&self, handle: Handle) -> Header {
        let block = &self.block(handle)[..HEADER_BYTES];
        Header {
            version: Sequence(u64::from_ne_bytes(field(block, 0))),
            timestamp: Timestamp(u64::from_ne_bytes(field(block, 8))),
            key_len: u16::from_ne_bytes(field(block, 16)),
            state: self.state(handle),
            value_len: u32::from_ne_bytes(field(block, 20)),
        }
    }

    #[inline]
    fn state(&self, handle: Handle) -> BlockState {
        match u16::from_ne_bytes(field(self.block(handle), 18)) {
            1 => BlockState::Live,
            2 => BlockState::LiveLarge,
            3 => BlockState::Listed,
            4 => BlockState::Unlisted,
            5 => BlockState::Expiring,
            6 => BlockState::ExpiringLarge,
            other => unreachable!("a handle points at no block (state {other})"),
        }
    }

    fn set_state(&mut self, handle: Handle, state: BlockState) {
        let at = handle.offset() + 18;
        self.pages[handle.page()].bytes[at..at + 2].copy_from_slice(&(state as u16).to_ne_bytes());
    }

    fn word(&self, handle: Handle, at: usize) -> u32 {
        u32::from_ne_bytes(field(self.block(handle), at))
    }

    fn set_word(&mut self, handle: Handle, at: usize, word: u32) {
        let at = handle.offset() + at;
        self.pages[handle.page()].bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }

    fn free_block_bytes(&self, handle: Handle) -> usize {
        self.word(handle, 8) as usize * GRANULE_BYTES
    }

    fn large_slot(&self, handle: Handle, header: Header) -> u32 {
        u32::from_ne_bytes(field(self.block(handle), header.value_offset()))
    }
}

#[inline]
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("a block is as long as its header says")
}

/// Values too large for a block.
#[derive(Default)]
struct LargeValues {
    slots: Vec<Box<[u8]>>,
    vacant: Vec<u32>,
    value_bytes: usize,
}

impl LargeValues {
    const SLOT_BYTES: usize = size_of::<Box<[u8]>>() + size_of::<u32>();

    fn memory_bytes(&self) -> usize {
        self.value_bytes
            + self.slots.capacity() * size_of::<Box<[u8]>>()
            + self.vacant.capacity() * size_of::<u32>()
    }

    fn growth_max(&self, records: usize) -> usize {
        (self.slots.capacity() + 2 * records + 4) * Self::SLOT_BYTES
    }

    fn insert(&mut self, value: &[u8]) -> u32 {
        self.value_bytes += value.len();
        if let Some(slot) = self.vacant.pop() {
            self.slots[slot as usize] = value.into();
            return slot;
        }
        self.slots.push(value.into());
        (self.slots.len() - 1) as u32
    }

    fn get(&self, slot: u32) -> &[u8] {
        &self.slots[slot as usize]
    }

    fn remove(&mut self, slot: u32) {
        self.value_bytes -= self.slots[slot as usize].len();
        self.slots[slot as usize] = Box::default();
        self.vacant.push(slot);
        if self.vacant.len() == self.slots.len() {
            *self = Self::default();
        }
    }
}
