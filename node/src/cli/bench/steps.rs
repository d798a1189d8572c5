//! The loads that a sweep measures, one after the other. Pure.

use std::{fmt, str::FromStr};

use stateside_types::limits::BENCH_STEPS_MAX;

use crate::cli::quantity::parse_rate;

/// What `--sweep` measures.
const DEFAULT_PERCENT: [f64; 5] = [10.0, 25.0, 50.0, 75.0, 90.0];
/// Loads far beyond the peak only measure how long a queue gets.
const PERCENT_MAX: f64 = 1_000.0;

/// One load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    /// Of the peak, in percent.
    Share(f64),
    /// Calls a second.
    Rate(u64),
}

impl Step {
    /// Calls a second, when the peak is known.
    pub(super) fn calls_per_second(self, peak: f64) -> u64 {
        match self {
            Self::Share(percent) => ((peak * percent / 100.0).round() as u64).max(1),
            Self::Rate(rate) => rate,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share(percent) => write!(f, "{percent}%"),
            Self::Rate(rate) => write!(f, "{rate}/s"),
        }
    }
}

/// All loads of a sweep, in the order in which they were given.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Steps(Vec<Step>);

impl Default for Steps {
    fn default() -> Self {
        Self(DEFAULT_PERCENT.map(Step::Share).to_vec())
    }
}

impl Steps {
    pub(super) fn as_slice(&self) -> &[Step] {
        &self.0
    }

    /// Whether the peak has to be found first.
    pub(super) fn need_peak(&self) -> bool {
        self.0.iter().any(|step| matches!(step, Step::Share(_)))
    }
}

impl FromStr for Steps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let steps = text.split(',').map(parse_step).collect::<Result<Vec<_>, _>>()?;
        if steps.len() > BENCH_STEPS_MAX {
            return Err(format!("{} loads are more than {BENCH_STEPS_MAX}", steps.len()));
        }
        Ok(Self(steps))
    }
}

fn parse_step(text: &str) -> Result<Step, String> {
    let Some(percent) = text.trim().strip_suffix('%') else {
        return Ok(Step::Rate(parse_rate(text.trim())?));
    };
    percent
        .trim()
        .parse()
        .ok()
        .filter(|&percent: &f64| percent > 0.0 && percent <= PERCENT_MAX)
        .map(Step::Share)
        .ok_or_else(|| {
            format!("`{text}` is not a share of the peak such as 25% (at most {PERCENT_MAX}%)")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_shares_or_rates() {
        let steps: Steps = "10%, 2.5%,5k/s,700".parse().unwrap();
        let expected = [Step::Share(10.0), Step::Share(2.5), Step::Rate(5_000), Step::Rate(700)];
        assert_eq!(steps.as_slice(), expected);
        assert!(steps.need_peak() && Steps::default().need_peak());
        assert!(!"100,200".parse::<Steps>().unwrap().need_peak());
        let shown: Vec<_> = steps.as_slice().iter().map(Step::to_string).collect();
        assert_eq!(shown, ["10%", "2.5%", "5000/s", "700/s"]);
        assert_eq!(Step::Share(25.0).calls_per_second(1_000.0), 250);
        assert_eq!(Step::Share(1.0).calls_per_second(10.0), 1, "never nothing");
        for wrong in ["", "0%", "-5%", "nan%", "2000%", "fast", "10%,,20%"] {
            assert!(wrong.parse::<Steps>().is_err(), "{wrong}");
        }
        assert!(vec!["1"; 65].join(",").parse::<Steps>().is_err());
    }
}
