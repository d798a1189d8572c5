//! The same contract on tonic and tokio: the program `tonic-peer`.

use std::path::Path;

use stateside_e2e::{ports, requirements::profile_folder};

use super::Server;
use crate::process::{SERVER_CPU, ServerProcess, pinned};

/// The service as a process.
pub struct Tonic {
    /// `host:port`.
    pub address: String,
    process: ServerProcess,
}

impl Tonic {
    /// Starts it; its log goes into `folder`.
    ///
    /// # Errors
    /// It does not listen.
    pub fn start(folder: &Path) -> Result<Self, String> {
        let address = format!("127.0.0.1:{}", ports::free_block());
        let mut command = pinned(SERVER_CPU, profile_folder().join("tonic-peer"));
        command.arg(&address).arg(folder.join("tonic.log"));
        let process = ServerProcess::start(&mut command, &address, &folder.join("tonic.output"))?;
        Ok(Self { address, process })
    }
}

impl Server for Tonic {
    fn pid(&self) -> u32 {
        self.process.pid()
    }
}
