//! What the node counts. Names, labels and meanings are in `families`; `docs/metrics.md` is made
//! from there.
//!
//! Hazard: a core's counters have one writer, the thread of that core. A write is a plain load
//! and store, without the locked instruction that a shared counter needs; a second writer would
//! lose counts. The control thread only reads: each value is whole, and values read together may
//! be a turn apart.

mod exposition;
mod families;
mod process;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use stateside_statestore::TierFigures;
use stateside_types::{Code, Reason};

pub use exposition::{Scrape, render};
pub use families::documentation;
pub use process::ProcessUsage;

/// A number that rises, or a level that goes up and down. One writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// Adds one.
    #[inline]
    pub fn increment(&self) {
        self.add(1);
    }

    /// Sets the level.
    #[inline]
    pub fn set(&self, level: u64) {
        self.0.store(level, Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Bounds of [`Latency`]: 1, 1.5, 2, 3, 4, 6, 8 … µs up to 16.8 s, two for each doubling.
pub const LATENCY_BOUNDS: usize = 49;

/// A histogram of durations in fixed buckets. One writer.
#[derive(Debug)]
pub struct Latency {
    /// The last one is for what is above every bound.
    buckets: [Counter; LATENCY_BOUNDS + 1],
    sum_ns: Counter,
}

impl Default for Latency {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Counter::default()), sum_ns: Counter::default() }
    }
}

impl Latency {
    /// Counts one duration.
    #[inline]
    pub fn observe(&self, duration: Duration) {
        self.observe_ns(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Counts one duration given in nanoseconds.
    #[inline]
    pub fn observe_ns(&self, ns: u64) {
        self.buckets[Self::bucket(ns)].increment();
        self.sum_ns.add(ns);
    }

    /// Counts so many calls that took the same time.
    pub fn observe_many(&self, ns: u64, count: u64) {
        self.buckets[Self::bucket(ns)].add(count);
        self.sum_ns.add(ns.saturating_mul(count));
    }

    /// The upper bound of a bucket, nanoseconds, inclusive.
    pub const fn bound_ns(bucket: usize) -> u64 {
        assert!(bucket < LATENCY_BOUNDS, "the last bucket has no bound");
        // In units of 500 ns the bounds are 2, 3, 4, 6, 8, 12 …
        (500 * (2 + (bucket as u64 & 1))) << (bucket / 2)
    }

    /// The bucket with the smallest bound that is not below `ns`.
    #[inline]
    const fn bucket(ns: u64) -> usize {
        let units_less_one = ns.saturating_sub(1) / 500;
        if units_less_one < 2 {
            return 0;
        }
        let octave = units_less_one.ilog2() as usize;
        let half = (units_less_one >> (octave - 1)) as usize & 1;
        let bucket = 2 * (octave - 1) + half + 1;
        if bucket < LATENCY_BOUNDS { bucket } else { LATENCY_BOUNDS }
    }
}

/// Bounds of [`Sizes`]: powers of two up to 65,536.
pub const SIZE_BOUNDS: usize = 17;

/// A histogram of counts in buckets of powers of two. One writer.
#[derive(Debug)]
pub struct Sizes {
    buckets: [Counter; SIZE_BOUNDS + 1],
    sum: Counter,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Counter::default()), sum: Counter::default() }
    }
}

