//! The messages in record files (protocol buffers; field numbers never change).

use prost::Message;

use crate::segment::SegmentKind;

/// Limit on the snapshots of a head, removed ones included. A decoded snapshot takes hundreds of bytes,
/// however short it is encoded. Without a limit a small file could take up all memory.
pub const HEAD_SNAPSHOTS_MAX: usize = 10_000;
/// Limit on the pieces of metadata of a head, for the same reason.
pub const HEAD_METADATA_MAX: usize = 1 << 20;
/// Limit on the advisory locks of a head, for the same reason.
pub const HEAD_LOCKS_MAX: usize = 10_000;

/// Limit on the names in one directory of a pool in a bucket, and on the moves that were called off there,
/// for the same reason.
pub const NAMES_MAX: usize = 1 << 18;
/// Limit on the namespaces of a pool in a bucket, for the same reason.
pub const NAMESPACES_MAX: usize = 1 << 18;
/// Limit on the earlier stamps of an object, for the same reason. Writers keep fewer.
pub const EARLIER_MAX: usize = 1 << 10;

/// A store: the registry of pools.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StoreRecord {
    /// Random number of the store.
    #[prost(fixed64, tag = "1")]
    pub store_id: u64,
    /// Configuration of all pools.
    #[prost(message, repeated, tag = "30")]
    pub config: Vec<ConfigRecord>,
}

/// A configuration key that a user has set for all pools.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ConfigRecord {
    /// For whom: `global`, `client`, or `client.` and an id.
    #[prost(string, tag = "1")]
    pub entity: String,
    /// Key.
    #[prost(string, tag = "2")]
    pub key: String,
    /// Value.
    #[prost(string, tag = "3")]
    pub value: String,
}

/// A pool.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PoolRecord {
    /// Random number of the pool.
    #[prost(fixed64, tag = "1")]
    pub pool_id: u64,
    /// The store that owns it.
    #[prost(fixed64, tag = "2")]
    pub store_id: u64,
    /// Seconds since 1970.
    #[prost(int64, tag = "3")]
    pub created_s: i64,
    /// Application name, as `pool init` sets it.
    #[prost(string, tag = "4")]
    pub application: String,
    /// The level of the format that a program must know to read the pool; 0 counts as 1.
    #[prost(uint32, tag = "5")]
    pub read_level: u32,
    /// The level that it must know to write the pool; at least `read_level`.
    #[prost(uint32, tag = "6")]
    pub write_level: u32,
    /// Configuration of the images of this pool.
    #[prost(message, repeated, tag = "30")]
    pub config: Vec<MetaRecord>,
}

/// A pool that another store owns, or one in a bucket.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct AttachedRecord {
    /// Its directory; empty for a pool in a bucket.
    #[prost(string, tag = "1")]
    pub directory: String,
    /// Its number when attached.
    #[prost(fixed64, tag = "2")]
    pub pool_id: u64,
    /// The user who owned its directory when it was attached; absent in records of earlier versions.
    #[prost(uint32, optional, tag = "3")]
    pub owner: Option<u32>,
    /// For a pool in a bucket, all that follows. Where it is: `s3://bucket/prefix`. The record has
    /// [`crate::frame::INCOMPAT_BUCKET`] then.
    #[prost(string, tag = "4")]
    pub url: String,
    /// The URL of the service; empty for the service's own.
    #[prost(string, tag = "5")]
    pub endpoint: String,
    /// The region; empty where the service has none.
    #[prost(string, tag = "6")]
    pub region: String,
    /// The file that holds the credentials; empty: where users of the service have them.
    #[prost(string, tag = "7")]
    pub credentials: String,
    /// A flush is done when the host's disk has it, not the bucket.
    #[prost(bool, tag = "8")]
    pub flush_local: bool,
    /// The directory of the cache; empty: below the store.
    #[prost(string, tag = "9")]
    pub cache_directory: String,
    /// The size of the cache in bytes; 0: the usual one.
    #[prost(uint64, tag = "10")]
    pub cache_bytes: u64,
    /// Conditions name an ETag without its quotes.
    #[prost(bool, tag = "11")]
    pub bare_etags: bool,
}

/// The image that a name leads to. Beside a head: the name that the image was given later.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NameRecord {
    /// The image.
    #[prost(fixed64, tag = "1")]
    pub image_id: u64,
    /// Beside a head: the namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Beside a head: the name.
    #[prost(string, tag = "3")]
    pub name: String,
}

