//! Files that are not as they were written: a flipped bit in the log, a torn end, a damaged
//! snapshot of the node's own. What is whole is served, what is damaged is named, nothing is
//! skipped silently, and a restore heals it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use stateside_e2e::{command_line::stateside, config::Config, node_process::Site, rpc};

/// Keys of two partitions under any even split into eight.
const VICTIM: &str = "apple";
const BYSTANDER: &str = "fig";

fn on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(work)
}

/// Writes `VICTIM` once with a value to be found in the log, and then both keys many times over.
fn fill(site: &Site, marker: &str) {
    on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        rpc::put(&mut data, BYSTANDER, "before").await.unwrap();
        rpc::put(&mut data, VICTIM, marker).await.unwrap();
        for round in 0..20 {
            rpc::put(&mut data, BYSTANDER, format!("round {round}")).await.unwrap();
            rpc::put(&mut data, "victim's neighbour", format!("round {round}")).await.unwrap();
        }
    });
}

fn segments(site: &Site) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = files(&site.data_dir().join("log"))
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "segment"))
        .collect();
    found.sort();
    found
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Flips one bit in the middle of `marker`, wherever it lies in the log; answers the file's name.
fn flip_in_log(site: &Site, marker: &str) -> String {
    for path in segments(site) {
        let mut bytes = fs::read(&path).unwrap();
        if let Some(at) = find(&bytes, marker.as_bytes()) {
            bytes[at + marker.len() / 2] ^= 1;
            fs::write(&path, bytes).unwrap();
            return path.file_name().unwrap().to_str().unwrap().to_owned();
        }
    }
    panic!("the record is in no segment");
}

fn partitions(site: &Site) -> Vec<Value> {
    stateside(site, ["partition", "list", "-o", "json"]).json()["partitions"]
        .as_array()
        .unwrap()
        .clone()
}

fn reason_of_get(site: &Site, key: &str) -> Result<String, String> {
    on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        match rpc::get(&mut data, key).await {
            Ok(record) => Ok(String::from_utf8(record.value).unwrap()),
            Err(status) => Err(rpc::reason(&status)),
        }
    })
}

#[test]
fn a_flipped_bit_in_the_log_stops_its_partition_and_says_what_is_lost() {
    let site = Site::new(Config::default());
    let mut node = site.start();
    let snapshot = site.folder().join("before.snapshot").to_str().unwrap().to_owned();
    on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        rpc::put(&mut data, VICTIM, "in the snapshot").await.unwrap();
    });
    let id = victims_partition(&site);
    stateside(&site, ["partition", "snapshot", &id, &snapshot]).ok();
    let marker = "a value that will not be what it was";
    fill(&site, marker);
    node.kill();
    let segment = flip_in_log(&site, marker);
    drop(node);

    let mut node = site.start();
    let list = partitions(&site);
    let victim = list.iter().find(|p| p["id"].as_u64() == id.parse().ok()).unwrap();
    assert_eq!(victim["state"], "damaged", "{victim}");
    let detail = victim["detail"].as_str().unwrap();
    assert!(detail.contains(&segment), "no file in `{detail}`");
    assert!(detail.contains(|c: char| c.is_ascii_digit()), "no offset in `{detail}`");
    assert_eq!(reason_of_get(&site, VICTIM), Err("PARTITION_DAMAGED".to_owned()));
    assert_eq!(reason_of_get(&site, BYSTANDER), Ok("round 19".to_owned()));
    assert!(
        node.output().contains(&segment),
        "the damage is not in the node's log: {}",
        node.output()
    );

    // It stays damaged over a restart, and a restore heals it for good.
    node.kill();
    drop(node);
    let mut node = site.start();
    assert_eq!(reason_of_get(&site, VICTIM), Err("PARTITION_DAMAGED".to_owned()));
    stateside(&site, ["partition", "restore", &id, &snapshot, "--yes"]).ok();
    assert_eq!(reason_of_get(&site, VICTIM), Ok("in the snapshot".to_owned()));
    node.kill();
    drop(node);
    let _node = site.start();
    assert_eq!(reason_of_get(&site, VICTIM), Ok("in the snapshot".to_owned()));
    assert_eq!(reason_of_get(&site, BYSTANDER), Ok("round 19".to_owned()));
}

