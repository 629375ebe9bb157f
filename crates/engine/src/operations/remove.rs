//! Removing images.

use marcot_backend::{Key, SegmentSet, Stamp};
use marcot_format::record::HeadRecord;
use marcot_format::{ImageId, SnapId};
use marcot_store::{Lock, LockMode};

use crate::catalog::ImageName;
use crate::catalog::advisory::check_unlocked;
use crate::catalog::children::{CHILDREN_LOOKED_AT_MAX, Formats, named as some_of};
use crate::catalog::create::first_head;
use crate::catalog::migration;
use crate::catalog::pool::Pool;
use crate::catalog::store::Store;
use crate::error::{Error, ErrorKind, IoContext, Result, fail};
use crate::image::{check_not_owned_elsewhere, forget_child};

/// How often other hosts may rename an image while it is removed. Nobody does that for longer.
const RENAMES_MAX: u32 = 16;

/// What Linux returns for a sector that cannot be read, or for data whose checksum the file system finds
/// wrong: EIO, ENODATA, EBADMSG, EUCLEAN.
const MEDIUM_ERRORS: [i32; 4] = [5, 61, 74, 117];

impl Store {
    /// Removes an image, and frees the segments that only it uses. Of its shared segments, those that no
    /// other image names are freed too, if few images may name them; otherwise `gc` frees them.
    ///
    /// An interrupted removal is finished by running it again, or by `gc`.
    ///
    /// # Errors
    /// `HasSnapshots`; `Owned` where it is in use; `NotFound`; `ReadOnly`.
    pub fn remove_image(
        &self,
        pool: &Pool,
        image: ImageId,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        self.remove(pool, image, None, &refuse_migrating, progress)
    }

    /// As [`Self::remove_image`], for the image with this name. If the image is renamed meanwhile, it
    /// stays.
    ///
    /// # Errors
    /// As [`Self::remove_image`].
    pub fn remove_named(
        &self,
        pool: &Pool,
        name: impl Into<ImageName>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let name = name.into();
        let image = pool.find(&name)?;
        self.remove_if_named(pool, image, &name, progress)
    }

    /// As [`Self::remove_image`], if the image still has this name. For callers that have looked up the name
    /// before.
    ///
    /// # Errors
    /// As [`Self::remove_image`]; `Busy` where another image has the name by now.
    pub fn remove_if_named(
        &self,
        pool: &Pool,
        image: ImageId,
        name: &ImageName,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let named = (name.namespace().in_records(), name.name());
        self.remove(pool, image, Some(named), &refuse_migrating, progress)
    }

    /// As [`Self::remove_named`], but an image whose head is damaged is given up, with its data, its
    /// snapshots, and everything else that only its head named.
    ///
    /// Data that other images need stays, although the damaged head cannot say which that is:
    /// 1. If the image has a child, in any pool, nothing is done. A child in another pool needs this
    ///    image's segments. A child in this pool may need segments of this image's parent in a third
    ///    pool. No new child can appear while the head is damaged, because a clone reads the head again
    ///    after its record is durable.
    /// 2. An empty head that says *removing* replaces the damaged head. This is the commit. An
    ///    interrupted removal is finished by `rm` or `gc` like any other.
    /// 3. No segment counts as private. `gc` removes those that no root of the pool names, as for every
    ///    author that is gone.
    /// 4. The image's records as a child are removed after its head, which needed the parent.
    ///
    /// # Errors
    /// As [`Self::remove_image`]; `HasChildren`; `NewerFormat` for a head that is not damaged, but
    /// written by a newer version.
    pub fn remove_damaged(
        &self,
        pool: &Pool,
        name: impl Into<ImageName>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        pool.check_writable()?;
        let name = name.into();
        let image = pool.find(&name)?;
        self.remove_damaged_if_named(pool, image, &name, progress)
    }