/// What is noted beside the head of an image in the trash. It counts only while the image has the name that
/// images in the trash have.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TrashRecord {
    /// The image.
    #[prost(fixed64, tag = "1")]
    pub image_id: u64,
    /// Its name before.
    #[prost(string, tag = "2")]
    pub name: String,
    /// When it was moved to the trash, in seconds since 1970.
    #[prost(int64, tag = "3")]
    pub deleted_s: i64,
    /// Until when it is protected from removal, in seconds since 1970.
    #[prost(int64, tag = "4")]
    pub protected_until_s: i64,
    /// It is the source of a migration, which alone takes it out of the trash.
    #[prost(bool, tag = "5")]
    pub migrating: bool,
}

/// A child of a snapshot: in the child's pool or, as a marker, in the parent's pool.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ChildRecord {
    /// The parent's pool.
    #[prost(fixed64, tag = "1")]
    pub parent_pool_id: u64,
    /// The parent.
    #[prost(fixed64, tag = "2")]
    pub parent_image_id: u64,
    /// Its snapshot.
    #[prost(uint64, tag = "3")]
    pub parent_snap_id: u64,
    /// The child's pool.
    #[prost(fixed64, tag = "4")]
    pub child_pool_id: u64,
    /// The child.
    #[prost(fixed64, tag = "5")]
    pub child_image_id: u64,
    /// In a marker: the child's pool by name, for people.
    #[prost(string, tag = "6")]
    pub child_pool_name: String,
    /// In a marker: the child's name when it was made, for people.
    #[prost(string, tag = "7")]
    pub child_name: String,
    /// In a marker: the directory of the child's pool, where the owner can see whether the child still exists.
    #[prost(string, tag = "8")]
    pub child_pool_directory: String,
    /// Seconds since 1970.
    #[prost(int64, tag = "9")]
    pub created_s: i64,
    /// Clone format 1 or 2.
    #[prost(uint32, tag = "10")]
    pub clone_format: u32,
    /// In a marker: the child's namespace when it was made, for people.
    #[prost(string, tag = "11")]
    pub child_namespace: String,
    /// In a pool of which several hosts may be owners: the host that has stored this, see [`OwnerRecord`]. Only
    /// that host can tell whether the clone is still being made.
    #[prost(fixed64, tag = "12")]
    pub host: u64,
    /// That host's name, for people.
    #[prost(string, tag = "13")]
    pub host_name: String,
}

/// The next number in each of an author's three series of segments.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct SegmentMarks {
    /// Data segments.
    #[prost(uint32, tag = "1")]
    pub data: u32,
    /// Map segments.
    #[prost(uint32, tag = "2")]
    pub map: u32,
    /// Table segments.
    #[prost(uint32, tag = "3")]
    pub table: u32,
}

impl SegmentMarks {
    /// The next number of a series.
    #[must_use]
    pub fn of(&self, kind: SegmentKind) -> u32 {
        match kind {
            SegmentKind::Data => self.data,
            SegmentKind::Map => self.map,
            SegmentKind::Table => self.table,
        }
    }
}

/// All that names an image's content at one moment.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RootRecord {
    /// Size in bytes.
    #[prost(uint64, tag = "1")]
    pub size_bytes: u64,
    /// Packed address of the top map node (0: empty map).
    #[prost(fixed64, tag = "2")]
    pub map_address: u64,
    /// Its CRC-32C.
    #[prost(fixed32, tag = "3")]
    pub map_crc: u32,
    /// Top of the segment table; absent: no segments.
    #[prost(message, optional, tag = "4")]
    pub table: Option<TablePointer>,
    /// Levels of the segment table; 0: no segments.
    #[prost(uint32, tag = "5")]
    pub table_levels: u32,
    /// Next free index of the segment table; indices start at 1.
    #[prost(uint32, tag = "6")]
    pub segment_next: u32,
    /// Pools that the segment table refers to by position.
    #[prost(fixed64, repeated, tag = "7")]
    pub pools: Vec<u64>,
    /// Blocks mapped.
    #[prost(uint64, tag = "8")]
    pub mapped_blocks: u64,
    /// By position in [`Self::pools`]: the number of the set of copies in that pool; 0 or absent for the
    /// segments that the pool's images wrote themselves.
    #[prost(fixed64, repeated, tag = "9")]
    pub copies: Vec<u64>,
}

