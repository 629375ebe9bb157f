//! A pool: a directory of images.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use marcot_backend::local::layout;
use marcot_backend::{
    Backend, Key, Lease, Leases, Listed, Prefix, Records, SegmentSet, Segments, Stamp, SwapError,
};
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::{HeadRecord, NameRecord, ParentRecord, PoolRecord, RootRecord};
use marcot_format::{ImageId, PoolId};
use marcot_store::{Lock, LockMode};

use super::image_name::{ImageName, Namespace};
use super::names::{check_namespace_name, could_be_given, is_acceptable};
use super::naming::NamesRead;
use super::partial::is_partial_name;
use super::store::Store;
use super::trash_name::number_in_trash_name;
use crate::error::{Error, ErrorKind, IoContext, Result, fail};
use crate::fault::{self, Fault};
use crate::segment::Files;

/// Limit on the size of a record that is read, in bytes.
pub(crate) const RECORD_BYTES_MAX: u64 =
    (marcot_format::frame::FRAME_BODY_BYTES_MAX + marcot_format::frame::FRAME_HEADER_BYTES) as u64;

pub(crate) struct PoolInner {
    pub(crate) store: Store,
    pub(crate) name: String,
    /// Reaches everything in the pool, and nothing outside it.
    pub(crate) backend: Backend,
    /// How messages name its place.
    pub(crate) shown: String,
    pub(crate) directory: PathBuf,
    pub(crate) record: PoolRecord,
    pub(crate) read_only: bool,
    /// Its record has features that this version does not know, so that it can only be read.
    pub(crate) newer: bool,
    pub(crate) attached: bool,
    /// The user who owns it, where that is another user than the one of this process.
    pub(crate) foreign: Option<u32>,
    pub(crate) owner_id: u32,
    pub(crate) names_read: Mutex<NamesRead>,
    /// The names by which images were found, where looking a name up takes a request to a service.
    pub(crate) names_found: Mutex<HashMap<ImageId, String>>,
}

