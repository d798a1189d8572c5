//! The manager against scripted cores, a real data directory and a real registry file, crashing
//! between any two effects. Time is tokio's paused clock: nothing waits for real.

mod stores;

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use stateside_registry::{Edit, FileRegistry, RegistryError};
use stateside_types::PartitionSpec;
use tokio::{task::JoinHandle, time::timeout};

use super::*;
use crate::{
    config::{Settings, Surroundings},
    control::{
        bootstrap::{self, Bootstrap, BootstrapError, bootstrap},
        fake_cores::{Budget, FakeCores},
    },
    data_dir::DataDirError,
};

/// One machine: its disk survives what runs on it.
struct Machine {
    dir: tempfile::TempDir,
    settings: Settings,
}

/// A running manager with its cores.
struct Running {
    calls: mpsc::Sender<Call>,
    view: watch::Receiver<Arc<View>>,
    phase: watch::Sender<Phase>,
    cores: FakeCores,
    budget: Arc<Budget>,
    manifest_fault: Fault,
    tasks: Vec<JoinHandle<()>>,
}

/// How the next writes of the manifest fail.
type Fault = Arc<Mutex<Vec<Failing>>>;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Failing {
    Full,
    InDoubt,
}

struct TestFiles<T> {
    inner: T,
    budget: Arc<Budget>,
    fault: Fault,
}

fn crashed() -> std::io::Error {
    std::io::Error::other("the world has crashed")
}

impl ManifestStore for TestFiles<Arc<DataDir>> {
    fn write(&mut self, manifest: &Manifest) -> Result<(), ReplaceError> {
        let fault = self.fault.lock().unwrap().pop();
        if fault == Some(Failing::Full) {
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(ReplaceError { source, is_in_doubt: false });
        }
        if !self.budget.step() {
            return Err(ReplaceError { source: crashed(), is_in_doubt: false });
        }
        self.inner.write(manifest)?;
        let is_in_doubt = fault == Some(Failing::InDoubt);
        if is_in_doubt || !self.budget.step() {
            return Err(ReplaceError { source: crashed(), is_in_doubt });
        }
        Ok(())
    }
}

impl Registry for TestFiles<FileRegistry> {
    fn poll(&mut self) -> Polled {
        self.inner.poll()
    }

    fn edit(&mut self, edit: &Edit) -> Result<DesiredSet, RegistryError> {
        let dead = || RegistryError::Conflict("the world has crashed".to_owned());
        if !self.budget.step() {
            return Err(dead());
        }
        let set = self.inner.edit(edit)?;
        if self.budget.step() { Ok(set) } else { Err(dead()) }
    }

    fn undo_edit(&mut self) -> Result<DesiredSet, RegistryError> {
        let dead = || RegistryError::Conflict("the world has crashed".to_owned());
        if !self.budget.step() {
            return Err(dead());
        }
        let set = self.inner.undo_edit()?;
        if self.budget.step() { Ok(set) } else { Err(dead()) }
    }

    fn origin(&self) -> String {
        self.inner.origin()
    }
}

/// Two cores, four partitions over the whole range.
const QUARTERS: &str = "\
# quarters
[[partition]]
id = 0
range = \"0x0..0x4000000000000000\"

[[partition]]
id = 1
range = \"0x4000000000000000..0x8000000000000000\"

[[partition]]
id = 2
range = \"0x8000000000000000..0xc000000000000000\"

[[partition]]
id = 3
range = \"0xc000000000000000..0\"
";

