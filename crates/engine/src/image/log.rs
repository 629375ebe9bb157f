//! The open data segment, which is the journal: appending groups and making them durable.

use std::borrow::Cow;
use std::sync::Arc;

use marcot_format::group::{
    GROUP_DATA_BLOCKS_MAX, GROUP_RECORDS_MAX, GroupHeader, LOG_SEGMENTS_MAX, Record, RecordKind,
    header_blocks,
};
use marcot_format::record::{HeadRecord, LogPosition};
use marcot_format::segment::SegmentKind;
use marcot_format::{BLOCK_BYTES, SEGMENT_SLOTS, crc32c};
use marcot_store::DiskFile;

use super::Image;
use super::preallocation::Preallocation;
use super::write_behind::WriteBehind;
use crate::error::{Error, ErrorKind, IoContext, Result, fail};
use crate::fault::{self, Fault};
use crate::segment::SegmentName;

/// The data segment that is being written.
pub(crate) struct Log {
    pub name: SegmentName,
    pub file: Arc<dyn DiskFile>,
    /// The same past the page cache, from the first stream on.
    pub direct: Option<Arc<dyn DiskFile>>,
    /// Its index in the segment table.
    pub index: u32,
    /// Block where the next group starts.
    pub slot: u32,
    /// Written since the last sync.
    pub dirty: bool,
    /// Earlier segments that are not durable yet.
    pub unsynced: Vec<(SegmentName, Arc<dyn DiskFile>)>,
    /// Groups with smaller numbers are durable; each group says so, see [`GroupHeader`].
    pub durable_below: u64,
    pub preallocation: Preallocation,
    header: Vec<u8>,
}

impl Log {
    pub(crate) fn position(&self, group: u64) -> LogPosition {
        LogPosition { segment: self.name.sequence, slot: self.slot, group }
    }
}

/// A group being gathered.
#[derive(Default)]
pub(crate) struct Group<'a> {
    pub records: Vec<Record>,
    parts: Vec<Cow<'a, [u8]>>,
    pub data_blocks: usize,
}

impl<'a> Group<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// True where the group says something of a block.
    pub(crate) fn has(&self, block: u64) -> bool {
        self.records.iter().any(|r| r.block <= block && block - r.block < r.count)
    }

    /// Data blocks that still fit; 0 where the group must be appended first.
    pub(crate) fn room_blocks(&self) -> usize {
        if self.records.len() >= GROUP_RECORDS_MAX {
            return 0;
        }
        GROUP_DATA_BLOCKS_MAX - self.data_blocks
    }

    /// Adds whole blocks, at most [`Self::room_blocks`] of them.
    pub(crate) fn write(&mut self, block: u64, data: Cow<'a, [u8]>) {
        let count = data.len() as u64 / BLOCK_BYTES;
        self.data_blocks += count as usize;
        self.parts.push(data);
        match self.records.last_mut() {
            Some(r) if r.kind == RecordKind::Write && r.block + r.count == block => {
                r.count += count;
            }
            _ => self.records.push(Record { kind: RecordKind::Write, block, count }),
        }
    }

    /// Adds a run of holes.
    pub(crate) fn discard(&mut self, block: u64, count: u64) {
        self.records.push(Record { kind: RecordKind::Discard, block, count });
    }
}

impl Image {
    /// Makes the image ready to append: a new epoch, a fresh data segment, and a head that names
    /// both, durable before the first group.
    pub(super) fn begin_writing(&mut self) -> Result<()> {
        self.check_owner()?;
        if self.log.is_some() {
            return Ok(());
        }
        self.settle()?;
        self.check_not_fenced()?;
        self.remove_leftovers()?;
        if !self.spends_reserve {
            self.pool.keep_reserve();
        }
        self.pool.create_own_set(self.id)?;
        let epoch = self.head.epoch + 1;
        self.write_behind = WriteBehind::default();
        self.open_log(epoch, Vec::new(), self.group_next)?;
        let started = self.publish_start(epoch);
        if let Err(error) = started {
            if let Some(log) = self.log.take() {
                // The number stays used; the file holds nothing.
                self.dead.push(log.name);
            }
            if error.kind() == ErrorKind::NoSpace
                && self.spends_reserve
                && self.may_store_in_parts()
            {
                self.store_log_in_parts()?;
                self.checkpoint()?;
                return self.begin_writing();
            }
            return Err(error);
        }
        if std::mem::take(&mut self.unclean)
            && let Err(error) = self.remove_strays()
        {
            tracing::warn!(image = %self.label, %error, "segments may be left behind; 'gc' removes them");
        }
        Ok(())
    }

