//! An image: what is done to it as a whole.

use std::fmt;

use marcot::{BlockDevice, Command, ImageId, ImageInfo, ParentInfo, Result};

use crate::client::Client;
use crate::image_spec::ImageSpec;
use crate::operation::Operation;
use crate::owner::Reclaimed;
use crate::pool::Pool;
use crate::snapshot::Snapshot;

/// An image of a pool, whoever has it open. Cheap to clone, and nothing is open while it exists.
///
/// It is known by its number: when it is renamed, it stays the same image.
#[derive(Clone)]
pub struct Image {
    pool: Pool,
    namespace: String,
    name: String,
    id: ImageId,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image").field("spec", &self.spec()).field("id", &self.id).finish()
    }
}

impl Image {
    pub(crate) fn new(pool: Pool, namespace: &str, name: &str, id: ImageId) -> Self {
        Self { pool, namespace: namespace.to_owned(), name: name.to_owned(), id }
    }

    /// Its pool.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Its number in the pool, which it keeps under every name.
    #[must_use]
    pub fn id(&self) -> ImageId {
        self.id
    }

    /// What it was called when it was looked up.
    #[must_use]
    pub fn spec(&self) -> ImageSpec {
        ImageSpec::new(self.pool.name(), self.name.as_str()).in_namespace(self.namespace.as_str())
    }

    /// A snapshot of it. Nothing is read yet: what is done to a snapshot that does not exist fails with
    /// `NotFound`.
    #[must_use]
    pub fn snapshot(&self, name: &str) -> Snapshot {
        Snapshot::new(self.clone(), name)
    }

    pub(crate) fn client(&self) -> &Client {
        self.pool.client()
    }

    pub(crate) fn engine_pool(&self) -> &marcot::Pool {
        self.pool.engine()
    }

    pub(crate) fn name(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }

    pub(crate) fn operate<T>(
        &self,
        operation: Operation,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.client().operate(operation, self.pool.name(), Some(self.id), work)
    }

    /// As it is called now, for messages: `pool/[namespace/]image`, also where its head is damaged.
    #[must_use]
    pub fn label(&self) -> String {
        self.engine_pool().label_by_names(self.id)
    }

    /// As its head says that it is called.
    pub(crate) fn spec_of(&self, info: &ImageInfo) -> ImageSpec {
        let spec = ImageSpec::new(self.pool.name(), info.name.as_str());
        spec.in_namespace(info.namespace.as_str())
    }

    /// As [`Self::label`], by the head.
    pub(crate) fn label_now(&self) -> String {
        match self.engine_pool().info(self.id) {
            Ok(info) => self.spec_of(&info).to_string(),
            Err(_) => "the image".to_string(),
        }
    }

    /// What is recorded about the image and its snapshots; works while it is in use.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `NewerFormat`.
    pub fn info(&self) -> Result<ImageInfo> {
        self.operate(Operation::ImageInfo, || self.engine_pool().info(self.id))
    }

    /// Opens the image for writing, in this process alone, until the device is closed. Who only keeps it
    /// open closes it; who is about to close it is waited for.
    ///
    /// # Errors
    /// `Owned`, with who uses it, where somebody does; `NotFound`, `ReadOnly`, `Corrupt`, `NewerFormat`.
    pub fn open(&self) -> Result<Box<dyn BlockDevice>> {
        self.operate(Operation::OpenImage, || {
            let opened = self.for_itself(|| self.engine_pool().open(self.id))?;
            Ok(Box::new(opened) as Box<dyn BlockDevice>)
        })
    }

    /// Opens the image for reading, as it is on disk now.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `NewerFormat`.
    pub fn open_read_only(&self) -> Result<Box<dyn BlockDevice>> {
        self.operate(Operation::OpenImage, || {
            let opened = self.engine_pool().open_read_only(self.id)?;
            Ok(Box::new(opened) as Box<dyn BlockDevice>)
        })
    }

