//! Giving space back while an image is idle.
//!
//! Overwritten and discarded data takes room until a head is durable that does not name it, and a segment
//! that is dead in part takes all of its room. While an image is in use, both are put off: checkpoints wait
//! for a length of log, compaction for an amount of dead slots. Once the image is idle, the following steps
//! are taken, as far as they give space back. They are small, and the image is served between them:
//!
//! 1. A checkpoint, after which segments are removed that its head does not name.
//! 2. The open segment is closed, if little in it is live.
//! 3. Dead slots are punched out of all other segments. This needs no room, so it comes before the next step.
//! 4. Segments that hold more group headers than live blocks are emptied. Another checkpoint follows.
//!
//! Invariants:
//! - Slots are punched only while the map in memory is that of the durable head and no log follows that head
//!   (I5).
//! - Work that is done is not begun again before the image has changed: an idle image writes nothing.

use std::collections::HashMap;
use std::sync::Arc;

use marcot_format::group::RecordKind;
use marcot_format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind};
use marcot_format::{BLOCK_BYTES, BlockAddress, MapEntry, SEGMENT_SLOTS, SegmentIndex, Slot};
use marcot_store::DiskFile;

use super::{Image, Source};
use crate::error::{ErrorKind, IoContext, Result};
use crate::fault::{self, Fault};
use crate::map::{Map, position};
use crate::segment::{SegmentName, group_at};
use crate::table::SegmentTable;

/// An idle image leaves one part in this many of the dead space alone that a busy image may keep: 1 MiB with
/// the default limits.
const IDLE_PART: u64 = 64;
/// Slots of a segment that one step looks at, unless a group is larger.
const STEP_SLOTS: u32 = 256;
/// Segments that snapshots name are looked at only in an image with at most this many snapshots, because
/// every snapshot is asked about every block.
const SNAPSHOTS_ASKED_MAX: usize = 16;

/// What is to be done next. `group` is the number of the image's next group when the work began: if it has
/// changed, the image is in use again.
enum Work {
    /// Looks whether there is anything to do.
    Look,
    /// Waits for a checkpoint, then closes the open segment.
    CloseOpen { group: u64 },
    /// Looks for segments to punch.
    Choose,
    /// Punches.
    Punch(Box<Punching>),
    /// Looks for a segment to be emptied.
    Empty,
    /// Waits for a checkpoint.
    End,
}

/// Segments that are being punched.
struct Punching {
    group: u64,
    version: u64,
    /// Segments still to be punched, each with its live slots at the least, and with the slots that were ever
    /// written with data. The latter are `None` where only snapshots name the segment: they do not know what
    /// was written after them.
    left: Vec<(SegmentName, u32, Option<u32>)>,
    open: Option<Opened>,
    /// The snapshots' roots: the number of the first data segment that is newer than the snapshot, its map
    /// and its table.
    snapshots: Vec<(u32, Map, SegmentTable)>,
}

struct Opened {
    name: SegmentName,
    /// Index in the head's table; `None` where the head names nothing of the segment.
    index: Option<SegmentIndex>,
    file: Arc<dyn DiskFile>,
    /// Slot where the next group starts, and the slot where the last group ends at the latest.
    slot: u32,
    end: u32,
}

/// What an idle image is doing.
#[derive(Default)]
pub(super) struct Idle {
    work: Option<Work>,
    /// The next group and the version of the head when everything was done.
    done_at: Option<(u64, u64)>,
    /// Data blocks written since then, and the number of mapped blocks at that time.
    appended: u64,
    mapped: u64,
    /// Segments that have been punched, and their live slots at the least.
    punched: HashMap<SegmentName, u32>,
    /// A process reads the image by an older head, so that some segments had to stay.
    pub waits_for_readers: bool,
}

impl Idle {
    /// True while an idle image gives space back.
    pub(super) fn is_at_work(&self) -> bool {
        self.work.is_some()
    }

