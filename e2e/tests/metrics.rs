//! What `/metrics` tells of known traffic.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeSet, fs, net::TcpStream, time::Duration};

use stateside_e2e::{
    command_line::stateside,
    config::Config,
    exposition::Page,
    hostile::{EMPTY_SETTINGS, PREFACE, send_raw},
    node_process::{Node, Site, http_get},
    raw_http2::{grpc, reason},
    rpc,
    until::until,
};
use stateside_proto::v1::{Ack, UpsertRequest};
use stateside_types::PartitionId;
use tokio::runtime::Runtime;

/// A core brings its levels up to date within its idle tick, and the machine may be busy.
const TICK_LIMIT: Duration = Duration::from_secs(10);
const CLOSE_LIMIT: Duration = Duration::from_secs(15);
/// How many files a node may have open that is to run out of them.
const FILES_MAX: usize = 100;
const TLS_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
/// A memory partition, and one on disk.
const REGISTRY: &str = "[[partition]]\nid = 0\nrange = \"0..0x8000000000000000\"\n\
    [[partition]]\nid = 1\nrange = \"0x8000000000000000..\"\nstore = \"sled\"\n";

fn page(node: &Node<'_>) -> Page {
    Page::parse(&node.metrics()).unwrap_or_else(|wrong| panic!("not valid: {wrong}"))
}

/// Two cores, a partition each; and what the registry file says.
fn site_of_two_stores() -> Site {
    let mut site = Site::new(Config { cores: 2, ..Config::default() });
    let registry = site.folder().join("registry.toml");
    fs::write(&registry, REGISTRY).unwrap();
    site.config.more = format!("registry.file = \"{}\"\n", registry.display());
    site
}

/// By how much a sample has grown.
struct Growth<'p>(&'p Page, &'p Page);

impl Growth<'_> {
    fn of(&self, sample: &str, labels: &[(&str, &str)]) -> f64 {
        self.1.sum(sample, labels) - self.0.sum(sample, labels)
    }
}

/// Writes, reads, removes and refusals: what a client does. Over core 0's own port, so that half
/// of it has to hop.
async fn usual_traffic(address: &str) {
    let mut data = rpc::data(address).await.unwrap();
    let keys: Vec<String> = (0..200).map(|n| format!("key/{n}")).collect();
    let entries = keys.iter().map(|key| rpc::entry(key.as_str(), "0123456789"));
    rpc::put_all(&mut data, entries.collect()).await.unwrap();
    for key in &keys[..50] {
        rpc::put(&mut data, key, "9876543210").await.unwrap();
    }
    for key in &keys[..30] {
        assert!(rpc::get(&mut data, key).await.unwrap().found);
    }
    for key in &keys[..10] {
        rpc::remove(&mut data, key).await.unwrap();
    }
    rpc::topology(&mut data).await.unwrap();
    let mut entry = rpc::entry("key/20", "never");
    entry.if_absent = true;
    let refused = rpc::put_all(&mut data, vec![entry]).await.unwrap_err();
    assert_eq!(rpc::reason(&refused), "CONDITION_FAILED");
    grpc(address, "grpc.health.v1.Health/Check", b"").await.unwrap();
    let refused = grpc(address, "stateside.v1.DataPlane/Steal", b"").await.unwrap();
    assert_eq!(reason(&refused), "UNKNOWN_METHOD");
}