/// Where a page of the segment table lies. It does not need the table itself.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct TablePointer {
    /// Image that wrote it.
    #[prost(fixed64, tag = "1")]
    pub author: u64,
    /// Number of its table segment.
    #[prost(uint32, tag = "2")]
    pub sequence: u32,
    /// Position among [`RootRecord::pools`].
    #[prost(uint32, tag = "3")]
    pub pool: u32,
    /// Page number within the segment.
    #[prost(uint32, tag = "4")]
    pub page: u32,
    /// CRC-32C of the page.
    #[prost(fixed32, tag = "5")]
    pub crc: u32,
}

/// Where replay starts.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LogPosition {
    /// Number of the data segment.
    #[prost(uint32, tag = "1")]
    pub sequence: u32,
    /// Block within it where the next group starts.
    #[prost(uint32, tag = "2")]
    pub slot: u32,
    /// Number of the next group.
    #[prost(uint64, tag = "3")]
    pub group: u64,
}

/// Protection of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Protection {
    /// May be removed.
    Unprotected = 0,
    /// May be cloned with format 1, may not be removed.
    Protected = 1,
    /// It is being unprotected; no new clones.
    Unprotecting = 2,
}

/// A snapshot.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SnapshotRecord {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Seconds since 1970.
    #[prost(int64, tag = "3")]
    pub created_s: i64,
    /// Protection.
    #[prost(enumeration = "Protection", tag = "4")]
    pub protection: i32,
    /// Its content.
    #[prost(message, optional, tag = "5")]
    pub root: Option<RootRecord>,
    /// The author's next segments when it was taken. It names none of these or later ones.
    #[prost(message, optional, tag = "6")]
    pub marks: Option<SegmentMarks>,
    /// Removed by its user, kept for its format-2 children.
    #[prost(bool, tag = "7")]
    pub trashed: bool,
    /// The parent and overlap of the image when it was taken.
    #[prost(message, optional, tag = "8")]
    pub parent: Option<ParentRecord>,
    /// Being removed: no new clones.
    #[prost(bool, tag = "9")]
    pub removing: bool,
    /// Its name before it was removed by its user.
    #[prost(string, tag = "10")]
    pub original_name: String,
    /// The snapshot of a group that this is a part of.
    #[prost(message, optional, tag = "50")]
    pub group: Option<PartOfRecord>,
}

impl SnapshotRecord {
    /// True for a snapshot that users know by its name: neither removed nor part of a group's.
    #[must_use]
    pub fn is_of_users(&self) -> bool {
        !self.trashed && self.group.is_none()
    }
}

/// Identifies a snapshot of a group.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PartOfRecord {
    /// The group's pool.
    #[prost(fixed64, tag = "1")]
    pub pool_id: u64,
    /// The group.
    #[prost(fixed64, tag = "2")]
    pub group_id: u64,
    /// The group's snapshot.
    #[prost(fixed64, tag = "3")]
    pub snapshot_id: u64,
}

/// A group of images.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct GroupRecord {
    /// Random number of the group.
    #[prost(fixed64, tag = "1")]
    pub group_id: u64,
    /// Its members, in the order in which they were added.
    #[prost(message, repeated, tag = "2")]
    pub members: Vec<GroupMemberRecord>,
    /// Its snapshots, oldest first.
    #[prost(message, repeated, tag = "3")]
    pub snapshots: Vec<GroupSnapshotRecord>,
    /// Its namespace; empty for the default one.
    #[prost(string, tag = "4")]
    pub namespace: String,
    /// Its name.
    #[prost(string, tag = "5")]
    pub name: String,
    /// How often the record was replaced. So no two versions of it are equal.
    #[prost(uint64, tag = "6")]
    pub changes: u64,
}

/// A member of a group.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct GroupMemberRecord {
    /// The image's pool.
    #[prost(fixed64, tag = "1")]
    pub pool_id: u64,
    /// The image.
    #[prost(fixed64, tag = "2")]
    pub image_id: u64,
}

/// A snapshot of a group.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct GroupSnapshotRecord {
    /// Random number of the snapshot.
    #[prost(fixed64, tag = "1")]
    pub id: u64,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Seconds since 1970.
    #[prost(int64, tag = "3")]
    pub created_s: i64,
    /// False while it is being made or removed, and where that was interrupted.
    #[prost(bool, tag = "4")]
    pub complete: bool,
    /// The images that it is of.
    #[prost(message, repeated, tag = "5")]
    pub parts: Vec<GroupPartRecord>,
    /// Its removal has begun.
    #[prost(bool, tag = "6")]
    pub removing: bool,
}