    /// Counts what was appended to the log.
    pub(super) fn appended(&mut self, data_blocks: usize) {
        self.appended += data_blocks as u64;
    }
}

impl Image {
    /// Begins to give space back, because the image is idle.
    pub(super) fn begin_idle_work(&mut self) {
        // Open files would keep the space of segments that another process removes.
        self.identity.pool.files().forget_authors(&self.state.table.authors());
        self.state.compaction.map.forget_victim();
        self.journal.forget_write_behind();
        let writes = self.is_owner() && !self.is_poisoned();
        if writes
            && self.state.idle.work.is_none()
            && self.state.idle.done_at != Some(self.state_now())
        {
            // Slots with copies that the map does not name yet would look dead.
            self.state.compaction.abandon();
            self.close_target();
            self.journal.give_dead_back();
            self.state.idle.work = Some(Work::Look);
        }
    }

    /// True where memory has changes that the durable head does not name.
    fn is_newer_than_head(&self) -> bool {
        self.state.changed && !fault::is(Fault::PunchBeforeHead)
    }

    fn state_now(&self) -> (u64, u64) {
        (self.journal.group_next(), self.head.version)
    }

    /// Dead slots that are left alone.
    fn idle_slots_min(&self) -> u64 {
        (self.limits().dead_bytes_min / IDLE_PART / BLOCK_BYTES).max(1)
    }

