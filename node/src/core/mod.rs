//! One core: its partitions, connections and log, and how the rest of the node talks to it.

pub mod calls;
pub mod command;
pub mod hop;
