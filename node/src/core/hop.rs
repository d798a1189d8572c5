//! Requests that arrived on one core and belong to another's partition, and their answers.
//!
//! ```text
//!   core A: turn ends ── HopRequests (one message a turn and target) ──► core B's inbox, bounded
//!   core A: inbox ◄───── HopAnswers  (one message a turn and target) ─── core B
//! ```
//! A core keeps count of the requests it has out at each other core and refuses beyond
//! [`HOPS_PER_CORE_PAIR_MAX`](stateside_types::limits::HOPS_PER_CORE_PAIR_MAX); the channels are
//! wide enough for all of them, so sending an answer never fails and never blocks.
//!
//! All requests of a message share one buffer: an allocation a turn, not one a request.

mod update;

use stateside_partition::Ticket;
use stateside_types::{
    Ack, AtLeast, Change, Condition, ExpireAt, Expiry, PartitionId, Refusal, RequestId, Sequence,
    SessionToken, Timestamp, WriteEntry,
};

/// Requests from one core to another, in the order in which they arrived.
#[derive(Default)]
pub struct HopRequests {
    bytes: Vec<u8>,
    requests: Vec<HopRequest>,
}

/// One request of a [`HopRequests`].
pub struct HopRequest {
    /// The asking core's name for the part of the call that this is.
    pub ticket: Ticket,
    /// Whom it is for.
    pub partition: PartitionId,
    /// What to do.
    pub kind: HopKind,
    start: usize,
    end: usize,
}

/// What a hopping request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopKind {
    /// Read keys, not before the partition shows what the session knows.
    Read(Option<AtLeast>),
    /// Read a page; how long it may wait for its session, milliseconds.
    Scan(u32),
    /// Write entries.
    Write {
        /// None: the partition's default.
        ack: Option<Ack>,
        /// Its id stands before the entries.
        has_id: bool,
    },
    /// Change records, and tell their values if that is wanted.
    Update {
        /// None: the partition's default.
        ack: Option<Ack>,
        /// Its id stands before the entries.
        has_id: bool,
        /// See [`Input::Update`](stateside_partition::Input::Update).
        return_values: bool,
    },
}

impl HopRequests {
    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Adds a read.
    pub fn push_read<'k>(
        &mut self,
        ticket: Ticket,
        partition: PartitionId,
        session: Option<AtLeast>,
        keys: impl Iterator<Item = &'k [u8]>,
    ) {
        let start = self.bytes.len();
        for key in keys {
            put_bytes(&mut self.bytes, key);
        }
        self.finish(ticket, partition, HopKind::Read(session), start);
    }

    /// Adds a scan: its message as it came.
    pub fn push_scan(
        &mut self,
        ticket: Ticket,
        partition: PartitionId,
        wait_ms: u32,
        message: &[u8],
    ) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(message);
        self.finish(ticket, partition, HopKind::Scan(wait_ms), start);
    }

    /// Adds a write.
    pub fn push_write<'k>(
        &mut self,
        ticket: Ticket,
        partition: PartitionId,
        ack: Option<Ack>,
        request: Option<RequestId<'_>>,
        entries: impl Iterator<Item = WriteEntry<'k>>,
    ) {
        let start = self.bytes.len();
        let has_id = self.put_id(request);
        for entry in entries {
            let put = matches!(entry.change, Change::Put(_));
            self.put_terms(entry.condition, entry.expiry, put);
            put_bytes(&mut self.bytes, entry.key);
            if let Change::Put(value) = entry.change {
                put_bytes(&mut self.bytes, value);
            }
        }
        self.finish(ticket, partition, HopKind::Write { ack, has_id }, start);
    }

    /// The id of a request, if it has one.
    fn put_id(&mut self, request: Option<RequestId<'_>>) -> bool {
        if let Some(RequestId { client, number, settled }) = request {
            self.bytes.extend_from_slice(&number.to_le_bytes());
            self.bytes.extend_from_slice(&settled.to_le_bytes());
            put_bytes(&mut self.bytes, client);
        }
        request.is_some()
    }

    /// Condition, expiry and a flag: a byte, then the numbers that they have.
    fn put_terms(&mut self, condition: Condition, expiry: Expiry, flag: bool) {
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
        self.bytes.push(expiry << 3 | condition << 1 | u8::from(flag));
        if condition == 2 {
            self.bytes.extend_from_slice(&version.to_le_bytes());
        }
        if expiry != 0 {
            self.bytes.extend_from_slice(&moment.to_le_bytes());
        }
    }

    fn finish(&mut self, ticket: Ticket, partition: PartitionId, kind: HopKind, start: usize) {
        let end = self.bytes.len();
        self.requests.push(HopRequest { ticket, partition, kind, start, end });
    }

    /// The requests, in order.
    pub fn requests(&self) -> &[HopRequest] {
        &self.requests
    }

    /// Fills `keys` with what a read asks for.
    pub fn keys<'a>(&'a self, request: &HopRequest, keys: &mut Vec<&'a [u8]>) {
        keys.clear();
        let mut bytes = &self.bytes[request.start..request.end];
        while !bytes.is_empty() {
            keys.push(take_bytes(&mut bytes));
        }
    }

    /// The message of a scan.
    pub fn message(&self, request: &HopRequest) -> &[u8] {
        &self.bytes[request.start..request.end]
    }

    /// Fills `entries` with what a write asks for; its id, if it has one.
    pub fn entries<'a>(
        &'a self,
        request: &HopRequest,
        entries: &mut Vec<WriteEntry<'a>>,
    ) -> Option<RequestId<'a>> {
        entries.clear();
        let mut bytes = &self.bytes[request.start..request.end];
        let has_id = matches!(request.kind, HopKind::Write { has_id: true, .. });
        let id = take_id(&mut bytes, has_id);
        while !bytes.is_empty() {
            let (condition, expiry, put) = take_terms(&mut bytes);
            let key = take_bytes(&mut bytes);
            let change = if put { Change::Put(take_bytes(&mut bytes)) } else { Change::Remove };
            entries.push(WriteEntry::new(key, change).under(condition).expiring(expiry));
        }
        id
    }
}

