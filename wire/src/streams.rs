//! All calls of one session, and what libnghttp2 calls back into.
//!
//! The hazard: these methods run inside `Connection::receive` and `Connection::send`, so they
//! cannot send, reset or grant anything. They take notes (`rejected`, `answered_early`,
//! `unconsumed_bytes`, `flooded`), and the session acts on them right after.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    rc::Rc,
};

use crate::{
    Millis,
    control_frames::ControlFrames,
    endpoint::Endpoint,
    nghttp2::{FrameHead, Handler, Read, Written, frame},
    rejection::Rejection,
    request_budget::{RequestBudget, Reserved},
    stream::{State, Stream, StreamId},
};

/// Stale entries of the request queue that are tolerated before it is swept.
const STALE_REQUESTS_MAX: usize = 64;

/// Lives in its session.
pub(crate) struct Streams {
    pub(crate) endpoint: Rc<Endpoint>,
    /// The time of the running call.
    pub(crate) now: Millis,
    slots: Vec<Stream>,
    free: Vec<u32>,
    by_number: HashMap<i32, u32, BuildHasherDefault<NumberHasher>>,
    /// The stream last looked up: frames of one come in runs.
    last: StreamId,
    /// Calls that are whole and not yet handed out, in order of arrival.
    requests: VecDeque<StreamId>,
    stale_requests: usize,
    /// Calls that were handed out and need no answer any more.
    pub(crate) cancelled: VecDeque<StreamId>,
    pub(crate) budget: RequestBudget,
    /// Streams that wait for a reservation, first come first served.
    waiting: VecDeque<StreamId>,
    /// Unsent bytes of all answers.
    pub(crate) backlog_bytes: usize,
    /// No deadline lies before this; it may be too early, never too late.
    pub(crate) next_deadline: Millis,
    control_frames: ControlFrames,

    // Notes for the session.
    pub(crate) rejected: Vec<(StreamId, Rejection)>,
    /// Streams answered before their client was done: to be reset once the answer is out.
    pub(crate) answered_early: Vec<i32>,
    pub(crate) unconsumed_bytes: usize,
    pub(crate) flooded: bool,
    pub(crate) settings_received: bool,
    pub(crate) ping_answered: bool,
    /// Where DATA frames go while `Connection::send` runs.
    pub(crate) out: Vec<u8>,
    /// Length of `out` at which no further frame is begun.
    pub(crate) out_bytes_max: usize,
}

impl Streams {
    pub(crate) fn new(endpoint: Rc<Endpoint>, now: Millis) -> Self {
        let budget = RequestBudget::new(endpoint.config.request_bytes_per_connection_max);
        Self {
            endpoint,
            now,
            slots: Vec::new(),
            free: Vec::new(),
            by_number: HashMap::default(),
            last: StreamId { number: 0, slot: 0 },
            requests: VecDeque::new(),
            stale_requests: 0,
            cancelled: VecDeque::new(),
            budget,
            waiting: VecDeque::new(),
            backlog_bytes: 0,
            next_deadline: Millis::NEVER,
            control_frames: ControlFrames::new(now),
            rejected: Vec::new(),
            answered_early: Vec::new(),
            unconsumed_bytes: 0,
            flooded: false,
            settings_received: false,
            ping_answered: false,
            out: Vec::new(),
            out_bytes_max: 0,
        }
    }

    /// Calls that are open.
    pub(crate) fn open(&self) -> usize {
        self.by_number.len()
    }

    /// The call, if it is still the one that `id` names.
    pub(crate) fn get(&mut self, id: StreamId) -> Option<&mut Stream> {
        let stream = self.slots.get_mut(id.slot as usize)?;
        (stream.number == id.number && stream.state != State::Free).then_some(stream)
    }

    /// The next call to hand out, which leaves the queue.
    pub(crate) fn pop_request(&mut self) -> Option<StreamId> {
        while let Some(id) = self.requests.pop_front() {
            if self.get(id).is_some_and(|stream| stream.state == State::Queued) {
                return Some(id);
            }
            self.stale_requests -= 1;
        }
        None
    }

    /// Takes the request message out of a stream: it no longer counts against the budget.
    pub(crate) fn take_message(&mut self, id: StreamId) -> Vec<u8> {
        let stream = &mut self.slots[id.slot as usize];
        self.budget.release(&self.endpoint.requests, &mut stream.holding);
        stream.incoming.reset()
    }

    /// The answer is decided, so the request's bytes are of no use any more.
    pub(crate) fn begin_answer(&mut self, id: StreamId) {
        let stream = &mut self.slots[id.slot as usize];
        if stream.state == State::Queued {
            self.stale_requests += 1;
        }
        stream.state = State::Answering;
        if !stream.remote_closed {
            self.answered_early.push(id.number);
        }
        let message = self.take_message(id);
        self.endpoint.recycle(message);
        self.sweep_requests();
    }

