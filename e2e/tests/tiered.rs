//! The store of two tiers through the real binary: what is done to its fast directory loses nothing and shows
//! nothing old, its capacity is held, metrics tell what it is good for, and directories that are
//! mistakes are refused at the start.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use stateside_e2e::{
    command_line::{run, stateside},
    config::{Config, Store},
    exposition::Page,
    node_process::{Node, Site},
    random::Random,
    requirements::{is_root, skipped},
    rpc::{self, Data},
    until::until,
};
use stateside_proto::v1::GetRequest;
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(60);
const CAPACITY_MB: u64 = 16;
const CONFIG_INVALID: i32 = 10;
const DATA_DIR_LOCKED: i32 = 11;
const VALUE_BYTES: usize = 8_000;
const BATCH: usize = 100;

fn site(capacity_mb: u64) -> Site {
    let mut site = Site::new(Config {
        cores: 2,
        store: Store::Tiered,
        log_segment_mb: 4,
        log_max_mb: 64,
        ..Config::default()
    });
    let fast = site.folder().join("fast");
    site.config.more = format!(
        "store.tiered = {{ fast_dir = \"{}\", slow_dir = \"{}\", fast_capacity_mb = {capacity_mb}, \
         memtable_mb = 1, cache_mb = 1, flush_ms = 50 }}\n",
        fast.display(),
        site.folder().join("slow").display()
    );
    site
}

fn fast_dir(site: &Site) -> PathBuf {
    site.folder().join("fast")
}

fn key(number: usize) -> String {
    format!("key/{number:05}")
}

/// A value that tells its key and its round.
fn value(number: usize, round: usize) -> Vec<u8> {
    let mut value = format!("{number} of round {round} ").into_bytes();
    value.resize(VALUE_BYTES, b'.');
    value
}

async fn write(data: &mut Data, numbers: std::ops::Range<usize>, round: usize) {
    for first in numbers.clone().step_by(BATCH) {
        let batch = first..(first + BATCH).min(numbers.end);
        let entries = batch.map(|n| rpc::entry(key(n), value(n, round))).collect();
        let results = rpc::put_all(data, entries).await.unwrap();
        assert!(results.iter().all(|result| result.error.is_none()));
    }
}

async fn assert_all(data: &mut Data, numbers: std::ops::Range<usize>, round: usize) {
    for first in numbers.clone().step_by(BATCH) {
        let batch = first..(first + BATCH).min(numbers.end);
        let keys = batch.clone().map(|number| key(number).into()).collect();
        let request = GetRequest { keys, ..GetRequest::default() };
        let records = data.get(request).await.unwrap().into_inner().records;
        for (number, record) in batch.zip(records) {
            assert!(
                record.found && record.value == value(number, round),
                "{} is not that of round {round}: {:?}",
                key(number),
                String::from_utf8_lossy(&record.value[..record.value.len().min(40)])
            );
        }
    }
}

fn page(node: &Node<'_>) -> Page {
    Page::parse(&node.metrics()).unwrap_or_else(|wrong| panic!("not valid: {wrong}"))
}

fn reads(page: &Page, tier: &str) -> f64 {
    page.sum("stateside_tiered_lookups_total", &[("purpose", "read"), ("tier", tier)])
}

fn bytes_in(directory: &Path) -> u64 {
    let files = fs::read_dir(directory).unwrap().map(Result::unwrap);
    files.map(|file| file.metadata().unwrap().len()).sum()
}

#[test]
fn the_capacity_is_held_and_what_is_read_often_is_answered_by_the_fast_directory() {
    let site = site(CAPACITY_MB);
    let mut node = site.start();
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        for first in (0..6_000).step_by(1_000) {
            write(&mut data, first..first + 1_000, 1).await;
            assert!(bytes_in(&fast_dir(&site)) <= CAPACITY_MB << 20);
        }
    });
    // Three times as much as there is room for.
    let full = page(&node);
    assert!(full.sum("stateside_tiered_evicted_total", &[]) > 1_000.0);
    assert_eq!(full.sum("stateside_tiered_fast_capacity_bytes", &[]) as u64, CAPACITY_MB << 20);
    assert!(full.sum("stateside_tiered_fast_bytes", &[]) as u64 <= CAPACITY_MB << 20);
    assert!(full.sum("stateside_tiered_memory_bytes", &[]) > 0.0);
    assert_eq!(node.terminate().code(), Some(0), "{}", node.output());
    drop(node);

    // Cold: the first look at each key misses. Further ones do not, but for what was passed over because the
    // disk of this test did not keep up.
    let node = site.start();
    runtime.block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        for _ in 0..5 {
            assert_all(&mut data, 0..300, 1).await;
        }
    });
    let cold = page(&node);
    let (slow, fast) = (reads(&cold, "slow"), reads(&cold, "fast"));
    let passed_over = cold.sum("stateside_tiered_passed_over_total", &[]);
    assert_eq!(slow + fast, 1_500.0);
    assert!((300.0..=300.0 + passed_over).contains(&slow), "{slow}, {passed_over} passed over");
    assert!(fast > 900.0, "{fast}");
    assert_eq!(cold.sum("stateside_tiered_fast_down", &[]), 0.0);
    assert!((200.0..=300.0).contains(&cold.sum("stateside_tiered_entries", &[])));
}

/// Whatever somebody may do to the fast directory; the node must not care.
fn mistreat(fast: &Path, random: &mut Random) {
    let cache = fast.join("cache");
    let length = fs::metadata(&cache).map_or(0, |metadata| metadata.len());
    match random.below(4) {
        // It may be being made again at the same time.
        0 => drop(fs::remove_dir_all(fast)),
        1 => {
            if let Ok(file) = OpenOptions::new().write(true).open(&cache) {
                file.set_len(random.below(length + 1)).unwrap();
            }
        }
        2 => {
            if cache.exists() {
                fs::write(&cache, vec![random.below(256) as u8; length as usize]).unwrap();
            }
        }
        _ => drop(fs::remove_file(&cache)),
    }
}

