//! How a partition goes from one store to another. What leads there is in [`crate::Trail`].

use std::mem;

use stateside_statestore::StateStore;
use stateside_types::StoreKind;

use crate::{Effects, Partition, trail::Trail};

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

    /// Goes on with another store, which holds what this one does. Requests that wait for the disk of
    /// this one are answered from the other. Hands this one back; while [`Self::is_leaving`] the
    /// pool still works with it.
    ///
    /// # Panics
    /// When the other store stands at another sequence: whatever was read from it would be wrong.
    pub fn change_store(
        &mut self,
        kind: StoreKind,
        store: Box<dyn StateStore>,
        effects: &mut impl Effects,
    ) -> Box<dyn StateStore> {
        assert_eq!(store.applied(), self.store.applied(), "the stores hold the same writes");
        assert!(!self.leaving, "one change at a time");
        self.trail = None;
        self.spec.store = kind;
        self.leaving = mem::take(&mut self.working);
        self.disk_full = false;
        let before = mem::replace(&mut self.store, store);
        self.answer_queue(effects);
        self.hand_out_work(effects);
        before
    }

    /// Whether the pool still works with the store before.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }
}
