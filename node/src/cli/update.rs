//! `stateside update`.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    time::Duration,
};

use clap::Args;
use serde_json::Map;
use stateside_client::{Operator, Update, Updated};

use super::{
    connection::{DataArgs, TimeoutArgs},
    failure::Failure,
    output::{Format, Table, insert_bytes, insert_timestamp, print_json, printable, utc},
    quantity::parse_ttl,
    upsert::read_value,
    write::{ConditionArgs, WriteArgs},
};
use crate::exit::Exit;

/// Change a record where it is.
///
/// The node computes the new value from the present one; nobody can come in between. Integers are
/// decimal text of 64 bits with a sign. Prints the version and the value that the record has from now
/// on. With a condition that does not hold, or a value that the operator cannot change, nothing is
/// written and the exit code is 5. Exit code 7 is that no answer came: repeat what adds or appends under
/// the same --request-id, or read the record first.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:
  stateside update visits --add 1
  stateside update high-score --max 4711
  stateside update user/1 --merge-json '{\"city\":\"Berlin\",\"phone\":null}'
  date | stateside update journal --append -",
    override_usage = "stateside update [OPTIONS] <KEY> <--add <N>|--max <N>|--min <N>|--append <BYTES>|--merge-json <DOCUMENT>>"
)]
pub(super) struct UpdateArgs {
    /// Key, 1 to 4096 bytes.
    key: OsString,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    condition: ConditionArgs,
    /// Have the record expire after this time, such as 500ms, 10s, 2m, 1h or 30d; else it expires
    /// when it would have.
    #[arg(long, value_name = "DURATION", value_parser = parse_ttl)]
    ttl: Option<Duration>,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    timeout: TimeoutArgs,
}

/// Exactly one.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct OperatorArgs {
    /// Add to an integer; an absent record counts as 0.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    add: Option<i64>,
    /// Store this integer where the present one is lower, or there is none.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    max: Option<i64>,
    /// Store this integer where the present one is higher, or there is none.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    min: Option<i64>,
    /// Put bytes behind those that are there; `-` reads them from stdin.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    append: Option<OsString>,
    /// Merge a JSON document into the present one (RFC 7396): members that are null go; `-` reads it
    /// from stdin.
    #[arg(long, value_name = "DOCUMENT")]
    merge_json: Option<OsString>,
}

pub(super) async fn run(args: UpdateArgs, format: Format) -> Result<Exit, Failure> {
    let OperatorArgs { add, max, min, append, merge_json } = args.operator;
    let (append, merge_json) = (bytes(append)?, bytes(merge_json)?);
    let integer = add.map(Operator::Add).or(max.map(Operator::Max)).or(min.map(Operator::Min));
    let bytes = append.as_deref().map(Operator::Append);
    let operator = integer.or(bytes).or(merge_json.as_deref().map(Operator::Merge));
    let operator = operator.expect("clap requires one of the five");
    let key = args.key.into_vec();
    let condition = args.condition.condition();
    let entry = Update { key: &key, operator, condition, ttl: args.ttl };
    let (options, session) = args.write.open()?;
    let client = args.data.connect(&args.timeout).await?;
    let updated = client.update_one(entry, &options).await?;
    session.save(options.session.as_ref())?;
    print(&key, &updated, format)?;
    Ok(Exit::Done)
}

/// The argument, or stdin where it is `-`.
fn bytes(argument: Option<OsString>) -> Result<Option<Vec<u8>>, Failure> {
    match argument {
        Some(dash) if dash.as_bytes() == b"-" => read_value(std::io::stdin(), "stdin").map(Some),
        other => Ok(other.map(OsString::into_vec)),
    }
}

fn print(key: &[u8], updated: &Updated, format: Format) -> Result<(), Failure> {
    // One value always fits into the answer.
    let value = updated.value.as_deref().unwrap_or_default();
    match format {
        Format::Table => {
            let mut table = Table::new(&["KEY", "VERSION", "TIME", "VALUE"]);
            table.row(vec![
                printable(key, 60),
                updated.version.to_string(),
                utc(updated.timestamp.millis()),
                printable(value, 60),
            ]);
            table.print()
        }
        Format::Json => {
            let mut object = Map::new();
            insert_bytes(&mut object, "key", key);
            object.insert("version".to_owned(), updated.version.0.into());
            insert_timestamp(&mut object, updated.timestamp);
            insert_bytes(&mut object, "value", value);
            print_json(&object.into())
        }
    }
}
