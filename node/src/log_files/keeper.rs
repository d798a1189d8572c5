//! The keeper: one thread of the node that makes segments ahead of time, for every core.
//!
//! ```text
//!   zeros ──► N.new ──┐ header, rename, sync            core opens, writes, releases
//!                     ├──► N.segment ─────────────────────────────┬──► deleted
//!            N.free ──┘                                           └──► N.free
//! ```
//! Making a segment takes as long as writing 64 MiB; a core that had to do it would stand still. So
//! the core orders the next one when it begins to write one, and finds it ready when it gets there.
//! While nobody waits the zeros trickle, so that they do not delay the log's own writes. Segments that
//! are let go of stay as free ones, so a log that goes round fills nothing with zeros any more; when it
//! goes round no more, they are deleted one by one.
//!
//! When the disk is full the keeper says so and tries again; the core refuses writes with
//! `DISK_FULL` as soon as it runs out of prepared room, and goes on when a segment comes.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use flume::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use stateside_pipeline::log::{
    BLOCK_BYTES, Generation, GroupNumber, LogWriter, Retention, SegmentHeader, WriterLimits,
};
use stateside_types::{CoreId, Epoch, PartitionId, Sequence, limits};

use super::{
    LogCatalog, LogConfig, LogError, RecoveringCore, SegmentFile,
    directory::{self, FileKind},
    disk_cache::needs_flush,
    segment_file::{self, FILL_BYTES},
};
use crate::reactor::run_in_background;

/// How long the keeper waits before it tries again what failed.
const RETRY: Duration = Duration::from_millis(250);

/// What the keeper tells a core.
#[derive(Debug)]
pub enum KeeperEvent {
    /// A segment is ready.
    Ready(SegmentFile),
    /// Segments fail to be made, and are tried again all the time.
    Stuck {
        /// For want of space.
        is_disk_full: bool,
    },
}

#[derive(Debug)]
enum Order {
    Open(Box<LogDirectory>),
    Prepare { core: CoreId, is_urgent: bool },
    Retire { core: CoreId, generation: Generation, may_recycle: bool },
    Delete { directory: PathBuf, generations: Vec<Generation>, is_last: bool },
    Stop,
}

/// A log's directory as the keeper sees it.
#[derive(Debug)]
struct LogDirectory {
    core: CoreId,
    path: PathBuf,
    /// What all headers of this run have in common.
    run: SegmentHeader,
    next_generation: Generation,
    free: VecDeque<Generation>,
    /// Segments in the directory, those of earlier runs included.
    segments: u64,
    events: Sender<KeeperEvent>,
    /// Segments fail to be made: for want of space?
    stuck: Option<bool>,
}

/// The thread that makes and retires segments. One per node; dropping it waits for what was ordered
/// to be retired, and stops it.
#[derive(Debug)]
pub struct SegmentKeeper {
    config: LogConfig,
    orders: Sender<Order>,
    /// Ends what is being filled at the moment.
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SegmentKeeper {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    ///
    /// # Panics
    /// On a segment size that is not of whole blocks, or above its limit.
    pub fn start(config: LogConfig) -> io::Result<Self> {
        assert!(
            config.segment_bytes.is_multiple_of(BLOCK_BYTES as u64)
                && config.segment_bytes <= limits::LOG_SEGMENT_BYTES_MAX,
            "the configuration checks this"
        );
        // Unbounded, because a core must not block here; what a core orders is bounded by its
        // segments, and what the keeper answers by what was ordered.
        let (orders, received) = flume::unbounded();
        let stop = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            config: config.clone(),
            orders: received,
            stop: Arc::clone(&stop),
            logs: BTreeMap::new(),
            pending: VecDeque::new(),
            retry_at: None,
            trim_at: None,
        };
        let thread = thread::Builder::new().name("log-keeper".to_owned()).spawn(|| {
            run_in_background();
            worker.run();
        })?;
        Ok(Self { config, orders, stop, thread: Some(thread) })
    }

