//! What a call may cost, and why that much. The one place to change when a change of the code is
//! worth its price, or has made a call cheaper.
//!
//! Instructions are user-space instructions a call, as callgrind counts them on x86-64; a bound is
//! the measured value plus 5 %: the spread between runs is below 0.5 %, another compiler or CPU (the C
//! library has a memcpy for each) moves it by a few per cent, and what is worth noticing costs more.
//! Allocations are of the core's thread, a thousand calls. On the hot path there are none; where
//! the bound is above 0 the reason names what they are.

use crate::{exchanges::Operation, measure::Cost};

/// A count below this share of its bound, in per cent, has the bound lowered: else what was
/// gained could be lost again unseen.
const LOWER_BELOW_PERCENT: u64 = 85;

/// What a call of one operation may cost.
pub(crate) struct Bound {
    /// [`Operation::name`].
    pub(crate) operation: &'static str,
    /// Instructions a call.
    pub(crate) instructions: u64,
    /// Allocations a thousand calls.
    pub(crate) allocations_per_thousand: u64,
    /// Why not less.
    #[allow(dead_code, reason = "read by people, here")]
    pub(crate) reason: &'static str,
}

/// All of them.
pub(crate) const BOUNDS: [Bound; Operation::ALL.len()] = [
    Bound {
        operation: "get",
        instructions: 13_950,
        allocations_per_thousand: 0,
        reason: "13,288 measured: 59 % nghttp2 (HPACK 17), 23 % its callbacks and gRPC's rules in \
                 wire, 5 % service and executor, 4 % protobuf, 2 % store, 1 % routing",
    },
    Bound {
        operation: "upsert-memory",
        instructions: 15_900,
        allocations_per_thousand: 8,
        reason: "15,156 measured: as a Get, and 1,250 for pipeline and log record, 300 more for \
                 protobuf, 250 more for the store. The log's buffers and the list of what a write \
                 covers grow now and then: 6 blocks a thousand calls",
    },
    Bound {
        operation: "upsert-durable",
        instructions: 22_150,
        allocations_per_thousand: 1_002,
        reason: "21,107 measured: with one call a turn each has a log write of its own, whose \
                 block of 4 KiB is filled up with zeros (3,900: callgrind counts `rep stosb` by the \
                 byte), sealed, and told to its partition. One block of memory a log write: it is \
                 shared between the log and the ring",
    },
    Bound {
        operation: "get-32",
        instructions: 13_280,
        allocations_per_thousand: 0,
        reason: "12,648 measured: the turn's own work is shared by 32 calls",
    },
    Bound {
        operation: "upsert-memory-32",
        instructions: 15_150,
        allocations_per_thousand: 6,
        reason: "14,435 measured: as one call a turn, less the turn's own work",
    },
    Bound {
        operation: "upsert-durable-32",
        instructions: 15_650,
        allocations_per_thousand: 38,
        reason: "14,903 measured: 32 calls share a log write, and its one block of memory (31 a \
                 thousand calls)",
    },
    Bound {
        operation: "upsert-request-ids-32",
        instructions: 18_550,
        allocations_per_thousand: 14,
        reason: "17,663 measured: as upsert-memory-32, and 3,040: decoding the id and copying it to the \
                 log 1,200, the window 1,300 (a place for the answer, another let go of), a digest of the \
                 request 150. Its trees take a block of memory now and then",
    },
    Bound {
        operation: "upsert-3-stages",
        instructions: 15_950,
        allocations_per_thousand: 6,
        reason: "15,195 measured: as upsert-memory-32, and 330 for each of three filters: two calls \
                 before the clock and one when the write is accepted",
    },
    Bound {
        operation: "upsert-8-stages",
        instructions: 17_400,
        allocations_per_thousand: 6,
        reason: "16,571 measured: as upsert-memory-32, and 295 for each of eight stages, of which \
                 four pass over the key",
    },
];

/// What a cost is, beside its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As expected.
    Within,
    /// More instructions, or more allocations.
    Above,
    /// Far fewer instructions: the bound has to follow.
    FarBelow,
}

impl Bound {
    /// That of an operation.
    pub(crate) fn of(operation: Operation) -> &'static Self {
        let bound = BOUNDS.iter().find(|bound| bound.operation == operation.name);
        bound.expect("a test checks that every operation has one")
    }

    /// Judges a cost.
    pub(crate) fn judge(&self, cost: &Cost) -> Verdict {
        if cost.instructions > self.instructions
            || cost.allocations_per_thousand > self.allocations_per_thousand
        {
            Verdict::Above
        } else if cost.instructions * 100 < self.instructions * LOWER_BELOW_PERCENT {
            Verdict::FarBelow
        } else {
            Verdict::Within
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_one_bound_with_a_reason() {
        for operation in Operation::ALL {
            let bounds = BOUNDS.iter().filter(|bound| bound.operation == operation.name);
            let bounds: Vec<_> = bounds.collect();
            assert_eq!(bounds.len(), 1, "{}", operation.name);
            assert!(!bounds[0].reason.is_empty(), "{}", operation.name);
        }
    }

    #[test]
    fn above_and_far_below_are_told() {
        let bound =
            Bound { operation: "x", instructions: 1_000, allocations_per_thousand: 5, reason: "x" };
        let cost = |instructions, allocations_per_thousand| Cost {
            instructions,
            allocations_per_thousand,
            ..Cost::default()
        };
        assert_eq!(bound.judge(&cost(1_000, 5)), Verdict::Within);
        assert_eq!(bound.judge(&cost(1_001, 0)), Verdict::Above);
        assert_eq!(bound.judge(&cost(900, 6)), Verdict::Above);
        assert_eq!(bound.judge(&cost(850, 0)), Verdict::Within);
        assert_eq!(bound.judge(&cost(849, 0)), Verdict::FarBelow);
    }
}
