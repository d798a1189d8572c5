//! Values that a stage made in place of those that came with a write.
//!
//! ```text
//!   entries   k1 v1 │ k2 v2 │ k3 v3          a stage replaces v2:
//!   changes                bytes  [ v2' ]    values [ (entry 1, ..end) ]
//!   entries'  k1 v1 │ k2 v2'│ k3 v3          what every later stage, the log and the store see
//! ```
//! Each stage that changes has one of these, because entries that a stage left alone go on
//! pointing into what an earlier one made. Untouched values are never copied, and a pipeline
//! whose stages change nothing copies nothing.

use stateside_types::{
    Change, Reason, Refusal, WriteEntry,
    limits::{BATCH_BYTES_MAX, CHANGED_BYTES_KEPT},
};

/// See the module's header.
#[derive(Debug, Default)]
pub struct Changes {
    bytes: Vec<u8>,
    /// Which entry, and where its value ends in `bytes`; it begins where the one before ends.
    values: Vec<(usize, usize)>,
    /// The value that is being made.
    scratch: Vec<u8>,
}

impl Changes {
    /// Makes a new value of an entry, if `make` says so: it is given an empty buffer and returns
    /// whether what it put there replaces the value. Entries are to be taken in their order.
    ///
    /// # Errors
    /// What `make` says; `BATCH_TOO_LARGE` when the new values together are larger than a batch.
    ///
    /// # Panics
    /// When an entry is replaced twice or out of order.
    pub fn replace(
        &mut self,
        entry: usize,
        make: impl FnOnce(&mut Vec<u8>) -> Result<bool, Refusal>,
    ) -> Result<(), Refusal> {
        self.scratch.clear();
        if !make(&mut self.scratch)? {
            return Ok(());
        }
        assert!(self.values.last().is_none_or(|(last, _)| *last < entry), "each entry once");
        if self.bytes.len() + self.scratch.len() > BATCH_BYTES_MAX {
            return Err(too_large());
        }
        self.bytes.extend_from_slice(&self.scratch);
        self.values.push((entry, self.bytes.len()));
        Ok(())
    }

    /// How many values were replaced.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether no value was replaced.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Begins the next write. Room beyond a few values is given back.
    pub(crate) fn clear(&mut self) {
        for buffer in [&mut self.bytes, &mut self.scratch] {
            buffer.clear();
            if buffer.capacity() > CHANGED_BYTES_KEPT {
                buffer.shrink_to(CHANGED_BYTES_KEPT);
            }
        }
        self.values.clear();
        self.values.shrink_to(CHANGED_BYTES_KEPT / size_of::<(usize, usize)>());
    }

    /// Puts the new values into the entries.
    pub(crate) fn apply<'a>(&'a self, entries: &mut [WriteEntry<'a>]) {
        let mut start = 0;
        for &(entry, end) in &self.values {
            entries[entry].change = Change::Put(&self.bytes[start..end]);
            start = end;
        }
    }
}

/// Checks that entries with new values are still a batch: log, hops and answers rely on it.
pub(crate) fn check_size(entries: &[WriteEntry<'_>]) -> Result<(), Refusal> {
    let size = |entry: &WriteEntry<'_>| {
        let value = match entry.change {
            Change::Put(value) => value.len(),
            Change::Remove => 0,
        };
        entry.key.len() + value
    };
    if entries.iter().map(size).sum::<usize>() > BATCH_BYTES_MAX {
        Err(too_large())
    } else {
        Ok(())
    }
}

fn too_large() -> Refusal {
    let message = "with what the stages of the pipeline add, the batch has more than 1 MiB";
    Refusal::new(Reason::BatchTooLarge, message)
}
