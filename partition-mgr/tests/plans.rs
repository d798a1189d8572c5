//! Plans as people read them, and what holds of every plan.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use stateside_partition_mgr::{Defaults, HoldReason, Holding, Manifest, Plan, Step, plan};
use stateside_types::{
    Ack, DEFAULT_PIPELINE, DesiredPartition, DesiredSet, HashRange, PartitionId, PartitionSpec,
    StageKind, StoreKind,
};

const QUARTER: u64 = 1 << 62;

fn defaults() -> Defaults {
    Defaults { store: StoreKind::Memory, ack: Ack::Durable, pipeline: DEFAULT_PIPELINE.into() }
}

fn declared(id: u32, start: u64, end: u64) -> DesiredPartition {
    DesiredPartition::new(PartitionId(id), HashRange::new(start, end).expect("a range"))
}

fn desired(partitions: Vec<DesiredPartition>) -> DesiredSet {
    DesiredSet::new(partitions, vec![]).expect("a set")
}

/// A node of two cores that has this set.
fn node_with(set: &DesiredSet) -> Manifest {
    let mut manifest = Manifest::new("vm-1".to_owned(), 0, 2);
    let plan = plan(&manifest, set, &defaults(), &BTreeSet::new(), |_| Holding::Empty);
    assert!(plan.held.is_empty());
    plan.steps.iter().for_each(|step| manifest.apply(step));
    manifest
}

fn quarters() -> Vec<DesiredPartition> {
    (0..4).map(|q| declared(q, u64::from(q) * QUARTER, u64::from(q + 1) % 4 * QUARTER)).collect()
}

/// Partitions named in `records` hold that many.
fn plan_for(manifest: &Manifest, set: &DesiredSet, records: &[(u32, u64)]) -> Plan {
    let records: BTreeMap<_, _> = records.iter().copied().collect();
    plan(manifest, set, &defaults(), &BTreeSet::new(), |id| {
        records.get(&id.0).map_or(Holding::Empty, |count| Holding::Records(*count))
    })
}

fn expect(plan: &Plan, golden: &[&str]) {
    let text = plan.to_string();
    assert_eq!(text.lines().collect::<Vec<_>>(), golden, "\n{text}");
}

#[test]
fn a_fresh_node_gets_its_partitions_spread_over_its_cores() {
    let fresh = Manifest::new("vm-1".to_owned(), 0, 2);
    let mut set = quarters();
    set[1].store = Some(StoreKind::Sled);
    set[2].ack = Some(Ack::Memory);
    set[2].pipeline = Some([StageKind::Clock, StageKind::Dispatcher].as_slice().into());
    expect(
        &plan_for(&fresh, &desired(set), &[]),
        &[
            "add partition 0, range 0x0000000000000000..0x4000000000000000, store memory, ack durable, pipeline clock>dispatcher>log>line-monitor: core 0, epoch 1",
            "add partition 1, range 0x4000000000000000..0x8000000000000000, store sled, ack durable, pipeline clock>dispatcher>log>line-monitor: core 1, epoch 2",
            "add partition 2, range 0x8000000000000000..0xc000000000000000, store memory, ack memory, pipeline clock>dispatcher: core 0, epoch 3",
            "add partition 3, range 0xc000000000000000..0x0000000000000000, store memory, ack durable, pipeline clock>dispatcher>log>line-monitor: core 1, epoch 4",
        ],
    );
}

#[test]
fn a_node_that_has_what_it_should_does_nothing() {
    let set = desired(quarters());
    expect(&plan_for(&node_with(&set), &set, &[(0, 5)]), &["nothing to do"]);
}

#[test]
fn a_removal_frees_its_range_before_the_addition_that_needs_it() {
    let node = node_with(&desired(quarters()));
    let mut set = quarters();
    set.remove(1);
    set.push(declared(9, QUARTER, QUARTER + 500));
    set.push(declared(8, QUARTER + 500, 2 * QUARTER));
    expect(
        &plan_for(&node, &desired(set), &[(0, 5)]),
        &[
            "remove partition 1, range 0x4000000000000000..0x8000000000000000: it is empty",
            "add partition 8, range 0x40000000000001f4..0x8000000000000000, store memory, ack durable, pipeline clock>dispatcher>log>line-monitor: core 1, epoch 5",
            "add partition 9, range 0x4000000000000000..0x40000000000001f4, store memory, ack durable, pipeline clock>dispatcher>log>line-monitor: core 0, epoch 6",
        ],
    );
}

