//! Reads what `/metrics` answers, as strictly as Prometheus' own tools do.
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>

use std::collections::{BTreeMap, BTreeSet};

/// Names and values of labels, in the order of names.
pub type Labels = BTreeMap<String, String>;

/// One page. Made only when everything on it is valid.
#[derive(Debug, Default)]
pub struct Page {
    families: BTreeMap<String, Family>,
}

#[derive(Debug, Default)]
struct Family {
    kind: String,
    /// By the sample's name (a histogram has three) and its labels.
    samples: BTreeMap<(String, Labels), f64>,
}

impl Page {
    /// Reads a page.
    ///
    /// # Errors
    /// The first line that is not valid, or the family that is not whole.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.ends_with('\n') {
            return Err("the last line is not ended".to_owned());
        }
        let mut page = Self::default();
        let mut helped = BTreeSet::new();
        let mut current = String::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let wrong = |what: &str| format!("{what}: {line}");
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, _) = help.split_once(' ').ok_or_else(|| wrong("no text"))?;
                if !helped.insert(name.to_owned()) {
                    return Err(wrong("a second HELP"));
                }
            } else if let Some(typed) = line.strip_prefix("# TYPE ") {
                let (name, kind) = typed.split_once(' ').ok_or_else(|| wrong("no type"))?;
                if !["counter", "gauge", "histogram"].contains(&kind) || !is_name(name) {
                    return Err(wrong("no such type, or no name"));
                }
                if !helped.contains(name) {
                    return Err(wrong("no HELP before it"));
                }
                name.clone_into(&mut current);
                let family = Family { kind: kind.to_owned(), samples: BTreeMap::new() };
                if page.families.insert(current.clone(), family).is_some() {
                    return Err(wrong("a second TYPE"));
                }
            } else {
                let (name, labels, value) = sample(line).ok_or_else(|| wrong("no sample"))?;
                let family = page.families.get_mut(&current).ok_or_else(|| wrong("no TYPE"))?;
                if !family.has(&current, &name) {
                    return Err(wrong("outside of its family"));
                }
                if family.kind != "gauge" && (value < 0.0 || value.is_nan()) {
                    return Err(wrong("below zero"));
                }
                if family.samples.insert((name, labels), value).is_some() {
                    return Err(wrong("the series is there twice"));
                }
            }
        }
        for (name, family) in &page.families {
            if family.kind == "histogram" {
                family.check_histogram(name)?;
            }
        }
        Ok(page)
    }

    /// The names of all families.
    pub fn families(&self) -> impl Iterator<Item = &str> {
        self.families.keys().map(String::as_str)
    }

    /// The sum of a sample over all series that have these labels; 0 when there is none. The
    /// observations of a histogram are under its name with `_count`.
    pub fn sum(&self, sample: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |of: &Labels| {
            labels.iter().all(|(name, value)| of.get(*name).is_some_and(|have| have == value))
        };
        self.families
            .values()
            .flat_map(|family| &family.samples)
            .filter(|((name, of), _)| name == sample && has(of))
            .map(|(_, value)| value)
            .sum()
    }

    /// How many series of a sample there are.
    pub fn series(&self, sample: &str) -> usize {
        let samples = self.families.values().flat_map(|family| family.samples.keys());
        samples.filter(|(name, _)| name == sample).count()
    }
}

impl Family {
    fn has(&self, family: &str, sample: &str) -> bool {
        match sample.strip_prefix(family) {
            Some("") => self.kind != "histogram",
            Some("_bucket" | "_sum" | "_count") => self.kind == "histogram",
            _ => false,
        }
    }