impl Machine {
    fn new(registry: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let surroundings = Surroundings { available_cores: 2, environment: Box::new(|_| None) };
        let mut settings = Settings::defaults(&surroundings);
        settings.node.data_dir = dir.path().join("data");
        settings.registry.file = Some(dir.path().join("registry.toml"));
        fs::write(dir.path().join("registry.toml"), registry).unwrap();
        Self { dir, settings }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn registry(&self) -> String {
        fs::read_to_string(self.path("registry.toml")).unwrap()
    }

    fn write_registry(&self, text: &str) {
        fs::write(self.path("registry.toml"), text).unwrap();
    }

    async fn start(&self, budget: Arc<Budget>) -> Running {
        // What ran here before gives the lock up when its last blocking piece of work has ended.
        let started = loop {
            match bootstrap(&self.settings) {
                Err(BootstrapError::DataDir(DataDirError::Locked { .. })) => {
                    tokio::task::yield_now().await;
                }
                other => break other.unwrap(),
            }
        };
        let Bootstrap { data_dir, manifest, registry, desired, .. } = started;
        let cores = FakeCores::recover(&manifest, data_dir.partitions(), Arc::clone(&budget));
        let (handles, mailboxes) = cores.handles();
        let mut tasks = Vec::new();
        for (mailbox, id) in mailboxes.into_iter().zip(0..) {
            let cores = cores.clone();
            tasks.push(tokio::spawn(async move {
                while let Ok(command) = mailbox.recv_async().await {
                    cores.handle(CoreId(id), command);
                }
            }));
        }
        let fault = Fault::default();
        let files = |fault: &Fault| (Arc::clone(&budget), Arc::clone(fault));
        let (manifest_budget, manifest_fault) = files(&fault);
        let (registry_budget, registry_fault) = files(&fault);
        let (manager, view) = Manager::new(ManagerParts {
            manifest,
            manifests: Box::new(TestFiles {
                inner: data_dir,
                budget: manifest_budget,
                fault: manifest_fault,
            }),
            registry: Box::new(TestFiles {
                inner: registry,
                budget: registry_budget,
                fault: registry_fault,
            }),
            desired,
            defaults: bootstrap::defaults(&self.settings),
            cores: Cores::new(handles),
            metrics: Arc::new(NodeMetrics::new(2)),
        });
        let (calls, mailbox) = mpsc::channel(4);
        let (phase, seen_phase) = watch::channel(Phase::Serving);
        tasks.push(tokio::spawn(manager.run(mailbox, seen_phase)));
        Running { calls, view, phase, cores, budget, manifest_fault: fault, tasks }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Running {
    async fn ask<T>(&self, call: impl FnOnce(Answer<T>) -> Call) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        assert!(self.calls.send(call(reply)).await.is_ok(), "the manager runs");
        answer.await.expect("the manager answers")
    }

    async fn add(&self, id: Option<u32>, range: &str) -> Result<PartitionId, Refusal> {
        let range = range.parse().unwrap();
        let wanted = Wanted { id: id.map(PartitionId), range, store: None, ack: None };
        self.ask(|reply| Call::Add { wanted, reply }).await
    }

    async fn remove(&self, id: u32, confirm: bool) -> Result<Described, Refusal> {
        let target = Target::Id(PartitionId(id));
        self.ask(|reply| Call::Remove { target, confirm, reply }).await
    }

    async fn snapshot(&self, id: u32, path: PathBuf) -> Result<SnapshotReport, Refusal> {
        self.ask(|reply| Call::Snapshot { id: PartitionId(id), path, reply }).await
    }

    async fn restore(&self, id: u32, path: PathBuf, confirm: bool) -> Result<Restored, Refusal> {
        self.ask(|reply| Call::Restore { id: PartitionId(id), path, confirm, reply }).await
    }

    async fn change_store(&self, id: u32, to: StoreKind) -> Result<CopyReport, Refusal> {
        self.ask(|reply| Call::ChangeStore { id: PartitionId(id), to, reply }).await
    }

    fn store(&self, id: u32) -> StoreKind {
        self.cores.hosted()[&PartitionId(id)].1.store
    }

    /// Waits until the manager's view is as wanted; tells the view when that never happens.
    async fn wait(&self, wanted: impl Fn(&View) -> bool) -> Arc<View> {
        let mut view = self.view.clone();
        let waited = timeout(Duration::from_secs(120), view.wait_for(|view| wanted(view))).await;
        match waited {
            Ok(view) => Arc::clone(&view.expect("the manager runs")),
            Err(_) => panic!("not in time: {:#?}", self.view.borrow().pending),
        }
    }

    /// Waits until nothing is under way: what is pending waits for somebody.
    async fn settle(&self) -> Arc<View> {
        // The first refusal comes before a round of reconciliation, the second after it.
        for _ in 0..2 {
            let refused = self.snapshot(99_999, "/x".into()).await.unwrap_err();
            assert_eq!(refused.reason, Reason::UnknownPartition);
        }
        let under_way = |line: &String| line.contains("under way") || line.contains("repeated");
        self.wait(|view| !view.pending.iter().any(under_way)).await
    }

    fn ids(&self) -> Vec<u32> {
        self.view.borrow().manifest.partitions.keys().map(|id| id.0).collect()
    }

    /// Cores, routes, files and manifest tell the same.
    fn check(&self, machine: &Machine) {
        let manifest = Arc::clone(&self.view.borrow().manifest);
        let on_disk = fs::read(machine.path("data/MANIFEST")).unwrap();
        let on_disk = Manifest::decode(&on_disk).unwrap();
        assert_eq!(on_disk.partitions, manifest.partitions);
        let hosted = self.cores.hosted();
        let placed: BTreeMap<PartitionId, (CoreId, PartitionSpec)> = manifest
            .partitions
            .values()
            .map(|placed| (placed.spec.id, (placed.core, placed.spec.clone())))
            .collect();
        let served: BTreeMap<_, _> =
            hosted.into_iter().map(|(id, (core, spec, _))| (id, (core, spec))).collect();
        assert_eq!(served, placed);
        let routes = RoutingTable::new(1, manifest.routes(|_| false)).unwrap().routes().to_vec();
        assert!(self.cores.routes().iter().all(|of_core| *of_core == routes));
        for entry in fs::read_dir(machine.path("data/partitions")).unwrap() {
            let id = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
            assert!(manifest.partitions.contains_key(&PartitionId(id)), "files of {id} are left");
        }
    }

    fn records(&self, id: u32) -> u64 {
        self.cores.hosted()[&PartitionId(id)].2
    }
}

#[tokio::test(start_paused = true)]
async fn partitions_are_added_and_removed_and_survive_a_restart() {
    let machine = Machine::new(QUARTERS);
    let node = machine.start(Budget::unlimited()).await;
    node.remove(1, false).await.unwrap();
    assert_eq!(node.add(None, "0x4000000000000000..0x5000000000000000").await, Ok(PartitionId(1)));
    assert_eq!(
        node.add(Some(9), "0x5000000000000000..0x6000000000000000").await,
        Ok(PartitionId(9))
    );
    node.settle().await;
    node.check(&machine);
    assert!(node.cores.write(PartitionId(9), 5));
    drop(node);

    let node = machine.start(Budget::unlimited()).await;
    node.settle().await;
    node.check(&machine);
    assert_eq!(node.ids(), [0, 1, 2, 3, 9]);
    assert_eq!(node.records(9), 5);
    assert!(machine.registry().starts_with("# quarters\n"));
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_changes_nothing() {
    let machine = Machine::new(QUARTERS);
    let node = machine.start(Budget::unlimited()).await;
    node.cores.write(PartitionId(2), 7);
    node.settle().await;
    let before = (machine.registry(), node.ids(), node.cores.log());
    let reason = |refused: Result<PartitionId, Refusal>| refused.unwrap_err().reason;
    assert_eq!(reason(node.add(Some(2), "0..1").await), Reason::PartitionExists);
    assert_eq!(reason(node.add(Some(8), "0..1").await), Reason::RangeOverlap);
    let reason = |refused: Result<Described, Refusal>| refused.unwrap_err().reason;
    assert_eq!(reason(node.remove(8, true).await), Reason::UnknownPartition);
    let refused = node.remove(2, false).await.unwrap_err();
    assert_eq!(refused.reason, Reason::ConfirmationRequired);
    assert_eq!(refused.metadata, [("records".into(), "7".to_owned())]);
    let by_range = Target::Range("0..0x10".parse().unwrap());
    let refused = node.ask(|reply| Call::Remove { target: by_range, confirm: true, reply }).await;
    assert_eq!(reason(refused), Reason::UnknownPartition);
    let refused = node.snapshot(2, "relative/path".into()).await.unwrap_err();
    assert_eq!(refused.reason, Reason::InvalidArgument);
    node.settle().await;
    assert_eq!((machine.registry(), node.ids(), node.cores.log()), before);
    node.check(&machine);
}

#[tokio::test(start_paused = true)]
async fn an_addition_that_its_core_refuses_is_taken_back_everywhere() {
    let machine = Machine::new("# none\n");
    let node = machine.start(Budget::unlimited()).await;
    node.cores.refuse_next("add", Refusal::new(Reason::DiskFull, "no space for a store"));
    let refused = node.add(None, "0..").await.unwrap_err();
    assert_eq!(refused.reason, Reason::DiskFull);
    node.settle().await;
    assert_eq!(node.ids(), [0; 0]);
    assert_eq!(machine.registry(), "# none\n");
    assert_eq!(node.cores.log(), ["core 0: add 0 (refused)", "core 0: remove 0"]);
    node.check(&machine);
    assert_eq!(node.add(None, "0..").await, Ok(PartitionId(0)));
    let epoch = node.view.borrow().manifest.partitions[&PartitionId(0)].spec.epoch;
    assert_eq!(epoch, stateside_types::Epoch(2), "the first attempt used epoch 1 up");
}

#[tokio::test(start_paused = true)]
async fn a_file_edit_is_carried_out_and_failures_are_repeated_in_sight_of_status() {
    let machine = Machine::new(QUARTERS);
    let node = machine.start(Budget::unlimited()).await;
    node.settle().await;
    for _ in 0..3 {
        node.cores.refuse_next("add", Refusal::new(Reason::Overloaded, "not now"));
    }
    let edited =
        QUARTERS.replace("id = 1\n", "id = 7\n").replace("id = 3\n", "id = 3\nack = \"memory\"\n");
    machine.write_registry(&edited);
    let view = node.wait(|view| !view.pending.is_empty()).await;
    assert!(view.pending[0].starts_with("partition 7: its creation on core"), "{:?}", view.pending);
    node.wait(|view| view.pending.is_empty() && view.manifest.partitions.len() == 4).await;
    node.settle().await;
    assert_eq!(node.ids(), [0, 2, 3, 7]);
    assert_eq!(node.cores.hosted()[&PartitionId(3)].1.ack, Ack::Memory);
    node.check(&machine);
}

#[tokio::test(start_paused = true)]
async fn a_file_edit_that_would_lose_records_waits_for_a_confirmation_by_call_or_by_file() {
    let machine = Machine::new(QUARTERS);
    let node = machine.start(Budget::unlimited()).await;
    node.cores.write(PartitionId(0), 10);
    node.cores.write(PartitionId(1), 20);
    let last_two = QUARTERS.split_once("[[partition]]\nid = 2").unwrap().1;
    let last_two = format!("[[partition]]\nid = 2{last_two}");
    machine.write_registry(&last_two);
    let view = node.wait(|view| view.pending.len() == 2).await;
    assert!(view.pending[0].contains("it holds 10 records"), "{:?}", view.pending);
    assert!(node.cores.write(PartitionId(0), 1), "it goes on serving meanwhile");
    node.remove(0, true).await.unwrap();
    assert_eq!(node.ids(), [1, 2, 3]);
    machine.write_registry(&format!("{last_two}\n[[removed]]\nid = 1\n"));
    node.wait(|view| view.pending.is_empty()).await;
    node.settle().await;
    assert_eq!(node.ids(), [2, 3]);
    node.check(&machine);
}

#[tokio::test(start_paused = true)]
async fn a_broken_registry_keeps_the_set_and_says_where_it_is_broken() {
    let machine = Machine::new(QUARTERS);
    let node = machine.start(Budget::unlimited()).await;
    machine.write_registry(&QUARTERS.replace("id = 2", "it = 2"));
    let view = node.wait(|view| !view.pending.is_empty()).await;
    assert!(view.pending[0].contains("registry.toml:11: unknown key `it`"), "{:?}", view.pending);
    let refused = node.add(None, "0..1").await.unwrap_err();
    assert_eq!(refused.reason, Reason::RangeOverlap);
    let refused = node.remove(1, false).await.unwrap_err();
    assert_eq!(refused.reason, Reason::RegistryUnavailable);
    assert_eq!(node.ids(), [0, 1, 2, 3]);
    machine.write_registry(QUARTERS);
    node.wait(|view| view.pending.is_empty()).await;
    node.check(&machine);
}

/// A record arrived between the question whether the partition is empty and its removal. It was
/// acknowledged, so it must not go.
#[tokio::test(start_paused = true)]
async fn a_record_that_arrives_during_a_removal_stops_it() {
    // Reports: one of each core before anything is changed, one round for the plan, then the
    // rounds behind the fence.
    for reports in 0..12 {
        let machine = Machine::new(QUARTERS);
        let node = machine.start(Budget::unlimited()).await;
        node.settle().await;
        node.cores.surprise("report", reports, PartitionId(1), 1);
        let outcome = node.remove(1, false).await;
        let arrived = node.cores.hosted().get(&PartitionId(1)).map(|(.., records)| *records);
        match outcome {
            Err(refusal) => {
                assert_eq!(refusal.reason, Reason::ConfirmationRequired, "after {reports}");
                assert_eq!(arrived, Some(1));
                assert_eq!(machine.registry(), QUARTERS);
                node.settle().await;
                node.check(&machine);
                assert!(node.cores.write(PartitionId(1), 1), "it serves again");
            }
            Ok(_) => {
                // The record never arrived: nobody was told that it had.
                assert_eq!(arrived, None, "after {reports}");
                assert!(reports >= 7, "after {reports}: behind the fence at the latest");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn snapshots_and_restores_carry_records_over() {
    let machine = Machine::new(QUARTERS);
    let node = machine.start(Budget::unlimited()).await;
    node.cores.write(PartitionId(2), 30);
    let path = machine.path("two.snapshot");
    assert_eq!(node.snapshot(2, path.clone()).await.unwrap().records, 30);
    let again = node.snapshot(2, path.clone()).await.unwrap_err();
    assert_eq!(again.reason, Reason::SnapshotExists);
    node.cores.write(PartitionId(2), 3);
    let refused = node.restore(2, path.clone(), false).await.unwrap_err();
    assert_eq!(refused.reason, Reason::ConfirmationRequired);
    let before = node.view.borrow().manifest.partitions[&PartitionId(2)].spec.clone();
    assert_eq!(node.restore(2, path, true).await.unwrap().records, 30);
    node.settle().await;
    node.check(&machine);
    let after = node.view.borrow().manifest.partitions[&PartitionId(2)].spec.clone();
    assert_eq!(node.records(2), 30);
    assert!(after.first_epoch > before.epoch && after.first_epoch == after.epoch);
    assert_eq!(after.base_sequence.0, 33, "versions go on from the higher of the two");
    drop(node);
    let node = machine.start(Budget::unlimited()).await;
    assert_eq!(node.records(2), 30);
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_fails_leaves_the_partition_as_it_was() {
    let machine = Machine::new(QUARTERS);
    let node = machine.start(Budget::unlimited()).await;
    node.cores.write(PartitionId(2), 30);
    let (missing, damaged, good) =
        (machine.path("none"), machine.path("damaged"), machine.path("good"));
    fs::write(&damaged, "many").unwrap();
    fs::write(&good, "5").unwrap();
    let reason = |refused: Result<Restored, Refusal>| refused.unwrap_err().reason;
    assert_eq!(reason(node.restore(2, missing, true).await), Reason::SnapshotUnreadable);
    assert_eq!(reason(node.restore(2, damaged, true).await), Reason::SnapshotDamaged);
    node.manifest_fault.lock().unwrap().push(Failing::Full);
    assert_eq!(reason(node.restore(2, good.clone(), true).await), Reason::DiskFull);
    assert!(node.cores.write(PartitionId(2), 1), "writes go on");
    assert_eq!(node.records(2), 31);
    // A record that arrives while the file is being read is not lost without confirmation.
    node.remove(3, false).await.unwrap();
    node.add(Some(5), "0xc000000000000000..").await.unwrap();
    node.cores.surprise("prepare", 0, PartitionId(5), 1);
    let outcome = node.restore(5, good.clone(), false).await;
    assert_eq!(reason(outcome), Reason::ConfirmationRequired);
    assert_eq!(node.records(5), 1);
    node.settle().await;
    node.check(&machine);
    // A damaged partition holds nobody knows what: restoring it is for somebody to confirm.
    node.cores.damage(PartitionId(2));
    assert_eq!(reason(node.restore(2, good.clone(), false).await), Reason::ConfirmationRequired);
    node.restore(2, good, true).await.unwrap();
    assert_eq!(node.records(2), 5);
}

#[tokio::test(start_paused = true)]
async fn one_operation_at_a_time_touches_a_partition() {
    let machine = Machine::new(QUARTERS);
    let node = machine.start(Budget::unlimited()).await;
    node.cores.silence("snapshot");
    let (reply, slow) = oneshot::channel();
    let call = Call::Snapshot { id: PartitionId(1), path: machine.path("s"), reply };
    assert!(node.calls.send(call).await.is_ok());
    let busy = [
        node.snapshot(1, machine.path("t")).await.err(),
        node.restore(1, machine.path("t"), true).await.err(),
        node.remove(1, true).await.err(),
    ];
    for refusal in busy {
        assert_eq!(refusal.unwrap().reason, Reason::PartitionBusy);
    }
    // Others are not held up by it.
    node.remove(2, false).await.unwrap();
    node.cores.speak();
    assert!(slow.await.unwrap().is_ok());
    node.remove(1, true).await.unwrap();
    node.settle().await;
    node.check(&machine);
}

#[tokio::test(start_paused = true)]
async fn a_silent_core_is_waited_for_with_a_bound_and_then_in_the_background() {
    let machine = Machine::new("");
    let node = machine.start(Budget::unlimited()).await;
    node.cores.silence("add");
    let refused = node.add(None, "0..").await.unwrap_err();
    assert_eq!(refused.reason, Reason::DeadlineExceeded);
    assert!(machine.registry().contains("id = 0"), "what goes on stays desired");
    assert!(node.cores.routes()[0].is_empty(), "no route leads to what does not serve");
    node.wait(|view| view.pending.iter().any(|line| line.contains("creation"))).await;
    node.cores.speak();
    node.wait(|view| view.pending.is_empty()).await;
    node.check(&machine);
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_changes_and_they_work_when_there_is_space_again() {
    let machine = Machine::new(QUARTERS);
    let node = machine.start(Budget::unlimited()).await;
    node.settle().await;
    // One for the attempt, one for the round after it was taken back.
    *node.manifest_fault.lock().unwrap() = vec![Failing::Full; 2];
    let refused = node.remove(1, false).await.unwrap_err();
    assert_eq!(refused.reason, Reason::DiskFull);
    assert_eq!(machine.registry(), QUARTERS);
    node.manifest_fault.lock().unwrap().clear();
    node.settle().await;
    node.check(&machine);
    node.remove(1, false).await.unwrap();
    node.settle().await;
    node.check(&machine);
}

/// The rename was done and the directory could not be synced: nobody can know whether the new
/// manifest survives a crash. A core that deleted files on its word might have deleted the files
/// of the manifest that comes back.
#[tokio::test(start_paused = true)]
async fn no_core_hears_of_a_manifest_that_is_in_doubt() {
    let machine = Machine::new(QUARTERS);
    let node = machine.start(Budget::unlimited()).await;
    node.settle().await;
    // Failing twice: the change itself, and the first rewrite.
    *node.manifest_fault.lock().unwrap() = vec![Failing::InDoubt; 2];
    let (reply, answer) = oneshot::channel();
    let target = Target::Id(PartitionId(1));
    let call = Call::Remove { target, confirm: true, reply };
    assert!(node.calls.send(call).await.is_ok());
    node.wait(|view| view.pending.iter().any(|line| line.contains("cannot be written"))).await;
    assert_eq!(node.cores.log(), [""; 0]);
    assert!(!node.cores.write(PartitionId(1), 1), "no route leads to it any more");
    node.wait(|view| view.pending.is_empty()).await;
    assert_eq!(node.cores.log(), ["core 1: remove 1"]);
    answer.await.unwrap().unwrap();
    node.check(&machine);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_changed_before_the_cores_have_recovered_or_once_they_drain() {
    let machine = Machine::new(QUARTERS);
    let node = machine.start(Budget::unlimited()).await;
    node.settle().await;
    for (phase, reason) in
        [(Phase::Recovering, Reason::PartitionStarting), (Phase::Draining, Reason::ShuttingDown)]
    {
        node.phase.send_replace(phase);
        machine.write_registry("");
        for _ in 0..4 {
            let refused = node.add(None, "0..").await.unwrap_err();
            assert_eq!(refused.reason, reason);
            tokio::time::advance(POLL_PERIOD).await;
        }
        assert_eq!(node.cores.log(), [""; 0]);
    }
}

/// What an operator does in each crash test.
#[derive(Clone, Copy, Debug)]
enum Script {
    Add,
    RemoveEmpty,
    RemoveConfirmed,
    Restore,
    ChangeStore,
    FileEdit,
}

async fn play(script: Script, node: &Running, machine: &Machine) {
    match script {
        Script::Add => {
            let _ = node.add(Some(9), "0x4000000000000000..0x5000000000000000").await;
        }
        Script::RemoveEmpty => drop(node.remove(3, false).await),
        Script::RemoveConfirmed => drop(node.remove(2, true).await),
        Script::Restore => drop(node.restore(2, machine.path("snapshot"), true).await),
        Script::ChangeStore => drop(node.change_store(2, StoreKind::MemoryOrdered).await),
        Script::FileEdit => {
            let text = machine.registry().replace("id = 3\n", "id = 8\n");
            machine.write_registry(
                &format!("{text}\n[[removed]]\nid = 2\n").replace("id = 2\nrange", "id = 4\nrange"),
            );
            node.wait(|view| {
                let ids: Vec<_> = view.manifest.partitions.keys().map(|id| id.0).collect();
                ids == [0, 4, 8] && view.pending.is_empty()
            })
            .await;
        }
    }
}

/// Partition 1 is absent, 2 holds 40 records, the others none.
async fn machine_for_crashes() -> Machine {
    let machine = Machine::new(QUARTERS);
    let node = machine.start(Budget::unlimited()).await;
    node.remove(1, false).await.unwrap();
    assert!(node.cores.write(PartitionId(2), 40));
    fs::write(machine.path("snapshot"), "11").unwrap();
    node.settle().await;
    machine
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_any_two_effects_leaves_each_change_done_or_not_done() {
    for script in [
        Script::Add,
        Script::RemoveEmpty,
        Script::RemoveConfirmed,
        Script::Restore,
        Script::ChangeStore,
        Script::FileEdit,
    ] {
        let machine = machine_for_crashes().await;
        let node = machine.start(Budget::unlimited()).await;
        play(script, &node, &machine).await;
        node.settle().await;
        let effects = node.budget.used();
        assert!(effects >= 4, "{script:?} has only {effects} effects");
        drop(node);
        for crash_at in 0..effects {
            let machine = machine_for_crashes().await;
            let node = machine.start(Budget::of(crash_at)).await;
            tokio::select! {
                () = node.budget.crashed() => {}
                () = play(script, &node, &machine) => {}
            }
            drop(node);
            let story = format!("{script:?}, crash at effect {crash_at}");
            let node = machine.start(Budget::unlimited()).await;
            node.settle().await;
            node.check(&machine);
            let ids = node.ids();
            let is_declared = |id: u32| machine.registry().contains(&format!("id = {id}\nrange"));
            match script {
                Script::Add => {
                    assert!(ids == [0, 2, 3] || ids == [0, 2, 3, 9], "{story}: {ids:?}");
                    assert_eq!(ids.contains(&9), is_declared(9), "{story}");
                }
                Script::RemoveEmpty => assert_eq!(ids.contains(&3), is_declared(3), "{story}"),
                Script::RemoveConfirmed => {
                    // The confirmation went with the call. Until the manifest has forgotten the
                    // partition all its records are there, and somebody is asked.
                    if ids.contains(&2) {
                        assert_eq!(node.records(2), 40, "{story}");
                        let asks =
                            node.view.borrow().pending.iter().any(|line| line.contains("confirm"));
                        assert_eq!(asks, !is_declared(2), "{story}");
                    }
                }
                Script::Restore => {
                    let spec = node.view.borrow().manifest.partitions[&PartitionId(2)].spec.clone();
                    let expected = if spec.base_sequence.0 == 0 { 40 } else { 11 };
                    assert_eq!(node.records(2), expected, "{story}");
                }
                Script::ChangeStore => {
                    // Declared or not: a change that was begun goes on by itself.
                    assert_eq!(node.records(2), 40, "{story}");
                    let is_declared = machine.registry().contains("\"memory-ordered\"");
                    let wanted =
                        if is_declared { StoreKind::MemoryOrdered } else { StoreKind::Memory };
                    node.wait(|view| {
                        view.manifest.partitions[&PartitionId(2)].spec.store == wanted
                            && view.pending.is_empty()
                    })
                    .await;
                    assert_eq!(node.store(2), wanted, "{story}");
                }
                Script::FileEdit => {
                    node.wait(|view| {
                        view.manifest.partitions.len() == 3 && view.pending.is_empty()
                    })
                    .await;
                    assert_eq!(node.ids(), [0, 4, 8], "{story}");
                    node.check(&machine);
                }
            }
            // Whatever happened, the node can be worked with, and epochs are never reused: the
            // cores of this test refuse an epoch that a file knows.
            if node.ids().contains(&2) {
                node.restore(2, machine.path("snapshot"), true).await.unwrap();
                assert_eq!(node.records(2), 11, "{story}");
            }
            if !node.ids().contains(&9) {
                let free = "0x4000000000000000..0x5000000000000000";
                assert_eq!(node.add(Some(9), free).await, Ok(PartitionId(9)), "{story}");
            }
            node.settle().await;
            node.check(&machine);
        }
    }
}
