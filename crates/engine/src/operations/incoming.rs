//! Partial images: import and copy write into an image that users do not see before it is complete.
//!
//! Until then the image has a name made of its own number, which no user can give. Its maker has it open,
//! and so holds the image's lock. The maker takes this lock before it releases the pool's lock, under which
//! the partial name is written, and keeps it until the image has its final name. So a partial image whose
//! lock is free has lost its maker for good, and may be removed. Process numbers play no part in this. An
//! image whose name has this form, but with another number, is a user's image and stays.

use marcot_format::ImageId;
use marcot_store::LockMode;

use crate::catalog::create::CreateOptions;
use crate::catalog::partial::{is_partial_name, partial_name};
use crate::catalog::{ImageName, Namespace, Pool, Store};
use crate::error::{ErrorKind, Result, fail};
use crate::image::Image;

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

impl Store {
    /// Removes the partial images of a namespace whose makers are gone.
    ///
    /// # Errors
    /// `ReadOnly`; those of [`Pool::image_names`] and [`Store::remove_named`], after all were tried.
    pub fn remove_abandoned(&self, pool: &Pool, namespace: &Namespace) -> Result<()> {
        let namespace = namespace.in_records();
        pool.check_writable()?;
        let mut outcome = Ok(());
        // Only names of this form are looked up, because there may be many others.
        let names = pool.image_names_in(namespace)?;
        for name in names.iter().filter(|name| is_partial_name(name)) {
            let removed = pool.find_in(namespace, name).and_then(|image| {
                if *name != partial_name(image) || !pool.is_abandoned(namespace, image)? {
                    return Ok(());
                }
                self.remove_partial_in(pool, namespace, image)
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
        self.remove(pool, image, Some((namespace, &name)), &mut |_, _| {})
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
