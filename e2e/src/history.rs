//! What clients were told, and whether a restarted node agrees: the oracle of the kill loops.
//!
//! Every key has one writer that never has two writes of it under way. So a key's content is
//! known exactly, but for a write that was under way when the node died:
//! ```text
//!   begin ──► acknowledged(version)   the write must be there after every restart, once
//!     │ ────► refused                 it must never be there
//!     └─────► (node killed)           it may be there or not, but whole, and the same for ever
//! ```
//! In each partition the versions of what was acknowledged and of what turned out to have been
//! applied must be all the numbers since the restart before: one missing would be a gap, one too
//! many a write applied twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

/// How many of a key's batches a report of a violation shows.
const SHOWN_BATCHES: usize = 12;

/// The number of a batch in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub usize);

/// The entries of one request that belong to one partition: they live or die together.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The partition.
    pub partition: u32,
    /// New content of each key; None removes it. Values are unique to the batch.
    pub entries: Vec<(String, Option<Vec<u8>>)>,
}

/// A record as a node returned it: value and version.
pub type Content = Option<(Vec<u8>, u64)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    UnderWay,
    Acknowledged(u64),
    Refused,
    /// Under way when the node died, and found applied. None: its version shows in no record.
    FoundApplied(Option<u64>),
    /// Under way when the node died, and found not applied, or without anything to tell by.
    FoundAbsent,
}

struct Recorded {
    batch: Batch,
    fate: Fate,
    life: u32,
}

/// The versions of one partition since the last restart.
#[derive(Default)]
struct Ledger {
    /// Everything up to here is accounted for.
    base: u64,
    acknowledged: BTreeMap<u64, BatchId>,
}

/// Everything that clients did and were told.
#[derive(Default)]
pub struct History {
    batches: Vec<Recorded>,
    contents: BTreeMap<String, Content>,
    under_way: BTreeMap<String, BatchId>,
    ledgers: BTreeMap<u32, Ledger>,
    /// What reads returned: value to version. A value belongs to one batch.
    observed: BTreeMap<Vec<u8>, (String, u64)>,
    /// Which batch wrote a value.
    values: BTreeMap<Vec<u8>, BatchId>,
    violations: Vec<String>,
    /// How often the node was started.
    life: u32,
}

impl History {
    /// A write is about to be sent.
    pub fn begin(&mut self, batch: Batch) -> BatchId {
        let id = BatchId(self.batches.len());
        for (key, value) in &batch.entries {
            let previous = self.under_way.insert(key.clone(), id);
            assert!(previous.is_none(), "the workload writes {key} twice at once");
            if let Some(value) = value {
                let previous = self.values.insert(value.clone(), id);
                assert!(previous.is_none(), "the workload writes the same value twice");
            }
        }
        self.batches.push(Recorded { batch, fate: Fate::UnderWay, life: self.life });
        id
    }

    /// The node said that the batch is written.
    pub fn acknowledged(&mut self, id: BatchId, version: u64) {
        self.batches[id.0].fate = Fate::Acknowledged(version);
        let batch = self.batches[id.0].batch.clone();
        let ledger = self.ledgers.entry(batch.partition).or_default();
        if version <= ledger.base {
            let base = ledger.base;
            self.violation(
                id,
                format!(
                    "version {version} is not above {base}, which was in use before the restart"
                ),
            );
        } else if let Some(other) = ledger.acknowledged.insert(version, id) {
            self.violation(id, format!("version {version} was given to batch {} too", other.0));
        }
        for (key, value) in batch.entries {
            self.under_way.remove(&key);
            if let Some(Some((_, before))) = self.contents.get(&key)
                && *before >= version
            {
                let before = *before;
                self.violation(id, format!("{key} had version {before} before it got {version}"));
            }
            self.contents.insert(key, value.map(|value| (value, version)));
        }
    }

    /// The node said that the batch is not written.
    pub fn refused(&mut self, id: BatchId) {
        self.batches[id.0].fate = Fate::Refused;
        for (key, _) in self.batches[id.0].batch.entries.clone() {
            self.under_way.remove(&key);
        }
    }

    /// A read returned this record. It must not be taken back by a crash.
    pub fn observed(&mut self, key: &str, value: &[u8], version: u64) {
        self.observed.insert(value.to_vec(), (key.to_owned(), version));
    }

