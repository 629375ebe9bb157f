//! Recovery: the log after the head's position, up to the first group that does not verify.
//!
//! Such a group is the end of the log, unless a later group says that it was durable: then it was damaged
//! since. If only its data is damaged, the group is applied all the same, because the damaged blocks fail
//! their checksums whenever they are read. If its header is damaged, what it wrote is unknown.

use std::collections::HashMap;
use std::sync::Arc;

use marcot_format::group::{GROUP_MAGIC, GroupHeader, LOG_SEGMENTS_MAX};
use marcot_format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind};
use marcot_format::{BLOCK_BYTES, FormatError, SEGMENT_SLOTS, SegmentIndex, Slot, crc32c};
use marcot_store::DiskFile;

use super::Image;
use super::overlay::Overlay;
use super::state::DamagedPages;
use crate::error::{Error, ErrorKind, IoContext, Remedy, Result};
use crate::fault::{self, Fault};
use crate::journal::Placed;
use crate::segment::{SegmentName, group_at, read_blocks};

const BLOCK: usize = BLOCK_BYTES as usize;
/// The log takes at most one part in this many of a reader's memory for pages.
const OVERLAY_PART: u64 = 2;
/// Blocks read at a time in search of a later group (1 MiB).
const SCAN_BLOCKS: usize = 256;
/// What an operator can do about a damaged log.
const REMEDY: &str = "; open the image read-only to save what it has, or repair its pool to give up the log \
                      from there on";

/// A segment being replayed.
struct Cursor {
    name: SegmentName,
    file: Arc<dyn DiskFile>,
    slot: u32,
    /// The segment's header is intact.
    whole: bool,
}

/// What replay does where the log is damaged, and not merely at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DamagedLog {
    /// Refuses: an operator must decide whether what comes after the damage is to be given up.
    Refuse,
    /// Takes the damage for the end of the log.
    Cut,
}

/// What was found at a cursor.
enum Found {
    /// The next group, whole.
    Group(GroupHeader),
    /// The header of the next group. Some of its data does not verify: either it never reached the medium, or
    /// it was damaged afterwards.
    Torn(GroupHeader, Option<Error>),
    /// No header of the next group.
    Nothing,
}

impl Image {
    /// Applies the log after the head's position to the map in memory. Writes nothing. `began_here` is false where
    /// the owner before was on another host, which may have shipped nothing of its log.
    pub(super) fn replay(&mut self, damaged_log: DamagedLog, began_here: bool) -> Result<()> {
        let Some(log) = self.head.log else { return Ok(()) };
        let created = began_here && log.sequence < self.head.marks.unwrap_or_default().data;
        let refuse = created && damaged_log == DamagedLog::Refuse;
        let Some(mut cursor) = self.open_cursor(log.sequence, log.slot)? else {
            return if refuse { self.lost_log(log.sequence) } else { Ok(()) };
        };
        let whole = cursor.whole;
        self.unclean = true;
        let mut index = None;
        let first = self.journal.group_next();
        let mut overlay = (!self.is_owner()).then(|| Overlay::new(self.overlay_bytes_max()));
        while let Some(header) = self.next_to_apply(&mut cursor, damaged_log)? {
            let index = match index {
                Some((sequence, index)) if sequence == cursor.name.sequence => index,
                _ => index.insert((cursor.name.sequence, self.index_of(cursor.name)?)).1,
            };
            self.check_length(log.sequence, &cursor)?;
            let data_slot = Slot(cursor.slot).after(header.header_blocks() as u32);
            let placed = Placed { header, index, data_slot };
            match &mut overlay {
                Some(overlay) => overlay.apply(&placed),
                None => {
                    self.state.apply(&placed, DamagedPages::GiveUp)?;
                    self.spill()?;
                }
            }
            cursor.slot += placed.header.blocks() as u32;
            self.journal.found_groups(self.journal.group_next() + 1);
            self.state.changed = true;
        }
        self.overlay = overlay;
        self.series.used(cursor.name);
        let groups = self.journal.group_next() - first;
        if groups == 0 && !whole && refuse {
            return self.lost_log(log.sequence);
        }
        if groups > 0 {
            tracing::info!(image = %self.identity.label, groups, "replayed the log");
        }
        Ok(())
    }

    /// Memory for a reader's overlay, in bytes.
    fn overlay_bytes_max(&self) -> u64 {
        self.limits().map_memory_bytes / OVERLAY_PART
    }

