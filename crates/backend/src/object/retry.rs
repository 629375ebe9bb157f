//! Repeats requests whose outcome is not known: how often, how long, and what the log says of it.
//!
//! Only requests that may be sent twice belong here, or attempts that settle what became of the one before.
//! Time and chance come in through [`Clock`] and [`Random`], so that all of it runs in the simulator.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use marcot_store::{Clock, Random, World};

use super::service::ServiceError;
use crate::Trouble;

/// The first pause. A lost answer is rare, so the second attempt mostly succeeds.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause. After an outage, everybody comes back within this time.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a command waits for a service that does not answer.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);
/// How long a command waits for a service that has never answered and refuses connections. One that is started again
/// listens sooner. Mostly nobody is there, because the endpoint is wrong.
const UNREACHED_PATIENCE: Duration = Duration::from_secs(5);
/// While an outage lasts longer than guests wait, the service is tried so often.
const TRY_INTERVAL: Duration = Duration::from_secs(1);
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
    /// That time begins with the outage, not with each request. So requests that come when it has passed fail
    /// soon, and many of them do not add up their waits.
    pub from_outage: bool,
    /// The same for a service that has never answered and refuses connections. Nothing is logged then: the error says it.
    pub unreached_after: Option<Duration>,
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
            from_outage: false,
            unreached_after: Some(UNREACHED_PATIENCE),
            wait_when_refused: false,
        }
    }

    /// For an image in use: it waits for ever, since the alternative is an error for a guest that has done
    /// nothing wrong.
    #[must_use]
    pub fn image() -> Self {
        Self {
            give_up_after: None,
            unreached_after: None,
            wait_when_refused: true,
            ..Self::command()
        }
    }
}

/// Who waits for a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Patience {
    /// A command, which gives up after a minute.
    #[default]
    Command,
    /// Guests, for whom an image is served. They wait as long as it takes.
    Guests {
        /// What they ask for fails where the service has not worked for this time.
        io_timeout: Option<Duration>,
    },
}

impl Patience {
    /// The policy for reading what a guest asks for.
    #[must_use]
    pub fn reading(self) -> Policy {
        match self {
            Self::Command => Policy::command(),
            Self::Guests { io_timeout } => Policy {
                give_up_after: io_timeout,
                from_outage: io_timeout.is_some(),
                ..Policy::image()
            },
        }
    }

    /// The policy for records. While images are served, guests wait where one of them is read or changed, so that many
    /// commands in one outage do not add up their waits.
    #[must_use]
    pub fn records(self) -> Policy {
        match self {
            Self::Command => Policy::command(),
            Self::Guests { io_timeout } => {
                let limit = io_timeout.map_or(COMMAND_PATIENCE, |time| time.min(COMMAND_PATIENCE));
                Policy {
                    give_up_after: Some(limit),
                    from_outage: true,
                    unreached_after: None,
                    ..Policy::command()
                }
            }
        }
    }

    /// The policy for storing what was acknowledged. Guests do not wait for that itself, and an image whose log
    /// could not be stored would have to be opened again: so it has no time-out.
    #[must_use]
    pub fn storing(self) -> Policy {
        match self {
            Self::Command => Policy::command(),
            Self::Guests { .. } => Policy::image(),
        }
    }

    /// As [`Self::storing`], for what can be left undone where the service refuses it.
    #[must_use]
    pub fn tidying(self) -> Policy {
        Policy { wait_when_refused: false, ..self.storing() }
    }

    /// How long what guests ask for may wait; `None`: for ever.
    #[must_use]
    pub fn io_timeout(self) -> Option<Duration> {
        match self {
            Self::Command => None,
            Self::Guests { io_timeout } => io_timeout,
        }
    }
}

/// An outage of one service. The log has one line when it begins, and one when it is over.
#[derive(Debug, Default)]
pub struct Outage(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Attempts that wait for its end.
    attempts: usize,
    /// `None`: there is none.
    now: Option<Broken>,
}

#[derive(Debug)]
struct Broken {
    since: Duration,
    /// The last failure, and when it was.
    why: ServiceError,
    failed: Duration,
    /// The log says that nothing waits any more.
    told: bool,
}

impl Outage {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An attempt begins to wait. `since`: its first failure.
    fn begin(&self, service: &str, why: &ServiceError, since: Duration, now: Duration) {
        let mut state = self.state();
        state.attempts += 1;
        if state.now.is_none() {
            tracing::warn!("{service} does not work: {why}; waiting for it");
            let why = why.clone();
            state.now = Some(Broken { since, why, failed: now, told: false });
        }
    }

    /// An attempt does not wait any more.
    fn end(&self, service: &str, now: Duration, works: bool) {
        let mut state = self.state();
        state.attempts -= 1;
        if works {
            state.works(service, now);
        } else if state.attempts == 0
            && let Some(broken) = &mut state.now
            && !std::mem::replace(&mut broken.told, true)
        {
            let seconds = now.saturating_sub(broken.since).as_secs();
            tracing::warn!(
                "{service} still does not work after {seconds} s; nothing waits for it now"
            );
        }
    }

    /// A request had an answer.
    fn worked(&self, service: &str, now: Duration) {
        self.state().works(service, now);
    }

