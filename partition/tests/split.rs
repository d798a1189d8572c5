//! What the modes of the dispatcher promise, and what they give up: one scene played in both.
//!
//! `model.rs` checks the promises under random steps, crashes and stores that ask their disk; here
//! stands each of them by itself, with a witness for what `split` gives up.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use stateside_partition::{Effects, Input, PageEnd, Partition, Scan, Ticket};
use stateside_pipeline::{Outlet, Write};
use stateside_statestore::{MemoryStore, PageRequest, Work};
use stateside_types::{
    Ack, AtLeast, Condition, DEFAULT_PIPELINE, Epoch, HashRange, OptionValue, PartitionId,
    PartitionSpec, Reason, Record, Refusal, Sequence, StageKind, StageSpec, StoreKind, Timestamp,
    WallClock, WriteEntry,
    limits::{REPLACED_BYTES_MAX, SESSION_READS_MAX},
};

/// What became of a request: a write's sequence, or what a read saw of its key and as of when.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Written(u64),
    Read(Option<String>, u64),
    Refused(Reason),
}

use Answer::{Read, Refused, Written};

#[derive(Default)]
struct World {
    value: Option<String>,
    answers: Vec<(u64, Answer)>,
}

impl Outlet for World {
    fn node(&self) -> &str {
        "vm-1"
    }

    fn log_admit(&mut self, _: &Write<'_>) -> Result<(), Refusal> {
        Ok(())
    }

    fn log_append(&mut self, _: &Write<'_>) {}
}

impl Effects for World {
    fn record(&mut self, _: Ticket, _: &[u8], record: Option<&Record<'_>>) {
        self.value = record.map(|record| String::from_utf8_lossy(record.value).into_owned());
    }

    fn page_end(&mut self, _: Ticket, _: PageEnd<'_>) {}

    fn value(&mut self, _: Ticket, _: &[u8]) {}

    fn read_done(&mut self, ticket: Ticket, outcome: Result<Sequence, Refusal>) {
        let answer = match outcome {
            Ok(seen) => Read(self.value.take(), seen.0),
            Err(refusal) => Refused(refusal.reason),
        };
        self.answers.push((ticket.0, answer));
    }

    fn written(&mut self, ticket: Ticket, outcome: Result<(Sequence, Timestamp), Refusal>) {
        let answer = match outcome {
            Ok((sequence, _)) => Written(sequence.0),
            Err(refusal) => Refused(refusal.reason),
        };
        self.answers.push((ticket.0, answer));
    }

    fn run(&mut self, _: Work) {
        unreachable!("the store is in memory");
    }

    fn now(&self) -> WallClock {
        WallClock(1_000)
    }

    fn memory_available(&self) -> u64 {
        u64::MAX
    }
}

struct Scene {
    partition: Partition,
    world: World,
}

const LINEARIZABLE: bool = false;
const SPLIT: bool = true;

fn spec(split: bool, ack: Ack, kinds: &[StageKind]) -> PartitionSpec {
    let mode = vec![("mode", OptionValue::Text("split".to_owned()))];
    let stages = kinds.iter().map(|kind| match kind {
        StageKind::Dispatcher if split => StageSpec::checked(*kind, mode.clone()),
        kind => StageSpec::from(*kind),
    });
    PartitionSpec {
        id: PartitionId(1),
        range: HashRange::FULL,
        store: StoreKind::MemoryOrdered,
        ack,
        pipeline: stages.collect::<Vec<_>>().into(),
        first_epoch: Epoch(4),
        epoch: Epoch(6),
        base_sequence: Sequence::ZERO,
    }
}

impl Scene {
    fn new(split: bool, ack: Ack) -> Self {
        let store = Box::new(MemoryStore::ordered(5));
        let partition = Partition::new(spec(split, ack, DEFAULT_PIPELINE), store).unwrap();
        Self { partition, world: World::default() }
    }

    fn step(&mut self, input: Input<'_>) {
        self.partition.step(input, &mut self.world);
    }

    fn write(&mut self, ticket: u64, value: &str) {
        self.write_if(ticket, value, Condition::None);
    }

    fn write_if(&mut self, ticket: u64, value: &str, condition: Condition) {
        let entries = [WriteEntry::put(b"k", value.as_bytes()).under(condition)];
        self.step(Input::Write {
            ticket: Ticket(ticket),
            entries: &entries,
            ack: None,
            request: None,
        });
    }

    fn read(&mut self, ticket: u64) {
        self.step(Input::Read { ticket: Ticket(ticket), keys: &[b"k"], session: None });
    }

    fn read_after(&mut self, ticket: u64, epoch: u64, sequence: u64) {
        let session = AtLeast { epoch: Epoch(epoch), sequence: Sequence(sequence), wait_ms: 1_000 };
        let session = Some(session);
        self.step(Input::Read { ticket: Ticket(ticket), keys: &[b"k"], session });
    }

    fn durable(&mut self, sequence: u64) {
        self.step(Input::LogDurable(Sequence(sequence)));
    }

