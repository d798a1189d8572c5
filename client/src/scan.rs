//! Scans: the records of one partition in the order of their keys, page by page.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use stateside_proto::v1;
use stateside_router::key_hash;
use stateside_types::{ExpireAt, PartitionId, Sequence, Timestamp};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    Client, Error, Record, Session,
    client::{Call, Shared},
    error::Effect,
    plan::Target,
    retry::{Verdict, decide},
};

const PATH: &str = "/stateside.v1.DataPlane/Scan";

/// Whose records a scan reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanPlace {
    /// Of the partition that this routing key belongs to.
    RoutingKey(Vec<u8>),
    /// Of the partition with this id.
    Partition(u32),
}

/// Which records a scan reads, and in what pages.
#[derive(Clone, Debug)]
pub struct ScanRange {
    /// Whose.
    pub place: ScanPlace,
    /// Only keys that begin with this.
    pub prefix: Vec<u8>,
    /// Only keys from this one on; empty: from the first.
    pub start: Vec<u8>,
    /// Only keys below this one; empty: to the last.
    pub end: Vec<u8>,
    /// Most records of a page, up to 4096; 0: the node's default.
    pub page_records: u32,
    /// Each page shows the state of its own time. Else all show that of the first, or the scan ends with
    /// [`Reason::ScanMoved`](crate::Reason::ScanMoved).
    pub each_page: bool,
    /// The session whose writes and reads the pages follow.
    pub session: Option<Session>,
}

impl ScanRange {
    /// All records of a place, as of one sequence.
    pub fn all(place: ScanPlace) -> Self {
        Self {
            place,
            prefix: Vec::new(),
            start: Vec::new(),
            end: Vec::new(),
            page_records: 0,
            each_page: false,
            session: None,
        }
    }

    /// Only keys that begin with this.
    #[must_use]
    pub fn prefix(self, prefix: impl Into<Vec<u8>>) -> Self {
        Self { prefix: prefix.into(), ..self }
    }
}

/// A page of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Keys and records, in the order of the keys.
    pub records: Vec<(Vec<u8>, Record)>,
    /// Hand it to [`Client::scan`] for the next page; `None`: there is none.
    pub continuation: Option<Vec<u8>>,
    /// The records are the state of the partition after this sequence.
    pub sequence: Sequence,
    /// The partition.
    pub partition: u32,
}

impl Client {
    /// Reads a page of a scan: the first, or the one after `continuation`. Pages may be empty before the
    /// last.
    ///
    /// # Errors
    /// [`Error::Refused`] also with `SCAN_MOVED` when the partition was written where the scan reads,
    /// and with `STORE_NOT_ORDERED`.
    pub async fn scan(
        &self,
        range: &ScanRange,
        continuation: Option<&[u8]>,
        deadline: Option<Duration>,
    ) -> Result<Page, Error> {
        let (routing_key, partition) = match &range.place {
            ScanPlace::RoutingKey(key) => (key.clone(), None),
            ScanPlace::Partition(id) => (Vec::new(), Some(*id)),
        };
        let consistency = match range.each_page {
            false => v1::ScanConsistency::ScanOneSequence,
            true => v1::ScanConsistency::ScanEachPage,
        };
        let request = v1::ScanRequest {
            routing_key,
            partition,
            prefix: range.prefix.clone(),
            start: range.start.clone(),
            end: range.end.clone(),
            limit: range.page_records,
            continuation: continuation.unwrap_or_default().to_vec(),
            consistency: consistency.into(),
            session: range.session.as_ref().map(|session| v1::Session { tokens: session.tokens() }),
        };
        let message = Bytes::from(request.encode_to_vec());
        let answer = self.shared().scan(&range.place, message, deadline).await?;
        if let (Some(session), Some(learnt)) = (&range.session, &answer.session) {
            session.learn(&learnt.tokens);
        }
        Ok(Page::from(answer))
    }
}

impl Shared {
    async fn scan(
        &self,
        place: &ScanPlace,
        message: Bytes,
        deadline: Option<Duration>,
    ) -> Result<v1::ScanResponse, Error> {
        let deadline = deadline.unwrap_or(self.options().deadline);
        let until = Instant::now() + deadline;
        let mut attempt = 0;
        loop {
            let seen = self.generation();
            let topology = self.topology();
            let route = topology.as_ref().and_then(|topology| match place {
                ScanPlace::RoutingKey(key) => topology.find_index(key_hash(key)),
                ScanPlace::Partition(id) => {
                    topology.routes().iter().position(|route| route.id == PartitionId(*id))
                }
            });
            let target = match (&topology, route) {
                (Some(topology), Some(route)) => Target::Home(topology.home_of(route)),
                _ => Target::Shared,
            };
            let call = Call { topology, until, deadline };
            let answer = async {
                let Ok(turn) = timeout_at(until, self.turns().acquire()).await else {
                    return Err(Error::DeadlineExceeded { deadline });
                };
                let _turn = turn.expect("the semaphore is never closed");
                self.call_path(PATH, target, message.clone(), Effect::Read, &call).await
            };
            let error = match answer.await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let (reroute, not_before) =
                match decide(&error, Effect::Read, false, attempt, self.options()) {
                    Verdict::Retry { not_before } => (false, not_before),
                    Verdict::Reroute => (true, Duration::ZERO),
                    Verdict::Halve | Verdict::GiveUp => return Err(error),
                };
            let delay = self.delay(attempt, not_before);
            if Instant::now() + delay >= until {
                return Err(error);
            }
            if reroute {
                drop(self.refresh(seen, until).await);
            }
            sleep(delay).await;
            attempt += 1;
        }
    }
}

impl From<v1::ScanResponse> for Page {
    fn from(answer: v1::ScanResponse) -> Self {
        let records = answer.records.into_iter().map(|record| {
            let (version, timestamp) = (Sequence(record.version), Timestamp(record.timestamp));
            let expire_at = ExpireAt::from_millis(record.expire_at_ms);
            (record.key, Record { value: record.value, version, timestamp, expire_at })
        });
        Self {
            records: records.collect(),
            continuation: (!answer.continuation.is_empty()).then_some(answer.continuation),
            sequence: Sequence(answer.sequence),
            partition: answer.partition,
        }
    }
}
