//! What writes replaced that are not durable yet: how reads see the newest durable state although
//! the store has gone on.
//!
//! ```text
//!   passed                     applied          a read of `a` as of `passed`: what 41 replaced
//!     │ ┌────┬────┬────┬────┐    │                            of `b`: what 42 replaced
//!     │ │ 41 │ 42 │ 43 │ 44 │    │                            of `c`: the store, nothing replaced it
//!     │ └────┴────┴────┴────┘    │
//!         a ─────────► a          index   key ─► first and last write here; each points to the next
//!              b
//! ```
//! A batch enters before the store applies it and leaves when it is durable. So the first one here that
//! wrote a key holds what the key was before all that are not durable. (Versions in every store were turned
//! down: each engine would have to keep and clean them, for a state that is milliseconds old.)
//!
//! A store on disk may not know what is replaced without asking its disk. Then what stands here is *on
//! disk*: nothing that is not durable is written to the disk, so as long as the entry is here the disk has
//! just that.

use std::{collections::VecDeque, mem::size_of};

use hashbrown::HashTable;
use stateside_statestore::Lookup;
use stateside_types::{
    ExpireAt, Record, Sequence, Timestamp, WriteEntry, limits::REPLACED_BYTES_MAX,
};
use xxhash_rust::xxh3::xxh3_64;

/// What a key was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before<'a> {
    Record(Record<'a>),
    Absent,
    /// What the store has of it on disk.
    OnDisk,
}

/// What one batch replaces.
#[derive(Debug)]
pub(crate) struct ReplacedBatch {
    sequence: Sequence,
    /// Keys, each with the value that was replaced.
    bytes: Vec<u8>,
    entries: Box<[Entry]>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: usize,
    key_len: u16,
    what: What,
    /// The next write here of the same key.
    next: Option<Place>,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Record { value_len: u32, version: Sequence, timestamp: Timestamp, expire_at: Option<ExpireAt> },
    Absent,
    OnDisk,
}

/// A batch here and an entry of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    sequence: Sequence,
    entry: u32,
}

#[derive(Clone, Copy, Debug)]
struct KeyPlaces {
    first: Place,
    last: Place,
}

/// See the module's header. Owned by its partition, bounded by the line monitor's window and by
/// [`REPLACED_BYTES_MAX`].
#[derive(Debug, Default)]
pub(crate) struct Replaced {
    batches: VecDeque<ReplacedBatch>,
    index: HashTable<KeyPlaces>,
    bytes: usize,
}

impl ReplacedBatch {
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.bytes.capacity() + self.entries.len() * size_of::<Entry>()
    }

    fn key(&self, entry: u32) -> &[u8] {
        let Entry { start, key_len, .. } = self.entries[entry as usize];
        &self.bytes[start..][..usize::from(key_len)]
    }

    fn before(&self, entry: u32) -> Before<'_> {
        let Entry { start, key_len, what, .. } = self.entries[entry as usize];
        match what {
            What::Absent => Before::Absent,
            What::OnDisk => Before::OnDisk,
            What::Record { value_len, version, timestamp, expire_at } => {
                let value = &self.bytes[start + usize::from(key_len)..][..value_len as usize];
                Before::Record(Record { value, version, timestamp, expire_at })
            }
        }
    }
}

impl Replaced {
    /// Bytes of memory of everything here.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
            + self.index.allocation_size()
            + self.batches.capacity() * size_of::<ReplacedBatch>()
    }

    /// What a batch with this sequence is about to replace, by what `get` says of its keys now. None:
    /// too much is here already. What no room would ever suffice for gets by when nothing else is here.
    pub(crate) fn look_up<'s>(
        &self,
        sequence: Sequence,
        entries: &[WriteEntry<'_>],
        get: impl Fn(&[u8]) -> Lookup<'s>,
    ) -> Option<ReplacedBatch> {
        let room = match self.batches.is_empty() {
            true => usize::MAX,
            false => REPLACED_BYTES_MAX.saturating_sub(self.bytes),
        };
        let mut bytes = Vec::with_capacity(entries.iter().map(|entry| entry.key.len()).sum());
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries {
            let start = bytes.len();
            bytes.extend_from_slice(entry.key);
            let what = match get(entry.key) {
                Lookup::Found(record) => {
                    bytes.extend_from_slice(record.value);
                    What::Record {
                        value_len: record.value.len() as u32, // at most a request's 1 MiB
                        version: record.version,
                        timestamp: record.timestamp,
                        expire_at: record.expire_at,
                    }
                }
                Lookup::Absent => What::Absent,
                Lookup::Unknown | Lookup::Withheld { .. } => What::OnDisk,
            };
            kept.push(Entry { start, key_len: entry.key.len() as u16, what, next: None });
            if bytes.len() + kept.len() * size_of::<Entry>() > room {
                return None;
            }
        }
        Some(ReplacedBatch { sequence, bytes, entries: kept.into() })
    }

    /// The batch is accepted. They come in sequence; those that write nothing need not come.
    pub(crate) fn push(&mut self, batch: ReplacedBatch) {
        let last = self.batches.back().map(|last| last.sequence);
        assert!(last < Some(batch.sequence), "batches come in sequence");
        self.bytes += batch.bytes();
        let sequence = batch.sequence;
        let count = batch.entries.len() as u32;
        self.batches.push_back(batch);
        for entry in 0..count {
            let Self { batches, index, .. } = self;
            let key = key_of(batches, Place { sequence, entry });
            let hash = xxh3_64(key);
            let place = Place { sequence, entry };
            let mut before = None;
            match index.find_mut(hash, |places| key_of(batches, places.last) == key) {
                Some(places) => {
                    before = Some(places.last);
                    places.last = place;
                }
                None => {
                    let places = KeyPlaces { first: place, last: place };
                    index.insert_unique(hash, places, |other| xxh3_64(key_of(batches, other.last)));
                }
            }
            if let Some(before) = before {
                let at = index_of(batches, before.sequence);
                batches[at].entries[before.entry as usize].next = Some(place);
            }
        }
    }

    /// Everything up to this sequence is durable.
    pub(crate) fn drop_through(&mut self, passed: Sequence) {
        while self.batches.front().is_some_and(|batch| batch.sequence <= passed) {
            let sequence = self.batches[0].sequence;
            for entry in 0..self.batches[0].entries.len() as u32 {
                let place = Place { sequence, entry };
                let hash = xxh3_64(self.batches[0].key(entry));
                let next = self.batches[0].entries[entry as usize].next;
                let found = self.index.find_entry(hash, |places| places.first == place);
                let mut found = found.expect("what is here is in the index");
                match next {
                    Some(next) => found.get_mut().first = next,
                    None => drop(found.remove()),
                }
            }
            self.bytes -= self.batches[0].bytes();
            self.batches.pop_front();
        }
        if self.batches.is_empty() && self.index.capacity() > 1 << 10 {
            // What a burst made them grow to is given back.
            *self = Self::default();
        }
    }

    /// What the key was before the writes here. None: none of them wrote it.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Before<'_>> {
        if self.batches.is_empty() {
            return None;
        }
        let is = |places: &KeyPlaces| key_of(&self.batches, places.first) == key;
        let Place { sequence, entry } = self.index.find(xxh3_64(key), is)?.first;
        Some(self.batches[index_of(&self.batches, sequence)].before(entry))
    }
}

