//! A Kafka partition and nodes that fight for it, simulated: messages are delivered late, answers
//! later, nodes stop in the middle and go on, offsets are forgotten, messages fail.
//!
//! The promise under test, in both directions: what an owner acknowledged is counted by a replay of
//! the whole log, and every replay of the same log counts the same.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use stateside_types::{Epoch, HashRange, PartitionId, Sequence, Timestamp, WriteEntry};

use super::{
    Anchor, Claim, Event, MessageHead, Next, Owner, Replay, Step, encode_claim, encode_write,
};

const PARTITION: PartitionId = PartitionId(0);

/// A message on its way to the broker. Those of one node arrive in order, whenever they do.
struct Outgoing {
    bytes: Vec<u8>,
    sequence: Sequence,
    crc: u32,
    /// Which start of its node sent it: only that one hears the answer.
    start: u32,
}

enum Life {
    Idle,
    /// A claim is on its way; the replay up to where the node had read.
    Claiming {
        replay: Replay,
        nonce: u64,
        epoch: Epoch,
    },
    Owns(Owner),
    /// Another node has it, or a message failed.
    Over,
}

struct Node {
    life: Life,
    outgoing: VecDeque<Outgoing>,
    /// Deliveries that the node has not heard of.
    answers: VecDeque<(Sequence, Option<u64>, u32)>,
    /// How often it was started anew.
    start: u32,
    /// The last write sent.
    sequence: Sequence,
    epoch: Epoch,
    /// The last write that it acknowledged.
    acknowledged: Sequence,
    /// A message of this node failed: what follows it still arrives.
    has_failed: bool,
    /// Where it is told to read.
    reading: Option<u64>,
}

#[derive(Default)]
struct World {
    log: Vec<Vec<u8>>,
    nodes: Vec<Node>,
    /// What was acknowledged: epoch by sequence, and the checksum of the last of each step.
    acknowledged: BTreeMap<Sequence, (Epoch, Option<u32>)>,
    next_nonce: u64,
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Start(usize),
    Write(usize),
    Deliver(usize),
    DeliverTwice(usize),
    Fail(usize),
    Answer(usize),
    AnswerWithoutOffset(usize),
    Read(usize),
    Watch(usize),
    Restart(usize),
}

