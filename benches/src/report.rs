//! A finished run as Markdown, for terminal and repository alike, and as JSON.

use serde_json::{Value, json};

use crate::{
    comparison::{Effort, Measured},
    machine::Machine,
    outcome::{Outcome, number},
    process::{LOAD_CPU, SERVER_CPU},
};

const COLUMNS: [&str; 11] = [
    "server",
    "load",
    "/s",
    "lowest to highest",
    "Stateside is",
    "p50 us",
    "p99 us",
    "p99.9 us",
    "CPU us",
    "busy",
    "load busy",
];
const MEMORY_COLUMN: &str = "peak MB";

/// One row of the run.
pub struct Done {
    /// For `--only`.
    pub name: &'static str,
    /// What it measures.
    pub title: &'static str,
    /// What it found; or why it found nothing.
    pub outcome: Result<Outcome, String>,
}

/// The heading of a run.
pub fn heading(machine: &Machine, effort: Effort) -> String {
    let Effort { seconds, rounds } = effort;
    let mut text = format!("# Stateside beside others, {}\n\n{}\n", machine.taken, machine.lines());
    text += &format!(
        "\nServers on core {SERVER_CPU}, loads on core {LOAD_CPU}, {seconds} s a measurement, {rounds} rounds in turn; medians.\n\
        Rates and CPU are per pair written or read. \"Stateside is\" divides its rate by the other's (lowest and\n\
        highest of the rounds). \"busy\" and \"load busy\" are the shares of their cores that server and load took: well\n\
        below 100 %, the server was not the limit but the load or the disk, and CPU says more than the rate. Times are of\n\
        calls; those of loads of many calls come from a run of their own.\n"
    );
    text
}

/// One row.
pub fn row(done: &Done) -> String {
    let mut text = format!("\n## {}: {}\n", done.name, done.title);
    let outcome = match &done.outcome {
        Ok(outcome) => outcome,
        Err(problem) => return text + &format!("\n**FAILED** {problem}\n"),
    };
    if !outcome.contenders.is_empty() {
        text += "\n";
        text += &table(&outcome.contenders);
    }
    let mut list = |lines: Vec<String>| {
        if !lines.is_empty() {
            text += &format!("\n- {}\n", lines.join("\n- "));
        }
    };
    list(outcome.bars.iter().map(super::outcome::Bar::line).collect());
    let figure = |figure: &super::outcome::Figure| {
        // A count is shown whole.
        let whole = figure.value.fract() == 0.0 && figure.value.abs() < 100.0;
        let value = if whole { format!("{:.0}", figure.value) } else { number(figure.value) };
        format!("{}: {value} {}", figure.name, figure.unit).trim_end().to_owned()
    };
    list(outcome.figures.iter().map(figure).collect());
    let refused = outcome.contenders.iter().filter(|measured| measured.refused() > 0);
    let refused = refused.map(|measured| {
        format!("{}: {} calls refused, not counted as work", measured.name, measured.refused())
    });
    let parts = outcome.contenders.iter().filter(|measured| measured.refused_parts() > 0);
    let parts = parts.map(|measured| {
        format!(
            "{}: {} parts of batches refused, their pairs not counted as work",
            measured.name,
            measured.refused_parts()
        )
    });
    list(refused.chain(parts).chain(outcome.notes.iter().cloned()).collect());
    text
}

/// All of it.
pub fn json(machine: &Machine, effort: Effort, rows: &[Done]) -> Value {
    let rows: Vec<Value> = rows
        .iter()
        .map(|done| {
            let mut value = match &done.outcome {
                Ok(outcome) => outcome.json(),
                Err(problem) => json!({ "failed": problem }),
            };
            value["row"] = json!(done.name);
            value["title"] = json!(done.title);
            value
        })
        .collect();
    json!({
        "machine": machine.json(),
        "seconds": effort.seconds,
        "rounds": effort.rounds,
        "rows": rows,
    })
}

