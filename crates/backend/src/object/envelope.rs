//! Records in envelopes: objects that change by compare-and-swap, and whose every change has an outcome that is
//! known.
//!
//! A request may fail in a way that says nothing about its effect ([`ServiceError::Unknown`]). So each version of
//! an object has a *stamp* that no other version has, and the stamps of the versions before. A writer who does
//! not know what became of its request reads the object back:
//!
//! | what is there | what it means |
//! |---|---|
//! | my stamp, or my stamp among the earlier ones | done (and overtaken) |
//! | the version that was to be replaced | not done, or not yet: the same bytes are sent again |
//! | a version that follows the replaced one, without my stamp | lost: nothing was changed |
//! | a version so young that its stamps do not reach back to the replaced one | not known |
//!
//! Invariants:
//! - A request that is sent again has the same bytes, stamp and condition. So it does not matter which of the
//!   two is carried out, or when.
//! - [`PutError::Lost`] and [`PutError::Failed`] mean that nothing was changed and that no request under way
//!   can still change anything. Everything else is [`PutError::Unknown`].
//! - Two versions of an object never have the same bytes, so an ETag that is a checksum of the bytes tells them
//!   apart. A tombstone is the only exception, and nothing replaces it except a new pool.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use marcot_format::FormatError;
use marcot_format::frame::{self, FrameKind, decode, decode_message, encode_message};
use marcot_format::record::{ObjectRecord, StampRecord};
use marcot_store::{Clock, Random};

use super::service::{Condition, ListedObject, Object, ObjectService, ServiceError, Version};

/// Earlier stamps that an object keeps. So many changes of others may come between a writer's request and its
/// reading back.
const EARLIER_KEPT: usize = 32;

/// Length of a tombstone in bytes: a frame without content. Every other object is longer.
pub const TOMBSTONE_BYTES: u64 = frame::FRAME_HEADER_BYTES as u64;

/// Pause before a request is sent for the second time. It doubles with every further one.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
/// Longest pause between two requests.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a service that gives no answers is asked again, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(600);

/// The records of a pool as objects of a service.
pub struct Objects {
    service: Arc<dyn ObjectService>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    writer: u64,
    written: AtomicU64,
    patience: Duration,
}

/// A stored object.
#[derive(Debug, Clone)]
pub struct Stored {
    version: Version,
    /// The stamps that count for its successors, its own first. None for a tombstone or damaged bytes.
    stamps: Vec<StampRecord>,
    /// The record; `None` for a tombstone.
    body: Option<Vec<u8>>,
    /// A newer version has written it, and this one must not replace it.
    read_only: bool,
}

impl Stored {
    /// The record; `None` where the object is a tombstone.
    #[must_use]
    pub fn body(&self) -> Option<&[u8]> {
        self.body.as_deref()
    }

    /// The record; `None` where the object is a tombstone.
    #[must_use]
    pub fn into_body(self) -> Option<Vec<u8>> {
        self.body
    }

    /// The same without the record, to be replaced later.
    #[must_use]
    pub fn without_body(&self) -> Self {
        let body = self.body.as_ref().map(|_| Vec::new());
        Self { version: self.version.clone(), stamps: self.stamps.clone(), body, ..*self }
    }

    /// True where both are the same version of the object.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.version == other.version
    }
}

/// Why an object was not stored.
#[derive(Debug)]
pub enum PutError {
    /// Another version is stored than the one that was to be replaced. Nothing was changed.
    Lost,
    /// It failed, and nothing was changed.
    Failed(io::Error),
    /// It is not known whether it was changed, or it may still be changed.
    Unknown(io::Error),
}

/// What is to be stored.
struct Change<'a> {
    key: &'a str,
    bytes: Vec<u8>,
    /// `None` for a tombstone.
    stamp: Option<StampRecord>,
    replaced: Option<&'a Stored>,
}

/// What reading back shows.
enum Verdict {
    Done,
    /// What was to be replaced is still there.
    NotYet,
    Lost,
    NotKnown,
}

