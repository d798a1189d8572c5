//! The registry file's language. Strict: what is not understood is refused, with its line.
//!
//! ```toml
//! [[partition]]
//! id = 0
//! range = "0x0000000000000000..0x8000000000000000"   # or { start = "0x0", end = "0x8…" }
//! store = "memory"                                   # these three may be left out
//! ack = "durable"
//! pipeline = ["clock", "dispatcher", "log", "line-monitor"]   # see pipeline_toml
//!
//! [[removed]]                # its records may go: confirms the removal of partition 7
//! id = 7
//! ```

use std::{fmt::Display, ops::Range, str::FromStr};

use stateside_types::{
    DesiredError, DesiredPartition, DesiredSet, HashRange, PartitionId, PipelineSpec,
};
use toml_edit::{Document, Item, Key, TableLike};

use crate::read_pipeline;

const PARTITION_KEYS: &[&str] = &["id", "range", "store", "ack", "pipeline"];
const REMOVED_KEYS: &[&str] = &["id"];
const RANGE_KEYS: &[&str] = &["start", "end"];
const ROOT_KEYS: &[&str] = &["[[partition]]", "[[removed]]"];

/// What is wrong, and on which line (from 1).
pub(crate) type Wrong = (usize, String);

/// Reads a registry file's text.
///
/// # Errors
/// The first thing that is wrong, with its line.
pub(crate) fn parse(text: &str) -> Result<DesiredSet, Wrong> {
    let lines = Lines(text);
    let document = Document::parse(text).map_err(|error| {
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        (lines.of(error.span()), format!("not TOML: {message}"))
    })?;
    let mut partitions = Vec::new();
    let mut places = Vec::new();
    let mut removed = Vec::new();
    let mut removed_lines = Vec::new();
    for (name, item) in document.as_table().iter() {
        let span = document.as_table().key(name).and_then(Key::span).or_else(|| item.span());
        let line = lines.of(span);
        match name {
            "partition" => {
                for (span, table) in tables(item).ok_or((line, not_tables(name)))? {
                    let (partition, place) = read_partition(&lines, lines.of(span), table)?;
                    partitions.push(partition);
                    places.push(place);
                }
            }
            "removed" => {
                for (span, table) in tables(item).ok_or((line, not_tables(name)))? {
                    let fields = Fields::of(&lines, lines.of(span), table, REMOVED_KEYS)?;
                    let (id, line) = read_id(&fields)?;
                    removed.push(id);
                    removed_lines.push(line);
                }
            }
            _ => return Err((line, unknown(name, ROOT_KEYS))),
        }
    }
    DesiredSet::new(partitions, removed).map_err(|error| {
        let message = error.to_string();
        match error {
            DesiredError::DuplicateId { index, other, .. } => {
                (places[index].id, format!("{message} (first on line {})", places[other].id))
            }
            DesiredError::Overlap { index, other, .. } => {
                (places[index].range, format!("{message} (on line {})", places[other].range))
            }
            DesiredError::Pipeline { index, .. } => (places[index].pipeline, message),
            DesiredError::RemovedAndDeclared { removed_index, .. } => {
                (removed_lines[removed_index], message)
            }
            DesiredError::TooMany { .. } => (places.last().map_or(1, |place| place.table), message),
        }
    })
}

/// Lines of a partition's parts.
struct Place {
    table: usize,
    id: usize,
    range: usize,
    pipeline: usize,
}

fn read_partition(
    lines: &Lines<'_>,
    line: usize,
    table: &dyn TableLike,
) -> Result<(DesiredPartition, Place), Wrong> {
    let fields = Fields::of(lines, line, table, PARTITION_KEYS)?;
    let (id, id_line) = read_id(&fields)?;
    let (item, range_line) = fields.need("range")?;
    let range = read_range(lines, item, range_line)?;
    let partition = DesiredPartition {
        id,
        range,
        store: fields.optional("store", from_text)?,
        ack: fields.optional("ack", from_text)?,
        pipeline: fields.find("pipeline").map(|found| read_stages(lines, found)).transpose()?,
    };
    let pipeline_line = fields.find("pipeline").map_or(line, |(_, line)| line);
    Ok((partition, Place { table: line, id: id_line, range: range_line, pipeline: pipeline_line }))
}

fn read_stages(lines: &Lines<'_>, (item, line): (&Item, usize)) -> Result<PipelineSpec, Wrong> {
    read_pipeline(item).map_err(|error| {
        let line = error.span.map_or(line, |span| lines.of(Some(span)));
        (line, format!("pipeline: {}", error.message))
    })
}

fn read_id(fields: &Fields<'_>) -> Result<(PartitionId, usize), Wrong> {
    let (item, line) = fields.need("id")?;
    let number = item.as_integer().and_then(|number| u32::try_from(number).ok());
    let number = number
        .ok_or_else(|| (line, format!("id: expected a whole number from 0 to {}", u32::MAX)))?;
    Ok((PartitionId(number), line))
}

