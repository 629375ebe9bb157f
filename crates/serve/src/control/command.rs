//! What can be asked of an image's owner, in the same words whether the owner is this process or
//! another one behind a control socket.
//!
//! Names and fields are what travels: they stay as they are, so that processes of different versions
//! understand each other. Where the engine has a type of its own for what is told, it is turned into
//! that one at both ends.

use marcot::{DiffExtent, Extent, SnapId};
use serde::{Deserialize, Serialize};

/// A management command on one open image. Snapshots are given by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Make everything acknowledged durable, and the head on disk current.
    Checkpoint,
    /// Take a snapshot of everything acknowledged.
    SnapCreate {
        /// Its name.
        name: String,
    },
    /// As [`Command::SnapCreate`], with a word on what quiets the image's users meanwhile, which a plain
    /// one waits for and needs.
    SnapCreateWith {
        /// Its name.
        name: String,
        /// What is made of it.
        quiesce: QuiesceMode,
    },
    /// Remove a snapshot; with format-2 children it is moved aside instead.
    SnapRemove {
        /// Its name.
        name: String,
        /// Also unprotect it, if it has no children.
        force: bool,
    },
    /// Rename a snapshot.
    SnapRename {
        /// Its name now.
        from: String,
        /// Its name then.
        to: String,
    },
    /// Bring the image back to the content and size of a snapshot.
    SnapRollback {
        /// The snapshot.
        name: String,
    },
    /// Protect a snapshot from removal, so that it can be cloned.
    SnapProtect {
        /// The snapshot.
        name: String,
    },
    /// Take the protection away, unless children exist.
    SnapUnprotect {
        /// The snapshot.
        name: String,
    },
    /// Say that a snapshot is about to be cloned: its segments are shared from now on.
    MarkShared {
        /// The snapshot.
        name: String,
    },
    /// Change the size. Shrinking needs `allow_shrink`.
    Resize {
        /// New size in bytes.
        size_bytes: u64,
        /// Accept the loss of data beyond the new end.
        allow_shrink: bool,
    },
    /// Make the image independent of its parent. All that [`Command::FlattenPart`] has not copied
    /// is copied in one go.
    Flatten,
    /// Copy a few megabytes of what the image has in other pools. Repeated until nothing is left,
    /// it makes `Flatten` short, and the image serves its users between the parts.
    FlattenPart,
    /// Set a metadata key; an empty value removes it.
    MetaSet {
        /// Key.
        key: String,
        /// Value.
        value: String,
    },
    /// Enable or disable features.
    FeaturesChange {
        /// Their names.
        names: Vec<String>,
        /// Enable them; else disable them.
        enable: bool,
    },
    /// Set the most snapshots that there may be.
    SnapLimit {
        /// `None`: as many as the format allows.
        limit: Option<u64>,
    },
    /// Note an advisory lock.
    LockAdd {
        /// The lock.
        lock: Lock,
    },
    /// Remove an advisory lock.
    LockRemove {
        /// Number of the client that took it.
        client: u64,
        /// The name that the client gave it.
        cookie: String,
    },
    /// Finish removals that were waiting for children to go away.
    Tidy,
    /// Tell provisioned and used bytes of the head and of each snapshot.
    Usage,
    /// Where content differs from a snapshot, or from nothing.
    Diff {
        /// Compare with this snapshot; `None`: with an image that has no data.
        from_snap: Option<String>,
        /// The later side: a snapshot; `None`: the head.
        to_snap: Option<String>,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Read bytes of the head; answered in [`Reply::Data`].
    Read {
        /// First byte.
        offset: u64,
        /// Bytes, at most [`READ_BYTES_MAX`].
        length: u64,
    },
    /// Write the bytes that accompany the command.
    Write {
        /// First byte.
        offset: u64,
        /// The data.
        #[serde(skip)]
        data: Vec<u8>,
    },
    /// Make a range read as zeros.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Make everything acknowledged durable.
    Flush,
    /// Runs of data and holes of the head.
    Extents {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Make holes of data that consists of zeros; answered in [`Reply::Reclaimed`].
    Sparsify {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Length of the pieces that become holes, if all of a piece is zeros.
        piece_bytes: u64,
    },
    /// Reclaim space now.
    Reclaim,
    /// Who has the image open, for `status`.
    Status,
    /// A step of the migration of which the image is the target.
    Migration {
        /// The step.
        step: MigrationStep,
    },
    /// A step of a snapshot of a group, of which the image has a part.
    ForGroup {
        /// The step.
        step: GroupStep,
    },
    /// Close the image if it is only kept open in case somebody comes back. Where somebody uses it that
    /// is refused as `Busy`, and the message says who: `process 12: nbd, 1 connection`.
    GiveWay,
}

/// The steps that the owner of the target of a migration takes, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MigrationStep {
    /// Copy a few megabytes of what lies in the source's pool; answered in [`Reply::Copied`]. The image serves its users
    /// between the parts.
    CopyPart,
    /// Copy what is left.
    Finish,
    /// Fail where the image still needs its source.
    Verify,
    /// Forget the migration: the source is gone.
    End,
}

