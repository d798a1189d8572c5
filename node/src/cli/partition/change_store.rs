//! `stateside partition change-store`.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use stateside_client::{ControlClient, v1};
use stateside_types::StoreKind;
use tokio::time::{MissedTickBehavior, interval};

use super::{find, partition_json, print_partitions};
use crate::{
    cli::{
        connection::ControlArgs,
        failure::Failure,
        output::{Format, bytes_text, print_json},
        quantity::parse_duration,
    },
    exit::Exit,
};

/// How often it is looked how far the change is.
const PROGRESS_PERIOD: Duration = Duration::from_secs(1);

/// Move a partition's records to another store while it serves.
///
/// Reads and writes go on. The change is declared in the node's registry first, so it goes on after a
/// restart of the node; when it is refused, the partition keeps the store that it has.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  stateside partition change-store 3 lsm")]
pub(in crate::cli) struct ChangeStoreArgs {
    /// Id of the partition.
    id: u32,
    /// Store to change to: memory, memory-ordered, sled or lsm.
    store: StoreKind,
    #[command(flatten)]
    control: ControlArgs,
    /// Time that it may take. After that the node goes on with it all the same.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration,
        display_order = 801)]
    timeout: Duration,
}

pub(super) async fn run(args: ChangeStoreArgs, format: Format) -> Result<Exit, Failure> {
    let client = args.control.connect(args.timeout).await?;
    let request =
        v1::ChangeStoreRequest { partition: args.id, store: args.store.as_str().to_owned() };
    let done = tokio::select! {
        done = client.change_store(request) => done?,
        never = show_progress(&client, args.id) => match never {},
    };
    match format {
        Format::Json => print_json(&json!({
            "partition": done.partition.as_ref().map(partition_json),
            "records": done.records,
            "snapshot_bytes": done.snapshot_bytes,
            "duration_ms": done.duration_ms,
        }))?,
        Format::Table => {
            let size = bytes_text(done.snapshot_bytes);
            eprintln!("moved {} records, {size}, in {} ms", done.records, done.duration_ms);
            print_partitions(done.partition.as_slice(), format)?;
        }
    }
    Ok(Exit::Done)
}

/// Tells on standard error how far the change is, whenever that is something new.
async fn show_progress(client: &ControlClient, id: u32) -> std::convert::Infallible {
    let mut period = interval(PROGRESS_PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    period.tick().await;
    let mut shown = String::new();
    loop {
        period.tick().await;
        // What cannot be told now is told a second later, or not: the call itself says how it ends.
        let Ok(Some(partition)) = find(client, |partition| partition.id == id).await else {
            continue;
        };
        let text = match &partition.store_change {
            Some(change) => progress_text(id, change),
            None => format!("partition {id}: waits for its turn"),
        };
        if text != shown {
            eprintln!("{text}");
            shown = text;
        }
    }
}

fn progress_text(id: u32, change: &v1::StoreChange) -> String {
    let v1::StoreChange { phase, records, records_total, waiting_bytes, .. } = change;
    let waiting = match waiting_bytes {
        0 => String::new(),
        bytes => format!(", {} of writes wait for the new store", bytes_text(*bytes)),
    };
    format!("partition {id}: {phase}, {records} of {records_total} records{waiting}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_words() {
        let change = v1::StoreChange {
            store: "lsm".to_owned(),
            phase: "copy".to_owned(),
            records: 7,
            records_total: 9,
            waiting_bytes: 0,
        };
        assert_eq!(progress_text(3, &change), "partition 3: copy, 7 of 9 records");
        let change = v1::StoreChange { waiting_bytes: 2_048, ..change };
        assert!(progress_text(3, &change).ends_with(", 2.0 KiB of writes wait for the new store"));
    }
}
