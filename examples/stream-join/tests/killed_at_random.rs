//! The join against the real node, its log in a real Kafka and its store on disk, with the node and the
//! program killed at random: every result exactly once, and not one write too many. Without request ids the
//! same kills lose results and count others twice, so this is what it would look like.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::json;
use stateside_client::{Client, Options, ReadOptions};
use stateside_e2e::{
    command_line::stateside,
    config::{Config, Store},
    kafka::{Broker, Kafka},
    node_process::{Site, http_get},
    random::Random,
    requirements,
    until::until,
};

const LIMIT: Duration = Duration::from_secs(120);
const CUSTOMERS: u64 = 40;
const ORDERS: u64 = 3_000;
/// Kills of either alone, and of both at once: each is killed eight times.
const KILLS: usize = 4;
/// Lanes of a stream, and events between two of a lane's positions, as in the program.
const LANES: u64 = 4;
const EVENTS_PER_POSITION: u64 = 64;
/// Answers that a partition has to remember: of every lane, two for each event that a next run may send
/// again, and a position's; and as many of those before, which it lets go of bit by bit. Beyond, it could have
/// to refuse with `REQUEST_FORGOTTEN`, and the program would end.
const ANSWERS: u64 = 2 * 2 * LANES * (2 * EVENTS_PER_POSITION + 1);

/// What came in, without repetitions: by customer and order, cents ordered and paid.
type Expected = BTreeMap<(String, String), [Option<i64>; 2]>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kill {
    Node,
    Program,
    Both,
}

/// Both streams.
struct Streams {
    expected: Expected,
    paths: [PathBuf; 2],
    /// Lines of both together.
    lines: u64,
    /// Positions that the lanes of both write.
    positions: u64,
}

impl Streams {
    fn results(&self) -> u64 {
        self.expected.values().filter(|pair| pair.iter().all(Option::is_some)).count() as u64
    }

    /// All over the run: after how many writes, and what.
    fn kills(&self, random: &mut Random) -> Vec<(u64, Kill)> {
        let all = (self.lines + self.results()) * 9 / 10;
        let each = [Kill::Node, Kill::Program, Kill::Both];
        let kills = each.into_iter().flat_map(|kill| [kill; KILLS]);
        let mut kills: Vec<_> = kills.map(|kill| (random.below(all), kill)).collect();
        kills.sort_unstable_by_key(|(writes, _)| *writes);
        kills
    }
}

/// Writes both streams in orders of their own. Some orders are never paid, some payments pay for
/// nothing, and some events come twice, as they do from a source that delivers at least once.
fn streams(random: &mut Random, folder: &Path) -> Streams {
    let mut expected = Expected::new();
    let mut lines: [Vec<String>; 2] = Default::default();
    let mut of_lanes = [[0; LANES as usize]; 2];
    for order in 0..ORDERS {
        let customer = format!("customer-{}", random.below(CUSTOMERS));
        let key = (customer.clone(), format!("{order}"));
        let which = random.below(10);
        for side in 0..2 {
            if which == side {
                continue;
            }
            let cents = 1 + random.below(10_000) as i64;
            expected.entry(key.clone()).or_default()[side as usize] = Some(cents);
            let line = json!({"customer": customer, "order": key.1, "cents": cents}).to_string();
            let times = 1 + usize::from(random.one_in(20));
            lines[side as usize].extend(vec![line; times]);
            of_lanes[side as usize][lane_of(&customer)] += times as u64;
        }
    }
    let paths = ["orders", "payments"].map(|name| folder.join(format!("{name}.ndjson")));
    for (own, path) in lines.iter_mut().zip(&paths) {
        for at in (1..own.len()).rev() {
            own.swap(at, usize::try_from(random.below(at as u64 + 1)).unwrap());
        }
        fs::write(path, own.join("\n") + "\n").unwrap();
    }
    let positions = of_lanes.iter().flatten().map(|events| events.div_ceil(EVENTS_PER_POSITION));
    let positions = positions.sum();
    Streams { expected, paths, lines: lines.iter().map(|own| own.len() as u64).sum(), positions }
}

/// As in the program.
fn lane_of(customer: &str) -> usize {
    let hash = customer.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash % LANES) as usize
}

/// The program. Killed when dropped.
struct Program(Child);

impl Program {
    fn start(site: &Site, paths: &[PathBuf; 2], output: &Path, ids: bool) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_stateside-example-stream-join"))
            .args(["--endpoint", &site.data_address(), "--patience-s", "60"])
            .args((!ids).then_some("--no-request-ids"))
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

    /// What the last run printed.
    fn said(output: &Path) -> String {
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        read(output) + &read(&output.with_extension("errors"))
    }
}

