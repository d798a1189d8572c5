//! Group commit, admission, watermarks, failure.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use stateside_types::{
    Ack, CoreId, Epoch, ExpireAt, PartitionId, REQUEST_MARK_BYTES_MAX, Reason, Refusal, RequestId,
    RequestMark, Sequence, Timestamp, WriteEntry, limits,
};

use super::{
    BLOCK_BYTES, Durable, Generation, GroupNumber, LogWriter, PartitionBase, PendingWrite,
    Placement, RECORD_BYTES_MAX, ReadBuffers, RecordHead, Refused, Replay, Retention, RunRange,
    SegmentInput, SegmentSource, WriterLimits, read_run, record_bytes, simulated_disk::LIMITS,
};

const SEGMENT_BYTES: u64 = 20 * BLOCK_BYTES as u64;

fn writer(segments: u32) -> LogWriter {
    let mut writer = LogWriter::new(LIMITS, GroupNumber(1), Retention::new());
    for generation in 1..=segments {
        writer.add_segment(Generation(generation), SEGMENT_BYTES);
    }
    writer
}

fn head(partition: u32, sequence: u64) -> RecordHead {
    RecordHead {
        partition: PartitionId(partition),
        epoch: Epoch(1),
        sequence: Sequence(sequence),
        timestamp: Timestamp(sequence),
    }
}

fn put<'a>(key: &'a [u8], value: &'a [u8]) -> WriteEntry<'a> {
    WriteEntry::put(key, value)
}

fn append(writer: &mut LogWriter, partition: u32, sequence: u64, ack: Ack, now: Instant) {
    writer.append(head(partition, sequence), &[put(b"key", b"value")], ack, now).unwrap();
}

fn finish(writer: &mut LogWriter, write: PendingWrite) -> Vec<(u32, u64)> {
    let bytes = write.bytes().len();
    let durable = writer.written(write, Ok::<_, String>(bytes)).unwrap();
    durable.iter().map(|d: &Durable| (d.partition.0, d.sequence.0)).collect()
}

#[test]
fn what_arrives_during_a_write_shares_the_next_one() {
    let (mut writer, now) = (writer(1), Instant::now());
    append(&mut writer, 1, 1, Ack::Durable, now);
    let first = writer.next_write(now).unwrap();
    assert_eq!(first.offset(), BLOCK_BYTES as u64);
    assert_eq!(first.bytes().as_ptr() as usize % BLOCK_BYTES, 0, "aligned for a direct write");
    for sequence in 2..=9 {
        append(&mut writer, 1, sequence, Ack::Durable, now);
        append(&mut writer, 2, sequence - 1, Ack::Durable, now);
    }
    assert!(writer.next_write(now).is_none(), "one write at a time");
    assert_eq!(finish(&mut writer, first), [(1, 1)]);
    let second = writer.next_write(now).unwrap();
    assert_eq!((second.offset(), second.bytes().len()), (2 * BLOCK_BYTES as u64, BLOCK_BYTES));
    assert_eq!(finish(&mut writer, second), [(1, 9), (2, 8)]);
    assert!(writer.is_idle() && writer.next_write(now).is_none());
    assert_eq!((writer.stats().groups, writer.stats().records), (2, 17));
}

#[test]
fn records_that_no_reply_waits_for_wait_for_time_or_company() {
    let (mut writer, now) = (writer(2), Instant::now());
    append(&mut writer, 1, 1, Ack::Memory, now);
    assert!(writer.next_write(now).is_none());
    let deadline = writer.next_deadline().unwrap();
    assert_eq!(deadline, now + LIMITS.lazy_delay);
    append(&mut writer, 1, 2, Ack::Memory, now + Duration::from_millis(1));
    assert_eq!(writer.next_deadline(), Some(deadline), "the oldest counts");
    let write = writer.next_write(deadline).unwrap();
    assert_eq!(finish(&mut writer, write), [(1, 2)]);

    let value = [7; 600];
    let mut sequence = 2;
    let write = loop {
        sequence += 1;
        writer.append(head(1, sequence), &[put(b"k", &value)], Ack::Memory, now).unwrap();
        if let Some(write) = writer.next_write(now) {
            break write;
        }
    };
    assert!(writer.staged_bytes() >= LIMITS.lazy_bytes);
    assert_eq!(finish(&mut writer, write), [(1, sequence)]);

    append(&mut writer, 1, sequence + 1, Ack::Memory, now);
    writer.hurry();
    assert!(writer.next_write(now).is_some(), "a read waits for it now");
}

