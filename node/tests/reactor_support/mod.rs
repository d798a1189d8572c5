//! Drives a ring on the test's own thread: turns it until a condition holds, and keeps a log
//! of what came. No sleeps: a deadline turns a hang into a failure.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    collections::HashMap,
    future::Future,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    pin::pin,
    task::{Context, Poll, Waker as TaskWaker},
    time::{Duration, Instant},
};

use stateside_node::reactor::{
    ConnectionId, CoreRing, Event, ListenerId, ReceivedBuffer, RingConfig, Turn, bind_tcp,
};

/// How long any condition may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What a test does with received bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Keep them in `received`.
    Collect,
    /// Send them back.
    Echo,
    /// Keep them and do not give the buffers back.
    Hoard,
}

/// A ring, a listener, and what has happened.
pub(crate) struct Driver {
    pub(crate) ring: CoreRing,
    pub(crate) listener: ListenerId,
    pub(crate) address: SocketAddr,
    pub(crate) mode: Mode,
    pub(crate) accepted: Vec<ConnectionId>,
    pub(crate) received: HashMap<ConnectionId, Vec<u8>>,
    pub(crate) hoard: Vec<ReceivedBuffer>,
    pub(crate) peer_closed: Vec<ConnectionId>,
    pub(crate) failed: Vec<(ConnectionId, std::io::Error)>,
    pub(crate) sent: Vec<ConnectionId>,
    pub(crate) accept_failed: Vec<std::io::Error>,
    pub(crate) written: Vec<(u64, std::io::Result<()>)>,
    pub(crate) last_turn: Turn,
    /// Added to the clock: lets a test pass time without waiting.
    pub(crate) time_shift: Duration,
    events: Vec<Event>,
}

pub(crate) fn small() -> RingConfig {
    RingConfig { receive_buffers: 64, receive_buffer_bytes: 4096, ..RingConfig::default() }
}

impl Driver {
    pub(crate) fn new(config: RingConfig, mode: Mode) -> Self {
        let socket = bind_tcp("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        let mut ring = CoreRing::new(config, Instant::now()).unwrap();
        let listener = ring.listen(OwnedFd::from(listener));
        Self {
            ring,
            listener,
            address,
            mode,
            accepted: Vec::new(),
            received: HashMap::new(),
            hoard: Vec::new(),
            peer_closed: Vec::new(),
            failed: Vec::new(),
            sent: Vec::new(),
            accept_failed: Vec::new(),
            written: Vec::new(),
            last_turn: Turn::default(),
            time_shift: Duration::ZERO,
            events: Vec::new(),
        }
    }

    pub(crate) fn turn(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        self.last_turn = self.ring.turn(Instant::now() + self.time_shift, &mut events).unwrap();
        for event in events.drain(..) {
            self.handle(event);
        }
        self.events = events;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Accepted { connection, listener } => {
                assert_eq!(listener, self.listener);
                assert!(!self.received.contains_key(&connection), "an id is used once");
                self.received.insert(connection, Vec::new());
                self.accepted.push(connection);
            }
            Event::Received { connection, buffer } => {
                let mut bytes = self.ring.bytes(&buffer).to_vec();
                assert!(!bytes.is_empty());
                if self.mode == Mode::Hoard {
                    self.hoard.push(buffer);
                } else {
                    self.ring.give_back(buffer);
                }
                let log = self.received.get_mut(&connection).expect("accepted before");
                log.extend_from_slice(&bytes);
                if self.mode == Mode::Echo {
                    self.ring.send(connection, &mut bytes);
                }
            }
            Event::PeerClosed { connection } => self.peer_closed.push(connection),
            Event::Failed { connection, error } => {
                assert!(!self.ring.is_open(connection));
                self.failed.push((connection, error));
            }
            Event::Sent { connection } => self.sent.push(connection),
            Event::AcceptFailed { error, .. } => self.accept_failed.push(error),
            Event::FileWritten { token, result } => {
                self.written.push((token, result));
            }
        }
    }

    /// Turns until `condition` holds.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "not in time: {what}");
            self.turn();
        }
    }

    /// Turns until nothing has happened for a while: a number of turns, not a time.
    pub(crate) fn settle(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let mut quiet = 0;
        while quiet < 200 {
            assert!(Instant::now() < deadline, "it never settles");
            self.turn();
            quiet = if self.last_turn.completions == 0 { quiet + 1 } else { 0 };
            std::thread::yield_now();
        }
    }

    pub(crate) fn give_hoard_back(&mut self) {
        for buffer in self.hoard.drain(..) {
            self.ring.give_back(buffer);
        }
    }

    /// A client, and its connection's id here.
    pub(crate) fn connect(&mut self) -> (TcpStream, ConnectionId) {
        let before = self.accepted.len();
        let client = TcpStream::connect(self.address).unwrap();
        self.until("a connection", |driver| driver.accepted.len() > before);
        (client, self.accepted[before])
    }

    pub(crate) fn received_bytes(&self) -> usize {
        self.received.values().map(Vec::len).sum()
    }

    /// Writes as much as the client's socket takes; returns how much.
    pub(crate) fn push_some(client: &mut TcpStream, bytes: &[u8]) -> usize {
        client.set_nonblocking(true).unwrap();
        let mut written = 0;
        while written < bytes.len() {
            match client.write(&bytes[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        written
    }

    /// Reads what is there; true at the end of the stream.
    pub(crate) fn pull_some(client: &mut TcpStream, into: &mut Vec<u8>) -> bool {
        client.set_nonblocking(true).unwrap();
        let mut chunk = [0u8; 64 << 10];
        loop {
            match client.read(&mut chunk) {
                Ok(0) => return true,
                Ok(count) => into.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Bytes that tell where they belong.
pub(crate) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ seed).collect()
}

/// Makes a client's close a reset.
pub(crate) fn reset_on_close(client: &TcpStream) {
    rustix::net::sockopt::set_socket_linger(client, Some(Duration::ZERO)).unwrap();
}

/// Polls a future that never needs a waker of its own: `wait` sleeps in the ring by itself.
pub(crate) fn drive<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(TaskWaker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}
