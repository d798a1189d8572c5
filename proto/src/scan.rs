//! Scans: a request's meaning, and the continuation that leads from page to page.
//!
//! ```text
//!   continuation   version 1 │ partition u32 │ epoch u64 │ sequence u64 │ last key
//! ```
//! Little-endian. Clients only hand it back, so its form may change with the version; what they hand
//! back comes from the network all the same, and is checked.

use std::ops::Bound;

use prost::{Message, encoding};
use stateside_types::{
    Epoch, PartitionId, Reason, Refusal, Sequence,
    limits::{KEY_BYTES_MAX, ROUTING_KEY_BYTES_MAX, SCAN_RECORDS_DEFAULT, SCAN_RECORDS_MAX},
};

use crate::{session::SessionTokens, v1};

const CONTINUATION_VERSION: u8 = 1;
const CONTINUATION_HEADER_BYTES: usize = 21;

/// Whose records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanPlace {
    /// Of the partition that the routing key belongs to.
    RoutingKey(Vec<u8>),
    /// Of this partition.
    Partition(PartitionId),
}

/// A `ScanRequest` that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanQuery {
    /// Whose records.
    pub place: ScanPlace,
    /// First key, or the key before it.
    pub from: Bound<Box<[u8]>>,
    /// Where to end.
    pub to: Bound<Box<[u8]>>,
    /// Most records of the page.
    pub records_max: usize,
    /// Of the scan's first page. None: this is it, or each page is for itself.
    pub at: Option<(PartitionId, Epoch, Sequence)>,
    /// What the page must not be older than; and the answer is to have a token.
    pub session: Option<SessionTokens>,
}

/// The field of a `ScanResponse` that has its session.
pub const SCAN_SESSION: u32 = 5;

/// Decodes and checks a `ScanRequest`.
///
/// # Errors
/// `MALFORMED_REQUEST`, `KEY_TOO_LARGE`, `INVALID_ARGUMENT`.
pub fn decode_scan(message: &[u8]) -> Result<ScanQuery, Refusal> {
    let request = v1::ScanRequest::decode(message).map_err(|error| {
        Refusal::new(Reason::MalformedRequest, format!("the request is not valid: {error}"))
    })?;
    let place = match (request.routing_key.is_empty(), request.partition) {
        (false, None) => ScanPlace::RoutingKey(request.routing_key),
        (true, Some(id)) => ScanPlace::Partition(PartitionId(id)),
        (true, None) => return Err(invalid("name a routing_key or a partition")),
        (false, Some(_)) => return Err(invalid("name a routing_key or a partition, not both")),
    };
    if let ScanPlace::RoutingKey(key) = &place {
        check_length("routing_key", key, ROUTING_KEY_BYTES_MAX)?;
    }
    for (name, key) in
        [("prefix", &request.prefix), ("start", &request.start), ("end", &request.end)]
    {
        check_length(name, key, KEY_BYTES_MAX)?;
    }
    let records_max = match request.limit as usize {
        0 => SCAN_RECORDS_DEFAULT,
        limit @ 1..=SCAN_RECORDS_MAX => limit,
        limit => return Err(invalid(format!("limit {limit} is above {SCAN_RECORDS_MAX}"))),
    };
    let each_page = match v1::ScanConsistency::try_from(request.consistency) {
        Ok(v1::ScanConsistency::ScanOneSequence) => false,
        Ok(v1::ScanConsistency::ScanEachPage) => true,
        // Never guess what consistency an unknown level asks for.
        Err(_) => return Err(invalid(format!("consistency {} is not known", request.consistency))),
    };
    let first = if request.prefix > request.start { &request.prefix } else { &request.start };
    let mut from = match first.is_empty() {
        true => Bound::Unbounded,
        false => Bound::Included(Box::from(first.as_slice())),
    };
    let to = upper_bound(&request.prefix, request.end);
    let mut at = None;
    if !request.continuation.is_empty() {
        let continuation = Continuation::decode(&request.continuation)
            .filter(|last| !matches!(&from, Bound::Included(from) if last.key < &**from))
            .filter(|last| !matches!(&to, Bound::Excluded(to) if last.key >= &**to))
            .ok_or_else(|| invalid("the continuation is not one of this scan"))?;
        from = Bound::Excluded(continuation.key.into());
        at = (!each_page).then_some((
            continuation.partition,
            continuation.epoch,
            continuation.sequence,
        ));
    }
    let session = request
        .session
        .map(|session| SessionTokens::read(session.tokens.iter().map(Vec::as_slice)));
    Ok(ScanQuery { place, from, to, records_max, at, session: session.transpose()? })
}

