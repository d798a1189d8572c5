//! What each command of the help text does.

use std::process::{Command, Stdio};

use crate::{
    process,
    report::{Passed, Report},
    suite::{self, STEPS, Step, release_features},
    tools::Tool,
    workspace,
};

/// The command line made no sense: a sentence.
pub(crate) struct Usage(pub(crate) String);

/// Whether the command succeeded.
type Outcome = Result<bool, Usage>;

/// Everything that a change has to pass, or the steps named.
pub(crate) fn test(arguments: &[String]) -> Outcome {
    let mut only = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--list" => {
                for step in STEPS {
                    println!("{:<12} {}", step.name, step.about);
                }
                return Ok(true);
            }
            "--only" => {
                let name = rest.next().ok_or_else(|| Usage("--only needs a STEP".into()))?;
                let step = STEPS.iter().find(|step| step.name == name).ok_or_else(|| {
                    let names: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
                    Usage(format!("there is no step `{name}`; there are {}", names.join(", ")))
                })?;
                only.push(step);
            }
            other => return Err(Usage(format!("test does not take `{other}`"))),
        }
    }
    let mut report = Report::default();
    let steps: Vec<&Step> = if only.is_empty() { STEPS.iter().collect() } else { only };
    let needs_tools = steps.iter().any(|step| ["deny", "e2e", "counts"].contains(&step.name));
    if needs_tools {
        suite::announce();
    }
    let mut go_on =
        !needs_tools || report.step("tools", "install what the tests need", suite::install_tools);
    for step in steps {
        // A failed check does not hide what the next would say; a failed build would.
        if go_on {
            let passed = report.step(step.name, step.about, step.run);
            go_on = passed || !["unit", "build"].contains(&step.name);
        }
    }
    Ok(report.finish())
}

/// The quick checks.
pub(crate) fn check(arguments: &[String]) -> Outcome {
    no_arguments("check", arguments)?;
    let mut report = Report::default();
    for step in STEPS {
        if ["format", "tidy", "directions", "clippy"].contains(&step.name) {
            report.step(step.name, step.about, step.run);
        }
    }
    Ok(report.finish())
}

/// The end-to-end tests that match.
pub(crate) fn e2e(filters: &[String]) -> Outcome {
    if let Some(option) = filters.iter().find(|filter| filter.starts_with('-')) {
        return Err(Usage(format!("e2e does not take `{option}`")));
    }
    let mut report = Report::default();
    if report.step("tools", "install what the tests need", suite::install_tools)
        && report.step("build", "the release binary and the tests", suite::build_release)
    {
        report.step("e2e", "through the real binary", |log| suite::e2e_filtered(log, filters));
    }
    Ok(report.finish())
}

/// Kill loops, with their own output on the terminal.
pub(crate) fn kill_loops(arguments: &[String]) -> Outcome {
    let [features, which] = release_features();
    Ok(build(&["--release", "--package", "stateside-node", features, which])
        && build(&["--package", "stateside-e2e", "--bin", "kill-loops"])
        && run_built("debug", "kill-loops", arguments))
}

/// The comparison and the figures: their table on stdout, all else on stderr.
pub(crate) fn compare(arguments: &[String]) -> Outcome {
    if arguments.iter().any(|argument| ["--list", "--help"].contains(&argument.as_str())) {
        return Ok(build(&["--release", "--package", "stateside-benches"])
            && run_built("release", "compare", arguments));
    }
    eprintln!("Installs what is missing (Debian's packages, on the system):");
    let missing: Vec<String> = Tool::FOR_COMPARISON
        .iter()
        .filter(|tool| !tool.installed())
        .map(|tool| tool.describe())
        .collect();
    eprintln!("  {}", if missing.is_empty() { "nothing".to_owned() } else { missing.join("\n  ") });
    let installed = process::Log::create("compare-tools").map_err(|error| error.to_string());
    // What cannot be installed is left out of the comparison, and its table says so.
    if let Err(problem) = installed.and_then(|mut log| suite::install_peers(&mut log).map(drop)) {
        eprintln!("{problem}");
    }
    let [features, which] = release_features();
    let packages = ["--release", "--package", "stateside-node", "--package", "stateside-benches"];
    Ok(build(&[packages.as_slice(), &[features, which]].concat())
        && run_built("release", "compare", arguments))
}

