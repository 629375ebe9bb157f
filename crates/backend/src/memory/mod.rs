//! A pool in the memory of the process, for tests. It shows that the engine relies only on what the traits
//! promise.
//!
//! Nothing here survives the process. There is no page cache: a write is stored at once.

mod file;
mod home;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use marcot_store::{DiskFile, Lock, LockMode};

use crate::{
    Backend, Beside, Key, Lease, Leases, Leftover, Listed, Prefix, Records, SegmentKey, SegmentSet,
    Segments, Stamp, SwapError,
};
use file::MemoryFile;

pub use home::{MemoryHome, MemoryMachine};

/// A pool in memory, empty at first. Every back end made from it refers to the same pool.
#[derive(Clone, Default)]
pub struct Memory(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Default)]
struct State {
    records: BTreeMap<Key, Vec<u8>>,
    sets: BTreeSet<SegmentSet>,
    segments: BTreeMap<SegmentKey, MemoryFile>,
    held: HashMap<Lease, Holders>,
    noted: HashMap<Lease, String>,
}

/// The holders of a lease: many who share it, or one exclusive holder.
#[derive(Default)]
struct Holders {
    shared: usize,
    exclusive: bool,
}

impl Holders {
    fn add(&mut self, mode: LockMode) -> bool {
        let free = match mode {
            LockMode::Shared => !self.exclusive,
            LockMode::Exclusive => !self.exclusive && self.shared == 0,
        };
        if free {
            match mode {
                LockMode::Shared => self.shared += 1,
                LockMode::Exclusive => self.exclusive = true,
            }
        }
        free
    }
}

