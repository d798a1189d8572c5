//! Sessions against hand-made frames: floods, cut and broken input, HTTP/1, drains; all that a
//! well-behaved client library will not send.

mod harness;

use harness::{
    ECHO, HANG, METHODS, SIZE, config, framed,
    frames::{
        ACK, ByHand, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING,
        PREFACE, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, handshake, hpack, open,
        parse, request_fields, settings, unary, window_update,
    },
};
use stateside_types::limits;
use stateside_wire::{Closed, Endpoint, Event, Method, Millis};

const ENHANCE_YOUR_CALM: u32 = 11;

fn path(method: Method) -> &'static str {
    METHODS[usize::from(method.0)]
}

fn of_kind(frames: &[Frame], kind: u8) -> Vec<&Frame> {
    frames.iter().filter(|frame| frame.kind == kind).collect()
}

/// Whether frames hold a whole answer with this message and trailers.
fn is_answered(frames: &[Frame], stream: u32, message: &[u8]) -> bool {
    let ours: Vec<_> = frames.iter().filter(|frame| frame.stream == stream).collect();
    let data: Vec<u8> =
        ours.iter().filter(|frame| frame.kind == DATA).flat_map(|f| f.payload.clone()).collect();
    let ended = ours.last().is_some_and(|f| f.kind == HEADERS && f.flags & END_STREAM != 0);
    ended && data == framed(message)
}

#[test]
fn nothing_is_sent_before_the_client_shows_that_it_speaks_http2() {
    let mut hand = ByHand::new(config());
    assert_eq!(hand.output(), b"");
    hand.feed(&PREFACE[..23]).unwrap();
    assert_eq!(hand.output(), b"");
    hand.feed(&PREFACE[23..]).unwrap();
    let frames = hand.frames();
    assert_eq!(frames[0].kind, SETTINGS);
    let expected = settings(&[
        (3, limits::STREAMS_PER_CONNECTION_MAX),
        (4, limits::STREAM_WINDOW_BYTES),
        (6, limits::HEADER_BYTES_MAX),
    ]);
    assert_eq!(vec![frames[0].clone()], parse(&expected));
    assert_eq!(frames[1].payload, (limits::CONNECTION_WINDOW_BYTES - 65_535).to_be_bytes());
}

