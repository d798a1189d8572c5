//! The two directories of `tiered` stores: where they are, and whether they may be used.
//!
//! ```text
//!   DATA/tiered/SLOW ─── the same words ─── SLOW_DIR/OWNER       which slow directory is this node's
//!                                           SLOW_DIR/lsm/        the database
//!                                           FAST_DIR/cache       copies; FAST_DIR/LOCK while it is used
//! ```
//! **Why the slow directory is signed.** It may be a disk of its own. When that is not mounted, its mount point
//! is an empty directory, and a database made there would be a node that has forgotten everything; and with
//! another node's directory, everything in it would be what no manifest knows, and be deleted. So a slow directory
//! without the signature is refused once there has been one, and one with another's always.
//!
//! A fast directory that cannot be used for the moment is no reason not to start (the store does without
//! it); one that is no directory, that may not be written or that somebody else uses is a mistake, and is told.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    hash::{BuildHasher, RandomState},
    io,
    path::{Path, PathBuf},
};

use stateside_types::{Reason, Refusal};

use crate::{
    config::{Settings, TieredSettings},
    data_dir::{DataDir, replace_file, sync_directory_of},
};

const SLOW_KEY: &str = "store.tiered.slow_dir";
const FAST_KEY: &str = "store.tiered.fast_dir";
/// Longest signature that is read, bytes.
const SIGNATURE_BYTES_MAX: u64 = 128;

/// See the file's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TieredDirs {
    /// `DATA/tiered`
    own: PathBuf,
    /// The slow directory.
    pub slow: PathBuf,
    /// The fast one.
    pub fast: PathBuf,
}

/// Why they cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct TieredDirsError {
    /// The configuration key concerned.
    pub key: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
    /// Another process uses the directory.
    pub is_locked: bool,
}

impl TieredDirs {
    /// As the settings say.
    pub fn new(settings: &Settings) -> Self {
        Self::below(&settings.node.data_dir.join("tiered"), &settings.store.tiered)
    }

    /// As the settings say, with `own` for what they leave out.
    pub fn below(own: &Path, settings: &TieredSettings) -> Self {
        let or = |dir: &Option<PathBuf>, name| dir.clone().unwrap_or_else(|| own.join(name));
        let (slow, fast) = (or(&settings.slow_dir, "slow"), or(&settings.fast_dir, "fast"));
        Self { own: own.to_owned(), slow, fast }
    }

    /// Where the slow directory's database is.
    pub fn database(&self) -> PathBuf {
        self.slow.join("lsm")
    }

    /// Whether a store has been here.
    pub fn are_used(&self) -> bool {
        self.signature().exists()
    }

    /// Checks what the paths alone tell.
    ///
    /// # Errors
    /// They are the same, or one within the other, or what the data directory has for something else.
    pub fn check(&self) -> Result<(), TieredDirsError> {
        let (slow, fast) = (self.slow.display(), self.fast.display());
        if self.slow == self.fast {
            return Err(wrong(FAST_KEY, format!("{fast} is {SLOW_KEY} too")));
        }
        if self.slow.starts_with(&self.fast) || self.fast.starts_with(&self.slow) {
            return Err(wrong(
                FAST_KEY,
                format!("{fast} and {SLOW_KEY}, {slow}, lie within each other"),
            ));
        }
        let data = self.own.parent().unwrap_or(&self.own);
        for (key, dir) in [(SLOW_KEY, &self.slow), (FAST_KEY, &self.fast)] {
            if dir == data || *dir == self.own {
                let text = format!("{} is the data directory: choose another", dir.display());
                return Err(wrong(key, text));
            }
            for part in ["log", "partitions", "sled", "lsm"] {
                if dir.starts_with(data.join(part)) {
                    let text = format!(
                        "{} lies within {}, which has its own content",
                        dir.display(),
                        data.join(part).display()
                    );
                    return Err(wrong(key, text));
                }
            }
        }
        Ok(())
    }

