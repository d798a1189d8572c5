//! librdkafka: the one file that knows it. Three threads; see the module's header.
//!
//! The producer is idempotent with `acks=all` and never gives a write up by itself
//! (`message.timeout.ms = 0`): what a core was told late about may still arrive, in order, and without a
//! gap behind it. The consumer reads only while there is something to know: a replay, a claim, a
//! stretch of the log that somebody else wrote to. Once a second the ends of all owned partitions
//! are asked for, in one request, so that an owner without writes hears of a claim too.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    client::ClientContext,
    config::{ClientConfig, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError as ClientError, RDKafkaErrorCode},
    message::{DeliveryResult, Message as _},
    producer::{BaseProducer, BaseRecord, ProducerContext},
};
use stateside_pipeline::kafka::{KAFKA_RECORD_BYTES_MAX, Next, Owner, Step};
use stateside_types::{
    CoreId, Epoch, PartitionId, Reason, Refusal, Sequence,
    limits::{KAFKA_FETCH_QUEUE_KB, KAFKA_OPENINGS_MAX},
};

use super::{
    super::partition_files::PartitionFiles,
    link::{
        Append, Exchange, FromKafka, KafkaConfig, KafkaError, KafkaLink, Mailbox, OpenRequest, Order,
        exchange,
    },
    opening::{Opening, Whereabouts, owned_by},
};

/// How long one question to the brokers may take.
const QUESTION: Duration = Duration::from_secs(5);
/// How long after brokers could not be reached they are tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often the ends of the owned partitions are asked for.
const WATCH: Duration = Duration::from_secs(1);
/// How often a core hears how far a replay is.
const PROGRESS: Duration = Duration::from_millis(250);
/// Longest wait of the reading thread while it has partitions to read.
const READ_PAUSE: Duration = Duration::from_millis(10);
/// Messages read before orders are looked at again.
const READS_AT_A_TIME: usize = 4_096;
/// What Kafka adds to a message, at most.
const OVERHEAD_BYTES: usize = 1 << 10;

/// Settings that the promises rest upon: nobody else sets them.
const OWN: &[&str] = &[
    "bootstrap.servers", "enable.idempotence", "acks", "request.required.acks", "message.timeout.ms",
    "delivery.timeout.ms", "max.in.flight", "max.in.flight.requests.per.connection", "retries",
    "message.send.max.retries", "transactional.id", "enable.auto.commit", "auto.offset.reset",
    "isolation.level", "enable.partition.eof", "message.max.bytes", "queue.buffering.max.messages",
    "queue.buffering.max.kbytes", "group.id", "enable.gapless.guarantee",
];

/// The node's Kafka threads. Dropping it stops them.
pub struct KafkaClient {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Wakes a core.
pub(crate) type WakeCore = Arc<dyn Fn(CoreId) + Send + Sync>;

impl KafkaClient {
    /// Starts the threads; brokers need not be there. The links are for the cores, in order.
    ///
    /// # Errors
    /// librdkafka does not take the settings, or a thread cannot be started.
    pub fn start(
        config: &KafkaConfig,
        cores: u16,
        files: Arc<PartitionFiles>,
        wake: impl Fn(CoreId) + Send + Sync + 'static,
    ) -> Result<(Self, Vec<KafkaLink>), KafkaError> {
        let (links, exchange) = exchange(config, cores);
        let Exchange { appends, orders, checks, mailboxes, record_bytes_max } = exchange;
        let shared = Arc::new(Shared {
            topic: config.topic.clone(),
            owned: Mutex::default(),
            mailboxes,
            wake: Arc::new(wake),
            checks,
        });
        let wrong = |error: ClientError| KafkaError::Config(error.to_string());
        let settings = client_settings(config)?;
        let producer: BaseProducer<Deliveries> = settings
            .0
            .create_with_context(Deliveries(Arc::clone(&shared)))
            .map_err(wrong)?;
        let producer = Arc::new(producer);
        let consumer: BaseConsumer<Quiet> =
            settings.1.create_with_context(Quiet).map_err(wrong)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut client = Self { stop: Arc::clone(&stop), threads: Vec::new() };

        let (out, sender_shared) = (Arc::clone(&producer), Arc::clone(&shared));
        client.spawn("kafka-send", move || send(&appends, &out, &sender_shared))?;
        let (events, events_stop) = (Arc::clone(&producer), Arc::clone(&stop));
        client.spawn("kafka-events", move || {
            while !events_stop.load(Ordering::Acquire) {
                events.poll(Duration::from_millis(100));
            }
        })?;
        let mut reader = Reader {
            config: config.clone(),
            shared,
            files,
            producer,
            consumer,
            record_bytes_max,
            known: None,
            waiting: VecDeque::new(),
            tasks: HashMap::new(),
            retry_at: Instant::now(),
            watch_at: Instant::now(),
            tell_at: Instant::now(),
            nonces: fastrand::Rng::new(),
            is_away: false,
        };
        client.spawn("kafka-read", move || {
            while !stop.load(Ordering::Acquire) {
                reader.turn(&orders);
            }
        })?;
        Ok((client, links))
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), KafkaError> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
        self.threads.push(thread.map_err(KafkaError::Thread)?);
        Ok(())
    }
}