/// The time that was waited for a service.
struct Waiting {
    waited: Duration,
    next: Duration,
}

impl Objects {
    /// The objects of a service, for one writer.
    #[must_use]
    pub fn new(
        service: Arc<dyn ObjectService>,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Self {
        let writer = random.number();
        let written = AtomicU64::new(0);
        Self { service, clock, random, writer, written, patience: PATIENCE }
    }

    /// The same, with another limit on the time for which a service that gives no answers is asked again.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The service.
    #[must_use]
    pub fn service(&self) -> &dyn ObjectService {
        &*self.service
    }

    /// A random number, never 0.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.random.number()
    }

    /// An object; `None` where there is none.
    ///
    /// # Errors
    /// `InvalidData` where it is no record in an envelope; what the service says.
    pub fn get(&self, key: &str) -> io::Result<Option<Stored>> {
        match self.again(|| self.service.get(key)) {
            Ok(object) => Ok(Some(opened(object)?)),
            Err(ServiceError::Absent) => Ok(None),
            Err(error) => Err(io_error(error)),
        }
    }

    /// As [`Self::get`], also for an object that is no record in an envelope. It has no body then.
    ///
    /// # Errors
    /// What the service says.
    pub fn get_any(&self, key: &str) -> io::Result<Option<Stored>> {
        match self.again(|| self.service.get(key)) {
            Ok(object) => Ok(Some(opened_or_damaged(object))),
            Err(ServiceError::Absent) => Ok(None),
            Err(error) => Err(io_error(error)),
        }
    }

    /// The first bytes of an object; `None` where there is none.
    ///
    /// # Errors
    /// What the service says.
    pub fn start_of(&self, key: &str, bytes: u64) -> io::Result<Option<Vec<u8>>> {
        match self.again(|| self.service.get_range(key, 0..bytes)) {
            Ok(start) => Ok(Some(start)),
            Err(ServiceError::Absent) => Ok(None),
            Err(error) => Err(io_error(error)),
        }
    }

    /// Stores a record under a key that has none. Returns what [`Self::replace`] returns.
    ///
    /// # Errors
    /// See [`PutError`]; `Lost` where there is an object, also a tombstone.
    pub fn create(&self, key: &str, body: &[u8]) -> Result<Option<Stored>, PutError> {
        self.store(key, None, body)
    }

    /// Stores a record in place of the version that was read. Returns the new version without the record, so
    /// that it can be replaced without reading it; `None` where it is not known.
    ///
    /// # Errors
    /// See [`PutError`].
    pub fn replace(
        &self,
        key: &str,
        replaced: &Stored,
        body: &[u8],
    ) -> Result<Option<Stored>, PutError> {
        self.store(key, Some(replaced), body)
    }

    /// Stores a tombstone in place of the version that was read: the record is gone for good.
    ///
    /// # Errors
    /// See [`PutError`]. Of several who do this at the same time, more than one may succeed.
    pub fn bury(&self, key: &str, replaced: &Stored) -> Result<(), PutError> {
        check_replaceable(replaced)?;
        let bytes = encode_message(FrameKind::Object, &ObjectRecord::default());
        self.carry_out(&Change { key, bytes, stamp: None, replaced: Some(replaced) }).map(drop)
    }

    /// Removes an object. One that does not exist is no error. No record is removed that may be created again
    /// under the same key, because the request may be carried out late.
    ///
    /// # Errors
    /// What the service says.
    pub fn remove(&self, key: &str) -> io::Result<()> {
        self.again(|| self.service.remove(key)).map_err(io_error)
    }

    /// Calls `each` for every object whose key begins with `prefix`, until it returns false.
    ///
    /// # Errors
    /// What the service says.
    pub fn list(
        &self,
        prefix: &str,
        each: &mut dyn FnMut(&ListedObject) -> bool,
    ) -> io::Result<()> {
        let mut after: Option<String> = None;
        loop {
            let page = self.again(|| self.service.list(prefix, after.as_deref()));
            let page = page.map_err(io_error)?;
            for object in &page.objects {
                if !each(object) {
                    return Ok(());
                }
            }
            match page.objects.last() {
                Some(last) if page.more => after = Some(last.key.clone()),
                _ => return Ok(()),
            }
        }
    }

