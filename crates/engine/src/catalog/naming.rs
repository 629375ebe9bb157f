//! From an image's number to its name.
//!
//! `names/` leads from names to numbers, and only it counts. The way back must not read all of `names/`,
//! or the cost of every command would grow with the number of images. So there are two hints: the name in
//! the head, and `images/NUMBER/name` where the image was renamed later.
//!
//! Invariants:
//! - A hint is verified: the name in it must lead to the image. So an old, torn or missing hint does no
//!   harm. All names are read then, once, and the hint is written again.
//! - A hint is written under the pool's lock, after the name in it exists.

use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;

use marcot_backend::Key;
use marcot_format::ImageId;
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::{HeadRecord, NameRecord};
use marcot_store::LockMode;

use super::image_name::Namespace;
use super::partial::{is_partial_name, partial_name};
use super::pool::Pool;
use super::trash_name::{number_in_trash_name, trash_name};
use crate::error::{Error, ErrorKind, Result};

/// Namespace and name of images, read because a hint was missing. They are hints too.
pub(crate) type NamesRead = HashMap<ImageId, (String, String)>;

/// The images that have a name. They are read on first use, by commands that go through all images of a
/// pool.
#[derive(Default)]
pub(crate) struct NamedImages {
    all: Option<HashSet<ImageId>>,
    /// Images whose hints were looked at.
    asked: u32,
}

impl NamedImages {
    fn read(&mut self, pool: &Pool) -> Result<&HashSet<ImageId>> {
        let named = match self.all.take() {
            Some(named) => named,
            None => pool.named_images()?,
        };
        Ok(self.all.insert(named))
    }
}

/// After so many looks at hints that take a request each, all names are read: that takes about as many.
const HINTS_MAX: u32 = 64;

/// True for an error that says nothing about the name, which may exist.
fn may_be_there(error: &Error) -> bool {
    error.kind() == ErrorKind::Io || error.kind().is_obstacle()
}

impl Pool {
    /// `pool/image` or `pool/namespace/image`.
    pub(crate) fn image_label(&self, head: &HeadRecord) -> String {
        self.label(&head.namespace, &self.shown_name(head).0)
    }

    /// The name by which people know an image, and whether it is in the trash, where it has another one.
    pub(crate) fn shown_name(&self, head: &HeadRecord) -> (String, bool) {
        let image = ImageId(head.image_id);
        if let Some(name) = self.name_found(image) {
            return (name, false);
        }
        match self.name_of(head) {
            Some(name) if number_in_trash_name(&name) == Some(image) => {
                let before = self.name_before_trash(image);
                (before.unwrap_or_else(|| head.name.clone()), true)
            }
            // A partial image is shown by its final name, which its head has.
            Some(name) if !is_partial_name(&name) => (name, false),
            _ => (head.name.clone(), false),
        }
    }

    /// The name by which the image was found, where looking it up takes a request. It may have another one by now,
    /// given by another process.
    fn name_found(&self, image: ImageId) -> Option<String> {
        let found = self.0.names_found.lock().unwrap_or_else(PoisonError::into_inner);
        found.get(&image).filter(|name| number_in_trash_name(name).is_none()).cloned()
    }

    /// The name that a child's link to this image has. It is a hint: the link leads to the image by its number.
    pub(crate) fn name_for_link(&self, head: &HeadRecord) -> String {
        let found = self.name_found(ImageId(head.image_id));
        found.or_else(|| self.name_of(head)).unwrap_or_else(|| head.name.clone())
    }

    fn label(&self, namespace: &str, name: &str) -> String {
        match namespace {
            "" => format!("{}/{name}", self.name()),
            namespace => format!("{}/{namespace}/{name}", self.name()),
        }
    }

    /// What an image is called for people, `pool/image` or `pool/namespace/image`, also where its head cannot
    /// be read: its name by the names alone, or its number.
    #[must_use]
    pub fn label_by_names(&self, image: ImageId) -> String {
        if let Some((namespace, name)) = self.noted_name(image)
            && self.find_in(&namespace, &name).is_ok_and(|found| found == image)
        {
            return self.label(&namespace, &name);
        }
        let mut namespaces = self.namespaces().unwrap_or_default();
        namespaces.insert(0, String::new());
        let named = namespaces.into_iter().find_map(|namespace| {
            let images = self.images_in(&namespace).ok()?;
            let (name, _) = images.into_iter().find(|(_, id)| *id == image)?;
            let before = number_in_trash_name(&name).and_then(|_| self.name_before_trash(image));
            Some(self.label(&namespace, &before.unwrap_or(name)))
        });
        named.unwrap_or_else(|| format!("{image} of pool '{}'", self.name()))
    }

