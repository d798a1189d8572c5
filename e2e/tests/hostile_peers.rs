//! Peers that do not behave cost themselves and nobody else.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use stateside_e2e::{
    config::Config,
    exposition::Page,
    hostile::{EMPTY_SETTINGS, NeverReads, PREFACE, send_raw},
    node_process::{Node, Site},
    random::Random,
    requirements::{raise_open_files, skipped},
    rpc,
    until::until,
};
use stateside_types::limits::{RESPONSE_BACKLOG_BYTES_MAX, SEND_BACKLOG_BYTES_MAX};

/// How long a peer that talks nonsense may keep its connection.
const CLOSE_LIMIT: Duration = Duration::from_secs(15);
/// What a well-behaved client must not wait for longer, whatever the others do.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Idle connections, from the project's own list of bad input.
const IDLE_CONNECTIONS: usize = 10_000;
/// What one that has sent nothing may cost. A session of the HTTP/2 library is ten times that.
const IDLE_CONNECTION_BYTES: u64 = 2 << 10;

fn is_served(site: &Site) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let begun = Instant::now();
    runtime.block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        rpc::put(&mut data, "served", "x").await.unwrap();
        assert!(rpc::get(&mut data, "served").await.unwrap().found);
    });
    assert!(begun.elapsed() < ANSWER_LIMIT, "an answer took {:?}", begun.elapsed());
}

fn resident_kb(node: &Node<'_>) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn garbage_on_the_ports_closes_the_connection() {
    let site = Site::new(Config::default());
    let _node = site.start();
    let seed = Random::fresh_seed();
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let mut noise: Vec<u8> = (0..64 << 10).map(|_| random.next_u64() as u8).collect();
    noise[0] |= 0x80; // so that it is not by chance the beginning of something
    let mut after_preface = PREFACE.to_vec();
    after_preface.extend_from_slice(EMPTY_SETTINGS);
    after_preface.extend_from_slice(&noise);
    let tls_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(20);
    let core_address = format!("127.0.0.1:{}", site.core_port_base());
    for address in [site.data_address(), core_address] {
        for (what, bytes) in [
            ("noise", noise.as_slice()),
            ("noise after the preface", &after_preface),
            ("TLS", &tls_hello),
            ("a frame without the preface", EMPTY_SETTINGS),
        ] {
            let (_, closed) = send_raw(&address, bytes, CLOSE_LIMIT);
            assert!(closed, "{what}: the connection stays open");
        }
    }
    is_served(&site);
}

#[test]
fn http_1_on_the_port_is_told_what_the_port_speaks() {
    let site = Site::new(Config::default());
    let _node = site.start();
    for request in [
        "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "POST /stateside.v1.DataPlane/Get HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
    ] {
        let (answer, closed) = send_raw(&site.data_address(), request.as_bytes(), CLOSE_LIMIT);
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 4") && answer.contains("gRPC"), "{answer}");
        assert!(closed, "the connection stays open");
    }
    is_served(&site);
}

#[test]
fn ten_thousand_idle_connections_disturb_nobody() {
    let test = "ten_thousand_idle_connections_disturb_nobody";
    if !raise_open_files(IDLE_CONNECTIONS as u64 + 1_000) {
        skipped(test, "the limit of open files cannot be raised to 11,000");
        return;
    }
    let site = Site::new(Config::default());
    let node = site.start();
    let before_kb = resident_kb(&node);
    let idle: Vec<TcpStream> = (0..IDLE_CONNECTIONS)
        .map(|number| {
            TcpStream::connect(site.data_address())
                .unwrap_or_else(|error| panic!("connection {number}: {error}"))
        })
        .collect();
    is_served(&site);
    let grown_kb = resident_kb(&node).saturating_sub(before_kb);
    println!("{} idle connections cost {grown_kb} KiB", idle.len());
    let bound_kb = idle.len() as u64 * IDLE_CONNECTION_BYTES / 1024;
    assert!(grown_kb < bound_kb, "{grown_kb} KiB for idle connections, above {bound_kb}");
    drop(idle);
    is_served(&site);
}

#[test]
fn a_client_that_never_reads_is_not_read_any_more() {
    let site = Site::new(Config::default());
    let node = site.start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        rpc::put(&mut data, "large", vec![b'x'; 500_000]).await.unwrap();
    });
    let before_kb = resident_kb(&node);
    let mut greedy: Vec<NeverReads> =
        (0..4).map(|_| NeverReads::connect(&site.data_address(), b"large")).collect();
    for _ in 0..3 {
        for client in &mut greedy {
            client.ask(300);
        }
        is_served(&site);
    }
    // Unbounded, 3,600 answers of 500 kB would be 1.8 GB. Each connection may have unsent answers
    // up to a limit; half as much again is for the allocator and for what is on its way.
    let limit = RESPONSE_BACKLOG_BYTES_MAX + SEND_BACKLOG_BYTES_MAX;
    let bound_kb = (greedy.len() * limit * 3 / 2 / 1024) as u64;
    let grown_kb = resident_kb(&node).saturating_sub(before_kb);
    println!("4 clients that never read cost {grown_kb} KiB");
    assert!(grown_kb < bound_kb, "{grown_kb} KiB for clients that never read, above {bound_kb}");
}

#[test]
fn half_open_and_reset_connections_are_forgotten() {
    let site = Site::new(Config::default());
    let mut node = site.start();
    for _ in 0..200 {
        // Part of a preface, then gone.
        let (_, _) = send_raw(&site.data_address(), &PREFACE[..10], Duration::from_millis(1));
        // A request under way, then gone: the socket closes with answers unread.
        let mut client = NeverReads::connect(&site.data_address(), b"nothing");
        client.ask(20);
    }
    is_served(&site);
    until("all are forgotten", CLOSE_LIMIT, || {
        let page = Page::parse(&node.metrics()).unwrap();
        (page.sum("stateside_connections", &[]) == 0.0).then_some(())
    });
    assert_eq!(node.terminate().code(), Some(0));
    assert!(!node.output().contains("the drain took too long"), "{}", node.output());
}
