//! Segments: large files that images write. A segment grows once, and never changes after that.

use std::io;
use std::sync::Arc;

use marcot_store::DiskFile;

use crate::{SegmentKey, SegmentSet, Shipping};

/// The segments of a pool.
///
/// Errors are those of the operating system; `NotFound` for a segment or set that does not exist.
pub trait Segments: Send + Sync {
    /// Creates a segment that begins with these bytes. Name and bytes are durable when this returns.
    ///
    /// # Errors
    /// `AlreadyExists`; `NotFound` where its set was not created.
    fn create(&self, key: SegmentKey, start: &[u8]) -> io::Result<Arc<dyn DiskFile>>;

    /// Makes the segment `new` out of `old`, which keeps its room on the medium: writes these bytes at its
    /// start, and gives it the name `new`. Behind them lies what was there before. Name and bytes are durable
    /// when this returns. Nobody may need `old`, and nobody may write to it.
    ///
    /// # Errors
    /// `AlreadyExists` where there is a segment `new`; `NotFound` where there is none `old`; `Unsupported` where
    /// segments cannot get other names. Either name may be left.
    fn reuse(
        &self,
        old: SegmentKey,
        new: SegmentKey,
        start: &[u8],
    ) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a segment; for writing too where `write` is true. Segments are written again only to punch
    /// out dead blocks, to restore a header, or to continue a copy.
    ///
    /// # Errors
    /// `NotFound`.
    fn open(&self, key: SegmentKey, write: bool) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a data segment to replay the log in it. Where a segment may lie on this host and elsewhere, only the one on
    /// this host counts: an owner that was replaced may have appended to the other one what is no part of the image.
    ///
    /// # Errors
    /// As [`Self::open`].
    fn open_log(&self, key: SegmentKey) -> io::Result<Arc<dyn DiskFile>> {
        self.open(key, false)
    }

    /// Makes durable that the segment exists, or that it does not.
    ///
    /// # Errors
    /// What the operating system says.
    fn settle(&self, key: SegmentKey) -> io::Result<()>;

    /// Removes a segment. Returns the bytes that it took.
    ///
    /// # Errors
    /// `NotFound`.
    fn remove(&self, key: SegmentKey) -> io::Result<u64>;

    /// The segments of a set; none where the set does not exist.
    ///
    /// # Errors
    /// What the operating system says.
    fn list(&self, set: SegmentSet) -> io::Result<Vec<SegmentKey>>;

    /// Creates a set, durably. A set that exists already is no error.
    ///
    /// # Errors
    /// What the operating system says.
    fn create_set(&self, set: SegmentSet) -> io::Result<()>;

    /// Removes an empty set.
    ///
    /// # Errors
    /// `DirectoryNotEmpty`, `NotFound`.
    fn remove_set(&self, set: SegmentSet) -> io::Result<()>;

    /// All sets.
    ///
    /// # Errors
    /// What the operating system says.
    fn sets(&self) -> io::Result<Vec<SegmentSet>>;

    /// All segments, by set. A set may have none.
    ///
    /// # Errors
    /// What the operating system says.
    fn by_set(&self) -> io::Result<Vec<(SegmentSet, Vec<SegmentKey>)>> {
        let list = |set| Ok((set, self.list(set)?));
        self.sets()?.into_iter().map(list).collect()
    }

    /// Bytes free on the medium for this user.
    ///
    /// # Errors
    /// `Unsupported` where there is no such number.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Keeps up to `bytes` of space back on the medium, for work that frees space. Space that is kept
    /// already counts. Where there is less free space, it keeps what it can get.
    fn keep_reserve(&self, bytes: u64);

    /// True where some space is kept back.
    fn has_reserve(&self) -> bool;

    /// Frees the space that was kept back. Returns true where there was some.
    fn give_up_reserve(&self) -> bool;

    /// How messages name the segment: a path, or an object's key.
    fn show(&self, key: SegmentKey) -> String;

    /// How segments reach the other hosts of the pool; `None` where files that were synced are all that they
    /// need. With it, a segment that was uploaded is never written again, so that nothing is punched out of it.
    fn shipping(&self) -> Option<Arc<dyn Shipping>> {
        None
    }
}
