//! One lane of a stream: applies its events one after the other, each write under an id of its own.
//!
//! ```text
//!   event, line n
//!     │ keep the half, if absent      id 3n + 1 ──► CONDITION_FAILED: the event came twice ─► done
//!     ▼
//!   read the other half ──────────────────────────► not there, or younger ─────────────────► done
//!     │ older
//!     ▼
//!   result: one batch of updates      id 3n + 2 ───────────────────────────────────────────► done
//!
//!   after every 64 events: position   id 3n + 3     the lane begins here when it is started again
//! ```
//! An id follows from the line. So whoever applies the line, this process or the next one, sends the same
//! requests under the same ids; each is executed once and has one answer, which everybody gets. The way
//! through the picture is then the same too: it hangs on two versions that never change.
//!
//! That is why a write without an answer is simply sent again, here and after a restart.

use std::time::Duration;

use stateside_client::{
    Client, Error, ReadOptions, Reason, Record, RequestId, Update, Upsert, WriteOptions,
};
use tokio::time::{Instant, sleep};

use crate::join::{Event, Joined, Side, makes_the_result};

/// Events between two writes of the lane's position. Partitions remember the answers of as many.
const EVENTS_PER_POSITION: u64 = 64;
/// Ids that belong to a line.
const IDS_PER_LINE: u64 = 3;
/// Pause before a node that did not answer is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// What a lane did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    /// Events.
    pub(crate) events: u64,
    /// Among them those that came a second time.
    pub(crate) repeated: u64,
    /// Results made.
    pub(crate) results: u64,
}

/// Why a lane cannot go on: the node refuses for good, was away for too long, or a record is not this program's.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One lane of one stream.
pub(crate) struct Lane {
    client: Client,
    /// The client of the request ids, and the key of the position: the same in every run over the same
    /// stream, and nobody else's.
    name: String,
    side: Side,
    ids: bool,
    /// How long a call is repeated, whatever the node does meanwhile.
    patience: Duration,
    /// The line that a next run begins at. What is before it is never sent again.
    position: u64,
    done: Done,
}

impl Lane {
    /// Lane `number` of a stream. Without `ids` writes are sent again all the same.
    pub(crate) fn new(
        client: Client,
        side: Side,
        number: u64,
        patience: Duration,
        ids: bool,
    ) -> Self {
        let name = format!("stream-join/{}/{number}", side.as_str());
        Self { client, name, side, ids, patience, position: 0, done: Done::default() }
    }

    /// Applies the lane's events, each with its line from 0, from where an earlier run got to.
    ///
    /// # Errors
    /// See [`Failure`].
    pub(crate) async fn run(
        mut self,
        events: impl Iterator<Item = (u64, Event)>,
    ) -> Result<Done, Failure> {
        self.find_position().await?;
        let begin = self.position;
        let mut next = begin;
        for (line, event) in events.skip_while(|(line, _)| *line < begin) {
            self.apply(line, &event)
                .await
                .map_err(|error| format!("line {}: {error}", line + 1))?;
            next = line + 1;
            if self.done.events.is_multiple_of(EVENTS_PER_POSITION) {
                self.set_position(next).await?;
            }
        }
        if next > self.position {
            self.set_position(next).await?;
        }
        Ok(self.done)
    }

    async fn apply(&mut self, line: u64, event: &Event) -> Result<(), Failure> {
        self.done.events += 1;
        let client = &self.client;
        let routing_key = Some(event.customer.clone().into_bytes());
        let read = ReadOptions { routing_key: routing_key.clone(), ..ReadOptions::default() };
        let mut write = WriteOptions { routing_key, atomic: true, ..WriteOptions::default() };

        let (key, cents) = (event.half_key(self.side), event.cents.to_string());
        let half = Upsert::new(&key, &cents).if_absent();
        write.request_id = self.id(line * IDS_PER_LINE + 1);
        let own = match self.answer(|| client.upsert_one(half, &write)).await {
            Ok(written) => written.version,
            Err(error) if error.reason() == Some(Reason::ConditionFailed) => {
                // An earlier line of this lane kept it, and is done.
                self.done.repeated += 1;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };

        let key = event.half_key(self.side.other());
        let found = self.answer(|| client.get_one(&key, &read)).await?;
        let Some(other) = found.filter(|other| makes_the_result(own, other.version)) else {
            return Ok(());
        };

        let joined = Joined::new(self.side, event, number(&other)?);
        let changes = joined.updates();
        write.request_id = self.id(line * IDS_PER_LINE + 2);
        self.answer(|| async { client.update(&changes, &write).await?.all() }).await?;
        self.done.results += 1;
        Ok(())
    }

    async fn find_position(&mut self) -> Result<(), Failure> {
        let read = ReadOptions::default();
        let found = self.answer(|| self.client.get_one(&self.name, &read)).await?;
        self.position = found.map_or(Ok(0), |record| number(&record))?.try_into()?;
        Ok(())
    }

    /// A position only rises, also when a write of an earlier run is still on its way.
    async fn set_position(&mut self, line: u64) -> Result<(), Failure> {
        let rise = Update::max(&self.name, line.try_into()?);
        let request_id = self.id(line * IDS_PER_LINE);
        let write = WriteOptions { request_id, ..WriteOptions::default() };
        self.answer(|| self.client.update_one(rise, &write)).await?;
        self.position = line;
        Ok(())
    }

    /// The id with this number. What a next run may send again is not settled.
    fn id(&self, number: u64) -> Option<RequestId> {
        let settled = self.position * IDS_PER_LINE + 1;
        self.ids.then(|| RequestId { client: self.name.clone().into_bytes(), number, settled })
    }

    /// The answer to a call, which is repeated until there is one.
    async fn answer<T, F>(&self, call: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let until = Instant::now() + self.patience;
        loop {
            let error = match call().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let pause = match &error {
                Error::Refused(refused) => match (refused.retry_after, refused.reason) {
                    (Some(pause), _) => pause,
                    // Another node has the partition, or none yet.
                    (None, Some(Reason::BadNode)) => PAUSE,
                    (None, _) => return Err(error),
                },
                Error::Protocol { .. } | Error::InvalidEndpoint { .. } => return Err(error),
                Error::Unreachable { .. }
                | Error::OutcomeUnknown { .. }
                | Error::DeadlineExceeded { .. }
                | Error::ConnectionLost { .. } => PAUSE,
            };
            if Instant::now() + pause >= until {
                return Err(error);
            }
            sleep(pause).await;
        }
    }
}

/// A record of this program.
fn number(record: &Record) -> Result<i64, Failure> {
    Ok(std::str::from_utf8(&record.value)?.parse()?)
}
