//! Names of writes, by which a retry is told from a new write, and what is kept of such a write.
//!
//! A client numbers its writes upwards. A partition remembers the answers of the last ones and, of each
//! client, up to which number it has forgotten: so a retry gets the original answer, or is told that it
//! came too late; it is never executed a second time (see `request_window.rs` in `statestore`).
//!
//! ```text
//!  0           1           9           17             25        26
//! ┌───────────┬───────────┬───────────┬──────────────┬─────────┬────────┬──────────────────────────┐
//! │ client    │ number    │ settled   │ payload hash │ outcome │ client │ refusal or values, if any │
//! │ length u8 │ u64       │ u64       │ u64          │ u8      │        │                          │
//! └───────────┴───────────┴───────────┴──────────────┴─────────┴────────┴──────────────────────────┘
//!                                                      0 written, 1 refused, 2 written, with values
//!  values   ┌────────────┐ ┌────────────┬───────┐
//!           │ length u16 │=│ length u16 │ value │…
//!           └────────────┘ └────────────┴───────┘
//!  refusal  ┌────────────┬────────┬────────────────┬────────────┬─────────┬───────┐ ┌─────┬───────┐
//!           │ reason len │ reason │ retry after ms │ message len│ message │ pairs │=│ key │ value │…
//!           │ u8         │        │ u32, 0: none   │ u16        │         │ u8    │ │ u8… │ u16…  │
//!           └────────────┴────────┴────────────────┴────────────┴─────────┴───────┘ └─────┴───────┘
//! ```
//! Little-endian. The same bytes stand in the log, in Kafka, in snapshots and in stores on disk.

use std::sync::Arc;

use crate::{
    Reason, Refusal,
    limits::{REFUSAL_TEXT_BYTES_MAX, REQUEST_CLIENT_BYTES_MAX, REQUEST_VALUES_BYTES_MAX},
};

/// The name of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId<'a> {
    /// Who writes: 1 to 32 bytes, unique among all that write to the node.
    pub client: &'a [u8],
    /// Above that of every earlier write of the client, from 1.
    pub number: u64,
    /// The client retries nothing below this number any more; 0: it does not say.
    pub settled: u64,
}

/// What is kept of a write with a name, beside its place: sequence and timestamp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestMark<'a> {
    /// The write's name.
    pub id: RequestId<'a>,
    /// Of what it asked for: a retry asks for the same.
    pub payload_hash: u64,
    /// None: it was written. Shared with whoever waits for the answer.
    pub refusal: Option<Arc<Refusal>>,
    /// Of an update that tells its values: what [`encode_values`] makes of them.
    pub values: Option<Arc<[u8]>>,
}

const FIXED_BYTES: usize = 26;
const REASON_BYTES_MAX: usize = 64;
const PAIRS_MAX: usize = 8;
const PAIR_KEY_BYTES_MAX: usize = 32;
const PAIR_VALUE_BYTES_MAX: usize = 256;

/// Largest encoding of a mark.
pub const REQUEST_MARK_BYTES_MAX: usize = FIXED_BYTES
    + REQUEST_CLIENT_BYTES_MAX
    + (2 + REQUEST_VALUES_BYTES_MAX)
    + (1 + REASON_BYTES_MAX + 4 + 2 + REFUSAL_TEXT_BYTES_MAX + 1)
    + PAIRS_MAX * (1 + PAIR_KEY_BYTES_MAX + 2 + PAIR_VALUE_BYTES_MAX);
const _: () = assert!(REQUEST_CLIENT_BYTES_MAX <= u8::MAX as usize);
const _: () = assert!(REQUEST_VALUES_BYTES_MAX <= u16::MAX as usize);

impl RequestMark<'_> {
    /// Bytes of the encoding.
    pub fn encoded_bytes(&self) -> usize {
        let refusal = self.refusal.as_ref().map_or(0, |refusal| refusal_bytes(refusal));
        let values = self.values.as_ref().map_or(0, |values| 2 + values.len());
        FIXED_BYTES + self.id.client.len() + refusal + values
    }

    /// Hands the encoding to `put`, piece by piece.
    ///
    /// # Panics
    /// On a client's name outside its limits: it was checked when the request came in.
    pub fn encode(&self, put: &mut dyn FnMut(&[u8])) {
        let RequestId { client, number, settled } = self.id;
        assert!(!client.is_empty() && client.len() <= REQUEST_CLIENT_BYTES_MAX);
        let mut fixed = [0; FIXED_BYTES];
        fixed[0] = client.len() as u8;
        fixed[1..9].copy_from_slice(&number.to_le_bytes());
        fixed[9..17].copy_from_slice(&settled.to_le_bytes());
        fixed[17..25].copy_from_slice(&self.payload_hash.to_le_bytes());
        fixed[25] = match (&self.refusal, &self.values) {
            (None, None) => 0,
            (Some(_), None) => 1,
            (None, Some(_)) => 2,
            (Some(_), Some(_)) => unreachable!("what was refused has no values"),
        };
        put(&fixed);
        put(client);
        if let Some(refusal) = &self.refusal {
            encode_refusal(refusal, put);
        }
        if let Some(values) = &self.values {
            assert!(values.len() <= REQUEST_VALUES_BYTES_MAX);
            put(&(values.len() as u16).to_le_bytes());
            put(values);
        }
    }
}

