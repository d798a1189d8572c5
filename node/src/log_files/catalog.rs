//! What is there at a start: the logs of all cores, also of cores that this node no longer has.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt, path::PathBuf};

use stateside_pipeline::log::{
    BLOCK_BYTES, FoundSegment, Generation, HeaderError, Placement, RunPlan, SegmentHeader,
    plan_runs,
};
use stateside_types::CoreId;

use super::{
    LogConfig, LogError, RecoveringCore,
    directory::{self, FileKind, LogFile},
};

/// The logs that a start finds. Made once, before anything else touches the directory; shared by the
/// cores while they recover.
#[derive(Debug)]
pub struct LogCatalog {
    pub(super) logs: BTreeMap<CoreId, LogOnDisk>,
}

/// One core's directory.
#[derive(Debug)]
pub(super) struct LogOnDisk {
    pub(super) directory: PathBuf,
    pub(super) files: Vec<LogFile>,
    pub(super) runs: Vec<RunPlan>,
}

impl LogCatalog {
    /// Looks at every log under the root; a root that does not exist has none. Changes nothing.
    ///
    /// # Errors
    /// [`LogError`], which names the file and what to do.
    pub fn scan(config: &LogConfig) -> Result<Self, LogError> {
        let mut logs = BTreeMap::new();
        let entries = match config.root.read_dir() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self { logs }),
            other => other.map_err(LogError::io(&config.root))?,
        };
        for entry in entries {
            let entry = entry.map_err(LogError::io(&config.root))?;
            match entry.file_name().to_str().and_then(directory::core_of) {
                Some(core) if entry.path().is_dir() => {
                    logs.insert(core, LogOnDisk::scan(entry.path(), core)?);
                }
                _ => tracing::warn!(
                    file = %entry.path().display(),
                    "not a log directory; left alone"
                ),
            }
        }
        Ok(Self { logs })
    }

    /// The catalog of a start without the files that have been deleted since.
    pub fn that_still_exists(&self) -> Self {
        let logs = self.logs.iter().map(|(&core, log)| (core, log.that_still_exists()));
        Self { logs: logs.collect() }
    }

    /// Whether there are records that another placement of partitions wrote.
    pub fn has_older_placements(&self, current: Placement) -> bool {
        self.logs.values().flat_map(|log| &log.runs).any(|run| run.placement < current)
    }

    /// Cores that have a log here.
    pub fn cores(&self) -> impl Iterator<Item = CoreId> {
        self.logs.keys().copied()
    }

    /// Cores that have a log here and do not exist any more.
    pub fn orphans(&self, cores: u16) -> impl Iterator<Item = CoreId> {
        self.cores().filter(move |core| core.0 >= cores)
    }

    /// How much a core's recovery reads at most, bytes.
    pub fn bytes_to_read(&self, who: RecoveringCore) -> u64 {
        let runs = self.logs.iter().flat_map(|(&core, log)| {
            log.runs.iter().filter(move |run| who.reads(core, run)).map(run_bytes)
        });
        runs.sum()
    }
}

/// Bytes of a run's segments.
pub(super) fn run_bytes(run: &RunPlan) -> u64 {
    let headers = run.segments.iter().filter_map(|segment| segment.header);
    headers.map(|header| header.segment_bytes).sum()
}

impl LogOnDisk {
    fn scan(directory: PathBuf, core: CoreId) -> Result<Self, LogError> {
        let files = directory::list(&directory).map_err(LogError::io(&directory))?;
        let mut found = Vec::new();
        for file in files.iter().filter(|file| file.kind == FileKind::Segment) {
            let path = directory::segment_path(&directory, file.generation);
            let header = match SegmentHeader::decode(&first_block(&path)?) {
                Ok(header) if (header.core, header.generation) == (core, file.generation) => {
                    Some(header)
                }
                Ok(SegmentHeader { core, generation, .. }) => {
                    return Err(LogError::Misplaced { file: path, core, generation });
                }
                Err(HeaderError::Version { found }) => {
                    return Err(LogError::Version { file: path, found });
                }
                Err(HeaderError::Damaged) => None,
            };
            found.push(FoundSegment { generation: file.generation, header });
        }
        let runs = plan_runs(found)
            .map_err(|source| LogError::Contradiction { directory: directory.clone(), source })?;
        Ok(Self { directory, files, runs })
    }

    fn that_still_exists(&self) -> Self {
        let exists = |generation| directory::segment_path(&self.directory, generation).exists();
        let runs = self.runs.iter().cloned().map(|mut run| {
            run.segments.retain(|segment| exists(segment.generation));
            run
        });
        Self { directory: self.directory.clone(), files: Vec::new(), runs: runs.collect() }
    }

    /// The highest generation that any block in any file here may carry.
    pub(super) fn newest(&self) -> Generation {
        self.files.iter().map(|file| file.generation).max().unwrap_or_default()
    }
}

/// The first block, as much of it as there is and can be read: the header's copies say the rest.
fn first_block(path: &std::path::Path) -> Result<Vec<u8>, LogError> {
    let file = File::open(path).map_err(LogError::io(path))?;
    let mut block = vec![0; BLOCK_BYTES];
    let count = match file.read_at(&mut block, 0) {
        Ok(count) => count,
        Err(error) => {
            tracing::error!(file = %path.display(), %error, "cannot read a log segment's header");
            0
        }
    };
    block.truncate(count);
    Ok(block)
}
