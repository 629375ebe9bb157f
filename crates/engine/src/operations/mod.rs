//! Operations on more than one image: cloning, removing, and collecting what no root names.

pub(crate) mod begun;
mod clone;
mod collect;
mod estates;
mod incoming;
mod migration;
mod remove;

pub use begun::BegunImage;
pub use clone::{CloneOptions, Snapshot};
pub use collect::{GcReport, PinnedRow};
pub use incoming::{INTERRUPTED_KEPT_S, Keep};
pub use migration::{Migration, MigrationOptions};
