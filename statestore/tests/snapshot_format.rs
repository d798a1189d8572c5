//! Snapshot files: what is written is read, and what was not written is noticed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use stateside_statestore::{
    RequestWindow, SNAPSHOT_HEADER_BYTES, SnapshotError, SnapshotHeader, SnapshotReader,
    SnapshotRecord, SnapshotSummary, SnapshotWriter,
};
use stateside_types::{
    Epoch, ExpireAt, HashRange, PartitionId, Reason, Record, Refusal, RequestId, RequestMark,
    Sequence, Timestamp, WallClock, limits,
};

/// Key, value, version, timestamp, moment (0: none).
type Owned = (Vec<u8>, Vec<u8>, u64, u64, u64);

fn header() -> SnapshotHeader {
    SnapshotHeader {
        partition: PartitionId(12),
        range: HashRange::new(1 << 60, 1 << 61).unwrap(),
        epoch: Epoch(3),
        sequence: Sequence(10_000),
        timestamp: Timestamp(77),
        created: WallClock(1_700_000_000_000),
        store_kind: "memory".to_owned(),
    }
}

fn write(records: &[Owned]) -> (Vec<u8>, SnapshotSummary) {
    let mut out = Vec::new();
    let mut writer = SnapshotWriter::new(&header(), &mut out);
    for (key, value, version, timestamp, moment) in records {
        let (version, timestamp) = (Sequence(*version), Timestamp(*timestamp));
        let record =
            Record { value, version, timestamp, expire_at: ExpireAt::from_millis(*moment) };
        writer.push(SnapshotRecord { key, record }, &mut out);
    }
    let summary = writer.finish(&mut out);
    assert_eq!(summary.file_bytes, out.len() as u64);
    (out, summary)
}

fn read(bytes: &[u8], chunk: usize) -> Result<(Vec<Owned>, SnapshotSummary), SnapshotError> {
    let mut reader = SnapshotReader::new();
    let mut records = Vec::new();
    for piece in bytes.chunks(chunk) {
        reader.push(piece);
        while let Some(block) = reader.next_block()? {
            records.extend(block.records().map(|SnapshotRecord { key, record }| {
                let Record { value, version, timestamp, expire_at } = record;
                let moment = expire_at.map_or(0, ExpireAt::millis);
                (key.to_vec(), value.to_vec(), version.0, timestamp.0, moment)
            }));
        }
    }
    Ok((records, reader.finish()?))
}

#[test]
fn requests_come_back_beside_the_records_and_damage_to_them_is_noticed() {
    let records = sample(2_000);
    let mut window = RequestWindow::default();
    for number in 1..=1_500 {
        let refusal = (number % 7 == 0)
            .then(|| Refusal::new(Reason::ConditionFailed, "no").with("entry", 1).into());
        let client = format!("client {}", number % 3);
        let id = RequestId { client: client.as_bytes(), number, settled: 0 };
        let mark = RequestMark { refusal, ..RequestMark::new(id, number) };
        window.record(Sequence(number), Timestamp(number), &mark, &mut |_| {});
    }
    let mut bytes = Vec::new();
    let mut writer = SnapshotWriter::new(&header(), &mut bytes);
    window.rows(|row| writer.push_request(&row, &mut bytes));
    for (key, value, version, timestamp, moment) in &records {
        let (version, timestamp) = (Sequence(*version), Timestamp(*timestamp));
        let expire_at = ExpireAt::from_millis(*moment);
        let record = Record { value, version, timestamp, expire_at };
        writer.push(SnapshotRecord { key, record }, &mut bytes);
    }
    let written = writer.finish(&mut bytes);
    assert_eq!((written.records, written.file_bytes), (2_000, bytes.len() as u64));
    let (read_records, summary) = read(&bytes, 1_000).unwrap();
    assert_eq!((read_records, summary), (records, written));

    let mut reader = SnapshotReader::new();
    reader.push(&bytes);
    let (mut again, mut blocks) = (RequestWindow::default(), 0);
    while let Some(block) = reader.next_block().unwrap() {
        blocks += usize::from(block.requests().next().is_some());
        block.requests().for_each(|row| again.load(&row));
    }
    assert!(blocks > 1, "more than a block holds");
    let (mut left, mut right) = (Vec::new(), Vec::new());
    window.rows(|row| row.encode(&mut left));
    again.rows(|row| row.encode(&mut right));
    assert_eq!(left, right);
    for at in (SNAPSHOT_HEADER_BYTES..60_000).step_by(211) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x40;
        assert!(matches!(read(&flipped, 4_096), Err(SnapshotError::Damaged { .. })), "byte {at}");
    }
}

#[test]
fn a_snapshot_of_the_version_before_is_read() {
    let records = sample(100);
    let (bytes, _) = write(&records);
    let mut before = bytes[..SNAPSHOT_HEADER_BYTES].to_vec();
    before[8] = 2;
    let crc = crc32c::crc32c(&before[..SNAPSHOT_HEADER_BYTES - 4]).to_le_bytes();
    before[SNAPSHOT_HEADER_BYTES - 4..].copy_from_slice(&crc);
    // Blocks are bound to their header; the first one is enough to tell that the version passed.
    let mut reader = SnapshotReader::new();
    reader.push(&before);
    assert!(reader.next_block().unwrap().is_none());
    assert_eq!(reader.header(), Some(&header()));
}

