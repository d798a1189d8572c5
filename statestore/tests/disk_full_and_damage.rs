//! Stores on disk and their disk: full, interrupted, damaged, in use.

#![cfg(all(feature = "sled", feature = "lsm"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Resource, getrlimit, setrlimit};
use stateside_statestore::{
    Database, DiskEngine, DiskStore, FAST_CAPACITY_BYTES_MIN, FastTierOptions, Lookup, Lsm,
    LsmEngine, LsmOptions, Sled, SledEngine, SledOptions, SnapshotRecord, SnapshotStep, StateStore,
    StoreError, TierFigures, Tiered, TieredOptions,
};
use stateside_types::{Epoch, PartitionId, Record, Sequence, Timestamp, WriteEntry, limits};

const ID: PartitionId = PartitionId(7);
const EPOCH: Epoch = Epoch(2);

fn options() -> SledOptions {
    SledOptions { cache_bytes: 4 << 20, ..SledOptions::default() }
}

fn lsm_options() -> LsmOptions {
    LsmOptions { cache_bytes: 4 << 20, memtable_bytes: 256 << 10, ..LsmOptions::default() }
}

/// With the fast directory beside a path's last part.
fn tiered_options(slow: LsmOptions, directory: &Path) -> TieredOptions {
    let fast = FastTierOptions {
        directory: directory.join("fast"),
        capacity_bytes: FAST_CAPACITY_BYTES_MIN,
        free_bytes_min: 0,
        index_bytes: 1 << 20,
        retry_after: Duration::from_millis(200),
        report: |problem| eprintln!("{problem}"),
    };
    TieredOptions { slow, fast, figures: Arc::new(TierFigures::default()) }
}

fn put(store: &mut impl StateStore, key: &[u8], value: &[u8]) {
    let entry = WriteEntry::put(key, value);
    store.apply(store.applied().next(), Timestamp(1), &[entry]);
}

/// One piece of work, if there is one.
fn work(store: &mut impl StateStore) -> Result<bool, StoreError> {
    let Some(work) = store.take_work(store.applied()) else { return Ok(false) };
    store.finish_work(work()).map(|()| true)
}

fn cover(store: &mut impl StateStore) {
    store.cover();
    while work(store).unwrap() {}
    assert_eq!(store.covered(), store.applied());
}

fn read(store: &mut impl StateStore, key: &[u8]) -> Option<Vec<u8>> {
    if store.get(key) == Lookup::Unknown {
        store.fetch(&[key]);
        work(store).unwrap();
    }
    match store.get(key) {
        Lookup::Found(record) => Some(record.value.to_vec()),
        Lookup::Absent => None,
        other => panic!("after a fetch: {other:?}"),
    }
}

fn content(store: &mut impl StateStore) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut records = BTreeMap::new();
    store.snapshot_start();
    loop {
        let step = store.snapshot_next(1 << 20, &mut |SnapshotRecord { key, record }| {
            assert!(records.insert(key.to_vec(), record.value.to_vec()).is_none());
        });
        match step.unwrap() {
            SnapshotStep::More => {}
            SnapshotStep::Wait => assert!(work(store).unwrap()),
            SnapshotStep::Done => return records,
        }
    }
}

#[test]
fn a_disk_without_room_refuses_writes_and_serves_reads() {
    let full = SledOptions { free_bytes_min: u64::MAX, ..options() };
    without_room::<Sled>(options(), full);
    let full = LsmOptions { free_bytes_min: u64::MAX, ..lsm_options() };
    without_room::<Lsm>(lsm_options(), full);
    let directory = tempfile::tempdir().unwrap();
    let tiered = |slow| tiered_options(slow, directory.path());
    without_room::<Tiered>(tiered(lsm_options()), tiered(full));
}

