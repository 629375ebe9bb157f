//! Jobs in the background.

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

/// A thread for each job.
pub struct Threads;

impl Workers for Threads {
    fn start(&self, job: Job) -> Box<dyn Running> {
        let (give, take) = std::sync::mpsc::sync_channel::<Job>(1);
        // The job is sent through a channel, so that it is still here if no thread can be started.
        let started = std::thread::Builder::new().name("marcot-worker".to_owned());
        let started = started.spawn(move || {
            if let Ok(job) = take.recv() {
                job();
            }
        });
        match started {
            Ok(thread) => {
                // The thread is waiting for it.
                let _ = give.send(job);
                Box::new(Thread(thread))
            }
            Err(error) => {
                tracing::debug!(%error, "no thread for a job, which is run in place");
                job();
                Box::new(Finished)
            }
        }
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

struct Thread(std::thread::JoinHandle<()>);

impl Running for Thread {
    fn is_finished(&mut self) -> bool {
        self.0.is_finished()
    }

    fn wait(self: Box<Self>) {
        if self.0.join().is_err() {
            tracing::error!("a worker panicked");
        }
    }
}

struct Finished;

impl Running for Finished {
    fn is_finished(&mut self) -> bool {
        true
    }

    fn wait(self: Box<Self>) {}
}
