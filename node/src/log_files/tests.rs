//! Real files: written, killed, read back, recycled, moved between cores, and interfered with.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use stateside_pipeline::log::{
    GroupNumber, LogWriter, PartitionBase, Placement, RecordHead, Refused, Retention, WriterLimits,
    record_bytes,
};
use stateside_types::{
    Ack, Change, CoreId, Epoch, PartitionId, RequestMark, Sequence, Timestamp, WriteEntry,
    limits::LOG_SPARE_SEGMENTS,
};

use super::*;

const WRITER: WriterLimits = WriterLimits {
    record_bytes_max: 10_000,
    group_blocks_max: 8,
    buffer_bytes_max: 100_000,
    partitions_max: 32,
    lazy_bytes: 20_000,
    lazy_delay: Duration::from_millis(4),
};
const SEGMENT_BYTES: u64 = 32 * 4096;
const PATIENCE: Duration = Duration::from_secs(20);

fn config(root: &Path) -> LogConfig {
    LogConfig {
        segment_bytes: SEGMENT_BYTES,
        zero_fill_bytes_per_second: 1 << 30,
        ..LogConfig::new(root.join("log"))
    }
}

type Contents = BTreeMap<u32, u64>;

/// A node of a few cores whose partitions are their own snapshots: partition `p` lives on core
/// `p % cores`, and stands at `last[p]`.
struct Node {
    keeper: SegmentKeeper,
    cores: Vec<(LogWriter, LogFiles)>,
    orphans: Vec<OrphanedLog>,
    last: Contents,
    recoveries: Vec<CoreRecovery>,
}

fn value(partition: u32, sequence: u64) -> Vec<u8> {
    let length = 20 + (sequence * 37 + u64::from(partition)) % 700;
    (0..length).map(|at| (at + sequence * 3) as u8).collect()
}