#[test]
fn plain_http1_is_told_what_the_port_speaks() {
    let mut hand = ByHand::new(config());
    let closed = hand.feed(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert_eq!(closed, Err(Closed::Http1));
    assert!(!hand.session.is_finished());
    let answer = String::from_utf8(hand.output()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert!(answer.contains("gRPC (HTTP/2"), "{answer}");
    assert!(hand.session.is_finished() && hand.session.is_peers_fault());
    assert_eq!(hand.feed(b"more"), Err(Closed::Http1));
}

#[test]
fn tls_and_noise_end_the_session_without_an_answer() {
    for bytes in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"\0\0\0\0", b"ssh-2.0\r\n"]
    {
        let mut hand = ByHand::new(config());
        assert_eq!(hand.feed(bytes), Err(Closed::NotHttp2));
        assert_eq!(hand.output(), b"");
        assert!(hand.session.is_finished() && hand.session.is_peers_fault());
    }
}

#[test]
fn noise_after_the_preface_gets_a_goaway_and_the_end() {
    let mut hand = ByHand::new(config());
    hand.feed(&[PREFACE, &[0xff; 100]].concat()).unwrap();
    let frames = hand.frames();
    assert_ne!(of_kind(&frames, GOAWAY)[0].error_code(), 0);
    assert!(hand.session.is_finished() && hand.session.is_peers_fault());
    assert_eq!(hand.feed(b"x"), Err(Closed::Ended));
}

#[test]
fn a_client_that_never_begins_is_closed_in_time() {
    for begun in [&b""[..], &PREFACE[..10], PREFACE] {
        let mut hand = ByHand::new(config());
        if !begun.is_empty() {
            hand.feed(begun).unwrap();
        }
        let late = Millis(1_000 + limits::HANDSHAKE_TIMEOUT_MS);
        assert_eq!(hand.session.next_tick(), Some(late));
        assert_eq!(hand.session.tick(Millis(late.0 - 1)), Ok(()));
        assert_eq!(hand.session.tick(late), Err(Closed::HandshakeTimeout));
        hand.output();
        assert!(hand.session.is_finished() && hand.session.is_peers_fault());
    }
    let mut hand = ByHand::connected(config());
    assert_eq!(hand.session.next_tick(), None);
    assert_eq!(hand.session.tick(Millis(u64::MAX - 1)), Ok(()));
}

#[test]
fn answers_have_headers_data_and_trailers() {
    let mut hand = ByHand::connected(config());
    hand.feed(&unary(1, path(ECHO), b"ping")).unwrap();
    let frames = hand.frames();
    let shape: Vec<_> = frames.iter().map(|f| (f.kind, f.flags, f.stream)).collect();
    let headers = (HEADERS, END_HEADERS, 1);
    assert_eq!(shape, [headers, (DATA, 0, 1), (HEADERS, END_HEADERS | END_STREAM, 1)]);
    assert_eq!(frames[1].payload, framed(b"ping"));
    assert_eq!(hand.session.open_streams(), 0);

    // From the second answer on, HPACK makes the fixed fields one byte each.
    hand.feed(&unary(3, path(ECHO), b"ping")).unwrap();
    let frames = hand.frames();
    assert_eq!((frames[0].payload.len(), frames[2].payload.len()), (2, 1));
}

#[test]
fn idleness_is_measured_from_the_last_byte() {
    let mut hand = ByHand::connected(config());
    hand.now = Millis(5_000);
    hand.feed(&unary(1, path(HANG), b"x")).unwrap();
    assert_eq!(hand.session.idle_since(), None);
    hand.now = Millis(6_000);
    hand.feed(&frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes())).unwrap();
    assert_eq!(hand.session.idle_since(), Some(Millis(6_000)));
    assert_eq!(hand.events, ["request", "cancelled"]);
}

#[test]
fn a_ping_flood_is_calmed() {
    let mut hand = ByHand::connected(config());
    let ping = frame(PING, 0, 0, &[7; 8]);
    let mut closed = None;
    let mut sent = 0;
    while closed.is_none() && sent < 100_000 {
        sent += 100;
        closed = hand.feed(&ping.repeat(100)).err();
        let frames = hand.frames();
        if closed.is_some() {
            assert_eq!(of_kind(&frames, GOAWAY)[0].error_code(), ENHANCE_YOUR_CALM);
        } else {
            assert_eq!(of_kind(&frames, PING).len(), 100);
        }
    }
    assert_eq!(closed, Some(Closed::Flooded));
    assert!(sent <= limits::CONTROL_FRAMES_BURST + 100, "{sent}");
    assert!(hand.session.is_finished());
}

#[test]
fn pings_that_are_not_read_are_bounded() {
    // All in one piece: nothing is sent between them.
    for flood in [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[])] {
        let mut hand = ByHand::connected(config());
        let closed = hand.feed(&flood.repeat(2 * limits::UNSENT_ACKS_MAX));
        assert_eq!(closed, Err(Closed::Flooded));
        let mut out = Vec::new();
        hand.session.send(&mut out, usize::MAX);
        assert!(out.len() <= 20 * limits::UNSENT_ACKS_MAX + 1_000, "{}", out.len());
    }
}

#[test]
fn rapid_reset_is_calmed_and_leaves_nothing_behind() {
    let mut hand = ByHand::connected(config());
    let mut closed = None;
    let mut stream = 1;
    while closed.is_none() && stream < 100_000 {
        let mut bytes = unary(stream, path(HANG), b"x");
        bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        closed = hand.feed(&bytes).err();
        hand.output();
        assert_eq!(hand.session.open_streams(), 0);
        stream += 2;
    }
    assert_eq!(closed, Some(Closed::Flooded));
    assert!(stream / 2 <= limits::CONTROL_FRAMES_BURST + 1, "{stream}");
}

