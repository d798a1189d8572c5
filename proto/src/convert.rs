//! Between the contract's messages and the words of `stateside-types`.

use stateside_types::{Ack, HashRange, Reason, Refusal};

use crate::v1;

impl From<HashRange> for v1::HashRange {
    fn from(range: HashRange) -> Self {
        Self { start: range.start(), end: range.end() }
    }
}

impl TryFrom<v1::HashRange> for HashRange {
    type Error = Refusal;

    fn try_from(range: v1::HashRange) -> Result<Self, Refusal> {
        Self::new(range.start, range.end)
            .map_err(|error| Refusal::new(Reason::InvalidRange, error.to_string()))
    }
}

impl From<Ack> for v1::Ack {
    fn from(ack: Ack) -> Self {
        match ack {
            Ack::Memory => Self::Memory,
            Ack::Durable => Self::Durable,
        }
    }
}

impl From<v1::Ack> for Option<Ack> {
    fn from(ack: v1::Ack) -> Self {
        match ack {
            v1::Ack::Default => None,
            v1::Ack::Memory => Some(Ack::Memory),
            v1::Ack::Durable => Some(Ack::Durable),
        }
    }
}

impl From<&Refusal> for v1::EntryError {
    fn from(refusal: &Refusal) -> Self {
        Self {
            code: refusal.reason.code() as i32,
            reason: refusal.reason.as_str().to_owned(),
            message: refusal.text(),
            retry_after_ms: refusal.retry_after_ms.unwrap_or(0),
            metadata: refusal
                .metadata
                .iter()
                .map(|(k, v)| (k.clone().into_owned(), v.clone()))
                .collect(),
        }
    }
}
