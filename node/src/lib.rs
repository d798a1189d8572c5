//! The node: configuration, cores, planes, wiring and command line of the `stateside` binary.

pub mod core;
