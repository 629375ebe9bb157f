//! Creating and renaming images.

use marcot_backend::Key;
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::{
    HeadRecord, LogPosition, MetaRecord, NameRecord, OwnerRecord, RootRecord, SegmentMarks,
};
use marcot_format::{IMAGE_BYTES_MAX, ImageId};
use marcot_store::LockMode;

use super::advisory::check_unlocked;
use super::image_name::ImageName;
use super::names::check_image_name;
use super::naming::NamedImages;
use super::pool::{Pool, RECORD_BYTES_MAX};
use crate::error::{ErrorKind, IoContext, Result, fail};

/// log2 of the object size that `info` shows by default, as with RBD.
pub const ORDER_DEFAULT: u32 = 22;

/// How an image is created.
///
/// ```
/// use marcot::CreateOptions;
///
/// let options = CreateOptions::sized(1 << 30).order(20);
/// assert_eq!((options.size_bytes, options.order), (1 << 30, 20));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreateOptions {
    /// Size in bytes; 0 is allowed, as with RBD.
    pub size_bytes: u64,
    /// log2 of the object size that `info` shows. It does not change the layout.
    pub order: u32,
    /// Feature names that `info` shows, comma separated.
    pub features: String,
    /// Bytes of a stripe that `info` shows; 0: the object size. It does not change the layout.
    pub stripe_unit_bytes: u64,
    /// Objects of a stripe that `info` shows; 0: one.
    pub stripe_count: u64,
    /// The data pool that `info` shows; empty: its own pool. The data lies in the image's own pool.
    pub data_pool: String,
    /// Metadata of the user: keys and values.
    pub metadata: Vec<(String, String)>,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            size_bytes: 0,
            order: ORDER_DEFAULT,
            features: String::new(),
            stripe_unit_bytes: 0,
            stripe_count: 0,
            data_pool: String::new(),
            metadata: Vec::new(),
        }
    }
}

impl CreateOptions {
    /// An image of that many bytes; 0 is allowed, as with RBD.
    #[must_use]
    pub fn sized(size_bytes: u64) -> Self {
        Self { size_bytes, ..Self::default() }
    }

    /// The same with another log2 of the object size that `info` shows.
    #[must_use]
    pub fn order(self, order: u32) -> Self {
        Self { order, ..self }
    }

    /// The same with feature names that `info` shows, comma separated.
    #[must_use]
    pub fn features(self, features: impl Into<String>) -> Self {
        Self { features: features.into(), ..self }
    }

    /// The same with another stripe that `info` shows: bytes of a unit, and number of objects.
    #[must_use]
    pub fn stripe(self, stripe_unit_bytes: u64, stripe_count: u64) -> Self {
        Self { stripe_unit_bytes, stripe_count, ..self }
    }

    /// The same with a data pool that `info` shows.
    #[must_use]
    pub fn data_pool(self, data_pool: impl Into<String>) -> Self {
        Self { data_pool: data_pool.into(), ..self }
    }
}

/// The first head of a new image.
pub(crate) fn first_head(id: ImageId, namespace: &str, name: &str, now_s: i64) -> HeadRecord {
    HeadRecord {
        image_id: id.0,
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        version: 1,
        created_s: now_s,
        modified_s: now_s,
        log: Some(LogPosition { sequence: 1, slot: 1, group: 1 }),
        marks: Some(SegmentMarks { data: 1, map: 1, table: 1 }),
        snap_next: 1,
        leaves_marks: true,
        ..HeadRecord::default()
    }
}

/// The record that a name leads to an image.
fn name_record(image: ImageId) -> Vec<u8> {
    let record = NameRecord { image_id: image.0, ..NameRecord::default() };
    encode_message(FrameKind::Name, &record)
}

impl Pool {
    /// Creates an image that reads as zeros.
    ///
    /// # Errors
    /// `Exists`; `Invalid` for its name or size; `NotFound` for the namespace; `ReadOnly`.
    pub fn create(&self, name: impl Into<ImageName>, options: &CreateOptions) -> Result<ImageId> {
        let name = name.into();
        self.check_new_image(name.name(), options)?;
        let _lock = self.lock(LockMode::Exclusive)?;
        let (id, head) = self.new_head(&name, options)?;
        self.publish_image(id, &head, name.name())?;
        Ok(id)
    }