/// Writes what follows the records of a `ScanResponse`. `after`: there may be more behind this key.
pub fn encode_scan_end(
    out: &mut Vec<u8>,
    partition: PartitionId,
    epoch: Epoch,
    sequence: Sequence,
    after: Option<&[u8]>,
) {
    if let Some(key) = after {
        let continuation = Continuation { partition, epoch, sequence, key }.encode();
        encoding::bytes::encode(2, &continuation, out);
    }
    encoding::uint64::encode(3, &sequence.0, out);
    encoding::uint32::encode(4, &partition.0, out);
}

struct Continuation<'a> {
    partition: PartitionId,
    epoch: Epoch,
    sequence: Sequence,
    key: &'a [u8],
}

impl<'a> Continuation<'a> {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(CONTINUATION_HEADER_BYTES + self.key.len());
        out.push(CONTINUATION_VERSION);
        out.extend_from_slice(&self.partition.0.to_le_bytes());
        out.extend_from_slice(&self.epoch.0.to_le_bytes());
        out.extend_from_slice(&self.sequence.0.to_le_bytes());
        out.extend_from_slice(self.key);
        out
    }

    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let ([CONTINUATION_VERSION], rest) = bytes.split_first_chunk()? else { return None };
        let (partition, rest) = rest.split_first_chunk()?;
        let (epoch, rest) = rest.split_first_chunk()?;
        let (sequence, key) = rest.split_first_chunk()?;
        (1..=KEY_BYTES_MAX).contains(&key.len()).then_some(Self {
            partition: PartitionId(u32::from_le_bytes(*partition)),
            epoch: Epoch(u64::from_le_bytes(*epoch)),
            sequence: Sequence(u64::from_le_bytes(*sequence)),
            key,
        })
    }
}

/// The lower of the end and of the first key that does not begin with the prefix.
fn upper_bound(prefix: &[u8], end: Vec<u8>) -> Bound<Box<[u8]>> {
    // Behind all of ff ff … there is no key that does not begin with it and is greater.
    let behind = prefix.iter().rposition(|byte| *byte != 0xff).map(|last| {
        let mut behind = prefix[..=last].to_vec();
        behind[last] += 1;
        behind
    });
    let ends = [behind, (!end.is_empty()).then_some(end)];
    match ends.into_iter().flatten().min() {
        Some(end) => Bound::Excluded(end.into()),
        None => Bound::Unbounded,
    }
}

fn check_length(name: &str, key: &[u8], limit: usize) -> Result<(), Refusal> {
    if key.len() <= limit {
        return Ok(());
    }
    let text = format!("{name} has {} bytes, the limit is {limit}", key.len());
    Err(Refusal::new(Reason::KeyTooLarge, text))
}

