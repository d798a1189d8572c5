//! The log in Kafka as a core has it: what is under way, and what has to be remembered of it.

use std::{
    collections::{HashMap, VecDeque},
    sync::atomic::Ordering,
    time::Instant,
};

use stateside_pipeline::{
    Write,
    kafka::{Anchor, MessageHead, Position, encode_write, kafka_record_bytes},
};
use stateside_statestore::StateStore;
use stateside_types::{
    Epoch, PartitionId, PartitionSpec, Reason, Refusal, Sequence,
    limits::{KAFKA_ANCHORS_MAX, KAFKA_PENDING_BYTES_PER_CORE_MAX},
};

use super::link::{Append, KafkaLink, Mail, OpenRequest, Order, outcome_unknown};

/// What an operator sees of a partition's log in Kafka.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KafkaReport {
    /// Epoch of this node's claim; 0 while it has none.
    pub epoch: u64,
    /// Offset of the last message that counts, or up to where it has been replayed.
    pub offset: u64,
    /// Writes that the brokers have not acknowledged, or messages still to be replayed.
    pub lag: u64,
}

struct Pending {
    sequence: Sequence,
    bytes: usize,
    since: Instant,
}

/// A partition that this core may write to.
struct OpenLog {
    epoch: Epoch,
    pending: VecDeque<Pending>,
    passed: Anchor,
    position: Position,
    /// Messages that count, some of them, newest last: one of them becomes the position's anchor
    /// once the store survives without what is before it.
    anchors: VecDeque<Anchor>,
    /// Bytes sent since the position's anchor.
    unanchored_bytes: u64,
    is_filing: bool,
}

/// Lives on its core's thread.
pub(crate) struct CoreKafka {
    link: KafkaLink,
    open: HashMap<PartitionId, OpenLog>,
    /// Partitions on their way: how far they are.
    opening: HashMap<PartitionId, KafkaReport>,
    outgoing: Vec<Append>,
    pending_bytes: usize,
    now: Instant,
}

impl CoreKafka {
    pub(crate) fn new(link: KafkaLink, now: Instant) -> Self {
        Self {
            link,
            open: HashMap::new(),
            opening: HashMap::new(),
            outgoing: Vec::new(),
            pending_bytes: 0,
            now,
        }
    }

    /// The time that this turn goes by.
    pub(crate) fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// Has a partition replayed and claimed.
    pub(crate) fn open(&mut self, spec: PartitionSpec, store: Box<dyn StateStore>) {
        self.opening.insert(spec.id, KafkaReport::default());
        let request = OpenRequest { core: self.link.core, spec, store };
        // The reading thread ends after the cores.
        let _ = self.link.orders.send(Order::Open(Box::new(request)));
    }

    /// How far an opening is.
    pub(crate) fn progress(&mut self, partition: PartitionId, offset: u64, lag: u64) {
        if let Some(report) = self.opening.get_mut(&partition) {
            *report = KafkaReport { epoch: 0, offset, lag };
        }
    }

    /// A partition is claimed: its writes go out from now on.
    pub(crate) fn adopt(&mut self, partition: PartitionId, claim: Anchor, position: Position) {
        self.opening.remove(&partition);
        let log = OpenLog {
            epoch: claim.epoch,
            pending: VecDeque::new(),
            passed: claim,
            position,
            anchors: VecDeque::from([claim]),
            unanchored_bytes: 0,
            is_filing: false,
        };
        self.open.insert(partition, log);
    }

    /// A partition is not written here any more.
    pub(crate) fn close(&mut self, partition: PartitionId) {
        let was_opening = self.opening.remove(&partition).is_some();
        if let Some(log) = self.open.remove(&partition) {
            self.pending_bytes -= log.pending.iter().map(|pending| pending.bytes).sum::<usize>();
        } else if !was_opening {
            return;
        }
        let _ = self.link.orders.send(Order::Close(partition));
    }

    /// Whether a partition's claim is the one with this epoch.
    pub(crate) fn has_claim(&self, partition: PartitionId, epoch: Epoch) -> bool {
        self.open.get(&partition).is_some_and(|log| log.epoch == epoch)
    }

    /// Whether a write can go out now.
    pub(crate) fn admit(&self, partition: PartitionId, write: &Write<'_>) -> Result<(), Refusal> {
        let Some(log) = self.open.get(&partition) else {
            let text = format!("partition {partition} has not claimed its log in Kafka");
            return Err(Refusal::new(Reason::PartitionStarting, text));
        };
        let bytes = kafka_record_bytes(write.entries, write.request);
        let most = self.link.record_bytes_max.load(Ordering::Relaxed);
        if bytes > most {
            let text =
                format!("the write makes a message of {bytes} bytes; the topic takes {most}");
            return Err(Refusal::new(Reason::BatchTooLarge, text));
        }
        if self.is_late(log) {
            let text = format!(
                "the Kafka brokers have not acknowledged writes of partition {partition} for {:?}; nothing was written",
                self.link.ack_timeout
            );
            return Err(Refusal::new(Reason::LogUnavailable, text));
        }
        if self.pending_bytes + bytes > KAFKA_PENDING_BYTES_PER_CORE_MAX {
            let text = format!(
                "{} bytes of writes wait for the Kafka brokers",
                KAFKA_PENDING_BYTES_PER_CORE_MAX
            );
            return Err(Refusal::new(Reason::Overloaded, text));
        }
        Ok(())
    }

    fn is_late(&self, log: &OpenLog) -> bool {
        let late = |pending: &Pending| {
            self.now.saturating_duration_since(pending.since) >= self.link.ack_timeout
        };
        log.pending.front().is_some_and(late)
    }