    pub(crate) fn check_new_image(&self, name: &str, options: &CreateOptions) -> Result<()> {
        check_image_name(name)?;
        self.check_writable()?;
        if options.size_bytes > IMAGE_BYTES_MAX {
            let message = format!("the largest image is {} TiB", IMAGE_BYTES_MAX >> 40);
            return fail(ErrorKind::Invalid, message);
        }
        Ok(())
    }

    /// Makes the head of an image that reads as zeros. Fails where its name is taken. The pool's lock is
    /// held.
    pub(crate) fn new_head(
        &self,
        name: &ImageName,
        options: &CreateOptions,
    ) -> Result<(ImageId, HeadRecord)> {
        let (namespace, name) = (name.namespace().in_records(), name.name());
        self.check_free(namespace, name)?;
        let id = ImageId(self.unique());
        let mut head = first_head(id, namespace, name, self.now_s());
        head.order = options.order;
        head.features.clone_from(&options.features);
        head.stripe_unit_bytes = options.stripe_unit_bytes;
        head.stripe_count = options.stripe_count;
        head.data_pool.clone_from(&options.data_pool);
        let note =
            |(key, value): &(String, String)| MetaRecord { key: key.clone(), value: value.clone() };
        head.metadata = options.metadata.iter().map(note).collect();
        head.root = Some(RootRecord {
            size_bytes: options.size_bytes,
            segment_next: 1,
            ..RootRecord::default()
        });
        Ok((id, head))
    }

