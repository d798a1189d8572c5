//! The words of Stateside as types: ids, hash ranges, timestamps, limits, and the
//! one list of refusals that every plane answers with.
//!
//! This crate imports nothing of the workspace, does no IO and reads no clock.

mod ack;
mod desired;
mod entry;
mod expiry;
mod hash_range;
mod ids;
pub mod limits;
mod partition;
mod refusal;
mod request_id;
mod session;
mod stage;
mod timestamp;
mod update;

pub use ack::Ack;
pub use desired::{DesiredError, DesiredPartition, DesiredSet};
pub use entry::{Change, Condition, Record, WriteEntry};
pub use expiry::{ExpireAt, Expiry};
pub use hash_range::{HashRange, KeyHash, RangeError};
pub use ids::{CoreId, Epoch, PartitionId, Sequence};
pub use partition::{PartitionSpec, PartitionState, StoreKind};
pub use refusal::{Code, Reason, Refusal};
pub use request_id::{
    REQUEST_MARK_BYTES_MAX, RequestId, RequestMark, decode_values, encode_values,
};
pub use session::{AtLeast, SESSION_TOKEN_BYTES_MAX, SessionToken};
pub use stage::{
    DEFAULT_PIPELINE, OptionValue, PipelineError, PipelineSpec, StageKind, StageSpec, check_ack,
    check_pipeline, misplaced, stage_names,
};
pub use timestamp::{Timestamp, WallClock};
pub use update::{Operator, UpdateEntry};
