//! Everything that is counted, in the Prometheus text format 0.0.4.
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>

use std::fmt::{self, Write as _};

use stateside_pipeline::StageCounts;
use stateside_types::{Code, PartitionState, Reason};

use super::{
    Counter, LATENCY_BOUNDS, Latency, Method, NodeMetrics, ProcessUsage, SIZE_BOUNDS, Sizes,
    families::{self, Family},
};
use crate::core::command::CoreReport;

/// What a scrape shows besides the counters.
pub struct Scrape<'a> {
    /// By core; none for a core that did not answer in time.
    pub reports: &'a [Option<CoreReport>],
    /// `recovering`, `serving` or `draining`.
    pub state: &'a str,
    /// All states.
    pub states: &'a [&'a str],
    /// Bytes read by the recovery, and in all.
    pub recovery: (u64, u64),
    /// Time since the start.
    pub uptime_seconds: f64,
    /// The wall clock, milliseconds since 1970.
    pub now_unix_ms: u64,
    /// What the process uses.
    pub process: ProcessUsage,
}

/// The answer to one scrape.
pub fn render(metrics: &NodeMetrics, scrape: &Scrape<'_>) -> String {
    let mut page = Page { out: String::with_capacity(64 << 10), family: None };
    requests(&mut page, metrics);
    cores(&mut page, metrics);
    core_reports(&mut page, scrape);
    tiered(&mut page, metrics);
    partitions(&mut page, scrape);
    kafka(&mut page, scrape);
    node(&mut page, metrics, scrape);
    process(&mut page, scrape);
    page.out
}

fn requests(page: &mut Page, metrics: &NodeMetrics) {
    page.family(families::REQUESTS);
    for (core, counts) in metrics.cores.iter().enumerate() {
        for method in Method::ALL {
            for (code, count) in counts.requests[*method as usize].iter().enumerate() {
                // The outcome that everybody asks for exists from the start; others once seen.
                if count.get() > 0 || (code == Code::Ok as usize && *method != Method::Unknown) {
                    page.sample(&[&core, &method.as_str(), &code_name(code)], count.get());
                }
            }
        }
    }
    page.family(families::REQUEST_SECONDS);
    for (core, counts) in metrics.cores.iter().enumerate() {
        for method in Method::ALL {
            page.latency(&[&core, &method.as_str()], &counts.latency[*method as usize]);
        }
    }
    page.family(families::REFUSED);
    for (core, counts) in metrics.cores.iter().enumerate() {
        for (reason, count) in Reason::ALL.iter().zip(&counts.refused) {
            page.sample(&[&core, &reason.as_str()], count.get());
        }
    }
}

