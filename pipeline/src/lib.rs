//! Stages of a partition's pipeline, and the format of the local log.

pub mod log;
