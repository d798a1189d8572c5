//! A partition's log in Kafka, sans-IO: what a message holds, which messages count, and when an
//! owner may acknowledge.
//!
//! ```text
//!  offset  0        1       2       3         4       5         6
//!        ┌────────┬───────┬───────┬────────┬───────┬─────────┬───────┐
//!        │ claim  │ write │ write │ claim  │ write │ write   │ write │
//!        │ epoch 1│ e1 s1 │ e1 s2 │ epoch 2│ e2 s3 │ e1 s3   │ e2 s4 │
//!        └────────┴───────┴───────┴────────┴───────┴─────────┴───────┘
//!           node a owns ────────►   node b owns ──►  ignored   ─────►
//! ```
//! **One rule decides**, from the messages alone, and every reader applies the same: a claim counts
//! when its epoch is above every claim before it; a write counts when it has the epoch of the last
//! claim that counts and the sequence after the last write that counts. So a node that lost its
//! partition can still add messages, and they change nothing.
//!
//! **An owner may acknowledge** a write once it knows that the rule counts it. Kafka gives a
//! partition's messages consecutive offsets and tells the offset of each: as long as the owner's
//! messages follow its claim without a gap, nobody else's stand between, and the rule counts them all.
//! Only where there is a gap, or where the broker could not tell the offset, the owner reads
//! what stands there. So fencing costs nothing while nobody interferes, and no clock is trusted.
//! The argument in full: `docs/kafka.md`.

mod owner;
mod position;
mod record;
mod replay;
#[cfg(test)]
mod simulated_topic;

pub use owner::{Next, Owner, Step};
pub use position::{Anchor, Position, PositionError};
pub use record::{
    CLAIM_BYTES_MAX, Claim, KAFKA_FORMAT_VERSION, KAFKA_RECORD_BYTES_MAX, Message, MessageError,
    MessageHead, decode, encode_claim, encode_write, kafka_record_bytes,
};
pub use replay::{Event, Ignored, Replay, ReplayError};
