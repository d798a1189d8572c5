//! `side-by-side [--seconds N] [--rounds N] [--figures] [--build-time]`: the comparison with
//! tonic, and the figures of a release. Prints tables; the same as JSON is in
//! `target/bench/side-by-side.json`.

use std::{fs, path::Path, process::ExitCode};

use serde_json::{Value, json};
use stateside_benches::{
    comparison::{self, Effort},
    figures,
};
use stateside_e2e::requirements::target_folder;

const USAGE: &str =
    "usage: side-by-side [--seconds N] [--rounds N] [--figures] [--only-figures] [--build-time]";

struct Wanted {
    effort: Effort,
    comparison: bool,
    figures: bool,
    build_time: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted = match parse(&arguments) {
        Ok(wanted) => wanted,
        Err(problem) => {
            eprintln!("{problem}; {USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&wanted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("side-by-side: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(wanted: &Wanted) -> Result<(), String> {
    let folder = target_folder().join("bench");
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut results = json!({});
    if wanted.comparison {
        results["comparison"] = comparison::run(wanted.effort, &folder)?;
    }
    if wanted.figures {
        results["figures"] = figures::run(&folder)?;
    }
    if wanted.build_time {
        results["clean_build"] = figures::clean_build()?;
    }
    write(&folder.join("side-by-side.json"), &results)
}

fn write(path: &Path, results: &Value) -> Result<(), String> {
    fs::write(path, format!("{results:#}\n"))
        .map_err(|error| format!("{}: {error}", path.display()))?;
    println!("as JSON: {}", path.display());
    Ok(())
}

fn parse(arguments: &[String]) -> Result<Wanted, String> {
    let mut wanted = Wanted {
        effort: Effort { seconds: 5, rounds: 3 },
        comparison: true,
        figures: false,
        build_time: false,
    };
    let mut rest = arguments.iter();
    while let Some(name) = rest.next() {
        let mut number = || -> Result<u32, String> {
            let value = rest.next().and_then(|value| value.parse().ok());
            value
                .filter(|number| *number > 0)
                .ok_or_else(|| format!("{name} takes a number above 0"))
        };
        match name.as_str() {
            "--seconds" => wanted.effort.seconds = number()?,
            "--rounds" => wanted.effort.rounds = number()?,
            "--figures" => wanted.figures = true,
            "--only-figures" => (wanted.comparison, wanted.figures) = (false, true),
            "--build-time" => wanted.build_time = true,
            other => return Err(format!("there is no option {other}")),
        }
    }
    Ok(wanted)
}
