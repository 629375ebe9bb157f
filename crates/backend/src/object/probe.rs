//! Tries what a pool needs of a service, before any image relies on it.
//!
//! Services say that they speak as S3 does, and some of them ignore the conditions of a request, or compare and
//! store without a lock. A pool on such a service would lose writes without an error. So each guarantee is
//! tried, by what the service then has and not by what it answers.
//!
//! The objects of a probe lie below `probe/`, under names that nobody else uses. They are removed at the end.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use marcot_store::Random;

use super::dialect::Dialect;
use super::service::{Condition, ObjectService, ServiceError, Version};
use super::settled::{CreateError, Settled};

/// Where the objects of probes lie.
const PREFIX: &str = "probe/";
/// Requests that race in one try.
const RACERS: usize = 16;
/// How long a service may want between two changes of an object.
const CHANGE_INTERVAL: Duration = Duration::from_secs(1);
/// How often a request is sent that must not succeed, while the answers say nothing. The pauses between them
/// are longer together than a second, since some services take one change per second and object.
const DOUBTFUL_ATTEMPTS: u32 = 7;

/// What a probe found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Findings {
    /// How to talk to the service.
    pub dialect: Dialect,
    /// An object that is stored again with the same bytes keeps its version. So a version does not tell whether
    /// a record was changed and changed back; the record's stamp does.
    pub version_of_bytes: bool,
}

/// What a service must keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarantee {
    /// An object is created at most once.
    CreateOnce,
    /// Of requests that create the same object at once, one succeeds.
    OneWinner,
    /// An object is replaced where it has the version that the request names.
    Swap,
    /// An object is not replaced where it has another version.
    SwapUnchanged,
    /// Of requests that replace the same version at once, one succeeds.
    OneSwapWinner,
    /// A request that names a version creates no object.
    SwapExisting,
    /// A read shows what was stored before it.
    ReadAfterWrite,
    /// A list shows what was stored and not removed before it.
    ListAfterWrite,
    /// A part of an object can be read.
    RangeRead,
}

impl Guarantee {
    /// Its name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CreateOnce => "create once",
            Self::OneWinner => "one winner of many creates",
            Self::Swap => "swap if unchanged",
            Self::SwapUnchanged => "no swap if changed",
            Self::OneSwapWinner => "one winner of many swaps",
            Self::SwapExisting => "no swap of a missing object",
            Self::ReadAfterWrite => "read after write",
            Self::ListAfterWrite => "list after write",
            Self::RangeRead => "range read",
        }
    }

    fn seen(self) -> &'static str {
        match self {
            Self::CreateOnce => {
                "an object was created twice although the request had If-None-Match"
            }
            Self::OneWinner => "several requests with If-None-Match created the same object",
            Self::Swap => "a request with If-Match and the object's own version was refused",
            Self::SwapUnchanged => "a request with If-Match and an old version replaced the object",
            Self::OneSwapWinner => "several requests with If-Match replaced the same version",
            Self::SwapExisting => "a request with If-Match created an object",
            Self::ReadAfterWrite => "a read did not show what was stored before",
            Self::ListAfterWrite => "a list did not show what was stored or removed before",
            Self::RangeRead => "a part of an object could not be read",
        }
    }
}

/// Why a service cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeError {
    /// It does not keep this guarantee. The second part names the place.
    Lacks(Guarantee, String),
    /// It could not be asked.
    Service(ServiceError),
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lacks(guarantee, place) => write!(
                f,
                "{place} cannot hold a pool: the service does not guarantee '{}' ({}): use a service or a \
                 version of it that does, and no cache or proxy before it",
                guarantee.name(),
                guarantee.seen()
            ),
            Self::Service(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ProbeError {}

impl From<ServiceError> for ProbeError {
    fn from(error: ServiceError) -> Self {
        Self::Service(error)
    }
}

/// Tries each guarantee. `set_dialect` changes how conditions are written; it is left as it was found right.
///
/// # Errors
/// `Lacks`, or why the service could not be asked.
pub fn probe(
    settled: &Settled,
    random: &dyn Random,
    set_dialect: &dyn Fn(Dialect),
) -> Result<Findings, ProbeError> {
    let run = || {
        let probe = Probe { settled, random, keys: Mutex::default() };
        let outcome = probe.all(set_dialect);
        probe.clean();
        outcome
    };
    match run() {
        // Two winners are a proof. Another verdict may come from a request that seemed lost and took effect
        // late, so a second run has to confirm it.
        Err(ProbeError::Lacks(guarantee, _))
            if !matches!(guarantee, Guarantee::OneWinner | Guarantee::OneSwapWinner) =>
        {
            run()
        }
        outcome => outcome,
    }
}

struct Probe<'a> {
    settled: &'a Settled,
    random: &'a dyn Random,
    keys: Mutex<Vec<String>>,
}

type Tried<T = ()> = Result<T, ProbeError>;