#[test]
fn counters_rise_by_what_was_done() {
    let site = site_of_two_stores();
    let node = site.start();
    let before = page(&node);
    let core_0 = format!("127.0.0.1:{}", site.core_port_base());
    Runtime::new().unwrap().block_on(usual_traffic(&core_0));
    let noise = [PREFACE, EMPTY_SETTINGS, &[0xff; 64]].concat();
    for bytes in [TLS_HELLO, b"GET / HTTP/1.1\r\n\r\n", &noise] {
        assert!(send_raw(&site.data_address(), bytes, CLOSE_LIMIT).1);
    }
    let snapshot = site.folder().join("0.snapshot").display().to_string();
    stateside(&site, ["partition", "snapshot", "0", &snapshot]).ok();
    stateside(&site, ["partition", "snapshot", "0", &snapshot, "-o", "json"])
        .refused("SNAPSHOT_EXISTS");

    let after = until("all is counted", TICK_LIMIT, || {
        let after = page(&node);
        let grown = Growth(&before, &after);
        let errors = grown.of("stateside_protocol_errors_total", &[]);
        (errors >= 3.0 && grown.of("stateside_hops_received_total", &[]) >= 1.0).then_some(after)
    });
    let grown = Growth(&before, &after);
    for (method, code, count) in [
        ("Upsert", "OK", 51.0),
        ("Upsert", "FAILED_PRECONDITION", 1.0),
        ("Get", "OK", 30.0),
        ("Remove", "OK", 10.0),
        ("Topology", "OK", 1.0),
        ("Health", "OK", 1.0),
        ("unknown", "UNIMPLEMENTED", 1.0),
    ] {
        let labels = [("method", method), ("code", code)];
        assert_eq!(grown.of("stateside_requests_total", &labels), count, "{method} {code}");
    }
    for (method, count) in [("Upsert", 52.0), ("Get", 30.0), ("Remove", 10.0)] {
        let of = |sample: &str| {
            grown.of(&format!("stateside_request_duration_seconds_{sample}"), &[("method", method)])
        };
        assert_eq!(of("count"), count, "{method}");
        // No call takes no time: half a microsecond each at least.
        assert!(of("sum") > count * 0.5e-6, "{count} of {method} took {} s", of("sum"));
    }
    for reason in ["CONDITION_FAILED", "UNKNOWN_METHOD"] {
        assert_eq!(grown.of("stateside_refused_total", &[("reason", reason)]), 1.0, "{reason}");
    }
    assert_eq!(grown.of("stateside_protocol_errors_total", &[]), 3.0);
    // The client, two calls over connections of their own, and three that spoke nonsense.
    assert_eq!(grown.of("stateside_connections_accepted_total", &[]), 6.0);
    assert!(grown.of("stateside_received_bytes_total", &[("core", "0")]) > 200.0 * 15.0);
    assert!(grown.of("stateside_sent_bytes_total", &[("core", "0")]) > 30.0 * 10.0);
    let hops = grown.of("stateside_hops_sent_total", &[("core", "0")]);
    assert!(hops > 10.0, "half of the keys are core 1's: {hops}");
    assert_eq!(grown.of("stateside_hops_received_total", &[("core", "1")]), hops);
    assert_eq!(after.sum("stateside_accept_errors_total", &[]), 0.0);

    log_and_stores_are_counted(&grown);
    let file = fs::metadata(&snapshot).unwrap().len();
    assert_eq!(grown.of("stateside_snapshots_total", &[("core", "0")]), 1.0);
    assert_eq!(grown.of("stateside_snapshot_failures_total", &[]), 1.0);
    assert_eq!(grown.of("stateside_snapshot_written_bytes_total", &[]), file as f64);
    assert_eq!(grown.of("stateside_control_calls_total", &[("outcome", "refused")]), 1.0);
    assert!(grown.of("stateside_control_calls_total", &[("outcome", "ok")]) >= 1.0);
    assert!(grown.of("process_cpu_seconds_total", &[]) >= 0.0);
}

fn log_and_stores_are_counted(grown: &Growth<'_>) {
    // A record a batch and partition: 2 of the large one, 50 writes, 10 removals.
    let records = grown.of("stateside_log_records_total", &[]);
    assert_eq!(records, 62.0);
    assert_eq!(grown.of("stateside_log_group_records_sum", &[]), records);
    let writes = grown.of("stateside_log_write_duration_seconds_count", &[]);
    assert!((1.0..=records).contains(&writes), "{writes} writes of {records} records");
    assert_eq!(grown.of("stateside_log_group_records_count", &[]), writes);
    assert!(grown.of("stateside_log_write_duration_seconds_sum", &[]) > 0.0);
    // Whole blocks of 4 KiB.
    assert!(grown.of("stateside_log_written_bytes_total", &[]) >= writes * 4096.0);
    for core in ["0", "1"] {
        let used = grown.1.sum("stateside_log_segments", &[("core", core)]);
        assert_eq!(used, 1.0);
        let bytes = grown.1.sum("stateside_log_used_bytes", &[("core", core)]);
        assert_eq!(bytes, f64::from(Config::default().log_segment_mb << 20));
    }
    for (core, works) in [("0", false), ("1", true)] {
        let work = grown.of("stateside_store_work_duration_seconds_count", &[("core", core)]);
        assert_eq!(work > 0.0, works, "core {core} of a memory store and one on disk: {work}");
    }
    assert!(grown.of("stateside_store_work_duration_seconds_sum", &[]) > 0.0);

    let after = grown.1;
    assert_eq!(after.sum("stateside_partition_records", &[]), 190.0);
    for partition in ["0", "1"] {
        let of = |sample: &str| after.sum(sample, &[("partition", partition)]);
        let records = of("stateside_partition_records");
        assert!(records > 50.0);
        assert!(of("stateside_partition_payload_bytes") >= records * 15.0);
        assert!(of("stateside_partition_memory_bytes") > 0.0);
        assert!(of("stateside_partition_sequence") > 10.0);
        let durable = of("stateside_partition_durable_sequence");
        assert_eq!(durable, of("stateside_partition_sequence"));
        assert!(of("stateside_partition_snapshot_sequence") <= durable);
        let labels = [("partition", partition), ("state", "primary")];
        assert_eq!(after.sum("stateside_partition_state", &labels), 1.0);
        assert_eq!(of("stateside_partition_state"), 1.0, "one state at a time");
    }
    assert!(after.sum("stateside_store_memory_bytes", &[("core", "0")]) > 0.0);
}

