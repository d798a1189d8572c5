//! How requests wait: which begin at once, which queue, which are refused.

use stateside_types::{Reason, Refusal, StageKind, limits::PARTITION_QUEUE_MAX};

use super::{Effects, Partition, Ticket, UpdateTerms, refuse};
use crate::{Scan, owned::Owned};

impl Partition {
    pub(crate) fn start_read(
        &mut self,
        ticket: Ticket,
        keys: &[&[u8]],
        effects: &mut impl Effects,
    ) {
        if self.is_split {
            self.read_apart(ticket, keys, effects);
        } else if !self.must_queue(|| Owned::read(ticket, keys), effects)
            && !self.read(ticket, keys, effects)
        {
            self.queue.push_back(Owned::read(ticket, keys));
        }
    }

    pub(crate) fn start_scan(&mut self, ticket: Ticket, scan: &Scan, effects: &mut impl Effects) {
        let owned = || Owned::Scan { ticket, scan: scan.clone() };
        if self.is_split {
            self.scan_apart(ticket, scan, effects);
        } else if !self.must_queue(owned, effects) && !self.scan(ticket, scan, effects) {
            self.queue.push_back(owned());
        }
    }

    /// Queues the request behind one that waits for its store; or refuses it. True: dealt with.
    pub(crate) fn must_queue(
        &mut self,
        owned: impl FnOnce() -> Owned,
        effects: &mut impl Effects,
    ) -> bool {
        if let Some(refusal) = &self.halted {
            refuse(&owned(), refusal.clone(), effects);
            return true;
        }
        if self.queue.is_empty() {
            return false;
        }
        let limit = self.queue_max();
        let owned = owned();
        if self.queue.len() < limit {
            self.queue.push_back(owned);
        } else {
            let what = if self.is_split { "writes" } else { "requests" };
            let message = format!("partition {} has {limit} {what} waiting", self.spec.id);
            refuse(&owned, Refusal::new(Reason::Overloaded, message), effects);
        }
        true
    }

    /// Requests that wait for the store's disk, in each queue.
    pub(crate) fn queue_max(&self) -> usize {
        if self.pipeline.has(StageKind::Dispatcher) { PARTITION_QUEUE_MAX } else { 1 }
    }

    /// Reads and writes that wait for the store's disk.
    pub fn queued(&self) -> (usize, usize) {
        let is_write = |owned: &&Owned| matches!(owned, Owned::Write { .. } | Owned::Update { .. });
        let writes = self.queue.iter().filter(is_write).count();
        (self.queue.len() - writes + self.disk_reads.len(), writes)
    }

    /// The store's work has ended: goes on with the queue as far as it gets.
    pub(super) fn retry_queue(&mut self, effects: &mut impl Effects) {
        while let Some(front) = self.queue.pop_front() {
            let answered = match &front {
                Owned::Read { ticket, keys } => {
                    let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
                    self.read(*ticket, &keys, effects)
                }
                Owned::Update { ticket, ack, request, return_values, entries } => {
                    let entries: Vec<_> = entries.iter().map(|entry| entry.borrow()).collect();
                    let request = request.as_ref().map(|request| request.borrow());
                    let (ack, return_values) = (*ack, *return_values);
                    let terms = UpdateTerms { ack, request, return_values };
                    self.update_values(*ticket, &entries, terms, effects)
                }
                Owned::Scan { ticket, scan } => self.scan(*ticket, scan, effects),
                Owned::Write { ticket, ack, request, entries } => {
                    let entries: Vec<_> = entries.iter().map(|entry| entry.borrow()).collect();
                    let request = request.as_ref().map(|request| request.borrow());
                    self.write(*ticket, &entries, *ack, request, effects)
                }
            };
            if !answered {
                self.queue.push_front(front);
                return;
            }
            self.store.forget_fetched();
        }
    }
}
