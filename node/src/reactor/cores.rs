//! A core: one thread with one glommio executor, pinned to one CPU, running one main task.
//!
//! ```text
//!  start ─► thread "core-N": make the executor ─► pin ─► main task (owns the CoreRing) ─► join
//!              │ cannot: start returns the error            │ panic: the hook, at once
//! ```
//!
//! # glommio's stall
//! glommio runs its queue of tasks only while its *latency ring* holds no completion. When one
//! arrives just before a round begins, the round ends before any task has run, and glommio takes
//! that for "nothing to do" and parks: with runnable tasks, until some other event. A timer of
//! ours cannot be relied on to be that event, for the task that would arm it again may be among
//! the runnable ones (seen: a core that slept for good). What puts completions there is above all
//! the preemption timer, when the thread is descheduled for as long as that timer runs. So:
//! - the preemption timer is set to an hour;
//! - tasks never stay runnable across a yield: [`yield_now`] waits for a completion that comes at
//!   once, so that glommio passes by its rings and timers, preempted or not;
//! - a task that only sleeps keeps a timer armed, for whatever may be left of the problem;
//! - a core without local tasks does not enter glommio at all (`ring/waiting.rs`).
//!
//! glommio is kept small: its own rings carry no sockets and no log writes, so 64 KiB of registered
//! memory suffice (it locks what it registers, and limits on locked memory can be low). Its
//! builder's placement is not used: it reads the machine's topology from sysfs, which hardened
//! containers hide, and panics when it cannot; the affinity is set here instead.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    future::Future,
    io,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    rc::Rc,
    sync::{Arc, mpsc},
    task::{Context, Poll},
    thread,
    time::Duration,
};

use glommio::{GlommioError, LocalExecutor, LocalExecutorBuilder, Placement, io::PollableFd};
use rustix::event::{EventfdFlags, eventfd};
use stateside_types::{CoreId, limits};

use super::{
    cpus::bind_thread,
    error::{ReactorError, panic_message},
    probe::{check_memlock, explain_setup},
};

/// How long glommio stays with its runnable tasks before it looks at its rings: never that long,
/// see the head of the file.
const PREEMPT_TIMER: Duration = Duration::from_secs(3600);
/// How long a task may stay runnable in a parked executor while there is work.
const BUSY_STALL_MAX: Duration = Duration::from_millis(limits::TICK_BUSY_MS);
/// How long a task may stay runnable in a parked executor when nothing goes on.
const IDLE_STALL_MAX: Duration = Duration::from_millis(50);
/// glommio's minimum.
const EXECUTOR_IO_MEMORY_BYTES: usize = 64 << 10;

/// Called when a core or a blocking call panicked: a bug, after which the process must end with
/// its own exit code. Called on the thread that panicked, at once, so that the other cores do not go
/// on serving as if nothing were missing.
pub type FailureHook = Arc<dyn Fn(ReactorError) + Send + Sync>;

/// Which core, and where.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// The core's number; its thread is named after it.
    pub core: CoreId,
    /// The CPU it is pinned to; None leaves it to the scheduler. See
    /// [`place_cores`](super::place_cores).
    pub cpu: Option<usize>,
}

/// A running core. Lives with whoever started it; dropping it lets the core run on unattended.
#[derive(Debug)]
pub struct CoreExecutor<T> {
    thread: thread::JoinHandle<Result<T, ReactorError>>,
}

impl<T: Send + 'static> CoreExecutor<T> {
    /// Starts a core whose main task is the future that `main` makes on the core's thread.
    /// Returns when the executor runs.
    ///
    /// # Errors
    /// When the thread or its executor cannot be made, or the thread not pinned.
    pub fn start<M, F>(
        config: CoreConfig,
        failed: FailureHook,
        main: M,
    ) -> Result<Self, ReactorError>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (ready, is_ready) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name(format!("core-{}", config.core.0))
            .spawn(move || {
                let executor = match make_executor(config.cpu) {
                    Ok(executor) => executor,
                    Err(error) => {
                        // The starter waits for it: it cannot be gone.
                        let _ = ready.send(Err(error));
                        return Err(ReactorError::io(
                            "starting a core",
                            io::Error::other("see the error of its start"),
                        ));
                    }
                };
                let _ = ready.send(Ok(()));
                FAILED.with(|hook| hook.replace(Some(Arc::clone(&failed))));
                run(&executor, main)
            })
            .map_err(|error| ReactorError::io("starting the thread of a core", error))?;
        match is_ready.recv() {
            Ok(started) => started?,
            Err(_) => return Err(thread_ended(thread)),
        }
        Ok(Self { thread })
    }

    /// Waits for the main task's end and returns its result.
    ///
    /// # Errors
    /// [`ReactorError::Panicked`], of which the hook has heard already.
    pub fn join(self) -> Result<T, ReactorError> {
        self.thread.join().unwrap_or_else(|payload| Err(panicked(&*payload)))
    }
}

