//! A core's recovery: its own log, and for older placements everybody's.
//!
//! ```text
//!  placement       1            2            3 (current)
//!  core-000   ████████████  ██████████   ▓▓▓▓▓▓▓▓▓▓         core 0 reads █ and its own ▓
//!  core-001   ████████████  ██████████   ░░░░░░░░░░
//!  core-002   ████████████                                  a core that is no more
//! ```
//! Within one placement a partition's records are in one log; so placement by placement, log by log,
//! segment by segment, each partition's sequences rise.
//!
//! What recovery reads may be in the page cache only, if the process before was killed in the middle
//! of a buffered write. Answers will be built on it, so the last run of each log is synced here.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs::File,
    os::unix::fs::FileExt,
    path::PathBuf,
};

use stateside_pipeline::log::{
    BLOCK_BYTES, Damage, GroupNumber, PartitionBase, PartitionDamage, Placement, ReadBuffers,
    RecordHead, Replay, ReplayStats, Retention, RunPlan, SegmentInput, SegmentSource, TornTail,
    read_run,
};
use stateside_types::{CoreId, RequestMark, WriteEntry};

use super::{
    LogCatalog, LogError,
    catalog::{LogOnDisk, run_bytes},
    directory,
};

/// Who recovers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveringCore {
    /// The core.
    pub core: CoreId,
    /// How many cores the node has now.
    pub cores: u16,
    /// The manifest's placement.
    pub placement: Placement,
}

impl RecoveringCore {
    pub(super) fn reads(&self, log: CoreId, run: &RunPlan) -> bool {
        // An orphan's log under the current placement cannot be (the number of cores is part of a
        // placement), but if it is, someone has to read it.
        log == self.core || run.placement < self.placement || log.0 >= self.cores
    }
}

/// How far a recovery is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read or passed over.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
    /// Records delivered.
    pub records: u64,
}

/// A damaged place, with its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedPlace {
    /// The file.
    pub file: PathBuf,
    /// Where in it, how much, what.
    pub damage: Damage,
}

/// A torn write, with its file. Nothing is lost with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornPlace {
    /// The file.
    pub file: PathBuf,
    /// Where in it.
    pub tail: TornTail,
}

/// What a core's recovery found.
#[derive(Debug)]
pub struct CoreRecovery {
    /// Partitions of this core that must not serve. Their loss may lie in another core's log, and it
    /// is that core which must not let go of the evidence: before any log is opened, each core
    /// passes what all cores found in its log to [`Retention::hold`].
    pub damaged: Vec<PartitionDamage>,
    /// Every damaged place in the logs read.
    pub damages: Vec<DamagedPlace>,
    /// Writes that a crash tore, and that were cut.
    pub torn: Vec<TornPlace>,
    /// What the segments of each log hold. This core's own belongs to its writer; those of orphaned
    /// logs to whoever deletes them (one of the cores' copies is enough).
    pub retentions: BTreeMap<CoreId, Retention>,
    /// The group that this core's next run begins with.
    pub first_group: GroupNumber,
    /// Counters.
    pub stats: ReplayStats,
}