    /// A request has failed.
    fn failed(&self, why: &ServiceError, now: Duration) {
        if let Some(broken) = &mut self.state().now {
            (broken.why, broken.failed) = (why.clone(), now);
        }
    }

    /// How long it has lasted.
    fn age(&self, now: Duration) -> Duration {
        self.state().now.as_ref().map_or(Duration::ZERO, |broken| now.saturating_sub(broken.since))
    }

    /// The last failure, where the outage has lasted for `limit`, and that failure is so recent that another attempt
    /// would hardly do better.
    fn lasting(&self, limit: Duration, now: Duration) -> Option<ServiceError> {
        let state = self.state();
        let broken = state.now.as_ref()?;
        let age = now.saturating_sub(broken.since);
        let recent = now.saturating_sub(broken.failed) < TRY_INTERVAL;
        (age >= limit && recent).then(|| gave_up(broken.why.clone(), age))
    }
}

impl State {
    /// Ends the outage, unless others still wait.
    fn works(&mut self, service: &str, now: Duration) {
        if self.attempts == 0
            && let Some(broken) = self.now.take()
        {
            let seconds = now.saturating_sub(broken.since).as_secs();
            tracing::info!("{service} works again after {seconds} s");
        }
    }
}

/// Looks at something while attempts go on, such as whether waiting ends early.
pub type Stop = Arc<dyn Fn() -> bool + Send + Sync>;

/// Repeats attempts by a policy. Cheap to clone; clones share what the log has said.
#[derive(Clone)]
pub struct Retry {
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    policy: Policy,
    service: String,
    outage: Arc<Outage>,
    unreached: Option<Stop>,
    stop: Option<Stop>,
}

impl Retry {
    /// Repeats attempts at a service that the log calls `service`.
    #[must_use]
    pub fn new(world: &World, policy: Policy, service: String, outage: Arc<Outage>) -> Self {
        let (clock, random) = (Arc::clone(&world.clock), Arc::clone(&world.random));
        Self::by(clock, random, policy, service, outage)
    }

    /// As [`Self::new`], by a clock and a source of random numbers.
    pub(super) fn by(
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        policy: Policy,
        service: String,
        outage: Arc<Outage>,
    ) -> Self {
        Self { clock, random, policy, service, outage, unreached: None, stop: None }
    }

    /// As this one, by another policy.
    #[must_use]
    pub fn with_policy(&self, policy: Policy) -> Self {
        Self { policy, ..self.clone() }
    }

    /// As this one, for a service of which `unreached` says whether it has never answered and refuses connections.
    #[must_use]
    pub fn with_unreached(&self, unreached: Stop) -> Self {
        Self { unreached: Some(unreached), ..self.clone() }
    }

    /// How long attempts go on where the service has never answered and refuses connections.
    fn unreached_after(&self) -> Option<Duration> {
        let unreached = self.unreached.as_ref()?;
        self.policy.unreached_after.filter(|_| unreached())
    }

    /// Why requests wait now; `None` where the service works, as far as is known.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        let (now, state) = (self.clock.uptime(), self.outage.state());
        state.now.as_ref().map(|broken| Trouble {
            why: format!("{} does not work: {}", self.service, broken.why),
            lasts: now.saturating_sub(broken.since),
        })
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
        let limit = self.policy.give_up_after;
        let from_outage = limit.filter(|_| self.policy.from_outage);
        if let Some(error) = from_outage.and_then(|limit| self.outage.lasting(limit, start)) {
            return Err(error);
        }
        let mut paused = Duration::ZERO;
        let mut failures = 0;
        let mut first_failure = start;
        let mut in_trouble: Option<InTrouble<'_>> = None;
        loop {
            let error = match attempt(failures) {
                Err(error) if self.may_pass(&error) => error,
                outcome => {
                    let works = matches!(outcome, Ok(_) | Err(ServiceError::Absent));
                    match &mut in_trouble {
                        Some(trouble) => trouble.works = works,
                        None if works => self.outage.worked(&self.service, self.clock.uptime()),
                        None => {}
                    }
                    return outcome;
                }
            };
            failures += 1;
            let now = self.clock.uptime();
            if failures == 1 {
                first_failure = now;
            }
            self.outage.failed(&error, now);
            let unreached_after = self.unreached_after();
            let limit = unreached_after.or(limit);
            if failures >= OUTAGE_FAILURES && in_trouble.is_none() && unreached_after.is_none() {
                in_trouble = Some(InTrouble::begin(self, &error, first_failure));
            }
            // A simulated clock may stand still while it pauses.
            let waited = now.saturating_sub(start).max(paused);
            let counted = from_outage.map_or(waited, |_| waited.max(self.outage.age(now)));
            if limit.is_some_and(|limit| counted >= limit) {
                return Err(gave_up(error, counted));
            }
            let pause = self.pause(failures);
            // The last attempt comes when the time is over.
            let left = limit.map_or(pause, |limit| limit.saturating_sub(counted));
            let pause = pause.min(left.max(FIRST_PAUSE));
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
    fn begin(retry: &'a Retry, why: &ServiceError, since: Duration) -> Self {
        retry.outage.begin(&retry.service, why, since, retry.clock.uptime());
        Self { retry, works: false }
    }
}

impl Drop for InTrouble<'_> {
    fn drop(&mut self) {
        self.retry.outage.end(&self.retry.service, self.retry.clock.uptime(), self.works);
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