fn cores(page: &mut Page, metrics: &NodeMetrics) {
    type Pick = fn(&super::CoreMetrics) -> &Counter;
    let simple: [(&'static Family, Pick); 21] = [
        (families::RECEIVED, |m| &m.received_bytes),
        (families::SENT, |m| &m.sent_bytes),
        (families::CONNECTIONS, |m| &m.connections),
        (families::ACCEPTED, |m| &m.connections_accepted),
        (families::ACCEPT_ERRORS, |m| &m.accept_errors),
        (families::PROTOCOL_ERRORS, |m| &m.protocol_errors),
        (families::HOPS_SENT, |m| &m.hops_sent),
        (families::HOPS_RECEIVED, |m| &m.hops_received),
        (families::HOPS_PENDING, |m| &m.hops_pending),
        (families::CALLS, |m| &m.calls),
        (families::WINDOW, |m| &m.window_writes),
        (families::HELD_READS, |m| &m.held_reads),
        (families::QUEUED_READS, |m| &m.queued_reads),
        (families::QUEUED_WRITES, |m| &m.queued_writes),
        (families::SESSION_READS, |m| &m.session_reads),
        (families::REPLACED, |m| &m.replaced_bytes),
        (families::LOG_PENDING, |m| &m.log_pending_bytes),
        (families::LOG_RECORDS, |m| &m.log_records),
        (families::LOG_WRITTEN, |m| &m.log_bytes),
        (families::SNAPSHOTS, |m| &m.snapshots),
        (families::SNAPSHOT_FAILURES, |m| &m.snapshot_failures),
    ];
    for (family, pick) in simple {
        page.family(family);
        for (core, counts) in metrics.cores.iter().enumerate() {
            page.sample(&[&core], pick(counts).get());
        }
    }
    page.family(families::SNAPSHOT_BYTES);
    for (core, counts) in metrics.cores.iter().enumerate() {
        page.sample(&[&core], counts.snapshot_bytes.get());
    }
    type PickLatency = fn(&super::CoreMetrics) -> &Latency;
    let timed: [(&'static Family, PickLatency); 2] =
        [(families::LOG_SECONDS, |m| &m.log_write), (families::STORE_WORK, |m| &m.store_work)];
    for (family, pick) in timed {
        page.family(family);
        for (core, counts) in metrics.cores.iter().enumerate() {
            page.latency(&[&core], pick(counts));
        }
    }
    page.family(families::LOG_GROUP);
    for (core, counts) in metrics.cores.iter().enumerate() {
        page.sizes(&[&core], &counts.log_group);
    }
}

fn core_reports(page: &mut Page, scrape: &Scrape<'_>) {
    type Pick = fn(&CoreReport) -> u64;
    let gauges: [(&'static Family, Pick); 4] = [
        (families::LOG_USED, |report| report.log_bytes),
        (families::LOG_SEGMENTS, |report| report.log_segments),
        (families::LOG_PROBLEM, |report| u64::from(!report.log_problem.is_empty())),
        (families::STORE_MEMORY, |report| report.memory_bytes),
    ];
    for (family, pick) in gauges {
        page.family(family);
        for (core, report) in scrape.reported() {
            page.sample(&[&core], pick(report));
        }
    }
}

fn tiered(page: &mut Page, metrics: &NodeMetrics) {
    let stats = metrics.tiered.stats();
    page.family(families::TIERED_LOOKUPS);
    page.sample(&[&"read", &"fast"], stats.read_hits);
    page.sample(&[&"read", &"slow"], stats.read_misses);
    page.sample(&[&"other", &"fast"], stats.other_hits);
    page.sample(&[&"other", &"slow"], stats.other_misses);
    page.single(families::TIERED_ADMITTED, stats.admitted);
    page.single(families::TIERED_ADMITTED_BYTES, stats.admitted_bytes);
    page.single(families::TIERED_KEPT, stats.kept);
    page.single(families::TIERED_EVICTED, stats.evicted);
    page.single(families::TIERED_PASSED_OVER, stats.passed_over);
    page.single(families::TIERED_DAMAGED, stats.damaged);
    page.single(families::TIERED_FAILURES, stats.failures);
    page.single(families::TIERED_DOWN, u64::from(stats.is_down));
    page.single(families::TIERED_ENTRIES, stats.entries);
    page.single(families::TIERED_BYTES, stats.file_bytes);
    page.single(families::TIERED_CAPACITY, stats.capacity_bytes);
    page.single(families::TIERED_MEMORY, stats.memory_bytes);
}

fn partitions(page: &mut Page, scrape: &Scrape<'_>) {
    type Pick = fn(&crate::core::command::PartitionReport) -> u64;
    page.family(families::PARTITION_STATE);
    for (core, report) in scrape.reported() {
        for partition in &report.partitions {
            for state in PartitionState::ALL {
                let labels: [&dyn fmt::Display; 3] = [&core, &partition.spec.id, state];
                page.sample(&labels, u64::from(partition.state == *state));
            }
        }
    }
    let numbers: [(&'static Family, Pick); 10] = [
        (families::PARTITION_RECORDS, |partition| partition.records),
        (families::PARTITION_PAYLOAD, |partition| partition.payload_bytes),
        (families::PARTITION_MEMORY, |partition| partition.memory_bytes),
        (families::PARTITION_RECLAIMED, |partition| partition.reclaimed),
        (families::PARTITION_SEQUENCE, |partition| partition.sequence.0),
        (families::PARTITION_DURABLE, |partition| partition.durable_sequence.0),
        (families::PARTITION_SNAPSHOT, |partition| partition.snapshot_sequence.0),
        (families::REQUEST_ANSWERS, |partition| partition.requests.answers),
        (families::REQUEST_CLIENTS, |partition| partition.requests.clients),
        (families::RETRIES_ANSWERED, |partition| partition.retries_answered),
    ];
    for (family, pick) in numbers {
        page.family(family);
        for (core, report) in scrape.reported() {
            for partition in &report.partitions {
                page.sample(&[&core, &partition.spec.id], pick(partition));
            }
        }
    }
    page.family(families::PARTITION_SNAPSHOT_AGE);
    for (core, report) in scrape.reported() {
        for partition in report.partitions.iter().filter(|one| one.snapshot_unix_ms > 0) {
            let age_ms = scrape.now_unix_ms.saturating_sub(partition.snapshot_unix_ms);
            page.sample(&[&core, &partition.spec.id], age_ms as f64 / 1e3);
        }
    }
    page.family(families::REQUEST_AGE);
    for (core, report) in scrape.reported() {
        for partition in report.partitions.iter().filter(|one| one.requests.answers > 0) {
            let oldest_unix_ms = partition.requests.oldest.millis();
            let age_ms = scrape.now_unix_ms.saturating_sub(oldest_unix_ms);
            page.sample(&[&core, &partition.spec.id], age_ms as f64 / 1e3);
        }
    }
    type Count = fn(&StageCounts) -> u64;
    let counts: [(&'static Family, Count); 2] = [
        (families::STAGE_REFUSED, |stage| stage.refused),
        (families::STAGE_CHANGED, |stage| stage.changed),
    ];
    for (family, pick) in counts {
        page.family(family);
        for (core, report) in scrape.reported() {
            for partition in &report.partitions {
                for stage in &partition.stages {
                    page.sample(&[&core, &partition.spec.id, &stage.name], pick(stage));
                }
            }
        }
    }
}

/// Absent for partitions without a log in Kafka.
fn kafka(page: &mut Page, scrape: &Scrape<'_>) {
    type Pick = fn(&crate::core::command::KafkaReport) -> u64;
    let gauges: [(&'static Family, Pick); 3] = [
        (families::KAFKA_EPOCH, |kafka| kafka.epoch),
        (families::KAFKA_OFFSET, |kafka| kafka.offset),
        (families::KAFKA_LAG, |kafka| kafka.lag),
    ];
    for (family, pick) in gauges {
        page.family(family);
        for (core, report) in scrape.reported() {
            for partition in &report.partitions {
                if let Some(kafka) = &partition.kafka {
                    page.sample(&[&core, &partition.spec.id], pick(kafka));
                }
            }
        }
    }
}

fn node(page: &mut Page, metrics: &NodeMetrics, scrape: &Scrape<'_>) {
    page.family(families::NODE_STATE);
    for state in scrape.states {
        page.sample(&[state], u64::from(*state == scrape.state));
    }
    let control = &metrics.control;
    page.single(families::RECOVERY_READ, scrape.recovery.0);
    page.single(families::RECOVERY_TOTAL, scrape.recovery.1);
    page.family(families::CONTROL_CALLS);
    page.sample(&[&"ok"], control.calls_ok.get());
    page.sample(&[&"refused"], control.calls_refused.get());
    page.single(families::PENDING_CHANGES, control.pending_changes.get());
    page.family(families::CHANGES);
    page.sample(&[&"done"], control.changes_done.get());
    page.sample(&[&"failed"], control.changes_failed.get());
    page.single(families::REGISTRY_BROKEN, control.registry_broken.get());
    let silent = scrape.reports.iter().filter(|report| report.is_none()).count();
    page.single(families::UNREPORTED, silent);
    page.family(families::BUILD);
    page.sample(&[&env!("CARGO_PKG_VERSION")], 1);
    page.single(families::UPTIME, scrape.uptime_seconds);
}

fn process(page: &mut Page, scrape: &Scrape<'_>) {
    let usage = scrape.process;
    page.single(families::PROCESS_RESIDENT, usage.resident_bytes);
    page.single(families::PROCESS_VIRTUAL, usage.virtual_bytes);
    page.single(families::PROCESS_CPU, usage.cpu_seconds);
    page.single(families::PROCESS_FDS, usage.open_fds);
    page.single(families::PROCESS_FDS_MAX, usage.max_fds);
    page.single(families::PROCESS_THREADS, usage.threads);
    page.single(families::PROCESS_START, usage.start_seconds);
}

impl Scrape<'_> {
    fn reported(&self) -> impl Iterator<Item = (usize, &CoreReport)> {
        self.reports.iter().enumerate().filter_map(|(core, report)| Some((core, report.as_ref()?)))
    }
}

/// The page as it grows. Values of labels are ids and fixed words: nothing to escape.
struct Page {
    out: String,
    family: Option<&'static Family>,
}

impl Page {
    fn family(&mut self, family: &'static Family) {
        let (name, kind, help) = (family.name, family.kind.as_str(), family.help);
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        self.family = Some(family);
    }

    fn single(&mut self, family: &'static Family, value: impl fmt::Display) {
        self.family(family);
        self.sample(&[], value);
    }

    fn sample(&mut self, labels: &[&dyn fmt::Display], value: impl fmt::Display) {
        self.line("", labels, None, value);
    }

    fn line(
        &mut self,
        suffix: &str,
        labels: &[&dyn fmt::Display],
        bound: Option<&dyn fmt::Display>,
        value: impl fmt::Display,
    ) {
        let family = self.family.expect("a sample belongs to a family");
        assert_eq!(labels.len(), family.labels.len(), "{}: labels as declared", family.name);
        let _ = write!(self.out, "{}{suffix}", family.name);
        let names = family.labels.iter().copied().chain(bound.map(|_| "le"));
        let values = labels.iter().copied().chain(bound);
        let mut separator = '{';
        for (name, value) in names.zip(values) {
            let _ = write!(self.out, "{separator}{name}=\"{value}\"");
            separator = ',';
        }
        let end = if separator == ',' { "}" } else { "" };
        let _ = writeln!(self.out, "{end} {value}");
    }

    fn latency(&mut self, labels: &[&dyn fmt::Display], latency: &Latency) {
        let bounds = (0..LATENCY_BOUNDS).map(|bucket| Latency::bound_ns(bucket) as f64 / 1e9);
        let sum = latency.sum_ns.get() as f64 / 1e9;
        self.histogram(labels, bounds, &latency.buckets, sum);
    }

    fn sizes(&mut self, labels: &[&dyn fmt::Display], sizes: &Sizes) {
        let bounds = (0..SIZE_BOUNDS).map(|bucket| 1_u64 << bucket);
        self.histogram(labels, bounds, &sizes.buckets, sizes.sum.get());
    }

    fn histogram(
        &mut self,
        labels: &[&dyn fmt::Display],
        bounds: impl Iterator<Item = impl fmt::Display>,
        buckets: &[Counter],
        sum: impl fmt::Display,
    ) {
        let mut below = 0;
        let mut counts = buckets.iter().map(Counter::get);
        for bound in bounds {
            below += counts.next().unwrap_or(0);
            self.line("_bucket", labels, Some(&bound), below);
        }
        below += counts.sum::<u64>();
        self.line("_bucket", labels, Some(&"+Inf"), below);
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, below);
    }
}

/// gRPC's name of a status code, as a label.
fn code_name(code: usize) -> &'static str {
    const NAMES: [&str; super::CODES] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES[code]
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use stateside_statestore::RequestStats;
    use stateside_types::{
        Ack, DEFAULT_PIPELINE, Epoch, HashRange, PartitionId, PartitionSpec, Sequence, StoreKind,
        Timestamp, WallClock,
    };

    use super::*;
    use crate::{
        core::command::{KafkaReport, PartitionReport},
        metrics::families::FAMILIES,
    };

    fn page() -> String {
        let metrics = NodeMetrics::new(2);
        let answered = |method, code, ns| {
            metrics.cores[1].answered(method, code);
            metrics.cores[1].took(method, ns, 1);
        };
        answered(Method::Get, Code::Ok, 1_400);
        answered(Method::Get, Code::Ok, 40_000_000_000);
        answered(Method::Upsert, Code::DataLoss, 2_000_000);
        metrics.cores[1].log_group.observe(3);
        let spec = PartitionSpec {
            id: PartitionId(7),
            range: HashRange::FULL,
            store: StoreKind::Memory,
            ack: Ack::Durable,
            pipeline: DEFAULT_PIPELINE.into(),
            first_epoch: Epoch(1),
            epoch: Epoch(1),
            base_sequence: Sequence::ZERO,
        };
        let partition = PartitionReport {
            spec,
            state: PartitionState::Primary,
            records: 12,
            payload_bytes: 100,
            memory_bytes: 200,
            reclaimed: 3,
            sequence: Sequence(30),
            durable_sequence: Sequence(29),
            snapshot_sequence: Sequence(20),
            snapshot_unix_ms: 1_000,
            requests: RequestStats {
                answers: 5,
                clients: 2,
                oldest: Timestamp::from_wall(WallClock(1_500)),
            },
            retries_answered: 6,
            stages: vec![StageCounts { name: "sizes".into(), refused: 4, changed: 9 }],
            detail: String::new(),
            kafka: Some(KafkaReport { epoch: 3, offset: 41, lag: 2 }),
        };
        let report = CoreReport { partitions: vec![partition], ..CoreReport::default() };
        render(
            &metrics,
            &Scrape {
                reports: &[None, Some(report)],
                state: "serving",
                states: &["recovering", "serving", "draining"],
                recovery: (5, 10),
                uptime_seconds: 1.5,
                now_unix_ms: 3_500,
                process: ProcessUsage::read(),
            },
        )
    }

    #[test]
    fn samples_read_as_prometheus_expects() {
        let page = page();
        for line in [
            "# TYPE stateside_requests_total counter",
            "stateside_requests_total{core=\"1\",method=\"Get\",code=\"OK\"} 2",
            "stateside_requests_total{core=\"0\",method=\"Get\",code=\"OK\"} 0",
            "stateside_requests_total{core=\"1\",method=\"Upsert\",code=\"DATA_LOSS\"} 1",
            "stateside_request_duration_seconds_bucket{core=\"1\",method=\"Get\",le=\"0.000001\"} 0",
            "stateside_request_duration_seconds_bucket{core=\"1\",method=\"Get\",le=\"0.0000015\"} 1",
            "stateside_request_duration_seconds_bucket{core=\"1\",method=\"Get\",le=\"16.777216\"} 1",
            "stateside_request_duration_seconds_bucket{core=\"1\",method=\"Get\",le=\"+Inf\"} 2",
            "stateside_request_duration_seconds_sum{core=\"1\",method=\"Get\"} 40.0000014",
            "stateside_request_duration_seconds_count{core=\"1\",method=\"Get\"} 2",
            "stateside_log_group_records_bucket{core=\"1\",le=\"4\"} 1",
            "stateside_partition_records{core=\"1\",partition=\"7\"} 12",
            "stateside_partition_state{core=\"1\",partition=\"7\",state=\"primary\"} 1",
            "stateside_partition_snapshot_age_seconds{core=\"1\",partition=\"7\"} 2.5",
            "stateside_partition_kafka_offset{core=\"1\",partition=\"7\"} 41",
            "stateside_partition_kafka_lag{core=\"1\",partition=\"7\"} 2",
            "stateside_stage_refused_total{core=\"1\",partition=\"7\",stage=\"sizes\"} 4",
            "stateside_stage_changed_total{core=\"1\",partition=\"7\",stage=\"sizes\"} 9",
            "stateside_node_state{state=\"serving\"} 1",
            "stateside_cores_unreported 1",
            "stateside_tiered_lookups_total{purpose=\"read\",tier=\"fast\"} 0",
            "stateside_tiered_fast_capacity_bytes 0",
        ] {
            assert!(page.lines().any(|have| have == line), "{line}\n{page}");
        }
    }

    #[test]
    fn every_metric_of_the_list_is_shown_once_and_no_other() {
        let page = page();
        let shown: Vec<_> = page
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
            .collect();
        let unique: BTreeSet<_> = shown.iter().copied().collect();
        assert_eq!(shown.len(), unique.len(), "a metric is shown in two places");
        let listed: BTreeSet<_> = FAMILIES.iter().map(|family| family.name).collect();
        assert_eq!(unique, listed);
        for family in FAMILIES {
            let is_total = family.name.ends_with("_total");
            assert_eq!(is_total, family.kind == families::Kind::Counter, "{}", family.name);
        }
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let (_, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }

    #[test]
    fn documentation_of_metrics_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        let page = super::super::documentation();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &page).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == page,
            "docs/metrics.md is out of date: UPDATE_DOCS=1 cargo test -p stateside-node documentation"
        );
    }
}
