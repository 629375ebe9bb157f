//! Makes a large image as a sequential writer would have left it, without writing its data.
//!
//! usage: large_image DIRECTORY [TIB]
//!
//! DIRECTORY is a store; the image is `large/image`, of TIB TiB (64 unless told). All of its segment
//! table is there, and every inner node of its map. Of the leaves one in 4 GiB is there, with the
//! data segments that it names, which are sparse files: their blocks are zeros. The offsets, in
//! bytes, whose block can be read are the multiples of 4 GiB. The other leaves lie where nothing was
//! written, and reading through them fails as it should: with an error.
//!
//! Not as a writer would have left it: data segments lack the headers of their groups, which only
//! replay and compaction look at, and map segments come after all data segments in the table.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use marcot::{CreateOptions, ImageId, Pool, PoolOptions, Result, Store};
use marcot_format::address::MAP_UNIT_BYTES;
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::group::header_blocks;
use marcot_format::page::{encode_page, page_units};
use marcot_format::record::{HeadRecord, LogPosition, RootRecord, SegmentMarks, TablePointer};
use marcot_format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind};
use marcot_format::table::{
    PagePointer, SegmentEntry, TABLE_FANOUT, TABLE_PAGE_BYTES, encode_pointers, encode_segments,
};
use marcot_format::{
    BLOCK_BYTES, BlockAddress, MAP_FANOUT, MapEntry, MapUnit, SEGMENT_BYTES, SegmentIndex, Slot,
    crc32c,
};

const TIB: u64 = 1 << 40;
const FANOUT: u64 = MAP_FANOUT as u64;
/// Blocks that a leaf, and a node of each level above it, covers.
const LEAF_BLOCKS: u64 = FANOUT;
const INNER_BLOCKS: u64 = FANOUT * FANOUT;
const UPPER_BLOCKS: u64 = FANOUT * INNER_BLOCKS;
/// Distance of the leaves that are there (4 GiB).
const STRIDE_BLOCKS: u64 = 1 << 20;

/// Data blocks of a group: a MiB, as a client writes that has a few large requests in flight.
const GROUP_BLOCKS: u64 = 256;
const SEGMENT_SLOTS: u64 = SEGMENT_BYTES / BLOCK_BYTES;
/// Bytes of a table segment.
const TABLE_SEGMENT_BYTES: u64 = 4 << 20;
/// The epoch of the owner that would have written it all.
const EPOCH: u64 = 2;

/// Slots of a group, its header included.
fn group_slots() -> u64 {
    header_blocks(1, GROUP_BLOCKS as usize) as u64 + GROUP_BLOCKS
}

/// Groups that fit behind the header of a data segment.
fn segment_groups() -> u64 {
    (SEGMENT_SLOTS - 1) / group_slots()
}

fn segment_data_blocks() -> u64 {
    segment_groups() * GROUP_BLOCKS
}

/// Units of a full page in a map segment, and pages of a map segment.
fn full_page_units() -> u64 {
    u64::from(page_units(MAP_FANOUT))
}

fn segment_pages() -> u64 {
    (SEGMENT_BYTES - SEGMENT_HEADER_BYTES as u64) / (full_page_units() * MAP_UNIT_BYTES)
}

/// Where everything lies. Table indices start at 1, data segments come first; pages of the map are
/// numbered in the order in which a sequential writer completes them, children before parents.
struct Layout {
    blocks: u64,
    author: ImageId,
    /// First number of each series.
    first: SegmentMarks,
    directory: PathBuf,
}

impl Layout {
    fn data_segments(&self) -> u64 {
        self.blocks.div_ceil(segment_data_blocks())
    }

    fn map_segments(&self) -> u64 {
        self.pages().div_ceil(segment_pages())
    }

    /// Pages of the map, the top one included.
    fn pages(&self) -> u64 {
        self.blocks / LEAF_BLOCKS + self.blocks / INNER_BLOCKS + self.blocks / UPPER_BLOCKS + 1
    }

