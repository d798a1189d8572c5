//! What a record costs on its way into the log and out of it: 16 B keys, 100 B values, 8 partitions.

use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use stateside_pipeline::log::{
    Generation, GroupNumber, LogWriter, PartitionBase, Placement, ReadBuffers, RecordHead, Replay,
    Retention, RunRange, SegmentInput, SegmentSource, WriterLimits, read_run,
};
use stateside_types::{
    Ack, CoreId, Epoch, PartitionId, RequestMark, Sequence, Timestamp, WriteEntry,
};

const SEGMENT_BYTES: u64 = 64 << 20;
const PARTITIONS: u32 = 8;

struct Bytes<'a>(&'a [u8]);

impl SegmentSource for Bytes<'_> {
    fn read(&mut self, offset: u64, into: &mut [u8]) -> usize {
        let from = self.0.get(offset as usize..).unwrap_or_default();
        let count = from.len().min(into.len());
        into[..count].copy_from_slice(&from[..count]);
        count
    }
}

fn writer() -> LogWriter {
    let mut writer = LogWriter::new(WriterLimits::default(), GroupNumber(1), Retention::new());
    for generation in 1..=4 {
        writer.add_segment(Generation(generation), SEGMENT_BYTES);
    }
    writer
}

/// Appends `count` single writes; `each` sees every write to be done.
fn fill(
    writer: &mut LogWriter,
    from: u32,
    count: u32,
    now: Instant,
    mut each: impl FnMut(u64, &[u8]),
) {
    let value = [b'v'; 100];
    for i in from..from + count {
        let mut key = *b"key-000000000000";
        key[4..8].copy_from_slice(&i.to_le_bytes());
        let entries = [WriteEntry::put(&key, &value)];
        let head = RecordHead {
            partition: PartitionId(i % PARTITIONS),
            epoch: Epoch(1),
            sequence: Sequence(u64::from(i / PARTITIONS) + 1),
            timestamp: Timestamp(u64::from(i) << 16),
        };
        writer.append(head, &entries, Ack::Memory, now).expect("four segments are plenty");
        while let Some(write) = writer.next_write(now) {
            each(write.offset(), write.bytes());
            let bytes = write.bytes().len();
            writer.written(write, Ok::<_, String>(bytes)).expect("memory does not fail");
        }
    }
}

fn append(criterion: &mut Criterion) {
    let now = Instant::now();
    let mut group = criterion.benchmark_group("log");
    group.measurement_time(Duration::from_secs(3)).sample_size(20);
    const COUNT: u32 = 100_000;
    group.throughput(Throughput::Elements(u64::from(COUNT)));
    group.bench_function("append_100k_records", |bencher| {
        let warm = || {
            let mut writer = writer();
            // The first groups allocate; a core's writer has done that long ago.
            fill(&mut writer, 0, 16_000, now, |_, _| {});
            writer
        };
        let run = |mut writer: LogWriter| {
            fill(&mut writer, 16_000, COUNT, now, |_, bytes| {
                std::hint::black_box(bytes);
            });
            writer
        };
        bencher.iter_batched(warm, run, BatchSize::LargeInput);
    });

    const RECORDS: u32 = 380_000;
    let mut segment = vec![0_u8; SEGMENT_BYTES as usize];
    let mut log = writer();
    fill(&mut log, 0, RECORDS, now, |offset, bytes| {
        segment[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    });
    let written = log.stats().records;
    let mut buffers = ReadBuffers::default();
    group.throughput(Throughput::Elements(written));
    group.bench_function("replay_a_segment", |bencher| {
        bencher.iter(|| {
            let bases = (0..PARTITIONS).map(|id| PartitionBase {
                partition: PartitionId(id),
                epoch: Epoch(1),
                covered: Sequence::ZERO,
            });
            let mut bytes = 0;
            let mut replay = Replay::new(
                bases,
                |_: &RecordHead, _: Option<&RequestMark<'_>>, entries: &[WriteEntry<'_>]| {
                    bytes += entries.iter().map(|entry| entry.key.len()).sum::<usize>();
                },
            );
            replay.begin_run(CoreId(0), Placement(1));
            let mut segments = [SegmentInput {
                generation: Generation(1),
                blocks: (SEGMENT_BYTES / 4096) as u32,
                is_header_damaged: false,
                source: Bytes(&segment),
            }];
            let range =
                RunRange { first_group: GroupNumber(1), has_first_segment: true, cut: None };
            read_run(&mut segments, range, &mut buffers, &mut replay);
            let outcome = replay.finish();
            assert_eq!(outcome.stats.delivered, written);
            bytes
        });
    });
    group.finish();
}

criterion_group!(benches, append);
criterion_main!(benches);