    /// Fails where the log is longer than any writer makes it.
    fn check_length(&self, first: u32, cursor: &Cursor) -> Result<()> {
        if cursor.name.sequence - first < LOG_SEGMENTS_MAX {
            return Ok(());
        }
        let message = format!(
            "the log of {} is longer than {LOG_SEGMENTS_MAX} segments, and no writer makes a log that long",
            self.identity.label
        );
        Err(Error::new(ErrorKind::Corrupt, message).with_remedy(Remedy::RepairPool))
    }

    /// Makes sure that the overlay, if there is one, is complete for `[from, to)`. These blocks lie under one
    /// leaf.
    pub(super) fn overlay_for(&mut self, from: u64, to: u64) -> Result<Option<&Overlay>> {
        let Some(mut overlay) = self.overlay.take() else { return Ok(None) };
        if !overlay.covers(from, to) {
            overlay.restart(from);
            if let Err(error) = self.read_log_again(&mut overlay) {
                // The overlay is incomplete.
                overlay.forget();
                self.overlay = Some(overlay);
                return Err(error);
            }
        }
        self.overlay = Some(overlay);
        Ok(self.overlay.as_ref())
    }

    /// Applies the headers of the replayed groups to an overlay, once more. Returns the slots of data that
    /// they have in each segment, by its index in the table.
    pub(super) fn read_log_again(
        &mut self,
        overlay: &mut Overlay,
    ) -> Result<HashMap<SegmentIndex, u32>> {
        let log = self.head.log.unwrap_or_default();
        let message = format!("the log of {} has changed while it was read", self.identity.label);
        let gone = || Error::new(ErrorKind::Corrupt, message.clone());
        let mut cursor = self.open_cursor(log.sequence, log.slot)?.ok_or_else(gone)?;
        let (mut index, mut slots) = (None, HashMap::new());
        for group in log.group..self.journal.group_next() {
            let header = match self.header_here(&cursor, group)? {
                Some(header) => header,
                None => {
                    let next = cursor.name.sequence + 1;
                    cursor = self.open_cursor(next, 1)?.ok_or_else(gone)?;
                    self.header_here(&cursor, group)?.ok_or_else(gone)?
                }
            };
            let index = match index {
                Some((sequence, index)) if sequence == cursor.name.sequence => index,
                _ => index.insert((cursor.name.sequence, self.index_of(cursor.name)?)).1,
            };
            let data_slot = Slot(cursor.slot).after(header.header_blocks() as u32);
            let placed = Placed { header, index, data_slot };
            overlay.apply(&placed);
            *slots.entry(index).or_default() += placed.header.crcs.len() as u32;
            cursor.slot += placed.header.blocks() as u32;
        }
        Ok(slots)
    }

    /// Fails because the first segment of the log is missing or damaged. Groups in it may have been flushed,
    /// so the log must not count as empty.
    fn lost_log(&self, sequence: u32) -> Result<()> {
        let message = format!(
            "data segment {sequence} of {}, where its log begins, is missing or damaged{REMEDY}",
            self.identity.label
        );
        Err(Error::new(ErrorKind::Corrupt, message).with_remedy(Remedy::RepairPool))
    }

    /// The next group, at the cursor or at the start of the segment after it; in that case the cursor is
    /// moved there. `None` at the end of the log.
    fn next_to_apply(
        &mut self,
        cursor: &mut Cursor,
        damaged_log: DamagedLog,
    ) -> Result<Option<GroupHeader>> {
        let here = self.next_group(cursor)?;
        if let Found::Group(header) = here {
            return Ok(Some(header));
        }
        let mut found = here;
        if let Some(next) = self.open_cursor(cursor.name.sequence + 1, 1)? {
            // The first group of that segment has the next number only if the writer had moved on to it. Then
            // the end of the segment before holds an append that failed.
            match self.next_group(&next)? {
                Found::Nothing => {}
                there => (*cursor, found) = (next, there),
            }
        }
        match found {
            Found::Group(header) => Ok(Some(header)),
            Found::Torn(header, error) => {
                if !self.was_durable(cursor)? {
                    return error.map_or(Ok(None), Err);
                }
                self.report_damage(cursor, "some data of the");
                // Checksums keep the damaged blocks from being taken for data.
                Ok(Some(header))
            }
            Found::Nothing if !self.was_durable(cursor)? => Ok(None),
            // A running owner may have written the group meanwhile.
            Found::Nothing => match self.next_group(cursor)? {
                Found::Group(header) => Ok(Some(header)),
                _ => {
                    self.report_damage(cursor, "the header of the");
                    if damaged_log == DamagedLog::Cut {
                        return Ok(None);
                    }
                    let message = format!(
                        "the log of {} is damaged at slot {} of segment {}, and goes on behind \
                         it{REMEDY}",
                        self.identity.label, cursor.slot, cursor.name
                    );
                    Err(Error::new(ErrorKind::Corrupt, message).with_remedy(Remedy::RepairPool))
                }
            },
        }
    }

