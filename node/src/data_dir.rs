//! The data directory: its layout, its lock, its format version, and what a crash left in it.
//!
//! ```text
//! DATA/
//! ├── LOCK                                   locked while a process uses the directory; its pid
//! ├── FORMAT                                 `stateside-data 1`
//! ├── MANIFEST                               what the node has (crate partition-mgr)
//! ├── registry.toml                          what it should have, unless registry.file is set
//! ├── log/                                   segments of the cores' logs
//! ├── partitions/ID/EPOCH-SEQUENCE.snapshot  the partitions' own snapshots
//! ├── partitions/ID/kafka.position           where a partition's log in Kafka is claimed and replayed from
//! ├── sled/                                  the database of partitions with store = "sled"
//! ├── lsm/                                   the database of partitions with store = "lsm"
//! └── tiered/                                of partitions with store = "tiered" (see `tiered_dirs.rs`)
//! ```
//! The manifest decides what belongs: a partition that it does not list was removed, or never
//! finished being added, and a snapshot of an epoch outside a partition's was replaced, or
//! belongs to a restore that did not finish. [`DataDir::sweep`] deletes both at the start. So a
//! manifest that is missing beside data is an error, never a fresh node.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use stateside_partition_mgr::{Manifest, ManifestError};
use stateside_types::{Epoch, PartitionId, PartitionSpec, Sequence, limits};

pub use stateside_registry::{ReplaceError, replace_file, sync_directory_of};

/// Version of the directory's layout.
pub const DATA_FORMAT_VERSION: u32 = 1;

const FORMAT_MAGIC: &str = "stateside-data";

/// An open data directory. Lives as long as the process serves from it: dropping it gives up the
/// lock.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    /// Held for its lock.
    _lock: File,
}

/// Why a data directory cannot be used. Each prints as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process uses it.
    #[error("the data directory {path} is in use by {}", owner(*pid))]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The other process, if it has written its number yet.
        pid: Option<u32>,
    },
    /// It is not there and cannot be made, or it may not be read or written.
    #[error("the data directory cannot be used: {path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path is something else.
    #[error("the data directory {path} is a file, not a directory")]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// It holds files and they are not Stateside's.
    #[error(
        "{path} is not empty and not a Stateside data directory (it has no FORMAT file): choose an empty or new directory"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// Written by another release.
    #[error(
        "{path} has data format {found}; this release reads format {DATA_FORMAT_VERSION}: use the release that wrote it, or a later one"
    )]
    FormatVersion {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The FORMAT file is not what was written.
    #[error("{path} is damaged: it should read `{FORMAT_MAGIC} {DATA_FORMAT_VERSION}`")]
    FormatDamaged {
        /// The file.
        path: PathBuf,
    },
    /// There is data and no manifest to say whose.
    #[error(
        "{path} is missing beside data in {beside}: put the manifest back from a backup, or begin with an empty data directory"
    )]
    ManifestMissing {
        /// The manifest.
        path: PathBuf,
        /// The directory that is not empty.
        beside: PathBuf,
    },
    /// The manifest cannot be used.
    #[error(
        "{path}: {source}; put it back from a backup: without it nobody can tell which data is current"
    )]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        source: ManifestError,
    },
}

