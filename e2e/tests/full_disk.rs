//! A full disk: writes are refused, reads go on, everything acknowledged is kept, and writes
//! resume by themselves when there is space again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use stateside_e2e::{
    command_line::run,
    config::{Config, Store},
    node_process::Site,
    requirements::{is_root, skipped},
    rpc::{self, Failure},
    until::until,
};
use tokio::runtime::Runtime;

/// Size of the disk, MiB, and of the file that takes its space away. The sled store asks for some
/// room to begin with.
const DISK_MB: u64 = 320;
const BALLAST_MB: u64 = 150;
const VALUE_BYTES: usize = 50_000;
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

/// Writes are refused and resume without a restart. So with reads of the sled store, which needs room
/// to open; those of the memory store are served throughout.
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
        Store::Sled => runtime.block_on(async {
            let mut data = rpc::data(&address).await.unwrap();
            let refused = rpc::get(&mut data, &key(0)).await.unwrap_err();
            assert_eq!(rpc::reason(&refused), "DISK_FULL", "{refused}");
        }),
        // Its files may do as they are; if not, it is as with sled.
        Store::Lsm | Store::Tiered => runtime.block_on(async {
            let mut data = rpc::data(&address).await.unwrap();
            if let Err(refused) = rpc::get(&mut data, &key(0)).await {
                assert_eq!(rpc::reason(&refused), "DISK_FULL", "{refused}");
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
