//! What the process uses, as `/proc` tells it.

use std::fs;

/// Memory, CPU time and descriptors of this process. Zero where the system does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessUsage {
    /// Resident memory.
    pub resident_bytes: u64,
    /// Virtual memory.
    pub virtual_bytes: u64,
    /// User and system time.
    pub cpu_seconds: f64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// Most that may be open.
    pub max_fds: u64,
    /// Threads.
    pub threads: u64,
    /// When it started, seconds since 1970.
    pub start_seconds: f64,
}

impl ProcessUsage {
    /// Reads `/proc/self`.
    pub fn read() -> Self {
        let mut usage = Self {
            open_fds: fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64),
            max_fds: max_fds().unwrap_or(0),
            ..Self::default()
        };
        let ticks_per_second = system_value(libc::_SC_CLK_TCK) as f64;
        let page_bytes = system_value(libc::_SC_PAGESIZE);
        if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
            // The second field is the program's name in parentheses and may hold blanks; count
            // from behind it. Fields and units: proc_pid_stat(5).
            let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
            let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
            let field = |number: usize| -> u64 {
                fields.get(number - 3).and_then(|text| text.parse().ok()).unwrap_or(0)
            };
            usage.cpu_seconds = (field(14) + field(15)) as f64 / ticks_per_second;
            usage.threads = field(20);
            usage.virtual_bytes = field(23);
            usage.resident_bytes = field(24) * page_bytes;
            usage.start_seconds = boot_seconds() + field(22) as f64 / ticks_per_second;
        }
        usage
    }
}

fn boot_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|seconds| seconds.trim().parse().ok()).unwrap_or(0.0)
}

fn max_fds() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn system_value(name: libc::c_int) -> u64 {
    // SAFETY: sysconf takes any name and touches no memory of ours.
    let value = unsafe { libc::sysconf(name) };
    u64::try_from(value).ok().filter(|value| *value > 0).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_process_uses_something_of_everything() {
        let usage = ProcessUsage::read();
        assert!(usage.resident_bytes > 100_000 && usage.virtual_bytes >= usage.resident_bytes);
        assert!(usage.open_fds > 2 && usage.max_fds >= usage.open_fds);
        assert!(usage.threads >= 1);
        assert!(usage.start_seconds > 1.6e9);
    }
}