    /// As [`Self::remove_damaged`], if the image still has this name. For callers that have looked up the name
    /// before.
    ///
    /// # Errors
    /// As [`Self::remove_damaged`]; `Busy` where another image has the name by now.
    pub fn remove_damaged_if_named(
        &self,
        pool: &Pool,
        image: ImageId,
        named: &ImageName,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        pool.check_writable()?;
        if !is_damaged(pool, image)? {
            return self.remove_if_named(pool, image, named, progress);
        }
        let (namespace, name) = (named.namespace().in_records(), named.name());
        let label = format!("{}/{name}", pool.name());
        let lock = lock_for_removal(pool, image, &label)?;
        if !is_damaged(pool, image)? {
            // Its owner has written a good head meanwhile.
            drop(lock);
            return self.remove_if_named(pool, image, named, progress);
        }
        let children = pool.some_children(image, None, Formats::All, CHILDREN_LOOKED_AT_MAX)?;
        if !children.is_empty() {
            let message = format!(
                "{label} has children, which may need what it names; flatten or remove them first: {}",
                some_of(&children)
            );
            return fail(ErrorKind::HasChildren, message);
        }
        let parents = pool.parents_by_records(image)?;
        {
            let _catalogue = pool.lock(LockMode::Exclusive)?;
            check_still_named(pool, image, (namespace, name))?;
            pool.check_in_no_group(image, &label)?;
            let mut empty = first_head(image, namespace, name, pool.now_s());
            empty.removing = true;
            empty.parent = parents.first().cloned();
            pool.with_reserve(|| pool.put_head(image, &empty))?;
            for parent in &parents {
                pool.keep_heirs(
                    image,
                    &HeadRecord { parent: Some(parent.clone()), ..empty.clone() },
                )?;
            }
            pool.keep_heirs(image, &empty)?;
            pool.unlink_marked(image, &empty)?;
        }
        drop(lock);
        for parent in &parents {
            forget_child(pool, parent, SnapId(parent.snap_id), image)?;
        }
        match self.gc(pool, progress) {
            // The image is gone. GC may fail because another head is damaged; then the space waits.
            Err(error) => {
                tracing::warn!(error = %error.sentence(), "the space of a removed image is left for gc")
            }
            Ok(report) => tracing::info!(report.freed_bytes, "freed"),
        }
        Ok(())
    }

    /// As [`Self::remove_if_named`]. `check` gets the head and how messages name the image.
    pub(super) fn remove(
        &self,
        pool: &Pool,
        image: ImageId,
        named: Option<(&str, &str)>,
        check: &dyn Fn(&HeadRecord, &str) -> Result<()>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        pool.check_writable()?;
        let head = pool.read_head(image)?;
        let label = pool.image_label(&head);
        check(&head, &label)?;
        // Snapshots are checked first, as RBD does: the user has to remove them first.
        check_no_snapshots(&label, &head)?;
        let lock = lock_for_removal(pool, image, &label)?;
        let head = pool.read_head(image)?;
        check(&head, &label)?;
        check_not_owned_elsewhere(pool, &head)?;
        check_no_snapshots(&label, &head)?;
        check_unlocked(&head, &label)?;
        let own = pool.own_copies(image, &head)?;
        {
            let _catalogue = pool.lock(LockMode::Exclusive)?;
            if let Some(named) = named {
                check_still_named(pool, image, named)?;
            }
            pool.check_in_no_group(image, &label)?;
            pool.unlink_image(image, &head)?;
        }
        drop(lock);
        if let Some(parent) = &head.parent {
            forget_child(pool, parent, SnapId(parent.snap_id), image)?;
        }
        self.free_removed(pool, image, &head, own, progress)
    }

    /// Frees the segments of a removed image that nobody names any more. `own` are the sets that it made.
    pub(super) fn free_removed(
        &self,
        pool: &Pool,
        image: ImageId,
        head: &HeadRecord,
        mut own: Vec<SegmentSet>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let left = pool.remove_private_segments(image, head, progress)?;
        // What other hosts clone, flatten and remove meanwhile, only a collection takes into account.
        if pool.attached() || pool.segments().shipping().is_some() {
            return Ok(());
        }
        if left > 0 || !own.is_empty() {
            own.push(SegmentSet { author: image, copies: 0 });
        }
        let freed = match head.leaves_marks || own.is_empty() {
            true => pool.free_estates(image, &own),
            // An earlier version made the image without marks. Any image of the pool may name what it
            // shared.
            false => self.gc(pool, &mut |_, _| {}).map(drop),
        };
        match freed {
            Err(error) if error.kind() != ErrorKind::Busy => Err(error),
            _ => Ok(()),
        }
    }
}

/// Takes the image's lock for a removal. Fails where somebody has the image open or reads it.
pub(super) fn lock_for_removal(pool: &Pool, image: ImageId, label: &str) -> Result<Box<dyn Lock>> {
    let Some(lock) = pool.lock_image(image)? else {
        return fail(ErrorKind::Owned, format!("{label} is in use"));
    };
    if pool.being_read(image)? {
        return fail(ErrorKind::Busy, format!("{label} is being read"));
    }
    Ok(lock)
}

/// Fails where another image has the name (namespace and name) meanwhile. The pool's lock is held.
fn check_still_named(pool: &Pool, image: ImageId, (namespace, name): (&str, &str)) -> Result<()> {
    if pool.find_in(namespace, name)? == image {
        return Ok(());
    }
    fail(ErrorKind::Busy, format!("the name '{name}' was given to another image meanwhile"))
}

/// Fails for the source and for the target of a migration, unless their removal has begun, which is finished.
fn refuse_migrating(head: &HeadRecord, label: &str) -> Result<()> {
    if head.removing { Ok(()) } else { migration::refuse_migrating(head, label) }
}