fn invalid(text: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    Refusal::new(Reason::InvalidArgument, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> v1::ScanRequest {
        v1::ScanRequest { partition: Some(3), ..Default::default() }
    }

    fn decoded(request: &v1::ScanRequest) -> Result<ScanQuery, Refusal> {
        decode_scan(&request.encode_to_vec())
    }

    fn included(key: &[u8]) -> Bound<Box<[u8]>> {
        Bound::Included(key.into())
    }

    fn excluded(key: &[u8]) -> Bound<Box<[u8]>> {
        Bound::Excluded(key.into())
    }

    #[test]
    fn prefix_start_and_end_narrow_each_other() {
        for (prefix, start, end, from, to) in [
            (&b""[..], &b""[..], &b""[..], Bound::Unbounded, Bound::Unbounded),
            (b"ab", b"", b"", included(b"ab"), excluded(b"ac")),
            (b"ab", b"a", b"b", included(b"ab"), excluded(b"ac")),
            (b"ab", b"abc", b"abd", included(b"abc"), excluded(b"abd")),
            (b"a\xff\xff", b"", b"", included(b"a\xff\xff"), excluded(b"b")),
            (b"\xff", b"", b"", included(b"\xff"), Bound::Unbounded),
            (b"\xff", b"", b"\xff\x01", included(b"\xff"), excluded(b"\xff\x01")),
        ] {
            let request = v1::ScanRequest {
                prefix: prefix.to_vec(),
                start: start.to_vec(),
                end: end.to_vec(),
                ..request()
            };
            let query = decoded(&request).unwrap();
            assert_eq!((query.from, query.to), (from, to), "{request:?}");
        }
    }

    #[test]
    fn a_continuation_leads_on_from_its_key_and_sequence() {
        let mut answer = Vec::new();
        let (id, epoch, sequence) = (PartitionId(3), Epoch(8), Sequence(70));
        encode_scan_end(&mut answer, id, epoch, sequence, Some(b"k5"));
        let answer = v1::ScanResponse::decode(&answer[..]).unwrap();
        assert_eq!((answer.sequence, answer.partition), (70, 3));
        let next = v1::ScanRequest {
            continuation: answer.continuation,
            prefix: b"k".to_vec(),
            ..request()
        };
        let query = decoded(&next).unwrap();
        assert_eq!((query.from, query.at), (excluded(b"k5"), Some((id, epoch, sequence))));
        let each = v1::ScanConsistency::ScanEachPage as i32;
        let query = decoded(&v1::ScanRequest { consistency: each, ..next.clone() }).unwrap();
        assert_eq!((query.from, query.at), (excluded(b"k5"), None));

        let mut last = Vec::new();
        encode_scan_end(&mut last, id, epoch, sequence, None);
        assert!(v1::ScanResponse::decode(&last[..]).unwrap().continuation.is_empty());

        // Of another scan, cut, of another version, without a key.
        let mut wrong = vec![v1::ScanRequest { prefix: b"z".to_vec(), ..next.clone() }];
        wrong.push(v1::ScanRequest { end: b"k5".to_vec(), ..next.clone() });
        for length in 1..=CONTINUATION_HEADER_BYTES {
            let continuation = next.continuation[..length].to_vec();
            wrong.push(v1::ScanRequest { continuation, ..next.clone() });
        }
        let mut other = next.clone();
        other.continuation[0] = 9;
        wrong.push(other);
        for request in wrong {
            assert_eq!(decoded(&request).unwrap_err().reason, Reason::InvalidArgument);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let long = vec![b'x'; KEY_BYTES_MAX + 1];
        for (request, reason) in [
            (v1::ScanRequest::default(), Reason::InvalidArgument),
            (v1::ScanRequest { routing_key: vec![1], ..request() }, Reason::InvalidArgument),
            (v1::ScanRequest { limit: 4_097, ..request() }, Reason::InvalidArgument),
            (v1::ScanRequest { consistency: 7, ..request() }, Reason::InvalidArgument),
            (v1::ScanRequest { prefix: long.clone(), ..request() }, Reason::KeyTooLarge),
            (v1::ScanRequest { start: long.clone(), ..request() }, Reason::KeyTooLarge),
            (v1::ScanRequest { end: long.clone(), ..request() }, Reason::KeyTooLarge),
            (
                v1::ScanRequest { routing_key: long, partition: None, ..request() },
                Reason::KeyTooLarge,
            ),
        ] {
            assert_eq!(decoded(&request).unwrap_err().reason, reason, "{request:?}");
        }
        assert_eq!(decode_scan(&[0xff; 9]).unwrap_err().reason, Reason::MalformedRequest);
    }
}
