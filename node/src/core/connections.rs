//! The connections of a core: sessions over sockets.
//!
//! ```text
//!  Received ─► session.receive ─► requests ─► executor
//!  ready call ─► session.respond ─► dirty ─► once a turn: session.send ─► ring.send
//! ```
//! A connection whose client does not read has a backlog in the ring; while there is one nothing
//! more is taken from its session, and when the session has too much to say it is not read.

use std::{rc::Rc, time::Instant};

use stateside_wire::{Endpoint, Event as SessionEvent, Millis, Rejections, Session};

use crate::reactor::{Closing, ConnectionId, CoreRing, ReceivedBuffer};

/// Bytes that one connection may send in one turn before the others get theirs.
const SEND_BUDGET_BYTES: usize = 256 << 10;

struct Connection {
    id: ConnectionId,
    session: Session,
    dirty: bool,
    reading: bool,
    /// The session is over: what it still says is sent, then the socket is closed.
    over: bool,
}

/// Lives on its core's thread.
pub(crate) struct Connections {
    endpoint: Rc<Endpoint>,
    /// By index of the ring's connection id.
    table: Vec<Option<Box<Connection>>>,
    dirty: Vec<ConnectionId>,
    /// Reused for what leaves.
    out: Vec<u8>,
    /// No session has anything to do before this.
    next_tick: Option<Millis>,
    open: usize,
    draining: bool,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// Connections that ended for what the peer sent.
    pub(crate) protocol_errors: u64,
}

impl Connections {
    pub(crate) fn new(endpoint: Rc<Endpoint>) -> Self {
        Self {
            endpoint,
            table: Vec::new(),
            dirty: Vec::new(),
            out: Vec::new(),
            next_tick: None,
            open: 0,
            draining: false,
            bytes_in: 0,
            bytes_out: 0,
            protocol_errors: 0,
        }
    }

    /// Open connections.
    pub(crate) fn len(&self) -> usize {
        self.open
    }

    /// Calls that sessions refused by themselves since this was asked last.
    pub(crate) fn take_rejections(&self) -> Rejections {
        self.endpoint.take_rejections()
    }

    /// A client has connected.
    pub(crate) fn accepted(&mut self, id: ConnectionId, now: Millis) {
        let mut session = Session::new(&self.endpoint, now);
        if self.draining {
            session.go_away(now);
        }
        if self.table.len() <= id.index() {
            self.table.resize_with(id.index() + 1, || None);
        }
        let due = session.next_tick();
        let connection = Connection { id, session, dirty: false, reading: true, over: false };
        let before = self.table[id.index()].replace(Box::new(connection));
        debug_assert!(before.is_none(), "an index is used again only after its end was told");
        self.open += 1;
        self.note_tick(due);
    }

    /// Bytes have come; `request` is called for each whole request.
    pub(crate) fn received(
        &mut self,
        id: ConnectionId,
        buffer: ReceivedBuffer,
        ring: &mut CoreRing,
        now: Millis,
        request: &mut dyn FnMut(ConnectionId, &mut Session, SessionEvent),
    ) {
        if let Some(connection) = find(&mut self.table, id) {
            let bytes = ring.bytes(&buffer);
            self.bytes_in += bytes.len() as u64;
            if let Err(closed) = connection.session.receive(bytes, now) {
                tracing::debug!(%closed, "a connection ends");
                connection.over = true;
            }
            drain_events(connection, request);
            let due = connection.session.next_tick();
            mark(&mut self.dirty, connection);
            self.note_tick(due);
        }
        ring.give_back(buffer);
    }

    /// The client will send no more.
    pub(crate) fn peer_closed(&mut self, id: ConnectionId) {
        if let Some(connection) = find(&mut self.table, id) {
            connection.session.receive_end();
            mark(&mut self.dirty, connection);
        }
    }

    /// The connection broke; the ring has forgotten it.
    pub(crate) fn failed(&mut self, id: ConnectionId) {
        if let Some(connection) = find(&mut self.table, id) {
            self.protocol_errors += u64::from(connection.session.is_peers_fault());
            self.table[id.index()] = None;
            self.open -= 1;
        }
    }

    /// The socket has taken what waited for it.
    pub(crate) fn sent(&mut self, id: ConnectionId) {
        if let Some(connection) = find(&mut self.table, id) {
            mark(&mut self.dirty, connection);
        }
    }

    /// The session of a connection that is still there; its answer leaves at the end of the turn.
    pub(crate) fn session(&mut self, id: ConnectionId) -> Option<&mut Session> {
        let connection = find(&mut self.table, id)?;
        mark(&mut self.dirty, connection);
        Some(&mut connection.session)
    }

