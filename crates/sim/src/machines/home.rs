//! What a machine knows of the pools: they lie in the bucket, and a directory of the machine belongs to each.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use marcot::World;
use marcot_backend::local::LocalHome;
use marcot_backend::object::cache::RangeCache;
use marcot_backend::object::envelope::Objects;
use marcot_backend::object::leases;
use marcot_backend::object::records::ObjectRecords;
use marcot_backend::object::segments::{HostDirectory, ObjectSegments, PoolCache};
use marcot_backend::object::{Policy, Retry, Settled};
use marcot_backend::{At, Backend, Home, Key, Leftover, Opened, Part, ReadableBy};
use marcot_format::PoolId;
use marcot_store::Lock;

use crate::rules::STORE;
use crate::service::Service;

/// Limit on the length of a pool's record.
const POOL_RECORD_BYTES_MAX: u64 = 1 << 16;

/// Directory of a machine's cache.
const CACHE: &str = "/cache";

/// How long a machine waits for the service. No outage is longer.
const PATIENCE: Duration = Duration::from_secs(600);

/// What all machines know: the record of their store, and the names of its pools.
#[derive(Default)]
pub(super) struct Registry {
    record: Mutex<Option<Vec<u8>>>,
    pools: Mutex<BTreeSet<String>>,
}

impl Registry {
    /// Makes the directory of a machine one of the store that exists, if it is not.
    pub(super) fn join(&self, local: &LocalHome) {
        if let Some(record) = &*locked(&self.record) {
            let _ = local.create(record);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See the module.
pub(super) struct SimHome {
    pub local: LocalHome,
    pub world: World,
    pub service: Arc<Service>,
    pub registry: Arc<Registry>,
    pub machine: usize,
    /// The number of the machine's disk. One that is replaced has another one.
    pub number: u64,
    pub ships_flushes: bool,
    /// Ranges of objects are kept on the machine's disk.
    pub caches: bool,
}

impl SimHome {
    fn backend(&self, name: &str, host: Backend) -> Backend {
        let way = Arc::new(self.service.way_below(self.machine, &format!("{name}/")));
        let World { clock, random, .. } = self.world.clone();
        // A machine that was killed is refused, and must end.
        let policy = Policy { give_up_after: Some(PATIENCE), ..Policy::command() };
        let retry = Retry::new(&self.world, policy, "sim".to_owned(), Arc::default());
        let objects = Objects::new(Settled::new(way.clone(), retry), random.clone());
        // The engine gives pools other numbers. Here any will do that all machines agree on.
        let number = PoolId(u64::from(marcot_format::crc32c(name.as_bytes())));
        let (disk, path) =
            (Arc::clone(&self.world.disk), Path::new(STORE).join("pools").join(name));
        let beside = leases::HostDirectory::new(disk.clone(), &path);
        let leases = beside.leases(random.clone());
        let records = ObjectRecords::new(Arc::new(objects), number, 0).beside(beside);
        let directory = HostDirectory {
            disk,
            path,
            segments: host.segments,
            clock,
            random,
            number: self.number,
            host_name: format!("m{}", self.machine),
        };
        let open_cache = || RangeCache::open(&self.world, PathBuf::from(CACHE), 0).ok();
        let cache = self.caches.then(open_cache).flatten();
        let cache = cache.map(|cache| PoolCache { pool: number, cache });
        let segments = ObjectSegments::new(way, directory, self.ships_flushes, cache);
        let (records, segments) = (Arc::new(records), Arc::new(segments));
        Backend { records, segments, leases, shared: None }
    }
}

impl Home for SimHome {
    fn record(&self) -> io::Result<Vec<u8>> {
        locked(&self.registry.record).clone().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn create(&self, record: &[u8]) -> io::Result<()> {
        self.local.create(record)?;
        *locked(&self.registry.record) = Some(record.to_vec());
        Ok(())
    }

    fn replace(&self, record: &[u8]) -> io::Result<()> {
        self.local.replace(record)?;
        *locked(&self.registry.record) = Some(record.to_vec());
        Ok(())
    }

    fn lock(&self) -> io::Result<Box<dyn Lock>> {
        self.local.lock()
    }

    fn pools(&self) -> io::Result<Vec<String>> {
        Ok(locked(&self.registry.pools).iter().cloned().collect())
    }

    fn has_pool(&self, name: &str) -> io::Result<bool> {
        Ok(locked(&self.registry.pools).contains(name))
    }

    fn is_link(&self, _: &str) -> bool {
        false
    }

    fn holds_images(&self, _: &str) -> io::Result<bool> {
        Ok(false)
    }

    fn create_pool(&self, name: &str, readable_by: ReadableBy) -> io::Result<Backend> {
        let host = self.local.create_pool(name, readable_by)?;
        locked(&self.registry.pools).insert(name.to_owned());
        Ok(self.backend(name, host))
    }

    fn settle_pools(&self) -> io::Result<()> {
        self.local.settle_pools()
    }

    fn clear_pool(&self, name: &str, location: &Path) {
        // What lies in the bucket stays: another machine may have made the pool at the same time.
        self.local.clear_pool(name, location);
    }

    fn attached(&self) -> io::Result<Vec<String>> {
        self.local.attached()
    }

    fn attachment(&self, name: &str) -> io::Result<Vec<u8>> {
        self.local.attachment(name)
    }

    fn attach(&self, name: &str, attachment: &[u8]) -> io::Result<()> {
        self.local.attach(name, attachment)
    }

    fn detach(&self, name: &str) -> io::Result<()> {
        self.local.detach(name)
    }

    fn open(&self, at: &At) -> io::Result<Opened> {
        let At::Own(name) = at else { return self.local.open(at) };
        if !self.has_pool(name)? {
            return Err(io::ErrorKind::NotFound.into());
        }
        // The directory of this machine may not exist yet. It has a copy of the pool's record.
        let host = self.local.create_pool(name, ReadableBy::Owner)?;
        let backend = self.backend(name, host.clone());
        if !host.records.exists(&Key::Pool)? {
            let record = backend.records.get(&Key::Pool, POOL_RECORD_BYTES_MAX)?;
            host.records.create(&Key::Pool, &record)?;
        }
        Ok(Opened { backend, access: self.local.open(at)?.access })
    }

    fn leftovers(&self, attached: bool) -> Vec<Leftover> {
        self.local.leftovers(attached)
    }

    fn remove_leftover(&self, leftover: &Leftover) {
        self.local.remove_leftover(leftover);
    }

    fn foreign(&self) -> Option<u32> {
        self.local.foreign()
    }

    fn show(&self, part: &Part) -> String {
        self.local.show(part)
    }
}
