//! Recovery: the log after the head's position, up to the first group that does not verify.
//!
//! Such a group is the end of the log, unless a later one says that it was durable: then it was
//! damaged since. If only its data was, the group is applied all the same, because the damaged
//! blocks fail their checksums whenever they are read; if its header was, what it wrote is unknown.

use std::sync::Arc;

use marcot_format::group::{GROUP_HEADER_BLOCKS_MAX, GROUP_MAGIC, GroupHeader};
use marcot_format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind};
use marcot_format::{BLOCK_BYTES, FormatError, crc32c};
use marcot_store::DiskFile;

use super::Image;
use super::log::SEGMENT_SLOTS;
use crate::error::{Error, ErrorKind, IoContext, Result, fail};
use crate::fault::{self, Fault};
use crate::segment::SegmentName;

const BLOCK: usize = BLOCK_BYTES as usize;
/// Blocks read at a time in search of a later group (1 MiB).
const SCAN_BLOCKS: usize = 256;
/// What an operator can do about a damaged log.
const REMEDY: &str = "; open it read-only to save what it has, or run 'check --repair' to give up \
                      what was written after it";

/// A segment being replayed.
struct Cursor {
    name: SegmentName,
    file: Arc<dyn DiskFile>,
    slot: u32,
    /// Its header is what it was.
    whole: bool,
}

/// What replay does where the log is damaged, and not merely at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DamagedLog {
    /// Refuses: somebody must decide whether what comes after is to be given up.
    Refuse,
    /// Takes the damage for the end of the log.
    Cut,
}

/// What lies at a cursor.
enum Found {
    /// The group that is next, whole.
    Group(GroupHeader),
    /// The header of the group that is next. Some of its data is not what it was: either it never
    /// arrived, or it was damaged afterwards.
    Torn(GroupHeader, Option<Error>),
    /// Nothing that can be told.
    Nothing,
}

impl Image {
    /// Applies the log after the head's position to the map in memory. Writes nothing.
    pub(super) fn replay(&mut self, damaged_log: DamagedLog) -> Result<()> {
        let Some(log) = self.head.log else { return Ok(()) };
        let created = log.segment < self.head.marks.unwrap_or_default().data;
        let refuse = created && damaged_log == DamagedLog::Refuse;
        let Some(mut cursor) = self.open_cursor(log.segment, log.slot)? else {
            return if refuse { self.lost_log(log.segment) } else { Ok(()) };
        };
        let whole = cursor.whole;
        self.unclean = true;
        let mut index = None;
        let first = self.group_next;
        while let Some(header) = self.next_to_apply(&mut cursor, damaged_log)? {
            let index = match index {
                Some((sequence, index)) if sequence == cursor.name.sequence => index,
                _ => index.insert((cursor.name.sequence, self.index_of(cursor.name)?)).1,
            };
            self.apply(&header, index, cursor.slot + header.header_blocks() as u32, true)?;
            cursor.slot += header.blocks() as u32;
            self.group_next += 1;
            self.changed = true;
        }
        self.next.data = self.next.data.max(cursor.name.sequence + 1);
        let groups = self.group_next - first;
        if groups == 0 && !whole && refuse {
            return self.lost_log(log.segment);
        }
        if groups > 0 {
            tracing::info!(image = %self.label, groups, "replayed the log");
        }
        Ok(())
    }

    /// Groups in that segment may have been flushed, so it is no empty log.
    fn lost_log(&self, sequence: u32) -> Result<()> {
        let message = format!(
            "data segment {sequence} of {}, where its log begins, is missing or damaged{REMEDY}",
            self.label
        );
        fail(ErrorKind::Corrupt, message)
    }

