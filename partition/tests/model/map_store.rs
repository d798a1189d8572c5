//! A store that is a map.

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
    pub(super) known: Vec<Vec<u8>>,
    pub(super) wanted: Vec<Vec<u8>>,
    pub(super) out: bool,
}

impl StateStore for MapStore {
    fn kind(&self) -> &'static str {
        "map"
    }

    fn get(&self, key: &[u8]) -> Lookup<'_> {
        if self.cold && !self.known.iter().any(|known| known == key) {
            return Lookup::Unknown;
        }
        match self.content.get(key) {
            None => Lookup::Absent,
            Some(stored) => Lookup::Found(Record {
                value: &stored.value,
                version: stored.version,
                timestamp: stored.timestamp,
                expire_at: stored.expire_at,
            }),
        }
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

    fn take_work(&mut self, _: Sequence) -> Option<Work> {
        if self.out || self.wanted.is_empty() {
            return None;
        }
        self.out = true;
        let keys = std::mem::take(&mut self.wanted);
        Some(Box::new(move || WorkDone(Box::new(keys))))
    }

    fn finish_work(&mut self, done: WorkDone) -> Result<(), StoreError> {
        self.out = false;
        let Ok(keys) = done.0.downcast::<Vec<Vec<u8>>>() else {
            return Err(StoreError::Unreadable { path: "map".into() });
        };
        self.known.extend(*keys);
        Ok(())
    }
}
