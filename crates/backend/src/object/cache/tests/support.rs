//! A world for the tests: a directory, a clock that stands still, a service that counts, a disk that fails.

use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use marcot_format::PoolId;
use marcot_store::{
    Clock, Confined, Disk, DiskFile, FileInfo, InPlace, LocalDisk, Lock, LockMode, SystemClock,
    SystemRandom, Trust, Workers, World,
};

use super::super::*;

/// The time at which the clock stands first, in seconds since 1970.
pub(super) const START_S: i64 = 1_700_000_000;
/// What a file system may take for itself, for each object: the blocks of its list of extents.
pub(super) const SLACK_PER_OBJECT_BYTES: u64 = 16 << 10;

/// A clock that stands still. Pauses take no time where `fast` is true.
pub(super) struct TestClock {
    pub now_s: AtomicI64,
    pub fast: AtomicBool,
}

impl Clock for TestClock {
    fn now_s(&self) -> i64 {
        self.now_s.load(Ordering::Relaxed)
    }

    fn pause(&self, duration: Duration) {
        match self.fast.load(Ordering::Relaxed) {
            true => std::thread::yield_now(),
            false => SystemClock.pause(duration),
        }
    }
}

/// What fails.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// Creating, locking and writing, with this error number; 0: nothing.
    pub writes: AtomicI64,
    /// Reading, with this error number.
    pub reads: AtomicI64,
}

fn fail(number: &AtomicI64) -> io::Result<()> {
    match number.load(Ordering::Relaxed) {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number as i32)),
    }
}

/// The operating system's disk, with failures.
pub(super) struct TestDisk {
    pub disk: LocalDisk,
    pub failures: Arc<Failures>,
}

struct TestFile {
    file: Arc<dyn DiskFile>,
    failures: Arc<Failures>,
}

impl TestDisk {
    fn wrap(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(TestFile { file, failures: Arc::clone(&self.failures) })
    }
}

impl Disk for TestDisk {
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Arc<dyn DiskFile>> {
        fail(&self.failures.writes)?;
        self.disk.create_new(path, mode).map(|file| self.wrap(file))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(path, write).map(|file| self.wrap(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename_new(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_file(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_directory(path)
    }

    fn create_directory(&self, path: &Path, mode: u32) -> io::Result<()> {
        fail(&self.failures.writes)?;
        self.disk.create_directory(path, mode)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.disk.list(path)
    }

    fn visit(&self, path: &Path, each: &mut dyn FnMut(&OsStr) -> bool) -> io::Result<()> {
        self.disk.visit(path, each)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_directory(path)
    }

    fn mode(&self, path: &Path) -> io::Result<u32> {
        self.disk.mode(path)
    }

    fn modified_s(&self, path: &Path) -> io::Result<i64> {
        self.disk.modified_s(path)
    }

    fn file_info(&self, path: &Path) -> io::Result<FileInfo> {
        self.disk.file_info(path)
    }

    fn writable(&self, path: &Path) -> bool {
        self.disk.writable(path)
    }

    fn lock(&self, path: &Path, mode: LockMode, wait: bool) -> io::Result<Option<Box<dyn Lock>>> {
        fail(&self.failures.writes)?;
        self.disk.lock(path, mode, wait)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.disk.free_bytes(path)
    }

    fn confine(&self, directory: &Path, trust: Trust) -> io::Result<Confined> {
        self.disk.confine(directory, trust)
    }

    fn user_id(&self) -> u32 {
        self.disk.user_id()
    }
}

impl DiskFile for TestFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        fail(&self.failures.reads)?;
        self.file.read_at(offset, buf)
    }

    fn read_cached_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        fail(&self.failures.reads)?;
        self.file.read_cached_at(offset, buf)
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        if let Err(error) = fail(&self.failures.writes) {
            // As on a full disk, some of it is written.
            let part = parts.first().map_or(&[][..], |part| &part[..part.len() / 2]);
            let _ = self.file.write_at(offset, &[part]);
            return Err(error);
        }
        self.file.write_at(offset, parts)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.file.allocated_bytes()
    }

    fn is_removed(&self) -> io::Result<bool> {
        self.file.is_removed()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_length(length)
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        self.file.punch(offset, length)
    }

    fn advise(&self, offset: u64, length: u64) {
        self.file.advise(offset, length);
    }
}

/// The content of an object that has this key.
pub(super) fn content(key: &str, range: Range<u64>) -> Vec<u8> {
    let seed = key.bytes().fold(7u64, |hash, byte| hash.wrapping_mul(31) + u64::from(byte));
    let byte = |at: u64| {
        let mixed = (at / 8 + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> (8 * (at % 8))) as u8
    };
    range.map(byte).collect()
}

/// A service whose objects all have one length. It counts what is asked for.
pub(super) struct TestService {
    pub length: u64,
    /// Ranges in the order in which they were asked for.
    pub asked: Mutex<Vec<(String, Range<u64>)>>,
    pub bytes: AtomicU64,
    /// How long an answer takes.
    pub takes: Duration,
    /// It answers with an error.
    pub fails: AtomicBool,
    /// It panics.
    pub panics: AtomicBool,
    /// It sends half of what was asked for.
    pub sends_half: AtomicBool,
}

impl TestService {
    pub(super) fn new(length: u64) -> Arc<Self> {
        Self::slow(length, Duration::ZERO)
    }

