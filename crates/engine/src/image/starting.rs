//! Beginning the log by a worker, while the writes that wait for it are parked.
//!
//! Before the first write, a head has to be durable that says where the log begins. In a bucket that takes requests, and
//! the image's thread goes on meanwhile. Where a log was replayed, the head comes with a checkpoint of what it has
//! changed, because the head ends that log.
//!
//! Nothing is appended until the head is durable: a flush would ship a part of a log that no head names.

use std::sync::Arc;

use marcot_format::record::HeadRecord;
use marcot_store::Task;

use super::Image;
use super::checkpoint_job::CheckpointJob;
use crate::error::{Error, ErrorKind, Result};

/// How the log is being begun.
pub(super) enum Start {
    /// By a head, which is on its way to the medium.
    Head(Task<Result<HeadRecord>>),
    /// By the checkpoint that is running.
    Checkpoint,
}

impl Image {
    /// True where the log has to be begun before a write, and a worker does that.
    pub(super) fn begins_log(&mut self) -> bool {
        if self.parked.is_starting() {
            return true;
        }
        let is_simple = self.is_shipped() && !self.head.keeps_log;
        if self.journal.is_open() || !is_simple || self.checkpoint_job.is_some() {
            return false;
        }
        // An error comes again where the log is begun by the thread.
        self.start_log().is_ok()
    }

    fn start_log(&mut self) -> Result<()> {
        self.check_owner()?;
        let epoch = self.open_log()?;
        let waker = self.in_flight.waker();
        let wake = move || waker.into_iter().for_each(|wake| wake());
        if self.state.changed {
            let started = self.start_checkpoint_with(|head| head.epoch = epoch, wake);
            return match started {
                Ok(()) => {
                    self.parked.start = Some(Start::Checkpoint);
                    Ok(())
                }
                Err(error) => {
                    self.state.pages.add_dead(self.journal.abandon_start());
                    Err(error)
                }
            };
        }
        let progress = self.progress();
        let mut head = self.head.clone();
        head.epoch = epoch;
        progress.begin_log(&mut head);
        let head = self.head.following(head, progress);
        let (image, before) = (Arc::clone(&self.identity), self.head.stamp());
        let workers = Arc::clone(&self.identity.pool.files().world().workers);
        let swap = move || image.pool.swap_head(image.id, before, &head).map(|()| head);
        self.parked.start = Some(Start::Head(Task::start_and_tell(&*workers, swap, wake)));
        Ok(())
    }

    /// True where a log was being begun, and [`Self::settle_start`] does not wait.
    pub(super) fn has_begun_log(&mut self) -> bool {
        match &mut self.parked.start {
            Some(Start::Head(swap)) => swap.is_finished(),
            Some(Start::Checkpoint) => {
                self.checkpoint_job.as_mut().is_none_or(CheckpointJob::is_finished)
            }
            None => false,
        }
    }

    /// Waits for the head that begins the log, if it is on its way.
    ///
    /// # Errors
    /// `Poisoned` and `Fenced`. Other errors are told to the writes that wait for the log.
    pub(super) fn settle_start(&mut self) -> Result<()> {
        let Some(start) = self.parked.start.take() else { return Ok(()) };
        self.parked.due = true;
        let outcome = match start {
            Start::Head(swap) => self.take_first_head(swap),
            Start::Checkpoint => self.take_in_checkpoint(),
        };
        match outcome {
            Ok(()) => {
                self.remove_strays_once();
                Ok(())
            }
            Err(error) => {
                self.state.pages.add_dead(self.journal.abandon_start());
                self.poisoned |= error.kind() == ErrorKind::Poisoned;
                self.parked.start_failed = Some(error.clone());
                if error.kind().ends_writing() { Err(error) } else { Ok(()) }
            }
        }
    }

    fn take_first_head(&mut self, swap: Task<Result<HeadRecord>>) -> Result<()> {
        let swapped = swap.wait().unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Poisoned, "a log was begun without an outcome"))
        });
        self.head.was_replaced(swapped?);
        self.note_reserved();
        Ok(())
    }
}
