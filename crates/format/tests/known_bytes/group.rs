//! Groups (section 5).

use marcot_format::FormatError;
use marcot_format::group::{GROUP_VERSION, GroupHeader, Record, RecordKind, header_blocks};

use crate::bytes::{bytes, changed, sealed};

const GROUP: &str = "
    6d 61 72 63 6f 74 47 52                         | magic
    01 00 00 00 01 00 00 00                         | version 1, no flags, 1 header block
    bc 71 7b 9f 03 00 00 00                         | checksum; 3 records
    08 07 06 05 04 03 02 01                         | author
    2c 01 00 00 00 00 00 00                         | epoch 300
    04 03 02 01 03 00 00 00                         | segment 0x01020304, 3 data blocks
    18 17 16 15 14 13 12 11                         | group
    10 17 16 15 14 13 12 11                         | durable below
    34 12 de bc 0a 00 00 00                         | record: from block 0xabcde1234 on
    02 00 00 00 00 00 00 01                         |   2 blocks, kind 1: write
    07 00 00 00 00 00 00 00                         | record: from block 7 on
    89 67 45 23 01 00 00 02                         |   0x123456789 blocks, kind 2: discard
    ff ff ff ff 0f 00 00 00                         | record: the last block of the largest image
    01 00 00 00 00 00 00 01                         |   1 block, kind 1: write
    11 11 11 11 22 22 22 22  98 ba dc fe            | checksums of the data blocks
    00 x 3972                                       | zeros to 4096
";
const GROUP_OF_TWO_HEADER_BLOCKS: &str = "
    6d 61 72 63 6f 74 47 52                         | magic
    01 00 00 00 02 00 00 00                         | version 1, no flags, 2 header blocks
    ae cd 1c 1e fd 00 00 00                         | checksum; 253 records
    08 07 06 05 04 03 02 01                         | author
    2c 01 00 00 00 00 00 00                         | epoch 300
    04 03 02 01 00 00 00 00                         | segment 0x01020304, 0 data blocks
    18 17 16 15 14 13 12 11                         | group
    10 17 16 15 14 13 12 11                         | durable below
    05000000000000000100000000000002 x 253          | records: discard block 5
    00 x 4080                                       | zeros to 8192
";
const LARGEST_GROUP: &str = "
    6d 61 72 63 6f 74 47 52                         | magic
    01 00 00 00 0b 00 00 00                         | version 1, no flags, 11 header blocks
    86 7f 8e e8 00 08 00 00                         | checksum; 2048 records
    08 07 06 05 04 03 02 01                         | author
    2c 01 00 00 00 00 00 00                         | epoch 300
    04 03 02 01 00 08 00 00                         | segment 0x01020304, 2048 data blocks
    18 17 16 15 14 13 12 11                         | group
    10 17 16 15 14 13 12 11                         | durable below
    05000000000000000100000000000001 x 2048         | records: write block 5
    78563412 x 2048                                 | checksums
    00 x 4032                                       | zeros to 11 x 4096
";

const BLOCK: usize = 4096;
/// Where the fields are, in bytes.
const VERSION: usize = 8;
const FLAGS: usize = 10;
const HEADER_BLOCKS: usize = 12;
const CRC: usize = 16;
const RECORDS: usize = 20;
const DATA_BLOCKS: usize = 44;
const FIRST_RECORD: usize = 64;
const WHAT: &str = "group header";

/// The header with other bytes, and a right checksum.
fn with(header: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    sealed(&changed(header, at, new), CRC, header.len())
}

fn group(records: Vec<Record>, crcs: Vec<u32>) -> GroupHeader {
    GroupHeader {
        author: 0x0102_0304_0506_0708,
        epoch: 300,
        sequence: 0x0102_0304,
        group: 0x1112_1314_1516_1718,
        durable_below: 0x1112_1314_1516_1710,
        records,
        crcs,
    }
}

fn write(block: u64, count: u64) -> Record {
    Record { kind: RecordKind::Write, block, count }
}

