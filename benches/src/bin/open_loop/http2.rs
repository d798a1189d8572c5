//! HTTP/2, as far as one unary gRPC call needs it: frames are counted and looked at, header blocks are not decoded.
//!
//! The first request puts its headers into the server's table, all later ones name them there (RFC 7541, 6.2.1):
//! six bytes. Answers are judged by their messages: one that was refused has none.

use std::collections::VecDeque;

use crate::Session;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const HEADER_BYTES: usize = 9;
/// What may come to this side before it says more; said anew when half is used up.
const WINDOW: u32 = 1 << 30;
const DEFAULT_WINDOW: u32 = 65_535;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
/// Versions and times in answers grow; what was refused in an answer takes more than this to say.
const SPREAD: usize = 8;
/// `:method: POST` and `:scheme: http` of the static table, then the four that the first request put
/// into the table, the oldest with the highest number.
const LATER_HEADERS: [u8; 6] = [0x83, 0x86, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62];

/// A connection that makes one call.
pub(crate) struct Http2 {
    first_headers: Vec<u8>,
    /// With gRPC's prefix.
    message: Vec<u8>,
    /// What the server lets us send, all streams together.
    window: i64,
    streams_max: usize,
    sent: u64,
    /// Bytes of the answers' messages so far, by call; None: answered. From call `first` on.
    open: VecDeque<Option<usize>>,
    first: u64,
    under_way: usize,
    /// Of the first answer's message.
    expected: Option<usize>,
    pending: Vec<u8>,
    received: u32,
}

impl Http2 {
    pub(crate) fn new(authority: &str, path: &str, message: &[u8]) -> Self {
        let mut first_headers = vec![0x83, 0x86];
        // Literals with incremental indexing: a name of the static table, or one that is spelled out.
        for (name, value) in [(4, path), (1, authority), (31, "application/grpc")] {
            first_headers.push(0x40 | name);
            put_text(&mut first_headers, value);
        }
        first_headers.push(0x40);
        put_text(&mut first_headers, "te");
        put_text(&mut first_headers, "trailers");
        Self {
            first_headers,
            message: message.to_vec(),
            window: i64::from(DEFAULT_WINDOW),
            streams_max: 100,
            sent: 0,
            open: VecDeque::new(),
            first: 0,
            under_way: 0,
            expected: None,
            pending: Vec::new(),
            received: 0,
        }
    }

    fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<u64>, String> {
        let setting = |at: &[u8]| (u16::from_be_bytes([at[0], at[1]]), number(&at[2..6]));
        match kind {
            DATA | HEADERS => {
                let call = u64::from(stream / 2);
                let place = call.checked_sub(self.first);
                let bytes = place.and_then(|at| self.open.get_mut(at as usize));
                let Some(Some(bytes)) = bytes else {
                    return Err(format!("an answer on stream {stream}, which is not open"));
                };
                if kind == DATA {
                    *bytes += body.len();
                    self.received += body.len() as u32;
                    if self.received > WINDOW / 2 {
                        put_window_update(out, std::mem::take(&mut self.received));
                    }
                }
                if flags & END_STREAM == 0 {
                    return Ok(None);
                }
                let bytes = *bytes;
                let expected = *self.expected.get_or_insert(bytes);
                if bytes == 0 || bytes.abs_diff(expected) > SPREAD {
                    return Err(format!("a call failed: its answer has {bytes} B"));
                }
                self.close(call);
                return Ok(Some(call));
            }
            SETTINGS if flags & ACK == 0 => {
                for at in body.as_chunks::<6>().0 {
                    match setting(at) {
                        (MAX_CONCURRENT_STREAMS, most) => self.streams_max = most as usize,
                        (INITIAL_WINDOW_SIZE, window) if (window as usize) < self.message.len() => {
                            return Err(
                                "the request does not fit into a stream's window".to_owned()
                            );
                        }
                        _ => {}
                    }
                }
                put_header(out, 0, SETTINGS, ACK, 0);
            }
            PING if flags & ACK == 0 => {
                put_header(out, body.len(), PING, ACK, 0);
                out.extend_from_slice(body);
            }
            WINDOW_UPDATE if stream == 0 => self.window += i64::from(number(body)),
            RST_STREAM => return Err(format!("stream {stream} was reset: {}", number(body))),
            GOAWAY => return Err(format!("GOAWAY: {}", String::from_utf8_lossy(&body[8..]))),
            _ => {}
        }
        Ok(None)
    }

    fn close(&mut self, call: u64) {
        self.open[(call - self.first) as usize] = None;
        self.under_way -= 1;
        while let Some(None) = self.open.front() {
            self.open.pop_front();
            self.first += 1;
        }
    }
}

