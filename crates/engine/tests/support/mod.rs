//! A disk over a real directory that fails as a test says; and what must hold for every pool.

#![allow(dead_code, reason = "each test uses a part of it")]

pub mod bucket;
pub mod hosts;
pub mod no_disk;

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use marcot::{
    CheckOptions, CheckReport, CreateOptions, Image, ImageId, Limits, Pool, Result, Store,
};
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::HeadRecord;
use marcot_store::{
    AsyncIo, AsyncRead, AsyncWrite, Confined, Disk, DiskFile, FileInfo, InPlace, IoCompletion,
    LocalDisk, Lock, LockMode, SystemClock, SystemRandom, Trust, World,
};

/// Error numbers of the operating system.
pub const ENOENT: i32 = 2;
pub const EIO: i32 = 5;
pub const EACCES: i32 = 13;
pub const ENOSPC: i32 = 28;

/// What goes wrong.
#[derive(Default)]
pub struct Faults {
    /// Bytes that may still be written before the disk is full; negative: no limit.
    pub room_bytes: AtomicI64,
    /// A directory, and the bytes that its files may take on the medium, if there is a limit.
    pub capacity: Mutex<Option<(PathBuf, u64)>>,
    /// No file can be created.
    pub no_new_files: AtomicBool,
    /// The next sync of a file fails.
    pub fail_sync: AtomicBool,
    /// Syncs of files and directories before the one that fails; negative: none fails.
    pub sync_fails_after: AtomicI64,
    /// Heads cannot be opened, with this error number; 0: they can.
    pub head_errno: AtomicI32,
    /// The same for names of images.
    pub name_errno: AtomicI32,
    /// The same for records of pools.
    pub pool_errno: AtomicI32,
    /// Files in directories of children cannot be looked at or opened, with this error number; 0: they can.
    pub child_errno: AtomicI32,
    /// Changes of the medium before the process counts as killed, so that all others fail; negative: it lives.
    pub lives_for: AtomicI64,
    /// The next removal of a file fails.
    pub fail_remove: AtomicBool,
    /// The file system of the store is read-only.
    pub read_only: AtomicBool,
    /// A directory's name, and the error number with which nothing can be created in such a directory.
    pub create_errno: Mutex<Option<(&'static str, i32)>>,
    /// A directory's name, and the error number with which removals of files in such a directory fail. With
    /// `ENOENT`, another process has removed them.
    pub remove_errno: Mutex<Option<(&'static str, i32)>>,
    /// The user of this process.
    pub user_id: AtomicU32,
    /// Nothing is in the page cache. Asynchronous reads complete when the test lets them.
    pub cold: AtomicBool,
    /// Number of reads or direct writes in flight that may complete.
    pub may_complete: AtomicI64,
    /// Files take direct writes.
    pub direct: AtomicBool,
    /// The write that was started last completes first.
    pub last_first: AtomicBool,
    /// The next direct write fails, with this error number; 0: it does not.
    pub direct_errno: AtomicI32,
    /// The next direct write writes only a half.
    pub direct_short: AtomicBool,
    /// Direct writes that were started.
    pub direct_writes: AtomicI64,
    /// Files and directories that were opened or looked for.
    pub opens: AtomicI64,
    /// Bytes that were read.
    pub read_bytes: AtomicI64,
    /// A directory with copies of files, by their names.
    pub copies: Mutex<Option<PathBuf>>,
}

/// Reads and writes in flight. They complete when the test lets them, or when they are waited for.
struct Waiting {
    faults: Arc<Faults>,
    reads: VecDeque<AsyncRead>,
    writes: VecDeque<AsyncWrite>,
}

impl AsyncIo for Waiting {
    fn has_room(&self) -> bool {
        self.reads.len() + self.writes.len() < 8
    }
    fn takes_writes(&self) -> bool {
        true
    }
    fn start(&mut self, read: AsyncRead) {
        self.reads.push_back(read);
    }
    fn start_write(&mut self, write: AsyncWrite) {
        self.faults.direct_writes.fetch_add(1, Ordering::Relaxed);
        self.writes.push_back(write);
    }
    fn submit(&mut self) {}
    fn take(&mut self) -> Option<IoCompletion> {
        if self.faults.may_complete.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let write = match self.faults.last_first.load(Ordering::Relaxed) {
            true => self.writes.pop_back(),
            false => self.writes.pop_front(),
        };
        if let Some(mut write) = write {
            self.faults.may_complete.fetch_sub(1, Ordering::Relaxed);
            let data = write.data.as_slice();
            let data = match self.faults.direct_short.swap(false, Ordering::Relaxed) {
                true => &data[..data.len() / 2],
                false => data,
            };
            write.result = match self.faults.direct_errno.swap(0, Ordering::Relaxed) {
                0 => write.file.write_at(write.offset, &[data]).map(|()| data.len()),
                errno => Err(io::Error::from_raw_os_error(errno)),
            };
            return Some(IoCompletion::Write(write));
        }
        let mut read = self.reads.pop_front()?;
        self.faults.may_complete.fetch_sub(1, Ordering::Relaxed);
        read.result = read.file.read_at(read.offset, &mut read.buf);
        Some(IoCompletion::Read(read))
    }
    fn wait(&mut self) {
        self.faults.may_complete.fetch_max(1, Ordering::Relaxed);
    }
    fn raw_fd(&self) -> Option<i32> {
        None
    }
}

fn is_below(path: &Path, directory: &str) -> bool {
    path.components().any(|part| part.as_os_str() == directory)
}

impl Faults {
    fn check_open(&self, path: &Path) -> io::Result<()> {
        let faults = [
            (&self.head_errno, path.ends_with("head")),
            (&self.name_errno, is_below(path, "names")),
            (&self.pool_errno, path.ends_with("pool")),
            (&self.child_errno, is_below(path, "children")),
        ];
        for (errno, _) in faults.into_iter().filter(|(_, concerned)| *concerned) {
            match errno.load(Ordering::Relaxed) {
                0 => {}
                errno => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
        Ok(())
    }

    fn check_create(&self, path: &Path) -> io::Result<()> {
        match *self.create_errno.lock().unwrap() {
            Some((directory, errno)) if is_below(path, directory) => {
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => Ok(()),
        }
    }

    /// Counts a change of the medium. Fails where the process counts as killed.
    fn count_change(&self) -> io::Result<()> {
        let next = |left: i64| (left > 0).then(|| left - 1);
        match self.lives_for.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Err(0) => Err(io::Error::from_raw_os_error(EIO)),
            _ => Ok(()),
        }
    }

    fn count_sync(&self) -> io::Result<()> {
        self.count_change()?;
        match self.sync_fails_after.fetch_sub(1, Ordering::Relaxed) {
            0 => Err(io::Error::from_raw_os_error(5)),
            _ => Ok(()),
        }
    }
}

pub struct FaultyDisk {
    inner: Arc<dyn Disk>,
    faults: Arc<Faults>,
}

#[derive(Clone)]
struct FaultyFile {
    path: PathBuf,
    inner: Arc<dyn DiskFile>,
    faults: Arc<Faults>,
}

/// A world whose disk obeys `faults`.
pub fn faulty_world() -> (World, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    faults.room_bytes.store(-1, Ordering::Relaxed);
    faults.sync_fails_after.store(-1, Ordering::Relaxed);
    faults.lives_for.store(-1, Ordering::Relaxed);
    let disk = FaultyDisk { inner: Arc::new(LocalDisk::plain()), faults: Arc::clone(&faults) };
    let (clock, random) = (Arc::new(SystemClock), Arc::new(SystemRandom));
    (World { disk: Arc::new(disk), clock, random, workers: Arc::new(InPlace) }, faults)
}

/// Runs `step` in a process that is killed after each number of changes of the medium in turn, until it is not killed any
/// more and says that it has succeeded. `begin` makes the store each time, and `after` gets what is left: the store, whether
/// the step has succeeded, and the number of changes.
pub fn killed_after_each_change<T>(
    begin: impl Fn(&Path) -> T,
    step: impl Fn(&T, Store) -> bool,
    after: impl Fn(&T, Store, bool, i64),
) {
    let mut kills = 0;
    for changes in 0.. {
        let directory = tempfile::tempdir().unwrap();
        let begun = begin(directory.path());
        let (world, faults) = faulty_world();
        let store = Store::open_with(world, directory.path(), Limits::default()).unwrap();
        faults.lives_for.store(changes, Ordering::Relaxed);
        let done = step(&begun, store);
        let was_killed = faults.lives_for.load(Ordering::Relaxed) == 0;
        after(&begun, Store::open(directory.path()).unwrap(), done, changes);
        if !was_killed {
            assert!(done);
            break;
        }
        kills += 1;
    }
    assert!(kills > 5, "only {kills} steps");
}

impl FaultyDisk {
    fn wrap(&self, path: &Path, inner: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FaultyFile { path: path.to_owned(), inner, faults: Arc::clone(&self.faults) })
    }
}

impl Disk for FaultyDisk {
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Arc<dyn DiskFile>> {
        self.faults.count_change()?;
        if self.faults.no_new_files.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.faults.check_create(path)?;
        self.faults.opens.fetch_add(1, Ordering::Relaxed);
        self.inner.create_new(path, mode).map(|f| self.wrap(path, f))
    }
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        self.faults.check_open(path)?;
        self.faults.opens.fetch_add(1, Ordering::Relaxed);
        self.inner.open(path, write).map(|f| self.wrap(path, f))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.faults.count_change()?;
        self.inner.rename(from, to)
    }
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.faults.count_change()?;
        self.inner.rename_new(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.faults.count_change()?;
        if self.faults.fail_remove.swap(false, Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        match *self.faults.remove_errno.lock().unwrap() {
            Some((directory, errno)) if is_below(path, directory) => {
                if errno == ENOENT {
                    self.inner.remove_file(path)?;
                }
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => self.inner.remove_file(path),
        }
    }
    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        self.faults.count_change()?;
        self.inner.remove_directory(path)
    }
    fn create_directory(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.faults.check_create(path)?;
        self.inner.create_directory(path, mode)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.faults.opens.fetch_add(1, Ordering::Relaxed);
        self.inner.list(path)
    }
    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.faults.count_sync()?;
        self.inner.sync_directory(path)
    }
    fn mode(&self, path: &Path) -> io::Result<u32> {
        self.faults.opens.fetch_add(1, Ordering::Relaxed);
        self.inner.mode(path)
    }
    fn modified_s(&self, path: &Path) -> io::Result<i64> {
        self.inner.modified_s(path)
    }
    fn file_info(&self, path: &Path) -> io::Result<FileInfo> {
        self.faults.check_open(path)?;
        self.faults.opens.fetch_add(1, Ordering::Relaxed);
        self.inner.file_info(path)
    }
    fn user_id(&self) -> u32 {
        self.faults.user_id.load(Ordering::Relaxed)
    }
    fn writable(&self, path: &Path) -> bool {
        !self.faults.read_only.load(Ordering::Relaxed) && self.inner.writable(path)
    }
    fn lock(&self, path: &Path, mode: LockMode, wait: bool) -> io::Result<Option<Box<dyn Lock>>> {
        self.faults.opens.fetch_add(1, Ordering::Relaxed);
        self.inner.lock(path, mode, wait)
    }
    fn async_io(&self) -> Option<Box<dyn AsyncIo>> {
        let faults = Arc::clone(&self.faults);
        Some(Box::new(Waiting { faults, reads: VecDeque::new(), writes: VecDeque::new() }))
    }
    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.inner.free_bytes(path)
    }
    fn confine(&self, directory: &Path, trust: Trust) -> io::Result<Confined> {
        let confined = self.inner.confine(directory, trust)?;
        let disk = FaultyDisk { inner: confined.disk, faults: Arc::clone(&self.faults) };
        Ok(Confined { disk: Arc::new(disk), ..confined })
    }
}

/// Bytes on the medium that the files below a directory take.
pub fn taken_bytes(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let taken = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => taken_bytes(&entry.path()),
        metadata => metadata.map_or(0, |metadata| 512 * metadata.blocks()),
    };
    entries.map(taken).sum()
}

