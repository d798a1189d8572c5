//! `import --dry-run`: everything but the writing.

use std::collections::HashSet;

use stateside_router::key_hash;
use stateside_types::limits::IMPORT_DISTINCT_KEYS_MAX;
use tokio::sync::mpsc::Receiver;

use super::{
    OnError, Tally,
    progress::Progress,
    reader::{Chunk, Parsed},
    send::Stop,
};

/// What a dry run found.
pub(super) struct Counted {
    pub(super) tally: Tally,
    pub(super) stop: Option<Stop>,
    /// By the 64-bit hash that places keys: among a hundred million keys a collision is a chance of 1 in 3,000.
    /// `None` when there were more than are remembered.
    pub(super) distinct_keys: Option<u64>,
}

pub(super) fn run(
    mut chunks: Receiver<Chunk>,
    on_error: OnError,
    errors_max: Option<u64>,
    progress: &mut Progress,
) -> Counted {
    let mut tally = Tally::default();
    let mut keys: HashSet<u64> = HashSet::new();
    let mut stop = None;
    'chunks: while let Some(chunk) = chunks.blocking_recv() {
        for row in chunk.rows {
            tally.records += 1;
            match row {
                Parsed::Entry(entry) => {
                    tally.payload_bytes += (entry.key.len() + entry.value.len()) as u64;
                    if keys.len() <= IMPORT_DISTINCT_KEYS_MAX {
                        keys.insert(key_hash(&entry.key).0);
                    }
                }
                Parsed::Bad(bad) => {
                    tally.errors += 1;
                    if on_error == OnError::Stop {
                        stop = Some(Stop::BadRecord { line: bad.line, message: bad.message });
                        break 'chunks;
                    }
                    progress.bad_record(bad.line, &bad.message);
                    if errors_max.is_some_and(|max| tally.errors > max) {
                        stop = Some(Stop::TooManyErrors);
                        break 'chunks;
                    }
                }
            }
        }
        progress.update(chunk.end.offset, tally.records, tally.errors);
        stop = chunk.broken.map(Stop::Input);
    }
    progress.finish();
    let distinct_keys = (keys.len() <= IMPORT_DISTINCT_KEYS_MAX).then_some(keys.len() as u64);
    Counted { tally, stop, distinct_keys }
}
