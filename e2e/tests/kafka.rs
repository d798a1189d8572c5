//! The log in Kafka, against a real broker: kills of the node and of the broker, two nodes that claim
//! the same partitions, pauses in the middle of sends, replays, and topics that are the wrong ones.
//!
//! Where Java or Kafka is missing these report themselves as skipped; the tests on the client's mock
//! cluster (`node/src/core/kafka`) run everywhere.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use stateside_e2e::{
    command_line::stateside,
    config::{Config, Store},
    kafka::{Broker, Kafka},
    kill_loops::{Plan, run_with},
    node_process::{Node, Site},
    random::Random,
    rpc::{self, Data, Failure},
    until::until,
};
use stateside_proto::v1::{Ack, ChangeStoreRequest, UpsertRequest};
use tokio::runtime::Runtime;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// How long an owner is stopped in the middle of its sends.
const PAUSE: Duration = Duration::from_secs(60);

/// A broker of the test's own, or None when that is skipped.
pub(crate) fn broker(test: &str, folder: &Path) -> Option<Broker> {
    let kafka = Kafka::find_for(test)?;
    let mut broker = Broker::create(kafka, &folder.join("kafka")).unwrap();
    broker.start().unwrap();
    Some(broker)
}

/// Lines of configuration for a log in Kafka.
pub(crate) fn in_kafka(address: &str, more: &str) -> String {
    format!(
        "partition.pipeline = [\"clock\", \"dispatcher\", \"kafka-log\", \"line-monitor\"]\n\
         kafka.brokers = \"{address}\"\nkafka.replication = 1\n{more}"
    )
}

pub(crate) fn site(broker: &Broker, node_id: &'static str, more: &str) -> Site {
    Site::new(Config { node_id, more: in_kafka(&broker.address(), more), ..Config::default() })
}

pub(crate) fn started(site: &Site) -> Node<'_> {
    let node = site.start();
    node.wait_until_all_serve();
    node
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub(crate) fn connect(runtime: &Runtime, site: &Site) -> Data {
    runtime.block_on(rpc::data(&site.data_address())).unwrap()
}

/// What one client knows of its keys. A write with an unknown outcome leaves two possibilities, which
/// the next write with a known one settles.
#[derive(Clone, Default)]
pub(crate) struct Known {
    acknowledged: BTreeMap<String, Vec<u8>>,
    possible: BTreeMap<String, Vec<Vec<u8>>>,
}

impl Known {
    fn check(&self, key: &str, found: &[u8]) {
        let acknowledged = self.acknowledged.get(key).map(Vec::as_slice).unwrap_or_default();
        let possible = self.possible.get(key).map(Vec::as_slice).unwrap_or_default();
        assert!(
            found == acknowledged || possible.iter().any(|value| value == found),
            "{key} is `{}`; acknowledged was `{}`, of unknown outcome {} others",
            String::from_utf8_lossy(found),
            String::from_utf8_lossy(acknowledged),
            possible.len()
        );
    }
}

