//! The one table of configuration keys: what each is called, what it means, its unit, bounds and
//! default, its flag and environment variable, and the field that it sets. The default file, the
//! documentation, `config show` and every "unknown key" message are made from it.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use stateside_types::{PipelineSpec, limits};

use super::{Surroundings, settings::*};

/// A value as a file, an environment variable or a flag gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Pipeline(PipelineSpec),
}

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A string.
    Text,
    /// A whole number within bounds, inclusive.
    Integer(i64, i64),
    /// A list of stages.
    Pipeline,
}

/// What holds when nobody sets a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Default {
    /// This, written in TOML.
    Is(&'static str),
    /// What the words say; then an example written in TOML.
    Words(&'static str, &'static str),
}

impl fmt::Display for Default {
    /// In a page.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(value) => write!(f, "`{value}`"),
            Self::Words(words, _) => f.write_str(words),
        }
    }
}

/// One key.
pub(super) struct Key {
    /// Section and name: `log.segment_mb`.
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    /// Empty where there is none.
    pub(super) unit: &'static str,
    pub(super) default: Default,
    /// Flag and environment variable of `serve`.
    pub(super) flag: Option<(&'static str, &'static str)>,
    pub(super) doc: &'static str,
    pub(super) set: fn(&mut Settings, Value) -> Result<(), String>,
    /// None: not set, see the default's words.
    pub(super) get: fn(&Settings) -> Option<Value>,
}

/// Sections in the order in which they are shown, with what they are about.
pub(super) const SECTIONS: &[(&str, &str)] = &[
    ("node", "Who the node is, where it keeps its data, what it runs on."),
    ("data", "The data plane: what applications call."),
    ("control", "The control plane: what operators call. Privileged; keep it off open networks."),
    ("metrics", "Prometheus metrics and probes: /metrics, /healthz, /readyz."),
    ("partition", "What a partition gets that its declaration in the registry leaves out."),
    ("log", "The write-ahead log of each core."),
    ("kafka", "The log in Kafka of partitions with the stage \"kafka-log\"; see docs/kafka.md."),
    (
        "request_ids",
        "What each partition remembers of requests with an id, so that a retry gets the original answer.",
    ),
    ("memory", "Memory of the state stores."),
    ("store.sled", "Partitions with store = \"sled\"."),
    ("store.lsm", "Partitions with store = \"lsm\"."),
    (
        "store.tiered",
        "Partitions with store = \"tiered\": a merge tree on a slow directory behind a cache on a fast one.",
    ),
    ("registry", "Where the node's desired partition set is declared."),
    ("drain", "Stopping."),
    ("logging", "What the node tells about itself, on stderr."),
];

const MB_MAX: i64 = 1 << 20;

