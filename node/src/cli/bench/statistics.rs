//! What a run measured: counts and latencies by kind of call, and whether the figures say something
//! about the node or about this program. Pure.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;

use super::{cpu::Busy, workload::Kind};

/// Latencies are kept to three digits, from a nanosecond to a day (the longest run).
const LONGEST_NS: u64 = 24 * 3_600 * 1_000_000_000;
const DIGITS: u8 = 3;
/// A thread that computes, or waits for a CPU, for this share of the time has none left to be on time.
const BUSY_MAX: f64 = 0.9;
/// One call in a hundred that is sent later than this, because of this program, spoils percentiles.
const LAG_MAX: Duration = Duration::from_millis(1);
const LATE_CALLS_MAX: f64 = 0.01;
/// Distinct reasons of failure that are told apart; more are counted together.
const REASONS_MAX: usize = 32;
/// What further reasons are counted as.
const OTHER_REASONS: &str = "OTHER";

/// A call that has ended. Times are counted from the start of the run.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) kind: Kind,
    pub(super) due: Duration,
    pub(super) sent: Duration,
    pub(super) answered: Duration,
    /// It waited for a place among the calls under way.
    pub(super) held_back: bool,
    pub(super) outcome: Outcome,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All of its records were read or written.
    Done { records: u64, not_found: u64 },
    /// Some or all were not. Such a call counts as no work.
    Failed { reason: String, message: String },
}

/// Failures of one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failures {
    pub(super) calls: u64,
    /// What the first one said.
    pub(super) example: String,
}

/// Counts of one thread, later of all. Behind a mutex that its thread and the progress line share.
#[derive(Clone, Debug)]
pub(super) struct Recorder {
    /// Calls due before this are not counted.
    warm_up: Duration,
    by_kind: [Histogram<u64>; Kind::ALL.len()],
    service: Histogram<u64>,
    lag: Histogram<u64>,
    failures: BTreeMap<String, Failures>,
    pub(super) records: u64,
    pub(super) not_found: u64,
    pub(super) held_back: u64,
    last_answer: Duration,
    recent: Recent,
}

/// What happened since the progress line was last drawn, warm-up included.
#[derive(Clone, Debug)]
pub(super) struct Recent {
    pub(super) latency: Histogram<u64>,
    pub(super) failed: u64,
}

impl Recent {
    pub(super) fn new() -> Self {
        Self { latency: histogram(), failed: 0 }
    }

    pub(super) fn add(&mut self, other: &Self) {
        add(&mut self.latency, &other.latency);
        self.failed += other.failed;
    }
}

impl Recorder {
    pub(super) fn new(warm_up: Duration) -> Self {
        Self {
            warm_up,
            by_kind: std::array::from_fn(|_| histogram()),
            service: histogram(),
            lag: histogram(),
            failures: BTreeMap::new(),
            records: 0,
            not_found: 0,
            held_back: 0,
            last_answer: Duration::ZERO,
            recent: Recent::new(),
        }
    }

    pub(super) fn record(&mut self, call: Ended) {
        let latency = nanos(call.answered.saturating_sub(call.due));
        let counts = call.due >= self.warm_up;
        if counts {
            self.last_answer = self.last_answer.max(call.answered);
            self.held_back += u64::from(call.held_back);
            if !call.held_back {
                self.lag.saturating_record(nanos(call.sent.saturating_sub(call.due)));
            }
        }
        match call.outcome {
            Outcome::Done { records, not_found } => {
                self.recent.latency.saturating_record(latency);
                if counts {
                    self.by_kind[call.kind as usize].saturating_record(latency);
                    self.service.saturating_record(nanos(call.answered.saturating_sub(call.sent)));
                    self.records += records;
                    self.not_found += not_found;
                }
            }
            Outcome::Failed { reason, message } => {
                self.recent.failed += 1;
                if counts {
                    self.failed(reason, Failures { calls: 1, example: message });
                }
            }
        }
    }

    /// Takes what happened since the last time.
    pub(super) fn take_recent(&mut self, into: &mut Recent) {
        into.add(&self.recent);
        self.recent.latency.reset();
        self.recent.failed = 0;
    }

    pub(super) fn merge(&mut self, other: Self) {
        for (own, theirs) in self.by_kind.iter_mut().zip(&other.by_kind) {
            add(own, theirs);
        }
        add(&mut self.service, &other.service);
        add(&mut self.lag, &other.lag);
        for (reason, failures) in other.failures {
            self.failed(reason, failures);
        }
        self.records += other.records;
        self.not_found += other.not_found;
        self.held_back += other.held_back;
        self.last_answer = self.last_answer.max(other.last_answer);
    }

    /// Calls that were answered as they should be.
    pub(super) fn done(&self) -> u64 {
        self.service.len()
    }

    pub(super) fn failed_calls(&self) -> u64 {
        self.failures.values().map(|failures| failures.calls).sum()
    }