#[test]
fn a_fast_directory_that_is_deleted_and_damaged_with_kill_9_loses_nothing() {
    let seed = Random::fresh_seed();
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let site = site(CAPACITY_MB);
    let runtime = Runtime::new().unwrap();
    let mut damaged = 0.0;
    const KEYS: usize = 1_500;
    for round in 0..8 {
        let mut node = site.start();
        runtime.block_on(async {
            let mut data = rpc::data(&site.data_address()).await.unwrap();
            if round > 0 {
                // What was acknowledged before the kill; twice, so that the fast directory answers too.
                assert_all(&mut data, 0..KEYS, round - 1).await;
                mistreat(&fast_dir(&site), &mut random);
                assert_all(&mut data, 0..KEYS, round - 1).await;
            }
            write(&mut data, 0..KEYS, round).await;
            mistreat(&fast_dir(&site), &mut random);
            assert_all(&mut data, 0..KEYS, round).await;
        });
        damaged += page(&node).sum("stateside_tiered_damaged_total", &[]);
        node.kill();
        drop(node);
        mistreat(&fast_dir(&site), &mut random);
    }
    println!("{damaged} entries were damaged");
}

#[test]
fn a_fast_directory_without_room_is_done_without() {
    let site = site(64);
    let fast = fast_dir(&site);
    fs::create_dir(&fast).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=2m", "tmpfs"];
    let mounted = is_root()
        && Command::new("mount").args(mount).arg(&fast).output().is_ok_and(|o| o.status.success());
    if !mounted {
        skipped("a_fast_directory_without_room_is_done_without", "needs root, to mount a tmpfs");
        return;
    }
    let unmount = || Command::new("umount").arg("-l").arg(&fast).output().unwrap();
    let node = site.start();
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        write(&mut data, 0..1_000, 1).await;
        assert_all(&mut data, 0..1_000, 1).await;
    });
    until("the failure shows", PATIENCE, || {
        (page(&node).sum("stateside_tiered_failures_total", &[]) > 0.0).then_some(())
    });
    assert!(node.output().contains("reads go to the slow directory"), "{}", node.output());
    // There is room again: it is tried again by itself.
    unmount();
    runtime.block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        let mut round = 1;
        until("the fast directory is used again", PATIENCE, || {
            round += 1;
            tokio::task::block_in_place(|| {
                runtime.handle().block_on(write(&mut data, 0..1_000, round));
            });
            let page = page(&node);
            let is_up = page.sum("stateside_tiered_fast_down", &[]) == 0.0;
            (is_up && page.sum("stateside_tiered_fast_bytes", &[]) > 4e6).then_some(())
        });
        assert_all(&mut data, 0..1_000, round).await;
    });
}

#[test]
fn directories_that_are_mistakes_are_refused_at_the_start() {
    let mut site = site(CAPACITY_MB);
    let sound = site.config.more.clone();
    let serve = |site: &Site| run(&mut site.serve_command());
    let (fast, slow) = (fast_dir(&site), site.folder().join("slow"));

    // Told with file and line, by `config check` as well.
    site.config.more = sound.replace("/fast\"", "/slow\"");
    let refused = serve(&site);
    refused.failed_with(CONFIG_INVALID, &["stateside.toml:", "store.tiered.fast_dir", "too"]);
    let file = site.folder().join("stateside.toml");
    let checked = stateside(&site, ["config", "check", "--config", file.to_str().unwrap()]);
    checked.failed_with(CONFIG_INVALID, &["stateside.toml:", "store.tiered.slow_dir too"]);
    site.config.more = sound.replace("= 16", "= 15");
    serve(&site).failed_with(CONFIG_INVALID, &["stateside.toml:", "15 is not within 16"]);

    site.config.more = sound;
    fs::write(&fast, "a file").unwrap();
    serve(&site).failed_with(CONFIG_INVALID, &["stateside.toml:", "store.tiered.fast_dir"]);
    fs::remove_file(&fast).unwrap();
    fs::create_dir(&fast).unwrap();
    let lock = File::create(fast.join("LOCK")).unwrap();
    lock.lock().unwrap();
    serve(&site).failed_with(DATA_DIR_LOCKED, &["in use by another process"]);
    drop(lock);

    let mut node = site.start();
    let runtime = Runtime::new().unwrap();
    let with_data = || async { rpc::data(&site.data_address()).await.unwrap() };
    runtime.block_on(async { write(&mut with_data().await, 0..50, 1).await });
    node.kill();
    drop(node);

    // The slow disk is not mounted: its mount point is empty, and nothing is begun in it.
    let aside = site.folder().join("aside");
    fs::rename(&slow, &aside).unwrap();
    fs::create_dir(&slow).unwrap();
    let refused = serve(&site);
    refused.failed_with(CONFIG_INVALID, &["store.tiered.slow_dir", "is its disk mounted"]);
    assert!(fs::read_dir(&slow).unwrap().next().is_none());
    // Another data directory does not take it, nor sweep it clean.
    let other = Site::new(Config {
        store: Store::Tiered,
        more: format!("store.tiered.slow_dir = \"{}\"\n", aside.display()),
        ..Config::default()
    });
    serve(&other).failed_with(CONFIG_INVALID, &["not this data directory's"]);

    fs::remove_dir(&slow).unwrap();
    fs::rename(&aside, &slow).unwrap();
    let _node = site.start();
    runtime.block_on(async { assert_all(&mut with_data().await, 0..50, 1).await });
}
