//! `stateside status`.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use stateside_client::v1;

use super::{
    connection::{ControlArgs, TimeoutArgs},
    failure::Failure,
    output::{Format, Table, bytes_text, print_bytes, print_json},
};
use crate::exit::Exit;

/// Show how a node is doing: cores, log, partitions, memory, what it could not carry out.
#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    control: ControlArgs,
    #[command(flatten)]
    timeout: TimeoutArgs,
}

pub(super) async fn run(args: StatusArgs, format: Format) -> Result<Exit, Failure> {
    let client = args.control.connect(args.timeout.timeout).await?;
    let status = client.status().await?;
    match format {
        Format::Json => print_status_json(&status)?,
        Format::Table => print_status(&status)?,
    }
    Ok(Exit::Done)
}

fn print_status(status: &v1::StatusResponse) -> Result<(), Failure> {
    let mut partitions: Vec<_> =
        status.partitions.iter().map(|(state, count)| format!("{count} {state}")).collect();
    partitions.sort_unstable();
    let memory = match status.memory_limit_bytes {
        0 => bytes_text(status.memory_bytes),
        limit => format!("{} of {}", bytes_text(status.memory_bytes), bytes_text(limit)),
    };
    let mut lines = vec![
        ("node", format!("{}, stateside {}", status.node_id, status.version)),
        ("state", status.state.clone()),
        ("up", uptime(status.uptime_ms)),
        ("data", status.data_address.clone()),
        ("control", status.control_address.clone()),
        ("metrics", status.metrics_address.clone()),
        ("directory", status.data_dir.clone()),
        ("registry", status.registry.clone()),
        ("partitions", partitions.join(", ")),
        ("records", status.records.to_string()),
        ("memory", memory),
        ("resident", bytes_text(status.resident_bytes)),
    ];
    if let Some(ids) = status.request_ids.filter(|ids| ids.clients > 0) {
        let (answers, clients, retries) = (ids.answers, ids.clients, ids.retries_answered);
        let text = format!("{answers} answers of {clients} clients, {retries} retries answered");
        lines.push(("request ids", text));
    }
    if status.state == "recovering" && status.recovery_bytes_total > 0 {
        let (read, total) = (status.recovery_bytes_read, status.recovery_bytes_total);
        lines.insert(2, ("recovery", format!("{} of {}", bytes_text(read), bytes_text(total))));
    }
    let text: String = lines.iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect();
    print_bytes(format!("{text}\n").as_bytes())?;

    let mut table = Table::new(&[
        "CORE",
        "ADDRESS",
        "PARTITIONS",
        "CONNECTIONS",
        "REQUESTS",
        "LOG",
        "SEGMENTS",
        "MODE",
        "PROBLEM",
    ]);
    for core in &status.cores {
        table.row(vec![
            core.core.to_string(),
            core.address.clone(),
            core.partitions.to_string(),
            core.connections.to_string(),
            core.requests.to_string(),
            bytes_text(core.log_bytes),
            core.log_segments.to_string(),
            core.log_mode.clone(),
            core.log_problem.clone(),
        ]);
    }
    table.print()?;
    for change in &status.pending_changes {
        print_bytes(format!("\npending: {change}\n").as_bytes())?;
    }
    Ok(())
}

fn print_status_json(status: &v1::StatusResponse) -> Result<(), Failure> {
    let core = |core: &v1::CoreStatus| {
        json!({
            "core": core.core,
            "address": core.address,
            "partitions": core.partitions,
            "connections": core.connections,
            "requests": core.requests,
            "log_bytes": core.log_bytes,
            "log_segments": core.log_segments,
            "log_problem": core.log_problem,
            "log_mode": core.log_mode,
        })
    };
    print_json(&json!({
        "node_id": status.node_id,
        "version": status.version,
        "state": status.state,
        "uptime_ms": status.uptime_ms,
        "data_address": status.data_address,
        "control_address": status.control_address,
        "metrics_address": status.metrics_address,
        "data_dir": status.data_dir,
        "registry": status.registry,
        "cores": status.cores.iter().map(core).collect::<Vec<_>>(),
        "partitions": status.partitions,
        "records": status.records,
        "memory_bytes": status.memory_bytes,
        "memory_limit_bytes": status.memory_limit_bytes,
        "resident_bytes": status.resident_bytes,
        "request_ids": status.request_ids.map(super::partition::request_ids_json),
        "pending_changes": status.pending_changes,
        "recovery_bytes_read": status.recovery_bytes_read,
        "recovery_bytes_total": status.recovery_bytes_total,
    }))
}

/// `1d 2h 3m 4s`, without leading zeros.
fn uptime(ms: u64) -> String {
    let seconds = Duration::from_millis(ms).as_secs();
    let parts = [(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')];
    let mut rest = seconds;
    let mut text = String::new();
    for (size, name) in parts {
        let amount = rest / size;
        rest %= size;
        if amount > 0 || !text.is_empty() || size == 1 {
            text += &format!("{amount}{name} ");
        }
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptimes_read_well() {
        assert_eq!(uptime(999), "0s");
        assert_eq!(uptime(61_000), "1m 1s");
        assert_eq!(uptime(90_061_000), "1d 1h 1m 1s");
        assert_eq!(uptime(86_400_000), "1d 0h 0m 0s");
    }
}
