//! The control-plane client: thin wrappers with the data plane's errors.
//!
//! Nothing is retried here: an operator's change is reported as it went, and repeated by whoever
//! gave it.

use std::time::Duration;

use stateside_proto::v1::{self, control_plane_client::ControlPlaneClient};
use stateside_types::limits::RESPONSE_BYTES_MAX;
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status};

use crate::{Endpoint, Error, error::Effect, link::Link};

/// A client of one node's control plane: one connection. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ControlClient {
    link: Link,
    deadline: Duration,
}

impl ControlClient {
    /// Connects. `deadline` bounds the connecting and then each call; snapshots and restores of
    /// large partitions take minutes.
    ///
    /// # Errors
    /// [`Error::InvalidEndpoint`], [`Error::Unreachable`].
    pub async fn connect(endpoint: &str, deadline: Duration) -> Result<Self, Error> {
        let endpoint: Endpoint = endpoint.parse()?;
        let until = Instant::now() + deadline.min(Duration::from_secs(10));
        Ok(Self { link: Link::connect(&endpoint, until).await?, deadline })
    }

    /// Adds an empty partition and waits until it serves.
    ///
    /// # Errors
    /// As the contract says.
    pub async fn add_partition(
        &self,
        request: v1::AddPartitionRequest,
    ) -> Result<v1::AddPartitionResponse, Error> {
        self.call(request, WRITE, async |mut client, request| client.add_partition(request).await)
            .await
    }

    /// Removes a partition with its records.
    ///
    /// # Errors
    /// As the contract says.
    pub async fn remove_partition(
        &self,
        request: v1::RemovePartitionRequest,
    ) -> Result<v1::RemovePartitionResponse, Error> {
        self.call(request, WRITE, async |mut client, request| {
            client.remove_partition(request).await
        })
        .await
    }

    /// Lists the partitions of the node.
    ///
    /// # Errors
    /// As the contract says.
    pub async fn list_partitions(&self) -> Result<Vec<v1::Partition>, Error> {
        let request = v1::ListPartitionsRequest {};
        let answer: v1::ListPartitionsResponse = self
            .call(request, Effect::Read, async |mut client, request| {
                client.list_partitions(request).await
            })
            .await?;
        Ok(answer.partitions)
    }

    /// Writes a snapshot of a partition to a new file on the node.
    ///
    /// # Errors
    /// As the contract says.
    pub async fn snapshot(
        &self,
        request: v1::SnapshotRequest,
    ) -> Result<v1::SnapshotResponse, Error> {
        self.call(request, WRITE, async |mut client, request| client.snapshot(request).await).await
    }

    /// Replaces a partition's records by those of a snapshot.
    ///
    /// # Errors
    /// As the contract says.
    pub async fn restore(&self, request: v1::RestoreRequest) -> Result<v1::RestoreResponse, Error> {
        self.call(request, WRITE, async |mut client, request| client.restore(request).await).await
    }

    /// Moves a partition's records to another store while it serves.
    ///
    /// # Errors
    /// As the contract says.
    pub async fn change_store(
        &self,
        request: v1::ChangeStoreRequest,
    ) -> Result<v1::ChangeStoreResponse, Error> {
        self.call(request, WRITE, async |mut client, request| client.change_store(request).await)
            .await
    }

    /// The node's state.
    ///
    /// # Errors
    /// As the contract says.
    pub async fn status(&self) -> Result<v1::StatusResponse, Error> {
        let request = v1::StatusRequest {};
        self.call(request, Effect::Read, async |mut client, request| client.status(request).await)
            .await
    }

    async fn call<Q, A>(
        &self,
        request: Q,
        effect: Effect,
        method: impl AsyncFnOnce(ControlPlaneClient<Link>, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Error> {
        let client = ControlPlaneClient::with_origin(self.link.clone(), self.link.origin())
            .max_decoding_message_size(RESPONSE_BYTES_MAX);
        let mut request = Request::new(request);
        request.set_timeout(self.deadline);
        let until = Instant::now() + self.deadline;
        let ended = timeout_at(until, method(client, request)).await;
        self.link.answer(ended, effect, self.deadline)
    }
}

const WRITE: Effect = Effect::Write { only_once: true };
