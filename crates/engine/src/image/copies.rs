//! Copies of segments of other pools, which flatten makes for an image with snapshots.
//!
//! A copy has the author, series, number and slots of its original. It holds only what the image's roots
//! name. A map reads the same in either place, so all roots go on sharing what they shared, and only the list
//! of places in the head is rewritten. Copies belong to a *set* of this image's own. Other images of the pool
//! may have copies of the same segments, and what a parent says about its copies must not affect this
//! image's.
//!
//! The head names the set before the first copy is made, and GC leaves that set alone. A slot that an
//! interrupted flatten has copied correctly is not copied again. Nobody reads the copies before a head says
//! that the data lies there; that head is the commit of the flatten.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use marcot_format::address::MAP_UNIT_BYTES;
use marcot_format::page::{PAGE_READ_BYTES, decode_page, peek_page};
use marcot_format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind};
use marcot_format::table::{TABLE_PAGE_BYTES, table_page_crc};
use marcot_format::{BLOCK_BYTES, MapEntry, PoolId, SegmentIndex, Slot, crc32c};
use marcot_store::DiskFile;

use crate::catalog::Pool;
use crate::error::{ErrorKind, IoContext, Result, fail};
use crate::fault::{self, Fault};
use crate::segment::{SegmentName, groups};
use crate::table::SegmentTable;

const BLOCK: usize = BLOCK_BYTES as usize;
/// Blocks copied in one go (1 MiB).
const RUN_BLOCKS_MAX: usize = 256;
/// Copies kept open before they are synced and closed.
const OPEN_MAX: usize = 64;

/// Blocks that lie together in a segment of another pool.
pub(super) struct Run {
    pub index: SegmentIndex,
    pub slot: Slot,
    pub crcs: Vec<u32>,
    /// Numbers of the image's blocks, in the order of the slots.
    pub blocks: Vec<u64>,
}

/// The copies that a flatten is making.
#[derive(Default)]
pub(super) struct Copies {
    /// Number of the set; 0 before the first part of the work.
    pub set: u64,
    /// Copies that were written to since they were last synced.
    open: HashMap<SegmentName, Arc<dyn DiskFile>>,
    /// Table pages that are known to be copied.
    table_pages: HashSet<(SegmentName, u32)>,
}

/// The kind of a page that is copied.
#[derive(Clone, Copy)]
enum PageKind {
    Map,
    Table,
}

impl PageKind {
    fn read_bytes(self) -> usize {
        match self {
            Self::Map => PAGE_READ_BYTES,
            Self::Table => TABLE_PAGE_BYTES,
        }
    }

    fn unit_bytes(self) -> u64 {
        match self {
            Self::Map => MAP_UNIT_BYTES,
            Self::Table => TABLE_PAGE_BYTES as u64,
        }
    }

    /// The page at the start of `bytes`, where it is whole and matches `crc`.
    fn whole(self, bytes: &[u8], crc: u32) -> Option<&[u8]> {
        match self {
            Self::Map => {
                let (_, found) = decode_page(bytes).ok()?;
                bytes.get(..peek_page(bytes).ok()?).filter(|_| found == crc)
            }
            Self::Table => {
                let page = bytes.get(..TABLE_PAGE_BYTES)?;
                (table_page_crc(page) == Some(crc)).then_some(page)
            }
        }
    }
}

/// Gathers entries that lie in other pools into runs.
pub(super) fn runs(mut blocks: Vec<(u64, MapEntry)>) -> Vec<Run> {
    blocks.sort_unstable_by_key(|(_, entry)| ({ entry.address }.index(), { entry.address }.slot()));
    let mut runs: Vec<Run> = Vec::new();
    for (block, entry) in blocks {
        let address = entry.address;
        match runs.last_mut() {
            Some(run)
                if run.index == address.index()
                    && run.slot.after(run.crcs.len() as u32) == address.slot()
                    && run.crcs.len() < RUN_BLOCKS_MAX =>
            {
                run.crcs.push(entry.crc);
                run.blocks.push(block);
            }
            _ => runs.push(Run {
                index: address.index(),
                slot: address.slot(),
                crcs: vec![entry.crc],
                blocks: vec![block],
            }),
        }
    }
    runs
}

