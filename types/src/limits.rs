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
/// Bytes of values that the answer to an `Update` tells, over all its partitions; further ones are left
/// out. What else is in the answer has the room up to [`RESPONSE_BYTES_MAX`].
pub const UPDATED_VALUES_BYTES_MAX: usize = RESPONSE_BYTES_MAX - (2 << 20);
/// Longest time to live of a record, milliseconds: a hundred years.
pub const TTL_MS_MAX: u64 = 100 * 365 * 24 * 60 * 60 * 1_000;

/// Longest name of a client of request ids, bytes.
pub const REQUEST_CLIENT_BYTES_MAX: usize = 32;
/// Bytes of values that a partition remembers of an update that tells them; of more it remembers none.
pub const REQUEST_VALUES_BYTES_MAX: usize = 1 << 10;
/// Answers to requests with an id that a partition remembers, unless configured.
pub const REQUEST_ANSWERS_DEFAULT: u32 = 4 << 10;
/// Most answers to requests with an id that a partition may be configured to remember.
pub const REQUEST_ANSWERS_MAX: u32 = 1 << 20;
/// Clients of request ids that a partition remembers, unless configured.
pub const REQUEST_CLIENTS_DEFAULT: u32 = 4 << 10;
/// Most clients of request ids that a partition may be configured to remember.
pub const REQUEST_CLIENTS_MAX: u32 = 1 << 20;
/// How long a client of request ids is remembered at least after its last write, milliseconds, unless
/// configured.
pub const REQUEST_CLIENT_KEEP_MS: u64 = 10 * 60 * 1_000;
/// Answers and clients that one write has a partition forget at most: bounds its time.
pub const REQUESTS_FORGOTTEN_PER_WRITE: usize = 16;

/// Most records of one page of a `Scan`, and how many when the request does not say.
pub const SCAN_RECORDS_MAX: usize = 4 << 10;
/// See [`SCAN_RECORDS_MAX`].
pub const SCAN_RECORDS_DEFAULT: usize = 1_000;
/// Bytes of keys and values after which a page of a `Scan` ends: what a core may be busy with at once.
pub const SCAN_PAGE_BYTES: usize = 1 << 20;

/// HTTP/2 streams a client may have open on one connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 1_024;
/// HTTP/2 window a client may fill on one stream before the server has reserved memory for the
/// rest of the message. A larger message costs one round trip for the reservation.
pub const STREAM_WINDOW_BYTES: u32 = 128 << 10;
/// HTTP/2 window of a whole connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Request headers of one call, bytes, counted as HTTP/2 does (32 more for each field).
pub const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Bytes waiting to be sent on one connection above which it is not read any more, and calls
/// that arrived on it are not started.
pub const SEND_BACKLOG_BYTES_MAX: usize = 4 << 20;
/// Bytes of unsent answers on one connection. An answer above it costs its stream a reset:
/// only calls that were started before the client fell behind can get there.
pub const RESPONSE_BACKLOG_BYTES_MAX: usize = 24 << 20;
/// The same for all connections of a core.
pub const RESPONSE_BACKLOG_BYTES_PER_CORE_MAX: usize = 512 << 20;
/// Bytes of request messages held for one connection until they are handed out: one half for
/// messages within their stream's first window, one half for reservations of larger ones.
pub const REQUEST_BYTES_PER_CONNECTION_MAX: usize = 32 << 20;
/// The same for all connections of a core. Above it: `OVERLOADED`.
pub const REQUEST_BYTES_PER_CORE_MAX: usize = 256 << 20;
/// Longest text of a refusal that is sent (it travels in headers), bytes.
pub const REFUSAL_TEXT_BYTES_MAX: usize = 1 << 10;
/// Longest `google.rpc.Status` that is sent with a refusal, bytes before base64. Above it the
/// metadata is left out.
pub const REFUSAL_STATUS_BYTES_MAX: usize = 3 << 10;
/// How long a client may take from connecting to its first SETTINGS frame, milliseconds.
pub const HANDSHAKE_TIMEOUT_MS: u64 = 10_000;
/// How long a draining connection waits for the client to see the first GOAWAY, milliseconds.
pub const DRAIN_NOTICE_MS: u64 = 1_000;
/// Acknowledgements of SETTINGS and PING that may wait to be sent on one connection.
pub const UNSENT_ACKS_MAX: usize = 1_000;
/// Control frames (PING, SETTINGS, RST_STREAM, PRIORITY, empty DATA) that a connection may send
/// at once; each frame of an answer allows one more.
pub const CONTROL_FRAMES_BURST: u32 = 10_000;
/// Control frames a connection may send per second on top of that, sustained.
pub const CONTROL_FRAMES_PER_S: u32 = 1_000;
/// Largest message buffer that is kept for reuse, bytes of capacity.
pub const POOLED_BUFFER_BYTES_MAX: usize = 2 << 20;
/// Message buffers kept for reuse by one core, bytes of capacity in all.
pub const BUFFER_POOL_BYTES_MAX: usize = 32 << 20;

