//! What crosses between cores and Kafka's threads.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use stateside_pipeline::kafka::{Anchor, KAFKA_RECORD_BYTES_MAX, Position};
use stateside_statestore::StateStore;
use stateside_types::{
    CoreId, Epoch, PartitionId, PartitionSpec, Reason, Refusal, Sequence,
    limits::KAFKA_BATCHES_QUEUED_MAX,
};

/// How the node uses Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaConfig {
    /// `host:port,host:port`.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// Kafka partitions that the topic has to have; 0: as many as the partition set needs.
    pub partitions: u32,
    /// Copies of the topic, when it has to be made.
    pub replication: u32,
    /// How long a write may wait for the brokers.
    pub ack_timeout: Duration,
    /// Bytes written since the newest snapshot above which a partition is snapshotted.
    pub snapshot_bytes: u64,
    /// Further settings of librdkafka.
    pub options: Vec<(String, String)>,
    /// This node's id.
    pub node: String,
    /// Kafka partitions that the partition set needs.
    pub needed: u32,
}

/// Why there is no Kafka client. Prints as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    /// librdkafka does not take the settings.
    #[error("[kafka]: {0}")]
    Config(String),
    /// A thread could not be started.
    #[error("starting Kafka's threads: {0}")]
    Thread(std::io::Error),
}

/// The refusal of a write that may take effect all the same; programs tell it by its `outcome`.
pub(crate) fn outcome_unknown(text: String) -> Refusal {
    Refusal::new(Reason::LogUnavailable, text).with("outcome", "unknown")
}

/// A write on its way.
#[derive(Debug)]
pub(crate) struct Append {
    pub(crate) partition: PartitionId,
    /// The claim under which it is written.
    pub(crate) epoch: Epoch,
    pub(crate) sequence: Sequence,
    /// For Kafka's own index by time, milliseconds since 1970.
    pub(crate) unix_ms: i64,
    pub(crate) crc: u32,
    pub(crate) bytes: Vec<u8>,
}

/// What the reading thread is asked.
pub(crate) enum Order {
    /// Replay the partition into its store, claim it, hand it back.
    Open(Box<OpenRequest>),
    /// It is of no interest any more.
    Close(PartitionId),
    /// Read an owned partition from this offset on: what stands there is not known.
    Check(PartitionId, u64),
    /// A claim did not get to the brokers.
    ClaimFailed(PartitionId, String),
}

/// A partition to open.
pub(crate) struct OpenRequest {
    pub(crate) core: CoreId,
    pub(crate) spec: PartitionSpec,
    /// With what its newest snapshot holds, or what is on disk.
    pub(crate) store: Box<dyn StateStore>,
}

/// A partition that this node owns.
pub(crate) struct OpenedLog {
    pub(crate) store: Box<dyn StateStore>,
    pub(crate) claim: Anchor,
    /// As its file has it.
    pub(crate) position: Position,
}

/// What a core hears.
pub(crate) enum FromKafka {
    /// A replay goes on, or waits for the brokers.
    Progress { partition: PartitionId, offset: u64, lag: u64, detail: String },
    /// A partition is open, or cannot be.
    Opened { partition: PartitionId, first_epoch: Epoch, result: Result<Box<OpenedLog>, Refusal> },
    /// A claim is over: what waits hears `held`, what comes hears `later`. `reopens`: until the
    /// partition has read its log again and claimed it again, which the core has it do.
    Over { partition: PartitionId, epoch: Epoch, held: Refusal, later: Refusal, reopens: bool },
}

/// What waits for a core. Bounded by the number of its partitions: the newest that counts of each,
/// and one event for each opening and claim.
#[derive(Default)]
pub(crate) struct Mail {
    pub(crate) passed: HashMap<PartitionId, Anchor>,
    pub(crate) events: Vec<FromKafka>,
}

/// One core's. A mutex and not a channel, because what counts is told anew with every message and
/// only the last matters: a core that is busy finds one line a partition, however many came.
#[derive(Default)]
pub(crate) struct Mailbox {
    mail: Mutex<Mail>,
    /// Letters in it, so that a turn without any takes no lock.
    letters: AtomicUsize,
}

impl Mailbox {
    /// True: it was empty, so the core has to be woken.
    pub(crate) fn passed(&self, partition: PartitionId, anchor: Anchor) -> bool {
        let mut mail = self.lock();
        mail.passed.insert(partition, anchor);
        self.letters.fetch_add(1, Ordering::Release) == 0
    }

    /// As [`Self::passed`].
    pub(crate) fn post(&self, event: FromKafka) -> bool {
        let mut mail = self.lock();
        if let FromKafka::Progress { partition: id, .. } = &event {
            // Only the newest is of interest.
            let is_older = |other: &FromKafka| matches!(other, FromKafka::Progress { partition, .. } if partition == id);
            mail.events.retain(|other| !is_older(other));
        }
        mail.events.push(event);
        self.letters.fetch_add(1, Ordering::Release) == 0
    }

    /// Everything in it, if there is anything.
    pub(crate) fn take(&self) -> Option<Mail> {
        if self.letters.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut mail = self.lock();
        self.letters.store(0, Ordering::Release);
        Some(std::mem::take(&mut mail))
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A core's ends.
#[derive(Clone)]
pub struct KafkaLink {
    pub(crate) core: CoreId,
    pub(crate) appends: flume::Sender<Vec<Append>>,
    pub(crate) orders: flume::Sender<Order>,
    pub(crate) mailbox: Arc<Mailbox>,
    /// Largest message that the topic takes.
    pub(crate) record_bytes_max: Arc<AtomicUsize>,
    pub(crate) ack_timeout: Duration,
    pub(crate) snapshot_bytes: u64,
}

/// Kafka's ends.
pub(crate) struct Exchange {
    pub(crate) appends: flume::Receiver<Vec<Append>>,
    pub(crate) orders: flume::Receiver<Order>,
    pub(crate) checks: flume::Sender<Order>,
    pub(crate) mailboxes: Vec<Arc<Mailbox>>,
    pub(crate) record_bytes_max: Arc<AtomicUsize>,
}

/// Both ends, for so many cores.
pub(crate) fn exchange(config: &KafkaConfig, cores: u16) -> (Vec<KafkaLink>, Exchange) {
    let (appends, appends_in) = flume::bounded(KAFKA_BATCHES_QUEUED_MAX);
    // One order of a kind for a partition at a time: bounded by their number.
    let (orders, orders_in) = flume::unbounded();
    let record_bytes_max = Arc::new(AtomicUsize::new(KAFKA_RECORD_BYTES_MAX));
    let mailboxes: Vec<Arc<Mailbox>> = (0..cores).map(|_| Arc::default()).collect();
    let links = mailboxes
        .iter()
        .zip(0..)
        .map(|(mailbox, core)| KafkaLink {
            core: CoreId(core),
            appends: appends.clone(),
            orders: orders.clone(),
            mailbox: Arc::clone(mailbox),
            record_bytes_max: Arc::clone(&record_bytes_max),
            ack_timeout: config.ack_timeout,
            snapshot_bytes: config.snapshot_bytes,
        })
        .collect();
    let checks = orders;
    (
        links,
        Exchange { appends: appends_in, orders: orders_in, checks, mailboxes, record_bytes_max },
    )
}