fn owner(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

impl DataDir {
    /// Opens the directory, making it when it is missing, and locks it.
    ///
    /// # Errors
    /// [`DataDirError`]; nothing was changed then, except that the directory may have been made.
    pub fn open(root: &Path) -> Result<Self, DataDirError> {
        match fs::metadata(root) {
            Ok(metadata) if !metadata.is_dir() => {
                return Err(DataDirError::NotADirectory { path: root.to_owned() });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(root).map_err(at(root))?;
                sync_directory_of(root).map_err(at(root))?;
            }
            Err(error) => return Err(at(root)(error)),
        }
        // An absolute path: the errors and `Status` show it, and the process may change its
        // working directory.
        let root = fs::canonicalize(root).map_err(at(root))?;
        let format = root.join("FORMAT");
        let has_format = format.try_exists().map_err(at(&format))?;
        if !has_format && !is_fresh(&root)? {
            return Err(DataDirError::Foreign { path: root });
        }
        let lock = lock(&root)?;
        if has_format {
            check_format(&root, &format)?;
        } else {
            let text = format!("{FORMAT_MAGIC} {DATA_FORMAT_VERSION}\n");
            replace_file(&format, text.as_bytes()).map_err(|error| at(&format)(error.into()))?;
        }
        let dir = Self { root, _lock: lock };
        for part in [dir.log(), dir.partitions(), dir.sled(), dir.lsm(), dir.tiered()] {
            fs::create_dir_all(&part).map_err(at(&part))?;
        }
        sync_directory_of(&dir.log()).map_err(at(&dir.root))?;
        Ok(dir)
    }

    /// The directory, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Directory of the cores' logs.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// Directory of the sled database.
    pub fn sled(&self) -> PathBuf {
        self.root.join("sled")
    }

    /// Directory of the log-structured merge tree's database.
    pub fn lsm(&self) -> PathBuf {
        self.root.join("lsm")
    }

    /// Directory of what `tiered` stores have here: their slow and fast directories, unless those are
    /// elsewhere, and whose the slow one is.
    pub fn tiered(&self) -> PathBuf {
        self.root.join("tiered")
    }

    /// Directory of all partitions' snapshots.
    pub fn partitions(&self) -> PathBuf {
        self.root.join("partitions")
    }

    /// Directory of one partition's snapshots; made by whoever writes the first.
    pub fn partition(&self, id: PartitionId) -> PathBuf {
        self.partitions().join(id.to_string())
    }

    /// One of a partition's own snapshots: the state after `sequence`, of content of `epoch`.
    pub fn snapshot(&self, id: PartitionId, epoch: Epoch, sequence: Sequence) -> PathBuf {
        self.partition(id).join(format!("{epoch}-{sequence}.snapshot"))
    }

    /// What the node remembers of a partition's log in Kafka.
    pub fn kafka_position(&self, id: PartitionId) -> PathBuf {
        self.partition(id).join("kafka.position")
    }

    /// The manifest's file.
    pub fn manifest(&self) -> PathBuf {
        self.root.join("MANIFEST")
    }

    /// The node's own registry file.
    pub fn registry(&self) -> PathBuf {
        self.root.join("registry.toml")
    }

    /// Reads the manifest. `None`: there is none and no data either, so the node is fresh.
    ///
    /// # Errors
    /// The manifest cannot be read or used, or is missing beside data.
    pub fn read_manifest(&self) -> Result<Option<Manifest>, DataDirError> {
        let path = self.manifest();
        match read_bounded(&path, limits::MANIFEST_BYTES_MAX) {
            Ok(bytes) => Manifest::decode(&bytes)
                .map(Some)
                .map_err(|source| DataDirError::Manifest { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parts = [self.log(), self.partitions(), self.sled(), self.lsm(), self.tiered()];
                for beside in parts {
                    if fs::read_dir(&beside).map_err(at(&beside))?.next().is_some() {
                        return Err(DataDirError::ManifestMissing { path, beside });
                    }
                }
                Ok(None)
            }
            Err(error) => Err(at(&path)(error)),
        }
    }

    /// Replaces the manifest, atomically and durably.
    ///
    /// # Errors
    /// The old manifest holds, unless the error says that this is in doubt.
    pub fn write_manifest(&self, manifest: &Manifest) -> Result<(), ReplaceError> {
        replace_file(&self.manifest(), &manifest.encode())
    }

    /// Deletes what a crash left behind: files of partitions that the manifest does not list,
    /// snapshots of epochs that are not their partition's, and unfinished files. Returns what was
    /// deleted. To be called before the cores start.
    ///
    /// # Errors
    /// What could not be looked at or deleted.
    pub fn sweep(&self, manifest: &Manifest) -> Result<Vec<PathBuf>, DataDirError> {
        let mut deleted = Vec::new();
        for (path, name) in entries(&self.partitions())? {
            // Only names that this node writes; what a person put here is left alone.
            let Some(id) = name.parse().ok().map(PartitionId) else { continue };
            match manifest.partitions.get(&id) {
                None => {
                    fs::remove_dir_all(&path).map_err(at(&path))?;
                    deleted.push(path);
                }
                Some(placed) => {
                    for (path, name) in entries(&path)? {
                        if is_left_over(&name, &placed.spec) {
                            fs::remove_file(&path).map_err(at(&path))?;
                            deleted.push(path);
                        }
                    }
                }
            }
        }
        if !deleted.is_empty() {
            sync_directory_of(&self.partitions().join("x")).map_err(at(&self.root))?;
        }
        Ok(deleted)
    }
}

/// The epoch and sequence that a snapshot's file name tells; `None` for other names.
pub fn parse_snapshot_name(name: &str) -> Option<(Epoch, Sequence)> {
    let (epoch, sequence) = name.strip_suffix(".snapshot")?.split_once('-')?;
    Some((Epoch(epoch.parse().ok()?), Sequence(sequence.parse().ok()?)))
}

fn is_left_over(name: &str, spec: &PartitionSpec) -> bool {
    match parse_snapshot_name(name) {
        Some((epoch, _)) => epoch < spec.first_epoch || epoch > spec.epoch,
        None => [".new", ".tmp", ".partial"].iter().any(|suffix| name.ends_with(suffix)),
    }
}

fn lock(root: &Path) -> Result<File, DataDirError> {
    let path = root.join("LOCK");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(at(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // The number is a courtesy: without it the sentence is still true.
            let _ = (&file).take(32).read_to_string(&mut text);
            return Err(DataDirError::Locked {
                path: root.to_owned(),
                pid: text.trim().parse().ok(),
            });
        }
        Err(TryLockError::Error(error)) => return Err(at(&path)(error)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(at(&path))?;
    Ok(file)
}

/// Whether nobody has put anything here, apart from a first start that was cut short.
fn is_fresh(root: &Path) -> Result<bool, DataDirError> {
    let ours = ["LOCK", "FORMAT.new", "lost+found"];
    Ok(entries(root)?.iter().all(|(_, name)| ours.contains(&name.as_str())))
}

fn check_format(root: &Path, path: &Path) -> Result<(), DataDirError> {
    let bytes = read_bounded(path, 1 << 10).map_err(at(path))?;
    let damaged = || DataDirError::FormatDamaged { path: path.to_owned() };
    let text = std::str::from_utf8(&bytes).map_err(|_| damaged())?;
    let version = text
        .strip_prefix(FORMAT_MAGIC)
        .and_then(|rest| rest.strip_prefix(' ')?.strip_suffix('\n')?.parse().ok())
        .ok_or_else(damaged)?;
    if version != DATA_FORMAT_VERSION {
        return Err(DataDirError::FormatVersion { path: root.to_owned(), found: version });
    }
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<(PathBuf, String)>, DataDirError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let entry = entry.map_err(at(dir))?;
        found.push((entry.path(), entry.file_name().to_string_lossy().into_owned()));
    }
    found.sort();
    Ok(found)
}

/// Reads a file up to one byte more than the limit, so that the caller sees that it is too large.
fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use stateside_partition_mgr::PlacedPartition;
    use stateside_types::{Ack, CoreId, DEFAULT_PIPELINE, HashRange, StoreKind};

    use super::*;

    fn sample() -> Manifest {
        let mut manifest = Manifest::new("vm-1".to_owned(), 7, 1);
        let (first_epoch, epoch) = (manifest.take_epoch(), manifest.take_epoch());
        let spec = PartitionSpec {
            id: PartitionId(4),
            range: HashRange::FULL,
            store: StoreKind::Memory,
            ack: Ack::Durable,
            pipeline: DEFAULT_PIPELINE.into(),
            first_epoch,
            epoch,
            base_sequence: Sequence::ZERO,
        };
        manifest.partitions.insert(spec.id, PlacedPartition { spec, core: CoreId(0) });
        manifest
    }

    #[test]
    fn a_new_directory_is_made_and_opens_again() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("deep/data");
        for _ in 0..2 {
            let dir = DataDir::open(&path).unwrap();
            assert_eq!(dir.read_manifest().unwrap(), None);
            assert_eq!(fs::read_to_string(path.join("FORMAT")).unwrap(), "stateside-data 1\n");
        }
        let dir = DataDir::open(&path).unwrap();
        dir.write_manifest(&sample()).unwrap();
        assert_eq!(dir.read_manifest().unwrap(), Some(sample()));
    }

    #[test]
    fn a_directory_in_use_names_the_process() {
        let temporary = tempfile::tempdir().unwrap();
        let _held = DataDir::open(temporary.path()).unwrap();
        let error = DataDir::open(temporary.path()).unwrap_err();
        assert!(
            matches!(error, DataDirError::Locked { pid: Some(pid), .. } if pid == std::process::id())
        );
        assert!(error.to_string().contains(&format!("in use by process {}", std::process::id())));
    }

    #[test]
    fn what_is_not_a_data_directory_is_refused_in_one_sentence() {
        let temporary = tempfile::tempdir().unwrap();
        let file = temporary.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(DataDir::open(&file), Err(DataDirError::NotADirectory { .. })));
        // The directory now holds somebody's file.
        assert!(matches!(DataDir::open(temporary.path()), Err(DataDirError::Foreign { .. })));
        assert!(!temporary.path().join("LOCK").exists(), "a foreign directory is left alone");
        let missing = DataDir::open(Path::new("/proc/stateside")).unwrap_err();
        assert_eq!(missing.to_string().lines().count(), 1);
        assert!(matches!(missing, DataDirError::Io { .. }));
    }

    #[test]
    fn another_format_and_a_damaged_one_differ() {
        let temporary = tempfile::tempdir().unwrap();
        drop(DataDir::open(temporary.path()).unwrap());
        let format = temporary.path().join("FORMAT");
        fs::write(&format, "stateside-data 2\n").unwrap();
        let error = DataDir::open(temporary.path()).unwrap_err();
        assert!(matches!(error, DataDirError::FormatVersion { found: 2, .. }));
        for damaged in ["", "stateside-data", "stateside-dbta 1\n", "stateside-data 1"] {
            fs::write(&format, damaged).unwrap();
            let error = DataDir::open(temporary.path()).unwrap_err();
            assert!(matches!(error, DataDirError::FormatDamaged { .. }), "{damaged}");
        }
    }

    #[test]
    fn a_manifest_that_is_missing_or_unusable_beside_data_is_no_fresh_node() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temporary.path()).unwrap();
        for part in ["log", "partitions", "sled", "lsm", "tiered"] {
            let file = dir.root().join(part).join("something");
            fs::write(&file, "x").unwrap();
            let error = dir.read_manifest().unwrap_err();
            assert!(matches!(error, DataDirError::ManifestMissing { .. }), "{part}: {error}");
            fs::remove_file(&file).unwrap();
        }
        fs::write(dir.manifest(), "").unwrap();
        let error = dir.read_manifest().unwrap_err();
        let DataDirError::Manifest { source: ManifestError::Truncated { .. }, .. } = error else {
            panic!("{error}");
        };
    }

    #[test]
    fn the_sweep_deletes_what_the_manifest_does_not_know_and_nothing_else() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temporary.path()).unwrap();
        let snapshot = |id, epoch, sequence| {
            let path = dir.snapshot(PartitionId(id), Epoch(epoch), Sequence(sequence));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "x").unwrap();
            path
        };
        let kept =
            [snapshot(4, 1, 10), snapshot(4, 2, 20), dir.partition(PartitionId(4)).join("note")];
        fs::write(&kept[2], "x").unwrap();
        let gone = [snapshot(4, 3, 20), snapshot(4, 0, 5), snapshot(9, 1, 1)];
        let unfinished = dir.partition(PartitionId(4)).join("2-30.snapshot.partial");
        fs::write(&unfinished, "x").unwrap();
        assert_eq!(dir.sweep(&sample()).unwrap().len(), 4);
        assert!(kept.iter().all(|path| path.exists()));
        assert!(gone.iter().chain([&unfinished]).all(|path| !path.exists()));
        assert!(!dir.partition(PartitionId(9)).exists());
        assert_eq!(dir.sweep(&sample()).unwrap(), Vec::<PathBuf>::new());
    }
}
