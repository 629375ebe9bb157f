//! Names and bytes in the directory of the cache. Only this file knows them.
//!
//! ```text
//! DIR/marcot-cache              the marker: magic, version, checksum
//! DIR/space                     how many bytes the objects take, for all processes
//! DIR/space.lock                held while `space` is changed
//! DIR/scan.lock                 held by the process that counts the bytes anew
//! DIR/locks/NNN                 held while a chunk is fetched
//! DIR/objects/HH/NUMBER         what is here of one object; HH: the first two digits of its number
//! DIR/objects/HH/.UNIQUE.tmp    a file that is being made or removed
//! ```
//!
//! The file of an object is sparse. An object's byte N is byte N of the file, so that a file that lacks nothing
//! can be read without this code. The index lies behind the longest object:
//!
//! ```text
//! byte 0           64 MiB           64 MiB + 4 KiB
//!      +-----------+----------------+-----------------------------------------+
//!      | the data  | header         | one record for each chunk               |
//!      +-----------+----------------+-----------------------------------------+
//!
//! header: magic "marcotob" | version u16 | bytes of the key u16 | CRC-32C u32 | pool u64 | key
//!         ... at byte 4088: when it was used last, in seconds since 1970, i64
//! record: bytes of the chunk u32 (0: it is not here) | CRC-32C u32 | CRC-32C u32 of each 4 KiB of the data
//! ```
//!
//! The CRC of a record covers the chunk's number too.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use marcot_format::{BLOCK_BYTES, PoolId, crc32c};

/// What is fetched and stored at once, at least, in bytes. See `docs/decisions/0020-range-cache.md`.
pub const CHUNK_BYTES: u64 = 256 << 10;
/// Blocks of a chunk. Each has a checksum.
pub(super) const CHUNK_BLOCKS: usize = (CHUNK_BYTES / BLOCK_BYTES) as usize;
/// Longer objects are not cached, in bytes. Segments have 32 MiB.
pub const OBJECT_BYTES_MAX: u64 = 64 << 20;
/// Chunks of the longest object.
pub(super) const CHUNKS_MAX: u32 = (OBJECT_BYTES_MAX / CHUNK_BYTES) as u32;
/// Files that are locked while chunks are fetched. Two chunks that share one wait for each other.
const LOCKS: u64 = 1024;
/// Directories of objects. One that is chosen at random has few files even in a large cache.
pub(super) const SHARDS: u64 = 256;

/// Permission bits of directories: what is cached may be private.
pub(super) const DIRECTORY_MODE: u32 = 0o700;
/// Permission bits of files.
pub(super) const FILE_MODE: u32 = 0o600;
/// Permission bits by which other users could put something into the cache.
pub(super) const FOREIGN_WRITE_BITS: u32 = 0o022;

/// The version that this code writes, and the only one that it reads.
const VERSION: u16 = 1;
const MARKER_MAGIC: [u8; 8] = *b"marcotca";
const OBJECT_MAGIC: [u8; 8] = *b"marcotob";
const SPACE_MAGIC: [u8; 8] = *b"marcotsp";
/// Bytes of the marker.
pub(super) const MARKER_BYTES: usize = 16;
/// Bytes of the record of the space.
pub(super) const SPACE_BYTES: usize = 40;
/// Bytes of the header of an index.
pub(super) const HEADER_BYTES: u64 = 4096;
/// Where the key begins in it.
const KEY_AT: usize = 24;
/// Longest key: that of S3, in bytes.
const KEY_BYTES_MAX: usize = 1024;
/// Where the last use is noted in it.
const USED_AT: u64 = HEADER_BYTES - 8;
/// Bytes of a chunk's record.
pub(super) const RECORD_BYTES: usize = 8 + 4 * CHUNK_BLOCKS;

/// Where an index begins.
pub(super) const INDEX_AT: u64 = OBJECT_BYTES_MAX;
/// Where its records begin.
pub(super) const RECORDS_AT: u64 = INDEX_AT + HEADER_BYTES;
/// Where the last use is noted.
pub(super) const USED_PLACE: u64 = INDEX_AT + USED_AT;