    /// Changes the size to `size_bytes`, while the image is in use or not; durable when it returns.
    /// Shrinking needs `allow_shrink`: data beyond the new end is lost. `progress` gets (done, total).
    ///
    /// # Errors
    /// `Invalid` for a size that cannot be, or a smaller one that is not allowed; `NoSpace`; `Owned` for
    /// an owner that cannot be reached; `Interrupted`.
    pub fn resize(
        &self,
        size_bytes: u64,
        allow_shrink: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let command = Command::Resize { size_bytes, allow_shrink };
        self.operate(Operation::ResizeImage, || self.run(&command, progress))
    }

    /// Gives the image another name in its namespace, if it is still called as it was when it was looked
    /// up.
    ///
    /// # Errors
    /// Those of [`Pool::rename`].
    pub fn rename(&self, name: &str) -> Result<Self> {
        self.pool.rename(&self.namespace, &self.name, name)?;
        Ok(Self { name: name.to_owned(), ..self.clone() })
    }

    /// Removes the image, if it is still called as it was when it was looked up, and the space that only
    /// it used. Its parent's owner is told, so that a removed snapshot that was kept for this image can
    /// go. `progress` gets (done, total).
    ///
    /// # Errors
    /// `HasSnapshots`; `Owned` or `Busy`, with who uses it, where somebody does; `NotFound`; `ReadOnly`;
    /// `Corrupt` for a damaged head, see [`Self::give_up`].
    pub fn remove(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.remove_as(marcot::Store::remove_named, progress)
    }

    /// As [`Self::remove`], but an image whose head is damaged is given up: its data, its snapshots, and
    /// whatever else only its head knew. Nothing else is forced.
    ///
    /// # Errors
    /// As [`Self::remove`]; `HasChildren` where it has a child, in any pool.
    pub fn give_up(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.remove_as(marcot::Store::remove_damaged, progress)
    }

    fn remove_as(&self, remove: RemoveNamed, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.operate(Operation::RemoveImage, || {
            let parent = self.engine_pool().info(self.id).ok().and_then(|info| info.parent);
            let store = self.client().store();
            self.for_itself(|| {
                remove(store, self.engine_pool(), &self.namespace, &self.name, progress)
            })?;
            self.client().child_is_gone(parent.as_ref());
            Ok(())
        })
    }

    /// Sets a key of the image's metadata; an empty value removes it.
    ///
    /// # Errors
    /// `Invalid` for an empty or too long key or value; `Owned` for an owner that cannot be reached;
    /// `Interrupted`.
    pub fn set_metadata(&self, key: &str, value: &str) -> Result<()> {
        let command = Command::MetaSet { key: key.to_owned(), value: value.to_owned() };
        self.operate(Operation::SetMetadata, || self.run(&command, &mut |_, _| {}))
    }

    /// The image's metadata: keys and values.
    ///
    /// # Errors
    /// As [`Self::info`].
    pub fn metadata(&self) -> Result<Vec<(String, String)>> {
        Ok(self.info()?.metadata)
    }

    /// Gives back now what space of the image nobody needs, and returns how many bytes that was. Owners
    /// do so by themselves, in time.
    ///
    /// # Errors
    /// `Owned` for an owner that cannot be reached; `NoSpace`, `Io`; `Interrupted`.
    pub fn reclaim(&self) -> Result<u64> {
        let reclaim = || self.run(&Command::Reclaim, &mut |_, _| {});
        let Reclaimed(bytes) = self.operate(Operation::ReclaimImage, reclaim)?;
        Ok(bytes)
    }
}

/// A way of removing the image that has a name.
type RemoveNamed =
    fn(&marcot::Store, &marcot::Pool, &str, &str, &mut dyn FnMut(u64, u64)) -> Result<()>;

impl Client {
    /// Tells the owner of a parent, if it has one, that a child is gone: a removed snapshot that was kept
    /// for that child can go now. Where nobody has the parent open, the engine has seen to it.
    pub(crate) fn child_is_gone(&self, parent: Option<&ParentInfo>) {
        let Some(parent) = parent.filter(|parent| parent.trashed) else { return };
        let Ok(pool) = self.store().pool_by_id(parent.pool_id) else { return };
        let pool = Pool::new(self.clone(), pool);
        pool.known_image(&parent.namespace, &parent.image, parent.image_id).tell(&Command::Tidy);
    }
}
