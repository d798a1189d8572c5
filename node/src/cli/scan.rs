//! `stateside scan`.

use std::{ffi::OsString, fmt::Write, os::unix::ffi::OsStringExt};

use clap::Args;
use serde_json::Map;
use stateside_client::{Client, Page, Record, ScanPlace, ScanRange};

use super::{
    connection::{DataArgs, TimeoutArgs},
    failure::Failure,
    output::{Format, Table, insert_bytes, insert_timestamp, print_bytes, printable, utc},
    session::SessionArgs,
};
use crate::exit::Exit;

/// Read records in the order of their keys.
///
/// Scans the partition of a routing key, one partition by its id, or all partitions one after the
/// other, each in its own order. Only stores that order their keys can: memory-ordered, lsm, tiered, sled. Records
/// of one partition are the state of one moment, unless --each-page: when the partition is
/// written meanwhile where the scan reads, it ends with SCAN_MOVED. With -o json one record a line.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  stateside scan --routing-key cart/17 --prefix cart/17/
  stateside scan --partition 3 --limit 20
  stateside scan --prefix DE/ -o json > german.ndjson")]
pub(super) struct ScanArgs {
    /// Scan the partition that this routing key belongs to.
    #[arg(long, value_name = "KEY", conflicts_with = "partition")]
    routing_key: Option<OsString>,
    /// Scan the partition with this id.
    #[arg(long, value_name = "ID")]
    partition: Option<u32>,
    /// Only keys that begin with this.
    #[arg(long, value_name = "BYTES", default_value = "")]
    prefix: OsString,
    /// Only keys from this one on.
    #[arg(long, value_name = "KEY", default_value = "")]
    start: OsString,
    /// Only keys below this one.
    #[arg(long, value_name = "KEY", default_value = "")]
    end: OsString,
    /// Most records in all; without it, all.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Each page shows the state of its own time, and no write ends the scan.
    #[arg(long)]
    each_page: bool,
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    timeout: TimeoutArgs,
}

pub(super) async fn run(args: ScanArgs, format: Format) -> Result<Exit, Failure> {
    let client = args.data.connect_routed(&args.timeout).await?;
    let session = args.session.open()?;
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut table = Table::new(&["KEY", "VERSION", "TIME", "VALUE"]);
    let mut found = false;
    for place in places(&args, &client) {
        let range = ScanRange {
            place,
            prefix: args.prefix.clone().into_vec(),
            start: args.start.clone().into_vec(),
            end: args.end.clone().into_vec(),
            page_records: 0,
            each_page: args.each_page,
            session: session.clone(),
        };
        let mut continuation = None;
        while left > 0 {
            let range = ScanRange { page_records: left.min(1_000) as u32, ..range.clone() };
            let Page { records, continuation: next, .. } =
                client.scan(&range, continuation.as_deref(), None).await?;
            args.session.save(session.as_ref())?;
            let mut lines = String::new();
            for (key, record) in records {
                found = true;
                left -= 1;
                match format {
                    Format::Json => writeln!(lines, "{}", json_of(&key, &record))
                        .expect("a string takes all that is written to it"),
                    Format::Table => table.row(vec![
                        printable(&key, 60),
                        record.version.to_string(),
                        utc(record.timestamp.millis()),
                        printable(&record.value, 80),
                    ]),
                }
            }
            print_bytes(lines.as_bytes())?;
            continuation = next;
            if continuation.is_none() {
                break;
            }
        }
    }
    if format == Format::Table {
        table.print()?;
    }
    Ok(if found { Exit::Done } else { Exit::NotFound })
}

fn places(args: &ScanArgs, client: &Client) -> Vec<ScanPlace> {
    if let Some(key) = &args.routing_key {
        return vec![ScanPlace::RoutingKey(key.clone().into_vec())];
    }
    if let Some(id) = args.partition {
        return vec![ScanPlace::Partition(id)];
    }
    let topology = client.topology().expect("the command line's client routes");
    topology.routes().iter().map(|route| ScanPlace::Partition(route.id.0)).collect()
}

fn json_of(key: &[u8], record: &Record) -> serde_json::Value {
    let mut object = Map::new();
    insert_bytes(&mut object, "key", key);
    insert_bytes(&mut object, "value", &record.value);
    object.insert("version".to_owned(), record.version.0.into());
    insert_timestamp(&mut object, record.timestamp);
    if let Some(moment) = record.expire_at {
        object.insert("expire_at_unix_ms".to_owned(), moment.millis().into());
    }
    object.into()
}
