//! The messages in records (section 3): every field by its number and type, in whole records.

use marcot_format::frame::{FrameKind, decode_message, encode, encode_message};
use marcot_format::record::{
    AttachedRecord, ChildRecord, ConfigRecord, GroupMemberRecord, GroupPartRecord, GroupRecord,
    GroupSnapshotRecord, HeadRecord, IncomingRecord, LockRecord, LogPiece, LogPosition,
    MembershipRecord, MetaRecord, MigrationRecord, MigrationState, NameRecord, OwnerRecord,
    ParentRecord, PartOfRecord, PoolRecord, Protection, RootRecord, SegmentMarks, ShippedLog,
    SnapshotRecord, StoreRecord, TablePointer, TrashRecord,
};
use prost::Message;

use crate::bytes::bytes;

/// A record of each kind, with all fields.
pub const RECORDS: [(FrameKind, &str); 9] = [
    (FrameKind::Store, STORE),
    (FrameKind::Pool, POOL),
    (FrameKind::Head, HEAD),
    (FrameKind::Name, NAME),
    (FrameKind::Child, CHILD),
    (FrameKind::Attached, ATTACHED),
    (FrameKind::Trash, TRASH),
    (FrameKind::Group, GROUP),
    (FrameKind::Membership, MEMBERSHIP),
];

const STORE: &str = "
    6d 61 72 63 6f 74 00 0a                         | magic
    01 00 01 00 00 00 00 00                         | version 1, kind 1: store; no incompatible features
    00 00 00 00 00 00 00 00                         | no compatible, no read-only-compatible features
    19 00 00 00                                     | body: 25 bytes
    e5 1f bf 24                                     | checksum
    09 88 77 66 55 44 33 22  11                     | store_id
    f2 01 0d                                        | config:
    0a 04 63 6c 69 65                               |   entity
    12 02 6b 31                                     |   key
    1a 01 76                                        |   value
";
const POOL: &str = "
    6d 61 72 63 6f 74 00 0a                         | magic
    01 00 02 00 00 00 00 00                         | version 1, kind 2: pool; no incompatible features
    00 00 00 00 00 00 00 00                         | no compatible, no read-only-compatible features
    28 00 00 00                                     | body: 40 bytes
    99 01 07 62                                     | checksum
    09 88 77 66 55 44 33 22  11                     | pool_id
    11 01 ff ee dd cc bb aa  99                     | store_id
    18 80 e2 cf aa 06                               | created_s 1700000000
    22 03 72 62 64                                  | application
    f2 01 08                                        | config:
    0a 02 6b 31                                     |   key
    12 02 76 31                                     |   value
";
const NAME: &str = "
    6d 61 72 63 6f 74 00 0a                         | magic
    01 00 04 00 00 00 00 00                         | version 1, kind 4: name; no incompatible features
    00 00 00 00 00 00 00 00                         | no compatible, no read-only-compatible features
    13 00 00 00                                     | body: 19 bytes
    57 55 89 73                                     | checksum
    09 88 77 66 55 44 33 22  11                     | image_id
    12 02 6e 73                                     | namespace
    1a 04 64 69 73 6b                               | name
";
const CHILD: &str = "
    6d 61 72 63 6f 74 00 0a                         | magic
    01 00 05 00 00 00 00 00                         | version 1, kind 5: child; no incompatible features
    00 00 00 00 00 00 00 00                         | no compatible, no read-only-compatible features
    46 00 00 00                                     | body: 70 bytes
    1e b7 2e 49                                     | checksum
    09 11 00 00 00 00 00 00  00                     | parent_pool_id
    11 22 00 00 00 00 00 00  00                     | parent_image_id
    18 ac 02                                        | parent_snap_id 300
    21 33 00 00 00 00 00 00  00                     | child_pool_id
    29 44 00 00 00 00 00 00  00                     | child_image_id
    32 03 72 62 64                                  | child_pool_name
    3a 04 64 69 73 6b                               | child_name
    42 06 2f 73 72 76 2f 70                         | child_pool_directory
    48 80 e2 cf aa 06                               | created_s 1700000000
    50 02                                           | clone_format 2
    5a 02 6e 73                                     | child_namespace
