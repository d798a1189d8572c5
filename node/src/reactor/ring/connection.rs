//! The connections of a core: a slot each, small, because ten thousand of them may be idle.
//!
//! ```text
//!  life            close(Graceful)              backlog sent, write side shut
//!       ┌────── Open ──────────────► Flushing ───────────────────────────────► Lingering
//!       │        │ close(Abort),        │ failed, or grace over                  │ peer closed, failed,
//!       │        │ failed               ▼                                        ▼ or grace over
//!       │        └──────────────────► Draining ◄──────────────────────────────────┘
//!       │                               │ no operation refers to it any more: descriptor closed
//!       └──── accepted ──── Free ◄──────┘ generation + 1
//!
//!  receive      arm              cancel (pause, or draining)
//!       ┌ Idle ─────► Armed ───────────────────────────────► Cancelling
//!       │  ▲ ▲          │ │ end of stream                        │ last completion
//!       │  │ │          │ └────────► Ended                       │ (resumed meanwhile: arm again)
//!       │  │ └──────────┼────────────────────────────────────────┘
//!       │  └─ buffers   │ out of buffers
//!       │     came back ▼
//!       └───────────► Starved (in a queue: who got nothing yet goes first)
//! ```
//!
//! Lingering is there because closing a socket with unread input makes the kernel send a reset,
//! which can destroy answers that the peer has not read yet.

use std::{collections::VecDeque, os::fd::OwnedFd};

use super::token::{GENERATION_MASK, Kind, Token};

/// Names a connection of one core. A closed connection's id is never valid again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    index: u32,
    generation: u32,
}

impl ConnectionId {
    /// The one connection of a core that runs without a ring; no ring gives it out.
    pub(crate) const WITHOUT_RING: Self = Self { index: 0, generation: u32::MAX };

    /// A small number, unique among the open connections of the core: an index for tables.
    /// Numbers of closed connections are used again.
    pub fn index(self) -> usize {
        self.index as usize
    }

    pub(super) fn token(self, kind: Kind) -> Token {
        Token::new(kind, self.index, self.generation)
    }

    pub(super) fn of(token: Token) -> Self {
        Self { index: token.index, generation: token.generation }
    }
}

/// Where a connection is in its life; see the head of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Free,
    Open,
    Flushing,
    Lingering,
    Draining,
}

/// What the receive of a connection does; see the head of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receive {
    Idle,
    Armed,
    Cancelling,
    Starved,
    Ended,
}

/// Bytes that the socket did not take yet.
#[derive(Default)]
pub(super) struct Backlog {
    pub(super) bytes: Vec<u8>,
    /// How many of them have been sent.
    pub(super) sent: usize,
}

impl Backlog {
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Appends `bytes` and empties it. Takes the whole Vec over where that saves the copy.
    pub(super) fn append(&mut self, bytes: &mut Vec<u8>) {
        if self.bytes.is_empty() {
            std::mem::swap(&mut self.bytes, bytes);
        } else {
            // What was sent is dropped when it is at least half: each byte moves at most once
            // for each byte sent.
            if self.sent >= self.bytes.len() / 2 {
                self.bytes.drain(..self.sent);
                self.sent = 0;
            }
            self.bytes.append(bytes);
        }
    }
}

/// A connection's slot.
pub(super) struct Connection {
    /// None: the slot is free.
    pub(super) descriptor: Option<OwnedFd>,
    pub(super) generation: u32,
    /// Allocated while there is one.
    pub(super) backlog: Option<Box<Backlog>>,
    pub(super) life: Life,
    pub(super) receive: Receive,
    /// The caller does not want to receive for now.
    pub(super) paused: bool,
    /// A poll for room to send is under way.
    pub(super) polling: bool,
    /// Something has been received since the receive was armed.
    pub(super) served: bool,
}

// Ten thousand idle connections cost this each, beside what the kernel keeps for a socket.
const _: () = assert!(size_of::<Connection>() <= 32);