    fn publish_start(&mut self, epoch: u64) -> Result<()> {
        if self.changed {
            return self.checkpoint_with(|head| head.epoch = epoch);
        }
        let (log, marks) = (self.log_position(), self.next);
        self.publish(|head| {
            head.epoch = epoch;
            head.log = Some(log);
            head.marks = Some(marks);
        })
    }

    /// Removes segments that a crashed owner created and no head names.
    fn remove_leftovers(&mut self) -> Result<()> {
        let marks = self.next;
        self.remove_unnamed(|name| name.sequence >= marks.of(name.kind))
    }

    /// Removes segments of the image's own that no head names. Whoever owned the image before may have made
    /// them, and is stopped first.
    pub(super) fn remove_unnamed(&mut self, unnamed: impl Fn(&SegmentName) -> bool) -> Result<()> {
        let mut left = self.pool.files().list(self.pool.id(), self.own_set())?;
        left.retain(unnamed);
        if !left.is_empty() {
            self.fence()?;
        }
        left.into_iter().try_for_each(|name| self.pool.files().remove(name).map(drop))
    }

    /// Creates the next data segment and goes on in it.
    fn open_log(
        &mut self,
        epoch: u64,
        unsynced: Vec<(SegmentName, Arc<dyn DiskFile>)>,
        durable_below: u64,
    ) -> Result<()> {
        let (name, file) = match self.take_prepared(epoch) {
            Some(prepared) => prepared,
            None => self.create_segment(SegmentKind::Data, epoch)?,
        };
        let files = Arc::clone(self.pool.files());
        let index = self.table.add(name, &files)?;
        let header = Vec::new();
        let (slot, dirty, direct, preallocation) = (1, false, None, Preallocation::default());
        self.log = Some(Log {
            name,
            file,
            direct,
            index,
            slot,
            dirty,
            unsynced,
            durable_below,
            preallocation,
            header,
        });
        Ok(())
    }

    /// Creates the next segment of a series.
    pub(super) fn create_segment(
        &mut self,
        kind: SegmentKind,
        epoch: u64,
    ) -> Result<(SegmentName, Arc<dyn DiskFile>)> {
        let sequence = *self.next_of(kind);
        let name = SegmentName { pool: self.pool.id(), copies: 0, author: self.id, kind, sequence };
        let files = self.pool.files();
        let created = match files.create(name, epoch) {
            Err(error) if error.kind() == ErrorKind::Exists => {
                // Only a stale owner can have made it. If the head is still ours, so is the name.
                self.fence()?;
                let files = self.pool.files();
                files.remove(name)?;
                files.create(name, epoch)
            }
            created => created,
        };
        let file = created?;
        *self.next_of(kind) += 1;
        Ok((name, file))
    }

    fn next_of(&mut self, kind: SegmentKind) -> &mut u32 {
        match kind {
            SegmentKind::Data => &mut self.next.data,
            SegmentKind::Map => &mut self.next.map,
            SegmentKind::Table => &mut self.next.table,
        }
    }

