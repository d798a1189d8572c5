//! Kill loops: load on a real node, `kill -9`, restart, and every record compared with what
//! clients were told. Kills also hit recoveries and snapshots.
//!
//! ```text
//!   ┌─► launch, kill within milliseconds (some loops) ─► start ─► read all, probe all ─┐
//!   └── kill -9 ◄─ snapshot under way (some loops) ◄─ load for a moment ◄──────────────┘
//!                  or a partition on its way to another store
//! ```
//! Every choice of the workload comes from one seed. The interleaving with the node does not, so
//! a seed repeats the kind of run and not the run itself; a violation prints the history of the
//! keys concerned.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use stateside_proto::v1::{
    Ack, ChangeStoreRequest, GetRequest, RemoveEntry, RemoveRequest, SnapshotRequest, UpsertEntry,
    UpsertRequest, WriteResult,
};
use stateside_router::key_hash;
use stateside_types::{HashRange, KeyHash};
use tonic::{Code, Status};

use crate::{
    config::{Config, Store},
    history::{Batch, BatchId, Content, History},
    node_process::{Node, Site},
    random::Random,
    rpc::{self, Data},
};

/// Connections of the load; several writers share one.
const CONNECTIONS: usize = 4;
/// Tasks that write, each to keys of its own, one call at a time.
const WRITERS: usize = 16;
/// Keys of one writer: the first half stands alone, the second half shares a routing key.
const KEYS_PER_WRITER: u64 = 16;
/// Longest value, bytes.
const VALUE_BYTES_MAX: u64 = 4_000;
/// How long load runs before a kill, milliseconds: at least, and how much more.
const LOAD_MS: (u64, u64) = (60, 300);
/// After how many milliseconds at most a recovery is killed.
const RECOVERY_KILL_MS: u64 = 60;
/// After how many milliseconds at most a snapshot is killed.
const SNAPSHOT_KILL_MS: u64 = 25;
/// After how many milliseconds at most a change of stores is killed; it ends before that, as a rule.
const CHANGE_KILL_MS: u64 = 120;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Kills under load; those during recovery come on top.
    pub loops: u32,
    /// Where partitions keep their records.
    pub store: Store,
    /// The node's default acknowledgement. What is acknowledged from memory may be lost, and the
    /// oracle has to notice.
    pub ack: &'static str,
    /// Before every kill a partition begins to change to another store.
    pub changes_stores: bool,
    /// Where every choice comes from.
    pub seed: u64,
}

/// What was done, when nothing was violated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Kills under load.
    pub kills: u32,
    /// Of these, while a snapshot was being written.
    pub kills_in_snapshot: u32,
    /// Kills of a node that had just been launched.
    pub kills_in_recovery: u32,
    /// Changes of stores that had ended before the kill.
    pub stores_changed: u32,
    /// Batches that the node acknowledged, by partition.
    pub acknowledged: usize,
    /// Batches that it refused.
    pub refused: usize,
    /// Batches under way at a kill that were applied.
    pub found_applied: usize,
    /// Batches under way at a kill that were not.
    pub found_absent: usize,
}

/// Runs the plan; `progress` hears of every loop.
///
/// # Errors
/// Every promise that the node broke, with the history of the keys concerned.
///
/// # Panics
/// When a node does not start again: that breaks no promise to a client but ends the run all the
/// same.
pub fn run(plan: Plan, progress: impl FnMut(u32, &Outcome)) -> Result<Outcome, String> {
    run_with(plan, "", progress)
}

