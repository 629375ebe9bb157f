//! Segments in a bucket.
//!
//! A segment is written in a directory of the owner's host, as on a local back end, and uploaded as a whole once
//! nobody writes to it any more. An upload stores an object only where there is none of that key, so that no key
//! ever holds two contents (I9).
//!
//! An owner that was replaced may still upload a segment that its successor has recovered from the log and
//! uploads too. Both begin with the same bytes, which are all that a root of the successor names.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use marcot_format::record::{OwnerRecord, SegmentMarks};
use marcot_format::segment::SegmentKind;
use marcot_format::{ImageId, PoolId};
use marcot_store::{Clock, Disk, DiskFile, Random};

use super::cache::{CachedObject, RangeCache, RangeSource};
use super::keys;
use super::retry::{Patience, Retry};
use super::service::{Condition, ObjectService, ServiceError};
use super::settled::{CreateError, Settled};
use super::tally::Tally;
use crate::fault::{self, Fault};
use crate::{SegmentKey, SegmentSet, Segments, Shipping};

/// The directory of this host for a pool in a bucket.
#[derive(Clone)]
pub struct HostDirectory {
    /// Reaches the directory.
    pub disk: Arc<dyn Disk>,
    /// The directory.
    pub path: PathBuf,
    /// Its segments, as those of a pool in this directory.
    pub segments: Arc<dyn Segments>,
    /// Time, for waits.
    pub clock: Arc<dyn Clock>,
    /// Random numbers, for names.
    pub random: Arc<dyn Random>,
    /// Random number of the directory.
    pub number: u64,
    /// The host's name, for people.
    pub host_name: String,
}

/// See the module. One serves all images of the pool in this process. Cheap to clone.
#[derive(Clone)]
pub struct ObjectSegments(pub(super) Arc<Inner>, pub(super) Option<Arc<Tally>>);

pub(super) struct Inner {
    pub service: Requests,
    pub host: HostDirectory,
    pub ships_flushes: bool,
    cache: Option<PoolCache>,
    state: Mutex<State>,
}

/// The service of the pool, with the patience that each kind of request needs.
pub(super) struct Requests {
    /// For what somebody waits to read.
    pub reading: Settled,
    /// For what was acknowledged and has to be stored.
    pub storing: Settled,
    /// For what can be left undone.
    pub tidying: Settled,
    pub io_timeout: Option<Duration>,
}

impl Requests {
    fn new(service: &Arc<dyn ObjectService>, retry: &Retry, patience: Patience) -> Self {
        let by = |policy| Settled::new(Arc::clone(service), retry.with_policy(policy));
        Self {
            reading: by(patience.reading()),
            storing: by(patience.storing()),
            tidying: by(patience.tidying()),
            io_timeout: patience.io_timeout(),
        }
    }

    pub(super) fn show(&self, key: &str) -> String {
        self.storing.show(key)
    }
}

/// The cache of the host, for the objects of a pool.
#[derive(Clone)]
pub struct PoolCache {
    /// The pool.
    pub pool: PoolId,
    /// The cache, which all pools share.
    pub cache: RangeCache,
}

#[derive(Default)]
struct State {
    /// Images that this process owns. While the log of an image is replayed: the number from which on its data
    /// segments are those that lie on this host, whatever an owner before has uploaded.
    owned: HashMap<ImageId, Option<u32>>,
    /// Segments that were uploaded and still lie on this host.
    uploaded: HashSet<SegmentKey>,
    /// Lengths of segments, as lists have shown them.
    lengths: HashMap<SegmentKey, u64>,
}

/// True where a stored segment holds all groups of one that was to be stored. Behind the last group there may be
/// room that was preallocated.
fn holds(stored: &[u8], bytes: &[u8]) -> bool {
    let common = stored.len().min(bytes.len());
    stored[..common] == bytes[..common] && bytes[common..].iter().all(|byte| *byte == 0)
}