/// Writes that the node's partitions have accepted; None while it is away.
fn written(site: &Site) -> Option<u64> {
    let (_, metrics) = http_get(&site.metrics_address(), "/metrics")?;
    let of_partitions =
        metrics.lines().filter(|line| line.starts_with("stateside_partition_sequence{"));
    of_partitions.map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_result_is_there_once_whatever_was_killed() {
    let test = "stream_join_every_result_is_there_once";
    let Some(found) = join_under_kills(test, true) else { return };
    assert_eq!(found.differences, Vec::<String>::new(), "seed {}", found.seed);

    // Every line has one answer, a refusal when it came before, every result one write, every position one:
    // had anything been executed twice, its partition would have a sequence too many.
    let Found { seed, lines, results, positions, .. } = found;
    assert_eq!(found.sequences, lines + results + positions, "seed {seed}: writes");
    assert_eq!(found.listed, found.records, "seed {seed}: there is nothing else");
}

/// The witness: what the ids are for.
#[test]
fn without_request_ids_the_same_kills_lose_results_or_count_them_twice() {
    let test = "stream_join_without_request_ids";
    let Some(found) = join_under_kills(test, false) else { return };
    println!("{} differences, such as {:?}", found.differences.len(), found.differences.last());
    assert!(!found.differences.is_empty(), "seed {}: the ids do nothing", found.seed);
}

/// What the node has in the end.
struct Found {
    seed: u64,
    /// Between what there is and what there should be; empty for none.
    differences: Vec<String>,
    /// Records that belong there, and records that are there.
    records: u64,
    listed: u64,
    /// Of all partitions together: everything that was accepted.
    sequences: u64,
    lines: u64,
    results: u64,
    positions: u64,
}

/// None: it was skipped.
fn join_under_kills(test: &str, ids: bool) -> Option<Found> {
    let folder = tempfile::tempdir().unwrap();
    let mut broker = Broker::create(Kafka::find_for(test)?, &folder.path().join("kafka")).unwrap();
    broker.start().unwrap();
    let more = format!(
        "partition.pipeline = [\"clock\", \"dispatcher\", \"kafka-log\", \"line-monitor\"]\n\
         kafka.brokers = \"{}\"\nkafka.replication = 1\nrequest_ids.answers_max = {ANSWERS}\n",
        broker.address()
    );
    let site = Site::new(Config { store: Store::Lsm, more, ..Config::default() });
    site.serve_command();
    let checked = stateside(&site, ["config", "check", "--config", "stateside.toml"]);
    if checked.code != Some(0) {
        checked.failed_clearly(&["no Kafka client"]);
        requirements::missing(test, "the binary is built without the feature kafka");
        return None;
    }
    let seed = Random::fresh_seed();
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let streams = streams(&mut random, folder.path());

    let mut node = Some(site.start());
    let output = folder.path().join("output");
    let start = || Program::start(&site, &streams.paths, &output, ids);
    let mut program = Some(start());
    for (writes, kill) in streams.kills(&mut random) {
        until(&format!("{writes} writes are there, seed {seed}"), LIMIT, || {
            let ended = program.as_mut().and_then(|program| program.0.try_wait().unwrap());
            assert_eq!(ended, None, "seed {seed}: {}", Program::said(&output));
            (written(&site)? >= writes).then_some(())
        });
        if kill != Kill::Node {
            drop(program.take());
            program = Some(start());
        }
        if kill != Kill::Program {
            drop(node.take());
            // Comes back while the program asks for it.
            node = Some(site.launch());
        }
    }
    let ended = || program.as_mut().and_then(|program| program.0.try_wait().unwrap());
    let status = until(&format!("the program is done, seed {seed}"), LIMIT, ended);
    let said = Program::said(&output);
    assert!(status.success(), "seed {seed}: {status}: {said}");
    println!("the last run: {said}");
    node.as_mut().unwrap().wait_until_ready();
    Some(find(&site, &streams, seed))
}

/// Compares every record with what it should be.
fn find(site: &Site, streams: &Streams, seed: u64) -> Found {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(Client::connect(&site.data_address(), Options::default()));
    let client = client.unwrap();
    let read = |keys: &[String], customer: Option<&String>| {
        let routing_key = customer.map(|customer| customer.clone().into_bytes());
        let options = ReadOptions { routing_key, ..ReadOptions::default() };
        let records = runtime.block_on(client.get(keys, &options)).unwrap().all().unwrap();
        let values = records.into_iter();
        values.map(|record| Some(String::from_utf8(record?.value).unwrap())).collect::<Vec<_>>()
    };
    let partitions = stateside(site, ["partition", "list", "-o", "json"]).json();
    let listed = |name: &str| {
        let partitions = partitions["partitions"].as_array().unwrap();
        partitions.iter().map(|one| one[name].as_u64().unwrap()).sum()
    };
    let mut found = Found {
        seed,
        differences: Vec::new(),
        records: 0,
        listed: listed("records"),
        sequences: listed("sequence"),
        lines: streams.lines,
        results: streams.results(),
        positions: streams.positions,
    };
    let mut compare =
        |keys: Vec<String>, customer: Option<&String>, expected: Vec<Option<String>>| {
            for ((key, is), should_be) in keys.iter().zip(read(&keys, customer)).zip(expected) {
                found.records += u64::from(should_be.is_some());
                if is != should_be {
                    found.differences.push(format!("{key} is {is:?} and should be {should_be:?}"));
                }
            }
        };
    let mut totals = BTreeMap::<&String, [i64; 2]>::new();
    for ((customer, order), [ordered, paid]) in &streams.expected {
        let keys =
            ["orders", "payments", "joined"].map(|kind| format!("{customer}/{kind}/{order}"));
        let joined = ordered.zip(*paid).map(|(ordered, paid)| {
            let [results, cents] = totals.entry(customer).or_default();
            (*results, *cents) = (*results + 1, *cents + paid);
            format!(r#"{{"ordered":{ordered},"paid":{paid}}}"#)
        });
        let half = |cents: &Option<i64>| cents.map(|cents| cents.to_string());
        compare(keys.into(), Some(customer), vec![half(ordered), half(paid), joined]);
    }
    for (customer, [results, cents]) in &totals {
        let keys = ["results", "paid"].map(|kind| format!("{customer}/{kind}"));
        let totals = vec![Some(results.to_string()), Some(cents.to_string())];
        compare(keys.into(), Some(customer), totals);
    }
    found.records += 2 * LANES;
    found
}
