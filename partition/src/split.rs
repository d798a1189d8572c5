//! Dispatching: reads apart from writes, and reads that follow their session.
//!
//! With `mode = "split"` of the dispatcher stage a read shows the state after the last durable write,
//! whatever was accepted since, and waits for nothing but its disk and its session:
//! ```text
//!   writes ─► queue ─► store: applied          41 42 43 44     accepted, not durable
//!                        │ what they replace    │
//!   reads ──► queue ─► ──┴───────────────────► 40  the state that reads show
//! ```
//! **What it promises.** One read shows one state, never one that a crash could take back, and never an
//! older one than a read before it. With `ack = durable` that is every write acknowledged before the read
//! arrived: a write takes effect for readers in the moment in which it may be acknowledged.
//!
//! **What it gives up.** A read does not see writes that were sent before it and are not acknowledged.
//! With `ack = memory` it does not see acknowledged writes either until they are durable, unless its session
//! has their token: then it waits for them. Writes keep what they replace until they are durable.
//!
//! A condition is checked against the newest accepted state. A refusal tells of that state, so it leaves
//! when all of it is durable: whoever reads then sees what failed the condition.
//!
//! Scans show the newest state in both modes, and here always wait until it is durable: they are apart
//! from writes that wait for the disk, and no more.
//!
//! **Sessions** work alike in both modes: a read that names a state waits until the partition shows it.

use std::sync::Arc;

use stateside_pipeline::Write;
use stateside_statestore::Lookup;
use stateside_types::{
    Ack, AtLeast, Reason, Refusal, Sequence,
    limits::{FETCHED_READS_MAX, HELD_READS_MAX, REPLACED_BYTES_MAX, SESSION_READS_MAX},
};

use crate::{
    Effects, Partition, Scan, Ticket,
    held::Held,
    owned::Owned,
    partition::refuse,
    replaced::{Before, Replaced, ReplacedBatch},
    waiting::SessionRead,
};

impl Partition {
    /// Reads that wait for what their session knows.
    pub fn session_reads(&self) -> usize {
        self.session_reads.len()
    }

    /// Bytes kept of what writes replaced that are not durable yet.
    pub fn replaced_bytes(&self) -> u64 {
        self.replaced.as_ref().map_or(0, |replaced| replaced.bytes() as u64)
    }

    /// Puts the mode in force that the specification names. Nothing is under way, or it stays the same.
    pub(crate) fn set_mode(&mut self) {
        self.is_split = self.spec.pipeline.is_split();
        // Without a log every accepted write has passed, and nothing needs to be kept.
        let keeps = self.is_split && self.pipeline.log().is_some();
        if keeps != self.replaced.is_some() {
            self.replaced = keeps.then(Box::<Replaced>::default);
        }
    }

