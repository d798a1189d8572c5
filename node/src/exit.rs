//! Every exit code of the `stateside` binary, in one place. They are part of the contract: scripts
//! and service managers match on them.

use std::{fmt::Write, process::ExitCode};

macro_rules! exits {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $meaning:literal;)+) => {
        /// How the process ends.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Exit { $($(#[$doc])* $name = $code,)+ }

        impl Exit {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// One line for the help.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)+ }
            }
        }
    };
}

exits! {
    /// Done.
    Done = 0, "done";
    /// Anything without a code of its own.
    Failure = 1, "failed for another reason";
    /// The command line is wrong; clap's own code.
    Usage = 2, "the command line is wrong";
    /// No node answers at the endpoint.
    Unreachable = 3, "no node answers at the endpoint";
    /// `get` found no record.
    NotFound = 4, "no record with this key";
    /// The node refused: a condition failed, a confirmation is missing, it is overloaded, …
    Refused = 5, "the node refused (condition failed, confirmation required, overloaded, ...)";
    /// An import ended with some records stored and some not.
    PartialImport = 6, "an import stored some records and not others";
    /// A write was sent and its answer was lost.
    OutcomeUnknown = 7, "a write was sent and no answer came: it may have been applied";
    /// Configuration is invalid: file, variable or flag.
    ConfigInvalid = 10, "serve: the configuration is invalid";
    /// Another process uses the data directory.
    DataDirLocked = 11, "serve: another process uses the data directory";
    /// A listening address is taken.
    PortInUse = 12, "serve: a port is in use";
    /// The kernel has no io_uring, or forbids it.
    IoUringUnavailable = 13, "serve: io_uring is missing or forbidden";
    /// The data directory was written by another version of Stateside.
    FileVersion = 14, "serve: the data directory was written by another version";
    /// The data directory cannot be used: damaged or not accessible.
    DataDirDamaged = 15, "serve: the data directory is damaged or not accessible";
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The table that `--help` ends with.
    pub fn table() -> String {
        Self::ALL.iter().fold("Exit codes:".to_owned(), |mut text, exit| {
            // Writing to a string does not fail.
            let _ = write!(text, "\n  {:>2}  {}", exit.code(), exit.meaning());
            text
        })
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_below_those_that_shells_use_for_signals() {
        let mut codes: Vec<_> = Exit::ALL.iter().map(|exit| exit.code()).collect();
        codes.dedup();
        assert_eq!(codes.len(), Exit::ALL.len());
        assert!(codes.is_sorted() && codes.iter().all(|&code| code < 64));
        assert!(Exit::table().contains("\n   4  no record with this key"));
    }
}
