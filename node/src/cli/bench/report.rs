//! What `bench` ends with: tables for people, JSON for programs.

use serde_json::{Map, Value, json};

use super::{
    load::Loaded,
    measure::Measured,
    schedule::Pace,
    statistics::{Doubt, Percentiles, doubts},
    steps::Step,
};
use crate::cli::{
    failure::Failure,
    output::{Format, Table, print_bytes, print_json},
};

/// Why a measurement was made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Role {
    /// The only one.
    Single,
    /// To know what shares of it are.
    Peak,
    /// One load of a sweep.
    Step(Step),
}

/// A measurement and why it was made.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) role: Role,
    pub(super) measured: Measured,
}

/// Everything that was found.
#[derive(Debug)]
pub(super) struct Report {
    /// What was asked for, for JSON.
    pub(super) settings: Map<String, Value>,
    /// The same in a line for people.
    pub(super) title: String,
    pub(super) loaded: Option<Loaded>,
    pub(super) findings: Vec<Finding>,
    /// False: somebody stopped it, or the node is gone.
    pub(super) complete: bool,
}

impl Report {
    pub(super) fn print(&self, format: Format) -> Result<(), Failure> {
        if format == Format::Json {
            return print_json(&self.json());
        }
        print_bytes(format!("{}\n", self.title).as_bytes())?;
        if let Some(loaded) = &self.loaded {
            let rate = loaded.records as f64 / loaded.seconds.max(1e-9);
            let text = format!(
                "loaded {} records in {:.1} s, {rate:.0}/s\n",
                loaded.records, loaded.seconds
            );
            print_bytes(text.as_bytes())?;
        }
        print_bytes(b"\n")?;
        match &self.findings[..] {
            [Finding { role: Role::Single, measured }] => by_kind(measured).print()?,
            findings => by_load(findings).print()?,
        }
        let remarks = self.remarks();
        if remarks.is_empty() { Ok(()) } else { print_bytes(format!("\n{remarks}").as_bytes()) }
    }

    /// What to know about the figures: what was seen for each measurement, then what it means.
    fn remarks(&self) -> String {
        let mut text: String = self.findings.iter().map(Finding::remarks).collect();
        let mut said: Vec<&str> = Vec::new();
        for doubt in self.findings.iter().flat_map(Finding::doubts) {
            let advice = advice(doubt);
            if !said.contains(&advice) {
                said.push(advice);
                text += &format!("note: {advice}\n");
            }
        }
        text
    }

    fn json(&self) -> Value {
        let mut object = self.settings.clone();
        object.insert("complete".to_owned(), self.complete.into());
        let loaded = self.loaded.map(|loaded| {
            let rate = loaded.records as f64 / loaded.seconds.max(1e-9);
            json!({ "records": loaded.records, "seconds": loaded.seconds, "records_per_second": rate })
        });
        object.insert("load".to_owned(), loaded.into());
        let runs: Vec<Value> = self.findings.iter().map(Finding::json).collect();
        object.insert("runs".to_owned(), runs.into());
        object.into()
    }
}

impl Finding {
    fn doubts(&self) -> Vec<Doubt> {
        doubts(&self.measured.recorder, self.measured.unsent, self.measured.busiest)
    }

    fn name(&self) -> String {
        match self.role {
            Role::Single => "run".to_owned(),
            Role::Peak => "peak".to_owned(),
            Role::Step(step) => step.to_string(),
        }
    }

    /// Failures and doubts, a line each.
    fn remarks(&self) -> String {
        let mut text = String::new();
        let name = match self.role {
            Role::Single => String::new(),
            _ => format!("{}: ", self.name()),
        };
        for (reason, failures) in self.measured.recorder.failures() {
            text += &format!(
                "{name}failed calls, no work done: {} {reason}; the first said: {}\n",
                failures.calls, failures.example
            );
        }
        for doubt in self.doubts() {
            text += &format!("{name}{}\n", fact(doubt));
        }
        if !self.measured.complete {
            text += &format!("{name}stopped before its end\n");
        }
        text
    }

