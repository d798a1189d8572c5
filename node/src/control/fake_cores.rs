//! Cores for tests: they keep a count of records per partition in real files of a real data
//! directory, can be scripted to refuse or to stay silent, and stop dead when the world crashes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use stateside_partition_mgr::Manifest;
use stateside_router::{Route, RoutingTable};
use stateside_statestore::RequestStats;
use stateside_types::{
    CoreId, Epoch, PartitionId, PartitionSpec, PartitionState, Reason, Refusal, Sequence,
    StoreKind, limits,
};
use tokio::sync::Notify;

use super::cores::CoreHandle;
use crate::{
    core::command::{
        CopyReport, CoreCommand, CoreReport, PartitionReport, RestoreReport, SnapshotReport,
    },
    data_dir::parse_snapshot_name,
};

/// How many effects the world has left. When there are none, nothing happens any more: no file
/// changes and nobody answers, as after a crash.
#[derive(Default)]
pub(super) struct Budget {
    left: Option<u64>,
    used: AtomicU64,
    is_crashed: AtomicBool,
    crashed: Notify,
}

impl Budget {
    pub(super) fn unlimited() -> Arc<Self> {
        Arc::default()
    }

    pub(super) fn of(left: u64) -> Arc<Self> {
        Arc::new(Self { left: Some(left), ..Self::default() })
    }

    /// Uses one effect up. False: the world has crashed before it.
    pub(super) fn step(&self) -> bool {
        if self.is_crashed.load(SeqCst) {
            return false;
        }
        let used = self.used.fetch_add(1, SeqCst);
        if self.left.is_some_and(|left| used >= left) {
            self.is_crashed.store(true, SeqCst);
            self.crashed.notify_one();
            return false;
        }
        true
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(SeqCst)
    }

    pub(super) fn is_crashed(&self) -> bool {
        self.is_crashed.load(SeqCst)
    }

    pub(super) async fn crashed(&self) {
        self.crashed.notified().await;
    }
}

/// A node's cores. Clones are the same cores.
#[derive(Clone)]
pub(super) struct FakeCores(Arc<Mutex<State>>);

