//! Repeats requests whose outcome is not known: how often, how long, and what the log says of it.
//!
//! Only requests that may be sent twice belong here, or attempts that settle what became of the one before.
//! Time and chance come in through [`Clock`] and [`Random`], so that all of it runs in the simulator.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use marcot_store::{Clock, Random, World};

use super::service::ServiceError;

/// The first pause. A lost answer is rare, so the second attempt mostly succeeds.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause. After an outage, everybody comes back within this time.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a command waits for a service that does not answer.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);
/// Failures in a row after which an attempt counts as an outage. Services fail now and then without one.
const OUTAGE_FAILURES: u32 = 3;

/// How long attempts go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The first pause. Each one after it is twice as long.
    pub first_pause: Duration,
    /// The longest pause.
    pub pause_max: Duration,
    /// The time after which the last error is returned. `None` waits for ever.
    pub give_up_after: Option<Duration>,
    /// A refusal is waited for too: an operator can renew credentials while an image waits.
    pub wait_when_refused: bool,
}

impl Policy {
    /// For a command: it waits a minute, and returns a refusal at once.
    #[must_use]
    pub fn command() -> Self {
        Self {
            first_pause: FIRST_PAUSE,
            pause_max: PAUSE_MAX,
            give_up_after: Some(COMMAND_PATIENCE),
            wait_when_refused: false,
        }
    }

    /// For an image in use: it waits for ever, since the alternative is an error for a guest that has done
    /// nothing wrong.
    #[must_use]
    pub fn image() -> Self {
        Self { give_up_after: None, wait_when_refused: true, ..Self::command() }
    }
}

/// The attempts at one service that fail now. The log has one line when the first of them is in trouble, and one
/// when the last of them is not any more.
#[derive(Debug, Default)]
pub struct Outage(Mutex<Trouble>);

#[derive(Debug, Default)]
struct Trouble {
    attempts: usize,
    since: Duration,
}

impl Outage {
    fn begin(&self, service: &str, why: &ServiceError, now: Duration) {
        let mut trouble = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.attempts == 0 {
            trouble.since = now;
            tracing::warn!("{service} does not work: {why}; waiting for it");
        }
        trouble.attempts += 1;
    }

    fn end(&self, service: &str, now: Duration, works: bool) {
        let mut trouble = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.attempts -= 1;
        if trouble.attempts > 0 {
            return;
        }
        let seconds = now.saturating_sub(trouble.since).as_secs();
        if works {
            tracing::info!("{service} works again after {seconds} s");
        } else {
            tracing::warn!(
                "{service} still does not work after {seconds} s; nothing waits for it now"
            );
        }
    }
}

/// Ends waiting early where it returns true.
pub type Stop = Arc<dyn Fn() -> bool + Send + Sync>;

/// Repeats attempts by a policy. Cheap to clone; clones share what the log has said.
#[derive(Clone)]
pub struct Retry {
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    policy: Policy,
    service: String,
    outage: Arc<Outage>,
    stop: Option<Stop>,
}

impl Retry {
    /// Repeats attempts at a service that the log calls `service`.
    #[must_use]
    pub fn new(world: &World, policy: Policy, service: String, outage: Arc<Outage>) -> Self {
        Self {
            clock: Arc::clone(&world.clock),
            random: Arc::clone(&world.random),
            policy,
            service,
            outage,
            stop: None,
        }
    }

    /// As this one, but waiting ends where `stop` returns true. It is asked after each pause.
    #[must_use]
    pub fn with_stop(&self, stop: Stop) -> Self {
        Self { stop: Some(stop), ..self.clone() }
    }

    /// Waits, by the clock of the attempts.
    pub(super) fn wait(&self, duration: Duration) {
        self.clock.pause(duration);
    }

    /// Makes attempts until one succeeds or fails for good. `Unknown` is repeated, and `Refused` where the
    /// policy says so. An attempt is given the number of failures before it.
    ///
    /// # Errors
    /// Those of the attempt; the last one where it was given up.
    pub fn run<T>(
        &self,
        mut attempt: impl FnMut(u32) -> Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        let start = self.clock.uptime();
        let mut paused = Duration::ZERO;
        let mut failures = 0;
        let mut in_trouble = None;
        loop {
            let error = match attempt(failures) {
                Err(error) if self.may_pass(&error) => error,
                outcome => {
                    drop_trouble(in_trouble, matches!(outcome, Ok(_) | Err(ServiceError::Absent)));
                    return outcome;
                }
            };
            failures += 1;
            if failures == OUTAGE_FAILURES {
                in_trouble = Some(InTrouble::begin(self, &error));
            }
            // A simulated clock may stand still while it pauses.
            let waited = self.clock.uptime().saturating_sub(start).max(paused);
            if self.policy.give_up_after.is_some_and(|limit| waited >= limit) {
                return Err(gave_up(error, waited));
            }
            let pause = self.pause(failures);
            self.clock.pause(pause);
            paused += pause;
            if self.stop.as_ref().is_some_and(|stop| stop()) {
                return Err(error);
            }
        }
    }

    fn may_pass(&self, error: &ServiceError) -> bool {
        match error {
            ServiceError::Unknown(_) => true,
            ServiceError::Refused(_) => self.policy.wait_when_refused,
            ServiceError::Absent | ServiceError::Conflict | ServiceError::Invalid(_) => false,
        }
    }

    /// The pause after so many failures: twice the one before, shortened by chance to a half at most, so that
    /// those who failed together do not come back together.
    fn pause(&self, failures: u32) -> Duration {
        let doubled = self.policy.first_pause.saturating_mul(1 << (failures - 1).min(16));
        let longest = doubled.min(self.policy.pause_max);
        let half_us = u64::try_from(longest.as_micros() / 2).unwrap_or(u64::MAX);
        let chance_us = self.random.number() % (half_us + 1);
        Duration::from_micros(half_us + chance_us)
    }
}

fn gave_up(error: ServiceError, waited: Duration) -> ServiceError {
    let seconds = waited.as_secs();
    match error {
        ServiceError::Unknown(why) => ServiceError::Unknown(format!("{why}, for {seconds} s")),
        error => error,
    }
}

/// An attempt that counts in the outage until this is dropped.
struct InTrouble<'a> {
    retry: &'a Retry,
    works: bool,
}

impl<'a> InTrouble<'a> {
    fn begin(retry: &'a Retry, why: &ServiceError) -> Self {
        retry.outage.begin(&retry.service, why, retry.clock.uptime());
        Self { retry, works: false }
    }
}

impl Drop for InTrouble<'_> {
    fn drop(&mut self) {
        self.retry.outage.end(&self.retry.service, self.retry.clock.uptime(), self.works);
    }
}

fn drop_trouble(trouble: Option<InTrouble<'_>>, works: bool) {
    if let Some(mut trouble) = trouble {
        trouble.works = works;
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