    fn report_damage(&self, cursor: &Cursor, what: &str) {
        let (slot, group) = (cursor.slot, self.journal.group_next());
        tracing::error!(
            image = %self.identity.label, segment = %cursor.name, slot, group,
            "{what} next group of the log is damaged, though it was durable"
        );
    }

    /// True where a later group says that the one expected at the cursor had been made durable.
    fn was_durable(&self, cursor: &Cursor) -> Result<bool> {
        let mut file = Arc::clone(&cursor.file);
        let mut sequence = cursor.name.sequence;
        let mut slot = u64::from(cursor.slot) + 1;
        loop {
            let mut chunk = vec![0; SCAN_BLOCKS * BLOCK];
            loop {
                let n = file
                    .read_at(slot * BLOCK_BYTES, &mut chunk)
                    .at(|| format!("cannot read segment {}", cursor.name))?;
                let blocks = chunk[..n].chunks_exact(BLOCK);
                if blocks.enumerate().any(|(i, block)| {
                    block.starts_with(&GROUP_MAGIC)
                        && self.claims(&*file, sequence, slot + i as u64)
                }) {
                    return Ok(true);
                }
                if n < chunk.len() {
                    break;
                }
                slot += SCAN_BLOCKS as u64;
            }
            sequence += 1;
            match self.open_cursor(sequence, 1)? {
                Some(next) => (file, slot) = (next.file, 1),
                None => return Ok(false),
            }
        }
    }

    /// True where a group of this log starts at the slot and says that the expected group was durable.
    fn claims(&self, file: &dyn DiskFile, sequence: u32, slot: u64) -> bool {
        let Ok(Some(header)) = group_at(file, Slot(slot as u32), sequence) else { return false };
        let expected = self.journal.group_next();
        (header.author, header.epoch) == (self.identity.id.0, self.head.epoch)
            && header.group > expected
            && header.durable_below > expected
    }

