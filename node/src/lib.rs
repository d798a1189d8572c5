//! The node: configuration, cores, planes, wiring and command line of the `stateside` binary.

pub mod config;
pub mod control;
pub mod core;
pub mod data_dir;
pub mod metrics;