/// An open pool. Cheap to clone.
#[derive(Clone)]
pub struct Pool(pub(crate) Arc<PoolInner>);

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

    /// The directory of this machine where it lies. For a pool in a bucket, the directory that this host keeps
    /// for it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0.directory
    }

    /// Where it lies, for people: its directory, or the URL of a bucket.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.0.shown
    }

    /// True where this process may not change the pool, as for a template pool of another user.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.0.read_only
    }

    /// True where another store owns it.
    #[must_use]
    pub fn attached(&self) -> bool {
        self.0.attached
    }

    /// True where another store collects and repairs it: an attached pool, unless it lies in a bucket. There no host is
    /// above the others, and the one that has made the pool may be gone.
    #[must_use]
    pub fn kept_elsewhere(&self) -> bool {
        self.attached() && self.segments().shipping().is_none()
    }

    /// The user who owns it, where that is another user than the one of this process. Such a pool is not
    /// changed, whatever its permission bits, and none of its locks and sockets is used.
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

    pub(crate) fn files(&self) -> &Arc<Files> {
        &self.0.store.inner.files
    }

    pub(crate) fn records(&self) -> &dyn Records {
        &*self.0.backend.records
    }

    pub(crate) fn segments(&self) -> &dyn Segments {
        &*self.0.backend.segments
    }

    pub(crate) fn leases(&self) -> &dyn Leases {
        &*self.0.backend.leases
    }

    /// The number of this process.
    pub(crate) fn process_id(&self) -> u32 {
        self.0.store.inner.world.disk.process_id()
    }

    /// The bytes of a record.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` where it is too long to be a record.
    pub(crate) fn read_record(&self, key: &Key) -> Result<Vec<u8>> {
        self.read_record_up_to(key, RECORD_BYTES_MAX)
    }

    /// As [`Self::read_record`], with a smaller limit.
    pub(crate) fn read_record_up_to(&self, key: &Key, bytes_max: u64) -> Result<Vec<u8>> {
        self.as_record(key, self.records().get(key, bytes_max))
    }

    /// The bytes of a record that was read.
    fn as_record(&self, key: &Key, read: std::io::Result<Vec<u8>>) -> Result<Vec<u8>> {
        match read {
            Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => {
                let shown = self.records().show(key);
                fail(ErrorKind::Corrupt, format!("{shown} is too long to be a record"))
            }
            bytes => bytes.at(|| format!("cannot read {}", self.records().show(key))),
        }
    }

    pub(crate) fn unique(&self) -> u64 {
        self.0.store.inner.world.random.number()
    }

    pub(crate) fn now_s(&self) -> i64 {
        self.0.store.inner.world.clock.now_s()
    }

    /// The time since the machine was started, for measuring.
    pub(crate) fn uptime(&self) -> Duration {
        self.0.store.inner.world.clock.uptime()
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.read_only() {
            return fail(ErrorKind::ReadOnly, self.why_read_only());
        }
        Ok(())
    }

    /// The message that says why the pool cannot be changed, and who can change it.
    pub(crate) fn why_read_only(&self) -> String {
        match self.foreign() {
            Some(user) => format!(
                "pool '{}' belongs to user {user}, so it is read-only for you; run the command as that user",
                self.name()
            ),
            None if !self.levels().is_writable() => self.levels().why_read_only(self.name()),
            None if self.0.newer => format!(
                "pool '{}' uses features of a newer marcot, so it is read-only for you",
                self.name()
            ),
            None => format!("pool '{}' is read-only for you", self.name()),
        }
    }

    /// Locks the catalogue.
    pub(crate) fn lock(&self, mode: LockMode) -> Result<Box<dyn Lock>> {
        let lock = self.leases().take(Lease::Catalogue, mode, true);
        let lock = lock.at(|| format!("cannot lock pool '{}'", self.name()))?;
        lock.ok_or_else(|| Error::new(ErrorKind::Busy, "the pool is locked"))
    }

    /// Locks the catalogue without waiting; `None` where somebody else has it locked.
    pub(crate) fn try_lock(&self, mode: LockMode) -> Result<Option<Box<dyn Lock>>> {
        let lock = self.leases().take(Lease::Catalogue, mode, false);
        lock.at(|| format!("cannot lock pool '{}'", self.name()))
    }

    pub(crate) fn names_read_lock(&self) -> &Mutex<NamesRead> {
        &self.0.names_read
    }

    /// Directory of an image, where its owner's control socket `owner.sock` lies.
    #[must_use]
    pub fn image_directory(&self, image: ImageId) -> PathBuf {
        layout::image(&self.0.directory, image)
    }

    fn read_head_flagged(&self, image: ImageId) -> Result<(HeadRecord, bool)> {
        let key = Key::Head(image);
        let bytes = match self.read_record(&key) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return fail(
                    ErrorKind::NotFound,
                    format!("image {image} does not exist in pool '{}'", self.name()),
                );
            }
            bytes => bytes?,
        };
        let decoded = decode_message::<HeadRecord>(FrameKind::Head, &bytes);
        let (head, newer) = decoded.map_err(|e| Error::from_format(self.cannot_use(&key), e))?;
        if head.image_id != image.0 {
            let message = format!("{} is the head of another image", self.records().show(&key));
            return fail(ErrorKind::Corrupt, message);
        }
        Ok((head, newer))
    }

    /// The head as it is on disk.
    pub(crate) fn read_head(&self, image: ImageId) -> Result<HeadRecord> {
        Ok(self.read_head_flagged(image)?.0)
    }

    /// The head. Fails where this version must not change it.
    pub(crate) fn read_head_for_writing(&self, image: ImageId) -> Result<HeadRecord> {
        let (head, newer) = self.read_head_flagged(image)?;
        let label = || self.image_label(&head);
        if newer {
            let message =
                format!("{} uses features of a newer marcot, so it can only be read", label());
            return fail(ErrorKind::NewerFormat, message);
        }
        if head.removing {
            return fail(
                ErrorKind::NotFound,
                format!("{} is being removed; run 'rm' again to finish", label()),
            );
        }
        Ok(head)
    }

    fn cannot_use(&self, key: &Key) -> String {
        format!("cannot use {}", self.records().show(key))
    }

    /// The bytes of a head.
    ///
    /// # Errors
    /// `TooMany` where it is larger than a head may be.
    pub(crate) fn encode_head(&self, head: &HeadRecord) -> Result<Vec<u8>> {
        let bytes = encode_message(FrameKind::Head, head);
        if bytes.len() as u64 > RECORD_BYTES_MAX {
            let message = format!(
                "{} has more snapshots and metadata than a head can hold ({} MiB); remove some first",
                self.image_label(head),
                RECORD_BYTES_MAX >> 20
            );
            return fail(ErrorKind::TooMany, message);
        }
        Ok(bytes)
    }

    /// Replaces the head that has the stamp `from`. The caller holds the image's lease.
    ///
    /// # Errors
    /// `Fenced` where another owner has stored a head meanwhile; `Poisoned` where it is not known which
    /// of the two heads survives a crash.
    pub(crate) fn swap_head(&self, image: ImageId, from: Stamp, head: &HeadRecord) -> Result<()> {
        let bytes = self.encode_head(head)?;
        let key = Key::Head(image);
        let label = || self.image_label(head);
        let upload = || self.upload_named(image, head);
        let late = fault::is(Fault::HeadBeforeUploads);
        if !late {
            upload().at(|| format!("cannot upload what {} names", label()))?;
        }
        match self.records().swap(&key, from, &bytes) {
            Ok(()) if late => upload().at(|| format!("cannot upload what {} names", label())),
            Ok(()) => Ok(()),
            Err(SwapError::Changed) => fail(ErrorKind::Fenced, self.why_lost(image, head)),
            Err(SwapError::Unchanged(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                fail(ErrorKind::Fenced, self.why_lost(image, head))
            }
            Err(SwapError::Unchanged(error)) => {
                Err(error).at(|| format!("cannot write {}", self.records().show(&key)))
            }
            Err(SwapError::Unknown(error)) => {
                let message = format!("the head of {} may not be durable; reopen it", label());
                Err(Error::above(ErrorKind::Poisoned, message, error))
            }
        }
    }

    /// Why a head was not replaced by this one.
    fn why_lost(&self, image: ImageId, head: &HeadRecord) -> String {
        let label = self.image_label(head);
        match self.is_gone(image) {
            true => format!("{label} was removed by another process"),
            false => format!("{label} was taken over by another process"),
        }
    }

    /// True where an image was removed, or its removal has begun.
    pub(crate) fn is_gone(&self, image: ImageId) -> bool {
        match self.read_head(image) {
            Ok(head) => head.removing,
            Err(error) => error.kind() == ErrorKind::NotFound,
        }
    }

    /// An error of [`Self::swap_head`] as it concerns those who do not own the image.
    pub(crate) fn not_found_if_gone(&self, image: ImageId, error: Error) -> Error {
        match error.kind() == ErrorKind::Fenced && self.is_gone(image) {
            true => Error::new(ErrorKind::NotFound, error.to_string()),
            false => error,
        }
    }

    /// Makes sure that other hosts find the segments that a head names.
    fn upload_named(&self, image: ImageId, head: &HeadRecord) -> std::io::Result<()> {
        let Some(shipping) = self.segments().shipping() else { return Ok(()) };
        let mut below = head.open_from.or(head.marks).unwrap_or_default();
        if let Some(log) = head.log
            && !fault::is(Fault::LogBehindCopiesNotUploaded)
        {
            // `open_from` may be a segment of copies. The log passed it and went on in segments that the head
            // names too, as it names the copies, up to the one where the log begins anew. They were closed before.
            below.data = below.data.max(log.sequence);
        }
        shipping.seal(SegmentSet { author: image, copies: 0 }, &below)?;
        let snapshots = head.snapshots.iter().filter_map(|snapshot| snapshot.root.as_ref());
        let roots = head.root.iter().chain(snapshots);
        let copies: BTreeSet<u64> = roots.flat_map(|root| root.copies.iter().copied()).collect();
        copies.into_iter().filter(|copies| *copies != 0).try_for_each(|c| shipping.seal_copies(c))
    }

    /// Replaces a damaged head. The caller holds the image's lease.
    pub(crate) fn put_head(&self, image: ImageId, head: &HeadRecord) -> Result<()> {
        let bytes = self.encode_head(head)?;
        let key = Key::Head(image);
        let put = self.records().put(&key, &bytes);
        put.at(|| format!("cannot write {}", self.records().show(&key)))
    }

    /// Fails where the head on disk has another epoch.
    pub(crate) fn check_epoch(&self, image: ImageId, epoch: u64) -> Result<()> {
        if self.read_head(image)?.epoch != epoch {
            return fail(
                ErrorKind::Fenced,
                format!("image {image} was taken over by another process"),
            );
        }
        Ok(())
    }

    /// Makes the present content of a record durable.
    ///
    /// # Errors
    /// What the operating system says.
    pub(crate) fn settle(&self, key: &Key) -> Result<()> {
        self.records().settle(key).at(|| format!("cannot sync {}", self.records().show(key)))
    }

    /// Creates the set for the segments that an image of this pool writes.
    pub(crate) fn create_own_set(&self, author: ImageId) -> Result<()> {
        self.files().create_set(self.id(), SegmentSet { author, copies: 0 })
    }

    fn image_missing(&self, name: &str) -> Error {
        let message = format!("image '{name}' does not exist in pool '{}'", self.name());
        Error::new(ErrorKind::NotFound, message)
    }

    pub(crate) fn namespace_missing(&self, namespace: &str) -> Error {
        let message = format!("namespace '{namespace}' does not exist in pool '{}'", self.name());
        Error::new(ErrorKind::NotFound, message)
    }

    /// The keys with a prefix, sorted.
    fn list_records(&self, prefix: &Prefix) -> std::io::Result<Vec<Key>> {
        let mut keys = Vec::new();
        self.records().list(prefix, &mut |listed| {
            if let Listed::Key(key) = listed {
                keys.push(key.clone());
            }
            true
        })?;
        keys.sort_unstable();
        Ok(keys)
    }

    /// The namespaces besides the default one, sorted.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn namespaces(&self) -> Result<Vec<String>> {
        let keys = self.list_records(&Prefix::Namespaces);
        let keys = keys.at(|| format!("cannot list the namespaces of pool '{}'", self.name()))?;
        let names = keys.into_iter().filter_map(|key| match key {
            Key::Namespace(name) => Some(name),
            _ => None,
        });
        Ok(names.filter(|name| could_be_given(self.directory(), name)).collect())
    }

    /// True where the namespace exists, or where that cannot be found out.
    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        namespace.is_empty()
            || self.records().exists(&Key::Namespace(namespace.to_owned())).unwrap_or(true)
    }

    /// Creates a namespace.
    ///
    /// # Errors
    /// `Exists`, `Invalid`, `ReadOnly`.
    pub fn namespace_create(&self, namespace: &str) -> Result<()> {
        check_namespace_name(namespace)?;
        self.check_writable()?;
        match self.records().create(&Key::Namespace(namespace.to_owned()), &[]) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                fail(ErrorKind::Exists, format!("namespace '{namespace}' already exists"))
            }
            made => made.at(|| format!("cannot create namespace '{namespace}'")),
        }
    }

    /// Removes an empty namespace.
    ///
    /// # Errors
    /// `NotFound`, `NotEmpty`, `ReadOnly`.
    pub fn namespace_remove(&self, namespace: &str) -> Result<()> {
        check_namespace_name(namespace)?;
        self.check_writable()?;
        let _lock = self.lock(LockMode::Exclusive)?;
        if !self.image_names_in(namespace)?.is_empty() {
            return fail(ErrorKind::NotEmpty, format!("namespace '{namespace}' contains images"));
        }
        // Its groups have no members any more, and go with it, as with RBD.
        self.check_groups_end_here(Some(namespace))?;
        self.remove_groups(namespace)?;
        self.sweep_names(namespace);
        let context = || format!("cannot remove namespace '{namespace}'");
        let mut other = None;
        let mut note = |listed: Listed<'_>| {
            other = Some(match listed {
                Listed::Key(Key::Name { name, .. }) => name.clone(),
                Listed::Key(key) => self.records().show(key),
                Listed::Other(file) => file.to_owned(),
            });
            false
        };
        let prefix = Prefix::Names(namespace.to_owned());
        self.records().list(&prefix, &mut note).at(context)?;
        let key = Key::Namespace(namespace.to_owned());
        if let Some(file) = other {
            let shown = self.records().show(&key);
            let message = format!("{shown} holds '{file}', which is no name of an image");
            return Err(Error::new(ErrorKind::Io, message).context(context()));
        }
        self.records().remove(&key).and_then(|()| self.records().settle(&key)).at(context)
    }

    /// Names of the images of a namespace. The images are not read.
    ///
    /// # Errors
    /// `NotFound` for an unknown namespace, or what the operating system says.
    pub fn image_names(&self, namespace: &Namespace) -> Result<Vec<String>> {
        self.image_names_in(namespace.in_records())
    }

    /// As [`Self::image_names`], with the namespace as records have it.
    pub(crate) fn image_names_in(&self, namespace: &str) -> Result<Vec<String>> {
        let keys = match self.list_records(&Prefix::Names(namespace.to_owned())) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(self.namespace_missing(namespace));
            }
            keys => keys.at(|| format!("cannot list the images of pool '{}'", self.name()))?,
        };
        let names = keys.into_iter().filter_map(|key| match key {
            Key::Name { name, .. } => Some(name),
            _ => None,
        });
        Ok(names.filter(|name| could_be_given(self.directory(), name)).collect())
    }

    /// Images of a namespace, sorted by name.
    ///
    /// # Errors
    /// `NotFound` for an unknown namespace; `Corrupt` for a damaged name.
    pub fn images(&self, namespace: &Namespace) -> Result<Vec<(String, ImageId)>> {
        self.images_in(namespace.in_records())
    }

    /// As [`Self::images`], with the namespace as records have it.
    pub(crate) fn images_in(&self, namespace: &str) -> Result<Vec<(String, ImageId)>> {
        let read = match self.records().names(namespace, RECORD_BYTES_MAX) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(self.namespace_missing(namespace));
            }
            read => read.at(|| format!("cannot list the images of pool '{}'", self.name()))?,
        };
        let mut images = Vec::with_capacity(read.len());
        for (name, bytes) in read {
            if could_be_given(self.directory(), &name) {
                let key = Key::Name { namespace: namespace.to_owned(), name };
                let image = self.image_in(&key, self.as_record(&key, bytes)?)?;
                if let Key::Name { name, .. } = key {
                    images.push((name, image));
                }
            }
        }
        images.sort_unstable();
        Ok(images)
    }

    /// The image with a name. One in the trash has no name that leads to it.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub fn find(&self, name: impl Into<ImageName>) -> Result<ImageId> {
        let name = name.into();
        if number_in_trash_name(name.name()).is_some() {
            return Err(self.image_missing(name.name()));
        }
        self.find_in(name.namespace().in_records(), name.name())
    }

    /// As [`Self::find`], with the namespace as records have it.
    pub(crate) fn find_in(&self, namespace: &str, name: &str) -> Result<ImageId> {
        let key = Key::Name { namespace: namespace.to_owned(), name: name.to_owned() };
        let missing = || self.image_missing(name);
        // In another user's pool a file may have this name, but it is no name of an image; see
        // `could_be_given`.
        if !is_acceptable(name) || !(namespace.is_empty() || is_acceptable(namespace)) {
            return Err(missing());
        }
        let bytes = match self.read_record(&key) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(match self.has_namespace(namespace) {
                    true => missing(),
                    false => self.namespace_missing(namespace),
                });
            }
            bytes => bytes?,
        };
        let image = self.image_in(&key, bytes)?;
        self.note_found(image, name);
        Ok(image)
    }

    /// Notes the name of an image for messages, where looking it up takes a request.
    pub(crate) fn note_found(&self, image: ImageId, name: &str) {
        if self.segments().shipping().is_some() && !is_partial_name(name) {
            let mut found = self.0.names_found.lock().unwrap_or_else(PoisonError::into_inner);
            found.insert(image, name.to_owned());
        }
    }

    /// The image in the record of a name.
    fn image_in(&self, key: &Key, bytes: Vec<u8>) -> Result<ImageId> {
        let (record, _): (NameRecord, _) = decode_message(FrameKind::Name, &bytes)
            .map_err(|e| Error::from_format(self.cannot_use(key), e))?;
        Ok(ImageId(record.image_id))
    }

    /// Numbers of all images that have a directory, even if it holds no head.
    pub(crate) fn image_ids(&self) -> Result<Vec<ImageId>> {
        let keys = self.list_records(&Prefix::Heads);
        let keys = keys.at(|| format!("cannot list the images of pool '{}'", self.name()))?;
        Ok(keys
            .into_iter()
            .filter_map(|k| if let Key::Head(id) = k { Some(id) } else { None })
            .collect())
    }

    /// The name of any image in the pool, for an error message.
    pub(crate) fn any_image(&self) -> Result<Option<String>> {
        for namespace in self.namespaces()?.iter().map(String::as_str).chain([""]) {
            if let Some(name) = self.image_names_in(namespace)?.into_iter().next() {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Opens all pools of the store, so that data in them is found. An image's data may lie in several.
    pub(crate) fn add_pools(&self) {
        let names = match self.store().pools() {
            Ok(names) => names,
            Err(error) => {
                return tracing::warn!(error = %error.sentence(), "pools cannot be listed");
            }
        };
        for name in names {
            // An error matters only if the image has data in that pool; then it is reported later.
            match self.store().pool(&name) {
                Err(error) if matches!(error.kind(), ErrorKind::Exhausted | ErrorKind::Busy) => {
                    tracing::warn!(pool = %name, error = %error.sentence(), "a pool cannot be opened now");
                }
                Err(error) => {
                    tracing::debug!(pool = %name, error = %error.sentence(), "a pool cannot be opened")
                }
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

/// The error for a snapshot that does not exist.
pub(crate) fn no_snapshot(label: &str, name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("{label} has no snapshot '{name}'"))
}
