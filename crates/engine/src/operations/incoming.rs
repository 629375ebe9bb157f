//! Images on their way in: import and copy write into an image that users do not see before it is
//! whole.
//!
//! Until then it has a name made of its own number, which no user can give to an image. Who makes it
//! has it open, and so holds its lock, from before the pool's lock was given back after the name was
//! written, until after the image has got its own name. So a partial image whose lock is free has
//! lost its maker for good, whatever that one's process number was and wherever it ran, and may be
//! removed. An image whose name only looks like one of those is somebody's, and stays.

use marcot_format::ImageId;
use marcot_store::LockMode;

use crate::catalog::create::CreateOptions;
use crate::catalog::partial::{is_partial_name, partial_name};
use crate::catalog::{Pool, Store};
use crate::error::{ErrorKind, Result};
use crate::image::Image;

impl Pool {
    /// Creates an image that shall be called `name` and is hidden until
    /// [`Pool::publish_partial`]. The caller has it open until then.
    ///
    /// # Errors
    /// As [`Pool::create`] and [`Pool::open`].
    pub fn create_partial(
        &self,
        namespace: &str,
        name: &str,
        options: &CreateOptions,
    ) -> Result<Image> {
        self.check_new_image(name, options)?;
        let _lock = self.lock(LockMode::Exclusive)?;
        let (id, head) = self.new_head(namespace, name, options)?;
        self.publish_image(id, &head, &partial_name(id))?;
        self.open(id)
    }

    /// Gives an image that is whole its name. The caller still has it open.
    ///
    /// # Errors
    /// As [`Pool::rename`]; `Exists` where the name was taken meanwhile.
    pub fn publish_partial(&self, namespace: &str, image: ImageId, name: &str) -> Result<()> {
        self.rename(namespace, &partial_name(image), name)
    }

    /// True where nobody will make this image whole any more.
    fn is_abandoned(&self, namespace: &str, image: ImageId) -> Result<bool> {
        let _lock = self.lock(LockMode::Exclusive)?;
        // By now it may have got its name, and been closed.
        match self.find(namespace, &partial_name(image)) {
            Ok(found) if found == image => Ok(self.lock_image(image)?.is_some()),
            Ok(_) => Ok(false),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Store {
    /// Removes the partial images of a namespace whose makers are no more.
    ///
    /// # Errors
    /// `ReadOnly`; those of [`Pool::image_names`] and [`Store::remove_named`], after all were tried.
    pub fn remove_abandoned(&self, pool: &Pool, namespace: &str) -> Result<()> {
        pool.check_writable()?;
        let mut outcome = Ok(());
        // Only names of that form are read: there may be many others.
        let names = pool.image_names(namespace)?;
        for name in names.iter().filter(|name| is_partial_name(name)) {
            let removed = pool.find(namespace, name).and_then(|image| {
                if *name != partial_name(image) || !pool.is_abandoned(namespace, image)? {
                    return Ok(());
                }
                self.remove_named(pool, namespace, name, &mut |_, _| {})
            });
            match removed {
                // Somebody else was faster.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => outcome = outcome.and(removed),
            }
        }
        outcome
    }
}