impl Drop for KafkaClient {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // A panic in it has ended the process by the hook, or is told by its own message.
            let _ = thread.join();
        }
    }
}

/// Settings of producer and consumer.
fn client_settings(config: &KafkaConfig) -> Result<(ClientConfig, ClientConfig), KafkaError> {
    let mut common = ClientConfig::new();
    common
        .set("client.id", "stateside")
        // Back within a second when the brokers are.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        .set_log_level(RDKafkaLogLevel::Warning);
    for (name, value) in &config.options {
        if OWN.contains(&name.as_str()) {
            return Err(KafkaError::Config(format!(
                "options: `{name}` is the node's own: its promises rest upon it"
            )));
        }
        common.set(name, value);
    }
    common.set("bootstrap.servers", &config.brokers);
    let mut producer = common.clone();
    producer
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("message.timeout.ms", "0")
        .set("message.max.bytes", (KAFKA_RECORD_BYTES_MAX + OVERHEAD_BYTES).to_string())
        // The cores bound what is under way, by bytes and by partition.
        .set("queue.buffering.max.messages", "0")
        .set("queue.buffering.max.kbytes", "2147483647");
    if !config.options.iter().any(|(name, _)| name == "linger.ms" || name == "queue.buffering.max.ms")
    {
        // Groups form by themselves while the requests before are out.
        producer.set("linger.ms", "0");
    }
    let mut consumer = common;
    consumer
        // Never joined: partitions are assigned by hand and nothing is committed.
        .set("group.id", format!("stateside-{}", config.node))
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_uncommitted")
        .set("max.poll.interval.ms", "86400000")
        .set("fetch.wait.max.ms", "100")
        .set("queued.max.messages.kbytes", KAFKA_FETCH_QUEUE_KB.to_string());
    Ok((producer, consumer))
}

/// A claim of this node that was read back and counted.
struct Owned {
    core: CoreId,
    owner: Owner,
    /// The reading thread looks at what stands in the log.
    is_checked: bool,
}

struct Shared {
    topic: String,
    owned: Mutex<HashMap<PartitionId, Owned>>,
    mailboxes: Vec<Arc<Mailbox>>,
    wake: WakeCore,
    checks: flume::Sender<Order>,
}

