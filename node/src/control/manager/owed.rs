//! What a core has yet to do so that it has what the manifest says. The manifest came first, so
//! each of these is repeated until the core has done it.
//!
//! ```text
//!   due ── command sent ──► awaiting ── done ──► gone
//!    ▲                         │
//!    └── backoff ◄── refused ──┘
//! ```

use std::time::Duration;

use stateside_types::{CoreId, PartitionId, PartitionSpec, Refusal};
use tokio::time::Instant;

use crate::core::command::{CoreCommand, Reply};

const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// The work itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Add(PartitionSpec),
    Update(PartitionSpec),
    Remove,
    FinishRestore(PartitionSpec),
    SwitchStore(PartitionSpec),
}

/// Work that one core owes for one partition.
pub(super) struct Owed {
    pub(super) core: CoreId,
    pub(super) work: Work,
    /// The core was asked and has not answered.
    pub(super) answer: Option<flume::Receiver<Result<(), Refusal>>>,
    attempts: u32,
    due_at: Instant,
    /// Why the last attempt failed.
    pub(super) error: Option<Refusal>,
}

impl Owed {
    pub(super) fn new(core: CoreId, work: Work) -> Self {
        Self { core, work, answer: None, attempts: 0, due_at: Instant::now(), error: None }
    }

    /// The command that asks for the work.
    pub(super) fn command(
        &self,
        id: PartitionId,
        reply: Reply<Result<(), Refusal>>,
    ) -> CoreCommand {
        match self.work.clone() {
            Work::Add(spec) => CoreCommand::Add { spec, reply },
            Work::Update(spec) => CoreCommand::Update { spec, reply },
            Work::Remove => CoreCommand::Remove { id, reply },
            Work::SwitchStore(spec) => CoreCommand::SwitchStore { id, spec: Some(spec), reply },
            Work::FinishRestore(spec) => CoreCommand::FinishRestore { id, spec: Some(spec), reply },
        }
    }

    /// The attempt failed; the next one comes later each time.
    pub(super) fn failed(&mut self, refusal: Refusal) {
        let backoff = BACKOFF_FIRST * 2_u32.saturating_pow(self.attempts.min(16));
        self.due_at = Instant::now() + backoff.min(BACKOFF_MAX);
        self.attempts += 1;
        self.answer = None;
        self.error = Some(refusal);
    }

    /// Whether something can be done about it now.
    pub(super) fn is_due(&self) -> bool {
        match &self.answer {
            Some(answer) => !answer.is_empty() || answer.is_disconnected(),
            None => Instant::now() >= self.due_at,
        }
    }

    pub(super) fn awaits_answer(&self) -> bool {
        self.answer.is_some()
    }

    pub(super) fn work_name(&self) -> &'static str {
        match self.work {
            Work::Add(_) => "its creation",
            Work::Update(_) => "a change of its settings",
            Work::Remove => "its removal",
            Work::FinishRestore(_) => "its restore",
            Work::SwitchStore(_) => "the change of its store",
        }
    }

    pub(super) fn describe(&self, id: PartitionId) -> String {
        let (name, core) = (self.work_name(), self.core);
        match &self.error {
            Some(error) if self.answer.is_none() => format!(
                "partition {id}: {name} on core {core} failed {} times and is repeated: {error}",
                self.attempts
            ),
            _ => format!("partition {id}: {name} on core {core} is under way"),
        }
    }
}
