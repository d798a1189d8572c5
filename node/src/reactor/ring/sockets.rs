//! Receiving, sending and closing: what happens to a connection between accept and its end.
//! The states are drawn in `connection.rs`.

use std::{net::SocketAddr, os::fd::AsFd};

use rustix::{
    io::Errno,
    net::{SendFlags, Shutdown, getpeername, send, shutdown},
};

use super::{
    CoreRing, Event,
    connection::{Backlog, ConnectionId, Life, Receive},
    token::{Kind, Token},
    uring::Completion,
};

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// Send what waits, tell the peer that this was all, discard what it still sends until it
    /// closes too; cut it when that takes longer than the grace period.
    Graceful,
    /// At once; what waits is dropped.
    Abort,
}

impl CoreRing {
    /// Sends `bytes` after everything sent before, and empties them. Returns how many bytes now
    /// wait for room in the socket: while that is much, the caller sends no more and stops
    /// reading; [`Event::Sent`] tells when all have gone.
    ///
    /// A connection that is closed or broken swallows them.
    pub fn send(&mut self, id: ConnectionId, bytes: &mut Vec<u8>) -> usize {
        let Some(connection) = self.connections.get_mut(id).filter(|c| c.life == Life::Open) else {
            bytes.clear();
            return 0;
        };
        if let Some(backlog) = &mut connection.backlog {
            backlog.append(bytes);
            bytes.clear();
            return backlog.len();
        }
        if bytes.is_empty() {
            return 0;
        }
        match send_now(connection.descriptor.as_ref(), bytes) {
            Ok(sent) if sent == bytes.len() => {
                bytes.clear();
                0
            }
            Ok(sent) => {
                let waiting = bytes.len() - sent;
                connection.backlog = Some(Box::new(Backlog { bytes: std::mem::take(bytes), sent }));
                self.counters.partial_sends += 1;
                self.await_room(id);
                waiting
            }
            Err(errno) => {
                bytes.clear();
                self.fail(id, errno);
                0
            }
        }
    }

    /// Bytes that wait for room in the socket.
    pub fn backlog(&self, id: ConnectionId) -> usize {
        let backlog = self.connections.get(id).and_then(|c| c.backlog.as_ref());
        backlog.map_or(0, |backlog| backlog.len())
    }

    /// Stops receiving from a connection. Bytes that the kernel has handed over already still
    /// arrive as events: at most what fits in the receive buffers.
    pub fn pause_reading(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.life != Life::Open {
            return;
        }
        connection.paused = true;
        if connection.receive == Receive::Armed {
            connection.receive = Receive::Cancelling;
            self.uring.cancel(id.token(Kind::Receive));
        }
    }

    /// Receives again.
    pub fn resume_reading(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.paused = false;
        if connection.life == Life::Open && connection.receive == Receive::Idle {
            self.arm_receive(id);
        }
    }

