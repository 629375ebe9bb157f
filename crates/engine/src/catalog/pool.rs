//! A pool: a directory of images.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::{HeadRecord, NameRecord, ParentRecord, PoolRecord, RootRecord};
use marcot_format::{ImageId, PoolId, SnapId};
use marcot_store::{Disk, Lock, LockMode, replace};

use super::names::{DEFAULT_NAMESPACE, check_namespace_name, escape, is_acceptable, read_name};
use super::naming::NamesRead;
use super::store::Store;
use crate::error::{Error, ErrorKind, IoContext, Result, fail};
use crate::image::{DamagedLog, Image};
use crate::segment::{Files, author_directory};

/// Longest record file that is read, in bytes.
const RECORD_BYTES_MAX: u64 =
    (marcot_format::frame::FRAME_BODY_BYTES_MAX + marcot_format::frame::FRAME_HEADER_BYTES) as u64;

/// Reads a small file whole.
pub(crate) fn read_file(disk: &dyn Disk, path: &Path) -> Result<Vec<u8>> {
    read_file_up_to(disk, path, RECORD_BYTES_MAX)
}

/// As [`read_file`], for records of fewer bytes.
pub(super) fn read_file_up_to(disk: &dyn Disk, path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let context = || format!("cannot read {}", path.display());
    let file = disk.open(path, false).at(context)?;
    let length = file.length().at(context)?;
    if length > bytes_max {
        return fail(ErrorKind::Corrupt, format!("{} is too long to be a record", path.display()));
    }
    let mut bytes = vec![0; length as usize];
    let n = file.read_at(0, &mut bytes).at(context)?;
    bytes.truncate(n);
    Ok(bytes)
}

pub(super) struct PoolInner {
    pub(super) store: Store,
    pub(super) name: String,
    /// Reaches the pool's directory, and nothing outside.
    pub(super) disk: Arc<dyn Disk>,
    pub(super) directory: PathBuf,
    pub(super) record: PoolRecord,
    pub(super) read_only: bool,
    pub(super) attached: bool,
    /// The user whom it belongs to, where that is not who runs this process.
    pub(super) foreign: Option<u32>,
    pub(super) owner_id: u32,
    pub(super) directory_mode: u32,
    pub(super) names_read: Mutex<NamesRead>,
}

/// An open pool. Cheap to clone.
#[derive(Clone)]
pub struct Pool(pub(super) Arc<PoolInner>);