impl FaultyFile {
    fn check_capacity(&self, length: u64) -> io::Result<()> {
        let capacity = self.faults.capacity.lock().unwrap();
        match &*capacity {
            Some((directory, bytes_max)) if taken_bytes(directory) + length > *bytes_max => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }
}

impl DiskFile for FaultyFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read_at(offset, buf);
        let bytes = *read.as_ref().unwrap_or(&0) as i64;
        self.faults.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        read
    }
    fn read_cached_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        match self.faults.cold.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => self.inner.read_at(offset, buf),
        }
    }
    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.faults.count_change()?;
        let length: usize = parts.iter().map(|p| p.len()).sum();
        self.check_capacity(length as u64)?;
        let room = self.faults.room_bytes.load(Ordering::Relaxed);
        if room >= 0 {
            if room < length as i64 {
                // A full disk takes a part.
                let part = &parts[0][..parts[0].len().min(room as usize)];
                let _ = self.inner.write_at(offset, &[part]);
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.faults.room_bytes.store(room - length as i64, Ordering::Relaxed);
        }
        self.inner.write_at(offset, parts)
    }
    fn sync(&self) -> io::Result<()> {
        self.faults.count_sync()?;
        if self.faults.fail_sync.swap(false, Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.inner.sync()
    }
    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }
    fn allocated_bytes(&self) -> io::Result<u64> {
        self.inner.allocated_bytes()
    }
    fn is_removed(&self) -> io::Result<bool> {
        self.inner.is_removed()
    }
    fn set_length(&self, length: u64) -> io::Result<()> {
        self.inner.set_length(length)
    }
    fn direct(&self) -> io::Result<Arc<dyn DiskFile>> {
        match self.faults.direct.load(Ordering::Relaxed) {
            true => Ok(Arc::new(self.clone())),
            false => Err(io::ErrorKind::Unsupported.into()),
        }
    }
    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check_capacity(length)?;
        match self.faults.room_bytes.load(Ordering::Relaxed) {
            room if room >= 0 && room < length as i64 => Err(io::ErrorKind::StorageFull.into()),
            _ => self.inner.reserve(offset, length),
        }
    }
    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.punch(offset, length)
    }
    fn advise(&self, offset: u64, length: u64) {
        self.inner.advise(offset, length);
    }
    fn local_copy(&self) -> Option<Arc<dyn DiskFile>> {
        let copies = self.faults.copies.lock().unwrap();
        LocalDisk::plain().open(&copies.as_ref()?.join(self.path.file_name()?), false).ok()
    }
}

