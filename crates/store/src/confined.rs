//! Access to a directory that may belong to another user.

use std::sync::Arc;

use crate::Disk;

/// How far a directory is trusted when a disk is confined to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The directory counts as this user's own if the user of this process owns it.
    ByOwner,
    /// The directory counts as this user's own, whoever owns it.
    Own,
    /// The directory counts as another user's, whoever owns it.
    Foreign,
}

/// A disk that reaches one directory only; see [`Disk::confine`].
#[derive(Clone)]
pub struct Confined {
    /// Reaches everything in the directory, and nothing else.
    pub disk: Arc<dyn Disk>,
    /// The user who owns the directory.
    pub owner_id: u32,
    /// False for another user's directory: nothing in it can be changed, created or locked. The only
    /// exception is the directory [`SHARED_DIRECTORY`], where this user may create files and remove its own.
    pub own: bool,
    /// Device and inode of the directory. While it is held open, no other directory has the same.
    pub identity: (u64, u64),
}

/// Name of the directory, within the one that a disk is confined to, in which every user may create files.
/// Files of other users there can be read, if they are plain files.
pub const SHARED_DIRECTORY: &str = "children";