fn discard(block: u64, count: u64) -> Record {
    Record { kind: RecordKind::Discard, block, count }
}

/// Each known header, with what it says and the blocks of header and data that it has.
fn known() -> [(Vec<u8>, GroupHeader, usize, usize); 3] {
    let last = (1 << 36) - 1;
    let runs = vec![write(0xA_BCDE_1234, 2), discard(7, 0x1_2345_6789), write(last, 1)];
    let small = group(runs, vec![0x1111_1111, 0x2222_2222, 0xFEDC_BA98]);
    let discards = group(vec![discard(5, 1); 253], Vec::new());
    let largest = group(vec![write(5, 1); 2048], vec![0x1234_5678; 2048]);
    [
        (bytes(GROUP), small, 1, 4),
        (bytes(GROUP_OF_TWO_HEADER_BLOCKS), discards, 2, 2),
        (bytes(LARGEST_GROUP), largest, 11, 2059),
    ]
}

fn malformed(why: &'static str) -> Result<GroupHeader, FormatError> {
    Err(FormatError::Malformed { what: WHAT, why })
}

#[test]
fn a_header_is_these_bytes() {
    for (known, group, header_blocks, blocks) in known() {
        assert_eq!(known.len(), header_blocks * BLOCK);
        // Encoding replaces what the buffer held before.
        let mut encoded = vec![0xFF; 3 * BLOCK];
        group.encode_into(&mut encoded);
        assert_eq!(encoded, known);
        assert_eq!(GroupHeader::decode(&known).as_ref(), Ok(&group));
        assert_eq!(GroupHeader::peek(&known[..64]), Ok(header_blocks));
        assert_eq!((group.header_blocks(), group.blocks()), (header_blocks, blocks));
        // Bytes behind the header are ignored.
        assert_eq!(GroupHeader::decode(&[&known[..], &[9; 100]].concat()), Ok(group));
    }
    assert_eq!(GROUP_VERSION, 1);
}

#[test]
fn a_header_takes_the_blocks_that_its_records_and_checksums_need() {
    assert_eq!(header_blocks(0, 0), 1);
    assert_eq!((header_blocks(252, 0), header_blocks(253, 0)), (1, 2));
    assert_eq!((header_blocks(0, 1008), header_blocks(0, 1009)), (1, 2));
    assert_eq!((header_blocks(1, 1004), header_blocks(1, 1005)), (1, 2));
    assert_eq!(header_blocks(2048, 2048), 11);
}

#[test]
fn every_flag_is_incompatible_and_another_version_newer() {
    let known = bytes(GROUP);
    for bit in 0..16 {
        let flags = 1u16 << bit;
        let features = u32::from(flags);
        let newer = FormatError::NewerFormat { what: WHAT, version: 1, features };
        // Flags are checked before the checksum.
        let changed = changed(&known, FLAGS, &flags.to_le_bytes());
        assert_eq!(GroupHeader::peek(&changed), Err(newer.clone()));
        assert_eq!(GroupHeader::decode(&changed), Err(newer));
    }
    for version in [0, 2, 0x0100] {
        let newer = FormatError::NewerFormat { what: WHAT, version, features: 0 };
        let changed = changed(&known, VERSION, &version.to_le_bytes());
        assert_eq!(GroupHeader::decode(&changed), Err(newer));
    }
}

#[test]
fn a_header_that_is_cut_short_is_refused() {
    for (known, _, _, _) in known() {
        for have in [0, 1, 63] {
            let truncated = FormatError::Truncated { what: WHAT, have, need: 4096 };
            assert_eq!(GroupHeader::peek(&known[..have as usize]), Err(truncated.clone()));
            assert_eq!(GroupHeader::decode(&known[..have as usize]), Err(truncated));
        }
        let (have, need) = (known.len() as u64 - 1, known.len() as u64);
        let truncated = FormatError::Truncated { what: WHAT, have, need };
        assert_eq!(GroupHeader::decode(&known[..have as usize]), Err(truncated));
    }
}

