//! Where a pool lives, behind three small traits.
//!
//! | trait | what | in a local directory |
//! |---|---|---|
//! | [`Records`] | small named values: the pool, names, heads, children | files that are replaced whole |
//! | [`Segments`] | large files that grow once and never change after that | files, by author |
//! | [`Leases`] | who is at work | locks on files |
//!
//! The engine knows a pool only by these traits, and its parts by [`Key`], [`SegmentKey`] and
//! [`Lease`]. Where they lie is known to one file of each back end: [`local`] keeps them in a
//! directory, [`memory`] keeps them in the memory of the process, for tests.
//!
//! Invariants that every back end keeps:
//! - What [`Records::create`] and [`Records::swap`] stored is durable when they return.
//! - A record is old or new after a crash, never a mix of both.
//! - A swap succeeds only where the record is still the one that the caller read.
//! - A lease saves work and keeps apart what is at work. Where leases fail, swaps still decide.

pub mod fault;
mod home;
mod key;
mod leases;
pub mod local;
pub mod memory;
mod records;
mod segments;

use std::path::PathBuf;
use std::sync::Arc;

use marcot_store::Disk;

pub use home::{Access, At, Home, Opened, Part, ReadableBy, is_absent};
pub use key::{ChildKey, HeirKey, Key, Listed, Prefix, SegmentKey, SegmentSet};
pub use leases::{Lease, Leases};
pub use local::layout::{escape, unescape};
pub use records::{Beside, Leftover, Records, Stamp, SwapError};
pub use segments::Segments;

/// What a pool lies on. Cheap to clone.
#[derive(Clone)]
pub struct Backend {
    /// Small named values.
    pub records: Arc<dyn Records>,
    /// What images have written.
    pub segments: Arc<dyn Segments>,
    /// Who is at work.
    pub leases: Arc<dyn Leases>,
    /// Where every user may leave files; `None` where nobody else can.
    pub shared: Option<SharedDirectory>,
}

/// A directory of a pool in which others may leave markers, and so anything else.
#[derive(Clone)]
pub struct SharedDirectory {
    /// Reaches it.
    pub disk: Arc<dyn Disk>,
    /// Where it is.
    pub path: PathBuf,
}
