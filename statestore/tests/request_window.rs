//! The window of request ids beside a model that forgets nothing: what was recorded is never taken for
//! new while its client is remembered, sizes stay bounded, and what the changes build up elsewhere, or the
//! rows after a reload, is the same window.
//!
//! A failure prints the seed and the smallest failing steps.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::{collection::vec, prelude::*};
use stateside_statestore::{
    Known, PastAnswer, RequestChange, RequestLimits, RequestRow, RequestWindow,
};
use stateside_types::{
    Reason, Refusal, RequestId, RequestMark, Sequence, Timestamp, WallClock,
    limits::REQUESTS_FORGOTTEN_PER_WRITE,
};

const LIMITS: RequestLimits =
    RequestLimits { answers_max: 12, clients_max: 4, client_keep_ms: 1_000 };

#[derive(Clone, Debug)]
enum Step {
    /// A client writes this many numbers above (or below) its highest one; is it refused; which of
    /// its numbers it calls settled, counted down from the new one.
    Write { client: u8, number: i8, refused: bool, settled: Option<u8> },
    /// Time passes, milliseconds.
    Time(u16),
    /// The window is written out and read back.
    Reload,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (0..7_u8, -9..4_i8, any::<bool>(), proptest::option::of(0..6_u8)).prop_map(
        |(client, number, refused, settled)| Step::Write { client, number, refused, settled },
    );
    let step =
        prop_oneof![20 => write, 3 => (0..900_u16).prop_map(Step::Time), 1 => Just(Step::Reload)];
    vec(step, 1..200)
}

type Told = (Sequence, Timestamp, Option<Arc<Refusal>>);

/// Everything that was ever recorded.
#[derive(Default)]
struct Model {
    answers: BTreeMap<(u8, u64), Told>,
    highest: BTreeMap<u8, u64>,
    written_at: BTreeMap<u8, u64>,
    /// Numbers that the client said it is done with, this one and below.
    settled: BTreeMap<u8, u64>,
}

/// The window as a store on disk has it: keys and rows.
#[derive(Default)]
struct Tree(BTreeMap<Vec<u8>, Vec<u8>>);

impl Tree {
    fn change(&mut self, change: &RequestChange<'_>) {
        let answer = |sequence: &Sequence| [&[1][..], &sequence.0.to_be_bytes()].concat();
        let client = |client: &[u8]| [&[0], client].concat();
        match change {
            RequestChange::Put(row) => {
                let mut bytes = Vec::new();
                row.encode(&mut bytes);
                let key = match row {
                    RequestRow::Answer { sequence, .. } => answer(sequence),
                    RequestRow::Client { client: name, .. } => client(name),
                };
                self.0.insert(key, bytes);
            }
            RequestChange::ForgetAnswer(sequence) => {
                assert!(self.0.remove(&answer(sequence)).is_some(), "it was there");
            }
            RequestChange::ForgetClient(name) => {
                assert!(self.0.remove(&client(name)).is_some(), "it was there");
            }
        }
    }

    fn window(&self) -> RequestWindow {
        let mut window = RequestWindow::default();
        window.set_limits(LIMITS);
        for bytes in self.0.values() {
            let (row, rest) = RequestRow::decode(bytes).unwrap();
            assert_eq!(rest, b"");
            window.load(&row);
        }
        window
    }
}

fn rows(window: &RequestWindow) -> Vec<Vec<u8>> {
    let mut rows = Vec::new();
    window.rows(|row| {
        let mut bytes = Vec::new();
        row.encode(&mut bytes);
        rows.push(bytes);
    });
    rows
}

