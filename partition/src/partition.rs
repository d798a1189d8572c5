//! The state machine. See the crate's header for when a write becomes visible.

mod checks;
mod counters;
mod queueing;
mod update;

use std::{collections::VecDeque, mem};

use stateside_pipeline::{Changes, Completed, Outlet, Pipeline, StageCounts, Write, recycle};
use stateside_statestore::{
    Lookup, PageStep, SnapshotRecord, StateStore, StoreError, StoreStats, Work, WorkDone,
};
use stateside_types::{
    Ack, AtLeast, Change, Condition, PartitionSpec, PartitionState, PipelineError, Reason, Record,
    Refusal, RequestId, RequestMark, Sequence, StoreKind, Timestamp, UpdateEntry, WallClock,
    WriteEntry, check_ack, limits::HELD_READS_MAX,
};

use self::update::UpdateTerms;
use crate::{
    PageEnd, Scan,
    held::{Held, HeldAnswers},
    owned::Owned,
    replaced::Replaced,
    retries::{Accepted, payload_hash, with_values},
    trail::Trail,
    waiting::{DiskReads, SessionReads},
};

/// The node's name for a request under way; the partition only hands it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// What happens to a partition.
pub enum Input<'a> {
    /// Read these keys. Answered by one `record` per key, in order, then `read_done`.
    Read {
        /// Names the request.
        ticket: Ticket,
        /// At least one key.
        keys: &'a [&'a [u8]],
        /// What the read's session knows: it waits until the partition shows that.
        session: Option<AtLeast>,
    },
    /// Read a page of the records in the order of their keys. Answered by one `record` each, then
    /// `page_end`, then `read_done`.
    Scan {
        /// Names the request.
        ticket: Ticket,
        /// Which page.
        scan: &'a Scan,
        /// As of a read.
        session: Option<AtLeast>,
    },
    /// Execute this batch, atomically. Answered by `written`.
    Write {
        /// Names the request.
        ticket: Ticket,
        /// At least one entry, no key twice.
        entries: &'a [WriteEntry<'a>],
        /// None: the partition's default. Never lowers it.
        ack: Option<Ack>,
        /// Under its id a request is executed once, and answered alike as often as it comes.
        request: Option<RequestId<'a>>,
    },
    /// Compute new values from the present ones and write them, atomically. Answered by `written`.
    Update {
        /// Names the request.
        ticket: Ticket,
        /// At least one entry, no key twice.
        entries: &'a [UpdateEntry<'a>],
        /// None: the partition's default. Never lowers it.
        ack: Option<Ack>,
        /// As for a write.
        request: Option<RequestId<'a>>,
        /// One `value` per entry, in order, comes before `written` when that is no refusal.
        return_values: bool,
    },
    /// The log is durable up to and including this sequence of the partition.
    LogDurable(Sequence),
    /// The log does not answer: answers that wait for a sequence up to this one leave with the
    /// refusal. The writes stay under way.
    LogSilent(Sequence, Refusal),
    /// The log gave up on the write of this sequence. What stands before it is answered as the log
    /// gets there; then the partition stops, and it and everything behind it gets the refusal. New
    /// writes get it at once.
    LogFailed(Sequence, Refusal),
    /// The outcome of the work handed out last.
    WorkDone(WorkDone),
    /// So many milliseconds went by since the last of these: what was put off is tried again, and who has
    /// waited long enough is told.
    Tick(u64),
}

