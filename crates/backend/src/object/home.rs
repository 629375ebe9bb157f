//! How a store reaches a pool in a bucket.
//!
//! The store has a note of the pool, and a directory of the host for it: `STORE/host/POOL`, by the pool's
//! number. The directory is laid out as a pool in a directory. It holds the leases of this host's processes, the
//! control sockets of owners, and what was not uploaded yet. So it outlives the note of a pool that is detached.

use std::collections::HashMap;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use marcot_format::PoolId;
use marcot_format::record::AttachedRecord;
use marcot_store::{Disk, World, publish_new};

use super::cache::{CACHE_BYTES_MIN, RangeCache};
use super::counted::Counted;
use super::envelope::{Objects, TOMBSTONE_BYTES};
use super::leases::{HOST_DIRECTORY_MODE, HostDirectory};
use super::records::{self, ObjectRecords};
use super::segments::{self, ObjectSegments, PoolCache};
use super::service::ObjectService;
use super::tally::Tally;
use super::{
    Dialect, Environment, Location, Patience, Policy, ProbeError, Retry, Settled, Stop, probe,
};
#[cfg(feature = "services")]
use super::{REQUEST_TIMEOUT, connect_with};
use crate::local::{self, layout, sweep};
use crate::{Access, Backend, Opened};

/// Directory of a store in which the host keeps a directory for each pool in a bucket.
const HOST: &str = "host";
/// Directory of a store for the cache, where no other was chosen.
const CACHE: &str = "cache";
/// The usual size of the cache in bytes.
pub const CACHE_BYTES_DEFAULT: u64 = 20 << 30;
/// File of a pool's directory on this host that holds the random number of the directory.
const NUMBER: &str = "number";
/// Permission bits of that file.
const NUMBER_MODE: u32 = 0o600;
/// Where the system tells the name of the host.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";
/// Limit on the length of a host's name, in bytes.
const HOST_NAME_BYTES_MAX: usize = 255;

/// Prefix of the objects of a probe.
const PROBE: &str = "probe/";

/// When a flush is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flush {
    /// When the bucket has what was written before.
    #[default]
    Remote,
    /// When the host's disk has it. A host that is lost takes the last seconds with it.
    Local,
}

/// Where a pool in a bucket is, and how this store uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bucket {
    /// Where it is, and how its service is reached.
    pub location: Location,
    /// The pool's number; 0 where it is not known yet.
    pub pool: PoolId,
    /// When a flush is done.
    pub flush: Flush,
    /// The directory of the cache; `None`: below the store.
    pub cache: Option<PathBuf>,
    /// The size of the cache in bytes; `None`: the usual one.
    pub cache_bytes: Option<u64>,
    /// How to talk to the service, as the probe has found it.
    pub dialect: Dialect,
}

/// How a user wants a pool in a bucket to be reached and used. What is left out is found where users of the
/// service have it, or is the usual.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BucketOptions {
    /// The URL of the service.
    pub endpoint: Option<String>,
    /// The region of the bucket.
    pub region: Option<String>,
    /// A file that holds the credentials.
    pub credentials: Option<PathBuf>,
    /// When a flush is done.
    pub flush: Flush,
    /// The directory of the cache.
    pub cache: Option<PathBuf>,
    /// The size of the cache in bytes.
    pub cache_bytes: Option<u64>,
}

fn absolute(path: Option<&Path>) -> io::Result<Option<PathBuf>> {
    path.map(std::path::absolute).transpose()
}

