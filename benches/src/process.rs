//! Processes under measurement: started on a core of their own, and what the kernel says that
//! they used. The server has one core and the load another, so that neither's work is charged to
//! the other, and so that "one core" means one core for every system compared.

use std::{
    fs,
    io::{self, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The core of the server.
pub const SERVER_CPU: &str = "0";
/// The core of the load.
pub const LOAD_CPU: &str = "1";
/// How long a server may take until it listens.
const LISTEN_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two attempts to connect.
const LISTEN_PAUSE: Duration = Duration::from_millis(5);
/// Of the output of a server that did not start.
const OUTPUT_LINES_SHOWN: usize = 10;

/// A command that runs on these cores (`0`, `0,1`).
pub fn pinned(cpus: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cpus]).arg(program).stdin(Stdio::null());
    command
}

/// A server process on the server's core. Killed when dropped.
pub struct ServerProcess {
    child: Child,
    output: PathBuf,
}

impl ServerProcess {
    /// Starts `command`, its output in `output`, and waits until something listens at `address`.
    ///
    /// # Errors
    /// It did not start, ended, or does not listen; with the end of its output.
    pub fn start(command: &mut Command, address: &str, output: &Path) -> Result<Self, String> {
        let name = format!("{:?}", command.get_args().nth(2).unwrap_or_default());
        let said = |error: io::Error| format!("{name} did not start: {error}");
        let file = fs::File::create(output).map_err(said)?;
        let errors = file.try_clone().map_err(said)?;
        let child = command.stdout(file).stderr(errors).spawn().map_err(said)?;
        let mut server = Self { child, output: output.to_owned() };
        let deadline = Instant::now() + LISTEN_LIMIT;
        while TcpStream::connect(address).is_err() {
            if let Ok(Some(status)) = server.child.try_wait() {
                return Err(format!("{name} ended with {status}: {}", server.last_output()));
            }
            if Instant::now() >= deadline {
                return Err(format!("{name} does not listen: {}", server.last_output()));
            }
            std::thread::sleep(LISTEN_PAUSE);
        }
        Ok(server)
    }

    /// Its process id; `taskset` became the server by exec, so it is the server's own.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn last_output(&self) -> String {
        let text = fs::read_to_string(&self.output).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(OUTPUT_LINES_SHOWN)..].join("\n")
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// User and system time that a process has used, seconds.
///
/// # Errors
/// The process is gone.
pub fn cpu_seconds(pid: u32) -> Result<f64, String> {
    let stat = read(pid, "stat")?;
    let [own, _] = ticks(&stat).ok_or_else(|| format!("/proc/{pid}/stat: not as in proc(5)"))?;
    Ok(own as f64 / TICKS_PER_SECOND)
}

/// User and system time that this process's children had used when they ended, seconds: that of the
/// loads. A server that ends counts too, from then on.
///
/// # Errors
/// There is no `/proc`.
pub fn ended_children_cpu_seconds() -> Result<f64, String> {
    let stat = read(std::process::id(), "stat")?;
    let [_, ended] = ticks(&stat).ok_or("/proc/self/stat: not as in proc(5)")?;
    Ok(ended as f64 / TICKS_PER_SECOND)
}

/// Memory of a process as the kernel counts it, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// In RAM now (`VmRSS`).
    pub resident: u64,
    /// The most that ever was, or since [`forget_peak`] (`VmHWM`).
    pub peak: u64,
}

/// What is in RAM, and what was at most.
///
/// # Errors
/// The process is gone.
pub fn memory(pid: u32) -> Result<Memory, String> {
    let status = read(pid, "status")?;
    let bytes = |name: &str| {
        status_kib(&status, name)
            .map(|kib| kib * 1024)
            .ok_or_else(|| format!("/proc/{pid}/status has no {name}"))
    };
    Ok(Memory { resident: bytes("VmRSS")?, peak: bytes("VmHWM")? })
}

/// Lets the peak begin anew at what is resident now.
///
/// # Errors
/// Not permitted, or the process is gone.
pub fn forget_peak(pid: u32) -> Result<(), String> {
    // 5 is "reset the peak", see proc(5) on clear_refs.
    fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/{pid}/clear_refs"))
        .and_then(|mut file| file.write_all(b"5"))
        .map_err(|error| format!("/proc/{pid}/clear_refs: {error}"))
}

/// Bytes that a process had the kernel write to disks.
///
/// # Errors
/// Not permitted, or the process is gone.
pub fn disk_bytes_written(pid: u32) -> Result<u64, String> {
    let io = read(pid, "io")?;
    io.lines()
        .find_map(|line| line.strip_prefix("write_bytes: ")?.trim().parse().ok())
        .ok_or_else(|| format!("/proc/{pid}/io has no write_bytes"))
}

fn read(pid: u32, file: &str) -> Result<String, String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).map_err(|error| format!("the server is gone? {path}: {error}"))
}

/// `USER_HZ`, which is 100 on every Linux that a program sees.
const TICKS_PER_SECOND: f64 = 100.0;

/// Fields 14 and 15, the process's own, and 16 and 17, those of children that have ended. The second
/// field is a name in parentheses that may hold blanks.
fn ticks(stat: &str) -> Option<[u64; 2]> {
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some([next()? + next()?, next()? + next()?])
}

fn status_kib(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_may_hold_blanks_and_parentheses() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 40 2 5 1 0";
        assert_eq!(ticks(stat), Some([42, 6]));
    }

    #[test]
    fn memory_is_read_by_its_whole_name() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nRssAnon: 7 kB\n";
        assert_eq!(
            (status_kib(status, "VmRSS"), status_kib(status, "VmHWM")),
            (Some(1024), Some(2048))
        );
        assert_eq!(status_kib(status, "Vm"), None);
    }

    #[test]
    fn this_process_has_used_something() {
        let own = std::process::id();
        let used = memory(own).unwrap();
        assert!(used.resident > 0 && used.peak >= used.resident);
        assert!(cpu_seconds(own).is_ok() && disk_bytes_written(own).is_ok());
    }

    #[test]
    fn a_child_that_has_ended_is_counted() {
        let before = ended_children_cpu_seconds().unwrap();
        let loops = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        assert!(Command::new("sh").args(["-c", loops]).status().unwrap().success());
        assert!(ended_children_cpu_seconds().unwrap() > before);
    }
}