    /// Appends a group and applies it to the map. The pages and table entries it touches must be
    /// loaded (see [`Image::prepare`]), so that nothing but the append itself can fail.
    pub(super) fn append(&mut self, group: Group<'_>) -> Result<()> {
        if group.is_empty() {
            return Ok(());
        }
        let blocks = header_blocks(group.records.len(), group.data_blocks) + group.data_blocks;
        self.go_on_in_a_segment_with_room(blocks as u32)?;
        let Some(log) = &mut self.log else { return fail(ErrorKind::Io, "the log is not open") };
        // Its counts change once the group is written.
        self.table.get(log.index, self.pool.files())?;
        let crcs: Vec<u32> = group
            .parts
            .iter()
            .flat_map(|part| part.chunks_exact(BLOCK_BYTES as usize))
            .map(crc32c)
            .collect();
        let header = GroupHeader {
            author: self.id.0,
            epoch: self.head.epoch,
            segment: log.name.sequence,
            group: self.group_next,
            durable_below: match () {
                () if fault::is(Fault::DurableTooFar) => self.group_next,
                () if fault::is(Fault::DurableUntold) => 0,
                () => log.durable_below,
            },
            records: group.records,
            crcs,
        };
        let index = log.index;
        let data_slot = log.slot + header.header_blocks() as u32;
        self.write_group(&header, &group.parts, blocks as u32)?;
        self.group_next += 1;
        self.log_bytes += blocks as u64 * BLOCK_BYTES;
        self.compaction.appended(blocks as u32);
        self.rest.appended(header.crcs.len());
        self.changed = true;
        self.apply(&header, index, data_slot, false).inspect_err(|error| {
            tracing::error!(image = %self.label, %error, "a logged write could not be mapped");
            self.poisoned = true;
        })?;
        self.prepare_segment();
        Ok(())
    }

    /// Writes a group at the end of the log, which is not longer afterwards where that fails.
    fn write_group(
        &mut self,
        header: &GroupHeader,
        data: &[Cow<'_, [u8]>],
        blocks: u32,
    ) -> Result<()> {
        let Some(mut log) = self.log.take() else { return Ok(()) };
        let mut header_bytes = std::mem::take(&mut log.header);
        header.encode_into(&mut header_bytes);
        let mut parts: Vec<&[u8]> = Vec::with_capacity(data.len() + 1);
        parts.push(&header_bytes);
        parts.extend(data.iter().map(|part| &**part));
        log.dirty = true;
        let before = log.slot;
        let written = match self.start_direct(&mut log, header, &parts) {
            // Its pages may lie in one folio with the end of what is under way: none of those may be
            // dirty when the kernel forgets what it has of that.
            Ok(false) => self
                .finish_direct()
                .and_then(|()| self.write_cached(&mut log, &parts))
                .map(|()| false),
            started => started,
        };
        log.header = header_bytes;
        if let Ok(direct) = written {
            log.slot += blocks;
            let workers = &*self.pool.files().world().workers;
            if direct {
                self.write_behind.end_stretch(&log.file, before, log.slot, workers);
            } else {
                self.write_behind.appended(&header.records);
                if self.write_behind.is_complete(log.slot) {
                    self.write_behind.end_stretch(&log.file, log.slot, log.slot, workers);
                }
            }
        }
        self.log = Some(log);
        written.map(drop)
    }

    fn write_cached(&mut self, log: &mut Log, parts: &[&[u8]]) -> Result<()> {
        let offset = u64::from(log.slot) * BLOCK_BYTES;
        let Err(error) = log.file.write_at(offset, parts) else { return Ok(()) };
        // What arrived must not come back as a group once the file grows again, nor after a loss
        // of power: a header whose end is zeros is whole with its first bytes.
        let undone = log.file.set_length(offset);
        let undone = match fault::is(Fault::FailedAppendStays) {
            true => undone,
            false => undone.and_then(|()| log.file.sync()),
        };
        self.poisoned |= undone.is_err();
        log.preallocation = Preallocation::default();
        Err(error).at(|| format!("cannot write to {}", self.label))
    }

    fn go_on_in_a_segment_with_room(&mut self, blocks: u32) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        if log.slot + blocks <= SEGMENT_SLOTS {
            return Ok(());
        }
        self.check_log_length(log.name.sequence + 1)?;
        let Some(mut log) = self.log.take() else { return Ok(()) };
        let mut unsynced = std::mem::take(&mut log.unsynced);
        self.write_behind.end_stretch(&log.file, log.slot, 0, &*self.pool.files().world().workers);
        if log.dirty {
            unsynced.push((log.name, Arc::clone(&log.file)));
        }
        let (epoch, durable_below) = (self.head.epoch, log.durable_below);
        let mut opened = self.open_log(epoch, unsynced.clone(), durable_below);
        if opened.as_ref().is_err_and(|error| error.kind() == ErrorKind::NoSpace)
            && self.finish_direct().is_ok()
            && log.preallocation.cut(&*log.file, log.slot)
        {
            // The room that had been taken ahead may be what the next segment lacks.
            opened = self.open_log(epoch, unsynced.clone(), durable_below);
        }
        if let Err(error) = opened {
            log.unsynced = unsynced;
            self.log = Some(log);
            return Err(error);
        }
        self.leave_segment(log.index);
        self.cut_log(log);
        Ok(())
    }