#[test]
fn resets_in_proportion_to_answers_are_no_flood() {
    let mut hand = ByHand::connected(config());
    for n in 0..limits::CONTROL_FRAMES_BURST {
        let (served, reset) = (4 * n + 1, 4 * n + 3);
        let mut bytes = unary(served, path(ECHO), b"x");
        bytes.extend(unary(reset, path(HANG), b"x"));
        bytes.extend(frame(RST_STREAM, 0, reset, &8_u32.to_be_bytes()));
        hand.feed(&bytes).unwrap();
        hand.output();
    }
}

#[test]
fn empty_data_and_priority_frames_are_bounded() {
    for flood in [frame(DATA, 0, 1, &[]), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])] {
        let mut hand = ByHand::connected(config());
        hand.feed(&open(1, path(ECHO))).unwrap();
        let closed = hand.feed(&flood.repeat(limits::CONTROL_FRAMES_BURST as usize + 1));
        assert_eq!(closed, Err(Closed::Flooded));
    }
}

#[test]
fn continuations_without_end_end_the_connection() {
    let mut hand = ByHand::connected(config());
    hand.feed(&frame(HEADERS, 0, 1, &hpack(&request_fields(path(ECHO))))).unwrap();
    let piece = frame(CONTINUATION, 0, 1, &hpack(&[("x-more", "of the same")]));
    let mut fed = 0;
    while hand.feed(&piece).is_ok() && fed < 1_000 {
        fed += 1;
        hand.output();
    }
    assert!(fed < 20, "{fed}");
    assert!(hand.session.is_finished());
    assert_eq!(hand.events, [""; 0]);
}

#[test]
fn an_hpack_bomb_is_refused_without_keeping_it() {
    // One large field goes into the dynamic table, then is named by single bytes.
    let mut block = hpack(&request_fields(path(ECHO)));
    let value = "b".repeat(3_000);
    let large = hpack(&[("x-bomb", &value)]);
    block.push(0x40);
    block.extend(&large[1..]);
    block.extend([0x80 | 62; 10_000]);
    let mut hand = ByHand::connected(config());
    hand.feed(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).unwrap();
    let frames = hand.frames();
    let answer = of_kind(&frames, HEADERS);
    assert_eq!(answer[0].flags & END_STREAM, END_STREAM);
    assert_eq!(hand.events, [""; 0]);
    assert_eq!(hand.session.open_streams(), 0);
}

#[test]
fn more_streams_than_allowed_are_refused() {
    let mut small = config();
    small.streams_max = 3;
    let mut hand = ByHand::connected(small);
    for stream in [1, 3, 5] {
        hand.feed(&unary(stream, path(HANG), b"x")).unwrap();
    }
    assert_eq!(hand.session.open_streams(), 3);
    hand.feed(&unary(7, path(HANG), b"x")).unwrap();
    let frames = hand.frames();
    // Past the acknowledged limit this is a violation: the library ends the connection.
    assert!(of_kind(&frames, GOAWAY).len() + of_kind(&frames, RST_STREAM).len() > 0);
    assert_eq!(hand.events.len(), 3);
}

#[test]
fn a_large_message_gets_its_window_when_its_prefix_is_read() {
    let mut hand = ByHand::connected(config());
    hand.feed(&open(1, path(ECHO))).unwrap();
    let prefix = [&[0][..], &(1_u32 << 20).to_be_bytes()].concat();
    hand.feed(&frame(DATA, 0, 1, &prefix)).unwrap();
    let frames = hand.frames();
    let grant = of_kind(&frames, WINDOW_UPDATE);
    assert_eq!(grant.len(), 1);
    assert_eq!(grant[0].stream, 1);
    let granted = u32::from_be_bytes(grant[0].payload[..].try_into().unwrap());
    assert!(limits::STREAM_WINDOW_BYTES + granted >= (1 << 20) + 5);
    // Small ones cost no frame.
    hand.feed(&unary(3, path(ECHO), &[1; 10_000])).unwrap();
    assert!(of_kind(&hand.frames(), WINDOW_UPDATE).is_empty());
}

