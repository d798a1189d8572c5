//! The calls that are counted: one operation, so many times, on a core that has served for a while.
//!
//! All requests are made before the first is served, as many for few calls as for many: so the
//! difference between a run of 2N calls and one of N is N calls and nothing else.

use std::path::Path;

use stateside_node::{
    core::ringless::{RinglessCore, RinglessError},
    stages::{OptionValue, PipelineSpec, read_stage},
};

use crate::{
    allocations::Allocations,
    client::{Client, Request},
};

/// Records in the store.
const RECORDS: u64 = 10_000;
/// Records in one batch of the filling.
const FILL_BATCH: u64 = 100;
/// As many as a node has on one core.
const PARTITIONS: u32 = 8;
/// Places the records in the hash maps, and draws the keys.
const SEED: u64 = 0x5eed;
/// Calls before the first that counts: buffers have their size then.
const WARM_UP_CALLS: u64 = 1_024;
/// Most calls of one run.
pub(crate) const CALLS_MAX: u64 = 6_400;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    /// On the command line and in the table.
    pub(crate) name: &'static str,
    pub(crate) request: Request,
    /// Calls that one turn of the core finds: 1 on a quiet node, more under load.
    pub(crate) calls_per_turn: u64,
    /// Stages before the clock, the first so many of a list of eight.
    pub(crate) stages: usize,
}

impl Operation {
    const fn new(name: &'static str, request: Request, calls_per_turn: u64) -> Self {
        assert!(CALLS_MAX.is_multiple_of(2 * calls_per_turn));
        assert!(WARM_UP_CALLS.is_multiple_of(calls_per_turn));
        Self { name, request, calls_per_turn, stages: 0 }
    }

    /// An `Upsert` through stages before the clock.
    const fn through(name: &'static str, stages: usize) -> Self {
        Self { stages, ..Self::new(name, Request::UpsertMemory, 32) }
    }

    /// All of them.
    pub(crate) const ALL: [Self; 9] = [
        Self::new("get", Request::Get, 1),
        Self::new("upsert-memory", Request::UpsertMemory, 1),
        Self::new("upsert-durable", Request::UpsertDurable, 1),
        Self::new("get-32", Request::Get, 32),
        Self::new("upsert-memory-32", Request::UpsertMemory, 32),
        Self::new("upsert-durable-32", Request::UpsertDurable, 32),
        Self::new("upsert-request-ids-32", Request::UpsertIdentified, 32),
        Self::through("upsert-3-stages", 3),
        Self::through("upsert-8-stages", 8),
    ];

    /// The one of that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.name == name)
    }
}

/// Stages that look at every write and let it pass, then the default pipeline. All read the key or
/// the value's length; what reading values costs goes by their length, and the bench
/// `partition/benches/stages.rs` measures it.
fn pipeline(count: usize) -> PipelineSpec {
    let text = |text: &str| OptionValue::Text(text.to_owned());
    let texts =
        |texts: &[&str]| OptionValue::Texts(texts.iter().map(|text| (*text).to_owned()).collect());
    let stages: [(&str, Vec<(&str, OptionValue)>); 8] = [
        ("filter", vec![("deny", texts(&["tmp/", "test/", "internal/"]))]),
        ("filter", vec![("value_bytes_max", OptionValue::Integer(64 << 10))]),
        ("filter", vec![("rate_per_s", OptionValue::Integer(1_000_000_000))]),
        ("sanitizer", vec![("prefix", texts(&["order/", "user/"])), ("drop", text("/card"))]),
        ("enricher", vec![("prefix", texts(&["order/", "user/"])), ("node", text("node"))]),
        ("filter", vec![("deny", texts(&["a/", "b/", "c/", "d/", "e/", "f/", "g/", "h/"]))]),
        ("filter", vec![("prefix", text("t/")), ("rate_per_s", OptionValue::Integer(1))]),
        ("filter", vec![("prefix", text("u/")), ("value_bytes_max", OptionValue::Integer(1))]),
    ];
    let read = |(name, options): &(&str, Vec<(&str, OptionValue)>)| {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        read_stage(name, options.collect()).expect("the options are right")
    };
    let behind = PipelineSpec::default();
    let all = stages[..count].iter().map(read).chain(behind.iter().cloned());
    all.collect::<Vec<_>>().into()
}