/// Connections one core serves.
pub const CONNECTIONS_PER_CORE_MAX: usize = 16 << 10;
/// Connections that wait to be accepted, per listening socket.
pub const LISTEN_BACKLOG: i32 = 4 << 10;
/// Pause before accepting is tried again after descriptors or memory ran out, milliseconds.
pub const ACCEPT_RETRY_MS: u64 = 100;
/// How long a connection that is closing may take to be sent its last bytes and to answer with
/// its own close, milliseconds. Then it is cut.
pub const CLOSE_GRACE_MS: u64 = 5_000;
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
/// Requests one partition queues while its store fetches from disk. With `mode = "split"` of the
/// dispatcher: reads, and writes as many again.
pub const PARTITION_QUEUE_MAX: usize = 4 << 10;
/// Waiting reads of one partition that one `fetch` asks the disk for, with `mode = "split"`.
pub const FETCHED_READS_MAX: usize = 64;
/// Bytes of records that one partition keeps since writes replaced them and are not durable yet,
/// with `mode = "split"`. Above it: `OVERLOADED`.
pub const REPLACED_BYTES_MAX: usize = 16 << 20;
/// Reads of one partition that wait until it has got to what their session knows.
pub const SESSION_READS_MAX: usize = 4 << 10;
/// How long such a read waits at most, milliseconds; and no longer than three quarters of the time that
/// its deadline leaves.
pub const SESSION_WAIT_MS_MAX: u32 = 5_000;
/// Bytes of records accepted and not yet written to the log, per core. Above it: `OVERLOADED`.
pub const LOG_BUFFER_BYTES_MAX: usize = 16 << 20;
/// One group of the log, bytes on disk: what one durable write covers. Holds the largest record.
pub const LOG_GROUP_BYTES_MAX: usize = 2 << 20;
/// Bytes of records that no reply waits for and that are written out at once when so many have come together.
pub const LOG_LAZY_BYTES: usize = 256 << 10;
/// How long records that no reply waits for stay in memory at most, milliseconds.
pub const LOG_LAZY_MS: u64 = 4;
/// Records that share a log write and may be waited for; with more its fixed cost is well shared.
pub const LOG_COMPANY_MAX: u32 = 64;
/// Longest that a log write waits for records to share it, however slow the disk: callers that are
/// back at once are back within less.
pub const LOG_COMPANY_WAIT_MAX_US: u64 = 1_000;
/// Size of a log segment's file unless configured, bytes.
pub const LOG_SEGMENT_BYTES: u64 = 64 << 20;
/// Smallest log segment that may be configured, bytes.
pub const LOG_SEGMENT_BYTES_MIN: u64 = 8 << 20;
/// Largest log segment that may be configured, bytes.
pub const LOG_SEGMENT_BYTES_MAX: u64 = 4 << 30;
/// Room that making a log segment leaves on the disk, bytes: manifests, registries, and what engines of
/// stores have accepted and not written yet must not meet a full disk because of the log.
pub const LOG_DISK_RESERVE_BYTES: u64 = 16 << 20;
/// Empty segments that one core's log keeps for good.
pub const LOG_SPARE_SEGMENTS: usize = 4;
/// Of those that it keeps beyond, because it has lately been in need of so many, one goes this often.
pub const LOG_TRIM_INTERVAL_MS: u64 = 60_000;
/// Bytes of records that an on-disk store holds in memory until it has written them, per partition.
pub const STORE_OVERLAY_BYTES_MAX: usize = 16 << 20;
/// Bytes of records that one `fetch` from an on-disk store brings into memory; of further ones it
/// tells the version only. Two answers' worth.
pub const STORE_FETCH_BYTES_MAX: usize = 2 * RESPONSE_BYTES_MAX;
/// Smallest capacity of the fast directory of `tiered` stores that may be configured, MiB.
pub const TIERED_CAPACITY_MB_MIN: i64 = 16;
/// What the fast directory of `tiered` stores leaves of its disk at least, bytes: the log's segments and the
/// stores' own files may be on the same.
pub const TIERED_FREE_BYTES_MIN: u64 = 256 << 20;
/// How long the fast directory of `tiered` stores is left alone after a failure, milliseconds.
pub const TIERED_RETRY_MS: u64 = 10_000;
/// Bytes of records that a store on disk takes in before the next work, while it is loaded.
pub const STORE_LOAD_BYTES_MAX: usize = 4 << 20;

