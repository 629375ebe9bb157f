//! A simulated service that keeps objects, and the machines' ways to it.
//!
//! It keeps what [`marcot_backend::object::service`] promises, and does everything else that a service or the
//! network may do: answers are lost, requests are performed late, and so on (see [`Fault`]). The same seed and
//! the same calls give the same trace.
//!
//! ```text
//! objects   what a request does; also services that break a promise, which a probe must refuse
//! faults    what goes wrong, by chance or armed
//! turns     machines that work at the same time, in an order that the seed decides
//! ```
//!
//! A machine can be *stalled* at any of its requests ([`Service::stall`]). Then others do their work, and after
//! that it goes on as if nothing had happened: before the request is performed, or before it gets the answer.

mod faults;
mod objects;
#[cfg(test)]
mod tests;
pub mod turns;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use marcot_backend::object::service::{
    Condition, Object, ObjectService, Page, ServiceError, Version,
};

pub use faults::{ACCEPTED, Fault, Faults};
pub use objects::Versions;

use crate::clock::Time;
use crate::random::Rng;
use objects::{Answer, Objects, Request, STALE_CHANGES_MAX};
use turns::Turns;

/// Limits on the time that a request takes, in milliseconds.
const ORDINARY_MS: u64 = 20;
const SLOW_MS: u64 = 60_000;
/// A sender gives up after this long.
const TIMEOUT_MS: u64 = 30_000;
/// Limit on the length of an outage, in milliseconds.
const OUTAGE_MS: u64 = 5 * 60_000;
/// Limits on the number of requests after which a late one is performed: that of most, and that of some.
const LATE_REQUESTS: u64 = 12;
const VERY_LATE_REQUESTS: u64 = 400;
/// Limit on the lines of the trace that are kept.
const LINES_MAX: usize = 2000;

/// A promise that a service breaks. A pool must not be put on such a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    /// Conditions are ignored.
    ConditionsIgnored,
    /// An object that does not exist has every version that is asked for.
    AbsentMatches,
    /// Conditions are compared without a lock: two requests at the same time may both create an object.
    Unlocked,
}

/// What a service is like.
#[derive(Debug, Clone)]
pub struct ServiceSettings {
    /// The seed of all choices.
    pub seed: u64,
    /// How it names versions.
    pub versions: Versions,
    /// It takes one change of an object a second, and answers others with 429.
    pub one_change_a_second: bool,
    /// A promise that it breaks.
    pub breach: Option<Breach>,
    /// What goes wrong.
    pub faults: Faults,
}

impl ServiceSettings {
    /// A service of a seed, without faults.
    #[must_use]
    pub fn sound(seed: u64) -> Self {
        let mut rng = Rng::with(seed, 402);
        let versions = if rng.one_in(2) { Versions::Counted } else { Versions::OfContent };
        let (one_change_a_second, breach) = (false, None);
        Self { seed, versions, one_change_a_second, breach, faults: Faults::default() }
    }

    /// A service of a seed, with the seed's faults.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let one_change_a_second = Rng::with(seed, 403).one_in(4);
        Self { one_change_a_second, faults: Faults::of(seed), ..Self::sound(seed) }
    }
}

/// Requests, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the requests of the trait")]
pub struct Counts {
    pub get: u64,
    pub get_range: u64,
    pub put: u64,
    pub remove: u64,
    pub list: u64,
}

impl Counts {
    /// Requests of all kinds.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.get + self.get_range + self.put + self.remove + self.list
    }

    /// The requests since an earlier moment.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            get: self.get - earlier.get,
            get_range: self.get_range - earlier.get_range,
            put: self.put - earlier.put,
            remove: self.remove - earlier.remove,
            list: self.list - earlier.list,
        }
    }
}

/// The moment of a request at which a machine is stalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The request is under way, and not performed yet.
    BeforeEffect,
    /// The request is performed, and its answer is under way.
    BeforeAnswer,
}

/// What others do while a machine is stalled.
pub type Meanwhile = Box<dyn FnOnce() + Send>;

struct Stall {
    machine: usize,
    request: u64,
    moment: Moment,
    meanwhile: Meanwhile,
}

/// A request that is performed later.
struct Late {
    /// The number of the request before which it is performed.
    before: u64,
    machine: usize,
    request: Request,
}

/// One machine's requests.
#[derive(Default)]
struct Sender {
    /// A way of an earlier life is dead.
    life: u64,
    counts: Counts,
}

struct State {
    objects: Objects,
    faults: Faults,
    one_change_a_second: bool,
    late: Vec<Late>,
    senders: Vec<Sender>,
    /// Requests of all machines.
    requests: u64,
    outage_until_ms: u64,
    hash: u64,
    rng: Rng,
    lines: Option<Vec<String>>,
}

