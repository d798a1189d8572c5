//! Runs a partition's stages.
//!
//! ```text
//!   write ─► enter: the stages before the clock, in order ─► conditions ─► admit: the others
//!            each may refuse                                               each may refuse
//!         ─► accept: all of them, in order; none can fail
//! ```
//! The stages before the clock come first of all: they decide what the partition gets to see. A
//! condition is checked after them, so a write that a filter keeps out learns nothing of the
//! records, and a flood of it costs no look-ups.

use std::sync::Arc;

use stateside_types::{
    Ack, PipelineError, PipelineSpec, Refusal, Sequence, StageKind, StageSpec, Timestamp,
    check_ack, check_pipeline, stage_names,
};

use crate::{Completed, Outlet, Progress, Stage, StageIndex, Write, definition};

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
}

/// What a stage before the clock did since its partition opened or its pipeline changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageCounts {
    /// The stage's name in its pipeline.
    pub name: Arc<str>,
    /// Writes that it refused.
    pub refused: u64,
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
        let log = spec.back().iter().position(|stage| stage.kind() == StageKind::Log);
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
        self.front
            .iter()
            .map(|front| StageCounts { name: Arc::clone(&front.name), refused: front.refused })
    }

    /// First pass, before the clock.
    ///
    /// # Errors
    /// The first stage's refusal, with the stage's name.
    #[inline]
    pub fn enter(&mut self, write: &Write<'_>, outlet: &mut dyn Outlet) -> Result<(), Refusal> {
        self.front.iter_mut().try_for_each(|front| {
            front.stage.admit(write, outlet).map_err(|refusal| front.refuse(refusal))
        })
    }

    /// First pass, from the clock on.
    ///
    /// # Errors
    /// The first stage's refusal.
    pub fn admit(&mut self, write: &Write<'_>, outlet: &mut dyn Outlet) -> Result<(), Refusal> {
        self.back.iter_mut().try_for_each(|stage| stage.admit(write, outlet))
    }

    /// Second pass.
    pub fn accept(&mut self, write: &mut Write<'_>, outlet: &mut dyn Outlet) {
        for front in &mut self.front {
            let progress = front.stage.accept(write, outlet);
            assert_eq!(progress, Progress::Done, "stages before the clock are done at once");
        }
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

    /// Continues after the last write of an earlier life of the partition.
    pub fn resume(&mut self, sequence: Sequence, timestamp: Timestamp) {
        self.back.iter_mut().for_each(|stage| stage.resume(sequence, timestamp));
    }
}

impl Front {
    #[cold]
    fn refuse(&mut self, mut refusal: Refusal) -> Refusal {
        self.refused += 1;
        refusal.message = format!("stage `{}`: {}", self.name, refusal.message).into();
        refusal.with("stage", &self.name)
    }
}

fn build_front(spec: &PipelineSpec) -> Result<Vec<Front>, PipelineError> {
    spec.front()
        .iter()
        .zip(stage_names(spec))
        .map(|(stage, name)| Ok(Front { stage: build(stage)?, name: name.into(), refused: 0 }))
        .collect()
}

fn build(spec: &StageSpec) -> Result<Box<dyn Stage>, PipelineError> {
    let wrong = |message| PipelineError::Options { name: spec.kind().as_str().to_owned(), message };
    let definition =
        definition(spec.kind()).ok_or_else(|| wrong("this process does not know it".to_owned()))?;
    (definition.build)(spec).map_err(|error| wrong(error.message))
}