    /// Number of the page of the leaf, or node above, that ends before block `end`.
    fn page_number(&self, end: u64, level: u64) -> u64 {
        let before = |blocks: u64| (end - 1) / blocks;
        let leaves = end / LEAF_BLOCKS;
        match level {
            0 => leaves - 1 + before(INNER_BLOCKS) + before(UPPER_BLOCKS),
            1 => leaves + end / INNER_BLOCKS - 1 + before(UPPER_BLOCKS),
            2 => leaves + end / INNER_BLOCKS + end / UPPER_BLOCKS - 1,
            _ => self.pages() - 1,
        }
    }

    fn page_address(&self, number: u64) -> BlockAddress {
        let index = 1 + self.data_segments() + number / segment_pages();
        let unit = SEGMENT_HEADER_BYTES as u64 / MAP_UNIT_BYTES
            + number % segment_pages() * full_page_units();
        BlockAddress::of_page(SegmentIndex(index as u32), MapUnit(unit as u32))
    }

    fn block_address(&self, block: u64) -> BlockAddress {
        let (group, within) = (block / GROUP_BLOCKS, block % GROUP_BLOCKS);
        let header = group_slots() - GROUP_BLOCKS;
        let slot = 1 + group % segment_groups() * group_slots() + header + within;
        BlockAddress::of_block(
            SegmentIndex((1 + group / segment_groups()) as u32),
            Slot(slot as u32),
        )
    }

    /// Creates a segment's file of so many bytes, with its header.
    fn create(&self, kind: SegmentKind, sequence: u32, bytes: u64) -> io::Result<File> {
        let path = self.directory.join(format!("{}{sequence:08x}", kind.letter()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        let header = SegmentHeader { kind, author: self.author.0, sequence, epoch: EPOCH };
        file.write_all_at(&header.encode(), 0)?;
        file.set_len(bytes)?;
        Ok(file)
    }
}

/// Writes pages of the map, in the order of their numbers.
struct MapWriter<'a> {
    layout: &'a Layout,
    /// The map segment that is open, counted from 0, and its file.
    open: Option<(u64, File)>,
    page: Vec<u8>,
}

impl MapWriter<'_> {
    /// Goes on in a map segment; also creates those passed over, which hold leaves only.
    fn segment(&mut self, number: u64) -> io::Result<&File> {
        let mut next = self.open.as_ref().map_or(0, |(open, _)| open + 1);
        while next <= number {
            let sequence = self.layout.first.map + next as u32;
            let file = self.layout.create(SegmentKind::Map, sequence, SEGMENT_BYTES)?;
            self.open = Some((next, file));
            next += 1;
        }
        match &self.open {
            Some((open, file)) if *open == number => Ok(file),
            _ => Err(io::Error::other("map pages out of order")),
        }
    }

    fn write(
        &mut self,
        level: u64,
        base: u64,
        end: u64,
        entries: &[MapEntry; MAP_FANOUT],
    ) -> io::Result<MapEntry> {
        let number = self.layout.page_number(end, level);
        let address = self.layout.page_address(number);
        let mut page = std::mem::take(&mut self.page);
        page.clear();
        let crc = encode_page(level as u8, self.layout.author.0, base, entries, &mut page);
        let offset = address.unit().offset_bytes();
        self.segment(number / segment_pages())?.write_all_at(&page, offset)?;
        self.page = page;
        Ok(MapEntry { address, crc })
    }

    /// A leaf that is there, and the data segments that it names.
    fn leaf(&mut self, base: u64, zeros: u32) -> io::Result<MapEntry> {
        let mut entries = Box::new([MapEntry::HOLE; MAP_FANOUT]);
        let mut created = 0;
        for (block, entry) in (base..).zip(entries.iter_mut()) {
            let address = self.layout.block_address(block);
            *entry = MapEntry { address, crc: zeros };
            if address.index().0 != created {
                created = address.index().0;
                let sequence = self.layout.first.data + created - 1;
                self.layout.create(SegmentKind::Data, sequence, SEGMENT_BYTES)?;
            }
        }
        self.write(0, base, base + LEAF_BLOCKS, &entries)
    }

