//! Stores, pools and what they hold: names, heads, children.
//!
//! The back end decides where they lie; for a local directory see [`marcot_backend::local::layout`].
//!
//! Invariants:
//! - A child's record is durable before the child's head, and is removed after it (I7). A record without a
//!   head is stale, unless somebody holds the pool's lock.
//! - The process that makes a partial image holds the image's lock from before the image has its partial
//!   name until after it has its final name; see `partial`.
//! - An unprotect marks the snapshot first and then looks for children. A clone records the child first and
//!   then looks at the mark. So one of the two sees the other.

pub(crate) mod advisory;
mod bucket;
pub(crate) mod child_names;
pub(crate) mod children;
mod configuration;
pub(crate) mod create;
mod forget_child;
mod group_snapshots;
pub(crate) mod groups;
pub(crate) mod heirs;
mod identity;
pub(crate) mod image_name;
pub(crate) mod info;
pub(crate) mod level;
pub(crate) mod litter;
pub(crate) mod locks;
pub(crate) mod markers;
mod membership;
pub(crate) mod migration;
pub(crate) mod names;
pub(crate) mod naming;
pub(crate) mod opening;
pub(crate) mod partial;
pub(crate) mod pool;
pub(crate) mod reserve;
pub(crate) mod store;
pub(crate) mod strangers;
pub(crate) mod tails;
mod trash;
pub(crate) mod trash_name;

pub use children::ChildInfo;
pub use configuration::ConfigEntry;
pub use create::{CreateOptions, ORDER_DEFAULT};
pub use groups::{GroupInfo, GroupSnapshotId, GroupSnapshotInfo, MemberId};
pub(crate) use identity::Identity;
pub use image_name::{ImageName, Namespace};
pub use info::{
    ImageInfo, ImageSums, InfoReader, LockInfo, OwnerInfo, OwnerState, ParentInfo, PoolStats,
    SnapInfo,
};
pub use level::Levels;
pub use marcot_backend::ReadableBy;
pub use migration::{MigratingImage, MigrationInfo, MigrationState};
pub use names::check_snapshot_name;
pub use partial::is_partial_name;
pub use pool::Pool;
pub(crate) use pool::no_snapshot;
pub use store::{PoolOptions, Store};
pub use tails::{TailChange, TailInfo};
pub use trash::{PROTECTED_FOR_GOOD_S, TrashedImage};
pub use trash_name::number_in_trash_name;
