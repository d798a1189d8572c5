//! Operating partitions through the command line and the control plane: add, remove, snapshot,
//! restore, and every wrong way to ask for them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, path::Path};

use serde_json::Value;
use stateside_e2e::{
    command_line::{Ran, stateside},
    config::{Config, Store},
    node_process::Site,
    rpc,
};
use stateside_proto::v1::{AddPartitionRequest, HashRange, SnapshotRequest, UpsertRequest};
use stateside_router::key_hash;
use tokio::runtime::Runtime;

/// How many records a test writes before it takes a snapshot.
const RECORDS: usize = 400;

fn on<T>(work: impl Future<Output = T>) -> T {
    Runtime::new().unwrap().block_on(work)
}

fn json(site: &Site, arguments: &[&str]) -> Value {
    stateside(site, arguments.iter().copied().chain(["-o", "json"])).json()
}

fn refused(site: &Site, arguments: &[&str], reason: &str) {
    let ran: Ran = stateside(site, arguments.iter().copied().chain(["-o", "json"]));
    ran.refused(reason);
}

fn partitions(site: &Site) -> Vec<Value> {
    json(site, &["partition", "list"])["partitions"].as_array().unwrap().clone()
}

fn number(value: &Value) -> u64 {
    let text = value.as_str().unwrap().trim_start_matches("0x");
    u64::from_str_radix(text, 16).unwrap()
}

/// The partition that owns a key, as `partition list` shows it.
fn owner(partitions: &[Value], key: &str) -> Value {
    partitions.iter().find(|partition| owns(partition, key)).unwrap().clone()
}

fn owns(partition: &Value, key: &str) -> bool {
    let (start, end) = (number(&partition["range_start"]), number(&partition["range_end"]));
    stateside_types::HashRange::new(start, end).unwrap().contains(key_hash(key.as_bytes()))
}

/// Keys that one partition owns.
fn keys_of(partition: &Value, count: usize) -> Vec<String> {
    let all = (0..).map(|number| format!("key/{number}"));
    all.filter(|key| owns(partition, key)).take(count).collect()
}

fn write_all(site: &Site, keys: &[String], value: &str) {
    on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        let entries = keys.iter().map(|key| rpc::entry(key.as_str(), format!("{value} of {key}")));
        let results = rpc::put_all(&mut data, entries.collect()).await.unwrap();
        assert!(results.iter().all(|result| result.error.is_none()), "{results:?}");
    });
}

fn read_all(site: &Site, keys: &[String]) -> Vec<Option<String>> {
    on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        let mut values = Vec::new();
        for key in keys {
            let record = rpc::get(&mut data, key).await.unwrap();
            values.push(record.found.then(|| String::from_utf8(record.value).unwrap()));
        }
        values
    })
}

fn values(keys: &[String], value: &str) -> Vec<Option<String>> {
    keys.iter().map(|key| Some(format!("{value} of {key}"))).collect()
}

fn reason_of_get(site: &Site, key: &str) -> String {
    on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        match rpc::get(&mut data, key).await {
            Ok(record) => format!("{record:?}"),
            Err(status) => rpc::reason(&status),
        }
    })
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_removed_partition_answers_bad_node_also_after_a_restart() {
    for store in Store::ALL {
        let site = Site::new(Config { store, ..Config::default() });
        let mut node = site.start();
        let victim = partitions(&site)[3].clone();
        let id = victim["id"].to_string();
        let keys = keys_of(&victim, 5);
        let others = keys_of(&partitions(&site)[0], 5);
        write_all(&site, &keys, "old");
        write_all(&site, &others, "other");

        refused(&site, &["partition", "remove", &id], "CONFIRMATION_REQUIRED");
        assert_eq!(read_all(&site, &keys), values(&keys, "old"));
        assert_eq!(partitions(&site).len(), 8);

        json(&site, &["partition", "remove", &id, "--yes"]);
        assert_eq!(partitions(&site).len(), 7);
        assert_eq!(reason_of_get(&site, &keys[0]), "BAD_NODE");
        refused(&site, &["partition", "remove", &id, "--yes"], "UNKNOWN_PARTITION");

        node.kill();
        drop(node);
        let _node = site.start();
        assert_eq!(partitions(&site).len(), 7);
        assert_eq!(reason_of_get(&site, &keys[0]), "BAD_NODE");
        assert_eq!(read_all(&site, &others), values(&others, "other"));

        // A new partition over the range is empty: nothing of the old one comes back.
        let range = victim["range"].as_str().unwrap();
        let added = json(&site, &["partition", "add", "--range", range]);
        assert_eq!(added["partitions"][0]["records"], 0, "{added}");
        assert_eq!(read_all(&site, &keys), vec![None; keys.len()]);
        write_all(&site, &keys, "new");
        assert_eq!(read_all(&site, &keys), values(&keys, "new"));
    }
}

