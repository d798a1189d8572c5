//! Runs a partition's stages.
//!
//! ```text
//!   write ─► enter: the stages before the clock, in order ─► conditions ─► admit: the others
//!            each may refuse or change values                              each may refuse
//!         ─► accept: all of them, in order; none can fail
//! ```
//! The stages before the clock come first of all: they decide what the partition gets to see. A
//! condition is checked after them, so a write that a filter keeps out learns nothing of the
//! records, and a flood of it costs no look-ups.

use std::sync::Arc;

use stateside_types::{
    Ack, PipelineError, PipelineSpec, Refusal, Sequence, StageKind, StageSpec, Timestamp,
    WriteEntry, check_ack, check_pipeline, stage_names,
};

use crate::{
    Changes, Completed, Outlet, Progress, Stage, StageIndex, Write, changes::check_size, definition,
};

/// The stages of one partition, in order.
pub struct Pipeline {
    /// Before the clock.
    front: Vec<Front>,
    /// From the clock on.
    back: Vec<Box<dyn Stage>>,
    log: Option<StageIndex>,
}

/// A stage before the clock and what it did.
struct Front {
    stage: Box<dyn Stage>,
    name: Arc<str>,
    refused: u64,
    changed: u64,
    /// Values that it changed of the write at hand: they count once the write is accepted.
    changing: usize,
}

/// What a stage before the clock did since its partition opened or its pipeline changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageCounts {
    /// The stage's name in its pipeline.
    pub name: Arc<str>,
    /// Writes that it refused.
    pub refused: u64,
    /// Values that it changed, of writes that were accepted.
    pub changed: u64,
}

impl Pipeline {
    /// Builds the stages.
    ///
    /// # Errors
    /// [`PipelineError`] when the stages do not fit each other, or not the acknowledgement.
    pub fn new(spec: &PipelineSpec, ack: Ack) -> Result<Self, PipelineError> {
        check_pipeline(spec)?;
        check_ack(ack, spec)?;
        let back = spec.back().iter().map(build).collect::<Result<_, _>>()?;
        let log = spec.back().iter().position(|stage| stage.kind().is_log());
        let log = log.map(|at| StageIndex(at as u8));
        Ok(Self { front: build_front(spec)?, back, log })
    }

    /// Replaces the stages before the clock. The others know nothing of them, so this can happen
    /// while writes are under way.
    ///
    /// # Errors
    /// [`PipelineError`]; nothing changed.
    pub fn replace_front(&mut self, spec: &PipelineSpec) -> Result<(), PipelineError> {
        check_pipeline(spec)?;
        self.front = build_front(spec)?;
        Ok(())
    }

    /// Where the log stage is, if there is one.
    pub fn log(&self) -> Option<StageIndex> {
        self.log
    }

    /// Whether a stage of this kind is in the pipeline, from the clock on.
    pub fn has(&self, kind: StageKind) -> bool {
        self.back.iter().any(|stage| stage.kind() == kind)
    }

    /// What the stages before the clock did, in order.
    pub fn counts(&self) -> impl Iterator<Item = StageCounts> {
        self.front.iter().map(|front| StageCounts {
            name: Arc::clone(&front.name),
            refused: front.refused,
            changed: front.changed,
        })
    }

    /// Whether there are stages before the clock: without any there is nothing to enter.
    #[inline]
    pub fn has_front(&self) -> bool {
        !self.front.is_empty()
    }

