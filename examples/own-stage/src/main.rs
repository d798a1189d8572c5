//! Stateside with one more stage: `cargo run -p stateside-example-own-stage -- serve --config …`.
//!
//! The whole command line is there; a pipeline may name `text` besides the stages that Stateside
//! brings.

mod text;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything reads a configuration, registry or manifest that names the stage.
    if let Err(error) = stateside_node::stages::register(&text::TEXT) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    stateside_node::cli::run()
}
