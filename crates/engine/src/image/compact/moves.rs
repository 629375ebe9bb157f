//! What the image's thread does about the blocks of a segment that is emptied: it finds the live ones, gives their
//! copies places, and lets the map name the copies once they are written.

use std::ops::Range;
use std::sync::Arc;

use marcot_format::group::{
    GROUP_BESIDE_LOG, GROUP_DATA_BLOCKS_MAX, GROUP_RECORDS_MAX, GroupHeader, Record, RecordKind,
    header_blocks,
};
use marcot_format::segment::SegmentKind;
use marcot_format::{BLOCK_BYTES, BlockAddress, MapEntry, SEGMENT_SLOTS, SegmentIndex, Slot};
use marcot_store::DiskFile;

use super::super::Image;
use super::super::move_job::{CopiesToWrite, Cut, MoveJob, MoveWork, Part, PartToRead};
use super::Victim;
use crate::error::{ErrorKind, IoContext, Result, fail};
use crate::fault::{self, Fault};
use crate::map::position;
use crate::segment::SegmentName;

/// First slot of copies in a target. The slot before is the journal's: see
/// [`crate::journal::Journal::take_segment_beside`].
const COPIES_SLOT: u32 = 2;

/// The segment that copies go to.
pub(super) struct Target {
    index: SegmentIndex,
    pub name: SegmentName,
    epoch: u64,
    file: Arc<dyn DiskFile>,
    /// Slot where the next group starts.
    pub slot: u32,
}

/// A block that is moved.
pub(super) struct Move {
    block: u64,
    from: BlockAddress,
    to: MapEntry,
}

impl Image {
    /// Takes in what the worker has done, and has it do more; false at the end of the segment.
    pub(super) fn move_some(&mut self, victim: &mut Victim) -> Result<bool> {
        let mut work = MoveWork::default();
        if let Some(job) = self.state.compaction.job.take() {
            let outcome = job.wait();
            let label = &self.identity.label;
            self.state.compaction.has_gap |= outcome.written.is_err();
            outcome.written.at(|| format!("cannot copy blocks of {label}"))?;
            work.buffer = outcome.buffer;
            self.finish_moves()?;
            if let Some(part) = outcome.part {
                let part = part.at(|| format!("cannot read segment {}", victim.name))?;
                if part.groups.is_empty() {
                    return Ok(false);
                }
                victim.slot += part.blocks;
                self.state.compaction.looked_at(part.blocks);
                work.write = self.begin_moves(victim, part)?;
            }
        }
        // No group of the segment may be on its way to the medium.
        let all = Slot(0)..Slot(SEGMENT_SLOTS);
        self.journal.await_slots(victim.index, &all, &mut self.in_flight);
        work.cut = self.state.compaction.cut.take();
        work.read = Some(PartToRead {
            file: Arc::clone(&victim.file),
            sequence: victim.name.sequence,
            slot: victim.slot,
        });
        let workers = Arc::clone(&self.identity.pool.files().world().workers);
        self.state.compaction.job = Some(MoveJob::start(&*workers, work));
        Ok(true)
    }

    /// Finds the live blocks of a part, and gives their copies places.
    fn begin_moves(&mut self, victim: &Victim, part: Part) -> Result<Option<CopiesToWrite>> {
        let mut live = Vec::new();
        for (at, header) in &part.groups {
            self.find_live(victim, &part, *at, header, &mut live)?;
        }
        if live.is_empty() {
            return Ok(None);
        }
        let (author, groups) = (self.identity.id.0, in_groups(&live));
        let slots: u32 =
            groups.iter().map(|group| group.header_slots() + group.blocks() as u32).sum();
        let target = self.target_for(slots)?;
        let (offset, mut slot) = (u64::from(target.slot) * BLOCK_BYTES, target.slot);
        target.slot += slots;
        let (mut moves, mut written) = (Vec::with_capacity(live.len()), Vec::new());
        for group in groups {
            slot += group.header_slots();
            let mut blocks = Vec::with_capacity(group.blocks());
            for block in &live[group.live.clone()] {
                let address = BlockAddress::of_block(target.index, Slot(slot));
                let to = MapEntry { address, crc: block.crc };
                moves.push(Move { block: block.block, from: block.address, to });
                blocks.push(block.at);
                slot += 1;
            }
            let header = GroupHeader {
                author,
                epoch: target.epoch,
                sequence: target.name.sequence,
                group: GROUP_BESIDE_LOG,
                durable_below: 0,
                crcs: live[group.live.clone()].iter().map(|block| block.crc).collect(),
                records: group.records,
            };
            let mut bytes = Vec::new();
            header.encode_into(&mut bytes);
            written.push((bytes, blocks));
        }
        let file = Arc::clone(&target.file);
        self.state.compaction.moves = moves;
        Ok(Some(CopiesToWrite { file, offset, groups: written, bytes: part.bytes }))
    }