/// What a partition does to the world. The node implements it.
pub trait Effects: Outlet {
    /// One record of a read's answer.
    fn record(&mut self, ticket: Ticket, key: &[u8], record: Option<&Record<'_>>);

    /// The end of a scan's page; its answer leaves with `read_done`.
    fn page_end(&mut self, ticket: Ticket, end: PageEnd<'_>);

    /// A read's answer may leave. It tells of the state after this sequence, or any later one that left
    /// its keys as they were.
    fn read_done(&mut self, ticket: Ticket, outcome: Result<Sequence, Refusal>);

    /// The value that one entry of an update left in the store.
    fn value(&mut self, ticket: Ticket, value: &[u8]);

    /// A write's answer may leave.
    fn written(&mut self, ticket: Ticket, outcome: Result<(Sequence, Timestamp), Refusal>);

    /// Run this off the executor and bring its outcome as [`Input::WorkDone`].
    fn run(&mut self, work: Work);

    /// What the wall clock says.
    fn now(&self) -> WallClock;

    /// Bytes by which stores may still grow before the memory limit.
    fn memory_available(&self) -> u64;
}

/// What a snapshot is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotHead {
    /// The state after this sequence.
    pub sequence: Sequence,
    /// The timestamp of that write.
    pub timestamp: Timestamp,
}

/// See the crate's header. Owned by one core, used on its thread alone.
pub struct Partition {
    pub(crate) spec: PartitionSpec,
    pub(crate) pipeline: Pipeline,
    pub(crate) store: Box<dyn StateStore>,
    pub(crate) held: HeldAnswers,
    pub(crate) retries_answered: u64,
    /// Room for values that stages change, and for the entries with them.
    changes: Vec<Changes>,
    changed: Vec<WriteEntry<'static>>,
    /// Requests behind one that waits for its store; the front one is that request.
    pub(crate) queue: VecDeque<Owned>,
    /// Reads have a queue of their own and show what is durable.
    pub(crate) is_split: bool,
    /// In that mode, with a log: what writes replaced that are not durable.
    pub(crate) replaced: Option<Box<Replaced>>,
    pub(crate) disk_reads: DiskReads,
    pub(crate) session_reads: SessionReads,
    /// Milliseconds since the partition was made, as its ticks tell.
    pub(crate) age_ms: u64,
    /// A piece of the store's work is out.
    pub(crate) working: bool,
    /// The piece that is out belongs to the store before: its outcome is nobody's.
    pub(crate) leaving: bool,
    /// While the records are copied to another store: the writes that it has to have as well.
    pub(crate) trail: Option<Box<Trail>>,
    /// The store's disk was full when it last tried.
    pub(crate) disk_full: bool,
    /// The last batch that removed something, or whose record was reclaimed: what a read of an
    /// absent key depends on.
    pub(crate) last_remove: Sequence,
    /// The latest time that a request was judged by.
    time: WallClock,
    /// Set while writes are refused and reads go on.
    frozen: Option<Refusal>,
    /// An asynchronous stage failed a write: the refusal for it and everything behind it.
    failing: Option<Refusal>,
    /// Set when the partition serves no more: the refusal for everyone.
    pub(crate) halted: Option<Refusal>,
}

impl Partition {
    /// A partition that goes on from what `store` holds.
    ///
    /// # Errors
    /// [`PipelineError`] when the specification's stages make no pipeline.
    pub fn new(spec: PartitionSpec, store: Box<dyn StateStore>) -> Result<Self, PipelineError> {
        let mut pipeline = Pipeline::new(&spec.pipeline, spec.ack)?;
        pipeline.resume(store.applied(), store.applied_timestamp());
        let mut partition = Self {
            last_remove: store.applied(),
            time: WallClock(store.applied_timestamp().millis()),
            spec,
            pipeline,
            store,
            held: HeldAnswers::default(),
            retries_answered: 0,
            changes: Vec::new(),
            changed: Vec::new(),
            queue: VecDeque::new(),
            is_split: false,
            replaced: None,
            disk_reads: DiskReads::default(),
            session_reads: SessionReads::default(),
            age_ms: 0,
            working: false,
            leaving: false,
            trail: None,
            disk_full: false,
            frozen: None,
            failing: None,
            halted: None,
        };
        partition.set_mode();
        Ok(partition)
    }

    /// The settings in force.
    pub fn spec(&self) -> &PartitionSpec {
        &self.spec
    }

    /// Sizes of the store, and in its memory what writes replaced that are not durable.
    pub fn stats(&self) -> StoreStats {
        let mut stats = self.store.stats();
        stats.memory_bytes += self.replaced_bytes();
        stats
    }

    /// What each stage before the clock did.
    pub fn stage_counts(&self) -> impl Iterator<Item = StageCounts> {
        self.pipeline.counts()
    }

