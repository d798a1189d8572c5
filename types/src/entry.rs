//! Records and the changes to them, borrowed from whatever buffer they arrived in: a socket's,
//! the log's, a snapshot's. Nothing here owns bytes, so nothing here allocates.

use crate::{ExpireAt, Expiry, Sequence, Timestamp, WallClock};

/// What a write does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// Store this value (may be empty).
    Put(&'a [u8]),
    /// Delete the record; deleting what is absent is no error.
    Remove,
}

/// What must hold for the entry, checked against the state that all earlier requests of the
/// partition left. One entry that fails refuses its partition's whole batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Always holds.
    #[default]
    None,
    /// The key has no record.
    IfAbsent,
    /// The key's record has exactly this version.
    IfVersion(Sequence),
}

/// One entry of a write batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteEntry<'a> {
    /// 1 to `KEY_BYTES_MAX` bytes, unique in its batch.
    pub key: &'a [u8],
    /// Put or remove.
    pub change: Change<'a>,
    /// Checked before the batch is accepted; not part of what is logged.
    pub condition: Condition,
    /// How long a record that is put exists; of no meaning to a removal.
    pub expiry: Expiry,
}

impl<'a> WriteEntry<'a> {
    /// Stores a value under a key, unconditionally and for good.
    pub const fn put(key: &'a [u8], value: &'a [u8]) -> Self {
        Self::new(key, Change::Put(value))
    }

    /// Deletes a key's record, unconditionally.
    pub const fn remove(key: &'a [u8]) -> Self {
        Self::new(key, Change::Remove)
    }

    /// Makes this change, unconditionally and for good.
    pub const fn new(key: &'a [u8], change: Change<'a>) -> Self {
        Self { key, change, condition: Condition::None, expiry: Expiry::Never }
    }

    /// The entry under this condition.
    #[must_use]
    pub const fn under(self, condition: Condition) -> Self {
        Self { condition, ..self }
    }

    /// The entry, with its record existing for as long as this says.
    #[must_use]
    pub const fn expiring(self, expiry: Expiry) -> Self {
        Self { expiry, ..self }
    }
}

/// A record as a store holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The value's bytes.
    pub value: &'a [u8],
    /// Sequence of the batch that wrote it.
    pub version: Sequence,
    /// Timestamp of the batch that wrote it.
    pub timestamp: Timestamp,
    /// From when on it is absent. None: it stays.
    pub expire_at: Option<ExpireAt>,
}

impl Record<'_> {
    /// Whether the record has ceased to exist by this time.
    #[inline]
    pub fn is_expired(&self, now: WallClock) -> bool {
        self.expire_at.is_some_and(|moment| moment.has_come(now))
    }
}
