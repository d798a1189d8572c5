//! Puts a request message together from pieces of DATA, wherever they were cut.
//!
//! ```text
//!  0      1                 5                5 + length
//! ┌──────┬─────────────────┬────────────────┐
//! │ flag │ length, big-end │ message        │   flag: 0 plain, 1 compressed
//! └──────┴─────────────────┴────────────────┘
//! ```

use crate::rejection::Rejection;

/// Bytes of the prefix that gRPC puts before each message.
pub(crate) const PREFIX_BYTES: usize = 5;
/// A first piece makes room for this much at least, so that small messages do not regrow.
const FIRST_CAPACITY_BYTES: usize = 1 << 10;

/// One message on its way in.
#[derive(Default)]
pub(crate) struct Incoming {
    prefix: [u8; PREFIX_BYTES],
    prefix_length: u8,
    /// Announced length of the message; meaningful once the prefix is whole.
    length: u32,
    /// The message so far.
    pub(crate) message: Vec<u8>,
}

impl Incoming {
    /// Takes a piece.
    #[inline]
    pub(crate) fn push(&mut self, mut bytes: &[u8], bytes_max: usize) -> Result<(), Rejection> {
        if usize::from(self.prefix_length) < PREFIX_BYTES {
            let have = usize::from(self.prefix_length);
            let count = bytes.len().min(PREFIX_BYTES - have);
            self.prefix[have..have + count].copy_from_slice(&bytes[..count]);
            self.prefix_length += count as u8;
            bytes = &bytes[count..];
            if !self.has_prefix() {
                return Ok(());
            }
            let [flag, length @ ..] = self.prefix;
            self.length = u32::from_be_bytes(length);
            match flag {
                0 => {}
                1 => return Err(Rejection::Compressed),
                other => return Err(Rejection::BadFlag(other)),
            }
            if self.length as usize > bytes_max {
                return Err(Rejection::MessageTooLarge(self.length));
            }
        }
        let missing = self.length as usize - self.message.len();
        if bytes.len() > missing {
            return Err(Rejection::SecondMessage);
        }
        if self.message.capacity() - self.message.len() < bytes.len() {
            // Grows with what has arrived, not with what the prefix promises, and ends exact.
            let grown = (2 * self.message.len()).max(FIRST_CAPACITY_BYTES).max(bytes.len());
            self.message.reserve_exact(grown.min(missing));
        }
        self.message.extend_from_slice(bytes);
        Ok(())
    }

    /// The stream has ended: whether it brought one whole message.
    pub(crate) fn finish(&self) -> Result<(), Rejection> {
        if self.prefix_length == 0 {
            Err(Rejection::NoMessage)
        } else if !self.has_prefix() || self.message.len() < self.length as usize {
            Err(Rejection::Truncated)
        } else {
            Ok(())
        }
    }

    /// Bytes of DATA so far.
    pub(crate) fn received_bytes(&self) -> usize {
        usize::from(self.prefix_length) + self.message.len()
    }

    /// Bytes of prefix and message together, once the prefix is there.
    pub(crate) fn total_bytes(&self) -> Option<u32> {
        self.has_prefix().then_some(self.length.saturating_add(PREFIX_BYTES as u32))
    }

    /// Ready for another message; hands out the buffer.
    pub(crate) fn reset(&mut self) -> Vec<u8> {
        self.prefix_length = 0;
        self.length = 0;
        std::mem::take(&mut self.message)
    }

    fn has_prefix(&self) -> bool {
        usize::from(self.prefix_length) == PREFIX_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((message.len() as u32).to_be_bytes());
        bytes.extend(message);
        bytes
    }

    #[test]
    fn a_message_is_whole_wherever_it_was_cut() {
        let bytes = framed(b"hello, partition");
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let mut incoming = Incoming::default();
                for piece in [&bytes[..first], &bytes[first..second], &bytes[second..]] {
                    incoming.push(piece, 100).unwrap();
                }
                assert_eq!(incoming.finish(), Ok(()));
                assert_eq!(incoming.reset(), b"hello, partition");
                assert_eq!(incoming.finish(), Err(Rejection::NoMessage));
            }
        }
    }

    #[test]
    fn what_is_not_one_plain_message_is_told_apart() {
        let push = |bytes: &[u8]| {
            let mut incoming = Incoming::default();
            incoming.push(bytes, 8).and_then(|()| incoming.finish())
        };
        assert_eq!(push(&framed(b"")), Ok(()));
        assert_eq!(push(&framed(b"12345678")), Ok(()));
        assert_eq!(push(b""), Err(Rejection::NoMessage));
        assert_eq!(push(&[0, 0, 0]), Err(Rejection::Truncated));
        assert_eq!(push(&framed(b"1234")[..8]), Err(Rejection::Truncated));
        assert_eq!(push(&[0, 0, 0, 0, 9]), Err(Rejection::MessageTooLarge(9)));
        assert_eq!(push(&[0, 255, 255, 255, 255]), Err(Rejection::MessageTooLarge(u32::MAX)));
        assert_eq!(push(&[1, 0, 0, 0, 0]), Err(Rejection::Compressed));
        assert_eq!(push(&[2, 0, 0, 0, 0]), Err(Rejection::BadFlag(2)));
        assert_eq!(push(&[framed(b"1"), framed(b"2")].concat()), Err(Rejection::SecondMessage));
    }

    #[test]
    fn memory_follows_what_arrived_not_what_was_promised() {
        let mut incoming = Incoming::default();
        incoming.push(&[0, 0, 16, 0, 0, 1, 2, 3], 1 << 20).unwrap();
        assert!(incoming.message.capacity() <= FIRST_CAPACITY_BYTES);
    }
}