impl Pool {
    /// Its name in the store it was opened from.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> PoolId {
        PoolId(self.0.record.pool_id)
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0.directory
    }

    /// True where this process may not write its images: a template pool.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.0.read_only
    }

    /// True where another store owns it.
    #[must_use]
    pub fn attached(&self) -> bool {
        self.0.attached
    }

    /// The user whom it belongs to, where that is another one than who runs this process. Nothing is
    /// changed in such a pool, whatever its permission bits, and none of its locks and sockets is used.
    #[must_use]
    pub fn foreign(&self) -> Option<u32> {
        self.0.foreign
    }

    /// The user who owns its directory.
    pub(crate) fn owner_id(&self) -> u32 {
        self.0.owner_id
    }

    /// The store it was opened from.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    pub(crate) fn record(&self) -> &PoolRecord {
        &self.0.record
    }

    pub(crate) fn files(&self) -> &Arc<Files> {
        &self.0.store.inner.files
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        &*self.0.disk
    }

    pub(crate) fn unique(&self) -> u64 {
        self.0.store.inner.world.random.number()
    }

    pub(crate) fn now_s(&self) -> i64 {
        self.0.store.inner.world.clock.now_s()
    }

    /// Permission bits of new files: what the pool's directory lets others read, they may read.
    pub(crate) fn file_mode(&self) -> u32 {
        self.0.directory_mode & 0o644
    }

    pub(crate) fn directory_mode(&self) -> u32 {
        self.0.directory_mode
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.read_only() {
            return fail(ErrorKind::ReadOnly, self.why_read_only());
        }
        Ok(())
    }

    /// Why nothing can be changed in it, and who can.
    pub(crate) fn why_read_only(&self) -> String {
        match self.foreign() {
            Some(user) => format!(
                "pool '{}' belongs to user {user}, so it is read-only for you; run the command as that user",
                self.name()
            ),
            None => format!("pool '{}' is read-only for you", self.name()),
        }
    }

    /// Locks the catalogue.
    pub(crate) fn lock(&self, mode: LockMode) -> Result<Box<dyn Lock>> {
        let path = self.0.directory.join("lock");
        let lock = self.disk().lock(&path, mode, true);
        let lock = lock.at(|| format!("cannot lock pool '{}'", self.name()))?;
        lock.ok_or_else(|| Error::new(ErrorKind::Busy, "the pool is locked"))
    }

    /// Locks the catalogue where nobody else has it locked.
    pub(super) fn try_lock(&self, mode: LockMode) -> Result<Option<Box<dyn Lock>>> {
        let path = self.0.directory.join("lock");
        let lock = self.disk().lock(&path, mode, false);
        lock.at(|| format!("cannot lock pool '{}'", self.name()))
    }

    pub(super) fn names_read_lock(&self) -> &Mutex<NamesRead> {
        &self.0.names_read
    }

    /// Directory of an image, where its owner's control socket `owner.sock` lies.
    #[must_use]
    pub fn image_directory(&self, image: ImageId) -> PathBuf {
        self.0.directory.join("images").join(image.to_string())
    }

    fn head_path(&self, image: ImageId) -> PathBuf {
        self.image_directory(image).join("head")
    }

    fn read_head_flagged(&self, image: ImageId) -> Result<(HeadRecord, bool)> {
        let path = self.head_path(image);
        let bytes = match read_file(self.disk(), &path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return fail(
                    ErrorKind::NotFound,
                    format!("image {image} does not exist in pool '{}'", self.name()),
                );
            }
            bytes => bytes?,
        };
        let decoded = decode_message::<HeadRecord>(FrameKind::Head, &bytes);
        let (head, newer) =
            decoded.map_err(|e| Error::from_format(format!("cannot use {}", path.display()), e))?;
        if head.image_id != image.0 {
            let message = format!("{} is the head of another image", path.display());
            return fail(ErrorKind::Corrupt, message);
        }
        Ok((head, newer))
    }

    /// The head as it is on disk.
    pub(crate) fn read_head(&self, image: ImageId) -> Result<HeadRecord> {
        Ok(self.read_head_flagged(image)?.0)
    }

    /// The head, if this version may change it.
    pub(crate) fn read_head_for_writing(&self, image: ImageId) -> Result<HeadRecord> {
        let (head, newer) = self.read_head_flagged(image)?;
        let label = self.image_label(&head);
        if newer {
            let message =
                format!("{label} uses features of a newer marcot, so it can only be read");
            return fail(ErrorKind::NewerFormat, message);
        }
        if head.removing {
            return fail(
                ErrorKind::NotFound,
                format!("{label} is being removed; run 'rm' again to finish"),
            );
        }
        Ok(head)
    }

    /// Replaces the head on disk. The caller holds the image's lock.
    pub(crate) fn write_head(&self, image: ImageId, head: &HeadRecord) -> Result<()> {
        let path = self.head_path(image);
        let bytes = encode_message(FrameKind::Head, head);
        if bytes.len() as u64 > RECORD_BYTES_MAX {
            let message = format!(
                "{} has more snapshots and metadata than a head can hold ({} MiB); remove some first",
                self.image_label(head),
                RECORD_BYTES_MAX >> 20
            );
            return fail(ErrorKind::TooMany, message);
        }
        replace(self.disk(), &path, self.unique(), self.file_mode(), &bytes)
            .at(|| format!("cannot write {}", path.display()))
    }

    /// Fails where the head on disk is of another epoch.
    pub(crate) fn check_epoch(&self, image: ImageId, epoch: u64) -> Result<()> {
        if self.read_head(image)?.epoch != epoch {
            return fail(
                ErrorKind::Fenced,
                format!("image {image} was taken over by another process"),
            );
        }
        Ok(())
    }

    pub(crate) fn create_author_directory(&self, image: ImageId) -> Result<()> {
        self.create_copies_directory(image, 0)
    }

    /// As [`Self::create_author_directory`], for copies that belong to a set.
    pub(crate) fn create_copies_directory(&self, author: ImageId, copies: u64) -> Result<()> {
        let directory = author_directory(&self.0.directory, author, copies);
        match self.disk().create_directory(&directory, self.directory_mode()) {
            // Whoever made a set may have been killed before its name was durable, and the head that
            // names it comes later.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                if copies == 0 {
                    return Ok(());
                }
            }
            made => made.at(|| format!("cannot create {}", directory.display()))?,
        }
        let parent = self.0.directory.join("segments");
        self.disk().sync_directory(&parent).at(|| format!("cannot sync {}", parent.display()))
    }

    pub(super) fn names_directory(&self, namespace: &str) -> PathBuf {
        let part = match namespace {
            "" => DEFAULT_NAMESPACE.to_owned(),
            namespace => escape(namespace),
        };
        self.0.directory.join("names").join(part)
    }

    pub(super) fn name_path(&self, namespace: &str, name: &str) -> PathBuf {
        self.names_directory(namespace).join(escape(name))
    }

    fn namespace_missing(&self, namespace: &str) -> Error {
        let message = format!("namespace '{namespace}' does not exist in pool '{}'", self.name());
        Error::new(ErrorKind::NotFound, message)
    }

    /// The namespaces besides the default one, sorted.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn namespaces(&self) -> Result<Vec<String>> {
        let directory = self.0.directory.join("names");
        let files =
            self.disk().list(&directory).at(|| format!("cannot list {}", directory.display()))?;
        let named = files.iter().filter(|f| *f != DEFAULT_NAMESPACE);
        Ok(named.filter_map(|f| read_name(&directory, f)).collect())
    }

    /// Creates a namespace.
    ///
    /// # Errors
    /// `Exists`, `Invalid`, `ReadOnly`.
    pub fn namespace_create(&self, namespace: &str) -> Result<()> {
        check_namespace_name(namespace)?;
        self.check_writable()?;
        let path = self.names_directory(namespace);
        match self.disk().create_directory(&path, self.directory_mode()) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return fail(ErrorKind::Exists, format!("namespace '{namespace}' already exists"));
            }
            made => made.at(|| format!("cannot create namespace '{namespace}'"))?,
        }
        let parent = self.0.directory.join("names");
        self.disk().sync_directory(&parent).at(|| format!("cannot sync {}", parent.display()))
    }

    /// Removes an empty namespace.
    ///
    /// # Errors
    /// `NotFound`, `NotEmpty`, `ReadOnly`.
    pub fn namespace_remove(&self, namespace: &str) -> Result<()> {
        check_namespace_name(namespace)?;
        self.check_writable()?;
        let _lock = self.lock(LockMode::Exclusive)?;
        if !self.image_names(namespace)?.is_empty() {
            return fail(ErrorKind::NotEmpty, format!("namespace '{namespace}' contains images"));
        }
        let path = self.names_directory(namespace);
        self.sweep_names(&path);
        let context = || format!("cannot remove namespace '{namespace}'");
        if let Some(file) = self.disk().list(&path).at(context)?.first() {
            let message =
                format!("{} holds '{file}', which is no name of an image", path.display());
            return Err(Error::new(ErrorKind::Io, message).context(context()));
        }
        self.disk().remove_directory(&path).at(context)?;
        let parent = self.0.directory.join("names");
        self.disk().sync_directory(&parent).at(context)
    }

    /// Names of the images of a namespace (`""`: the default one). What they lead to is not read.
    ///
    /// # Errors
    /// `NotFound` for an unknown namespace, or what the operating system says.
    pub fn image_names(&self, namespace: &str) -> Result<Vec<String>> {
        let directory = self.names_directory(namespace);
        let files = match self.disk().list(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(self.namespace_missing(namespace));
            }
            files => files.at(|| format!("cannot list {}", directory.display()))?,
        };
        Ok(files.iter().filter_map(|f| read_name(&directory, f)).collect())
    }

    /// Images of a namespace (`""`: the default one), sorted by name.
    ///
    /// # Errors
    /// `NotFound` for an unknown namespace; `Corrupt` for a damaged name.
    pub fn images(&self, namespace: &str) -> Result<Vec<(String, ImageId)>> {
        let names = self.image_names(namespace)?;
        let mut images = Vec::with_capacity(names.len());
        for name in names {
            match self.find(namespace, &name) {
                Ok(id) => images.push((name, id)),
                // Removed since the directory was listed.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        images.sort_unstable();
        Ok(images)
    }

    /// The image that has a name.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub fn find(&self, namespace: &str, name: &str) -> Result<ImageId> {
        let path = self.name_path(namespace, name);
        let missing = || {
            let message = format!("image '{name}' does not exist in pool '{}'", self.name());
            Error::new(ErrorKind::NotFound, message)
        };
        // A file of that name, in a pool of others, is no name; see `read_name`.
        if !is_acceptable(name) || !(namespace.is_empty() || is_acceptable(namespace)) {
            return Err(missing());
        }
        let bytes = match read_file(self.disk(), &path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if !namespace.is_empty()
                    && self.disk().mode(&self.names_directory(namespace)).is_err()
                {
                    return Err(self.namespace_missing(namespace));
                }
                return Err(missing());
            }
            bytes => bytes?,
        };
        let (record, _): (NameRecord, _) = decode_message(FrameKind::Name, &bytes)
            .map_err(|e| Error::from_format(format!("cannot use {}", path.display()), e))?;
        Ok(ImageId(record.image_id))
    }

    /// Numbers of all images that have a directory, whole or not.
    pub(crate) fn image_ids(&self) -> Result<Vec<ImageId>> {
        let directory = self.0.directory.join("images");
        let names =
            self.disk().list(&directory).at(|| format!("cannot list {}", directory.display()))?;
        Ok(names.iter().filter_map(|n| u64::from_str_radix(n, 16).ok()).map(ImageId).collect())
    }

    /// Any image of the pool, for a refusal.
    pub(super) fn any_image(&self) -> Result<Option<String>> {
        for namespace in self.namespaces()?.iter().map(String::as_str).chain([""]) {
            if let Some(name) = self.image_names(namespace)?.into_iter().next() {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Opens an image for writing; this process is its owner until it closes it.
    ///
    /// # Errors
    /// `Owned` while another process has it; `NotFound`, `ReadOnly`, `Corrupt`, `NewerFormat`.
    pub fn open(&self, image: ImageId) -> Result<Image> {
        self.add_pools();
        Image::open_owner(self, image, DamagedLog::Refuse)
    }

    /// As [`Pool::open`], for repair: the log ends where it is damaged, and what was written after
    /// that is given up.
    pub(crate) fn open_for_repair(&self, image: ImageId) -> Result<Image> {
        self.add_pools();
        Image::open_owner(self, image, DamagedLog::Cut)
    }

    /// Opens an image for reading, as it is on disk now. Where its log is damaged, it ends there.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `NewerFormat`.
    pub fn open_read_only(&self, image: ImageId) -> Result<Image> {
        self.add_pools();
        Image::open_reader(self, image, DamagedLog::Cut)
    }

    /// Opens a snapshot for reading.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `NewerFormat`.
    pub fn open_snapshot(&self, image: ImageId, snap: &str) -> Result<Image> {
        self.add_pools();
        let head = self.read_head(image)?;
        let found = head.snapshots.iter().find(|s| s.name == snap);
        let Some(snapshot) = found else {
            return Err(crate::image::no_snapshot(&self.image_label(&head), snap));
        };
        Image::open_snapshot(self, image, SnapId(snapshot.id))
    }

    /// Makes the directories of all pools known, for images whose data lies in several.
    fn add_pools(&self) {
        let names = match self.store().pools() {
            Ok(names) => names,
            Err(error) => return tracing::warn!(%error, "pools cannot be listed"),
        };
        for name in names {
            // Of no interest unless this image has data there; then it is told.
            match self.store().pool(&name) {
                Err(error) if matches!(error.kind(), ErrorKind::Exhausted | ErrorKind::Busy) => {
                    tracing::warn!(pool = %name, %error, "a pool cannot be opened now");
                }
                Err(error) => tracing::debug!(pool = %name, %error, "a pool cannot be opened"),
                Ok(_) => {}
            }
        }
    }

    /// The root of a clone's parent snapshot.
    pub(crate) fn snapshot_root(&self, parent: &ParentRecord) -> Result<RootRecord> {
        let pool = self.store().pool_by_id(PoolId(parent.pool_id))?;
        let head = pool.read_head(ImageId(parent.image_id))?;
        let snapshot = head.snapshots.into_iter().find(|s| s.id == parent.snap_id);
        snapshot
            .and_then(|s| s.root)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "the parent snapshot does not exist"))
    }
}
