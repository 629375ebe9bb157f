//! The address of a block or page: the entry of a map leaf, and of an inner node.
//!
//! ```text
//! byte  0        3 4       6 7
//!      +----------+---------+-------+      +-----------+
//!      | segment  |  slot   | flags |      | CRC-32C   |
//!      |   u32    |   u24   |  u8   |      |    u32    |
//!      +----------+---------+-------+      +-----------+
//! ```
//!
//! All zeros mean a hole. Segment 0 with any other bit means lost. `segment` is an index into the segment
//! table of the same root. `slot` counts blocks in a data segment, and units of [`MAP_UNIT_BYTES`] in a map
//! segment.

/// Granularity of page addresses in a map segment, in bytes.
pub const MAP_UNIT_BYTES: u64 = 512;
/// Exclusive limit of a slot number.
pub const SLOT_MAX: u32 = 1 << 24;
/// The entry names a block or page.
pub const FLAG_MAPPED: u8 = 1;

/// A packed (segment index, slot, flags). Readers ignore the flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct BlockAddress(pub u64);

impl BlockAddress {
    /// The hole.
    pub const HOLE: Self = Self(0);

    /// The address of `slot` in the segment with table index `segment`.
    #[must_use]
    pub fn new(segment: u32, slot: u32) -> Self {
        debug_assert!(slot < SLOT_MAX);
        Self(u64::from(segment) | u64::from(slot) << 32 | u64::from(FLAG_MAPPED) << 56)
    }

    /// Content that was lost with a damaged page. It is neither data nor a hole: reading it is an
    /// error. Index 0 of the segment table is never used, so no older reader takes it for data.
    pub const LOST: Self = Self(1 << 32 | (FLAG_MAPPED as u64) << 56);

    /// True for a hole.
    #[must_use]
    pub fn is_hole(self) -> bool {
        self.0 == 0
    }

    /// True for [`Self::LOST`], and for any other address with segment index 0 that is no hole.
    #[must_use]
    pub fn is_lost(self) -> bool {
        self.0 != 0 && self.segment() == 0
    }

    /// Index into the segment table.
    #[must_use]
    pub fn segment(self) -> u32 {
        self.0 as u32
    }

    /// Slot within the segment.
    #[must_use]
    pub fn slot(self) -> u32 {
        (self.0 >> 32) as u32 & (SLOT_MAX - 1)
    }
}

/// An address, and the checksum of the block or page there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(C, packed(4))]
pub struct MapEntry {
    /// Where the block or page lies.
    pub address: BlockAddress,
    /// CRC-32C of the block's 4096 bytes, or of the page.
    pub crc: u32,
}

impl MapEntry {
    /// The hole.
    pub const HOLE: Self = Self { address: BlockAddress::HOLE, crc: 0 };

    /// See [`BlockAddress::LOST`].
    pub const LOST: Self = Self { address: BlockAddress::LOST, crc: 0 };

    /// True for a hole.
    #[must_use]
    pub fn is_hole(&self) -> bool {
        { self.address }.is_hole()
    }

    /// True where content was lost with a damaged page.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        { self.address }.is_lost()
    }
}

/// Bytes of an encoded [`MapEntry`].
pub const MAP_ENTRY_BYTES: usize = 12;
const _: () = assert!(std::mem::size_of::<MapEntry>() == MAP_ENTRY_BYTES);
