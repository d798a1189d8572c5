//! What clients do to a ring's connections, well-behaved and not, one story a test.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod reactor_support;

use std::{
    collections::HashSet,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use reactor_support::{Driver, Mode, PATIENCE, pattern, reset_on_close, small};
use stateside_node::reactor::{Closing, Event, RingConfig, bind_shared, bind_unix};

#[test]
fn bytes_come_back_as_they_were_sent() {
    let mut driver = Driver::new(RingConfig::default(), Mode::Echo);
    let (mut client, id) = driver.connect();
    assert_eq!(driver.ring.peer_address(id), Some(client.local_addr().unwrap()));
    let sent = pattern(3_000_000, 7);
    let (mut pushed, mut pulled) = (0, Vec::new());
    driver.until("the echo", |_| {
        pushed += Driver::push_some(&mut client, &sent[pushed..]);
        Driver::pull_some(&mut client, &mut pulled);
        pulled.len() == sent.len()
    });
    assert!(pulled == sent);
    assert!(driver.received[&id] == sent);
}

#[test]
fn many_small_messages_arrive_in_order() {
    let mut driver = Driver::new(small(), Mode::Collect);
    let mut clients: Vec<_> = (0..20).map(|_| driver.connect()).collect();
    for round in 0..50u8 {
        for (number, (client, _)) in clients.iter_mut().enumerate() {
            client.write_all(&pattern(1 + number * 37, round)).unwrap();
        }
        driver.turn();
    }
    for (number, (_, id)) in clients.iter().enumerate() {
        let expected: Vec<u8> =
            (0..50u8).flat_map(|round| pattern(1 + number * 37, round)).collect();
        driver.until("all bytes", |driver| driver.received[id].len() >= expected.len());
        assert!(driver.received[id] == expected);
    }
}

/// A multishot receive ends with ENOBUFS when all buffers are lent. Nothing may be lost, and
/// everybody must get on once buffers come back.
#[test]
fn connections_survive_a_shortage_of_buffers() {
    let config =
        RingConfig { receive_buffers: 4, receive_buffer_bytes: 512, ..RingConfig::default() };
    let mut driver = Driver::new(config, Mode::Hoard);
    let mut clients: Vec<_> = (0..12).map(|_| driver.connect()).collect();
    let sent = pattern(20_000, 3);
    for (client, _) in &mut clients {
        client.write_all(&sent).unwrap();
    }
    driver.settle();
    assert!(driver.ring.counters().out_of_buffers > 0, "the shortage must occur");
    let stuck = driver.received_bytes();
    assert_eq!(stuck, 4 * 512, "every buffer is full and lent");
    // From here on buffers come back, but late: only when all are lent again.
    let deadline = std::time::Instant::now() + PATIENCE;
    while driver.received_bytes() < 12 * sent.len() {
        assert!(std::time::Instant::now() < deadline, "starved");
        driver.give_hoard_back();
        let before = driver.received_bytes();
        driver.until("progress", |driver| driver.received_bytes() > before);
    }
    for (_, id) in &clients {
        assert!(driver.received[id] == sent, "lost or reordered bytes");
    }
    assert!(driver.failed.is_empty() && driver.peer_closed.is_empty());
}

/// One multishot receive can take all buffers that come back, every time. Found when a plain
/// queue of the starved let the flood below through forever and the six bytes never.
#[test]
fn a_greedy_connection_does_not_starve_a_modest_one() {
    let config = RingConfig { receive_buffers: 2, receive_buffer_bytes: 256, ..small() };
    let mut driver = Driver::new(config, Mode::Hoard);
    let (mut greedy, greedy_id) = driver.connect();
    let (mut modest, modest_id) = driver.connect();
    let flood = vec![1u8; 1 << 20];
    let mut flooded = Driver::push_some(&mut greedy, &flood);
    driver.settle();
    modest.write_all(b"me too").unwrap();
    let mut rounds = 0;
    while driver.received[&modest_id].is_empty() {
        rounds += 1;
        assert!(rounds < 5, "still starved after {rounds} rounds");
        driver.give_hoard_back();
        flooded += Driver::push_some(&mut greedy, &flood);
        driver.settle();
    }
    assert_eq!(driver.received[&modest_id], b"me too");
    assert!(driver.received[&greedy_id].len() < flooded, "the flood was still going on");
}

#[test]
fn what_a_socket_does_not_take_waits_and_follows_in_order() {
    let mut driver = Driver::new(small(), Mode::Collect);
    let (mut client, id) = driver.connect();
    let first = pattern(8 << 20, 1);
    let second = pattern(1 << 20, 2);
    let waiting = driver.ring.send(id, &mut first.clone());
    assert!(waiting > 0, "8 MiB do not fit in a socket that nobody reads");
    let mut more = second.clone();
    assert_eq!(driver.ring.send(id, &mut more), waiting + second.len());
    assert!(more.is_empty());
    assert_eq!(driver.ring.backlog(id), waiting + second.len());
    let mut pulled = Vec::new();
    driver.until("everything", |_| {
        Driver::pull_some(&mut client, &mut pulled);
        pulled.len() == first.len() + second.len()
    });
    assert!(pulled[..first.len()] == first[..] && pulled[first.len()..] == second[..]);
    driver.until("the event", |driver| !driver.sent.is_empty());
    assert_eq!(driver.sent, [id], "one event when all had gone");
    assert_eq!(driver.ring.backlog(id), 0);
    assert_eq!(driver.ring.counters().partial_sends, 1);
}

/// A client that floods and never reads: reading stops, so its own socket fills up, and nothing
/// grows on our side.
#[test]
fn a_paused_connection_is_not_read_and_loses_nothing() {
    let mut driver = Driver::new(small(), Mode::Collect);
    let (mut client, id) = driver.connect();
    let sent = pattern(32 << 20, 9);
    let mut pushed = Driver::push_some(&mut client, &sent[..100_000]);
    driver.until("some bytes", |driver| !driver.received[&id].is_empty());
    driver.ring.pause_reading(id);
    driver.settle();
    let at_pause = driver.received[&id].len();
    loop {
        let count = Driver::push_some(&mut client, &sent[pushed..]);
        pushed += count;
        driver.settle();
        if count == 0 {
            break;
        }
    }
    assert!(pushed < sent.len(), "the client's socket fills up");
    assert_eq!(driver.received[&id].len(), at_pause, "nothing is read while paused");
    driver.ring.resume_reading(id);
    driver.until("the rest", |driver| {
        pushed += Driver::push_some(&mut client, &sent[pushed..]);
        driver.received[&id].len() == sent.len()
    });
    assert!(driver.received[&id] == sent);
}

/// Pausing and resuming in quick succession crosses cancellations with data: the receive must
/// end up armed exactly once.
#[test]
fn pausing_and_resuming_at_any_moment_loses_nothing() {
    let mut driver = Driver::new(small(), Mode::Collect);
    let (mut client, id) = driver.connect();
    let sent = pattern(400_000, 5);
    let mut pushed = 0;
    for round in 0..4_000 {
        let next = (pushed + 100).min(sent.len());
        pushed += Driver::push_some(&mut client, &sent[pushed..next]);
        match round % 7 {
            0 | 3 => driver.ring.pause_reading(id),
            1 | 4 | 6 => driver.ring.resume_reading(id),
            _ => {}
        }
        if round % 3 != 0 {
            driver.turn();
        }
    }
    driver.ring.resume_reading(id);
    driver.until("all bytes", |driver| {
        pushed += Driver::push_some(&mut client, &sent[pushed..]);
        driver.received[&id].len() >= sent.len()
    });
    assert!(driver.received[&id] == sent);
}

#[test]
fn a_peer_that_resets_in_the_middle_fails_once_and_leaves_nothing() {
    let mut driver = Driver::new(small(), Mode::Collect);
    let (mut client, id) = driver.connect();
    client.write_all(b"half a requ").unwrap();
    driver.until("the half", |driver| driver.received[&id] == b"half a requ");
    reset_on_close(&client);
    drop(client);
    driver.until("the failure", |driver| !driver.failed.is_empty());
    assert_eq!(driver.failed[0].0, id);
    assert_eq!(driver.failed[0].1.kind(), ErrorKind::ConnectionReset);
    driver.until("its end", |driver| driver.ring.connections() == 0);
    let mut late = b"answer".to_vec();
    assert_eq!(driver.ring.send(id, &mut late), 0, "a late answer goes nowhere");
    assert!(late.is_empty());
    driver.ring.close(id, Closing::Graceful);
    driver.settle();
    assert_eq!(driver.failed.len(), 1);
}

/// The end of a connection was told after everything else of its turn. A client that came in the
/// same turn got the index, and its owner found two connections in one place: the first was
/// never counted as closed, and a drain waited for it in vain.
#[test]
fn the_end_of_a_connection_is_told_before_its_index_is_used_again() {
    let mut driver = Driver::new(small(), Mode::Collect);
    let (first, before) = driver.connect();
    reset_on_close(&first);
    drop(first);
    let _second = TcpStream::connect(driver.address).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut told = Vec::new();
    while told.len() < 2 {
        assert!(Instant::now() < deadline, "only {told:?}");
        driver.ring.turn(Instant::now(), &mut told).unwrap();
    }
    let [Event::Failed { connection: ended, .. }, Event::Accepted { connection: new, .. }] =
        told.as_slice()
    else {
        panic!("not in order: {told:?}");
    };
    assert_eq!((*ended, ended.index()), (before, new.index()));
}

#[test]
fn a_peer_that_resets_while_answers_wait_fails_once() {
    let mut driver = Driver::new(small(), Mode::Collect);
    let (client, id) = driver.connect();
    assert!(driver.ring.send(id, &mut pattern(16 << 20, 1)) > 0);
    driver.turn();
    reset_on_close(&client);
    drop(client);
    driver.until("its end", |driver| driver.ring.connections() == 0);
    driver.settle();
    assert_eq!(driver.failed.len(), 1);
    assert!(driver.sent.is_empty());
}

#[test]
fn sending_to_a_peer_that_has_gone_fails_with_the_next_turn() {
    let mut driver = Driver::new(small(), Mode::Collect);
    let (client, id) = driver.connect();
    driver.ring.pause_reading(id);
    driver.settle();
    reset_on_close(&client);
    drop(client);
    driver.until("the failure", |driver| {
        driver.ring.send(id, &mut b"x".to_vec());
        !driver.failed.is_empty()
    });
    driver.until("its end", |driver| driver.ring.connections() == 0);
    driver.settle();
    assert_eq!(driver.failed.len(), 1);
}

#[test]
fn a_half_closed_connection_still_gets_its_answer() {
    let mut driver = Driver::new(small(), Mode::Collect);
    let (mut client, id) = driver.connect();
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    driver.until("the end of the stream", |driver| !driver.peer_closed.is_empty());
    assert_eq!(driver.received[&id], b"request", "the bytes came before the end");
    assert!(driver.ring.is_open(id));
    assert_eq!(driver.ring.send(id, &mut b"answer".to_vec()), 0);
    driver.ring.close(id, Closing::Graceful);
    assert_eq!(driver.ring.connections(), 0, "both sides are done: closed at once");
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
}

#[test]
fn a_graceful_close_sends_what_waits_and_then_the_end() {
    let mut driver = Driver::new(small(), Mode::Collect);
    let (mut client, id) = driver.connect();
    let answer = pattern(8 << 20, 4);
    assert!(driver.ring.send(id, &mut answer.clone()) > 0);
    driver.ring.close(id, Closing::Graceful);
    assert!(!driver.ring.is_open(id));
    assert_eq!(driver.ring.send(id, &mut b"too late".to_vec()), 0);
    let mut pulled = Vec::new();
    driver.until("the end", |_| Driver::pull_some(&mut client, &mut pulled));
    assert!(pulled == answer);
    drop(client);
    driver.until("the close", |driver| driver.ring.connections() == 0);
    assert!(driver.sent.is_empty() && driver.peer_closed.is_empty() && driver.failed.is_empty());
}

/// Closing a socket with unread input makes the kernel send a reset, and a reset destroys what
/// the client has not read yet: the answer that explains the close.
#[test]
fn a_graceful_close_with_unread_input_does_not_destroy_the_last_answer() {
    let mut driver = Driver::new(small(), Mode::Collect);
    let (mut client, id) = driver.connect();
    driver.ring.pause_reading(id);
    driver.settle();
    let mut pushed = Driver::push_some(&mut client, &vec![1u8; 2 << 20]);
    let answer = pattern(100_000, 6);
    driver.ring.send(id, &mut answer.clone());
    driver.ring.close(id, Closing::Graceful);
    let mut pulled = Vec::new();
    driver.until("the end", |_| {
        pushed += Driver::push_some(&mut client, &[2u8; 10_000]);
        Driver::pull_some(&mut client, &mut pulled)
    });
    assert!(pulled == answer);
    drop(client);
    driver.until("the close", |driver| driver.ring.connections() == 0);
    assert_eq!(driver.received_bytes(), 0, "input after the close is discarded");
}

#[test]
fn a_client_that_never_closes_is_cut_when_the_grace_is_over() {
    for backlog in [false, true] {
        let mut driver = Driver::new(small(), Mode::Collect);
        let (mut client, id) = driver.connect();
        if backlog {
            assert!(driver.ring.send(id, &mut pattern(16 << 20, 4)) > 0);
        }
        driver.ring.close(id, Closing::Graceful);
        driver.settle();
        assert_eq!(driver.ring.connections(), 1, "it has its time");
        driver.time_shift = Duration::from_secs(6);
        driver.until("the cut", |driver| driver.ring.connections() == 0);
        let mut rest = Vec::new();
        while !matches!(client.read(&mut [0; 65536]), Ok(0) | Err(_)) {
            rest.push(());
        }
        assert!(driver.failed.is_empty(), "the caller has done with it");
    }
}

/// Operations of a closed connection complete after the close. Its slot and its descriptor
/// number are used again at once, so a mix-up would show as bytes or events for the wrong one.
#[test]
fn closing_with_work_in_flight_never_touches_the_successor() {
    let mut driver = Driver::new(small(), Mode::Collect);
    let mut indices = HashSet::new();
    let mut rest = Vec::new();
    for round in 0..1_500u32 {
        let (mut client, id) = driver.connect();
        indices.insert(id.index());
        client.write_all(&round.to_le_bytes()).unwrap();
        if round % 2 == 0 {
            driver.ring.send(id, &mut vec![0; 4 << 20]); // a poll for room is under way
        }
        if round % 3 == 0 {
            driver.ring.pause_reading(id); // a cancellation is under way
        }
        if round % 5 == 0 {
            driver.turn();
        }
        let how = if round % 7 == 0 { Closing::Graceful } else { Closing::Abort };
        let log = driver.received[&id].len();
        driver.ring.close(id, how);
        client.write_all(&round.to_le_bytes()).ok();
        if round % 4 != 0 {
            driver.turn();
            assert_eq!(driver.received[&id].len(), log, "bytes after the close");
        }
        // Reset or end of stream, then nothing.
        rest.push(client);
        if rest.len() == 20 {
            rest.clear();
        }
    }
    drop(rest);
    driver.until("the end of all", |driver| driver.ring.connections() == 0);
    assert!(driver.sent.is_empty() && driver.peer_closed.is_empty() && driver.failed.is_empty());
    for (id, bytes) in &driver.received {
        let round = driver.accepted.iter().position(|accepted| accepted == id).unwrap() as u32;
        assert!(bytes.is_empty() || bytes == &round.to_le_bytes(), "bytes of another: {bytes:?}");
    }
    assert!(indices.len() < 500, "slots are used again: {}", indices.len());
}

#[test]
fn connections_above_the_limit_are_refused_at_once_and_admitted_later() {
    let config = RingConfig { connections_max: 3, ..small() };
    let mut driver = Driver::new(config, Mode::Collect);
    let kept: Vec<_> = (0..3).map(|_| driver.connect()).collect();
    let mut refused = TcpStream::connect(driver.address).unwrap();
    driver.until("the refusal", |driver| driver.ring.counters().refused == 1);
    refused.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(refused.read(&mut [0; 1]), Ok(0) | Err(_)), "closed, not left hanging");
    driver.ring.close(kept[0].1, Closing::Abort);
    driver.until("room", |driver| driver.ring.connections() == 2);
    let (mut client, id) = driver.connect();
    client.write_all(b"hello").unwrap();
    driver.until("service", |driver| driver.received[&id] == b"hello");
}

