//! A directory of images: a FUSE file system in which each image of a pool is a file with the image's name.
//!
//! ```text
//!   open, read, write, fsync  ->  ImageFiles  ->  Files  ->  HostHandle (this process is the image's owner)
//!   create, rename, truncate, unlink      \          \--->  Reader     (another process is; for reading only)
//!                                          \-->  Images (the pool)
//! ```
//!
//! Invariants:
//! - An image is open once, however many files are open. It is closed when its last file is, so that it is free
//!   for other processes.
//! - `fsync` is answered after a flush of the image. The kernel keeps no copy of the content, so nothing is stale
//!   when another process changes the image.
//! - A file has exactly the image's size. A write behind its end makes the image grow.
//! - What may block (opening, creating, resizing, ...) is done in a thread of its own. So an image that hangs
//!   holds up only its own users.

mod attributes;
mod content;
mod file_system;
mod files;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use marcot::{Error, Extent, Result};

use crate::fuse_mounts::unmount_dead;
use crate::host::HostHandle;
use file_system::ImageFiles;
use files::Files;

pub use attributes::Access;

/// An image of the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageEntry {
    /// Its number, which it keeps under every name. It is the inode too.
    pub number: u64,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// log2 of the object size to show.
    pub order: u32,
    /// When it was created, in seconds since 1970.
    pub created_s: i64,
    /// When it was changed last, in seconds since 1970.
    pub modified_s: i64,
}

/// What new images are like. Attributes of the directory change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewImage {
    /// Size in bytes.
    pub size_bytes: u64,
    /// log2 of the object size.
    pub order: u64,
    /// Feature bits, as RBD numbers them.
    pub features: u64,
}

impl Default for NewImage {
    /// As with RBD: 1 GiB in objects of 4 MiB, with layering.
    fn default() -> Self {
        Self { size_bytes: 1 << 30, order: 22, features: 1 }
    }
}

/// Bytes of the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of them.
    pub total_bytes: u64,
    /// Those that are free.
    pub free_bytes: u64,
    /// Images.
    pub images: u64,
}

/// The content of an image that another process owns.
pub trait Reader: Send {
    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// `OutOfRange`, `Corrupt`, `Io`.
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Extents of data and holes from `offset` on: in order and without gaps, but they may end early.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn extents(&mut self, offset: u64, length: u64) -> Result<Vec<Extent>>;
}

/// An open image.
pub enum Opened {
    /// This process is its owner. `writable` is false if nothing can be written.
    Here {
        /// Its host.
        host: HostHandle,
        /// False if nothing can be written.
        writable: bool,
    },
    /// Another process is its owner.
    Elsewhere(Box<dyn Reader>),
}

/// The images of the directory. It is called from several threads, and may block.
pub trait Images: Send + Sync + 'static {
    /// The names and numbers of all.
    ///
    /// # Errors
    /// Those of the engine; so for all methods.
    fn list(&self) -> Result<Vec<(String, u64)>>;

    /// The image with a name.
    ///
    /// # Errors
    /// `NotFound`.
    fn find(&self, name: &str) -> Result<ImageEntry>;

    /// The image with a number.
    ///
    /// # Errors
    /// `NotFound`.
    fn entry(&self, number: u64) -> Result<ImageEntry>;

    /// Opens an image. To write, this process has to be its owner.
    ///
    /// # Errors
    /// `Owned`, `ReadOnly`.
    fn open(&self, number: u64, writes: bool) -> Result<Opened>;

    /// Whether such images can be made.
    ///
    /// # Errors
    /// `Invalid`.
    fn check_new(&self, new: &NewImage) -> Result<()>;

    /// Creates an image.
    ///
    /// # Errors
    /// `Exists`, `Invalid`.
    fn create(&self, name: &str, new: &NewImage) -> Result<ImageEntry>;

    /// Removes an image that this process has not open.
    ///
    /// # Errors
    /// `NotFound`, `HasSnapshots`, `Owned`.
    fn remove(&self, name: &str) -> Result<()>;

    /// Gives an image another name, also while it is open.
    ///
    /// # Errors
    /// `NotFound`, `Exists`.
    fn rename(&self, from: &str, to: &str) -> Result<()>;

    /// Changes the size of an image, also while it is open.
    ///
    /// # Errors
    /// `Invalid`.
    fn resize(&self, number: u64, size_bytes: u64) -> Result<()>;

    /// The space of the pool.
    ///
    /// # Errors
    /// Those of the engine.
    fn space(&self) -> Result<Space>;
}