/// Bytes of writes that may wait, in memory and in a file, for the store that their partition
/// changes to. Above it: `OVERLOADED`.
pub const STORE_CHANGE_BACKLOG_BYTES_MAX: usize = 1 << 30;
/// How much of that in memory. Above it: `OVERLOADED`.
pub const STORE_CHANGE_MEMORY_BYTES_MAX: usize = 32 << 20;
/// How much of that in memory before it is written to the file.
pub const STORE_CHANGE_SPILL_BYTES: usize = 8 << 20;
/// Bytes of writes that one round of catching up applies to the new store at most.
pub const STORE_CHANGE_ROUND_BYTES: usize = 64 << 20;
/// Bytes of waiting writes below which the stores can be switched.
pub const STORE_CHANGE_SWITCH_BYTES: usize = 4 << 20;
/// Bytes of writes that may wait while the manifest is written. Above it: `OVERLOADED`.
pub const STORE_CHANGE_CLOSED_BYTES_MAX: usize = 16 << 20;
/// Bytes of waiting writes that one turn of a core applies to the new store before it is switched
/// to: what requests wait for.
pub const STORE_CHANGE_STEP_BYTES: usize = 256 << 10;

/// Bytes of writes that one core has under way to Kafka. Above it: `OVERLOADED`.
pub const KAFKA_PENDING_BYTES_PER_CORE_MAX: usize = 64 << 20;
/// Batches of writes (a turn of a core each) between the cores and the thread that sends them to
/// Kafka. What finds no room waits at its core, within the bound above.
pub const KAFKA_BATCHES_QUEUED_MAX: usize = 1 << 10;
/// Partitions whose logs in Kafka are replayed at a time; more wait.
pub const KAFKA_OPENINGS_MAX: usize = 256;
/// Messages fetched from Kafka and not looked at yet, KiB, for all partitions together.
pub const KAFKA_FETCH_QUEUE_KB: usize = 32 << 10;
/// Places in a partition's log in Kafka that are remembered until a snapshot passes them.
pub const KAFKA_ANCHORS_MAX: usize = 64;

