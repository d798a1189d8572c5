//! Joins two streams, orders and payments, on the order's id: each pair gives one result, exactly once,
//! whatever is killed when. See README.md.
//!
//! ```text
//!   orders.ndjson ───┬─► lane 0 ─┐
//!                    └─► lane 1 ─┤   read, then write, under the customer as routing key
//!                                ├──────────────────────────────────────────────────────► Stateside
//!   payments.ndjson ─┬─► lane 0 ─┤
//!                    └─► lane 1 ─┘   a customer's events of a stream are one lane's, in order
//! ```

mod join;
mod worker;

use std::{
    fs::File,
    hash::{DefaultHasher, Hash, Hasher},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use join::{Event, Side};
use stateside_client::{Client, Error, Options};
use tokio::time::{Instant, sleep};
use worker::{Done, Worker};

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
    /// Events of a stream under way at a time. Every run over the same streams needs the same.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=256))]
    lanes: u64,
    /// How long one event may take, the node's restarts included, seconds.
    #[arg(long, default_value_t = 120)]
    patience_s: u64,
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
        for lane in 0..arguments.lanes {
            let (events, count) = (Arc::clone(&events), arguments.lanes);
            let worker = Worker::new(client.clone(), side, lane, patience);
            let task = tokio::spawn(async move {
                let lines = events.len() as u64;
                let own = (0..).zip(events.iter().cloned());
                worker.run(own.filter(|(_, event)| lane_of(event, count) == lane), lines).await
            });
            lanes.push((side, lane, task));
        }
    }
    let mut sum = Done::default();
    for (side, lane, task) in lanes {
        let ended = task.await.map_err(|error| error.to_string())?;
        let done = ended.map_err(|error| format!("{}, lane {lane}: {error}", side.as_str()))?;
        sum.applied += done.applied;
        sum.seen_before += done.seen_before;
        sum.retries += done.retries;
    }
    println!(
        "{} events applied, {} seen before, {} retries",
        sum.applied, sum.seen_before, sum.retries
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

/// A customer's events stay in order, so they are one lane's. Any hash will do that is the same in every
/// run of this program.
fn lane_of(event: &Event, lanes: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    event.customer.hash(&mut hasher);
    hasher.finish() % lanes
}