/// An error of the service, as one of the operating system.
pub(super) fn io_error(shown: &str, error: ServiceError) -> io::Error {
    let kind = match error {
        ServiceError::Absent => return io::ErrorKind::NotFound.into(),
        ServiceError::Conflict => return io::ErrorKind::AlreadyExists.into(),
        ServiceError::Refused(_) => io::ErrorKind::PermissionDenied,
        ServiceError::Unknown(_) => io::ErrorKind::TimedOut,
        ServiceError::Invalid(_) => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("{shown}: {error}"))
}

impl ObjectSegments {
    /// `ships_flushes`: a flush is durable only when the service has stored it. Without a cache, every read asks
    /// the service. All requests wait as long as it takes.
    #[must_use]
    pub fn new(
        service: Arc<dyn ObjectService>,
        host: HostDirectory,
        ships_flushes: bool,
        cache: Option<PoolCache>,
    ) -> Self {
        let patience = Patience::Guests { io_timeout: None };
        let (clock, random) = (Arc::clone(&host.clock), Arc::clone(&host.random));
        let name = service.show("");
        let retry = Retry::by(clock, random, patience.storing(), name, Arc::default());
        Self::patient(service, &retry, patience, host, ships_flushes, cache)
    }

    /// As [`Self::new`]. Requests wait as `patience` says, and what the log says of an outage is shared with
    /// `retry`.
    #[must_use]
    pub fn patient(
        service: Arc<dyn ObjectService>,
        retry: &Retry,
        patience: Patience,
        host: HostDirectory,
        ships_flushes: bool,
        cache: Option<PoolCache>,
    ) -> Self {
        let service = Requests::new(&service, retry, patience);
        let inner = Inner { service, host, ships_flushes, cache, state: Mutex::default() };
        Self(Arc::new(inner), None)
    }

