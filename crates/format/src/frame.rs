//! The frame around every record that is a file of its own: store, pool, head, name, child, attached pool; and
//! around what a pool in a bucket has besides: objects, directories of names, the list of namespaces.
//!
//! ```text
//! byte 0               8         12        16        20        24        28        32
//!      +---------------+----+----+---------+---------+---------+---------+---------+
//!      | magic         | ver|kind| incompat| compat  | ro comp.| body    | CRC-32C |
//!      |   "marcot\0\n"| u16|u16 |   u32   |   u32   |   u32   | bytes   |   u32   |
//!      +---------------+----+----+---------+---------+---------+---------+---------+
//!      | body: a protocol buffer message, see `record`                             |
//! ```
//!
//! The checksum covers header and body, with its own field as zero. A reader refuses a record with unknown
//! incompatible bits. With unknown read-only-compatible bits it may read, but not write.

use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};

use crate::record::{
    AttachedRecord, EARLIER_MAX, HEAD_LOCKS_MAX, HEAD_METADATA_MAX, HEAD_SNAPSHOTS_MAX, NAMES_MAX,
    NAMESPACES_MAX, PoolRecord,
};
use crate::{FormatError, crc32c_without, get_u16, get_u32, put};

/// First eight bytes of every record file.
pub const FRAME_MAGIC: [u8; 8] = *b"marcot\0\n";
/// Version this code writes.
pub const FRAME_VERSION: u16 = 1;
/// Bytes before the body.
pub const FRAME_HEADER_BYTES: usize = 32;
/// Limit on the length of a body in bytes. It holds about ten thousand snapshots.
pub const FRAME_BODY_BYTES_MAX: usize = 16 << 20;
/// Limit on the length of the body of an object in bytes: a whole record, and its stamps.
pub const OBJECT_BODY_BYTES_MAX: usize = FRAME_BODY_BYTES_MAX + FRAME_HEADER_BYTES + (64 << 10);
/// Incompatible feature of the note of an attached pool: the pool lies in a bucket. A version that does not know
/// it would look for a directory.
pub const INCOMPAT_BUCKET: u32 = 1;
/// The level of the format that this code knows. Section 10 of `docs/format.md` says what each level has.
pub const FORMAT_LEVEL: u32 = 4;
/// Incompatible feature of a pool's record: its level for readers is above 1. Versions that do not know of levels
/// must not read the pool.
pub const INCOMPAT_LEVEL: u32 = 1;
/// Read-only-compatible feature of a pool's record: its level for writers is above 1.
pub const RO_COMPAT_LEVEL: u32 = 1;

/// What a record file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum FrameKind {
    /// A store.
    Store = 1,
    /// A pool.
    Pool = 2,
    /// An image's head.
    Head = 3,
    /// A name of an image.
    Name = 4,
    /// A child of a snapshot.
    Child = 5,
    /// A pool attached from elsewhere.
    Attached = 6,
    /// A record of a pool in a bucket, with its stamps.
    Object = 7,
    /// A part of an image's log, outside its owner's host.
    ShippedLog = 8,
    /// A part of the names of a namespace of a pool in a bucket.
    Names = 9,
    /// The namespaces of a pool in a bucket.
    Namespaces = 10,
    /// What is noted beside an image in the trash.
    Trash = 20,
    /// A group of images.
    Group = 21,
    /// What is noted beside an image in a group.
    Membership = 22,
}

impl FrameKind {
    /// Its name in messages.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Store => "store record",
            Self::Pool => "pool record",
            Self::Head => "image head",
            Self::Name => "image name record",
            Self::Child => "child record",
            Self::Attached => "attached pool record",
            Self::Trash => "trash record",
            Self::Group => "group record",
            Self::Membership => "membership record",
            Self::ShippedLog => "part of a log",
            Self::Object => "object",
            Self::Names => "directory of names",
            Self::Namespaces => "list of namespaces",
        }
    }

    /// Incompatible features this code knows.
    #[must_use]
    pub fn incompat_known(self) -> u32 {
        match self {
            Self::Attached => INCOMPAT_BUCKET,
            Self::Pool => INCOMPAT_LEVEL,
            _ => 0,
        }
    }

    /// Read-only-compatible features this code knows.
    #[must_use]
    pub fn ro_compat_known(self) -> u32 {
        match self {
            Self::Pool => RO_COMPAT_LEVEL,
            _ => 0,
        }
    }

    fn body_bytes_max(self) -> usize {
        match self {
            Self::Object => OBJECT_BODY_BYTES_MAX,
            _ => FRAME_BODY_BYTES_MAX,
        }
    }
}

