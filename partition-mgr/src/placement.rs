//! Which core owns which partition: a pure function of what is there.

use stateside_types::{CoreId, PartitionId};

use crate::Manifest;

/// A partition that changes its core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which one.
    pub id: PartitionId,
    /// Its core so far.
    pub from: CoreId,
    /// Its core from now on.
    pub to: CoreId,
}

/// The core with the fewest partitions, the lowest of several.
///
/// # Panics
/// When there is no core.
pub fn least_loaded_core(loads: &[usize]) -> CoreId {
    let (core, _) =
        loads.iter().enumerate().min_by_key(|(_, load)| **load).expect("a node has a core");
    CoreId(core as u16)
}

impl Manifest {
    /// Partitions per core.
    pub fn core_loads(&self) -> Vec<usize> {
        let mut loads = vec![0; usize::from(self.cores)];
        for placed in self.partitions.values() {
            loads[usize::from(placed.core.0)] += 1;
        }
        loads
    }
}

/// Fits the placement to another number of cores and bumps `placement` when a partition moves.
/// Loads differ by at most one afterwards, no more partitions move than that takes, and the same
/// manifest gives the same moves on every machine. With the number unchanged nothing moves, even
/// when removals left the loads uneven: a move costs a replay of the log under another core.
///
/// # Panics
/// When `cores` is 0.
pub fn rebalance(manifest: &mut Manifest, cores: u16) -> Vec<Move> {
    assert!(cores > 0, "a node has at least one core");
    if cores == manifest.cores {
        return Vec::new();
    }
    let mut owned: Vec<Vec<PartitionId>> = vec![Vec::new(); usize::from(cores.max(manifest.cores))];
    for (id, placed) in &manifest.partitions {
        owned[usize::from(placed.core.0)].push(*id);
    }
    // Every core keeps `share`; those that had most keep one of the left-over partitions more,
    // because what a core may keep need not move.
    let count = manifest.partitions.len();
    let (share, left_over) = (count / usize::from(cores), count % usize::from(cores));
    let mut by_load: Vec<usize> = (0..usize::from(cores)).collect();
    by_load.sort_by_key(|&core| (std::cmp::Reverse(owned[core].len()), core));
    let mut quota = vec![0; owned.len()];
    for (rank, &core) in by_load.iter().enumerate() {
        quota[core] = share + usize::from(rank < left_over);
    }
    let mut homeless = Vec::new();
    for (core, ids) in owned.iter_mut().enumerate() {
        homeless.extend(ids.drain(quota[core].min(ids.len())..).map(|id| (id, core)));
    }
    homeless.sort_unstable();
    let mut moves = Vec::new();
    let mut to = 0;
    for (id, from) in homeless {
        while owned[to].len() == quota[to] {
            to += 1;
        }
        owned[to].push(id);
        moves.push(Move { id, from: CoreId(from as u16), to: CoreId(to as u16) });
    }
    for step in &moves {
        let placed = manifest.partitions.get_mut(&step.id).expect("only known partitions move");
        placed.core = step.to;
    }
    manifest.cores = cores;
    if !moves.is_empty() {
        manifest.placement += 1;
    }
    moves
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stateside_types::{Ack, DEFAULT_PIPELINE, HashRange, PartitionSpec, Sequence, StoreKind};

    use super::*;
    use crate::PlacedPartition;

    fn manifest(cores: u16, placement: &[u16]) -> Manifest {
        let mut manifest = Manifest::new("n".to_owned(), 0, cores);
        if placement.is_empty() {
            return manifest;
        }
        let ranges = HashRange::split_evenly(placement.len() as u32);
        for (id, (range, core)) in (0..).map(PartitionId).zip(ranges.into_iter().zip(placement)) {
            let epoch = manifest.take_epoch();
            let spec = PartitionSpec {
                id,
                range,
                store: StoreKind::Memory,
                ack: Ack::Durable,
                pipeline: DEFAULT_PIPELINE.into(),
                first_epoch: epoch,
                epoch,
                base_sequence: Sequence::ZERO,
            };
            manifest.partitions.insert(id, PlacedPartition { spec, core: CoreId(*core) });
        }
        manifest
    }

    #[test]
    fn a_new_partition_goes_to_the_core_with_the_fewest() {
        assert_eq!(least_loaded_core(&[3, 1, 1]), CoreId(1));
        assert_eq!(least_loaded_core(&[0]), CoreId(0));
    }

    #[test]
    fn one_core_becomes_two_by_moving_half() {
        let mut grown = manifest(1, &[0; 4]);
        let moves = rebalance(&mut grown, 2);
        let (from, to) = (CoreId(0), CoreId(1));
        assert_eq!(moves, [2, 3].map(|id| Move { id: PartitionId(id), from, to }));
        assert_eq!((grown.cores, grown.placement), (2, 2));
        let moves = rebalance(&mut grown, 1);
        assert_eq!(moves.len(), 2);
        assert_eq!((grown.cores, grown.placement), (1, 3));
    }

    #[test]
    fn more_cores_than_partitions_moves_nothing_that_need_not_move() {
        let mut sparse = manifest(2, &[0, 1]);
        assert_eq!(rebalance(&mut sparse, 8), []);
        assert_eq!((sparse.cores, sparse.placement), (8, 1));
    }

    proptest! {
        #[test]
        fn loads_end_even_with_the_fewest_moves(
            placement in prop::collection::vec(0_u16..6, 0..40),
            cores in 1_u16..9,
        ) {
            let before = manifest(6, &placement);
            let mut after = before.clone();
            let moves = rebalance(&mut after, cores);
            prop_assert_eq!(Manifest::decode(&after.encode()), Ok(after.clone()));
            let moved = moves.len();
            for step in &moves {
                prop_assert_ne!(step.from, step.to);
                prop_assert_eq!(before.partitions[&step.id].core, step.from);
                prop_assert_eq!(after.partitions[&step.id].core, step.to);
            }
            prop_assert_eq!(after.placement, before.placement + u64::from(moved > 0));
            if cores == 6 {
                prop_assert_eq!(moved, 0);
                return Ok(());
            }
            let loads = after.core_loads();
            prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1);
            // Fewest possible: what cores have above their share, counted over the kinder
            // assignment of the left-over partitions.
            let mut had = before.core_loads();
            had.resize(usize::from(cores.max(6)), 0);
            let (share, mut spare) =
                (placement.len() / usize::from(cores), placement.len() % usize::from(cores));
            let mut least = had[usize::from(cores).min(had.len())..].iter().sum::<usize>();
            had.truncate(usize::from(cores));
            had.sort_unstable();
            for load in had.into_iter().rev() {
                let keeps = share + usize::from(spare > 0);
                spare = spare.saturating_sub(1);
                least += load.saturating_sub(keeps);
            }
            prop_assert_eq!(moved, least);
        }
    }
}
