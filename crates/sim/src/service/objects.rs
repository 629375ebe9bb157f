//! The objects of the service, and what a request does to them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{Bound, Range};
use std::sync::Arc;

use marcot_backend::object::service::{
    Condition, ListedObject, Object, Page, ServiceError, Version,
};

use super::{Breach, mix};

/// Objects in a page of a list. Few, so that callers need several pages.
const PAGE_OBJECTS: usize = 7;
/// Limit on the changes that a stale list does not show.
pub(super) const STALE_CHANGES_MAX: usize = 8;
/// A service that checks and stores without a lock lets another request through for this long.
const UNLOCKED_MS: u64 = 50;

/// A request.
#[derive(Debug, Clone)]
pub(super) enum Request {
    Get { key: String },
    GetRange { key: String, range: Range<u64> },
    Put { key: String, bytes: Arc<[u8]>, condition: Condition },
    Remove { key: String },
    List { prefix: String, after: Option<String> },
}

impl Request {
    pub(super) fn changes(&self) -> bool {
        matches!(self, Self::Put { .. } | Self::Remove { .. })
    }

    pub(super) fn is_conditional(&self) -> bool {
        matches!(self, Self::Put { condition, .. } if *condition != Condition::None)
    }

    /// The key, or the prefix of a list.
    pub(super) fn key(&self) -> &str {
        match self {
            Self::Get { key }
            | Self::GetRange { key, .. }
            | Self::Put { key, .. }
            | Self::Remove { key } => key,
            Self::List { prefix, .. } => prefix,
        }
    }
}

/// The answer to a request that succeeded.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Object(Object),
    Bytes(Vec<u8>),
    Stored(Version),
    Removed,
    Page(Page),
}

/// How the service names versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versions {
    /// Each change has a number of its own, as the generation of an object on GCS.
    Counted,
    /// Equal bytes have the same version, as an ETag on S3.
    OfContent,
}

#[derive(Clone)]
struct Stored {
    bytes: Arc<[u8]>,
    version: Version,
    stored_ms: u64,
}

/// See the module.
#[derive(Clone)]
pub(super) struct Objects {
    stored: BTreeMap<String, Stored>,
    versions: Versions,
    changes: u64,
    breach: Option<Breach>,
    /// Keys under which other bytes have replaced those that were there.
    replaced: BTreeSet<String>,
    /// The keys that were changed last, and what stood there before.
    recent: VecDeque<(String, Option<Stored>)>,
}

impl Objects {
    pub(super) fn new(versions: Versions, breach: Option<Breach>) -> Self {
        let (stored, replaced, recent) = (BTreeMap::new(), BTreeSet::new(), VecDeque::new());
        Self { stored, versions, changes: 0, breach, replaced, recent }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &String> {
        self.stored.keys()
    }

    pub(super) fn bytes(&self, key: &str) -> Option<Arc<[u8]>> {
        self.stored.get(key).map(|stored| Arc::clone(&stored.bytes))
    }

    pub(super) fn replaced(&self) -> &BTreeSet<String> {
        &self.replaced
    }

    /// When an object was stored, in milliseconds of simulated time.
    pub(super) fn stored_ms(&self, key: &str) -> Option<u64> {
        self.stored.get(key).map(|stored| stored.stored_ms)
    }

    /// Performs a request. A list does not show the last `hidden` changes.
    pub(super) fn perform(
        &mut self,
        request: &Request,
        now_ms: u64,
        hidden: usize,
    ) -> Result<Answer, ServiceError> {
        match request {
            Request::Get { key } => {
                let stored = self.stored.get(key).ok_or(ServiceError::Absent)?;
                let version = stored.version.clone();
                Ok(Answer::Object(Object { bytes: stored.bytes.to_vec(), version }))
            }
            Request::GetRange { key, range } => {
                let bytes = &self.stored.get(key).ok_or(ServiceError::Absent)?.bytes;
                let at = |place| usize::try_from(place).unwrap_or(usize::MAX).min(bytes.len());
                let (start, end) = (at(range.start), at(range.end));
                Ok(Answer::Bytes(bytes[start.min(end)..end].to_vec()))
            }
            Request::Put { key, bytes, condition } => {
                if !self.holds(key, condition, now_ms) {
                    return Err(ServiceError::Conflict);
                }
                let version = self.version(bytes);
                let bytes = Arc::clone(bytes);
                self.change(
                    key,
                    Some(Stored { bytes, version: version.clone(), stored_ms: now_ms }),
                );
                Ok(Answer::Stored(version))
            }
            Request::Remove { key } => {
                if self.stored.contains_key(key) {
                    self.change(key, None);
                }
                Ok(Answer::Removed)
            }
            Request::List { prefix, after } => {
                Ok(Answer::Page(self.list(prefix, after.as_deref(), hidden)))
            }
        }
    }

    fn holds(&self, key: &str, condition: &Condition, now_ms: u64) -> bool {
        let found = self.stored.get(key);
        match condition {
            Condition::None => true,
            _ if self.breach == Some(Breach::ConditionsIgnored) => true,
            Condition::Absent => found.is_none_or(|found| {
                self.breach == Some(Breach::Unlocked) && now_ms - found.stored_ms < UNLOCKED_MS
            }),
            Condition::Is(version) => match found {
                Some(found) => found.version == *version,
                None => self.breach == Some(Breach::AbsentMatches),
            },
        }
    }

    fn version(&mut self, bytes: &[u8]) -> Version {
        self.changes += 1;
        Version(match self.versions {
            Versions::Counted => self.changes.to_string(),
            Versions::OfContent => format!("{:016x}", mix(0xCBF2_9CE4_8422_2325, bytes)),
        })
    }

    fn change(&mut self, key: &str, to: Option<Stored>) {
        let bytes = to.as_ref().map(|stored| Arc::clone(&stored.bytes));
        let before = match to {
            Some(stored) => self.stored.insert(key.to_owned(), stored),
            None => self.stored.remove(key),
        };
        if let (Some(before), Some(bytes)) = (&before, bytes)
            && before.bytes != bytes
        {
            self.replaced.insert(key.to_owned());
        }
        self.recent.push_back((key.to_owned(), before));
        if self.recent.len() > STALE_CHANGES_MAX {
            self.recent.pop_front();
        }
    }

    fn list(&self, prefix: &str, after: Option<&str>, hidden: usize) -> Page {
        let mut earlier;
        let mut shown = &self.stored;
        if hidden > 0 {
            earlier = self.stored.clone();
            for (key, before) in self.recent.iter().rev().take(hidden) {
                match before {
                    Some(stored) => earlier.insert(key.clone(), stored.clone()),
                    None => earlier.remove(key),
                };
            }
            shown = &earlier;
        }
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let below = shown.range::<str, _>((start, Bound::Unbounded));
        let mut found = below.take_while(|(key, _)| key.starts_with(prefix));
        let page = found.by_ref().take(PAGE_OBJECTS);
        let objects = page.map(|(key, stored)| ListedObject {
            key: key.clone(),
            bytes: stored.bytes.len() as u64,
            stored_s: crate::clock::seconds(stored.stored_ms),
        });
        let objects = objects.collect();
        Page { objects, more: found.next().is_some() }
    }
}
