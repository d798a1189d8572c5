//! `compare`: Stateside beside other systems, row by row, and the figures of a release. What it
//! does goes to stderr, what it found to stdout; `cargo xtask compare --help` has the options.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde_json::Value;
use stateside_benches::{
    comparison::Effort,
    figures,
    machine::{CpuTimes, Machine},
    outcome::Outcome,
    report::{self, Done},
    rows::{self, Context, ROWS, Row},
};
use stateside_e2e::requirements::{target_folder, workspace_root};
use tokio::runtime::Runtime;

const USAGE: &str = "\
usage: compare [--seconds N] [--rounds N] [--only ROW[,ROW]] [--long] [--list]
               [--figures] [--only-figures] [--build-time] [--output FILE] [-o table|json]";

/// Share of the machine's CPU time that others had, above which a row says so. Below it lie the
/// kernel's own threads.
const OTHERS_WORTH_A_WORD: f64 = 0.05;

#[derive(Debug)]
struct Wanted {
    effort: Effort,
    only: Vec<String>,
    long: bool,
    list: bool,
    rows: bool,
    figures: bool,
    build_time: bool,
    output: Option<PathBuf>,
    as_json: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let wanted = parse(&arguments);
    let picked = wanted.and_then(|wanted| Ok((rows::pick(&wanted.only, wanted.long)?, wanted)));
    let (picked, wanted) = match picked {
        Ok(picked) => picked,
        Err(problem) => {
            eprintln!("compare: {problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if wanted.list {
        for row in ROWS {
            let remark = if row.long { " (long: with --long, or named)" } else { "" };
            println!("{:<16} {}{remark}", row.name, row.title);
        }
        return ExitCode::SUCCESS;
    }
    match run(&wanted, &picked) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("compare: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every row could be measured. A missed bar is a finding, not a failure.
fn run(wanted: &Wanted, picked: &[&Row]) -> Result<bool, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let runtime = Runtime::new().map_err(|error| error.to_string())?;
    let machine = Machine::describe(folder.path());
    let context = Context { effort: wanted.effort, folder: folder.path(), runtime: &runtime };
    let mut text = report::heading(&machine, wanted.effort);
    if !wanted.as_json {
        print!("{text}");
    }
    let mut done = Vec::new();
    let mut finish = |name, title, outcome| {
        let finished = Done { name, title, outcome };
        let shown = report::row(&finished);
        if !wanted.as_json {
            print!("{shown}");
        }
        text += &shown;
        done.push(finished);
    };
    for row in picked.iter().filter(|_| wanted.rows) {
        eprintln!("{}: {}", row.name, row.title);
        finish(row.name, row.title, measured(row, &context));
    }
    if wanted.figures {
        eprintln!("figures: a million records, written and replayed");
        finish("figures", "What a release states", figures::run(&runtime));
    }
    if wanted.build_time {
        eprintln!("clean-build: the release binary from nothing");
        finish("clean-build", "The release binary from nothing", figures::clean_build());
    }
    let results = report::json(&machine, wanted.effort, &done);
    if wanted.as_json {
        println!("{results:#}");
    }
    keep(wanted, &text, &results)?;
    Ok(done.iter().all(|row| row.outcome.is_ok()))
}

/// A row's outcome. A server that does not start panics in the code that tests share: that costs
/// the row and not the run.
fn measured(row: &Row, context: &Context<'_>) -> Result<Outcome, String> {
    let before = CpuTimes::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| (row.run)(context)));
    let mut outcome = outcome.unwrap_or_else(|_| Err("it panicked; see stderr".to_owned()))?;
    let others =
        before.zip(CpuTimes::now()).map_or(0.0, |(before, now)| now.share_of_others_since(before));
    if others > OTHERS_WORTH_A_WORD {
        outcome.notes.push(format!(
            "other work had {:.0} % of the machine's CPU time meanwhile: rates and times are disturbed",
            100.0 * others
        ));
    }
    Ok(outcome)
}

/// The JSON, and the table beside it. Relative paths start at the workspace's root.
fn keep(wanted: &Wanted, text: &str, results: &Value) -> Result<(), String> {
    let path = match &wanted.output {
        Some(path) => workspace_root().join(path),
        None => target_folder().join("bench/compare.json"),
    };
    let write = |path: &Path, text: &str| {
        let folder = path.parent().unwrap_or(path);
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(path, text))
            .map_err(|error| format!("{}: {error}", path.display()))
    };
    write(&path, &format!("{results:#}\n"))?;
    write(&path.with_extension("md"), text)?;
    eprintln!("kept: {} and the table beside it", path.display());
    Ok(())
}

fn parse(arguments: &[String]) -> Result<Wanted, String> {
    let mut wanted = Wanted {
        effort: Effort { seconds: 5, rounds: 3 },
        only: Vec::new(),
        long: false,
        list: false,
        rows: true,
        figures: false,
        build_time: false,
        output: None,
        as_json: false,
    };
    let mut rest = arguments.iter();
    while let Some(name) = rest.next() {
        let mut word = || rest.next().ok_or_else(|| format!("{name} needs a value"));
        let number = |text: &str| {
            let number = text.parse().ok().filter(|number| *number > 0);
            number.ok_or_else(|| format!("{name} takes a number above 0"))
        };
        match name.as_str() {
            "--seconds" => wanted.effort.seconds = number(word()?)?,
            "--rounds" => wanted.effort.rounds = number(word()?)?,
            "--only" => wanted.only.extend(word()?.split(',').map(str::to_owned)),
            "--long" => wanted.long = true,
            "--list" => wanted.list = true,
            "--figures" => wanted.figures = true,
            "--only-figures" => (wanted.rows, wanted.figures) = (false, true),
            "--build-time" => wanted.build_time = true,
            "--output" => wanted.output = Some(word()?.into()),
            "-o" => match word()?.as_str() {
                "json" => wanted.as_json = true,
                "table" => wanted.as_json = false,
                other => return Err(format!("-o takes table or json, not {other}")),
            },
            other => return Err(format!("there is no option {other}")),
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Wanted, String> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read_and_nonsense_is_refused() {
        let wanted = parsed("--only a,b --seconds 2 -o json --output x/y.json").unwrap();
        assert_eq!((wanted.only, wanted.effort.seconds), (vec!["a".into(), "b".into()], 2));
        assert!(wanted.as_json && wanted.output.is_some());
        for line in ["--seconds 0", "--seconds", "-o xml", "--frobnicate"] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
