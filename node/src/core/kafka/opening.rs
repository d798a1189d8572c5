//! A partition on its way: its log is replayed, then claimed, then the claim is read back.
//!
//! ```text
//!  marks ─► begin ─► message … message ─► at the end: claim ─► message … the claim, and it counts ─► open
//!             │         │                     │    ▲                  └─ void: somebody was faster ─┐
//!             └─────────┴── refused ◄─────────┘    └────────────────────────────────────────────────┘
//! ```
//! Knows nothing of librdkafka: it is given messages and gives back claims.

use stateside_pipeline::kafka::{
    Anchor, Claim, Event, Ignored, Message, Position, Replay, ReplayError, decode, encode_claim,
};
use stateside_types::{PartitionId, Reason, Refusal, Sequence};

use super::{
    super::partition_files::work,
    link::{OpenRequest, OpenedLog},
};

/// Whose topic it is.
pub(crate) struct Whereabouts<'a> {
    pub(crate) cluster: &'a str,
    pub(crate) topic: &'a str,
    pub(crate) node: &'a str,
}

/// What has been read of a log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Replayed {
    pub(crate) messages: u64,
    /// Entries of the writes that count and that the store had not.
    pub(crate) records: u64,
}

/// See the module's header. Lives on the reading thread.
pub(crate) struct Opening {
    request: OpenRequest,
    position: Option<Position>,
    cluster: String,
    topic: String,
    node: String,
    replay: Replay,
    /// The claim that was sent last, and its checksum.
    claim: Option<(Claim, u32)>,
    /// Why the last one failed.
    trouble: Option<String>,
    /// The next message to read.
    next: u64,
    /// Messages that were there when it began.
    high: u64,
    replayed: Replayed,
}

impl Opening {
    /// Begins; `low` and `high` are the first offset that the log has and the one after its last.
    ///
    /// # Errors
    /// Why the log cannot be this partition's; the request comes back.
    pub(crate) fn begin(
        request: OpenRequest,
        position: Option<Position>,
        (low, high): (u64, u64),
        at: &Whereabouts<'_>,
    ) -> Result<Self, (Box<OpenRequest>, Refusal)> {
        let id = request.spec.id;
        if let Err(text) = check(&request, position.as_ref(), (low, high), at) {
            let text = format!("partition {id} of topic `{}`: {text}", at.topic);
            return Err((Box::new(request), Refusal::new(Reason::LogMismatch, text)));
        }
        let anchor = position.as_ref().and_then(|position| position.anchor);
        let claim = position.as_ref().map(|position| position.claim);
        let replay = Replay::new(id, request.spec.range, anchor, claim);
        Ok(Self {
            next: replay.start(),
            request,
            position,
            cluster: at.cluster.to_owned(),
            topic: at.topic.to_owned(),
            node: at.node.to_owned(),
            replay,
            claim: None,
            trouble: None,
            high,
            replayed: Replayed::default(),
        })
    }

    /// The next offset to read.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Messages still to be read before the partition can be claimed, about.
    pub(crate) fn lag(&self) -> u64 {
        self.high.saturating_sub(self.next)
    }

    pub(crate) fn replayed(&self) -> Replayed {
        self.replayed
    }

    pub(crate) fn request(&self) -> &OpenRequest {
        &self.request
    }

    /// The claim failed on its way: the next one can be sent.
    pub(crate) fn claim_failed(&mut self, error: String) {
        self.claim = None;
        self.trouble = Some(error);
    }

    /// Why the last claim did not get to the brokers, if it did not.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The next message. The claim's place when it is this opening's own and counts.
    ///
    /// # Errors
    /// Why the partition cannot be served.
    pub(crate) fn message(&mut self, offset: u64, value: &[u8]) -> Result<Option<Anchor>, Refusal> {
        if offset < self.next {
            return Ok(None);
        }
        self.next = offset + 1;
        self.replayed.messages += 1;
        match self.replay.read(offset, value).map_err(|error| self.refused(&error))? {
            Event::Write(message) => self.apply(offset, &message).map(|()| None),
            Event::Claimed(claim) => {
                let mine = self.claim.as_ref().filter(|(mine, _)| mine.nonce == claim.nonce);
                Ok(mine.map(|(mine, crc)| Anchor {
                    offset,
                    epoch: mine.epoch,
                    sequence: self.replay.sequence(),
                    crc: *crc,
                }))
            }
            Event::Ignored(Ignored::VoidClaim) => {
                let crc = decode(value).map_or(0, |message| message.head().crc);
                // Somebody was faster: claim again, above it.
                self.claim.take_if(|(_, mine)| *mine == crc);
                Ok(None)
            }
            Event::Ignored(_) => Ok(None),
        }
    }

    fn apply(&mut self, offset: u64, message: &Message<'_>) -> Result<(), Refusal> {
        let head = *message.head();
        let store = self.request.store.as_mut();
        if head.sequence <= store.applied() {
            return Ok(());
        }
        let damaged = |text: &str| {
            let text = format!("partition {}, offset {offset}: {text}", head.partition);
            Refusal::new(Reason::PartitionDamaged, text)
        };
        if head.sequence != store.applied().next() {
            return Err(damaged("writes between the store and the log are missing"));
        }
        let mut entries = Vec::new();
        message.entries(&mut entries).map_err(|error| damaged(&error.to_string()))?;
        if let Message::Write { request: Some(mark), .. } = message {
            store.remember(head.sequence, head.timestamp, mark);
        }
        store.apply(head.sequence, head.timestamp, &entries);
        self.replayed.records += entries.len() as u64;
        while store.is_saturated() {
            work(store)?;
        }
        Ok(())
    }

