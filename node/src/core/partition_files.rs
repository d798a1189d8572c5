//! A partition's files, and opening its store from them. Everything here blocks: it runs on the
//! blocking pool, or on a core before it serves.
//!
//! A partition's content in memory begins with its newest snapshot of its first epoch. The
//! sequence in the snapshot's name is where replay goes on; after a restore it may be above that in
//! the file's header, because versions never go back.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use stateside_pipeline::kafka::{Position, PositionError};
use stateside_statestore::{
    CountersStore, MemoryStore, RequestLimits, SnapshotError, SnapshotHeader, SnapshotReader,
    SnapshotRecord, StateStore, StoreError, is_counter,
};
use stateside_types::{Epoch, PartitionId, PartitionSpec, Reason, Refusal, Sequence, StoreKind};

use super::{command::RestoreReport, store_engines::StoreEngines};
use crate::data_dir::{DataDir, parse_snapshot_name, replace_file, sync_directory_of};

/// Bytes read from a snapshot at a time.
const READ_BYTES: usize = 1 << 20;

/// The newest snapshot of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotInfo {
    /// It holds the state after this sequence.
    pub(crate) sequence: Sequence,
    /// When it was made, milliseconds since 1970.
    pub(crate) created_unix_ms: u64,
}

/// A store ready for service, and the snapshot that it has on disk.
pub(crate) type OpenedStore = (Box<dyn StateStore>, Option<SnapshotInfo>);

/// Where partitions keep their files. One per node, shared by its cores.
pub struct PartitionFiles {
    data_dir: Arc<DataDir>,
    engines: StoreEngines,
    hash_seed: u64,
    request_limits: RequestLimits,
}

impl PartitionFiles {
    /// Files below a data directory. `hash_seed`: any secret number, for the stores in memory.
    /// `request_limits`: how many requests with an id each partition remembers.
    pub fn new(
        data_dir: Arc<DataDir>,
        engines: StoreEngines,
        hash_seed: u64,
        request_limits: RequestLimits,
    ) -> Self {
        Self { data_dir, engines, hash_seed, request_limits }
    }

    /// Opens a partition's store: its engine, or its newest snapshot, or nothing yet.
    ///
    /// # Errors
    /// `PARTITION_DAMAGED` with the file and what is wrong; `PARTITION_STOPPED` when the
    /// environment fails.
    pub(crate) fn open_store(&self, spec: &PartitionSpec) -> Result<OpenedStore, Refusal> {
        let mut store: Box<dyn StateStore> = match spec.store {
            StoreKind::Memory => Box::new(MemoryStore::new(self.hash_seed)),
            StoreKind::MemoryOrdered => Box::new(MemoryStore::ordered(self.hash_seed)),
            StoreKind::Counters => Box::new(CountersStore::default()),
            StoreKind::Sled | StoreKind::Lsm | StoreKind::Tiered => {
                self.engines.open_store(spec.store, spec.id, spec.first_epoch)?
            }
        };
        store.limit_requests(self.request_limits);
        let newest = self.newest_snapshot(spec)?;
        let mut info = None;
        if let Some((sequence, path)) = newest {
            let created_unix_ms = if sequence > store.applied() {
                load(&path, sequence, store.as_mut(), spec.store)?
            } else {
                read_header(&path)?.created.0
            };
            info = Some(SnapshotInfo { sequence, created_unix_ms });
        }
        if store.applied() < spec.base_sequence {
            let text = format!(
                "{}: the snapshot that the partition was restored from (sequence {}) is missing",
                self.data_dir.partition(spec.id).display(),
                spec.base_sequence
            );
            return Err(Refusal::new(Reason::PartitionDamaged, text));
        }
        Ok((store, info))
    }

