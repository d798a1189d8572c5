//! The fast tier: copies of entries of the slow one, in a ring of regions in one file, and an index of
//! them in memory. It may forget anything at any time and must never be wrong.
//!
//! ```text
//!   admit ─► buffer (fill n) ─ full ─► written by whoever filled it ─► region n mod r of the file
//!                                                 │ meanwhile read from memory
//!            fills that can be read:   n-r+1 … n-1, n         older ones are gone, all at once
//!                                      └ oldest quarter: what is read here is admitted once more
//! ```
//! **Why nothing stale is read.**
//! - The index alone says where an entry is, and has one place for a hash. So what a newer entry, or none
//!   at all, took the place of can never be found again, whatever is evicted.
//! - The index is in memory and begins empty: nothing that an earlier process left is ever read, so
//!   it makes no difference what became of it. The file is made anew, and the stamp of a fill, which is
//!   in each entry and under its checksum, is never that of another process's fill.
//! - An entry that a batch writes is put into the index when the slow tier has the batch, and what was there
//!   is taken out of it before. In between the entry is a miss.
//! - A read that finds other bytes than were written counts as damage and a miss.
//!
//! **A fast tier that fails** (no room, an error of the disk) is emptied and left alone for a while; then it
//! is begun anew. Meanwhile everything is a miss.
//!
//! The lock is held for look-ups in memory and for copying an entry to the buffer, never while a file
//! is read or written.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    hash::{BuildHasher, RandomState},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::{
    add,
    entry::{self, Content, Unfit, Value},
    index::{ENTRY_BYTES_MAX, Index, Place, REGION_BYTES_MAX, SET_BYTES},
};
use crate::TierFigures;

/// Bytes that are written at once: enough for a disk to be at its best, few enough to be written soon.
const REGION_BYTES: std::ops::RangeInclusive<u64> = 256 << 10..=4 << 20;
/// Fewest regions that are worth the trouble.
const REGIONS_MIN: u64 = 4;
/// Regions that a file is cut to, unless they would be larger or smaller than that.
const REGIONS: u64 = 64;
/// The index is this part of the capacity at most: entries are hardly shorter on average than its inverse tells, 128 bytes.
const INDEX_SHARE: u64 = 8;
/// Of the capacity, what the directory's other file and the directory itself have.
const RESERVED_BYTES: u64 = 8 << 10;
/// Smallest capacity, bytes.
pub const FAST_CAPACITY_BYTES_MIN: u64 = 16 << 20;
/// Shortest time between two reports of damage.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

const _: () = assert!(*REGION_BYTES.end() <= REGION_BYTES_MAX as u64);
const _: () = assert!(*REGION_BYTES.start() >= ENTRY_BYTES_MAX as u64);
const _: () =
    assert!((FAST_CAPACITY_BYTES_MIN - RESERVED_BYTES) / *REGION_BYTES.start() >= REGIONS_MIN);

/// How a fast tier is run.
#[derive(Clone, Debug)]
pub struct FastTierOptions {
    /// Its directory. Made when it is missing; used by one process at a time.
    pub directory: PathBuf,
    /// What the files in it may grow to together, bytes.
    pub capacity_bytes: u64,
    /// What they leave of their disk at least, bytes: the log and the slow tier may be on the same.
    pub free_bytes_min: u64,
    /// Memory of the index, bytes: 16 for each entry.
    pub index_bytes: u64,
    /// How long a fast tier that failed is left alone.
    pub retry_after: Duration,
    /// Hears of damage and failures, in words.
    pub report: fn(&str),
}

/// What a look-up brought.
pub(super) enum Found {
    /// What the slow tier would say.
    Known(Option<Value>),
    /// Only the slow tier knows.
    Nothing,
}

/// An entry that was written ahead of its batch, and is not in the index yet.
pub(super) struct Staged {
    hash: u64,
    place: Option<Place>,
}

/// See the file's header.
pub(super) struct FastTier {
    options: FastTierOptions,
    figures: Arc<TierFigures>,
    region_bytes: u64,
    /// As many as the capacity has room for.
    regions_max: u64,
    state: Mutex<State>,
}

struct State {
    /// None while it cannot be used.
    files: Option<Files>,
    retry_at: Instant,
    damage_reported: Option<Instant>,
    /// Stamp of fill 0.
    stamp: u64,
    /// How many the disk has had room for: the length of the ring.
    regions: u32,
    /// The fill that gathers in `buffer`.
    fill: u32,
    /// Fills before it are gone for good.
    first_fill: u32,
    buffer: Vec<u8>,
    /// What is being written.
    sealed: Option<Arc<Sealed>>,
    index: Index,
    /// Entries that the index has, by region.
    live: Box<[u32]>,
}

