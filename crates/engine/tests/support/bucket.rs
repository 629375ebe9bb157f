//! Hosts whose pools lie in one object store in memory.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use marcot::{Limits, Store};
use marcot_backend::local::LocalHome;
use marcot_backend::object::cache::{CACHE_BYTES_MIN, RangeCache};
use marcot_backend::object::envelope::Objects;
use marcot_backend::object::leases;
use marcot_backend::object::memory::MemoryService;
use marcot_backend::object::records::ObjectRecords;
use marcot_backend::object::segments::{HostDirectory, ObjectSegments, PoolCache};
use marcot_backend::object::service::ObjectService;
use marcot_backend::object::{Policy, Retry, Settled};
use marcot_backend::{At, Backend, Home, Key, Leftover, Opened, Part, ReadableBy};
use marcot_format::PoolId;
use marcot_store::{Disk, Lock, World};

/// The number of every pool of a test, and its objects.
type Kept = (PoolId, Arc<dyn ObjectService>);

/// The pools of an object store, by name, and the record of the store that all hosts use.
#[derive(Clone, Default)]
pub struct Bucket {
    pools: Arc<Mutex<BTreeMap<String, Kept>>>,
    record: Arc<Mutex<Option<Vec<u8>>>>,
    /// Services of pools that do not exist yet.
    services: Arc<Mutex<BTreeMap<String, Arc<dyn ObjectService>>>>,
}

impl Bucket {
    fn pool(&self, name: &str) -> Kept {
        let mut pools = self.pools.lock().unwrap();
        let given = self.services.lock().unwrap().get(name).cloned();
        let new = || {
            let service = given.unwrap_or_else(|| Arc::new(MemoryService::new()));
            // The pool's own number is not known before its record is stored.
            let number = name.bytes().fold(1, |n, byte| n * 31 % 1_000_003 + u64::from(byte));
            (PoolId(number), service)
        };
        pools.entry(name.to_owned()).or_insert_with(new).clone()
    }

    /// Lets this service keep the segments of a pool that does not exist yet.
    pub fn keep_in(&self, name: &str, service: Arc<dyn ObjectService>) {
        self.services.lock().unwrap().insert(name.to_owned(), service);
    }

    /// The service that keeps the segments of a pool.
    pub fn service(&self, name: &str) -> Arc<dyn ObjectService> {
        self.pool(name).1
    }

    /// The keys of all objects of a pool.
    pub fn keys(&self, name: &str) -> Vec<String> {
        let (service, mut keys) = (self.service(name), Vec::new());
        loop {
            let after: Option<String> = keys.last().cloned();
            let page = service.list("", after.as_deref()).unwrap();
            keys.extend(page.objects.into_iter().map(|object| object.key));
            if !page.more {
                return keys;
            }
        }
    }
}

/// A host: a directory of its own, and the pools of a bucket.
pub struct Host {
    local: LocalHome,
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    bucket: Bucket,
    number: u64,
    ships_flushes: bool,
}

impl Host {
    /// The store of a host. `number` tells hosts apart.
    pub fn store(bucket: &Bucket, directory: &Path, number: u64, limits: Limits) -> Store {
        Self::store_that(bucket, directory, number, limits, true)
    }

    /// As [`Self::store`]; `ships_flushes` is false for `flush=local`.
    pub fn store_that(
        bucket: &Bucket,
        directory: &Path,
        number: u64,
        limits: Limits,
        ships_flushes: bool,
    ) -> Store {
        Self::store_in(World::system(), bucket, directory, number, limits, ships_flushes)
    }

    /// As [`Self::store_that`], in another world.
    pub fn store_in(
        world: World,
        bucket: &Bucket,
        directory: &Path,
        number: u64,
        limits: Limits,
        ships_flushes: bool,
    ) -> Store {
        let local = LocalHome::open(&world, directory).unwrap();
        if let Some(record) = &*bucket.record.lock().unwrap() {
            let _ = local.create(record);
        }
        let home = Self {
            local,
            disk: Arc::clone(&world.disk),
            directory: directory.to_owned(),
            bucket: bucket.clone(),
            number,
            ships_flushes,
        };
        Store::open_home(world, Arc::new(home), directory, limits).unwrap()
    }

    fn backend(&self, name: &str, host: Backend) -> Backend {
        let (pool, service) = self.bucket.pool(name);
        let World { clock, random, .. } = World::system();
        let path = self.directory.join("pools").join(name);
        let beside = leases::HostDirectory::new(Arc::clone(&self.disk), &path);
        let retry = Retry::new(&World::system(), Policy::command(), name.into(), Arc::default());
        let settled = Settled::new(Arc::clone(&service), retry);
        let objects = Objects::new(settled, Arc::clone(&random));
        let records = ObjectRecords::new(Arc::new(objects), pool, 0).beside(beside.clone());
        let directory = HostDirectory {
            disk: Arc::clone(&self.disk),
            path,
            segments: host.segments,
            clock,
            random: Arc::clone(&random),
            number: self.number,
            host_name: format!("host-{}", self.number),
        };
        let place = self.directory.join("cache");
        let cache = RangeCache::open(&World::system(), place, CACHE_BYTES_MIN).unwrap();
        let cache = Some(PoolCache { pool, cache });
        let segments = ObjectSegments::new(service, directory, self.ships_flushes, cache);
        Backend {
            records: Arc::new(records),
            segments: Arc::new(segments),
            leases: beside.leases(random),
            shared: None,
        }
    }
}

impl Home for Host {
    fn record(&self) -> io::Result<Vec<u8>> {
        self.bucket.record.lock().unwrap().clone().ok_or(io::ErrorKind::NotFound.into())
    }

    fn create(&self, record: &[u8]) -> io::Result<()> {
        self.local.create(record)?;
        *self.bucket.record.lock().unwrap() = Some(record.to_vec());
        Ok(())
    }

    fn replace(&self, record: &[u8]) -> io::Result<()> {
        self.local.replace(record)?;
        *self.bucket.record.lock().unwrap() = Some(record.to_vec());
        Ok(())
    }

    fn lock(&self) -> io::Result<Box<dyn Lock>> {
        self.local.lock()
    }

    fn pools(&self) -> io::Result<Vec<String>> {
        Ok(self.bucket.pools.lock().unwrap().keys().cloned().collect())
    }

    fn has_pool(&self, name: &str) -> io::Result<bool> {
        Ok(self.bucket.pools.lock().unwrap().contains_key(name))
    }

    fn is_link(&self, _: &str) -> bool {
        false
    }

    fn holds_images(&self, _: &str) -> io::Result<bool> {
        Ok(false)
    }

    fn create_pool(&self, name: &str, readable_by: ReadableBy) -> io::Result<Backend> {
        let host = self.local.create_pool(name, readable_by)?;
        Ok(self.backend(name, host))
    }

    fn settle_pools(&self) -> io::Result<()> {
        self.local.settle_pools()
    }

    fn clear_pool(&self, name: &str, location: &Path) {
        self.local.clear_pool(name, location);
        self.bucket.pools.lock().unwrap().remove(name);
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
        // The directory of this host may not exist yet.
        let host = self.local.create_pool(name, ReadableBy::Owner)?;
        let bucket = self.backend(name, host.clone());
        if let Ok(record) = bucket.records.get(&Key::Pool, 1 << 16) {
            let _ = host.records.create(&Key::Pool, &record);
        }
        let Opened { backend, access } = self.local.open(at)?;
        Ok(Opened { backend: self.backend(name, backend), access })
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
