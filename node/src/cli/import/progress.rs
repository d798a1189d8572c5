//! What an import tells while it runs: a bar on a terminal, a line now and then elsewhere. On stderr.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::cli::output::Format;

/// Between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Record errors that are printed; more are counted only.
const ERRORS_PRINTED_MAX: u64 = 100;

/// Shows how far an import is.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    bytes: Option<u64>,
    begun: Instant,
    last_line: Instant,
    errors_printed: u64,
    format: Format,
}

impl Progress {
    pub(super) fn new(bytes: Option<u64>, format: Format) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let (bar, style) = match bytes {
                Some(bytes) => {
                    (ProgressBar::new(bytes), "{bar:30} {percent:>3}%  {msg}  {eta} left")
                }
                None => (ProgressBar::no_length(), "{spinner} {msg}"),
            };
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar
        });
        let now = Instant::now();
        Self { bar, bytes, begun: now, last_line: now, errors_printed: 0, format }
    }

    /// Where the import stands: bytes read, records stored, records with errors.
    pub(super) fn update(&mut self, offset: u64, imported: u64, errors: u64) {
        let rate = imported as f64 / self.begun.elapsed().as_secs_f64().max(0.001);
        let errors = match errors {
            0 => String::new(),
            some => format!(", {some} errors"),
        };
        let text = format!("{imported} records, {rate:.0}/s{errors}");
        if let Some(bar) = &self.bar {
            bar.set_position(offset);
            bar.set_message(text);
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            let done = self.bytes.filter(|&bytes| bytes > 0).map(|bytes| offset * 100 / bytes);
            eprintln!(
                "{text}{}",
                done.map_or_else(String::new, |percent| format!(", {percent}% read"))
            );
        }
    }

    /// A message that stays.
    pub(super) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// One record that could not be imported.
    pub(super) fn bad_record(&mut self, line: u64, message: &str) {
        self.errors_printed += 1;
        match self.errors_printed {
            printed if printed > ERRORS_PRINTED_MAX => {}
            ERRORS_PRINTED_MAX => self.say("further errors are counted, not printed"),
            _ if self.format == Format::Json => {
                self.say(&json!({ "line": line, "error": message }).to_string());
            }
            _ => self.say(&format!("line {line}: {message}")),
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
