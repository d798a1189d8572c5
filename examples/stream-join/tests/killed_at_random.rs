//! The join against the real node, its log in a real Kafka and its store on disk, with the node and the
//! program killed at random: every result exactly once, and not one write too many.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use stateside_client::{Client, Options, ReadOptions};
use stateside_e2e::{
    command_line::stateside,
    config::{Config, Store},
    kafka::{Broker, Kafka},
    node_process::Site,
    random::Random,
    requirements,
};

const TEST: &str = "stream_join_killed_at_random";
const LIMIT: Duration = Duration::from_secs(240);
const CUSTOMERS: u64 = 40;
const ORDERS: u64 = 4_000;
/// Kills of each, node and program, before they are left alone to finish.
const KILLS: u64 = 8;

/// What came in, without repetitions: by customer and order, cents ordered and paid.
type Expected = BTreeMap<(String, String), [Option<u64>; 2]>;

/// Writes both streams in orders of their own. Some orders are never paid, some payments pay for
/// nothing, and some events come twice, as they do from a source that delivers at least once.
fn streams(random: &mut Random, folder: &Path) -> (Expected, [PathBuf; 2]) {
    let mut expected = Expected::new();
    let mut lines: [Vec<String>; 2] = Default::default();
    for order in 0..ORDERS {
        let customer = format!("customer-{}", random.below(CUSTOMERS));
        let key = (customer.clone(), format!("{order}"));
        let which = random.below(10);
        for side in 0..2 {
            if which == side {
                continue;
            }
            let cents = 1 + random.below(10_000);
            expected.entry(key.clone()).or_default()[side as usize] = Some(cents);
            let line = json!({"customer": customer, "order": key.1, "cents": cents}).to_string();
            let own = &mut lines[side as usize];
            if random.below(20) == 0 {
                own.push(line.clone());
            }
            own.push(line);
        }
    }
    let paths = ["orders", "payments"].map(|name| folder.join(format!("{name}.ndjson")));
    for (own, path) in lines.iter_mut().zip(&paths) {
        for at in (1..own.len()).rev() {
            own.swap(at, usize::try_from(random.below(at as u64 + 1)).unwrap());
        }
        fs::write(path, own.join("\n") + "\n").unwrap();
    }
    (expected, paths)
}

/// The program. Killed when dropped.
struct Program(Child);

