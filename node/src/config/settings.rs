//! The node's settings, typed. Which key sets which field, with its documentation, default and
//! bounds, is in `keys`.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use stateside_statestore::RequestLimits;
use stateside_types::{Ack, CoreId, PipelineSpec, StoreKind};

/// Everything that can be configured. Made once at the start, shared read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Who the node is and what it runs on.
    pub node: NodeSettings,
    /// The data plane's addresses.
    pub data: DataSettings,
    /// The control plane's address.
    pub control: ListenSettings,
    /// The address of metrics and probes.
    pub metrics: ListenSettings,
    /// What partitions get that their declaration leaves out.
    pub partition: PartitionSettings,
    /// The local log of each core.
    pub log: LogSettings,
    /// Kafka.
    pub kafka: KafkaSettings,
    /// Requests with an id.
    pub request_ids: RequestIdSettings,
    /// Memory.
    pub memory: MemorySettings,
    /// The state stores.
    pub store: StoreSettings,
    /// Where the desired partition set is declared.
    pub registry: RegistrySettings,
    /// Stopping.
    pub drain: DrainSettings,
    /// The node's own log of what happens.
    pub logging: LoggingSettings,
}

/// `[node]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    /// Name in the fleet; none: the one in the manifest, at the first start the host's name.
    pub id: Option<String>,
    /// Everything that the node keeps lies here.
    pub data_dir: PathBuf,
    /// Executor threads.
    pub cores: u16,
    /// Longest look for the next call before a core sleeps, microseconds; 0: none.
    pub spin_us: u32,
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSettings {
    /// The port that all cores share.
    pub listen: SocketAddr,
    /// A Unix socket on core 0.
    pub unix_socket: Option<PathBuf>,
    /// The port of core 0's own; core n listens on this + n. None: derived from `listen`.
    pub core_port_base: Option<u16>,
    /// The host that Topology tells clients. None: derived from `listen`.
    pub advertise_host: Option<String>,
}

/// `[control]`, `[metrics]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenSettings {
    /// The address.
    pub listen: SocketAddr,
}

/// `[partition]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionSettings {
    /// Default acknowledgement of writes.
    pub ack: Ack,
    /// Store of new partitions.
    pub store: StoreKind,
    /// Stages, in order.
    pub pipeline: PipelineSpec,
    /// How often partitions without a log are snapshotted, seconds.
    pub snapshot_interval_s: u32,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Size of a segment, MiB.
    pub segment_mb: u32,
    /// Segments in use per core, MiB, above which background snapshots make room.
    pub max_mb: u32,
    /// How long a write acknowledged from memory waits at most to be written to disk.
    pub flush_after_ms: u32,
}

/// `[kafka]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaSettings {
    /// `host:port,host:port`; none: no partition of the node has its log in Kafka.
    pub brokers: Option<String>,
    /// The topic.
    pub topic: String,
    /// Kafka partitions of the topic; 0: as many as the partition set needs.
    pub partitions: u32,
    /// Copies of a topic that the node makes.
    pub replication: u32,
    /// How long a write may wait for the brokers.
    pub ack_timeout_ms: u32,
    /// MiB written since a partition's newest snapshot above which it is snapshotted.
    pub snapshot_mb: u32,
    /// Further settings of librdkafka, by name.
    pub options: Vec<(String, String)>,
}

/// `[request_ids]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestIdSettings {
    /// Answers that a partition remembers.
    pub answers_max: u32,
    /// Clients that a partition remembers.
    pub clients_max: u32,
    /// How long a client is remembered at least after its last write, seconds.
    pub client_keep_s: u32,
}

impl From<&RequestIdSettings> for RequestLimits {
    fn from(settings: &RequestIdSettings) -> Self {
        let &RequestIdSettings { answers_max, clients_max, client_keep_s } = settings;
        Self { answers_max, clients_max, client_keep_ms: u64::from(client_keep_s) * 1_000 }
    }
}

/// `[memory]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemorySettings {
    /// Memory of all stores, MiB, above which writes that grow are refused. 0: no limit.
    pub limit_mb: u64,
}

/// `[store]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// `[store.sled]`
    pub sled: SledSettings,
    /// `[store.lsm]`
    pub lsm: LsmSettings,
    /// `[store.tiered]`
    pub tiered: TieredSettings,
}

/// `[store.sled]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SledSettings {
    /// Page cache of the node's sled database, MiB.
    pub cache_mb: u32,
    /// How often sled writes its own buffers to disk.
    pub flush_ms: u32,
}

/// `[store.lsm]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LsmSettings {
    /// Blocks of tables kept in memory, MiB.
    pub cache_mb: u32,
    /// Size that a partition's memtable is written out at, MiB.
    pub memtable_mb: u32,
    /// How often the journal is brought to disk.
    pub flush_ms: u32,
}

/// `[store.tiered]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TieredSettings {
    /// Where the records are. None: below the data directory.
    pub slow_dir: Option<PathBuf>,
    /// Where copies of them are. None: below the data directory.
    pub fast_dir: Option<PathBuf>,
    /// What the files in the fast directory may grow to, MiB.
    pub fast_capacity_mb: u32,
    /// Memory of the index of the fast directory, MiB.
    pub index_mb: u32,
    /// Blocks of the slow directory's tables kept in memory, MiB.
    pub cache_mb: u32,
    /// Size that a partition's memtable is written out at, MiB.
    pub memtable_mb: u32,
    /// How often the slow directory's journal is brought to disk.
    pub flush_ms: u32,
}

/// `[registry]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrySettings {
    /// The registry file. None: the node keeps its own in the data directory.
    pub file: Option<PathBuf>,
}

/// `[drain]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainSettings {
    /// How long calls under way may take after the stop signal.
    pub timeout_ms: u32,
}

/// `[logging]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggingSettings {
    /// Lines for people, or JSON.
    pub format: LoggingFormat,
    /// What is logged.
    pub level: LoggingLevel,
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// The names of all variants.
            pub const NAMES: &'static [&'static str] = &[$($text,)+];

            /// The name used in configuration.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    other => Err(format!("`{other}` is none of {}", Self::NAMES.join(", "))),
                }
            }
        }
    };
}

choice!(
    /// How log lines look.
    LoggingFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
);

choice!(
    /// The least important lines that are logged.
    LoggingLevel {
        /// Only what failed.
        Error = "error",
        /// And what may need attention.
        Warn = "warn",
        /// And what happened.
        Info = "info",
        /// And why.
        Debug = "debug",
        /// And every step.
        Trace = "trace",
    }
);

impl Settings {
    /// The port of a core's own; 0 when the system is to choose.
    pub fn core_port(&self, core: CoreId) -> u16 {
        match self.core_port_base() {
            0 => 0,
            // Checked when the settings were loaded: base + cores fits.
            base => base.saturating_add(core.0),
        }
    }

    /// The port of core 0's own: as set, else the shared port + 10, or 0 with it.
    pub fn core_port_base(&self) -> u16 {
        self.data.core_port_base.unwrap_or(match self.data.listen.port() {
            0 => 0,
            port => port.saturating_add(10),
        })
    }

    /// The host that `Topology` tells clients; empty: the one that they asked.
    pub fn advertise_host(&self) -> String {
        match &self.data.advertise_host {
            Some(host) => host.clone(),
            None if self.data.listen.ip().is_unspecified() => String::new(),
            None => match self.data.listen.ip() {
                std::net::IpAddr::V6(ip) => format!("[{ip}]"),
                ip => ip.to_string(),
            },
        }
    }
}
