//! Executes requests: the partitions, calls and hops of one core. Knows no socket.
//!
//! ```text
//!   message ─decode─► entries ─place─► one partition here ──► step, inline
//!                                 ├──► one partition there ─► hop
//!                                 └──► several ─► a part each, as above
//! ```
//! Lives on its core's thread. Buffers for decoding are kept, so a request of one partition
//! allocates nothing here.

mod reading;
mod update;

use std::{collections::HashMap, io, mem, sync::Arc};

use stateside_partition::{Input, Partition, Ticket};
use stateside_pipeline::log::LogFailed;
use stateside_proto::{
    codec::{self, WriteResultBytes},
    scan::decode_scan,
};
use stateside_router::{BatchPlan, Placement, RoutingTable, UNOWNED};
use stateside_types::{
    CoreId, Epoch, PartitionId, PartitionSpec, PartitionState, Reason, Refusal, Sequence,
    UpdateEntry, WriteEntry,
    limits::{EXPIRED_PER_TICK_MAX, HOPS_PER_CORE_PAIR_MAX, PARTITIONS_PER_TICK},
};
use stateside_wire::Millis;

use reading::ReadSession;

use super::{
    calls::{Origin, Outcome},
    hop::{HopAnswer, HopAnswers, HopKind, HopOutcome, HopRequests},
    world::{PartitionEffects, StreamRef, World},
};
use crate::metrics::CoreMetrics;

pub(crate) use update::{assemble_update, assemble_values};

/// A route's partition is not on this core.
const ELSEWHERE: u32 = u32::MAX;

/// A partition that this core owns.
pub(crate) enum Hosted {
    /// Serves, or has stopped by itself and says so.
    Here(Box<Partition>),
    /// Cannot serve: starting, being restored, or damaged.
    Down(PartitionSpec, PartitionState, Refusal),
}

impl Hosted {
    pub(crate) fn spec(&self) -> &PartitionSpec {
        match self {
            Self::Here(partition) => partition.spec(),
            Self::Down(spec, ..) => spec,
        }
    }
}

/// A data plane call that executes on partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Upsert,
    Get,
    Remove,
    Scan,
    Update,
}

/// See the module's header.
pub(crate) struct Executor {
    core: CoreId,
    table: Arc<RoutingTable>,
    /// For each route of the table the slot of its partition, or [`ELSEWHERE`].
    local: Vec<u32>,
    slots: Vec<Option<Hosted>>,
    by_id: HashMap<PartitionId, u32>,
    pub(crate) world: World,
    plan: BatchPlan,
    parts: PartScratch,
    entries: Vec<WriteEntry<'static>>,
    updates: Vec<UpdateEntry<'static>>,
    keys: Vec<&'static [u8]>,
    /// Requests to each core, and answers, that leave at the end of the turn.
    pub(crate) requests_out: Vec<HopRequests>,
    pub(crate) answers_out: Vec<HopAnswers>,
    /// Requests out at each core.
    hops_out: Vec<usize>,
    /// The slot whose partition is the first to reclaim at the next tick.
    reclaim_from: usize,
}

/// An entry of a batch that writes.
trait Keyed {
    fn key(&self) -> &[u8];
}

impl Keyed for WriteEntry<'_> {
    #[inline]
    fn key(&self) -> &[u8] {
        self.key
    }
}

impl Keyed for UpdateEntry<'_> {
    #[inline]
    fn key(&self) -> &[u8] {
        self.key
    }
}

/// Which part of a call each route has got. Stamped instead of cleared: there may be thousands
/// of routes and a batch touches few.
#[derive(Default)]
struct PartScratch {
    stamp: u32,
    of_route: Vec<(u32, u16)>,
    counts: Vec<u32>,
    routes: Vec<u32>,
    order: Vec<u32>,
}

