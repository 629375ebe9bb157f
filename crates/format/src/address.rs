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

use crate::BLOCK_BYTES;

/// Granularity of page addresses in a map segment, in bytes.
pub const MAP_UNIT_BYTES: u64 = 512;
/// Exclusive limit of a slot number.
pub const SLOT_MAX: u32 = 1 << 24;
/// The entry names a block or page.
pub const FLAG_MAPPED: u8 = 1;

/// Where a segment stands in the segment table of a root. Index 0 is never used.
///
/// It means nothing without its table: each root has one of its own. The number that a segment has in the
/// series of its author is another one, and is called its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SegmentIndex(pub u32);

/// A place in a data segment, in blocks of 4096 bytes. Slot 0 is the segment's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Slot(pub u32);

/// A place in a map segment, in units of [`MAP_UNIT_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MapUnit(pub u32);

impl Slot {
    /// First byte within the segment.
    #[must_use]
    pub fn offset_bytes(self) -> u64 {
        u64::from(self.0) * BLOCK_BYTES
    }

    /// The slot so many slots later.
    #[must_use]
    pub fn after(self, slots: u32) -> Self {
        Self(self.0 + slots)
    }
}

impl MapUnit {
    /// The unit that begins at this byte of the segment.
    #[must_use]
    pub fn at(offset_bytes: u64) -> Self {
        Self((offset_bytes / MAP_UNIT_BYTES) as u32)
    }

    /// First byte within the segment.
    #[must_use]
    pub fn offset_bytes(self) -> u64 {
        u64::from(self.0) * MAP_UNIT_BYTES
    }
}

/// A packed (segment index, slot, flags). Readers ignore the flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct BlockAddress(pub u64);

impl BlockAddress {
    /// The hole.
    pub const HOLE: Self = Self(0);

    /// The address of a block in a data segment.
    #[must_use]
    pub fn of_block(index: SegmentIndex, slot: Slot) -> Self {
        Self::pack(index, slot.0)
    }

    /// The address of a page in a map segment.
    #[must_use]
    pub fn of_page(index: SegmentIndex, unit: MapUnit) -> Self {
        Self::pack(index, unit.0)
    }

    fn pack(index: SegmentIndex, place: u32) -> Self {
        debug_assert!(place < SLOT_MAX);
        Self(u64::from(index.0) | u64::from(place) << 32 | u64::from(FLAG_MAPPED) << 56)
    }

    /// Content that was lost with a damaged page. It is neither data nor a hole: reading it is an
    /// error. Index 0 of the segment table is never used, so no older reader takes it for data.
    pub const LOST: Self = Self(1 << 32 | (FLAG_MAPPED as u64) << 56);

    /// Content that is still in the source of the image's migration, outside the store, at the same offset. A
    /// reader that does not know of such sources takes it for [`Self::LOST`].
    pub const EXTERNAL: Self = Self(2 << 32 | (FLAG_MAPPED as u64) << 56);

    /// True for a hole.
    #[must_use]
    pub fn is_hole(self) -> bool {
        self.0 == 0
    }

    /// True for an address with segment index 0 that is no hole: [`Self::LOST`], or [`Self::EXTERNAL`]. It names no
    /// segment.
    #[must_use]
    pub fn is_nowhere(self) -> bool {
        self.0 != 0 && self.index() == SegmentIndex::default()
    }

    /// True for [`Self::LOST`], and for any other address with segment index 0 that has no meaning.
    #[must_use]
    pub fn is_lost(self) -> bool {
        self.is_nowhere() && !self.is_external()
    }

    /// True for [`Self::EXTERNAL`].
    #[must_use]
    pub fn is_external(self) -> bool {
        self.is_nowhere() && self.place() == Self::EXTERNAL.place()
    }

    /// The segment that it lies in.
    #[must_use]
    pub fn index(self) -> SegmentIndex {
        SegmentIndex(self.0 as u32)
    }

    /// Where a block lies, in a data segment.
    #[must_use]
    pub fn slot(self) -> Slot {
        Slot(self.place())
    }

    /// Where a page lies, in a map segment.
    #[must_use]
    pub fn unit(self) -> MapUnit {
        MapUnit(self.place())
    }

    fn place(self) -> u32 {
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

    /// See [`BlockAddress::EXTERNAL`].
    pub const EXTERNAL: Self = Self { address: BlockAddress::EXTERNAL, crc: 0 };

    /// True for a hole.
    #[must_use]
    pub fn is_hole(&self) -> bool {
        { self.address }.is_hole()
    }

    /// See [`BlockAddress::is_nowhere`].
    #[must_use]
    pub fn is_nowhere(&self) -> bool {
        { self.address }.is_nowhere()
    }

    /// True where content is still in the source of a migration, outside the store.
    #[must_use]
    pub fn is_external(&self) -> bool {
        { self.address }.is_external()
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
