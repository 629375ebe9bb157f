//! For tests of this room: time that passes only while something waits for it, and a service in memory whose
//! requests fail by plan.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use marcot_store::{Clock, Random, World};

use super::memory::MemoryService;
use super::retry::{Outage, Policy, Retry};
use super::service::{Condition, Object, ObjectService, Page, ServiceError, Version};

/// Time that passes while somebody pauses.
#[derive(Default)]
pub(super) struct PausedTime {
    us: AtomicU64,
    pub pauses: Mutex<Vec<Duration>>,
}

impl Clock for PausedTime {
    fn now_s(&self) -> i64 {
        self.uptime().as_secs() as i64
    }

    fn uptime(&self) -> Duration {
        Duration::from_micros(self.us.load(Ordering::Relaxed))
    }

    fn pause(&self, duration: Duration) {
        self.us.fetch_add(duration.as_micros() as u64, Ordering::Relaxed);
        self.pauses.lock().unwrap().push(duration);
    }
}

/// Counts up from a number.
pub(super) struct Counting(AtomicU64);

impl Random for Counting {
    fn number(&self) -> u64 {
        self.0.fetch_add(0x1234_5678_9abc_def1, Ordering::Relaxed) | 1
    }
}

/// A world with that time.
pub(super) fn world() -> (World, Arc<PausedTime>) {
    let clock = Arc::new(PausedTime::default());
    let random = Arc::new(Counting(AtomicU64::new(7)));
    (World { clock: Arc::<PausedTime>::clone(&clock), random, ..World::system() }, clock)
}

/// Repeats by a policy in that time.
pub(super) fn retry(policy: Policy) -> (Retry, Arc<PausedTime>) {
    let (world, clock) = world();
    (Retry::new(&world, policy, "memory:".to_string(), Arc::<Outage>::default()), clock)
}

/// What happens to one request.
#[derive(Debug, Clone)]
pub(super) enum Plan {
    /// It is done as it should be.
    Done,
    /// It is done; its answer says nothing.
    DoneUnknown,
    /// It is not done.
    Fails(ServiceError),
    /// Another writer stores these bytes first.
    After(&'static [u8]),
}

pub(super) fn unknown() -> ServiceError {
    ServiceError::Unknown("the answer was lost".to_string())
}

/// A service whose next requests end as planned, and that notes their kinds.
#[derive(Default)]
pub(super) struct Planned {
    pub memory: MemoryService,
    plans: Mutex<VecDeque<Plan>>,
    pub seen: Mutex<Vec<&'static str>>,
}

impl Planned {
    pub fn new(plans: impl IntoIterator<Item = Plan>) -> Arc<Self> {
        let plans = Mutex::new(plans.into_iter().collect());
        Arc::new(Self { plans, ..Self::default() })
    }

    fn run<T>(
        &self,
        kind: &'static str,
        key: &str,
        request: impl FnOnce() -> Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        self.seen.lock().unwrap().push(kind);
        let plan = self.plans.lock().unwrap().pop_front().unwrap_or(Plan::Done);
        match plan {
            Plan::Done => request(),
            Plan::DoneUnknown => request().and(Err(unknown())),
            Plan::Fails(error) => Err(error),
            Plan::After(bytes) => {
                self.memory.put(key, bytes, &Condition::None)?;
                request()
            }
        }
    }
}

impl ObjectService for Planned {
    fn get(&self, key: &str) -> Result<Object, ServiceError> {
        self.run("get", key, || self.memory.get(key))
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ServiceError> {
        self.run("range", key, || self.memory.get_range(key, range))
    }

    fn put(&self, key: &str, bytes: &[u8], condition: &Condition) -> Result<Version, ServiceError> {
        self.run("put", key, || self.memory.put(key, bytes, condition))
    }

    fn remove(&self, key: &str) -> Result<(), ServiceError> {
        self.run("remove", key, || self.memory.remove(key))
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, ServiceError> {
        self.run("list", prefix, || self.memory.list(prefix, after))
    }

    fn show(&self, key: &str) -> String {
        self.memory.show(key)
    }
}