#[test]
fn losing_records_waits_for_a_confirmation_and_what_needs_the_range_waits_too() {
    let node = node_with(&desired(quarters()));
    let mut set = quarters();
    set[1] = declared(9, QUARTER, 2 * QUARTER);
    expect(
        &plan_for(&node, &desired(set.clone()), &[(1, 120)]),
        &[
            "waiting: remove partition 1, range 0x4000000000000000..0x8000000000000000: it holds 120 records; confirm with `stateside partition remove 1 --yes` or with `[[removed]]` and `id = 1` in the registry",
            "waiting: add partition 9, range 0x4000000000000000..0x8000000000000000: partition 1 still owns hashes of it",
        ],
    );
    let confirmed = DesiredSet::new(set, vec![PartitionId(1)]).unwrap();
    expect(
        &plan_for(&node, &confirmed, &[(1, 120)]),
        &[
            "remove partition 1, range 0x4000000000000000..0x8000000000000000: confirmed",
            "add partition 9, range 0x4000000000000000..0x8000000000000000, store memory, ack durable, pipeline clock>dispatcher>log>line-monitor: core 1, epoch 5",
        ],
    );
}

#[test]
fn settings_change_in_place_and_keep_their_epoch() {
    let node = node_with(&desired(quarters()));
    let mut set = quarters();
    set[3].ack = Some(Ack::Memory);
    set[0].ack = Some(Ack::Memory);
    set[0].pipeline = Some([StageKind::Clock, StageKind::Dispatcher].as_slice().into());
    expect(
        &plan_for(&node, &desired(set), &[(0, 5), (3, 1)]),
        &[
            "update partition 0: ack durable -> memory, pipeline clock>dispatcher>log>line-monitor -> clock>dispatcher",
            "update partition 3: ack durable -> memory",
        ],
    );
}

#[test]
fn what_cannot_be_done_in_place_is_refused_with_the_reason() {
    let node = node_with(&desired(quarters()));
    let mut set = quarters();
    set[0] = declared(0, 0, QUARTER / 2);
    set[2].pipeline = Some([StageKind::Clock, StageKind::Dispatcher].as_slice().into());
    expect(
        &plan_for(&node, &desired(set), &[(0, 1)]),
        &[
            "refused: change the range of partition 0 from 0x0000000000000000..0x4000000000000000 to 0x0000000000000000..0x2000000000000000: it holds 1 record, and records cannot change their partition; declare a partition with another id",
            "refused: partition 2: ack durable needs the stage log or kafka-log in the pipeline",
        ],
    );
}

#[test]
fn another_store_moves_the_records_and_keeps_their_epoch() {
    let mut node = node_with(&desired(quarters()));
    let mut set = quarters();
    set[1].store = Some(StoreKind::Sled);
    set[2].store = Some(StoreKind::Lsm);
    set[2].ack = Some(Ack::Memory);
    set[3].store = Some(StoreKind::Memory);
    let plan = plan_for(&node, &desired(set), &[(1, 7)]);
    expect(
        &plan,
        &[
            "change the store of partition 1 from memory to sled",
            "update partition 2: ack durable -> memory",
            "change the store of partition 2 from memory to lsm",
        ],
    );
    let before = node.partitions[&PartitionId(1)].spec.clone();
    plan.steps.iter().for_each(|step| node.apply(step));
    let after = &node.partitions[&PartitionId(1)].spec;
    assert_eq!(*after, PartitionSpec { store: StoreKind::Sled, ..before });
}

#[test]
fn records_do_not_move_to_or_from_counters() {
    let mut set = quarters();
    set[0].store = Some(StoreKind::Counters);
    set[0].ack = Some(Ack::Memory);
    let node = node_with(&desired(set.clone()));
    set[0].store = Some(StoreKind::Memory);
    set[1].store = Some(StoreKind::Counters);
    set[1].ack = Some(Ack::Memory);
    set[2].store = Some(StoreKind::Counters);
    set[2].ack = Some(Ack::Memory);
    expect(
        &plan_for(&node, &desired(set), &[(0, 1), (1, 7)]),
        &[
            "remove partition 2, range 0x8000000000000000..0xc000000000000000: it is empty and is made anew",
            "add partition 2, range 0x8000000000000000..0xc000000000000000, store counters, ack memory, pipeline clock>dispatcher: core 0, epoch 5",
            "refused: change the store of partition 0 from counters to memory: it holds 1 record, and counters keeps integers alone, without a log; declare a partition with another id",
            "refused: change the store of partition 1 from memory to counters: it holds 7 records, and counters keeps integers alone, without a log; declare a partition with another id",
        ],
    );
}

