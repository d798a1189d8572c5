//! The systems compared: how each is started on the server's core, checked to do what the calls
//! ask, and asked what it counted.

pub mod etcd;
pub mod memcached;
pub mod nghttpd;
pub mod redis;
pub mod stateside;
pub mod tonic;

use std::process::{Command, Stdio};

/// What a server counted since it was started. Zero where it does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    /// Calls refused: answered fast, so they are no work done.
    pub refused: u64,
    /// Parts of batches refused within calls that were answered: the part of one partition each.
    pub refused_parts: u64,
    /// Parts of calls that went from one core to another.
    pub hops: u64,
    /// Durable writes to the disk.
    pub disk_writes: u64,
}

/// A running server under measurement.
pub trait Server {
    /// The process that does the work.
    fn pid(&self) -> u32;

    /// What it counted.
    ///
    /// # Errors
    /// It does not answer.
    fn counters(&self) -> Result<Counters, String> {
        Ok(Counters::default())
    }
}

/// A server and its version.
#[derive(Clone, Debug)]
pub struct Peer {
    /// For the table.
    pub name: &'static str,
    /// The Debian package.
    pub package: &'static str,
    /// Program and arguments that print the version.
    pub version: &'static [&'static str],
}

/// What is compared besides the service on tonic, which is built with this program.
pub const PEERS: [Peer; 4] = [
    Peer { name: "redis", package: "redis-server", version: &["redis-server", "--version"] },
    Peer { name: "memcached", package: "memcached", version: &["memcached", "--version"] },
    Peer { name: "etcd", package: "etcd-server", version: &["etcd", "--version"] },
    Peer { name: "nghttpd", package: "nghttp2-server", version: &["nghttpd", "--version"] },
];

/// What a program says of its version: the first line; None when there is no such program.
pub fn version_of(command: &[&str]) -> Option<String> {
    let (program, arguments) = command.split_first()?;
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(text.lines().next()?.trim().to_owned())
}

/// What `start` gives, or None with a word on stderr when the peer is not installed: a comparison
/// with fewer peers is better than none, and its table says what is missing.
///
/// # Errors
/// It is installed and does not start.
pub fn if_installed<T>(
    name: &str,
    start: impl FnOnce() -> Result<T, String>,
) -> Result<Option<T>, String> {
    let missing = |peer: &&Peer| peer.name == name && version_of(peer.version).is_none();
    if let Some(Peer { package, .. }) = PEERS.iter().find(missing) {
        eprintln!("    {name} (Debian: {package}) is not installed and left out");
        return Ok(None);
    }
    start().map(Some)
}

/// The sum over all labels of a metric in the Prometheus text format, of the lines that `wanted`
/// picks.
pub fn metric(text: &str, name: &str, wanted: impl Fn(&str) -> bool) -> f64 {
    text.lines()
        .filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' '])) && wanted(line)
        })
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_labels_and_not_over_other_names() {
        let text = "# HELP calls x\ncalls{core=\"0\"} 3\ncalls{core=\"1\"} 4\ncalls_more 9\n";
        assert_eq!(metric(text, "calls", |_| true), 7.0);
        assert_eq!(metric(text, "calls", |line| line.contains("\"1\"")), 4.0);
    }
}
