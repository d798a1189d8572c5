//! The registry in a file.
//!
//! ```text
//!                 ┌────────────── other content ─────────────┐
//!                 ▼                                          │
//!   settled ── differs ──► candidate ── the same again ──► settled: Changed or Broken
//!      ▲                      │
//!      └── as before ─────────┘
//! ```
//! Hazard: an editor that writes in place can be seen half-way, and half a registry file may well
//! be a registry file: one with fewer partitions. So content counts only when two polls in a row
//! see the same.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use stateside_types::{DesiredSet, limits};

use crate::{Edit, Polled, Registry, RegistryError, edit, parse::parse, replace_file};

/// A TOML file that declares the partitions of one node.
#[derive(Debug)]
pub struct FileRegistry {
    path: PathBuf,
    /// What was last acted upon.
    settled: Content,
    /// What the last poll saw, if it differs.
    candidate: Option<Content>,
    /// Content before and after the last edit.
    last_edit: Option<(String, String)>,
}

/// What a look at the file found; compared with what the next look finds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    Text(String),
    Missing,
    /// Read and of no use, with the reason.
    Unusable(String),
    /// Not read, with what the system said.
    Failed(io::ErrorKind, String),
}

impl FileRegistry {
    /// Opens a registry file and reads it.
    ///
    /// # Errors
    /// It cannot be read, or is not a partition set: file and line.
    pub fn open(path: &Path) -> Result<(Self, DesiredSet), RegistryError> {
        let content = read(path);
        let set = understand(path, &content)?;
        let path = path.to_owned();
        Ok((Self { path, settled: content, candidate: None, last_edit: None }, set))
    }

    /// Makes a registry file that declares `set`. An existing file is replaced.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(path: &Path, set: &DesiredSet) -> Result<(), RegistryError> {
        write(path, &edit::new_file(set))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text in force, if the file still holds it.
    fn current_text(&self) -> Result<String, RegistryError> {
        let content = read(&self.path);
        if content != self.settled {
            return Err(RegistryError::Changing { path: self.path.clone() });
        }
        understand(&self.path, &content)?;
        match content {
            Content::Text(text) => Ok(text),
            _ => unreachable!("only text is understood"),
        }
    }
}

impl Registry for FileRegistry {
    fn poll(&mut self) -> Polled {
        let content = read(&self.path);
        if content == self.settled {
            self.candidate = None;
            return Polled::Unchanged;
        }
        if self.candidate.as_ref() != Some(&content) {
            self.candidate = Some(content);
            return Polled::Unchanged;
        }
        self.candidate = None;
        let understood = understand(&self.path, &content);
        self.settled = content;
        match understood {
            Ok(set) => Polled::Changed(set),
            Err(error) => Polled::Broken(error),
        }
    }

    fn edit(&mut self, step: &Edit) -> Result<DesiredSet, RegistryError> {
        let before = self.current_text()?;
        let (after, set) = edit::edit(&before, step).map_err(RegistryError::Conflict)?;
        write(&self.path, &after)?;
        self.settled = Content::Text(after.clone());
        self.candidate = None;
        self.last_edit = Some((before, after));
        Ok(set)
    }

    fn undo_edit(&mut self) -> Result<DesiredSet, RegistryError> {
        let current = self.current_text()?;
        match self.last_edit.take() {
            Some((before, after)) if after == current => {
                write(&self.path, &before)?;
                self.settled = Content::Text(before);
                self.candidate = None;
                understand(&self.path, &self.settled)
            }
            _ => Err(RegistryError::Changing { path: self.path.clone() }),
        }
    }

    fn origin(&self) -> String {
        self.path.display().to_string()
    }
}

