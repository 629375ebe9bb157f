//! The frame around records (section 2): kinds, versions, features (section 10), lengths.

use marcot_format::FormatError;
use marcot_format::frame::{Frame, FrameKind, decode, decode_message, encode};
use marcot_format::record::{HeadRecord, NameRecord};

use crate::bytes::{bytes, changed, sealed};
use crate::messages::RECORDS;

/// Where the fields of a header are, in bytes.
const VERSION: usize = 8;
const KIND: usize = 10;
const INCOMPATIBLE: usize = 12;
const COMPATIBLE: usize = 16;
const READ_ONLY_COMPATIBLE: usize = 20;
const BODY_BYTES: usize = 24;
const CRC: usize = 28;
const HEADER_BYTES: usize = 32;

/// Three name records, each with an unknown bit of one class: incompatible, compatible, read-only-compatible.
const INCOMPATIBLE_BIT: &str = "
    6d 61 72 63 6f 74 00 0a                         | magic
    01 00 04 00 00 00 00 80                         | version 1, kind 4: name; incompatible feature 31
    00 00 00 00 00 00 00 00                         | no compatible, no read-only-compatible features
    09 00 00 00 5c 2b 39 f4                         | body: 9 bytes, checksum
    09 88 77 66 55 44 33 22  11                     | image_id
";
const COMPATIBLE_BIT: &str = "
    6d 61 72 63 6f 74 00 0a                         | magic
    01 00 04 00 00 00 00 00                         | version 1, kind 4: name; no incompatible features
    00 00 00 80 00 00 00 00                         | compatible feature 31
    09 00 00 00 64 70 a6 e5                         | body: 9 bytes, checksum
    09 88 77 66 55 44 33 22  11                     | image_id
";
const READ_ONLY_COMPATIBLE_BIT: &str = "
    6d 61 72 63 6f 74 00 0a                         | magic
    01 00 04 00 00 00 00 00                         | version 1, kind 4: name; no incompatible features
    00 00 00 00 00 00 00 80                         | read-only-compatible feature 31
    09 00 00 00 bd 20 d1 cc                         | body: 9 bytes, checksum
    09 88 77 66 55 44 33 22  11                     | image_id
";

/// The record with other bytes in its header, and a right checksum.
fn with(record: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    sealed(&changed(record, at, new), CRC, record.len())
}

#[test]
fn a_record_with_an_unknown_bit_of_each_class_is_refused_read_or_only_read() {
    let newer = decode(FrameKind::Name, &bytes(INCOMPATIBLE_BIT)).unwrap_err();
    let what = "image name record";
    assert_eq!(newer, FormatError::NewerFormat { what, version: 1, features: 0x8000_0000 });
    let words =
        "the image name record was written by a newer marcot (version 1, features 0x80000000)";
    assert_eq!(newer.to_string(), words);
    let expected = NameRecord { image_id: 0x1122_3344_5566_7788, ..NameRecord::default() };
    for (text, read_only) in [(COMPATIBLE_BIT, false), (READ_ONLY_COMPATIBLE_BIT, true)] {
        let found = decode_message::<NameRecord>(FrameKind::Name, &bytes(text));
        assert_eq!(found, Ok((expected.clone(), read_only)));
    }
}

#[test]
fn every_bit_of_every_class_counts_in_a_record_of_each_kind() {
    for (kind, text) in RECORDS {
        let (record, what) = (bytes(text), kind.word());
        let body = &record[HEADER_BYTES..];
        assert_eq!(decode(kind, &record), Ok(Frame { body, read_only: false }));
        for bit in 0..32 {
            let features = 1u32 << bit;
            let changed = |at| with(&record, at, &features.to_le_bytes());
            let incompatible = Err(FormatError::NewerFormat { what, version: 1, features });
            // The only bits that have a meaning.
            let levels = (kind, bit) == (FrameKind::Pool, 0);
            let known = (kind, bit) == (FrameKind::Attached, 0) || levels;
            let expected = if known { Ok(Frame { body, read_only: false }) } else { incompatible };
            assert_eq!(decode(kind, &changed(INCOMPATIBLE)), expected);
            assert_eq!(decode(kind, &changed(COMPATIBLE)), Ok(Frame { body, read_only: false }));
            let read_only = Ok(Frame { body, read_only: !levels });
            assert_eq!(decode(kind, &changed(READ_ONLY_COMPATIBLE)), read_only);
        }
    }
}

#[test]
fn another_version_is_newer_whatever_else_is_wrong() {
    for (kind, text) in RECORDS {
        let what = kind.word();
        for version in [0, 2, 0x0101, u16::MAX] {
            let record = changed(&bytes(text), VERSION, &version.to_le_bytes());
            let newer = Err(FormatError::NewerFormat { what, version, features: 0 });
            // The version is checked before the checksum and the length.
            assert_eq!(decode(kind, &record), newer);
            assert_eq!(decode(kind, &record[..HEADER_BYTES]), newer);
        }
        let record = changed(&bytes(text), INCOMPATIBLE, &[2]);
        let newer = Err(FormatError::NewerFormat { what, version: 1, features: 2 });
        assert_eq!(decode(kind, &record[..HEADER_BYTES]), newer);
    }
}

