//! Where a pool lives, behind three small traits.
//!
//! | trait | what | in a local directory |
//! |---|---|---|
//! | [`Records`] | small named values: the pool, names, heads, children | files that are replaced whole |
//! | [`Segments`] | large files that grow once and never change after that | files, by author |
//! | [`Leases`] | which process is at work | locks on files |
//!
//! The engine reaches a pool only through these traits, and names its parts by [`Key`], [`SegmentKey`] and
//! [`Lease`]. Only one file of each back end knows where they lie. [`local`] keeps them in a directory,
//! [`memory`] keeps them in the memory of the process, for tests.
//!
//! Invariants that every back end keeps:
//! - A record that [`Records::create`] or [`Records::swap`] has stored is durable when they return.
//! - A record is old or new after a crash, never a mix of both.
//! - A swap succeeds only where the record is still the one that the caller read.
//! - A lease keeps processes from working on the same thing. Where leases fail, swaps still decide which
//!   one wins.

pub mod fault;
mod home;
mod key;
mod leases;
pub mod local;
pub mod memory;
pub mod object;
mod records;
mod segments;
mod shipping;

use std::path::PathBuf;
use std::sync::Arc;

use marcot_store::Disk;

pub use home::{Access, At, Home, Opened, Part, ReadableBy, is_absent};
pub use key::{ChildKey, HeirKey, Key, Listed, Prefix, SegmentKey, SegmentSet};
pub use leases::{Lease, Leases};
pub use local::layout::{escape, unescape};
pub use records::{Beside, Leftover, NameRead, Records, Stamp, SwapError};
pub use segments::Segments;
pub use shipping::{Asked, Recovered, ShipError, Shipping, Tail, Trouble};

/// The back end of one pool. Cheap to clone.
#[derive(Clone)]
pub struct Backend {
    /// Small named values.
    pub records: Arc<dyn Records>,
    /// The segments that images have written.
    pub segments: Arc<dyn Segments>,
    /// Which process is at work.
    pub leases: Arc<dyn Leases>,
    /// The directory where every user may leave files; `None` where the back end has none.
    pub shared: Option<SharedDirectory>,
}

/// A directory of a pool in which other users may leave markers, and so any other files too.
#[derive(Clone)]
pub struct SharedDirectory {
    /// Reaches the directory.
    pub disk: Arc<dyn Disk>,
    /// The directory's path.
    pub path: PathBuf,
}