    /// What a key holds, as far as its only writer knows: nothing is under way for it.
    pub fn content(&self, key: &str) -> Content {
        self.contents.get(key).cloned().flatten()
    }

    /// Something that the workload itself noticed.
    pub fn report(&mut self, what: String) {
        self.violations.push(what);
    }

    /// Compares what a restarted node holds with what was promised.
    ///
    /// `contents` has every key that was ever written; `next_versions` the version that each
    /// partition gave to a write made after the reads.
    pub fn check_after_restart(
        &mut self,
        contents: &BTreeMap<String, Content>,
        next_versions: &BTreeMap<u32, u64>,
    ) {
        let open: BTreeSet<BatchId> = self.under_way.values().copied().collect();
        for (key, expected) in &self.contents {
            let actual = contents.get(key).cloned().flatten();
            if !self.under_way.contains_key(key) && actual != *expected {
                let what = difference(key, expected, &actual);
                self.violations.push(format!("{what}\n{}", self.story(key)));
            }
        }
        let mut visible: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        let mut hidden: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for id in open {
            self.resolve(id, contents, &mut visible, &mut hidden);
        }
        self.check_observed();
        for (partition, next) in next_versions {
            let seen = visible.remove(partition).unwrap_or_default();
            let (sure, perhaps) = hidden.get(partition).copied().unwrap_or_default();
            self.check_versions(*partition, *next, &seen, sure, perhaps);
        }
        self.life += 1;
    }

    /// Finds out whether a batch that was under way has been applied.
    fn resolve(
        &mut self,
        id: BatchId,
        contents: &BTreeMap<String, Content>,
        visible: &mut BTreeMap<u32, Vec<u64>>,
        hidden: &mut BTreeMap<u32, (u64, u64)>,
    ) {
        let batch = self.batches[id.0].batch.clone();
        let (mut applied, mut absent, mut versions) = (0, 0, BTreeSet::new());
        for (key, value) in &batch.entries {
            self.under_way.remove(key);
            let before = self.contents.get(key).cloned().flatten();
            let actual = contents.get(key).cloned().flatten();
            let is_new = actual.as_ref().map(|(value, _)| value) == value.as_ref();
            match (is_new, actual == before) {
                // A remove of what was not there: either way nothing is to be seen.
                (true, true) => {}
                (true, false) => {
                    applied += 1;
                    versions.extend(actual.as_ref().map(|(_, version)| *version));
                }
                (false, true) => absent += 1,
                (false, false) => {
                    let what = difference(key, &before, &actual);
                    self.violation(id, format!("{what}, nor what was under way"));
                }
            }
            self.contents.insert(key.clone(), actual);
        }
        if applied > 0 && absent > 0 {
            self.violation(id, format!("half of a batch: {applied} entries applied, {absent} not"));
        }
        if versions.len() > 1 {
            self.violation(id, format!("one batch, several versions: {versions:?}"));
        }
        let version = versions.first().copied();
        let counts = hidden.entry(batch.partition).or_default();
        self.batches[id.0].fate = if applied > 0 {
            match version {
                Some(version) => visible.entry(batch.partition).or_default().push(version),
                None => counts.0 += 1,
            }
            Fate::FoundApplied(version)
        } else {
            counts.1 += u64::from(absent == 0);
            Fate::FoundAbsent
        };
    }

    /// What a read has shown must have been applied, under the version shown.
    fn check_observed(&mut self) {
        for (value, (key, version)) in std::mem::take(&mut self.observed) {
            let Some(id) = self.values.get(&value).copied() else {
                self.violations.push(format!("a read of {key} returned a value that nobody wrote"));
                continue;
            };
            match self.batches[id.0].fate {
                Fate::Acknowledged(given) if given == version => {}
                Fate::FoundApplied(Some(given)) if given == version => {}
                fate => self.violation(
                    id,
                    format!("a read of {key} returned this batch at version {version}, but it is {fate:?}"),
                ),
            }
        }
    }

