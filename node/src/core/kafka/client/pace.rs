//! How a replay of many partitions goes, for the node's log. How far each of them is, is its state.

use std::time::{Duration, Instant};

use crate::core::kafka::opening::Replayed;

/// How often a replay that takes long is told.
const TELL: Duration = Duration::from_secs(5);

/// From the first partition that is opened to the last one of those that wait together.
pub(super) struct Pace {
    since: Instant,
    tell_at: Instant,
    /// Of the partitions that are open by now.
    done: Replayed,
    opened: u64,
}

impl Pace {
    pub(super) fn begin(now: Instant) -> Self {
        Self { since: now, tell_at: now + TELL, done: Replayed::default(), opened: 0 }
    }

    /// A partition is open.
    pub(super) fn opened(&mut self, replayed: Replayed) {
        self.done.messages += replayed.messages;
        self.done.records += replayed.records;
        self.opened += 1;
    }

    /// Now and then: how far the others are, each with what it has and what is still to come.
    pub(super) fn tell(&mut self, now: Instant, others: impl Iterator<Item = (Replayed, u64)>) {
        if now < self.tell_at {
            return;
        }
        self.tell_at = now + TELL;
        let (mut replayed, mut partitions, mut messages_to_go) = (self.done, 0_u64, 0);
        for (one, lag) in others {
            replayed.messages += one.messages;
            replayed.records += one.records;
            partitions += 1;
            messages_to_go += lag;
        }
        tracing::info!(
            partitions,
            messages = replayed.messages,
            records = replayed.records,
            records_per_s = per_second(replayed.records, now - self.since),
            messages_to_go,
            "replaying logs in Kafka"
        );
    }

    /// None is on its way any more.
    pub(super) fn end(self, now: Instant) {
        if self.opened > 0 {
            let took = now - self.since;
            tracing::info!(
                partitions = self.opened,
                messages = self.done.messages,
                records = self.done.records,
                records_per_s = per_second(self.done.records, took),
                took_ms = took.as_millis() as u64,
                "logs in Kafka are replayed and claimed"
            );
        }
    }
}

fn per_second(count: u64, took: Duration) -> u64 {
    (count as f64 / took.as_secs_f64().max(1e-3)) as u64
}
