//! Requests that never become calls: what was wrong, and what the client is told.
//!
//! Decided inside library callbacks, where nothing can be sent, so a rejection is a small value
//! that becomes a [`Refusal`] later.

use stateside_types::{Reason, Refusal};

use crate::endpoint::SessionConfig;

/// Why a request is answered without anyone having seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// Not HTTP: the stream is reset, nothing is answered.
    Malformed,
    NotPost,
    NotGrpc,
    UnknownMethod,
    BadTimeout,
    HeadersTooLarge,
    /// The length that the prefix announced.
    MessageTooLarge(u32),
    Compressed,
    /// The prefix's first byte is neither 0 nor 1.
    BadFlag(u8),
    NoMessage,
    Truncated,
    SecondMessage,
    /// The connection, or the core, holds all the request bytes it may.
    RequestBytes,
    DeadlineExceeded,
}

impl Rejection {
    /// The HTTP status: gRPC wants 200 for everything that reached gRPC.
    /// Source: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
    pub(crate) const fn http_status(self) -> &'static str {
        match self {
            Self::NotPost => "405",
            Self::NotGrpc => "415",
            _ => "200",
        }
    }

    /// What the client is told.
    pub(crate) fn refusal(self, config: &SessionConfig) -> Refusal {
        match self {
            Self::Malformed => {
                Refusal::new(Reason::MalformedRequest, "the request is not valid HTTP/2")
            }
            Self::NotPost => {
                Refusal::new(Reason::MalformedRequest, "gRPC calls are HTTP POST requests")
            }
            Self::NotGrpc => Refusal::new(
                Reason::MalformedRequest,
                "the content-type of a gRPC call is application/grpc or application/grpc+proto",
            ),
            Self::UnknownMethod => {
                Refusal::new(Reason::UnknownMethod, "no such service or method on this port")
            }
            Self::BadTimeout => Refusal::new(
                Reason::MalformedRequest,
                "grpc-timeout is 1 to 8 digits and one of H, M, S, m, u, n",
            ),
            Self::HeadersTooLarge => Refusal::new(
                Reason::MalformedRequest,
                format!("the request's headers exceed {} bytes", config.header_bytes_max),
            ),
            Self::MessageTooLarge(length) => Refusal::new(
                Reason::BatchTooLarge,
                format!(
                    "the request message has {length} bytes, above the limit of {}",
                    config.message_bytes_max
                ),
            )
            .with("bytes", length)
            .with("limit", config.message_bytes_max),
            Self::Compressed => {
                Refusal::new(Reason::CompressionUnsupported, "the request message is compressed")
            }
            Self::BadFlag(flag) => Refusal::new(
                Reason::MalformedRequest,
                format!("the message prefix begins with {flag}, neither 0 nor 1"),
            ),
            Self::NoMessage => {
                Refusal::new(Reason::MalformedRequest, "the call has no request message")
            }
            Self::Truncated => Refusal::new(
                Reason::MalformedRequest,
                "the stream ended before the request message was whole",
            ),
            Self::SecondMessage => Refusal::new(
                Reason::MalformedRequest,
                "bytes follow the one request message of a unary call",
            ),
            Self::RequestBytes => Refusal::new(
                Reason::Overloaded,
                "too many bytes of unfinished requests are held for this connection or core",
            ),
            Self::DeadlineExceeded => {
                Refusal::new(Reason::DeadlineExceeded, "the call's deadline passed on the server")
            }
        }
    }
}