/// The service.
pub struct Service {
    state: Mutex<State>,
    stall: Mutex<Option<Stall>>,
    time: Arc<Time>,
    turns: Turns,
}

fn mix(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01B3))
}

/// The machine has died while its request was under way.
fn died() -> ServiceError {
    unknown("this machine has died")
}

fn unknown(why: &str) -> ServiceError {
    ServiceError::Unknown(why.to_owned())
}

impl Service {
    /// A service without objects, for this many machines.
    #[must_use]
    pub fn new(settings: ServiceSettings, machines: usize) -> Arc<Self> {
        let state = State {
            objects: Objects::new(settings.versions, settings.breach),
            faults: settings.faults,
            one_change_a_second: settings.one_change_a_second,
            late: Vec::new(),
            senders: (0..machines).map(|_| Sender::default()).collect(),
            requests: 0,
            outage_until_ms: 0,
            hash: 0xCBF2_9CE4_8422_2325,
            rng: Rng::with(settings.seed, 404),
            lines: None,
        };
        let (time, turns) = (Arc::new(Time::default()), Turns::new(settings.seed));
        Arc::new(Self { state: Mutex::new(state), stall: Mutex::new(None), time, turns })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time that all machines and the service share.
    #[must_use]
    pub fn time(&self) -> Arc<Time> {
        Arc::clone(&self.time)
    }

    /// The turns that machines take at their requests, if they do.
    pub fn turns(&self) -> &Turns {
        &self.turns
    }

    /// A way to the service for a life of a machine. It ends with [`Self::kill`].
    #[must_use]
    pub fn way(self: &Arc<Self>, machine: usize) -> Way {
        self.way_below(machine, "")
    }

    /// As [`Self::way`], for the keys that begin with `prefix`, which the machine does not see.
    #[must_use]
    pub fn way_below(self: &Arc<Self>, machine: usize, prefix: &str) -> Way {
        let life = self.state().senders[machine].life;
        Way { service: Arc::clone(self), machine, life, prefix: prefix.to_owned() }
    }

    /// Ends a life of a machine. A request that is under way may still be performed. All later ones are refused,
    /// so that nobody sends them again.
    pub fn kill(&self, machine: usize) {
        self.state().senders[machine].life += 1;
    }

    /// The number of a machine's life: that of the ways that are not dead.
    #[must_use]
    pub fn life(&self, machine: usize) -> u64 {
        self.state().senders[machine].life
    }

    /// Stalls a machine at its `request`-th request, counted from 0 since the start, and does something else
    /// meanwhile. While a machine is stalled, no other one is.
    pub fn stall(&self, machine: usize, request: u64, moment: Moment, meanwhile: Meanwhile) {
        let stall = Stall { machine, request, moment, meanwhile };
        *self.stall.lock().unwrap_or_else(PoisonError::into_inner) = Some(stall);
    }

    /// Forgets a stall that was not reached. Returns true where there was one.
    pub fn forget_stall(&self) -> bool {
        self.stall.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    fn stalled(&self, machine: usize, request: u64, moment: Moment) {
        let due = {
            let mut stall = self.stall.lock().unwrap_or_else(PoisonError::into_inner);
            let here =
                |s: &mut Stall| s.machine == machine && s.request == request && s.moment == moment;
            stall.take_if(here)
        };
        if let Some(stall) = due {
            (stall.meanwhile)();
        }
    }

    /// Requests that a machine has sent.
    #[must_use]
    pub fn counts(&self, machine: usize) -> Counts {
        self.state().senders[machine].counts
    }

    /// Hash of the trace so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.state().hash
    }

    /// Faults that have hit so far.
    #[must_use]
    pub fn faults_hit(&self) -> u64 {
        self.state().faults.hits
    }

    /// Arms a fault for the `after`-th request that it can hit, of one machine or of any.
    pub fn arm(&self, fault: Fault, machine: Option<usize>, after: u64) {
        self.state().faults.arm(fault, machine, after);
    }

    /// Ends all trouble: nothing fails any more, and an outage is over. Late requests stay late.
    pub fn disarm(&self) {
        let mut state = self.state();
        state.faults.disarm();
        state.outage_until_ms = 0;
        state.one_change_a_second = false;
    }

    /// Performs all late requests, in any order.
    pub fn deliver_all(&self) {
        let mut state = self.state();
        while !state.late.is_empty() {
            let count = state.late.len() as u64;
            let at = state.rng.below(count) as usize;
            let late = state.late.remove(at);
            state.deliver(&late, self.time.now_ms());
        }
    }

    /// The keys of all objects.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    /// The keys under which other bytes have replaced those that were there.
    #[must_use]
    pub fn replaced(&self) -> Vec<String> {
        self.state().objects.replaced().iter().cloned().collect()
    }

    /// The bytes of an object.
    #[must_use]
    pub fn bytes(&self, key: &str) -> Option<Arc<[u8]>> {
        self.state().objects.bytes(key)
    }

    /// Keeps lines of the trace from now on.
    pub fn keep_lines(&self) {
        self.state().lines = Some(Vec::new());
    }

    /// Takes the lines of the trace since the last call.
    #[must_use]
    pub fn take_lines(&self) -> Vec<String> {
        self.state().lines.as_mut().map(std::mem::take).unwrap_or_default()
    }
}

impl State {
    fn note(&mut self, machine: usize, request: &Request, outcome: &str) {
        let hash = mix(self.hash, &(machine as u64).to_le_bytes());
        self.hash = mix(mix(hash, request.key().as_bytes()), outcome.as_bytes());
        let Some(lines) = &mut self.lines else { return };
        let what = match request {
            Request::Get { key } => format!("get {key}"),
            Request::GetRange { key, range } => format!("get {key} {}-{}", range.start, range.end),
            Request::Put { key, bytes, condition } => match condition {
                Condition::None => format!("put {key} ({} bytes)", bytes.len()),
                Condition::Absent => format!("create {key} ({} bytes)", bytes.len()),
                Condition::Is(v) => format!("swap {key} of {} ({} bytes)", v.0, bytes.len()),
            },
            Request::Remove { key } => format!("remove {key}"),
            Request::List { prefix, after } => {
                format!("list {prefix} behind {}", after.as_deref().unwrap_or(""))
            }
        };
        if lines.len() == LINES_MAX {
            lines.remove(0);
        }
        lines.push(format!("{:>6} m{machine} {what}: {outcome}", self.requests));
    }

