//! `stateside partition`: one file per verb.

mod add;
mod change_store;
mod list;
mod remove;
mod restore;
mod snapshot;

use std::{
    io::{BufRead, IsTerminal, Write},
    path::{Path, PathBuf},
};

use clap::Subcommand;
use serde_json::{Value, json};
use stateside_client::{ControlClient, Endpoint, v1};
use stateside_types::HashRange;

use super::{
    failure::Failure,
    output::{Format, Table, bytes_text, utc},
};
use crate::exit::Exit;

/// List, add, remove, snapshot or restore partitions, or change their store.
#[derive(Debug, Subcommand)]
pub(super) enum PartitionVerb {
    List(list::ListArgs),
    Add(add::AddArgs),
    Remove(remove::RemoveArgs),
    Snapshot(snapshot::SnapshotArgs),
    Restore(restore::RestoreArgs),
    ChangeStore(change_store::ChangeStoreArgs),
}

pub(super) async fn run(verb: PartitionVerb, format: Format) -> Result<Exit, Failure> {
    match verb {
        PartitionVerb::List(args) => list::run(args, format).await,
        PartitionVerb::Add(args) => add::run(args, format).await,
        PartitionVerb::Remove(args) => remove::run(args, format).await,
        PartitionVerb::Snapshot(args) => snapshot::run(args, format).await,
        PartitionVerb::Restore(args) => restore::run(args, format).await,
        PartitionVerb::ChangeStore(args) => change_store::run(args, format).await,
    }
}

/// Partitions as a table, or as `{"partitions": [...]}`.
fn print_partitions(partitions: &[v1::Partition], format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => {
            let partitions: Vec<_> = partitions.iter().map(partition_json).collect();
            super::output::print_json(&json!({ "partitions": partitions }))
        }
        Format::Table => {
            let mut table = Table::new(&[
                "ID", "RANGE", "STATE", "CORE", "STORE", "ACK", "RECORDS", "PAYLOAD", "MEMORY",
                "SEQUENCE", "DURABLE", "SNAPSHOT",
            ]);
            for partition in partitions {
                table.row(vec![
                    partition.id.to_string(),
                    range_text(partition),
                    state_text(partition),
                    partition.core.to_string(),
                    partition.store.clone(),
                    ack_text(partition.ack).to_owned(),
                    partition.records.to_string(),
                    bytes_text(partition.payload_bytes),
                    bytes_text(partition.memory_bytes),
                    partition.sequence.to_string(),
                    partition.durable_sequence.to_string(),
                    utc(partition.snapshot_unix_ms),
                ]);
            }
            table.print()?;
            for partition in partitions.iter().filter(|partition| !partition.detail.is_empty()) {
                eprintln!("partition {}: {}", partition.id, partition.detail);
            }
            Ok(())
        }
    }
}

fn partition_json(partition: &v1::Partition) -> Value {
    let range = partition.range.unwrap_or_default();
    json!({
        "id": partition.id,
        "range": range_text(partition),
        // 64-bit numbers as text: most readers of JSON keep 53 bits of a number.
        "range_start": format!("{:#018x}", range.start),
        "range_end": format!("{:#018x}", range.end),
        "epoch": partition.epoch,
        "state": state_text(partition),
        "core": partition.core,
        "store": partition.store,
        "ack": ack_text(partition.ack),
        "records": partition.records,
        "payload_bytes": partition.payload_bytes,
        "memory_bytes": partition.memory_bytes,
        "sequence": partition.sequence,
        "durable_sequence": partition.durable_sequence,
        "snapshot_sequence": partition.snapshot_sequence,
        "snapshot_unix_ms": partition.snapshot_unix_ms,
        "detail": partition.detail,
        "stages": partition.stages,
        "store_change": partition.store_change.as_ref().map(|change| json!({
            "store": change.store,
            "phase": change.phase,
            "records": change.records,
            "records_total": change.records_total,
            "waiting_bytes": change.waiting_bytes,
        })),
        "request_ids": partition.request_ids.map(request_ids_json),
        "kafka": partition.kafka.map(|kafka| json!({
            "epoch": kafka.epoch,
            "offset": kafka.offset,
            "lag": kafka.lag,
        })),
    })
}