    /// Sequence of the last batch applied.
    pub fn applied(&self) -> Sequence {
        self.store.applied()
    }

    /// Sequence through which every stage is done: with a log, what is durable.
    pub fn passed(&self) -> Sequence {
        self.pipeline.passed().unwrap_or_else(|| self.store.applied())
    }

    /// Writes accepted that some stage is not done with: with a log, those not durable yet.
    pub fn window_writes(&self) -> u64 {
        self.applied().0.saturating_sub(self.passed().0)
    }

    /// Reads held until what they saw is durable, and refusals of conditions.
    pub fn held_reads(&self) -> usize {
        self.held.reads()
    }

    /// What the store covers without log or snapshot.
    pub fn covered(&self) -> Sequence {
        self.store.covered()
    }

    /// Where the partition is in its life, and why it serves no more when it does not.
    pub fn state(&self) -> (PartitionState, &str) {
        match &self.halted {
            None => (PartitionState::Primary, ""),
            Some(refusal) if refusal.reason == Reason::PartitionDamaged => {
                (PartitionState::Damaged, &refusal.message)
            }
            Some(refusal) => (PartitionState::Stopped, &refusal.message),
        }
    }

    /// Whether nothing of the store is out on the blocking pool and nothing waits.
    pub fn is_quiet(&self) -> bool {
        !self.working && !self.leaving && self.queue.is_empty() && self.disk_reads.is_empty()
    }

    /// Puts new settings in force. Store and first epoch stay.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when the stages make no pipeline; `PARTITION_BUSY` when the stages from
    /// the clock on change while writes are under way.
    pub fn update(&mut self, spec: PartitionSpec) -> Result<(), Refusal> {
        assert_eq!((spec.id, spec.store), (self.spec.id, self.spec.store));
        let invalid =
            |error: PipelineError| Refusal::new(Reason::InvalidArgument, error.to_string());
        check_ack(spec.ack, &spec.pipeline).map_err(invalid)?;
        if spec.pipeline.back() == self.spec.pipeline.back() {
            if spec.pipeline != self.spec.pipeline {
                self.pipeline.replace_front(&spec.pipeline).map_err(invalid)?;
            }
        } else {
            if self.passed() != self.applied() || !self.is_quiet() {
                return Err(Refusal::new(
                    Reason::PartitionBusy,
                    format!("partition {} has writes under way", spec.id),
                ));
            }
            self.pipeline = Pipeline::new(&spec.pipeline, spec.ack).map_err(invalid)?;
            self.pipeline.resume(self.store.applied(), self.store.applied_timestamp());
        }
        self.spec = spec;
        self.set_mode();
        Ok(())
    }

    /// Refuses writes with `refusal` from now on; `None` takes them again.
    pub fn freeze(&mut self, refusal: Option<Refusal>) {
        self.frozen = refusal;
    }

    /// The work handed out last has ended and nobody wants its outcome: the partition is
    /// being taken down.
    pub fn work_ended(&mut self) {
        self.working = false;
        self.leaving = false;
    }

    /// Ends service: everything under way and everything that follows gets `refusal`. Writes
    /// under way may survive all the same; they were never acknowledged.
    pub fn halt(&mut self, refusal: Refusal, effects: &mut impl Effects) {
        self.halted = Some(refusal.clone());
        self.give_up(Sequence(u64::MAX), &refusal, effects);
        let waiting = self.queue.drain(..).chain(self.disk_reads.drain());
        for owned in waiting.chain(self.session_reads.drain()) {
            refuse(&owned, refusal.clone(), effects);
        }
    }

