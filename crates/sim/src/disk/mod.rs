//! A simulated machine: one file system, and processes that use it.
//!
//! Invariants:
//! - Everything that happens depends only on the seed and on the calls made. Every call that reaches the
//!   machine is one I/O, has a number, and goes into the hash of the trace.
//! - Only what the contract of [`marcot_store::Disk`] promises is durable (see `node`).
//! - In this contract a short read means the end of the file. So a failed read is an error of the call, never
//!   a short read.
//! - A machine can be copied at any I/O ([`Probe`]). The copy shares only pages.

mod async_io;
mod content;
mod faults;
mod handle;
mod locks;
mod node;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use faults::{Fault, Faults};
pub use handle::SimDisk;
pub use node::SECTOR_BYTES;

use crate::random::Rng;
use locks::Locks;
use node::{DirectoryNode, Entry, FileNode, Node, NodeId, Pending};

/// The root directory.
const ROOT: NodeId = 1;
/// The purpose of the random numbers that decide whether there are direct writes, and how they complete.
const ASYNC_IO: u64 = 300;
/// Limit on the lines of the trace that are kept.
const LINES_MAX: usize = 400;

/// What ends in the middle of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The power goes.
    Power,
    /// One process is killed. Its writes stay in the page cache.
    Kill(usize),
}

/// Gets a copy of the machine before an I/O that changes something. The number that it returns goes into the
/// hash of the trace.
pub type Probe = Box<dyn FnMut(Machine, u64) -> u64 + Send>;

#[derive(Clone)]
struct State {
    nodes: BTreeMap<NodeId, Arc<Node>>,
    next_node: NodeId,
    ios: u64,
    hash: u64,
    on: bool,
    /// The number of lives of each process. A handle of an earlier life is dead.
    lives: Vec<u64>,
    locks: Locks,
    faults: Faults,
    /// Direct writes are possible.
    direct: bool,
    cut: Option<(u64, Cut)>,
    was_cut: Option<Cut>,
    rng: Rng,
    lines: Option<Vec<String>>,
}

/// The machine.
pub struct Machine {
    state: Mutex<State>,
    probe: Mutex<Option<Probe>>,
}

fn mix(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01B3))
}

fn off() -> io::Error {
    io::Error::other("this process is dead")
}