/// Clients that write to keys of their own, each one call at a time, until told to stop.
pub(crate) struct Load {
    known: Arc<Mutex<Known>>,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    pub(crate) refusals: Arc<Mutex<Vec<Failure>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(
        runtime: &Runtime,
        site: &Site,
        name: &'static str,
        clients: usize,
    ) -> Self {
        let load = Self {
            known: Arc::default(),
            stop: Arc::default(),
            written: Arc::default(),
            refusals: Arc::default(),
            tasks: Vec::new(),
        };
        let data = connect(runtime, site);
        let tasks = (0..clients).map(|client| {
            let (known, stop) = (Arc::clone(&load.known), Arc::clone(&load.stop));
            let (written, refusals) = (Arc::clone(&load.written), Arc::clone(&load.refusals));
            let mut data = data.clone();
            runtime.spawn(async move {
                let mut number = 0_u64;
                while !stop.load(Ordering::SeqCst) {
                    number += 1;
                    // Half of the keys are every owner's, half each one's own: what an owner
                    // acknowledged late is not hidden by what another wrote.
                    let whose = if client % 2 == 0 { "key" } else { name };
                    let key = format!("{whose}/{client}/{}", number % 16);
                    let value = format!("{name}-{client}-{number}").into_bytes();
                    let possible =
                        known.lock().unwrap().possible.entry(key.clone()).or_default().len();
                    known.lock().unwrap().possible.get_mut(&key).unwrap().push(value.clone());
                    match rpc::put(&mut data, &key, value.clone()).await {
                        Ok(result) if result.error.is_none() => {
                            let mut known = known.lock().unwrap();
                            known.acknowledged.insert(key.clone(), value);
                            // Behind this one in its partition: those before are settled.
                            known.possible.remove(&key);
                            written.fetch_add(1, Ordering::SeqCst);
                        }
                        Ok(_) => unreachable!("a single write is answered as a whole"),
                        Err(status) => {
                            let failure = Failure::from(&status);
                            if failure.message.contains("nothing was written")
                                || failure.reason == "PARTITION_STARTING"
                                || failure.reason == "BAD_NODE"
                            {
                                let mut known = known.lock().unwrap();
                                known.possible.get_mut(&key).unwrap().truncate(possible);
                            }
                            let pause = failure.retry_after;
                            refusals.lock().unwrap().push(failure);
                            tokio::time::sleep(pause.unwrap_or(Duration::from_millis(20))).await;
                        }
                    }
                }
            })
        });
        Self { tasks: tasks.collect(), ..load }
    }

    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    pub(crate) fn until_written(&self, more: u64) {
        let target = self.written() + more;
        until("writes are acknowledged", LIMIT, || (self.written() >= target).then_some(()));
    }

    pub(crate) fn end(self, runtime: &Runtime) -> (Known, Vec<Failure>) {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            runtime.block_on(task).unwrap();
        }
        let known = self.known.lock().unwrap().clone();
        let refusals = self.refusals.lock().unwrap().clone();
        (known, refusals)
    }
}

pub(crate) fn check_all(runtime: &Runtime, site: &Site, known: &Known) {
    let mut data = connect(runtime, site);
    assert!(known.acknowledged.len() > 8, "hardly any load");
    for key in known.acknowledged.keys() {
        let record = runtime.block_on(rpc::get(&mut data, key)).unwrap();
        known.check(key, &record.value);
    }
}

#[test]
fn kafka_kill_9_of_the_node_breaks_no_promise() {
    let folder = tempfile::tempdir().unwrap();
    let Some(broker) = broker("kafka_kill_9_of_the_node", folder.path()) else { return };
    let seed = Random::fresh_seed();
    println!("seed {seed}");
    for (store, topic) in [(Store::Memory, "memory"), (Store::Sled, "sled")] {
        let plan = Plan { loops: 10, store, ack: "durable", changes_stores: false, seed };
        // So small that background snapshots move the place that a replay begins at.
        let more = format!("kafka.topic = \"{topic}\"\nkafka.snapshot_mb = 1\n");
        let outcome = run_with(plan, &in_kafka(&broker.address(), &more), |_, _| {})
            .unwrap_or_else(|violations| panic!("seed {seed}: {violations}"));
        println!("{outcome:?}");
        assert!(outcome.acknowledged > 100, "hardly any load: {outcome:?}");
    }
}

#[test]
fn kafka_kill_9_while_partitions_change_their_stores_breaks_no_promise() {
    let folder = tempfile::tempdir().unwrap();
    let Some(broker) = broker("kafka_kill_9_while_partitions_change", folder.path()) else {
        return;
    };
    let seed = Random::fresh_seed();
    println!("seed {seed}");
    let plan = Plan { loops: 10, store: Store::Memory, ack: "durable", changes_stores: true, seed };
    let more = in_kafka(&broker.address(), "kafka.snapshot_mb = 1\n");
    let outcome = run_with(plan, &more, |_, _| {})
        .unwrap_or_else(|violations| panic!("seed {seed}: {violations}"));
    println!("{outcome:?}");
    // Copies and replays leave the writers less of each life.
    assert!(outcome.acknowledged > 20, "hardly any load: {outcome:?}");
}

