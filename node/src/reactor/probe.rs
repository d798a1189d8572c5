//! Whether this machine lets a core run: asked once at start, so that a missing or forbidden
//! io_uring is one clear sentence instead of a panic on a core.
//!
//! The probe makes a small ring with the very flags that cores use and registers what they
//! register, rather than comparing kernel versions: distributions backport, sandboxes forbid.

use std::io;

use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use super::{error::ReactorError, ring};

/// What one core takes: 240 KiB for glommio, 205 KiB for our ring, where the kernel counts them
/// (recent ones do, for unprivileged users). Also the limit below which glommio refuses to start.
const MEMLOCK_CORE_KIB: u64 = 512;

/// Checks that a core can run here.
///
/// # Errors
/// [`ReactorError::UringMissing`], [`UringForbidden`](ReactorError::UringForbidden),
/// [`KernelTooOld`](ReactorError::KernelTooOld), [`MemlockTooLow`](ReactorError::MemlockTooLow).
pub fn probe() -> Result<(), ReactorError> {
    // First: a low limit would show as a failure of one of the others.
    check_memlock()?;
    ring::probe_ring()
}

/// Checks the limit on locked memory against the needs of one core. That of all cores cannot be
/// foreseen: it depends on the kernel and on the user's other processes.
pub(super) fn check_memlock() -> Result<(), ReactorError> {
    judge_memlock(memlock_limit_kib())
}

/// Raises the soft limits on locked memory and open files to the hard ones. What cannot be
/// raised stays; whether it suffices is [`probe`]'s question (memory) and each connection's (files).
pub fn raise_limits() {
    for resource in [Resource::Memlock, Resource::Nofile] {
        let limit = getrlimit(resource);
        if limit.current != limit.maximum {
            let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
            if let Err(errno) = setrlimit(resource, raised) {
                tracing::debug!(?resource, %errno, "the limit stays as it is");
            }
        }
    }
}

/// The soft limit on locked memory, KiB; None is unlimited.
fn memlock_limit_kib() -> Option<u64> {
    getrlimit(Resource::Memlock).current.map(|bytes| bytes >> 10)
}

fn judge_memlock(limit_kib: Option<u64>) -> Result<(), ReactorError> {
    match limit_kib {
        Some(limit_kib) if limit_kib < MEMLOCK_CORE_KIB => {
            Err(ReactorError::MemlockTooLow { limit_kib, core_kib: MEMLOCK_CORE_KIB })
        }
        _ => Ok(()),
    }
}

/// Turns a failure to make a ring into its reason.
pub(super) fn explain_setup(error: io::Error) -> ReactorError {
    explain(error, read_disabled(), memlock_limit_kib())
}

/// `kernel.io_uring_disabled`; None where the kernel has no such switch (before 6.6).
fn read_disabled() -> Option<u8> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

fn explain(error: io::Error, disabled: Option<u8>, memlock_kib: Option<u64>) -> ReactorError {
    match Errno::from_io_error(&error) {
        Some(Errno::NOSYS) => ReactorError::UringMissing,
        Some(Errno::PERM | Errno::ACCESS) => ReactorError::UringForbidden {
            by: match disabled {
                Some(2) => "the sysctl kernel.io_uring_disabled is 2; set it to 0".into(),
                Some(1) => "the sysctl kernel.io_uring_disabled is 1; set it to 0, or add this \
                            user to the group in kernel.io_uring_group"
                    .into(),
                _ => "a seccomp filter or security module blocks it (containers often do); allow \
                      io_uring_setup, io_uring_enter and io_uring_register"
                    .into(),
            },
        },
        Some(Errno::INVAL) => ReactorError::KernelTooOld { missing: "IORING_SETUP_DEFER_TASKRUN" },
        Some(Errno::NOMEM) => match memlock_kib {
            Some(limit_kib) => {
                ReactorError::MemlockTooLow { limit_kib, core_kib: MEMLOCK_CORE_KIB }
            }
            None => ReactorError::Io { what: "making an io_uring", source: error },
        },
        _ => ReactorError::Io { what: "making an io_uring", source: error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(errno: Errno, disabled: Option<u8>) -> String {
        explain(errno.into(), disabled, Some(8 << 10)).to_string()
    }

    #[test]
    fn this_machine_passes() {
        probe().unwrap();
    }

    #[test]
    fn each_refusal_is_told_apart() {
        assert!(explained(Errno::NOSYS, None).contains("no io_uring"));
        assert!(explained(Errno::PERM, Some(2)).contains("kernel.io_uring_disabled is 2"));
        assert!(explained(Errno::PERM, Some(1)).contains("kernel.io_uring_group"));
        assert!(explained(Errno::PERM, Some(0)).contains("seccomp"));
        assert!(explained(Errno::PERM, None).contains("seccomp"));
        assert!(explained(Errno::INVAL, None).contains("too old"));
        assert!(explained(Errno::NOMEM, None).contains("locked memory"));
        assert!(explained(Errno::MFILE, None).contains("making an io_uring"));
    }

    #[test]
    fn a_container_default_of_64_kib_is_refused_and_unlimited_is_not() {
        let error = judge_memlock(Some(64)).unwrap_err().to_string();
        assert!(error.contains("64 KiB") && error.contains("LimitMEMLOCK"), "{error}");
        judge_memlock(Some(8 << 10)).unwrap();
        judge_memlock(None).unwrap();
    }

    /// A real filter, on a thread of its own: what a container runtime does.
    #[test]
    fn a_seccomp_filter_is_recognised() {
        for (errno, part) in [(libc::EPERM, "forbidden"), (libc::ENOSYS, "no io_uring")] {
            let error = std::thread::spawn(move || {
                refuse_io_uring(errno);
                probe().unwrap_err()
            });
            let text = error.join().unwrap().to_string();
            assert!(text.contains(part), "{text}");
        }
    }

    /// Makes `io_uring_setup` fail with `errno` on this thread.
    fn refuse_io_uring(errno: i32) {
        let step =
            |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
        let mut filter = [
            // The number of the system call is the first field of seccomp_data.
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            step(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                libc::SYS_io_uring_setup as u32,
                0,
                1,
            ),
            step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32, 0, 0),
            step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: both calls only set attributes of this thread; `program` and the filter it
        // points to live until the kernel has copied them, which it does before it returns.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            let set = libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program);
            assert_eq!(set, 0, "{}", io::Error::last_os_error());
        }
    }
}
