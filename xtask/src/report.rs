//! One line a step while the suite runs, and a summary that does not let a skipped test go
//! unnoticed.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::process::Log;

/// How many lines of a failed step's log the terminal shows.
const SHOWN_LINES: usize = 120;

/// What a step that did not fail has to tell.
#[derive(Default)]
pub(crate) struct Passed {
    /// Behind the step's name, e.g. how many tests ran.
    pub(crate) note: String,
    /// Tests run in it; 1 for a step that is one test itself.
    pub(crate) tests: usize,
    /// What was left out, and why.
    pub(crate) skipped: Vec<String>,
}

impl Passed {
    /// A step that is a single check.
    pub(crate) fn check(note: impl Into<String>) -> Self {
        Self { note: note.into(), tests: 1, skipped: Vec::new() }
    }
}

/// What came of a step.
pub(crate) type StepResult = Result<Passed, String>;

/// Runs steps one after another and keeps what came of each.
#[derive(Default)]
pub(crate) struct Report {
    lines: Vec<(String, Duration, StepResult)>,
}

impl Report {
    /// Runs one step: says that it starts, and how it ended. Answers whether it passed.
    pub(crate) fn step(
        &mut self,
        name: &str,
        about: &str,
        work: impl FnOnce(&mut Log) -> StepResult,
    ) -> bool {
        println!("   … {name}: {about}");
        let begun = Instant::now();
        let result = match Log::create(name) {
            Ok(mut log) => {
                let result = work(&mut log);
                if let Err(problem) = &result {
                    show_end_of(&log);
                    println!(
                        "FAILED {name}: {problem}\n       whole log: {}",
                        log.path().display()
                    );
                }
                result
            }
            Err(error) => Err(format!("cannot write its log: {error}")),
        };
        let took = begun.elapsed();
        let passed = result.is_ok();
        if let Ok(outcome) = &result {
            println!("  ok {name} ({}) {}", Seconds(took), outcome.note);
            for skipped in &outcome.skipped {
                println!("     SKIPPED {skipped}");
            }
        }
        self.lines.push((name.to_owned(), took, result));
        passed
    }

    /// Prints the summary; answers whether everything passed.
    pub(crate) fn finish(self) -> bool {
        let whole: Duration = self.lines.iter().map(|(_, took, _)| *took).sum();
        println!("\nSummary ({} in all)", Seconds(whole));
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        for (name, took, result) in &self.lines {
            match result {
                Ok(outcome) => {
                    passed += outcome.tests;
                    skipped += outcome.skipped.len();
                    println!(
                        "  ok      {name:<12} {:>9}  {}",
                        Seconds(*took).to_string(),
                        outcome.note
                    );
                }
                Err(problem) => {
                    failed += 1;
                    println!("  FAILED  {name:<12} {:>9}  {problem}", Seconds(*took).to_string());
                }
            }
        }
        if skipped > 0 {
            println!("\nNOT EVERYTHING RAN. Skipped, and why:");
            for skip in
                self.lines.iter().filter_map(|line| line.2.as_ref().ok()).flat_map(|o| &o.skipped)
            {
                println!("  - {skip}");
            }
        }
        println!("\n{passed} passed, {failed} failed, {skipped} skipped");
        failed == 0
    }
}

struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s", self.0.as_secs_f64())
    }
}

fn show_end_of(log: &Log) {
    let text = log.text();
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.len().saturating_sub(SHOWN_LINES);
    println!("---- end of {} ----", log.path().display());
    for line in &lines[first..] {
        println!("{line}");
    }
    println!("----");
}
