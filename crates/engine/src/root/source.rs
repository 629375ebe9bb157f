//! Map pages of a root, read through its segment table and counted in it.

use std::sync::Arc;

use marcot_format::page::{PAGE_READ_BYTES, decode_page};
use marcot_format::segment::SegmentKind;
use marcot_format::{BLOCK_BYTES, BlockAddress, MapEntry};

use crate::error::{Error, ErrorKind, Result, fail};
use crate::map::{Node, PageSource, SideOps, entry_blocks};
use crate::segment::Files;
use crate::table::SegmentTable;

/// A root's segment table and the files behind it.
pub(crate) struct Source<'a> {
    pub table: &'a mut SegmentTable,
    pub files: Arc<Files>,
    /// Damaged pages are given up. Replay needs this.
    lenient: bool,
    /// The page loaded last is itself damaged, and not only out of reach.
    damaged: bool,
}

impl<'a> Source<'a> {
    pub(crate) fn new(table: &'a mut SegmentTable, files: Arc<Files>) -> Self {
        Self { table, files, lenient: false, damaged: false }
    }

    /// As [`Self::new`], but a damaged page is given up: the blocks that it named are lost until they
    /// are written again.
    pub(crate) fn lenient(table: &'a mut SegmentTable, files: Arc<Files>) -> Self {
        Self { lenient: true, ..Self::new(table, files) }
    }
}

impl Source<'_> {
    fn load_here(&mut self, entry: MapEntry, level: u32, base: u64) -> Result<Node> {
        let address = entry.address;
        self.damaged = address.is_lost();
        if address.is_external() {
            return Ok(Node::external(level));
        }
        if address.is_lost() {
            return fail(ErrorKind::Corrupt, "lost with a damaged map page");
        }
        let name = self.table.name(address.index(), &self.files)?;
        if name.kind != SegmentKind::Map {
            return fail(ErrorKind::Corrupt, "a map page should lie in a map segment");
        }
        let mut bytes = vec![0; PAGE_READ_BYTES];
        let offset = address.unit().offset_bytes();
        let n = self.table.read_segment(&self.files, name, offset, &mut bytes)?;
        let what =
            || format!("the map page at unit {} of segment {name} is damaged", address.unit().0);
        self.damaged = true;
        let (page, crc) = decode_page(&bytes[..n]).map_err(|e| Error::from_format(what(), e))?;
        if crc != entry.crc || u32::from(page.level) != level || page.base != base {
            return fail(ErrorKind::Corrupt, what());
        }
        self.damaged = false;
        Ok(Node::from_page(page))
    }
}

impl PageSource for Source<'_> {
    fn load(&mut self, entry: MapEntry, level: u32, base: u64) -> Result<Node> {
        let node = self.load_here(entry, level, base);
        // What cannot be looked at now has not moved because of that.
        let moved = |error: &Error| !{ entry.address }.is_lost() && !error.kind().is_obstacle();
        match node {
            Err(error) if moved(&error) && self.table.follow() => {
                self.load_here(entry, level, base)
            }
            node => node,
        }
    }

    fn touch(&mut self, address: BlockAddress) -> Result<()> {
        if address.is_external() {
            return Ok(());
        }
        self.table.get(address.index(), &self.files).map(drop)
    }

    fn release(&mut self, address: BlockAddress, slots: u32) -> Result<()> {
        if address.is_external() {
            return Ok(());
        }
        match self.table.count(address.index(), -i64::from(slots), 0, &self.files) {
            Err(error) if self.lenient && error.kind() == ErrorKind::Corrupt => {
                tracing::warn!(error = %error.sentence(), "space is not counted as free; a check that repairs finds it");
                Ok(())
            }
            counted => counted,
        }
    }

    fn give_up(&mut self, error: &Error, level: u32, base: u64) -> bool {
        let give_up = self.lenient && self.damaged && error.kind() == ErrorKind::Corrupt;
        if give_up {
            let (bytes, first) = (entry_blocks(level + 1) * BLOCK_BYTES, base * BLOCK_BYTES);
            tracing::error!(error = %error.sentence(), first_byte = first, bytes, "a damaged map page is given up: its blocks read as errors until they are written again");
        }
        give_up
    }
}

impl SideOps for Source<'_> {
    fn source(&mut self) -> &mut dyn PageSource {
        self
    }

    fn place(&mut self, entry: MapEntry) -> Result<(u64, u64, u32)> {
        let address = entry.address;
        if address.is_external() {
            // The same offset of the same source.
            return Ok((0, 0, address.slot().0));
        }
        let name = self.table.name(address.index(), &self.files)?;
        let series = u64::from(name.sequence) << 8 | name.kind as u64;
        // The pool is left out: a copy that a flatten made has the same name and slots as its original.
        Ok((name.author.0, series, address.slot().0))
    }
}