#[test]
fn a_full_buffer_is_overload_and_a_missing_segment_on_a_full_disk_is_disk_full() {
    let (mut writer, now) = (writer(0), Instant::now());
    assert_eq!(writer.segments_wanted(), 2, "one to write and a spare");
    assert_eq!(writer.reserve(100), Err(Refused::Overloaded));
    writer.set_disk_full(true);
    assert_eq!(writer.reserve(100), Err(Refused::DiskFull));
    writer.add_segment(Generation(1), SEGMENT_BYTES);
    writer.add_segment(Generation(2), SEGMENT_BYTES);
    assert_eq!(writer.reserve(LIMITS.record_bytes_max + 1), Err(Refused::TooLarge));

    let value = [1; 5_000];
    let mut sequence = 0;
    let refused = loop {
        match writer.append(head(1, sequence + 1), &[put(b"k", &value)], Ack::Durable, now) {
            Ok(()) => sequence += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, Refused::Overloaded, "the buffer is the limit here, not the disk");
    let refused = loop {
        while let Some(write) = writer.next_write(now) {
            finish(&mut writer, write);
        }
        match writer.append(head(1, sequence + 1), &[put(b"k", &value)], Ack::Durable, now) {
            Ok(()) => sequence += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, Refused::DiskFull);
    assert!(writer.segments_wanted() >= 1);
    writer.set_disk_full(false);
    writer.add_segment(Generation(3), SEGMENT_BYTES);
    append(&mut writer, 1, sequence + 1, Ack::Durable, now);
}

#[test]
fn a_failed_write_ends_the_log_for_good() {
    let (mut writer, now) = (writer(2), Instant::now());
    append(&mut writer, 1, 1, Ack::Durable, now);
    let write = writer.next_write(now).unwrap();
    append(&mut writer, 1, 2, Ack::Durable, now);
    let reserved = writer.reserve(100).unwrap();
    let failed = writer.written(write, Err("I/O error")).unwrap_err();
    assert_eq!((failed.segment, failed.offset), (Generation(1), BLOCK_BYTES as u64));
    assert!(failed.to_string().contains("I/O error"));
    assert!(writer.next_write(now).is_none(), "nothing is retried");
    assert_eq!(writer.reserve(10), Err(Refused::Failed));
    writer.append_reserved(reserved, head(1, 3), None, &[put(b"k", b"v")], Ack::Durable, now);
    assert!(writer.next_write(now + Duration::from_secs(9)).is_none());
    assert_eq!(writer.failure(), Some(&failed));
}

#[test]
fn a_write_done_in_part_goes_on_where_it_stopped() {
    let (mut writer, now) = (writer(1), Instant::now());
    let value = [3; 9_000];
    writer.append(head(1, 1), &[put(b"k", &value)], Ack::Durable, now).unwrap();
    let write = writer.next_write(now).unwrap();
    assert_eq!(write.bytes().len(), 3 * BLOCK_BYTES);
    let nothing = writer.written(write, Ok::<_, String>(BLOCK_BYTES + 77)).unwrap();
    assert_eq!(nothing, []);
    let rest = writer.next_write(now).unwrap();
    assert_eq!((rest.offset(), rest.bytes().len()), (2 * BLOCK_BYTES as u64, 2 * BLOCK_BYTES));
    assert_eq!(finish(&mut writer, rest), [(1, 1)]);

    writer.append(head(1, 2), &[put(b"k", b"")], Ack::Durable, now).unwrap();
    let write = writer.next_write(now).unwrap();
    assert!(writer.written(write, Ok::<_, String>(100)).is_err(), "less than a block is nothing");
}

#[test]
fn a_segment_with_writes_on_their_way_is_not_released() {
    let (mut writer, now) = (writer(3), Instant::now());
    let covered = |_, _| Some(Sequence(1_000));
    let released = |writer: &mut LogWriter| {
        let mut out = Vec::new();
        writer.release(covered, |generation| out.push(generation.0));
        out
    };
    let value = [0; 9_000];
    let mut sequence = 0;
    // Fill the first segment, and leave its last group and the second's first on their way.
    while sequence < 9 {
        sequence += 1;
        writer.append(head(1, sequence), &[put(b"k", &value)], Ack::Durable, now).unwrap();
        if sequence < 5 {
            let write = writer.next_write(now).unwrap();
            finish(&mut writer, write);
        }
    }
    assert_eq!(
        released(&mut writer),
        [] as [u32; 0],
        "sealed groups are still to be written there"
    );
    let mut seen = Vec::new();
    while let Some(write) = writer.next_write(now) {
        seen.push(write.segment().0);
        finish(&mut writer, write);
    }
    assert!(seen.contains(&1) && seen.last() > Some(&1), "{seen:?}");
    let current = *seen.last().unwrap();
    assert_eq!(released(&mut writer), (1..current).collect::<Vec<_>>());
    let blockers: Vec<_> = writer.blockers(|_, _| Some(Sequence::ZERO)).collect();
    assert_eq!((blockers.len(), blockers[0].sequence), (1, Sequence(sequence)));
}

#[test]
#[should_panic(expected = "has a gap")]
fn a_gap_in_a_partitions_sequences_is_a_bug() {
    let (mut writer, now) = (writer(1), Instant::now());
    writer.adopt(PartitionId(1), Epoch(1), Sequence(5));
    append(&mut writer, 1, 7, Ack::Durable, now);
}

struct Bytes(Vec<u8>);

impl SegmentSource for Bytes {
    fn read(&mut self, offset: u64, into: &mut [u8]) -> usize {
        let from = self.0.get(offset as usize..).unwrap_or_default();
        let count = from.len().min(into.len());
        into[..count].copy_from_slice(&from[..count]);
        count
    }
}

#[test]
fn the_mark_of_a_request_goes_through_the_log_with_entries_and_without() {
    let segment_bytes = limits::LOG_SEGMENT_BYTES_MIN;
    let mut writer = LogWriter::new(WriterLimits::default(), GroupNumber(1), Retention::new());
    writer.add_segment(Generation(1), segment_bytes);
    let id = RequestId { client: b"client", number: 7, settled: 3 };
    let refusal = Refusal::new(Reason::ConditionFailed, "no").with("entry", 0);
    let written = RequestMark::new(id, 9);
    let refused = RequestMark { refusal: Some(refusal.into()), ..written.clone() };
    let long = vec![7; 3 * BLOCK_BYTES];
    let entries = [put(b"k", &long)];
    let now = Instant::now();
    let writes: [(Option<&RequestMark<'_>>, &[WriteEntry<'_>]); 4] = [
        (Some(&written), &entries),
        (None, &entries),
        (Some(&refused), &[]),
        (Some(&written), &entries),
    ];
    for (at, (mark, entries)) in writes.iter().enumerate() {
        let reserved = writer.reserve(record_bytes(entries, *mark)).unwrap();
        writer.append_reserved(reserved, head(1, at as u64 + 1), *mark, entries, Ack::Durable, now);
    }
    let mut file = vec![0; segment_bytes as usize];
    while let Some(write) = writer.next_write(now) {
        file[write.offset() as usize..][..write.bytes().len()].copy_from_slice(write.bytes());
        finish(&mut writer, write);
    }
    let base =
        PartitionBase { partition: PartitionId(1), epoch: Epoch(1), covered: Sequence::ZERO };
    let mut delivered = 0;
    let deliver = |_: &RecordHead, mark: Option<&RequestMark<'_>>, read: &[WriteEntry<'_>]| {
        assert_eq!((mark, read), writes[delivered]);
        delivered += 1;
    };
    let mut replay = Replay::new([base], deliver);
    replay.begin_run(CoreId(0), Placement(1));
    let mut segments = [SegmentInput {
        generation: Generation(1),
        blocks: (segment_bytes / BLOCK_BYTES as u64) as u32,
        is_header_damaged: false,
        source: Bytes(file),
    }];
    let range = RunRange { first_group: GroupNumber(1), has_first_segment: true, cut: None };
    read_run(&mut segments, range, &mut ReadBuffers::default(), &mut replay);
    assert_eq!(replay.finish().damaged, []);
    assert_eq!(delivered, writes.len());
}

