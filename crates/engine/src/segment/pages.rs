//! Appending pages to map and table segments.
//!
//! Pages are placed first and written later. Placing needs no I/O except to create files. So a
//! checkpoint can fix all addresses first and write the pages while requests go on.

use std::sync::Arc;

use marcot_format::BLOCK_BYTES;
use marcot_format::segment::SEGMENT_HEADER_BYTES;
use marcot_store::DiskFile;

use super::SegmentName;
use crate::error::{IoContext, Result};
use crate::fault::{self, Fault};

/// Bytes placed in one segment, waiting to be written.
struct Extent {
    name: SegmentName,
    file: Arc<dyn DiskFile>,
    offset: u64,
    bytes: Vec<u8>,
    /// The bytes were written to the file, but may not be durable.
    written: bool,
}

/// Largest buffer, in bytes, that is kept for the pages of the next checkpoint. The first use of new
/// memory takes longer than encoding pages into it.
const SPARE_BYTES_MAX: usize = 4 << 20;

/// Pages that were placed and must reach the disk before a head names them.
#[derive(Default)]
pub(crate) struct WrittenPages {
    extents: Vec<Extent>,
}

impl WrittenPages {
    /// Takes over the pages of another writer.
    pub(crate) fn extend(&mut self, other: WrittenPages) {
        self.extents.extend(other.extents);
    }

    /// Writes all pages that are not written yet. May be called again after an error that left the
    /// files intact (no space): the same bytes go to the same places.
    pub(crate) fn write(&mut self) -> Result<()> {
        for extent in self.extents.iter_mut().filter(|extent| !extent.written) {
            extent
                .file
                .write_at(extent.offset, &[&extent.bytes])
                .at(|| format!("cannot write map pages to segment {}", extent.name))?;
            extent.written = true;
        }
        Ok(())
    }

    /// Writes all pages and syncs them. After a sync that failed, the next call writes all of them
    /// again.
    pub(crate) fn write_and_sync(&mut self) -> Result<()> {
        self.write()?;
        let synced = self.sync();
        if synced.is_err() {
            self.extents.iter_mut().for_each(|extent| extent.written = false);
        }
        synced
    }

    fn sync(&self) -> Result<()> {
        for extent in self.extents.iter().filter(|_| !fault::is(Fault::HeadBeforePages)) {
            extent.file.sync().at(|| format!("cannot sync segment {}", extent.name))?;
        }
        Ok(())
    }
}

struct OpenSegment {
    name: SegmentName,
    file: Arc<dyn DiskFile>,
    /// Where the next page goes, in bytes.
    end: u64,
}

/// Appends to one series of page segments.
#[derive(Default)]
pub(crate) struct PageWriter {
    open: Option<OpenSegment>,
    placed: WrittenPages,
    /// An empty buffer whose memory is used for the next pages.
    spare: Vec<u8>,
}

impl PageWriter {
    /// The segment that is open, with its length in bytes.
    pub(crate) fn open_segment(&self) -> Option<(SegmentName, u64)> {
        self.open.as_ref().map(|o| (o.name, o.end))
    }

    /// True where a page of `bytes` needs a new segment first.
    pub(crate) fn needs_segment(&self, bytes: u64, segment_bytes_max: u64) -> bool {
        self.open.as_ref().is_none_or(|o| o.end + bytes > segment_bytes_max)
    }

    /// Goes on in a segment that was just created.
    pub(crate) fn start_segment(&mut self, name: SegmentName, file: Arc<dyn DiskFile>) {
        self.open = Some(OpenSegment { name, file, end: SEGMENT_HEADER_BYTES as u64 });
    }

    /// Ends the open segment: the next page needs a new one.
    pub(crate) fn close_segment(&mut self) {
        self.open = None;
    }

    /// Places a page, whose bytes `encode` appends. Returns its offset in bytes and what `encode`
    /// returned; `None` where no segment is open.
    pub(crate) fn place<T>(&mut self, encode: impl FnOnce(&mut Vec<u8>) -> T) -> Option<(u64, T)> {
        let open = self.open.as_mut()?;
        let extents = &mut self.placed.extents;
        let continues = extents
            .last()
            .is_some_and(|e| e.name == open.name && e.offset + e.bytes.len() as u64 == open.end);
        if !continues {
            let file = Arc::clone(&open.file);
            let (name, offset, bytes) = (open.name, open.end, std::mem::take(&mut self.spare));
            extents.push(Extent { name, file, offset, bytes, written: false });
        }
        let bytes = &mut extents.last_mut()?.bytes;
        let before = bytes.len();
        let value = encode(bytes);
        let offset = open.end;
        open.end += (bytes.len() - before) as u64;
        Some((offset, value))
    }

    /// Keeps a buffer of pages that are durable for the next pages.
    pub(crate) fn reuse(&mut self, pages: WrittenPages) {
        let buffers = pages.extents.into_iter().map(|extent| extent.bytes);
        let fitting = buffers.filter(|bytes| bytes.capacity() <= SPARE_BYTES_MAX);
        if let Some(mut bytes) = fitting.max_by_key(Vec::capacity)
            && bytes.capacity() > self.spare.capacity()
        {
            bytes.clear();
            self.spare = bytes;
        }
    }

    /// Frees the buffer kept for the next pages. Returns its size in bytes.
    pub(crate) fn drop_spare(&mut self) -> u64 {
        std::mem::take(&mut self.spare).capacity() as u64
    }

    /// Hands over the pages placed since the last call. The next page starts at a block of its own, so
    /// that writing it cannot tear a durable page.
    pub(crate) fn take(&mut self) -> WrittenPages {
        if let Some(open) = &mut self.open {
            open.end = open.end.next_multiple_of(BLOCK_BYTES);
        }
        std::mem::take(&mut self.placed)
    }
}
