//! VMDK in one file that keeps holes: monolithic sparse, and stream-optimised with its packed grains.
//!
//! After the VMware Virtual Disk Format 1.1. All numbers are little-endian, and places are sectors of 512 bytes.
//!
//! ```text
//! grain directory   4 bytes an entry: where a grain table lies; 0: there is none
//! grain table       4 bytes an entry: where a grain lies; 0: nowhere; 1 with the flag for it: it reads as zeros
//! packed grain      8 bytes: its first sector in the disk; 4 bytes: how many follow; then zlib
//! ```

use std::io::Read;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::mapped::{Map, Mapped, Place, Run};
use crate::pages::{Pages, field};
use crate::source::Source;

/// The first four bytes.
pub const MAGIC: [u8; 4] = *b"KDMV";
/// The first bytes of a file that only describes a disk.
pub const DESCRIPTION: &[u8] = b"# Disk DescriptorFile";
/// The first four bytes of sparse files of ESX.
pub const ESX_MAGIC: [u8; 4] = *b"COWD";

const SECTOR_BYTES: u64 = 512;
const HEADER_BYTES: usize = 512;
/// In place of the directory: a footer at the end of the file has its place.
const DIRECTORY_AT_END: u64 = u64::MAX;
/// The footer begins so many bytes before the end: it has a sector, and one that ends the stream follows.
const FOOTER_BYTES_FROM_END: u64 = 1024;
const FLAG_ZEROED_GRAINS: u32 = 1 << 2;
const FLAG_PACKED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;
const ZEROED_GRAIN: u32 = 1;
const MARKER_BYTES: usize = 12;
/// Grains have 64 KiB as all programs make them. More than these are not read.
const GRAIN_SECTORS: std::ops::RangeInclusive<u64> = 1..=(8 << 20) / SECTOR_BYTES;
/// Tables have 512 entries as all programs make them.
const TABLE_ENTRIES: std::ops::RangeInclusive<u32> = 1..=1 << 16;
/// Largest disk in sectors: 64 PiB.
const SECTORS_MAX: u64 = 1 << 47;
/// How much of the description inside is looked at, in bytes.
const DESCRIPTION_BYTES_MAX: u64 = 64 << 10;

/// Where the grains of a disk are.
pub struct Grains {
    pages: Pages,
    size_bytes: u64,
    grain_bytes: u64,
    table_entries: u64,
    directory: u64,
    packed: bool,
    zeroed: bool,
}

/// Opens the disk in a container.
///
/// # Errors
/// `Invalid` if it is no VMDK; `Damaged`; `Unsupported`; those of reading.
pub fn open(container: Arc<dyn Source>) -> Result<Mapped<Grains>> {
    let pages = Pages::new(Arc::clone(&container));
    let mut header = [0; HEADER_BYTES];
    let has = pages.length_bytes().min(HEADER_BYTES as u64) as usize;
    pages.read(0, &mut header[..has], "the header")?;
    if header.starts_with(DESCRIPTION) {
        return Err(Error::unsupported(
            "it only describes a disk whose data lie in other files: make one file of them with 'qemu-img convert'",
        ));
    }
    if header.starts_with(&ESX_MAGIC) {
        return Err(Error::unsupported(
            "sparse files of ESX are not read: export the disk, or convert it with 'vmkfstools -i'",
        ));
    }
    if !header.starts_with(&MAGIC) {
        return Err(Error::invalid("it is no VMDK disk"));
    }
    if has < HEADER_BYTES {
        return Err(Error::damaged("its header is cut off"));
    }
    refuse_parent(&pages, &header)?;
    let directory = u64::from_le_bytes(field(&header, 56));
    if directory == DIRECTORY_AT_END {
        let cut = || Error::damaged("its footer is missing: it is cut off");
        let at = pages.length_bytes().checked_sub(FOOTER_BYTES_FROM_END).ok_or_else(cut)?;
        pages.read(at, &mut header, "the footer")?;
        if !header.starts_with(&MAGIC) {
            return Err(cut());
        }
    }
    let grains = Grains::read(pages, &header)?;
    Ok(Mapped::new(grains, container, None))
}

