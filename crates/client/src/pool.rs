//! A pool: its namespaces, what images it has, and what concerns all of them.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use marcot::catalog::is_partial_name;
use marcot::{
    CheckOptions, CheckReport, CreateOptions, ErrorKind, GcReport, ImageId, InfoReader, PoolId,
    PoolStats, Result,
};

use crate::client::Client;
use crate::image::Image;
use crate::operation::Operation;
use crate::retry::Holders;

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

    fn operate<T>(&self, operation: Operation, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.client.operate(operation, self.name(), None, work)
    }

    /// Its namespaces, sorted, without the default one.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn namespaces(&self) -> Result<Vec<String>> {
        self.operate(Operation::ListNamespaces, || self.pool.namespaces())
    }

    /// True where a namespace exists. The default one, which is called by the empty name, always does.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn has_namespace(&self, namespace: &str) -> Result<bool> {
        Ok(namespace.is_empty() || self.pool.namespaces()?.iter().any(|name| name == namespace))
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
            self.remove_remains(namespace);
            self.pool.namespace_remove(namespace)
        })
    }

    /// The images of a namespace, by name, without those that are not whole yet. An image has one name:
    /// where more lead to it, as only damage or a hostile pool can have it, the others are left out, so
    /// that a few bytes do not decide how much is shown.
    ///
    /// # Errors
    /// `NotFound` for the namespace; `Corrupt`; what the operating system says.
    pub fn images(&self, namespace: &str) -> Result<Vec<(String, ImageId)>> {
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

    /// The image that a name leads to now. It stays the same image when it is renamed.
    ///
    /// # Errors
    /// `NotFound` for the image or its namespace; `Corrupt`.
    pub fn image(&self, namespace: &str, name: &str) -> Result<Image> {
        self.operate(Operation::FindImage, || {
            let id = self.pool.find(namespace, name)?;
            Ok(self.known_image(namespace, name, id))
        })
    }

    /// The image with a number, where it is in this namespace and has a name.
    ///
    /// # Errors
    /// `NotFound` where there is none; `Corrupt`, `NewerFormat` for its head.
    pub fn image_by_id(&self, namespace: &str, id: ImageId) -> Result<Image> {
        self.operate(Operation::FindImage, || {
            let name = self.pool.name_of_image(namespace, id)?.ok_or_else(|| {
                let message = format!("there is no image with the number {id}");
                marcot::Error::new(ErrorKind::NotFound, message)
            })?;
            Ok(self.known_image(namespace, &name, id))
        })
    }

    /// An image whose name and number the caller knows, as from [`Self::images`]. Nothing is read.
    #[must_use]
    pub fn known_image(&self, namespace: &str, name: &str, id: ImageId) -> Image {
        Image::new(self.clone(), namespace, name, id)
    }

    /// Creates an image that reads as zeros.
    ///
    /// # Errors
    /// `Exists`; `Invalid`, `NameTooLong` for its name, `Invalid` for its size; `NotFound` for the
    /// namespace; `ReadOnly`.
    pub fn create(&self, namespace: &str, name: &str, options: &CreateOptions) -> Result<Image> {
        self.operate(Operation::CreateImage, || {
            let id = self.pool.create(namespace, name, options)?;
            Ok(self.known_image(namespace, name, id))
        })
    }

    /// Gives an image another name in the same namespace, while it is in use or not. Its children keep
    /// their parent.
    ///
    /// # Errors
    /// `NotFound`; `Exists`; `Invalid`, `NameTooLong` for the new name; `ReadOnly`.
    pub fn rename(&self, namespace: &str, from: &str, to: &str) -> Result<()> {
        self.operate(Operation::RenameImage, || self.pool.rename(namespace, from, to))
    }

    /// Totals of the pool.
    ///
    /// # Errors
    /// `Corrupt` for a damaged head; what the operating system says.
    pub fn stats(&self) -> Result<PoolStats> {
        self.operate(Operation::PoolStats, || self.client.store().pool_stats(&self.pool))
    }

    /// Verifies the pool, while images are in use. To repair, images that somebody only keeps open are
    /// closed first. `progress` gets bytes (done, total), between two reads, and may take its time.
    ///
    /// # Errors
    /// `Interrupted`; what keeps the check from going on. Damage is no error, but a finding.
    pub fn check(
        &self,
        options: &CheckOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<CheckReport> {
        self.operate(Operation::CheckPool, || {
            if options.repair {
                match self.let_all_idle_go() {
                    // The check tells what it was.
                    Err(error) if error.kind().is_obstacle() && !self.client.interrupted() => {}
                    gone => gone?,
                }
            }
            self.client.store().check(&self.pool, options, progress)
        })
    }

    /// Gives back the space that no image or snapshot needs; images that were never whole are removed,
    /// and those that somebody only keeps open are closed first. `progress` gets (done, total).
    ///
    /// # Errors
    /// `Busy`, `ReadOnly`, `Corrupt`; `Interrupted`; what the operating system says.
    pub fn collect_garbage(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<GcReport> {
        self.operate(Operation::CollectGarbage, || {
            self.remove_all_remains();
            self.let_all_idle_go()?;
            self.client.store().gc(&self.pool, progress)
        })
    }

    /// Has every image and snapshot of the pool closed that somebody only keeps open.
    fn let_all_idle_go(&self) -> Result<()> {
        let mut namespaces = self.pool.namespaces()?;
        namespaces.push(String::new());
        for namespace in namespaces {
            for (name, id) in self.pool.images(&namespace)? {
                let image = self.known_image(&namespace, &name, id);
                for holders in [Holders::Owner, Holders::Readers] {
                    image.ask_to_give_way(holders)?;
                }
            }
        }
        Ok(())
    }

    /// As [`Self::remove_remains`], in every namespace.
    pub(crate) fn remove_all_remains(&self) {
        let namespaces = self.pool.namespaces().unwrap_or_default();
        for namespace in namespaces.iter().map(String::as_str).chain([""]) {
            self.remove_remains(namespace);
        }
    }

    /// Removes the partial images of imports that are no more. What fails here is tried again by the next.
    pub(crate) fn remove_remains(&self, namespace: &str) {
        if let Err(error) = self.client.store().remove_abandoned(&self.pool, namespace) {
            tracing::debug!(pool = %self.name(), %error, "a partial image is left");
        }
    }
}