/// `"START..END"`, or a table of `start` and `end`. A TOML number ends at 2^63 - 1, so bounds may
/// be strings as well.
fn read_range(lines: &Lines<'_>, item: &Item, line: usize) -> Result<HashRange, Wrong> {
    let wrong = |error: &dyn Display| (line, format!("range: {error}"));
    if let Some(text) = item.as_str() {
        return text.parse().map_err(|error: stateside_types::RangeError| wrong(&error));
    }
    let table = item
        .as_table_like()
        .ok_or_else(|| wrong(&"expected \"START..END\" or { start = …, end = … }"))?;
    let fields = Fields::of(lines, line, table, RANGE_KEYS)?;
    let bound = |item: &Item| match (item.as_integer(), item.as_str()) {
        (Some(number), _) => {
            u64::try_from(number).map_err(|_| "expected a number from 0 up".to_owned())
        }
        // `N..` is the range from N on: the one parser of numbers stays the only one.
        (_, Some(text)) if !text.contains('.') => format!("{text}..")
            .parse()
            .map(HashRange::start)
            .map_err(|_| format!("`{text}` is not a number")),
        _ => Err("expected a number, or a string such as \"0x10\"".to_owned()),
    };
    let (start, line) = fields.need("start")?;
    let start = bound(start).map_err(|error| (line, format!("range.start: {error}")))?;
    let (end, line) = fields.need("end")?;
    let end = bound(end).map_err(|error| (line, format!("range.end: {error}")))?;
    HashRange::new(start, end).map_err(|error| wrong(&error))
}

fn from_text<T: FromStr<Err = String>>(item: &Item) -> Result<T, String> {
    item.as_str().ok_or("expected a string")?.parse()
}

/// The keys of one table, all known.
struct Fields<'a> {
    line: usize,
    found: Vec<(&'a str, &'a Item, usize)>,
}

impl<'a> Fields<'a> {
    fn of(
        lines: &Lines<'_>,
        line: usize,
        table: &'a dyn TableLike,
        known: &[&str],
    ) -> Result<Self, Wrong> {
        let mut found = Vec::new();
        for (name, item) in table.iter() {
            let span = table.key(name).and_then(Key::span).or_else(|| item.span());
            let line = lines.of(span);
            if !known.contains(&name) {
                return Err((line, unknown(name, known)));
            }
            found.push((name, item, line));
        }
        Ok(Self { line, found })
    }

    fn find(&self, name: &str) -> Option<(&'a Item, usize)> {
        self.found.iter().find(|(have, ..)| *have == name).map(|(_, item, line)| (*item, *line))
    }

    fn need(&self, name: &str) -> Result<(&'a Item, usize), Wrong> {
        self.find(name).ok_or_else(|| (self.line, format!("the key `{name}` is missing")))
    }

    fn optional<T>(
        &self,
        name: &str,
        read: impl FnOnce(&Item) -> Result<T, String>,
    ) -> Result<Option<T>, Wrong> {
        let Some((item, line)) = self.find(name) else { return Ok(None) };
        read(item).map(Some).map_err(|error| (line, format!("{name}: {error}")))
    }
}

type Tables<'a> = Vec<(Option<Range<usize>>, &'a dyn TableLike)>;

/// `[[name]]` sections, or a list of inline tables.
fn tables(item: &Item) -> Option<Tables<'_>> {
    if let Some(tables) = item.as_array_of_tables() {
        return Some(tables.iter().map(|table| (table.span(), table as &dyn TableLike)).collect());
    }
    let items = item.as_array()?.iter();
    items
        .map(|item| {
            let table = item.as_inline_table()?;
            Some((item.span(), table as &dyn TableLike))
        })
        .collect()
}

fn not_tables(name: &str) -> String {
    format!("`{name}` is a list of sections: write [[{name}]]")
}

fn unknown(name: &str, known: &[&str]) -> String {
    format!("unknown key `{name}`; known: {}", known.join(", "))
}

struct Lines<'a>(&'a str);

