//! Addresses (section 6).

use marcot_format::{BlockAddress, MapEntry, MapUnit, SegmentIndex, Slot};

/// Segment 0x01020304, slot 0x050607.
const ADDRESS: u64 = 0x0105_0607_0102_0304;
/// An entry that was lost with a damaged page.
const LOST: u64 = 0x0100_0001_0000_0000;

#[test]
fn an_address_is_packed_as_the_document_says() {
    let block = |index, slot| BlockAddress::of_block(SegmentIndex(index), Slot(slot));
    assert_eq!(block(0x0102_0304, 0x05_0607), BlockAddress(ADDRESS));
    assert_eq!(block(u32::MAX, 0xFF_FFFF), BlockAddress(0x01FF_FFFF_FFFF_FFFF));
    assert_eq!(block(1, 0), BlockAddress(0x0100_0000_0000_0001));
    let page = BlockAddress::of_page(SegmentIndex(0x0102_0304), MapUnit(0x05_0607));
    assert_eq!(page, BlockAddress(ADDRESS));
    assert_eq!(page.index(), SegmentIndex(0x0102_0304));
    assert_eq!((page.slot(), page.unit()), (Slot(0x05_0607), MapUnit(0x05_0607)));
    let last = BlockAddress(0x01FF_FFFF_FFFF_FFFF);
    assert_eq!((last.index(), last.slot()), (SegmentIndex(u32::MAX), Slot(0xFF_FFFF)));
}

#[test]
fn slots_count_blocks_and_units_count_512_bytes() {
    assert_eq!((Slot(3).offset_bytes(), MapUnit(3).offset_bytes()), (12288, 1536));
    assert_eq!((Slot(3).after(2), MapUnit::at(1536)), (Slot(5), MapUnit(3)));
    // The last slot of a field of 24 bits lies beyond 4 GiB.
    assert_eq!(Slot(0xFF_FFFF).offset_bytes(), 0xF_FFFF_F000);
}

#[test]
fn a_reader_ignores_flags() {
    for flags in 0..=255 {
        let address = BlockAddress(ADDRESS & u64::MAX >> 8 | flags << 56);
        assert_eq!((address.index(), address.slot()), (SegmentIndex(0x0102_0304), Slot(0x05_0607)));
        assert!(!address.is_hole() && !address.is_lost(), "flags {flags:#x}");
    }
}

#[test]
fn only_zero_is_a_hole_and_segment_0_means_lost() {
    assert_eq!((BlockAddress::HOLE.0, BlockAddress::LOST.0), (0, LOST));
    let hole = |address: u64| BlockAddress(address).is_hole();
    let lost = |address: u64| BlockAddress(address).is_lost();
    assert!(hole(0) && !lost(0));
    assert!(lost(LOST) && !hole(LOST));
    for bit in 0..64 {
        assert!(!hole(1 << bit), "bit {bit}");
        // Slot 2 alone is external.
        assert_eq!(lost(1 << bit), bit >= 32 && bit != 33, "bit {bit}");
    }
    assert!(!lost(LOST | 1));
}

#[test]
fn an_entry_is_a_hole_or_lost_by_its_address_whatever_its_checksum() {
    for crc in [0, 1, u32::MAX] {
        let entry = |address| MapEntry { address: BlockAddress(address), crc };
        assert!(entry(0).is_hole() && !entry(0).is_lost());
        assert!(entry(LOST).is_lost() && !entry(LOST).is_hole());
        assert!(!entry(ADDRESS).is_lost() && !entry(ADDRESS).is_hole());
    }
    assert_eq!(MapEntry::HOLE, MapEntry { address: BlockAddress(0), crc: 0 });
    assert_eq!(MapEntry::LOST, MapEntry { address: BlockAddress(LOST), crc: 0 });
}

#[test]
fn slot_2_without_a_segment_is_external_whatever_the_flags_say() {
    const EXTERNAL: u64 = 0x0100_0002_0000_0000;
    assert_eq!(BlockAddress::EXTERNAL.0, EXTERNAL);
    for address in [EXTERNAL, EXTERNAL & !(0xff << 56), EXTERNAL | 0xff << 56] {
        let address = BlockAddress(address);
        assert!(address.is_external() && address.is_nowhere());
        assert!(!address.is_lost() && !address.is_hole());
    }
    for address in [0, LOST, LOST + (2 << 32), EXTERNAL | 1] {
        assert!(!BlockAddress(address).is_external(), "{address:#x}");
    }
    assert!(BlockAddress(LOST).is_nowhere() && !BlockAddress(EXTERNAL | 1).is_nowhere());
    assert_eq!(MapEntry::EXTERNAL, MapEntry { address: BlockAddress(EXTERNAL), crc: 0 });
}