/// The id of the partition that owns [`VICTIM`]: the only one with a record, at that point.
fn victims_partition(site: &Site) -> String {
    let list = partitions(site);
    list.iter().find(|partition| partition["records"] == 1).unwrap()["id"].to_string()
}

#[test]
fn a_torn_end_of_the_log_is_cut_and_everything_before_it_kept() {
    let site = Site::new(Config::default());
    let mut node = site.start();
    fill(&site, "an earlier value");
    let before: Vec<(PathBuf, Vec<u8>)> =
        segments(&site).into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect();
    on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        rpc::put(&mut data, "last", vec![b'l'; 20_000]).await.unwrap();
    });
    node.kill();
    drop(node);
    tear_last_write(&before);
    let mut node = site.start();
    assert!(partitions(&site).iter().all(|partition| partition["state"] == "primary"));
    assert_eq!(reason_of_get(&site, VICTIM), Ok("an earlier value".to_owned()));
    assert_eq!(reason_of_get(&site, BYSTANDER), Ok("round 19".to_owned()));
    assert_eq!(reason_of_get(&site, "last"), Ok(String::new()));
    on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        rpc::put(&mut data, "last", "written again").await.unwrap();
    });
    node.kill();
    drop(node);
    let _node = site.start();
    assert_eq!(reason_of_get(&site, "last"), Ok("written again".to_owned()));
}

/// As if the power had failed in the middle of the last write: half of the sectors that it changed
/// are as they were before.
fn tear_last_write(before: &[(PathBuf, Vec<u8>)]) {
    const SECTOR_BYTES: usize = 512;
    let mut torn_sectors = 0;
    for (path, old) in before {
        let mut new = fs::read(path).unwrap();
        let sectors = old.chunks(SECTOR_BYTES).zip(new.chunks(SECTOR_BYTES)).enumerate();
        let changed: Vec<usize> =
            sectors.filter(|(_, (old, new))| old != new).map(|(sector, _)| sector).collect();
        for sector in &changed[changed.len() / 2..] {
            let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
            new[range.clone()].copy_from_slice(&old[range]);
            torn_sectors += 1;
        }
        fs::write(path, new).unwrap();
    }
    assert!(torn_sectors > 10, "the last write changed hardly anything");
}

#[test]
fn a_damaged_snapshot_of_the_nodes_own_stops_its_partition() {
    // The smallest log, so that background snapshots are taken and the log forgets.
    let site = Site::new(Config { log_segment_mb: 4, log_max_mb: 8, ..Config::default() });
    let mut node = site.start();
    on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        rpc::put(&mut data, VICTIM, "to be kept").await.unwrap();
        for round in 0..60 {
            let value = vec![b'0' + (round % 10) as u8; 500_000];
            rpc::put(&mut data, BYSTANDER, value).await.unwrap();
        }
    });
    let own = stateside_e2e::until::until(
        "a snapshot is taken",
        std::time::Duration::from_secs(20),
        || {
            let folder = site.data_dir().join("partitions");
            let found = if folder.exists() { files(&folder) } else { Vec::new() };
            found.into_iter().find(|path| {
                path.extension().is_some_and(|e| e == "snapshot")
                    && find(&fs::read(path).unwrap_or_default(), b"to be kept").is_some()
            })
        },
    );
    assert_eq!(node.terminate().code(), Some(0));
    drop(node);
    let mut bytes = fs::read(&own).unwrap();
    let at = find(&bytes, b"to be kept").unwrap();
    bytes[at] ^= 1;
    fs::write(&own, bytes).unwrap();

    let node = site.start();
    // Either the log still has everything since, or the partition says what it has lost.
    match reason_of_get(&site, VICTIM) {
        Ok(value) => assert_eq!(value, "to be kept"),
        Err(reason) => {
            assert_eq!(reason, "PARTITION_DAMAGED");
            let name = own.file_name().unwrap().to_str().unwrap();
            let list = partitions(&site);
            let victim = list.iter().find(|partition| partition["state"] == "damaged").unwrap();
            assert!(victim["detail"].as_str().unwrap().contains(name), "{victim}");
        }
    }
    assert!(reason_of_get(&site, BYSTANDER).is_ok(), "{}", node.output());
}
