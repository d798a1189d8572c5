//! The library's allocator. A call costs it nine small blocks, which are kept for the next one: a
//! tenth of a small call's instructions less than malloc.
//!
//! Why it is sound: a block is made and freed with the layout that its own header records; a kept
//! block is in exactly one list and nobody's; all state is in `Cell`s behind a shared reference.
//! The library's only promise is malloc's: free once, no use after.

use std::{
    alloc::{self, Layout},
    cell::Cell,
    ffi::c_void,
    ptr::{self, NonNull},
};

use libnghttp2_sys as ffi;

/// What the library is given; `memory` must outlive every session made with it.
pub(super) fn functions(memory: &Memory) -> ffi::nghttp2_mem {
    ffi::nghttp2_mem {
        mem_user_data: ptr::from_ref(memory).cast_mut().cast(),
        malloc: Some(memory_malloc),
        free: Some(memory_free),
        calloc: Some(memory_calloc),
        realloc: Some(memory_realloc),
    }
}

/// Shared by the sessions of an endpoint, hence of one thread.
///
/// ```text
///  0         8        16                     16 + capacity
/// ┌─────────┬────────┬──────────────────────┐
/// │capacity │ unused │ payload, 16-aligned  │   kept: the payload begins with the next kept block
/// └─────────┴────────┴──────────────────────┘
/// ```
#[derive(Default)]
pub(super) struct Memory {
    /// Kept blocks, one list for each capacity, a multiple of `STEP_BYTES`.
    kept: [Cell<Option<NonNull<Block>>>; CLASSES],
    counts: [Cell<u32>; CLASSES],
}

const STEP_BYTES: usize = 64;
const CLASSES: usize = 8;
/// Blocks of one capacity that are kept; 2.3 MB in all.
const KEPT_BLOCKS_MAX: u32 = 1_024;

/// A block's header, and the link that its payload holds while it is kept.
#[repr(C, align(16))]
struct Block {
    capacity: usize,
    _unused: usize,
    next: Option<NonNull<Block>>,
}

const HEADER_BYTES: usize = 16;
const _: () = assert!(std::mem::offset_of!(Block, next) == HEADER_BYTES);
const _: () = assert!(size_of::<Block>() <= HEADER_BYTES + STEP_BYTES);

impl Memory {
    fn layout(capacity: usize) -> Option<Layout> {
        Layout::from_size_align(HEADER_BYTES.checked_add(capacity)?, align_of::<Block>()).ok()
    }

    /// Which list a capacity belongs to, if any.
    #[inline]
    fn class(capacity: usize) -> Option<usize> {
        let class = capacity / STEP_BYTES - 1;
        (class < CLASSES).then_some(class)
    }

    #[inline]
    fn take(&self, bytes: usize) -> Option<NonNull<Block>> {
        let capacity = bytes.max(1).checked_next_multiple_of(STEP_BYTES)?;
        if let Some(class) = Self::class(capacity)
            && let Some(block) = self.kept[class].get()
        {
            // SAFETY: a kept block is live, and nobody else's; its link was written by `give`.
            self.kept[class].set(unsafe { (*block.as_ptr()).next });
            self.counts[class].set(self.counts[class].get() - 1);
            return Some(block);
        }
        let layout = Self::layout(capacity)?;
        // SAFETY: the layout is not of size 0.
        let block = NonNull::new(unsafe { alloc::alloc(layout) })?.cast::<Block>();
        // SAFETY: fresh memory, aligned, with room for the header.
        unsafe { (&raw mut (*block.as_ptr()).capacity).write(capacity) };
        Some(block)
    }

