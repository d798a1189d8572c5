//! `stateside bench`: what it reports is what it did, and a stall of the node cannot hide in it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use stateside_e2e::{
    command_line::stateside,
    config::{Config, Store},
    node_process::{Site, binary},
};

const USAGE: i32 = 2;
const UNREACHABLE: i32 = 3;
const REFUSED: i32 = 5;

/// `bench` with flags and JSON.
fn bench(site: &Site, flags: &str) -> Value {
    let words = ["bench", "-o", "json"].into_iter().chain(flags.split(' '));
    stateside(site, words).json()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Percentiles rise, and are those of something.
fn assert_ordered(latency: &Value) {
    let names = ["p50", "p90", "p99", "p99_9", "max"];
    let values: Vec<f64> = names.iter().map(|name| number(&latency[*name])).collect();
    assert!(values[0] > 0.0 && values.is_sorted(), "{latency}");
}

#[test]
fn an_open_loop_makes_the_calls_of_its_schedule() {
    let site = Site::new(Config::default());
    let _node = site.start();
    let report = bench(
        &site,
        "--workload a --rate 300/s --duration 2s --warm-up 200ms --records 2000 --value-bytes 50",
    );
    assert_eq!(report["complete"], true, "{report}");
    assert_eq!(report["load"]["records"], 2_000, "{report}");
    let run = &report["runs"][0];
    let count = |name: &str| run[name].as_u64().unwrap();
    // Every call due between 0.2 s and 2.2 s, whatever the machine does meanwhile.
    assert_eq!(count("calls") + count("failed_calls") + count("unsent_calls"), 600, "{report}");
    assert_eq!((count("failed_calls"), count("not_found")), (0, 0), "{report}");
    // An idle node keeps up; a slow machine may answer the last ones a second late.
    let rate = number(&run["calls_per_second"]);
    assert!((190.0..=300.5).contains(&rate), "{report}");
    let operations = run["operations"].as_object().unwrap();
    let kinds: Vec<&String> = operations.keys().collect();
    assert_eq!(kinds, ["read", "update"]);
    let done: u64 = operations.values().map(|kind| kind["calls"].as_u64().unwrap()).sum();
    assert_eq!(done, count("calls"), "{report}");
    for latency in operations.values().map(|kind| &kind["latency_us"]).chain([&run["latency_us"]]) {
        assert_ordered(latency);
    }
    let status = stateside(&site, ["status", "-o", "json"]).json();
    assert_eq!(status["records"], 2_000, "updates make no new records: {status}");
    let record = stateside(&site, ["get", "bench/0000001999", "-o", "json"]).json();
    let record = &record["records"][0];
    assert_eq!(record["key"], "bench/0000001999", "{record}");
    assert_eq!(record["value"].as_str().map(str::len), Some(50), "{record}");
}

#[test]
fn inserts_add_records_that_reads_find() {
    let site = Site::new(Config::default());
    let _node = site.start();
    let report =
        bench(&site, "--workload d --duration 1s --warm-up 0s --records 500 --batch 3 --seed 9");
    let run = &report["runs"][0];
    assert_eq!(run["loop"], "closed");
    assert_eq!((&run["failed_calls"], &run["not_found"]), (&0.into(), &0.into()), "{report}");
    let inserted = 3 * run["operations"]["insert"]["calls"].as_u64().unwrap();
    assert!(inserted > 0, "{report}");
    let status = stateside(&site, ["status", "-o", "json"]).json();
    assert_eq!(status["records"].as_u64().unwrap(), 500 + inserted, "{report}");
}

#[test]
fn scans_find_records_where_the_store_orders_its_keys_and_are_told_where_it_does_not() {
    let work = "--workload e --duration 1s --warm-up 0s --records 2000 --seed 9";
    let site = Site::new(Config { store: Store::MemoryOrdered, ..Config::default() });
    let node = site.start();
    let report = bench(&site, work);
    let run = &report["runs"][0];
    assert_eq!(run["failed_calls"], 0, "{report}");
    let calls = |kind: &str| run["operations"][kind]["calls"].as_u64().unwrap();
    assert!(calls("scan") > calls("insert"), "{report}");
    // 2,000 records in 8 partitions: a scan has many, and as many as 100.
    let records = run["records"].as_u64().unwrap();
    assert!(records > 10 * calls("scan") && records <= 100 * calls("scan") + calls("insert"));
    drop(node);

    let site = Site::new(Config::default());
    let _node = site.start();
    let report = bench(&site, work);
    let failed = &report["runs"][0]["failures"];
    assert!(failed.to_string().contains("STORE_NOT_ORDERED"), "{report}");
}

#[test]
fn a_stall_of_the_node_counts_for_every_call_that_it_delays() {
    // The fault that this generator exists to avoid: with four calls under way, a generator that
    // times calls from their sending sees the stall in four of them.
    let site = Site::new(Config::default());
    let node = site.start();
    let mut child = Command::new(binary())
        .args(["bench", "--endpoint", &site.data_address(), "-o", "json", "--progress"])
        .args(["--workload", "c", "--records", "100", "--rate", "200", "--concurrency", "4"])
        .args(["--duration", "7s", "--warm-up", "0s", "--timeout", "20s"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A line of progress a second, by the generator's clock, which does not wait for the node.
    let mut progress = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut next_line = || progress.next().expect("the run has not ended").unwrap();
    while !next_line().starts_with("run: ") {}
    node.signal(libc::SIGSTOP);
    let stalled = Instant::now();
    while stalled.elapsed() < Duration::from_secs(1) {
        next_line();
    }
    node.signal(libc::SIGCONT);
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");

    let report: Value = serde_json::from_str(&text).unwrap();
    let run = &report["runs"][0];
    assert_eq!((&run["calls"], &run["failed_calls"]), (&1_400.into(), &0.into()), "{report}");
    // 200 calls at least were due in the stall: one in seven, and the slowest tenth of all
    // waited for 300 ms of it at least.
    assert!(number(&run["latency_us"]["p90"]) > 250_000.0, "{report}");
    assert!(number(&run["latency_us"]["max"]) > 900_000.0, "{report}");
    assert!(run["held_back_calls"].as_u64().unwrap() > 150, "{report}");
    let unaware = number(&run["service_time_us"]["p90"]);
    assert!(unaware < number(&run["latency_us"]["p90"]) / 2.0, "{report}");
}

#[test]
fn a_sweep_measures_shares_of_the_peak_and_draws_them() {
    let site = Site::new(Config::default());
    let _node = site.start();
    let plot = site.folder().join("latency.svg");
    let flags = format!(
        "--workload b --records 1000 --steps 5%,120/s --duration 1s --warm-up 100ms --plot {}",
        plot.display()
    );
    let report = bench(&site, &flags);
    let runs = report["runs"].as_array().unwrap();
    let names: Vec<&str> = runs.iter().map(|run| run["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["peak", "5%", "120/s"], "{report}");
    let share = number(&runs[0]["calls_per_second"]) * 0.05;
    let asked = number(&runs[1]["asked_calls_per_second"]);
    assert!((asked - share).abs() <= 1.0, "{report}");
    assert_eq!(runs[2]["asked_calls_per_second"], 120, "{report}");
    runs.iter().for_each(|run| assert_ordered(&run["latency_us"]));

    let svg = fs::read_to_string(&plot).unwrap();
    let document = roxmltree::Document::parse(&svg).unwrap();
    assert!(document.root_element().has_tag_name(("http://www.w3.org/2000/svg", "svg")));
    let marks = document.descendants().filter(|node| node.tag_name().name() == "circle").count();
    assert_eq!(marks, 8, "two loads, four percentiles");
}

#[test]
fn refused_calls_are_counted_by_reason_and_are_no_work() {
    let site = Site::new(Config { memory_limit_mb: 16, ..Config::default() });
    let _node = site.start();
    let full = "--mix update=100 --distribution uniform --no-load --records 10000 --value-bytes 100000 --concurrency 4 --duration 2s --warm-up 0s";
    let report = bench(&site, full);
    let run = &report["runs"][0];
    let refused = run["failures"]["MEMORY_FULL"].as_u64().unwrap_or(0);
    assert!(refused > 0, "{report}");
    // A slow disk may refuse some as OVERLOADED.
    let by_reason = run["failures"].as_object().unwrap().values();
    let failures: u64 = by_reason.map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(run["failed_calls"], failures, "{report}");
    // What was done fits into the memory that there is.
    assert!(run["calls"].as_u64().is_some_and(|calls| calls > 0 && calls < 1_000), "{report}");
    // Now nothing can be done any more, and that is a failure of the command.
    let again = ["bench", "-o", "json"].into_iter().chain(full.split(' ')).chain(["--seed", "2"]);
    let ran = stateside(&site, again.chain(["--key-prefix", "other/"]));
    ran.failed_with(REFUSED, &["no call succeeded", "MEMORY_FULL"]);
}

#[test]
fn what_cannot_be_measured_is_refused_in_a_sentence() {
    let site = Site::new(Config::default());
    let refused = |flags: &str, code: i32, mentions: &[&str]| {
        let words = ["bench"].into_iter().chain(flags.split(' '));
        stateside(&site, words).failed_with(code, mentions);
    };
    refused("--key-bytes 7", USAGE, &["at least 11 bytes"]);
    refused("--rate 10 --plot x.svg", USAGE, &["--sweep"]);
    refused("--sweep --plot x.png", USAGE, &["SVG"]);
    refused("--sweep --plot no/such/folder/x.svg", 1, &["no/such/folder/x.svg"]);
    // No node was started: the sentence and the code of every other verb.
    let other = stateside(&site, ["get", "key"]);
    other.failed_with(UNREACHABLE, &["cannot reach"]);
    refused("--workload c --no-load", UNREACHABLE, &[other.stderr.trim()]);
    refused("--workload c", UNREACHABLE, &[other.stderr.trim()]);
}
