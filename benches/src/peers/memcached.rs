//! memcached, one worker thread.

use std::{
    io::{BufWriter, Read, Write},
    net::TcpStream,
    path::Path,
};

use stateside_e2e::ports;

use super::Server;
use crate::process::{SERVER_CPU, ServerProcess, pinned};

/// memcached as a process.
pub struct Memcached {
    /// `host:port`.
    pub address: String,
    process: ServerProcess,
}

impl Memcached {
    /// Starts it with so many MiB for items, so that none is evicted.
    ///
    /// # Errors
    /// It does not listen.
    pub fn start(folder: &Path, memory_mib: u32) -> Result<Self, String> {
        let port = ports::free_block();
        let address = format!("127.0.0.1:{port}");
        let mut command = pinned(SERVER_CPU, "memcached");
        command
            // The user matters to root alone: memcached does not run as root unasked.
            .args(["-u", "root", "-l", "127.0.0.1", "-U", "0", "-t", "1"])
            .args(["-m", &memory_mib.to_string(), "-p", &port.to_string()]);
        let output = folder.join("memcached.output");
        let process = ServerProcess::start(&mut command, &address, &output)?;
        Ok(Self { address, process })
    }

    /// Sets every key to the same value; answers how many items there are then.
    ///
    /// # Errors
    /// The connection broke.
    pub fn fill(&self, keys: impl Iterator<Item = Vec<u8>>, value: &[u8]) -> Result<u64, String> {
        let said = |error: std::io::Error| format!("memcached: {error}");
        let stream = TcpStream::connect(&self.address).map_err(said)?;
        let mut requests = BufWriter::with_capacity(1 << 20, stream);
        for key in keys {
            requests
                .write_all(b"set ")
                .and_then(|()| requests.write_all(&key))
                .and_then(|()| write!(requests, " 0 0 {} noreply\r\n", value.len()))
                .and_then(|()| requests.write_all(value))
                .and_then(|()| requests.write_all(b"\r\n"))
                .map_err(said)?;
        }
        requests.write_all(b"stats\r\nquit\r\n").map_err(said)?;
        let mut stream = requests.into_inner().map_err(|error| said(error.into_error()))?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(said)?;
        text.lines()
            .find_map(|line| line.strip_prefix("STAT curr_items ")?.trim().parse().ok())
            .ok_or_else(|| "memcached does not tell how many items it has".to_owned())
    }
}

impl Server for Memcached {
    fn pid(&self) -> u32 {
        self.process.pid()
    }
}
