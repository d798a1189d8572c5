//! Which CPUs the process may use, and which core gets which.
//!
//! The affinity mask of the process decides, not the number of CPUs of the machine: in a
//! container or under `taskset` the two differ, and pinning outside the mask fails.

use std::{collections::HashSet, io};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// CPUs that the calling thread may run on, ascending. Ask before any pinning: a pinned thread
/// sees its own CPU only, and so do the threads it makes.
pub fn cpus_allowed() -> io::Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect())
}

/// Gives each of `cores` a CPU of its own; hardware threads that share a physical core come last.
/// When there are more cores than CPUs, none is pinned (the scheduler shares them out better than
/// a fixed doubling-up would) and a warning says so.
pub fn place_cores(cores: usize) -> io::Result<Vec<Option<usize>>> {
    let allowed = cpus_allowed()?;
    if cores > allowed.len() {
        tracing::warn!(
            cores,
            cpus = allowed.len(),
            "more cores asked for than CPUs this process may use: cores are not pinned"
        );
    }
    let with_siblings: Vec<_> = allowed.iter().map(|&cpu| (cpu, first_sibling(cpu))).collect();
    Ok(place(cores, &with_siblings))
}

/// The first hardware thread of the physical core that `cpu` belongs to; `cpu` itself where the
/// system does not tell (containers may hide it).
fn first_sibling(cpu: usize) -> usize {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    let list = std::fs::read_to_string(path).unwrap_or_default();
    // "0,4" or "0-1"
    list.split([',', '-']).next().and_then(|first| first.trim().parse().ok()).unwrap_or(cpu)
}

/// The decision of [`place_cores`]: `allowed` holds each CPU with the name of its physical core.
fn place(cores: usize, allowed: &[(usize, usize)]) -> Vec<Option<usize>> {
    if cores > allowed.len() {
        return vec![None; cores];
    }
    let mut seen = HashSet::new();
    let (mut order, siblings): (Vec<_>, Vec<_>) =
        allowed.iter().partition(|(_, physical)| seen.insert(*physical));
    order.extend(siblings);
    order.into_iter().take(cores).map(|(cpu, _)| Some(cpu)).collect()
}

/// Binds the calling thread to `cpus`.
pub(super) fn bind_thread(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu);
    }
    Ok(sched_setaffinity(None, &set)?)
}

/// How much less it weighs than the cores, as for `nice`.
const BACKGROUND_NICE: i32 = 5;
/// Longest time on a CPU that a core waits for, nanoseconds: the least that Linux grants.
const BACKGROUND_SLICE_NS: u64 = 100_000;

/// Has the calling thread give way to cores that share a CPU with it: without, each of its turns on
/// the CPU would hold up their requests for milliseconds. The slice takes Linux 6.12; older ones
/// ignore it.
pub fn run_in_background() {
    // The process may have been started with a lower weight itself.
    let nice = rustix::process::getpriority_process(None).unwrap_or(0) + BACKGROUND_NICE;
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: nice.min(19),
        sched_priority: 0,
        sched_runtime: BACKGROUND_SLICE_NS,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the structure outlives the call, which only reads as much of it as `size` says.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if done != 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "a thread in the background is scheduled like the cores");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_core_gets_a_cpu_of_its_own_or_none_does() {
        let alone: Vec<_> = [3, 5, 7].map(|cpu| (cpu, cpu)).into();
        assert_eq!(place(2, &alone), [Some(3), Some(5)]);
        assert_eq!(place(4, &alone), [None; 4]);
        assert_eq!(place(0, &alone), []);
    }

    #[test]
    fn physical_cores_come_before_their_second_threads() {
        let adjacent = [(0, 0), (1, 0), (2, 2), (3, 2)];
        assert_eq!(place(2, &adjacent), [Some(0), Some(2)]);
        assert_eq!(place(3, &adjacent), [Some(0), Some(2), Some(1)]);
        let apart = [(1, 1), (2, 2), (5, 1), (6, 2)];
        assert_eq!(place(3, &apart), [Some(1), Some(2), Some(5)]);
        assert_eq!(place(5, &apart), [None; 5]);
    }

    #[test]
    fn the_mask_of_the_process_is_read() {
        assert!(!cpus_allowed().unwrap().is_empty());
    }

    #[test]
    fn a_background_thread_weighs_less_than_a_core() {
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // Behind the name in parentheses, which is the second field; nice is the 19th.
            let (_, rest) = stat.rsplit_once(')').unwrap();
            rest.split_whitespace().nth(16).unwrap().parse::<i32>().unwrap()
        };
        let before = nice();
        let in_background = std::thread::spawn(move || {
            run_in_background();
            nice()
        });
        assert_eq!(in_background.join().unwrap(), (before + BACKGROUND_NICE).min(19));
        assert_eq!(nice(), before, "only the thread that asks");
    }
}
