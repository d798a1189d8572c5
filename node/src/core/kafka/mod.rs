//! The log in Kafka: partitions with the stage `kafka-log`.
//!
//! ```text
//!  core 0 ─ appends, orders ──►┌ kafka-send ──► producer ┐ librdkafka's own threads,
//!  core 1 ─ bounded channels ─►│ kafka-events ◄─ answers │ one and one a broker, for each of the
//!     ▲                        └ kafka-read ◄─── consumer┘ two clients ──► brokers
//!     └── mailbox, one a core: what counts, what was opened, what is over ◄─┘
//! ```
//! Three threads, one producer and one consumer for the whole node, whatever the number of its
//! partitions. None of them touches a core's executor: a core leaves batches in a channel at the end of
//! its turn, and finds answers in its mailbox when it is woken. Decisions are pure and lie in
//! `stateside_pipeline::kafka`; everything that knows librdkafka is in `client`.
#![cfg_attr(
    not(feature = "kafka"),
    allow(dead_code, reason = "without the client nobody makes or reads what it exchanges")
)]

#[cfg(feature = "kafka")]
mod client;
mod core_log;
mod link;
mod opening;

#[cfg(feature = "kafka")]
pub use client::KafkaClient;
pub(crate) use core_log::CoreKafka;
pub use core_log::KafkaReport;
pub(crate) use link::{FromKafka, OpenedLog};
pub use link::{KafkaConfig, KafkaError, KafkaLink};
