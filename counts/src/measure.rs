//! What one call of an operation costs: two differences of runs under callgrind, and a run
//! without it for the allocations.

use stateside_node::core::ringless::RinglessError;

use crate::{
    callgrind::{self, CallgrindError},
    exchanges::{CALLS_MAX, Exchanges, Operation},
};

/// N: the shorter run; the longer has 2N.
const CALLS: u64 = CALLS_MAX / 2;

/// Costs of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// (I(2N) - I(N)) / N, the lower of two measurements.
    pub(crate) instructions: u64,
    /// By how much the higher is above, in hundredths of a per cent.
    pub(crate) spread_basis_points: u64,
    /// Of the core's thread, rounded up.
    pub(crate) allocations_per_thousand: u64,
    /// Bytes of those.
    pub(crate) bytes_per_thousand: u64,
}

/// Why there is no cost.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeasureError {
    /// The calls could not be served.
    #[error(transparent)]
    Core(#[from] RinglessError),
    /// They could not be counted.
    #[error(transparent)]
    Callgrind(#[from] CallgrindError),
    /// No directory for the log.
    #[error("a temporary directory: {0}")]
    Directory(#[from] std::io::Error),
    /// More calls cost no more: nothing was counted.
    #[error("{0} calls took no more instructions than half as many: nothing was counted")]
    Nothing(u64),
}

/// Serves `calls` calls in this process, once they are prepared.
pub(crate) fn run(operation: Operation, calls: u64) -> Result<Cost, MeasureError> {
    let directory = tempfile::tempdir()?;
    let allocations = Exchanges::prepare(operation, directory.path())?.serve(calls)?;
    Ok(Cost {
        allocations_per_thousand: (allocations.count * 1_000).div_ceil(calls),
        bytes_per_thousand: (allocations.bytes * 1_000).div_ceil(calls),
        ..Cost::default()
    })
}

/// Measures an operation.
pub(crate) fn measure(operation: Operation) -> Result<Cost, MeasureError> {
    // Side by side, each in processes of its own: what is counted does not depend on time.
    let (one, other) = std::thread::scope(|scope| {
        let other = scope.spawn(|| instructions(operation));
        (instructions(operation), other.join().expect("counting does not panic"))
    });
    let (one, other) = (one?, other?);
    let (low, high) = (one.min(other), one.max(other));
    Ok(Cost {
        instructions: low,
        spread_basis_points: ((high - low) * 10_000).div_ceil(low.max(1)),
        ..run(operation, CALLS)?
    })
}

fn instructions(operation: Operation) -> Result<u64, MeasureError> {
    let short = callgrind::instructions(operation, CALLS)?;
    let long = callgrind::instructions(operation, 2 * CALLS)?;
    match long.checked_sub(short) {
        None | Some(0) => Err(MeasureError::Nothing(2 * CALLS)),
        Some(more) => Ok(more / CALLS),
    }
}
