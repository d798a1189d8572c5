//! Ordered scans of the real binary: every store that orders its keys, through gRPC and the command
//! line, across cores and restarts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use stateside_e2e::{
    command_line::stateside,
    config::{Config, Store},
    node_process::Site,
    rpc::{self, Data},
};
use stateside_proto::v1::{
    RemoveEntry, RemoveRequest, ScanConsistency, ScanRequest, ScanResponse, UpsertEntry,
    UpsertRequest,
};
use tokio::runtime::Runtime;

const RECORDS: usize = 2_500;
/// Written through the shared port: about half of them belong to the other core.
const ROUTING_KEYS: [&[u8]; 4] = [b"one", b"two", b"three", b"four"];

fn key(routing_key: &[u8], number: usize) -> Vec<u8> {
    [routing_key, format!("/{number:05}").as_bytes()].concat()
}

async fn fill(data: &mut Data) {
    for routing_key in ROUTING_KEYS {
        for first in (0..RECORDS).step_by(500) {
            // Backwards, so that their order is none that they were written in.
            let entries = (first..first + 500).rev().map(|number| UpsertEntry {
                key: key(routing_key, number),
                value: number.to_string().into_bytes(),
                ..UpsertEntry::default()
            });
            let request = UpsertRequest {
                entries: entries.collect(),
                routing_key: routing_key.to_vec(),
                ..UpsertRequest::default()
            };
            data.upsert(request).await.unwrap();
        }
    }
}

fn request(routing_key: &[u8]) -> ScanRequest {
    ScanRequest {
        routing_key: routing_key.to_vec(),
        prefix: [routing_key, b"/"].concat(),
        ..ScanRequest::default()
    }
}

/// Follows a scan to its end.
async fn whole(data: &mut Data, mut request: ScanRequest) -> (Vec<(Vec<u8>, Vec<u8>)>, u64) {
    let (mut records, mut pages) = (Vec::new(), 0);
    let mut sequence = None;
    loop {
        let page: ScanResponse = data.scan(request.clone()).await.unwrap().into_inner();
        assert_eq!(*sequence.get_or_insert(page.sequence), page.sequence, "one sequence");
        assert!(page.records.iter().all(|record| record.found && record.version <= page.sequence));
        records.extend(page.records.into_iter().map(|record| (record.key, record.value)));
        pages += 1;
        if page.continuation.is_empty() {
            return (records, pages);
        }
        request.continuation = page.continuation;
    }
}

fn expected(routing_key: &[u8], numbers: std::ops::Range<usize>) -> Vec<(Vec<u8>, Vec<u8>)> {
    numbers.map(|number| (key(routing_key, number), number.to_string().into_bytes())).collect()
}

#[test]
fn every_ordered_store_scans_in_order_and_as_of_one_sequence() {
    for store in Store::ORDERED {
        let site = Site::new(Config { cores: 2, store, ..Config::default() });
        let mut node = site.start();
        let runtime = Runtime::new().unwrap();
        runtime.block_on(async {
            let mut data = rpc::data(&site.data_address()).await.unwrap();
            fill(&mut data).await;
            for routing_key in ROUTING_KEYS {
                let (records, pages) = whole(&mut data, request(routing_key)).await;
                assert_eq!(records, expected(routing_key, 0..RECORDS), "{store:?}");
                assert!(pages >= 3, "{store:?}: {pages} pages of 1,000");
                let part = ScanRequest {
                    start: key(routing_key, 700),
                    end: key(routing_key, 750),
                    limit: 7,
                    ..request(routing_key)
                };
                let (records, pages) = whole(&mut data, part).await;
                assert_eq!(records, expected(routing_key, 700..750), "{store:?}");
                assert!(pages >= 8, "{store:?}: {pages} pages of 7");
            }
            what_moves_ends_a_scan(&mut data, store).await;
        });
        // What only log and store know by then is scanned all the same.
        node.kill();
        drop(node);
        let _node = site.start();
        runtime.block_on(async {
            let mut data = rpc::data(&site.data_address()).await.unwrap();
            let (records, _) = whole(&mut data, request(b"two")).await;
            assert_eq!(records, expected(b"two", 0..RECORDS), "{store:?}, after kill -9");
        });
        on_the_command_line(&site, store);
    }
}

