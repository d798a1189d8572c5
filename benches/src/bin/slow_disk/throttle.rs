//! A disk that the kernel makes slow for one process, and a limit on that process's memory.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

const ROOT: &str = "/sys/fs/cgroup";

/// An ext4 file system in a file, mounted; unmounted when dropped.
pub(crate) struct SlowDisk {
    device: String,
    mounted_at: PathBuf,
}

impl SlowDisk {
    /// Makes and mounts it below a folder. Its file is read past the page cache.
    pub(crate) fn mount(folder: &Path, bytes: u64) -> io::Result<Self> {
        let (image, mounted_at) = (folder.join("disk.image"), folder.join("disk"));
        fs::create_dir(&mounted_at)?;
        fs::File::create(&image)?.set_len(bytes)?;
        let losetup = ["--find", "--show", "--direct-io=on"];
        let device = succeed(Command::new("losetup").args(losetup).arg(&image))?.trim().to_owned();
        let disk = Self { device, mounted_at };
        succeed(Command::new("mkfs.ext4").args(["-q", &disk.device]))?;
        succeed(Command::new("mount").arg(&disk.device).arg(&disk.mounted_at))?;
        Ok(disk)
    }

    pub(crate) fn mounted_at(&self) -> &Path {
        &self.mounted_at
    }

    /// `major:minor`, as control groups name it.
    fn number(&self) -> io::Result<String> {
        let format = ["--format", "%Hr:%Lr"];
        Ok(succeed(Command::new("stat").args(format).arg(&self.device))?.trim().to_owned())
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // The node may be on its way out still.
        let _ = Command::new("umount").arg("--lazy").arg(&self.mounted_at).output();
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).output();
    }
}

/// Control groups for memory and for disks: one of version 2, or two of version 1.
pub(crate) struct Groups {
    memory: PathBuf,
    disks: PathBuf,
}

impl Groups {
    /// Makes them, with a limit on memory and page cache.
    pub(crate) fn make(memory_bytes: u64) -> io::Result<Self> {
        let name = format!("slow-disk-{}", std::process::id());
        let in_version_1 = |controller| Path::new(ROOT).join(controller).join(&name);
        let groups = if Path::new(ROOT).join("cgroup.controllers").exists() {
            let group = Path::new(ROOT).join(&name);
            Self { memory: group.clone(), disks: group }
        } else {
            Self { memory: in_version_1("memory"), disks: in_version_1("blkio") }
        };
        fs::create_dir_all(&groups.memory)?;
        fs::create_dir_all(&groups.disks)?;
        let limit = if groups.is_version_2() { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(groups.memory.join(limit), memory_bytes.to_string())?;
        Ok(groups)
    }

    /// Moves a process into them, all its threads.
    pub(crate) fn take_in(&self, pid: u32) -> io::Result<()> {
        fs::write(self.memory.join("cgroup.procs"), pid.to_string())?;
        fs::write(self.disks.join("cgroup.procs"), pid.to_string())
    }

    /// Makes a disk slow for who is in them.
    pub(crate) fn throttle(&self, disk: &SlowDisk, iops: u64, bytes: u64) -> io::Result<()> {
        let device = disk.number()?;
        if self.is_version_2() {
            let line = format!("{device} riops={iops} wiops={iops} rbps={bytes} wbps={bytes}");
            return fs::write(self.disks.join("io.max"), line);
        }
        for (what, limit) in [("iops", iops), ("bps", bytes)] {
            for direction in ["read", "write"] {
                let file = format!("blkio.throttle.{direction}_{what}_device");
                fs::write(self.disks.join(file), format!("{device} {limit}"))?;
            }
        }
        Ok(())
    }

    fn is_version_2(&self) -> bool {
        self.memory == self.disks
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        // Nothing to be done when it fails: an empty group stays behind.
        let _ = fs::remove_dir(&self.memory);
        let _ = fs::remove_dir(&self.disks);
    }
}

/// What a command printed.
pub(crate) fn succeed(command: &mut Command) -> io::Result<String> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{command:?}: {}: {errors}", output.status)))
}
