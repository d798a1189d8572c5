//! The client on librdkafka's mock cluster: what needs no Java. The same against a real broker, and
//! through the whole node, is in `e2e/tests/kafka.rs`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use stateside_pipeline::{Write, kafka::Anchor};
use stateside_statestore::{Known, Lookup, MemoryStore, PastAnswer, RequestLimits, StateStore};
use stateside_types::{
    Ack, CoreId, Epoch, HashRange, PartitionId, PartitionSpec, Reason, Refusal, RequestId,
    RequestMark, Sequence, StageKind, StoreKind, Timestamp, WallClock, WriteEntry,
};

use super::KafkaClient;
use crate::{
    config::{Settings, Surroundings},
    core::{
        PartitionFiles, StoreEngines,
        kafka::{CoreKafka, FromKafka, KafkaConfig, OpenedLog},
    },
    data_dir::DataDir,
};

type Cluster = MockCluster<'static, DefaultProducerContext>;

const LIMIT: Duration = Duration::from_secs(30);
const PARTITIONS: i32 = 4;

fn cluster() -> Cluster {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("stateside", PARTITIONS, 1).unwrap();
    cluster
}

fn files(folder: &tempfile::TempDir, name: &str) -> Arc<PartitionFiles> {
    let data_dir = Arc::new(DataDir::open(&folder.path().join(name)).unwrap());
    let surroundings = Surroundings { available_cores: 1, environment: Box::new(|_| None) };
    let engines =
        StoreEngines::new(&data_dir, &Settings::defaults(&surroundings).store, &Arc::default());
    Arc::new(PartitionFiles::new(data_dir, engines, 7, RequestLimits::default()))
}

/// A core without its ring, and the Kafka threads of its node.
struct Node {
    kafka: CoreKafka,
    events: Vec<FromKafka>,
    passed: Vec<(PartitionId, Sequence)>,
    _client: KafkaClient,
}

impl Node {
    fn start(cluster: &Cluster, folder: &tempfile::TempDir, name: &str) -> Self {
        let config = KafkaConfig {
            brokers: cluster.bootstrap_servers(),
            topic: "stateside".to_owned(),
            partitions: 0,
            replication: 1,
            ack_timeout: Duration::from_millis(300),
            snapshot_bytes: u64::MAX,
            options: Vec::new(),
            node: name.to_owned(),
            needed: PARTITIONS as u32,
        };
        let files = files(folder, name);
        let (client, mut links) = KafkaClient::start(&config, 1, files, |_| ()).unwrap();
        let kafka = CoreKafka::new(links.remove(0), Instant::now());
        Self { kafka, events: Vec::new(), passed: Vec::new(), _client: client }
    }