/// A change needs the log: while the brokers are away it waits, and service with it goes on as ever.
#[test]
fn kafka_a_change_of_store_outlasts_the_brokers_absence() {
    let folder = tempfile::tempdir().unwrap();
    let test = "kafka_a_change_of_store_outlasts";
    let Some(mut broker) = broker(test, folder.path()) else { return };
    let site = site(&broker, "a", "kafka.ack_timeout_ms = 500\n");
    let runtime = runtime();
    let mut node = started(&site);
    let mut data = connect(&runtime, &site);
    runtime.block_on(rpc::put(&mut data, "stays", "readable")).unwrap();
    let load = Load::start(&runtime, &site, "a", 16);
    load.until_written(200);
    for (store, killed) in [("lsm", true), ("memory-ordered", true), ("sled", false)] {
        let partitions = || -> Vec<serde_json::Value> {
            let list = stateside(&site, ["partition", "list", "-o", "json"]).json();
            list["partitions"].as_array().unwrap().clone()
        };
        let ids: Vec<u32> = partitions()
            .iter()
            .map(|one| u32::try_from(one["id"].as_u64().unwrap()).unwrap())
            .collect();
        let (address, of, to) = (site.control_address(), ids.clone(), store.to_owned());
        let changes = runtime.spawn(async move {
            let mut control = rpc::control(&address).await.unwrap();
            let mut outcomes = Vec::new();
            for partition in of {
                let request = ChangeStoreRequest { partition, store: to.clone() };
                outcomes.push(control.change_store(request).await);
            }
            outcomes
        });
        if killed {
            until("a change is under way", LIMIT, || {
                partitions().iter().any(|one| !one["store_change"].is_null()).then_some(())
            });
            broker.kill();
            until("writes are refused", LIMIT, || {
                let refusals = load.refusals.lock().unwrap();
                refusals.iter().any(|one| one.reason == "LOG_UNAVAILABLE").then_some(())
            });
            let record = runtime.block_on(rpc::get(&mut data, "stays")).unwrap();
            assert_eq!(record.value, b"readable", "reads go on");
            load.refusals.lock().unwrap().clear();
            broker.start().unwrap();
        }
        for outcome in runtime.block_on(changes).unwrap() {
            if let Err(status) = outcome {
                // It was cut short, by the log's absence or the partition's beginning anew behind it.
                println!("to {store}: {status}");
                let expected =
                    ["PARTITION_STOPPED", "PARTITION_BUSY", "LOG_UNAVAILABLE", "UNKNOWN_PARTITION"];
                assert!(expected.contains(&rpc::reason(&status).as_str()), "{status}");
            }
        }
        for id in ids {
            until("every partition gets its store", LIMIT, || {
                let all = partitions();
                let one = all.iter().find(|one| one["id"] == id).unwrap();
                if one["store"] == store {
                    return Some(());
                }
                // Refused while something else is done to the partition.
                let again =
                    ["partition", "change-store", &id.to_string(), store].map(str::to_owned);
                let _ = stateside(&site, again);
                None
            });
        }
        load.until_written(200);
    }
    let (known, _) = load.end(&runtime);
    check_all(&runtime, &site, &known);
    node.kill();
    let _node = started(&site);
    check_all(&runtime, &site, &known);
}

