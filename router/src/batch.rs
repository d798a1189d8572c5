//! Where the entries of one batch go, and whether a key stands in it twice.

use hashbrown::{HashTable, hash_table::Entry};
use stateside_types::Refusal;
use stateside_types::{KeyHash, Reason};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{RoutingTable, key_hash};

/// Stands for "no partition of this table owns the key" in [`BatchPlan::routes`].
pub const UNOWNED: u32 = u32::MAX;

/// Below this many entries comparing all pairs is cheaper than hashing.
const PAIRWISE_MAX: usize = 8;

/// Places batches. Kept by its core and reused, so that placing allocates nothing.
pub struct BatchPlan {
    routes: Vec<u32>,
    seen: HashTable<u32>,
    seed: u64,
}

/// Where a batch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Every entry to this route ([`UNOWNED`]: to none).
    One(u32),
    /// To several; [`BatchPlan::routes`] has each entry's.
    Several,
}

impl BatchPlan {
    /// `seed` makes the duplicate check safe against keys crafted to collide; any secret number.
    pub fn new(seed: u64) -> Self {
        Self { routes: Vec::new(), seen: HashTable::new(), seed }
    }

    /// The route of each entry, after [`Self::place`] said `Several`.
    pub fn routes(&self) -> &[u32] {
        &self.routes
    }

    /// Finds each key's route; a routing key places them all.
    pub fn place<'k>(
        &mut self,
        table: &RoutingTable,
        mut keys: impl ExactSizeIterator<Item = &'k [u8]>,
        routing_key: Option<&[u8]>,
    ) -> Placement {
        let find = |hash: KeyHash| table.find_index(hash).map_or(UNOWNED, |index| index as u32);
        if let Some(routing_key) = routing_key {
            return Placement::One(find(key_hash(routing_key)));
        }
        let first = keys.next().map_or(UNOWNED, |key| find(key_hash(key)));
        if keys.len() == 0 {
            return Placement::One(first);
        }
        self.routes.clear();
        self.routes.push(first);
        self.routes.extend(keys.map(|key| find(key_hash(key))));
        if self.routes.iter().all(|route| *route == first) {
            return Placement::One(first);
        }
        Placement::Several
    }

    /// # Errors
    /// `DUPLICATE_KEY`, naming both entries.
    pub fn check_duplicates<'k>(
        &mut self,
        count: usize,
        key: impl Fn(usize) -> &'k [u8],
    ) -> Result<(), Refusal> {
        let duplicate = if count <= PAIRWISE_MAX {
            (1..count).find_map(|at| (0..at).find(|&i| key(i) == key(at)).map(|first| (first, at)))
        } else {
            let hash = |at: usize| xxh3_64_with_seed(key(at), self.seed);
            self.seen.clear();
            self.seen.reserve(count, |&at| hash(at as usize));
            (0..count).find_map(|at| {
                let is_same = |&other: &u32| key(other as usize) == key(at);
                match self.seen.entry(hash(at), is_same, |&at| hash(at as usize)) {
                    Entry::Occupied(first) => Some((*first.get() as usize, at)),
                    Entry::Vacant(place) => {
                        place.insert(at as u32);
                        None
                    }
                }
            })
        };
        let Some((first, second)) = duplicate else { return Ok(()) };
        let text = format!("entries {first} and {second} have the same key");
        Err(Refusal::new(Reason::DuplicateKey, text).with("entry", second))
    }
}

#[cfg(test)]
mod tests {
    use stateside_types::{CoreId, Epoch, HashRange, PartitionId};

    use super::*;
    use crate::Route;

    fn table(parts: u32) -> RoutingTable {
        let routes = HashRange::split_evenly(parts).into_iter().enumerate().map(|(i, range)| {
            Route { id: PartitionId(i as u32), range, epoch: Epoch(1), core: CoreId(0) }
        });
        RoutingTable::new(1, routes.collect()).unwrap()
    }

    #[test]
    fn keys_go_where_their_hash_says_and_a_routing_key_keeps_them_together() {
        let table = table(16);
        let keys: Vec<Vec<u8>> = (0..100).map(|i| format!("key-{i}").into_bytes()).collect();
        let keys = || keys.iter().map(Vec::as_slice);
        let mut plan = BatchPlan::new(7);
        assert_eq!(plan.place(&table, keys(), None), Placement::Several);
        for (key, route) in keys().zip(plan.routes()) {
            assert_eq!(table.find_index(key_hash(key)), Some(*route as usize));
        }
        let together = table.find_index(key_hash(b"user-1")).unwrap() as u32;
        assert_eq!(plan.place(&table, keys(), Some(b"user-1")), Placement::One(together));
        let single = table.find_index(key_hash(b"key-3")).unwrap() as u32;
        assert_eq!(plan.place(&table, keys().skip(3).take(1), None), Placement::One(single));
        assert_eq!(plan.place(&RoutingTable::default(), keys(), None), Placement::One(UNOWNED));
    }

    #[test]
    fn a_key_twice_in_a_batch_is_found_in_small_and_large_batches() {
        let mut plan = BatchPlan::new(7);
        for count in [2_usize, 8, 9, 1_000] {
            let mut keys: Vec<String> = (0..count).map(|i| format!("k{i}")).collect();
            assert_eq!(plan.check_duplicates(count, |i| keys[i].as_bytes()), Ok(()));
            keys[count - 1] = "k0".to_owned();
            let refusal = plan.check_duplicates(count, |i| keys[i].as_bytes()).unwrap_err();
            assert_eq!(refusal.reason, Reason::DuplicateKey);
            assert_eq!(refusal.metadata, vec![("entry".into(), (count - 1).to_string())]);
        }
    }
}
