//! The next data segment, which a worker creates before it is needed.
//!
//! The header and the name of a new segment are made durable before anything is written to it. That takes
//! about as long as a thousand requests. Until the segment is used, its number is still the next one of the
//! series. So, if this process ends, the next owner removes the segment, as it removes one that was created
//! in place.

use std::sync::{Arc, Mutex, PoisonError};

use marcot_store::{DiskFile, Running};

use crate::catalog::Identity;
use crate::error::Result;
use crate::segment::SegmentName;

type Created = Option<Result<Arc<dyn DiskFile>>>;

/// A segment that a worker creates.
pub(super) struct Prepared {
    name: SegmentName,
    epoch: u64,
    running: Box<dyn Running>,
    created: Arc<Mutex<Created>>,
}

impl Prepared {
    /// Has a worker create the segment.
    pub(super) fn start(image: &Identity, name: SegmentName, epoch: u64) -> Self {
        let created = Arc::new(Mutex::new(None));
        let (place, files) = (Arc::clone(&created), Arc::clone(image.pool.files()));
        let workers = Arc::clone(&files.world().workers);
        let running = workers.start(Box::new(move || {
            let outcome = files.create(name, epoch);
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        }));
        Self { name, epoch, running, created }
    }

    /// Waits until the worker has ended. A segment that it created is left to the next owner.
    pub(super) fn wait(self) -> Created {
        self.running.wait();
        self.created.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The segment, where it has this name and epoch. `None` where it has not, and where it could not be
    /// created: then the caller creates it, and learns why that fails.
    pub(super) fn take(
        self,
        image: &Identity,
        name: SegmentName,
        epoch: u64,
    ) -> Option<Arc<dyn DiskFile>> {
        let is_it = (self.name, self.epoch) == (name, epoch);
        match self.wait()? {
            Ok(file) => is_it.then_some(file),
            Err(error) => {
                tracing::debug!(image = %image.label, error = %error.sentence(), "no segment was prepared");
                None
            }
        }
    }

    /// Removes the segment, because the log ends before it.
    pub(super) fn remove(self, image: &Identity) {
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