    /// First pass, before the clock. True: a stage changed values, and `entries`, which was empty,
    /// has all entries as they are now; they point into `changes` and the write.
    ///
    /// # Errors
    /// The first stage's refusal, with the stage's name; `BATCH_TOO_LARGE` when the entries with
    /// their new values are no batch any more.
    pub fn enter<'a>(
        &mut self,
        write: &Write<'a>,
        changes: &'a mut Vec<Changes>,
        entries: &mut Vec<WriteEntry<'a>>,
        outlet: &mut dyn Outlet,
    ) -> Result<bool, Refusal> {
        changes.resize_with(self.front.len(), Changes::default);
        let mut any_changed = false;
        for (front, changes) in self.front.iter_mut().zip(changes) {
            changes.clear();
            let result = if any_changed {
                front.enter(&write.with(entries), changes, outlet)
            } else {
                front.enter(write, changes, outlet)
            };
            result.map_err(|refusal| front.refuse(refusal))?;
            front.changing = changes.len();
            if !changes.is_empty() {
                if !any_changed {
                    entries.extend_from_slice(write.entries);
                    any_changed = true;
                }
                changes.apply(entries);
                check_size(entries).map_err(|refusal| front.refuse(refusal))?;
            }
        }
        Ok(any_changed)
    }

    /// First pass, from the clock on.
    ///
    /// # Errors
    /// The first stage's refusal.
    pub fn admit(&mut self, write: &Write<'_>, outlet: &mut dyn Outlet) -> Result<(), Refusal> {
        self.back.iter_mut().try_for_each(|stage| stage.admit(write, outlet))
    }

    /// Second pass of a refusal that is recorded: the stages before the clock have no part in it.
    pub fn accept_refusal(&mut self, write: &mut Write<'_>, outlet: &mut dyn Outlet) {
        self.accept_back(write, outlet);
    }

    /// Second pass.
    pub fn accept(&mut self, write: &mut Write<'_>, outlet: &mut dyn Outlet) {
        for front in &mut self.front {
            front.changed += front.changing as u64;
            let progress = front.stage.accept(write, outlet);
            assert_eq!(progress, Progress::Done, "stages before the clock are done at once");
        }
        self.accept_back(write, outlet);
    }

    fn accept_back(&mut self, write: &mut Write<'_>, outlet: &mut dyn Outlet) {
        for (at, stage) in self.back.iter_mut().enumerate() {
            if stage.accept(write, outlet) == Progress::Pending {
                write.pending |= StageIndex(at as u8).bit();
            }
        }
    }

    /// Tells the stages behind `stage` what it finished.
    pub fn completed(&mut self, stage: StageIndex, what: Completed) {
        for later in &mut self.back[usize::from(stage.0) + 1..] {
            later.completed(stage, what);
        }
    }

    /// The sequence through which every asynchronous stage is done; None without a line
    /// monitor: then there is no asynchronous stage, and every accepted write has passed.
    pub fn passed(&self) -> Option<Sequence> {
        self.back.iter().rev().find_map(|stage| stage.passed())
    }

    /// The first write that an asynchronous stage failed. [`Self::passed`] gets up to the one
    /// before it and no further.
    pub fn failed(&self) -> Option<Sequence> {
        self.back.iter().rev().find_map(|stage| stage.failed())
    }

    /// Continues after the last write of an earlier life of the partition.
    pub fn resume(&mut self, sequence: Sequence, timestamp: Timestamp) {
        self.back.iter_mut().for_each(|stage| stage.resume(sequence, timestamp));
    }
}

impl Front {
    fn enter(
        &mut self,
        write: &Write<'_>,
        changes: &mut Changes,
        outlet: &mut dyn Outlet,
    ) -> Result<(), Refusal> {
        self.stage.admit(write, outlet)?;
        self.stage.change(write, changes, outlet)
    }

    #[cold]
    fn refuse(&mut self, mut refusal: Refusal) -> Refusal {
        self.refused += 1;
        refusal.message = format!("stage `{}`: {}", self.name, refusal.message).into();
        refusal.with("stage", &self.name)
    }
}

/// Makes an empty list of entries out of any, in the room of the old one.
pub fn recycle<'b>(mut entries: Vec<WriteEntry<'_>>) -> Vec<WriteEntry<'b>> {
    entries.clear();
    entries.into_iter().map(|_| -> WriteEntry<'b> { unreachable!("it is empty") }).collect()
}

fn build_front(spec: &PipelineSpec) -> Result<Vec<Front>, PipelineError> {
    spec.front()
        .iter()
        .zip(stage_names(spec))
        .map(|(stage, name)| {
            let stage = build(stage)?;
            Ok(Front { stage, name: name.into(), refused: 0, changed: 0, changing: 0 })
        })
        .collect()
}

fn build(spec: &StageSpec) -> Result<Box<dyn Stage>, PipelineError> {
    let wrong = |message| PipelineError::Options { name: spec.kind().as_str().to_owned(), message };
    let definition =
        definition(spec.kind()).ok_or_else(|| wrong("this process does not know it".to_owned()))?;
    (definition.build)(spec).map_err(|error| wrong(error.message))
}

#[cfg(test)]
pub(crate) mod tests {
    use stateside_types::{Change, OptionValue, Reason};

    use super::*;
    use crate::{
        read_stage,
        stage::tests::{Nowhere, write_of},
    };

