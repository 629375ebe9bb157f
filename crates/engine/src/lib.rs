//! The marcot engine: layered block images, in the process that uses them.
//!
//! A [`Store`] registers [`Pool`]s, a pool holds images, and an [`Image`] is a disk: bytes that are read
//! and written at offsets, with snapshots. A clone starts from a snapshot of another image and shares its
//! blocks until either side writes. Cloning, reading and writing cost the same at any depth.
//!
//! Programs that manage images which may be in use elsewhere use the crate `marcot-client`: it asks the
//! process that has an image open. This crate is for who opens images itself.
//!
//! # A first image
//!
//! A store is a directory, and comes into being on first use with a pool called `rbd`. An image is created
//! with its size in bytes, takes no space until it is written, and reads as zeros where it was not.
//!
//! ```
//! # fn main() -> marcot::Result<()> {
//! # let scratch = tempfile::tempdir().unwrap();
//! # let directory = scratch.path();
//! use marcot::{CreateOptions, Store};
//!
//! let store = Store::open(directory)?;
//! let pool = store.pool("rbd")?;
//! let golden = pool.create("golden", &CreateOptions::sized(1 << 30))?;
//!
//! let mut image = pool.open(golden)?;
//! image.write_at(4096, b"a kernel")?;
//! image.flush()?; // durable from here on
//!
//! let mut bytes = [0; 8];
//! image.read_at(4096, &mut bytes)?;
//! assert_eq!(&bytes, b"a kernel");
//! image.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! Offsets and lengths are in bytes and need no alignment; whole blocks of [`BLOCK_BYTES`] cost least.
//!
//! # Snapshots and clones
//!
//! A snapshot keeps what the image holds at one moment. Protected, it cannot be removed, and can be cloned.
//! The clone is an image like any other; only `flatten` cuts the tie to its parent.
//!
//! ```
//! # fn main() -> marcot::Result<()> {
//! # let scratch = tempfile::tempdir().unwrap();
//! # let store = marcot::Store::open(scratch.path())?;
//! # let pool = store.pool("rbd")?;
//! # let golden = pool.create("golden", &marcot::CreateOptions::sized(1 << 30))?;
//! use marcot::{CloneOptions, ErrorKind, ImageName};
//!
//! let mut image = pool.open(golden)?;
//! # image.write_at(4096, b"a kernel")?;
//! image.snapshot("v1")?;
//! image.protect("v1")?;
//!
//! // Nothing is copied, whatever the size. Names live in namespaces; text alone is in the default one.
//! pool.namespace_create("ci")?;
//! let name = ImageName::new("vm-1").in_namespace("ci");
//! let child = pool.snapshot(golden, "v1").clone_to(&pool, &name, &CloneOptions::new())?;
//! assert_eq!(pool.find(&name)?, child);
//!
//! let mut vm = pool.open(child)?;
//! let mut bytes = [0; 8];
//! vm.read_at(4096, &mut bytes)?;
//! assert_eq!(&bytes, b"a kernel");
//!
//! // Its writes are its own.
//! vm.snapshot("fresh")?;
//! vm.write_at(1 << 20, b"my own")?;
//! let changed = vm.diff(Some("fresh"), None, 0, 1 << 30)?;
//! assert_eq!((changed[0].offset, changed[0].length), (1 << 20, 4096));
//! image.read_at(1 << 20, &mut bytes)?;
//! assert_eq!(bytes, [0; 8]);
//!
//! // As long as it needs its parent, the parent stays.
//! let refused = image.unprotect("v1").unwrap_err();
//! assert_eq!(refused.kind(), ErrorKind::HasChildren);
//! vm.flatten_with(&mut |done, total| println!("{done} of {total} blocks"))?;
//! image.unprotect("v1")?;
//! image.remove_snapshot("v1", false)?;
//! # vm.close()?;
//! # image.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Errors, and what to do about them
//!
//! Every call fails with an [`Error`]: a kind to match on, a sentence for people, and the error below it.
//! [`Error::sentence`] is the whole of it on one line.
//!
//! | [`ErrorKind`] | what to do |
//! |---|---|
//! | `NotFound`, `Exists`, `Invalid`, `NameTooLong`, `OutOfRange`, `TooMany` | ask for something else |
//! | `Owned` | another process has the image open for writing: ask that one (`marcot-client`), or wait |
//! | `Busy` | somebody reads it, or another operation holds it: try again |
//! | `Protected`, `HasChildren`, `HasSnapshots`, `NotEmpty` | remove what is in the way first; the sentence names it |
//! | `ReadOnly`, `PermissionDenied` | this process may not; the sentence says who may |
//! | `NoSpace` | make room: remove, discard and shrink work on a full disk. What was flushed is safe |
//! | `Poisoned` | the medium refused to keep a write: close the image and open it again, and write anew what was not flushed |
//! | `Fenced` | another process has taken the image over: let go of it |
//! | `Corrupt` | what is stored fails verification: nothing wrong is returned. `Store::check` tells what is damaged |
//! | `NewerFormat` | written by a newer version: use that one |
//! | `Interrupted`, `Exhausted`, `Io` | what the operating system says |
//!
//! More kinds may come, so that a match needs an arm for the others. [`ErrorKind::is_obstacle`] and
//! [`ErrorKind::ends_writing`] answer what most callers want to know.
//!
//! ```
//! # let scratch = tempfile::tempdir().unwrap();
//! # let store = marcot::Store::open(scratch.path()).unwrap();
//! # let pool = store.pool("rbd").unwrap();
//! use marcot::ErrorKind;
//!
//! match pool.find("nowhere") {
//!     Ok(id) => println!("it is {id}"),
//!     Err(error) if error.kind() == ErrorKind::NotFound => println!("it has yet to be made"),
//!     Err(error) => eprintln!("{}", error.sentence()),
//! }
//! ```
//!
//! # What is durable when
//!
//! | call | durable |
//! |---|---|
//! | [`Image::write_at`], [`Image::discard`] | with the next [`Image::flush`]. After a crash the image is a prefix of what was acknowledged, with everything that was flushed |
//! | [`Image::flush`] | when it returns, all that came before |
//! | [`Image::snapshot`], [`Image::resize`], [`Image::flatten`] and the others that change an image as a whole | when they return, together with all that came before |
//! | [`Pool::create`], [`Snapshot::clone_to`], [`Pool::rename`], [`Store::remove_image`] | when they return |
//! | [`Image::close`] | when it returns. Dropping an image instead loses nothing that was flushed; opening it again then reads its log |
//!
//! # Threads and ownership
//!
//! An image has one owner: the process, and in it the one [`Image`], that has it open for writing. A second
//! [`Pool::open`] fails with `Owned`, here and in any other process. Readers do not count:
//! [`Pool::open_read_only`] and [`Pool::open_snapshot`] work beside an owner and show what is on disk.
//!
//! [`Store`] and [`Pool`] are cheap to clone and are used from any thread. An [`Image`] belongs to one
//! thread at a time: its methods take `&mut self`, there is no lock on the way of a read or a write, and it
//! can be sent to another thread. Many images spread over many threads.
//!
//! Nothing runs in the background by itself but writes that are under way. Who keeps an image open lets it
//! keep house between requests: checkpoints, which keep the log short, and space that comes back.
//!
//! ```
//! # fn main() -> marcot::Result<()> {
//! # let scratch = tempfile::tempdir().unwrap();
//! # let store = marcot::Store::open(scratch.path())?;
//! # let pool = store.pool("rbd")?;
//! # let id = pool.create("vm-1", &marcot::CreateOptions::sized(1 << 30))?;
//! # let mut image = pool.open(id)?;
//! use marcot::Housekeeping as _;
//!
//! // Nobody has asked for anything for a while.
//! image.give_space_back();
//! while image.background_step()? {}
//! # image.close()
//! # }
//! ```
//!
//! # Where to look
//!
//! | for | see |
//! |---|---|
//! | pools: create, attach, remove; check, garbage collection; removing images | [`Store`] |
//! | images of a pool: create, find, open, rename, list; namespaces | [`Pool`] |
//! | one image: read, write, snapshots, size, flatten, usage, differences | [`Image`] |
//! | serving an image: batches, asynchronous reads and writes | [`BlockDevice`], [`Housekeeping`] |
//! | what heads tell, whoever has the image open | [`Pool::info`], [`InfoReader`] |
//! | memory and log of open images | [`Limits`] |
//! | time, files and random numbers of another world, for tests | [`World`] |
//! | text of others, made fit for a terminal | [`printable`] |