    fn answers(&mut self) -> Vec<(u64, Answer)> {
        std::mem::take(&mut self.world.answers)
    }
}

fn saw(value: &str, sequence: u64) -> Answer {
    Read(Some(value.to_owned()), sequence)
}

#[test]
fn a_read_waits_for_the_log_in_one_mode_and_shows_what_is_durable_in_the_other() {
    for split in [LINEARIZABLE, SPLIT] {
        let mut scene = Scene::new(split, Ack::Durable);
        scene.write(1, "old");
        scene.durable(1);
        scene.write(2, "new");
        scene.read(3);
        if split {
            // The give-up: the write was sent first, and is not seen.
            assert_eq!(scene.answers(), [(1, Written(1)), (3, saw("old", 1))]);
        } else {
            assert_eq!(scene.answers(), [(1, Written(1))], "the read waits with the write");
        }
        scene.durable(2);
        let late: &[_] =
            if split { &[(2, Written(2))] } else { &[(2, Written(2)), (3, saw("new", 2))] };
        assert_eq!(scene.answers(), late);
        // The promise of both: what was acknowledged before the read arrived is seen.
        scene.read(4);
        assert_eq!(scene.answers(), [(4, saw("new", 2))]);
    }
}

#[test]
fn what_is_acknowledged_from_memory_is_seen_at_once_in_one_mode_and_with_its_token_in_the_other() {
    for split in [LINEARIZABLE, SPLIT] {
        let mut scene = Scene::new(split, Ack::Memory);
        scene.write(1, "v");
        scene.read(2);
        // Acknowledged in either mode, and in split not seen: the give-up.
        let seen = if split { Read(None, 0) } else { saw("v", 1) };
        assert_eq!(scene.answers(), [(1, Written(1)), (2, seen)]);
        scene.read_after(3, 4, 1);
        let at_once = scene.answers();
        scene.durable(1);
        let later = scene.answers();
        // With the token it is seen in both, in split when it is durable.
        let (now, then) = if split { (later, at_once) } else { (at_once, later) };
        assert_eq!((now, then), (vec![(3, saw("v", 1))], vec![]));
    }
}

#[test]
fn what_a_read_has_shown_no_crash_takes_back_in_split_mode() {
    for split in [LINEARIZABLE, SPLIT] {
        let mut scene = Scene::new(split, Ack::Memory);
        scene.write(1, "kept");
        scene.durable(1);
        scene.write(2, "lost");
        scene.read(3);
        let (_, before) = scene.answers().pop().unwrap();
        // The crash: the next life begins with what is durable.
        let mut scene = Scene::new(split, Ack::Memory);
        scene.write(1, "kept");
        scene.durable(1);
        scene.read(4);
        let (_, after) = scene.answers().pop().unwrap();
        assert_eq!(before == after, split, "{before:?}, then {after:?}");
    }
}

#[test]
fn a_refused_condition_tells_of_what_reads_show_by_then() {
    for split in [LINEARIZABLE, SPLIT] {
        let mut scene = Scene::new(split, Ack::Durable);
        scene.write(1, "v");
        scene.write_if(2, "w", Condition::IfAbsent);
        let refused = (2, Refused(Reason::ConditionFailed));
        assert_eq!(scene.answers(), [], "a crash could take back what is told now");
        scene.read(3);
        let early = [(3, Read(None, 0))];
        assert_eq!(scene.answers(), early[..usize::from(split)]);
        scene.durable(1);
        let late = [(1, Written(1)), refused, (3, saw("v", 1))];
        assert_eq!(scene.answers(), late[..3 - usize::from(split)]);
        scene.read(4);
        assert_eq!(scene.answers(), [(4, saw("v", 1))]);
    }
}

#[test]
fn a_refused_condition_is_told_at_once_where_reads_are() {
    let mut scene = Scene::new(LINEARIZABLE, Ack::Memory);
    scene.write(1, "v");
    scene.write_if(2, "w", Condition::IfAbsent);
    let refused = (2, Refused(Reason::ConditionFailed));
    assert_eq!(scene.answers(), [(1, Written(1)), refused]);
}

#[test]
fn a_scan_shows_the_newest_state_when_it_is_durable_in_both_modes() {
    let page = PageRequest {
        from: std::ops::Bound::Unbounded,
        to: std::ops::Bound::Unbounded,
        records_max: 10,
        bytes_max: 1 << 20,
    };
    let scan = Scan { page, at: None };
    for (split, ack) in [(LINEARIZABLE, Ack::Durable), (SPLIT, Ack::Durable), (SPLIT, Ack::Memory)]
    {
        let mut scene = Scene::new(split, ack);
        scene.write(1, "v");
        scene.answers();
        scene.step(Input::Scan { ticket: Ticket(2), scan: &scan, session: None });
        assert_eq!(scene.answers(), []);
        scene.durable(1);
        assert!(scene.answers().contains(&(2, saw("v", 1))));
    }
}

#[test]
fn a_read_waits_for_its_session_as_long_as_it_may_and_for_no_other_content() {
    for split in [LINEARIZABLE, SPLIT] {
        let mut scene = Scene::new(split, Ack::Durable);
        scene.write(1, "v");
        scene.durable(1);
        scene.answers();
        // Of what is there, of what may come, and of content that a restore has replaced.
        scene.read_after(2, 4, 1);
        scene.read_after(3, 4, 9);
        scene.read_after(4, 3, 1);
        assert_eq!(scene.answers(), [(2, saw("v", 1)), (4, Refused(Reason::SessionEnded))]);
        assert_eq!(scene.partition.session_reads(), 1);
        scene.step(Input::Tick(999));
        assert_eq!(scene.answers(), []);
        scene.step(Input::Tick(1));
        assert_eq!(scene.answers(), [(3, Refused(Reason::SessionBehind))]);

        // A session that knows of more than others: they do not wait with it.
        scene.read_after(5, 4, 3);
        scene.read_after(6, 4, 2);
        scene.write(7, "w");
        scene.durable(2);
        let answers = scene.answers();
        assert!(answers.contains(&(6, saw("w", 2))) && answers.len() == 2, "{answers:?}");
        scene.partition.halt(Refusal::new(Reason::PartitionStopped, "disk"), &mut scene.world);
        assert_eq!(scene.answers(), [(5, Refused(Reason::PartitionStopped))]);
        scene.read_after(8, 4, 99);
        assert_eq!(scene.answers(), [(8, Refused(Reason::PartitionStopped))]);
    }
}

#[test]
fn full_means_overloaded_and_changes_nothing() {
    let mut scene = Scene::new(SPLIT, Ack::Memory);
    for ticket in 0..SESSION_READS_MAX as u64 {
        scene.read_after(ticket, 4, 1);
    }
    scene.read_after(1 << 40, 4, 1);
    assert_eq!(scene.answers(), [(1 << 40, Refused(Reason::Overloaded))]);
    assert_eq!(scene.partition.queued(), (0, 0), "they wait for their session, not for a disk");
    scene.partition.halt(Refusal::new(Reason::PartitionStopped, "disk"), &mut scene.world);
    assert_eq!(scene.answers().len(), SESSION_READS_MAX);

    // Writes that replace much, faster than the log takes them.
    let mut scene = Scene::new(SPLIT, Ack::Memory);
    let large = "x".repeat(1 << 20);
    let mut ticket = 0;
    let refused_at = loop {
        ticket += 1;
        scene.write(ticket, &large);
        match scene.answers().pop().unwrap().1 {
            Written(sequence) => assert_eq!(sequence, ticket),
            answer => {
                assert_eq!(answer, Refused(Reason::Overloaded));
                break ticket;
            }
        }
    };
    assert!(scene.partition.replaced_bytes() <= REPLACED_BYTES_MAX as u64 + (1 << 20));
    assert!(refused_at > REPLACED_BYTES_MAX as u64 / (1 << 20));
    scene.durable(refused_at - 1);
    assert_eq!(scene.partition.replaced_bytes() >> 10, 0, "all of it is given back");
    scene.write(ticket, "small");
    assert_eq!(scene.answers(), [(ticket, Written(refused_at))]);
}

#[test]
fn a_mode_is_changed_between_two_writes() {
    let mut scene = Scene::new(LINEARIZABLE, Ack::Durable);
    scene.write(1, "v");
    let other = |split| spec(split, Ack::Durable, DEFAULT_PIPELINE);
    let busy = scene.partition.update(other(SPLIT)).unwrap_err();
    assert_eq!(busy.reason, Reason::PartitionBusy);
    scene.durable(1);
    scene.partition.update(other(SPLIT)).unwrap();
    scene.write(2, "w");
    scene.read(3);
    assert_eq!(scene.answers(), [(1, Written(1)), (3, saw("v", 1))]);
    scene.durable(2);
    scene.partition.update(other(LINEARIZABLE)).unwrap();
    scene.write(4, "x");
    scene.read(5);
    assert_eq!(scene.answers(), [(2, Written(2))]);
    scene.durable(3);
    assert_eq!(scene.answers(), [(4, Written(3)), (5, saw("x", 3))]);
}

#[test]
fn without_a_log_there_is_nothing_to_wait_for_and_nothing_is_kept() {
    let kinds = [StageKind::Clock, StageKind::Dispatcher];
    let store = Box::new(MemoryStore::ordered(5));
    let partition = Partition::new(spec(SPLIT, Ack::Memory, &kinds), store).unwrap();
    let mut scene = Scene { partition, world: World::default() };
    scene.write(1, "v");
    scene.read(2);
    scene.read_after(3, 4, 1);
    let expected = [(1, Written(1)), (2, saw("v", 1)), (3, saw("v", 1))];
    assert_eq!((scene.answers(), scene.partition.replaced_bytes()), (expected.to_vec(), 0));
}
