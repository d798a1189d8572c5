//! The keys of a memory store in their order, for stores of kind `memory-ordered`.
//!
//! A B-tree with a copy of each key, beside the index that finds records: reads and overwrites do not
//! touch it, a new key and a removal cost one descent. (A tree of the index's 4-byte handles, comparing keys
//! in the arena, would save the copy and pay a cache miss for each comparison.)

use std::{collections::BTreeSet, mem::size_of};

/// What a key takes beside its bytes: its place in a leaf two thirds full, its share of the inner
/// nodes, and the allocation's rounding.
const ENTRY_BYTES: usize = 2 * size_of::<Box<[u8]>>() + 8;

#[derive(Default)]
pub(super) struct KeyOrder {
    keys: BTreeSet<Box<[u8]>>,
    key_bytes: usize,
}

impl KeyOrder {
    /// Adds a key that is not there.
    pub(super) fn insert(&mut self, key: &[u8]) {
        let is_new = self.keys.insert(key.into());
        debug_assert!(is_new, "the index knew that the key is new");
        self.key_bytes += key.len();
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        let was_there = self.keys.remove(key);
        debug_assert!(was_there, "the index knew the key");
        self.key_bytes -= key.len();
    }

    /// The keys between two bounds, which must not cross.
    pub(super) fn range<'a>(
        &'a self,
        bounds: (std::ops::Bound<&[u8]>, std::ops::Bound<&[u8]>),
    ) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.keys.range::<[u8], _>(bounds).map(|key| &**key)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.key_bytes + self.keys.len() * ENTRY_BYTES
    }

    /// At most this much more memory for a new key.
    pub(super) fn growth_max(key: &[u8]) -> usize {
        key.len() + ENTRY_BYTES
    }
}