impl Memory {
    /// A back end for this pool.
    #[must_use]
    pub fn backend(&self) -> Backend {
        Backend {
            records: Arc::new(self.clone()),
            segments: Arc::new(self.clone()),
            leases: Arc::new(self.clone()),
            shared: None,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key under which a record is kept. A marker is the record of a child in another pool.
fn stored(key: &Key) -> Key {
    match key {
        Key::Marker(child) => Key::Child(*child),
        key => key.clone(),
    }
}

fn is_default(namespace: &str) -> bool {
    namespace.is_empty()
}

impl State {
    fn check_namespace(&self, key: &Key) -> io::Result<()> {
        let Key::Name { namespace, .. } = key else { return Ok(()) };
        let there =
            is_default(namespace) || self.records.contains_key(&Key::Namespace(namespace.clone()));
        if there { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn insert_new(&mut self, key: Key, bytes: Vec<u8>) -> io::Result<()> {
        self.check_namespace(&key)?;
        if self.records.contains_key(&key) || key == Key::Namespace(String::new()) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.records.insert(key, bytes);
        Ok(())
    }
}

impl Records for Memory {
    fn get(&self, key: &Key, bytes_max: u64) -> io::Result<Vec<u8>> {
        let state = self.state();
        let bytes = state.records.get(&stored(key)).ok_or(io::ErrorKind::NotFound)?;
        match bytes.len() as u64 > bytes_max {
            true => Err(io::ErrorKind::FileTooLarge.into()),
            false => Ok(bytes.clone()),
        }
    }

    fn exists(&self, key: &Key) -> io::Result<bool> {
        let default = *key == Key::Namespace(String::new());
        Ok(default || self.state().records.contains_key(&stored(key)))
    }

    fn create(&self, key: &Key, bytes: &[u8]) -> io::Result<()> {
        self.state().insert_new(stored(key), bytes.to_vec())
    }

    fn put(&self, key: &Key, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.check_namespace(key)?;
        state.records.insert(stored(key), bytes.to_vec());
        Ok(())
    }

    fn swap(&self, key: &Key, from: Stamp, bytes: &[u8]) -> Result<(), SwapError> {
        let mut state = self.state();
        let before = state
            .records
            .get(key)
            .ok_or_else(|| SwapError::Unchanged(io::ErrorKind::NotFound.into()))?;
        let stamp = Stamp::in_bytes(before).map_err(io::Error::other);
        if stamp.map_err(SwapError::Unchanged)? != from {
            return Err(SwapError::Changed);
        }
        state.records.insert(key.clone(), bytes.to_vec());
        Ok(())
    }

    fn replace(&self, key: &Key, from: &[u8], bytes: &[u8]) -> Result<(), SwapError> {
        let mut state = self.state();
        let stored = state.records.get_mut(key);
        let stored = stored.ok_or_else(|| SwapError::Unchanged(io::ErrorKind::NotFound.into()))?;
        if stored != from {
            return Err(SwapError::Changed);
        }
        *stored = bytes.to_vec();
        Ok(())
    }

    fn rename(&self, from: &Key, to: &Key) -> io::Result<()> {
        let mut state = self.state();
        let bytes = state.records.get(&stored(from)).ok_or(io::ErrorKind::NotFound)?.clone();
        state.insert_new(stored(to), bytes)?;
        state.records.remove(&stored(from));
        Ok(())
    }

    fn remove(&self, key: &Key) -> io::Result<()> {
        let mut state = self.state();
        if let Key::Namespace(gone) = key {
            let holds = |key: &Key| matches!(key, Key::Name { namespace, .. } if namespace == gone);
            if state.records.keys().any(holds) {
                return Err(io::ErrorKind::DirectoryNotEmpty.into());
            }
        }
        if let Key::Head(image) = key {
            state.records.remove(&Key::NameHint(*image));
            state.records.remove(&Key::TrashNote(*image));
            state.records.remove(&Key::GroupNote(*image));
        }
        state.records.remove(&stored(key)).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    fn settle(&self, key: &Key) -> io::Result<()> {
        self.state().check_namespace(key)
    }

    fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed<'_>) -> bool) -> io::Result<()> {
        let belongs = |key: &&Key| match (prefix, key) {
            (Prefix::Namespaces, Key::Namespace(_))
            | (Prefix::Heads, Key::Head(_))
            | (Prefix::Children, Key::Child(_))
            | (Prefix::Heirs, Key::Heir(_))
            | (Prefix::Groups, Key::Group(_)) => true,
            (Prefix::Names(wanted), Key::Name { namespace, .. }) => wanted == namespace,
            _ => false,
        };
        let keys: Vec<Key> = {
            let state = self.state();
            if let Prefix::Names(namespace) = prefix {
                let name = Key::Name { namespace: namespace.clone(), name: String::new() };
                state.check_namespace(&name)?;
            }
            state.records.keys().filter(belongs).cloned().collect()
        };
        // The state is not locked here, because the caller may use records in `each`.
        for key in &keys {
            if !each(Listed::Key(key)) {
                break;
            }
        }
        Ok(())
    }

    /// There is only one user, 0.
    fn owner(&self, key: &Key) -> io::Result<u32> {
        match self.exists(key)? {
            true => Ok(0),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// There are none: a record is stored as a whole or not at all.
    fn leftovers(&self, _: &Beside) -> Vec<Leftover> {
        Vec::new()
    }

    fn remove_leftover(&self, _: &Leftover) -> bool {
        false
    }

    fn show(&self, key: &Key) -> String {
        format!("{key:?} in memory")
    }
}

impl Segments for Memory {
    fn create(&self, key: SegmentKey, start: &[u8]) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        if !state.sets.contains(&key.set) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if state.segments.contains_key(&key) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = MemoryFile::default();
        file.writable().write_at(0, &[start])?;
        state.segments.insert(key, file.clone());
        Ok(Arc::new(file.writable()))
    }

    fn reuse(
        &self,
        old: SegmentKey,
        new: SegmentKey,
        start: &[u8],
    ) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        if state.segments.contains_key(&new) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = state.segments.remove(&old).ok_or(io::ErrorKind::NotFound)?;
        file.writable().write_at(0, &[start])?;
        state.segments.insert(new, file.clone());
        Ok(Arc::new(file.writable()))
    }

    fn open(&self, key: SegmentKey, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.state();
        let file = state.segments.get(&key).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(if write { file.writable() } else { file.clone() }))
    }

    fn settle(&self, _: SegmentKey) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, key: SegmentKey) -> io::Result<u64> {
        let file = self.state().segments.remove(&key).ok_or(io::ErrorKind::NotFound)?;
        file.remove();
        file.allocated_bytes()
    }

    fn list(&self, set: SegmentSet) -> io::Result<Vec<SegmentKey>> {
        Ok(self.state().segments.keys().filter(|key| key.set == set).copied().collect())
    }

    fn create_set(&self, set: SegmentSet) -> io::Result<()> {
        self.state().sets.insert(set);
        Ok(())
    }

    fn remove_set(&self, set: SegmentSet) -> io::Result<()> {
        let mut state = self.state();
        if state.segments.keys().any(|key| key.set == set) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        match state.sets.remove(&set) {
            true => Ok(()),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn sets(&self) -> io::Result<Vec<SegmentSet>> {
        Ok(self.state().sets.iter().copied().collect())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn keep_reserve(&self, _: u64) {}

    fn has_reserve(&self) -> bool {
        false
    }

    fn give_up_reserve(&self) -> bool {
        false
    }

    fn show(&self, key: SegmentKey) -> String {
        format!("{key:?} in memory")
    }
}

struct Held {
    inner: Arc<Inner>,
    lease: Lease,
    mode: LockMode,
}

impl Lock for Held {}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(holders) = state.held.get_mut(&self.lease) {
            match self.mode {
                LockMode::Shared => holders.shared -= 1,
                LockMode::Exclusive => holders.exclusive = false,
            }
        }
        self.inner.released.notify_all();
    }
}

impl Leases for Memory {
    fn take(&self, lease: Lease, mode: LockMode, wait: bool) -> io::Result<Option<Box<dyn Lock>>> {
        let mut state = self.state();
        while !state.held.entry(lease).or_default().add(mode) {
            if !wait {
                return Ok(None);
            }
            state = self.0.released.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(Some(Box::new(Held { inner: Arc::clone(&self.0), lease, mode })))
    }

    fn was_taken(&self, lease: Lease) -> bool {
        self.state().held.contains_key(&lease)
    }

    fn note_holder(&self, lease: Lease, holder: &str) {
        self.state().noted.insert(lease, holder.to_owned());
    }

    fn holder(&self, lease: Lease) -> Option<String> {
        self.state().noted.get(&lease).cloned()
    }

    fn forget(&self, lease: Lease) {
        self.state().noted.remove(&lease);
    }

    fn show(&self, lease: Lease) -> String {
        format!("{lease:?} in memory")
    }
}
