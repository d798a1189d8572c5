//! When an owner may acknowledge. See the module's header.
//!
//! ```text
//!   claim   s1    s2    ?     s3            offsets that the broker told: 12 13 14 · 16
//!  ┌─────┬─────┬─────┬─────┬─────┐          s1, s2 follow the claim without a gap: acknowledged
//!  │ 12  │ 13  │ 14  │ 15  │ 16  │          15 is somebody else's: read it before s3 is
//!  └─────┴─────┴─────┴─────┴─────┘
//!                ▲     ▲
//!             passed   next
//! ```

use std::collections::VecDeque;

use stateside_types::Sequence;

use super::{
    Anchor,
    record::{Claim, Message, decode},
    replay::ReplayError,
};

/// What an owner has to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Go,
    /// Read the log from this offset and hand what stands there to [`Owner::observed`], until it
    /// says [`Next::Go`].
    Read(u64),
    /// Another node owns the partition. Nothing more is acknowledged, ever.
    Fenced(Claim),
    /// The log holds what no owner writes. Nothing more is acknowledged.
    Damaged(ReplayError),
    /// A write that was sent is not in the log, and one behind it is. Nothing more is acknowledged.
    Lost(Sequence),
}

/// What came of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Up to here writes may be acknowledged; None: no further than before.
    pub passed: Option<Anchor>,
    /// What to do next.
    pub next: Next,
}

#[derive(Clone, Copy, Debug)]
enum Told {
    /// The broker has not answered.
    Nothing,
    /// It has the write; it could not say where (a repeated request whose first answer was lost).
    Somewhere,
    /// It has it there.
    At(u64),
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    crc: u32,
    told: Told,
}

/// A node's ownership of one partition, from its claim on. Pure; one per partition, shared by the
/// threads that hear of deliveries and that read.
#[derive(Debug)]
pub struct Owner {
    /// The last message that counts and is known to.
    passed: Anchor,
    /// Every message below this offset is known: it is in `passed`, or changes nothing.
    next: u64,
    /// Writes behind `passed`, in sequence.
    sent: VecDeque<Sent>,
    /// Without writes under way: something is in the log below this offset.
    end: u64,
    is_over: bool,
}

impl Owner {
    /// From a claim that was read back and counts: its offset, epoch and checksum, and the
    /// sequence of the last write before it that counts.
    pub fn new(claim: Anchor) -> Self {
        let next = claim.offset + 1;
        Self { passed: claim, next, sent: VecDeque::new(), end: next, is_over: false }
    }

    /// The last message known to count.
    pub fn passed(&self) -> Anchor {
        self.passed
    }

    /// Every message below this offset is known.
    pub fn next_offset(&self) -> u64 {
        self.next
    }

    /// Whether nothing more will be acknowledged.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Writes sent and not known to count yet.
    pub fn pending(&self) -> usize {
        self.sent.len()
    }

    /// The next write goes to the broker.
    ///
    /// # Panics
    /// When sequences are left out: that is a bug of the sender.
    pub fn sent(&mut self, sequence: Sequence, crc: u32) {
        let expected = self.passed.sequence.0 + self.sent.len() as u64 + 1;
        assert_eq!(sequence.0, expected, "writes are sent in sequence");
        self.sent.push_back(Sent { crc, told: Told::Nothing });
    }

    /// The broker has acknowledged a write; `offset` when it could tell where it is.
    pub fn acked(&mut self, sequence: Sequence, offset: Option<u64>) -> Step {
        let at = sequence.0.checked_sub(self.passed.sequence.0 + 1);
        if let Some(sent) = at.and_then(|at| self.sent.get_mut(usize::try_from(at).ok()?)) {
            sent.told = offset.map_or(Told::Somewhere, Told::At);
        }
        self.slide(self.passed)
    }

    /// The log ends before `offset`; asked of the broker from time to time, so that an owner without
    /// writes hears of a claim too.
    pub fn ends(&mut self, offset: u64) -> Step {
        if self.sent.is_empty() {
            self.end = self.end.max(offset);
        }
        self.slide(self.passed)
    }

