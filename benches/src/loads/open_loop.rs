//! An open loop: calls come at their own rate, whether or not earlier ones were answered, and the
//! time of each counts from when it was due. For servers of two protocols, so that both can be asked the same.
//!
//! The program `open-loop` makes the calls, on the load's core.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use prost::Message;
use stateside_e2e::{raw_http2::framed, requirements::profile_folder};

use super::Latency;
use crate::process::{LOAD_CPU, SERVER_CPU, pinned};

/// One request at one address.
pub struct OpenLoop {
    protocol: &'static str,
    address: String,
    request: PathBuf,
    path: String,
    connections: usize,
    /// Calls due a second.
    pub calls_per_s: f64,
}

impl OpenLoop {
    /// A unary gRPC call; `name` is that of no other call in `folder`.
    ///
    /// # Errors
    /// The request cannot be written there.
    pub fn grpc(
        folder: &Path,
        name: &str,
        address: &str,
        method: &str,
        request: &impl Message,
        connections: usize,
    ) -> Result<Self, String> {
        let bytes = framed(false, &request.encode_to_vec());
        Self::new(folder, name, "http2", address, &bytes, format!("/{method}"), connections)
    }

    /// A command of Redis.
    ///
    /// # Errors
    /// The command cannot be written into `folder`.
    pub fn redis(
        folder: &Path,
        address: &str,
        words: &[&str],
        connections: usize,
    ) -> Result<Self, String> {
        let mut bytes = format!("*{}\r\n", words.len());
        for word in words {
            bytes.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        Self::new(folder, words[0], "resp", address, bytes.as_bytes(), String::new(), connections)
    }

    fn new(
        folder: &Path,
        name: &str,
        protocol: &'static str,
        address: &str,
        bytes: &[u8],
        path: String,
        connections: usize,
    ) -> Result<Self, String> {
        let request = folder.join(format!("open-loop-{name}.request"));
        fs::write(&request, bytes)
            .map_err(|error| format!("cannot write {}: {error}", request.display()))?;
        let address = address.to_owned();
        Ok(Self { protocol, address, request, path, connections, calls_per_s: 0.0 })
    }
}

impl OpenLoop {
    /// Times of the calls of so many seconds, and by how much 1 of 100 was sent late, microseconds.
    ///
    /// # Errors
    /// The program did not run, or a call failed.
    pub fn measure(&self, seconds: u32) -> Result<(Latency, f64), String> {
        let text = run(LOAD_CPU, |command| {
            command
                .args([self.protocol, &self.address])
                .arg(self.calls_per_s.to_string())
                .arg(seconds.to_string())
                .arg(self.connections.to_string())
                .arg(&self.request)
                .arg(&self.path);
        })?;
        parse(&text).ok_or_else(|| format!("cannot make sense of open-loop's output: {text}"))
    }
}

/// What a core loses to whatever is no server and no load: other processes, the host of a virtual machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pauses {
    /// Of the time, in pauses that a call would notice.
    pub share: f64,
    /// Microseconds.
    pub longest_us: f64,
}

/// Watches the servers' core for so many seconds, with nothing else on it.
///
/// # Errors
/// The program did not run.
pub fn pauses(seconds: u32) -> Result<Pauses, String> {
    let text = run(SERVER_CPU, |command| {
        command.args(["pauses", &seconds.to_string()]);
    })?;
    let time = |name| after(&text, name)?.parse().ok();
    let pauses = time("share").zip(time("longest"));
    let pauses = pauses.map(|(share, longest_us)| Pauses { share, longest_us });
    pauses.ok_or_else(|| format!("cannot make sense of open-loop's output: {text}"))
}

fn run(cpu: &str, arguments: impl FnOnce(&mut Command)) -> Result<String, String> {
    let mut command = pinned(cpu, profile_folder().join("open-loop"));
    arguments(&mut command);
    let output =
        command.output().map_err(|error| format!("taskset or open-loop did not start: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn after<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut words = text.split_whitespace().skip_while(|word| *word != name);
    words.nth(1)
}

/// Times of the calls, and how late 1 of 100 was sent, microseconds.
fn parse(text: &str) -> Option<(Latency, f64)> {
    let time = |name| after(text, name)?.parse().ok();
    let latency = Latency { p50_us: time("p50")?, p99_us: time("p99")?, p999_us: time("p999")? };
    Some((latency, time("late99")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_prints_is_read() {
        let text = "calls 1000 p50 40.5 p99 90.0 p999 300.1 late99 5.0\n";
        let latency = Latency { p50_us: 40.5, p99_us: 90.0, p999_us: 300.1 };
        assert_eq!(parse(text), Some((latency, 5.0)));
        assert!(parse("calls many").is_none());
    }
}