    /// All versions of a partition up to `next` belong to somebody, each to one.
    fn check_versions(
        &mut self,
        partition: u32,
        next: u64,
        visible: &[u64],
        sure: u64,
        perhaps: u64,
    ) {
        let ledger = self.ledgers.entry(partition).or_default();
        let base = std::mem::replace(&mut ledger.base, next);
        let acknowledged = std::mem::take(&mut ledger.acknowledged);
        let mut problems = Vec::new();
        let mut all: BTreeSet<u64> = acknowledged.keys().copied().collect();
        for version in visible {
            if !all.insert(*version) {
                problems.push(format!("version {version} belongs to two batches"));
            }
        }
        if let Some(highest) = all.last().filter(|highest| **highest >= next) {
            problems.push(format!(
                "version {next} was given to a new write, after {highest} had been given"
            ));
        }
        if let Some(lowest) = all.first().filter(|lowest| **lowest <= base) {
            problems
                .push(format!("version {lowest} appeared although {base} had been given before"));
        }
        let given = next.saturating_sub(base).saturating_sub(1);
        let known = all.len() as u64;
        if given < known + sure || given > known + sure + perhaps {
            let missing: Vec<u64> = (base + 1..next).filter(|v| !all.contains(v)).take(8).collect();
            problems.push(format!(
                "versions {}..{next}: {given} were given, {known} are known, {sure} to {} more can be; unaccounted: {missing:?}",
                base + 1,
                sure + perhaps
            ));
        }
        for problem in problems {
            self.violations.push(format!("partition {partition}, life {}: {problem}", self.life));
        }
    }

    /// Every broken promise so far, with the story of the key.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// Batches acknowledged, refused, and found applied or not after a crash.
    pub fn counts(&self) -> (usize, usize, usize, usize) {
        let count = |wanted: fn(&Fate) -> bool| {
            self.batches.iter().filter(|recorded| wanted(&recorded.fate)).count()
        };
        (
            count(|fate| matches!(fate, Fate::Acknowledged(_))),
            count(|fate| matches!(fate, Fate::Refused)),
            count(|fate| matches!(fate, Fate::FoundApplied(_))),
            count(|fate| matches!(fate, Fate::FoundAbsent)),
        )
    }

    fn violation(&mut self, id: BatchId, what: String) {
        let key = self.batches[id.0].batch.entries.first().map(|(key, _)| key.clone());
        let story = key.map(|key| self.story(&key)).unwrap_or_default();
        self.violations.push(format!("batch {}: {what}\n{story}", id.0));
    }

    /// The last batches that touched a key.
    fn story(&self, key: &str) -> String {
        let touching: Vec<(usize, &Recorded)> = self
            .batches
            .iter()
            .enumerate()
            .filter(|(_, recorded)| recorded.batch.entries.iter().any(|(k, _)| k == key))
            .collect();
        let mut text = format!("  history of {key}:\n");
        for (number, recorded) in &touching[touching.len().saturating_sub(SHOWN_BATCHES)..] {
            let verb = recorded.batch.entries.iter().find(|(k, _)| k == key);
            let verb =
                if verb.is_some_and(|(_, value)| value.is_some()) { "put" } else { "remove" };
            // A string takes all that is written to it.
            let _ = writeln!(
                text,
                "    life {} partition {} batch {number} of {} entries: {verb}, {:?}",
                recorded.life,
                recorded.batch.partition,
                recorded.batch.entries.len(),
                recorded.fate
            );
        }
        text
    }
}

