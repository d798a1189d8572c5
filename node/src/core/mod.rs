//! One core: its partitions, connections and log, and how the rest of the node talks to it.

pub mod command;
