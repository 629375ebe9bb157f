//! A cache of parts of objects, on the disk of the host. All processes of a user on the host share it.
//!
//! Objects never change (a key has one content), so that nothing here is ever out of date. The cache may lose
//! anything at any time: it is a copy. `docs/decisions/0020-range-cache.md` has the reasons and the figures.
//!
//! Invariants:
//! - What is read from the cache's files is compared with checksums before it is returned. What does not match is
//!   fetched again. [`RangeCache::whole`] is the exception: who reads from that file verifies it.
//! - No read fails because of the cache. What cannot be stored or read there is fetched.
//! - A chunk is fetched once, however many threads and processes of the host ask for it at the same time, as long
//!   as the cache works.
//! - The objects take at most the limit, in all processes together. See `space`.
//! - Nobody waits for ever for a process that was stopped or killed.

mod fetch;
mod file;
mod flight;
mod jobs;
mod keep;
mod layout;
mod place;
mod space;
mod state;
mod streams;
#[cfg(test)]
mod tests;
mod trouble;

use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use marcot_format::PoolId;
use marcot_store::{DiskFile, Running, World};

use file::{Checked, ObjectFile};
use flight::Landed;
pub use layout::{CHUNK_BYTES, OBJECT_BYTES_MAX};
use layout::{ObjectId, Record};
use place::Place;
use space::Bound;
use state::State;
use trouble::Trouble;

/// The smallest limit of a cache in bytes. Whole objects are removed, so that it must hold some.
pub const CACHE_BYTES_MIN: u64 = 256 << 20;
/// Open files of a process. An object that is used again is opened again.
const OPEN_OBJECTS_MAX: usize = 128;
/// A chunk that is here and cannot be read is tried so often before the bytes are fetched past the cache.
const TRIES_MAX: u32 = 3;
/// Of so many reads one tries whether the cache works again. The others fetch just what they need.
const TROUBLED_READS: u64 = 16;
/// The time between two looks for files that were removed, in seconds.
const TIDY_AFTER_S: i64 = 60;

/// Where the bytes of objects come from.
pub trait RangeSource: Send + Sync {
    /// Bytes of an object; fewer than asked only at its end.
    ///
    /// # Errors
    /// What the service says. It is given to everybody who waits for these bytes.
    fn fetch(&self, key: &str, range: Range<u64>) -> io::Result<Vec<u8>>;
}

impl<F: Fn(&str, Range<u64>) -> io::Result<Vec<u8>> + Send + Sync> RangeSource for F {
    fn fetch(&self, key: &str, range: Range<u64>) -> io::Result<Vec<u8>> {
        self(key, range)
    }
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct RangeCache(Arc<Inner>);

/// An object that is read through the cache. Cheap to clone.
#[derive(Clone)]
pub struct CachedObject {
    state: Arc<State>,
    source: Arc<dyn RangeSource>,
    /// Its key or length is beyond what is cached.
    passed_by: bool,
}

/// What the cache has fetched, in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fetched {
    /// Requests.
    pub requests: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Parts of files that were damaged.
    pub damaged: u64,
}

struct Inner {
    place: Place,
    bound: Bound,
    trouble: Trouble,
    objects: Mutex<HashMap<ObjectId, Weak<State>>>,
    /// Objects whose files may be open, in the order in which they were opened.
    open: Mutex<VecDeque<Arc<State>>>,
    jobs: Mutex<Vec<Box<dyn Running>>>,
    troubled_reads: AtomicU64,
    tidied_s: AtomicI64,
    fetches: AtomicU64,
    fetched_bytes: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What [`Inner::read_here`] has found.
enum Here {
    Bytes(usize),
    /// The object ends before these bytes.
    End,
    Missing,
}

impl RangeCache {
    /// Opens the cache in `directory`, which is made where it is missing. Its objects take at most `bytes_max`
    /// bytes, at least [`CACHE_BYTES_MIN`]. Processes that give different limits share the directory all the same;
    /// each keeps to its own.
    ///
    /// # Errors
    /// `InvalidInput`, in one sentence, for a directory of another user, one that others can write to, one that
    /// holds something else, and one of another version; or what the operating system says.
    pub fn open(world: &World, directory: PathBuf, bytes_max: u64) -> io::Result<Self> {
        Self::with_limit(world, directory, bytes_max.max(CACHE_BYTES_MIN))
    }

