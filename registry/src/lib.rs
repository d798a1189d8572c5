//! Where the desired partition set of a node is declared: the [`Registry`] trait and the file.
//!
//! ```text
//!   operator edits the file ──► poll: the same twice? ─► parse ─► the manager reconciles
//!   control call ──► edit: toml_edit keeps comments ─► atomic replace ─► the manager reconciles
//! ```
//! The file is polled, not watched with inotify. A watch follows an inode: editors that save by
//! rename and Kubernetes config maps, which switch a symbolic link of a parent directory, leave
//! it watching a file that nobody reads any more; and on network file systems it never fires.
//! Reading one small file twice a second costs less than getting all of that right.

mod edit;
mod file;
mod parse;
mod pipeline_toml;
mod replace;

use std::{fmt, io, path::PathBuf};

use stateside_types::{DesiredPartition, DesiredSet, PartitionId, StoreKind};

pub use file::FileRegistry;
pub use pipeline_toml::{PipelineTomlError, read_pipeline};
pub use replace::{ReplaceError, replace_file, sync_directory_of};

/// Where the desired set comes from. Methods block (files, later a network): the manager calls
/// them off its own thread.
pub trait Registry: Send + Sync {
    /// Looks whether the set changed. To be called about twice a second.
    fn poll(&mut self) -> Polled;

    /// Changes the set. It is safe on disk before this returns.
    ///
    /// # Errors
    /// Nothing changed.
    fn edit(&mut self, edit: &Edit) -> Result<DesiredSet, RegistryError>;

    /// Takes the last edit back, unless something else changed meanwhile.
    ///
    /// # Errors
    /// The edit stays.
    fn undo_edit(&mut self) -> Result<DesiredSet, RegistryError>;

    /// Where the set comes from, for people: a file's path.
    fn origin(&self) -> String;
}

/// What a look at the registry found.
#[derive(Debug)]
pub enum Polled {
    /// What it was.
    Unchanged,
    /// Another set, or the same in other words.
    Changed(DesiredSet),
    /// Nothing that can be used. Told once; the set in force stays.
    Broken(RegistryError),
}

/// A change of the desired set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Declare a partition.
    Add(DesiredPartition),
    /// Declare it no more.
    Remove(PartitionId),
    /// Declare another store for it, or none.
    SetStore(PartitionId, Option<StoreKind>),
}

/// Why the registry cannot be used. Prints as one line that begins with the file, and the line in
/// it where there is one.
#[derive(Debug)]
pub enum RegistryError {
    /// The file cannot be read or written.
    Io {
        /// The file.
        path: PathBuf,
        /// `read` or `rewritten`.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The file's content is not a partition set.
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1; 0 when the whole file is meant.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The file is being changed by somebody else right now. Transient.
    Changing {
        /// The file.
        path: PathBuf,
    },
    /// The edit does not fit the set: the id is declared, the range taken, or nobody has the id.
    Conflict(String),
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, what, source } => {
                write!(f, "{}: the registry file cannot be {what}: {source}", path.display())
            }
            Self::Invalid { path, line: 0, message } => write!(f, "{}: {message}", path.display()),
            Self::Invalid { path, line, message } => {
                write!(f, "{}:{line}: {message}", path.display())
            }
            Self::Changing { path } => {
                write!(f, "{}: the registry file is just being changed", path.display())
            }
            Self::Conflict(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for RegistryError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