    /// Whether every message that was there at the beginning has been read.
    pub(crate) fn is_at_end(&self) -> bool {
        self.next >= self.high
    }

    /// The log has been read to its end: the claim to send, unless one is on its way.
    ///
    /// # Errors
    /// Why it must not be claimed.
    pub(crate) fn claim(&mut self, nonce: u64) -> Result<Option<Vec<u8>>, Refusal> {
        if self.claim.is_some() {
            return Ok(None);
        }
        let id = self.request.spec.id;
        if let Some(anchor) = self.replay.still_to_meet() {
            let text = format!(
                "partition {id} of topic `{}` ends before offset {}, where this node has a record: {ANOTHER_TOPIC}",
                self.topic, anchor.offset
            );
            return Err(Refusal::new(Reason::LogMismatch, text));
        }
        if self.replay.sequence() < self.request.store.applied() {
            let text = format!(
                "partition {id} has writes up to sequence {} here and up to {} in topic `{}`: {ANOTHER_TOPIC}",
                self.request.store.applied(),
                self.replay.sequence(),
                self.topic
            );
            return Err(Refusal::new(Reason::LogMismatch, text));
        }
        if let (Some(position), Some(owner)) = (&self.position, self.replay.owner())
            && owner.epoch > position.claim.epoch
            && owner.node != self.node
        {
            return Err(owned_by(id, owner));
        }
        let claim = Claim {
            epoch: self.replay.epoch().next(),
            range: self.request.spec.range,
            nonce,
            node: self.node.clone(),
        };
        let (bytes, crc) = encode_claim(id, &claim);
        self.claim = Some((claim, crc));
        Ok(Some(bytes))
    }

    /// The claim counts: the partition, and what is to be remembered before it serves.
    pub(crate) fn opened(self, claim: Anchor) -> (OpenRequestHead, OpenedLog) {
        let anchor = self.position.and_then(|position| position.anchor);
        let position = Position { cluster: self.cluster, topic: self.topic, claim, anchor };
        let OpenRequest { core, spec, store } = self.request;
        let head = OpenRequestHead { core, partition: spec.id, first_epoch: spec.first_epoch };
        (head, OpenedLog { store, claim, position })
    }

    fn refused(&self, error: &ReplayError) -> Refusal {
        let text = format!("topic `{}`, partition {}: {error}", self.topic, self.request.spec.id);
        match error {
            ReplayError::Message { error, .. } if error.is_version() => {
                Refusal::new(Reason::FileVersion, text)
            }
            ReplayError::OtherRange { .. } => Refusal::new(
                Reason::LogMismatch,
                format!("{text}; give the partition the range that it was written with"),
            ),
            ReplayError::OtherTopic { .. } => {
                Refusal::new(Reason::LogMismatch, format!("{text}: {ANOTHER_TOPIC}"))
            }
            ReplayError::Message { .. }
            | ReplayError::OtherPartition { .. }
            | ReplayError::Unclaimed { .. } => Refusal::new(Reason::PartitionDamaged, text),
        }
    }
}

/// Who is to hear of an opening.
pub(crate) struct OpenRequestHead {
    pub(crate) core: stateside_types::CoreId,
    pub(crate) partition: PartitionId,
    pub(crate) first_epoch: stateside_types::Epoch,
}

const ANOTHER_TOPIC: &str = "it was deleted and made anew, cut, or is another cluster's; point kafka.brokers and kafka.topic at the right one, or remove the partition and add it again to begin with what this topic holds";

/// Another node owns the partition, as clients hear it.
pub(crate) fn owned_by(partition: PartitionId, owner: &Claim) -> Refusal {
    let text = format!(
        "node `{}` has claimed partition {partition} with epoch {}; to take it back, remove the partition here and add it again",
        owner.node, owner.epoch
    );
    Refusal::new(Reason::BadNode, text).with("owner", &owner.node)
}

fn check(
    request: &OpenRequest,
    position: Option<&Position>,
    (low, high): (u64, u64),
    at: &Whereabouts<'_>,
) -> Result<(), String> {
    let applied = request.store.applied();
    let Some(position) = position else {
        if applied > Sequence::ZERO {
            return Err(format!(
                "this node has writes of the partition up to sequence {applied} and does not know the topic; remove the partition and add it again to begin with what the topic holds"
            ));
        }
        if low > 0 {
            return Err(format!(
                "its messages before offset {low} are deleted, and this node has no snapshot to begin with; start the node that has one, and keep the topic's retention unlimited (retention.ms=-1)"
            ));
        }
        return Ok(());
    };
    if position.topic != at.topic {
        return Err(format!(
            "this node's log is topic `{}`; set kafka.topic to it, or remove the partition and add it again",
            position.topic
        ));
    }
    if position.cluster != at.cluster {
        return Err(format!(
            "this node's log is in the Kafka cluster {}, and kafka.brokers leads to the cluster {}; set kafka.brokers right, or remove the partition and add it again",
            position.cluster, at.cluster
        ));
    }
    let start = position.anchor.map_or(0, |anchor| anchor.offset);
    if low > start {
        return Err(format!(
            "its messages before offset {low} are deleted, and this node's snapshot ends at offset {start}: writes between them are lost here; start the node that has them, or restore a backup, and keep the topic's retention unlimited (retention.ms=-1)"
        ));
    }
    let last = position.claim.offset.max(start);
    if high <= last {
        return Err(format!(
            "it ends at offset {high}, and this node has seen offset {last}: {ANOTHER_TOPIC}"
        ));
    }
    if position.anchor.is_some_and(|anchor| anchor.sequence > applied) {
        return Err(format!(
            "the snapshot that goes with offset {start} is missing: this node has writes up to sequence {applied} only; remove the partition and add it again to replay all of the topic"
        ));
    }
    Ok(())
}
