//! Leases of a pool in a bucket, for the processes of one host.
//!
//! They are locks on files of a directory of the host, laid out as in a pool in a directory. They save work:
//! processes of this host do not get in each other's way. Which host owns an image is written in its head.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use marcot_format::ImageId;
use marcot_store::{Disk, Lock, LockMode, Random};

use crate::local::{self, layout};
use crate::{Lease, Leases};

/// Permission bits of the directory and of all directories in it. They are of no use to other users.
pub const HOST_DIRECTORY_MODE: u32 = 0o700;

/// The directory that a host keeps for a pool in a bucket.
#[derive(Clone)]
pub struct HostDirectory {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl HostDirectory {
    /// The directory at a path. It must exist. `disk` reaches it.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, path: &Path) -> Self {
        Self { disk, path: path.to_owned() }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The leases of the processes of this host.
    #[must_use]
    pub fn leases(&self, random: Arc<dyn Random>) -> Arc<dyn Leases> {
        let local = local::open(Arc::clone(&self.disk), &self.path, HOST_DIRECTORY_MODE, random);
        Arc::new(ObjectLeases { files: local.leases, host: self.clone() })
    }

    /// Creates the directory of an image.
    fn make_image_directory(&self, image: ImageId) -> io::Result<()> {
        for path in [layout::images(&self.path), layout::image(&self.path, image)] {
            match self.disk.create_directory(&path, HOST_DIRECTORY_MODE) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
        }
        Ok(())
    }

    /// Removes the directory of an image that was removed. What cannot be removed stays.
    pub(super) fn forget_image(&self, image: ImageId) {
        let directory = layout::image(&self.path, image);
        for name in self.disk.list(&directory).unwrap_or_default() {
            let _ = self.disk.remove_file(&directory.join(name));
        }
        let _ = self.disk.remove_directory(&directory);
    }
}

/// Locks on files, in directories that are made on demand.
struct ObjectLeases {
    files: Arc<dyn Leases>,
    host: HostDirectory,
}

/// The image that a lease is about.
fn image_of(lease: Lease) -> Option<ImageId> {
    match lease {
        Lease::Owner(image) | Lease::Readers(image) | Lease::Snapshot(image, _) => Some(image),
        Lease::Catalogue | Lease::Collection | Lease::AnyReader => None,
    }
}

impl Leases for ObjectLeases {
    fn take(&self, lease: Lease, mode: LockMode, wait: bool) -> io::Result<Option<Box<dyn Lock>>> {
        match (self.files.take(lease, mode, wait), image_of(lease)) {
            (Err(error), Some(image)) if error.kind() == io::ErrorKind::NotFound => {
                self.host.make_image_directory(image)?;
                self.files.take(lease, mode, wait)
            }
            (taken, _) => taken,
        }
    }

    fn was_taken(&self, lease: Lease) -> bool {
        self.files.was_taken(lease)
    }

    fn note_holder(&self, lease: Lease, holder: &str) {
        self.files.note_holder(lease, holder);
    }

    fn holder(&self, lease: Lease) -> Option<String> {
        self.files.holder(lease)
    }

    fn forget(&self, lease: Lease) {
        self.files.forget(lease);
    }

    fn show(&self, lease: Lease) -> String {
        self.files.show(lease)
    }
}
