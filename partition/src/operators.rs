//! Read-modify-write: the value that an operator makes of the present one.
//!
//! An update is executed as a write of its *result*: that is what the log, snapshots and stores get.
//! So replay computes nothing, another release may compute differently, a consumer of the log needs
//! no operator, and a store needs to know only how to put. Logging the operator would be shorter for
//! `append` on long values; the price would be a replay that depends on every earlier record and
//! on the code that reads it.

use stateside_types::{
    Operator, Reason, Refusal, UpdateEntry,
    limits::{BATCH_BYTES_MAX, KEY_BYTES_MAX},
};

use crate::json_merge::{self, MergeError};

/// Bytes that the values of a batch may have together, before and after. What is around them in a
/// request is kept back, so that whatever an update stores an upsert could have stored.
const VALUE_BYTES_MAX: usize = BATCH_BYTES_MAX - KEY_BYTES_MAX - 64;

/// The new values of one batch, one after the other.
#[derive(Debug, Default)]
pub(crate) struct NewValues {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    read_bytes: usize,
}

impl NewValues {
    /// Computes the next entry's value from the present one; None: there is no record.
    ///
    /// # Errors
    /// `WRONG_TYPE`, `OUT_OF_RANGE`, `MALFORMED_JSON`, `BATCH_TOO_LARGE`.
    pub(crate) fn push(
        &mut self,
        entry: &UpdateEntry<'_>,
        present: Option<&[u8]>,
    ) -> Result<(), Refusal> {
        self.read_bytes += present.map_or(0, <[u8]>::len);
        if self.read_bytes > VALUE_BYTES_MAX {
            return Err(too_large("before"));
        }
        match entry.operator {
            Operator::Add(operand) => {
                let sum = integer(present)?.unwrap_or(0).checked_add(operand);
                let sum = sum.ok_or_else(|| {
                    let text = format!("adding {operand} leaves the range of 64-bit integers");
                    Refusal::new(Reason::OutOfRange, text)
                })?;
                self.push_integer(sum);
            }
            Operator::Max(operand) => {
                self.push_integer(integer(present)?.map_or(operand, |value| value.max(operand)));
            }
            Operator::Min(operand) => {
                self.push_integer(integer(present)?.map_or(operand, |value| value.min(operand)));
            }
            Operator::Append(tail) => {
                self.bytes.extend_from_slice(present.unwrap_or_default());
                self.bytes.extend_from_slice(tail);
            }
            Operator::Merge(patch) => {
                let merged = json_merge::merge(present, patch).map_err(refusal)?;
                self.bytes.extend_from_slice(&merged);
            }
        }
        if self.bytes.len() > VALUE_BYTES_MAX {
            return Err(too_large("after"));
        }
        self.ends.push(self.bytes.len());
        Ok(())
    }

    /// The values, in the order of the entries.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }

    fn push_integer(&mut self, value: i64) {
        self.bytes.extend_from_slice(value.to_string().as_bytes());
    }
}

/// The present value as an integer, exactly as this crate writes one, a leading `+` or zeros aside.
fn integer(present: Option<&[u8]>) -> Result<Option<i64>, Refusal> {
    let Some(bytes) = present else { return Ok(None) };
    let parsed = std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
    match parsed {
        Some(value) => Ok(Some(value)),
        None => Err(Refusal::new(
            Reason::WrongType,
            "the record's value is not the decimal text of a 64-bit integer",
        )),
    }
}

fn refusal(error: MergeError) -> Refusal {
    match error {
        MergeError::Value => {
            Refusal::new(Reason::WrongType, "the record's value is no JSON document")
        }
        MergeError::Patch => Refusal::new(Reason::MalformedJson, "the patch is no JSON document"),
        MergeError::Depth => Refusal::new(Reason::MalformedJson, "the patch is nested too deeply"),
    }
}

fn too_large(when: &str) -> Refusal {
    let text =
        format!("the values have more than {VALUE_BYTES_MAX} bytes together {when} the update");
    Refusal::new(Reason::BatchTooLarge, text)
}

#[cfg(test)]
mod tests {
    use stateside_types::{Condition, Expiry};

    use super::*;

    fn apply(operator: Operator<'_>, present: Option<&[u8]>) -> Result<Vec<u8>, Reason> {
        let (condition, expiry) = (Condition::None, Expiry::Never);
        let entry = UpdateEntry { key: b"k", operator, condition, expiry };
        let mut values = NewValues::default();
        values.push(&entry, present).map_err(|refusal| refusal.reason)?;
        Ok(values.iter().next().unwrap().to_vec())
    }

    #[test]
    fn integers_are_added_and_compared() {
        for (operator, present, expected) in [
            (Operator::Add(5), None, "5"),
            (Operator::Add(-7), Some("5"), "-2"),
            (Operator::Add(1), Some("9223372036854775806"), "9223372036854775807"),
            (Operator::Max(3), None, "3"),
            (Operator::Max(3), Some("-4"), "3"),
            (Operator::Max(3), Some("4"), "4"),
            (Operator::Min(3), Some("4"), "3"),
            (Operator::Min(3), Some("-4"), "-4"),
            (Operator::Append(b"b"), Some("a"), "ab"),
            (Operator::Append(b"b"), None, "b"),
            (Operator::Merge(br#"{"a":1}"#), None, r#"{"a":1}"#),
        ] {
            let value = apply(operator, present.map(str::as_bytes)).unwrap();
            assert_eq!(String::from_utf8(value).unwrap(), expected, "{operator:?} on {present:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let large = vec![b'x'; VALUE_BYTES_MAX];
        for (operator, present, reason) in [
            (Operator::Add(1), &b"9223372036854775807"[..], Reason::OutOfRange),
            (Operator::Add(-2), b"-9223372036854775807", Reason::OutOfRange),
            (Operator::Add(1), b"ten", Reason::WrongType),
            (Operator::Add(1), b"", Reason::WrongType),
            (Operator::Max(1), b"1.5", Reason::WrongType),
            (Operator::Min(1), b"\xff", Reason::WrongType),
            (Operator::Merge(b"{}"), b"text", Reason::WrongType),
            (Operator::Merge(b"{"), b"{}", Reason::MalformedJson),
            (Operator::Append(b"x"), &large, Reason::BatchTooLarge),
        ] {
            assert_eq!(apply(operator, Some(present)), Err(reason), "{operator:?}");
        }
    }
}
