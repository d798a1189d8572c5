//! `kill-loops [--loops N] [--store memory|memory-ordered|sled|lsm|tiered|all] [--seed N]`: see `stateside_e2e::kill_loops`.

use std::{process::ExitCode, time::Instant};

use stateside_e2e::{
    config::Store,
    kill_loops::{Outcome, Plan, run},
    random::Random,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (loops, stores, seed) = match parse(&arguments) {
        Ok(parsed) => parsed,
        Err(problem) => {
            eprintln!(
                "kill-loops: {problem}; usage: kill-loops [--loops N] [--store memory|memory-ordered|sled|lsm|tiered|all] [--seed N]"
            );
            return ExitCode::from(2);
        }
    };
    let mut failed = false;
    for store in stores {
        let plan = Plan { loops, store, ack: "durable", seed };
        println!("{} store, {loops} loops, seed {seed}", store.as_str());
        let begun = Instant::now();
        match run(plan, |life, outcome| {
            if life > 0 && life % 10 == 0 {
                println!("  {life:>4} kills: {}", described(outcome));
            }
        }) {
            Ok(outcome) => println!(
                "  held in all {} kills and {} during recovery, {:.0} s: {}",
                outcome.kills,
                outcome.kills_in_recovery,
                begun.elapsed().as_secs_f64(),
                described(&outcome)
            ),
            Err(violations) => {
                println!("  BROKEN, seed {seed}: {violations}");
                failed = true;
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn described(outcome: &Outcome) -> String {
    format!(
        "{} batches acknowledged, {} refused, {} under way and applied, {} not; {} kills in a snapshot",
        outcome.acknowledged,
        outcome.refused,
        outcome.found_applied,
        outcome.found_absent,
        outcome.kills_in_snapshot
    )
}

fn parse(arguments: &[String]) -> Result<(u32, Vec<Store>, u64), String> {
    let (mut loops, mut stores, mut seed) = (100, Store::ALL.to_vec(), None);
    let mut rest = arguments.iter();
    while let Some(name) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{name} takes a number"));
        match name.as_str() {
            "--loops" => loops = u32::try_from(number()?).map_err(|_| "too many loops")?,
            "--seed" => seed = Some(number()?),
            "--store" => {
                stores = Store::ALL
                    .into_iter()
                    .filter(|store| value == "all" || value == store.as_str())
                    .collect();
                if stores.is_empty() {
                    return Err(format!("there is no store {value}"));
                }
            }
            other => return Err(format!("there is no option {other}")),
        }
    }
    Ok((loops, stores, seed.unwrap_or_else(Random::fresh_seed)))
}