    pub(super) fn failures(&self) -> &BTreeMap<String, Failures> {
        &self.failures
    }

    /// From the end of the warm-up to the last answer.
    pub(super) fn counted(&self) -> Duration {
        self.last_answer.saturating_sub(self.warm_up)
    }

    /// From due to answered, of all calls that were done.
    pub(super) fn latency(&self) -> Percentiles {
        let mut all = histogram();
        for kind in &self.by_kind {
            add(&mut all, kind);
        }
        Percentiles::of(&all)
    }

    /// The same of each kind that there was.
    pub(super) fn latency_by_kind(&self) -> impl Iterator<Item = (Kind, Percentiles)> {
        Kind::ALL
            .into_iter()
            .map(|kind| (kind, Percentiles::of(&self.by_kind[kind as usize])))
            .filter(|(_, latency)| latency.calls > 0)
    }

    /// From sent to answered: what a generator that forgets about the schedule would report.
    pub(super) fn service_time(&self) -> Percentiles {
        Percentiles::of(&self.service)
    }

    /// From due to sent, of calls that did not wait for a place: this program's own lateness.
    pub(super) fn lag(&self) -> Percentiles {
        Percentiles::of(&self.lag)
    }

    /// Share of all calls that this program sent later than [`LAG_MAX`].
    fn late_share(&self) -> f64 {
        let late = self.lag.count_between(nanos(LAG_MAX) + 1, LONGEST_NS);
        late as f64 / (self.lag.len() + self.held_back).max(1) as f64
    }

    fn failed(&mut self, reason: String, failures: Failures) {
        let is_new = !self.failures.contains_key(&reason);
        let reason = if is_new && self.failures.len() >= REASONS_MAX {
            OTHER_REASONS.to_owned()
        } else {
            reason
        };
        match self.failures.get_mut(&reason) {
            Some(known) => known.calls += failures.calls,
            None => drop(self.failures.insert(reason, failures)),
        }
    }
}

/// A distribution in a few numbers, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Percentiles {
    pub(super) calls: u64,
    pub(super) mean: f64,
    pub(super) p50: u64,
    pub(super) p90: u64,
    pub(super) p99: u64,
    pub(super) p99_9: u64,
    pub(super) max: u64,
}

impl Percentiles {
    pub(super) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            calls: histogram.len(),
            mean: histogram.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: histogram.max(),
        }
    }
}

/// What to know before the figures are believed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Doubt {
    /// A thread of this program had no time left: there may be more to the node than was seen.
    GeneratorBusy { computed_percent: f64, waited_percent: f64 },
    /// This program sent calls late, through no fault of the node.
    GeneratorLate { percent: f64, longest: Duration },
    /// Calls waited for a place: the node was behind, or `--concurrency` is too low for the rate.
    HeldBack { calls: u64 },
    /// Calls of the schedule were never sent.
    Unsent { calls: u64 },
    /// Reads found nothing: the records are not loaded.
    NotFound { records: u64 },
}

impl Doubt {
    /// The generator, and not the node, was the limit.
    pub(super) fn is_generator(self) -> bool {
        matches!(self, Self::GeneratorBusy { .. } | Self::GeneratorLate { .. })
    }
}

/// Looks for doubts. `busiest` is the thread that had the least time left.
pub(super) fn doubts(recorder: &Recorder, unsent: u64, busiest: Busy<f64>) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    if busiest.wanted() >= BUSY_MAX {
        doubts.push(Doubt::GeneratorBusy {
            computed_percent: busiest.computed * 100.0,
            waited_percent: busiest.waited * 100.0,
        });
    }
    let late = recorder.late_share();
    if late > LATE_CALLS_MAX {
        let longest = Duration::from_nanos(recorder.lag().max);
        doubts.push(Doubt::GeneratorLate { percent: late * 100.0, longest });
    }
    if recorder.held_back > 0 {
        doubts.push(Doubt::HeldBack { calls: recorder.held_back });
    }
    if unsent > 0 {
        doubts.push(Doubt::Unsent { calls: unsent });
    }
    if recorder.not_found > 0 {
        doubts.push(Doubt::NotFound { records: recorder.not_found });
    }
    doubts
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).expect("the bounds are constants that fit")
}