#[test]
fn a_record_of_another_kind_or_magic_is_no_record_of_this_kind() {
    for (kind, text) in RECORDS {
        let record = bytes(text);
        let not = Err(FormatError::Magic { what: kind.word() });
        for (other, text) in RECORDS {
            assert_eq!(decode(kind, &bytes(text)).is_ok(), kind == other);
        }
        assert_eq!(decode(kind, &with(&record, KIND, &[0])), not);
        assert_eq!(decode(kind, &with(&record, KIND, &[kind as u8, 1])), not);
        for at in 0..8 {
            assert_eq!(decode(kind, &with(&record, at, &[record[at] ^ 0x20])), not);
        }
    }
}

#[test]
fn the_words_for_kinds_tell_them_apart() {
    let words = RECORDS.map(|(kind, _)| kind.word());
    let expected = [
        "store record",
        "pool record",
        "image head",
        "image name record",
        "child record",
        "attached pool record",
        "trash record",
        "group record",
        "membership record",
    ];
    assert_eq!(words, expected);
}

#[test]
fn a_record_is_exactly_as_long_as_it_says() {
    let (kind, text) = RECORDS[0];
    let (record, what) = (bytes(text), kind.word());
    let need = record.len() as u64;
    for have in 0..HEADER_BYTES as u64 {
        let cut = decode(kind, &record[..have as usize]);
        assert_eq!(cut, Err(FormatError::Truncated { what, have, need: 32 }));
    }
    for have in HEADER_BYTES as u64..need {
        let cut = decode(kind, &record[..have as usize]);
        assert_eq!(cut, Err(FormatError::Truncated { what, have, need }));
    }
    let mut longer = record.clone();
    longer.push(0);
    let have = need + 1;
    assert_eq!(decode(kind, &longer), Err(FormatError::Truncated { what, have, need }));
    // No body at all.
    let empty = with(&record[..HEADER_BYTES], BODY_BYTES, &[0; 4]);
    assert_eq!(decode(kind, &empty), Ok(Frame { body: b"", read_only: false }));
}

#[test]
fn a_body_has_at_most_16_mib() {
    let (kind, text) = RECORDS[0];
    let (record, what) = (bytes(text), kind.word());
    for length in [16_777_217, 0x8000_0000, u32::MAX] {
        let hostile = with(&record, BODY_BYTES, &length.to_le_bytes());
        let why = "the length is beyond the limit";
        assert_eq!(decode(kind, &hostile), Err(FormatError::Malformed { what, why }));
    }
    let limit = with(&record, BODY_BYTES, &16_777_216u32.to_le_bytes());
    let (have, need) = (record.len() as u64, 16_777_248);
    assert_eq!(decode(kind, &limit), Err(FormatError::Truncated { what, have, need }));
    let longest = encode(kind, &vec![7; 16_777_216]);
    assert_eq!(longest[BODY_BYTES..CRC], [0, 0, 0, 1]);
    assert_eq!(decode(kind, &longest).unwrap().body.len(), 16_777_216);
}

#[test]
fn any_flipped_bit_of_a_record_of_each_kind_is_noticed() {
    for (kind, text) in RECORDS {
        let record = bytes(text);
        for at in 0..record.len() {
            for bit in 0..8 {
                let damaged = changed(&record, at, &[record[at] ^ 1 << bit]);
                assert!(decode(kind, &damaged).is_err(), "byte {at}, bit {bit}");
            }
        }
        let damaged = changed(&record, CRC, &[record[CRC] ^ 1]);
        assert_eq!(decode(kind, &damaged), Err(FormatError::Checksum { what: kind.word() }));
    }
}

#[test]
fn a_head_has_no_more_parts_than_the_limits_say() {
    // Each part takes two bytes: the field, with a length of 0.
    let head =
        |field: u8, count: usize| encode(FrameKind::Head, &[field << 3 | 2, 0].repeat(count));
    let decode = |bytes: &[u8]| decode_message::<HeadRecord>(FrameKind::Head, bytes);
    let too_many =
        FormatError::Malformed { what: "image head", why: "more snapshots than there may be" };
    assert_eq!(decode(&head(13, 10_000)).unwrap().0.snapshots.len(), 10_000);
    assert_eq!(decode(&head(13, 10_001)), Err(too_many.clone()));
    assert_eq!(decode(&head(15, 1_048_576)).unwrap().0.metadata.len(), 1_048_576);
    assert_eq!(decode(&head(15, 1_048_577)), Err(too_many));
    // In other records these fields mean nothing.
    let name = encode(FrameKind::Name, &[13 << 3 | 2, 0].repeat(10_001));
    let (name, _) = decode_message::<NameRecord>(FrameKind::Name, &name).unwrap();
    assert_eq!(name, NameRecord::default());
}

#[test]
fn a_body_that_is_no_message_is_malformed() {
    // Field 1 with a length of five bytes, of which there are two; a wire type that does not exist.
    for body in [&[0x0a, 5, 1, 2][..], &[0x0f][..]] {
        for kind in [FrameKind::Head, FrameKind::Name] {
            let why = "the body does not decode";
            let malformed = FormatError::Malformed { what: kind.word(), why };
            let bytes = encode(kind, body);
            assert_eq!(decode_message::<HeadRecord>(kind, &bytes), Err(malformed));
        }
    }
}