impl Node {
    /// Starts, and reads everything above `covered`.
    fn start(
        config: &LogConfig,
        cores: u16,
        placement: u64,
        covered: &Contents,
    ) -> Result<Self, LogError> {
        let catalog = LogCatalog::scan(config)?;
        let who =
            |core| RecoveringCore { core: CoreId(core), cores, placement: Placement(placement) };
        let mut last = covered.clone();
        let mut recoveries = Vec::new();
        for core in 0..cores {
            let own = covered
                .iter()
                .filter(|(partition, _)| **partition % u32::from(cores) == u32::from(core));
            let bases = own.map(|(&partition, &covered)| PartitionBase {
                partition: PartitionId(partition),
                epoch: Epoch(1),
                covered: Sequence(covered),
            });
            let deliver =
                |head: &RecordHead, _: Option<&RequestMark<'_>>, entries: &[WriteEntry<'_>]| {
                    let (partition, sequence) = (head.partition.0, head.sequence.0);
                    assert_eq!(entries[0].change, Change::Put(&value(partition, sequence)));
                    let last = last.get_mut(&partition).unwrap();
                    assert_eq!(sequence, *last + 1);
                    *last = sequence;
                };
            let mut seen = Progress::default();
            let recovery = recover(&catalog, who(core), bases, deliver, |now| {
                assert!(now.bytes_done >= seen.bytes_done || now.bytes_done <= now.bytes_total);
                seen = now;
            })?;
            assert_eq!(seen.bytes_done, seen.bytes_total);
            recoveries.push(recovery);
        }
        let damaged: Vec<_> =
            recoveries.iter().flat_map(|recovery| recovery.damaged.clone()).collect();
        let hold = |core, retention: &mut Retention| {
            for damage in damaged.iter().filter(|damage| damage.core == core) {
                retention.hold(damage.generation, damage.partition, damage.epoch);
            }
        };
        let keeper = SegmentKeeper::start(config.clone()).unwrap();
        let mut orphans = Vec::new();
        for core in catalog.orphans(cores) {
            let mut retention = recoveries[0].retentions.remove(&core).unwrap_or_default();
            hold(core, &mut retention);
            orphans.push(keeper.adopt_orphan(&catalog, core, retention));
        }
        let mut opened = Vec::new();
        for core in 0..cores {
            let recovery = &mut recoveries[usize::from(core)];
            let mut retention = recovery.retentions.remove(&CoreId(core)).unwrap_or_default();
            hold(CoreId(core), &mut retention);
            let (mut writer, files) =
                keeper.open(&catalog, who(core), WRITER, recovery.first_group, retention)?;
            for (&partition, &sequence) in &last {
                if partition % u32::from(cores) == u32::from(core) {
                    writer.adopt(PartitionId(partition), Epoch(1), Sequence(sequence));
                }
            }
            opened.push((writer, files));
        }
        Ok(Self { keeper, cores: opened, orphans, last, recoveries })
    }

    fn try_append(&mut self, partition: u32) -> Result<(), Refused> {
        let core = partition as usize % self.cores.len();
        let (writer, _) = &mut self.cores[core];
        let sequence = self.last[&partition] + 1;
        let head = RecordHead {
            partition: PartitionId(partition),
            epoch: Epoch(1),
            sequence: Sequence(sequence),
            timestamp: Timestamp(sequence),
        };
        let value = value(partition, sequence);
        let entries = [WriteEntry::put(b"key", &value)];
        writer.append(head, &entries, Ack::Durable, Instant::now())?;
        self.last.insert(partition, sequence);
        Ok(())
    }

    /// Appends, waiting for segments, and writes everything.
    fn append(&mut self, partition: u32) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(refused) = self.try_append(partition) {
            assert_eq!(refused, Refused::Overloaded);
            assert!(Instant::now() < deadline, "the keeper made no segment");
            self.write_all();
            std::thread::yield_now();
        }
    }

    fn write_all(&mut self) {
        for (writer, files) in &mut self.cores {
            files.poll(writer);
            while let Some(write) = writer.next_write(Instant::now()) {
                let outcome = files.file(write.segment()).write_at(write.bytes(), write.offset());
                writer.written(write, outcome).unwrap();
            }
        }
    }

    fn fill(&mut self, rounds: u64) {
        for _ in 0..rounds {
            for partition in self.last.keys().copied().collect::<Vec<_>>() {
                self.append(partition);
            }
        }
        self.write_all();
    }

    fn release(&mut self, covered: &Contents) {
        let up_to = |partition: PartitionId, _| covered.get(&partition.0).map(|s| Sequence(*s));
        for (writer, files) in &mut self.cores {
            files.release(writer, up_to);
        }
        self.orphans.retain_mut(|orphan| !orphan.release(up_to));
    }

    fn assert_undamaged(&self) {
        for recovery in &self.recoveries {
            assert_eq!((&recovery.damaged[..], &recovery.damages[..]), (&[][..], &[][..]));
        }
    }

    /// Ends as a process does that is asked to.
    fn stop(self) -> Contents {
        for (writer, files) in self.cores {
            assert!(writer.is_idle());
            files.close(&writer);
        }
        drop(self.keeper);
        self.last
    }
}

fn none(partitions: u32) -> Contents {
    (0..partitions).map(|partition| (partition, 0)).collect()
}

fn names(config: &LogConfig, core: u16) -> Vec<String> {
    let directory = directory::of_core(&config.root, CoreId(core));
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn what_was_written_is_read_back_with_direct_writes_and_without() {
    for direct_io in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let config = LogConfig { direct_io, ..config(root.path()) };
        let mut node = Node::start(&config, 1, 1, &none(3)).unwrap();
        let (writer, files) = &mut node.cores[0];
        assert!(files.wait_ready(writer, Instant::now() + PATIENCE));
        node.fill(150);
        wait_until("several segments", || names(&config, 0).len() > 2);
        let last = node.stop();
        for _ in 0..2 {
            let node = Node::start(&config, 1, 1, &none(3)).unwrap();
            node.assert_undamaged();
            assert_eq!(node.last, last);
            node.stop();
        }
        // A snapshot spares the rest.
        let covered: Contents = last.iter().map(|(&id, &sequence)| (id, sequence - 1)).collect();
        let node = Node::start(&config, 1, 1, &covered).unwrap();
        assert_eq!(node.last, last);
        assert_eq!(node.recoveries[0].stats.delivered, 3);
    }
}

#[test]
fn a_node_that_is_killed_again_and_again_neither_loses_writes_nor_piles_up_files() {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path());
    let (mut last, mut covered) = (none(4), none(4));
    for round in 0..25 {
        let mut node = Node::start(&config, 1, 1, &covered).unwrap();
        node.assert_undamaged();
        assert_eq!(node.last, last, "round {round}");
        node.fill(round % 4 * 3);
        if round % 3 == 2 {
            covered.clone_from(&node.last);
            node.release(&covered);
        }
        // Dropped, not stopped: spare segments are left as a killed process leaves them.
        last = node.last.clone();
        assert!(names(&config, 0).len() < 20, "{:?}", names(&config, 0));
    }
}