impl Connection {
    /// Whether an operation under way refers to this connection.
    pub(super) fn has_operations(&self) -> bool {
        self.polling || matches!(self.receive, Receive::Armed | Receive::Cancelling)
    }
}

/// Connections whose receive found no free buffer, in the order in which they may try again.
/// One receive can take many buffers, so in a shortage those who got nothing go first: in a plain
/// queue a greedy connection could come before a modest one every time.
#[derive(Default)]
pub(super) struct Starved {
    hungry: VecDeque<ConnectionId>,
    served: VecDeque<ConnectionId>,
}

impl Starved {
    pub(super) fn push(&mut self, id: ConnectionId, served: bool) {
        if served { self.served.push_back(id) } else { self.hungry.push_back(id) }
    }

    pub(super) fn pop(&mut self) -> Option<ConnectionId> {
        self.hungry.pop_front().or_else(|| self.served.pop_front())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hungry.is_empty() && self.served.is_empty()
    }
}

/// All connections of one core. A slab: indices stay small and are used again.
#[derive(Default)]
pub(super) struct Connections {
    slots: Vec<Connection>,
    free: Vec<u32>,
}

impl Connections {
    /// Connections that hold a descriptor, closing ones included.
    pub(super) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Bytes of memory for the slots.
    pub(super) fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Connection>() + self.free.capacity() * size_of::<u32>()
    }

    pub(super) fn insert(&mut self, descriptor: OwnedFd) -> ConnectionId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Connection {
                descriptor: None,
                generation: 0,
                backlog: None,
                life: Life::Free,
                receive: Receive::Idle,
                paused: false,
                polling: false,
                served: false,
            });
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        assert!(slot.life == Life::Free, "a slot on the free list is free");
        slot.descriptor = Some(descriptor);
        slot.life = Life::Open;
        ConnectionId { index, generation: slot.generation }
    }

    /// The connection, unless the id's has been closed.
    pub(super) fn get(&self, id: ConnectionId) -> Option<&Connection> {
        self.slots
            .get(id.index())
            .filter(|slot| slot.generation == id.generation && slot.life != Life::Free)
    }

    /// As [`get`](Self::get).
    pub(super) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.slots
            .get_mut(id.index())
            .filter(|slot| slot.generation == id.generation && slot.life != Life::Free)
    }

    /// Frees the slot and returns the descriptor. No operation may refer to it any more.
    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<OwnedFd> {
        let slot = self.get_mut(id)?;
        assert!(!slot.has_operations(), "operations name the slot until they end");
        let descriptor = slot.descriptor.take();
        *slot = Connection {
            descriptor: None,
            generation: (slot.generation + 1) & GENERATION_MASK,
            backlog: None,
            life: Life::Free,
            receive: Receive::Idle,
            paused: false,
            polling: false,
            served: false,
        };
        self.free.push(id.index);
        descriptor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn an_id_dies_with_its_connection_although_the_index_is_used_again() {
        let mut connections = Connections::default();
        let first = connections.insert(descriptor());
        let other = connections.insert(descriptor());
        assert!(connections.remove(first).is_some());
        let second = connections.insert(descriptor());
        assert_eq!(first.index(), second.index());
        assert_ne!(first, second);
        assert!(connections.get(first).is_none());
        assert!(connections.remove(first).is_none());
        assert!(connections.get(second).is_some() && connections.get(other).is_some());
        assert_eq!(connections.count(), 2);
    }

    #[test]
    fn a_backlog_keeps_the_order_of_bytes_however_it_grows() {
        let mut backlog = Backlog::default();
        let mut expected = Vec::new();
        let mut taken = Vec::new();
        for round in 0..100u32 {
            let mut piece: Vec<u8> = round.to_le_bytes().repeat(50);
            expected.extend_from_slice(&piece);
            backlog.append(&mut piece);
            let send = backlog.len().min(150);
            taken.extend_from_slice(&backlog.bytes[backlog.sent..backlog.sent + send]);
            backlog.sent += send;
        }
        taken.extend_from_slice(&backlog.bytes[backlog.sent..]);
        assert_eq!(taken, expected);
    }
}
