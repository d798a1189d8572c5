//! YCSB's core workloads, A to F, with its zipfian choice of records.

/// Skew of YCSB's zipfian choice.
const THETA: f64 = 0.99;
/// Longest scan of workload E.
const SCAN_MAX: u64 = 100;

/// What one operation is.
pub(crate) enum Operation {
    Read(u64),
    Write(u64),
    ReadThenWrite(u64),
    Scan(u64, usize),
}

/// A workload of YCSB.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Workload {
    /// Half reads, half updates.
    A,
    /// 95 % reads, 5 % updates.
    B,
    /// Reads.
    C,
    /// 95 % reads of what is new, 5 % inserts.
    D,
    /// 95 % scans of up to 100 records, 5 % inserts.
    E,
    /// Half reads, half reads followed by a write of the same record.
    F,
}

impl Workload {
    /// In YCSB's order.
    pub(crate) const ALL: [Self; 6] = [Self::A, Self::B, Self::C, Self::D, Self::E, Self::F];

    /// Chooses the next operation.
    pub(crate) fn next(self, choice: &mut Choice) -> Operation {
        let share = choice.random.f64();
        match self {
            Self::A if share < 0.5 => Operation::Write(choice.zipfian()),
            Self::B if share < 0.05 => Operation::Write(choice.zipfian()),
            Self::D | Self::E if share < 0.05 => Operation::Write(choice.insert()),
            Self::D => Operation::Read(choice.latest()),
            Self::E => {
                let first = choice.zipfian();
                Operation::Scan(first, choice.random.u64(1..=SCAN_MAX) as usize)
            }
            Self::F if share < 0.5 => Operation::ReadThenWrite(choice.zipfian()),
            Self::A | Self::B | Self::C | Self::F => Operation::Read(choice.zipfian()),
        }
    }
}

/// Chooses records. Popular ones are spread over the key space by the hash in [`key`].
pub(crate) struct Choice {
    random: fastrand::Rng,
    records: u64,
    zeta: f64,
}

impl Choice {
    pub(crate) fn new(records: u64) -> Self {
        let zeta = (1..=records).map(|rank| (rank as f64).powf(-THETA)).sum();
        Self { random: fastrand::Rng::with_seed(2), records, zeta }
    }

    /// By the method of Gray et al., "Quickly generating billion-record synthetic databases", as YCSB.
    fn rank(&mut self) -> u64 {
        let count = self.records as f64;
        let zeta_2 = 1.0 + 0.5f64.powf(THETA);
        let alpha = 1.0 / (1.0 - THETA);
        let eta = (1.0 - (2.0 / count).powf(1.0 - THETA)) / (1.0 - zeta_2 / self.zeta);
        let u = self.random.f64();
        let at = u * self.zeta;
        if at < 1.0 {
            0
        } else if at < zeta_2 {
            1
        } else {
            ((count * (eta * u - eta + 1.0).powf(alpha)) as u64).min(self.records - 1)
        }
    }

    fn zipfian(&mut self) -> u64 {
        self.rank()
    }

    fn latest(&mut self) -> u64 {
        self.records - 1 - self.rank()
    }

    fn insert(&mut self) -> u64 {
        self.zeta += ((self.records + 1) as f64).powf(-THETA);
        self.records += 1;
        self.records - 1
    }
}

/// The key of record `number`: its hash, as YCSB orders inserts.
pub(crate) fn key(number: u64) -> [u8; 16] {
    let mut key = *b"user000000000000";
    let mut hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    key[4..12].copy_from_slice(&(hash ^ (hash >> 32)).to_be_bytes());
    key
}
