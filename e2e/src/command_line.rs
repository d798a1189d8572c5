//! The `stateside` command line, run as a user would.

use std::{
    ffi::OsStr,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::node_process::{Site, binary};

/// No command that a test runs takes longer.
const LIMIT: Duration = Duration::from_secs(120);

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; None when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Standard output when the command succeeded.
    ///
    /// # Panics
    /// When it did not.
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        &self.stdout
    }

    /// Standard output as JSON, when the command succeeded.
    ///
    /// # Panics
    /// When it did not, or printed something else.
    pub fn json(&self) -> Value {
        let text = self.ok();
        serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// Asserts that a node refused with this reason: exit code 5, and with `-o json` the reason.
    ///
    /// # Panics
    /// When it did not.
    pub fn refused(&self, reason: &str) {
        assert_eq!(self.code, Some(5), "{self:?}");
        let error =
            self.stderr.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
        let actual = error.as_ref().and_then(|error| error["error"]["reason"].as_str());
        assert_eq!(actual, Some(reason), "{self:?}");
    }

    /// Asserts that the command failed with this code and one clear message: something on
    /// standard error, no panic, no backtrace.
    ///
    /// # Panics
    /// When it did not.
    pub fn failed_with(&self, code: i32, mentions: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.failed_clearly(mentions);
    }

    /// Asserts that the command failed, with a message that holds all of `mentions`.
    ///
    /// # Panics
    /// When it did not.
    pub fn failed_clearly(&self, mentions: &[&str]) {
        assert!(self.code.is_some_and(|code| code != 0 && code != 101), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        for mention in mentions {
            assert!(self.stderr.contains(mention), "no word of `{mention}`: {self:?}");
        }
    }
}

/// Runs `stateside` with the clients' endpoints aimed at `site`.
///
/// # Panics
/// When the binary does not start.
pub fn stateside<S: AsRef<OsStr>>(site: &Site, arguments: impl IntoIterator<Item = S>) -> Ran {
    let mut command = Command::new(binary());
    command
        .args(arguments)
        .env("STATESIDE_ENDPOINT", site.data_address())
        .env("STATESIDE_CONTROL_ENDPOINT", site.control_address())
        .current_dir(site.folder());
    run(&mut command)
}

/// Runs a command to its end.
///
/// # Panics
/// When it does not start, or runs for too long.
pub fn run(command: &mut Command) -> Ran {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let begun = Instant::now();
    let pid = child.id();
    let (sender, receiver) = std::sync::mpsc::channel();
    // Reads both pipes on a thread of its own, so that the limit holds whatever the child does.
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(LIMIT) {
        Ok(output) => ran(output.expect("a child can be waited for")),
        Err(_) => {
            // SAFETY: kill takes two numbers; the child was not reaped, its thread waits for it.
            unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
            panic!("{command:?} still runs after {:?}", begun.elapsed());
        }
    }
}

fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
