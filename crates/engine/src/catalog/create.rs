//! Creating and renaming images.

use marcot_format::frame::{FrameKind, encode_message};
use marcot_format::record::{HeadRecord, LogPosition, NameRecord, RootRecord, SegmentMarks};
use marcot_format::{IMAGE_BYTES_MAX, ImageId};
use marcot_store::{LockMode, publish_new};

use super::names::check_image_name;
use super::naming::NamedImages;
use super::pool::Pool;
use crate::error::{ErrorKind, IoContext, Result, fail};

/// log2 of the object size that `info` shows by default, as with RBD.
pub const ORDER_DEFAULT: u32 = 22;

/// How an image is created.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Size in bytes; 0 is allowed, as with RBD.
    pub size_bytes: u64,
    /// log2 of the object size that `info` shows; of no meaning to the layout.
    pub order: u32,
    /// Feature names that `info` shows, comma separated.
    pub features: String,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self { size_bytes: 0, order: ORDER_DEFAULT, features: String::new() }
    }
}

/// The head of an image that nobody has written yet.
pub(super) fn first_head(id: ImageId, namespace: &str, name: &str, now_s: i64) -> HeadRecord {
    HeadRecord {
        image_id: id.0,
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        version: 1,
        created_s: now_s,
        modified_s: now_s,
        log: Some(LogPosition { segment: 1, slot: 1, group: 1 }),
        marks: Some(SegmentMarks { data: 1, map: 1, table: 1 }),
        snap_next: 1,
        leaves_marks: true,
        ..HeadRecord::default()
    }
}

impl Pool {
    /// Creates an image that reads as zeros.
    ///
    /// # Errors
    /// `Exists`; `Invalid` for its name or size; `NotFound` for the namespace; `ReadOnly`.
    pub fn create(&self, namespace: &str, name: &str, options: &CreateOptions) -> Result<ImageId> {
        self.check_new_image(name, options)?;
        let _lock = self.lock(LockMode::Exclusive)?;
        let (id, head) = self.new_head(namespace, name, options)?;
        self.publish_image(id, &head, name)?;
        Ok(id)
    }

    pub(super) fn check_new_image(&self, name: &str, options: &CreateOptions) -> Result<()> {
        check_image_name(name)?;
        self.check_writable()?;
        if options.size_bytes > IMAGE_BYTES_MAX {
            let message = format!("the largest image is {} TiB", IMAGE_BYTES_MAX >> 40);
            return fail(ErrorKind::Invalid, message);
        }
        Ok(())
    }

    /// The head of an image that reads as zeros, where its name is free. The pool's lock is held.
    pub(super) fn new_head(
        &self,
        namespace: &str,
        name: &str,
        options: &CreateOptions,
    ) -> Result<(ImageId, HeadRecord)> {
        self.check_free(namespace, name)?;
        let id = ImageId(self.unique());
        let mut head = first_head(id, namespace, name, self.now_s());
        head.order = options.order;
        head.features.clone_from(&options.features);
        head.root = Some(RootRecord {
            size_bytes: options.size_bytes,
            segment_next: 1,
            ..RootRecord::default()
        });
        Ok((id, head))
    }

