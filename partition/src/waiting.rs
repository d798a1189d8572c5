//! Reads that wait: for their store's disk apart from writes, or for the state that their session knows.

use std::collections::VecDeque;

use stateside_types::{Sequence, limits::SESSION_READS_MAX};

use crate::owned::Owned;

/// Reads that wait for the store's disk, with `mode = "split"`. Bounded by whoever adds to it.
#[derive(Debug, Default)]
pub(crate) struct DiskReads {
    /// The store was asked for the keys of the first `asked` of these.
    pub(crate) reads: VecDeque<Owned>,
    pub(crate) asked: usize,
    /// What was asked for is in the work that is out.
    pub(crate) is_out: bool,
    /// The next to be asked for shares what is fetched with no other: together they were too large.
    pub(crate) alone: bool,
    /// The store was asked for the page of the first of these: it has room for one.
    pub(crate) scans: VecDeque<Owned>,
}

impl DiskReads {
    pub(crate) fn len(&self) -> usize {
        self.reads.len() + self.scans.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Another store is in place: none of these was asked of it, and all that it knows are answered at
    /// the next attempt.
    pub(crate) fn begin_again(&mut self) {
        self.asked = self.reads.len();
        self.is_out = true;
        self.alone = false;
    }

    /// Takes everything out.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Owned> {
        let Self { reads, scans, .. } = std::mem::take(self);
        reads.into_iter().chain(scans)
    }
}

/// Reads that wait until their partition shows what their session knows.
#[derive(Debug, Default)]
pub(crate) struct SessionReads {
    reads: Vec<SessionRead>,
    /// The lowest sequence that one waits for, so that a write need not look at them all.
    lowest: Sequence,
}

#[derive(Debug)]
pub(crate) struct SessionRead {
    pub(crate) read: Owned,
    /// The state that it waits for.
    pub(crate) sequence: Sequence,
    /// When it has waited long enough, milliseconds of the partition's own count.
    until_ms: u64,
}

impl SessionReads {
    pub(crate) fn len(&self) -> usize {
        self.reads.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.reads.is_empty()
    }

    /// Gives the read back when too many wait.
    pub(crate) fn push(
        &mut self,
        read: Owned,
        sequence: Sequence,
        until_ms: u64,
    ) -> Result<(), Owned> {
        if self.reads.len() >= SESSION_READS_MAX {
            return Err(read);
        }
        self.reads.push(SessionRead { read, sequence, until_ms });
        self.find_lowest();
        Ok(())
    }

    /// Takes out those that wait for a state up to this one, in the order of their arrival.
    pub(crate) fn reached(&mut self, visible: Sequence) -> Vec<Owned> {
        if visible < self.lowest {
            return Vec::new();
        }
        self.take(|read| read.sequence <= visible).into_iter().map(|read| read.read).collect()
    }

    /// Takes out those that have waited long enough.
    pub(crate) fn late(&mut self, now_ms: u64) -> Vec<SessionRead> {
        self.take(|read| read.until_ms <= now_ms)
    }

    /// Takes everything out.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Owned> {
        std::mem::take(self).reads.into_iter().map(|read| read.read)
    }

    fn take(&mut self, wanted: impl Fn(&SessionRead) -> bool) -> Vec<SessionRead> {
        let taken = self.reads.extract_if(.., |read| wanted(read)).collect();
        self.find_lowest();
        taken
    }

    fn find_lowest(&mut self) {
        self.lowest = self.reads.iter().map(|read| read.sequence).min().unwrap_or_default();
    }
}
