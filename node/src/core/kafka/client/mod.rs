//! librdkafka: the one module that knows it. Three threads; see the header of the module above.
//!
//! ```text
//!  here      settings, the sending thread, what deliveries lead to
//!  reader    the reading thread: replays, claims, stretches that somebody else wrote to
//!  topic     what the brokers say of the topic, and making it
//! ```
//! The producer is idempotent with `acks=all` and never gives a write up by itself
//! (`message.timeout.ms = 0`): what a core was told late about may still arrive, in order, and without a
//! gap behind it. The consumer reads only while there is something to know: a replay, a claim, a
//! stretch of the log that somebody else wrote to. Once a second the ends of all owned partitions
//! are asked for, in one request, so that an owner without writes hears of a claim too.

mod reader;
#[cfg(test)]
mod tests;
mod topic;

use std::{
    collections::HashMap,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rdkafka::{
    client::ClientContext,
    config::{ClientConfig, RDKafkaLogLevel},
    consumer::{BaseConsumer, ConsumerContext},
    error::{KafkaError as ClientError, RDKafkaErrorCode},
    message::{DeliveryResult, Message as _},
    producer::{BaseProducer, BaseRecord, ProducerContext},
};
use stateside_pipeline::kafka::{KAFKA_RECORD_BYTES_MAX, Next, Owner, Step};
use stateside_types::{
    CoreId, Epoch, PartitionId, Reason, Refusal, Sequence, limits::KAFKA_FETCH_QUEUE_KB,
};

use self::reader::Reader;
use super::{
    super::partition_files::PartitionFiles,
    link::{
        Append, Exchange, FromKafka, KafkaConfig, KafkaError, KafkaLink, Mailbox, Order, exchange,
    },
    opening::owned_by,
};
use crate::exit::Exit;

/// What Kafka adds to a message, at most.
const OVERHEAD_BYTES: usize = 1 << 10;

/// Settings that the promises rest upon: nobody else sets them.
const OWN: &[&str] = &[
    "bootstrap.servers",
    "enable.idempotence",
    "acks",
    "request.required.acks",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "retries",
    "message.send.max.retries",
    "transactional.id",
    "enable.auto.commit",
    "auto.offset.reset",
    "isolation.level",
    "enable.partition.eof",
    "message.max.bytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.kbytes",
    "group.id",
    "enable.gapless.guarantee",
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
        let producer: BaseProducer<Deliveries> =
            settings.0.create_with_context(Deliveries(Arc::clone(&shared))).map_err(wrong)?;
        let producer = Arc::new(producer);
        let consumer: BaseConsumer<Quiet> = settings.1.create_with_context(Quiet).map_err(wrong)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut client = Self { stop: Arc::clone(&stop), threads: Vec::new() };

        let (out, sender_shared) = (Arc::clone(&producer), Arc::clone(&shared));
        let sender_stop = Arc::clone(&stop);
        client.spawn("kafka-send", move || {
            send(&appends, &out, &sender_shared, &sender_stop);
        })?;
        let (events, events_stop) = (Arc::clone(&producer), Arc::clone(&stop));
        client.spawn("kafka-events", move || {
            while !events_stop.load(Ordering::Acquire) {
                events.poll(PAUSE);
            }
        })?;
        let mut reader =
            Reader::new(config.clone(), shared, files, producer, consumer, record_bytes_max);
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
        let whole = move || {
            // Without it writes would wait for ever, and the node look well.
            if panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!("a bug: the process ends, for a thread of the log in Kafka has");
                std::process::exit(i32::from(Exit::Failure.code()));
            }
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(whole);
        self.threads.push(thread.map_err(KafkaError::Thread)?);
        Ok(())
    }
}

impl Drop for KafkaClient {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // It has no outcome.
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
    if !config
        .options
        .iter()
        .any(|(name, _)| name == "linger.ms" || name == "queue.buffering.max.ms")
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
        .set("fetch.wait.max.ms", "20")
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

/// How long a thread waits before it looks whether it is to stop.
const PAUSE: Duration = Duration::from_millis(100);

/// The sending thread: from the cores' batches to the producer's queues.
fn send(
    appends: &flume::Receiver<Vec<Append>>,
    producer: &BaseProducer<Deliveries>,
    shared: &Shared,
    stop: &AtomicBool,
) {
    loop {
        let mut batch = match appends.recv_timeout(PAUSE) {
            Ok(batch) => batch,
            Err(flume::RecvTimeoutError::Disconnected) => return,
            Err(flume::RecvTimeoutError::Timeout) if stop.load(Ordering::Acquire) => return,
            Err(flume::RecvTimeoutError::Timeout) => continue,
        };
        // An owner knows of a write before its answer can come.
        let mut owned = shared.owned();
        batch.retain(|append| match owned.get_mut(&append.partition) {
            Some(owned) if owned.owner.passed().epoch == append.epoch && !owned.owner.is_over() => {
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
            if let Err(error) =
                produce(producer, &shared.topic, &append.bytes, append.unix_ms, sent)
            {
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

/// The Kafka partition of a partition: the same number.
fn number(id: PartitionId) -> i32 {
    i32::try_from(id.0).unwrap_or(i32::MAX)
}
