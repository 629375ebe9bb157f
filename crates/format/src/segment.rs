//! The first block of a segment file.
//!
//! ```text
//! byte 0       8    10   12      16      20      24          32      36      40
//!      +-------+----+----+-------+-------+-------+-----------+-------+-------+
//!      | magic | ver|kind| crc   |incomp.|ro com.| author    |sequen.| zero  |
//!      +-------+----+----+-------+-------+-------+-----------+-------+-------+
//!      | epoch u64 | zeros to 4096                                           |
//! ```
//!
//! The header is followed by groups in a data segment ([`crate::group`]), by pages in a map segment
//! ([`crate::page`]), and by table pages in a table segment ([`crate::table`]).

use crate::{FormatError, crc32c_without, get_u16, get_u32, get_u64, put};

/// First eight bytes of a segment file.
pub const SEGMENT_MAGIC: [u8; 8] = *b"marcotSG";
/// Version this code writes.
pub const SEGMENT_VERSION: u16 = 1;
/// Bytes before the first group or page.
pub const SEGMENT_HEADER_BYTES: usize = 4096;
const WHAT: &str = "segment header";

/// The three series of an author's segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SegmentKind {
    /// Groups of blocks. The open data segment is the end of the journal.
    Data = 1,
    /// Map pages.
    Map = 2,
    /// Segment table pages.
    Table = 3,
}

impl SegmentKind {
    /// The kind with this number.
    ///
    /// # Errors
    /// `Malformed` for any other number.
    pub fn from_number(number: u8) -> Result<Self, FormatError> {
        match number {
            1 => Ok(Self::Data),
            2 => Ok(Self::Map),
            3 => Ok(Self::Table),
            _ => Err(FormatError::Malformed { what: WHAT, why: "unknown kind of segment" }),
        }
    }

    /// First letter of its file names.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::Data => 'd',
            Self::Map => 'm',
            Self::Table => 't',
        }
    }
}

/// The header of a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Series.
    pub kind: SegmentKind,
    /// Image that wrote it.
    pub author: u64,
    /// Number in its series.
    pub sequence: u32,
    /// Epoch of the owner that wrote it.
    pub epoch: u64,
}

impl SegmentHeader {
    /// The header's block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; SEGMENT_HEADER_BYTES];
        put(&mut bytes, 0, &SEGMENT_MAGIC);
        put(&mut bytes, 8, &SEGMENT_VERSION.to_le_bytes());
        put(&mut bytes, 10, &u16::from(self.kind as u8).to_le_bytes());
        put(&mut bytes, 24, &self.author.to_le_bytes());
        put(&mut bytes, 32, &self.sequence.to_le_bytes());
        put(&mut bytes, 40, &self.epoch.to_le_bytes());
        let crc = crc32c_without(&bytes, 12);
        put(&mut bytes, 12, &crc.to_le_bytes());
        bytes
    }

    /// True where the header says that only a newer version may change the file, that is, punch
    /// holes into it. `bytes` is a block that [`Self::decode`] accepts.
    #[must_use]
    pub fn is_read_only(bytes: &[u8]) -> bool {
        bytes.len() >= SEGMENT_HEADER_BYTES && get_u32(bytes, 20) != 0
    }

    /// Reads a header's block.
    ///
    /// # Errors
    /// [`FormatError`] for anything but a complete, undamaged header of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let need = SEGMENT_HEADER_BYTES;
        if bytes.len() < need {
            let have = bytes.len() as u64;
            return Err(FormatError::Truncated { what: WHAT, have, need: need as u64 });
        }
        let bytes = &bytes[..need];
        if bytes[..8] != SEGMENT_MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        let (version, features) = (get_u16(bytes, 8), get_u32(bytes, 16));
        if version != SEGMENT_VERSION || features != 0 {
            return Err(FormatError::NewerFormat { what: WHAT, version, features });
        }
        if crc32c_without(bytes, 12) != get_u32(bytes, 12) {
            return Err(FormatError::Checksum { what: WHAT });
        }
        let kind = u8::try_from(get_u16(bytes, 10)).unwrap_or(0);
        Ok(Self {
            kind: SegmentKind::from_number(kind)?,
            author: get_u64(bytes, 24),
            sequence: get_u32(bytes, 32),
            epoch: get_u64(bytes, 40),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_decoded_as_it_was_encoded() {
        let header =
            SegmentHeader { kind: SegmentKind::Map, author: 7, sequence: 9, epoch: u64::MAX };
        assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
        assert!(!SegmentHeader::is_read_only(&header.encode()));
        assert!(SegmentHeader::decode(&[0; 4096]).is_err());
        assert!(SegmentHeader::decode(&[]).is_err());
    }
}
