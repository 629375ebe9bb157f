//! The trash of a pool: images without a name that people can use, which are kept until they are removed or
//! get a name again.
//!
//! An image in the trash is complete: it keeps its number, its head, its snapshots and its children. Only its
//! name is another one, made of its own number, which no user can give. Beside its head is noted what it was
//! called, when it was moved there, and until when it is protected from removal.
//!
//! Invariants:
//! - Moving to the trash and back is the renaming of one record. So after a crash the image either has its
//!   name or is in the trash.
//! - The note is durable before the image is in the trash. A note beside an image with another name means
//!   nothing.

use marcot_backend::Key;
use marcot_format::ImageId;
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::TrashRecord;
use marcot_store::LockMode;

use super::advisory::check_unlocked;
use super::image_name::{ImageName, Namespace};
use super::migration::refuse_migrating;
use super::names::check_image_name;
use super::pool::Pool;
use super::trash_name::{number_in_trash_name, trash_name};
use crate::error::{Error, ErrorKind, IoContext, Result, fail};

/// The end of a protection that does not end, in seconds since 1970: the last second that RBD can note.
pub const PROTECTED_FOR_GOOD_S: i64 = u32::MAX as i64;

/// An image in the trash.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrashedImage {
    /// Its number.
    pub id: ImageId,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name before.
    pub name: String,
    /// When it was moved to the trash, in seconds since 1970.
    pub deleted_s: i64,
    /// Until when it is protected from removal, in seconds since 1970.
    pub protected_until_s: i64,
    /// It is the source of a migration, which alone takes it out of the trash.
    pub migrating: bool,
}

impl TrashedImage {
    /// What it is called in its pool now.
    #[must_use]
    pub fn name_now(&self) -> ImageName {
        ImageName::new(trash_name(self.id)).in_namespace(&self.namespace)
    }
}

impl Pool {
    /// Moves an image that has this name to the trash, also while it is in use. `protected_until_s`, in seconds
    /// since 1970, is noted for those who empty the trash; `None`: it is not protected.
    ///
    /// # Errors
    /// `NotFound`; `Busy` where another image has the name by now; `ReadOnly`, also for an image that is locked.
    pub fn move_to_trash(
        &self,
        image: ImageId,
        name: impl Into<ImageName>,
        protected_until_s: Option<i64>,
    ) -> Result<()> {
        let name = name.into();
        self.check_writable()?;
        let _lock = self.lock(LockMode::Exclusive)?;
        if self.find(&name)? != image {
            let name = name.name();
            let message = format!("the name '{name}' was given to another image meanwhile");
            return fail(ErrorKind::Busy, message);
        }
        // An image whose head is damaged can be moved too.
        if let Ok(head) = self.read_head(image) {
            check_unlocked(&head, &self.image_label(&head))?;
            refuse_migrating(&head, &self.image_label(&head))?;
        }
        self.put_aside(image, &name, protected_until_s, false)
    }

    /// Moves the source of a migration to the trash. Its lease is held, and its head says that it is the source.
    pub(crate) fn put_source_aside(&self, image: ImageId, name: &ImageName) -> Result<()> {
        let _lock = self.lock(LockMode::Exclusive)?;
        if self.find(name)? != image {
            let name = name.name();
            let message = format!("the name '{name}' was given to another image meanwhile");
            return fail(ErrorKind::Busy, message);
        }
        self.put_aside(image, name, None, true)
    }

