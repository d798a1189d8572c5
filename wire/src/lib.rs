//! The server's side of gRPC over HTTP/2, sans-IO: bytes from the socket go in, requests come
//! out, answers go in, bytes for the socket come out. No IO, no clock, no randomness.
//!
//! ```text
//!             receive(bytes, now)          next_event()
//!  socket ───────────► ┌─────────┐ ───────────────────► Request { message }, Cancelled
//!                      │ Session │
//!  socket ◄─────────── └─────────┘ ◄─────────────────── respond(stream, …), refuse(stream, …)
//!               send(out, budget)
//! ```
//!
//! A [`Session`] is one connection. What a core's sessions share (configuration, pooled
//! buffers, library set-up) is an [`Endpoint`]. Framing, HPACK and flow control are libnghttp2's; the
//! rules of gRPC, every limit and every refusal are here. The one module with `unsafe` is
//! `nghttp2`.
//!
//! The hazard: libnghttp2 sends only when asked. After each `receive`, `tick` and `respond`, call
//! `send`; after each `send`, ask `next_event` again, since calls wait while answers pile up.

#![deny(unsafe_code)]

mod buffer_pool;
mod control_frames;
mod endpoint;
mod message;
mod nghttp2;
mod preface;
mod rejection;
mod request_budget;
mod request_head;
mod session;
mod status;
mod stream;
mod streams;

pub use endpoint::{Endpoint, Rejections, SessionConfig};
pub use session::{Closed, Event, Session};
pub use stream::StreamId;

/// Milliseconds on a clock that never runs backwards; its zero is whatever the caller likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// Later than any time that occurs.
    pub(crate) const NEVER: Self = Self(u64::MAX);

    /// This much later.
    #[must_use]
    pub const fn plus(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }
}

/// Index of a method in [`SessionConfig::methods`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Method(pub u16);