/// Number and key of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ObjectId {
    pub pool: PoolId,
    pub key: Arc<str>,
}

impl ObjectId {
    /// `None` for a key that is too long.
    pub(super) fn new(pool: PoolId, key: &str) -> Option<Self> {
        (key.len() <= KEY_BYTES_MAX).then(|| Self { pool, key: key.into() })
    }

    /// The number of its file. Objects with equal numbers are told apart by the header.
    pub(super) fn number(&self) -> u64 {
        let bytes = self.pool.0.to_le_bytes();
        let bytes = bytes.iter().chain(self.key.as_bytes());
        let hash = bytes.fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        // Keys that differ in their last letters differ in all digits of the number.
        let hash = (hash ^ (hash >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        hash ^ (hash >> 29)
    }

    /// The header of its file.
    pub(super) fn header(&self) -> Vec<u8> {
        let mut bytes = vec![0; KEY_AT];
        bytes[..8].copy_from_slice(&OBJECT_MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&(self.key.len() as u16).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.pool.0.to_le_bytes());
        bytes.extend_from_slice(self.key.as_bytes());
        let crc = crc32c(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// Names of the files.
pub(super) struct Paths {
    pub directory: PathBuf,
}

impl Paths {
    pub(super) fn marker(&self) -> PathBuf {
        self.directory.join("marcot-cache")
    }

    pub(super) fn space(&self) -> PathBuf {
        self.directory.join("space")
    }

    pub(super) fn space_lock(&self) -> PathBuf {
        self.directory.join("space.lock")
    }

    pub(super) fn scan_lock(&self) -> PathBuf {
        self.directory.join("scan.lock")
    }

    pub(super) fn locks(&self) -> PathBuf {
        self.directory.join("locks")
    }

    /// The file that is locked while a chunk is fetched. Neighbours have different ones.
    pub(super) fn chunk_lock(&self, object: u64, chunk: u32) -> PathBuf {
        self.locks().join(format!("{:03x}", object.wrapping_add(u64::from(chunk)) % LOCKS))
    }

    pub(super) fn objects(&self) -> PathBuf {
        self.directory.join("objects")
    }

    pub(super) fn shard(&self, shard: u64) -> PathBuf {
        self.objects().join(format!("{shard:02x}"))
    }

    pub(super) fn object(&self, number: u64) -> PathBuf {
        self.shard(number >> 56).join(format!("{number:016x}"))
    }
}

/// A name for a file that is being made, or removed.
pub(super) fn temporary(shard: &Path, unique: u64) -> PathBuf {
    shard.join(format!(".{unique:016x}.tmp"))
}

/// True for the name of a file that was being made or removed.
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with('.')
}

fn sealed<const N: usize>(magic: [u8; 8], fields: &[u64]) -> [u8; N] {
    let mut bytes = [0; N];
    bytes[..8].copy_from_slice(&magic);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    for (i, field) in fields.iter().enumerate() {
        bytes[16 + 8 * i..24 + 8 * i].copy_from_slice(&field.to_le_bytes());
    }
    let crc = crc32c(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The marker of a directory.
pub(super) fn marker() -> [u8; MARKER_BYTES] {
    sealed(MARKER_MAGIC, &[])
}

/// What a marker says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Marked {
    /// A cache of this version.
    Ours,
    /// A cache of another version.
    Version(u16),
    /// Something else.
    Other,
}

pub(super) fn read_marker(bytes: &[u8]) -> Marked {
    let Some(version) = bytes.get(8..10) else { return Marked::Other };
    let version = u16::from_le_bytes([version[0], version[1]]);
    match bytes.starts_with(&MARKER_MAGIC) {
        true if bytes == marker() => Marked::Ours,
        true if version != VERSION => Marked::Version(version),
        _ => Marked::Other,
    }
}

/// What the objects take.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Space {
    /// Bytes that the objects take, or a little more.
    pub bytes: u64,
    /// All bytes that were ever added.
    pub added_bytes: u64,
    /// What had been added when the bytes were counted anew for the last time.
    pub recounted_at: u64,
}

impl Space {
    pub(super) fn encode(self) -> [u8; SPACE_BYTES] {
        sealed(SPACE_MAGIC, &[self.bytes, self.added_bytes, self.recounted_at])
    }

    /// `None` for damaged bytes.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let field = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let space = Self { bytes: field(16)?, added_bytes: field(24)?, recounted_at: field(32)? };
        (bytes == space.encode()).then_some(space)
    }
}

/// What is known of a chunk that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Its length in bytes; short only at the end of the object.
    pub bytes: u32,
    /// Checksums of its blocks.
    pub crcs: Arc<[u32]>,
}

fn record_crc(chunk: u32, bytes: &[u8; RECORD_BYTES]) -> u32 {
    let mut covered = *bytes;
    covered[4..8].copy_from_slice(&chunk.to_le_bytes());
    crc32c(&covered)
}

impl Record {
    /// The record of a chunk with this content.
    pub(super) fn of(data: &[u8]) -> Self {
        let crcs = data.chunks(BLOCK_BYTES as usize).map(crc32c).collect();
        Self { bytes: data.len() as u32, crcs }
    }

    pub(super) fn encode(&self, chunk: u32) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..4].copy_from_slice(&self.bytes.to_le_bytes());
        for (place, crc) in bytes[8..].chunks_exact_mut(4).zip(&*self.crcs) {
            place.copy_from_slice(&crc.to_le_bytes());
        }
        let crc = record_crc(chunk, &bytes);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` where the chunk is not here, and for damaged bytes.
    pub(super) fn decode(chunk: u32, bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; RECORD_BYTES] = bytes.try_into().ok()?;
        let field = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let length = field(0);
        if length == 0 || u64::from(length) > CHUNK_BYTES || field(4) != record_crc(chunk, bytes) {
            return None;
        }
        let blocks = u64::from(length).div_ceil(BLOCK_BYTES) as usize;
        let crcs = (0..blocks).map(|i| field(8 + 4 * i)).collect();
        Some(Self { bytes: length, crcs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_decoded_as_it_was_encoded_and_any_flipped_bit_is_noticed() {
        let data: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        let record = Record::of(&data);
        let bytes = record.encode(3);
        assert_eq!(Record::decode(3, &bytes), Some(record));
        assert_eq!(Record::decode(4, &bytes), None, "it is that of another chunk");
        assert_eq!(Record::decode(3, &bytes[1..]), None);
        assert_eq!(Record::decode(0, &[0; RECORD_BYTES]), None);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::decode(3, &damaged), None, "bit {bit}");
        }
    }

    #[test]
    fn the_space_is_decoded_as_it_was_encoded_and_any_flipped_bit_is_noticed() {
        let space = Space { bytes: 77, added_bytes: u64::MAX, recounted_at: 5 };
        let bytes = space.encode();
        assert_eq!(Space::decode(&bytes), Some(space));
        assert_eq!(Space::decode(&bytes[..SPACE_BYTES - 1]), None);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Space::decode(&damaged), None, "bit {bit}");
        }
    }

    #[test]
    fn a_marker_tells_caches_of_other_versions_from_other_files() {
        let mut bytes = marker().to_vec();
        assert_eq!(read_marker(&bytes), Marked::Ours);
        bytes[8] = 9;
        assert_eq!(read_marker(&bytes), Marked::Version(9));
        assert_eq!(read_marker(b"something else than a marker"), Marked::Other);
        assert_eq!(read_marker(b""), Marked::Other);
    }

    #[test]
    fn objects_differ_by_pool_and_key() {
        fn id(pool: u64, key: &str) -> ObjectId {
            ObjectId::new(PoolId(pool), key).unwrap()
        }
        assert_ne!(id(1, "a").number(), id(2, "a").number());
        assert_ne!(id(1, "a").header(), id(1, "b").header());
        assert_eq!(ObjectId::new(PoolId(1), &"k".repeat(KEY_BYTES_MAX + 1)), None);
        // Keys that differ in their last digit lie in different directories.
        let shards = (0..64).map(|i| id(1, &format!("segments/{i:08x}")).number() >> 56);
        let distinct: std::collections::HashSet<u64> = shards.collect();
        assert!(distinct.len() > 40, "{}", distinct.len());
    }
}
