//! Jobs in the background.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A job. It has no return value: it leaves its result where its maker expects it.
pub type Job = Box<dyn FnOnce() + Send>;

/// Runs jobs.
pub trait Workers: Send + Sync {
    /// Starts a job; it may be finished when this returns.
    fn start(&self, job: Job) -> Box<dyn Running>;
}

/// A job that was started.
pub trait Running: Send {
    /// True when the job has ended. A simulation may run the job in this call.
    fn is_finished(&mut self) -> bool;

    /// Waits until the job has ended, even if by a panic.
    fn wait(self: Box<Self>);
}

/// A job that leaves a result. Where it is dropped, the job goes on.
pub struct Task<T> {
    running: Box<dyn Running>,
    result: Arc<Mutex<Option<T>>>,
}

impl<T: Send + 'static> Task<T> {
    /// Starts a job.
    pub fn start(workers: &dyn Workers, job: impl FnOnce() -> T + Send + 'static) -> Self {
        Self::start_and_tell(workers, job, || {})
    }

    /// Starts a job. `tell` is called when its result is there.
    pub fn start_and_tell(
        workers: &dyn Workers,
        job: impl FnOnce() -> T + Send + 'static,
        tell: impl FnOnce() + Send + 'static,
    ) -> Self {
        let result = Arc::new(Mutex::new(None));
        let place = Arc::clone(&result);
        let running = workers.start(Box::new(move || {
            let value = job();
            *lock(&place) = Some(value);
            tell();
        }));
        Self { running, result }
    }

    /// True when the result is there, or the job has ended by a panic. Whoever is told of the result finds it, although
    /// the job ends only after it has told.
    pub fn is_finished(&mut self) -> bool {
        self.running.is_finished() || lock(&self.result).is_some()
    }

    /// Waits for the result. `None` where the job ended by a panic.
    #[must_use]
    pub fn wait(self) -> Option<T> {
        self.running.wait();
        lock(&self.result).take()
    }
}

/// Runs each job in a thread of its own. Threads are kept for a while, because a new one takes about as long as a
/// small job.
pub struct Threads;

/// A thread ends after this time without a job.
const KEEP_THREAD: Duration = Duration::from_secs(1);

/// The threads of the process.
static POOL: Pool =
    Pool { state: Mutex::new(State { idle: 0, jobs: VecDeque::new() }), called: Condvar::new() };

struct Pool {
    state: Mutex<State>,
    called: Condvar,
}

struct State {
    /// Threads that wait for a job.
    idle: usize,
    /// Jobs for these threads; never more than there are.
    jobs: VecDeque<Started>,
}

/// A job, and what is to be told when it has ended.
struct Started {
    job: Job,
    ended: Ended,
}

impl Started {
    fn run(self) {
        // Dropped when the job has ended, even if by a panic.
        let _ended = self.ended;
        (self.job)();
    }
}

/// Tells that a job has ended, once it is dropped.
struct Ended(Arc<End>);

impl Drop for Ended {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a worker panicked");
        }
        *lock(&self.0.reached) = true;
        self.0.changed.notify_all();
    }
}

/// The end of a job, for which others wait.
#[derive(Default)]
struct End {
    reached: Mutex<bool>,
    changed: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Runs jobs until there has been none for a while.
    fn work(&self, first: Started) {
        let mut next = Some(first);
        while let Some(started) = next {
            started.run();
            next = self.next();
        }
    }

    fn next(&self) -> Option<Started> {
        let mut state = lock(&self.state);
        state.idle += 1;
        let none = |state: &mut State| state.jobs.is_empty();
        let waited = self.called.wait_timeout_while(state, KEEP_THREAD, none);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.idle -= 1;
        state.jobs.pop_front()
    }
}

impl Workers for Threads {
    fn start(&self, job: Job) -> Box<dyn Running> {
        let end = Arc::new(End::default());
        let started = Started { job, ended: Ended(Arc::clone(&end)) };
        let mut state = lock(&POOL.state);
        if state.idle > state.jobs.len() {
            state.jobs.push_back(started);
            drop(state);
            POOL.called.notify_one();
            return Box::new(end);
        }
        drop(state);
        // The job is sent through a channel, so that it is still here if no thread can be started.
        let (give, take) = std::sync::mpsc::sync_channel::<Started>(1);
        let spawned =
            std::thread::Builder::new().name("marcot-worker".to_owned()).spawn(move || {
                if let Ok(started) = take.recv() {
                    POOL.work(started);
                }
            });
        match spawned {
            // The thread is waiting for it.
            Ok(_) => drop(give.send(started)),
            Err(error) => {
                tracing::debug!(%error, "no thread for a job, which is run in place");
                started.run();
            }
        }
        Box::new(end)
    }
}

/// Runs each job in place: for tests, and where the order must be deterministic.
pub struct InPlace;

impl Workers for InPlace {
    fn start(&self, job: Job) -> Box<dyn Running> {
        job();
        Box::new(Finished)
    }
}

impl Running for Arc<End> {
    fn is_finished(&mut self) -> bool {
        *lock(&self.reached)
    }

    fn wait(self: Box<Self>) {
        let ended = self.changed.wait_while(lock(&self.reached), |reached| !*reached);
        drop(ended.unwrap_or_else(PoisonError::into_inner));
    }
}

struct Finished;

impl Running for Finished {
    fn is_finished(&mut self) -> bool {
        true
    }

    fn wait(self: Box<Self>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_panics_has_ended_and_the_next_ones_run() {
        let mut panics = Threads.start(Box::new(|| panic!("on purpose")));
        while !panics.is_finished() {
            std::thread::yield_now();
        }
        panics.wait();
        let (give, take) = std::sync::mpsc::channel();
        let running: Vec<_> = (0..20u32)
            .map(|i| {
                let give = give.clone();
                Threads.start(Box::new(move || give.send(i).unwrap()))
            })
            .collect();
        running.into_iter().for_each(|running| running.wait());
        let mut ran: Vec<u32> = take.try_iter().collect();
        ran.sort_unstable();
        assert_eq!(ran, (0..20).collect::<Vec<_>>());
    }

    /// Who is told looks at once, and is not told again.
    #[test]
    fn whoever_is_told_of_a_result_finds_it() {
        let (told, is_told) = std::sync::mpsc::channel();
        let (looked, has_looked) = std::sync::mpsc::channel::<()>();
        let tell = move || {
            told.send(()).unwrap();
            let _ = has_looked.recv();
        };
        let mut task = Task::start_and_tell(&Threads, || 5, tell);
        is_told.recv().unwrap();
        let is_finished = task.is_finished();
        drop(looked);
        assert!(is_finished);
        assert_eq!(task.wait(), Some(5));
    }

    #[test]
    fn jobs_that_wait_for_each_other_run_at_the_same_time() {
        let barrier = Arc::new(std::sync::Barrier::new(8));
        let running: Vec<_> = (0..8)
            .map(|_| {
                let barrier = Arc::clone(&barrier);
                Threads.start(Box::new(move || {
                    barrier.wait();
                }))
            })
            .collect();
        running.into_iter().for_each(|running| running.wait());
    }
}
