//! What the node is, settled before its cores start: data directory, manifest, registry.
//!
//! ```text
//!   open and lock DATA ─► manifest? ─ no ─► fresh: registry (own: 8 partitions a core)
//!                            │ yes
//!                            ▼
//!   registry ─► partitions fit to the cores ─► additions and settings ─► manifest ─► sweep
//! ```
//! Additions are taken into the manifest here, all in one write, so that a first start with a
//! thousand partitions does not write a thousand manifests. Removals wait for the manager: only
//! the cores can tell what a partition holds.

use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use stateside_partition_mgr::{Defaults, Holding, Manifest, Move, Step, plan, rebalance};
use stateside_registry::{FileRegistry, RegistryError};
use stateside_types::{DesiredSet, limits};

use crate::{
    config::Settings,
    data_dir::{DataDir, DataDirError},
};

/// What the start needs to know.
#[derive(Debug)]
pub struct Bootstrap {
    /// Locked as long as this lives.
    pub data_dir: Arc<DataDir>,
    /// As it is on disk; every partition in it is for a core to recover or create.
    pub manifest: Manifest,
    /// Where the desired set is declared.
    pub registry: FileRegistry,
    /// The desired set.
    pub desired: DesiredSet,
    /// Partitions that changed their core because the number of cores changed.
    pub moves: Vec<Move>,
    /// Whether this is the first start.
    pub is_fresh: bool,
}

/// Why the node cannot start. Prints as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The registry cannot be used.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The data directory is another node's.
    #[error(
        "{path} belongs to the node `{found}`, and node.id says `{configured}`: choose the right data directory, or leave node.id out"
    )]
    OtherNode {
        /// The data directory.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// What the settings say.
        configured: String,
    },
    /// More partitions than a node holds.
    #[error("{cores} cores with {per_core} partitions each are more than the {max} partitions that a node holds: declare the partitions in a registry file", per_core = limits::DEFAULT_PARTITIONS_PER_CORE, max = limits::PARTITIONS_PER_NODE_MAX)]
    TooManyCores {
        /// Cores.
        cores: u16,
    },
    /// The manifest cannot be written.
    #[error("{path}: the manifest cannot be written: {source}")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Settles what the node is. Blocks; writes manifest and registry at the first start.
///
/// # Errors
/// [`BootstrapError`].
pub fn bootstrap(settings: &Settings) -> Result<Bootstrap, BootstrapError> {
    let data_dir = DataDir::open(&settings.node.data_dir)?;
    let on_disk = data_dir.read_manifest()?;
    let (registry, desired) = open_registry(settings, &data_dir, on_disk.as_ref())?;
    let cores = settings.node.cores;
    let mut manifest = match &on_disk {
        Some(manifest) => manifest.clone(),
        None => {
            let id = settings.node.id.clone().unwrap_or_else(host_name);
            Manifest::new(id, now_unix_ms(), cores)
        }
    };
    if let Some(configured) = &settings.node.id
        && *configured != manifest.node_id
    {
        return Err(BootstrapError::OtherNode {
            path: data_dir.root().to_owned(),
            found: manifest.node_id,
            configured: configured.clone(),
        });
    }
    let moves = rebalance(&mut manifest, cores);
    take_on(&mut manifest, &desired, &defaults(settings));
    if on_disk.as_ref() != Some(&manifest) {
        data_dir.write_manifest(&manifest).map_err(|error| BootstrapError::Manifest {
            path: data_dir.manifest(),
            source: error.into(),
        })?;
    }
    for path in data_dir.sweep(&manifest)? {
        tracing::info!(path = %path.display(), "deleted what the last run left unfinished");
    }
    let is_fresh = on_disk.is_none();
    Ok(Bootstrap { data_dir: Arc::new(data_dir), manifest, registry, desired, moves, is_fresh })
}

/// What partitions get that their declaration leaves out.
pub(crate) fn defaults(settings: &Settings) -> Defaults {
    let partition = &settings.partition;
    Defaults { store: partition.store, ack: partition.ack, pipeline: partition.pipeline.clone() }
}

/// Milliseconds since 1970.
pub(crate) fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn open_registry(
    settings: &Settings,
    data_dir: &DataDir,
    manifest: Option<&Manifest>,
) -> Result<(FileRegistry, DesiredSet), BootstrapError> {
    if let Some(file) = &settings.registry.file {
        return Ok(FileRegistry::open(file)?);
    }
    let own = data_dir.registry();
    if !own.exists() {
        let set = match manifest {
            // Somebody deleted it: what the node has is the best guess at what it should have.
            Some(manifest) => {
                tracing::warn!(path = %own.display(), "the node's registry is missing and is made anew from the manifest");
                manifest.as_desired()
            }
            None => {
                let cores = settings.node.cores;
                let count = u32::from(cores) * limits::DEFAULT_PARTITIONS_PER_CORE;
                if count as usize > limits::PARTITIONS_PER_NODE_MAX {
                    return Err(BootstrapError::TooManyCores { cores });
                }
                DesiredSet::split_evenly(count)
            }
        };
        FileRegistry::create(&own, &set)?;
    }
    Ok(FileRegistry::open(&own)?)
}

/// Takes additions and settings into the manifest. When something is to be removed as well, all
/// additions wait for the manager, in case they need the range that becomes free.
fn take_on(manifest: &mut Manifest, desired: &DesiredSet, defaults: &Defaults) {
    let plan = plan(manifest, desired, defaults, &BTreeSet::new(), |_| Holding::Unknown);
    let removes = plan.steps.iter().any(|step| matches!(step, Step::Remove { .. }));
    for step in &plan.steps {
        match step {
            // Its records have to be copied first.
            Step::Remove { .. } | Step::ChangeStore { .. } => {}
            Step::Add(_) if removes => {}
            Step::Add(_) | Step::Update { .. } => manifest.apply(step),
        }
    }
}

