//! The writer of one core's log: group commit without IO.
//!
//! ```text
//!  reserve ──► append ──► open group ──next_write──► under way ──written──► durable up to
//!                             │ full                  (one)
//!                             └──► sealed groups ──next_write──┘
//!
//!  segments:   [ … | current ▒▒▒▒▒░░░░░ ]   [ spare ░░░░░░ ]   ◄── add_segment
//! ```
//! While one write is under way the next group collects; a busy log writes large groups by itself,
//! an idle one writes at once.
//!
//! **Admission.** A write must be refused before it is accepted or not at all: once a partition has
//! given it a sequence there is no way back. So room is reserved first, in blocks of segments that
//! exist already, and an append under a reservation cannot fail. A record takes at most as many
//! blocks as it would alone in a group; a segment wastes at most one block less than the largest
//! record when that does not fit any more; both are counted before the answer is yes.
//!
//! **The hazard**: after a failed write the log is over. The kernel may have marked the pages clean,
//! so a second try could succeed without the bytes ever reaching the disk. Nothing is retried, and
//! everything that is not durable yet stays unacknowledged.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use stateside_types::{
    Ack, Epoch, PartitionId, Reason, Refusal, RequestMark, Sequence, WriteEntry, limits,
};

use super::{
    BLOCK_BYTES, Generation, GroupNumber, Holding, RECORD_BYTES_MAX, RecordHead, Retention,
    RollCallEntry,
    block::{GROUP_BLOCKS_MAX, blocks_for},
    group::{Group, GroupPlace},
    partition_map::PartitionMap,
    record::{record_bytes, roll_call_bytes},
};

/// Empty groups kept for their memory: what a busy log goes round with. A burst beyond it allocates.
const POOL_GROUPS_MAX: usize = 4;

/// What a writer keeps to. The defaults are the limits of [`limits`]; tests use smaller ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriterLimits {
    /// Largest record, bytes.
    pub record_bytes_max: usize,
    /// Largest group, blocks.
    pub group_blocks_max: u32,
    /// Bytes of records accepted and not yet durable.
    pub buffer_bytes_max: usize,
    /// Most partitions that a roll call lists.
    pub partitions_max: usize,
    /// Bytes that are written at once although no reply waits for them.
    pub lazy_bytes: usize,
    /// How long records wait when no reply waits for them.
    pub lazy_delay: Duration,
}

impl Default for WriterLimits {
    fn default() -> Self {
        Self {
            record_bytes_max: RECORD_BYTES_MAX,
            group_blocks_max: GROUP_BLOCKS_MAX as u32,
            buffer_bytes_max: limits::LOG_BUFFER_BYTES_MAX,
            partitions_max: limits::PARTITIONS_PER_NODE_MAX,
            lazy_bytes: limits::LOG_LAZY_BYTES,
            lazy_delay: Duration::from_millis(limits::LOG_LAZY_MS),
        }
    }
}

impl WriterLimits {
    fn record_blocks_max(&self) -> u32 {
        blocks_for(self.record_bytes_max) as u32
    }

    fn roll_call_blocks_max(&self) -> u32 {
        blocks_for(roll_call_bytes(self.partitions_max)) as u32
    }

    /// The smallest segment that is of any use under these limits, bytes.
    pub fn segment_bytes_min(&self) -> u64 {
        let blocks = 1 + self.roll_call_blocks_max() + 2 * self.record_blocks_max();
        u64::from(blocks) * BLOCK_BYTES as u64
    }
}

/// Why a write is not admitted. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too much waits to be written, or the next segment is not ready yet. Passes by itself.
    #[error("the log of this core has no room for the write right now")]
    Overloaded,
    /// No segment is left and the disk has no space for another.
    #[error("the log's disk is full")]
    DiskFull,
    /// A write to the log failed. Permanent.
    #[error("the log of this core failed")]
    Failed,
    /// The batch is larger than any record may be.
    #[error("the batch is too large for the log")]
    TooLarge,
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let reason = match refused {
            Refused::Overloaded => Reason::Overloaded,
            Refused::DiskFull => Reason::DiskFull,
            Refused::Failed => Reason::PartitionStopped,
            Refused::TooLarge => Reason::BatchTooLarge,
        };
        Self::new(reason, refused.to_string())
    }
}

/// Room for one record. Give it to [`LogWriter::append_reserved`] or to [`LogWriter::cancel`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a reservation that is dropped keeps its room for ever"]
pub struct Reservation {
    bytes: usize,
    blocks: u32,
}