    /// The whole map; returns the entry of its top page.
    fn map(&mut self) -> io::Result<MapEntry> {
        let zeros = crc32c(&[0; BLOCK_BYTES as usize]);
        let mut top = Box::new([MapEntry::HOLE; MAP_FANOUT]);
        let mut upper = top.clone();
        let mut inner = top.clone();
        for (above, entry) in
            (0..self.layout.blocks).step_by(UPPER_BLOCKS as usize).zip(top.iter_mut())
        {
            for (base, entry) in (above..).step_by(INNER_BLOCKS as usize).zip(upper.iter_mut()) {
                for (first, entry) in (base..).step_by(LEAF_BLOCKS as usize).zip(inner.iter_mut()) {
                    *entry = if first % STRIDE_BLOCKS == 0 {
                        self.leaf(first, zeros)?
                    } else {
                        let number = self.layout.page_number(first + LEAF_BLOCKS, 0);
                        // Any checksum does for a page that is not there.
                        MapEntry { address: self.layout.page_address(number), crc: first as u32 }
                    };
                }
                *entry = self.write(1, base, base + INNER_BLOCKS, &inner)?;
            }
            *entry = self.write(2, above, above + UPPER_BLOCKS, &upper)?;
        }
        let entry = self.write(3, 0, self.layout.blocks, &top)?;
        self.segment(self.layout.map_segments() - 1)?;
        Ok(entry)
    }
}

/// Writes pages of the segment table one after the other.
struct TableWriter<'a> {
    layout: &'a Layout,
    bytes: Vec<u8>,
    /// Table segments that are full.
    full: u32,
}

impl TableWriter<'_> {
    fn place(&mut self, encode: impl FnOnce(&mut Vec<u8>) -> u32) -> io::Result<PagePointer> {
        if SEGMENT_HEADER_BYTES as u64 + self.bytes.len() as u64 == TABLE_SEGMENT_BYTES {
            self.finish()?;
        }
        let slot = 1 + (self.bytes.len() / TABLE_PAGE_BYTES) as u32;
        let crc = encode(&mut self.bytes);
        let sequence = self.layout.first.table + self.full;
        Ok(PagePointer { author: self.layout.author.0, sequence, pool: 0, page: slot, crc })
    }

    /// Writes the open segment.
    fn finish(&mut self) -> io::Result<()> {
        let sequence = self.layout.first.table + self.full;
        let bytes = (SEGMENT_HEADER_BYTES + self.bytes.len()) as u64;
        let file = self.layout.create(SegmentKind::Table, sequence, bytes)?;
        file.write_all_at(&self.bytes, SEGMENT_HEADER_BYTES as u64)?;
        self.bytes.clear();
        self.full += 1;
        Ok(())
    }

    /// The segment with this index.
    fn entry(&self, index: u64) -> Option<SegmentEntry> {
        let (layout, author) = (self.layout, self.layout.author.0);
        let (data, map) = (layout.data_segments(), layout.map_segments());
        let entry = |kind, sequence: u64, live: u64| {
            let (sequence, live) = (sequence as u32, live as u32);
            SegmentEntry { author, sequence, pool: 0, kind, live, used: live }
        };
        let position = index.checked_sub(1)?;
        if position < data {
            let live =
                (layout.blocks - position * segment_data_blocks()).min(segment_data_blocks());
            return Some(entry(SegmentKind::Data, u64::from(layout.first.data) + position, live));
        }
        let position = position - data;
        let pages = layout.pages().saturating_sub(position * segment_pages()).min(segment_pages());
        (position < map).then(|| {
            let sequence = u64::from(layout.first.map) + position;
            entry(SegmentKind::Map, sequence, pages * full_page_units())
        })
    }

    /// The whole table; returns its top page and its levels.
    fn table(&mut self) -> io::Result<(PagePointer, u32)> {
        let author = self.layout.author.0;
        let indices = 1 + self.layout.data_segments() + self.layout.map_segments();
        let mut pointers = Vec::new();
        for base in (0..indices).step_by(TABLE_FANOUT) {
            let entries: Vec<_> =
                (base..base + TABLE_FANOUT as u64).map(|index| self.entry(index)).collect();
            pointers.push(self.place(|out| encode_segments(author, base, &entries, out))?);
        }
        let (mut level, mut covers) = (1, (TABLE_FANOUT * TABLE_FANOUT) as u64);
        while pointers.len() > 1 {
            let mut above = Vec::new();
            for (base, below) in (0..).step_by(covers as usize).zip(pointers.chunks(TABLE_FANOUT)) {
                let below: Vec<_> = below.iter().copied().map(Some).collect();
                above.push(
                    self.place(|out| encode_pointers(level as u8, author, base, &below, out))?,
                );
            }
            pointers = above;
            (level, covers) = (level + 1, covers * TABLE_FANOUT as u64);
        }
        self.finish()?;
        Ok((pointers[0], level))
    }
}

