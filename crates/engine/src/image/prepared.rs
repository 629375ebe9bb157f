//! The next data segment, created beside the image's thread before it is needed.
//!
//! A new segment's header and name are made durable before anything goes there, which takes as long
//! as some thousand requests. Until it is used, its number is the next one of the series, as that of
//! a segment that a crashed owner left behind: the next owner removes it.

use marcot_format::SEGMENT_SLOTS;
use std::sync::{Arc, Mutex, PoisonError};

use marcot_format::segment::SegmentKind;
use marcot_store::{DiskFile, Running};

use super::Image;
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
    /// Waits for the outcome; `None` where the worker came to no end.
    fn wait(self) -> (SegmentName, u64, Created) {
        self.running.wait();
        let created = self.created.lock().unwrap_or_else(PoisonError::into_inner).take();
        (self.name, self.epoch, created)
    }
}

impl Image {
    /// Has the next data segment created, once the open one is half full.
    pub(super) fn prepare_segment(&mut self) {
        let half = self.log.as_ref().is_some_and(|log| log.slot >= SEGMENT_SLOTS / 2);
        if !half || self.prepared.is_some() {
            return;
        }
        let (pool, author, sequence) = (self.pool.id(), self.id, self.next.data);
        let name = SegmentName { pool, copies: 0, author, kind: SegmentKind::Data, sequence };
        let epoch = self.head.epoch;
        let created = Arc::new(Mutex::new(None));
        let (place, files) = (Arc::clone(&created), Arc::clone(self.pool.files()));
        let workers = Arc::clone(&files.world().workers);
        let running = workers.start(Box::new(move || {
            let outcome = files.create(name, epoch);
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        }));
        self.prepared = Some(Prepared { name, epoch, running, created });
    }

    /// The prepared segment; `None` where there is none, and where creating it in place has to tell
    /// why.
    pub(super) fn take_prepared(&mut self, epoch: u64) -> Option<(SegmentName, Arc<dyn DiskFile>)> {
        let (name, made_in, created) = self.prepared.take()?.wait();
        let file = match created? {
            Ok(file) if (name.sequence, made_in) == (self.next.data, epoch) => file,
            Ok(_) => return None,
            Err(error) => {
                tracing::debug!(image = %self.label, %error, "no segment was prepared");
                return None;
            }
        };
        self.next.data += 1;
        Some((name, file))
    }

    /// Removes the prepared segment, when the log is left.
    pub(super) fn remove_prepared(&mut self) {
        let Some(prepared) = self.prepared.take() else { return };
        let (name, _, created) = prepared.wait();
        // A later owner may have created a segment of the same name.
        let ours = self.pool.check_epoch(self.id, self.head.epoch).is_ok();
        if ours
            && matches!(created, Some(Ok(_)))
            && let Err(error) = self.pool.files().remove(name)
        {
            tracing::debug!(image = %self.label, segment = %name, %error, "left to the next owner");
        }
    }

    /// Waits until no worker creates a segment any more; one that was created is left to the next
    /// owner.
    pub(super) fn forget_prepared(&mut self) {
        if let Some(prepared) = self.prepared.take() {
            let _ = prepared.wait();
        }
    }
}
