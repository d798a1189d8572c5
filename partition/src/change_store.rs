//! How a partition goes from one store to another. What leads there is in [`crate::Trail`].
//!
//! With reads apart from writes (see `split.rs`) a partition keeps what writes replaced that are not
//! durable; for records that are on a disk only, that they are there. That says where the *present* store
//! has them. So the last writes enter the other store as they once did the present one: each that is
//! not durable is preceded by what it replaces there.

use std::mem;

use stateside_pipeline::trail::TrailWrite;
use stateside_statestore::StateStore;
use stateside_types::{StoreKind, WriteEntry};

use crate::{Effects, Partition, replaced::Replaced, trail::Trail};

/// The store that a partition is about to go on with. Belongs to that partition.
pub struct Successor {
    store: Box<dyn StateStore>,
    /// As the partition's own.
    replaced: Option<Box<Replaced>>,
}

impl Successor {
    /// The store, given up.
    pub fn into_store(self) -> Box<dyn StateStore> {
        self.store
    }
}

impl Partition {
    /// Keeps what is accepted from now on for another store as well, until [`Self::change_store`]
    /// or [`Self::trail_end`].
    pub fn trail_start(&mut self) {
        self.trail = Some(Box::new(Trail::new()));
    }

    /// What was accepted since and has not been taken.
    pub fn trail(&mut self) -> Option<&mut Trail> {
        self.trail.as_deref_mut()
    }

    /// The copy is abandoned.
    pub fn trail_end(&mut self) {
        self.trail = None;
    }

    /// Takes a store that holds some of what this partition does, durable writes alone, for its next one.
    pub fn succeed(&self, store: Box<dyn StateStore>) -> Successor {
        let replaced = self.replaced.as_ref().map(|_| Box::default());
        Successor { store, replaced }
    }

    /// Applies the next write of the trail to the next store. False: not now. What is not durable would
    /// keep too much in memory there; it has to wait until more is.
    pub fn apply_last(
        &self,
        next: &mut Successor,
        write: &TrailWrite<'_>,
        entries: &[WriteEntry<'_>],
    ) -> bool {
        let Successor { store, replaced } = next;
        if let Some(replaced) = replaced {
            let passed = self.passed();
            replaced.drop_through(passed);
            if write.sequence > passed && !entries.is_empty() {
                match replaced.look_up(write.sequence, entries, |key: &[u8]| store.get(key)) {
                    Some(batch) => replaced.push(batch),
                    None => return false,
                }
            }
        }
        apply(store.as_mut(), write, entries);
        true
    }

    /// Goes on with the next store, which holds what the present one does. Requests that wait for the disk
    /// of the present one are answered from the next. Hands the present one back; while
    /// [`Self::is_leaving`] the pool still works with it.
    ///
    /// # Panics
    /// When the next store stands at another sequence: whatever was read from it would be wrong.
    pub fn change_store(
        &mut self,
        kind: StoreKind,
        next: Successor,
        effects: &mut impl Effects,
    ) -> Box<dyn StateStore> {
        let Successor { store, replaced } = next;
        assert_eq!(store.applied(), self.store.applied(), "the stores hold the same writes");
        assert_eq!(replaced.is_some(), self.replaced.is_some(), "the mode stays as it was");
        assert!(!self.leaving, "one change at a time");
        self.trail = None;
        self.spec.store = kind;
        self.leaving = mem::take(&mut self.working);
        self.disk_full = false;
        let before = mem::replace(&mut self.store, store);
        self.replaced = replaced;
        let passed = self.passed();
        if let Some(replaced) = &mut self.replaced {
            replaced.drop_through(passed);
        }
        self.disk_reads.begin_again();
        self.answer_waiting(effects);
        self.hand_out_work(effects);
        before
    }

    /// Whether the pool still works with the store before.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }
}

/// Applies a write of a trail as the partition did when it accepted it.
pub fn apply(store: &mut dyn StateStore, write: &TrailWrite<'_>, entries: &[WriteEntry<'_>]) {
    if let Some(mark) = &write.request {
        store.remember(write.sequence, write.timestamp, mark);
    }
    store.apply(write.sequence, write.timestamp, entries);
}
