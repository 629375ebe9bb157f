//! Operations that change an image as a whole: resize, rename, removal.

use marcot::{Error, ErrorKind, ImageId, ImageName, ParentInfo, Result, Store};
use marcot_serve::control::Command;

use crate::client::Client;
use crate::image::Image;
use crate::operation::Operation;
use crate::owner::{Access, Reclaimed};
use crate::pool::Pool;

impl Image {
    /// Changes the size to `size_bytes`, also while the image is in use. The change is durable on return.
    /// Shrinking needs `allow_shrink`: data beyond the new end is lost. `progress` gets (done, total).
    ///
    /// # Errors
    /// `Invalid` for an impossible size, or for a smaller one without `allow_shrink`; `NoSpace`; `Owned` for
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

    /// Gives the image another name in its namespace, if it still has the name by which it was looked
    /// up. The returned handle knows the new name.
    ///
    /// # Errors
    /// Those of [`Pool::rename`]; `Busy` if another image has the old name now.
    pub fn rename(&self, name: &str) -> Result<Self> {
        let from = self.name();
        self.operate(Operation::RenameImage, || {
            if self.engine_pool().find(from)? != self.id() {
                let message =
                    format!("the name '{}' was given to another image meanwhile", from.name());
                return Err(Error::new(ErrorKind::Busy, message));
            }
            self.engine_pool().rename(from, name)
        })?;
        let name = ImageName::new(name).in_namespace(from.namespace());
        Ok(self.pool().known_image(name, self.id()))
    }

    /// Removes the image, if it still has the name by which it was looked up, and frees the space that only
    /// it used. Notifies the owner of its parent: a removed snapshot that was kept for this image can then
    /// be freed. `progress` gets (done, total).
    ///
    /// # Errors
    /// `HasSnapshots`; `Owned` or `Busy`, naming the user, if it is in use; `NotFound`, also if
    /// it was renamed; `Busy` if another image has its name; `ReadOnly`; `Corrupt` for a damaged head, see
    /// [`Self::give_up`].
    pub fn remove(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.remove_as(Store::remove_if_named, progress)
    }

    /// As [`Self::remove`], but also for an image whose head is damaged: its data and snapshots are lost, with
    /// everything that only its head recorded. The other conditions of a removal still hold.
    ///
    /// # Errors
    /// As [`Self::remove`]; `HasChildren` if it has a child in any pool.
    pub fn give_up(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.remove_as(Store::remove_damaged_if_named, progress)
    }

    fn remove_as(&self, remove: RemoveIfNamed, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.operate(Operation::RemoveImage, || {
            let parent = self.engine_pool().info(self.id()).ok().and_then(|info| info.parent);
            let (store, pool) = (self.client().store(), self.engine_pool());
            self.for_itself(|| remove(store, pool, self.id(), self.name(), progress))?;
            self.client().child_is_gone(parent.as_ref());
            Ok(())
        })
    }

    /// Makes holes of data that consists of zeros, in pieces of `piece_bytes`, also while the image is in use.
    /// Its users are served between parts of at least `part_bytes`. `progress` gets bytes (done, total).
    ///
    /// # Errors
    /// `Invalid` if `piece_bytes` is no power of two from 4096 on; `Corrupt` for a block that cannot be verified;
    /// `NoSpace`; `Owned` for an owner that cannot be reached; `Interrupted`.
    pub fn sparsify(
        &self,
        piece_bytes: u64,
        part_bytes: u64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        self.operate(Operation::SparsifyImage, || {
            let total = self.engine_pool().info(self.id())?.size_bytes;
            let part_bytes = part_bytes.max(piece_bytes).next_multiple_of(piece_bytes.max(1));
            let mut access = Access::open(self, "command")?;
            let mut offset = 0;
            while offset < total {
                let command = Command::Sparsify { offset, length: part_bytes, piece_bytes };
                let Reclaimed(_) = access.execute(&command, &mut |_, _| {})?;
                offset += part_bytes;
                progress(offset.min(total), total);
            }
            access.close()
        })
    }

    /// Gives back the space of the image that nothing needs, and returns how many bytes that is. Owners
    /// also do this by themselves, some time later.
    ///
    /// # Errors
    /// `Owned` for an owner that cannot be reached; `NoSpace`, `Io`; `Interrupted`.
    pub fn reclaim(&self) -> Result<u64> {
        let reclaim = || self.run(&Command::Reclaim, &mut |_, _| {});
        let Reclaimed(bytes) = self.operate(Operation::ReclaimImage, reclaim)?;
        Ok(bytes)
    }
}

/// An operation that removes an image if it still has a name.
type RemoveIfNamed =
    fn(&Store, &marcot::Pool, ImageId, &ImageName, &mut dyn FnMut(u64, u64)) -> Result<()>;

impl Client {
    /// Notifies the owner of a parent, if there is one, that a child is gone: a removed snapshot that was kept
    /// for that child can be freed now. If nobody has the parent open, the engine has already freed it.
    pub(crate) fn child_is_gone(&self, parent: Option<&ParentInfo>) {
        let Some(parent) = parent.filter(|parent| parent.trashed) else { return };
        let Ok(pool) = self.store().pool_by_id(parent.pool_id) else { return };
        let pool = Pool::new(self.clone(), pool);
        let name = ImageName::new(&*parent.image).in_namespace(&parent.namespace);
        pool.known_image(name, parent.image_id).tell(&Command::Tidy);
    }
}
