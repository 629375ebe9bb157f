//! Pages of the segment table (section 8).

use marcot_format::FormatError;
use marcot_format::segment::SegmentKind;
use marcot_format::table::{
    PagePointer, SegmentEntry, TABLE_VERSION, TablePage, decode_table, encode_pointers,
    encode_segments, table_page_crc,
};

use crate::bytes::{bytes, changed, sealed};

const TABLE_OF_SEGMENTS: &str = "
    6d 63 54 42 01 00 00 00                         | magic, version 1, level 0, no flags
    00 00 00 00 cc 45 e6 0a                         | 0, checksum
    08 07 06 05 04 03 02 01                         | author
    7e 00 00 00 00 00 00 00                         | base 126
    11 00 00 00 00 00 00 00                         | index 126: author
    15 14 13 12 17 16 01 00                         |   sequence, pool, kind 1: data
    1b 1a 19 18 1f 1e 1d 1c                         |   live, used
    00 00 00 00 00 00 00 00                         | 0
    00 x 3936                                       | not in use
    21 00 00 00 00 00 00 00                         | index 250: author
    22 00 00 00 23 00 02 00                         |   sequence, pool, kind 2: map
    24 00 00 00 25 00 00 00                         |   live, used
    00 00 00 00 00 00 00 00                         | 0
    31 00 00 00 00 00 00 00                         | index 251: author
    32 00 00 00 33 00 03 00                         |   sequence, pool, kind 3: table
    34 00 00 00 35 00 00 00                         |   live, used
    00 00 00 00 00 00 00 00                         | 0
    00 x 32                                         | zeros to 4096
";
const TABLE_OF_POINTERS: &str = "
    6d 63 54 42 01 02 00 00                         | magic, version 1, level 2, no flags
    00 00 00 00 8c 81 e0 2e                         | 0, checksum
    08 07 06 05 04 03 02 01                         | author
    f8 85 1e 00 00 00 00 00                         | base 126 x 126 x 126
    11 00 00 00 00 00 00 00                         | position 0: author
    15 14 13 12 17 16 00 00                         |   sequence, pool
    1b 1a 19 18 1f 1e 1d 1c                         |   slot, checksum
    00 00 00 00 00 00 00 00                         | 0
    00 x 3968                                       | not in use
    21 00 00 00 00 00 00 00                         | position 125: author
    22 00 00 00 23 00 00 00                         |   sequence, pool
    24 00 00 00 25 00 00 00                         |   slot, checksum
    00 00 00 00 00 00 00 00                         | 0
    00 x 32                                         | zeros to 4096
";

const BYTES: usize = 4096;
/// Where the fields are, in bytes.
const VERSION: usize = 4;
const FLAGS: usize = 6;
const CRC: usize = 12;
const FIRST_ENTRY: usize = 32;
const SEGMENTS_CRC: u32 = 0x0AE6_45CC;
const POINTERS_CRC: u32 = 0x2EE0_818C;
const POINTERS_BASE: u64 = 126 * 126 * 126;
const AUTHOR: u64 = 0x0102_0304_0506_0708;
const WHAT: &str = "segment table page";

fn segments() -> Vec<Option<SegmentEntry>> {
    let mut entries = vec![None; 126];
    entries[0] = Some(SegmentEntry {
        author: 0x11,
        sequence: 0x1213_1415,
        pool: 0x1617,
        kind: SegmentKind::Data,
        live: 0x1819_1A1B,
        used: 0x1C1D_1E1F,
    });
    for (at, kind, n) in [(124, SegmentKind::Map, 0x21), (125, SegmentKind::Table, 0x31)] {
        entries[at] = Some(SegmentEntry {
            author: n,
            sequence: n as u32 + 1,
            pool: n as u16 + 2,
            kind,
            live: n as u32 + 3,
            used: n as u32 + 4,
        });
    }
    entries
}

fn pointers() -> Vec<Option<PagePointer>> {
    let mut pointers = vec![None; 126];
    pointers[0] = Some(PagePointer {
        author: 0x11,
        sequence: 0x1213_1415,
        pool: 0x1617,
        page: 0x1819_1A1B,
        crc: 0x1C1D_1E1F,
    });
    pointers[125] =
        Some(PagePointer { author: 0x21, sequence: 0x22, pool: 0x23, page: 0x24, crc: 0x25 });
    pointers
}

/// The known pages, with level, base and checksum.
fn known() -> [(Vec<u8>, TablePage, u8, u64, u32); 2] {
    [
        (bytes(TABLE_OF_SEGMENTS), TablePage::Segments(segments()), 0, 126, SEGMENTS_CRC),
        (bytes(TABLE_OF_POINTERS), TablePage::Pointers(pointers()), 2, POINTERS_BASE, POINTERS_CRC),
    ]
}

/// The page with other bytes, and a right checksum.
fn with(page: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    sealed(&changed(page, at, new), CRC, BYTES)
}

