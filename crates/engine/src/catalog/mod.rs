//! Stores, pools and what they hold: names, heads, children.
//!
//! Where they lie is the business of the back end; for a directory see
//! [`marcot_backend::local::layout`].
//!
//! Invariants:
//! - A child's record is durable before its head, and goes after it (I7). A record without a head
//!   is stale, unless the pool's lock is held.
//! - An image whose name says that it is partial is locked by its maker from before it has that name
//!   until after it has its own; see `partial`.
//! - Who takes protection away marks the snapshot first and looks for children then; who clones
//!   records the child first and looks at the mark then. So one of them sees the other.

pub(crate) mod child_names;
pub(crate) mod children;
pub(crate) mod create;
pub(crate) mod heirs;
mod identity;
pub(crate) mod info;
pub(crate) mod litter;
pub(crate) mod locks;
pub(crate) mod markers;
pub(crate) mod names;
pub(crate) mod naming;
pub(crate) mod opening;
pub(crate) mod partial;
pub(crate) mod pool;
pub(crate) mod reserve;
pub(crate) mod store;
pub(crate) mod strangers;

pub use children::ChildInfo;
pub use create::{CreateOptions, ORDER_DEFAULT};
pub(crate) use identity::Identity;
pub use info::{ImageInfo, InfoReader, ParentInfo, PoolStats, SnapInfo};
pub use marcot_backend::ReadableBy;
pub use partial::is_partial_name;
pub use pool::Pool;
pub(crate) use pool::no_snapshot;
pub use store::{PoolOptions, Store};