fn create(pool: &Pool, size_bytes: u64) -> Result<ImageId> {
    let options = CreateOptions::sized(size_bytes);
    let id = pool.create("image", &options)?;
    // Opened once, so that the directories are what the engine makes them.
    let mut image = pool.open(id)?;
    image.write_at(0, &[0])?;
    image.close()?;
    Ok(id)
}

/// Fills the image, which must be closed.
fn fill(pool: &Pool, id: ImageId, size_bytes: u64) -> io::Result<()> {
    let path = pool.image_directory(id).join("head");
    let (head, _) = decode_message::<HeadRecord>(FrameKind::Head, &std::fs::read(&path)?)
        .map_err(io::Error::other)?;
    let first = head.marks.unwrap_or_default();
    let directory = pool.directory().join("segments").join(id.to_string());
    let layout = Layout { blocks: size_bytes / BLOCK_BYTES, author: id, first, directory };
    let mut map = MapWriter { layout: &layout, open: None, page: Vec::new() };
    let top = map.map()?;
    let mut table = TableWriter { layout: &layout, bytes: Vec::new(), full: 0 };
    let (pointer, levels) = table.table()?;
    let PagePointer { author, sequence, page, crc, .. } = pointer;
    let (data, map) = (layout.data_segments() as u32, layout.map_segments() as u32);
    let marks = SegmentMarks {
        data: first.data + data,
        map: first.map + map,
        table: first.table + table.full,
    };
    let group = layout.blocks / GROUP_BLOCKS + head.log.map_or(1, |log| log.group);
    let root = RootRecord {
        size_bytes,
        map_address: { top.address }.0,
        map_crc: top.crc,
        table: Some(TablePointer { author, sequence, pool: 0, page, crc }),
        table_levels: levels,
        segment_next: 1 + data + map,
        pools: vec![pool.id().0],
        mapped_blocks: layout.blocks,
        ..RootRecord::default()
    };
    let head = HeadRecord {
        epoch: head.epoch.max(EPOCH) + 1,
        version: head.version + 1,
        root: Some(root),
        log: Some(LogPosition { sequence: marks.data, slot: 1, group }),
        marks: Some(marks),
        open_from: Some(marks),
        ..head
    };
    std::fs::write(path, encode_message(FrameKind::Head, &head))
}

fn make(directory: &Path, tib: u64) -> Result<()> {
    let store = Store::open(directory)?;
    let pool = store.pool_create("large", &PoolOptions::default())?;
    let id = create(&pool, tib * TIB)?;
    fill(&pool, id, tib * TIB).map_err(|error| {
        marcot::Error::new(marcot::ErrorKind::Io, format!("cannot fill the image: {error}"))
    })
}

fn main() -> std::process::ExitCode {
    let mut words = std::env::args().skip(1);
    let directory = words.next().map(PathBuf::from);
    let tib = words.next().map_or(Some(64), |word| word.parse::<u64>().ok());
    let most = marcot::IMAGE_BYTES_MAX / TIB;
    let (Some(directory), Some(tib @ 1..), None) = (directory, tib, words.next()) else {
        eprintln!("usage: large_image DIRECTORY [TIB]");
        return 2.into();
    };
    if tib > most {
        eprintln!("large_image: the largest image is {most} TiB");
        return 2.into();
    }
    match make(&directory, tib) {
        Ok(()) => 0.into(),
        Err(error) => {
            eprintln!("large_image: {}", error.sentence());
            1.into()
        }
    }
}
