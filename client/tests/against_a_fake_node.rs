//! The client against a node that misbehaves on demand.

#![allow(clippy::unwrap_used, reason = "a failed step fails its test")]

mod fake_node;

use std::{sync::atomic::Ordering, time::Duration};

use fake_node::{FakeNode, Script};
use stateside_client::{
    Client, Error, Options, ReadOptions, Reason, Removal, RequestId, Upsert, WriteOptions,
};
use stateside_router::key_hash;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixListener},
};

const HALF: u64 = 1 << 63;

fn options() -> Options {
    Options {
        backoff_initial: Duration::from_millis(1),
        deadline: Duration::from_secs(5),
        jitter_seed: 1,
        ..Options::default()
    }
}

fn unrouted() -> Options {
    Options { routing: false, ..options() }
}

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("key/{i}")).collect()
}

fn entries(keys: &[String]) -> Vec<Upsert<'_>> {
    keys.iter().map(|key| Upsert::new(key, key)).collect()
}

/// A node with a shared endpoint and two cores, each with half of the hashes.
struct Cores {
    shared: FakeNode,
    cores: [FakeNode; 2],
}

fn cores() -> Cores {
    let all = Cores { shared: FakeNode::start(), cores: [FakeNode::start(), FakeNode::start()] };
    let [low, high] = [&all.cores[0], &all.cores[1]].map(|core| core.address.port());
    for node in [&all.shared, &all.cores[0], &all.cores[1]] {
        node.state.set_topology("node", &[(0, HALF, low), (HALF, 0, high)]);
    }
    all
}

async fn connect(node: &FakeNode, options: Options) -> Client {
    Client::connect(&node.endpoint(), options).await.unwrap()
}

#[tokio::test]
async fn each_key_goes_to_its_core_and_results_come_back_in_order() {
    let node = cores();
    let client = connect(&node.shared, options()).await;
    let keys = keys(200);
    let written = client.upsert(&entries(&keys), &WriteOptions::default()).await.unwrap();
    assert_eq!(written.all().unwrap().len(), 200);
    for (core, low) in node.cores.iter().zip([true, false]) {
        let calls = core.state.calls();
        assert_eq!(calls.len(), 1, "one request per core");
        assert!(calls[0].iter().all(|key| (key_hash(key).0 < HALF) == low));
    }
    assert!(node.shared.state.calls().is_empty());

    let mut asked = keys.clone();
    asked.insert(7, "absent".to_owned());
    let records = client.get(&asked, &ReadOptions::default()).await.unwrap().all().unwrap();
    for (key, record) in asked.iter().zip(records) {
        assert_eq!(record.map(|r| r.value), (key != "absent").then(|| key.clone().into_bytes()));
    }
    let gone = [Removal::new(&keys[0]), Removal::new(&keys[1])];
    client.remove(&gone, &WriteOptions::default()).await.unwrap().all().unwrap();
    let read = ReadOptions::default();
    assert_eq!(client.get_one(&keys[0], &read).await.unwrap(), None);
    assert!(client.get_one(&keys[2], &read).await.unwrap().is_some());
}

#[tokio::test]
async fn a_routing_key_places_all_entries_by_its_own_hash() {
    let node = cores();
    let client = connect(&node.shared, options()).await;
    let routing_key = b"cart".to_vec();
    let home = usize::from(key_hash(&routing_key).0 >= HALF);
    let write = WriteOptions { routing_key: Some(routing_key.clone()), ..WriteOptions::default() };
    let keys = keys(50);
    client.upsert(&entries(&keys), &write).await.unwrap().all().unwrap();
    assert_eq!(node.cores[home].state.calls()[0].len(), 50);
    assert!(node.cores[1 - home].state.calls().is_empty());
}

#[tokio::test]
async fn bad_node_leads_to_one_topology_call_however_many_calls_got_it() {
    let node = cores();
    let client = connect(&node.shared, options()).await;
    let before = node.shared.state.topology_calls.load(Ordering::Relaxed);
    // The partitions change places; every core refuses what it no longer owns.
    let [low, high] = [&node.cores[0], &node.cores[1]].map(|core| core.address.port());
    node.shared.state.set_topology("node", &[(0, HALF, high), (HALF, 0, low)]);
    for _ in 0..16 {
        node.cores[0].state.script(Script::Refuse(Reason::BadNode));
    }
    let key = keys(100).into_iter().find(|key| key_hash(key.as_bytes()).0 < HALF).unwrap();
    let read = ReadOptions::default();
    let calls = (0..16).map(|_| client.get_one(&key, &read));
    for result in futures_util::future::join_all(calls).await {
        assert_eq!(result.unwrap(), None);
    }
    let after = node.shared.state.topology_calls.load(Ordering::Relaxed);
    assert_eq!(after - before, 1, "refreshes are shared");
    assert_eq!(node.cores[1].state.calls().len(), 16, "all went to the new owner");
}