";
const ATTACHED: &str = "
    6d 61 72 63 6f 74 00 0a                         | magic
    01 00 06 00 00 00 00 00                         | version 1, kind 6: attached; no incompatible features
    00 00 00 00 00 00 00 00                         | no compatible, no read-only-compatible features
    17 00 00 00                                     | body: 23 bytes
    a0 d8 af e0                                     | checksum
    0a 09 2f 73 72 76 2f 70  6f 6f 6c               | directory
    11 88 77 66 55 44 33 22  11                     | pool_id
    18 e8 07                                        | owner 1000
";
const TRASH: &str = "
    6d 61 72 63 6f 74 00 0a                         | magic
    01 00 14 00 00 00 00 00                         | version 1, kind 20: trash; no incompatible features
    00 00 00 00 00 00 00 00                         | no compatible, no read-only-compatible features
    1b 00 00 00                                     | body: 27 bytes
    cc d7 81 73                                     | checksum
    09 88 77 66 55 44 33 22  11                     | image_id
    12 04 64 69 73 6b                               | name
    18 80 e2 cf aa 06                               | deleted_s 1700000000
    20 ac e4 cf aa 06                               | protected_until_s 1700000300
";
const GROUP: &str = "
    6d 61 72 63 6f 74 00 0a                         | magic
    01 00 15 00 00 00 00 00                         | version 1, kind 21: group; no incompatible features
    00 00 00 00 00 00 00 00                         | no compatible, no read-only-compatible features
    56 00 00 00                                     | body: 86 bytes
    2d 90 3a 18                                     | checksum
    09 88 77 66 55 44 33 22 11                      | group_id
    12 12 09 11 00 00 00 00 00 00 00 11 22 00 00 00 | member: pool_id, image_id
    00 00 00 00                                     | ...
    1a 2f                                           | a snapshot of 47 bytes
    09 33 00 00 00 00 00 00 00                      | snapshot: id
    12 03 6d 6f 6e                                  | name
    18 80 e2 cf aa 06                               | created_s 1700000000
    20 01                                           | complete
    2a 15 09 11 00 00 00 00 00 00 00 11 22 00 00 00 | part: pool_id, image_id, snap_id 300
    00 00 00 00 18 ac 02                            | ...
    30 01                                           | removing
    22 02 6e 73                                     | namespace
    2a 02 64 62                                     | name
";
const MEMBERSHIP: &str = "
    6d 61 72 63 6f 74 00 0a                         | magic
    01 00 16 00 00 00 00 00                         | version 1, kind 22: membership; no incompatible features
    00 00 00 00 00 00 00 00                         | no compatible, no read-only-compatible features
    1b 00 00 00                                     | body: 27 bytes
    65 ab 95 17                                     | checksum
    09 88 77 66 55 44 33 22 11                      | image_id
    11 11 00 00 00 00 00 00 00                      | pool_id
    19 22 00 00 00 00 00 00 00                      | group_id
