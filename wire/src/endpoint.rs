//! What the sessions of one core share: configuration, pooled buffers, the library's set-up.

use std::{cell::RefCell, collections::HashMap, mem, rc::Rc};

use stateside_types::{Reason, limits};

use crate::{
    Method, buffer_pool::BufferPool, nghttp2::Setup, request_budget::Account, streams::Streams,
};

/// Methods and limits of a server. `new` takes every limit from `stateside_types::limits`.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Full paths such as `/stateside.v1.DataPlane/Get`; the index is the [`Method`](crate::Method).
    pub methods: &'static [&'static str],
    /// Calls open at a time.
    pub streams_max: u32,
    /// What a client may send on one stream before the rest of its message is reserved.
    pub stream_window_bytes: u32,
    /// What a client may send on all streams before it is read.
    pub connection_window_bytes: u32,
    /// Headers of one request, counted as HTTP/2 does.
    pub header_bytes_max: u32,
    /// One request message.
    pub message_bytes_max: usize,
    /// Request messages held and not yet handed out.
    pub request_bytes_per_connection_max: usize,
    /// The same for all connections of the endpoint.
    pub request_bytes_per_core_max: usize,
    /// One response message. A larger one is replaced by a `RESPONSE_TOO_LARGE` refusal.
    pub response_bytes_max: usize,
    /// Unsent bytes of answers above which no further call is started, and nothing is read
    /// while the socket does not take them.
    pub send_backlog_bytes_max: usize,
    /// Unsent bytes of answers above which an answer costs its stream a reset.
    pub response_backlog_bytes_max: usize,
    /// The same for all connections of the endpoint.
    pub response_backlog_bytes_per_core_max: usize,
    /// From connecting to the client's first SETTINGS.
    pub handshake_timeout_ms: u64,
    /// From the first GOAWAY of a drain to the second, if the client does not answer.
    pub drain_notice_ms: u64,
}

impl SessionConfig {
    /// The limits of `stateside_types::limits`.
    pub const fn new(methods: &'static [&'static str]) -> Self {
        Self {
            methods,
            streams_max: limits::STREAMS_PER_CONNECTION_MAX,
            stream_window_bytes: limits::STREAM_WINDOW_BYTES,
            connection_window_bytes: limits::CONNECTION_WINDOW_BYTES,
            header_bytes_max: limits::HEADER_BYTES_MAX,
            message_bytes_max: limits::BATCH_BYTES_MAX,
            request_bytes_per_connection_max: limits::REQUEST_BYTES_PER_CONNECTION_MAX,
            request_bytes_per_core_max: limits::REQUEST_BYTES_PER_CORE_MAX,
            response_bytes_max: limits::RESPONSE_BYTES_MAX,
            send_backlog_bytes_max: limits::SEND_BACKLOG_BYTES_MAX,
            response_backlog_bytes_max: limits::RESPONSE_BACKLOG_BYTES_MAX,
            response_backlog_bytes_per_core_max: limits::RESPONSE_BACKLOG_BYTES_PER_CORE_MAX,
            handshake_timeout_ms: limits::HANDSHAKE_TIMEOUT_MS,
            drain_notice_ms: limits::DRAIN_NOTICE_MS,
        }
    }
}

/// Lives on one core, shared by its sessions through `Rc`, for as long as any of them.
pub struct Endpoint {
    pub(crate) config: SessionConfig,
    pub(crate) setup: Setup<Streams>,
    pool: RefCell<BufferPool>,
    /// Request bytes held by all sessions.
    pub(crate) requests: Account,
    /// Unsent answer bytes of all sessions.
    pub(crate) answers: Account,
    rejections: RefCell<Rejections>,
}

/// How many calls sessions refused by themselves, by method (none: not known) and reason.
pub type Rejections = HashMap<(Option<Method>, Reason), u64>;

impl Endpoint {
    /// # Errors
    /// [`Closed::OutOfMemory`](crate::Closed::OutOfMemory).
    pub fn new(config: SessionConfig) -> Result<Rc<Self>, crate::Closed> {
        assert!(config.methods.len() <= usize::from(u16::MAX), "a Method is a u16");
        let setup = Setup::new(limits::UNSENT_ACKS_MAX)?;
        let requests = Account::new(config.request_bytes_per_core_max);
        let answers = Account::new(config.response_backlog_bytes_per_core_max);
        Ok(Rc::new(Self {
            config,
            setup,
            pool: RefCell::default(),
            requests,
            answers,
            rejections: RefCell::default(),
        }))
    }

    /// What it was made with.
    pub fn config(&self) -> &SessionConfig {
        &self.config
    }

    /// Takes back the buffer of a request message, for reuse. Buffers that are never
    /// given back are merely allocated anew.
    pub fn recycle(&self, buffer: Vec<u8>) {
        self.pool.borrow_mut().give(buffer);
    }

    /// The calls that sessions answered by themselves since this was asked last: what was no call,
    /// was too large, or took longer than its deadline. The owner has seen none of them, but for
    /// those whose deadline passed.
    pub fn take_rejections(&self) -> Rejections {
        mem::take(&mut *self.rejections.borrow_mut())
    }

    pub(crate) fn count_rejection(&self, method: Option<Method>, reason: Reason) {
        *self.rejections.borrow_mut().entry((method, reason)).or_default() += 1;
    }

    pub(crate) fn take_buffer(&self) -> Vec<u8> {
        self.pool.borrow_mut().take()
    }
}
