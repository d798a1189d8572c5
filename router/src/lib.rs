//! Key to partition to core: pure, one lookup table shared by every core of a node and by
//! clients that route for themselves.
//!
//! A [`RoutingTable`] never changes; a new partition set is a new table with a higher version,
//! handed out behind an `Arc`.

mod batch;

pub use batch::{BatchPlan, Placement, UNOWNED};
use stateside_types::{CoreId, Epoch, HashRange, KeyHash, PartitionId};
use xxhash_rust::xxh3::xxh3_64;

/// xxh3-64, the one hash that places keys. Part of the contract: clients compute it too.
#[inline]
pub fn key_hash(bytes: &[u8]) -> KeyHash {
    KeyHash(xxh3_64(bytes))
}

/// Where one partition lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The partition.
    pub id: PartitionId,
    /// The hashes that it owns.
    pub range: HashRange,
    /// Its epoch.
    pub epoch: Epoch,
    /// The core that owns it.
    pub core: CoreId,
}

/// Two routes own the same hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap(
    /// The one with the lower start.
    pub PartitionId,
    /// The other.
    pub PartitionId,
);

/// The partition set of a node, searchable by key hash.
///
/// Lookup is a guess by the hash's top bits, corrected by steps to the neighbours: with evenly
/// cut ranges the guess is right, with any others the steps stay few because `guess` holds the
/// first route that could match for each of its slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutingTable {
    version: u64,
    /// Sorted by range start.
    routes: Vec<Route>,
    /// For each value of the hash's top bits, the first route whose range ends above its lowest hash.
    guess: Vec<u32>,
    guess_shift: u32,
}

impl RoutingTable {
    /// # Errors
    /// [`Overlap`] when two ranges share a hash.
    pub fn new(version: u64, mut routes: Vec<Route>) -> Result<Self, Overlap> {
        routes.sort_by_key(|route| route.range.start());
        for pair in routes.windows(2) {
            if pair[0].range.overlaps(pair[1].range) {
                return Err(Overlap(pair[0].id, pair[1].id));
            }
        }
        // Two slots a route make a wrong guess rare also when ranges are uneven.
        let slots = (routes.len() * 2).next_power_of_two().max(2);
        let guess_shift = 64 - slots.trailing_zeros();
        let mut guess = Vec::with_capacity(slots);
        let mut at = 0;
        for slot in 0..slots as u64 {
            let lowest = slot << guess_shift;
            while at < routes.len() && routes[at].range.last() < lowest {
                at += 1;
            }
            guess.push(at as u32);
        }
        Ok(Self { version, routes, guess, guess_shift })
    }

    /// Rises with every change of the set.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// All routes, by range start.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The partition that owns `hash`, as an index into [`Self::routes`].
    #[inline]
    pub fn find_index(&self, hash: KeyHash) -> Option<usize> {
        let mut at = *self.guess.get((hash.0 >> self.guess_shift) as usize)? as usize;
        while let Some(route) = self.routes.get(at) {
            if hash.0 <= route.range.last() {
                return (hash.0 >= route.range.start()).then_some(at);
            }
            at += 1;
        }
        None
    }

    /// The partition that owns `hash`.
    #[inline]
    pub fn find(&self, hash: KeyHash) -> Option<&Route> {
        self.find_index(hash).map(|index| &self.routes[index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(ranges: &[(u64, u64)]) -> RoutingTable {
        let routes = ranges
            .iter()
            .enumerate()
            .map(|(i, &(start, end))| Route {
                id: PartitionId(i as u32),
                range: HashRange::new(start, end).unwrap(),
                epoch: Epoch(1),
                core: CoreId(0),
            })
            .collect();
        RoutingTable::new(1, routes).unwrap()
    }

    #[test]
    fn the_hash_is_xxh3_64_as_the_contract_says() {
        // Reference values of the xxHash project: XXH3_64bits of "" and of "a", seed 0.
        assert_eq!(key_hash(b"").0, 0x2d06_8005_38d3_94c2);
        assert_eq!(key_hash(b"a").0, 0xe6c6_32b6_1e96_4e1f);
    }

    #[test]
    fn every_hash_finds_the_range_that_holds_it_or_none() {
        let uneven =
            [(10, 11), (11, 4_000), (1 << 40, 1 << 41), (u64::MAX - 5, u64::MAX), (u64::MAX, 0)];
        for ranges in [&uneven[..], &[(0, 0)], &[], &[(1 << 63, 0)]] {
            let table = table(ranges);
            let edges = ranges.iter().flat_map(|&(start, end)| {
                [
                    start.wrapping_sub(1),
                    start,
                    start + u64::from(start != u64::MAX),
                    end.wrapping_sub(1),
                    end,
                ]
            });
            for hash in edges.chain([0, u64::MAX, 1 << 62]).map(KeyHash) {
                let slow = table.routes().iter().position(|route| route.range.contains(hash));
                assert_eq!(table.find_index(hash), slow, "{hash:?} in {ranges:?}");
            }
        }
    }

    #[test]
    fn an_even_split_of_a_thousand_finds_each_partition() {
        let ranges: Vec<_> =
            HashRange::split_evenly(1_000).iter().map(|r| (r.start(), r.end())).collect();
        let table = table(&ranges);
        for key in 0..10_000_u32 {
            let hash = key_hash(&key.to_le_bytes());
            assert!(table.find(hash).unwrap().range.contains(hash));
        }
    }

    #[test]
    fn overlapping_routes_are_refused() {
        let route = |id, start, end| Route {
            id: PartitionId(id),
            range: HashRange::new(start, end).unwrap(),
            epoch: Epoch(1),
            core: CoreId(0),
        };
        assert_eq!(
            RoutingTable::new(1, vec![route(2, 50, 0), route(1, 0, 51)]),
            Err(Overlap(PartitionId(1), PartitionId(2)))
        );
    }
}