/// One image's part of a group's snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct GroupPartRecord {
    /// The image's pool.
    #[prost(fixed64, tag = "1")]
    pub pool_id: u64,
    /// The image.
    #[prost(fixed64, tag = "2")]
    pub image_id: u64,
    /// Its snapshot; 0 where that is not known.
    #[prost(uint64, tag = "3")]
    pub snap_id: u64,
}

/// What is noted beside the head of an image that is in a group. Only the group's record counts.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MembershipRecord {
    /// The image.
    #[prost(fixed64, tag = "1")]
    pub image_id: u64,
    /// The group's pool.
    #[prost(fixed64, tag = "2")]
    pub pool_id: u64,
    /// The group.
    #[prost(fixed64, tag = "3")]
    pub group_id: u64,
    /// Random number of the attempt to add the image, in a pool that several hosts use; else 0. So no two notes are equal.
    #[prost(fixed64, tag = "4")]
    pub claim: u64,
}

/// The parent of a clone.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ParentRecord {
    /// Its pool.
    #[prost(fixed64, tag = "1")]
    pub pool_id: u64,
    /// The image.
    #[prost(fixed64, tag = "2")]
    pub image_id: u64,
    /// The snapshot.
    #[prost(uint64, tag = "3")]
    pub snap_id: u64,
    /// Bytes from the start that the clone took from its parent and that no resize has cut off.
    #[prost(uint64, tag = "4")]
    pub overlap_bytes: u64,
    /// Pool by name, when cloned, for messages when the parent is out of reach.
    #[prost(string, tag = "5")]
    pub pool_name: String,
    /// Namespace, when cloned.
    #[prost(string, tag = "6")]
    pub namespace: String,
    /// Name, when cloned.
    #[prost(string, tag = "7")]
    pub image_name: String,
    /// Snapshot, when cloned.
    #[prost(string, tag = "8")]
    pub snap_name: String,
    /// Clone format 1 or 2.
    #[prost(uint32, tag = "9")]
    pub clone_format: u32,
    /// True where no marker guards the parent.
    #[prost(bool, tag = "10")]
    pub untracked: bool,
}

/// A metadata key and value.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MetaRecord {
    /// Key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// An advisory lock on an image.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LockRecord {
    /// Number of the client that took it.
    #[prost(uint64, tag = "1")]
    pub client: u64,
    /// The name that the client gave it.
    #[prost(string, tag = "2")]
    pub cookie: String,
    /// Where the client is, for people.
    #[prost(string, tag = "3")]
    pub address: String,
    /// Others may take a lock with the same tag.
    #[prost(bool, tag = "4")]
    pub shared: bool,
    /// What shared locks have in common.
    #[prost(string, tag = "5")]
    pub tag: String,
}