fn without_room<D: Database>(options: D::Options, full: D::Options) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(D::KIND);
    let engine = DiskEngine::<D>::open(&path, options).unwrap();
    let mut store = engine.partition(ID, EPOCH).unwrap();
    put(&mut store, b"before", b"1");
    cover(&mut store);
    drop((store, engine));

    let engine = DiskEngine::<D>::open(&path, full).unwrap();
    let mut store = engine.partition(ID, EPOCH).unwrap();
    assert_eq!(read(&mut store, b"before"), Some(b"1".to_vec()));
    put(&mut store, b"after", b"2");
    for _ in 0..3 {
        assert!(matches!(work(&mut store), Err(StoreError::DiskFull { .. })));
    }
    assert_eq!(read(&mut store, b"after"), Some(b"2".to_vec()));
    assert_eq!((store.covered(), store.applied()), (Sequence(1), Sequence(2)));
    assert!(matches!(engine.partition(ID, Epoch(3)), Err(StoreError::DiskFull { .. })));
}

/// Runs in a child whose files may not grow beyond a limit: the engine meets the error in the middle
/// of its own writing, which the free-space check is there to prevent.
#[test]
fn child_process_with_small_files() {
    let Ok(directory) = std::env::var("STATESIDE_DISK_DIRECTORY") else { return };
    let path = Path::new(&directory).join("engine");
    match std::env::var("STATESIDE_DISK_STORE").unwrap().as_str() {
        Sled::KIND => {
            // Small segments, so that the file must grow soon.
            let small = SledOptions { segment_bytes: 512 << 10, ..options() };
            with_small_files::<Sled>(&path, small, |path| {
                fs::metadata(path.join("db")).unwrap().len()
            });
        }
        // Its journal has its full length from the beginning, so it is tables that cannot be written, by
        // fjall's own thread.
        Lsm::KIND => with_small_files::<Lsm>(&path, lsm_options(), |_| 64 << 10),
        // Neither tier's file can grow.
        _ => {
            let options = tiered_options(lsm_options(), Path::new(&directory));
            with_small_files::<Tiered>(&path, options, |_| 64 << 10);
        }
    }
}

