//! A simulated disk with the log of one core on it, for tests: recycles files, tears writes at any
//! sector, lets them land late, and knows what a recovery has to bring back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use stateside_types::{
    Ack, Change, CoreId, Epoch, PartitionId, RequestMark, Sequence, Timestamp, WriteEntry,
};

use super::{
    BLOCK_BYTES, FoundSegment, Generation, GroupNumber, LogWriter, PartitionBase, PendingWrite,
    Placement, ReadBuffers, RecordHead, Refused, Replay, ReplayOutcome, Retention, RunEnd,
    SegmentHeader, SegmentInput, SegmentSource, WriterLimits, block::SECTOR_BYTES, plan_runs,
    read_run,
};

/// Small enough that a segment holds a few groups and a group a few blocks.
pub(super) const LIMITS: WriterLimits = WriterLimits {
    record_bytes_max: 10_000,
    group_blocks_max: 6,
    buffer_bytes_max: 60_000,
    partitions_max: 8,
    lazy_bytes: 5_000,
    lazy_delay: Duration::from_millis(4),
};
pub(super) const PARTITIONS: u32 = 5;

/// splitmix64: the test's one source of randomness.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What a write consists of, derived from one number, so that a model can keep the number.
pub(super) struct Content(Vec<(Vec<u8>, Option<Vec<u8>>)>);

impl Content {
    pub(super) fn of(nonce: u64) -> Self {
        let mut random = Random(nonce);
        let entries = (0..=random.below(3)).map(|_| {
            let key = random.next().to_le_bytes()[..1 + random.below(8) as usize].to_vec();
            let bytes = if random.chance(10) { random.below(3_000) } else { random.below(120) };
            let value = (0..bytes).map(|at| (nonce ^ at) as u8).collect();
            (key, (!random.chance(15)).then_some(value))
        });
        Self(entries.collect())
    }

    pub(super) fn entries(&self) -> Vec<WriteEntry<'_>> {
        self.0
            .iter()
            .map(|(key, value)| {
                WriteEntry::new(key, value.as_deref().map_or(Change::Remove, Change::Put))
            })
            .collect()
    }
}

/// What one partition was given.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    /// The writes, by sequence - 1.
    pub(super) writes: Vec<u64>,
    /// How many were reported durable.
    pub(super) durable: usize,
    /// How many a snapshot holds.
    pub(super) covered: usize,
}

pub(super) type Files = BTreeMap<u32, Vec<u8>>;

struct FileBytes<'a>(&'a [u8]);

impl SegmentSource for FileBytes<'_> {
    fn read(&mut self, offset: u64, into: &mut [u8]) -> usize {
        let from = self.0.get(offset as usize..).unwrap_or_default();
        let count = from.len().min(into.len());
        into[..count].copy_from_slice(&from[..count]);
        count
    }
}

/// What recoveries use over and over.
#[derive(Default)]
pub(super) struct Buffers {
    read: ReadBuffers,
    contents: BTreeMap<u64, Content>,
}

/// What a recovery brought back.
pub(super) struct Recovered {
    pub(super) delivered: BTreeMap<u32, Vec<u64>>,
    pub(super) outcome: ReplayOutcome,
    pub(super) end: Option<RunEnd>,
}

