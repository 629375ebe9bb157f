//! The machine as one life of a process sees it: an implementation of [`marcot_store::Disk`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};

use marcot_store::{AsyncIo, Confined, Disk, DiskFile, FileInfo, Lock, LockMode, Trust};

use super::async_io::SimAsyncIo;
use super::node::{DirectoryNode, Entry, FileNode, Node, NodeId, Pending};
use super::{ASYNC_IO, Cut, Fault, LINES_MAX, Machine, State, eio, mix, off};
use crate::random::Rng;

/// Bytes that a simulated disk always reports as free.
const FREE_BYTES: u64 = 1 << 40;
/// Number of the first simulated process.
const PROCESS_ID_FIRST: u32 = 1000;

/// The disk of one life of a process.
#[derive(Clone)]
pub struct SimDisk {
    machine: Arc<Machine>,
    process: usize,
    life: u64,
}

/// A call that reaches the machine.
struct Call<'a> {
    what: &'static str,
    path: &'a Path,
    other: &'a Path,
    numbers: [u64; 2],
    changes: bool,
}

fn call<'a>(what: &'static str, path: &'a Path) -> Call<'a> {
    Call { what, path, other: Path::new(""), numbers: [0, 0], changes: false }
}

fn change<'a>(what: &'static str, path: &'a Path) -> Call<'a> {
    Call { changes: true, ..call(what, path) }
}

impl SimDisk {
    /// A new life of a process.
    #[must_use]
    pub fn new(machine: &Arc<Machine>, process: usize) -> Self {
        let life = machine.state().lives[process];
        Self { machine: Arc::clone(machine), process, life }
    }

    /// Counts the call, shows the machine before it to the probe, and performs a cut that is due.
    fn enter(&self, call: &Call<'_>) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.machine.state();
        if !state.on || state.lives[self.process] != self.life {
            return Err(off());
        }
        state.ios += 1;
        let ios = state.ios;
        let mut hash = mix(state.hash, call.what.as_bytes());
        hash = mix(hash, call.path.as_os_str().as_encoded_bytes());
        hash = mix(hash, call.other.as_os_str().as_encoded_bytes());
        hash = mix(hash, &call.numbers[0].to_le_bytes());
        state.hash = mix(hash, &call.numbers[1].to_le_bytes());
        if let Some(lines) = &mut state.lines {
            let mut line = format!("{ios:>6} p{} {}", self.process, call.what);
            for path in [call.path, call.other].iter().filter(|p| !p.as_os_str().is_empty()) {
                line += &format!(" {}", path.display());
            }
            if call.numbers != [0, 0] {
                line += &format!(" {}+{}", call.numbers[0], call.numbers[1]);
            }
            if lines.len() == LINES_MAX {
                lines.remove(0);
            }
            lines.push(line);
        }
        if call.changes {
            state = self.show(state, ios);
        }
        if let Some((at, cut)) = state.cut
            && ios >= at
            && (cut == Cut::Power || cut == Cut::Kill(self.process))
        {
            state.cut(cut);
            return Err(off());
        }
        if call.changes && state.faults.hits(Fault::Corrupt) {
            state.corrupt();
        }
        Ok(state)
    }

    fn show<'a>(&'a self, state: MutexGuard<'a, State>, ios: u64) -> MutexGuard<'a, State> {
        let mut probe =
            self.machine.probe.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(probe) = probe.as_mut() else { return state };
        let copy = Machine::copy(&state);
        drop(state);
        let number = probe(copy, ios);
        let mut state = self.machine.state();
        state.hash = mix(state.hash, &number.to_le_bytes());
        state
    }

    fn file(&self, path: &Path, node: NodeId, write: bool, reported: u64) -> Arc<dyn DiskFile> {
        let (disk, path, reported) = (self.clone(), path.to_owned(), AtomicU64::new(reported));
        Arc::new(SimFile { disk, path, node, write, reported })
    }
}

fn no_space(state: &mut State) -> io::Result<()> {
    if state.faults.hits(Fault::NoSpace) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(())
}

