//! The node: configuration, cores, planes, wiring and the command line, as a library behind the
//! `stateside` binary.

pub mod cli;
pub mod config;
pub mod control;
pub mod core;
pub mod data_dir;
pub mod exit;
mod habit;
pub mod log_files;
pub mod metrics;
pub mod reactor;
pub mod serve;
pub mod stages;
pub mod tiered_dirs;