fn add(into: &mut Histogram<u64>, other: &Histogram<u64>) {
    into.add(other).expect("all histograms have the same bounds");
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn done(due_ms: u64, sent_ms: u64, answered_ms: u64) -> Ended {
        Ended {
            kind: Kind::Read,
            due: Duration::from_millis(due_ms),
            sent: Duration::from_millis(sent_ms),
            answered: Duration::from_millis(answered_ms),
            held_back: false,
            outcome: Outcome::Done { records: 1, not_found: 0 },
        }
    }

    fn refused(reason: &str) -> Ended {
        let outcome =
            Outcome::Failed { reason: reason.to_owned(), message: format!("{reason}: x") };
        Ended { outcome, ..done(0, 0, 900) }
    }

    #[test]
    fn latency_counts_from_when_a_call_was_due() {
        let mut recorder = Recorder::new(Duration::ZERO);
        recorder.record(done(0, 100, 101));
        let about = |nanos: u64, ms: u64| nanos.abs_diff(ms * 1_000_000) <= ms * 1_000;
        assert!(about(recorder.latency().p50, 101));
        assert!(about(recorder.service_time().p50, 1));
        assert!(about(recorder.lag().p50, 100));
    }

    #[test]
    fn refused_calls_are_counted_by_reason_and_are_no_work() {
        let mut recorder = Recorder::new(Duration::ZERO);
        recorder.record(done(0, 0, 1));
        for reason in ["OVERLOADED", "DISK_FULL", "OVERLOADED"] {
            recorder.record(refused(reason));
        }
        assert_eq!((recorder.done(), recorder.failed_calls(), recorder.records), (1, 3, 1));
        assert!(recorder.latency().max < 2_000_000, "a refusal's 900 ms are no latency of work");
        let overloaded = &recorder.failures()["OVERLOADED"];
        assert_eq!((overloaded.calls, overloaded.example.as_str()), (2, "OVERLOADED: x"));
        for n in 0..100 {
            recorder.record(refused(&format!("REASON_{n}")));
        }
        assert_eq!(recorder.failures().len(), REASONS_MAX + 1);
        assert_eq!(recorder.failed_calls(), 103);
    }

    #[test]
    fn what_was_due_in_the_warm_up_is_shown_but_not_counted() {
        let mut recorder = Recorder::new(Duration::from_millis(500));
        recorder.record(done(499, 499, 800));
        recorder.record(done(500, 500, 600));
        assert_eq!(recorder.done(), 1);
        assert_eq!(recorder.counted(), Duration::from_millis(100));
        let mut recent = Recent::new();
        recorder.take_recent(&mut recent);
        assert_eq!(recent.latency.len(), 2);
        recorder.take_recent(&mut recent);
        assert_eq!(recent.latency.len(), 2, "taken once");
    }

    #[test]
    fn figures_that_say_more_about_the_generator_are_doubted() {
        let mut recorder = Recorder::new(Duration::ZERO);
        for n in 0..1_000 {
            recorder.record(done(n, n, n + 1));
        }
        let busy = |computed, waited| Busy { computed, waited };
        assert_eq!(doubts(&recorder, 0, busy(0.5, 0.3)), []);
        let starved = doubts(&recorder, 0, busy(0.25, 0.75));
        let expected = Doubt::GeneratorBusy { computed_percent: 25.0, waited_percent: 75.0 };
        assert_eq!(starved, [expected]);
        for n in 0..20 {
            recorder.record(done(n, n + 7, n + 8));
        }
        let late = doubts(&recorder, 0, Busy::default());
        let [Doubt::GeneratorLate { percent, longest }] = late[..] else { panic!("{late:?}") };
        assert!((percent - 100.0 * 20.0 / 1_020.0).abs() < 1e-9 && longest.as_millis() == 7);
        assert!(late[0].is_generator());
        let mut recorder = Recorder::new(Duration::ZERO);
        recorder.record(Ended { held_back: true, ..done(0, 500, 501) });
        // Waiting for a place is not this program's lateness.
        assert_eq!(
            doubts(&recorder, 3, Busy::default()),
            [Doubt::HeldBack { calls: 1 }, Doubt::Unsent { calls: 3 }]
        );
        assert!(!Doubt::HeldBack { calls: 1 }.is_generator());
    }

    proptest! {
        #[test]
        fn percentiles_are_those_of_the_sorted_latencies_and_merge(
            latencies in prop::collection::vec(1..10_000_000_000_u64, 1..300), cut in 0..300_usize,
        ) {
            let mut parts = [Recorder::new(Duration::ZERO), Recorder::new(Duration::ZERO)];
            for (index, &latency) in latencies.iter().enumerate() {
                let call = Ended { answered: Duration::from_nanos(latency), ..done(0, 0, 0) };
                parts[usize::from(index >= cut)].record(call);
            }
            let [mut merged, other] = parts;
            merged.merge(other);
            let mut sorted = latencies;
            sorted.sort_unstable();
            let is = |nanos: u64, quantile: f64| {
                // The smallest latency that at least this share of the calls did not exceed.
                let rank = ((sorted.len() as f64 * quantile).ceil() as usize).max(1);
                nanos.abs_diff(sorted[rank - 1]) <= sorted[rank - 1] / 1_000 + 1
            };
            let latency = merged.latency();
            prop_assert_eq!(latency.calls, sorted.len() as u64);
            prop_assert!(is(latency.p50, 0.5) && is(latency.p90, 0.9) && is(latency.p99, 0.99));
            prop_assert!(is(latency.p99_9, 0.999) && is(latency.max, 1.0));
        }
    }
}
