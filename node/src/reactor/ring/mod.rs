//! The network ring of a core: all its sockets and its log's writes on one io_uring.
//!
//! ```text
//!  wait ──► sleeps until something completes, a Waker wakes, the tick is due
//!   ▲         (one system call: submits what the last turn queued, runs deferred work, sleeps)
//!   │
//!  handle ◄── turn ──► completions become events; bytes are lent, not copied
//!   └─ send (a direct, non-blocking send; what does not fit waits for room on the ring)
//! ```
//!
//! Receives are multishot into shared buffers: an idle connection costs a slot here and an armed
//! receive in the kernel, and a request costs no system call before its answer is sent.
//!
//! # Hazards
//! - One `enter` runs a limited amount of deferred work (20 pieces on current kernels) and the
//!   rest waits for the next: so a turn that sleeps only after an `enter` that returned nothing
//!   is the rule, kept by `wait` (which asks the kernel for at least one completion).
//! - Events of one turn may name a connection that the caller has closed while it handled an
//!   earlier event of the same turn. Its id is not reused before the next turn.

mod accepting;
mod buffers;
mod connection;
mod file_writes;
mod sockets;
mod spinning;
mod token;
mod uring;
mod waiting;

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, Instant},
};

use stateside_types::limits;

pub use accepting::ListenerId;
pub use buffers::ReceivedBuffer;
pub use connection::ConnectionId;
pub use file_writes::{Flush, StableBytes};
pub use sockets::Closing;
pub(super) use uring::probe_ring;

use self::{
    accepting::Listener,
    buffers::ProvidedBuffers,
    connection::{Connections, Starved},
    file_writes::{EndedWrite, FileWrites},
    spinning::SpinPolicy,
    token::{Kind, Token},
    uring::{Completion, Uring},
    waiting::Sleep,
};
use super::{
    error::ReactorError,
    waker::{CoreWaker, Waker},
};

/// Sizes and times of a ring. The default is what a node uses; tests make things scarce.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Entries of the submission queue; more than fit wait in memory.
    pub submissions: u32,
    /// Entries of the completion queue; more than fit wait in the kernel.
    pub completions: u32,
    /// Receive buffers, a power of two.
    pub receive_buffers: u16,
    /// Size of a receive buffer.
    pub receive_buffer_bytes: u32,
    /// Connections above this are closed as soon as they are accepted.
    pub connections_max: usize,
    /// Longest sleep while something has happened within the last idle tick.
    pub tick_busy: Duration,
    /// Longest sleep otherwise.
    pub tick_idle: Duration,
    /// How long to look for work without a system call before sleeping, when that is likely to
    /// find some. Zero: not at all.
    pub spin: Duration,
    /// Pause before accepting again after descriptors or memory ran out.
    pub accept_retry: Duration,
    /// Longest life of a connection after it was closed gracefully.
    pub close_grace: Duration,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self {
            submissions: 1024,
            completions: 8192,
            receive_buffers: limits::RECEIVE_BUFFERS as u16,
            receive_buffer_bytes: limits::RECEIVE_BUFFER_BYTES as u32,
            connections_max: limits::CONNECTIONS_PER_CORE_MAX,
            tick_busy: Duration::from_millis(limits::TICK_BUSY_MS),
            tick_idle: Duration::from_millis(limits::TICK_IDLE_MS),
            spin: Duration::ZERO,
            accept_retry: Duration::from_millis(limits::ACCEPT_RETRY_MS),
            close_grace: Duration::from_millis(limits::CLOSE_GRACE_MS),
        }
    }
}

const _: () = assert!(limits::RECEIVE_BUFFERS.is_power_of_two());
const _: () = assert!(limits::RECEIVE_BUFFERS <= 1 << 15);

/// What a turn found.
#[derive(Debug)]
pub enum Event {
    /// A client connected; it is being received from already.
    Accepted {
        /// The new connection.
        connection: ConnectionId,
        /// Where it came in.
        listener: ListenerId,
    },
    /// Accepting has begun to fail, e.g. for want of descriptors. The ring tries again by
    /// itself, and says nothing more until it has succeeded in between.
    AcceptFailed {
        /// Where.
        listener: ListenerId,
        /// Why.
        error: io::Error,
    },
    /// Bytes from a client, in order. Read them with [`CoreRing::bytes`], then give them back.
    Received {
        /// From whom.
        connection: ConnectionId,
        /// Where the bytes are.
        buffer: ReceivedBuffer,
    },
    /// The client will send no more, and may still read. Close when everything is answered.
    PeerClosed {
        /// Which connection.
        connection: ConnectionId,
    },
    /// The connection broke and is gone; its id is void and nothing is left to close.
    Failed {
        /// Which connection.
        connection: ConnectionId,
        /// How.
        error: io::Error,
    },
    /// All that waited for room has been sent.
    Sent {
        /// Which connection.
        connection: ConnectionId,
    },
    /// A [`CoreRing::write_file`] has ended.
    FileWritten {
        /// As given.
        token: u64,
        /// Ok: every byte was written and is durable.
        result: io::Result<()>,
    },
}

