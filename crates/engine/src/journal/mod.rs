//! The journal of an image: the open data segment, to which groups of writes are appended.
//!
//! The journal knows how a group reaches the medium: through the page cache or as a direct write
//! ([`direct`]), with write-behind ([`write_behind`]) and into preallocated room ([`preallocation`]). It
//! waits for its own writes wherever that is needed. Methods that may wait for the medium take [`InFlight`].
//!
//! What the groups mean is not its business: it returns where a group was placed, and the image changes its
//! map.
//!
//! Invariants:
//! - Where an append fails, the log is not longer than before.
//! - A number is given to one group only, and groups lie in the log in the order of their numbers.
//! - A sync that has failed is never followed by one that says all is well ([`LogLost`]).

mod direct;
mod group;
mod preallocation;
mod prepared;
mod shipped;
mod spares;
mod write_behind;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use marcot_format::group::{GROUP_BESIDE_LOG, GroupHeader};
use marcot_format::record::LogPosition;
use marcot_format::segment::SegmentKind;
use marcot_format::{BLOCK_BYTES, SEGMENT_SLOTS, SegmentIndex, Slot, crc32c};
use marcot_store::{AsyncWrite, DiskFile, Running, Workers};

use crate::catalog::Identity;
use crate::error::{Error, ErrorKind, IoContext, Result, fail};
use crate::fault::{self, Fault};
use crate::in_flight::InFlight;
use crate::limits::Limits;
use crate::segment::{SegmentName, Series};
use crate::table::SegmentTable;

use direct::{DirectWrites, GroupInFlight};
pub(crate) use group::Group;
use preallocation::Preallocation;
pub(crate) use prepared::{Prepared, take_or_create};
use shipped::OpenEnd;
pub(crate) use shipped::{Flushes, Shipped};
use spares::Spares;
pub(crate) use spares::SparesWanted;
use write_behind::WriteBehind;

/// Room is preallocated for this many of the shortest direct writes.
const RESERVED_GROUPS: u64 = 16;

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

/// A data segment that is written beside the log, and whose number lies between those of two segments of the log.
///
/// Replay goes from one segment of the log to the next by their numbers. So when the log goes on behind this
/// segment, the first slot of it gets an empty group of the log.
struct Beside {
    name: SegmentName,
    /// Its index in the table.
    index: SegmentIndex,
    file: Arc<dyn DiskFile>,
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

fn open_end(log: &Log, group: u64) -> OpenEnd<'_> {
    OpenEnd { sequence: log.name.sequence, file: &log.file, slot: log.slot, group }
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

    /// Takes the next data segment for copies, to be written beside the log. Its first slot belongs to the
    /// journal. Returns its name, its file, and its index in the table.
    ///
    /// # Errors
    /// Those of [`Series::create`], of writing and of the table. The log passes the segment all the same.
    pub(crate) fn take_segment_beside(
        &mut self,
        epoch: u64,
        series: &mut Series,
        table: &mut SegmentTable,
    ) -> Result<(SegmentName, Arc<dyn DiskFile>, SegmentIndex)> {
        let (name, file, index) = self.take_segment(epoch, series, table)?;
        self.beside.push(Beside { name, index, file: Arc::clone(&file) });
        if let Some(beside) = self.beside.last() {
            self.write_passage(beside, GROUP_BESIDE_LOG)?;
        }
        Ok((name, file, index))
    }