/// As [`run`], with further lines of configuration.
///
/// # Errors
/// As [`run`].
///
/// # Panics
/// As [`run`].
pub fn run_with(
    plan: Plan,
    more: &str,
    mut progress: impl FnMut(u32, &Outcome),
) -> Result<Outcome, String> {
    // Small segments, so that they turn over and background snapshots run under load.
    let site = Site::new(Config {
        cores: 2,
        store: plan.store,
        ack: plan.ack,
        log_segment_mb: 4,
        log_max_mb: 16,
        more: more.to_owned(),
        ..Config::default()
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime starts");
    let mut random = Random::new(plan.seed);
    let mut outcome = Outcome::default();
    let mut before: Option<PartitionMap> = None;
    let shared = Arc::new(Shared::default());
    for life in 0..=plan.loops {
        if life > 0 && random.one_in(2) {
            for _ in 0..=random.below(2) {
                let mut node = site.launch();
                pause_ms(random.below(RECOVERY_KILL_MS));
                node.kill();
                outcome.kills_in_recovery += 1;
            }
        }
        let mut node = site.start();
        node.wait_until_all_serve();
        let map = runtime
            .block_on(Box::pin(verify(&site.data_address(), &shared)))
            .map_err(|problem| broken(life, &[problem], &node))?;
        if before.as_ref().is_some_and(|before| *before != map) {
            return Err(broken(life, &["the partitions are not those of before".into()], &node));
        }
        let violations = shared.history().violations().to_vec();
        if !violations.is_empty() {
            return Err(broken(life, &violations, &node));
        }
        if life < plan.loops {
            let during_snapshot = !plan.changes_stores && random.one_in(3);
            outcome.kills += 1;
            outcome.kills_in_snapshot += u32::from(during_snapshot);
            let snapshot = during_snapshot
                .then(|| (map.pick(&mut random), site.folder().join(format!("{life}.snapshot"))));
            let change = plan.changes_stores.then(|| {
                let store = Store::ALL[random.below(Store::ALL.len() as u64) as usize];
                (map.pick(&mut random), store)
            });
            outcome.stores_changed +=
                load_and_kill(&runtime, &mut node, &map, &shared, (snapshot, change), &mut random);
        }
        before = Some(map);
        let (acknowledged, refused, found_applied, found_absent) = shared.history().counts();
        outcome = Outcome { acknowledged, refused, found_applied, found_absent, ..outcome };
        progress(life, &outcome);
    }
    Ok(outcome)
}

fn broken(life: u32, violations: &[String], node: &Node<'_>) -> String {
    format!(
        "after kill {life}, {} promises broken:\n{}\nthe node printed:\n{}",
        violations.len(),
        violations.join("\n"),
        node.output()
    )
}

/// What is under way at a kill: a snapshot of a partition to a file, a partition's change to a store.
type Operations = (Option<(u32, PathBuf)>, Option<(u32, Store)>);

/// Puts load on a node and kills it in the midst of it. Returns how many changes of stores had ended.
fn load_and_kill(
    runtime: &tokio::runtime::Runtime,
    node: &mut Node<'_>,
    map: &PartitionMap,
    shared: &Arc<Shared>,
    (snapshot, change): Operations,
    random: &mut Random,
) -> u32 {
    let (data, control) = (node.site().data_address(), node.site().control_address());
    shared.stop.store(false, Ordering::SeqCst);
    let (shared_by_tasks, map, seed) =
        (Arc::clone(shared), Arc::new(map.clone()), random.next_u64());
    let tasks = runtime.block_on(async move {
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(rpc::data(&data).await.expect("a ready node takes connections"));
        }
        let mut tasks = Vec::new();
        for writer in 0..WRITERS {
            let channel = channels[writer % CONNECTIONS].clone();
            let writer = Writer {
                number: writer,
                data: channel,
                map: Arc::clone(&map),
                shared: Arc::clone(&shared_by_tasks),
                random: Random::new(seed ^ (writer as u64 + 1)),
            };
            tasks.push(tokio::spawn(writer.run()));
        }
        let random = Random::new(seed);
        tasks.push(tokio::spawn(read_at_random(channels[0].clone(), shared_by_tasks, random)));
        tasks
    });
    pause_ms(LOAD_MS.0 + random.below(LOAD_MS.1));
    let change = change.map(|(partition, store)| {
        let control = control.clone();
        let store = store.as_str().to_owned();
        runtime.spawn(async move {
            let mut control = rpc::control(&control).await.ok()?;
            Some(control.change_store(ChangeStoreRequest { partition, store }).await)
        })
    });
    if change.is_some() {
        pause_ms(random.below(CHANGE_KILL_MS));
    }
    let snapshot = snapshot.map(|(partition, path)| {
        let path = path.to_string_lossy().into_owned();
        runtime.spawn(async move {
            let mut control = rpc::control(&control).await.ok()?;
            control.snapshot(SnapshotRequest { partition, path }).await.ok()
        })
    });
    if snapshot.is_some() {
        pause_ms(random.below(SNAPSHOT_KILL_MS));
    }
    node.kill();
    shared.stop.store(true, Ordering::SeqCst);
    runtime.block_on(async {
        for task in tasks {
            task.await.expect("the workload does not panic");
        }
        if let Some(snapshot) = snapshot {
            // Whether it was finished before the kill is left to chance.
            let _ = snapshot.await;
        }
        let change = match change {
            Some(change) => change.await.expect("the call does not panic"),
            None => None,
        };
        match change {
            Some(Ok(_)) => 1,
            Some(Err(status)) if is_refusal(&status) => {
                // A change of this partition that an earlier kill cut short goes on by itself.
                let reason = rpc::reason(&status);
                if reason != "STORE_UNCHANGED" && reason != "PARTITION_BUSY" {
                    let what = format!("a change of stores was refused: {status}");
                    shared.history().report(what);
                }
                0
            }
            _ => 0,
        }
    })
}

/// Reads every key, then writes once to every partition, and lets the history judge.
async fn verify(address: &str, shared: &Shared) -> Result<PartitionMap, String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |status: Status| format!("{what}: {status}")
    };
    let mut data = rpc::data(address).await.map_err(|error| error.to_string())?;
    let topology = rpc::topology(&mut data).await.map_err(failed("Topology"))?;
    let map = PartitionMap::new(
        topology
            .partitions
            .iter()
            .map(|partition| {
                let range = partition.range.unwrap_or_default();
                HashRange::new(range.start, range.end).map(|range| (range, partition.id))
            })
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?,
    );
    let mut contents = BTreeMap::new();
    for writer in 0..WRITERS {
        let keys = Keys { writer };
        for (routing_key, names) in
            [(Vec::new(), keys.alone()), (keys.routing_key(), keys.related())]
        {
            let request = GetRequest {
                keys: names.iter().map(|name| name.clone().into()).collect(),
                routing_key,
                ..Default::default()
            };
            let answer = data.get(request).await.map_err(failed("Get"))?.into_inner();
            for (name, record) in names.into_iter().zip(answer.records) {
                if let Some(error) = record.error {
                    return Err(format!("Get of {name}: {} {}", error.reason, error.message));
                }
                contents.insert(name, record.found.then_some((record.value, record.version)));
            }
        }
    }
    let mut next_versions = BTreeMap::new();
    for (partition, key) in map.probe_keys() {
        let result =
            rpc::put(&mut data, &key, "probe").await.map_err(failed("Upsert of a probe"))?;
        next_versions.insert(partition, result.version);
    }
    shared.history().check_after_restart(&contents, &next_versions);
    Ok(map)
}

