//! Which segments of a log directory make up which run, and where each run is cut.
//!
//! ```text
//!  generation      3      4      5   │   7      8   │   9
//!  run began at    3      3      3   │   7      7   │   9        run's first generation
//!  first group    100    100    100  │  180    180  │  205       run's first group
//!                 └──── run ───────┘   └── run ──┘    └─ run
//!                  void from 180        void from 205   open end
//! ```

use super::{Generation, GroupNumber, Placement, RunRange, SegmentHeader};

/// A segment as its directory shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundSegment {
    /// From the file's name.
    pub generation: Generation,
    /// From the file's first block; None when that is damaged.
    pub header: Option<SegmentHeader>,
}

/// One run of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunPlan {
    /// The placement it was written under.
    pub placement: Placement,
    /// Which groups it has.
    pub range: RunRange,
    /// Its segments, oldest first.
    pub segments: Vec<FoundSegment>,
}

/// Two segments of one log contradict each other. No crash leads to this: files were moved here
/// from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("segments {older} and {newer} of one log contradict each other: files were mixed up")]
pub struct ContradictingSegments {
    /// The older one.
    pub older: Generation,
    /// The newer one.
    pub newer: Generation,
}

/// Sorts the segments of one directory into runs, oldest first.
///
/// A segment with a damaged header is taken for one of the run before it (else of the first): it is
/// not read in any case, but the loss is judged in its place.
///
/// # Errors
/// [`ContradictingSegments`].
pub fn plan_runs(mut found: Vec<FoundSegment>) -> Result<Vec<RunPlan>, ContradictingSegments> {
    found.sort_by_key(|segment| segment.generation);
    let mut runs: Vec<RunPlan> = Vec::new();
    let mut orphans = Vec::new();
    let mut last: Option<SegmentHeader> = None;
    for segment in found {
        let Some(header) = segment.header else {
            match runs.last_mut() {
                Some(run) => run.segments.push(segment),
                None => orphans.push(segment),
            }
            continue;
        };
        if let Some(last) = last {
            let is_same_run = last.run_first_generation == header.run_first_generation;
            let is_consistent = if is_same_run {
                (last.placement, last.run_first_group) == (header.placement, header.run_first_group)
            } else {
                last.generation < header.run_first_generation
                    && last.placement <= header.placement
                    && last.run_first_group <= header.run_first_group
            };
            if !is_consistent {
                let (older, newer) = (last.generation, header.generation);
                return Err(ContradictingSegments { older, newer });
            }
            if is_same_run {
                let run = runs.last_mut().expect("the last header belongs to a run");
                run.segments.push(segment);
                continue;
            }
            runs.last_mut().expect("as above").range.cut = Some(header.run_first_group);
        }
        let mut segments = std::mem::take(&mut orphans);
        segments.push(segment);
        runs.push(RunPlan {
            placement: header.placement,
            range: RunRange {
                first_group: header.run_first_group,
                has_first_segment: header.generation == header.run_first_generation,
                cut: None,
            },
            segments,
        });
        last = Some(header);
    }
    if !orphans.is_empty() {
        // Nothing but damaged headers. The groups they held cannot be known.
        runs.push(RunPlan {
            placement: Placement(0),
            range: RunRange { first_group: GroupNumber(0), has_first_segment: false, cut: None },
            segments: orphans,
        });
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use stateside_types::CoreId;

    use super::*;

    fn found(generation: u32, run: u32, placement: u64, first_group: u64) -> FoundSegment {
        let header = SegmentHeader {
            generation: Generation(generation),
            core: CoreId(0),
            placement: Placement(placement),
            run_first_group: GroupNumber(first_group),
            run_first_generation: Generation(run),
            segment_bytes: 1 << 20,
        };
        FoundSegment { generation: Generation(generation), header: Some(header) }
    }

    fn damaged(generation: u32) -> FoundSegment {
        FoundSegment { generation: Generation(generation), header: None }
    }

    fn generations(run: &RunPlan) -> Vec<u32> {
        run.segments.iter().map(|segment| segment.generation.0).collect()
    }

    #[test]
    fn segments_fall_into_runs_and_each_is_cut_where_the_next_begins() {
        let runs = plan_runs(vec![
            found(9, 9, 2, 205),
            found(4, 3, 1, 100),
            found(7, 7, 1, 180),
            damaged(5),
            found(8, 7, 1, 180),
        ]);
        let runs = runs.unwrap();
        assert_eq!(
            runs.iter().map(generations).collect::<Vec<_>>(),
            [vec![4, 5], vec![7, 8], vec![9]]
        );
        let cuts: Vec<_> = runs.iter().map(|run| run.range.cut.map(|group| group.0)).collect();
        assert_eq!(cuts, [Some(180), Some(205), None]);
        assert!(!runs[0].range.has_first_segment && runs[1].range.has_first_segment);
    }

    #[test]
    fn damaged_headers_alone_still_make_a_run() {
        assert_eq!(plan_runs(vec![]).unwrap(), []);
        assert_eq!(generations(&plan_runs(vec![damaged(2)]).unwrap()[0]), [2]);
        let runs = plan_runs(vec![damaged(2), found(3, 1, 1, 1)]).unwrap();
        assert_eq!(runs.iter().map(generations).collect::<Vec<_>>(), [vec![2, 3]]);
    }

    #[test]
    fn files_of_another_log_are_noticed() {
        for (a, b) in [
            (found(1, 1, 2, 10), found(2, 2, 1, 20)),
            (found(1, 1, 1, 30), found(2, 2, 1, 20)),
            (found(1, 1, 1, 10), found(2, 1, 1, 11)),
            (found(4, 4, 1, 10), found(5, 3, 1, 10)),
        ] {
            let error = ContradictingSegments { older: a.generation, newer: b.generation };
            assert_eq!(plan_runs(vec![b, a]), Err(error));
        }
    }
}
