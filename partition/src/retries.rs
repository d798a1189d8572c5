//! Requests with an id: a retry gets the original answer, at the moment when the original may leave.
//!
//! ```text
//!   request ─► hash ─► window ─┬─ new ──────────────────► executed, and recorded with its answer
//!                              ├─ answered, at sequence n ► the same answer, once n is durable
//!                              ├─ another request's ─────► REQUEST_ID_REUSED
//!                              └─ forgotten ─────────────► REQUEST_FORGOTTEN
//! ```
//! The window is asked before anything else: a retry is not judged again by stages, conditions or limits
//! that the original has passed. A retry of what is still under way is held like the original.
//!
//! **What is recorded**: writes, and refusals that follow from the state (a condition that does not hold).
//! Such a refusal takes a sequence and has a record in the log, without entries, and its answer waits for
//! it: else a crash could take it back, and a retry be executed that its client was told is not. What was
//! refused for other reasons (a full queue or disk, a filter) has changed nothing, is not recorded, and a
//! retry is a new attempt.

use std::sync::Arc;

use stateside_pipeline::Write;
use stateside_statestore::{Known, PastAnswer, RequestRow, RequestStats};
use stateside_types::{
    Ack, Change, Condition, Expiry, Operator, Reason, Refusal, RequestId, RequestMark, Sequence,
    StageKind, Timestamp, UpdateEntry, WriteEntry, decode_values, encode_values,
};
use xxhash_rust::xxh3::Xxh3;

use crate::{Effects, Partition, Ticket, held::Held};

/// A request that has its place in the partition's order.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) sequence: Sequence,
    pub(crate) timestamp: Timestamp,
    pub(crate) ack: Ack,
    /// None: it was written.
    pub(crate) refusal: Option<Arc<Refusal>>,
}

impl Partition {
    /// Sizes of the window of request ids, and how many retries it has answered since the partition
    /// was opened.
    pub fn requests(&self) -> (RequestStats, u64) {
        (self.store.requests().stats(), self.retries_answered)
    }

    /// What the state knows of request ids, for a snapshot that was started just now. All at once: the
    /// window is bounded, and not worth walking while it changes.
    pub fn request_rows(&self, emit: impl FnMut(RequestRow<'_>)) {
        self.store.requests().rows(emit);
    }

    /// Answers a request whose id says that it is not new. What to record of it, when it is.
    pub(crate) fn recall<'a>(
        &mut self,
        ticket: Ticket,
        id: RequestId<'a>,
        payload_hash: u64,
        ack: Option<Ack>,
        effects: &mut impl Effects,
    ) -> Option<RequestMark<'a>> {
        let refusal = match self.store.requests().look_up(id, payload_hash) {
            Known::Answered(PastAnswer { sequence, timestamp, refusal, values }) => {
                self.retries_answered += 1;
                if let Some(values) = &values {
                    decode_values(values).for_each(|value| effects.value(ticket, value));
                }
                let ack = self.effective_ack(ack);
                self.acknowledge(ticket, Accepted { sequence, timestamp, ack, refusal }, effects);
                return None;
            }
            Known::New => match self.check_new(id, effects) {
                Ok(()) => return Some(RequestMark::new(id, payload_hash)),
                Err(refusal) => refusal,
            },
            Known::Reused => {
                let text = format!("request {} was another one", name(id));
                Refusal::new(Reason::RequestIdReused, text)
            }
            Known::Forgotten(forgotten) => {
                let text = format!(
                    "request {} may have been executed; answers up to number {forgotten} are forgotten",
                    name(id)
                );
                Refusal::new(Reason::RequestForgotten, text).with("forgotten", forgotten)
            }
        };
        effects.written(ticket, Err(refusal));
        None
    }

    fn check_new(&mut self, id: RequestId<'_>, effects: &impl Effects) -> Result<(), Refusal> {
        if !self.pipeline.has(StageKind::Clock) {
            let text = format!(
                "partition {} has no clock stage, so it cannot tell how old a request id is",
                self.spec.id
            );
            return Err(Refusal::new(Reason::InvalidRequestId, text));
        }
        let now = self.tell_time(effects);
        self.store.requests().check_room(id, now)
    }

    /// Lets the answer of an accepted request leave, or holds it until it may.
    pub(crate) fn acknowledge(
        &mut self,
        ticket: Ticket,
        accepted: Accepted,
        effects: &mut impl Effects,
    ) {
        let Accepted { sequence, timestamp, ack, refusal } = accepted;
        // In split mode a refusal tells of what reads show when it is durable.
        let at_once = ack == Ack::Memory && !(self.is_split && refusal.is_some());
        let leaves = at_once || sequence <= self.passed();
        match refusal {
            None if leaves => effects.written(ticket, Ok((sequence, timestamp))),
            None => self.held.hold(sequence, Held::Write(ticket, sequence, timestamp)),
            Some(refusal) if leaves => effects.written(ticket, Err((*refusal).clone())),
            Some(refusal) => self.held.hold(sequence, Held::Refused(ticket, refusal)),
        }
    }

    /// Refuses what the state does not allow. With an id the refusal gets a place in the order, if it
    /// follows from the records.
    #[cold]
    pub(crate) fn refuse_for_good(
        &mut self,
        write: &Write<'_>,
        refusal: Refusal,
        effects: &mut impl Effects,
    ) -> Result<Accepted, Refusal> {
        let Some(mark) = write.request.filter(|_| refusal.reason.is_verdict()) else {
            return Err(refusal);
        };
        let refusal = Some(Arc::new(refusal));
        let mark = RequestMark { refusal: refusal.clone(), values: None, ..mark.clone() };
        let mut write = Write { request: Some(&mark), ..write.with(&[]) };
        self.check_memory(&write, effects.memory_available())?;
        self.pipeline.admit(&write, effects)?;
        self.pipeline.accept_refusal(&mut write, effects);
        self.store.remember(write.sequence, write.timestamp, &mark);
        self.store.apply(write.sequence, write.timestamp, &[]);
        if let Some(trail) = &mut self.trail {
            trail.record(write.sequence, write.timestamp, Some(&mark), &[]);
        }
        Ok(Accepted {
            sequence: write.sequence,
            timestamp: write.timestamp,
            ack: write.ack,
            refusal,
        })
    }
}

