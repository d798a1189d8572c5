//! The desired partition set of a node: what the registry declares and the manager works towards.
//!
//! Registry and manager are siblings that do not import each other; this is the word between
//! them. A [`DesiredSet`] that exists is consistent: ids are unique, ranges do not overlap, the
//! pipelines can work.

use std::collections::BTreeMap;

use crate::{
    Ack, HashRange, PartitionId, PipelineError, PipelineSpec, StageSpec, StoreKind, check_ack,
    check_pipeline, limits,
};

/// One declared partition. What is left out follows the node's defaults: the store as they were
/// when the partition was created, acknowledgement and pipeline as they are now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPartition {
    /// Its name in the fleet.
    pub id: PartitionId,
    /// The key hashes that it owns.
    pub range: HashRange,
    /// Where its records live.
    pub store: Option<StoreKind>,
    /// Default acknowledgement of its writes.
    pub ack: Option<Ack>,
    /// Its stages, in order.
    pub pipeline: Option<PipelineSpec>,
}

/// Partitions that can exist side by side, plus the removals that somebody confirmed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredSet {
    partitions: BTreeMap<PartitionId, DesiredPartition>,
    removed: Vec<PartitionId>,
}

/// Why declarations are no set. The numbers are positions in the list that was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DesiredError {
    /// An id is declared twice.
    #[error("partition {id} is declared twice")]
    DuplicateId {
        /// The later declaration.
        index: usize,
        /// The earlier one.
        other: usize,
        /// The id of both.
        id: PartitionId,
    },
    /// Two ranges share hashes.
    #[error(
        "the range {range} of partition {id} overlaps the range {other_range} of partition {other_id}"
    )]
    Overlap {
        /// The later declaration.
        index: usize,
        /// The earlier one.
        other: usize,
        /// Id of the later one.
        id: PartitionId,
        /// Its range.
        range: HashRange,
        /// Id of the earlier one.
        other_id: PartitionId,
        /// Its range.
        other_range: HashRange,
    },
    /// The pipeline cannot work.
    #[error("partition {id}: {reason}")]
    Pipeline {
        /// The declaration.
        index: usize,
        /// Its id.
        id: PartitionId,
        /// What is wrong.
        reason: PipelineError,
    },
    /// A partition is both declared and confirmed as removed.
    #[error("partition {id} is declared and also confirmed as removed")]
    RemovedAndDeclared {
        /// Position in the list of removals.
        removed_index: usize,
        /// The id.
        id: PartitionId,
    },
    /// More than a node holds.
    #[error(
        "{count} partitions are declared; a node holds at most {}",
        limits::PARTITIONS_PER_NODE_MAX
    )]
    TooMany {
        /// How many were given.
        count: usize,
    },
}

/// A declaration that contradicts itself is refused; the node's own stages are cut to what the store
/// has.
fn check_unlogged(store: Option<StoreKind>, stages: &PipelineSpec) -> Result<(), PipelineError> {
    let log = stages.iter().map(StageSpec::kind).find(|kind| kind.is_log());
    match log {
        Some(log) if store.is_some_and(StoreKind::is_unlogged) => {
            Err(PipelineError::LogOfCounters(log))
        }
        _ => Ok(()),
    }
}

impl DesiredPartition {
    /// A partition that follows the node's defaults.
    pub const fn new(id: PartitionId, range: HashRange) -> Self {
        Self { id, range, store: None, ack: None, pipeline: None }
    }
}

impl DesiredSet {
    /// Checks that the declarations can stand side by side.
    ///
    /// # Errors
    /// The first [`DesiredError`], in the order of the list.
    pub fn new(
        partitions: Vec<DesiredPartition>,
        mut removed: Vec<PartitionId>,
    ) -> Result<Self, DesiredError> {
        if partitions.len() > limits::PARTITIONS_PER_NODE_MAX {
            return Err(DesiredError::TooMany { count: partitions.len() });
        }
        let mut first_of = BTreeMap::new();
        for (index, partition) in partitions.iter().enumerate() {
            if let Some(other) = first_of.insert(partition.id, index) {
                return Err(DesiredError::DuplicateId { index, other, id: partition.id });
            }
            if let Some(stages) = &partition.pipeline {
                check_pipeline(stages)
                    .and_then(|()| check_unlogged(partition.store, stages))
                    .and_then(|()| check_ack(partition.ack.unwrap_or(Ack::Memory), stages))
                    .map_err(|reason| DesiredError::Pipeline { index, id: partition.id, reason })?;
            }
        }
        let mut by_start: Vec<usize> = (0..partitions.len()).collect();
        by_start.sort_by_key(|&index| partitions[index].range.start());
        // Sorted by start, an overlap of any two shows between two neighbours.
        for pair in by_start.windows(2) {
            let (index, other) = (pair[0].max(pair[1]), pair[0].min(pair[1]));
            let (later, earlier) = (&partitions[index], &partitions[other]);
            if later.range.overlaps(earlier.range) {
                return Err(DesiredError::Overlap {
                    index,
                    other,
                    id: later.id,
                    range: later.range,
                    other_id: earlier.id,
                    other_range: earlier.range,
                });
            }
        }
        for (removed_index, id) in removed.iter().enumerate() {
            if first_of.contains_key(id) {
                return Err(DesiredError::RemovedAndDeclared { removed_index, id: *id });
            }
        }
        removed.sort_unstable();
        removed.dedup();
        let partitions =
            partitions.into_iter().map(|partition| (partition.id, partition)).collect();
        Ok(Self { partitions, removed })
    }