/// An image's head: its one mutable record.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct HeadRecord {
    /// The image.
    #[prost(fixed64, tag = "1")]
    pub image_id: u64,
    /// Its name when the head was made; only the name record counts.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its namespace; empty for the default one.
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// Raised by every writer that opens the image.
    #[prost(uint64, tag = "4")]
    pub epoch: u64,
    /// Raised with every change of the head.
    #[prost(uint64, tag = "5")]
    pub version: u64,
    /// Seconds since 1970.
    #[prost(int64, tag = "6")]
    pub created_s: i64,
    /// Seconds since 1970.
    #[prost(int64, tag = "7")]
    pub modified_s: i64,
    /// Durable content.
    #[prost(message, optional, tag = "8")]
    pub root: Option<RootRecord>,
    /// Where replay starts.
    #[prost(message, optional, tag = "9")]
    pub log: Option<LogPosition>,
    /// The author's next segments.
    #[prost(message, optional, tag = "10")]
    pub marks: Option<SegmentMarks>,
    /// Segments below these may be named by clones, because they were named by snapshots that may have
    /// been cloned. Only pool GC frees them.
    #[prost(message, optional, tag = "11")]
    pub shared_below: Option<SegmentMarks>,
    /// Parent of a clone.
    #[prost(message, optional, tag = "12")]
    pub parent: Option<ParentRecord>,
    /// Snapshots, oldest first.
    #[prost(message, repeated, tag = "13")]
    pub snapshots: Vec<SnapshotRecord>,
    /// Next snapshot number.
    #[prost(uint64, tag = "14")]
    pub snap_next: u64,
    /// Metadata of the user.
    #[prost(message, repeated, tag = "15")]
    pub metadata: Vec<MetaRecord>,
    /// log2 of the object size that RBD would show. It does not change marcot's layout.
    #[prost(uint32, tag = "16")]
    pub order: u32,
    /// It is being removed; GC removes what is left.
    #[prost(bool, tag = "17")]
    pub removing: bool,
    /// Feature names as shown by `info`, comma separated.
    #[prost(string, tag = "18")]
    pub features: String,
    /// The first segment of each series that the owner may still append to. From these on nobody else
    /// removes segments, even if no root names them.
    #[prost(message, optional, tag = "19")]
    pub open_from: Option<SegmentMarks>,
    /// The number of the set of copies that a flatten is making; 0: none.
    #[prost(fixed64, tag = "20")]
    pub copying: u64,
    /// The image was made by a version that knows marks of heirs. So images that were cloned from it and
    /// flattened in its pool have left marks (`heirs`).
    #[prost(bool, tag = "21")]
    pub leaves_marks: bool,
    /// Who has the image open for writing, or had it last. Only in pools of which several hosts may be owners.
    #[prost(message, optional, tag = "22")]
    pub owner: Option<OwnerRecord>,
    /// The first shipped part of the log that is not covered by the root: see [`ShippedLog`].
    #[prost(uint64, tag = "23")]
    pub log_first: u64,
    /// No owner up to the present one gives segments numbers from these on.
    #[prost(message, optional, tag = "24")]
    pub reserved: Option<SegmentMarks>,
    /// Most snapshots that the user allows; absent: as many as fit into the head.
    #[prost(uint64, optional, tag = "30")]
    pub snapshot_limit: Option<u64>,
    /// Advisory locks: one that is exclusive, or several with one tag.
    #[prost(message, repeated, tag = "31")]
    pub locks: Vec<LockRecord>,
    /// Bytes of a stripe as shown by `info`; 0: the object size. It does not change marcot's layout.
    #[prost(uint64, tag = "32")]
    pub stripe_unit_bytes: u64,
    /// Objects of a stripe as shown by `info`; 0: one.
    #[prost(uint64, tag = "33")]
    pub stripe_count: u64,
    /// The data pool that `info` shows, by name. It does not change where the data lies.
    #[prost(string, tag = "34")]
    pub data_pool: String,
    /// Of a partial image: what it is being made from.
    #[prost(message, optional, tag = "35")]
    pub incoming: Option<IncomingRecord>,
    /// The migration that the image is the source or the target of.
    #[prost(message, optional, tag = "36")]
    pub migration: Option<MigrationRecord>,
}

/// A migration, as the heads of its source and of its target know it. Each names the other image.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MigrationRecord {
    /// This image is the source: nobody opens it for writing or removes it until the migration ends.
    #[prost(bool, tag = "1")]
    pub is_source: bool,
    /// Pool of the other image.
    #[prost(fixed64, tag = "2")]
    pub pool_id: u64,
    /// The other image.
    #[prost(fixed64, tag = "3")]
    pub image_id: u64,
    /// Names of the other image when the migration began, for people.
    #[prost(string, tag = "4")]
    pub pool_name: String,
    /// Its namespace.
    #[prost(string, tag = "5")]
    pub namespace: String,
    /// Its name.
    #[prost(string, tag = "6")]
    pub image_name: String,
    /// How far the migration has come; only the target's counts.
    #[prost(enumeration = "MigrationState", tag = "7")]
    pub state: i32,
    /// In a target whose source lies outside the store: how the source is opened, as a JSON object. Then there is no
    /// other image.
    #[prost(string, tag = "8")]
    pub source_spec: String,
    /// The state of that source when the migration began. Only its equality means something.
    #[prost(string, tag = "9")]
    pub source_state: String,
    /// In a target: it becomes independent of its parent when it is copied.
    #[prost(bool, tag = "10")]
    pub flatten: bool,
}

impl MigrationRecord {
    /// True in a target whose source lies outside the store.
    #[must_use]
    pub fn is_external(&self) -> bool {
        !self.source_spec.is_empty()
    }
}

/// How far a migration has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum MigrationState {
    /// The target reads what it has not written from the source.
    Prepared = 0,
    /// Copying has begun.
    Executing = 1,
    /// The target names nothing of the source's pool that only the source keeps.
    Executed = 2,
    /// The target's data is brought back to the source. Nobody else opens the target for writing.
    Aborting = 3,
}

/// What a partial image is made from, so that a later run of the same command goes on with it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct IncomingRecord {
    /// The source in the state in which it is read. Only its equality means something.
    #[prost(string, tag = "1")]
    pub source: String,
    /// Random number of the host's directory for the pool; 0 in a pool in a directory.
    #[prost(fixed64, tag = "2")]
    pub host: u64,
}