fn name(id: RequestId<'_>) -> String {
    format!("{} of client `{}`", id.number, id.client.escape_ascii())
}

/// The mark of an update that tells its values, with those that the stages let be written: None for any
/// other mark. More values than a mark keeps are left out of it, and so of a retry's answer.
pub(crate) fn with_values<'a>(
    mark: &RequestMark<'a>,
    entries: &[WriteEntry<'_>],
) -> Option<RequestMark<'a>> {
    mark.values.as_ref()?;
    let values = entries.iter().map(|entry| match entry.change {
        Change::Put(value) => value,
        Change::Remove => &[],
    });
    Some(RequestMark { values: encode_values(values), ..mark.clone() })
}

/// Of everything that a retry must repeat, before any stage has touched it. Stands in logs and snapshots:
/// to change it means that retries of an earlier release's requests are refused as reused.
pub(crate) fn payload_hash(entries: &[WriteEntry<'_>]) -> u64 {
    let mut hash = Xxh3::new();
    for entry in entries {
        let (change, value): (u8, &[u8]) = match entry.change {
            Change::Put(value) => (1, value),
            Change::Remove => (2, &[]),
        };
        hash_entry(&mut hash, change, entry.condition, entry.expiry, [entry.key, value]);
    }
    hash.digest()
}

/// As [`payload_hash`], of an update.
pub(crate) fn update_hash(entries: &[UpdateEntry<'_>], return_values: bool) -> u64 {
    let mut hash = Xxh3::new();
    for &UpdateEntry { key, operator, condition, expiry } in entries {
        let number;
        let (change, operand): (u8, &[u8]) = match operator {
            Operator::Append(bytes) => (4, bytes),
            Operator::Merge(patch) => (5, patch),
            Operator::Add(operand) | Operator::Max(operand) | Operator::Min(operand) => {
                let change = match operator {
                    Operator::Add(_) => 3,
                    Operator::Max(_) => 6,
                    _ => 7,
                };
                number = operand.to_le_bytes();
                (change, &number)
            }
        };
        hash_entry(&mut hash, change, condition, expiry, [key, operand]);
    }
    hash.update(&[u8::from(return_values)]);
    hash.digest()
}

fn hash_entry(
    hash: &mut Xxh3,
    change: u8,
    condition: Condition,
    expiry: Expiry,
    [key, value]: [&[u8]; 2],
) {
    let (condition, version) = match condition {
        Condition::None => (0, 0),
        Condition::IfAbsent => (1, 0),
        Condition::IfVersion(version) => (2, version.0),
    };
    let (expiry, moment) = match expiry {
        Expiry::Never => (0, 0),
        Expiry::After(ttl_ms) => (1, ttl_ms),
        Expiry::At(moment) => (2, moment.millis()),
    };
    let mut head = [0; 27];
    head[..3].copy_from_slice(&[change, condition, expiry]);
    head[3..11].copy_from_slice(&version.to_le_bytes());
    head[11..19].copy_from_slice(&moment.to_le_bytes());
    head[19..23].copy_from_slice(&(key.len() as u32).to_le_bytes());
    head[23..27].copy_from_slice(&(value.len() as u32).to_le_bytes());
    hash.update(&head);
    hash.update(key);
    hash.update(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_tells_apart_whatever_a_request_can_differ_in() {
        let put = WriteEntry::put(b"key", b"value");
        let all = [
            vec![put],
            vec![WriteEntry::put(b"keyv", b"alue")],
            vec![WriteEntry::put(b"key", b"")],
            vec![WriteEntry::remove(b"key")],
            vec![put.under(Condition::IfAbsent)],
            vec![put.under(Condition::IfVersion(Sequence(0)))],
            vec![put.under(Condition::IfVersion(Sequence(1)))],
            vec![put.expiring(Expiry::After(1))],
            vec![put.expiring(Expiry::After(2))],
            vec![put, WriteEntry::put(b"l", b"")],
            vec![WriteEntry::put(b"l", b""), put],
        ];
        let mut hashes: std::collections::BTreeSet<u64> =
            all.iter().map(|entries| payload_hash(entries)).collect();
        assert_eq!(hashes.len(), all.len());
        let operators = [
            Operator::Add(1),
            Operator::Add(2),
            Operator::Max(1),
            Operator::Min(1),
            Operator::Append(b"value"),
            Operator::Merge(b"value"),
        ];
        for operator in operators {
            let (condition, expiry) = (Condition::None, Expiry::Never);
            let entry = UpdateEntry { key: b"key", operator, condition, expiry };
            assert!(hashes.insert(update_hash(&[entry], false)), "{operator:?}");
            assert!(hashes.insert(update_hash(&[entry], true)), "{operator:?}");
        }
        // What stands in logs already.
        assert_eq!(payload_hash(&all[0]), 8_158_162_978_167_002_644);
    }
}
