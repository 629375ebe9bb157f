//! The log where other hosts find it: what a flush ships, and what is shipped behind it.
//!
//! [`super::shipped`] knows the parts that are shipped, and when they are. Here the journal tells it where the log
//! ends, and takes in what it says.

use super::shipped::{Flushes, OpenEnd, Shipped};
use super::{Journal, Log};
use crate::error::Result;
use crate::fault::{self, Fault};
use crate::in_flight::InFlight;
use crate::segment::Series;
use crate::table::SegmentTable;

fn open_end(log: &Log, group: u64) -> OpenEnd<'_> {
    OpenEnd { sequence: log.name.sequence, file: &log.file, slot: log.slot, group }
}

impl Journal {
    /// True where a flush has to ship the log.
    pub(crate) fn ships_flushes(&self) -> bool {
        self.shipped.as_ref().is_some_and(Shipped::ships_flushes)
    }

    /// Asks for a flush, which may end later: then it returns the number of the flush, and
    /// [`Self::newly_flushed`] says when it has ended.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub(crate) fn flush(&mut self, in_flight: &mut InFlight) -> Result<Option<u64>> {
        if !self.ships_flushes() {
            return self.sync(in_flight).map(|()| None);
        }
        self.finish(in_flight)?;
        let workers = self.workers();
        let (log, group_next) = (&self.log, self.group_next);
        let open = log.as_ref().map(|log| open_end(log, group_next));
        let Some(shipped) = &mut self.shipped else { return Ok(None) };
        let asked = shipped.flush(open.as_ref(), &*workers, self.image.pool.uptime());
        self.note_shipped(asked)
    }

    /// Where flushes end on this host: ships the log behind them, so that a host that is lost takes little with it. To
    /// be called now and then.
    ///
    /// # Errors
    /// `Fenced`, `Poisoned`: as an earlier shipment has failed.
    pub(crate) fn ship_behind(&mut self, in_flight: &mut InFlight) -> Result<()> {
        if self.shipped.is_none() || self.ships_flushes() {
            return Ok(());
        }
        let (workers, now) = (self.workers(), self.image.pool.uptime());
        let (Some(log), Some(shipped)) = (&self.log, &mut self.shipped) else { return Ok(()) };
        let open = open_end(log, self.group_next);
        let behind = shipped.is_behind(Some(&open), &*workers, now);
        if !self.note_shipped(behind)? {
            return Ok(());
        }
        // What is under way must be on this host before it is shipped.
        self.finish(in_flight)?;
        if let (Some(log), Some(shipped)) = (&self.log, &mut self.shipped) {
            shipped.ship_behind(Some(&open_end(log, self.group_next)), &*workers);
        }
        Ok(())
    }

    /// Ships all of the log, and waits for it.
    pub(super) fn flush_shipped(&mut self) -> Result<()> {
        let workers = self.workers();
        let (log, group_next) = (&self.log, self.group_next);
        let open = log.as_ref().map(|log| open_end(log, group_next));
        let Some(shipped) = &mut self.shipped else { return Ok(()) };
        let flushed = shipped.flush_now(open.as_ref(), &*workers, self.image.pool.uptime());
        self.note_shipped(flushed)
    }

    /// Waits for what is being shipped. Nothing is shipped any more then, until the log goes on.
    ///
    /// # Errors
    /// `Fenced`, `Poisoned`: as an earlier shipment has failed.
    pub(crate) fn end_shipping(&mut self) -> Result<()> {
        let workers = self.workers();
        let Some(shipped) = &mut self.shipped else { return Ok(()) };
        if fault::is(Fault::ClosedUnderWay) {
            return Ok(());
        }
        let ended = shipped.end(&*workers);
        self.note_shipped(ended)
    }

    /// Takes in what was shipped meanwhile. Returns which flushes have ended, or last too long, where that was not
    /// told yet.
    pub(crate) fn newly_flushed(&mut self, in_flight: &mut InFlight) -> Option<Flushes> {
        let shipped = self.shipped.as_mut().filter(|shipped| shipped.is_awaited())?;
        if shipped.is_ready()
            && let Err(error) = self.finish(in_flight)
        {
            // What is under way must be on this host before it is shipped.
            return Some(Flushes::Ended(Err(error)));
        }
        let (workers, now) = (self.workers(), self.image.pool.uptime());
        let (log, group_next) = (&self.log, self.group_next);
        let open = log.as_ref().map(|log| open_end(log, group_next));
        let shipped = self.shipped.as_mut()?;
        shipped.poll(open.as_ref(), &*workers);
        match shipped.newly_flushed(now)? {
            Flushes::Ended(outcome) => Some(Flushes::Ended(self.note_shipped(outcome))),
            late @ Flushes::Late(..) => Some(late),
        }
    }

    /// What of the log other hosts can find, where there are any.
    pub(crate) fn shipped(&self) -> Option<&Shipped> {
        self.shipped.as_ref()
    }

    /// True while flushes wait, or their ends were not told.
    pub(crate) fn awaits_flush(&self) -> bool {
        self.shipped.as_ref().is_some_and(Shipped::is_awaited)
    }

    /// Notes what is stored by now, and whether the image can be used any more.
    fn note_shipped<T>(&mut self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome {
            if !error.kind().ends_writing() {
                // The service does not answer in time. The shipment goes on.
                return outcome;
            }
            if !self.poisoned {
                tracing::error!(image = %self.image.label, error = %error.sentence(), "flush failed; the image must be reopened");
            }
            self.poisoned = true;
        } else if let (Some(log), Some(shipped)) = (&mut self.log, &self.shipped)
            && shipped.ships_flushes()
        {
            log.durable_below = log.durable_below.max(shipped.stored_below());
        }
        outcome
    }

    /// From now on the log is shipped to where other hosts find it.
    pub(crate) fn ship_with(&mut self, shipped: Shipped) {
        self.shipped = Some(shipped);
    }

    /// Number of the next part of the log that is shipped, where it is.
    pub(crate) fn next_part(&self) -> Option<u64> {
        self.shipped.as_ref().map(Shipped::next)
    }

    /// True where a segment is uploaded before a head may name it, and never written again after that.
    pub(crate) fn is_shipped(&self) -> bool {
        self.shipped.is_some()
    }

    /// Goes on in another segment, so that this one can be uploaded.
    ///
    /// # Errors
    /// Those of [`Series::create`]; the journal goes on in the segment before.
    pub(crate) fn roll(
        &mut self,
        series: &mut Series,
        table: &mut SegmentTable,
        in_flight: &mut InFlight,
    ) -> Result<()> {
        self.finish(in_flight)?;
        // The log passes segments beside it here, because nothing is written to them once they are uploaded.
        let passes = !self.beside.is_empty();
        if self.log.as_ref().is_some_and(|log| log.slot > 1 || passes) {
            self.next_segment(series, table, in_flight)?;
        }
        if let Some(cutting) = self.cutting.take() {
            cutting.wait();
        }
        Ok(())
    }

    /// A head is durable whose log begins at this segment and part: what was shipped of the log before is not
    /// needed any more.
    pub(crate) fn forget_shipped(&mut self, sequence: u32, part: u64) {
        let workers = self.workers();
        if let Some(shipped) = &mut self.shipped {
            shipped.covered(sequence, part, &*workers);
        }
    }
}