fn table(contenders: &[Measured]) -> String {
    let mut lines: Vec<Vec<String>> =
        vec![COLUMNS.iter().chain([&MEMORY_COLUMN]).map(|&name| name.to_owned()).collect()];
    lines.extend(contenders.iter().map(|measured| cells(measured, &contenders[0])));
    let widths: Vec<usize> = (0..lines[0].len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        text += &aligned(line, &widths);
        if index == 0 {
            let rule = |(column, width): (usize, &usize)| {
                if column < 2 { "-".repeat(*width) } else { "-".repeat(width - 1) + ":" }
            };
            let rules: Vec<String> = widths.iter().enumerate().map(rule).collect();
            text += &aligned(&rules, &widths);
        }
    }
    text
}

/// Words to the left, numbers to the right.
fn aligned(cells: &[String], widths: &[usize]) -> String {
    let padded = cells.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
        if column < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
    });
    format!("| {} |\n", padded.collect::<Vec<_>>().join(" | "))
}

fn cells(measured: &Measured, ours: &Measured) -> Vec<String> {
    let time = |time: Option<f64>| time.map_or("-".to_owned(), number);
    let rates: Vec<f64> = measured.samples.iter().map(|sample| sample.operations_per_s).collect();
    let (lowest, highest) = crate::statistics::spread(&rates);
    let has_server = measured.peak_memory.is_some();
    let of_server = |text: String| if has_server { text } else { "-".to_owned() };
    let ratio = if std::ptr::eq(measured, ours) {
        String::new()
    } else {
        let ratio = ours.times(measured);
        format!("{:.2} x ({:.2} to {:.2})", ratio.value, ratio.lowest, ratio.highest)
    };
    vec![
        measured.name.clone(),
        measured.load.clone(),
        number(measured.rate()),
        format!("{} to {}", number(lowest), number(highest)),
        ratio,
        time(measured.time_us(|latency| latency.p50_us)),
        time(measured.time_us(|latency| latency.p99_us)),
        time(measured.time_us(|latency| latency.p999_us)),
        of_server(number(measured.median(|sample| sample.cpu_us_per_operation))),
        of_server(format!("{:.0} %", 100.0 * measured.median(|sample| sample.busy))),
        format!("{:.0} %", 100.0 * measured.median(|sample| sample.load_busy)),
        measured.peak_memory.map_or("-".to_owned(), |bytes| number(bytes as f64 / 1e6)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(name: &str) -> Measured {
        let sample = crate::comparison::Sample {
            operations_per_s: 1_000.0,
            cpu_us_per_operation: 1.0,
            busy: 1.0,
            load_busy: 1.0,
            latency: None,
            refused: 7,
            refused_parts: 0,
            hops_per_call: 0.0,
            disk_writes_per_call: 0.0,
            disk_bytes_per_call: 0.0,
        };
        let name = name.to_owned();
        Measured { name, load: String::new(), samples: vec![sample], peak_memory: Some(1) }
    }

    #[test]
    fn a_row_shows_verdicts_and_refusals_and_all_lines_are_of_one_width() {
        let mut outcome = Outcome {
            contenders: vec![measured("stateside"), measured("a longer name")],
            ..Outcome::default()
        };
        outcome.bar_times("a longer name", 1.5);
        let done = Done { name: "row", title: "a row", outcome: Ok(outcome) };
        let text = row(&done);
        assert!(text.contains("**MISSED** rate over that of a longer name"), "{text}");
        assert!(text.contains("7 calls refused"), "{text}");
        let widths: Vec<usize> =
            text.lines().filter(|line| line.starts_with('|')).map(str::len).collect();
        assert!(widths.len() == 4 && widths.iter().all(|width| *width == widths[0]), "{text}");
    }

    #[test]
    fn a_row_that_failed_says_why() {
        let done = Done { name: "row", title: "a row", outcome: Err("no disk".into()) };
        assert!(row(&done).contains("**FAILED** no disk"));
    }
}
