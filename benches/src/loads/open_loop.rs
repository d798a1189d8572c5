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

use super::{Latency, Load, Run};
use crate::process::{LOAD_CPU, SERVER_CPU, pinned};

/// One request at one address.
pub struct OpenLoop {
    protocol: &'static str,
    address: String,
    request: PathBuf,
    path: String,
    connections: u32,
    /// Calls due a second.
    pub calls_per_s: f64,
}

impl OpenLoop {
    /// A unary gRPC call. A folder has one of them.
    ///
    /// # Errors
    /// The request cannot be written there.
    pub fn grpc(
        folder: &Path,
        address: &str,
        method: &str,
        request: &impl Message,
        connections: u32,
    ) -> Result<Self, String> {
        let bytes = framed(false, &request.encode_to_vec());
        Self::new(folder, "http2", address, &bytes, format!("/{method}"), connections)
    }

    /// A command of Redis. A folder has one of them.
    ///
    /// # Errors
    /// The command cannot be written there.
    pub fn redis(
        folder: &Path,
        address: &str,
        words: &[&str],
        connections: u32,
    ) -> Result<Self, String> {
        let mut bytes = format!("*{}\r\n", words.len());
        for word in words {
            bytes.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        Self::new(folder, "resp", address, bytes.as_bytes(), String::new(), connections)
    }

    fn new(
        folder: &Path,
        protocol: &'static str,
        address: &str,
        bytes: &[u8],
        path: String,
        connections: u32,
    ) -> Result<Self, String> {
        let request = folder.join(format!("open-loop-{protocol}.request"));
        fs::write(&request, bytes)
            .map_err(|error| format!("cannot write {}: {error}", request.display()))?;
        let address = address.to_owned();
        Ok(Self { protocol, address, request, path, connections, calls_per_s: 0.0 })
    }
}

impl Load for OpenLoop {
    fn describe(&self) -> String {
        format!("open loop, {} connections", self.connections)
    }

    fn run(&self, seconds: u32) -> Result<Run, String> {
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

/// Watches both cores for so many seconds, with nothing else on them, and tells of the servers'. Both, because the
/// host of a virtual machine takes more from one that works on all of its cores, as under a load.
///
/// # Errors
/// The program did not run.
pub fn pauses(seconds: u32) -> Result<Pauses, String> {
    let watch = |cpu| {
        run(cpu, |command| {
            command.args(["pauses", &seconds.to_string()]);
        })
    };
    let text = std::thread::scope(|scope| {
        let other = scope.spawn(|| watch(LOAD_CPU));
        let text = watch(SERVER_CPU);
        other.join().map_err(|_| "watching a core panicked".to_owned())??;
        text
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

fn parse(text: &str) -> Option<Run> {
    let time = |name| after(text, name)?.parse().ok();
    let latency = Latency { p50_us: time("p50")?, p99_us: time("p99")?, p999_us: time("p999")? };
    let (calls, seconds) = (after(text, "calls")?.parse().ok()?, time("seconds")?);
    Some(Run { calls, seconds, latency: Some(latency) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_prints_is_read() {
        let run = parse("calls 1000 seconds 2.5 p50 40.5 p99 90.0 p999 300.1\n").unwrap();
        let latency = Latency { p50_us: 40.5, p99_us: 90.0, p999_us: 300.1 };
        assert_eq!((run.calls, run.seconds, run.latency), (1_000, 2.5, Some(latency)));
        assert!(parse("calls many").is_none());
    }
}
