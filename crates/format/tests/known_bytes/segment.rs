//! Headers of segments (section 4).

use marcot_format::FormatError;
use marcot_format::segment::{SEGMENT_VERSION, SegmentHeader, SegmentKind};

use crate::bytes::{bytes, changed, sealed};

const DATA_SEGMENT: &str = "
    6d 61 72 63 6f 74 53 47                         | magic
    01 00 01 00 92 50 e4 c6                         | version 1, kind 1: data; checksum
    00 00 00 00 00 00 00 00                         | no incompatible, no read-only-compatible features
    08 07 06 05 04 03 02 01                         | author
    14 13 12 11 00 00 00 00                         | sequence 0x11121314
    28 27 26 25 24 23 22 21                         | epoch
    00 x 4048                                       | zeros to 4096
";
const MAP_SEGMENT: &str = "
    6d 61 72 63 6f 74 53 47                         | magic
    01 00 02 00 91 24 07 7f                         | version 1, kind 2: map; checksum
    00 00 00 00 00 00 00 00                         | no incompatible, no read-only-compatible features
    08 07 06 05 04 03 02 01                         | author
    14 13 12 11 00 00 00 00                         | sequence 0x11121314
    28 27 26 25 24 23 22 21                         | epoch
    00 x 4048                                       | zeros to 4096
";
const TABLE_SEGMENT: &str = "
    6d 61 72 63 6f 74 53 47                         | magic
    01 00 03 00 3f 25 02 eb                         | version 1, kind 3: table; checksum
    00 00 00 00 00 00 00 00                         | no incompatible, no read-only-compatible features
    08 07 06 05 04 03 02 01                         | author
    14 13 12 11 00 00 00 00                         | sequence 0x11121314
    28 27 26 25 24 23 22 21                         | epoch
    00 x 4048                                       | zeros to 4096
";

const KINDS: [(SegmentKind, &str, char); 3] = [
    (SegmentKind::Data, DATA_SEGMENT, 'd'),
    (SegmentKind::Map, MAP_SEGMENT, 'm'),
    (SegmentKind::Table, TABLE_SEGMENT, 't'),
];

const BYTES: usize = 4096;
/// Where the fields are, in bytes.
const VERSION: usize = 8;
const KIND: usize = 10;
const CRC: usize = 12;
const INCOMPATIBLE: usize = 16;
const READ_ONLY_COMPATIBLE: usize = 20;
const WHAT: &str = "segment header";

/// The header with other bytes, and a right checksum.
fn with(header: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    sealed(&changed(header, at, new), CRC, BYTES)
}

fn header(kind: SegmentKind) -> SegmentHeader {
    let author = 0x0102_0304_0506_0708;
    SegmentHeader { kind, author, sequence: 0x1112_1314, epoch: 0x2122_2324_2526_2728 }
}

#[test]
fn a_header_of_each_series_is_these_bytes() {
    for (kind, text, letter) in KINDS {
        let known = bytes(text);
        assert_eq!(known.len(), BYTES);
        assert_eq!(header(kind).encode(), known);
        assert_eq!(SegmentHeader::decode(&known), Ok(header(kind)));
        assert_eq!(kind.letter(), letter);
        // Bytes behind the header are ignored.
        assert_eq!(SegmentHeader::decode(&[&known[..], &[9; 100]].concat()), Ok(header(kind)));
    }
    assert_eq!(SEGMENT_VERSION, 1);
}

#[test]
fn an_unknown_incompatible_bit_or_version_is_newer_before_the_checksum_is_checked() {
    let known = bytes(MAP_SEGMENT);
    for bit in 0..32 {
        let features = 1u32 << bit;
        let newer = Err(FormatError::NewerFormat { what: WHAT, version: 1, features });
        let changed = changed(&known, INCOMPATIBLE, &features.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&changed), newer);
        assert_eq!(SegmentHeader::decode(&sealed(&changed, CRC, BYTES)), newer);
    }
    for version in [0, 2, 0x0100] {
        let newer = Err(FormatError::NewerFormat { what: WHAT, version, features: 0 });
        let changed = changed(&known, VERSION, &version.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&changed), newer);
    }
}

#[test]
fn an_unknown_read_only_compatible_bit_forbids_to_punch_and_no_more() {
    let known = bytes(DATA_SEGMENT);
    assert!(!SegmentHeader::is_read_only(&known));
    for bit in 0..32 {
        let changed = with(&known, READ_ONLY_COMPATIBLE, &(1u32 << bit).to_le_bytes());
        assert_eq!(SegmentHeader::decode(&changed), Ok(header(SegmentKind::Data)));
        assert!(SegmentHeader::is_read_only(&changed));
        assert!(!SegmentHeader::is_read_only(&changed[..BYTES - 1]));
    }
    assert!(!SegmentHeader::is_read_only(&[]));
}

#[test]
fn a_header_that_is_cut_short_of_another_magic_or_kind_is_refused() {
    let known = bytes(DATA_SEGMENT);
    for have in [0, 1, 40, 4095] {
        let truncated = FormatError::Truncated { what: WHAT, have, need: 4096 };
        assert_eq!(SegmentHeader::decode(&known[..have as usize]), Err(truncated));
    }
    for at in 0..8 {
        let other = with(&known, at, &[known[at] ^ 0x20]);
        assert_eq!(SegmentHeader::decode(&other), Err(FormatError::Magic { what: WHAT }));
    }
    for kind in [0u16, 4, 0x0100, 0x0101, u16::MAX] {
        let other = with(&known, KIND, &kind.to_le_bytes());
        let malformed = FormatError::Malformed { what: WHAT, why: "unknown kind of segment" };
        assert_eq!(SegmentHeader::decode(&other), Err(malformed));
    }
}

#[test]
fn the_checksum_covers_the_whole_block() {
    let known = bytes(TABLE_SEGMENT);
    for at in (KIND..INCOMPATIBLE).chain(READ_ONLY_COMPATIBLE..BYTES) {
        let damaged = changed(&known, at, &[known[at] ^ 1]);
        let checksum = Err(FormatError::Checksum { what: WHAT });
        assert_eq!(SegmentHeader::decode(&damaged), checksum, "byte {at}");
    }
}
