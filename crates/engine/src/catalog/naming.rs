//! From an image's number to its name.
//!
//! `names/` leads from names to numbers, and only it counts. The way back must not read all of
//! `names/`, or every command would cost by the number of images. So there are two hints: the name
//! in the head, and where the image was renamed since, `images/NUMBER/name`.
//!
//! Invariants:
//! - A hint is never believed: the name that it gives must lead to the image. So it does no harm when
//!   it is old, torn, or missing; then all names are read, once, and the hint is written anew.
//! - A hint is written under the pool's lock, after the name that it gives is there.

use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;

use marcot_backend::Key;
use marcot_format::ImageId;
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::{HeadRecord, NameRecord};
use marcot_store::LockMode;

use super::partial::{is_partial_name, partial_name};
use super::pool::Pool;
use crate::error::{Error, ErrorKind, Result};

/// Names that were read because a hint was missing, by image; hints themselves.
pub(crate) type NamesRead = HashMap<ImageId, (String, String)>;

/// The images that some name leads to, read when first asked for: for commands that look at all
/// images of a pool.
#[derive(Default)]
pub(crate) struct NamedImages(Option<HashSet<ImageId>>);

/// True where a name could not be read that may be as it should be.
fn may_be_there(error: &Error) -> bool {
    error.kind() == ErrorKind::Io || error.kind().is_obstacle()
}

impl Pool {
    /// `pool/image` or `pool/namespace/image`.
    pub(crate) fn image_label(&self, head: &HeadRecord) -> String {
        // A partial image is called what it is going to be called.
        let name = self.name_of(head).filter(|name| !is_partial_name(name));
        let name = name.unwrap_or_else(|| head.name.clone());
        self.label(&head.namespace, &name)
    }

    fn label(&self, namespace: &str, name: &str) -> String {
        match namespace {
            "" => format!("{}/{name}", self.name()),
            namespace => format!("{}/{namespace}/{name}", self.name()),
        }
    }

    /// As [`Self::image_label`], for an image whose head cannot be read: by the names alone, else by
    /// its number.
    #[must_use]
    pub fn label_by_names(&self, image: ImageId) -> String {
        if let Some((namespace, name)) = self.noted_name(image)
            && self.find(&namespace, &name).is_ok_and(|found| found == image)
        {
            return self.label(&namespace, &name);
        }
        let mut namespaces = self.namespaces().unwrap_or_default();
        namespaces.insert(0, String::new());
        let named = namespaces.into_iter().find_map(|namespace| {
            let images = self.images(&namespace).ok()?;
            let (name, _) = images.into_iter().find(|(_, id)| *id == image)?;
            Some(self.label(&namespace, &name))
        });
        named.unwrap_or_else(|| format!("{image} of pool '{}'", self.name()))
    }

    /// The name of an image of that namespace; `None` where there is no such image, or no name leads
    /// to it.
    ///
    /// # Errors
    /// `Corrupt`, `NewerFormat` for its head; what the operating system says.
    pub fn name_of_image(&self, namespace: &str, image: ImageId) -> Result<Option<String>> {
        match self.read_head(image) {
            Ok(head) if head.namespace == namespace => self.find_name_of(&head),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The name of an image now, which may have changed since its head was written.
    pub(crate) fn name_of(&self, head: &HeadRecord) -> Option<String> {
        self.find_name_of(head).ok().flatten()
    }

    /// As [`Self::name_of`], for who must not take a name that cannot be read now for none.
    pub(crate) fn find_name_of(&self, head: &HeadRecord) -> Result<Option<String>> {
        let image = ImageId(head.image_id);
        match self.name_by_hints(head) {
            Ok(Some(name)) => return Ok(Some(name)),
            Err(error) if may_be_there(&error) => return Err(error),
            _ => {}
        }
        let images = match self.images(&head.namespace) {
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

    /// True where no name leads to an image.
    ///
    /// # Errors
    /// Where some name cannot be read, which might be its own.
    pub(crate) fn is_nameless(&self, head: &HeadRecord, all: &mut NamedImages) -> Result<bool> {
        if self.name_by_hints(head)?.is_some() {
            return Ok(false);
        }
        if all.0.is_none() {
            all.0 = Some(self.named_images()?);
        }
        Ok(all.0.as_ref().is_some_and(|named| !named.contains(&ImageId(head.image_id))))
    }

    fn named_images(&self) -> Result<HashSet<ImageId>> {
        let mut named = HashSet::new();
        for namespace in self.namespaces()?.iter().map(String::as_str).chain([""]) {
            named.extend(self.images(namespace)?.into_iter().map(|(_, image)| image));
        }
        Ok(named)
    }

    /// The image's name by its head, else by the note beside it, else by what was read before. `None`:
    /// only all names can tell.
    fn name_by_hints(&self, head: &HeadRecord) -> Result<Option<String>> {
        let image = ImageId(head.image_id);
        let leads_here = |name: &str| match self.find(&head.namespace, name) {
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
        Ok(None)
    }

    fn names_read(&self) -> std::sync::MutexGuard<'_, NamesRead> {
        self.names_read_lock().lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Namespace and name that are noted beside the head.
    fn noted_name(&self, image: ImageId) -> Option<(String, String)> {
        let bytes = self.read_record(&Key::NameHint(image)).ok()?;
        let (note, _) = decode_message::<NameRecord>(FrameKind::Name, &bytes).ok()?;
        (note.image_id == image.0).then_some((note.namespace, note.name))
    }

    /// Notes a name that an image has been given, beside its head. The pool's lock is held. What
    /// fails here costs whoever looks for the name a reading of all names.
    pub(crate) fn note_name(&self, image: ImageId, namespace: &str, name: &str) {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let bytes =
            encode_message(FrameKind::Name, &NameRecord { image_id: image.0, namespace, name });
        if let Err(error) = self.records().put(&Key::NameHint(image), &bytes) {
            tracing::debug!(%image, %error, "the name could not be noted");
        }
    }

    /// Notes the name of an image that an earlier version, or a command that was cut off, has renamed;
    /// unless somebody is at work, or the pool is not ours.
    fn mend_hint(&self, image: ImageId, namespace: &str, name: &str) {
        if self.read_only() || self.attached() {
            return;
        }
        let Ok(Some(_lock)) = self.try_lock(LockMode::Exclusive) else { return };
        if self.find(namespace, name).is_ok_and(|found| found == image) {
            self.note_name(image, namespace, name);
        }
    }
}
