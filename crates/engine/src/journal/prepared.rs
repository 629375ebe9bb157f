//! The next segments, which workers create before they are needed.
//!
//! The header and the name of a new segment are made durable before anything is written to it. That takes
//! about as long as a thousand requests. Until the segment is used, its number is still one of the next of the
//! series. So, if this process ends, the next owner removes the segment, as it removes one that was created
//! in place.
//!
//! Where there is a dead segment to be used again ([`super::spares`]), the new one is made of it.

use std::sync::Arc;

use marcot_format::segment::SegmentKind;
use marcot_store::{DiskFile, Task};

use crate::catalog::Identity;
use crate::error::Result;
use crate::segment::{Files, SegmentName, Series};

/// Creates a segment, out of the dead one if there is one and that works. Else the dead one is removed.
///
/// # Errors
/// Those of [`Files::create`].
fn create(
    files: &Files,
    name: SegmentName,
    epoch: u64,
    dead: Option<SegmentName>,
    label: &str,
) -> Result<Arc<dyn DiskFile>> {
    let Some(dead) = dead else { return files.create(name, epoch) };
    files.reuse(dead, name, epoch).or_else(|error| {
        tracing::debug!(image = %label, segment = %dead, error = %error.sentence(), "not used again");
        // Where this fails, a later reclaim removes it.
        let _ = files.remove(dead);
        files.create(name, epoch)
    })
}

/// The next segment of a series: the prepared one, if there is one and it has the right name. Else it is created,
/// out of the dead segment if there is one.
///
/// # Errors
/// Those of [`Series::create`].
pub(crate) fn take_or_create(
    image: &Identity,
    series: &mut Series,
    kind: SegmentKind,
    epoch: u64,
    prepared: Option<Prepared>,
    dead: Option<SegmentName>,
) -> Result<(SegmentName, Arc<dyn DiskFile>)> {
    let name = series.next_name(kind);
    series.check(name)?;
    let file = match prepared.and_then(|prepared| prepared.take(image, name, epoch)) {
        Some(file) => file,
        None => create(image.pool.files(), name, epoch, dead, &image.label)?,
    };
    series.used(name);
    Ok((name, file))
}

type Created = Result<Arc<dyn DiskFile>>;

/// A segment that a worker creates.
pub(crate) struct Prepared {
    name: SegmentName,
    epoch: u64,
    /// It is made of a dead segment, and so takes as much room.
    of_dead: bool,
    created: Task<Created>,
}

impl Prepared {
    /// Has a worker create the segment, out of the dead one if that works.
    pub(crate) fn start(
        image: &Identity,
        name: SegmentName,
        epoch: u64,
        dead: Option<SegmentName>,
    ) -> Self {
        let (files, label) = (Arc::clone(image.pool.files()), image.label.clone());
        let workers = Arc::clone(&files.world().workers);
        let create = move || create(&files, name, epoch, dead, &label);
        Self { name, epoch, of_dead: dead.is_some(), created: Task::start(&*workers, create) }
    }

    /// True where it is made of a dead segment.
    pub(crate) fn is_of_dead(&self) -> bool {
        self.of_dead
    }

    /// Waits until the worker has ended. A segment that it created is left to the next owner.
    pub(crate) fn wait(self) -> Option<Created> {
        self.created.wait()
    }

    /// The segment, where it has this name and epoch. `None` where it has not, and where it could not be
    /// created: then the caller creates it, and learns why that fails.
    fn take(self, image: &Identity, name: SegmentName, epoch: u64) -> Option<Arc<dyn DiskFile>> {
        let is_it = (self.name, self.epoch) == (name, epoch);
        match self.wait()? {
            Ok(file) => is_it.then_some(file),
            Err(error) => {
                tracing::debug!(image = %image.label, error = %error.sentence(), "no segment was prepared");
                None
            }
        }
    }

    /// Removes the segment, because the image is not written any more for a while.
    pub(crate) fn remove(self, image: &Identity) {
        let (name, epoch) = (self.name, self.epoch);
        let created = self.wait();
        // A later owner may have created a segment of the same name.
        let ours = image.pool.check_epoch(image.id, epoch).is_ok();
        if ours
            && matches!(created, Some(Ok(_)))
            && let Err(error) = image.pool.files().remove(name)
        {
            tracing::debug!(image = %image.label, segment = %name, error = %error.sentence(), "left to the next owner");
        }
    }
}