";
const HEAD: &str = "
    6d 61 72 63 6f 74 00 0a                         | magic
    01 00 03 00 00 00 00 00                         | version 1, kind 3: head; no incompatible features
    00 00 00 00 00 00 00 00                         | no compatible, no read-only-compatible features
    d7 01 00 00                                     | body: 471 bytes
    6a c8 f3 c0                                     | checksum
    09 08 07 06 05 04 03 02  01                     | image_id
    12 04 64 69 73 6b                               | name
    1a 02 6e 73                                     | namespace
    20 ac 02                                        | epoch 300
    28 ad 02                                        | version 301
    30 81 e2 cf aa 06                               | created_s 1700000001
    38 82 e2 cf aa 06                               | modified_s 1700000002
    42 54                                           | root:
    08 80 80 01                                     |   size_bytes 16384
    11 04 00 00 00 0b 00 00  01                     |   map_address
    1d 02 6c a9 85                                  |   map_crc
    22 15                                           |   table:
    09 a2 00 00 00 00 00 00  00                     |     author
    10 ae 02                                        |     sequence 302
    18 01                                           |     pool 1
    20 05                                           |     slot 5
    2d 02 00 de c0                                  |     crc
    28 02                                           |   table_levels 2
    30 82 01                                        |   segment_next 130
    3a 10 51 00 00 00 00 00  00 00 52 00 00 00 00 00  00 00 |   pools: 0x51, 0x52
    40 02                                           |   mapped_blocks 2
    4a 10 00 00 00 00 00 00  00 00 53 00 00 00 00 00  00 00 |   copies: 0, 0x53
    4a 06 08 04 10 05 18 06                         | log: segment 4, slot 5, group 6
    52 06 08 0a 10 0b 18 0c                         | marks: 10, 11, 12
    5a 06 08 0d 10 0e 18 0f                         | shared_below: 13, 14, 15
    62 2e                                           | parent:
    09 63 00 00 00 00 00 00  00                     |   pool_id
    11 73 00 00 00 00 00 00  00                     |   image_id
    18 06                                           |   snap_id 6
    20 80 40                                        |   overlap_bytes 8192
    2a 03 72 62 64                                  |   pool_name
    32 02 6e 73                                     |   namespace
    3a 04 74 6d 70 6c                               |   image_name
    42 02 76 32                                     |   snap_name
    48 02                                           |   clone_format 2
    50 01                                           |   untracked
    6a a5 01                                        | snapshot:
    08 03                                           |   id 3
    12 02 73 33                                     |   name
    18 83 e2 cf aa 06                               |   created_s 1700000003
    20 02                                           |   protection 2: unprotecting
    2a 53                                           |   root:
    08 80 40                                        |     size_bytes 8192
    11 03 00 00 00 0b 00 00  01                     |     map_address
    1d 01 6c a9 85                                  |     map_crc
    22 15                                           |     table:
    09 a1 00 00 00 00 00 00  00                     |       author
    10 ad 02                                        |       sequence 301
    18 01                                           |       pool 1
    20 05                                           |       slot 5
    2d 01 00 de c0                                  |       crc
    28 02                                           |     table_levels 2
    30 82 01                                        |     segment_next 130
    3a 10 51 00 00 00 00 00  00 00 52 00 00 00 00 00  00 00 |     pools: 0x51, 0x52
    40 01                                           |     mapped_blocks 1
    4a 10 00 00 00 00 00 00  00 00 53 00 00 00 00 00  00 00 |     copies: 0, 0x53
    32 06 08 07 10 08 18 09                         |   marks: 7, 8, 9
    38 01                                           |   trashed
    42 2e                                           |   parent:
    09 62 00 00 00 00 00 00  00                     |     pool_id
    11 72 00 00 00 00 00 00  00                     |     image_id
    18 05                                           |     snap_id 5
    20 80 20                                        |     overlap_bytes 4096
    2a 03 72 62 64                                  |     pool_name
    32 02 6e 73                                     |     namespace
    3a 04 74 6d 70 6c                               |     image_name
    42 02 76 31                                     |     snap_name
    48 02                                           |     clone_format 2
    50 01                                           |     untracked
    48 01                                           |   removing
    52 04 6f 72 69 67                               |   original_name
    6a 08                                           | snapshot:
    08 04                                           |   id 4
    12 02 73 34                                     |   name
    20 01                                           |   protection 1: protected
    70 05                                           | snap_next 5
    7a 08                                           | metadata:
    0a 02 6b 31                                     |   key
    12 02 76 31                                     |   value
    7a 04                                           | metadata, its value empty:
    0a 02 6b 32                                     |   key
    80 01 16                                        | order 22
    88 01 01                                        | removing
    92 01 0c 64 65 65 70 2d  66 6c 61 74 74 65 6e   | features
    9a 01 06 08 10 10 11 18  12                     | open_from: 16, 17, 18
    a1 01 11 22 33 44 55 66  77 88                  | copying
    a8 01 01                                        | leaves_marks
    f0 01 00                                        | snapshot_limit 0
    fa 01 11                                        | lock:
    08 07                                           |   client
    12 02 63 31                                     |   cookie
    1a 02 61 31                                     |   address
    20 01                                           |   shared
    2a 03 74 61 67                                  |   tag
    80 02 80 20                                     | stripe_unit_bytes
    88 02 03                                        | stripe_count
    92 02 04 74 61 6e 6b                            | data_pool
";

