//! RBD's streams: differences between two states of an image, and whole images with their snapshots.
//!
//! `rbd export-diff` writes a difference, `rbd export --export-format 2` a header and then one difference
//! for each snapshot and for the image itself. The bytes are RBD's, so that backups made by either
//! program can be read by the other.
//!
//! ```text
//! difference = banner record* 'e'              image = banner property* 'E' banner count difference*
//!
//! record   from snapshot 'f' text              property   order 'O' u64        features 'T' u64
//!          to snapshot   't' text                         stripe unit 'U' u64  stripe count 'C' u64
//!          protected     'p' u8                           metadata 'M' text text
//!          size          's' u64
//!          data          'w' u64 u64 bytes     text = u32 bytes; all numbers are little-endian
//!          zeros         'z' u64 u64           in format 2, a u64 with the record's length follows each tag
//! ```
//!
//! [`wire`] has the bytes and nothing else. [`records`] reads them from a source. [`export`] and [`import`]
//! turn states of images into records and back, and [`merge`] makes one difference of two.
//!
//! # Invariants
//! - No input makes a reader panic, or take more memory than a piece of data ([`wire::PIECE_BYTES_MAX`]).
//! - An image that is made from a stream is hidden until it is complete.
//! - A difference that cannot be imported as a whole leaves the image as it was where that is possible, and
//!   else the caller learns that it is not ([`import::Left`]).

pub mod export;
pub mod import;
pub mod merge;
pub mod records;
pub mod whole;
pub mod wire;
