//! The stage `text`: values are UTF-8 text of a few lines, without blanks at their ends.
//!
//! ```toml
//! pipeline = [{ stage = "text", prefix = "note/", lines_max = 40 }, "clock", …]
//! ```
//! It refuses what is no text and takes trailing blanks away: so it shows both things that a stage
//! before the clock can do. What it does is counted by the pipeline; it counts nothing itself.

use stateside_node::stages::{
    Change, Changes, OptionDefinition, OptionError, OptionKind, Outlet, PREFIX, Prefixes, Reason,
    Refusal, Stage, StageDefinition, StageKind, StageSpec, Write,
};

const LINES_MAX: OptionDefinition = OptionDefinition {
    name: "lines_max",
    kind: OptionKind::Integer(1, 1_000_000),
    default: "no limit",
    doc: "Texts of more lines are refused with FILTERED.",
};

/// To be registered at the start of a process.
pub(crate) static TEXT: StageDefinition = StageDefinition {
    kind: StageKind::Own("text"),
    doc: "Lets only UTF-8 text through and removes blanks from the ends of its lines.",
    options: &[PREFIX, LINES_MAX],
    build: |spec| Ok(Box::new(Text::new(spec)?)),
};

/// Lives in a partition, on its core's thread.
#[derive(Debug)]
struct Text {
    prefix: Prefixes,
    lines_max: usize,
}

impl Text {
    fn new(spec: &StageSpec) -> Result<Self, OptionError> {
        let lines = spec.integer(LINES_MAX.name).and_then(|lines| usize::try_from(lines).ok());
        let prefix = Prefixes::read(spec, &PREFIX)?;
        Ok(Self { prefix, lines_max: lines.unwrap_or(usize::MAX) })
    }
}

impl Stage for Text {
    fn kind(&self) -> StageKind {
        StageKind::Own("text")
    }

    fn change(
        &mut self,
        write: &Write<'_>,
        changes: &mut Changes,
        _: &mut dyn Outlet,
    ) -> Result<(), Refusal> {
        for (at, entry) in write.entries.iter().enumerate() {
            let Change::Put(value) = entry.change else { continue };
            if !self.prefix.select(entry.key) {
                continue;
            }
            let refuse = |what| Err(Refusal::new(Reason::Filtered, what).with("entry", at));
            let Ok(text) = std::str::from_utf8(value) else {
                return refuse("the value is not UTF-8 text");
            };
            if text.lines().count() > self.lines_max {
                return refuse("the text has too many lines");
            }
            changes.replace(at, |trimmed| {
                for line in text.split_inclusive('\n') {
                    let end = if line.ends_with('\n') { "\n" } else { "" };
                    trimmed.extend_from_slice(line.trim_end().as_bytes());
                    trimmed.extend_from_slice(end.as_bytes());
                }
                Ok(trimmed.as_slice() != value)
            })?;
        }
        Ok(())
    }
}