    fn with_limit(world: &World, directory: PathBuf, bytes_max: u64) -> io::Result<Self> {
        let inner = Arc::new(Inner {
            place: Place::open(world, directory)?,
            bound: Bound::new(bytes_max),
            trouble: Trouble::default(),
            objects: Mutex::default(),
            open: Mutex::default(),
            jobs: Mutex::default(),
            troubled_reads: AtomicU64::new(0),
            tidied_s: AtomicI64::new(0),
            fetches: AtomicU64::new(0),
            fetched_bytes: AtomicU64::new(0),
        });
        inner.shrink_later();
        Ok(Self(inner))
    }

    /// An object of the pool, with its length in bytes where it is known. Its bytes come from `source`.
    #[must_use]
    pub fn object(
        &self,
        pool: PoolId,
        key: &str,
        length: Option<u64>,
        source: Arc<dyn RangeSource>,
    ) -> CachedObject {
        let id = ObjectId::new(pool, key);
        let passed_by = id.is_none() || length.is_some_and(|bytes| bytes > OBJECT_BYTES_MAX);
        let id = id.unwrap_or_else(|| ObjectId { pool, key: key.into() });
        let state = self.0.state(id);
        if let Some(length) = length {
            state.set_length(length);
        }
        CachedObject { state, source, passed_by }
    }

    /// Reads until `buf` is full or the object ends. Fetches what is not here. Returns the number of bytes.
    ///
    /// # Errors
    /// What the service says.
    pub fn read(&self, object: &CachedObject, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let window = self.0.note_read(object, offset, buf.len());
        let mut done = 0;
        let mut tries = 0;
        while done < buf.len() {
            let (at, rest) = (offset + done as u64, &mut buf[done..]);
            let read = match object.is_passed_by(at) {
                true => Here::Missing,
                false => self.0.read_here(object, at, rest, false)?,
            };
            let n = match read {
                Here::Bytes(n) => n,
                Here::End => break,
                Here::Missing => {
                    tries += 1;
                    let past = tries > TRIES_MAX || object.is_passed_by(at) || self.0.is_troubled();
                    let got = match past {
                        true => Some(self.0.read_past(object, at, rest)?),
                        false => self.0.read_fetched(object, at, rest, window)?,
                    };
                    match got {
                        Some(0) => break,
                        Some(n) => n,
                        None => continue,
                    }
                }
            };
            done += n;
            tries = 0;
        }
        Ok(done)
    }

    /// As [`Self::read`], but never waits, neither for the service nor for the medium. So it may read fewer
    /// bytes.
    ///
    /// # Errors
    /// `WouldBlock` where nothing can be read without waiting.
    pub fn read_cached(
        &self,
        object: &CachedObject,
        offset: u64,
        buf: &mut [u8],
    ) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() && !object.is_passed_by(offset + done as u64) {
            match self.0.read_here(object, offset + done as u64, &mut buf[done..], true) {
                Ok(Here::Bytes(n)) => done += n,
                Ok(Here::End) if done == 0 => return Ok(0),
                _ => break,
            }
        }
        if done == 0 && !buf.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.note_read(object, offset, done);
        Ok(done)
    }

    /// True where all of these bytes are here, so that reading them need not wait for the service.
    #[must_use]
    pub fn holds(&self, object: &CachedObject, offset: u64, bytes: u64) -> bool {
        let end = object.state.length().unwrap_or(u64::MAX).min(offset + bytes);
        let mut chunks = offset / CHUNK_BYTES..end.div_ceil(CHUNK_BYTES);
        !object.passed_by
            && end <= OBJECT_BYTES_MAX
            && chunks.all(|chunk| self.0.is_here(&object.state, chunk as u32))
    }

