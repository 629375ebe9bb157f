//! A page of the block map: a leaf of 512 block addresses, or an inner node of 512 page addresses.
//!
//! ```text
//! byte 0       4    5    6    7   8       12      16          24          32      36      40
//!      +-------+----+----+----+---+-------+-------+-----------+-----------+-------+-------+
//!      | magic | ver|leve|form| 0 | bytes | crc   | author    | base      |entries| zero  |
//!      +-------+----+----+----+---+-------+-------+-----------+-----------+-------+-------+
//!      | form 0 (dense):  512 x (address u64, CRC-32C u32)                                 |
//!      | form 1 (sparse): entries x (position u16, address u64, CRC-32C u32)               |
//! ```
//!
//! `level` is 0 for a leaf. `base` is the first block that the page covers, so that a page found in a
//! segment can be looked up in the map. The checksum covers the page with its own field as zero. The entry
//! that points to the page holds the checksum too. So a page that was written to, or read from, the wrong
//! place is noticed.

use crate::address::{MAP_ENTRY_BYTES, MAP_UNIT_BYTES};
use crate::{
    BlockAddress, FormatError, MAP_FANOUT, MAP_FANOUT_BITS, MAP_LEVELS, MapEntry, crc32c_without,
    get_u16, get_u32, get_u64, put,
};

/// First four bytes of a page.
pub const PAGE_MAGIC: [u8; 4] = *b"mcPG";
/// Version this code writes.
pub const PAGE_VERSION: u8 = 1;
/// Bytes before the entries.
pub const PAGE_HEADER_BYTES: usize = 40;
/// Length of the longest page in bytes.
pub const PAGE_BYTES_MAX: usize = PAGE_HEADER_BYTES + MAP_FANOUT * MAP_ENTRY_BYTES;
/// Bytes that a reader asks for to get any page completely.
pub const PAGE_READ_BYTES: usize =
    PAGE_BYTES_MAX.div_ceil(MAP_UNIT_BYTES as usize) * MAP_UNIT_BYTES as usize;

const SPARSE_BYTES: usize = MAP_ENTRY_BYTES + 2;
const WHAT: &str = "map page";

/// A decoded page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// 0 for a leaf, up to [`MAP_LEVELS`] - 1 for the top.
    pub level: u8,
    /// Image that wrote it.
    pub author: u64,
    /// First block that it covers.
    pub base: u64,
    /// Its entries.
    pub entries: Box<[MapEntry; MAP_FANOUT]>,
}

/// Units of [`MAP_UNIT_BYTES`] that a page with this many entries takes.
#[must_use]
pub fn page_units(entries: usize) -> u32 {
    let payload = (entries * SPARSE_BYTES).min(MAP_FANOUT * MAP_ENTRY_BYTES);
    (PAGE_HEADER_BYTES + payload).div_ceil(MAP_UNIT_BYTES as usize) as u32
}

/// Appends a page to `out`, padded to whole units, and returns its checksum.
pub fn encode_page(
    level: u8,
    author: u64,
    base: u64,
    entries: &[MapEntry; MAP_FANOUT],
    out: &mut Vec<u8>,
) -> u32 {
    let used = entries.iter().filter(|e| !e.is_hole()).count();
    let sparse = used * SPARSE_BYTES < MAP_FANOUT * MAP_ENTRY_BYTES;
    let payload = if sparse { used * SPARSE_BYTES } else { MAP_FANOUT * MAP_ENTRY_BYTES };
    let length = PAGE_HEADER_BYTES + payload;
    let start = out.len();
    out.resize(start + length.next_multiple_of(MAP_UNIT_BYTES as usize), 0);
    let bytes = &mut out[start..start + length];
    let places = &mut bytes[PAGE_HEADER_BYTES..];
    // The places are as long as a whole entry, so that the compiler needs to check nothing for each.
    if sparse {
        let positions = entries.iter().enumerate().filter(|(_, entry)| !entry.is_hole());
        for (place, (i, entry)) in places.chunks_exact_mut(SPARSE_BYTES).zip(positions) {
            place[..2].copy_from_slice(&(i as u16).to_le_bytes());
            put_entry(&mut place[2..], *entry);
        }
    } else {
        for (place, entry) in places.chunks_exact_mut(MAP_ENTRY_BYTES).zip(entries) {
            put_entry(place, *entry);
        }
    }
    put(bytes, 0, &PAGE_MAGIC);
    bytes[4] = PAGE_VERSION;
    bytes[5] = level;
    bytes[6] = u8::from(sparse);
    put(bytes, 8, &(length as u32).to_le_bytes());
    put(bytes, 16, &author.to_le_bytes());
    put(bytes, 24, &base.to_le_bytes());
    put(bytes, 32, &(used as u32).to_le_bytes());
    let crc = crc32c_without(bytes, 12);
    put(bytes, 12, &crc.to_le_bytes());
    crc
}