#[test]
fn segments_are_recycled_and_old_records_never_come_back() {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path());
    let mut node = Node::start(&config, 1, 1, &none(2)).unwrap();
    let mut generations = 0;
    for _ in 0..40 {
        node.fill(100);
        let covered = node.last.clone();
        node.release(&covered);
        node.write_all();
        generations = generations.max(node.cores[0].0.retention().generations().last().unwrap().0);
    }
    assert!(generations > 15, "only {generations} segments were used");
    let covered: Contents = node.last.iter().map(|(&id, &sequence)| (id, sequence - 3)).collect();
    let last = node.stop();
    let segments = names(&config, 0).len();
    assert!(segments <= 2 * LOG_SPARE_SEGMENTS, "{segments} files");
    let node = Node::start(&config, 1, 1, &covered).unwrap();
    node.assert_undamaged();
    assert_eq!(node.last, last);
}

#[test]
fn what_was_freed_at_once_is_written_again_and_given_back_when_it_is_not() {
    let root = tempfile::tempdir().unwrap();
    let keeping = LogConfig { free_segments_max: 8, ..config(root.path()) };
    let free = || names(&keeping, 0).iter().filter(|name| name.ends_with(".free")).count();
    let mut node = Node::start(&keeping, 1, 1, &none(2)).unwrap();
    while node.cores[0].0.retention().segments() < 20 {
        node.fill(100);
    }
    let covered = node.last.clone();
    node.release(&covered);
    wait_until("eight of many freed segments are kept", || free() == 8);
    let before = node.cores[0].0.retention().generations().last().unwrap();
    while node.cores[0].0.retention().generations().last().unwrap().0 < before.0 + 6 {
        node.fill(10);
    }
    // The core has six segments more; the one that it ordered then may still be on its way.
    wait_until("new segments are made of free ones", || free() <= 2);
    let covered = node.last.clone();
    node.release(&covered);
    node.stop();

    let trimming = LogConfig { trim_interval: Duration::from_millis(1), ..keeping.clone() };
    let kept = free();
    assert!(kept > LOG_SPARE_SEGMENTS, "{kept} are kept through a restart");
    let node = Node::start(&trimming, 1, 1, &covered).unwrap();
    wait_until("all but the spare ones go", || free() <= LOG_SPARE_SEGMENTS);
    node.stop();
    assert!(free() >= LOG_SPARE_SEGMENTS - 1, "{} spare segments", free());
}

#[test]
fn fewer_cores_read_every_log_and_the_orphans_go_when_covered() {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path());
    let mut node = Node::start(&config, 3, 1, &none(6)).unwrap();
    node.fill(40);
    let last = node.stop();

    let mut node = Node::start(&config, 1, 2, &none(6)).unwrap();
    node.assert_undamaged();
    assert_eq!(node.last, last);
    node.fill(10);
    let last = node.last.clone();
    drop(node);

    // Read again, as nothing was covered: now over two placements.
    let mut node = Node::start(&config, 2, 3, &none(6)).unwrap();
    node.assert_undamaged();
    assert_eq!(node.last, last);
    assert_eq!(node.orphans.len(), 1);
    node.fill(5);
    node.release(&none(6));
    assert_eq!(node.orphans.len(), 1, "nothing is covered yet");
    let covered = node.last.clone();
    node.release(&covered);
    assert_eq!(node.orphans.len(), 0);
    let orphan = directory::of_core(&config.root, CoreId(2));
    wait_until("the orphaned directory goes", || !orphan.exists());
    let last = node.stop();
    assert_eq!(Node::start(&config, 2, 3, &covered).unwrap().last, last);
}