#[test]
fn the_largest_batch_that_a_request_may_hold_goes_through_the_log() {
    let segment_bytes = limits::LOG_SEGMENT_BYTES_MIN;
    let mut writer = LogWriter::new(WriterLimits::default(), GroupNumber(1), Retention::new());
    writer.add_segment(Generation(1), segment_bytes);
    let value = vec![0xa5; limits::BATCH_BYTES_MAX - limits::BATCH_ENTRIES_MAX * 2];
    let keys: Vec<[u8; 2]> =
        (0..limits::BATCH_ENTRIES_MAX).map(|i| (i as u16).to_le_bytes()).collect();
    let entries: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(i, key)| put(key, if i == 0 { &value } else { b"" }))
        .map(|entry| entry.expiring(ExpireAt::from_millis(u64::MAX).into()))
        .collect();
    assert_eq!(record_bytes(&entries, None) + REQUEST_MARK_BYTES_MAX, RECORD_BYTES_MAX);
    let now = Instant::now();
    writer.append(head(1, 1), &[put(b"k", b"v")], Ack::Memory, now).unwrap();
    writer.append(head(1, 2), &entries, Ack::Durable, now).unwrap();
    let mut file = vec![0; segment_bytes as usize];
    while let Some(write) = writer.next_write(now) {
        file[write.offset() as usize..][..write.bytes().len()].copy_from_slice(write.bytes());
        finish(&mut writer, write);
    }
    let base =
        PartitionBase { partition: PartitionId(1), epoch: Epoch(1), covered: Sequence::ZERO };
    let mut delivered = Vec::new();
    let mut replay = Replay::new(
        [base],
        |head: &RecordHead, _: Option<&RequestMark<'_>>, read: &[WriteEntry<'_>]| {
            delivered.push(head.sequence.0);
            assert!(head.sequence.0 == 1 || read == entries);
        },
    );
    replay.begin_run(CoreId(0), Placement(1));
    let mut segments = [SegmentInput {
        generation: Generation(1),
        blocks: (segment_bytes / BLOCK_BYTES as u64) as u32,
        is_header_damaged: false,
        source: Bytes(file),
    }];
    let range = RunRange { first_group: GroupNumber(1), has_first_segment: true, cut: None };
    read_run(&mut segments, range, &mut ReadBuffers::default(), &mut replay);
    assert_eq!(replay.finish().damaged, []);
    assert_eq!(delivered, [1, 2]);
}

