//! A page of the segment table, which says which segment an index in a map address stands for.
//!
//! ```text
//! byte 0       4    5    6        8       12      16          24          32
//!      +-------+----+----+--------+-------+-------+-----------+-----------+
//!      | magic | ver|leve|  zero  | zero  | crc   | author    | base      |
//!      +-------+----+----+--------+-------+-------+-----------+-----------+
//!      | level 0: 126 x segment   | level > 0: 126 x pointer to a page     |
//!      | zeros to 4096                                                     |
//!
//! segment (32 bytes)                        pointer (32 bytes)
//! 0  author u64                             0  author u64
//! 8  sequence u32                           8  sequence u32
//! 12 pool u16, kind u8, zero u8             12 pool u16, zero u16
//! 16 live u32, used u32                     16 slot u32, crc u32
//! 24 zero u64                               24 zero u64
//! ```
//!
//! `pool` is a position in the root's list of pools. `live` counts the slots (data segments) or
//! units (map segments) that the root names; `used` those that were ever written. An author of 0
//! means that the index is not in use.

use crate::segment::SegmentKind;
use crate::{FormatError, crc32c_without, get_u16, get_u32, get_u64, put};

/// Bytes of a table page.
pub const TABLE_PAGE_BYTES: usize = 4096;
/// Entries of a table page.
pub const TABLE_FANOUT: usize = 126;
/// Limit on the levels of a table: enough for every u32 index.
pub const TABLE_LEVELS_MAX: u32 = 5;
/// First four bytes of a table page.
pub const TABLE_MAGIC: [u8; 4] = *b"mcTB";
/// Version this code writes.
pub const TABLE_VERSION: u8 = 1;

const HEADER_BYTES: usize = 32;
const ENTRY_BYTES: usize = 32;
const WHAT: &str = "segment table page";
const _: () = assert!(HEADER_BYTES + TABLE_FANOUT * ENTRY_BYTES <= TABLE_PAGE_BYTES);

/// The segment that an index stands for, and how much of it the root names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentEntry {
    /// Image that wrote it.
    pub author: u64,
    /// Number in its series.
    pub sequence: u32,
    /// Position in the root's list of pools.
    pub pool: u16,
    /// Series.
    pub kind: SegmentKind,
    /// Slots or units that the root names.
    pub live: u32,
    /// Slots or units ever written.
    pub used: u32,
}

/// Where a table page lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PagePointer {
    /// Image that wrote it.
    pub author: u64,
    /// Number of its table segment.
    pub sequence: u32,
    /// Position in the root's list of pools.
    pub pool: u16,
    /// Page number in the segment; page 0 is the segment's header.
    pub page: u32,
    /// CRC-32C of the page.
    pub crc: u32,
}

/// A decoded table page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TablePage {
    /// Level 0.
    Segments(Vec<Option<SegmentEntry>>),
    /// Any level above.
    Pointers(Vec<Option<PagePointer>>),
}

fn finish(bytes: &mut [u8], level: u8, author: u64, base: u64) -> u32 {
    put(bytes, 0, &TABLE_MAGIC);
    bytes[4] = TABLE_VERSION;
    bytes[5] = level;
    put(bytes, 16, &author.to_le_bytes());
    put(bytes, 24, &base.to_le_bytes());
    let crc = crc32c_without(bytes, 12);
    put(bytes, 12, &crc.to_le_bytes());
    crc
}

/// Appends a level 0 page to `out` and returns its checksum. At most [`TABLE_FANOUT`] entries.
pub fn encode_segments(
    author: u64,
    base: u64,
    entries: &[Option<SegmentEntry>],
    out: &mut Vec<u8>,
) -> u32 {
    let start = out.len();
    out.resize(start + TABLE_PAGE_BYTES, 0);
    let bytes = &mut out[start..];
    for (i, entry) in entries.iter().enumerate().take(TABLE_FANOUT) {
        let Some(entry) = entry else { continue };
        let at = HEADER_BYTES + i * ENTRY_BYTES;
        put(bytes, at, &entry.author.to_le_bytes());
        put(bytes, at + 8, &entry.sequence.to_le_bytes());
        put(bytes, at + 12, &entry.pool.to_le_bytes());
        bytes[at + 14] = entry.kind as u8;
        put(bytes, at + 16, &entry.live.to_le_bytes());
        put(bytes, at + 20, &entry.used.to_le_bytes());
    }
    finish(bytes, 0, author, base)
}