#[test]
fn every_family_of_the_documentation_has_a_series_and_no_other() {
    let site = site_of_two_stores();
    let node = site.start();
    let page = page(&node);
    let documented = stateside_e2e::requirements::workspace_root().join("docs/metrics.md");
    let documented = fs::read_to_string(documented).unwrap();
    let documented: BTreeSet<&str> = documented
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(page.families().collect::<BTreeSet<_>>(), documented);
    for name in documented {
        let shown = page.series(name) + page.series(&format!("{name}_count"));
        // Of partitions with a snapshot, with stages before the clock (`stages.rs` sees those), with
        // requests under ids (`retries.rs`), with their log in Kafka (`kafka.rs`).
        let may_be_absent = name == "stateside_partition_snapshot_age_seconds"
            || name == "stateside_partition_request_oldest_age_seconds"
            || name.starts_with("stateside_stage_")
            || name.starts_with("stateside_partition_kafka_");
        assert!(shown > 0 || may_be_absent, "{name} has no series");
    }
    for (sample, labels, value) in [
        ("stateside_node_state", &[("state", "serving")][..], 1.0),
        ("stateside_node_state", &[], 1.0),
        ("stateside_build_info", &[], 1.0),
        ("stateside_cores_unreported", &[], 0.0),
        ("stateside_registry_broken", &[], 0.0),
        ("stateside_pending_changes", &[], 0.0),
        ("stateside_log_problem", &[], 0.0),
    ] {
        assert_eq!(page.sum(sample, labels), value, "{sample} {labels:?}");
    }
    for sample in [
        "stateside_uptime_seconds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_threads",
        "process_start_time_seconds",
    ] {
        assert!(page.sum(sample, &[]) > 0.0, "{sample}");
    }
}

#[test]
fn writes_on_their_way_to_the_disk_are_shown_until_they_are_there() {
    let mut site = Site::new(Config { ack: "memory", ..Config::default() });
    site.config.more = "log.flush_after_ms = 60000\n".to_owned();
    let node = site.start();
    let runtime = Runtime::new().unwrap();
    let mut data = runtime.block_on(rpc::data(&site.data_address())).unwrap();
    runtime.block_on(async {
        for n in 0..100 {
            rpc::put(&mut data, &format!("key/{n}"), "x").await.unwrap();
        }
    });
    let level = |name: &str| page(&node).sum(name, &[]);
    until("100 writes are on their way", TICK_LIMIT, || {
        (level("stateside_window_writes") == 100.0).then_some(())
    });
    assert!(level("stateside_log_pending_bytes") > 100.0);
    assert_eq!(level("stateside_connections"), 1.0);
    // A durable write takes along what was before it.
    let entries = vec![rpc::entry("key", "x")];
    let request = UpsertRequest { entries, ack: Ack::Durable.into(), ..UpsertRequest::default() };
    runtime.block_on(data.upsert(request)).unwrap();
    until("all are there", TICK_LIMIT, || {
        let pending = ["stateside_window_writes", "stateside_log_pending_bytes"];
        pending.iter().all(|name| level(name) == 0.0).then_some(())
    });
}

