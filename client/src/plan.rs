//! Cuts a batch into requests: pure.
//!
//! One request per core, not per partition: the core executes a request partition by partition
//! anyway and answers per entry, so a request for each of its partitions would buy nothing and cost
//! a call each. Within a core's share the entries of one partition stay together, in the batch's
//! order, and are cut apart only when they alone exceed a limit: what falls into one partition is
//! written atomically wherever it can be.
//!
//! ```text
//! batch      a0 b1 c0 d2 e1 f0        letter: entry, digit: partition
//! core 0     partitions 0, 1  ─►  [a0 c0 f0 b1 e1]  ─►  cut where bytes or entries exceed the limit
//! core 1     partition 2      ─►  [d2]
//! ```

/// Largest request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestLimits {
    /// Bytes of all entries, their field headers included.
    pub(crate) bytes: usize,
    /// Entries.
    pub(crate) entries: usize,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// A core's own address, by its index in the topology.
    Home(u32),
    /// The endpoint that the client was given.
    Shared,
}

/// One entry to place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    /// Its index in the batch.
    pub(crate) index: u32,
    pub(crate) target: Target,
    /// Index of its partition; equal for all where it is not known.
    pub(crate) partition: u32,
    /// Its bytes in the request; at most `RequestLimits::bytes`.
    pub(crate) bytes: u32,
}

/// One request to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) target: Target,
    /// Indexes into the batch.
    pub(crate) picks: Vec<u32>,
    /// Bytes of its entries.
    pub(crate) bytes: usize,
    /// Of its id; 0: it has none.
    pub(crate) number: u64,
}

/// Cuts the batch. `placed` is sorted on the way.
pub(crate) fn plan(placed: &mut [Placed], limits: RequestLimits) -> Vec<Request> {
    assert!(limits.entries > 0, "a request holds at least one entry");
    placed.sort_unstable_by_key(|entry| (entry.target, entry.partition, entry.index));
    let mut requests: Vec<Request> = Vec::new();
    let parts = placed.chunk_by(|a, b| (a.target, a.partition) == (b.target, b.partition));
    for part in parts {
        let part_bytes: usize = part.iter().map(|entry| entry.bytes as usize).sum();
        let target = part[0].target;
        let fits = |request: &Request, entries: usize, bytes: usize| {
            request.target == target
                && request.picks.len() + entries <= limits.entries
                && request.bytes + bytes <= limits.bytes
        };
        // A part that fits whole into the current request joins it; else it begins a new one.
        let mut current = requests.pop_if(|request| fits(request, part.len(), part_bytes));
        for entry in part {
            debug_assert!(entry.bytes as usize <= limits.bytes, "checked before planning");
            if let Some(full) = current.take_if(|request| !fits(request, 1, entry.bytes as usize)) {
                requests.push(full);
            }
            let request = current.get_or_insert_with(|| Request {
                target,
                picks: Vec::new(),
                bytes: 0,
                number: 0,
            });
            request.picks.push(entry.index);
            request.bytes += entry.bytes as usize;
        }
        requests.extend(current);
    }
    requests
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn placed(index: u32, home: u32, partition: u32, bytes: u32) -> Placed {
        Placed { index, target: Target::Home(home), partition, bytes }
    }

    const WIDE: RequestLimits = RequestLimits { bytes: 1_000, entries: 1_000 };

    #[test]
    fn one_request_per_core_with_partitions_together_in_order() {
        let mut batch = [
            placed(0, 0, 0, 1),
            placed(1, 0, 1, 1),
            placed(2, 0, 0, 1),
            placed(3, 1, 2, 1),
            placed(4, 0, 1, 1),
            placed(5, 0, 0, 1),
        ];
        assert_eq!(
            plan(&mut batch, WIDE),
            [
                Request {
                    target: Target::Home(0),
                    picks: vec![0, 2, 5, 1, 4],
                    bytes: 5,
                    number: 0
                },
                Request { target: Target::Home(1), picks: vec![3], bytes: 1, number: 0 },
            ]
        );
        assert!(plan(&mut [], WIDE).is_empty());
    }

    #[test]
    fn a_partition_that_fits_a_request_of_its_own_is_not_cut() {
        let mut batch: Vec<_> = (0..10).map(|i| placed(i, 0, i / 5, 1)).collect();
        let requests = plan(&mut batch, RequestLimits { bytes: 8, entries: 100 });
        let picks: Vec<_> = requests.iter().map(|request| request.picks.clone()).collect();
        assert_eq!(picks, [vec![0, 1, 2, 3, 4], vec![5, 6, 7, 8, 9]]);
    }

    proptest! {
        #[test]
        fn every_entry_is_sent_once_within_limits_to_its_core_in_order(
            entries in prop::collection::vec((0..3_u32, 0..4_u32, 1..50_u32), 0..200),
            bytes in 50..200_usize, count in 1..20_usize,
        ) {
            let mut batch: Vec<_> = entries
                .iter()
                .enumerate()
                .map(|(i, &(home, partition, bytes))| placed(i as u32, home, home * 4 + partition, bytes))
                .collect();
            let original = batch.clone();
            let limits = RequestLimits { bytes, entries: count };
            let requests = plan(&mut batch, limits);
            let mut seen: Vec<u32> = requests.iter().flat_map(|r| r.picks.clone()).collect();
            for request in &requests {
                let sum: usize = request.picks.iter().map(|&i| original[i as usize].bytes as usize).sum();
                prop_assert_eq!(sum, request.bytes);
                prop_assert!(sum <= bytes && request.picks.len() <= count && !request.picks.is_empty());
                prop_assert!(request.picks.iter().all(|&i| original[i as usize].target == request.target));
            }
            for partition in 0..12 {
                // Order within a partition survives, and only a partition above a limit is cut.
                let own = |i: &u32| original[*i as usize].partition == partition;
                let order: Vec<u32> = seen.iter().copied().filter(|i| own(i)).collect();
                prop_assert!(order.is_sorted());
                let total: usize = order.iter().map(|&i| original[i as usize].bytes as usize).sum();
                let spread = requests.iter().filter(|r| r.picks.iter().any(own)).count();
                prop_assert!(spread <= 1 || total > bytes || order.len() > count);
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..entries.len() as u32).collect::<Vec<_>>());
        }
    }
}
