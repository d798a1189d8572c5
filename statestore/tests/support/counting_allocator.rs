//! An allocator that counts: what the whole process holds, so that a store's own accounting
//! can be checked against it. Included by path where it is the global allocator.

use std::{
    alloc::{GlobalAlloc, Layout},
    sync::atomic::{AtomicIsize, Ordering},
};

/// The node's allocator (mimalloc), counting bytes asked for and not yet given back.
pub(crate) struct CountingAllocator;

static HELD: AtomicIsize = AtomicIsize::new(0);

/// Bytes allocated and not freed by the whole process.
pub(crate) fn held_bytes() -> isize {
    HELD.load(Ordering::Relaxed)
}

// SAFETY: every call is passed on to the node's allocator (mimalloc) unchanged; counting touches no memory
// of the allocation.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { mimalloc::MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise about `pointer` and `layout` is passed on.
        unsafe { mimalloc::MiMalloc.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        HELD.fetch_add(new_size as isize - layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise about `pointer`, `layout` and `new_size` is passed on.
        unsafe { mimalloc::MiMalloc.realloc(pointer, layout, new_size) }
    }
}