    fn deliver(&mut self, late: &Late, now_ms: u64) {
        let outcome = match self.objects.perform(&late.request, now_ms, 0) {
            Ok(_) => "performed late",
            Err(_) => "refused late",
        };
        self.note(late.machine, &late.request, outcome);
    }

    fn deliver_due(&mut self, now_ms: u64) {
        while let Some(at) = self.late.iter().position(|late| late.before <= self.requests) {
            let late = self.late.remove(at);
            self.deliver(&late, now_ms);
        }
    }

    fn postpone(&mut self, machine: usize, request: &Request) {
        let most = if self.rng.one_in(4) { VERY_LATE_REQUESTS } else { LATE_REQUESTS };
        let before = self.requests + 1 + self.rng.below(most);
        self.late.push(Late { before, machine, request: request.clone() });
    }

    /// The request of a machine that has died meanwhile.
    fn perform_for_dead(&mut self, machine: usize, request: &Request, now_ms: u64) {
        match self.rng.below(3) {
            0 => {}
            1 => drop(self.objects.perform(request, now_ms, 0)),
            _ => self.postpone(machine, request),
        }
    }

    fn perform(
        &mut self,
        machine: usize,
        request: &Request,
        time: &Time,
    ) -> Result<Answer, ServiceError> {
        let now_ms = time.now_ms();
        if now_ms < self.outage_until_ms {
            return Err(unknown("status 503: the service is not available"));
        }
        let changed_ms = self.objects.stored_ms(request.key());
        if self.one_change_a_second
            && request.changes()
            && changed_ms.is_some_and(|changed_ms| now_ms - changed_ms < 1000)
        {
            return Err(unknown("status 429: too many changes of this object"));
        }
        let mut rng = self.rng.clone();
        let fault = self.faults.draw(machine, request, &mut rng);
        self.rng = rng;
        let mut hidden = 0;
        match fault {
            None => {}
            Some(Fault::LostAnswer) => {
                drop(self.objects.perform(request, now_ms, 0));
                time.pass(Duration::from_millis(TIMEOUT_MS));
                return Err(unknown("no answer came in time (performed)"));
            }
            Some(Fault::ErrorAfterCommit) => {
                drop(self.objects.perform(request, now_ms, 0));
                return Err(unknown("status 500: internal error (performed)"));
            }
            Some(Fault::LostRequest) => {
                time.pass(Duration::from_millis(TIMEOUT_MS));
                return Err(unknown("no answer came in time (lost)"));
            }
            Some(Fault::Late) => {
                self.postpone(machine, request);
                time.pass(Duration::from_millis(TIMEOUT_MS));
                return Err(unknown("no answer came in time (still under way)"));
            }
            Some(Fault::Twice) => self.postpone(machine, request),
            Some(Fault::FalseConflict) => return Err(ServiceError::Conflict),
            Some(Fault::TooManyRequests) => {
                return Err(unknown("status 429: too many requests"));
            }
            Some(Fault::TornBody) => {
                return Err(unknown("the connection was cut in the middle of a body"));
            }
            Some(Fault::Slow) => time.pass(Duration::from_millis(self.rng.below(SLOW_MS))),
            Some(Fault::Outage) => {
                self.outage_until_ms = now_ms + self.rng.below(OUTAGE_MS);
                return Err(unknown("status 503: the service is not available"));
            }
            Some(Fault::StaleList) => {
                hidden = 1 + self.rng.below(STALE_CHANGES_MAX as u64) as usize;
            }
        }
        self.objects.perform(request, now_ms, hidden)
    }
}

/// A way to the service for a life of a machine.
#[derive(Clone)]
pub struct Way {
    service: Arc<Service>,
    machine: usize,
    life: u64,
    prefix: String,
}

impl Way {
    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Counts a request. Returns its number among those of the machine, or `None` where the machine is dead.
    fn begin(&self, request: &Request) -> Option<u64> {
        let mut state = self.service.state();
        if state.senders[self.machine].life != self.life {
            return None;
        }
        let counts = &mut state.senders[self.machine].counts;
        let number = counts.all();
        *match request {
            Request::Get { .. } => &mut counts.get,
            Request::GetRange { .. } => &mut counts.get_range,
            Request::Put { .. } => &mut counts.put,
            Request::Remove { .. } => &mut counts.remove,
            Request::List { .. } => &mut counts.list,
        } += 1;
        state.requests += 1;
        let took_ms = 1 + state.rng.below(ORDINARY_MS);
        self.service.time.pass(Duration::from_millis(took_ms));
        Some(number)
    }