/// Every key, by section.
pub(super) const KEYS: &[Key] = &[
    Key {
        path: "node.id",
        kind: Kind::Text,
        unit: "",
        default: Default::Words(
            "the host's name at the first start, kept in the manifest from then on",
            "\"vm-1\"",
        ),
        flag: Some(("--node-id", "STATESIDE_NODE_ID")),
        doc: "Name of the node in its fleet, 1 to 255 visible ASCII characters. A data directory belongs to one node: starting it under another id is refused.",
        set: |s, v| {
            let id = text(v);
            let visible = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_graphic());
            if !visible || id.len() > limits::NODE_ID_BYTES_MAX {
                return Err(format!("`{id}` is not 1 to 255 visible ASCII characters"));
            }
            s.node.id = Some(id);
            Ok(())
        },
        get: |s| s.node.id.clone().map(Value::Text),
    },
    Key {
        path: "node.data_dir",
        kind: Kind::Text,
        unit: "",
        default: Default::Is("\"stateside-data\""),
        flag: Some(("--data-dir", "STATESIDE_DATA_DIR")),
        doc: "Directory of log, snapshots, stores, manifest and the node's own registry. Made when it is missing; used by one process at a time.",
        set: |s, v| path(v).map(|path| s.node.data_dir = path),
        get: |s| Some(of_path(&s.node.data_dir)),
    },
    Key {
        path: "node.cores",
        kind: Kind::Integer(1, limits::CORES_MAX as i64),
        unit: "threads",
        default: Default::Words("as many as CPUs are available to the process", "2"),
        flag: Some(("--cores", "STATESIDE_CORES")),
        doc: "Executor threads, each pinned to a CPU with its own partitions, connections and log. May change between starts: partitions are placed anew.",
        set: |s, v| number(v).map(|cores| s.node.cores = cores),
        get: |s| Some(of_number(s.node.cores)),
    },
    Key {
        path: "node.spin_us",
        kind: Kind::Integer(0, 1_000),
        unit: "us",
        default: Default::Is("50"),
        flag: None,
        doc: "How long a core at most looks for the next call before it sleeps, when calls come one after the other. Halves the latency of such calls for about the same CPU time a call; 0 always sleeps at once, for CPUs that are shared or metered.",
        set: |s, v| number(v).map(|us| s.node.spin_us = us),
        get: |s| Some(of_number(s.node.spin_us)),
    },
    Key {
        path: "data.listen",
        kind: Kind::Text,
        unit: "IP:PORT",
        default: Default::Is("\"127.0.0.1:7400\""),
        flag: Some(("--listen", "STATESIDE_LISTEN")),
        doc: "Address that all cores share. Port 0 lets the system choose.",
        set: |s, v| address(v).map(|address| s.data.listen = address),
        get: |s| Some(of_display(s.data.listen)),
    },
    Key {
        path: "data.unix_socket",
        kind: Kind::Text,
        unit: "",
        default: Default::Words("none", "\"/run/stateside/data.sock\""),
        flag: Some(("--unix-socket", "STATESIDE_UNIX_SOCKET")),
        doc: "Unix socket on which core 0 serves the data plane too, at most 107 bytes long.",
        set: |s, v| path(v).map(|path| s.data.unix_socket = Some(path)),
        get: |s| s.data.unix_socket.as_deref().map(of_path),
    },
    Key {
        path: "data.core_port_base",
        kind: Kind::Integer(0, u16::MAX as i64),
        unit: "port",
        default: Default::Words("the port of data.listen + 10", "7410"),
        flag: None,
        doc: "Core n also listens on a port of its own, this + n, on the address of data.listen: clients that route for themselves reach the owning core without a hop. 0 lets the system choose.",
        set: |s, v| number(v).map(|base| s.data.core_port_base = Some(base)),
        get: |s| s.data.core_port_base.map(of_number),
    },
    Key {
        path: "data.advertise_host",
        kind: Kind::Text,
        unit: "",
        default: Default::Words(
            "the address of data.listen; when that is 0.0.0.0 or [::], the host that the client asked",
            "\"10.0.0.5\"",
        ),
        flag: None,
        doc: "Host or IP that Topology tells clients for the ports of the cores.",
        set: |s, v| {
            let host = text(v);
            if host.is_empty() || host.len() > 253 || !host.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(format!("`{host}` is not a host name or IP"));
            }
            s.data.advertise_host = Some(host);
            Ok(())
        },
        get: |s| s.data.advertise_host.clone().map(Value::Text),
    },
    Key {
        path: "control.listen",
        kind: Kind::Text,
        unit: "IP:PORT",
        default: Default::Is("\"127.0.0.1:7401\""),
        flag: Some(("--control-listen", "STATESIDE_CONTROL_LISTEN")),
        doc: "Address of the control plane. Whoever reaches it can remove partitions.",
        set: |s, v| address(v).map(|address| s.control.listen = address),
        get: |s| Some(of_display(s.control.listen)),
    },
    Key {
        path: "metrics.listen",
        kind: Kind::Text,
        unit: "IP:PORT",
        default: Default::Is("\"127.0.0.1:7402\""),
        flag: Some(("--metrics-listen", "STATESIDE_METRICS_LISTEN")),
        doc: "Address of metrics and probes.",
        set: |s, v| address(v).map(|address| s.metrics.listen = address),
        get: |s| Some(of_display(s.metrics.listen)),
    },
    Key {
        path: "partition.ack",
        kind: Kind::Text,
        unit: "",
        default: Default::Is("\"durable\""),
        flag: Some(("--ack", "STATESIDE_ACK")),
        doc: "What an answer to a write promises: \"durable\", it is on disk; or \"memory\", it is applied and a crash may lose it. A request may ask for more, never for less.",
        set: |s, v| text(v).parse().map(|ack| s.partition.ack = ack),
        get: |s| Some(of_display(s.partition.ack)),
    },
    Key {
        path: "partition.store",
        kind: Kind::Text,
        unit: "",
        default: Default::Is("\"memory\""),
        flag: None,
        doc: "Where the records of new partitions live: in \"memory\" (\"memory-ordered\" keeps keys in order, for Scan), or on disk in \"lsm\" or \"sled\", which both do, or in \"tiered\", on a slow disk behind a fast one; \"counters\" holds integers alone and has no log, so ack must be \"memory\". docs/stores.md compares them. Partitions that exist keep their store.",
        set: |s, v| text(v).parse().map(|store| s.partition.store = store),
        get: |s| Some(of_display(s.partition.store)),
    },
    Key {
        path: "partition.pipeline",
        kind: Kind::Pipeline,
        unit: "",
        default: Default::Is("[\"clock\", \"dispatcher\", \"log\", \"line-monitor\"]"),
        flag: None,
        doc: "Stages that a write passes, in order. \"kafka-log\" stands in the place of \"log\" for a log in Kafka. Without a log nothing is durable and ack must be \"memory\"; a log needs \"line-monitor\" behind it. A stage with options is a table, { stage = \"filter\", deny = [\"tmp/\"] }, or a section [[partition.pipeline]]; docs/pipeline.md has the options.",
        set: |s, v| {
            let Value::Pipeline(pipeline) = v else { return Err("expected stages".to_owned()) };
            s.partition.pipeline = pipeline;
            Ok(())
        },
        get: |s| Some(Value::Pipeline(s.partition.pipeline.clone())),
    },
    Key {
        path: "partition.snapshot_interval_s",
        kind: Kind::Integer(1, 86_400),
        unit: "s",
        default: Default::Is("60"),
        flag: None,
        doc: "A partition without a log (those with the store \"counters\" have none) is snapshotted this often if it was written to, and when the node stops. A crash takes back what was written since.",
        set: |s, v| number(v).map(|seconds| s.partition.snapshot_interval_s = seconds),
        get: |s| Some(of_number(s.partition.snapshot_interval_s)),
    },
    Key {
        path: "log.segment_mb",
        kind: Kind::Integer(4, 4_096),
        unit: "MiB",
        default: Default::Is("64"),
        flag: None,
        doc: "Size of a log segment. Segments are made full-size ahead of time and reused.",
        set: |s, v| number(v).map(|mb| s.log.segment_mb = mb),
        get: |s| Some(of_number(s.log.segment_mb)),
    },
    Key {
        path: "log.max_mb",
        kind: Kind::Integer(8, MB_MAX),
        unit: "MiB per core",
        default: Default::Is("1024"),
        flag: None,
        doc: "When the segments in use on a core exceed this, background snapshots of the partitions in the oldest make room. Bounds disk use and the time a restart replays. Emptied segments, at most as much again, are kept to be written again; those that are not needed are deleted, one a minute.",
        set: |s, v| number(v).map(|mb| s.log.max_mb = mb),
        get: |s| Some(of_number(s.log.max_mb)),
    },
    Key {
        path: "log.flush_after_ms",
        kind: Kind::Integer(1, 60_000),
        unit: "ms",
        default: Default::Is("50"),
        flag: None,
        doc: "A write acknowledged from memory is on disk after at most about this time. Durable writes never wait for it.",
        set: |s, v| number(v).map(|ms| s.log.flush_after_ms = ms),
        get: |s| Some(of_number(s.log.flush_after_ms)),
    },
    Key {
        path: "kafka.brokers",
        kind: Kind::Text,
        unit: "HOST:PORT[,HOST:PORT]",
        default: Default::Words(
            "none: no partition can have its log in Kafka",
            "\"127.0.0.1:9092\"",
        ),
        flag: None,
        doc: "Brokers to begin with; they tell of the others.",
        set: |s, v| {
            let brokers = text(v);
            if brokers.is_empty() || !brokers.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(format!("`{brokers}` is not HOST:PORT[,HOST:PORT]"));
            }
            s.kafka.brokers = Some(brokers);
            Ok(())
        },
        get: |s| s.kafka.brokers.clone().map(Value::Text),
    },
    Key {
        path: "kafka.topic",
        kind: Kind::Text,
        unit: "",
        default: Default::Is("\"stateside\""),
        flag: None,
        doc: "The topic. Partition n has its log in Kafka partition n. Made when it is missing, with unlimited retention.",
        set: |s, v| {
            let topic = text(v);
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            if topic.is_empty() || topic.len() > 249 || !topic.bytes().all(is_name) {
                return Err(format!("`{topic}` is not 1 to 249 letters, digits, `.`, `_` or `-`"));
            }
            s.kafka.topic = topic;
            Ok(())
        },
        get: |s| Some(Value::Text(s.kafka.topic.clone())),
    },
    Key {
        path: "kafka.partitions",
        kind: Kind::Integer(0, limits::PARTITIONS_PER_NODE_MAX as i64),
        unit: "Kafka partitions",
        default: Default::Is("0"),
        flag: None,
        doc: "How many Kafka partitions the topic is made with, and must have. 0: when it is made, as many as the node's partitions need then; more are no fault.",
        set: |s, v| number(v).map(|count| s.kafka.partitions = count),
        get: |s| Some(of_number(s.kafka.partitions)),
    },
    Key {
        path: "kafka.replication",
        kind: Kind::Integer(1, 100),
        unit: "copies",
        default: Default::Is("3"),
        flag: None,
        doc: "Copies of the topic when the node makes it; it asks for all but one of them to be in sync (min.insync.replicas).",
        set: |s, v| number(v).map(|copies| s.kafka.replication = copies),
        get: |s| Some(of_number(s.kafka.replication)),
    },
    Key {
        path: "kafka.ack_timeout_ms",
        kind: Kind::Integer(10, 600_000),
        unit: "ms",
        default: Default::Is("2000"),
        flag: None,
        doc: "How long a write waits for the brokers before it is answered with LOG_UNAVAILABLE, its outcome unknown. While one waits longer, further writes of its partition are refused at once, and nothing of them is written.",
        set: |s, v| number(v).map(|ms| s.kafka.ack_timeout_ms = ms),
        get: |s| Some(of_number(s.kafka.ack_timeout_ms)),
    },
    Key {
        path: "kafka.snapshot_mb",
        kind: Kind::Integer(1, MB_MAX),
        unit: "MiB",
        default: Default::Is("256"),
        flag: None,
        doc: "A partition that has written this much since its newest snapshot is snapshotted in the background. Bounds what a restart replays.",
        set: |s, v| number(v).map(|mb| s.kafka.snapshot_mb = mb),
        get: |s| Some(of_number(s.kafka.snapshot_mb)),
    },
    Key {
        path: "kafka.options",
        kind: Kind::Text,
        unit: "lines of NAME=VALUE",
        default: Default::Is("\"\""),
        flag: None,
        doc: "Further settings of librdkafka, such as security.protocol=SASL_SSL, ssl.ca.location=/etc/ca.pem, sasl.username=app. TLS needs a binary with the feature kafka-tls. Those that the node's promises rest upon (acks, enable.idempotence, …) are refused.",
        set: |s, v| {
            let text = text(v);
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            let options = lines.map(|line| match line.split_once('=') {
                Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
                None => Err(format!("`{line}` is not NAME=VALUE")),
            });
            s.kafka.options = options.collect::<Result<_, _>>()?;
            Ok(())
        },
        get: |s| {
            let secret = ["password", "secret", "jaas", "pem", "token"];
            let line = |(name, value): &(String, String)| {
                let is_secret = secret.iter().any(|part| name.contains(part));
                format!("{name}={}", if is_secret { "***" } else { value })
            };
            let lines: Vec<String> = s.kafka.options.iter().map(line).collect();
            Some(Value::Text(lines.join("\n")))
        },
    },
    Key {
        path: "request_ids.answers_max",
        kind: Kind::Integer(1, limits::REQUEST_ANSWERS_MAX as i64),
        unit: "answers",
        default: Default::Is("4096"),
        flag: None,
        doc: "Answers that a partition remembers, of all clients together; the oldest go first. A retry whose answer is gone is refused with REQUEST_FORGOTTEN, never executed. An answer takes some 200 bytes of memory. Clients that tell which numbers are settled need as many as they have requests under way.",
        set: |s, v| number(v).map(|answers| s.request_ids.answers_max = answers),
        get: |s| Some(of_number(s.request_ids.answers_max)),
    },
    Key {
        path: "request_ids.clients_max",
        kind: Kind::Integer(1, limits::REQUEST_CLIENTS_MAX as i64),
        unit: "clients",
        default: Default::Is("4096"),
        flag: None,
        doc: "Clients of request ids that a partition remembers. When there are as many, the one that has not written for longest makes room for a new one if that is long enough (client_keep_s); else the new one is refused with REQUEST_CLIENTS_FULL.",
        set: |s, v| number(v).map(|clients| s.request_ids.clients_max = clients),
        get: |s| Some(of_number(s.request_ids.clients_max)),
    },
    Key {
        path: "request_ids.client_keep_s",
        kind: Kind::Integer(0, 30 * 24 * 3_600),
        unit: "s",
        default: Default::Is("600"),
        flag: None,
        doc: "How long a client of request ids is remembered at least after its last write to the partition: within this time no retry is executed a second time. Longer while there is room.",
        set: |s, v| number(v).map(|seconds| s.request_ids.client_keep_s = seconds),
        get: |s| Some(of_number(s.request_ids.client_keep_s)),
    },
    Key {
        path: "memory.limit_mb",
        kind: Kind::Integer(0, 1 << 30),
        unit: "MiB",
        default: Default::Is("0"),
        flag: None,
        doc: "Memory of all state stores together above which writes that grow are refused with MEMORY_FULL; reads and removes go on. 0: no limit.",
        set: |s, v| number(v).map(|mb| s.memory.limit_mb = mb),
        get: |s| Some(of_number(s.memory.limit_mb)),
    },
    Key {
        path: "store.sled.cache_mb",
        kind: Kind::Integer(1, MB_MAX),
        unit: "MiB",
        default: Default::Is("256"),
        flag: None,
        doc: "Page cache of the node's sled database.",
        set: |s, v| number(v).map(|mb| s.store.sled.cache_mb = mb),
        get: |s| Some(of_number(s.store.sled.cache_mb)),
    },
    Key {
        path: "store.sled.flush_ms",
        kind: Kind::Integer(10, 600_000),
        unit: "ms",
        default: Default::Is("1000"),
        flag: None,
        doc: "How often the sled database is brought to disk; the log may forget only what is. Durability of answers does not depend on it.",
        set: |s, v| number(v).map(|ms| s.store.sled.flush_ms = ms),
        get: |s| Some(of_number(s.store.sled.flush_ms)),
    },
    Key {
        path: "store.lsm.cache_mb",
        kind: Kind::Integer(1, MB_MAX),
        unit: "MiB",
        default: Default::Is("256"),
        flag: None,
        doc: "Blocks of tables that the node's merge tree keeps in memory. Memtables come on top.",
        set: |s, v| number(v).map(|mb| s.store.lsm.cache_mb = mb),
        get: |s| Some(of_number(s.store.lsm.cache_mb)),
    },
    Key {
        path: "store.lsm.memtable_mb",
        kind: Kind::Integer(1, 1_024),
        unit: "MiB",
        default: Default::Is("16"),
        flag: None,
        doc: "Writes of a partition that are kept in memory until they are written out as a table. All partitions together keep 128 MiB or four of these, whichever is more.",
        set: |s, v| number(v).map(|mb| s.store.lsm.memtable_mb = mb),
        get: |s| Some(of_number(s.store.lsm.memtable_mb)),
    },
    Key {
        path: "store.lsm.flush_ms",
        kind: Kind::Integer(10, 600_000),
        unit: "ms",
        default: Default::Is("1000"),
        flag: None,
        doc: "How often the merge tree's journal is brought to disk; the log may forget only what is. Durability of answers does not depend on it.",
        set: |s, v| number(v).map(|ms| s.store.lsm.flush_ms = ms),
        get: |s| Some(of_number(s.store.lsm.flush_ms)),
    },
    Key {
        path: "store.tiered.slow_dir",
        kind: Kind::Text,
        unit: "",
        default: Default::Words("tiered/slow in the data directory", "\"/mnt/disk/stateside\""),
        flag: None,
        doc: "Directory of the records. Holds all of them, and belongs to one data directory: one that is missing, or another's, is refused.",
        set: |s, v| path(v).map(|path| s.store.tiered.slow_dir = Some(path)),
        get: |s| s.store.tiered.slow_dir.as_deref().map(of_path),
    },
    Key {
        path: "store.tiered.fast_dir",
        kind: Kind::Text,
        unit: "",
        default: Default::Words("tiered/fast in the data directory", "\"/mnt/nvme/stateside\""),
        flag: None,
        doc: "Directory of the cache. Its content may be deleted or lost at any time; it begins empty at each start. Used by one process at a time.",
        set: |s, v| path(v).map(|path| s.store.tiered.fast_dir = Some(path)),
        get: |s| s.store.tiered.fast_dir.as_deref().map(of_path),
    },
    Key {
        path: "store.tiered.fast_capacity_mb",
        kind: Kind::Integer(limits::TIERED_CAPACITY_MB_MIN, MB_MAX),
        unit: "MiB",
        default: Default::Is("1024"),
        flag: None,
        doc: "What the files in the fast directory grow to at most.",
        set: |s, v| number(v).map(|mb| s.store.tiered.fast_capacity_mb = mb),
        get: |s| Some(of_number(s.store.tiered.fast_capacity_mb)),
    },
    Key {
        path: "store.tiered.index_mb",
        kind: Kind::Integer(1, 64 << 10),
        unit: "MiB",
        default: Default::Is("64"),
        flag: None,
        doc: "Memory of the index of the fast directory: 16 bytes for each record, or for each 16 KiB of a long one; never more than an eighth of fast_capacity_mb. With records so small that this is full first, the fast directory is not used to its capacity.",
        set: |s, v| number(v).map(|mb| s.store.tiered.index_mb = mb),
        get: |s| Some(of_number(s.store.tiered.index_mb)),
    },
    Key {
        path: "store.tiered.cache_mb",
        kind: Kind::Integer(1, MB_MAX),
        unit: "MiB",
        default: Default::Is("64"),
        flag: None,
        doc: "Blocks of the slow directory's tables that are kept in memory, as store.lsm.cache_mb.",
        set: |s, v| number(v).map(|mb| s.store.tiered.cache_mb = mb),
        get: |s| Some(of_number(s.store.tiered.cache_mb)),
    },
    Key {
        path: "store.tiered.memtable_mb",
        kind: Kind::Integer(1, 1_024),
        unit: "MiB",
        default: Default::Is("16"),
        flag: None,
        doc: "Writes of a partition that are kept in memory until they are written to the slow directory as a table, as store.lsm.memtable_mb.",
        set: |s, v| number(v).map(|mb| s.store.tiered.memtable_mb = mb),
        get: |s| Some(of_number(s.store.tiered.memtable_mb)),
    },
    Key {
        path: "store.tiered.flush_ms",
        kind: Kind::Integer(10, 600_000),
        unit: "ms",
        default: Default::Is("1000"),
        flag: None,
        doc: "How often the slow directory's journal is brought to disk, as store.lsm.flush_ms.",
        set: |s, v| number(v).map(|ms| s.store.tiered.flush_ms = ms),
        get: |s| Some(of_number(s.store.tiered.flush_ms)),
    },
    Key {
        path: "registry.file",
        kind: Kind::Text,
        unit: "",
        default: Default::Words(
            "registry.toml in the data directory, made at the first start with 8 partitions a core over the whole hash range",
            "\"/etc/stateside/registry.toml\"",
        ),
        flag: Some(("--registry", "STATESIDE_REGISTRY")),
        doc: "TOML file that declares the partitions. Watched for changes; rewritten by partition add and remove.",
        set: |s, v| path(v).map(|path| s.registry.file = Some(path)),
        get: |s| s.registry.file.as_deref().map(of_path),
    },
    Key {
        path: "drain.timeout_ms",
        kind: Kind::Integer(0, 3_600_000),
        unit: "ms",
        default: Default::Is("10000"),
        flag: None,
        doc: "How long calls under way may take after the first SIGTERM before they are cut off. A second SIGTERM stops at once.",
        set: |s, v| number(v).map(|ms| s.drain.timeout_ms = ms),
        get: |s| Some(of_number(s.drain.timeout_ms)),
    },
    Key {
        path: "logging.format",
        kind: Kind::Text,
        unit: "",
        default: Default::Is("\"text\""),
        flag: Some(("--log-format", "STATESIDE_LOG_FORMAT")),
        doc: "\"text\" for people, \"json\" for machines, one object a line.",
        set: |s, v| text(v).parse().map(|format| s.logging.format = format),
        get: |s| Some(of_display(s.logging.format)),
    },
    Key {
        path: "logging.level",
        kind: Kind::Text,
        unit: "",
        default: Default::Is("\"info\""),
        flag: Some(("--log-level", "STATESIDE_LOG_LEVEL")),
        doc: "The least important lines that are logged: error, warn, info, debug or trace.",
        set: |s, v| text(v).parse().map(|level| s.logging.level = level),
        get: |s| Some(of_display(s.logging.level)),
    },
];

