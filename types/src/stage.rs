//! A partition's pipeline as it is declared: stages in order, each with its options.
//!
//! ```text
//!   filter · sanitizer · enricher · own     clock ─► dispatcher ─► log ─► line-monitor
//!   in any number and order, before ──────► the clock; these once each, in this order
//! ```
//! This is the word between whoever reads a declaration (configuration, registry, manifest) and
//! the pipeline that runs it. Which options a stage has and what they mean, the pipeline crate's
//! catalogue says; a [`StageSpec`] with options is made there and nowhere else, so one that
//! exists has been checked.

use std::{fmt, ops::Deref, sync::Arc};

use crate::{Ack, limits};

/// A stage of a partition's pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StageKind {
    /// Refuses writes by key prefix, value size and rate.
    Filter,
    /// Drops or masks fields of values.
    Sanitizer,
    /// Adds fields to values.
    Enricher,
    /// A stage that an embedding binary brought, by its name.
    Own(&'static str),
    /// Timestamps, monotonic also when the wall clock jumps back.
    Clock,
    /// Queues: one for all requests, or one for reads and one for writes.
    Dispatcher,
    /// The local write-ahead log.
    Log,
    /// The write-ahead log in Kafka, in place of the local one.
    KafkaLog,
    /// Releases answers in the order of sequences.
    LineMonitor,
}

/// The stages of a partition when nothing else is configured.
pub const DEFAULT_PIPELINE: &[StageKind] =
    &[StageKind::Clock, StageKind::Dispatcher, StageKind::Log, StageKind::LineMonitor];

/// The value of a stage's option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionValue {
    /// A string.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// True or false.
    Boolean(bool),
    /// Strings.
    Texts(Vec<String>),
    /// Values by name: strings, numbers, true and false, in the order of their names.
    Table(Vec<(String, OptionValue)>),
}

/// One stage as declared: what it is and the options that were set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageSpec {
    kind: StageKind,
    /// In the order of the stage's definition, so that equal declarations are equal however they
    /// were written.
    options: Vec<(&'static str, OptionValue)>,
}

/// The stages of a partition as declared, in order. A clone shares them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineSpec(Arc<[StageSpec]>);

/// Why a list of stages is no pipeline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PipelineError {
    /// A stage that there can be only one of is named twice.
    #[error("the pipeline names the stage {0} twice")]
    Twice(StageKind),
    /// Stages are in an order in which they cannot work.
    #[error("in the pipeline {later} must come after {earlier}")]
    Order {
        /// The stage that must come first.
        earlier: StageKind,
        /// The stage that stands before it.
        later: StageKind,
    },
    /// Two stages would have the same name in metrics and refusals.
    #[error("two stages of the pipeline have the name `{0}`")]
    SameName(String),
    /// A log without the stage that restores the order in which its writes finish.
    #[error("the stages log and kafka-log need the stage line-monitor behind them")]
    Unmonitored,
    /// A local log and one in Kafka.
    #[error("a pipeline has one log: log or kafka-log")]
    TwoLogs,
    /// Durable acknowledgement without a log.
    #[error(
        "ack durable needs the stage log or kafka-log in the pipeline; partitions with the store counters have neither"
    )]
    DurableWithoutLog,
    /// A log where the store has none.
    #[error("a partition with the store counters has no log: leave out {0}")]
    LogOfCounters(StageKind),
    /// More stages than a pipeline has.
    #[error("the pipeline has {0} stages; at most {max} are possible", max = limits::PIPELINE_STAGES_MAX)]
    TooManyStages(usize),
    /// The declaration is too long.
    #[error("the pipeline's options take {0} bytes; at most {max} are possible", max = limits::PIPELINE_BYTES_MAX)]
    TooLarge(usize),
    /// A stage that this process cannot build.
    #[error("the stage {name}: {message}")]
    Options {
        /// The stage's name.
        name: String,
        /// What is wrong.
        message: String,
    },
}