    /// One step: consumes the input, emits effects.
    pub fn step(&mut self, input: Input<'_>, effects: &mut impl Effects) {
        match input {
            Input::Read { ticket, keys, session } => {
                if session.is_none()
                    || !self.must_wait(session, || Owned::read(ticket, keys), effects)
                {
                    self.start_read(ticket, keys, effects);
                }
            }
            Input::Scan { ticket, scan, session } => {
                let owned = || Owned::Scan { ticket, scan: scan.clone() };
                if !self.must_wait(session, owned, effects) {
                    self.start_scan(ticket, scan, effects);
                }
            }
            Input::Write { ticket, entries, ack, request } => {
                let owned = || Owned::write(ticket, ack, request, entries);
                if !self.must_queue(owned, effects)
                    && !self.write(ticket, entries, ack, request, effects)
                {
                    self.queue.push_back(owned());
                }
            }
            Input::Update { ticket, entries, ack, request, return_values } => {
                let owned = || Owned::update(ticket, ack, request, return_values, entries);
                let terms = UpdateTerms { ack, request, return_values };
                if !self.must_queue(owned, effects)
                    && !self.update_values(ticket, entries, terms, effects)
                {
                    self.queue.push_back(owned());
                }
            }
            Input::LogDurable(sequence) => {
                if let Some(log) = self.pipeline.log() {
                    self.pipeline.completed(log, Completed::Through(sequence));
                    self.release(effects);
                }
            }
            Input::LogSilent(through, refusal) => self.give_up(through, &refusal, effects),
            Input::LogFailed(sequence, refusal) => {
                if let Some(log) = self.pipeline.log() {
                    self.pipeline.completed(log, Completed::Failed(sequence));
                    if self.pipeline.failed().is_some() {
                        self.failing.get_or_insert(refusal);
                        self.release(effects);
                    }
                }
            }
            Input::WorkDone(done) => self.work_done(done, effects),
            Input::Tick(elapsed_ms) => {
                self.disk_full = false;
                self.age_ms = self.age_ms.saturating_add(elapsed_ms);
                self.refuse_late(effects);
            }
        }
        if !self.session_reads.is_empty() {
            self.wake_sessions(effects);
        }
        self.hand_out_work(effects);
    }

    /// Has a store on disk cover what it holds, so that the log can let go of it.
    pub fn cover(&mut self, effects: &mut impl Effects) {
        self.store.cover();
        self.hand_out_work(effects);
    }

    /// Has the store take out expired records, `records_max` at most. Returns how many went at
    /// once; a store on disk takes as many with its next work.
    pub fn reclaim(&mut self, records_max: usize, effects: &mut impl Effects) -> usize {
        if self.halted.is_some() {
            return 0;
        }
        let now = self.tell_time(effects);
        let reclaimed = self.store.reclaim(now, records_max);
        self.last_remove = self.last_remove.max(reclaimed.newest);
        self.hand_out_work(effects);
        reclaimed.records
    }

    /// False: the store has to fetch first.
    fn read(&mut self, ticket: Ticket, keys: &[&[u8]], effects: &mut impl Effects) -> bool {
        // Only a store that blocks answers Unknown, and only then the keys are looked up twice.
        let unknown = |key: &&&[u8]| self.store.get(key) == Lookup::Unknown;
        if self.blocks() && keys.iter().any(|key| unknown(&key)) {
            let missing: Vec<&[u8]> = keys.iter().filter(unknown).copied().collect();
            self.store.fetch(&missing);
            return false;
        }
        let seen = self.read_known(ticket, keys, effects);
        if let Some(seen) = seen {
            self.answer_read(ticket, seen, effects);
        }
        true
    }

    /// Hands out the records of keys that the store knows. Returns the newest write that they tell of,
    /// None when the read was refused.
    pub(crate) fn read_known(
        &mut self,
        ticket: Ticket,
        keys: &[&[u8]],
        effects: &mut impl Effects,
    ) -> Option<Sequence> {
        let now = self.tell_time(effects);
        let mut depends_on = Sequence::ZERO;
        let mut withheld = false;
        self.store.get_all(keys, &mut |key, stored| {
            match self.replaced(key).as_ref().unwrap_or(stored) {
                Lookup::Found(record) => {
                    // That a record has expired is told on the strength of the record, too.
                    depends_on = depends_on.max(record.version);
                    effects.record(ticket, key, Some(record).filter(|r| !r.is_expired(now)));
                }
                Lookup::Absent => {
                    depends_on = depends_on.max(self.last_remove);
                    effects.record(ticket, key, None);
                }
                Lookup::Withheld { version, expire_at: Some(moment), .. }
                    if moment.has_come(now) =>
                {
                    depends_on = depends_on.max(*version);
                    effects.record(ticket, key, None);
                }
                Lookup::Withheld { .. } => withheld = true,
                Lookup::Unknown => unreachable!("only stores that block answer Unknown"),
            }
        });
        if withheld {
            let refusal = Refusal::new(Reason::ResponseTooLarge, "the records are too large");
            effects.read_done(ticket, Err(refusal));
            return None;
        }
        Some(depends_on)
    }

