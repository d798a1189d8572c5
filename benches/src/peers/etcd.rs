//! etcd, one member, and its `Put`. It speaks gRPC, so the load is the same as ours.

use std::{path::Path, time::Duration};

use prost::Message;
use stateside_e2e::{node_process::http_get, ports, until::until};

use super::{Counters, Server, metric};
use crate::process::{SERVER_CPU, ServerProcess, pinned};

/// The method that writes.
pub const PUT: &str = "etcdserverpb.KV/Put";

/// `etcdserverpb.PutRequest`, what of it is used.
#[derive(Clone, PartialEq, Message)]
pub struct PutRequest {
    /// The key.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// The value.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// etcd as a process.
pub struct Etcd {
    /// `host:port` of its clients.
    pub address: String,
    process: ServerProcess,
}

impl Etcd {
    /// Starts it with its data in `folder`. Every write is on disk before its answer: etcd's
    /// default.
    ///
    /// # Errors
    /// It does not listen.
    ///
    /// # Panics
    /// It listens and does not become healthy.
    pub fn start(folder: &Path) -> Result<Self, String> {
        let port = ports::free_block();
        let address = format!("127.0.0.1:{port}");
        let clients = format!("http://{address}");
        let peers = format!("http://127.0.0.1:{}", port + 1);
        let mut command = pinned(SERVER_CPU, "etcd");
        command
            .arg("--data-dir")
            .arg(folder.join(format!("etcd-{port}")))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .arg("--initial-cluster")
            .arg(format!("default={peers}"));
        let process = ServerProcess::start(&mut command, &address, &folder.join("etcd.output"))?;
        // It listens before it has elected itself.
        until("etcd is healthy", Duration::from_secs(30), || {
            http_get(&address, "/health").filter(|(status, _)| *status == 200)
        });
        Ok(Self { address, process })
    }
}

impl Server for Etcd {
    fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn counters(&self) -> Result<Counters, String> {
        let text = match http_get(&self.address, "/metrics") {
            Some((200, text)) => text,
            _ => return Err("etcd does not tell its metrics".to_owned()),
        };
        let refused = metric(&text, "grpc_server_handled_total", |line| {
            // Calls that the load breaks off at its end are answered Canceled or Unknown; the load
            // does not count them either.
            let refusals = ["grpc_code=\"ResourceExhausted\"", "grpc_code=\"Unavailable\""];
            line.contains("\"Put\"") && refusals.iter().any(|code| line.contains(code))
        });
        let disk_writes = metric(&text, "etcd_disk_wal_fsync_duration_seconds_count", |_| true);
        Ok(Counters {
            refused: refused as u64,
            disk_writes: disk_writes as u64,
            ..Counters::default()
        })
    }
}
