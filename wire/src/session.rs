//! One client connection: its calls, limits, deadlines and end.
//!
//! ```text
//!           client preface                  go_away             PING answered, or
//!  Preface ────────────────► Open ─────────────────► Notified ─────────────────────► Draining
//!     │ HTTP/1, TLS, noise,   │ flood, failure          │          drain_notice_ms      │
//!     ▼ handshake timeout     ▼                         ▼                               ▼
//!   Closed ◄──────────────────┴─────────────────────────┴──── is_finished: no stream open, all sent
//! ```
//! `Notified` has sent a GOAWAY that names no stream: calls under way to us are still taken.
//! `Draining` has sent the one that names the last stream: later ones are the client's to retry.

use std::{mem, rc::Rc};

use stateside_types::{Reason, Refusal};

use crate::{
    Method, Millis,
    endpoint::Endpoint,
    message::PREFIX_BYTES,
    nghttp2::{Announced, Connection, ErrorCode, Failure, NameValue, frame},
    preface::{CLIENT_PREFACE, HTTP1_ANSWER, Preface, Verdict},
    rejection::Rejection,
    status::RefusalFields,
    stream::{State, StreamId},
    streams::Streams,
};

/// Room for a second message on a stream whose window was fitted to the first, so that it is
/// seen and refused instead of waiting forever.
const WINDOW_SLACK_BYTES: u32 = 64;

const OK_HEADERS: &[NameValue<'static>] =
    &[NameValue::fixed(":status", "200"), NameValue::fixed("content-type", "application/grpc")];

/// What a session has for its owner.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A call with its whole request message. Answer it with `respond` or `refuse`, in any order,
    /// at any time.
    Request {
        /// Names the call.
        stream: StreamId,
        /// Index in [`SessionConfig::methods`](crate::SessionConfig::methods).
        method: Method,
        /// When the session will answer `DEADLINE_EXCEEDED` by itself.
        deadline: Option<Millis>,
        /// The message without gRPC's prefix. Give the buffer back with `recycle`.
        message: Vec<u8>,
    },
    /// A call that was handed out needs no answer any more: its client reset it, or its deadline
    /// passed and it was told so. Work on it may stop; an answer does no harm.
    Cancelled {
        /// Names the call.
        stream: StreamId,
    },
}

/// Why a session is over. Send what `send` still has, then close the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// The client speaks HTTP/1; it is told.
    #[error("the client speaks HTTP/1, not HTTP/2")]
    Http1,
    /// The first bytes are no HTTP at all: TLS, or noise.
    #[error("the client does not speak HTTP/2")]
    NotHttp2,
    /// No client SETTINGS in time.
    #[error("the client did not begin HTTP/2 in time")]
    HandshakeTimeout,
    /// Control frames without end, or acknowledgements that the client does not read.
    #[error("the client floods the connection with control frames")]
    Flooded,
    /// The session ended earlier: GOAWAY after a protocol error, or drained.
    #[error("the connection has ended")]
    Ended,
    /// The library could not allocate.
    #[error("out of memory for the connection")]
    OutOfMemory,
    /// A fatal state of the library; its number.
    #[error("fatal HTTP/2 library error {0}")]
    Library(i32),
}

impl From<Failure> for Closed {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Flooded => Self::Flooded,
            Failure::OutOfMemory => Self::OutOfMemory,
            Failure::Fatal(code) => Self::Library(code),
        }
    }
}

/// See the drawing above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Preface,
    Open,
    Notified { until: Millis },
    Draining,
    Closed(Closed),
}

/// One connection's server side. Lives on one core, in the table of its connections.
pub struct Session {
    /// Made when the client's preface was seen. Before, the client is sent nothing (it may not
    /// speak HTTP/2 at all), and thousands that connect and stay silent must cost little.
    connection: Option<Connection<Streams>>,
    streams: Streams,
    phase: Phase,
    preface: Preface,
    /// When the client must have sent its SETTINGS.
    handshake_until: Millis,
    last_active: Millis,
    /// Bytes outside HTTP/2 that are to be sent: the answer to HTTP/1.
    farewell: &'static [u8],
    /// Nothing more will come from the client.
    input_ended: bool,
    /// The client was told of an error of its own, with a GOAWAY.
    accused: bool,
    /// Reused by `tick`.
    expired: Vec<StreamId>,
}

