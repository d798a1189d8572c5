//! One call, from its headers to its last frame.
//!
//! ```text
//!          HEADERS           END_STREAM after        next_event
//!  free ───────────► Receiving ─────────────► Queued ──────────► Running
//!   ▲                    │    one whole message  │                  │
//!   │           rejected │                       │ deadline         │ respond, refuse, deadline
//!   │                    ▼                       ▼                  ▼
//!   │                 Answering ◄────────────────┴──────────────────┘
//!   └─── closed: answered and all sent, or RST_STREAM from either side (from every state)
//! ```
//!
//! An answer is a queue of messages and an end. Unary calls put one message and the end at once;
//! a server-streaming call would stay in `Running` and put messages one by one, which is
//! what [`Outgoing`] allows for.

use crate::{
    Method, Millis,
    message::Incoming,
    nghttp2::{NameValue, Read},
    request_budget::Holding,
    request_head::RequestHead,
};

/// Names a call of one session. Never names another: what is late finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamId {
    /// HTTP/2's number; never used twice on a connection.
    pub(crate) number: i32,
    /// Where the session keeps it.
    pub(crate) slot: u32,
}

impl StreamId {
    /// HTTP/2's number of the stream, for logs.
    pub const fn number(self) -> i32 {
        self.number
    }
}

/// See the drawing above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    #[default]
    Free,
    Receiving,
    Queued,
    Running,
    Answering,
}

/// State of one call. Slots are reused; buffers go back to the pool in between.
pub(crate) struct Stream {
    pub(crate) number: i32,
    pub(crate) state: State,
    /// The client has ended its side.
    pub(crate) remote_closed: bool,
    /// The large reservation is being waited for.
    pub(crate) waits_for_window: bool,
    pub(crate) head: RequestHead,
    /// Known once the request's headers are whole and good.
    pub(crate) method: Option<Method>,
    pub(crate) deadline: Millis,
    pub(crate) incoming: Incoming,
    pub(crate) holding: Holding,
    pub(crate) outgoing: Outgoing,
}

impl Stream {
    pub(crate) fn free() -> Self {
        Self {
            number: 0,
            state: State::Free,
            remote_closed: false,
            waits_for_window: false,
            head: RequestHead::default(),
            method: None,
            deadline: Millis::NEVER,
            incoming: Incoming::default(),
            holding: Holding::NONE,
            outgoing: Outgoing::default(),
        }
    }

    /// A request's headers begin.
    pub(crate) fn open(&mut self, number: i32, buffer: Vec<u8>) {
        debug_assert_eq!(self.state, State::Free);
        self.number = number;
        self.state = State::Receiving;
        self.remote_closed = false;
        self.waits_for_window = false;
        self.head = RequestHead::default();
        self.method = None;
        self.deadline = Millis::NEVER;
        self.incoming.message = buffer;
    }
}

/// The messages of an answer, framed and one after the other, and whether they end.
#[derive(Default)]
pub(crate) struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    ended: bool,
}

/// What ends an answer that went well.
const OK_TRAILERS: &[NameValue<'static>] = &[NameValue::fixed("grpc-status", "0")];

impl Outgoing {
    /// Queues a framed message; hands back a buffer for reuse.
    pub(crate) fn put(&mut self, framed: Vec<u8>) -> Vec<u8> {
        debug_assert!(!self.ended, "nothing follows the end");
        if self.bytes.is_empty() {
            // The common case, and the only one of unary calls: no copy.
            std::mem::replace(&mut self.bytes, framed)
        } else {
            self.bytes.extend_from_slice(&framed);
            framed
        }
    }

    /// No message follows: trailers come next.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// Bytes not yet handed to the connection.
    #[inline]
    pub(crate) fn unsent(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// What the next DATA frame of at most `limit` bytes can carry.
    pub(crate) fn read(&self, limit: usize) -> Read<'static> {
        let unsent = self.unsent();
        match self.ended {
            true if unsent <= limit => Read::Last(unsent, OK_TRAILERS),
            false if unsent == 0 => Read::Later,
            _ => Read::Some(unsent.min(limit)),
        }
    }

    /// Moves `length` bytes to `out`. False: there are not so many.
    pub(crate) fn write(&mut self, out: &mut Vec<u8>, length: usize) -> bool {
        let Some(bytes) = self.bytes.get(self.sent..self.sent + length) else { return false };
        out.extend_from_slice(bytes);
        self.sent += length;
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.sent = 0;
        }
        true
    }

    /// Forgets what is left; hands out the buffer.
    pub(crate) fn reset(&mut self) -> Vec<u8> {
        self.sent = 0;
        self.ended = false;
        std::mem::take(&mut self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Server streaming is not offered yet; its queue is, and works.
    #[test]
    fn an_answer_is_a_queue_of_messages_and_an_end() {
        let mut outgoing = Outgoing::default();
        let mut out = Vec::new();
        assert!(matches!(outgoing.read(10), Read::Later));

        outgoing.put(b"first".to_vec());
        assert!(matches!(outgoing.read(3), Read::Some(3)));
        assert!(outgoing.write(&mut out, 3));
        outgoing.put(b"second".to_vec());
        assert_eq!(outgoing.unsent(), 8);
        assert!(matches!(outgoing.read(100), Read::Some(8)));
        assert!(!outgoing.write(&mut out, 9));
        assert!(outgoing.write(&mut out, 8));
        assert!(matches!(outgoing.read(100), Read::Later));

        outgoing.put(b"third".to_vec());
        outgoing.end();
        assert!(matches!(outgoing.read(4), Read::Some(4)));
        assert!(matches!(outgoing.read(5), Read::Last(5, _)));
        assert!(outgoing.write(&mut out, 5));
        assert!(matches!(outgoing.read(5), Read::Last(0, _)));
        assert_eq!(out, b"firstsecondthird");
    }
}
