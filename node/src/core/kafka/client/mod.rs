//! librdkafka: the one module that knows it. Three threads; see the header of the module above.
//!
//! ```text
//!  here      settings, the sending thread, what deliveries lead to
//!  producers the producer, and another one when it fails for good; the events thread
//!  reader    the reading thread: replays, claims, stretches that somebody else wrote to
//!  topic     what the brokers say of the topic, and making it
//! ```
//! The producer is idempotent with `acks=all` and never gives a write up by itself
//! (`message.timeout.ms = 0`): what a core was told late about may still arrive, in order, and without a
//! gap behind it. The consumer reads only while there is something to know: a replay, a claim, a
//! stretch of the log that somebody else wrote to. Once a second the ends of all owned partitions
//! are asked for, in one request, so that an owner without writes hears of a claim too.

mod pace;
mod producers;
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

use self::{producers::Producers, reader::Reader};
use super::{
    super::partition_files::PartitionFiles,
    link::{
        Append, Exchange, FromKafka, KafkaConfig, KafkaError, KafkaLink, Mailbox, Order, exchange,
        outcome_unknown,
    },
    opening::owned_by,
};
use crate::{config::kafka_options, exit::Exit};

/// What Kafka adds to a message, at most.
const OVERHEAD_BYTES: usize = 1 << 10;

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
            trouble: Mutex::default(),
        });
        let wrong = |error: ClientError| KafkaError::Config(error.to_string());
        let settings = client_settings(config)?;
        let producers = Producers::new(settings.0, Arc::clone(&shared)).map_err(wrong)?;
        let producers = Arc::new(producers);
        let consumer: BaseConsumer<Quiet> = settings.1.create_with_context(Quiet).map_err(wrong)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut client = Self { stop: Arc::clone(&stop), threads: Vec::new() };

        let (out, sender_shared) = (Arc::clone(&producers), Arc::clone(&shared));
        let sender_stop = Arc::clone(&stop);
        client.spawn("kafka-send", move || {
            send(&appends, &out, &sender_shared, &sender_stop);
        })?;
        let (events, events_stop) = (Arc::clone(&producers), Arc::clone(&stop));
        client.spawn("kafka-events", move || events.hear(&events_stop))?;
        let mut reader =
            Reader::new(config.clone(), shared, files, producers, consumer, record_bytes_max);
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
    let fit = kafka_options::check(&config.options, cfg!(feature = "kafka-tls"));
    fit.map_err(|problem| KafkaError::Config(format!("options: {problem}")))?;
    for (name, value) in &config.options {
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
    let is_given =
        |names: &[&str]| config.options.iter().any(|(name, _)| names.contains(&name.as_str()));
    if !is_given(&["linger.ms", "queue.buffering.max.ms"]) {
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
        // A read-back waits for the request that is out already: this long at most.
        .set("fetch.wait.max.ms", "5")
        .set("queued.max.messages.kbytes", KAFKA_FETCH_QUEUE_KB.to_string());
    if !is_given(&["fetch.queue.backoff.ms"]) {
        // A replay fills the queue faster than it is read, again and again. librdkafka's own second, for
        // which a partition is not fetched then, is two thirds of a replay's time.
        consumer.set("fetch.queue.backoff.ms", "2");
    }
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
    /// What the client said last of its connections.
    trouble: Mutex<Option<String>>,
}

impl Shared {
    fn owned(&self) -> MutexGuard<'_, HashMap<PartitionId, Owned>> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
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
            let held = outcome_unknown(text);
            tracing::error!(partition = id.0, %later, "a partition's log in Kafka is over");
            let over = FromKafka::Over { partition: id, epoch, held, later, reopens: false };
            self.post(core, over);
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
                    "topic `{}`, partition {id}: the write with sequence {sequence} is not where it should be: look after the brokers, then restart the node, which reads again what is there",
                    self.topic
                );
                over(Refusal::new(Reason::PartitionStopped, text));
            }
        }
    }

    /// A write cannot be delivered, ever.
    fn failed(&self, id: PartitionId, epoch: Epoch, error: &str) {
        let mut all = self.owned();
        if let Some(owned) = all.get_mut(&id)
            && owned.owner.passed().epoch == epoch
        {
            self.give_up(id, owned, error);
        }
    }

    /// The writes under way of a partition are given up. What came of them is in the log and
    /// nowhere else: it is read again and claimed again, by this node, unless another has.
    fn give_up(&self, id: PartitionId, owned: &mut Owned, error: &str) {
        if owned.owner.is_over() {
            return;
        }
        owned.owner.give_up();
        let text = format!("a write to partition {id} did not get to Kafka: {error}");
        let held = outcome_unknown(format!("{text}; its outcome is unknown"));
        let later = format!("{text}; the partition reads its log again");
        let later = Refusal::new(Reason::PartitionStarting, later);
        tracing::error!(partition = id.0, error, "a partition's log in Kafka is opened anew");
        let epoch = owned.owner.passed().epoch;
        let over = FromKafka::Over { partition: id, epoch, held, later, reopens: true };
        self.post(owned.core, over);
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
        // librdkafka tries again by itself; what it costs is told by whoever waits, with this.
        tracing::debug!(%error, reason, "Kafka");
        // That all are away is known; why is what an operator asks.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.0.trouble() = Some(reason.to_owned());
        }
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
        // The producer, which is always connected, hears the same.
        tracing::debug!(%error, reason, "Kafka");
    }
}

impl ConsumerContext for Quiet {}

/// How long after something was not to be had of the brokers it is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a thread waits before it looks whether it is to stop.
const PAUSE: Duration = Duration::from_millis(100);

/// The sending thread: from the cores' batches to the producer's queues.
fn send(
    appends: &flume::Receiver<Vec<Append>>,
    producers: &Producers,
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
        let producer = producers.present();
        drop(owned);
        for append in &batch {
            let sent = Sent {
                partition: append.partition,
                epoch: append.epoch,
                sequence: Some(append.sequence),
            };
            if let Err(error) =
                produce(&producer, &shared.topic, &append.bytes, append.unix_ms, sent)
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