    /// Does one step of the work that was begun; true if more is left to do. No checkpoint job may be
    /// running.
    pub(super) fn idle_step(&mut self) -> Result<bool> {
        if self.state.idle.waits_for_readers
            && !self.identity.pool.being_read(self.identity.id).unwrap_or(true)
        {
            self.state.idle.waits_for_readers = false;
            self.state.idle.work.get_or_insert(Work::Look);
        }
        let Some(work) = self.state.idle.work.take() else { return Ok(false) };
        match self.do_idle_work(work) {
            Ok(Some(work)) => {
                self.state.idle.work = Some(work);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => {
                self.end_idle_work();
                if error.kind() != ErrorKind::NoSpace {
                    return Err(error);
                }
                tracing::warn!(image = %self.identity.label, error = %error.sentence(), "space is given back later");
                Ok(false)
            }
        }
    }

    /// Nothing more is to be done until the image changes.
    pub(super) fn end_idle_work(&mut self) {
        self.close_target();
        self.state.compaction.map.forget_victim();
        self.journal.give_dead_back();
        self.state.idle.work = None;
        self.state.idle.done_at = Some(self.state_now());
        (self.state.idle.appended, self.state.idle.mapped) = (0, self.state.map.mapped_blocks());
    }

    /// True where emptying segments has to wait.
    pub(super) fn is_punching(&self) -> bool {
        matches!(self.state.idle.work, Some(Work::CloseOpen { .. } | Work::Choose | Work::Punch(_)))
    }

    /// A segment could not be emptied.
    pub(super) fn end_emptying(&mut self) {
        if self.state.idle.work.is_some() {
            self.end_idle_work();
        }
    }

    fn do_idle_work(&mut self, work: Work) -> Result<Option<Work>> {
        let next = match work {
            Work::Look => self.look_for_idle_work()?,
            // The image is in use again. The work starts again when it is idle again.
            Work::CloseOpen { group }
                if self.is_newer_than_head() && group != self.journal.group_next() =>
            {
                return Ok(None);
            }
            Work::CloseOpen { .. } => {
                if self.is_newer_than_head() {
                    // The checkpoint has failed. This one may spend the reserve.
                    self.checkpoint_for_room(|_| {})?;
                }
                self.close_open_segment()?;
                Some(Work::Choose)
            }
            Work::Choose => self.choose_segments()?,
            Work::Punch(punching) => return self.punch_on(punching),
            Work::Empty => self.empty_next()?,
            Work::End => None,
        };
        if next.is_none() {
            self.end_idle_work();
        }
        Ok(next)
    }

    fn look_for_idle_work(&mut self) -> Result<Option<Work>> {
        if !self.state.changed && !self.state.pages.has_pending() {
            // Segments that had to stay for a reader.
            self.remove_dead();
            if self.state.pages.has_dead() {
                self.state.idle.waits_for_readers = true;
            }
        }
        self.journal.give_back_reserved_room();
        let grown = self.state.map.mapped_blocks() as i64 - self.state.idle.mapped as i64;
        let died = self.state.idle.appended as i64 - grown;
        let first = self.state.idle.done_at.is_none();
        let worth = first || died >= self.idle_slots_min() as i64 || self.has_dead();
        if !worth {
            return Ok(None);
        }
        if first {
            self.find_forgotten()?;
        }
        self.compact_map_while_idle()?;
        let group = self.journal.group_next();
        if self.is_newer_than_head()
            && let Err(error) = self.begin_checkpoint()
            && error.kind() != ErrorKind::NoSpace
        {
            return Err(error);
        }
        Ok(Some(Work::CloseOpen { group }))
    }

    /// Makes sure that the next checkpoint drops segments from the table of which nothing is live.
    fn find_forgotten(&mut self) -> Result<()> {
        let files = self.identity.pool.files();
        let open = self.open_segments();
        let mut forgotten = Vec::new();
        self.state.table.for_each(files, |index, entry, name| {
            if entry.live == 0 && !open.contains(&name) {
                forgotten.push(index);
            }
            Ok(())
        })?;
        for index in forgotten {
            self.state.table.count(index, 0, 0, files)?;
            self.state.changed = true;
        }
        Ok(())
    }

    /// Closes the open segment, where that gives back more than punching would.
    fn close_open_segment(&mut self) -> Result<()> {
        let Some(log) = self.journal.open_segment() else { return Ok(()) };
        let (index, written) = (log.index, u64::from(log.slot) - 1);
        let entry = self.state.table.get(index, self.identity.pool.files())?;
        let headers = written.saturating_sub(u64::from(entry.used));
        let dead = entry.live == 0 && written >= self.idle_slots_min();
        if dead || self.is_worth_emptying(u64::from(entry.live), headers) {
            self.end_log()?;
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Copying the live blocks of a segment must give back more than it takes, and more than punching
    /// would.
    fn is_worth_emptying(&self, live: u64, headers: u64) -> bool {
        live > 0 && headers >= self.idle_slots_min() && live <= headers
    }

    fn empty_next(&mut self) -> Result<Option<Work>> {
        for (index, name, entry) in self.closed_private_segments(SegmentKind::Data)? {
            // The length of the file is known only after a look at it.
            let headers_max = u64::from(SEGMENT_SLOTS - 1).saturating_sub(u64::from(entry.used));
            if !self.is_worth_emptying(u64::from(entry.live), headers_max) {
                continue;
            }
            let file = self.identity.pool.files().get(name)?;
            let length = file.length().at(|| format!("cannot look at segment {name}"))?;
            let slots = (length / BLOCK_BYTES).saturating_sub(1);
            let headers = slots.saturating_sub(u64::from(entry.used));
            if self.is_worth_emptying(u64::from(entry.live), headers) {
                self.empty(index, name, file);
                return Ok(Some(Work::Empty));
            }
        }
        if self.state.changed {
            self.begin_checkpoint()?;
        }
        Ok(Some(Work::End))
    }

    /// Chooses the segments to be punched: own segments that no clone can name.
    fn choose_segments(&mut self) -> Result<Option<Work>> {
        if self.is_shipped() {
            // What was uploaded never changes.
            return Ok(Some(Work::Empty));
        }
        if self.postponed_for_readers() {
            self.state.idle.waits_for_readers = true;
            return Ok(Some(Work::Empty));
        }
        let files = self.identity.pool.files();
        let (own, id) = (self.identity.pool.id(), self.identity.id);
        // The live slots of a segment are those of the root that names most of it. All roots together may
        // name more, so a segment may be looked at in vain.
        let mut found: HashMap<SegmentName, (u32, Option<u32>)> = HashMap::new();
        let mut gather = |table: &mut SegmentTable, is_head: bool| {
            table.for_each(files, |_, entry, name| {
                if name.kind == SegmentKind::Data && name.author == id && name.pool == own {
                    let (live, used) = found.entry(name).or_default();
                    *live = (*live).max(entry.live);
                    *used = if is_head { Some(entry.used) } else { *used };
                }
                Ok(())
            })
        };
        gather(&mut self.state.table, true)?;
        let mut snapshots = Vec::new();
        let asked = self.head.snapshots.len() <= SNAPSHOTS_ASKED_MAX;
        for snapshot in self.head.snapshots.iter().filter(|_| asked) {
            let root = snapshot.root.clone().unwrap_or_else(super::empty_root);
            let (map, mut table) = self.root_of(Some(snapshot.id)).open(&root)?;
            gather(&mut table, false)?;
            snapshots.push((snapshot.marks.unwrap_or_default().data, map, table));
        }
        let shared = self.head.shared_below.unwrap_or_default().data;
        self.state.idle.punched.retain(|name, _| found.contains_key(name));
        let mut left = Vec::new();
        let open = self.journal.open_name();
        for (name, (live, used)) in found {
            // A closed segment of which nothing is named is removed as a whole, and may be gone already.
            if live == 0 && open != Some(name) {
                continue;
            }
            let may = name.sequence >= shared && (asked || self.head.is_private(&name));
            let dead = used.is_none_or(|u| u64::from(live) + self.idle_slots_min() <= u64::from(u));
            if may && dead && self.state.idle.punched.get(&name) != Some(&live) {
                left.push((name, live, used));
            }
        }
        left.sort_unstable();
        let (group, version) = self.state_now();
        let punching = Punching { group, version, left, open: None, snapshots };
        Ok(Some(Work::Punch(Box::new(punching))))
    }

    /// Compares what a segment takes on the medium with what it would take without its dead slots.
    fn is_worth_punching(&self, name: SegmentName, live: u32, used: Option<u32>) -> Result<bool> {
        let context = || format!("cannot look at segment {name}");
        let file = self.identity.pool.files().get(name)?;
        let length = file.length().at(context)? / BLOCK_BYTES;
        let taken = file.allocated_bytes().at(context)? / BLOCK_BYTES;
        let (length, taken) = match self.journal.open_segment().filter(|log| log.name == name) {
            // Preallocated room is not part of it.
            Some(log) => {
                let end = length.min(u64::from(log.slot));
                (end, taken.saturating_sub(length - end))
            }
            None => (length, taken),
        };
        let headers = used.map_or(0, |used| length.saturating_sub(1 + u64::from(used)));
        let needed = 1 + headers + u64::from(live);
        Ok(taken >= needed + self.idle_slots_min())
    }

    fn punch_on(&mut self, mut punching: Box<Punching>) -> Result<Option<Work>> {
        let same = (punching.group, punching.version) == self.state_now()
            && self.head.log == Some(self.log_position())
            && !self.state.changed;
        if !same && !fault::is(Fault::PunchBeforeHead) {
            // In use again, or a command has changed the head.
            return Ok(None);
        }
        if punching.open.is_none() {
            let Some((name, live, used)) = punching.left.pop() else {
                self.identity.pool.keep_reserve();
                return Ok(Some(Work::Empty));
            };
            if self.is_worth_punching(name, live, used)? {
                punching.open = self.open_to_punch(name)?;
            }
            self.state.idle.punched.insert(name, live);
        }
        if let Some(opened) = &mut punching.open
            && !self.punch_some(opened, &mut punching.snapshots)?
        {
            punching.open = None;
        }
        self.evict(self.limits().map_memory_bytes_soft());
        Ok(Some(Work::Punch(punching)))
    }

    /// Opens a segment for punching; `None` where nothing may be punched out of it.
    fn open_to_punch(&mut self, name: SegmentName) -> Result<Option<Opened>> {
        let context = || format!("cannot give space of segment {name} back");
        let files = self.identity.pool.files();
        let file = files.open_as_it_is(name, true).map_err(|error| error.context(context()))?;
        let mut header = vec![0; SEGMENT_HEADER_BYTES];
        let n = file.read_at(0, &mut header).at(context)?;
        if SegmentHeader::is_read_only(&header[..n]) {
            return Ok(None);
        }
        let mut index = None;
        self.state.table.for_each(files, |at, _, found| {
            if found == name {
                index = Some(at);
            }
            Ok(())
        })?;
        let log = self.journal.open_segment().filter(|log| log.name == name);
        let end = log.map_or(SEGMENT_SLOTS, |log| log.slot);
        Ok(Some(Opened { name, index, file, slot: 1, end }))
    }

    /// Punches the dead slots out of the next groups; false at the end of the segment.
    fn punch_some(
        &mut self,
        opened: &mut Opened,
        snapshots: &mut [(u32, Map, SegmentTable)],
    ) -> Result<bool> {
        let stop = opened.end.min(opened.slot + STEP_SLOTS);
        while opened.slot < stop {
            let Some(header) = group_at(&*opened.file, Slot(opened.slot), opened.name.sequence)
                .at(|| "cannot read a segment".to_owned())?
            else {
                return Ok(false);
            };
            let blocks = header.blocks() as u32;
            if opened.slot + blocks > opened.end {
                return Ok(false);
            }
            let mut slot = opened.slot + header.header_blocks() as u32;
            let mut dead = slot..slot;
            for record in header.records.iter().filter(|r| r.kind == RecordKind::Write) {
                for block in record.block..record.block + record.count {
                    if self.is_named(opened, block, Slot(slot), snapshots)? {
                        self.punch_slots(opened, &dead)?;
                        dead = slot + 1..slot + 1;
                    } else {
                        dead.end = slot + 1;
                    }
                    slot += 1;
                }
            }
            self.punch_slots(opened, &dead)?;
            opened.slot += blocks;
        }
        Ok(opened.slot < opened.end)
    }

    fn punch_slots(&self, opened: &Opened, slots: &std::ops::Range<u32>) -> Result<()> {
        if slots.is_empty() {
            return Ok(());
        }
        let at = u64::from(slots.start) * BLOCK_BYTES;
        let length = u64::from(slots.end - slots.start) * BLOCK_BYTES;
        let context = || format!("cannot give space of segment {} back", opened.name);
        // Splitting an extent may take a block of the file system's own.
        self.identity.pool.with_reserve(|| opened.file.punch(at, length).at(context))
    }

    /// True where the head or a snapshot names a slot of a segment, which holds this block.
    fn is_named(
        &mut self,
        opened: &Opened,
        block: u64,
        slot: Slot,
        snapshots: &mut [(u32, Map, SegmentTable)],
    ) -> Result<bool> {
        let files = self.identity.pool.files();
        let at = |leaf: Option<&[MapEntry]>| leaf.map(|leaf| leaf[position(block, 0)].address);
        if let Some(index) = opened.index {
            let (map, mut source) = self.state.parts();
            let leaf = map.leaf(block, &mut source)?;
            if at(leaf.map(|leaf| &leaf[..])) == Some(BlockAddress::of_block(index, slot)) {
                return Ok(true);
            }
        }
        for (below, map, table) in snapshots {
            if opened.name.sequence >= *below {
                continue;
            }
            let leaf = map.leaf(block, &mut Source::new(table, Arc::clone(files)))?;
            let address = at(leaf.map(|leaf| &leaf[..]));
            let named = address.filter(|a| !a.is_hole() && !a.is_nowhere() && a.slot() == slot);
            if let Some(address) = named
                && table.name(address.index(), files)? == opened.name
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