pub(super) fn request_ids_json(ids: v1::RequestIds) -> Value {
    json!({
        "answers": ids.answers,
        "clients": ids.clients,
        "oldest_unix_ms": ids.oldest_unix_ms,
        "retries_answered": ids.retries_answered,
    })
}

fn range_text(partition: &v1::Partition) -> String {
    let range = partition.range.unwrap_or_default();
    HashRange::try_from(range)
        .map_or_else(|_| format!("{:#x}..{:#x}", range.start, range.end), |range| range.to_string())
}

fn state_text(partition: &v1::Partition) -> String {
    let name = partition.state().as_str_name();
    name.strip_prefix("PARTITION_STATE_").unwrap_or(name).to_lowercase()
}

fn ack_text(ack: i32) -> &'static str {
    match v1::Ack::try_from(ack) {
        Ok(v1::Ack::Memory) => "memory",
        Ok(v1::Ack::Durable) => "durable",
        Ok(v1::Ack::Default) => "default",
        Err(_) => "unknown",
    }
}

/// `7 (0x…..0x…) with 1234 records, 5.0 MiB`
fn describe(partition: &v1::Partition) -> String {
    let size = bytes_text(partition.payload_bytes);
    format!(
        "{} ({}) with {} records, {size}",
        partition.id,
        range_text(partition),
        partition.records
    )
}

/// The partition that a verb is about, as the node has it now.
async fn find(
    client: &ControlClient,
    matches: impl Fn(&v1::Partition) -> bool,
) -> Result<Option<v1::Partition>, Failure> {
    Ok(client.list_partitions().await?.into_iter().find(matches))
}

/// Asks a person before records are lost. Without a terminal, and without `--yes`, the answer is
/// no: the node then refuses with `CONFIRMATION_REQUIRED` if there are records to lose.
fn confirmed(yes: bool, what: &str) -> Result<bool, Failure> {
    if yes {
        return Ok(true);
    }
    let (stdin, mut stderr) = (std::io::stdin(), std::io::stderr());
    if !stdin.is_terminal() || !stderr.is_terminal() {
        eprintln!("{what}; nothing is confirmed without --yes");
        return Ok(false);
    }
    drop(write!(stderr, "{what}. Type yes to go on: "));
    let mut answer = String::new();
    let read = stdin.lock().read_line(&mut answer);
    if read.is_ok() && answer.trim() == "yes" {
        return Ok(true);
    }
    Err(Failure::new(Exit::Refused, "not confirmed; nothing was changed"))
}

/// A path on the node. A relative one means the directory that the command runs in, which only
/// makes sense on the same machine.
fn path_on_node(path: &Path, endpoint: &str) -> Result<String, Failure> {
    let absolute: PathBuf = if path.is_absolute() {
        path.to_owned()
    } else if endpoint.parse::<Endpoint>()?.is_local() {
        std::path::absolute(path).map_err(|error| {
            Failure::new(Exit::Failure, format!("cannot make {} absolute: {error}", path.display()))
        })?
    } else {
        let message = format!("{} is relative: give an absolute path on the node", path.display());
        return Err(Failure::new(Exit::Usage, message));
    };
    absolute.into_os_string().into_string().map_err(|path| {
        let message = format!("{} is not UTF-8, which the control plane needs", path.display());
        Failure::new(Exit::Usage, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_path_is_only_taken_on_the_same_machine() {
        let here = path_on_node(Path::new("a.snapshot"), "127.0.0.1:7401").unwrap();
        assert!(here.starts_with('/') && here.ends_with("/a.snapshot"));
        let there = path_on_node(Path::new("a.snapshot"), "10.0.0.9:7401").unwrap_err();
        assert!(there.message().contains("relative"));
        assert_eq!(path_on_node(Path::new("/x/a"), "10.0.0.9:7401").unwrap(), "/x/a");
    }

    #[test]
    fn a_partition_is_described_in_words() {
        let partition = v1::Partition {
            id: 7,
            range: Some(v1::HashRange { start: 0, end: 16 }),
            state: v1::PartitionState::Primary as i32,
            records: 3,
            payload_bytes: 2_048,
            ..Default::default()
        };
        assert_eq!(
            describe(&partition),
            "7 (0x0000000000000000..0x0000000000000010) with 3 records, 2.0 KiB"
        );
        assert_eq!(partition_json(&partition)["state"], "primary");
    }
}