    /// Each series has buckets that rise to the one of +Inf, which is the count, and a sum.
    fn check_histogram(&self, name: &str) -> Result<(), String> {
        let mut buckets: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
        for ((sample, labels), value) in &self.samples {
            if sample.ends_with("_bucket") {
                let mut labels = labels.clone();
                let bound = labels.remove("le").and_then(|bound| number(&bound));
                let bound = bound.ok_or_else(|| format!("{name}: a bucket without its bound"))?;
                buckets.entry(labels).or_default().push((bound, *value));
            }
        }
        let of = |sample: &str, labels: &Labels| {
            self.samples.get(&(format!("{name}{sample}"), labels.clone())).copied()
        };
        for (labels, mut buckets) in buckets.clone() {
            buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
            if buckets.windows(2).any(|pair| pair[0].1 > pair[1].1) {
                return Err(format!("{name}{labels:?}: buckets do not rise"));
            }
            let last = buckets.last().copied();
            if last != of("_count", &labels).map(|count| (f64::INFINITY, count)) {
                return Err(format!("{name}{labels:?}: +Inf is not the count: {last:?}"));
            }
            if of("_sum", &labels).is_none() {
                return Err(format!("{name}{labels:?}: no sum"));
            }
        }
        let counts = self.samples.keys().filter(|(sample, _)| sample.ends_with("_count")).count();
        if counts == buckets.len() {
            Ok(())
        } else {
            Err(format!("{name}: counts without buckets"))
        }
    }
}

/// Name, labels and value of a line. Values of labels here have nothing that is escaped.
fn sample(line: &str) -> Option<(String, Labels, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = match series.split_once('{') {
        None => (series, ""),
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
    };
    let mut of = Labels::new();
    for label in labels.split(',').filter(|label| !label.is_empty()) {
        let (label, value) = label.split_once('=')?;
        let value = value.strip_prefix('"')?.strip_suffix('"')?;
        let is_plain = !value.contains(['"', '\\']);
        if !is_name(label) || !is_plain || of.insert(label.to_owned(), value.to_owned()).is_some() {
            return None;
        }
    }
    is_name(name).then_some((name.to_owned(), of, number(value)?))
}

fn number(text: &str) -> Option<f64> {
    if text == "+Inf" { Some(f64::INFINITY) } else { text.parse().ok() }
}

fn is_name(text: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    text.starts_with(is_letter) && text.chars().all(|c| is_letter(c) || c.is_ascii_digit())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a_total Text.\n# TYPE a_total counter\na_total{core=\"0\"} 2\n\
        a_total{core=\"1\"} 3\n# HELP h Text.\n# TYPE h histogram\nh_bucket{le=\"0.5\"} 1\n\
        h_bucket{le=\"+Inf\"} 2\nh_sum 9.5\nh_count 2\n";

    #[test]
    fn a_valid_page_is_read() {
        let page = Page::parse(GOOD).unwrap();
        assert_eq!(page.families().collect::<Vec<_>>(), ["a_total", "h"]);
        assert_eq!((page.sum("a_total", &[]), page.sum("a_total", &[("core", "1")])), (5.0, 3.0));
        assert_eq!((page.sum("h_count", &[]), page.series("a_total")), (2.0, 2));
    }

    #[test]
    fn what_prometheus_would_refuse_is_refused() {
        for (good, bad, what) in [
            ("2\n# HELP h", "2\n# HELP a_total", "a second HELP"),
            ("# TYPE h histogram", "# TYPE a_total counter", "a second TYPE"),
            ("# TYPE h histogram", "# TYPE h heap", "no such type"),
            ("core=\"1\"", "core=\"0\"", "the series is there twice"),
            ("core=\"1\"", "core=1", "no sample"),
            ("\"} 3", "\"} many", "no sample"),
            ("\"} 3", "\"} -3", "below zero"),
            ("h_sum 9.5", "other 9.5", "outside of its family"),
            ("le=\"0.5\"} 1", "le=\"0.5\"} 3", "buckets do not rise"),
            ("h_count 2", "h_count 3", "+Inf is not the count"),
            ("h_sum 9.5\n", "", "no sum"),
            ("h_count 2\n", "h_count 2", "the last line"),
        ] {
            let page =
                GOOD.replacen("3\n# HELP h", "2\n# HELP h", usize::from(good.contains("2\n#")));
            let error = Page::parse(&page.replace(good, bad)).unwrap_err();
            assert!(error.contains(what), "{what}: {error}");
        }
    }
}