impl Shared {
    fn owned(&self) -> MutexGuard<'_, HashMap<PartitionId, Owned>> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, core: CoreId, event: FromKafka) {
        if self.mailboxes[usize::from(core.0)].post(event) {
            (self.wake)(core);
        }
    }

    /// Acts upon what an owner decided.
    fn took(&self, id: PartitionId, owned: &mut Owned, step: Step) {
        let core = owned.core;
        if let Some(anchor) = step.passed
            && self.mailboxes[usize::from(core.0)].passed(id, anchor)
        {
            (self.wake)(core);
        }
        let over = |later: Refusal| {
            let epoch = owned.owner.passed().epoch;
            let text = format!(
                "the write to partition {id} was not acknowledged before this node lost the partition: its outcome is unknown"
            );
            let held = Refusal::new(Reason::LogUnavailable, text);
            tracing::error!(partition = id.0, %later, "a partition's log in Kafka is over");
            self.post(core, FromKafka::Over { partition: id, epoch, held, later });
        };
        match step.next {
            Next::Go => {}
            Next::Read(offset) if !owned.is_checked => {
                owned.is_checked = true;
                // The reading thread outlives this one's messages.
                let _ = self.checks.send(Order::Check(id, offset));
            }
            Next::Read(_) => {}
            Next::Fenced(claim) => over(owned_by(id, &claim)),
            Next::Damaged(error) => {
                let text = format!("topic `{}`, partition {id}: {error}", self.topic);
                over(Refusal::new(Reason::PartitionDamaged, text));
            }
            Next::Lost(sequence) => {
                let text = format!(
                    "topic `{}`, partition {id}: the write with sequence {sequence} is not where it should be",
                    self.topic
                );
                over(Refusal::new(Reason::PartitionStopped, text));
            }
        }
    }

    /// A write cannot be delivered: the partition stops.
    fn failed(&self, id: PartitionId, epoch: Epoch, error: &str) {
        let mut all = self.owned();
        let Some(owned) = all.get_mut(&id) else { return };
        if owned.owner.is_over() || owned.owner.passed().epoch != epoch {
            return;
        }
        owned.owner.give_up();
        let text = |what: &str| format!("Kafka refused a write to partition {id}: {error}{what}");
        let held = Refusal::new(Reason::LogUnavailable, text("; its outcome is unknown"));
        let later = Refusal::new(Reason::PartitionStopped, text(""));
        tracing::error!(partition = id.0, %later, "a partition's log in Kafka is over");
        self.post(owned.core, FromKafka::Over { partition: id, epoch, held, later });
    }
}

/// What comes back with a message.
struct Sent {
    partition: PartitionId,
    epoch: Epoch,
    /// None: a claim.
    sequence: Option<Sequence>,
}

/// Hears of deliveries, on the events thread.
struct Deliveries(Arc<Shared>);

impl ClientContext for Deliveries {
    fn error(&self, error: ClientError, reason: &str) {
        told(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Sent>) {
        match (result, sent.sequence) {
            (Ok(message), Some(sequence)) => {
                let mut all = self.0.owned();
                let Some(owned) = all.get_mut(&sent.partition) else { return };
                if owned.owner.passed().epoch == sent.epoch {
                    let offset = u64::try_from(message.offset()).ok();
                    let step = owned.owner.acked(sequence, offset);
                    self.0.took(sent.partition, owned, step);
                }
            }
            (Err((error, _)), Some(_)) => {
                self.0.failed(sent.partition, sent.epoch, &error.to_string());
            }
            // The claim is met where it is read.
            (Ok(_), None) => {}
            (Err((error, _)), None) => {
                let _ = self.0.checks.send(Order::ClaimFailed(sent.partition, error.to_string()));
            }
        }
    }
}

/// The consumer's context.
struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: ClientError, reason: &str) {
        told(&error, reason);
    }
}

impl ConsumerContext for Quiet {}

fn told(error: &ClientError, reason: &str) {
    // librdkafka tries again by itself; what it costs is told by whoever waits.
    tracing::debug!(%error, reason, "Kafka");
}

/// The sending thread: from the cores' batches to the producer's queues.
fn send(
    appends: &flume::Receiver<Vec<Append>>,
    producer: &BaseProducer<Deliveries>,
    shared: &Shared,
) {
    // Ends when the last core is gone.
    while let Ok(mut batch) = appends.recv() {
        // An owner knows of a write before its answer can come.
        let mut owned = shared.owned();
        batch.retain(|append| match owned.get_mut(&append.partition) {
            Some(owned)
                if owned.owner.passed().epoch == append.epoch && !owned.owner.is_over() =>
            {
                owned.owner.sent(append.sequence, append.crc);
                true
            }
            // It lost the partition meanwhile; its core is told.
            _ => false,
        });
        drop(owned);
        for append in &batch {
            let sent = Sent {
                partition: append.partition,
                epoch: append.epoch,
                sequence: Some(append.sequence),
            };
            if let Err(error) = produce(producer, &shared.topic, &append.bytes, append.unix_ms, sent) {
                shared.failed(append.partition, append.epoch, &error);
            }
        }
    }
}

