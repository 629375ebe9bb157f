//! Stores, pools and what they hold: names, heads, children.
//!
//! ```text
//! STORE/store                       record
//! STORE/pools/NAME/                 a pool of this store, or
//! STORE/attached/NAME               record that names the directory of another store's pool
//!
//! POOL/pool                         record
//! POOL/lock                         catalogue lock: creating, cloning, removing, collecting roots
//! POOL/names/@/NAME                 record: image number (@: default namespace)
//! POOL/names/NAMESPACE/NAME
//! POOL/images/NUMBER/head           record: the image
//! POOL/images/NUMBER/name           record: the name it was given since (a hint)
//! POOL/images/NUMBER/lock           held by the image's owner
//! POOL/images/NUMBER/snap-N         held by readers of a snapshot
//! POOL/segments/NUMBER/             segments, by the image that wrote them
//! POOL/children/                    records of children; may be writable by others
//! POOL/heirs/                       marks of images that were flattened: see `heirs`
//! POOL/readers                      held by readers of heads of this pool's images
//! ```
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
pub use info::{ImageInfo, InfoReader, ParentInfo, PoolStats, SnapInfo};
pub use marcot_backend::ReadableBy;
pub use partial::is_partial_name;
pub use pool::Pool;
pub(crate) use pool::no_snapshot;
pub use store::{PoolOptions, Store};
