//! The reading thread: it replays partitions and claims them, looks at what somebody else may have
//! written, and asks once a second where the owned partitions end.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError as ClientError, RDKafkaErrorCode},
    message::Message as _,
};
use stateside_pipeline::kafka::{Anchor, Next, Owner, Position};
use stateside_types::{Epoch, PartitionId, Reason, Refusal, limits::KAFKA_OPENINGS_MAX};

use super::{
    Owned, Quiet, RETRY, Sent, Shared, number,
    pace::Pace,
    produce,
    producers::Producers,
    topic::{Known, Trouble, wrong},
};
use crate::core::{
    kafka::{
        link::{FromKafka, KafkaConfig, OpenRequest, Order},
        opening::{Opening, Whereabouts},
    },
    partition_files::PartitionFiles,
};

/// How often the ends of the owned partitions are asked for.
const WATCH: Duration = Duration::from_secs(1);
/// How often a core hears how far a replay is.
const PROGRESS: Duration = Duration::from_millis(250);
/// Longest wait of the reading thread while it has partitions to read.
const READ_PAUSE: Duration = Duration::from_millis(10);
/// Partitions whose ends are asked for together, when as many wait; fewer after a pause, so that a few
/// places that become free one by one are not each a question of its own.
const ASKED_TOGETHER: usize = KAFKA_OPENINGS_MAX / 4;
const ASK_PAUSE: Duration = Duration::from_millis(50);
/// Messages read before orders are looked at again.
const READS_AT_A_TIME: usize = 4_096;
/// What is being read of a partition.
enum Task {
    Opening(Box<Opening>),
    /// An owned partition, of which a stretch is not known.
    Checking,
}

/// The reading thread.
pub(super) struct Reader {
    pub(super) config: KafkaConfig,
    shared: Arc<Shared>,
    pub(super) files: Arc<PartitionFiles>,
    producers: Arc<Producers>,
    pub(super) consumer: BaseConsumer<Quiet>,
    pub(super) record_bytes_max: Arc<AtomicUsize>,
    pub(super) known: Option<Known>,
    /// Partitions that wait for the brokers, or for others to be opened.
    waiting: VecDeque<OpenRequest>,
    tasks: HashMap<PartitionId, Task>,
    /// Partitions whose claim failed on its way: claimed again at `retry_at`.
    unclaimed: Vec<PartitionId>,
    pace: Option<Pace>,
    retry_at: Instant,
    /// When the ends of less than [`ASKED_TOGETHER`] partitions may be asked for.
    ask_at: Instant,
    watch_at: Instant,
    tell_at: Instant,
    nonces: fastrand::Rng,
    /// The brokers could not be reached when they were last asked.
    is_away: bool,
}

impl Reader {
    pub(super) fn new(
        config: KafkaConfig,
        shared: Arc<Shared>,
        files: Arc<PartitionFiles>,
        producers: Arc<Producers>,
        consumer: BaseConsumer<Quiet>,
        record_bytes_max: Arc<AtomicUsize>,
    ) -> Self {
        let now = Instant::now();
        Self {
            config,
            shared,
            files,
            producers,
            consumer,
            record_bytes_max,
            known: None,
            waiting: VecDeque::new(),
            tasks: HashMap::new(),
            unclaimed: Vec::new(),
            pace: None,
            retry_at: now,
            ask_at: now,
            watch_at: now,
            tell_at: now,
            nonces: fastrand::Rng::new(),
            is_away: false,
        }
    }

