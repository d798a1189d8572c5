//! Snapshots of partitions while they serve: records flow from the store in small steps, a turn
//! each, to a file that the blocking pool writes.
//!
//! ```text
//!  open ─► walk ⇄ write ─► (wait until the log is durable up to the snapshot) ─► finish ─► done
//!  pool    core    pool                                                          pool
//! ```
//! A snapshot may hold writes that the log does not have on disk yet. It is published only when
//! it has them: otherwise a crash could leave a snapshot ahead of the log, and a restore elsewhere
//! could show a write that its client was never promised and that this node has lost.
//!
//! The file grows under a temporary name, is made durable, and only then linked to its own name,
//! which fails when that exists: a snapshot never overwrites anything.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};
use stateside_partition::SnapshotHead;
use stateside_statestore::{SnapshotHeader, SnapshotRecord, SnapshotStep, SnapshotWriter};
use stateside_types::{PartitionId, Reason, Refusal};

use super::{
    command::{Reply, SnapshotReport},
    executor::Executor,
    partition_files::remove_older,
    pool::PoolDone,
    sequential_file::SequentialFile,
};

/// Records gathered for one write of the file, bytes.
const CHUNK_BYTES: usize = 256 << 10;
/// Records walked in one turn, bytes: bounds how long requests wait for a snapshot.
const STEP_BYTES: usize = 32 << 10;

/// A snapshot's file while it is being written.
pub(crate) struct SnapshotFile {
    file: SequentialFile,
    partial: PathBuf,
    chunk: Vec<u8>,
}

/// Who asked.
pub(crate) enum Purpose {
    /// An operator, who waits.
    Operator(Reply<Result<SnapshotReport, Refusal>>),
    /// The node itself, to let go of old log segments.
    Background,
    /// The change of the partition's store. In memory, the store that it has needs none older.
    StoreChange { supersedes: bool },
}

enum Phase {
    Opening,
    Walking(SnapshotFile),
    Writing { last: bool },
    AwaitingLog(SnapshotFile),
    Finishing,
}

/// A snapshot that is being made. Lives on its partition's core.
pub(crate) struct SnapshotJob {
    pub(crate) number: u64,
    pub(crate) partition: PartitionId,
    pub(crate) head: SnapshotHead,
    pub(crate) path: PathBuf,
    pub(crate) purpose: Purpose,
    /// Taken when the last record is in.
    writer: Option<SnapshotWriter>,
    phase: Phase,
    pub(crate) created_unix_ms: u64,
    bytes: u64,
    records: u64,
}

/// What a step led to.
pub(crate) enum Progress {
    /// There is more to do now.
    Busy,
    /// Something else has to happen first.
    Waiting,
    /// The file is whole, on disk and under its name; or the snapshot has failed.
    Ended(Result<SnapshotReport, Refusal>),
}

impl SnapshotJob {
    /// Starts a snapshot of a partition that serves.
    ///
    /// # Errors
    /// `UNKNOWN_PARTITION`, or why the partition does not serve; the purpose comes back.
    pub(crate) fn start(
        number: u64,
        id: PartitionId,
        path: PathBuf,
        purpose: Purpose,
        executor: &mut Executor,
    ) -> Result<Self, (Refusal, Purpose)> {
        let created = executor.world.wall;
        let Some((partition, _)) = executor.partition(id) else {
            let text = format!("core hosts no partition {id} that serves");
            return Err((Refusal::new(Reason::UnknownPartition, text), purpose));
        };
        let head = match partition.snapshot_start() {
            Ok(head) => head,
            Err(refusal) => return Err((refusal, purpose)),
        };
        let spec = partition.spec();
        let header = SnapshotHeader {
            partition: spec.id,
            range: spec.range,
            epoch: spec.epoch,
            sequence: head.sequence,
            timestamp: head.timestamp,
            created,
            store_kind: spec.store.as_str().to_owned(),
        };
        let mut chunk = Vec::with_capacity(CHUNK_BYTES + STEP_BYTES);
        let mut writer = SnapshotWriter::new(&header, &mut chunk);
        partition.request_rows(|row| writer.push_request(&row, &mut chunk));
        let open = path.clone();
        executor
            .world
            .pool
            .submit(move || PoolDone::SnapshotFile(number, SnapshotFile::create(&open, chunk)));
        let created_unix_ms = header.created.0;
        let phase = Phase::Opening;
        Ok(Self {
            number,
            partition: id,
            head,
            path,
            purpose,
            writer: Some(writer),
            phase,
            created_unix_ms,
            bytes: 0,
            records: 0,
        })
    }

    /// Records that are in the snapshot so far.
    pub(crate) fn records(&self) -> u64 {
        self.writer.as_ref().map_or(self.records, SnapshotWriter::records)
    }

    /// The pool has done its part.
    pub(crate) fn file_done(
        &mut self,
        done: io::Result<SnapshotFile>,
        executor: &mut Executor,
    ) -> Progress {
        let file = match done {
            Ok(file) => file,
            Err(error) => return self.fail(&error, executor),
        };
        self.phase = match self.phase {
            Phase::Opening | Phase::Writing { last: false } => Phase::Walking(file),
            Phase::Writing { last: true } => Phase::AwaitingLog(file),
            Phase::Finishing => {
                return Progress::Ended(Ok(SnapshotReport {
                    sequence: self.head.sequence,
                    records: self.records,
                    bytes: self.bytes,
                }));
            }
            Phase::Walking(_) | Phase::AwaitingLog(_) => unreachable!("nothing was asked"),
        };
        Progress::Busy
    }

