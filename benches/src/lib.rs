//! Measurements of the real binary: beside a tonic + tokio service with the same contract, and
//! the figures that a release states.
//!
//! Every number comes from the release binary under h2load, server pinned to one core, load to
//! another, ours and theirs in turn in the same run: absolute numbers depend on the machine, the
//! ratio hardly does.

pub mod comparison;
pub mod figures;
pub mod h2load;
pub mod process;
pub mod statistics;
