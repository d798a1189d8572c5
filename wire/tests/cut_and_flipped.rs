//! Valid traffic cut at random places and with random bytes changed: the session never panics,
//! holds bounded memory, and goes on answering or ends.

mod harness;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use harness::{
    METHODS, config, framed,
    frames::{
        ByHand, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, frame, handshake, hpack,
        open, request_fields, settings, unary, window_update,
    },
};
use proptest::prelude::*;
use stateside_wire::Millis;

/// Everything a client may do, in a row, on streams 1, 3, 5, …
fn traffic(calls: &[(usize, usize)]) -> Vec<u8> {
    let mut bytes = handshake();
    bytes.extend(settings(&[(1, 0), (4, 100_000)]));
    for (index, (method, size)) in calls.iter().enumerate() {
        let stream = 2 * index as u32 + 1;
        // `Size` answers with as many bytes as the message says: 0x0000_0101 or so.
        let mut message = vec![0, 0, 1, 1];
        message.resize(4 + size, 1);
        match size % 5 {
            0 => bytes.extend(unary(stream, METHODS[*method], &message)),
            1 => {
                bytes.extend(open(stream, METHODS[*method]));
                for piece in framed(&message).chunks(7) {
                    bytes.extend(frame(DATA, 0, stream, piece));
                }
                bytes.extend(frame(DATA, END_STREAM, stream, &[]));
            }
            2 => {
                bytes.extend(unary(stream, METHODS[*method], &message));
                bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            }
            3 => {
                let mut fields = request_fields(METHODS[*method]);
                fields.push(("grpc-timeout", "5m"));
                bytes.extend(frame(HEADERS, END_HEADERS, stream, &hpack(&fields)));
                bytes.extend(frame(DATA, END_STREAM, stream, &framed(&message)));
                bytes.extend(frame(PING, 0, 0, &[1; 8]));
            }
            _ => {
                bytes.extend(unary(stream, METHODS[*method], &message));
                bytes.extend(window_update(0, 10_000));
            }
        }
    }
    bytes
}

fn calls() -> impl Strategy<Value = Vec<(usize, usize)>> {
    prop::collection::vec((0..METHODS.len(), 0_usize..2_000), 1..20)
}

/// Feeds pieces, ticks in between, collects what is sent.
fn run(bytes: &[u8], cuts: &[usize], budget: usize) -> (ByHand, Vec<u8>) {
    let mut hand = ByHand::new(config());
    let mut out = Vec::new();
    let mut rest = bytes;
    for cut in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at((*cut).min(rest.len()));
        rest = after;
        if hand.feed(piece).is_err() {
            break;
        }
        hand.now = Millis(hand.now.0 + 1);
        if hand.session.tick(hand.now).is_err() {
            break;
        }
        hand.run();
        hand.session.send(&mut out, budget);
        hand.run();
    }
    // Past every deadline.
    hand.now = Millis(hand.now.0 + 100);
    let _may_have_ended = hand.session.tick(hand.now);
    hand.run();
    out.extend(hand.output());
    (hand, out)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn cuts_do_not_matter(
        calls in calls(),
        cuts in prop::collection::vec(1_usize..300, 1..20),
        budget in 1_usize..5_000,
    ) {
        let bytes = traffic(&calls);
        let (hand, out) = run(&bytes, &cuts, budget);
        // All that was not reset, hung or expired has been answered: nothing else is open.
        let hanging = calls.iter().filter(|(method, size)| *method == 2 && !matches!(size % 5, 2 | 3)).count();
        prop_assert_eq!(hand.session.open_streams(), hanging);
        prop_assert_eq!(hand.session.backlog_bytes(), 0);
        prop_assert!(!hand.session.is_finished());
        harness::frames::parse(&out);
    }

    #[test]
    fn flipped_bytes_end_the_session_or_do_not_but_never_the_process(
        calls in calls(),
        cuts in prop::collection::vec(1_usize..3_000, 1..10),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..=255), 1..12),
    ) {
        let mut bytes = traffic(&calls);
        for (index, flip) in &flips {
            let at = index.index(bytes.len());
            bytes[at] ^= flip;
        }
        let held_before = HELD.with(Cell::get);
        let (mut hand, out) = run(&bytes, &cuts, usize::MAX);
        harness::frames::parse(if out.starts_with(b"HTTP/1.1") { &[] } else { &out });
        let held = HELD.with(Cell::get) - held_before - out.capacity() as isize;
        // A backlog below its limit, and the one answer that went above it.
        prop_assert!(held < 24 << 20, "{} bytes are held", held);
        // Whatever state it is in, it drains or ends.
        hand.session.receive_end();
        hand.session.go_away(hand.now);
        hand.output();
        drop(hand);
    }

    #[test]
    fn noise_is_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2_000), after_handshake: bool) {
        let mut all = if after_handshake { handshake() } else { Vec::new() };
        all.extend(bytes);
        run(&all, &[17], usize::MAX);
    }
}

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
}

/// Counts what this thread holds of Rust's memory.
struct Counting;

// SAFETY: passes everything to the system's allocator unchanged; the count is a plain number.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = HELD.try_with(|held| held.set(held.get() + layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let _ = HELD.try_with(|held| held.set(held.get() - layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;
