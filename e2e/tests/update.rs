//! Read-modify-write through the real binary: nothing is lost or counted twice, also by kill -9, and
//! what spans partitions is answered entry by entry.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use stateside_e2e::{
    command_line::stateside,
    config::{Config, Store},
    exposition::Page,
    node_process::Site,
    random::Random,
    rpc::{self, Data},
    until::until,
};
use stateside_proto::v1::{
    GetRequest, UpdateEntry, UpdateRequest, UpdateResult, update_entry::Operator,
};
use stateside_router::key_hash;
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(30);
/// Tasks that add, all to the same counters, each on a connection of its own.
const ADDERS: u64 = 8;
/// Counters that stand alone, spread over the partitions.
const SINGLES: u64 = 12;
/// Pairs of counters under a routing key: both always get the same.
const PAIRS: u64 = 4;
const KILLS: usize = 3;
/// Answers that are awaited before a kill.
const ANSWERS: usize = 300;

fn entry(key: impl Into<Vec<u8>>, operator: Operator) -> UpdateEntry {
    UpdateEntry { key: key.into(), operator: Some(operator), ..UpdateEntry::default() }
}

async fn update(
    data: &mut Data,
    entries: Vec<UpdateEntry>,
) -> Result<Vec<UpdateResult>, tonic::Status> {
    let request = UpdateRequest { entries, return_values: true, ..UpdateRequest::default() };
    Ok(data.update(request).await?.into_inner().results)
}

fn integer(value: &[u8]) -> i64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

/// What clients know of a counter.
#[derive(Debug, Default)]
struct Known {
    /// Sum of what was acknowledged.
    added: i64,
    /// Sum of what got no answer.
    unknown: i64,
    /// The highest value that an answer told.
    told: i64,
}

#[derive(Default)]
struct Ledger {
    counters: BTreeMap<String, Known>,
    answers: usize,
}

/// Adds until the node is gone.
async fn add(address: String, seed: u64, ledger: Arc<Mutex<Ledger>>) {
    let mut random = Random::new(seed);
    let mut data = rpc::data(&address).await.unwrap();
    loop {
        let operand = 1 + random.below(9).cast_signed();
        let pair = random.one_in(2).then(|| random.below(PAIRS));
        let keys = match pair {
            Some(pair) => vec![format!("pair/{pair}/a"), format!("pair/{pair}/b")],
            None => {
                let first = random.below(SINGLES);
                let second = (first + 1 + random.below(SINGLES - 1)) % SINGLES;
                vec![format!("single/{first}"), format!("single/{second}")]
            }
        };
        let request = UpdateRequest {
            entries: keys.iter().map(|key| entry(&**key, Operator::Add(operand))).collect(),
            routing_key: pair.map_or(Vec::new(), |pair| format!("pair/{pair}").into_bytes()),
            atomic: pair.is_some(),
            return_values: true,
            ..UpdateRequest::default()
        };
        let answer = data.update(request).await;
        let mut ledger = ledger.lock().unwrap();
        let Ok(answer) = answer else {
            for key in keys {
                ledger.counters.entry(key).or_default().unknown += operand;
            }
            return;
        };
        ledger.answers += 1;
        for (key, result) in keys.into_iter().zip(answer.into_inner().results) {
            assert!(result.error.is_none(), "{:?}", result.error);
            let told = integer(&result.value.expect("it was asked for"));
            let known = ledger.counters.entry(key).or_default();
            known.added += operand;
            known.told = known.told.max(told);
        }
    }
}

async fn counters(data: &mut Data) -> BTreeMap<String, i64> {
    let mut found = BTreeMap::new();
    let singles = (0..SINGLES).map(|number| (String::new(), format!("single/{number}")));
    let pairs = (0..PAIRS).flat_map(|pair| {
        ["a", "b"].map(|one| (format!("pair/{pair}"), format!("pair/{pair}/{one}")))
    });
    for (routing_key, key) in singles.chain(pairs) {
        let keys = vec![key.clone().into_bytes()];
        let request =
            GetRequest { keys, routing_key: routing_key.into_bytes(), ..Default::default() };
        let record = data.get(request).await.unwrap().into_inner().records.remove(0);
        found.insert(key, if record.found { integer(&record.value) } else { 0 });
    }
    found
}