    /// Lets a read's answer go when what it saw is durable.
    fn answer_read(&mut self, ticket: Ticket, depends_on: Sequence, effects: &mut impl Effects) {
        if !self.answers_must_last() || depends_on <= self.passed() {
            effects.read_done(ticket, Ok(depends_on));
        } else if self.held.reads() < HELD_READS_MAX {
            self.held.hold(depends_on, Held::Read(ticket, depends_on));
        } else {
            let message = format!("partition {} has {HELD_READS_MAX} reads waiting", self.spec.id);
            effects.read_done(ticket, Err(Refusal::new(Reason::Overloaded, message)));
        }
    }

    /// False: the store has to fetch first.
    pub(crate) fn scan(&mut self, ticket: Ticket, scan: &Scan, effects: &mut impl Effects) -> bool {
        let now = self.tell_time(effects);
        let mut depends_on = self.last_remove;
        let step = self.store.page(&scan.page, &mut |SnapshotRecord { key, record }| {
            depends_on = depends_on.max(record.version);
            if !record.is_expired(now) {
                effects.record(ticket, key, Some(&record));
            }
        });
        let after = match &step {
            PageStep::Unknown => {
                self.store.fetch_page(&scan.page);
                return false;
            }
            PageStep::Unordered => {
                let text = format!("partition {} has a {} store", self.spec.id, self.store.kind());
                effects.read_done(ticket, Err(Refusal::new(Reason::StoreNotOrdered, text)));
                return true;
            }
            PageStep::More(after) => Some(&**after),
            PageStep::End => None,
        };
        let epoch = self.spec.first_epoch;
        let sequence = match scan.at {
            Some(at) if at.0 != epoch || at.1 < depends_on || at.1 > self.applied() => {
                let text = format!(
                    "partition {} is at sequence {}, the scan reads as of {}",
                    self.spec.id,
                    self.applied(),
                    at.1
                );
                effects.read_done(ticket, Err(Refusal::new(Reason::ScanMoved, text)));
                return true;
            }
            Some((_, at)) => at,
            // What was accepted after that is not in the range: the state is the same.
            None => depends_on.max(self.passed()),
        };
        effects.page_end(ticket, PageEnd { epoch, sequence, after });
        self.answer_read(ticket, depends_on, effects);
        true
    }