impl Disk for SimDisk {
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.enter(&change("create", path))?;
        let (parent, name) = state.find_parent(path)?;
        if state.directory(parent)?.live.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        no_space(&mut state)?;
        let file = FileNode { mode, ..FileNode::default() };
        let node = state.add(parent, name, Node::File(file))?;
        Ok(self.file(path, node, true, 0))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.enter(&call("open", path))?;
        let node = state.find(path)?;
        let reported = state.file(node)?.failed_syncs;
        Ok(self.file(path, node, write, reported))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.enter(&Call { other: to, ..change("rename", from) })?;
        let ((parent, old), (into, new)) = (state.find_parent(from)?, state.find_parent(to)?);
        if parent != into {
            let node = *state.directory(parent)?.live.get(&old).ok_or(io::ErrorKind::NotFound)?;
            // As journaling file systems do it. Here it is durable at once.
            state.directory_mut(into)?.change(Entry::Link(new, node));
            state.directory_mut(into)?.sync();
            state.directory_mut(parent)?.change(Entry::Unlink(old));
            state.directory_mut(parent)?.sync();
            return Ok(());
        }
        let directory = state.directory_mut(parent)?;
        let node = *directory.live.get(&old).ok_or(io::ErrorKind::NotFound)?;
        directory.change(Entry::Rename(old, new, node));
        Ok(())
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        {
            let state = self.enter(&call("look", to))?;
            if state.find(to).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
        }
        self.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.enter(&change("unlink", path))?;
        let node = state.find(path)?;
        state.file(node)?;
        let (parent, name) = state.find_parent(path)?;
        state.directory_mut(parent)?.change(Entry::Unlink(name));
        Ok(())
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = self.enter(&change("rmdir", path))?;
        let node = state.find(path)?;
        if !state.directory(node)?.live.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let (parent, name) = state.find_parent(path)?;
        state.directory_mut(parent)?.change(Entry::Unlink(name));
        Ok(())
    }

    fn create_directory(&self, path: &Path, mode: u32) -> io::Result<()> {
        let mut state = self.enter(&change("mkdir", path))?;
        let (parent, name) = state.find_parent(path)?;
        if state.directory(parent)?.live.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        no_space(&mut state)?;
        let directory = DirectoryNode { mode, ..DirectoryNode::default() };
        state.add(parent, name, Node::Directory(directory))?;
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut state = self.enter(&call("list", path))?;
        if state.faults.hits(Fault::FailRead) {
            return Err(eio());
        }
        let node = state.find(path)?;
        Ok(state.directory(node)?.live.keys().cloned().collect())
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = self.enter(&change("sync", path))?;
        let node = state.find(path)?;
        if state.faults.hits(Fault::FailSync) {
            return Err(eio());
        }
        state.directory_mut(node)?.sync();
        Ok(())
    }

    fn mode(&self, path: &Path) -> io::Result<u32> {
        let state = self.enter(&call("mode", path))?;
        let node = state.find(path)?;
        Ok(match state.node(node)? {
            Node::File(file) => file.mode,
            Node::Directory(directory) => directory.mode,
        })
    }

    fn modified_s(&self, _path: &Path) -> io::Result<i64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn file_info(&self, path: &Path) -> io::Result<FileInfo> {
        let state = self.enter(&call("stat", path))?;
        let node = state.find(path)?;
        let (directory, length, allocated_bytes) = match state.node(node)? {
            Node::File(file) => (false, file.live.length(), file.live.allocated()),
            Node::Directory(_) => (true, 0, 0),
        };
        let owner_id = self.user_id();
        Ok(FileInfo {
            owner_id,
            plain: !directory,
            link: false,
            directory,
            length,
            allocated_bytes,
        })
    }

    fn writable(&self, path: &Path) -> bool {
        self.enter(&call("access", path)).is_ok_and(|state| state.find(path).is_ok())
    }

    fn lock(&self, path: &Path, mode: LockMode, wait: bool) -> io::Result<Option<Box<dyn Lock>>> {
        let mut state = self.enter(&change("lock", path))?;
        let (parent, name) = state.find_parent(path)?;
        let node = match state.directory(parent)?.live.get(&name) {
            Some(node) => *node,
            None => {
                no_space(&mut state)?;
                let file = FileNode { mode: 0o600, ..FileNode::default() };
                state.add(parent, name, Node::File(file))?
            }
        };
        match state.locks.take(node, self.process, mode) {
            Some(number) => {
                Ok(Some(Box::new(SimLock { machine: Arc::clone(&self.machine), number })))
            }
            // Operations run one after the other, so the lock would never be released.
            None if wait => Err(io::ErrorKind::Deadlock.into()),
            None => Ok(None),
        }
    }

    fn async_io(&self) -> Option<Box<dyn AsyncIo>> {
        let state = self.machine.state();
        state.direct.then(|| {
            let rng = Rng::with(state.ios, ASYNC_IO);
            Box::new(SimAsyncIo::new(rng)) as Box<dyn AsyncIo>
        })
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(FREE_BYTES)
    }

    /// The simulated world has no links and no other users.
    fn confine(&self, directory: &Path, _: Trust) -> io::Result<Confined> {
        let state = self.enter(&call("confine", directory))?;
        let identity = (0, state.find(directory)?);
        Ok(Confined { disk: Arc::new(self.clone()), owner_id: self.user_id(), own: true, identity })
    }

    fn process_id(&self) -> u32 {
        PROCESS_ID_FIRST + self.process as u32
    }
}

