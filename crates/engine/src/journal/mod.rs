//! The journal of an image: the open data segment, to which groups of writes are appended.
//!
//! The journal knows how a group reaches the medium ([`append`]): through the page cache or as a direct write
//! ([`direct`]), with write-behind ([`write_behind`]) and into preallocated room ([`preallocation`]). It
//! waits for its own writes wherever that is needed. Methods that may wait for the medium take [`InFlight`].
//! It makes the log durable on this host ([`durable`]), and where other hosts find it ([`shipping`]).
//!
//! What the groups mean is not its business: it returns where a group was placed, and the image changes its
//! map.
//!
//! Invariants:
//! - Where an append fails, the log is not longer than before.
//! - A number is given to one group only, and groups lie in the log in the order of their numbers.
//! - A sync that has failed is never followed by one that says all is well ([`LogLost`]).

mod append;
mod beside;
mod direct;
mod durable;
mod group;
mod preallocation;
mod prepared;
mod shipped;
mod shipping;
mod spares;
mod write_behind;

use std::collections::VecDeque;
use std::sync::Arc;

use marcot_format::group::GroupHeader;
use marcot_format::record::LogPosition;
use marcot_format::segment::SegmentKind;
use marcot_format::{SEGMENT_SLOTS, SegmentIndex, Slot};
use marcot_store::{DiskFile, Running, Workers};

use crate::catalog::Identity;
use crate::error::{ErrorKind, Result, fail};
use crate::in_flight::InFlight;
use crate::limits::Limits;
use crate::segment::{SegmentName, Series};
use crate::table::SegmentTable;

use beside::Beside;
use direct::DirectWrites;
pub(crate) use durable::{CoveredLog, LogLost};
pub(crate) use group::Group;
use preallocation::Preallocation;
pub(crate) use prepared::{Prepared, take_or_create};
pub(crate) use shipped::{Flushes, Shipped};
use spares::Spares;
pub(crate) use spares::SparesWanted;
use write_behind::WriteBehind;

/// The data segment that is being written.
struct Log {
    name: SegmentName,
    epoch: u64,
    file: Arc<dyn DiskFile>,
    /// The same file for direct writes, from the first stream on.
    direct: Option<Arc<dyn DiskFile>>,
    /// Its index in the segment table.
    index: SegmentIndex,
    /// Slot where the next group starts.
    slot: u32,
    /// Written since the last sync.
    dirty: bool,
    /// Earlier segments that are not durable yet.
    unsynced: Vec<(SegmentName, Arc<dyn DiskFile>)>,
    /// Groups with numbers below this one are durable. Each header of a group notes this number.
    durable_below: u64,
    preallocation: Preallocation,
    header: Vec<u8>,
}

/// Where a group was placed.
pub(crate) struct Placed {
    pub header: GroupHeader,
    /// Its segment's index in the table.
    pub index: SegmentIndex,
    /// Slot of its first data block.
    pub data_slot: Slot,
}

/// The open segment, for code that decides about segments.
#[derive(Clone, Copy)]
pub(crate) struct OpenSegment {
    pub name: SegmentName,
    /// Its index in the table.
    pub index: SegmentIndex,
    /// Slot where the next group will start.
    pub slot: u32,
}

/// See the module. An image that only reads has one too, which is never opened.
pub(crate) struct Journal {
    image: Arc<Identity>,
    /// `None` until the image is written for the first time, and after the log was ended.
    log: Option<Log>,
    /// Number of the next group.
    group_next: u64,
    /// Bytes of the log since the last checkpoint.
    bytes: u64,
    lost: LogLost,
    /// Segments beside the log that the log has not passed, by their numbers.
    beside: Vec<Beside>,
    /// Segments beside the log that were written since the last checkpoint.
    beside_unsynced: Vec<(SegmentName, Arc<dyn DiskFile>)>,
    write_behind: WriteBehind,
    direct: DirectWrites,
    /// The next segments, by their numbers, which workers create.
    prepared: VecDeque<Prepared>,
    spares: Spares,
    /// A worker that cuts preallocated room off a closed segment.
    cutting: Option<Box<dyn Running>>,
    /// A worker that removes spares.
    removing: Option<Box<dyn Running>>,
    /// What other hosts can find of the log, where they may become owners.
    shipped: Option<Shipped>,
    poisoned: bool,
}

impl Journal {
    /// A journal that is not open. `group_next`: the number of the first group.
    pub(crate) fn new(image: Arc<Identity>, group_next: u64) -> Self {
        Self {
            image,
            log: None,
            group_next,
            bytes: 0,
            lost: LogLost::default(),
            beside: Vec::new(),
            beside_unsynced: Vec::new(),
            write_behind: WriteBehind::default(),
            direct: DirectWrites::default(),
            prepared: VecDeque::new(),
            spares: Spares::default(),
            cutting: None,
            removing: None,
            shipped: None,
            poisoned: false,
        }
    }

    /// True while groups can be appended.
    pub(crate) fn is_open(&self) -> bool {
        self.log.is_some()
    }

