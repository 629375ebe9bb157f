//! The checkpoint job: what a checkpoint writes, syncs and publishes, on any thread.
//!
//! The job touches nothing of the image itself, so that the image can go on meanwhile. It syncs the log
//! through descriptors of its own: the operating system reports a failed write-back once to each descriptor,
//! and neither the checkpoint nor a flush of the image may miss it.

use std::sync::Arc;

use marcot_backend::Stamp;
use marcot_format::record::HeadRecord;
use marcot_format::segment::SegmentKind;
use marcot_store::{DiskFile, Task, Workers};

use super::pages::Pages;
use crate::catalog::Identity;
use crate::error::{Error, ErrorKind};
use crate::fault::{self, Fault};
use crate::journal::{CoveredLog, LogLost, SparesWanted};
use crate::segment::{SegmentName, WrittenPages};

/// What a checkpoint has to write.
pub(super) struct CheckpointWork {
    pub image: Arc<Identity>,
    /// The head that is to be replaced.
    pub before: Stamp,
    /// Segments of the log that are not known to be durable.
    pub log: Vec<Arc<dyn DiskFile>>,
    /// See [`LogLost`].
    pub log_lost: LogLost,
    pub pages: WrittenPages,
    pub head: HeadRecord,
}

/// How a checkpoint ended.
pub(super) enum CheckpointOutcome {
    /// This head is durable, as are the pages that it names.
    Done(Box<HeadRecord>, WrittenPages),
    /// The head before is the durable one, unless the error says `Poisoned`.
    Failed {
        error: Error,
        /// Pages that have to be written before another head can be published.
        pages: Option<WrittenPages>,
    },
}

impl CheckpointWork {
    /// Makes everything durable, in the order that [`super::checkpoint`] describes.
    pub(super) fn run(mut self) -> CheckpointOutcome {
        let log = self.log.iter().filter(|_| !fault::is(Fault::CheckpointSkipsLog));
        for file in log {
            if let Err(error) = file.sync() {
                self.log_lost.set();
                return self.without_log(&error);
            }
        }
        if let Err(error) = self.pages.write_and_sync() {
            return CheckpointOutcome::Failed { error, pages: Some(self.pages) };
        }
        if let Err(error) = self.log_lost.check() {
            return self.without_log(&error);
        }
        match self.image.pool.swap_head(self.image.id, self.before, &self.head) {
            Ok(()) => CheckpointOutcome::Done(Box::new(self.head), self.pages),
            Err(error) => CheckpointOutcome::Failed { error, pages: None },
        }
    }

    fn without_log(self, error: &std::io::Error) -> CheckpointOutcome {
        let message = format!("the log of {} cannot be made durable; reopen it", self.image.label);
        let error = Error::new(ErrorKind::Poisoned, format!("{message}: {error}"));
        CheckpointOutcome::Failed { error, pages: Some(self.pages) }
    }
}

/// What a checkpoint makes durable, and the segments that it makes useless.
#[derive(Default)]
pub(super) struct Covered {
    /// To be removed once the head is durable.
    pub dead: Vec<SegmentName>,
    /// Which of them may be kept instead, to be used again, and those that were.
    pub wanted: SparesWanted,
    pub spares: Vec<SegmentName>,
    pub log: CoveredLog,
}

/// How a checkpoint ended, the dead segments that it did not remove, and those that it kept to be used again.
type Outcome = (CheckpointOutcome, Vec<SegmentName>, Vec<SegmentName>);

/// A checkpoint job that a worker runs.
pub(super) struct CheckpointJob {
    task: Task<Outcome>,
    covered: Covered,
    dead_data_segments: u64,
}

impl CheckpointJob {
    /// The worker also removes the dead segments, because that takes longer than a request may wait. Then it calls
    /// `tell`.
    pub(super) fn start(
        workers: &dyn Workers,
        work: CheckpointWork,
        mut covered: Covered,
        tell: impl FnOnce() + Send + 'static,
    ) -> Self {
        let is_data = |name: &&SegmentName| name.kind == SegmentKind::Data;
        let dead_data_segments = covered.dead.iter().filter(is_data).count() as u64;
        let (mut dead, wanted) = (std::mem::take(&mut covered.dead), covered.wanted);
        let run = move || {
            let image = Arc::clone(&work.image);
            let outcome = work.run();
            let mut spares = Vec::new();
            if matches!(outcome, CheckpointOutcome::Done(..))
                && !dead.is_empty()
                && !postponed_for_readers(&image)
            {
                spares = wanted.choose(&image, &mut dead);
                image.remove_segments(dead.drain(..));
            }
            (outcome, dead, spares)
        };
        Self { task: Task::start_and_tell(workers, run, tell), covered, dead_data_segments }
    }

    pub(super) fn is_finished(&mut self) -> bool {
        self.task.is_finished()
    }

    /// Bytes of the log that no durable head covers until the job has ended.
    pub(super) fn log_bytes(&self) -> u64 {
        self.covered.log.bytes
    }

    /// Data segments that are removed, or kept to be used again, when the head is durable.
    pub(super) fn dead_data_segments(&self) -> u64 {
        self.dead_data_segments
    }

    /// Waits for the outcome.
    pub(super) fn wait(mut self) -> (CheckpointOutcome, Covered) {
        let (outcome, dead, spares) = self.task.wait().unwrap_or_else(|| {
            let error = Error::new(ErrorKind::Poisoned, "a checkpoint ended without an outcome");
            (CheckpointOutcome::Failed { error, pages: None }, Vec::new(), Vec::new())
        });
        (self.covered.dead, self.covered.spares) = (dead, spares);
        (outcome, self.covered)
    }
}

/// Removes segments that only earlier heads named. Those that readers of such a head may still need are
/// removed after a later head.
pub(super) fn remove_dead(image: &Identity, dead: Vec<SegmentName>, pages: &mut Pages) {
    if dead.is_empty() || !postponed_for_readers(image) {
        image.remove_segments(dead);
    } else {
        pages.add_dead(dead);
    }
}

/// True where a process reads the image by an older head: the segments that this head names have to stay. A
/// later removal, or a reclaim, finds them.
pub(super) fn postponed_for_readers(image: &Identity) -> bool {
    let being_read = image.pool.being_read(image.id).unwrap_or(true);
    if being_read {
        let label = &image.label;
        tracing::info!(image = %label, "space is given back later, because the image is being read");
    }
    being_read
}
