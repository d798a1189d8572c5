//! What the calls do: the workloads of YCSB, and the choice of records. Pure and seeded: the same
//! seed makes the same calls in the same order.

use std::{collections::HashSet, fmt, str::FromStr};

use clap::ValueEnum;
use fastrand::Rng;
use stateside_router::key_hash;

use super::zipfian::{SCRAMBLED_RANKS, Zipfian, scramble};

/// A core workload of YCSB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Workload {
    /// Half reads, half updates.
    A,
    /// 95 % reads, 5 % updates.
    B,
    /// Reads only.
    C,
    /// 95 % reads of the latest records, 5 % inserts.
    D,
    /// 95 % scans, 5 % inserts.
    E,
    /// Half reads, half read-modify-writes.
    F,
}

impl Workload {
    /// Its shares.
    pub(super) fn mix(self) -> Mix {
        let percent = match self {
            Self::A => [50, 50, 0, 0, 0],
            Self::B => [95, 5, 0, 0, 0],
            Self::C => [100, 0, 0, 0, 0],
            Self::D => [95, 0, 5, 0, 0],
            Self::E => [0, 0, 5, 0, 95],
            Self::F => [50, 0, 0, 50, 0],
        };
        Mix { percent }
    }

    /// Its letter.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::C => "c",
            Self::D => "d",
            Self::E => "e",
            Self::F => "f",
        }
    }

    /// The distribution that YCSB gives it.
    pub(super) fn distribution(self) -> Distribution {
        if self == Self::D { Distribution::Latest } else { Distribution::Zipfian }
    }
}

/// Longest scan, as in YCSB: lengths are even from 1 to this.
const SCAN_RECORDS_MAX: u32 = 100;

/// Which records are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Distribution {
    /// Each record as often as any other.
    Uniform,
    /// A few records most of the time, anywhere among the others.
    Zipfian,
    /// The records inserted last most of the time.
    Latest,
}

impl Distribution {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipfian => "zipfian",
            Self::Latest => "latest",
        }
    }
}

/// What one call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Read,
    Update,
    Insert,
    ReadModifyWrite,
    Scan,
}

impl Kind {
    pub(super) const ALL: [Self; 5] =
        [Self::Read, Self::Update, Self::Insert, Self::ReadModifyWrite, Self::Scan];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Update => "update",
            Self::Insert => "insert",
            Self::ReadModifyWrite => "read-modify-write",
            Self::Scan => "scan",
        }
    }
}

/// Shares of the kinds of calls, in percent, in the order of [`Kind::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mix {
    percent: [u8; 5],
}

impl Mix {
    /// The kind that a number below 100 stands for.
    fn kind(self, number: u8) -> Kind {
        let mut below = 0;
        for kind in Kind::ALL {
            below += self.percent[kind as usize];
            if number < below {
                return kind;
            }
        }
        unreachable!("the shares add up to 100")
    }
}

/// `update=100`, `read=80,update=20`; what is not named has no share.
impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut percent = [0_u8; 5];
        for part in text.split(',') {
            let wrong = || {
                format!(
                    "`{part}` is not a share such as read=80; there are read, update, insert, read-modify-write and scan"
                )
            };
            let (name, share) = part.trim().split_once('=').ok_or_else(wrong)?;
            let kind =
                Kind::ALL.into_iter().find(|kind| kind.as_str() == name).ok_or_else(wrong)?;
            percent[kind as usize] =
                share.trim_end_matches('%').parse().ok().filter(|&p| p <= 100).ok_or_else(wrong)?;
        }
        match percent.iter().map(|&share| u32::from(share)).sum() {
            100 => Ok(Self { percent }),
            sum => Err(format!("the shares add up to {sum}, not to 100")),
        }
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = Kind::ALL.iter().filter(|&&kind| self.percent[kind as usize] > 0);
        let texts: Vec<String> = parts
            .map(|&kind| format!("{}={}", kind.as_str(), self.percent[kind as usize]))
            .collect();
        f.write_str(&texts.join(","))
    }
}