    /// Fails where the name is taken or the namespace missing.
    pub(super) fn check_free(&self, namespace: &str, name: &str) -> Result<()> {
        match self.find(namespace, name) {
            Ok(_) => fail(
                ErrorKind::Exists,
                format!("image '{name}' already exists in pool '{}'", self.name()),
            ),
            Err(_)
                if !namespace.is_empty()
                    && self.disk().mode(&self.names_directory(namespace)).is_err() =>
            {
                let message =
                    format!("namespace '{namespace}' does not exist in pool '{}'", self.name());
                fail(ErrorKind::NotFound, message)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes an image from its first head: directory, head, then the name, which is the commit.
    /// The pool's lock is held.
    pub(super) fn publish_image(&self, id: ImageId, head: &HeadRecord, name: &str) -> Result<()> {
        let directory = self.image_directory(id);
        let disk = self.disk();
        let context = || format!("cannot create image '{}'", head.name);
        // Who made the pool may have been killed before its record was durable.
        disk.sync_directory(self.directory()).at(context)?;
        disk.create_directory(&directory, self.directory_mode()).at(context)?;
        let record = NameRecord { image_id: id.0, ..NameRecord::default() };
        let name_bytes = encode_message(FrameKind::Name, &record);
        let name_path = self.name_path(&head.namespace, name);
        let images = self.directory().join("images");
        let bytes = encode_message(FrameKind::Head, head);
        let path = directory.join("head");
        let made = publish_new(disk, &path, self.unique(), self.file_mode(), &bytes)
            .and_then(|()| disk.sync_directory(&images))
            .and_then(|()| {
                publish_new(disk, &name_path, self.unique(), self.file_mode(), &name_bytes)
            });
        if let Err(error) = made {
            // The name may be there, when only the sync of its directory failed. It must be gone for
            // good before what it leads to goes; else the image stays whole, and can be removed.
            let names = self.names_directory(&head.namespace);
            let unnamed = match self.find(&head.namespace, name) {
                Ok(found) if found == id => {
                    disk.remove_file(&name_path).and_then(|()| disk.sync_directory(&names)).is_ok()
                }
                Ok(_) => true,
                Err(unknown) => unknown.kind() == ErrorKind::NotFound,
            };
            if unnamed {
                self.remove_image_directory(id);
            }
            return Err(error).at(context);
        }
        Ok(())
    }

    /// Removes the files of an image's directory. Errors leave litter for `gc`.
    pub(super) fn remove_image_directory(&self, id: ImageId) {
        let directory = self.image_directory(id);
        let disk = self.disk();
        for name in disk.list(&directory).unwrap_or_default() {
            let _ = disk.remove_file(&directory.join(name));
        }
        let _ = disk.remove_directory(&directory);
        let _ = disk.sync_directory(&self.directory().join("images"));
    }

    /// Gives an image another name. Works while the image is in use.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `Invalid`, `ReadOnly`.
    pub fn rename(&self, namespace: &str, from: &str, to: &str) -> Result<()> {
        check_image_name(to)?;
        self.check_writable()?;
        let _lock = self.lock(LockMode::Exclusive)?;
        let image = self.find(namespace, from)?;
        self.check_free(namespace, to)?;
        let (old, new) = (self.name_path(namespace, from), self.name_path(namespace, to));
        let disk = self.disk();
        let context = || format!("cannot rename image '{from}'");
        disk.rename_new(&old, &new).at(context)?;
        let synced = disk.sync_directory(&self.names_directory(namespace)).at(context);
        // The head is its owner's to write, and keeps the name it was made with.
        self.note_name(image, namespace, to);
        synced
    }

    /// Gives an image that has lost its name one again: its own, or one made of its number.
    pub(crate) fn restore_name(&self, image: ImageId, head: &HeadRecord) -> Result<()> {
        let _lock = self.lock(LockMode::Exclusive)?;
        // It may have been renamed while the names were read.
        if !self.is_nameless(head, &mut NamedImages::default())? {
            return Ok(());
        }
        let usable = check_image_name(&head.name)
            .and_then(|()| self.check_free(&head.namespace, &head.name));
        let name = match usable {
            Ok(()) => head.name.clone(),
            Err(_) => format!("found-{image}"),
        };
        let record = NameRecord { image_id: image.0, ..NameRecord::default() };
        let bytes = encode_message(FrameKind::Name, &record);
        let path = self.name_path(&head.namespace, &name);
        publish_new(self.disk(), &path, self.unique(), self.file_mode(), &bytes)
            .at(|| format!("cannot name image {image}"))?;
        self.note_name(image, &head.namespace, &name);
        Ok(())
    }

    /// Removes a name that leads nowhere.
    pub(crate) fn remove_name(&self, namespace: &str, name: &str) -> Result<()> {
        let _lock = self.lock(LockMode::Exclusive)?;
        let path = self.name_path(namespace, name);
        self.disk().remove_file(&path).at(|| format!("cannot remove {}", path.display()))
    }
}