#[test]
fn a_page_of_segments_is_these_bytes() {
    // The page is appended to what the buffer holds.
    let mut encoded = vec![9; 100];
    assert_eq!(encode_segments(AUTHOR, 126, &segments(), &mut encoded), SEGMENTS_CRC);
    assert_eq!(encoded[..100], [9; 100]);
    assert_eq!(encoded[100..], bytes(TABLE_OF_SEGMENTS));
    assert_eq!(TABLE_VERSION, 1);
}

#[test]
fn a_page_of_pointers_is_these_bytes() {
    let mut encoded = vec![9; 100];
    let crc = encode_pointers(2, AUTHOR, POINTERS_BASE, &pointers(), &mut encoded);
    assert_eq!(crc, POINTERS_CRC);
    assert_eq!(encoded[..100], [9; 100]);
    assert_eq!(encoded[100..], bytes(TABLE_OF_POINTERS));
}

#[test]
fn known_pages_are_read_at_their_place_only() {
    for (known, page, level, base, crc) in known() {
        assert_eq!(known.len(), BYTES);
        assert_eq!(decode_table(&known, level, base), Ok((page.clone(), crc)));
        assert_eq!(decode_table(&[&known[..], &[9; 100]].concat(), level, base), Ok((page, crc)));
        assert_eq!(table_page_crc(&known), Some(crc));
        let elsewhere = Err(FormatError::Malformed { what: WHAT, why: "another page's place" });
        for (level, base) in [(level + 1, base), (level, 0), (level, base + 126), (1, 0)] {
            assert_eq!(decode_table(&known, level, base), elsewhere);
        }
    }
}

#[test]
fn every_flag_is_incompatible_and_another_version_newer() {
    for (known, _, level, base, _) in known() {
        for bit in 0..16 {
            let flags = 1u16 << bit;
            let features = u32::from(flags);
            let newer = Err(FormatError::NewerFormat { what: WHAT, version: 1, features });
            // Flags are checked before the checksum.
            let changed = changed(&known, FLAGS, &flags.to_le_bytes());
            assert_eq!(decode_table(&changed, level, base), newer);
        }
        for version in [0u8, 2, 255] {
            let changed = changed(&known, VERSION, &[version]);
            let version = u16::from(version);
            let newer = Err(FormatError::NewerFormat { what: WHAT, version, features: 0 });
            assert_eq!(decode_table(&changed, level, base), newer);
        }
    }
}

#[test]
fn a_page_that_is_cut_short_or_of_another_magic_is_refused() {
    for (known, _, level, base, _) in known() {
        for have in [0, 1, 32, 4095] {
            let truncated = FormatError::Truncated { what: WHAT, have, need: 4096 };
            let cut = &known[..have as usize];
            assert_eq!(decode_table(cut, level, base), Err(truncated));
            assert_eq!(table_page_crc(cut), None);
        }
        for at in 0..4 {
            let other = with(&known, at, &[known[at] ^ 0x20]);
            let magic = Err(FormatError::Magic { what: WHAT });
            assert_eq!(decode_table(&other, level, base), magic);
            assert_eq!(table_page_crc(&other), None);
        }
    }
}

#[test]
fn the_checksum_covers_the_whole_page() {
    for (known, _, level, base, _) in known() {
        for at in 8..BYTES {
            let damaged = changed(&known, at, &[known[at] ^ 1]);
            let checksum = Err(FormatError::Checksum { what: WHAT });
            assert_eq!(decode_table(&damaged, level, base), checksum, "byte {at}");
            assert_eq!(table_page_crc(&damaged), None);
        }
    }
}

#[test]
fn a_segment_of_an_unknown_kind_is_refused_where_the_entry_is_in_use() {
    let known = bytes(TABLE_OF_SEGMENTS);
    let unknown =
        Err(FormatError::Malformed { what: "segment header", why: "unknown kind of segment" });
    for kind in [0, 4, 255] {
        let first = with(&known, FIRST_ENTRY + 14, &[kind]);
        assert_eq!(decode_table(&first, 0, 126), unknown);
        let unused = with(&known, FIRST_ENTRY + 32 + 14, &[kind]);
        let page = TablePage::Segments(segments());
        assert_eq!(decode_table(&unused, 0, 126).unwrap().0, page);
    }
}

#[test]
fn a_page_takes_126_entries_and_no_more() {
    let mut many = segments();
    many.push(many[0]);
    let mut encoded = Vec::new();
    encode_segments(AUTHOR, 126, &many, &mut encoded);
    assert_eq!(encoded, bytes(TABLE_OF_SEGMENTS));
    let mut many = pointers();
    many.push(many[0]);
    let mut encoded = Vec::new();
    encode_pointers(2, AUTHOR, POINTERS_BASE, &many, &mut encoded);
    assert_eq!(encoded, bytes(TABLE_OF_POINTERS));
}
