//! The node: configuration, cores, planes, wiring and the command line, as a library behind the
//! `stateside` binary.

pub mod cli;
pub mod core;
pub mod exit;
pub mod reactor;
