//! `stateside get`.

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use clap::Args;
use serde_json::{Map, Value, json};
use stateside_client::{ExpireAt, ReadOptions, Record};

use super::{
    connection::{DataArgs, RoutingKeyArgs, TimeoutArgs},
    failure::Failure,
    output::{
        Format, Table, insert_bytes, insert_timestamp, print_bytes, print_json, printable, utc,
    },
    session::SessionArgs,
};
use crate::exit::Exit;

/// Read records.
///
/// One key prints the bare bytes of its value and nothing else. Several keys print a table; with
/// -o json every record is printed with version, timestamp and expiry, bytes that are not UTF-8 as
/// key_base64 and value_base64. When none of the keys has a record, the exit code is 4.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  stateside get user/1
  stateside get user/1 user/2 -o json
  stateside get config/app | gunzip")]
pub(super) struct GetArgs {
    /// Keys.
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<OsString>,
    #[command(flatten)]
    routing_key: RoutingKeyArgs,
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    timeout: TimeoutArgs,
}

pub(super) async fn run(args: GetArgs, format: Format) -> Result<Exit, Failure> {
    let keys: Vec<Vec<u8>> = args.keys.into_iter().map(OsString::into_vec).collect();
    let session = args.session.open()?;
    let routing_key = args.routing_key.into_bytes();
    let options = ReadOptions { routing_key, session, deadline: None };
    let client = args.data.connect(&args.timeout).await?;
    let records = client.get(&keys, &options).await?.all()?;
    args.session.save(options.session.as_ref())?;
    match format {
        Format::Json => {
            let records: Vec<_> =
                keys.iter().zip(&records).map(|(key, r)| json_of(key, r)).collect();
            print_json(&json!({ "records": records }))?;
        }
        Format::Table if keys.len() == 1 => {
            if let Some(record) = records.first().and_then(Option::as_ref) {
                print_bytes(&record.value)?;
            }
        }
        Format::Table => {
            let mut table = Table::new(&["KEY", "VERSION", "TIME", "EXPIRES", "VALUE"]);
            for (key, record) in keys.iter().zip(&records) {
                let key = printable(key, 60);
                table.row(match record {
                    Some(Record { value, version, timestamp, expire_at }) => {
                        let time = utc(timestamp.millis());
                        let expires = utc(expire_at.map_or(0, ExpireAt::millis));
                        vec![key, version.to_string(), time, expires, printable(value, 80)]
                    }
                    None => vec![key, "-".into(), "-".into(), "-".into(), String::new()],
                });
            }
            table.print()?;
        }
    }
    if records.iter().any(Option::is_some) { Ok(Exit::Done) } else { Ok(Exit::NotFound) }
}

fn json_of(key: &[u8], record: &Option<Record>) -> Value {
    let mut object = Map::new();
    object.insert("found".to_owned(), record.is_some().into());
    insert_bytes(&mut object, "key", key);
    if let Some(record) = record {
        insert_bytes(&mut object, "value", &record.value);
        object.insert("version".to_owned(), record.version.0.into());
        insert_timestamp(&mut object, record.timestamp);
        if let Some(moment) = record.expire_at {
            object.insert("expire_at_unix_ms".to_owned(), moment.millis().into());
        }
    }
    object.into()
}