#[test]
fn kafka_a_broker_that_is_killed_and_comes_back_loses_nothing_and_service_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut broker) = broker("kafka_a_broker_that_is_killed", folder.path()) else { return };
    let site = site(&broker, "a", "kafka.ack_timeout_ms = 500\n");
    let runtime = runtime();
    let mut node = started(&site);
    let mut data = connect(&runtime, &site);
    runtime.block_on(rpc::put(&mut data, "stays", "readable")).unwrap();
    for _ in 0..2 {
        let load = Load::start(&runtime, &site, "a", 16);
        load.until_written(200);
        broker.kill();
        let refused = |reason: &str, says: &str| {
            until(&format!("{reason}: {says}"), LIMIT, || {
                let refusals = load.refusals.lock().unwrap();
                let is_it = |f: &&Failure| f.reason == reason && f.message.contains(says);
                refusals.iter().find(is_it).cloned()
            })
        };
        let unknown = refused("LOG_UNAVAILABLE", "its outcome is unknown");
        assert_eq!(unknown.code, "UNAVAILABLE");
        assert!(unknown.retry_after.is_some());
        let known = refused("LOG_UNAVAILABLE", "nothing was written");
        assert!(known.retry_after.is_some());
        let record = runtime.block_on(rpc::get(&mut data, "stays")).unwrap();
        assert_eq!(record.value, b"readable", "reads go on");
        broker.start().unwrap();
        load.until_written(200);
        let (known, _) = load.end(&runtime);
        check_all(&runtime, &site, &known);
        node.kill();
        node = started(&site);
        data = connect(&runtime, &site);
        check_all(&runtime, &site, &known);
    }
}

#[test]
fn kafka_an_owner_that_was_stopped_for_a_minute_acknowledges_nothing_that_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let test = "kafka_an_owner_that_was_stopped_for_a_minute";
    let Some(broker) = broker(test, folder.path()) else { return };
    let runtime = runtime();
    // Each life of a site is another node with an empty data directory: all it knows is in the topic.
    let mut owner = site(&broker, "a", "");
    let mut before = started(&owner);
    // Short stops hit other places of a send than a long one.
    for pause in [Duration::from_millis(1_500), Duration::from_millis(300), PAUSE] {
        let old = Load::start(&runtime, &owner, "old", 32);
        old.until_written(300);
        before.signal(libc::SIGSTOP);
        let stopped = Instant::now();
        let heir = site(&broker, "b", "");
        let after = started(&heir);
        // Everything that the old owner acknowledged is there; what was under way may be.
        let known = old.known.lock().unwrap().clone();
        let mut data = connect(&runtime, &heir);
        for key in known.acknowledged.keys() {
            let record = runtime.block_on(rpc::get(&mut data, key)).unwrap();
            known.check(key, &record.value);
        }
        // The new owner overwrites the same keys.
        let new = Load::start(&runtime, &heir, "new", 32);
        new.until_written(600);
        let written_before = old.written();
        std::thread::sleep(pause.saturating_sub(stopped.elapsed()));
        before.signal(libc::SIGCONT);
        until("the old owner hears that it is none any more", LIMIT, || {
            let refusals = old.refusals.lock().unwrap();
            refusals.iter().any(|failure| failure.reason == "BAD_NODE").then_some(())
        });
        new.until_written(300);
        let late = old.written() - written_before;
        let (old_known, _) = old.end(&runtime);
        let (new_known, new_refusals) = new.end(&runtime);
        assert!(new_refusals.is_empty(), "the new owner is undisturbed: {new_refusals:?}");
        println!(
            "stopped for {pause:?}: {late} writes of the old owner were acknowledged after it, all written before"
        );
        check_all(&runtime, &heir, &new_known);
        // Started again, it does not take back what it lost.
        before.kill();
        before = started(&owner);
        let mut data = connect(&runtime, &owner);
        let refused = runtime.block_on(rpc::put(&mut data, "key/0/0", "x")).unwrap_err();
        assert_eq!(rpc::reason(&refused), "BAD_NODE");
        drop((before, after));
        // A third node, which has nothing but the topic, sees the same.
        let third = site(&broker, "c", "");
        let node = started(&third);
        check_all(&runtime, &third, &new_known);
        // Whatever the old owner acknowledged, late too, stood before the new owner's claim.
        let mut data = connect(&runtime, &third);
        let own = old_known.acknowledged.keys().filter(|key| key.starts_with("old/"));
        for key in own {
            let record = runtime.block_on(rpc::get(&mut data, key)).unwrap();
            old_known.check(key, &record.value);
        }
        drop(node);
        owner = site(&broker, "d", "");
        before = started(&owner);
    }
}

