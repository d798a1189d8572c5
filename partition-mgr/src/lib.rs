//! Which partitions a node has, which it should have, and the steps from one to the other.
//!
//! ```text
//!   manifest (what the node has) ──┐
//!   desired set (registry)       ──┼─► plan ─► remove… update… add… │ held changes, with reasons
//!   records per partition        ──┘      (pure; the node's manager carries it out)
//! ```
//! Everything here is pure: it decides, encodes and decodes. The node's manager reads and writes
//! the manifest's file, asks the cores what they hold, and carries out one step at a time,
//! planning anew after each.

mod manifest;
mod placement;
mod plan;
mod stages;

pub use manifest::{MANIFEST_VERSION, Manifest, ManifestError, PlacedPartition};
pub use placement::{Move, least_loaded_core, rebalance};
pub use plan::{Defaults, Held, HoldReason, Holding, Plan, Removal, SettingChange, Step, plan};
