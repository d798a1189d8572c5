//! A process that writes through stores on disk is killed with SIGKILL again and again, also while it
//! starts and recovers. What is there afterwards must be the state of exactly the batches
//! that the store says it has applied, and no fewer than it said it covered.
//!
//! The child is this test binary running `child_process`; it stands in for node and log: batches
//! come from the seed, the log is durable up to a lag that the seed decides.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(all(feature = "sled", feature = "lsm"))]

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use stateside_statestore::{
    Database, DiskEngine, DiskStore, FAST_CAPACITY_BYTES_MIN, FastTierOptions, Lookup, Lsm,
    LsmOptions, RequestLimits, RequestWindow, Sled, SledOptions, SnapshotStep, StateStore,
    TierFigures, Tiered, TieredOptions, WorkDone,
};
use stateside_types::{
    Change, Epoch, PartitionId, Reason, Refusal, RequestId, RequestMark, Sequence, Timestamp,
    WriteEntry, limits,
};

const PARTITIONS: u32 = 3;
const KEYS: u64 = 3_000;
const ROUNDS: u64 = 12;

/// A stream of numbers; the same seed gives the same.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

type Batch = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Batch `sequence` of a partition: the log, as it were.
fn batch(seed: u64, partition: u32, sequence: u64) -> Batch {
    let mut numbers = Numbers(seed ^ (u64::from(partition) << 48) ^ (sequence << 8));
    let entries = 1 + numbers.below(12);
    (0..entries)
        .map(|_| {
            let number = numbers.below(KEYS);
            let mut key = format!("key {number}").into_bytes();
            if number.is_multiple_of(500) {
                key.resize(limits::KEY_BYTES_MAX, b'.');
            }
            let value = match numbers.below(40) {
                0..10 => None,
                39 => Some(vec![sequence as u8; numbers.below(60_000) as usize]),
                _ => Some(vec![sequence as u8; numbers.below(300) as usize]),
            };
            (key, value)
        })
        .collect()
}

fn apply(store: &mut impl StateStore, seed: u64, partition: u32) {
    let sequence = store.applied().next();
    let batch = batch(seed, partition, sequence.0);
    let entries: Vec<WriteEntry<'_>> = batch
        .iter()
        .map(|(key, value)| {
            WriteEntry::new(key, value.as_deref().map_or(Change::Remove, Change::Put))
        })
        .collect();
    let timestamp = Timestamp(sequence.0 * 10);
    with_mark(seed, partition, sequence, |mark| store.remember(sequence, timestamp, mark));
    store.apply(sequence, timestamp, &entries);
}

const REQUESTS: RequestLimits =
    RequestLimits { answers_max: 40, clients_max: 6, client_keep_ms: 0 };