/// Asserts that the record is these bytes, in both directions.
fn is<M: prost::Message + Default + PartialEq + Clone + std::fmt::Debug>(
    kind: FrameKind,
    known: &str,
    record: &M,
) {
    let known = bytes(known);
    assert_eq!(encode_message(kind, record), known);
    assert_eq!(decode_message::<M>(kind, &known).as_ref(), Ok(&(record.clone(), false)));
}

#[test]
fn a_store_record_is_these_bytes() {
    let (entity, key, value) = ("clie".into(), "k1".into(), "v".into());
    let config = vec![ConfigRecord { entity, key, value }];
    is(FrameKind::Store, STORE, &StoreRecord { store_id: 0x1122_3344_5566_7788, config });
}

#[test]
fn a_pool_record_is_these_bytes() {
    let record = PoolRecord {
        pool_id: 0x1122_3344_5566_7788,
        store_id: 0x99AA_BBCC_DDEE_FF01,
        created_s: 1_700_000_000,
        application: "rbd".into(),
        read_level: 0,
        write_level: 0,
        config: vec![MetaRecord { key: "k1".into(), value: "v1".into() }],
    };
    is(FrameKind::Pool, POOL, &record);
}

#[test]
fn a_pool_record_with_levels_is_these_bytes() {
    let known = bytes(
        "6d 61 72 63 6f 74 00 0a                        | magic
         01 00 02 00 01 00 00 00                        | version 1, kind 2: pool; incompatible feature 0
         00 00 00 00 01 00 00 00                        | no compatible features; read-only-compatible feature 0
         0d 00 00 00 bd 3a 4c 0e                        | body: 13 bytes, checksum
         09 88 77 66 55 44 33 22  11                    | pool_id
         28 02                                          | read_level 2
         30 03                                          | write_level 3
        ",
    );
    let (pool_id, levels) = (0x1122_3344_5566_7788, (2, 3));
    let (read_level, write_level) = levels;
    let record = PoolRecord { pool_id, read_level, write_level, ..PoolRecord::default() };
    assert_eq!(record.to_file(), known);
    assert_eq!(decode_message(FrameKind::Pool, &known), Ok((record, false)));
    // A level of 1 needs no feature, and its record is one of earlier versions.
    let first = PoolRecord { pool_id, read_level: 1, write_level: 1, ..PoolRecord::default() };
    assert_eq!(first.to_file()[12..24], [0; 12]);
}

#[test]
fn a_name_record_is_these_bytes() {
    let record =
        NameRecord { image_id: 0x1122_3344_5566_7788, namespace: "ns".into(), name: "disk".into() };
    is(FrameKind::Name, NAME, &record);
}

#[test]
fn a_child_record_is_these_bytes() {
    let record = ChildRecord {
        parent_pool_id: 0x11,
        parent_image_id: 0x22,
        parent_snap_id: 300,
        child_pool_id: 0x33,
        child_image_id: 0x44,
        child_pool_name: "rbd".into(),
        child_name: "disk".into(),
        child_pool_directory: "/srv/p".into(),
        created_s: 1_700_000_000,
        clone_format: 2,
        child_namespace: "ns".into(),
        ..ChildRecord::default()
    };
    is(FrameKind::Child, CHILD, &record);
}

#[test]
fn an_attached_record_is_these_bytes() {
    let record = AttachedRecord {
        directory: "/srv/pool".into(),
        pool_id: 0x1122_3344_5566_7788,
        owner: Some(1000),
        ..AttachedRecord::default()
    };
    is(FrameKind::Attached, ATTACHED, &record);
}

const IN_A_BUCKET: &str = "
    6d 61 72 63 6f 74 00 0a                         | magic
    01 00 06 00 01 00 00 00                         | version 1, kind 6: attached; incompatible: in a bucket
    00 00 00 00 00 00 00 00                         | no compatible, no read-only-compatible features
    32 00 00 00                                     | body: 50 bytes
    7e 4c b7 cf                                     | checksum
    11 88 77 66 55 44 33 22 11                      | pool_id
    22 08 73 33 3a 2f 2f 62 2f 70                   | url
    2a 0a 68 74 74 70 3a 2f 2f 68 3a 31             | endpoint
    32 02 65 75                                     | region
    3a 02 2f 63                                     | credentials
    40 01                                           | flush_local
    4a 02 2f 6b                                     | cache_directory
    50 ac 02                                        | cache_bytes
    58 01                                           | bare_etags