    /// The file in the cache that has all bytes of the object, at the same places, where there is one. It can be
    /// read without this cache. **Its bytes are not verified**, and it may be cut at any time, when another process
    /// removes it. So its reader compares what it reads with checksums of its own. What does not match, or is
    /// short, has to be read by [`Self::read`]. The file is kept open only for the time of a read, because its
    /// space stays taken while it is open.
    #[must_use]
    pub fn whole(&self, object: &CachedObject) -> Option<Arc<dyn DiskFile>> {
        let (state, place) = (&object.state, &self.0.place);
        let whole = state.whole(place).or_else(|| {
            let opens = !object.passed_by && !state.is_open() && self.0.is_here(state, 0);
            opens.then(|| state.whole(place)).flatten()
        });
        let (file, now_s) = whole?;
        if let Some(now_s) = now_s {
            self.0.tidy(now_s);
        }
        Some(file.plain())
    }

    /// Fetches a range in the background. It is a hint.
    pub fn advise(&self, object: &CachedObject, offset: u64, bytes: u64) {
        let end = (offset + bytes).min(OBJECT_BYTES_MAX);
        if !object.passed_by && offset < end {
            let chunks = (offset / CHUNK_BYTES) as u32..end.div_ceil(CHUNK_BYTES) as u32;
            self.0.fetch_ahead(object, chunks);
        }
    }

    /// Fetches in the background what is missing of an object, so that [`Self::whole`] has it. Objects of which most
    /// is here are made whole without this.
    pub fn make_whole(&self, object: &CachedObject) {
        if !object.passed_by {
            self.0.complete(object);
        }
    }

    /// Stores an object that this host has uploaded, so that it need not be fetched. All of its bytes are given.
    pub fn insert(&self, object: &CachedObject, bytes: &[u8]) {
        if !object.passed_by && bytes.len() as u64 <= OBJECT_BYTES_MAX {
            object.state.set_length(bytes.len() as u64);
            self.0.keep(object, 0, bytes);
        }
    }

    /// Forgets what is here of an object: it was removed, or what was read of it was wrong.
    pub fn forget(&self, object: &CachedObject) {
        object.state.close();
        if let Err(error) = self.0.bound.remove(&self.0.place, &object.state.path) {
            tracing::debug!(%error, key = %object.state.id.key, "stays in the cache");
        }
    }

    /// What was fetched so far.
    #[must_use]
    pub fn fetched(&self) -> Fetched {
        Fetched {
            requests: self.0.fetches.load(Ordering::Relaxed),
            bytes: self.0.fetched_bytes.load(Ordering::Relaxed),
            damaged: self.0.trouble.damaged_count(),
        }
    }
}

impl CachedObject {
    fn is_passed_by(&self, at: u64) -> bool {
        self.passed_by || at >= OBJECT_BYTES_MAX
    }
}

impl Inner {
    fn state(&self, id: ObjectId) -> Arc<State> {
        let mut objects = lock(&self.objects);
        if let Some(state) = objects.get(&id).and_then(Weak::upgrade) {
            return state;
        }
        if objects.len() == objects.capacity() {
            objects.retain(|_, state| state.strong_count() > 0);
        }
        let state = Arc::new(State::new(&self.place, id.clone()));
        objects.insert(id, Arc::downgrade(&state));
        state
    }

    /// Reads bytes of one chunk, if it is here.
    fn read_here(
        &self,
        object: &CachedObject,
        at: u64,
        buf: &mut [u8],
        cached: bool,
    ) -> io::Result<Here> {
        let state = &object.state;
        if state.length().is_some_and(|length| at >= length) {
            return Ok(Here::End);
        }
        let (chunk, within) = ((at / CHUNK_BYTES) as u32, (at % CHUNK_BYTES) as usize);
        let Some((file, record)) = self.look(state, chunk) else { return Ok(Here::Missing) };
        match file.read(chunk, &record, within, buf, cached) {
            Ok(Checked::Bytes(0)) => Ok(Here::End),
            Ok(Checked::Bytes(n)) => Ok(Here::Bytes(n)),
            Ok(Checked::Damaged) => {
                self.distrust(state, &file, chunk, &record, &"does not match its checksums");
                Ok(Here::Missing)
            }
            Err(error) if cached => Err(error),
            Err(error) => {
                let why = format!("cannot be read ({error})");
                self.distrust(state, &file, chunk, &record, &why);
                Ok(Here::Missing)
            }
        }
    }

