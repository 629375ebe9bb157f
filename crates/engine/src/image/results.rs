//! What management calls on an open image give.

use marcot_format::SnapId;

/// A range that differs between two states of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiffExtent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// False where the later side reads as zeros.
    pub data: bool,
}

/// Space of one state of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRow {
    /// Name of the snapshot, or `None` for the head.
    pub snapshot: Option<String>,
    /// Number of the snapshot, 0 for the head.
    pub snapshot_id: SnapId,
    /// Size in bytes.
    pub provisioned_bytes: u64,
    /// Bytes of data that this state holds and the state before it (or the parent) does not.
    pub used_bytes: u64,
}

/// What one part of a flatten has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlattenPart {
    /// Blocks of 4 KiB that are still to be copied, about.
    pub left_blocks: u64,
    /// False where [`crate::Image::flatten`] will find nothing to copy.
    pub more: bool,
    /// Nothing was copied, because a worker is still reading what is copied next: it is to be asked again a little
    /// later. Only the target of a migration from outside the store has this.
    pub waits: bool,
}
