//! What a unary exchange costs in this crate: request bytes in, event, answer, bytes out, on one
//! connection in its steady state. `in turn` feeds one call at a time, `in batches` 32, as a socket does
//! under load. Frames are made beforehand, with HPACK indexes as real clients send them.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use stateside_wire::{Endpoint, Event, Millis, Session, SessionConfig};

const METHODS: &[&str] = &[
    "/stateside.v1.DataPlane/Upsert",
    "/stateside.v1.DataPlane/Get",
    "/stateside.v1.DataPlane/Remove",
    "/stateside.v1.DataPlane/Topology",
    "/grpc.health.v1.Health/Check",
];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A client's bytes, made beforehand but for the numbers of streams.
struct Client {
    request: Vec<u8>,
    stream_at: Vec<usize>,
    stream: u32,
    /// Bytes of the server's DATA since the last WINDOW_UPDATE.
    received: u32,
}

impl Client {
    fn new(request_bytes: usize) -> Self {
        // :method POST, :scheme http, then the six fields that `connect` put into the table:
        // the newest has index 62.
        let headers = frame(1, 4, 0, &[0x83, 0x86, 0xc3, 0xc2, 0xc1, 0xc0, 0xbf, 0xbe]);
        let mut message = vec![0];
        message.extend((request_bytes as u32).to_be_bytes());
        message.resize(5 + request_bytes, 7);
        let mut request = headers;
        let mut stream_at = vec![5];
        let pieces: Vec<_> = message.chunks(16 << 10).collect();
        for (index, piece) in pieces.iter().enumerate() {
            stream_at.push(request.len() + 5);
            request.extend(frame(0, u8::from(index + 1 == pieces.len()), 0, piece));
        }
        Self { request, stream_at, stream: 1, received: 0 }
    }

    fn connect(&mut self, session: &mut Session) {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
        bytes.extend(frame(4, 1, 0, &[]));
        bytes.extend(frame(8, 0, 0, &(1_u32 << 30).to_be_bytes()));
        let mut block = vec![0x83, 0x86];
        for (name, value) in [
            (":path", METHODS[1]),
            (":authority", "127.0.0.1:7400"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "grpc-bench/1.0"),
            ("grpc-accept-encoding", "identity,deflate,gzip"),
        ] {
            block.push(0x40);
            for text in [name, value] {
                block.push(text.len() as u8);
                block.extend(text.bytes());
            }
        }
        bytes.extend(frame(1, 5, self.stream, &block));
        session.receive(&bytes, Millis(0)).expect("a good client");
        session.send(&mut Vec::new(), usize::MAX);
        self.stream += 2;
    }

    fn write_requests(&mut self, count: usize, out: &mut Vec<u8>) {
        out.clear();
        for _ in 0..count {
            for &at in &self.stream_at {
                self.request[at..at + 4].copy_from_slice(&self.stream.to_be_bytes());
            }
            self.stream += 2;
            out.extend_from_slice(&self.request);
        }
        if self.received > 1 << 20 {
            out.extend(frame(8, 0, 0, &self.received.to_be_bytes()));
            self.received = 0;
        }
    }
}

fn exchange(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unary exchange");
    for (name, batch, request_bytes, answer_bytes) in [
        ("in turn, Get", 1, 18, 130),
        ("in batches, Get", 32, 18, 130),
        ("in turn, Upsert of 1000", 1, 124_000, 14_000),
    ] {
        let endpoint = Endpoint::new(SessionConfig::new(METHODS)).expect("memory");
        let mut session = Session::new(&endpoint, Millis(0));
        let mut client = Client::new(request_bytes);
        client.connect(&mut session);
        let answer = vec![9; answer_bytes];
        let (mut input, mut output) = (Vec::new(), Vec::new());
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                client.write_requests(batch, &mut input);
                // As a socket delivers: pieces of a receive buffer.
                for piece in input.chunks(32 << 10) {
                    session.receive(black_box(piece), Millis(1)).expect("a good client");
                }
                let mut answered = 0;
                while let Some(Event::Request { stream, message, .. }) = session.next_event() {
                    answered += 1;
                    session.recycle(message);
                    assert!(session.respond(stream, |out| out.extend_from_slice(&answer)));
                }
                assert_eq!(answered, batch);
                output.clear();
                session.send(&mut output, usize::MAX);
                client.received += output.len() as u32;
                assert_eq!(session.open_streams(), 0);
                black_box(&output);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, exchange);
criterion_main!(benches);
