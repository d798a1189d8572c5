//! Skewed choices: a few records are asked for most of the time, as they are in life. Pure: the
//! random number is a parameter.
//!
//! The algorithm is that of Gray et al., "Quickly Generating Billion-Record Synthetic Databases",
//! SIGMOD 1994, as YCSB uses it (Cooper et al., "Benchmarking Cloud Serving Systems with YCSB",
//! SoCC 2010). The two most popular ranks have exactly their share, the others come from
//! a continuous approximation that is a few percent off for the next ranks. An exact sampler
//! would be easy to have; figures that can be laid beside YCSB's are worth more here.

/// Ranks that YCSB draws from, however many records there are: the skew of a scrambled choice
/// does not depend on the number of records.
pub(super) const SCRAMBLED_RANKS: u64 = 10_000_000_000;
/// Terms of a zeta sum that are added up one by one; the rest is an integral with corrections.
const TERMS_SUMMED: u64 = 10_000;

/// Ranks 0, 1, 2, … with a probability that falls as `1 / (rank + 1)^theta`.
#[derive(Clone, Debug)]
pub(super) struct Zipfian {
    items: u64,
    theta: f64,
    zeta_two: f64,
    zeta_items: f64,
    eta: f64,
}

impl Zipfian {
    /// `theta` is above 0 (even) and below 1; YCSB has 0.99.
    pub(super) fn new(items: u64, theta: f64) -> Self {
        assert!(items > 0, "there is something to choose from");
        assert!(theta > 0.0 && theta < 1.0, "the algorithm is for skews between 0 and 1");
        let mut zipfian = Self {
            items,
            theta,
            zeta_two: zeta(2, theta),
            zeta_items: zeta(items, theta),
            eta: 0.0,
        };
        zipfian.settle();
        zipfian
    }

    /// There are more items now. Cheap when there are only a few more.
    pub(super) fn grow(&mut self, items: u64) {
        if items <= self.items {
            return;
        }
        if items - self.items <= TERMS_SUMMED {
            self.zeta_items +=
                (self.items + 1..=items).map(|k| (k as f64).powf(-self.theta)).sum::<f64>();
        } else {
            self.zeta_items = zeta(items, self.theta);
        }
        self.items = items;
        self.settle();
    }

    /// The rank that a number in [0, 1) stands for.
    pub(super) fn rank(&self, unit: f64) -> u64 {
        let scaled = unit * self.zeta_items;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < self.zeta_two {
            return 1;
        }
        let alpha = 1.0 / (1.0 - self.theta);
        let rank = self.items as f64 * (self.eta * unit - self.eta + 1.0).powf(alpha);
        (rank as u64).min(self.items - 1)
    }

    /// With two items or fewer `eta` means nothing, and `rank` does not get to it.
    fn settle(&mut self) {
        let rest = 1.0 - (2.0 / self.items as f64).powf(1.0 - self.theta);
        self.eta = rest / (1.0 - self.zeta_two / self.zeta_items);
    }
}

/// The record that a rank belongs to: popular records lie anywhere, not side by side. Ranks
/// outnumber records, so several fall on one.
pub(super) fn scramble(rank: u64, records: u64) -> u64 {
    // FNV-1a over the eight bytes, as YCSB has it: the same records are popular here and there.
    let hash = rank
        .to_le_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(1_099_511_628_211)
        })
        .cast_signed()
        .unsigned_abs();
    hash % records
}

