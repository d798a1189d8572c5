//! The store of counters through the real binary: what it takes, what it refuses, and what is left of it
//! after a crash and after an orderly end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use serde_json::Value;
use stateside_e2e::{
    command_line::stateside,
    config::{Config, Store},
    node_process::Site,
    rpc::{self, Data, Failure},
    until::until,
};
use stateside_proto::v1::{Ack, UpdateEntry, UpdateRequest, UpsertRequest, update_entry::Operator};
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(30);
const COUNTERS: usize = 500;

fn site(snapshot_interval_s: u32) -> Site {
    let more = format!("partition.snapshot_interval_s = {snapshot_interval_s}\n");
    let store = Store::Counters;
    Site::new(Config { cores: 2, store, ack: "memory", more, ..Config::default() })
}

/// Adds to all counters, in batches that span the partitions.
async fn add_to_all(data: &mut Data, operand: i64) {
    let entry = |number: usize| UpdateEntry {
        key: key(number).into_bytes(),
        operator: Some(Operator::Add(operand)),
        ..UpdateEntry::default()
    };
    for first in (0..COUNTERS).step_by(100) {
        let entries = (first..first + 100).map(entry).collect();
        let request = UpdateRequest { entries, ..UpdateRequest::default() };
        let results = data.update(request).await.unwrap().into_inner().results;
        assert!(results.iter().all(|result| result.error.is_none()));
    }
}

fn key(number: usize) -> String {
    format!("counter/{number:04}")
}

async fn values(data: &mut Data) -> Vec<i64> {
    let mut values = Vec::new();
    for number in 0..COUNTERS {
        let value = rpc::get(data, &key(number)).await.unwrap().value;
        values.push(if value.is_empty() {
            0
        } else {
            String::from_utf8(value).unwrap().parse().unwrap()
        });
    }
    values
}

fn partitions(site: &Site) -> Vec<Value> {
    let list = stateside(site, ["partition", "list", "-o", "json"]).json();
    list["partitions"].as_array().unwrap().clone()
}

fn wait_for_snapshots(site: &Site) {
    until("every partition is snapshotted", PATIENCE, || {
        let all = partitions(site);
        all.iter().all(|one| one["snapshot_sequence"] == one["sequence"]).then_some(())
    });
}

#[test]
fn counters_are_as_of_the_last_snapshot_after_kill_9_and_complete_after_an_orderly_end() {
    let site = site(1);
    let runtime = Runtime::new().unwrap();
    let read = || {
        runtime
            .block_on(async { values(&mut rpc::data(&site.data_address()).await.unwrap()).await })
    };
    let add = |operand| {
        runtime.block_on(async {
            add_to_all(&mut rpc::data(&site.data_address()).await.unwrap(), operand).await;
        });
    };
    let mut node = site.start();
    add(5);
    add(-2);
    assert_eq!(read(), [3; COUNTERS]);
    let stages = &partitions(&site)[0]["stages"];
    assert_eq!(stages, &serde_json::json!(["clock", "dispatcher"]), "no log");
    wait_for_snapshots(&site);
    node.kill();
    drop(node);

    let mut node = site.start();
    assert_eq!(read(), [3; COUNTERS], "what the snapshots have");
    add(4);
    node.kill();
    drop(node);

    let mut node = site.start();
    let now = read();
    assert!(
        now.iter().all(|value| [3, 7].contains(value)),
        "a partition is of one moment: {now:?}"
    );
    add(100);
    node.terminate();
    drop(node);
    let _node = site.start();
    let expected: Vec<i64> = now.iter().map(|value| value + 100).collect();
    assert_eq!(read(), expected, "an orderly end loses nothing");
}

