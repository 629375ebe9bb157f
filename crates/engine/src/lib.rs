//! The marcot engine: layered block images in plain directories.
//!
//! A [`Store`] registers [`Pool`]s; a pool holds images; an [`Image`] is a block device of bytes
//! with snapshots. A clone shares its parent snapshot's block map, so cloning, reading and writing
//! cost the same at any depth.
//!
//! ```
//! # fn main() -> marcot::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! use marcot::{CloneOptions, CreateOptions, Store};
//!
//! let store = Store::open(dir.path())?;
//! let pool = store.pool("rbd")?;
//! let id = pool.create("golden", &CreateOptions::sized(1 << 30))?;
//! let mut golden = pool.open(id)?;
//! golden.write_at(4096, b"a kernel")?;
//! golden.snapshot("v1")?;
//! golden.protect("v1")?;
//! golden.close()?;
//!
//! let child = pool.snapshot(id, "v1").clone_to(&pool, "vm-1", &CloneOptions::default())?;
//! let mut vm = pool.open(child)?;
//! let mut buf = [0; 8];
//! vm.read_at(4096, &mut buf)?;
//! assert_eq!(&buf, b"a kernel");
//! vm.write_at(4096, b"my own k")?;
//! vm.flush()?; // durable from here on
//! vm.flatten()?;
//! vm.close()?;
//! assert!(store.children(&pool, id, None)?.is_empty());
//! # Ok(())
//! # }
//! ```

mod catalog;
mod check;
mod device;
mod error;
mod gc;
mod image;
mod limits;
mod map;
mod operations;
pub mod printable;
mod root;
mod segment;
mod table;

pub use catalog::{
    ChildInfo, CreateOptions, ImageInfo, ImageName, InfoReader, Namespace, ORDER_DEFAULT,
    ParentInfo, Pool, PoolOptions, PoolStats, ReadableBy, SnapInfo, Store, is_partial_name,
};
pub use check::{CheckOptions, CheckReport, Finding};
pub use device::{
    BlockDevice, CompletedRead, Completion, Extent, Housekeeping, IdleOutcome, Read, Write,
};
pub use error::{Error, ErrorKind, Remedy, Result, Sentence};
pub use image::{DiffExtent, FlattenPart, Image, SNAPSHOTS_MAX, UsageRow};
pub use limits::Limits;
#[cfg(feature = "deliberate-faults")]
pub use marcot_backend::fault;
#[cfg(not(feature = "deliberate-faults"))]
use marcot_backend::fault;
pub use marcot_format::{BLOCK_BYTES, IMAGE_BYTES_MAX, ImageId, PoolId, SnapId};
pub use marcot_store::World;
pub use operations::{CloneOptions, GcReport, PinnedRow, Snapshot};
