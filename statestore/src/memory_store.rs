//! The store in memory: an arena of records and an index of handles.
//!
//! ```text
//!   key ─ xxh3-64, seeded ─► index segment ─ 4-byte handle ─► block in a page: header, key, value
//! ```
//! A record costs 24 bytes of header, 0 to 7 of padding and 6 to 12 of index over its key and
//! value; one that expires some 48 more (see `expirations.rs`). No write does work that grows with the store: pages and index segments are small, a full
//! segment splits alone, and the arena is compacted a few blocks at each write. A snapshot is
//! a walk by hash that runs while writes go on (see `walk.rs`).
//!
//! The hazard is crafted keys: the seed must not be known to clients, else they can fill one
//! bucket. It is a parameter because nothing here draws randomness.

mod arena;
mod expirations;
mod index;
mod order;
mod walk;

use std::collections::VecDeque;

use stateside_types::{
    Change, Expiry, Record, RequestMark, Sequence, Timestamp, WallClock, WriteEntry,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use self::{
    arena::{Arena, Handle},
    expirations::Expirations,
    index::{Index, SlotHash},
    order::KeyOrder,
    walk::Walk,
};
use crate::{
    Lookup, PageRequest, PageStep, Reclaimed, RequestLimits, RequestRow, RequestWindow,
    SnapshotRecord, SnapshotStep, StateStore, StoreError, StoreStats,
};

/// Upkeep at every apply: blocks looked at by compaction, besides [`UPKEEP_PER_ENTRY`].
const UPKEEP_PER_APPLY: usize = 8;
/// Upkeep for every entry applied. Compaction must move up to fifteen blocks for each one freed
/// when sizes shift everywhere at once, and looks at each block twice.
const UPKEEP_PER_ENTRY: usize = 40;
/// Upkeep of a large batch is cut to this, some hundred microseconds: then a few more batches
/// do what one does not.
const UPKEEP_MAX: usize = 16 << 10;

/// Keys whose misses are waited for together.
const GUESSES_MAX: usize = 32;

/// A key's hash, and where its record probably is.
#[derive(Clone, Copy)]
struct Guess {
    hash: SlotHash,
    /// Of a record with a like hash, or none.
    handle: Handle,
}

impl Guess {
    const NONE: Self = Self::blind(SlotHash(0));

    const fn blind(hash: SlotHash) -> Self {
        Self { hash, handle: Handle::NONE }
    }
}

/// Records in memory. Owned by one partition, used on its core's thread.
pub struct MemoryStore {
    seed: u64,
    arena: Arena,
    index: Index,
    /// Of stores that order their keys.
    order: Option<KeyOrder>,
    expirations: Expirations,
    requests: RequestWindow,
    walk: Option<Walk>,
    /// Records kept for a snapshot that was abandoned: freed a few at a time.
    abandoned: VecDeque<Handle>,
    payload_bytes: u64,
    reclaimed: u64,
    applied: Sequence,
    applied_timestamp: Timestamp,
}

fn hash_key(seed: u64, key: &[u8]) -> SlotHash {
    SlotHash(xxh3_64_with_seed(key, seed))
}

impl MemoryStore {
    /// An empty store. `seed` protects against crafted keys: draw it at random, per store or
    /// per process, and do not tell.
    pub fn new(seed: u64) -> Self {
        // Partitions are cut by the unseeded hash: with it, all keys of a partition would share
        // their leading bits and the index would be one deep, empty tree.
        let seed = if seed == 0 { 0x9e37_79b9_7f4a_7c15 } else { seed };
        Self {
            seed,
            arena: Arena::default(),
            index: Index::new(),
            order: None,
            expirations: Expirations::default(),
            requests: RequestWindow::default(),
            walk: None,
            abandoned: VecDeque::new(),
            payload_bytes: 0,
            reclaimed: 0,
            applied: Sequence::ZERO,
            applied_timestamp: Timestamp::ZERO,
        }
    }

    /// An empty store that orders its keys as well; `seed` as in [`Self::new`].
    pub fn ordered(seed: u64) -> Self {
        Self { order: Some(KeyOrder::default()), ..Self::new(seed) }
    }

    fn find(&self, key: &[u8]) -> Option<Handle> {
        let arena = &self.arena;
        self.index.find(hash_key(self.seed, key), |handle| arena.key(handle) == key)
    }

    /// Looks up a few keys, as [`Self::guess`] does each, and loads their records: every key's share
    /// is independent of the others', so that the processor waits for many at a time. Three misses
    /// in a row, one key after the other, are most of an operation's time.
    fn guess_all<'a>(
        &self,
        keys: impl Iterator<Item = &'a [u8]>,
        guesses: &mut [Guess; GUESSES_MAX],
    ) {
        let mut count = 0;
        for (guess, key) in guesses.iter_mut().zip(keys) {
            *guess = self.guess(key);
            count += 1;
        }
        for guess in &guesses[..count] {
            if guess.handle != Handle::NONE {
                std::hint::black_box(self.arena.touch(guess.handle));
            }
        }
    }

    /// The first entry of the index whose control byte fits is nearly always the right one.
    #[inline]
    fn guess(&self, key: &[u8]) -> Guess {
        let hash = hash_key(self.seed, key);
        Guess { hash, handle: self.index.find(hash, |_| true).unwrap_or(Handle::NONE) }
    }

    /// What `guess`, which is of this key and as of now, comes to.
    #[inline]
    fn guessed(&self, key: &[u8], Guess { hash, handle }: Guess) -> Option<Handle> {
        let is_key = |handle| self.arena.key(handle) == key;
        match handle {
            Handle::NONE => None,
            handle if is_key(handle) => Some(handle),
            _ => self.index.find(hash, is_key),
        }
    }

    /// `guess` is of this key and as of the last upkeep or later: blocks may have been freed and taken
    /// again since, but none has moved.
    fn put(&mut self, key: &[u8], guess: Guess, record: Record<'_>) {
        let Self { arena, index, expirations, seed, .. } = self;
        let Guess { hash, handle } = guess;
        // Beside a snapshot, blocks of earlier records of the key may be live as well.
        if self.walk.is_none()
            && handle != Handle::NONE
            && let Some(old_len) = arena.renew(handle, key, record)
        {
            self.payload_bytes = self.payload_bytes - old_len as u64 + record.value.len() as u64;
            return;
        }
        let Some(place) = index.find_mut(hash, |handle| arena.key(handle) == key) else {
            let handle = arena.insert(key, record);
            index.insert(hash, handle, |handle| hash_key(*seed, arena.key(handle)));
            if let Some(order) = &mut self.order {
                order.insert(key);
            }
            expirations.insert(record.expire_at, handle);
            self.payload_bytes += (key.len() + record.value.len()) as u64;
            return;
        };
        let old = *place;
        self.payload_bytes -= arena.value_len(old) as u64;
        self.payload_bytes += record.value.len() as u64;
        expirations.remove(arena.expire_at(old), old);
        let needed = match &self.walk {
            Some(walk) => walk.needs(hash, arena.version(old)),
            None => false,
        };
        if !needed && arena.overwrite(old, record) {
            expirations.insert(record.expire_at, old);
            return;
        }
        *place = arena.insert(key, record);
        expirations.insert(record.expire_at, *place);
        self.let_go(hash, old, needed);
    }

    fn apply_all(&mut self, sequence: Sequence, timestamp: Timestamp, entries: &[WriteEntry<'_>]) {
        let mut guesses = [Guess::NONE; GUESSES_MAX];
        for entries in entries.chunks(GUESSES_MAX) {
            self.guess_all(entries.iter().map(|entry| entry.key), &mut guesses);
            for (entry, guess) in entries.iter().zip(&guesses) {
                self.apply_one(sequence, timestamp, entry, *guess);
            }
        }
    }

    #[inline]
    fn apply_one(
        &mut self,
        sequence: Sequence,
        timestamp: Timestamp,
        entry: &WriteEntry<'_>,
        guess: Guess,
    ) {
        match entry.change {
            Change::Put(value) => {
                let expire_at = entry.expiry.fixed_by(timestamp);
                let record = Record { value, version: sequence, timestamp, expire_at };
                self.put(entry.key, guess, record);
            }
            Change::Remove => self.remove(entry.key, guess.hash),
        }
    }

    fn remove(&mut self, key: &[u8], hash: SlotHash) {
        self.take_out(hash, |arena, handle| arena.key(handle) == key);
    }

    /// Takes the record of this hash that `is` picks out of the index and lets go of it.
    fn take_out(&mut self, hash: SlotHash, is: impl Fn(&Arena, Handle) -> bool) {
        let Self { arena, index, expirations, seed, .. } = self;
        let is = |handle| is(arena, handle);
        let Some(old) = index.remove(hash, is, |handle| hash_key(*seed, arena.key(handle))) else {
            return;
        };
        if let Some(order) = &mut self.order {
            order.remove(arena.key(old));
        }
        expirations.remove(arena.expire_at(old), old);
        self.payload_bytes -= (arena.key(old).len() + arena.value_len(old)) as u64;
        let needed = self.walk.as_ref().is_some_and(|w| w.needs(hash, arena.version(old)));
        self.let_go(hash, old, needed);
    }

    /// Frees a record that left the index, or leaves it to the snapshot.
    fn let_go(&mut self, hash: SlotHash, old: Handle, needed: bool) {
        match &mut self.walk {
            Some(walk) if needed => walk.keep(hash, old),
            _ => self.arena.free(old),
        }
    }

    /// Gives back memory, a bounded piece at a time.
    fn keep_up(&mut self, entries: usize) {
        let mut blocks = (UPKEEP_PER_APPLY + UPKEEP_PER_ENTRY * entries).min(UPKEEP_MAX);
        while blocks > 0
            && let Some(handle) = self.abandoned.pop_front()
        {
            self.arena.free(handle);
            blocks -= 1;
        }
        // Handles that a snapshot holds must not move, those of an abandoned one neither.
        if self.walk.is_some() || !self.abandoned.is_empty() {
            return;
        }
        self.abandoned = VecDeque::new();
        if self.index.len() == 0 {
            self.arena = Arena::default();
            return;
        }
        let Self { arena, index, expirations, seed, .. } = self;
        arena.drain(blocks, |arena, old, new| {
            let hash = hash_key(*seed, arena.key(new));
            let place = index.find_mut(hash, |handle| handle == old);
            *place.expect("every record in the arena is in the index") = new;
            expirations.moved(arena.expire_at(new), old, new);
        });
    }
}

impl StateStore for MemoryStore {
    fn kind(&self) -> &'static str {
        if self.order.is_some() { "memory-ordered" } else { "memory" }
    }

    #[inline]
    fn get(&self, key: &[u8]) -> Lookup<'_> {
        match self.find(key) {
            Some(handle) => Lookup::Found(self.arena.record(handle)),
            None => Lookup::Absent,
        }
    }

    fn page(&self, request: &PageRequest, emit: &mut dyn FnMut(SnapshotRecord<'_>)) -> PageStep {
        let Some(order) = &self.order else { return PageStep::Unordered };
        if request.is_empty() {
            return PageStep::End;
        }
        let (mut records, mut bytes, mut last) = (0, 0, None);
        for key in order.range(request.bounds()) {
            if let Some(last) = last
                && (records == request.records_max || bytes >= request.bytes_max)
            {
                return PageStep::More(Box::from(last));
            }
            let handle = self.find(key).expect("every key in the order is in the index");
            let record = self.arena.record(handle);
            emit(SnapshotRecord { key, record });
            records += 1;
            bytes += key.len() + record.value.len();
            last = Some(key);
        }
        PageStep::End
    }

    fn get_all(&self, keys: &[&[u8]], each: &mut dyn FnMut(&[u8], &Lookup<'_>)) {
        if let [key] = keys {
            // There are no misses to wait for together.
            return each(key, &self.get(key));
        }
        let mut guesses = [Guess::NONE; GUESSES_MAX];
        for keys in keys.chunks(GUESSES_MAX) {
            self.guess_all(keys.iter().copied(), &mut guesses);
            for (key, guess) in keys.iter().zip(guesses) {
                match self.guessed(key, guess) {
                    Some(handle) => each(key, &Lookup::Found(self.arena.record(handle))),
                    None => each(key, &Lookup::Absent),
                }
            }
        }
    }

    fn apply(&mut self, sequence: Sequence, timestamp: Timestamp, entries: &[WriteEntry<'_>]) {
        assert_eq!(sequence, self.applied.next(), "a batch was left out or applied twice");
        match entries {
            // There are no misses to wait for together.
            [entry] => {
                let guess = Guess::blind(hash_key(self.seed, entry.key));
                self.apply_one(sequence, timestamp, entry, guess);
            }
            _ => self.apply_all(sequence, timestamp, entries),
        }
        self.applied = sequence;
        self.applied_timestamp = timestamp;
        self.keep_up(entries.len());
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

    fn applied(&self) -> Sequence {
        self.applied
    }

    fn applied_timestamp(&self) -> Timestamp {
        self.applied_timestamp
    }

    fn covered(&self) -> Sequence {
        Sequence::ZERO
    }

    fn stats(&self) -> StoreStats {
        let kept = self.abandoned.capacity() * size_of::<Handle>()
            + self.walk.as_ref().map_or(0, Walk::memory_bytes)
            + self.order.as_ref().map_or(0, KeyOrder::memory_bytes);
        let bytes =
            size_of::<Self>() + self.arena.memory_bytes() + self.index.memory_bytes() + kept;
        StoreStats {
            records: self.index.len() as u64,
            payload_bytes: self.payload_bytes,
            memory_bytes: (bytes + self.expirations.memory_bytes()) as u64
                + self.requests.memory_bytes(),
            reclaimed: self.reclaimed,
        }
    }

    fn growth_max(&self, entries: &[WriteEntry<'_>]) -> u64 {
        let (mut puts, mut expiring, mut record_bytes, mut order_bytes) = (0, 0, 0, 0);
        for entry in entries {
            if let Change::Put(value) = entry.change {
                let expires = entry.expiry != Expiry::Never;
                puts += 1;
                expiring += usize::from(expires);
                record_bytes += Arena::record_bytes(entry.key.len(), value.len(), expires);
                if self.order.is_some() {
                    order_bytes += KeyOrder::growth_max(entry.key);
                }
            }
        }
        let kept = self.walk.as_ref().map_or(0, |walk| walk.growth_max(entries.len()));
        let records = self.arena.growth_max(record_bytes, puts);
        let expirations = expiring * Expirations::ENTRY_BYTES;
        (records + self.index.growth_max(puts) + kept + expirations + order_bytes) as u64
    }

    fn growth(&self, entries: &[WriteEntry<'_>]) -> i64 {
        let bytes_of = |key: &[u8], value_len, expires| {
            let noted = if expires { Expirations::ENTRY_BYTES } else { 0 };
            (Arena::record_bytes(key.len(), value_len, expires) + noted) as i64
        };
        let mut growth = 0;
        for entry in entries {
            if let Some(handle) = self.find(entry.key) {
                let expires = self.arena.expire_at(handle).is_some();
                growth -= bytes_of(entry.key, self.arena.value_len(handle), expires);
            }
            if let Change::Put(value) = entry.change {
                growth += bytes_of(entry.key, value.len(), entry.expiry != Expiry::Never);
            }
        }
        growth
    }

    fn is_saturated(&self) -> bool {
        self.arena.is_full()
    }

    fn reclaim(&mut self, now: WallClock, records_max: usize) -> Reclaimed {
        let mut reclaimed = Reclaimed::default();
        while reclaimed.records < records_max
            && let Some(expired) = self.expirations.first(now)
        {
            reclaimed.records += 1;
            reclaimed.newest = reclaimed.newest.max(self.arena.version(expired));
            let hash = hash_key(self.seed, self.arena.key(expired));
            self.take_out(hash, |_, handle| handle == expired);
        }
        if reclaimed.records > 0 {
            self.reclaimed += reclaimed.records as u64;
            self.keep_up(reclaimed.records);
        }
        reclaimed
    }

    fn snapshot_start(&mut self) {
        self.snapshot_end();
        self.walk = Some(Walk::new(self.applied));
    }

    fn snapshot_next(
        &mut self,
        budget_bytes: usize,
        emit: &mut dyn FnMut(SnapshotRecord<'_>),
    ) -> Result<SnapshotStep, StoreError> {
        let Self { walk, arena, index, seed, .. } = self;
        let walk = walk.as_mut().expect("a snapshot was started");
        let hash_of = |arena: &Arena, handle| hash_key(*seed, arena.key(handle));
        Ok(walk.step(budget_bytes, arena, index, hash_of, emit))
    }

    fn snapshot_end(&mut self) {
        if let Some(walk) = self.walk.take() {
            self.abandoned.extend(walk.into_kept());
        }
    }

    fn load_start(&mut self) {
        let order = self.order.as_ref().map(|_| KeyOrder::default());
        self.requests.clear();
        let requests = std::mem::take(&mut self.requests);
        *self = Self { order, requests, ..Self::new(self.seed) };
    }

    fn load_request(&mut self, row: &RequestRow<'_>) {
        self.requests.load(row);
    }

    fn load(&mut self, records: &[SnapshotRecord<'_>]) -> bool {
        for SnapshotRecord { key, record } in records {
            self.put(key, Guess::blind(hash_key(self.seed, key)), *record);
        }
        true
    }

    fn load_end(&mut self, sequence: Sequence, timestamp: Timestamp) {
        self.applied = sequence;
        self.applied_timestamp = timestamp;
    }
}
