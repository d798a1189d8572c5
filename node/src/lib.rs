//! The node: configuration, cores, planes, wiring and the command line, as a library behind the
//! `stateside` binary.

pub mod core;
pub mod reactor;
