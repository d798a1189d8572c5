//! What becomes of the fast directory makes no difference to what a tiered store answers: removed, cut short,
//! overwritten, put back from an earlier day, full, in use by somebody else.

#![cfg(feature = "lsm")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    hash::{BuildHasher, RandomState},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use stateside_statestore::{
    FAST_CAPACITY_BYTES_MIN, FastTierOptions, Lookup, LsmOptions, SnapshotStep, StateStore,
    StoreError, TierFigures, TieredEngine, TieredOptions, TieredStore,
};
use stateside_types::{Change, Epoch, PartitionId, Sequence, Timestamp, WriteEntry};

const EPOCH: Epoch = Epoch(1);
/// Enough entries of this size to fill the smallest fast tier more than once.
const VALUE_BYTES: usize = 10_000;
const KEYS_TOO_MANY: u32 = 2_500;

static REPORTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn options(directory: &Path) -> TieredOptions {
    let slow =
        LsmOptions { cache_bytes: 1 << 20, memtable_bytes: 256 << 10, ..LsmOptions::default() };
    let fast = FastTierOptions {
        directory: directory.join("fast"),
        capacity_bytes: FAST_CAPACITY_BYTES_MIN,
        free_bytes_min: 0,
        index_bytes: 1 << 20,
        retry_after: Duration::from_millis(100),
        report: |problem| REPORTS.lock().unwrap().push(problem.to_owned()),
    };
    TieredOptions { slow, fast, figures: Arc::new(TierFigures::default()) }
}

fn reported(of: &Path, text: &str) -> bool {
    let of = of.display().to_string();
    let reports = REPORTS.lock().unwrap();
    reports.iter().any(|report| report.contains(&of) && report.contains(text))
}

fn open(directory: &Path, options: &TieredOptions) -> TieredEngine {
    TieredEngine::open(&directory.join("slow"), options.clone()).unwrap()
}

fn store(engine: &TieredEngine, id: u32) -> TieredStore {
    engine.partition(PartitionId(id), EPOCH).unwrap()
}

fn change(store: &mut TieredStore, key: &[u8], change: Change<'_>) {
    let sequence = store.applied().next();
    store.apply(sequence, Timestamp(1), &[WriteEntry::new(key, change)]);
    if store.is_saturated() {
        cover(store);
    }
}

fn put(store: &mut TieredStore, key: &[u8], value: &[u8]) {
    change(store, key, Change::Put(value));
}

fn work(store: &mut TieredStore) -> bool {
    let Some(work) = store.take_work(store.applied()) else { return false };
    store.finish_work(work()).unwrap();
    true
}

/// Brings everything to the engine, and out of the overlay.
fn cover(store: &mut TieredStore) {
    store.cover();
    while work(store) {}
    assert_eq!(store.covered(), store.applied());
}

fn read(store: &mut TieredStore, key: &[u8]) -> Option<Vec<u8>> {
    store.forget_fetched();
    if store.get(key) == Lookup::Unknown {
        store.fetch(&[key]);
        assert!(work(store));
    }
    match store.get(key) {
        Lookup::Found(record) => Some(record.value.to_vec()),
        Lookup::Absent => None,
        other => panic!("after a fetch: {other:?}"),
    }
}

/// A value that tells its key and its round.
fn value(number: u32, round: u32) -> Vec<u8> {
    [number.to_be_bytes(), round.to_be_bytes()].concat().repeat(VALUE_BYTES / 8)
}

fn write_all(store: &mut TieredStore, numbers: std::ops::Range<u32>, round: u32) {
    for number in numbers {
        put(store, &number.to_be_bytes(), &value(number, round));
    }
    cover(store);
}

fn assert_all(store: &mut TieredStore, numbers: std::ops::Range<u32>, round: u32) {
    for number in numbers {
        let read = read(store, &number.to_be_bytes());
        assert!(read == Some(value(number, round)), "key {number} is not that of round {round}");
    }
}