    /// The name of an image in a namespace; `None` where the namespace has no such image, or the image
    /// has no name.
    ///
    /// # Errors
    /// `Corrupt`, `NewerFormat` for its head; what the operating system says.
    pub fn name_of_image(&self, namespace: &Namespace, image: ImageId) -> Result<Option<String>> {
        match self.read_head(image) {
            Ok(head) if head.namespace == namespace.in_records() => self.find_name_of(&head),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The present name of an image. It may have changed since the head was written.
    pub(crate) fn name_of(&self, head: &HeadRecord) -> Option<String> {
        self.find_name_of(head).ok().flatten()
    }

    /// As [`Self::name_of`], but fails where a name cannot be read now that the image may have.
    pub(crate) fn find_name_of(&self, head: &HeadRecord) -> Result<Option<String>> {
        let image = ImageId(head.image_id);
        match self.name_by_hints(head) {
            Ok(Some(name)) => return Ok(Some(name)),
            Err(error) if may_be_there(&error) => return Err(error),
            _ => {}
        }
        let images = match self.images_in(&head.namespace) {
            Ok(images) => images,
            Err(error) if may_be_there(&error) => return Err(error),
            Err(_) => return Ok(None),
        };
        let found = images.iter().find(|(_, id)| *id == image).map(|(name, _)| name.clone());
        if let Some(name) = &found {
            self.mend_hint(image, &head.namespace, name);
        }
        let read = images.into_iter().map(|(name, id)| (id, (head.namespace.clone(), name)));
        self.names_read().extend(read);
        Ok(found)
    }

    /// True where no name leads to the image.
    ///
    /// # Errors
    /// Where a name cannot be read, because it might be the image's own.
    pub(crate) fn is_nameless(&self, head: &HeadRecord, all: &mut NamedImages) -> Result<bool> {
        let image = ImageId(head.image_id);
        let hints_are_dear = self.segments().shipping().is_some();
        if hints_are_dear && all.asked >= HINTS_MAX {
            // A name that moves while names are read may be missing among them. So these only prove that there is one.
            if all.read(self)?.contains(&image) {
                return Ok(false);
            }
        }
        all.asked += 1;
        if self.name_by_hints(head)?.is_some() {
            return Ok(false);
        }
        Ok(!all.read(self)?.contains(&image))
    }

    fn named_images(&self) -> Result<HashSet<ImageId>> {
        let mut named = HashSet::new();
        for namespace in self.namespaces()?.iter().map(String::as_str).chain([""]) {
            named.extend(self.images_in(namespace)?.into_iter().map(|(_, image)| image));
        }
        Ok(named)
    }

    /// The image's name by its head, by the note beside the head, or by names read before. `None` where
    /// none of them leads to the image; then all names have to be read.
    fn name_by_hints(&self, head: &HeadRecord) -> Result<Option<String>> {
        let image = ImageId(head.image_id);
        let leads_here = |name: &str| match self.find_in(&head.namespace, name) {
            Ok(found) => Ok(found == image),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        };
        for name in [head.name.clone(), partial_name(image)] {
            if leads_here(&name)? {
                return Ok(Some(name));
            }
        }
        let read_before = || self.names_read().get(&image).cloned();
        for (namespace, name) in self.noted_name(image).into_iter().chain(read_before()) {
            if namespace == head.namespace && leads_here(&name)? {
                return Ok(Some(name));
            }
        }
        let in_trash = trash_name(image);
        Ok(leads_here(&in_trash)?.then_some(in_trash))
    }

    fn names_read(&self) -> std::sync::MutexGuard<'_, NamesRead> {
        self.names_read_lock().lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The namespace and name noted beside the head.
    fn noted_name(&self, image: ImageId) -> Option<(String, String)> {
        let bytes = self.read_record(&Key::NameHint(image)).ok()?;
        let (note, _) = decode_message::<NameRecord>(FrameKind::Name, &bytes).ok()?;
        (note.image_id == image.0).then_some((note.namespace, note.name))
    }

    /// Notes a name that an image was given, beside its head. The pool's lock is held. Where this fails,
    /// the next search for the name reads all names.
    pub(crate) fn note_name(&self, image: ImageId, namespace: &str, name: &str) {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let bytes =
            encode_message(FrameKind::Name, &NameRecord { image_id: image.0, namespace, name });
        if let Err(error) = self.records().put(&Key::NameHint(image), &bytes) {
            tracing::debug!(%image, %error, "the name could not be noted");
        }
    }

    /// Notes the name of an image that was renamed by an earlier version or by an interrupted command.
    /// Does nothing where the pool is locked, read-only, or of another store.
    fn mend_hint(&self, image: ImageId, namespace: &str, name: &str) {
        if self.read_only() || self.attached() {
            return;
        }
        let Ok(Some(_lock)) = self.try_lock(LockMode::Exclusive) else { return };
        if self.find_in(namespace, name).is_ok_and(|found| found == image) {
            self.note_name(image, namespace, name);
        }
    }
}
