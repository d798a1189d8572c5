//! `stateside partition add`.

use std::time::Duration;

use clap::Args;
use stateside_client::{Ack, v1};
use stateside_types::{HashRange, StoreKind};

use super::print_partitions;
use crate::{
    cli::{connection::ControlArgs, failure::Failure, output::Format, quantity::parse_duration},
    exit::Exit,
};

/// Add an empty partition and wait until it serves.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  stateside partition add --range 0x8000000000000000..
  stateside partition add --range 0..0x4000000000000000 --id 7 --store sled")]
pub(in crate::cli) struct AddArgs {
    /// Key hashes that it owns, START..END without END; no END means through the last hash.
    #[arg(long, value_name = "START..END")]
    range: HashRange,
    /// Its id; the lowest free one without this.
    #[arg(long)]
    id: Option<u32>,
    /// Where its records live: memory, memory-ordered, sled, lsm, tiered, or counters (integers, with --ack
    /// memory); the node's default without this.
    #[arg(long)]
    store: Option<StoreKind>,
    /// What an answer to a write promises: durable or memory; the node's default without this.
    #[arg(long, value_name = "LEVEL")]
    ack: Option<Ack>,
    #[command(flatten)]
    control: ControlArgs,
    /// Time that it may take.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = parse_duration,
        display_order = 801)]
    timeout: Duration,
}

pub(super) async fn run(args: AddArgs, format: Format) -> Result<Exit, Failure> {
    let client = args.control.connect(args.timeout).await?;
    let request = v1::AddPartitionRequest {
        id: args.id,
        range: Some(args.range.into()),
        store: args.store.map_or("", StoreKind::as_str).to_owned(),
        ack: args.ack.map_or(v1::Ack::Default, v1::Ack::from) as i32,
    };
    let added = client.add_partition(request).await?.partition;
    print_partitions(added.as_slice(), format)?;
    Ok(Exit::Done)
}