#[test]
fn a_wrong_version_a_misplaced_file_and_an_older_manifest_are_named() {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path());
    let mut node = Node::start(&config, 1, 5, &none(1)).unwrap();
    node.fill(3);
    node.stop();
    let directory = directory::of_core(&config.root, CoreId(0));
    let segment = names(&config, 0).into_iter().find(|name| name.ends_with(".segment")).unwrap();
    let path = directory.join(&segment);
    let error = || Node::start(&config, 1, 4, &none(1)).err().unwrap().to_string();

    let text = error();
    assert!(text.contains("core-000") && text.contains('5') && text.contains('4'), "{text}");

    let good = fs::read(&path).unwrap();
    let mut wrong = good.clone();
    for copy in [0, 2048] {
        wrong[copy + 8] = 7;
    }
    fs::write(&path, &wrong).unwrap();
    let text = error();
    let ours = format!("version {FORMAT_VERSION}");
    assert!(
        text.contains(&segment) && text.contains("version 7") && text.contains(&ours),
        "{text}"
    );

    fs::write(&path, &good).unwrap();
    fs::rename(&path, directory.join("0000000099.segment")).unwrap();
    let text = error();
    assert!(text.contains("0000000099.segment") && text.contains("mixed up"), "{text}");
}

#[test]
fn leftovers_go_and_strangers_stay() {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path());
    let mut node = Node::start(&config, 1, 1, &none(1)).unwrap();
    node.fill(3);
    node.stop();
    let directory = directory::of_core(&config.root, CoreId(0));
    fs::write(directory.join("0000000077.new"), b"half a segment").unwrap();
    fs::write(directory.join("0000000078.free"), b"of another size").unwrap();
    fs::write(directory.join("notes.txt"), b"mine").unwrap();
    fs::create_dir(config.root.join("core-0x")).unwrap();
    let node = Node::start(&config, 1, 1, &none(1)).unwrap();
    assert_eq!(node.last[&0], 3);
    let names = names(&config, 0);
    // The keeper may be making number 79 just now.
    let left_over =
        |name: &String| name.starts_with("0000000077") || name.starts_with("0000000078");
    assert!(!names.iter().any(left_over), "{names:?}");
    assert!(names.contains(&"notes.txt".to_owned()));
    assert!(config.root.join("core-0x").exists());
    let (_, files) = &node.cores[0];
    let text = format!("{files:?}");
    assert!(text.contains("Generation(79)"), "no generation is used twice: {text}");
}

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_space() {
    let root = tempfile::tempdir().unwrap();
    let config = LogConfig { log_bytes_max: Some(3 * SEGMENT_BYTES), ..config(root.path()) };
    let mut node = Node::start(&config, 1, 1, &none(1)).unwrap();
    let (writer, files) = &mut node.cores[0];
    assert!(files.wait_ready(writer, Instant::now() + PATIENCE));
    let deadline = Instant::now() + PATIENCE;
    loop {
        node.write_all();
        match node.try_append(0) {
            Ok(()) | Err(Refused::Overloaded) => {}
            Err(refused) => {
                assert_eq!(refused, Refused::DiskFull);
                break;
            }
        }
        assert!(Instant::now() < deadline);
    }
    // What was admitted before is durable all the same.
    node.write_all();
    assert!(node.cores[0].0.is_idle());
    let entries = [WriteEntry::remove(b"k")];
    assert_eq!(node.cores[0].0.reserve(record_bytes(&entries, None)), Err(Refused::DiskFull));

    let covered = node.last.clone();
    node.release(&covered);
    wait_until("service resumes", || {
        node.write_all();
        node.try_append(0).is_ok()
    });
    node.write_all();
    let last = node.stop();
    assert_eq!(Node::start(&config, 1, 1, &covered).unwrap().last, last);
}

#[test]
fn damage_names_file_offset_and_loss_and_is_still_there_after_the_next_restart() {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path());
    let mut node = Node::start(&config, 1, 1, &none(2)).unwrap();
    node.fill(60);
    node.stop();
    let path = config.segment_path(CoreId(0), stateside_pipeline::log::Generation(1));
    let mut bytes = fs::read(&path).unwrap();
    // In the middle of the second block's records.
    bytes[2 * 4096 + 300] ^= 4;
    fs::write(&path, &bytes).unwrap();
    for _ in 0..2 {
        let node = Node::start(&config, 1, 1, &none(2)).unwrap();
        let recovery = &node.recoveries[0];
        assert_eq!(recovery.damages.len(), 1, "{:?}", recovery.damages);
        assert_eq!(recovery.damages[0].file, path);
        assert_eq!(recovery.damaged.len(), 1, "{:?}", recovery.damaged);
        let damaged = &recovery.damaged[0];
        let lost = &recovery.damages[0].damage;
        assert!((lost.offset..lost.offset + lost.bytes).contains(&(2 * 4096 + 300)), "{lost:?}");
        assert_eq!(damaged.offset, lost.offset);
        assert_eq!(
            damaged.lost.to_string(),
            format!("sequence {}", node.last[&damaged.partition.0] + 1)
        );
        // Everything is covered, says the node; the damaged partition's segment stays.
        let mut node = node;
        let covered: Contents = node.last.keys().map(|&id| (id, 1_000)).collect();
        node.release(&covered);
        assert!(path.exists());
    }
}

