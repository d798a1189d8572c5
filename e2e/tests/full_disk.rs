//! A full disk: writes are refused, reads go on, everything acknowledged is kept, and writes
//! resume by themselves when there is space again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;
use stateside_e2e::{
    command_line::{run, stateside},
    config::{Config, Store},
    node_process::Site,
    requirements::{is_root, skipped},
    rpc::{self, Failure},
    until::until,
};
use stateside_proto::v1::{GetRequest, UpsertRequest};
use tokio::runtime::Runtime;

/// Size of the disk, MiB, and of the file that takes its space away. The sled store asks for some
/// room to begin with.
const DISK_MB: u64 = 320;
const BALLAST_MB: u64 = 150;
const VALUE_BYTES: usize = 50_000;
/// Records, of that size, of the partition that changes its store.
const RECORDS_TO_MOVE: usize = 800;
/// Writes that must be enough to fill the disk.
const WRITES_MAX: usize = 4_000;

/// An ext4 file system in a file, mounted; unmounted at the end.
struct SmallDisk {
    mounted_at: PathBuf,
}

impl SmallDisk {
    fn mount(folder: &Path) -> Option<Self> {
        let (image, mounted_at) = (folder.join("disk.image"), folder.join("disk"));
        fs::create_dir(&mounted_at).unwrap();
        fs::File::create(&image).unwrap().set_len(DISK_MB << 20).unwrap();
        let succeeds = |command: &mut Command| command.output().is_ok_and(|o| o.status.success());
        let made = succeeds(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image))
            && succeeds(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mounted_at));
        made.then_some(Self { mounted_at })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the node under test may be on its way out still.
        let _ = Command::new("umount").arg("-l").arg(&self.mounted_at).output();
    }
}

#[test]
fn a_full_disk_refuses_writes_of_the_memory_store_and_recovers() {
    full_disk("a_full_disk_refuses_writes_of_the_memory_store", Store::Memory);
}

#[test]
fn a_full_disk_refuses_writes_of_the_sled_store_and_recovers() {
    full_disk("a_full_disk_refuses_writes_of_the_sled_store", Store::Sled);
}

#[test]
fn a_full_disk_refuses_writes_of_the_lsm_store_and_recovers() {
    full_disk("a_full_disk_refuses_writes_of_the_lsm_store", Store::Lsm);
}

#[test]
fn a_full_disk_refuses_writes_of_the_tiered_store_and_recovers() {
    full_disk("a_full_disk_refuses_writes_of_the_tiered_store", Store::Tiered);
}

#[test]
fn a_node_with_the_memory_store_starts_on_a_full_disk_and_recovers() {
    start_on_a_full_disk("a_node_with_the_memory_store_starts_on_a_full_disk", Store::Memory);
}

#[test]
fn a_node_with_the_sled_store_starts_on_a_full_disk_and_recovers() {
    start_on_a_full_disk("a_node_with_the_sled_store_starts_on_a_full_disk", Store::Sled);
}

#[test]
fn a_node_with_the_lsm_store_starts_on_a_full_disk_and_recovers() {
    start_on_a_full_disk("a_node_with_the_lsm_store_starts_on_a_full_disk", Store::Lsm);
}