#[test]
fn an_added_partition_survives_a_restart() {
    let site = Site::new(Config::default());
    let mut node = site.start();
    let old = partitions(&site)[7].clone();
    let range = old["range"].as_str().unwrap().to_owned();
    json(&site, &["partition", "remove", "--range", &range]);
    let added =
        json(&site, &["partition", "add", "--range", &range, "--id", "77", "--store", "sled"]);
    assert_eq!(added["partitions"][0]["id"], 77, "{added}");
    assert_eq!(added["partitions"][0]["store"], "sled");
    let keys = keys_of(&added["partitions"][0], 20);
    write_all(&site, &keys, "x");
    node.kill();
    drop(node);
    let _node = site.start();
    assert_eq!(read_all(&site, &keys), values(&keys, "x"));
    assert!(partitions(&site).iter().any(|partition| partition["id"] == 77));
}

#[test]
fn overlapping_and_empty_ranges_are_refused() {
    let site = Site::new(Config::default());
    let _node = site.start();
    let before = partitions(&site);
    refused(&site, &["partition", "add", "--range", "0..0x10"], "RANGE_OVERLAP");
    refused(&site, &["partition", "add", "--range", "0x8000000000000000.."], "RANGE_OVERLAP");
    let range = before[2]["range"].as_str().unwrap();
    refused(&site, &["partition", "add", "--range", range], "RANGE_OVERLAP");
    json(&site, &["partition", "remove", "2"]);
    refused(&site, &["partition", "add", "--range", range, "--id", "3"], "PARTITION_EXISTS");
    refused(&site, &["partition", "remove", "--range", "0x1..0x2", "--yes"], "UNKNOWN_PARTITION");
    on(async {
        let mut control = rpc::control(&site.control_address()).await.unwrap();
        for range in
            [Some(HashRange { start: 7, end: 7 }), Some(HashRange { start: 9, end: 8 }), None]
        {
            let request = AddPartitionRequest { range, ..Default::default() };
            let status = control.add_partition(request).await.unwrap_err();
            assert_eq!(rpc::reason(&status), "INVALID_RANGE", "{range:?}: {status}");
        }
        let request = AddPartitionRequest {
            range: before[2]["range_start"].as_str().map(|_| HashRange {
                start: number(&before[2]["range_start"]),
                end: number(&before[2]["range_end"]),
            }),
            store: "tape".to_owned(),
            ..Default::default()
        };
        let status = control.add_partition(request).await.unwrap_err();
        assert_eq!(rpc::reason(&status), "INVALID_ARGUMENT", "{status}");
    });
    assert_eq!(partitions(&site).len(), 7);
}

#[test]
fn a_snapshot_is_restored_with_its_versions() {
    for store in Store::ALL {
        let site = Site::new(Config { store, ..Config::default() });
        let mut node = site.start();
        let partition = owner(&partitions(&site), "apple");
        let id = partition["id"].to_string();
        let keys = keys_of(&partition, RECORDS);
        write_all(&site, &keys, "first");
        let path = text(&site.folder().join("p.snapshot"));
        let taken = json(&site, &["partition", "snapshot", &id, &path]);
        assert_eq!(taken["records"], RECORDS, "{taken}");
        assert_eq!(taken["bytes"], fs::metadata(&path).unwrap().len());

        write_all(&site, &keys, "second");
        let sequence = owner(&partitions(&site), "apple")["sequence"].as_u64().unwrap();
        refused(&site, &["partition", "restore", &id, &path], "CONFIRMATION_REQUIRED");
        assert_eq!(read_all(&site, &keys), values(&keys, "second"));

        let restored = json(&site, &["partition", "restore", &id, &path, "--yes"]);
        assert_eq!(restored["records"], RECORDS, "{restored}");
        assert_eq!(read_all(&site, &keys), values(&keys, "first"));
        let next = on(async {
            let mut data = rpc::data(&site.data_address()).await.unwrap();
            rpc::put(&mut data, &keys[0], "third").await.unwrap().version
        });
        assert!(next > sequence, "{store:?}: version {next} after {sequence} had been given");
        node.kill();
        drop(node);
        let _node = site.start();
        assert_eq!(read_all(&site, &keys)[1..], values(&keys, "first")[1..]);
        assert_eq!(read_all(&site, &keys[..1]), [Some("third".to_owned())]);
    }
}

#[test]
fn a_snapshot_to_a_path_that_exists_or_cannot_be_written_is_refused() {
    let site = Site::new(Config::default());
    let _node = site.start();
    write_all(&site, &keys_of(&partitions(&site)[0], 10), "x");
    let file = site.folder().join("precious");
    fs::write(&file, "do not overwrite").unwrap();
    refused(&site, &["partition", "snapshot", "0", &text(&file)], "SNAPSHOT_EXISTS");
    assert_eq!(fs::read_to_string(&file).unwrap(), "do not overwrite");
    let folder = text(site.folder());
    refused(&site, &["partition", "snapshot", "0", &folder], "SNAPSHOT_EXISTS");
    for unwritable in
        [format!("{folder}/no/such/folder/s"), format!("{folder}/precious/s"), "/proc/s".to_owned()]
    {
        refused(&site, &["partition", "snapshot", "0", &unwritable], "SNAPSHOT_UNWRITABLE");
    }
    refused(&site, &["partition", "snapshot", "99", &format!("{folder}/s")], "UNKNOWN_PARTITION");
    assert!(!site.folder().join("s").exists());
    on(async {
        let mut control = rpc::control(&site.control_address()).await.unwrap();
        for path in ["", "relative/path"] {
            let request = SnapshotRequest { partition: 0, path: path.to_owned() };
            let status = control.snapshot(request).await.unwrap_err();
            let reason = rpc::reason(&status);
            assert!(
                ["SNAPSHOT_UNWRITABLE", "INVALID_ARGUMENT"].contains(&reason.as_str()),
                "{status}"
            );
        }
    });
}