fn index_of(batches: &VecDeque<ReplacedBatch>, sequence: Sequence) -> usize {
    let found = batches.binary_search_by_key(&sequence, |batch| batch.sequence);
    found.expect("the index names batches that are here")
}

fn key_of(batches: &VecDeque<ReplacedBatch>, place: Place) -> &[u8] {
    batches[index_of(batches, place.sequence)].key(place.entry)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type State = BTreeMap<u8, (Vec<u8>, Sequence)>;

    fn lookup<'s>(state: &'s State, key: &[u8]) -> Lookup<'s> {
        match state.get(&key[0]) {
            // As of a store on disk that has not asked its disk.
            Some((value, _)) if value.len() == 7 => Lookup::Unknown,
            Some((value, version)) => Lookup::Found(Record {
                value,
                version: *version,
                timestamp: Timestamp(version.0 * 10),
                expire_at: None,
            }),
            None => Lookup::Absent,
        }
    }

    proptest! {
        /// Batches come and become durable in turn; every key is always what it was then.
        #[test]
        fn every_key_is_what_it_was_before_what_is_not_durable(
            steps in prop::collection::vec((
                prop::collection::btree_map(0..9_u8, prop::option::of(0..9_usize), 1..5), 0..4_u64,
            ), 1..60),
        ) {
            let mut states = vec![State::new()];
            let mut replaced = Replaced::default();
            let mut passed = Sequence::ZERO;
            for (batch, durable) in steps {
                let sequence = Sequence(states.len() as u64);
                let mut state = states.last().unwrap().clone();
                let keys: Vec<_> = batch.keys().map(|key| [*key]).collect();
                let entries: Vec<_> = keys.iter().map(|key| WriteEntry::remove(key)).collect();
                let kept = replaced.look_up(sequence, &entries, |key| lookup(&state, key)).unwrap();
                replaced.push(kept);
                for (key, length) in batch {
                    match length {
                        Some(length) => drop(state.insert(key, (vec![key; length], sequence))),
                        None => drop(state.remove(&key)),
                    }
                }
                states.push(state);
                passed = Sequence((passed.0 + durable).min(sequence.0));
                replaced.drop_through(passed);

                let (then, now) = (&states[passed.0 as usize], states.last().unwrap());
                for key in 0..9_u8 {
                    let expected = match lookup(then, &[key]) {
                        Lookup::Found(record) => Before::Record(record),
                        Lookup::Absent => Before::Absent,
                        _ => Before::OnDisk,
                    };
                    match replaced.get(&[key]) {
                        Some(before) => prop_assert_eq!(before, expected),
                        None => prop_assert_eq!(then.get(&key), now.get(&key)),
                    }
                }
            }
            replaced.drop_through(Sequence(states.len() as u64));
            prop_assert_eq!((replaced.bytes, replaced.index.len()), (0, 0));
        }
    }

    #[test]
    fn a_batch_that_would_keep_too_much_waits_until_nothing_else_is_here() {
        let large = vec![1; REPLACED_BYTES_MAX];
        let entries = [WriteEntry::remove(b"k")];
        let (version, timestamp) = (Sequence(1), Timestamp(1));
        let record = Record { value: &large, version, timestamp, expire_at: None };
        let mut replaced = Replaced::default();
        let look = |replaced: &Replaced, sequence| {
            replaced.look_up(Sequence(sequence), &entries, |_| Lookup::Found(record))
        };
        let first = look(&replaced, 5).expect("alone it gets by");
        replaced.push(first);
        assert!(look(&replaced, 6).is_none());
        let small = replaced.look_up(Sequence(6), &entries, |_| Lookup::Absent);
        assert!(small.is_none(), "more than enough is here");
        replaced.drop_through(Sequence(5));
        assert!(look(&replaced, 6).is_some());
    }
}