/// Reads `bytes` bytes, or fewer at the end of the file.
fn read(file: &dyn DiskFile, name: SegmentName, offset: u64, bytes: usize) -> Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    let n = file.read_at(offset, &mut buffer).at(|| format!("cannot read segment {name}"))?;
    buffer.truncate(n);
    Ok(buffer)
}

/// What was read; `None` where it is damaged or missing. What cannot be looked at now is neither, so it fails.
fn unless_damaged<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind().is_obstacle() => Err(error),
        Err(_) => Ok(None),
    }
}

impl Copies {
    /// Copies those blocks of a run that this pool lacks. Returns the first block of the image that cannot be
    /// read.
    pub(super) fn copy_run(
        &mut self,
        pool: &Pool,
        table: &mut SegmentTable,
        run: &Run,
    ) -> Result<Option<u64>> {
        let offset = run.slot.offset_bytes();
        let bytes = run.crcs.len() * BLOCK;
        let right = |data: &[u8], i: usize| {
            data.get(i * BLOCK..(i + 1) * BLOCK).is_some_and(|b| crc32c(b) == run.crcs[i])
        };
        let mut lacking: Vec<usize> = (0..run.crcs.len()).collect();
        for _ in 0..2 {
            let name = table.name(run.index, pool.files())?;
            if name.kind != SegmentKind::Data {
                return fail(ErrorKind::Corrupt, "a block should lie in a data segment");
            }
            if let Some(source) = unless_damaged(pool.files().get(name))? {
                let copy = self.open(pool, name, &*source)?;
                let have = read(&*copy, name, offset, bytes)?;
                lacking.retain(|i| !right(&have, *i));
                let data = match lacking.is_empty() {
                    true => Vec::new(),
                    false => {
                        unless_damaged(read(&*source, name, offset, bytes))?.unwrap_or_default()
                    }
                };
                // A damaged block is not copied: the image goes on needing the original.
                lacking.retain(|i| !right(&data, *i));
                let mut at = 0;
                while at < run.crcs.len() {
                    let copied = |i: &usize| right(&data, *i) && !right(&have, *i);
                    let count = (at..run.crcs.len()).take_while(copied).count();
                    if count > 0 {
                        let part = &data[at * BLOCK..(at + count) * BLOCK];
                        copy.write_at(offset + (at * BLOCK) as u64, &[part])
                            .at(|| format!("cannot copy segment {name}"))?;
                    }
                    at += count.max(1);
                }
            }
            if lacking.is_empty() || !table.follow() {
                break;
            }
        }
        Ok(lacking.first().map(|i| run.blocks[*i]))
    }

    /// Copies a map page, unless it lies in this pool or has a copy here.
    pub(super) fn copy_map_page(
        &mut self,
        pool: &Pool,
        table: &mut SegmentTable,
        entry: MapEntry,
    ) -> Result<()> {
        let address = entry.address;
        if table.recorded_pool(address.index(), pool.files())? == pool.id() {
            return Ok(());
        }
        let name = table.name(address.index(), pool.files())?;
        if self.copy_page(pool, name, address.unit().0, entry.crc, PageKind::Map)? {
            return Ok(());
        }
        if table.follow() {
            let name = table.name(address.index(), pool.files())?;
            if self.copy_page(pool, name, address.unit().0, entry.crc, PageKind::Map)? {
                return Ok(());
            }
        }
        fail(ErrorKind::Corrupt, format!("a map page in segment {name} cannot be read"))
    }

    /// Copies the pages of a segment table that lie in pools for which `takes` is true.
    pub(super) fn copy_table(
        &mut self,
        pool: &Pool,
        table: &mut SegmentTable,
        takes: impl Fn(PoolId) -> bool,
    ) -> Result<()> {
        for second in [false, true] {
            let mut left = None;
            for (name, page, crc) in table.pages_in(&takes)? {
                if self.table_pages.contains(&(name, page)) {
                    continue;
                }
                match self.copy_page(pool, name, page, crc, PageKind::Table)? {
                    true => drop(self.table_pages.insert((name, page))),
                    false => left = Some(name),
                }
            }
            let Some(name) = left else { break };
            if second || !table.follow() {
                let message = format!("a page of table segment {name} cannot be read");
                return fail(ErrorKind::Corrupt, message);
            }
        }
        Ok(())
    }