    /// `count` partitions with ids from 0 that cut the whole hash range evenly.
    ///
    /// # Panics
    /// When `count` is 0 or above [`limits::PARTITIONS_PER_NODE_MAX`].
    pub fn split_evenly(count: u32) -> Self {
        assert!(
            count as usize <= limits::PARTITIONS_PER_NODE_MAX,
            "{count} partitions are too many"
        );
        let partitions = (0..)
            .map(PartitionId)
            .zip(HashRange::split_evenly(count))
            .map(|(id, range)| (id, DesiredPartition::new(id, range)))
            .collect();
        Self { partitions, removed: Vec::new() }
    }

    /// The declared partitions, in the order of their ids.
    pub fn partitions(&self) -> impl ExactSizeIterator<Item = &DesiredPartition> {
        self.partitions.values()
    }

    /// The declaration of one partition.
    pub fn get(&self, id: PartitionId) -> Option<&DesiredPartition> {
        self.partitions.get(&id)
    }

    /// Whether somebody confirmed that the partition goes although it holds records.
    pub fn is_removal_confirmed(&self, id: PartitionId) -> bool {
        self.removed.binary_search(&id).is_ok()
    }

    /// The confirmed removals, in order.
    pub fn removed(&self) -> &[PartitionId] {
        &self.removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DEFAULT_PIPELINE, StageKind};

    fn partition(id: u32, start: u64, end: u64) -> DesiredPartition {
        DesiredPartition::new(PartitionId(id), HashRange::new(start, end).unwrap())
    }

    #[test]
    fn what_cannot_stand_side_by_side_is_refused_with_its_position() {
        let two = vec![partition(1, 0, 10), partition(2, 10, 0), partition(1, 5, 6)];
        assert!(matches!(
            DesiredSet::new(two, vec![]),
            Err(DesiredError::DuplicateId { index: 2, other: 0, id: PartitionId(1) })
        ));
        let overlap = vec![partition(7, 90, 0), partition(1, 0, 10), partition(2, 9, 20)];
        assert!(matches!(
            DesiredSet::new(overlap, vec![]),
            Err(DesiredError::Overlap { index: 2, other: 1, .. })
        ));
        let contradiction = DesiredSet::new(vec![partition(3, 0, 0)], vec![PartitionId(3)]);
        assert!(matches!(
            contradiction,
            Err(DesiredError::RemovedAndDeclared { removed_index: 0, .. })
        ));
    }

    #[test]
    fn a_log_where_the_store_has_none_is_refused() {
        let declared = |pipeline: &[StageKind]| DesiredPartition {
            store: Some(StoreKind::Counters),
            ack: Some(Ack::Memory),
            pipeline: Some(pipeline.into()),
            ..partition(1, 0, 0)
        };
        assert!(matches!(
            DesiredSet::new(vec![declared(DEFAULT_PIPELINE)], vec![]),
            Err(DesiredError::Pipeline {
                reason: PipelineError::LogOfCounters(StageKind::Log),
                ..
            })
        ));
        let without = PipelineSpec::from(DEFAULT_PIPELINE).without_log();
        let kinds: Vec<_> = without.iter().map(StageSpec::kind).collect();
        assert_eq!(kinds, [StageKind::Clock, StageKind::Dispatcher]);
        assert!(DesiredSet::new(vec![declared(&kinds)], vec![]).is_ok());
    }

    #[test]
    fn a_range_that_spans_many_others_is_found() {
        let ranges = vec![partition(1, 0, 0), partition(2, 10, 20), partition(3, 30, 40)];
        assert!(matches!(DesiredSet::new(ranges, vec![]), Err(DesiredError::Overlap { .. })));
    }

    #[test]
    fn an_even_split_is_a_set() {
        let set = DesiredSet::split_evenly(16);
        let again = DesiredSet::new(set.partitions().cloned().collect(), vec![]).unwrap();
        assert_eq!(set, again);
    }
}
