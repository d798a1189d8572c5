//! Names in a log's directory, and making changes of them durable.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use stateside_pipeline::log::Generation;
use stateside_types::CoreId;

/// What a name says a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FileKind {
    Segment,
    Free,
    New,
}

impl FileKind {
    const fn extension(self) -> &'static str {
        match self {
            Self::Segment => "segment",
            Self::Free => "free",
            Self::New => "new",
        }
    }
}

/// A file of a log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LogFile {
    pub(super) generation: Generation,
    pub(super) kind: FileKind,
    pub(super) bytes: u64,
}

/// `core-007` in the logs' root.
pub(super) fn of_core(root: &Path, core: CoreId) -> PathBuf {
    root.join(format!("core-{:03}", core.0))
}

/// The core whose directory this name is.
pub(super) fn core_of(name: &str) -> Option<CoreId> {
    let number = name.strip_prefix("core-")?;
    let core = CoreId(number.parse().ok()?);
    // One spelling only: `core-7` beside `core-007` would be a second log of the same core.
    (format!("{:03}", core.0) == number).then_some(core)
}

pub(super) fn path(directory: &Path, generation: Generation, kind: FileKind) -> PathBuf {
    directory.join(format!("{:010}.{}", generation.0, kind.extension()))
}

pub(super) fn segment_path(directory: &Path, generation: Generation) -> PathBuf {
    path(directory, generation, FileKind::Segment)
}

fn parse(name: &str) -> Option<(Generation, FileKind)> {
    let (number, extension) = name.split_once('.')?;
    let kind = [FileKind::Segment, FileKind::Free, FileKind::New]
        .into_iter()
        .find(|kind| kind.extension() == extension)?;
    let generation = Generation(number.parse().ok()?);
    let is_ours = generation.0 != 0 && format!("{:010}", generation.0) == number;
    is_ours.then_some((generation, kind))
}

/// The log's files in the order of their generations. Other files are left alone, and mentioned.
pub(super) fn list(directory: &Path) -> io::Result<Vec<LogFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        match name.to_str().and_then(parse) {
            Some((generation, kind)) => {
                files.push(LogFile { generation, kind, bytes: entry.metadata()?.len() });
            }
            None => tracing::warn!(
                file = %entry.path().display(),
                "not a file of the log; left alone"
            ),
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Makes creations, renames and removals in a directory durable.
pub(super) fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Makes a directory and everything above it that is missing, durably.
pub(super) fn create(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent() {
        create(parent)?;
        match fs::create_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => sync(parent)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_spelling_of_a_name_is_ours() {
        assert_eq!(parse("0000000012.segment"), Some((Generation(12), FileKind::Segment)));
        assert_eq!(parse("0000000012.free"), Some((Generation(12), FileKind::Free)));
        for name in
            ["12.segment", "0000000000.segment", "0000000012.segment.bak", "x", "+000000012.new"]
        {
            assert_eq!(parse(name), None, "{name}");
        }
        assert_eq!(core_of("core-007"), Some(CoreId(7)));
        assert_eq!(core_of("core-1234"), Some(CoreId(1234)));
        for name in ["core-7", "core-", "core-+07", "kern-007", "core-70000"] {
            assert_eq!(core_of(name), None, "{name}");
        }
    }
}
