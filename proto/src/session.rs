//! The `Session` of requests and answers.

use prost::encoding::{self, WireType};
use stateside_types::{
    AtLeast, PartitionId, Reason, Refusal, SESSION_TOKEN_BYTES_MAX, SessionToken,
};

use crate::codec::Reader;

/// The field of every write request that has its session.
pub(crate) const WRITE_SESSION: u32 = 15;
/// The field of a `GetRequest` that has its session.
pub const GET_SESSION: u32 = 3;
/// The field of every answer but a scan's that has its session.
pub const ANSWER_SESSION: u32 = 2;

/// The tokens that a request brought: what its reads must not be older than.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionTokens(Vec<SessionToken>);

impl SessionTokens {
    /// Reads tokens.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when one is none.
    pub fn read<'t>(tokens: impl IntoIterator<Item = &'t [u8]>) -> Result<Self, Refusal> {
        let read = |bytes: &[u8]| {
            SessionToken::decode(bytes).ok_or_else(|| {
                Refusal::new(Reason::InvalidArgument, "a token of the session is none of a node's")
            })
        };
        let mut tokens = tokens.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
        tokens.sort_unstable();
        Ok(Self(tokens))
    }

    /// What a read of this partition has to wait for, at most so long. Of several tokens the one with the
    /// highest epoch and sequence counts.
    pub fn at_least(&self, partition: PartitionId, wait_ms: u32) -> Option<AtLeast> {
        let end = self.0.partition_point(|token| token.partition <= partition);
        let token = self.0[..end].last().filter(|token| token.partition == partition)?;
        Some(AtLeast { epoch: token.epoch, sequence: token.sequence, wait_ms })
    }
}

/// The tokens of the session that a request has as this field. A pass of its own, for few requests have one.
///
/// # Errors
/// `MALFORMED_REQUEST`, `INVALID_ARGUMENT`.
pub fn decode_session(message: &[u8], session: u32) -> Result<SessionTokens, Refusal> {
    let mut tokens = Vec::new();
    let mut reader = Reader(message);
    while let Some((field, wire)) = reader.key()? {
        if field == session {
            each_token(reader.bytes(wire)?, |token| tokens.push(token))?;
        } else {
            reader.skip(wire, field)?;
        }
    }
    SessionTokens::read(tokens)
}

pub(crate) fn each_token<'a>(
    session: &'a [u8],
    mut take: impl FnMut(&'a [u8]),
) -> Result<(), Refusal> {
    let mut reader = Reader(session);
    while let Some((field, wire)) = reader.key()? {
        match field {
            1 => take(reader.bytes(wire)?),
            _ => reader.skip(wire, field)?,
        }
    }
    Ok(())
}

/// Writes the `Session` of an answer as this field, which is below 16.
pub fn encode_session(
    out: &mut Vec<u8>,
    field: u32,
    tokens: impl Iterator<Item = SessionToken> + Clone,
) {
    let mut token = Vec::with_capacity(SESSION_TOKEN_BYTES_MAX);
    let mut message = Vec::new();
    for one in tokens {
        token.clear();
        one.encode(&mut token);
        encoding::encode_key(1, WireType::LengthDelimited, &mut message);
        message.push(token.len() as u8);
        message.extend_from_slice(&token);
    }
    encoding::encode_key(field, WireType::LengthDelimited, out);
    encoding::encode_varint(message.len() as u64, out);
    out.extend_from_slice(&message);
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use stateside_types::{Epoch, Sequence};

    use super::*;
    use crate::{codec, v1};

    fn token(partition: u32, epoch: u64, sequence: u64) -> SessionToken {
        SessionToken {
            partition: PartitionId(partition),
            epoch: Epoch(epoch),
            sequence: Sequence(sequence),
        }
    }

    fn bytes(token: SessionToken) -> Vec<u8> {
        let mut bytes = Vec::new();
        token.encode(&mut bytes);
        bytes
    }

    #[test]
    fn of_a_partitions_tokens_the_latest_counts_and_no_other_partitions() {
        let given = [token(3, 1, 50), token(5, 2, 7), token(5, 1, 90), token(5, 2, 4)];
        let given: Vec<_> = given.into_iter().map(bytes).collect();
        let tokens = SessionTokens::read(given.iter().map(Vec::as_slice)).unwrap();
        let at_least = |id| {
            let found = tokens.at_least(PartitionId(id), 9)?;
            assert_eq!(found.wait_ms, 9);
            Some((found.epoch.0, found.sequence.0))
        };
        assert_eq!(at_least(5), Some((2, 7)));
        assert_eq!(at_least(3), Some((1, 50)));
        assert_eq!([at_least(0), at_least(4), at_least(6)], [None; 3]);
        let error = SessionTokens::read([&b"x"[..]]).unwrap_err();
        assert_eq!(error.reason, Reason::InvalidArgument);
    }

    #[test]
    fn what_an_answer_says_a_request_can_say_back() {
        let tokens = [token(1, 1, 2), token(9, 300, u64::MAX)];
        let mut out = Vec::new();
        encode_session(&mut out, 2, tokens.into_iter());
        let session = v1::GetResponse::decode(&out[..]).unwrap().session.unwrap();
        assert_eq!(session.tokens, tokens.map(bytes));

        let mut request =
            v1::GetRequest { keys: vec![b"k".to_vec()], session: Some(session), ..<_>::default() };
        let mut message = request.encode_to_vec();
        // A second one of the same field is merged with the first.
        request = v1::GetRequest {
            session: Some(v1::Session { tokens: vec![bytes(token(1, 1, 3))] }),
            ..<_>::default()
        };
        request.encode(&mut message).unwrap();
        let head = codec::decode_get(&message, &mut Vec::new()).unwrap();
        assert!(head.has_session);
        let read = decode_session(&message, GET_SESSION).unwrap();
        assert_eq!(read, SessionTokens(vec![tokens[0], token(1, 1, 3), tokens[1]]));

        let empty = v1::UpsertRequest {
            entries: vec![v1::UpsertEntry { key: b"k".to_vec(), ..<_>::default() }],
            session: Some(v1::Session::default()),
            ..<_>::default()
        };
        let empty = empty.encode_to_vec();
        assert!(codec::decode_upsert(&empty, &mut Vec::new()).unwrap().has_session);
        let mut out = Vec::new();
        encode_session(&mut out, 2, std::iter::empty());
        assert!(v1::UpsertResponse::decode(&out[..]).unwrap().session.unwrap().tokens.is_empty());
    }
}