#[test]
fn acknowledged_updates_survive_kill_9_and_none_is_lost_to_another() {
    for store in [Store::Memory, Store::Lsm, Store::Sled] {
        let seed = Random::fresh_seed();
        println!("store {}, seed {seed}", store.as_str());
        let site = Site::new(Config { cores: 2, store, ..Config::default() });
        let runtime = Runtime::new().unwrap();
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        for round in 0..KILLS as u64 {
            let mut node = site.start();
            let adders: Vec<_> = (0..ADDERS)
                .map(|adder| {
                    let seed = seed.wrapping_add(round * ADDERS + adder);
                    runtime.spawn(add(site.data_address(), seed, Arc::clone(&ledger)))
                })
                .collect();
            let enough = ANSWERS * (round as usize + 1);
            until("enough updates are acknowledged", PATIENCE, || {
                (ledger.lock().unwrap().answers >= enough).then_some(())
            });
            node.kill();
            for adder in adders {
                runtime.block_on(adder).unwrap();
            }
            drop(node);
            let mut node = site.start();
            let found = runtime.block_on(async {
                counters(&mut rpc::data(&site.data_address()).await.unwrap()).await
            });
            for (key, known) in &mut ledger.lock().unwrap().counters {
                let value = found[key];
                assert!(
                    known.added <= value && value <= known.added + known.unknown,
                    "{key} is {value}, known is {known:?}; {}, seed {seed}",
                    store.as_str()
                );
                assert!(value >= known.told, "{key} was told as {}", known.told);
                // From here on it is certain.
                (known.added, known.unknown) = (value, 0);
            }
            for pair in 0..PAIRS {
                let [one, other] = ["a", "b"].map(|one| found[&format!("pair/{pair}/{one}")]);
                assert_eq!(one, other, "pair {pair} was torn; {}, seed {seed}", store.as_str());
            }
            node.terminate();
        }
    }
}

/// Keys of as many partitions, one each, in the partitions' order.
fn keys_of_partitions(prefix: &str, partitions: u64) -> Vec<String> {
    let mut keys = BTreeMap::new();
    for number in 0.. {
        let key = format!("{prefix}/{number}");
        // Partitions that share the hashes evenly.
        let share = u128::from(key_hash(key.as_bytes()).0) * u128::from(partitions);
        let partition = share >> 64;
        keys.entry(partition).or_insert(key);
        if keys.len() as u64 == partitions {
            break;
        }
    }
    keys.into_values().collect()
}

