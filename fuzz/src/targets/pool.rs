//! A whole pool that another user made: files, links, sockets, FIFOs, device nodes, wrong owners.
//!
//! An input is a list of changes to a small pool that marcot wrote. The pool is attached to a store
//! of one's own, and looked at in every way that only reads; then the other user's store is looked at,
//! as root would. Promises besides those of every target: nothing in the pool changes, nothing of
//! one's own changes, nothing is waited for.
//!
//! Run as root, the pool belongs to another user; otherwise that cannot be made, and the pool is one's
//! own: then repairs are left out.

use std::cell::RefCell;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use marcot::{
    BlockDevice, CheckOptions, CloneOptions, CreateOptions, Image, Namespace, Pool, Read, Store,
};
use marcot_format::frame::{FrameKind, encode, encode_message};
use marcot_format::record::{AttachedRecord, PoolRecord};
use marcot_store::{InPlace, LocalDisk, Random, SystemClock, World};
use rustix::fs::{CWD, FileType, Mode};

/// The other user, and a third one.
const OTHER: u32 = 64_003;
const THIRD: u32 = 64_004;
/// Bytes of an input that make one change.
const CHANGE_BYTES: usize = 8;
const CHANGES_MAX: usize = 24;
/// Kinds of changes.
const KINDS: u8 = 13;
/// Bytes read at each place of an image.
const READ_BYTES: usize = 64 << 10;
/// Longest file that a change makes; most of it is a hole.
const FILE_BYTES_MAX: u64 = 1 << 30;
const NAMES: [&str; 4] = ["%1b%5b2J%0arbd%2fforged", "plain", "%2e%2e", ".hidden"];

/// The same numbers in every run, so that an input means the same.
struct Counting(AtomicU64);

impl Random for Counting {
    fn number(&self) -> u64 {
        0x1000 + self.0.fetch_add(1, Ordering::Relaxed)
    }
}

fn world() -> World {
    World {
        disk: Arc::new(LocalDisk::plain()),
        clock: Arc::new(SystemClock),
        random: Arc::new(Counting(AtomicU64::new(0))),
        workers: Arc::new(InPlace),
    }
}

/// What stays from one input to the next.
struct Scene {
    root: tempfile::TempDir,
    /// The other user's store as marcot wrote it: directories, then files.
    directories: Vec<PathBuf>,
    files: Vec<(PathBuf, Vec<u8>)>,
    foreign: bool,
}

thread_local! {
    static SCENE: RefCell<Option<Scene>> = const { RefCell::new(None) };
}

fn every(directory: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        found.push(path.clone());
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            every(&path, found);
        }
    }
}

/// Writes an image, its snapshot, and a clone of that.
fn fill(pool: &Pool) {
    let options = CreateOptions::sized(1 << 30);
    let id = pool.create("parent", &options).unwrap();
    let mut parent = pool.open(id).unwrap();
    for i in 0..4 {
        parent.write_at(i << 24, &[i as u8 + 1; 8192]).unwrap();
    }
    parent.snapshot("s").unwrap();
    parent.protect("s").unwrap();
    parent.close().unwrap();
    let clone = CloneOptions::default();
    let child = pool.snapshot(id, "s").clone_to(pool, "child", &clone).unwrap();
    let mut child = pool.open(child).unwrap();
    child.write_at(5000, &[9; 9000]).unwrap();
    child.flush().unwrap();
    // Its log is left to be replayed.
    drop(child);
}