    /// False: the store has to fetch first.
    fn write(
        &mut self,
        ticket: Ticket,
        entries: &[WriteEntry<'_>],
        ack: Option<Ack>,
        request: Option<RequestId<'_>>,
        effects: &mut impl Effects,
    ) -> bool {
        debug_assert!(!entries.is_empty());
        let mut mark = None;
        if let Some(id) = request {
            mark = self.recall(ticket, id, payload_hash(entries), ack, effects);
            if mark.is_none() {
                return true;
            }
        }
        let conditional = entries.iter().filter(|entry| entry.condition != Condition::None);
        let missing: Vec<&[u8]> = conditional
            .filter(|entry| self.store.get(entry.key) == Lookup::Unknown)
            .map(|entry| entry.key)
            .collect();
        if !missing.is_empty() {
            self.store.fetch(&missing);
            return false;
        }
        match self.execute(entries, ack, mark.as_ref(), effects) {
            Err(refusal) => self.refuse_write(ticket, refusal, effects),
            Ok(accepted) => self.acknowledge(ticket, accepted, effects),
        }
        true
    }

    /// A request may ask for more than the default, never for less.
    pub(crate) fn effective_ack(&self, asked: Option<Ack>) -> Ack {
        asked.map_or(self.spec.ack, |asked| asked.max(self.spec.ack))
    }

    /// Whether writes are taken at present; the acknowledgement that this one gets.
    #[inline]
    fn check_serving(&self, asked: Option<Ack>) -> Result<Ack, Refusal> {
        if let Some(refusal) = self.failing.as_ref().or(self.frozen.as_ref()) {
            return Err(refusal.clone());
        }
        let ack = self.effective_ack(asked);
        if ack == Ack::Durable && self.pipeline.log().is_none() {
            return Err(Refusal::new(
                Reason::InvalidArgument,
                format!("partition {} has no log stage, so no write can be durable", self.spec.id),
            ));
        }
        if self.store.is_saturated() {
            let what = if self.disk_full { Reason::DiskFull } else { Reason::Overloaded };
            let message = format!("the store of partition {} writes behind", self.spec.id);
            return Err(Refusal::new(what, message));
        }
        if self.trail.as_ref().is_some_and(|trail| trail.is_full()) {
            let message = format!(
                "partition {} changes its store, and writes come faster than the new one takes them",
                self.spec.id
            );
            return Err(Refusal::new(Reason::Overloaded, message));
        }
        Ok(ack)
    }

    fn execute(
        &mut self,
        entries: &[WriteEntry<'_>],
        ack: Option<Ack>,
        request: Option<&RequestMark<'_>>,
        effects: &mut impl Effects,
    ) -> Result<Accepted, Refusal> {
        let ack = self.check_serving(ack)?;
        let now = self.tell_time(effects);
        self.check_expiries(entries)?;
        let write = self.next_write(entries, request, now, ack);
        if !self.pipeline.has_front() {
            return self.commit(write, effects);
        }
        let mut changes = mem::take(&mut self.changes);
        let mut changed = recycle(mem::take(&mut self.changed));
        let entered = self.pipeline.enter(&write, &mut changes, &mut changed, effects);
        let outcome = entered.and_then(|any_changed| {
            let write = if any_changed { write.with(&changed) } else { write };
            self.commit(write, effects)
        });
        self.changed = recycle(changed);
        self.changes = changes;
        outcome
    }

    /// A write as it begins.
    fn next_write<'a>(
        &self,
        entries: &'a [WriteEntry<'a>],
        request: Option<&'a RequestMark<'a>>,
        now: WallClock,
        ack: Ack,
    ) -> Write<'a> {
        Write {
            partition: self.spec.id,
            epoch: self.spec.first_epoch,
            entries,
            request,
            now,
            ack,
            sequence: self.store.applied().next(),
            timestamp: Timestamp::ZERO,
            pending: 0,
        }
    }

    /// What follows when the stages before the clock have let a write through.
    fn commit(
        &mut self,
        write: Write<'_>,
        effects: &mut impl Effects,
    ) -> Result<Accepted, Refusal> {
        let entries = write.entries;
        if self.spec.store == StoreKind::Counters {
            counters::check(entries)?;
        }
        if let Err(refusal) = self.check_conditions(entries, write.now) {
            return self.refuse_for_good(&write, refusal, effects);
        }
        let told = write.request.and_then(|mark| with_values(mark, entries));
        let mut write = Write { request: told.as_ref().or(write.request), ..write };
        let replaces = self.look_up_replaced(&write)?;
        let extra = replaces.as_ref().map_or(0, |batch| batch.bytes() as u64);
        self.check_memory(&write, effects.memory_available().saturating_sub(extra))?;
        self.pipeline.admit(&write, effects)?;
        self.pipeline.accept(&mut write, effects);
        if let (Some(replaced), Some(batch)) = (&mut self.replaced, replaces) {
            replaced.push(batch);
        }
        if let Some(mark) = write.request {
            self.store.remember(write.sequence, write.timestamp, mark);
        }
        self.store.apply(write.sequence, write.timestamp, entries);
        if let Some(trail) = &mut self.trail {
            trail.record(write.sequence, write.timestamp, write.request, entries);
        }
        if entries.iter().any(|entry| entry.change == Change::Remove) {
            self.last_remove = write.sequence;
        }
        let Write { sequence, timestamp, ack, .. } = write;
        Ok(Accepted { sequence, timestamp, ack, refusal: None })
    }

