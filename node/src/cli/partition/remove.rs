//! `stateside partition remove`.

use std::time::Duration;

use clap::Args;
use stateside_client::v1::{self, remove_partition_request::Target};
use stateside_types::HashRange;

use super::{confirmed, describe, find, print_partitions};
use crate::{
    cli::{connection::ControlArgs, failure::Failure, output::Format, quantity::parse_duration},
    exit::Exit,
};

/// Remove a partition with its records.
///
/// Shows what would be lost and asks first when the partition holds records; without a terminal
/// that takes --yes. Prints the partition as it was.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  stateside partition remove 7
  stateside partition remove --range 0..0x4000000000000000 --yes")]
#[group(id = "which", required = true, multiple = false, args = ["id", "range"])]
pub(in crate::cli) struct RemoveArgs {
    /// Id of the partition.
    id: Option<u32>,
    /// The partition with exactly this range of key hashes.
    #[arg(long, value_name = "START..END")]
    range: Option<HashRange>,
    /// Do not ask: its records may be lost.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    control: ControlArgs,
    /// Time that it may take.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = parse_duration,
        display_order = 801)]
    timeout: Duration,
}

pub(super) async fn run(args: RemoveArgs, format: Format) -> Result<Exit, Failure> {
    let client = args.control.connect(args.timeout).await?;
    let range = args.range.map(v1::HashRange::from);
    let partition = find(&client, |partition| match args.id {
        Some(id) => partition.id == id,
        None => partition.range == range,
    })
    .await?;
    // What the node does not have is for the node to refuse, in its words.
    let confirm = match partition.filter(|partition| partition.records > 0) {
        Some(partition) => {
            let what = format!("removing partition {} loses them for good", describe(&partition));
            confirmed(args.yes, &what)?
        }
        None => args.yes,
    };
    let target = match (args.id, range) {
        (Some(id), _) => Some(Target::Id(id)),
        (None, range) => range.map(Target::Range),
    };
    let request = v1::RemovePartitionRequest { target, confirm };
    let removed = client.remove_partition(request).await?.partition;
    print_partitions(removed.as_slice(), format)?;
    Ok(Exit::Done)
}