impl PartScratch {
    /// Numbers the distinct routes of a batch and orders its entries by them, stably.
    /// Fills `part_of_entry`.
    fn group(&mut self, routes: &[u32], route_count: usize, part_of_entry: &mut Vec<u16>) {
        self.stamp = self.stamp.wrapping_add(1);
        if self.stamp == 0 || self.of_route.len() != route_count + 1 {
            self.of_route.clear();
            self.of_route.resize(route_count + 1, (0, 0));
            self.stamp = 1;
        }
        self.counts.clear();
        self.routes.clear();
        part_of_entry.clear();
        for &route in routes {
            // The last place stands for keys that nobody owns.
            let place = &mut self.of_route[(route as usize).min(route_count)];
            if place.0 != self.stamp {
                *place = (self.stamp, self.routes.len() as u16);
                self.routes.push(route);
                self.counts.push(0);
            }
            self.counts[usize::from(place.1)] += 1;
            part_of_entry.push(place.1);
        }
        let mut next = 0;
        let mut starts: Vec<u32> = self
            .counts
            .iter()
            .map(|count| {
                let start = next;
                next += count;
                start
            })
            .collect();
        self.order.clear();
        self.order.resize(routes.len(), 0);
        for (entry, &part) in part_of_entry.iter().enumerate() {
            let start = &mut starts[usize::from(part)];
            self.order[*start as usize] = entry as u32;
            *start += 1;
        }
    }
}

impl Executor {
    pub(crate) fn new(core: CoreId, cores: usize, world: World, seed: u64) -> Self {
        Self {
            core,
            table: Arc::default(),
            local: Vec::new(),
            slots: Vec::new(),
            by_id: HashMap::new(),
            world,
            plan: BatchPlan::new(seed),
            parts: PartScratch::default(),
            entries: Vec::new(),
            updates: Vec::new(),
            keys: Vec::new(),
            requests_out: (0..cores).map(|_| HopRequests::default()).collect(),
            answers_out: (0..cores).map(|_| HopAnswers::default()).collect(),
            hops_out: vec![0; cores],
            reclaim_from: 0,
        }
    }

    /// The node's partition set as this core knows it.
    pub(crate) fn table(&self) -> &Arc<RoutingTable> {
        &self.table
    }

    /// Takes over a new partition set.
    pub(crate) fn set_table(&mut self, table: Arc<RoutingTable>) {
        self.table = table;
        self.locate();
    }