    /// Opens a core's log for a new run, once every core has recovered: deletes what no one needs
    /// (half-made files, segments without records) and orders the first segments. Until
    /// [`LogFiles::poll`] brings one, the writer admits nothing.
    ///
    /// `first_group` and `retention` come from the core's recovery.
    ///
    /// # Errors
    /// [`LogError::Io`] when the directory cannot be made or changed.
    pub fn open(
        &self,
        catalog: &LogCatalog,
        who: RecoveringCore,
        writer_limits: WriterLimits,
        first_group: GroupNumber,
        retention: Retention,
    ) -> Result<(LogWriter, LogFiles), LogError> {
        let path = directory::of_core(&self.config.root, who.core);
        directory::create(&path).map_err(LogError::io(&path))?;
        let log = catalog.logs.get(&who.core);
        let first_generation = log.map_or(Generation(0), |log| log.newest()).next();
        let mut free = VecDeque::new();
        let mut segments = 0;
        for file in log.iter().flat_map(|log| &log.files) {
            let is_kept = match file.kind {
                FileKind::Segment => retention.generations().any(|kept| kept == file.generation),
                FileKind::Free => {
                    file.bytes == self.config.segment_bytes
                        && free.len() < self.config.free_segments_max
                }
                FileKind::New => false,
            };
            if !is_kept {
                let path = directory::path(&path, file.generation, file.kind);
                fs::remove_file(&path).map_err(LogError::io(&path))?;
            } else if file.kind == FileKind::Free {
                free.push_back(file.generation);
            } else {
                segments += 1;
            }
        }
        directory::sync(&path).map_err(LogError::io(&path))?;

        let flushes_apart = needs_flush(&path);
        let (events, received) = flume::unbounded();
        let run = SegmentHeader {
            generation: first_generation,
            core: who.core,
            placement: who.placement,
            run_first_group: first_group,
            run_first_generation: first_generation,
            segment_bytes: self.config.segment_bytes,
        };
        self.order(Order::Open(Box::new(LogDirectory {
            core: who.core,
            path,
            run,
            next_generation: first_generation,
            free,
            segments,
            events,
            stuck: None,
        })));
        let writer = LogWriter::new(writer_limits, first_group, retention);
        let mut files = LogFiles {
            core: who.core,
            first_generation,
            orders: self.orders.clone(),
            events: received,
            ordered: 0,
            open: VecDeque::new(),
            flushes_apart,
        };
        files.order_segments(&writer);
        Ok((writer, files))
    }

    /// Takes charge of the log of a core that does not exist any more: its segments are deleted as
    /// they are covered, and then its directory.
    pub fn adopt_orphan(
        &self,
        catalog: &LogCatalog,
        core: CoreId,
        retention: Retention,
    ) -> OrphanedLog {
        let directory = directory::of_core(&self.config.root, core);
        let orders = self.orders.clone();
        let log = catalog.logs.get(&core);
        let unneeded = log.iter().flat_map(|log| &log.files).filter(|file| {
            file.kind == FileKind::Segment
                && !retention.generations().any(|kept| kept == file.generation)
        });
        let unneeded: Vec<_> = unneeded.map(|file| file.generation).collect();
        let orphan = OrphanedLog { directory, retention, orders };
        orphan.delete(unneeded);
        orphan
    }

    fn order(&self, order: Order) {
        self.orders.send(order).expect("the keeper outlives its orders");
    }
}

impl Drop for SegmentKeeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Not by hanging up: cores may still hold their ends. Orders sent before this are done.
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the log keeper panicked");
        }
    }
}

/// A core's own end of its log: the open files, and the line to the keeper. Lives on the core,
/// beside the writer.
#[derive(Debug)]
pub struct LogFiles {
    core: CoreId,
    first_generation: Generation,
    orders: Sender<Order>,
    events: Receiver<KeeperEvent>,
    ordered: usize,
    open: VecDeque<SegmentFile>,
    flushes_apart: bool,
}

impl LogFiles {
    /// Whether a durable write on this disk is a write and a flush, one after the other.
    pub fn flushes_apart(&self) -> bool {
        self.flushes_apart
    }

    /// Brings the writer what the keeper has ready, and orders what the writer wants. Cheap when
    /// there is nothing to do: call it every tick, or once [`Self::next_event`] has returned.
    pub fn poll(&mut self, writer: &mut LogWriter) {
        while let Ok(event) = self.events.try_recv() {
            self.apply(event, writer);
        }
        if let Some(oldest) = writer.oldest_in_use() {
            // A log that waits for snapshots has many segments; descriptors are for those in use.
            while self.open.front().is_some_and(|file| file.generation() < oldest) {
                self.open.pop_front();
            }
        }
        self.order_segments(writer);
    }

    /// Waits for the keeper's next event; hand it to [`Self::apply`].
    pub async fn next_event(&self) -> Option<KeeperEvent> {
        self.events.recv_async().await.ok()
    }

