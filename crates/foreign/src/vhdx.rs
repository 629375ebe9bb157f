//! VHDX, fixed and dynamic, of Hyper-V.
//!
//! After [MS-VHDX]. All numbers are little-endian.
//!
//! ```text
//! 0                  "vhdxfile"
//! 64 KiB, 128 KiB    two headers; the one with the higher sequence number, whose checksum is right, counts
//! 192 KiB, 256 KiB   the table of regions, twice: where the table of blocks and the metadata lie
//! metadata           size of the disk, of a block, of a sector
//! table of blocks    8 bytes an entry: bits 0-2 the state, bits 20-63 the MiB where the block lies. Behind the entries of
//!                    every 2^23 sectors stands one that only disks with a parent use
//! ```

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::mapped::{Map, Mapped, Place, Run};
use crate::pages::{Pages, field};
use crate::source::Source;

/// The first eight bytes.
pub const MAGIC: [u8; 8] = *b"vhdxfile";
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const HEADER_BYTES: usize = 4096;
const REGIONS: [u64; 2] = [192 << 10, 256 << 10];
const REGION_TABLE_BYTES: usize = 64 << 10;
const METADATA_TABLE_BYTES: usize = 64 << 10;
/// Entries of a table of regions or metadata.
const ENTRIES_MAX: u32 = 2047;
/// Regions lie at multiples of this and behind the headers, in bytes.
const REGION_ALIGNMENT_BYTES: u64 = 1 << 20;
/// Sectors that one chunk of the table has.
const CHUNK_SECTORS: u64 = 1 << 23;
const SIZE_BYTES_MAX: u64 = 64 << 40;
const BLOCK_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=256 << 20;
const NOT_CLOSED: &str = "it was not closed, and its log has changes: let the program that has made it, or 'qemu-img check -r all', open it once";

/// A GUID in the order in which it is written.
const fn guid(a: u32, b: u16, c: u16, rest: [u8; 8]) -> [u8; 16] {
    let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let r = rest;
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7]]
}

const REGION_BLOCKS: [u8; 16] =
    guid(0x2dc2_7766, 0xf623, 0x4200, [0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08]);
const REGION_METADATA: [u8; 16] =
    guid(0x8b7c_a206, 0x4790, 0x4b9a, [0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e]);
const FILE_PARAMETERS: [u8; 16] =
    guid(0xcaa1_6737, 0xfa36, 0x4d43, [0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b]);
const DISK_SIZE: [u8; 16] =
    guid(0x2fa5_4224, 0xcd1b, 0x4876, [0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8]);
const SECTOR_SIZE: [u8; 16] =
    guid(0x8141_bf1d, 0xa96f, 0x4709, [0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f]);
const PHYSICAL_SECTOR_SIZE: [u8; 16] =
    guid(0xcda3_48c7, 0x445d, 0x4471, [0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56]);
const DISK_ID: [u8; 16] =
    guid(0xbeca_12ab, 0xb2e6, 0x4523, [0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46]);
const PARENT_LOCATOR: [u8; 16] =
    guid(0xa8d3_5f2d, 0xb30b, 0x454d, [0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c]);

/// Where the blocks of a disk are.
pub struct Blocks {
    pages: Pages,
    size_bytes: u64,
    block_bytes: u64,
    /// Blocks of a chunk.
    chunk_blocks: u64,
    table: u64,
}

/// Opens the disk in a container.
///
/// # Errors
/// `Invalid` if it is no VHDX; `Damaged`; `Unsupported`; those of reading.
pub fn open(container: Arc<dyn Source>) -> Result<Mapped<Blocks>> {
    let pages = Pages::new(Arc::clone(&container));
    let blocks = Blocks::read(pages)?;
    Ok(Mapped::new(blocks, container, None))
}

/// True if the checksum at byte 4 is right. It is computed with zeros in its place.
fn is_sound(bytes: &[u8]) -> bool {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for part in [&bytes[..4], &[0; 4], &bytes[8..]] {
        digest.update(part);
    }
    digest.finalize() == u64::from(u32::from_le_bytes(field(bytes, 4)))
}