    /// The same, with what the host has asked of the service.
    #[must_use]
    pub fn with_tally(self, tally: Arc<Tally>) -> Self {
        Self(self.0, Some(tally))
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn own(&self, image: ImageId, log_from: Option<u32>) {
        self.state().owned.insert(image, log_from);
    }

    pub(super) fn owns(&self, image: ImageId) -> bool {
        self.state().owned.contains_key(&image)
    }

    pub(super) fn disown(&self, image: ImageId) {
        self.state().owned.remove(&image);
    }

    /// Stores an object where there is none. `Some`: there is one, with these other bytes.
    pub(super) fn create_object(
        &self,
        object: &str,
        bytes: &[u8],
    ) -> Result<Option<Vec<u8>>, ServiceError> {
        match self.service.storing.create(object, bytes) {
            Ok(_) => Ok(None),
            Err(CreateError::Exists(found)) => Ok(Some(found.bytes)),
            Err(CreateError::Service(error)) => Err(error),
        }
    }

    /// The bytes of a segment on this host.
    fn staged_bytes(&self, key: SegmentKey) -> io::Result<Vec<u8>> {
        let file = self.host.segments.open(key, false)?;
        let mut bytes = vec![0; usize::try_from(file.length()?).unwrap_or(usize::MAX)];
        let n = file.read_at(0, &mut bytes)?;
        bytes.truncate(n);
        Ok(bytes)
    }

    fn upload(&self, key: SegmentKey) -> io::Result<()> {
        // The segment is part of a log that this host may have to replay. After a power cut, it must not have less of it
        // than the object, or other bytes at its end: the object could never be made again.
        self.host.segments.open(key, false)?.sync()?;
        let bytes = self.staged_bytes(key)?;
        let object = keys::segment(key);
        let shown = self.service.show(&object);
        if fault::is(Fault::UploadReplaces) {
            let service = self.service.storing.service();
            while let Err(error) = service.put(&object, &bytes, &Condition::None) {
                if !matches!(error, ServiceError::Unknown(_)) {
                    return Err(io_error(&shown, error));
                }
            }
            return Ok(());
        }
        match self.create_object(&object, &bytes).map_err(|error| io_error(&shown, error))? {
            // An owner before has stored it, with all that was recovered from its log, and perhaps more.
            Some(found) if holds(&found, &bytes) => Ok(()),
            Some(_) => {
                let message = format!("{shown} holds other bytes than the segment of this host");
                Err(io::Error::new(io::ErrorKind::InvalidData, message))
            }
            None => Ok(()),
        }
    }

    pub(super) fn seal_one(&self, key: SegmentKey) -> io::Result<()> {
        if self.state().uploaded.contains(&key) {
            return Ok(());
        }
        match self.upload(key) {
            // It was uploaded and removed from this host before.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            outcome => outcome?,
        }
        self.state().uploaded.insert(key);
        Ok(())
    }

    /// The segment as an object of the cache.
    fn cached(self: &Arc<Self>, key: SegmentKey, length: Option<u64>) -> Option<Cached> {
        let PoolCache { pool, cache } = self.cache.as_ref()?;
        let source: Arc<dyn RangeSource> = Arc::new(Source(Arc::clone(self)));
        let object = cache.object(*pool, &keys::segment(key), length, source);
        Some(Cached { cache: cache.clone(), object })
    }

    pub(super) fn seal_set(&self, set: SegmentSet, below: &SegmentMarks) -> io::Result<()> {
        let mut keys = self.host.segments.list(set)?;
        keys.retain(|key| key.sequence < below.of(key.kind));
        // Data first: pages name it.
        keys.sort_unstable();
        keys.into_iter().try_for_each(|key| self.seal_one(key))
    }

    /// A head names only segments of this image that were uploaded: they need not lie on this host any more. The log
    /// behind that head stays, from this number on. Some of it may be uploaded already, for a head that is not durable yet.
    pub(super) fn forget_uploaded(self: &Arc<Self>, image: ImageId, log_from: u32) {
        let mut state = self.state();
        if let Some(log_from) = state.owned.get_mut(&image) {
            *log_from = None;
        }
        let is_covered = |key: &SegmentKey| {
            let is_log = key.kind == SegmentKind::Data && key.sequence >= log_from;
            key.set.author == image && !is_log
        };
        let mut mine: Vec<SegmentKey> = state.uploaded.iter().copied().filter(is_covered).collect();
        drop(state);
        mine.sort_unstable();
        for key in mine {
            // What was written last is likely to be read.
            if let (Some(cached), Ok(bytes)) = (self.cached(key, None), self.staged_bytes(key)) {
                cached.cache.insert(&cached.object, &bytes);
            }
            // While it lies here, it counts as uploaded, so that it is not uploaded once more.
            match self.host.segments.remove(key) {
                Ok(_) => drop(self.state().uploaded.remove(&key)),
                Err(error) => tracing::debug!(%error, "an uploaded segment stays on this host"),
            }
        }
    }

    pub(super) fn host_record(&self) -> OwnerRecord {
        OwnerRecord {
            host: self.host.number,
            host_name: self.host.host_name.clone(),
            process_id: self.host.disk.process_id(),
            ..OwnerRecord::default()
        }
    }

    /// The segment in the bucket.
    fn remote(self: &Arc<Self>, key: SegmentKey) -> io::Result<Arc<dyn DiskFile>> {
        let length = self.state().lengths.get(&key).copied();
        let (inner, cached) = (Arc::clone(self), self.cached(key, length));
        let file = RemoteFile { inner, key, cached, length: Mutex::new(length) };
        if length.is_none() {
            // This shows that it exists. The header is read next anyway.
            file.read_at(0, &mut [0; 1])?;
        }
        Ok(Arc::new(file))
    }
}

impl Segments for ObjectSegments {
    fn create(&self, key: SegmentKey, start: &[u8]) -> io::Result<Arc<dyn DiskFile>> {
        self.0.host.segments.create(key, start)
    }