/// One call to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    pub(super) kind: Kind,
    /// Numbers of the records, each once; of a scan the one that it begins with. Empty for an insert: which
    /// numbers are free is not for the generator to say.
    pub(super) records: Vec<u64>,
    /// Most records of a scan.
    pub(super) scan: u32,
    /// Which value a write writes.
    pub(super) variant: u64,
}

/// The stream of calls that one thread makes.
#[derive(Debug)]
pub(super) struct Generator {
    random: Rng,
    mix: Mix,
    choice: Choice,
    batch: usize,
    /// The records of the call that is being made.
    chosen: HashSet<u64>,
}

#[derive(Debug)]
enum Choice {
    Uniform,
    Zipfian(Zipfian),
    Latest(Zipfian),
}

/// What a generator makes its stream of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) mix: Mix,
    pub(super) distribution: Distribution,
    /// Skew of the distributions that have one.
    pub(super) theta: f64,
    /// Records in one call.
    pub(super) batch: usize,
}

impl Generator {
    pub(super) fn new(shape: &Shape, seed: u64, thread: usize) -> Self {
        let choice = match shape.distribution {
            Distribution::Uniform => Choice::Uniform,
            Distribution::Zipfian => Choice::Zipfian(Zipfian::new(SCRAMBLED_RANKS, shape.theta)),
            // Grows to the number of records with the first choice.
            Distribution::Latest => Choice::Latest(Zipfian::new(1, shape.theta)),
        };
        let random = stream(seed, "calls", thread);
        Self { random, mix: shape.mix, choice, batch: shape.batch, chosen: HashSet::new() }
    }

    /// The next call, when the records `0..stored` are there.
    pub(super) fn next(&mut self, stored: u64) -> Operation {
        let kind = self.mix.kind(self.random.u8(0..100));
        let variant = self.random.u64(..);
        if kind == Kind::Insert {
            return Operation { kind, records: Vec::new(), scan: 0, variant };
        }
        let (batch, scan) = match kind {
            Kind::Scan => (1, self.random.u32(1..=SCAN_RECORDS_MAX)),
            _ => (self.batch, 0),
        };
        self.chosen.clear();
        let mut records = Vec::with_capacity(batch);
        while records.len() < batch.min(usize::try_from(stored).unwrap_or(usize::MAX)) {
            let mut record = self.choice.record(&mut self.random, stored);
            // A batch names a record once: the node refuses it otherwise. Drawing again would
            // not end soon where few records take most draws, so a neighbour stands in.
            while !self.chosen.insert(record) {
                record = (record + 1) % stored;
            }
            records.push(record);
        }
        Operation { kind, records, scan, variant }
    }
}

impl Choice {
    fn record(&mut self, random: &mut Rng, stored: u64) -> u64 {
        match self {
            Self::Uniform => random.u64(0..stored),
            Self::Zipfian(ranks) => scramble(ranks.rank(random.f64()), stored),
            Self::Latest(ages) => {
                ages.grow(stored);
                // Ages have never shrunk: records are not removed during a run.
                stored - 1 - ages.rank(random.f64()).min(stored - 1)
            }
        }
    }
}

