//! Accepting connections: a multishot accept per listener.
//!
//! ```text
//!   listen ──► Armed ──(no descriptors, no memory)──► Suspended ──(retry due, or one freed)──► Armed
//!                │ stop                                  │ stop
//!                ▼                                       ▼
//!             Stopping ──(last completion)──────────► Stopped (descriptor closed)
//! ```
//!
//! When descriptors run out, clients wait in the kernel's backlog and accepting is tried again
//! after a pause, or as soon as a connection of this core has ended. Accepting and closing at
//! once, with a descriptor kept in reserve, would free the clients sooner but serve none of
//! them; this way they are served late.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use rustix::io::Errno;

use super::{
    CoreRing, Event,
    connection::{ConnectionId, Receive},
    token::{Kind, Token},
    uring::Completion,
};

/// Names a listener of one core. Not reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerId(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Armed,
    Suspended { until: Instant },
    Stopping,
    Stopped,
}

/// A listening socket. Slots are not reused: a core has a handful of listeners in its life.
pub(super) struct Listener {
    descriptor: Option<OwnedFd>,
    state: State,
    /// Accepting fails, and the caller knows.
    failing: bool,
}

impl CoreRing {
    /// Accepts on `socket`, which listens already, until stopped.
    pub fn listen(&mut self, socket: OwnedFd) -> ListenerId {
        let id = ListenerId(self.listeners.len() as u32);
        self.listeners.push(Listener {
            descriptor: Some(socket),
            state: State::Stopped,
            failing: false,
        });
        self.arm_accept(id);
        id
    }

    /// Stops accepting; the socket is closed with the next turns. Connections stay.
    pub fn stop_listening(&mut self, id: ListenerId) {
        let Some(listener) = self.listeners.get_mut(id.0 as usize) else { return };
        match listener.state {
            State::Armed => {
                listener.state = State::Stopping;
                self.uring.cancel(accept_token(id));
            }
            State::Suspended { .. } => {
                listener.state = State::Stopped;
                listener.descriptor = None;
            }
            State::Stopping | State::Stopped => {}
        }
    }

    fn arm_accept(&mut self, id: ListenerId) {
        let listener = &mut self.listeners[id.0 as usize];
        if let Some(descriptor) = &listener.descriptor {
            self.uring.accept_all(descriptor.as_fd(), accept_token(id));
            listener.state = State::Armed;
        }
    }

    /// Arms the listeners whose pause is over.
    pub(super) fn retry_accepting(&mut self) {
        let freed = std::mem::take(&mut self.descriptors_freed);
        for index in 0..self.listeners.len() {
            if let State::Suspended { until } = self.listeners[index].state
                && (freed || self.now >= until)
            {
                self.arm_accept(ListenerId(index as u32));
            }
        }
    }

    pub(super) fn on_accepted(&mut self, completion: Completion, events: &mut Vec<Event>) {
        let id = ListenerId(completion.token.index);
        let more = completion.more;
        let error = completion.errno();
        if let Some(socket) = completion.into_accepted() {
            self.admit(id, socket, events);
        }
        let listener = &mut self.listeners[id.0 as usize];
        if more {
            return;
        }
        match (listener.state, error) {
            (State::Armed, None | Some(Errno::INTR | Errno::AGAIN | Errno::CONNABORTED)) => {
                self.arm_accept(id);
            }
            (State::Armed, Some(errno)) => {
                listener.state = State::Suspended { until: self.now + self.config.accept_retry };
                self.counters.accept_failures += 1;
                if !listener.failing {
                    listener.failing = true;
                    let error = io::Error::from(errno);
                    events.push(Event::AcceptFailed { listener: id, error });
                }
            }
            _ => {
                listener.state = State::Stopped;
                listener.descriptor = None;
            }
        }
    }

    fn admit(&mut self, id: ListenerId, socket: OwnedFd, events: &mut Vec<Event>) {
        let listener = &mut self.listeners[id.0 as usize];
        if listener.state != State::Armed {
            return; // it came in while accepting was being stopped: closed by dropping
        }
        listener.failing = false;
        if self.connections.count() >= self.config.connections_max {
            self.counters.refused += 1;
            return;
        }
        self.counters.accepted += 1;
        let connection = self.connections.insert(socket);
        self.arm_receive(connection);
        events.push(Event::Accepted { connection, listener: id });
    }

    /// Whether the accept `target` is still to be cancelled.
    pub(super) fn still_stopping(&self, target: Token) -> bool {
        self.listeners[target.index as usize].state == State::Stopping
    }

    /// Receives from `connection` until further notice.
    pub(super) fn arm_receive(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let Some(descriptor) = &connection.descriptor else { return };
        debug_assert!(matches!(connection.receive, Receive::Idle | Receive::Starved));
        self.uring.receive_all(descriptor.as_fd(), id.token(Kind::Receive));
        connection.receive = Receive::Armed;
        connection.served = false;
    }
}

fn accept_token(id: ListenerId) -> Token {
    Token::new(Kind::Accept, id.0, 0)
}
