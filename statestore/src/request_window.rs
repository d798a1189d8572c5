//! The window of request ids: what a partition's state knows of the writes that were given names.
//!
//! ```text
//!   client "a"   forgotten ≤ 4 │ 5: sequence 90 │ 7: sequence 93 │            ─ by use ─► a, b
//!   client "b"   forgotten ≤ 0 │ 1: sequence 95, refused │
//!   answers      90 │ 93 │ 95            the oldest goes first, and raises its client's number
//!
//!   a request    number is here ───────────────► its answer, or REQUEST_ID_REUSED
//!                number ≤ forgotten ───────────► REQUEST_FORGOTTEN: never executed again
//!                else ─────────────────────────► new: executed, recorded
//! ```
//! It is a part of the state: a store has it, replay and snapshots rebuild it, and a store on disk
//! writes its changes with the entries of the same batch. Everything in it follows from the marks
//! that were recorded, in their order; no clock is read.
//!
//! **What is never wrong**: a number that was recorded is found, or is at or below its client's
//! `forgotten`, as long as the client itself is remembered. A client is let go of only when
//! another needs its place and it has not written for [`RequestLimits::client_keep_ms`] of the
//! partition's time; a new client that finds no such place is refused. So whoever retries within that
//! time is not executed twice, however small the window. (Letting go of the oldest whatever its age
//! would break that silently under load; asking clients to open a session first would cost each a round
//! trip with every partition, and leave the same question about the opening.)
//!
//! One record lets go of a bounded number of others, so limits are reached, not kept to the last one,
//! when much becomes superfluous at once.

use std::{collections::BTreeMap, mem::size_of, sync::Arc};

use stateside_types::{
    Reason, Refusal, RequestId, RequestMark, Sequence, Timestamp, WallClock,
    limits::{
        REQUEST_ANSWERS_DEFAULT, REQUEST_CLIENT_BYTES_MAX, REQUEST_CLIENT_KEEP_MS,
        REQUEST_CLIENTS_DEFAULT, REQUEST_VALUES_BYTES_MAX, REQUESTS_FORGOTTEN_PER_WRITE,
    },
};

/// How much a window remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Answers, of all clients together.
    pub answers_max: u32,
    /// Clients.
    pub clients_max: u32,
    /// A client is remembered this long after its last write at least, milliseconds.
    pub client_keep_ms: u64,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            answers_max: REQUEST_ANSWERS_DEFAULT,
            clients_max: REQUEST_CLIENTS_DEFAULT,
            client_keep_ms: REQUEST_CLIENT_KEEP_MS,
        }
    }
}

/// The answer to a request that was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastAnswer {
    /// Its place.
    pub sequence: Sequence,
    /// When it was accepted.
    pub timestamp: Timestamp,
    /// None: it was written.
    pub refusal: Option<Arc<Refusal>>,
    /// Of an update that tells its values, see `types/src/request_id.rs`.
    pub values: Option<Arc<[u8]>>,
}

/// What the window says of a request's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// It was not recorded.
    New,
    /// It was.
    Answered(PastAnswer),
    /// It was recorded of another request.
    Reused,
    /// It may have been recorded; this and every lower number of the client is forgotten.
    Forgotten(u64),
}

/// A piece of a window, as snapshots and stores on disk have it.
///
/// ```text
///  client  │ 1 u8 │ client length u8 │ forgotten u64 │ last sequence u64 │ its timestamp u64 │ client │
///  answer  │ 2 u8 │ sequence u64 │ timestamp u64 │ mark, see types/src/request_id.rs │
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestRow<'a> {
    /// A client. Comes before its answers.
    Client {
        /// Its name.
        client: &'a [u8],
        /// This and every lower number is forgotten, unless there is an answer.
        forgotten: u64,
        /// Its last write.
        last: Sequence,
        /// When that was.
        last_timestamp: Timestamp,
    },
    /// An answer.
    Answer {
        /// The write's place.
        sequence: Sequence,
        /// When it was accepted.
        timestamp: Timestamp,
        /// The rest.
        mark: RequestMark<'a>,
    },
}

/// What recording a mark changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestChange<'a> {
    /// This row is new, or different.
    Put(RequestRow<'a>),
    /// The answer of this sequence is gone.
    ForgetAnswer(Sequence),
    /// The client is gone; its answers went before.
    ForgetClient(&'a [u8]),
}

/// Sizes of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestStats {
    /// Answers remembered.
    pub answers: u64,
    /// Clients remembered.
    pub clients: u64,
    /// When the oldest answer was given; zero without one.
    pub oldest: Timestamp,
}

