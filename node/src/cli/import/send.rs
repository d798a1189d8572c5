//! The sending half of an import: chunks into lanes, batches to the node, low water to the checkpoint.

use std::{path::PathBuf, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use stateside_client::{Ack, Client, Error, Results, Topology, Upsert, WriteOptions, Written};
use stateside_router::key_hash;
use stateside_types::{KeyHash, limits::IMPORT_LANES_MAX};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc::Receiver,
};

use super::{
    OnError, Tally,
    checkpoint::Checkpoint,
    lanes::{Batch, BatchLimits, Lanes},
    progress::Progress,
    reader::{BadRow, Chunk, Parsed},
    rows::{InputError, Position},
};
use crate::cli::failure::Failure;

/// Partial batches are sent, the checkpoint is written and progress is shown this often.
const TICK: Duration = Duration::from_millis(500);
/// Lanes without a topology to follow.
const LANES_UNROUTED: usize = 16;

/// Why an import ended before its input did.
#[derive(Debug)]
pub(super) enum Stop {
    /// A record had an error and the import was to stop then.
    BadRecord { line: u64, message: String },
    /// More errors than were to be tolerated.
    TooManyErrors,
    /// The input cannot be read further.
    Input(InputError),
    /// A batch failed for a reason that the next one would meet too.
    Failed(Error),
    /// The checkpoint cannot be written.
    Checkpoint(String),
    /// SIGINT or SIGTERM.
    Interrupted,
}

/// What sending needs besides the chunks.
pub(super) struct Sending {
    pub(super) client: Client,
    pub(super) ack: Option<Ack>,
    /// How long the records exist.
    pub(super) ttl: Option<Duration>,
    pub(super) on_error: OnError,
    pub(super) errors_max: Option<u64>,
    pub(super) batch: BatchLimits,
    pub(super) checkpoint: Option<(PathBuf, Checkpoint)>,
    pub(super) from: Position,
    pub(super) progress: Progress,
}

/// Counts and state of an import under way.
struct Import {
    sending: Sending,
    lanes: Lanes,
    tally: Tally,
    stop: Option<Stop>,
    /// No more chunks are taken.
    read_all: bool,
    /// Nothing more is sent: the node refuses, or somebody wants to go.
    frozen: bool,
}

/// Sends everything; returns when nothing is under way any more.
pub(super) async fn run(
    sending: Sending,
    mut chunks: Receiver<Chunk>,
) -> Result<(Tally, Option<Stop>), Failure> {
    let client = sending.client.clone();
    let options = WriteOptions { ack: sending.ack, ..WriteOptions::default() };
    let topology = client.topology();
    let lane_count = topology.as_ref().map_or(LANES_UNROUTED, |topology| topology.routes().len());
    let mut import = Import {
        lanes: Lanes::new(lane_count.clamp(1, IMPORT_LANES_MAX), sending.batch, sending.from),
        tally: Tally::default(),
        stop: None,
        read_all: false,
        frozen: false,
        sending,
    };
    let listen = |kind| {
        signal(kind).map_err(|error| {
            Failure::new(crate::exit::Exit::Failure, format!("cannot listen for signals: {error}"))
        })
    };
    let (mut interrupt, mut terminate) =
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut under_way = FuturesUnordered::new();
    let mut partial = false;
    loop {
        if !import.frozen {
            for lane in 0..import.lanes.count() {
                if let Some(batch) = import.lanes.take(lane, partial || import.read_all) {
                    under_way.push(send(&client, &options, import.sending.ttl, batch));
                }
            }
        }
        partial = false;
        if under_way.is_empty() && import.read_all && (import.frozen || import.lanes.is_empty()) {
            break;
        }
        tokio::select! {
            Some((batch, result)) = under_way.next(), if !under_way.is_empty() => {
                import.arrived(batch, result);
            }
            chunk = chunks.recv(), if !import.read_all && !import.lanes.is_full() => match chunk {
                Some(chunk) => import.take_chunk(chunk, topology.as_deref()),
                None => import.read_all = true,
            },
            _ = tick.tick() => {
                partial = true;
                import.tick();
            }
            _ = interrupt.recv() => if import.interrupted() { break },
            _ = terminate.recv() => if import.interrupted() { break },
        }
    }
    import.store_checkpoint();
    import.sending.progress.finish();
    Ok((import.tally, import.stop))
}

