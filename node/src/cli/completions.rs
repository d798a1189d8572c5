//! `stateside completions`.

use clap::{Args, Command};
use clap_complete::Shell;

use super::{failure::Failure, output::print_bytes};
use crate::exit::Exit;

/// Print a completion script for a shell.
///
/// For bash: stateside completions bash > ~/.local/share/bash-completion/completions/stateside
#[derive(Args, Debug)]
pub(super) struct CompletionsArgs {
    /// Which shell.
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs, mut command: Command) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "stateside", &mut script);
    print_bytes(&script)?;
    Ok(Exit::Done)
}
