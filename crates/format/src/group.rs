//! A group: one append to the open data segment.
//!
//! ```text
//! byte 0       8    10   12   14  16      20      24          32          40      44      48
//!      +-------+----+----+----+---+-------+-------+-----------+-----------+-------+-------+
//!      | magic | ver|flag|head|   | crc   |records| author    | epoch     |segment| blocks|
//!      |       | u16|u16 |blks| 0 | u32   | u32   | u64       | u64       | u32   | u32   |
//!      +-------+----+----+----+---+-------+-------+-----------+-----------+-------+-------+
//!      | group u64                        | durable below u64                             |
//!      +----------------------------------+-----------------------------------------------+
//! 64   | record: first block u64          | count u56, kind u8         |  x records       |
//!      | CRC-32C of each data block u32 x blocks, then zeros to the next 4096             |
//!      +----------------------------------+-----------------------------------------------+
//!      | data blocks, in the order of the write records                                   |
//! ```
//!
//! The header's checksum covers all its blocks. Each data block has a checksum of its own. So a group whose
//! end never reached the disk is recognised, and each block can be verified alone later.
//!
//! `durable below` says: when this group was written, every group of the same epoch with a smaller number
//! was on stable storage. By this number replay tells a damaged group from the end of the log.

use crate::{BLOCK_BYTES, FormatError, crc32c_without, get_u16, get_u32, get_u64, put};

/// First eight bytes of a group.
pub const GROUP_MAGIC: [u8; 8] = *b"marcotGR";
/// Version this code writes.
pub const GROUP_VERSION: u16 = 1;
/// Bytes before the first record.
pub const GROUP_FIXED_BYTES: usize = 64;
/// Limit on the data blocks of a group (8 MiB). It limits what recovery verifies at once.
pub const GROUP_DATA_BLOCKS_MAX: usize = 2048;
/// Limit on the records of a group.
pub const GROUP_RECORDS_MAX: usize = 2048;
/// Number of groups that do not belong to the log: copies that compaction has made. No group of a log has it.
pub const GROUP_BESIDE_LOG: u64 = u64::MAX;
/// Limit on the data segments of a log (4 GiB), from the one in the head's log position on. A writer whose
/// checkpoints all fail stops at this limit, and replay reads no further.
pub const LOG_SEGMENTS_MAX: u32 = 128;
/// Limit on the header blocks of a group: enough for all records and checksums.
pub const GROUP_HEADER_BLOCKS_MAX: usize =
    (GROUP_FIXED_BYTES + GROUP_RECORDS_MAX * RECORD_BYTES + GROUP_DATA_BLOCKS_MAX * 4)
        .div_ceil(BLOCK_BYTES as usize);

const RECORD_BYTES: usize = 16;
const COUNT_MAX: u64 = (1 << 56) - 1;
const WHAT: &str = "group header";

/// What a record does to its run of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// The next `count` data blocks of the group are the content of these blocks.
    Write = 1,
    /// These blocks are holes from now on.
    Discard = 2,
}

/// One run of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What the record does.
    pub kind: RecordKind,
    /// First block of the image.
    pub block: u64,
    /// Number of blocks.
    pub count: u64,
}

/// A group's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupHeader {
    /// Image that wrote it.
    pub author: u64,
    /// Epoch of the owner that wrote it.
    pub epoch: u64,
    /// Number of the data segment it lies in.
    pub sequence: u32,
    /// Number of the group, one more than that of the group before.
    pub group: u64,
    /// Groups of this epoch with numbers below this were durable when the group was written.
    pub durable_below: u64,
    /// Runs, to be applied in order.
    pub records: Vec<Record>,
    /// CRC-32C of each data block.
    pub crcs: Vec<u32>,
}

/// Number of header blocks of a group with this many records and data blocks.
#[must_use]
pub fn header_blocks(records: usize, data_blocks: usize) -> usize {
    (GROUP_FIXED_BYTES + records * RECORD_BYTES + data_blocks * 4).div_ceil(BLOCK_BYTES as usize)
}

impl GroupHeader {
    /// Blocks of the header on disk.
    #[must_use]
    pub fn header_blocks(&self) -> usize {
        header_blocks(self.records.len(), self.crcs.len())
    }