impl Session {
    /// A session for a connection that was just accepted.
    pub fn new(endpoint: &Rc<Endpoint>, now: Millis) -> Self {
        let config = &endpoint.config;
        Self {
            connection: None,
            streams: Streams::new(Rc::clone(endpoint), now),
            phase: Phase::Preface,
            preface: Preface::default(),
            handshake_until: now.plus(config.handshake_timeout_ms),
            last_active: now,
            farewell: &[],
            input_ended: false,
            accused: false,
            expired: Vec::new(),
        }
    }

    /// Takes bytes from the socket, cut anywhere. Then ask `next_event` until it has none, and `send`.
    ///
    /// # Errors
    /// The session is over: flush what `send` has, then close.
    pub fn receive(&mut self, bytes: &[u8], now: Millis) -> Result<(), Closed> {
        self.streams.now = now;
        self.last_active = now;
        match self.phase {
            Phase::Closed(closed) => return Err(closed),
            Phase::Preface => match self.preface.read(bytes) {
                Verdict::Undecided => return Ok(()),
                Verdict::Http2(rest) => {
                    self.begin_http2()?;
                    self.feed(CLIENT_PREFACE)?;
                    self.feed(rest)?;
                }
                Verdict::Http1 => {
                    self.farewell = HTTP1_ANSWER;
                    return Err(self.close(Closed::Http1));
                }
                Verdict::Foreign => return Err(self.close(Closed::NotHttp2)),
            },
            Phase::Open | Phase::Notified { .. } | Phase::Draining => self.feed(bytes)?,
        }
        if self.streams.ping_answered && matches!(self.phase, Phase::Notified { .. }) {
            self.refuse_new_streams()?;
        }
        Ok(())
    }

    /// The client has shut down its side of the socket: requests that are not whole never
    /// will be, the others are still answered. `is_finished` says when that is done.
    pub fn receive_end(&mut self) {
        self.input_ended = true;
    }

    /// The next thing to do, if any. Ask after `receive`, after `tick` and after `send` until there is none:
    /// calls wait here while the unsent answers exceed `send_backlog_bytes_max`.
    pub fn next_event(&mut self) -> Option<Event> {
        if let Some(stream) = self.streams.cancelled.pop_front() {
            return Some(Event::Cancelled { stream });
        }
        if self.streams.backlog_bytes > self.streams.endpoint.config.send_backlog_bytes_max
            || matches!(self.phase, Phase::Closed(_))
        {
            return None;
        }
        let id = self.streams.pop_request()?;
        let stream = self.streams.get(id).expect("a popped request is open");
        stream.state = State::Running;
        let method = stream.method.expect("a queued call has a method");
        let deadline = (stream.deadline != Millis::NEVER).then_some(stream.deadline);
        let message = self.streams.take_message(id);
        // What the message held may be what another stream waits for.
        if self.streams.any_waiting()
            && let Err(failure) = self.try_settle()
        {
            self.close(failure.into());
        }
        Some(Event::Request { stream: id, method, deadline, message })
    }

    /// Gives the buffer of a request message back, so that steady traffic allocates none.
    pub fn recycle(&mut self, message: Vec<u8>) {
        self.streams.endpoint.recycle(message);
    }