#[test]
fn a_header_with_a_hostile_length_is_refused() {
    let known = bytes(GROUP);
    for blocks in [0, 12, 0x0100, u16::MAX] {
        let changed = with(&known, HEADER_BLOCKS, &blocks.to_le_bytes());
        let malformed = malformed("header length");
        assert_eq!(GroupHeader::peek(&changed), malformed.clone().map(|_| 0));
        assert_eq!(GroupHeader::decode(&changed), malformed);
    }
    // Two blocks where one would do, one where two are needed.
    let unfit = malformed("the header length does not fit its contents");
    let longer = with(&[&known[..], &[0; BLOCK]].concat(), HEADER_BLOCKS, &[2]);
    assert_eq!(GroupHeader::decode(&longer), unfit);
    let two = bytes(GROUP_OF_TWO_HEADER_BLOCKS);
    assert_eq!(GroupHeader::decode(&with(&two[..BLOCK], HEADER_BLOCKS, &[1])), unfit);
}

#[test]
fn a_group_has_at_most_2048_records_and_data_blocks() {
    let too_many = malformed("too many records");
    let known = bytes(LARGEST_GROUP);
    for count in [2049, 0x8000_0000, u32::MAX] {
        for at in [RECORDS, DATA_BLOCKS] {
            let changed = with(&known, at, &count.to_le_bytes());
            assert_eq!(GroupHeader::decode(&changed), too_many, "{count} at {at}");
        }
    }
}

#[test]
fn data_blocks_are_those_of_the_write_records() {
    let differ = malformed("write records and data blocks differ");
    let known = bytes(GROUP);
    for count in [0u32, 2, 4] {
        let changed = with(&known, DATA_BLOCKS, &count.to_le_bytes());
        assert_eq!(GroupHeader::decode(&changed), differ);
    }
    // The first record is a discard.
    let changed = with(&known, FIRST_RECORD + 15, &[2]);
    assert_eq!(GroupHeader::decode(&changed), differ);
}

#[test]
fn a_run_has_a_block_and_ends_within_the_largest_image() {
    let known = bytes(GROUP);
    let second = FIRST_RECORD + 16;
    let run = |block: u64, count: u64| {
        let record = [block.to_le_bytes(), (count | 2 << 56).to_le_bytes()].concat();
        GroupHeader::decode(&with(&known, second, &record)).map(|group| group.records[1])
    };
    let image = 1 << 36;
    for (block, count) in [(0, image), (image - 1, 1), (1, image - 1)] {
        assert_eq!(run(block, count), Ok(discard(block, count)));
    }
    let beyond = Err(FormatError::Malformed { what: WHAT, why: "a run beyond the largest image" });
    let most = (1 << 56) - 1;
    for (block, count) in [
        (0, 0),
        (7, 0),
        (0, image + 1),
        (1, image),
        (image, 1),
        (0, most),
        (u64::MAX, 1),
        (u64::MAX, most),
    ] {
        assert_eq!(run(block, count), beyond, "{count} blocks from {block} on");
    }
}

#[test]
fn a_record_of_an_unknown_kind_is_refused() {
    for kind in (0..=255u8).filter(|kind| ![1, 2].contains(kind)) {
        let changed = with(&bytes(GROUP), FIRST_RECORD + 15, &[kind]);
        assert_eq!(GroupHeader::decode(&changed), malformed("unknown kind of record"));
    }
}

#[test]
fn the_checksum_covers_all_header_blocks() {
    let known = bytes(GROUP_OF_TWO_HEADER_BLOCKS);
    for at in CRC..known.len() {
        let damaged = changed(&known, at, &[known[at] ^ 1]);
        let checksum = Err(FormatError::Checksum { what: WHAT });
        assert_eq!(GroupHeader::decode(&damaged), checksum, "byte {at}");
    }
    let other = Err(FormatError::Magic { what: WHAT });
    for at in 0..8 {
        let changed = with(&known, at, &[known[at] ^ 0x20]);
        assert_eq!(GroupHeader::decode(&changed), other);
    }
}