/// Appends a page of pointers to `out` and returns its checksum.
pub fn encode_pointers(
    level: u8,
    author: u64,
    base: u64,
    pointers: &[Option<PagePointer>],
    out: &mut Vec<u8>,
) -> u32 {
    let start = out.len();
    out.resize(start + TABLE_PAGE_BYTES, 0);
    let bytes = &mut out[start..];
    for (i, pointer) in pointers.iter().enumerate().take(TABLE_FANOUT) {
        let Some(pointer) = pointer else { continue };
        let at = HEADER_BYTES + i * ENTRY_BYTES;
        put(bytes, at, &pointer.author.to_le_bytes());
        put(bytes, at + 8, &pointer.sequence.to_le_bytes());
        put(bytes, at + 12, &pointer.pool.to_le_bytes());
        put(bytes, at + 16, &pointer.page.to_le_bytes());
        put(bytes, at + 20, &pointer.crc.to_le_bytes());
    }
    finish(bytes, level, author, base)
}

/// Reads a table page, which must be of `level` and cover indices from `base` on. Returns it with
/// its checksum.
///
/// # Errors
/// [`FormatError`] for anything but a complete, undamaged page of this level and base.
pub fn decode_table(bytes: &[u8], level: u8, base: u64) -> Result<(TablePage, u32), FormatError> {
    if bytes.len() < TABLE_PAGE_BYTES {
        let (have, need) = (bytes.len() as u64, TABLE_PAGE_BYTES as u64);
        return Err(FormatError::Truncated { what: WHAT, have, need });
    }
    let bytes = &bytes[..TABLE_PAGE_BYTES];
    if bytes[..4] != TABLE_MAGIC {
        return Err(FormatError::Magic { what: WHAT });
    }
    let (version, features) = (u16::from(bytes[4]), u32::from(get_u16(bytes, 6)));
    if version != u16::from(TABLE_VERSION) || features != 0 {
        return Err(FormatError::NewerFormat { what: WHAT, version, features });
    }
    let crc = crc32c_without(bytes, 12);
    if crc != get_u32(bytes, 12) {
        return Err(FormatError::Checksum { what: WHAT });
    }
    if bytes[5] != level || get_u64(bytes, 24) != base {
        return Err(FormatError::Malformed { what: WHAT, why: "another page's place" });
    }
    let places = (0..TABLE_FANOUT).map(|i| HEADER_BYTES + i * ENTRY_BYTES);
    let page = if level == 0 {
        TablePage::Segments(places.map(|at| segment_at(bytes, at)).collect::<Result<_, _>>()?)
    } else {
        TablePage::Pointers(places.map(|at| pointer_at(bytes, at)).collect())
    };
    Ok((page, crc))
}

/// The checksum of a page of any level and base; `None` where it does not match the page's bytes.
#[must_use]
pub fn table_page_crc(bytes: &[u8]) -> Option<u32> {
    let bytes = bytes.get(..TABLE_PAGE_BYTES).filter(|b| b[..4] == TABLE_MAGIC)?;
    let crc = crc32c_without(bytes, 12);
    (crc == get_u32(bytes, 12)).then_some(crc)
}

fn segment_at(bytes: &[u8], at: usize) -> Result<Option<SegmentEntry>, FormatError> {
    let author = get_u64(bytes, at);
    if author == 0 {
        return Ok(None);
    }
    Ok(Some(SegmentEntry {
        author,
        sequence: get_u32(bytes, at + 8),
        pool: get_u16(bytes, at + 12),
        kind: SegmentKind::from_number(bytes[at + 14])?,
        live: get_u32(bytes, at + 16),
        used: get_u32(bytes, at + 20),
    }))
}

fn pointer_at(bytes: &[u8], at: usize) -> Option<PagePointer> {
    let author = get_u64(bytes, at);
    (author != 0).then(|| PagePointer {
        author,
        sequence: get_u32(bytes, at + 8),
        pool: get_u16(bytes, at + 12),
        page: get_u32(bytes, at + 16),
        crc: get_u32(bytes, at + 20),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_table_page_is_decoded_as_it_was_encoded_and_at_its_place_only() {
        let mut entries = vec![None; TABLE_FANOUT];
        entries[125] = Some(SegmentEntry {
            author: 1,
            sequence: 2,
            pool: 3,
            kind: SegmentKind::Data,
            live: 4,
            used: 5,
        });
        let mut bytes = Vec::new();
        let crc = encode_segments(9, 126, &entries, &mut bytes);
        let (page, found) = decode_table(&bytes, 0, 126).unwrap();
        assert_eq!((page, found), (TablePage::Segments(entries), crc));
        assert!(decode_table(&bytes, 0, 0).is_err());
        assert!(decode_table(&bytes, 1, 126).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 4096)) {
            bytes[..8].copy_from_slice(b"mcTB\x01\x00\0\0");
            let crc = crc32c_without(&bytes, 12);
            bytes[12..16].copy_from_slice(&crc.to_le_bytes());
            let base = get_u64(&bytes, 24);
            let _ = decode_table(&bytes, 0, base);
        }
    }
}
