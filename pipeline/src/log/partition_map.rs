//! Maps by partition with a fixed hasher: no randomness, and a multiplication instead of SipHash,
//! once for every record that is written or replayed.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use stateside_types::{Epoch, PartitionId};

/// Partition ids are the operator's own, not a client's: no one gains by making them collide.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct IdHasher(u64);

impl IdHasher {
    fn mix(&mut self, word: u64) {
        // Fibonacci hashing; the rotation brings the mixed high bits down to where a table looks.
        self.0 =
            (self.0.rotate_left(26) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.mix(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }
}

/// By partition.
pub(super) type PartitionMap<V> = HashMap<PartitionId, V, BuildHasherDefault<IdHasher>>;
/// By partition and epoch.
pub(super) type EpochMap<V> = HashMap<(PartitionId, Epoch), V, BuildHasherDefault<IdHasher>>;

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, hash::BuildHasher};

    use super::*;

    #[test]
    fn consecutive_ids_spread_over_low_and_high_bits() {
        let hasher = BuildHasherDefault::<IdHasher>::default();
        let low: HashSet<u64> =
            (0..1_024).map(|id| hasher.hash_one(PartitionId(id)) & 0xfff).collect();
        let high: HashSet<u64> =
            (0..1_024).map(|id| hasher.hash_one(PartitionId(id)) >> 52).collect();
        assert!(low.len() > 700 && high.len() > 700, "{} {}", low.len(), high.len());
    }
}