    /// Takes mail until `is_it` finds what it looks for.
    fn until<T>(&mut self, what: &str, mut is_it: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.kafka.set_now(Instant::now());
            self.kafka.flush();
            if let Some(mail) = self.kafka.take_mail() {
                for (id, anchor) in mail.passed {
                    let passed = self.kafka.passed(id, anchor);
                    self.passed.extend(passed.map(|sequence| (id, sequence)));
                }
                self.events.extend(mail.events);
            }
            if let Some(found) = is_it(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn open(&mut self, id: u32) -> Result<(Box<dyn StateStore>, Anchor), Refusal> {
        self.kafka.open(spec(id), Box::new(MemoryStore::new(1)));
        let result = self.until("the partition to be opened", |node| {
            let at = node.events.iter().position(
                |event| matches!(event, FromKafka::Opened { partition, .. } if partition.0 == id),
            )?;
            match node.events.remove(at) {
                FromKafka::Opened { result, .. } => Some(result),
                _ => unreachable!("it was just looked at"),
            }
        });
        let OpenedLog { store, claim, position } = *result?;
        self.kafka.adopt(PartitionId(id), claim, position);
        Ok((store, claim))
    }

    fn write(&mut self, id: u32, sequence: u64, value: &[u8]) -> Result<(), Refusal> {
        self.write_marked(id, sequence, &[WriteEntry::put(b"k", value)], None)
    }

    fn write_marked(
        &mut self,
        id: u32,
        sequence: u64,
        entries: &[WriteEntry<'_>],
        request: Option<&RequestMark<'_>>,
    ) -> Result<(), Refusal> {
        self.kafka.set_now(Instant::now());
        let write = Write {
            partition: PartitionId(id),
            epoch: Epoch(1),
            entries,
            request,
            now: WallClock(1_700_000_000_000),
            ack: Ack::Durable,
            sequence: Sequence(sequence),
            timestamp: Timestamp(sequence),
            pending: 0,
        };
        self.kafka.admit(PartitionId(id), &write)?;
        self.kafka.append(&write);
        self.kafka.flush();
        Ok(())
    }

    fn until_passed(&mut self, id: u32, sequence: u64) {
        let wanted = (PartitionId(id), Sequence(sequence));
        self.until("a write to count", |node| node.passed.contains(&wanted).then_some(()));
    }

    fn until_over(&mut self, id: u32) -> (Refusal, Refusal) {
        self.until("the claim to be over", |node| {
            node.events.iter().find_map(|event| match event {
                FromKafka::Over { partition, held, later, .. } if partition.0 == id => {
                    Some((held.clone(), later.clone()))
                }
                _ => None,
            })
        })
    }
}

fn spec(id: u32) -> PartitionSpec {
    PartitionSpec {
        id: PartitionId(id),
        range: HashRange::FULL,
        store: StoreKind::Memory,
        ack: Ack::Durable,
        pipeline: [StageKind::KafkaLog, StageKind::LineMonitor].as_slice().into(),
        first_epoch: Epoch(1),
        epoch: Epoch(1),
        base_sequence: Sequence::ZERO,
    }
}

fn value_of(store: &dyn StateStore) -> Vec<u8> {
    match store.get(b"k") {
        Lookup::Found(record) => record.value.to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_counts_is_replayed_by_the_next_owner_and_the_former_hears_of_it() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let mut a = Node::start(&cluster, &folder, "a");
    let (_, claim) = a.open(2).unwrap();
    assert_eq!((claim.epoch, claim.sequence), (Epoch(1), Sequence::ZERO));
    for sequence in 1..=3 {
        a.write(2, sequence, format!("a{sequence}").as_bytes()).unwrap();
    }
    a.until_passed(2, 3);

    let mut b = Node::start(&cluster, &folder, "b");
    let (store, claim) = b.open(2).unwrap();
    assert_eq!((claim.epoch, claim.sequence), (Epoch(2), Sequence(3)));
    assert_eq!((store.applied(), value_of(store.as_ref())), (Sequence(3), b"a3".to_vec()));

    // Stands behind the claim: never acknowledged, and the new owner's writes are not disturbed.
    a.write(2, 4, b"too late").unwrap();
    b.write(2, 4, b"b4").unwrap();
    let (held, later) = a.until_over(2);
    assert_eq!((held.reason, later.reason), (Reason::LogUnavailable, Reason::BadNode));
    assert!(later.message.contains("node `b` has claimed partition 2 with epoch 2"), "{later}");
    assert!(!a.passed.contains(&(PartitionId(2), Sequence(4))));
    b.until_passed(2, 4);
    b.write(2, 5, b"b5").unwrap();
    b.until_passed(2, 5);

    let mut c = Node::start(&cluster, &folder, "c");
    let (store, _) = c.open(2).unwrap();
    assert_eq!((store.applied(), value_of(store.as_ref())), (Sequence(5), b"b5".to_vec()));
    // Who was superseded does not take it back by starting again.
    drop((a, b));
    let refusal = Node::start(&cluster, &folder, "a").open(2).map(|_| ()).unwrap_err();
    assert_eq!(refusal.reason, Reason::BadNode);
    assert_eq!(refusal.metadata, [("owner".into(), "c".to_owned())]);
}

#[test]
fn the_next_owner_knows_the_answers_to_requests_with_an_id() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let mut a = Node::start(&cluster, &folder, "a");
    a.open(2).unwrap();
    let id = |number| RequestId { client: b"client", number, settled: 0 };
    let refusal = Arc::new(Refusal::new(Reason::ConditionFailed, "no").with("entry", 0));
    let written = RequestMark::new(id(1), 11);
    let refused =
        RequestMark { refusal: Some(Arc::clone(&refusal)), ..RequestMark::new(id(2), 22) };
    let entries = [WriteEntry::put(b"k", b"one")];
    a.write_marked(2, 1, &entries, Some(&written)).unwrap();
    a.write_marked(2, 2, &[], Some(&refused)).unwrap();
    a.write(2, 3, b"three").unwrap();
    a.until_passed(2, 3);

    let (store, _) = Node::start(&cluster, &folder, "b").open(2).unwrap();
    assert_eq!((store.applied(), value_of(store.as_ref())), (Sequence(3), b"three".to_vec()));
    let answer = |sequence, refusal| {
        let (sequence, timestamp) = (Sequence(sequence), Timestamp(sequence));
        Known::Answered(PastAnswer { sequence, timestamp, refusal, values: None })
    };
    let window = store.requests();
    assert_eq!(window.look_up(id(1), 11), answer(1, None));
    assert_eq!(window.look_up(id(2), 22), answer(2, Some(refusal)));
    assert_eq!(window.look_up(id(2), 23), Known::Reused);
    assert_eq!(window.look_up(id(3), 33), Known::New);
}

#[test]
fn an_owner_without_writes_hears_of_a_claim() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let mut a = Node::start(&cluster, &folder, "a");
    a.open(0).unwrap();
    Node::start(&cluster, &folder, "b").open(0).unwrap();
    let (_, later) = a.until_over(0);
    assert_eq!(later.reason, Reason::BadNode);
}

#[test]
fn while_the_brokers_are_away_writes_are_refused_and_go_on_when_they_are_back() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let mut a = Node::start(&cluster, &folder, "a");
    a.open(1).unwrap();
    a.write(1, 1, b"one").unwrap();
    a.until_passed(1, 1);
    cluster.broker_down(1).unwrap();
    a.write(1, 2, b"two").unwrap();
    let late = a.until("the write to be late", |node| {
        let late = node.kafka.late();
        (!late.is_empty()).then_some(late)
    });
    assert_eq!(late, [(PartitionId(1), Sequence(2))]);
    let refusal = a.write(1, 3, b"three").unwrap_err();
    assert_eq!(refusal.reason, Reason::LogUnavailable);
    assert!(refusal.message.contains("nothing was written"), "{refusal}");
    assert!(refusal.retry_after_ms.is_some());
    cluster.broker_up(1).unwrap();
    a.until_passed(1, 2);
    a.write(1, 3, b"three").unwrap();
    a.until_passed(1, 3);
    assert!(a.kafka.is_idle() && a.kafka.pending_bytes() == 0);
}

/// What the node does with a log that is over and can be claimed again, by way of an error of the
/// brokers. The write under way is given up; the next owner of the partition is this node again.
fn is_opened_anew_after(error: RDKafkaRespErr, says: &str) {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let mut a = Node::start(&cluster, &folder, "a");
    for id in [1, 2] {
        a.open(id).unwrap();
        a.write(id, 1, b"stays").unwrap();
        a.until_passed(id, 1);
    }
    cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
    a.write(1, 2, b"refused").unwrap();
    let (held, later) = a.until_over(1);
    assert_eq!((held.reason, later.reason), (Reason::LogUnavailable, Reason::PartitionStarting));
    assert!(held.message.contains("its outcome is unknown"), "{held}");
    assert!(held.message.contains(says), "{held}");
    assert!(later.retry_after_ms.is_some());

    a.kafka.close(PartitionId(1));
    let (store, claim) = a.open(1).unwrap();
    assert_eq!((claim.epoch, claim.sequence), (Epoch(2), Sequence(1)));
    assert_eq!(value_of(store.as_ref()), b"stays");
    a.write(1, 2, b"goes on").unwrap();
    a.until_passed(1, 2);
    // The other one had nothing under way: it goes on as it was, with whatever producer there is.
    a.write(2, 2, b"undisturbed").unwrap();
    a.until_passed(2, 2);
    let is_over =
        |event: &FromKafka| matches!(event, FromKafka::Over { partition, .. } if partition.0 == 2);
    assert!(!a.events.iter().any(is_over));
}

#[test]
fn after_a_fatal_error_of_the_producer_another_one_goes_on() {
    // The broker has lost count of what the producer sent: librdkafka gives the producer up.
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    is_opened_anew_after(error, "out of order");
}

#[test]
fn a_write_that_the_brokers_refuse_is_given_up_and_its_partition_opened_anew() {
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    is_opened_anew_after(error, "Topic authorization failed");
}

#[test]
fn a_claim_that_is_refused_is_tried_again_and_told() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let mut a = Node::start(&cluster, &folder, "a");
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
    a.kafka.open(spec(1), Box::new(MemoryStore::new(1)));
    a.until("the refusal to be told", |node| {
        node.events.iter().find(|event| {
            matches!(event, FromKafka::Progress { detail, .. } if detail.contains("Topic authorization failed"))
        })?;
        Some(())
    });
    a.until("the partition to be opened", |node| {
        let opened = |event: &FromKafka| matches!(event, FromKafka::Opened { result: Ok(_), .. });
        node.events.iter().any(opened).then_some(())
    });
}