#[derive(Debug)]
struct Client {
    forgotten: u64,
    last: Sequence,
    last_timestamp: Timestamp,
    /// Numbers that are answered, and where.
    numbers: BTreeMap<u64, Sequence>,
}

#[derive(Debug)]
struct Answer {
    client: Arc<[u8]>,
    number: u64,
    settled: u64,
    payload_hash: u64,
    timestamp: Timestamp,
    refusal: Option<Arc<Refusal>>,
    values: Option<Arc<[u8]>>,
}

impl Answer {
    /// Bytes of memory beside itself, roughly.
    fn more_bytes(&self) -> u64 {
        let refusal = if self.refusal.is_some() { REFUSAL_BYTES } else { 0 };
        refusal + self.values.as_ref().map_or(0, |values| values.len() as u64 + 16)
    }
}

/// See the module's header. Owned by a store.
#[derive(Debug, Default)]
pub struct RequestWindow {
    limits: RequestLimits,
    clients: BTreeMap<Arc<[u8]>, Client>,
    /// The client of each last write, the one that has not written for longest first.
    by_use: BTreeMap<Sequence, Arc<[u8]>>,
    answers: BTreeMap<Sequence, Answer>,
    /// Of refusals and values.
    more_bytes: u64,
}

const CLIENT_TAG: u8 = 1;
const ANSWER_TAG: u8 = 2;
/// Of trees that are filled to two thirds, with their keys.
const ANSWER_BYTES: u64 = (size_of::<Answer>() + 2 * size_of::<Sequence>() + 16) as u64 * 3 / 2;
const CLIENT_BYTES: u64 = (size_of::<Client>() + 2 * size_of::<Arc<[u8]>>() + 200) as u64;
const REFUSAL_BYTES: u64 = 400;

impl RequestWindow {
    /// Bytes of memory that one more record takes at most, roughly; the changes that it tells of, until
    /// a store on disk has written them, included.
    pub const GROWTH_MAX: u64 = 2 * (ANSWER_BYTES + CLIENT_BYTES + REQUEST_VALUES_BYTES_MAX as u64)
        + 128 * REQUESTS_FORGOTTEN_PER_WRITE as u64;

    /// Keeps to these limits from the next record on.
    pub fn set_limits(&mut self, limits: RequestLimits) {
        self.limits = limits;
    }

    /// Forgets everything but the limits.
    pub fn clear(&mut self) {
        *self = Self { limits: self.limits, ..Self::default() };
    }

    /// Sizes.
    pub fn stats(&self) -> RequestStats {
        let oldest = self.answers.first_key_value().map(|(_, answer)| answer.timestamp);
        RequestStats {
            answers: self.answers.len() as u64,
            clients: self.clients.len() as u64,
            oldest: oldest.unwrap_or_default(),
        }
    }

    /// Bytes of memory, roughly.
    pub fn memory_bytes(&self) -> u64 {
        self.answers.len() as u64 * ANSWER_BYTES
            + self.clients.len() as u64 * CLIENT_BYTES
            + self.more_bytes
    }

    /// What is known of a request's name.
    pub fn look_up(&self, id: RequestId<'_>, payload_hash: u64) -> Known {
        let Some(client) = self.clients.get(id.client) else { return Known::New };
        let place = client.numbers.get(&id.number);
        if let Some((sequence, answer)) = place.and_then(|at| self.answers.get_key_value(at)) {
            if answer.payload_hash != payload_hash {
                return Known::Reused;
            }
            return Known::Answered(PastAnswer {
                sequence: *sequence,
                timestamp: answer.timestamp,
                refusal: answer.refusal.clone(),
                values: answer.values.clone(),
            });
        }
        match client.forgotten {
            forgotten if id.number <= forgotten => Known::Forgotten(forgotten),
            _ => Known::New,
        }
    }

    /// Whether one more name can be recorded.
    ///
    /// # Errors
    /// `REQUEST_CLIENTS_FULL`.
    pub fn check_room(&self, id: RequestId<'_>, now: WallClock) -> Result<(), Refusal> {
        let RequestLimits { clients_max, client_keep_ms, .. } = self.limits;
        if self.clients.len() < clients_max as usize || self.clients.contains_key(id.client) {
            return Ok(());
        }
        let idlest = self.by_use.first_key_value().and_then(|(_, name)| self.clients.get(name));
        let since = idlest.map_or(0, |client| client.last_timestamp.millis());
        if now.0.saturating_sub(since) >= client_keep_ms {
            return Ok(());
        }
        let text = format!(
            "the partition remembers {} clients of request ids, and each has written within {} s",
            self.clients.len(),
            client_keep_ms / 1_000
        );
        Err(Refusal::new(Reason::RequestClientsFull, text))
    }

