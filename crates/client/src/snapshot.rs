//! Snapshots: taking, removing, protecting and renaming them, and rolling back to one.

use marcot::{Error, ErrorKind, ImageInfo, ImageName, Result, SnapId, SnapInfo};
use marcot_serve::control::{Command, QuiesceMode};

use crate::image::Image;
use crate::operation::Operation;

/// Whether writes to an image are paused while a snapshot is taken: a mapped device may have a hook
/// that freezes its file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quiesce {
    /// They are paused; if that fails, no snapshot is taken.
    #[default]
    Required,
    /// They are paused; if that fails, the snapshot is taken all the same.
    IgnoreErrors,
    /// They are not paused.
    Skip,
}

/// The result of removing an image's snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Purged {
    /// How many were removed.
    pub removed: usize,
    /// Names of protected snapshots. They stay.
    pub protected: Vec<String>,
}

/// A snapshot of an image, by name. Cheap to clone. The handle keeps nothing open.
///
/// Every method fails with `NotFound` if the image has no snapshot of that name.
#[derive(Debug, Clone)]
pub struct Snapshot {
    image: Image,
    name: String,
}

impl Image {
    /// A handle of a snapshot. Nothing is read yet: operations on a snapshot that does not exist fail with
    /// `NotFound`.
    #[must_use]
    pub fn snapshot(&self, name: &str) -> Snapshot {
        Snapshot::new(self.clone(), name)
    }

    /// Takes a snapshot. It has every write that was acknowledged before. It is durable on return.
    ///
    /// # Errors
    /// `Exists`; `Invalid`, `NameTooLong` for the name; `TooMany`; those of pausing writes;
    /// `Owned` for an owner that cannot be reached; `NoSpace`; `Interrupted`.
    pub fn create_snapshot(&self, name: &str, quiesce: Quiesce) -> Result<Snapshot> {
        let given = name.to_owned();
        let command = match quiesce {
            Quiesce::Required => Command::SnapCreate { name: given },
            Quiesce::IgnoreErrors => {
                Command::SnapCreateWith { name: given, quiesce: QuiesceMode::IgnoreErrors }
            }
            Quiesce::Skip => Command::SnapCreateWith { name: given, quiesce: QuiesceMode::Skip },
        };
        self.operate(Operation::CreateSnapshot, || {
            let _: SnapId = self.run(&command, &mut |_, _| {})?;
            Ok(self.snapshot(name))
        })
    }

    /// Removes all snapshots that are not protected, oldest first. `progress` gets how many
    /// snapshots were removed, and how many there were.
    ///
    /// # Errors
    /// Those of [`Image::info`] and [`Snapshot::remove`]. Snapshots that were removed before the error stay
    /// removed.
    pub fn purge_snapshots(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Purged> {
        self.operate(Operation::PurgeSnapshots, || {
            let mut snaps = self.engine_pool().info(self.id())?.snapshots;
            snaps.retain(marcot::SnapInfo::is_of_users);
            let total = snaps.len() as u64;
            let mut purged = Purged::default();
            for snap in snaps {
                if snap.protected {
                    purged.protected.push(snap.name);
                    continue;
                }
                let command = Command::SnapRemove { name: snap.name, force: false };
                self.run::<()>(&command, &mut |_, _| {})?;
                purged.removed += 1;
                progress(purged.removed as u64, total);
            }
            Ok(purged)
        })
    }
}

impl Snapshot {
    pub(crate) fn new(image: Image, name: &str) -> Self {
        Self { image, name: name.to_owned() }
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The snapshot's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn run(
        &self,
        operation: Operation,
        command: &Command,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        self.image.operate(operation, || self.image.run(command, progress))
    }

    /// Its record in an image's head.
    ///
    /// # Errors
    /// `NotFound`, also if it was removed and is only kept for its children.
    pub(crate) fn found_in(&self, image: &ImageInfo) -> Result<SnapInfo> {
        let mut snapshots = image.snapshots.iter();
        let found = snapshots.find(|snap| snap.name == self.name && snap.is_of_users());
        found.cloned().ok_or_else(|| self.missing_in(image))
    }

    pub(crate) fn missing_in(&self, image: &ImageInfo) -> Error {
        let spec = self.image.spec_of(image);
        Error::new(ErrorKind::NotFound, format!("{spec} has no snapshot '{}'", self.name))
    }