    /// Answers a call with one message and status OK. `write` appends the encoded message; it
    /// must not touch what is there. False: the call is gone, has been answered, or was reset since
    /// the unsent answers exceed `response_backlog_bytes_max`.
    pub fn respond(&mut self, stream: StreamId, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        if !self.is_running(stream) {
            return false;
        }
        let mut framed = self.streams.endpoint.take_buffer();
        framed.extend_from_slice(&[0; PREFIX_BYTES]);
        write(&mut framed);
        let length = framed.len().checked_sub(PREFIX_BYTES).expect("the message is appended");
        let config = &self.streams.endpoint.config;
        if length > config.response_bytes_max || u32::try_from(length).is_err() {
            let refusal = Refusal::new(
                Reason::ResponseTooLarge,
                format!(
                    "the answer has {length} bytes, above the limit of {}",
                    config.response_bytes_max
                ),
            );
            self.streams.endpoint.recycle(framed);
            return self.refuse(stream, &refusal);
        }
        framed[1..PREFIX_BYTES].copy_from_slice(&(length as u32).to_be_bytes());
        if !self.streams.put_answer(stream, framed) {
            // Not a refusal: that would say that nothing was done. A reset promises nothing.
            self.streams.begin_answer(stream);
            self.submitted(|this| this.http2().reset(stream.number, ErrorCode::EnhanceYourCalm));
            return false;
        }
        self.submitted(|this| this.http2().respond(stream.number, stream.slot, OK_HEADERS))
    }

    /// Answers a call with a refusal. False: the call is gone, or has been answered.
    pub fn refuse(&mut self, stream: StreamId, refusal: &Refusal) -> bool {
        if !self.is_running(stream) {
            return false;
        }
        self.streams.begin_answer(stream);
        self.submitted(|this| this.submit_refusal(stream, refusal, "200"))
    }

    /// Tells the time: ends calls whose deadline has passed, handshakes and drains that take too
    /// long. Costs next to nothing while none has. Then ask `next_event`, and `send`.
    ///
    /// # Errors
    /// The session is over: flush what `send` has, then close.
    pub fn tick(&mut self, now: Millis) -> Result<(), Closed> {
        self.streams.now = now;
        match self.phase {
            Phase::Closed(closed) => return Err(closed),
            Phase::Notified { until } if until <= now => self.refuse_new_streams()?,
            _ => {}
        }
        if !self.streams.settings_received && self.handshake_until <= now {
            return Err(self.close(Closed::HandshakeTimeout));
        }
        if self.streams.next_deadline <= now {
            let mut expired = mem::take(&mut self.expired);
            self.streams.expired(now, &mut expired);
            for id in expired.drain(..) {
                if self.is_running(id) {
                    self.streams.cancelled.push_back(id);
                }
                self.streams.begin_answer(id);
                self.streams.rejected.push((id, Rejection::DeadlineExceeded));
            }
            self.expired = expired;
            self.settle()?;
        }
        Ok(())
    }

    /// When `tick` has something to do at the earliest.
    pub fn next_tick(&self) -> Option<Millis> {
        let mut at = self.streams.next_deadline;
        if !self.streams.settings_received {
            at = at.min(self.handshake_until);
        }
        if let Phase::Notified { until } = self.phase {
            at = at.min(until);
        }
        (at != Millis::NEVER).then_some(at)
    }

    /// Appends bytes for the socket to `out`, until about `budget` were appended (one frame more at
    /// most) or nothing can go now. Then ask `next_event` again.
    pub fn send(&mut self, out: &mut Vec<u8>, budget: usize) {
        if self.connection.is_none() {
            out.extend_from_slice(mem::take(&mut self.farewell));
            return;
        }
        self.streams.out_bytes_max = out.len().saturating_add(budget);
        // DATA frames are written by a callback: they go to the same buffer.
        mem::swap(&mut self.streams.out, out);
        let result = self.write_frames();
        mem::swap(&mut self.streams.out, out);
        if let Err(failure) = result {
            self.close(failure.into());
        }
    }

    /// Begins a graceful end: the client is told to open no more calls, those that are open
    /// are finished, then `is_finished`.
    pub fn go_away(&mut self, now: Millis) {
        self.streams.now = now;
        let result = match self.phase {
            Phase::Preface => {
                self.close(Closed::Ended);
                return;
            }
            Phase::Open => {
                let until = now.plus(self.streams.endpoint.config.drain_notice_ms);
                self.phase = Phase::Notified { until };
                self.streams.ping_answered = false;
                self.http2().announce_shutdown()
            }
            Phase::Notified { .. } | Phase::Draining | Phase::Closed(_) => return,
        };
        if let Err(failure) = result {
            self.close(failure.into());
        }
    }

