//! One run of h2load: gRPC calls with one body, again and again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use prost::Message;
use stateside_e2e::raw_http2::framed;

use crate::process::LOAD_CPU;

/// How many connections, and how many calls are open on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Connections.
    pub connections: u32,
    /// Calls under way on each.
    pub streams: u32,
}

/// What a run showed.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Calls answered.
    pub calls: u64,
    /// How long it took, seconds.
    pub seconds: f64,
}

impl Run {
    /// Calls answered per second.
    pub fn calls_per_s(&self) -> f64 {
        self.calls as f64 / self.seconds
    }
}

/// A method and the request that is sent to it.
pub struct Load {
    /// `package.Service/Method`.
    pub method: &'static str,
    body: PathBuf,
}

impl Load {
    /// Writes the request into `folder`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(
        folder: &Path,
        name: &str,
        method: &'static str,
        request: &impl Message,
    ) -> Result<Self, String> {
        let body = folder.join(format!("{name}.body"));
        fs::write(&body, framed(false, &request.encode_to_vec()))
            .map_err(|error| format!("cannot write {}: {error}", body.display()))?;
        Ok(Self { method, body })
    }

    /// Calls for so many seconds. With `log`, the time of every call goes into that file.
    ///
    /// # Errors
    /// h2load did not run, or not every call was answered with HTTP 200.
    pub fn run(
        &self,
        address: &str,
        shape: Shape,
        seconds: u32,
        log: Option<&Path>,
    ) -> Result<Run, String> {
        let mut command = Command::new("taskset");
        command
            .args(["-c", LOAD_CPU, "h2load", "-t1"])
            .arg(format!("-c{}", shape.connections))
            .arg(format!("-m{}", shape.streams))
            .arg(format!("--duration={seconds}"))
            .arg("-d")
            .arg(&self.body)
            .args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
        if let Some(log) = log {
            command.arg(format!("--log-file={}", log.display()));
        }
        let output = command
            .arg(format!("http://{address}/{}", self.method))
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("taskset or h2load did not start: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            return Err(format!(
                "h2load failed: {text}{}",
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        parse(&text).ok_or_else(|| format!("cannot make sense of h2load's output:\n{text}"))?
    }
}

/// Times of all calls in a log file of h2load, microseconds.
///
/// # Errors
/// The file cannot be read.
pub fn call_times_us(log: &Path) -> Result<Vec<u64>, String> {
    let text = fs::read_to_string(log).map_err(|error| format!("{}: {error}", log.display()))?;
    Ok(text.lines().filter_map(|line| line.split('\t').nth(2)?.trim().parse().ok()).collect())
}

/// None: the text is not what h2load prints. An error: calls failed.
fn parse(text: &str) -> Option<Result<Run, String>> {
    let finished = text.lines().find_map(|line| line.strip_prefix("finished in "))?;
    let seconds = duration(finished.split(',').next()?)?;
    let requests = text.lines().find_map(|line| line.strip_prefix("requests: "))?;
    let count = |name: &str| -> Option<u64> {
        requests.split(", ").find_map(|part| part.strip_suffix(name)?.trim().parse().ok())
    };
    let (calls, failed) = (count("succeeded")?, count("failed")?);
    if failed > 0 || calls == 0 {
        return Some(Err(format!("calls failed: {requests}")));
    }
    Some(Ok(Run { calls, seconds }))
}

/// `5.00s`, `812.34ms`, `1m`.
fn duration(text: &str) -> Option<f64> {
    let digits = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.trim().parse().ok()?;
    match unit.trim() {
        "s" => Some(number),
        "ms" => Some(number / 1e3),
        "us" => Some(number / 1e6),
        "m" => Some(number * 60.0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "starting benchmark...\n\
        finished in 2.00s, 100.00 req/s, 3.1MB/s\n\
        requests: 210 total, 210 started, 205 done, 200 succeeded, 0 failed, 0 errored, 0 timeout\n";

    #[test]
    fn rates_are_read() {
        let run = parse(OUTPUT).unwrap().unwrap();
        assert_eq!((run.calls, run.calls_per_s()), (200, 100.0));
    }

    #[test]
    fn failed_calls_are_no_result() {
        assert!(parse(&OUTPUT.replace("0 failed", "3 failed")).unwrap().is_err());
        assert!(parse("h2load: cannot connect").is_none());
    }
}
