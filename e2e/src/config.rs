//! How a node under test is configured: written to a TOML file, so that configuration files are
//! exercised by every test.

use std::fmt::Write;

/// Which state store new partitions get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Records in memory.
    Memory,
    /// Records in memory, keys in order.
    MemoryOrdered,
    /// Records on disk, in sled.
    Sled,
    /// Records on disk, in a log-structured merge tree.
    Lsm,
    /// The same on a slow directory, behind a cache on a fast one.
    Tiered,
    /// Integers in memory, without a log.
    Counters,
}

impl Store {
    /// Every one that holds any value and has a log.
    pub const ALL: [Self; 5] =
        [Self::Memory, Self::MemoryOrdered, Self::Sled, Self::Lsm, Self::Tiered];
    /// Those that order their keys.
    pub const ORDERED: [Self; 4] = [Self::MemoryOrdered, Self::Sled, Self::Lsm, Self::Tiered];

    /// The name in configuration and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::MemoryOrdered => "memory-ordered",
            Self::Sled => "sled",
            Self::Lsm => "lsm",
            Self::Tiered => "tiered",
            Self::Counters => "counters",
        }
    }
}

/// A node's configuration. Small where a default is meant for production: a test should reach
/// the second log segment and the first background snapshot.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name.
    pub node_id: &'static str,
    /// Executor threads.
    pub cores: u16,
    /// Store of new partitions.
    pub store: Store,
    /// `durable` or `memory`.
    pub ack: &'static str,
    /// Size of a log segment, MiB.
    pub log_segment_mb: u32,
    /// Log in use above which background snapshots make room, MiB.
    pub log_max_mb: u32,
    /// Memory limit of all stores, MiB; 0 is none.
    pub memory_limit_mb: u32,
    /// How long a drain may take, milliseconds.
    pub drain_timeout_ms: u32,
    /// Further lines of TOML, each key with its section, `section.key = value`.
    pub more: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_id: "node-under-test",
            cores: 1,
            store: Store::Memory,
            ack: "durable",
            log_segment_mb: 8,
            log_max_mb: 256,
            memory_limit_mb: 0,
            drain_timeout_ms: 5_000,
            more: String::new(),
        }
    }
}

impl Config {
    /// The file's text. `core_port_base` comes from whoever hands out ports.
    pub fn to_toml(&self, core_port_base: u16) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            writeln!(text, "{key} = {value}").expect("a string takes all that is written to it");
        };
        line("node.id", &format_args!("\"{}\"", self.node_id));
        line("node.cores", &self.cores);
        line("data.core_port_base", &core_port_base);
        line("partition.store", &format_args!("\"{}\"", self.store.as_str()));
        line("partition.ack", &format_args!("\"{}\"", self.ack));
        line("log.segment_mb", &self.log_segment_mb);
        line("log.max_mb", &self.log_max_mb);
        line("memory.limit_mb", &self.memory_limit_mb);
        line("drain.timeout_ms", &self.drain_timeout_ms);
        text + &self.more
    }
}