struct SimLock {
    machine: Arc<Machine>,
    number: u64,
}

impl Lock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        // Numbers are never used twice, so releasing a lock that was taken away releases no other.
        self.machine.state().locks.release_where(|held| held.number == self.number);
    }
}

struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    node: NodeId,
    write: bool,
    /// Failed syncs of the file that were reported to this handle, or came before it was opened.
    reported: AtomicU64,
}

impl SimFile {
    fn enter(&self, call: &Call<'_>) -> io::Result<MutexGuard<'_, State>> {
        if call.changes && !self.write && call.what != "sync" {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.disk.enter(call)
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let numbers = [offset, buf.len() as u64];
        let mut state = self.enter(&Call { numbers, ..call("read", &self.path) })?;
        if state.faults.hits(Fault::FailRead) {
            return Err(eio());
        }
        Ok(state.file(self.node)?.live.read(offset, buf))
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let data: Vec<u8> = parts.concat();
        let numbers = [offset, data.len() as u64];
        let mut state = self.enter(&Call { numbers, ..change("write", &self.path) })?;
        state.hash = mix(state.hash, &data[..data.len().min(super::node::SECTOR_BYTES as usize)]);
        let grows = offset + data.len() as u64 > state.file(self.node)?.live.length();
        if grows && state.faults.hits(Fault::NoSpace) {
            // As on a full disk, part of the write is done.
            let part = state.rng.below(data.len() as u64) as usize;
            state.write(self.node, offset, data[..part].into())?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.write(self.node, offset, data.into())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.enter(&change("sync", &self.path))?;
        let failed = state.faults.hits(Fault::FailSync);
        let mut rng = state.rng.clone();
        let file = state.file_mut(self.node)?;
        if failed {
            file.fail_sync(&mut rng);
            self.reported.store(file.failed_syncs, Ordering::Relaxed);
            state.rng = rng;
            return Err(eio());
        }
        file.sync();
        match self.reported.swap(file.failed_syncs, Ordering::Relaxed) == file.failed_syncs {
            true => Ok(()),
            false => Err(eio()),
        }
    }

    fn length(&self) -> io::Result<u64> {
        let state = self.enter(&call("stat", &self.path))?;
        Ok(state.file(self.node)?.live.length())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        let state = self.enter(&call("stat", &self.path))?;
        Ok(state.file(self.node)?.live.allocated())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let numbers = [length, 0];
        let mut state = self.enter(&Call { numbers, ..change("truncate", &self.path) })?;
        state.file_mut(self.node)?.change(Pending::Length(length));
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let numbers = [offset, length];
        let mut state = self.enter(&Call { numbers, ..change("punch", &self.path) })?;
        state.file_mut(self.node)?.change(Pending::Punch { offset, length });
        Ok(())
    }

    fn direct(&self) -> io::Result<Arc<dyn DiskFile>> {
        let reported = self.reported.load(Ordering::Relaxed);
        Ok(self.disk.file(&self.path, self.node, true, reported))
    }

    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        let numbers = [offset, length];
        let mut state = self.enter(&Call { numbers, ..change("reserve", &self.path) })?;
        no_space(&mut state)?;
        let file = state.file_mut(self.node)?;
        if offset + length > file.live.length() {
            file.change(Pending::Length(offset + length));
        }
        Ok(())
    }

    fn advise(&self, _: u64, _: u64) {}

    fn drop_cache(&self) {
        if let Ok(mut state) = self.enter(&call("forget", &self.path))
            && let Ok(file) = state.file_mut(self.node)
        {
            file.drop_cache();
        }
    }
}