    /// Opens a data segment of this image's current epoch; `None` where there is none.
    ///
    /// An owner makes the segment durable before it reads it: replay must accept only what is on the medium,
    /// because a head will name it. The previous process may have ended with its writes only in the page
    /// cache, or after a sync that failed.
    fn open_cursor(&self, sequence: u32, slot: u32) -> Result<Option<Cursor>> {
        let name = self.series.name(SegmentKind::Data, sequence);
        let first = self.head.log.unwrap_or_default().sequence;
        if sequence.saturating_sub(first) > LOG_SEGMENTS_MAX {
            return Ok(None);
        }
        let file = match self.identity.pool.files().open_log(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        if self.is_owner() {
            // Writes that complete later must not make the log longer than it is now.
            file.await_writers();
            file.sync().at(|| format!("cannot make segment {name} durable"))?;
            file.drop_cache();
        }
        let mut block = vec![0; SEGMENT_HEADER_BYTES];
        let n = file.read_at(0, &mut block).at(|| format!("cannot read segment {name}"))?;
        let whole = match SegmentHeader::decode(&block[..n]) {
            // An owner that was replaced has written it: nothing in it was ever acknowledged.
            Ok(h) if h.epoch != self.head.epoch && !fault::is(Fault::ReplayStaleEpoch) => {
                return Ok(None);
            }
            Ok(header) => (header.author, header.sequence) == (self.identity.id.0, sequence),
            Err(error @ FormatError::NewerFormat { .. }) => {
                return Err(Error::from_format(format!("cannot read segment {name}"), error));
            }
            Err(_) => false,
        };
        // Where the segment's header is damaged, its groups are still found: each says which image and epoch
        // it belongs to. A segment whose creation was interrupted has no groups.
        Ok(Some(Cursor { name, file, slot, whole }))
    }

    /// Looks whether the next group lies at the cursor.
    fn next_group(&self, cursor: &Cursor) -> Result<Found> {
        let Some(header) = self.header_here(cursor, self.journal.group_next())? else {
            return Ok(Found::Nothing);
        };
        let data_slot = Slot(cursor.slot).after(header.header_blocks() as u32);
        let data = match read_blocks(&*cursor.file, data_slot, header.crcs.len()) {
            Ok(data) => data,
            Err(error) => {
                let error = Error::from_io(format!("cannot read segment {}", cursor.name), error);
                return Ok(Found::Torn(header, Some(error)));
            }
        };
        let whole = data.len() == header.crcs.len() * BLOCK
            && (fault::is(Fault::ReplayUnverified)
                || data.chunks_exact(BLOCK).zip(&header.crcs).all(|(b, crc)| crc32c(b) == *crc));
        Ok(if whole { Found::Group(header) } else { Found::Torn(header, None) })
    }

    /// The header of a group of this log with this number, if it lies at the cursor.
    fn header_here(&self, cursor: &Cursor, group: u64) -> Result<Option<GroupHeader>> {
        if cursor.slot >= SEGMENT_SLOTS {
            return Ok(None);
        }
        let found = group_at(&*cursor.file, Slot(cursor.slot), cursor.name.sequence)
            .at(|| format!("cannot read segment {}", cursor.name))?;
        let Some(header) = found else { return Ok(None) };
        let expected = header.author == self.identity.id.0
            && (header.epoch == self.head.epoch || fault::is(Fault::ReplayStaleEpoch))
            && (header.group == group || fault::is(Fault::ReplayGap))
            && cursor.slot as usize + header.blocks() <= SEGMENT_SLOTS as usize;
        Ok(expected.then_some(header))
    }

    /// Table index of a segment of the log. The table has it only if a checkpoint saw it; otherwise it is
    /// added.
    fn index_of(&mut self, name: SegmentName) -> Result<SegmentIndex> {
        let files = self.identity.pool.files();
        let mut found = None;
        self.state.table.for_each(files, |index, _, n| {
            if n == name {
                found = Some(index);
            }
            Ok(())
        })?;
        match found {
            Some(index) => Ok(index),
            None => self.state.table.add(name, files),
        }
    }
}

#[cfg(test)]
mod tests {
    use marcot_format::ImageId;
    use marcot_format::group::{Record, RecordKind};
    use marcot_store::World;

    use super::*;
    use crate::catalog::Pool;
    use crate::{CheckOptions, CreateOptions, Extent, Limits, Store};

    const LEAF_BYTES: u64 = 2 << 20;
    const LEAVES: u64 = 6000;
    /// Far less than [`LEAVES`] leaves take, 48 MiB.
    const MEMORY_BYTES: u64 = 1 << 20;

    fn store(directory: &std::path::Path, limits: Limits) -> (Store, Pool) {
        let store = Store::open_with(World::system(), directory, limits).unwrap();
        let pool = store.pool("rbd").unwrap();
        (store, pool)
    }

    /// An image whose log, since the last checkpoint, has a block under each of many leaves; each
    /// third was discarded again.
    fn long_log(directory: &std::path::Path) -> ImageId {
        let many = Limits {
            map_memory_bytes: 1 << 30,
            checkpoint_log_bytes: 1 << 40,
            ..Limits::default()
        };
        let (_, pool) = store(directory, many);
        let options = CreateOptions::sized(LEAVES * LEAF_BYTES);
        let id = pool.create("image", &options).unwrap();
        let mut image = pool.open(id).unwrap();
        image.write_at(4096, &[7; 4096]).unwrap();
        image.checkpoint().unwrap();
        for leaf in 0..LEAVES {
            image.write_at(leaf * LEAF_BYTES, &[(leaf % 251) as u8 + 1; 4096]).unwrap();
        }
        for leaf in (0..LEAVES).step_by(3) {
            image.discard_range(leaf * LEAF_BYTES, 4096).unwrap();
        }
        image.flush().unwrap();
        id
    }

