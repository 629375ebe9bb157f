//! The operations on marcot's images and snapshots. Each is one call, whoever has the image open.
//!
//! An image has one owner at a time: the process that has it open for writing. It may be a server, a
//! mapped device, another command, or nobody. The calls work in each of these cases: this crate opens the
//! image itself, or asks the owner over its control socket. If the owner changes in between, it
//! tries again. The command line uses this crate, and so does every other program that manages images.
//!
//! # A first image
//!
//! A [`Client`] is the way into a store, an [`ImageSpec`] the full name of an image. Images and snapshots
//! are handles: they are cheap to clone and keep nothing open, and each call is one operation.
//!
//! ```
//! # fn main() -> marcot_client::Result<()> {
//! # let directory = tempfile::tempdir().unwrap();
//! use marcot_client::{Client, CloneOptions, CreateOptions, ImageSpec, Options, Quiesce};
//!
//! let client = Client::open(directory.path(), Options::new())?;
//! let options = CreateOptions::sized(1 << 30);
//! let template = client.create(&ImageSpec::parse("rbd/debian")?, &options)?;
//!
//! // It has every write that was acknowledged until now, also if a guest has the image open.
//! let v1 = template.create_snapshot("v1", Quiesce::Required)?;
//! v1.protect()?;
//!
//! // A clone copies nothing. It reads from its parent what it has not written itself.
//! let vm = v1.clone_to(&ImageSpec::parse("vm-1")?, &CloneOptions::default())?;
//! assert_eq!(vm.info()?.parent.unwrap().snap, "v1");
//! assert_eq!(v1.unprotect().unwrap_err().kind(), marcot_client::ErrorKind::HasChildren);
//!
//! // Long operations report their progress.
//! vm.flatten(&mut |done, total| println!("{done} of {total}"))?;
//! v1.unprotect()?;
//! v1.remove(false, &mut |_, _| {})?;
//! # Ok(())
//! # }
//! ```
//!
//! # Reading and writing
//!
//! [`Image::open`] gives the image to this process alone, as an [`OpenImage`]. [`Image::content`] reads an
//! image that others may write meanwhile. [`content::walk`] goes through it at a cost that depends on the
//! data and not on the size. [`Pool::begin_image`] makes an image that is hidden until it is complete.
//!
//! # Where to look
//!
//! | for | see |
//! |---|---|
//! | pools as a whole: create, attach, remove | [`Client`] |
//! | namespaces, lists of images, check, garbage collection | [`Pool`] |
//! | create, resize, rename, remove, space | [`Image`] |
//! | metadata, features, limits, locks | [`settings`] |
//! | configuration | [`configuration`] |
//! | take, protect, rename, remove, roll back | [`Snapshot`] |
//! | clones, children, flatten | [`layering`] |
//! | another pool, namespace or name for an image in use | [`migration`] |
//! | usage, differences, who has it open | [`inspect`] |
//! | what the users of images do, as rates | [`perf`] |
//! | groups of images and their snapshots | [`group`] |
//! | the trash: move an image there, restore it, remove it | [`trash`] |
//! | when the trash is emptied by itself | [`purge_schedule`] |
//! | content, in and out | [`content`], [`incoming`], [`copy`] |
//! | disks that other programs have made | [`foreign`] |
//! | RBD's streams: differences, and images with their snapshots | [`stream`] |
//! | block devices of this machine | [`devices`] |
//! | exports of a server | [`exports`] |
//! | images as the files of a mounted directory | [`directory`] |
//!
//! # What a caller decides
//!
//! [`Options`] say what interrupts an operation, who gets its warnings, and who may do
//! what. Every operation is admitted once, in one place, before it begins ([`Operation`]). Nothing here prints,
//! and no message names a flag of a command line: an [`Error`] has a kind, and naming the remedy
//! is up to the caller.
//!
//! `marcot-client -> {marcot-serve, marcot}`: neither of these depends on this crate.

mod change;
mod client;
pub mod configuration;
pub mod content;
pub mod copy;
pub mod deep_copy;
pub mod devices;
pub mod directory;
pub mod exports;
pub mod external;
pub mod foreign;
pub mod group;
mod image;
mod image_spec;
pub mod incoming;
pub mod inspect;
pub mod layering;
pub mod migration;
mod operation;
mod options;
mod owner;
pub mod perf;
mod pool;
pub mod purge_schedule;
mod retry;
pub mod settings;
mod snapshot;
pub mod source_spec;
pub mod sparse;
pub mod spec;
pub mod stream;
mod tail;
pub mod trash;
mod upkeep;

pub use client::Client;
pub use image::Image;
pub use image_spec::{DEFAULT_POOL, ImageSpec};
// Types that occur in the signatures.
/// An image that is open in this process: the engine's [`marcot::Image`].
pub use marcot::Image as OpenImage;
pub use marcot::{
    CheckOptions, CheckReport, ChildInfo, CloneOptions, ConfigEntry, CreateOptions, Error,
    ErrorKind, GcReport, GroupInfo, GroupSnapshotInfo, ImageId, ImageInfo, ImageName, InfoReader,
    Keep, Levels, Limits, LockInfo, MigrationInfo, MigrationOptions, MigrationState, Namespace,
    PoolId, PoolOptions, PoolStats, Result, SnapId, SnapInfo, TrashedImage,
};
pub use marcot_serve::control::Interrupt;
pub use operation::{Attempt, Operation};
pub use options::{Options, Warning};
pub use pool::Pool;
pub use snapshot::{Purged, Quiesce, Snapshot};