/// The host's name; where it has none that can be a node's id, a name that is unlikely to be
/// anybody else's.
fn host_name() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    let is_usable = !name.is_empty()
        && name.len() <= limits::NODE_ID_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_graphic());
    if is_usable {
        name.into_owned()
    } else {
        format!("node-{:x}-{}", now_unix_ms(), std::process::id())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use stateside_types::{Ack, PartitionId};

    use super::*;
    use crate::config::Surroundings;

    fn settings(dir: &tempfile::TempDir, cores: u16) -> Settings {
        let surroundings = Surroundings { available_cores: cores, environment: Box::new(|_| None) };
        let mut settings = Settings::defaults(&surroundings);
        settings.node.data_dir = dir.path().join("data");
        settings
    }

    fn core_loads(bootstrap: &Bootstrap) -> Vec<usize> {
        bootstrap.manifest.core_loads()
    }

    #[test]
    fn a_first_start_has_eight_partitions_a_core_and_a_second_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let first = bootstrap(&settings(&dir, 2)).unwrap();
        assert!(first.is_fresh);
        assert_eq!(core_loads(&first), [8, 8]);
        assert_eq!(first.manifest.as_desired().partitions().len(), 16);
        let manifest = first.manifest.clone();
        drop(first);
        let second = bootstrap(&settings(&dir, 2)).unwrap();
        assert!(!second.is_fresh && second.moves.is_empty());
        assert_eq!(second.manifest, manifest);
    }

    #[test]
    fn another_number_of_cores_moves_partitions_and_adds_none() {
        let dir = tempfile::tempdir().unwrap();
        drop(bootstrap(&settings(&dir, 1)).unwrap());
        let more = bootstrap(&settings(&dir, 2)).unwrap();
        assert_eq!((core_loads(&more), more.moves.len()), (vec![4, 4], 4));
        assert_eq!(more.manifest.placement, 2);
        let on_disk = more.data_dir.read_manifest().unwrap();
        assert_eq!(on_disk.as_ref(), Some(&more.manifest));
    }

    #[test]
    fn a_registry_file_decides_and_a_broken_one_refuses_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("registry.toml");
        let mut settings = settings(&dir, 1);
        settings.registry.file = Some(file.clone());
        let missing = bootstrap(&settings).unwrap_err().to_string();
        assert!(missing.ends_with("the registry file does not exist"), "{missing}");
        fs::write(&file, "[[partition]]\nid = 3\nrange = \"0..\"\nack = \"memory\"\n").unwrap();
        let started = bootstrap(&settings).unwrap();
        assert_eq!(started.manifest.partitions.len(), 1);
        assert_eq!(started.manifest.partitions[&PartitionId(3)].spec.ack, Ack::Memory);
        assert!(!started.data_dir.registry().exists());
        drop(started);
        fs::write(&file, "[[partition]]\nid = 3\nrnge = \"0..\"\n").unwrap();
        let broken = bootstrap(&settings).unwrap_err().to_string();
        assert!(
            broken.starts_with(&format!("{}:3: unknown key `rnge`", file.display())),
            "{broken}"
        );
    }

    #[test]
    fn what_the_registry_dropped_stays_until_the_manager_asked_its_core() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("registry.toml");
        let mut settings = settings(&dir, 1);
        settings.registry.file = Some(file.clone());
        fs::write(&file, "[[partition]]\nid = 1\nrange = \"0..\"\n").unwrap();
        drop(bootstrap(&settings).unwrap());
        for text in ["", "[[removed]]\nid = 1\n[[partition]]\nid = 2\nrange = \"0..\"\n"] {
            fs::write(&file, text).unwrap();
            let started = bootstrap(&settings).unwrap();
            let ids: Vec<_> = started.manifest.partitions.keys().collect();
            assert_eq!(ids, [&PartitionId(1)]);
        }
    }

    #[test]
    fn a_data_directory_belongs_to_one_node() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(&dir, 1);
        settings.node.id = Some("vm-1".to_owned());
        drop(bootstrap(&settings).unwrap());
        settings.node.id = None;
        assert_eq!(bootstrap(&settings).unwrap().manifest.node_id, "vm-1");
        settings.node.id = Some("vm-2".to_owned());
        let error = bootstrap(&settings).unwrap_err().to_string();
        assert!(error.contains("belongs to the node `vm-1`, and node.id says `vm-2`"), "{error}");
    }

    #[test]
    fn a_lost_registry_is_made_anew_from_the_manifest_and_a_lost_manifest_beside_data_is_an_error()
    {
        let dir = tempfile::tempdir().unwrap();
        let first = bootstrap(&settings(&dir, 1)).unwrap();
        let (manifest, registry) = (first.data_dir.manifest(), first.data_dir.registry());
        let log = first.data_dir.log().join("segment");
        drop(first);
        fs::remove_file(&registry).unwrap();
        assert_eq!(bootstrap(&settings(&dir, 1)).unwrap().desired.partitions().len(), 8);
        fs::remove_file(&manifest).unwrap();
        fs::write(log, "x").unwrap();
        let error = bootstrap(&settings(&dir, 1)).unwrap_err();
        assert!(matches!(error, BootstrapError::DataDir(DataDirError::ManifestMissing { .. })));
    }
}