fn id(client: &[u8], number: u64, settled: u64) -> RequestId<'_> {
    RequestId { client, number, settled }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn nothing_recorded_is_taken_for_new_while_its_client_is_remembered(steps in steps()) {
        let mut window = RequestWindow::default();
        window.set_limits(LIMITS);
        let (mut model, mut tree) = (Model::default(), Tree::default());
        let (mut now, mut sequence) = (1_000_000_u64, Sequence::ZERO);
        for step in steps {
            match step {
                Step::Time(ms) => now += u64::from(ms),
                Step::Reload => {
                    window = tree.window();
                }
                Step::Write { client, number, refused, settled } => {
                    let highest = model.highest.get(&client).copied().unwrap_or(0);
                    let number = (highest + 1).saturating_add_signed(number.into()).max(1);
                    let settled = settled.map_or(0, |down| number.saturating_sub(down.into()));
                    let name = [b'c', client];
                    let id = id(&name, number, settled);
                    match window.look_up(id, number) {
                        Known::New => {}
                        Known::Answered(PastAnswer { sequence: at, timestamp, refusal, .. }) => {
                            let original = model.answers.get(&(client, number));
                            prop_assert_eq!(original, Some(&(at, timestamp, refusal)));
                            prop_assert_eq!(window.look_up(id, number + 1), Known::Reused);
                            continue;
                        }
                        Known::Forgotten(forgotten) => {
                            prop_assert!(number <= forgotten);
                            continue;
                        }
                        Known::Reused => prop_assert!(false, "every number has one hash here"),
                    }
                    // Executing it is right only if it never was.
                    prop_assert!(!model.answers.contains_key(&(client, number)));
                    let done = model.settled.get(&client).copied().unwrap_or(0);
                    prop_assert!(number > done, "{number} was settled, up to {done}");
                    if let Err(refusal) = window.check_room(id, WallClock(now)) {
                        prop_assert_eq!(refusal.reason, Reason::RequestClientsFull);
                        let known = model.written_at.values();
                        let busy = known.filter(|at| now - **at < LIMITS.client_keep_ms).count();
                        prop_assert!(busy >= LIMITS.clients_max as usize, "{busy} are busy");
                        continue;
                    }
                    sequence = sequence.next();
                    let timestamp = Timestamp::from_wall(WallClock(now));
                    let refusal = refused
                        .then(|| Arc::new(Refusal::new(Reason::ConditionFailed, "no").with("entry", 1)));
                    let mark = RequestMark { refusal: refusal.clone(), ..RequestMark::new(id, number) };
                    let mut forgotten = Vec::new();
                    window.record(sequence, timestamp, &mark, &mut |change| {
                        if let RequestChange::ForgetClient(name) = change {
                            forgotten.push(name[1]);
                        }
                        tree.change(&change);
                    });
                    for client in forgotten {
                        let idle = now - model.written_at[&client];
                        prop_assert!(idle >= LIMITS.client_keep_ms, "forgotten after {idle} ms");
                        // It begins anew.
                        model.answers.retain(|(of, _), _| *of != client);
                        model.settled.remove(&client);
                    }
                    model.answers.insert((client, number), (sequence, timestamp, refusal));
                    model.highest.insert(client, highest.max(number));
                    model.written_at.insert(client, now);
                    let done = model.settled.entry(client).or_default();
                    *done = (*done).max(settled.saturating_sub(1));
                }
            }
            let stats = window.stats();
            let spare = REQUESTS_FORGOTTEN_PER_WRITE as u64;
            prop_assert!(stats.answers <= u64::from(LIMITS.answers_max));
            prop_assert!(stats.clients <= u64::from(LIMITS.clients_max) + spare);
            prop_assert_eq!(rows(&tree.window()), rows(&window));
        }
        // Whatever the window still tells is true, and rows that are reloaded tell the same.
        let names: BTreeSet<u8> = model.answers.keys().map(|(client, _)| *client).collect();
        let again = tree.window();
        for client in names {
            for number in 1..=model.highest[&client] + 1 {
                let name = [b'c', client];
                let known = window.look_up(id(&name, number, 0), number);
                prop_assert_eq!(again.look_up(id(&name, number, 0), number), known);
            }
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in vec(any::<u8>(), 0..120)) {
        if let Some((row, rest)) = RequestRow::decode(&bytes) {
            let mut again = Vec::new();
            row.encode(&mut again);
            again.extend_from_slice(rest);
            prop_assert_eq!(again, bytes);
        }
    }
}

fn record(window: &mut RequestWindow, at: u64, client: &[u8], number: u64, settled: u64) {
    let mark = RequestMark::new(id(client, number, settled), 7);
    let timestamp = Timestamp::from_wall(WallClock(at));
    window.record(Sequence(at), timestamp, &mark, &mut |_| {});
}

#[test]
fn what_a_client_calls_settled_makes_room_and_is_not_executed_again() {
    let mut window = RequestWindow::default();
    for n in 1..=100 {
        record(&mut window, n, b"one", n, n.saturating_sub(2));
    }
    assert_eq!(window.stats().answers, 3);
    assert_eq!(window.look_up(id(b"one", 97, 0), 7), Known::Forgotten(97));
    let timestamp = Timestamp::from_wall(WallClock(98));
    let answer = PastAnswer { sequence: Sequence(98), timestamp, refusal: None, values: None };
    assert_eq!(window.look_up(id(b"one", 98, 0), 7), Known::Answered(answer));
    assert_eq!(window.look_up(id(b"one", 101, 0), 7), Known::New);
    assert_eq!(window.stats().oldest, timestamp);
}

#[test]
fn smaller_limits_are_reached_a_few_at_a_time() {
    let mut window = RequestWindow::default();
    for n in 1..=200 {
        record(&mut window, n, format!("client {}", n % 50).as_bytes(), n, 0);
    }
    window.set_limits(RequestLimits { answers_max: 10, clients_max: 5, client_keep_ms: 0 });
    let before = window.stats();
    record(&mut window, 201, b"new", 1, 0);
    let lost = before.answers + 1 - window.stats().answers;
    assert_eq!(lost, REQUESTS_FORGOTTEN_PER_WRITE as u64);
    for n in 202..300 {
        record(&mut window, n, b"new", n, 0);
    }
    assert_eq!((window.stats().answers, window.stats().clients), (10, 5));
    window.clear();
    assert_eq!(window.stats(), Default::default());
    assert!(window.is_empty());
}
