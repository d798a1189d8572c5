//! Peers that do not behave: garbage, the wrong protocol, idlers by the thousand, clients that
//! ask and never read.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::Duration,
};

use prost::Message;
use stateside_proto::v1::GetRequest;

use crate::raw_http2::framed;

/// The bytes that every HTTP/2 connection begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A SETTINGS frame without settings.
pub const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Sends `bytes` and reads what comes back until the peer closes, or `limit` passes.
/// Answers what was read and whether the peer closed.
///
/// # Panics
/// When there is no connection to be had.
pub fn send_raw(address: &str, bytes: &[u8], limit: Duration) -> (Vec<u8>, bool) {
    let mut stream = TcpStream::connect(address).expect("the node takes connections");
    stream.set_read_timeout(Some(limit)).expect("a socket takes a time limit");
    // The node may close while garbage is still being written.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return (answer, true),
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return (answer, false);
            }
            Err(_) => return (answer, true),
        }
    }
}

/// A connection that asks for `key` on as many streams as it may, opens its windows wide and never
/// reads a byte.
pub struct NeverReads {
    stream: TcpStream,
    key: Vec<u8>,
    next_stream: u32,
}

impl NeverReads {
    /// Connects and announces windows of 2 GiB, so that only the socket holds answers back.
    ///
    /// # Panics
    /// When there is no connection to be had.
    pub fn connect(address: &str, key: &[u8]) -> Self {
        let mut stream = TcpStream::connect(address).expect("the node takes connections");
        stream.set_write_timeout(Some(Duration::from_millis(200))).expect("a socket takes a limit");
        let mut hello = PREFACE.to_vec();
        // SETTINGS: initial window size (4) = 2^31 - 1.
        hello.extend(frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
        // The connection's own window, from 65,535 to 2^31 - 1.
        hello.extend(frame(8, 0, 0, &(0x7fff_ffff_u32 - 65_535).to_be_bytes()));
        stream.write_all(&hello).expect("the first bytes fit into the socket");
        Self { stream, key: key.to_vec(), next_stream: 1 }
    }

    /// Sends `count` more requests; answers how many the node took before it stopped reading.
    pub fn ask(&mut self, count: u32) -> u32 {
        let message = GetRequest {
            keys: vec![self.key.clone()],
            routing_key: Vec::new(),
            ..Default::default()
        };
        let body = framed(false, &message.encode_to_vec());
        for sent in 0..count {
            let mut bytes = frame(1, 0x4, self.next_stream, &get_headers());
            bytes.extend(frame(0, 0x1, self.next_stream, &body));
            if self.stream.write_all(&bytes).is_err() {
                return sent;
            }
            self.next_stream += 2;
        }
        count
    }
}

/// An HTTP/2 frame: length, kind, flags, stream, payload.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("frames are short").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A header block, HPACK without compression: literals that are not indexed.
fn get_headers() -> Vec<u8> {
    let mut block = vec![0x83, 0x86]; // :method POST, :scheme http, from the static table
    for (name, value) in [
        (":path", "/stateside.v1.DataPlane/Get"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("shorter than 127 bytes"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}
