//! What options a stage takes: the one table from which they are read, checked and documented.

use std::fmt;

use stateside_types::{OptionValue, StageKind, StageSpec, limits::STAGE_NAME_BYTES_MAX};

use crate::Stage;

/// A kind of stage: its name, its options, and how one is made. Static, so that a stage of one's
/// own brings a table like those that are here.
#[derive(Debug)]
pub struct StageDefinition {
    /// What it is.
    pub kind: StageKind,
    /// One or two sentences for the documentation.
    pub doc: &'static str,
    /// Its options, in the order in which they are shown. Every stage before the clock takes
    /// [`NAME`] besides.
    pub options: &'static [OptionDefinition],
    /// Makes the stage. Also how a declaration is checked: whatever it refuses is told with the
    /// place where it was declared, before anything starts.
    pub build: fn(&StageSpec) -> Result<Box<dyn Stage>, OptionError>,
}

/// An option of a stage.
#[derive(Debug)]
pub struct OptionDefinition {
    /// Its key.
    pub name: &'static str,
    /// What it takes.
    pub kind: OptionKind,
    /// What holds when it is not set, in words.
    pub default: &'static str,
    /// What it does, with its unit.
    pub doc: &'static str,
}

/// What an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// A string.
    Text,
    /// A whole number within bounds, inclusive.
    Integer(i64, i64),
    /// A list of strings, not empty. One string is a list of one.
    Texts,
    /// One of these strings.
    Choice(&'static [&'static str]),
    /// A table of strings, whole numbers, true and false, not empty.
    Table,
}

/// What is wrong with a declared stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionError {
    /// In which option; None: in the stage as a whole.
    pub option: Option<String>,
    /// What.
    pub message: String,
}

/// The option that every stage before the clock takes.
pub const NAME: OptionDefinition = OptionDefinition {
    name: "name",
    kind: OptionKind::Text,
    default: "the stage's kind, numbered from the second on",
    doc: "What the stage is called in refusals and metrics: 1 to 32 of a-z, 0-9, - and _; once in a pipeline.",
};

impl StageDefinition {
    /// Every option, `name` included.
    pub fn all_options(&self) -> impl Iterator<Item = &OptionDefinition> {
        self.options.iter().chain(self.kind.is_front().then_some(&NAME))
    }

    /// A declared stage of this kind.
    ///
    /// # Errors
    /// The first option that is not known, takes something else or is out of bounds; then what
    /// the stage itself says.
    pub fn read(&self, declared: Vec<(String, OptionValue)>) -> Result<StageSpec, OptionError> {
        for (at, (name, _)) in declared.iter().enumerate() {
            let wrong = |message| Err(OptionError { option: Some(name.clone()), message });
            if !self.all_options().any(|option| option.name == name) {
                return wrong(self.unknown(name));
            }
            if declared[..at].iter().any(|(before, _)| before == name) {
                return wrong(format!("`{name}` is set twice"));
            }
        }
        let mut options = Vec::new();
        for option in self.all_options() {
            let Some((_, value)) = declared.iter().find(|(name, _)| name == option.name) else {
                continue;
            };
            let value = option.kind.accept(value.clone()).map_err(|m| option.wrong(m))?;
            options.push((option.name, value));
        }
        let spec = StageSpec::checked(self.kind, options);
        check_name(&spec)?;
        (self.build)(&spec)?;
        Ok(spec)
    }

    fn unknown(&self, name: &str) -> String {
        let known: Vec<_> = self.all_options().map(|option| option.name).collect();
        if known.is_empty() {
            return format!("the stage {} takes no options", self.kind);
        }
        format!("the stage {} has no option `{name}`; known: {}", self.kind, known.join(", "))
    }
}

impl OptionDefinition {
    /// An error about this option.
    pub fn wrong(&self, message: impl fmt::Display) -> OptionError {
        OptionError {
            option: Some(self.name.to_owned()),
            message: format!("{}: {message}", self.name),
        }
    }
}

impl OptionKind {
    fn accept(self, value: OptionValue) -> Result<OptionValue, String> {
        match (self, value) {
            (Self::Text, OptionValue::Text(text)) => Ok(OptionValue::Text(text)),
            (Self::Integer(least, most), OptionValue::Integer(number)) => {
                if (least..=most).contains(&number) {
                    Ok(OptionValue::Integer(number))
                } else {
                    Err(format!("{number} is not within {least} to {most}"))
                }
            }
            (Self::Texts, OptionValue::Text(text)) => Ok(OptionValue::Texts(vec![text])),
            (Self::Texts, OptionValue::Texts(texts)) if !texts.is_empty() => {
                Ok(OptionValue::Texts(texts))
            }
            (Self::Choice(names), OptionValue::Text(text)) if names.contains(&&*text) => {
                Ok(OptionValue::Text(text))
            }
            (Self::Table, OptionValue::Table(mut values)) if !values.is_empty() => {
                let is_plain = |value: &OptionValue| {
                    !matches!(value, OptionValue::Texts(_) | OptionValue::Table(_))
                };
                match values.iter().find(|(_, value)| !is_plain(value)) {
                    Some((name, _)) => Err(format!("{name}: expected a string or a number")),
                    None => {
                        values.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
                        Ok(OptionValue::Table(values))
                    }
                }
            }
            (kind, _) => Err(format!("expected {kind}")),
        }
    }
}

impl fmt::Display for OptionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("a string"),
            Self::Integer(least, most) => write!(f, "a whole number from {least} to {most}"),
            Self::Texts => f.write_str("a string or a list of strings"),
            Self::Choice(names) => {
                let names: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
                f.write_str(&names.join(" or "))
            }
            Self::Table => f.write_str("a table of strings and numbers"),
        }
    }
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for OptionError {}

fn check_name(spec: &StageSpec) -> Result<(), OptionError> {
    let Some(name) = spec.text(NAME.name) else { return Ok(()) };
    if is_name(name) {
        return Ok(());
    }
    let most = STAGE_NAME_BYTES_MAX;
    Err(NAME.wrong(format!("`{name}` is not 1 to {most} of a-z, 0-9, - and _")))
}

/// Whether a text can be the name of a stage.
pub(crate) fn is_name(name: &str) -> bool {
    let fits = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    (1..=STAGE_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(fits)
}