    /// The group that is next, at the cursor or at the start of the segment after it, where the
    /// cursor is moved then; `None` at the end of the log.
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
            // Its first group has the number that is next only if the writer had moved on: what
            // lies at the end of the segment before is an append that had failed.
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
                self.tell_damage(cursor, "some data of the");
                // Its checksums keep what is damaged from being taken for data.
                Ok(Some(header))
            }
            Found::Nothing if !self.was_durable(cursor)? => Ok(None),
            // An owner at work may have written it since.
            Found::Nothing => match self.next_group(cursor)? {
                Found::Group(header) => Ok(Some(header)),
                _ => {
                    self.tell_damage(cursor, "the header of the");
                    if damaged_log == DamagedLog::Cut {
                        return Ok(None);
                    }
                    let message = format!(
                        "the log of {} is damaged at slot {} of segment {}, and goes on behind \
                         it{REMEDY}",
                        self.label, cursor.slot, cursor.name
                    );
                    fail(ErrorKind::Corrupt, message)
                }
            },
        }
    }

    fn tell_damage(&self, cursor: &Cursor, what: &str) {
        let (slot, group) = (cursor.slot, self.group_next);
        tracing::error!(
            image = %self.label, segment = %cursor.name, slot, group,
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

    /// True where a group of this log starts at the slot and says that the next one was durable.
    fn claims(&self, file: &dyn DiskFile, sequence: u32, slot: u64) -> bool {
        let mut bytes = vec![0; GROUP_HEADER_BLOCKS_MAX * BLOCK];
        let Ok(n) = file.read_at(slot * BLOCK_BYTES, &mut bytes) else { return false };
        GroupHeader::decode(&bytes[..n]).is_ok_and(|header| {
            header.author == self.id.0
                && header.epoch == self.head.epoch
                && header.segment == sequence
                && header.group > self.group_next
                && header.durable_below > self.group_next
        })
    }

    /// Opens a data segment of this image's current epoch; `None` where there is none.
    ///
    /// An owner makes it durable before it is read: what replay accepts is what the medium has, and
    /// what a head will name. The process before may have died with its writes in the cache only,
    /// or after a sync that failed.
    fn open_cursor(&self, sequence: u32, slot: u32) -> Result<Option<Cursor>> {
        let name = SegmentName {
            pool: self.pool.id(),
            copies: 0,
            author: self.id,
            kind: SegmentKind::Data,
            sequence,
        };
        let path = self.pool.files().path(name)?;
        let file = match self.pool.disk().open(&path, false) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.at(|| format!("cannot open segment {}", path.display()))?,
        };
        if self.is_owner() {
            // What ends later must not make the log longer than it is now.
            file.await_writers();
            file.sync().at(|| format!("cannot make segment {name} durable"))?;
            file.drop_cache();
        }
        let mut block = vec![0; SEGMENT_HEADER_BYTES];
        let n = file.read_at(0, &mut block).at(|| format!("cannot read segment {name}"))?;
        let whole = match SegmentHeader::decode(&block[..n]) {
            // A stale owner's: nothing in it was ever acknowledged.
            Ok(h) if h.epoch != self.head.epoch && !fault::is(Fault::ReplayStaleEpoch) => {
                return Ok(None);
            }
            Ok(header) => (header.author, header.sequence) == (self.id.0, sequence),
            Err(error @ FormatError::NewerFormat { .. }) => {
                return Err(Error::from_format(format!("cannot read segment {name}"), error));
            }
            Err(_) => false,
        };
        // A damaged header hides nothing: groups say for themselves whose they are. After a torn
        // creation there are none.
        Ok(Some(Cursor { name, file, slot, whole }))
    }

    /// Looks whether the next group lies at the cursor.
    fn next_group(&self, cursor: &Cursor) -> Result<Found> {
        if cursor.slot >= SEGMENT_SLOTS {
            return Ok(Found::Nothing);
        }
        let read = |slot: u32, blocks: usize| -> Result<Vec<u8>> {
            let mut bytes = vec![0; blocks * BLOCK];
            let n = cursor
                .file
                .read_at(u64::from(slot) * BLOCK_BYTES, &mut bytes)
                .at(|| format!("cannot read segment {}", cursor.name))?;
            bytes.truncate(n);
            Ok(bytes)
        };
        let mut bytes = read(cursor.slot, 1)?;
        let Ok(blocks) = GroupHeader::peek(&bytes) else { return Ok(Found::Nothing) };
        if blocks > 1 {
            bytes = read(cursor.slot, blocks)?;
        }
        let Ok(header) = GroupHeader::decode(&bytes) else { return Ok(Found::Nothing) };
        let expected = header.author == self.id.0
            && (header.epoch == self.head.epoch || fault::is(Fault::ReplayStaleEpoch))
            && header.segment == cursor.name.sequence
            && (header.group == self.group_next || fault::is(Fault::ReplayGap))
            && cursor.slot as usize + header.blocks() <= SEGMENT_SLOTS as usize;
        if !expected {
            return Ok(Found::Nothing);
        }
        let data = match read(cursor.slot + header.header_blocks() as u32, header.crcs.len()) {
            Ok(data) => data,
            Err(error) => return Ok(Found::Torn(header, Some(error))),
        };
        let whole = data.len() == header.crcs.len() * BLOCK
            && (fault::is(Fault::ReplayUnverified)
                || data.chunks_exact(BLOCK).zip(&header.crcs).all(|(b, crc)| crc32c(b) == *crc));
        Ok(if whole { Found::Group(header) } else { Found::Torn(header, None) })
    }

    /// Table index of a segment of the log, which the table has only if a checkpoint saw it.
    fn index_of(&mut self, name: SegmentName) -> Result<u32> {
        let files = Arc::clone(self.pool.files());
        let mut found = None;
        self.table.for_each(&files, |index, _, n| {
            if n == name {
                found = Some(index);
            }
            Ok(())
        })?;
        match found {
            Some(index) => Ok(index),
            None => self.table.add(name, &files),
        }
    }
}