/// Up to which sequence a partition's writes are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// The partition.
    pub partition: PartitionId,
    /// Its epoch.
    pub epoch: Epoch,
    /// This sequence and every earlier one.
    pub sequence: Sequence,
}

/// A write to perform: [`Self::bytes`] at [`Self::offset`] of the segment's file, durable when it is
/// reported back. Owns the memory, so it may be given to the kernel as it is.
#[derive(Debug)]
pub struct PendingWrite {
    group: Group,
    done_bytes: usize,
    end_bytes: usize,
}

impl PendingWrite {
    /// Whose file.
    pub fn segment(&self) -> Generation {
        self.group.place.generation
    }

    /// Where in the file, bytes; a multiple of 4 KiB.
    pub fn offset(&self) -> u64 {
        u64::from(self.group.place.first_block) * BLOCK_BYTES as u64 + self.done_bytes as u64
    }

    /// What; whole blocks in aligned memory that stays where it is while this value lives.
    pub fn bytes(&self) -> &[u8] {
        &self.group.bytes()[self.done_bytes..self.end_bytes]
    }

    /// Records of its group.
    pub fn records(&self) -> u32 {
        self.group.records
    }
}

/// The log failed, and stays failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a write to log segment {segment} at byte {offset} failed: {message}")]
pub struct LogFailed {
    /// The segment.
    pub segment: Generation,
    /// Where in its file.
    pub offset: u64,
    /// What the system said.
    pub message: String,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriterStats {
    /// Groups that became durable.
    pub groups: u64,
    /// Bytes written for them, stamps and padding included.
    pub bytes: u64,
    /// Records in them.
    pub records: u64,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    generation: Generation,
    next_block: u32,
    end_block: u32,
}

/// Where a partition's records were appended last.
#[derive(Clone, Copy, Debug)]
struct LastAppend {
    epoch: Epoch,
    sequence: Sequence,
    /// The group that has it, and its place in that group's list.
    group: GroupNumber,
    index: u32,
}

/// The writer of one core's log. Lives on its core, from the end of recovery to the process's end.
#[derive(Debug)]
pub struct LogWriter {
    limits: WriterLimits,
    current: Option<Segment>,
    spares: VecDeque<Segment>,
    spares_target: usize,
    is_disk_full: bool,
    next_group: GroupNumber,

    open: Option<Group>,
    sealed: VecDeque<Group>,
    /// Segment of the write under way.
    under_way: Option<Generation>,
    /// A write that the system did only in part; goes on before anything else.
    resumed: Option<PendingWrite>,
    pool: Vec<Group>,
    durable: Vec<Durable>,

    staged_bytes: usize,
    reserved_bytes: usize,
    reserved_blocks: u32,
    partitions: PartitionMap<LastAppend>,
    retention: Retention,
    failed: Option<LogFailed>,
    stats: WriterStats,
}

impl LogWriter {
    /// A writer whose run begins with `first_group`, as recovery found it. `retention` knows the
    /// earlier segments of the same directory. Admits nothing before the first `add_segment`.
    ///
    /// # Panics
    /// When the limits contradict the format.
    pub fn new(limits: WriterLimits, first_group: GroupNumber, retention: Retention) -> Self {
        assert!(limits.group_blocks_max as usize <= GROUP_BLOCKS_MAX);
        assert!(
            limits.roll_call_blocks_max() + limits.record_blocks_max() <= limits.group_blocks_max,
            "a segment's first group holds the roll call and one record"
        );
        Self {
            limits,
            current: None,
            spares: VecDeque::new(),
            spares_target: 1,
            is_disk_full: false,
            next_group: first_group,
            open: None,
            sealed: VecDeque::new(),
            under_way: None,
            resumed: None,
            pool: Vec::new(),
            durable: Vec::new(),
            staged_bytes: 0,
            reserved_bytes: 0,
            reserved_blocks: 0,
            partitions: PartitionMap::default(),
            retention,
            failed: None,
            stats: WriterStats::default(),
        }
    }

    /// Takes over a segment that is ready: its header durable, its size in place.
    ///
    /// # Panics
    /// When it is too small, or generations do not rise.
    pub fn add_segment(&mut self, generation: Generation, segment_bytes: u64) {
        assert!(segment_bytes >= self.limits.segment_bytes_min(), "no record would fit");
        let newest = self.spares.back().or(self.current.as_ref()).map(|segment| segment.generation);
        assert!(newest < Some(generation), "segments come in the order of their generations");
        let end_block = u32::try_from(segment_bytes / BLOCK_BYTES as u64).expect("at most 4 GiB");
        self.spares.push_back(Segment { generation, next_block: 1, end_block });
    }