    fn reuse(&self, _: SegmentKey, _: SegmentKey, _: &[u8]) -> io::Result<Arc<dyn DiskFile>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn open(&self, key: SegmentKey, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        let staged = &self.0.host.segments;
        if write {
            return match staged.open(key, true) {
                // What was uploaded is never written again.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.0.remote(key).and(Err(io::ErrorKind::Unsupported.into()))
                }
                opened => opened,
            };
        }
        let own = match key.set.copies {
            0 => self.0.state().owned.get(&key.set.author).copied(),
            _ => None,
        };
        let Some(log_from) = own else {
            // What lies on this host may be the rest of an owner that another host has replaced.
            return match self.0.remote(key) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => staged.open(key, false),
                opened => opened,
            };
        };
        let only_staged =
            key.kind == SegmentKind::Data && log_from.is_some_and(|from| key.sequence >= from);
        match staged.open(key, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !only_staged => {
                self.0.remote(key)
            }
            opened => opened,
        }
    }

    fn open_log(&self, key: SegmentKey) -> io::Result<Arc<dyn DiskFile>> {
        match self.0.owns(key.set.author) || fault::is(Fault::UploadReplayed) {
            true => self.open(key, false),
            false => self.0.host.segments.open(key, false),
        }
    }

    fn settle(&self, key: SegmentKey) -> io::Result<()> {
        match self.0.host.segments.settle(key) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            settled => settled,
        }
    }

    fn remove(&self, key: SegmentKey) -> io::Result<u64> {
        let object = keys::segment(key);
        let removed = self.0.service.tidying.remove(&object);
        removed.map_err(|error| io_error(&self.0.service.show(&object), error))?;
        let length = {
            let mut state = self.0.state();
            state.uploaded.remove(&key);
            state.lengths.remove(&key)
        };
        if let Some(cached) = self.0.cached(key, None) {
            cached.cache.forget(&cached.object);
        }
        match self.0.host.segments.remove(key) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(length.unwrap_or(0)),
            removed => removed,
        }
    }

    fn list(&self, set: SegmentSet) -> io::Result<Vec<SegmentKey>> {
        let mut keys = self.0.host.segments.list(set)?;
        let known: HashSet<SegmentKey> = keys.iter().copied().collect();
        self.0.list_objects(&keys::set(set), |object, bytes| {
            if let Some(key) = keys::parse_segment(object) {
                self.0.state().lengths.insert(key, bytes);
                if !known.contains(&key) {
                    keys.push(key);
                }
            }
        })?;
        Ok(keys)
    }

    fn create_set(&self, set: SegmentSet) -> io::Result<()> {
        self.0.host.segments.create_set(set)
    }

    fn remove_set(&self, set: SegmentSet) -> io::Result<()> {
        match self.0.host.segments.remove_set(set) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn sets(&self) -> io::Result<Vec<SegmentSet>> {
        let mut sets: BTreeSet<SegmentSet> = self.0.host.segments.sets()?.into_iter().collect();
        self.0.list_objects(keys::segments(), |object, _| {
            sets.extend(keys::parse_segment(object).map(|key| key.set));
        })?;
        Ok(sets.into_iter().collect())
    }

    /// One list shows them all; a list for each set would be a request for each.
    fn by_set(&self) -> io::Result<Vec<(SegmentSet, Vec<SegmentKey>)>> {
        let mut all: BTreeMap<SegmentSet, BTreeSet<SegmentKey>> = BTreeMap::new();
        for set in self.0.host.segments.sets()? {
            all.entry(set).or_default().extend(self.0.host.segments.list(set)?);
        }
        self.0.list_objects(keys::segments(), |object, bytes| {
            if let Some(key) = keys::parse_segment(object) {
                self.0.state().lengths.insert(key, bytes);
                all.entry(key.set).or_default().insert(key);
            }
        })?;
        Ok(all.into_iter().map(|(set, keys)| (set, keys.into_iter().collect())).collect())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.0.host.segments.free_bytes()
    }

    fn keep_reserve(&self, bytes: u64) {
        self.0.host.segments.keep_reserve(bytes);
    }

    fn has_reserve(&self) -> bool {
        self.0.host.segments.has_reserve()
    }

    fn give_up_reserve(&self) -> bool {
        self.0.host.segments.give_up_reserve()
    }

    fn show(&self, key: SegmentKey) -> String {
        self.0.service.show(&keys::segment(key))
    }

    fn shipping(&self) -> Option<Arc<dyn Shipping>> {
        Some(Arc::new(self.clone()))
    }
}

