//! `stateside bench`: load on a node, and what it makes of it.
//!
//! ```text
//!  pure, seeded                         performed
//!  workload, zipfian, inserts ─► what ─┐
//!  schedule                   ─► when ─┴► drive (a thread each) ─► caller ─► node
//!  statistics ◄───────────────────────────── ended calls ◄────────────┘
//!    └─► report, plot                    measure starts the threads, and sums up
//! ```

mod args;
mod caller;
mod cpu;
mod drive;
mod inserts;
mod load;
mod measure;
mod plot;
mod progress;
mod records;
mod report;
mod schedule;
mod statistics;
mod steps;
mod timer;
mod workload;
mod zipfian;

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use stateside_client::{Client, Reason};

use super::{failure::Failure, output::Format};
use crate::exit::Exit;
pub(super) use args::BenchArgs;
use args::{Loads, Plan};
use caller::Target;
use drive::Run;
use load::load;
use measure::{Measured, measure};
use plot::{Point, draw};
use progress::Progress;
use report::{Finding, Report, Role};
use schedule::Pace;

pub(super) async fn run(args: BenchArgs, format: Format) -> Result<Exit, Failure> {
    let plan = args.plan()?;
    let records = plan.records_to_work_on()?;
    // A sweep takes minutes: that its plot cannot be kept is said before, not after.
    let plot = plan.plot.clone().map(create).transpose()?;
    let mut progress = Progress::new(args.progress);
    let mut loaded = None;
    if plan.load {
        let client = Client::connect(&args.data.endpoint, plan.load_options()).await?;
        let count = plan.records;
        loaded = Some(load(&client, &records, count, plan.ack, &mut progress).await?);
    }
    let batch = plan.shape.batch;
    let bench = Bench {
        target: Arc::new(Target::new(records, plan.records, batch, plan.ack)),
        endpoint: args.data.endpoint.clone(),
        plan,
    };
    let mut findings = Vec::new();
    let found = bench.find(&mut findings, &mut progress).await;
    progress.finish();
    if findings.is_empty() {
        return found.map(|()| Exit::Done);
    }
    let plan = bench.plan;
    let complete = found.is_ok() && findings.iter().all(|finding| finding.measured.complete);
    let (settings, title) = (plan.settings(), plan.title());
    let report = Report { settings, title, loaded, findings, complete };
    // What was found before a failure is worth as much as without it.
    report.print(format)?;
    if let Some((path, file)) = plot {
        write_plot(&path, file, &report)?;
    }
    found?;
    end(&report)
}

/// Everything that the measurements of one command share.
struct Bench {
    plan: Plan,
    target: Arc<Target>,
    endpoint: String,
}

impl Bench {
    /// Measures all loads, until somebody stops it or the node is gone.
    async fn find(
        &self,
        findings: &mut Vec<Finding>,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let steps = match &self.plan.loads {
            Loads::One(pace) => {
                let measured = self.measure(*pace, "run", progress).await?;
                findings.push(Finding { role: Role::Single, measured });
                return Ok(());
            }
            Loads::Sweep(steps) => steps,
        };
        let mut peak = 0.0;
        if steps.need_peak() {
            let measured = self.measure(Pace::Closed, "peak", progress).await?;
            peak = measured.calls_per_second();
            let go_on = measured.complete && measured.recorder.done() > 0;
            findings.push(Finding { role: Role::Peak, measured });
            if !go_on {
                return Ok(());
            }
        }
        let count = steps.as_slice().len();
        for (index, &step) in steps.as_slice().iter().enumerate() {
            let calls_per_second = step.calls_per_second(peak);
            let pace = Pace::Open { calls_per_second, arrivals: self.plan.arrivals };
            let title = format!("step {} of {count}, {calls_per_second}/s", index + 1);
            let measured = self.measure(pace, &title, progress).await?;
            let complete = measured.complete;
            findings.push(Finding { role: Role::Step(step), measured });
            if !complete {
                break;
            }
        }
        Ok(())
    }

    async fn measure(
        &self,
        pace: Pace,
        title: &str,
        progress: &mut Progress,
    ) -> Result<Measured, Failure> {
        let extent = self.plan.extent(pace);
        progress.begin(title.to_owned(), extent.warm_up + extent.duration);
        let run = Run {
            target: Arc::clone(&self.target),
            endpoint: self.endpoint.clone(),
            options: self.plan.options(),
            shape: self.plan.shape,
            seed: self.plan.seed,
            pace,
        };
        measure(&run, extent, progress).await
    }
}

/// Failed calls are a result like others, unless there was nothing else.
fn end(report: &Report) -> Result<Exit, Failure> {
    if !report.complete {
        return Err(Failure::new(
            Exit::Failure,
            "interrupted: the figures are of what was done until then",
        ));
    }
    let mut failures = report.findings.iter().flat_map(|found| found.measured.recorder.failures());
    let none_done = report.findings.iter().all(|found| found.measured.recorder.done() == 0);
    match failures.next() {
        Some((reason, failures)) if none_done => {
            let exit = match reason.as_str() {
                "UNREACHABLE" => Exit::Unreachable,
                known if Reason::from_name(known).is_some() => Exit::Refused,
                _ => Exit::Failure,
            };
            Err(Failure::new(exit, format!("no call succeeded: {}", failures.example)))
        }
        _ => Ok(Exit::Done),
    }
}

fn create(path: PathBuf) -> Result<(PathBuf, File), Failure> {
    match File::create(&path) {
        Ok(file) => Ok((path, file)),
        Err(error) => Err(cannot_write(&path, &error)),
    }
}

fn write_plot(path: &Path, mut file: File, report: &Report) -> Result<(), Failure> {
    let points: Vec<Point> = report.findings.iter().filter_map(point).collect();
    let svg = draw(&report.title, &points).map_err(|text| Failure::new(Exit::Failure, text))?;
    file.write_all(svg.as_bytes()).map_err(|error| cannot_write(path, &error))
}

/// Of a load with a schedule that anything was done of.
fn point(finding: &Finding) -> Option<Point> {
    let Pace::Open { calls_per_second, .. } = finding.measured.pace else { return None };
    (finding.measured.recorder.done() > 0).then(|| Point {
        asked: calls_per_second as f64,
        done: finding.measured.calls_per_second(),
        latency: finding.measured.recorder.latency(),
    })
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failure, format!("cannot write {}: {error}", path.display()))
}