    /// Where a new snapshot of a partition goes.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub(crate) fn prepare_snapshot(
        &self,
        id: PartitionId,
        first_epoch: Epoch,
        sequence: Sequence,
    ) -> io::Result<PathBuf> {
        fs::create_dir_all(self.data_dir.partition(id))?;
        Ok(self.data_dir.snapshot(id, first_epoch, sequence))
    }

    /// Verifies a snapshot whole and copies it to where `spec`'s partition finds it once the
    /// manifest has `epoch`. Versions go on from the higher of the snapshot's and `own`.
    ///
    /// # Errors
    /// `SNAPSHOT_UNREADABLE`, `SNAPSHOT_FOREIGN`, `FILE_VERSION`, `SNAPSHOT_DAMAGED`, `DISK_FULL`.
    pub(crate) fn install_snapshot(
        &self,
        spec: &PartitionSpec,
        source: &Path,
        epoch: Epoch,
        own: Sequence,
    ) -> Result<RestoreReport, Refusal> {
        let unreadable = |error: io::Error| {
            Refusal::new(Reason::SnapshotUnreadable, format!("{}: {error}", source.display()))
        };
        let mut file = File::open(source).map_err(unreadable)?;
        if !file.metadata().map_err(unreadable)?.is_file() {
            return Err(unreadable(io::Error::other("not a file")));
        }
        // Verified before a byte is copied: a refused restore leaves nothing behind.
        let (header, records) = verify(&mut file, source, spec.store)?;
        if header.range != spec.range {
            let text = format!(
                "{} holds hash range {}, partition {} has {}",
                source.display(),
                header.range,
                spec.id,
                spec.range
            );
            return Err(Refusal::new(Reason::SnapshotForeign, text));
        }
        let sequence = header.sequence.max(own);
        let target = self.copy(source, spec.id, epoch, sequence).map_err(|error| {
            let text = format!("copying {} to the data directory: {error}", source.display());
            let full =
                matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            Refusal::new(if full { Reason::DiskFull } else { Reason::SnapshotUnwritable }, text)
        })?;
        // What was verified must be what was copied, also when someone writes to the source.
        let copied = File::open(&target)
            .map_err(unreadable)
            .and_then(|mut file| verify(&mut file, &target, spec.store));
        if let Err(refusal) = copied {
            let _ = fs::remove_file(&target);
            return Err(refusal);
        }
        Ok(RestoreReport { sequence, records })
    }

    /// What the node remembers of the partition's log in Kafka.
    ///
    /// # Errors
    /// `PARTITION_DAMAGED`, `FILE_VERSION`, `PARTITION_STOPPED`.
    #[cfg_attr(not(feature = "kafka"), allow(dead_code, reason = "only the client asks"))]
    pub(crate) fn read_kafka_position(&self, id: PartitionId) -> Result<Option<Position>, Refusal> {
        let path = self.data_dir.kafka_position(id);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_failed(&path, &error)),
        };
        Position::decode(&text).map(Some).map_err(|error| {
            let reason = match error {
                PositionError::Version => Reason::FileVersion,
                PositionError::Damaged => Reason::PartitionDamaged,
            };
            let advice = "remove the partition and add it again to replay all of its log";
            Refusal::new(reason, format!("{}: {error}; {advice}", path.display()))
        })
    }

    /// Notes where the partition's log in Kafka is; on disk when this returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write_kafka_position(
        &self,
        id: PartitionId,
        position: &Position,
    ) -> io::Result<()> {
        fs::create_dir_all(self.data_dir.partition(id))?;
        replace_file(&self.data_dir.kafka_position(id), position.encode().as_bytes())?;
        // The folder may be new.
        sync_directory_of(&self.data_dir.partition(id))
    }

    /// Whether any partition of this node has had its log in Kafka.
    #[cfg_attr(not(feature = "kafka"), allow(dead_code, reason = "only the client asks"))]
    pub(crate) fn has_kafka_positions(&self) -> bool {
        let Ok(entries) = fs::read_dir(self.data_dir.partitions()) else { return false };
        entries.flatten().any(|entry| entry.path().join("kafka.position").exists())
    }

    /// Deletes everything of a partition.
    pub(crate) fn remove(&self, id: PartitionId) -> Result<(), Refusal> {
        self.engines.remove_stores(|_, other, _| other == id)?;
        match fs::remove_dir_all(self.data_dir.partition(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let text = format!("{}: {error}", self.data_dir.partition(id).display());
                Err(Refusal::new(Reason::Internal, text))
            }
            _ => Ok(()),
        }
    }

    /// Deletes what engines still hold of partitions, or of content, that no specification names. At
    /// the start, before anything is opened. On a full disk it is left to the next start.
    ///
    /// # Errors
    /// As the engine says.
    pub fn sweep(&self, specs: &[PartitionSpec]) -> Result<(), Refusal> {
        let known: HashSet<_> = specs
            .iter()
            .filter(|spec| spec.store.is_on_disk())
            .map(|spec| (spec.store, spec.id, spec.first_epoch))
            .collect();
        let unknown = |kind, id, epoch| !known.contains(&(kind, id, epoch));
        match self.engines.remove_stores(unknown) {
            Err(refusal) if refusal.reason == Reason::DiskFull => {
                tracing::warn!(%refusal, "what removed partitions left on the disk is not looked for");
                Ok(())
            }
            done => done,
        }
    }

    /// The newest snapshot of the partition's present content.
    fn newest_snapshot(
        &self,
        spec: &PartitionSpec,
    ) -> Result<Option<(Sequence, PathBuf)>, Refusal> {
        let directory = self.data_dir.partition(spec.id);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                let text = format!("{}: {error}", directory.display());
                return Err(Refusal::new(Reason::PartitionStopped, text));
            }
        };
        Ok(entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let (epoch, sequence) = parse_name(&path)?;
                (epoch == spec.first_epoch).then_some((sequence, path))
            })
            .max())
    }

    fn copy(
        &self,
        source: &Path,
        id: PartitionId,
        epoch: Epoch,
        sequence: Sequence,
    ) -> io::Result<PathBuf> {
        let target = self.prepare_snapshot(id, epoch, sequence)?;
        let partial = target.with_extension("snapshot.partial");
        let copied = fs::copy(source, &partial)
            .and_then(|_| File::open(&partial)?.sync_all())
            .and_then(|()| fs::rename(&partial, &target))
            .and_then(|()| File::open(self.data_dir.partition(id))?.sync_all());
        if let Err(error) = copied {
            let _ = fs::remove_file(&partial);
            return Err(error);
        }
        Ok(target)
    }
}

