//! What the fast tier of `tiered` stores counts. Written by whoever works on a store, read at any time: an engine that is
//! opened anew goes on counting where the one before stopped.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Counters of one fast tier, shared by it and whoever shows them.
#[derive(Debug, Default)]
pub struct TierFigures {
    pub(crate) read_hits: AtomicU64,
    pub(crate) read_misses: AtomicU64,
    pub(crate) other_hits: AtomicU64,
    pub(crate) other_misses: AtomicU64,
    pub(crate) admitted: AtomicU64,
    pub(crate) admitted_bytes: AtomicU64,
    pub(crate) kept: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) passed_over: AtomicU64,
    pub(crate) damaged: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) entries: AtomicU64,
    pub(crate) file_bytes: AtomicU64,
    pub(crate) memory_bytes: AtomicU64,
    pub(crate) capacity_bytes: AtomicU64,
    pub(crate) is_down: AtomicBool,
}

/// The counters at one moment. Each is whole; together they may be an operation apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierStats {
    /// Lookups of a reader that the fast tier answered.
    pub read_hits: u64,
    /// Lookups of a reader that the slow tier had to answer.
    pub read_misses: u64,
    /// Further lookups that the fast tier answered: of what a write replaces, and of pieces of long values that a
    /// scan or snapshot passes. They admit nothing.
    pub other_hits: u64,
    /// Of these, what the slow tier had to answer.
    pub other_misses: u64,
    /// Entries that were written to the fast tier: after a read that missed, or with a write.
    pub admitted: u64,
    /// Their bytes, headers and padding included.
    pub admitted_bytes: u64,
    /// Entries that were read shortly before their end and written once more.
    pub kept: u64,
    /// Entries that went to make room.
    pub evicted: u64,
    /// Entries that were not admitted: the fast tier did not keep up with its writing.
    pub passed_over: u64,
    /// Entries that were not what had been written.
    pub damaged: u64,
    /// Failed reads, writes and openings of the fast tier's file.
    pub failures: u64,
    /// Entries that can be read now.
    pub entries: u64,
    /// Length of the fast tier's file.
    pub file_bytes: u64,
    /// Memory of index and buffers.
    pub memory_bytes: u64,
    /// What the files on the fast directory may grow to together.
    pub capacity_bytes: u64,
    /// The fast tier cannot be used at present: everything is a miss.
    pub is_down: bool,
}

impl TierFigures {
    /// The present values.
    pub fn stats(&self) -> TierStats {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        TierStats {
            read_hits: of(&self.read_hits),
            read_misses: of(&self.read_misses),
            other_hits: of(&self.other_hits),
            other_misses: of(&self.other_misses),
            admitted: of(&self.admitted),
            admitted_bytes: of(&self.admitted_bytes),
            kept: of(&self.kept),
            evicted: of(&self.evicted),
            passed_over: of(&self.passed_over),
            damaged: of(&self.damaged),
            failures: of(&self.failures),
            entries: of(&self.entries),
            file_bytes: of(&self.file_bytes),
            memory_bytes: of(&self.memory_bytes),
            capacity_bytes: of(&self.capacity_bytes),
            is_down: self.is_down.load(Relaxed),
        }
    }
}
