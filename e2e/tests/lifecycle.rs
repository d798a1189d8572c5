//! Starting, stopping and starting differently.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    io::{ErrorKind, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use stateside_e2e::{
    command_line::stateside,
    config::{Config, Store},
    hostile::{EMPTY_SETTINGS, PREFACE, frame},
    node_process::{READY_LIMIT, Site, http_get},
    rpc,
    until::until,
};
use tokio::runtime::Runtime;

const RECORDS: usize = 1_000;

fn write_records(site: &Site) {
    Runtime::new().unwrap().block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        let entries = (0..RECORDS).map(|n| rpc::entry(format!("key/{n}"), format!("value {n}")));
        let results = rpc::put_all(&mut data, entries.collect()).await.unwrap();
        assert!(results.iter().all(|result| result.error.is_none()));
    });
}

fn find_records(site: &Site) {
    Runtime::new().unwrap().block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        for n in 0..RECORDS {
            let record = rpc::get(&mut data, &format!("key/{n}")).await.unwrap();
            assert_eq!(record.value, format!("value {n}").into_bytes(), "key/{n}");
        }
    });
}

#[test]
fn sigterm_under_load_loses_nothing_and_exits_with_0() {
    for store in Store::ALL {
        let site = Site::new(Config { cores: 2, store, ..Config::default() });
        let mut node = site.start();
        let runtime = Runtime::new().unwrap();
        let (acknowledged, stop) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let writer = runtime.spawn({
            let (address, acknowledged, stop) =
                (site.data_address(), acknowledged.clone(), stop.clone());
            async move {
                let mut data = rpc::data(&address).await.unwrap();
                while !stop.load(Ordering::SeqCst) {
                    let n = acknowledged.load(Ordering::SeqCst);
                    if rpc::put(&mut data, &format!("key/{n}"), format!("value {n}")).await.is_err()
                    {
                        return;
                    }
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        until("some writes are acknowledged", Duration::from_secs(20), || {
            (acknowledged.load(Ordering::SeqCst) > 200).then_some(())
        });
        assert_eq!(node.terminate().code(), Some(0), "{}", node.output());
        stop.store(true, Ordering::SeqCst);
        runtime.block_on(writer).unwrap();
        drop(node);
        let _node = site.start();
        let count = acknowledged.load(Ordering::SeqCst);
        runtime.block_on(async {
            let mut data = rpc::data(&site.data_address()).await.unwrap();
            for n in 0..count {
                let record = rpc::get(&mut data, &format!("key/{n}")).await.unwrap();
                assert!(record.found, "key/{n} of {count} is lost, {store:?} store");
            }
        });
    }
}

/// A call whose request never ends: it keeps a drain waiting.
fn endless_call(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut bytes = PREFACE.to_vec();
    bytes.extend_from_slice(EMPTY_SETTINGS);
    let mut block = vec![0x83, 0x86];
    for (name, value) in [
        (":path", "/stateside.v1.DataPlane/Get"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    bytes.extend(frame(1, 0x4, 1, &block));
    stream.write_all(&bytes).unwrap();
    stream
}

#[test]
fn a_drain_ends_at_its_time_limit() {
    let site = Site::new(Config { drain_timeout_ms: 1_000, ..Config::default() });
    let mut node = site.start();
    let _call = endless_call(&site.data_address());
    write_records(&site);
    let begun = Instant::now();
    assert_eq!(node.terminate().code(), Some(0), "{}", node.output());
    assert!(begun.elapsed() < Duration::from_secs(8), "took {:?}", begun.elapsed());
}

#[test]
fn a_second_sigterm_ends_the_process_at_once() {
    let site = Site::new(Config { drain_timeout_ms: 60_000, ..Config::default() });
    let mut node = site.start();
    write_records(&site);
    let _call = endless_call(&site.data_address());
    node.signal(libc::SIGTERM);
    until("the node drains", Duration::from_secs(10), || {
        let ready = http_get(&site.metrics_address(), "/readyz");
        ready.is_none_or(|(status, _)| status != 200).then_some(())
    });
    let begun = Instant::now();
    if node.runs() {
        node.signal(libc::SIGTERM);
    }
    node.wait();
    assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
    drop(node);
    let _node = site.start();
    find_records(&site);
}

#[test]
fn restarts_with_another_number_of_cores_find_every_record() {
    for store in Store::ALL {
        let mut site = Site::new(Config { cores: 1, store, ..Config::default() });
        let mut node = site.start();
        write_records(&site);
        node.kill();
        drop(node);
        for cores in [2, 1, 2] {
            site.config.cores = cores;
            let mut node = site.start();
            find_records(&site);
            let topology = Runtime::new().unwrap().block_on(async {
                let mut data = rpc::data(&site.data_address()).await.unwrap();
                rpc::topology(&mut data).await.unwrap()
            });
            let highest = topology.partitions.iter().map(|partition| partition.core).max();
            assert_eq!(highest, Some(u32::from(cores) - 1), "{topology:?}");
            assert_eq!(topology.partitions.len(), 8, "the partition set must not change");
            node.kill();
        }
    }
}

#[test]
fn topology_covers_every_hash_and_its_addresses_lead_to_the_cores() {
    let site = Site::new(Config { cores: 2, ..Config::default() });
    let _node = site.start();
    Runtime::new().unwrap().block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        let topology = rpc::topology(&mut data).await.unwrap();
        assert_eq!(topology.partitions.len(), 16);
        let mut next = 0;
        for (at, partition) in topology.partitions.iter().enumerate() {
            let range = partition.range.unwrap();
            assert_eq!(range.start, next, "a gap or an overlap before {partition:?}");
            assert_eq!(range.end == 0, at == 15);
            next = range.end;
            let port = partition.core_address.rsplit(':').next().unwrap();
            let mut core = rpc::data(&format!("127.0.0.1:{port}")).await.unwrap();
            assert_eq!(rpc::topology(&mut core).await.unwrap(), topology);
        }
    });
}

#[test]
fn the_command_line_writes_reads_and_removes() {
    let site = Site::new(Config::default());
    let _node = site.start();
    stateside(&site, ["upsert", "greeting", "hello"]).ok();
    assert_eq!(stateside(&site, ["get", "greeting"]).ok(), "hello");
    let json = stateside(&site, ["get", "greeting", "-o", "json"]).json();
    assert_eq!(json["records"][0]["value"], "hello", "{json}");
    stateside(&site, ["upsert", "greeting", "again", "--if-absent", "-o", "json"])
        .refused("CONDITION_FAILED");
    stateside(&site, ["remove", "greeting"]).ok();
    let gone = stateside(&site, ["get", "greeting"]);
    assert_eq!((gone.code, gone.stdout.as_str()), (Some(4), ""), "{gone:?}");
    stateside(&site, ["upsert", "", "x", "-o", "json"]).refused("EMPTY_KEY");
    let status = stateside(&site, ["status", "-o", "json"]).json();
    assert_eq!(status["state"], "serving", "{status}");
    assert_eq!(status["cores"].as_array().unwrap().len(), 1);
}

#[test]
fn an_import_names_the_line_of_what_it_cannot_read() {
    let site = Site::new(Config::default());
    let _node = site.start();
    let file = site.folder().join("people.ndjson");
    std::fs::write(&file, "{\"id\":\"1\",\"n\":1}\n{\"id\":\"2\"\n{\"id\":\"3\"}\n").unwrap();
    let file = file.to_str().unwrap().to_owned();
    stateside(&site, ["import", &file, "--key", "id"]).failed_clearly(&["2"]);
    let skipped =
        stateside(&site, ["import", &file, "--key", "id", "--on-error", "skip", "-o", "json"]);
    let summary: serde_json::Value = serde_json::from_str(&skipped.stdout).unwrap();
    assert_eq!((&summary["imported"], &summary["errors"]), (&2.into(), &1.into()), "{skipped:?}");
    assert_eq!(stateside(&site, ["get", "3"]).ok(), "{\"id\":\"3\"}");
}

#[test]
fn a_unix_socket_serves_the_data_plane() {
    let mut site = Site::new(Config::default());
    let socket = site.folder().join("data.sock").to_str().unwrap().to_owned();
    site.config.more = format!("data.unix_socket = \"{socket}\"\n");
    let mut node = site.start();
    let endpoint = format!("unix:{socket}");
    stateside(&site, ["upsert", "over", "a socket", "--endpoint", &endpoint]).ok();
    assert_eq!(stateside(&site, ["get", "over", "--endpoint", &endpoint]).ok(), "a socket");
    // A socket file that a killed node left behind does not keep the next from starting.
    node.kill();
    drop(node);
    let _node = site.start();
    assert_eq!(stateside(&site, ["get", "over", "--endpoint", &endpoint]).ok(), "a socket");
}

#[test]
fn metrics_and_probes_tell_how_the_node_is() {
    let site = Site::new(Config::default());
    let node = site.start();
    write_records(&site);
    find_records(&site);
    let metrics = node.metrics();
    for family in
        ["stateside_requests_total", "stateside_partition_records", "process_resident_memory_bytes"]
    {
        assert!(metrics.lines().any(|line| line.starts_with(family)), "no {family} in\n{metrics}");
    }
    assert!(!metrics.contains("key/"), "a key in a label");
    assert!(http_get(&site.metrics_address(), "/healthz").is_some_and(|(status, _)| status == 200));
    assert!(http_get(&site.metrics_address(), "/nothing").is_some_and(|(status, _)| status == 404));
}

/// Connections that came during a recovery once waited in the backlog for as long as it took.
#[test]
fn while_a_node_recovers_connecting_is_refused_and_its_port_is_its_own() {
    let mut site = Site::new(Config { ack: "memory", ..Config::default() });
    let unix = site.folder().join("data.sock");
    site.config.more = format!("data.unix_socket = \"{}\"\n", unix.display());
    let mut node = site.start();
    Runtime::new().unwrap().block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        for batch in 0..300 {
            let entries = (0..1_000).map(|n| rpc::entry(format!("{batch}/{n}"), [b'x'; 100]));
            let results = rpc::put_all(&mut data, entries.collect()).await.unwrap();
            assert!(results.iter().all(|result| result.error.is_none()));
        }
    });
    node.terminate();

    let mut node = site.launch();
    let ports = [site.data_address(), format!("127.0.0.1:{}", site.core_port_base())];
    let mut refused = 0;
    let connected = until("the node is connected to", READY_LIMIT, || {
        let recovers = http_get(&site.metrics_address(), "/readyz")
            .is_some_and(|(status, body)| status == 503 && body.starts_with("recovering"));
        for port in &ports {
            match TcpStream::connect(port) {
                Ok(_) => return Some(port),
                Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}"),
            }
            // Whoever binds the port gets to know that it is taken.
            if recovers {
                let taken = TcpListener::bind(port).map(drop).unwrap_err();
                assert_eq!(taken.kind(), ErrorKind::AddrInUse, "{taken}");
            }
        }
        refused += usize::from(recovers && UnixStream::connect(&unix).is_err());
        None
    });
    println!("refused {refused} times, then connected to {connected}");
    assert!(refused > 0, "the recovery was over before it was looked at: write more");
    node.wait_until_ready();
    UnixStream::connect(&unix).unwrap();
    Runtime::new().unwrap().block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        assert!(rpc::get(&mut data, "299/999").await.unwrap().found);
    });
}