/// Answers from one core to another.
#[derive(Default)]
pub struct HopAnswers {
    /// One per request that was answered.
    pub answers: Vec<HopAnswer>,
}

/// What became of one hopping request.
pub struct HopAnswer {
    /// The asking core's name for it.
    pub ticket: Ticket,
    /// The outcome.
    pub outcome: HopOutcome,
}

/// See [`HopAnswer`].
pub enum HopOutcome {
    /// Records as the answer's protobuf has them, and where each ends in `body`.
    Read {
        /// Encoded records, one after the other.
        body: Vec<u8>,
        /// End of each record in `body`.
        ends: Vec<u32>,
        /// The state that they tell of.
        token: SessionToken,
    },
    /// The batch was written.
    Written(SessionToken, Timestamp),
    /// The update was written; its values, and where each ends in `body`.
    Updated {
        /// The batch.
        token: SessionToken,
        /// The batch's timestamp.
        timestamp: Timestamp,
        /// Values, one after the other.
        body: Vec<u8>,
        /// See [`Part::ends`](super::calls::Part::ends).
        ends: Vec<u32>,
    },
    /// It was not.
    Refused(Refusal),
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// These bytes were written by `push_*` in this process: running short is a bug, not bad input.
fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}

fn take_id<'a>(bytes: &mut &'a [u8], has_id: bool) -> Option<RequestId<'a>> {
    has_id.then(|| {
        let (number, settled) = (take_u64(bytes), take_u64(bytes));
        RequestId { client: take_bytes(bytes), number, settled }
    })
}

fn take_bytes<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let length = take(bytes, 4);
    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
    take(bytes, length as usize)
}

/// What `put_terms` wrote.
fn take_terms(bytes: &mut &[u8]) -> (Condition, Expiry, bool) {
    let flags = take(bytes, 1)[0];
    let condition = match flags >> 1 & 3 {
        0 => Condition::None,
        1 => Condition::IfAbsent,
        _ => Condition::IfVersion(Sequence(take_u64(bytes))),
    };
    let expiry = match flags >> 3 {
        0 => Expiry::Never,
        1 => Expiry::After(take_u64(bytes)),
        _ => Expiry::from(ExpireAt::from_millis(take_u64(bytes))),
    };
    (condition, expiry, flags & 1 == 1)
}

fn take_u64(bytes: &mut &[u8]) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(take(bytes, 8));
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use stateside_types::Epoch;

    use super::*;

    #[test]
    fn what_hops_arrives_unchanged() {
        let moment = ExpireAt::from_millis(u64::MAX).unwrap();
        let entries = [
            WriteEntry::put(b"a", b""),
            WriteEntry::remove(b"bb").under(Condition::IfAbsent),
            WriteEntry::put(&[7; 4096], &[9; 100_000])
                .under(Condition::IfVersion(Sequence(u64::MAX)))
                .expiring(Expiry::After(5)),
            WriteEntry::put(b"c", b"").expiring(Expiry::At(moment)),
        ];
        let keys: [&[u8]; 2] = [b"x", b"yyy"];
        let mut hop = HopRequests::default();
        let ack = Some(Ack::Memory);
        let id = Some(RequestId { client: b"client", number: 3, settled: u64::MAX });
        hop.push_write(Ticket(1), PartitionId(4), ack, id, entries.iter().copied());
        hop.push_write(Ticket(3), PartitionId(4), ack, None, entries.iter().copied());
        let session = AtLeast { epoch: Epoch(3), sequence: Sequence(9), wait_ms: 8 };
        hop.push_read(Ticket(2), PartitionId(5), Some(session), keys.iter().copied());

        let (mut got_entries, mut got_keys) = (Vec::new(), Vec::new());
        let [write, unnamed, read] = hop.requests() else { panic!("three requests") };
        assert_eq!((write.ticket, write.partition), (Ticket(1), PartitionId(4)));
        assert_eq!(
            (write.kind, read.kind),
            (HopKind::Write { ack, has_id: true }, HopKind::Read(Some(session)))
        );
        assert_eq!(hop.entries(unnamed, &mut got_entries), None);
        assert_eq!(got_entries, entries);
        assert_eq!(hop.entries(write, &mut got_entries), id);
        hop.keys(read, &mut got_keys);
        assert_eq!(got_entries, entries);
        assert_eq!(got_keys, keys);
    }
}
