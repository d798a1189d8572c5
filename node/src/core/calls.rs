//! Calls under way on a core: from the moment a request is whole until its answer leaves.
//!
//! A call has one part for each partition that it touches. A part is executed by a partition of
//! this core or of another; its answer is collected here, and when the last part is in, the call
//! is ready to be answered.
//!
//! ```text
//!   Ticket (64 bits)   generation 16 │ part 16 │ slot 32
//! ```
//! Slots and their buffers are reused: a call in steady state allocates nothing. The generation
//! tells a late answer to a former occupant of the slot from one to the present.

use std::cmp::Reverse;

use stateside_partition::{PageEnd, Ticket};
use stateside_proto::{codec, scan::encode_scan_end};
use stateside_types::{
    CoreId, PartitionId, Reason, Record, Refusal, SessionToken, Timestamp,
    limits::{CALLS_PER_CORE_MAX, RESPONSE_BYTES_MAX, UPDATED_VALUES_BYTES_MAX},
};

/// Buffers above this size are not kept for the next call.
const KEPT_BUFFER_BYTES: usize = 64 << 10;

/// In place of the end of a value that did not fit into the answer.
const LEFT_OUT: u32 = u32::MAX;

/// Who waits for a call's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin<S> {
    /// A stream of a connection.
    Stream(S),
    /// Another core: the part of a call of its own.
    Hop(CoreId, Ticket),
}

/// What became of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing yet.
    Waiting,
    /// The records are in the part's body; they tell of this state.
    Read(SessionToken),
    /// The part's batch was written.
    Written(SessionToken, Timestamp),
    /// It was not done.
    Refused(Refusal),
}

/// A call's business with one partition.
#[derive(Debug)]
pub struct Part {
    /// Entries of the request that it covers.
    pub entries: u32,
    /// A read's records, encoded as the answer has them; an update's values, one after the other.
    pub body: Vec<u8>,
    /// Where each record ends in `body`, kept only where answers are put together from parts; or
    /// where each value ends, for an update that is to tell them.
    pub ends: Vec<u32>,
    /// See [`Outcome`].
    pub outcome: Outcome,
}

impl Part {
    /// The values of an update, in its entries' order; none at all unless it is to tell them.
    pub fn values(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            (end != LEFT_OUT)
                .then(|| &self.body[std::mem::replace(&mut start, end as usize)..end as usize])
        })
    }
}

/// A call under way.
#[derive(Debug)]
pub struct Call<S> {
    /// Who waits.
    pub origin: Origin<S>,
    /// What the core makes of the method: an index into its metrics.
    pub method: u8,
    /// When the request was whole, nanoseconds of the core's clock.
    pub started_ns: u64,
    /// Its parts; at least one.
    parts: Vec<Part>,
    parts_used: usize,
    outstanding: u32,
    body_bytes: usize,
    indexed: bool,
    /// The answer is to have tokens.
    pub has_session: bool,
    /// With several parts: the part that each entry of the request belongs to.
    pub part_of_entry: Vec<u16>,
    /// With several parts: the request, for naming keys in per-entry errors.
    pub message: Vec<u8>,
    generation: u16,
    live: bool,
}

impl<S> Call<S> {
    /// The parts, in the order in which they were added.
    pub fn parts(&self) -> &[Part] {
        &self.parts[..self.parts_used]
    }

    /// The states that the answer tells of.
    pub fn tokens(&self) -> impl Iterator<Item = SessionToken> + Clone {
        self.parts().iter().filter_map(|part| match part.outcome {
            Outcome::Read(token) | Outcome::Written(token, _) => Some(token),
            Outcome::Refused(_) | Outcome::Waiting => None,
        })
    }

    /// The parts, for taking their buffers.
    pub fn parts_mut(&mut self) -> &mut [Part] {
        &mut self.parts[..self.parts_used]
    }
}

/// The calls of one core. Lives on its thread.
pub struct Calls<S> {
    slots: Vec<Call<S>>,
    free: Vec<u32>,
    /// Calls whose last part came in since the core last looked.
    ready: Vec<u32>,
    /// Those of an earlier look that are being answered, the next one last.
    due: Vec<u32>,
}