    /// What reads see of a key.
    pub(crate) fn visible(&self, key: &[u8]) -> Lookup<'_> {
        self.replaced(key).unwrap_or_else(|| self.store.get(key))
    }

    /// What reads see of a key instead of what the store has.
    #[inline]
    pub(crate) fn replaced(&self, key: &[u8]) -> Option<Lookup<'_>> {
        Some(match self.replaced.as_ref()?.get(key)? {
            Before::Record(record) => Lookup::Found(record),
            Before::Absent => Lookup::Absent,
            Before::OnDisk => self.store.get_fetched(key),
        })
    }

    /// What the write is about to replace, where that has to be kept.
    pub(crate) fn look_up_replaced(
        &self,
        write: &Write<'_>,
    ) -> Result<Option<ReplacedBatch>, Refusal> {
        let Some(replaced) = &self.replaced else { return Ok(None) };
        let batch =
            replaced.look_up(write.sequence, write.entries, |key: &[u8]| self.store.get(key));
        batch.map(Some).ok_or_else(|| {
            let text = format!(
                "partition {} keeps {REPLACED_BYTES_MAX} bytes of records that were replaced",
                self.spec.id
            );
            Refusal::new(Reason::Overloaded, text)
        })
    }

    /// Refuses a write. A condition that failed tells of the newest accepted state as a read does, and so it
    /// leaves when a read of that state would.
    pub(crate) fn refuse_write(
        &mut self,
        ticket: Ticket,
        refusal: Refusal,
        effects: &mut impl Effects,
    ) {
        let must_last = self.answers_must_last() && refusal.reason.is_verdict();
        if !must_last || self.passed() == self.applied() {
            effects.written(ticket, Err(refusal));
        } else if self.held.reads() < HELD_READS_MAX {
            self.held.hold(self.applied(), Held::Refused(ticket, Arc::new(refusal)));
        } else {
            let text = format!("partition {} has {HELD_READS_MAX} answers waiting", self.spec.id);
            effects.written(ticket, Err(Refusal::new(Reason::Overloaded, text)));
        }
    }

    /// Whether nothing may be told that a crash could take back.
    pub(crate) fn answers_must_last(&self) -> bool {
        self.spec.ack == Ack::Durable || self.is_split
    }

    /// The state that reads show.
    fn shown(&self) -> Sequence {
        if self.is_split { self.passed() } else { self.applied() }
    }

    /// Whether the read waits for its session, or was refused. A partition that has stopped leaves it to
    /// the read itself to say so.
    pub(crate) fn must_wait(
        &mut self,
        session: Option<AtLeast>,
        owned: impl FnOnce() -> Owned,
        effects: &mut impl Effects,
    ) -> bool {
        let Some(session) = session else { return false };
        if self.halted.is_some() {
            return false;
        }
        if session.epoch != self.spec.first_epoch {
            let text = format!(
                "the session knows partition {} as of epoch {}, its content began with epoch {}",
                self.spec.id, session.epoch, self.spec.first_epoch
            );
            refuse(&owned(), Refusal::new(Reason::SessionEnded, text), effects);
            return true;
        }
        if session.sequence <= self.shown() {
            return false;
        }
        let until_ms = self.age_ms.saturating_add(session.wait_ms.into());
        if let Err(read) = self.session_reads.push(owned(), session.sequence, until_ms) {
            let text = format!(
                "partition {} has {SESSION_READS_MAX} reads waiting for their sessions",
                self.spec.id
            );
            refuse(&read, Refusal::new(Reason::Overloaded, text), effects);
        }
        true
    }

    /// Starts the reads whose session knows no more than the partition shows.
    pub(crate) fn wake_sessions(&mut self, effects: &mut impl Effects) {
        let shown = self.shown();
        for read in self.session_reads.reached(shown) {
            match read {
                Owned::Read { ticket, keys } => {
                    let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
                    self.start_read(ticket, &keys, effects);
                }
                Owned::Scan { ticket, scan } => self.start_scan(ticket, &scan, effects),
                Owned::Write { .. } | Owned::Update { .. } => {
                    unreachable!("writes do not wait for sessions")
                }
            }
        }
    }

    /// Refuses reads that have waited for their session long enough.
    pub(crate) fn refuse_late(&mut self, effects: &mut impl Effects) {
        if self.session_reads.is_empty() {
            return;
        }
        let shown = self.shown();
        for SessionRead { read, sequence, .. } in self.session_reads.late(self.age_ms) {
            let text = format!(
                "partition {} shows sequence {shown}, the session knows {sequence}",
                self.spec.id
            );
            let refusal = Refusal::new(Reason::SessionBehind, text).with("sequence", shown);
            refuse(&read, refusal, effects);
        }
    }

    /// A read in split mode.
    pub(crate) fn read_apart(
        &mut self,
        ticket: Ticket,
        keys: &[&[u8]],
        effects: &mut impl Effects,
    ) {
        if let Some(refusal) = &self.halted {
            return effects.read_done(ticket, Err(refusal.clone()));
        }
        if !self.blocks() || self.knows(keys) == Knows::All {
            return self.answer_shown(ticket, keys, effects);
        }
        self.queue_read(Owned::read(ticket, keys), effects);
    }

    /// A scan in split mode.
    pub(crate) fn scan_apart(&mut self, ticket: Ticket, scan: &Scan, effects: &mut impl Effects) {
        if let Some(refusal) = &self.halted {
            return effects.read_done(ticket, Err(refusal.clone()));
        }
        if !self.disk_reads.scans.is_empty() || !self.scan(ticket, scan, effects) {
            self.queue_read(Owned::Scan { ticket, scan: scan.clone() }, effects);
        }
    }

    fn queue_read(&mut self, read: Owned, effects: &mut impl Effects) {
        let limit = self.queue_max();
        if self.disk_reads.len() >= limit {
            let text = format!("partition {} has {limit} reads waiting", self.spec.id);
            return refuse(&read, Refusal::new(Reason::Overloaded, text), effects);
        }
        match read {
            Owned::Scan { .. } => self.disk_reads.scans.push_back(read),
            read => self.disk_reads.reads.push_back(read),
        }
        if self.disk_reads.asked == 0 {
            self.ask_for_disk_reads();
        }
    }

    /// Reads the keys, all of which are known, as of the last durable write.
    fn answer_shown(&mut self, ticket: Ticket, keys: &[&[u8]], effects: &mut impl Effects) {
        if let Some(seen) = self.read_known(ticket, keys, effects) {
            // A removal that is not durable yet is newer than what was seen.
            effects.read_done(ticket, Ok(seen.min(self.passed())));
        }
    }

    /// The store's work has ended: answers the reads whose records it brought.
    pub(crate) fn retry_disk_reads(&mut self, effects: &mut impl Effects) {
        while let Some(Owned::Scan { ticket, scan }) = self.disk_reads.scans.pop_front() {
            if !self.scan(ticket, &scan, effects) {
                self.disk_reads.scans.push_front(Owned::Scan { ticket, scan });
                break;
            }
        }
        if !std::mem::take(&mut self.disk_reads.is_out) {
            return;
        }
        let asked = std::mem::take(&mut self.disk_reads.asked);
        let mut left = Vec::new();
        for read in self.disk_reads.reads.drain(..asked).collect::<Vec<_>>() {
            let Owned::Read { ticket, keys } = &read else { unreachable!("scans wait apart") };
            let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
            match self.knows(&keys) {
                Knows::NotAll => left.push(read),
                // What others asked for as well took the room that a fetch has.
                Knows::TooLarge if asked > 1 => {
                    self.disk_reads.alone = true;
                    left.insert(0, read);
                }
                Knows::All | Knows::TooLarge => self.answer_shown(*ticket, &keys, effects),
            }
        }
        for read in left.into_iter().rev() {
            self.disk_reads.reads.push_front(read);
        }
    }

    /// Asks the store for what reads wait for, unless it is being asked.
    pub(crate) fn ask_for_disk_reads(&mut self) {
        if !self.is_split || self.disk_reads.asked > 0 {
            return;
        }
        if self.queue.is_empty() {
            // A write that waits needs what was brought for it.
            self.store.forget_fetched();
        }
        let most = if std::mem::take(&mut self.disk_reads.alone) { 1 } else { FETCHED_READS_MAX };
        for read in self.disk_reads.reads.iter().take(most) {
            let Owned::Read { keys, .. } = read else { unreachable!("scans wait apart") };
            let is_missing = |key: &&[u8]| self.visible(key) == Lookup::Unknown;
            let missing: Vec<&[u8]> = keys.iter().map(Vec::as_slice).filter(is_missing).collect();
            self.store.fetch(&missing);
        }
        self.disk_reads.asked = self.disk_reads.reads.len().min(most);
    }

    fn knows(&self, keys: &[&[u8]]) -> Knows {
        let mut knows = Knows::All;
        for key in keys {
            match self.visible(key) {
                Lookup::Unknown => return Knows::NotAll,
                Lookup::Withheld { .. } => knows = Knows::TooLarge,
                Lookup::Found(_) | Lookup::Absent => {}
            }
        }
        knows
    }
}

/// What the store knows of a read's keys without asking its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knows {
    All,
    NotAll,
    /// All of them, but not all values.
    TooLarge,
}