/// Values of an update as a mark keeps them. None: they are more than it keeps.
pub fn encode_values<'v>(values: impl Iterator<Item = &'v [u8]>) -> Option<Arc<[u8]>> {
    let mut out = Vec::new();
    for value in values {
        if out.len() + 2 + value.len() > REQUEST_VALUES_BYTES_MAX {
            return None;
        }
        out.extend_from_slice(&(value.len() as u16).to_le_bytes());
        out.extend_from_slice(value);
    }
    Some(out.into())
}

/// The values that [`encode_values`] was given.
pub fn decode_values(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk()?;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        bytes = rest;
        Some(value)
    })
}

impl<'a> RequestMark<'a> {
    /// Of a request that is written, and tells no values.
    pub const fn new(id: RequestId<'a>, payload_hash: u64) -> Self {
        Self { id, payload_hash, refusal: None, values: None }
    }

    /// Reads a mark, and what stands behind it. None: malformed.
    pub fn decode(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (fixed, rest) = bytes.split_first_chunk::<FIXED_BYTES>()?;
        let word = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("eight"));
        let length = usize::from(fixed[0]);
        let (number, settled, payload_hash) = (word(1), word(9), word(17));
        if number == 0 || !(1..=REQUEST_CLIENT_BYTES_MAX).contains(&length) {
            return None;
        }
        let (client, rest) = rest.split_at_checked(length)?;
        let id = RequestId { client, number, settled };
        let mut mark = Self::new(id, payload_hash);
        let rest = match fixed[25] {
            0 => rest,
            1 => {
                let (refusal, rest) = decode_refusal(rest)?;
                mark.refusal = Some(Arc::new(refusal));
                rest
            }
            2 => {
                let (length, rest) = rest.split_first_chunk()?;
                let (values, rest) =
                    rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
                let sound: usize = decode_values(values).map(|value| 2 + value.len()).sum();
                if values.len() > REQUEST_VALUES_BYTES_MAX || sound != values.len() {
                    return None;
                }
                mark.values = Some(values.into());
                rest
            }
            _ => return None,
        };
        Some((mark, rest))
    }
}

/// Longer texts are cut where they are sent, too.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

fn pairs(refusal: &Refusal) -> impl Iterator<Item = (&str, &str)> {
    refusal
        .metadata
        .iter()
        .take(PAIRS_MAX)
        .map(|(key, value)| (cut(key, PAIR_KEY_BYTES_MAX), cut(value, PAIR_VALUE_BYTES_MAX)))
}

fn refusal_bytes(refusal: &Refusal) -> usize {
    let pairs: usize = pairs(refusal).map(|(key, value)| 3 + key.len() + value.len()).sum();
    let message = cut(&refusal.message, REFUSAL_TEXT_BYTES_MAX);
    1 + refusal.reason.as_str().len() + 4 + 2 + message.len() + 1 + pairs
}

fn encode_refusal(refusal: &Refusal, put: &mut dyn FnMut(&[u8])) {
    let reason = refusal.reason.as_str();
    assert!(reason.len() <= REASON_BYTES_MAX);
    put(&[reason.len() as u8]);
    put(reason.as_bytes());
    put(&refusal.retry_after_ms.unwrap_or(0).to_le_bytes());
    let message = cut(&refusal.message, REFUSAL_TEXT_BYTES_MAX);
    put(&(message.len() as u16).to_le_bytes());
    put(message.as_bytes());
    put(&[pairs(refusal).count() as u8]);
    for (key, value) in pairs(refusal) {
        put(&[key.len() as u8]);
        put(key.as_bytes());
        put(&(value.len() as u16).to_le_bytes());
        put(value.as_bytes());
    }
}