    /// Does a little of what can be done on the core.
    pub(crate) fn step(&mut self, executor: &mut Executor) -> Progress {
        let phase = std::mem::replace(&mut self.phase, Phase::Writing { last: false });
        match phase {
            Phase::Walking(file) => self.walk(file, executor),
            Phase::AwaitingLog(file) => {
                let passed = executor.partition(self.partition).map(|(partition, _)| {
                    (partition.passed() >= self.head.sequence, partition.state().0)
                });
                match passed {
                    Some((true, _)) => {
                        self.phase = Phase::Finishing;
                        let path = self.path.clone();
                        let number = self.number;
                        let supersedes = matches!(
                            self.purpose,
                            Purpose::Background | Purpose::StoreChange { supersedes: true }
                        );
                        executor.world.pool.submit(move || {
                            PoolDone::SnapshotFile(number, file.publish(&path, supersedes))
                        });
                        Progress::Waiting
                    }
                    Some((false, stateside_types::PartitionState::Primary)) => {
                        executor.world.log.hurry();
                        self.phase = Phase::AwaitingLog(file);
                        Progress::Waiting
                    }
                    _ => self.abandon(file, executor),
                }
            }
            other => {
                self.phase = other;
                Progress::Waiting
            }
        }
    }

    fn walk(&mut self, mut file: SnapshotFile, executor: &mut Executor) -> Progress {
        let Some((partition, mut effects)) = executor.partition(self.partition) else {
            return self.abandon(file, executor);
        };
        let (writer, chunk) = (&mut self.writer, &mut file.chunk);
        let writer_here = writer.as_mut().expect("records are walked before the writer ends");
        let mut emit = |record: SnapshotRecord<'_>| writer_here.push(record, chunk);
        let step = partition.snapshot_next(STEP_BYTES, &mut emit, &mut effects);
        let last = match step {
            Ok(SnapshotStep::Done) => {
                partition.snapshot_end();
                let writer = writer.take().expect("as above");
                self.records = writer.finish(&mut file.chunk).records;
                true
            }
            Ok(SnapshotStep::More) if file.chunk.len() < CHUNK_BYTES => {
                self.phase = Phase::Walking(file);
                return Progress::Busy;
            }
            Ok(SnapshotStep::More) => false,
            Ok(SnapshotStep::Wait) => {
                self.phase = Phase::Walking(file);
                return Progress::Waiting;
            }
            Err(error) => {
                file.discard();
                let refusal = Refusal::new(Reason::PartitionStopped, error.to_string());
                return Progress::Ended(Err(refusal));
            }
        };
        self.bytes += file.chunk.len() as u64;
        self.phase = Phase::Writing { last };
        let number = self.number;
        executor.world.pool.submit(move || PoolDone::SnapshotFile(number, file.write()));
        Progress::Waiting
    }

    fn abandon(&mut self, file: SnapshotFile, executor: &mut Executor) -> Progress {
        file.discard();
        if let Some((partition, _)) = executor.partition(self.partition) {
            partition.snapshot_end();
        }
        Progress::Ended(Err(Refusal::new(
            Reason::PartitionBusy,
            format!("partition {} was changed or stopped meanwhile", self.partition),
        )))
    }

    fn fail(&mut self, error: &io::Error, executor: &mut Executor) -> Progress {
        if let Some((partition, _)) = executor.partition(self.partition) {
            partition.snapshot_end();
        }
        let path = self.path.display();
        Progress::Ended(Err(match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Refusal::new(Reason::DiskFull, format!("{path}: no space for the snapshot"))
            }
            io::ErrorKind::AlreadyExists => {
                Refusal::new(Reason::SnapshotExists, format!("{path} exists"))
            }
            _ => Refusal::new(Reason::SnapshotUnwritable, format!("{path}: {error}")),
        }))
    }
}

impl SnapshotFile {
    fn create(path: &Path, chunk: Vec<u8>) -> io::Result<Self> {
        if path.try_exists()? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        // A leftover of a crash: a snapshot under way would hold the partition.
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = SequentialFile::create_new(&partial)?;
        Ok(Self { file, partial, chunk })
    }

    fn write(mut self) -> io::Result<Self> {
        if let Err(error) = self.file.append(&self.chunk) {
            self.discard();
            return Err(error);
        }
        self.chunk.clear();
        Ok(self)
    }

    /// Makes the file durable, then gives it its name. A background snapshot supersedes the
    /// partition's older ones.
    fn publish(mut self, path: &Path, supersedes: bool) -> io::Result<Self> {
        let published = self.file.finish().and_then(|()| {
            // Fails when the name exists, where a plain rename would overwrite.
            match renameat_with(CWD, &self.partial, CWD, path, RenameFlags::NOREPLACE) {
                // Some file systems cannot; a link refuses to overwrite too.
                Err(Errno::INVAL | Errno::NOSYS) => {
                    fs::hard_link(&self.partial, path).and_then(|()| fs::remove_file(&self.partial))
                }
                done => done.map_err(io::Error::from),
            }
        });
        if let Err(error) = published {
            self.discard();
            return Err(error);
        }
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        if supersedes {
            remove_older(path);
        }
        Ok(self)
    }

    fn discard(&self) {
        if let Err(error) = fs::remove_file(&self.partial) {
            tracing::warn!(path = %self.partial.display(), %error, "cannot remove a part of a snapshot");
        }
    }
}
