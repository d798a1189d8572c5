//! `stateside upsert`.

use std::{
    ffi::OsString,
    fs::File,
    io::Read,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use serde_json::Map;
use stateside_client::{Upsert, Written};
use stateside_types::limits::BATCH_BYTES_MAX;

use super::{
    connection::{DataArgs, TimeoutArgs},
    failure::Failure,
    output::{Format, Table, insert_bytes, insert_timestamp, print_json, printable, utc},
    quantity::parse_ttl,
    write::{ConditionArgs, WriteArgs},
};
use crate::exit::Exit;

/// Write a record.
///
/// Prints the version that the record has from now on. With a condition that does not hold
/// nothing is written and the exit code is 5.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:
  stateside upsert user/1 '{\"name\":\"Ada\"}'
  stateside upsert lock/backup \"$HOSTNAME\" --if-absent --ttl 30s
  stateside upsert order/7 paid --if-version 3 --request-id billing:7
  gzip -c app.toml | stateside upsert config/app -",
    override_usage = "stateside upsert [OPTIONS] <KEY> <VALUE|--value-file <PATH>>"
)]
#[group(id = "source", required = true, multiple = false, args = ["value", "value_file"])]
pub(super) struct UpsertArgs {
    /// Key, 1 to 4096 bytes.
    key: OsString,
    /// Value; `-` reads it from stdin.
    #[arg(allow_hyphen_values = true)]
    value: Option<OsString>,
    /// Read the value from a file.
    #[arg(long, value_name = "PATH")]
    value_file: Option<PathBuf>,
    #[command(flatten)]
    condition: ConditionArgs,
    /// Have the record expire after this time, such as 500ms, 10s, 2m, 1h or 30d.
    #[arg(long, value_name = "DURATION", value_parser = parse_ttl)]
    ttl: Option<Duration>,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    timeout: TimeoutArgs,
}

pub(super) async fn run(args: UpsertArgs, format: Format) -> Result<Exit, Failure> {
    let value = match (args.value, args.value_file) {
        (Some(value), _) if value.as_bytes() == b"-" => read_value(std::io::stdin(), "stdin")?,
        (Some(value), _) => value.into_vec(),
        (None, Some(path)) => {
            let name = path.display().to_string();
            let file = File::open(&path).map_err(|error| {
                Failure::new(Exit::Failure, format!("cannot open {name}: {error}"))
            })?;
            read_value(file, &name)?
        }
        (None, None) => Vec::new(), // clap requires one of the two
    };
    let key = args.key.into_vec();
    let condition = args.condition.condition();
    let entry = Upsert { key: &key, value: &value, condition, ttl: args.ttl };
    let (options, session) = args.write.open()?;
    let client = args.data.connect(&args.timeout).await?;
    let written = client.upsert_one(entry, &options).await?;
    session.save(options.session.as_ref())?;
    print_written(&[(&key, written)], true, format)?;
    Ok(Exit::Done)
}

/// Versions after a write, one row per key. As JSON a `single` key is a flat object, several are
/// `{"results": [...]}`.
pub(super) fn print_written(
    written: &[(&[u8], Written)],
    single: bool,
    format: Format,
) -> Result<(), Failure> {
    match format {
        Format::Table => {
            let mut table = Table::new(&["KEY", "VERSION", "TIME"]);
            for (key, written) in written {
                let time = utc(written.timestamp.millis());
                table.row(vec![printable(key, 60), written.version.to_string(), time]);
            }
            table.print()
        }
        Format::Json => {
            let mut objects: Vec<_> = written
                .iter()
                .map(|(key, written)| {
                    let mut object = Map::new();
                    insert_bytes(&mut object, "key", key);
                    object.insert("version".to_owned(), written.version.0.into());
                    insert_timestamp(&mut object, written.timestamp);
                    serde_json::Value::from(object)
                })
                .collect();
            match objects.pop_if(|_| single) {
                Some(only) => print_json(&only),
                None => print_json(&serde_json::json!({ "results": objects })),
            }
        }
    }
}

/// Reads a value, no further than what can be stored.
pub(super) fn read_value(source: impl Read, name: &str) -> Result<Vec<u8>, Failure> {
    let mut value = Vec::new();
    source
        .take(BATCH_BYTES_MAX as u64 + 1)
        .read_to_end(&mut value)
        .map_err(|error| Failure::new(Exit::Failure, format!("cannot read {name}: {error}")))?;
    if value.len() > BATCH_BYTES_MAX {
        let message =
            format!("{name} has more than the {BATCH_BYTES_MAX} bytes that a value may have");
        return Err(Failure::new(Exit::Failure, message));
    }
    Ok(value)
}