impl Blocks {
    fn read(pages: Pages) -> Result<Self> {
        let mut magic = [0; 8];
        if pages.length_bytes() >= magic.len() as u64 {
            pages.read(0, &mut magic, "the header")?;
        }
        if magic != MAGIC {
            return Err(Error::invalid("it is no VHDX disk"));
        }
        check_log(&pages)?;
        let (table, metadata) = read_regions(&pages)?;
        let about = Metadata::read(&pages, metadata)?;
        let Metadata { size_bytes, block_bytes, sector_bytes } = about;
        let chunk_blocks = CHUNK_SECTORS * sector_bytes / block_bytes;
        let blocks = size_bytes.div_ceil(block_bytes);
        let entries = blocks + blocks.saturating_sub(1) / chunk_blocks;
        if entries * 8 > table.1 {
            return Err(Error::damaged("its table of blocks is too short for its size"));
        }
        pages.require(table.0, entries * 8, "the table of blocks")?;
        Ok(Self { pages, size_bytes, block_bytes, chunk_blocks, table: table.0 })
    }
}

/// Fails if the log has what the file has not.
fn check_log(pages: &Pages) -> Result<()> {
    let mut newest: Option<(u64, [u8; HEADER_BYTES])> = None;
    for at in HEADERS {
        let mut header = [0; HEADER_BYTES];
        pages.read(at, &mut header, "a header")?;
        if !header.starts_with(b"head") || !is_sound(&header) {
            continue;
        }
        let sequence = u64::from_le_bytes(field(&header, 8));
        if newest.as_ref().is_none_or(|(newest, _)| sequence > *newest) {
            newest = Some((sequence, header));
        }
    }
    let (_, header) = newest.ok_or_else(|| Error::damaged("both of its headers are damaged"))?;
    let version = u16::from_le_bytes(field(&header, 66));
    if version != 1 {
        return Err(Error::unsupported(format!("VHDX of version {version} is not read")));
    }
    match field::<16>(&header, 48) {
        log if log == [0; 16] => Ok(()),
        _ => Err(Error::unsupported(NOT_CLOSED)),
    }
}

/// Place and length of the table of blocks, and of the metadata.
fn read_regions(pages: &Pages) -> Result<((u64, u64), (u64, u64))> {
    let mut bytes = vec![0; REGION_TABLE_BYTES];
    let mut found = false;
    for at in REGIONS {
        pages.read(at, &mut bytes, "the table of regions")?;
        found = bytes.starts_with(b"regi") && is_sound(&bytes);
        if found {
            break;
        }
    }
    let count = u32::from_le_bytes(field(&bytes, 8));
    if !found || count > ENTRIES_MAX {
        return Err(Error::damaged("its table of regions is damaged"));
    }
    let (mut blocks, mut metadata) = (None, None);
    for entry in bytes[16..].chunks_exact(32).take(count as usize) {
        let (at, length) =
            (u64::from_le_bytes(field(entry, 16)), u32::from_le_bytes(field(entry, 24)));
        let required = u32::from_le_bytes(field(entry, 28)) & 1 != 0;
        if !at.is_multiple_of(REGION_ALIGNMENT_BYTES) || at < REGION_ALIGNMENT_BYTES {
            return Err(Error::damaged("a region lies at an odd place"));
        }
        let place = Some((at, u64::from(length)));
        match field::<16>(entry, 0) {
            REGION_BLOCKS => blocks = place,
            REGION_METADATA => metadata = place,
            _ if required => return Err(Error::unsupported("it has a region that is not known")),
            _ => {}
        }
    }
    let missing = || Error::damaged("its table of regions lacks one");
    Ok((blocks.ok_or_else(missing)?, metadata.ok_or_else(missing)?))
}

struct Metadata {
    size_bytes: u64,
    block_bytes: u64,
    sector_bytes: u64,
}