impl Probe<'_> {
    fn all(&self, set_dialect: &dyn Fn(Dialect)) -> Tried<Findings> {
        // The first answer shows whether this is such a service at all.
        self.settled.list(PREFIX, None)?;
        let dialect = self.find_dialect(set_dialect)?;
        self.create_once()?;
        self.one_creates()?;
        self.stale_version()?;
        self.one_swaps()?;
        self.missing_object()?;
        let version_of_bytes = self.same_bytes()?;
        self.lists()?;
        self.ranges()?;
        Ok(Findings { dialect, version_of_bytes })
    }

    /// A key that nobody has used.
    fn key(&self) -> String {
        let key = format!("{PREFIX}{:016x}{:016x}", self.random.number(), self.random.number());
        self.keys.lock().unwrap_or_else(|e| e.into_inner()).push(key.clone());
        key
    }

    fn clean(&self) {
        let keys = std::mem::take(&mut *self.keys.lock().unwrap_or_else(|e| e.into_inner()));
        for key in keys {
            // What cannot be removed hurts nobody.
            if let Err(error) = self.settled.service().remove(&key) {
                tracing::debug!("{} stays: {error}", self.settled.show(&key));
            }
        }
    }

    fn lacks<T>(&self, guarantee: Guarantee) -> Tried<T> {
        Err(ProbeError::Lacks(guarantee, self.settled.show("")))
    }

    fn create(&self, key: &str, bytes: &[u8]) -> Tried<Version> {
        match self.settled.create(key, bytes) {
            Ok(version) => Ok(version),
            Err(CreateError::Service(error)) => Err(error.into()),
            Err(CreateError::Exists(_)) => self.lacks(Guarantee::ReadAfterWrite),
        }
    }

    /// Replaces an object; `None` where the service refuses.
    fn swap(&self, key: &str, version: &Version, bytes: &[u8]) -> Tried<Option<Version>> {
        let condition = Condition::Is(version.clone());
        let service = self.settled.service();
        let swapped =
            self.settled.retry().run(|failures| match service.put(key, bytes, &condition) {
                Ok(version) => Ok(Some(version)),
                Err(error @ (ServiceError::Unknown(_) | ServiceError::Conflict)) => {
                    match service.get(key)? {
                        object if object.bytes == bytes => Ok(Some(object.version)),
                        _ if matches!(error, ServiceError::Conflict) => Ok(None),
                        _ if failures + 1 >= DOUBTFUL_ATTEMPTS => Ok(None),
                        _ => Err(error),
                    }
                }
                Err(error) => Err(error),
            });
        Ok(swapped?)
    }

    /// Sends a request that must not take effect.
    fn must_fail(&self, key: &str, condition: &Condition, guarantee: Guarantee) -> Tried {
        let bytes = self.random.number().to_le_bytes();
        let service = self.settled.service();
        let took_effect = self.settled.retry().run(|failures| {
            let answer = match service.put(key, &bytes, condition) {
                Ok(_) => return Ok(true),
                Err(error) => error,
            };
            let found = match service.get(key) {
                Ok(object) => object.bytes == bytes,
                Err(ServiceError::Absent) => false,
                Err(error) => return Err(error),
            };
            match answer {
                _ if found => Ok(true),
                ServiceError::Unknown(_) if failures + 1 < DOUBTFUL_ATTEMPTS => Err(answer),
                ServiceError::Unknown(_) | ServiceError::Conflict => Ok(false),
                error => Err(error),
            }
        });
        if took_effect? { self.lacks(guarantee) } else { Ok(()) }
    }

    fn must_read(&self, key: &str, bytes: &[u8]) -> Tried {
        match self.settled.get(key)? {
            Some(object) if object.bytes == bytes => Ok(()),
            _ => self.lacks(Guarantee::ReadAfterWrite),
        }
    }

    /// Finds out whether the service wants ETags with quotes or without.
    fn find_dialect(&self, set_dialect: &dyn Fn(Dialect)) -> Tried<Dialect> {
        for dialect in [Dialect { bare_etags: false }, Dialect { bare_etags: true }] {
            set_dialect(dialect);
            let key = self.key();
            let version = self.create(&key, b"first")?;
            self.must_read(&key, b"first")?;
            if self.swap(&key, &version, b"second")?.is_some() {
                self.must_read(&key, b"second")?;
                return Ok(dialect);
            }
        }
        self.lacks(Guarantee::Swap)
    }

    fn create_once(&self) -> Tried {
        let key = self.key();
        self.create(&key, b"first")?;
        self.must_fail(&key, &Condition::Absent, Guarantee::CreateOnce)?;
        self.must_read(&key, b"first")
    }

    /// Sends requests at once. Returns how many succeeded, and the bytes of one that did.
    fn race(&self, key: &str, condition: &Condition) -> (usize, Option<Vec<u8>>) {
        let service: &dyn ObjectService = &**self.settled.service();
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..RACERS)
                .map(|racer| {
                    scope.spawn(move || {
                        let bytes = format!("racer {racer}").into_bytes();
                        service.put(key, &bytes, condition).is_ok().then_some(bytes)
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap_or_default()).collect()
        });
        let winners: Vec<_> = outcomes.into_iter().flatten().collect();
        (winners.len(), winners.into_iter().next())
    }

    /// Judges a race. False where all answers were lost, so that it must be run again.
    fn one_winner(&self, key: &str, race: (usize, Option<Vec<u8>>), of: Guarantee) -> Tried<bool> {
        match race {
            (0, _) => Ok(false),
            (1, Some(bytes)) => match self.settled.get(key)? {
                Some(object) if object.bytes == bytes => Ok(true),
                _ => self.lacks(of),
            },
            _ => self.lacks(of),
        }
    }

    /// Runs a race until it has a winner.
    fn raced(&self, of: Guarantee, race: impl Fn(u32) -> Tried<bool>) -> Tried {
        let mut outcome = Ok(());
        self.settled.retry().run(|failures| match race(failures) {
            Ok(true) => Ok(()),
            Ok(false) => Err(ServiceError::Unknown(format!(
                "no request of {RACERS} succeeded to try '{}'",
                of.name()
            ))),
            Err(error) => {
                outcome = Err(error);
                Ok(())
            }
        })?;
        outcome
    }

    fn one_creates(&self) -> Tried {
        self.raced(Guarantee::OneWinner, |_| {
            let key = self.key();
            let race = self.race(&key, &Condition::Absent);
            self.one_winner(&key, race, Guarantee::OneWinner)
        })
    }

    fn one_swaps(&self) -> Tried {
        self.raced(Guarantee::OneSwapWinner, |failures| {
            let key = self.key();
            let version = self.create(&key, b"first")?;
            if failures > 0 {
                self.settled.retry().wait(CHANGE_INTERVAL);
            }
            let race = self.race(&key, &Condition::Is(version));
            self.one_winner(&key, race, Guarantee::OneSwapWinner)
        })
    }

    fn stale_version(&self) -> Tried {
        let key = self.key();
        let stale = self.create(&key, b"first")?;
        let Some(_) = self.swap(&key, &stale, b"second")? else {
            return self.lacks(Guarantee::Swap);
        };
        self.must_fail(&key, &Condition::Is(stale), Guarantee::SwapUnchanged)?;
        self.must_read(&key, b"second")
    }

    fn missing_object(&self) -> Tried {
        let key = self.key();
        let version = self.create(&key, b"first")?;
        self.settled.remove(&key)?;
        if self.settled.get(&key)?.is_some() {
            return self.lacks(Guarantee::ReadAfterWrite);
        }
        // The same version, of a key that never had an object and of one that has none any more.
        for key in [self.key(), key] {
            let condition = Condition::Is(version.clone());
            self.must_fail(&key, &condition, Guarantee::SwapExisting)?;
            if self.settled.get(&key)?.is_some() {
                return self.lacks(Guarantee::SwapExisting);
            }
        }
        Ok(())
    }

    /// True where the version follows from the bytes.
    fn same_bytes(&self) -> Tried<bool> {
        let key = self.key();
        let first = self.create(&key, b"same")?;
        let Some(second) = self.swap(&key, &first, b"same")? else {
            return self.lacks(Guarantee::Swap);
        };
        let Some(_) = self.swap(&key, &second, b"other")? else {
            return self.lacks(Guarantee::Swap);
        };
        self.must_read(&key, b"other")?;
        Ok(first == second)
    }

    fn lists(&self) -> Tried {
        let base = self.key();
        let keys: Vec<_> = ["/a", "/b/c", "/d"].iter().map(|end| format!("{base}{end}")).collect();
        for key in &keys {
            self.keys.lock().unwrap_or_else(|e| e.into_inner()).push(key.clone());
            self.create(key, b"listed")?;
        }
        let listed = |after: Option<&str>| -> Tried<Vec<String>> {
            let mut found: Vec<String> = Vec::new();
            loop {
                let after = found.last().map(String::as_str).or(after);
                let page = self.settled.list(&format!("{base}/"), after)?;
                let more = page.more && !page.objects.is_empty();
                found.extend(page.objects.into_iter().map(|object| object.key));
                if !more {
                    return Ok(found);
                }
            }
        };
        if listed(None)? != keys || listed(Some(&keys[0]))? != keys[1..] {
            return self.lacks(Guarantee::ListAfterWrite);
        }
        self.settled.remove(&keys[1])?;
        if listed(None)? != [keys[0].clone(), keys[2].clone()] {
            return self.lacks(Guarantee::ListAfterWrite);
        }
        Ok(())
    }

    fn ranges(&self) -> Tried {
        let key = self.key();
        self.create(&key, b"0123456789")?;
        let service = self.settled.service();
        for (range, bytes) in [(3..7, &b"3456"[..]), (8..20, b"89"), (10..12, b"")] {
            // A service that sends the whole object instead gives an answer that makes no sense.
            let read =
                self.settled.retry().run(|failures| match service.get_range(&key, range.clone()) {
                    Ok(found) => Ok(found == bytes),
                    Err(ServiceError::Absent) => Ok(false),
                    Err(ServiceError::Unknown(_)) if failures + 1 >= DOUBTFUL_ATTEMPTS => Ok(false),
                    Err(error) => Err(error),
                });
            if !read? {
                return self.lacks(Guarantee::RangeRead);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