    /// Nothing more will come and nothing more is to be sent: close the socket.
    pub fn is_finished(&self) -> bool {
        let nothing_open = self.streams.open() == 0;
        let done = match self.phase {
            Phase::Closed(_) => self.farewell.is_empty(),
            Phase::Draining => nothing_open || self.input_ended && !self.streams.any_unanswered(),
            Phase::Preface => self.input_ended,
            // Answers that wait for windows wait forever now; those that can go still go.
            Phase::Open | Phase::Notified { .. } => {
                self.input_ended && !self.streams.any_unanswered()
            }
        };
        (done || !self.library_reads()) && !self.wants_write()
    }

    /// Calls that are open: arriving, under way, or with answers to be sent.
    pub fn open_streams(&self) -> usize {
        self.streams.open()
    }

    /// Bytes of answers that wait for `send` or for the client's windows.
    pub fn backlog_bytes(&self) -> usize {
        self.streams.backlog_bytes
    }

    /// Whether the socket should be read, given the bytes that `send` produced and the socket has not
    /// yet taken. False while too much could go and does not: a client that never
    /// reads stops being read. Answers that only wait for the client's windows do not count, since
    /// the WINDOW_UPDATE that frees them has to be read.
    pub fn wants_read(&self, unsent_bytes: usize) -> bool {
        let sendable = if self.wants_write() { self.streams.backlog_bytes } else { 0 };
        !self.input_ended
            && !matches!(self.phase, Phase::Closed(_))
            && unsent_bytes + sendable <= self.streams.endpoint.config.send_backlog_bytes_max
    }

    /// Since when the connection has had no open call and no bytes from the client.
    pub fn idle_since(&self) -> Option<Millis> {
        (self.streams.open() == 0).then_some(self.last_active)
    }

    /// Whether the client broke the protocol and the session ends, or has ended, for that.
    pub fn is_peers_fault(&self) -> bool {
        let gave_up = match self.phase {
            Phase::Closed(closed) => matches!(
                closed,
                Closed::Http1 | Closed::NotHttp2 | Closed::HandshakeTimeout | Closed::Flooded
            ),
            _ => false,
        };
        gave_up || self.accused
    }

    /// Moves frames from the library to `streams.out`, up to `out_bytes_max`.
    fn write_frames(&mut self) -> Result<(), Failure> {
        while self.streams.out.len() < self.streams.out_bytes_max {
            let bytes = begun(&mut self.connection).send(&mut self.streams)?;
            self.accused |= is_accusation(bytes);
            self.streams.out.extend_from_slice(bytes);
            let is_drained =
                bytes.is_empty() && self.streams.out.len() < self.streams.out_bytes_max;
            // All queued frames are out, answers among them. The library drops an answer that is
            // queued behind a reset of its stream, so such resets come only now. And streams
            // that ended have made room for others.
            if is_drained && !self.reset_answered_early()? && !self.grant_windows()? {
                break;
            }
        }
        Ok(())
    }

    /// The client speaks HTTP/2: the library has a session for it from now on.
    fn begin_http2(&mut self) -> Result<(), Closed> {
        let endpoint = &self.streams.endpoint;
        let config = &endpoint.config;
        let announced = Announced {
            streams_max: config.streams_max,
            stream_window: config.stream_window_bytes,
            connection_window: config.connection_window_bytes,
            header_bytes_max: config.header_bytes_max,
        };
        match Connection::new(&endpoint.setup, &announced) {
            Ok(connection) => {
                self.connection = Some(connection);
                self.phase = Phase::Open;
                Ok(())
            }
            Err(failure) => Err(self.close(failure.into())),
        }
    }

    fn http2(&mut self) -> &mut Connection<Streams> {
        begun(&mut self.connection)
    }

    /// False: the library is done with what the client sends.
    fn library_reads(&self) -> bool {
        self.connection.as_ref().is_none_or(Connection::wants_read)
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), Closed> {
        if !self.library_reads() {
            return Err(self.close(Closed::Ended));
        }
        let connection = begun(&mut self.connection);
        if let Err(failure) = connection.receive(&mut self.streams, bytes) {
            return Err(self.close(failure.into()));
        }
        if self.streams.flooded {
            return Err(self.close(Closed::Flooded));
        }
        self.settle()
    }