fn thread_ended<T>(thread: thread::JoinHandle<Result<T, ReactorError>>) -> ReactorError {
    match thread.join() {
        Err(payload) => panicked(&*payload),
        Ok(_) => unreachable!("the thread reports before it returns"),
    }
}

fn make_executor(cpu: Option<usize>) -> Result<LocalExecutor, ReactorError> {
    check_memlock()?; // glommio says it less clearly
    let builder = LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(EXECUTOR_IO_MEMORY_BYTES)
        .preempt_timer(PREEMPT_TIMER);
    // glommio asserts what it expects of the kernel in some places instead of returning it.
    let made = catch_unwind(AssertUnwindSafe(|| builder.make()));
    let executor = match made {
        Ok(Ok(executor)) => executor,
        Ok(Err(GlommioError::IoError(error))) => return Err(explain_setup(error)),
        Ok(Err(error)) => return Err(ReactorError::io("making a core's executor", error)),
        Err(payload) => {
            let message = panic_message(&*payload);
            return Err(ReactorError::io("making a core's executor", io::Error::other(message)));
        }
    };
    // After making it: the helper thread that glommio keeps (and we never use) stays off the CPU.
    if let Some(cpu) = cpu {
        bind_thread(&[cpu]).map_err(|error| ReactorError::io("pinning a core", error))?;
    }
    Ok(executor)
}

fn run<T: 'static, M, F>(executor: &LocalExecutor, main: M) -> Result<T, ReactorError>
where
    M: FnOnce() -> F + 'static,
    F: Future<Output = T> + 'static,
{
    let always_readable = eventfd(1, EventfdFlags::CLOEXEC)
        .map_err(|errno| ReactorError::io("making an eventfd of a core", errno))?;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        executor.run(async move {
            let ready = PollableFd::new(always_readable).map_err(|error| {
                ReactorError::io("making an eventfd of a core", io::Error::from(error))
            })?;
            READY.with(|slot| slot.replace(Some(Rc::new(ready))));
            // Keeps a timer armed: see the head of the file.
            let ticker = glommio::spawn_local(async {
                loop {
                    sleep(STALL_MAX.get()).await;
                }
            })
            .detach();
            let result = CatchPanic { future: Box::pin(async move { main().await }) }.await;
            ticker.cancel();
            READY.with(|slot| slot.replace(None));
            result
        })
    }));
    match outcome {
        Ok(Ok(value)) => Ok(value),
        // Reported when it happened.
        Ok(Err(error)) => Err(error),
        // glommio itself.
        Err(payload) => {
            report(panicked(&*payload));
            Err(panicked(&*payload))
        }
    }
}

thread_local! {
    /// This core's hook.
    static FAILED: RefCell<Option<FailureHook>> = const { RefCell::new(None) };
    /// An eventfd that is always readable: awaiting it takes one pass of glommio's rings.
    static READY: RefCell<Option<Rc<PollableFd<OwnedFd>>>> = const { RefCell::new(None) };
    /// How often a timer fires in glommio.
    static STALL_MAX: Cell<Duration> = const { Cell::new(BUSY_STALL_MAX) };
    /// Futures of [`spawn_local`] that have not ended.
    static LOCAL_TASKS: Cell<usize> = const { Cell::new(0) };
}

fn panicked(payload: &(dyn Any + Send)) -> ReactorError {
    let thread = thread::current().name().unwrap_or("a thread without a name").to_owned();
    ReactorError::Panicked { thread, message: panic_message(payload) }
}

fn report(error: ReactorError) {
    let hook = FAILED.with(|hook| hook.borrow().clone());
    if let Some(hook) = hook {
        hook(error);
    }
}

/// Turns a panic of a future into an error, and reports it before anything else happens: glommio
/// would drop the task and forget what it said.
struct CatchPanic<F> {
    future: Pin<Box<F>>,
}

impl<F: Future> Future for CatchPanic<F> {
    type Output = Result<F::Output, ReactorError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let future = self.future.as_mut();
        match catch_unwind(AssertUnwindSafe(|| future.poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(payload) => {
                report(panicked(&*payload));
                Poll::Ready(Err(panicked(&*payload)))
            }
        }
    }
}

/// A future that runs beside the core's main task. Await it for its result; dropping it lets
/// the future run on.
pub struct LocalTask<T> {
    task: glommio::task::JoinHandle<Option<T>>,
}

impl<T> Future for LocalTask<T> {
    /// None: it panicked, and the hook has heard of it.
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        pin!(&mut self.task).poll(context).map(Option::flatten)
    }
}

impl<T> std::fmt::Debug for LocalTask<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalTask").finish_non_exhaustive()
    }
}