    /// Sends what the sessions touched in this turn have to say.
    pub(crate) fn flush(
        &mut self,
        ring: &mut CoreRing,
        request: &mut dyn FnMut(ConnectionId, &mut Session, SessionEvent),
    ) {
        let mut again = Vec::new();
        for id in self.dirty.drain(..) {
            let Some(connection) = find(&mut self.table, id) else { continue };
            connection.dirty = false;
            let mut backlog = ring.backlog(id);
            let mut more = false;
            if backlog == 0 {
                connection.session.send(&mut self.out, SEND_BUDGET_BYTES);
                let length = self.out.len();
                self.bytes_out += length as u64;
                if length > 0 {
                    backlog = ring.send(id, &mut self.out);
                    self.out.clear();
                }
                // Answers that left make room for calls that waited; those may be answered by now.
                let started = drain_events(connection, request);
                more = length >= SEND_BUDGET_BYTES || started;
                if more && backlog == 0 {
                    again.push(id);
                }
            }
            if backlog == 0 && !more && (connection.session.is_finished() || connection.over) {
                ring.close(id, Closing::Graceful);
                self.protocol_errors += u64::from(connection.session.is_peers_fault());
                self.table[id.index()] = None;
                self.open -= 1;
                continue;
            }
            let wants_read = connection.session.wants_read(backlog);
            if wants_read != connection.reading {
                connection.reading = wants_read;
                if wants_read {
                    ring.resume_reading(id);
                } else {
                    ring.pause_reading(id);
                }
            }
        }
        for id in again {
            if let Some(connection) = find(&mut self.table, id) {
                mark(&mut self.dirty, connection);
            }
        }
        if self.out.capacity() > 4 * SEND_BUDGET_BYTES {
            self.out = Vec::new();
        }
    }

    /// Whether a turn has to come although nothing happens: someone has more to send.
    pub(crate) fn has_more(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Deadlines and time-outs.
    pub(crate) fn tick(
        &mut self,
        now: Millis,
        request: &mut dyn FnMut(ConnectionId, &mut Session, SessionEvent),
    ) {
        if self.next_tick.is_none_or(|due| due > now) {
            return;
        }
        let mut next: Option<Millis> = None;
        for connection in self.table.iter_mut().flatten() {
            if connection.session.next_tick().is_some_and(|due| due <= now) {
                if let Err(closed) = connection.session.tick(now) {
                    tracing::debug!(%closed, "a connection ends");
                    connection.over = true;
                }
                drain_events(connection, request);
                mark(&mut self.dirty, connection);
            }
            if let Some(due) = connection.session.next_tick() {
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        self.next_tick = next;
    }

    /// Tells every client that the node stops.
    pub(crate) fn go_away(&mut self, now: Millis) {
        self.draining = true;
        for connection in self.table.iter_mut().flatten() {
            connection.session.go_away(now);
            mark(&mut self.dirty, connection);
        }
        self.next_tick = Some(now);
    }

    /// Cuts every connection off.
    pub(crate) fn cut(&mut self, ring: &mut CoreRing) {
        for connection in self.table.iter_mut().filter_map(Option::take) {
            ring.close(connection.id, Closing::Abort);
        }
        self.open = 0;
        self.dirty.clear();
    }

    fn note_tick(&mut self, due: Option<Millis>) {
        if let Some(due) = due {
            self.next_tick = Some(self.next_tick.map_or(due, |next| next.min(due)));
        }
    }
}

fn find(table: &mut [Option<Box<Connection>>], id: ConnectionId) -> Option<&mut Connection> {
    table.get_mut(id.index())?.as_deref_mut().filter(|connection| connection.id == id)
}

fn mark(dirty: &mut Vec<ConnectionId>, connection: &mut Connection) {
    if !connection.dirty {
        connection.dirty = true;
        dirty.push(connection.id);
    }
}

/// Hands out what the session has to do; whether there was anything.
fn drain_events(
    connection: &mut Connection,
    request: &mut dyn FnMut(ConnectionId, &mut Session, SessionEvent),
) -> bool {
    let mut any = false;
    while let Some(event) = connection.session.next_event() {
        request(connection.id, &mut connection.session, event);
        any = true;
    }
    any
}

/// Milliseconds of the core's monotonic clock, as sessions count them.
pub(crate) fn millis(start: Instant, now: Instant) -> Millis {
    Millis(now.saturating_duration_since(start).as_millis() as u64)
}
