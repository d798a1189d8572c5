//! h2load: gRPC calls with one body, again and again. It knows HTTP/2 and nothing of gRPC, so a
//! call that was refused in its trailers counts as answered; who uses it subtracts these.

use std::{
    fs,
    path::{Path, PathBuf},
};

use prost::Message;
use stateside_e2e::raw_http2::framed;

use super::{Latency, Load, Run};
use crate::process::{LOAD_CPU, pinned};

/// How many connections, and how many calls are open on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Connections.
    pub connections: u32,
    /// Calls under way on each.
    pub streams: u32,
}

/// A method and the request that is sent to it.
#[derive(Clone)]
pub struct Call {
    /// `package.Service/Method`.
    pub method: &'static str,
    body: PathBuf,
    /// For the log of times.
    folder: PathBuf,
    name: String,
}

impl Call {
    /// Writes the request into `folder`, under a name that no other call there has.
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
        Ok(Self { method, body, folder: folder.to_owned(), name: name.to_owned() })
    }

    /// The load that makes this call at `address`, as fast as it is answered.
    pub fn load(&self, address: &str, shape: Shape) -> H2load {
        H2load {
            call: self.clone(),
            address: address.to_owned(),
            shape,
            cpus: LOAD_CPU,
            calls_per_s: None,
        }
    }
}

/// h2load against one server.
pub struct H2load {
    call: Call,
    address: String,
    shape: Shape,
    /// The cores that it may run on.
    pub cpus: &'static str,
    /// Over all connections; None: as many as are answered.
    pub calls_per_s: Option<f64>,
}

impl H2load {
    /// Writes the time of every call into a file.
    fn timed(&self, seconds: u32) -> Result<Run, String> {
        let log = self.call.folder.join(format!("{}.times", self.call.name));
        // h2load appends.
        let _ = fs::remove_file(&log);
        let run = self.make(seconds, Some(&log))?;
        let mut times = call_times_us(&log)?;
        let _ = fs::remove_file(&log);
        Ok(Run { latency: Latency::of(&mut times), ..run })
    }

    fn make(&self, seconds: u32, log: Option<&Path>) -> Result<Run, String> {
        let mut command = pinned(self.cpus, "h2load");
        command
            .arg("-t1")
            .arg(format!("-c{}", self.shape.connections))
            .arg(format!("-m{}", self.shape.streams))
            .arg(format!("--duration={seconds}"))
            .arg("-d")
            .arg(&self.call.body)
            .args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
        if let Some(rate) = self.calls_per_s {
            command.arg(format!("--rps={:.1}", rate / f64::from(self.shape.connections)));
        }
        if let Some(log) = log {
            command.arg(format!("--log-file={}", log.display()));
        }
        let output = command
            .arg(format!("http://{}/{}", self.address, self.call.method))
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

impl Load for H2load {
    fn describe(&self) -> String {
        let Shape { connections, streams } = self.shape;
        let rate = self.calls_per_s.map_or(String::new(), |rate| format!(" at {rate:.0}/s"));
        format!("h2load {connections} x {streams}{rate}")
    }

    /// One call at a time leaves h2load idle enough to write every time down as it goes.
    fn run(&self, seconds: u32) -> Result<Run, String> {
        let one_at_a_time = self.shape == Shape { connections: 1, streams: 1 };
        if one_at_a_time { self.timed(seconds) } else { self.make(seconds, None) }
    }

    fn latency(&self, seconds: u32) -> Result<Option<Latency>, String> {
        Ok(self.timed(seconds)?.latency)
    }
}

/// Times of all calls in a log file of h2load, microseconds.
fn call_times_us(log: &Path) -> Result<Vec<u64>, String> {
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
    Some(Ok(Run { calls, seconds, latency: None }))
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
    fn calls_and_seconds_are_read() {
        let run = parse(OUTPUT).unwrap().unwrap();
        assert_eq!((run.calls, run.seconds), (200, 2.0));
    }

    #[test]
    fn failed_calls_are_no_result() {
        assert!(parse(&OUTPUT.replace("0 failed", "3 failed")).unwrap().is_err());
        assert!(parse("h2load: cannot connect").is_none());
    }
}
