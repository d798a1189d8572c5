//! Snapshots of a partition: its records as of one sequence, while it goes on.

use stateside_statestore::{SnapshotRecord, SnapshotStep, StoreError};
use stateside_types::Refusal;

use crate::{Effects, Partition, SnapshotHead};

impl Partition {
    /// Starts a snapshot of the state after the last batch applied.
    ///
    /// # Errors
    /// The halting refusal: a partition that stopped has nothing to vouch for.
    pub fn snapshot_start(&mut self) -> Result<SnapshotHead, Refusal> {
        if let Some(refusal) = &self.halted {
            return Err(refusal.clone());
        }
        self.store.snapshot_start();
        Ok(SnapshotHead {
            sequence: self.store.applied(),
            timestamp: self.store.applied_timestamp(),
        })
    }

    /// Hands out the next records of the snapshot. `Wait`: call again after a `WorkDone`.
    ///
    /// # Errors
    /// As the store says; the snapshot is abandoned.
    pub fn snapshot_next(
        &mut self,
        budget_bytes: usize,
        emit: &mut dyn FnMut(SnapshotRecord<'_>),
        effects: &mut impl Effects,
    ) -> Result<SnapshotStep, StoreError> {
        let step = self.store.snapshot_next(budget_bytes, emit);
        self.hand_out_work(effects);
        step
    }

    /// Ends or abandons the snapshot.
    pub fn snapshot_end(&mut self) {
        self.store.snapshot_end();
    }
}