impl Program {
    fn start(site: &Site, paths: &[PathBuf; 2], output: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_stateside-example-stream-join"))
            .args(["--endpoint", &site.data_address(), "--patience-s", "60"])
            .arg("--orders")
            .arg(&paths[0])
            .arg("--payments")
            .arg(&paths[1])
            .stdin(Stdio::null())
            .stdout(fs::File::create(output).unwrap())
            .stderr(fs::File::create(output.with_extension("errors")).unwrap())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_result_is_there_once_whatever_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let Some(kafka) = Kafka::find_for(TEST) else { return };
    let mut broker = Broker::create(kafka, &folder.path().join("kafka")).unwrap();
    broker.start().unwrap();
    let more = format!(
        "partition.pipeline = [\"clock\", \"dispatcher\", \"kafka-log\", \"line-monitor\"]\n\
         kafka.brokers = \"{}\"\nkafka.replication = 1\n",
        broker.address()
    );
    let site = Site::new(Config { store: Store::Lsm, more, ..Config::default() });
    site.serve_command();
    let checked = stateside(&site, ["config", "check", "--config", "stateside.toml"]);
    if checked.code != Some(0) {
        checked.failed_clearly(&["no Kafka client"]);
        return requirements::missing(TEST, "the binary is built without the feature kafka");
    }
    let seed = Random::fresh_seed();
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let (expected, paths) = streams(&mut random, folder.path());

    let mut node = Some(site.start());
    let output = folder.path().join("output");
    let mut program = Program::start(&site, &paths, &output);
    let (mut node_kills, mut program_kills) = (0, 0);
    let begun = Instant::now();
    let status = loop {
        let calm = node_kills >= KILLS && program_kills >= KILLS;
        let pause = if calm { 50 } else { 50 + random.below(900) };
        std::thread::sleep(Duration::from_millis(pause));
        assert!(begun.elapsed() < LIMIT, "seed {seed}: not done after {LIMIT:?}");
        if let Some(status) = program.0.try_wait().unwrap() {
            break status;
        }
        if calm {
            continue;
        }
        let which = random.below(3);
        if which != 0 && program_kills < KILLS {
            program_kills += 1;
            drop(program);
            program = Program::start(&site, &paths, &output);
        }
        if which != 1 && node_kills < KILLS {
            node_kills += 1;
            drop(node.take());
            // Comes back while the program asks for it.
            node = Some(site.launch());
        }
    };
    let said = fs::read_to_string(&output).unwrap();
    let errors = fs::read_to_string(output.with_extension("errors")).unwrap();
    assert!(status.success(), "seed {seed}: {status}: {said}{errors}");
    println!(
        "{node_kills} kills of the node, {program_kills} of the program; the last run: {said}"
    );
    assert!(node_kills >= KILLS / 2 && program_kills >= KILLS / 2, "seed {seed}: hardly any kills");
    node.as_mut().unwrap().wait_until_ready();

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let found = runtime.block_on(Found::read(&site, &expected));
    found.check(&expected, seed);

    // What was written is the events and the positions, each once: had one batch been applied twice, its
    // partition would have a sequence too many.
    let partitions = stateside(&site, ["partition", "list", "-o", "json"]).json();
    let listed = partitions["partitions"].as_array().unwrap();
    let sequences: u64 = listed.iter().map(|one| one["sequence"].as_u64().unwrap()).sum();
    let events = expected.values().flatten().filter(|cents| cents.is_some()).count() as u64;
    assert_eq!(sequences, events + found.commits, "seed {seed}: writes, events and positions");
    let records: u64 = listed.iter().map(|one| one["records"].as_u64().unwrap()).sum();
    assert_eq!(records, found.records, "seed {seed}: there is nothing else");
}

/// What the node has.
struct Found {
    /// `order/ID`, `joined/ID`, by customer and order.
    orders: BTreeMap<(String, String), [Option<Value>; 2]>,
    totals: BTreeMap<String, Value>,
    /// Writes of positions.
    commits: u64,
    records: u64,
}

impl Found {
    async fn read(site: &Site, expected: &Expected) -> Self {
        let client = Client::connect(&site.data_address(), Options::default()).await.unwrap();
        let mut found =
            Self { orders: BTreeMap::new(), totals: BTreeMap::new(), commits: 0, records: 0 };
        let value = |record: Option<stateside_client::Record>| {
            record.map(|record| serde_json::from_slice::<Value>(&record.value).unwrap())
        };
        for (customer, order) in expected.keys() {
            let keys = [
                format!("{customer}/order/{order}"),
                format!("{customer}/joined/{order}"),
                format!("{customer}/total"),
            ];
            let routing_key = Some(customer.clone().into_bytes());
            let options = ReadOptions { routing_key, ..ReadOptions::default() };
            let mut read = client.get(&keys, &options).await.unwrap().all().unwrap().into_iter();
            let mut next = || value(read.next().unwrap());
            let pair = [next(), next()];
            found.records += pair.iter().flatten().count() as u64;
            if let Some(total) = next()
                && found.totals.insert(customer.clone(), total).is_none()
            {
                found.records += 1;
            }
            found.orders.insert((customer.clone(), order.clone()), pair);
        }
        for side in ["orders", "payments"] {
            for lane in 0..4 {
                let key = format!("position/{side}/{lane}");
                let record = client.get_one(&key, &ReadOptions::default()).await.unwrap();
                let position = value(record).unwrap();
                found.commits += position["commits"].as_u64().unwrap();
                found.records += 1;
            }
        }
        found
    }

    fn check(&self, expected: &Expected, seed: u64) {
        let mut totals = BTreeMap::<&String, (u64, u64)>::new();
        for (key, [ordered, paid]) in expected {
            let at = format!("seed {seed}: {key:?}");
            let [pair, joined] = &self.orders[key];
            assert_eq!(*pair, Some(json!({"ordered": ordered, "paid": paid})), "{at}");
            match (ordered, paid) {
                (Some(ordered), Some(paid)) => {
                    assert_eq!(*joined, Some(json!({"ordered": ordered, "paid": paid})), "{at}");
                    let (count, sum) = totals.entry(&key.0).or_default();
                    (*count, *sum) = (*count + 1, *sum + paid);
                }
                _ => assert_eq!(*joined, None, "{at}"),
            }
        }
        let totals: BTreeMap<String, Value> = totals
            .into_iter()
            .map(|(customer, (joined, paid))| {
                (customer.clone(), json!({"joined": joined, "paid": paid}))
            })
            .collect();
        assert_eq!(self.totals, totals, "seed {seed}");
    }
}
