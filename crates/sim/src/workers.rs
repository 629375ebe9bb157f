//! Background jobs of the engine. The seed decides when a job runs: at once, after some polls, or only when the
//! engine waits for it.

use std::sync::{Mutex, PoisonError};

use marcot_store::{Job, Running, Workers};

use crate::random::Rng;

/// Limit on the polls of a job before it is run.
const LOOKS_MAX: u64 = 4;

/// Runs jobs in the thread that asks for them, later.
pub(crate) struct SimWorkers(Mutex<Rng>);

impl SimWorkers {
    pub(crate) fn new(rng: Rng) -> Self {
        Self(Mutex::new(rng))
    }
}

impl Workers for SimWorkers {
    fn start(&self, job: Job) -> Box<dyn Running> {
        let looks = self.0.lock().unwrap_or_else(PoisonError::into_inner).below(LOOKS_MAX + 1);
        Box::new(Deferred { job: Some(job), looks })
    }
}

struct Deferred {
    job: Option<Job>,
    /// Polls that find the job unfinished.
    looks: u64,
}

impl Deferred {
    fn run(&mut self) {
        if let Some(job) = self.job.take() {
            job();
        }
    }
}

impl Running for Deferred {
    fn is_finished(&mut self) -> bool {
        if self.looks > 0 {
            self.looks -= 1;
            return false;
        }
        self.run();
        true
    }

    fn wait(mut self: Box<Self>) {
        self.run();
    }
}