    /// Makes the directories, checks that they may be used, and signs the slow one. Blocks. Not while
    /// this process uses them already.
    ///
    /// # Errors
    /// [`TieredDirsError`]; nothing but directories was made then.
    pub fn prepare(&self) -> Result<(), TieredDirsError> {
        let of_slow =
            |error: io::Error| wrong(SLOW_KEY, format!("{}: {error}", self.slow.display()));
        let signature = read_signature(&self.signature()).map_err(of_slow)?;
        if signature.is_none() {
            // Otherwise it is there, or not mounted.
            fs::create_dir_all(&self.slow).map_err(of_slow)?;
        }
        if let Err(error) = self.prepare_fast() {
            match error.kind() {
                io::ErrorKind::WouldBlock => {
                    let text = format!("{} is in use by another process", self.fast.display());
                    return Err(TieredDirsError { is_locked: true, ..wrong(FAST_KEY, text) });
                }
                io::ErrorKind::PermissionDenied
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::AlreadyExists
                | io::ErrorKind::InvalidInput => {
                    return Err(wrong(FAST_KEY, format!("{}: {error}", self.fast.display())));
                }
                // It says so itself, and goes on trying.
                _ => {}
            }
        }
        // With links followed, now that both are there.
        if let (Ok(slow), Ok(fast)) = (self.slow.canonicalize(), self.fast.canonicalize()) {
            Self { own: self.own.canonicalize().map_err(of_slow)?, slow, fast }.check()?;
        }
        self.check_signature(signature)?;
        probe(&self.slow).map_err(of_slow)
    }

    fn check_signature(&self, signature: Option<String>) -> Result<(), TieredDirsError> {
        let slow = self.slow.display();
        let of_slow = |error: io::Error| wrong(SLOW_KEY, format!("{slow}: {error}"));
        let owner_file = self.slow.join("OWNER");
        let owner = read_signature(&owner_file).map_err(of_slow)?;
        match (signature, owner) {
            (Some(signature), Some(owner)) if signature == owner => Ok(()),
            (Some(_), None) => Err(wrong(
                SLOW_KEY,
                format!(
                    "{slow} is not the slow directory that this node's records are in (it has no OWNER file): \
                     is its disk mounted, was it moved?"
                ),
            )),
            (Some(_), Some(_)) => Err(wrong(
                SLOW_KEY,
                format!("{slow} belongs to another data directory (its OWNER file says so)"),
            )),
            // A crash came between the two.
            (None, Some(_)) if !self.database().exists() => self.sign().map_err(of_slow),
            (None, None) if !self.database().exists() => self.sign().map_err(of_slow),
            (None, _) => Err(wrong(
                SLOW_KEY,
                format!(
                    "{slow} has records already, and they are not this data directory's: choose an empty one"
                ),
            )),
        }
    }

    fn sign(&self) -> io::Result<()> {
        let random = RandomState::new();
        let words = format!("{:016x}{:016x}\n", random.hash_one(1), random.hash_one(2));
        for file in [self.slow.join("OWNER"), self.signature()] {
            replace_file(&file, words.as_bytes())?;
        }
        sync_directory_of(&self.slow)
    }

    fn prepare_fast(&self) -> io::Result<()> {
        fs::create_dir_all(&self.fast)?;
        probe(&self.fast)?;
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).open(self.fast.join("LOCK"))?;
        // Given up at once: the store takes it.
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
            TryLockError::Error(error) => error,
        })
    }

    fn signature(&self) -> PathBuf {
        self.own.join("SLOW")
    }
}

impl TieredDirsError {
    /// For whoever asked for a partition.
    #[cfg_attr(not(feature = "lsm"), allow(dead_code, reason = "only the engine asks"))]
    pub(crate) fn refusal(&self) -> Refusal {
        Refusal::new(Reason::PartitionStopped, self.to_string())
    }
}

