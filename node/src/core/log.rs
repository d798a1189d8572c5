//! The local log on its core: the sans-IO writer of `stateside_pipeline::log`, the files from the
//! keeper, and one write at a time on the core's ring.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    time::Instant,
};

use stateside_pipeline::{
    Write,
    log::{
        Durable, Generation, Holding, LogFailed, LogWriter, PendingWrite, RecordHead, Reservation,
        record_bytes,
    },
};
use stateside_types::{Epoch, PartitionId, Refusal, Sequence};

use super::commit_delay::CommitDelay;
use crate::{
    log_files::LogFiles,
    metrics::CoreMetrics,
    reactor::{CoreRing, Flush, StableBytes},
};

/// The ring's name for the log's write; there is one at a time.
pub(crate) const LOG_WRITE: u64 = 1;

/// What an operator sees of a log.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogStatus {
    pub(crate) bytes: u64,
    pub(crate) segments: u64,
    pub(crate) problem: String,
    pub(crate) mode: &'static str,
}

/// Lives on its core's thread, from the end of recovery to the core's end.
pub(crate) struct CoreLog {
    writer: LogWriter,
    files: LogFiles,
    segment_bytes: u64,
    /// Bytes of log above which partitions are snapshotted to let go of old segments.
    target_bytes: u64,
    /// Room for the write that has just been admitted.
    reservation: Option<Reservation>,
    /// The write on the ring, and since when.
    under_way: Option<(Rc<PendingWrite>, Instant)>,
    /// The segment that was written last.
    file: Option<(Generation, Rc<OwnedFd>)>,
    is_direct: bool,
    /// Records came while the last write was out: the core has more to do than to wait for the disk.
    is_busy: bool,
    delay: CommitDelay,
    /// The next write waits for more records, until then.
    waits_until: Option<Instant>,
    /// A write whose file could not be opened.
    open_failed: Option<(PendingWrite, io::Error)>,
    durable: Vec<Durable>,
    records_before: u64,
    now: Instant,
}

impl CoreLog {
    pub(crate) fn new(
        writer: LogWriter,
        files: LogFiles,
        segment_bytes: u64,
        target_bytes: u64,
        now: Instant,
    ) -> Self {
        let ready = writer.unused_segments().next();
        Self {
            is_direct: ready.is_some_and(|generation| files.file(generation).is_direct()),
            writer,
            files,
            segment_bytes,
            target_bytes,
            reservation: None,
            under_way: None,
            is_busy: false,
            delay: CommitDelay::default(),
            waits_until: None,
            file: None,
            open_failed: None,
            durable: Vec::new(),
            records_before: 0,
            now,
        }
    }

    /// Reserves room for the record of this write. What was admitted before and never appended
    /// (a later stage refused it) gives its room back.
    pub(crate) fn admit(&mut self, write: &Write<'_>) -> Result<(), Refusal> {
        if let Some(unused) = self.reservation.take() {
            self.writer.cancel(unused);
        }
        self.reservation = Some(self.writer.reserve(record_bytes(write.entries, write.request))?);
        Ok(())
    }

    /// Appends the write that was admitted last.
    pub(crate) fn append(&mut self, write: &Write<'_>) {
        let reservation = self.reservation.take();
        let reservation = reservation.expect("a write is admitted before it is accepted");
        let head = RecordHead {
            partition: write.partition,
            epoch: write.epoch,
            sequence: write.sequence,
            timestamp: write.timestamp,
        };
        let Write { request, entries, ack, .. } = *write;
        self.writer.append_reserved(reservation, head, request, entries, ack, self.now);
    }

    /// The time that this turn goes by.
    pub(crate) fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// A whole partition writes here from now on.
    pub(crate) fn adopt(&mut self, partition: PartitionId, first_epoch: Epoch, at: Sequence) {
        self.writer.adopt(partition, first_epoch, at);
    }

    /// A partition does not write here any more.
    pub(crate) fn forget(&mut self, partition: PartitionId) {
        self.writer.forget(partition);
    }

    /// Something waits for what has been appended so far.
    pub(crate) fn hurry(&mut self) {
        self.writer.hurry();
    }

    /// Starts the next write if one is due, none is under way and it does not wait for more
    /// records; true when it did.
    pub(crate) fn pump(&mut self, ring: &mut CoreRing) -> bool {
        self.waits_until = match (&self.under_way, self.writer.collecting()) {
            (None, Some(records)) => self.delay.waits(self.now, records),
            _ => None,
        };
        if self.waits_until.is_some() {
            return false;
        }
        let Some((file, write)) = self.next_write() else { return false };
        let offset = write.offset();
        // A lone caller is answered sooner by the one operation; where calls overlap, the kernel's
        // worker would wait for a CPU several times as long as the flush takes.
        let has_overlap = self.is_busy || write.records() > 1;
        let is_apart = has_overlap && self.is_direct && self.files.flushes_apart();
        let flush = if is_apart { Flush::Apart } else { Flush::InWrite };
        ring.write_file(&file, offset, write as Rc<dyn StableBytes>, flush, LOG_WRITE);
        true
    }

