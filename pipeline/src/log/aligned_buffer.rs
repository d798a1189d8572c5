//! Memory that a direct write takes: aligned to the log's block size.
//!
//! The only unsafe file of this crate. `Vec<u8>` cannot promise an alignment, and over-allocating a
//! `Vec` and slicing into it would break when the `Vec` moves its bytes.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ops::{Deref, DerefMut},
    ptr::NonNull,
    slice,
};

use super::block::BLOCK_BYTES;

/// A fixed piece of zeroed memory at a 4 KiB boundary. Owned by the core that fills it, or by the
/// kernel while a write is under way; its bytes do not move when the value does.
pub struct AlignedBuffer {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the buffer owns its memory exclusively, like a `Box<[u8]>`; nothing in it is tied to a
// thread.
unsafe impl Send for AlignedBuffer {}
// SAFETY: a shared reference only reads the bytes.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// The alignment of every buffer, bytes.
    pub const ALIGNMENT_BYTES: usize = BLOCK_BYTES;

    /// `bytes` of zeros.
    ///
    /// # Panics
    /// When `bytes` is 0 or not a multiple of the alignment.
    pub fn zeroed(bytes: usize) -> Self {
        let layout = Self::layout(bytes);
        // SAFETY: the layout's size is not zero, `layout` asserts it.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, bytes }
    }

    fn layout(bytes: usize) -> Layout {
        assert!(bytes > 0 && bytes.is_multiple_of(Self::ALIGNMENT_BYTES), "whole blocks only");
        Layout::from_size_align(bytes, Self::ALIGNMENT_BYTES)
            .expect("the alignment is a power of two and sizes are far below the address space")
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `bytes` initialised (zeroed) bytes until drop.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with the same layout, freed once.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.bytes)) }
    }
}

impl std::fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AlignedBuffer").field("bytes", &self.bytes).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_zeroed_aligned_and_keeps_its_place_when_moved() {
        let mut buffer = AlignedBuffer::zeroed(3 * BLOCK_BYTES);
        assert!(buffer.iter().all(|byte| *byte == 0));
        assert_eq!(buffer.as_ptr() as usize % BLOCK_BYTES, 0);
        buffer[5] = 7;
        let place = buffer.as_ptr();
        let moved = Box::new(buffer);
        assert_eq!(moved.as_ptr(), place);
        assert_eq!(moved[5], 7);
    }
}
