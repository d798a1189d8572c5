//! Dispatcher mode `split` and sessions, from outside: a log that is held back, a crash, cores that ask
//! each other, the command line.
//!
//! With `ack = memory` and a long `log.flush_after_ms` nothing is durable until a durable write comes: the
//! slowest log there is, and one that moves when the test says so.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    time::{Duration, Instant},
};

use stateside_e2e::{
    command_line::stateside,
    config::Config,
    exposition::Page,
    node_process::{Node, Site},
    rpc::{self, Data, Failure},
    until::until,
};
use stateside_proto::v1::{Ack, GetRequest, GetResponse, Session, UpsertRequest};
use tokio::{runtime::Runtime, task::JoinHandle};
use tonic::{Request, Status};

const HELD_BACK: &str = "log.flush_after_ms = 60000\n";
const SPLIT: &str = "partition.pipeline = [\"clock\", { stage = \"dispatcher\", mode = \"split\" }, \"log\", \"line-monitor\"]\n";
const PATIENCE: Duration = Duration::from_secs(30);
/// Falls into every partition with one of its records.
const KEYS: usize = 256;

fn site(cores: u16, ack: &'static str, more: &[&str]) -> Site {
    Site::new(Config { cores, ack, more: more.concat(), ..Config::default() })
}

fn level(node: &Node<'_>, name: &str) -> f64 {
    Page::parse(&node.metrics()).unwrap().sum(name, &[])
}

fn keys() -> Vec<String> {
    (0..KEYS).map(|number| format!("key/{number}")).collect()
}

/// Writes the value under every key.
async fn put(data: &mut Data, value: &str, ack: Ack, session: Option<Session>) -> Option<Session> {
    let entries = keys().into_iter().map(|key| rpc::entry(key, value)).collect();
    let request = UpsertRequest { entries, ack: ack.into(), session, ..Default::default() };
    let answer = data.upsert(request).await.unwrap().into_inner();
    assert!(answer.results.iter().all(|result| result.error.is_none()), "{answer:?}");
    answer.session
}

async fn get(
    data: &mut Data,
    keys: Vec<String>,
    session: Option<Session>,
    deadline: Duration,
) -> Result<GetResponse, Status> {
    let keys = keys.into_iter().map(String::into_bytes).collect();
    let mut request = Request::new(GetRequest { keys, session, ..Default::default() });
    request.set_timeout(deadline);
    Ok(data.get(request).await?.into_inner())
}

async fn values(data: &mut Data) -> Vec<String> {
    let answer = get(data, keys(), None, PATIENCE).await.unwrap();
    assert_eq!(answer.session, None, "nobody asked for tokens");
    let value = |record| String::from_utf8(record).unwrap();
    let mut values: Vec<_> = answer.records.into_iter().map(|record| value(record.value)).collect();
    values.dedup();
    values
}