    /// Records the answer to a request that was new, and tells of each change.
    pub fn record(
        &mut self,
        sequence: Sequence,
        timestamp: Timestamp,
        mark: &RequestMark<'_>,
        changed: &mut dyn FnMut(RequestChange<'_>),
    ) {
        let RequestId { client: name, number, settled } = mark.id;
        self.insert(sequence, timestamp, mark);
        let mut left = REQUESTS_FORGOTTEN_PER_WRITE;
        if let Some(client) = self.clients.get_mut(name) {
            client.forgotten = client.forgotten.max(settled.saturating_sub(1));
            // The client's own new number stays, whatever it says is settled.
            while left > 0
                && let Some((&first, &at)) = client.numbers.first_key_value()
                && first < settled.min(number)
            {
                client.numbers.remove(&first);
                let gone = self.answers.remove(&at);
                self.more_bytes -= gone.map_or(0, |answer| answer.more_bytes());
                changed(RequestChange::ForgetAnswer(at));
                left -= 1;
            }
        }
        while left > 0
            && self.answers.len() > self.limits.answers_max as usize
            && let Some((&at, _)) = self.answers.first_key_value()
            && at != sequence
        {
            self.forget_answer(at, name, changed);
            left -= 1;
        }
        while left > 0
            && self.clients.len() > self.limits.clients_max as usize
            && let Some(idlest) = self.by_use.values().next().cloned()
            && *idlest != *name
        {
            self.forget_some_of(&idlest, changed);
            left -= 1;
        }
        if let Some((name, client)) = self.clients.get_key_value(name) {
            changed(RequestChange::Put(client.row(name)));
        }
        changed(RequestChange::Put(RequestRow::Answer { sequence, timestamp, mark: mark.clone() }));
    }

    /// Takes a row of a snapshot or a store. Limits are kept to with the next record.
    pub fn load(&mut self, row: &RequestRow<'_>) {
        match row {
            RequestRow::Client { client: name, forgotten, last, last_timestamp } => {
                let name = self.used(name, *last, *last_timestamp);
                let client = self.clients.get_mut(&name).expect("it was used just now");
                client.forgotten = *forgotten;
            }
            RequestRow::Answer { sequence, timestamp, mark } => {
                self.insert(*sequence, *timestamp, mark);
            }
        }
    }

    /// Every row, clients first: what `load` makes the same window of.
    pub fn rows(&self, mut emit: impl FnMut(RequestRow<'_>)) {
        for (name, client) in &self.clients {
            emit(client.row(name));
        }
        for (&sequence, answer) in &self.answers {
            emit(answer.row(sequence));
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    fn insert(&mut self, sequence: Sequence, timestamp: Timestamp, mark: &RequestMark<'_>) {
        let RequestId { client: name, number, settled } = mark.id;
        let name = self.used(name, sequence, timestamp);
        let client = self.clients.get_mut(&name).expect("it was used just now");
        client.numbers.insert(number, sequence);
        let answer = Answer {
            client: name,
            number,
            settled,
            payload_hash: mark.payload_hash,
            timestamp,
            refusal: mark.refusal.clone(),
            values: mark.values.clone(),
        };
        self.more_bytes += answer.more_bytes();
        if let Some(replaced) = self.answers.insert(sequence, answer) {
            self.more_bytes -= replaced.more_bytes();
        }
    }

    /// The client, known if it was not, as one that wrote at this sequence, unless it has since.
    fn used(&mut self, name: &[u8], sequence: Sequence, timestamp: Timestamp) -> Arc<[u8]> {
        let Self { clients, by_use, .. } = self;
        let (name, is_new) = match clients.get_key_value(name) {
            Some((name, _)) => (Arc::clone(name), false),
            None => (Arc::from(name), true),
        };
        let client = clients.entry(Arc::clone(&name)).or_insert_with(|| Client {
            forgotten: 0,
            last: sequence,
            last_timestamp: timestamp,
            numbers: BTreeMap::new(),
        });
        if is_new || client.last < sequence {
            by_use.remove(&client.last);
            (client.last, client.last_timestamp) = (sequence, timestamp);
            by_use.insert(sequence, Arc::clone(&name));
        }
        name
    }

    /// Forgets an answer; `writing` is the client whose row is told of at the end.
    fn forget_answer(
        &mut self,
        at: Sequence,
        writing: &[u8],
        changed: &mut dyn FnMut(RequestChange<'_>),
    ) {
        let Some(answer) = self.answers.remove(&at) else { return };
        self.more_bytes -= answer.more_bytes();
        changed(RequestChange::ForgetAnswer(at));
        if let Some(client) = self.clients.get_mut(&answer.client) {
            if client.numbers.get(&answer.number) == Some(&at) {
                client.numbers.remove(&answer.number);
                client.forgotten = client.forgotten.max(answer.number);
            }
            if *answer.client != *writing {
                changed(RequestChange::Put(client.row(&answer.client)));
            }
        }
    }

    /// Forgets an answer of a client, or the client when it has none.
    fn forget_some_of(&mut self, name: &Arc<[u8]>, changed: &mut dyn FnMut(RequestChange<'_>)) {
        let client = self.clients.get_mut(name);
        match client.as_ref().and_then(|client| client.numbers.values().next().copied()) {
            Some(at) => self.forget_answer(at, &[], changed),
            None => {
                if let Some(client) = self.clients.remove(name) {
                    self.by_use.remove(&client.last);
                }
                changed(RequestChange::ForgetClient(name));
            }
        }
    }
}

impl Client {
    fn row<'a>(&self, client: &'a [u8]) -> RequestRow<'a> {
        let &Self { forgotten, last, last_timestamp, .. } = self;
        RequestRow::Client { client, forgotten, last, last_timestamp }
    }
}

impl Answer {
    fn row(&self, sequence: Sequence) -> RequestRow<'_> {
        let id = RequestId { client: &self.client, number: self.number, settled: self.settled };
        let mark = RequestMark {
            refusal: self.refusal.clone(),
            values: self.values.clone(),
            ..RequestMark::new(id, self.payload_hash)
        };
        RequestRow::Answer { sequence, timestamp: self.timestamp, mark }
    }
}

impl<'a> RequestRow<'a> {
    /// Appends the row's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Client { client, forgotten, last, last_timestamp } => {
                out.extend_from_slice(&[CLIENT_TAG, client.len() as u8]);
                out.extend_from_slice(&forgotten.to_le_bytes());
                out.extend_from_slice(&last.0.to_le_bytes());
                out.extend_from_slice(&last_timestamp.0.to_le_bytes());
                out.extend_from_slice(client);
            }
            Self::Answer { sequence, timestamp, mark } => {
                out.push(ANSWER_TAG);
                out.extend_from_slice(&sequence.0.to_le_bytes());
                out.extend_from_slice(&timestamp.0.to_le_bytes());
                mark.encode(&mut |piece| out.extend_from_slice(piece));
            }
        }
    }