    /// The segment that is being written.
    pub(crate) fn open_segment(&self) -> Option<OpenSegment> {
        let Log { name, index, slot, .. } = self.log.as_ref()?;
        Some(OpenSegment { name: *name, index: *index, slot: *slot })
    }

    /// The name of the segment that is being written.
    pub(crate) fn open_name(&self) -> Option<SegmentName> {
        self.log.as_ref().map(|log| log.name)
    }

    /// Where the next group will start, while the journal is open.
    pub(crate) fn position(&self) -> Option<LogPosition> {
        let Log { name, slot, .. } = self.log.as_ref()?;
        Some(LogPosition { sequence: name.sequence, slot: *slot, group: self.group_next })
    }

    /// Number of the next group.
    pub(crate) fn group_next(&self) -> u64 {
        self.group_next
    }

    /// Groups with numbers below `below` were found in the log, which this process has not opened.
    pub(crate) fn found_groups(&mut self, below: u64) {
        self.group_next = below;
    }

    /// Bytes of the log since the last checkpoint.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Counts at most `bytes_max` bytes of the log, so that the next checkpoint is not tried at once.
    pub(crate) fn count_at_most(&mut self, bytes_max: u64) {
        self.bytes = self.bytes.min(bytes_max);
    }

    /// Shared with checkpoint jobs, which sync the log too.
    pub(crate) fn lost(&self) -> &LogLost {
        &self.lost
    }