/// Writes are refused and resume without a restart. So with reads of stores on disk that need room to
/// open; those of the memory store are served throughout.
fn start_on_a_full_disk(test: &str, store: Store) {
    let folder = tempfile::tempdir().unwrap();
    let disk = if is_root() { SmallDisk::mount(folder.path()) } else { None };
    let Some(disk) = disk else {
        skipped(test, "needs root, and a kernel that mounts an ext4 image");
        return;
    };
    let site = Site::new(Config { store, log_segment_mb: 4, log_max_mb: 16, ..Config::default() })
        .with_data_dir(disk.mounted_at.join("data"));
    let mut node = site.start();
    let runtime = Runtime::new().unwrap();
    let address = site.data_address();
    runtime.block_on(async {
        let mut data = rpc::data(&address).await.unwrap();
        for number in 0..20 {
            rpc::put(&mut data, &key(number), value(number)).await.unwrap();
        }
    });
    // Killed, so that the log has records which the store has not.
    node.kill();
    drop(node);
    let ballast = disk.mounted_at.join("ballast");
    // Until the very end: a hole-free file as large as the disk takes all that is left.
    let _ = Command::new("dd")
        .args(["if=/dev/zero", "bs=64k"])
        .arg(format!("of={}", ballast.display()))
        .output();

    let mut node = site.start();
    match store {
        Store::Memory | Store::MemoryOrdered | Store::Counters => {
            runtime.block_on(everything_is_there(&address, 20))
        }
        // Its files may do as they are, if it had written them in time; else it needs room to open.
        Store::Sled | Store::Lsm | Store::Tiered => runtime.block_on(async {
            let mut data = rpc::data(&address).await.unwrap();
            match rpc::get(&mut data, &key(0)).await {
                Ok(record) => assert!(record.found && record.value == value(0)),
                Err(refused) => assert_eq!(rpc::reason(&refused), "DISK_FULL", "{refused}"),
            }
        }),
    }
    runtime.block_on(async {
        let mut data = rpc::data(&address).await.unwrap();
        // What was prepared ahead of time may take some writes still.
        for number in 20..WRITES_MAX {
            if let Err(status) = rpc::put(&mut data, &key(number), value(number)).await {
                assert_eq!(rpc::reason(&status), "DISK_FULL", "{store:?}: {status}");
                return;
            }
        }
        panic!("{store:?}: a full disk took {WRITES_MAX} writes");
    });
    fs::remove_file(&ballast).unwrap();
    until(&format!("writes of the {store:?} store resume"), Duration::from_secs(30), || {
        runtime.block_on(async {
            let mut data = rpc::data(&address).await.ok()?;
            for number in 0..20 {
                rpc::put(&mut data, &format!("after-{number}"), value(number)).await.ok()?;
            }
            Some(())
        })
    });
    runtime.block_on(everything_is_there(&address, 20));
    node.kill();
    drop(node);
    let node = site.start();
    runtime.block_on(everything_is_there(&address, 20));
    runtime.block_on(async {
        let mut data = rpc::data(&address).await.unwrap();
        for number in 0..20 {
            let record = rpc::get(&mut data, &format!("after-{number}")).await.unwrap();
            assert!(record.found, "{store:?}: a write after the full disk is lost: {number}");
        }
    });
    drop(node);
}

fn full_disk(test: &str, store: Store) {
    let folder = tempfile::tempdir().unwrap();
    let disk = if is_root() { SmallDisk::mount(folder.path()) } else { None };
    let Some(disk) = disk else {
        skipped(test, "needs root, and a kernel that mounts an ext4 image");
        return;
    };
    let ballast = disk.mounted_at.join("ballast");
    run(Command::new("fallocate").args(["-l", &format!("{BALLAST_MB}M")]).arg(&ballast)).ok();
    let site = Site::new(Config { store, log_segment_mb: 4, log_max_mb: 16, ..Config::default() })
        .with_data_dir(disk.mounted_at.join("data"));
    let mut node = site.start();
    let runtime = Runtime::new().unwrap();
    let address = site.data_address();

    let mut acknowledged = 0;
    let refusal = runtime.block_on(async {
        let mut data = rpc::data(&address).await.unwrap();
        while acknowledged < WRITES_MAX {
            match rpc::put(&mut data, &key(acknowledged), value(acknowledged)).await {
                Ok(_) => acknowledged += 1,
                Err(status) => return Some(Failure::from(&status)),
            }
        }
        None
    });
    let refusal = refusal.unwrap_or_else(|| panic!("{WRITES_MAX} writes did not fill the disk"));
    println!("{acknowledged} writes, then {}", refusal.message);
    assert!(acknowledged > 0, "no write at all: {refusal:?}");
    assert_eq!(
        (refusal.reason.as_str(), refusal.code.as_str()),
        ("DISK_FULL", "RESOURCE_EXHAUSTED")
    );
    assert!(refusal.retry_after.is_some(), "{refusal:?}");
    runtime.block_on(everything_is_there(&address, acknowledged));
    assert!(node.runs(), "{}", node.output());

    fs::remove_file(&ballast).unwrap();
    let written = until("writes resume", Duration::from_secs(30), || {
        runtime.block_on(async {
            let mut data = rpc::data(&address).await.ok()?;
            rpc::put(&mut data, &key(acknowledged), value(acknowledged)).await.ok()
        })
    });
    assert!(written.version > 0);
    acknowledged += 1;

    node.kill();
    drop(node);
    let mut node = site.start();
    runtime.block_on(everything_is_there(&address, acknowledged));
    assert_eq!(node.terminate().code(), Some(0), "{}", node.output());
}

