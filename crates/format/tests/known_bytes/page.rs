//! Map pages (section 7).

use marcot_format::page::{PAGE_VERSION, Page, decode_page, encode_page, page_units, peek_page};
use marcot_format::{BlockAddress, FormatError, MapEntry};

use crate::bytes::{bytes, changed, sealed};

const SPARSE_PAGE: &str = "
    6d 63 50 47 01 02 01 00                         | magic, version 1, level 2, sparse, no flags
    44 00 00 00 62 46 52 e5                         | 68 bytes, checksum
    08 07 06 05 04 03 02 01                         | author
    00 00 00 08 00 00 00 00                         | base 0x8000000
    02 00 00 00 00 00 00 00                         | 2 entries
    01 00 04 03 02 01 07 06  05 01 98 ba dc fe      | position 1: segment 0x01020304, unit 0x050607, checksum
    ff 01 00 00 00 00 01 00  00 01 00 00 00 00      | position 511: lost
    00 x 444                                        | zeros to 512
";
const DENSE_PAGE: &str = "
    6d 63 50 47 01 00 00 00                         | magic, version 1, level 0, dense, no flags
    28 18 00 00 1a 16 53 31                         | 6184 bytes, checksum
    08 07 06 05 04 03 02 01                         | author
    00 06 00 00 00 00 00 00                         | base 0x600
    b7 01 00 00 00 00 00 00                         | 439 entries
    040302010706050198badcfe x 439                  | segment 0x01020304, slot 0x050607, checksum
    00 x 876                                        | holes
    00 x 472                                        | zeros to 6656
";

/// Where the fields are, in bytes.
const VERSION: usize = 4;
const LEVEL: usize = 5;
const FORM: usize = 6;
const FLAGS: usize = 7;
const LENGTH: usize = 8;
const CRC: usize = 12;
const BASE: usize = 24;
const ENTRIES: usize = 32;
const FIRST_ENTRY: usize = 40;
const AUTHOR: u64 = 0x0102_0304_0506_0708;
const WHAT: &str = "map page";
/// Lengths of the known pages without padding.
const SPARSE_BYTES: usize = 68;
const DENSE_BYTES: usize = 6184;

fn entry(address: u64, crc: u32) -> MapEntry {
    MapEntry { address: BlockAddress(address), crc }
}

const SOME: MapEntry = MapEntry { address: BlockAddress(0x0105_0607_0102_0304), crc: 0xFEDC_BA98 };

fn sparse() -> Page {
    let mut entries = Box::new([MapEntry::HOLE; 512]);
    entries[1] = SOME;
    entries[511] = entry(0x0100_0001_0000_0000, 0);
    Page { level: 2, author: AUTHOR, base: 0x800_0000, entries }
}

fn dense() -> Page {
    let mut entries = Box::new([MapEntry::HOLE; 512]);
    entries[..439].fill(SOME);
    Page { level: 0, author: AUTHOR, base: 0x600, entries }
}

/// The sparse page with other bytes, and a right checksum.
fn with(at: usize, new: &[u8]) -> Vec<u8> {
    sealed(&changed(&bytes(SPARSE_PAGE), at, new), CRC, SPARSE_BYTES)
}

fn malformed<T>(why: &'static str) -> Result<T, FormatError> {
    Err(FormatError::Malformed { what: WHAT, why })
}

#[test]
fn a_page_is_these_bytes() {
    let known = [
        (bytes(SPARSE_PAGE), SPARSE_BYTES, sparse(), 0xE552_4662),
        (bytes(DENSE_PAGE), DENSE_BYTES, dense(), 0x3153_161A),
    ];
    for (known, length, page, crc) in known {
        // The page is appended to what the buffer holds.
        let mut encoded = vec![9; 100];
        let Page { level, author, base, entries } = &page;
        assert_eq!(encode_page(*level, *author, *base, entries, &mut encoded), crc);
        assert_eq!(encoded[..100], [9; 100]);
        assert_eq!(encoded[100..], known);
        assert_eq!(peek_page(&known[..FIRST_ENTRY]), Ok(length));
        assert_eq!(decode_page(&known), Ok((page.clone(), crc)));
        // The padding and bytes behind it are ignored.
        assert_eq!(decode_page(&known[..length]), Ok((page.clone(), crc)));
        assert_eq!(decode_page(&[&known[..length], &[9; 100]].concat()), Ok((page, crc)));
    }
    assert_eq!(PAGE_VERSION, 1);
}

#[test]
fn a_writer_takes_the_shorter_form_and_whole_units() {
    // (entries in use, form, length, units)
    let expected = [
        (0, 1, 40, 1),
        (1, 1, 54, 1),
        (33, 1, 502, 1),
        (34, 1, 516, 2),
        (438, 1, 6172, 13),
        (439, 0, 6184, 13),
        (512, 0, 6184, 13),
    ];
    for (used, form, length, units) in expected {
        let mut entries = [MapEntry::HOLE; 512];
        entries[512 - used..].fill(SOME);
        let mut encoded = Vec::new();
        encode_page(0, AUTHOR, 0, &entries, &mut encoded);
        assert_eq!((encoded[FORM], peek_page(&encoded)), (form, Ok(length)), "{used} entries");
        assert_eq!((encoded.len(), page_units(used)), (units as usize * 512, units));
        assert_eq!(encoded[ENTRIES..ENTRIES + 4], (used as u32).to_le_bytes());
    }
}