/// More completions than the queue holds: the kernel keeps them, ends multishots, and all goes on.
#[test]
fn an_overflowing_completion_queue_loses_nothing() {
    let config = RingConfig { submissions: 4, completions: 8, ..small() };
    let mut driver = Driver::new(config, Mode::Echo);
    let mut clients: Vec<_> =
        (0..200).map(|_| TcpStream::connect(driver.address).unwrap()).collect();
    driver.until("all connections", |driver| driver.accepted.len() == 200);
    for round in 0..20u8 {
        for client in &mut clients {
            client.write_all(&pattern(100, round)).unwrap();
        }
        driver.turn();
    }
    driver.until("all bytes", |driver| driver.received_bytes() == 200 * 20 * 100);
    for client in &mut clients {
        let mut pulled = vec![0; 2_000];
        client.read_exact(&mut pulled).unwrap();
        for round in 0..20u8 {
            let start = usize::from(round) * 100;
            assert!(pulled[start..start + 100] == pattern(100, round)[..]);
        }
    }
}

#[test]
fn a_stopped_listener_refuses_and_its_connections_stay() {
    let mut driver = Driver::new(small(), Mode::Echo);
    let (mut client, _) = driver.connect();
    driver.ring.stop_listening(driver.listener);
    driver.ring.stop_listening(driver.listener);
    driver.until("the refusal", |driver| TcpStream::connect(driver.address).is_err());
    client.write_all(b"still here").unwrap();
    let mut pulled = Vec::new();
    driver.until("the echo", |_| {
        Driver::pull_some(&mut client, &mut pulled);
        pulled == b"still here"
    });
}

/// A closed io_uring is torn down at the kernel's leisure; a restart must not find the port taken.
#[test]
fn a_dropped_ring_frees_its_port_at_once() {
    for _ in 0..20 {
        let mut driver = Driver::new(small(), Mode::Collect);
        let (_client, id) = driver.connect();
        driver.ring.send(id, &mut vec![0; 8 << 20]);
        let address = driver.address;
        drop(driver);
        bind_shared(address, 1).expect("the port is free");
    }
}

#[test]
fn a_unix_socket_serves_like_a_port() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stateside.sock");
    let mut driver = Driver::new(small(), Mode::Echo);
    driver.ring.stop_listening(driver.listener);
    driver.listener = driver.ring.listen(bind_unix(&path).unwrap());
    let mut client = std::os::unix::net::UnixStream::connect(&path).unwrap();
    client.write_all(b"over the file system").unwrap();
    driver.until("the bytes", |driver| driver.received_bytes() == 20);
    let mut pulled = [0; 20];
    client.read_exact(&mut pulled).unwrap();
    assert_eq!(&pulled, b"over the file system");
    let id = driver.accepted[0];
    assert_eq!(driver.ring.peer_address(id), None);
    drop(client);
    driver.until("the end", |driver| driver.peer_closed == [id]);
}