    /// Queues a framed answer, which is also the end of it. False: too much is unsent already;
    /// nothing was queued.
    pub(crate) fn put_answer(&mut self, id: StreamId, framed: Vec<u8>) -> bool {
        if self.backlog_bytes + framed.len() > self.endpoint.config.response_backlog_bytes_max
            || !self.endpoint.answers.add(framed.len())
        {
            self.endpoint.recycle(framed);
            return false;
        }
        let stream = &mut self.slots[id.slot as usize];
        stream.state = State::Answering;
        self.backlog_bytes += framed.len();
        self.control_frames.earn();
        let buffer = stream.outgoing.put(framed);
        stream.outgoing.end();
        self.endpoint.recycle(buffer);
        true
    }

    /// Answer bytes are no longer waiting.
    #[inline]
    fn unqueue(&mut self, bytes: usize) {
        self.backlog_bytes -= bytes;
        self.endpoint.answers.subtract(bytes);
    }

    /// Whether the stream is open and its client has not ended its side.
    pub(crate) fn still_sends(&mut self, number: i32) -> bool {
        self.find(number).is_some_and(|id| !self.slots[id.slot as usize].remote_closed)
    }

    /// Whether a call is under way that will be answered.
    pub(crate) fn any_unanswered(&self) -> bool {
        self.slots.iter().any(|stream| matches!(stream.state, State::Queued | State::Running))
    }

    /// Calls whose deadline is `now` or before; finds the next one on the way.
    pub(crate) fn expired(&mut self, now: Millis, expired: &mut Vec<StreamId>) {
        self.next_deadline = Millis::NEVER;
        for (slot, stream) in self.slots.iter().enumerate() {
            if matches!(stream.state, State::Free | State::Answering) {
                continue;
            }
            if stream.deadline <= now {
                expired.push(StreamId { number: stream.number, slot: slot as u32 });
            } else {
                self.next_deadline = self.next_deadline.min(stream.deadline);
            }
        }
    }

    /// Whether a stream waits for its reservation.
    pub(crate) fn any_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next stream whose whole message may come, and its bytes.
    pub(crate) fn next_grant(&mut self) -> Option<(i32, u32)> {
        while let Some(&id) = self.waiting.front() {
            // Not `get`: the budget is borrowed beside the stream.
            let stream = &mut self.slots[id.slot as usize];
            if stream.number == id.number && stream.state == State::Receiving {
                let total_bytes = stream.incoming.total_bytes().unwrap_or_default();
                let core = &self.endpoint.requests;
                match self.budget.reserve(core, &mut stream.holding, total_bytes) {
                    Reserved::NotYet => return None,
                    Reserved::Refused => self.reject(id, Rejection::RequestBytes),
                    Reserved::Yes => {
                        self.waiting.pop_front();
                        return Some((id.number, total_bytes));
                    }
                }
            }
            self.waiting.pop_front();
        }
        None
    }

    #[inline]
    fn find(&mut self, number: i32) -> Option<StreamId> {
        if self.last.number == number && number != 0 {
            return Some(self.last);
        }
        let slot = *self.by_number.get(&number)?;
        self.last = StreamId { number, slot };
        Some(self.last)
    }

    fn reject(&mut self, id: StreamId, rejection: Rejection) {
        self.begin_answer(id);
        self.rejected.push((id, rejection));
    }

    /// A request's headers are whole.
    fn head_received(&mut self, id: StreamId) {
        let stream = &mut self.slots[id.slot as usize];
        match stream.head.finish(&self.endpoint.config, self.now) {
            Ok((method, deadline)) => {
                stream.method = Some(method);
                stream.deadline = deadline;
                self.next_deadline = self.next_deadline.min(deadline);
            }
            Err(rejection) => self.reject(id, rejection),
        }
    }

    fn stream_ended(&mut self, id: StreamId) {
        let stream = &mut self.slots[id.slot as usize];
        stream.remote_closed = true;
        if stream.state != State::Receiving {
            return;
        }
        if stream.head.is_malformed() || stream.head.contradicts(stream.incoming.received_bytes()) {
            return self.reject(id, Rejection::Malformed);
        }
        match stream.incoming.finish() {
            Ok(()) => {
                stream.state = State::Queued;
                self.requests.push_back(id);
            }
            Err(rejection) => self.reject(id, rejection),
        }
    }

    /// Keeps entries of streams that are gone from piling up while calls wait to be started.
    fn sweep_requests(&mut self) {
        if self.stale_requests > STALE_REQUESTS_MAX && 2 * self.stale_requests > self.requests.len()
        {
            let slots = &self.slots;
            self.requests.retain(|id| {
                let stream = &slots[id.slot as usize];
                stream.number == id.number && stream.state == State::Queued
            });
            self.stale_requests = 0;
        }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        // What the connection held is there for others.
        self.endpoint.requests.subtract(self.budget.held_bytes());
        self.endpoint.answers.subtract(self.backlog_bytes);
    }
}

