//! A limit on a process's memory, page cache included. Version 1 or 2 of the kernel's control
//! groups, whichever is mounted.

use std::{
    fs, io,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

static MADE: AtomicU32 = AtomicU32::new(0);

/// The group. Goes when this is dropped, once its processes have ended; this process leaves it.
pub struct MemoryCgroup {
    path: PathBuf,
    parent: PathBuf,
    peak: &'static str,
}

impl MemoryCgroup {
    /// A new group with a limit, and nobody in it.
    ///
    /// # Errors
    /// No control group for memory is mounted, or this is not root.
    pub fn new(bytes: u64) -> io::Result<Self> {
        let first = PathBuf::from("/sys/fs/cgroup/memory");
        let (parent, limit, peak) = if first.is_dir() {
            (first, "memory.limit_in_bytes", "memory.max_usage_in_bytes")
        } else {
            (PathBuf::from("/sys/fs/cgroup"), "memory.max", "memory.peak")
        };
        let number = MADE.fetch_add(1, Relaxed);
        let path = parent.join(format!("stateside-bench-{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        let group = Self { path, parent, peak };
        fs::write(group.path.join(limit), bytes.to_string())?;
        Ok(group)
    }

    /// Moves this process into a new group with a limit.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn enter(bytes: u64) -> io::Result<Self> {
        let group = Self::new(bytes)?;
        fs::write(group.path.join("cgroup.procs"), std::process::id().to_string())?;
        Ok(group)
    }

    /// A process joins by writing its id to this file.
    pub fn procs(&self) -> String {
        self.path.join("cgroup.procs").display().to_string()
    }

    /// The most that the group has used, bytes; 0 where the kernel does not tell.
    pub fn peak_bytes(&self) -> u64 {
        let text = fs::read_to_string(self.path.join(self.peak)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // Nothing to be done when it fails: an empty group stays behind.
        let own = std::process::id().to_string();
        let inside = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        if inside.lines().any(|line| line == own) {
            let _ = fs::write(self.parent.join("cgroup.procs"), own);
        }
        let _ = fs::remove_dir(&self.path);
    }
}