    fn assert_content(image: &mut Image, memory_bytes_max: u64) {
        for leaf in [0, 1, 2, 3, 2999, 3000, 3001, LEAVES - 1, LEAVES - 2, 0, 5] {
            let mut block = [0xAA; 8192];
            image.read_at(leaf * LEAF_BYTES, &mut block).unwrap();
            let expected = if leaf % 3 == 0 { 0 } else { (leaf % 251) as u8 + 1 };
            assert!(block[..4096].iter().all(|b| *b == expected), "leaf {leaf}");
            assert!(block[4096..].iter().all(|b| *b == if leaf == 0 { 7 } else { 0 }));
            let bytes =
                image.state.memory_bytes() + image.overlay.as_ref().map_or(0, Overlay::bytes);
            assert!(bytes <= memory_bytes_max, "{bytes} bytes at leaf {leaf}");
        }
        let extents = image.extents_of(0, LEAVES * LEAF_BYTES, usize::MAX).unwrap();
        let data: Vec<&Extent> = extents.iter().filter(|e| e.data).collect();
        assert_eq!(data.len() as u64, 1 + LEAVES / 3 * 2);
        assert_eq!((data[0].offset, data[0].length), (4096, 4096));
        for (found, leaf) in data[1..].iter().zip((0..LEAVES).filter(|leaf| leaf % 3 != 0)) {
            assert_eq!((found.offset, found.length), (leaf * LEAF_BYTES, 4096));
        }
    }

    #[test]
    fn a_reader_of_a_log_under_many_leaves_stays_within_its_memory() {
        let directory = tempfile::tempdir().unwrap();
        let id = long_log(directory.path());
        let (_, pool) =
            store(directory.path(), Limits { map_memory_bytes: MEMORY_BYTES, ..Limits::default() });
        let mut image = Image::open_reader(&pool, id, DamagedLog::Cut).unwrap();
        assert_content(&mut image, MEMORY_BYTES);
    }

    #[test]
    fn the_next_owner_of_a_log_under_many_leaves_stays_within_its_memory() {
        let directory = tempfile::tempdir().unwrap();
        let id = long_log(directory.path());
        let (store, pool) =
            store(directory.path(), Limits { map_memory_bytes: MEMORY_BYTES, ..Limits::default() });
        // An owner that ends without a checkpoint leaves pages that no head names.
        drop(pool.open(id).unwrap());
        let mut image = pool.open(id).unwrap();
        assert!(image.state.memory_bytes() <= MEMORY_BYTES, "{} bytes", image.state.memory_bytes());
        assert_content(&mut image, 2 * MEMORY_BYTES);
        image.write_at(4096, &[7; 4096]).unwrap();
        assert_content(&mut image, 2 * MEMORY_BYTES);
        image.close().unwrap();
        assert_content(&mut pool.open(id).unwrap(), 2 * MEMORY_BYTES);
        let report = store.check(&pool, &CheckOptions::default(), &mut |_, _| {}).unwrap();
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
    }

    #[test]
    fn a_log_longer_than_any_writer_makes_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (_, pool) = store(directory.path(), Limits::default());
        let options = CreateOptions::sized(LEAF_BYTES);
        let id = pool.create("image", &options).unwrap();
        let mut image = pool.open(id).unwrap();
        image.write_at(0, &[1; 4096]).unwrap();
        image.flush().unwrap();
        let epoch = image.head.epoch;
        drop(image);
        let append = |sequence: u32| {
            let name = SegmentName {
                pool: pool.id(),
                copies: 0,
                author: id,
                kind: SegmentKind::Data,
                sequence,
            };
            let file = pool.files().create(name, epoch).unwrap();
            let header = GroupHeader {
                author: id.0,
                epoch,
                sequence,
                group: u64::from(sequence),
                durable_below: 0,
                records: vec![Record { kind: RecordKind::Discard, block: 9, count: 1 }],
                crcs: Vec::new(),
            };
            let mut bytes = Vec::new();
            header.encode_into(&mut bytes);
            file.write_at(BLOCK_BYTES, &[&bytes]).unwrap();
        };
        let open = || {
            Image::open_reader(&pool, id, DamagedLog::Refuse)
                .map(|image| image.journal.group_next())
        };
        (2..=LOG_SEGMENTS_MAX).for_each(append);
        assert_eq!(open().unwrap(), u64::from(LOG_SEGMENTS_MAX) + 1);
        append(LOG_SEGMENTS_MAX + 1);
        let refused = open().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt);
        assert!(refused.sentence().to_string().contains("longer"), "{refused}");
    }
}
