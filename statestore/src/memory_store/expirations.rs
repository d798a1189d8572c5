//! Which records of a [`MemoryStore`](crate::MemoryStore) expire, in the order in which they do.
//!
//! Exact: a record that is overwritten, removed or moved takes its place along, so nothing here
//! outlives its record and reclaiming looks at nothing but what has expired. A heap whose entries go
//! stale would be smaller and grow without bound under a key that is written often with a long time
//! to live; sampling the index would cost every record for the sake of those that expire.

use std::collections::BTreeSet;

use stateside_types::{ExpireAt, WallClock};

use super::arena::Handle;

/// Records by their moment. Only records that expire are here.
#[derive(Default)]
pub(super) struct Expirations(BTreeSet<(ExpireAt, Handle)>);

impl Expirations {
    /// What an entry takes: nodes of 192 bytes, of whose eleven places six are in use when
    /// entries come in the order of time, and the nodes above them.
    pub(super) const ENTRY_BYTES: usize = 40;

    pub(super) fn memory_bytes(&self) -> usize {
        self.0.len() * Self::ENTRY_BYTES
    }

    pub(super) fn insert(&mut self, moment: Option<ExpireAt>, handle: Handle) {
        if let Some(moment) = moment {
            self.0.insert((moment, handle));
        }
    }

    pub(super) fn remove(&mut self, moment: Option<ExpireAt>, handle: Handle) {
        if let Some(moment) = moment {
            let was_here = self.0.remove(&(moment, handle));
            assert!(was_here, "every record that expires is noted");
        }
    }

    /// A record of which `moment` may be known lies elsewhere from now on.
    pub(super) fn moved(&mut self, moment: Option<ExpireAt>, old: Handle, new: Handle) {
        self.remove(moment, old);
        self.insert(moment, new);
    }

    /// The record that expired first, if one has.
    pub(super) fn first(&self, now: WallClock) -> Option<Handle> {
        let (moment, handle) = self.0.first()?;
        moment.has_come(now).then_some(*handle)
    }
}