#[test]
fn reads_are_answered_by_the_fast_tier_once_they_were_read_or_written() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let engine = open(directory.path(), &options);
    let mut filled = store(&engine, 1);
    write_all(&mut filled, 0..100, 1);
    assert_all(&mut filled, 0..100, 1);
    let stats = options.figures.stats();
    assert_eq!((stats.read_hits, stats.read_misses), (100, 0), "{stats:?}");
    // The first writes found nothing to replace; the second find what the first wrote.
    write_all(&mut filled, 0..100, 2);
    let stats = options.figures.stats();
    assert_eq!((stats.other_hits, stats.other_misses), (100, 100), "{stats:?}");
    drop((filled, engine));

    // Opened anew it is cold: the first read of each is a miss, the second a hit; absent keys, too.
    let options = TieredOptions { figures: Arc::default(), ..options };
    let engine = open(directory.path(), &options);
    let mut cold = store(&engine, 1);
    for round in 0..2 {
        assert_all(&mut cold, 0..100, 2);
        assert_eq!(read(&mut cold, b"no such key"), None);
        let stats = options.figures.stats();
        assert_eq!((stats.read_misses, stats.read_hits), (101, round * 101), "{stats:?}");
    }
    put(&mut cold, b"no such key", b"now there is");
    cover(&mut cold);
    assert_eq!(read(&mut cold, b"no such key").unwrap(), b"now there is");
    change(&mut cold, b"no such key", Change::Remove);
    cover(&mut cold);
    assert_eq!(read(&mut cold, b"no such key"), None);
}

#[test]
fn snapshots_leave_the_fast_tier_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let engine = open(directory.path(), &options);
    let mut store = store(&engine, 1);
    write_all(&mut store, 0..200, 1);
    put(&mut store, b"long", &[7; 100_000]);
    cover(&mut store);
    drop((store, engine));
    // Cold, so that whatever a scan would admit shows.
    let engine = open(directory.path(), &options);
    let mut store = self::store(&engine, 1);
    let before = options.figures.stats();
    store.snapshot_start();
    let mut records = 0;
    loop {
        match store.snapshot_next(1 << 20, &mut |_| records += 1).unwrap() {
            SnapshotStep::More => {}
            SnapshotStep::Wait => assert!(work(&mut store)),
            SnapshotStep::Done => break,
        }
    }
    let after = options.figures.stats();
    assert_eq!((records, after.entries, after.read_misses), (201, 0, before.read_misses));
    assert_eq!(after.admitted, before.admitted);
}

#[test]
fn the_capacity_is_held_and_what_is_read_again_and_again_stays() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let engine = open(directory.path(), &options);
    let mut store = store(&engine, 1);
    write_all(&mut store, 0..10, 1);
    for number in 10..2 * KEYS_TOO_MANY {
        put(&mut store, &number.to_be_bytes(), &value(number, 1));
        if number % 50 == 0 {
            cover(&mut store);
            assert_all(&mut store, 0..10, 1);
        }
    }
    let stats = options.figures.stats();
    assert_eq!(stats.read_misses, 0, "the ten were read all along: {stats:?}");
    assert!(stats.kept >= 10 && stats.evicted > u64::from(KEYS_TOO_MANY), "{stats:?}");
    let files = fs::read_dir(directory.path().join("fast")).unwrap().map(Result::unwrap);
    let bytes: u64 = files.map(|file| file.metadata().unwrap().len()).sum();
    assert!(bytes <= FAST_CAPACITY_BYTES_MIN && bytes > FAST_CAPACITY_BYTES_MIN / 2, "{bytes}");
    assert_eq!((stats.file_bytes, stats.capacity_bytes), (bytes, FAST_CAPACITY_BYTES_MIN));
    assert_eq!(read(&mut store, &2_000u32.to_be_bytes()), Some(value(2_000, 1)));
    assert_eq!(options.figures.stats().read_misses, 1);
}

