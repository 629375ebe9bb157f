//! Recovery: the log after the head's position, up to the first group that does not verify.

use std::sync::Arc;

use marcot_format::group::GroupHeader;
use marcot_format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind};
use marcot_format::{BLOCK_BYTES, crc32c};
use marcot_store::DiskFile;

use super::Image;
use super::log::SEGMENT_SLOTS;
use crate::error::{ErrorKind, IoContext, Result, fail};
use crate::segment::SegmentName;

const BLOCK: usize = BLOCK_BYTES as usize;

/// A segment being replayed.
struct Cursor {
    name: SegmentName,
    file: Arc<dyn DiskFile>,
    slot: u32,
}

impl Image {
    /// Applies the log after the head's position to the map in memory. Writes nothing.
    pub(super) fn replay(&mut self) -> Result<()> {
        let Some(log) = self.head.log else { return Ok(()) };
        let created = log.segment < self.head.marks.unwrap_or_default().data;
        let Some(mut cursor) = self.open_cursor(log.segment, log.slot)? else {
            if created {
                // Its groups may have been flushed, so this is no empty log.
                let message = format!(
                    "data segment {} of {}, where its log begins, is missing or damaged",
                    log.segment, self.label
                );
                return fail(ErrorKind::Corrupt, message);
            }
            return Ok(());
        };
        let mut index = None;
        let mut groups = 0u64;
        loop {
            match self.next_group(&cursor)? {
                Some(header) => {
                    let index = match index {
                        Some(index) => index,
                        None => *index.insert(self.index_of(cursor.name)?),
                    };
                    self.apply(&header, index, cursor.slot + header.header_blocks() as u32)?;
                    cursor.slot += header.blocks() as u32;
                    self.group_next += 1;
                    self.changed = true;
                    groups += 1;
                }
                None => {
                    let next = self.open_cursor(cursor.name.sequence + 1, 1)?;
                    let Some(next) = next else { break };
                    if self.next_group(&next)?.is_none() {
                        break;
                    }
                    (cursor, index) = (next, None);
                }
            }
        }
        self.next.data = self.next.data.max(cursor.name.sequence + 1);
        if groups > 0 {
            tracing::info!(image = %self.label, groups, "replayed the log");
        }
        Ok(())
    }

    /// Opens a data segment of this image's current epoch; `None` where there is none.
    ///
    /// An owner makes it durable before it is read: what replay accepts is what the medium has, and
    /// what a head will name. The process before may have died with its writes in the cache only,
    /// or after a sync that failed.
    fn open_cursor(&self, sequence: u32, slot: u32) -> Result<Option<Cursor>> {
        let name = SegmentName {
            pool: self.pool.id(),
            author: self.id,
            kind: SegmentKind::Data,
            sequence,
        };
        let path = self.pool.files().path(name)?;
        let file = match self.pool.files().world().disk.open(&path, false) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.at(|| format!("cannot open segment {}", path.display()))?,
        };
        if self.is_owner() {
            file.sync().at(|| format!("cannot make segment {name} durable"))?;
            file.drop_cache();
        }
        let mut block = vec![0; SEGMENT_HEADER_BYTES];
        let n = file.read_at(0, &mut block).at(|| format!("cannot read segment {name}"))?;
        match SegmentHeader::decode(&block[..n]) {
            Ok(h)
                if h.author == self.id.0
                    && h.sequence == sequence
                    && h.epoch == self.head.epoch =>
            {
                Ok(Some(Cursor { name, file, slot }))
            }
            // A torn creation, or a stale owner's: nothing in it was ever acknowledged.
            _ => Ok(None),
        }
    }

    /// The group at the cursor, if it is the next one and all of it reached the disk.
    fn next_group(&self, cursor: &Cursor) -> Result<Option<GroupHeader>> {
        if cursor.slot >= SEGMENT_SLOTS {
            return Ok(None);
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
        let Ok(blocks) = GroupHeader::peek(&bytes) else { return Ok(None) };
        if blocks > 1 {
            bytes = read(cursor.slot, blocks)?;
        }
        let Ok(header) = GroupHeader::decode(&bytes) else { return Ok(None) };
        let expected = header.author == self.id.0
            && header.epoch == self.head.epoch
            && header.segment == cursor.name.sequence
            && header.group == self.group_next
            && cursor.slot as usize + header.blocks() <= SEGMENT_SLOTS as usize;
        if !expected {
            return Ok(None);
        }
        let data = read(cursor.slot + header.header_blocks() as u32, header.crcs.len())?;
        let whole = data.len() == header.crcs.len() * BLOCK
            && data.chunks_exact(BLOCK).zip(&header.crcs).all(|(b, crc)| crc32c(b) == *crc);
        Ok(whole.then_some(header))
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
