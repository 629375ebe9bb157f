//! What lies on disk. Checksums keep changed bytes from the decoders, so each input is tried as it
//! is, and again with the checksum that fits it.

use marcot_format::frame::{self, FrameKind};
use marcot_format::group::GroupHeader;
use marcot_format::page::{decode_page, encode_page, peek_page};
use marcot_format::record::{
    AttachedRecord, ChildRecord, GroupRecord, HeadRecord, MembershipRecord, NameRecord,
    NamesRecord, NamespacesRecord, ObjectRecord, PoolRecord, StoreRecord, TrashRecord,
};
use marcot_format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use marcot_format::table::{
    TABLE_LEVELS_MAX, TABLE_PAGE_BYTES, TablePage, decode_table, encode_pointers, encode_segments,
};
use marcot_format::{BLOCK_BYTES, MapEntry, crc32c};
use prost::Message;

/// The first `length` bytes with the checksum in their field at `field`.
fn sealed(data: &[u8], length: usize, field: usize) -> Vec<u8> {
    let mut bytes = data.to_vec();
    let covered = &mut bytes[..length];
    covered[field..field + 4].fill(0);
    let crc = crc32c(covered);
    covered[field..field + 4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

pub fn record(data: &[u8]) {
    // The kind is as hostile as the rest.
    match data.get(10).copied().unwrap_or(0) % 11 {
        0 | 8 => record_of::<HeadRecord>(FrameKind::Head, data),
        1 => record_of::<StoreRecord>(FrameKind::Store, data),
        2 => record_of::<PoolRecord>(FrameKind::Pool, data),
        3 => record_of::<HeadRecord>(FrameKind::Head, data),
        4 => record_of::<NameRecord>(FrameKind::Name, data),
        5 => record_of::<ChildRecord>(FrameKind::Child, data),
        6 => {
            record_of::<AttachedRecord>(FrameKind::Attached, data);
            record_of::<TrashRecord>(FrameKind::Trash, data);
            record_of::<GroupRecord>(FrameKind::Group, data);
            record_of::<MembershipRecord>(FrameKind::Membership, data);
        }
        7 => record_of::<ObjectRecord>(FrameKind::Object, data),
        9 => record_of::<NamesRecord>(FrameKind::Names, data),
        10 => record_of::<NamespacesRecord>(FrameKind::Namespaces, data),
        _ => unreachable!(),
    }
}

fn record_of<M: Message + Default + PartialEq>(kind: FrameKind, data: &[u8]) {
    let survives = |bytes: &[u8]| {
        let Ok((message, _)) = frame::decode_message::<M>(kind, bytes) else { return };
        let again = frame::encode_message(kind, &message);
        let decoded = frame::decode_message::<M>(kind, &again);
        assert!(decoded.is_ok_and(|(m, _)| m == message), "{kind:?} changes on its way");
    };
    survives(data);
    if data.len() >= frame::FRAME_HEADER_BYTES {
        survives(&sealed(data, data.len(), 28));
        survives(&frame::encode(kind, &data[frame::FRAME_HEADER_BYTES..]));
    }
    survives(&frame::encode(kind, data));
}

pub fn map_page(data: &[u8]) {
    map_page_of(data);
    if let Ok(length) = peek_page(data)
        && data.len() >= length
    {
        map_page_of(&sealed(data, length, 12));
    }
}

fn map_page_of(data: &[u8]) {
    let Ok((mut page, _)) = decode_page(data) else { return };
    // The checksum of a hole means nothing, and sparse pages leave it out.
    for entry in page.entries.iter_mut().filter(|entry| entry.is_hole()) {
        *entry = MapEntry::HOLE;
    }
    let mut again = Vec::new();
    let crc = encode_page(page.level, page.author, page.base, &page.entries, &mut again);
    assert_eq!(decode_page(&again), Ok((page, crc)));
}

pub fn table_page(data: &[u8]) {
    let Some(header) = data.first_chunk::<32>() else {
        assert!(decode_table(data, 0, 0).is_err());
        return;
    };
    let level = header[5] % TABLE_LEVELS_MAX as u8;
    let mut base = [0; 8];
    base.copy_from_slice(&header[24..]);
    let base = u64::from_le_bytes(base);
    table_page_of(data, level, base);
    if data.len() >= TABLE_PAGE_BYTES {
        table_page_of(&sealed(data, TABLE_PAGE_BYTES, 12), level, base);
    }
}

fn table_page_of(data: &[u8], level: u8, base: u64) {
    let Ok((page, _)) = decode_table(data, level, base) else { return };
    let mut again = Vec::new();
    let crc = match &page {
        TablePage::Segments(entries) => encode_segments(1, base, entries, &mut again),
        TablePage::Pointers(pointers) => encode_pointers(level, 1, base, pointers, &mut again),
    };
    assert_eq!(decode_table(&again, level, base), Ok((page, crc)));
}

pub fn group_header(data: &[u8]) {
    group_header_of(data);
    if let Ok(blocks) = GroupHeader::peek(data) {
        let length = blocks * BLOCK_BYTES as usize;
        if data.len() >= length {
            group_header_of(&sealed(data, length, 16));
        }
    }
}

fn group_header_of(data: &[u8]) {
    let Ok(header) = GroupHeader::decode(data) else { return };
    let mut again = Vec::new();
    header.encode_into(&mut again);
    assert_eq!(GroupHeader::decode(&again), Ok(header));
}

pub fn segment_header(data: &[u8]) {
    segment_header_of(data);
    if data.len() >= SEGMENT_HEADER_BYTES {
        segment_header_of(&sealed(data, SEGMENT_HEADER_BYTES, 12));
    }
}

fn segment_header_of(data: &[u8]) {
    let Ok(header) = SegmentHeader::decode(data) else { return };
    assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
}