pub const MIB: u64 = 1 << 20;

/// A store whose pool `rbd` holds an image.
pub fn store_with_image(directory: &Path, size_bytes: u64) -> (Store, Pool, ImageId) {
    let store = Store::open(directory).unwrap();
    let pool = store.pool("rbd").unwrap();
    let options = CreateOptions::sized(size_bytes);
    let id = pool.create("image", &options).unwrap();
    (store, pool, id)
}

/// Bytes that differ for every seed.
pub fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

/// The segment files of a pool, of one kind by its letter.
pub fn segments(pool: &Pool, letter: char) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for author in std::fs::read_dir(pool.directory().join("segments")).unwrap() {
        for file in std::fs::read_dir(author.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if path.file_name().unwrap().to_str().unwrap().starts_with(letter) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Opens an image, changes it, and closes it.
pub fn run<T>(pool: &Pool, id: ImageId, change: impl FnOnce(&mut Image) -> Result<T>) -> Result<T> {
    let mut image = pool.open(id)?;
    let done = change(&mut image);
    image.close()?;
    done
}

/// As [`run`], for a change that returns anything.
pub fn changed<T>(pool: &Pool, id: ImageId, change: impl FnOnce(&mut Image) -> T) -> T {
    run(pool, id, |image| Ok(change(image))).unwrap()
}

/// The head of an image, as it lies on disk.
pub fn head_of(pool: &Pool, id: ImageId) -> HeadRecord {
    let bytes = std::fs::read(pool.image_directory(id).join("head")).unwrap();
    decode_message(FrameKind::Head, &bytes).unwrap().0
}

/// Changes the head of an image on disk.
pub fn change_head(pool: &Pool, id: ImageId, change: impl FnOnce(&mut HeadRecord)) {
    let mut head = head_of(pool, id);
    change(&mut head);
    let path = pool.image_directory(id).join("head");
    std::fs::write(path, encode_message(FrameKind::Head, &head)).unwrap();
}

/// Shows a directory, and everything below it, to `visit`.
pub fn each(directory: &Path, visit: &mut dyn FnMut(&Path)) {
    visit(directory);
    let is_directory = std::fs::symlink_metadata(directory).unwrap().is_dir();
    if is_directory {
        for entry in std::fs::read_dir(directory).unwrap() {
            each(&entry.unwrap().path(), visit);
        }
    }
}

/// Gives a directory, and everything below it, to another user. Only root may do that.
pub fn give_away(directory: &Path, user: u32) {
    each(directory, &mut |path| std::os::unix::fs::lchown(path, Some(user), None).unwrap());
}

/// Damages the head of an image on disk.
pub fn damage_head(pool: &Pool, id: ImageId) {
    let path = pool.image_directory(id).join("head");
    let last = std::fs::metadata(&path).unwrap().len() - 1;
    flip_byte(&path, last);
}

/// Flips a bit of a byte of a file.
pub fn flip_byte(path: &Path, offset: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
}

/// What `check` finds in a pool, data included, and whether it repairs that.
pub fn checked(store: &Store, pool: &Pool, repair: bool) -> CheckReport {
    let options = CheckOptions { repair, ..CheckOptions::default() };
    store.check(pool, &options, &mut |_, _| {}).unwrap()
}

/// Checks a pool, data included, and finds nothing.
pub fn assert_sound(store: &Store, pool: &Pool) {
    let report = checked(store, pool, false);
    assert!(report.findings.is_empty(), "{}: {:#?}", pool.name(), report.findings);
}