    /// # Safety
    /// `block` came from `take` and is not used after.
    #[inline]
    unsafe fn give(&self, block: NonNull<Block>) {
        // SAFETY: `take` wrote it, and the library does not write before its payload.
        let capacity = unsafe { (*block.as_ptr()).capacity };
        if let Some(class) = Self::class(capacity)
            && self.counts[class].get() < KEPT_BLOCKS_MAX
        {
            // SAFETY: the payload is ours again, and at least 64 bytes.
            unsafe { (&raw mut (*block.as_ptr()).next).write(self.kept[class].get()) };
            self.kept[class].set(Some(block));
            self.counts[class].set(self.counts[class].get() + 1);
            return;
        }
        let layout = Self::layout(capacity).expect("it was allocated with this layout");
        // SAFETY: allocated by `take` with the layout of its capacity.
        unsafe { alloc::dealloc(block.as_ptr().cast(), layout) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for class in 0..CLASSES {
            // What is given beyond the limit goes back to the system.
            self.counts[class].set(KEPT_BLOCKS_MAX);
            while let Some(block) = self.kept[class].get() {
                // SAFETY: as in `take`; out of the list, it is given once.
                unsafe {
                    self.kept[class].set((*block.as_ptr()).next);
                    self.give(block);
                }
            }
        }
    }
}

/// # Safety
/// `payload` is what `memory_malloc` gave out, not null.
#[inline]
unsafe fn block_of(payload: *mut c_void) -> NonNull<Block> {
    // SAFETY: the header lies right before the payload, in the same allocation.
    unsafe { NonNull::new_unchecked(payload.byte_sub(HEADER_BYTES).cast()) }
}

unsafe extern "C" fn memory_malloc(bytes: usize, user_data: *mut c_void) -> *mut c_void {
    // SAFETY: `Connection::new` set it to a `Memory` that outlives the session.
    let memory = unsafe { &*user_data.cast::<Memory>() };
    match memory.take(bytes) {
        // SAFETY: the payload is part of the block.
        Some(block) => unsafe { block.as_ptr().byte_add(HEADER_BYTES).cast() },
        None => ptr::null_mut(),
    }
}

unsafe extern "C" fn memory_free(payload: *mut c_void, user_data: *mut c_void) {
    if !payload.is_null() {
        // SAFETY: as in `memory_malloc`; the library frees what it got from there, once.
        unsafe { (*user_data.cast::<Memory>()).give(block_of(payload)) };
    }
}

unsafe extern "C" fn memory_calloc(
    count: usize,
    bytes: usize,
    user_data: *mut c_void,
) -> *mut c_void {
    let Some(bytes) = count.checked_mul(bytes) else { return ptr::null_mut() };
    // SAFETY: user data as promised to this function.
    let payload = unsafe { memory_malloc(bytes, user_data) };
    if !payload.is_null() {
        // SAFETY: the payload has at least so many bytes.
        unsafe { payload.write_bytes(0, bytes) };
    }
    payload
}

unsafe extern "C" fn memory_realloc(
    payload: *mut c_void,
    bytes: usize,
    user_data: *mut c_void,
) -> *mut c_void {
    if payload.is_null() {
        // SAFETY: user data as promised to this function.
        return unsafe { memory_malloc(bytes, user_data) };
    }
    // SAFETY: `payload` came from `memory_malloc`.
    let capacity = unsafe { (*block_of(payload).as_ptr()).capacity };
    if bytes <= capacity {
        return payload;
    }
    // SAFETY: user data as promised to this function.
    let grown = unsafe { memory_malloc(bytes, user_data) };
    if !grown.is_null() {
        // SAFETY: both have `capacity` bytes and are two allocations; the old one is freed once.
        unsafe {
            ptr::copy_nonoverlapping(payload.cast::<u8>(), grown.cast(), capacity);
            memory_free(payload, user_data);
        }
    }
    grown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_reused_and_keep_their_bytes() {
        let memory = Memory::default();
        let functions = functions(&memory);
        let user_data = functions.mem_user_data;
        // SAFETY: as the library would call them; every payload is freed once, or by `realloc`.
        unsafe {
            let first = memory_malloc(40, user_data);
            assert_eq!(first.addr() % 16, 0);
            memory_free(first, user_data);
            let again = memory_malloc(64, user_data);
            assert_eq!(again, first, "the warmest block is used next");

            again.write_bytes(7, 64);
            let grown = memory_realloc(again, 5_000, user_data).cast::<u8>();
            assert!((0..64).all(|at| *grown.add(at) == 7));
            assert_eq!(memory_realloc(grown.cast(), 5_050, user_data), grown.cast());
            memory_free(grown.cast(), user_data);

            let zeroed = memory_calloc(8, 8, user_data).cast::<u8>();
            assert!((0..64).all(|at| *zeroed.add(at) == 0));
            memory_free(zeroed.cast(), user_data);
            assert!(memory_calloc(usize::MAX, 2, user_data).is_null());
            assert!(memory_malloc(usize::MAX - 20, user_data).is_null());
            memory_free(ptr::null_mut(), user_data);
            let empty = memory_realloc(ptr::null_mut(), 0, user_data);
            assert!(!empty.is_null());
            memory_free(empty, user_data);
        }
    }

    #[test]
    fn no_more_blocks_are_kept_than_the_limit() {
        let memory = Memory::default();
        let user_data = functions(&memory).mem_user_data;
        // SAFETY: as above.
        unsafe {
            let blocks: Vec<_> =
                (0..2 * KEPT_BLOCKS_MAX).map(|_| memory_malloc(100, user_data)).collect();
            for block in blocks {
                memory_free(block, user_data);
            }
        }
        assert_eq!(memory.counts[1].get(), KEPT_BLOCKS_MAX);
    }
}
