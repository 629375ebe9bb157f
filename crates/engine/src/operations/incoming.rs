//! Partial images: import and copy write into an image that users do not see before it is complete.
//!
//! Until then the image has a name made of its own number, which no user can give. Its maker has it open,
//! and so holds the image's lock. The maker takes this lock before it releases the pool's lock, under which
//! the partial name is written, and keeps it until the image has its final name. So a partial image whose
//! lock is free has lost its maker for good, and may be removed. Process numbers play no part in this. An
//! image whose name has this form, but with another number, is a user's image and stays.
//!
//! A partial image may note what it is made from. Then it is not removed as soon as its maker is gone, but only
//! after [`INTERRUPTED_KEPT_S`]: the same command, run again on the same host, goes on with it. Its maker writes
//! it from its start to its end. So it holds all data of the source up to the end of its own last data (I1:
//! after a crash, an image is a prefix of what was written to it).

use marcot_format::ImageId;
use marcot_format::record::{HeadRecord, IncomingRecord, MetaRecord};
use marcot_store::LockMode;

use crate::catalog::create::CreateOptions;
use crate::catalog::partial::{is_partial_name, partial_name};
use crate::catalog::{ImageName, Namespace, Pool, Store};
use crate::error::{ErrorKind, Result, fail};
use crate::image::Image;

/// How long a partial image is kept for the command that has begun it, in seconds since its last checkpoint.
pub const INTERRUPTED_KEPT_S: i64 = 7 * 24 * 3600;
/// Longest note of a source, in bytes.
const SOURCE_BYTES_MAX: usize = 4096;

/// Which partial images stay whose makers are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep<'a> {
    /// None.
    Nothing,
    /// Those that a command can go on with.
    Interrupted,
    /// The same, but not those that this host has begun under this final name.
    InterruptedExcept(&'a ImageName),
}

impl Pool {
    /// Creates an image whose final name will be `name`. It is hidden until
    /// [`Pool::publish_partial`], and the caller must keep it open until then.
    ///
    /// # Errors
    /// As [`Pool::create`] and [`Pool::open`].
    pub fn create_partial(
        &self,
        name: impl Into<ImageName>,
        options: &CreateOptions,
    ) -> Result<Image> {
        let name = name.into();
        self.check_new_image(name.name(), options)?;
        let _lock = self.lock(LockMode::Exclusive)?;
        let (id, head) = self.new_head(&name, options)?;
        self.publish_image(id, &head, &partial_name(id))?;
        self.open(id)
    }

    /// As [`Self::create_partial`], with a note of the source, which the image is written from, from its start to
    /// its end. If there is an image with this note already, which an earlier process of this host has begun under
    /// the same name and with the same options, it is opened instead. The flag says so.
    ///
    /// # Errors
    /// As [`Self::create_partial`]; `Invalid` where the note is too long.
    pub fn begin_partial(
        &self,
        name: impl Into<ImageName>,
        options: &CreateOptions,
        source: &str,
    ) -> Result<(Image, bool)> {
        let name = name.into();
        if source.len() > SOURCE_BYTES_MAX {
            return fail(ErrorKind::Invalid, "the note of the source is too long");
        }
        self.check_new_image(name.name(), options)?;
        let _lock = self.lock(LockMode::Exclusive)?;
        let (id, mut head) = self.new_head(&name, options)?;
        head.incoming =
            Some(IncomingRecord { source: source.to_owned(), host: self.host_number() });
        for partial in self.partial_images(name.namespace().in_records())? {
            let Ok(found) = self.read_head(partial) else { continue };
            // Another process of this host may have it open.
            if is_same(&found, &head)
                && let Ok(image) = self.open(partial)
            {
                return Ok((image, true));
            }
        }
        self.publish_image(id, &head, &partial_name(id))?;
        Ok((self.open(id)?, false))
    }

    /// The number of this host among those that use the pool; 0 where there is only one.
    fn host_number(&self) -> u64 {
        self.segments().shipping().map_or(0, |shipping| shipping.host().host)
    }

    /// The partial images of a namespace.
    fn partial_images(&self, namespace: &str) -> Result<Vec<ImageId>> {
        let names = self.image_names_in(namespace)?;
        // Only names of this form are looked up, because there may be many others.
        let partial = names.iter().filter(|name| is_partial_name(name));
        let found = partial.filter_map(|name| {
            let image = self.find_in(namespace, name).ok()?;
            (*name == partial_name(image)).then_some(image)
        });
        Ok(found.collect())
    }

    /// A text that tells the state of an image from all others that it has had or will have. `None` where another
    /// process has the image open, or another host may have.
    ///
    /// # Errors
    /// As [`Pool::open`].
    pub fn settled_state(&self, image: ImageId) -> Result<Option<String>> {
        if self.read_only() || self.segments().shipping().is_some() {
            return Ok(None);
        }
        let opened = match self.open(image) {
            Err(error) if error.kind() == ErrorKind::Owned => return Ok(None),
            opened => opened?,
        };
        // What is in the log only gets into a head, which another one would be written for the next time.
        opened.close()?;
        let head = self.read_head(image)?;
        Ok(Some(format!("{}/{image} {}.{}", self.id(), head.epoch, head.version)))
    }

