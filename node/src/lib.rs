//! The node: files, cores, planes and their wiring.

pub mod log_files;
