//! Every byte flipped, every truncation, every lost write: what the reader returns is a prefix for
//! each partition, and whatever is missing is named. Nothing is lost silently.

use super::{
    BLOCK_BYTES, DamageKind, Generation, Lost,
    block::{BlockState, SECTOR_BYTES, judge},
    simulated_disk::{Buffers, Files, Machine, Model, Random, Recovered, recover},
};

/// A log whose newest segment is a recycled one, with several groups, and old records behind them.
struct Sample {
    files: Files,
    models: Vec<Model>,
    newest: u32,
    /// Blocks written in the newest segment: from 1 on.
    fresh_blocks: usize,
}

const SEGMENT_BLOCKS: usize = 14;

fn sample(seed: u64) -> Sample {
    let mut machine = Machine::new(seed, SEGMENT_BLOCKS);
    // Goes on until a recycled segment is in use, and has several groups.
    loop {
        for _ in 0..4 {
            if machine.append().is_err() {
                machine.prepare();
            }
        }
        machine.flush();
        let (&newest, file) = machine.files.iter().next_back().unwrap();
        let fresh_blocks = fresh_blocks(file, newest);
        if machine.recycled >= 1 && (7..SEGMENT_BLOCKS - 3).contains(&fresh_blocks) {
            let stale = &file[(fresh_blocks + 1) * BLOCK_BYTES..];
            assert!(stale.iter().any(|byte| *byte != 0), "old records lie behind the tail");
            return Sample { newest, fresh_blocks, models: machine.models, files: machine.files };
        }
        if machine.files.len() > 2 {
            machine.snapshot();
        }
    }
}

fn fresh_blocks(file: &[u8], generation: u32) -> usize {
    let is_fresh =
        |block: &&[u8]| matches!(judge(block, Generation(generation)), BlockState::Fresh(_));
    file.chunks_exact(BLOCK_BYTES).skip(1).take_while(is_fresh).count()
}

/// What was delivered is a prefix, and everyone who misses something is named with what is missing.
fn check(recovered: &Recovered, models: &[Model], context: &str) {
    let none = Vec::new();
    for (id, model) in models.iter().enumerate() {
        let nonces = recovered.delivered.get(&(id as u32)).unwrap_or(&none);
        let got = model.covered + nonces.len();
        assert_eq!(nonces[..], model.writes[model.covered..got], "{context}: a wrong record");
        let named = recovered.outcome.damaged.iter().find(|damage| damage.partition.0 == id as u32);
        let Some(named) = named else {
            assert!(got >= model.durable, "{context}: {id} lost {got}.. without a word");
            continue;
        };
        match named.lost {
            Lost::Sequences { first, last } => {
                assert_eq!(first.0 as usize, got + 1, "{context}");
                assert!(last >= first && last.0 as usize <= model.writes.len(), "{context}");
            }
            Lost::UnknownAfter(sequence) => assert_eq!(sequence.0 as usize, got, "{context}"),
        }
    }
}

fn is_complete(recovered: &Recovered, models: &[Model]) -> bool {
    models.iter().enumerate().all(|(id, model)| {
        let got = recovered.delivered.get(&(id as u32)).map_or(0, Vec::len);
        model.covered + got == model.writes.len()
    })
}

#[test]
fn every_flipped_byte_is_harmless_or_named() {
    let Sample { mut files, mut models, newest, fresh_blocks } = sample(1);
    let mut buffers = Buffers::default();
    // Everything before the newest segment is in snapshots; reading it 50,000 times shows nothing.
    let file = files.remove(&newest).unwrap();
    let earlier = recover(&files, &models, &mut buffers);
    for (id, nonces) in &earlier.delivered {
        models[*id as usize].covered += nonces.len();
    }
    files = Files::from([(newest, file)]);
    let whole = recover(&files, &models, &mut buffers);
    check(&whole, &models, "untouched");
    assert!(is_complete(&whole, &models) && whole.outcome.damages.is_empty());
    assert!(whole.outcome.stats.delivered > 20 && whole.end.unwrap().groups > 4);
    let mut random = Random(5);
    let (mut named, mut exact) = (0, 0);
    for at in 0..SEGMENT_BLOCKS * BLOCK_BYTES {
        let mask = if random.chance(30) { 0xff } else { 1 << random.below(8) };
        files.get_mut(&newest).unwrap()[at] ^= mask;
        let recovered = recover(&files, &models, &mut buffers);
        let context = format!("byte {at} of segment {newest} flipped with {mask:#04x}");
        check(&recovered, &models, &context);
        let is_in_groups = (BLOCK_BYTES..(fresh_blocks + 1) * BLOCK_BYTES).contains(&at);
        match &recovered.outcome.damages[..] {
            [] => assert!(is_complete(&recovered, &models), "{context}"),
            [(_, damage)] => {
                assert!(is_in_groups, "{context}: nothing of use was damaged");
                assert_eq!(damage.generation.0, newest);
                let lost = damage.offset..damage.offset + damage.bytes;
                assert!(lost.contains(&(at as u64)), "{context}: {damage:?} is elsewhere");
                named += 1;
                exact += usize::from(damage.kind == DamageKind::RecordPayload);
            }
            more => panic!("{context}: one byte, {} damages: {more:?}", more.len()),
        }
        assert!(recovered.end.unwrap().torn.is_none(), "{context}: taken for a torn write");
        files.get_mut(&newest).unwrap()[at] ^= mask;
    }
    assert!(named > fresh_blocks * BLOCK_BYTES / 2, "{named} of the flips were named");
    assert!(exact > named / 2, "most of them with the exact partition and sequence: {exact}");
}

