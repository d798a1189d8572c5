//! What the three formats have in common: rows with their place in the input.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::csv_rows::Cells;

/// A place between two records of the input.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Position {
    /// Bytes before it.
    pub(super) offset: u64,
    /// Lines begun before it; 0 at the start.
    pub(super) line: u64,
    /// Records before it, those with errors included.
    pub(super) records: u64,
}

/// One record of the input, not looked into yet.
#[derive(Debug)]
pub(super) struct Row<'a> {
    /// Line that it begins on, from 1.
    pub(super) line: u64,
    /// Its content, or why it has none that could be used.
    pub(super) content: Result<Content<'a>, String>,
    /// The place after it.
    pub(super) end: Position,
}

/// A record in its format's own terms.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    /// JSON text.
    Json(&'a [u8]),
    /// Cells under column names.
    Cells { names: &'a [String], cells: &'a Cells },
}

/// The input cannot be read further.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct InputError {
    /// Where; 0 when it is not about a line.
    pub(super) line: u64,
    /// What.
    pub(super) message: String,
}

impl InputError {
    pub(super) fn at(line: u64, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.message),
            line => write!(f, "line {line}: {}", self.message),
        }
    }
}

/// Reads records one by one.
pub(super) trait Rows: Send {
    /// The next record; `None` at the end.
    fn next(&mut self) -> Result<Option<Row<'_>>, InputError>;

    /// Whether the next record would have to be waited for: nothing of it is in memory.
    fn drained(&self) -> bool;

    /// The names of the columns, where the format knows them before the records.
    fn names(&self) -> Option<&[String]> {
        None
    }
}

/// Said of every record above the limit.
pub(super) fn too_long(record_bytes_max: usize) -> String {
    format!("the record is longer than {record_bytes_max} bytes")
}