/// The table of the state stores.
pub(crate) fn stores(arguments: &[String]) -> Outcome {
    let [features, which] = release_features();
    let packages = ["--release", "--package", "stateside-node", "--package", "stateside-benches"];
    Ok(build(&[packages.as_slice(), &[features, which]].concat())
        && run_built("release", "store-table", arguments))
}

/// The table of what calls cost, or one of its profiles.
pub(crate) fn counts(arguments: &[String]) -> Outcome {
    let mut report = Report::default();
    let ready = report.step("tools", "install what counting needs", suite::install_tools);
    let [features, which] = release_features();
    Ok(ready
        && build(&["--release", "--package", "stateside-counts", features, which])
        && run_built("release", "counts", arguments))
}

/// A broker for daily work.
pub(crate) fn kafka(arguments: &[String]) -> Outcome {
    match arguments {
        [verb] if verb == "up" || verb == "down" => {}
        _ => return Err(Usage("kafka takes `up` or `down`".to_owned())),
    }
    if !Tool::Kafka.installed() {
        eprintln!("Installs {}, under target/tools", Tool::Kafka.describe());
        let mut log =
            process::Log::create("kafka-tools").map_err(|error| Usage(error.to_string()))?;
        if let Err(problem) = Tool::Kafka.install(&mut log) {
            eprintln!("cargo xtask kafka: Apache Kafka {problem}");
            return Ok(false);
        }
    }
    Ok(build(&["--package", "stateside-e2e", "--bin", "kafka"])
        && run_built("debug", "kafka", arguments))
}

/// Generated code from the `.proto` files.
pub(crate) fn codegen(arguments: &[String]) -> Outcome {
    no_arguments("codegen", arguments)?;
    let mut report = Report::default();
    report.step("codegen", "proto/src/generated from proto/stateside/v1", |log| {
        log.run(
            process::cargo()
                .args(["test", "-p", "stateside-proto", "--test", "generated_code"])
                .env("UPDATE_GENERATED", "1"),
        )?;
        Ok(Passed::check("`git diff proto/src/generated` shows what changed"))
    });
    Ok(report.finish())
}

/// Only the installation.
pub(crate) fn install_tools(arguments: &[String]) -> Outcome {
    no_arguments("tools", arguments)?;
    suite::announce();
    let mut report = Report::default();
    report.step("tools", "install what the tests need", suite::install_tools);
    Ok(report.finish())
}

fn no_arguments(command: &str, arguments: &[String]) -> Result<(), Usage> {
    match arguments.first() {
        None => Ok(()),
        Some(extra) => Err(Usage(format!("{command} does not take `{extra}`"))),
    }
}

/// A build with cargo's own progress on the terminal.
fn build(arguments: &[&str]) -> bool {
    let mut command = process::cargo();
    succeeds(command.env_remove("CARGO_TERM_COLOR").args(["build", "--locked"]).args(arguments))
}

fn run_built(profile: &str, binary: &str, arguments: &[String]) -> bool {
    let path = workspace::target().join(profile).join(binary);
    let mut command = process::command(path);
    command
        .env("STATESIDE_E2E_TOOLS", workspace::tools())
        .env("STATESIDE_BIN", workspace::release_binary());
    succeeds(command.args(arguments))
}

fn succeeds(command: &mut Command) -> bool {
    match command.stdin(Stdio::null()).status() {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("cargo xtask: {:?} did not start: {error}", command.get_program());
            false
        }
    }
}