/// Deletes the snapshots of a partition that `newest` supersedes. What cannot be deleted now is
/// at the next time.
pub(crate) fn remove_older(newest: &Path) {
    let Some((epoch, sequence)) = parse_name(newest) else { return };
    let Some(Ok(entries)) = newest.parent().map(fs::read_dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if parse_name(&path).is_some_and(|other| other < (epoch, sequence))
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "an old snapshot stays");
        }
    }
}

fn parse_name(path: &Path) -> Option<(Epoch, Sequence)> {
    parse_snapshot_name(path.file_name()?.to_str()?)
}

/// Fills a store from a snapshot; returns when the snapshot was made.
fn load(
    path: &Path,
    sequence: Sequence,
    store: &mut dyn StateStore,
    kind: StoreKind,
) -> Result<u64, Refusal> {
    let damaged = |error: SnapshotError| damaged(path, &error);
    let mut file = File::open(path).map_err(|error| io_failed(path, &error))?;
    let mut reader = SnapshotReader::new();
    let mut records: Vec<SnapshotRecord<'_>>;
    let mut chunk = vec![0; READ_BYTES];
    store.load_start();
    loop {
        let length = file.read(&mut chunk).map_err(|error| io_failed(path, &error))?;
        if length == 0 {
            break;
        }
        reader.push(&chunk[..length]);
        while let Some(block) = reader.next_block().map_err(damaged)? {
            records = block.records().collect();
            if let Some(key) = first_unfit(kind, records.iter().copied()) {
                let text = format!("{}: the value of `{key}` is no integer", path.display());
                return Err(Refusal::new(Reason::PartitionDamaged, text));
            }
            block.requests().for_each(|row| store.load_request(&row));
            // Taken either way: offered again they would be counted again.
            let mut has_room = store.load(&records);
            while !has_room {
                work(store)?;
                has_room = store.load(&[]);
            }
        }
    }
    let header = reader.header().cloned();
    reader.finish().map_err(damaged)?;
    let header = header.expect("a snapshot that ends well has a header");
    store.load_end(sequence, header.timestamp);
    while kind.is_on_disk() && store.covered() < sequence {
        store.cover();
        work(store)?;
    }
    Ok(header.created.0)
}

