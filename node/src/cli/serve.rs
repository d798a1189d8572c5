//! `stateside serve`: the flags. What they mean together with environment and file is for the
//! configuration to say: every value is passed on as text, so that one parser reads flags,
//! variables and files and names what is wrong in the same words.

use std::path::PathBuf;

use clap::Args;

use super::failure::Failure;
use crate::{
    config::{ConfigErrors, Loaded, Overrides, Surroundings},
    exit::Exit,
    serve::serve,
};

/// Run a node until SIGTERM.
///
/// Each setting is taken from its flag, else from its environment variable, else from the
/// configuration file, else it has its default. `stateside config default` prints every key of the
/// file with its meaning.
///
/// SIGTERM stops the node: it takes no more calls, finishes those under way, brings everything to disk
/// and exits with 0. A second SIGTERM stops it at once; acknowledged durable writes are safe
/// either way.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(after_long_help = Exit::table())]
pub struct ServeArgs {
    /// The settings, shared with `config check` and `config show`.
    #[command(flatten)]
    pub settings: SettingArgs,
}

/// The settings that have a flag. `None`: not given.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingArgs {
    /// Directory of log, snapshots, stores and manifest [env: STATESIDE_DATA_DIR] [default:
    /// stateside-data].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Configuration file, TOML [env: STATESIDE_CONFIG].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Data plane, shared by all cores [env: STATESIDE_LISTEN] [default: 127.0.0.1:7400].
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<String>,
    /// Control plane; privileged [env: STATESIDE_CONTROL_LISTEN] [default: 127.0.0.1:7401].
    #[arg(long, value_name = "IP:PORT")]
    pub control_listen: Option<String>,
    /// Prometheus metrics and probes [env: STATESIDE_METRICS_LISTEN] [default: 127.0.0.1:7402].
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_listen: Option<String>,
    /// Unix socket for the data plane, besides the port [env: STATESIDE_UNIX_SOCKET].
    #[arg(long, value_name = "PATH")]
    pub unix_socket: Option<PathBuf>,
    /// Executor threads, each pinned to a CPU [env: STATESIDE_CORES] [default: one per CPU].
    #[arg(long, value_name = "N")]
    pub cores: Option<String>,
    /// What an answer to a write promises: durable or memory [env: STATESIDE_ACK] [default: durable].
    #[arg(long, value_name = "LEVEL")]
    pub ack: Option<String>,
    /// Name of the node in its fleet [env: STATESIDE_NODE_ID] [default: the host's name].
    #[arg(long, value_name = "ID")]
    pub node_id: Option<String>,
    /// File that declares the partitions, TOML, watched for changes [env: STATESIDE_REGISTRY].
    #[arg(long, value_name = "FILE")]
    pub registry: Option<PathBuf>,
    /// Log lines for people or for programs: text or json [env: STATESIDE_LOG_FORMAT] [default: text].
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Least important lines logged: error, warn, info, debug, trace [env: STATESIDE_LOG_LEVEL]
    /// [default: info].
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
}

impl SettingArgs {
    /// The settings of flags, environment and file together.
    ///
    /// # Errors
    /// Everything that is wrong, each with its place.
    pub(super) fn load(&self) -> Result<Loaded, ConfigErrors> {
        let overrides = Overrides {
            config: self.config.clone(),
            data_dir: self.data_dir.clone(),
            listen: self.listen.clone(),
            control_listen: self.control_listen.clone(),
            metrics_listen: self.metrics_listen.clone(),
            cores: self.cores.clone(),
            ack: self.ack.clone(),
            node_id: self.node_id.clone(),
            unix_socket: self.unix_socket.clone(),
            registry: self.registry.clone(),
            log_format: self.log_format.clone(),
            log_level: self.log_level.clone(),
        };
        Loaded::load(&overrides, &Surroundings::of_process())
    }
}

/// Runs the node.
pub(super) fn run(args: &ServeArgs) -> Result<Exit, Failure> {
    let loaded = args.settings.load().map_err(|e| Failure::new(Exit::ConfigInvalid, e))?;
    Ok(serve(&loaded))
}