/// True where the head exists, but its bytes are wrong or the medium cannot read them.
fn is_damaged(pool: &Pool, image: ImageId) -> Result<bool> {
    match pool.read_head(image) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == ErrorKind::Corrupt || is_medium_error(&error) => Ok(true),
        // Other errors may be over soon, such as a lack of descriptors or memory.
        Err(error) => Err(error),
    }
}

fn is_medium_error(error: &Error) -> bool {
    let below = std::error::Error::source(error).and_then(|s| s.downcast_ref::<std::io::Error>());
    below.and_then(std::io::Error::raw_os_error).is_some_and(|errno| MEDIUM_ERRORS.contains(&errno))
}

fn check_no_snapshots(label: &str, head: &HeadRecord) -> Result<()> {
    if head.snapshots.iter().any(|s| !s.trashed) {
        return fail(ErrorKind::HasSnapshots, format!("{label} has snapshots"));
    }
    if !head.snapshots.is_empty() {
        let message = format!("{label} has removed snapshots that clones still need");
        return fail(ErrorKind::HasSnapshots, message);
    }
    Ok(())
}

impl Pool {
    /// Removes an image from the catalogue. The locks of image and pool are held.
    ///
    /// 1. The head is marked as being removed.
    /// 2. Where another host has added the image to a group meanwhile, the mark is taken back, and the image stays.
    /// 3. The log ends, where other hosts may be owners.
    /// 4. The name is removed.
    /// 5. The head is removed.
    ///
    /// # Errors
    /// `InGroup`; those of the back end.
    pub(crate) fn unlink_image(&self, image: ImageId, head: &HeadRecord) -> Result<()> {
        self.keep_heirs(image, head)?;
        let mut marked = head.clone();
        if !head.removing {
            marked.removing = true;
            marked.version += 1;
            match self.with_reserve(|| self.swap_head(image, Stamp::of(head), &marked)) {
                // Removing must work on a full disk, so the mark may be missing. If the removal is
                // then interrupted between the next two steps, the image has no name, which `check`
                // reports.
                Err(error) if error.kind() == ErrorKind::NoSpace => {}
                written => written.map_err(|error| self.not_found_if_gone(image, error))?,
            }
        }
        if self.segments().shipping().is_some()
            && let Err(error) = self.check_in_no_group(image, &self.image_label(head))
        {
            let mut kept = marked.clone();
            kept.removing = false;
            kept.version += 1;
            self.swap_head(image, Stamp::of(&marked), &kept)?;
            return Err(error);
        }
        self.unlink_marked(image, head)
    }

    /// As [`Self::unlink_image`], for an image whose head is marked.
    fn unlink_marked(&self, image: ImageId, head: &HeadRecord) -> Result<()> {
        let context = || format!("cannot remove image '{}'", head.name);
        if let Some(shipping) = self.segments().shipping() {
            // An owner that has not closed the image may not know that it was replaced. A damaged head does not
            // name its owner.
            let owner = head.owner.as_ref();
            if owner.is_none_or(|owner| !owner.closed) {
                let term = owner.map_or(u64::MAX, |owner| owner.term + 1);
                shipping.end_log(image, head.log_first, term).at(context)?;
            }
        }
        // Another host may rename the image meanwhile. A name must not stay that leads to nothing.
        for _ in 0..RENAMES_MAX {
            let Some(name) = self.find_name_of(head)? else { break };
            let key = Key::Name { namespace: head.namespace.clone(), name };
            if self.remove_name_of(image, &key).at(context)? {
                break;
            }
        }
        // Also where the name is gone already: the process that removed it may have been killed before
        // that was durable. A name must not come back without its image.
        let name = Key::Name { namespace: head.namespace.clone(), name: head.name.clone() };
        match self.records().settle(&name) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            synced => synced.at(context)?,
        }
        self.remove_head(image);
        match self.read_head(image) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            _ => {
                let message = format!("cannot remove the head of image {image}");
                return fail(ErrorKind::Io, message);
            }
        }
        if let Some(shipping) = self.segments().shipping() {
            shipping.forget_logs(image);
        }
        Ok(())
    }

    /// Removes the private segments of a removed image, which no clone can name. Returns how many segments
    /// are left.
    fn remove_private_segments(
        &self,
        image: ImageId,
        head: &HeadRecord,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<usize> {
        let shared = head.shared_below.unwrap_or_default();
        let set = SegmentSet { author: image, copies: 0 };
        let names = self.files().list(self.id(), set)?;
        let mut left = 0;
        for (i, name) in names.iter().enumerate() {
            if name.sequence >= shared.of(name.kind) {
                self.files().remove(*name)?;
            } else {
                left += 1;
            }
            progress(i as u64 + 1, names.len() as u64);
        }
        // This fails while segments are left.
        let _ = self.segments().remove_set(set);
        Ok(left)
    }
}