fn difference(key: &str, expected: &Content, actual: &Content) -> String {
    let shown = |content: &Content| match content {
        None => "no record".to_owned(),
        Some((value, version)) => {
            let start: String = String::from_utf8_lossy(value).chars().take(24).collect();
            format!("version {version} `{start}`")
        }
    };
    format!("{key} holds {}, not {}", shown(actual), shown(expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(history: &mut History, key: &str, value: &str) -> BatchId {
        let entries = vec![(key.to_owned(), Some(value.into()))];
        history.begin(Batch { partition: 0, entries })
    }

    fn held(records: &[(&str, &str, u64)]) -> BTreeMap<String, Content> {
        records
            .iter()
            .map(|(k, v, n)| ((*k).to_owned(), Some((v.as_bytes().to_vec(), *n))))
            .collect()
    }

    fn check(history: &mut History, records: &[(&str, &str, u64)], next: u64) -> Vec<String> {
        history.check_after_restart(&held(records), &[(0, next)].into());
        history.violations().to_vec()
    }

    /// a = 1 (acknowledged, version 1), b = 2 (acknowledged, version 2).
    fn two_writes() -> History {
        let mut history = History::default();
        let a = put(&mut history, "a", "1");
        history.acknowledged(a, 1);
        let b = put(&mut history, "b", "2");
        history.acknowledged(b, 2);
        history
    }

    #[test]
    fn what_was_promised_passes_also_twice() {
        let mut history = two_writes();
        assert_eq!(check(&mut history, &[("a", "1", 1), ("b", "2", 2)], 3), Vec::<String>::new());
        assert_eq!(check(&mut history, &[("a", "1", 1), ("b", "2", 2)], 4), Vec::<String>::new());
    }

    #[test]
    fn a_lost_write_is_found() {
        assert!(check(&mut two_writes(), &[("a", "1", 1)], 2)[0].contains("b holds no record"));
    }

    #[test]
    fn a_write_applied_twice_is_found_by_its_version() {
        let found = check(&mut two_writes(), &[("a", "1", 1), ("b", "2", 3)], 4);
        assert!(found.iter().any(|v| v.contains("b holds version 3")), "{found:?}");
        assert!(found.iter().any(|v| v.contains("3 were given, 2 are known")), "{found:?}");
    }

    #[test]
    fn a_gap_is_found() {
        let found = check(&mut two_writes(), &[("a", "1", 1), ("b", "2", 2)], 5);
        assert!(found[0].contains("unaccounted: [3, 4]"), "{found:?}");
    }

    #[test]
    fn a_reused_version_is_found() {
        let mut history = two_writes();
        assert!(check(&mut history, &[("a", "1", 1), ("b", "2", 2)], 3).is_empty());
        let c = put(&mut history, "c", "3");
        history.acknowledged(c, 3);
        assert!(history.violations()[0].contains("in use before the restart"));
        let mut history = two_writes();
        let c = put(&mut history, "c", "3");
        history.acknowledged(c, 2);
        assert!(history.violations()[0].contains("was given to batch 1 too"));
    }

    #[test]
    fn a_write_under_way_may_be_there_or_not() {
        for (records, next) in
            [(vec![("a", "1", 1), ("b", "2", 2)], 3), (vec![("a", "9", 3), ("b", "2", 2)], 4)]
        {
            let mut history = two_writes();
            put(&mut history, "a", "9");
            assert_eq!(check(&mut history, &records, next), Vec::<String>::new());
            assert_eq!(check(&mut history, &records, next + 1), Vec::<String>::new());
        }
    }

    #[test]
    fn a_write_under_way_that_changes_its_mind_is_found() {
        let mut history = two_writes();
        put(&mut history, "a", "9");
        assert!(check(&mut history, &[("a", "1", 1), ("b", "2", 2)], 3).is_empty());
        let found = check(&mut history, &[("a", "9", 3), ("b", "2", 2)], 4);
        assert!(found[0].contains("a holds version 3"), "{found:?}");
    }

    #[test]
    fn half_of_a_batch_is_found() {
        let mut history = two_writes();
        let entries =
            vec![("a".to_owned(), Some(b"8".to_vec())), ("b".to_owned(), Some(b"9".to_vec()))];
        history.begin(Batch { partition: 0, entries });
        let found = check(&mut history, &[("a", "8", 3), ("b", "2", 2)], 4);
        assert!(found[0].contains("half of a batch"), "{found:?}");
    }

    #[test]
    fn an_unseen_remove_may_fill_one_version_but_not_two() {
        let records = [("a", "1", 1), ("b", "2", 2)];
        for (next, clean) in [(3, true), (4, true), (5, false)] {
            let mut history = two_writes();
            history.begin(Batch { partition: 0, entries: vec![("c".to_owned(), None)] });
            assert_eq!(
                check(&mut history, &records, next).is_empty(),
                clean,
                "next version {next}"
            );
        }
    }

    #[test]
    fn a_read_that_a_crash_takes_back_is_found() {
        let mut history = two_writes();
        put(&mut history, "a", "9");
        history.observed("a", b"9", 3);
        let found = check(&mut history, &[("a", "1", 1), ("b", "2", 2)], 3);
        assert!(found[0].contains("a read of a returned this batch"), "{found:?}");
    }

    #[test]
    fn a_refused_write_that_shows_up_is_found() {
        let mut history = two_writes();
        let a = put(&mut history, "a", "9");
        history.refused(a);
        assert!(!check(&mut history, &[("a", "9", 3), ("b", "2", 2)], 4).is_empty());
    }
}