    /// Blocks of header and data on disk.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.header_blocks() + self.crcs.len()
    }

    /// Writes the header's blocks into `out`, which is cleared first.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.clear();
        out.resize(self.header_blocks() * BLOCK_BYTES as usize, 0);
        put(out, 0, &GROUP_MAGIC);
        put(out, 8, &GROUP_VERSION.to_le_bytes());
        put(out, 12, &(self.header_blocks() as u16).to_le_bytes());
        put(out, 20, &(self.records.len() as u32).to_le_bytes());
        put(out, 24, &self.author.to_le_bytes());
        put(out, 32, &self.epoch.to_le_bytes());
        put(out, 40, &self.sequence.to_le_bytes());
        put(out, 44, &(self.crcs.len() as u32).to_le_bytes());
        put(out, 48, &self.group.to_le_bytes());
        put(out, 56, &self.durable_below.to_le_bytes());
        let mut at = GROUP_FIXED_BYTES;
        for record in &self.records {
            put(out, at, &record.block.to_le_bytes());
            let tagged = record.count & COUNT_MAX | u64::from(record.kind as u8) << 56;
            put(out, at + 8, &tagged.to_le_bytes());
            at += RECORD_BYTES;
        }
        for crc in &self.crcs {
            put(out, at, &crc.to_le_bytes());
            at += 4;
        }
        let crc = crc32c_without(out, 16);
        put(out, 16, &crc.to_le_bytes());
    }

    /// The number of header blocks of the group that starts with this block.
    ///
    /// # Errors
    /// [`FormatError`] where no group starts with the block. The checksum is not verified.
    pub fn peek(first_block: &[u8]) -> Result<usize, FormatError> {
        if first_block.len() < GROUP_FIXED_BYTES {
            let have = first_block.len() as u64;
            return Err(FormatError::Truncated { what: WHAT, have, need: BLOCK_BYTES });
        }
        if first_block[..8] != GROUP_MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        let version = get_u16(first_block, 8);
        let flags = get_u16(first_block, 10);
        if version != GROUP_VERSION || flags != 0 {
            let features = u32::from(flags);
            return Err(FormatError::NewerFormat { what: WHAT, version, features });
        }
        let blocks = usize::from(get_u16(first_block, 12));
        if blocks == 0 || blocks > GROUP_HEADER_BLOCKS_MAX {
            return Err(FormatError::Malformed { what: WHAT, why: "header length" });
        }
        Ok(blocks)
    }

    /// Reads a header from its blocks.
    ///
    /// # Errors
    /// [`FormatError`] for anything but a complete, undamaged header.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let header_bytes = Self::peek(bytes)? * BLOCK_BYTES as usize;
        if bytes.len() < header_bytes {
            let (have, need) = (bytes.len() as u64, header_bytes as u64);
            return Err(FormatError::Truncated { what: WHAT, have, need });
        }
        let bytes = &bytes[..header_bytes];
        if crc32c_without(bytes, 16) != get_u32(bytes, 16) {
            return Err(FormatError::Checksum { what: WHAT });
        }
        let malformed = |why| FormatError::Malformed { what: WHAT, why };
        let record_count = get_u32(bytes, 20) as usize;
        let data_blocks = get_u32(bytes, 44) as usize;
        if record_count > GROUP_RECORDS_MAX || data_blocks > GROUP_DATA_BLOCKS_MAX {
            return Err(malformed("too many records"));
        }
        if header_blocks(record_count, data_blocks) * BLOCK_BYTES as usize != header_bytes {
            return Err(malformed("the header length does not fit its contents"));
        }
        let mut records = Vec::with_capacity(record_count);
        let mut written = 0u64;
        for i in 0..record_count {
            let record = decode_record(bytes, GROUP_FIXED_BYTES + i * RECORD_BYTES)?;
            if record.kind == RecordKind::Write {
                written = written.saturating_add(record.count);
            }
            records.push(record);
        }
        if written != data_blocks as u64 {
            return Err(malformed("write records and data blocks differ"));
        }
        let crc_at = GROUP_FIXED_BYTES + record_count * RECORD_BYTES;
        Ok(Self {
            author: get_u64(bytes, 24),
            epoch: get_u64(bytes, 32),
            sequence: get_u32(bytes, 40),
            group: get_u64(bytes, 48),
            durable_below: get_u64(bytes, 56),
            records,
            crcs: (0..data_blocks).map(|i| get_u32(bytes, crc_at + i * 4)).collect(),
        })
    }
}

fn decode_record(bytes: &[u8], at: usize) -> Result<Record, FormatError> {
    let block = get_u64(bytes, at);
    let tagged = get_u64(bytes, at + 8);
    let count = tagged & COUNT_MAX;
    let kind = match tagged >> 56 {
        1 => RecordKind::Write,
        2 => RecordKind::Discard,
        _ => return Err(FormatError::Malformed { what: WHAT, why: "unknown kind of record" }),
    };
    let blocks_max = crate::IMAGE_BYTES_MAX / BLOCK_BYTES;
    if count == 0 || block.checked_add(count).is_none_or(|end| end > blocks_max) {
        return Err(FormatError::Malformed { what: WHAT, why: "a run beyond the largest image" });
    }
    Ok(Record { kind, block, count })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(records: Vec<Record>) -> GroupHeader {
        let blocks: u64 =
            records.iter().filter(|r| r.kind == RecordKind::Write).map(|r| r.count).sum();
        let crcs = (0..blocks as u32).map(|i| i.wrapping_mul(77)).collect();
        GroupHeader { author: 3, epoch: 4, sequence: 5, group: 6, durable_below: 2, records, crcs }
    }

    proptest! {
        #[test]
        fn a_header_is_decoded_as_it_was_encoded(runs in proptest::collection::vec(
            (0..1u64 << 36, 1..9u64, any::<bool>()), 1..200)) {
            let records = runs.into_iter().map(|(block, count, write)| Record {
                kind: if write { RecordKind::Write } else { RecordKind::Discard },
                block: block.min((1 << 36) - count),
                count,
            }).collect();
            let header = sample(records);
            let mut bytes = Vec::new();
            header.encode_into(&mut bytes);
            prop_assert_eq!(GroupHeader::decode(&bytes), Ok(header));
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..9000),
            sane in any::<bool>()) {
            if sane && bytes.len() > 64 {
                bytes[..8].copy_from_slice(&GROUP_MAGIC);
                bytes[8..14].copy_from_slice(&[1, 0, 0, 0, 1, 0]);
                if bytes.len() >= 4096 {
                    let crc = crc32c_without(&bytes[..4096], 16);
                    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
                }
            }
            let _ = GroupHeader::decode(&bytes);
        }
    }

    #[test]
    fn the_largest_group_fits_its_header_limit() {
        assert!(header_blocks(GROUP_RECORDS_MAX, GROUP_DATA_BLOCKS_MAX) == GROUP_HEADER_BLOCKS_MAX);
        assert!(GROUP_HEADER_BLOCKS_MAX < usize::from(u16::MAX));
    }
}