#[test]
fn reads_do_not_wait_for_a_log_that_is_held_back_unless_their_session_does() {
    let site = site(2, "memory", &[HELD_BACK, SPLIT]);
    let mut node = site.start();
    let runtime = Runtime::new().unwrap();
    let mut data = runtime.block_on(rpc::data(&site.data_address())).unwrap();
    let (before, written) = runtime.block_on(async {
        let before = put(&mut data, "old", Ack::Durable, Some(Session::default())).await.unwrap();
        assert_eq!(put(&mut data, "new", Ack::Default, None).await, None);
        let written = put(&mut data, "newest", Ack::Default, Some(before.clone())).await.unwrap();
        assert_eq!((before.tokens.len(), written.tokens.len()), (16, 16), "one a partition");
        // Acknowledged, and not durable: what reads see is durable, in all partitions and at once.
        assert_eq!(values(&mut data).await, ["old"]);
        // A session that knows of no more than what is durable does not wait either.
        let answer = get(&mut data, keys(), Some(before.clone()), PATIENCE).await.unwrap();
        assert_eq!(answer.records[0].value, b"old");
        let mut tokens = answer.session.unwrap().tokens;
        tokens.sort();
        let mut expected = before.tokens.clone();
        expected.sort();
        assert_eq!(tokens, expected, "the reads saw what the durable writes left");
        (before, written)
    });
    // Two writes replaced a value of 3 and one of 6 bytes under each key.
    assert!(level(&node, "stateside_replaced_bytes") > (KEYS * 9) as f64);
    assert_eq!(level(&node, "stateside_held_reads"), 0.0);

    // One that knows of more waits, and is told in time when it is not to be.
    let status = runtime.block_on(async {
        let one = vec!["key/0".to_owned()];
        let since = Instant::now();
        let deadline = Duration::from_secs(2);
        let status = get(&mut data, one, Some(written.clone()), deadline).await.unwrap_err();
        assert!(since.elapsed() >= Duration::from_millis(1_400), "{:?}", since.elapsed());
        status
    });
    let failure = Failure::from(&status);
    assert_eq!((&*failure.code, &*failure.reason), ("UNAVAILABLE", "SESSION_BEHIND"));
    assert!(failure.retry_after.is_some());

    let mut waits: Vec<JoinHandle<_>> = keys()
        .into_iter()
        .map(|key| {
            let (mut data, session) = (data.clone(), written.clone());
            runtime.spawn(async move { get(&mut data, vec![key], Some(session), PATIENCE).await })
        })
        .collect();
    until("every read waits for its session", PATIENCE, || {
        (level(&node, "stateside_session_reads") == KEYS as f64).then_some(())
    });
    // Others do not wait with them.
    assert_eq!(runtime.block_on(values(&mut data)), ["old"]);
    // A durable write takes along what was before it, on each core.
    runtime.block_on(put(&mut data, "last", Ack::Durable, None));
    for wait in waits.drain(..) {
        let answer = runtime.block_on(wait).unwrap().unwrap();
        assert!(["newest", "last"].contains(&str::from_utf8(&answer.records[0].value).unwrap()));
    }
    assert_eq!(runtime.block_on(values(&mut data)), ["last"]);
    until("nothing is kept and nobody waits", PATIENCE, || {
        let levels = ["stateside_session_reads", "stateside_window_writes"];
        (levels.iter().all(|name| level(&node, name) == 0.0)).then_some(())
    });

    // A crash takes back what was acknowledged in memory: reads are as before, and the session notices.
    let lost =
        runtime.block_on(put(&mut data, "lost", Ack::Default, Some(before.clone()))).unwrap();
    node.kill();
    let mut node = site.start();
    runtime.block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        assert_eq!(values(&mut data).await, ["last"]);
        let one = || vec!["key/0".to_owned()];
        let short = Duration::from_millis(400);
        let status = get(&mut data, one(), Some(lost), short).await.unwrap_err();
        assert_eq!(Failure::from(&status).reason, "SESSION_BEHIND");
        // What the first session knew has survived; a token of nobody is told apart.
        assert!(get(&mut data, one(), Some(before.clone()), short).await.is_ok());
        let garbage = Session { tokens: vec![b"token".to_vec()] };
        let status = get(&mut data, one(), Some(garbage), short).await.unwrap_err();
        assert_eq!(Failure::from(&status).reason, "INVALID_ARGUMENT");
    });
    // Partitions that were removed and added again have other content: their tokens have ended.
    let ranges = stateside(&site, ["partition", "list", "-o", "json"]).json();
    for partition in ranges["partitions"].as_array().unwrap() {
        let id = partition["id"].to_string();
        let bound = |name: &str| partition[name].as_str().unwrap().to_owned();
        let end = bound("range_end");
        // The last range has no end.
        let end = if end.trim_matches(['0', 'x']).is_empty() { "" } else { &end };
        let range = format!("{}..{end}", bound("range_start"));
        stateside(&site, ["partition", "remove", &id, "--yes"]).ok();
        stateside(&site, ["partition", "add", "--id", &id, "--range", &range]).ok();
    }
    node.wait_until_all_serve();
    runtime.block_on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        let one = vec!["key/0".to_owned()];
        let status = get(&mut data, one, Some(before), PATIENCE).await.unwrap_err();
        let failure = Failure::from(&status);
        assert_eq!((&*failure.code, &*failure.reason), ("FAILED_PRECONDITION", "SESSION_ENDED"));
    });
    node.terminate();
}

