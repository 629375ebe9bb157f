//! Leases: which process is at work on what.

use std::io;

use marcot_format::{ImageId, SnapId};
use marcot_store::{Lock, LockMode};

/// A lease. One holder has it exclusively, or many share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lease {
    /// The pool's names and children. Create, clone, rename and remove take it exclusively.
    Catalogue,
    /// Collecting segments that no root of the pool names.
    Collection,
    /// Writing an image. Its owner has it exclusively.
    Owner(ImageId),
    /// Reading an image by a head that was read at some moment. Readers share it.
    Readers(ImageId),
    /// Reading any image of the pool by a head. Every reader shares this lease too, so that a process that
    /// looks for readers need not try the lease of each image.
    AnyReader,
    /// Reading a snapshot. Readers share it; a removal of the snapshot takes it exclusively.
    Snapshot(ImageId, SnapId),
}

/// The leases of a pool. The leases of a process that was killed are ended by the operating system, or
/// after some time.
pub trait Leases: Send + Sync {
    /// Takes a lease. `None` where somebody else has it and `wait` is false.
    ///
    /// # Errors
    /// `PermissionDenied` where this user may not take it, or what the operating system says.
    fn take(&self, lease: Lease, mode: LockMode, wait: bool) -> io::Result<Option<Box<dyn Lock>>>;

    /// False where nobody ever took the lease; true where somebody may have.
    fn was_taken(&self, lease: Lease) -> bool;

    /// Notes for people who has a lease. Only an exclusive holder may call this. A failure does no harm.
    fn note_holder(&self, lease: Lease, holder: &str);

    /// The last note of a holder.
    fn holder(&self, lease: Lease) -> Option<String>;

    /// Forgets a lease that nobody will take any more. A failure does no harm.
    fn forget(&self, lease: Lease);

    /// How messages name the lease: a path, or an object's key.
    fn show(&self, lease: Lease) -> String;
}