struct Files {
    file: Arc<File>,
    /// Held for its lock.
    _lock: File,
}

struct Sealed {
    fill: u32,
    bytes: Vec<u8>,
}

/// Where the bytes of a place are.
enum Source {
    Copied(Vec<u8>),
    Sealed(Arc<Sealed>),
    File(Arc<File>),
}

impl FastTier {
    /// An empty fast tier. One that cannot be used for now is no error: everything is a miss until it can.
    ///
    /// # Errors
    /// Another process uses the directory.
    pub(super) fn open(options: &FastTierOptions, figures: &Arc<TierFigures>) -> io::Result<Self> {
        let usable = options.capacity_bytes.max(FAST_CAPACITY_BYTES_MIN) - RESERVED_BYTES;
        let region_bytes = (usable / REGIONS).clamp(*REGION_BYTES.start(), *REGION_BYTES.end());
        let regions_max = (usable / region_bytes).min(u64::from(u32::MAX / 2));
        let index_bytes = options.index_bytes.min(usable / INDEX_SHARE).max(SET_BYTES as u64);
        let tier = Self {
            options: options.clone(),
            figures: Arc::clone(figures),
            region_bytes,
            regions_max,
            state: Mutex::new(State {
                files: None,
                retry_at: Instant::now(),
                damage_reported: None,
                stamp: 0,
                regions: REGIONS_MIN as u32,
                fill: 0,
                first_fill: 0,
                buffer: Vec::with_capacity(region_bytes as usize),
                sealed: None,
                index: Index::new(index_bytes),
                live: Box::default(),
            }),
        };
        {
            let mut state = tier.state();
            figures.memory_bytes.store(state.index.memory_bytes() + 2 * region_bytes, Relaxed);
            figures.capacity_bytes.store(options.capacity_bytes, Relaxed);
            figures.entries.store(0, Relaxed);
            match tier.start(&mut state) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => tier.give_up(&mut state, "opening", &error),
                Ok(()) => {}
            }
        }
        Ok(tier)
    }

    /// What is known of a key. `promotes`: what is about to go is kept for being read.
    pub(super) fn look_up(&self, tree: u32, key: &[u8], promotes: bool) -> Found {
        let hash = hash_of(tree, key);
        let (place, at, stamp, source, is_old) = {
            let state = self.state();
            let Some(place) = state.index.get(hash) else { return Found::Nothing };
            let Some(files) = &state.files else { return Found::Nothing };
            if !state.is_live(place.fill) {
                return Found::Nothing;
            }
            let source = match &state.sealed {
                _ if place.fill == state.fill => {
                    Source::Copied(state.buffer[place.range()].to_vec())
                }
                Some(sealed) if sealed.fill == place.fill => Source::Sealed(Arc::clone(sealed)),
                _ => Source::File(Arc::clone(&files.file)),
            };
            let is_old = state.fill - place.fill > state.regions / 4 * 3;
            (place, self.offset(&state, place), state.stamp_of(place.fill), source, is_old)
        };
        let bytes = match source {
            Source::Copied(bytes) => bytes,
            Source::Sealed(sealed) => sealed.bytes[place.range()].to_vec(),
            Source::File(file) => {
                let mut bytes = vec![0; place.length];
                match file.read_exact_at(&mut bytes, at) {
                    Ok(()) => bytes,
                    // Somebody cut the file short.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Vec::new(),
                    Err(error) => {
                        self.give_up_file(&file, "reading", &error);
                        return Found::Nothing;
                    }
                }
            }
        };
        match entry::read(bytes, stamp, tree, key) {
            Ok(known) => {
                if promotes && is_old {
                    let content = known.as_ref().map(AsRef::as_ref);
                    if self.admit(tree, key, content) {
                        add(&self.figures.kept, 1);
                    }
                }
                Found::Known(known)
            }
            Err(Unfit::OtherKey) => Found::Nothing,
            Err(Unfit::Damaged) => {
                self.note_damage(hash, place);
                Found::Nothing
            }
        }
    }

    /// Takes in what the slow tier says of a key. False: it was passed over.
    pub(super) fn admit(&self, tree: u32, key: &[u8], content: Content<'_>) -> bool {
        let staged = self.stage(tree, key, content);
        self.publish(&staged);
        staged.place.is_some()
    }

    /// Forgets a key, which a batch is about to change.
    pub(super) fn forget(&self, tree: u32, key: &[u8]) -> Staged {
        let hash = hash_of(tree, key);
        self.state().take_out(hash, self);
        Staged { hash, place: None }
    }

    /// Forgets a key and writes what it will be, to be found when [`Self::publish`] says so.
    pub(super) fn stage(&self, tree: u32, key: &[u8], content: Content<'_>) -> Staged {
        let hash = hash_of(tree, key);
        let mut state = self.state();
        state.take_out(hash, self);
        let nothing = Staged { hash, place: None };
        let Some(length) = entry::length(key, content) else { return nothing };
        if !self.is_usable(&mut state) {
            return nothing;
        }
        let mut sealed = None;
        if state.buffer.len() + length > self.region_bytes as usize {
            if state.sealed.is_some() {
                // The disk is slower than what comes in. Waiting for it would make a cache a brake.
                add(&self.figures.passed_over, 1);
                return nothing;
            }
            let at = state.region(state.fill) as u64 * self.region_bytes;
            sealed = Some((self.seal(&mut state), at));
        }
        let (fill, offset) = (state.fill, state.buffer.len());
        let stamp = state.stamp_of(fill);
        entry::write(&mut state.buffer, stamp, tree, key, content);
        debug_assert_eq!(state.buffer.len(), offset + length);
        add(&self.figures.admitted, 1);
        add(&self.figures.admitted_bytes, length as u64);
        let files = state.files.as_ref().map(|files| Arc::clone(&files.file));
        drop(state);
        if let (Some((sealed, at)), Some(file)) = (sealed, files) {
            self.write_out(&sealed, &file, at);
        }
        Staged { hash, place: Some(Place { fill, offset, length }) }
    }

    /// From here on the entry is what its key has, or its key has none that is known.
    pub(super) fn publish(&self, staged: &Staged) {
        let mut state = self.state();
        state.take_out(staged.hash, self);
        let Some(place) = staged.place else { return };
        // It may have taken a while: then it is no longer there.
        if state.files.is_none() || !state.is_live(place.fill) {
            return;
        }
        let first_live = state.first_live();
        if let Some(gone) = state.index.put(staged.hash, place, first_live) {
            // Another key's, of the same set.
            if state.discount(gone, self) {
                add(&self.figures.evicted, 1);
            }
        }
        let region = state.region(place.fill);
        state.live[region] += 1;
        self.figures.entries.fetch_add(1, Relaxed);
    }

    /// Begins the next fill; what was in its region is gone.
    fn seal(&self, state: &mut State) -> Arc<Sealed> {
        let next = Vec::with_capacity(self.region_bytes as usize);
        let bytes = std::mem::replace(&mut state.buffer, next);
        let sealed = Arc::new(Sealed { fill: state.fill, bytes });
        state.sealed = Some(Arc::clone(&sealed));
        if state.fill == u32::MAX {
            // After 2^32 fills their numbers would come again: everything is forgotten.
            self.begin_anew(state);
            return sealed;
        }
        state.fill += 1;
        let region = state.region(state.fill);
        let gone = u64::from(std::mem::take(&mut state.live[region]));
        add(&self.figures.evicted, gone);
        self.figures.entries.fetch_sub(gone, Relaxed);
        sealed
    }

    /// Writes a fill to its region. Whoever filled it does, on the blocking pool.
    fn write_out(&self, sealed: &Arc<Sealed>, file: &Arc<File>, at: u64) {
        let written = file.write_all_at(&sealed.bytes, at).and_then(|()| {
            // Whoever looks at the directory should see what it takes of the disk.
            let is_gone = file.metadata()?.nlink() == 0;
            if is_gone { Err(io::Error::other("somebody removed it")) } else { Ok(()) }
        });
        {
            let mut state = self.state();
            if state.sealed.as_ref().is_some_and(|now| Arc::ptr_eq(now, sealed)) {
                state.sealed = None;
            }
        }
        match written {
            Ok(()) => {
                self.figures.file_bytes.fetch_max(at + sealed.bytes.len() as u64, Relaxed);
            }
            Err(error) => self.give_up_file(file, "writing", &error),
        }
    }

    /// Whether there is a file; a failed tier is tried again when it is time.
    fn is_usable(&self, state: &mut State) -> bool {
        if state.files.is_some() {
            return true;
        }
        if Instant::now() < state.retry_at {
            return false;
        }
        match self.start(state) {
            Ok(()) => {
                (self.options.report)(&format!("{}: in use again", self.path().display()));
                true
            }
            Err(error) => {
                self.give_up(state, "opening", &error);
                false
            }
        }
    }

    /// Begins with an empty file.
    fn start(&self, state: &mut State) -> io::Result<()> {
        fs::create_dir_all(&self.options.directory)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let lock = options.open(self.options.directory.join("LOCK"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let text = format!(
                    "{}: another process uses it as its fast directory",
                    self.options.directory.display()
                );
                return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Not the old one cut short: who still has it open reads what it was.
        match fs::remove_file(self.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = options.open(self.path())?;
        state.regions = self.regions_with_room()?;
        state.live = vec![0; state.regions as usize].into();
        state.files = Some(Files { file: Arc::new(file), _lock: lock });
        self.begin_anew(state);
        self.figures.file_bytes.store(0, Relaxed);
        self.figures.is_down.store(false, Relaxed);
        Ok(())
    }

    /// How many regions the capacity and the disk have room for. A disk that is smaller than the capacity is
    /// used as far as it goes, instead of failing again and again.
    fn regions_with_room(&self) -> io::Result<u32> {
        let disk = rustix::fs::statvfs(&self.options.directory).map_err(io::Error::from)?;
        let room = (disk.f_bavail * disk.f_frsize).saturating_sub(self.options.free_bytes_min);
        let regions = (room / self.region_bytes).min(self.regions_max);
        if regions < REGIONS_MIN {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(regions as u32)
    }

    /// Forgets everything.
    fn begin_anew(&self, state: &mut State) {
        // Drawn anew, so that nothing that is in a file, or gets there late, reads as an entry of now.
        state.stamp = RandomState::new().hash_one(state.stamp);
        state.buffer.clear();
        state.live.fill(0);
        self.figures.entries.store(0, Relaxed);
        match state.fill.checked_add(1) {
            Some(next) => (state.fill, state.first_fill) = (next, next),
            None => {
                state.index = Index::new(state.index.memory_bytes());
                (state.fill, state.first_fill) = (0, 0);
            }
        }
    }

    /// After a failure of a file; unless that one was given up before.
    fn give_up_file(&self, file: &Arc<File>, doing: &str, error: &io::Error) {
        let mut state = self.state();
        if state.files.as_ref().is_some_and(|files| Arc::ptr_eq(&files.file, file)) {
            self.give_up(&mut state, doing, error);
        }
    }

    /// After a failure: everything is a miss until it is time to try again.
    fn give_up(&self, state: &mut State, doing: &str, error: &io::Error) {
        add(&self.figures.failures, 1);
        let was_down = self.figures.is_down.swap(true, Relaxed);
        state.files = None;
        state.sealed = None;
        state.retry_at = Instant::now() + self.options.retry_after;
        self.begin_anew(state);
        if !was_down {
            (self.options.report)(&format!(
                "{}: {doing}: {error}; reads go to the slow directory, and it is tried again every {} s",
                self.path().display(),
                self.options.retry_after.as_secs()
            ));
        }
    }

    fn note_damage(&self, hash: u64, place: Place) {
        let mut state = self.state();
        // Its region may have been given to a later fill while it was read.
        if state.index.get(hash) != Some(place) || !state.is_live(place.fill) {
            return;
        }
        state.take_out(hash, self);
        add(&self.figures.damaged, 1);
        let now = Instant::now();
        if state.damage_reported.is_none_or(|last| now - last >= REPORT_INTERVAL) {
            state.damage_reported = Some(now);
            (self.options.report)(&format!(
                "{}: damaged: {} bytes at offset {} are not what was written; the slow directory is asked instead \
                 ({} entries so far)",
                self.path().display(),
                place.length,
                self.offset(&state, place),
                self.figures.damaged.load(Relaxed)
            ));
        }
    }

    fn path(&self) -> PathBuf {
        self.options.directory.join("cache")
    }

    fn offset(&self, state: &State, place: Place) -> u64 {
        state.region(place.fill) as u64 * self.region_bytes + place.offset as u64
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn first_live(&self) -> u32 {
        self.first_fill.max(self.fill.saturating_sub(self.regions - 1))
    }

    fn is_live(&self, fill: u32) -> bool {
        (self.first_live()..=self.fill).contains(&fill)
    }

    fn region(&self, fill: u32) -> usize {
        (fill % self.regions) as usize
    }

    fn stamp_of(&self, fill: u32) -> u64 {
        self.stamp.wrapping_add(u64::from(fill))
    }

    /// Takes an entry out of the index.
    fn take_out(&mut self, hash: u64, tier: &FastTier) {
        if let Some(place) = self.index.remove(hash) {
            self.discount(place, tier);
        }
    }

    /// An entry is no longer in the index. False: it was gone before.
    fn discount(&mut self, place: Place, tier: &FastTier) -> bool {
        let was_live = self.is_live(place.fill);
        if was_live {
            let region = self.region(place.fill);
            self.live[region] -= 1;
            tier.figures.entries.fetch_sub(1, Relaxed);
        }
        was_live
    }
}

impl Place {
    fn range(self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.length
    }
}

/// Trees have numbers of their own, so equal keys of two partitions differ.
fn hash_of(tree: u32, key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(key, u64::from(tree))
}