    /// Hosts a partition, or replaces what is hosted under its id.
    pub(crate) fn host(&mut self, hosted: Hosted) {
        let id = hosted.spec().id;
        let slot = match self.by_id.get(&id) {
            Some(slot) => *slot as usize,
            None => self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
                self.slots.push(None);
                self.slots.len() - 1
            }),
        };
        self.slots[slot] = Some(hosted);
        self.by_id.insert(id, slot as u32);
        self.locate();
    }

    /// Takes a partition out of service.
    pub(crate) fn unhost(&mut self, id: PartitionId) -> Option<Hosted> {
        let slot = self.by_id.remove(&id)?;
        let hosted = self.slots[slot as usize].take();
        self.locate();
        hosted
    }

    /// A hosted partition.
    pub(crate) fn hosted(&self, id: PartitionId) -> Option<&Hosted> {
        self.slots[*self.by_id.get(&id)? as usize].as_ref()
    }

    /// Every hosted partition.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Hosted> {
        self.slots.iter().flatten()
    }

    /// A hosted partition that serves (or has stopped), and what it may act on.
    pub(crate) fn partition(
        &mut self,
        id: PartitionId,
    ) -> Option<(&mut Partition, PartitionEffects<'_>)> {
        match self.slots[*self.by_id.get(&id)? as usize].as_mut()? {
            Hosted::Here(partition) => {
                let effects = PartitionEffects::new(&mut self.world, partition);
                Some((partition, effects))
            }
            Hosted::Down(..) => None,
        }
    }

    /// Has up to [`PARTITIONS_PER_TICK`] partitions take out expired records, [`EXPIRED_PER_TICK_MAX`]
    /// in all; the next tick goes on where this one ended.
    pub(crate) fn reclaim_expired(&mut self) {
        let mut left = EXPIRED_PER_TICK_MAX;
        let slots = self.slots.len();
        let all = (self.reclaim_from..slots).chain(0..self.reclaim_from.min(slots));
        for at in all.take(PARTITIONS_PER_TICK) {
            self.reclaim_from = at + 1;
            let Some(Hosted::Here(partition)) = &mut self.slots[at] else { continue };
            let mut effects = PartitionEffects::new(&mut self.world, partition);
            left -= partition.reclaim(left, &mut effects);
            if left == 0 {
                self.reclaim_from = at;
                return;
            }
        }
    }

    /// Feeds an input to every partition that serves.
    pub(crate) fn step_all(&mut self, mut input: impl FnMut() -> Input<'static>) {
        for hosted in self.slots.iter_mut().flatten() {
            if let Hosted::Here(partition) = hosted {
                let mut effects = PartitionEffects::new(&mut self.world, partition);
                partition.step(input(), &mut effects);
            }
        }
    }

    /// The log's write has ended: partitions hear up to where they are durable.
    ///
    /// # Errors
    /// The log is over.
    pub(crate) fn log_written(
        &mut self,
        result: io::Result<()>,
        metrics: &CoreMetrics,
    ) -> Result<(), LogFailed> {
        let durable = self.world.log.written(result, metrics)?;
        for durable in &durable {
            let Some((partition, mut effects)) = self.partition(durable.partition) else {
                continue;
            };
            if partition.spec().first_epoch == durable.epoch {
                partition.step(Input::LogDurable(durable.sequence), &mut effects);
            }
        }
        self.world.log.take_back(durable);
        Ok(())
    }

    /// Answers that have waited too long for Kafka leave.
    pub(crate) fn tell_who_waits_for_kafka(&mut self) {
        let Some(kafka) = &self.world.kafka else { return };
        for (id, through) in kafka.late() {
            let Some(kafka) = &self.world.kafka else { return };
            let refusal = kafka.unknown_outcome(id);
            if let Some((partition, mut effects)) = self.partition(id) {
                partition.step(Input::LogSilent(through, refusal), &mut effects);
            }
        }
    }

    /// Ends the service of every partition that writes to the core's log, with the same refusal.
    pub(crate) fn halt_all(&mut self, refusal: &Refusal) {
        for hosted in self.slots.iter_mut().flatten() {
            if let Hosted::Here(partition) = hosted
                && !partition.spec().is_logged_in_kafka()
            {
                let mut effects = PartitionEffects::new(&mut self.world, partition);
                partition.halt(refusal.clone(), &mut effects);
            }
        }
    }

    /// Executes a request. Its answer is ready in `world.calls` now or later. Gives the message
    /// back unless the call has to keep it.
    ///
    /// # Errors
    /// The refusal of the whole call, and the message.
    pub(crate) fn request(
        &mut self,
        stream: StreamRef,
        verb: Verb,
        message: Vec<u8>,
        deadline: Option<Millis>,
    ) -> Result<Option<Vec<u8>>, (Refusal, Vec<u8>)> {
        self.world.requests += 1;
        let kept = match verb {
            Verb::Get => self.read(stream, &message, deadline),
            Verb::Upsert => self.write(stream, verb, &message),
            Verb::Remove => self.write(stream, verb, &message),
            Verb::Scan => self.scan(stream, &message, deadline).map(|()| None),
            Verb::Update => self.update(stream, &message),
        };
        match kept {
            Ok(None) => Ok(Some(message)),
            Ok(Some(slot)) => {
                self.world.calls.get_mut(slot).message = message;
                Ok(None)
            }
            Err(refusal) => Err((refusal, message)),
        }
    }

    /// The slot of the call when it keeps the message.
    fn read(
        &mut self,
        stream: StreamRef,
        message: &[u8],
        deadline: Option<Millis>,
    ) -> Result<Option<u32>, Refusal> {
        let mut keys = codec::recycle_keys(mem::take(&mut self.keys));
        let done = codec::decode_get(message, &mut keys).and_then(|head| {
            let session = match head.has_session {
                true => Some(self.session_of(message, deadline)?),
                false => None,
            };
            self.place_read(stream, &keys, head.routing_key, session.as_ref())
        });
        self.keys = codec::recycle_keys(keys);
        done
    }

    fn place_read(
        &mut self,
        stream: StreamRef,
        keys: &[&[u8]],
        routing_key: Option<&[u8]>,
        session: Option<&ReadSession>,
    ) -> Result<Option<u32>, Refusal> {
        match self.plan.place(&self.table, keys.iter().copied(), routing_key) {
            Placement::One(UNOWNED) => Err(bad_node()),
            Placement::One(route) => {
                let slot = self.open(stream, Verb::Get, false)?;
                self.world.calls.get_mut(slot).has_session = session.is_some();
                let ticket = self.world.calls.add_part(slot, keys.len());
                self.read_part(ticket, route, keys, session);
                Ok(None)
            }
            Placement::Several => {
                let slot = self.open(stream, Verb::Get, true)?;
                self.world.calls.get_mut(slot).has_session = session.is_some();
                self.group(slot);
                let order = mem::take(&mut self.parts.order);
                let sorted: Vec<&[u8]> = order.iter().map(|&at| keys[at as usize]).collect();
                self.parts.order = order;
                self.each_part(slot, |this, ticket, route, start, end| {
                    this.read_part(ticket, route, &sorted[start..end], session);
                });
                Ok(Some(slot))
            }
        }
    }

    fn read_part(
        &mut self,
        ticket: Ticket,
        route: u32,
        keys: &[&[u8]],
        session: Option<&ReadSession>,
    ) {
        let session =
            session.and_then(|session| session.at_least(self.table.routes()[route as usize].id));
        let Some(slot) = self.local_slot(route) else {
            let Some((requests, id)) = self.hop(ticket, route) else { return };
            return requests.push_read(ticket, id, session, keys.iter().copied());
        };
        self.step_slot(slot, ticket, Input::Read { ticket, keys, session });
    }

    /// The slot of the call when it keeps the message.
    fn write(
        &mut self,
        stream: StreamRef,
        verb: Verb,
        message: &[u8],
    ) -> Result<Option<u32>, Refusal> {
        let mut entries = codec::recycle_entries(mem::take(&mut self.entries));
        let decoded = match verb {
            Verb::Remove => codec::decode_remove(message, &mut entries),
            _ => codec::decode_upsert(message, &mut entries),
        };
        let done = decoded.and_then(|head| {
            self.place_write(stream, verb, &entries, &head, |this, ticket, route, part| {
                this.write_part(ticket, route, part, &head);
            })
        });
        self.entries = codec::recycle_entries(entries);
        done
    }

    /// `run` executes a part.
    fn place_write<E: Keyed + Copy>(
        &mut self,
        stream: StreamRef,
        verb: Verb,
        entries: &[E],
        head: &codec::WriteHead<'_>,
        run: impl Fn(&mut Self, Ticket, u32, &[E]),
    ) -> Result<Option<u32>, Refusal> {
        self.plan.check_duplicates(entries.len(), |at| entries[at].key())?;
        let keys = entries.iter().map(Keyed::key);
        match self.plan.place(&self.table, keys, head.routing_key) {
            Placement::One(UNOWNED) => Err(bad_node()),
            Placement::One(route) => {
                let slot = self.open(stream, verb, false)?;
                self.world.calls.get_mut(slot).has_session = head.has_session;
                let ticket = self.world.calls.add_part(slot, entries.len());
                run(self, ticket, route, entries);
                Ok(None)
            }
            Placement::Several if head.atomic => Err(Refusal::new(
                Reason::AtomicSpansPartitions,
                "the keys of the atomic batch live in several partitions; nothing was written",
            )),
            Placement::Several => {
                let slot = self.open(stream, verb, false)?;
                self.world.calls.get_mut(slot).has_session = head.has_session;
                self.group(slot);
                let order = mem::take(&mut self.parts.order);
                let sorted: Vec<_> = order.iter().map(|&at| entries[at as usize]).collect();
                self.parts.order = order;
                self.each_part(slot, |this, ticket, route, start, end| {
                    run(this, ticket, route, &sorted[start..end]);
                });
                Ok(None)
            }
        }
    }

    fn write_part(
        &mut self,
        ticket: Ticket,
        route: u32,
        entries: &[WriteEntry<'_>],
        &codec::WriteHead { ack, request, .. }: &codec::WriteHead<'_>,
    ) {
        let Some(slot) = self.local_slot(route) else {
            let Some((requests, id)) = self.hop(ticket, route) else { return };
            return requests.push_write(ticket, id, ack, request, entries.iter().copied());
        };
        self.step_slot(slot, ticket, Input::Write { ticket, entries, ack, request });
    }

    /// Executes what another core sent; answers go to `answers_out` as they become ready.
    pub(crate) fn hopped(&mut self, from: CoreId, batch: &HopRequests) {
        let mut keys = Vec::new();
        let mut entries = Vec::new();
        let mut updates = Vec::new();
        for request in batch.requests() {
            let method = match request.kind {
                HopKind::Read(_) => Verb::Get,
                HopKind::Scan(_) => Verb::Scan,
                HopKind::Write { .. } => Verb::Upsert,
                HopKind::Update { .. } => Verb::Update,
            };
            let origin = Origin::Hop(from, request.ticket);
            let now = self.world.turn_ns;
            let slot = match self.world.calls.open(origin, method as u8, now, true) {
                Ok(slot) => slot,
                Err(refusal) => {
                    let outcome = HopOutcome::Refused(refusal);
                    let answer = HopAnswer { ticket: request.ticket, outcome };
                    self.answers_out[usize::from(from.0)].answers.push(answer);
                    continue;
                }
            };
            let hosted = self.by_id.get(&request.partition).copied();
            match request.kind {
                HopKind::Read(session) => {
                    batch.keys(request, &mut keys);
                    let ticket = self.world.calls.add_part(slot, keys.len());
                    let input = Input::Read { ticket, keys: &keys, session };
                    match hosted {
                        Some(at) => self.step_slot(at, ticket, input),
                        None => self.world.calls.finish(ticket, Outcome::Refused(bad_node())),
                    }
                }
                HopKind::Scan(wait_ms) => {
                    let ticket = self.world.calls.add_part(slot, 0);
                    match (hosted, decode_scan(batch.message(request))) {
                        (Some(at), Ok(query)) => {
                            self.scan_part(at, ticket, request.partition, query, wait_ms);
                        }
                        (None, _) => self.world.calls.finish(ticket, Outcome::Refused(bad_node())),
                        (_, Err(refusal)) => {
                            self.world.calls.finish(ticket, Outcome::Refused(refusal));
                        }
                    }
                }
                HopKind::Write { ack, .. } => {
                    let id = batch.entries(request, &mut entries);
                    let ticket = self.world.calls.add_part(slot, entries.len());
                    let input = Input::Write { ticket, entries: &entries, ack, request: id };
                    match hosted {
                        Some(at) => self.step_slot(at, ticket, input),
                        None => self.world.calls.finish(ticket, Outcome::Refused(bad_node())),
                    }
                }
                HopKind::Update { ack, return_values, .. } => {
                    let id = batch.updates(request, &mut updates);
                    let ticket = self.world.calls.add_part(slot, updates.len());
                    let entries = &updates;
                    let input = Input::Update { ticket, entries, ack, request: id, return_values };
                    match hosted {
                        Some(at) => self.step_slot(at, ticket, input),
                        None => self.world.calls.finish(ticket, Outcome::Refused(bad_node())),
                    }
                }
            }
        }
    }

    /// Takes answers from another core.
    pub(crate) fn hop_answered(&mut self, from: CoreId, batch: HopAnswers) {
        self.hops_out[usize::from(from.0)] -= batch.answers.len();
        for HopAnswer { ticket, outcome } in batch.answers {
            let outcome = match outcome {
                HopOutcome::Read { body, ends, token } => {
                    self.world.calls.take_records(ticket, body, ends);
                    Outcome::Read(token)
                }
                HopOutcome::Written(token, timestamp) => Outcome::Written(token, timestamp),
                HopOutcome::Updated { token, timestamp, body, ends } => {
                    self.world.calls.take_values(ticket, body, ends);
                    Outcome::Written(token, timestamp)
                }
                HopOutcome::Refused(refusal) => Outcome::Refused(refusal),
            };
            self.world.calls.finish(ticket, outcome);
        }
    }

    /// Moves the answer of a ready call that came from another core to `answers_out`.
    pub(crate) fn answer_hop(&mut self, slot: u32, to: CoreId, ticket: Ticket) {
        let part = &mut self.world.calls.get_mut(slot).parts_mut()[0];
        let outcome = match mem::replace(&mut part.outcome, Outcome::Waiting) {
            Outcome::Read(token) => HopOutcome::Read {
                body: mem::take(&mut part.body),
                ends: mem::take(&mut part.ends),
                token,
            },
            Outcome::Written(token, timestamp) if !part.ends.is_empty() => HopOutcome::Updated {
                token,
                timestamp,
                body: mem::take(&mut part.body),
                ends: mem::take(&mut part.ends),
            },
            Outcome::Written(token, timestamp) => HopOutcome::Written(token, timestamp),
            Outcome::Refused(refusal) => HopOutcome::Refused(refusal),
            Outcome::Waiting => unreachable!("the call is ready"),
        };
        self.answers_out[usize::from(to.0)].answers.push(HopAnswer { ticket, outcome });
        self.world.calls.close(slot);
    }

    /// Requests out at other cores.
    pub(crate) fn hops_pending(&self) -> usize {
        self.hops_out.iter().sum()
    }

    /// Whether no partition waits for a piece of store work.
    pub(crate) fn is_quiet(&self) -> bool {
        self.all().all(|hosted| match hosted {
            Hosted::Here(partition) => partition.is_quiet(),
            Hosted::Down(..) => true,
        })
    }

    /// Up to where each hosted partition's content survives without the log. A partition that
    /// is down keeps all of its log.
    pub(crate) fn coverage(
        &self,
        covered: impl Fn(&Partition) -> Sequence,
    ) -> HashMap<(PartitionId, Epoch), Sequence> {
        self.all()
            .map(|hosted| {
                let spec = hosted.spec();
                let sequence = match hosted {
                    Hosted::Here(partition) => covered(partition),
                    Hosted::Down(..) => Sequence::ZERO,
                };
                ((spec.id, spec.first_epoch), sequence)
            })
            .collect()
    }

    fn open(&mut self, stream: StreamRef, verb: Verb, indexed: bool) -> Result<u32, Refusal> {
        let now = self.world.turn_ns;
        self.world.calls.open(Origin::Stream(stream), verb as u8, now, indexed)
    }

    fn group(&mut self, slot: u32) {
        let part_of_entry = &mut self.world.calls.get_mut(slot).part_of_entry;
        self.parts.group(self.plan.routes(), self.table.routes().len(), part_of_entry);
    }

    /// Adds a part for each distinct route and runs it. All parts are added before the first
    /// runs: a call with one of its parts done must not look complete.
    fn each_part(&mut self, slot: u32, mut run: impl FnMut(&mut Self, Ticket, u32, usize, usize)) {
        let counts = mem::take(&mut self.parts.counts);
        let routes = mem::take(&mut self.parts.routes);
        let tickets: Vec<Ticket> =
            counts.iter().map(|&n| self.world.calls.add_part(slot, n as usize)).collect();
        let mut start = 0;
        for ((ticket, route), count) in tickets.into_iter().zip(&routes).zip(&counts) {
            let end = start + *count as usize;
            if *route == UNOWNED {
                self.world.calls.finish(ticket, Outcome::Refused(bad_node()));
            } else {
                run(self, ticket, *route, start, end);
            }
            start = end;
        }
        self.parts.counts = counts;
        self.parts.routes = routes;
    }

    fn local_slot(&self, route: u32) -> Option<u32> {
        let slot = self.local[route as usize];
        (slot != ELSEWHERE).then_some(slot)
    }

    fn step_slot(&mut self, slot: u32, ticket: Ticket, input: Input<'_>) {
        match &mut self.slots[slot as usize] {
            Some(Hosted::Here(partition)) => {
                let before = self.world.memory.is_limited().then(|| partition.stats());
                let mut effects = PartitionEffects::new(&mut self.world, partition);
                partition.step(input, &mut effects);
                if let Some(before) = before {
                    self.world.memory.grown(before.memory_bytes, partition.stats().memory_bytes);
                }
            }
            Some(Hosted::Down(_, _, refusal)) => {
                let outcome = Outcome::Refused(refusal.clone());
                self.world.calls.finish(ticket, outcome);
            }
            None => self.world.calls.finish(ticket, Outcome::Refused(bad_node())),
        }
    }

    /// Where to put a request for a partition of another core; None: it was refused.
    fn hop(&mut self, ticket: Ticket, route: u32) -> Option<(&mut HopRequests, PartitionId)> {
        let route = &self.table.routes()[route as usize];
        let to = usize::from(route.core.0);
        if route.core == self.core || to >= self.hops_out.len() {
            // Ours by the table, but not hosted (yet, or any more).
            self.world.calls.finish(ticket, Outcome::Refused(bad_node()));
            return None;
        }
        if self.hops_out[to] >= HOPS_PER_CORE_PAIR_MAX {
            let text = format!("{HOPS_PER_CORE_PAIR_MAX} requests wait for core {to}");
            let refusal = Refusal::new(Reason::Overloaded, text);
            self.world.calls.finish(ticket, Outcome::Refused(refusal));
            return None;
        }
        self.hops_out[to] += 1;
        self.world.hops += 1;
        Some((&mut self.requests_out[to], route.id))
    }

    fn locate(&mut self) {
        self.local.clear();
        self.local.extend(self.table.routes().iter().map(|route| {
            if route.core != self.core {
                return ELSEWHERE;
            }
            self.by_id.get(&route.id).copied().unwrap_or(ELSEWHERE)
        }));
    }
}

