//! How the control thread talks to the cores.
//!
//! A command goes into the core's bounded channel and the core is woken; the answer comes back
//! through a channel of its own with one slot, so a core never waits for the control thread. The
//! control thread does wait for cores, always with a bound.

use std::{sync::Arc, time::Duration};

use stateside_types::{CoreId, Reason, Refusal};
use tokio::time::{Instant, timeout, timeout_at};

use crate::core::command::{CoreCommand, CoreReport, Reply};

/// How long a command may wait for a place in its core's channel.
const SEND_WAIT: Duration = Duration::from_secs(2);

/// The control thread's end of one core.
#[derive(Clone)]
pub struct CoreHandle {
    /// Commands; bounded by [`limits::CORE_COMMANDS_MAX`](stateside_types::limits::CORE_COMMANDS_MAX).
    pub commands: flume::Sender<CoreCommand>,
    /// Makes the core look at its commands.
    pub wake: Arc<dyn Fn() + Send + Sync>,
}

/// All cores of the node, by id.
#[derive(Clone)]
pub(crate) struct Cores(Arc<[CoreHandle]>);

impl Cores {
    pub(crate) fn new(handles: Vec<CoreHandle>) -> Self {
        Self(handles.into())
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = CoreId> + use<> {
        (0..self.0.len() as u16).map(CoreId)
    }

    /// Hands a command to a core.
    pub(crate) async fn send(&self, core: CoreId, command: CoreCommand) -> Result<(), Refusal> {
        let handle = &self.0[usize::from(core.0)];
        let command = match handle.commands.try_send(command) {
            Ok(()) => {
                (handle.wake)();
                return Ok(());
            }
            Err(flume::TrySendError::Disconnected(_)) => return Err(gone(core)),
            Err(flume::TrySendError::Full(command)) => command,
        };
        (handle.wake)();
        match timeout(SEND_WAIT, handle.commands.send_async(command)).await {
            Ok(Ok(())) => {
                (handle.wake)();
                Ok(())
            }
            Ok(Err(_)) => Err(gone(core)),
            Err(_) => Err(Refusal::new(
                Reason::Overloaded,
                format!("core {core} has {} commands waiting", handle.commands.len()),
            )),
        }
    }

    /// Hands a command to a core; the answer arrives at the receiver.
    pub(crate) async fn ask<T>(
        &self,
        core: CoreId,
        command: impl FnOnce(Reply<T>) -> CoreCommand,
    ) -> Result<flume::Receiver<T>, Refusal> {
        let (reply, answer) = flume::bounded(1);
        self.send(core, command(reply)).await?;
        Ok(answer)
    }

    /// Every core's description of itself; `None` for a core that does not answer within `wait`.
    pub(crate) async fn reports(&self, wait: Duration) -> Vec<Option<CoreReport>> {
        let deadline = Instant::now() + wait;
        let mut answers = Vec::with_capacity(self.0.len());
        for core in self.ids() {
            let ask = self.ask(core, |reply| CoreCommand::Report { reply });
            answers.push(timeout_at(deadline, ask).await.ok().and_then(Result::ok));
        }
        let mut reports = Vec::with_capacity(answers.len());
        for answer in answers {
            reports.push(match answer {
                Some(answer) => match timeout_at(deadline, answer.recv_async()).await {
                    Ok(report) => report.ok(),
                    Err(_) => None,
                },
                None => None,
            });
        }
        reports
    }
}

/// The core's thread has ended: the node is stopping.
pub(crate) fn gone(core: CoreId) -> Refusal {
    Refusal::new(Reason::ShuttingDown, format!("core {core} has ended"))
}