fn put_entry(place: &mut [u8], entry: MapEntry) {
    let address = entry.address;
    place[..8].copy_from_slice(&address.0.to_le_bytes());
    place[8..MAP_ENTRY_BYTES].copy_from_slice(&{ entry.crc }.to_le_bytes());
}

/// Length in bytes, without padding, of the page that starts with these bytes.
///
/// # Errors
/// [`FormatError`] where no page starts here.
pub fn peek_page(bytes: &[u8]) -> Result<usize, FormatError> {
    if bytes.len() < PAGE_HEADER_BYTES {
        let (have, need) = (bytes.len() as u64, PAGE_HEADER_BYTES as u64);
        return Err(FormatError::Truncated { what: WHAT, have, need });
    }
    if bytes[..4] != PAGE_MAGIC {
        return Err(FormatError::Magic { what: WHAT });
    }
    if bytes[4] != PAGE_VERSION || bytes[7] != 0 {
        let (version, features) = (u16::from(bytes[4]), u32::from(bytes[7]));
        return Err(FormatError::NewerFormat { what: WHAT, version, features });
    }
    let length = get_u32(bytes, 8) as usize;
    if !(PAGE_HEADER_BYTES..=PAGE_BYTES_MAX).contains(&length) {
        return Err(FormatError::Malformed { what: WHAT, why: "length" });
    }
    Ok(length)
}

/// True where pages of a level start at `base`. The level is below [`MAP_LEVELS`].
fn is_base(level: u8, base: u64) -> bool {
    let span_bits = MAP_FANOUT_BITS * (u32::from(level) + 1);
    base & ((1 << span_bits) - 1) == 0 && base >> (MAP_FANOUT_BITS * MAP_LEVELS) == 0
}

/// Level and first block of what looks like a page at the start of `bytes`; `None` where nothing does. The page is
/// not verified: it may be damaged, or something else.
#[must_use]
pub fn peek_place(bytes: &[u8]) -> Option<(u8, u64)> {
    peek_page(bytes).ok()?;
    let (level, base) = (bytes[5], get_u64(bytes, 24));
    (u32::from(level) < MAP_LEVELS && is_base(level, base)).then_some((level, base))
}

/// Reads a page from bytes that start with it, and its checksum.
///
/// # Errors
/// [`FormatError`] for anything but a complete, undamaged page.
pub fn decode_page(bytes: &[u8]) -> Result<(Page, u32), FormatError> {
    let length = peek_page(bytes)?;
    if bytes.len() < length {
        let (have, need) = (bytes.len() as u64, length as u64);
        return Err(FormatError::Truncated { what: WHAT, have, need });
    }
    let bytes = &bytes[..length];
    let crc = crc32c_without(bytes, 12);
    if crc != get_u32(bytes, 12) {
        return Err(FormatError::Checksum { what: WHAT });
    }
    let malformed = |why| FormatError::Malformed { what: WHAT, why };
    let (level, base) = (bytes[5], get_u64(bytes, 24));
    if u32::from(level) >= MAP_LEVELS {
        return Err(malformed("level"));
    }
    if !is_base(level, base) {
        return Err(malformed("base"));
    }
    let entries = match bytes[6] {
        0 => decode_dense(bytes)?,
        1 => decode_sparse(bytes)?,
        _ => return Err(malformed("form")),
    };
    Ok((Page { level, author: get_u64(bytes, 16), base, entries }, crc))
}

