//! From what a node has to what it should have, in an order that works.
//!
//! Removals come first, because they free hash ranges; then changes of settings; then additions,
//! placed on the cores and given their epochs. What cannot be done is not in the steps but held,
//! with its reason:
//!
//! ```text
//!                        holds records?
//!   not declared  ──────── no ─► remove          yes ─► held until confirmed
//!   other range/log ────── no ─► remove, add     yes ─► held: not possible in place
//!   to or from counters ── no ─► remove, add     yes ─► held: not possible in place
//!   other ack/pipeline ────────► update
//!   other store ───────────────► change store
//!   new ─── range free ────────► add             range of a held partition ─► held: waits
//! ```
//! Hazard: records may arrive between the question "does it hold any" and the removal. Whoever
//! carries out a [`Removal`] other than `Confirmed` must close the partition for writes and ask
//! again before anything is deleted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use stateside_types::{
    Ack, DesiredPartition, DesiredSet, HashRange, PartitionId, PartitionSpec, PipelineSpec,
    Sequence, StageSpec, StoreKind, check_ack, limits,
};

use crate::{Manifest, PlacedPartition, least_loaded_core};

/// What a partition gets that its declaration leaves out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Where records live.
    pub store: StoreKind,
    /// Default acknowledgement.
    pub ack: Ack,
    /// Stages, in order.
    pub pipeline: PipelineSpec,
}

impl Defaults {
    /// Acknowledgement and stages of a declared partition with this store.
    pub fn settings(&self, declared: &DesiredPartition, store: StoreKind) -> (Ack, PipelineSpec) {
        let pipeline = declared.pipeline.as_ref().unwrap_or(&self.pipeline);
        let pipeline = if store.is_unlogged() { pipeline.without_log() } else { pipeline.clone() };
        (declared.ack.unwrap_or(self.ack), pipeline)
    }
}

/// What is known of a partition's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// None, and no write is under way.
    Empty,
    /// This many.
    Records(u64),
    /// Its core has not told, or cannot tell: it is damaged, or writes are under way.
    Unknown,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take the partition out, with its records.
    Remove {
        /// Which one.
        id: PartitionId,
        /// The hashes that it owned.
        range: HashRange,
        /// Why it may go.
        removal: Removal,
    },
    /// Change settings in place.
    Update {
        /// The partition as it will be.
        spec: PartitionSpec,
        /// What changes, for people.
        changes: Vec<SettingChange>,
    },
    /// Move its records to another store while it serves.
    ChangeStore {
        /// Which one.
        id: PartitionId,
        /// The store that they are in.
        from: StoreKind,
        /// The one declared.
        to: StoreKind,
    },
    /// Create the partition, empty.
    Add(PlacedPartition),
}

/// Why a partition may be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It holds no records.
    Empty,
    /// Somebody confirmed the loss of its records.
    Confirmed,
    /// It holds no records and is made anew with another range or log, to or from `counters`.
    Recreate,
}

/// A setting before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingChange {
    /// Default acknowledgement.
    Ack(Ack, Ack),
    /// Stages.
    Pipeline(PipelineSpec, PipelineSpec),
}

/// A desired change that is not carried out now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The partition.
    pub id: PartitionId,
    /// Why not.
    pub reason: HoldReason,
}

/// Why a change is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HoldReason {
    /// It would lose records and nobody confirmed that.
    RemovalUnconfirmed {
        /// The hashes that the partition owns.
        range: HashRange,
        /// What it holds.
        holding: Holding,
    },
    /// The range of a partition with records cannot change.
    RangeChange {
        /// The range that it has.
        from: HashRange,
        /// The one declared.
        to: HashRange,
        /// What it holds.
        holding: Holding,
    },
    /// Records do not move between a store that keeps integers without a log and others.
    StoreChange {
        /// The store that they are in.
        from: StoreKind,
        /// The one declared.
        to: StoreKind,
        /// What it holds.
        holding: Holding,
    },
    /// A log in Kafka has all of its partition's writes: it cannot begin or end in the middle.
    LogChange {
        /// What it holds.
        holding: Holding,
    },
    /// The new partition's hashes still belong to others.
    RangeTaken {
        /// The new range.
        range: HashRange,
        /// By which partition, the one with the highest range of several.
        by: PartitionId,
    },
    /// The declared pipeline cannot give the acknowledgement.
    DurableWithoutLog,
    /// The node holds as many partitions as it may.
    NodeFull,
}

/// Steps to take, in order, and changes that are held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to do, in this order.
    pub steps: Vec<Step>,
    /// What is not done now, by partition id.
    pub held: Vec<Held>,
}