/// Writers and readers of one key, with `ack = durable`: reads that wait for the disk are held, and
/// `stateside_held_reads` shows them.
#[test]
fn with_ack_durable_reads_are_held_in_one_mode_and_never_in_the_other_and_both_see_what_was_acknowledged()
 {
    for (mode, is_split) in [("", false), (SPLIT, true)] {
        let site = site(1, "durable", &[mode]);
        let node = site.start();
        let runtime = Runtime::new().unwrap();
        let data = runtime.block_on(rpc::data(&site.data_address())).unwrap();
        runtime.block_on(rpc::put(&mut data.clone(), "hot", "x")).unwrap();
        let writers: Vec<_> = (0..8)
            .map(|_| {
                let mut data = data.clone();
                runtime.spawn(async move {
                    loop {
                        let written = rpc::put(&mut data, "hot", "x").await.unwrap();
                        // Acknowledged: from here on every read sees it, or something newer.
                        let read = rpc::get(&mut data, "hot").await.unwrap();
                        assert!(read.version >= written.version, "{read:?} after {written:?}");
                    }
                })
            })
            .collect();
        let mut held = 0.0_f64;
        let looks = until("reads were held, or it was looked often", PATIENCE, || {
            held = held.max(level(&node, "stateside_held_reads"));
            let read = Page::parse(&node.metrics()).unwrap();
            let reads = read.sum("stateside_requests_total", &[("method", "Get")]);
            ((is_split && reads > 1_000.0) || held > 0.0).then_some(reads)
        });
        assert_eq!(held > 0.0, !is_split, "{held} held of {looks} reads");
        for writer in writers {
            assert!(!writer.is_finished(), "{:?}", runtime.block_on(writer));
            writer.abort();
        }
    }
}

#[test]
fn a_session_goes_on_from_command_to_command() {
    let site = site(1, "memory", &[HELD_BACK, SPLIT]);
    let mut node = site.start();
    let run = |arguments: &[&str]| stateside(&site, arguments);
    let with_file =
        |arguments: &[&str]| run(&[arguments, &["--session", "mine", "--timeout", "1s"]].concat());
    with_file(&["upsert", "k", "v"]).ok();
    let tokens = fs::read_to_string(site.folder().join("mine")).unwrap();
    assert!(tokens.lines().count() == 1 && tokens.starts_with("01"), "{tokens}");
    assert_eq!(run(&["get", "k"]).code, Some(4), "acknowledged, not durable, not seen");
    let arguments = ["get", "k", "-o", "json"];
    let behind = with_file(&arguments);
    assert!(behind.stderr.contains("SESSION_BEHIND"), "{behind:?}");
    run(&["upsert", "other", "v", "--ack", "durable"]).ok();
    assert_eq!(with_file(&["get", "k"]).ok(), "v");
    with_file(&["remove", "k"]).ok();
    assert_eq!(run(&["get", "k"]).ok(), "v", "the removal is not durable");
    run(&["upsert", "other", "w", "--ack", "durable"]).ok();
    assert_eq!(with_file(&["get", "k"]).code, Some(4));

    fs::write(site.folder().join("mine"), "no token\n").unwrap();
    with_file(&["get", "k"]).failed_clearly(&["the session mine", "hexadecimal"]);
    node.terminate();
}

#[test]
fn a_mode_that_is_none_is_told_with_its_place() {
    let site = Site::new(Config::default());
    let path = site.folder().join("wrong.toml");
    fs::write(&path, SPLIT.replace("split", "fast")).unwrap();
    let checked = stateside(&site, ["config", "check", "--config", path.to_str().unwrap()]);
    checked.failed_clearly(&["wrong.toml:1", "mode", "\"linearizable\" or \"split\""]);
}
