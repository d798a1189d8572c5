//! Calls to a node over plain tonic, and what is in a failure's details.

use std::{collections::BTreeMap, time::Duration};

use prost::Message;
use stateside_proto::v1::{
    Ack, GetRequest, Record, RemoveEntry, RemoveRequest, TopologyRequest, TopologyResponse,
    UpsertEntry, UpsertRequest, WriteResult, control_plane_client::ControlPlaneClient,
    data_plane_client::DataPlaneClient,
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

/// Answers may be as large as the node makes them.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The reason of a refusal that a client answers with patience.
pub const OVERLOADED: &str = "OVERLOADED";
/// How often it is patient.
pub const OVERLOADED_RETRIES: u32 = 500;
const OVERLOADED_DELAY: Duration = Duration::from_millis(20);

/// The data plane's client.
pub type Data = DataPlaneClient<Channel>;
/// The control plane's client.
pub type Control = ControlPlaneClient<Channel>;

/// Connects to a data plane at `host:port`.
///
/// # Errors
/// The connection could not be made.
pub async fn data(address: &str) -> Result<Data, tonic::transport::Error> {
    Ok(DataPlaneClient::new(channel(address).await?).max_decoding_message_size(ANSWER_BYTES_MAX))
}

/// Connects to a control plane at `host:port`.
///
/// # Errors
/// The connection could not be made.
pub async fn control(address: &str) -> Result<Control, tonic::transport::Error> {
    Ok(ControlPlaneClient::new(channel(address).await?))
}

/// An HTTP/2 connection to `host:port`.
///
/// # Errors
/// The connection could not be made.
pub async fn channel(address: &str) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(Duration::from_secs(5))
        // A call that never ends fails its test.
        .timeout(Duration::from_secs(60))
        .tcp_nodelay(true)
        .connect()
        .await
}

/// An entry without condition.
pub fn entry(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> UpsertEntry {
    UpsertEntry { key: key.into(), value: value.into(), ..UpsertEntry::default() }
}

/// Writes one record with the node's default acknowledgement.
///
/// # Errors
/// The node's refusal.
pub async fn put(
    data: &mut Data,
    key: &str,
    value: impl Into<Vec<u8>>,
) -> Result<WriteResult, Status> {
    put_all(data, vec![entry(key, value)]).await.map(|mut results| results.remove(0))
}

/// Writes a batch. Refused as `OVERLOADED` it is sent again after the delay that the node asks
/// for, as every client should.
///
/// # Errors
/// The node's refusal.
pub async fn put_all(
    data: &mut Data,
    entries: Vec<UpsertEntry>,
) -> Result<Vec<WriteResult>, Status> {
    let request = UpsertRequest { entries, ack: Ack::Default.into(), ..UpsertRequest::default() };
    for _ in 0..OVERLOADED_RETRIES {
        match data.upsert(request.clone()).await {
            Err(status) if reason(&status) == OVERLOADED => {
                let delay = Failure::from(&status).retry_after;
                tokio::time::sleep(delay.unwrap_or(OVERLOADED_DELAY)).await;
            }
            other => return Ok(other?.into_inner().results),
        }
    }
    Ok(data.upsert(request).await?.into_inner().results)
}

/// Reads one record.
///
/// # Errors
/// The node's refusal.
pub async fn get(data: &mut Data, key: &str) -> Result<Record, Status> {
    let request =
        GetRequest { keys: vec![key.into()], routing_key: Vec::new(), ..Default::default() };
    Ok(data.get(request).await?.into_inner().records.remove(0))
}

/// Removes one record.
///
/// # Errors
/// The node's refusal.
pub async fn remove(data: &mut Data, key: &str) -> Result<WriteResult, Status> {
    let request = RemoveRequest {
        entries: vec![RemoveEntry { key: key.into(), if_version: None }],
        ack: Ack::Default.into(),
        ..RemoveRequest::default()
    };
    Ok(data.remove(request).await?.into_inner().results.remove(0))
}

/// Where each partition lives.
///
/// # Errors
/// The node's refusal.
pub async fn topology(data: &mut Data) -> Result<TopologyResponse, Status> {
    Ok(data.topology(TopologyRequest {}).await?.into_inner())
}

/// A failed call as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// gRPC's code, in its upper-case name.
    pub code: String,
    /// For people.
    pub message: String,
    /// `ErrorInfo.reason`, empty when there is no ErrorInfo.
    pub reason: String,
    /// `ErrorInfo.domain`.
    pub domain: String,
    /// `ErrorInfo.metadata`.
    pub metadata: BTreeMap<String, String>,
    /// `RetryInfo.retry_delay`.
    pub retry_after: Option<Duration>,
}

impl From<&Status> for Failure {
    fn from(status: &Status) -> Self {
        let mut failure = Self {
            code: code_name(status.code()).to_owned(),
            message: status.message().to_owned(),
            reason: String::new(),
            domain: String::new(),
            metadata: BTreeMap::new(),
            retry_after: None,
        };
        failure.read_details(status.details());
        failure
    }
}

impl Failure {
    /// Takes ErrorInfo and RetryInfo from an encoded `google.rpc.Status`.
    fn read_details(&mut self, bytes: &[u8]) {
        let details = RpcStatus::decode(bytes).map(|status| status.details).unwrap_or_default();
        for detail in details {
            match detail.type_url.rsplit('/').next() {
                Some("google.rpc.ErrorInfo") => {
                    if let Ok(info) = ErrorInfo::decode(detail.value.as_slice()) {
                        self.reason = info.reason;
                        self.domain = info.domain;
                        self.metadata = info.metadata;
                    }
                }
                Some("google.rpc.RetryInfo") => {
                    let delay = RetryInfo::decode(detail.value.as_slice()).ok();
                    self.retry_after = delay
                        .and_then(|info| info.retry_delay)
                        .and_then(|delay| Duration::try_from(delay).ok());
                }
                _ => {}
            }
        }
    }
}

/// The reason in a failed call's details, or an empty string.
pub fn reason(status: &Status) -> String {
    Failure::from(status).reason
}

/// gRPC's upper-case name of a code.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// `google.rpc.ErrorInfo`.
#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(btree_map = "string, string", tag = "3")]
    metadata: BTreeMap<String, String>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_and_delay_are_read_from_the_details() {
        let info = ErrorInfo {
            reason: "OVERLOADED".into(),
            domain: "stateside.dev".into(),
            metadata: [("core".to_owned(), "1".to_owned())].into(),
        };
        let delay = prost_types::Duration { seconds: 0, nanos: 20_000_000 };
        let any = |name: &str, value: Vec<u8>| prost_types::Any {
            type_url: format!("type.googleapis.com/google.rpc.{name}"),
            value,
        };
        let details = RpcStatus {
            details: vec![
                any("ErrorInfo", info.encode_to_vec()),
                any("RetryInfo", RetryInfo { retry_delay: Some(delay) }.encode_to_vec()),
            ],
        };
        let status =
            Status::with_details(Code::ResourceExhausted, "busy", details.encode_to_vec().into());
        let failure = Failure::from(&status);
        assert_eq!(failure.reason, "OVERLOADED");
        assert_eq!(failure.retry_after, Some(Duration::from_millis(20)));
        assert_eq!(failure.metadata["core"], "1");
        assert_eq!(failure.code, "RESOURCE_EXHAUSTED");
    }

    #[test]
    fn details_that_are_no_status_are_ignored() {
        let status = Status::with_details(Code::Internal, "x", vec![0xff; 9].into());
        assert_eq!(reason(&status), "");
    }
}
