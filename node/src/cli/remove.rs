//! `stateside remove`.

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use clap::Args;
use stateside_client::{Removal, Sequence};

use super::{
    connection::{DataArgs, TimeoutArgs},
    failure::Failure,
    output::Format,
    upsert::print_written,
    write::WriteArgs,
};
use crate::exit::Exit;

/// Delete records.
///
/// Deleting what is absent succeeds. Keys of one partition are deleted together or not at all;
/// partitions succeed and fail on their own.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  stateside remove user/1 user/2
  stateside remove lock/backup --if-version 17")]
pub(super) struct RemoveArgs {
    /// Keys.
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<OsString>,
    /// Delete only if the record has exactly this version; with one key.
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    timeout: TimeoutArgs,
}

pub(super) async fn run(args: RemoveArgs, format: Format) -> Result<Exit, Failure> {
    if args.if_version.is_some() && args.keys.len() > 1 {
        return Err(Failure::new(
            Exit::Usage,
            "--if-version takes one key: versions differ by key",
        ));
    }
    let keys: Vec<Vec<u8>> = args.keys.into_iter().map(OsString::into_vec).collect();
    let if_version = args.if_version.map(Sequence);
    let entries: Vec<Removal<'_>> = keys.iter().map(|key| Removal { key, if_version }).collect();
    let (options, session) = args.write.open()?;
    let client = args.data.connect(&args.timeout).await?;
    let results = client.remove(&entries, &options).await?;
    session.save(options.session.as_ref())?;
    // What was deleted is printed also when something else failed.
    let (mut written, mut failure) = (Vec::new(), None);
    for (key, result) in keys.iter().zip(results) {
        match result {
            Ok(deleted) => written.push((key.as_slice(), deleted)),
            Err(error) => {
                failure.get_or_insert_with(|| Failure::from(error));
            }
        }
    }
    if failure.is_none() || !written.is_empty() {
        print_written(&written, keys.len() == 1, format)?;
    }
    match failure {
        None => Ok(Exit::Done),
        Some(failure) if written.is_empty() => Err(failure),
        Some(failure) => Err(failure.hint("the keys printed were deleted")),
    }
}