/// Whether the directories are for use at the start: there are `tiered` partitions, or the settings speak of them.
pub fn are_wanted(settings: &Settings, data_dir: &DataDir, has_partitions: bool) -> bool {
    use stateside_types::StoreKind;
    let tiered = &settings.store.tiered;
    has_partitions
        || settings.partition.store == StoreKind::Tiered
        || tiered.slow_dir.is_some()
        || tiered.fast_dir.is_some()
        || TieredDirs::below(&data_dir.tiered(), tiered).are_used()
}

fn wrong(key: &'static str, message: String) -> TieredDirsError {
    TieredDirsError { key, message, is_locked: false }
}

/// Whether files can be made in a directory.
fn probe(directory: &Path) -> io::Result<()> {
    let path = directory.join(".probe");
    File::create(&path)?;
    fs::remove_file(path)
}

/// What a signature's file says; none without the file.
fn read_signature(path: &Path) -> io::Result<Option<String>> {
    use io::Read as _;
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut text = String::new();
    file.take(SIGNATURE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        folder: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir_all(folder.path().join("data/tiered")).unwrap();
            Self { folder }
        }

        fn dirs(&self, slow: &str, fast: &str) -> TieredDirs {
            let at = |name| self.folder.path().join(name);
            TieredDirs { own: at("data/tiered"), slow: at(slow), fast: at(fast) }
        }

        fn refused(&self, slow: &str, fast: &str, why: &str) {
            let error = self.dirs(slow, fast).prepare().unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn directories_are_made_and_signed_once() {
        let world = World::new();
        let dirs = world.dirs("slow", "fast");
        assert!(!dirs.are_used());
        dirs.prepare().unwrap();
        assert!(dirs.are_used());
        let owner = fs::read(dirs.slow.join("OWNER")).unwrap();
        dirs.prepare().unwrap();
        assert_eq!(fs::read(dirs.slow.join("OWNER")).unwrap(), owner);
    }

    #[test]
    fn a_slow_directory_that_is_gone_or_anothers_is_refused() {
        let world = World::new();
        let dirs = world.dirs("slow", "fast");
        dirs.prepare().unwrap();
        fs::create_dir(dirs.database()).unwrap();
        // Its disk is not mounted: there is nothing, or an empty mount point.
        world.refused("elsewhere", "fast", "is its disk mounted");
        assert!(!world.folder.path().join("elsewhere").exists());
        fs::create_dir(world.folder.path().join("mountpoint")).unwrap();
        world.refused("mountpoint", "fast", "is its disk mounted");
        // Another data directory's.
        fs::rename(&dirs.own, world.folder.path().join("kept")).unwrap();
        fs::create_dir(&dirs.own).unwrap();
        world.refused("slow", "fast", "not this data directory's");
        world.dirs("another", "fast").prepare().unwrap();
        world.refused("slow", "fast", "belongs to another data directory");
    }

    #[test]
    fn a_crash_between_the_two_signatures_is_got_over() {
        let world = World::new();
        let dirs = world.dirs("slow", "fast");
        dirs.prepare().unwrap();
        fs::remove_file(dirs.signature()).unwrap();
        dirs.prepare().unwrap();
        dirs.prepare().unwrap();
    }

    #[test]
    fn directories_that_are_mistakes_are_named() {
        let world = World::new();
        let at = |name: &str| world.folder.path().join(name);
        fs::write(at("file"), "x").unwrap();
        world.refused("slow", "file", "store.tiered.fast_dir: ");
        world.refused("file", "fast", "store.tiered.slow_dir: ");
        fs::create_dir(at("real")).unwrap();
        std::os::unix::fs::symlink(at("real"), at("link")).unwrap();
        world.refused("real", "link", "is store.tiered.slow_dir too");
        world.refused("link/slow", "real", "lie within each other");
        fs::create_dir(at("used")).unwrap();
        let lock = File::create(at("used/LOCK")).unwrap();
        lock.lock().unwrap();
        let error = world.dirs("slow", "used").prepare().unwrap_err();
        assert!(error.is_locked && error.to_string().contains("in use by another process"));
        assert!(!world.dirs("slow", "used").are_used(), "nothing was signed");
    }
}
