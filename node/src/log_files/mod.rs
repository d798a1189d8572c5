//! The files of the local logs: made ahead of time, recycled, read back at a start.
//!
//! ```text
//!  DATA/log/core-000/0000000009.segment     in use, or prepared to be used next
//!                    0000000004.free        retired; will be a segment again
//!                    0000000010.new         being filled with zeros; worth nothing after a crash
//! ```
//! The number is the generation: the last one, in a `.free` file. A name is what a file *is*; a
//! rename, followed by a sync of the directory, is the one step that changes it, so a crash leaves
//! the file either as before or as after. What a log may contain is `stateside_pipeline::log`'s
//! business; here the bytes get there.
//!
//! ```text
//!  start:   LogCatalog::scan ──► recover, on every core ──► SegmentKeeper::open, on every core
//!  run:     core: LogFiles::poll ◄──events── keeper thread ──► files
//!                              ──orders──►
//! ```
//! All cores recover before any core opens: opening deletes files that another core may still read.
//!
//! **The hazard** is a write of a killed process that is still on its way when the next process has
//! started: the kernel finishes direct writes of a dead process in its own time. So a file that an
//! earlier process was writing is never written again: its log goes on in another file, and when
//! nothing in it is needed any more it is deleted, not recycled. Whatever lands late lands in a file
//! that is cut or gone.

mod catalog;
mod directory;
mod disk_cache;
mod keeper;
mod recovery;
mod segment_file;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use stateside_pipeline::log::{ContradictingSegments, FORMAT_VERSION, Generation, Placement};
use stateside_types::{CoreId, limits};

pub use catalog::LogCatalog;
pub use keeper::{KeeperEvent, LogFiles, OrphanedLog, SegmentKeeper};
pub use recovery::{CoreRecovery, DamagedPlace, Progress, RecoveringCore, TornPlace, recover};
pub use segment_file::SegmentFile;

/// Where the logs are and how their files are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// `DATA/log`; a directory for each core in it.
    pub root: PathBuf,
    /// Size of a segment, bytes: a multiple of 4 KiB within the limits.
    pub segment_bytes: u64,
    /// Try to write past the page cache. Off, or where the file system does not take it, writes go
    /// through the cache and are still durable when they return.
    pub direct_io: bool,
    /// How fast files are filled with zeros while nobody waits for one, bytes per second.
    pub zero_fill_bytes_per_second: u64,
    /// Emptied segments that are kept to be written again, at most: what snapshots free at once. Those
    /// beyond [`limits::LOG_SPARE_SEGMENTS`] go one by one when they are not needed.
    pub free_segments_max: usize,
    /// How often one of these goes.
    pub trim_interval: Duration,
    /// Most bytes that the files of one core's log may take. Reached, it counts as a full disk.
    pub log_bytes_max: Option<u64>,
}

impl LogConfig {
    /// The defaults, for this directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            segment_bytes: limits::LOG_SEGMENT_BYTES,
            direct_io: true,
            zero_fill_bytes_per_second: 256 << 20,
            free_segments_max: limits::LOG_SPARE_SEGMENTS,
            trim_interval: Duration::from_millis(limits::LOG_TRIM_INTERVAL_MS),
            log_bytes_max: None,
        }
    }

    /// The file of a segment, to name it.
    pub fn segment_path(&self, core: CoreId, generation: Generation) -> PathBuf {
        directory::segment_path(&directory::of_core(&self.root, core), generation)
    }
}

/// The logs cannot be used as they are. The node does not start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Another release wrote it.
    #[error(
        "{}: log format version {found}, this release reads version {FORMAT_VERSION}; start the \
         release that wrote it, or a later one", file.display()
    )]
    Version {
        /// The segment.
        file: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The header contradicts the file's name or directory.
    #[error(
        "{}: this is segment {generation} of core {core}'s log; files were renamed or mixed up",
        file.display()
    )]
    Misplaced {
        /// The segment.
        file: PathBuf,
        /// The core in its header.
        core: CoreId,
        /// The generation in its header.
        generation: Generation,
    },
    /// Two segments of one log contradict each other.
    #[error("{}: {source}", directory.display())]
    Contradiction {
        /// The log's directory.
        directory: PathBuf,
        /// Which.
        source: ContradictingSegments,
    },
    /// The log is younger than the manifest.
    #[error(
        "{}: written under placement {found}, but the manifest stands at {current}: the manifest is \
         older than the logs", directory.display()
    )]
    PlacementAhead {
        /// The log's directory.
        directory: PathBuf,
        /// The log's placement.
        found: Placement,
        /// The manifest's.
        current: Placement,
    },
    /// The system refused.
    #[error("{}: {source}", file.display())]
    Io {
        /// File or directory.
        file: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl LogError {
    fn io(file: &Path) -> impl FnOnce(io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::Io { file, source }
    }
}