/// A core, filled and warm, and the requests of the run.
pub(crate) struct Exchanges {
    core: RinglessCore,
    /// The bytes of each turn that counts.
    turns: Vec<Vec<u8>>,
    calls_per_turn: u64,
    out: Vec<u8>,
}

impl Exchanges {
    /// Makes the core, with its log below `directory`, fills and warms it.
    pub(crate) fn prepare(operation: Operation, directory: &Path) -> Result<Self, RinglessError> {
        let mut core = RinglessCore::new(directory, PARTITIONS, &pipeline(operation.stages), SEED)?;
        let (mut bytes, mut out) = (Vec::new(), Vec::new());
        let mut client = Client::connect(&mut bytes);
        core.turn(&bytes, &mut out)?;
        for first in (0..RECORDS).step_by(FILL_BATCH as usize) {
            bytes.clear();
            client.fill(first..first + FILL_BATCH, &mut bytes);
            out.clear();
            core.turn(&bytes, &mut out)?;
        }
        let mut keys = RandomRecords(SEED);
        let mut turn = || {
            let mut bytes = Vec::new();
            for _ in 0..operation.calls_per_turn {
                client.call(operation.request, keys.next(), &mut bytes);
            }
            bytes
        };
        for _ in 0..WARM_UP_CALLS / operation.calls_per_turn {
            out.clear();
            core.turn(&turn(), &mut out)?;
        }
        let turns = (0..CALLS_MAX / operation.calls_per_turn).map(|_| turn()).collect();
        Ok(Self { core, turns, calls_per_turn: operation.calls_per_turn, out })
    }

    /// Serves `calls` calls; what they allocated.
    ///
    /// # Panics
    /// When one of them is not answered, or with a refusal: then the counts would be of nothing.
    pub(crate) fn serve(&mut self, calls: u64) -> Result<Allocations, RinglessError> {
        assert!(calls <= CALLS_MAX && calls.is_multiple_of(self.calls_per_turn));
        let answered = self.core.answered();
        let before = Allocations::so_far();
        self.counted_turns((calls / self.calls_per_turn) as usize)?;
        let allocations = Allocations::since(before);
        assert_eq!(self.core.answered() - answered, calls, "every call is answered");
        assert_eq!(self.core.refused(), 0, "with what it asked for");
        assert_eq!(self.core.calls_under_way(), 0);
        Ok(allocations)
    }

    /// Not inlined: a profile starts and ends with this function, found by its name.
    #[inline(never)]
    fn counted_turns(&mut self, turns: usize) -> Result<(), RinglessError> {
        for bytes in &self.turns[..turns] {
            self.out.clear();
            self.core.turn(bytes, &mut self.out)?;
        }
        Ok(())
    }
}

/// Records in no order, always the same.
struct RandomRecords(u64);

impl RandomRecords {
    /// A linear congruential generator, Knuth's MMIX constants.
    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % RECORDS
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use stateside_proto::v1;

    use super::*;
    use crate::client::VALUE;

    /// Frames of an answer: type, payload.
    fn frames(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
        let mut frames = Vec::new();
        while let Some((head, rest)) = bytes.split_at_checked(9) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            frames.push((head[3], &rest[..length]));
            bytes = &rest[length..];
        }
        frames
    }

    /// The last turn's answers, without gRPC's prefix.
    fn messages(exchanges: &Exchanges) -> Vec<&[u8]> {
        let data = frames(&exchanges.out).into_iter().filter(|(kind, _)| *kind == 0);
        data.map(|(_, payload)| &payload[5..]).collect()
    }

    #[test]
    fn what_is_counted_are_whole_exchanges() {
        for operation in Operation::ALL {
            let directory = tempfile::tempdir().unwrap();
            let mut exchanges = Exchanges::prepare(operation, directory.path()).unwrap();
            exchanges.serve(operation.calls_per_turn).unwrap();
            let messages = messages(&exchanges);
            assert_eq!(messages.len() as u64, operation.calls_per_turn, "{}", operation.name);
            for message in messages {
                if operation.request == Request::Get {
                    let answer = v1::GetResponse::decode(message).unwrap();
                    assert!(answer.records[0].found && answer.records[0].value == VALUE);
                } else {
                    let answer = v1::UpsertResponse::decode(message).unwrap();
                    assert!(answer.results[0].error.is_none() && answer.results[0].version > 1);
                }
            }
        }
    }
}
