//! The limits of section 11, and the crate's checksum.

use marcot_format::{ImageId, PoolId, SnapId};
use marcot_format::{address, frame, group, page, record, segment, table};

#[test]
fn the_limits_are_those_of_the_document() {
    assert_eq!(marcot_format::BLOCK_BYTES, 4096);
    assert_eq!(marcot_format::IMAGE_BYTES_MAX, 281_474_976_710_656);
    assert_eq!(marcot_format::MAP_FANOUT, 512);
    assert_eq!(1 << marcot_format::MAP_FANOUT_BITS, marcot_format::MAP_FANOUT);
    assert_eq!(marcot_format::MAP_LEVELS, 4);
    assert_eq!(marcot_format::SEGMENT_BYTES, 33_554_432);
    assert_eq!(page::PAGE_BYTES_MAX, 6184);
    assert_eq!(page::PAGE_READ_BYTES, 6656);
    assert_eq!(address::MAP_UNIT_BYTES, 512);
    assert_eq!(address::SLOT_MAX, 16_777_216);
    assert_eq!(table::TABLE_PAGE_BYTES, 4096);
    assert_eq!(table::TABLE_FANOUT, 126);
    assert_eq!(table::TABLE_LEVELS_MAX, 5);
    assert_eq!(group::LOG_SEGMENTS_MAX, 128);
    assert_eq!(group::GROUP_DATA_BLOCKS_MAX, 2048);
    assert_eq!(group::GROUP_RECORDS_MAX, 2048);
    assert_eq!(group::GROUP_HEADER_BLOCKS_MAX, 11);
    assert_eq!(frame::FRAME_VERSION, 1);
    assert_eq!(frame::FRAME_HEADER_BYTES, 32);
    assert_eq!(frame::FRAME_BODY_BYTES_MAX, 16_777_216);
    assert_eq!(segment::SEGMENT_HEADER_BYTES, 4096);
    assert_eq!(record::HEAD_SNAPSHOTS_MAX, 10_000);
    assert_eq!(record::HEAD_METADATA_MAX, 1_048_576);
    assert_eq!(record::HEAD_LOCKS_MAX, 10_000);
}

#[test]
fn checksums_are_castagnoli() {
    assert_eq!(marcot_format::crc32c(b"123456789"), 0xE306_9283);
    assert_eq!(marcot_format::crc32c(&[0; 4096]), 0x98F9_4189);
    assert_eq!(marcot_format::crc32c(b""), 0);
}

#[test]
fn numbers_are_written_as_in_file_names() {
    assert_eq!(ImageId(0xab).to_string(), "00000000000000ab");
    assert_eq!(PoolId(u64::MAX).to_string(), "ffffffffffffffff");
    assert_eq!(SnapId(17).to_string(), "17");
}