    /// Blocks until the writer has a segment, at a start. False when the deadline passed first.
    pub fn wait_ready(&mut self, writer: &mut LogWriter, deadline: Instant) -> bool {
        while self.open.is_empty() {
            // Descriptors are closed as segments are filled, but not before there was one.
            let Ok(event) = self.events.recv_deadline(deadline) else { return false };
            self.apply(event, writer);
        }
        true
    }

    /// Takes in one event.
    pub fn apply(&mut self, event: KeeperEvent, writer: &mut LogWriter) {
        match event {
            KeeperEvent::Ready(file) => {
                self.ordered -= 1;
                writer.set_disk_full(false);
                writer.add_segment(file.generation(), file.bytes());
                self.open.push_back(file);
            }
            KeeperEvent::Stuck { is_disk_full } => writer.set_disk_full(is_disk_full),
        }
    }

    fn order_segments(&mut self, writer: &LogWriter) {
        let wanted = writer.segments_wanted();
        while self.ordered < wanted {
            // More than the usual one: the core begins, or had to refuse.
            let is_urgent = wanted > 1;
            self.send(Order::Prepare { core: self.core, is_urgent });
            self.ordered += 1;
        }
    }

    /// The file of a segment that the writer has.
    ///
    /// # Panics
    /// For any other segment.
    pub fn file(&self, generation: Generation) -> &SegmentFile {
        let file = self.open.iter().rev().find(|file| file.generation() == generation);
        file.expect("the writer only names segments that came from here")
    }

    /// Lets go of the segments that are covered (see [`Retention::release`]): their files are
    /// recycled, or deleted if an earlier process wrote them.
    pub fn release(
        &mut self,
        writer: &mut LogWriter,
        covered: impl Fn(PartitionId, Epoch) -> Option<Sequence>,
    ) {
        let mut released = Vec::new();
        writer.release(covered, |generation| released.push(generation));
        for generation in released {
            let may_recycle = generation >= self.first_generation;
            // Closed before it can be recycled.
            self.open.retain(|file| file.generation() != generation);
            self.send(Order::Retire { core: self.core, generation, may_recycle });
        }
    }

    /// At the end of the process, when nothing is under way: keeps prepared segments that were
    /// never written to for the next start. Without this they are deleted there, and made again.
    pub fn close(self, writer: &LogWriter) {
        let Self { core, orders, open, .. } = self;
        drop(open);
        for generation in writer.unused_segments() {
            // Fails when the keeper has gone first: then they are deleted at the next start.
            let _ = orders.send(Order::Retire { core, generation, may_recycle: true });
        }
    }

    fn send(&self, order: Order) {
        if self.orders.send(order).is_err() {
            tracing::error!(core = self.core.0, "the log keeper has stopped");
        }
    }
}

/// What is left of the log of a core that does not exist any more. Lives wherever the coverage of
/// all partitions is known.
#[derive(Debug)]
pub struct OrphanedLog {
    directory: PathBuf,
    retention: Retention,
    orders: Sender<Order>,
}

impl OrphanedLog {
    /// Deletes the segments that are covered (see [`Retention::release`]), and after the last one
    /// the directory. True when that is done and this value may be dropped.
    pub fn release(&mut self, covered: impl Fn(PartitionId, Epoch) -> Option<Sequence>) -> bool {
        let mut released = Vec::new();
        self.retention.release(Generation(u32::MAX), covered, |generation| {
            released.push(generation);
        });
        if !released.is_empty() {
            self.delete(released);
        }
        self.retention.segments() == 0
    }

    /// What its segments hold.
    pub fn retention(&self) -> &Retention {
        &self.retention
    }

    fn delete(&self, generations: Vec<Generation>) {
        let directory = self.directory.clone();
        let is_last = self.retention.segments() == 0;
        // Fails when the keeper has stopped: then the next start does it.
        let _ = self.orders.send(Order::Delete { directory, generations, is_last });
    }
}

struct Worker {
    config: LogConfig,
    orders: Receiver<Order>,
    stop: Arc<AtomicBool>,
    logs: BTreeMap<CoreId, LogDirectory>,
    /// Segments to make, and whether a core waits.
    pending: VecDeque<(CoreId, bool)>,
    retry_at: Option<Instant>,
    /// When a log that keeps many free segments gives one back; none does when this is none.
    trim_at: Option<Instant>,
}