    /// Pauses before a lost swap is tried once more, so that writers of one object get out of step.
    pub fn make_way(&self, attempt: u32) {
        let most = PAUSE_FIRST.saturating_mul(attempt.min(50));
        self.clock.pause(self.part_of(most));
    }

    fn part_of(&self, most: Duration) -> Duration {
        most.mul_f64((self.random.number() >> 32) as f64 / f64::from(u32::MAX))
    }

    fn store(
        &self,
        key: &str,
        replaced: Option<&Stored>,
        body: &[u8],
    ) -> Result<Option<Stored>, PutError> {
        if let Some(replaced) = replaced {
            check_replaceable(replaced)?;
        }
        let sequence = self.written.fetch_add(1, Ordering::Relaxed) + 1;
        let stamp = StampRecord { writer: self.writer, sequence };
        let mut earlier = replaced.map(|r| r.stamps.clone()).unwrap_or_default();
        earlier.truncate(EARLIER_KEPT);
        let record = ObjectRecord { stamp: Some(stamp), earlier, body: body.to_vec() };
        let bytes = encode_message(FrameKind::Object, &record);
        let version = self.carry_out(&Change { key, bytes, stamp: Some(stamp), replaced })?;
        let mut stamps = record.earlier;
        stamps.insert(0, stamp);
        Ok(version.map(|version| Stored {
            version,
            stamps,
            body: Some(Vec::new()),
            read_only: false,
        }))
    }

    /// Returns the version of the stored object; `None` where it was stored, but may have been overtaken.
    fn carry_out(&self, change: &Change<'_>) -> Result<Option<Version>, PutError> {
        let condition = match change.replaced {
            None => Condition::Absent,
            Some(replaced) => Condition::Is(replaced.version.clone()),
        };
        let mut waiting = Waiting::new();
        // A request of this change may have been carried out, or may still be.
        let mut doubt = false;
        loop {
            let error = match self.service.put(change.key, &change.bytes, &condition) {
                Ok(version) => return Ok(Some(version)),
                Err(error) => error,
            };
            let final_answer = matches!(error, ServiceError::Refused(_) | ServiceError::Invalid(_));
            if final_answer && !doubt {
                return Err(PutError::Failed(io_error(error)));
            }
            doubt |= matches!(error, ServiceError::Unknown(_));
            let found = match self.again(|| self.service.get(change.key)) {
                Ok(object) => Some(opened_or_damaged(object)),
                Err(ServiceError::Absent) => None,
                Err(error) if doubt => return Err(PutError::Unknown(io_error(error))),
                Err(error) => return Err(PutError::Failed(io_error(error))),
            };
            match change.verdict(found.as_ref()) {
                Verdict::Done => return Ok(None),
                Verdict::Lost => return Err(PutError::Lost),
                Verdict::NotKnown if !doubt => return Err(PutError::Lost),
                Verdict::NotKnown => return Err(PutError::Unknown(not_known())),
                Verdict::NotYet if final_answer => return Err(PutError::Unknown(io_error(error))),
                Verdict::NotYet if self.wait(&mut waiting) => {}
                Verdict::NotYet if doubt => return Err(PutError::Unknown(io_error(error))),
                Verdict::NotYet => return Err(PutError::Failed(io_error(error))),
            }
        }
    }

    /// Sends a request again as long as it is not known what became of it. It must do no harm when it is
    /// carried out twice.
    fn again<T>(&self, request: impl Fn() -> Result<T, ServiceError>) -> Result<T, ServiceError> {
        let mut waiting = Waiting::new();
        loop {
            match request() {
                Err(ServiceError::Unknown(_)) if self.wait(&mut waiting) => {}
                answer => return answer,
            }
        }
    }

