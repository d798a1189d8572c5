//! What the whole node is doing, and how far its recovery got.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// What the node is doing. Set by the thread that starts and stops it.
///
/// ```text
///   Recovering ──► Serving ──► Draining
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The cores read logs and snapshots; the data plane does not answer yet.
    Recovering,
    /// Everything is up.
    Serving,
    /// No new work is taken; what is under way finishes.
    Draining,
}

impl Phase {
    /// The names of all phases.
    pub const NAMES: &'static [&'static str] = &["recovering", "serving", "draining"];

    /// The name in `Status` and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Recovering => "recovering",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far the recovery at the start got. Shared: every core adds, the control thread reads.
#[derive(Debug, Default)]
pub struct RecoveryProgress {
    read_bytes: AtomicU64,
    total_bytes: AtomicU64,
}

impl RecoveryProgress {
    /// So much more will be read.
    pub fn expect(&self, bytes: u64) {
        self.total_bytes.fetch_add(bytes, Relaxed);
    }

    /// So much more was read.
    pub fn advance(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Relaxed);
    }

    /// Bytes read, and in all as far as known.
    pub fn get(&self) -> (u64, u64) {
        (self.read_bytes.load(Relaxed), self.total_bytes.load(Relaxed))
    }
}