/// Longest a core sleeps while it has work or had some a moment ago, milliseconds.
pub const TICK_BUSY_MS: u64 = 5;
/// Longest a core sleeps when nothing happens, milliseconds.
pub const TICK_IDLE_MS: u64 = 100;
/// Expired records that one core reclaims from its partitions' stores at one tick.
pub const EXPIRED_PER_TICK_MAX: usize = 1 << 10;
/// Partitions of a core that housekeeping looks at in a tick: all thousand each time would take a
/// twentieth of a busy core.
pub const PARTITIONS_PER_TICK: usize = 128;
/// Calls into stores that may block, waiting for a thread of the blocking pool.
pub const BLOCKING_JOBS_MAX: usize = 4 << 10;
/// Threads of the blocking pool.
pub const BLOCKING_THREADS_MAX: usize = 16;

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

/// Stages of one pipeline.
pub const PIPELINE_STAGES_MAX: usize = 16;
/// One pipeline as it is declared, bytes of TOML. Each partition may have one of its own, and the
/// manifest holds them all.
pub const PIPELINE_BYTES_MAX: usize = 8 << 10;
/// Longest name of a stage, bytes: it is a label of metrics.
pub const STAGE_NAME_BYTES_MAX: usize = 32;
/// Bytes of changed values that a partition keeps room for between writes, per stage that changes.
pub const CHANGED_BYTES_KEPT: usize = 4 << 10;
/// Steps of all paths of fields of one stage.
pub const FIELD_PATHS_MAX: usize = 1 << 10;
/// Largest file of protobuf descriptors that a declaration names, bytes. Large repositories' have some MiB.
pub const DESCRIPTOR_SET_BYTES_MAX: u64 = 16 << 20;
/// How deep objects, arrays and messages may lie within each other where a stage reads values.
pub const FIELD_DEPTH_MAX: usize = 128;
/// Token buckets of one filter that makes one for each prefix it meets. Prefixes beyond share one.
pub const RATE_BUCKETS_MAX: usize = 4 << 10;
/// Longest retry delay that a rate limit tells, milliseconds.
pub const RETRY_RATE_MS_MAX: u32 = 60_000;

/// Largest registry or configuration file that is read, bytes.
pub const TEXT_FILE_BYTES_MAX: u64 = 8 << 20;
/// Largest manifest that is read, bytes: more than `PARTITIONS_PER_NODE_MAX` partitions need that
/// each have the longest pipeline.
pub const MANIFEST_BYTES_MAX: u64 = 256 << 20;
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
/// Calls a client has under way by default, over all its connections; more wait their turn.
pub const CLIENT_CALLS_MAX: usize = 256;
/// HTTP/2 window a server may fill on one stream of a client.
pub const CLIENT_STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// HTTP/2 window a server may fill on one connection of a client.
pub const CLIENT_CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Times a client looks up a new owner for the same key in one call after `BAD_NODE`.
pub const CLIENT_REROUTES_MAX: u32 = 2;

/// Longest record of an import's input, bytes: anything longer could not be stored anyway.
pub const IMPORT_RECORD_BYTES_MAX: usize = BATCH_BYTES_MAX;
/// Lanes of an import: batches under way at once. Records of one key always share a lane.
pub const IMPORT_LANES_MAX: usize = 64;
/// Distinct key hashes that a dry run of an import remembers (8 bytes each).
pub const IMPORT_DISTINCT_KEYS_MAX: usize = 16 << 20;

/// Calls that the load generator has under way at once.
pub const BENCH_CALLS_MAX: usize = 16 << 10;
/// Connections to each core that the load generator makes.
pub const BENCH_CONNECTIONS_MAX: usize = 1 << 10;
/// Threads of the load generator.
pub const BENCH_THREADS_MAX: usize = 64;
/// Records of the load generator.
pub const BENCH_RECORDS_MAX: u64 = 1 << 40;
/// Longest value that the load generator writes, bytes: a request with one record always holds it.
pub const BENCH_VALUE_BYTES_MAX: usize = BATCH_BYTES_MAX - KEY_BYTES_MAX - 64;
/// Loads that one sweep measures.
pub const BENCH_STEPS_MAX: usize = 64;