#[test]
fn every_flag_is_incompatible_and_another_version_newer() {
    let known = bytes(SPARSE_PAGE);
    for bit in 0..8 {
        let features = 1u32 << bit;
        let newer = FormatError::NewerFormat { what: WHAT, version: 1, features };
        // Flags are checked before the checksum.
        let changed = changed(&known, FLAGS, &[1 << bit]);
        assert_eq!(peek_page(&changed), Err(newer.clone()));
        assert_eq!(decode_page(&changed), Err(newer));
    }
    for version in [0, 2, 255] {
        let newer =
            FormatError::NewerFormat { what: WHAT, version: u16::from(version), features: 0 };
        assert_eq!(decode_page(&changed(&known, VERSION, &[version])), Err(newer));
    }
}

#[test]
fn a_page_that_is_cut_short_is_refused() {
    for (known, length) in [(bytes(SPARSE_PAGE), SPARSE_BYTES), (bytes(DENSE_PAGE), DENSE_BYTES)] {
        for have in [0, 1, 39] {
            let truncated = FormatError::Truncated { what: WHAT, have, need: 40 };
            assert_eq!(peek_page(&known[..have as usize]), Err(truncated.clone()));
            assert_eq!(decode_page(&known[..have as usize]), Err(truncated));
        }
        for have in [40, length as u64 - 1] {
            let truncated = FormatError::Truncated { what: WHAT, have, need: length as u64 };
            assert_eq!(decode_page(&known[..have as usize]), Err(truncated));
        }
    }
}

#[test]
fn a_page_with_a_hostile_length_is_refused() {
    let known = [bytes(SPARSE_PAGE), vec![0; 8192]].concat();
    for length in [0u32, 39, 6185, 0x8000_0000, u32::MAX] {
        let changed = changed(&known, LENGTH, &length.to_le_bytes());
        assert_eq!(peek_page(&changed), malformed("length"));
        assert_eq!(decode_page(&changed), malformed("length"));
    }
    // A sparse page is as long as its entries; a dense one has all of them.
    for length in [67, 69, 82, 6184] {
        let changed = changed(&known, LENGTH, &(length as u32).to_le_bytes());
        let changed = sealed(&changed, CRC, length);
        assert_eq!(decode_page(&changed), malformed("length of a sparse page"), "{length}");
    }
    for entries in [0u32, 1, 3, 513, u32::MAX] {
        let changed = with(ENTRIES, &entries.to_le_bytes());
        assert_eq!(decode_page(&changed), malformed("length of a sparse page"));
    }
    assert_eq!(decode_page(&with(FORM, &[0])), malformed("length of a dense page"));
    let dense = changed(&bytes(DENSE_PAGE), LENGTH, &6183u32.to_le_bytes());
    let dense = sealed(&dense, CRC, 6183);
    assert_eq!(decode_page(&dense), malformed("length of a dense page"));
}

#[test]
fn a_page_of_no_entries_is_all_holes() {
    let mut empty = bytes(SPARSE_PAGE);
    empty.truncate(FIRST_ENTRY);
    empty = changed(&changed(&empty, LENGTH, &[40]), ENTRIES, &[0]);
    let (page, _) = decode_page(&sealed(&empty, CRC, FIRST_ENTRY)).unwrap();
    assert!(page.entries.iter().all(MapEntry::is_hole));
}

#[test]
fn levels_forms_and_positions_have_their_limits() {
    for level in [4, 5, 255] {
        assert_eq!(decode_page(&with(LEVEL, &[level])), malformed("level"));
    }
    for form in [2, 3, 255] {
        assert_eq!(decode_page(&with(FORM, &[form])), malformed("form"));
    }
    for position in [512u16, 0x8000, u16::MAX] {
        let changed = with(FIRST_ENTRY, &position.to_le_bytes());
        assert_eq!(decode_page(&changed), malformed("position beyond the page"));
    }
}

#[test]
fn a_base_is_a_multiple_of_what_the_page_covers_within_the_largest_image() {
    let decode = |level: u8, base: u64| {
        let changed = changed(&bytes(SPARSE_PAGE), LEVEL, &[level]);
        let changed = sealed(&changed_base(&changed, base), CRC, SPARSE_BYTES);
        decode_page(&changed).map(|(page, _)| page.base)
    };
    let image = 1 << 36;
    for (level, covers) in [(0, 1 << 9), (1, 1 << 18), (2, 1 << 27), (3, image)] {
        for base in [0, covers, 3 * covers, image - covers] {
            let expected = if base < image { Ok(base) } else { malformed("base") };
            assert_eq!(decode(level, base), expected, "level {level}, base {base}");
        }
        for base in [1, covers / 2, covers + 1, image, image + covers, 1 << 63] {
            assert_eq!(decode(level, base), malformed("base"), "level {level}, base {base}");
        }
    }
}

fn changed_base(page: &[u8], base: u64) -> Vec<u8> {
    changed(page, BASE, &base.to_le_bytes())
}

#[test]
fn the_checksum_covers_the_page_without_its_padding() {
    for (known, length) in [(bytes(SPARSE_PAGE), SPARSE_BYTES), (bytes(DENSE_PAGE), DENSE_BYTES)] {
        for at in (CRC..length).chain([LEVEL, FORM]) {
            let damaged = changed(&known, at, &[known[at] ^ 1]);
            let checksum = Err(FormatError::Checksum { what: WHAT });
            assert_eq!(decode_page(&damaged), checksum, "byte {at}");
        }
        for at in 0..4 {
            let other = sealed(&changed(&known, at, &[known[at] ^ 0x20]), CRC, length);
            assert_eq!(decode_page(&other), Err(FormatError::Magic { what: WHAT }));
        }
    }
}
