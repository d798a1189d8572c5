//! What an event does, decided from the records that were read. Pure.
//!
//! ```text
//!  records of one customer, all under the routing key CUSTOMER, so in one partition:
//!
//!   order/ID ── the order, its payment, or both       written by every event of ID
//!   joined/ID ─ the result                            written once, with the second of the two
//!   total ───── how many results, and their sum       written with each result
//! ```
//! An event is one batch, atomic, and every record in it is written on condition that it is as it was
//! read. So two workers that read the same records cannot both be right: one is refused, reads again and
//! finds what the other wrote. And an event that comes a second time finds itself.

use serde::{Deserialize, Serialize};
use stateside_client::{Record, Sequence, Upsert};

/// A stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// What was ordered.
    Orders,
    /// What was paid.
    Payments,
}

impl Side {
    /// Its name in keys.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Orders => "orders",
            Self::Payments => "payments",
        }
    }
}

/// One line of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// Whose it is: all of a customer's records lie in one partition.
    pub(crate) customer: String,
    /// What is joined on.
    pub(crate) order: String,
    /// Of the order or of the payment.
    pub(crate) cents: u64,
}

/// The record `order/ID`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pair {
    /// Cents ordered, when the order was seen.
    pub(crate) ordered: Option<u64>,
    /// Cents paid, when the payment was seen.
    pub(crate) paid: Option<u64>,
}

/// The record `joined/ID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joined {
    /// Cents ordered.
    pub(crate) ordered: u64,
    /// Cents paid.
    pub(crate) paid: u64,
}

/// The record `total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Total {
    /// Results of the customer.
    pub(crate) joined: u64,
    /// Cents paid for them.
    pub(crate) paid: u64,
}

/// Keys of the records that an event reads, in the order of [`Seen`].
pub(crate) fn keys(event: &Event) -> [String; 2] {
    let Event { customer, order, .. } = event;
    // A key's record is found under key and routing key; customers that share a partition must not
    // share keys.
    [format!("{customer}/order/{order}"), format!("{customer}/total")]
}

/// The key of a result.
pub(crate) fn joined_key(event: &Event) -> String {
    format!("{}/joined/{}", event.customer, event.order)
}

/// A record as it was read: its version, None for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen<T> {
    version: Option<Sequence>,
    value: T,
}

impl<T: Default + for<'a> Deserialize<'a>> Seen<T> {
    /// Reads a record's value.
    ///
    /// # Errors
    /// It is not JSON of this program.
    pub(crate) fn of(record: Option<&Record>) -> Result<Self, serde_json::Error> {
        let Some(record) = record else { return Ok(Self::default()) };
        Ok(Self { version: Some(record.version), value: serde_json::from_slice(&record.value)? })
    }
}

/// A record to write, on condition that it is as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    key: String,
    value: Vec<u8>,
    was: Option<Sequence>,
}

impl Change {
    fn new(key: String, value: &impl Serialize, was: Option<Sequence>) -> Self {
        let value = serde_json::to_vec(value).expect("a struct of numbers is JSON");
        Self { key, value, was }
    }

    /// As an entry of a batch.
    pub(crate) fn entry(&self) -> Upsert<'_> {
        let entry = Upsert::new(&self.key, &self.value);
        match self.was {
            Some(version) => entry.if_version(version),
            None => entry.if_absent(),
        }
    }
}

/// What an event does to what was read. Nothing: it has been applied before.
pub(crate) fn apply(
    side: Side,
    event: &Event,
    pair: Seen<Pair>,
    total: Seen<Total>,
) -> Vec<Change> {
    let (mut next, cents) = (pair.value, Some(event.cents));
    let half = match side {
        Side::Orders => &mut next.ordered,
        Side::Payments => &mut next.paid,
    };
    if half.is_some() {
        return Vec::new();
    }
    *half = cents;
    let [pair_key, total_key] = keys(event);
    let mut changes = vec![Change::new(pair_key, &next, pair.version)];
    if let Pair { ordered: Some(ordered), paid: Some(paid) } = next {
        changes.push(Change::new(joined_key(event), &Joined { ordered, paid }, None));
        let Total { joined, paid: sum } = total.value;
        let value = Total { joined: joined + 1, paid: sum + paid };
        changes.push(Change::new(total_key, &value, total.version));
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(cents: u64) -> Event {
        Event { customer: "c".into(), order: "7".into(), cents }
    }

    fn pair(version: u64, ordered: Option<u64>, paid: Option<u64>) -> Seen<Pair> {
        Seen { version: Some(Sequence(version)), value: Pair { ordered, paid } }
    }

    #[test]
    fn the_first_of_two_waits_and_the_second_joins() {
        let first = apply(Side::Payments, &event(5), Seen::default(), Seen::default());
        let kept = Pair { ordered: None, paid: Some(5) };
        assert_eq!(first, [Change::new("c/order/7".into(), &kept, None)]);

        let total = Seen { version: Some(Sequence(3)), value: Total { joined: 1, paid: 10 } };
        let second = apply(Side::Orders, &event(6), pair(4, None, Some(5)), total);
        assert_eq!(
            second,
            [
                Change::new(
                    "c/order/7".into(),
                    &Pair { ordered: Some(6), paid: Some(5) },
                    Some(Sequence(4))
                ),
                Change::new("c/joined/7".into(), &Joined { ordered: 6, paid: 5 }, None),
                Change::new("c/total".into(), &Total { joined: 2, paid: 15 }, Some(Sequence(3))),
            ]
        );
    }

    #[test]
    fn an_event_that_comes_again_does_nothing() {
        let waiting = pair(1, Some(6), None);
        assert_eq!(apply(Side::Orders, &event(6), waiting, Seen::default()), []);
        let whole = pair(2, Some(6), Some(5));
        for side in [Side::Orders, Side::Payments] {
            assert_eq!(apply(side, &event(6), whole, Seen::default()), []);
        }
    }
}
