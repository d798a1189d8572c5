//! What a node costs that nobody calls.

use std::time::Duration;

use super::Context;
use crate::{
    comparison::Ratio,
    outcome::{Bar, Outcome},
    peers::{Server, stateside::site},
    process::{cpu_seconds, memory},
    statistics::{median, spread},
};

/// After the start, until housekeeping of the start is over.
const SETTLING: Duration = Duration::from_secs(2);
/// Long enough that a tick of the kernel's clock is little.
const SECONDS_MIN: u32 = 10;
const CPU_PERCENT: f64 = 1.0;
const MIB: f64 = 40.0;

pub(super) fn idle(context: &Context<'_>) -> Result<Outcome, String> {
    let site = site();
    let node = site.start();
    let length = Duration::from_secs(u64::from(context.effort.seconds.max(SECONDS_MIN)));
    std::thread::sleep(SETTLING);
    let mut shares = Vec::new();
    for _ in 0..context.effort.rounds {
        let before = cpu_seconds(Server::pid(&node))?;
        // Time passing is what is measured here.
        std::thread::sleep(length);
        let used = cpu_seconds(Server::pid(&node))? - before;
        shares.push(100.0 * used / length.as_secs_f64());
    }
    let (lowest, highest) = spread(&shares);
    let share = Ratio { value: median(&shares), lowest, highest };
    let resident = memory(Server::pid(&node))?.resident as f64 / f64::from(1 << 20);
    let mut outcome = Outcome::default();
    outcome.bars.push(Bar::at_most("CPU", Some(share), CPU_PERCENT, "% of a core"));
    outcome.bars.push(Bar::at_most("resident memory", Some(resident.into()), MIB, "MiB"));
    outcome
        .notes
        .push(format!("CPU over {} s each; one core, 8 partitions, no records", length.as_secs()));
    Ok(outcome)
}
