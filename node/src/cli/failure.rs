//! How a verb fails: one sentence on stderr (one JSON object with `-o json`) and an exit code.

use std::{fmt::Display, io::IsTerminal};

use serde_json::{Map, Value, json};
use stateside_client::{Error, Reason};

use super::output::Format;
use crate::exit::Exit;

/// Why a verb ends early.
#[derive(Debug)]
pub(super) struct Failure {
    exit: Exit,
    message: String,
    /// For programs, beside the message.
    details: Map<String, Value>,
    /// Nothing to say: whoever read stdout has gone.
    silent: bool,
}

impl Failure {
    /// A failure with its sentence, which begins in lower case and has no full stop.
    pub(super) fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string(), details: Map::new(), silent: false }
    }

    /// The reader of stdout closed it, as `head` does when it has seen enough.
    pub(super) fn stdout_closed() -> Self {
        Self { silent: true, ..Self::new(Exit::Done, "") }
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Adds what to do about it.
    pub(super) fn hint(mut self, hint: &str) -> Self {
        self.message = format!("{}; {hint}", self.message);
        self
    }

    /// Prints it, and says how the process ends.
    pub(super) fn report(self, format: Format) -> Exit {
        if self.silent {
            return self.exit;
        }
        match format {
            Format::Json => {
                let mut error = Map::new();
                error.insert("message".to_owned(), self.message.into());
                error.insert("exit_code".to_owned(), self.exit.code().into());
                error.extend(self.details);
                eprintln!("{}", json!({ "error": error }));
            }
            Format::Table => eprintln!("{} {}", error_prefix(), self.message),
        }
        self.exit
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match &error {
            Error::Refused(_) => Exit::Refused,
            Error::Unreachable { .. } => Exit::Unreachable,
            Error::OutcomeUnknown { .. } => Exit::OutcomeUnknown,
            Error::InvalidEndpoint { .. } => Exit::Usage,
            Error::DeadlineExceeded { .. }
            | Error::ConnectionLost { .. }
            | Error::Protocol { .. } => Exit::Failure,
        };
        let mut failure = Self::new(exit, &error);
        match &error {
            Error::Refused(refused) => {
                failure.details.insert("reason".to_owned(), refused.reason_name.clone().into());
                failure.details.insert("code".to_owned(), format!("{:?}", refused.code).into());
                if refused.reason == Some(Reason::ConfirmationRequired) {
                    failure = failure.hint("here that is --yes");
                }
                if let Some(delay) = refused.retry_after {
                    let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                    failure.details.insert("retry_after_ms".to_owned(), delay_ms.into());
                }
                if !refused.metadata.is_empty() {
                    failure.details.insert("metadata".to_owned(), json!(refused.metadata));
                }
            }
            Error::Unreachable { .. } => {
                failure = failure.hint("is a node running there (stateside serve)?");
            }
            _ => {}
        }
        failure
    }
}

/// `error:`, in red where that is seen.
pub(super) fn error_prefix() -> &'static str {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if colour { "\u{1b}[1;31merror:\u{1b}[0m" } else { "error:" }
}
