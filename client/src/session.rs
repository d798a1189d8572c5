//! Sessions: reads that follow the writes and reads before them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prost::encoding::{WireType, encode_key, encode_varint};
use stateside_proto::v1;
use stateside_types::{PartitionId, SESSION_TOKEN_BYTES_MAX, SessionToken};

/// What a client's reads must not be older than: what it wrote and read with this session before.
///
/// Hand it to calls by their options, as clones: they are the same session. It learns from every answer
/// and tells every read. It may be kept or handed on as [`Self::tokens`].
///
/// In partitions with `mode = "linearizable"`, which is the default, and `ack = durable` a node needs none: each read
/// sees every write acknowledged before it. A session is for partitions with `mode = "split"` and `ack = memory`, and for
/// noticing that a crash took back what was acknowledged in memory: then reads are refused with
/// [`SessionBehind`](crate::Reason::SessionBehind) instead of showing an older state.
#[derive(Clone, Debug, Default)]
pub struct Session {
    latest: Arc<Mutex<BTreeMap<PartitionId, SessionToken>>>,
}

impl Session {
    /// A session that knows of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes on with the session that these tokens are of. Tokens that this release does not know are left out.
    pub fn from_tokens<T: AsRef<[u8]>>(tokens: impl IntoIterator<Item = T>) -> Self {
        let session = Self::new();
        session.learn(tokens);
        session
    }

    /// The latest token of each partition, 4 to 26 bytes each.
    pub fn tokens(&self) -> Vec<Vec<u8>> {
        let encode = |token: &SessionToken| {
            let mut bytes = Vec::new();
            token.encode(&mut bytes);
            bytes
        };
        self.lock().values().map(encode).collect()
    }

    pub(crate) fn learn<T: AsRef<[u8]>>(&self, tokens: impl IntoIterator<Item = T>) {
        let mut latest = self.lock();
        for token in tokens.into_iter().filter_map(|bytes| SessionToken::decode(bytes.as_ref())) {
            let known = latest.entry(token.partition).or_insert(token);
            // Answers to calls that were under way together come in any order.
            *known = token.max(*known);
        }
    }

    pub(crate) fn snapshot(&self) -> Vec<SessionToken> {
        self.lock().values().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PartitionId, SessionToken>> {
        // A token is replaced whole: a panic elsewhere does not spoil it.
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call's session and what it knew when the call began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InSession<'a> {
    pub(crate) session: &'a Session,
    pub(crate) tokens: &'a [SessionToken],
}

impl InSession<'_> {
    /// Bytes at most that it adds to a request.
    pub(crate) fn length_max(&self) -> usize {
        8 + self.tokens.len() * (SESSION_TOKEN_BYTES_MAX + 2)
    }

    /// Writes the request's session as this field, with the tokens of these partitions,
    /// which are in order, or all.
    pub(crate) fn encode(&self, field: u32, of: Option<&[PartitionId]>, out: &mut Vec<u8>) {
        let is_wanted =
            |token: &&SessionToken| of.is_none_or(|of| of.binary_search(&token.partition).is_ok());
        let mut message = Vec::new();
        for token in self.tokens.iter().filter(is_wanted) {
            let mut bytes = Vec::with_capacity(SESSION_TOKEN_BYTES_MAX);
            token.encode(&mut bytes);
            encode_key(1, WireType::LengthDelimited, &mut message);
            encode_varint(bytes.len() as u64, &mut message);
            message.extend_from_slice(&bytes);
        }
        encode_key(field, WireType::LengthDelimited, out);
        encode_varint(message.len() as u64, out);
        out.extend_from_slice(&message);
    }

    pub(crate) fn learn(&self, answered: Option<&v1::Session>) {
        if let Some(answered) = answered {
            self.session.learn(&answered.tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use stateside_types::{Epoch, Sequence};

    use super::*;

    fn token(partition: u32, epoch: u64, sequence: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        SessionToken {
            partition: PartitionId(partition),
            epoch: Epoch(epoch),
            sequence: Sequence(sequence),
        }
        .encode(&mut bytes);
        bytes
    }

    #[test]
    fn a_session_keeps_the_latest_token_of_each_partition_in_whatever_order_they_come() {
        let session = Session::from_tokens([token(2, 1, 9), token(1, 1, 5), b"?".to_vec()]);
        session.clone().learn([token(2, 1, 7), token(1, 2, 3), token(1, 1, 99)]);
        assert_eq!(session.tokens(), [token(1, 2, 3), token(2, 1, 9)]);
        let again = Session::from_tokens(session.tokens());
        assert_eq!(again.tokens(), session.tokens());
    }

    #[test]
    fn a_request_says_what_the_session_knows_of_its_partitions() {
        let session = Session::from_tokens([token(1, 1, 5), token(2, 1, u64::MAX)]);
        let tokens = session.snapshot();
        let in_session = InSession { session: &session, tokens: &tokens };
        for (of, expected) in [
            (None, vec![token(1, 1, 5), token(2, 1, u64::MAX)]),
            (Some(&[PartitionId(2), PartitionId(7)][..]), vec![token(2, 1, u64::MAX)]),
            (Some(&[]), vec![]),
        ] {
            let mut message = Vec::new();
            in_session.encode(3, of, &mut message);
            assert!(message.len() <= in_session.length_max());
            let request = v1::GetRequest::decode(&message[..]).unwrap();
            assert_eq!(request.session.unwrap().tokens, expected);
        }
    }
}