impl Bucket {
    /// The pool at a URL, as the user of this process reaches it.
    ///
    /// # Errors
    /// `InvalidInput`, with one sentence, for a URL or option that cannot be right; what reading the files of the
    /// user says.
    pub fn chosen(url: &str, options: &BucketOptions) -> io::Result<Self> {
        let mut location = Location::parse(url)?;
        if let Some(endpoint) = &options.endpoint {
            location = location.with_endpoint(endpoint)?;
        }
        if let Some(region) = &options.region {
            location = location.with_region(region)?;
        }
        if let Some(credentials) = absolute(options.credentials.as_deref())? {
            location = location.with_credentials(&credentials)?;
        }
        if options.cache_bytes.is_some_and(|bytes| bytes < CACHE_BYTES_MIN) {
            let why = format!("a cache has at least {} MiB", CACHE_BYTES_MIN >> 20);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        Ok(Self {
            flush: options.flush,
            cache: absolute(options.cache.as_deref())?,
            cache_bytes: options.cache_bytes,
            ..Self::at(location.completed(&Environment::of_process())?)
        })
    }

    /// A pool at a location, with the usual choices.
    #[must_use]
    pub fn at(location: Location) -> Self {
        Self {
            location,
            pool: PoolId(0),
            flush: Flush::default(),
            cache: None,
            cache_bytes: None,
            dialect: Dialect::default(),
        }
    }

    /// The pool that a store's note leads to.
    ///
    /// # Errors
    /// `InvalidInput` where the note leads to none.
    pub fn from_record(record: &AttachedRecord) -> io::Result<Self> {
        let mut location = Location::parse(&record.url)?;
        if !record.endpoint.is_empty() {
            location = location.with_endpoint(&record.endpoint)?;
        }
        if !record.region.is_empty() {
            location = location.with_region(&record.region)?;
        }
        if !record.credentials.is_empty() {
            location = location.with_credentials(Path::new(&record.credentials))?;
        }
        let given = |text: &String| (!text.is_empty()).then(|| PathBuf::from(text));
        Ok(Self {
            pool: PoolId(record.pool_id),
            flush: if record.flush_local { Flush::Local } else { Flush::Remote },
            cache: given(&record.cache_directory),
            cache_bytes: (record.cache_bytes > 0).then_some(record.cache_bytes),
            dialect: Dialect { bare_etags: record.bare_etags },
            ..Self::at(location)
        })
    }

    /// The store's note.
    ///
    /// # Errors
    /// `InvalidInput` for a path that is not UTF-8.
    pub fn to_record(&self) -> io::Result<AttachedRecord> {
        let text = |path: Option<&Path>| match path.map(|path| path.to_str().ok_or(path)) {
            None => Ok(String::new()),
            Some(Ok(text)) => Ok(text.to_owned()),
            Some(Err(path)) => {
                let why = format!("the path {} is not UTF-8", path.display());
                Err(io::Error::new(io::ErrorKind::InvalidInput, why))
            }
        };
        Ok(AttachedRecord {
            pool_id: self.pool.0,
            url: self.location.to_string(),
            endpoint: self.location.endpoint().unwrap_or_default().to_owned(),
            region: self.location.region().unwrap_or_default().to_owned(),
            credentials: text(self.location.credentials())?,
            flush_local: self.flush == Flush::Local,
            cache_directory: text(self.cache.as_deref())?,
            cache_bytes: self.cache_bytes.unwrap_or(0),
            bare_etags: self.dialect.bare_etags,
            ..AttachedRecord::default()
        })
    }
}

/// What lies below the prefix of a pool in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A pool.
    Pool,
    /// What a removed pool has left.
    Removed,
    /// Something else: an object, as messages name it.
    Other(String),
}

/// A connection to the service of a pool.
pub struct Connected {
    /// The service. A call is one request.
    pub service: Arc<dyn ObjectService>,
    /// The same for records. The pool's home gives it the policy.
    pub settled: Settled,
    /// For what an open image waits for: as long as it takes.
    pub patient: Retry,
    /// Makes it talk as a probe has found it right.
    pub set_dialect: Box<dyn Fn(Dialect) + Send + Sync>,
}

/// Makes connections: those of the real services, or others in tests.
pub type Connect = Arc<dyn Fn(&Location, &World) -> io::Result<Connected> + Send + Sync>;

/// The policy for the heads of open images. A refusal is an answer: the head is as it was.
#[must_use]
pub fn patient_policy() -> Policy {
    Policy { wait_when_refused: false, ..Policy::image() }
}

/// The connections of a process to real services.
#[cfg(not(feature = "services"))]
#[must_use]
pub fn real_services(_: Patience) -> Connect {
    Arc::new(|location, _| {
        let message = format!("{location}: this program was built without object stores");
        Err(io::Error::new(io::ErrorKind::Unsupported, message))
    })
}

/// The connections of a process to real services. No request takes longer than guests wait.
#[cfg(feature = "services")]
#[must_use]
pub fn real_services(patience: Patience) -> Connect {
    let timeout = patience.io_timeout().map_or(REQUEST_TIMEOUT, |time| time.min(REQUEST_TIMEOUT));
    Arc::new(move |location, world| {
        let connection = connect_with(location, world, &Environment::of_process(), timeout)?;
        Ok(Connected {
            service: connection.service(),
            settled: connection.settled(Policy::command()),
            patient: connection.retry(patient_policy()),
            set_dialect: Box::new(move |dialect| connection.set_dialect(dialect)),
        })
    })
}

/// A connection whose requests are counted.
struct Link {
    connected: Connected,
    counted: Arc<Counted>,
    tally: OnceLock<Arc<Tally>>,
}

impl Link {
    fn new(connected: Connected, patience: Patience) -> Self {
        let counted = Arc::new(Counted::new(connected.service));
        let service: Arc<dyn ObjectService> = Arc::<Counted>::clone(&counted);
        let asked = Arc::clone(&service);
        let unreached: Stop = Arc::new(move || asked.is_unreached());
        let retry = connected.settled.retry().with_policy(patience.records());
        let retry = retry.with_unreached(Arc::clone(&unreached));
        let patient = connected.patient.with_unreached(unreached);
        let settled = Settled::new(Arc::clone(&service), retry);
        let connected = Connected { service, settled, patient, ..connected };
        Self { connected, counted, tally: OnceLock::new() }
    }