    /// Writes the empty group in the first slot of a segment beside the log.
    fn write_passage(&self, beside: &Beside, group: u64) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        let header = GroupHeader {
            author: self.image.id.0,
            epoch: log.epoch,
            sequence: beside.name.sequence,
            group,
            durable_below: if group == GROUP_BESIDE_LOG { 0 } else { log.durable_below },
            records: Vec::new(),
            crcs: Vec::new(),
        };
        let mut bytes = Vec::new();
        header.encode_into(&mut bytes);
        let written = beside.file.write_at(BLOCK_BYTES, &[&bytes]);
        written.at(|| format!("cannot write to {}", self.image.label))
    }

    /// Segments beside the log that the log has not passed. They may not be removed before that.
    pub(crate) fn beside_names(&self) -> impl Iterator<Item = SegmentName> {
        self.beside.iter().map(|beside| beside.name)
    }

    /// The segments beside the log of which the map in memory may name more than the last checkpoint did.
    pub(crate) fn copied_to(&self) -> impl Iterator<Item = SegmentName> {
        self.beside_unsynced.iter().map(|(name, _)| *name)
    }

    /// The first segment beside the log of which the map in memory may name more than the last checkpoint did.
    pub(crate) fn beside_from(&self) -> Option<SegmentName> {
        self.copied_to().min_by_key(|name| name.sequence)
    }

    /// `bytes` more were written to a segment beside the log, and the map may name them. They count as log, so
    /// that checkpoints come as often as before.
    pub(crate) fn wrote_beside(&mut self, name: SegmentName, file: Arc<dyn DiskFile>, bytes: u64) {
        self.bytes += bytes;
        if self.beside_unsynced.iter().all(|(known, _)| *known != name) {
            self.beside_unsynced.push((name, file));
        }
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

    /// Leads the log through the segments beside it to its present segment.
    fn pass_beside(&mut self, table: &mut SegmentTable) -> Result<()> {
        let group_next = self.group_next;
        for beside in self.beside.iter().filter(|_| !fault::is(Fault::PassageForgotten)) {
            if let Err(error) = self.write_passage(beside, self.group_next) {
                self.group_next = group_next;
                return Err(error);
            }
            self.group_next += 1;
        }
        for Beside { name, index, file } in std::mem::take(&mut self.beside) {
            table.close_segment(index, self.image.pool.files(), &self.image.label);
            if let Some(log) = &mut self.log {
                log.unsynced.push((name, file));
            }
        }
        Ok(())
    }

    /// Closes a segment. Nothing is appended to it any more, so it may be removed when it is dead.
    fn close_segment(&mut self, log: Log, table: &mut SegmentTable) {
        table.close_segment(log.index, self.image.pool.files(), &self.image.label);
        self.cut(log);
    }

    /// Appends a group. The caller has found room for it ([`Self::find_room`]).
    ///
    /// # Errors
    /// `NoSpace`, `Io`, `Poisoned`: the group is not in the log.
    pub(crate) fn append(&mut self, group: Group<'_>, in_flight: &mut InFlight) -> Result<Placed> {
        let Some(mut log) = self.log.take() else {
            return fail(ErrorKind::Io, "the log is not open");
        };
        let slots = group.slots();
        let crcs: Vec<u32> = group
            .parts
            .iter()
            .flat_map(|part| part.chunks_exact(BLOCK_BYTES as usize))
            .map(crc32c)
            .collect();
        let header = GroupHeader {
            author: self.image.id.0,
            epoch: log.epoch,
            sequence: log.name.sequence,
            group: self.group_next,
            durable_below: match () {
                () if fault::is(Fault::DurableTooFar) => self.group_next,
                () if fault::is(Fault::DurableUntold) => 0,
                () => log.durable_below,
            },
            records: group.records,
            crcs,
        };
        let data_slot = Slot(log.slot).after(header.header_blocks() as u32);
        let mut header_bytes = std::mem::take(&mut log.header);
        header.encode_into(&mut header_bytes);
        let mut parts: Vec<&[u8]> = Vec::with_capacity(group.parts.len() + 1);
        parts.push(&header_bytes);
        parts.extend(group.parts.iter().map(|part| &**part));
        let written = self.write(&mut log, &header, &parts, in_flight);
        log.header = header_bytes;
        let index = log.index;
        self.log = Some(log);
        written?;
        self.group_next += 1;
        self.bytes += u64::from(slots) * BLOCK_BYTES;
        Ok(Placed { header, index, data_slot })
    }

    /// Writes a group at the end of the log. Where that fails, the log is not longer than before. `parts` are
    /// whole blocks: the header, then the data.
    fn write(
        &mut self,
        log: &mut Log,
        header: &GroupHeader,
        parts: &[&[u8]],
        in_flight: &mut InFlight,
    ) -> Result<()> {
        log.dirty = true;
        let before = log.slot;
        let after = before + header.blocks() as u32;
        if self.start_direct(log, header, parts, in_flight)? {
            log.slot = after;
            self.write_behind.end_stretch(&log.file, before, after, &*self.workers());
            return Ok(());
        }
        // The pages of this group may share a folio with the end of a direct write. When that write
        // completes, the kernel drops the folio from the page cache, and no page of it may be dirty then.
        self.finish(in_flight)?;
        self.write_cached(log, parts)?;
        log.slot = after;
        self.write_behind.appended(&header.records);
        if self.write_behind.is_complete(after) {
            self.write_behind.end_stretch(&log.file, after, after, &*self.workers());
        }
        Ok(())
    }

    fn write_cached(&mut self, log: &mut Log, parts: &[&[u8]]) -> Result<()> {
        let offset = u64::from(log.slot) * BLOCK_BYTES;
        let Err(error) = log.file.write_at(offset, parts) else { return Ok(()) };
        // A part of the group may have been written. It must not become a group when the file grows again,
        // nor after a power loss: a header that ends in zeros is whole once its first bytes are there.
        let undone = log.file.set_length(offset);
        let undone = match fault::is(Fault::FailedAppendStays) {
            true => undone,
            false => undone.and_then(|()| log.file.sync()),
        };
        self.poisoned |= undone.is_err();
        log.preallocation = Preallocation::default();
        Err(error).at(|| format!("cannot write to {}", self.image.label))
    }

    /// Starts a direct write of a group; false where the group has to go through the page cache.
    fn start_direct(
        &mut self,
        log: &mut Log,
        header: &GroupHeader,
        parts: &[&[u8]],
        in_flight: &mut InFlight,
    ) -> Result<bool> {
        let stream_bytes_min = self.image.pool.store().limits().stream_bytes_min;
        // Blocks that lie together are one record.
        let bytes_min = header.records.len() as u64 * stream_bytes_min;
        if self.direct.refused || (header.crcs.len() as u64 * BLOCK_BYTES) < bytes_min {
            return Ok(false);
        }
        let disk = Arc::clone(&self.image.pool.files().world().disk);
        if log.direct.is_none() {
            log.direct = log.file.direct().ok();
        }
        let (Some(file), true) = (log.direct.clone(), in_flight.takes_writes(&*disk)) else {
            self.direct.refused = log.direct.is_none();
            return Ok(false);
        };
        let slots = log.slot..log.slot + header.blocks() as u32;
        if !log.preallocation.has_room(slots.end) {
            let ahead = (RESERVED_GROUPS * stream_bytes_min / BLOCK_BYTES) as u32;
            let to = (slots.start + ahead).min(SEGMENT_SLOTS).max(slots.end);
            let room = u64::from(to - slots.start) * BLOCK_BYTES;
            if let Err(error) = log.file.reserve(u64::from(slots.start) * BLOCK_BYTES, room) {
                // The write through the page cache may still find room, or says why it does not.
                self.direct.refused = error.kind() == std::io::ErrorKind::Unsupported;
                return Ok(false);
            }
            log.preallocation.took_room(to);
        }
        let mut data = self.direct.take_buffer(header.blocks() * BLOCK_BYTES as usize);
        parts.iter().for_each(|part| data.extend_from_slice(part));
        let bytes = data.capacity();
        while self.direct.is_full(bytes) {
            self.wait_for_one(in_flight)?;
        }
        let (number, index) = (header.group, log.index);
        let offset = u64::from(slots.start) * BLOCK_BYTES;
        let write = AsyncWrite { number, file, offset, data, result: Ok(0) };
        if let Err(AsyncWrite { data, .. }) = in_flight.start_write(&*disk, write) {
            self.direct.keep_buffer(data);
            return Ok(false);
        }
        let file = Arc::clone(&log.file);
        let slots = Slot(slots.start)..Slot(slots.end);
        let group = GroupInFlight { group: number, index, slots, file, bytes, completed: false };
        self.direct.started(group);
        Ok(true)
    }

    /// Has the next data segment created for each one that is half full: the open one, and one beside the log if
    /// `target_slot`, where the next group goes in that, says so.
    pub(crate) fn prepare_segments(&mut self, series: &Series, target_slot: Option<u32>) {
        let Some(log) = &self.log else { return };
        let half = self.limits().segment_slots / 2;
        let half_full = |slot: &u32| *slot >= half;
        let wanted =
            [Some(log.slot), target_slot].iter().flatten().filter(|s| half_full(s)).count();
        while self.prepared.len() < wanted {
            let sequence = series.marks().data + self.prepared.len() as u32;
            let name = series.name(SegmentKind::Data, sequence);
            if !series.may_give(name) {
                return;
            }
            let dead = self.spares.take();
            self.prepared.push_back(Prepared::start(&self.image, name, log.epoch, dead));
        }
    }

    /// See [`Spares::wanted`]. Where the medium is nearly full, no segments are kept any more.
    pub(crate) fn spares_wanted(&mut self, live_slots: u64) -> SparesWanted {
        if self.is_shipped() {
            // No key of an object store ever holds two contents.
            return SparesWanted::default();
        }
        if self.spares.count() > 0 && !spares::may_keep(&self.image) {
            self.remove_spares_later();
        }
        self.spares.wanted(&self.image, live_slots)
    }

    /// Keeps dead segments that were chosen ([`SparesWanted::choose`]) for later; removes them where the log was
    /// ended meanwhile.
    pub(crate) fn add_spares(&mut self, names: Vec<SegmentName>) {
        self.spares.add(names);
        if self.log.is_none() {
            self.remove_spares();
        }
    }

    /// Number of dead segments that are kept.
    pub(crate) fn spare_count(&self) -> u64 {
        self.spares.count()
    }

    /// Removes the dead segments that are kept.
    pub(crate) fn remove_spares(&mut self) {
        self.image.remove_segments(self.spares.take_all());
    }

    /// Gives the room of dead segments back, because the image is idle: of those that are kept, and of those that
    /// next segments were made of.
    pub(crate) fn give_dead_back(&mut self) {
        while self.prepared.iter().any(Prepared::is_of_dead)
            && let Some(prepared) = self.prepared.pop_back()
        {
            prepared.remove(&self.image);
        }
        self.remove_spares_later();
    }

    /// As [`Self::remove_spares`], on a worker: it takes longer than a request may wait.
    fn remove_spares_later(&mut self) {
        let names = self.spares.take_all();
        if !names.is_empty() {
            let image = Arc::clone(&self.image);
            let removing = self.workers().start(Box::new(move || image.remove_segments(names)));
            if let Some(before) = self.removing.replace(removing) {
                before.wait();
            }
        }
    }

    /// True while a worker shortens a closed segment.
    pub(crate) fn is_cutting(&mut self) -> bool {
        self.cutting.as_mut().is_some_and(|cutting| !cutting.is_finished())
    }

    /// Takes the completion of a direct write.
    pub(crate) fn completed(&mut self, write: AsyncWrite) {
        self.direct.completed(write, &self.image.label);
        self.poisoned |= self.direct.check().is_err();
    }

    /// Waits until one direct write has completed.
    fn wait_for_one(&mut self, in_flight: &mut InFlight) -> Result<()> {
        match in_flight.wait_for_write() {
            Some(write) => self.completed(write),
            None => {
                // No disk should do this. The data of the writes is gone.
                self.poisoned = true;
                let label = &self.image.label;
                self.direct.fail(format!("writes to {label} did not complete; reopen it"));
            }
        }
        self.direct.check()
    }

    /// Waits until all groups are in the page cache or on the medium.
    ///
    /// # Errors
    /// `Poisoned` where one could not be written.
    pub(crate) fn finish(&mut self, in_flight: &mut InFlight) -> Result<()> {
        while !self.direct.is_idle() {
            self.wait_for_one(in_flight)?;
        }
        self.direct.forget_completed();
        self.direct.check()
    }

    /// Waits until these slots of a segment can be read. `index`: that of the segment in the table.
    pub(crate) fn await_slots(
        &mut self,
        index: SegmentIndex,
        slots: &Range<Slot>,
        in_flight: &mut InFlight,
    ) {
        if self.direct.touch(index, slots) {
            // Where a write has failed, the checksums show it.
            let _ = self.finish(in_flight);
        }
    }

    /// True where no direct write is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.direct.is_idle()
    }

    /// Number of the last group, where its writer has to wait for [`Self::newly_stored`]: this group or one
    /// before it is in flight, or has completed and was not reported yet.
    ///
    /// # Errors
    /// `Poisoned` where no completion will be reported any more.
    pub(crate) fn unstored_group(&mut self) -> Result<Option<u64>> {
        self.direct.check()?;
        Ok(self.direct.begin_to_await().then(|| self.group_next - 1))
    }

    /// True where writers wait for [`Self::newly_stored`].
    pub(crate) fn is_awaited(&self) -> bool {
        self.direct.is_awaited()
    }

    /// The next completion for writers that wait: the number below which all groups are stored. `usable`
    /// says whether the image can be used at all.
    pub(crate) fn newly_stored(&mut self, usable: Result<()>) -> Option<Result<u64>> {
        // Nothing is acknowledged any more, whatever made the image unusable.
        if let Err(error) = self.direct.check().and(usable) {
            self.direct.end_awaiting();
            return Some(Err(error));
        }
        self.direct.newly_stored_below(self.group_next).map(Ok)
    }

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
    fn flush_shipped(&mut self) -> Result<()> {
        let workers = self.workers();
        let (log, group_next) = (&self.log, self.group_next);
        let open = log.as_ref().map(|log| open_end(log, group_next));
        let Some(shipped) = &mut self.shipped else { return Ok(()) };
        let flushed = shipped.flush_now(open.as_ref(), &*workers, self.image.pool.uptime());
        self.note_shipped(flushed)
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
