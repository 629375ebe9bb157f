//! The trash of a pool: images that were removed from sight, and can get a name again.

use marcot::{Error, ErrorKind, ImageId, Namespace, PROTECTED_FOR_GOOD_S, Result, TrashedImage};

use crate::image::Image;
use crate::operation::Operation;
use crate::pool::Pool;

/// What emptying the trash has removed, and what it could not.
#[derive(Debug, Clone, Default)]
pub struct Emptied {
    /// How many images were removed.
    pub removed: usize,
    /// Why the first image stays that was to be removed; `None` where all were.
    pub left: Option<Error>,
}

/// Which images to remove from the trash.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stale {
    /// Those whose protection ended at this time or before, in seconds since 1970.
    ExpiredBy(i64),
    /// As many as are needed to bring the usage of the medium down to this share, from 0 to 1. Those whose
    /// protection ends first come first. If that is any, those whose protection has ended by this time are
    /// removed too.
    UntilUsage {
        /// The share.
        share: f64,
        /// The time, in seconds since 1970.
        expired_by_s: i64,
    },
}

impl Image {
    /// Moves the image to the trash, if it still has the name by which it was looked up, also while it is in
    /// use. It keeps its number, its snapshots and its children. `protected_until_s`, in seconds since 1970,
    /// keeps [`Pool::empty_trash`] from removing it before; `None`: it is not protected.
    ///
    /// # Errors
    /// `NotFound`, also if it was renamed; `Busy` if another image has its name; `ReadOnly`.
    pub fn move_to_trash(&self, protected_until_s: Option<i64>) -> Result<()> {
        self.operate(Operation::MoveToTrash, || {
            self.engine_pool().move_to_trash(self.id(), self.name(), protected_until_s)
        })
    }
}

impl Pool {
    /// The images of a namespace that are in the trash, sorted by the names that they had.
    ///
    /// # Errors
    /// `NotFound` for the namespace; errors of the operating system.
    pub fn trash(&self, namespace: &Namespace) -> Result<Vec<TrashedImage>> {
        self.operate(Operation::ListTrash, || self.engine().trash(namespace))
    }

    /// An image of a namespace that is in the trash. The handle is for all that can be done to an image, except
    /// to rename it.
    ///
    /// # Errors
    /// `NotFound`, also for an image that is not in the trash.
    pub fn trashed_image(
        &self,
        namespace: &Namespace,
        id: ImageId,
    ) -> Result<(Image, TrashedImage)> {
        self.operate(Operation::FindImage, || {
            let trashed = self.engine().trashed_image(namespace, id)?;
            Ok((self.known_image(trashed.name_now(), id), trashed))
        })
    }

    /// Gives an image in the trash a name again: `name`, or the one that it had.
    ///
    /// # Errors
    /// `NotFound` where it is not in the trash; `Exists`; `Invalid`, `NameTooLong` for the name; `ReadOnly`.
    pub fn restore(&self, namespace: &Namespace, id: ImageId, name: Option<&str>) -> Result<Image> {
        self.operate(Operation::RestoreImage, || {
            let name = self.engine().restore(namespace, id, name)?;
            Ok(self.known_image(marcot::ImageName::new(name).in_namespace(namespace), id))
        })
    }

    /// Removes an image from the trash for good. `force` also removes one whose protection has not ended.
    /// `progress` gets (done, total).
    ///
    /// # Errors
    /// `NotFound`, also for an image that is not in the trash; `Protected`; those of [`Image::remove`].
    pub fn remove_from_trash(
        &self,
        namespace: &Namespace,
        id: ImageId,
        force: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let (image, trashed) = self.trashed_image(namespace, id)?;
        if !force && trashed.protected_until_s > self.client().now_s() {
            let message = format!("image '{}' is protected in the trash", trashed.name);
            return Err(Error::new(ErrorKind::Protected, message));
        }
        image.remove(progress)
    }