    pub(super) fn slow(length: u64, takes: Duration) -> Arc<Self> {
        Arc::new(Self {
            length,
            asked: Mutex::default(),
            bytes: AtomicU64::new(0),
            takes,
            fails: AtomicBool::new(false),
            panics: AtomicBool::new(false),
            sends_half: AtomicBool::new(false),
        })
    }

    pub(super) fn requests(&self) -> usize {
        lock(&self.asked).len()
    }

    pub(super) fn fetched_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl RangeSource for TestService {
    fn fetch(&self, key: &str, range: Range<u64>) -> io::Result<Vec<u8>> {
        lock(&self.asked).push((key.to_owned(), range.clone()));
        SystemClock.pause(self.takes);
        if self.panics.load(Ordering::Relaxed) {
            panic!("on purpose");
        }
        if self.fails.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the service is gone"));
        }
        let end = range.end.min(self.length);
        let mut bytes = content(key, range.start.min(end)..end);
        if self.sends_half.load(Ordering::Relaxed) {
            bytes.truncate(bytes.len() / 2);
        }
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}

/// A directory and what belongs to it.
pub(super) struct Scene {
    root: tempfile::TempDir,
    pub clock: Arc<TestClock>,
    pub failures: Arc<Failures>,
    pub service: Arc<TestService>,
    pub workers: Arc<dyn Workers>,
}

impl Scene {
    /// Jobs run in place.
    pub(super) fn new(length: u64) -> Self {
        Self::with(TestService::new(length), Arc::new(InPlace))
    }

    pub(super) fn with(service: Arc<TestService>, workers: Arc<dyn Workers>) -> Self {
        let (now_s, fast) = (AtomicI64::new(START_S), AtomicBool::new(false));
        Self {
            root: tempfile::tempdir().unwrap(),
            clock: Arc::new(TestClock { now_s, fast }),
            failures: Arc::default(),
            service,
            workers,
        }
    }

    pub(super) fn directory(&self) -> PathBuf {
        self.root.path().join("cache")
    }

    pub(super) fn disk(&self) -> TestDisk {
        TestDisk { disk: LocalDisk::plain(), failures: Arc::clone(&self.failures) }
    }

    pub(super) fn world(&self) -> World {
        World {
            disk: Arc::new(self.disk()),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            random: Arc::new(SystemRandom),
            workers: Arc::clone(&self.workers),
        }
    }

    /// A cache as another process would have it.
    pub(super) fn cache(&self, bytes_max: u64) -> RangeCache {
        RangeCache::with_limit(&self.world(), self.directory(), bytes_max).unwrap()
    }

    /// An object whose length is known.
    pub(super) fn object(&self, cache: &RangeCache, key: &str) -> CachedObject {
        let source = Arc::clone(&self.service) as Arc<dyn RangeSource>;
        cache.object(PoolId(5), key, Some(self.service.length), source)
    }

    /// Reads, and compares with what the service has.
    pub(super) fn check(&self, cache: &RangeCache, key: &str, offset: u64, bytes: usize) {
        let object = self.object(cache, key);
        check(cache, &object, offset, bytes, self.service.length);
    }

    /// All files of objects.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let objects = self.directory().join("objects");
        let shards = std::fs::read_dir(objects).into_iter().flatten();
        let files = shards.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().path()).collect()
    }

    /// What they take.
    pub(super) fn stored_bytes(&self) -> u64 {
        let disk = LocalDisk::plain();
        let bytes = |path: &PathBuf| disk.file_info(path).map_or(0, |info| info.allocated_bytes);
        self.files().iter().map(bytes).sum()
    }
}

/// Reads an object, and compares with what it holds.
pub(super) fn check(
    cache: &RangeCache,
    object: &CachedObject,
    offset: u64,
    bytes: usize,
    length: u64,
) {
    let mut buf = vec![0xEE; bytes];
    let n = cache.read(object, offset, &mut buf).unwrap();
    let end = length.min(offset + bytes as u64);
    assert_eq!(n as u64, end.saturating_sub(offset), "{} at {offset}+{bytes}", object.state.id.key);
    let right = content(&object.state.id.key, offset.min(end)..end);
    assert!(buf[..n] == right, "{} at {offset}+{bytes} is wrong", object.state.id.key);
}

/// Flips a bit of a file.
pub(super) fn flip(path: &Path, at: u64, bit: u8) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
}
