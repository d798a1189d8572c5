//! The line monitor: a sliding window over sequences that restores order.
//!
//! Asynchronous stages may finish writes in any order. The window remembers for each sequence
//! which stages are still at it; its lower edge, [`LineMonitor::passed`], moves over a sequence
//! only when it and every one before it is done. Answers leave by that edge alone.
//!
//! ```text
//!   passed                        accepted
//!     │  ┌───┬───┬───┬───┬───┬───┐   │
//!   … │  │ · │ L │ · │ L │ L │LR │   │      · done   L log   R replicate
//!     │  └───┴───┴───┴───┴───┴───┘   │
//!       +1  +2 ──► the edge moves by one and waits for +2
//! ```
//! A stage may also fail a write. Then the edge goes up to the one before it, as those are done,
//! and never further: its answer is a failure, and so is that of everything behind it, whatever
//! the other stages finish meanwhile.
//!
//! ```text
//!   passed        failed
//!     │  ┌───┬───┬───┬───┬───┐
//!   … │  │ · │ L │ ✗ │ · │ · │      +1 passes now, +2 when the log is done with it; then the
//!     │  └───┴───┴───┴───┴───┘      partition stops, and +3 and all behind it are refused
//! ```
//! Why the partition stops: a write is applied when it is accepted, and those behind the failed one
//! were decided on what it left, by conditions, versions and reads. To take it back alone would mean
//! to undo it in the store, to take back whatever was built on it, and to have no record of it in a
//! log that has one of it already. So nothing is compensated: as after a failed write to a disk, the
//! partition serves no more, and its next life goes on from what its log holds. The outcome of the
//! failed write is open until then, which is what its refusal says.

use std::collections::VecDeque;

use stateside_types::{Reason, Refusal, Sequence, StageKind, Timestamp, limits::WINDOW_WRITES_MAX};

use crate::{Completed, Outlet, Progress, Stage, StageIndex, Write};

/// See the module's header.
#[derive(Debug, Default)]
pub struct LineMonitor {
    passed: Sequence,
    /// Stages still at work on `passed + 1`, `passed + 2`, …
    window: VecDeque<u8>,
    /// The first write that a stage failed.
    failed: Option<Sequence>,
}

impl LineMonitor {
    fn slide(&mut self) {
        while self.window.front() == Some(&0) && self.failed != Some(self.passed.next()) {
            self.window.pop_front();
            self.passed = self.passed.next();
        }
    }
}

impl Stage for LineMonitor {
    fn kind(&self) -> StageKind {
        StageKind::LineMonitor
    }

    fn admit(&mut self, write: &Write<'_>, _: &mut dyn Outlet) -> Result<(), Refusal> {
        if self.window.len() < WINDOW_WRITES_MAX {
            return Ok(());
        }
        Err(Refusal::new(
            Reason::Overloaded,
            format!("partition {} has {WINDOW_WRITES_MAX} writes under way", write.partition),
        ))
    }

    fn accept(&mut self, write: &mut Write<'_>, _: &mut dyn Outlet) -> Progress {
        let expected = self.passed.0 + self.window.len() as u64 + 1;
        assert_eq!(write.sequence.0, expected, "writes enter the window in sequence");
        self.window.push_back(write.pending);
        self.slide();
        Progress::Done
    }

    fn completed(&mut self, stage: StageIndex, what: Completed) {
        let slot = |sequence: Sequence| sequence.0.checked_sub(self.passed.0 + 1);
        match what {
            Completed::One(sequence) => {
                if let Some(pending) =
                    slot(sequence).and_then(|at| self.window.get_mut(usize::try_from(at).ok()?))
                {
                    *pending &= !stage.bit();
                }
            }
            Completed::Through(sequence) => {
                let count = slot(sequence).map_or(0, |at| at + 1).min(self.window.len() as u64);
                self.window
                    .iter_mut()
                    .take(count as usize)
                    .for_each(|pending| *pending &= !stage.bit());
            }
            Completed::Failed(sequence) => {
                // What has passed was acknowledged and cannot fail any more.
                let is_open = slot(sequence).is_some_and(|at| at < self.window.len() as u64);
                if is_open && self.failed.is_none_or(|failed| sequence < failed) {
                    self.failed = Some(sequence);
                }
            }
        }
        self.slide();
    }

    fn passed(&self) -> Option<Sequence> {
        Some(self.passed)
    }

    fn failed(&self) -> Option<Sequence> {
        self.failed
    }

    fn resume(&mut self, sequence: Sequence, _: Timestamp) {
        assert!(self.window.is_empty(), "a pipeline resumes before its first write");
        self.passed = sequence;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stateside_types::{Ack, Epoch, PartitionId, WallClock};

    use super::*;
    use crate::stage::tests::Nowhere;

    fn write(sequence: u64, pending: u8) -> Write<'static> {
        Write {
            partition: PartitionId(0),
            epoch: Epoch(1),
            entries: &[],
            request: None,
            now: WallClock(0),
            ack: Ack::Durable,
            sequence: Sequence(sequence),
            timestamp: Timestamp::ZERO,
            pending,
        }
    }