impl Worker {
    fn run(mut self) {
        loop {
            let is_due = self.retry_at.is_none_or(|retry_at| retry_at <= Instant::now());
            let order = if self.pending.is_empty() {
                match self.trim_at {
                    Some(trim_at) => self.orders.recv_deadline(trim_at),
                    None => self.orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                }
            } else if is_due {
                // Orders first: a retired file is the fastest way to a new segment.
                self.orders.try_recv().map_err(|error| match error {
                    TryRecvError::Empty => RecvTimeoutError::Timeout,
                    TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                })
            } else {
                let retry_at = self.retry_at.expect("it is not due yet");
                self.orders.recv_deadline(retry_at)
            };
            match order {
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(order) => self.take(order),
                Err(RecvTimeoutError::Timeout) if self.stop.load(Ordering::Relaxed) => {
                    // The order to stop is on its way, perhaps behind others.
                    self.pending.clear();
                }
                Err(RecvTimeoutError::Timeout) => self.prepare_next(),
            }
            self.trim();
        }
    }

    /// Gives back free segments that logs have not needed for a while, one by one.
    fn trim(&mut self) {
        if self.trim_at.is_some_and(|trim_at| trim_at <= Instant::now()) {
            self.trim_at = None;
            for log in self.logs.values_mut() {
                if let Err(error) = log.trim_to(log.free.len().saturating_sub(1)) {
                    tracing::warn!(%error, "cannot delete a free log segment");
                }
            }
        }
        if self.logs.values().all(|log| log.free.len() <= limits::LOG_SPARE_SEGMENTS) {
            self.trim_at = None;
        } else if self.trim_at.is_none() {
            self.trim_at = Some(Instant::now() + self.config.trim_interval);
        }
    }

    fn take(&mut self, order: Order) {
        let outcome = match order {
            Order::Open(log) => {
                self.logs.insert(log.core, *log);
                Ok(())
            }
            Order::Prepare { core, is_urgent } => {
                self.pending.push_back((core, is_urgent));
                Ok(())
            }
            Order::Retire { core, generation, may_recycle } => {
                // Perhaps there is space now.
                self.retry_at = None;
                let Self { logs, config, .. } = self;
                let log = logs.get_mut(&core);
                log.map_or(Ok(()), |log| log.retire(generation, may_recycle, config))
            }
            Order::Delete { directory, generations, is_last } => {
                self.retry_at = None;
                delete(&directory, &generations, is_last)
            }
            Order::Stop => unreachable!("taken by the loop"),
        };
        if let Err(error) = outcome {
            // The file stays as it was: a later start sees to it.
            tracing::warn!(%error, "cannot retire a log segment");
        }
    }

    fn prepare_next(&mut self) {
        let Some(&(core, is_urgent)) = self.pending.front() else { return };
        let is_hurried = is_urgent || self.pending.len() > 1;
        let Some(log) = self.logs.get_mut(&core) else {
            self.pending.pop_front();
            return;
        };
        match log.prepare(&self.config, is_hurried, &self.orders, &self.stop) {
            Ok(file) => {
                self.retry_at = None;
                self.pending.pop_front();
                if log.stuck.take().is_some() {
                    tracing::info!(core = core.0, "log segments can be made again");
                }
                // A core that has gone needs nothing.
                let _ = log.events.send(KeeperEvent::Ready(file));
            }
            Err(_) if self.stop.load(Ordering::Relaxed) => {}
            Err(error) => {
                let is_disk_full = matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                );
                if log.stuck.replace(is_disk_full) != Some(is_disk_full) {
                    tracing::error!(
                        core = core.0, directory = %log.path.display(), %error,
                        "cannot make a log segment; trying again"
                    );
                    let _ = log.events.send(KeeperEvent::Stuck { is_disk_full });
                }
                self.retry_at = Some(Instant::now() + RETRY);
                // What one log lacks another may have: a retired file, room below its bound.
                self.pending.rotate_left(1);
            }
        }
    }
}

