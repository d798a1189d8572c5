//! Up to where an import has come, in a file that survives the import.
//!
//! Everything before the position is acknowledged; what follows may be stored in part. Resuming stores
//! it again, under the same keys and in the same order, so nothing is lost or doubled.
//! The file is replaced whole: written beside, brought to disk, renamed.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    input::{Identity, InputFormat},
    rows::Position,
};

const FORMAT_VERSION: u32 = 1;

/// What the file holds.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Checkpoint {
    format_version: u32,
    pub(super) input: Identity,
    pub(super) settings: Settings,
    pub(super) position: Position,
}

/// What decides where a record goes, and for how long. A resumed import must use the same.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Settings {
    pub(super) endpoint: String,
    pub(super) key: String,
    pub(super) value: Option<String>,
    pub(super) format: InputFormat,
    pub(super) delimiter: char,
    /// Milliseconds. Absent in checkpoints of imports without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ttl_ms: Option<u64>,
}

impl Checkpoint {
    pub(super) fn new(input: Identity, settings: Settings) -> Self {
        let position = Position::default();
        Self { format_version: FORMAT_VERSION, input, settings, position }
    }

    /// The file beside the input, unless another one is asked for.
    pub(super) fn path_beside(input: &Path) -> PathBuf {
        let mut name = input.file_name().map_or_else(OsString::new, OsString::from);
        name.push(".stateside-import.json");
        input.with_file_name(name)
    }

    /// Reads a checkpoint; `None` when there is none.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, String> {
        let name = path.display();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("cannot read the checkpoint {name}: {error}")),
        };
        let advice = "delete it to start over";
        let found: Self = serde_json::from_str(&text)
            .map_err(|error| format!("{name} is no checkpoint of an import ({error}); {advice}"))?;
        if found.format_version != FORMAT_VERSION {
            let version = found.format_version;
            return Err(format!(
                "the checkpoint {name} has version {version}, not {FORMAT_VERSION}; {advice}"
            ));
        }
        Ok(Some(found))
    }

    /// Checks that the import to be resumed is the one that was begun.
    pub(super) fn check(&self, input: &Identity, settings: &Settings) -> Result<(), String> {
        let advice = "delete the checkpoint, or leave out --resume, to start over";
        if self.input != *input {
            return Err(format!("the input has changed since the import began; {advice}"));
        }
        if self.settings != *settings {
            let (was, is) = (describe(&self.settings), describe(settings));
            return Err(format!("the import began with {was} and would go on with {is}; {advice}"));
        }
        Ok(())
    }

    /// Replaces the file.
    pub(super) fn store(&self, path: &Path) -> Result<(), String> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let write = || {
            let mut file = File::create(&beside)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&beside, path)?;
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(|error: std::io::Error| {
            format!("cannot write the checkpoint {}: {error}", path.display())
        })
    }

    /// Deletes the file: the import is complete.
    pub(super) fn remove(path: &Path) -> Result<(), String> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(format!("cannot delete the checkpoint {}: {error}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

fn describe(settings: &Settings) -> String {
    let Settings { endpoint, key, value, format, delimiter, ttl_ms } = settings;
    let value = value.as_deref().map_or_else(String::new, |value| format!(" --value '{value}'"));
    let format = format!("{format:?}").to_lowercase();
    let delimiter = match delimiter {
        ',' => String::new(),
        other => format!(" --delimiter '{other}'"),
    };
    let ttl = ttl_ms.map_or_else(String::new, |ttl_ms| format!(" --ttl {ttl_ms}ms"));
    format!("--key '{key}'{value} --format {format}{delimiter}{ttl} --endpoint {endpoint}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::import::input::Input;

    fn settings() -> Settings {
        Settings {
            endpoint: "127.0.0.1:7400".into(),
            key: "{a}".into(),
            value: None,
            format: InputFormat::Csv,
            delimiter: ',',
            ttl_ms: None,
        }
    }

    #[test]
    fn a_checkpoint_survives_and_is_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let input = directory.path().join("a.csv");
        fs::write(&input, "a\n1\n").unwrap();
        let identity = Input::new(&input).identity().unwrap().unwrap();
        let path = Checkpoint::path_beside(&input);
        assert_eq!(path.file_name().unwrap(), "a.csv.stateside-import.json");
        assert_eq!(Checkpoint::load(&path), Ok(None));

        let mut checkpoint = Checkpoint::new(identity.clone(), settings());
        for records in [1, 2] {
            checkpoint.position = Position { offset: 2 * records, line: records, records };
            checkpoint.store(&path).unwrap();
            assert_eq!(Checkpoint::load(&path), Ok(Some(checkpoint.clone())));
        }
        assert_eq!(checkpoint.check(&identity, &settings()), Ok(()));
        Checkpoint::remove(&path).unwrap();
        Checkpoint::remove(&path).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn another_input_or_other_settings_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let input = directory.path().join("a.csv");
        fs::write(&input, "a\n1\n").unwrap();
        let identity = Input::new(&input).identity().unwrap().unwrap();
        let checkpoint = Checkpoint::new(identity.clone(), settings());
        fs::write(&input, "a\n1\n2\n").unwrap();
        let changed = Input::new(&input).identity().unwrap().unwrap();
        assert!(checkpoint.check(&changed, &settings()).unwrap_err().contains("has changed"));
        let other = Settings { key: "b".into(), ..settings() };
        assert!(checkpoint.check(&identity, &other).unwrap_err().contains("--key 'b'"));
        let brief = Settings { ttl_ms: Some(90_000), ..settings() };
        let refused = checkpoint.check(&identity, &brief).unwrap_err();
        assert!(refused.contains("would go on with") && refused.contains("--ttl 90000ms"));
        let begun = Checkpoint::new(identity.clone(), brief.clone());
        assert!(begun.check(&identity, &settings()).is_err());
        assert_eq!(begun.check(&identity, &brief), Ok(()));
    }

    #[test]
    fn a_checkpoint_of_an_import_without_a_time_to_live_says_nothing_of_one() {
        let text = serde_json::to_string(&settings()).unwrap();
        assert!(!text.contains("ttl"), "{text}");
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), settings());
    }

    #[test]
    fn what_is_no_checkpoint_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        for (text, part) in [("{", "no checkpoint"), ("{\"format_version\":1}", "no checkpoint")] {
            fs::write(&path, text).unwrap();
            assert!(Checkpoint::load(&path).unwrap_err().contains(part));
        }
    }
}