/// The steps by which all members of a group come to a snapshot of the same moment. A client takes each step
/// with all images before it takes the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupStep {
    /// Quiet the image's users, who are served meanwhile. This lasts until [`Self::Release`], or until the
    /// client has gone.
    Quiesce {
        /// Go on though that fails.
        ignore_errors: bool,
    },
    /// Serve nobody else from now on. This lasts until [`Self::Release`], until the client has gone, or for half a
    /// minute.
    Hold,
    /// Take the image's part of the snapshot. An owner does that only while it serves nobody else.
    Create(GroupSnapshot),
    /// Bring the image back to its part of the snapshot. An owner does that only while it serves nobody else.
    RollBack(GroupSnapshot),
    /// Serve everybody again.
    Release,
    /// Remove the image's part of the snapshot, if it has one. This needs no other step.
    Remove(GroupSnapshot),
}

/// A [`marcot::GroupSnapshotId`] on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSnapshot {
    /// Number of the group's pool.
    pub pool: u64,
    /// The group's number.
    pub group: u64,
    /// The snapshot's number.
    pub snapshot: u64,
}

impl From<marcot::GroupSnapshotId> for GroupSnapshot {
    fn from(id: marcot::GroupSnapshotId) -> Self {
        Self { pool: id.pool.0, group: id.group, snapshot: id.snapshot }
    }
}

impl From<GroupSnapshot> for marcot::GroupSnapshotId {
    fn from(id: GroupSnapshot) -> Self {
        Self { pool: marcot::PoolId(id.pool), group: id.group, snapshot: id.snapshot }
    }
}

/// What a snapshot makes of that which quiets the image's users while it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuiesceMode {
    /// Does without.
    Skip,
    /// Is taken though it fails.
    IgnoreErrors,
}

/// A [`marcot::LockInfo`] on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Number of the client that took it.
    pub client: u64,
    /// The name that the client gave it.
    pub cookie: String,
    /// Where the client is, for people.
    pub address: String,
    /// The tag of a shared lock; `None`: an exclusive one.
    pub tag: Option<String>,
}

impl From<Lock> for marcot::LockInfo {
    fn from(lock: Lock) -> Self {
        let Lock { client, cookie, address, tag } = lock;
        Self { client, cookie, address, shared: tag.is_some(), tag: tag.unwrap_or_default() }
    }
}

impl From<marcot::LockInfo> for Lock {
    fn from(lock: marcot::LockInfo) -> Self {
        let marcot::LockInfo { client, cookie, address, shared, tag } = lock;
        Self { client, cookie, address, tag: shared.then_some(tag) }
    }
}

/// Longest [`Command::Read`] in bytes.
pub const READ_BYTES_MAX: u64 = 32 << 20;

