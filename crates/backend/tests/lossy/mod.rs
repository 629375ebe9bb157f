//! A service that loses requests and answers, for tests.
#![allow(dead_code, reason = "each file of tests uses a part of it")]

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use marcot_backend::object::envelope::Objects;
use marcot_backend::object::memory::MemoryService;
use marcot_backend::object::records::ObjectRecords;
use marcot_backend::object::service::{
    Condition, Object, ObjectService, Page, ServiceError, Version,
};
use marcot_backend::object::{Policy, Retry, Settled};
use marcot_format::PoolId;
use marcot_store::{Clock, Random, World};

/// The pool of the tests.
pub const POOL: PoolId = PoolId(0xB0);

/// What may happen to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// It is not carried out, and the answer says that nothing is known.
    RequestLost,
    /// It is carried out, and the answer says that nothing is known.
    AnswerLost,
    /// The answer says that nothing is known. It is carried out after so many other requests.
    Late(u64),
    /// The answer says that the condition did not hold, but it did. Nothing is carried out.
    FalseConflict,
}

/// All kinds of mishaps.
pub const MISHAPS: [Mishap; 5] = [
    Mishap::RequestLost,
    Mishap::AnswerLost,
    Mishap::Late(1),
    Mishap::Late(3),
    Mishap::FalseConflict,
];

/// Decides what happens to the request with a number; the first has 0.
type Plan = Box<dyn FnMut(u64) -> Option<Mishap> + Send>;

enum Change {
    Put(String, Vec<u8>, Condition),
    Remove(String),
}

struct State {
    plan: Plan,
    requests: u64,
    /// Changes that are still under way, each with the number of the request before which it is carried out.
    late: Vec<(u64, Change)>,
}

/// Passes requests on to another service, with mishaps.
pub struct Lossy {
    inner: Arc<MemoryService>,
    state: Mutex<State>,
}

impl Lossy {
    pub fn new(
        inner: &Arc<MemoryService>,
        plan: impl FnMut(u64) -> Option<Mishap> + Send + 'static,
    ) -> Arc<Self> {
        let state = State { plan: Box::new(plan), requests: 0, late: Vec::new() };
        Arc::new(Self { inner: Arc::clone(inner), state: Mutex::new(state) })
    }

    /// One mishap at the request with this number.
    pub fn once(inner: &Arc<MemoryService>, at: u64, mishap: Mishap) -> Arc<Self> {
        Self::new(inner, move |request| (request == at).then_some(mishap))
    }

    /// The process dies at the request with this number, before or after the request is carried out.
    pub fn dies(inner: &Arc<MemoryService>, at: u64, carried_out: bool) -> Arc<Self> {
        let last = if carried_out { Mishap::AnswerLost } else { Mishap::RequestLost };
        Self::new(inner, move |request| match request {
            request if request < at => None,
            request if request == at => Some(last),
            _ => Some(Mishap::RequestLost),
        })
    }

    /// How many requests there were.
    pub fn requests(&self) -> u64 {
        self.state().requests
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn carry_out(&self, change: Change) -> Result<Version, ServiceError> {
        match change {
            Change::Put(key, bytes, condition) => self.inner.put(&key, &bytes, &condition),
            Change::Remove(key) => self.inner.remove(&key).map(|()| Version(String::new())),
        }
    }

    /// What happens to the next request. Carries out what is late.
    fn next(&self) -> Option<Mishap> {
        let (due, mishap) = {
            let mut state = self.state();
            let request = state.requests;
            state.requests += 1;
            let (due, late) =
                std::mem::take(&mut state.late).into_iter().partition(|(at, _)| *at <= request);
            state.late = late;
            let due: Vec<(u64, Change)> = due;
            (due, (state.plan)(request))
        };
        for (_, change) in due {
            let _ = self.carry_out(change);
        }
        mishap
    }

    fn read<T>(&self, request: impl Fn() -> Result<T, ServiceError>) -> Result<T, ServiceError> {
        match self.next() {
            None => request(),
            Some(_) => Err(unknown()),
        }
    }

    fn change(&self, change: Change) -> Result<Version, ServiceError> {
        let conditional =
            matches!(&change, Change::Put(_, _, Condition::Absent | Condition::Is(_)));
        match self.next() {
            None => self.carry_out(change),
            Some(Mishap::FalseConflict) if conditional => Err(ServiceError::Conflict),
            Some(Mishap::RequestLost | Mishap::FalseConflict) => Err(unknown()),
            Some(Mishap::AnswerLost) => {
                let _ = self.carry_out(change);
                Err(unknown())
            }
            Some(Mishap::Late(requests)) => {
                let mut state = self.state();
                let at = state.requests + requests;
                state.late.push((at, change));
                Err(unknown())
            }
        }
    }
}

fn unknown() -> ServiceError {
    ServiceError::Unknown("the connection was cut".into())
}

impl ObjectService for Lossy {
    fn get(&self, key: &str) -> Result<Object, ServiceError> {
        self.read(|| self.inner.get(key))
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ServiceError> {
        self.read(|| self.inner.get_range(key, range.clone()))
    }

    fn put(&self, key: &str, bytes: &[u8], condition: &Condition) -> Result<Version, ServiceError> {
        self.change(Change::Put(key.into(), bytes.into(), condition.clone()))
    }

    fn remove(&self, key: &str) -> Result<(), ServiceError> {
        self.change(Change::Remove(key.into())).map(drop)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, ServiceError> {
        self.read(|| self.inner.list(prefix, after))
    }

    fn show(&self, key: &str) -> String {
        self.inner.show(key)
    }
}

/// A clock whose pauses take no time.
pub struct Hasty;

impl Clock for Hasty {
    fn now_s(&self) -> i64 {
        0
    }

    fn pause(&self, _: Duration) {
        std::thread::yield_now();
    }
}

/// Numbers in an order that a seed decides.
pub struct Seeded(Mutex<u64>);

impl Seeded {
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }

    pub fn below(&self, end: u64) -> u64 {
        self.number() % end
    }
}

impl Random for Seeded {
    fn number(&self) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)).max(1)
    }
}

fn settled(service: Arc<dyn ObjectService>, seed: u64, give_up_after: Duration) -> Settled {
    let world =
        World { clock: Arc::new(Hasty), random: Arc::new(Seeded::new(seed)), ..World::system() };
    let policy = Policy { give_up_after: Some(give_up_after), ..Policy::command() };
    let retry = Retry::new(&world, policy, "the service".into(), Arc::default());
    Settled::new(service, retry)
}

/// The objects of a service, for a writer of its own.
pub fn objects(service: Arc<dyn ObjectService>, seed: u64) -> Arc<Objects> {
    let settled = settled(service, seed, Duration::from_secs(600));
    Arc::new(Objects::new(settled, Arc::new(Seeded::new(!seed))))
}

/// The records of the pool on a service, for a writer of its own.
pub fn records(service: Arc<dyn ObjectService>, seed: u64) -> ObjectRecords {
    ObjectRecords::new(objects(service, seed), POOL, 7)
}

/// As [`records`], for a process that soon gives up.
pub fn impatient(service: Arc<dyn ObjectService>, seed: u64) -> ObjectRecords {
    let settled = settled(service, seed, Duration::ZERO);
    ObjectRecords::new(Arc::new(Objects::new(settled, Arc::new(Seeded::new(!seed)))), POOL, 7)
}
