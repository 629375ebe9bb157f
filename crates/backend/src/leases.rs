//! Who is at work.

use std::io;

use marcot_format::{ImageId, SnapId};
use marcot_store::{Lock, LockMode};

/// Something that one has alone, or that many have together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lease {
    /// The pool's names and children: whoever creates, clones, renames or removes has it alone.
    Catalogue,
    /// Collecting what no root of the pool names.
    Collection,
    /// Writing an image: its owner has it alone.
    Owner(ImageId),
    /// Reading an image by its head of some moment: readers have it together.
    Readers(ImageId),
    /// Reading any image of the pool by a head: every reader has it too, so that others need not look at
    /// each image.
    AnyReader,
    /// Reading a snapshot: readers have it together, and who removes the snapshot has it alone.
    Snapshot(ImageId, SnapId),
}

/// The leases of a pool. The operating system, or time, ends those of a process that was killed.
pub trait Leases: Send + Sync {
    /// Takes a lease. `None`: somebody else has it, and `wait` is false.
    ///
    /// # Errors
    /// `PermissionDenied` where this user may not, or what the operating system says.
    fn take(&self, lease: Lease, mode: LockMode, wait: bool) -> io::Result<Option<Box<dyn Lock>>>;

    /// True where somebody may have taken the lease before; false where nobody ever did.
    fn was_taken(&self, lease: Lease) -> bool;

    /// Notes who has a lease, for people. Only for the one who has it alone. That it fails is no harm.
    fn note_holder(&self, lease: Lease, holder: &str);

    /// What was noted last.
    fn holder(&self, lease: Lease) -> Option<String>;

    /// Forgets a lease that nobody will take any more. That it fails is no harm.
    fn forget(&self, lease: Lease);

    /// What people call the lease: a path, or an object's key.
    fn show(&self, lease: Lease) -> String;
}