    /// True where the maker of a partial image may still go on with it, though the image is not open.
    fn is_kept(&self, head: &HeadRecord, keep: Keep<'_>) -> bool {
        let Some(incoming) = &head.incoming else { return false };
        let begun_as = |name: &ImageName| {
            incoming.host == self.host_number()
                && (name.name(), name.namespace().in_records()) == (&*head.name, &*head.namespace)
        };
        match keep {
            Keep::Nothing => false,
            Keep::InterruptedExcept(name) if begun_as(name) => false,
            Keep::Interrupted | Keep::InterruptedExcept(_) => {
                self.now_s().saturating_sub(head.modified_s) < INTERRUPTED_KEPT_S
            }
        }
    }

    /// Gives a complete image its final name. The caller still has it open.
    ///
    /// # Errors
    /// As [`Pool::rename`]; `Exists` where the name was taken meanwhile.
    pub fn publish_partial(&self, image: ImageId, name: impl Into<ImageName>) -> Result<()> {
        let name = name.into();
        self.rename_in(name.namespace().in_records(), &partial_name(image), name.name())
    }

    /// True where the maker of this partial image is gone.
    fn is_abandoned(&self, namespace: &str, image: ImageId) -> Result<bool> {
        let _lock = self.lock(LockMode::Exclusive)?;
        // The image may have got its final name and been closed meanwhile.
        match self.find_in(namespace, &partial_name(image)) {
            Ok(found) if found == image => Ok(self.lock_image(image)?.is_some()),
            Ok(_) => Ok(false),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// True where a partial image was begun as this one would be.
fn is_same(found: &HeadRecord, wanted: &HeadRecord) -> bool {
    let layout = |head: &HeadRecord| {
        let size_bytes = head.root.as_ref().map_or(0, |root| root.size_bytes);
        (head.order, head.stripe_unit_bytes, head.stripe_count, size_bytes)
    };
    let texts =
        |head: &HeadRecord| [&head.name, &head.features, &head.data_pool].map(String::clone);
    let metadata = |head: &HeadRecord| {
        let mut metadata: Vec<MetaRecord> = head.metadata.clone();
        metadata.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        metadata
    };
    found.incoming == wanted.incoming
        && !found.removing
        && layout(found) == layout(wanted)
        && texts(found) == texts(wanted)
        && metadata(found) == metadata(wanted)
}

impl Store {
    /// Removes the partial images of a namespace whose makers are gone, except those that are kept.
    ///
    /// # Errors
    /// `ReadOnly`; those of [`Pool::image_names`] and [`Store::remove_named`], after all were tried.
    pub fn remove_abandoned(
        &self,
        pool: &Pool,
        namespace: &Namespace,
        keep: Keep<'_>,
    ) -> Result<()> {
        let namespace = namespace.in_records();
        pool.check_writable()?;
        let mut outcome = Ok(());
        for image in pool.partial_images(namespace)? {
            let kept = pool.read_head(image).is_ok_and(|head| pool.is_kept(&head, keep));
            let abandoned = if kept { Ok(false) } else { pool.is_abandoned(namespace, image) };
            let removed = abandoned.and_then(|abandoned| match abandoned {
                true => self.remove_partial_in(pool, namespace, image),
                false => Ok(()),
            });
            match removed {
                // Another process has removed it meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => outcome = outcome.and(removed),
            }
        }
        outcome
    }

    /// Removes a partial image that will not be completed, with its snapshots. Its maker has closed it.
    ///
    /// # Errors
    /// As [`Store::remove_named`]; `Busy` where the image has its final name by now.
    pub fn remove_partial(&self, pool: &Pool, namespace: &Namespace, image: ImageId) -> Result<()> {
        self.remove_partial_in(pool, namespace.in_records(), image)
    }

    fn remove_partial_in(&self, pool: &Pool, namespace: &str, image: ImageId) -> Result<()> {
        let name = partial_name(image);
        if !pool.read_head(image)?.snapshots.is_empty() {
            remove_snapshots(pool, namespace, image)?;
        }
        // Also the target of a migration whose preparation was interrupted.
        let check = |_: &HeadRecord, _: &str| Ok(());
        self.remove(pool, image, Some((namespace, &name)), &check, &mut |_, _| {})
    }
}

/// Removes the snapshots of a partial image.
fn remove_snapshots(pool: &Pool, namespace: &str, image: ImageId) -> Result<()> {
    let mut opened = pool.open(image)?;
    // From here on nobody can complete it: its maker would have it open.
    if pool.find_in(namespace, &partial_name(image))? != image {
        return fail(ErrorKind::Busy, "the image is complete");
    }
    let names: Vec<String> =
        pool.read_head(image)?.snapshots.into_iter().map(|snapshot| snapshot.name).collect();
    for name in names {
        opened.remove_snapshot(&name, true)?;
    }
    opened.close()
}
