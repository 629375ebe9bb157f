//! The structures of a marcot pool, encoded and decoded, and nothing else: no I/O, no clocks, no allocation
//! whose size hostile bytes could choose.
//!
//! `docs/format.md` is the reference; the layouts in this crate repeat it beside the code.
//!
//! Invariants:
//! - Every structure starts with a magic number, a version and a checksum (CRC-32C), and decoding
//!   arbitrary bytes returns [`FormatError`], never a panic.
//! - Integers are little-endian. No platform-sized integer is ever encoded.

pub mod address;
pub mod frame;
pub mod group;
pub mod page;
pub mod record;
pub mod segment;
pub mod table;

pub use address::{BlockAddress, MapEntry, MapUnit, SegmentIndex, Slot};

/// Bytes of a block: the unit of mapping, of copy-on-write and of checksumming.
pub const BLOCK_BYTES: u64 = 4096;
/// Entries of a map leaf and of an inner map node.
pub const MAP_FANOUT: usize = 512;
/// log2 of [`MAP_FANOUT`].
pub const MAP_FANOUT_BITS: u32 = 9;
/// Levels of the block map: one of leaves and three of inner nodes.
pub const MAP_LEVELS: u32 = 4;
/// Size of the largest image in bytes (256 TiB): all that [`MAP_LEVELS`] levels of [`MAP_FANOUT`] can
/// address.
pub const IMAGE_BYTES_MAX: u64 = BLOCK_BYTES << (MAP_FANOUT_BITS * MAP_LEVELS);
/// Bytes of a full segment file.
pub const SEGMENT_BYTES: u64 = 32 << 20;
/// Blocks of a full data segment, its header included.
pub const SEGMENT_SLOTS: u32 = (SEGMENT_BYTES / BLOCK_BYTES) as u32;

/// Number of an image, unique among all pools (64 random bits, never 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(pub u64);

/// Number of a pool, unique among all stores (64 random bits, never 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub u64);

/// Number of a snapshot within its image, from 1 on, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapId(pub u64);

impl std::fmt::Display for ImageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::fmt::Display for PoolId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::fmt::Display for SnapId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Why bytes are not the structure they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Fewer bytes than the structure has.
    #[error("{what} is cut short: {have} bytes of {need}")]
    Truncated {
        /// The structure.
        what: &'static str,
        /// Bytes there.
        have: u64,
        /// Bytes needed.
        need: u64,
    },
    /// The magic number is another one.
    #[error("this is not a {what}")]
    Magic {
        /// The structure.
        what: &'static str,
    },
    /// The checksum does not match.
    #[error("the checksum of the {what} is wrong")]
    Checksum {
        /// The structure.
        what: &'static str,
    },
    /// The version or an incompatible feature bit is unknown.
    #[error("the {what} was written by a newer marcot (version {version}, features {features:#x})")]
    NewerFormat {
        /// The structure.
        what: &'static str,
        /// Its version.
        version: u16,
        /// Its incompatible feature bits.
        features: u32,
    },
    /// A field has a value that no writer produces.
    #[error("the {what} is malformed: {why}")]
    Malformed {
        /// The structure.
        what: &'static str,
        /// Which rule it breaks.
        why: &'static str,
    },
}

/// CRC-32C (Castagnoli) of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// CRC-32C of a structure. Its own checksum field, four bytes at `field`, counts as zero.
#[must_use]
pub(crate) fn crc32c_without(bytes: &[u8], field: usize) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&bytes[..field]);
    digest.update(&[0; 4]);
    digest.update(&bytes[field + 4..]);
    digest.finalize() as u32
}

pub(crate) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}