fn read(path: &Path) -> Content {
    let read = || -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        file.take(limits::TEXT_FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    };
    match read() {
        Ok(None) => Content::Unusable("the registry file is no regular file".to_owned()),
        Ok(Some(bytes)) if bytes.len() as u64 > limits::TEXT_FILE_BYTES_MAX => Content::Unusable(
            format!("the registry file is larger than {} bytes", limits::TEXT_FILE_BYTES_MAX),
        ),
        Ok(Some(bytes)) => match String::from_utf8(bytes) {
            Ok(text) => Content::Text(text),
            Err(_) => Content::Unusable("the registry file is not UTF-8 text".to_owned()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Content::Missing,
        Err(error) => Content::Failed(error.kind(), error.to_string()),
    }
}

fn understand(path: &Path, content: &Content) -> Result<DesiredSet, RegistryError> {
    let path = || path.to_owned();
    match content {
        Content::Text(text) => parse(text).map_err(|(line, message)| RegistryError::Invalid {
            path: path(),
            line,
            message,
        }),
        Content::Unusable(message) => {
            Err(RegistryError::Invalid { path: path(), line: 0, message: message.clone() })
        }
        Content::Missing => Err(RegistryError::Invalid {
            path: path(),
            line: 0,
            message: "the registry file does not exist".to_owned(),
        }),
        Content::Failed(kind, message) => {
            let source = io::Error::new(*kind, message.clone());
            Err(RegistryError::Io { path: path(), what: "read", source })
        }
    }
}

fn write(path: &Path, text: &str) -> Result<(), RegistryError> {
    assert!(parse(text).is_ok(), "what is written can be read back");
    replace_file(path, text.as_bytes()).map_err(|error| RegistryError::Io {
        path: path.to_owned(),
        what: "rewritten",
        source: error.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use stateside_types::{DesiredPartition, HashRange, PartitionId};

    use super::*;

    const HALVES: &str = "[[partition]]\nid = 0\nrange = \"0..0x8000000000000000\"\n\n[[partition]]\nid = 1\nrange = \"0x8000000000000000..\"\n";

    fn first_half() -> &'static str {
        HALVES.split_once("\n\n").unwrap().0
    }

    fn world(text: &str) -> (tempfile::TempDir, PathBuf, FileRegistry) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.toml");
        fs::write(&path, text).unwrap();
        let (registry, _) = FileRegistry::open(&path).unwrap();
        (dir, path, registry)
    }

    fn count(polled: &Polled) -> Option<usize> {
        match polled {
            Polled::Changed(set) => Some(set.partitions().len()),
            _ => None,
        }
    }

    #[test]
    fn a_change_counts_when_it_is_seen_twice() {
        let (_dir, path, mut registry) = world(HALVES);
        assert!(matches!(registry.poll(), Polled::Unchanged));
        // Seen half-way: a valid file with one partition fewer.
        fs::write(&path, first_half()).unwrap();
        assert!(matches!(registry.poll(), Polled::Unchanged));
        fs::write(&path, format!("# new\n{HALVES}")).unwrap();
        assert!(matches!(registry.poll(), Polled::Unchanged));
        assert_eq!(count(&registry.poll()), Some(2));
        assert!(matches!(registry.poll(), Polled::Unchanged));
    }

    #[test]
    fn a_broken_file_is_told_once_with_its_line_and_mending_it_counts() {
        let (_dir, path, mut registry) = world(HALVES);
        fs::write(&path, format!("{HALVES}colour = 1\n")).unwrap();
        assert!(matches!(registry.poll(), Polled::Unchanged));
        let Polled::Broken(error) = registry.poll() else { panic!("a broken file") };
        assert_eq!(
            error.to_string(),
            format!(
                "{}:8: unknown key `colour`; known: id, range, store, ack, pipeline",
                path.display()
            )
        );
        assert!(matches!(registry.poll(), Polled::Unchanged));
        let new = DesiredPartition::new(PartitionId(5), HashRange::FULL);
        assert!(matches!(
            registry.edit(&Edit::Add(new)),
            Err(RegistryError::Invalid { line: 8, .. })
        ));
        fs::write(&path, HALVES).unwrap();
        registry.poll();
        assert_eq!(count(&registry.poll()), Some(2));
    }

    #[test]
    fn a_file_that_goes_away_for_a_moment_is_no_change_and_for_longer_is_broken() {
        let (_dir, path, mut registry) = world(HALVES);
        fs::remove_file(&path).unwrap();
        assert!(matches!(registry.poll(), Polled::Unchanged));
        fs::write(&path, HALVES).unwrap();
        assert!(matches!(registry.poll(), Polled::Unchanged));
        fs::remove_file(&path).unwrap();
        registry.poll();
        let Polled::Broken(error) = registry.poll() else { panic!("the file is gone") };
        assert!(error.to_string().ends_with("the registry file does not exist"));
    }

    #[test]
    fn a_switched_link_is_followed_as_config_maps_switch_it() {
        let dir = tempfile::tempdir().unwrap();
        for (version, text) in [("v1", HALVES), ("v2", first_half())] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("registry.toml"), text).unwrap();
        }
        symlink("v1", dir.path().join("data")).unwrap();
        let path = dir.path().join("data/registry.toml");
        let (mut registry, set) = FileRegistry::open(&path).unwrap();
        assert_eq!(set.partitions().len(), 2);
        symlink("v2", dir.path().join("data.new")).unwrap();
        fs::rename(dir.path().join("data.new"), dir.path().join("data")).unwrap();
        registry.poll();
        assert_eq!(count(&registry.poll()), Some(1));
    }

    #[test]
    fn an_edit_is_on_disk_when_it_returns_and_can_be_taken_back() {
        let (_dir, path, mut registry) = world(HALVES);
        let set = registry.edit(&Edit::Remove(PartitionId(0))).unwrap();
        assert_eq!(set.partitions().len(), 1);
        let (_, reread) = FileRegistry::open(&path).unwrap();
        assert_eq!(reread, set);
        assert!(matches!(registry.poll(), Polled::Unchanged), "its own edit is no news");
        assert_eq!(registry.undo_edit().unwrap().partitions().len(), 2);
        assert_eq!(fs::read_to_string(&path).unwrap(), HALVES);
        assert!(matches!(registry.undo_edit(), Err(RegistryError::Changing { .. })));
    }

    #[test]
    fn an_edit_waits_for_somebody_elses() {
        let (_dir, path, mut registry) = world(HALVES);
        let changed = format!("# by hand\n{HALVES}");
        fs::write(&path, &changed).unwrap();
        let edit = Edit::Remove(PartitionId(0));
        assert!(matches!(registry.edit(&edit), Err(RegistryError::Changing { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), changed);
        registry.poll();
        registry.poll();
        registry.edit(&edit).unwrap();
        assert!(fs::read_to_string(&path).unwrap().starts_with("# by hand\n"));
        fs::write(&path, &changed).unwrap();
        assert!(matches!(registry.undo_edit(), Err(RegistryError::Changing { .. })));
    }

    #[test]
    fn what_cannot_be_read_or_written_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let error = FileRegistry::open(dir.path()).unwrap_err();
        assert!(error.to_string().ends_with("the registry file is no regular file"), "{error}");
        let error = FileRegistry::open(&dir.path().join("none.toml")).unwrap_err();
        assert!(error.to_string().ends_with("does not exist"), "{error}");
        let path = dir.path().join("x/registry.toml");
        let error = FileRegistry::create(&path, &DesiredSet::split_evenly(1)).unwrap_err();
        assert!(matches!(error, RegistryError::Io { what: "rewritten", .. }), "{error}");
    }
}