    /// Ends a connection. It has no more events after this turn's.
    pub fn close(&mut self, id: ConnectionId, how: Closing) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        match (how, connection.life) {
            (Closing::Abort, Life::Open | Life::Flushing | Life::Lingering) => self.drain(id),
            (Closing::Graceful, Life::Open) => {
                self.closing.push_back((self.now + self.config.close_grace, id));
                connection.paused = false;
                connection.life = Life::Flushing;
                if connection.backlog.is_none() {
                    self.linger(id);
                }
            }
            _ => {}
        }
    }

    /// Whether the connection exists and has not been closed by either side's failure or by
    /// [`close`](Self::close).
    pub fn is_open(&self, id: ConnectionId) -> bool {
        self.connections.get(id).is_some_and(|connection| connection.life == Life::Open)
    }

    /// The peer's address; None for Unix sockets and closed connections. A system call.
    pub fn peer_address(&self, id: ConnectionId) -> Option<SocketAddr> {
        let descriptor = self.connections.get(id)?.descriptor.as_ref()?;
        SocketAddr::try_from(getpeername(descriptor).ok()??).ok()
    }

    pub(super) fn on_received(&mut self, mut completion: Completion, events: &mut Vec<Event>) {
        let id = ConnectionId::of(completion.token);
        let buffer = completion.buffer.take();
        let has_data = completion.result > 0;
        let Some(connection) = self.connections.get_mut(id) else {
            debug_assert!(false, "a slot is freed after the last completion of its operations");
            if let Some(buffer) = buffer {
                self.uring.give_back(buffer);
            }
            return;
        };
        let life = connection.life;
        if !completion.more {
            connection.receive = Receive::Idle;
        }
        if let Some(buffer) = buffer {
            connection.served = true;
            if has_data && life == Life::Open {
                events.push(Event::Received { connection: id, buffer });
            } else {
                self.uring.give_back(buffer);
            }
        }
        if completion.more {
            return;
        }
        match completion.errno() {
            None if !has_data => self.on_end_of_stream(id, events),
            Some(Errno::NOBUFS) => self.starve(id),
            // The kernel ended the multishot for reasons of its own, or we cancelled it.
            None | Some(Errno::CANCELED | Errno::INTR | Errno::AGAIN) => self.receive_on(id),
            Some(errno) => self.fail(id, errno),
        }
    }

    /// Whether the operation `target` of a connection is still to be cancelled.
    pub(super) fn still_cancelling(&self, target: Token) -> bool {
        let connection = self.connections.get(ConnectionId::of(target));
        connection.is_some_and(|connection| match target.kind {
            Kind::Receive => connection.receive == Receive::Cancelling,
            _ => connection.polling && connection.life == Life::Draining,
        })
    }

    /// A multishot receive has ended with the stream intact: go on as the state demands.
    fn receive_on(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        match connection.life {
            Life::Open if connection.paused => {}
            Life::Open | Life::Flushing | Life::Lingering => self.arm_receive(id),
            Life::Draining => self.free_if_idle(id),
            Life::Free => unreachable!("a free slot has no id"),
        }
    }

    fn on_end_of_stream(&mut self, id: ConnectionId, events: &mut Vec<Event>) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.receive = Receive::Ended;
        match connection.life {
            Life::Open => events.push(Event::PeerClosed { connection: id }),
            Life::Flushing => {}
            Life::Lingering => self.drain(id),
            Life::Draining => self.free_if_idle(id),
            Life::Free => unreachable!("a free slot has no id"),
        }
    }

    fn starve(&mut self, id: ConnectionId) {
        self.counters.out_of_buffers += 1;
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.life == Life::Draining {
            self.free_if_idle(id);
        } else {
            connection.receive = Receive::Starved;
            self.starved.push(id, connection.served);
        }
    }

    /// Lets those receive again that found no buffer: no more than there are buffers, so that few
    /// try in vain.
    pub(super) fn feed_starved(&mut self) {
        let mut buffers = self.uring.buffers().in_kernel();
        while buffers > 0
            && let Some(id) = self.starved.pop()
        {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            if connection.receive != Receive::Starved {
                continue;
            }
            connection.receive = Receive::Idle;
            if connection.life == Life::Draining {
                continue;
            }
            if !(connection.life == Life::Open && connection.paused) {
                self.arm_receive(id);
                buffers -= 1;
            }
        }
    }

    pub(super) fn on_writable(&mut self, completion: &Completion, events: &mut Vec<Event>) {
        let id = ConnectionId::of(completion.token);
        let Some(connection) = self.connections.get_mut(id) else {
            debug_assert!(false, "a slot is freed after the last completion of its operations");
            return;
        };
        connection.polling = false;
        let life = connection.life;
        if life == Life::Draining {
            return self.free_if_idle(id);
        }
        // Whatever the poll said, the send says it better: errors included.
        let Some(backlog) = &mut connection.backlog else { return };
        match send_now(connection.descriptor.as_ref(), &backlog.bytes[backlog.sent..]) {
            Ok(sent) => {
                backlog.sent += sent;
                if backlog.len() > 0 {
                    return self.await_room(id);
                }
                connection.backlog = None;
                if life == Life::Flushing {
                    self.linger(id);
                } else {
                    events.push(Event::Sent { connection: id });
                }
            }
            Err(errno) => self.fail(id, errno),
        }
    }

    fn await_room(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let Some(descriptor) = &connection.descriptor else { return };
        debug_assert!(!connection.polling, "one poll at a time");
        connection.polling = true;
        self.uring.poll_writable(descriptor.as_fd(), id.token(Kind::Writable));
    }

    /// Everything is sent: tell the peer, and wait for its end of the stream.
    fn linger(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let Some(descriptor) = &connection.descriptor else { return };
        let told = shutdown(descriptor, Shutdown::Write);
        if told.is_err() || connection.receive == Receive::Ended {
            return self.drain(id);
        }
        connection.life = Life::Lingering;
        if connection.receive == Receive::Idle {
            self.arm_receive(id);
        }
    }

    /// Cuts the connections whose grace is over.
    pub(super) fn cut_closing(&mut self) {
        while let Some(&(deadline, id)) = self.closing.front()
            && deadline <= self.now
        {
            self.closing.pop_front();
            if self.connections.get(id).is_some_and(|c| c.life != Life::Draining) {
                self.drain(id);
            }
        }
    }

    /// The connection broke. The caller hears of it if it had not closed it itself.
    fn fail(&mut self, id: ConnectionId, errno: Errno) {
        let Some(connection) = self.connections.get(id) else { return };
        match connection.life {
            Life::Draining => self.free_if_idle(id),
            life => {
                if life == Life::Open {
                    self.deferred.push(Event::Failed { connection: id, error: errno.into() });
                }
                self.drain(id);
            }
        }
    }

    /// Ends what is under way; the descriptor is closed when nothing refers to it any more.
    fn drain(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.life = Life::Draining;
        connection.backlog = None;
        if connection.receive == Receive::Armed {
            connection.receive = Receive::Cancelling;
            self.uring.cancel(id.token(Kind::Receive));
        }
        if connection.polling {
            self.uring.cancel(id.token(Kind::Writable));
        }
        self.free_if_idle(id);
    }

    fn free_if_idle(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(id) else { return };
        debug_assert_eq!(connection.life, Life::Draining);
        if !connection.has_operations() {
            drop(self.connections.remove(id)); // closes the descriptor
            self.descriptors_freed = true;
        }
    }
}

/// Sends without waiting. Ok says how much the socket took: less than all means that it is full.
fn send_now(descriptor: Option<&impl AsFd>, bytes: &[u8]) -> Result<usize, Errno> {
    let descriptor = descriptor.ok_or(Errno::NOTCONN)?;
    loop {
        match send(descriptor, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) => return Ok(sent),
            Err(Errno::AGAIN | Errno::NOBUFS) => return Ok(0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