#[test]
fn a_fast_tier_that_is_damaged_under_way_costs_misses_and_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let engine = open(directory.path(), &options);
    let mut store = store(&engine, 1);
    write_all(&mut store, 0..500, 1);
    let file = directory.path().join("fast/cache");
    let whole = fs::read(&file).unwrap();
    assert!(whole.len() > 4 << 20);
    fs::write(&file, vec![0x5a; whole.len()]).unwrap();
    assert_all(&mut store, 0..500, 1);
    let damaged = options.figures.stats().damaged;
    assert!(damaged > 400, "{damaged}");
    assert!(reported(&file, "are not what was written"));
    // Cut short, what is behind the end is gone.
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(1 << 20).unwrap();
    assert_all(&mut store, 0..500, 1);
    let stats = options.figures.stats();
    assert!(stats.damaged > damaged && stats.failures == 0 && !stats.is_down, "{stats:?}");
}

/// Bytes that were right once, in the place where they were: the stamp in them is of an earlier fill.
#[test]
fn a_fast_tier_put_back_from_earlier_never_answers() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let engine = open(directory.path(), &options);
    let mut store = store(&engine, 1);
    let file = directory.path().join("fast/cache");
    let mut round = 0;
    // A whole number of times around, so that every key comes to lie where it was before.
    let mut earlier = Vec::new();
    for _ in 0..4 {
        round += 1;
        write_all(&mut store, 0..KEYS_TOO_MANY, round);
        fs::write(&file, &earlier).unwrap();
        assert_all(&mut store, 0..KEYS_TOO_MANY, round);
        write_all(&mut store, 0..KEYS_TOO_MANY, round);
        earlier = fs::read(&file).unwrap();
    }
    drop((store, engine));

    // From an earlier process, put back below the next one.
    let engine = open(directory.path(), &options);
    let mut store = self::store(&engine, 1);
    write_all(&mut store, 0..KEYS_TOO_MANY, 99);
    fs::write(&file, &earlier).unwrap();
    assert_all(&mut store, 0..KEYS_TOO_MANY, 99);
}

#[test]
fn a_slow_directory_put_back_from_earlier_is_what_counts() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let (slow, kept) = (directory.path().join("slow"), directory.path().join("kept"));
    for round in 1..=2 {
        let engine = open(directory.path(), &options);
        let mut store = store(&engine, 1);
        write_all(&mut store, 0..20, round);
        drop((store, engine));
        if round == 1 {
            copy_directory(&slow, &kept);
        }
    }
    fs::remove_dir_all(&slow).unwrap();
    fs::rename(&kept, &slow).unwrap();
    let engine = open(directory.path(), &options);
    let mut store = store(&engine, 1);
    assert_eq!(store.applied(), Sequence(20));
    assert_all(&mut store, 0..20, 1);
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn a_removed_fast_directory_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let engine = open(directory.path(), &options);
    let mut store = store(&engine, 1);
    write_all(&mut store, 0..100, 1);
    let fast = directory.path().join("fast");
    fs::remove_dir_all(&fast).unwrap();
    assert_all(&mut store, 0..100, 1);
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut round = 1;
    while !fast.join("cache").exists() {
        assert!(Instant::now() < deadline, "it was not made again");
        round += 1;
        write_all(&mut store, 0..100, round);
    }
    assert_all(&mut store, 0..100, round);
    let stats = options.figures.stats();
    assert!(stats.failures > 0 && !stats.is_down, "{stats:?}");
    assert!(reported(&fast, "somebody removed it") && reported(&fast, "in use again"));
}

#[test]
fn a_fast_directory_that_cannot_be_used_is_done_without() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let fast = directory.path().join("fast");
    fs::write(&fast, "not a directory").unwrap();
    let engine = open(directory.path(), &options);
    let mut store = store(&engine, 1);
    write_all(&mut store, 0..50, 1);
    assert_all(&mut store, 0..50, 1);
    let stats = options.figures.stats();
    assert!(stats.is_down && stats.failures > 0, "{stats:?}");
    assert_eq!((stats.read_hits, stats.read_misses, stats.entries), (0, 50, 0), "{stats:?}");
    assert!(reported(&fast, "opening"));

    fs::remove_file(&fast).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while options.figures.stats().is_down {
        assert!(Instant::now() < deadline, "it was not tried again");
        assert_all(&mut store, 0..50, 1);
    }
    assert_all(&mut store, 0..50, 1);
    assert_all(&mut store, 0..50, 1);
    assert!(options.figures.stats().read_hits >= 50);
}

