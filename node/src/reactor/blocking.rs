//! Threads for calls that may block: stores on disk, files, anything that a core must not wait for.
//!
//! A core hands a job over and goes on; the job itself sends its result through a channel of the
//! caller's and wakes the core with its [`Waker`](super::Waker). The queue is bounded: a full one
//! hands the job back, and the request is refused as overloaded.
//!
//! ```text
//!  submit ─► queue (bounded) ─► thread ─► job runs, sends its result, wakes the core
//!              └ no idle thread and fewer than the maximum: one more is started
//! ```

use std::{
    any::Any,
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use stateside_types::limits;

use super::{
    cores::FailureHook,
    cpus::{bind_thread, cpus_allowed, run_in_background},
    error::{ReactorError, panic_message},
};

/// A call that may block.
pub type Job = Box<dyn FnOnce() + Send>;

struct State {
    queue: VecDeque<Job>,
    threads: Vec<thread::JoinHandle<()>>,
    idle: usize,
    stopping: bool,
}

struct Shared {
    state: Mutex<State>,
    has_work: Condvar,
    threads_max: usize,
    queue_max: usize,
    cpus: Vec<usize>,
    failed: FailureHook,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Jobs run outside of the lock, and what runs inside leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pool. One per node, shared by its cores; clones are handles.
#[derive(Clone)]
pub struct BlockingPool {
    shared: Arc<Shared>,
}

impl BlockingPool {
    /// A pool of at most `threads_max` threads (2 to [`limits::BLOCKING_THREADS_MAX`]), none of
    /// which exists before it is needed. Make it on a thread that is not pinned: the pool's
    /// threads may run where this one may.
    pub fn new(threads_max: usize, failed: FailureHook) -> Self {
        Self::with_queue(threads_max, limits::BLOCKING_JOBS_MAX, failed)
    }

    fn with_queue(threads_max: usize, queue_max: usize, failed: FailureHook) -> Self {
        let state = State { queue: VecDeque::new(), threads: Vec::new(), idle: 0, stopping: false };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                has_work: Condvar::new(),
                threads_max: threads_max.clamp(2, limits::BLOCKING_THREADS_MAX),
                queue_max,
                // Without the mask threads stay on the CPU of the core that starts them: slower,
                // not wrong.
                cpus: cpus_allowed().unwrap_or_default(),
                failed,
            }),
        }
    }

    /// Runs `job` soon on some thread.
    ///
    /// # Errors
    /// Hands the job back when the queue is full, the pool is stopping, or there is no thread and
    /// none can be started.
    pub fn submit(&self, job: Job) -> Result<(), Job> {
        let mut state = self.shared.lock();
        if state.stopping || state.queue.len() >= self.shared.queue_max {
            return Err(job);
        }
        // An idle thread that has been notified but does not run yet counts as idle still: so
        // compare with the queue, else a burst would be left to one thread.
        let wanted = state.queue.len() + 1;
        if state.idle < wanted && state.threads.len() < self.shared.threads_max {
            match self.start_thread(state.threads.len()) {
                Ok(thread) => state.threads.push(thread),
                Err(error) if state.threads.is_empty() => {
                    tracing::error!(%error, "no thread for blocking calls");
                    return Err(job);
                }
                Err(_) => {} // the threads that exist will come to it
            }
        }
        state.queue.push_back(job);
        drop(state);
        self.shared.has_work.notify_one();
        Ok(())
    }

    /// Jobs that wait for a thread.
    pub fn queued(&self) -> usize {
        self.shared.lock().queue.len()
    }

    /// Refuses new jobs, finishes those that were accepted, ends the threads. Blocks; not for a
    /// core, and not for a job.
    pub fn shutdown(&self) {
        let threads = {
            let mut state = self.shared.lock();
            state.stopping = true;
            std::mem::take(&mut state.threads)
        };
        self.shared.has_work.notify_all();
        for thread in threads {
            // A thread ends by returning: panics of jobs are caught.
            let _ = thread.join();
        }
    }

    fn start_thread(&self, number: usize) -> std::io::Result<thread::JoinHandle<()>> {
        let shared = Arc::clone(&self.shared);
        thread::Builder::new().name(format!("blocking-{number}")).spawn(move || {
            // A thread inherits the CPU of its maker, which may be a pinned core.
            if let Err(error) = bind_thread(&shared.cpus) {
                tracing::debug!(%error, "a blocking thread stays on its maker's CPU");
            }
            run_in_background();
            work(&shared);
        })
    }
}

