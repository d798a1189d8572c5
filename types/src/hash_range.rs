//! Key hashes and the half-open ranges of them that partitions own.

use std::{fmt, str::FromStr};

/// xxh3-64 of the routing key, else of the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub u64);

/// Half-open range `[start, end)` of key hashes; `end == 0` means up to and including the last
/// hash, so the whole space is `0..0`. Never empty: the constructor refuses that.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HashRange {
    start: u64,
    end: u64,
}

/// Why two numbers are not a hash range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// `end` is not after `start`.
    #[error(
        "hash range {start:#018x}..{end:#018x} is empty: end must be above start (0 means through the last hash)"
    )]
    Empty {
        /// First hash, inclusive.
        start: u64,
        /// End, exclusive.
        end: u64,
    },
    /// The text is not `START..END`.
    #[error(
        "`{0}` is not a hash range: write START..END, decimal or 0x-hexadecimal, END 0 or left out for the last hash"
    )]
    Syntax(String),
}

impl HashRange {
    /// Every hash.
    pub const FULL: Self = Self { start: 0, end: 0 };

    /// # Errors
    /// [`RangeError::Empty`] when `end` is neither 0 nor above `start`.
    pub const fn new(start: u64, end: u64) -> Result<Self, RangeError> {
        if end != 0 && end <= start {
            return Err(RangeError::Empty { start, end });
        }
        Ok(Self { start, end })
    }

    /// First hash of the range.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// First hash after the range; 0 when the range reaches the last hash.
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Last hash of the range.
    pub const fn last(self) -> u64 {
        self.end.wrapping_sub(1)
    }

    /// Whether `hash` lies in the range.
    pub const fn contains(self, hash: KeyHash) -> bool {
        hash.0 >= self.start && hash.0 <= self.last()
    }

    /// Whether the two ranges share a hash.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start <= other.last() && other.start <= self.last()
    }

    /// Cuts the whole space into `parts` ranges whose sizes differ by at most one.
    ///
    /// # Panics
    /// When `parts` is 0.
    pub fn split_evenly(parts: u32) -> Vec<Self> {
        assert!(parts > 0, "a hash space cannot be cut into no parts");
        let bound = |i: u32| ((u128::from(i) << 64) / u128::from(parts)) as u64;
        (0..parts)
            .map(|i| Self { start: bound(i), end: if i + 1 == parts { 0 } else { bound(i + 1) } })
            .collect()
    }
}

impl fmt::Display for HashRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}..{:#018x}", self.start, self.end)
    }
}

impl fmt::Debug for HashRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for HashRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let syntax = || RangeError::Syntax(text.to_owned());
        let number = |part: &str| {
            let part = part.trim().replace('_', "");
            match part.strip_prefix("0x").or_else(|| part.strip_prefix("0X")) {
                Some(hex) => u64::from_str_radix(hex, 16).ok(),
                None => part.parse().ok(),
            }
        };
        let (start, end) = text.split_once("..").ok_or_else(syntax)?;
        let start = number(start).ok_or_else(syntax)?;
        let end = if end.trim().is_empty() { 0 } else { number(end).ok_or_else(syntax)? };
        Self::new(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_range_includes_the_last_hash() {
        let range = HashRange::new(u64::MAX, 0).unwrap();
        assert!(range.contains(KeyHash(u64::MAX)));
        assert!(!range.contains(KeyHash(u64::MAX - 1)));
        assert!(
            HashRange::FULL.contains(KeyHash(0)) && HashRange::FULL.contains(KeyHash(u64::MAX))
        );
    }

    #[test]
    fn empty_and_inverted_ranges_are_refused() {
        for (start, end) in [(5, 5), (6, 5), (u64::MAX, 1)] {
            assert_eq!(HashRange::new(start, end), Err(RangeError::Empty { start, end }));
        }
    }

    #[test]
    fn an_even_split_covers_every_hash_once() {
        for parts in [1, 2, 3, 7, 16, 1_000] {
            let ranges = HashRange::split_evenly(parts);
            assert_eq!(ranges[0].start(), 0);
            assert_eq!(ranges.last().unwrap().end(), 0);
            for pair in ranges.windows(2) {
                assert_eq!(pair[0].end(), pair[1].start());
                assert!(!pair[0].overlaps(pair[1]) && !pair[1].overlaps(pair[0]));
            }
        }
    }

    #[test]
    fn text_forms_parse_and_print() {
        let range: HashRange = "0x10..0x20".parse().unwrap();
        assert_eq!((range.start(), range.end()), (16, 32));
        assert_eq!(range.to_string().parse(), Ok(range));
        assert_eq!("0..".parse(), Ok(HashRange::FULL));
        assert!(matches!("7".parse::<HashRange>(), Err(RangeError::Syntax(_))));
        assert!(matches!("9..7".parse::<HashRange>(), Err(RangeError::Empty { .. })));
    }
}