#[tokio::test]
async fn a_key_that_nobody_owns_ends_in_bad_node() {
    let node = FakeNode::start();
    node.state.set_topology("node", &[]);
    let client = connect(&node, options()).await;
    for _ in 0..8 {
        node.state.script(Script::Refuse(Reason::BadNode));
    }
    let error = client.upsert_one(Upsert::new("k", "v"), &WriteOptions::default()).await;
    assert_eq!(error.unwrap_err().reason(), Some(Reason::BadNode));
    assert_eq!(node.state.calls().len(), 3, "two more looks at the topology, then the answer");
}

#[tokio::test]
async fn refused_entries_are_retried_alone_and_keep_their_places() {
    let node = FakeNode::start();
    let client = connect(&node, unrouted()).await;
    node.state.script(Script::RefuseKeys(b"key/1", Reason::Overloaded));
    node.state.script(Script::RefuseKeys(b"key/11", Reason::ConditionFailed));
    let keys = keys(20);
    let results = client.upsert(&entries(&keys), &WriteOptions::default()).await.unwrap();
    assert_eq!(node.state.calls()[1].len(), 11, "key/1 and key/10 to key/19");
    for (index, result) in results.into_iter().enumerate() {
        let reason = result.err().and_then(|error| error.reason());
        assert_eq!(reason, (index == 11).then_some(Reason::ConditionFailed));
    }
    assert_eq!(node.state.records.lock().unwrap().len(), 19);
}

#[tokio::test]
async fn a_refusal_of_the_whole_batch_is_the_calls_error_and_what_will_not_pass_is_not_retried() {
    let node = FakeNode::start();
    let client = connect(&node, unrouted()).await;
    node.state.script(Script::Refuse(Reason::DiskFull));
    let keys = keys(3);
    let error = client.upsert(&entries(&keys), &WriteOptions::default()).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::DiskFull));
    assert_eq!(node.state.calls().len(), 1);
}

#[tokio::test]
async fn retries_end_at_their_limit() {
    let node = FakeNode::start();
    let client = connect(&node, Options { retries: 2, ..unrouted() }).await;
    for _ in 0..9 {
        node.state.script(Script::Refuse(Reason::Overloaded));
    }
    let error = client.get_one("k", &ReadOptions::default()).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::Overloaded));
    assert_eq!(node.state.calls().len(), 3);
}

#[tokio::test]
async fn a_write_whose_connection_dies_has_an_unknown_outcome_and_is_not_sent_again() {
    let node = FakeNode::start();
    let client = connect(&node, unrouted()).await;
    node.state.script(Script::ApplyAndDie);
    let write = WriteOptions::default();
    let restart = async {
        let (address, state) = node.die_when_told().await;
        FakeNode::start_at(address, state)
    };
    let (written, node) = tokio::join!(client.upsert_one(Upsert::new("k", "v"), &write), restart);
    assert!(matches!(written, Err(Error::OutcomeUnknown { .. })), "{written:?}");
    assert_eq!(node.state.calls().len(), 1);
    assert_eq!(node.state.value(b"k"), Some(b"v".to_vec()), "it was applied, as it happens");
    // The next call makes a connection of its own.
    client.upsert_one(Upsert::new("k", "w"), &write).await.unwrap();
}

