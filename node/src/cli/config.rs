//! `stateside config`: the flags of its verbs. The configuration itself does the work.

use clap::{Args, Subcommand};

use super::{failure::Failure, output::Format, serve::SettingArgs};
use crate::exit::Exit;

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

/// The seam: hands the flags to the configuration.
pub(super) fn run(_verb: &ConfigVerb, _format: Format) -> Result<Exit, Failure> {
    Err(Failure::new(Exit::Failure, "this build of the command line has no node in it"))
}
