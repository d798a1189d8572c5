//! What `upsert`, `update` and `remove` ask of a write alike.

use clap::Args;
use stateside_client::{Condition, Sequence, WriteOptions};

use super::{
    connection::{AckArgs, RequestIdArgs, RoutingKeyArgs},
    failure::Failure,
    session::SessionArgs,
};

/// How to write.
#[derive(Args, Debug)]
pub(super) struct WriteArgs {
    #[command(flatten)]
    ack: AckArgs,
    #[command(flatten)]
    routing_key: RoutingKeyArgs,
    #[command(flatten)]
    request_id: RequestIdArgs,
    #[command(flatten)]
    session: SessionArgs,
}

impl WriteArgs {
    /// The same for the client, and where its session is to be saved after the write.
    pub(super) fn open(self) -> Result<(WriteOptions, SessionArgs), Failure> {
        let options = WriteOptions {
            routing_key: self.routing_key.into_bytes(),
            ack: self.ack.ack,
            session: self.session.open()?,
            request_id: self.request_id.request_id,
            ..WriteOptions::default()
        };
        Ok((options, self.session))
    }
}

/// What must hold of the key's record.
#[derive(Args, Debug)]
pub(super) struct ConditionArgs {
    /// Write only if the key has no record.
    #[arg(long, conflicts_with = "if_version")]
    if_absent: bool,
    /// Write only if the key's record has exactly this version.
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
}

impl ConditionArgs {
    /// The same for the client.
    pub(super) fn condition(&self) -> Condition {
        match (self.if_absent, self.if_version) {
            (true, _) => Condition::IfAbsent,
            (false, Some(version)) => Condition::IfVersion(Sequence(version)),
            (false, None) => Condition::None,
        }
    }
}
