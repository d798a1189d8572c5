//! Medians and percentiles.

/// The middle of the values; of an even number the mean of the two in the middle.
///
/// # Panics
/// When there are no values.
pub fn median(values: &[f64]) -> f64 {
    assert!(!values.is_empty(), "no values, no median");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// Lowest and highest.
pub fn spread(values: &[f64]) -> (f64, f64) {
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (lowest, highest)
}

/// The value below which `share` of the values lie.
///
/// # Panics
/// When there are no values.
pub fn percentile(values: &mut [u64], share: f64) -> u64 {
    assert!(!values.is_empty(), "no values, no percentile");
    values.sort_unstable();
    let at = ((values.len() - 1) as f64 * share).round() as usize;
    values[at]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), (1.0, 3.0));
        assert_eq!(percentile(&mut (0..=100).rev().collect::<Vec<_>>(), 0.99), 99);
    }
}