/// Bytes that are free there.
fn free(disk: &SmallDisk) -> u64 {
    let figures =
        Command::new("stat").args(["-f", "-c", "%a %S"]).arg(&disk.mounted_at).output().unwrap();
    let figures = String::from_utf8(figures.stdout).unwrap();
    figures.split_whitespace().map(|figure| figure.parse::<u64>().unwrap()).product()
}

/// A change of a partition's store that the disk has no room for, be it for the snapshot or for the
/// records in the other store, ends with the partition as it was. With room it goes through.
#[test]
fn a_change_of_store_without_room_is_refused_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let disk = if is_root() { SmallDisk::mount(folder.path()) } else { None };
    let Some(disk) = disk else {
        let why = "needs root, and a kernel that mounts an ext4 image";
        skipped("a_change_of_store_without_room_is_refused", why);
        return;
    };
    let site = Site::new(Config { log_segment_mb: 4, log_max_mb: 16, ..Config::default() })
        .with_data_dir(disk.mounted_at.join("data"));
    let node = site.start();
    let runtime = Runtime::new().unwrap();
    // All in one partition.
    let shared = b"shared".to_vec();
    let mut data = runtime.block_on(rpc::data(&site.data_address())).unwrap();
    let upsert = |number: usize| UpsertRequest {
        entries: vec![rpc::entry(key(number), value(number))],
        routing_key: shared.clone(),
        ..UpsertRequest::default()
    };
    for number in 0..RECORDS_TO_MOVE {
        let request = upsert(number);
        until("a write is taken", Duration::from_secs(30), || {
            runtime.block_on(data.upsert(request.clone())).ok()
        });
    }
    let json = |arguments: &[&str]| -> Value {
        stateside(&site, arguments.iter().copied().chain(["-o", "json"])).json()
    };
    let partition = || -> Value {
        let list = json(&["partition", "list"]);
        let all = list["partitions"].as_array().unwrap();
        all.iter().find(|one| one["records"] == RECORDS_TO_MOVE).unwrap().clone()
    };
    let id = partition()["id"].to_string();
    let registry = site.data_dir().join("registry.toml");
    let declared = fs::read_to_string(&registry).unwrap();
    let change = ["partition", "change-store", id.as_str(), "lsm"];
    let bytes = (RECORDS_TO_MOVE * VALUE_BYTES) as u64;
    let ballast = disk.mounted_at.join("ballast");
    // Too little for the snapshot; enough for that, and not for the records once more.
    for (room, what) in [(bytes / 2, "the snapshot"), (bytes * 3 / 2, "the other store")] {
        let takes = free(&disk).saturating_sub(room);
        run(Command::new("fallocate").args(["-l", &takes.to_string()]).arg(&ballast)).ok();
        let refused = stateside(&site, change.into_iter().chain(["-o", "json"]));
        refused.refused("DISK_FULL");
        let now = partition();
        assert_eq!(now["store"], "memory", "no room for {what}");
        assert!(now["store_change"].is_null(), "{now}");
        assert_eq!(fs::read_to_string(&registry).unwrap(), declared, "it was taken back");
        let of_partition = site.data_dir().join("partitions").join(&id);
        // A background snapshot may be half done, and be abandoned as well.
        until("nothing half done is left", Duration::from_secs(30), || {
            let names = fs::read_dir(&of_partition).unwrap();
            let mut names = names.map(|entry| entry.unwrap().file_name());
            names.all(|name| name.to_string_lossy().ends_with(".snapshot")).then_some(())
        });
        fs::remove_file(&ballast).unwrap();
    }
    stateside(&site, change).ok();
    let now = partition();
    assert_eq!(now["store"], "lsm");
    drop(node);
    let _node = site.start();
    runtime.block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        for number in 0..RECORDS_TO_MOVE {
            let keys = vec![key(number).into_bytes()];
            let request = GetRequest { keys, routing_key: shared.clone(), ..Default::default() };
            let record = data.get(request).await.unwrap().into_inner().records.remove(0);
            assert!(record.found && record.value == value(number), "record {number}");
        }
    });
}

fn key(number: usize) -> String {
    format!("key/{number}")
}

fn value(number: usize) -> Vec<u8> {
    let mut value = format!("{number}:").into_bytes();
    value.resize(VALUE_BYTES, b'a' + (number % 26) as u8);
    value
}

async fn everything_is_there(address: &str, count: usize) {
    let mut data = rpc::data(address).await.unwrap();
    for number in 0..count {
        let record = rpc::get(&mut data, &key(number)).await.unwrap();
        assert!(record.found && record.value == value(number), "record {number} is not there");
    }
}
