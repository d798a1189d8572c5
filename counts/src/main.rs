//! Counts what a unary call costs on a core: instructions under valgrind's callgrind, and
//! allocations, each held against a bound.
//!
//! ```text
//!  counts ─► valgrind ─► counts run get 3200   ─► I(N)  ─┐
//!         ─► valgrind ─► counts run get 6400   ─► I(2N) ─┴─► (I(2N) - I(N)) / N ─► bound?
//! ```
//! `cargo xtask counts` builds and runs it; see `docs/testing.md`.

mod allocations;
mod bounds;
mod callgrind;
mod client;
mod exchanges;
mod measure;

use std::{path::PathBuf, process::ExitCode};

use allocations::CountingAllocator;
use bounds::{Bound, Verdict};
use exchanges::{CALLS_MAX, Operation};
use measure::{Cost, MeasureError};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// More than this between two measurements of the same, in hundredths of a per cent, and neither
/// can be held against a bound.
const SPREAD_MAX_BASIS_POINTS: u64 = 50;

const HELP: &str = "\
Counts the instructions and allocations of unary calls.

Usage: counts [COMMAND]

Commands:
  (none)                 count every operation, print a table, hold each against its bound
  run OPERATION CALLS    serve the calls, nothing else: what valgrind is given
  profile OPERATION FILE write callgrind's profile of the calls, for callgrind_annotate FILE

Exit code: 0 within the bounds, 1 above one or failed, 2 wrong usage.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        [] => count_all(),
        ["run", name, calls] => match (Operation::named(name), calls.parse()) {
            (Some(operation), Ok(calls)) => measure::run(operation, calls).map(|_| true),
            _ => return wrong_usage(),
        },
        ["profile", name, file] => match Operation::named(name) {
            Some(operation) => callgrind::profile(operation, CALLS_MAX, &PathBuf::from(file))
                .map(|()| true)
                .map_err(MeasureError::from),
            None => return wrong_usage(),
        },
        ["--help" | "-h"] => {
            print!("{HELP}");
            Ok(true)
        }
        _ => return wrong_usage(),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("counts: {error}");
            ExitCode::FAILURE
        }
    }
}

fn wrong_usage() -> ExitCode {
    let names: Vec<&str> = Operation::ALL.iter().map(|operation| operation.name).collect();
    eprint!("{HELP}\nOperations: {}; at most {CALLS_MAX} calls.\n", names.join(", "));
    ExitCode::from(2)
}

/// The table; whether every operation is within its bound.
fn count_all() -> Result<bool, MeasureError> {
    println!("Per call; allocations per 1,000 calls. 16 B keys, 100 B values.");
    println!(
        "{:<18} {:>12} {:>9} {:>8} {:>12} {:>10} {:>11}",
        "operation", "instructions", "bound", "spread", "allocations", "bound", "bytes"
    );
    let mut all_within = true;
    for operation in Operation::ALL {
        let cost = measure::measure(operation)?;
        let bound = Bound::of(operation);
        println!(
            "{:<18} {:>12} {:>9} {:>6}.{:02}% {:>12} {:>10} {:>11}",
            operation.name,
            cost.instructions,
            bound.instructions,
            cost.spread_basis_points / 100,
            cost.spread_basis_points % 100,
            cost.allocations_per_thousand,
            bound.allocations_per_thousand,
            cost.bytes_per_thousand,
        );
        all_within &= tell(operation, bound, &cost);
    }
    Ok(all_within)
}

/// Says what is to be done about a cost; whether it passes.
fn tell(operation: Operation, bound: &Bound, cost: &Cost) -> bool {
    let name = operation.name;
    if cost.spread_basis_points > SPREAD_MAX_BASIS_POINTS {
        println!("UNSTEADY {name}: two counts of the same calls differ by more than 0.5 %");
        return false;
    }
    match bound.judge(cost) {
        Verdict::Within => true,
        Verdict::Above => {
            println!(
                "ABOVE {name}: `counts profile {name} FILE` tells where it goes; a price worth \
                 paying is entered, with its reason, in counts/src/bounds.rs"
            );
            false
        }
        Verdict::FarBelow => {
            println!("LOWER {name}: lower its bound in counts/src/bounds.rs, to keep the gain");
            true
        }
    }
}
