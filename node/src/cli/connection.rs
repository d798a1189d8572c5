//! The flags that lead to a node, and the runtime that the client lives in.

use std::{ffi::OsString, future::Future, os::unix::ffi::OsStringExt, time::Duration};

use clap::Args;
use stateside_client::{Ack, Client, ControlClient, Options};

use super::{failure::Failure, quantity::parse_duration};
use crate::exit::Exit;

/// To the data plane.
#[derive(Args, Debug)]
pub(super) struct DataArgs {
    /// Node to talk to: HOST:PORT or unix:PATH.
    #[arg(
        long,
        env = "STATESIDE_ENDPOINT",
        default_value = "127.0.0.1:7400",
        value_name = "ADDRESS",
        display_order = 800
    )]
    pub(super) endpoint: String,
}

/// Time for one call.
#[derive(Args, Debug)]
pub(super) struct TimeoutArgs {
    /// Time that a call may take, retries included.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration,
        display_order = 801)]
    pub(super) timeout: Duration,
}

/// To the control plane.
#[derive(Args, Debug)]
pub(super) struct ControlArgs {
    /// Control plane of the node: HOST:PORT or unix:PATH.
    #[arg(
        long,
        visible_alias = "endpoint",
        env = "STATESIDE_CONTROL_ENDPOINT",
        default_value = "127.0.0.1:7401",
        value_name = "ADDRESS",
        display_order = 800
    )]
    pub(super) control_endpoint: String,
}

/// Placement of a record.
#[derive(Args, Debug)]
pub(super) struct RoutingKeyArgs {
    /// Place the record by this instead of its key; needed again to read and remove it.
    #[arg(long, value_name = "KEY")]
    pub(super) routing_key: Option<OsString>,
}

impl RoutingKeyArgs {
    pub(super) fn into_bytes(self) -> Option<Vec<u8>> {
        self.routing_key.map(OsString::into_vec)
    }
}

/// Acknowledgement of a write.
#[derive(Args, Debug)]
pub(super) struct AckArgs {
    /// What to wait for: durable (on disk) or memory; never less than the partition's default.
    #[arg(long, value_name = "LEVEL")]
    pub(super) ack: Option<Ack>,
}

impl DataArgs {
    /// A client for a single call. It does not read the topology: that would be a call more than
    /// the one hop inside the node that it saves.
    pub(super) async fn connect(&self, timeout: &TimeoutArgs) -> Result<Client, Failure> {
        let options = Options { routing: false, deadline: timeout.timeout, ..Options::default() };
        Ok(Client::connect(&self.endpoint, options).await?)
    }

    /// A client that knows where partitions are.
    pub(super) async fn connect_routed(&self, timeout: &TimeoutArgs) -> Result<Client, Failure> {
        let options = Options { deadline: timeout.timeout, ..Options::default() };
        Ok(Client::connect(&self.endpoint, options).await?)
    }
}

impl ControlArgs {
    pub(super) async fn connect(&self, timeout: Duration) -> Result<ControlClient, Failure> {
        Ok(ControlClient::connect(&self.control_endpoint, timeout).await?)
    }
}

/// Runs a verb to its end on this thread.
pub(super) fn block_on<T>(verb: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failure, format!("cannot start: {error}")))?;
    runtime.block_on(verb)
}
