//! What images have written: large files that grow once, and never change after that.

use std::io;
use std::sync::Arc;

use marcot_store::DiskFile;

use crate::{SegmentKey, SegmentSet};

/// The segments of a pool.
///
/// Errors are the operating system's; `NotFound` for a segment or set that is not there.
pub trait Segments: Send + Sync {
    /// Creates a segment that begins with these bytes. Name and bytes are durable when this returns.
    ///
    /// # Errors
    /// `AlreadyExists`; `NotFound` where its set was not created.
    fn create(&self, key: SegmentKey, start: &[u8]) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a segment, for writing too if asked: to give dead blocks back, to restore a header, or to
    /// go on with a copy.
    ///
    /// # Errors
    /// `NotFound`.
    fn open(&self, key: SegmentKey, write: bool) -> io::Result<Arc<dyn DiskFile>>;

    /// Makes durable that the segment is there, or is not.
    ///
    /// # Errors
    /// What the operating system says.
    fn settle(&self, key: SegmentKey) -> io::Result<()>;

    /// Removes a segment; returns the bytes that it took.
    ///
    /// # Errors
    /// `NotFound`.
    fn remove(&self, key: SegmentKey) -> io::Result<u64>;

    /// The segments of a set; none where the set is not there.
    ///
    /// # Errors
    /// What the operating system says.
    fn list(&self, set: SegmentSet) -> io::Result<Vec<SegmentKey>>;

    /// Creates the place of a set, durably. One that is there already is no error.
    ///
    /// # Errors
    /// What the operating system says.
    fn create_set(&self, set: SegmentSet) -> io::Result<()>;

    /// Removes the place of a set that is empty.
    ///
    /// # Errors
    /// `DirectoryNotEmpty`, `NotFound`.
    fn remove_set(&self, set: SegmentSet) -> io::Result<()>;

    /// All sets.
    ///
    /// # Errors
    /// What the operating system says.
    fn sets(&self) -> io::Result<Vec<SegmentSet>>;

    /// Bytes free on the medium for this user.
    ///
    /// # Errors
    /// `Unsupported` where there is no such number.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Keeps up to `bytes` of room on the medium back, for work that makes room; what is kept already
    /// counts. Where there is less room than that, it keeps what it can.
    fn keep_reserve(&self, bytes: u64);

    /// True where something is kept back.
    fn has_reserve(&self) -> bool;

    /// Gives what was kept back to whoever needs it; true where there was something.
    fn give_up_reserve(&self) -> bool;

    /// What people call the segment: a path, or an object's key.
    fn show(&self, key: SegmentKey) -> String;
}
