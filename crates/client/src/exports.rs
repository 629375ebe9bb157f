//! Images and snapshots of pools, as exports of the NBD server.
//!
//! Names are `pool/image`, `pool/namespace/image`, and `...@snap` for a snapshot, which is
//! read-only. The pool may be left out for images of the default pool.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use marcot::{
    Error, ErrorKind, ImageId, Namespace, Pool, PoolId, Result, Store, is_partial_name,
    number_in_trash_name,
};
use marcot_serve::control::Place;
use marcot_serve::host::{HostDevice, HostHandle, HostOptions, ImageHost};
use marcot_serve::nbd::negotiation::LIST_BYTES_MAX;
use marcot_serve::nbd::{ExportName, Exports};

use crate::client::Client;
use crate::image::Image;
use crate::image_spec::ImageSpec;
use crate::operation::Operation;
use crate::spec;

/// Largest time to make a list. Pools that have not been read by then are left out. Clients wait longer than
/// this for an answer.
const LIST_TIME_MAX: Duration = Duration::from_secs(15);

/// Largest number of pools whose names are read at a time. It is small, since each takes descriptors. Pools
/// that hang count too.
const POOLS_READ_MAX: usize = 8;

/// The exports of a store.
pub struct StoreExports {
    client: Client,
    /// Only these pools; all if empty.
    pools: Vec<String>,
    read_only: bool,
    takes_over: bool,
    /// Images that were opened for writing since, by pool and number: these are not taken over again.
    opened: Mutex<HashSet<(PoolId, ImageId)>>,
    /// Pools whose names are being read for a list.
    being_read: Arc<Mutex<HashSet<String>>>,
}