impl Scene {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let made = root.path().join("made");
        let store = Store::open_in(world(), &made).unwrap();
        fill(&store.pool("rbd").unwrap());
        let (mut directories, mut files) = (Vec::new(), Vec::new());
        let mut all = Vec::new();
        every(&made, &mut all);
        for path in all {
            let name = path.strip_prefix(&made).unwrap().to_owned();
            match path.is_dir() {
                true => directories.push(name),
                false => files.push((name, fs::read(&path).unwrap())),
            }
        }
        let pool_record =
            PoolRecord { pool_id: store.pool("rbd").unwrap().id().0, ..Default::default() };
        fs::remove_dir_all(&made).unwrap();
        let own = Store::open(&root.path().join("own")).unwrap();
        fill(&own.pool("rbd").unwrap());
        read_own(&own);
        let foreign = rustix::process::geteuid().is_root();
        let scene = Self { root, directories, files, foreign };
        let attached = AttachedRecord {
            directory: scene.other().join("pools/rbd").to_str().unwrap().to_owned(),
            pool_id: pool_record.pool_id,
            owner: scene.foreign.then_some(OTHER),
            ..AttachedRecord::default()
        };
        let place = scene.own().join("attached");
        fs::create_dir(&place).unwrap();
        fs::write(place.join("hostile"), encode_message(FrameKind::Attached, &attached)).unwrap();
        scene
    }

    fn own(&self) -> PathBuf {
        self.root.path().join("own")
    }

    fn other(&self) -> PathBuf {
        self.root.path().join("other")
    }

    /// Makes the other user's store with the changes of an input.
    fn make(&self, data: &[u8]) {
        let other = self.other();
        let _ = fs::remove_dir_all(&other);
        fs::create_dir(&other).unwrap();
        for name in &self.directories {
            fs::create_dir(other.join(name)).unwrap();
        }
        for (name, bytes) in &self.files {
            fs::write(other.join(name), bytes).unwrap();
        }
        for change in data.chunks_exact(CHANGE_BYTES).take(CHANGES_MAX) {
            // What cannot be done, because of a change before, is left out.
            let _ = self.change(change);
        }
        if !self.foreign {
            return;
        }
        // It is the other user who did all that. A hard link to a file of one's own stays one's own.
        let mut all = vec![other.clone()];
        every(&other, &mut all);
        for path in all {
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.uid() != THIRD && (meta.is_dir() || meta.nlink() == 1) {
                lchown(path, Some(OTHER), None).unwrap();
            }
        }
    }

    fn change(&self, change: &[u8]) -> std::io::Result<()> {
        let number = u32::from_le_bytes([change[4], change[5], change[6], change[7]]);
        let at = usize::from(u16::from_le_bytes([change[2], change[3]]));
        let (name, bytes) = &self.files[usize::from(change[1]) % self.files.len()];
        let path = self.other().join(name);
        let directory = self.other().join(&self.directories[at % self.directories.len()]);
        let place = if number & 1 == 0 { path.clone() } else { directory.clone() };
        // What a change before has put there is not written through: it is not this user's.
        let own = |path: &Path| {
            fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.nlink() == 1)
        };
        let kind = change[0] % KINDS;
        if matches!(kind, 0 | 1 | 7) && !own(&path) || kind == 11 && !own(&place) {
            return Ok(());
        }
        let gone = || match fs::symlink_metadata(&place)?.is_dir() {
            true => fs::remove_dir_all(&place),
            false => fs::remove_file(&place),
        };
        match kind {
            // A changed record whose checksum is right, as far as it is a record.
            0 if bytes.starts_with(b"marcot\0\n") => {
                let mut body = bytes[32..].to_vec();
                let length = body.len().max(1);
                if let Some(byte) = body.get_mut(at % length) {
                    *byte = number as u8;
                }
                let kind = [FrameKind::Store, FrameKind::Pool, FrameKind::Head, FrameKind::Name]
                    .into_iter()
                    .find(|kind| *kind as u16 == u16::from_le_bytes([bytes[10], bytes[11]]))
                    .unwrap_or(FrameKind::Child);
                fs::write(&path, encode(kind, &body))
            }
            0 | 1 => {
                let mut bytes = bytes.clone();
                let length = bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(number as usize % length) {
                    *byte ^= change[3] | 1;
                }
                fs::write(&path, bytes)
            }
            2 => {
                gone()?;
                let images = self.own().join("pools/rbd/images");
                let targets = [images, self.own(), "/".into(), "..".into(), place.clone()];
                symlink(&targets[at % targets.len()], &place)
            }
            3 => {
                gone()?;
                let kinds = [
                    (FileType::Fifo, 0),
                    (FileType::CharacterDevice, rustix::fs::makedev(1, 5)),
                    (FileType::CharacterDevice, rustix::fs::makedev(5, 0)),
                    (FileType::BlockDevice, rustix::fs::makedev(7, 255)),
                ];
                let (kind, device) = kinds[at % kinds.len()];
                Ok(rustix::fs::mknodat(CWD, &place, kind, Mode::RWXU | Mode::RWXO, device)?)
            }
            4 => {
                gone()?;
                UnixListener::bind(&place).map(drop)
            }
            5 => gone(),
            6 => {
                gone()?;
                fs::create_dir(&place)
            }
            7 => {
                let file = fs::OpenOptions::new().write(true).open(&path)?;
                file.set_len(u64::from(number) << 6 & (FILE_BYTES_MAX - 1))
            }
            8 => {
                gone()?;
                let mut own = Vec::new();
                every(&self.own(), &mut own);
                fs::hard_link(&own[at % own.len()], &place)
            }
            9 => {
                let name = directory.join(NAMES[number as usize % NAMES.len()]);
                fs::OpenOptions::new().write(true).create_new(true).open(name)?.write_all(bytes)
            }
            10 => fs::rename(&path, directory.join(name.file_name().unwrap())),
            11 => lchown(&place, Some(THIRD), None),
            _ => {
                let image = directory.join("images").join(format!("{number:016x}"));
                fs::create_dir_all(&image)?;
                fs::write(image.join("head"), bytes)
            }
        }
    }

    /// What must not change: names, kinds, owners and lengths of everything.
    fn state(&self) -> Vec<(PathBuf, u32, u32, u64)> {
        let mut all = Vec::new();
        every(self.root.path(), &mut all);
        all.into_iter()
            .map(|path| {
                let meta = fs::symlink_metadata(&path).unwrap();
                // The size of a directory is the file system's business.
                let length = if meta.is_dir() { 0 } else { meta.len() };
                (path, meta.mode(), meta.uid(), length)
            })
            .collect()
    }
}

