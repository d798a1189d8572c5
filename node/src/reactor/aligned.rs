//! Memory for direct file writes: aligned to the block that `O_DIRECT` asks for.
//!
//! A buffer is filled by its owner, lent to the ring with `write_file`, and comes back with the
//! `FileWritten` event, so the log recycles a few of them and allocates nothing in between.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    fmt,
    ops::{Deref, DerefMut},
    ptr::NonNull,
};

/// Alignment of address, length and file offset of a direct write. Devices with blocks above
/// 4 KiB are not in use; those with less accept it.
pub const BLOCK_BYTES: usize = 4 << 10;

/// A growable byte buffer whose address is a multiple of [`BLOCK_BYTES`]. Its memory beyond
/// `len` is initialised (zero, or older content), so padding is cheap and nothing leaks from
/// other allocations to the disk.
pub struct AlignedBuffer {
    start: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: the buffer owns its memory as Vec<u8> does; nothing else points into it while it is
// owned (the ring owns the buffer while the kernel reads from it).
unsafe impl Send for AlignedBuffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// An empty buffer that holds `capacity` bytes, rounded up to whole blocks.
    pub fn with_capacity(capacity: usize) -> Self {
        let capacity = capacity.max(1).next_multiple_of(BLOCK_BYTES);
        Self { start: allocate(capacity), len: 0, capacity }
    }

    /// Bytes that fit without growing.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Appends `bytes`; grows (copying) when they do not fit.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let needed = self.len + bytes.len();
        if needed > self.capacity {
            self.grow(needed);
        }
        let len = self.len;
        self.len = needed;
        self[len..].copy_from_slice(bytes);
    }

    /// Appends zeroes up to the next multiple of [`BLOCK_BYTES`].
    pub fn pad_to_block(&mut self) {
        let padded = self.len.next_multiple_of(BLOCK_BYTES);
        debug_assert!(padded <= self.capacity, "the capacity is a multiple of the block");
        let len = self.len;
        self.len = padded;
        self[len..].fill(0);
    }

    /// Shortens to `len` bytes; does nothing when it is shorter already.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Empties the buffer and keeps its memory.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    fn grow(&mut self, needed: usize) {
        let mut larger = Self::with_capacity(needed.max(self.capacity * 2));
        larger.len = self.len;
        larger.copy_from_slice(self);
        *self = larger;
    }
}

fn layout(capacity: usize) -> Layout {
    Layout::from_size_align(capacity, BLOCK_BYTES).expect("a buffer is far below isize::MAX bytes")
}

fn allocate(capacity: usize) -> NonNull<u8> {
    let layout = layout(capacity);
    assert!(layout.size() > 0, "capacity is at least a block");
    // SAFETY: the layout's size is not zero, asserted above.
    let start = unsafe { alloc_zeroed(layout) };
    NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout))
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: `start` came from `allocate(self.capacity)` and is freed once, here.
        unsafe { dealloc(self.start.as_ptr(), layout(self.capacity)) }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `capacity` initialised bytes and `len <= capacity`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuffer")
            .field("len", &self.len)
            .field("capacity", &self.capacity)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_aligned_and_keeps_its_bytes_while_it_grows() {
        let mut buffer = AlignedBuffer::with_capacity(10);
        let mut expected = Vec::new();
        for round in 0..50u8 {
            let piece = vec![round; 997];
            buffer.extend_from_slice(&piece);
            expected.extend_from_slice(&piece);
            assert_eq!(buffer.as_ptr() as usize % BLOCK_BYTES, 0);
        }
        assert_eq!(&buffer[..], &expected[..]);
        assert_eq!(buffer.capacity() % BLOCK_BYTES, 0);
    }

    #[test]
    fn padding_is_zero_even_where_older_bytes_were() {
        let mut buffer = AlignedBuffer::with_capacity(BLOCK_BYTES);
        buffer.extend_from_slice(&[0xff; BLOCK_BYTES]);
        buffer.clear();
        buffer.extend_from_slice(b"abc");
        buffer.pad_to_block();
        assert_eq!(buffer.len(), BLOCK_BYTES);
        assert_eq!(&buffer[..3], b"abc");
        assert!(buffer[3..].iter().all(|byte| *byte == 0));
        buffer.pad_to_block();
        assert_eq!(buffer.len(), BLOCK_BYTES, "whole blocks stay as they are");
    }
}