#[test]
fn large_messages_that_do_not_fit_wait_their_turn_and_get_it() {
    let mut small = config();
    small.request_bytes_per_connection_max = 4 << 20;
    let mut hand = ByHand::connected(small);
    let length = 900_000_u32;
    let head = [&[0][..], &length.to_be_bytes(), &[9; 10_000]].concat();
    for stream in [1, 3, 5] {
        hand.feed(&open(stream, path(ECHO))).unwrap();
        hand.feed(&frame(DATA, 0, stream, &head)).unwrap();
    }
    let frames = hand.frames();
    let granted: Vec<_> = of_kind(&frames, WINDOW_UPDATE).iter().map(|f| f.stream).collect();
    assert_eq!(granted, [1, 3], "half of the budget holds two");

    let mut rest = vec![9; length as usize - 10_000];
    while !rest.is_empty() {
        let piece = rest.split_off(rest.len().saturating_sub(16_000));
        let flags = if rest.is_empty() { END_STREAM } else { 0 };
        hand.feed(&frame(DATA, flags, 1, &piece)).unwrap();
    }
    let frames = hand.frames();
    assert!(of_kind(&frames, WINDOW_UPDATE).iter().any(|frame| frame.stream == 5));
    assert_eq!(hand.events, ["request"]);
}

#[test]
fn what_the_connections_of_a_core_hold_together_is_bounded() {
    let mut small = config();
    small.request_bytes_per_core_max = 100_000;
    small.response_backlog_bytes_per_core_max = 100_000;
    let endpoint = Endpoint::new(small).unwrap();
    let connected = || {
        let mut hand = ByHand::on(&endpoint);
        hand.feed(&handshake()).unwrap();
        hand.output();
        hand
    };
    let (mut one, mut other) = (connected(), connected());

    // Requests: one connection holds most of what there is.
    one.feed(&open(1, path(ECHO))).unwrap();
    for piece in framed(&[1; 90_000])[..80_000].chunks(16_000) {
        one.feed(&frame(DATA, 0, 1, piece)).unwrap();
    }
    let request = [open(1, path(ECHO)), frame(DATA, 0, 1, &framed(&[1; 16_000]))].concat();
    other.feed(&request).unwrap();
    other.feed(&open(3, path(ECHO))).unwrap();
    other.feed(&frame(DATA, END_STREAM, 3, &framed(&[1; 8_000]))).unwrap();
    assert!(other.frames().iter().any(|f| f.kind == HEADERS && f.flags & END_STREAM != 0));
    assert_eq!(other.events, [""; 0]);
    drop(one);
    other.feed(&unary(5, path(ECHO), &[1; 8_000])).unwrap();
    assert_eq!(other.events, ["request"]);
    other.output();

    // Answers: one connection has most of what there is unsent.
    let mut one = connected();
    one.feed(&unary(1, path(SIZE), &90_000_u32.to_be_bytes())).unwrap();
    other.feed(&unary(7, path(SIZE), &20_000_u32.to_be_bytes())).unwrap();
    assert_eq!(of_kind(&other.frames(), RST_STREAM)[0].error_code(), ENHANCE_YOUR_CALM);
    drop(one);
    other.feed(&unary(9, path(SIZE), &20_000_u32.to_be_bytes())).unwrap();
    assert!(of_kind(&other.frames(), RST_STREAM).is_empty());
}

