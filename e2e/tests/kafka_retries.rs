//! Writes with an id over a log in a real Kafka: kills of the node and of the broker leave outcomes unknown, and a
//! retry settles each of them. What is written is adding, so anything that was executed twice, or not at
//! all, shows in a number.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use stateside_e2e::{
    command_line::stateside,
    random::Random,
    rpc::{self, Data, Failure},
    until::until,
};
use stateside_proto::v1::{RequestId, UpdateEntry, UpdateRequest, update_entry::Operator};
use tonic::Status;

use crate::kafka::{broker, connect, runtime, site, started};

/// A request outlasts a broker that starts and a node that replays.
const LIMIT: Duration = Duration::from_secs(120);
const CLIENTS: usize = 16;
const ROUNDS: u32 = 3;
/// Counters that all clients add to.
const COUNTERS: u64 = 4;
/// Requests that a client sends again now and then although it has their answers.
const REPEATED: u64 = 6;
/// By which an answer's timestamp is before its attempt was sent, if an earlier attempt was executed.
const CLOCK_TOLERANCE_MS: u64 = 20;

/// Version, timestamp and new value; or the stable part of a refusal: reason and message.
type Answer = Result<(u64, u64, Vec<u8>), (String, String)>;

/// What clients saw, all together.
#[derive(Default)]
struct Seen {
    answered: AtomicU64,
    /// Attempts that may have been executed, as far as their client knows.
    unknown: AtomicU64,
    /// Of these, writes that the log in Kafka did not acknowledge in time.
    unacknowledged: AtomicU64,
    /// Answers to a write that an earlier attempt had executed.
    settled: AtomicU64,
}

/// A client that numbers its requests and sends each until it has an answer.
struct Client {
    name: String,
    address: String,
    connection: Option<Data>,
    number: u64,
    answers: Vec<(UpdateRequest, Answer)>,
    seen: Arc<Seen>,
}

impl Client {
    /// Adds 1 to a counter that others add to as well; every fifth request is refused for what is there.
    fn request(&self, number: u64) -> UpdateRequest {
        let entry = if number.is_multiple_of(5) {
            UpdateEntry { key: b"there".into(), if_absent: true, ..UpdateEntry::default() }
        } else {
            let key = format!("counter/{}", number % COUNTERS).into_bytes();
            UpdateEntry { key, ..UpdateEntry::default() }
        };
        let client = self.name.clone().into_bytes();
        let settled = number.saturating_sub(REPEATED);
        UpdateRequest {
            entries: vec![UpdateEntry { operator: Some(Operator::Add(1)), ..entry }],
            return_values: true,
            request_id: Some(RequestId { client, number, settled }),
            ..UpdateRequest::default()
        }
    }

    /// Sends until there is an answer: over new connections, to whichever process answers.
    async fn answer(&mut self, request: &UpdateRequest) -> Answer {
        let until = tokio::time::Instant::now() + LIMIT;
        let mut in_doubt = false;
        loop {
            assert!(tokio::time::Instant::now() < until, "{}: no answer", self.name);
            if self.connection.is_none() {
                self.connection = rpc::data(&self.address).await.ok();
            }
            let Some(connection) = &mut self.connection else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            let sent_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
            match connection.update(request.clone()).await {
                Ok(response) => {
                    let result = response.into_inner().results.remove(0);
                    assert_eq!(result.error, None);
                    if in_doubt && (result.timestamp >> 16) + CLOCK_TOLERANCE_MS < sent_ms {
                        self.seen.settled.fetch_add(1, Ordering::SeqCst);
                    }
                    return Ok((result.version, result.timestamp, result.value.unwrap()));
                }
                Err(status) => match self.passing(&status) {
                    None => return Err((rpc::reason(&status), status.message().to_owned())),
                    Some(pause) => {
                        in_doubt = true;
                        tokio::time::sleep(pause).await;
                    }
                },
            }
        }
    }

