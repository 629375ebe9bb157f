//! Making the log durable, and what a checkpoint covers of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use marcot_store::DiskFile;

use super::Journal;
use crate::error::{Error, ErrorKind, Result};
use crate::fault::{self, Fault};
use crate::in_flight::InFlight;
use crate::segment::SegmentName;

/// Set once a sync of the log has failed, in the journal or in a checkpoint job. What it should have stored
/// may be gone, and no later sync reports that. Journal and checkpoint jobs share the flag: a sync by one of
/// them may succeed although a sync by the other has failed.
#[derive(Clone, Default)]
pub(crate) struct LogLost(Arc<AtomicBool>);

impl LogLost {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// # Errors
    /// Where a sync of the log has failed before.
    pub(crate) fn check(&self) -> std::io::Result<()> {
        match self.0.load(Ordering::SeqCst) && !fault::is(Fault::ForgetPoison) {
            true => Err(std::io::Error::other("an earlier sync of the log failed")),
            false => Ok(()),
        }
    }
}

/// The part of the log that a checkpoint makes durable.
#[derive(Default)]
pub(crate) struct CoveredLog {
    /// Earlier segments that were not durable yet.
    unsynced: Vec<SegmentName>,
    /// Segments beside the log that were written.
    beside: Vec<(SegmentName, Arc<dyn DiskFile>)>,
    /// Length in bytes.
    pub bytes: u64,
    /// The first group that the checkpoint does not cover.
    group: u64,
}

impl Journal {
    /// Starts writing what [`Self::sync`] will wait for.
    ///
    /// # Errors
    /// `Poisoned` where a group could not be written.
    pub(crate) fn hurry(&mut self, in_flight: &mut InFlight) -> Result<()> {
        self.finish(in_flight)?;
        if let Some(log) = &self.log {
            self.write_behind.hurry(&*log.file, log.slot);
        }
        Ok(())
    }

    /// Makes the log durable.
    ///
    /// # Errors
    /// `Poisoned`: what was appended since the last sync may be gone.
    pub(crate) fn sync(&mut self, in_flight: &mut InFlight) -> Result<()> {
        self.sync_here(in_flight)?;
        if self.ships_flushes() {
            self.flush_shipped()?;
        }
        Ok(())
    }

    /// Makes the log durable on this host.
    ///
    /// # Errors
    /// `Poisoned`, as [`Self::sync`].
    pub(crate) fn sync_here(&mut self, in_flight: &mut InFlight) -> Result<()> {
        if !fault::is(Fault::FlushUnderWay) {
            self.finish(in_flight)?;
        }
        let group_next = self.group_next;
        let Some(log) = &mut self.log else { return Ok(()) };
        log.preallocation.before_sync(&*log.file, log.slot);
        let mut result = Ok(());
        for (_, file) in &log.unsynced {
            result = result.and_then(|()| file.sync());
        }
        if log.dirty && !fault::is(Fault::SkipLogSync) {
            result = result.and_then(|()| log.file.sync());
        }
        if result.is_err() {
            self.lost.set();
        }
        if let Err(error) = result.and_then(|()| self.lost.check()) {
            self.poisoned = !fault::is(Fault::ForgetPoison);
            let label = &self.image.label;
            tracing::error!(image = %label, %error, "flush failed; the image must be reopened");
            let message = format!("flushing {label} failed; reopen it");
            return Err(Error::new(ErrorKind::Poisoned, format!("{message}: {error}")));
        }
        log.unsynced.clear();
        log.dirty = false;
        log.durable_below = group_next;
        Ok(())
    }

    /// Makes durable what was written beside the log.
    ///
    /// # Errors
    /// `Poisoned`: copies that the map names may be gone.
    pub(crate) fn sync_beside(&mut self, covered: &CoveredLog) -> Result<()> {
        let files = covered.beside.iter().filter(|_| !fault::is(Fault::CopiesBesideUnsynced));
        let synced = files.map(|(_, file)| file.sync()).find(std::io::Result::is_err);
        let Some(Err(error)) = synced else { return Ok(()) };
        self.lost.set();
        self.poisoned = !fault::is(Fault::ForgetPoison);
        let label = &self.image.label;
        tracing::error!(image = %label, %error, "copied blocks cannot be made durable; the image must be reopened");
        Err(Error::new(ErrorKind::Poisoned, format!("flushing {label} failed; reopen it: {error}")))
    }

    /// The segments that [`Self::sync`] would sync, and those beside the log, opened again for another thread.
    ///
    /// # Errors
    /// `Poisoned` where a group could not be written; those of opening files.
    pub(crate) fn files_to_sync(
        &mut self,
        in_flight: &mut InFlight,
    ) -> Result<Vec<Arc<dyn DiskFile>>> {
        self.finish(in_flight)?;
        let unsynced = self.log.iter().flat_map(|log| &log.unsynced).map(|(name, _)| *name);
        let open = self.log.iter().filter(|log| log.dirty).map(|log| log.name);
        let beside =
            self.beside_unsynced.iter().filter(|_| !fault::is(Fault::CopiesBesideUnsynced));
        let beside = beside.map(|(name, _)| *name);
        let files = self.image.pool.files();
        unsynced.chain(open).chain(beside).map(|name| files.open_as_it_is(name, false)).collect()
    }

    /// Notes which part of the log the next checkpoint covers, and starts the count of bytes again.
    pub(crate) fn begin_to_cover(&mut self) -> CoveredLog {
        let unsynced = self.log.iter().flat_map(|log| &log.unsynced);
        CoveredLog {
            unsynced: unsynced.map(|(name, _)| *name).collect(),
            beside: std::mem::take(&mut self.beside_unsynced),
            bytes: std::mem::take(&mut self.bytes),
            group: self.group_next,
        }
    }

    /// A checkpoint has made this part of the log durable, and it is not needed any more.
    pub(crate) fn covered(&mut self, covered: &CoveredLog) {
        if let Some(log) = &mut self.log {
            log.durable_below = log.durable_below.max(covered.group);
            let unsynced = std::mem::take(&mut log.unsynced);
            let (done, left): (Vec<_>, Vec<_>) =
                unsynced.into_iter().partition(|(name, _)| covered.unsynced.contains(name));
            log.unsynced = left;
            self.close_files(done);
        }
    }

    /// Closes files on a worker: closing the last descriptor of a file may wait for the medium.
    fn close_files(&self, files: Vec<(SegmentName, Arc<dyn DiskFile>)>) {
        if !files.is_empty() {
            drop(self.workers().start(Box::new(move || drop(files))));
        }
    }

    /// A checkpoint has failed, and its part of the log is counted again. The count is `bytes_max` at the
    /// most, so that not every write tries the next checkpoint.
    pub(crate) fn not_covered(&mut self, covered: &CoveredLog, bytes_max: u64) {
        self.bytes = (self.bytes + covered.bytes).min(bytes_max);
        for (name, file) in &covered.beside {
            self.wrote_beside(*name, Arc::clone(file), 0);
        }
    }

    /// The root in memory was replaced by one on the medium, to which no log belongs.
    pub(crate) fn reset_count(&mut self) {
        self.bytes = 0;
        self.beside_unsynced.clear();
    }
}