async fn send(
    client: &Client,
    options: &WriteOptions,
    ttl: Option<Duration>,
    batch: Batch,
) -> (Batch, Result<Results<Written>, Error>) {
    let result = {
        let entries: Vec<Upsert<'_>> = batch
            .entries
            .iter()
            .map(|entry| Upsert { ttl, ..Upsert::new(&entry.key, &entry.value) })
            .collect();
        client.upsert(&entries, options).await
    };
    (batch, result)
}

/// The lane of a key: its partition's, so that a batch is one request; folded when there are more partitions
/// than lanes. Fixed for the whole import, also when partitions change meanwhile: what matters is
/// that a key stays in its lane.
fn lane_of(hash: KeyHash, topology: Option<&Topology>, lanes: usize) -> usize {
    let even = || ((u128::from(hash.0) * lanes as u128) >> 64) as usize;
    match topology {
        None => even(),
        Some(topology) => topology.find_index(hash).map_or_else(even, |index| index % lanes),
    }
}

impl Import {
    fn take_chunk(&mut self, chunk: Chunk, topology: Option<&Topology>) {
        for row in chunk.rows {
            self.tally.records += 1;
            match row {
                Parsed::Entry(entry) => {
                    let lane = lane_of(key_hash(&entry.key), topology, self.lanes.count());
                    self.lanes.push(lane, entry);
                }
                Parsed::Bad(BadRow { line, message, before }) => {
                    if !self.bad_record(line, &message) {
                        // What is before it is still sent; the checkpoint stands in front of it.
                        self.lanes.read_to(before);
                        self.read_all = true;
                        return;
                    }
                }
            }
        }
        self.lanes.read_to(chunk.end);
        if let Some(error) = chunk.broken {
            self.stop(Stop::Input(error));
            self.read_all = true;
        }
    }

    /// Counts a record that cannot be imported; false when the import ends with it.
    fn bad_record(&mut self, line: u64, message: &str) -> bool {
        self.tally.errors += 1;
        if self.sending.on_error == OnError::Stop {
            self.stop(Stop::BadRecord { line, message: message.to_owned() });
            return false;
        }
        self.sending.progress.bad_record(line, message);
        if self.sending.errors_max.is_some_and(|max| self.tally.errors > max) {
            self.stop(Stop::TooManyErrors);
            return false;
        }
        true
    }

    fn arrived(&mut self, batch: Batch, result: Result<Results<Written>, Error>) {
        let results = match result {
            Ok(results) => results,
            Err(error) => return self.failed(error),
        };
        let mut failure = None;
        for (entry, result) in batch.entries.iter().zip(results) {
            match result {
                Ok(_) => {
                    self.tally.imported += 1;
                    self.tally.payload_bytes += (entry.key.len() + entry.value.len()) as u64;
                }
                // The record itself is at fault: the next ones may be fine.
                Err(Error::Refused(refused))
                    if refused.is_invalid_argument() && self.sending.on_error == OnError::Skip =>
                {
                    if !self.bad_record(entry.line, &refused.to_string()) {
                        self.freeze();
                    }
                }
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            // The batch stays under way for the checkpoint: it has not arrived.
            Some(error) => self.failed(error),
            None => {
                self.tally.replaced += batch.replaced;
                self.lanes.arrived(batch.lane);
            }
        }
    }

    fn failed(&mut self, error: Error) {
        self.stop(Stop::Failed(error));
        self.freeze();
    }

    fn freeze(&mut self) {
        self.frozen = true;
        self.read_all = true;
    }

    /// True when this is the second time.
    fn interrupted(&mut self) -> bool {
        let again = self.frozen;
        self.stop(Stop::Interrupted);
        self.freeze();
        if !again {
            self.sending
                .progress
                .say("stopping: waiting for what is under way (once more to stop at once)");
        }
        again
    }

    /// The first reason is the one that counts.
    fn stop(&mut self, stop: Stop) {
        self.stop.get_or_insert(stop);
    }

    fn tick(&mut self) {
        let read_to = self.lanes.low_water().offset;
        self.sending.progress.update(read_to, self.tally.imported, self.tally.errors);
        self.store_checkpoint();
    }

    fn store_checkpoint(&mut self) {
        let low_water = self.lanes.low_water();
        let Some((path, checkpoint)) = &mut self.sending.checkpoint else { return };
        if checkpoint.position == low_water {
            return;
        }
        checkpoint.position = low_water;
        if let Err(message) = checkpoint.store(path) {
            // Going on without it would promise a resume that cannot be kept.
            self.stop(Stop::Checkpoint(message));
            self.freeze();
        }
    }
}
