//! A client of a store: the state and settings that all operations share.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use marcot::{ImageId, Result, Store, World};
use marcot_serve::descriptors;

use crate::external::Sources;
use crate::operation::Operation;
use crate::options::Options;
use crate::retry::Retry;

/// A store, with the settings for operations on it. Cheap to clone; clones are the same client.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    store: Store,
    world: World,
    options: Options,
    /// Processes that have not answered this client. It waits only once for the same server, however
    /// many images the server has open.
    silent: Mutex<Vec<u32>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("store", &self.0.store.directory()).finish_non_exhaustive()
    }
}

impl Client {
    /// Opens the store in `directory`. Makes the directory if it does not exist.
    ///
    /// # Errors
    /// `PermissionDenied`, `Corrupt`, `NewerFormat`; errors of the operating system.
    pub fn open(directory: &Path, options: Options) -> Result<Self> {
        let world = World::system();
        let store = Store::open_with(world.clone(), directory, options.limits)?;
        store.set_external_sources(Arc::new(Sources(options.interrupt.clone())));
        Ok(Self(Arc::new(Inner { store, world, options, silent: Mutex::default() })))
    }

    /// The store, for operations that this crate does not have.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Raises this process's limit of open files as far as it may, and lets the store use its share of them.
    /// With many pools and segments, the limit that processes start with is low.
    pub fn use_all_descriptors(&self) {
        let segment_files = descriptors::segment_files(descriptors::raise_limit());
        self.0.store.set_segment_files_max(usize::try_from(segment_files).unwrap_or(usize::MAX));
    }

    /// The store's directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.0.store.directory()
    }

    /// The time in seconds since 1970.
    pub(crate) fn now_s(&self) -> i64 {
        self.0.world.clock.now_s()
    }

    pub(crate) fn options(&self) -> &Options {
        &self.0.options
    }

    pub(crate) fn retry(&self) -> Retry<'_> {
        Retry { interrupt: &self.0.options.interrupt, world: &self.0.world }
    }

    /// True once the operation in progress should end.
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
}