fn produce(
    producer: &BaseProducer<Deliveries>,
    topic: &str,
    bytes: &[u8],
    unix_ms: i64,
    sent: Sent,
) -> Result<(), String> {
    let partition = i32::try_from(sent.partition.0).map_err(|error| error.to_string())?;
    let mut record = BaseRecord::<[u8], [u8], Box<Sent>>::with_opaque_to(topic, Box::new(sent))
        .partition(partition)
        .payload(bytes)
        .timestamp(unix_ms);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((ClientError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                // Cannot be: the queue has no bound of its own. Slow is better than wrong.
                record = back;
                thread::sleep(Duration::from_millis(1));
            }
            Err((error, _)) => return Err(error.to_string()),
        }
    }
}

/// The topic as the brokers have it.
#[derive(Clone, Debug)]
struct Known {
    cluster: String,
    partitions: u32,
}

/// What is being read of a partition.
enum Task {
    Opening(Box<Opening>),
    /// An owned partition, of which a stretch is not known.
    Checking,
}

/// The reading thread.
struct Reader {
    config: KafkaConfig,
    shared: Arc<Shared>,
    files: Arc<PartitionFiles>,
    producer: Arc<BaseProducer<Deliveries>>,
    consumer: BaseConsumer<Quiet>,
    record_bytes_max: Arc<AtomicUsize>,
    known: Option<Known>,
    /// Partitions that wait for the brokers, or for others to be opened.
    waiting: VecDeque<OpenRequest>,
    tasks: HashMap<PartitionId, Task>,
    retry_at: Instant,
    watch_at: Instant,
    tell_at: Instant,
    nonces: fastrand::Rng,
    /// The brokers could not be reached when they were last asked.
    is_away: bool,
}

/// What a look at the brokers led to when it led to nothing.
enum Trouble {
    /// They cannot be reached: later.
    Away(String),
    /// They can, and the topic is wrong.
    Wrong(Refusal),
}

