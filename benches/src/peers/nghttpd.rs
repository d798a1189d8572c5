//! nghttpd as the limit of what HTTP/2 in C does here: the same library, its own event loop, and
//! nothing behind it. To each call it answers with the bytes that a node answered, from a file of
//! the method's name, and `grpc-status: 0` as a trailer.
//!
//! What differs: it decodes nothing, keeps nothing, reads the file again for every answer (one
//! `pread` that a service would not make), and sends a few more headers.

use std::{fs, path::Path};

use stateside_e2e::ports;

use super::Server;
use crate::process::{SERVER_CPU, ServerProcess, pinned};

/// The server as a process.
pub struct Nghttpd {
    /// `host:port`.
    pub address: String,
    process: ServerProcess,
}

impl Nghttpd {
    /// Starts it with one answer for each method, given as the body with gRPC's prefix.
    ///
    /// # Errors
    /// It does not listen.
    pub fn start(folder: &Path, answers: &[(&str, Vec<u8>)]) -> Result<Self, String> {
        let documents = folder.join("nghttpd");
        for (method, body) in answers {
            let file = documents.join(method);
            let written = fs::create_dir_all(file.parent().unwrap_or(&documents))
                .and_then(|()| fs::write(&file, body));
            written.map_err(|error| format!("{}: {error}", file.display()))?;
        }
        let port = ports::free_block();
        let address = format!("127.0.0.1:{port}");
        let mut command = pinned(SERVER_CPU, "nghttpd");
        command
            .args(["--no-tls", "--address", "127.0.0.1", "--trailer", "grpc-status: 0"])
            .arg("--htdocs")
            .arg(&documents)
            .arg(port.to_string());
        let process = ServerProcess::start(&mut command, &address, &folder.join("nghttpd.output"))?;
        Ok(Self { address, process })
    }
}

impl Server for Nghttpd {
    fn pid(&self) -> u32 {
        self.process.pid()
    }
}