/// What all tasks share.
#[derive(Default)]
struct Shared {
    history: Mutex<History>,
    stop: AtomicBool,
}

impl Shared {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// Which partition owns which hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PartitionMap(Vec<(HashRange, u32)>);

impl PartitionMap {
    fn new(ranges: Vec<(HashRange, u32)>) -> Self {
        Self(ranges)
    }

    fn of(&self, hash: KeyHash) -> u32 {
        let owner = self.0.iter().find(|(range, _)| range.contains(hash));
        owner.expect("the partitions of a fresh node cover every hash").1
    }

    fn pick(&self, random: &mut Random) -> u32 {
        self.0[random.below(self.0.len() as u64) as usize].1
    }

    /// For each partition a key that it owns and that no writer uses.
    fn probe_keys(&self) -> Vec<(u32, String)> {
        self.0
            .iter()
            .map(|(range, id)| {
                let mut names = (0u32..).map(|number| format!("probe/{number}"));
                let owned = names.find(|name| range.contains(key_hash(name.as_bytes())));
                (*id, owned.expect("every range has a hash of one of four thousand million names"))
            })
            .collect()
    }
}

/// The names of a writer's keys.
#[derive(Clone, Copy)]
struct Keys {
    writer: usize,
}

impl Keys {
    fn alone(self) -> Vec<String> {
        (0..KEYS_PER_WRITER / 2).map(|n| format!("writer/{}/alone/{n}", self.writer)).collect()
    }

    fn related(self) -> Vec<String> {
        (0..KEYS_PER_WRITER / 2).map(|n| format!("writer/{}/related/{n}", self.writer)).collect()
    }

