//! What `bench` tells while it runs: a line that changes on a terminal, lines below each other
//! elsewhere when they are asked for. On stderr.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    report::time_text,
    statistics::{Percentiles, Recent},
};

/// Between two lines where there is no terminal, and between two states of the line where there is.
const LINE_INTERVAL: Duration = Duration::from_secs(1);
const DRAW_INTERVAL: Duration = Duration::from_millis(200);

/// Shows how far a run is.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    lines: bool,
    /// Of the step, in front of its figures.
    title: String,
    total: Duration,
    since: Duration,
    recent: Recent,
    last_line: Option<Instant>,
}

impl Progress {
    /// `asked`: also where there is no terminal.
    pub(super) fn new(asked: bool) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(1);
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
            if let Ok(style) = ProgressStyle::with_template("{bar:20} {percent:>3}%  {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self {
            lines: asked && bar.is_none(),
            bar,
            title: String::new(),
            total: Duration::ZERO,
            since: Duration::ZERO,
            recent: Recent::new(),
            last_line: None,
        }
    }

    /// A run begins.
    pub(super) fn begin(&mut self, title: String, total: Duration) {
        self.title = title;
        self.total = total;
        self.since = Duration::ZERO;
        self.recent = Recent::new();
        self.last_line = None;
        if let Some(bar) = &self.bar {
            bar.set_length(total.as_millis() as u64);
            bar.set_position(0);
            bar.set_message(self.title.clone());
        }
    }

    /// Where the run stands, and what has happened since the last time.
    pub(super) fn tick(&mut self, elapsed: Duration, recent: &Recent) {
        self.recent.add(recent);
        let passed = elapsed.saturating_sub(self.since);
        if passed.is_zero() || !self.is_due() {
            return;
        }
        let text = line(&self.title, (elapsed, self.total), passed, &self.recent);
        self.recent = Recent::new();
        self.since = elapsed;
        self.show(elapsed.min(self.total).as_millis() as u64, &text);
    }

    /// How much of the load phase is done.
    pub(super) fn loaded(&mut self, records: u64, total: u64, elapsed: Duration) {
        if !self.is_due() {
            return;
        }
        let rate = records as f64 / elapsed.as_secs_f64().max(0.001);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
        self.show(records, &format!("loading: {records} of {total} records, {rate:.0}/s"));
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// A terminal's line changes several times while elsewhere there is one.
    fn is_due(&mut self) -> bool {
        let interval = match (&self.bar, self.lines) {
            (Some(_), _) => DRAW_INTERVAL,
            (None, true) => LINE_INTERVAL,
            (None, false) => return false,
        };
        if self.last_line.is_some_and(|last| last.elapsed() < interval) {
            return false;
        }
        self.last_line = Some(Instant::now());
        true
    }

    fn show(&self, position: u64, text: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(position);
                bar.set_message(text.to_owned());
            }
            None => eprintln!("{text}"),
        }
    }
}

fn line(
    title: &str,
    (elapsed, total): (Duration, Duration),
    passed: Duration,
    recent: &Recent,
) -> String {
    let latency = Percentiles::of(&recent.latency);
    let rate = latency.calls as f64 / passed.as_secs_f64();
    let failed = match recent.failed {
        0 => String::new(),
        some => format!(", {some} failed"),
    };
    format!(
        "{title}: {:.1} of {:.1} s, {rate:.0} calls/s, p50 {}, p99 {}{failed}",
        elapsed.as_secs_f64(),
        total.as_secs_f64(),
        time_text(latency.p50),
        time_text(latency.p99),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_the_last_moment_went() {
        let mut recent = Recent::new();
        for _ in 0..100 {
            recent.latency.saturating_record(1_000_000);
        }
        let second = Duration::from_secs(1);
        assert_eq!(
            line("run", (second * 3, second * 12), second / 2, &recent),
            "run: 3.0 of 12.0 s, 200 calls/s, p50 1.00 ms, p99 1.00 ms"
        );
        recent.failed = 3;
        assert!(line("run", (second, second), second, &recent).ends_with(", 3 failed"));
    }
}