#[test]
fn partitions_succeed_and_fail_on_their_own_and_values_come_as_far_as_they_fit() {
    // Segments that take all the large values at once: an update is not sent again when it is overloaded.
    let site = Site::new(Config { cores: 2, log_segment_mb: 64, ..Config::default() });
    let node = site.start();
    let keys = keys_of_partitions("number", 16);
    Runtime::new().unwrap().block_on(async {
        // Over one core's port: half of the partitions are the other's.
        let address = format!("127.0.0.1:{}", site.core_port_base());
        let mut data = rpc::data(&address).await.unwrap();
        rpc::put(&mut data, &keys[3], "three").await.unwrap();
        rpc::put(&mut data, &keys[12], "twelve").await.unwrap();
        let entries = keys.iter().enumerate();
        let entries: Vec<_> = entries
            .map(|(at, key)| entry(&**key, Operator::Add(i64::try_from(at).unwrap())))
            .collect();
        let results = update(&mut data, entries).await.unwrap();
        for (at, result) in results.iter().enumerate() {
            let reason = result.error.as_ref().map(|error| error.reason.as_str());
            if at == 3 || at == 12 {
                assert_eq!((reason, &result.value), (Some("WRONG_TYPE"), &None), "entry {at}");
            } else {
                assert_eq!(
                    (reason, result.value.as_deref()),
                    (None, Some(at.to_string().as_bytes()))
                );
            }
        }

        // 16 values of 1,000,000 bytes are more than an answer tells.
        let large = keys_of_partitions("large", 16);
        for key in &large {
            rpc::put(&mut data, key, vec![b'v'; 999_999]).await.unwrap();
        }
        let entries = large.iter().map(|key| entry(&**key, Operator::Append(b"!".to_vec())));
        let results = update(&mut data, entries.collect()).await.unwrap();
        let told = results.iter().filter(|result| result.value.is_some()).count();
        assert!((8..16).contains(&told), "{told} values");
        for (key, result) in large.iter().zip(results) {
            assert!(result.error.is_none() && result.version > 0, "{:?}", result.error);
            let stored = rpc::get(&mut data, key).await.unwrap();
            assert_eq!((stored.value.len(), stored.version), (1_000_000, result.version));
            assert!(result.value.is_none_or(|value| value == stored.value));
        }
    });
    let page = until("the calls are counted", PATIENCE, || {
        let page = Page::parse(&node.metrics()).unwrap();
        let labels = [("method", "Update"), ("code", "OK")];
        (page.sum("stateside_requests_total", &labels) == 2.0).then_some(page)
    });
    let refused = [("reason", "WRONG_TYPE")];
    assert_eq!(page.sum("stateside_refused_total", &refused), 2.0);
    assert_eq!(page.sum("stateside_request_duration_seconds_count", &[("method", "Update")]), 2.0);
}

#[test]
fn the_command_line_changes_a_record_and_tells_its_value() {
    let site = Site::new(Config::default());
    let _node = site.start();
    let update = |arguments: &[&str]| {
        stateside(&site, ["update"].iter().chain(arguments).chain(&["-o", "json"]))
    };
    assert_eq!(update(&["n", "--add", "-5"]).json()["value"], "-5");
    let answer = update(&["n", "--add", "7", "--ttl", "1h"]).json();
    assert_eq!((&answer["key"], &answer["value"]), (&"n".into(), &"2".into()));
    let version = answer["version"].to_string();
    assert_eq!(update(&["n", "--max", "9", "--if-version", &version]).json()["value"], "9");
    assert_eq!(update(&["n", "--min", "-1"]).json()["value"], "-1");
    update(&["n", "--add", "1", "--if-version", &version]).refused("CONDITION_FAILED");
    let expires = stateside(&site, ["get", "n", "-o", "json"]).json();
    assert!(expires["records"][0]["expire_at_unix_ms"].is_u64(), "{expires}");

    let document = r#"{"name":"Ada","phone":1}"#;
    update(&["user", "--merge-json", document]).ok();
    let merged = update(&["user", "--merge-json", r#"{"phone":null}"#]).json();
    assert_eq!(merged["value"], r#"{"name":"Ada"}"#);
    update(&["user", "--add", "1"]).refused("WRONG_TYPE");
    update(&["user", "--merge-json", "{"]).refused("MALFORMED_JSON");
    assert_eq!(stateside(&site, ["get", "user"]).ok(), r#"{"name":"Ada"}"#);

    let table = stateside(&site, ["update", "user", "--append", " "]).ok().to_owned();
    let (head, row) = table.split_once('\n').unwrap();
    assert_eq!(head.split_whitespace().collect::<Vec<_>>(), ["KEY", "VERSION", "TIME", "VALUE"]);
    assert!(row.starts_with("user") && row.contains(r#"{"name":"Ada"}"#), "{table}");
    stateside(&site, ["update", "user"]).failed_with(2, &["--add"]);
    stateside(&site, ["update", "user", "--add", "1", "--max", "2"]).failed_with(2, &["--max"]);
}
