//! A pipeline in TOML, wherever one is declared: in the registry file and in the node's
//! configuration.
//!
//! ```toml
//! pipeline = [
//!   { stage = "filter", deny = ["tmp/"] },          # a stage with options
//!   "clock", "dispatcher", "log", "line-monitor",   # stages without
//! ]
//!
//! [[partition.pipeline]]                            # or, the same in sections
//! stage = "filter"
//! deny = ["tmp/"]
//! ```
//! Files that options name are read here, and only here: what comes out needs none of them any more.

use std::{
    fs::File,
    io::{self, Read as _},
    ops::Range,
};

use stateside_pipeline::{read_stage, read_stage_with_files};
use stateside_types::{
    OptionValue, PipelineSpec, StageSpec, limits::DESCRIPTOR_SET_BYTES_MAX, misplaced,
};
use toml_edit::{Item, Key, TableLike, Value};

const STAGE: &str = "stage";

/// What is wrong with a pipeline, and where in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineTomlError {
    /// Bytes of the text; None: the whole value.
    pub span: Option<Range<usize>>,
    /// What.
    pub message: String,
}

/// Reads a pipeline and checks that it can work.
///
/// # Errors
/// The first thing that is wrong.
pub fn read_pipeline(item: &Item) -> Result<PipelineSpec, PipelineTomlError> {
    let mut stages = Vec::new();
    let mut spans = Vec::new();
    if let Some(tables) = item.as_array_of_tables() {
        for table in tables {
            spans.push(table.span());
            stages.push(read_table(table, table.span())?);
        }
    } else if let Some(items) = item.as_array() {
        for value in items {
            spans.push(value.span());
            stages.push(match value {
                Value::String(name) => read_stage(name.value(), Vec::new())
                    .map_err(|error| wrong(value.span(), error.message))?,
                Value::InlineTable(table) => read_table(table, value.span())?,
                _ => return Err(wrong(value.span(), EXPECTED)),
            });
        }
    } else {
        return Err(wrong(None, EXPECTED));
    }
    match misplaced(&stages) {
        None => Ok(stages.into()),
        Some((at, error)) => Err(wrong(spans[at].clone(), error.to_string())),
    }
}

/// The pipeline as a value of TOML.
pub(crate) fn write_pipeline(pipeline: &PipelineSpec) -> Value {
    pipeline.to_string().parse().expect("a pipeline prints as TOML")
}

const EXPECTED: &str =
    "expected a list of stages: names, or tables such as { stage = \"filter\", deny = [\"tmp/\"] }";

fn read_table(
    table: &dyn TableLike,
    span: Option<Range<usize>>,
) -> Result<StageSpec, PipelineTomlError> {
    let span_of = |name: &str| {
        let key = table.key(name).and_then(Key::span);
        key.or_else(|| table.get(name).and_then(Item::span))
    };
    let Some(name) = table.get(STAGE) else {
        return Err(wrong(span, "the key `stage` is missing"));
    };
    let Some(name) = name.as_str() else {
        return Err(wrong(span_of(STAGE), "stage: expected a string"));
    };
    let mut options = Vec::new();
    for (option, item) in table.iter().filter(|(option, _)| *option != STAGE) {
        let value = option_of(item);
        let value = value.ok_or_else(|| {
            wrong(span_of(option), format!("{option}: no option of a stage takes such a value"))
        })?;
        options.push((option.to_owned(), value));
    }
    read_stage_with_files(name, options, &read_file).map_err(|error| {
        let place = error.option.as_deref().and_then(span_of).or_else(|| span_of(STAGE));
        wrong(place.or(span), error.message)
    })
}

fn read_file(path: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = |bytes: &mut Vec<u8>| -> io::Result<usize> {
        File::open(path)?.take(DESCRIPTOR_SET_BYTES_MAX + 1).read_to_end(bytes)
    };
    match read(&mut bytes) {
        Err(error) => Err(format!("cannot be read: {error}")),
        Ok(length) if length as u64 > DESCRIPTOR_SET_BYTES_MAX => {
            Err(format!("has more than {} MiB", DESCRIPTOR_SET_BYTES_MAX >> 20))
        }
        Ok(_) => Ok(bytes),
    }
}

/// An option's value; a table may be written in line, or as a section of its own.
fn option_of(item: &Item) -> Option<OptionValue> {
    match item {
        Item::Value(value) => option_value(value),
        Item::Table(table) => table_of(table),
        _ => None,
    }
}

fn table_of(table: &dyn TableLike) -> Option<OptionValue> {
    let values = table.iter().map(|(name, item)| Some((name.to_owned(), option_of(item)?)));
    values.collect::<Option<_>>().map(OptionValue::Table)
}