    /// Sends the write that was admitted last.
    pub(crate) fn append(&mut self, write: &Write<'_>) {
        let log = self.open.get_mut(&write.partition);
        let log = log.expect("a write is admitted before it is accepted");
        let mut head = MessageHead {
            partition: write.partition,
            epoch: log.epoch,
            sequence: write.sequence,
            timestamp: write.timestamp,
            crc: 0,
        };
        let bytes = encode_write(&mut head, write.request, write.entries);
        let pending = Pending { sequence: write.sequence, bytes: bytes.len(), since: self.now };
        log.pending.push_back(pending);
        log.unanchored_bytes += bytes.len() as u64;
        self.pending_bytes += bytes.len();
        self.outgoing.push(Append {
            partition: write.partition,
            epoch: log.epoch,
            sequence: write.sequence,
            unix_ms: i64::try_from(write.now.0).unwrap_or(i64::MAX),
            crc: head.crc,
            bytes,
        });
    }

    /// Hands over what this turn wrote. What the channel has no room for goes with a later turn; it is
    /// bounded by what may be pending.
    pub(crate) fn flush(&mut self) {
        if self.outgoing.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.outgoing);
        if let Err(flume::TrySendError::Full(batch)) = self.link.appends.try_send(batch) {
            self.outgoing = batch;
        }
    }

    /// What Kafka's threads have left.
    pub(crate) fn take_mail(&self) -> Option<Mail> {
        self.link.mailbox.take()
    }

    /// Writes up to here count. The sequence, when they are of this claim.
    pub(crate) fn passed(&mut self, partition: PartitionId, anchor: Anchor) -> Option<Sequence> {
        let log = self.open.get_mut(&partition).filter(|log| log.epoch == anchor.epoch)?;
        while log.pending.front().is_some_and(|one| one.sequence <= anchor.sequence) {
            let done = log.pending.pop_front().expect("it was just looked at");
            self.pending_bytes -= done.bytes;
        }
        log.passed = anchor;
        Some(anchor.sequence)
    }

    /// Partitions with writes that have waited too long: up to which sequence.
    pub(crate) fn late(&self) -> Vec<(PartitionId, Sequence)> {
        let late = |log: &OpenLog| {
            let is_late = |pending: &&Pending| {
                self.now.saturating_duration_since(pending.since) >= self.link.ack_timeout
            };
            log.pending.iter().take_while(is_late).last().map(|pending| pending.sequence)
        };
        self.open.iter().filter_map(|(id, log)| Some((*id, late(log)?))).collect()
    }

    /// What those hear who waited too long.
    pub(crate) fn unknown_outcome(&self, partition: PartitionId) -> Refusal {
        let text = format!(
            "the Kafka brokers have not acknowledged the write to partition {partition} within {:?}: its outcome is unknown, it may still take effect",
            self.link.ack_timeout
        );
        outcome_unknown(text)
    }

    /// Whether everything sent is known to count.
    pub(crate) fn is_idle(&self) -> bool {
        self.outgoing.is_empty() && self.open.values().all(|log| log.pending.is_empty())
    }

    /// Partitions of this core, open here.
    pub(crate) fn partitions(&self) -> Vec<PartitionId> {
        self.open.keys().copied().collect()
    }

    /// A partition survives without its log up to `covered`: the position to write to its file, when
    /// that spares the next start a part of the replay. Call [`Self::filed`] when it is written.
    pub(crate) fn file_position(
        &mut self,
        partition: PartitionId,
        covered: Sequence,
    ) -> Option<Position> {
        let log = self.open.get_mut(&partition)?;
        if log.anchors.back().is_none_or(|last| last.offset < log.passed.offset) {
            if log.anchors.len() >= KAFKA_ANCHORS_MAX {
                // Every other one: near the end they are as close as they come.
                let mut nth = 0;
                log.anchors.retain(|_| {
                    nth += 1;
                    nth % 2 == 0
                });
            }
            log.anchors.push_back(log.passed);
        }
        if log.is_filing {
            return None;
        }
        let best = log.anchors.iter().rev().find(|anchor| anchor.sequence <= covered).copied()?;
        if log.position.anchor.is_some_and(|filed| filed.offset >= best.offset)
            || best.offset == log.position.claim.offset && best.sequence == Sequence::ZERO
        {
            return None;
        }
        log.is_filing = true;
        Some(Position { anchor: Some(best), ..log.position.clone() })
    }

    /// A position's file was written, or not.
    pub(crate) fn filed(&mut self, partition: PartitionId, position: Option<Position>) {
        let Some(log) = self.open.get_mut(&partition) else { return };
        log.is_filing = false;
        let Some(position) = position.filter(|position| position.claim == log.position.claim)
        else {
            return;
        };
        let filed = position.anchor.map_or(0, |anchor| anchor.offset);
        log.anchors.retain(|anchor| anchor.offset > filed);
        log.position = position;
        log.unanchored_bytes = 0;
    }

    /// Partitions of which so much was written since their newest snapshot that they need another.
    pub(crate) fn due_for_snapshot(&mut self) -> Vec<PartitionId> {
        let most = self.link.snapshot_bytes;
        let due = self.open.iter_mut().filter(|(_, log)| log.unanchored_bytes >= most);
        due.map(|(id, _)| *id).collect()
    }

    /// What an operator sees.
    pub(crate) fn report(&self, partition: PartitionId) -> Option<KafkaReport> {
        if let Some(log) = self.open.get(&partition) {
            return Some(KafkaReport {
                epoch: log.epoch.0,
                offset: log.passed.offset,
                lag: log.pending.len() as u64,
            });
        }
        self.opening.get(&partition).copied()
    }

    /// Bytes sent and not known to count.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }
}