/// Plans the way from `current` to `desired`. `confirmed` names partitions whose removal an
/// operator confirmed by a call, besides those that the desired set confirms.
pub fn plan(
    current: &Manifest,
    desired: &DesiredSet,
    defaults: &Defaults,
    confirmed: &BTreeSet<PartitionId>,
    holding: impl Fn(PartitionId) -> Holding,
) -> Plan {
    let mut plan = Plan::default();
    let mut updates = Vec::new();
    let mut staying = Owners::default();
    let mut loads = current.core_loads();
    for (id, placed) in &current.partitions {
        let spec = &placed.spec;
        let fate = match desired.get(*id) {
            None if confirmed.contains(id) || desired.is_removal_confirmed(*id) => {
                Fate::Remove(Removal::Confirmed)
            }
            None => match holding(*id) {
                Holding::Empty => Fate::Remove(Removal::Empty),
                holding => {
                    Fate::Hold(HoldReason::RemovalUnconfirmed { range: spec.range, holding })
                }
            },
            Some(declared) => fate_of_declared(spec, declared, defaults, || holding(*id)),
        };
        match fate {
            Fate::Remove(removal) => {
                loads[usize::from(placed.core.0)] -= 1;
                plan.steps.push(Step::Remove { id: *id, range: spec.range, removal });
                continue;
            }
            Fate::Keep { update, store } => {
                if let Some((spec, changes)) = update {
                    updates.push(Step::Update { spec, changes });
                }
                if let Some(to) = store {
                    updates.push(Step::ChangeStore { id: *id, from: spec.store, to });
                }
            }
            Fate::Hold(reason) => plan.held.push(Held { id: *id, reason }),
        }
        staying.insert(spec.range, *id);
    }
    plan.steps.append(&mut updates);

    let mut epoch = current.next_epoch;
    for declared in desired.partitions() {
        let DesiredPartition { id, range, .. } = *declared;
        if staying.has(id) {
            continue;
        }
        let store = declared.store.unwrap_or(defaults.store);
        let (ack, pipeline) = defaults.settings(declared, store);
        let reason = if let Some(by) = staying.find(range) {
            HoldReason::RangeTaken { range, by }
        } else if check_ack(ack, &pipeline).is_err() {
            HoldReason::DurableWithoutLog
        } else if staying.len() >= limits::PARTITIONS_PER_NODE_MAX {
            HoldReason::NodeFull
        } else {
            let spec = PartitionSpec {
                id,
                range,
                store,
                ack,
                pipeline,
                first_epoch: epoch,
                epoch,
                base_sequence: Sequence::ZERO,
            };
            let core = least_loaded_core(&loads);
            loads[usize::from(core.0)] += 1;
            epoch = epoch.next();
            staying.insert(range, id);
            plan.steps.push(Step::Add(PlacedPartition { spec, core }));
            continue;
        };
        plan.held.push(Held { id, reason });
    }
    plan.held.sort_by_key(|held| held.id);
    plan
}

impl Manifest {
    /// The manifest after a step of a plan that was made for it.
    ///
    /// # Panics
    /// When the step does not fit: the plan was made for another manifest.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Remove { id, .. } => {
                self.partitions.remove(id).expect("a plan removes what is there");
            }
            Step::Update { spec, .. } => {
                let placed =
                    self.partitions.get_mut(&spec.id).expect("a plan updates what is there");
                assert_eq!(placed.spec.epoch, spec.epoch, "an update in place keeps the epoch");
                placed.spec = spec.clone();
            }
            // Its log goes on, and so do its epochs: the content is the same.
            Step::ChangeStore { id, from, to } => {
                let placed = self.partitions.get_mut(id).expect("a plan changes what is there");
                assert_eq!(placed.spec.store, *from, "the records are where they were");
                placed.spec.store = *to;
            }
            Step::Add(placed) => {
                assert!(placed.spec.epoch >= self.next_epoch, "epochs are never given out twice");
                self.next_epoch = placed.spec.epoch.next();
                let before = self.partitions.insert(placed.spec.id, placed.clone());
                assert!(before.is_none(), "a plan adds what is not there");
            }
        }
        self.set_version += 1;
    }
}

impl Step {
    /// The partition that the step is about.
    pub fn id(&self) -> PartitionId {
        match self {
            Self::Remove { id, .. } | Self::ChangeStore { id, .. } => *id,
            Self::Update { spec, .. } => spec.id,
            Self::Add(placed) => placed.spec.id,
        }
    }
}

/// What becomes of a partition that the node has.
enum Fate {
    /// With other settings, or another store, or as it is.
    Keep {
        update: Option<(PartitionSpec, Vec<SettingChange>)>,
        store: Option<StoreKind>,
    },
    Remove(Removal),
    Hold(HoldReason),
}

fn fate_of_declared(
    spec: &PartitionSpec,
    declared: &DesiredPartition,
    defaults: &Defaults,
    holding: impl FnOnce() -> Holding,
) -> Fate {
    // An undeclared store means: as it was created. Else another default would strand them all.
    let store = declared.store.unwrap_or(spec.store);
    let (ack, pipeline) = defaults.settings(declared, store);
    if check_ack(ack, &pipeline).is_err() {
        return Fate::Hold(HoldReason::DurableWithoutLog);
    }
    let log_changes = pipeline.is_logged_in_kafka() != spec.pipeline.is_logged_in_kafka();
    // One of them keeps integers alone, without a log.
    let is_other_kind = store.is_unlogged() != spec.store.is_unlogged();
    if declared.range != spec.range || log_changes || is_other_kind {
        return match holding() {
            Holding::Empty => Fate::Remove(Removal::Recreate),
            holding if declared.range != spec.range => {
                let (from, to) = (spec.range, declared.range);
                Fate::Hold(HoldReason::RangeChange { from, to, holding })
            }
            holding if is_other_kind => {
                Fate::Hold(HoldReason::StoreChange { from: spec.store, to: store, holding })
            }
            holding => Fate::Hold(HoldReason::LogChange { holding }),
        };
    }
    let mut changes = Vec::new();
    if ack != spec.ack {
        changes.push(SettingChange::Ack(spec.ack, ack));
    }
    if pipeline != spec.pipeline {
        changes.push(SettingChange::Pipeline(spec.pipeline.clone(), pipeline.clone()));
    }
    let update =
        (!changes.is_empty()).then(|| (PartitionSpec { ack, pipeline, ..spec.clone() }, changes));
    Fate::Keep { update, store: (store != spec.store).then_some(store) }
}

