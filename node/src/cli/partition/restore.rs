//! `stateside partition restore`.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde_json::json;
use stateside_client::v1;

use super::{confirmed, describe, find, partition_json, path_on_node, print_partitions};
use crate::{
    cli::{
        connection::ControlArgs,
        failure::Failure,
        output::{Format, print_json},
        quantity::parse_duration,
    },
    exit::Exit,
};

/// Replace a partition's records by those of a snapshot file on the node.
///
/// The file is verified whole before anything changes. Shows what would be replaced and asks first when
/// the partition holds records; without a terminal that takes --yes.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  stateside partition restore 3 /backup/partition-3.snapshot")]
pub(in crate::cli) struct RestoreArgs {
    /// Id of the partition; its range must be the snapshot's.
    id: u32,
    /// Snapshot file on the node.
    path: PathBuf,
    /// Do not ask: its records may be replaced.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    control: ControlArgs,
    /// Time that it may take.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration,
        display_order = 801)]
    timeout: Duration,
}

pub(super) async fn run(args: RestoreArgs, format: Format) -> Result<Exit, Failure> {
    let path = path_on_node(&args.path, &args.control.control_endpoint)?;
    let client = args.control.connect(args.timeout).await?;
    let partition = find(&client, |partition| partition.id == args.id).await?;
    // What the node does not have is for the node to refuse, in its words.
    let confirm = match partition.filter(|partition| partition.records > 0) {
        Some(partition) => {
            let what = format!("restoring partition {} replaces them", describe(&partition));
            confirmed(args.yes, &what)?
        }
        None => args.yes,
    };
    let done = client.restore(v1::RestoreRequest { partition: args.id, path, confirm }).await?;
    match format {
        Format::Json => print_json(&json!({
            "partition": done.partition.as_ref().map(partition_json),
            "records": done.records,
            "duration_ms": done.duration_ms,
        }))?,
        Format::Table => {
            eprintln!("restored {} records in {} ms", done.records, done.duration_ms);
            print_partitions(done.partition.as_slice(), format)?;
        }
    }
    Ok(Exit::Done)
}