/// What a turn was like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Completions handled, those without an event included.
    pub completions: usize,
    /// A [`Waker`] woke the core: look into its queues.
    pub woken: bool,
    /// The tick is due: look at deadlines.
    pub tick: bool,
}

/// Counts since the ring was made, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounters {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections closed at once because there were too many.
    pub refused: u64,
    /// Times that accepting failed.
    pub accept_failures: u64,
    /// Times that a receive found no free buffer.
    pub out_of_buffers: u64,
    /// Times that a socket did not take all that was sent.
    pub partial_sends: u64,
    /// Times that the core went to sleep.
    pub sleeps: u64,
}

/// The ring of one core. Lives in the core's main task, on the thread that made it, until the
/// core stops; everything in it (sockets, buffers, file writes) ends with it.
pub struct CoreRing {
    uring: Uring,
    config: RingConfig,
    listeners: Vec<Listener>,
    connections: Connections,
    file_writes: FileWrites,
    /// A file write goes on, with its rest or its flush: the disk need not wait for the turn's end.
    has_continued: bool,
    waker: CoreWaker,
    sleep: Sleep,
    spin: SpinPolicy,
    /// Ends of connections that are to be told before anything else that comes: their indices may
    /// be used again by the next accept.
    deferred: Vec<Event>,
    starved: Starved,
    /// Gracefully closing connections and when they are cut, earliest first.
    closing: VecDeque<(Instant, ConnectionId)>,
    /// A connection has ended: accepting may work again.
    descriptors_freed: bool,
    /// The time of the current turn.
    now: Instant,
    /// Completions or requests of the current turn, whichever are more.
    came: usize,
    counters: RingCounters,
}

impl CoreRing {
    /// A ring for the calling thread. `now` is the current time.
    ///
    /// # Errors
    /// The environment's refusals, as [`probe`](super::probe()) reports them.
    pub fn new(config: RingConfig, now: Instant) -> Result<Self, ReactorError> {
        let buffers = ProvidedBuffers::map(config.receive_buffers, config.receive_buffer_bytes)?;
        let mut uring = Uring::new(config.submissions, config.completions, buffers)?;
        let waker = CoreWaker::new().map_err(|e| ReactorError::io("making an eventfd", e))?;
        uring.poll_readable_all(waker.descriptor(), WAKE);
        let sleep = Sleep::new(&config, now);
        let spin = SpinPolicy::new(config.spin, now);
        Ok(Self {
            uring,
            config,
            listeners: Vec::new(),
            connections: Connections::default(),
            file_writes: FileWrites::default(),
            has_continued: false,
            waker,
            sleep,
            spin,
            deferred: Vec::new(),
            starved: Starved::default(),
            closing: VecDeque::new(),
            descriptors_freed: false,
            now,
            came: 0,
            counters: RingCounters::default(),
        })
    }

    /// Submits what has been queued, runs the kernel's deferred work and appends what happened
    /// to `events`. Never blocks. `now` is the time that this turn goes by.
    ///
    /// # Errors
    /// Only when the ring itself is broken: the core cannot go on.
    pub fn turn(&mut self, now: Instant, events: &mut Vec<Event>) -> Result<Turn, ReactorError> {
        self.now = now;
        self.cut_closing();
        self.retry_accepting();
        self.feed_starved();
        if !self.sleep.take_entered() {
            self.uring.enter()?;
        }
        events.append(&mut self.deferred);
        let mut completions = self.collect(events);
        // More completed than the queue holds: the kernel kept them for us.
        while self.uring.has_overflown() && completions < self.config.completions as usize * 4 {
            self.uring.enter()?;
            completions += self.collect(events);
        }
        if std::mem::take(&mut self.has_continued) {
            self.uring.submit()?;
        }
        let woken = self.waker.take();
        if let Some((what, since)) = self.sleep.take_wait() {
            let waited = now.saturating_duration_since(since).as_nanos() as u64;
            self.spin.waited(what, waited);
        }
        self.came = completions;
        let tick = self.sleep.end_turn(now, &self.config, completions > 0 || woken);
        Ok(Turn { completions, woken, tick })
    }

    /// Bytes lent by an [`Event::Received`].
    pub fn bytes(&self, buffer: &ReceivedBuffer) -> &[u8] {
        self.uring.buffers().bytes(buffer)
    }

    /// Returns lent bytes to the ring.
    pub fn give_back(&mut self, buffer: ReceivedBuffer) {
        self.uring.give_back(buffer);
    }