/// Reads a whole log. The nonce of each record is in its timestamp; the content is compared.
pub(super) fn recover(files: &Files, models: &[Model], buffers: &mut Buffers) -> Recovered {
    let Buffers { read, contents } = buffers;
    let found = files.iter().map(|(&generation, bytes)| FoundSegment {
        generation: Generation(generation),
        header: SegmentHeader::decode(&bytes[..bytes.len().min(BLOCK_BYTES)]).ok(),
    });
    let runs = plan_runs(found.collect()).unwrap();
    let bases = models.iter().enumerate().map(|(id, model)| PartitionBase {
        partition: PartitionId(id as u32),
        epoch: Epoch(1),
        covered: Sequence(model.covered as u64),
    });
    let mut delivered: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    let mut replay = Replay::new(
        bases,
        |head: &RecordHead, _: Option<&RequestMark<'_>>, entries: &[WriteEntry<'_>]| {
            // Making the content is what takes longest when a test recovers a log 50,000 times.
            let content =
                contents.entry(head.timestamp.0).or_insert_with(|| Content::of(head.timestamp.0));
            assert_eq!(entries, content.entries(), "a wrong record was returned: {head:?}");
            let nonces = delivered.entry(head.partition.0).or_default();
            let model = &models[head.partition.0 as usize];
            nonces.push(head.timestamp.0);
            assert_eq!(head.sequence.0 as usize, model.covered + nonces.len(), "out of order");
        },
    );
    let mut end = None;
    for run in runs {
        replay.begin_run(CoreId(0), run.placement);
        let mut segments: Vec<_> = run
            .segments
            .iter()
            .map(|segment| SegmentInput {
                generation: segment.generation,
                blocks: segment.header.map_or(0, |header| header.blocks()),
                is_header_damaged: segment.header.is_none(),
                source: FileBytes(&files[&segment.generation.0]),
            })
            .collect();
        end = Some(read_run(&mut segments, run.range, read, &mut replay));
    }
    let outcome = replay.finish();
    Recovered { delivered, outcome, end }
}

/// A machine with one core: writer, keeper, disk, and the model of what was acknowledged.
pub(super) struct Machine {
    pub(super) random: Random,
    pub(super) files: Files,
    /// Retired files by the last generation they had.
    free: Files,
    segment_bytes: usize,
    pub(super) writer: LogWriter,
    next_generation: Generation,
    run: (Generation, GroupNumber),
    now: Instant,
    under_way: Option<PendingWrite>,
    /// Sectors of a killed process's last write that are still to land.
    late: Vec<(u32, usize, Vec<u8>)>,
    pub(super) models: Vec<Model>,
    /// Partitions that were found damaged: they take no more writes.
    pub(super) damaged: BTreeSet<u32>,
    buffers: Buffers,
    pub(super) torn_tails: u64,
    pub(super) recycled: u64,
}

impl Machine {
    pub(super) fn new(seed: u64, segment_blocks: usize) -> Self {
        let mut machine = Self {
            random: Random(seed),
            files: Files::new(),
            free: Files::new(),
            segment_bytes: segment_blocks * BLOCK_BYTES,
            writer: LogWriter::new(LIMITS, GroupNumber(1), Retention::new()),
            next_generation: Generation(1),
            run: (Generation(1), GroupNumber(1)),
            now: Instant::now(),
            under_way: None,
            late: Vec::new(),
            models: vec![Model::default(); PARTITIONS as usize],
            damaged: BTreeSet::new(),
            buffers: Buffers::default(),
            torn_tails: 0,
            recycled: 0,
        };
        machine.adopt();
        machine.prepare();
        machine
    }

    fn adopt(&mut self) {
        for (id, model) in self.models.iter().enumerate() {
            if self.damaged.contains(&(id as u32)) {
                continue;
            }
            let sequence = Sequence(model.writes.len() as u64);
            self.writer.adopt(PartitionId(id as u32), Epoch(1), sequence);
        }
    }

    /// The keeper: one segment, from a retired file if there is one.
    pub(super) fn prepare(&mut self) {
        let mut file = match self.free.pop_first() {
            Some((_, file)) => {
                self.recycled += 1;
                file
            }
            None => vec![0; self.segment_bytes],
        };
        let generation = self.next_generation;
        self.next_generation = generation.next();
        let header = SegmentHeader {
            generation,
            core: CoreId(0),
            placement: Placement(1),
            run_first_group: self.run.1,
            run_first_generation: self.run.0,
            segment_bytes: self.segment_bytes as u64,
        };
        header.encode(&mut file[..BLOCK_BYTES]);
        self.files.insert(generation.0, file);
        self.writer.add_segment(generation, self.segment_bytes as u64);
    }

