//! memcaslap, libmemcached's load: closed loops over the text protocol, one call under way on each
//! connection. Less neutral than the others: it makes up its own keys and values, spreads them
//! over 1,024 keys a connection, sets them all before it gets any and counts these sets too, and
//! tells no percentiles.

use std::{fs, path::PathBuf};

use super::{Load, Run};
use crate::process::{LOAD_CPU, pinned};

/// What it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Reads of keys that exist.
    Get,
    /// Writes.
    Set,
}

/// memcaslap against one server.
pub struct Memcaslap {
    /// Where memcached listens.
    pub address: String,
    /// Connections.
    pub connections: u32,
    settings: PathBuf,
}

impl Memcaslap {
    /// Writes its settings into `folder`.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn new(
        folder: &std::path::Path,
        address: &str,
        connections: u32,
        command: Command,
        (key_bytes, value_bytes): (usize, usize),
    ) -> Result<Self, String> {
        let (sets, gets) = match command {
            Command::Get => (0, 1),
            Command::Set => (1, 0),
        };
        let settings = folder.join(format!("memcaslap-{command:?}.settings"));
        let text = format!(
            "key\n{key_bytes} {key_bytes} 1\nvalue\n{value_bytes} {value_bytes} 1\ncmd\n0 {sets}\n1 {gets}\n"
        );
        fs::write(&settings, text).map_err(|error| format!("{}: {error}", settings.display()))?;
        Ok(Self { address: address.to_owned(), connections, settings })
    }
}

impl Load for Memcaslap {
    fn describe(&self) -> String {
        format!("memcaslap -c {}", self.connections)
    }

    fn run(&self, seconds: u32) -> Result<Run, String> {
        let output = pinned(LOAD_CPU, "memcaslap")
            .args(["--servers", &self.address, "--threads", "1", "--win_size", "1k"])
            .arg(format!("--concurrency={}", self.connections))
            .arg(format!("--time={seconds}s"))
            .arg("--cfg_cmd")
            .arg(&self.settings)
            .output()
            .map_err(|error| format!("taskset or memcaslap did not start: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        parse(&text).ok_or_else(|| format!("cannot make sense of memcaslap's output:\n{text}"))
    }
}

/// `Run time: 3.0s Ops: 437184 TPS: 145714 Net_rate: 21.8M/s`; None also when keys were missed.
fn parse(text: &str) -> Option<Run> {
    let misses = text.lines().find_map(|line| line.strip_prefix("get_misses: "))?;
    let line = text.lines().find(|line| line.starts_with("Run time: "))?;
    let after = |name: &str| -> Option<f64> {
        line.split_once(name)?.1.split_whitespace().next()?.parse().ok()
    };
    let (operations, rate) = (after("Ops: ")?, after("TPS: ")?);
    if misses.trim() != "0" || rate <= 0.0 {
        return None;
    }
    Some(Run { calls: operations as u64, seconds: operations / rate, latency: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_read_unless_keys_were_missed() {
        let text = "cmd_get: 385984\nget_misses: 0\n\nRun time: 3.0s Ops: 400 TPS: 200 Net_rate: 21.8M/s\n";
        let run = parse(text).unwrap();
        assert_eq!((run.calls, run.seconds), (400, 2.0));
        assert!(parse(&text.replace("misses: 0", "misses: 9")).is_none());
        assert!(parse("").is_none());
    }
}
