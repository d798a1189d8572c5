//! `stateside partition snapshot`.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde_json::json;
use stateside_client::v1;

use super::path_on_node;
use crate::{
    cli::{
        connection::ControlArgs,
        failure::Failure,
        output::{Format, Table, bytes_text, print_json},
        quantity::parse_duration,
    },
    exit::Exit,
};

/// Write a consistent snapshot of a partition to a new file on the node.
///
/// The partition goes on serving. The file appears under its name only when it is whole and on disk;
/// an existing file is never overwritten.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  stateside partition snapshot 3 /backup/partition-3.snapshot")]
pub(in crate::cli) struct SnapshotArgs {
    /// Id of the partition.
    id: u32,
    /// File on the node; must not exist.
    path: PathBuf,
    #[command(flatten)]
    control: ControlArgs,
    /// Time that it may take.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration,
        display_order = 801)]
    timeout: Duration,
}

pub(super) async fn run(args: SnapshotArgs, format: Format) -> Result<Exit, Failure> {
    let path = path_on_node(&args.path, &args.control.control_endpoint)?;
    let client = args.control.connect(args.timeout).await?;
    let done = client.snapshot(v1::SnapshotRequest { partition: args.id, path }).await?;
    match format {
        Format::Json => print_json(&json!({
            "partition": done.partition,
            "path": done.path,
            "sequence": done.sequence,
            "records": done.records,
            "bytes": done.bytes,
            "duration_ms": done.duration_ms,
        }))?,
        Format::Table => {
            let mut table = Table::new(&["PARTITION", "SEQUENCE", "RECORDS", "SIZE", "MS", "PATH"]);
            table.row(vec![
                done.partition.to_string(),
                done.sequence.to_string(),
                done.records.to_string(),
                bytes_text(done.bytes),
                done.duration_ms.to_string(),
                done.path,
            ]);
            table.print()?;
        }
    }
    Ok(Exit::Done)
}