    pub(super) fn append(&mut self) -> Result<(), Refused> {
        let partition = self.random.below(u64::from(PARTITIONS)) as u32;
        let (nonce, ack) = (self.random.next(), self.random.chance(50));
        if self.damaged.contains(&partition) {
            return Ok(());
        }
        let content = Content::of(nonce);
        let model = &mut self.models[partition as usize];
        let head = RecordHead {
            partition: PartitionId(partition),
            epoch: Epoch(1),
            sequence: Sequence(model.writes.len() as u64 + 1),
            timestamp: Timestamp(nonce),
        };
        let ack = if ack { Ack::Durable } else { Ack::Memory };
        self.writer.append(head, &content.entries(), ack, self.now)?;
        model.writes.push(nonce);
        Ok(())
    }

    pub(super) fn start_write(&mut self) {
        if self.under_way.is_none() {
            self.now += Duration::from_millis(self.random.below(6));
            self.under_way = self.writer.next_write(self.now);
        }
    }

    pub(super) fn finish_write(&mut self) {
        if let Some(write) = self.under_way.take() {
            self.finish(write);
        }
    }

    pub(super) fn finish(&mut self, write: PendingWrite) {
        let mut bytes = write.bytes().len();
        if self.random.chance(5) {
            // A short write, of whole sectors as always.
            let sectors = self.random.below((bytes / SECTOR_BYTES) as u64) as usize;
            bytes = (BLOCK_BYTES + sectors * SECTOR_BYTES).min(bytes);
        }
        let at = write.offset() as usize;
        let file = self.files.get_mut(&write.segment().0).unwrap();
        file[at..at + bytes].copy_from_slice(&write.bytes()[..bytes]);
        for durable in self.writer.written(write, Ok::<_, String>(bytes)).unwrap() {
            let model = &mut self.models[durable.partition.0 as usize];
            assert!(durable.sequence.0 as usize > model.durable);
            model.durable = durable.sequence.0 as usize;
        }
    }

    pub(super) fn flush(&mut self) {
        while !self.writer.is_idle() {
            self.writer.hurry();
            self.start_write();
            self.finish_write();
        }
    }

    /// Snapshots some partitions and recycles what is not needed any more.
    pub(super) fn snapshot(&mut self) {
        let percent = self.random.below(120);
        for id in 0..self.models.len() {
            if self.random.chance(percent) && !self.damaged.contains(&(id as u32)) {
                self.models[id].covered = self.models[id].durable;
            }
        }
        self.release();
    }

    pub(super) fn release(&mut self) {
        let (models, files, free) = (&self.models, &mut self.files, &mut self.free);
        let mut of_earlier_runs = Vec::new();
        let first = self.run.0;
        self.writer.release(
            |partition, _| Some(Sequence(models[partition.0 as usize].covered as u64)),
            |generation| {
                let file = files.remove(&generation.0).unwrap();
                if generation >= first {
                    free.insert(generation.0, file);
                } else {
                    // Something of the killed process may still be on its way to this file.
                    of_earlier_runs.push(file);
                }
            },
        );
    }

    /// Kills the process: of the write under way any sectors land, now, later, or never.
    pub(super) fn crash(&mut self) {
        let write = self.under_way.take().or_else(|| self.writer.next_write(self.now));
        let Some(write) = write else { return };
        let (now_percent, late_percent) = (self.random.below(120), self.random.below(40));
        let start = write.offset() as usize;
        for (index, sector) in write.bytes().chunks_exact(SECTOR_BYTES).enumerate() {
            let at = start + index * SECTOR_BYTES;
            if self.random.chance(now_percent) {
                self.files.get_mut(&write.segment().0).unwrap()[at..at + SECTOR_BYTES]
                    .copy_from_slice(sector);
            } else if self.random.chance(late_percent) {
                self.late.push((write.segment().0, at, sector.to_vec()));
            }
        }
    }