    fn is_dead(&self, state: &State) -> bool {
        state.senders[self.machine].life != self.life
    }

    /// Performs a request, with all that happens to it on its way.
    fn send(&self, request: &Request) -> Result<Answer, ServiceError> {
        let (service, machine) = (&*self.service, self.machine);
        let number = self.begin(request).ok_or_else(|| {
            // Nobody sends it again.
            ServiceError::Invalid("this machine is dead".to_owned())
        })?;
        service.turns.give(machine);
        service.stalled(machine, number, Moment::BeforeEffect);
        let answer = {
            let mut state = service.state();
            let now_ms = service.time.now_ms();
            state.deliver_due(now_ms);
            if self.is_dead(&state) {
                state.perform_for_dead(machine, request, now_ms);
                return Err(died());
            }
            let answer = state.perform(machine, request, &service.time);
            match &answer {
                Ok(_) => state.note(machine, request, "done"),
                Err(error) => state.note(machine, request, &error.to_string()),
            }
            answer
        };
        service.stalled(machine, number, Moment::BeforeAnswer);
        if self.is_dead(&service.state()) { Err(died()) } else { answer }
    }
}

impl ObjectService for Way {
    fn get(&self, key: &str) -> Result<Object, ServiceError> {
        match self.send(&Request::Get { key: self.key(key) })? {
            Answer::Object(object) => Ok(object),
            _ => unreachable!("the answer to another request"),
        }
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ServiceError> {
        match self.send(&Request::GetRange { key: self.key(key), range })? {
            Answer::Bytes(bytes) => Ok(bytes),
            _ => unreachable!("the answer to another request"),
        }
    }

    fn put(&self, key: &str, bytes: &[u8], condition: &Condition) -> Result<Version, ServiceError> {
        let (key, bytes, condition) = (self.key(key), bytes.into(), condition.clone());
        match self.send(&Request::Put { key, bytes, condition })? {
            Answer::Stored(version) => Ok(version),
            _ => unreachable!("the answer to another request"),
        }
    }

    fn remove(&self, key: &str) -> Result<(), ServiceError> {
        match self.send(&Request::Remove { key: self.key(key) })? {
            Answer::Removed => Ok(()),
            _ => unreachable!("the answer to another request"),
        }
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, ServiceError> {
        let (prefix, after) = (self.key(prefix), after.map(|after| self.key(after)));
        match self.send(&Request::List { prefix, after })? {
            Answer::Page(mut page) => {
                for object in &mut page.objects {
                    object.key.drain(..self.prefix.len());
                }
                Ok(page)
            }
            _ => unreachable!("the answer to another request"),
        }
    }

    fn show(&self, key: &str) -> String {
        format!("sim:{}", self.key(key))
    }
}