impl Handler for Streams {
    #[inline]
    fn frame_begins(&mut self, head: FrameHead) {
        if ControlFrames::costs(head) && !self.control_frames.spend(self.now) {
            self.flooded = true;
        }
    }

    fn headers_begin(&mut self, number: i32, opens: bool) {
        if !opens {
            return;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Stream::free());
            (self.slots.len() - 1) as u32
        });
        let buffer = self.endpoint.take_buffer();
        self.slots[slot as usize].open(number, buffer);
        self.by_number.insert(number, slot);
        self.last = StreamId { number, slot };
    }

    #[inline]
    fn header(&mut self, number: i32, name: &[u8], value: &[u8]) {
        let Some(id) = self.find(number) else { return };
        let stream = &mut self.slots[id.slot as usize];
        if stream.method.is_none() {
            stream.head.field(name, value, &self.endpoint.config);
        } else {
            stream.head.trailer(name, value);
        }
    }

    fn data(&mut self, number: i32, bytes: &[u8]) {
        self.unconsumed_bytes += bytes.len();
        let Some(id) = self.find(number) else { return };
        let stream = &mut self.slots[id.slot as usize];
        if stream.state != State::Receiving {
            return;
        }
        let config = &self.endpoint.config;
        if let Err(rejection) = stream.incoming.push(bytes, config.message_bytes_max) {
            return self.reject(id, rejection);
        }
        if !self.budget.receive(&self.endpoint.requests, &mut stream.holding, bytes.len()) {
            return self.reject(id, Rejection::RequestBytes);
        }
        if !stream.waits_for_window
            && stream.incoming.total_bytes().is_some_and(|total| total > config.stream_window_bytes)
        {
            // Noted once: the stream either gets its window or goes away.
            stream.waits_for_window = true;
            self.waiting.push_back(id);
        }
    }

    fn frame_received(&mut self, head: FrameHead) {
        match head.kind {
            frame::HEADERS | frame::DATA => {
                let Some(id) = self.find(head.stream) else { return };
                let stream = &self.slots[id.slot as usize];
                let ends = head.flags & frame::FLAG_END_STREAM != 0;
                if head.kind == frame::HEADERS && stream.state == State::Receiving {
                    if stream.method.is_none() {
                        self.head_received(id);
                    } else if !ends {
                        // Trailers that do not end the stream.
                        return self.reject(id, Rejection::Malformed);
                    }
                }
                if ends {
                    self.stream_ended(id);
                }
            }
            frame::SETTINGS => self.settings_received = true,
            frame::PING if head.flags & frame::FLAG_ACK != 0 => self.ping_answered = true,
            _ => {}
        }
    }

    fn stream_closed(&mut self, number: i32) {
        let Some(slot) = self.by_number.remove(&number) else { return };
        let id = StreamId { number, slot };
        if self.last == id {
            self.last = StreamId { number: 0, slot: 0 };
        }
        let stream = &mut self.slots[slot as usize];
        match stream.state {
            State::Running => self.cancelled.push_back(id),
            State::Queued => self.stale_requests += 1,
            _ => {}
        }
        stream.state = State::Free;
        let unsent = stream.outgoing.unsent();
        let answer = stream.outgoing.reset();
        self.unqueue(unsent);
        self.endpoint.recycle(answer);
        let message = self.take_message(id);
        self.endpoint.recycle(message);
        self.free.push(slot);
        self.sweep_requests();
    }

    fn read(&mut self, slot: u32, limit: usize) -> Read<'_> {
        match self.slots.get(slot as usize) {
            Some(stream) => stream.outgoing.read(limit),
            None => Read::Later,
        }
    }

    fn write_data(&mut self, slot: u32, head: &[u8; 9], length: usize) -> Written {
        let Some(stream) = self.slots.get_mut(slot as usize) else { return Written::Missing };
        self.out.extend_from_slice(head);
        if !stream.outgoing.write(&mut self.out, length) {
            self.out.truncate(self.out.len() - head.len());
            return Written::Missing;
        }
        self.unqueue(length);
        self.control_frames.earn();
        if self.out.len() < self.out_bytes_max { Written::More } else { Written::Enough }
    }
}

/// Fibonacci hashing: stream numbers are odd and count up, so the product's top bits spread
/// well. A client that picks colliding numbers slows its own connection, within `streams_max`.
#[derive(Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not reached: an `i32` hashes through `write_i32`.
        for byte in bytes {
            self.write_i32(i32::from(*byte));
        }
    }

    fn write_i32(&mut self, number: i32) {
        let product = (self.0 ^ u64::from(number as u32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }
}
