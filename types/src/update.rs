//! Read-modify-write: what an entry of an `Update` does to its record's value.

use crate::{Condition, Expiry};

/// How the new value comes from the present one. Integers are values as people write them:
/// decimal text of a 64-bit signed number, so that every reader and the command line show them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator<'a> {
    /// Adds to an integer; an absent one counts as 0.
    Add(i64),
    /// Puts bytes behind those that are there.
    Append(&'a [u8]),
    /// Stores this integer where the present one is lower, or absent.
    Max(i64),
    /// Stores this integer where the present one is higher, or absent.
    Min(i64),
    /// Merges a JSON document into the present one (RFC 7396); members that are null go.
    Merge(&'a [u8]),
}

/// One entry of an update batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpdateEntry<'a> {
    /// 1 to `KEY_BYTES_MAX` bytes, unique in its batch.
    pub key: &'a [u8],
    /// What to do with the value.
    pub operator: Operator<'a>,
    /// Checked before anything else.
    pub condition: Condition,
    /// How long the record exists. `Never`: as long as it did before.
    pub expiry: Expiry,
}