    /// Waits before a request is sent again. Returns false where that was done for long enough.
    fn wait(&self, waiting: &mut Waiting) -> bool {
        if waiting.waited >= self.patience {
            return false;
        }
        self.clock.pause(waiting.next / 2 + self.part_of(waiting.next / 2));
        waiting.waited += waiting.next;
        waiting.next = (waiting.next * 2).min(PAUSE_MAX);
        true
    }
}

impl Waiting {
    fn new() -> Self {
        Self { waited: Duration::ZERO, next: PAUSE_FIRST }
    }
}

impl Change<'_> {
    fn verdict(&self, found: Option<&Stored>) -> Verdict {
        let Some(found) = found else {
            // Who replaces an object that was removed cannot know whether it had replaced it before.
            return match self.replaced {
                None => Verdict::NotYet,
                Some(_) => Verdict::NotKnown,
            };
        };
        if self.replaced.is_some_and(|replaced| replaced.is_same(found)) {
            return Verdict::NotYet;
        }
        let Some(mine) = self.stamp else {
            return match found.is_tombstone() {
                true => Verdict::Done,
                false => Verdict::Lost,
            };
        };
        if found.stamps.contains(&mine) {
            return Verdict::Done;
        }
        let reaches_back = match self.replaced.and_then(|replaced| replaced.stamps.first()) {
            Some(before) => found.stamps.contains(before),
            // The first version of an object has no earlier stamps. As long as none was left out, the first
            // one is among them, and it is not mine.
            None => !found.stamps.is_empty() && found.stamps.len() <= EARLIER_KEPT,
        };
        if reaches_back { Verdict::Lost } else { Verdict::NotKnown }
    }
}

impl Stored {
    fn is_tombstone(&self) -> bool {
        self.body.is_none() && !self.read_only
    }
}

fn check_replaceable(replaced: &Stored) -> Result<(), PutError> {
    if !replaced.read_only {
        return Ok(());
    }
    let why = "it was written by a newer marcot, and this one may only read it";
    Err(PutError::Failed(io::Error::new(io::ErrorKind::Unsupported, why)))
}

fn not_known() -> io::Error {
    io::Error::other(
        "it was changed so often meanwhile that nobody can tell what became of this change",
    )
}

fn opened(object: Object) -> io::Result<Stored> {
    open_envelope(&object).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// An object that is no envelope counts as one without stamps.
fn opened_or_damaged(object: Object) -> Stored {
    open_envelope(&object).unwrap_or_else(|error| Stored {
        version: object.version,
        stamps: Vec::new(),
        body: Some(Vec::new()),
        read_only: matches!(error, FormatError::NewerFormat { .. }),
    })
}

fn open_envelope(object: &Object) -> Result<Stored, FormatError> {
    let version = object.version.clone();
    if decode(FrameKind::Object, &object.bytes)?.body.is_empty() {
        return Ok(Stored { version, stamps: Vec::new(), body: None, read_only: false });
    }
    let (record, read_only): (ObjectRecord, bool) =
        decode_message(FrameKind::Object, &object.bytes)?;
    let Some(stamp) = record.stamp else {
        return Err(FormatError::Malformed { what: "object", why: "it has no stamp" });
    };
    let mut stamps = record.earlier;
    stamps.insert(0, stamp);
    Ok(Stored { version, stamps, body: Some(record.body), read_only })
}

/// A service's answer as an error of the operating system.
#[must_use]
pub fn io_error(error: ServiceError) -> io::Error {
    let kind = match &error {
        ServiceError::Absent => io::ErrorKind::NotFound,
        ServiceError::Conflict => io::ErrorKind::ResourceBusy,
        ServiceError::Refused(_) => io::ErrorKind::PermissionDenied,
        ServiceError::Invalid(_) => io::ErrorKind::InvalidInput,
        ServiceError::Unknown(_) => io::ErrorKind::TimedOut,
    };
    io::Error::new(kind, error)
}