    pub(crate) fn texts(texts: &[&str]) -> OptionValue {
        OptionValue::Texts(texts.iter().map(|text| (*text).to_owned()).collect())
    }

    fn text(text: &str) -> OptionValue {
        OptionValue::Text(text.to_owned())
    }

    type Options<'a> = &'a [(&'a str, OptionValue)];

    fn pipeline(stages: &[(&str, Options<'_>)]) -> Pipeline {
        let read = |(name, options): &(&str, Options<'_>)| {
            let options = options.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
            read_stage(name, options.collect()).unwrap()
        };
        let spec: Vec<StageSpec> = stages.iter().map(read).collect();
        Pipeline::new(&spec.into(), Ack::Memory).unwrap()
    }

    fn put<'a>((key, value): &(&'a str, &'a [u8])) -> WriteEntry<'a> {
        WriteEntry::put(key.as_bytes(), value)
    }

    fn enter(pipeline: &mut Pipeline, puts: &[(&str, &[u8])]) -> Result<Vec<Vec<u8>>, Refusal> {
        let entries: Vec<_> = puts.iter().map(put).collect();
        let (mut changes, mut changed) = (Vec::new(), Vec::new());
        let mut write = write_of(&entries, 7_000);
        let any = pipeline.enter(&write, &mut changes, &mut changed, &mut Nowhere)?;
        assert_eq!(any, !changed.is_empty());
        pipeline.accept(&mut write, &mut Nowhere);
        let values = if any { changed.iter() } else { entries.iter() };
        Ok(values
            .map(|entry| match entry.change {
                Change::Put(value) => value.to_vec(),
                Change::Remove => Vec::new(),
            })
            .collect())
    }

    /// The values that a write of these has behind these stages.
    pub(crate) fn pass(
        stages: &[(&str, Options<'_>)],
        puts: &[(&str, &[u8])],
    ) -> Result<Vec<Vec<u8>>, Refusal> {
        enter(&mut pipeline(stages), puts)
    }

    #[test]
    fn each_stage_sees_what_those_before_it_made() {
        let drop_a = [("drop", texts(&["/a"])), ("prefix", texts(&["k"]))];
        let add_b = [("set", OptionValue::Table(vec![("b".to_owned(), OptionValue::Integer(1))]))];
        let small = [("value_bytes_max", OptionValue::Integer(16))];
        let mask = [("mask", texts(&["/b"])), ("prefix", texts(&["l"]))];
        let mut pipeline = pipeline(&[
            ("sanitizer", &drop_a),
            ("enricher", &add_b),
            ("filter", &small),
            ("sanitizer", &mask),
        ]);
        let puts: [(&str, &[u8]); 2] =
            [("k", br#"{"a":"this is long and goes"}"#), ("l", br#"{"c":3}"#)];
        let values = enter(&mut pipeline, &puts).unwrap();
        assert_eq!(values, [br#"{"b":1}"#.to_vec(), br#"{"c":3,"b":"***"}"#.to_vec()]);
        // Too large only once the enricher has been there: the filter stands behind it.
        let refusal = enter(&mut pipeline, &[("l", br#"{"c":12345}"#)]).unwrap_err();
        assert_eq!(refusal.reason, Reason::Filtered);
        assert!(refusal.message.starts_with("stage `filter`: the value has 17 bytes"), "{refusal}");
        let counts: Vec<_> = pipeline.counts().map(|one| (one.refused, one.changed)).collect();
        // What was refused further back is not counted as changed.
        assert_eq!(counts, [(0, 1), (0, 2), (1, 0), (0, 1)]);
        let names: Vec<_> = pipeline.counts().map(|one| one.name.to_string()).collect();
        assert_eq!(names, ["sanitizer", "enricher", "filter", "sanitizer-2"]);
    }

    #[test]
    fn what_stages_add_does_not_make_a_batch_larger_than_one_may_be() {
        let long = "x".repeat(4 << 10);
        let set = OptionValue::Table(vec![("x".to_owned(), text(&long))]);
        let add = [("set", set)];
        let keys: Vec<String> = (0..300).map(|n| n.to_string()).collect();
        let puts: Vec<(&str, &[u8])> = keys.iter().map(|key| (key.as_str(), &b"{}"[..])).collect();
        let refusal = pass(&[("enricher", &add)], &puts).unwrap_err();
        assert_eq!(refusal.reason, Reason::BatchTooLarge);
        assert!(pass(&[("enricher", &add)], &puts[..200]).is_ok());
    }
}
