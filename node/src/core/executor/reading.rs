//! What reads ask for besides keys: the state that their session knows, and pages of a partition.

use stateside_partition::{Input, Scan, Ticket};
use stateside_proto::{
    scan::{ScanPlace, ScanQuery, decode_scan},
    session::{GET_SESSION, SessionTokens, decode_session},
};
use stateside_router::{Placement, UNOWNED};
use stateside_statestore::PageRequest;
use stateside_types::{
    AtLeast, PartitionId, Reason, Refusal,
    limits::{SCAN_PAGE_BYTES, SESSION_WAIT_MS_MAX},
};
use stateside_wire::Millis;

use super::{Executor, Verb, bad_node};
use crate::core::{calls::Outcome, world::StreamRef};

/// What a read of several partitions must not be older than.
pub(super) struct ReadSession {
    tokens: SessionTokens,
    wait_ms: u32,
}

impl ReadSession {
    pub(super) fn at_least(&self, partition: PartitionId) -> Option<AtLeast> {
        self.tokens.at_least(partition, self.wait_ms)
    }
}

impl Executor {
    /// What a read's session asks for. Three quarters of the time that the deadline leaves are for waiting: a
    /// refusal that says what the partition lacks is of more use than a deadline that passed.
    pub(super) fn session_of(
        &self,
        message: &[u8],
        deadline: Option<Millis>,
    ) -> Result<ReadSession, Refusal> {
        let tokens = decode_session(message, GET_SESSION)?;
        Ok(ReadSession { tokens, wait_ms: self.session_wait_ms(deadline) })
    }

    fn session_wait_ms(&self, deadline: Option<Millis>) -> u32 {
        let now_ms = self.world.turn_ns / 1_000_000;
        let left_ms = deadline.map_or(u64::MAX, |deadline| deadline.0.saturating_sub(now_ms));
        u32::try_from(left_ms / 4 * 3).unwrap_or(u32::MAX).min(SESSION_WAIT_MS_MAX)
    }

    /// A page of one partition's records.
    pub(super) fn scan(
        &mut self,
        stream: StreamRef,
        message: &[u8],
        deadline: Option<Millis>,
    ) -> Result<(), Refusal> {
        let query = decode_scan(message)?;
        let wait_ms = self.session_wait_ms(deadline);
        let route = match &query.place {
            ScanPlace::RoutingKey(key) => {
                match self.plan.place(&self.table, std::iter::once(&key[..]), None) {
                    Placement::One(route) if route != UNOWNED => Some(route),
                    _ => None,
                }
            }
            ScanPlace::Partition(id) => {
                let here = self.table.routes().iter().position(|route| route.id == *id);
                here.map(|route| route as u32)
            }
        };
        let Some(route) = route else { return Err(bad_node()) };
        let slot = self.open(stream, Verb::Scan, false)?;
        self.world.calls.get_mut(slot).has_session = query.session.is_some();
        let ticket = self.world.calls.add_part(slot, 0);
        if let Some(at) = self.local_slot(route) {
            let id = self.table.routes()[route as usize].id;
            self.scan_part(at, ticket, id, query, wait_ms);
        } else if let Some((requests, id)) = self.hop(ticket, route) {
            requests.push_scan(ticket, id, wait_ms, message);
        }
        Ok(())
    }

    pub(super) fn scan_part(
        &mut self,
        slot: u32,
        ticket: Ticket,
        id: PartitionId,
        query: ScanQuery,
        wait_ms: u32,
    ) {
        let ScanQuery { from, to, records_max, at, session, .. } = query;
        if at.is_some_and(|(of, ..)| of != id) {
            let text = format!("the continuation is not one of partition {id}");
            let refusal = Refusal::new(Reason::ScanMoved, text);
            return self.world.calls.finish(ticket, Outcome::Refused(refusal));
        }
        let page = PageRequest { from, to, records_max, bytes_max: SCAN_PAGE_BYTES };
        let scan = Scan { page, at: at.map(|(_, epoch, sequence)| (epoch, sequence)) };
        let session = session.and_then(|tokens| tokens.at_least(id, wait_ms));
        self.step_slot(slot, ticket, Input::Scan { ticket, scan: &scan, session });
    }
}
