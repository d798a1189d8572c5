//! One core: its partitions, connections and log, and how the rest of the node talks to it.
//!
//! A core is one thread with one task, which takes turns:
//! ```text
//!  wait ─► completions ─► sessions ─► requests ─► partitions ─► answers ─► one send a connection
//!   ▲        other cores' requests and answers ──┘     │  └─► log: next write, if none is out
//!   └────────────────────────────────────────────────── └─► one message to each other core
//! ```
//! Everything in here is owned by that thread. What crosses threads: [`command`]s and [`hop`]s
//! over bounded channels, outcomes of the blocking pool, and counters.

pub mod calls;
pub mod command;
mod commit_delay;
mod connections;
mod coverage;
mod executor;
pub mod hop;
pub mod kafka;
mod late_recovery;
mod log;
mod operations;
mod partition_files;
mod pool;
mod recovery;
#[doc(hidden)]
pub mod ringless;
mod sequential_file;
mod service;
mod snapshots;
mod store_change;
mod store_changes;
mod store_engines;
mod turn;
mod world;

pub use coverage::Coverage;
pub use partition_files::PartitionFiles;
pub use recovery::Evidence;
pub use service::Node;
pub(crate) use store_change::cannot_move;
pub use store_engines::StoreEngines;
pub use turn::{CoreError, CoreSetup, Mailboxes, Peer, peers, run};
