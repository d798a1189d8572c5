//! Sessions: what lets a client's reads follow its own writes and reads.
//!
//! An answer's token says which state of a partition it told of; a read that brings the token back
//! is answered from that state or a later one, by whichever node serves it. A token is opaque to
//! clients, and this is what is in it:
//! ```text
//!   version 1 │ partition │ epoch │ sequence         a byte, then three LEB128 numbers: 4 to 26 bytes
//! ```
//! The epoch is the first one of the partition's content: sequences go on from owner to owner, but not
//! from the content that a restore replaced to the one that took its place.

use crate::{Epoch, PartitionId, Sequence};

const VERSION: u8 = 1;

/// Longest token, bytes.
pub const SESSION_TOKEN_BYTES_MAX: usize = 1 + 5 + 10 + 10;

/// The state of a partition after a sequence. Tokens order by partition first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionToken {
    /// Whose state.
    pub partition: PartitionId,
    /// First epoch of its content.
    pub epoch: Epoch,
    /// The state after this sequence, or any later one.
    pub sequence: Sequence,
}

impl SessionToken {
    /// Appends the token as clients get it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        for mut number in [u64::from(self.partition.0), self.epoch.0, self.sequence.0] {
            while number >= 0x80 {
                out.push(number as u8 | 0x80);
                number >>= 7;
            }
            out.push(number as u8);
        }
    }

    /// Reads a token that a client brought. None: no node made it.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (VERSION, mut rest) = bytes.split_first().map(|(first, rest)| (*first, rest))? else {
            return None;
        };
        let partition = u32::try_from(take_number(&mut rest)?).ok()?;
        let (epoch, sequence) = (take_number(&mut rest)?, take_number(&mut rest)?);
        rest.is_empty().then_some(Self {
            partition: PartitionId(partition),
            epoch: Epoch(epoch),
            sequence: Sequence(sequence),
        })
    }
}

/// What a read asks of the partition's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtLeast {
    /// First epoch of the content that the session knows.
    pub epoch: Epoch,
    /// The state after this sequence, or any later one.
    pub sequence: Sequence,
    /// How long the read may wait for it, milliseconds.
    pub wait_ms: u32,
}

/// A LEB128 number below 2^64 in its shortest form: one token has one form.
fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits || (shift > 0 && *byte == 0) {
            return None;
        }
        number |= bits << shift;
        if *byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(partition: u32, epoch: u64, sequence: u64) -> SessionToken {
        SessionToken {
            partition: PartitionId(partition),
            epoch: Epoch(epoch),
            sequence: Sequence(sequence),
        }
    }

    #[test]
    fn a_token_comes_back_as_it_left_and_is_small() {
        for (token, length) in [
            (token(0, 0, 0), 4),
            (token(7, 12, 1_000_000), 6),
            (token(300, 128, 0x7f), 6),
            (token(u32::MAX, u64::MAX, u64::MAX), SESSION_TOKEN_BYTES_MAX),
        ] {
            let mut bytes = Vec::new();
            token.encode(&mut bytes);
            assert_eq!((bytes.len(), SessionToken::decode(&bytes)), (length, Some(token)));
            for cut in 0..length {
                assert_eq!(SessionToken::decode(&bytes[..cut]), None, "cut to {cut} bytes");
            }
            bytes.push(0);
            assert_eq!(SessionToken::decode(&bytes), None, "a byte too many");
        }
    }

    #[test]
    fn what_no_node_made_is_no_token() {
        for bytes in [
            &[][..],
            &[2, 1, 1, 1],
            // A partition above 32 bits, a number above 64, one in a longer form than it needs.
            &[1, 0xff, 0xff, 0xff, 0xff, 0x1f, 1, 1],
            &[1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 1],
            &[1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[1, 0x81, 0x00, 1, 1],
        ] {
            assert_eq!(SessionToken::decode(bytes), None, "{bytes:?}");
        }
    }
}
