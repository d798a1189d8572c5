//! Sets of key prefixes.

use stateside_types::StageSpec;

use crate::{OptionDefinition, OptionError, OptionKind};

/// The option that says which keys a stage looks at.
pub const PREFIX: OptionDefinition = OptionDefinition {
    name: "prefix",
    kind: OptionKind::Texts,
    default: "every key",
    doc: "The stage looks only at entries whose key begins with one of these, and lets others pass as they are. A prefix is text, or `hex:` and bytes in hexadecimal.",
};

/// Prefixes of keys; finds the one that a key begins with by binary search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefixes {
    /// In order, and none begins with another: so the greatest that is not above a key is the
    /// only one that the key can begin with.
    sorted: Vec<Vec<u8>>,
}

impl Prefixes {
    /// Reads a stage's option that holds prefixes. Empty when it is not set.
    ///
    /// # Errors
    /// A prefix is empty or not what `hex:` announces.
    pub fn read(spec: &StageSpec, option: &OptionDefinition) -> Result<Self, OptionError> {
        let parse = |text: &String| parse(text).map_err(|message| option.wrong(message));
        let mut sorted =
            spec.texts(option.name).iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        sorted.sort_unstable();
        sorted.dedup_by(|longer, shorter| longer.starts_with(shorter));
        Ok(Self { sorted })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// How many there are; those that begin with another do not count.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// The prefix that the key begins with, by its position.
    #[inline]
    pub fn find(&self, key: &[u8]) -> Option<usize> {
        let at = match self.sorted.len() {
            1 => 0,
            _ => self.sorted.partition_point(|prefix| prefix.as_slice() <= key).checked_sub(1)?,
        };
        key.starts_with(&self.sorted[at]).then_some(at)
    }

    /// Whether a stage with these as its `prefix` looks at the key.
    #[inline]
    pub fn select(&self, key: &[u8]) -> bool {
        self.sorted.is_empty() || self.find(key).is_some()
    }

    /// The prefix at a position.
    pub fn get(&self, at: usize) -> &[u8] {
        &self.sorted[at]
    }
}

fn parse(text: &str) -> Result<Vec<u8>, String> {
    let bytes = match text.strip_prefix("hex:") {
        None => text.as_bytes().to_vec(),
        Some(digits) => {
            let wrong = || format!("`{text}` is not `hex:` and pairs of hexadecimal digits");
            let digit = |byte: u8| char::from(byte).to_digit(16).ok_or_else(wrong);
            if digits.len() % 2 != 0 {
                return Err(wrong());
            }
            let pairs = digits.as_bytes().chunks(2);
            pairs
                .map(|pair| Ok((digit(pair[0])? * 16 + digit(pair[1])?) as u8))
                .collect::<Result<_, String>>()?
        }
    };
    if bytes.is_empty() {
        return Err("a prefix has at least one byte; leave the option out for every key".to_owned());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stateside_types::{OptionValue, StageKind};

    use super::*;

    fn prefixes(texts: &[&str]) -> Result<Prefixes, OptionError> {
        let texts = texts.iter().map(|text| (*text).to_owned()).collect();
        let options = vec![("prefix", OptionValue::Texts(texts))];
        Prefixes::read(&StageSpec::checked(StageKind::Filter, options), &PREFIX)
    }

    #[test]
    fn prefixes_are_text_or_hexadecimal() {
        let set = prefixes(&["hex:00fF", "user/"]).unwrap();
        assert_eq!(set.find(b"\x00\xff\x01"), Some(0));
        assert_eq!(set.find(b"user/7"), Some(1));
        assert_eq!(set.find(b"user"), None);
        for (wrong, says) in [
            ("hex:0", "pairs of"),
            ("hex:0g", "pairs of"),
            ("", "at least one byte"),
            ("hex:", "at"),
        ] {
            let error = prefixes(&[wrong]).unwrap_err();
            assert!(error.message.contains(says), "{error}");
        }
        assert!(
            Prefixes::default().select(b"anything") && Prefixes::default().find(b"x").is_none()
        );
    }

    proptest! {
        #[test]
        fn a_key_is_found_exactly_if_it_begins_with_one(
            texts in prop::collection::vec("[ab]{1,4}", 1..8),
            key in "[ab]{0,6}",
        ) {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let set = prefixes(&texts).unwrap();
            let found = set.find(key.as_bytes());
            prop_assert_eq!(found.is_some(), texts.iter().any(|text| key.starts_with(text)));
            prop_assert!(found.is_none_or(|at| key.as_bytes().starts_with(set.get(at))));
        }
    }
}
