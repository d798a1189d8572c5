//! The stages that this process knows: those that come with Stateside and those that the binary
//! registered.
//!
//! One set a process, and not a value that is handed around: what reads declarations (the
//! configuration, the registry file, the manifest) lies in different crates and threads, and a
//! process in which two of them knew different stages could write a manifest that it cannot read.

use std::sync::{PoisonError, RwLock};

use stateside_types::{OptionValue, StageKind, StageSpec};

use crate::{
    Clock, KafkaStage, LineMonitor, LogStage, OptionError, StageDefinition,
    descriptor_set::{self, ReadFile},
    dispatcher, enricher, filter, options, sanitizer,
};

/// The stages that come with Stateside, in the order in which they are documented.
const STAGES: &[StageDefinition] = &[
    filter::DEFINITION,
    sanitizer::DEFINITION,
    enricher::DEFINITION,
    StageDefinition {
        kind: StageKind::Clock,
        doc: "Gives every write its timestamp: a hybrid logical clock, monotonic in its partition also when the wall clock jumps back.",
        options: &[],
        build: |_| Ok(Box::<Clock>::default()),
    },
    dispatcher::DEFINITION,
    StageDefinition {
        kind: StageKind::Log,
        doc: "The write-ahead log of the partition's core. Without it nothing is durable.",
        options: &[],
        build: |_| Ok(Box::new(LogStage)),
    },
    StageDefinition {
        kind: StageKind::KafkaLog,
        doc: "The partition's write-ahead log in Apache Kafka, in the place of log; see kafka.md. Its settings are the node's, [kafka].",
        options: &[],
        build: |_| Ok(Box::new(KafkaStage)),
    },
    StageDefinition {
        kind: StageKind::LineMonitor,
        doc: "Holds answers until every asynchronous stage is done with the write and with all before it.",
        options: &[],
        build: |_| Ok(Box::<LineMonitor>::default()),
    },
];

static OWN: RwLock<Vec<&'static StageDefinition>> = RwLock::new(Vec::new());

/// Why a stage was not registered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// Only [`StageKind::Own`] can be registered.
    #[error("`{0}` is a stage of Stateside; a stage of one's own is of the kind `Own`")]
    NotOwn(StageKind),
    /// The name is no name.
    #[error("`{0}` is no name for a stage: 1 to 32 of a-z, 0-9, - and _")]
    Name(&'static str),
    /// The name is taken.
    #[error("there is a stage `{0}` already")]
    Taken(&'static str),
}

/// Makes a stage known to this process. To be called before configuration, registry or manifest
/// are read: before [`crate::StageDefinition`]s are looked up by name.
///
/// # Errors
/// [`RegisterError`].
pub fn register(definition: &'static StageDefinition) -> Result<(), RegisterError> {
    let StageKind::Own(name) = definition.kind else {
        return Err(RegisterError::NotOwn(definition.kind));
    };
    if !options::is_name(name) {
        return Err(RegisterError::Name(name));
    }
    let mut own = OWN.write().unwrap_or_else(PoisonError::into_inner);
    let is_taken = |one: &StageDefinition| one.kind.as_str() == name;
    if STAGES.iter().any(is_taken) || own.iter().any(|one| is_taken(one)) {
        return Err(RegisterError::Taken(name));
    }
    own.push(definition);
    Ok(())
}

/// The definitions of all stages: Stateside's, then those registered.
pub fn definitions() -> Vec<&'static StageDefinition> {
    let own = OWN.read().unwrap_or_else(PoisonError::into_inner);
    STAGES.iter().chain(own.iter().copied()).collect()
}

/// The definition of the stage of a kind.
pub fn definition(kind: StageKind) -> Option<&'static StageDefinition> {
    definitions().into_iter().find(|one| one.kind == kind)
}