    proptest! {
        /// Two asynchronous stages finish a shuffled list of writes, one at a time or in runs.
        #[test]
        fn nothing_passes_before_everything_ahead_of_it_is_done(
            order in Just((0..40_usize).flat_map(|n| [(n, 0_u8), (n, 1)]).collect::<Vec<_>>()).prop_shuffle(),
            runs in prop::collection::vec(any::<bool>(), 80),
        ) {
            let mut monitor = LineMonitor::default();
            monitor.resume(Sequence(100), Timestamp::ZERO);
            for n in 0..40 {
                monitor.accept(&mut write(101 + n, 0b11), &mut Nowhere);
            }
            let mut done = [[false; 2]; 40];
            let mut before = Sequence(100);
            for ((n, stage), run) in order.into_iter().zip(runs) {
                let sequence = Sequence(101 + n as u64);
                if run && stage == 0 {
                    monitor.completed(StageIndex(stage), Completed::Through(sequence));
                    done[..=n].iter_mut().for_each(|d| d[0] = true);
                } else {
                    monitor.completed(StageIndex(stage), Completed::One(sequence));
                    done[n][usize::from(stage)] = true;
                }
                let expected = done.iter().take_while(|d| d[0] && d[1]).count() as u64;
                let passed = monitor.passed().unwrap();
                prop_assert_eq!(passed, Sequence(100 + expected));
                prop_assert!(passed >= before);
                before = passed;
            }
            prop_assert_eq!(before, Sequence(140));
        }
    }

    proptest! {
        /// As above, but stages fail some writes instead of finishing them.
        #[test]
        fn nothing_passes_a_write_that_failed(
            order in Just((0..40_usize).flat_map(|n| [(n, 0_u8), (n, 1)]).collect::<Vec<_>>()).prop_shuffle(),
            fates in prop::collection::vec(prop_oneof![20 => Just(true), 1 => Just(false)], 80),
        ) {
            let mut monitor = LineMonitor::default();
            for n in 0..40 {
                monitor.accept(&mut write(1 + n, 0b11), &mut Nowhere);
            }
            let mut done = [[false; 2]; 40];
            let mut failed: Option<usize> = None;
            for ((n, stage), succeeds) in order.into_iter().zip(fates) {
                let sequence = Sequence(1 + n as u64);
                let before = monitor.passed().unwrap().0 as usize;
                if succeeds {
                    monitor.completed(StageIndex(stage), Completed::One(sequence));
                    done[n][usize::from(stage)] = true;
                } else {
                    monitor.completed(StageIndex(stage), Completed::Failed(sequence));
                    failed = Some(failed.map_or(n, |first| first.min(n)));
                }
                let run = done.iter().take_while(|d| d[0] && d[1]).count();
                let expected = failed.map_or(run, |failed| run.min(failed));
                let passed = monitor.passed().unwrap().0 as usize;
                prop_assert_eq!(passed, expected);
                prop_assert!(passed >= before);
                prop_assert_eq!(monitor.failed(), failed.map(|n| Sequence(1 + n as u64)));
            }
            // A stage that says later that all is done does not change it.
            monitor.completed(StageIndex(0), Completed::Through(Sequence(40)));
            monitor.completed(StageIndex(1), Completed::Through(Sequence(40)));
            let expected = failed.unwrap_or(40) as u64;
            prop_assert_eq!(monitor.passed(), Some(Sequence(expected)));
        }
    }

    #[test]
    fn what_has_passed_or_never_was_cannot_fail() {
        let mut monitor = LineMonitor::default();
        monitor.accept(&mut write(1, 1), &mut Nowhere);
        monitor.accept(&mut write(2, 1), &mut Nowhere);
        monitor.completed(StageIndex(0), Completed::One(Sequence(1)));
        for sequence in [0, 1, 3, u64::MAX] {
            monitor.completed(StageIndex(0), Completed::Failed(Sequence(sequence)));
        }
        assert_eq!((monitor.passed(), monitor.failed()), (Some(Sequence(1)), None));
    }

    #[test]
    fn a_full_window_refuses_and_late_or_early_reports_are_harmless() {
        let mut monitor = LineMonitor::default();
        for n in 1..=WINDOW_WRITES_MAX as u64 {
            monitor.accept(&mut write(n, 1), &mut Nowhere);
        }
        let refusal = monitor.admit(&write(0, 0), &mut Nowhere).unwrap_err();
        assert_eq!(refusal.reason, Reason::Overloaded);
        monitor.completed(StageIndex(0), Completed::Through(Sequence(10)));
        monitor.completed(StageIndex(0), Completed::Through(Sequence(3)));
        monitor.completed(StageIndex(0), Completed::One(Sequence(u64::MAX)));
        assert_eq!(monitor.passed(), Some(Sequence(10)));
        assert!(monitor.admit(&write(0, 0), &mut Nowhere).is_ok());
    }
}
