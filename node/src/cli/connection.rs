//! The flags that lead to a node, and the runtime that the client lives in.

use std::{ffi::OsString, future::Future, os::unix::ffi::OsStringExt, time::Duration};

use clap::Args;
use stateside_client::{Ack, Client, ControlClient, Options, RequestId};
use stateside_types::limits::REQUEST_CLIENT_BYTES_MAX;

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

/// The name of a write.
#[derive(Args, Debug)]
pub(super) struct RequestIdArgs {
    /// Name the write: however often it is sent under this id it is executed once, and answered alike.
    /// CLIENT is 1 to 32 bytes, one for many requests; NUMBER counts up from 1.
    #[arg(long, value_name = "CLIENT:NUMBER", value_parser = parse_request_id)]
    pub(super) request_id: Option<RequestId>,
}

fn parse_request_id(text: &str) -> Result<RequestId, String> {
    let wrong = || format!("`{text}` is not CLIENT:NUMBER, such as billing:17");
    let (client, number) = text.rsplit_once(':').ok_or_else(wrong)?;
    let number = number.parse().ok().filter(|number| *number > 0).ok_or_else(wrong)?;
    if !(1..=REQUEST_CLIENT_BYTES_MAX).contains(&client.len()) {
        let most = REQUEST_CLIENT_BYTES_MAX;
        return Err(format!("the client `{client}` has {} bytes, not 1 to {most}", client.len()));
    }
    Ok(RequestId { client: client.into(), number, settled: 0 })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_a_client_and_a_number() {
        let id = |client: &str, number| RequestId { client: client.into(), number, settled: 0 };
        assert_eq!(parse_request_id("billing:17"), Ok(id("billing", 17)));
        assert_eq!(parse_request_id("a:b:1"), Ok(id("a:b", 1)));
        let long = format!("{}:1", "x".repeat(33));
        for wrong in ["", "billing", "billing:", "billing:0", "billing:-1", ":1", &long] {
            assert!(parse_request_id(wrong).is_err(), "{wrong}");
        }
    }
}
