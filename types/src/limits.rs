//! Every limit of the system, named once. A full queue, window or buffer refuses with a
//! [`Reason`](crate::Reason) and a retry hint; nothing grows without one of these bounds.

/// Longest key, bytes. The shortest is 1.
pub const KEY_BYTES_MAX: usize = 4 << 10;
/// Longest routing key, bytes.
pub const ROUTING_KEY_BYTES_MAX: usize = KEY_BYTES_MAX;
/// Largest request message (one batch), bytes of protobuf.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// Most entries in one batch.
pub const BATCH_ENTRIES_MAX: usize = 16 << 10;
/// Largest answer message, bytes. A `Get` whose records exceed it is refused: ask for fewer keys.
pub const RESPONSE_BYTES_MAX: usize = 16 << 20;

/// HTTP/2 streams a client may have open on one connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 1_024;
/// HTTP/2 window a client may fill on one stream before it is read: a whole batch and framing.
pub const STREAM_WINDOW_BYTES: u32 = (BATCH_BYTES_MAX + (64 << 10)) as u32;
/// HTTP/2 window of a whole connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Request headers of one call, bytes.
pub const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Bytes waiting to be sent on one connection above which it is not read any more.
pub const SEND_BACKLOG_BYTES_MAX: usize = 4 << 20;
/// Bytes of unfinished request messages held for one connection.
pub const REQUEST_BYTES_PER_CONNECTION_MAX: usize = CONNECTION_WINDOW_BYTES as usize;

/// Connections one core serves.
pub const CONNECTIONS_PER_CORE_MAX: usize = 16 << 10;
/// Receive buffers one core shares among its connections. A power of two.
pub const RECEIVE_BUFFERS: usize = 512;
/// Size of a receive buffer, bytes.
pub const RECEIVE_BUFFER_BYTES: usize = 32 << 10;
/// Calls one core has under way: waiting for the log, a store or another core.
pub const CALLS_PER_CORE_MAX: usize = 64 << 10;
/// Calls one core has under way at one other core. Above it: `OVERLOADED`.
pub const HOPS_PER_CORE_PAIR_MAX: usize = 8 << 10;

/// Writes one partition holds between acceptance and durability: the line monitor's window.
pub const WINDOW_WRITES_MAX: usize = 64 << 10;
/// Reads one partition holds until the write they saw is durable.
pub const HELD_READS_MAX: usize = 64 << 10;
/// Requests one partition queues while its store fetches from disk.
pub const PARTITION_QUEUE_MAX: usize = 4 << 10;
/// Bytes of records accepted and not yet written to the log, per core. Above it: `OVERLOADED`.
pub const LOG_BUFFER_BYTES_MAX: usize = 16 << 20;
/// Bytes of records that an on-disk store holds in memory until it has written them, per partition.
pub const STORE_OVERLAY_BYTES_MAX: usize = 16 << 20;

/// Partitions on one node.
pub const PARTITIONS_PER_NODE_MAX: usize = 16 << 10;
/// Partitions a core owns when no registry says otherwise.
pub const DEFAULT_PARTITIONS_PER_CORE: u32 = 8;

/// How long a client waits before it retries what was refused as `OVERLOADED`, milliseconds.
pub const RETRY_OVERLOADED_MS: u32 = 20;
/// Retry hint while a partition starts, milliseconds.
pub const RETRY_STARTING_MS: u32 = 200;
/// Retry hint on a full disk or full memory, milliseconds.
pub const RETRY_FULL_MS: u32 = 1_000;

/// Largest registry or configuration file that is read, bytes.
pub const TEXT_FILE_BYTES_MAX: u64 = 8 << 20;
/// Largest manifest that is read, bytes: many times what `PARTITIONS_PER_NODE_MAX` needs.
pub const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// Longest node id, bytes.
pub const NODE_ID_BYTES_MAX: usize = 255;
/// Cores of one node.
pub const CORES_MAX: u16 = 1_024;
/// Control calls under way that change something. Above it: `OVERLOADED`.
pub const CONTROL_CHANGES_MAX: usize = 4;
/// Control calls under way that only ask. Above it: `OVERLOADED`.
pub const CONTROL_READS_MAX: usize = 32;
/// Connections to the metrics address.
pub const METRICS_CONNECTIONS_MAX: usize = 64;
/// Commands that wait at one core. More wait at the manager.
pub const CORE_COMMANDS_MAX: usize = 64;
/// Partitions that one rewrite of the manifest takes on.
pub const ADDS_PER_MANIFEST_WRITE: usize = 64;
/// Longest path in a control call, bytes.
pub const PATH_BYTES_MAX: usize = 4_096;
