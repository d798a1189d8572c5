//! Requests that no gRPC client would make: chosen headers, chosen bytes, over plain HTTP/2.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, header::HeaderName};
use tokio::net::TcpStream;

use crate::rpc::{self, Failure};

/// How long one answer may take.
const LIMIT: Duration = Duration::from_secs(20);

/// What came back.
#[derive(Debug)]
pub struct RawAnswer {
    /// HTTP's status.
    pub http_status: u16,
    /// Headers and trailers together.
    pub headers: HeaderMap,
    /// The body: a length-prefixed message, when there is one.
    pub body: Vec<u8>,
}

impl RawAnswer {
    /// `grpc-status`, or -1 when there is none.
    pub fn grpc_status(&self) -> i32 {
        let value = self.headers.get("grpc-status").and_then(|value| value.to_str().ok());
        value.and_then(|value| value.parse().ok()).unwrap_or(-1)
    }

    /// The failure as a gRPC client would see it.
    pub fn failure(&self) -> Failure {
        let status = tonic::Status::from_header_map(&self.headers);
        Failure::from(&status.unwrap_or_else(|| tonic::Status::unknown("no grpc-status")))
    }
}

/// A gRPC message with its prefix: a flag for compression, the length, the bytes.
pub fn framed(compressed: bool, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("tests send less than 4 GiB");
    let mut bytes = vec![u8::from(compressed)];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(message);
    bytes
}

/// The headers of a usual gRPC request.
pub const GRPC_HEADERS: [(&str, &str); 2] =
    [("content-type", "application/grpc"), ("te", "trailers")];

/// Posts `body` to `path` with exactly these headers, on a connection of its own.
///
/// # Errors
/// A sentence: the connection or the stream broke.
pub async fn post(
    address: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Result<RawAnswer, String> {
    post_with_end(address, path, headers, body, true).await
}

/// The same, but the request's end never comes.
///
/// # Errors
/// As [`post`].
pub async fn post_unfinished(
    address: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Result<RawAnswer, String> {
    post_with_end(address, path, headers, body, false).await
}

async fn post_with_end(
    address: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
    ends: bool,
) -> Result<RawAnswer, String> {
    let work = async {
        let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
        let (client, connection) =
            h2::client::handshake(stream).await.map_err(|e| e.to_string())?;
        let driver = tokio::spawn(connection);
        let mut client = client.ready().await.map_err(|e| e.to_string())?;
        let mut request = Request::builder().method("POST").uri(format!("http://{address}{path}"));
        for (name, value) in headers {
            let name: HeaderName = name.parse().map_err(|_| format!("not a header: {name}"))?;
            request = request.header(name, *value);
        }
        let request = request.body(()).map_err(|e| e.to_string())?;
        let (answer, mut send) = client.send_request(request, false).map_err(|e| e.to_string())?;
        // A server may answer before it has read the body; then sending fails and that is fine.
        let _ = send.send_data(Bytes::from(body), ends);
        let answer = answer.await.map_err(|e| e.to_string())?;
        let http_status = answer.status().as_u16();
        let (parts, mut stream) = answer.into_parts();
        let mut whole = Vec::new();
        while let Some(chunk) = stream.data().await {
            let chunk = chunk.map_err(|e| e.to_string())?;
            let _ = stream.flow_control().release_capacity(chunk.len());
            whole.extend_from_slice(&chunk);
        }
        let mut headers = parts.headers;
        if let Some(trailers) = stream.trailers().await.map_err(|e| e.to_string())? {
            headers.extend(trailers);
        }
        driver.abort();
        Ok(RawAnswer { http_status, headers, body: whole })
    };
    tokio::time::timeout(LIMIT, work).await.map_err(|_| format!("no answer within {LIMIT:?}"))?
}

/// Posts a framed message as a gRPC client would.
///
/// # Errors
/// As [`post`].
pub async fn grpc(address: &str, method: &str, message: &[u8]) -> Result<RawAnswer, String> {
    post(address, &format!("/{method}"), &GRPC_HEADERS, framed(false, message)).await
}

/// The reason of a refusal.
pub fn reason(answer: &RawAnswer) -> String {
    answer.failure().reason
}

/// The name of the answer's gRPC code.
pub fn code(answer: &RawAnswer) -> &'static str {
    rpc::code_name(tonic::Code::from_i32(answer.grpc_status()))
}
