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
use marcot_store::Random;

use crate::fault::{self, Fault};

use super::service::{Condition, ListedObject, Object, ObjectService, ServiceError, Version};
use super::{CreateError, Retry, Settled};

/// Earlier stamps that an object keeps. So many changes of others may come between a writer's request and its
/// reading back.
const EARLIER_KEPT: usize = 32;

/// Length of a tombstone in bytes: a frame without content. Every other object is longer.
pub const TOMBSTONE_BYTES: u64 = frame::FRAME_HEADER_BYTES as u64;

/// The longest pause before the first swap that is tried after one was lost. It grows with every further one.
const MAKE_WAY: Duration = Duration::from_millis(20);
/// It grows so many times at most.
const MAKE_WAY_TIMES_MAX: u32 = 50;

/// The records of a pool as objects of a service.
pub struct Objects {
    settled: Settled,
    random: Arc<dyn Random>,
    writer: u64,
    written: AtomicU64,
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

fn tombstone() -> Vec<u8> {
    encode_message(FrameKind::Object, &ObjectRecord::default())
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

impl Objects {
    /// The objects of a service, for one writer.
    #[must_use]
    pub fn new(settled: Settled, random: Arc<dyn Random>) -> Self {
        let (writer, written) = (random.number(), AtomicU64::new(0));
        Self { settled, random, writer, written }
    }

    /// The service.
    #[must_use]
    pub fn service(&self) -> &dyn ObjectService {
        &**self.settled.service()
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
        self.settled.get(key)?.map(opened).transpose()
    }

    /// As [`Self::get`], also for an object that is no record in an envelope. It has no body then.
    ///
    /// # Errors
    /// What the service says.
    pub fn get_any(&self, key: &str) -> io::Result<Option<Stored>> {
        Ok(self.settled.get(key)?.map(opened_or_damaged))
    }

    /// The first bytes of an object; `None` where there is none.
    ///
    /// # Errors
    /// What the service says.
    pub fn start_of(&self, key: &str, bytes: u64) -> io::Result<Option<Vec<u8>>> {
        Ok(self.settled.get_range(key, 0..bytes)?)
    }

    /// Stores a record under a key that has none. Returns what [`Self::replace`] returns.
    ///
    /// # Errors
    /// See [`PutError`]; `Lost` where there is an object, also a tombstone.
    pub fn create(&self, key: &str, body: &[u8]) -> Result<Option<Stored>, PutError> {
        self.store(key, None, body, self.settled.retry())
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
        self.store(key, Some(replaced), body, self.settled.retry())
    }

    /// As [`Self::replace`], with another patience.
    ///
    /// # Errors
    /// See [`PutError`].
    pub fn replace_with(
        &self,
        retry: &Retry,
        key: &str,
        replaced: &Stored,
        body: &[u8],
    ) -> Result<Option<Stored>, PutError> {
        self.store(key, Some(replaced), body, retry)
    }

    /// Stores a tombstone in place of the version that was read: the record is gone for good.
    ///
    /// # Errors
    /// See [`PutError`]. Of several who do this at the same time, more than one may succeed.
    pub fn bury(&self, key: &str, replaced: &Stored) -> Result<(), PutError> {
        check_replaceable(replaced)?;
        let change = Change { key, bytes: tombstone(), stamp: None, replaced: Some(replaced) };
        self.carry_out(&change, self.settled.retry()).map(drop)
    }

    /// Stores a tombstone under a key that has no object, or one already: no record can be created there any more.
    ///
    /// # Errors
    /// `AlreadyExists` where there is a record; what the service says.
    pub fn forbid(&self, key: &str) -> io::Result<()> {
        match self.settled.create(key, &tombstone()) {
            Ok(_) => Ok(()),
            Err(CreateError::Exists(_)) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(CreateError::Service(error)) => Err(error.into()),
        }
    }

    /// Removes an object. One that does not exist is no error. No record is removed that may be created again
    /// under the same key, because the request may be carried out late.
    ///
    /// # Errors
    /// What the service says.
    pub fn remove(&self, key: &str) -> io::Result<()> {
        Ok(self.settled.remove(key)?)
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
            let page = self.settled.list(prefix, after.as_deref())?;
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
        let most = MAKE_WAY.saturating_mul(attempt.min(MAKE_WAY_TIMES_MAX));
        let chance = (self.random.number() >> 32) as f64 / f64::from(u32::MAX);
        self.settled.retry().wait(most.mul_f64(chance));
    }

    fn store(
        &self,
        key: &str,
        replaced: Option<&Stored>,
        body: &[u8],
        retry: &Retry,
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
        let version =
            self.carry_out(&Change { key, bytes, stamp: Some(stamp), replaced }, retry)?;
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
    fn carry_out(&self, change: &Change<'_>, retry: &Retry) -> Result<Option<Version>, PutError> {
        let condition = match change.replaced {
            None => Condition::Absent,
            Some(replaced) => Condition::Is(replaced.version.clone()),
        };
        let service = self.settled.service();
        // A request of this change may have been carried out, or may still be.
        let mut doubt = false;
        let outcome = retry.run(|_| {
            let error = match service.put(change.key, &change.bytes, &condition) {
                Ok(version) => return Ok(Ok(Some(version))),
                Err(ServiceError::Unknown(_)) if fault::is(Fault::UnknownIsDone) => {
                    return Ok(Ok(None));
                }
                Err(ServiceError::Unknown(_)) if fault::is(Fault::UnknownIsLost) => {
                    return Ok(Err(PutError::Lost));
                }
                Err(error) => error,
            };
            if matches!(error, ServiceError::Refused(_) | ServiceError::Invalid(_)) && !doubt {
                return Err(error);
            }
            doubt |= matches!(error, ServiceError::Unknown(_));
            let found = match service.get(change.key) {
                Ok(object) => Some(opened_or_damaged(object)),
                Err(ServiceError::Absent) => None,
                Err(error) => return Err(error),
            };
            match change.verdict(found.as_ref()) {
                Verdict::Done => Ok(Ok(None)),
                Verdict::Lost => Ok(Err(PutError::Lost)),
                Verdict::NotKnown if !doubt => Ok(Err(PutError::Lost)),
                Verdict::NotKnown => Ok(Err(PutError::Unknown(not_known()))),
                // The same request is sent again.
                Verdict::NotYet => Err(match error {
                    ServiceError::Conflict | ServiceError::Absent => false_conflict(),
                    error => error,
                }),
            }
        });
        match outcome {
            Ok(outcome) => outcome,
            Err(error) if doubt => Err(PutError::Unknown(error.into())),
            Err(error) => Err(PutError::Failed(error.into())),
        }
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
        if found.stamps.contains(&mine) && !fault::is(Fault::StampIgnored) {
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

fn false_conflict() -> ServiceError {
    let why = "the service says that an object was changed meanwhile, and it was not";
    ServiceError::Unknown(why.to_owned())
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
