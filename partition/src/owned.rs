//! Requests that own their bytes: those that wait while the store asks the disk.

use stateside_types::{
    Ack, Change, Condition, Expiry, Operator, RequestId, UpdateEntry, WriteEntry,
};

use crate::{Scan, Ticket};

/// A request in the partition's queue.
#[derive(Debug)]
pub(crate) enum Owned {
    Read {
        ticket: Ticket,
        keys: Vec<Vec<u8>>,
    },
    Scan {
        ticket: Ticket,
        scan: Scan,
    },
    Write {
        ticket: Ticket,
        ack: Option<Ack>,
        request: Option<OwnedRequestId>,
        entries: Vec<OwnedEntry>,
    },
    Update {
        ticket: Ticket,
        ack: Option<Ack>,
        request: Option<OwnedRequestId>,
        return_values: bool,
        entries: Vec<OwnedUpdate>,
    },
}

#[derive(Debug)]
pub(crate) struct OwnedRequestId {
    client: Box<[u8]>,
    number: u64,
    settled: u64,
}

impl OwnedRequestId {
    fn new(RequestId { client, number, settled }: RequestId<'_>) -> Self {
        Self { client: client.into(), number, settled }
    }

    pub(crate) fn borrow(&self) -> RequestId<'_> {
        RequestId { client: &self.client, number: self.number, settled: self.settled }
    }
}

#[derive(Debug)]
pub(crate) struct OwnedEntry {
    key: Vec<u8>,
    /// None removes.
    value: Option<Vec<u8>>,
    condition: Condition,
    expiry: Expiry,
}

impl Owned {
    pub(crate) fn read(ticket: Ticket, keys: &[&[u8]]) -> Self {
        Self::Read { ticket, keys: keys.iter().map(|key| key.to_vec()).collect() }
    }

    pub(crate) fn write(
        ticket: Ticket,
        ack: Option<Ack>,
        request: Option<RequestId<'_>>,
        entries: &[WriteEntry<'_>],
    ) -> Self {
        let entries = entries
            .iter()
            .map(|entry| OwnedEntry {
                key: entry.key.to_vec(),
                value: match entry.change {
                    Change::Put(value) => Some(value.to_vec()),
                    Change::Remove => None,
                },
                condition: entry.condition,
                expiry: entry.expiry,
            })
            .collect();
        Self::Write { ticket, ack, request: request.map(OwnedRequestId::new), entries }
    }

    pub(crate) fn update(
        ticket: Ticket,
        ack: Option<Ack>,
        request: Option<RequestId<'_>>,
        return_values: bool,
        entries: &[UpdateEntry<'_>],
    ) -> Self {
        let entries = entries.iter().map(OwnedUpdate::new).collect();
        Self::Update {
            ticket,
            ack,
            request: request.map(OwnedRequestId::new),
            return_values,
            entries,
        }
    }
}

#[derive(Debug)]
pub(crate) struct OwnedUpdate {
    key: Vec<u8>,
    operator: OwnedOperator,
    condition: Condition,
    expiry: Expiry,
}

#[derive(Debug)]
enum OwnedOperator {
    Add(i64),
    Append(Vec<u8>),
    Max(i64),
    Min(i64),
    Merge(Vec<u8>),
}

impl OwnedUpdate {
    fn new(entry: &UpdateEntry<'_>) -> Self {
        let &UpdateEntry { key, operator, condition, expiry } = entry;
        let operator = match operator {
            Operator::Add(operand) => OwnedOperator::Add(operand),
            Operator::Append(bytes) => OwnedOperator::Append(bytes.to_vec()),
            Operator::Max(operand) => OwnedOperator::Max(operand),
            Operator::Min(operand) => OwnedOperator::Min(operand),
            Operator::Merge(patch) => OwnedOperator::Merge(patch.to_vec()),
        };
        Self { key: key.to_vec(), operator, condition, expiry }
    }

    pub(crate) fn borrow(&self) -> UpdateEntry<'_> {
        let operator = match &self.operator {
            OwnedOperator::Add(operand) => Operator::Add(*operand),
            OwnedOperator::Append(bytes) => Operator::Append(bytes),
            OwnedOperator::Max(operand) => Operator::Max(*operand),
            OwnedOperator::Min(operand) => Operator::Min(*operand),
            OwnedOperator::Merge(patch) => Operator::Merge(patch),
        };
        let Self { key, condition, expiry, .. } = self;
        UpdateEntry { key, operator, condition: *condition, expiry: *expiry }
    }
}

impl Owned {
    /// Whoever waits for it.
    pub(crate) fn ticket(&self) -> Ticket {
        match self {
            Self::Read { ticket, .. }
            | Self::Scan { ticket, .. }
            | Self::Write { ticket, .. }
            | Self::Update { ticket, .. } => *ticket,
        }
    }
}

impl OwnedEntry {
    pub(crate) fn borrow(&self) -> WriteEntry<'_> {
        WriteEntry {
            key: &self.key,
            change: self.value.as_deref().map_or(Change::Remove, Change::Put),
            condition: self.condition,
            expiry: self.expiry,
        }
    }
}
