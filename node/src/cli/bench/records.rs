//! Keys and values of the records that a run works on. Pure: a record's key follows from its number.

use super::workload::stream;

/// Values begin at so many different places of one random text.
const VALUE_OFFSETS: usize = 4_096;

/// How records look.
#[derive(Debug)]
pub(super) struct Records {
    prefix: String,
    digits: usize,
    /// Random letters and digits: nothing on the way can make much less of them, and people can look
    /// at a record.
    text: Vec<u8>,
    value_bytes: usize,
}

impl Records {
    /// Keys are the prefix and the record's number, filled up with zeros to `key_bytes`.
    ///
    /// # Errors
    /// A sentence when that is too short for `records` numbers.
    pub(super) fn new(
        prefix: &str,
        key_bytes: usize,
        value_bytes: usize,
        records: u64,
        seed: u64,
    ) -> Result<Self, String> {
        let needed = prefix.len() + records.saturating_sub(1).to_string().len();
        if key_bytes < needed {
            return Err(format!(
                "{records} records under the prefix `{prefix}` need keys of at least {needed} bytes, not {key_bytes}"
            ));
        }
        let mut random = stream(seed, "values", 0);
        let text = std::iter::repeat_with(|| random.alphanumeric() as u8)
            .take(value_bytes + VALUE_OFFSETS);
        Ok(Self {
            prefix: prefix.to_owned(),
            digits: key_bytes - prefix.len(),
            text: text.collect(),
            value_bytes,
        })
    }

    /// Longer than asked for when inserts have outgrown the digits.
    pub(super) fn key(&self, record: u64) -> Vec<u8> {
        format!("{}{record:0width$}", self.prefix, width = self.digits).into_bytes()
    }

    /// A value; another one for most `variant`s.
    pub(super) fn value(&self, variant: u64) -> &[u8] {
        let start = (variant % VALUE_OFFSETS as u64) as usize;
        &self.text[start..start + self.value_bytes]
    }

    /// Bytes of one record.
    pub(super) fn bytes(&self) -> usize {
        self.prefix.len() + self.digits + self.value_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_length_and_values_theirs() {
        let records = Records::new("bench/", 16, 100, 1_000, 1).unwrap();
        assert_eq!(records.key(42), b"bench/0000000042");
        assert_eq!(records.value(0).len(), 100);
        assert_eq!(records.value(u64::MAX).len(), 100);
        assert_ne!(records.value(0), records.value(1));
        assert_eq!(records.bytes(), 116);
        let other = Records::new("bench/", 16, 100, 1_000, 2).unwrap();
        assert_ne!(records.value(0), other.value(0));
    }

    #[test]
    fn keys_that_cannot_hold_the_numbers_are_refused() {
        assert!(Records::new("bench/", 8, 0, 100, 1).is_ok());
        let refused = Records::new("bench/", 8, 0, 101, 1).unwrap_err();
        assert!(refused.contains("at least 9 bytes"), "{refused}");
    }
}