impl Reader {
    fn turn(&mut self, orders: &flume::Receiver<Order>) {
        while let Ok(order) = orders.try_recv() {
            self.order(order);
        }
        let now = Instant::now();
        if !self.waiting.is_empty() && now >= self.retry_at {
            self.open_waiting();
        }
        if now >= self.watch_at {
            self.watch();
            self.watch_at = Instant::now() + WATCH;
        }
        if !self.tasks.is_empty() {
            self.read();
            if now >= self.tell_at {
                self.tell_at = now + PROGRESS;
                self.tell_progress();
            }
            return;
        }
        // Serves what the client has to tell.
        let _ = self.consumer.poll(Duration::ZERO);
        let until = if self.waiting.is_empty() { self.watch_at } else { self.retry_at };
        if let Ok(order) = orders.recv_deadline(until.min(self.watch_at)) {
            self.order(order);
        }
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Open(request) => self.waiting.push_back(*request),
            Order::Close(id) => {
                self.waiting.retain(|request| request.spec.id != id);
                self.shared.owned().remove(&id);
                self.end(id);
            }
            Order::Check(id, offset) => {
                if self.shared.owned().contains_key(&id) && !self.tasks.contains_key(&id) {
                    self.assign(id, offset);
                    self.tasks.insert(id, Task::Checking);
                }
            }
            Order::ClaimFailed(id, error) => {
                tracing::warn!(partition = id.0, error, "a claim did not get to Kafka");
                if let Some(Task::Opening(opening)) = self.tasks.get_mut(&id) {
                    opening.claim_failed();
                    self.claim(id);
                }
            }
        }
    }

    fn assign(&self, id: PartitionId, offset: u64) {
        let mut list = TopicPartitionList::new();
        let offset = Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX));
        let added = list.add_partition_offset(&self.config.topic, number(id), offset);
        if let Err(error) = added.and_then(|()| self.consumer.incremental_assign(&list)) {
            tracing::error!(partition = id.0, %error, "cannot read a partition of the topic");
        }
    }

    /// A partition is not read any more.
    fn end(&mut self, id: PartitionId) -> Option<Task> {
        let task = self.tasks.remove(&id)?;
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.config.topic, number(id));
        if let Err(error) = self.consumer.incremental_unassign(&list) {
            tracing::debug!(partition = id.0, %error, "it was not being read");
        }
        Some(task)
    }

    /// Begins with partitions that wait, as many as may be read at a time.
    fn open_waiting(&mut self) {
        while self.tasks.len() < KAFKA_OPENINGS_MAX {
            let Some(request) = self.waiting.pop_front() else { return };
            let id = request.spec.id;
            let found = self.look(id).and_then(|marks| {
                let position = self.files.read_kafka_position(id).map_err(Trouble::Wrong)?;
                Ok((marks, position))
            });
            match found {
                Ok((marks, position)) => self.begin(request, position, marks),
                Err(Trouble::Wrong(refusal)) => self.refuse(request, refusal),
                Err(Trouble::Away(error)) => {
                    if !self.is_away {
                        tracing::warn!(error, "the Kafka brokers cannot be reached; they are tried again every second");
                    }
                    self.is_away = true;
                    let detail = format!("waits for the Kafka brokers: {error}");
                    self.waiting.push_front(request);
                    for request in &self.waiting {
                        let (partition, detail) = (request.spec.id, detail.clone());
                        let told = FromKafka::Progress { partition, offset: 0, lag: 0, detail };
                        self.shared.post(request.core, told);
                    }
                    self.retry_at = Instant::now() + RETRY;
                    return;
                }
            }
            if std::mem::take(&mut self.is_away) {
                tracing::info!("the Kafka brokers can be reached again");
            }
        }
    }

    fn begin(
        &mut self,
        request: OpenRequest,
        position: Option<stateside_pipeline::kafka::Position>,
        marks: (u64, u64),
    ) {
        let id = request.spec.id;
        let cluster = self.known.as_ref().map_or("", |known| known.cluster.as_str());
        let (topic, node) = (self.config.topic.as_str(), self.config.node.as_str());
        match Opening::begin(request, position, marks, &Whereabouts { cluster, topic, node }) {
            Err((request, refusal)) => self.refuse(*request, refusal),
            Ok(opening) => {
                self.assign(id, opening.next());
                let is_at_end = opening.is_at_end();
                self.tasks.insert(id, Task::Opening(Box::new(opening)));
                if is_at_end {
                    self.claim(id);
                }
            }
        }
    }

    fn refuse(&self, request: OpenRequest, refusal: Refusal) {
        let OpenRequest { core, spec, .. } = request;
        let opened = FromKafka::Opened {
            partition: spec.id,
            first_epoch: spec.first_epoch,
            result: Err(refusal),
        };
        self.shared.post(core, opened);
    }

    /// The first offset of a partition and the one after its last. Makes the topic when it is not there.
    fn look(&mut self, id: PartitionId) -> Result<(u64, u64), Trouble> {
        let known = match &self.known {
            Some(known) => known.clone(),
            None => {
                let known = self.ensure_topic()?;
                self.known.insert(known).clone()
            }
        };
        let wanted = self.config.partitions;
        if wanted > 0 && known.partitions != wanted {
            return Err(wrong(format!(
                "topic `{}` has {} Kafka partitions and kafka.partitions says {wanted}; correct the setting, or use another topic (kafka.topic)",
                self.config.topic, known.partitions
            )));
        }
        if id.0 >= known.partitions {
            // It may have been given more since.
            self.known = None;
            return Err(wrong(format!(
                "topic `{}` has {} Kafka partitions and partition {id} needs {}; give it more (kafka-topics.sh --alter --partitions {}), or use another topic (kafka.topic)",
                self.config.topic, known.partitions, id.0 + 1, id.0 + 1
            )));
        }
        let marks = self.consumer.fetch_watermarks(&self.config.topic, number(id), QUESTION);
        match marks {
            Ok((low, high)) => {
                Ok((u64::try_from(low).unwrap_or(0), u64::try_from(high).unwrap_or(0)))
            }
            Err(error) => {
                // Look at the topic anew next time.
                self.known = None;
                Err(Trouble::Away(error.to_string()))
            }
        }
    }

    fn ensure_topic(&self) -> Result<Known, Trouble> {
        let away = |error: ClientError| Trouble::Away(error.to_string());
        let topic = self.config.topic.as_str();
        let partitions_of = |consumer: &BaseConsumer<Quiet>| -> Result<u32, Trouble> {
            let metadata = consumer.fetch_metadata(Some(topic), QUESTION).map_err(away)?;
            let found = metadata.topics().iter().find(|found| found.name() == topic);
            match found.and_then(|found| found.error().map(RDKafkaErrorCode::from)) {
                Some(
                    RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic,
                ) => Ok(0),
                Some(error) => Err(Trouble::Away(format!("topic `{topic}`: {error}"))),
                None => Ok(found.map_or(0, |found| found.partitions().len() as u32)),
            }
        };
        let mut partitions = partitions_of(&self.consumer)?;
        let client = self.consumer.client();
        let cluster = client.fetch_cluster_id(QUESTION);
        let cluster =
            cluster.ok_or_else(|| Trouble::Away("the cluster's id is not known".to_owned()))?;
        if partitions == 0 {
            if self.files.has_kafka_positions() {
                return Err(wrong(format!(
                    "topic `{topic}` is not in the Kafka cluster {cluster}, and this node has used it: it was deleted, or kafka.brokers leads to another cluster; set kafka.brokers right, or remove the partitions and add them again to begin anew"
                )));
            }
            self.create_topic()?;
            let until = Instant::now() + QUESTION;
            while partitions == 0 {
                if Instant::now() >= until {
                    return Err(Trouble::Away(format!("topic `{topic}` was made and is not there")));
                }
                partitions = partitions_of(&self.consumer)?;
                thread::sleep(READ_PAUSE);
            }
        }
        self.record_bytes_max.store(self.message_bytes_max()?, Ordering::Relaxed);
        Ok(Known { cluster, partitions })
    }

    fn admin(&self) -> Result<AdminClient<Quiet>, Trouble> {
        let mut settings = ClientConfig::new();
        for (name, value) in &self.config.options {
            settings.set(name, value);
        }
        settings.set("bootstrap.servers", &self.config.brokers);
        settings.create_with_context(Quiet).map_err(|error| Trouble::Away(error.to_string()))
    }

    fn create_topic(&self) -> Result<(), Trouble> {
        let KafkaConfig { topic, partitions, needed, replication, .. } = &self.config;
        let partitions = if *partitions > 0 { *partitions } else { (*needed).max(1) };
        let copies = i32::try_from(*replication).unwrap_or(i32::MAX);
        let in_sync = copies.saturating_sub(1).max(1).to_string();
        let bytes = (KAFKA_RECORD_BYTES_MAX + OVERHEAD_BYTES).to_string();
        let new = NewTopic::new(
            topic,
            i32::try_from(partitions).unwrap_or(i32::MAX),
            TopicReplication::Fixed(copies),
        )
        .set("cleanup.policy", "delete")
        .set("retention.ms", "-1")
        .set("retention.bytes", "-1")
        .set("min.insync.replicas", &in_sync)
        .set("unclean.leader.election.enable", "false")
        .set("max.message.bytes", &bytes);
        let options = AdminOptions::new().operation_timeout(Some(QUESTION));
        let made = block_on(self.admin()?.create_topics(&[new], &options));
        let made = made.map_err(|error| Trouble::Away(error.to_string()))?;
        for result in made {
            match result {
                Ok(_) => {
                    tracing::info!(topic, partitions, copies, "made the topic of the log in Kafka");
                }
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, RDKafkaErrorCode::InvalidReplicationFactor)) => {
                    return Err(wrong(format!(
                        "topic `{topic}` cannot be made with {copies} copies, there are fewer brokers; set kafka.replication, or start more brokers"
                    )));
                }
                Err((_, error)) => {
                    return Err(Trouble::Away(format!("topic `{topic}` cannot be made: {error}")));
                }
            }
        }
        Ok(())
    }

    /// The largest message that the topic takes.
    fn message_bytes_max(&self) -> Result<usize, Trouble> {
        let topic = ResourceSpecifier::Topic(&self.config.topic);
        let options = AdminOptions::new().operation_timeout(Some(QUESTION));
        let told = block_on(self.admin()?.describe_configs(&[topic], &options));
        let told = told.map_err(|error| Trouble::Away(error.to_string()))?;
        let most = told.into_iter().flatten().find_map(|resource| {
            resource.get("max.message.bytes")?.value.as_ref()?.parse::<usize>().ok()
        });
        // Who may not ask is told by the broker when a message is too large, and stops then.
        let most = most.map_or(KAFKA_RECORD_BYTES_MAX, |most| most.saturating_sub(OVERHEAD_BYTES));
        Ok(most.min(KAFKA_RECORD_BYTES_MAX))
    }

    /// Asks where the owned partitions end.
    fn watch(&mut self) {
        let mut list = TopicPartitionList::new();
        for (id, owned) in self.shared.owned().iter() {
            if !owned.owner.is_over() && owned.owner.pending() == 0 && !owned.is_checked {
                // Nothing but a full memory refuses.
                let _ = list.add_partition_offset(&self.config.topic, number(*id), Offset::End);
            }
        }
        if list.count() == 0 {
            return;
        }
        let ends = match self.consumer.offsets_for_times(list, WATCH) {
            Ok(ends) => ends,
            Err(error) => return tracing::debug!(%error, "the ends of the topic are not known"),
        };
        let mut all = self.shared.owned();
        for end in ends.elements() {
            let id = PartitionId(u32::try_from(end.partition()).unwrap_or(u32::MAX));
            if let (Some(owned), Offset::Offset(offset), Ok(())) =
                (all.get_mut(&id), end.offset(), end.error())
            {
                let step = owned.owner.ends(u64::try_from(offset).unwrap_or(0));
                self.shared.took(id, owned, step);
            }
        }
    }

    /// Takes what the consumer has.
    fn read(&mut self) {
        let mut pause = READ_PAUSE;
        for _ in 0..READS_AT_A_TIME {
            let read = match self.consumer.poll(pause) {
                None => return,
                Some(Ok(message)) => {
                    let id = PartitionId(u32::try_from(message.partition()).unwrap_or(u32::MAX));
                    let offset = u64::try_from(message.offset()).unwrap_or(0);
                    let value = message.payload().unwrap_or_default();
                    match self.tasks.get_mut(&id) {
                        Some(Task::Opening(opening)) => {
                            let read = opening.message(offset, value);
                            Read::Opening(id, read, opening.is_at_end())
                        }
                        Some(Task::Checking) => Read::Checked(id, self.checked(id, offset, value)),
                        None => Read::Nothing,
                    }
                }
                Some(Err(ClientError::PartitionEOF(partition))) => {
                    let id = PartitionId(u32::try_from(partition).unwrap_or(u32::MAX));
                    match self.tasks.get_mut(&id) {
                        Some(Task::Opening(opening)) => {
                            Read::Opening(id, Ok(None), opening.is_at_end())
                        }
                        _ => Read::Nothing,
                    }
                }
                Some(Err(ClientError::MessageConsumption(
                    RDKafkaErrorCode::OffsetOutOfRange
                    | RDKafkaErrorCode::AutoOffsetReset
                    | RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownTopic,
                ))) => Read::Cut,
                Some(Err(error)) => {
                    tracing::debug!(%error, "reading the topic");
                    Read::Nothing
                }
            };
            match read {
                Read::Nothing => {}
                Read::Opening(id, Ok(Some(claim)), _) => self.opened(id, claim),
                Read::Opening(id, Ok(None), true) => self.claim(id),
                Read::Opening(_, Ok(None), false) => {}
                Read::Opening(id, Err(refusal), _) => {
                    if let Some(Task::Opening(opening)) = self.end(id) {
                        self.refuse_opening(&opening, refusal);
                    }
                }
                Read::Checked(id, true) => {
                    self.end(id);
                }
                Read::Checked(_, false) => {}
                Read::Cut => self.look_again(),
            }
            pause = Duration::ZERO;
        }
    }

    /// Hands a message to the partition's owner; true when it needs no more.
    fn checked(&self, id: PartitionId, offset: u64, value: &[u8]) -> bool {
        let mut all = self.shared.owned();
        let Some(owned) = all.get_mut(&id) else { return true };
        let step = owned.owner.observed(offset, value);
        let is_done = !matches!(step.next, Next::Read(_));
        self.shared.took(id, owned, step);
        if is_done {
            owned.is_checked = false;
        }
        is_done
    }

    /// What is being read is not there: each partition is looked at anew.
    fn look_again(&mut self) {
        self.known = None;
        let ids: Vec<PartitionId> = self.tasks.keys().copied().collect();
        for id in ids {
            let next = match self.tasks.get(&id) {
                Some(Task::Opening(opening)) => opening.next(),
                Some(Task::Checking) => {
                    self.shared.owned().get(&id).map_or(0, |owned| owned.owner.next_offset())
                }
                None => continue,
            };
            let refusal = match self.look(id) {
                Ok((low, high)) if low > next || high < next => wrong(format!(
                    "topic `{}`, partition {id}: offset {next} was about to be read, and it holds {low} to {high} now: messages were deleted meanwhile",
                    self.config.topic
                )),
                Ok(_) => continue,
                Err(trouble) => trouble,
            };
            let Trouble::Wrong(refusal) = refusal else { continue };
            match self.end(id) {
                Some(Task::Opening(opening)) => self.refuse_opening(&opening, refusal),
                Some(Task::Checking) => {
                    let epoch = self.shared.owned().get(&id).map(|owned| owned.owner.passed().epoch);
                    if let Some(epoch) = epoch {
                        self.shared.failed(id, epoch, &refusal.message);
                    }
                }
                None => {}
            }
        }
    }

    fn refuse_opening(&self, opening: &Opening, refusal: Refusal) {
        let OpenRequest { core, spec, .. } = opening.request();
        let (partition, first_epoch) = (spec.id, spec.first_epoch);
        self.shared.post(*core, FromKafka::Opened { partition, first_epoch, result: Err(refusal) });
    }

    /// The log has been read to its end: it is claimed.
    fn claim(&mut self, id: PartitionId) {
        let nonce = self.nonces.u64(..);
        let Some(Task::Opening(opening)) = self.tasks.get_mut(&id) else { return };
        let refusal = match opening.claim(nonce) {
            Ok(None) => return,
            Ok(Some(bytes)) => {
                let sent = Sent { partition: id, epoch: Epoch(0), sequence: None };
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                let unix_ms = now.map_or(0, |now| i64::try_from(now.as_millis()).unwrap_or(0));
                match produce(&self.producer, &self.config.topic, &bytes, unix_ms, sent) {
                    Ok(()) => return,
                    Err(error) => {
                        let text = format!("partition {id} cannot be claimed in Kafka: {error}");
                        Refusal::new(Reason::PartitionStopped, text)
                    }
                }
            }
            Err(refusal) => refusal,
        };
        if let Some(Task::Opening(opening)) = self.end(id) {
            self.refuse_opening(&opening, refusal);
        }
    }

    /// The claim was met, and counts: it is remembered, then the partition goes to its core.
    fn opened(&mut self, id: PartitionId, claim: stateside_pipeline::kafka::Anchor) {
        let Some(Task::Opening(opening)) = self.end(id) else { return };
        let (head, opened) = opening.opened(claim);
        let written = self.files.write_kafka_position(id, &opened.position);
        let result = match written {
            Ok(()) => {
                let owned =
                    Owned { core: head.core, owner: Owner::new(claim), is_checked: false };
                self.shared.owned().insert(id, owned);
                Ok(Box::new(opened))
            }
            Err(error) => {
                let text = format!("partition {id}: its place in Kafka cannot be noted: {error}");
                Err(Refusal::new(Reason::PartitionStopped, text))
            }
        };
        let (partition, first_epoch) = (head.partition, head.first_epoch);
        self.shared.post(head.core, FromKafka::Opened { partition, first_epoch, result });
        // The next one may begin.
        self.retry_at = Instant::now();
    }

    fn tell_progress(&self) {
        for (id, task) in &self.tasks {
            let Task::Opening(opening) = task else { continue };
            let (partition, offset, lag) = (*id, opening.next(), opening.lag());
            let detail = if lag == 0 {
                "claims its log in Kafka".to_owned()
            } else {
                format!("replays its log in Kafka: offset {offset}, {lag} messages to go")
            };
            let told = FromKafka::Progress { partition, offset, lag, detail };
            self.shared.post(opening.request().core, told);
        }
    }
}

/// What a message led to.
enum Read {
    Nothing,
    Opening(PartitionId, Result<Option<stateside_pipeline::kafka::Anchor>, Refusal>, bool),
    Checked(PartitionId, bool),
    Cut,
}

fn wrong(text: String) -> Trouble {
    Trouble::Wrong(Refusal::new(Reason::LogMismatch, text))
}

/// The Kafka partition of a partition: the same number.
fn number(id: PartitionId) -> i32 {
    i32::try_from(id.0).unwrap_or(i32::MAX)
}

/// Waits for a future that another thread finishes.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}