    /// Takes the source of a migration out of the trash, if it is there, under the name that it had.
    ///
    /// # Errors
    /// `Exists` where another image has the name.
    pub(crate) fn take_source_back(&self, namespace: &Namespace, image: ImageId) -> Result<()> {
        let _lock = self.lock(LockMode::Exclusive)?;
        match self.trashed_image(namespace, image) {
            Ok(trashed) => self.give_name_back(namespace, &trashed, &trashed.name),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Moves an image to the trash. The pool's lock is held.
    fn put_aside(
        &self,
        image: ImageId,
        name: &ImageName,
        protected_until_s: Option<i64>,
        migrating: bool,
    ) -> Result<()> {
        let now_s = self.now_s();
        let note = TrashRecord {
            image_id: image.0,
            name: name.name().to_owned(),
            deleted_s: now_s,
            protected_until_s: protected_until_s.unwrap_or(now_s),
            migrating,
        };
        let context = || format!("cannot move image '{}' to the trash", name.name());
        let note = encode_message(FrameKind::Trash, &note);
        self.records().put(&Key::TrashNote(image), &note).at(context)?;
        let namespace = name.namespace().in_records();
        let moved = self.rename_record(image, namespace, name.name(), &trash_name(image));
        moved.map_err(|error| error.context(context()))
    }

    /// Gives an image in the trash a name again: `name`, or the one that it had.
    ///
    /// # Errors
    /// `NotFound` where it is not in the trash; `Exists`; `Invalid`, `NameTooLong` for the name; `ReadOnly`.
    pub fn restore(
        &self,
        namespace: &Namespace,
        image: ImageId,
        name: Option<&str>,
    ) -> Result<String> {
        self.check_writable()?;
        let _lock = self.lock(LockMode::Exclusive)?;
        let trashed = self.trashed_image(namespace, image)?;
        let name = name.unwrap_or(&trashed.name);
        check_image_name(name)?;
        if trashed.migrating {
            let message = format!(
                "image '{}' is the source of a migration; 'migration abort' takes it out of the trash",
                trashed.name
            );
            return fail(ErrorKind::Invalid, message);
        }
        self.give_name_back(namespace, &trashed, name)?;
        Ok(name.to_owned())
    }

    /// Takes an image out of the trash. The pool's lock is held.
    fn give_name_back(
        &self,
        namespace: &Namespace,
        trashed: &TrashedImage,
        name: &str,
    ) -> Result<()> {
        let (image, namespace) = (trashed.id, namespace.in_records());
        self.check_free(namespace, name)?;
        let context = || format!("cannot restore image '{name}'");
        let restored = self.rename_record(image, namespace, &trash_name(image), name);
        restored.map_err(|error| error.context(context()))?;
        self.note_name(image, namespace, name);
        if let Err(error) = self.records().remove(&Key::TrashNote(image)) {
            tracing::debug!(%image, %error, "a note of the trash is left, which means nothing now");
        }
        Ok(())
    }

    /// The images of a namespace that are in the trash, sorted by the names that they had.
    ///
    /// # Errors
    /// `NotFound` for an unknown namespace, or what the operating system says.
    pub fn trash(&self, namespace: &Namespace) -> Result<Vec<TrashedImage>> {
        let names = self.image_names_in(namespace.in_records())?;
        let numbers = names.iter().filter_map(|name| number_in_trash_name(name));
        let mut found = Vec::new();
        for image in numbers {
            match self.trashed_image(namespace, image) {
                Ok(trashed) => found.push(trashed),
                // It was restored or removed since the names were listed, or only looks like one.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        found.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        Ok(found)
    }

    /// An image of a namespace that is in the trash.
    ///
    /// # Errors
    /// `NotFound`, also for an image that is not in the trash; `Corrupt`.
    pub fn trashed_image(&self, namespace: &Namespace, image: ImageId) -> Result<TrashedImage> {
        match self.find_in(namespace.in_records(), &trash_name(image)) {
            Ok(found) if found == image => {}
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {
                let message = format!("pool '{}' has no image {image} in its trash", self.name());
                return fail(ErrorKind::NotFound, message);
            }
        }
        let note = self.trash_note(image)?;
        Ok(TrashedImage {
            id: image,
            namespace: namespace.clone(),
            name: note.name,
            deleted_s: note.deleted_s,
            protected_until_s: note.protected_until_s,
            migrating: note.migrating,
        })
    }

    /// What is noted beside an image in the trash. Where the note is missing or damaged, it is made up: the
    /// name in the head, and protection, because nobody knows what was wanted.
    fn trash_note(&self, image: ImageId) -> Result<TrashRecord> {
        let key = Key::TrashNote(image);
        let decoded = match self.read_record(&key) {
            Ok(bytes) => decode_message::<TrashRecord>(FrameKind::Trash, &bytes)
                .map_err(|e| Error::from_format(self.records().show(&key), e)),
            Err(error) => Err(error),
        };
        match decoded {
            Ok((note, _)) if note.image_id == image.0 => return Ok(note),
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {
                return Err(error);
            }
            _ => {}
        }
        tracing::warn!(%image, "{} does not say when the image was moved to the trash", self.records().show(&key));
        let name = self.read_head(image).map(|head| head.name);
        Ok(TrashRecord {
            image_id: image.0,
            name: name.unwrap_or_else(|_| image.to_string()),
            protected_until_s: PROTECTED_FOR_GOOD_S,
            ..TrashRecord::default()
        })
    }

    /// The name that an image in the trash had before, for people.
    pub(crate) fn name_before_trash(&self, image: ImageId) -> Option<String> {
        self.trash_note(image).ok().map(|note| note.name).filter(|name| !name.is_empty())
    }
}
