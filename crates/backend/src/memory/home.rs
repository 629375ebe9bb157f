//! Stores in memory.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use marcot_store::Lock;

use super::Memory;
use crate::{Access, At, Backend, Home, Leftover, Opened, Part, ReadableBy, escape, unescape};

/// A machine whose stores lie in memory. All clones refer to the same stores.
#[derive(Clone, Default)]
pub struct MemoryMachine(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    unlocked: Condvar,
}

#[derive(Default)]
struct State {
    stores: BTreeMap<PathBuf, Registry>,
    /// Pools, by the path of the store and the name.
    pools: BTreeMap<PathBuf, Memory>,
}

#[derive(Default)]
struct Registry {
    record: Option<Vec<u8>>,
    attached: BTreeMap<String, Vec<u8>>,
    locked: bool,
}

impl MemoryMachine {
    /// The home of the store with this name. The store need not exist yet.
    #[must_use]
    pub fn home(&self, store: &Path) -> MemoryHome {
        MemoryHome { machine: self.clone(), store: store.to_owned() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A store in memory.
pub struct MemoryHome {
    machine: MemoryMachine,
    store: PathBuf,
}

impl MemoryHome {
    fn pool(&self, name: &str) -> PathBuf {
        self.store.join(escape(name))
    }

    fn with<T>(&self, look: impl FnOnce(&mut Registry) -> T) -> T {
        let mut state = self.machine.state();
        look(state.stores.entry(self.store.clone()).or_default())
    }
}

struct Locked(MemoryMachine, PathBuf);

impl Lock for Locked {}

impl Drop for Locked {
    fn drop(&mut self) {
        if let Some(registry) = self.0.state().stores.get_mut(&self.1) {
            registry.locked = false;
        }
        self.0.0.unlocked.notify_all();
    }
}

impl Home for MemoryHome {
    fn record(&self) -> io::Result<Vec<u8>> {
        self.with(|registry| registry.record.clone()).ok_or(io::ErrorKind::NotFound.into())
    }

    fn create(&self, record: &[u8]) -> io::Result<()> {
        self.with(|registry| {
            if registry.record.is_some() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            registry.record = Some(record.to_vec());
            Ok(())
        })
    }

    fn replace(&self, record: &[u8]) -> io::Result<()> {
        self.with(|registry| registry.record = Some(record.to_vec()));
        Ok(())
    }

    fn lock(&self) -> io::Result<Box<dyn Lock>> {
        let mut state = self.machine.state();
        while std::mem::replace(
            &mut state.stores.entry(self.store.clone()).or_default().locked,
            true,
        ) {
            state = self.machine.0.unlocked.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(Box::new(Locked(self.machine.clone(), self.store.clone())))
    }

    fn pools(&self) -> io::Result<Vec<String>> {
        let state = self.machine.state();
        let own = state.pools.keys().filter(|pool| pool.parent() == Some(&self.store));
        Ok(own.filter_map(|pool| unescape(pool.file_name()?.to_str()?)).collect())
    }

    fn has_pool(&self, name: &str) -> io::Result<bool> {
        let pool = self.machine.state().pools.get(&self.pool(name)).cloned();
        pool.map_or(Ok(false), |pool| pool.backend().records.exists(&crate::Key::Pool))
    }

    fn is_link(&self, _: &str) -> bool {
        false
    }

    fn holds_images(&self, name: &str) -> io::Result<bool> {
        let pool = self.machine.state().pools.get(&self.pool(name)).cloned();
        let mut found = false;
        if let Some(pool) = pool {
            pool.backend().records.list(&crate::Prefix::Heads, &mut |_| {
                found = true;
                false
            })?;
        }
        Ok(found)
    }

    fn create_pool(&self, name: &str, _: ReadableBy) -> io::Result<Backend> {
        let mut state = self.machine.state();
        Ok(state.pools.entry(self.pool(name)).or_default().backend())
    }

    fn settle_pools(&self) -> io::Result<()> {
        Ok(())
    }

    fn clear_pool(&self, name: &str, _: &Path) {
        self.machine.state().pools.remove(&self.pool(name));
    }

    fn attached(&self) -> io::Result<Vec<String>> {
        Ok(self.with(|registry| registry.attached.keys().cloned().collect()))
    }

    fn attachment(&self, name: &str) -> io::Result<Vec<u8>> {
        let found = self.with(|registry| registry.attached.get(name).cloned());
        found.ok_or(io::ErrorKind::NotFound.into())
    }

    fn attach(&self, name: &str, attachment: &[u8]) -> io::Result<()> {
        self.with(|registry| {
            if registry.attached.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            registry.attached.insert(name.to_owned(), attachment.to_vec());
            Ok(())
        })
    }

    fn detach(&self, name: &str) -> io::Result<()> {
        let gone = self.with(|registry| registry.attached.remove(name));
        gone.map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn open(&self, at: &At) -> io::Result<Opened> {
        let directory = match at {
            At::Own(name) => self.pool(name),
            At::Elsewhere(place) => PathBuf::from(place),
            At::Bucket(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        let pool = self.machine.state().pools.get(&directory).cloned();
        let pool = pool.ok_or(io::ErrorKind::NotFound)?;
        let access = Access {
            shown: directory.display().to_string(),
            directory,
            owner_id: 0,
            own: true,
            writable: true,
            public: false,
            identity: (0, 0, 0),
        };
        Ok(Opened { backend: pool.backend(), access })
    }

    /// There are none: a note is stored as a whole or not at all.
    fn leftovers(&self, _: bool) -> Vec<Leftover> {
        Vec::new()
    }

    fn remove_leftover(&self, _: &Leftover) {}

    fn foreign(&self) -> Option<u32> {
        None
    }

    fn show(&self, part: &Part) -> String {
        format!("{part:?} of {} in memory", self.store.display())
    }
}