#[test]
fn empty_partitions_that_swap_ranges_are_made_anew() {
    let node = node_with(&desired(quarters()));
    let mut set = quarters();
    set[0] = declared(0, QUARTER, 2 * QUARTER);
    set[1] = declared(1, 0, QUARTER);
    expect(
        &plan_for(&node, &desired(set), &[]),
        &[
            "remove partition 0, range 0x0000000000000000..0x4000000000000000: it is empty and is made anew",
            "remove partition 1, range 0x4000000000000000..0x8000000000000000: it is empty and is made anew",
            "add partition 0, range 0x4000000000000000..0x8000000000000000, store memory, ack durable, pipeline clock>dispatcher>log>line-monitor: core 0, epoch 5",
            "add partition 1, range 0x0000000000000000..0x4000000000000000, store memory, ack durable, pipeline clock>dispatcher>log>line-monitor: core 1, epoch 6",
        ],
    );
}

#[test]
fn another_default_store_leaves_existing_partitions_where_they_are() {
    let set = desired(quarters());
    let node = node_with(&set);
    let other = Defaults { store: StoreKind::Sled, ..defaults() };
    let plan = plan(&node, &set, &other, &BTreeSet::new(), |_| Holding::Empty);
    expect(&plan, &["nothing to do"]);
}

fn any_set() -> impl Strategy<Value = DesiredSet> {
    // Cuts of a small space, so that ranges of two sets often meet; ids from a small pool.
    prop::collection::btree_set(0_u64..24, 0..8).prop_flat_map(|cuts| {
        let cuts: Vec<u64> = cuts.into_iter().collect();
        let count = cuts.len().saturating_sub(1);
        (
            Just(cuts),
            Just((0..12_u32).collect::<Vec<_>>()).prop_shuffle(),
            prop::collection::vec(any::<(bool, bool, bool)>(), count),
        )
            .prop_map(|(cuts, ids, flags)| {
                let partitions = cuts
                    .windows(2)
                    .zip(ids)
                    .zip(flags)
                    .filter(|(_, (skip, ..))| !skip)
                    .map(|((pair, id), (_, sled, memory))| DesiredPartition {
                        store: sled.then_some(StoreKind::Sled),
                        ack: memory.then_some(Ack::Memory),
                        ..declared(id, pair[0] << 59, pair[1] << 59)
                    })
                    .collect();
                desired(partitions)
            })
    })
}

proptest! {
    #[test]
    fn a_plan_can_be_applied_step_by_step_loses_nothing_and_comes_to_rest(
        before in any_set(),
        after in any_set(),
        full in prop::collection::btree_set(0_u32..12, 0..6),
    ) {
        let mut node = node_with(&before);
        let held = |id: PartitionId| if full.contains(&id.0) { Holding::Records(1) } else { Holding::Empty };
        let none = BTreeSet::new();
        let first = plan(&node, &after, &defaults(), &none, held);
        let started_with = node.clone();
        for step in &first.steps {
            node.apply(step);
            // Applies cleanly after each step: ids, ranges, cores, epochs.
            prop_assert_eq!(Manifest::decode(&node.encode()), Ok(node.clone()));
        }
        for (id, placed) in &started_with.partitions {
            if full.contains(&id.0) {
                let now = node.partitions.get(id);
                prop_assert!(now.is_some_and(|now| now.spec.first_epoch == placed.spec.first_epoch));
            }
        }
        // A second look finds nothing more to do; what was held stays held.
        let second = plan(&node, &after, &defaults(), &none, |id| {
            if started_with.partitions.contains_key(&id) { held(id) } else { Holding::Empty }
        });
        prop_assert!(second.steps.is_empty(), "{}", second);
        prop_assert_eq!(&second.held, &first.held);
        if first.held.is_empty() {
            let ranges = |set: &DesiredSet| set.partitions().map(|p| (p.id, p.range)).collect::<Vec<_>>();
            prop_assert_eq!(ranges(&node.as_desired()), ranges(&after));
        }
        for step in &first.steps {
            if let Step::Remove { id, .. } = step {
                prop_assert!(!full.contains(&id.0));
            }
        }
        let blocked = |reason: &HoldReason| matches!(reason, HoldReason::RangeTaken { .. });
        prop_assert!(!full.is_empty() || !first.held.iter().any(|held| blocked(&held.reason)));
    }
}