impl World {
    fn with_nodes(count: usize) -> Self {
        let idle = || Node {
            life: Life::Idle,
            outgoing: VecDeque::new(),
            answers: VecDeque::new(),
            start: 0,
            sequence: Sequence::ZERO,
            epoch: Epoch(0),
            acknowledged: Sequence::ZERO,
            has_failed: false,
            reading: None,
        };
        Self { nodes: (0..count).map(|_| idle()).collect(), ..Self::default() }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Start(at) => self.start(at),
            Action::Restart(at) => {
                // What it had sent may still arrive: the broker's side of its sockets.
                self.nodes[at].life = Life::Idle;
                self.nodes[at].start += 1;
                self.nodes[at].answers.clear();
                self.nodes[at].reading = None;
                self.start(at);
            }
            Action::Write(at) => self.write(at),
            Action::Deliver(at) => self.deliver(at, 1),
            Action::DeliverTwice(at) => self.deliver(at, 2),
            Action::Fail(at) => {
                let node = &mut self.nodes[at];
                if let Life::Owns(_) = node.life
                    && node.outgoing.pop_front().is_some()
                {
                    node.has_failed = true;
                }
            }
            Action::Answer(at) => self.answer(at, true),
            Action::AnswerWithoutOffset(at) => self.answer(at, false),
            Action::Read(at) => self.read(at),
            Action::Watch(at) => {
                let end = self.log.len() as u64;
                if let Life::Owns(owner) = &mut self.nodes[at].life {
                    let step = owner.ends(end);
                    self.take(at, step);
                }
            }
        }
    }

    /// Reads all there is and sends a claim.
    fn start(&mut self, at: usize) {
        if !matches!(self.nodes[at].life, Life::Idle) {
            return;
        }
        let mut replay = Replay::new(PARTITION, HashRange::FULL, None, None);
        for (offset, bytes) in self.log.iter().enumerate() {
            replay.read(offset as u64, bytes).unwrap();
        }
        self.next_nonce += 1;
        let claim = Claim {
            epoch: replay.epoch().next(),
            range: HashRange::FULL,
            nonce: self.next_nonce,
            node: format!("node {at}"),
        };
        let (bytes, crc) = encode_claim(PARTITION, &claim);
        let node = &mut self.nodes[at];
        node.life = Life::Claiming { replay, nonce: claim.nonce, epoch: claim.epoch };
        node.has_failed = false;
        let start = node.start;
        node.outgoing.push_back(Outgoing { bytes, sequence: Sequence::ZERO, crc, start });
    }

    fn write(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Life::Owns(owner) = &mut node.life else { return };
        node.sequence = node.sequence.next();
        let key = [at as u8];
        let entry = WriteEntry::put(&key, b"v");
        let mut head = MessageHead {
            partition: PARTITION,
            epoch: node.epoch,
            sequence: node.sequence,
            timestamp: Timestamp(node.sequence.0),
            crc: 0,
        };
        let bytes = encode_write(&mut head, None, &[entry]);
        owner.sent(node.sequence, head.crc);
        let (sequence, crc, start) = (node.sequence, head.crc, node.start);
        node.outgoing.push_back(Outgoing { bytes, sequence, crc, start });
    }

    fn deliver(&mut self, at: usize, times: usize) {
        let node = &mut self.nodes[at];
        let Some(sent) = node.outgoing.pop_front() else { return };
        let Outgoing { bytes, sequence, crc, start } = sent;
        let offset = self.log.len() as u64;
        for _ in 0..times {
            self.log.push(bytes.clone());
        }
        if start == node.start {
            node.answers.push_back((sequence, Some(offset), crc));
        }
    }

    fn answer(&mut self, at: usize, tells_offset: bool) {
        let node = &mut self.nodes[at];
        let Some((sequence, offset, crc)) = node.answers.pop_front() else { return };
        match &mut node.life {
            Life::Owns(owner) => {
                let step = owner.acked(sequence, offset.filter(|_| tells_offset));
                self.take(at, step);
            }
            Life::Claiming { replay, nonce, epoch } if sequence == Sequence::ZERO => {
                // Reads back up to its claim.
                let mine = offset.unwrap();
                let mut counts = false;
                let from = self.log.len() as u64;
                assert!(mine < from);
                let (nonce, epoch) = (*nonce, *epoch);
                let mut whole = Replay::new(PARTITION, HashRange::FULL, None, None);
                for (offset, bytes) in self.log[..=mine as usize].iter().enumerate() {
                    if let Event::Claimed(claim) = whole.read(offset as u64, bytes).unwrap() {
                        counts = claim.nonce == nonce;
                    }
                }
                assert!(whole.sequence() >= replay.sequence(), "a log only grows");
                node.life = if counts {
                    node.sequence = whole.sequence();
                    node.epoch = epoch;
                    node.acknowledged = whole.sequence();
                    let claim = Anchor { offset: mine, epoch, sequence: whole.sequence(), crc };
                    // Everything that anybody acknowledged before this claim is in what it replayed.
                    let missing = self.acknowledged.iter().find(|(sequence, (earlier, _))| {
                        *earlier < epoch && **sequence > whole.sequence()
                    });
                    assert_eq!(missing, None, "acknowledged, and missing at a takeover");
                    Life::Owns(Owner::new(claim))
                } else {
                    Life::Idle
                };
            }
            // Of an earlier life.
            _ => {}
        }
    }

    fn read(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let (Some(offset), Life::Owns(owner)) = (node.reading, &mut node.life) else { return };
        let Some(bytes) = self.log.get(offset as usize) else { return };
        let step = owner.observed(offset, bytes);
        self.take(at, step);
    }

    fn take(&mut self, at: usize, step: Step) {
        let node = &mut self.nodes[at];
        if let Some(passed) = step.passed {
            assert_eq!(passed.epoch, node.epoch);
            // Others may have gone on meanwhile: this node hears late of what had been its own.
            while node.acknowledged < passed.sequence {
                node.acknowledged = node.acknowledged.next();
                let is_last = node.acknowledged == passed.sequence;
                let what = (passed.epoch, is_last.then_some(passed.crc));
                let before = self.acknowledged.insert(node.acknowledged, what);
                assert_eq!(before, None, "{} was acknowledged twice", node.acknowledged);
            }
        }
        node.reading = None;
        match step.next {
            Next::Go => {}
            Next::Read(offset) => node.reading = Some(offset),
            Next::Fenced(_) => node.life = Life::Over,
            Next::Lost(_) => {
                assert!(node.has_failed, "nothing of this node failed");
                node.life = Life::Over;
            }
            Next::Damaged(error) => panic!("nobody wrote that: {error}"),
        }
    }

    /// What a replay of the whole log counts.
    fn counted(&self) -> BTreeMap<Sequence, (Epoch, u32)> {
        let mut replay = Replay::new(PARTITION, HashRange::FULL, None, None);
        let mut counted = BTreeMap::new();
        for (offset, bytes) in self.log.iter().enumerate() {
            if let Event::Write(message) = replay.read(offset as u64, bytes).unwrap() {
                let head = message.head();
                assert!(counted.insert(head.sequence, (head.epoch, head.crc)).is_none());
            }
        }
        counted
    }
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let node = 0..3_usize;
    let action = prop_oneof![
        2 => node.clone().prop_map(Action::Start),
        8 => node.clone().prop_map(Action::Write),
        10 => node.clone().prop_map(Action::Deliver),
        1 => node.clone().prop_map(Action::DeliverTwice),
        1 => node.clone().prop_map(Action::Fail),
        10 => node.clone().prop_map(Action::Answer),
        2 => node.clone().prop_map(Action::AnswerWithoutOffset),
        8 => node.clone().prop_map(Action::Read),
        2 => node.clone().prop_map(Action::Watch),
        1 => node.prop_map(Action::Restart),
    ];
    prop::collection::vec(action, 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_an_owner_acknowledged_every_replay_counts(actions in actions()) {
        let mut world = World::with_nodes(3);
        for action in actions {
            world.act(action);
        }
        // Whatever is still under way arrives in the end.
        for at in 0..3 {
            while !world.nodes[at].outgoing.is_empty() {
                world.act(Action::Deliver(at));
            }
        }
        let counted = world.counted();
        for (sequence, (epoch, crc)) in &world.acknowledged {
            let found = counted.get(sequence);
            prop_assert!(found.is_some(), "{sequence} was acknowledged and does not count");
            let (found_epoch, found_crc) = found.unwrap();
            prop_assert_eq!(found_epoch, epoch, "{} was acknowledged to another owner", sequence);
            prop_assert!(crc.is_none_or(|crc| crc == *found_crc));
        }
    }

    /// A replay from any write that counts, or from any claim that does, ends as one from the
    /// beginning.
    #[test]
    fn where_a_replay_begins_does_not_matter(actions in actions(), pick in any::<prop::sample::Index>()) {
        let mut world = World::with_nodes(3);
        actions.into_iter().for_each(|action| world.act(action));
        let mut whole = Replay::new(PARTITION, HashRange::FULL, None, None);
        let mut anchors = Vec::new();
        for (offset, bytes) in world.log.iter().enumerate() {
            let offset = offset as u64;
            let event = whole.read(offset, bytes).unwrap();
            let crc = super::decode(bytes).unwrap().head().crc;
            if matches!(event, Event::Write(_) | Event::Claimed(_)) {
                let (epoch, sequence) = (whole.epoch(), whole.sequence());
                anchors.push(Anchor { offset, epoch, sequence, crc });
            }
        }
        prop_assume!(!anchors.is_empty());
        let anchor = anchors[pick.index(anchors.len())];
        let mut part = Replay::new(PARTITION, HashRange::FULL, Some(anchor), Some(anchors[0]));
        prop_assert_eq!(part.start(), anchor.offset);
        for (offset, bytes) in world.log.iter().enumerate().skip(anchor.offset as usize) {
            part.read(offset as u64, bytes).unwrap();
        }
        prop_assert_eq!((part.epoch(), part.sequence()), (whole.epoch(), whole.sequence()));
        prop_assert_eq!(part.still_to_meet(), None);
    }
}

#[test]
fn another_topic_at_the_same_offsets_is_noticed() {
    let claim = |nonce| Claim { epoch: Epoch(1), range: HashRange::FULL, nonce, node: "a".into() };
    let (mine, crc) = encode_claim(PARTITION, &claim(1));
    let (other, _) = encode_claim(PARTITION, &claim(2));
    let anchor = Anchor { offset: 0, epoch: Epoch(1), sequence: Sequence(0), crc };
    for (begin, meet) in [(Some(anchor), None), (None, Some(anchor))] {
        let mut replay = Replay::new(PARTITION, HashRange::FULL, begin, meet);
        assert!(replay.read(0, &other).is_err());
        let mut replay = Replay::new(PARTITION, HashRange::FULL, begin, meet);
        assert!(replay.read(0, &mine).is_ok());
        let mut replay = Replay::new(PARTITION, HashRange::FULL, begin, meet);
        assert_eq!(replay.still_to_meet(), Some(anchor));
        assert!(replay.read(1, &mine).is_err(), "it was passed over");
    }
}