fn option_value(value: &Value) -> Option<OptionValue> {
    Some(match value {
        Value::String(text) => OptionValue::Text(text.value().clone()),
        Value::Integer(number) => OptionValue::Integer(*number.value()),
        Value::Boolean(value) => OptionValue::Boolean(*value.value()),
        Value::Array(items) => {
            let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
            OptionValue::Texts(texts.collect::<Option<_>>()?)
        }
        Value::InlineTable(table) => table_of(table)?,
        _ => return None,
    })
}

fn wrong(span: Option<Range<usize>>, message: impl Into<String>) -> PipelineTomlError {
    PipelineTomlError { span, message: message.into() }
}

#[cfg(test)]
mod tests {
    use toml_edit::Document;

    use super::*;

    fn read(text: &str) -> Result<PipelineSpec, (usize, String)> {
        let document = Document::parse(text).unwrap();
        read_pipeline(document.get("pipeline").unwrap()).map_err(|error| {
            let at = error.span.map_or(0, |span| span.start);
            (1 + text[..at].matches('\n').count(), error.message)
        })
    }

    #[test]
    fn both_forms_read_the_same_and_what_is_written_reads_back() {
        let list = "pipeline = [\n  { deny = \"tmp/\", stage = \"filter\", value_bytes_max = 9 },\n  \"clock\",\n]";
        let sections = "[[pipeline]]\nstage = \"filter\"\nvalue_bytes_max = 9\ndeny = [\"tmp/\"]\n\
                        [[pipeline]]\nstage = \"clock\"\n";
        let pipeline = read(list).unwrap();
        assert_eq!(read(sections).unwrap(), pipeline);
        assert_eq!(
            pipeline.to_string(),
            "[{ stage = \"filter\", deny = [\"tmp/\"], value_bytes_max = 9 }, \"clock\"]"
        );
        assert_eq!(read(&format!("pipeline = {}", write_pipeline(&pipeline))).unwrap(), pipeline);
    }

    #[test]
    fn what_is_wrong_is_found_in_its_line() {
        for (text, line, says) in [
            ("pipeline = 1", 1, "expected a list of stages"),
            ("pipeline = [\n1]", 2, "expected a list of stages"),
            ("pipeline = [\n\"clock\",\n\"clok\"]", 3, "`clok` is not a pipeline stage; known: f"),
            ("pipeline = [\n\"log\",\n\"clock\"]", 3, "in the pipeline log must come after clock"),
            ("pipeline = [\n{ deny = \"x\" }]", 2, "the key `stage` is missing"),
            ("[[pipeline]]\nstage = 1", 2, "stage: expected a string"),
            ("[[pipeline]]\nstage = \"clock\"\nfast = true", 3, "the stage clock takes no options"),
            (
                "[[pipeline]]\nstage = \"filter\"\ndney = \"x\"",
                3,
                "no option `dney`; known: prefix",
            ),
            ("[[pipeline]]\nstage = \"filter\"\ndeny = []", 3, "deny: expected a string or a list"),
            ("[[pipeline]]\nstage = \"filter\"\ndeny = [1]", 3, "takes such a value"),
            ("[[pipeline]]\nstage = \"filter\"\nrate_per_s = 0", 3, "0 is not within 1 to"),
            ("[[pipeline]]\nstage = \"filter\"\n", 2, "a filter needs one of"),
        ] {
            let (at, message) = read(text).expect_err(text);
            assert!(at == line && message.contains(says), "{text}\n{at}: {message}");
        }
    }

    #[test]
    fn fields_are_named_by_a_file_and_what_is_wrong_with_either_is_found_in_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let set = folder.path().join("a.binpb");
        // A set of one file with `message A { string x = 5; }`.
        let field = [&b"\x0a\x01x\x18\x05\x20\x01\x28\x09"[..]].concat();
        let message = [&b"\x0a\x01A\x12\x09"[..], &field].concat();
        let file = [&b"\x0a\x10\x22\x0e"[..], &message].concat();
        std::fs::write(&set, file).unwrap();
        let text = |path: &str, message: &str| {
            format!(
                "[[pipeline]]\nstage = \"sanitizer\"\nformat = \"protobuf\"\ndescriptor_set = \"{}\"\n\
                 message = \"{message}\"\ndrop = \"{path}\"\n",
                set.display()
            )
        };
        let pipeline = read(&text("/x", "A")).unwrap();
        let expected = "[{ stage = \"sanitizer\", format = \"protobuf\", drop = [\"/5\"] }]";
        assert_eq!(pipeline.to_string(), expected);
        let wrong = |path, message| read(&text(path, message)).unwrap_err();
        assert_eq!(wrong("/y", "A"), (6, "drop: `/y`: A has no field `y`; it has x".to_owned()));
        assert_eq!(wrong("/x", "B").0, 5);
        std::fs::remove_file(&set).unwrap();
        let (line, says) = wrong("/x", "A");
        assert!(line == 4 && says.contains("a.binpb: cannot be read: No such file"), "{says}");
    }
}