impl<S> Default for Calls<S> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), ready: Vec::new(), due: Vec::new() }
    }
}

impl<S: Copy> Calls<S> {
    /// Calls under way.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether no call is under way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a slot for a call without parts. `indexed`: records of reads are told apart, as
    /// answers from several parts need.
    ///
    /// # Errors
    /// `OVERLOADED` when too many calls are under way.
    pub fn open(
        &mut self,
        origin: Origin<S>,
        method: u8,
        started_ns: u64,
        indexed: bool,
    ) -> Result<u32, Refusal> {
        if let Some(slot) = self.free.pop() {
            let call = &mut self.slots[slot as usize];
            debug_assert!(!call.live);
            call.origin = origin;
            call.method = method;
            call.started_ns = started_ns;
            call.indexed = indexed;
            call.live = true;
            return Ok(slot);
        }
        if self.slots.len() >= CALLS_PER_CORE_MAX {
            return Err(Refusal::new(
                Reason::Overloaded,
                format!("the core has {CALLS_PER_CORE_MAX} calls under way"),
            ));
        }
        self.slots.push(Call {
            origin,
            method,
            started_ns,
            parts: Vec::new(),
            parts_used: 0,
            outstanding: 0,
            body_bytes: 0,
            indexed,
            has_session: false,
            part_of_entry: Vec::new(),
            message: Vec::new(),
            generation: 0,
            live: true,
        });
        Ok((self.slots.len() - 1) as u32)
    }

    /// Adds a part to a call and names it.
    pub fn add_part(&mut self, slot: u32, entries: usize) -> Ticket {
        let call = &mut self.slots[slot as usize];
        let index = call.parts_used;
        if index == call.parts.len() {
            call.parts.push(Part {
                entries: 0,
                body: Vec::new(),
                ends: Vec::new(),
                outcome: Outcome::Waiting,
            });
        }
        call.parts[index].entries = entries as u32;
        call.parts_used += 1;
        call.outstanding += 1;
        Ticket(u64::from(call.generation) << 48 | (index as u64) << 32 | u64::from(slot))
    }

    /// The call in a slot that is ready.
    pub fn get_mut(&mut self, slot: u32) -> &mut Call<S> {
        &mut self.slots[slot as usize]
    }

    /// Gives the slot back.
    pub fn close(&mut self, slot: u32) {
        let call = &mut self.slots[slot as usize];
        debug_assert!(call.live && call.outstanding == 0);
        for part in &mut call.parts[..call.parts_used] {
            part.body.clear();
            part.ends.clear();
            part.outcome = Outcome::Waiting;
            if part.body.capacity() > KEPT_BUFFER_BYTES {
                part.body = Vec::new();
            }
        }
        call.parts.truncate(64);
        call.message = Vec::new();
        call.part_of_entry.clear();
        call.parts_used = 0;
        call.body_bytes = 0;
        call.has_session = false;
        call.generation = call.generation.wrapping_add(1);
        call.live = false;
        self.free.push(slot);
    }

    /// The next call whose answer is complete. Those that were ready when the first of them was
    /// asked for come in the order of `key`: whoever answers by connection sends once for each.
    pub fn next_ready<K: Ord>(&mut self, key: impl Fn(&Origin<S>) -> K) -> Option<u32> {
        if self.due.is_empty() {
            std::mem::swap(&mut self.due, &mut self.ready);
            if self.due.len() > 1 {
                let slots = &self.slots;
                self.due.sort_unstable_by_key(|slot| Reverse(key(&slots[*slot as usize].origin)));
            }
        }
        self.due.last().copied()
    }

    /// Takes the call that [`Self::next_ready`] has told.
    pub fn pop_ready(&mut self) -> Option<u32> {
        self.due.pop()
    }

    /// The call that became ready last, if `wanted` says so of its origin.
    pub fn pop_ready_if(&mut self, wanted: impl Fn(&Origin<S>) -> bool) -> Option<u32> {
        let slot = *self.ready.last()?;
        if !wanted(&self.slots[slot as usize].origin) {
            return None;
        }
        self.ready.pop()
    }