/// Room for other files is left: here for all but a fraction of the capacity, and then for more than there is.
#[test]
fn a_fast_disk_with_little_room_is_used_as_far_as_it_goes() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = options(directory.path());
    options.fast.capacity_bytes = 1 << 60;
    options.fast.index_bytes = 1 << 20;
    options.fast.free_bytes_min = u64::MAX;
    let engine = open(directory.path(), &options);
    let mut full = store(&engine, 1);
    write_all(&mut full, 0..20, 1);
    assert_all(&mut full, 0..20, 1);
    assert!(options.figures.stats().is_down);
    assert!(reported(&directory.path().join("fast"), "opening"));
    drop((full, engine));

    options.fast.free_bytes_min = 0;
    let engine = open(directory.path(), &options);
    let mut roomy = store(&engine, 1);
    assert_all(&mut roomy, 0..20, 1);
    assert!(!options.figures.stats().is_down, "less than the capacity is no failure");
}

#[test]
fn a_fast_directory_in_use_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let engine = open(directory.path(), &options);
    let other = TieredEngine::open(&directory.path().join("another"), options.clone());
    let Err(StoreError::Io { message, .. }) = other else { panic!("two share a fast directory") };
    assert!(message.contains("another process uses it as its fast directory"), "{message}");
    drop(engine);
    drop(open(directory.path(), &options));
}

/// The same name, and so the same tree to the slow tier: but nothing of the old one may be found.
#[test]
fn a_partition_made_again_knows_nothing_of_the_one_before() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path(), &options(directory.path()));
    for round in 1..=3 {
        let mut store = store(&engine, 1);
        put(&mut store, b"other", b"record");
        cover(&mut store);
        for number in 0..20u32 {
            assert_eq!(read(&mut store, &number.to_be_bytes()), None);
        }
        write_all(&mut store, 0..20, round);
        assert_all(&mut store, 0..20, round);
        drop(store);
        assert!(engine.remove(PartitionId(1), EPOCH).unwrap());
    }
}

/// Partitions are worked on at the same time: fills are sealed, written out and overwritten under readers.
#[test]
fn many_partitions_at_once_read_what_they_wrote() {
    let seed = RandomState::new().hash_one(1);
    println!("seed {seed}");
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let engine = open(directory.path(), &options);
    thread::scope(|scope| {
        for id in 0..4 {
            let mut store = store(&engine, id);
            scope.spawn(move || play(&mut store, seed ^ u64::from(id)));
        }
    });
    let stats = options.figures.stats();
    println!("{stats:?}");
    assert!(stats.evicted > 0 && stats.read_hits > 0 && stats.read_misses > 0, "{stats:?}");
    assert_eq!((stats.damaged, stats.failures), (0, 0), "seed {seed}: {stats:?}");
}

fn play(store: &mut TieredStore, seed: u64) {
    let mut state = seed | 1;
    let mut below = |end: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % end
    };
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for step in 0..4_000u32 {
        let key = below(700).to_be_bytes().to_vec();
        match below(10) {
            0 => {
                change(store, &key, Change::Remove);
                model.remove(&key);
            }
            1..=4 => {
                let value = step.to_be_bytes().repeat(below(5_000) as usize);
                put(store, &key, &value);
                model.insert(key, value);
            }
            _ => {
                let read = read(store, &key);
                assert!(read.as_ref() == model.get(&key), "seed {seed}, step {step}");
            }
        }
        if below(20) == 0 {
            cover(store);
        }
    }
}
