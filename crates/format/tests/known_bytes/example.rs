//! The example of section 9: a complete pool, whose files are in `docs/example-pool.txt`. They are read as
//! the section says, from the head to the bytes of a block, and encoded again.

use std::collections::BTreeMap;

use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::group::GroupHeader;
use marcot_format::page::{decode_page, encode_page};
use marcot_format::record::{HeadRecord, NameRecord, PoolRecord, RootRecord};
use marcot_format::segment::{SegmentHeader, SegmentKind};
use marcot_format::table::{SegmentEntry, TablePage, decode_table, encode_segments};
use marcot_format::{BlockAddress, crc32c};

use crate::bytes::bytes;

const EXAMPLE: &str = include_str!("../../../../docs/example-pool.txt");
const IMAGE: u64 = 0xEDEB_4D9D_DFCC_1C4C;
const POOL: u64 = 0x3017_C9D2_B566_84AB;
const BLOCK: usize = 4096;
/// The way through the map in the document's table: address and checksum at each level, then the
/// block's.
const WAY: [(u64, u32); 5] = [
    (0x0100_000B_0000_0002, 0x85A9_6C54),
    (0x0100_000A_0000_0002, 0xE47B_EBFA),
    (0x0100_0009_0000_0002, 0x6D4A_51E7),
    (0x0100_0008_0000_0002, 0xE71A_C2C4),
    (0x0100_0003_0000_0001, 0x34AD_AB6F),
];

/// The pool's files by their path.
fn files() -> BTreeMap<String, Vec<u8>> {
    let files = EXAMPLE.split("\n@ ").skip(1);
    files
        .map(|file| {
            let (path, text) = file.split_once('\n').unwrap();
            (path.to_owned(), bytes(text))
        })
        .collect()
}

fn head() -> HeadRecord {
    let file = &files()["images/edeb4d9ddfcc1c4c/head"];
    decode_message(FrameKind::Head, file).unwrap().0
}

fn segment(name: &str) -> Vec<u8> {
    files()[&format!("segments/edeb4d9ddfcc1c4c/{name}")].clone()
}

fn table(root: &RootRecord) -> Vec<Option<SegmentEntry>> {
    let top = root.table.unwrap();
    assert_eq!((top.author, top.sequence, top.page), (IMAGE, 1, 1));
    assert_eq!((root.pools[top.pool as usize], root.table_levels), (POOL, 1));
    match decode_table(&segment("t00000001")[BLOCK..], 0, 0).unwrap() {
        (TablePage::Segments(entries), crc) => {
            assert_eq!((crc, top.crc), (0xFF2F_24D4, 0xFF2F_24D4));
            entries
        }
        page => panic!("{page:?}"),
    }
}

#[test]
fn the_names_lead_to_the_image() {
    let files = files();
    let (pool, _) = decode_message::<PoolRecord>(FrameKind::Pool, &files["pool"]).unwrap();
    assert_eq!(pool.pool_id, POOL);
    let (name, _) = decode_message::<NameRecord>(FrameKind::Name, &files["names/@/tiny"]).unwrap();
    assert_eq!(name, NameRecord { image_id: IMAGE, ..NameRecord::default() });
    let head = head();
    assert_eq!((head.image_id, head.name.as_str()), (IMAGE, "tiny"));
    let root = head.root.unwrap();
    assert_eq!((root.size_bytes, root.map_address, root.map_crc), (8192, WAY[0].0, WAY[0].1));
    assert_eq!((root.pools, root.copies), (vec![POOL], vec![]));
}

#[test]
fn block_1_is_found_as_the_document_says() {
    let (map, data) = (segment("m00000001"), segment("d00000001"));
    let entries = table(&head().root.unwrap());
    let expected = |kind, n| {
        Some(SegmentEntry { author: IMAGE, sequence: 1, pool: 0, kind, live: n, used: n })
    };
    let in_use = [None, expected(SegmentKind::Data, 2), expected(SegmentKind::Map, 4), None];
    assert_eq!(entries[..4], in_use);
    for (level, way) in (0..4).rev().zip(WAY.windows(2)) {
        let address = BlockAddress(way[0].0);
        assert_eq!(entries[address.index().0 as usize].unwrap().kind, SegmentKind::Map);
        let at = address.unit().offset_bytes();
        let (page, crc) = decode_page(&map[at as usize..]).unwrap();
        assert_eq!((page.level, page.base, crc), (level, 0, way[0].1));
        let next = page.entries[usize::from(level == 0)];
        assert_eq!(({ next.address }.0, { next.crc }), way[1]);
    }
    let address = BlockAddress(WAY[4].0);
    assert_eq!(entries[address.index().0 as usize].unwrap().kind, SegmentKind::Data);
    let block = &data[address.slot().0 as usize * BLOCK..][..BLOCK];
    assert_eq!(&block[..15], b"hello, block 1\n");
    assert_eq!(crc32c(block), WAY[4].1);
}

#[test]
fn the_group_names_the_blocks_and_their_checksums() {
    let data = segment("d00000001");
    let group = GroupHeader::decode(&data[BLOCK..]).unwrap();
    assert_eq!((group.author, group.sequence, group.group), (IMAGE, 1, 1));
    assert_eq!(group.crcs, [0x0572_51E9, 0x34AD_AB6F]);
    let blocks: Vec<&[u8]> = data[2 * BLOCK..].chunks(BLOCK).collect();
    assert_eq!(blocks[0], [b'A'; BLOCK]);
    assert_eq!(blocks.iter().map(|block| crc32c(block)).collect::<Vec<_>>(), group.crcs);
    let log = head().log.unwrap();
    assert_eq!((log.sequence, log.slot, log.group), (2, 1, 2));
    assert!(!EXAMPLE.contains("d00000002"));
}

#[test]
fn what_was_read_is_written_as_it_was() {
    let files = files();
    assert_eq!(encode_message(FrameKind::Head, &head()), files["images/edeb4d9ddfcc1c4c/head"]);
    assert_eq!(files["images/edeb4d9ddfcc1c4c/head"][24..32], bytes("b0 00 00 00 4b e1 5c 5d"));
    for name in ["d00000001", "m00000001", "t00000001"] {
        let header = SegmentHeader::decode(&segment(name)).unwrap();
        assert_eq!((header.author, header.sequence, header.epoch), (IMAGE, 1, 1));
        assert!(name.starts_with(header.kind.letter()));
        assert_eq!(header.encode(), segment(name)[..BLOCK]);
    }
    let mut pages = Vec::new();
    for unit in 8..12 {
        let (page, _) = decode_page(&segment("m00000001")[unit * 512..]).unwrap();
        encode_page(page.level, page.author, page.base, &page.entries, &mut pages);
    }
    assert_eq!(pages, segment("m00000001")[BLOCK..]);
    let mut page = Vec::new();
    encode_segments(IMAGE, 0, &table(&head().root.unwrap()), &mut page);
    assert_eq!(page, segment("t00000001")[BLOCK..]);
    let mut group = Vec::new();
    GroupHeader::decode(&segment("d00000001")[BLOCK..]).unwrap().encode_into(&mut group);
    assert_eq!(group, segment("d00000001")[BLOCK..2 * BLOCK]);
}