    /// How long to wait before the next attempt, if one makes sense.
    fn passing(&mut self, status: &Status) -> Option<Duration> {
        let failure = Failure::from(status);
        match failure.reason.as_str() {
            // The transport's: the connection is gone.
            "" => {
                self.connection = None;
                self.seen.unknown.fetch_add(1, Ordering::SeqCst);
            }
            "LOG_UNAVAILABLE" if failure.message.contains("its outcome is unknown") => {
                self.seen.unknown.fetch_add(1, Ordering::SeqCst);
                self.seen.unacknowledged.fetch_add(1, Ordering::SeqCst);
            }
            "LOG_UNAVAILABLE" | "PARTITION_STARTING" | "SHUTTING_DOWN" | "OVERLOADED" => {}
            _ => return None,
        }
        Some(failure.retry_after.unwrap_or(Duration::from_millis(5)))
    }

    async fn next(&mut self) {
        self.number += 1;
        let request = self.request(self.number);
        let answer = self.answer(&request).await;
        if let Err((reason, message)) = &answer {
            assert_eq!(reason, "CONDITION_FAILED", "{message}");
        }
        assert_eq!(answer.is_err(), self.number.is_multiple_of(5), "{answer:?}");
        self.answers.push((request, answer));
        self.seen.answered.fetch_add(1, Ordering::SeqCst);
    }

    /// Sends the last ones again.
    async fn repeat(&mut self) {
        let from = self.answers.len().saturating_sub(REPEATED as usize);
        let last = self.answers[from..].to_vec();
        for (request, answer) in last {
            let number = request.request_id.as_ref().unwrap().number;
            let again = self.answer(&request).await;
            assert_eq!(again, answer, "request {number} of {}", self.name);
        }
    }
}

#[test]
fn kafka_each_add_of_unknown_outcome_counts_once_when_it_is_sent_again_under_its_id() {
    let folder = tempfile::tempdir().unwrap();
    let test = "kafka_each_add_of_unknown_outcome_counts_once";
    let Some(mut broker) = broker(test, folder.path()) else { return };
    let seed = Random::fresh_seed();
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let owner = site(&broker, "a", "kafka.ack_timeout_ms = 500\n");
    let runtime = runtime();
    let mut node = started(&owner);
    let mut data = connect(&runtime, &owner);
    runtime.block_on(rpc::put(&mut data, "there", "0")).unwrap();

    let (seen, stop) = (Arc::<Seen>::default(), Arc::<AtomicBool>::default());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|at| {
            let mut client = Client {
                name: format!("client {at}"),
                address: owner.data_address(),
                connection: None,
                number: 0,
                answers: Vec::new(),
                seen: Arc::clone(&seen),
            };
            let stop = Arc::clone(&stop);
            runtime.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    client.next().await;
                    if client.number % 23 == at as u64 {
                        client.repeat().await;
                    }
                }
                client
            })
        })
        .collect();
    let until_more = |count: &AtomicU64, more: u64, what: &str| {
        let target = count.load(Ordering::SeqCst) + more;
        until(what, LIMIT, || (count.load(Ordering::SeqCst) >= target).then_some(()));
    };
    for round in 0..ROUNDS {
        until_more(&seen.answered, 100 + random.below(400), "requests are answered");
        node.kill();
        drop(node);
        node = started(&owner);
        until_more(&seen.answered, 100 + random.below(400), "requests are answered");
        broker.kill();
        until_more(&seen.unacknowledged, 1, "a write is not acknowledged in time");
        if round == 1 {
            // What the node still holds for the broker dies with it; what the broker has is replayed.
            node.kill();
            broker.start().unwrap();
            drop(node);
            node = started(&owner);
        } else {
            broker.start().unwrap();
        }
    }
    until_more(&seen.answered, 200, "requests are answered");
    stop.store(true, Ordering::SeqCst);
    let mut clients: Vec<_> =
        clients.into_iter().map(|client| runtime.block_on(client).unwrap()).collect();
    let unknown = seen.unknown.load(Ordering::SeqCst);
    let settled = seen.settled.load(Ordering::SeqCst);
    println!(
        "{} requests, {unknown} attempts of unknown outcome, {settled} of them had been executed",
        seen.answered.load(Ordering::SeqCst)
    );
    assert!(settled > 0, "seed {seed}: no retry met a write that had been executed");

    // Another node, which has nothing but the topic, gives the same answers.
    let heir = site(&broker, "b", "");
    let after = started(&heir);
    drop(node);
    let mut values = BTreeMap::<Vec<u8>, Vec<u64>>::new();
    for client in &mut clients {
        (client.address, client.connection) = (heir.data_address(), None);
        runtime.block_on(client.repeat());
        for (request, answer) in &client.answers {
            if let Ok((_, _, value)) = answer {
                let value = std::str::from_utf8(value).unwrap().parse().unwrap();
                values.entry(request.entries[0].key.clone()).or_default().push(value);
            }
        }
    }
    assert_eq!(values.len() as u64, COUNTERS);
    let mut data = connect(&runtime, &heir);
    for (key, mut values) in values {
        let key = String::from_utf8(key).unwrap();
        // Every add was told the value that it made, and no two the same one: none was executed twice, and none
        // that was answered is missing.
        values.sort_unstable();
        let expected: Vec<u64> = (1..=values.len() as u64).collect();
        assert_eq!(values, expected, "seed {seed}: {key}");
        let record = runtime.block_on(rpc::get(&mut data, &key)).unwrap();
        assert_eq!(record.value, values.len().to_string().into_bytes(), "seed {seed}: {key}");
    }
    drop(after);
}