    /// Does what there is to do, or waits a moment for it.
    pub(super) fn turn(&mut self, orders: &flume::Receiver<Order>) {
        while let Ok(order) = orders.try_recv() {
            self.order(order);
        }
        let now = Instant::now();
        if now >= self.retry_at {
            for id in std::mem::take(&mut self.unclaimed) {
                self.claim(id);
            }
            self.open_waiting();
        }
        let is_opening = |task: &Task| matches!(task, Task::Opening(_));
        if self.pace.is_some() && self.waiting.is_empty() && !self.tasks.values().any(is_opening) {
            self.pace.take().expect("it was just looked at").end(Instant::now());
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
                // Its log may be over for what the topic has become.
                self.known = None;
            }
            Order::Check(id, offset) => {
                if self.shared.owned().contains_key(&id) && !self.tasks.contains_key(&id) {
                    self.assign(id, offset);
                    self.tasks.insert(id, Task::Checking);
                }
            }
            Order::ClaimFailed(id, error) => self.claim_failed(id, error),
        }
    }

    /// A claim was refused, or went down with its producer. What is in the way may go (an operator
    /// grants a right, say), so it is tried again; the partition's state tells why meanwhile.
    fn claim_failed(&mut self, id: PartitionId, error: String) {
        let Some(Task::Opening(opening)) = self.tasks.get_mut(&id) else { return };
        // One that went down with its producer says that alone.
        let error = match self.shared.trouble().as_deref() {
            Some(trouble) => format!("{error}; last: {trouble}"),
            None => error,
        };
        if opening.trouble() != Some(&error) {
            tracing::warn!(
                partition = id.0,
                error,
                "a claim did not get to Kafka; it is tried again every second"
            );
        }
        opening.claim_failed(error);
        self.unclaimed.push(id);
        self.retry_at = Instant::now() + RETRY;
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
        let room = KAFKA_OPENINGS_MAX.saturating_sub(self.tasks.len()).min(self.waiting.len());
        let is_little = room < self.waiting.len().min(ASKED_TOGETHER);
        if room == 0 || is_little && Instant::now() < self.ask_at {
            return;
        }
        self.ask_at = Instant::now() + ASK_PAUSE;
        let mut left: VecDeque<OpenRequest> = self.waiting.drain(..room).collect();
        let mut there = Vec::with_capacity(room);
        let looked = loop {
            let Some(request) = left.pop_front() else { break Ok(()) };
            match self.look(request.spec.id) {
                Ok(()) => there.push(request),
                Err(Trouble::Wrong(refusal)) => self.refuse(request, refusal),
                Err(Trouble::Away(error)) => {
                    left.push_front(request);
                    break Err(error);
                }
            }
        };
        if looked.is_ok() && there.is_empty() {
            return;
        }
        let ids: Vec<_> = there.iter().map(|request| request.spec.id).collect();
        match looked.and_then(|()| self.ends(&ids)) {
            Ok(ends) => {
                if std::mem::take(&mut self.is_away) {
                    tracing::info!("the Kafka brokers can be reached again");
                }
                for (request, marks) in there.into_iter().zip(ends) {
                    match self.files.read_kafka_position(request.spec.id) {
                        Ok(position) => self.begin(request, position, marks),
                        Err(refusal) => self.refuse(request, refusal),
                    }
                }
            }
            Err(error) => {
                for request in there.into_iter().chain(left).rev() {
                    self.waiting.push_front(request);
                }
                self.wait_for_brokers(&error);
            }
        }
    }

    /// They could not be reached: whoever waits for them hears of it.
    fn wait_for_brokers(&mut self, error: &str) {
        if !self.is_away {
            tracing::warn!(
                error,
                "the Kafka brokers cannot be reached; they are tried again every second"
            );
        }
        self.is_away = true;
        let detail = match self.shared.trouble().as_deref() {
            Some(trouble) => format!("waits for the Kafka brokers: {error}; last: {trouble}"),
            None => format!("waits for the Kafka brokers: {error}"),
        };
        for request in &self.waiting {
            let (partition, detail) = (request.spec.id, detail.clone());
            let told = FromKafka::Progress { partition, offset: 0, lag: 0, detail };
            self.shared.post(request.core, told);
        }
        self.retry_at = Instant::now() + RETRY;
    }

    fn begin(&mut self, request: OpenRequest, position: Option<Position>, marks: (u64, u64)) {
        let id = request.spec.id;
        let cluster = self.known.as_ref().map_or("", |known| known.cluster.as_str());
        let (topic, node) = (self.config.topic.as_str(), self.config.node.as_str());
        match Opening::begin(request, position, marks, &Whereabouts { cluster, topic, node }) {
            Err((request, refusal)) => self.refuse(*request, refusal),
            Ok(opening) => {
                self.assign(id, opening.next());
                self.pace.get_or_insert_with(|| Pace::begin(Instant::now()));
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
            let looked = self.look(id).and_then(|()| self.ends(&[id]).map_err(Trouble::Away));
            let refusal = match looked.map(|ends| ends[0]) {
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
                    let epoch =
                        self.shared.owned().get(&id).map(|owned| owned.owner.passed().epoch);
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
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let unix_ms = now.map_or(0, |now| i64::try_from(now.as_millis()).unwrap_or(0));
                let producer = self.producers.present();
                if let Err(error) = produce(&producer, &self.config.topic, &bytes, unix_ms, sent) {
                    self.claim_failed(id, error);
                }
                return;
            }
            Err(refusal) => refusal,
        };
        if let Some(Task::Opening(opening)) = self.end(id) {
            self.refuse_opening(&opening, refusal);
        }
    }

    /// The claim was met, and counts: it is remembered, then the partition goes to its core.
    fn opened(&mut self, id: PartitionId, claim: Anchor) {
        let Some(Task::Opening(opening)) = self.end(id) else { return };
        if let Some(pace) = &mut self.pace {
            pace.opened(opening.replayed());
        }
        let (head, opened) = opening.opened(claim);
        let written = self.files.write_kafka_position(id, &opened.position);
        let result = match written {
            Ok(()) => {
                let owned = Owned { core: head.core, owner: Owner::new(claim), is_checked: false };
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

    fn tell_progress(&mut self) {
        let openings = self.tasks.values().filter_map(|task| match task {
            Task::Opening(opening) => Some((opening.replayed(), opening.lag())),
            Task::Checking => None,
        });
        if let Some(pace) = &mut self.pace {
            pace.tell(Instant::now(), openings);
        }
        for (id, task) in &self.tasks {
            let Task::Opening(opening) = task else { continue };
            let (partition, offset, lag) = (*id, opening.next(), opening.lag());
            let detail = if let Some(trouble) = opening.trouble() {
                format!("cannot claim its log in Kafka, and tries every second: {trouble}")
            } else if lag == 0 {
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
    Opening(PartitionId, Result<Option<Anchor>, Refusal>, bool),
    Checked(PartitionId, bool),
    Cut,
}
