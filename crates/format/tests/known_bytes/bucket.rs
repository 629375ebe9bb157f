//! The messages of a pool in a bucket (section 12), in whole objects.

use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::{
    MoveRecord, NameEntry, NamesRecord, NamespaceEntry, NamespacesRecord, ObjectRecord, StampRecord,
};

use crate::bytes::bytes;

const OBJECT: &str = "
    6d 61 72 63 6f 74 00 0a                         | magic
    01 00 07 00 00 00 00 00                         | version 1, kind 7: object; no incompatible features
    00 00 00 00 00 00 00 00                         | no compatible, no read-only-compatible features
    2f 00 00 00                                     | body: 47 bytes
    ae 51 bf 4a                                     | checksum
    0a 0c 09 88 77 66 55 44 33 22 11 10 ac 02       | stamp
    12 0c 09 88 77 66 55 44 33 22 11 10 ab 02       | earlier: the one before
    12 0b 09 99 00 00 00 00 00 00 00 10 01          | earlier: the first one
    1a 04 64 69 73 6b                               | body
";
const TOMBSTONE: &str = "
    6d 61 72 63 6f 74 00 0a                         | magic
    01 00 07 00 00 00 00 00                         | version 1, kind 7: object; no incompatible features
    00 00 00 00 00 00 00 00                         | no compatible, no read-only-compatible features
    00 00 00 00                                     | body: 0 bytes
    77 ea ac 8c                                     | checksum
";
const NAMES: &str = "
    6d 61 72 63 6f 74 00 0a                         | magic
    01 00 09 00 00 00 00 00                         | version 1, kind 9: directory of names; no incompatible features
    00 00 00 00 00 00 00 00                         | no compatible, no read-only-compatible features
    53 00 00 00                                     | body: 83 bytes
    8c bc 5e 88                                     | checksum
    0a 0a 0a 04 64 69 73 6b 12 02 01 02             | names: name and record
    0a 14 0a 01 61 12 01 03 1a 0c 09 77 00 00 00 00 | names: moving
    00 00 00 12 01 62                               |
    0a 14 0a 01 63 12 01 04 22 0c 09 78 00 00 00 00 | names: moved
    00 00 00 12 01 64                               |
    12 10 79 00 00 00 00 00 00 00 7a 00 00 00 00 00 | called_off, packed
    00 00                                           |
    19 7b 00 00 00 00 00 00 00                      | closed
";
const NAMESPACES: &str = "
    6d 61 72 63 6f 74 00 0a                         | magic
    01 00 0a 00 00 00 00 00                         | version 1, kind 10: list of namespaces; no incompatible features
    00 00 00 00 00 00 00 00                         | no compatible, no read-only-compatible features
    33 00 00 00                                     | body: 51 bytes
    68 c1 b2 5a                                     | checksum
    0a 0f 0a 04 74 65 61 6d 11 cd ab 00 00 00 00 00 | namespaces
    00                                              |
    0a 17 0a 03 6f 6c 64 11 ce ab 00 00 00 00 00 00 | namespaces: being removed
    19 11 00 00 00 00 00 00 00                      |
    11 12 00 00 00 00 00 00 00                      | removing
";

fn is<M: prost::Message + Default + PartialEq>(kind: FrameKind, text: &str, message: &M) {
    assert_eq!(encode_message(kind, message), bytes(text));
    let (decoded, read_only) = decode_message::<M>(kind, &bytes(text)).unwrap();
    assert!(decoded == *message && !read_only);
}

#[test]
fn an_object_is_these_bytes() {
    let stamp = |writer, sequence| StampRecord { writer, sequence };
    let object = ObjectRecord {
        stamp: Some(stamp(0x1122_3344_5566_7788, 300)),
        earlier: vec![stamp(0x1122_3344_5566_7788, 299), stamp(0x99, 1)],
        body: b"disk".to_vec(),
    };
    is(FrameKind::Object, OBJECT, &object);
    is(FrameKind::Object, TOMBSTONE, &ObjectRecord::default());
}

#[test]
fn a_directory_of_names_is_these_bytes() {
    let entry = |name: &str, record: &[u8]| NameEntry {
        name: name.into(),
        record: record.into(),
        ..NameEntry::default()
    };
    let step = |number, name: &str| Some(MoveRecord { number, name: name.into() });
    let names = NamesRecord {
        names: vec![
            entry("disk", &[1, 2]),
            NameEntry { moving: step(0x77, "b"), ..entry("a", &[3]) },
            NameEntry { moved: step(0x78, "d"), ..entry("c", &[4]) },
        ],
        called_off: vec![0x79, 0x7A],
        closed: 0x7B,
    };
    is(FrameKind::Names, NAMES, &names);
}

#[test]
fn a_list_of_namespaces_is_these_bytes() {
    let entry =
        |name: &str, number, removing| NamespaceEntry { name: name.into(), number, removing };
    let namespaces = NamespacesRecord {
        namespaces: vec![entry("team", 0xABCD, 0), entry("old", 0xABCE, 0x11)],
        removing: 0x12,
    };
    is(FrameKind::Namespaces, NAMESPACES, &namespaces);
}