struct State {
    partitions_dir: PathBuf,
    budget: Arc<Budget>,
    cores: Vec<Core>,
    refusals: Vec<(&'static str, Refusal)>,
    silent: BTreeSet<&'static str>,
    unanswered: Vec<CoreCommand>,
    /// Before the command of this name that follows so many others of it, so many records arrive
    /// at the partition, routed or not.
    surprise: Option<(&'static str, u32, PartitionId, u64)>,
    log: Vec<String>,
}

#[derive(Default)]
struct Core {
    hosted: BTreeMap<PartitionId, Hosted>,
    table: Option<Arc<RoutingTable>>,
}

struct Hosted {
    spec: PartitionSpec,
    records: u64,
    is_frozen: bool,
    state: PartitionState,
    /// To which store, and whether it stands by itself.
    copy: Option<(StoreKind, bool)>,
}

impl FakeCores {
    /// Cores that recovered what the manifest gives them from their files.
    pub(super) fn recover(
        manifest: &Manifest,
        partitions_dir: PathBuf,
        budget: Arc<Budget>,
    ) -> Self {
        let mut cores: Vec<Core> = (0..manifest.cores).map(|_| Core::default()).collect();
        for placed in manifest.partitions.values() {
            let spec = placed.spec.clone();
            // What once was made is there, or the manifest names files that are gone.
            let was_made = was_made(&partitions_dir, spec.id, spec.first_epoch);
            let is_there = content_file(&partitions_dir, spec.id, spec.first_epoch).exists();
            assert_eq!(was_made, is_there, "files of partition {}", spec.id);
            let records = read_records(&partitions_dir, spec.id, spec.first_epoch);
            let state = PartitionState::Primary;
            let hosted = Hosted { spec, records, is_frozen: false, state, copy: None };
            cores[usize::from(placed.core.0)].hosted.insert(placed.spec.id, hosted);
        }
        let table = Arc::new(manifest.routing_table());
        cores.iter_mut().for_each(|core| core.table = Some(Arc::clone(&table)));
        Self(Arc::new(Mutex::new(State {
            partitions_dir,
            budget,
            cores,
            refusals: Vec::new(),
            silent: BTreeSet::new(),
            unanswered: Vec::new(),
            surprise: None,
            log: Vec::new(),
        })))
    }

    /// Handles, and the ends that take the commands.
    pub(super) fn handles(&self) -> (Vec<CoreHandle>, Vec<flume::Receiver<CoreCommand>>) {
        let pair = |_| {
            let (commands, receiver) = flume::bounded(limits::CORE_COMMANDS_MAX);
            (CoreHandle { commands, wake: Arc::new(|| ()) }, receiver)
        };
        (0..self.lock().cores.len()).map(pair).unzip()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test thread panicked")
    }

    /// The next command of this name is refused.
    pub(super) fn refuse_next(&self, name: &'static str, refusal: Refusal) {
        self.lock().refusals.push((name, refusal));
    }

    /// Commands of this name are not answered until `speak`.
    pub(super) fn silence(&self, name: &'static str) {
        self.lock().silent.insert(name);
    }

    /// Commands that were left unanswered.
    pub(super) fn unanswered(&self) -> usize {
        self.lock().unanswered.len()
    }

    /// Carries out what was left unanswered.
    pub(super) fn speak(&self) {
        let unanswered = {
            let mut state = self.lock();
            state.silent.clear();
            std::mem::take(&mut state.unanswered)
        };
        for command in unanswered {
            let id = partition_of(&command).expect("only commands to partitions are silenced");
            let core = self.core_of(id).unwrap_or(CoreId(0));
            self.handle(core, command);
        }
    }

    pub(super) fn surprise(&self, name: &'static str, after: u32, id: PartitionId, records: u64) {
        self.lock().surprise = Some((name, after, id, records));
    }

    /// What the cores did, in order.
    pub(super) fn log(&self) -> Vec<String> {
        self.lock().log.clone()
    }

    pub(super) fn core_of(&self, id: PartitionId) -> Option<CoreId> {
        let state = self.lock();
        let at = state.cores.iter().position(|core| core.hosted.contains_key(&id))?;
        Some(CoreId(at as u16))
    }

    /// Records that arrive from a client, if a route leads to the partition.
    pub(super) fn write(&self, id: PartitionId, records: u64) -> bool {
        let mut state = self.lock();
        let table = state.cores[0].table.as_ref().expect("cores have a table");
        let is_routed = table.routes().iter().any(|route| route.id == id);
        is_routed && state.write(id, records)
    }

    pub(super) fn damage(&self, id: PartitionId) {
        self.be(id, PartitionState::Damaged);
    }

    /// The partition is in this state, and holds nothing.
    pub(super) fn be(&self, id: PartitionId, now: PartitionState) {
        let mut state = self.lock();
        let mut all = state.cores.iter_mut();
        let hosted = all.find_map(|core| core.hosted.get_mut(&id)).expect("hosted");
        hosted.state = now;
        hosted.records = 0;
    }

    /// Spec and records of everything hosted, with its core.
    pub(super) fn hosted(&self) -> BTreeMap<PartitionId, (CoreId, PartitionSpec, u64)> {
        let state = self.lock();
        let cores = state.cores.iter().zip(0..).map(|(core, id)| (CoreId(id), core));
        let hosted = |(core_id, core): (CoreId, &Core)| -> Vec<_> {
            let of_core = core.hosted.values();
            of_core.map(|one| (one.spec.id, (core_id, one.spec.clone(), one.records))).collect()
        };
        cores.flat_map(hosted).collect()
    }

    /// The routes of every core.
    pub(super) fn routes(&self) -> Vec<Vec<Route>> {
        let state = self.lock();
        let table = |core: &Core| core.table.as_ref().map_or(Vec::new(), |t| t.routes().to_vec());
        state.cores.iter().map(table).collect()
    }

    /// One turn of a core.
    pub(super) fn handle(&self, core: CoreId, command: CoreCommand) {
        let mut state = self.lock();
        let name = name_of(&command);
        if state.silent.contains(name) {
            return state.unanswered.push(command);
        }
        if let Some((_, after, id, records)) = state.surprise.filter(|(at, ..)| *at == name) {
            state.surprise = (after > 0).then_some((name, after.saturating_sub(1), id, records));
            if after == 0 {
                state.write(id, records);
            }
        }
        let refusal = state.refusals.iter().position(|(refused, _)| *refused == name);
        let refusal = refusal.map(|at| state.refusals.remove(at).1);
        if let Some(id) = partition_of(&command) {
            if !state.budget.step() {
                return;
            }
            let verdict = if refusal.is_some() { " (refused)" } else { "" };
            state.log.push(format!("core {core}: {name} {id}{verdict}"));
        }
        let core = usize::from(core.0);
        match command {
            CoreCommand::Add { spec, reply } => {
                let result = refusal.map_or_else(|| state.add(core, spec), Err);
                state.answer(&reply, result);
            }
            CoreCommand::Update { spec, reply } => {
                let result = refusal.map_or_else(|| state.update(core, spec), Err);
                state.answer(&reply, result);
            }
            CoreCommand::Remove { id, reply } => {
                let result = refusal.map_or_else(|| state.remove(core, id), Err);
                state.answer(&reply, result);
            }
            CoreCommand::Snapshot { id, path, reply } => {
                let result = refusal.map_or_else(|| state.snapshot(core, id, &path), Err);
                state.answer(&reply, result);
            }
            CoreCommand::PrepareRestore { id, path, epoch, reply } => {
                let result = refusal.map_or_else(|| state.prepare(core, id, &path, epoch), Err);
                state.answer(&reply, result);
            }
            CoreCommand::FinishRestore { id, spec, reply } => {
                let result = refusal.map_or_else(|| state.finish(core, id, spec), Err);
                state.answer(&reply, result);
            }
            CoreCommand::CopyStore { id, to, reply } => {
                let result = refusal.map_or_else(|| state.copy_store(core, id, to), Err);
                state.answer(&reply, result);
            }
            CoreCommand::CloseCopy { id, reply } => {
                let result = refusal.map_or_else(|| state.close_copy(core, id), Err);
                state.answer(&reply, result);
            }
            CoreCommand::SwitchStore { id, spec, reply } => {
                let result = refusal.map_or_else(|| state.switch_store(core, id, spec), Err);
                state.answer(&reply, result);
            }
            CoreCommand::Route(table) => {
                let before = state.cores[core].table.replace(Arc::clone(&table));
                let before = before.expect("cores begin with a table");
                assert!(table.version() > before.version(), "versions of routes rise");
            }
            CoreCommand::Report { reply } => {
                let report = state.report(core);
                if !state.budget.is_crashed() {
                    let _ = reply.send(report);
                }
            }
            CoreCommand::Drain => {}
        }
    }
}

impl State {
    fn answer<T>(&self, reply: &flume::Sender<T>, answer: T) {
        // The effect is done; the crash may come before the answer.
        if self.budget.step() {
            let _ = reply.send(answer);
        }
    }

    fn write(&mut self, id: PartitionId, records: u64) -> bool {
        let mut all = self.cores.iter_mut();
        let Some(hosted) = all.find_map(|core| core.hosted.get_mut(&id)) else { return false };
        if hosted.is_frozen {
            return false;
        }
        hosted.records += records;
        let (epoch, count) = (hosted.spec.first_epoch, hosted.records);
        write_records(&self.partitions_dir, id, epoch, count);
        note_made(&self.partitions_dir, id, epoch);
        true
    }

    fn add(&mut self, core: usize, spec: PartitionSpec) -> Result<(), Refusal> {
        let found = read_records(&self.partitions_dir, spec.id, spec.first_epoch);
        assert_eq!(found, 0, "a new partition has an epoch that no file knows");
        write_records(&self.partitions_dir, spec.id, spec.first_epoch, 0);
        note_made(&self.partitions_dir, spec.id, spec.first_epoch);
        let state = PartitionState::Primary;
        let id = spec.id;
        let hosted = Hosted { spec, records: 0, is_frozen: false, state, copy: None };
        let before = self.cores[core].hosted.insert(id, hosted);
        assert!(before.is_none(), "partition {id} is added twice");
        Ok(())
    }

    fn update(&mut self, core: usize, spec: PartitionSpec) -> Result<(), Refusal> {
        let hosted = self.cores[core].hosted.get_mut(&spec.id).ok_or_else(unhosted)?;
        assert_eq!(hosted.spec.first_epoch, spec.first_epoch);
        hosted.spec = spec;
        Ok(())
    }

    fn remove(&mut self, core: usize, id: PartitionId) -> Result<(), Refusal> {
        let table = self.cores[core].table.as_ref().expect("a table");
        assert!(table.routes().iter().all(|route| route.id != id), "no route leads to what goes");
        self.cores[core].hosted.remove(&id);
        let _ = fs::remove_dir_all(self.partitions_dir.join(id.to_string()));
        Ok(())
    }

    fn snapshot(
        &mut self,
        core: usize,
        id: PartitionId,
        path: &Path,
    ) -> Result<SnapshotReport, Refusal> {
        let hosted = self.cores[core].hosted.get(&id).ok_or_else(unhosted)?;
        if path.exists() {
            return Err(Refusal::new(Reason::SnapshotExists, "the path exists"));
        }
        fs::write(path, hosted.records.to_string()).expect("a test's directory");
        let (sequence, records) = (Sequence(hosted.records), hosted.records);
        Ok(SnapshotReport { sequence, records, bytes: 1 })
    }

    fn prepare(
        &mut self,
        core: usize,
        id: PartitionId,
        path: &Path,
        epoch: Epoch,
    ) -> Result<RestoreReport, Refusal> {
        let text = fs::read_to_string(path)
            .map_err(|error| Refusal::new(Reason::SnapshotUnreadable, error.to_string()))?;
        let records: u64 = text
            .parse()
            .map_err(|_| Refusal::new(Reason::SnapshotDamaged, "no count of records"))?;
        let hosted = self.cores[core].hosted.get_mut(&id).ok_or_else(unhosted)?;
        assert!(epoch > hosted.spec.epoch);
        hosted.is_frozen = true;
        let sequence = Sequence(hosted.records.max(records));
        let taken = read_records(&self.partitions_dir, id, epoch);
        assert_eq!(taken, 0, "no file knows the epoch of a restore");
        write_records(&self.partitions_dir, id, epoch, records);
        note_made(&self.partitions_dir, id, epoch);
        Ok(RestoreReport { sequence, records })
    }

    fn finish(
        &mut self,
        core: usize,
        id: PartitionId,
        spec: Option<PartitionSpec>,
    ) -> Result<(), Refusal> {
        let hosted = self.cores[core].hosted.get_mut(&id).ok_or_else(unhosted)?;
        hosted.is_frozen = false;
        if let Some(spec) = spec {
            hosted.records = read_records(&self.partitions_dir, id, spec.first_epoch);
            hosted.spec = spec;
            hosted.state = PartitionState::Primary;
        }
        Ok(())
    }

    fn copy_store(
        &mut self,
        core: usize,
        id: PartitionId,
        to: StoreKind,
    ) -> Result<CopyReport, Refusal> {
        let hosted = self.cores[core].hosted.get_mut(&id).ok_or_else(unhosted)?;
        assert_ne!(hosted.spec.store, to, "the manager knows where the records are");
        assert!(hosted.copy.is_none(), "one copy at a time");
        hosted.copy = Some((to, false));
        Ok(CopyReport { records: hosted.records, bytes: 1 })
    }

    fn close_copy(&mut self, core: usize, id: PartitionId) -> Result<(), Refusal> {
        let hosted = self.cores[core].hosted.get_mut(&id).ok_or_else(unhosted)?;
        hosted.copy.as_mut().expect("there is a copy").1 = true;
        Ok(())
    }

    fn switch_store(
        &mut self,
        core: usize,
        id: PartitionId,
        spec: Option<PartitionSpec>,
    ) -> Result<(), Refusal> {
        let hosted = self.cores[core].hosted.get_mut(&id).ok_or_else(unhosted)?;
        let copy = hosted.copy.take();
        if let Some(spec) = spec {
            assert_eq!(
                copy,
                Some((spec.store, true)),
                "it was closed before the manifest named it"
            );
            assert_eq!(hosted.spec.first_epoch, spec.first_epoch, "the log goes on");
            hosted.spec = spec;
        }
        Ok(())
    }

    fn report(&self, core: usize) -> CoreReport {
        let partitions = self.cores[core].hosted.values().map(|hosted| PartitionReport {
            spec: hosted.spec.clone(),
            state: hosted.state,
            records: hosted.records,
            payload_bytes: hosted.records * 10,
            memory_bytes: hosted.records * 50,
            reclaimed: 0,
            sequence: Sequence(hosted.records),
            durable_sequence: Sequence(hosted.records),
            snapshot_sequence: Sequence::ZERO,
            snapshot_unix_ms: 0,
            requests: RequestStats::default(),
            retries_answered: 0,
            stages: Vec::new(),
            detail: String::new(),
            store_change: None,
            kafka: None,
        });
        CoreReport { partitions: partitions.collect(), log_mode: "direct", ..CoreReport::default() }
    }
}

fn unhosted() -> Refusal {
    Refusal::new(Reason::UnknownPartition, "the core does not have the partition")
}

fn name_of(command: &CoreCommand) -> &'static str {
    match command {
        CoreCommand::Add { .. } => "add",
        CoreCommand::Update { .. } => "update",
        CoreCommand::Remove { .. } => "remove",
        CoreCommand::Snapshot { .. } => "snapshot",
        CoreCommand::PrepareRestore { .. } => "prepare",
        CoreCommand::FinishRestore { spec: Some(_), .. } => "finish",
        CoreCommand::FinishRestore { spec: None, .. } => "abandon",
        CoreCommand::CopyStore { .. } => "copy",
        CoreCommand::CloseCopy { .. } => "close",
        CoreCommand::SwitchStore { spec: Some(_), .. } => "switch",
        CoreCommand::SwitchStore { spec: None, .. } => "keep",
        CoreCommand::Route(_) => "route",
        CoreCommand::Report { .. } => "report",
        CoreCommand::Drain => "drain",
    }
}

fn partition_of(command: &CoreCommand) -> Option<PartitionId> {
    match command {
        CoreCommand::Add { spec, .. } | CoreCommand::Update { spec, .. } => Some(spec.id),
        CoreCommand::Remove { id, .. }
        | CoreCommand::Snapshot { id, .. }
        | CoreCommand::PrepareRestore { id, .. }
        | CoreCommand::FinishRestore { id, .. }
        | CoreCommand::CopyStore { id, .. }
        | CoreCommand::CloseCopy { id, .. }
        | CoreCommand::SwitchStore { id, .. } => Some(*id),
        CoreCommand::Route(_) | CoreCommand::Report { .. } | CoreCommand::Drain => None,
    }
}

/// Content of a partition lies in a file of its first epoch.
fn content_file(partitions_dir: &Path, id: PartitionId, epoch: Epoch) -> PathBuf {
    let path = partitions_dir.join(id.to_string()).join(format!("{epoch}-1.snapshot"));
    let name = path.file_name().and_then(|name| name.to_str()).and_then(parse_snapshot_name);
    assert_eq!(name, Some((epoch, Sequence(1))));
    path
}

fn read_records(partitions_dir: &Path, id: PartitionId, epoch: Epoch) -> u64 {
    let text = fs::read_to_string(content_file(partitions_dir, id, epoch));
    text.map_or(0, |text| text.parse().expect("a count of records"))
}

/// A list of all content that was ever made, beside what the node knows of.
fn ledger(partitions_dir: &Path) -> PathBuf {
    partitions_dir.with_file_name("made")
}

fn note_made(partitions_dir: &Path, id: PartitionId, epoch: Epoch) {
    let mut text = fs::read_to_string(ledger(partitions_dir)).unwrap_or_default();
    text.push_str(&format!("{id}:{epoch}\n"));
    fs::write(ledger(partitions_dir), text).expect("a test's directory");
}

fn was_made(partitions_dir: &Path, id: PartitionId, epoch: Epoch) -> bool {
    let text = fs::read_to_string(ledger(partitions_dir)).unwrap_or_default();
    text.lines().any(|line| line == format!("{id}:{epoch}"))
}

fn write_records(partitions_dir: &Path, id: PartitionId, epoch: Epoch, records: u64) {
    let path = content_file(partitions_dir, id, epoch);
    fs::create_dir_all(path.parent().expect("a directory")).expect("a test's directory");
    fs::write(path, records.to_string()).expect("a test's directory");
}
