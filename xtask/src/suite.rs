//! The steps of `cargo xtask test`: each a name, a sentence, and what it does.
//!
//! Cheap and likely to fail comes first. The unit tests run unoptimised, with every assertion
//! and overflow check on; the end-to-end tests drive the release binary, the one that people run.

use std::{num::NonZero, process::Command};

use crate::{
    dependency_direction,
    process::{self, Log},
    report::{Passed, StepResult},
    tidy,
    tools::Tool,
    workspace,
};

/// How long fetching the advisory database may take, seconds.
const ADVISORIES_SECONDS_MAX: &str = "60";

/// Tests at a time, also with fewer cores: they wait for disks, brokers and kills more than they compute.
const TEST_THREADS_MIN: usize = 4;

/// What checks and unit tests are built with beyond the default.
const TEST_FEATURES: [&str; 2] = ["--features", "stateside-node/kafka"];

/// What the release binary has beyond the default build, which the end-to-end tests drive: that, and TLS
/// where OpenSSL is at hand. Its unit tests would build librdkafka once more and test nothing more.
pub(crate) fn release_features() -> [&'static str; 2] {
    if Tool::OpenSsl.installed() {
        ["--features", "stateside-node/kafka-tls"]
    } else {
        TEST_FEATURES
    }
}

/// What drives the release binary: the end-to-end tests, and an example whose test does.
const DRIVERS: [&str; 4] = ["-p", "stateside-e2e", "-p", "stateside-example-stream-join"];

/// One step of the suite.
pub(crate) struct Step {
    /// For `--only`.
    pub(crate) name: &'static str,
    /// What it proves.
    pub(crate) about: &'static str,
    /// Does it.
    pub(crate) run: fn(&mut Log) -> StepResult,
}

/// All steps, in order.
pub(crate) const STEPS: &[Step] = &[
    Step { name: "format", about: "rustfmt agrees with every file", run: format },
    Step {
        name: "tidy",
        about: "pure crates are pure, files short, exceptions explained",
        run: tidy,
    },
    Step {
        name: "directions",
        about: "crates import only what the workspace table allows",
        run: directions,
    },
    Step { name: "clippy", about: "no warning in any target", run: clippy },
    Step { name: "deny", about: "licences, duplicate crates, sources, advisories", run: deny },
    Step { name: "docs", about: "the documentation builds without warnings", run: docs },
    Step { name: "unit", about: "unit, property and integration tests of every crate", run: unit },
    Step {
        name: "build",
        about: "the release binary and the end-to-end tests",
        run: build_release,
    },
    Step {
        name: "e2e",
        about: "clients in four languages, bad input, kill -9, through the real binary",
        run: e2e,
    },
    Step {
        name: "counts",
        about: "instructions and allocations of a unary call, each within its bound",
        run: counts,
    },
];

/// Installs what the tests need.
pub(crate) fn install_tools(log: &mut Log) -> StepResult {
    install(&Tool::FOR_TESTS, log)
}

/// Installs what the comparison needs.
pub(crate) fn install_peers(log: &mut Log) -> StepResult {
    install(&Tool::FOR_COMPARISON, log)
}

/// Says what will be installed, installs it, and tells what could not be. All at once, Debian's
/// packages one after the other: they mostly wait for their registries.
fn install(tools: &[Tool], log: &mut Log) -> StepResult {
    let missing: Vec<Tool> = tools.iter().copied().filter(|tool| !tool.installed()).collect();
    if missing.is_empty() {
        return Ok(Passed { note: "all there".into(), ..Passed::default() });
    }
    let (debian, others): (Vec<Tool>, Vec<Tool>) =
        missing.iter().partition(|tool| tool.is_debian());
    let lanes = others.into_iter().map(|tool| vec![tool]).chain([debian]);
    let failed: Vec<String> = std::thread::scope(|scope| {
        let lanes: Vec<_> = lanes.map(|lane| scope.spawn(move || install_in_turn(&lane))).collect();
        lanes.into_iter().flat_map(|lane| lane.join().expect("a lane does not panic")).collect()
    });
    failed.iter().for_each(|problem| log.line(problem));
    if workspace::in_ci() && !failed.is_empty() {
        return Err(format!("with CI set every tool is needed; {}", failed.join("; ")));
    }
    let note = format!("{} installed", missing.len() - failed.len());
    Ok(Passed { note, tests: 0, skipped: failed })
}

/// Installs these, each with a log of its own; what could not be, in sentences.
fn install_in_turn(tools: &[Tool]) -> Vec<String> {
    let mut failed = Vec::new();
    for tool in tools {
        eprintln!("     installing {}", tool.describe());
        let installed = Log::create(&format!("tools-{}", tool.name()))
            .map_err(|error| format!("cannot write its log: {error}"))
            .and_then(|mut log| {
                let result = tool.install(&mut log);
                result.map_err(|problem| format!("{problem} (log: {})", log.path().display()))
            });
        if let Err(problem) = installed {
            eprintln!("     NOT INSTALLED: {problem}");
            failed.push(format!("tests that need {}: {problem}", tool.describe()));
        }
    }
    failed
}