    fn found(&self) -> Result<SnapInfo> {
        self.found_in(&self.image.engine_pool().info(self.image.id())?)
    }

    /// Reads its record. Works while the image is in use.
    ///
    /// # Errors
    /// `NotFound`; those of [`Image::info`].
    pub fn info(&self) -> Result<SnapInfo> {
        self.image.operate(Operation::ImageInfo, || self.found())
    }

    /// Opens it for reading, in this process.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `NewerFormat`.
    pub fn open(&self) -> Result<marcot::Image> {
        let open = || self.image.engine_pool().open_snapshot(self.image.id(), &self.name);
        self.image.operate(Operation::OpenImage, open)
    }

    /// Protects it from removal, so that it can be cloned.
    ///
    /// # Errors
    /// `Protected` if it is protected already; `NotFound`; `Owned` for an owner that cannot be reached;
    /// `Interrupted`.
    pub fn protect(&self) -> Result<()> {
        let command = Command::SnapProtect { name: self.name.clone() };
        self.run(Operation::ProtectSnapshot, &command, &mut |_, _| {})
    }

    /// Removes the protection.
    ///
    /// # Errors
    /// `HasChildren`, naming some of them; `NotProtected`; `NotFound`; `Owned` for an owner that cannot be
    /// reached; `Interrupted`.
    pub fn unprotect(&self) -> Result<()> {
        let command = Command::SnapUnprotect { name: self.name.clone() };
        self.run(Operation::UnprotectSnapshot, &command, &mut |_, _| {})
    }

    /// Removes it. If it has children of clone format 2, it is only hidden, and is freed together with the
    /// last of them. With `force`, its children are flattened and its protection is removed first. `progress`
    /// gets (done, total).
    ///
    /// # Errors
    /// `Protected`; `HasChildren` if a child is in another store and has to be flattened there; `NotFound`;
    /// `Busy`, naming its reader; `Owned` for an owner that cannot be reached; `Interrupted`.
    pub fn remove(&self, force: bool, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let command = Command::SnapRemove { name: self.name.clone(), force };
        self.image.operate(Operation::RemoveSnapshot, || {
            if force {
                self.flatten_children()?;
            }
            self.image.run(&command, progress)
        })
    }

    /// Flattens its children, so that it can be unprotected and removed.
    fn flatten_children(&self) -> Result<()> {
        let snap = match self.found() {
            // Removing the snapshot then fails with the same error.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            found => found?,
        };
        let (client, image) = (self.image.client(), &self.image);
        let store = client.store();
        let children = store.children(image.engine_pool(), image.id(), Some(snap.id))?;
        // Checked before any child is flattened, since the removal would fail afterwards.
        if let Some(child) = children.iter().find(|child| child.marker) {
            let message = format!(
                "snapshot '{}' has a child in another store, where it has to be flattened first: \
                 {child}",
                self.name
            );
            return Err(Error::new(ErrorKind::HasChildren, message));
        }
        for child in children {
            let pool = client.pool(&child.pool)?;
            let name = ImageName::new(child.image).in_namespace(child.namespace);
            let child = pool.known_image(name, child.image_id);
            child.flatten_in_parts(&mut |_, _| {})?;
        }
        Ok(())
    }

    /// Gives it another name; its children keep their parent.
    ///
    /// # Errors
    /// `NotFound`; `Exists`; `Invalid`, `NameTooLong` for the new name; `Owned` for an owner that cannot
    /// be reached; `Interrupted`.
    pub fn rename(&self, name: &str) -> Result<Self> {
        let command = Command::SnapRename { from: self.name.clone(), to: name.to_owned() };
        self.run(Operation::RenameSnapshot, &command, &mut |_, _| {})?;
        Ok(self.image.snapshot(name))
    }

    /// Resets the image to the content and size of the snapshot. Later changes are lost.
    /// `progress` gets (done, total).
    ///
    /// # Errors
    /// `NotFound`; `Owned` for an owner that cannot be reached; `Interrupted`.
    pub fn roll_back(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let command = Command::SnapRollback { name: self.name.clone() };
        self.run(Operation::RollBackSnapshot, &command, progress)
    }
}