fn sample(count: u64) -> Vec<Owned> {
    (0..count)
        .map(|n| {
            let (key, value) = (format!("key {n}").into_bytes(), vec![n as u8; n as usize % 90]);
            (key, value, n + 1, n, if n % 5 == 0 { n * 1_000 } else { 0 })
        })
        .collect()
}

#[test]
fn records_come_back_whatever_the_pieces() {
    let mut records = sample(3_000);
    records.push((
        vec![1; limits::KEY_BYTES_MAX],
        vec![2; limits::BATCH_BYTES_MAX],
        10_000,
        1,
        u64::MAX,
    ));
    records.push((vec![9], Vec::new(), 1, 0, 1));
    let (bytes, summary) = write(&records);
    for chunk in [7, 88, 1_000, 65_536, bytes.len()] {
        let (read, read_summary) = read(&bytes, chunk).unwrap();
        assert!(read == records, "in pieces of {chunk}");
        assert_eq!(read_summary, summary);
    }
}

#[test]
fn an_empty_snapshot_is_a_snapshot() {
    let (bytes, summary) = write(&[]);
    assert_eq!((summary.records, summary.payload_bytes), (0, 0));
    assert_eq!(read(&bytes, 1).unwrap(), (Vec::new(), summary));
}

#[test]
fn the_header_is_known_after_its_bytes() {
    let (bytes, _) = write(&sample(5));
    let mut reader = SnapshotReader::new();
    reader.push(&bytes[..SNAPSHOT_HEADER_BYTES]);
    assert!(reader.next_block().unwrap().is_none());
    assert_eq!(reader.header(), Some(&header()));
}

#[test]
fn every_truncation_is_noticed_and_says_where() {
    let (bytes, _) = write(&sample(40));
    for length in 0..bytes.len() {
        match read(&bytes[..length], 100) {
            Err(SnapshotError::Damaged { offset, .. }) => assert_eq!(offset, length as u64),
            other => panic!("cut to {length} bytes: {other:?}"),
        }
    }
}

#[test]
fn every_flipped_byte_is_noticed() {
    let records = sample(40);
    let (bytes, _) = write(&records);
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            match (at, read(&damaged, 1_000)) {
                (0..8, Err(SnapshotError::Foreign { .. })) => {}
                (8.., Err(SnapshotError::Damaged { offset, .. })) => {
                    // A longer length is noticed where the file ends too early.
                    assert!(offset <= bytes.len() as u64);
                }
                (_, other) => panic!("byte {at} flipped by {flip:#x}: {other:?}"),
            }
        }
    }
}

#[test]
fn anything_after_the_footer_is_damage() {
    let (mut bytes, _) = write(&sample(3));
    let whole = bytes.len() as u64;
    bytes.push(0);
    for chunk in [1, 1_000] {
        let error = read(&bytes, chunk).unwrap_err();
        assert!(matches!(error, SnapshotError::Damaged { offset, .. } if offset == whole));
    }
}

#[test]
fn blocks_out_of_place_or_of_another_snapshot_do_not_pass() {
    let many: Vec<Owned> =
        (0..4_000).map(|n: u64| (n.to_be_bytes().to_vec(), vec![1; 60], 1, 1, 0)).collect();
    let (bytes, _) = write(&many);
    let length = u32::from_le_bytes(bytes[88..92].try_into().unwrap()) as usize + 12;
    let mut swapped = bytes[..88].to_vec();
    swapped.extend_from_slice(&bytes[88 + length..88 + 2 * length]);
    swapped.extend_from_slice(&bytes[88..88 + length]);
    swapped.extend_from_slice(&bytes[88 + 2 * length..]);
    assert!(matches!(read(&swapped, 1 << 20), Err(SnapshotError::Damaged { offset: 88, .. })));

    let mut out = Vec::new();
    let other = SnapshotHeader { epoch: Epoch(4), ..header() };
    SnapshotWriter::new(&other, &mut out);
    out.extend_from_slice(&bytes[88..]);
    assert!(matches!(read(&out, 1 << 20), Err(SnapshotError::Damaged { offset: 88, .. })));
}

#[test]
fn another_version_is_told_from_damage() {
    let (mut bytes, _) = write(&sample(3));
    bytes[8] = 1;
    let crc = crc32c::crc32c(&bytes[..84]);
    bytes[84..88].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(read(&bytes, 1_000).unwrap_err(), SnapshotError::Version { found: 1 });
}

#[test]
fn foreign_files_are_called_foreign() {
    for text in ["{\"json\": true}, not a snapshot", "STSDLOG1 ------------------------", "x"] {
        let error = read(text.as_bytes(), 1_000).unwrap_err();
        assert!(matches!(error, SnapshotError::Foreign { .. }), "{text}: {error}");
    }
    // Nothing at all is rather a snapshot that was never written.
    assert!(matches!(read(&[], 1), Err(SnapshotError::Damaged { offset: 0, .. })));
}