/// The sum of `1 / k^theta` for k from 1 to `items`.
fn zeta(items: u64, theta: f64) -> f64 {
    let summed = items.min(TERMS_SUMMED);
    let head: f64 = (1..=summed).map(|k| (k as f64).powf(-theta)).sum();
    if items == summed {
        return head;
    }
    // Euler and Maclaurin: the integral, and the first corrections. What is left out is below the
    // precision of the sum. Adding up ten billion terms, as YCSB did once and then wrote down the
    // result, takes minutes, and only gives one theta.
    let (from, to) = (summed as f64, items as f64);
    let integral = (to.powf(1.0 - theta) - from.powf(1.0 - theta)) / (1.0 - theta);
    let ends = (to.powf(-theta) - from.powf(-theta)) / 2.0;
    let slopes = -theta * (to.powf(-theta - 1.0) - from.powf(-theta - 1.0)) / 12.0;
    head + integral + ends + slopes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The share of each rank by the definition.
    fn shares(items: u64, theta: f64) -> Vec<f64> {
        let weights: Vec<f64> = (1..=items).map(|k| (k as f64).powf(-theta)).collect();
        let all: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / all).collect()
    }

    #[test]
    fn zeta_is_the_sum_and_ycsbs_constant() {
        // The constant that YCSB's ScrambledZipfianGenerator carries.
        assert!((zeta(SCRAMBLED_RANKS, 0.99) - 26.469_028_201_783_02).abs() < 1e-6);
        for theta in [0.2, 0.5, 0.99] {
            let sum: f64 = (1..=300_000).map(|k| f64::from(k).powf(-theta)).sum();
            assert!((zeta(300_000, theta) - sum).abs() < 1e-6, "{theta}");
        }
    }

    #[test]
    fn ranks_come_as_often_as_the_definition_says() {
        const DRAWS: u64 = 1_000_000;
        for (items, theta) in [(1_000, 0.99), (1_000, 0.5), (50_000, 0.8)] {
            let zipfian = Zipfian::new(items, theta);
            let shares = shares(items, theta);
            let mut counts = vec![0_u64; items as usize];
            // An even grid of units: the distribution itself, without the noise of a sample.
            for draw in 0..DRAWS {
                counts[zipfian.rank((draw as f64 + 0.5) / DRAWS as f64) as usize] += 1;
            }
            for rank in [0, 1] {
                let drawn = counts[rank] as f64 / DRAWS as f64;
                assert!((drawn - shares[rank]).abs() < 1e-4, "{rank}");
            }
            // The rest is Gray's approximation: within 3 % of all calls at any point.
            let (mut drawn, mut expected) = (0.0, 0.0);
            for (rank, (count, share)) in counts.iter().zip(&shares).enumerate() {
                drawn += *count as f64 / DRAWS as f64;
                expected += share;
                assert!((drawn - expected).abs() < 0.03, "{items} {theta}: up to rank {rank}");
            }
            assert!((drawn - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn scrambled_choices_are_as_skewed_as_ycsbs_and_reach_every_record() {
        let zipfian = Zipfian::new(SCRAMBLED_RANKS, 0.99);
        let mut counts = vec![0_u64; 100];
        for draw in 0..1_000_000 {
            let rank = zipfian.rank((f64::from(draw) + 0.5) / 1e6);
            counts[scramble(rank, 100) as usize] += 1;
        }
        let hottest = scramble(0, 100) as usize;
        // 1 / 26.469 for rank 0, and an even share of the many ranks that fall on the same record.
        assert!(counts[hottest] > 37_780, "{}", counts[hottest]);
        assert!(counts.iter().all(|&count| count > 1_000), "{counts:?}");
        assert_ne!(scramble(1, 100), scramble(0, 100) + 1, "neighbours are torn apart");
    }

    proptest! {
        #[test]
        fn a_rank_is_one_of_the_items(items in 1..5_000_u64, theta in 0.01..0.999_f64, unit in 0.0..1.0_f64) {
            let zipfian = Zipfian::new(items, theta);
            prop_assert!(zipfian.rank(unit) < items);
            prop_assert_eq!(zipfian.rank(0.0), 0);
            prop_assert!(scramble(zipfian.rank(unit), items) < items);
        }

        #[test]
        fn a_choice_that_has_grown_is_the_one_that_was_made_so_large(
            start in 1..2_000_u64, steps in prop::collection::vec(0..30_000_u64, 1..5), unit in 0.0..1.0_f64,
        ) {
            let mut grown = Zipfian::new(start, 0.99);
            let mut items = start;
            for step in steps {
                items += step;
                grown.grow(items);
            }
            let made = Zipfian::new(items, 0.99);
            prop_assert!((grown.zeta_items - made.zeta_items).abs() < 1e-8);
            prop_assert!(grown.rank(unit).abs_diff(made.rank(unit)) <= 1 + items / 1_000_000);
        }
    }
}