/// The first thing that is wrong with the stages, and at which position.
pub fn misplaced(stages: &[StageSpec]) -> Option<(usize, PipelineError)> {
    for (at, stage) in stages.iter().enumerate() {
        let kind = stage.kind;
        for before in &stages[..at] {
            if before.kind == kind && !kind.is_front() {
                return Some((at, PipelineError::Twice(kind)));
            }
            if before.kind.is_log() && kind.is_log() {
                return Some((at, PipelineError::TwoLogs));
            }
            if before.kind.place() > kind.place() {
                return Some((at, PipelineError::Order { earlier: kind, later: before.kind }));
            }
        }
    }
    let names = stage_names(stages);
    for (at, name) in names.iter().enumerate() {
        if names[..at].contains(name) {
            return Some((at, PipelineError::SameName(name.clone())));
        }
    }
    let last = stages.len().saturating_sub(1);
    if stages.len() > limits::PIPELINE_STAGES_MAX {
        return Some((last, PipelineError::TooManyStages(stages.len())));
    }
    let bytes = stages.iter().map(|stage| stage.toml().len()).sum();
    if bytes > limits::PIPELINE_BYTES_MAX {
        return Some((last, PipelineError::TooLarge(bytes)));
    }
    let position = |is_it: fn(StageKind) -> bool| stages.iter().position(|one| is_it(one.kind));
    match (position(StageKind::is_log), position(|kind| kind == StageKind::LineMonitor)) {
        (Some(log), None) => Some((log, PipelineError::Unmonitored)),
        _ => None,
    }
}

/// Checks that the stages can work in this order: those before the clock in any number, each
/// other at most once and where [`DEFAULT_PIPELINE`] has it, and behind a log the line monitor.
///
/// # Errors
/// The first [`PipelineError`] in the order of the stages.
pub fn check_pipeline(stages: &[StageSpec]) -> Result<(), PipelineError> {
    misplaced(stages).map_or(Ok(()), |(_, error)| Err(error))
}

/// Checks that the pipeline can give the acknowledgement.
///
/// # Errors
/// [`PipelineError::DurableWithoutLog`].
pub fn check_ack(ack: Ack, stages: &[StageSpec]) -> Result<(), PipelineError> {
    if ack == Ack::Durable && !stages.iter().any(|stage| stage.kind.is_log()) {
        return Err(PipelineError::DurableWithoutLog);
    }
    Ok(())
}

/// What the stages are called in metrics and refusals: the option `name`, else the kind, with a
/// number from the second of a kind on.
pub fn stage_names(stages: &[StageSpec]) -> Vec<String> {
    let nameless = |stage: &&StageSpec| stage.text("name").is_none();
    let name = |(at, stage): (usize, &StageSpec)| match stage.text("name") {
        Some(name) => name.to_owned(),
        None => {
            let same = |before: &&StageSpec| before.kind == stage.kind;
            match stages[..at].iter().filter(nameless).filter(same).count() {
                0 => stage.kind.as_str().to_owned(),
                before => format!("{}-{}", stage.kind, before + 1),
            }
        }
    };
    stages.iter().enumerate().map(name).collect()
}

impl StageKind {
    /// The name used in configuration and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Sanitizer => "sanitizer",
            Self::Enricher => "enricher",
            Self::Own(name) => name,
            Self::Clock => "clock",
            Self::Dispatcher => "dispatcher",
            Self::Log => "log",
            Self::KafkaLog => "kafka-log",
            Self::LineMonitor => "line-monitor",
        }
    }

    /// Whether the stage makes writes durable.
    pub const fn is_log(self) -> bool {
        matches!(self, Self::Log | Self::KafkaLog)
    }

    /// Whether the stage stands before the clock: decides and changes, and is done at once.
    pub const fn is_front(self) -> bool {
        self.place() == 0
    }

    /// Where the stage stands among all stages.
    const fn place(self) -> u8 {
        match self {
            Self::Filter | Self::Sanitizer | Self::Enricher | Self::Own(_) => 0,
            Self::Clock => 1,
            Self::Dispatcher => 2,
            Self::Log | Self::KafkaLog => 3,
            Self::LineMonitor => 4,
        }
    }
}