#[test]
fn the_connections_window_is_given_back_whatever_became_of_the_streams() {
    let mut hand = ByHand::connected(config());
    let mut window = i64::from(limits::CONNECTION_WINDOW_BYTES);
    let piece = [5; 16_000];
    for n in 0..2_000_u32 {
        let stream = 2 * n + 1;
        // Refused at once; its data arrives all the same.
        hand.feed(&open(stream, "/no/such")).unwrap();
        hand.feed(&frame(DATA, END_STREAM, stream, &piece)).unwrap();
        window -= piece.len() as i64;
        for update in of_kind(&hand.frames(), WINDOW_UPDATE) {
            assert_eq!(update.stream, 0);
            window += i64::from(u32::from_be_bytes(update.payload[..].try_into().unwrap()));
        }
        assert!(window > 0, "stalled after {n} streams");
    }
}

#[test]
fn padding_is_no_part_of_the_message() {
    let mut hand = ByHand::connected(config());
    hand.feed(&open(1, path(ECHO))).unwrap();
    let mut payload = vec![20];
    payload.extend(framed(b"padded"));
    payload.extend([0; 20]);
    hand.feed(&frame(DATA, END_STREAM | 8, 1, &payload)).unwrap();
    assert!(is_answered(&hand.frames(), 1, b"padded"));
}

#[test]
fn request_trailers_end_a_call_as_data_does() {
    let mut hand = ByHand::connected(config());
    hand.feed(&open(1, path(ECHO))).unwrap();
    hand.feed(&frame(DATA, 0, 1, &framed(b"with trailers"))).unwrap();
    let trailers = hpack(&[("x-checksum", "1")]);
    hand.feed(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers)).unwrap();
    assert!(is_answered(&hand.frames(), 1, b"with trailers"));
}

#[test]
fn requests_that_are_not_http_are_reset() {
    let mut capital = request_fields(path(ECHO));
    capital.push(("X-Capital", "x"));
    let mut twice = request_fields(path(ECHO));
    twice.insert(3, (":path", path(ECHO)));
    let mut short = request_fields(path(ECHO));
    short.push(("content-length", "3"));
    let good = request_fields(path(ECHO));
    for (fields, trailers, trailer_flags) in [
        (capital, None, 0),
        (twice, None, 0),
        (short, None, 0),
        (good.clone(), Some((":path", "/late")), END_STREAM),
        (good, Some(("x-trailer", "that does not end")), 0),
    ] {
        let mut hand = ByHand::connected(config());
        hand.feed(&frame(HEADERS, END_HEADERS, 1, &hpack(&fields))).unwrap();
        let ends = if trailers.is_none() { END_STREAM } else { 0 };
        hand.feed(&frame(DATA, ends, 1, &framed(b"body"))).unwrap();
        if let Some(trailers) = trailers {
            let block = hpack(&[trailers]);
            hand.feed(&frame(HEADERS, END_HEADERS | trailer_flags, 1, &block)).unwrap();
        }
        let frames = hand.frames();
        let resets = of_kind(&frames, RST_STREAM);
        assert_eq!((resets.len(), resets[0].error_code()), (1, 1), "{fields:?}");
        assert!(of_kind(&frames, HEADERS).is_empty());
        assert_eq!(hand.session.open_streams(), 0);
        assert_eq!(hand.events, [""; 0]);
    }
}

#[test]
fn a_half_closed_connection_still_gets_its_answers() {
    let mut hand = ByHand::connected(config());
    hand.feed(&open(1, path(ECHO))).unwrap();
    let endpoint_answers = |hand: &mut ByHand, stream| {
        hand.session.respond(stream, |out| out.extend_from_slice(b"late"))
    };
    // Not through `feed`: the application answers later.
    hand.session.receive(&unary(3, path(HANG), b"x"), Millis(1_000)).unwrap();
    let Some(Event::Request { stream, .. }) = hand.session.next_event() else {
        panic!("no request")
    };
    hand.session.receive_end();
    assert!(!hand.session.wants_read(0));
    assert!(!hand.session.is_finished());
    assert!(endpoint_answers(&mut hand, stream));
    assert!(!hand.session.is_finished());
    assert!(is_answered(&hand.frames(), 3, b"late"));
    // The call on stream 1 can never be whole.
    assert!(hand.session.is_finished() && !hand.session.is_peers_fault());
}

