//! Developer commands: `cargo xtask test` is what CI runs, the others are parts of it for daily
//! work.
//!
//! Every command works from a fresh clone: what it needs beyond Rust and a C compiler it
//! installs under `target/tools`, after saying so. Versions are pinned in `tools.rs` and in the
//! files under `e2e/clients`.

mod commands;
mod dependency_direction;
mod process;
mod report;
mod suite;
mod tidy;
mod tools;
mod workspace;

use std::process::ExitCode;

const HELP: &str = "\
Developer commands of Stateside.

Usage: cargo xtask COMMAND [OPTIONS]

Commands:
  test          everything that a change has to pass; what CI runs
                  --only STEP   run this step alone (may be repeated)
                  --list        name the steps and what each does
  check         before a commit, in seconds: format, tidy, dependency directions, clippy
  e2e           the end-to-end tests through the real binary
                  FILTER        only tests whose name contains it: clients, python, grpcurl,
                                quick_start, damage, startup, full_disk, lifecycle, …
  kill-loops    kill -9 under load, restart, compare every record with what was acknowledged
                  --loops N     kills (default 100)
                  --store S     memory, memory-ordered, sled, lsm, tiered or all (default all)
                  --seed N      repeat a run's choices (default: drawn and printed)
  compare       this build beside Redis, memcached, etcd, nghttpd and tonic; a table on stdout
                  --only ROW[,ROW]  these rows; --list names all
                  --long        also rows that take minutes and gigabytes
                  --seconds N   length of one measurement (default 5)
                  --rounds N    rounds of all contenders in turn (default 3)
                  --figures     also replay rate, cold start, sizes; --only-figures
                  --build-time  also a clean release build
                  --output FILE keep the JSON there and the table as .md beside
                                (default target/bench/compare.json)
                  -o json       JSON on stdout instead of the table
  counts        instructions and allocations of unary calls, each beside its bound
                  profile OPERATION FILE   where they go, for callgrind_annotate FILE
  kafka         a real Apache Kafka 4.1 broker (needs Java 17, and Maven once to fetch it)
                  up            start one on free ports, wait until it serves, print its address
                  down          stop it and delete its data
  codegen       write proto/src/generated anew from the .proto files
  tools         install what the tests need beyond Rust, and nothing else

Logs of the steps: target/xtask/logs. Exit code: 0 passed, 1 failed, 2 wrong usage.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((command, rest)) = arguments.split_first() else {
        print!("{HELP}");
        return ExitCode::from(2);
    };
    let outcome = match command.as_str() {
        "test" => commands::test(rest),
        "check" => commands::check(rest),
        "e2e" => commands::e2e(rest),
        "kill-loops" => commands::kill_loops(rest),
        "compare" => commands::compare(rest),
        "counts" => commands::counts(rest),
        "kafka" => commands::kafka(rest),
        "codegen" => commands::codegen(rest),
        "tools" => commands::install_tools(rest),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(true)
        }
        other => Err(commands::Usage(format!("there is no command `{other}`"))),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(commands::Usage(problem)) => {
            eprintln!("cargo xtask: {problem}; `cargo xtask --help` lists what there is");
            ExitCode::from(2)
        }
    }
}