#[test]
fn reads_that_wait_for_the_disk_are_shown_while_they_do() {
    let site = Site::new(Config::default());
    let node = site.start();
    let runtime = Runtime::new().unwrap();
    let data = runtime.block_on(rpc::data(&site.data_address())).unwrap();
    // Writes of one key from many sides, and reads of it: at most times both wait for the disk.
    let tasks: Vec<_> = (0..16)
        .map(|n| {
            let mut data = data.clone();
            runtime.spawn(async move {
                loop {
                    if n % 2 == 0 {
                        rpc::put(&mut data, "hot", "x").await.unwrap();
                    } else {
                        rpc::get(&mut data, "hot").await.unwrap();
                    }
                }
            })
        })
        .collect();
    until("reads are held and calls are under way", TICK_LIMIT, || {
        let page = page(&node);
        let held = page.sum("stateside_held_reads", &[]);
        let calls = page.sum("stateside_calls_pending", &[]);
        assert!(held <= 8.0 && calls <= 16.0, "{held} held reads, {calls} calls");
        (held > 0.0 && calls > 0.0).then_some(())
    });
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    until("nothing waits", TICK_LIMIT, || {
        let page = page(&node);
        ["window_writes", "held_reads", "log_pending_bytes", "calls_pending", "hops_pending"]
            .iter()
            .all(|name| page.sum(&format!("stateside_{name}"), &[]) == 0.0)
            .then_some(())
    });
}

#[test]
fn a_background_snapshot_has_an_age_and_a_restart_reads_what_is_left() {
    let site = Site::new(Config { log_max_mb: 16, ack: "memory", ..Config::default() });
    let mut node = site.start();
    assert_eq!(page(&node).series("stateside_partition_snapshot_age_seconds"), 0);
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        for batch in 0..40 {
            let entries = (0..8).map(|n| rpc::entry(format!("{batch}/{n}"), vec![b'x'; 120_000]));
            rpc::put_all(&mut data, entries.collect()).await.unwrap();
        }
    });
    until("background snapshots are made", TICK_LIMIT, || {
        let page = page(&node);
        let snapshots = page.sum("stateside_snapshots_total", &[]);
        let ages = page.series("stateside_partition_snapshot_age_seconds");
        (snapshots > 0.0 && ages > 0).then_some(())
    });
    let before = page(&node);
    assert!(before.sum("stateside_snapshot_written_bytes_total", &[]) > 1e6);
    assert!(before.sum("stateside_partition_snapshot_age_seconds", &[]) < 600.0);
    assert!(before.sum("stateside_partition_snapshot_sequence", &[]) > 0.0);
    node.terminate();
    let node = site.start();
    let after = page(&node);
    let read = after.sum("stateside_recovery_read_bytes", &[]);
    assert!(read > 0.0 && read == after.sum("stateside_recovery_bytes", &[]), "{read}");
    assert!(after.series("stateside_partition_snapshot_age_seconds") > 0);
    assert_eq!(after.sum("stateside_requests_total", &[]), 0.0, "counters begin anew");
}

#[test]
fn changes_of_the_partition_set_are_counted_and_a_broken_registry_is_shown() {
    let site = site_of_two_stores();
    let node = site.start();
    let registry = site.folder().join("registry.toml");
    let broken = |expected: f64| {
        until("the registry file is noticed", TICK_LIMIT, || {
            (page(&node).sum("stateside_registry_broken", &[]) == expected).then_some(())
        });
    };
    fs::write(&registry, "[[partition]\n").unwrap();
    broken(1.0);
    fs::write(&registry, REGISTRY).unwrap();
    broken(0.0);
    let gone = PartitionId(1).to_string();
    stateside(&site, ["partition", "remove", &gone, "--yes"]).ok();
    let page = page(&node);
    assert_eq!(page.sum("stateside_partition_changes_total", &[("outcome", "done")]), 1.0);
    assert_eq!(page.sum("stateside_partition_state", &[("partition", &gone)]), 0.0);
}

#[test]
fn accepts_that_fail_for_want_of_descriptors_are_counted() {
    let mut site = Site::new(Config::default());
    site.prefix = vec!["prlimit".to_owned(), format!("--nofile={FILES_MAX}:{FILES_MAX}")];
    let node = site.start();
    assert_eq!(page(&node).sum("stateside_accept_errors_total", &[]), 0.0);
    let clients: Vec<_> =
        (0..FILES_MAX).map(|_| TcpStream::connect(site.data_address()).unwrap()).collect();
    // Meanwhile nobody can ask for /metrics either.
    until("accepting fails", TICK_LIMIT, || {
        node.output().contains("cannot accept connections for now").then_some(())
    });
    drop(clients);
    until("it is counted", TICK_LIMIT, || {
        let text = http_get(&site.metrics_address(), "/metrics")?.1;
        let page = Page::parse(&text).ok()?;
        let errors = page.sum("stateside_accept_errors_total", &[]);
        let accepted = page.sum("stateside_connections_accepted_total", &[]);
        (errors >= 1.0 && accepted == FILES_MAX as f64).then_some(())
    });
}