/// How a directory is mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DirectoryOptions {
    /// What the mount table shows as the source.
    pub source: String,
    /// What the mount table shows behind `fuse.`.
    pub kind: String,
    /// Nothing can be written.
    pub read_only: bool,
    /// Who may use it.
    pub users: Users,
    /// The kernel checks the permissions of the files.
    pub default_permissions: bool,
    /// Further options of mount(8): `noatime`, `sync` and the like.
    pub flags: Vec<String>,
    /// Owner and permissions of the files.
    pub access: Access,
}

/// Who may use a mounted directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Users {
    /// The user who mounted it.
    #[default]
    Owner,
    /// That user, and root.
    OwnerAndRoot,
    /// Everyone.
    All,
}

/// A mounted directory.
pub struct MountedDirectory {
    session: BackgroundSession,
    files: Arc<Files>,
    path: PathBuf,
}

impl MountedDirectory {
    /// Mounts `images` at `path`.
    ///
    /// # Errors
    /// `Invalid` for options that exclude each other; what the operating system says.
    pub fn mount(images: Arc<dyn Images>, path: &Path, options: &DirectoryOptions) -> Result<Self> {
        let context = || format!("cannot mount at {}", path.display());
        let mut config = Config::default();
        config.acl = match options.users {
            Users::Owner => SessionACL::Owner,
            Users::OwnerAndRoot => SessionACL::RootAndOwner,
            Users::All => SessionACL::All,
        };
        config.mount_options = mount_options(options);
        let files = Arc::new(Files::new(images));
        // The directory that lies below has a time already.
        let modified = path.metadata().and_then(|below| below.modified());
        let modified = modified.unwrap_or(std::time::UNIX_EPOCH);
        let file_system = ImageFiles::new(Arc::clone(&files), options.access, modified);
        let session = fuser::Session::new(file_system, path, &config)
            .and_then(fuser::Session::spawn)
            .map_err(|e| Error::from_io(context(), e))?;
        Ok(Self { session, files, path: path.to_owned() })
    }

    /// True once it was unmounted by others.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.session.guard.is_finished()
    }

    /// Unmounts it, closes all images, and makes everything durable that was written. Files that are still open
    /// fail from then on.
    ///
    /// # Errors
    /// Those of unmounting and of closing the images. All is done as far as it can be.
    pub fn end(self) -> Result<()> {
        let unmounted = match self.session.guard.is_finished() {
            true => Ok(()),
            false => unmount_dead(&self.path),
        };
        let closed = self.files.close_all();
        // Dropping the session would wait for users of files that are still open.
        std::mem::forget(self.session);
        unmounted.and(closed)
    }
}

fn mount_options(options: &DirectoryOptions) -> Vec<MountOption> {
    let mut all = vec![
        MountOption::FSName(options.source.clone()),
        // As mount(8) gives it. The library leaves out its own option for this where no helper mounts.
        MountOption::CUSTOM(format!("subtype={}", options.kind)),
        MountOption::NoSuid,
        MountOption::NoDev,
        if options.read_only { MountOption::RO } else { MountOption::RW },
    ];
    if options.default_permissions {
        all.push(MountOption::DefaultPermissions);
    }
    let flag = |name: &String| match name.as_str() {
        "noexec" => Some(MountOption::NoExec),
        "noatime" => Some(MountOption::NoAtime),
        "dirsync" => Some(MountOption::DirSync),
        "sync" => Some(MountOption::Sync),
        // These are so already.
        _ => None,
    };
    all.extend(options.flags.iter().filter_map(flag));
    all
}