#[test]
fn kafka_a_million_records_are_replayed() {
    const RECORDS: u64 = 1_000_000;
    const BATCH: u64 = 1_000;
    let folder = tempfile::tempdir().unwrap();
    let Some(broker) = broker("kafka_a_million_records", folder.path()) else { return };
    let site = site(&broker, "a", "kafka.snapshot_mb = 4096\n");
    let runtime = runtime();
    let mut node = started(&site);
    let data = connect(&runtime, &site);
    runtime.block_on(async {
        let next = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (next, mut data) = (Arc::clone(&next), data.clone());
                tokio::spawn(async move {
                    loop {
                        let from = next.fetch_add(BATCH, Ordering::SeqCst);
                        if from >= RECORDS {
                            return;
                        }
                        let entry = |n: u64| rpc::entry(format!("{n:08}"), format!("{n:0100}"));
                        let results =
                            rpc::put_all(&mut data, (from..from + BATCH).map(entry).collect())
                                .await;
                        let results = results.unwrap();
                        assert!(results.iter().all(|result| result.error.is_none()));
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    node.kill();
    let begun = Instant::now();
    // Not ready before every partition is open.
    let node = site.start();
    let took = begun.elapsed();
    println!(
        "{RECORDS} records replayed in {took:?}: {:.0} records/s",
        RECORDS as f64 / took.as_secs_f64()
    );
    let metrics = node.metrics();
    for family in ["epoch", "offset", "lag"] {
        let series = format!("stateside_partition_kafka_{family}{{");
        assert!(metrics.lines().any(|line| line.starts_with(&series)), "{family}");
    }
    let held: f64 = metrics
        .lines()
        .filter(|line| line.starts_with("stateside_partition_records{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert_eq!(held, RECORDS as f64);
    let mut data = connect(&runtime, &site);
    for n in [0, 1, 499_999, 999_999] {
        let record = runtime.block_on(rpc::get(&mut data, &format!("{n:08}"))).unwrap();
        assert_eq!(record.value, format!("{n:0100}").into_bytes());
    }
}

#[test]
fn kafka_topics_that_are_not_this_nodes_are_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let Some(broker) = broker("kafka_topics_that_are_not_this_nodes", folder.path()) else {
        return;
    };
    let runtime = runtime();
    let mut site = site(&broker, "a", "");
    let refusal = |site: &Site| {
        let _node = started(site);
        let mut data = connect(&runtime, site);
        Failure::from(&runtime.block_on(rpc::put(&mut data, "k", "v")).unwrap_err())
    };
    let mut node = started(&site);
    let mut data = connect(&runtime, &site);
    for n in 0..200 {
        runtime.block_on(rpc::put(&mut data, &format!("{n}"), "v")).unwrap();
    }
    node.kill();
    drop((data, node));
    let settings = site.config.more.clone();

    site.config.more = format!("{settings}kafka.partitions = 5\n");
    let failure = refusal(&site);
    assert_eq!(
        (failure.reason.as_str(), failure.code.as_str()),
        ("LOG_MISMATCH", "FAILED_PRECONDITION")
    );
    assert!(
        failure.message.contains("has 8 Kafka partitions and kafka.partitions says 5"),
        "{failure:?}"
    );

    site.config.more = format!("{settings}kafka.topic = \"other\"\n");
    let failure = refusal(&site);
    assert!(failure.message.contains("this node has used it"), "{failure:?}");
    site.config.more.clone_from(&settings);

    let other_folder = folder.path().join("other");
    let mut other = Broker::create(Kafka::find().unwrap(), &other_folder).unwrap();
    other.start().unwrap();
    let create = ["--create", "--topic", "stateside", "--partitions", "8"];
    other.tool("org.apache.kafka.tools.TopicCommand", &create).unwrap();
    site.config.more = settings.replace(&broker.address(), &other.address());
    let failure = refusal(&site);
    assert!(failure.message.contains("leads to the cluster"), "{failure:?}");
    drop(other);
    site.config.more.clone_from(&settings);

    // Still the right one: nothing of this changed anything.
    let node = started(&site);
    let mut data = connect(&runtime, &site);
    runtime.block_on(rpc::put(&mut data, "k", "v")).unwrap();
    drop((data, node));

    // Retention took the beginning, and there is no snapshot.
    let offsets: Vec<String> = (0..8)
        .map(|partition| {
            format!("{{\"topic\": \"stateside\", \"partition\": {partition}, \"offset\": 2}}")
        })
        .collect();
    let file = folder.path().join("delete.json");
    std::fs::write(&file, format!("{{\"partitions\": [{}], \"version\": 1}}", offsets.join(", ")))
        .unwrap();
    let file = file.display().to_string();
    broker
        .tool("org.apache.kafka.tools.DeleteRecordsCommand", &["--offset-json-file", &file])
        .unwrap();
    let failure = refusal(&site);
    assert!(failure.message.contains("messages before offset 2 are deleted"), "{failure:?}");

    // Deleted, and made anew by somebody.
    broker
        .tool("org.apache.kafka.tools.TopicCommand", &["--delete", "--topic", "stateside"])
        .unwrap();
    let failure = refusal(&site);
    assert!(failure.message.contains("it was deleted"), "{failure:?}");
    until("the topic can be made again", LIMIT, || {
        broker.tool("org.apache.kafka.tools.TopicCommand", &create).ok()
    });
    let failure = refusal(&site);
    assert!(failure.message.contains("it ends at offset 0"), "{failure:?}");
}

/// Memory, threads and connections towards Kafka do not grow with the number of partitions.
#[test]
fn kafka_a_thousand_partitions_need_no_more_threads_and_connections_than_eight() {
    let folder = tempfile::tempdir().unwrap();
    let Some(broker) = broker("kafka_a_thousand_partitions", folder.path()) else { return };
    let runtime = runtime();
    let mut use_of = Vec::new();
    for (partitions, topic) in [(8_u64, "eight"), (1_000, "thousand")] {
        let registry = folder.path().join(format!("{topic}.toml"));
        let step = u64::MAX / partitions + 1;
        let declared: String = (0..partitions)
            .map(|n| {
                let end = if n + 1 == partitions { 0 } else { (n + 1) * step };
                format!("[[partition]]\nid = {n}\nrange = \"{}..{end}\"\n", n * step)
            })
            .collect();
        std::fs::write(&registry, declared).unwrap();
        let more = format!(
            "kafka.ack_timeout_ms = 30000\nkafka.topic = \"{topic}\"\nregistry.file = \"{}\"\n",
            registry.display()
        );
        let site = site(&broker, "a", &more);
        let begun = Instant::now();
        let node = started(&site);
        let took = begun.elapsed();
        let mut data = connect(&runtime, &site);
        let entries = (0..4_000).map(|n| rpc::entry(format!("{n}"), "v")).collect();
        let request =
            UpsertRequest { entries, ack: Ack::Default.into(), ..UpsertRequest::default() };
        let results = runtime.block_on(data.upsert(request)).unwrap().into_inner().results;
        assert!(results.iter().all(|result| result.error.is_none()));
        let metrics = node.metrics();
        let value = |name: &str| -> f64 {
            let line = metrics.lines().find(|line| line.starts_with(name)).unwrap();
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        let (threads, files) = (value("process_threads "), value("process_open_fds "));
        let resident = value("process_resident_memory_bytes ");
        println!(
            "{partitions} partitions: open after {took:?}, {threads} threads, {files} descriptors, {:.0} MiB",
            resident / f64::from(1 << 20)
        );
        use_of.push((threads, files, resident));
    }
    let [(threads, files, resident), (more_threads, more_files, more_resident)] = use_of[..] else {
        unreachable!("two rounds")
    };
    // The blocking pool opens stores with up to 16 threads.
    assert!(more_threads <= threads + 16.0, "{threads} threads became {more_threads}");
    assert!(more_files <= files + 16.0, "{files} descriptors became {more_files}");
    assert!(more_resident <= resident + 150e6, "{resident} bytes became {more_resident}");
}