/// A random stream of its own for each purpose and thread, so that drawing more for one does not
/// change another.
pub(super) fn stream(seed: u64, purpose: &str, thread: usize) -> Rng {
    Rng::with_seed(key_hash(format!("{seed}/{purpose}/{thread}").as_bytes()).0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shape(mix: &str, distribution: Distribution, batch: usize) -> Shape {
        Shape { mix: mix.parse().unwrap(), distribution, theta: 0.99, batch }
    }

    fn calls(shape: &Shape, seed: u64, thread: usize) -> Vec<Operation> {
        let mut generator = Generator::new(shape, seed, thread);
        (0..200).map(|_| generator.next(1_000)).collect()
    }

    #[test]
    fn the_same_seed_replays_and_another_seed_or_thread_diverges() {
        for distribution in [Distribution::Uniform, Distribution::Zipfian, Distribution::Latest] {
            let shape = shape("read=50,update=50", distribution, 2);
            assert_eq!(calls(&shape, 7, 0), calls(&shape, 7, 0));
            assert_ne!(calls(&shape, 7, 0), calls(&shape, 8, 0));
            assert_ne!(calls(&shape, 7, 0), calls(&shape, 7, 1));
        }
    }

    #[test]
    fn each_kind_has_its_share() {
        for workload in Workload::value_variants() {
            let mix = workload.mix();
            let shape = Shape { mix, distribution: workload.distribution(), theta: 0.99, batch: 1 };
            let mut generator = Generator::new(&shape, 3, 0);
            let mut counts = [0_u32; 5];
            for _ in 0..100_000 {
                counts[generator.next(100).kind as usize] += 1;
            }
            for kind in Kind::ALL {
                let share = f64::from(counts[kind as usize]) / 1_000.0;
                let expected = f64::from(mix.percent[kind as usize]);
                // Five standard deviations of a sample of this size at most.
                assert!((share - expected).abs() < 0.8, "{workload:?} {kind:?}: {share} %");
            }
        }
    }

    #[test]
    fn scans_begin_at_one_record_and_are_of_every_length() {
        let scans = shape("scan=100", Distribution::Zipfian, 7);
        let lengths: Vec<u32> = calls(&scans, 1, 0)
            .iter()
            .chain(&calls(&scans, 2, 0))
            .map(|call| {
                assert_eq!(call.records.len(), 1, "a scan has no batch");
                call.scan
            })
            .collect();
        assert!(lengths.iter().all(|length| (1..=100).contains(length)), "{lengths:?}");
        // 400 draws of 100: 20 of either end, give or take five standard deviations.
        for end in [1..=5, 96..=100] {
            let count = lengths.iter().filter(|length| end.contains(*length)).count();
            assert!((1..=45).contains(&count), "{count} of {end:?}");
        }
    }

    #[test]
    fn uniform_choices_are_even() {
        let mut generator = Generator::new(&shape("read=100", Distribution::Uniform, 1), 1, 0);
        let mut counts = [0_u32; 100];
        for _ in 0..100_000 {
            counts[generator.next(100).records[0] as usize] += 1;
        }
        // 1,000 each, give or take five standard deviations.
        assert!(counts.iter().all(|count| (840..=1_160).contains(count)), "{counts:?}");
    }

    #[test]
    fn latest_choices_follow_the_records_that_are_inserted() {
        let mut generator = Generator::new(&shape("read=100", Distribution::Latest, 1), 1, 0);
        for stored in [1_000, 1_001, 5_000, 80_000] {
            let mut newest = 0;
            for _ in 0..10_000 {
                let record = generator.next(stored).records[0];
                assert!(record < stored);
                newest += u32::from(record == stored - 1);
            }
            // 1 / zeta(stored): 13.0 % of 1,000 and 8.0 % of 80,000.
            assert!((700..=1_500).contains(&newest), "{stored}: {newest}");
        }
    }

    #[test]
    fn mixes_are_read_and_written() {
        let mix: Mix = "read=80,update=20%".parse().unwrap();
        assert_eq!(mix.to_string(), "read=80,update=20");
        assert_eq!(Workload::E.mix().to_string(), "insert=5,scan=95");
        assert_eq!(Workload::F.mix().to_string(), "read=50,read-modify-write=50");
        for wrong in ["", "read", "read=50", "read=50,update=60", "scans=100", "read=256"] {
            assert!(wrong.parse::<Mix>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_batch_names_each_record_once(
            batch in 1..50_usize, stored in 1..200_u64, seed in any::<u64>(), choice in 0..3_usize,
        ) {
            let distribution = Distribution::value_variants()[choice];
            let mut generator = Generator::new(&shape("update=100", distribution, batch), seed, 0);
            for _ in 0..10 {
                let mut records = generator.next(stored).records;
                prop_assert_eq!(records.len() as u64, (batch as u64).min(stored));
                prop_assert!(records.iter().all(|&record| record < stored));
                records.sort_unstable();
                records.dedup();
                prop_assert_eq!(records.len() as u64, (batch as u64).min(stored));
            }
        }
    }
}
