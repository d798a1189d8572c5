//! The one list of metrics: name, kind, labels and meaning of each. Prometheus' conventions:
//! base units (seconds, bytes), counters end in `_total`, labels by core and partition. Never a
//! key, a client or anything else that has no bound.

use std::fmt::Write as _;

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only rises, from 0 at the start.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size, with `_bucket`, `_sum` and `_count`.
    Histogram,
}

/// A metric.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

impl Kind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

macro_rules! families {
    ($($constant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(pub(super) const $constant: &Family = &Family {
            name: $name,
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: $help,
        };)+
        /// Every metric, in the order in which they are shown.
        pub(super) const FAMILIES: &[&Family] = &[$($constant,)+];
    };
}

families! {
    REQUESTS: Counter "stateside_requests_total" ["core", "method", "code"] "Calls answered on the data plane, by gRPC status code.";
    REQUEST_SECONDS: Histogram "stateside_request_duration_seconds" ["core", "method"] "Time from a whole request to its answer; calls that are refused before they reach a core, such as unknown methods, are not timed.";
    REFUSED: Counter "stateside_refused_total" ["core", "reason"] "Refusals, of calls or of entries of a batch over several partitions, by reason.";
    RECEIVED: Counter "stateside_received_bytes_total" ["core"] "Bytes received on data plane connections.";
    SENT: Counter "stateside_sent_bytes_total" ["core"] "Bytes sent on data plane connections.";
    CONNECTIONS: Gauge "stateside_connections" ["core"] "Open data plane connections.";
    ACCEPTED: Counter "stateside_connections_accepted_total" ["core"] "Data plane connections accepted.";
    ACCEPT_ERRORS: Counter "stateside_accept_errors_total" ["core"] "Failed accepts (descriptors used up), and connections closed because there were too many.";
    PROTOCOL_ERRORS: Counter "stateside_protocol_errors_total" ["core"] "Connections ended for what the peer sent: no HTTP/2, broken frames, a flood of control frames, or nothing within the time for a beginning.";
    HOPS_SENT: Counter "stateside_hops_sent_total" ["core"] "Parts of calls that this core sent to the core that owns the partition. Clients that route for themselves cause none.";
    HOPS_RECEIVED: Counter "stateside_hops_received_total" ["core"] "Parts of calls that other cores sent to this core.";
    HOPS_PENDING: Gauge "stateside_hops_pending" ["core"] "Parts of calls out at other cores.";
    CALLS: Gauge "stateside_calls_pending" ["core"] "Calls under way.";
    WINDOW: Gauge "stateside_window_writes" ["core"] "Writes accepted that some stage is not done with: with a log, those not on disk yet.";
    HELD_READS: Gauge "stateside_held_reads" ["core"] "Reads that wait until what they saw is durable.";
    QUEUED_READS: Gauge "stateside_queued_reads" ["core"] "Reads that wait while their partition's store asks its disk.";
    QUEUED_WRITES: Gauge "stateside_queued_writes" ["core"] "Writes that wait while their partition's store asks its disk.";
    SESSION_READS: Gauge "stateside_session_reads" ["core"] "Reads that wait until their partition shows what their session knows.";
    REPLACED: Gauge "stateside_replaced_bytes" ["core"] "Memory of records that writes replaced and that reads show until those writes are durable: partitions with mode split.";
    LOG_PENDING: Gauge "stateside_log_pending_bytes" ["core"] "Bytes accepted and not yet written to the log.";
    LOG_RECORDS: Counter "stateside_log_records_total" ["core"] "Records written to the log.";
    LOG_WRITTEN: Counter "stateside_log_written_bytes_total" ["core"] "Bytes written to the log, padding included.";
    LOG_SECONDS: Histogram "stateside_log_write_duration_seconds" ["core"] "Time of one durable write to the log; its count is the number of writes.";
    LOG_GROUP: Histogram "stateside_log_group_records" ["core"] "Records that one durable write covers.";
    LOG_USED: Gauge "stateside_log_used_bytes" ["core"] "Bytes of log segments in use.";
    LOG_SEGMENTS: Gauge "stateside_log_segments" ["core"] "Log segments in use.";
    LOG_PROBLEM: Gauge "stateside_log_problem" ["core"] "1 while the log of the core takes no writes: disk full, or failed.";
    SNAPSHOTS: Counter "stateside_snapshots_total" ["core"] "Snapshots finished, in the background and on request.";
    SNAPSHOT_FAILURES: Counter "stateside_snapshot_failures_total" ["core"] "Snapshots that did not get to their end, or could not be begun in the background.";
    SNAPSHOT_BYTES: Counter "stateside_snapshot_written_bytes_total" ["core"] "Bytes of the snapshots that were finished.";
    STORE_WORK: Histogram "stateside_store_work_duration_seconds" ["core"] "Time of one piece of blocking work of a store on disk, such as fetching records or writing a batch of them.";
    STORE_MEMORY: Gauge "stateside_store_memory_bytes" ["core"] "Memory of the state stores of the core.";
    TIERED_LOOKUPS: Counter "stateside_tiered_lookups_total" ["purpose", "tier"] "Lookups in stores of kind tiered, of records and of pieces of long ones, by purpose (read; or other: of what a write replaces, and of pieces that a scan or snapshot passes) and by the tier that answered: fast / (fast + slow) is the hit rate. What is in memory still is not looked up.";
    TIERED_ADMITTED: Counter "stateside_tiered_admitted_total" [] "Entries written to the fast directory: after a lookup that it could not answer, or with a write.";
    TIERED_ADMITTED_BYTES: Counter "stateside_tiered_admitted_bytes_total" [] "Bytes of these entries.";
    TIERED_KEPT: Counter "stateside_tiered_kept_total" [] "Entries of these that were there already, and were read shortly before they would have gone.";
    TIERED_EVICTED: Counter "stateside_tiered_evicted_total" [] "Entries that left the fast directory to make room.";
    TIERED_PASSED_OVER: Counter "stateside_tiered_passed_over_total" [] "Entries that were not admitted, for the fast directory did not keep up.";
    TIERED_DAMAGED: Counter "stateside_tiered_damaged_total" [] "Entries of the fast directory that were not what had been written; the slow directory answered instead.";
    TIERED_FAILURES: Counter "stateside_tiered_failures_total" [] "Failed openings, reads and writes of the fast directory. After each it is emptied, and tried again 10 s later.";
    TIERED_DOWN: Gauge "stateside_tiered_fast_down" [] "1 while the fast directory cannot be used and the slow directory answers everything.";
    TIERED_ENTRIES: Gauge "stateside_tiered_entries" [] "Entries in the fast directory.";
    TIERED_BYTES: Gauge "stateside_tiered_fast_bytes" [] "Length of the fast directory's file.";
    TIERED_CAPACITY: Gauge "stateside_tiered_fast_capacity_bytes" [] "What the fast directory may take; 0 while no partition has a store of kind tiered.";
    TIERED_MEMORY: Gauge "stateside_tiered_memory_bytes" [] "Memory of the fast directory's index and buffers.";
    PARTITION_STATE: Gauge "stateside_partition_state" ["core", "partition", "state"] "1 for the state that the partition is in: init, primary, stopped, damaged or retired.";
    PARTITION_RECORDS: Gauge "stateside_partition_records" ["core", "partition"] "Records held.";
    PARTITION_PAYLOAD: Gauge "stateside_partition_payload_bytes" ["core", "partition"] "Bytes of keys and values held.";
    PARTITION_MEMORY: Gauge "stateside_partition_memory_bytes" ["core", "partition"] "Memory of the partition, everything included.";
    PARTITION_RECLAIMED: Counter "stateside_partition_reclaimed_records_total" ["core", "partition"] "Expired records taken out of the store since it was opened or restored. Until then they are absent to clients and count as held.";
    PARTITION_SEQUENCE: Gauge "stateside_partition_sequence" ["core", "partition"] "Sequence of the last batch applied.";
    PARTITION_DURABLE: Gauge "stateside_partition_durable_sequence" ["core", "partition"] "Sequence up to which the partition is durable.";
    PARTITION_SNAPSHOT: Gauge "stateside_partition_snapshot_sequence" ["core", "partition"] "Sequence that the newest snapshot in the data directory, or the store itself, covers.";
    PARTITION_SNAPSHOT_AGE: Gauge "stateside_partition_snapshot_age_seconds" ["core", "partition"] "Age of the newest snapshot in the data directory; absent while there is none.";
    REQUEST_ANSWERS: Gauge "stateside_partition_request_answers" ["core", "partition"] "Answers to requests with an id that the partition remembers.";
    REQUEST_CLIENTS: Gauge "stateside_partition_request_clients" ["core", "partition"] "Clients of request ids that the partition remembers.";
    REQUEST_AGE: Gauge "stateside_partition_request_oldest_age_seconds" ["core", "partition"] "Age of the oldest answer to a request with an id; absent while there is none.";
    RETRIES_ANSWERED: Counter "stateside_partition_retries_answered_total" ["core", "partition"] "Retries of requests with an id that got the original answer, since the partition was opened.";
    KAFKA_EPOCH: Gauge "stateside_partition_kafka_epoch" ["core", "partition"] "Epoch of this node's claim on the partition's log in Kafka, 0 while it has none; absent for partitions with another log.";
    KAFKA_OFFSET: Gauge "stateside_partition_kafka_offset" ["core", "partition"] "Offset of the last message of the partition's log in Kafka that counts; while the log is replayed, the one that is read next.";
    KAFKA_LAG: Gauge "stateside_partition_kafka_lag" ["core", "partition"] "Writes that the Kafka brokers have not acknowledged; while the log is replayed, messages still to be read.";
    NODE_STATE: Gauge "stateside_node_state" ["state"] "1 for the state that the node is in: recovering, serving or draining.";
    RECOVERY_READ: Gauge "stateside_recovery_read_bytes" [] "Bytes of log and snapshots read by the recovery at the start.";
    RECOVERY_TOTAL: Gauge "stateside_recovery_bytes" [] "Bytes of log and snapshots that the recovery at the start reads in all.";
    CONTROL_CALLS: Counter "stateside_control_calls_total" ["outcome"] "Control plane calls, by outcome: ok or refused.";
    STAGE_REFUSED: Counter "stateside_stage_refused_total" ["core", "partition", "stage"] "Writes that a stage of the partition's pipeline refused, by the stage's name; from 0 again when the partition's stages change.";
    STAGE_CHANGED: Counter "stateside_stage_changed_total" ["core", "partition", "stage"] "Values that a stage of the partition's pipeline changed, of writes that were accepted; from 0 again when the partition's stages change.";
    PENDING_CHANGES: Gauge "stateside_pending_changes" [] "Changes of the desired partition set that are not carried out; Status names them.";
    CHANGES: Counter "stateside_partition_changes_total" ["outcome"] "Changes of the partition set, by outcome: done, or failed and repeated.";
    REGISTRY_BROKEN: Gauge "stateside_registry_broken" [] "1 while the registry file cannot be used and the last good set stays in force.";
    UNREPORTED: Gauge "stateside_cores_unreported" [] "Cores that did not describe themselves for this scrape: their gauges are missing.";
    BUILD: Gauge "stateside_build_info" ["version"] "1; the label tells the release.";
    UPTIME: Gauge "stateside_uptime_seconds" [] "Time since the node was started.";
    PROCESS_RESIDENT: Gauge "process_resident_memory_bytes" [] "Resident memory of the process.";
    PROCESS_VIRTUAL: Gauge "process_virtual_memory_bytes" [] "Virtual memory of the process.";
    PROCESS_CPU: Counter "process_cpu_seconds_total" [] "User and system CPU time of the process.";
    PROCESS_FDS: Gauge "process_open_fds" [] "Open file descriptors.";
    PROCESS_FDS_MAX: Gauge "process_max_fds" [] "Most file descriptors that the process may open.";
    PROCESS_THREADS: Gauge "process_threads" [] "Threads of the process.";
    PROCESS_START: Gauge "process_start_time_seconds" [] "When the process started, seconds since 1970.";
}

/// The page `docs/metrics.md`.
pub fn documentation() -> String {
    let mut out = String::from(
        "# Metrics\n\n\
         `http://127.0.0.1:7402/metrics` (`metrics.listen`) answers in the Prometheus text format 0.0.4. The same address\n\
         answers `/healthz` (200 while the process lives) and `/readyz` (200 while the node serves, else 503 with the reason).\n\
         After a start a node is not ready before each of its partitions with a log in Kafka has been open once, or has stopped.\n\
         Labels go by core and partition, never by key. Durations are in seconds; their buckets double every two steps,\n\
         from 1 µs to 16.8 s. What a core counts beside its requests (bytes, connections, what is pending) is as of its\n\
         last tick: 5 ms ago at most while it is busy, 100 ms while it is not.\n\n\
         This page is made from the list that the node itself uses: `UPDATE_DOCS=1 cargo test -p stateside-node documentation`.\n\n\
         | metric | kind | labels | meaning |\n|---|---|---|---|\n",
    );
    for family in FAMILIES {
        let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind, help) = (family.name, family.kind.as_str(), family.help);
        let _ = writeln!(out, "| `{name}` | {kind} | {} | {help} |", labels.join(", "));
    }
    out
}