/// What the suite needs and does, before it does anything.
pub(crate) fn announce() {
    println!(
        "Needs: Rust, a C compiler and make, Python 3.11, Node 20 with npm, Go 1.24, Java 17 with Maven;\n\
         Debian's apt-get as root."
    );
    println!(
        "Installs what is missing, once, under target/tools (Debian's packages on the system):"
    );
    for tool in Tool::FOR_TESTS {
        let state = if tool.installed() { "there    " } else { "to install" };
        println!("  {state}  {}", tool.describe());
    }
    println!("Cannot install: the RustSec advisory database, when the machine does not reach it;");
    println!("  then advisories are not checked, and the summary says so.\n");
}

fn format(log: &mut Log) -> StepResult {
    log.run(process::cargo().args(["fmt", "--all", "--check"]))?;
    Ok(Passed::check(""))
}

fn tidy(log: &mut Log) -> StepResult {
    let found = tidy::violations(workspace::root())
        .map_err(|error| format!("cannot read the sources: {error}"))?;
    listed(log, &found)
}

fn directions(log: &mut Log) -> StepResult {
    let output = process::cargo()
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .map_err(|error| format!("cargo metadata did not start: {error}"))?;
    let packages = dependency_direction::packages(&String::from_utf8_lossy(&output.stdout))?;
    listed(log, &dependency_direction::violations(&packages))
}

fn listed(log: &mut Log, found: &[String]) -> StepResult {
    for line in found {
        log.line(line);
    }
    if found.is_empty() { Ok(Passed::check("")) } else { Err(format!("{} to mend", found.len())) }
}

fn clippy(log: &mut Log) -> StepResult {
    log.run(
        process::cargo()
            .args(["clippy", "--workspace", "--all-targets", "--locked"])
            .args(TEST_FEATURES)
            .args(["--", "-D", "warnings"]),
    )?;
    // The default build, which has no Kafka client.
    log.run(
        process::cargo()
            .args(["clippy", "-p", "stateside-node", "--locked"])
            .args(["--", "-D", "warnings"]),
    )?;
    Ok(Passed::check(""))
}

fn deny(log: &mut Log) -> StepResult {
    if !Tool::CargoDeny.installed() {
        return missing(Tool::CargoDeny, "licences, duplicate crates and sources");
    }
    let cargo_deny = || -> Command {
        let mut command = process::command("timeout");
        command
            .arg(ADVISORIES_SECONDS_MAX)
            .arg(Tool::CargoDeny.folder().join("bin/cargo-deny"))
            .args(["--color", "never", "--log-level", "warn"]);
        command
    };
    log.run(cargo_deny().args(["--locked", "check", "licenses", "bans", "sources"]))?;
    let mut passed = Passed::check("");
    if let Err(problem) = log.run(cargo_deny().args(["check", "advisories"])) {
        let text = log.text();
        let unreachable = ["failed to fetch", "failed to acquire", "unable to", "exit status: 124"]
            .iter()
            .any(|sign| text.contains(sign) || problem.contains(sign));
        if !unreachable {
            return Err(format!("an advisory concerns a dependency: {problem}"));
        }
        passed.skipped.push("advisories: the RustSec database could not be reached".into());
    }
    Ok(passed)
}

