//! Parents and children: cloning, listing children, flattening.

use marcot::{
    ChildInfo, CloneOptions, Error, ErrorKind, FlattenPart, ImageId, ImageName, Result, SnapId,
};
use marcot_serve::control::Command;

use crate::image::Image;
use crate::image_spec::ImageSpec;
use crate::operation::Operation;
use crate::owner::Access;
use crate::pool::Pool;
use crate::snapshot::Snapshot;

/// The clone format that needs no protected snapshot.
pub(crate) const FORMAT_UNPROTECTED: u32 = 2;

/// Which children to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Children {
    /// Those that were cloned from it.
    Direct,
    /// Those and their children, and so on. A child in another store is listed, but its own children are not.
    Descendants,
}

impl Snapshot {
    /// Clones the snapshot as `dest`. See [`Self::clone_into`].
    ///
    /// # Errors
    /// Those of [`crate::Client::pool`] and [`Self::clone_into`].
    pub fn clone_to(&self, dest: &ImageSpec, options: &CloneOptions) -> Result<Image> {
        dest.refuse_snapshot()?;
        let pool = self.image().client().pool(&dest.pool)?;
        self.clone_into(&pool, dest.name(), options)
    }

    /// Clones the snapshot as `name` in `dest`. Nothing is copied, and the snapshot's pool
    /// needs only read access. If the parent has an owner that has to know of the clone, it is notified first.
    /// If the owner is in the way, the operation waits for it.
    ///
    /// # Errors
    /// `NotProtected`; `NotFound` for snapshot or namespace; `Exists`; `Invalid` for the name, or a
    /// snapshot of 0 bytes; `ReadOnly` for `dest`; `PermissionDenied` where no marker can be left for
    /// the parent's owner (see [`CloneOptions::untracked`]); `Owned` for an owner that cannot be told;
    /// `Interrupted`.
    pub fn clone_into(
        &self,
        dest: &Pool,
        name: impl Into<ImageName>,
        options: &CloneOptions,
    ) -> Result<Image> {
        let name = name.into();
        let (parent, snap) = (self.image(), self.name());
        parent.operate(Operation::CloneSnapshot, || {
            let id = self.when_told(options, || {
                let snapshot = parent.engine_pool().snapshot(parent.id(), snap);
                snapshot.clone_to(dest.engine(), &name, options)
            })?;
            Ok(dest.known_image(&name, id))
        })
    }

    /// Clones the snapshot into an image that is hidden until it gets its name.
    pub(crate) fn clone_partial(
        &self,
        dest: &Pool,
        name: &ImageName,
        options: &CloneOptions,
    ) -> Result<marcot::Image> {
        let parent = self.image();
        self.when_told(options, || {
            let snapshot = parent.engine_pool().snapshot(parent.id(), self.name());
            snapshot.clone_to_partial(dest.engine(), name, options)
        })
    }

    /// Clones by `attempt` when the parent's owner knows of it.
    fn when_told<T>(
        &self,
        options: &CloneOptions,
        mut attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let (parent, snap) = (self.image(), self.name());
        // Another command may have the parent open at the moment.
        parent.when_free(|| {
            if options.format == FORMAT_UNPROTECTED {
                // An owner in another process must know that the snapshot is about to be cloned. If it
                // does not, cloning itself fails.
                parent.tell(&Command::MarkShared { name: snap.to_owned() });
            }
            attempt()
        })
    }
}

impl Image {
    /// Children of the image, or of the snapshot with this number, in every pool of the store. Children in
    /// other stores are found by the markers that they left.
    ///
    /// # Errors
    /// `Corrupt` for a damaged head; errors of the operating system.
    pub fn children(&self, which: Children, snap: Option<SnapId>) -> Result<Vec<ChildInfo>> {
        let (store, pool) = (self.client().store(), self.engine_pool());
        self.operate(Operation::ListChildren, || match which {
            Children::Direct => store.children(pool, self.id(), snap),
            Children::Descendants => store.descendants(pool, self.id(), snap),
        })
    }

    /// As [`Self::children`] for direct children, but at most `limit` of them. The records of no others are read.
    ///
    /// # Errors
    /// As [`Self::children`].
    pub fn some_children(&self, snap: Option<SnapId>, limit: usize) -> Result<Vec<ChildInfo>> {
        let (store, pool) = (self.client().store(), self.engine_pool());
        let look = || store.some_children(pool, self.id(), snap, limit);
        self.operate(Operation::ListChildren, look)
    }

    /// Forgets a child that nobody has seen, because the host that cloned it is gone. If the child exists all the
    /// same, it loses the data that it shares once the snapshot is removed.
    ///
    /// # Errors
    /// `NotFound`; `Exists` for a child that is there; those of [`Self::children`].
    pub fn forget_child(&self, child: ImageId) -> Result<()> {
        let (store, pool) = (self.client().store(), self.engine_pool());
        self.operate(Operation::ForgetChild, || {
            let children = store.children(pool, self.id(), None)?;
            match children.iter().find(|found| found.image_id == child) {
                Some(found) => store.forget_child(pool, self.id(), found),
                None => {
                    let message = format!("{} has no child with the id {child}", self.label_now());
                    Err(Error::new(ErrorKind::NotFound, message))
                }
            }
        })
    }

    /// True if the image has a child of clone format 2, which needs no protected snapshot.
    ///
    /// # Errors
    /// As [`Self::children`].
    pub fn has_unprotected_child(&self) -> Result<bool> {
        let store = self.client().store();
        let look = || store.has_child_of_format_2(self.engine_pool(), self.id(), None);
        self.operate(Operation::ListChildren, look)
    }

    /// Makes the image independent of its parent, also while it is in use. It is copied in parts, so that its
    /// users are served meanwhile. After an interruption, the image is a clone with less to copy. The
    /// parent's owner is notified. `progress` gets (done, total).
    ///
    /// # Errors
    /// `NoParent`; `NoSpace`; `Corrupt` for a block that cannot be verified; `Owned` for an owner that
    /// cannot be reached; `Interrupted`.
    pub fn flatten(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.operate(Operation::FlattenImage, || {
            let parent = self.engine_pool().info(self.id()).ok().and_then(|info| info.parent);
            self.flatten_in_parts(progress)?;
            self.client().child_is_gone(parent.as_ref());
            Ok(())
        })
    }

    pub(crate) fn flatten_in_parts(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let mut access = Access::open(self, "command")?;
        let mut total = 0;
        loop {
            let FlattenPart { left_blocks, more, .. } =
                access.execute(&Command::FlattenPart, &mut |_, _| {})?;
            if !more {
                break;
            }
            total = total.max(left_blocks);
            progress(total - left_blocks, total.max(1));
        }
        access.execute::<()>(&Command::Flatten, progress)?;
        access.close()
    }

    /// The snapshots that still need the image's former parent. There are such snapshots after flattening an
    /// image without the feature `deep-flatten`.
    ///
    /// # Errors
    /// As [`Self::info`].
    pub fn attached_snapshots(&self) -> Result<Vec<String>> {
        let snapshots = self.info()?.snapshots;
        Ok(snapshots.into_iter().filter(|s| s.parent.is_some()).map(|s| s.name).collect())
    }
}