#[test]
fn a_drain_waits_for_the_ping_then_names_the_last_stream() {
    let mut hand = ByHand::connected(config());
    hand.session.go_away(hand.now);
    let frames = hand.frames();
    let notice = of_kind(&frames, GOAWAY);
    assert_eq!(notice[0].payload[..4], [0x7f, 0xff, 0xff, 0xff]);
    assert_eq!(notice[0].error_code(), 0);
    let ping = of_kind(&frames, PING)[0].clone();

    // A call that was on its way is still taken.
    hand.feed(&unary(1, path(ECHO), b"in time")).unwrap();
    assert!(is_answered(&hand.frames(), 1, b"in time"));
    assert!(!hand.session.is_finished());
    hand.feed(&frame(PING, ACK, 0, &ping.payload)).unwrap();
    let frames = hand.frames();
    assert_eq!(of_kind(&frames, GOAWAY)[0].payload[..4], [0, 0, 0, 1]);
    assert!(hand.session.is_finished() && !hand.session.is_peers_fault());
}

#[test]
fn a_drain_does_not_wait_for_a_silent_client() {
    let mut hand = ByHand::connected(config());
    hand.session.go_away(hand.now);
    hand.output();
    let until = hand.now.plus(limits::DRAIN_NOTICE_MS);
    assert_eq!(hand.session.next_tick(), Some(until));
    hand.session.tick(until).unwrap();
    assert_eq!(of_kind(&hand.frames(), GOAWAY).len(), 1);
    assert!(hand.session.is_finished() && !hand.session.is_peers_fault());

    let mut silent = ByHand::new(config());
    silent.session.go_away(silent.now);
    assert_eq!(silent.output(), b"");
    assert!(silent.session.is_finished() && !silent.session.is_peers_fault());
}

#[test]
fn a_client_that_never_reads_stops_being_read() {
    let mut hand = ByHand::connected(config());
    hand.feed(&settings(&[(4, 0x7fff_ffff)])).unwrap();
    hand.feed(&window_update(0, 0x7000_0000)).unwrap();
    hand.output();
    assert!(hand.session.wants_read(0));
    assert!(!hand.session.wants_read(limits::SEND_BACKLOG_BYTES_MAX + 1));
    let size = 3_000_000_u32.to_be_bytes();
    for stream in [1, 3, 5, 7] {
        // The answers are made, nothing is sent; the third call waits.
        hand.feed(&unary(stream, path(SIZE), &size)).unwrap();
    }
    assert_eq!(hand.events.len(), 2);
    assert!(!hand.session.wants_read(0));
    let mut out = Vec::new();
    hand.session.send(&mut out, 100_000);
    assert!(out.len() < 120_000, "the budget holds: {}", out.len());
    out.extend(hand.output());
    assert_eq!(hand.events.len(), 4);
    assert!(hand.session.wants_read(0));
    assert!(out.len() > 12_000_000);
}

#[test]
fn answers_that_wait_for_windows_do_not_stop_the_reading() {
    let mut hand = ByHand::connected(config());
    for stream in [1, 3, 5] {
        hand.feed(&unary(stream, path(SIZE), &3_000_000_u32.to_be_bytes())).unwrap();
        hand.output();
    }
    assert!(hand.session.backlog_bytes() > limits::SEND_BACKLOG_BYTES_MAX);
    // The WINDOW_UPDATE that would free them has to be read.
    assert!(hand.session.wants_read(0));
    hand.feed(&window_update(0, 20_000_000)).unwrap();
    for stream in [1, 3] {
        hand.feed(&window_update(stream, 20_000_000)).unwrap();
    }
    hand.output();
    assert_eq!(hand.events.len(), 3);
    hand.feed(&window_update(5, 20_000_000)).unwrap();
    hand.output();
    assert_eq!(hand.session.backlog_bytes(), 0);
    assert_eq!(hand.session.open_streams(), 0);
}