/// A [`marcot::UsageRow`] on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// Snapshot, or `None` for the head.
    pub snapshot: Option<String>,
    /// Snapshot number, 0 for the head.
    pub snapshot_id: u64,
    /// Size in bytes.
    pub provisioned_bytes: u64,
    /// Bytes of data that this state holds and the state before it (or the parent) does not.
    pub used_bytes: u64,
}

/// Requests of one kind that were carried out without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IoCount {
    /// How many.
    pub requests: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The time that they took together, each from when it was taken until it was answered.
    pub nanoseconds: u64,
}

/// What clients have asked for since an image was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IoCounts {
    /// Reads.
    pub reads: IoCount,
    /// Writes, and trims, which carry no bytes.
    pub writes: IoCount,
}

/// Who has an image open.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Watcher {
    /// Process id of the owner.
    pub pid: u32,
    /// How it is used, for people: `device /dev/loop0`, `nbd, 2 connections`.
    pub usage: String,
    /// What was asked for so far. Zero from a process of a version that does not count.
    #[serde(default)]
    pub io: IoCounts,
}

/// The answer to a [`Command`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Done,
    /// To [`Command::SnapCreate`].
    Snapshot {
        /// Number of the new snapshot.
        id: u64,
    },
    /// To [`Command::Usage`].
    Usage {
        /// Oldest snapshot first, head last.
        rows: Vec<UsageRow>,
    },
    /// To [`Command::Diff`].
    Diff {
        /// In order of offset.
        extents: Vec<ExtentRow>,
    },
    /// To [`Command::Read`]; the bytes travel beside the reply.
    Data {
        /// What was read.
        #[serde(skip)]
        data: Vec<u8>,
    },
    /// To [`Command::Extents`].
    Extents {
        /// In order of offset, without gaps.
        extents: Vec<ExtentRow>,
    },
    /// To [`Command::FlattenPart`].
    Copied {
        /// Blocks that are still to be copied.
        left_blocks: u64,
        /// False where `Flatten` will find nothing to copy.
        more: bool,
        /// Nothing was copied, because the source is still being read: ask again a little later.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        waits: bool,
    },
    /// To [`Command::Reclaim`].
    Reclaimed {
        /// Bytes given back to the file system.
        bytes: u64,
    },
    /// To [`Command::Status`].
    Status {
        /// The owner and how it uses the image.
        watchers: Vec<Watcher>,
    },
}

/// A [`marcot::Extent`] or [`marcot::DiffExtent`] on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtentRow {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// False for a hole, and where the later side of a comparison reads as zeros.
    pub data: bool,
}

impl From<marcot::UsageRow> for UsageRow {
    fn from(row: marcot::UsageRow) -> Self {
        let marcot::UsageRow { snapshot, snapshot_id, provisioned_bytes, used_bytes, .. } = row;
        Self { snapshot, snapshot_id: snapshot_id.0, provisioned_bytes, used_bytes }
    }
}

impl From<UsageRow> for marcot::UsageRow {
    fn from(row: UsageRow) -> Self {
        let UsageRow { snapshot, snapshot_id, provisioned_bytes, used_bytes } = row;
        Self { snapshot, snapshot_id: SnapId(snapshot_id), provisioned_bytes, used_bytes }
    }
}

impl From<Extent> for ExtentRow {
    fn from(extent: Extent) -> Self {
        Self { offset: extent.offset, length: extent.length, data: extent.data }
    }
}

impl From<ExtentRow> for Extent {
    fn from(row: ExtentRow) -> Self {
        Self { offset: row.offset, length: row.length, data: row.data }
    }
}

impl From<DiffExtent> for ExtentRow {
    fn from(extent: DiffExtent) -> Self {
        Self { offset: extent.offset, length: extent.length, data: extent.data }
    }
}

impl From<ExtentRow> for DiffExtent {
    fn from(row: ExtentRow) -> Self {
        Self { offset: row.offset, length: row.length, data: row.data }
    }
}
