//! Which CPUs the process may use, and which core gets which.
//!
//! The affinity mask of the process decides, not the number of CPUs of the machine: in a
//! container or under `taskset` the two differ, and pinning outside the mask fails.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// CPUs that the calling thread may run on, ascending. Ask before any pinning: a pinned thread
/// sees its own CPU only, and so do the threads it makes.
pub fn cpus_allowed() -> io::Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect())
}

/// Gives each of `cores` a CPU of its own. When there are more cores than CPUs, none is pinned
/// (the scheduler shares them out better than a fixed doubling-up would) and a warning says so.
pub fn place_cores(cores: usize) -> io::Result<Vec<Option<usize>>> {
    let allowed = cpus_allowed()?;
    if cores > allowed.len() {
        tracing::warn!(
            cores,
            cpus = allowed.len(),
            "more cores asked for than CPUs this process may use: cores are not pinned"
        );
    }
    Ok(place(cores, &allowed))
}

/// The decision of [`place_cores`].
fn place(cores: usize, allowed: &[usize]) -> Vec<Option<usize>> {
    if cores > allowed.len() {
        return vec![None; cores];
    }
    allowed.iter().take(cores).copied().map(Some).collect()
}

/// Binds the calling thread to `cpus`.
pub(super) fn bind_thread(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu);
    }
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_core_gets_a_cpu_of_its_own_or_none_does() {
        assert_eq!(place(2, &[3, 5, 7]), [Some(3), Some(5)]);
        assert_eq!(place(1, &[0]), [Some(0)]);
        assert_eq!(place(3, &[0, 1]), [None, None, None]);
        assert_eq!(place(0, &[0]), []);
    }

    #[test]
    fn the_mask_of_the_process_is_read() {
        assert!(!cpus_allowed().unwrap().is_empty());
    }
}