    /// Whether some call's answer is complete.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.due.is_empty()
    }

    /// A record of a read's part.
    pub fn record(&mut self, ticket: Ticket, key: &[u8], record: Option<&Record<'_>>) {
        let Some((call, part)) = find(&mut self.slots, ticket) else { return };
        let value_bytes = record.map_or(0, |record| record.value.len());
        call.body_bytes += key.len() + value_bytes + codec::RECORD_OVERHEAD_MAX;
        if call.body_bytes > RESPONSE_BYTES_MAX {
            return; // `finish` refuses the call; what does not fit is not collected.
        }
        let part = &mut call.parts[part];
        codec::encode_record(&mut part.body, key, record);
        if call.indexed {
            part.ends.push(part.body.len() as u32);
        }
    }

    /// The value that an entry of an update left behind.
    pub fn value(&mut self, ticket: Ticket, value: &[u8]) {
        let Some((call, part)) = find(&mut self.slots, ticket) else { return };
        // Values that do not fit into the answer are left out of it: the update has taken effect and
        // must not be refused any more.
        let fits = call.body_bytes + value.len() <= UPDATED_VALUES_BYTES_MAX;
        let part = &mut call.parts[part];
        if fits {
            call.body_bytes += value.len();
            part.body.extend_from_slice(value);
        }
        part.ends.push(if fits { part.body.len() as u32 } else { LEFT_OUT });
    }

    /// Values of a part that another core executed.
    pub fn take_values(&mut self, ticket: Ticket, body: Vec<u8>, mut ends: Vec<u32>) {
        let Some((call, part)) = find(&mut self.slots, ticket) else { return };
        let fits = call.body_bytes + body.len() <= UPDATED_VALUES_BYTES_MAX;
        if fits {
            call.body_bytes += body.len();
        } else {
            ends.fill(LEFT_OUT);
        }
        let part = &mut call.parts[part];
        part.body = if fits { body } else { Vec::new() };
        part.ends = ends;
    }

    /// The end of a scan's page, behind its records.
    pub fn page_end(&mut self, ticket: Ticket, partition: PartitionId, end: PageEnd<'_>) {
        let Some((call, part)) = find(&mut self.slots, ticket) else { return };
        let body = &mut call.parts[part].body;
        encode_scan_end(body, partition, end.epoch, end.sequence, end.after);
    }

    /// Records of a part that another core executed.
    pub fn take_records(&mut self, ticket: Ticket, body: Vec<u8>, ends: Vec<u32>) {
        let Some((call, part)) = find(&mut self.slots, ticket) else { return };
        call.body_bytes += body.len();
        let part = &mut call.parts[part];
        part.body = body;
        part.ends = ends;
    }

    /// A part is done; when it was the last, the call is ready.
    pub fn finish(&mut self, ticket: Ticket, outcome: Outcome) {
        let Some((call, part)) = find(&mut self.slots, ticket) else { return };
        debug_assert_eq!(call.parts[part].outcome, Outcome::Waiting);
        call.parts[part].outcome = if call.body_bytes > RESPONSE_BYTES_MAX {
            Outcome::Refused(Refusal::new(
                Reason::ResponseTooLarge,
                format!("the records exceed {RESPONSE_BYTES_MAX} bytes"),
            ))
        } else {
            outcome
        };
        call.outstanding -= 1;
        if call.outstanding == 0 {
            self.ready.push(ticket.0 as u32);
        }
    }
}

fn find<S>(slots: &mut [Call<S>], ticket: Ticket) -> Option<(&mut Call<S>, usize)> {
    let call = slots.get_mut(ticket.0 as u32 as usize)?;
    let part = (ticket.0 >> 32) as u16 as usize;
    let generation = (ticket.0 >> 48) as u16;
    (call.live && call.generation == generation && part < call.parts_used).then_some((call, part))
}

#[cfg(test)]
mod tests {
    use stateside_types::{Epoch, Sequence};

    use super::*;

    const TOKEN: SessionToken =
        SessionToken { partition: PartitionId(1), epoch: Epoch(1), sequence: Sequence(3) };

    fn calls() -> Calls<u32> {
        Calls::default()
    }

    fn take_ready(calls: &mut Calls<u32>) -> Option<u32> {
        calls.next_ready(|_| ())?;
        calls.pop_ready()
    }