#[test]
fn calls_that_wait_and_are_reset_leave_nothing_queued() {
    let mut hand = ByHand::connected(config());
    let size = 5_000_000_u32.to_be_bytes();
    hand.feed(&unary(1, path(SIZE), &size)).unwrap();
    // The backlog is full from here on: these wait, and are reset while they do.
    for n in 1..3_000_u32 {
        let stream = 2 * n + 1;
        let mut bytes = unary(stream, path(ECHO), b"x");
        bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        hand.feed(&bytes).unwrap();
        assert_eq!(hand.session.open_streams(), 1);
    }
    assert_eq!(hand.events, ["request"]);
    hand.feed(&window_update(0, 20_000_000)).unwrap();
    hand.feed(&window_update(1, 20_000_000)).unwrap();
    hand.feed(&unary(10_001, path(ECHO), b"last")).unwrap();
    assert!(is_answered(&hand.frames(), 10_001, b"last"));
    assert_eq!(hand.events, ["request", "request"]);
}

#[test]
fn deadlines_of_calls_that_never_became_whole_or_never_started_pass_too() {
    let mut hand = ByHand::connected(config());
    let mut fields = request_fields(path(ECHO));
    fields.push(("grpc-timeout", "100m"));
    // Half a message.
    hand.feed(&frame(HEADERS, END_HEADERS, 1, &hpack(&fields))).unwrap();
    hand.feed(&frame(DATA, 0, 1, &[0, 0, 0])).unwrap();
    // Whole, but it waits behind a full backlog.
    hand.feed(&unary(3, path(SIZE), &5_000_000_u32.to_be_bytes())).unwrap();
    hand.feed(&frame(HEADERS, END_HEADERS, 5, &hpack(&fields))).unwrap();
    hand.feed(&frame(DATA, END_STREAM, 5, &framed(b"x"))).unwrap();
    assert_eq!(hand.session.next_tick(), Some(Millis(1_100)));
    hand.output();
    hand.session.tick(Millis(1_100)).unwrap();
    hand.run();
    let frames = hand.frames();
    for stream in [1, 5] {
        let answer: Vec<_> =
            frames.iter().filter(|f| f.stream == stream && f.kind == HEADERS).collect();
        assert_eq!(answer.len(), 1);
        assert_ne!(answer[0].flags & END_STREAM, 0);
    }
    // The client of the half message is told to stop; nobody is told of cancellations, since
    // neither call was handed out.
    let resets = of_kind(&frames, RST_STREAM);
    assert_eq!((resets.len(), resets[0].stream, resets[0].error_code()), (1, 1, 0));
    assert_eq!(hand.events, ["request"]);
    assert_eq!(hand.session.open_streams(), 1);
    assert_eq!(hand.session.next_tick(), None);
}

#[test]
fn a_second_message_is_refused_even_when_the_first_filled_its_window() {
    let mut hand = ByHand::connected(config());
    hand.feed(&open(1, path(ECHO))).unwrap();
    let message = framed(&vec![1; 300_000]);
    for piece in message.chunks(16_000) {
        hand.feed(&frame(DATA, 0, 1, piece)).unwrap();
    }
    hand.feed(&frame(DATA, 0, 1, &framed(b"2"))).unwrap();
    let frames = hand.frames();
    assert_eq!(of_kind(&frames, HEADERS).len(), 1);
    assert_eq!(of_kind(&frames, RST_STREAM)[0].error_code(), 0);
    assert_eq!(hand.events, [""; 0]);
}

#[test]
fn the_handshake_may_come_with_the_first_call() {
    let mut hand = ByHand::new(config());
    let mut bytes = handshake();
    bytes.extend(unary(1, path(ECHO), b"at once"));
    hand.feed(&bytes).unwrap();
    assert!(is_answered(&hand.frames(), 1, b"at once"));
}