    /// True once something that was acknowledged may be gone: the image has to be opened again.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    fn workers(&self) -> Arc<dyn Workers> {
        Arc::clone(&self.image.pool.files().world().workers)
    }

    fn limits(&self) -> Limits {
        self.image.pool.store().limits()
    }

    /// Opens the journal in a segment of its own.
    ///
    /// # Errors
    /// Those of [`Series::create`].
    pub(crate) fn start(
        &mut self,
        epoch: u64,
        series: &mut Series,
        table: &mut SegmentTable,
    ) -> Result<()> {
        self.write_behind = WriteBehind::default();
        // The log begins behind all earlier segments.
        self.beside.clear();
        self.spares.begin(series.marks().data);
        if let Some(shipped) = &mut self.shipped {
            shipped.start();
        }
        self.open_log(epoch, Vec::new(), self.group_next, series, table)
    }

    /// Takes back [`Self::start`], because no head names the segment. Its number stays used.
    pub(crate) fn abandon_start(&mut self) -> Option<SegmentName> {
        self.log.take().map(|log| log.name)
    }

    /// Creates the next data segment and goes on in it.
    fn open_log(
        &mut self,
        epoch: u64,
        unsynced: Vec<(SegmentName, Arc<dyn DiskFile>)>,
        durable_below: u64,
        series: &mut Series,
        table: &mut SegmentTable,
    ) -> Result<()> {
        let (name, file, index) = self.take_segment(epoch, series, table)?;
        let bytes = file.length().unwrap_or(0);
        self.log = Some(Log {
            name,
            epoch,
            file,
            direct: None,
            index,
            slot: 1,
            dirty: false,
            unsynced,
            durable_below,
            preallocation: Preallocation::of_file(bytes, self.limits().cut_slots_min()),
            header: Vec::new(),
        });
        Ok(())
    }

    /// Takes the next data segment of the series, which a worker may have created already, and enters it in
    /// the table.
    fn take_segment(
        &mut self,
        epoch: u64,
        series: &mut Series,
        table: &mut SegmentTable,
    ) -> Result<(SegmentName, Arc<dyn DiskFile>, SegmentIndex)> {
        // Once the segment exists, its number is used. Replay would not find a later segment behind it, if this
        // one did not become a part of the image.
        table.prepare_add(self.image.pool.files())?;
        let (prepared, kind) = (self.prepared.pop_front(), SegmentKind::Data);
        let dead = if prepared.is_none() { self.spares.take() } else { None };
        let (name, file) = take_or_create(&self.image, series, kind, epoch, prepared, dead)?;
        let index = table.add(name, self.image.pool.files())?;
        Ok((name, file, index))
    }

    /// True where a group of `slots` slots does not fit into the open segment.
    pub(crate) fn needs_segment(&self, slots: u32) -> bool {
        let slots_max = self.limits().segment_slots;
        self.log.as_ref().is_some_and(|log| {
            // A group that is longer than that has a segment of its own.
            let full = log.slot > 1 && log.slot + slots > slots_max;
            full || log.slot + slots > SEGMENT_SLOTS
        })
    }

    /// Makes sure that the open segment has room for `slots` slots, and that its entry in the table is
    /// loaded.
    ///
    /// # Errors
    /// Those of [`Series::create`]; the journal goes on in the segment before.
    pub(crate) fn find_room(
        &mut self,
        slots: u32,
        series: &mut Series,
        table: &mut SegmentTable,
        in_flight: &mut InFlight,
    ) -> Result<()> {
        if self.needs_segment(slots) {
            self.next_segment(series, table, in_flight)?;
        }
        match &self.log {
            Some(log) => table.get(log.index, self.image.pool.files()).map(drop),
            None => fail(ErrorKind::Io, "the log is not open"),
        }
    }

    fn next_segment(
        &mut self,
        series: &mut Series,
        table: &mut SegmentTable,
        in_flight: &mut InFlight,
    ) -> Result<()> {
        let Some(mut log) = self.log.take() else { return Ok(()) };
        let mut unsynced = std::mem::take(&mut log.unsynced);
        self.write_behind.end_stretch(&log.file, log.slot, 0, &*self.workers());
        if log.dirty {
            unsynced.push((log.name, Arc::clone(&log.file)));
        }
        let (epoch, durable_below) = (log.epoch, log.durable_below);
        let mut opened = self.open_log(epoch, unsynced.clone(), durable_below, series, table);
        if opened.as_ref().is_err_and(|error| error.kind() == ErrorKind::NoSpace)
            && self.finish(in_flight).is_ok()
            && log.preallocation.cut(&*log.file, log.slot)
        {
            // The next segment may find the room that was preallocated for this one.
            opened = self.open_log(epoch, unsynced.clone(), durable_below, series, table);
        }
        let passed: Vec<_> = self.beside.iter().map(|b| (b.name, Arc::clone(&b.file))).collect();
        if let Err(error) = opened.and_then(|()| self.pass_beside(table)) {
            unsynced.retain(|(name, _)| *name != log.name);
            log.unsynced = unsynced;
            if let Some(opened) = self.log.replace(log) {
                self.beside.push(Beside {
                    name: opened.name,
                    index: opened.index,
                    file: opened.file,
                });
            }
            return Err(error);
        }
        if let Some(shipped) = &mut self.shipped {
            shipped.closed(log.name.sequence, Arc::clone(&log.file), log.slot);
            passed.into_iter().for_each(|(name, file)| shipped.passed(name.sequence, file));
        }
        self.close_segment(log, table);
        Ok(())
    }

    /// Closes a segment. Nothing is appended to it any more, so it may be removed when it is dead.
    fn close_segment(&mut self, log: Log, table: &mut SegmentTable) {
        table.close_segment(log.index, self.image.pool.files(), &self.image.label);
        self.cut(log);
    }

    /// True while a worker shortens a closed segment.
    pub(crate) fn is_cutting(&mut self) -> bool {
        self.cutting.as_mut().is_some_and(|cutting| !cutting.is_finished())
    }

    /// Cuts off what lies behind the last group of a closed segment.
    fn cut(&mut self, mut log: Log) {
        if self.direct.is_idle() {
            log.preallocation.cut(&*log.file, log.slot);
            return;
        }
        // Cutting has to wait for the direct writes to the file, which a worker can do.
        let cut = self.workers().start(Box::new(move || {
            log.preallocation.cut(&*log.file, log.slot);
        }));
        if let Some(before) = self.cutting.replace(cut) {
            before.wait();
        }
    }

    /// Makes the log durable and ends it: the next group goes to another segment.
    ///
    /// # Errors
    /// `Poisoned`, as [`Self::sync`].
    pub(crate) fn end(&mut self, table: &mut SegmentTable, in_flight: &mut InFlight) -> Result<()> {
        self.sync(in_flight)?;
        if let Some(log) = self.log.take() {
            self.close_segment(log, table);
        }
        // The next log begins behind them.
        for beside in std::mem::take(&mut self.beside) {
            table.close_segment(beside.index, self.image.pool.files(), &self.image.label);
        }
        // The last one first: numbers are given without a gap.
        while let Some(prepared) = self.prepared.pop_back() {
            prepared.remove(&self.image);
        }
        self.remove_spares();
        Ok(())
    }

    /// Waits until nothing is being written, created or cut, whether it succeeds or fails. For an image that
    /// is dropped.
    pub(crate) fn abandon(&mut self, in_flight: &mut InFlight) {
        while !self.direct.is_idle() {
            match in_flight.wait_for_write() {
                Some(write) => self.completed(write),
                None => break,
            }
        }
        for running in self.cutting.take().into_iter().chain(self.removing.take()) {
            running.wait();
        }
        if let Some(shipped) = &mut self.shipped {
            shipped.abandon();
        }
        while let Some(prepared) = self.prepared.pop_front() {
            prepared.wait();
        }
    }

    /// Closes the files that write-behind keeps open, because the image is idle.
    pub(crate) fn forget_write_behind(&mut self) {
        self.write_behind.forget();
    }

    /// Gives back room that was preallocated for streams and not written, unless direct writes are in flight.
    pub(crate) fn give_back_reserved_room(&mut self) {
        if self.direct.is_idle()
            && let Some(log) = &mut self.log
        {
            log.preallocation.cut_room(&*log.file, log.slot);
        }
    }

    /// Gives back spare memory and, unless direct writes are in flight, all preallocated room. Returns the
    /// bytes of memory.
    pub(crate) fn give_back(&mut self) -> u64 {
        if self.direct.is_idle()
            && let Some(log) = &mut self.log
        {
            log.preallocation.cut(&*log.file, log.slot);
        }
        self.direct.drop_spare()
    }
}
