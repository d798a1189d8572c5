//! The disk alone: one durable write at a time, of the kind that the log makes. What a durable
//! call takes beyond this is what the software adds.
//!
//! The writes are made by the program `direct-write`, so that they run on the server's core as a
//! server would, without this process's threads beside them.

use std::path::PathBuf;

use stateside_e2e::requirements::profile_folder;

use super::{Latency, Load, Run};
use crate::process::{SERVER_CPU, pinned};

/// Direct writes into a file in `folder`.
pub struct DirectWrite {
    /// On the same file system as the servers' data.
    pub folder: PathBuf,
}

impl Load for DirectWrite {
    fn describe(&self) -> String {
        "pwrite 4 KiB, O_DIRECT and O_DSYNC, over zeroes".to_owned()
    }

    fn run(&self, seconds: u32) -> Result<Run, String> {
        let output = pinned(SERVER_CPU, profile_folder().join("direct-write"))
            .arg(self.folder.join("direct-write.data"))
            .arg(seconds.to_string())
            .output()
            .map_err(|error| format!("taskset or direct-write did not start: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        parse(&text).ok_or_else(|| format!("cannot make sense of direct-write's output:\n{text}"))
    }
}

/// Nanoseconds of every write, one a line.
fn parse(text: &str) -> Option<Run> {
    let times: Result<Vec<u64>, _> = text.lines().map(str::parse).collect();
    let times = times.ok()?;
    let seconds = times.iter().sum::<u64>() as f64 / 1e9;
    let mut microseconds: Vec<u64> = times.iter().map(|time| time.div_ceil(1_000)).collect();
    let latency = Latency::of(&mut microseconds)?;
    Some(Run { calls: times.len() as u64, seconds, latency: Some(latency) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_write() {
        let run = parse("100000\n300000\n100000\n").unwrap();
        assert_eq!((run.calls, run.seconds), (3, 0.0005));
        assert_eq!(run.latency.unwrap().p50_us, 100.0);
        assert!(parse("").is_none() && parse("100\nno time").is_none());
    }
}
