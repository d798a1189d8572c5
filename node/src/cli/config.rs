//! `stateside config`: the flags of its verbs. The configuration itself does the work.

use clap::{Args, Subcommand};

use serde_json::json;

use super::{
    failure::Failure,
    output::{Format, print_bytes, print_json},
    serve::SettingArgs,
};
use crate::{config::default_file, exit::Exit};

/// Check, show or print the configuration of serve.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum ConfigVerb {
    /// Check file, environment and flags together; name everything that is wrong, with its place.
    Check(ConfigArgs),
    /// Show every setting in force and where its value came from.
    Show(ConfigArgs),
    /// Print a configuration file with every key, its default and its meaning.
    Default,
}

/// The same flags that `serve` takes.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigArgs {
    /// What serve would be given.
    #[command(flatten)]
    pub settings: SettingArgs,
}

/// Runs the verb.
pub(super) fn run(verb: &ConfigVerb, format: Format) -> Result<Exit, Failure> {
    let load = |args: &ConfigArgs| {
        args.settings.load().map_err(|errors| Failure::new(Exit::ConfigInvalid, errors))
    };
    match (verb, format) {
        (ConfigVerb::Default, _) => print_bytes(default_file().as_bytes())?,
        (ConfigVerb::Check(args), Format::Table) => {
            for warning in load(args)?.warnings {
                eprintln!("warning: {warning}");
            }
            print_bytes(b"ok\n")?;
        }
        (ConfigVerb::Check(args), Format::Json) => {
            print_json(&json!({ "ok": true, "warnings": load(args)?.warnings }))?;
        }
        (ConfigVerb::Show(args), Format::Table) => print_bytes(load(args)?.show().as_bytes())?,
        (ConfigVerb::Show(args), Format::Json) => {
            let shown = load(args)?.shown();
            let settings = shown.iter().map(|shown| {
                json!({
                    "key": shown.key,
                    "value": shown.value,
                    "default": shown.default,
                    "unit": shown.unit,
                    "origin": shown.origin,
                })
            });
            print_json(&settings.collect())?;
        }
    }
    Ok(Exit::Done)
}