/// A pool, and its names that were read for a list.
type Listed = (String, Vec<ExportName>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn time_left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

impl StoreExports {
    /// Exports the images of `pools`, or of all pools if that is empty. With `read_only`, nobody can
    /// write to them.
    #[must_use]
    pub fn new(client: &Client, pools: Vec<String>, read_only: bool) -> Self {
        let client = client.clone();
        Self {
            client,
            pools,
            read_only,
            takes_over: false,
            opened: Mutex::default(),
            being_read: Arc::default(),
        }
    }

    /// Images are taken over from other hosts that have them open: see [`crate::Image::take_over`]. This is done
    /// once for each image. When another host takes one over from this process, clients that connect here again do
    /// not get it back.
    #[must_use]
    pub fn taking_over(self, takes_over: bool) -> Self {
        Self { takes_over, ..self }
    }

    fn chosen(&self, pool: &str) -> bool {
        self.pools.is_empty() || self.pools.iter().any(|name| name == pool)
    }

    /// Starts to read the names of a pool. Returns false if the thread of an earlier list still reads them,
    /// because the pool hangs.
    fn start_listing(&self, pool: String, sender: &mpsc::Sender<Listed>) -> bool {
        if !lock(&self.being_read).insert(pool.clone()) {
            return false;
        }
        let being_read = Arc::clone(&self.being_read);
        let (store, sender, name) = (self.client.store().clone(), sender.clone(), pool.clone());
        let thread = thread::Builder::new().name("nbd-list-pool".to_string());
        let started = thread.spawn(move || {
            let names = list_pool(&store, &name);
            lock(&being_read).remove(&name);
            // If the pool hung, the list is already made and nobody receives this.
            let _ = sender.send((name, names));
        });
        if let Err(error) = &started {
            lock(&self.being_read).remove(&pool);
            tracing::warn!(pool, %error, "left out of the list of exports");
        }
        started.is_ok()
    }

    /// The image of an export.
    fn find(&self, spec: &ImageSpec) -> Result<Image> {
        if !self.chosen(&spec.pool) {
            let message = format!("pool '{}' is not served", spec.pool);
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        self.client.pool(&spec.pool)?.image(spec.name())
    }
}

/// The names of one pool, as many as fit into a list.
#[derive(Default)]
struct Names {
    list: Vec<ExportName>,
    bytes: usize,
}

impl Names {
    fn push(&mut self, name: String) {
        self.bytes += name.len();
        self.list.push(ExportName { name, ..ExportName::default() });
    }

    /// True when a server's list cannot take more names.
    fn is_full(&self) -> bool {
        self.bytes >= LIST_BYTES_MAX
    }
}

/// The exports of a pool. Images that cannot be read are left out, and the log says so: they must not keep
/// other images out of the list.
fn list_pool(store: &Store, name: &str) -> Vec<ExportName> {
    let left_out = |namespace: &str, error: &Error| {
        let error = error.sentence().to_string();
        tracing::warn!(pool = name, namespace, error, "left out of the list of exports");
    };
    let mut names = Names::default();
    let pool = match store.pool(name) {
        Ok(pool) => pool,
        Err(error) => {
            left_out("", &error);
            return names.list;
        }
    };
    let others = pool.namespaces().unwrap_or_else(|error| {
        left_out("", &error);
        Vec::new()
    });
    let others = others.into_iter().map(Namespace::named);
    for namespace in std::iter::once(Namespace::DEFAULT).chain(others) {
        if let Err(error) = list_namespace(&pool, &namespace, &mut names) {
            left_out(&namespace.to_string(), &error);
        }
    }
    names.list
}

/// Adds the images of one namespace, and their snapshots.
fn list_namespace(pool: &Pool, namespace: &Namespace, names: &mut Names) -> Result<()> {
    for (image, id) in pool.images(namespace)? {
        if is_partial_name(&image) || number_in_trash_name(&image).is_some() {
            continue;
        }
        if names.is_full() {
            let (pool, namespace) = (pool.name(), namespace.to_string());
            tracing::warn!(pool, namespace, "the list of exports is too long for all of a pool");
            return Ok(());
        }
        let name = |snap: &str| spec::show(pool.name(), namespace, &image, snap);
        names.push(name(""));
        // An image that was removed meanwhile, or that cannot be read, is listed without snapshots.
        let snapshots = pool.info(id).map(|info| info.snapshots).unwrap_or_default();
        snapshots.iter().filter(|s| s.is_of_users()).for_each(|s| names.push(name(&s.name)));
    }
    Ok(())
}

impl Exports for StoreExports {
    /// Reads each pool in a thread of its own, so that a pool that hangs does not keep others out of the list.
    fn list(&self) -> Result<Vec<ExportName>> {
        let deadline = Instant::now() + LIST_TIME_MAX;
        let pools: Vec<String> =
            self.client.pools()?.into_iter().filter(|p| self.chosen(p)).collect();
        let (sender, receiver) = mpsc::channel();
        let mut lists: BTreeMap<String, Option<Vec<ExportName>>> =
            pools.iter().map(|pool| (pool.clone(), None)).collect();
        let mut waiting = pools.into_iter();
        let mut running = 0;
        loop {
            while lock(&self.being_read).len() < POOLS_READ_MAX
                && let Some(pool) = waiting.next()
            {
                running += usize::from(self.start_listing(pool, &sender));
            }
            if running == 0 {
                break;
            }
            let Ok((pool, names)) = receiver.recv_timeout(time_left(deadline)) else { break };
            lists.insert(pool, Some(names));
            running -= 1;
        }
        for (pool, _) in lists.iter().filter(|(_, names)| names.is_none()) {
            tracing::warn!(pool, "left out of the list of exports: it does not answer");
        }
        Ok(lists.into_values().flatten().flatten().collect())
    }

    fn describe(&self, name: &str) -> Result<ExportName> {
        Ok(ExportName { name: ImageSpec::parse(name)?.to_string(), ..ExportName::default() })
    }

    fn pool(&self, name: &str) -> String {
        ImageSpec::parse(name).map(|spec| spec.pool).unwrap_or_default()
    }

    fn identify(&self, name: &str) -> Result<String> {
        let spec = ImageSpec::parse(name)?;
        let image = self.find(&spec)?;
        let number = format!("{}/{}", image.pool().id(), image.id());
        let Some(name) = spec.snapshot else { return Ok(number) };
        let snapshots = image.engine_pool().info(image.id())?.snapshots;
        match snapshots.iter().find(|s| s.name == name && s.is_of_users()) {
            Some(snap) => Ok(format!("{number}@{}", snap.id)),
            None => Err(Error::new(ErrorKind::NotFound, format!("there is no snapshot '{name}'"))),
        }
    }

    fn open(&self, name: &str) -> Result<HostHandle> {
        let spec = ImageSpec::parse(name)?;
        let image = self.find(&spec)?;
        image.operate(Operation::ServeImages, || {
            let (pool, id) = (image.engine_pool(), image.id());
            let options = HostOptions {
                name: name.to_string(),
                control: Some(Place::of(pool, id)),
                gives_way: true,
                ..HostOptions::default()
            };
            let writes = spec.snapshot.is_none() && !self.read_only;
            if self.takes_over && writes && !lock(&self.opened).contains(&(pool.id(), id)) {
                pool.end_other_owner(id)?;
            }
            let device: Box<dyn HostDevice> = match &spec.snapshot {
                Some(snap) => Box::new(pool.open_snapshot(id, snap)?),
                None if self.read_only || pool.read_only() => Box::new(pool.open_read_only(id)?),
                // Another server may still keep the image open, though its clients are gone.
                None => Box::new(image.for_itself_at_once(|| pool.open(id)?.unlocked())?),
            };
            if self.takes_over && writes {
                lock(&self.opened).insert((pool.id(), id));
            }
            ImageHost::start(device, options)
        })
    }
}