    /// The time that requests are judged by: the wall clock, held back from jumping back. A
    /// record that was once absent stays so, and a write's conditions are judged by the time that
    /// the clock stage stamps it with.
    pub(crate) fn tell_time(&mut self, effects: &impl Effects) -> WallClock {
        self.time = self.time.max(effects.now());
        self.time
    }

    fn give_up(&mut self, through: Sequence, refusal: &Refusal, effects: &mut impl Effects) {
        while let Some(held) = self.held.pop(through) {
            match held {
                Held::Write(ticket, ..) | Held::Refused(ticket, _) => {
                    effects.written(ticket, Err(refusal.clone()));
                }
                Held::Read(ticket, _) => effects.read_done(ticket, Err(refusal.clone())),
            }
        }
    }

    fn release(&mut self, effects: &mut impl Effects) {
        let passed = self.passed();
        if let Some(replaced) = &mut self.replaced {
            replaced.drop_through(passed);
        }
        while let Some(held) = self.held.pop(passed) {
            match held {
                Held::Write(ticket, sequence, timestamp) => {
                    effects.written(ticket, Ok((sequence, timestamp)));
                }
                Held::Refused(ticket, refusal) => {
                    effects.written(ticket, Err((*refusal).clone()));
                }
                Held::Read(ticket, seen) => effects.read_done(ticket, Ok(seen)),
            }
        }
        // Everything ahead of a failed write has been answered: now its own failure, and that of
        // what is behind it.
        if self.pipeline.failed() == Some(passed.next())
            && let Some(refusal) = self.failing.take()
        {
            self.halt(refusal, effects);
        }
    }

    fn work_done(&mut self, done: WorkDone, effects: &mut impl Effects) {
        if mem::take(&mut self.leaving) {
            return drop(done);
        }
        assert!(self.working, "an outcome belongs to the work that is out");
        self.working = false;
        match self.store.finish_work(done) {
            Ok(()) => self.disk_full = false,
            Err(StoreError::DiskFull { .. }) => self.disk_full = true,
            Err(error @ StoreError::Unreadable { .. }) => {
                // Asked again at once, the store would fail again at once.
                self.disk_full = true;
                self.store.forget_fetched();
                let refusal = Refusal::new(Reason::DiskFull, error.to_string());
                for waiting in mem::take(&mut self.queue).into_iter().chain(self.disk_reads.drain())
                {
                    refuse(&waiting, refusal.clone(), effects);
                }
                return;
            }
            Err(error) => {
                let reason = match error {
                    StoreError::Damaged { .. } => Reason::PartitionDamaged,
                    _ => Reason::PartitionStopped,
                };
                return self.halt(Refusal::new(reason, error.to_string()), effects);
            }
        }
        self.answer_waiting(effects);
    }

    /// The store knows more than it did: goes on with what waits for it.
    pub(crate) fn answer_waiting(&mut self, effects: &mut impl Effects) {
        self.retry_disk_reads(effects);
        self.retry_queue(effects);
        self.ask_for_disk_reads();
    }

    pub(crate) fn hand_out_work(&mut self, effects: &mut impl Effects) {
        // One piece at a time: an outcome does not say which store it is from.
        if !self.blocks() || self.working || self.leaving || self.halted.is_some() {
            return;
        }
        // A full disk is tried again at the next tick, not in a tight loop; reads go on.
        let writable = if self.disk_full { Sequence::ZERO } else { self.passed() };
        if let Some(work) = self.store.take_work(writable) {
            self.working = true;
            self.disk_reads.is_out = self.disk_reads.asked > 0;
            effects.run(work);
        }
    }

    pub(crate) fn blocks(&self) -> bool {
        self.spec.store.is_on_disk()
    }
}

pub(crate) fn refuse(owned: &Owned, refusal: Refusal, effects: &mut impl Effects) {
    let ticket = owned.ticket();
    match owned {
        Owned::Read { .. } | Owned::Scan { .. } => effects.read_done(ticket, Err(refusal)),
        Owned::Write { .. } | Owned::Update { .. } => effects.written(ticket, Err(refusal)),
    }
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partition")
            .field("spec", &self.spec)
            .field("applied", &self.applied())
            .field("passed", &self.passed())
            .finish_non_exhaustive()
    }
}