fn read(image: &mut Image) {
    let size = image.size_bytes();
    let mut buf = vec![0; READ_BYTES];
    for offset in [0, 1 << 24, size.saturating_sub(READ_BYTES as u64)] {
        let mut reads = [Read::new(offset, &mut buf)];
        image.read_batch(&mut reads);
    }
    let _ = image.extents(0, size, 64);
    let _ = image.extents(0, size, usize::MAX);
    let _ = image.usage();
}

/// Every way to look at a pool that only reads.
fn look(store: &Store, pool: &Pool, repair: bool) {
    let mut namespaces = pool.namespaces().unwrap_or_default();
    namespaces.push(String::new());
    for namespace in namespaces {
        for (_, id) in pool.images(&Namespace::named(&namespace)).unwrap_or_default() {
            let _ = store.children(pool, id, None);
            if let Ok(mut image) = pool.open_read_only(id) {
                read(&mut image);
            }
            for snapshot in pool.info(id).map(|info| info.snapshots).unwrap_or_default() {
                if let Ok(mut image) = pool.open_snapshot(id, &snapshot.name) {
                    read(&mut image);
                }
            }
        }
    }
    let _ = store.pool_stats(pool);
    let options = CheckOptions { repair, ..CheckOptions::default() };
    let _ = store.check(pool, &options, &mut |_, _| {});
}

/// One's own pool is as usable as ever.
fn read_own(store: &Store) {
    let pool = store.pool("rbd").unwrap();
    let parent = pool.find("parent").unwrap();
    assert!(pool.open_snapshot(parent, "s").unwrap().read_at(0, &mut [0; 4096]).is_ok());
}

/// Looks at the pool that an input makes.
pub fn hostile_pool(data: &[u8]) {
    SCENE.with_borrow_mut(|scene| {
        let scene = scene.get_or_insert_with(Scene::new);
        scene.make(data);
        let before = scene.foreign.then(|| scene.state());
        let own = Store::open(&scene.own()).unwrap();
        if let Ok(pool) = own.pool("hostile") {
            assert!(pool.attached() && pool.read_only() == scene.foreign);
            look(&own, &pool, scene.foreign);
        }
        if let Ok(store) = Store::open(&scene.other()) {
            for name in store.pools().unwrap_or_default() {
                let Ok(pool) = store.pool(&name) else { continue };
                look(&store, &pool, scene.foreign);
                assert!(!scene.foreign || store.gc(&pool, &mut |_, _| {}).is_err());
            }
        }
        read_own(&own);
        if let Some(before) = before {
            let after = scene.state();
            let changed = after.iter().filter(|row| !before.contains(row)).collect::<Vec<_>>();
            assert!(after.len() == before.len() && changed.is_empty(), "{changed:?}");
        }
    });
}
