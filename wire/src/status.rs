//! A refusal as gRPC carries it: `grpc-status`, `grpc-message`, and `grpc-status-details-bin`
//! with a `google.rpc.Status` that holds an `ErrorInfo` and, where a retry makes sense, a `RetryInfo`.
//!
//! The protobuf messages are declared here by hand: five tiny ones from
//! <https://github.com/googleapis/googleapis/tree/master/google/rpc> and the two well-known types
//! they use.

use std::collections::BTreeMap;

use prost::Message;
use stateside_types::{
    Code, Reason, Refusal,
    limits::{REFUSAL_STATUS_BYTES_MAX, REFUSAL_TEXT_BYTES_MAX},
};

use crate::nghttp2::NameValue;

/// `ErrorInfo.domain` of every refusal.
pub(crate) const DOMAIN: &str = "stateside.dev";

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Status {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) details: Vec<Any>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Any {
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ErrorInfo {
    #[prost(string, tag = "1")]
    pub(crate) reason: String,
    #[prost(string, tag = "2")]
    pub(crate) domain: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(crate) metadata: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    pub(crate) retry_delay: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Duration {
    #[prost(int64, tag = "1")]
    pub(crate) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(crate) nanos: i32,
}

/// The header values of a refusal.
pub(crate) struct RefusalFields {
    status: &'static str,
    message: Vec<u8>,
    details: Vec<u8>,
    tells_encodings: bool,
}

impl RefusalFields {
    pub(crate) fn new(refusal: &Refusal) -> Self {
        let mut text = refusal.text();
        text.truncate(text.floor_char_boundary(REFUSAL_TEXT_BYTES_MAX));
        let mut status = status(refusal, &text, true);
        if status.encoded_len() > REFUSAL_STATUS_BYTES_MAX {
            status = self::status(refusal, &text, false);
        }
        Self {
            status: code_text(refusal.reason.code()),
            message: percent_encode(&text),
            details: base64(&status.encode_to_vec()),
            tells_encodings: refusal.reason == Reason::CompressionUnsupported,
        }
    }

    /// The whole answer: trailers only, as gRPC calls it.
    pub(crate) fn headers(&self, http_status: &'static str) -> Vec<NameValue<'_>> {
        let mut headers = vec![
            NameValue::fixed(":status", http_status),
            NameValue::fixed("content-type", "application/grpc"),
            NameValue::fixed("grpc-status", self.status),
            NameValue::once("grpc-message", &self.message),
            NameValue::once("grpc-status-details-bin", &self.details),
        ];
        if self.tells_encodings {
            headers.push(NameValue::fixed("grpc-accept-encoding", "identity"));
        }
        if http_status == "405" {
            headers.push(NameValue::fixed("allow", "POST"));
        }
        headers
    }
}

fn status(refusal: &Refusal, text: &str, with_metadata: bool) -> Status {
    let metadata = if with_metadata { refusal.metadata.as_slice() } else { &[] };
    let info = ErrorInfo {
        reason: refusal.reason.as_str().to_owned(),
        domain: DOMAIN.to_owned(),
        metadata: metadata
            .iter()
            .map(|(key, value)| (key.clone().into_owned(), value.clone()))
            .collect(),
    };
    let mut details = vec![Any {
        type_url: "type.googleapis.com/google.rpc.ErrorInfo".to_owned(),
        value: info.encode_to_vec(),
    }];
    if let Some(retry_after_ms) = refusal.retry_after_ms {
        let retry_delay = Duration {
            seconds: i64::from(retry_after_ms / 1_000),
            nanos: (retry_after_ms % 1_000) as i32 * 1_000_000,
        };
        details.push(Any {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
            value: RetryInfo { retry_delay: Some(retry_delay) }.encode_to_vec(),
        });
    }
    Status { code: i32::from(refusal.reason.code() as u8), message: text.to_owned(), details }
}

/// A status code in decimal, without formatting it: headers want `'static` text.
fn code_text(code: Code) -> &'static str {
    const TEXTS: [&str; 17] = [
        "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16",
    ];
    TEXTS[code as usize]
}

/// gRPC's escaping of `grpc-message`: all but printable ASCII, and `%`, become `%XX`.
fn percent_encode(text: &str) -> Vec<u8> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(byte);
        } else {
            encoded.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
    encoded
}

/// Standard alphabet, no padding: what gRPC asks of `-bin` headers. Source: RFC 4648.
fn base64(bytes: &[u8]) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut group = [0; 4];
        group[1..=chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes(group);
        for index in 0..=chunk.len() {
            encoded.push(ALPHABET[(bits >> (18 - 6 * index)) as usize & 63]);
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_matches_the_vectors_of_rfc_4648() {
        for (bytes, expected) in [
            ("", ""),
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg"),
            ("fooba", "Zm9vYmE"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), expected.as_bytes());
        }
        assert_eq!(base64(&[0xfb, 0xff]), b"+/8");
    }

    #[test]
    fn messages_survive_the_header_as_percent_escapes() {
        assert_eq!(percent_encode("100% naïve\n"), b"100%25 na%C3%AFve%0A");
    }

    #[test]
    fn a_status_carries_reason_domain_metadata_and_retry_delay() {
        let refusal = Refusal::new(Reason::Overloaded, "full").with("queue", 7);
        let status = status(&refusal, &refusal.text(), true);
        assert_eq!(status.code, 8);
        let info = ErrorInfo::decode(&*status.details[0].value).unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("OVERLOADED", DOMAIN));
        assert_eq!(info.metadata["queue"], "7");
        let retry = RetryInfo::decode(&*status.details[1].value).unwrap();
        assert_eq!(retry.retry_delay, Some(Duration { seconds: 0, nanos: 20_000_000 }));
        for reason in Reason::ALL {
            let status = RefusalFields::new(&Refusal::new(*reason, "x")).status;
            assert_eq!(status.parse(), Ok(reason.code() as u8));
        }
    }

    #[test]
    fn a_refusal_of_any_size_fits_into_headers() {
        let refusal =
            Refusal::new(Reason::Internal, "ü".repeat(10_000)).with("key", "v".repeat(50_000));
        let fields = RefusalFields::new(&refusal);
        assert!(fields.message.len() <= 3 * REFUSAL_TEXT_BYTES_MAX);
        assert!(fields.details.len() <= REFUSAL_STATUS_BYTES_MAX * 4 / 3 + 4);
    }
}
