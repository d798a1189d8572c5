//! What the partitions of a core act upon: its calls, its log, the blocking pool, the time.

use std::{sync::Arc, time::Instant};

use stateside_partition::{Effects, PageEnd, Partition, Ticket};
use stateside_pipeline::{Outlet, Write};
use stateside_statestore::Work;
use stateside_types::{
    Epoch, PartitionId, Reason, Record, Refusal, Sequence, SessionToken, Timestamp, WallClock,
};
use stateside_wire::StreamId;

use super::{
    calls::{Calls, Outcome},
    kafka::CoreKafka,
    log::CoreLog,
    pool::{PoolDone, PoolHandle},
};
use crate::{metrics::METHODS, reactor::ConnectionId};

/// A stream of a connection of this core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamRef {
    pub(crate) connection: ConnectionId,
    pub(crate) stream: StreamId,
}

/// How much memory the stores of the node may still take.
///
/// A core knows its own use exactly and that of the others as of its last tick, so the limit may
/// be passed by what the other cores took within one tick.
#[derive(Debug, Default)]
pub(crate) struct MemoryBudget {
    /// 0: no limit.
    limit_bytes: u64,
    /// Of the whole node, as of the last tick.
    used_bytes: u64,
    /// What this core took since.
    grown_bytes: i64,
}

impl MemoryBudget {
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, ..Self::default() }
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.limit_bytes > 0
    }

    pub(crate) fn grown(&mut self, before: u64, after: u64) {
        self.grown_bytes += after.cast_signed() - before.cast_signed();
    }

    /// What this core's writes took since the last tick, where memory is limited.
    pub(crate) fn grown_bytes(&self) -> i64 {
        self.grown_bytes
    }

    /// A tick: `used_bytes` has been counted anew.
    pub(crate) fn counted(&mut self, used_bytes: u64) {
        self.used_bytes = used_bytes;
        self.grown_bytes = 0;
    }

    /// Bytes by which the stores may still grow.
    pub(crate) fn available(&self) -> u64 {
        if self.limit_bytes == 0 {
            return u64::MAX;
        }
        self.limit_bytes.saturating_sub(self.used_bytes.saturating_add_signed(self.grown_bytes))
    }
}

/// See the module's header. Lives on its core's thread.
pub(crate) struct World {
    pub(crate) calls: Calls<StreamRef>,
    pub(crate) log: CoreLog,
    /// The log in Kafka, when the node uses it.
    pub(crate) kafka: Option<CoreKafka>,
    pub(crate) pool: PoolHandle,
    pub(crate) memory: MemoryBudget,
    /// The node's name.
    pub(crate) node: Arc<str>,
    /// The wall clock as of this turn.
    pub(crate) wall: WallClock,
    /// The monotonic clock as of this turn, nanoseconds since the core's start.
    pub(crate) turn_ns: u64,
    /// By method: calls answered since `turn_ns` in the turn that took them. Timed together when
    /// the answers leave: reading the clock for each would cost as much as finding a record.
    pub(crate) answered_at_once: [u64; METHODS],
    /// Requests that came in this turn.
    pub(crate) requests: usize,
    /// Requests that went to other cores.
    pub(crate) hops: u64,
    /// The node is stopping.
    pub(crate) is_draining: bool,
}

/// The effects of one partition.
pub(crate) struct PartitionEffects<'a> {
    pub(crate) world: &'a mut World,
    pub(crate) partition: PartitionId,
    /// First epoch of the partition's content.
    epoch: Epoch,
}

impl<'a> PartitionEffects<'a> {
    pub(crate) fn new(world: &'a mut World, partition: &Partition) -> Self {
        let spec = partition.spec();
        Self { world, partition: spec.id, epoch: spec.first_epoch }
    }

    fn token(&self, sequence: Sequence) -> SessionToken {
        SessionToken { partition: self.partition, epoch: self.epoch, sequence }
    }
}

impl Outlet for PartitionEffects<'_> {
    fn node(&self) -> &str {
        &self.world.node
    }

    fn log_admit(&mut self, write: &Write<'_>) -> Result<(), Refusal> {
        self.world.log.admit(write)
    }

    fn log_append(&mut self, write: &Write<'_>) {
        self.world.log.append(write);
    }

    fn kafka_admit(&mut self, write: &Write<'_>) -> Result<(), Refusal> {
        match &self.world.kafka {
            Some(kafka) => kafka.admit(self.partition, write),
            None => Err(without_kafka(self.partition)),
        }
    }

    fn kafka_append(&mut self, write: &Write<'_>) {
        let kafka = self.world.kafka.as_mut();
        kafka.expect("a write is admitted before it is accepted").append(write);
    }
}

impl Effects for PartitionEffects<'_> {
    fn record(&mut self, ticket: Ticket, key: &[u8], record: Option<&Record<'_>>) {
        self.world.calls.record(ticket, key, record);
    }

    fn page_end(&mut self, ticket: Ticket, end: PageEnd<'_>) {
        self.world.calls.page_end(ticket, self.partition, end);
    }

    fn read_done(&mut self, ticket: Ticket, outcome: Result<Sequence, Refusal>) {
        let outcome = match outcome {
            Ok(seen) => Outcome::Read(self.token(seen)),
            Err(refusal) => Outcome::Refused(refusal),
        };
        self.world.calls.finish(ticket, outcome);
    }

    fn value(&mut self, ticket: Ticket, value: &[u8]) {
        self.world.calls.value(ticket, value);
    }

    fn written(&mut self, ticket: Ticket, outcome: Result<(Sequence, Timestamp), Refusal>) {
        let outcome = match outcome {
            Ok((sequence, timestamp)) => Outcome::Written(self.token(sequence), timestamp),
            Err(refusal) => Outcome::Refused(refusal),
        };
        self.world.calls.finish(ticket, outcome);
    }

    fn run(&mut self, work: Work) {
        let partition = self.partition;
        self.world.pool.submit(move || {
            let since = Instant::now();
            let done = work();
            PoolDone::Store(partition, done, since.elapsed())
        });
    }

    fn now(&self) -> WallClock {
        self.world.wall
    }

    fn memory_available(&self) -> u64 {
        self.world.memory.available()
    }
}

/// A partition has its log in Kafka, and this node has no Kafka.
pub(crate) fn without_kafka(partition: PartitionId) -> Refusal {
    let text = format!("partition {partition} has its log in Kafka and kafka.brokers is not set");
    Refusal::new(Reason::LogMismatch, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_counts_what_this_core_took_since_the_last_count() {
        assert_eq!(MemoryBudget::new(0).available(), u64::MAX);
        let mut budget = MemoryBudget::new(1_000);
        budget.counted(400);
        budget.grown(100, 350);
        assert_eq!(budget.available(), 350);
        budget.grown(350, 0);
        assert_eq!(budget.available(), 700);
        budget.counted(2_000);
        assert_eq!(budget.available(), 0);
    }
}
