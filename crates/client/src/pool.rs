//! The pools of a store, and the namespaces and lists of images of a pool.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use marcot::{
    BucketOptions, ImageId, ImageName, InfoReader, Keep, Levels, Namespace, PoolId, PoolOptions,
    PoolStats, Result, is_partial_name, number_in_trash_name,
};

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
    /// `NotFound`, `PermissionDenied`, `Invalid` if it is not the pool that was attached, `Corrupt`,
    /// `NewerFormat`.
    pub fn pool(&self, name: &str) -> Result<Pool> {
        let pool = self.store().pool(name)?;
        Ok(Pool::new(self.clone(), pool))
    }

    /// The names of the store's pools, sorted.
    ///
    /// # Errors
    /// Errors of the operating system.
    pub fn pools(&self) -> Result<Vec<String>> {
        self.operate_on_pool(Operation::ListPools, "", || self.store().pools())
    }

    /// Creates a pool in the store's own directory.
    ///
    /// # Errors
    /// `Exists`; `Invalid`, `NameTooLong` for its name; errors of the operating system.
    pub fn create_pool(&self, name: &str, options: &PoolOptions) -> Result<Pool> {
        let create = || self.store().pool_create(name, options);
        let pool = self.operate_on_pool(Operation::CreatePool, name, create)?;
        Ok(Pool::new(self.clone(), pool))
    }

    /// Creates a pool in a bucket, at a URL such as `s3://bucket/prefix`.
    ///
    /// # Errors
    /// `Exists` where there is a pool of this name, or anything at the URL; `Unsupported` where the service cannot hold a pool; `Invalid`, `PermissionDenied`, `Io` as the service
    /// says.
    pub fn create_pool_in_bucket(
        &self,
        name: &str,
        url: &str,
        options: &BucketOptions,
    ) -> Result<Pool> {
        let create = || self.store().pool_create_in_bucket(name, url, options);
        let pool = self.operate_on_pool(Operation::CreatePool, name, create)?;
        Ok(Pool::new(self.clone(), pool))
    }

    /// Checks that a pool can be used. It changes nothing: a created pool needs no initialization.
    ///
    /// # Errors
    /// `NotFound`, `ReadOnly`; errors of the operating system.
    pub fn init_pool(&self, name: &str) -> Result<()> {
        self.operate_on_pool(Operation::InitPool, name, || self.store().pool_init(name))
    }

    /// Removes a pool that holds no images. Incomplete images do not count.
    ///
    /// # Errors
    /// `NotFound`, `NotEmpty`, `Busy`; errors of the operating system.
    pub fn remove_pool(&self, name: &str) -> Result<()> {
        self.operate_on_pool(Operation::RemovePool, name, || {
            if let Ok(pool) = self.pool(name) {
                pool.remove_all_remains(Keep::Nothing);
            }
            self.store().pool_remove(name)
        })
    }

    /// Attaches the pool of another store, in `directory`, to this store as `name`.
    ///
    /// # Errors
    /// `Exists`, `Invalid`; `NotFound` where the directory holds no pool.
    pub fn attach_pool(&self, name: &str, directory: &Path) -> Result<Pool> {
        let attach = || self.store().pool_attach(name, directory);
        let pool = self.operate_on_pool(Operation::AttachPool, name, attach)?;
        Ok(Pool::new(self.clone(), pool))
    }

    /// Attaches a pool in a bucket, which another store has made, to this store as `name`.
    ///
    /// # Errors
    /// As [`Self::create_pool_in_bucket`]; `NotFound` where there is no pool at the URL.
    pub fn attach_bucket(&self, name: &str, url: &str, options: &BucketOptions) -> Result<Pool> {
        let attach = || self.store().pool_attach_bucket(name, url, options);
        let pool = self.operate_on_pool(Operation::AttachPool, name, attach)?;
        Ok(Pool::new(self.clone(), pool))
    }

    /// Detaches an attached pool, or one in a bucket.
    ///
    /// # Errors
    /// `NotFound`; `Busy` while there are clones of its images here; `Invalid` for a pool of this store.
    pub fn detach_pool(&self, name: &str) -> Result<()> {
        self.operate_on_pool(Operation::DetachPool, name, || self.store().pool_detach(name))
    }

    /// True if the creation of a pool was cut off. Creating it again finishes it.
    #[must_use]
    pub fn is_unfinished(&self, pool: &str) -> bool {
        self.store().is_unfinished(pool)
    }
}

impl Pool {
    pub(crate) fn new(client: Client, pool: marcot::Pool) -> Self {
        Self { client, pool }
    }