impl StageSpec {
    /// A stage with options that have been checked, in the order of its definition. For the
    /// catalogue of stages; everyone else asks that.
    pub fn checked(kind: StageKind, options: Vec<(&'static str, OptionValue)>) -> Self {
        Self { kind, options }
    }

    /// What it is.
    pub fn kind(&self) -> StageKind {
        self.kind
    }

    /// The options that were set.
    pub fn options(&self) -> &[(&'static str, OptionValue)] {
        &self.options
    }

    /// An option, if it was set.
    pub fn option(&self, name: &str) -> Option<&OptionValue> {
        self.options.iter().find(|(have, _)| *have == name).map(|(_, value)| value)
    }

    /// An option that is a string, if it was set.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.option(name)? {
            OptionValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// An option that is a number, if it was set.
    pub fn integer(&self, name: &str) -> Option<i64> {
        match self.option(name)? {
            OptionValue::Integer(number) => Some(*number),
            _ => None,
        }
    }

    /// An option that is a list of strings; empty if it was not set.
    pub fn texts(&self, name: &str) -> &[String] {
        match self.option(name) {
            Some(OptionValue::Texts(texts)) => texts,
            _ => &[],
        }
    }

    /// An option that is a table; empty if it was not set.
    pub fn table(&self, name: &str) -> &[(String, OptionValue)] {
        match self.option(name) {
            Some(OptionValue::Table(values)) => values,
            _ => &[],
        }
    }

    /// The stage as a value of TOML: a string, or a table in line.
    pub fn toml(&self) -> String {
        if self.options.is_empty() { toml_string(self.kind.as_str()) } else { self.to_string() }
    }
}

impl PipelineSpec {
    /// The stages before the clock.
    pub fn front(&self) -> &[StageSpec] {
        &self.0[..self.front_len()]
    }

    /// Whether the log is in Kafka.
    pub fn is_logged_in_kafka(&self) -> bool {
        self.0.iter().any(|stage| stage.kind == StageKind::KafkaLog)
    }

    /// Whether reads have a queue of their own and are answered from what is durable.
    pub fn is_split(&self) -> bool {
        let dispatcher = self.0.iter().find(|stage| stage.kind == StageKind::Dispatcher);
        dispatcher.is_some_and(|stage| stage.text("mode") == Some("split"))
    }

    /// The stages but for the log and what restores the order in which its writes finish.
    #[must_use]
    pub fn without_log(&self) -> Self {
        let stays =
            |stage: &&StageSpec| !stage.kind.is_log() && stage.kind != StageKind::LineMonitor;
        self.0.iter().filter(stays).cloned().collect::<Vec<_>>().into()
    }

    /// The clock and what comes behind it.
    pub fn back(&self) -> &[StageSpec] {
        &self.0[self.front_len()..]
    }

    fn front_len(&self) -> usize {
        self.0.iter().take_while(|stage| stage.kind.is_front()).count()
    }
}

impl Default for PipelineSpec {
    fn default() -> Self {
        DEFAULT_PIPELINE.into()
    }
}

impl Deref for PipelineSpec {
    type Target = [StageSpec];

    fn deref(&self) -> &[StageSpec] {
        &self.0
    }
}

impl From<Vec<StageSpec>> for PipelineSpec {
    fn from(stages: Vec<StageSpec>) -> Self {
        Self(stages.into())
    }
}

/// Stages without options.
impl From<&[StageKind]> for PipelineSpec {
    fn from(kinds: &[StageKind]) -> Self {
        kinds.iter().copied().map(StageSpec::from).collect::<Vec<_>>().into()
    }
}

impl From<StageKind> for StageSpec {
    fn from(kind: StageKind) -> Self {
        Self { kind, options: Vec::new() }
    }
}

impl fmt::Display for StageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The bare name, or a table of TOML in line.
impl fmt::Display for StageSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.options.is_empty() {
            return self.kind.fmt(f);
        }
        write!(f, "{{ stage = {}", toml_string(self.kind.as_str()))?;
        for (name, value) in &self.options {
            write!(f, ", {name} = {value}")?;
        }
        f.write_str(" }")
    }
}

/// A list of TOML in one line.
impl fmt::Display for PipelineSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages: Vec<_> = self.0.iter().map(StageSpec::toml).collect();
        write!(f, "[{}]", stages.join(", "))
    }
}