";

#[test]
fn an_attached_record_of_a_pool_in_a_bucket_is_these_bytes() {
    let record = AttachedRecord {
        pool_id: 0x1122_3344_5566_7788,
        url: "s3://b/p".into(),
        endpoint: "http://h:1".into(),
        region: "eu".into(),
        credentials: "/c".into(),
        flush_local: true,
        cache_directory: "/k".into(),
        cache_bytes: 300,
        bare_etags: true,
        ..AttachedRecord::default()
    };
    assert_eq!(record.to_file(), bytes(IN_A_BUCKET));
    let read = decode_message::<AttachedRecord>(FrameKind::Attached, &bytes(IN_A_BUCKET));
    assert_eq!(read, Ok((record, false)));
    // An earlier version does not know the feature, and so looks for no directory.
    let elsewhere = AttachedRecord { directory: "/p".into(), ..AttachedRecord::default() };
    assert_eq!(elsewhere.to_file(), encode_message(FrameKind::Attached, &elsewhere));
}

#[test]
fn a_trash_record_is_these_bytes() {
    let record = TrashRecord {
        image_id: 0x1122_3344_5566_7788,
        name: "disk".into(),
        deleted_s: 1_700_000_000,
        protected_until_s: 1_700_000_300,
        migrating: false,
    };
    is(FrameKind::Trash, TRASH, &record);
    let source = TrashRecord { migrating: true, ..TrashRecord::default() };
    assert_eq!(source.encode_to_vec(), bytes("28 01 | migrating, field 5"));
}

#[test]
fn a_group_record_is_these_bytes() {
    let record = GroupRecord {
        group_id: 0x1122_3344_5566_7788,
        members: vec![GroupMemberRecord { pool_id: 0x11, image_id: 0x22 }],
        snapshots: vec![GroupSnapshotRecord {
            id: 0x33,
            name: "mon".into(),
            created_s: 1_700_000_000,
            complete: true,
            parts: vec![GroupPartRecord { pool_id: 0x11, image_id: 0x22, snap_id: 300 }],
            removing: true,
        }],
        namespace: "ns".into(),
        name: "db".into(),
        changes: 0,
    };
    is(FrameKind::Group, GROUP, &record);
    let changed = GroupRecord { changes: 3, ..GroupRecord::default() };
    assert_eq!(changed.encode_to_vec(), bytes("30 03 | changes, field 6"));
}

#[test]
fn a_membership_record_is_these_bytes() {
    let record = MembershipRecord {
        image_id: 0x1122_3344_5566_7788,
        pool_id: 0x11,
        group_id: 0x22,
        claim: 0,
    };
    is(FrameKind::Membership, MEMBERSHIP, &record);
    let claimed = MembershipRecord { claim: 0x44, ..MembershipRecord::default() };
    assert_eq!(claimed.encode_to_vec(), bytes("21 44 00 00 00 00 00 00 00 | claim, field 4"));
}

#[test]
fn a_part_of_a_groups_snapshot_says_of_which() {
    let part = PartOfRecord { pool_id: 0x11, group_id: 0x22, snapshot_id: 0x33 };
    let record = SnapshotRecord { group: Some(part), ..SnapshotRecord::default() };
    let bytes = "92 03 1b  09 11 00 00 00 00 00 00 00  11 22 00 00 00 00 00 00 00
                 19 33 00 00 00 00 00 00 00";
    assert_eq!(prost::Message::encode_to_vec(&record), crate::bytes::bytes(bytes));
}

fn marks(data: u32, map: u32, table: u32) -> SegmentMarks {
    SegmentMarks { data, map, table }
}

fn root(n: u32) -> RootRecord {
    let wide = u64::from(n);
    RootRecord {
        size_bytes: 8192 * wide,
        map_address: 0x0100_000B_0000_0002 + wide,
        map_crc: 0x85A9_6C00 + n,
        table: Some(TablePointer {
            author: 0xA0 + wide,
            sequence: 300 + n,
            pool: 1,
            page: 5,
            crc: 0xC0DE_0000 + n,
        }),
        table_levels: 2,
        segment_next: 130,
        pools: vec![0x51, 0x52],
        mapped_blocks: wide,
        copies: vec![0, 0x53],
    }
}

