//! VHD, fixed and dynamic, of Virtual PC, Hyper-V and Azure.
//!
//! After the Virtual Hard Disk Image Format Specification 1.0. All numbers are big-endian.
//!
//! ```text
//! fixed      the bytes of the disk, then a footer of 512 bytes
//! dynamic    a copy of the footer; a header of 1024 bytes; a table with 4 bytes a block (the sector where it lies;
//!            ffffffff: nowhere); blocks, each behind a bit for every sector of it; the footer
//! ```

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::mapped::{Map, Mapped, Place, Run};
use crate::pages::{Pages, field};
use crate::source::Source;

/// The first bytes of a footer, and so of a dynamic disk.
pub const COOKIE: [u8; 8] = *b"conectix";
const HEADER_COOKIE: [u8; 8] = *b"cxsparse";
/// Length of a footer in bytes.
pub const FOOTER_BYTES: usize = 512;
const HEADER_BYTES: usize = 1024;
const SECTOR_BYTES: u64 = 512;
const NOWHERE: u32 = u32::MAX;
/// Blocks have 2 MiB as nearly all programs make them. The bits of a block are looked at one after the other.
const BLOCK_BYTES: std::ops::RangeInclusive<u64> = 4096..=16 << 20;

const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;

/// Where the bytes of a disk are.
pub enum Blocks {
    /// Where they belong.
    Fixed {
        /// Of the disk.
        size_bytes: u64,
    },
    /// In blocks.
    Dynamic {
        /// The container.
        pages: Pages,
        /// Of the disk.
        size_bytes: u64,
        /// Of a block.
        block_bytes: u64,
        /// Where the table lies.
        table: u64,
    },
}

/// Opens the disk in a container.
///
/// # Errors
/// `Invalid` if it is no VHD; `Damaged`; `Unsupported`; those of reading.
pub fn open(container: Arc<dyn Source>) -> Result<Mapped<Blocks>> {
    let pages = Pages::new(Arc::clone(&container));
    let blocks = Blocks::read(pages)?;
    Ok(Mapped::new(blocks, container, None))
}

/// True for a footer whose checksum is right.
#[must_use]
pub fn is_footer(bytes: &[u8; FOOTER_BYTES]) -> bool {
    bytes.starts_with(&COOKIE) && is_sound(bytes, 64)
}

/// The checksum lies at `at`: the complement of the sum of all other bytes.
fn is_sound(bytes: &[u8], at: usize) -> bool {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    u32::from_be_bytes(field(bytes, at)) == !(sum(bytes) - sum(&bytes[at..at + 4]))
}

impl Blocks {
    fn read(pages: Pages) -> Result<Self> {
        let mut footer = [0; FOOTER_BYTES];
        let length = pages.length_bytes();
        let last = length.checked_sub(FOOTER_BYTES as u64);
        let last = last.ok_or_else(|| Error::invalid("it is no VHD disk"))?;
        pages.read(last, &mut footer, "the footer")?;
        if !is_footer(&footer) {
            let mut first = [0; FOOTER_BYTES];
            pages.read(0, &mut first, "the footer")?;
            return Err(match footer.starts_with(&COOKIE) || first.starts_with(&COOKIE) {
                true => {
                    Error::damaged("the footer at its end is missing or damaged: it may be cut off")
                }
                false => Error::invalid("it is no VHD disk"),
            });
        }
        let (size_bytes, kind) =
            (u64::from_be_bytes(field(&footer, 48)), u32::from_be_bytes(field(&footer, 60)));
        match kind {
            FIXED if size_bytes <= last => Ok(Self::Fixed { size_bytes }),
            FIXED => Err(Error::damaged(format!(
                "its disk has {size_bytes} bytes, but the file only {length}: it is cut off"
            ))),
            DYNAMIC => Self::read_dynamic(pages, &footer, size_bytes),
            DIFFERENCING => Err(Error::unsupported(
                "it has only what differs from its parent: merge it into the parent first",
            )),
            other => Err(Error::unsupported(format!("VHD of kind {other} is not read"))),
        }
    }

    fn read_dynamic(pages: Pages, footer: &[u8; FOOTER_BYTES], size_bytes: u64) -> Result<Self> {
        let mut header = [0; HEADER_BYTES];
        pages.read(u64::from_be_bytes(field(footer, 16)), &mut header, "the header")?;
        if !header.starts_with(&HEADER_COOKIE) || !is_sound(&header, 36) {
            return Err(Error::damaged("its header is damaged"));
        }
        let table = u64::from_be_bytes(field(&header, 16));
        let [entries, block_bytes] =
            [28, 32].map(|at| u64::from(u32::from_be_bytes(field(&header, at))));
        if !BLOCK_BYTES.contains(&block_bytes) || !block_bytes.is_power_of_two() {
            return Err(Error::damaged(format!("blocks of {block_bytes} bytes do not exist")));
        }
        let needs = size_bytes.div_ceil(block_bytes);
        if needs > entries {
            let message = format!(
                "its table has {entries} blocks, but a disk of {size_bytes} bytes takes {needs}"
            );
            return Err(Error::damaged(message));
        }
        pages.require(table, needs * 4, "the table of blocks")?;
        Ok(Self::Dynamic { pages, size_bytes, block_bytes, table })
    }
}

impl Map for Blocks {
    fn size_bytes(&self) -> u64 {
        match self {
            Self::Fixed { size_bytes } | Self::Dynamic { size_bytes, .. } => *size_bytes,
        }
    }

    fn run(&self, offset: u64) -> Result<Run> {
        let Self::Dynamic { pages, block_bytes, table, .. } = self else {
            return Ok(Run { place: Place::Plain(offset), length: self.size_bytes() - offset });
        };
        let (block, within) = (offset / block_bytes, offset % block_bytes);
        let entry = pages.entry(table + block * 4, "the table of blocks")?;
        let sector = u32::from_be_bytes(entry);
        if sector == NOWHERE {
            return Ok(Run { place: Place::Zero, length: block_bytes - within });
        }
        let bitmap = u64::from(sector) * SECTOR_BYTES;
        let bitmap_bytes = (block_bytes / SECTOR_BYTES / 8).next_multiple_of(SECTOR_BYTES);
        // What was never written reads as zeros, whatever lies there.
        let mut at = within / SECTOR_BYTES;
        let (mut first, mut is_written) = (None, false);
        while at < block_bytes / SECTOR_BYTES {
            let [bits] = pages.entry(bitmap + at / 8, "the bits of a block")?;
            // The first sector has the highest bit.
            let written = bits << (at % 8) & 0x80 != 0;
            if *first.get_or_insert(written) != written {
                break;
            }
            is_written = written;
            let whole = if written { u8::MAX } else { 0 };
            at = if at.is_multiple_of(8) && bits == whole { at + 8 } else { at + 1 };
        }
        let place = match is_written {
            true => Place::Plain(bitmap + bitmap_bytes + within),
            false => Place::Zero,
        };
        Ok(Run { place, length: at * SECTOR_BYTES - within })
    }

    fn unpack(&self, _: u64, _: u64) -> Result<Vec<u8>> {
        Err(Error::damaged("nothing is packed in a VHD"))
    }
}