/// Runs `future` on this core, beside the main task: for rare work with waits of its own, such as
/// streaming a snapshot. While it lives, waiting on the ring is a little dearer. It must yield
/// ([`yield_now`]) between slices of work: the core serves nobody meanwhile.
///
/// # Panics
/// Outside of a core.
pub fn spawn_local<T: 'static>(future: impl Future<Output = T> + 'static) -> LocalTask<T> {
    struct Counted;
    impl Drop for Counted {
        fn drop(&mut self) {
            LOCAL_TASKS.set(LOCAL_TASKS.get() - 1);
        }
    }
    LOCAL_TASKS.set(LOCAL_TASKS.get() + 1);
    let counted = Counted;
    let caught = CatchPanic { future: Box::pin(future) };
    let task = glommio::spawn_local(async move {
        let _counted = counted;
        caught.await.ok()
    })
    .detach();
    LocalTask { task }
}

/// Whether futures of [`spawn_local`] live on this thread.
pub(super) fn has_local_tasks() -> bool {
    LOCAL_TASKS.get() > 0
}

/// Says whether anything goes on, which decides how often glommio's timer wakes the core.
pub(super) fn set_quiet(quiet: bool) {
    STALL_MAX.set(if quiet { IDLE_STALL_MAX } else { BUSY_STALL_MAX });
}

/// Lets the other futures of this core run, timers fire and glommio's rings move. Costs a few
/// system calls; for slices of a hundred microseconds or more. Does nothing outside of a core.
pub async fn yield_now() {
    let ready = READY.with(|ready| ready.borrow().clone());
    if let Some(ready) = ready {
        // An error is as good as the event: the caller goes on.
        let _ = ready.readable().await;
    }
}

/// Waits for `duration` on this core.
pub async fn sleep(duration: Duration) {
    glommio::timer::Timer::new(duration).await;
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    type Reports = Arc<Mutex<Vec<String>>>;

    fn hook() -> (FailureHook, Reports) {
        let reports = Reports::default();
        let kept = Arc::clone(&reports);
        (Arc::new(move |error| kept.lock().unwrap().push(error.to_string())), reports)
    }

    fn config(cpu: Option<usize>) -> CoreConfig {
        CoreConfig { core: CoreId(3), cpu }
    }

    #[test]
    fn a_core_runs_on_its_cpu_under_its_name_and_returns_its_result() {
        let cpu = *super::super::cpus_allowed().unwrap().last().unwrap();
        let (failed, reports) = hook();
        let core = CoreExecutor::start(config(Some(cpu)), failed, || async {
            sleep(Duration::from_millis(1)).await;
            let name = thread::current().name().map(str::to_owned);
            (name, super::super::cpus_allowed().unwrap())
        });
        let (name, cpus) = core.unwrap().join().unwrap();
        assert_eq!(name.as_deref(), Some("core-3"));
        assert_eq!(cpus, [cpu]);
        assert!(reports.lock().unwrap().is_empty());
    }

    #[test]
    fn a_cpu_that_is_not_there_is_an_error_of_the_start() {
        let (failed, _) = hook();
        let core = CoreExecutor::start(config(Some(1000)), failed, || async {});
        assert!(core.unwrap_err().to_string().contains("pinning"));
    }

    #[test]
    fn a_panic_of_the_main_task_is_reported_and_returned() {
        let (failed, reports) = hook();
        let core = CoreExecutor::start(config(None), failed, || async {
            yield_now().await;
            panic!("lost {}", 7);
        });
        let result: Result<(), _> = core.unwrap().join();
        let text = result.unwrap_err().to_string();
        assert_eq!(text, "core-3 panicked: lost 7");
        assert_eq!(*reports.lock().unwrap(), [text]);
    }

    #[test]
    fn a_panic_of_a_local_task_is_reported_at_once() {
        let (failed, reports) = hook();
        let kept = Arc::clone(&reports);
        let core = CoreExecutor::start(config(None), failed, move || async move {
            let task = spawn_local(async { panic!("aside") });
            let result: Option<()> = task.await;
            assert!(result.is_none() && !has_local_tasks());
            kept.lock().unwrap().len()
        });
        assert_eq!(core.unwrap().join().unwrap(), 1);
        assert_eq!(*reports.lock().unwrap(), ["core-3 panicked: aside"]);
    }

    #[test]
    fn local_tasks_are_counted_until_they_end() {
        let (failed, _) = hook();
        let core = CoreExecutor::start(config(None), failed, || async {
            assert!(!has_local_tasks());
            let task = spawn_local(async {
                yield_now().await;
                5
            });
            assert!(has_local_tasks());
            let result = task.await;
            assert!(!has_local_tasks());
            result
        });
        assert_eq!(core.unwrap().join().unwrap(), Some(5));
    }
}