    /// Removes stale images of a namespace from the trash. An image that is in use, or has snapshots that its
    /// children need, stays; it is tried again as long as others can be removed, because they may be its
    /// children. `progress` gets how many images were removed, and how many are to be.
    ///
    /// # Errors
    /// Those of [`Self::trash`], and of [`Image::remove`] where the reason is neither use nor snapshots.
    pub fn empty_trash(
        &self,
        namespace: &Namespace,
        which: Stale,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Emptied> {
        let mut left = self.stale(namespace, which)?;
        let total = left.len() as u64;
        let mut emptied = Emptied::default();
        loop {
            let before = left.len();
            emptied.left = None;
            let mut stay = Vec::new();
            for image in left {
                match image.remove(&mut |_, _| {}) {
                    Ok(()) => {
                        emptied.removed += 1;
                        progress(emptied.removed as u64, total);
                    }
                    // Somebody else has restored or removed it.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) if stays(error.kind()) => {
                        emptied.left.get_or_insert(error);
                        stay.push(image);
                    }
                    Err(error) => return Err(error),
                }
            }
            if stay.is_empty() || stay.len() == before {
                return Ok(emptied);
            }
            left = stay;
        }
    }

    /// The images that [`Self::empty_trash`] is to remove.
    fn stale(&self, namespace: &Namespace, which: Stale) -> Result<Vec<Image>> {
        let mut trash = self.trash(namespace)?;
        // Only the end of its migration removes the source.
        trash.retain(|image| !image.migrating);
        let chosen: Vec<TrashedImage> = match which {
            Stale::ExpiredBy(time_s) => {
                trash.retain(|image| image.protected_until_s <= time_s);
                trash
            }
            Stale::UntilUsage { share, expired_by_s } => {
                trash.sort_by_key(|image| image.protected_until_s);
                let needed = self.too_much(trash, share)?;
                let chosen = |image: &TrashedImage| needed.contains(&image.id);
                let expired = |image: &TrashedImage| image.protected_until_s <= expired_by_s;
                let all = if needed.is_empty() { Vec::new() } else { self.trash(namespace)? };
                all.into_iter().filter(|image| chosen(image) || expired(image)).collect()
            }
        };
        let handle = |image: TrashedImage| self.known_image(image.name_now(), image.id);
        Ok(chosen.into_iter().map(handle).collect())
    }

    /// The first of these images that together take the space by which the usage of the medium is beyond a
    /// share of it.
    fn too_much(&self, trash: Vec<TrashedImage>, share: f64) -> Result<Vec<ImageId>> {
        let stats = self.stats()?;
        let (used, free) = (stats.allocated_bytes as f64, stats.free_bytes as f64);
        let too_much = used - share * (used + free);
        let mut freed = 0.0;
        let mut needed = Vec::new();
        for image in trash {
            if too_much <= 0.0 || freed >= too_much {
                break;
            }
            let usage = self.known_image(image.name_now(), image.id).usage();
            freed += usage.map_or(0, |rows| rows.iter().map(|row| row.used_bytes).sum()) as f64;
            needed.push(image.id);
        }
        Ok(needed)
    }
}

/// True for a reason for which an image stays in the trash while others are removed.
fn stays(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Owned | ErrorKind::Busy | ErrorKind::HasSnapshots | ErrorKind::InGroup
    )
}

/// The end of a protection that begins at `now_s` and was asked for until `wanted_s`, both in seconds since
/// 1970. RBD takes a time that has passed already for one that never comes, and so do we: what was to be
/// protected is not removed by mistake.
#[must_use]
pub fn protection_end(now_s: i64, wanted_s: i64) -> i64 {
    if wanted_s < now_s { PROTECTED_FOR_GOOD_S } else { wanted_s }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protection_until_a_time_that_has_passed_does_not_end() {
        assert_eq!(protection_end(100, 100), 100);
        assert_eq!(protection_end(100, 7000), 7000);
        assert_eq!(protection_end(100, 99), PROTECTED_FOR_GOOD_S);
    }
}