#[tokio::test]
async fn reads_and_writes_marked_safe_survive_a_connection_that_dies() {
    let node = FakeNode::start();
    let patient = Options { retry_unknown_writes: true, retries: 50, ..unrouted() };
    let client = connect(&node, patient).await;
    let write = WriteOptions::default();
    node.state.script(Script::ApplyAndDie);
    let restart = async {
        let (address, state) = node.die_when_told().await;
        FakeNode::start_at(address, state)
    };
    let (written, node) = tokio::join!(client.upsert_one(Upsert::new("k", "v"), &write), restart);
    assert_eq!(written.unwrap().version.0, 2, "applied twice, as asked");

    node.state.script(Script::ApplyAndDie);
    let restart = async {
        let (address, state) = node.die_when_told().await;
        FakeNode::start_at(address, state)
    };
    let read = ReadOptions::default();
    let (record, node) = tokio::join!(client.get_one("k", &read), restart);
    assert_eq!(record.unwrap().unwrap().value, b"v");

    node.state.script(Script::ApplyAndDie);
    let conditional = Upsert::new("k", "x").if_absent();
    let (written, _) = tokio::join!(client.upsert_one(conditional, &write), node.die_when_told());
    assert!(matches!(written, Err(Error::OutcomeUnknown { .. })), "{written:?}");
}

#[tokio::test]
async fn under_ids_every_attempt_has_the_id_of_the_first_and_conditions_are_no_hindrance() {
    let node = FakeNode::start();
    let named = Options { request_ids: true, retries: 50, ..unrouted() };
    let client = connect(&node, named).await;
    let write = WriteOptions::default();
    node.state.script(Script::ApplyAndDie);
    let restart = async {
        let (address, state) = node.die_when_told().await;
        FakeNode::start_at(address, state)
    };
    let conditional = Upsert::new("k", "v").if_absent();
    let (written, node) = tokio::join!(client.upsert_one(conditional, &write), restart);
    written.unwrap();
    node.state.script(Script::Refuse(Reason::LogUnavailable));
    node.state.script(Script::Refuse(Reason::Overloaded));
    client.upsert_one(conditional, &write).await.unwrap();
    let given = RequestId { client: b"me".to_vec(), number: 70, settled: 69 };
    let write = WriteOptions { request_id: Some(given), ..WriteOptions::default() };
    client.upsert_one(conditional, &write).await.unwrap();

    let ids: Vec<_> = node.state.ids.lock().unwrap().drain(..).map(Option::unwrap).collect();
    let numbers: Vec<_> = ids.iter().map(|id| (id.number, id.settled)).collect();
    assert_eq!(numbers, [(1, 1), (1, 1), (2, 2), (2, 2), (2, 2), (70, 69)]);
    assert!(ids[..5].iter().all(|id| id.client == ids[0].client && id.client.len() == 16));
    assert_eq!(ids[5].client, b"me");

    // A name that no node takes, and a batch that would have to be split, are not sent.
    let wrong = RequestId { client: Vec::new(), number: 1, settled: 0 };
    let write = WriteOptions { request_id: Some(wrong), ..WriteOptions::default() };
    let refused = client.upsert_one(conditional, &write).await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::InvalidRequestId));
    let long = vec![0; 600 << 10];
    let large = [Upsert::new("a", &long), Upsert::new("b", &long)];
    let given = RequestId { client: b"me".to_vec(), number: 71, settled: 0 };
    let write = WriteOptions { request_id: Some(given), ..WriteOptions::default() };
    let refused = client.upsert(&large, &write).await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::BatchTooLarge));
    assert!(node.state.ids.lock().unwrap().is_empty());
    // The client's own ids are one for each part.
    client.upsert(&large, &WriteOptions::default()).await.unwrap().all().unwrap();
    let ids: Vec<_> = node.state.ids.lock().unwrap().drain(..).map(Option::unwrap).collect();
    let mut numbers: Vec<_> = ids.iter().map(|id| id.number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [3, 4]);
}

#[tokio::test]
async fn a_later_harmless_failure_does_not_hide_that_a_write_may_have_been_applied() {
    let node = FakeNode::start();
    let client = connect(&node, Options { retry_unknown_writes: true, ..unrouted() }).await;
    node.state.script(Script::ApplyAndDie);
    let write = WriteOptions::default();
    let (written, _) = tokio::join!(
        client.upsert_one(Upsert::new("k", "v"), &write),
        // Not restarted: all retries end in "connection refused", which alone would say "not applied".
        node.die_when_told()
    );
    assert!(matches!(written, Err(Error::OutcomeUnknown { .. })), "{written:?}");
}

