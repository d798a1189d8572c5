//! What the system says of the write cache of a directory's disk.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// Where the system describes block devices, by number.
const DEVICES: &str = "/sys/dev/block";

/// Whether the directory's disk has a write cache and cannot write through it (no FUA), so that each
/// durable write is a write and a flush. False where the system does not say, as for file systems
/// that lie on no device of their own.
pub(super) fn needs_flush(directory: &Path) -> bool {
    let Ok(metadata) = fs::metadata(directory) else { return false };
    device_needs_flush(Path::new(DEVICES), metadata.dev())
}

fn device_needs_flush(devices: &Path, device: u64) -> bool {
    let device =
        devices.join(format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device)));
    // A partition of a disk has no queue; its disk is the directory above.
    let queues = [device.join("queue"), device.join("../queue")];
    queues.iter().find_map(|queue| queue_needs_flush(queue)).unwrap_or(false)
}

fn queue_needs_flush(queue: &Path) -> Option<bool> {
    let attribute = |name| fs::read_to_string(queue.join(name)).ok();
    let cache = attribute("write_cache")?;
    let writes_through = attribute("fua")?;
    Some(cache.trim() == "write back" && writes_through.trim() == "0")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_disk_is_flushed_apart_when_it_has_a_cache_that_it_cannot_write_through() {
        for (cache, fua, expected) in [
            ("write back\n", "0\n", true),
            ("write back\n", "1\n", false),
            ("write through\n", "0\n", false),
        ] {
            let root = tempfile::tempdir().unwrap();
            let disk = root.path().join("disk");
            fs::create_dir_all(disk.join("queue")).unwrap();
            fs::create_dir_all(disk.join("partition")).unwrap();
            fs::write(disk.join("queue/write_cache"), cache).unwrap();
            fs::write(disk.join("queue/fua"), fua).unwrap();
            let devices = root.path().join("devices");
            fs::create_dir(&devices).unwrap();
            symlink(&disk, devices.join("8:0")).unwrap();
            symlink(disk.join("partition"), devices.join("8:1")).unwrap();
            for minor in [0, 1] {
                let device = rustix::fs::makedev(8, minor);
                assert_eq!(device_needs_flush(&devices, device), expected, "{cache} {fua} {minor}");
            }
            assert!(!device_needs_flush(&devices, rustix::fs::makedev(0, 40)), "no such device");
        }
    }

    #[test]
    fn a_directory_without_a_device_needs_no_flush_apart() {
        assert!(!needs_flush(Path::new("/proc")));
        assert!(!needs_flush(Path::new("/nowhere")));
    }
}