    /// Adds those blocks of a group that the map still names. `start`: where the group starts in the part.
    fn find_live(
        &mut self,
        victim: &Victim,
        part: &Part,
        start: usize,
        header: &GroupHeader,
        live: &mut Vec<LiveBlock>,
    ) -> Result<()> {
        let mut at = start + header.header_blocks();
        for record in header.records.iter().filter(|r| r.kind == RecordKind::Write) {
            for block in record.block..record.block + record.count {
                let address = BlockAddress::of_block(victim.index, Slot((part.slot + at) as u32));
                let crc = header.crcs[at - start - header.header_blocks()];
                let (map, mut source) = self.state.parts();
                let entry = map.leaf(block, &mut source)?.map(|leaf| leaf[position(block, 0)]);
                let current =
                    |e: &MapEntry| { e.address } == address || fault::is(Fault::CompactDead);
                if let Some(entry) = entry.filter(current) {
                    let right = entry.crc == crc && !part.damaged.contains(&at);
                    if right || fault::is(Fault::CompactDead) {
                        live.push(LiveBlock { block, at, address: entry.address, crc });
                    } else {
                        // It stays where it is: a copy would hide the damage.
                        let (image, segment) = (&self.identity.label, &victim.name);
                        let slot = part.slot + at;
                        tracing::error!(%image, block, %segment, slot, "a block is damaged");
                    }
                }
                at += 1;
            }
        }
        Ok(())
    }

    /// Lets the map name the copies that were written, of those blocks that have not changed meanwhile.
    fn finish_moves(&mut self) -> Result<()> {
        let moves = std::mem::take(&mut self.state.compaction.moves);
        let Some(target) = self.state.compaction.target.as_ref().filter(|_| !moves.is_empty())
        else {
            return Ok(());
        };
        let (name, index, file) = (target.name, target.index, Arc::clone(&target.file));
        // Even where something fails below, some copies may be named.
        self.state.changed = true;
        self.journal.wrote_beside(name, file, moves.len() as u64 * BLOCK_BYTES);
        let files = Arc::clone(self.identity.pool.files());
        self.state.table.count(index, 0, moves.len() as u32, &files)?;
        for Move { block, from, to } in moves {
            self.state.prepare(block, 1)?;
            let (map, mut source) = self.state.parts();
            let entry = map.leaf(block, &mut source)?.map(|leaf| leaf[position(block, 0)]);
            let same = entry.is_some_and(|entry| { entry.address } == from);
            if same || fault::is(Fault::CompactDead) {
                // The copy is counted before the map names it: a block may be released at once.
                self.state.table.count(index, 1, 0, &files)?;
                let (map, mut source) = self.state.parts();
                map.set_run(block, &[to], &mut source)?;
            }
        }
        Ok(())
    }

    /// A target with room for that many slots.
    fn target_for(&mut self, slots: u32) -> Result<&mut Target> {
        self.begin_writing()?;
        let epoch = self.head.epoch;
        let slots_max = self.limits().segment_slots;
        let fits = |target: &Target| {
            let room = target.slot == COPIES_SLOT || target.slot + slots <= slots_max;
            room && target.slot + slots <= SEGMENT_SLOTS && target.epoch == epoch
        };
        let has_gap = self.state.compaction.has_gap;
        if has_gap || !self.state.compaction.target.as_ref().is_some_and(fits) {
            self.state.compaction.cut = self.end_target();
            let (name, file, index) = self.with_free_names(&[SegmentKind::Data], |image| {
                let Self { journal, series, state, .. } = image;
                journal.take_segment_beside(epoch, series, &mut state.table)
            })?;
            self.state.compaction.target =
                Some(Target { index, name, epoch, file, slot: COPIES_SLOT });
        }
        match &mut self.state.compaction.target {
            Some(target) => Ok(target),
            None => fail(ErrorKind::Io, "no segment for copies"),
        }
    }

    /// Nothing is copied to the present target any more.
    pub(in crate::image) fn close_target(&mut self) {
        if let Some(cut) = self.end_target() {
            cut.make();
        }
    }

    /// As [`Self::close_target`], but what an earlier segment left behind the copies is not cut off yet.
    fn end_target(&mut self) -> Option<Cut> {
        self.state.compaction.has_gap = false;
        let target = self.state.compaction.target.take()?;
        let Self { identity, state, .. } = self;
        state.table.close_segment(target.index, identity.pool.files(), &identity.label);
        let bytes = u64::from(target.slot) * BLOCK_BYTES;
        let cut = Cut { file: target.file, bytes };
        let limits = self.limits();
        (target.slot + limits.cut_slots_min() <= limits.segment_slots).then_some(cut)
    }
}

/// A block to be copied.
struct LiveBlock {
    block: u64,
    /// Where it lies in the part, in blocks.
    at: usize,
    address: BlockAddress,
    crc: u32,
}

/// A group of copies.
struct CopyGroup {
    records: Vec<Record>,
    /// Its blocks, among those to be copied.
    live: Range<usize>,
}

impl CopyGroup {
    fn blocks(&self) -> usize {
        self.live.len()
    }

    fn header_slots(&self) -> u32 {
        header_blocks(self.records.len(), self.blocks()) as u32
    }
}

/// Divides blocks into groups, as many as are needed.
fn in_groups(live: &[LiveBlock]) -> Vec<CopyGroup> {
    let mut groups: Vec<CopyGroup> = Vec::new();
    for (i, LiveBlock { block, .. }) in live.iter().enumerate() {
        let full =
            |group: &CopyGroup| group.blocks() == GROUP_RECORDS_MAX.min(GROUP_DATA_BLOCKS_MAX);
        if groups.last().is_none_or(full) {
            groups.push(CopyGroup { records: Vec::new(), live: i..i });
        }
        let Some(group) = groups.last_mut() else { continue };
        group.live.end = i + 1;
        match group.records.last_mut() {
            Some(record) if record.block + record.count == *block => record.count += 1,
            _ => group.records.push(Record { kind: RecordKind::Write, block: *block, count: 1 }),
        }
    }
    groups
}
