//! Requests that own their bytes: those that wait while the store asks the disk.

use stateside_types::{Ack, Change, Condition, Expiry, WriteEntry};

use crate::{Scan, Ticket};

/// A request in the partition's queue.
#[derive(Debug)]
pub(crate) enum Owned {
    Read { ticket: Ticket, keys: Vec<Vec<u8>> },
    Scan { ticket: Ticket, scan: Scan },
    Write { ticket: Ticket, ack: Option<Ack>, entries: Vec<OwnedEntry> },
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

    pub(crate) fn write(ticket: Ticket, ack: Option<Ack>, entries: &[WriteEntry<'_>]) -> Self {
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
        Self::Write { ticket, ack, entries }
    }
}

impl Owned {
    /// Whoever waits for it.
    pub(crate) fn ticket(&self) -> Ticket {
        match self {
            Self::Read { ticket, .. } | Self::Scan { ticket, .. } | Self::Write { ticket, .. } => {
                *ticket
            }
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
