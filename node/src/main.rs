//! The `stateside` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    stateside_node::cli::run()
}