fn parent(n: u64) -> ParentRecord {
    ParentRecord {
        pool_id: 0x61 + n,
        image_id: 0x71 + n,
        snap_id: 4 + n,
        overlap_bytes: 4096 * n,
        pool_name: "rbd".into(),
        namespace: "ns".into(),
        image_name: "tmpl".into(),
        snap_name: format!("v{n}"),
        clone_format: 2,
        untracked: true,
    }
}

fn snapshots() -> Vec<SnapshotRecord> {
    let full = SnapshotRecord {
        id: 3,
        name: "s3".into(),
        created_s: 1_700_000_003,
        protection: Protection::Unprotecting as i32,
        root: Some(root(1)),
        marks: Some(marks(7, 8, 9)),
        trashed: true,
        parent: Some(parent(1)),
        removing: true,
        original_name: "orig".into(),
        group: None,
    };
    let plain = SnapshotRecord {
        id: 4,
        name: "s4".into(),
        protection: Protection::Protected as i32,
        ..SnapshotRecord::default()
    };
    vec![full, plain]
}

#[test]
fn a_head_is_these_bytes() {
    let meta = |key: &str, value: &str| MetaRecord { key: key.into(), value: value.into() };
    let record = HeadRecord {
        image_id: 0x0102_0304_0506_0708,
        name: "disk".into(),
        namespace: "ns".into(),
        epoch: 300,
        version: 301,
        created_s: 1_700_000_001,
        modified_s: 1_700_000_002,
        root: Some(root(2)),
        log: Some(LogPosition { sequence: 4, slot: 5, group: 6 }),
        marks: Some(marks(10, 11, 12)),
        shared_below: Some(marks(13, 14, 15)),
        parent: Some(parent(2)),
        snapshots: snapshots(),
        snap_next: 5,
        metadata: vec![meta("k1", "v1"), meta("k2", "")],
        order: 22,
        removing: true,
        features: "deep-flatten".into(),
        open_from: Some(marks(16, 17, 18)),
        copying: 0x8877_6655_4433_2211,
        leaves_marks: true,
        snapshot_limit: Some(0),
        locks: vec![LockRecord {
            client: 7,
            cookie: "c1".into(),
            address: "a1".into(),
            shared: true,
            tag: "tag".into(),
        }],
        stripe_unit_bytes: 4096,
        stripe_count: 3,
        data_pool: "tank".into(),
        ..HeadRecord::default()
    };
    is(FrameKind::Head, HEAD, &record);
}

/// What only pools have of which several hosts may be owners.
#[test]
fn the_fields_for_several_hosts_are_these_bytes() {
    let head = HeadRecord {
        owner: Some(OwnerRecord {
            term: 5,
            host: 0x1122_3344_5566_7788,
            host_name: "h1".into(),
            process_id: 300,
            since_s: 1_700_000_000,
            closed: true,
        }),
        log_first: 7,
        reserved: Some(marks(1, 2, 3)),
        ..HeadRecord::default()
    };
    let expected = bytes(
        "
        b2 01 1a                                        | owner:
        08 05                                           |   term 5
        11 88 77 66 55 44 33 22  11                     |   host
        1a 02 68 31                                     |   host_name
        20 ac 02                                        |   process_id 300
        28 80 e2 cf aa 06                               |   since_s 1700000000
        30 01                                           |   closed
        b8 01 07                                        | log_first 7
        c2 01 06 08 01 10 02 18 03                      | reserved: 1, 2, 3
        ",
    );
    assert_eq!(head.encode_to_vec(), expected);
    let host = 0x1122_3344_5566_7788;
    let child = ChildRecord { host, host_name: "h1".into(), ..ChildRecord::default() };
    let expected = bytes(
        "
        61 88 77 66 55 44 33 22  11                     | host
        6a 02 68 31                                     | host_name
        ",
    );
    assert_eq!(child.encode_to_vec(), expected);
    let part = ShippedLog {
        image_id: 0x1122_3344_5566_7788,
        number: 7,
        term: 5,
        fence: true,
        pieces: vec![LogPiece { sequence: 4, offset: 4096, bytes: vec![0xAA, 0xBB] }],
    };
    let expected = bytes(
        "
        09 88 77 66 55 44 33 22  11                     | image_id
        10 07                                           | number 7
        18 05                                           | term 5
        20 01                                           | fence
        2a 09                                           | piece:
        08 04                                           |   sequence 4
        10 80 20                                        |   offset 4096
        1a 02 aa bb                                     |   bytes
        ",
    );
    assert_eq!(part.encode_to_vec(), expected);
}