fn with_small_files<D: Database>(path: &Path, small: D::Options, limit_of: fn(&Path) -> u64) {
    let engine = DiskEngine::<D>::open(path, small.clone()).unwrap();
    let mut store = engine.partition(ID, EPOCH).unwrap();
    let mut other = engine.partition(ID, Epoch(3)).unwrap();
    let mut model = BTreeMap::new();
    let mut write = |store: &mut DiskStore<D>, number: u32| {
        let (key, value) = (number.to_be_bytes(), vec![number as u8; 4_000]);
        put(store, &key, &value);
        model.insert(key.to_vec(), value);
        model.clone()
    };
    for number in 0..50 {
        write(&mut store, number);
    }
    cover(&mut store);
    put(&mut other, b"other", b"partition");
    cover(&mut other);
    let covered = store.covered();

    let whole = getrlimit(Resource::Fsize);
    let mut limit = whole;
    limit.current = Some(limit_of(path));
    setrlimit(Resource::Fsize, limit).unwrap();
    let mut number = 50u32;
    loop {
        write(&mut store, number);
        number += 1;
        store.cover();
        match work(&mut store) {
            Ok(_) => assert!(number < 5_000, "the limit does not hold"),
            Err(StoreError::DiskFull { .. }) => break,
            Err(other) => panic!("{other}"),
        }
    }
    // It stays so, and what was accepted is still served.
    for _ in 0..3 {
        write(&mut store, number);
        number += 1;
        store.cover();
        match work(&mut store) {
            // Reopened, the engine may find room for a little more within the limit.
            Ok(_) | Err(StoreError::DiskFull { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(store.covered() >= covered);
    assert_eq!(
        read(&mut store, &(number - 1).to_be_bytes()),
        Some(vec![(number - 1) as u8; 4_000])
    );
    // What only the engine knows is served, or refused: not asked for over and over.
    store.fetch(&[&0_u32.to_be_bytes()]);
    match work(&mut store) {
        Ok(done) => assert!(done),
        Err(StoreError::DiskFull { .. } | StoreError::Unreadable { .. }) => {}
        Err(other) => panic!("{other:?}"),
    }
    assert!(store.take_work(Sequence::ZERO).is_none(), "there is nothing to do on a full disk");
    put(&mut other, b"other", b"once more");

    setrlimit(Resource::Fsize, whole).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    for store in [&mut store, &mut other] {
        while store.covered() < store.applied() {
            assert!(Instant::now() < deadline, "room came back and writing did not");
            store.cover();
            match work(store) {
                Ok(_) | Err(StoreError::DiskFull { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
    let model = write(&mut store, number);
    cover(&mut store);
    assert!(content(&mut store) == model);
    assert_eq!(read(&mut other, b"other"), Some(b"once more".to_vec()));
    drop((store, other, engine));
    let engine = DiskEngine::<D>::open(path, small).unwrap();
    let mut store = engine.partition(ID, EPOCH).unwrap();
    assert!(content(&mut store) == model);
    assert_eq!(store.stats().records, model.len() as u64);
    println!("the child is content");
}

#[test]
fn sled_is_reopened_after_it_met_a_full_disk() {
    meet_a_full_disk(Sled::KIND);
}

#[test]
fn lsm_is_reopened_after_it_met_a_full_disk() {
    meet_a_full_disk(Lsm::KIND);
}

#[test]
fn tiered_is_reopened_after_it_met_a_full_disk() {
    meet_a_full_disk(Tiered::KIND);
}

fn meet_a_full_disk(kind: &str) {
    let directory = tempfile::tempdir().unwrap();
    // The shell's `trap` outlives `exec`: without it the signal for a file too large kills.
    let output = Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; exec \"$0\" --exact child_process_with_small_files --nocapture",
        ])
        .arg(std::env::current_exe().unwrap())
        .env("STATESIDE_DISK_DIRECTORY", directory.path())
        .env("STATESIDE_DISK_STORE", kind)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("the child is content"), "{}: {text}{errors}", output.status);
}

#[test]
fn an_interrupted_load_is_not_served() {
    interrupted_load::<Sled>(options());
    interrupted_load::<Lsm>(lsm_options());
    let directory = tempfile::tempdir().unwrap();
    interrupted_load::<Tiered>(tiered_options(lsm_options(), directory.path()));
}

fn interrupted_load<D: Database>(options: D::Options) {
    let directory = tempfile::tempdir().unwrap();
    let engine = DiskEngine::<D>::open(&directory.path().join(D::KIND), options).unwrap();
    let mut store = engine.partition(ID, EPOCH).unwrap();
    put(&mut store, b"old", b"1");
    cover(&mut store);
    let value = vec![1; 600_000];
    let (version, timestamp) = (Sequence(3), Timestamp(1));
    let record = Record { value: &value, version, timestamp, expire_at: None };
    store.load_start();
    let mut numbers = 0..8u8;
    for number in numbers.by_ref().take(4) {
        store.load(&[SnapshotRecord { key: &[number], record }]);
        while work(&mut store).unwrap() {}
    }
    drop(store);
    let error = engine.partition(ID, EPOCH).err().unwrap();
    assert!(
        matches!(&error, StoreError::Damaged { message, .. } if message.contains("interrupted"))
    );

    assert!(engine.remove(ID, EPOCH).unwrap());
    let mut store = engine.partition(ID, EPOCH).unwrap();
    store.load_start();
    for number in 0..8 {
        if !store.load(&[SnapshotRecord { key: &[number], record }]) {
            while work(&mut store).unwrap() {}
        }
    }
    store.load_end(Sequence(9), Timestamp(90));
    put(&mut store, &[3], b"after the load");
    while work(&mut store).unwrap() {}
    cover(&mut store);
    drop(store);
    let mut store = engine.partition(ID, EPOCH).unwrap();
    assert_eq!((store.applied(), store.stats().records), (Sequence(10), 8));
    assert_eq!(read(&mut store, &[3]), Some(b"after the load".to_vec()));
    assert_eq!(read(&mut store, &[5]), Some(value));
}

#[test]
fn a_store_is_open_once_and_not_removed_while_it_is() {
    open_once::<Sled>(options());
    open_once::<Lsm>(lsm_options());
    let directory = tempfile::tempdir().unwrap();
    open_once::<Tiered>(tiered_options(lsm_options(), directory.path()));
}

fn open_once<D: Database>(options: D::Options) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(D::KIND);
    let engine = DiskEngine::<D>::open(&path, options.clone()).unwrap();
    let mut store = engine.partition(ID, EPOCH).unwrap();
    assert!(matches!(engine.partition(ID, EPOCH), Err(StoreError::Io { .. })));
    assert!(matches!(engine.remove(ID, EPOCH), Err(StoreError::Io { .. })));
    assert!(matches!(DiskEngine::<D>::open(&path, options), Err(StoreError::Io { .. })));
    put(&mut store, b"key", b"value");
    let under_way = store.take_work(Sequence(1)).unwrap();
    drop(store);
    // Work under way still writes to the tree.
    assert!(matches!(engine.remove(ID, EPOCH), Err(StoreError::Io { .. })));
    drop(under_way());
    assert!(engine.remove(ID, EPOCH).unwrap());
}

#[test]
fn values_beyond_what_a_fetch_brings_are_withheld() {
    large_fetch::<Sled>(options());
    large_fetch::<Lsm>(lsm_options());
    let directory = tempfile::tempdir().unwrap();
    large_fetch::<Tiered>(tiered_options(lsm_options(), directory.path()));
}

fn large_fetch<D: Database>(options: D::Options) {
    let directory = tempfile::tempdir().unwrap();
    let engine = DiskEngine::<D>::open(&directory.path().join(D::KIND), options).unwrap();
    let mut store = engine.partition(ID, EPOCH).unwrap();
    let value = vec![5; 1 << 20];
    let count = limits::STORE_FETCH_BYTES_MAX / value.len() + 3;
    for number in 0..count {
        put(&mut store, &number.to_be_bytes(), &value);
        while work(&mut store).unwrap() {}
    }
    cover(&mut store);
    let keys: Vec<[u8; 8]> = (0..count).map(usize::to_be_bytes).collect();
    store.fetch(&keys.iter().map(<[u8; 8]>::as_slice).collect::<Vec<_>>());
    work(&mut store).unwrap();
    let last = Lookup::Withheld {
        version: Sequence(count as u64),
        timestamp: Timestamp(1),
        value_bytes: value.len(),
        expire_at: None,
    };
    assert_eq!(store.get(&keys[count - 1]), last);
    assert!(matches!(store.get(&keys[0]), Lookup::Found(record) if record.value == value));
    assert!(store.stats().memory_bytes < (limits::STORE_FETCH_BYTES_MAX + (2 << 20)) as u64);
    store.forget_fetched();
    assert_eq!(store.get(&keys[0]), Lookup::Unknown);
    // Alone it is brought.
    assert_eq!(read(&mut store, &keys[count - 1]), Some(value));
    // sled puts what outgrows its log into files that it never syncs.
    let blobs = fs::read_dir(directory.path().join("sled/blobs"));
    assert_eq!(blobs.map_or(0, |blobs| blobs.count()), 0);
}

/// A node was killed while sled wrote a new snapshot of its page table, and never opened its
/// database again: the half-written file counted as the newest.
#[test]
fn a_half_written_page_table_is_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sled");
    let engine = SledEngine::open(&path, options()).unwrap();
    let mut store = engine.partition(ID, EPOCH).unwrap();
    put(&mut store, b"key", b"value");
    cover(&mut store);
    drop((store, engine));
    fs::write(path.join("snap.00000000FFFFFFFF.generating"), b"half").unwrap();
    // And one that was killed while it made the directory.
    let unfinished = directory.path().join("other.new");
    fs::create_dir(&unfinished).unwrap();
    fs::write(unfinished.join("conf"), b"ha").unwrap();

    let engine = SledEngine::open(&path, options()).unwrap();
    let mut store = engine.partition(ID, EPOCH).unwrap();
    assert_eq!(read(&mut store, b"key"), Some(b"value".to_vec()));
    let other = SledEngine::open(&directory.path().join("other"), options()).unwrap();
    assert!(other.partitions().unwrap().is_empty());
}

#[test]
fn damaged_sled_files_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sled");
    let small = SledOptions { segment_bytes: 64 << 10, ..options() };
    let engine = SledEngine::open(&path, small).unwrap();
    let mut store = engine.partition(ID, EPOCH).unwrap();
    for number in 0..2_000u32 {
        put(&mut store, &number.to_be_bytes(), &[1; 200]);
    }
    cover(&mut store);
    let expected = content(&mut store);
    drop((store, engine));
    let whole = fs::read(path.join("db")).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 24) {
        // Files besides the database itself change on every opening.
        let copy = directory.path().join(format!("copy-{at}"));
        fs::create_dir_all(copy.join("blobs")).unwrap();
        for entry in fs::read_dir(&path).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
            }
        }
        let mut damaged = whole.clone();
        let end = (at + 2_000).min(damaged.len());
        damaged[at..end].iter_mut().for_each(|byte| *byte ^= 0x5a);
        fs::write(copy.join("db"), &damaged).unwrap();
        // Either it is noticed, or nothing that matters was hit: nothing panics.
        let Ok(engine) = SledEngine::open(&copy, small) else { continue };
        let Ok(mut store) = engine.partition(ID, EPOCH) else { continue };
        store.fetch(&[&5u32.to_be_bytes()]);
        let _ = work(&mut store);
        put(&mut store, b"new", b"record");
        store.cover();
        let _ = work(&mut store);
        if at == 0 {
            assert!(expected.len() == 2_000);
        }
    }
}