/// Two batches of three have a request with an id.
fn with_mark(seed: u64, partition: u32, sequence: Sequence, then: impl FnOnce(&RequestMark<'_>)) {
    let mut numbers = Numbers(seed ^ (u64::from(partition) << 40) ^ sequence.0);
    if numbers.below(3) == 0 {
        return;
    }
    let client = format!("client {}", numbers.below(9));
    let number = sequence.0;
    let settled = if numbers.below(2) == 0 { 0 } else { number.saturating_sub(30) };
    let refusal = (numbers.below(5) == 0)
        .then(|| Refusal::new(Reason::ConditionFailed, "no").with("version", sequence).into());
    let id = RequestId { client: client.as_bytes(), number, settled };
    then(&RequestMark { refusal, ..RequestMark::new(id, numbers.next()) });
}

/// The rows of a window, as they are written.
fn rows(window: &RequestWindow) -> Vec<Vec<u8>> {
    let mut rows = Vec::new();
    window.rows(|row| {
        let mut bytes = Vec::new();
        row.encode(&mut bytes);
        rows.push(bytes);
    });
    rows
}

fn sled_options() -> SledOptions {
    SledOptions {
        cache_bytes: 2 << 20,
        cover_interval: Duration::from_millis(30),
        ..SledOptions::default()
    }
}

/// Memtables so small that they are written out, and tables merged, all the time.
fn lsm_options() -> LsmOptions {
    LsmOptions {
        cache_bytes: 2 << 20,
        memtable_bytes: 256 << 10,
        cover_interval: Duration::from_millis(30),
        ..LsmOptions::default()
    }
}

/// As above, with a fast tier that a killed process left as it was, or that somebody took away.
fn tiered_options(directory: &Path) -> TieredOptions {
    let fast = FastTierOptions {
        directory: directory.join("fast"),
        capacity_bytes: FAST_CAPACITY_BYTES_MIN,
        free_bytes_min: 0,
        index_bytes: 64 << 10,
        retry_after: Duration::from_secs(10),
        report: |problem| eprintln!("{problem}"),
    };
    TieredOptions { slow: lsm_options(), fast, figures: Arc::new(TierFigures::default()) }
}

fn open<D: Database>(directory: &Path, options: D::Options) -> (DiskEngine<D>, Vec<DiskStore<D>>) {
    let engine = DiskEngine::open(&directory.join(D::KIND), options).unwrap();
    let stores = (0..PARTITIONS)
        .map(|partition| {
            let mut store = engine.partition(PartitionId(partition), Epoch(1)).unwrap();
            store.limit_requests(REQUESTS);
            store
        })
        .collect();
    (engine, stores)
}

/// What a store holds, by a snapshot.
fn content(store: &mut impl StateStore) -> BTreeMap<Vec<u8>, (Vec<u8>, Sequence, Timestamp)> {
    let mut records = BTreeMap::new();
    store.snapshot_start();
    loop {
        let step = store.snapshot_next(1 << 20, &mut |record| {
            let stored =
                (record.record.value.to_vec(), record.record.version, record.record.timestamp);
            assert!(records.insert(record.key.to_vec(), stored).is_none());
        });
        match step.unwrap() {
            SnapshotStep::More => {}
            SnapshotStep::Wait => {
                let work = store.take_work(store.applied()).expect("a scan is work");
                let done: WorkDone = work();
                store.finish_work(done).unwrap();
            }
            SnapshotStep::Done => break,
        }
    }
    store.snapshot_end();
    records
}

/// Runs in the child: writes for ever.
#[test]
fn child_process() {
    let Ok(directory) = std::env::var("STATESIDE_CRASH_DIRECTORY") else { return };
    let seed: u64 = std::env::var("STATESIDE_CRASH_SEED").unwrap().parse().unwrap();
    match std::env::var("STATESIDE_CRASH_STORE").unwrap().as_str() {
        Sled::KIND => write_for_ever::<Sled>(Path::new(&directory), seed, sled_options()),
        Lsm::KIND => write_for_ever::<Lsm>(Path::new(&directory), seed, lsm_options()),
        _ => {
            let options = tiered_options(Path::new(&directory));
            write_for_ever::<Tiered>(Path::new(&directory), seed, options);
        }
    }
}

fn write_for_ever<D: Database>(directory: &Path, seed: u64, options: D::Options) {
    let (_engine, mut stores) = open::<D>(directory, options);
    let mut numbers = Numbers(seed ^ stores[0].applied().0);
    let mut told = vec![Sequence::ZERO; stores.len()];
    let mut out = std::io::stdout().lock();
    loop {
        let chosen = numbers.below(u64::from(PARTITIONS)) as usize;
        let store = &mut stores[chosen];
        for _ in 0..numbers.below(20) {
            if !store.is_saturated() {
                apply(store, seed, chosen as u32);
            }
        }
        if numbers.below(50) == 0 {
            store.cover();
        }
        if numbers.below(30) == 0 {
            store.snapshot_start();
        }
        let key = format!("key {}", numbers.below(KEYS)).into_bytes();
        if numbers.below(2) == 0 && store.get(&key) == Lookup::Unknown {
            store.forget_fetched();
            store.fetch(&[&key]);
        }
        let durable = Sequence(store.applied().0.saturating_sub(numbers.below(30)));
        if let Some(work) = store.take_work(durable) {
            store.finish_work(work()).unwrap();
        }
        if store.covered() != told[chosen] {
            told[chosen] = store.covered();
            writeln!(out, "covered {chosen} {}", store.covered()).unwrap();
        }
    }
}

struct Killed {
    covered: Vec<Sequence>,
    stderr: String,
}

fn run_and_kill(kind: &str, directory: &Path, seed: u64, lifetime: Duration) -> Killed {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_process", "--nocapture"])
        .env("STATESIDE_CRASH_DIRECTORY", directory)
        .env("STATESIDE_CRASH_STORE", kind)
        .env("STATESIDE_CRASH_SEED", seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + lifetime;
    let stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut covered = vec![Sequence::ZERO; PARTITIONS as usize];
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let words: Vec<&str> = line.split(' ').collect();
            // A line cut short by the kill says less than was covered, never more.
            if let ["covered", partition, sequence] = words[..]
                && let (Ok(partition), Ok(sequence)) =
                    (partition.parse::<usize>(), sequence.parse())
            {
                covered[partition] = covered[partition].max(Sequence(sequence));
            }
        }
        covered
    });
    while Instant::now() < end && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    let exited = child.try_wait().unwrap();
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(exited.is_none(), "seed {seed}: the child ended by itself: {stderr}");
    Killed { covered: reader.join().unwrap(), stderr }
}