#[test]
fn a_head_of_a_partial_image_is_these_bytes() {
    let expected = bytes(
        "9a 02 0c                                        | incoming, field 35:
         0a 01 73                                        |   source
         11 88 77 66 55 44 33 22  11                     |   host
        ",
    );
    let incoming = IncomingRecord { source: "s".into(), host: 0x1122_3344_5566_7788 };
    let head = HeadRecord { incoming: Some(incoming), ..HeadRecord::default() };
    assert_eq!(head.encode_to_vec(), expected);
}

#[test]
fn a_head_of_the_source_of_a_migration_is_these_bytes() {
    let expected = bytes(
        "a2 02 1f                                        | migration, field 36:
         08 01                                           |   is_source
         11 88 77 66 55 44 33 22  11                     |   pool_id
         19 02 00 00 00 00 00 00  00                     |   image_id
         22 01 70                                        |   pool_name
         2a 01 6e                                        |   namespace
         32 01 69                                        |   image_name
         38 02                                           |   state: executed
        ",
    );
    let migration = MigrationRecord {
        is_source: true,
        pool_id: 0x1122_3344_5566_7788,
        image_id: 2,
        pool_name: "p".into(),
        namespace: "n".into(),
        image_name: "i".into(),
        state: MigrationState::Executed.into(),
        ..MigrationRecord::default()
    };
    let head = HeadRecord { migration: Some(migration), ..HeadRecord::default() };
    assert_eq!(head.encode_to_vec(), expected);
}

#[test]
fn a_head_of_the_target_of_a_migration_from_outside_is_these_bytes() {
    let expected = bytes(
        "a2 02 0b                                        | migration, field 36:
         38 01                                           |   state: executing
         42 02 7b 7d                                     |   source_spec
         4a 01 73                                        |   source_state
         50 01                                           |   flatten
        ",
    );
    let migration = MigrationRecord {
        state: MigrationState::Executing.into(),
        source_spec: "{}".into(),
        source_state: "s".into(),
        flatten: true,
        ..MigrationRecord::default()
    };
    assert!(migration.is_external() && !MigrationRecord::default().is_external());
    let head = HeadRecord { migration: Some(migration), ..HeadRecord::default() };
    assert_eq!(head.encode_to_vec(), expected);
}

#[test]
fn what_is_zero_or_empty_is_absent() {
    let kinds = [FrameKind::Head, FrameKind::Pool, FrameKind::Attached];
    let empty = [
        encode_message(kinds[0], &HeadRecord::default()),
        encode_message(kinds[1], &PoolRecord::default()),
        encode_message(kinds[2], &AttachedRecord::default()),
    ];
    for (kind, record) in kinds.into_iter().zip(empty) {
        assert_eq!(record, encode(kind, b""));
    }
    let (attached, _) =
        decode_message::<AttachedRecord>(FrameKind::Attached, &encode(FrameKind::Attached, b""))
            .unwrap();
    assert_eq!(attached.owner, None);
}

#[test]
fn unknown_fields_are_skipped_in_every_record() {
    let unknown = bytes(
        "a0 06 ac 02                                     | field 100, a number
         a9 06 01 02 03 04 05 06 07 08                   | field 101, eight bytes
         b2 06 02 68 69                                  | field 102, bytes
         bd 06 01 02 03 04                               | field 103, four bytes",
    );
    for kind in RECORDS.map(|(kind, _)| kind) {
        let record = encode(kind, &unknown);
        assert_eq!(decode_message(kind, &record), Ok((HeadRecord::default(), false)));
        assert_eq!(decode_message(kind, &record), Ok((ChildRecord::default(), false)));
    }
}