/// A partition's loss lay in the log of a core that did not own it any more; that core let go of the
/// segment, and at the next start the partition looked whole.
#[test]
fn damage_in_another_cores_log_is_not_forgotten_either() {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path());
    let mut node = Node::start(&config, 2, 1, &none(4)).unwrap();
    node.fill(60);
    node.stop();
    // Partition 3 was on core 1, and will be on core 0.
    let path = config.segment_path(CoreId(1), stateside_pipeline::log::Generation(1));
    let good = fs::read(&path).unwrap();
    let mut at = 4096 + 200;
    let node = loop {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let node = Node::start(&config, 3, 2, &none(4)).unwrap();
        if node.recoveries[0].damaged.iter().any(|damage| damage.partition.0 == 3) {
            break node;
        }
        at += 150;
    };
    drop(node);
    for _ in 0..3 {
        let mut node = Node::start(&config, 3, 2, &none(4)).unwrap();
        let damaged = &node.recoveries[0].damaged;
        assert_eq!((damaged.len(), damaged[0].partition.0), (1, 3));
        assert_eq!(damaged[0].core, CoreId(1));
        let covered: Contents = node.last.keys().map(|&id| (id, 1_000)).collect();
        node.release(&covered);
        node.stop();
        assert!(path.exists());
    }
    // Restored, it has a new epoch, and nobody needs the old one.
    let mut node = Node::start(&config, 3, 2, &none(4)).unwrap();
    node.release(&(0..3).map(|id| (id, 1_000)).collect());
    node.stop();
    assert!(!path.exists());
}

#[test]
fn a_recovery_under_the_default_limits_says_how_fast_it_was() {
    let root = tempfile::tempdir().unwrap();
    let config = LogConfig { segment_bytes: 16 << 20, ..config(root.path()) };
    let catalog = LogCatalog::scan(&config).unwrap();
    let who = RecoveringCore { core: CoreId(0), cores: 1, placement: Placement(1) };
    let keeper = SegmentKeeper::start(config.clone()).unwrap();
    let limits = WriterLimits { partitions_max: 100, ..WriterLimits::default() };
    let retention = Retention::new();
    let (mut writer, mut files) =
        keeper.open(&catalog, who, limits, GroupNumber(1), retention).unwrap();
    assert!(files.wait_ready(&mut writer, Instant::now() + PATIENCE));
    let value = [b'v'; 100];
    let entries = [WriteEntry::put(&[b'k'; 16], &value)];
    const RECORDS: u64 = 50_000;
    for i in 0..RECORDS {
        let head = RecordHead {
            partition: PartitionId((i % 8) as u32),
            epoch: Epoch(1),
            sequence: Sequence(i / 8 + 1),
            timestamp: Timestamp(i),
        };
        writer.append(head, &entries, Ack::Memory, Instant::now()).unwrap();
        while let Some(write) = writer.next_write(Instant::now()) {
            let outcome = files.file(write.segment()).write_at(write.bytes(), write.offset());
            writer.written(write, outcome).unwrap();
        }
    }
    writer.hurry();
    if let Some(write) = writer.next_write(Instant::now()) {
        let outcome = files.file(write.segment()).write_at(write.bytes(), write.offset());
        writer.written(write, outcome).unwrap();
    }
    drop(keeper);
    let catalog = LogCatalog::scan(&config).unwrap();
    let bases = (0..8).map(|id| PartitionBase {
        partition: PartitionId(id),
        epoch: Epoch(1),
        covered: Sequence::ZERO,
    });
    let mut bytes = 0;
    let start = Instant::now();
    let recovery = recover(
        &catalog,
        who,
        bases,
        |_, _, entries| bytes += entries.iter().map(|entry| entry.key.len()).sum::<usize>(),
        |_| {},
    );
    let (recovery, taken) = (recovery.unwrap(), start.elapsed());
    assert_eq!(recovery.stats.delivered, RECORDS);
    assert_eq!(bytes as u64, 16 * RECORDS);
    let rate = RECORDS as f64 / taken.as_secs_f64();
    println!("replayed {rate:.0} records a second");
}