#[test]
fn what_is_no_integer_or_asks_for_a_disk_is_refused() {
    let site = site(3_600);
    let _node = site.start();
    Runtime::new().unwrap().block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        for value in ["ten", "", "007", "+1", "1.5", "9223372036854775808"] {
            let status = rpc::put(&mut data, "n", value).await.unwrap_err();
            let failure = Failure::from(&status);
            let told = (failure.code.as_str(), failure.reason.as_str());
            assert_eq!(told, ("INVALID_ARGUMENT", "NOT_AN_INTEGER"), "{value}");
        }
        rpc::put(&mut data, "n", "-41").await.unwrap();
        let change = |operator| UpdateRequest {
            entries: vec![UpdateEntry {
                key: b"n".to_vec(),
                operator: Some(operator),
                ..UpdateEntry::default()
            }],
            ..UpdateRequest::default()
        };
        let append = change(Operator::Append(b"!".to_vec()));
        let status = data.update(append).await.unwrap_err();
        assert_eq!(rpc::reason(&status), "NOT_AN_INTEGER");
        data.update(change(Operator::Max(42))).await.unwrap();
        assert_eq!(rpc::get(&mut data, "n").await.unwrap().value, b"42");

        // Nothing is acknowledged that is not as safe as was asked for.
        let mut durable = change(Operator::Add(1));
        durable.ack = Ack::Durable.into();
        let status = data.update(durable).await.unwrap_err();
        assert_eq!(rpc::reason(&status), "INVALID_ARGUMENT");
        assert!(status.message().contains("has no log stage"), "{status}");
        let entries = vec![rpc::entry("n", "1")];
        let durable = UpsertRequest { entries, ack: Ack::Durable.into(), ..Default::default() };
        assert_eq!(rpc::reason(&data.upsert(durable).await.unwrap_err()), "INVALID_ARGUMENT");
        assert_eq!(rpc::get(&mut data, "n").await.unwrap().value, b"42");
    });

    let mut wrong = Site::new(Config { store: Store::Counters, ..Config::default() });
    wrong.config.ack = "durable";
    let mut node = wrong.launch();
    assert_eq!(node.wait().code(), Some(10), "{}", node.output());
    assert!(node.output().contains("partitions with the store counters have neither"));
}

#[test]
fn a_partition_of_counters_is_added_scanned_snapshotted_and_restored_beside_others() {
    let site = Site::new(Config::default());
    let _node = site.start();
    let range = |one: &Value| {
        let end = one["range_end"].as_str().unwrap();
        let end = if end.trim_start_matches("0x").bytes().all(|b| b == b'0') { "" } else { end };
        format!("{}..{end}", one["range_start"].as_str().unwrap())
    };
    let first = partitions(&site).remove(0);
    let range = range(&first);
    let id = first["id"].to_string();
    let path = |name: &str| site.folder().join(name).display().to_string();

    // A text in the partition's range, snapshotted while its store still takes any value.
    let text = (0..).map(|n| format!("text/{n}")).find(|key| {
        let written = stateside(&site, ["upsert", key, "no integer"]);
        written.ok();
        partitions(&site)[0]["records"] == 1
    });
    let text = text.unwrap();
    stateside(&site, ["partition", "snapshot", &id, &path("text.snapshot")]).ok();
    stateside(&site, ["partition", "remove", &id, "--yes"]).ok();

    let add = ["partition", "add", "--id", &id, "--range", &range, "--store", "counters"];
    stateside(&site, add.iter().chain(&["-o", "json"])).refused("INVALID_ARGUMENT");
    stateside(&site, add.iter().chain(&["--ack", "memory"])).ok();
    let keep = |operand: &str| {
        let answer = stateside(&site, ["update", &text, "--add", operand, "-o", "json"]).json();
        answer["value"].as_str().unwrap().to_owned()
    };
    assert_eq!(keep("7"), "7");
    stateside(&site, ["partition", "snapshot", &id, &path("counters.snapshot")]).ok();
    assert_eq!(keep("3"), "10");
    let scanned = stateside(&site, ["scan", "--partition", &id, "-o", "json"]);
    assert!(scanned.ok().contains(&text), "{scanned:?}");

    let restore = |name: &str| {
        let path = path(name);
        stateside(&site, ["partition", "restore", &id, &path, "--yes", "-o", "json"])
    };
    restore("text.snapshot").refused("SNAPSHOT_FOREIGN");
    assert_eq!(keep("1"), "11", "a refused restore changes nothing");
    restore("counters.snapshot").ok();
    assert_eq!(stateside(&site, ["get", &text]).ok(), "7");
}
