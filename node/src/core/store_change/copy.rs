//! The blocking half of a store change: fills the other store from a snapshot and applies to it
//! what was written since. Everything here runs on the blocking pool.

use std::{
    fs::File,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use stateside_partition::{Partition, Successor, TrailPiece};
use stateside_pipeline::trail::{TrailDamaged, next_write};
use stateside_statestore::StateStore;
use stateside_types::{PartitionId, PartitionSpec, Reason, Refusal, Sequence};

use super::backlog::{Portion, Spilled};
use crate::core::partition_files::{PartitionFiles, work};

/// How far a copy is; written by the pool, read by the core.
#[derive(Default)]
pub(crate) struct CopyProgress {
    records: AtomicU64,
    memory_bytes: AtomicU64,
    is_cancelled: AtomicBool,
}

impl CopyProgress {
    /// Records in the other store that came from the snapshot.
    pub(crate) fn records(&self) -> u64 {
        self.records.load(Relaxed)
    }

    /// Memory of the other store, as of its last piece.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_bytes.load(Relaxed)
    }

    /// Has what runs on the pool end soon.
    pub(crate) fn cancel(&self) {
        self.is_cancelled.store(true, Relaxed);
    }

    /// Some records are in the store.
    ///
    /// # Errors
    /// The copy was cancelled; `MEMORY_FULL` when the store takes more than it may.
    pub(crate) fn advance(
        &self,
        records: usize,
        store: &dyn StateStore,
        memory_limit: u64,
    ) -> Result<(), Refusal> {
        let memory_bytes = store.stats().memory_bytes;
        self.records.fetch_add(records as u64, Relaxed);
        self.memory_bytes.store(memory_bytes, Relaxed);
        if memory_bytes > memory_limit {
            return Err(memory_full(memory_limit));
        }
        self.check()
    }

    fn check(&self) -> Result<(), Refusal> {
        if self.is_cancelled.load(Relaxed) {
            return Err(Refusal::new(
                Reason::PartitionBusy,
                "the change of the store was cancelled",
            ));
        }
        Ok(())
    }
}

/// The node's memory limit leaves less than the records need.
pub(crate) fn memory_full(available: u64) -> Refusal {
    let text = format!("{available} bytes of memory.limit_mb are free, the records need more");
    Refusal::new(Reason::MemoryFull, text)
}

/// What came back from the pool.
pub(crate) enum Copied {
    /// The other store holds the snapshot, or has caught up with some writes.
    Store(Result<Box<dyn StateStore>, Refusal>),
    /// Waiting writes are in the file.
    Spilled(io::Result<(Arc<File>, Vec<Spilled>)>),
    /// Files that nothing needs any more are gone.
    CleanedUp(Result<(), Refusal>),
}

/// Makes the store that `spec` names and fills it from a snapshot.
pub(crate) fn fill(
    files: &PartitionFiles,
    spec: &PartitionSpec,
    snapshot: &Path,
    sequence: Sequence,
    progress: &CopyProgress,
    memory_limit: u64,
) -> Result<Box<dyn StateStore>, Refusal> {
    // Of an attempt that was given up and could not be cleaned up.
    files.remove_store(spec)?;
    files.copy_store(spec, snapshot, sequence, &|records, store| {
        progress.advance(records, store, memory_limit)
    })
}

/// Applies writes that are durable. With `covers` the store, one on disk, then survives a crash with
/// all of them.
pub(crate) fn catch_up(
    mut store: Box<dyn StateStore>,
    portions: Vec<Portion>,
    covers: bool,
    progress: &CopyProgress,
) -> Result<Box<dyn StateStore>, Refusal> {
    for portion in portions {
        let bytes = portion.read().map_err(|error| unreadable(&error))?;
        apply(store.as_mut(), &bytes)?;
        // The writers of this node are held to the limit; what they wrote must fit here too.
        progress.advance(0, store.as_ref(), u64::MAX)?;
    }
    if covers {
        while store.covered() < store.applied() {
            store.cover();
            work(store.as_mut())?;
        }
    }
    Ok(store)
}

/// Applies a piece of a trail and does the work that comes of it.
fn apply(store: &mut dyn StateStore, bytes: &[u8]) -> Result<(), Refusal> {
    let (mut rest, mut entries) = (bytes, Vec::new());
    while let Some(write) = next_write(&mut rest, &mut entries).map_err(damaged)? {
        stateside_partition::apply(store, &write, &entries);
        while store.is_saturated() {
            if !work(store)? {
                let text = format!("a {} store cannot hold so much", store.kind());
                return Err(Refusal::new(Reason::MemoryFull, text));
            }
        }
    }
    Ok(())
}

/// Applies a piece of a trail to the store that `partition` is about to go on with; on its core. The
/// work that comes of it is the partition's, later. Returns what has to wait until more is durable.
///
/// # Panics
/// When the piece does not read back: it never left this process's memory.
pub(crate) fn apply_here(
    partition: &Partition,
    next: &mut Successor,
    mut piece: TrailPiece,
) -> Option<TrailPiece> {
    let (mut rest, mut entries) = (piece.bytes.as_slice(), Vec::new());
    loop {
        let before = rest.len();
        let write =
            next_write(&mut rest, &mut entries).expect("it reads back as it was written")?;
        if !partition.apply_last(next, &write, &entries) {
            let applied = piece.bytes.len() - before;
            piece.bytes.drain(..applied);
            return Some(piece);
        }
    }
}

/// Deletes the store of a kind, and the snapshot that it was copied by when nothing else needs it.
pub(crate) fn clean_up(
    files: &PartitionFiles,
    spec: &PartitionSpec,
    store: Option<Box<dyn StateStore>>,
    snapshot: Option<&Path>,
) -> Result<(), Refusal> {
    // Large ones take their time.
    drop(store);
    files.remove_store(spec)?;
    match snapshot.map(std::fs::remove_file) {
        Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
            let text = format!("a snapshot of partition {} stays: {error}", spec.id);
            Err(Refusal::new(Reason::Internal, text))
        }
        _ => Ok(()),
    }
}

/// Waiting writes could not be put into their file.
pub(crate) fn unspilled(id: PartitionId, error: &io::Error) -> Refusal {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let reason = if full { Reason::DiskFull } else { Reason::Internal };
    let text = format!("writes that wait for the new store of partition {id}: {error}");
    Refusal::new(reason, text)
}

fn unreadable(error: &io::Error) -> Refusal {
    Refusal::new(Reason::Internal, format!("writes that wait for the new store: {error}"))
}

fn damaged(error: TrailDamaged) -> Refusal {
    Refusal::new(Reason::Internal, error.to_string())
}