    /// Copies a page, unless a whole copy is there. False where the page cannot be read.
    fn copy_page(
        &mut self,
        pool: &Pool,
        name: SegmentName,
        at: u32,
        crc: u32,
        kind: PageKind,
    ) -> Result<bool> {
        let Some(source) = unless_damaged(pool.files().get(name))? else { return Ok(false) };
        let copy = self.open(pool, name, &*source)?;
        let offset = u64::from(at) * kind.unit_bytes();
        let have = read(&*copy, name, offset, kind.read_bytes())?;
        if kind.whole(&have, crc).is_some() {
            return Ok(true);
        }
        let read = unless_damaged(read(&*source, name, offset, kind.read_bytes()))?;
        let Some(data) = read else { return Ok(false) };
        let Some(page) = kind.whole(&data, crc) else { return Ok(false) };
        copy.write_at(offset, &[page]).at(|| format!("cannot copy segment {name}"))?;
        Ok(true)
    }

    /// Opens the copy of a segment in this pool for writing; creates it if it does not exist.
    fn open(
        &mut self,
        pool: &Pool,
        name: SegmentName,
        source: &dyn DiskFile,
    ) -> Result<Arc<dyn DiskFile>> {
        let copy = SegmentName { pool: pool.id(), copies: self.set, ..name };
        if let Some(file) = self.open.get(&copy) {
            return Ok(Arc::clone(file));
        }
        if self.open.len() >= OPEN_MAX {
            self.sync()?;
        }
        let files = pool.files();
        let context = || format!("cannot copy segment {name} to {}", files.show(copy));
        let file = match files.open_as_it_is(copy, true) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let create = || {
                    files.create_set(pool.id(), copy.key().set)?;
                    files.create(copy, 0)
                };
                // GC may have removed the set just now, because it was empty.
                create().or_else(|_| create()).map_err(|error| error.context(context()))?
            }
            opened => {
                let file = opened.map_err(|error| error.context(context()))?;
                // The process that wrote it may have ended before it synced. Correct slots are not copied
                // again, so they must be on the medium.
                file.sync().at(context)?;
                file.drop_cache();
                file
            }
        };
        write_headers(&*file, source, copy).map_err(|error| error.context(context()))?;
        pool.segments().settle(copy.key()).at(context)?;
        self.open.insert(copy, Arc::clone(&file));
        Ok(file)
    }

    /// Makes all copies durable.
    pub(super) fn sync(&mut self) -> Result<()> {
        if fault::is(Fault::CopiesUnsynced) {
            self.open.clear();
            return Ok(());
        }
        for (name, file) in std::mem::take(&mut self.open) {
            file.sync().at(|| format!("cannot make the copy of segment {name} durable"))?;
        }
        Ok(())
    }
}

/// Gives a copy its segment header and the headers of the groups, so that its groups can be found.
fn write_headers(copy: &dyn DiskFile, source: &dyn DiskFile, name: SegmentName) -> Result<()> {
    let write = |offset: u64, bytes: &[u8]| {
        if read(copy, name, offset, bytes.len())? == bytes {
            return Ok(());
        }
        copy.write_at(offset, &[bytes]).at(|| format!("cannot copy segment {name}"))
    };
    let mut header = read(source, name, 0, SEGMENT_HEADER_BYTES)?;
    if SegmentHeader::decode(&header).is_err() {
        // The original's header is damaged. Only replay needs the epoch, and it never reads a copy.
        let (author, sequence) = (name.author.0, name.sequence);
        header = SegmentHeader { kind: name.kind, author, sequence, epoch: 0 }.encode().to_vec();
    }
    write(0, &header)?;
    if name.kind == SegmentKind::Data {
        let mut bytes = Vec::new();
        for (slot, group) in
            groups(source, name.sequence).at(|| format!("cannot read segment {name}"))?
        {
            group.encode_into(&mut bytes);
            write(slot.offset_bytes(), &bytes)?;
        }
    }
    Ok(())
}