impl Key {
    /// `log` of `log.segment_mb`.
    pub(super) fn section(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(section, _)| section)
    }

    /// `segment_mb` of `log.segment_mb`.
    pub(super) fn name(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, name)| name)
    }

    /// Checks a value's kind and bounds, then sets the field.
    pub(super) fn accept(&self, settings: &mut Settings, value: Value) -> Result<(), String> {
        match (self.kind, &value) {
            (Kind::Text, Value::Text(_)) | (Kind::Pipeline, Value::Pipeline(_)) => {}
            (Kind::Integer(least, most), Value::Integer(number)) => {
                if !(least..=most).contains(number) {
                    let unit = if self.unit.is_empty() { "" } else { " " };
                    return Err(format!(
                        "{number} is not within {least} to {most}{unit}{}",
                        self.unit
                    ));
                }
            }
            (wanted, _) => return Err(format!("expected {wanted}")),
        }
        (self.set)(settings, value)
    }

    /// Reads the text of a flag or environment variable as this key's kind.
    pub(super) fn parse_text(&self, text: &str) -> Result<Value, String> {
        match self.kind {
            Kind::Text => Ok(Value::Text(text.to_owned())),
            Kind::Integer(..) => text
                .trim()
                .parse()
                .map(Value::Integer)
                .map_err(|_| format!("`{text}` is not a whole number")),
            Kind::Pipeline => {
                let item = text.parse().map(toml_edit::Item::Value);
                let item = item.map_err(|_| format!("`{text}` is not a list of stages in TOML"))?;
                let read = stateside_registry::read_pipeline(&item);
                read.map(Value::Pipeline).map_err(|error| error.message)
            }
        }
    }

    /// What holds when nobody sets the key, written in TOML or said in words.
    pub(super) fn default_text(&self) -> String {
        match self.default {
            Default::Is(toml) => toml.to_owned(),
            Default::Words(words, _) => words.to_owned(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("a string"),
            Self::Integer(least, most) => write!(f, "a whole number from {least} to {most}"),
            Self::Pipeline => f.write_str("a list of stages"),
        }
    }
}

