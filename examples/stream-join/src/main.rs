//! Joins two streams, orders and payments, on the order's id: each pair gives one result, exactly once,
//! whatever is killed when. See README.md.
//!
//! ```text
//!   orders.ndjson ───┬─► lane 0 ─┐
//!                    └─► lane 1 ─┤   keep, read, write the result; each write under an id
//!                                ├──────────────────────────────────────────────────────► Stateside
//!   payments.ndjson ─┬─► lane 0 ─┤
//!                    └─► lane 1 ─┘   a customer's events of a stream are one lane's, in order
//! ```

mod join;
mod lane;

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use join::{Event, Side};
use lane::{Done, Lane};
use stateside_client::{Client, Error, Options};
use tokio::time::{Instant, sleep};

/// Events of a stream under way at a time. Part of what is stored: with another number a lane would have
/// other lines under its name.
const LANES: u64 = 4;

/// Joins orders and payments, exactly once.
#[derive(Debug, Parser)]
struct Arguments {
    /// The node's data plane.
    #[arg(long, default_value = "127.0.0.1:7400", env = "STATESIDE_ENDPOINT")]
    endpoint: String,
    /// Orders, a JSON object a line: {"customer": "c", "order": "7", "cents": 100}.
    #[arg(long)]
    orders: PathBuf,
    /// Payments, likewise.
    #[arg(long)]
    payments: PathBuf,
    /// How long one call may take, the node's restarts included, seconds.
    #[arg(long, default_value_t = 120)]
    patience_s: u64,
    /// Write without request ids, and repeat writes all the same: to see what is lost and counted twice
    /// when something is killed.
    #[arg(long)]
    no_request_ids: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("stream-join: {problem}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), String> {
    let patience = Duration::from_secs(arguments.patience_s);
    let client = connect(&arguments.endpoint, patience).await?;
    let mut lanes = Vec::new();
    for (side, path) in [(Side::Orders, &arguments.orders), (Side::Payments, &arguments.payments)] {
        let events: Arc<[Event]> = read(path)?.into();
        for number in 0..LANES {
            let ids = !arguments.no_request_ids;
            let lane = Lane::new(client.clone(), side, number, patience, ids);
            let events = Arc::clone(&events);
            let task = tokio::spawn(async move {
                let lines = (0..).zip(events.iter().cloned());
                lane.run(lines.filter(|(_, event)| lane_of(event) == number)).await
            });
            lanes.push((side, number, task));
        }
    }
    let mut sum = Done::default();
    for (side, number, task) in lanes {
        let ended = task.await.map_err(|error| error.to_string())?;
        let done = ended.map_err(|error| format!("{}, lane {number}: {error}", side.as_str()))?;
        sum.events += done.events;
        sum.repeated += done.repeated;
        sum.results += done.results;
    }
    println!(
        "events: {}, that came before: {}; results: {}",
        sum.events, sum.repeated, sum.results
    );
    Ok(())
}

/// The node may be starting.
async fn connect(endpoint: &str, patience: Duration) -> Result<Client, String> {
    let until = Instant::now() + patience;
    loop {
        match Client::connect(endpoint, Options::default()).await {
            Ok(client) => return Ok(client),
            Err(error @ (Error::InvalidEndpoint { .. } | Error::Protocol { .. })) => {
                return Err(error.to_string());
            }
            Err(error) if Instant::now() >= until => return Err(error.to_string()),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

fn read(path: &Path) -> Result<Vec<Event>, String> {
    let shown = path.display();
    let file = File::open(path).map_err(|error| format!("{shown}: {error}"))?;
    let parsed = BufReader::new(file).lines().zip(1..).map(|(line, number)| {
        let line = line.map_err(|error| format!("{shown}: {error}"))?;
        serde_json::from_str(&line).map_err(|error| format!("{shown}:{number}: {error}"))
    });
    parsed.collect()
}

/// A customer's events of a stream are one lane's, in order. FNV-1a: the same in every run and build, which
/// the standard library's hash does not promise.
fn lane_of(event: &Event) -> u64 {
    let hash = event.customer.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash % LANES
}