    fn json(&self) -> Value {
        let measured = &self.measured;
        let recorder = &measured.recorder;
        let (loop_name, asked, arrivals) = match measured.pace {
            Pace::Open { calls_per_second, arrivals } => {
                ("open", Some(calls_per_second), Some(arrivals.as_str()))
            }
            Pace::Closed => ("closed", None, None),
        };
        let share = match self.role {
            Role::Step(Step::Share(percent)) => Some(percent),
            _ => None,
        };
        let kinds: Map<String, Value> = recorder
            .latency_by_kind()
            .map(|(kind, latency)| {
                let done = json!({ "calls": latency.calls, "latency_us": micros(&latency) });
                (kind.as_str().to_owned(), done)
            })
            .collect();
        let failures: Map<String, Value> = recorder
            .failures()
            .iter()
            .map(|(reason, failures)| (reason.clone(), failures.calls.into()))
            .collect();
        let doubts = self.doubts();
        json!({
            "name": self.name(),
            "loop": loop_name,
            "arrivals": arrivals,
            "asked_calls_per_second": asked,
            "concurrency": measured.calls_max,
            "percent_of_peak": share,
            "complete": measured.complete,
            "seconds": measured.seconds,
            "calls": recorder.done(),
            "calls_per_second": measured.calls_per_second(),
            "records": recorder.records,
            "records_per_second": measured.records_per_second(),
            "not_found": recorder.not_found,
            "failed_calls": recorder.failed_calls(),
            "failures": failures,
            "unsent_calls": measured.unsent,
            "held_back_calls": recorder.held_back,
            "latency_us": micros(&recorder.latency()),
            "service_time_us": micros(&recorder.service_time()),
            "operations": kinds,
            "schedule_lag_us": micros(&recorder.lag()),
            "generator_computed": measured.busiest.computed,
            "generator_waited_for_cpu": measured.busiest.waited,
            "generator_was_the_limit": doubts.iter().any(|doubt| doubt.is_generator()),
            "remarks": doubts.into_iter().map(remark).collect::<Vec<_>>(),
        })
    }
}

fn by_kind(measured: &Measured) -> Table {
    let mut table =
        Table::new(&["OPERATION", "CALLS", "CALLS/S", "P50", "P90", "P99", "P99.9", "MAX"]);
    let mut row = |name: &str, latency: &Percentiles| {
        let rate = latency.calls as f64 / measured.seconds;
        let mut cells = vec![name.to_owned(), latency.calls.to_string(), format!("{rate:.0}")];
        cells.extend(times(latency));
        table.row(cells);
    };
    let kinds: Vec<_> = measured.recorder.latency_by_kind().collect();
    for (kind, latency) in &kinds {
        row(kind.as_str(), latency);
    }
    if kinds.len() != 1 {
        row("all", &measured.recorder.latency());
    }
    table
}

fn by_load(findings: &[Finding]) -> Table {
    let mut table =
        Table::new(&["LOAD", "ASKED/S", "DONE/S", "P50", "P90", "P99", "P99.9", "MAX", "FAILED"]);
    for finding in findings {
        let measured = &finding.measured;
        let asked = match measured.pace {
            Pace::Open { calls_per_second, .. } => calls_per_second.to_string(),
            Pace::Closed => "-".to_owned(),
        };
        let mut cells = vec![finding.name(), asked, format!("{:.0}", measured.calls_per_second())];
        cells.extend(times(&measured.recorder.latency()));
        cells.push(measured.recorder.failed_calls().to_string());
        table.row(cells);
    }
    table
}

fn times(latency: &Percentiles) -> [String; 5] {
    [latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max].map(time_text)
}

fn micros(latency: &Percentiles) -> Value {
    let micros = |nanos: u64| nanos as f64 / 1e3;
    json!({
        "mean": latency.mean / 1e3,
        "p50": micros(latency.p50),
        "p90": micros(latency.p90),
        "p99": micros(latency.p99),
        "p99_9": micros(latency.p99_9),
        "max": micros(latency.max),
    })
}

fn remark(doubt: Doubt) -> String {
    format!("{}; {}", fact(doubt), advice(doubt))
}

/// What is in doubt, and why.
fn fact(doubt: Doubt) -> String {
    match doubt {
        Doubt::GeneratorBusy { computed_percent, waited_percent } => format!(
            "the generator was the limit: one of its threads computed {computed_percent:.0} % of the time, and waited for a CPU {waited_percent:.0} %"
        ),
        Doubt::GeneratorLate { percent, longest } => format!(
            "the generator was late: it sent {percent:.1} % of the calls over a millisecond after they were due, up to {}",
            time_text(u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX))
        ),
        Doubt::HeldBack { calls } => {
            format!("{calls} calls had to wait for a place among the calls under way")
        }
        Doubt::Unsent { calls } => format!("{calls} calls of the schedule were never sent"),
        Doubt::NotFound { records } => format!("{records} records that were read did not exist"),
    }
}

