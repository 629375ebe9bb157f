//! A client of a store: what all its operations have in common.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use marcot::{ImageId, Result, Store, World};
use marcot_serve::descriptors;

use crate::operation::Operation;
use crate::options::Options;
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
}
