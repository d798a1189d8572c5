//! Counts what the calling thread allocates: the global allocator of this program, the system's
//! with a tally in front.
//!
//! A tally a thread, because other threads allocate when they please.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

/// What a thread has allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allocations {
    /// Blocks; growing one counts as one more.
    pub(crate) count: u64,
    /// Their bytes; of a block that grew, the new size.
    pub(crate) bytes: u64,
}

impl Allocations {
    /// Of this thread, since it began.
    pub(crate) fn so_far() -> Self {
        TALLY.get()
    }

    /// What came after `before`.
    pub(crate) fn since(before: Self) -> Self {
        let now = Self::so_far();
        Self { count: now.count - before.count, bytes: now.bytes - before.bytes }
    }
}

thread_local! {
    static TALLY: Cell<Allocations> = const { Cell::new(Allocations { count: 0, bytes: 0 }) };
}

fn tally(bytes: usize) {
    let Allocations { count, bytes: before } = TALLY.get();
    TALLY.set(Allocations { count: count + 1, bytes: before + bytes as u64 });
}

/// See the module's header.
pub(crate) struct CountingAllocator;

// SAFETY: every call goes on to the system's allocator as it is. The tally needs neither
// memory nor a destructor, so it can be used in here, also while a thread ends.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        tally(layout.size());
        // SAFETY: the caller's promise is the system allocator's condition.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        tally(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        tally(size);
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_growth_are_counted_and_other_threads_are_not() {
        let before = Allocations::so_far();
        let mut block: Vec<u8> = Vec::with_capacity(100);
        assert_eq!(Allocations::since(before), Allocations { count: 1, bytes: 100 });
        block.reserve_exact(200);
        assert_eq!(Allocations::since(before), Allocations { count: 2, bytes: 300 });
        let ready = std::thread::spawn(|| drop(Vec::<u8>::with_capacity(12_345)));
        let at_spawn = Allocations::so_far();
        assert!(ready.join().is_ok());
        assert!(Allocations::since(at_spawn).bytes < 12_345);
    }
}