/// The owner of an image, in a pool of which several hosts may be owners.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OwnerRecord {
    /// Raised by every owner, when it opens the image.
    #[prost(uint64, tag = "1")]
    pub term: u64,
    /// Random number of the host's directory for the pool.
    #[prost(fixed64, tag = "2")]
    pub host: u64,
    /// The host's name, for people.
    #[prost(string, tag = "3")]
    pub host_name: String,
    /// The process, for people.
    #[prost(uint32, tag = "4")]
    pub process_id: u32,
    /// Seconds since 1970.
    #[prost(int64, tag = "5")]
    pub since_s: i64,
    /// It has closed the image: all is in the root.
    #[prost(bool, tag = "6")]
    pub closed: bool,
}

/// A part of an image's log, as it is kept outside the owner's host until a root covers it. Parts are numbered
/// without a gap.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ShippedLog {
    /// The image.
    #[prost(fixed64, tag = "1")]
    pub image_id: u64,
    /// Its number.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// The term of the owner that has stored it.
    #[prost(uint64, tag = "3")]
    pub term: u64,
    /// It holds nothing: no owner of an earlier term can store this part or a later one.
    #[prost(bool, tag = "4")]
    pub fence: bool,
    /// What was appended, in this order.
    #[prost(message, repeated, tag = "5")]
    pub pieces: Vec<LogPiece>,
}

/// Bytes of a data segment.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LogPiece {
    /// Number of the data segment.
    #[prost(uint32, tag = "1")]
    pub sequence: u32,
    /// Where the bytes begin in it.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// The bytes; none where the whole segment was uploaded before.
    #[prost(bytes = "vec", tag = "3")]
    pub bytes: Vec<u8>,
}

/// Tells one version of an object from all others.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct StampRecord {
    /// Random number of the writer, which is a process that has the pool open.
    #[prost(fixed64, tag = "1")]
    pub writer: u64,
    /// How many objects the writer has written, this one included.
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
}

/// A record of a pool in a bucket. An object with an empty message is a tombstone: the record is gone for good.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ObjectRecord {
    /// Tells this version of the object from all others.
    #[prost(message, optional, tag = "1")]
    pub stamp: Option<StampRecord>,
    /// Stamps of the versions before, the youngest first. Very old ones are left out.
    #[prost(message, repeated, tag = "2")]
    pub earlier: Vec<StampRecord>,
    /// The record.
    #[prost(bytes = "vec", tag = "3")]
    pub body: Vec<u8>,
}

/// A part of the names of a namespace: those whose hash has one value.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NamesRecord {
    /// The names, in no order.
    #[prost(message, repeated, tag = "1")]
    pub names: Vec<NameEntry>,
    /// Numbers of moves to here that were called off, and must not be completed.
    #[prost(fixed64, repeated, tag = "2")]
    pub called_off: Vec<u64>,
    /// Takes no names, because the namespace or the pool is being removed: number of the removal; 0: it
    /// takes names.
    #[prost(fixed64, tag = "3")]
    pub closed: u64,
}

/// A name.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NameEntry {
    /// The name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The record that the name has.
    #[prost(bytes = "vec", tag = "2")]
    pub record: Vec<u8>,
    /// The name is moving to another directory. Once it is there, this entry does not count any more.
    #[prost(message, optional, tag = "3")]
    pub moving: Option<MoveRecord>,
    /// The name came from another directory, where its old entry may still be.
    #[prost(message, optional, tag = "4")]
    pub moved: Option<MoveRecord>,
}

/// A move of a name between two directories.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MoveRecord {
    /// Random number of the move.
    #[prost(fixed64, tag = "1")]
    pub number: u64,
    /// The name at the other end.
    #[prost(string, tag = "2")]
    pub name: String,
}

/// The namespaces of a pool in a bucket.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NamespacesRecord {
    /// All but the default one, in no order.
    #[prost(message, repeated, tag = "1")]
    pub namespaces: Vec<NamespaceEntry>,
    /// The pool is being removed: number of the removal; 0: it is not.
    #[prost(fixed64, tag = "2")]
    pub removing: u64,
}

/// A namespace.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NamespaceEntry {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Random number, under which its names are stored. A namespace that is made again gets another one.
    #[prost(fixed64, tag = "2")]
    pub number: u64,
    /// It is being removed: number of the removal; 0: it is not.
    #[prost(fixed64, tag = "3")]
    pub removing: u64,
}