    /// The next write, encoded, and its file. It is under way from now on: [`Self::written`] ends it.
    pub(crate) fn next_write(&mut self) -> Option<(Rc<OwnedFd>, Rc<PendingWrite>)> {
        let write = self.writer.next_write(self.now)?;
        let generation = write.segment();
        let file = match &self.file {
            Some((open, file)) if *open == generation => Rc::clone(file),
            _ => match self.open(generation) {
                Ok(file) => file,
                Err(error) => {
                    // As a failed write: what waits for this one is never acknowledged.
                    self.open_failed = Some((write, error));
                    return None;
                }
            },
        };
        let write = Rc::new(write);
        self.under_way = Some((Rc::clone(&write), self.now));
        Some((file, write))
    }

    fn open(&mut self, generation: Generation) -> io::Result<Rc<OwnedFd>> {
        let segment = self.files.file(generation);
        self.is_direct = segment.is_direct();
        let file = Rc::new(segment.as_fd().try_clone_to_owned()?);
        self.file = Some((generation, Rc::clone(&file)));
        Ok(file)
    }

    /// A segment's file that could not be opened once more, to be treated as a failed write.
    pub(crate) fn take_open_failure(&mut self) -> Option<LogFailed> {
        let (write, error) = self.open_failed.take()?;
        self.writer.written(write, Err(error)).err()
    }

    /// The write under way has ended: up to where each partition is durable now. Hand the list
    /// back with [`Self::take_back`].
    ///
    /// # Errors
    /// The log is over.
    pub(crate) fn written(
        &mut self,
        result: io::Result<()>,
        metrics: &CoreMetrics,
    ) -> Result<Vec<Durable>, LogFailed> {
        let (write, since) = self.under_way.take().expect("one write is under way");
        let write = Rc::try_unwrap(write).expect("the ring has let go of an ended write");
        let length = write.bytes().len();
        let took = self.now.saturating_duration_since(since);
        metrics.log_write.observe(took);
        self.delay.ended(self.now, took, write.records(), self.writer.collecting().unwrap_or(0));
        let mut durable = std::mem::take(&mut self.durable);
        durable.clear();
        durable.extend_from_slice(self.writer.written(write, result.map(|()| length))?);
        self.is_busy = !self.writer.is_idle();
        let stats = self.writer.stats();
        metrics.log_bytes.set(stats.bytes);
        metrics.log_records.set(stats.records);
        metrics.log_group.observe(stats.records - self.records_before);
        self.records_before = stats.records;
        Ok(durable)
    }

    /// Takes the list of [`Self::written`] back, for reuse.
    pub(crate) fn take_back(&mut self, durable: Vec<Durable>) {
        self.durable = durable;
    }

    /// When a write becomes due although nothing more happens.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        if self.under_way.is_some() {
            return None;
        }
        self.waits_until.or_else(|| self.writer.next_deadline())
    }

    /// Whether everything appended is durable.
    pub(crate) fn is_idle(&self) -> bool {
        self.writer.is_idle()
    }

    /// Bytes appended and not durable yet.
    pub(crate) fn staged_bytes(&self) -> usize {
        self.writer.staged_bytes()
    }

    /// Takes segments that the keeper has ready, and orders more.
    pub(crate) fn poll_keeper(&mut self) {
        self.files.poll(&mut self.writer);
    }

    /// Lets go of segments that nothing needs.
    pub(crate) fn release(&mut self, covered: impl Fn(PartitionId, Epoch) -> Option<Sequence>) {
        self.files.release(&mut self.writer, covered);
    }

    /// When the log has grown beyond its target: who keeps its oldest segment.
    pub(crate) fn blockers(
        &self,
        covered: impl Fn(PartitionId, Epoch) -> Option<Sequence>,
    ) -> Vec<Holding> {
        if self.bytes() <= self.target_bytes {
            return Vec::new();
        }
        self.writer.blockers(covered).collect()
    }

    fn bytes(&self) -> u64 {
        self.writer.retention().segments() as u64 * self.segment_bytes
    }

    /// What an operator sees.
    pub(crate) fn status(&self) -> LogStatus {
        LogStatus {
            bytes: self.bytes(),
            segments: self.writer.retention().segments() as u64,
            problem: match self.writer.failure() {
                Some(failed) => format!("failed: {failed}"),
                None if self.writer.is_disk_full() => "disk full".to_owned(),
                None => String::new(),
            },
            mode: if self.is_direct { "direct" } else { "buffered" },
        }
    }

    /// At the core's end, when nothing is under way.
    pub(crate) fn close(self) {
        self.files.close(&self.writer);
    }
}