    /// A write cannot be brought to the broker: nothing behind it can be acknowledged either.
    pub fn give_up(&mut self) {
        self.is_over = true;
    }

    /// A message of the log, in the order of offsets.
    pub fn observed(&mut self, offset: u64, value: &[u8]) -> Step {
        let before = self.passed;
        if self.is_over || offset < self.next {
            return self.slide(before);
        }
        let message = match decode(value) {
            Ok(message) => message,
            Err(error) => return self.over(Next::Damaged(ReplayError::Message { offset, error })),
        };
        let (head, epoch) = (*message.head(), before.epoch);
        match message {
            Message::Claim { claim, .. } if claim.epoch > epoch => {
                return self.over(Next::Fenced(claim));
            }
            Message::Write { .. } if head.epoch > epoch => {
                let error = ReplayError::Unclaimed { offset, found: head.epoch, claimed: epoch };
                return self.over(Next::Damaged(error));
            }
            Message::Write { .. } if head.epoch == epoch && head.sequence > before.sequence => {
                let is_next = head.sequence == before.sequence.next();
                match self.sent.front() {
                    Some(sent) if is_next && sent.crc == head.crc => self.pass(offset),
                    _ => return self.over(Next::Lost(before.sequence.next())),
                }
            }
            // A void claim, a fenced write, a repeated one: every reader passes over it.
            Message::Claim { .. } | Message::Write { .. } => self.next = offset + 1,
        }
        self.slide(before)
    }

    /// The log has nothing between [`Self::next_offset`] and `offset`: what stood there, if anything,
    /// is no message.
    pub fn nothing_before(&mut self, offset: u64) -> Step {
        if !self.is_over {
            self.next = self.next.max(offset);
        }
        self.slide(self.passed)
    }

    /// The oldest write under way counts, and stands there.
    fn pass(&mut self, offset: u64) {
        let sent = self.sent.pop_front().expect("the caller has seen it");
        let Anchor { epoch, sequence, .. } = self.passed;
        self.passed = Anchor { offset, epoch, sequence: sequence.next(), crc: sent.crc };
        self.next = offset + 1;
    }

    /// Takes what follows without a gap.
    fn slide(&mut self, before: Anchor) -> Step {
        if self.is_over {
            return Step { passed: None, next: Next::Go };
        }
        let next = loop {
            match self.sent.front().map(|sent| sent.told) {
                Some(Told::At(offset)) if offset == self.next => self.pass(offset),
                // It should have been met on the way.
                Some(Told::At(offset)) if offset < self.next => {
                    return self.over(Next::Lost(self.passed.sequence.next()));
                }
                Some(Told::At(_) | Told::Somewhere) => break Next::Read(self.next),
                None if self.end > self.next => break Next::Read(self.next),
                Some(Told::Nothing) | None => break Next::Go,
            }
        };
        Step { passed: (self.passed != before).then_some(self.passed), next }
    }

    fn over(&mut self, next: Next) -> Step {
        self.is_over = true;
        Step { passed: None, next }
    }
}

#[cfg(test)]
mod tests {
    use stateside_types::{Epoch, HashRange, PartitionId, Timestamp};

    use super::*;
    use crate::kafka::{MessageHead, encode_claim, encode_write};

    fn owner() -> Owner {
        let claim = Anchor { offset: 12, epoch: Epoch(3), sequence: Sequence(40), crc: 7 };
        Owner::new(claim)
    }

    fn write(epoch: u64, sequence: u64) -> (Vec<u8>, u32) {
        let mut head = MessageHead {
            partition: PartitionId(0),
            epoch: Epoch(epoch),
            sequence: Sequence(sequence),
            timestamp: Timestamp(sequence),
            crc: 0,
        };
        let bytes = encode_write(&mut head, None, &[]);
        (bytes, head.crc)
    }

