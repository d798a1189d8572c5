//! Which messages of a Kafka partition count. See the module's header for the rule.

use stateside_types::{Epoch, HashRange, PartitionId, Sequence};

use super::{
    Anchor,
    record::{Claim, Message, MessageError, MessageHead, decode},
};

/// What a message is to whoever replays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A write that counts.
    Write(Message<'a>),
    /// A claim that counts: writes of earlier epochs do not from here on.
    Claimed(Claim),
    /// It changes nothing.
    Ignored(Ignored),
}

/// Why a message does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// A write of an owner that had lost the partition.
    Fenced,
    /// A write that stands in the log already.
    Repeated,
    /// A write after one that its owner could not get into the log, and so never acknowledged.
    AfterGap,
    /// A claim that came behind another one of its epoch, or a later.
    VoidClaim,
    /// The message that the replay began at: the store has it.
    Known,
}

/// Why a partition cannot be replayed: nothing after this offset can be trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// A message is none of ours.
    #[error("offset {offset}: {error}")]
    Message {
        /// Where.
        offset: u64,
        /// What is wrong.
        error: MessageError,
    },
    /// A record of another partition.
    #[error("offset {offset} has a record of partition {found}")]
    OtherPartition {
        /// Where.
        offset: u64,
        /// Whose it is.
        found: PartitionId,
    },
    /// A write of an epoch that nobody had claimed.
    #[error(
        "offset {offset} has a write of epoch {found}, and the last claim is of epoch {claimed}"
    )]
    Unclaimed {
        /// Where.
        offset: u64,
        /// The write's epoch.
        found: Epoch,
        /// The last claim's.
        claimed: Epoch,
    },
    /// The partition was cut differently when it was claimed.
    #[error(
        "offset {offset}: node `{node}` claimed the partition with hash range {found}, here it has {range}"
    )]
    OtherRange {
        /// Where.
        offset: u64,
        /// Who claimed.
        node: String,
        /// The range in the log.
        found: HashRange,
        /// The range here.
        range: HashRange,
    },
    /// The topic is not the one that this node knows.
    #[error(
        "offset {offset} should hold the record with checksum {expected:08x} of epoch {epoch} and does not"
    )]
    OtherTopic {
        /// Where.
        offset: u64,
        /// What should be there.
        expected: u32,
        /// Its epoch.
        epoch: Epoch,
    },
}

/// Replays one Kafka partition. Pure; lives with whoever reads it.
#[derive(Clone, Debug)]
pub struct Replay {
    partition: PartitionId,
    range: HashRange,
    epoch: Epoch,
    sequence: Sequence,
    /// A write of this epoch is missing: those behind it do not count.
    is_cut: bool,
    /// Must be met before anything else counts.
    begins_at: Option<Anchor>,
    /// Must be met on the way.
    must_meet: Option<Anchor>,
    owner: Option<Claim>,
}

impl Replay {
    /// Begins behind `anchor`, whose message must be the first one read; without one, at the
    /// beginning of the log. `must_meet`: this node's last claim, which must stand where it stood.
    pub fn new(
        partition: PartitionId,
        range: HashRange,
        anchor: Option<Anchor>,
        must_meet: Option<Anchor>,
    ) -> Self {
        let known = anchor.unwrap_or_default();
        let behind = |claim: &Anchor| anchor.is_none_or(|anchor| claim.offset > anchor.offset);
        Self {
            partition,
            range,
            epoch: known.epoch,
            sequence: known.sequence,
            is_cut: false,
            begins_at: anchor,
            must_meet: must_meet.filter(behind),
            owner: None,
        }
    }

    /// The offset to read from.
    pub fn start(&self) -> u64 {
        self.begins_at.map_or(0, |anchor| anchor.offset)
    }

    /// Epoch of the last claim that counts.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Sequence of the last write that counts.
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// The last claim that was read and counts.
    pub fn owner(&self) -> Option<&Claim> {
        self.owner.as_ref()
    }

    /// This node's earlier claim, when it has not been met yet.
    pub fn still_to_meet(&self) -> Option<Anchor> {
        self.must_meet.or(self.begins_at)
    }

    /// Takes the next message, in the order of offsets.
    ///
    /// # Errors
    /// [`ReplayError`]: the replay is over.
    pub fn read<'a>(&mut self, offset: u64, value: &'a [u8]) -> Result<Event<'a>, ReplayError> {
        let message = decode(value).map_err(|error| ReplayError::Message { offset, error })?;
        let head = *message.head();
        if head.partition != self.partition {
            return Err(ReplayError::OtherPartition { offset, found: head.partition });
        }
        for expected in [self.begins_at, self.must_meet].into_iter().flatten() {
            let is_it = (head.crc, head.epoch) == (expected.crc, expected.epoch);
            if offset >= expected.offset && (offset != expected.offset || !is_it) {
                return Err(ReplayError::OtherTopic {
                    offset: expected.offset,
                    expected: expected.crc,
                    epoch: expected.epoch,
                });
            }
        }
        self.must_meet.take_if(|claim| claim.offset == offset);
        if self.begins_at.take().is_some() {
            if let Message::Claim { claim, .. } = message {
                self.owner = Some(claim);
            }
            return Ok(Event::Ignored(Ignored::Known));
        }
        match message {
            Message::Claim { claim, .. } => self.claimed(offset, claim),
            Message::Write { .. } => self.written(offset, &head).map(|why| match why {
                None => Event::Write(message),
                Some(why) => Event::Ignored(why),
            }),
        }
    }

    fn claimed(&mut self, offset: u64, claim: Claim) -> Result<Event<'static>, ReplayError> {
        if claim.epoch <= self.epoch {
            return Ok(Event::Ignored(Ignored::VoidClaim));
        }
        if claim.range != self.range {
            let Claim { range: found, node, .. } = claim;
            return Err(ReplayError::OtherRange { offset, node, found, range: self.range });
        }
        self.epoch = claim.epoch;
        self.is_cut = false;
        self.owner = Some(claim.clone());
        Ok(Event::Claimed(claim))
    }

    fn written(&mut self, offset: u64, head: &MessageHead) -> Result<Option<Ignored>, ReplayError> {
        if head.epoch > self.epoch {
            return Err(ReplayError::Unclaimed { offset, found: head.epoch, claimed: self.epoch });
        }
        if head.epoch < self.epoch {
            return Ok(Some(Ignored::Fenced));
        }
        if head.sequence <= self.sequence {
            return Ok(Some(Ignored::Repeated));
        }
        self.is_cut |= head.sequence > self.sequence.next();
        if self.is_cut {
            return Ok(Some(Ignored::AfterGap));
        }
        self.sequence = head.sequence;
        Ok(None)
    }
}
