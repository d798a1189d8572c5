//! A store that is a map.

use std::collections::HashMap;

use stateside_statestore::{
    Lookup, Reclaimed, RequestLimits, RequestRow, RequestWindow, SnapshotRecord, SnapshotStep,
    StateStore, StoreError, StoreStats, Work, WorkDone,
};
use stateside_types::{Change, Record, RequestMark, Sequence, Timestamp, WallClock, WriteEntry};

use super::{Content, Stored};

/// A store with everything in a map. With `cold`, lookups are `Unknown` until fetched by work,
/// as in a store on disk, except for what was written since.
pub(crate) struct MapStore {
    pub(super) content: Content,
    pub(super) requests: RequestWindow,
    pub(super) applied: Sequence,
    pub(super) timestamp: Timestamp,
    pub(super) cold: bool,
    /// With `cold`: what is on the disk, what is not there yet, and what work has fetched.
    pub(super) tree: Content,
    pub(super) overlay: Vec<(Sequence, Vec<u8>, Option<Stored>)>,
    pub(super) known: HashMap<Vec<u8>, Option<Stored>>,
    pub(super) wanted: Vec<Vec<u8>>,
    pub(super) out: bool,
}

impl MapStore {
    /// The disk has everything.
    pub(super) fn settle(&mut self) {
        self.tree = self.content.clone();
        self.overlay.clear();
    }
}

fn lookup(stored: Option<&Stored>) -> Lookup<'_> {
    stored.map_or(Lookup::Absent, |stored| {
        Lookup::Found(Record {
            value: &stored.value,
            version: stored.version,
            timestamp: stored.timestamp,
            expire_at: stored.expire_at,
        })
    })
}

impl StateStore for MapStore {
    fn kind(&self) -> &'static str {
        "map"
    }

    fn get(&self, key: &[u8]) -> Lookup<'_> {
        if !self.cold {
            return lookup(self.content.get(key));
        }
        match self.overlay.iter().rfind(|(_, have, _)| have == key) {
            Some((.., stored)) => lookup(stored.as_ref()),
            None => self.get_fetched(key),
        }
    }

    fn get_fetched(&self, key: &[u8]) -> Lookup<'_> {
        self.known.get(key).map_or(Lookup::Unknown, |stored| lookup(stored.as_ref()))
    }

    fn apply(&mut self, sequence: Sequence, timestamp: Timestamp, entries: &[WriteEntry<'_>]) {
        assert_eq!(sequence, self.applied.next(), "sequences have no gaps");
        assert!(timestamp > self.timestamp, "timestamps rise");
        for entry in entries {
            match entry.change {
                Change::Put(value) => {
                    let (value, version) = (value.to_vec(), sequence);
                    let expire_at = entry.expiry.fixed_by(timestamp);
                    let stored = Stored { value, version, timestamp, expire_at };
                    self.content.insert(entry.key.to_vec(), stored);
                }
                Change::Remove => {
                    self.content.remove(entry.key);
                }
            }
            let now = self.content.get(entry.key).cloned();
            self.overlay.push((sequence, entry.key.to_vec(), now));
        }
        (self.applied, self.timestamp) = (sequence, timestamp);
    }

    fn requests(&self) -> &RequestWindow {
        &self.requests
    }

    fn remember(&mut self, sequence: Sequence, timestamp: Timestamp, mark: &RequestMark<'_>) {
        self.requests.record(sequence, timestamp, mark, &mut |_| {});
    }

    fn limit_requests(&mut self, limits: RequestLimits) {
        self.requests.set_limits(limits);
    }

    fn load_request(&mut self, row: &RequestRow<'_>) {
        self.requests.load(row);
    }

    fn applied(&self) -> Sequence {
        self.applied
    }

    fn applied_timestamp(&self) -> Timestamp {
        self.timestamp
    }

    fn covered(&self) -> Sequence {
        Sequence::ZERO
    }

    fn stats(&self) -> StoreStats {
        StoreStats { records: self.content.len() as u64, ..StoreStats::default() }
    }

    fn growth_max(&self, entries: &[WriteEntry<'_>]) -> u64 {
        entries.len() as u64
    }

    fn growth(&self, entries: &[WriteEntry<'_>]) -> i64 {
        entries.iter().filter(|e| matches!(e.change, Change::Put(_))).count() as i64
    }

    fn reclaim(&mut self, now: WallClock, records_max: usize) -> Reclaimed {
        let expired = self.content.iter().filter(|(_, stored)| stored.is_expired(now));
        let expired: Vec<_> =
            expired.map(|(key, stored)| (key.clone(), stored.version)).take(records_max).collect();
        let mut reclaimed = Reclaimed { records: expired.len(), ..Reclaimed::default() };
        for (key, version) in expired {
            self.content.remove(&key);
            if self.tree.get(&key).is_some_and(|stored| stored.is_expired(now)) {
                self.tree.remove(&key);
            }
            reclaimed.newest = reclaimed.newest.max(version);
        }
        reclaimed
    }

    fn snapshot_start(&mut self) {}

    fn snapshot_next(
        &mut self,
        _: usize,
        _: &mut dyn FnMut(SnapshotRecord<'_>),
    ) -> Result<SnapshotStep, StoreError> {
        Ok(SnapshotStep::Done)
    }

    fn snapshot_end(&mut self) {}

    fn load_start(&mut self) {}

    fn load(&mut self, _: &[SnapshotRecord<'_>]) -> bool {
        true
    }

    fn load_end(&mut self, _: Sequence, _: Timestamp) {}

    fn fetch(&mut self, keys: &[&[u8]]) {
        self.wanted.extend(keys.iter().map(|key| key.to_vec()));
    }

    fn forget_fetched(&mut self) {
        self.known.clear();
    }

    fn take_work(&mut self, durable: Sequence) -> Option<Work> {
        let writes = self.cold && self.overlay.first().is_some_and(|first| first.0 <= durable);
        if self.out || (self.wanted.is_empty() && !writes) {
            return None;
        }
        self.out = true;
        // The work writes what is durable, then fetches; its outcome is known when it has ended.
        for (_, key, stored) in self.overlay.iter().filter(|change| change.0 <= durable) {
            match stored {
                Some(stored) => drop(self.tree.insert(key.clone(), stored.clone())),
                None => drop(self.tree.remove(key)),
            }
        }
        let fetch = |key: Vec<u8>| (self.tree.get(&key).cloned(), key);
        let fetched: Vec<_> = std::mem::take(&mut self.wanted).into_iter().map(fetch).collect();
        Some(Box::new(move || WorkDone(Box::new((durable, fetched)))))
    }

    fn finish_work(&mut self, done: WorkDone) -> Result<(), StoreError> {
        type Done = (Sequence, Vec<(Option<Stored>, Vec<u8>)>);
        self.out = false;
        let Ok(done) = done.0.downcast::<Done>() else {
            self.wanted.clear();
            return Err(StoreError::Unreadable { path: "map".into() });
        };
        let (durable, fetched) = *done;
        self.known.extend(fetched.into_iter().map(|(stored, key)| (key, stored)));
        let written = self.overlay.iter().take_while(|change| change.0 <= durable).count();
        for (_, key, stored) in self.overlay.drain(..written) {
            if let Some(known) = self.known.get_mut(&key) {
                *known = stored;
            }
        }
        Ok(())
    }
}
