//! What a process may do in a directory that another user may have made.

use std::sync::Arc;

use crate::Disk;

/// How far a directory is trusted when a disk is confined to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// It is one's own where the user of this process owns it, else another user's.
    ByOwner,
    /// It is one's own, whoever owns the directory itself.
    Own,
    /// It is another user's, whoever owns it.
    Foreign,
}

/// A disk that reaches one directory only; see [`Disk::confine`].
#[derive(Clone)]
pub struct Confined {
    /// Reaches what lies in the directory.
    pub disk: Arc<dyn Disk>,
    /// The user who owns the directory.
    pub owner_id: u32,
    /// False for another user's: it can be read, and nothing in it can be changed, created or locked.
    /// Only in the directory [`SHARED_DIRECTORY`] may files be left, and one's own be removed again.
    pub own: bool,
    /// Device and number of the directory. As long as it is held open, no other directory has them.
    pub identity: (u64, u64),
}

/// The directory, in one that a disk is confined to, in which every user may leave files. Those of
/// others can be read there, if they are plain files.
pub const SHARED_DIRECTORY: &str = "children";