/// As [`read_stage`], where options may name files.
///
/// # Errors
/// As there; or a file is wrong.
pub fn read_stage_with_files(
    name: &str,
    mut declared: Vec<(String, OptionValue)>,
    read_file: ReadFile<'_>,
) -> Result<StageSpec, OptionError> {
    if name == StageKind::Sanitizer.as_str() {
        descriptor_set::resolve(&mut declared, read_file)?;
    }
    read_stage(name, declared)
}

/// Reads a stage from its name and options.
///
/// # Errors
/// There is no such stage, or its options are wrong.
pub fn read_stage(
    name: &str,
    declared: Vec<(String, OptionValue)>,
) -> Result<StageSpec, OptionError> {
    let definitions = definitions();
    if let Some(definition) = definitions.iter().find(|one| one.kind.as_str() == name) {
        return definition.read(declared);
    }
    let known: Vec<_> = definitions.iter().map(|one| one.kind.as_str()).collect();
    let message = format!("`{name}` is not a pipeline stage; known: {}", known.join(", "));
    Err(OptionError { option: None, message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OptionDefinition, OptionKind, Stage};

    #[derive(Debug)]
    struct Nothing;

    impl Stage for Nothing {
        fn kind(&self) -> StageKind {
            StageKind::Own("nothing")
        }
    }

    const fn own(kind: StageKind) -> StageDefinition {
        const LEVEL: OptionDefinition = OptionDefinition {
            name: "level",
            kind: OptionKind::Integer(1, 9),
            default: "none",
            doc: "",
        };
        StageDefinition {
            kind,
            doc: "",
            options: &[LEVEL],
            build: |spec| match spec.integer("level") {
                Some(5) => Err(LEVEL.wrong("5 is unlucky")),
                _ => Ok(Box::new(Nothing)),
            },
        }
    }

    static NOTHING: StageDefinition = own(StageKind::Own("nothing"));
    static CLOCK: StageDefinition = own(StageKind::Own("clock"));
    static NAMELESS: StageDefinition = own(StageKind::Own("No Name"));
    static FOREIGN: StageDefinition = own(StageKind::Log);

    #[test]
    fn a_stage_of_ones_own_is_known_once_it_is_registered() {
        let level = |number| vec![("level".to_owned(), OptionValue::Integer(number))];
        let before = read_stage("nothing", vec![]).unwrap_err();
        assert!(before.message.contains("`nothing` is not a pipeline stage; known: filter"));
        assert_eq!(register(&NOTHING), Ok(()));
        assert_eq!(read_stage("nothing", level(3)).unwrap().integer("level"), Some(3));
        assert_eq!(register(&NOTHING), Err(RegisterError::Taken("nothing")));
        assert_eq!(register(&CLOCK), Err(RegisterError::Taken("clock")));
        assert_eq!(register(&NAMELESS), Err(RegisterError::Name("No Name")));
        assert_eq!(register(&FOREIGN), Err(RegisterError::NotOwn(StageKind::Log)));
        for (options, says) in [
            (level(10), "level: 10 is not within 1 to 9"),
            (level(5), "level: 5 is unlucky"),
            ([level(1), level(1)].concat(), "`level` is set twice"),
            (
                vec![("x".to_owned(), OptionValue::Boolean(true))],
                "no option `x`; known: level, name",
            ),
            (
                vec![("level".to_owned(), OptionValue::Text(String::new()))],
                "expected a whole number",
            ),
            (vec![("name".to_owned(), OptionValue::Text("É".to_owned()))], "`É` is not 1 to 32 of"),
        ] {
            let error = read_stage("nothing", options).unwrap_err();
            assert!(error.message.contains(says) && error.option.is_some(), "{error}");
        }
        let plain = read_stage("log", level(1)).unwrap_err();
        assert_eq!(plain.message, "the stage log takes no options");
    }

    #[test]
    fn every_definition_builds_without_options_or_says_what_it_needs() {
        for definition in STAGES {
            if let Err(error) = definition.read(vec![]) {
                assert!(!error.message.is_empty());
            }
            for option in definition.all_options() {
                assert!(!option.doc.is_empty() && !option.default.is_empty(), "{}", option.name);
            }
        }
    }
}
