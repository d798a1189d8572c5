//! What a caller can choose, once per client and once per call.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use stateside_types::{Ack, limits};

use crate::{RequestId, Session};

/// Settings of a client. `Options::default()` suits a sidecar on the same machine.
#[derive(Clone, Debug)]
pub struct Options {
    /// Read `Topology` and send each key to the port of its core (the default), so that no call
    /// hops between cores inside the node. `false` sends everything to the endpoint given.
    pub routing: bool,
    /// Time that a call has in all, its retries included. Each attempt tells the node what is
    /// left (`grpc-timeout`). Default: 10 s.
    pub deadline: Duration,
    /// Time to make one connection. Default: 3 s.
    pub connect_timeout: Duration,
    /// Further attempts after the first, within the deadline. Default: 5.
    pub retries: u32,
    /// Wait before the first retry; doubles with each. Default: 20 ms.
    pub backoff_initial: Duration,
    /// Longest wait between two attempts, unless a node asks for more. Default: 1 s.
    pub backoff_max: Duration,
    /// Retry unconditional writes whose outcome is unknown. Default: `false`.
    ///
    /// An unconditional upsert or remove is idempotent only as long as nobody else writes the
    /// same key: applied, overwritten by another writer, applied again by a retry, the old value
    /// comes back and the other write is lost. Set this where a key has one writer, or where its
    /// writers write the same. A write with a condition is never retried so: after `if_absent` or
    /// `if_version` was applied, the retry would fail on the very record that it wrote, and the
    /// caller would read a success as a conflict. Nor is an update that adds or appends: it would
    /// count twice.
    pub retry_unknown_writes: bool,
    /// Give every write an id, so that it is retried safely whatever became of the first attempt: also one
    /// with a condition, also when the node was killed meanwhile. Default: `false`. Costs some 30 bytes a
    /// request, and a place in the windows of the partitions that it touches (`request_ids.*` in their node's
    /// configuration). A client that is gone leaves its place there until others need it.
    pub request_ids: bool,
    /// Calls under way at once, over all connections; more wait. Default: 256.
    pub calls_max: usize,
    /// Seeds the jitter of backoffs. Default: random per client, so that clients refused together
    /// do not come back together; a fixed one makes tests repeatable.
    pub jitter_seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            routing: true,
            deadline: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(3),
            retries: 5,
            backoff_initial: Duration::from_millis(20),
            backoff_max: Duration::from_secs(1),
            retry_unknown_writes: false,
            request_ids: false,
            calls_max: limits::CLIENT_CALLS_MAX,
            jitter_seed: RandomState::new().hash_one(0_u8),
        }
    }
}

/// How to write one batch.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Places every entry of the batch when set, so that related keys share a partition. The same
    /// routing key is needed to read and remove them.
    pub routing_key: Option<Vec<u8>>,
    /// All or nothing: refused with `ATOMIC_SPANS_PARTITIONS` unless all keys share a partition.
    /// Such a batch is never split: above 1 MiB or 16384 entries it is refused.
    pub atomic: bool,
    /// Ask for more than the partition's default acknowledgement; never gives less.
    pub ack: Option<Ack>,
    /// The session that learns of the write.
    pub session: Option<Session>,
    /// Instead of [`Options::deadline`].
    pub deadline: Option<Duration>,
    /// The write's name, in place of one that [`Options::request_ids`] makes up: for a caller that repeats
    /// its writes itself, after its own restart for instance. Such a batch is never split: above 1 MiB or
    /// 16384 entries it is refused.
    pub request_id: Option<RequestId>,
}

/// How to read.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// The routing key that the records were written with, if any.
    pub routing_key: Option<Vec<u8>>,
    /// The session whose writes and reads this one follows.
    pub session: Option<Session>,
    /// Instead of [`Options::deadline`].
    pub deadline: Option<Duration>,
}
