//! One lane of a stream: reads what an event needs, writes what it does, and goes on until it knows that
//! it is done.
//!
//! ```text
//!   event ─► read ─► nothing to do ──────────────────────────────► done
//!             ▲        └─► write ─► written ─────────────────────► done
//!             │              ├─► somebody was faster: CONDITION_FAILED ┐
//!             │              ├─► outcome unknown: nobody can say ──────┤
//!             └──────────────┴─► not now: node away, starting, … ◄─────┘ (after a pause)
//! ```
//! There is one way back, to the read, because it settles all of them: who reads sees whether the write
//! took effect. One that is still on its way cannot take effect later beside another: both depend on
//! the same versions.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use stateside_client::{Client, Error, ReadOptions, Reason, Upsert, WriteOptions};
use tokio::time::{Instant, sleep};

use crate::join::{Event, Pair, Seen, Side, Total, apply, keys};

/// Events between two writes of the lane's position.
const EVENTS_PER_COMMIT: u64 = 64;
/// Pause before a node that did not answer is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// The record of a lane's position: where it begins when the program is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// The stream's line that comes next.
    pub(crate) line: u64,
    /// How often this record was written.
    pub(crate) commits: u64,
}

/// What a lane did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    /// Events whose batch this run wrote.
    pub(crate) applied: u64,
    /// Events that had been applied before.
    pub(crate) seen_before: u64,
    /// Reads and writes that were tried again.
    pub(crate) retries: u64,
}

/// Reads and writes for one lane of one stream. Whoever has the lane is alone with it.
pub(crate) struct Worker {
    client: Client,
    side: Side,
    lane: u64,
    /// How long an event may take, whatever the node does meanwhile.
    patience: Duration,
    done: Done,
}

impl Worker {
    /// For this lane.
    pub(crate) fn new(client: Client, side: Side, lane: u64, patience: Duration) -> Self {
        Self { client, side, lane, patience, done: Done::default() }
    }

    /// Applies the lane's events, from where an earlier run got to; `lines` is how many the stream has.
    ///
    /// # Errors
    /// A sentence: the node refuses for good, or was away for too long.
    pub(crate) async fn run(
        mut self,
        events: impl Iterator<Item = (u64, Event)>,
        lines: u64,
    ) -> Result<Done, String> {
        let mut position = self.settled(None).await?;
        let (begin, mut since) = (position.line, 0);
        for (line, event) in events.skip_while(|(line, _)| *line < begin) {
            self.event(&event).await.map_err(|error| format!("line {}: {error}", line + 1))?;
            since += 1;
            if since == EVENTS_PER_COMMIT {
                since = 0;
                position = self.settled(Some(line + 1)).await?;
            }
        }
        if position.line < lines {
            self.settled(Some(lines)).await?;
        }
        Ok(self.done)
    }

    /// Applies one event, once.
    async fn event(&mut self, event: &Event) -> Result<(), String> {
        let until = Instant::now() + self.patience;
        let routing_key = Some(event.customer.clone().into_bytes());
        let read = ReadOptions { routing_key: routing_key.clone(), ..ReadOptions::default() };
        let write = WriteOptions { routing_key, atomic: true, ..WriteOptions::default() };
        loop {
            let found = match self.client.get(&keys(event), &read).await {
                Ok(results) => results.all(),
                Err(error) => Err(error),
            };
            let records = match found {
                Ok(records) => records,
                Err(error) => {
                    self.again(&error, until).await?;
                    continue;
                }
            };
            let unreadable = |error| format!("a record is not this program's: {error}");
            let pair = Seen::<Pair>::of(records[0].as_ref()).map_err(unreadable)?;
            let total = Seen::<Total>::of(records[1].as_ref()).map_err(unreadable)?;
            let changes = apply(self.side, event, pair, total);
            if changes.is_empty() {
                self.done.seen_before += 1;
                return Ok(());
            }
            let entries: Vec<_> = changes.iter().map(|change| change.entry()).collect();
            let written = match self.client.upsert(&entries, &write).await {
                Ok(results) => results.all().map(drop),
                Err(error) => Err(error),
            };
            match written {
                Ok(()) => {
                    self.done.applied += 1;
                    return Ok(());
                }
                Err(error) => self.again(&error, until).await?,
            }
        }
    }

    /// The lane's position; with `line`, once it is that.
    async fn settled(&mut self, line: Option<u64>) -> Result<Position, String> {
        let until = Instant::now() + self.patience;
        let key = format!("position/{}/{}", self.side.as_str(), self.lane);
        loop {
            let record = match self.client.get_one(&key, &ReadOptions::default()).await {
                Ok(record) => record,
                Err(error) => {
                    self.again(&error, until).await?;
                    continue;
                }
            };
            let position = match &record {
                None => Position::default(),
                Some(record) => serde_json::from_slice(&record.value)
                    .map_err(|error| format!("{key} is not this program's: {error}"))?,
            };
            let Some(line) = line.filter(|line| position.line != *line) else {
                return Ok(position);
            };
            let next = Position { line, commits: position.commits + 1 };
            let value = serde_json::to_vec(&next).expect("a struct of numbers is JSON");
            let entry = Upsert::new(&key, &value);
            let entry = match &record {
                Some(record) => entry.if_version(record.version),
                None => entry.if_absent(),
            };
            match self.client.upsert_one(entry, &WriteOptions::default()).await {
                Ok(_) => return Ok(next),
                Err(error) => self.again(&error, until).await?,
            }
        }
    }

    /// Waits for as long as it takes until it makes sense to read again.
    async fn again(&mut self, error: &Error, until: Instant) -> Result<(), String> {
        let pause = match error {
            Error::Refused(refused) if refused.reason == Some(Reason::ConditionFailed) => {
                Duration::ZERO
            }
            Error::Refused(refused) => match (refused.reason, refused.retry_after) {
                (_, Some(pause)) => pause,
                // Another node has the partition, or none yet.
                (Some(Reason::BadNode), None) => PAUSE,
                (_, None) => return Err(error.to_string()),
            },
            Error::Unreachable { .. }
            | Error::OutcomeUnknown { .. }
            | Error::DeadlineExceeded { .. }
            | Error::ConnectionLost { .. } => PAUSE,
            Error::Protocol { .. } | Error::InvalidEndpoint { .. } => {
                return Err(error.to_string());
            }
        };
        if Instant::now() + pause >= until {
            return Err(format!("gave up after {:?}: {error}", self.patience));
        }
        self.done.retries += 1;
        sleep(pause).await;
        Ok(())
    }
}