/// Reads what a core's partitions have in the logs beyond their snapshots and stores, and hands it
/// to `deliver`, each partition's writes in order. Blocks; runs on the core's thread at its start.
///
/// # Errors
/// [`LogError`] when files cannot be opened or belong to another world. Damaged bytes are no
/// error: they are in the result.
pub fn recover(
    catalog: &LogCatalog,
    who: RecoveringCore,
    partitions: impl IntoIterator<Item = PartitionBase>,
    mut deliver: impl FnMut(&RecordHead, Option<&RequestMark<'_>>, &[WriteEntry<'_>]),
    progress: impl FnMut(Progress),
) -> Result<CoreRecovery, LogError> {
    let meter = Meter {
        now: Cell::new(Progress { bytes_total: catalog.bytes_to_read(who), ..Progress::default() }),
        report: RefCell::new(progress),
    };
    let mut runs: Vec<(CoreId, &LogOnDisk, &RunPlan)> = Vec::new();
    for (&core, log) in &catalog.logs {
        for run in &log.runs {
            if run.placement > who.placement {
                return Err(LogError::PlacementAhead {
                    directory: log.directory.clone(),
                    found: run.placement,
                    current: who.placement,
                });
            }
            if who.reads(core, run) {
                runs.push((core, log, run));
            }
        }
    }
    // A stable sort: within a placement and a log, runs stay in their order.
    runs.sort_by_key(|(core, _, run)| (run.placement, *core));

    let count_and_deliver =
        |head: &RecordHead, request: Option<&RequestMark<'_>>, entries: &[WriteEntry<'_>]| {
            meter.count_record();
            deliver(head, request, entries);
        };
    let mut replay = Replay::new(partitions, count_and_deliver);
    let mut buffers = ReadBuffers::default();
    let mut torn = Vec::new();
    let mut first_group = GroupNumber(1);
    let mut bytes_before = 0;
    for (core, log, run) in runs {
        replay.begin_run(core, run.placement);
        let mut segments = open_run(log, run, &meter)?;
        let end = read_run(&mut segments, run.range, &mut buffers, &mut replay);
        if run.range.cut.is_none() {
            for segment in &segments {
                let source: &FileSource<'_, _> = &segment.source;
                source.file.sync_data().map_err(LogError::io(&source.path))?;
            }
        }
        if core == who.core {
            first_group = end.next_group;
        }
        if let Some(tail) = end.torn {
            let file = directory::segment_path(&log.directory, tail.generation);
            torn.push(TornPlace { file, tail });
        }
        bytes_before += run_bytes(run);
        meter.advance_to(bytes_before);
    }
    let outcome = replay.finish();
    let place = |(core, damage): (CoreId, Damage)| DamagedPlace {
        file: directory::segment_path(&catalog.logs[&core].directory, damage.generation),
        damage,
    };
    Ok(CoreRecovery {
        damaged: outcome.damaged,
        damages: outcome.damages.into_iter().map(place).collect(),
        torn,
        retentions: outcome.retentions,
        first_group,
        stats: outcome.stats,
    })
}

fn open_run<'m, P: FnMut(Progress)>(
    log: &LogOnDisk,
    run: &RunPlan,
    meter: &'m Meter<P>,
) -> Result<Vec<SegmentInput<FileSource<'m, P>>>, LogError> {
    let open = |segment: &stateside_pipeline::log::FoundSegment| {
        let path = directory::segment_path(&log.directory, segment.generation);
        let file = File::open(&path).map_err(LogError::io(&path))?;
        Ok(SegmentInput {
            generation: segment.generation,
            blocks: segment.header.map_or(0, |header| header.blocks()),
            is_header_damaged: segment.header.is_none(),
            source: FileSource { file, path, meter },
        })
    };
    run.segments.iter().map(open).collect()
}

struct Meter<P> {
    now: Cell<Progress>,
    report: RefCell<P>,
}

impl<P: FnMut(Progress)> Meter<P> {
    fn count_record(&self) {
        let now = self.now.get();
        self.now.set(Progress { records: now.records + 1, ..now });
    }

    fn count_bytes(&self, bytes: usize) {
        let now = self.now.get();
        self.set(Progress { bytes_done: now.bytes_done + bytes as u64, ..now });
    }

    /// The reader does not look at every byte of every segment, and looks at a few twice.
    fn advance_to(&self, bytes_done: u64) {
        self.set(Progress { bytes_done, ..self.now.get() });
    }

    fn set(&self, progress: Progress) {
        let bytes_done = progress.bytes_done.min(progress.bytes_total);
        let progress = Progress { bytes_done, ..progress };
        self.now.set(progress);
        (self.report.borrow_mut())(progress);
    }
}

struct FileSource<'m, P> {
    file: File,
    path: PathBuf,
    meter: &'m Meter<P>,
}

impl<P> FileSource<'_, P> {
    /// Reads until `into` is full or the file ends.
    fn read_all(&self, offset: u64, into: &mut [u8]) -> std::io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match self.file.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

impl<P: FnMut(Progress)> SegmentSource for FileSource<'_, P> {
    fn read(&mut self, offset: u64, into: &mut [u8]) -> usize {
        let mut done = 0;
        if let Ok(count) = self.read_all(offset, into) {
            done = count;
        } else {
            // Find out which blocks it is: everything else is still wanted.
            for block in into.chunks_mut(BLOCK_BYTES) {
                let at = offset + done as u64;
                match self.read_all(at, block) {
                    Ok(count) => {
                        done += count;
                        if count < block.len() {
                            break;
                        }
                    }
                    Err(error) => {
                        tracing::error!(
                            file = %self.path.display(), offset = at, %error,
                            "cannot read a block of the log"
                        );
                        block.fill(Self::UNREADABLE);
                        done += block.len();
                    }
                }
            }
        }
        self.meter.count_bytes(done);
        done
    }
}