/// Without the owner: the registry declares this node's partitions and no other's.
fn bad_node() -> Refusal {
    Refusal::new(Reason::BadNode, "no partition of this node owns the key")
}

/// Writes the answer of a ready `Get` of several partitions, in the request's order.
pub(crate) fn assemble_read(
    parts: &[super::calls::Part],
    part_of_entry: &[u16],
    message: &[u8],
    out: &mut Vec<u8>,
) {
    // Each part has its records in the request's order: a cursor per part is enough.
    let mut cursors = vec![(0_usize, 0_usize); parts.len()];
    let mut keys = Vec::new();
    for (entry, &at) in part_of_entry.iter().enumerate() {
        let part = &parts[usize::from(at)];
        match &part.outcome {
            Outcome::Refused(refusal) => {
                if keys.is_empty() {
                    // Decoded once before, so this succeeds; an error would leave keys unnamed.
                    let _ = codec::decode_get(message, &mut keys);
                }
                codec::encode_record_refused(out, keys.get(entry).unwrap_or(&&[][..]), refusal);
            }
            _ => {
                let (index, start) = cursors[usize::from(at)];
                let end = part.ends[index] as usize;
                out.extend_from_slice(&part.body[start..end]);
                cursors[usize::from(at)] = (index + 1, end);
            }
        }
    }
}

/// Writes the answer of a ready write of several partitions, in the request's order.
pub(crate) fn assemble_write(
    parts: &[super::calls::Part],
    part_of_entry: &[u16],
    out: &mut Vec<u8>,
) {
    let results: Vec<_> = parts
        .iter()
        .map(|part| match &part.outcome {
            Outcome::Written(token, timestamp) => {
                Ok(WriteResultBytes::new(token.sequence, *timestamp))
            }
            Outcome::Refused(refusal) => {
                let mut refused = Vec::new();
                codec::encode_write_refused(&mut refused, refusal);
                Err(refused)
            }
            Outcome::Read(_) | Outcome::Waiting => unreachable!("a write's part, and ready"),
        })
        .collect();
    for &at in part_of_entry {
        match &results[usize::from(at)] {
            Ok(result) => result.append_to(out),
            Err(refused) => out.extend_from_slice(refused),
        }
    }
}