fn entry_at(bytes: &[u8], at: usize) -> MapEntry {
    MapEntry { address: BlockAddress(get_u64(bytes, at)), crc: get_u32(bytes, at + 8) }
}

fn decode_dense(bytes: &[u8]) -> Result<Box<[MapEntry; MAP_FANOUT]>, FormatError> {
    if bytes.len() != PAGE_BYTES_MAX {
        return Err(FormatError::Malformed { what: WHAT, why: "length of a dense page" });
    }
    let mut entries = Box::new([MapEntry::HOLE; MAP_FANOUT]);
    for (i, entry) in entries.iter_mut().enumerate() {
        *entry = entry_at(bytes, PAGE_HEADER_BYTES + i * MAP_ENTRY_BYTES);
    }
    Ok(entries)
}

fn decode_sparse(bytes: &[u8]) -> Result<Box<[MapEntry; MAP_FANOUT]>, FormatError> {
    let count = get_u32(bytes, 32) as usize;
    let payload = bytes.len() - PAGE_HEADER_BYTES;
    if !payload.is_multiple_of(SPARSE_BYTES) || payload / SPARSE_BYTES != count {
        return Err(FormatError::Malformed { what: WHAT, why: "length of a sparse page" });
    }
    let mut entries = Box::new([MapEntry::HOLE; MAP_FANOUT]);
    for at in (PAGE_HEADER_BYTES..bytes.len()).step_by(SPARSE_BYTES) {
        let position = usize::from(get_u16(bytes, at));
        let entry = entries
            .get_mut(position)
            .ok_or(FormatError::Malformed { what: WHAT, why: "position beyond the page" })?;
        *entry = entry_at(bytes, at + 2);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SegmentIndex, Slot};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_page_is_decoded_as_it_was_encoded(
            used in proptest::collection::btree_map(0..MAP_FANOUT, (1..u32::MAX, 0..1u32 << 24), 0..512),
            level in 0..4u8,
        ) {
            let mut entries = Box::new([MapEntry::HOLE; MAP_FANOUT]);
            for (i, (segment, slot)) in used {
                entries[i] = MapEntry { address: BlockAddress::of_block(SegmentIndex(segment), Slot(slot)), crc: slot };
            }
            let base = if level == 3 { 0 } else { 1 << 35 };
            let mut bytes = Vec::new();
            let crc = encode_page(level, 8, base, &entries, &mut bytes);
            let count = entries.iter().filter(|e| !e.is_hole()).count();
            prop_assert_eq!(bytes.len() as u32, page_units(count) * 512);
            prop_assert!(bytes.len() <= PAGE_READ_BYTES);
            prop_assert_eq!(peek_place(&bytes), Some((level, base)));
            let (page, found) = decode_page(&bytes).unwrap();
            prop_assert_eq!(found, crc);
            prop_assert_eq!(page, Page { level, author: 8, base, entries });
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..7000),
            sane in any::<bool>()) {
            if sane && bytes.len() > 80 {
                bytes[..8].copy_from_slice(b"mcPG\x01\x00\x01\x00");
                let length = bytes.len().min(PAGE_BYTES_MAX);
                bytes[8..12].copy_from_slice(&(length as u32).to_le_bytes());
                let crc = crc32c_without(&bytes[..length], 12);
                bytes[12..16].copy_from_slice(&crc.to_le_bytes());
            }
            let _ = (decode_page(&bytes), peek_place(&bytes));
        }
    }
}