#[test]
fn kafka_an_import_outlasts_a_broker_that_is_killed_because_its_batches_have_ids() {
    const RECORDS: u64 = 8_000;
    let folder = tempfile::tempdir().unwrap();
    let Some(mut broker) = broker("kafka_an_import_outlasts", folder.path()) else { return };
    let site = site(&broker, "a", "kafka.ack_timeout_ms = 500\n");
    let runtime = runtime();
    let node = started(&site);
    let mut data = connect(&runtime, &site);
    // Without ids an outcome is unknown only once: then the node says that it writes nothing, and that ends it.
    for with_ids in [false, true] {
        let name = if with_ids { "with" } else { "without" };
        let file = folder.path().join(format!("{name}.ndjson"));
        let lines = (0..RECORDS).map(|n| format!("{{\"id\":\"{name}/{n}\"}}\n"));
        std::fs::write(&file, lines.collect::<String>()).unwrap();
        let mut arguments = vec!["import", file.to_str().unwrap(), "--key", "id", "-o", "json"];
        arguments.extend(["--rate", "2000/s", "--batch", "50", "--timeout", "2m"]);
        arguments.extend((!with_ids).then_some("--no-request-ids"));
        std::thread::scope(|scope| {
            let import = scope.spawn(|| stateside(&site, &arguments));
            until("the import has begun", LIMIT, || {
                let first = runtime.block_on(rpc::get(&mut data, &format!("{name}/0"))).unwrap();
                first.found.then_some(())
            });
            broker.kill();
            until("the log is unavailable", LIMIT, || {
                let refused = runtime.block_on(rpc::put(&mut data, "probe", "x")).err()?;
                (rpc::reason(&refused) == "LOG_UNAVAILABLE").then_some(())
            });
            if with_ids {
                broker.start().unwrap();
            }
            let imported = import.join().unwrap();
            if with_ids {
                assert_eq!(imported.json()["imported"], RECORDS, "{imported:?}");
            } else {
                imported.failed_clearly(&["LOG_UNAVAILABLE"]);
                broker.start().unwrap();
                started_again(&runtime, &mut data);
            }
        });
    }
    let last = runtime.block_on(rpc::get(&mut data, &format!("with/{}", RECORDS - 1))).unwrap();
    assert!(last.found);
    drop(node);
}

/// Waits until every partition takes writes.
fn started_again(runtime: &tokio::runtime::Runtime, data: &mut Data) {
    until("every partition takes writes", LIMIT, || {
        let all = (0..64).map(|n| rpc::entry(format!("probe/{n}"), "x")).collect();
        let results = runtime.block_on(rpc::put_all(data, all)).ok()?;
        results.iter().all(|result| result.error.is_none()).then_some(())
    });
}