impl Lines<'_> {
    fn of(&self, span: Option<Range<usize>>) -> usize {
        let at = span.map_or(0, |span| span.start).min(self.0.len());
        1 + self.0.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stateside_types::{Ack, StageKind, StoreKind};

    use super::*;

    #[test]
    fn every_form_is_read() {
        let set = parse(
            "# mine\n[[partition]]\nid = 3\nrange = \"0x10..0x20\"\nstore = \"sled\"\nack = \"memory\"\npipeline = [\"clock\"]\n\
             [[partition]]\nrange = { start = \"0x8000000000000000\", end = 0 }\nid = 0\n\
             [[removed]]\nid = 7\n",
        )
        .unwrap();
        assert_eq!(
            set.get(PartitionId(3)),
            Some(&DesiredPartition {
                id: PartitionId(3),
                range: HashRange::new(16, 32).unwrap(),
                store: Some(StoreKind::Sled),
                ack: Some(Ack::Memory),
                pipeline: Some([StageKind::Clock].as_slice().into()),
            })
        );
        assert_eq!(set.get(PartitionId(0)).unwrap().range, HashRange::new(1 << 63, 0).unwrap());
        assert!(set.is_removal_confirmed(PartitionId(7)));
        let inline = parse("partition = [{ id = 1, range = \"0..\" }]").unwrap();
        assert_eq!(inline.get(PartitionId(1)).unwrap().range, HashRange::FULL);
        assert_eq!(parse("").unwrap(), DesiredSet::default());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let partition = |rest: &str| format!("[[partition]]\nid = 1\nrange = \"0..10\"\n{rest}");
        for (text, line, says) in [
            ("[[partition]]\nid = 1\n".to_owned(), 1, "the key `range` is missing"),
            ("\n[[partition]]\nrange = \"0..\"\n".to_owned(), 2, "the key `id` is missing"),
            (
                partition("colour = 1\n"),
                4,
                "unknown key `colour`; known: id, range, store, ack, pipeline",
            ),
            (
                partition("\n[partitions]\n"),
                5,
                "unknown key `partitions`; known: [[partition]], [[removed]]",
            ),
            (
                partition("store = \"tape\"\n"),
                4,
                "store: `tape` is not a state store; known: memory, memory-ordered, sled, lsm",
            ),
            (partition("ack = 1\n"), 4, "ack: expected a string"),
            (
                partition("pipeline = [\"log\", \"clock\"]\n"),
                4,
                "in the pipeline log must come after clock",
            ),
            (
                partition("pipeline = [\"log\", \"x\"]\n"),
                4,
                "pipeline: `x` is not a pipeline stage",
            ),
            (
                partition("pipeline = [\"clock\"]\nack = \"durable\"\n"),
                4,
                "ack durable needs the stage log",
            ),
            (
                partition("[[partition]]\nrange = \"90..\"\nid = 1\n"),
                6,
                "partition 1 is declared twice (first on line 2)",
            ),
            (
                partition("[[partition]]\nid = 2\nrange = \"9..\"\n"),
                6,
                "overlaps the range 0x0000000000000000..0x000000000000000a of partition 1 (on line 3)",
            ),
            ("[[partition]]\nid = 1\nrange = \"9..9\"\n".to_owned(), 3, "is empty"),
            (
                "[[partition]]\nid = 1\nrange = \"nine\"\n".to_owned(),
                3,
                "`nine` is not a hash range",
            ),
            ("[[partition]]\nid = 1\nrange = 9\n".to_owned(), 3, "expected \"START..END\""),
            (
                "[[partition]]\nid = 1\n[partition.range]\nstart = 1\nstop = 2\n".to_owned(),
                5,
                "unknown key `stop`; known: start, end",
            ),
            (
                "[[partition]]\nid = 1\nrange.start = 1\nrange.end = -2\n".to_owned(),
                4,
                "range.end: expected a number from 0 up",
            ),
            (
                "[[partition]]\nid = 1\nrange = { start = \"1..2\", end = 2 }\n".to_owned(),
                3,
                "range.start: expected a number",
            ),
            (
                "[[partition]]\nid = -1\nrange = \"0..\"\n".to_owned(),
                2,
                "id: expected a whole number from 0 to 4294967295",
            ),
            ("[[partition]]\nid = 4294967296\nrange = \"0..\"\n".to_owned(), 2, "id: expected"),
            (
                partition("[[removed]]\nid = 1\n"),
                5,
                "partition 1 is declared and also confirmed as removed",
            ),
            (
                partition("[[removed]]\nid = 2\nrange = \"0..\"\n"),
                6,
                "unknown key `range`; known: id",
            ),
            (
                "[partition]\nid = 1\n".to_owned(),
                1,
                "`partition` is a list of sections: write [[partition]]",
            ),
            ("partition = [1]\n".to_owned(), 1, "write [[partition]]"),
            (partition("id = 2\n"), 4, "not TOML: duplicate key"),
            ("[[partition\n".to_owned(), 1, "not TOML"),
            ("[[partition]]\nid = 99999999999999999999\n".to_owned(), 2, "not TOML"),
        ] {
            let (at, message) = parse(&text).expect_err(&text);
            assert!(at == line && message.contains(says), "{text}\n{at}: {message}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "([\\[\\]{}=,.#\"\n a-z0-9-]|id|range|partition){0,60}") {
            let _ = parse(&text);
        }
    }
}