    /// Reads a row, and what stands behind it. None: malformed.
    pub fn decode(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (tag, rest) = bytes.split_first()?;
        match *tag {
            CLIENT_TAG => {
                let (length, rest) = rest.split_first()?;
                let (forgotten, rest) = take_word(rest)?;
                let (last, rest) = take_word(rest)?;
                let (last_timestamp, rest) = take_word(rest)?;
                let (client, rest) = rest.split_at_checked(usize::from(*length))?;
                if client.is_empty() || client.len() > REQUEST_CLIENT_BYTES_MAX {
                    return None;
                }
                let (last, last_timestamp) = (Sequence(last), Timestamp(last_timestamp));
                Some((Self::Client { client, forgotten, last, last_timestamp }, rest))
            }
            ANSWER_TAG => {
                let (sequence, rest) = take_word(rest)?;
                let (timestamp, rest) = take_word(rest)?;
                let (mark, rest) = RequestMark::decode(rest)?;
                let (sequence, timestamp) = (Sequence(sequence), Timestamp(timestamp));
                Some((Self::Answer { sequence, timestamp, mark }, rest))
            }
            _ => None,
        }
    }

    /// The sequence that the row tells of.
    pub fn sequence(&self) -> Sequence {
        match self {
            Self::Client { last, .. } => *last,
            Self::Answer { sequence, .. } => *sequence,
        }
    }
}

fn take_word(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*word), rest))
}