impl Sizes {
    /// Counts one size.
    #[inline]
    pub fn observe(&self, size: u64) {
        let bucket = match size {
            0 | 1 => 0,
            size => (size - 1).ilog2() as usize + 1,
        };
        self.buckets[bucket.min(SIZE_BOUNDS)].increment();
        self.sum.add(size);
    }
}

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// A method of the data plane, as a label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Method { $($(#[$doc])* $name,)+ }

        impl Method {
            /// Every method.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The label.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

methods! {
    /// Writes records.
    Upsert = "Upsert",
    /// Reads records.
    Get = "Get",
    /// Deletes records.
    Remove = "Remove",
    /// Reads records in order.
    Scan = "Scan",
    /// Changes records by operators.
    Update = "Update",
    /// Where partitions live.
    Topology = "Topology",
    /// grpc.health.v1.Health.
    Health = "Health",
    /// Anything else: refused.
    Unknown = "unknown",
}

pub(crate) const METHODS: usize = Method::ALL.len();
/// gRPC's codes are 0 to 16.
const CODES: usize = 17;
const REASONS: usize = Reason::ALL.len();

/// What one core counts. Made before the core's thread, written by it alone; aligned so that no
/// two cores write to one cache line (pairs of lines are fetched together).
#[derive(Debug)]
#[repr(align(128))]
pub struct CoreMetrics {
    requests: [[Counter; CODES]; METHODS],
    latency: [Latency; METHODS],
    refused: [Counter; REASONS],
    /// Bytes received on connections.
    pub received_bytes: Counter,
    /// Bytes sent on connections.
    pub sent_bytes: Counter,
    /// Level: open connections.
    pub connections: Counter,
    /// Connections accepted.
    pub connections_accepted: Counter,
    /// Failed accepts (descriptors used up), and connections closed because there were too many.
    pub accept_errors: Counter,
    /// Connections ended for what the peer sent: no HTTP/2, broken frames, a flood, or nothing.
    pub protocol_errors: Counter,
    /// Parts of calls sent to other cores.
    pub hops_sent: Counter,
    /// Parts of calls that other cores sent here.
    pub hops_received: Counter,
    /// Level: calls under way on this core.
    pub calls: Counter,
    /// Level: parts of calls out at other cores.
    pub hops_pending: Counter,
    /// Level: writes accepted that some stage is not done with, over all partitions.
    pub window_writes: Counter,
    /// Level: reads held until what they saw is durable, over all partitions.
    pub held_reads: Counter,
    /// Level: reads that wait for their store's disk, over all partitions.
    pub queued_reads: Counter,
    /// Level: writes that do.
    pub queued_writes: Counter,
    /// Level: reads that wait for what their session knows, over all partitions.
    pub session_reads: Counter,
    /// Level: bytes of replaced records that are kept for reads, over all partitions.
    pub replaced_bytes: Counter,
    /// Level: bytes accepted and not yet written to the log.
    pub log_pending_bytes: Counter,
    /// Records written to the log.
    pub log_records: Counter,
    /// Bytes written to the log, padding included.
    pub log_bytes: Counter,
    /// Time of one durable write to the log; its count is the number of writes.
    pub log_write: Latency,
    /// Records that one durable write covers.
    pub log_group: Sizes,
    /// Snapshots finished, in the background and on request.
    pub snapshots: Counter,
    /// Snapshots that could not be begun in the background, or did not get to their end.
    pub snapshot_failures: Counter,
    /// Bytes of the snapshots that were finished.
    pub snapshot_bytes: Counter,
    /// Pieces of blocking work done for stores on disk.
    pub store_work: Latency,
}

impl Default for CoreMetrics {
    fn default() -> Self {
        Self {
            requests: std::array::from_fn(|_| std::array::from_fn(|_| Counter::default())),
            latency: std::array::from_fn(|_| Latency::default()),
            refused: std::array::from_fn(|_| Counter::default()),
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
            connections: Counter::default(),
            connections_accepted: Counter::default(),
            accept_errors: Counter::default(),
            protocol_errors: Counter::default(),
            hops_sent: Counter::default(),
            hops_received: Counter::default(),
            calls: Counter::default(),
            hops_pending: Counter::default(),
            window_writes: Counter::default(),
            held_reads: Counter::default(),
            queued_reads: Counter::default(),
            queued_writes: Counter::default(),
            session_reads: Counter::default(),
            replaced_bytes: Counter::default(),
            log_pending_bytes: Counter::default(),
            log_records: Counter::default(),
            log_bytes: Counter::default(),
            log_write: Latency::default(),
            log_group: Sizes::default(),
            snapshots: Counter::default(),
            snapshot_failures: Counter::default(),
            snapshot_bytes: Counter::default(),
            store_work: Latency::default(),
        }
    }
}

impl CoreMetrics {
    /// Counts an answered call by its outcome. How long it took is for `took` to tell.
    #[inline]
    pub fn answered(&self, method: Method, code: Code) {
        self.requests[method as usize][code as usize].increment();
    }

    /// How long so many answered calls took on this core, each.
    #[inline]
    pub fn took(&self, method: Method, ns: u64, calls: u64) {
        self.latency[method as usize].observe_many(ns, calls);
    }

    /// Counts a refusal, of a call or of one entry of a batch over several partitions.
    #[inline]
    pub fn refusal(&self, reason: Reason) {
        self.refused[reason as usize].increment();
    }

    /// Counts calls that were refused before the core saw them: how long they took is not known.
    pub fn rejected(&self, method: Method, reason: Reason, count: u64) {
        self.requests[method as usize][reason.code() as usize].add(count);
        self.refused[reason as usize].add(count);
    }

    /// Calls answered, over all methods and outcomes.
    pub fn requests_total(&self) -> u64 {
        self.requests.iter().flatten().map(Counter::get).sum()
    }

    /// Refusals, over all reasons.
    pub fn refusals_total(&self) -> u64 {
        self.refused.iter().map(Counter::get).sum()
    }
}

/// What the control thread counts; written by that thread alone.
#[derive(Debug, Default)]
pub struct ControlMetrics {
    /// Control calls answered with OK.
    pub calls_ok: Counter,
    /// Control calls refused.
    pub calls_refused: Counter,
    /// Level: desired changes that are not carried out.
    pub pending_changes: Counter,
    /// Changes of the partition set carried out.
    pub changes_done: Counter,
    /// Attempts to carry out a change that failed and are repeated.
    pub changes_failed: Counter,
    /// Level: 1 while the registry file cannot be used.
    pub registry_broken: Counter,
}

/// What the whole node counts.
#[derive(Debug)]
pub struct NodeMetrics {
    /// By core.
    pub cores: Vec<Arc<CoreMetrics>>,
    /// Of the control thread.
    pub control: ControlMetrics,
    /// Of the fast directory of `tiered` stores.
    pub tiered: Arc<TierFigures>,
}

impl NodeMetrics {
    /// Counters for so many cores, all at 0.
    pub fn new(cores: u16) -> Self {
        let cores = (0..cores).map(|_| Arc::default()).collect();
        Self { cores, control: ControlMetrics::default(), tiered: Arc::default() }
    }
}

const _: () = {
    assert!(Latency::bucket(0) == 0 && Latency::bucket(1_000) == 0 && Latency::bucket(1_001) == 1);
    assert!(Latency::bucket(u64::MAX) == LATENCY_BOUNDS);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_falls_below_its_bound_and_above_the_one_before() {
        for bucket in 0..LATENCY_BOUNDS {
            let bound = Latency::bound_ns(bucket);
            for ns in [bound - 1, bound] {
                assert_eq!(Latency::bucket(ns), bucket, "{ns}");
            }
            assert_eq!(Latency::bucket(bound + 1), bucket + 1);
        }
        assert_eq!(Latency::bound_ns(0), 1_000);
        assert_eq!(Latency::bound_ns(3), 3_000);
        assert_eq!(Latency::bound_ns(LATENCY_BOUNDS - 1), 16_777_216_000);
    }

    #[test]
    fn sizes_fall_into_powers_of_two() {
        let sizes = Sizes::default();
        for size in [0, 1, 2, 3, 4, 5, 65_536, 65_537, u64::MAX >> 1] {
            sizes.observe(size);
        }
        let counts: Vec<_> = sizes.buckets.iter().map(Counter::get).collect();
        assert_eq!(counts[..4], [2, 1, 2, 1]);
        assert_eq!(counts[16..], [1, 2]);
    }

    #[test]
    fn reasons_index_their_own_counter() {
        let metrics = CoreMetrics::default();
        for (at, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at);
            metrics.refusal(*reason);
        }
        assert!(metrics.refused.iter().all(|count| count.get() == 1));
    }
}