    fn claim(epoch: u64) -> Vec<u8> {
        let node = "other".to_owned();
        let claim = Claim { epoch: Epoch(epoch), range: HashRange::FULL, nonce: 1, node };
        encode_claim(PartitionId(0), &claim).0
    }

    fn passed(step: &Step) -> Option<u64> {
        step.passed.map(|anchor| anchor.sequence.0)
    }

    #[test]
    fn without_a_gap_nothing_is_read() {
        let mut owner = owner();
        for sequence in 41..=43 {
            owner.sent(Sequence(sequence), write(3, sequence).1);
        }
        let step = owner.acked(Sequence(42), Some(14));
        assert_eq!(step, Step { passed: None, next: Next::Go }, "the one before is not there yet");
        let step = owner.acked(Sequence(41), Some(13));
        assert_eq!((passed(&step), step.next), (Some(42), Next::Go));
        let step = owner.acked(Sequence(43), Some(15));
        assert_eq!((passed(&step), step.next), (Some(43), Next::Go));
        assert_eq!(owner.pending(), 0);
    }

    #[test]
    fn a_gap_is_read_before_what_is_behind_it_is_acknowledged() {
        let mut owner = owner();
        owner.sent(Sequence(41), write(3, 41).1);
        let step = owner.acked(Sequence(41), Some(15));
        assert_eq!(step, Step { passed: None, next: Next::Read(13) });
        // A write of the owner before, and a claim that came too late for its epoch.
        assert_eq!(owner.observed(13, &write(2, 41).0).next, Next::Read(14));
        let step = owner.observed(14, &claim(3));
        assert_eq!((passed(&step), step.next), (Some(41), Next::Go));
    }

    #[test]
    fn a_claim_in_the_gap_ends_it() {
        let mut owner = owner();
        owner.sent(Sequence(41), write(3, 41).1);
        owner.sent(Sequence(42), write(3, 42).1);
        assert_eq!(passed(&owner.acked(Sequence(41), Some(13))), Some(41));
        assert_eq!(owner.acked(Sequence(42), Some(15)).next, Next::Read(14));
        assert!(matches!(owner.observed(14, &claim(4)).next, Next::Fenced(_)));
        let step = owner.observed(15, &write(3, 42).0);
        assert_eq!(
            step,
            Step { passed: None, next: Next::Go },
            "and nothing after it is acknowledged"
        );
        assert_eq!(owner.acked(Sequence(42), Some(15)).passed, None);
    }

    #[test]
    fn an_offset_that_the_broker_forgot_is_looked_up() {
        let mut owner = owner();
        let (bytes, crc) = write(3, 41);
        owner.sent(Sequence(41), crc);
        assert_eq!(owner.acked(Sequence(41), None).next, Next::Read(13));
        let step = owner.observed(13, &bytes);
        assert_eq!((passed(&step), step.next), (Some(41), Next::Go));
    }

    #[test]
    fn an_owner_without_writes_hears_of_a_claim_by_the_logs_end() {
        let mut owner = owner();
        assert_eq!(owner.ends(13).next, Next::Go);
        assert_eq!(owner.ends(15).next, Next::Read(13));
        assert_eq!(owner.observed(13, &write(2, 41).0).next, Next::Read(14));
        assert!(matches!(owner.observed(14, &claim(9)).next, Next::Fenced(_)));
    }

    #[test]
    fn what_no_owner_writes_ends_it() {
        for value in [b"junk".to_vec(), write(4, 41).0] {
            let mut owner = owner();
            owner.ends(14);
            assert!(matches!(owner.observed(13, &value).next, Next::Damaged(_)));
        }
        let mut owner = owner();
        owner.sent(Sequence(41), write(3, 41).1);
        owner.sent(Sequence(42), write(3, 42).1);
        owner.acked(Sequence(41), Some(14));
        assert_eq!(owner.observed(13, &write(3, 42).0).next, Next::Lost(Sequence(41)));
    }
}