    /// The client that opened it.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The engine's pool, for operations that this crate does not have.
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

    /// The directory of this machine where it lies, or which this host keeps for it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.pool.directory()
    }

    /// Where it lies, for people: its directory, or the URL of a bucket.
    #[must_use]
    pub fn place(&self) -> &str {
        self.pool.place()
    }

    /// Which levels of the format programs must know to use it.
    #[must_use]
    pub fn levels(&self) -> Levels {
        self.pool.levels()
    }

    /// Raises these levels; `None` leaves one as it is.
    ///
    /// # Errors
    /// `Invalid` for a level below the pool's own, or one that this program does not know; `ReadOnly`; errors of the
    /// operating system.
    pub fn require_levels(&self, read: Option<u32>, write: Option<u32>) -> Result<()> {
        self.operate(Operation::RequireLevels, || self.pool.require_levels(read, write))
    }

    /// True if it is read-only.
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
    /// Errors of the operating system.
    pub fn namespaces(&self) -> Result<Vec<String>> {
        self.operate(Operation::ListNamespaces, || self.pool.namespaces())
    }

    /// True if a namespace exists. The default one always does.
    ///
    /// # Errors
    /// Errors of the operating system.
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

    /// Removes a namespace that holds no images. Incomplete images do not count.
    ///
    /// # Errors
    /// `NotFound`, `NotEmpty`, `Busy`, `ReadOnly`.
    pub fn remove_namespace(&self, namespace: &str) -> Result<()> {
        self.operate(Operation::RemoveNamespace, || {
            self.remove_remains(&Namespace::named(namespace), Keep::Nothing);
            self.pool.namespace_remove(namespace)?;
            self.forget_configuration(namespace)
        })
    }

    /// Removes from the pool's record what is configured for a namespace: the keys that end with a slash and its name.
    fn forget_configuration(&self, namespace: &str) -> Result<()> {
        let end = format!("/{namespace}");
        for (key, _) in self.pool.configuration()?.iter().filter(|(key, _)| key.ends_with(&end)) {
            self.pool.change_configuration(key, |_| Ok(None))?;
        }
        Ok(())
    }

    /// The images of a namespace, by name, without incomplete ones and those in the trash. An image has one name:
    /// if several names lead to it, which only damage or a hostile pool can cause, the others are left out. So
    /// a few bytes on disk cannot make the list long.
    ///
    /// # Errors
    /// `NotFound` for the namespace; `Corrupt`; errors of the operating system.
    pub fn images(&self, namespace: &Namespace) -> Result<Vec<(String, ImageId)>> {
        self.operate(Operation::ListImages, || {
            let mut images = self.pool.images(namespace)?;
            let mut seen = HashSet::new();
            let mut more_names = 0;
            images.retain(|(name, id)| {
                let first = seen.insert(*id);
                more_names += u64::from(!first);
                first && !is_partial_name(name) && number_in_trash_name(name).is_none()
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

    /// A reader for the heads of many images of this pool. It costs less than reading them one by one.
    #[must_use]
    pub fn info_reader(&self) -> InfoReader {
        InfoReader::new(&self.pool)
    }

    /// Gives an image another name in the same namespace, also while it is in use. Its children keep
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
    /// `Corrupt` for a damaged head; errors of the operating system.
    pub fn stats(&self) -> Result<PoolStats> {
        self.operate(Operation::PoolStats, || self.client.store().pool_stats(&self.pool))
    }

    /// As [`Self::stats`], but with the images of this namespace.
    ///
    /// # Errors
    /// As [`Self::stats`]; `NotFound` for the namespace.
    pub fn namespace_stats(&self, namespace: &Namespace) -> Result<PoolStats> {
        let stats = || self.client.store().namespace_stats(&self.pool, namespace);
        self.operate(Operation::PoolStats, stats)
    }

    /// As [`Self::remove_remains`], in every namespace.
    pub(crate) fn remove_all_remains(&self, keep: Keep<'_>) {
        let namespaces = self.pool.namespaces().unwrap_or_default();
        let namespaces = namespaces.into_iter().map(Namespace::named);
        for namespace in namespaces.chain([Namespace::DEFAULT]) {
            self.remove_remains(&namespace, keep);
        }
    }

    /// Removes the partial images of imports that have ended. If this fails, the next import tries again.
    pub(crate) fn remove_remains(&self, namespace: &Namespace, keep: Keep<'_>) {
        if let Err(error) = self.client.store().remove_abandoned(&self.pool, namespace, keep) {
            tracing::debug!(pool = %self.name(), error = %error.sentence(), "a partial image is left");
        }
    }
}