    /// How many more segments to prepare, those already ordered not counted.
    pub fn segments_wanted(&self) -> usize {
        let target = self.spares_target + usize::from(self.current.is_none());
        target.saturating_sub(self.spares.len())
    }

    /// Tells whether segments fail to come for want of disk space.
    pub fn set_disk_full(&mut self, is_full: bool) {
        self.is_disk_full = is_full;
    }

    /// Whether segments fail to come for want of disk space.
    pub fn is_disk_full(&self) -> bool {
        self.is_disk_full
    }

    /// A partition writes to this log from now on and stands at `sequence`: roll calls name it.
    /// Only for a partition that is whole; a roll call that names a damaged one would attest after
    /// the next restart that nothing is missing.
    pub fn adopt(&mut self, partition: PartitionId, epoch: Epoch, sequence: Sequence) {
        let unused = LastAppend { epoch, sequence, group: GroupNumber(u64::MAX), index: 0 };
        self.partitions.insert(partition, unused);
    }

    /// A partition does not write here any more.
    pub fn forget(&mut self, partition: PartitionId) {
        self.partitions.remove(&partition);
    }

    /// Reserves room for a record of [`record_bytes`] bytes.
    ///
    /// # Errors
    /// [`Refused`]; then nothing is reserved.
    pub fn reserve(&mut self, bytes: usize) -> Result<Reservation, Refused> {
        if self.failed.is_some() {
            return Err(Refused::Failed);
        }
        if bytes > self.limits.record_bytes_max {
            return Err(Refused::TooLarge);
        }
        if self.staged_bytes + self.reserved_bytes + bytes > self.limits.buffer_bytes_max {
            return Err(Refused::Overloaded);
        }
        let blocks = blocks_for(bytes) as u32;
        if self.blocks_certain() < u64::from(self.reserved_blocks + blocks) {
            if self.is_disk_full {
                return Err(Refused::DiskFull);
            }
            // The keeper did not keep up: have it work further ahead.
            self.spares_target = (self.spares.len() + 2).min(limits::LOG_SPARE_SEGMENTS);
            return Err(Refused::Overloaded);
        }
        self.reserved_bytes += bytes;
        self.reserved_blocks += blocks;
        Ok(Reservation { bytes, blocks })
    }

    /// Blocks that records of any size and order can count on.
    fn blocks_certain(&self) -> u64 {
        let waste = u64::from(self.limits.record_blocks_max() - 1);
        let open_blocks = self.open.as_ref().map_or(0, Group::blocks);
        let current = self.current.map_or(0, |segment| {
            u64::from(segment.end_block - segment.next_block - open_blocks).saturating_sub(waste)
        });
        let roll_call = u64::from(self.limits.roll_call_blocks_max());
        let spares = self.spares.iter().map(|segment| {
            u64::from(segment.end_block - segment.next_block).saturating_sub(roll_call + waste)
        });
        current + spares.sum::<u64>()
    }

    /// Gives a reservation back unused.
    pub fn cancel(&mut self, reservation: Reservation) {
        self.reserved_bytes -= reservation.bytes;
        self.reserved_blocks -= reservation.blocks;
    }

