//! Measurements of the real binary: beside other systems under the same load in the same run, and
//! the figures that a release states.
//!
//! Every number comes from the release binary, server pinned to one core, load to another, all
//! contenders in turn in the same run: absolute numbers depend on the machine, ratios hardly do.
//!
//! ```text
//!   rows ──► peers (start a server) ──► loads (call it) ──► comparison (in turn, round by round)
//!     └────► outcome: contenders, figures, bars ──► report: Markdown, JSON
//! ```

pub mod calls;
pub mod comparison;
pub mod figures;
pub mod loads;
pub mod machine;
pub mod memory_cgroup;
pub mod outcome;
pub mod peers;
pub mod process;
pub mod report;
pub mod rows;
pub mod statistics;
