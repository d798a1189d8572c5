//! The log's way to the disk: positioned, direct, durable writes on the ring.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod reactor_support;

use std::{
    fs::{File, OpenOptions},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
    rc::Rc,
    time::Instant,
};

use reactor_support::{Driver, Mode, drive, pattern, small};
use stateside_node::reactor::{Event, Flush};
use stateside_pipeline::log::{AlignedBuffer, BLOCK_BYTES};

const FLUSHES: [Flush; 2] = [Flush::InWrite, Flush::Apart];

/// Opens a file, for direct writes where the file system can.
fn open(path: &Path) -> Rc<OwnedFd> {
    let open = |flags| {
        OpenOptions::new().write(true).create(true).truncate(false).custom_flags(flags).open(path)
    };
    let file = open(libc::O_DIRECT).or_else(|_| open(0)).unwrap();
    Rc::new(file.into())
}

fn block(number: usize, blocks: usize) -> Rc<AlignedBuffer> {
    let mut buffer = AlignedBuffer::zeroed(blocks * BLOCK_BYTES);
    let bytes = pattern(blocks * BLOCK_BYTES - 100, number as u8);
    buffer[..bytes.len()].copy_from_slice(&bytes);
    Rc::new(buffer)
}

#[test]
fn writes_land_where_they_belong_whatever_their_order() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("segment");
    let mut driver = Driver::new(small(), Mode::Echo);
    let file = open(&path);
    let order = [5, 0, 3, 7, 1, 6, 2, 4];
    for &number in &order {
        let offset = (number * 4 * BLOCK_BYTES) as u64;
        let flush = FLUSHES[number % 2];
        driver.ring.write_file(&file, offset, block(number, 4), flush, number as u64);
    }
    assert_eq!(driver.ring.file_writes(), 8);
    driver.until("all writes", |driver| driver.written.len() == 8);
    assert_eq!(driver.ring.file_writes(), 0);
    let mut tokens: Vec<_> = driver.written.iter().map(|(token, _)| *token).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert!(driver.written.iter().all(|(_, result)| result.is_ok()));
    let written = File::open(&path).unwrap();
    for &number in &order {
        let mut bytes = vec![0; 4 * BLOCK_BYTES];
        written.read_exact_at(&mut bytes, (number * 4 * BLOCK_BYTES) as u64).unwrap();
        assert!(bytes == block(number, 4)[..], "block {number}");
    }
}

/// The file may be closed by its owner, and the buffer forgotten, while the write is under way.
#[test]
fn a_write_keeps_its_file_and_buffer_alive() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("segment");
    let mut driver = Driver::new(small(), Mode::Echo);
    for round in 0..20u64 {
        let file = open(&path);
        let (offset, flush) = (round * BLOCK_BYTES as u64, FLUSHES[round as usize % 2]);
        driver.ring.write_file(&file, offset, block(round as usize, 1), flush, round);
        drop(file);
    }
    driver.until("all writes", |driver| driver.written.len() == 20);
    assert!(driver.written.iter().all(|(_, result)| result.is_ok()));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 20 * BLOCK_BYTES as u64);
}

#[test]
fn a_failed_write_says_so() {
    for flush in FLUSHES {
        let mut driver = Driver::new(small(), Mode::Echo);
        // A device that is always full, and a file that is open for reading only.
        let full: OwnedFd = OpenOptions::new().write(true).open("/dev/full").unwrap().into();
        let read_only: OwnedFd = File::open("/proc/self/exe").unwrap().into();
        driver.ring.write_file(&Rc::new(full), 0, block(1, 2), flush, 1);
        driver.ring.write_file(&Rc::new(read_only), 0, block(2, 2), flush, 2);
        driver.until("both ends", |driver| driver.written.len() == 2);
        driver.written.sort_by_key(|(token, _)| *token);
        let errors: Vec<_> = driver
            .written
            .iter()
            .map(|(_, result)| result.as_ref().unwrap_err().raw_os_error())
            .collect();
        assert_eq!(errors, [Some(libc::ENOSPC), Some(libc::EBADF)], "{flush:?}");
    }
}

/// A pipe takes bytes and cannot be flushed: what is not known to be durable is not reported as such.
#[test]
fn a_failed_flush_fails_its_write() {
    let mut driver = Driver::new(small(), Mode::Echo);
    let (reader, writer) = std::io::pipe().unwrap();
    driver.ring.write_file(&Rc::new(writer.into()), 0, block(1, 1), Flush::Apart, 1);
    driver.until("the end", |driver| driver.written.len() == 1);
    let error = driver.written[0].1.as_ref().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    assert_eq!(driver.ring.file_writes(), 0);
    drop(reader);
}

/// Memory that a disk still reads must not be freed: dropping the ring waits for its writes.
#[test]
fn dropping_the_ring_finishes_or_cancels_its_writes() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let path = directory.path().join(format!("segment-{round}"));
        let mut driver = Driver::new(small(), Mode::Echo);
        let file = open(&path);
        for number in 0..8 {
            let offset = (number * 16 * BLOCK_BYTES) as u64;
            let flush = FLUSHES[number % 2];
            driver.ring.write_file(&file, offset, block(number, 16), flush, number as u64);
        }
        if round % 2 == 0 {
            driver.turn();
        }
        drop(driver);
        assert_eq!(Rc::strong_count(&file), 1, "the writes let go of the file");
        // Each block is there as a whole or not at all.
        let written = File::open(&path).unwrap();
        for number in 0..8 {
            let mut bytes = vec![0; 16 * BLOCK_BYTES];
            let offset = (number * 16 * BLOCK_BYTES) as u64;
            if written.read_exact_at(&mut bytes, offset).is_ok() {
                let all_zero = bytes.iter().all(|byte| *byte == 0);
                assert!(all_zero || bytes == block(number, 16)[..], "foreign bytes on the disk");
            }
        }
    }
}

/// What the ring costs beside a plain `pwrite`, one durable write at a time over zero-filled blocks.
#[test]
#[ignore = "a measurement, not a check; run in release mode with --nocapture"]
fn durable_write_latency() {
    const ROUNDS: u32 = 1_000;
    // TMPDIR decides on which file system.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("segment");
    std::fs::write(&path, vec![0; 64 << 20]).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    let file = open(&path);
    let mut driver = Driver::new(small(), Mode::Echo);
    for blocks in [1, 16] {
        let offset = |round: u32| u64::from(round % 512) * (blocks * BLOCK_BYTES) as u64;
        let plain = File::from(file.try_clone().unwrap());
        let buffer = block(1, blocks);
        let start = Instant::now();
        for round in 0..ROUNDS {
            plain.write_all_at(&buffer, offset(round)).unwrap();
        }
        let plain = start.elapsed() / ROUNDS;
        let mut events = Vec::new();
        let start = Instant::now();
        for round in 0..ROUNDS {
            let bytes = Rc::clone(&buffer);
            let flush = FLUSHES[round as usize % 2];
            driver.ring.write_file(&file, offset(round), bytes, flush, u64::from(round));
            while driver.ring.file_writes() > 0 {
                drive(driver.ring.wait(None)).unwrap();
                driver.ring.turn(Instant::now(), &mut events).unwrap();
            }
            for event in events.drain(..) {
                let Event::FileWritten { result, .. } = event else { panic!("{event:?}") };
                result.unwrap();
            }
        }
        println!("{:>3} KiB: pwrite {plain:?}, ring {:?}", 4 * blocks, start.elapsed() / ROUNDS);
    }
}
