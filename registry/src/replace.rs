//! Replacing a file so that a crash leaves the old content or the new, never a mixture.
//!
//! ```text
//!   NAME.new written ─► fsync NAME.new ─► rename over NAME ─► fsync the directory
//! ```
//! Hazard: two writers of one file would share `NAME.new`. Every file that is replaced this way
//! has one writer: the process that holds the data directory's lock, or for a registry file the
//! manager of the one node that it belongs to.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// A replacement that failed.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct ReplaceError {
    /// What the system said.
    pub source: io::Error,
    /// Only the last step failed, the fsync of the directory: the new content is in place, and a
    /// crash may bring back the old. Otherwise the old content is untouched.
    pub is_in_doubt: bool,
}

/// Replaces the content of `path`, or makes the file. Symbolic links are followed: the file that
/// they lead to is replaced, with its permissions kept.
///
/// # Errors
/// See [`ReplaceError`].
pub fn replace_file(path: &Path, content: &[u8]) -> Result<(), ReplaceError> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let temporary = with_suffix(&target, ".new");
    if let Err(source) = rename_into_place(&target, &temporary, content) {
        // Best effort: the next replacement truncates it anyway.
        let _ = fs::remove_file(&temporary);
        return Err(ReplaceError { source, is_in_doubt: false });
    }
    sync_directory_of(&target).map_err(|source| ReplaceError { source, is_in_doubt: true })
}

impl From<ReplaceError> for io::Error {
    fn from(error: ReplaceError) -> Self {
        error.source
    }
}

fn rename_into_place(target: &Path, temporary: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(temporary)?;
    if let Ok(metadata) = fs::metadata(target) {
        file.set_permissions(metadata.permissions())?;
    }
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    fs::rename(temporary, target)
}

/// Makes what happened to the names in a file's directory survive a crash.
///
/// # Errors
/// What the system said.
pub fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn content_is_replaced_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for content in ["first", "", "third and longer"] {
            replace_file(&path, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_stays_a_link_and_permissions_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, "old").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("real", &link).unwrap();
        replace_file(&link, b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&real).unwrap(), "new");
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn a_failure_leaves_the_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "old").unwrap();
        // A directory in the temporary file's place makes the write fail for root too.
        fs::create_dir(dir.path().join("file.new")).unwrap();
        assert!(!replace_file(&path, b"new").unwrap_err().is_in_doubt);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    }
}