async fn what_moves_ends_a_scan(data: &mut Data, store: Store) {
    let first = data.scan(request(b"one")).await.unwrap().into_inner();
    let next = ScanRequest { continuation: first.continuation, ..request(b"one") };
    let write = |number: usize| UpsertRequest {
        entries: vec![UpsertEntry {
            key: key(b"one", number),
            value: number.to_string().into_bytes(),
            ..UpsertEntry::default()
        }],
        routing_key: b"one".to_vec(),
        ..UpsertRequest::default()
    };
    // Behind the scan, then ahead of it.
    data.upsert(write(5)).await.unwrap();
    let second = data.scan(next.clone()).await.unwrap().into_inner();
    assert_eq!((second.sequence, second.records.len()), (first.sequence, 1_000), "{store:?}");
    data.upsert(write(1_500)).await.unwrap();
    let moved = data.scan(next.clone()).await.unwrap_err();
    assert_eq!(rpc::reason(&moved), "SCAN_MOVED", "{store:?}: {moved}");
    assert_eq!(moved.code(), tonic::Code::Aborted);
    let each = ScanRequest { consistency: ScanConsistency::ScanEachPage.into(), ..next.clone() };
    let page = data.scan(each).await.unwrap().into_inner();
    assert!(page.sequence > first.sequence && page.records.len() == 1_000, "{store:?}");

    let remove = RemoveRequest {
        entries: vec![RemoveEntry { key: b"one/none".to_vec(), if_version: None }],
        routing_key: b"one".to_vec(),
        ..RemoveRequest::default()
    };
    let first = data.scan(request(b"one")).await.unwrap().into_inner();
    data.remove(remove).await.unwrap();
    let next = ScanRequest { continuation: first.continuation, ..request(b"one") };
    let moved = data.scan(next.clone()).await.unwrap_err();
    assert_eq!(rpc::reason(&moved), "SCAN_MOVED", "{store:?}: {moved}");

    let foreign = ScanRequest { prefix: b"zzz".to_vec(), ..next };
    let refused = data.scan(foreign).await.unwrap_err();
    assert_eq!(rpc::reason(&refused), "INVALID_ARGUMENT", "{refused}");
    let nowhere = ScanRequest { partition: Some(4_000_000), ..ScanRequest::default() };
    let refused = data.scan(nowhere).await.unwrap_err();
    assert_eq!(rpc::reason(&refused), "BAD_NODE", "{refused}");
}

fn on_the_command_line(site: &Site, store: Store) {
    let printed = stateside(site, ["scan", "--prefix", "three/0001", "-o", "json"]);
    let keys: Vec<String> = printed
        .ok()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|record| record["key"].as_str().unwrap().to_owned())
        .collect();
    let expected: Vec<String> = (10..20).map(|number| format!("three/{number:05}")).collect();
    assert_eq!(keys, expected, "{store:?}");
    let limited = ["scan", "--routing-key", "four", "--start", "four/00100", "--limit", "1500"];
    let ran = stateside(site, limited);
    let printed = ran.ok();
    assert_eq!(printed.lines().count(), 1 + 1_500, "{store:?}");
    assert!(printed.lines().nth(1).unwrap().starts_with("four/00100"), "{store:?}");
}

#[test]
fn a_store_without_order_says_so() {
    let site = Site::new(Config::default());
    let _node = site.start();
    Runtime::new().unwrap().block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        let refused = data.scan(request(b"one")).await.unwrap_err();
        assert_eq!(rpc::reason(&refused), "STORE_NOT_ORDERED", "{refused}");
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    });
}
