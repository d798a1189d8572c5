//! Prints what the sled store does: writes, covering, fetches, a snapshot, a restart, and what a
//! thousand partitions on one engine take.
//!
//! `cargo run --release -p stateside-statestore --features sled --example sled_figures [RECORDS] [DIRECTORY]`

use std::{error::Error, path::PathBuf, time::Instant};

use stateside_statestore::{
    Lookup, SledEngine, SledOptions, SledStore, SnapshotStep, StateStore, StoreError,
};
use stateside_types::{Epoch, PartitionId, Timestamp, WriteEntry};

const BATCH: u64 = 1_000;

fn key(number: u64) -> [u8; 16] {
    let mut key = *b"key-000000000000";
    key[4..12].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    key
}

fn put(store: &mut SledStore, numbers: impl Iterator<Item = u64>) {
    let keys: Vec<[u8; 16]> = numbers.map(key).collect();
    let entries: Vec<WriteEntry<'_>> =
        keys.iter().map(|key| WriteEntry::put(key, &[7; 100])).collect();
    store.apply(store.applied().next(), Timestamp(1), &entries);
}

fn work(store: &mut SledStore) -> Result<(), StoreError> {
    while let Some(work) = store.take_work(store.applied()) {
        store.finish_work(work())?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let records: u64 = arguments.next().map_or(Ok(200_000), |text| text.parse())?;
    let directory = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::tempdir_in(directory)?;
    let path = directory.path().join("sled");
    let engine = SledEngine::open(&path, SledOptions::default())?;
    let mut store = engine.partition(PartitionId(1), Epoch(1))?;

    let start = Instant::now();
    for first in (0..records).step_by(BATCH as usize) {
        put(&mut store, first..first + BATCH);
        work(&mut store)?;
    }
    let written = start.elapsed();
    store.cover();
    work(&mut store)?;
    println!(
        "{records} records in batches of {BATCH}: {:.0} records/s written, covered {:?} later; {:.1} B of disk a record",
        records as f64 / written.as_secs_f64(),
        start.elapsed() - written,
        engine.disk_bytes()? as f64 / records as f64,
    );

    let mut applying = std::time::Duration::ZERO;
    for first in (0..records.min(100_000)).step_by(BATCH as usize) {
        let start = Instant::now();
        put(&mut store, first..first + BATCH);
        applying += start.elapsed();
        work(&mut store)?;
    }
    println!("apply: {:.0} ns a record", applying.as_nanos() as f64 / records.min(100_000) as f64);

    for batch in [1u64, 32, 1_000] {
        let rounds = 20_000 / batch;
        let start = Instant::now();
        for round in 0..rounds {
            let keys: Vec<[u8; 16]> = (0..batch)
                .map(|i| key((round * batch + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) % records))
                .collect();
            store.fetch(&keys.iter().map(<[u8; 16]>::as_slice).collect::<Vec<_>>());
            work(&mut store)?;
            assert!(keys.iter().all(|key| matches!(store.get(key), Lookup::Found(_))));
            store.forget_fetched();
        }
        let each = start.elapsed().as_secs_f64() / rounds as f64;
        println!("fetch of {batch}: {:.1} us, {:.0} records/s", each * 1e6, batch as f64 / each);
    }

    let start = Instant::now();
    let (mut count, mut bytes) = (0, 0);
    store.snapshot_start();
    while store.snapshot_next(1 << 20, &mut |record| {
        count += 1;
        bytes += record.key.len() + record.record.value.len();
    })? != SnapshotStep::Done
    {
        work(&mut store)?;
    }
    store.snapshot_end();
    assert_eq!(count, records);
    println!("snapshot: {:.0} MB/s", bytes as f64 / start.elapsed().as_secs_f64() / 1e6);

    drop((store, engine));
    let start = Instant::now();
    let engine = SledEngine::open(&path, SledOptions::default())?;
    let store = engine.partition(PartitionId(1), Epoch(1))?;
    println!("opened again in {:?}, {} records", start.elapsed(), store.stats().records);
    drop(store);

    let start = Instant::now();
    engine.remove(PartitionId(1), Epoch(1))?;
    println!("removed in {:?}, disk {} MB", start.elapsed(), engine.disk_bytes()? >> 20);

    let start = Instant::now();
    let mut stores = Vec::new();
    for id in 0..1_000 {
        stores.push(engine.partition(PartitionId(id), Epoch(2))?);
    }
    let made = start.elapsed();
    let start = Instant::now();
    for store in &mut stores {
        put(store, 0..10);
        work(store)?;
    }
    let wrote = start.elapsed();
    let start = Instant::now();
    for store in &mut stores {
        store.cover();
        work(store)?;
    }
    println!(
        "1,000 partitions: made in {made:?}, 10 records each in {wrote:?}, covered in {:?}, disk {} MB, stores {} B each",
        start.elapsed(),
        engine.disk_bytes()? >> 20,
        stores[0].stats().memory_bytes,
    );
    drop((stores, engine));
    let start = Instant::now();
    let engine = SledEngine::open(&path, SledOptions::default())?;
    let opened = start.elapsed();
    for id in 0..1_000 {
        engine.partition(PartitionId(id), Epoch(2))?;
    }
    println!("opened again in {opened:?}, its 1,000 partitions in {:?}", start.elapsed() - opened);
    Ok(())
}