#[test]
fn a_producer_that_may_not_even_begin_is_followed_by_another_until_one_may() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    // What a broker says to a user who may write to no topic at all.
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
    cluster.request_errors(RDKafkaApiKey::InitProducerId, &[error; 100]);
    let mut a = Node::start(&cluster, &folder, "a");
    a.kafka.open(spec(1), Box::new(MemoryStore::new(1)));
    a.until("the refusal to be told", |node| {
        node.events.iter().find(|event| {
            matches!(event, FromKafka::Progress { detail, .. } if detail.contains("Cluster authorization failed"))
        })?;
        Some(())
    });
    cluster.clear_request_errors(RDKafkaApiKey::InitProducerId);
    a.until("the partition to be opened", |node| {
        let opened = |event: &FromKafka| matches!(event, FromKafka::Opened { result: Ok(_), .. });
        node.events.iter().any(opened).then_some(())
    });
}

#[test]
fn a_partition_that_the_topic_has_not_is_refused_with_what_to_do() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let mut a = Node::start(&cluster, &folder, "a");
    let refusal = a.open(4).map(|_| ()).unwrap_err();
    assert_eq!(refusal.reason, Reason::LogMismatch);
    assert!(
        refusal.message.contains("has 4 Kafka partitions and partition 4 needs 5"),
        "{refusal}"
    );
}

#[test]
fn settings_that_the_promises_rest_upon_are_not_for_others() {
    let folder = tempfile::tempdir().unwrap();
    let start = |option: (&str, &str)| {
        let config = KafkaConfig {
            brokers: "127.0.0.1:1".to_owned(),
            topic: "t".to_owned(),
            partitions: 0,
            replication: 1,
            ack_timeout: Duration::from_secs(1),
            snapshot_bytes: 1,
            options: vec![(option.0.to_owned(), option.1.to_owned())],
            node: "a".to_owned(),
            needed: 1,
        };
        let files = files(&folder, "data");
        KafkaClient::start(&config, 1, files, |_: CoreId| ()).map(drop).map_err(|e| e.to_string())
    };
    assert!(start(("acks", "1")).unwrap_err().contains("`acks` is the node's own"));
    assert!(start(("no.such.setting", "1")).unwrap_err().contains("no.such.setting"));
    start(("linger.ms", "5")).unwrap();
}
