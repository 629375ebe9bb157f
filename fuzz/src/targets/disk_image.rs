//! Disk images of other programs, in every format, and packed streams.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use marcot_foreign::compressed::Packing;
use marcot_foreign::open::{self, Nobody};
use marcot_foreign::{Error, Extent, Format, Result, Source};

const PAGE_BYTES: usize = 4096;
/// Longest container in bytes.
const CONTAINER_BYTES_MAX: u32 = 1 << 28;
/// How much of a disk is read, and of a packed stream.
const READ_BYTES_MAX: u64 = 512 << 10;

/// A container with few bytes in it: its length, and pages with their numbers. All others are zeros.
struct Container {
    length_bytes: u64,
    pages: BTreeMap<u64, [u8; PAGE_BYTES]>,
}

impl Container {
    /// Four bytes of length; then, for each page, two bytes of its number and its bytes. The last page may be shorter.
    fn read(data: &[u8]) -> Self {
        let (length, rest) = data.split_at(data.len().min(4));
        let mut bytes = [0; 4];
        bytes[..length.len()].copy_from_slice(length);
        let length_bytes = u64::from(u32::from_le_bytes(bytes) % CONTAINER_BYTES_MAX);
        let mut pages = BTreeMap::new();
        for record in rest.chunks(2 + PAGE_BYTES).filter(|record| record.len() > 2) {
            let mut page = [0; PAGE_BYTES];
            page[..record.len() - 2].copy_from_slice(&record[2..]);
            pages.insert(u64::from(u16::from_le_bytes([record[0], record[1]])), page);
        }
        Self { length_bytes, pages }
    }
}

impl Source for Container {
    fn size_bytes(&self) -> u64 {
        self.length_bytes
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.length_bytes) {
            return Err(Error::invalid("behind the end"));
        }
        let mut at = 0;
        while at < buf.len() {
            let place = offset + at as u64;
            let within = (place % PAGE_BYTES as u64) as usize;
            let part = (PAGE_BYTES - within).min(buf.len() - at);
            match self.pages.get(&(place / PAGE_BYTES as u64)) {
                Some(page) => buf[at..at + part].copy_from_slice(&page[within..within + part]),
                None => buf[at..at + part].fill(0),
            }
            at += part;
        }
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        Ok(vec![Extent { offset, length, data: true }])
    }
}

/// Parts lie in the range, in order and without gaps, and there is one.
fn check(parts: &[Extent], offset: u64, length: u64) {
    let mut at = offset;
    for part in parts {
        assert!(part.offset == at && part.length > 0, "{part:?} at {at}");
        at += part.length;
    }
    assert!(length == 0 || at > offset && at <= offset + length, "{at} of {offset}+{length}");
}

fn explore(disk: &dyn Source) {
    let size_bytes = disk.size_bytes();
    // Of an empty range nothing is promised.
    if size_bytes == 0 {
        return;
    }
    let Ok(parts) = disk.extents(0, size_bytes) else { return };
    check(&parts, 0, size_bytes);
    let mut buf = vec![0; READ_BYTES_MAX as usize / 4];
    for part in parts.iter().filter(|part| part.data).take(4) {
        let length = part.length.min(buf.len() as u64) as usize;
        let _ = disk.read_at(part.offset, &mut buf[..length]);
    }
}

/// Whatever a file holds, reading it as a disk ends, and its map of holes makes sense.
pub fn disk_image(data: &[u8]) {
    let container = Arc::new(Container::read(data));
    for format in Format::ALL {
        let file: Arc<dyn Source> = container.clone();
        let Ok(disk) = open::open(file, format, &mut Nobody) else { continue };
        explore(disk.as_ref());
        for index in 0..disk.snapshots().len().min(3) {
            let Ok(state) = disk.at_snapshot(index) else { continue };
            explore(state.as_ref());
            let common = disk.size_bytes().min(state.size_bytes());
            match disk.changes(index, 0, common) {
                Ok(parts) if common > 0 => check(&parts, 0, common),
                _ => {}
            }
        }
    }
}

/// Whatever is unpacked, it ends.
pub fn packed_stream(data: &[u8]) {
    for packing in [Packing::Gzip, Packing::Xz, Packing::Zstd] {
        let mut piece = vec![0; 64 << 10];
        let mut stream = packing.unpack(data).take(READ_BYTES_MAX);
        while let Ok(1..) = stream.read(&mut piece) {}
    }
}
