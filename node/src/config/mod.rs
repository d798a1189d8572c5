//! Configuration: flag over environment over file over default.
//!
//! ```text
//!   keys (one table) ─┬─► defaults ◄─ file ◄─ environment ◄─ flags ──► checks ──► Settings
//!                     ├─► config default · config show
//!                     └─► docs/configuration.md
//! ```
//! Every wrong value is found in one pass and named with its place: file and line, variable or
//! flag. A key that is not in the table is refused: a misspelt key would otherwise be a setting
//! that silently does not hold.

mod checks;
pub(crate) mod kafka_options;
mod keys;
mod load;
mod render;
mod settings;

use std::{collections::BTreeMap, fmt, path::PathBuf};

pub use render::{ShownKey, default_file, documentation};
pub use settings::{
    DataSettings, DrainSettings, KafkaSettings, ListenSettings, LogSettings, LoggingFormat,
    LoggingLevel, LoggingSettings, LsmSettings, MemorySettings, NodeSettings, PartitionSettings,
    RegistrySettings, Settings, SledSettings, StoreSettings, TieredSettings,
};

/// What the command line of `serve` and `config` sets. Everything as text, so that one parser
/// reads flags, variables and files and names what is wrong in the same words. The command line
/// must not read the variables itself: then nobody could tell where a value came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--listen`
    pub listen: Option<String>,
    /// `--control-listen`
    pub control_listen: Option<String>,
    /// `--metrics-listen`
    pub metrics_listen: Option<String>,
    /// `--cores`
    pub cores: Option<String>,
    /// `--ack`
    pub ack: Option<String>,
    /// `--node-id`
    pub node_id: Option<String>,
    /// `--unix-socket`
    pub unix_socket: Option<PathBuf>,
    /// `--registry`
    pub registry: Option<PathBuf>,
    /// `--log-format`
    pub log_format: Option<String>,
    /// `--log-level`
    pub log_level: Option<String>,
}

/// Reads an environment variable.
pub type Environment = Box<dyn Fn(&str) -> Option<String>>;

/// What the process finds around it.
pub struct Surroundings {
    /// CPUs that it may use.
    pub available_cores: u16,
    /// Its environment variables.
    pub environment: Environment,
}

/// Where a setting's value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The file.
    File {
        /// Its path.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// An environment variable.
    Environment(&'static str),
    /// A flag.
    Flag(&'static str),
}

/// Settings that hold together, and where they came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// What works and may not be meant, in words.
    pub warnings: Vec<String>,
    /// By key; keys that are missing have their default.
    origins: BTreeMap<&'static str, Origin>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where: `stateside.toml:12`, `STATESIDE_CORES`, `--cores`.
    pub place: String,
    /// What.
    pub message: String,
}

/// Everything that is wrong. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            available_cores: u16::try_from(cores).unwrap_or(u16::MAX),
            environment: Box::new(|name| {
                std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
            }),
        }
    }
}

impl Loaded {
    /// Puts the settings together.
    ///
    /// # Errors
    /// Everything that is wrong, each with its place.
    pub fn load(overrides: &Overrides, surroundings: &Surroundings) -> Result<Self, ConfigErrors> {
        load::load(overrides, surroundings)
    }

    /// Where a key's value came from.
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if at == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