impl fmt::Display for Value {
    /// As TOML.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| toml_edit::Value::from(text).decorated("", "").to_string();
        match self {
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::Integer(number) => number.fmt(f),
            Self::Pipeline(pipeline) => pipeline.fmt(f),
        }
    }
}

impl Settings {
    /// What holds when nobody sets anything.
    pub fn defaults(surroundings: &Surroundings) -> Self {
        let ip = std::net::IpAddr::from([127, 0, 0, 1]);
        let listen = |port| SocketAddr::new(ip, port);
        let mut settings = Self {
            node: NodeSettings {
                id: None,
                data_dir: PathBuf::from("stateside-data"),
                cores: surroundings.available_cores.clamp(1, limits::CORES_MAX),
                spin_us: 0,
            },
            data: DataSettings {
                listen: listen(7400),
                unix_socket: None,
                core_port_base: None,
                advertise_host: None,
            },
            control: ListenSettings { listen: listen(7401) },
            metrics: ListenSettings { listen: listen(7402) },
            partition: PartitionSettings {
                ack: stateside_types::Ack::Durable,
                store: stateside_types::StoreKind::Memory,
                pipeline: PipelineSpec::default(),
                snapshot_interval_s: 0,
            },
            log: LogSettings { segment_mb: 0, max_mb: 0, flush_after_ms: 0 },
            kafka: KafkaSettings {
                brokers: None,
                topic: String::new(),
                partitions: 0,
                replication: 0,
                ack_timeout_ms: 0,
                snapshot_mb: 0,
                options: Vec::new(),
            },
            request_ids: RequestIdSettings { answers_max: 0, clients_max: 0, client_keep_s: 0 },
            memory: MemorySettings { limit_mb: 0 },
            store: StoreSettings {
                sled: SledSettings { cache_mb: 0, flush_ms: 0 },
                lsm: LsmSettings { cache_mb: 0, memtable_mb: 0, flush_ms: 0 },
                tiered: TieredSettings {
                    slow_dir: None,
                    fast_dir: None,
                    fast_capacity_mb: 0,
                    index_mb: 0,
                    cache_mb: 0,
                    memtable_mb: 0,
                    flush_ms: 0,
                },
            },
            registry: RegistrySettings { file: None },
            drain: DrainSettings { timeout_ms: 0 },
            logging: LoggingSettings { format: LoggingFormat::Text, level: LoggingLevel::Info },
        };
        // The table is the one place that knows the defaults; what stands above only fills fields.
        for key in KEYS {
            if let Default::Is(toml) = key.default {
                let value = match key.kind {
                    Kind::Pipeline => key.parse_text(toml).ok(),
                    _ => super::load::parse_value(toml),
                };
                let value = value.expect("defaults in the table are TOML");
                key.accept(&mut settings, value).expect("defaults in the table are in bounds");
            }
        }
        settings
    }
}

fn text(value: Value) -> String {
    match value {
        Value::Text(text) => text,
        other => other.to_string(),
    }
}

fn path(value: Value) -> Result<PathBuf, String> {
    match text(value) {
        empty if empty.is_empty() => Err("expected a path, found nothing".to_owned()),
        path => Ok(PathBuf::from(path)),
    }
}

fn address(value: Value) -> Result<SocketAddr, String> {
    let text = text(value);
    text.parse().map_err(|_| {
        format!("`{text}` is not IP:PORT, such as 127.0.0.1:7400, 0.0.0.0:7400 or [::1]:7400")
    })
}

fn number<T: TryFrom<i64>>(value: Value) -> Result<T, String> {
    match value {
        Value::Integer(number) => {
            T::try_from(number).map_err(|_| format!("{number} is out of bounds"))
        }
        other => Err(format!("expected a whole number, found {other}")),
    }
}

fn of_path(path: &Path) -> Value {
    Value::Text(path.display().to_string())
}

fn of_display(value: impl fmt::Display) -> Value {
    Value::Text(value.to_string())
}

fn of_number<T: TryInto<i64>>(number: T) -> Value {
    Value::Integer(number.try_into().unwrap_or(i64::MAX))
}
