//! Makes one call and tells how it ended. The only part of a run that knows the client's methods.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use stateside_client::{
    Ack, Client, Error, ReadOptions, ScanPlace, ScanRange, Upsert, WriteOptions,
};

use super::{
    inserts::Inserts,
    records::Records,
    statistics::{Ended, Outcome},
    workload::{Kind, Operation},
};

/// What a place in a closed loop rests after a failure, unless the node asks for more: without it
/// a node that refuses at once, or is gone, would be asked as fast as this machine can.
const REST_AFTER_FAILURE: Duration = Duration::from_millis(10);

/// What calls work on; shared by all threads, for the whole of `bench`.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) records: Records,
    inserts: Mutex<Inserts>,
    write: WriteOptions,
    read: ReadOptions,
    /// Records of one insert.
    batch: usize,
}

/// When a call was due, and whether it waited for a place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) begun: Instant,
    pub(super) due: Duration,
    pub(super) held_back: bool,
    /// In a closed loop a place rests after a failure.
    pub(super) closed: bool,
}

impl Target {
    pub(super) fn new(records: Records, count: u64, batch: usize, ack: Option<Ack>) -> Self {
        Self {
            records,
            inserts: Mutex::new(Inserts::new(count)),
            write: WriteOptions { ack, ..WriteOptions::default() },
            read: ReadOptions::default(),
            batch,
        }
    }

    /// Records below this number may be read.
    pub(super) fn stored(&self) -> u64 {
        self.inserts().stored()
    }

    /// Makes a call of `operation`.
    pub(super) async fn call(&self, client: Client, operation: Operation, turn: Turn) -> Ended {
        let sent = turn.begun.elapsed();
        let kind = operation.kind;
        let result = self.carry_out(&client, operation).await;
        let answered = turn.begun.elapsed();
        let outcome = match result {
            Ok((records, not_found)) => Outcome::Done { records, not_found },
            Err(error) => {
                if turn.closed {
                    let asked = match &error {
                        Error::Refused(refused) => refused.retry_after.unwrap_or_default(),
                        _ => Duration::ZERO,
                    };
                    tokio::time::sleep(asked.max(REST_AFTER_FAILURE)).await;
                }
                Outcome::Failed { reason: reason(&error), message: error.to_string() }
            }
        };
        // After a wait in a closed loop the call is as due as when it was sent.
        let due = if turn.closed { sent } else { turn.due };
        Ended { kind, due, sent, answered, held_back: turn.held_back, outcome }
    }

    /// Records that were read or written, and how many of the former were not there.
    async fn carry_out(&self, client: &Client, operation: Operation) -> Result<(u64, u64), Error> {
        match operation.kind {
            Kind::Read => {
                let keys = self.keys(&operation.records);
                let not_found = self.get(client, &keys).await?;
                Ok((keys.len() as u64, not_found))
            }
            Kind::Update => {
                let keys = self.keys(&operation.records);
                self.upsert(client, &keys, operation.variant).await?;
                Ok((keys.len() as u64, 0))
            }
            Kind::ReadModifyWrite => {
                let keys = self.keys(&operation.records);
                let not_found = self.get(client, &keys).await?;
                self.upsert(client, &keys, operation.variant).await?;
                Ok((keys.len() as u64, not_found))
            }
            Kind::Scan => {
                let records = self.scan(client, &operation).await?;
                Ok((records, 0))
            }
            Kind::Insert => {
                let numbers: Vec<u64> = {
                    let mut inserts = self.inserts();
                    (0..self.batch).map(|_| inserts.take()).collect()
                };
                let written = self.upsert(client, &self.keys(&numbers), operation.variant).await;
                let mut inserts = self.inserts();
                numbers.iter().for_each(|&number| inserts.ended(number));
                written.map(|()| (numbers.len() as u64, 0))
            }
        }
    }

    fn keys(&self, records: &[u64]) -> Vec<Vec<u8>> {
        records.iter().map(|&record| self.records.key(record)).collect()
    }

    async fn get(&self, client: &Client, keys: &[Vec<u8>]) -> Result<u64, Error> {
        let records = client.get(keys, &self.read).await?.all()?;
        Ok(records.iter().filter(|record| record.is_none()).count() as u64)
    }

    /// Records from one on, of the partition that it belongs to.
    async fn scan(&self, client: &Client, operation: &Operation) -> Result<u64, Error> {
        let first = self.records.key(operation.records[0]);
        let range = ScanRange {
            start: first.clone(),
            page_records: operation.scan,
            each_page: true,
            ..ScanRange::all(ScanPlace::RoutingKey(first))
        };
        let page = client.scan(&range, None, None).await?;
        Ok(page.records.len() as u64)
    }

    async fn upsert(&self, client: &Client, keys: &[Vec<u8>], variant: u64) -> Result<(), Error> {
        let entries: Vec<Upsert<'_>> =
            keys.iter().map(|key| Upsert::new(key, self.records.value(variant))).collect();
        client.upsert(&entries, &self.write).await?.all()?;
        Ok(())
    }

    fn inserts(&self) -> MutexGuard<'_, Inserts> {
        self.inserts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a failure is counted as: a refusal by the node's reason, what never got an answer by
/// a word of our own.
fn reason(error: &Error) -> String {
    match error {
        Error::Refused(refused) if refused.reason_name.is_empty() => format!("{:?}", refused.code),
        Error::Refused(refused) => refused.reason_name.clone(),
        Error::Unreachable { .. } => "UNREACHABLE".to_owned(),
        Error::OutcomeUnknown { .. } => "OUTCOME_UNKNOWN".to_owned(),
        Error::DeadlineExceeded { .. } => "NO_ANSWER".to_owned(),
        Error::ConnectionLost { .. } => "CONNECTION_LOST".to_owned(),
        Error::Protocol { .. } => "PROTOCOL".to_owned(),
        Error::InvalidEndpoint { .. } => "INVALID_ENDPOINT".to_owned(),
    }
}