#[tokio::test]
async fn a_node_that_restarted_while_idle_is_reconnected_without_an_error() {
    let node = cores();
    let client = connect(&node.shared, options()).await;
    let (write, keys) = (WriteOptions::default(), keys(20));
    client.upsert(&entries(&keys), &write).await.unwrap().all().unwrap();
    let again = node.cores.map(|core| {
        let (address, state) = core.die();
        FakeNode::start_at(address, state)
    });
    // Reads first: whether a dead connection is noticed before a write is sent on it is chance.
    client.get(&keys, &ReadOptions::default()).await.unwrap().all().unwrap();
    client.upsert(&entries(&keys), &write).await.unwrap().all().unwrap();
    drop(again);
}

#[tokio::test]
async fn no_node_is_unreachable_at_once() {
    let node = FakeNode::start();
    let (address, _) = node.die();
    let error = Client::connect(&address.to_string(), options()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert_eq!(error.to_string(), format!("cannot reach {address}: connection refused"));
}

#[tokio::test]
async fn a_core_port_that_is_closed_or_another_nodes_is_passed_over() {
    for stranger in [false, true] {
        let node = cores();
        let client = connect(&node.shared, options()).await;
        let [low, high] = node.cores;
        if stranger {
            low.state.set_topology("somebody else", &[(0, 0, low.address.port())]);
        }
        let low = if stranger {
            Some(low)
        } else {
            drop(low.die());
            None
        };
        let keys = keys(40);
        let written = client.upsert(&entries(&keys), &WriteOptions::default()).await.unwrap();
        assert_eq!(written.all().unwrap().len(), 40);
        for key in &keys {
            client.get_one(key, &ReadOptions::default()).await.unwrap();
        }
        let asked = node.shared.state.topology_calls.load(Ordering::Relaxed);
        assert!(asked <= 2, "one more look at the topology, not one for each call: {asked}");
        let is_low = |key: &Vec<u8>| key_hash(key).0 < HALF;
        assert!(node.shared.state.calls().concat().iter().all(is_low));
        assert!(!node.shared.state.calls().is_empty());
        assert!(!high.state.calls().concat().iter().any(is_low));
        assert!(low.is_none_or(|low| low.state.calls().is_empty()), "a stranger gets no writes");
    }
}

#[tokio::test]
async fn a_silent_node_ends_in_unknown_for_writes_and_deadline_for_reads_and_is_told_the_time() {
    let node = FakeNode::start();
    let client = connect(&node, unrouted()).await;
    let deadline = Some(Duration::from_millis(100));
    node.state.script(Script::ApplyAndHang);
    let write = WriteOptions { deadline, ..WriteOptions::default() };
    let error = client.upsert_one(Upsert::new("k", "v"), &write).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    node.state.script(Script::ApplyAndHang);
    let read = ReadOptions { deadline, ..ReadOptions::default() };
    let error = client.get_one("k", &read).await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error}");
    assert!(node.state.timeouts.lock().unwrap().iter().all(Option::is_some));
}

#[tokio::test]
async fn keys_whose_answer_is_too_large_are_asked_for_in_smaller_groups() {
    let node = FakeNode::start();
    node.state.records_max.store(3, Ordering::Relaxed);
    let client = connect(&node, unrouted()).await;
    let keys = keys(100);
    client.upsert(&entries(&keys), &WriteOptions::default()).await.unwrap().all().unwrap();
    let records = client.get(&keys, &ReadOptions::default()).await.unwrap().all().unwrap();
    for (key, record) in keys.iter().zip(records) {
        assert_eq!(record.unwrap().value, key.as_bytes());
    }
}

#[tokio::test]
async fn a_batch_above_the_limits_is_cut_unless_it_is_atomic_or_names_a_key_twice() {
    let node = FakeNode::start();
    let client = connect(&node, unrouted()).await;
    let keys = keys(30);
    let value = vec![b'v'; 100 << 10];
    let mut large: Vec<_> = keys.iter().map(|key| Upsert::new(key, &value)).collect();
    client.upsert(&large, &WriteOptions::default()).await.unwrap().all().unwrap();
    assert_eq!(node.state.calls().len(), 3, "3 MB in requests of 1 MiB");

    let atomic = WriteOptions { atomic: true, ..WriteOptions::default() };
    let error = client.upsert(&large, &atomic).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::BatchTooLarge));
    large.push(Upsert::new(&keys[0], "again"));
    let error = client.upsert(&large, &WriteOptions::default()).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::DuplicateKey));
    assert_eq!(node.state.calls().len(), 3, "neither was sent");
}

