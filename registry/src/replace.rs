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

/// Replaces the content of `path`, or makes the file. Symbolic links are followed: the file that
/// they lead to is replaced, with its permissions kept.
///
/// # Errors
/// What the system said; then the old content is still there. Only when the last step fails, the
/// fsync of the directory, the new content may be there already.
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let temporary = with_suffix(&target, ".new");
    let result = write_new(&target, &temporary, content);
    if result.is_err() {
        // Best effort: the next replacement truncates it anyway.
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn write_new(target: &Path, temporary: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(temporary)?;
    if let Ok(metadata) = fs::metadata(target) {
        file.set_permissions(metadata.permissions())?;
    }
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    fs::rename(temporary, target)?;
    sync_directory_of(target)
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
        assert!(replace_file(&path, b"new").is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    }
}