fn decode_refusal(bytes: &[u8]) -> Option<(Refusal, &[u8])> {
    let mut rest = bytes;
    let short = |rest: &mut &[u8]| {
        let (length, after) = rest.split_first()?;
        let (text, after) = after.split_at_checked(usize::from(*length))?;
        *rest = after;
        str::from_utf8(text).ok().map(str::to_owned)
    };
    let long = |rest: &mut &[u8]| {
        let (length, after) = rest.split_first_chunk()?;
        let (text, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        *rest = after;
        str::from_utf8(text).ok().map(str::to_owned)
    };
    let reason = Reason::from_name(&short(&mut rest)?)?;
    let (retry_after_ms, after) = rest.split_first_chunk()?;
    let retry_after_ms = Some(u32::from_le_bytes(*retry_after_ms)).filter(|delay| *delay > 0);
    rest = after;
    let message = long(&mut rest)?;
    let (count, after) = rest.split_first()?;
    rest = after;
    if message.len() > REFUSAL_TEXT_BYTES_MAX || usize::from(*count) > PAIRS_MAX {
        return None;
    }
    let mut metadata = Vec::with_capacity(usize::from(*count));
    for _ in 0..*count {
        let (key, value) = (short(&mut rest)?, long(&mut rest)?);
        if key.len() > PAIR_KEY_BYTES_MAX || value.len() > PAIR_VALUE_BYTES_MAX {
            return None;
        }
        metadata.push((key.into(), value));
    }
    Some((Refusal { reason, message: message.into(), retry_after_ms, metadata }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(refusal: Option<Refusal>) -> RequestMark<'static> {
        let id = RequestId { client: b"worker-7", number: 12, settled: 9 };
        let refusal = refusal.map(Arc::new);
        RequestMark { refusal, ..RequestMark::new(id, 0x0123_4567_89ab_cdef) }
    }

    fn encoded(mark: &RequestMark<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        mark.encode(&mut |piece| bytes.extend_from_slice(piece));
        bytes
    }

    fn refusal() -> Refusal {
        Refusal::new(Reason::ConditionFailed, "if_absent does not hold for key `ä`")
            .with("entry", 3)
            .with("version", 77)
    }

    #[test]
    fn a_mark_reads_back_and_its_size_is_known_beforehand() {
        let delayed = Refusal { retry_after_ms: Some(5), ..refusal() };
        let values = encode_values([&b"12"[..], b"", b"three"].into_iter());
        let told: Vec<_> = decode_values(values.as_ref().unwrap()).collect();
        assert_eq!(told, [&b"12"[..], b"", b"three"]);
        let tells = RequestMark { values, ..mark(None) };
        for mark in [mark(None), mark(Some(refusal())), mark(Some(delayed)), tells] {
            let mut bytes = encoded(&mark);
            assert_eq!(bytes.len(), mark.encoded_bytes());
            assert!(bytes.len() <= REQUEST_MARK_BYTES_MAX);
            bytes.extend_from_slice(b"rest");
            assert_eq!(RequestMark::decode(&bytes), Some((mark, &b"rest"[..])));
        }
    }

    #[test]
    fn every_cut_is_noticed_and_no_changed_byte_panics() {
        let bytes = encoded(&mark(Some(refusal())));
        for at in 0..bytes.len() {
            assert_eq!(RequestMark::decode(&bytes[..at]), None, "cut at {at}");
            for mask in [1, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] ^= mask;
                if let Some((mark, rest)) = RequestMark::decode(&changed) {
                    assert_eq!([&encoded(&mark), rest].concat(), changed, "byte {at}");
                }
            }
        }
    }

    #[test]
    fn values_are_kept_up_to_a_limit_all_or_none() {
        let most = vec![7; REQUEST_VALUES_BYTES_MAX - 2];
        assert!(encode_values(std::iter::once(&most[..])).is_some());
        assert!(encode_values([&most[..], b""].into_iter()).is_none());
        let mut bytes = encoded(&RequestMark { values: Some([9, 0, 1].into()), ..mark(None) });
        assert_eq!(RequestMark::decode(&bytes), None, "a value longer than what is there");
        bytes.truncate(bytes.len() - 1);
        assert_eq!(RequestMark::decode(&bytes), None);
    }

    #[test]
    fn what_is_longer_than_an_answer_may_be_is_cut() {
        let long = "ä".repeat(REFUSAL_TEXT_BYTES_MAX);
        let mut refusal = Refusal::new(Reason::ConditionFailed, long.clone());
        for _ in 0..2 * PAIRS_MAX {
            refusal = refusal.with("a key of a refusal that is quite too long", &long);
        }
        let mark = mark(Some(refusal));
        let bytes = encoded(&mark);
        assert_eq!(bytes.len(), mark.encoded_bytes());
        assert!(bytes.len() <= REQUEST_MARK_BYTES_MAX);
        let (read, _) = RequestMark::decode(&bytes).unwrap();
        assert_eq!(read.refusal.unwrap().message.len(), REFUSAL_TEXT_BYTES_MAX);
    }
}
