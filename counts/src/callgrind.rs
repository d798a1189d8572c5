//! Runs this program under valgrind's callgrind and reads what it counted.
//!
//! Instructions, not time: the same program and calls give the same number on a busy machine, so
//! a bound can be tight. What the number does not know is cache misses, and the kernel's part.

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::Path,
    process::{Command, Stdio},
};

use crate::exchanges::Operation;

/// The function that counting is limited to, as valgrind's patterns have it. What goes before, and
/// what other threads do meanwhile, is not counted: the thread that makes the log's segments
/// begins another one, or not, as it pleases.
const COUNTED: &str = "*Exchanges::counted_turns*";

/// Why there is no count.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallgrindError {
    /// valgrind, or a file.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The run failed: its output.
    #[error("under valgrind the calls failed:\n{0}")]
    Failed(String),
    /// Its file holds no sum.
    #[error("callgrind's file has no line `totals:`")]
    NoTotals,
}

fn io(what: &'static str) -> impl FnOnce(io::Error) -> CallgrindError {
    move |source| CallgrindError::Io { what, source }
}

/// Instructions of `calls` calls.
pub(crate) fn instructions(operation: Operation, calls: u64) -> Result<u64, CallgrindError> {
    let directory = tempfile::tempdir().map_err(io("a temporary directory"))?;
    let file = directory.path().join("callgrind.out");
    profile(operation, calls, &file)?;
    let text = fs::read_to_string(&file).map_err(io("callgrind's file"))?;
    totals(&text).ok_or(CallgrindError::NoTotals)
}

/// Writes where the instructions of `calls` calls went to `file`.
pub(crate) fn profile(operation: Operation, calls: u64, file: &Path) -> Result<(), CallgrindError> {
    let program = env::current_exe().map_err(io("this program's file"))?;
    let mut out_file = OsString::from("--callgrind-out-file=");
    out_file.push(file);
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", "--collect-atstart=no"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(out_file)
        .arg(program)
        .args(["run", operation.name, &calls.to_string()])
        .stdin(Stdio::null())
        .output()
        .map_err(io("valgrind did not start (Debian: valgrind)"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(CallgrindError::Failed(String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn totals(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("totals: "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_found_in_callgrinds_file() {
        assert_eq!(totals("events: Ir\nfn=(1)\n1 2\n\ntotals: 123456\n"), Some(123_456));
        assert_eq!(totals("events: Ir\n"), None);
    }
}
