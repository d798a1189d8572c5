//! What an event keeps, who makes the result, and what that changes. Pure.
//!
//! ```text
//!  records of one customer, all under the routing key CUSTOMER, so in one partition:
//!
//!   CUSTOMER/orders/ID ──── a half: cents ordered   written once, if absent
//!   CUSTOMER/payments/ID ── the other: cents paid   written once, if absent
//!   CUSTOMER/joined/ID ──── the result     ┐
//!   CUSTOMER/results ────── + 1            ├ one batch, by the lane with the younger half
//!   CUSTOMER/paid ───────── + cents paid   ┘
//! ```
//! A version is the write's place in its partition's order, so of two halves one is the younger. Which
//! one never changes, because a half is written once: so whoever looks, and however often, decides alike.

use serde::Deserialize;
use stateside_client::{Sequence, Update};

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

    /// What it is joined with.
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Orders => Self::Payments,
            Self::Payments => Self::Orders,
        }
    }
}

/// One line of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Event {
    /// Whose it is: all of a customer's records lie in one partition.
    pub(crate) customer: String,
    /// What is joined on.
    pub(crate) order: String,
    /// Of the order or of the payment.
    pub(crate) cents: i64,
}

impl Event {
    /// The key of a half. Customers may share a partition, so every key begins with whose it is.
    pub(crate) fn half_key(&self, side: Side) -> String {
        format!("{}/{}/{}", self.customer, side.as_str(), self.order)
    }
}

/// Whether the lane with the half of version `own` makes the result, when it finds the other half at `other`.
///
/// A lane looks for the other half when its own is there. So the lane with the younger half finds the older
/// one, whatever the other lane does meanwhile; and it alone finds one that is older.
pub(crate) fn makes_the_result(own: Sequence, other: Sequence) -> bool {
    other < own
}

/// A pair's result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Joined {
    keys: [String; 3],
    document: String,
    paid: i64,
}

impl Joined {
    /// Of an event and the half that was found on the other side.
    pub(crate) fn new(side: Side, event: &Event, other: i64) -> Self {
        let Event { customer, order, cents } = event;
        let (ordered, paid) = match side {
            Side::Orders => (*cents, other),
            Side::Payments => (other, *cents),
        };
        let keys = [
            format!("{customer}/joined/{order}"),
            format!("{customer}/results"),
            format!("{customer}/paid"),
        ];
        Self { keys, document: format!(r#"{{"ordered":{ordered},"paid":{paid}}}"#), paid }
    }

    /// What it changes, in one batch. Done twice, the customer's sums would be too high.
    pub(crate) fn updates(&self) -> [Update<'_>; 3] {
        let [joined, results, paid] = &self.keys;
        [
            Update::merge_json(joined, &self.document),
            Update::add(results, 1),
            Update::add(paid, self.paid),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_halves_the_younger_ones_lane_makes_the_result() {
        let (older, younger) = (Sequence(4), Sequence(7));
        assert!(makes_the_result(younger, older) && !makes_the_result(older, younger));
    }

    #[test]
    fn a_result_is_the_same_from_either_side() {
        let event = |cents| Event { customer: "c".into(), order: "7".into(), cents };
        let joined = Joined::new(Side::Orders, &event(6), 5);
        assert_eq!(joined, Joined::new(Side::Payments, &event(5), 6));
        assert_eq!(
            joined.updates(),
            [
                Update::merge_json("c/joined/7", r#"{"ordered":6,"paid":5}"#),
                Update::add("c/results", 1),
                Update::add("c/paid", 5),
            ]
        );
    }
}