    /// Looks whether a chunk is here.
    fn look(&self, state: &Arc<State>, chunk: u32) -> Option<(ObjectFile, Record)> {
        let look = state.look(&self.place, chunk);
        if look.opened {
            self.note_opened(state);
        }
        if let Some(now_s) = look.now_s {
            self.tidy(now_s);
        }
        look.chunk
    }

    fn is_here(&self, state: &Arc<State>, chunk: u32) -> bool {
        self.look(state, chunk).is_some()
    }

    fn distrust(
        &self,
        state: &State,
        file: &ObjectFile,
        chunk: u32,
        record: &Record,
        why: &dyn Display,
    ) {
        if state.distrust(file, chunk, record) {
            self.trouble.damaged(&state.path.display(), &state.id.key, chunk, why);
        }
    }

    /// Fetches the chunk of `at`, and reads from what was fetched. `None`: it may be here now.
    fn read_fetched(
        self: &Arc<Self>,
        object: &CachedObject,
        at: u64,
        buf: &mut [u8],
        window: u32,
    ) -> io::Result<Option<usize>> {
        let chunk = (at / CHUNK_BYTES) as u32;
        let needed = (at + buf.len() as u64).div_ceil(CHUNK_BYTES).min(u64::from(u32::MAX)) as u32;
        let end = needed.max(chunk + window).min(object.state.chunks()).max(chunk + 1);
        let (first, landed) = self.obtain(object, chunk, needed, end)?;
        match landed {
            Landed::Bytes { bytes, end } if chunk < end => {
                let from = (at - u64::from(first) * CHUNK_BYTES) as usize;
                let bytes = bytes.get(from..).unwrap_or_default();
                let n = bytes.len().min(buf.len());
                buf[..n].copy_from_slice(&bytes[..n]);
                Ok(Some(n))
            }
            _ => Ok(None),
        }
    }

    /// Reads past the cache.
    fn read_past(&self, object: &CachedObject, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fetch(object, at..at + buf.len() as u64)?;
        buf[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    /// True where the cache does not work, except for some reads that try it.
    fn is_troubled(&self) -> bool {
        self.trouble.is_on()
            && !self.troubled_reads.fetch_add(1, Ordering::Relaxed).is_multiple_of(TROUBLED_READS)
    }

    /// Notes a read, so that a sequential reader is recognized. Returns how many chunks are to be fetched where one
    /// is missing.
    fn note_read(self: &Arc<Self>, object: &CachedObject, offset: u64, bytes: usize) -> u32 {
        if object.is_passed_by(offset) {
            return 1;
        }
        let noted = object.state.slot().streams.note(offset, bytes as u64);
        if !noted.ahead.is_empty() {
            self.fetch_ahead(object, noted.ahead);
        }
        noted.window
    }

    /// Keeps the number of open files small. An object that was used since the last look stays open.
    fn note_opened(&self, state: &Arc<State>) {
        let mut open = lock(&self.open);
        open.push_back(Arc::clone(state));
        let mut looks = 2 * open.len();
        while open.len() > OPEN_OBJECTS_MAX && looks > 0 {
            looks -= 1;
            let Some(oldest) = open.pop_front() else { break };
            match oldest.is_open() && oldest.take_recent() {
                true => open.push_back(oldest),
                false => oldest.close(),
            }
        }
    }

    /// Closes, from time to time, files that other processes have removed, so that they take no space.
    fn tidy(&self, now_s: i64) {
        let last = self.tidied_s.load(Ordering::Relaxed);
        if (now_s - last).abs() < TIDY_AFTER_S {
            return;
        }
        self.tidied_s.store(now_s, Ordering::Relaxed);
        lock(&self.open).iter().for_each(|state| state.close_if_removed());
    }
}