    /// Fails where the log would go on in a segment that no replay reads: for that long, no checkpoint
    /// has succeeded.
    fn check_log_length(&mut self, sequence: u32) -> Result<()> {
        let too_long = |head: &HeadRecord| {
            sequence - head.log.unwrap_or_default().segment.min(sequence) >= LOG_SEGMENTS_MAX
        };
        if too_long(&self.head) {
            self.settle()?;
        }
        if !too_long(&self.head) {
            return Ok(());
        }
        let message = format!(
            "the log of {} is as long as a log can be, because no checkpoint succeeds; the log of the \
             process that serves it says why",
            self.label
        );
        fail(ErrorKind::NoSpace, message)
    }

    /// Asks the medium for what [`Self::sync_log`] will wait for.
    pub(super) fn write_out_log(&self) {
        if let Some(log) = &self.log {
            self.write_behind.hurry(&*log.file, log.slot);
        }
    }

    /// Makes the log durable.
    pub(super) fn sync_log(&mut self) -> Result<()> {
        if !fault::is(Fault::FlushUnderWay) {
            self.finish_direct()?;
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
            self.log_lost.set();
        }
        if let Err(error) = result.and_then(|()| self.log_lost.check()) {
            self.poisoned = !fault::is(Fault::ForgetPoison);
            tracing::error!(image = %self.label, %error, "flush failed; the image must be reopened");
            let message = format!("flushing {} failed; reopen it", self.label);
            return Err(Error::new(ErrorKind::Poisoned, format!("{message}: {error}")));
        }
        log.unsynced.clear();
        log.dirty = false;
        log.durable_below = group_next;
        Ok(())
    }

    /// Gives back what lies behind the last group of a segment that was left for good.
    fn cut_log(&mut self, mut log: Log) {
        if self.direct.is_idle() {
            log.preallocation.cut(&*log.file, log.slot);
            return;
        }
        // It waits for what is being written there, which a worker can do.
        let workers = &*self.pool.files().world().workers;
        let cut = workers.start(Box::new(move || {
            log.preallocation.cut(&*log.file, log.slot);
        }));
        if let Some(before) = self.cutting.replace(cut) {
            before.wait();
        }
    }

    /// The segments that [`Self::sync_log`] would sync, opened anew for another thread.
    pub(super) fn log_to_sync(&self) -> Result<Vec<Arc<dyn DiskFile>>> {
        let Some(log) = &self.log else { return Ok(Vec::new()) };
        let unsynced = log.unsynced.iter().map(|(name, _)| *name);
        let open = Some(log.name).filter(|_| log.dirty);
        let files = self.pool.files();
        unsynced.chain(open).map(|name| files.open_as_it_is(name, false)).collect()
    }

    /// Makes the log durable and leaves the open segment for good.
    pub(super) fn retire_log(&mut self) -> Result<()> {
        self.sync_log()?;
        if let Some(log) = self.log.take() {
            self.leave_segment(log.index);
            self.cut_log(log);
        }
        self.remove_prepared();
        Ok(())
    }
}