    /// The tally of the host. The requests before count too.
    fn tally(&self, disk: &Arc<dyn Disk>, directory: &Path) -> &Arc<Tally> {
        let new = || Arc::new(Tally::new(Arc::clone(disk), directory));
        let tally = self.tally.get_or_init(new);
        self.counted.tell(tally);
        tally
    }
}

impl Deref for Link {
    type Target = Connected;

    fn deref(&self) -> &Connected {
        &self.connected
    }
}

/// The pools in buckets that a process uses, each with one connection.
pub(crate) struct Buckets {
    world: World,
    connect: Connect,
    patience: Patience,
    /// The directory of the store.
    store: PathBuf,
    connected: Mutex<HashMap<Location, Arc<Link>>>,
    caches: Mutex<HashMap<PathBuf, RangeCache>>,
}

impl Buckets {
    pub(crate) fn new(world: &World, connect: Connect, patience: Patience, store: &Path) -> Self {
        let (world, store) = (world.clone(), store.to_owned());
        let (connected, caches) = (Mutex::default(), Mutex::default());
        Self { world, connect, patience, store, connected, caches }
    }

    fn connect(&self, bucket: &Bucket) -> io::Result<Arc<Link>> {
        let mut all = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connected) = all.get(&bucket.location) {
            return Ok(Arc::clone(connected));
        }
        let made = (self.connect)(&bucket.location, &self.world)?;
        let connected = Arc::new(Link::new(made, self.patience));
        (connected.set_dialect)(bucket.dialect);
        all.insert(bucket.location.clone(), Arc::clone(&connected));
        Ok(connected)
    }

    fn objects(&self, bucket: &Bucket) -> io::Result<Objects> {
        let connected = self.connect(bucket)?;
        Ok(Objects::new(connected.settled.clone(), Arc::clone(&self.world.random)))
    }

    /// What lies below the pool's prefix.
    pub(crate) fn look(&self, bucket: &Bucket) -> io::Result<Found> {
        let objects = self.objects(bucket)?;
        match objects.start_of(records::POOL, TOMBSTONE_BYTES + 1)? {
            Some(start) if start.len() as u64 > TOMBSTONE_BYTES => return Ok(Found::Pool),
            Some(_) => return Ok(Found::Removed),
            None => {}
        }
        let mut other = None;
        objects.list("", &mut |object| {
            other = Some(object.key.clone()).filter(|key| !key.starts_with(PROBE));
            other.is_none()
        })?;
        let show = |key: String| objects.service().show(&key);
        Ok(other.map_or(Found::Nothing, |key| Found::Other(show(key))))
    }

    /// Tries what a pool needs of the service, and notes how it wants to be talked to. Tries the cache, too.
    pub(crate) fn probe(&self, bucket: &mut Bucket) -> io::Result<()> {
        self.cache(bucket)?;
        let connected = self.connect(bucket)?;
        match probe(&connected.settled, &*self.world.random, &connected.set_dialect) {
            Ok(findings) => {
                bucket.dialect = findings.dialect;
                Ok(())
            }
            Err(ProbeError::Service(error)) => Err(error.into()),
            Err(error) => Err(io::Error::new(io::ErrorKind::Unsupported, error)),
        }
    }

    /// Opens the cache that a pool uses.
    pub(crate) fn cache(&self, bucket: &Bucket) -> io::Result<RangeCache> {
        let directory = bucket.cache.clone().unwrap_or_else(|| self.store.join(CACHE));
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = caches.get(&directory) {
            return Ok(cache.clone());
        }
        let bytes_max = bucket.cache_bytes.unwrap_or(CACHE_BYTES_DEFAULT);
        let opened = RangeCache::open(&self.world, directory.clone(), bytes_max);
        let cache = opened.map_err(|error| match error.get_ref() {
            // A sentence that names it.
            Some(_) => error,
            None => {
                let kind = error.kind();
                let message = format!("{} cannot be used as a cache: {kind}", directory.display());
                let is_wrong = kind == io::ErrorKind::NotADirectory;
                io::Error::new(if is_wrong { io::ErrorKind::InvalidInput } else { kind }, message)
            }
        })?;
        caches.insert(directory, cache.clone());
        Ok(cache)
    }

    /// A pool is used without a cache where that cannot be opened now.
    fn cache_or_none(&self, bucket: &Bucket) -> Option<PoolCache> {
        match self.cache(bucket) {
            Ok(cache) => Some(PoolCache { pool: bucket.pool, cache }),
            Err(error) => {
                let place = &bucket.location;
                tracing::warn!(%place, %error, "the pool is used without a cache");
                None
            }
        }
    }

    /// The directory of the host for a pool.
    fn host_directory(&self, bucket: &Bucket) -> PathBuf {
        self.store.join(HOST).join(bucket.pool.to_string())
    }

    fn make_host_directory(&self, disk: &dyn Disk, bucket: &Bucket) -> io::Result<PathBuf> {
        let path = self.host_directory(bucket);
        if disk.mode(&path.join(NUMBER)).is_ok() {
            return Ok(path);
        }
        let above = self.store.join(HOST);
        let (images, segments) = (layout::images(&path), layout::segments(&path));
        for (made, inside) in
            [(&above, &self.store), (&path, &above), (&images, &path), (&segments, &path)]
        {
            match disk.create_directory(made, HOST_DIRECTORY_MODE) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => {
                    made?;
                    disk.sync_directory(inside)?;
                }
            }
        }
        let (random, file) = (&self.world.random, path.join(NUMBER));
        let number = random.number().to_le_bytes();
        match publish_new(disk, &file, random.number(), NUMBER_MODE, &number) {
            // Another process was first.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(path),
            published => published.map(|()| path),
        }
    }

    /// The name of this host, for people.
    fn host_name(&self) -> String {
        let read = || {
            let mut bytes = [0; HOST_NAME_BYTES_MAX];
            let file = self.world.disk.open(Path::new(HOST_NAME), false)?;
            let n = file.read_at(0, &mut bytes)?;
            io::Result::Ok(String::from_utf8_lossy(&bytes[..n]).trim().to_owned())
        };
        read().ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "(unknown host)".to_owned())
    }

    /// The part of this host in a pool.
    fn host(
        &self,
        disk: &Arc<dyn Disk>,
        directory: &Path,
        local: &Backend,
    ) -> io::Result<segments::HostDirectory> {
        let file = disk.open(&directory.join(NUMBER), false)?;
        let mut number = [0; 8];
        if file.read_at(0, &mut number)? < number.len() {
            let why = format!("{} is damaged", directory.join(NUMBER).display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(segments::HostDirectory {
            disk: Arc::clone(disk),
            path: directory.to_owned(),
            segments: Arc::clone(&local.segments),
            clock: Arc::clone(&self.world.clock),
            random: Arc::clone(&self.world.random),
            number: u64::from_le_bytes(number),
            host_name: self.host_name(),
        })
    }

    /// Opens a pool. Where its number is not known yet, only its records can be used. `disk` reaches the store.
    pub(crate) fn open(&self, disk: &Arc<dyn Disk>, bucket: &Bucket) -> io::Result<Opened> {
        let known = bucket.pool != PoolId(0);
        let directory = match known {
            false => self.host_directory(bucket),
            true => self.make_host_directory(&**disk, bucket)?,
        };
        let user = disk.user_id();
        let random = || Arc::clone(&self.world.random);
        let local = local::open(Arc::clone(disk), &directory, HOST_DIRECTORY_MODE, random());
        let segments = match known {
            false => Arc::clone(&local.segments),
            true => {
                let connected = self.connect(bucket)?;
                let tally = Arc::clone(connected.tally(disk, &directory));
                let segments = ObjectSegments::patient(
                    Arc::clone(&connected.service),
                    &connected.patient,
                    self.patience,
                    self.host(disk, &directory, &local)?,
                    bucket.flush == Flush::Remote,
                    self.cache_or_none(bucket),
                );
                Arc::new(segments.with_tally(tally))
            }
        };
        let host = HostDirectory::new(Arc::clone(disk), &directory);
        let records = ObjectRecords::new(Arc::new(self.objects(bucket)?), bucket.pool, user);
        let access = Access {
            shown: bucket.location.to_string(),
            directory,
            owner_id: user,
            own: true,
            writable: true,
            public: false,
            // No directory has the device 0.
            identity: (0, bucket.pool.0, user),
        };
        let backend = Backend {
            leases: host.leases(random()),
            records: Arc::new(records.beside(host).patient(self.connect(bucket)?.patient.clone())),
            segments,
            shared: None,
        };
        Ok(Opened { backend, access })
    }

    /// Removes what a removed pool has left in its bucket and on this host. Errors leave litter, nothing worse.
    pub(crate) fn clear(&self, disk: &dyn Disk, bucket: &Bucket) {
        let left = || {
            let objects = self.objects(bucket)?;
            let mut keys = Vec::new();
            objects.list("", &mut |object| {
                // What could be made again under the same key stays.
                if !records::outlives_pool(&object.key) {
                    keys.push(object.key.clone());
                }
                true
            })?;
            keys.iter().try_for_each(|key| objects.remove(key))
        };
        if let Err(error) = left() {
            let place = &bucket.location;
            tracing::warn!(%place, %error, "objects of a removed pool are left behind");
        }
        sweep(disk, &self.host_directory(bucket));
    }
}
