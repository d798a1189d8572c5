//! What a row found: contenders, figures, and bars that are met or missed.

use serde_json::{Value, json};

use crate::comparison::{Measured, Ratio};

/// What is measured by a row.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Measured in turn; the first is this build.
    pub contenders: Vec<Measured>,
    /// Single numbers beside them.
    pub figures: Vec<Figure>,
    /// What has to be reached.
    pub bars: Vec<Bar>,
    /// What one has to know to read the row.
    pub notes: Vec<String>,
}

impl Outcome {
    /// The contender of that name, when it took part.
    pub fn named(&self, name: &str) -> Option<&Measured> {
        self.contenders.iter().find(|measured| measured.name == name)
    }

    /// Adds a bar: this build's rate is at least so many times that contender's.
    pub fn bar_times(&mut self, contender: &str, limit: f64) {
        let ratio = self.named(contender).zip(self.contenders.first());
        let ratio = ratio.map(|(theirs, ours)| ours.times(theirs));
        self.bars.push(Bar::at_least(format!("rate over that of {contender}"), ratio, limit, "x"));
    }

    /// As [`Self::bar_times`], for one of several contenders of this build.
    pub fn bar_times_of(&mut self, ours: &str, contender: &str, limit: f64) {
        let ratio = self.named(contender).zip(self.named(ours));
        let ratio = ratio.map(|(theirs, ours)| ours.times(theirs));
        let name = format!("rate of {ours} over that of {contender}");
        self.bars.push(Bar::at_least(name, ratio, limit, "x"));
    }

    /// Adds a figure.
    pub fn figure(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.figures.push(Figure { name: name.into(), value, unit });
    }

    /// For the JSON file.
    pub fn json(&self) -> Value {
        json!({
            "contenders": self.contenders.iter().map(Measured::json).collect::<Vec<_>>(),
            "ratios": self.ratios(),
            "figures": self.figures.iter().map(Figure::json).collect::<Vec<_>>(),
            "bars": self.bars.iter().map(Bar::json).collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }

    fn ratios(&self) -> Value {
        let Some((ours, others)) = self.contenders.split_first() else {
            return Value::Array(Vec::new());
        };
        others
            .iter()
            .map(|other| {
                let Ratio { value, lowest, highest } = ours.times(other);
                json!({ "over": other.name, "ratio": value, "lowest": lowest, "highest": highest })
            })
            .collect()
    }
}

/// A number with a name.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
}

impl Figure {
    fn json(&self) -> Value {
        json!({ "name": self.name, "value": self.value, "unit": self.unit })
    }
}

/// Which side of the limit is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    AtLeast,
    AtMost,
}

/// How a bar turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// By the medians.
    Met,
    /// By the medians.
    Missed,
    /// What it is about did not take part.
    NotMeasured,
}

impl Verdict {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::NotMeasured => "not measured",
        }
    }
}

/// Something that has to be reached.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What is compared with the limit.
    pub what: String,
    limit: f64,
    side: Side,
    unit: &'static str,
    measured: Option<Ratio>,
}

impl Bar {
    /// What has to be this or more. None: not measured.
    pub fn at_least(
        what: impl Into<String>,
        measured: Option<Ratio>,
        limit: f64,
        unit: &'static str,
    ) -> Self {
        Self { what: what.into(), limit, side: Side::AtLeast, unit, measured }
    }

    /// What has to be this or less. None: not measured.
    pub fn at_most(
        what: impl Into<String>,
        measured: Option<Ratio>,
        limit: f64,
        unit: &'static str,
    ) -> Self {
        Self { what: what.into(), limit, side: Side::AtMost, unit, measured }
    }

    /// Whether the median reaches the limit. The spread is shown beside it and decides nothing.
    pub fn verdict(&self) -> Verdict {
        let Some(measured) = self.measured else {
            return Verdict::NotMeasured;
        };
        let met = match self.side {
            Side::AtLeast => measured.value >= self.limit,
            Side::AtMost => measured.value <= self.limit,
        };
        if met { Verdict::Met } else { Verdict::Missed }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let side = match self.side {
            Side::AtLeast => "at least",
            Side::AtMost => "at most",
        };
        let unit = self.unit;
        let measured = match self.measured {
            None => String::new(),
            Some(Ratio { value, lowest, highest }) if lowest == highest => {
                format!(": {} {unit}", number(value))
            }
            Some(Ratio { value, lowest, highest }) => {
                format!(": {} {unit} ({} to {})", number(value), number(lowest), number(highest))
            }
        };
        let verdict = self.verdict().as_str();
        format!("**{verdict}** {}, {side} {} {unit}{measured}", self.what, number(self.limit))
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what,
            "limit": self.limit,
            "side": match self.side { Side::AtLeast => "at least", Side::AtMost => "at most" },
            "unit": self.unit,
            "measured": self.measured.map(|ratio| ratio.value),
            "lowest": self.measured.map(|ratio| ratio.lowest),
            "highest": self.measured.map(|ratio| ratio.highest),
            "verdict": self.verdict().as_str(),
        })
    }
}

impl From<f64> for Ratio {
    /// Something measured once.
    fn from(value: f64) -> Self {
        Self { value, lowest: value, highest: value }
    }
}

/// Three digits that matter, and no more than two behind the point.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => grouped(value),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// `1,234,567`.
fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_met_at_the_limit_and_never_when_not_measured() {
        let least = |value: f64| Bar::at_least("", Some(value.into()), 2.0, "x").verdict();
        let most = |value: f64| Bar::at_most("", Some(value.into()), 2.0, "x").verdict();
        assert_eq!((least(2.0), least(1.9)), (Verdict::Met, Verdict::Missed));
        assert_eq!((most(2.0), most(2.1)), (Verdict::Met, Verdict::Missed));
        assert_eq!(Bar::at_most("", None, 2.0, "x").verdict(), Verdict::NotMeasured);
        // What was divided by nothing is no success.
        assert_eq!((least(f64::NAN), most(f64::NAN)), (Verdict::Missed, Verdict::Missed));
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(number(1_234_567.4), "1,234,567");
        assert_eq!(
            (number(12.345), number(1.234), number(-0.5)),
            ("12.3".into(), "1.23".into(), "-0.50".into())
        );
        assert_eq!(number(-1_234.0), "-1,234");
    }
}