    fn routing_key(self) -> Vec<u8> {
        format!("writer/{}", self.writer).into_bytes()
    }
}

/// A write as it is sent, and its parts by partition.
struct Write {
    routing_key: Vec<u8>,
    /// Key, new value, version that it must have (`Some(0)`: none at all).
    entries: Vec<(String, Option<Vec<u8>>, Option<u64>)>,
    /// Of each entry.
    batches: Vec<BatchId>,
}

struct Writer {
    number: usize,
    data: Data,
    map: Arc<PartitionMap>,
    shared: Arc<Shared>,
    random: Random,
}

impl Writer {
    /// Writes until told to stop, or until a call's outcome is unknown: then the node is dead.
    async fn run(mut self) {
        while !self.shared.stops() {
            let goes_on = match self.random.below(10) {
                0 => self.read_own().await,
                1 => self.write_under_false_condition().await,
                _ => self.write().await,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// One batch: of unrelated keys over several partitions, or of related keys in one.
    async fn write(&mut self) -> bool {
        let keys = Keys { writer: self.number };
        let related = self.random.one_in(2);
        let mut names = if related { keys.related() } else { keys.alone() };
        let count =
            if self.random.one_in(2) { 1 } else { 1 + self.random.below(names.len() as u64) };
        while names.len() as u64 > count {
            let at = self.random.below(names.len() as u64) as usize;
            names.swap_remove(at);
        }
        let removes = self.random.one_in(6);
        let conditional = self.random.one_in(4);
        let entries = names
            .into_iter()
            .map(|name| {
                let version =
                    self.shared.history().content(&name).map_or(0, |(_, version)| version);
                // A remove of what is not there cannot name a version.
                let condition = (conditional && !(removes && version == 0)).then_some(version);
                let value = (!removes).then(|| self.value());
                (name, value, condition)
            })
            .collect();
        let routing_key = if related { keys.routing_key() } else { Vec::new() };
        self.send(Write { routing_key, entries, batches: Vec::new() }).await
    }

    /// Unique: no two batches of a run write the same value.
    fn value(&mut self) -> Vec<u8> {
        let mut value = format!(
            "{}-{:016x}{:016x}-",
            self.number,
            self.random.next_u64(),
            self.random.next_u64()
        )
        .into_bytes();
        let length = value.len() as u64 + self.random.below(VALUE_BYTES_MAX);
        value.resize(length as usize, b'.');
        value
    }

    /// Sends a write and tells the history what became of each of its parts.
    async fn send(&mut self, mut write: Write) -> bool {
        write.batches = self.begin(&write);
        let removes = write.entries[0].1.is_none();
        let answer = if removes {
            let request = remove_request(&write);
            self.data.remove(request).await.map(|answer| answer.into_inner().results)
        } else {
            let request = upsert_request(&write);
            self.data.upsert(request).await.map(|answer| answer.into_inner().results)
        };
        match answer {
            Ok(results) if results.len() == write.entries.len() => {
                self.acknowledge(&write, &results);
                true
            }
            Ok(results) => {
                let (got, sent) = (results.len(), write.entries.len());
                self.shared.history().report(format!("{got} results for {sent} entries"));
                false
            }
            Err(status) if is_refusal(&status) => {
                // Every condition that a writer sets holds: it alone writes its keys.
                if rpc::reason(&status) == "CONDITION_FAILED" {
                    let what = format!("a condition that holds was refused: {status}");
                    self.shared.history().report(what);
                }
                self.settle(&write.batches, |history, id| history.refused(id));
                true
            }
            Err(_) => false,
        }
    }

    fn begin(&self, write: &Write) -> Vec<BatchId> {
        let mut parts: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (at, (name, ..)) in write.entries.iter().enumerate() {
            let placed_by =
                if write.routing_key.is_empty() { name.as_bytes() } else { &write.routing_key };
            parts.entry(self.map.of(key_hash(placed_by))).or_default().push(at);
        }
        let mut ids = vec![BatchId(0); write.entries.len()];
        let mut history = self.shared.history();
        for (partition, members) in parts {
            let entries = members
                .iter()
                .map(|at| (write.entries[*at].0.clone(), write.entries[*at].1.clone()))
                .collect();
            let id = history.begin(Batch { partition, entries });
            for at in members {
                ids[at] = id;
            }
        }
        ids
    }

    fn acknowledge(&self, write: &Write, results: &[WriteResult]) {
        let mut by_batch: BTreeMap<BatchId, Vec<&WriteResult>> = BTreeMap::new();
        for (id, result) in write.batches.iter().zip(results) {
            by_batch.entry(*id).or_default().push(result);
        }
        let mut history = self.shared.history();
        for (id, results) in by_batch {
            let first = results[0];
            if results
                .iter()
                .any(|r| r.version != first.version || r.error.is_some() != first.error.is_some())
            {
                history.report(format!(
                    "one partition's entries were answered differently: {results:?}"
                ));
            }
            match &first.error {
                None => history.acknowledged(id, first.version),
                Some(error) => {
                    if error.reason == "CONDITION_FAILED" {
                        history.report(format!("a condition that holds was refused: {error:?}"));
                    }
                    history.refused(id);
                }
            }
        }
    }

    fn settle(&self, batches: &[BatchId], settle: impl Fn(&mut History, BatchId)) {
        let unique: std::collections::BTreeSet<BatchId> = batches.iter().copied().collect();
        let mut history = self.shared.history();
        for id in unique {
            settle(&mut history, id);
        }
    }

    /// A condition that does not hold must be refused, and must change nothing.
    async fn write_under_false_condition(&mut self) -> bool {
        let keys = Keys { writer: self.number };
        let names = keys.related();
        let name = names[self.random.below(names.len() as u64) as usize].clone();
        let version = self.shared.history().content(&name).map_or(0, |(_, version)| version);
        let write = Write {
            routing_key: keys.routing_key(),
            entries: vec![(name, Some(self.value()), Some(version + 1_000_000))],
            batches: Vec::new(),
        };
        let ids = self.begin(&write);
        let outcome = self.data.upsert(upsert_request(&write)).await;
        match outcome {
            Ok(_) => {
                self.shared.history().report("a condition that does not hold was accepted".into());
                false
            }
            Err(status) if is_refusal(&status) => {
                self.settle(&ids, |history, id| history.refused(id));
                true
            }
            Err(_) => false,
        }
    }

    /// A writer reads what it wrote, at once.
    async fn read_own(&mut self) -> bool {
        let keys = Keys { writer: self.number };
        let names = keys.alone();
        let request = GetRequest {
            keys: names.iter().map(|name| name.clone().into()).collect(),
            routing_key: Vec::new(),
            ..Default::default()
        };
        let records = match self.data.get(request).await {
            Ok(answer) => answer.into_inner().records,
            Err(status) => return is_refusal(&status),
        };
        let mut history = self.shared.history();
        for (name, record) in names.iter().zip(records) {
            if record.error.is_some() {
                continue;
            }
            let actual: Content = record.found.then_some((record.value, record.version));
            let expected = history.content(name);
            if actual != expected {
                let version = |content: &Content| content.as_ref().map(|(_, version)| *version);
                let (is, was) = (version(&actual), version(&expected));
                history.report(format!(
                    "{name} was acknowledged at version {was:?} and read at {is:?}"
                ));
            }
        }
        true
    }
}

/// Reads other tasks' keys while they write them: whatever is seen must survive the kill.
async fn read_at_random(mut data: Data, shared: Arc<Shared>, mut random: Random) {
    while !shared.stops() {
        let keys = Keys { writer: random.below(WRITERS as u64) as usize };
        let (names, routing_key) = if random.one_in(2) {
            (keys.alone(), Vec::new())
        } else {
            (keys.related(), keys.routing_key())
        };
        let request = GetRequest {
            keys: names.iter().map(|name| name.clone().into()).collect(),
            routing_key,
            ..Default::default()
        };
        let records = match data.get(request).await {
            Ok(answer) => answer.into_inner().records,
            Err(status) if is_refusal(&status) => continue,
            Err(_) => return,
        };
        let mut history = shared.history();
        for (name, record) in names.iter().zip(records) {
            if record.found {
                history.observed(name, &record.value, record.version);
            }
        }
    }
}

fn upsert_request(write: &Write) -> UpsertRequest {
    UpsertRequest {
        entries: write
            .entries
            .iter()
            .map(|(name, value, condition)| UpsertEntry {
                key: name.clone().into(),
                value: value.clone().unwrap_or_default(),
                if_absent: *condition == Some(0),
                if_version: condition.filter(|version| *version != 0),
                ttl_ms: 0,
            })
            .collect(),
        routing_key: write.routing_key.clone(),
        atomic: !write.routing_key.is_empty(),
        ack: Ack::Default.into(),
        ..Default::default()
    }
}

fn remove_request(write: &Write) -> RemoveRequest {
    RemoveRequest {
        entries: write
            .entries
            .iter()
            .map(|(name, _, condition)| RemoveEntry {
                key: name.clone().into(),
                if_version: *condition,
            })
            .collect(),
        routing_key: write.routing_key.clone(),
        atomic: !write.routing_key.is_empty(),
        ack: Ack::Default.into(),
        ..Default::default()
    }
}

/// Whether the node itself said no, so that nothing was done. Without a reason, or with one that
/// leaves it open, the outcome is unknown.
fn is_refusal(status: &Status) -> bool {
    let reason = rpc::reason(status);
    let open =
        ["", "DEADLINE_EXCEEDED", "PARTITION_STOPPED", "INTERNAL"].contains(&reason.as_str());
    !open && status.code() != Code::Cancelled
}

/// Lets the load run: the one place where time passes on purpose, because that is the workload.
fn pause_ms(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}
