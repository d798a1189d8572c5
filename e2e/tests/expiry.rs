//! Records that expire, through the real binary: kill -9, restart, snapshot, restore.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fmt::Write, fs, time::Duration};

use serde_json::Value;
use stateside_e2e::{
    command_line::stateside,
    config::{Config, Store},
    exposition::Page,
    node_process::{Node, Site},
    until::until,
};
use stateside_router::key_hash;
use stateside_types::HashRange;

/// Records that a test has expire.
const BRIEF: usize = 500;
/// Long enough for a restart, short enough to wait for.
const BRIEF_TTL: &str = "6s";
const PATIENCE: Duration = Duration::from_secs(30);

fn json(site: &Site, arguments: &[&str]) -> Value {
    stateside(site, arguments.iter().copied().chain(["-o", "json"])).json()
}

fn moment(site: &Site, key: &str) -> Option<u64> {
    json(site, &["get", key])["records"][0]["expire_at_unix_ms"].as_u64()
}

fn sum(node: &Node<'_>, sample: &str) -> f64 {
    Page::parse(&node.metrics()).unwrap().sum(sample, &[])
}

fn partition_of(site: &Site, key: &str) -> String {
    let hex = |value: &Value| {
        u64::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    };
    let list = json(site, &["partition", "list"]);
    let owner = list["partitions"].as_array().unwrap().iter().find(|partition| {
        let range = HashRange::new(hex(&partition["range_start"]), hex(&partition["range_end"]));
        range.unwrap().contains(key_hash(key.as_bytes()))
    });
    owner.unwrap()["id"].to_string()
}

#[test]
fn moments_survive_kill_9_and_restore_and_what_has_expired_is_reclaimed() {
    for store in [Store::Memory, Store::Sled] {
        let site = Site::new(Config { store, ..Config::default() });
        let mut node = site.start();
        stateside(&site, ["upsert", "lasting", "v"]).ok();
        stateside(&site, ["upsert", "session", "v", "--ttl", "1h"]).ok();
        let mut brief = String::new();
        for number in 0..BRIEF {
            writeln!(brief, "{{\"id\": \"brief/{number}\"}}").unwrap();
        }
        let input = site.folder().join("brief.ndjson");
        fs::write(&input, brief).unwrap();
        let input = input.to_str().unwrap();
        stateside(&site, ["import", input, "--key", "id", "--ttl", BRIEF_TTL]).ok();

        let session = moment(&site, "session").expect("an hour has not passed");
        assert_eq!(moment(&site, "lasting"), None);
        let written = json(&site, &["get", "session"])["records"][0]["timestamp_unix_ms"].clone();
        assert_eq!(session, written.as_u64().unwrap() + 3_600_000);

        let path = site.folder().join("session.snapshot");
        let path = path.to_str().unwrap();
        let partition = partition_of(&site, "session");
        stateside(&site, ["partition", "snapshot", &partition, path]).ok();
        node.kill();
        drop(node);

        let node = site.start();
        assert_eq!(moment(&site, "session"), Some(session), "{store:?} store, after kill -9");
        let records = |node: &Node<'_>| sum(node, "stateside_partition_records");
        until("what has expired is reclaimed", PATIENCE, || (records(&node) == 2.0).then_some(()));
        for key in ["brief/0", "brief/499"] {
            assert_eq!(stateside(&site, ["get", key]).code, Some(4), "{key} has expired");
        }
        let reclaimed = sum(&node, "stateside_partition_reclaimed_records_total");
        assert!(reclaimed <= BRIEF as f64, "{reclaimed} of {BRIEF} records");

        stateside(&site, ["upsert", "session", "replaced"]).ok();
        assert_eq!(moment(&site, "session"), None, "a write sets the time to live anew");
        stateside(&site, ["partition", "restore", &partition, path, "--yes"]).ok();
        assert_eq!(moment(&site, "session"), Some(session), "{store:?} store, restored");
    }
}