impl fmt::Debug for BlockingPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingPool").field("threads_max", &self.shared.threads_max).finish()
    }
}

fn work(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if let Some(job) = state.queue.pop_front() {
            drop(state);
            if let Err(payload) = catch_unwind(AssertUnwindSafe(job)) {
                report(shared, &*payload);
            }
            state = shared.lock();
        } else if state.stopping {
            return;
        } else {
            state.idle += 1;
            state = shared.has_work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

fn report(shared: &Shared, payload: &(dyn Any + Send)) {
    let thread = thread::current().name().unwrap_or("blocking").to_owned();
    (shared.failed)(ReactorError::Panicked { thread, message: panic_message(payload) });
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn quiet() -> FailureHook {
        Arc::new(|error| panic!("{error}"))
    }

    #[test]
    fn jobs_run_side_by_side_on_named_threads_up_to_the_maximum() {
        let pool = BlockingPool::new(3, quiet());
        assert_eq!(pool.shared.lock().threads.len(), 0, "no thread before the first job");
        let (started, is_started) = mpsc::channel();
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        for _ in 0..8 {
            let (started, gate) = (started.clone(), Arc::clone(&gate));
            let job = move || {
                started.send(thread::current().name().map(str::to_owned)).unwrap();
                let open = gate.0.lock().unwrap();
                drop(gate.1.wait_while(open, |open| !*open).unwrap());
            };
            assert!(pool.submit(Box::new(job)).is_ok());
        }
        let mut names: Vec<_> =
            (0..3).map(|_| is_started.recv_timeout(PATIENCE).unwrap().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["blocking-0", "blocking-1", "blocking-2"]);
        assert_eq!(pool.queued(), 5);
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        pool.shutdown();
        assert_eq!(is_started.try_iter().count(), 5, "what was accepted is finished");
        assert!(pool.submit(Box::new(|| {})).is_err(), "a stopped pool refuses");
    }

    #[test]
    fn a_full_queue_hands_the_job_back() {
        let pool = BlockingPool::with_queue(2, 1, quiet());
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let (started, is_started) = mpsc::channel();
        for _ in 0..2 {
            let (started, released) = (started.clone(), Arc::clone(&released));
            let job = move || {
                started.send(()).unwrap();
                released.lock().unwrap().recv().unwrap();
            };
            assert!(pool.submit(Box::new(job)).is_ok());
            is_started.recv_timeout(PATIENCE).unwrap();
        }
        assert!(pool.submit(Box::new(|| {})).is_ok());
        let (ran, has_run) = mpsc::channel();
        let job = pool.submit(Box::new(move || ran.send(()).unwrap())).unwrap_err();
        job();
        has_run.recv_timeout(PATIENCE).expect("the job came back whole");
        release.send(()).unwrap();
        release.send(()).unwrap();
        pool.shutdown();
    }

    #[test]
    fn a_job_that_panics_is_reported_and_costs_no_thread() {
        let reports = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&reports);
        let failed: FailureHook = Arc::new(move |e| kept.lock().unwrap().push(e.to_string()));
        let pool = BlockingPool::new(2, failed);
        assert!(pool.submit(Box::new(|| panic!("broken store"))).is_ok());
        let (ran, has_run) = mpsc::channel();
        assert!(pool.submit(Box::new(move || ran.send(()).unwrap())).is_ok());
        has_run.recv_timeout(PATIENCE).unwrap();
        pool.shutdown();
        let reports = reports.lock().unwrap();
        assert_eq!(reports.len(), 1);
        assert!(reports[0].contains("broken store"), "{reports:?}");
    }
}
