//! A client's bytes, made beforehand: HTTP/2 frames with gRPC messages as real clients send them,
//! headers by HPACK index from a connection's second call on.
//!
//! Written out by hand rather than with an HTTP/2 library, so that each call is the same bytes but
//! for its stream and key, and making them costs the measured part nothing.

/// Bytes of every key.
pub(crate) const KEY_BYTES: usize = 16;
/// What every record has.
pub(crate) const VALUE: [u8; 100] = [b'v'; 100];

const UPSERT: &str = "/stateside.v1.DataPlane/Upsert";
const GET: &str = "/stateside.v1.DataPlane/Get";

/// Types and flags of frames, RFC 9113 section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// Which kind of call, with what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// One key.
    Get,
    /// One record, acknowledged from memory.
    UpsertMemory,
    /// One record, acknowledged when it is in the log.
    UpsertDurable,
    /// As [`Self::UpsertMemory`], under a request id whose client waits for 32 requests.
    UpsertIdentified,
}

/// The key of a record.
pub(crate) fn key(record: u64) -> [u8; KEY_BYTES] {
    let mut key = *b"key-000000000000";
    key[4..12].copy_from_slice(&record.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    key
}

/// One connection's client side.
pub(crate) struct Client {
    stream: u32,
    /// The method whose fields the server's HPACK table holds.
    indexed: Option<&'static str>,
}

impl Client {
    /// A client, and how it greets: it leaves nothing to flow control.
    pub(crate) fn connect(out: &mut Vec<u8>) -> Self {
        out.extend(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        frame(out, SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
        frame(out, SETTINGS, ACK, 0, &[]);
        frame(out, WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
        Self { stream: 1, indexed: None }
    }

    /// A batch that fills the store. Its headers leave no trace in the HPACK table.
    pub(crate) fn fill(&mut self, records: std::ops::Range<u64>, out: &mut Vec<u8>) {
        let mut message = Vec::new();
        for record in records {
            entry(&mut message, record);
        }
        message.extend([0x20, 1]);
        self.send(&headers(UPSERT, 0x00), &message, out);
    }

    /// One call on `record`.
    pub(crate) fn call(&mut self, request: Request, record: u64, out: &mut Vec<u8>) {
        let mut message = Vec::new();
        let path = match request {
            Request::Get => {
                field(&mut message, 1, &key(record));
                GET
            }
            Request::UpsertMemory | Request::UpsertDurable | Request::UpsertIdentified => {
                entry(&mut message, record);
                // Field 4, a varint: ACK_MEMORY or ACK_DURABLE.
                message.extend([0x20, if request == Request::UpsertDurable { 2 } else { 1 }]);
                if request == Request::UpsertIdentified {
                    field(&mut message, 6, &request_id(self.stream / 2));
                }
                UPSERT
            }
        };
        let block = match self.indexed {
            // :method POST, :scheme http, then what the first call put into the table: the newest
            // field has index 62.
            Some(indexed) => {
                assert_eq!(indexed, path, "one method a client");
                vec![0x83, 0x86, 0xc3, 0xc2, 0xc1, 0xc0, 0xbf, 0xbe]
            }
            None => headers(path, 0x40),
        };
        self.indexed = Some(path);
        self.send(&block, &message, out);
    }

    fn send(&mut self, block: &[u8], message: &[u8], out: &mut Vec<u8>) {
        frame(out, HEADERS, END_HEADERS, self.stream, block);
        let mut prefixed = vec![0];
        prefixed.extend((message.len() as u32).to_be_bytes());
        prefixed.extend(message);
        frame(out, DATA, END_STREAM, self.stream, &prefixed);
        self.stream += 2;
    }
}

/// A header block with every field spelled out; `kind` is 0x40 to have them put into the table, 0x00
/// not to (RFC 7541 section 6.2).
fn headers(path: &str, kind: u8) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (name, value) in [
        (":path", path),
        (":authority", "127.0.0.1:7400"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-counts/1.0"),
        ("grpc-accept-encoding", "identity,deflate,gzip"),
    ] {
        block.push(kind);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend(text.bytes());
        }
    }
    block
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    assert!(payload.len() <= 16 << 10, "a frame's payload, without asking the server for more");
    out.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
}

/// `UpsertRequest.entries`, one of them.
fn entry(message: &mut Vec<u8>, record: u64) {
    let mut entry = Vec::new();
    field(&mut entry, 1, &key(record));
    field(&mut entry, 2, &VALUE);
    field(message, 1, &entry);
}

/// A `RequestId`: client, number, settled. All have the same length.
fn request_id(call: u32) -> Vec<u8> {
    let number = (1 << 15) + call;
    let mut id = Vec::new();
    field(&mut id, 1, b"counts");
    for (field, value) in [(2, number), (3, number - 31)] {
        assert!((1 << 14..1 << 21).contains(&value), "a varint of three bytes");
        id.extend([field << 3, value as u8 | 0x80, (value >> 7) as u8 | 0x80, (value >> 14) as u8]);
    }
    id
}

/// A field of bytes.
fn field(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    message.push(number << 3 | 2);
    // Lengths of two bytes do not occur: the longest entry has 120.
    assert!(bytes.len() < 128, "a varint of one byte");
    message.push(bytes.len() as u8);
    message.extend(bytes);
}
