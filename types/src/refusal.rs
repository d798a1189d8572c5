//! Why a request was not done: a stable reason, its gRPC code, and what to do about it.
//!
//! One table for every plane. The reason strings are part of the contract: clients match on
//! them (`google.rpc.ErrorInfo.reason`), people read the message.

use std::{borrow::Cow, fmt};

use crate::limits;

/// gRPC status codes that Stateside answers with; the numbers are gRPC's.
/// Source: <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are gRPC's own")]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $code:ident, $advice:literal;)+) => {
        /// The stable reason of a refusal. `as_str` is what `ErrorInfo.reason` carries.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)+ }

        impl Reason {
            /// Every reason, for documentation and exhaustive tests.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The stable string.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// The gRPC status code that goes with the reason.
            pub const fn code(self) -> Code {
                match self { $(Self::$name => Code::$code,)+ }
            }

            /// What the caller should do, one sentence.
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$name => $advice,)+ }
            }

            /// Whether the refusal follows from the records: then a partition remembers it under the
            /// request's id, as it does a write.
            pub const fn is_verdict(self) -> bool {
                matches!(self, Self::ConditionFailed | Self::WrongType | Self::OutOfRange)
            }

            /// The reason that a string names.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

reasons! {
    /// A key of no bytes.
    EmptyKey = "EMPTY_KEY", InvalidArgument, "give every entry a key of 1 to 4096 bytes";
    /// A key or routing key above the limit.
    KeyTooLarge = "KEY_TOO_LARGE", InvalidArgument, "keep keys and routing keys to 4096 bytes";
    /// A batch without entries.
    EmptyBatch = "EMPTY_BATCH", InvalidArgument, "send at least one entry";
    /// A request above 1 MiB or above the number of entries allowed.
    BatchTooLarge = "BATCH_TOO_LARGE", InvalidArgument, "split the batch: at most 1 MiB and 16384 entries";
    /// The records asked for do not fit into one answer.
    ResponseTooLarge = "RESPONSE_TOO_LARGE", InvalidArgument, "ask for fewer keys in one Get";
    /// The same key twice in one write batch.
    DuplicateKey = "DUPLICATE_KEY", InvalidArgument, "name each key once in a write batch";
    /// `if_absent` together with `if_version`, or an unknown enum value.
    InvalidCondition = "INVALID_CONDITION", InvalidArgument, "set if_absent or if_version, not both";
    /// An update without an operator, or with several.
    InvalidOperator = "INVALID_OPERATOR", InvalidArgument, "give every entry of an update exactly one operator";
    /// The value is not what the operator works on.
    WrongType = "WRONG_TYPE", FailedPrecondition, "read the record; add, max and min take decimal integers, merge takes JSON";
    /// The result of an addition is no 64-bit integer.
    OutOfRange = "OUT_OF_RANGE", OutOfRange, "read the record; integers have 64 bits and a sign";
    /// A patch that is no JSON document, or nested too deeply.
    MalformedJson = "MALFORMED_JSON", InvalidArgument, "send a JSON document (RFC 7396) with at most 32 levels of objects";
    /// A value that a store of integers does not hold.
    NotAnInteger = "NOT_AN_INTEGER", InvalidArgument,
        "send the decimal text of a 64-bit integer without plus sign or leading zeros, or use a partition with another store than counters";
    /// A time to live beyond the limit, or in a partition that keeps no time.
    InvalidTtl = "INVALID_TTL", InvalidArgument,
        "give a ttl_ms of at most 3153600000000 (a hundred years), in a partition with a clock stage";
    /// An atomic batch whose keys live in several partitions.
    AtomicSpansPartitions = "ATOMIC_SPANS_PARTITIONS", FailedPrecondition,
        "give the batch one routing_key so that its keys share a partition, or drop atomic";
    /// `if_absent` or `if_version` did not hold; nothing of the partition's batch was written.
    ConditionFailed = "CONDITION_FAILED", FailedPrecondition, "read the record again and decide anew";
    /// A request id that names nobody, or a number of 0; or in a partition that keeps no time.
    InvalidRequestId = "INVALID_REQUEST_ID", InvalidArgument,
        "give request_id a client of 1 to 32 bytes and a number from 1, in a partition with a clock stage";
    /// The request id belongs to another request.
    RequestIdReused = "REQUEST_ID_REUSED", FailedPrecondition,
        "repeat the same request under its id, and give every other request a higher number";
    /// The request may have been executed; its answer is forgotten, or its client said that it has it.
    RequestForgotten = "REQUEST_FORGOTTEN", FailedPrecondition,
        "read the keys to see whether the request took effect; retry sooner, or raise request_ids.answers_max";
    /// No room to remember one more client of request ids.
    RequestClientsFull = "REQUEST_CLIENTS_FULL", ResourceExhausted,
        "use one client for many requests, with rising numbers; or raise request_ids.clients_max";
    /// The partition's store does not keep its keys in order.
    StoreNotOrdered = "STORE_NOT_ORDERED", FailedPrecondition,
        "scan partitions whose store orders its keys: memory-ordered, lsm, tiered, sled or counters";
    /// The partition was written since the scan's first page, where the scan reads.
    ScanMoved = "SCAN_MOVED", Aborted,
        "scan again from the beginning, in one page if the records fit, or ask for SCAN_EACH_PAGE";
    /// The partition has not got to the state that the session's token stands for.
    SessionBehind = "SESSION_BEHIND", Unavailable,
        "retry after the delay in RetryInfo; if the partition stays behind, a crash took back what the session was acknowledged in memory: begin a new session";
    /// The session's token is of content that the partition does not have any more.
    SessionEnded = "SESSION_ENDED", FailedPrecondition,
        "begin a new session: the partition was restored from a snapshot, or removed and added again";
    /// No partition of this node owns the key.
    BadNode = "BAD_NODE", FailedPrecondition, "refresh Topology, of other nodes too, and send the request to the owner";
    /// A queue, window or buffer is full.
    Overloaded = "OVERLOADED", ResourceExhausted, "retry after the delay in RetryInfo, with backoff";
    /// The disk of the log or the store is full; reads go on.
    DiskFull = "DISK_FULL", ResourceExhausted, "free space on the data directory's disk; writes resume by themselves";
    /// The memory limit is reached; reads, removes and shrinking writes go on.
    MemoryFull = "MEMORY_FULL", ResourceExhausted, "remove records, raise memory.limit_mb, or move partitions away";
    /// The log in Kafka does not answer. The message says whether the write may still take effect.
    LogUnavailable = "LOG_UNAVAILABLE", Unavailable, "retry after the delay in RetryInfo; when the outcome is unknown, under a request_id, or read the key first";
    /// The log in Kafka is not this partition's, or not all of it.
    LogMismatch = "LOG_MISMATCH", FailedPrecondition, "do what the message says, then restart the node or add the partition again";
    /// The partition is being recovered.
    PartitionStarting = "PARTITION_STARTING", Unavailable, "retry after the delay in RetryInfo";
    /// The partition stopped after a failed write to its log or store.
    PartitionStopped = "PARTITION_STOPPED", Unavailable, "see the node's log for the failed write, mend the disk, restart the node";
    /// The partition's files are damaged; it serves nothing until it is restored.
    PartitionDamaged = "PARTITION_DAMAGED", DataLoss, "restore the partition from a snapshot (stateside partition restore)";
    /// The node is stopping.
    ShuttingDown = "SHUTTING_DOWN", Unavailable, "retry on another node, or after the restart";
    /// The call's deadline passed. A write may still take effect.
    DeadlineExceeded = "DEADLINE_EXCEEDED", DeadlineExceeded, "send a write again under its request_id, or read the key to see whether it took effect; allow more time";
    /// The message is not what the method takes.
    MalformedRequest = "MALFORMED_REQUEST", InvalidArgument, "send the message that stateside/v1/*.proto defines";
    /// No such service or method.
    UnknownMethod = "UNKNOWN_METHOD", Unimplemented, "call a method of stateside.v1.DataPlane or grpc.health.v1.Health here";
    /// A health check of a service that is not here.
    UnknownService = "UNKNOWN_SERVICE", NotFound, "ask for the health of stateside.v1.DataPlane, or of \"\"";
    /// The client compressed its message with something this server does not read.
    CompressionUnsupported = "COMPRESSION_UNSUPPORTED", Unimplemented, "send messages with grpc-encoding identity";
    /// No partition has this id (or exactly this range).
    UnknownPartition = "UNKNOWN_PARTITION", NotFound, "list the partitions (stateside partition list)";
    /// A partition has this id already.
    PartitionExists = "PARTITION_EXISTS", AlreadyExists, "choose another id, or leave it out";
    /// The range shares hashes with a partition that exists.
    RangeOverlap = "RANGE_OVERLAP", FailedPrecondition, "remove the other partition first, or choose a free range";
    /// A filter of the partition's pipeline does not let the write through.
    Filtered = "FILTERED", InvalidArgument, "change the key or value as the message says, or the stage's options";
    /// A stage of the partition's pipeline has to read the value and cannot.
    ValueUnreadable = "VALUE_UNREADABLE", InvalidArgument, "send a value in the format that the message names";
    /// `end` is not above `start`, or the range is missing.
    InvalidRange = "INVALID_RANGE", InvalidArgument, "give start below end; end 0 means through the last hash";
    /// A field of a control-plane request is not usable.
    InvalidArgument = "INVALID_ARGUMENT", InvalidArgument, "correct the field that the message names";
    /// More partitions than a node may hold.
    TooManyPartitions = "TOO_MANY_PARTITIONS", ResourceExhausted, "remove partitions, or add a node";
    /// The partition holds records and the request did not confirm their loss.
    ConfirmationRequired = "CONFIRMATION_REQUIRED", FailedPrecondition, "take a snapshot if the records matter, then repeat with confirm set";
    /// The partition is being changed by another request.
    PartitionBusy = "PARTITION_BUSY", Unavailable, "retry when the other operation on the partition has ended";
    /// The snapshot's path exists.
    SnapshotExists = "SNAPSHOT_EXISTS", AlreadyExists, "choose a path that does not exist; snapshots are never overwritten";
    /// The snapshot's path cannot be written.
    SnapshotUnwritable = "SNAPSHOT_UNWRITABLE", FailedPrecondition, "choose an absolute path in a directory that the node may write";
    /// The snapshot cannot be read.
    SnapshotUnreadable = "SNAPSHOT_UNREADABLE", FailedPrecondition, "give the absolute path of a snapshot file that the node may read";
    /// The snapshot's bytes are not what was written.
    SnapshotDamaged = "SNAPSHOT_DAMAGED", DataLoss, "use another copy of the snapshot";
    /// The file is no Stateside snapshot, or one of another hash range.
    SnapshotForeign = "SNAPSHOT_FOREIGN", FailedPrecondition, "restore into a partition with the snapshot's hash range";
    /// The file was written by another version of Stateside.
    FileVersion = "FILE_VERSION", FailedPrecondition, "use the Stateside release that wrote the file, or a later one that reads it";
    /// The registry file could not be read or rewritten.
    RegistryUnavailable = "REGISTRY_UNAVAILABLE", Unavailable, "mend the registry file; the node keeps its current partitions meanwhile";
    /// A bug. The message helps whoever reads the report.
    Internal = "INTERNAL", Internal, "report this with the node's log";
}