/// What it means, and what to do about it. Said once, however often it applies.
fn advice(doubt: Doubt) -> &'static str {
    match doubt {
        Doubt::GeneratorBusy { .. } => {
            "the node may well do more than was seen: give the generator --threads, or a machine of its own"
        }
        Doubt::GeneratorLate { .. } => {
            "latencies include the generator's lateness: give it --threads, or a machine of its own"
        }
        Doubt::HeldBack { .. } => {
            "latencies include the wait for a place: the node was behind, or --concurrency is too low for the rate"
        }
        Doubt::Unsent { .. } => "the node does not take this rate",
        Doubt::NotFound { .. } => "the records are not there: load them (--load)",
    }
}

/// Three digits with a unit: `812 ns`, `81.2 µs`, `1.23 ms`, `4.56 s`.
pub(super) fn time_text(nanos: u64) -> String {
    let (amount, unit) = match nanos {
        0..1_000 => return format!("{nanos} ns"),
        1_000..1_000_000 => (nanos as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (nanos as f64 / 1e6, "ms"),
        _ => (nanos as f64 / 1e9, "s"),
    };
    let digits = if amount < 10.0 { 2 } else { usize::from(amount < 100.0) };
    format!("{amount:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::bench::{
        cpu::Busy,
        schedule::Arrivals,
        statistics::{Ended, Outcome, Recorder},
        workload::Kind,
    };

    fn finding(role: Role) -> Finding {
        let mut recorder = Recorder::new(Duration::ZERO);
        let ended = |kind, outcome| Ended {
            kind,
            due: Duration::ZERO,
            sent: Duration::ZERO,
            answered: Duration::from_millis(2),
            held_back: false,
            outcome,
        };
        let done = Outcome::Done { records: 1, not_found: 1 };
        recorder.record(ended(Kind::Read, done.clone()));
        recorder.record(ended(Kind::Update, done));
        let failed = Outcome::Failed { reason: "OVERLOADED".into(), message: "full".into() };
        recorder.record(ended(Kind::Read, failed));
        let pace = Pace::Open { calls_per_second: 10, arrivals: Arrivals::Constant };
        let measured = Measured {
            pace,
            calls_max: 4,
            recorder,
            seconds: 0.5,
            unsent: 0,
            busiest: Busy { computed: 0.95, waited: 0.02 },
            complete: true,
        };
        Finding { role, measured }
    }

    #[test]
    fn times_read_well() {
        let shown = [999, 1_000, 81_234, 812_345, 1_234_567, 45_600_000_000].map(time_text);
        assert_eq!(shown, ["999 ns", "1.00 µs", "81.2 µs", "812 µs", "1.23 ms", "45.6 s"]);
    }

    #[test]
    fn failures_and_doubts_are_said_and_what_they_mean_is_said_once() {
        let findings = [25.0, 50.0].map(|share| finding(Role::Step(Step::Share(share))));
        let report = Report {
            settings: Map::new(),
            title: String::new(),
            loaded: None,
            findings: findings.into(),
            complete: true,
        };
        let remarks = report.remarks();
        let lines: Vec<_> = remarks.lines().collect();
        assert_eq!(lines.len(), 2 * 3 + 2, "{remarks}");
        assert_eq!(lines[0], "25%: failed calls, no work done: 1 OVERLOADED; the first said: full");
        assert!(
            lines[1]
                .starts_with("25%: the generator was the limit: one of its threads computed 95 % of the time, and waited for a CPU 2 %")
        );
        assert_eq!(lines[2], "25%: 2 records that were read did not exist");
        assert!(lines[3].starts_with("50%: failed calls"));
        assert!(lines[6].starts_with("note: the node may well do more"));
    }

    #[test]
    fn programs_get_every_figure() {
        let run = finding(Role::Step(Step::Share(25.0))).json();
        assert_eq!(run["asked_calls_per_second"], 10);
        assert_eq!(run["percent_of_peak"], 25.0);
        assert_eq!((&run["calls"], &run["failed_calls"]), (&json!(2), &json!(1)));
        assert_eq!(run["calls_per_second"], 4.0);
        assert_eq!(run["failures"], json!({ "OVERLOADED": 1 }));
        assert_eq!(run["generator_was_the_limit"], true);
        assert_eq!(run["operations"]["update"]["calls"], 1);
    }
}