/// A decoded frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The message.
    pub body: &'a [u8],
    /// True where an unknown read-only-compatible feature forbids writing.
    pub read_only: bool,
}

/// Encodes `body` as a record file of `kind`.
#[must_use]
pub fn encode(kind: FrameKind, body: &[u8]) -> Vec<u8> {
    encode_with(kind, 0, 0, body)
}

/// As [`encode`], with incompatible and read-only-compatible features.
#[must_use]
pub fn encode_with(kind: FrameKind, incompat: u32, ro_compat: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; FRAME_HEADER_BYTES + body.len()];
    put(&mut bytes, 0, &FRAME_MAGIC);
    put(&mut bytes, 8, &FRAME_VERSION.to_le_bytes());
    put(&mut bytes, 10, &(kind as u16).to_le_bytes());
    put(&mut bytes, 12, &incompat.to_le_bytes());
    put(&mut bytes, 20, &ro_compat.to_le_bytes());
    put(&mut bytes, 24, &(body.len() as u32).to_le_bytes());
    put(&mut bytes, FRAME_HEADER_BYTES, body);
    let crc = crc32c_without(&bytes, 28);
    put(&mut bytes, 28, &crc.to_le_bytes());
    bytes
}

/// Decodes a record file of `kind`.
///
/// # Errors
/// [`FormatError`] for anything but a complete, undamaged record of this kind and a known version.
pub fn decode(kind: FrameKind, bytes: &[u8]) -> Result<Frame<'_>, FormatError> {
    let what = kind.word();
    let need = FRAME_HEADER_BYTES as u64;
    if bytes.len() < FRAME_HEADER_BYTES {
        return Err(FormatError::Truncated { what, have: bytes.len() as u64, need });
    }
    if bytes[..8] != FRAME_MAGIC || get_u16(bytes, 10) != kind as u16 {
        return Err(FormatError::Magic { what });
    }
    let (version, incompat) = (get_u16(bytes, 8), get_u32(bytes, 12));
    if version != FRAME_VERSION || incompat & !kind.incompat_known() != 0 {
        return Err(FormatError::NewerFormat { what, version, features: incompat });
    }
    let body_bytes = get_u32(bytes, 24) as usize;
    if body_bytes > kind.body_bytes_max() {
        return Err(FormatError::Malformed { what, why: "the length is beyond the limit" });
    }
    let have = bytes.len() as u64;
    if bytes.len() != FRAME_HEADER_BYTES + body_bytes {
        return Err(FormatError::Truncated { what, have, need: need + body_bytes as u64 });
    }
    if crc32c_without(bytes, 28) != get_u32(bytes, 28) {
        return Err(FormatError::Checksum { what });
    }
    let read_only = get_u32(bytes, 20) & !kind.ro_compat_known() != 0;
    Ok(Frame { body: &bytes[FRAME_HEADER_BYTES..], read_only })
}

/// Encodes a message as a record file.
#[must_use]
pub fn encode_message<M: prost::Message>(kind: FrameKind, message: &M) -> Vec<u8> {
    encode(kind, &message.encode_to_vec())
}

/// Decodes a record file into its message. The flag is [`Frame::read_only`].
///
/// # Errors
/// As [`decode`], and where the body is not a message of this type.
pub fn decode_message<M: prost::Message + Default>(
    kind: FrameKind,
    bytes: &[u8],
) -> Result<(M, bool), FormatError> {
    let frame = decode(kind, bytes)?;
    check_counts(kind, frame.body)?;
    let message = M::decode(frame.body).map_err(|_| FormatError::Malformed {
        what: kind.word(),
        why: "the body does not decode",
    })?;
    Ok((message, frame.read_only))
}

/// How often a field may occur in a message.
struct Count {
    tag: u32,
    max: usize,
    why: &'static str,
}

/// The fields of which there may be many, in a record of this kind.
fn counts(kind: FrameKind) -> &'static [Count] {
    const SNAPSHOTS: &str = "more snapshots than there may be";
    const NAMES: &str = "more names than there may be";
    const STAMPS: &str = "more stamps than there may be";
    match kind {
        FrameKind::Head => &[
            Count { tag: 13, max: HEAD_SNAPSHOTS_MAX, why: SNAPSHOTS },
            Count { tag: 15, max: HEAD_METADATA_MAX, why: SNAPSHOTS },
            Count { tag: 31, max: HEAD_LOCKS_MAX, why: "more locks than there may be" },
        ],
        FrameKind::Object => &[Count { tag: 2, max: EARLIER_MAX, why: STAMPS }],
        FrameKind::Names => &[
            Count { tag: 1, max: NAMES_MAX, why: NAMES },
            Count { tag: 2, max: NAMES_MAX, why: NAMES },
        ],
        FrameKind::Namespaces => &[Count { tag: 1, max: NAMESPACES_MAX, why: NAMES }],
        _ => &[],
    }
}