fn docs(log: &mut Log) -> StepResult {
    log.run(
        process::cargo()
            .args(["doc", "--workspace", "--no-deps", "--locked"])
            .args(TEST_FEATURES)
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    Ok(Passed::check(""))
}

fn unit(log: &mut Log) -> StepResult {
    run_tests(
        log,
        process::cargo()
            .args(["test", "--workspace", "--locked", "--no-fail-fast"])
            .args(TEST_FEATURES)
            .args(["--exclude", "stateside-e2e", "--exclude", "stateside-example-stream-join"]),
        &[],
    )
}

/// Builds the release binary, and what drives it: that in the profile of the unit tests, whose
/// dependencies are there already, and without the time that optimising it would take.
pub(crate) fn build_release(log: &mut Log) -> StepResult {
    log.run(
        process::cargo()
            .args(["build", "--release", "--locked", "-p", "stateside-node"])
            .args(release_features()),
    )?;
    log.run(process::cargo().args(["test", "--locked", "--no-run"]).args(DRIVERS))?;
    Ok(Passed::default())
}

fn e2e(log: &mut Log) -> StepResult {
    e2e_filtered(log, &[])
}

/// The end-to-end tests whose names contain one of `filters`, or all.
pub(crate) fn e2e_filtered(log: &mut Log, filters: &[String]) -> StepResult {
    run_tests(
        log,
        process::cargo()
            .args(["test", "--locked"])
            .args(DRIVERS)
            .env("STATESIDE_E2E_TOOLS", workspace::tools())
            .env("STATESIDE_BIN", workspace::release_binary()),
        filters,
    )
}

/// Counts instructions of the release code. Linking is all that is built for it: dependencies
/// and node are those of the release binary.
pub(crate) fn counts(log: &mut Log) -> StepResult {
    if std::env::consts::ARCH != "x86_64" {
        let skipped = vec!["counts: the bounds are instructions of x86-64".to_owned()];
        return Ok(Passed { skipped, ..Passed::default() });
    }
    if !Tool::Valgrind.installed() {
        return missing(Tool::Valgrind, "instructions and allocations of a call");
    }
    log.run(
        process::cargo()
            .args(["build", "--release", "--locked", "-p", "stateside-counts"])
            .args(release_features()),
    )?;
    log.run(&mut process::command(workspace::target().join("release").join("counts")))?;
    let lower = log.text().lines().filter(|line| line.starts_with("LOWER ")).count();
    let note = match lower {
        0 => String::new(),
        _ => format!("{lower} far below: lower their bounds in counts/src/bounds.rs"),
    };
    Ok(Passed::check(note))
}

fn missing(tool: Tool, what: &str) -> StepResult {
    let sentence = format!("{what}: not installed: {}", tool.describe());
    if workspace::in_ci() {
        return Err(sentence);
    }
    Ok(Passed { skipped: vec![sentence], ..Passed::default() })
}

/// Runs tests, all or those whose names contain one of `filters`, and counts them. Failed ones are
/// repeated at the end of the log, where they are seen, and named in the error.
fn run_tests(log: &mut Log, command: &mut Command, filters: &[String]) -> StepResult {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = format!("--test-threads={}", cores.max(TEST_THREADS_MIN));
    command.args(["--", "--show-output", &threads]).args(filters);
    let Err(problem) = log.run(command) else { return counted(log) };
    let Failures { names, messages } = failures(&log.text());
    if names.is_empty() {
        return Err(problem);
    }
    log.line("\nWhat failed:");
    for line in &messages {
        log.line(line);
    }
    Err(format!("{} of the tests: {}", names.len(), names.join(", ")))
}

/// Failed tests, as libtest tells them.
#[derive(Debug, Default, PartialEq)]
struct Failures {
    names: Vec<String>,
    /// What each of them printed.
    messages: Vec<String>,
}

/// libtest prints `failures:` twice for a crate with failed tests: before what each of them
/// printed, and before their names, which end with an empty line.
fn failures(output: &str) -> Failures {
    let mut found = Failures::default();
    let mut lines = output.lines();
    while lines.any(|line| line == "failures:") {
        found.messages.extend(lines.by_ref().take_while(|l| *l != "failures:").map(str::to_owned));
        let names = lines.by_ref().map_while(|line| line.strip_prefix("    "));
        found.names.extend(names.map(str::to_owned));
    }
    found
}

/// Adds up what libtest and the tests themselves report.
fn counted(log: &Log) -> StepResult {
    let text = log.text();
    let mut skipped: Vec<String> =
        text.lines().filter_map(|line| line.strip_prefix("SKIPPED ")).map(str::to_owned).collect();
    skipped.sort();
    skipped.dedup();
    let tests = tests_passed(&text).saturating_sub(skipped.len());
    if tests == 0 {
        return Err("ran no test".to_owned());
    }
    Ok(Passed { note: format!("{tests} tests"), tests, skipped })
}

fn tests_passed(output: &str) -> usize {
    output
        .lines()
        .filter_map(|line| line.strip_prefix("test result: ok. "))
        .filter_map(|rest| rest.split(' ').next()?.parse::<usize>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_added_up_over_crates() {
        let output = "test result: ok. 3 passed; 0 failed; 0 ignored\nrunning 2 tests\n\
                      test result: ok. 2 passed; 0 failed; 1 ignored\n";
        assert_eq!(tests_passed(output), 5);
    }

    #[test]
    fn failed_tests_are_named_with_what_they_printed() {
        let output = "\
test a::passes ... ok\ntest a::fails ... FAILED\n\nsuccesses:\n\nsuccesses:\n    a::passes\n\n\
failures:\n\n---- a::fails stdout ----\nleft: 1\n\n\nfailures:\n    a::fails\n\n\
test result: FAILED. 1 passed; 1 failed\n\
failures:\n\n---- b::too stdout ----\nright: 2\n\nfailures:\n    b::too\n    b::three\n\n\
successes:\n    a::last\n";
        let Failures { names, messages } = failures(output);
        assert_eq!(names, ["a::fails", "b::too", "b::three"]);
        let messages = messages.join("\n");
        assert!(messages.contains("left: 1") && messages.contains("right: 2"), "{messages}");
        assert!(!messages.contains("passes") && !messages.contains("last"), "{messages}");
        assert_eq!(failures("test result: ok. 2 passed\n"), Failures::default());
    }

    #[test]
    fn step_names_are_unique() {
        for (index, step) in STEPS.iter().enumerate() {
            assert!(STEPS[..index].iter().all(|other| other.name != step.name));
        }
    }
}
