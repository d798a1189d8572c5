//! What happens when the process's own limits are reached. Alone in its binary, and one test: the
//! limits are those of the whole process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod reactor_support;

use std::{
    fs::File,
    io::{Read, Write},
    net::TcpStream,
    os::fd::OwnedFd,
    rc::Rc,
    time::Duration,
};

use reactor_support::{Driver, Mode, pattern, small};
use rustix::{
    net::{AddressFamily, SocketType, connect, socket},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use stateside_node::reactor::{Closing, Flush};
use stateside_pipeline::log::{AlignedBuffer, BLOCK_BYTES};

fn set_soft(resource: Resource, current: Option<u64>) {
    setrlimit(resource, Rlimit { current, ..getrlimit(resource) }).unwrap();
}

#[test]
fn scarcity() {
    out_of_descriptors();
    short_writes();
}

/// Accepting fails while no descriptor is free, says so once, does not spin, and goes on by
/// itself: when the pause is over, or at once when a connection has ended.
fn out_of_descriptors() {
    // Before the ring exists: an accept goes by the limit at the time when it was armed.
    let before = getrlimit(Resource::Nofile).current;
    set_soft(Resource::Nofile, Some(100));
    let mut driver = Driver::new(small(), Mode::Echo);
    let kept: Vec<_> = (0..4).map(|_| driver.connect()).collect();
    // The clients have their descriptors already; then none is left for the accepted ends.
    let sockets: Vec<OwnedFd> =
        (0..6).map(|_| socket(AddressFamily::INET, SocketType::STREAM, None).unwrap()).collect();
    let mut fillers = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        fillers.push(file);
    }
    for socket in &sockets {
        connect(socket, &driver.address).unwrap();
    }
    let mut waiting: Vec<TcpStream> = sockets.into_iter().map(TcpStream::from).collect();
    driver.until("the failure", |driver| !driver.accept_failed.is_empty());
    assert_eq!(driver.accept_failed[0].raw_os_error(), Some(libc::EMFILE));
    assert_eq!(driver.accepted.len(), 4, "six wait");

    // No retry before the pause is over, however many turns are taken.
    driver.settle();
    let failures = driver.ring.counters().accept_failures;
    driver.settle();
    let now = driver.ring.counters().accept_failures;
    assert!(now - failures <= 2, "retries are paced by time: {failures} then {now}");
    // Each pause one retry, and still only one event.
    for pause in 1..5 {
        driver.time_shift = Duration::from_millis(200 * pause);
        driver.turn();
        driver.settle();
    }
    assert!(driver.ring.counters().accept_failures > now);
    assert_eq!(driver.accept_failed.len(), 1, "said once");

    // One of ours ends: its descriptor serves one who waits, without a pause.
    driver.ring.close(kept[0].1, Closing::Abort);
    driver.until("one more", |driver| driver.accepted.len() == 5);

    // Descriptors are free again: everybody is served.
    drop(fillers);
    set_soft(Resource::Nofile, before);
    driver.time_shift += Duration::from_secs(1);
    driver.until("the rest", |driver| driver.accepted.len() == 4 + waiting.len());
    for client in &mut waiting {
        client.write_all(b"at last").unwrap();
        let mut pulled = Vec::new();
        driver.until("an echo", |_| {
            Driver::pull_some(client, &mut pulled);
            pulled == b"at last"
        });
    }
}

/// A limit on the size of files makes a write short, then fail: the first part must be written,
/// the rest attempted, and the error be told.
fn short_writes() {
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("segment");
    let mut driver = Driver::new(small(), Mode::Echo);
    let file: Rc<OwnedFd> = Rc::new(
        std::fs::OpenOptions::new().write(true).create_new(true).open(&path).unwrap().into(),
    );
    let before = getrlimit(Resource::Fsize).current;
    set_soft(Resource::Fsize, Some(3 * BLOCK_BYTES as u64));
    let bytes = pattern(8 * BLOCK_BYTES, 1);
    let mut buffer = AlignedBuffer::zeroed(bytes.len());
    buffer.copy_from_slice(&bytes);
    driver.ring.write_file(&file, 0, Rc::new(buffer), Flush::Apart, 9);
    driver.until("the end", |driver| driver.written.len() == 1);
    set_soft(Resource::Fsize, before);
    let error = driver.written[0].1.as_ref().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
    let mut written = Vec::new();
    File::open(&path).unwrap().read_to_end(&mut written).unwrap();
    assert!(written == bytes[..3 * BLOCK_BYTES], "what fits is written: {}", written.len());
}
