//! Partitions that the start had no room for: tried again until they are up.
//!
//! ```text
//!  start on a full disk ─► waits for room ─┬─(every 2 s: the pool recovers it)─► served
//!                               ▲          └─► still no room, or cannot be read ─┐
//!                               └────────────────────────────────────────────────┘
//! ```
//! They take no writes meanwhile, so what the logs of before this start hold of them is all there
//! is. The hazard is to let go of those logs too early; see [`LateRecovery::needs_all_logs`].

use std::time::{Duration, Instant};

use stateside_types::{PartitionSpec, PartitionState, Reason};

use super::{
    executor::{Executor, Hosted},
    operations::Operations,
    pool::PoolDone,
    recovery::{Recovered, Recovery},
};
use crate::log_files::LogError;

/// How long after a failed attempt the next one begins.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Lives on its core's thread.
pub(crate) struct LateRecovery {
    recovery: Recovery,
    is_under_way: bool,
    next: Instant,
    /// Damage was found late: the logs that show it were opened without being told to hold it.
    has_found_damage: bool,
}

impl LateRecovery {
    /// Whatever `recovery` could not do for want of room is tried again after `now`.
    pub(crate) fn new(recovery: Recovery, now: Instant) -> Self {
        Self { recovery, is_under_way: false, next: now + RETRY_INTERVAL, has_found_damage: false }
    }

    /// Whether no log of the node may be let go of: what its segments hold of a waiting partition is
    /// known only once it has been recovered.
    pub(crate) fn needs_all_logs(&self, executor: &Executor) -> bool {
        self.has_found_damage || self.is_under_way || executor.all().any(waits_for_room)
    }

    /// Starts an attempt when one is due.
    pub(crate) fn tick(&mut self, executor: &mut Executor, now: Instant) {
        if self.is_under_way || now < self.next {
            return;
        }
        self.next = now + RETRY_INTERVAL;
        let waiting = executor.all().filter(|hosted| waits_for_room(hosted));
        let specs: Vec<PartitionSpec> = waiting.map(|hosted| hosted.spec().clone()).collect();
        if specs.is_empty() {
            return;
        }
        self.is_under_way = true;
        let recovery = self.recovery.clone();
        executor.world.pool.submit(move || PoolDone::LateRecovered(recovery.run_late(specs)));
    }

    /// An attempt has ended: puts what came up into service.
    pub(crate) fn done(
        &mut self,
        result: Result<Recovered, LogError>,
        operations: &mut Operations,
        executor: &mut Executor,
        now: Instant,
    ) {
        self.is_under_way = false;
        self.next = now + RETRY_INTERVAL;
        let recovered = match result {
            Ok(recovered) => recovered,
            Err(error) => {
                tracing::warn!(%error, "partitions that wait for room could not be recovered yet");
                return;
            }
        };
        for hosted in recovered.hosted {
            let spec = hosted.spec();
            let (id, first_epoch) = (spec.id, spec.first_epoch);
            // It may have been removed or restored meanwhile.
            let is_wanted = executor.hosted(id).is_some_and(|waiting| {
                waits_for_room(waiting) && waiting.spec().first_epoch == first_epoch
            });
            if !is_wanted || operations.is_under_way(id) {
                continue;
            }
            match &hosted {
                Hosted::Here(partition) => {
                    tracing::info!(partition = id.0, "recovered, now that its disk has room");
                    executor.world.log.adopt(id, first_epoch, partition.applied());
                    if let Some(newest) = recovered.newest.get(&id) {
                        operations.has_snapshot(id, *newest);
                    }
                }
                Hosted::Down(_, PartitionState::Damaged, _) => self.has_found_damage = true,
                Hosted::Down(..) => {}
            }
            executor.host(hosted);
        }
    }
}

fn waits_for_room(hosted: &Hosted) -> bool {
    matches!(hosted, Hosted::Down(_, PartitionState::Init, refusal) if refusal.reason == Reason::DiskFull)
}
