//! Data on stdout: aligned columns for people, JSON for programs, bytes as they are.

use std::io::{ErrorKind, Write};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::ValueEnum;
use serde_json::{Map, Value};
use stateside_client::Timestamp;

use super::failure::Failure;
use crate::exit::Exit;

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns.
    #[default]
    Table,
    /// JSON.
    Json,
}

/// Writes to stdout.
pub(super) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Failure::stdout_closed()),
        Err(error) => Err(Failure::new(Exit::Failure, format!("cannot write to stdout: {error}"))),
    }
}

/// Writes one JSON document and a line end.
pub(super) fn print_json(value: &Value) -> Result<(), Failure> {
    print_bytes(format!("{value}\n").as_bytes())
}

/// Rows under a header, each column as wide as its widest cell; numbers to the right.
#[derive(Debug)]
pub(super) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.header.len(), "a row has a cell for each column");
        self.rows.push(cells);
    }

    pub(super) fn print(&self) -> Result<(), Failure> {
        print_bytes(self.render().as_bytes())
    }

    fn render(&self) -> String {
        let width = |text: &str| text.chars().count();
        let columns: Vec<(usize, bool)> = (0..self.header.len())
            .map(|column| {
                let cells = || self.rows.iter().map(|row| row[column].as_str());
                let widest = cells().map(width).max().unwrap_or(0).max(width(self.header[column]));
                // "12", "5.0 MiB", "-"; not a date, a range or an address.
                let is_number = |cell: &str| {
                    cell == "-"
                        || (cell.starts_with(|first: char| first.is_ascii_digit())
                            && !cell.contains(':')
                            && !cell.contains(".."))
                };
                let numbers = !self.rows.is_empty() && cells().all(is_number);
                (widest, numbers)
            })
            .collect();
        let mut text = String::new();
        let header = self.header.iter().map(|cell| (*cell).to_owned()).collect();
        for row in std::iter::once(&header).chain(&self.rows) {
            let mut line = String::new();
            for (cell, &(widest, right)) in row.iter().zip(&columns) {
                let fill = " ".repeat(widest - width(cell));
                line += &if right { format!("{fill}{cell}  ") } else { format!("{cell}{fill}  ") };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// Adds bytes to a JSON object: as text under `name` where they are UTF-8, else base64 under
/// `name_base64`.
pub(super) fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
}

/// Adds a record's timestamp: exact as a string, because most readers of JSON keep 53 bits of a
/// number, and the milliseconds as a number.
pub(super) fn insert_timestamp(object: &mut Map<String, Value>, timestamp: Timestamp) {
    object.insert("timestamp".to_owned(), timestamp.0.to_string().into());
    object.insert("timestamp_unix_ms".to_owned(), timestamp.millis().into());
}

/// Bytes for a table: text with what would disturb a terminal escaped, other bytes as `\x..`, cut
/// at `width_max`.
pub(super) fn printable(bytes: &[u8], width_max: usize) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            if char.is_control() { text.extend(char.escape_default()) } else { text.push(char) }
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    if text.chars().count() > width_max {
        text = text.chars().take(width_max - 1).chain(['…']).collect();
    }
    text
}

/// Milliseconds since 1970 as `2026-11-21 08:09:10.123Z`; `-` for 0.
pub(super) fn utc(unix_ms: u64) -> String {
    if unix_ms == 0 {
        return "-".to_owned();
    }
    let (seconds, ms) = (unix_ms / 1_000, unix_ms % 1_000);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    // Days to a civil date in the proleptic Gregorian calendar, in eras of 400 years that begin
    // in March. Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// `1536` as `1.5 KiB`.
pub(super) fn bytes_text(bytes: u64) -> String {
    let mut unit = 0;
    let mut amount = bytes as f64;
    while amount >= 1_024.0 && unit < 5 {
        amount /= 1_024.0;
        unit += 1;
    }
    let name = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit];
    if unit == 0 { format!("{bytes} B") } else { format!("{amount:.1} {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_with_numbers_to_the_right() {
        let mut table = Table::new(&["KEY", "VERSION"]);
        table.row(vec!["a".into(), "9".into()]);
        table.row(vec!["länger".into(), "1000".into()]);
        assert_eq!(table.render(), "KEY     VERSION\na             9\nlänger     1000\n");
        assert_eq!(Table::new(&["KEY"]).render(), "KEY\n");
    }

    #[test]
    fn bytes_that_are_no_text_are_base64_in_json_and_escaped_in_tables() {
        let mut object = Map::new();
        insert_bytes(&mut object, "key", b"k\xff");
        insert_bytes(&mut object, "value", "ä".as_bytes());
        assert_eq!(Value::from(object).to_string(), r#"{"key_base64":"a/8=","value":"ä"}"#);
        assert_eq!(printable(b"a\n\x1b[31m\xff", 40), "a\\n\\u{1b}[31m\\xff");
        assert_eq!(printable(b"abcdef", 4), "abc…");
    }

    #[test]
    fn dates_are_right_across_leap_years() {
        assert_eq!(utc(0), "-");
        assert_eq!(utc(1), "1970-01-01 00:00:00.001Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00.000Z");
        assert_eq!(utc(1_709_164_799_999), "2024-02-28 23:59:59.999Z");
        assert_eq!(utc(1_795_248_550_123), "2026-11-21 08:09:10.123Z");
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes_text(1_023), "1023 B");
        assert_eq!(bytes_text(1_536), "1.5 KiB");
        assert_eq!(bytes_text(5 << 40), "5.0 TiB");
    }
}