    /// One byte of one segment changes.
    pub(super) fn rot(&mut self) {
        let index = self.random.below(self.files.len() as u64) as usize;
        let file = self.files.values_mut().nth(index).unwrap();
        let at = self.random.below(file.len() as u64) as usize;
        file[at] ^= 1 << self.random.below(8);
    }

    fn land_late(&mut self) {
        for (generation, at, sector) in std::mem::take(&mut self.late) {
            if let Some(file) = self.files.get_mut(&generation) {
                file[at..at + SECTOR_BYTES].copy_from_slice(&sector);
            }
        }
    }

    /// Restarts: reads the log, checks it against the model, and opens a new run.
    pub(super) fn restart(&mut self) {
        let recovered = loop {
            let recovered = recover(&self.files, &self.models, &mut self.buffers);
            self.check_without_damage(&recovered);
            // Killed again before the new run's first header was durable: nothing has changed,
            // except that more may have landed.
            if !self.random.chance(30) {
                break recovered;
            }
            if self.random.chance(50) {
                self.land_late();
            }
        };
        self.open(recovered);
        if self.random.chance(70) {
            self.land_late();
        }
    }

    /// Restarts with whatever bytes are on the disk. Nothing lands late.
    pub(super) fn restart_damaged(&mut self) {
        self.late.clear();
        let recovered = recover(&self.files, &self.models, &mut self.buffers);
        let none = Vec::new();
        for (id, model) in self.models.iter().enumerate() {
            let nonces = recovered.delivered.get(&(id as u32)).unwrap_or(&none);
            let got = model.covered + nonces.len();
            let named = recovered.outcome.damaged.iter().any(|one| one.partition.0 == id as u32);
            assert_eq!(nonces[..], model.writes[model.covered..got], "partition {id}");
            assert!(named || got >= model.durable, "partition {id} lost writes without a word");
            assert!(named || !self.damaged.contains(&(id as u32)), "damage of {id} was forgotten");
            if named {
                self.damaged.insert(id as u32);
            }
        }
        self.open(recovered);
    }

    /// Opens a new run on what was recovered.
    fn open(&mut self, recovered: Recovered) {
        self.torn_tails += u64::from(recovered.end.is_some_and(|end| end.torn.is_some()));
        let none = Vec::new();
        for (id, model) in self.models.iter_mut().enumerate() {
            let nonces = recovered.delivered.get(&(id as u32)).unwrap_or(&none);
            if self.damaged.contains(&(id as u32)) {
                continue;
            }
            model.writes.truncate(model.covered + nonces.len());
            model.durable = model.writes.len();
        }
        let newest = self.files.keys().chain(self.free.keys()).max().copied();
        self.next_generation = Generation(newest.unwrap_or(0) + 1);
        let first_group = recovered.end.map_or(GroupNumber(1), |end| end.next_group);
        self.run = (self.next_generation, first_group);
        let retention = recovered.outcome.retentions.into_values().next().unwrap_or_default();
        let kept: Vec<u32> = retention.generations().map(|generation| generation.0).collect();
        self.files.retain(|generation, _| kept.contains(generation));
        self.writer = LogWriter::new(LIMITS, first_group, retention);
        self.adopt();
        self.prepare();
    }

    fn check_without_damage(&self, recovered: &Recovered) {
        assert_eq!(recovered.outcome.damages, [], "a crash was taken for damage");
        assert_eq!(recovered.outcome.damaged, []);
        let none = Vec::new();
        for (id, model) in self.models.iter().enumerate() {
            let nonces = recovered.delivered.get(&(id as u32)).unwrap_or(&none);
            let got = model.covered + nonces.len();
            assert!(got >= model.durable, "partition {id} lost acknowledged writes");
            assert_eq!(nonces[..], model.writes[model.covered..got], "partition {id}");
        }
    }
}
