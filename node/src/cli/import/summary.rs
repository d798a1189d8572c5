//! What an import ends with: a line on stderr for people, JSON on stdout for programs.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::{Tally, shown};
use crate::cli::{
    failure::Failure,
    output::{Format, bytes_text, print_json},
};

/// How an import went.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) tally: Tally,
    /// Records that earlier runs had stored.
    pub(super) resumed_from: u64,
    pub(super) seconds: f64,
    /// Of a dry run; `None` within when there were too many to count.
    pub(super) distinct_keys: Option<Option<u64>>,
    /// Where to go on, when there is more.
    pub(super) checkpoint: Option<PathBuf>,
    pub(super) complete: bool,
}

impl Summary {
    pub(super) fn print(&self, format: Format) -> Result<(), Failure> {
        match format {
            Format::Json => print_json(&self.json()),
            Format::Table => {
                eprintln!("{}", self.text());
                Ok(())
            }
        }
    }

    fn records_per_second(&self) -> f64 {
        let done =
            if self.distinct_keys.is_some() { self.tally.records } else { self.tally.imported };
        done as f64 / self.seconds.max(0.001)
    }

    fn text(&self) -> String {
        let Tally { records, imported, replaced, errors, payload_bytes } = self.tally;
        let size = bytes_text(payload_bytes);
        let rate = self.records_per_second();
        let mut text = match self.distinct_keys {
            Some(Some(distinct)) => {
                format!("dry run: {records} records, {distinct} distinct keys, {size}")
            }
            Some(None) => format!("dry run: {records} records, too many keys to count, {size}"),
            None => format!("{imported} records stored, {size}"),
        };
        text += &format!(", {:.1} s, {rate:.0} records/s", self.seconds);
        if replaced > 0 {
            text += &format!(", {replaced} replaced by a later record of the same key");
        }
        if self.resumed_from > 0 {
            text += &format!(", after {} of an earlier run", self.resumed_from);
        }
        if errors > 0 {
            text += &format!(", {errors} errors");
        }
        if let Some(checkpoint) = &self.checkpoint {
            text += &format!("; checkpoint: {}", shown(checkpoint));
        }
        text
    }

    fn json(&self) -> Value {
        let mut object = Map::new();
        let mut insert = |name: &str, value: Value| object.insert(name.to_owned(), value);
        insert("complete", self.complete.into());
        insert("records", self.tally.records.into());
        insert("imported", self.tally.imported.into());
        insert("replaced", self.tally.replaced.into());
        insert("errors", self.tally.errors.into());
        insert("bytes", self.tally.payload_bytes.into());
        insert("seconds", self.seconds.into());
        insert("records_per_second", self.records_per_second().into());
        insert("resumed_from", self.resumed_from.into());
        insert("dry_run", self.distinct_keys.is_some().into());
        if let Some(distinct) = self.distinct_keys {
            insert("distinct_keys", distinct.into());
        }
        if let Some(checkpoint) = &self.checkpoint {
            insert("checkpoint", shown(checkpoint).into());
        }
        object.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_what_happened() {
        let tally =
            Tally { records: 10, imported: 8, replaced: 1, errors: 1, payload_bytes: 2_048 };
        let mut summary = Summary {
            tally,
            resumed_from: 5,
            seconds: 2.0,
            distinct_keys: None,
            checkpoint: Some("/x/c.json".into()),
            complete: false,
        };
        assert_eq!(
            summary.text(),
            "8 records stored, 2.0 KiB, 2.0 s, 4 records/s, 1 replaced by a later record of the same key, after 5 of an earlier run, 1 errors; checkpoint: /x/c.json"
        );
        assert_eq!(summary.json()["records_per_second"], 4.0);
        summary.distinct_keys = Some(Some(7));
        assert!(summary.text().starts_with("dry run: 10 records, 7 distinct keys"));
        assert_eq!(summary.json()["distinct_keys"], 7);
    }
}