#[test]
fn flips_in_an_older_segment_are_harmless_or_named() {
    let Sample { mut files, models, .. } = sample(2);
    assert!(files.len() >= 2);
    let oldest = *files.keys().next().unwrap();
    let mut buffers = Buffers::default();
    for at in (0..SEGMENT_BLOCKS * BLOCK_BYTES).step_by(7) {
        files.get_mut(&oldest).unwrap()[at] ^= 0x20;
        let recovered = recover(&files, &models, &mut buffers);
        check(&recovered, &models, &format!("byte {at} of segment {oldest}"));
        assert!(recovered.outcome.damages.len() <= 1);
        files.get_mut(&oldest).unwrap()[at] ^= 0x20;
    }
}

#[test]
fn every_truncation_is_named_unless_nothing_was_cut_off() {
    let Sample { files, models, newest, fresh_blocks } = sample(3);
    let mut buffers = Buffers::default();
    for (&generation, file) in &files {
        let mut short = files.clone();
        // From the end, so that one copy does for all.
        for length in (0..file.len()).rev() {
            short.get_mut(&generation).unwrap().truncate(length);
            // All lengths around block and sector boundaries, and a sample of the others.
            if !(length % SECTOR_BYTES <= 2 || length % SECTOR_BYTES == 511 || length % 97 == 0) {
                continue;
            }
            let recovered = recover(&short, &models, &mut buffers);
            let context = format!("segment {generation} cut to {length} bytes");
            check(&recovered, &models, &context);
            if generation == newest {
                let end = (fresh_blocks + 1) * BLOCK_BYTES;
                // One stale block behind the last group proves that there is no more.
                let is_whole = length >= end + BLOCK_BYTES;
                assert_eq!(recovered.outcome.damages.is_empty(), is_whole, "{context}");
                assert!(!is_whole || is_complete(&recovered, &models), "{context}");
            }
        }
    }
}

#[test]
fn a_segment_that_is_missing_is_named() {
    let mut tried = 0;
    for seed in 0..20 {
        let Sample { files, models, newest, .. } = sample(seed);
        let mut buffers = Buffers::default();
        for &generation in files.keys() {
            if generation == newest {
                continue; // Nothing can tell that there was a later one.
            }
            let mut fewer = files.clone();
            fewer.remove(&generation);
            let recovered = recover(&fewer, &models, &mut buffers);
            check(&recovered, &models, &format!("segment {generation} missing"));
            tried += usize::from(!recovered.outcome.damaged.is_empty());
        }
    }
    assert!(tried > 10);
}

#[test]
fn a_group_that_a_lying_disk_never_wrote_is_named() {
    let mut named = 0;
    for seed in 0..30 {
        let Sample { files, models, newest, fresh_blocks } = sample(seed);
        let mut buffers = Buffers::default();
        for block in 1..=fresh_blocks {
            // Not the last group: nothing is left on disk that knew of it.
            let at = |block: usize| block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
            let BlockState::Fresh(last) =
                judge(&files[&newest][at(fresh_blocks)], Generation(newest))
            else {
                unreachable!("fresh_blocks counted it");
            };
            let BlockState::Fresh(header) = judge(&files[&newest][at(block)], Generation(newest))
            else {
                unreachable!("fresh_blocks counted it");
            };
            if header.group == last.group {
                break;
            }
            let mut lying = files.clone();
            lying.get_mut(&newest).unwrap()[at(block)].fill(0);
            let recovered = recover(&lying, &models, &mut buffers);
            check(&recovered, &models, &format!("seed {seed}, block {block} zeroed"));
            assert!(!recovered.outcome.damages.is_empty());
            assert!(recovered.end.unwrap().torn.is_none());
            named += 1;
        }
    }
    assert!(named > 60, "{named}");
}