/// EIO.
fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl Machine {
    /// An empty machine.
    #[must_use]
    pub fn new(seed: u64, processes: usize) -> Arc<Self> {
        let root = DirectoryNode { mode: 0o755, ..DirectoryNode::default() };
        let nodes = BTreeMap::from([(ROOT, Arc::new(Node::Directory(root)))]);
        let state = State {
            nodes,
            next_node: ROOT + 1,
            ios: 0,
            hash: 0xCBF2_9CE4_8422_2325,
            on: true,
            lives: vec![0; processes],
            locks: Locks::default(),
            faults: Faults::default(),
            direct: Rng::with(seed, ASYNC_IO).one_in(2),
            cut: None,
            was_cut: None,
            rng: Rng::with(seed, 1),
            lines: None,
        };
        Arc::new(Self { state: Mutex::new(state), probe: Mutex::new(None) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy, which makes its own random choices from now on.
    fn copy(state: &State) -> Self {
        let mut state = state.clone();
        state.rng = Rng::with(state.rng.draw(), state.ios);
        state.cut = None;
        state.faults = Faults::default();
        Self { state: Mutex::new(state), probe: Mutex::new(None) }
    }

    /// I/Os so far.
    pub fn ios(&self) -> u64 {
        self.state().ios
    }

    /// Hash of the trace so far.
    pub fn hash(&self) -> u64 {
        self.state().hash
    }

    /// Mixes a number from elsewhere into the hash of the trace.
    pub fn note(&self, number: u64) {
        let mut state = self.state();
        state.hash = mix(state.hash, &number.to_le_bytes());
    }

    /// Keeps lines of the trace from now on.
    pub fn keep_lines(&self) {
        self.state().lines = Some(Vec::new());
    }

    /// Takes the lines of the trace since the last call.
    pub fn take_lines(&self) -> Vec<String> {
        self.state().lines.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Shows copies to `probe` until it is removed.
    pub fn set_probe(&self, probe: Option<Probe>) {
        *self.probe.lock().unwrap_or_else(PoisonError::into_inner) = probe;
    }

    /// Arms a fault for the `after`-th call that it can hit.
    pub fn arm(&self, fault: Fault, after: u64) {
        self.state().faults.arm(fault, after);
    }

    /// Disarms all faults.
    pub fn disarm(&self) {
        self.state().faults.disarm();
    }

    /// Faults that have hit so far.
    pub fn faults_hit(&self) -> u64 {
        self.state().faults.hits
    }

    /// Places that silent faults have damaged.
    #[must_use]
    pub fn places_damaged(&self) -> u64 {
        self.state().faults.places
    }

    /// Ends something at the I/O `after` calls from now.
    pub fn cut_after(&self, after: u64, cut: Cut) {
        let mut state = self.state();
        state.cut = Some((state.ios + after, cut));
    }

    /// The cut since the last call, if there was one. A cut that was not reached is disarmed.
    pub fn take_cut(&self) -> Option<Cut> {
        let mut state = self.state();
        state.cut = None;
        state.was_cut.take()
    }

    /// Cuts the power at once.
    pub fn power_off(&self) {
        self.state().cut(Cut::Power);
    }

    /// Kills a process at once.
    pub fn kill(&self, process: usize) {
        self.state().cut(Cut::Kill(process));
    }

    /// Makes everything durable that processes see, as it happens after some time on every machine.
    pub fn sync_all(&self) {
        let mut state = self.state();
        for node in state.nodes.values_mut() {
            match Arc::make_mut(node) {
                Node::File(file) => file.sync(),
                Node::Directory(directory) => directory.sync(),
            }
        }
    }

    /// Restores the power. Changes that were not durable may be gone.
    pub fn power_on(&self) {
        let mut state = self.state();
        let mut rng = state.rng.clone();
        for node in state.nodes.values_mut() {
            match Arc::make_mut(node) {
                Node::File(file) if file.pending.is_empty() && !file.lost => {}
                Node::File(file) => file.lose_power(&mut rng),
                Node::Directory(directory) if directory.pending.is_empty() => {}
                Node::Directory(directory) => directory.lose_power(&mut rng),
            }
        }
        state.rng = rng;
        state.drop_unreachable();
        state.on = true;
    }

    /// Takes away the locks of a process below a directory, as a cluster does with a host that it
    /// believes to be dead.
    pub fn steal_locks(&self, process: usize, directory: &Path) {
        let mut state = self.state();
        if let Ok(node) = state.find(directory) {
            let below = state.below(node);
            state.locks.release_where(|lock| lock.process == process && below.contains(&lock.node));
        }
    }
}

impl State {
    fn cut(&mut self, cut: Cut) {
        self.was_cut = Some(cut);
        self.cut = None;
        match cut {
            Cut::Power => {
                self.on = false;
                self.lives.iter_mut().for_each(|life| *life += 1);
                self.locks.release_where(|_| true);
            }
            Cut::Kill(process) => {
                self.lives[process] += 1;
                self.locks.release_where(|lock| lock.process == process);
            }
        }
    }

    fn drop_unreachable(&mut self) {
        let reachable = self.below(ROOT);
        self.nodes.retain(|node, _| reachable.contains(node));
    }

    fn below(&self, node: NodeId) -> std::collections::BTreeSet<NodeId> {
        let mut found = std::collections::BTreeSet::from([node]);
        let mut todo = vec![node];
        while let Some(node) = todo.pop() {
            if let Some(Node::Directory(directory)) = self.nodes.get(&node).map(|n| &**n) {
                for below in directory.live.values() {
                    if found.insert(*below) {
                        todo.push(*below);
                    }
                }
            }
        }
        found
    }

    fn find(&self, path: &Path) -> io::Result<NodeId> {
        let mut node = ROOT;
        for part in path.components() {
            let std::path::Component::Normal(name) = part else { continue };
            let found = self.directory(node)?.live.get(&*name.to_string_lossy());
            node = *found.ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(node)
    }

    fn find_parent(&self, path: &Path) -> io::Result<(NodeId, String)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = self.find(path.parent().unwrap_or(Path::new("/")))?;
        self.directory(parent)?;
        Ok((parent, name.to_string_lossy().into_owned()))
    }

    fn node(&self, node: NodeId) -> io::Result<&Node> {
        self.nodes.get(&node).map(|n| &**n).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn directory(&self, node: NodeId) -> io::Result<&DirectoryNode> {
        match self.node(node)? {
            Node::Directory(directory) => Ok(directory),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn file(&self, node: NodeId) -> io::Result<&FileNode> {
        match self.node(node)? {
            Node::File(file) => Ok(file),
            Node::Directory(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn directory_mut(&mut self, node: NodeId) -> io::Result<&mut DirectoryNode> {
        match self.nodes.get_mut(&node).map(Arc::make_mut) {
            Some(Node::Directory(directory)) => Ok(directory),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn file_mut(&mut self, node: NodeId) -> io::Result<&mut FileNode> {
        match self.nodes.get_mut(&node).map(Arc::make_mut) {
            Some(Node::File(file)) => Ok(file),
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn add(&mut self, parent: NodeId, name: String, node: Node) -> io::Result<NodeId> {
        let id = self.next_node;
        self.next_node += 1;
        self.nodes.insert(id, Arc::new(node));
        self.directory_mut(parent)?.change(Entry::Link(name, id));
        Ok(id)
    }

    fn write(&mut self, node: NodeId, offset: u64, data: Arc<[u8]>) -> io::Result<()> {
        if self.faults.hits(Fault::DropWrite) {
            // The cache has the write, but the medium will never get it.
            let file = self.file_mut(node)?;
            file.live.write(offset, &data);
            let length = file.live.length();
            file.pending.push(Pending::Length(length));
            file.lost = true;
            return Ok(());
        }
        if self.faults.hits(Fault::MisdirectWrite) {
            return self.misdirect(node, offset, data);
        }
        self.file_mut(node)?.change(Pending::Write { offset, data });
        Ok(())
    }

    /// Misdirects a write: the cache has it in the right place, the medium in a wrong place of this or
    /// another file.
    fn misdirect(&mut self, node: NodeId, offset: u64, data: Arc<[u8]>) -> io::Result<()> {
        let files: Vec<(NodeId, u64)> = self
            .nodes
            .iter()
            .filter_map(|(id, node)| match &**node {
                Node::File(file) if file.live.length() > 0 => Some((*id, file.live.length())),
                _ => None,
            })
            .collect();
        let mut rng = self.rng.clone();
        let file = self.file_mut(node)?;
        file.live.write(offset, &data);
        let length = file.live.length();
        file.pending.push(Pending::Length(length));
        file.lost = true;
        let own = rng.one_in(2);
        let at = if own { (node, length) } else { files[rng.below(files.len() as u64) as usize] };
        let wrong = rng.below(at.1) / SECTOR_BYTES * SECTOR_BYTES;
        // A medium misdirects sectors within existing files, so no file grows.
        let room = (at.1 - wrong).min(data.len() as u64) as usize;
        let data: Arc<[u8]> = data[..room].into();
        let target = self.file_mut(at.0)?;
        target.pending.push(Pending::Write { offset: wrong, data });
        target.lost = true;
        self.rng = rng;
        Ok(())
    }

    /// Flips a bit in some file.
    fn corrupt(&mut self) {
        let files: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(_, n)| matches!(&***n, Node::File(f) if f.durable.length() > 0))
            .map(|(id, _)| *id)
            .collect();
        if files.is_empty() {
            return;
        }
        let node = files[self.rng.below(files.len() as u64) as usize];
        let mut rng = self.rng.clone();
        if let Ok(file) = self.file_mut(node) {
            let (at, bit) = (rng.below(file.durable.length()), rng.below(8) as u8);
            file.durable.flip(at, bit);
            file.lost = true;
            if rng.one_in(2) {
                file.drop_cache();
            }
        }
        self.rng = rng;
    }
}
