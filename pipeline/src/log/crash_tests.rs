//! A machine that is killed over and over, at any point, with its last write torn in any way: it
//! never loses an acknowledged write, never brings back a cut one, never cries damage.

use proptest::prelude::*;

use super::simulated_disk::Machine;

fn live(seed: u64, segment_blocks: usize, steps: usize) -> Machine {
    let mut machine = Machine::new(seed, segment_blocks);
    // Killed rarely it fills and recycles segments, killed often it begins many runs.
    let kinds = if machine.random.chance(50) { 100 } else { 97 };
    for _ in 0..steps {
        match machine.random.below(kinds) {
            0..=54 => {
                // Refused is refused; whoever wants room waits for the keeper.
                let _ = machine.append();
            }
            55..=69 => machine.start_write(),
            70..=84 => machine.finish_write(),
            85..=91 => {
                if machine.writer.segments_wanted() > 0 {
                    machine.prepare();
                }
            }
            92..=95 => machine.snapshot(),
            // One or four in a hundred.
            _ => {
                machine.crash();
                machine.restart();
            }
        }
    }
    machine.flush();
    machine.crash();
    machine.restart();
    machine
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn killed_at_any_point_it_keeps_what_was_acknowledged(
        seed in any::<u64>(), segment_blocks in 12_usize..30,
    ) {
        live(seed, segment_blocks, 1_200);
    }

    /// As before, and now and then a byte rots. A partition that lost something is named, and stays
    /// named; the others go on.
    #[test]
    fn damage_is_named_and_never_forgotten(seed in any::<u64>(), segment_blocks in 12_usize..30) {
        let mut machine = Machine::new(seed, segment_blocks);
        for _ in 0..12 {
            for _ in 0..machine.random.below(60) {
                let _ = machine.append();
                if machine.random.chance(20) {
                    machine.start_write();
                    machine.finish_write();
                }
                if machine.writer.segments_wanted() > 0 {
                    machine.prepare();
                }
            }
            if machine.random.chance(30) {
                machine.snapshot();
            }
            machine.crash();
            if machine.random.chance(20) {
                machine.rot();
            }
            machine.restart_damaged();
        }
    }
}

#[test]
fn the_simulation_reaches_torn_tails_and_recycled_files() {
    let (mut torn_tails, mut recycled) = (0, 0);
    for seed in 0..8 {
        let machine = live(seed, 12, 2_500);
        torn_tails += machine.torn_tails;
        recycled += machine.recycled;
    }
    assert!(torn_tails > 10 && recycled > 20, "{torn_tails} torn, {recycled} recycled");
}

#[test]
fn the_same_seed_writes_the_same_bytes_and_another_does_not() {
    let files = |seed| live(seed, 16, 300).files;
    assert!(files(7) == files(7), "the same seed diverged");
    assert!(files(7) != files(8), "another seed did not diverge");
}