    /// Fails where the name is taken or the namespace does not exist.
    pub(crate) fn check_free(&self, namespace: &str, name: &str) -> Result<()> {
        match self.find_in(namespace, name) {
            Ok(_) => fail(
                ErrorKind::Exists,
                format!("image '{name}' already exists in pool '{}'", self.name()),
            ),
            Err(_) if !self.has_namespace(namespace) => {
                let message =
                    format!("namespace '{namespace}' does not exist in pool '{}'", self.name());
                fail(ErrorKind::NotFound, message)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Creates an image from its first head: stores the head, then the name, which is the commit. The
    /// pool's lock is held.
    pub(crate) fn publish_image(&self, id: ImageId, head: &HeadRecord, name: &str) -> Result<()> {
        let records = self.records();
        let context = || format!("cannot create image '{}'", head.name);
        // The process that made the pool may have been killed before the pool's record was durable.
        records.settle(&Key::Pool).at(context)?;
        let name_key = Key::Name { namespace: head.namespace.clone(), name: name.to_owned() };
        let mut head = head.clone();
        // Only this host can tell whether the image is still being made.
        head.owner = self.segments().shipping().map(|s| OwnerRecord { closed: true, ..s.host() });
        let head = &head;
        let made = records
            .create(&Key::Head(id), &self.encode_head(head)?)
            .and_then(|()| records.create(&name_key, &name_record(id)));
        if let Err(error) = made {
            // The name may exist, if only the sync of it failed. The head is removed only after the name
            // is gone for good. Otherwise the image stays complete, and can be removed later.
            let unnamed = match self.find_in(&head.namespace, name) {
                Ok(found) if found == id => self.remove_name_of(id, &name_key).is_ok(),
                Ok(_) => true,
                Err(unknown) => unknown.kind() == ErrorKind::NotFound,
            };
            if unnamed {
                self.remove_head(id);
            }
            return Err(error).at(context);
        }
        self.note_found(id, name);
        Ok(())
    }

    /// The record of a name, where the name leads to the image. A damaged one says nothing else.
    fn name_record_of(&self, id: ImageId, name: &Key) -> std::io::Result<Option<Vec<u8>>> {
        let record = match self.records().get(name, RECORD_BYTES_MAX) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            record => record?,
        };
        let decoded = decode_message::<NameRecord>(FrameKind::Name, &record);
        let is_anothers = decoded.is_ok_and(|(found, _)| found.image_id != id.0);
        Ok((!is_anothers).then_some(record))
    }

    /// Removes the name of an image, durably. False where the name does not lead to the image: another host has removed
    /// it too, and perhaps given it to another image, which keeps it; or the image has another name by now.
    pub(crate) fn remove_name_of(&self, id: ImageId, name: &Key) -> std::io::Result<bool> {
        let records = self.records();
        let Some(record) = self.name_record_of(id, name)? else { return Ok(false) };
        match records.remove_same(name, &record) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            removed => removed.and_then(|()| records.settle(name)).map(|()| true),
        }
    }

    /// Removes an image's head and what lies beside it. Where that fails, `gc` removes the rest.
    pub(crate) fn remove_head(&self, id: ImageId) {
        if let Err(error) = self.records().remove(&Key::Head(id)) {
            tracing::debug!(image = %id, %error, "left for gc");
        }
    }

    /// Gives an image another name in the same namespace. Works while the image is in use.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `Invalid`, `ReadOnly`.
    pub fn rename(&self, from: impl Into<ImageName>, to: &str) -> Result<()> {
        let from = from.into();
        self.rename_in(from.namespace().in_records(), from.name(), to)
    }

    /// As [`Self::rename`], with the namespace as records have it.
    pub(crate) fn rename_in(&self, namespace: &str, from: &str, to: &str) -> Result<()> {
        check_image_name(to)?;
        self.check_writable()?;
        let _lock = self.lock(LockMode::Exclusive)?;
        let image = self.find_in(namespace, from)?;
        self.check_free(namespace, to)?;
        // An image whose head is damaged can be renamed too.
        if let Ok(head) = self.read_head(image) {
            check_unlocked(&head, &self.image_label(&head))?;
        }
        let synced = self
            .rename_record(image, namespace, from, to)
            .map_err(|error| error.context(format!("cannot rename image '{from}'")));
        if let Err(error) = &synced
            && error.kind() == ErrorKind::Busy
        {
            return synced;
        }
        self.note_found(image, to);
        // Only its owner writes the head, so the head keeps the name that the image was made with.
        self.note_name(image, namespace, to);
        synced
    }

    /// Gives the record of a name another name; durable when this returns. The pool's lock is held, which keeps no other
    /// host of a pool in a bucket away.
    ///
    /// # Errors
    /// `Busy` where the name does not lead to the image any more; what the back end says.
    pub(super) fn rename_record(
        &self,
        image: ImageId,
        namespace: &str,
        from: &str,
        to: &str,
    ) -> Result<()> {
        let key = |name: &str| Key::Name { namespace: namespace.to_owned(), name: name.to_owned() };
        let (records, show) = (self.records(), || self.records().show(&key(from)));
        let gone = || {
            let message = format!("the name '{from}' was taken from the image meanwhile");
            fail(ErrorKind::Busy, message)
        };
        let Some(record) = self.name_record_of(image, &key(from)).at(show)? else { return gone() };
        match records.rename_name(&key(from), &key(to), &record) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => gone(),
            renamed => renamed.and_then(|()| records.settle(&key(to))).at(show),
        }
    }

    /// Gives an image without a name a name again: the one in its head, or one made of its number.
    pub(crate) fn restore_name(&self, image: ImageId, head: &HeadRecord) -> Result<()> {
        let _lock = self.lock(LockMode::Exclusive)?;
        // The image may have been renamed while the names were read.
        if !self.is_nameless(head, &mut NamedImages::default())? {
            return Ok(());
        }
        let usable = check_image_name(&head.name)
            .and_then(|()| self.check_free(&head.namespace, &head.name));
        let name = match usable {
            Ok(()) => head.name.clone(),
            Err(_) => format!("found-{image}"),
        };
        let key = Key::Name { namespace: head.namespace.clone(), name: name.clone() };
        let named = self.records().create(&key, &name_record(image));
        named.at(|| format!("cannot name image {image}"))?;
        self.note_name(image, &head.namespace, &name);
        Ok(())
    }

    /// Removes a name whose image does not exist.
    pub(crate) fn remove_name(&self, namespace: &str, name: &str) -> Result<()> {
        let _lock = self.lock(LockMode::Exclusive)?;
        let key = Key::Name { namespace: namespace.to_owned(), name: name.to_owned() };
        let removed = self.records().remove(&key);
        removed.at(|| format!("cannot remove {}", self.records().show(&key)))
    }
}