/// Runs the next piece of a store's work here and now.
pub(crate) fn work(store: &mut dyn StateStore) -> Result<(), Refusal> {
    if let Some(work) = store.take_work(store.applied()) {
        store.finish_work(work()).map_err(|error| store_failed(&error))?;
    }
    Ok(())
}

/// The key of the first record that a store of this kind does not hold.
fn first_unfit<'a>(
    kind: StoreKind,
    mut records: impl Iterator<Item = SnapshotRecord<'a>>,
) -> Option<String> {
    if kind != StoreKind::Counters {
        return None;
    }
    let unfit = records.find(|record| !is_counter(record.record.value))?;
    Some(String::from_utf8_lossy(&unfit.key[..unfit.key.len().min(64)]).into_owned())
}

fn verify(file: &mut File, path: &Path, kind: StoreKind) -> Result<(SnapshotHeader, u64), Refusal> {
    let mut reader = SnapshotReader::new();
    let mut chunk = vec![0; READ_BYTES];
    let refused = |error: SnapshotError| snapshot_refused(path, &error);
    loop {
        let length = file.read(&mut chunk).map_err(|error| {
            Refusal::new(Reason::SnapshotUnreadable, format!("{}: {error}", path.display()))
        })?;
        if length == 0 {
            break;
        }
        reader.push(&chunk[..length]);
        while let Some(block) = reader.next_block().map_err(refused)? {
            if let Some(key) = first_unfit(kind, block.records()) {
                let text = format!(
                    "{}: the value of `{key}` is no integer, and the partition's store is counters",
                    path.display()
                );
                return Err(Refusal::new(Reason::SnapshotForeign, text));
            }
        }
    }
    let header = reader.header().cloned();
    let summary = reader.finish().map_err(refused)?;
    Ok((header.expect("a snapshot that ends well has a header"), summary.records))
}

fn read_header(path: &Path) -> Result<SnapshotHeader, Refusal> {
    let mut reader = SnapshotReader::new();
    let mut file = File::open(path).map_err(|error| io_failed(path, &error))?;
    let mut chunk = vec![0; stateside_statestore::SNAPSHOT_HEADER_BYTES];
    file.read_exact(&mut chunk).map_err(|error| io_failed(path, &error))?;
    reader.push(&chunk);
    reader.next_block().map_err(|error| damaged(path, &error))?;
    Ok(reader.header().cloned().expect("all bytes of the header were given"))
}

fn snapshot_refused(path: &Path, error: &SnapshotError) -> Refusal {
    let reason = match error {
        SnapshotError::Foreign { .. } => Reason::SnapshotForeign,
        SnapshotError::Version { .. } => Reason::FileVersion,
        _ => Reason::SnapshotDamaged,
    };
    Refusal::new(reason, format!("{}: {error}", path.display()))
}

fn damaged(path: &Path, error: &SnapshotError) -> Refusal {
    Refusal::new(Reason::PartitionDamaged, format!("{}: {error}", path.display()))
}

fn io_failed(path: &Path, error: &io::Error) -> Refusal {
    Refusal::new(Reason::PartitionStopped, format!("{}: {error}", path.display()))
}

pub(super) fn store_failed(error: &StoreError) -> Refusal {
    let reason = match error {
        StoreError::Damaged { .. } => Reason::PartitionDamaged,
        StoreError::DiskFull { .. } | StoreError::Unreadable { .. } => Reason::DiskFull,
        StoreError::Io { .. } => Reason::PartitionStopped,
    };
    Refusal::new(reason, error.to_string())
}