    /// Reserves and appends in one step, a write whose request has no id.
    ///
    /// # Errors
    /// [`Refused`]; then nothing is appended.
    pub fn append(
        &mut self,
        head: RecordHead,
        entries: &[WriteEntry<'_>],
        ack: Ack,
        now: Instant,
    ) -> Result<(), Refused> {
        let reservation = self.reserve(record_bytes(entries, None))?;
        self.append_reserved(reservation, head, None, entries, ack, now);
        Ok(())
    }

    /// Appends a record for which room was reserved. `ack` says whether a reply waits for it to be
    /// durable. On a log that has failed meanwhile the record is dropped: it never becomes durable.
    ///
    /// # Panics
    /// When the record is larger than its reservation, or the partition's sequences have a gap: a
    /// log written that way could not be read back.
    pub fn append_reserved(
        &mut self,
        reservation: Reservation,
        head: RecordHead,
        request: Option<&RequestMark<'_>>,
        entries: &[WriteEntry<'_>],
        ack: Ack,
        now: Instant,
    ) {
        let bytes = record_bytes(entries, request);
        assert!(bytes <= reservation.bytes, "a record must not outgrow its reservation");
        if self.failed.is_some() {
            self.cancel(reservation);
            return;
        }
        if !self.open.as_ref().is_some_and(|group| group.fits(bytes)) {
            self.seal_open();
            self.open_group(bytes);
        }
        self.cancel(reservation);
        let group = self.open.as_mut().expect("opened just now");
        group.append_write(head, request, entries, bytes);
        group.is_urgent |= ack == Ack::Durable;
        group.since.get_or_insert(now);
        self.staged_bytes += bytes;

        let RecordHead { partition, epoch, sequence, .. } = head;
        let number = group.place.number;
        let next = |index| LastAppend { epoch, sequence, group: number, index };
        match self.partitions.get_mut(&partition) {
            Some(last) if last.epoch == epoch => {
                assert_eq!(last.sequence.next(), sequence, "partition {partition} has a gap");
                if last.group == number {
                    last.sequence = sequence;
                    group.last[last.index as usize].sequence = sequence;
                    return;
                }
                *last = next(group.last.len() as u32);
            }
            Some(last) => *last = next(group.last.len() as u32),
            None => {
                self.partitions.insert(partition, next(group.last.len() as u32));
            }
        }
        group.last.push(Durable { partition, epoch, sequence });
    }

    fn seal_open(&mut self) {
        let Some(group) = self.open.take() else { return };
        let segment = self.current.as_mut().expect("an open group lies in the current segment");
        assert_eq!(segment.next_block, group.place.first_block);
        segment.next_block += group.blocks();
        assert!(segment.next_block <= segment.end_block);
        self.sealed.push_back(group);
    }

    fn open_group(&mut self, record_bytes: usize) {
        let blocks = blocks_for(record_bytes) as u32;
        let mut is_new_segment = false;
        if self.current.is_none_or(|segment| segment.end_block - segment.next_block < blocks) {
            let spare = self.spares.pop_front().expect("a reservation counts on segments at hand");
            self.current = Some(spare);
            self.retention.begin(spare.generation);
            is_new_segment = true;
        }
        let segment = self.current.expect("set just now");
        let free = segment.end_block - segment.next_block;
        let place = GroupPlace {
            generation: segment.generation,
            number: self.next_group,
            first_block: segment.next_block,
            blocks_max: free.min(self.limits.group_blocks_max),
        };
        self.next_group = self.next_group.next();
        let mut group = match self.pool.pop() {
            Some(mut group) => {
                group.reset(place);
                group
            }
            None => Group::new(self.limits.group_blocks_max as usize * BLOCK_BYTES, place),
        };
        if is_new_segment && !self.partitions.is_empty() {
            // More than the limit cannot be: the partition manager keeps to it.
            let count = self.partitions.len().min(self.limits.partitions_max);
            let lines = self.partitions.iter().map(|(&partition, last)| RollCallEntry {
                partition,
                epoch: last.epoch,
                sequence: last.sequence,
            });
            group.append_roll_call(count as u16, lines.take(count));
            self.staged_bytes += group.stream_bytes();
        }
        self.open = Some(group);
    }

    /// A reply waits for something that was appended without hurry: write at once.
    pub fn hurry(&mut self) {
        if let Some(group) = &mut self.open {
            group.is_urgent = true;
        }
    }

    /// Records of the next group while it still takes more; none while nothing waits for it, and
    /// when the next write would not be a better one for waiting.
    pub fn collecting(&self) -> Option<u32> {
        let is_next = self.sealed.is_empty() && self.resumed.is_none();
        let group = self.open.as_ref().filter(|group| is_next && group.is_urgent)?;
        Some(group.records)
    }

    /// The next write, if one is due. One at a time: none until [`Self::written`] was told of the
    /// last one.
    pub fn next_write(&mut self, now: Instant) -> Option<PendingWrite> {
        if self.failed.is_some() || self.under_way.is_some() {
            return None;
        }
        if let Some(write) = self.resumed.take() {
            self.under_way = Some(write.segment());
            return Some(write);
        }
        if self.sealed.is_empty() {
            let group = self.open.as_ref()?;
            let is_due = group.is_urgent
                || group.stream_bytes() >= self.limits.lazy_bytes
                || self.next_deadline().is_some_and(|deadline| deadline <= now);
            if !is_due {
                return None;
            }
            self.seal_open();
        }
        let mut group = self.sealed.pop_front()?;
        let end_bytes = group.seal();
        self.under_way = Some(group.place.generation);
        Some(PendingWrite { group, done_bytes: 0, end_bytes })
    }

    /// When [`Self::next_write`] has something although nothing more arrives. None: nothing waits
    /// for time to pass.
    pub fn next_deadline(&self) -> Option<Instant> {
        let since = self.open.as_ref()?.since?;
        Some(since + self.limits.lazy_delay)
    }

    /// Reports the outcome of a write: how many bytes the system says are durable, or its error.
    /// Returns up to where each partition with records in the group is durable now; nothing when
    /// the write was done in part and goes on with the next [`Self::next_write`].
    ///
    /// # Errors
    /// [`LogFailed`]: the log is over, see the head of this file.
    pub fn written(
        &mut self,
        mut write: PendingWrite,
        outcome: Result<usize, impl ToString>,
    ) -> Result<&[Durable], LogFailed> {
        let under_way = self.under_way.take().expect("one write is under way");
        assert_eq!(under_way, write.segment(), "the write is the one handed out last");
        let wanted_bytes = write.bytes().len();
        let done_bytes = match outcome {
            // A torn block is not progress: start over with it.
            Ok(bytes) => bytes.min(wanted_bytes) / BLOCK_BYTES * BLOCK_BYTES,
            Err(error) => return Err(self.fail(&write, error.to_string())),
        };
        if done_bytes == 0 {
            return Err(self.fail(&write, "the system wrote nothing".to_owned()));
        }
        self.durable.clear();
        if done_bytes < wanted_bytes {
            write.done_bytes += done_bytes;
            self.resumed = Some(write);
            return Ok(&self.durable);
        }
        let PendingWrite { mut group, end_bytes, .. } = write;
        for &Durable { partition, epoch, sequence } in &group.last {
            let holding = Holding { partition, epoch, sequence };
            self.retention.note(group.place.generation, holding);
        }
        std::mem::swap(&mut self.durable, &mut group.last);
        self.staged_bytes -= group.stream_bytes();
        self.stats.groups += 1;
        self.stats.bytes += end_bytes as u64;
        self.stats.records += u64::from(group.records);
        if self.pool.len() < POOL_GROUPS_MAX {
            self.pool.push(group);
        }
        Ok(&self.durable)
    }

    fn fail(&mut self, write: &PendingWrite, message: String) -> LogFailed {
        let failed = LogFailed { segment: write.segment(), offset: write.offset(), message };
        self.failed = Some(failed.clone());
        failed
    }

    /// Why the log is over, if it is.
    pub fn failure(&self) -> Option<&LogFailed> {
        self.failed.as_ref()
    }

    /// Whether everything that was appended is durable.
    pub fn is_idle(&self) -> bool {
        self.staged_bytes == 0
    }

    /// Bytes of records that are appended and not durable yet.
    pub fn staged_bytes(&self) -> usize {
        self.staged_bytes
    }

    /// Counters since the start.
    pub fn stats(&self) -> WriterStats {
        self.stats
    }

    /// The segments that hold records: how long the log has grown.
    pub fn retention(&self) -> &Retention {
        &self.retention
    }

    /// Names the segments that are not needed any more, oldest first, and forgets them; their
    /// files may be recycled. See [`Retention::release`] for `covered`.
    pub fn release(
        &mut self,
        covered: impl Fn(PartitionId, Epoch) -> Option<Sequence>,
        released: impl FnMut(Generation),
    ) {
        // Nothing was ever written: only earlier runs have segments.
        let unwritten = self.oldest_in_use().unwrap_or(Generation(u32::MAX));
        self.retention.release(unwritten, covered, released);
    }

    /// The oldest segment that still has writes to come. The files of older ones may be closed.
    pub fn oldest_in_use(&self) -> Option<Generation> {
        self.under_way
            .or(self.resumed.as_ref().map(PendingWrite::segment))
            .or(self.sealed.front().map(|group| group.place.generation))
            .or(self.current.map(|segment| segment.generation))
    }

    /// What keeps the oldest segment; see [`Retention::blockers`].
    pub fn blockers(
        &self,
        covered: impl Fn(PartitionId, Epoch) -> Option<Sequence>,
    ) -> impl Iterator<Item = Holding> {
        self.retention.blockers(covered)
    }

    /// Segments that were prepared and never written to: at the end of a process they may go.
    pub fn unused_segments(&self) -> impl Iterator<Item = Generation> {
        self.spares.iter().map(|segment| segment.generation)
    }
}