#[test]
fn after_a_kill_a_sled_store_is_the_state_at_its_applied_sequence() {
    let directory = tempfile::tempdir().unwrap();
    kill_again_and_again::<Sled>(directory.path(), sled_options(), |_, _| ());
    let blobs = std::fs::read_dir(directory.path().join("sled/blobs")).unwrap().count();
    assert_eq!(blobs, 0, "no page may outgrow sled's log");
}

#[test]
fn after_a_kill_an_lsm_store_is_the_state_at_its_applied_sequence() {
    let directory = tempfile::tempdir().unwrap();
    kill_again_and_again::<Lsm>(directory.path(), lsm_options(), |_, _| ());
}

#[test]
fn after_a_kill_a_tiered_store_is_the_state_at_its_applied_sequence() {
    let directory = tempfile::tempdir().unwrap();
    let options = tiered_options(directory.path());
    kill_again_and_again::<Tiered>(directory.path(), options, mistreat_fast_tier);
}

/// Takes the fast tier away, cuts its file short, or fills it with something else.
fn mistreat_fast_tier(path: &Path, numbers: &mut Numbers) {
    let fast = path.join("fast");
    let Ok(file) = std::fs::OpenOptions::new().write(true).open(fast.join("cache")) else { return };
    let length = file.metadata().unwrap().len();
    match numbers.below(4) {
        0 => std::fs::remove_dir_all(fast).unwrap(),
        1 => file.set_len(numbers.below(length + 1)).unwrap(),
        2 => {
            std::fs::write(fast.join("cache"), vec![numbers.next() as u8; length as usize]).unwrap()
        }
        _ => {}
    }
}

/// `between` is called before each start.
fn kill_again_and_again<D: Database>(
    path: &Path,
    options: D::Options,
    mut between: impl FnMut(&Path, &mut Numbers),
) {
    let seed = match std::env::var("STATESIDE_TEST_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => RandomState::new().hash_one(1),
    };
    let rounds = match std::env::var("STATESIDE_CRASH_ROUNDS") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => ROUNDS,
    };
    println!("replay with STATESIDE_TEST_SEED={seed}");
    let mut numbers = Numbers(seed);
    let mut models = vec![(Sequence::ZERO, BTreeMap::new()); PARTITIONS as usize];
    let mut windows: Vec<RequestWindow> = models.iter().map(|_| RequestWindow::default()).collect();
    windows.iter_mut().for_each(|window| window.set_limits(REQUESTS));
    for round in 0..rounds {
        let mut least = vec![Sequence::ZERO; PARTITIONS as usize];
        let mut stderr = String::new();
        // Some of the kills hit the start: opening, recovery, making the directory.
        for _ in 0..1 + numbers.below(3) {
            let lifetime = match numbers.below(3) {
                0 => numbers.below(60),
                _ => 50 + numbers.below(500),
            };
            between(path, &mut numbers);
            let killed = run_and_kill(D::KIND, path, seed, Duration::from_millis(lifetime));
            for (least, covered) in least.iter_mut().zip(killed.covered) {
                *least = (*least).max(covered);
            }
            stderr = killed.stderr;
        }
        between(path, &mut numbers);
        let (engine, mut stores) = open::<D>(path, options.clone());
        for (partition, store) in stores.iter_mut().enumerate() {
            let context = format!("seed {seed}, round {round}, partition {partition}: {stderr}");
            let (reached, model) = &mut models[partition];
            assert!(store.applied() >= least[partition].max(*reached), "lost covered: {context}");
            while *reached < store.applied() {
                *reached = reached.next();
                let timestamp = Timestamp(reached.0 * 10);
                with_mark(seed, partition as u32, *reached, |mark| {
                    windows[partition].record(*reached, timestamp, mark, &mut |_| {});
                });
                for (key, value) in batch(seed, partition as u32, reached.0) {
                    match value {
                        Some(value) => {
                            model.insert(key, (value, *reached, Timestamp(reached.0 * 10)))
                        }
                        None => model.remove(&key),
                    };
                }
            }
            assert_eq!(store.applied_timestamp(), Timestamp(reached.0 * 10), "{context}");
            assert_eq!(store.covered(), store.applied(), "{context}");
            let known = rows(store.requests());
            assert_eq!(known, rows(&windows[partition]), "the requests differ: {context}");
            let payload: usize = model.iter().map(|(key, stored)| key.len() + stored.0.len()).sum();
            let stats = store.stats();
            assert_eq!(stats.records, model.len() as u64, "{context}");
            assert_eq!(stats.payload_bytes, payload as u64, "{context}");
            assert!(content(store) == *model, "the content differs: {context}");
        }
        drop((stores, engine));
    }
    let reached: Vec<u64> = models.iter().map(|(reached, _)| reached.0).collect();
    println!("{rounds} rounds, batches that survived: {reached:?}");
    assert!(reached.iter().sum::<u64>() > 0);
}