impl Metadata {
    fn read(pages: &Pages, (at, length): (u64, u64)) -> Result<Self> {
        let mut bytes = vec![0; METADATA_TABLE_BYTES];
        pages.read(at, &mut bytes, "the metadata")?;
        let count = u16::from_le_bytes(field(&bytes, 10));
        if !bytes.starts_with(b"metadata") || u32::from(count) > ENTRIES_MAX {
            return Err(Error::damaged("its metadata are damaged"));
        }
        let (mut size_bytes, mut block_bytes, mut sector_bytes) = (None, None, None);
        for entry in bytes[32..].chunks_exact(32).take(count.into()) {
            let offset = u64::from(u32::from_le_bytes(field(entry, 16)));
            let required = u32::from_le_bytes(field(entry, 24)) & 4 != 0;
            let value = || -> Result<[u8; 8]> {
                if offset < METADATA_TABLE_BYTES as u64 || offset + 8 > length {
                    return Err(Error::damaged("its metadata are damaged"));
                }
                pages.entry(at + offset, "the metadata")
            };
            let low = |value: [u8; 8]| u64::from(u32::from_le_bytes(field(&value, 0)));
            match field::<16>(entry, 0) {
                FILE_PARAMETERS => {
                    let value = value()?;
                    refuse_parent(value[4] & 2 != 0)?;
                    block_bytes = Some(low(value));
                }
                DISK_SIZE => size_bytes = Some(u64::from_le_bytes(value()?)),
                SECTOR_SIZE => sector_bytes = Some(low(value()?)),
                PARENT_LOCATOR => refuse_parent(true)?,
                PHYSICAL_SECTOR_SIZE | DISK_ID => {}
                _ if required => {
                    return Err(Error::unsupported("it has metadata that are not known"));
                }
                _ => {}
            }
        }
        let missing = || Error::damaged("its metadata lack something");
        let size_bytes = size_bytes.ok_or_else(missing)?;
        let block_bytes = block_bytes.ok_or_else(missing)?;
        let sector_bytes = sector_bytes.ok_or_else(missing)?;
        if size_bytes > SIZE_BYTES_MAX
            || !BLOCK_BYTES.contains(&block_bytes)
            || !block_bytes.is_power_of_two()
            || ![512, 4096].contains(&sector_bytes)
            || !size_bytes.is_multiple_of(sector_bytes)
        {
            return Err(Error::damaged("its metadata make no sense"));
        }
        Ok(Self { size_bytes, block_bytes, sector_bytes })
    }
}

fn refuse_parent(has_parent: bool) -> Result<()> {
    match has_parent {
        true => Err(Error::unsupported(
            "it has only what differs from its parent: merge it into the parent first",
        )),
        false => Ok(()),
    }
}

impl Map for Blocks {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn run(&self, offset: u64) -> Result<Run> {
        const FULLY_PRESENT: u64 = 6;
        const PARTIALLY_PRESENT: u64 = 7;
        let (block, within) = (offset / self.block_bytes, offset % self.block_bytes);
        let index = block + block / self.chunk_blocks;
        let entry = self.pages.entry(self.table + index * 8, "the table of blocks")?;
        let entry = u64::from_le_bytes(entry);
        let at = entry & !((1 << 20) - 1);
        let place = match entry & 7 {
            // Not present, undefined, zero, unmapped: without a parent they read as zeros.
            0..=3 => Place::Zero,
            FULLY_PRESENT if at >= REGION_ALIGNMENT_BYTES => {
                self.pages.require(at, 1, "a block")?;
                Place::Plain(at + within)
            }
            FULLY_PRESENT | PARTIALLY_PRESENT => {
                return Err(Error::damaged("a block is there, but nowhere"));
            }
            state => return Err(Error::damaged(format!("blocks in state {state} do not exist"))),
        };
        Ok(Run { place, length: self.block_bytes - within })
    }

    fn unpack(&self, _: u64, _: u64) -> Result<Vec<u8>> {
        Err(Error::damaged("nothing is packed in a VHDX"))
    }
}