#[test]
fn a_torn_group_is_cut_whatever_subset_of_its_sectors_landed() {
    let mut torn = 0;
    for seed in 0..40 {
        let mut machine = Machine::new(seed, 30);
        for _ in 0..40 {
            let _ = machine.append();
        }
        machine.flush();
        let acknowledged = machine.models.clone();
        while machine.append().is_ok() && machine.writer.staged_bytes() < 12_000 {}
        let before = machine.files.clone();
        machine.writer.hurry();
        let write = machine.writer.next_write(std::time::Instant::now()).unwrap();
        let mut buffers = Buffers::default();
        for _ in 0..60 {
            let mut files = before.clone();
            let file = files.get_mut(&write.segment().0).unwrap();
            let percent = machine.random.below(101);
            let mut landed = 0;
            for (index, sector) in write.bytes().chunks_exact(SECTOR_BYTES).enumerate() {
                if machine.random.chance(percent) {
                    let at = write.offset() as usize + index * SECTOR_BYTES;
                    file[at..at + SECTOR_BYTES].copy_from_slice(sector);
                    landed += 1;
                }
            }
            let recovered = recover(&files, &machine.models, &mut buffers);
            assert!(recovered.outcome.damages.is_empty(), "seed {seed}: torn taken for damage");
            check(&recovered, &acknowledged_or_more(&machine.models, &acknowledged), "torn");
            let end = recovered.end.unwrap();
            torn += usize::from(end.torn.is_some());
            let got: usize = recovered.delivered.values().map(Vec::len).sum();
            let kept: usize = acknowledged.iter().map(|model| model.durable).sum();
            // All of the group or nothing of it.
            let is_whole = got > kept;
            assert!(is_whole || got == kept);
            assert_eq!(end.torn.is_some(), !is_whole && landed > 0 && shows(&files, &write));
        }
    }
    assert!(torn > 1_000, "{torn}");
}

/// All segments of the run but the newest had been released, and that one's first group was torn:
/// which group to expect was unknown, and the torn one was taken for a hole in the log.
#[test]
fn a_torn_first_group_in_the_only_segment_left_is_cut() {
    let mut machine = Machine::new(11, SEGMENT_BLOCKS);
    let write = loop {
        while machine.append().is_ok() && machine.writer.staged_bytes() < 12_000 {}
        machine.writer.hurry();
        let write = machine.writer.next_write(std::time::Instant::now()).unwrap();
        if write.offset() == BLOCK_BYTES as u64 && write.segment() > Generation(1) {
            break write;
        }
        machine.finish(write);
        if machine.writer.segments_wanted() > 0 {
            machine.prepare();
        }
    };
    for model in &mut machine.models {
        model.covered = model.durable;
    }
    machine.release();
    assert_eq!(machine.files.keys().next(), Some(&write.segment().0), "only the newest is left");
    assert!(write.bytes().len() >= 2 * BLOCK_BYTES);
    let second = BLOCK_BYTES..2 * BLOCK_BYTES;
    let file = machine.files.get_mut(&write.segment().0).unwrap();
    file[2 * BLOCK_BYTES..3 * BLOCK_BYTES].copy_from_slice(&write.bytes()[second]);
    let recovered = recover(&machine.files, &machine.models, &mut Buffers::default());
    assert_eq!(recovered.outcome.damages, []);
    let torn = recovered.end.unwrap().torn.unwrap();
    assert_eq!((torn.generation, torn.offset), (write.segment(), BLOCK_BYTES as u64));
}

/// Whether the header of any of the write's blocks landed.
fn shows(files: &Files, write: &super::PendingWrite) -> bool {
    let start = write.offset() as usize;
    let file = &files[&write.segment().0][start..start + write.bytes().len()];
    file.chunks_exact(BLOCK_BYTES)
        .any(|block| matches!(judge(block, write.segment()), BlockState::Fresh(_)))
}

fn acknowledged_or_more(all: &[Model], acknowledged: &[Model]) -> Vec<Model> {
    let pair = |(all, acknowledged): (&Model, &Model)| Model {
        writes: all.writes.clone(),
        ..acknowledged.clone()
    };
    all.iter().zip(acknowledged).map(pair).collect()
}

#[test]
fn bytes_of_garbage_neither_panic_nor_yield_records() {
    let Sample { files, models, newest, .. } = sample(4);
    let mut random = Random(99);
    let mut buffers = Buffers::default();
    for round in 0..300 {
        let mut files = files.clone();
        let file = files.get_mut(&newest).unwrap();
        // A few ranges overwritten, by noise or by bytes from elsewhere in the file.
        for _ in 0..1 + random.below(4) {
            let from = random.below(file.len() as u64) as usize;
            let to = (from + random.below(9_000) as usize).min(file.len());
            if random.chance(50) {
                file[from..to].iter_mut().for_each(|byte| *byte = random.next() as u8);
            } else {
                let source = random.below((file.len() - (to - from)) as u64 + 1) as usize;
                file.copy_within(source..source + (to - from), from);
            }
        }
        let recovered = recover(&files, &models, &mut buffers);
        let none = Vec::new();
        for (id, model) in models.iter().enumerate() {
            let nonces = recovered.delivered.get(&(id as u32)).unwrap_or(&none);
            let got = model.covered + nonces.len();
            assert_eq!(nonces[..], model.writes[model.covered..got], "round {round}");
        }
    }
}
