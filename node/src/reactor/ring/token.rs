//! The 64 bits that travel with an operation through the kernel and come back with its
//! completions: what it was, and for whom.
//!
//! ```text
//!   63       62  60 59                    32 31                     0
//!  ┌─────────┬──────┬────────────────────────┬────────────────────────┐
//!  │ cancels │ kind │ generation of the slot │ index of the slot      │
//!  └─────────┴──────┴────────────────────────┴────────────────────────┘
//! ```
//!
//! A slot is used again only after the last completion of its operations, so a completion never
//! meets a successor; the generation is checked all the same, for it costs nothing.

/// Generations wrap here.
pub(super) const GENERATION_MASK: u32 = (1 << 28) - 1;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Multishot accept; the slot is a listener's.
    Accept = 1,
    /// Multishot receive; the slot is a connection's.
    Receive = 2,
    /// One-shot poll for room to send; the slot is a connection's.
    Writable = 3,
    /// Multishot poll of the eventfd that other threads write.
    Wake = 4,
    /// A write to a file; the slot is a file write's.
    FileWrite = 5,
    /// The flush behind such a write; the same slot.
    FileFlush = 6,
}

const CANCELS: u64 = 1 << 63;

/// An operation's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// This is not the operation itself but a request to cancel it.
    pub(super) cancels: bool,
    pub(super) kind: Kind,
    pub(super) generation: u32,
    pub(super) index: u32,
}

impl Token {
    pub(super) fn new(kind: Kind, index: u32, generation: u32) -> Self {
        debug_assert!(generation <= GENERATION_MASK);
        Self { cancels: false, kind, generation, index }
    }

    /// The name of a request to cancel this operation.
    pub(super) fn cancellation(self) -> Self {
        Self { cancels: true, ..self }
    }

    /// The operation that this request is to cancel.
    pub(super) fn target(self) -> Self {
        Self { cancels: false, ..self }
    }

    pub(super) fn encode(self) -> u64 {
        let cancels = if self.cancels { CANCELS } else { 0 };
        let kind = (self.kind as u64) << 60;
        cancels | kind | u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The token that [`encode`](Self::encode) made.
    pub(super) fn decode(bits: u64) -> Self {
        let kind = match bits >> 60 & 0b111 {
            1 => Kind::Accept,
            2 => Kind::Receive,
            3 => Kind::Writable,
            4 => Kind::Wake,
            5 => Kind::FileWrite,
            6 => Kind::FileFlush,
            other => unreachable!("the kernel returns user data as it was given, not kind {other}"),
        };
        Self {
            cancels: bits & CANCELS != 0,
            kind,
            generation: (bits >> 32) as u32 & GENERATION_MASK,
            index: bits as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_went() {
        use Kind::*;
        for kind in [Accept, Receive, Writable, Wake, FileWrite, FileFlush] {
            for index in [0, 1, 16_383, u32::MAX] {
                for generation in [0, 1, GENERATION_MASK] {
                    let token = Token::new(kind, index, generation);
                    assert_eq!(Token::decode(token.encode()), token);
                    let cancel = token.cancellation();
                    assert_eq!(Token::decode(cancel.encode()), cancel);
                    assert_ne!(cancel.encode(), token.encode());
                    assert_eq!(cancel.target(), token);
                }
            }
        }
    }
}