proptest! {
    /// Reservations of any sizes, appended in any order and with writes in between: an append that
    /// was admitted always finds its room (it would panic otherwise).
    #[test]
    fn what_was_admitted_always_fits(
        steps in proptest::collection::vec((0_usize..9_900, 0_u8..10), 1..200),
        segments in 1_u32..4,
    ) {
        let (mut writer, now) = (writer(segments), Instant::now());
        let value = vec![9; 10_000];
        let mut next_generation = segments;
        let mut sequence = 0;
        let mut waiting = Vec::new();
        for (size, action) in steps {
            let entries = [put(b"k", &value[..size])];
            match action {
                0..=5 => match writer.reserve(record_bytes(&entries, None)) {
                    Ok(reservation) => waiting.push((reservation, size)),
                    Err(refused) => prop_assert_eq!(refused, Refused::Overloaded),
                },
                6 => if let Some(write) = writer.next_write(now + LIMITS.lazy_delay * 2) {
                    finish(&mut writer, write);
                },
                7 => if let Some((reservation, _)) = waiting.pop() {
                    writer.cancel(reservation);
                },
                8 => if writer.segments_wanted() > 0 {
                    next_generation += 1;
                    writer.add_segment(Generation(next_generation), SEGMENT_BYTES);
                },
                _ => {
                    let at = size % waiting.len().max(1);
                    for (reservation, size) in waiting.drain(at..) {
                        sequence += 1;
                        let entries = [put(b"k", &value[..size])];
                        writer.append_reserved(
                            reservation, head(1, sequence), None, &entries, Ack::Memory, now,
                        );
                    }
                }
            }
        }
    }
}
