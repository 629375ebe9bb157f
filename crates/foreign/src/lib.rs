//! Disk images that other programs have made, read as what they show; and qcow2 written for other programs.
//!
//! A [`Source`] is a disk: bytes that can be read at any place, and a map of its holes. A file is one ([`mod@file`]), and
//! an export of an NBD server is another ([`nbd`]), and so is a file of an HTTP server (`http`, with that feature). A format
//! is one on top of another ([`qcow2`], [`vmdk`], [`vhd`], [`vhdx`]). What comes as a stream ([`compressed`]) becomes one
//! in a temporary file ([`spool`]). [`open`] tells the formats apart.
//!
//! ```
//! # fn main() -> marcot_foreign::Result<()> {
//! use std::sync::Arc;
//! use marcot_foreign::{Format, Source, file::FileSource, open};
//!
//! let file = tempfile::tempfile().unwrap();
//! file.set_len(1 << 30).unwrap();
//! let file: Arc<dyn Source> = Arc::new(FileSource::new(file)?);
//! assert_eq!(open::recognise(file.as_ref())?, Format::Raw);
//! let disk = open::open(file, Format::Raw, &mut open::Nobody)?;
//! assert_eq!(disk.size_bytes(), 1 << 30);
//! assert!(disk.extents(0, 1 << 30)?.iter().all(|extent| !extent.data));
//! # Ok(())
//! # }
//! ```
//!
//! Invariants:
//! - What is read is hostile. Every number is checked before it is used: no panic, no loop without an end, and no memory that
//!   a file can choose. Tables are read through [`pages`], which keep a fixed amount.
//! - A byte of the disk that its file does not have is an error, never zeros: a file that was cut off is told.
//! - Nothing here knows marcot's images. This crate depends on no other crate of the project.

pub mod backing;
pub mod compressed;
mod error;
pub mod file;
#[cfg(feature = "http")]
pub mod http;
pub mod mapped;
pub mod nbd;
pub mod open;
pub mod pages;
pub mod qcow2;
mod source;
pub mod spool;
pub mod vhd;
pub mod vhdx;
pub mod vmdk;

pub use error::{Error, ErrorKind, Result};
pub use open::Format;
pub use source::{Extent, Interrupted, Reader, Snapshot, Source, next_data};
