//! A limit on this process's memory, page cache included. Version 1 or 2 of the kernel's control
//! groups, whichever is mounted.

use std::{fs, io, path::PathBuf};

/// The group; the process leaves it and the group goes when this is dropped.
pub(crate) struct MemoryCgroup {
    path: PathBuf,
    parent: PathBuf,
}

impl MemoryCgroup {
    /// Moves this process into a new group with a limit.
    ///
    /// # Errors
    /// No control group for memory is mounted, or this is not root.
    pub(crate) fn enter(bytes: u64) -> io::Result<Self> {
        let first = PathBuf::from("/sys/fs/cgroup/memory");
        let (parent, limit) = if first.is_dir() {
            (first, "memory.limit_in_bytes")
        } else {
            (PathBuf::from("/sys/fs/cgroup"), "memory.max")
        };
        let path = parent.join(format!("store-engines-{}", std::process::id()));
        fs::create_dir(&path)?;
        let group = Self { path, parent };
        fs::write(group.path.join(limit), bytes.to_string())?;
        fs::write(group.path.join("cgroup.procs"), std::process::id().to_string())?;
        Ok(group)
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // Nothing to be done when it fails: an empty group stays behind.
        let _ = fs::write(self.parent.join("cgroup.procs"), std::process::id().to_string());
        let _ = fs::remove_dir(&self.path);
    }
}