/// Who owns which hashes while the plan is made; ranges do not overlap.
#[derive(Default)]
struct Owners {
    by_start: BTreeMap<u64, (HashRange, PartitionId)>,
    ids: BTreeSet<PartitionId>,
}

impl Owners {
    fn insert(&mut self, range: HashRange, id: PartitionId) {
        self.by_start.insert(range.start(), (range, id));
        self.ids.insert(id);
    }

    fn has(&self, id: PartitionId) -> bool {
        self.ids.contains(&id)
    }

    fn len(&self) -> usize {
        self.ids.len()
    }

    /// The highest owner of any hash of `range`: if any overlaps, the last to start before the
    /// range's end does.
    fn find(&self, range: HashRange) -> Option<PartitionId> {
        let (_, (owned, id)) = self.by_start.range(..=range.last()).next_back()?;
        owned.overlaps(range).then_some(*id)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.steps.is_empty() && self.held.is_empty() {
            return f.write_str("nothing to do\n");
        }
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        for held in &self.held {
            writeln!(f, "{held}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remove { id, range, removal } => {
                let why = match removal {
                    Removal::Empty => "it is empty",
                    Removal::Confirmed => "confirmed",
                    Removal::Recreate => "it is empty and is made anew",
                };
                write!(f, "remove partition {id}, range {range}: {why}")
            }
            Self::Update { spec, changes } => {
                write!(f, "update partition {}:", spec.id)?;
                for (at, change) in changes.iter().enumerate() {
                    write!(f, "{}{change}", if at == 0 { " " } else { ", " })?;
                }
                Ok(())
            }
            Self::ChangeStore { id, from, to } => {
                write!(f, "change the store of partition {id} from {from} to {to}")
            }
            Self::Add(PlacedPartition { spec, core }) => write!(
                f,
                "add partition {}, range {}, store {}, ack {}, pipeline {}: core {core}, epoch {}",
                spec.id,
                spec.range,
                spec.store,
                spec.ack,
                Stages(&spec.pipeline),
                spec.epoch
            ),
        }
    }
}

impl fmt::Display for SettingChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ack(from, to) => write!(f, "ack {from} -> {to}"),
            Self::Pipeline(from, to) => write!(f, "pipeline {} -> {}", Stages(from), Stages(to)),
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id;
        match &self.reason {
            HoldReason::RemovalUnconfirmed { range, holding } => write!(
                f,
                "waiting: remove partition {id}, range {range}: {holding}; \
                 confirm with `stateside partition remove {id} --yes` \
                 or with `[[removed]]` and `id = {id}` in the registry"
            ),
            HoldReason::RangeChange { from, to, holding } => write!(
                f,
                "refused: change the range of partition {id} from {from} to {to}: {holding}, and \
                 records cannot change their partition; declare a partition with another id"
            ),
            HoldReason::StoreChange { from, to, holding } => write!(
                f,
                "refused: change the store of partition {id} from {from} to {to}: {holding}, and \
                 counters keeps integers alone, without a log; declare a partition with another id"
            ),
            HoldReason::LogChange { holding } => write!(
                f,
                "refused: move the log of partition {id} to or from Kafka: {holding}, and a log in \
                 Kafka has all of its partition's writes; declare a partition with another id"
            ),
            HoldReason::RangeTaken { range, by } => write!(
                f,
                "waiting: add partition {id}, range {range}: partition {by} still owns hashes of it"
            ),
            HoldReason::DurableWithoutLog => write!(
                f,
                "refused: partition {id}: ack durable needs the stage log or kafka-log in the pipeline"
            ),
            HoldReason::NodeFull => write!(
                f,
                "waiting: add partition {id}: the node holds {} partitions, the most it may",
                limits::PARTITIONS_PER_NODE_MAX
            ),
        }
    }
}

impl fmt::Display for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::Records(1) => f.write_str("it holds 1 record"),
            Self::Records(count) => write!(f, "it holds {count} records"),
            Self::Unknown => f.write_str("it may hold records"),
        }
    }
}

struct Stages<'a>(&'a [StageSpec]);

impl fmt::Display for Stages<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, stage) in self.0.iter().enumerate() {
            write!(f, "{}{stage}", if at == 0 { "" } else { ">" })?;
        }
        Ok(())
    }
}