impl Grains {
    fn read(pages: Pages, header: &[u8; HEADER_BYTES]) -> Result<Self> {
        let u64_at = |at| u64::from_le_bytes(field(header, at));
        let u32_at = |at| u32::from_le_bytes(field(header, at));
        let (version, flags) = (u32_at(4), u32_at(8));
        if !(1..=3).contains(&version) {
            return Err(Error::unsupported(format!("VMDK of version {version} is not read")));
        }
        let (sectors, grain_sectors, entries) = (u64_at(12), u64_at(20), u32_at(44));
        if sectors > SECTORS_MAX {
            return Err(Error::damaged("its size is larger than any disk"));
        }
        if !GRAIN_SECTORS.contains(&grain_sectors) || !grain_sectors.is_power_of_two() {
            return Err(Error::damaged(format!("grains of {grain_sectors} sectors do not exist")));
        }
        if !TABLE_ENTRIES.contains(&entries) {
            return Err(Error::damaged(format!("grain tables of {entries} entries do not exist")));
        }
        let packed = flags & FLAG_PACKED != 0;
        let algorithm = u16::from_le_bytes(field(header, 77));
        if packed && (algorithm != 1 || flags & FLAG_MARKERS == 0) {
            return Err(Error::unsupported(format!("compression {algorithm} is not known")));
        }
        let directory = u64_at(56);
        let odd = || Error::damaged("its grain directory lies at an odd place");
        let directory = directory.checked_mul(SECTOR_BYTES).ok_or_else(odd)?;
        let (grain_bytes, table_entries) = (grain_sectors * SECTOR_BYTES, u64::from(entries));
        let size_bytes = sectors * SECTOR_BYTES;
        let tables = size_bytes.div_ceil(grain_bytes * table_entries);
        pages.require(directory, tables * 4, "the grain directory")?;
        let zeroed = flags & FLAG_ZEROED_GRAINS != 0;
        Ok(Self { pages, size_bytes, grain_bytes, table_entries, directory, packed, zeroed })
    }
}

impl Map for Grains {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn run(&self, offset: u64) -> Result<Run> {
        let (grain, within) = (offset / self.grain_bytes, offset % self.grain_bytes);
        let at = self.directory + grain / self.table_entries * 4;
        let table = u32::from_le_bytes(self.pages.entry(at, "the grain directory")?);
        if table == 0 {
            let covered = self.grain_bytes * self.table_entries;
            return Ok(Run { place: Place::Zero, length: covered - offset % covered });
        }
        let at = u64::from(table) * SECTOR_BYTES + grain % self.table_entries * 4;
        let sector = u32::from_le_bytes(self.pages.entry(at, "a grain table")?);
        let at = u64::from(sector) * SECTOR_BYTES;
        let place = match sector {
            0 => Place::Zero,
            ZEROED_GRAIN if self.zeroed => Place::Zero,
            _ if self.packed => Place::Packed { at, unit: offset - within },
            _ => Place::Plain(at + within),
        };
        Ok(Run { place, length: self.grain_bytes - within })
    }

    fn unpack(&self, at: u64, unit: u64) -> Result<Vec<u8>> {
        let mut marker = [0; MARKER_BYTES];
        self.pages.read(at, &mut marker, "a packed grain")?;
        let sector = u64::from_le_bytes(field(&marker, 0));
        let length = u64::from(u32::from_le_bytes(field(&marker, 8)));
        if sector != unit / SECTOR_BYTES || length > 2 * self.grain_bytes + SECTOR_BYTES {
            return Err(Error::damaged(format!("the grain at byte {at} belongs elsewhere")));
        }
        let mut packed = vec![0; length as usize];
        self.pages.read(at + MARKER_BYTES as u64, &mut packed, "a packed grain")?;
        // The last grain may be shorter than the others.
        let wanted = self.grain_bytes.min(self.size_bytes - unit);
        let mut bytes = Vec::with_capacity(self.grain_bytes as usize);
        let decoder = flate2::read::ZlibDecoder::new(&packed[..]);
        let unpacked = decoder.take(self.grain_bytes + 1).read_to_end(&mut bytes);
        match unpacked {
            Ok(length) if (wanted..=self.grain_bytes).contains(&(length as u64)) => Ok(bytes),
            _ => Err(Error::damaged(format!("the grain at byte {at} cannot be unpacked"))),
        }
    }
}

/// Fails for a disk that only has what differs from another one.
fn refuse_parent(pages: &Pages, header: &[u8; HEADER_BYTES]) -> Result<()> {
    let sectors = |at| u64::from_le_bytes(field(header, at)).saturating_mul(SECTOR_BYTES);
    let (at, length) = (sectors(28), sectors(36).min(DESCRIPTION_BYTES_MAX));
    if at == 0 || length == 0 {
        return Ok(());
    }
    let mut bytes = vec![0; length as usize];
    pages.read(at, &mut bytes, "the description")?;
    let text = String::from_utf8_lossy(&bytes);
    let parent = text.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        key.trim().eq_ignore_ascii_case("parentCID").then(|| value.trim().to_ascii_lowercase())
    });
    match parent {
        Some(parent) if parent != "ffffffff" => Err(Error::unsupported(
            "it has only what differs from its parent: consolidate the snapshots first, or use 'qemu-img convert'",
        )),
        _ => Ok(()),
    }
}