#[tokio::test]
async fn an_atomic_batch_over_partitions_is_left_to_the_node_to_refuse() {
    let node = cores();
    let client = connect(&node.shared, options()).await;
    node.shared.state.script(Script::Refuse(Reason::AtomicSpansPartitions));
    let atomic = WriteOptions { atomic: true, ..WriteOptions::default() };
    let error = client.upsert(&entries(&keys(10)), &atomic).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::AtomicSpansPartitions));
}

#[tokio::test]
async fn calls_beyond_the_limit_wait_their_turn_until_their_deadline() {
    let node = FakeNode::start();
    let client = connect(&node, Options { calls_max: 1, ..unrouted() }).await;
    node.state.script(Script::ApplyAndHang);
    let deadline = Some(Duration::from_millis(200));
    let first = WriteOptions { deadline, ..WriteOptions::default() };
    let second = WriteOptions { deadline: Some(Duration::from_millis(100)), ..first.clone() };
    let (first, second) = tokio::join!(
        client.upsert_one(Upsert::new("a", "v"), &first),
        client.upsert_one(Upsert::new("b", "v"), &second)
    );
    assert!(matches!(first, Err(Error::OutcomeUnknown { .. })), "{first:?}");
    assert!(matches!(second, Err(Error::DeadlineExceeded { .. })), "{second:?}");
    assert_eq!(node.state.value(b"b"), None, "it was never sent");
}

/// Answers every connection with fixed bytes, then closes it.
async fn babble(bytes: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut preface = [0; 24];
            drop(stream.read_exact(&mut preface).await);
            drop(stream.write_all(bytes).await);
            drop(stream.shutdown().await);
        }
    });
    address
}

#[tokio::test]
async fn what_is_no_node_is_told_as_such() {
    for bytes in [
        &b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"[..],
        b"SSH-2.0-OpenSSH_9.6\r\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    ] {
        let error = Client::connect(&babble(bytes).await, options()).await.unwrap_err();
        assert!(error.to_string().contains("Stateside node"), "{error}");
    }
}

#[tokio::test]
async fn a_unix_socket_serves_as_an_endpoint() {
    let node = FakeNode::start();
    node.state.set_topology("node", &[(0, 0, 9)]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stateside.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let target = node.address;
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = tokio::net::TcpStream::connect(target).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    let client = Client::connect(&format!("unix:{}", path.display()), options()).await.unwrap();
    let write = WriteOptions::default();
    client.upsert_one(Upsert::new("k", "v"), &write).await.unwrap();
    assert_eq!(node.state.value(b"k"), Some(b"v".to_vec()));
}

/// Takes one HTTP/2 call on its first connection and answers it with these frames; later connections
/// lead to `target`.
async fn refuse_first(frames: &'static [u8], target: std::net::SocketAddr) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
            first.read_exact(&mut [0; 24]).await.unwrap();
            first.write_all(&SETTINGS).await.unwrap();
            loop {
                let mut head = [0; 9];
                first.read_exact(&mut head).await.unwrap();
                let length = usize::from(head[1]) << 8 | usize::from(head[2]);
                first.read_exact(&mut vec![0; length]).await.unwrap();
                if head[3] == 1 {
                    // HEADERS: the call has begun.
                    first.write_all(frames).await.unwrap();
                }
            }
        });
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = tokio::net::TcpStream::connect(target).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    address
}

/// HTTP/2 has two ways to say that a call was not looked at: GOAWAY with a last stream below the
/// call's, and REFUSED_STREAM. A node that drains uses the first; a write that met it is safe to send again.
#[tokio::test]
async fn a_write_that_the_node_says_it_did_not_look_at_is_sent_again() {
    const GOAWAY_LAST_0: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const REFUSED_STREAM_1: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 7];
    const CANCEL_1: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8];
    for (frames, safe) in [(GOAWAY_LAST_0, true), (REFUSED_STREAM_1, true), (CANCEL_1, false)] {
        let node = FakeNode::start();
        let address = refuse_first(frames, node.address).await;
        let client = Client::connect(&address, unrouted()).await.unwrap();
        let entry = Upsert::new("k", "v").if_absent();
        let written = client.upsert_one(entry, &WriteOptions::default()).await;
        if safe {
            written.unwrap();
            assert_eq!(node.state.calls().len(), 1);
        } else {
            assert!(matches!(written, Err(Error::OutcomeUnknown { .. })), "{written:?}");
        }
    }
}