/// Fails where a field occurs more often than it may, before anything is allocated for it.
///
/// # Errors
/// `Malformed`; also where the bytes are no message.
fn check_counts(kind: FrameKind, mut body: &[u8]) -> Result<(), FormatError> {
    let (what, counts) = (kind.word(), counts(kind));
    if counts.is_empty() {
        return Ok(());
    }
    let broken = |_| FormatError::Malformed { what, why: "the body does not decode" };
    let mut seen = [0; 3];
    while !body.is_empty() {
        let (tag, wire_type) = decode_key(&mut body).map_err(broken)?;
        for (count, seen) in counts.iter().zip(&mut seen) {
            if count.tag == tag {
                *seen += 1;
                if *seen > count.max {
                    return Err(FormatError::Malformed { what, why: count.why });
                }
            }
        }
        skip_field(wire_type, tag, &mut body, DecodeContext::default()).map_err(broken)?;
    }
    Ok(())
}

impl AttachedRecord {
    /// The record as a file.
    #[must_use]
    pub fn to_file(&self) -> Vec<u8> {
        let features = if self.url.is_empty() { 0 } else { INCOMPAT_BUCKET };
        encode_with(FrameKind::Attached, features, 0, &self.encode_to_vec())
    }
}

impl PoolRecord {
    /// The record as a file. Its features hold off versions that do not know of levels.
    #[must_use]
    pub fn to_file(&self) -> Vec<u8> {
        let incompat = if self.read_level > 1 { INCOMPAT_LEVEL } else { 0 };
        let ro_compat = if self.write_level > 1 { RO_COMPAT_LEVEL } else { 0 };
        encode_with(FrameKind::Pool, incompat, ro_compat, &self.encode_to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_decoded_as_it_was_encoded_and_any_flipped_bit_is_noticed() {
        let bytes = encode(FrameKind::Head, b"hello");
        assert_eq!(decode(FrameKind::Head, &bytes).unwrap().body, b"hello");
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(FrameKind::Head, &damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_head_of_nothing_but_snapshots_takes_no_memory() {
        use crate::record::{HEAD_SNAPSHOTS_MAX, HeadRecord};
        // Each snapshot takes two bytes: field 13, length 0.
        let snapshots = |count: usize| encode(FrameKind::Head, &[13 << 3 | 2, 0].repeat(count));
        let (head, _) =
            decode_message::<HeadRecord>(FrameKind::Head, &snapshots(HEAD_SNAPSHOTS_MAX)).unwrap();
        assert_eq!(head.snapshots.len(), HEAD_SNAPSHOTS_MAX);
        let many =
            decode_message::<HeadRecord>(FrameKind::Head, &snapshots(HEAD_SNAPSHOTS_MAX + 1));
        assert!(matches!(many, Err(FormatError::Malformed { .. })));
    }

    #[test]
    fn names_without_content_take_no_memory() {
        use crate::record::{NAMES_MAX, NamesRecord};
        // Each name takes two bytes: field 1, length 0.
        let names = |count: usize| encode(FrameKind::Names, &[1 << 3 | 2, 0].repeat(count));
        assert!(decode_message::<NamesRecord>(FrameKind::Names, &names(NAMES_MAX)).is_ok());
        let many = decode_message::<NamesRecord>(FrameKind::Names, &names(NAMES_MAX + 1));
        assert!(matches!(many, Err(FormatError::Malformed { .. })));
    }

    #[test]
    fn an_object_holds_the_longest_record() {
        let record = vec![0; FRAME_BODY_BYTES_MAX + FRAME_HEADER_BYTES];
        let object = encode(FrameKind::Object, &record);
        assert_eq!(decode(FrameKind::Object, &object).unwrap().body.len(), record.len());
        let head = encode(FrameKind::Head, &record);
        assert!(matches!(decode(FrameKind::Head, &head), Err(FormatError::Malformed { .. })));
    }

    #[test]
    fn a_newer_version_is_named_as_such() {
        let mut bytes = encode(FrameKind::Pool, b"");
        bytes[8] = 9;
        let error = decode(FrameKind::Pool, &bytes).unwrap_err();
        assert!(matches!(error, FormatError::NewerFormat { version: 9, .. }), "{error}");
    }
}