    /// Writes all of `bytes` at `offset` of `file` and flushes them as `flush` says; the end comes as
    /// [`Event::FileWritten`] with `token`. Submitted with the next turn or wait. For a file opened
    /// `O_DIRECT` the length and offset are multiples of
    /// [`BLOCK_BYTES`](stateside_pipeline::log::BLOCK_BYTES). Writes may end in any order.
    pub fn write_file(
        &mut self,
        file: &Rc<OwnedFd>,
        offset: u64,
        bytes: Rc<dyn StableBytes>,
        flush: Flush,
        token: u64,
    ) {
        let file = Rc::clone(file);
        self.file_writes.start(&mut self.uring, file, offset, bytes, flush, token);
    }

    /// Submits queued writes now, for a caller that is busy for a while before its next
    /// [`turn`](Self::turn) or [`wait`](Self::wait).
    ///
    /// # Errors
    /// Only when the ring itself is broken: the core cannot go on.
    pub fn submit(&mut self) -> Result<(), ReactorError> {
        self.uring.submit()
    }

    /// File writes that have not ended.
    pub fn file_writes(&self) -> usize {
        self.file_writes.count()
    }

    /// Wakes this core from other threads.
    pub fn waker(&self) -> Waker {
        self.waker.waker()
    }

    /// Connections that hold a descriptor, closing ones included.
    pub fn connections(&self) -> usize {
        self.connections.count()
    }

    /// Counts since the start.
    pub fn counters(&self) -> RingCounters {
        self.counters
    }

    /// Bytes of memory that grow with the number of connections.
    pub fn connection_memory_bytes(&self) -> usize {
        self.connections.memory_bytes()
    }

    fn collect(&mut self, events: &mut Vec<Event>) -> usize {
        let mut count = 0;
        while let Some(completion) = self.uring.next_completion() {
            count += 1;
            if completion.token.cancels {
                self.on_not_cancelled(completion.token.target());
                continue;
            }
            match completion.token.kind {
                Kind::Receive => self.on_received(completion, events),
                Kind::Writable => self.on_writable(&completion, events),
                Kind::Accept => self.on_accepted(completion, events),
                Kind::FileWrite | Kind::FileFlush => {
                    match self.file_writes.complete(&mut self.uring, &completion) {
                        Some(EndedWrite { token, result }) => {
                            events.push(Event::FileWritten { token, result });
                        }
                        None => self.has_continued = true,
                    }
                }
                Kind::Wake => self.on_wake(&completion),
            }
            if !self.deferred.is_empty() {
                events.append(&mut self.deferred);
            }
        }
        count
    }

    /// A cancellation found nothing: ask again if its target has not ended meanwhile.
    fn on_not_cancelled(&mut self, target: Token) {
        let still_wanted = match target.kind {
            Kind::Receive | Kind::Writable => self.still_cancelling(target),
            Kind::Accept => self.still_stopping(target),
            Kind::Wake | Kind::FileWrite | Kind::FileFlush => false,
        };
        if still_wanted {
            self.uring.cancel(target);
        }
    }

    fn on_wake(&mut self, completion: &Completion) {
        // The wake-up itself is in the Waker's state; only the poll must go on.
        if !completion.more {
            self.uring.poll_readable_all(self.waker.descriptor(), WAKE);
        }
    }
}

const WAKE: Token = Token { cancels: false, kind: Kind::Wake, generation: 0, index: 0 };

/// How long a dropped ring waits for what it cancelled. Only file writes may take longer: their
/// buffers cannot be freed before the kernel is done with them.
const DROP_PATIENCE: Duration = Duration::from_secs(1);

impl Drop for CoreRing {
    /// Ends every operation and waits for it, so that ports and memory are free when this
    /// returns: a closed ring is torn down later, at the kernel's leisure.
    fn drop(&mut self) {
        self.uring.cancel_all();
        let mut waited = Duration::ZERO;
        let step = Duration::from_millis(10);
        while self.uring.in_flight() > 0 && (waited < DROP_PATIENCE || self.file_writes.count() > 0)
        {
            if self.uring.enter_and_wait(step).is_err() {
                break;
            }
            let before = self.uring.in_flight();
            while let Some(completion) = self.uring.next_completion() {
                match completion.token.kind {
                    _ if completion.token.cancels => {}
                    Kind::FileWrite | Kind::FileFlush => {
                        let _ = self.file_writes.complete(&mut self.uring, &completion);
                    }
                    Kind::Accept => drop(completion.into_accepted()),
                    _ => {}
                }
            }
            if self.uring.in_flight() == before {
                waited += step;
            }
        }
        if self.file_writes.count() > 0 {
            // The ring broke with writes under way: their memory must outlive us.
            std::mem::forget(std::mem::take(&mut self.file_writes));
        }
    }
}
