//! HTTP/2 frames made and read by hand, for what a well-behaved client library will not send.

use std::rc::Rc;

use stateside_wire::{Closed, Endpoint, Event, Millis, Session, SessionConfig};

use super::apply;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// HPACK, literal without indexing, no Huffman: RFC 7541, section 6.2.2.
pub(crate) fn hpack(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            if text.len() < 127 {
                block.push(text.len() as u8);
            } else {
                block.push(127);
                let mut rest = text.len() - 127;
                while rest >= 128 {
                    block.push(rest as u8 & 127 | 128);
                    rest >>= 7;
                }
                block.push(rest as u8);
            }
            block.extend(text.bytes());
        }
    }
    block
}

pub(crate) fn request_fields(path: &str) -> Vec<(&str, &str)> {
    vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
}

pub(crate) fn open(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &hpack(&request_fields(path)))
}

/// A whole unary request.
pub(crate) fn unary(stream: u32, path: &str, message: &[u8]) -> Vec<u8> {
    let mut bytes = open(stream, path);
    bytes.extend(frame(DATA, END_STREAM, stream, &super::framed(message)));
    bytes
}

/// Preface, empty SETTINGS, and the ACK of the server's.
pub(crate) fn handshake() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(SETTINGS, ACK, 0, &[])].concat()
}

pub(crate) fn settings(entries: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (id, value) in entries {
        payload.extend(id.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(SETTINGS, 0, 0, &payload)
}

pub(crate) fn window_update(stream: u32, bytes: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// Error code of a RST_STREAM or GOAWAY.
    pub(crate) fn error_code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// Cuts output into frames; panics when it is not whole frames.
pub(crate) fn parse(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        frames.push(Frame {
            kind: bytes[3],
            flags: bytes[4],
            stream: u32::from_be_bytes(bytes[5..9].try_into().unwrap()),
            payload: bytes[9..9 + length].to_vec(),
        });
        bytes = &bytes[9 + length..];
    }
    frames
}

/// A session with an application, fed by hand.
pub(crate) struct ByHand {
    pub(crate) session: Session,
    pub(crate) now: Millis,
    pub(crate) events: Vec<&'static str>,
}

impl ByHand {
    pub(crate) fn new(config: SessionConfig) -> Self {
        Self::on(&Endpoint::new(config).unwrap())
    }

    /// One of several on an endpoint.
    pub(crate) fn on(endpoint: &Rc<Endpoint>) -> Self {
        let now = Millis(1_000);
        Self { session: Session::new(endpoint, now), now, events: Vec::new() }
    }

    /// Through the handshake.
    pub(crate) fn connected(config: SessionConfig) -> Self {
        let mut this = Self::new(config);
        this.feed(&handshake()).unwrap();
        let frames = this.frames();
        assert!(frames.iter().any(|frame| frame.kind == SETTINGS && frame.flags & ACK != 0));
        this
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), Closed> {
        let result = self.session.receive(bytes, self.now);
        self.run();
        result
    }

    pub(crate) fn run(&mut self) {
        while let Some(event) = self.session.next_event() {
            self.events.push(if matches!(event, Event::Request { .. }) {
                "request"
            } else {
                "cancelled"
            });
            apply(&mut self.session, event);
        }
    }

    /// All that can be sent now.
    pub(crate) fn output(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            let before = out.len();
            self.session.send(&mut out, usize::MAX);
            self.run();
            if out.len() == before {
                return out;
            }
        }
    }

    pub(crate) fn frames(&mut self) -> Vec<Frame> {
        parse(&self.output())
    }
}