impl LogDirectory {
    fn prepare(
        &mut self,
        config: &LogConfig,
        is_hurried: bool,
        orders: &Receiver<Order>,
        stop: &AtomicBool,
    ) -> io::Result<SegmentFile> {
        let generation = self.next_generation;
        let header = SegmentHeader { generation, ..self.run };
        let segment = directory::segment_path(&self.path, generation);
        let retired = self.free.pop_front();
        let (source, filled) = match retired {
            Some(free) => (directory::path(&self.path, free, FileKind::Free), Ok(())),
            None => {
                let new = directory::path(&self.path, generation, FileKind::New);
                let filled = self.fill(&new, config, is_hurried, orders, stop);
                (new, filled)
            }
        };
        let made = filled.and_then(|()| {
            // The header goes in under the old name: a crash leaves a file that nobody reads.
            let file = SegmentFile::head(&source, &header, config.direct_io)?;
            fs::rename(&source, &segment)?;
            directory::sync(&self.path)?;
            Ok(file)
        });
        if made.is_ok() {
            self.segments += 1;
            self.next_generation = generation.next();
        } else {
            // Gives back the space: someone else may have use for it.
            let _ = fs::remove_file(&source);
        }
        made
    }

    fn fill(
        &self,
        new: &Path,
        config: &LogConfig,
        is_hurried: bool,
        orders: &Receiver<Order>,
        stop: &AtomicBool,
    ) -> io::Result<()> {
        let taken_bytes = (self.segments + self.free.len() as u64) * config.segment_bytes;
        if config.log_bytes_max.is_some_and(|max| taken_bytes + config.segment_bytes > max) {
            let message = "the log has reached its configured size";
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, message));
        }
        if !self.has_room(config)? {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "a segment needs {} MiB of room on the disk, the log's reserve included",
                    room_for_segment(config) >> 20
                ),
            ));
        }
        let pause = fill_pause(config);
        let between = || {
            if stop.load(Ordering::Relaxed) {
                return Err(io::Error::from(io::ErrorKind::Interrupted));
            }
            if !is_hurried && orders.is_empty() {
                thread::sleep(pause);
            }
            Ok(())
        };
        segment_file::fill(new, config.segment_bytes, config.direct_io, between)
    }

    /// What snapshots free at once is written again, and not only what is spare: a log that goes round
    /// fast would else delete half of its segments and fill as many with zeros.
    fn retire(
        &mut self,
        generation: Generation,
        may_recycle: bool,
        config: &LogConfig,
    ) -> io::Result<()> {
        let segment = directory::segment_path(&self.path, generation);
        if may_recycle && self.free.len() < config.free_segments_max {
            fs::rename(&segment, directory::path(&self.path, generation, FileKind::Free))?;
            self.free.push_back(generation);
        } else {
            fs::remove_file(&segment)?;
        }
        self.segments -= 1;
        // One by one, oldest first: were a younger one gone and an older one back after a crash, the
        // log would seem to have a hole.
        directory::sync(&self.path)?;
        if self.has_room(config)? { Ok(()) } else { self.trim_to(limits::LOG_SPARE_SEGMENTS) }
    }

    /// Deletes free segments down to so many, but not below what is spare.
    fn trim_to(&mut self, count: usize) -> io::Result<()> {
        while self.free.len() > count.max(limits::LOG_SPARE_SEGMENTS)
            && let Some(generation) = self.free.pop_front()
        {
            fs::remove_file(directory::path(&self.path, generation, FileKind::Free))?;
        }
        Ok(())
    }

    /// Whether a segment more would leave the disk its reserve.
    fn has_room(&self, config: &LogConfig) -> io::Result<bool> {
        let disk = rustix::fs::statvfs(&self.path)?;
        Ok(disk.f_bavail * disk.f_frsize >= room_for_segment(config))
    }
}

/// Bytes that are free on a disk before a segment is made there.
fn room_for_segment(config: &LogConfig) -> u64 {
    config.segment_bytes + limits::LOG_DISK_RESERVE_BYTES
}

/// The time that `FILL_BYTES` may take.
fn fill_pause(config: &LogConfig) -> Duration {
    Duration::from_secs_f64(FILL_BYTES as f64 / config.zero_fill_bytes_per_second.max(1) as f64)
}

fn delete(path: &Path, generations: &[Generation], is_last: bool) -> io::Result<()> {
    for &generation in generations {
        fs::remove_file(directory::segment_path(path, generation))?;
        directory::sync(path)?;
    }
    if is_last {
        for file in directory::list(path)? {
            fs::remove_file(directory::path(path, file.generation, file.kind))?;
        }
        // Stays when it holds files that are not ours.
        if fs::remove_dir(path).is_ok()
            && let Some(parent) = path.parent()
        {
            directory::sync(parent)?;
        }
    }
    Ok(())
}