impl Inner {
    /// Calls `each` with the key and the length of every object under a prefix.
    pub(super) fn list_objects(&self, prefix: &str, each: impl FnMut(&str, u64)) -> io::Result<()> {
        self.list_by(&self.service.tidying, prefix, each)
    }

    fn list_by(
        &self,
        requests: &Settled,
        prefix: &str,
        mut each: impl FnMut(&str, u64),
    ) -> io::Result<()> {
        let mut after: Option<String> = None;
        loop {
            let page = requests.list(prefix, after.as_deref());
            let page = page.map_err(|error| io_error(&self.service.show(prefix), error))?;
            page.objects.iter().for_each(|object| each(&object.key, object.bytes));
            match page.objects.last() {
                Some(last) if page.more => after = Some(last.key.clone()),
                _ => return Ok(()),
            }
        }
    }
}

/// Where the cache has the bytes of objects from.
struct Source(Arc<Inner>);

impl RangeSource for Source {
    fn fetch(&self, object: &str, range: Range<u64>) -> io::Result<Vec<u8>> {
        let service = &self.0.service;
        let read = service.reading.get_range(object, range);
        let read = read.map_err(|error| io_error(&service.show(object), error))?;
        read.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// An object, and the cache that may have it.
struct Cached {
    cache: RangeCache,
    object: CachedObject,
}

/// A segment in the bucket, which is only read.
struct RemoteFile {
    inner: Arc<Inner>,
    key: SegmentKey,
    cached: Option<Cached>,
    length: Mutex<Option<u64>>,
}

impl DiskFile for RemoteFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(Cached { cache, object }) = &self.cached {
            return cache.read(object, offset, buf);
        }
        let source = Source(Arc::clone(&self.inner));
        let bytes = source.fetch(&keys::segment(self.key), offset..offset + buf.len() as u64)?;
        let n = bytes.len().min(buf.len());
        buf[..n].copy_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn read_cached_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        match &self.cached {
            Some(Cached { cache, object }) => cache.read_cached(object, offset, buf),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn waits_for_service(&self) -> bool {
        true
    }

    fn local_copy(&self) -> Option<Arc<dyn DiskFile>> {
        let Cached { cache, object } = self.cached.as_ref()?;
        cache.whole(object)
    }

    fn write_at(&self, _: u64, _: &[&[u8]]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// It is durable: it was uploaded.
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        let mut length = self.length.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = *length {
            return Ok(known);
        }
        let object = keys::segment(self.key);
        let mut found = None;
        self.inner.list_by(&self.inner.service.reading, &object, |key, bytes| {
            if key == object {
                found = Some(bytes);
            }
        })?;
        *length = found;
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.length()
    }

    fn set_length(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn advise(&self, offset: u64, length: u64) {
        if let Some(Cached { cache, object }) = &self.cached {
            cache.advise(object, offset, length);
        }
    }
}

/// A file of a host's directory that says which terms of an image its files belong to.
pub(super) fn term_path(directory: &Path, image: ImageId) -> PathBuf {
    directory.join("terms").join(image.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_segment_may_be_longer_or_lack_preallocated_room() {
        assert!(holds(b"abc", b"abc"));
        assert!(holds(b"abcdef", b"abc"));
        assert!(holds(b"abc", b"abc\0\0"));
        assert!(!holds(b"abc", b"abcd"));
        assert!(!holds(b"abd", b"abc"));
    }
}