impl Session for Http2 {
    fn hello(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(PREFACE);
        put_header(out, 6, SETTINGS, 0, 0);
        out.extend_from_slice(&INITIAL_WINDOW_SIZE.to_be_bytes());
        out.extend_from_slice(&WINDOW.to_be_bytes());
        put_window_update(out, WINDOW - DEFAULT_WINDOW);
    }

    fn request(&mut self, out: &mut Vec<u8>) -> bool {
        let bytes = self.message.len() as i64;
        if self.under_way >= self.streams_max || self.window < bytes {
            return false;
        }
        let stream = self.sent as u32 * 2 + 1;
        let headers = if self.sent == 0 { &self.first_headers[..] } else { &LATER_HEADERS };
        put_header(out, headers.len(), HEADERS, END_HEADERS, stream);
        out.extend_from_slice(headers);
        put_header(out, self.message.len(), DATA, END_STREAM, stream);
        out.extend_from_slice(&self.message);
        self.window -= bytes;
        self.sent += 1;
        self.under_way += 1;
        self.open.push_back(Some(0));
        true
    }

    fn receive(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        done: &mut dyn FnMut(u64),
    ) -> Result<(), String> {
        let mut pending = std::mem::take(&mut self.pending);
        pending.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(header) = pending.get(at..at + HEADER_BYTES) {
            let length = number(&header[..3]) as usize;
            let (kind, flags, stream) =
                (header[3], header[4], number(&header[5..]) & (u32::MAX >> 1));
            let Some(body) = pending.get(at + HEADER_BYTES..at + HEADER_BYTES + length) else {
                break;
            };
            if let Some(call) = self.frame(kind, flags, stream, body, out)? {
                done(call);
            }
            at += HEADER_BYTES + length;
        }
        pending.drain(..at);
        self.pending = pending;
        Ok(())
    }
}

/// Big-endian; of what is there.
fn number(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn put_header(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    out.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

fn put_window_update(out: &mut Vec<u8>, more: u32) {
    put_header(out, 4, WINDOW_UPDATE, 0, 0);
    out.extend_from_slice(&more.to_be_bytes());
}

/// A string literal of less than 127 bytes, not Huffman-coded.
fn put_text(out: &mut Vec<u8>, text: &str) {
    assert!(text.len() < 127, "a length of one byte");
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_header(&mut out, body.len(), kind, flags, stream);
        out.extend_from_slice(body);
        out
    }

    fn answer(stream: u32, message: &[u8]) -> Vec<u8> {
        let data = frame(DATA, 0, stream, message);
        [frame(HEADERS, END_HEADERS, stream, b"h"), data, frame(HEADERS, 5, stream, b"t")].concat()
    }

    #[test]
    fn answers_are_told_apart_in_any_order_however_they_are_cut() {
        let mut session = Http2::new("host", "/s/M", b"12345");
        let mut out = Vec::new();
        assert!((0..3).all(|_| session.request(&mut out)));
        let bytes = [answer(5, b"abc"), frame(PING, 0, 0, b"12345678"), answer(1, b"xyz")].concat();
        let (mut calls, mut said) = (Vec::new(), Vec::new());
        for part in bytes.chunks(7) {
            session.receive(part, &mut said, &mut |call| calls.push(call)).unwrap();
        }
        assert_eq!((calls, session.under_way, session.first), (vec![2, 0], 1, 1));
        assert_eq!(said, frame(PING, ACK, 0, b"12345678"));
    }

    #[test]
    fn a_refusal_a_reset_and_another_answer_are_failures() {
        for bytes in [
            frame(HEADERS, 5, 1, b"trailers only"),
            frame(RST_STREAM, 0, 1, &[0; 4]),
            [answer(1, b"abc"), answer(3, b"abc: not written")].concat(),
            answer(7, b"abc"),
        ] {
            let mut session = Http2::new("host", "/s/M", b"12345");
            assert!((0..2).all(|_| session.request(&mut Vec::new())));
            assert!(session.receive(&bytes, &mut Vec::new(), &mut |_| ()).is_err());
        }
    }

    #[test]
    fn the_servers_limits_are_kept() {
        let mut session = Http2::new("host", "/s/M", &[0; 40_000]);
        let mut out = Vec::new();
        assert!(session.request(&mut out) && !session.request(&mut out), "no window is left");
        let more = frame(WINDOW_UPDATE, 0, 0, &100_000_u32.to_be_bytes());
        let one = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]);
        session.receive(&more, &mut out, &mut |_| ()).unwrap();
        assert!(session.request(&mut out));
        session.receive(&one, &mut out, &mut |_| ()).unwrap();
        assert!(!session.request(&mut out), "no stream is left");
    }
}
