//! A client of a store: the way to pools and images, and what concerns pools as a whole.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use marcot::{CreateOptions, ImageId, PoolOptions, Result, Store, World};
use marcot_serve::descriptors;

use crate::image::Image;
use crate::image_spec::ImageSpec;
use crate::operation::Operation;
use crate::options::Options;
use crate::pool::Pool;
use crate::retry::Retry;

/// A store, and how things are done in it. Cheap to clone; clones are the same client.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    store: Store,
    world: World,
    options: Options,
    /// Processes that have not answered this client. Nobody waits twice for the same server, however
    /// many images it has open.
    silent: Mutex<Vec<u32>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("store", &self.0.store.directory()).finish_non_exhaustive()
    }
}

impl Client {
    /// Opens the store in `directory`, which is made where there is none.
    ///
    /// # Errors
    /// `PermissionDenied`, `Corrupt`, `NewerFormat`; what the operating system says.
    pub fn open(directory: &Path, options: Options) -> Result<Self> {
        let world = World::system();
        let store = Store::open_with(world.clone(), directory, options.limits)?;
        Ok(Self(Arc::new(Inner { store, world, options, silent: Mutex::default() })))
    }

    /// The store, for what this crate has no operation for.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Lets this process have as many files open as it may, and the store keep its share of them open:
    /// where there are many pools and segments, the limit that processes begin with is low.
    pub fn use_all_descriptors(&self) {
        let segment_files = descriptors::segment_files(descriptors::raise_limit());
        self.0.store.set_segment_files_max(usize::try_from(segment_files).unwrap_or(usize::MAX));
    }

    /// The store's directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.0.store.directory()
    }

    pub(crate) fn options(&self) -> &Options {
        &self.0.options
    }

    pub(crate) fn retry(&self) -> Retry<'_> {
        Retry { interrupt: &self.0.options.interrupt, world: &self.0.world }
    }

    /// True once what is being done should end.
    pub(crate) fn interrupted(&self) -> bool {
        self.0.options.interrupt.came()
    }

    pub(crate) fn silent(&self) -> MutexGuard<'_, Vec<u32>> {
        self.0.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn operate<T>(
        &self,
        operation: Operation,
        pool: &str,
        image: Option<ImageId>,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.0.options.operate(operation, pool, image, work)
    }

    fn operate_on_pool<T>(
        &self,
        operation: Operation,
        pool: &str,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.operate(operation, pool, None, work)
    }

    /// A pool of the store.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `Invalid` where it is not the pool that was attached, `Corrupt`,
    /// `NewerFormat`.
    pub fn pool(&self, name: &str) -> Result<Pool> {
        let pool = self.0.store.pool(name)?;
        Ok(Pool::new(self.clone(), pool))
    }

    /// The image that a name leads to now. It stays the same image when it is renamed.
    ///
    /// # Errors
    /// Those of [`Self::pool`]; `NotFound` for the image or its namespace; `Invalid` where a snapshot is
    /// named, which [`Image::snapshot`] gives.
    pub fn image(&self, spec: &ImageSpec) -> Result<Image> {
        spec.refuse_snapshot()?;
        self.pool(&spec.pool)?.image(&spec.namespace, &spec.image)
    }

    /// Creates an image that reads as zeros.
    ///
    /// # Errors
    /// Those of [`Self::pool`] and [`Pool::create`].
    pub fn create(&self, spec: &ImageSpec, options: &CreateOptions) -> Result<Image> {
        spec.refuse_snapshot()?;
        self.pool(&spec.pool)?.create(&spec.namespace, &spec.image, options)
    }

    /// The names of the store's pools, sorted.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn pools(&self) -> Result<Vec<String>> {
        self.operate_on_pool(Operation::ListPools, "", || self.0.store.pools())
    }

    /// Creates a pool in the store's own directory.
    ///
    /// # Errors
    /// `Exists`; `Invalid`, `NameTooLong` for its name; what the operating system says.
    pub fn create_pool(&self, name: &str, options: &PoolOptions) -> Result<Pool> {
        let create = || self.0.store.pool_create(name, options);
        let pool = self.operate_on_pool(Operation::CreatePool, name, create)?;
        Ok(Pool::new(self.clone(), pool))
    }

    /// Makes sure that a pool can be used; harmless, for that is so when it has been created.
    ///
    /// # Errors
    /// `NotFound`, `ReadOnly`; what the operating system says.
    pub fn init_pool(&self, name: &str) -> Result<()> {
        self.operate_on_pool(Operation::InitPool, name, || self.0.store.pool_init(name))
    }

    /// Removes a pool that holds no images; those that were never whole do not count.
    ///
    /// # Errors
    /// `NotFound`, `NotEmpty`, `Busy`; what the operating system says.
    pub fn remove_pool(&self, name: &str) -> Result<()> {
        self.operate_on_pool(Operation::RemovePool, name, || {
            if let Ok(pool) = self.pool(name) {
                pool.remove_all_remains();
            }
            self.0.store.pool_remove(name)
        })
    }

    /// Makes the pool of another store, in `directory`, known here as `name`.
    ///
    /// # Errors
    /// `Exists`, `Invalid`; `NotFound` where the directory holds no pool.
    pub fn attach_pool(&self, name: &str, directory: &Path) -> Result<Pool> {
        let attach = || self.0.store.pool_attach(name, directory);
        let pool = self.operate_on_pool(Operation::AttachPool, name, attach)?;
        Ok(Pool::new(self.clone(), pool))
    }

    /// Forgets an attached pool.
    ///
    /// # Errors
    /// `NotFound`; `Busy` while there are clones of its images here; `Invalid` for a pool of this store.
    pub fn detach_pool(&self, name: &str) -> Result<()> {
        self.operate_on_pool(Operation::DetachPool, name, || self.0.store.pool_detach(name))
    }

    /// True where the creation of a pool was cut off; creating it again finishes it.
    #[must_use]
    pub fn is_unfinished(&self, pool: &str) -> bool {
        self.0.store.is_unfinished(pool)
    }
}