/// A refused request: changes nothing, tells why and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The stable reason; it fixes the gRPC code.
    pub reason: Reason,
    /// What happened, for people: names the entry, the limit, the file. Not stable.
    pub message: Cow<'static, str>,
    /// After how long a retry makes sense, milliseconds. None: a retry as is will fail again.
    pub retry_after_ms: Option<u32>,
    /// `ErrorInfo.metadata`: stable keys for programs, e.g. `entry`, `version`, `limit`.
    pub metadata: Vec<(Cow<'static, str>, String)>,
}

impl Refusal {
    /// A refusal with its reason's usual retry hint.
    pub fn new(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        let retry_after_ms = match reason {
            Reason::Overloaded | Reason::PartitionBusy => Some(limits::RETRY_OVERLOADED_MS),
            Reason::DiskFull
            | Reason::MemoryFull
            | Reason::RegistryUnavailable
            | Reason::RequestClientsFull => Some(limits::RETRY_FULL_MS),
            Reason::LogUnavailable
            | Reason::PartitionStarting
            | Reason::SessionBehind
            | Reason::ShuttingDown => Some(limits::RETRY_STARTING_MS),
            _ => None,
        };
        Self { reason, message: message.into(), retry_after_ms, metadata: Vec::new() }
    }

    /// Adds a stable key and its value to `ErrorInfo.metadata`.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.metadata.push((key.into(), value.to_string()));
        self
    }

    /// The message followed by the advice: what a status message carries.
    pub fn text(&self) -> String {
        format!("{}; {}", self.message, self.reason.advice())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.reason.as_str(), self.message, self.reason.advice())
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_strings_are_unique_and_parse_back() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_name(reason.as_str()), Some(*reason));
            assert!(reason.as_str().bytes().all(|b| b.is_ascii_uppercase() || b == b'_'));
            assert!(!reason.advice().is_empty());
        }
    }

    #[test]
    fn what_may_be_retried_says_when() {
        assert!(Refusal::new(Reason::Overloaded, "x").retry_after_ms.is_some());
        assert!(Refusal::new(Reason::EmptyKey, "x").retry_after_ms.is_none());
    }
}
