//! A thousand partitions in one `lsm` engine: descriptors, memory and threads stay flat, and the space of
//! a removed partition comes back.

#![cfg(feature = "lsm")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use stateside_statestore::{LsmEngine, LsmOptions, LsmStore, StateStore};
use stateside_types::{Epoch, PartitionId, Timestamp, WriteEntry};

const EPOCH: Epoch = Epoch(1);
/// Threads and open files are counted for the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn options() -> LsmOptions {
    LsmOptions { cache_bytes: 8 << 20, memtable_bytes: 1 << 20, ..LsmOptions::default() }
}

fn write(store: &mut LsmStore, keys: std::ops::Range<u32>, value: &[u8]) {
    let keys: Vec<[u8; 4]> = keys.map(u32::to_be_bytes).collect();
    let entries: Vec<WriteEntry<'_>> = keys.iter().map(|key| WriteEntry::put(key, value)).collect();
    store.apply(store.applied().next(), Timestamp(1), &entries);
    while let Some(work) = store.take_work(store.applied()) {
        store.finish_work(work()).unwrap();
    }
}

/// Number of open files, of threads, and bytes of memory in use, of this process.
fn usage() -> (usize, u64, u64) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let open = fs::read_dir("/proc/self/fd").unwrap().count();
    (open, field("Threads:"), field("VmRSS:") << 10)
}

/// Bytes that a directory takes on the disk: blocks, for journals are made at their full length.
fn disk_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
            Ok(meta) => meta.blocks() * 512,
            // Deleted meanwhile.
            Err(_) => 0,
        })
        .sum()
}

#[test]
fn a_thousand_partitions_share_files_threads_and_memory() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // In memory: what a thousand trees wait for on a disk is a minute, and nothing is said of it here.
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = directory.path().join("lsm");
    let engine = LsmEngine::open(&path, options()).unwrap();
    let mut stores: Vec<LsmStore> =
        (0..10).map(|id| engine.partition(PartitionId(id), EPOCH).unwrap()).collect();
    for store in &mut stores {
        write(store, 0..50, &[7; 200]);
    }
    let few = usage();
    stores.extend((10..1_000).map(|id| engine.partition(PartitionId(id), EPOCH).unwrap()));
    for store in &mut stores {
        write(store, 0..50, &[7; 200]);
    }
    let many = usage();
    println!("10 partitions: {few:?}, 1,000: {many:?} (open files, threads, bytes)");
    assert!(many.0 <= few.0 + 256 + 16, "open files grew from {} to {}", few.0, many.0);
    assert_eq!(many.1, few.1, "threads");
    // 50 records of 200 bytes each are 10 KiB; the rest is what a partition costs by itself.
    let each = many.2.saturating_sub(few.2) / 990;
    assert!(each < 100 << 10, "{each} bytes of memory a partition");
    drop((stores, engine));

    let start = Instant::now();
    let engine = LsmEngine::open(&path, options()).unwrap();
    let stores: Vec<LsmStore> =
        (0..1_000).map(|id| engine.partition(PartitionId(id), EPOCH).unwrap()).collect();
    println!("opened again in {:?}: {:?}", start.elapsed(), usage());
    assert!(stores.iter().all(|store| store.stats().records == 50));
    assert!(usage().0 <= few.0 + 256 + 16);
}

#[test]
fn a_removed_partition_gives_its_space_back() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lsm");
    let engine = LsmEngine::open(&path, options()).unwrap();
    let mut kept = engine.partition(PartitionId(1), EPOCH).unwrap();
    let mut removed = engine.partition(PartitionId(2), EPOCH).unwrap();
    write(&mut kept, 0..100, &[1; 1_000]);
    // Random enough that it does not shrink.
    let mut state = 1u64;
    for batch in 0..300 {
        let value: Vec<u8> = (0..4_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        write(&mut removed, batch * 100..(batch + 1) * 100, &value);
    }
    let before = disk_bytes(&path);
    assert!(before > 100 << 20, "{before} bytes on the disk");
    drop(removed);
    assert!(engine.remove(PartitionId(2), EPOCH).unwrap());
    // Merging that was under way ends first; a journal not let go of yet may stay.
    let bound = 70 << 20;
    let deadline = Instant::now() + Duration::from_secs(20);
    while disk_bytes(&path) > bound {
        assert!(Instant::now() < deadline, "{} of {before} bytes still there", disk_bytes(&path));
        std::thread::yield_now();
        write(&mut kept, 0..1, &[2; 100]);
    }
    drop((kept, engine));
    let engine = LsmEngine::open(&path, options()).unwrap();
    assert_eq!(engine.partitions().unwrap(), [(PartitionId(1), EPOCH)]);
    assert!(disk_bytes(&path) <= bound);
}