    /// Does what the callbacks noted.
    fn settle(&mut self) -> Result<(), Closed> {
        self.try_settle().map_err(|failure| self.close(failure.into()))
    }

    fn try_settle(&mut self) -> Result<(), Failure> {
        let consumed = mem::take(&mut self.streams.unconsumed_bytes);
        if consumed > 0 {
            self.http2().consume(consumed)?;
        }
        // First, since a reservation may be refused.
        self.grant_windows()?;
        while let Some((id, rejection)) = self.streams.rejected.pop() {
            // The client may have reset it since, in the same bytes.
            let Some(stream) = self.streams.get(id) else { continue };
            let method = stream.method;
            if rejection == Rejection::Malformed {
                self.http2().reset(id.number, ErrorCode::Protocol)?;
            } else {
                let refusal = rejection.refusal(&self.streams.endpoint.config);
                self.streams.endpoint.count_rejection(method, refusal.reason);
                self.submit_refusal(id, &refusal, rejection.http_status())?;
            }
        }
        Ok(())
    }

    /// Lets large messages come that were waiting. True: some may.
    fn grant_windows(&mut self) -> Result<bool, Failure> {
        let mut granted = false;
        while let Some((number, total_bytes)) = self.streams.next_grant() {
            self.http2().set_window(number, total_bytes.saturating_add(WINDOW_SLACK_BYTES))?;
            granted = true;
        }
        Ok(granted)
    }

    /// Tells clients that still send to stop (RFC 9113, section 8.1). True: there were some.
    fn reset_answered_early(&mut self) -> Result<bool, Failure> {
        let mut reset = false;
        while let Some(number) = self.streams.answered_early.pop() {
            // Its rest may have arrived since: then the stream is over, or about to be.
            if self.streams.still_sends(number) {
                self.http2().reset(number, ErrorCode::NoError)?;
                reset = true;
            }
        }
        Ok(reset)
    }

    fn submit_refusal(
        &mut self,
        stream: StreamId,
        refusal: &Refusal,
        http_status: &'static str,
    ) -> Result<(), Failure> {
        let fields = RefusalFields::new(refusal);
        self.http2().respond_headers_only(stream.number, &fields.headers(http_status))
    }

    fn is_running(&mut self, stream: StreamId) -> bool {
        !matches!(self.phase, Phase::Closed(_))
            && self.streams.get(stream).is_some_and(|stream| stream.state == State::Running)
    }

    fn submitted(&mut self, submit: impl FnOnce(&mut Self) -> Result<(), Failure>) -> bool {
        let result = submit(self);
        result.map_err(|failure| self.close(failure.into())).is_ok()
    }

    fn refuse_new_streams(&mut self) -> Result<(), Closed> {
        self.phase = Phase::Draining;
        self.http2().refuse_new_streams().map_err(|failure| self.close(failure.into()))
    }

    fn wants_write(&self) -> bool {
        self.connection.as_ref().is_some_and(Connection::wants_write)
    }

    fn close(&mut self, closed: Closed) -> Closed {
        if closed == Closed::Flooded {
            self.http2().terminate(ErrorCode::EnhanceYourCalm);
        }
        self.phase = Phase::Closed(closed);
        closed
    }
}

/// A connection of a session that is past its preface.
fn begun(connection: &mut Option<Connection<Streams>>) -> &mut Connection<Streams> {
    connection.as_mut().expect("there are no streams, frames or drains before the preface")
}

/// Whether a frame that leaves is a GOAWAY with an error. The library hands out one frame at a time,
/// and whole: no header block of ours is longer than its buffer.
fn is_accusation(frame: &[u8]) -> bool {
    // Nine bytes of frame header, the last stream, then the code. Source: RFC 9113, section 6.8.
    frame.get(3) == Some(&frame::GOAWAY)
        && frame.get(13..17).is_some_and(|code| code != (ErrorCode::NoError as u32).to_be_bytes())
}
