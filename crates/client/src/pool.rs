//! The pools of a store; the namespaces of a pool, and which images it has.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use marcot::catalog::is_partial_name;
use marcot::{ImageId, ImageName, InfoReader, Namespace, PoolId, PoolOptions, PoolStats, Result};

use crate::client::Client;
use crate::operation::Operation;

/// A pool of the client's store. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    client: Client,
    pool: marcot::Pool,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.name()).finish()
    }
}

impl Client {
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
        let pool = self.store().pool(name)?;
        Ok(Pool::new(self.clone(), pool))
    }

    /// The names of the store's pools, sorted.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn pools(&self) -> Result<Vec<String>> {
        self.operate_on_pool(Operation::ListPools, "", || self.store().pools())
    }

    /// Creates a pool in the store's own directory.
    ///
    /// # Errors
    /// `Exists`; `Invalid`, `NameTooLong` for its name; what the operating system says.
    pub fn create_pool(&self, name: &str, options: &PoolOptions) -> Result<Pool> {
        let create = || self.store().pool_create(name, options);
        let pool = self.operate_on_pool(Operation::CreatePool, name, create)?;
        Ok(Pool::new(self.clone(), pool))
    }

    /// Makes sure that a pool can be used; harmless, for that is so when it has been created.
    ///
    /// # Errors
    /// `NotFound`, `ReadOnly`; what the operating system says.
    pub fn init_pool(&self, name: &str) -> Result<()> {
        self.operate_on_pool(Operation::InitPool, name, || self.store().pool_init(name))
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
            self.store().pool_remove(name)
        })
    }

    /// Makes the pool of another store, in `directory`, known here as `name`.
    ///
    /// # Errors
    /// `Exists`, `Invalid`; `NotFound` where the directory holds no pool.
    pub fn attach_pool(&self, name: &str, directory: &Path) -> Result<Pool> {
        let attach = || self.store().pool_attach(name, directory);
        let pool = self.operate_on_pool(Operation::AttachPool, name, attach)?;
        Ok(Pool::new(self.clone(), pool))
    }

    /// Forgets an attached pool.
    ///
    /// # Errors
    /// `NotFound`; `Busy` while there are clones of its images here; `Invalid` for a pool of this store.
    pub fn detach_pool(&self, name: &str) -> Result<()> {
        self.operate_on_pool(Operation::DetachPool, name, || self.store().pool_detach(name))
    }

    /// True where the creation of a pool was cut off; creating it again finishes it.
    #[must_use]
    pub fn is_unfinished(&self, pool: &str) -> bool {
        self.store().is_unfinished(pool)
    }
}

impl Pool {
    pub(crate) fn new(client: Client, pool: marcot::Pool) -> Self {
        Self { client, pool }
    }

    /// The client that it was opened by.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The engine's pool, for what this crate has no operation for.
    #[must_use]
    pub fn engine(&self) -> &marcot::Pool {
        &self.pool
    }

    /// Its name in this store.
    #[must_use]
    pub fn name(&self) -> &str {
        self.pool.name()
    }

    /// Its number, which it keeps under every name.
    #[must_use]
    pub fn id(&self) -> PoolId {
        self.pool.id()
    }

    /// Where it lies.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.pool.directory()
    }

    /// True where it can only be read.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.pool.read_only()
    }

    pub(crate) fn operate<T>(
        &self,
        operation: Operation,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.client.operate(operation, self.name(), None, work)
    }

    /// Its namespaces, sorted, without the default one.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn namespaces(&self) -> Result<Vec<String>> {
        self.operate(Operation::ListNamespaces, || self.pool.namespaces())
    }

    /// True where a namespace exists. The default one always does.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn has_namespace(&self, namespace: &Namespace) -> Result<bool> {
        let Some(wanted) = namespace.name() else { return Ok(true) };
        Ok(self.pool.namespaces()?.iter().any(|name| name == wanted))
    }

    /// Creates a namespace.
    ///
    /// # Errors
    /// `Exists`; `Invalid`, `NameTooLong` for its name; `ReadOnly`.
    pub fn create_namespace(&self, namespace: &str) -> Result<()> {
        self.operate(Operation::CreateNamespace, || self.pool.namespace_create(namespace))
    }

    /// Removes a namespace that holds no images; those that were never whole do not count.
    ///
    /// # Errors
    /// `NotFound`, `NotEmpty`, `Busy`, `ReadOnly`.
    pub fn remove_namespace(&self, namespace: &str) -> Result<()> {
        self.operate(Operation::RemoveNamespace, || {
            self.remove_remains(&Namespace::named(namespace));
            self.pool.namespace_remove(namespace)
        })
    }

    /// The images of a namespace, by name, without those that are not whole yet. An image has one name:
    /// where more lead to it, as only damage or a hostile pool can have it, the others are left out, so
    /// that a few bytes do not decide how much is shown.
    ///
    /// # Errors
    /// `NotFound` for the namespace; `Corrupt`; what the operating system says.
    pub fn images(&self, namespace: &Namespace) -> Result<Vec<(String, ImageId)>> {
        self.operate(Operation::ListImages, || {
            let mut images = self.pool.images(namespace)?;
            let mut seen = HashSet::new();
            let mut more_names = 0;
            images.retain(|(name, id)| {
                let first = seen.insert(*id);
                more_names += u64::from(!first);
                first && !is_partial_name(name)
            });
            if more_names > 0 {
                tracing::warn!(
                    pool = self.name(),
                    names = more_names,
                    "names that lead to images that have another name are left out"
                );
            }
            Ok(images)
        })
    }

    /// Reads what heads tell of many images of this pool, at less cost than one by one.
    #[must_use]
    pub fn info_reader(&self) -> InfoReader {
        InfoReader::new(&self.pool)
    }

    /// Gives an image another name in the same namespace, while it is in use or not. Its children keep
    /// their parent.
    ///
    /// # Errors
    /// `NotFound`; `Exists`; `Invalid`, `NameTooLong` for the new name; `ReadOnly`.
    pub fn rename(&self, from: impl Into<ImageName>, to: &str) -> Result<()> {
        let from = from.into();
        self.operate(Operation::RenameImage, || self.pool.rename(from, to))
    }

    /// Totals of the pool.
    ///
    /// # Errors
    /// `Corrupt` for a damaged head; what the operating system says.
    pub fn stats(&self) -> Result<PoolStats> {
        self.operate(Operation::PoolStats, || self.client.store().pool_stats(&self.pool))
    }

    /// As [`Self::remove_remains`], in every namespace.
    pub(crate) fn remove_all_remains(&self) {
        let namespaces = self.pool.namespaces().unwrap_or_default();
        let namespaces = namespaces.into_iter().map(Namespace::named);
        for namespace in namespaces.chain([Namespace::DEFAULT]) {
            self.remove_remains(&namespace);
        }
    }

    /// Removes the partial images of imports that are no more. What fails here is tried again by the next.
    pub(crate) fn remove_remains(&self, namespace: &Namespace) {
        if let Err(error) = self.client.store().remove_abandoned(&self.pool, namespace) {
            tracing::debug!(pool = %self.name(), error = %error.sentence(), "a partial image is left");
        }
    }
}