    #[test]
    fn calls_that_are_ready_together_come_by_key_and_later_ones_after_them() {
        let mut calls = calls();
        let ready = |calls: &mut Calls<u32>, stream| {
            let slot = calls.open(Origin::Stream(stream), 0, 1, false).unwrap();
            let ticket = calls.add_part(slot, 1);
            calls.finish(ticket, Outcome::Read(TOKEN));
        };
        [3, 1, 2].iter().for_each(|stream| ready(&mut calls, *stream));
        let key = |origin: &Origin<u32>| match origin {
            Origin::Stream(stream) => *stream,
            Origin::Hop(..) => 0,
        };
        let mut order = Vec::new();
        while let Some(slot) = calls.next_ready(key) {
            assert_eq!(calls.pop_ready(), Some(slot));
            order.push(key(&calls.get_mut(slot).origin));
            if order.len() == 1 {
                ready(&mut calls, 0);
            }
        }
        assert_eq!(order, [1, 2, 3, 0]);
        assert!(!calls.has_ready());
    }

    #[test]
    fn a_call_is_ready_when_its_last_part_is_in_and_late_answers_are_ignored() {
        let mut calls = calls();
        let slot = calls.open(Origin::Stream(7), 0, 1, true).unwrap();
        let first = calls.add_part(slot, 1);
        let second = calls.add_part(slot, 2);
        calls.finish(second, Outcome::Written(TOKEN, Timestamp(4)));
        assert_eq!(take_ready(&mut calls), None);
        calls.record(first, b"k", None);
        calls.finish(first, Outcome::Read(TOKEN));
        assert_eq!(take_ready(&mut calls), Some(slot));
        assert_eq!(calls.get_mut(slot).parts()[0].ends.len(), 1);
        calls.close(slot);
        assert!(calls.is_empty());

        let again = calls.open(Origin::Stream(8), 0, 2, false).unwrap();
        assert_eq!(again, slot);
        let new = calls.add_part(again, 1);
        calls.finish(first, Outcome::Read(TOKEN));
        assert_eq!(take_ready(&mut calls), None, "a ticket of the slot's former call does nothing");
        calls.finish(new, Outcome::Read(TOKEN));
        assert_eq!(take_ready(&mut calls), Some(again));
    }

    #[test]
    fn values_that_do_not_fit_are_left_out_and_nothing_is_refused_for_them() {
        let mut calls = calls();
        let slot = calls.open(Origin::Stream(7), 0, 1, false).unwrap();
        let tickets = [calls.add_part(slot, 3), calls.add_part(slot, 1)];
        calls.value(tickets[0], b"first");
        calls.value(tickets[0], &vec![0; UPDATED_VALUES_BYTES_MAX]);
        calls.value(tickets[0], b"");
        calls.take_values(tickets[1], vec![0; UPDATED_VALUES_BYTES_MAX], vec![7]);
        for ticket in tickets {
            calls.finish(ticket, Outcome::Written(TOKEN, Timestamp(4)));
        }
        let slot = take_ready(&mut calls).unwrap();
        let call = calls.get_mut(slot);
        let values: Vec<_> = call.parts().iter().flat_map(Part::values).collect();
        assert_eq!(values, [Some(&b"first"[..]), None, Some(b""), None]);
        assert!(call.parts().iter().all(|part| matches!(part.outcome, Outcome::Written(..))));
    }

    #[test]
    fn an_answer_above_the_limit_is_refused_and_not_collected() {
        let mut calls = calls();
        let slot = calls.open(Origin::Stream(7), 0, 1, false).unwrap();
        let ticket = calls.add_part(slot, 20);
        let value = vec![0; 1 << 20];
        let (version, timestamp) = (Sequence(1), Timestamp(1));
        let record = Record { value: &value, version, timestamp, expire_at: None };
        for _ in 0..20 {
            calls.record(ticket, b"key", Some(&record));
        }
        calls.finish(ticket, Outcome::Read(TOKEN));
        let call = calls.get_mut(slot);
        assert!(call.parts()[0].body.len() <= RESPONSE_BYTES_MAX);
        let Outcome::Refused(refusal) = &call.parts()[0].outcome else { panic!("refused") };
        assert_eq!(refusal.reason, Reason::ResponseTooLarge);
    }
}