#[test]
fn a_snapshot_that_is_damaged_or_foreign_changes_nothing() {
    let site = Site::new(Config::default());
    let _node = site.start();
    let list = partitions(&site);
    let (mine, other) = (&list[0], &list[1]);
    let keys = keys_of(mine, RECORDS);
    write_all(&site, &keys, "kept");
    write_all(&site, &keys_of(other, 10), "other");
    let path = site.folder().join("good.snapshot");
    json(&site, &["partition", "snapshot", &mine["id"].to_string(), &text(&path)]);
    let good = fs::read(&path).unwrap();

    let restore = |name: &str, bytes: &[u8], reason: &str| {
        let path = site.folder().join(name);
        fs::write(&path, bytes).unwrap();
        refused(
            &site,
            &["partition", "restore", &mine["id"].to_string(), &text(&path), "--yes"],
            reason,
        );
        assert_eq!(read_all(&site, &keys[..3]), values(&keys[..3], "kept"), "after {name}");
    };
    for place in [good.len() / 3, good.len() / 2, good.len() - 40, good.len() - 1] {
        let mut flipped = good.clone();
        flipped[place] ^= 0x10;
        restore(&format!("flipped-{place}"), &flipped, "SNAPSHOT_DAMAGED");
    }
    for length in [good.len() - 1, good.len() / 2, 50] {
        restore(&format!("cut-{length}"), &good[..length], "SNAPSHOT_DAMAGED");
    }
    let mut longer = good.clone();
    longer.push(0);
    restore("longer", &longer, "SNAPSHOT_DAMAGED");
    restore(
        "text",
        "Dear diary, today I learnt about checksums and why they matter a lot."
            .repeat(4)
            .as_bytes(),
        "SNAPSHOT_FOREIGN",
    );
    restore("other-version", &of_version(&good, 4), "FILE_VERSION");
    let foreign = site.folder().join("foreign");
    json(&site, &["partition", "snapshot", &other["id"].to_string(), &text(&foreign)]);
    restore("other-partition", &fs::read(&foreign).unwrap(), "SNAPSHOT_FOREIGN");

    let id = mine["id"].to_string();
    let missing = text(&site.folder().join("missing"));
    refused(&site, &["partition", "restore", &id, &missing, "--yes"], "SNAPSHOT_UNREADABLE");
    refused(
        &site,
        &["partition", "restore", &id, &text(site.folder()), "--yes"],
        "SNAPSHOT_UNREADABLE",
    );
    refused(&site, &["partition", "restore", "99", &text(&path), "--yes"], "UNKNOWN_PARTITION");
    assert_eq!(read_all(&site, &keys), values(&keys, "kept"));
}

/// The same snapshot with another format version, and the header's checksum right.
fn of_version(good: &[u8], version: u16) -> Vec<u8> {
    const VERSION: usize = 8;
    const HEADER_BYTES: usize = 88;
    let mut bytes = good.to_vec();
    bytes[VERSION..VERSION + 2].copy_from_slice(&version.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
    bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn a_write_to_no_partition_changes_nothing_elsewhere() {
    let site = Site::new(Config::default());
    let _node = site.start();
    let list = partitions(&site);
    json(&site, &["partition", "remove", &list[5]["id"].to_string()]);
    let (homeless, housed) = (keys_of(&list[5], 1).remove(0), keys_of(&list[0], 1).remove(0));
    on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        let status = rpc::put(&mut data, &homeless, "x").await.unwrap_err();
        assert_eq!(rpc::reason(&status), "BAD_NODE", "{status}");
        // Beside an entry that has a home, the homeless one fails alone.
        let entries = vec![rpc::entry(homeless.as_str(), "x"), rpc::entry(housed.as_str(), "y")];
        let results = rpc::put_all(&mut data, entries.clone()).await.unwrap();
        assert_eq!(results[0].error.as_ref().unwrap().reason, "BAD_NODE", "{results:?}");
        assert!(results[1].error.is_none(), "{results:?}");
        // And an atomic batch is refused whole.
        let request = UpsertRequest { entries, atomic: true, ..Default::default() };
        let status = data.upsert(request).await.unwrap_err();
        let reason = rpc::reason(&status);
        assert!(["ATOMIC_SPANS_PARTITIONS", "BAD_NODE"].contains(&reason.as_str()), "{status}");
    });
}