#[test]
fn damaged_lsm_files_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lsm");
    let engine = LsmEngine::open(&path, lsm_options()).unwrap();
    let mut store = engine.partition(ID, EPOCH).unwrap();
    for number in 0..3_000u32 {
        put(&mut store, &number.to_be_bytes(), &number.to_le_bytes().repeat(60));
        if number % 100 == 0 {
            cover(&mut store);
        }
    }
    cover(&mut store);
    let applied = store.applied();
    let expected = content(&mut store);
    drop((store, engine));
    let mut refused = 0;
    for (number, file) in files(&path).into_iter().enumerate() {
        let whole = fs::read(path.join(&file)).unwrap();
        // The journal is mostly not written yet.
        let used = whole.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        for at in (0..used).step_by((used / 8).max(1)) {
            let copy = directory.path().join(format!("copy-{number}-{at}"));
            for file in files(&path) {
                fs::create_dir_all(copy.join(&file).parent().unwrap()).unwrap();
                fs::copy(path.join(&file), copy.join(&file)).unwrap();
            }
            let mut damaged = whole.clone();
            damaged[at..(at + 500).min(used)].iter_mut().for_each(|byte| *byte ^= 0x5a);
            fs::write(copy.join(&file), &damaged).unwrap();
            // Either it is noticed, or the store says that it holds less and what it holds is right,
            // or nothing that matters was hit. Nothing panics, nothing wrong is handed out.
            let Ok(engine) = LsmEngine::open(&copy, lsm_options()) else {
                refused += 1;
                continue;
            };
            let Ok(mut store) = engine.partition(ID, EPOCH) else {
                refused += 1;
                continue;
            };
            assert!(store.applied() <= applied);
            for (key, value) in &expected {
                store.fetch(&[key]);
                if work(&mut store).is_err() {
                    refused += 1;
                    break;
                }
                if let Lookup::Found(record) = store.get(key) {
                    assert_eq!(record.value, value, "{} at {at}", file.display());
                }
                store.forget_fetched();
            }
            fs::remove_dir_all(&copy).unwrap();
        }
    }
    assert!(refused > 0, "no damage was noticed");
}

/// Files below a directory, relative to it.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let name = PathBuf::from(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()).into_iter().map(|inner| name.join(inner)));
        } else {
            found.push(name);
        }
    }
    found
}