/// As TOML.
impl fmt::Display for OptionValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(&toml_string(text)),
            Self::Integer(number) => number.fmt(f),
            Self::Boolean(value) => value.fmt(f),
            Self::Texts(texts) => {
                let texts: Vec<_> = texts.iter().map(|text| toml_string(text)).collect();
                write!(f, "[{}]", texts.join(", "))
            }
            Self::Table(values) => {
                let value =
                    |(name, value): &(String, Self)| format!("{} = {value}", toml_string(name));
                let values: Vec<_> = values.iter().map(value).collect();
                write!(f, "{{ {} }}", values.join(", "))
            }
        }
    }
}

/// A basic string of TOML 1.0.
fn toml_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            control if control.is_control() => {
                out.push_str(&format!("\\u{:04X}", u32::from(control)));
            }
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kinds: &[StageKind]) -> Result<(), PipelineError> {
        check_pipeline(&PipelineSpec::from(kinds))
    }

    fn named(name: &str) -> StageSpec {
        StageSpec::checked(StageKind::Filter, vec![("name", OptionValue::Text(name.to_owned()))])
    }

    #[test]
    fn pipelines_that_cannot_work_are_refused() {
        use StageKind::{Clock, Dispatcher, Filter, Log};
        assert_eq!(check(DEFAULT_PIPELINE), Ok(()));
        assert_eq!(check(&[Clock, Dispatcher]), Ok(()));
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&[Clock, Clock]), Err(PipelineError::Twice(Clock)));
        let order = PipelineError::Order { earlier: Clock, later: Log };
        assert_eq!(check(&[Log, Clock]), Err(order));
        assert_eq!(check(&[Clock, Dispatcher, Log]), Err(PipelineError::Unmonitored));
        assert_eq!(check(&[Filter, StageKind::Own("geo"), Filter, Clock]), Ok(()));
        let order = PipelineError::Order { earlier: Filter, later: Clock };
        assert_eq!(check(&[Clock, Filter]), Err(order));
        let many = vec![Filter; limits::PIPELINE_STAGES_MAX + 1];
        assert_eq!(check(&many), Err(PipelineError::TooManyStages(many.len())));
        let long = named(&"n".repeat(limits::PIPELINE_BYTES_MAX));
        assert!(matches!(check_pipeline(&[long]), Err(PipelineError::TooLarge(_))));
    }

    #[test]
    fn durable_needs_a_log() {
        let without = PipelineSpec::from(&DEFAULT_PIPELINE[..2]);
        assert_eq!(check_ack(Ack::Durable, &without), Err(PipelineError::DurableWithoutLog));
        assert_eq!(check_ack(Ack::Memory, &without), Ok(()));
    }

    #[test]
    fn stages_of_a_kind_are_told_apart_by_name_or_number() {
        let plain = StageSpec::from(StageKind::Filter);
        let stages = [plain.clone(), named("sizes"), plain.clone()];
        assert_eq!(stage_names(&stages), ["filter", "sizes", "filter-2"]);
        assert_eq!(check_pipeline(&stages), Ok(()));
        let clash = [plain.clone(), named("filter-2"), plain];
        let same = PipelineError::SameName("filter-2".to_owned());
        assert_eq!(misplaced(&clash), Some((2, same)));
    }

    #[test]
    fn stages_print_as_toml() {
        let list = OptionValue::Texts(vec!["a/".to_owned(), "q\"\\\u{1}".to_owned()]);
        let options = vec![("deny", list), ("rate_per_s", OptionValue::Integer(5))];
        let stage = StageSpec::checked(StageKind::Filter, options);
        let text = r#"{ stage = "filter", deny = ["a/", "q\"\\\u0001"], rate_per_s = 5 }"#;
        assert_eq!(stage.to_string(), text);
        let pipeline = PipelineSpec::from(vec![stage, StageKind::Clock.into()]);
        assert_eq!(pipeline.to_string(), format!("[{text}, \"clock\"]"));
        assert_eq!((pipeline.front().len(), pipeline.back().len()), (1, 1));
    }
}
