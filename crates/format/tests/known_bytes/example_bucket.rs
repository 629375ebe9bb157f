//! The example of section 12: a complete pool in a bucket, whose objects are in `docs/example-bucket.txt`. They are
//! read as the section says, and encoded again.

use std::collections::BTreeMap;

use marcot_format::crc32c;
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::group::GroupHeader;
use marcot_format::record::{
    HeadRecord, NameRecord, NamesRecord, ObjectRecord, PoolRecord, ShippedLog,
};
use marcot_format::segment::SegmentHeader;

use crate::bytes::bytes;

const EXAMPLE: &str = include_str!("../../../../docs/example-bucket.txt");
const IMAGE: u64 = 0xAE59_7D00_C598_6323;
const POOL: u64 = 0x79E4_1EA6_B816_606C;
const BLOCK: usize = 4096;

fn objects() -> BTreeMap<String, Vec<u8>> {
    let objects = EXAMPLE.split("\n@ ").skip(1);
    objects
        .map(|object| {
            let (key, text) = object.split_once('\n').unwrap();
            (key.to_owned(), bytes(text))
        })
        .collect()
}

/// The record in a stamped object. It and the object are written as they were read.
fn record<M: prost::Message + Default>(key: &str, kind: FrameKind) -> M {
    let stored = &objects()[key];
    let (object, _) = decode_message::<ObjectRecord>(FrameKind::Object, stored).unwrap();
    assert!(object.stamp.is_some());
    assert_eq!(&encode_message(FrameKind::Object, &object), stored, "{key}");
    let (record, _) = decode_message::<M>(kind, &object.body).unwrap();
    assert_eq!(encode_message(kind, &record), object.body, "{key}");
    record
}

#[test]
fn the_name_leads_to_the_head() {
    let pool: PoolRecord = record("pool", FrameKind::Pool);
    assert_eq!(pool.pool_id, POOL);
    assert_eq!(crc32c(b"tiny") % 64, 0x1E);
    let names: NamesRecord = record(&format!("names/{POOL:016x}/1e"), FrameKind::Names);
    let entry = names.names.iter().find(|entry| entry.name == "tiny").unwrap();
    let (name, _) = decode_message::<NameRecord>(FrameKind::Name, &entry.record).unwrap();
    assert_eq!((name.image_id, &entry.moving), (IMAGE, &None));
    let head: HeadRecord = record(&format!("images/{IMAGE:016x}/head"), FrameKind::Head);
    let owner = head.owner.as_ref().unwrap();
    assert_eq!((head.image_id, owner.term, owner.closed, head.log_first), (IMAGE, 3, false, 1));
    assert_eq!(head.snapshots[0].root, head.root);
}

#[test]
fn the_part_has_the_log_behind_the_root() {
    let head: HeadRecord = record(&format!("images/{IMAGE:016x}/head"), FrameKind::Head);
    let stored = &objects()[&format!("log/{IMAGE:016x}/0000000000000001")];
    let (part, _) = decode_message::<ShippedLog>(FrameKind::ShippedLog, stored).unwrap();
    assert_eq!(&encode_message(FrameKind::ShippedLog, &part), stored);
    assert_eq!((part.image_id, part.number, part.term, part.fence), (IMAGE, 1, 3, false));
    let [piece] = &part.pieces[..] else { panic!("{} pieces", part.pieces.len()) };
    let log = head.log.unwrap();
    assert_eq!((piece.sequence, piece.offset), (log.sequence, 0));
    let header = SegmentHeader::decode(&piece.bytes).unwrap();
    assert_eq!((header.author, header.sequence, header.epoch), (IMAGE, 2, head.epoch));
    let group = GroupHeader::decode(&piece.bytes[log.slot as usize * BLOCK..]).unwrap();
    assert_eq!((group.epoch, group.group, group.records[0].block), (head.epoch, log.group, 1));
    let block = &piece.bytes[2 * BLOCK..];
    assert_eq!((&block[..15], block.len()), (&b"hello, block 1\n"[..], BLOCK));
    assert_eq!(group.crcs, [crc32c(block)]);
}