mod catalog;
mod check;
mod device;
mod error;
mod external;
mod fetches;
mod gc;
mod image;
mod in_flight;
mod journal;
mod limits;
mod map;
mod operations;
pub mod printable;
mod root;
mod segment;
mod table;

pub use catalog::{
    ChildInfo, ConfigEntry, CreateOptions, GroupInfo, GroupSnapshotId, GroupSnapshotInfo,
    ImageInfo, ImageName, ImageSums, InfoReader, Levels, LockInfo, MemberId, MigratingImage,
    MigrationInfo, MigrationState, Namespace, ORDER_DEFAULT, OwnerInfo, OwnerState,
    PROTECTED_FOR_GOOD_S, ParentInfo, Pool, PoolOptions, PoolStats, ReadableBy, SnapInfo, Store,
    TailChange, TailInfo, TrashedImage, check_snapshot_name, is_partial_name, number_in_trash_name,
};
pub use check::{CheckOptions, CheckReport, Finding};
pub use device::{
    BlockDevice, CompletedRead, Completion, Extent, Housekeeping, IdleOutcome, Read, Write,
};
pub use error::{Error, ErrorKind, Remedy, Result, Sentence};
pub use external::{ExternalDisk, ExternalSources};
pub use image::{DiffExtent, FlattenPart, Image, SNAPSHOTS_MAX, UsageRow};
pub use limits::Limits;
#[cfg(feature = "deliberate-faults")]
pub use marcot_backend::fault;
#[cfg(not(feature = "deliberate-faults"))]
use marcot_backend::fault;
pub use marcot_backend::object::counted::Requests;
pub use marcot_backend::object::home::{Bucket, BucketOptions, Flush};
pub use marcot_backend::object::{Patience, VARIABLES as BUCKET_VARIABLES};
pub use marcot_format::{BLOCK_BYTES, IMAGE_BYTES_MAX, ImageId, PoolId, SnapId};
pub use marcot_store::World;
pub use operations::{
    BegunImage, CloneOptions, GcReport, INTERRUPTED_KEPT_S, Keep, Migration, MigrationOptions,
    PinnedRow, Snapshot,
};
