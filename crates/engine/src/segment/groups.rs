//! Reading the groups of a data segment.

use std::io;

use marcot_format::group::{GROUP_HEADER_BLOCKS_MAX, GroupHeader};
use marcot_format::{BLOCK_BYTES, SEGMENT_SLOTS, Slot};
use marcot_store::DiskFile;

/// The header of the group that starts at a slot of the data segment with this number, if one does. Behind the
/// segment's groups may lie those of the segment that the file held before
/// ([`marcot_backend::Segments::reuse`]).
pub(crate) fn group_at(
    file: &dyn DiskFile,
    slot: Slot,
    sequence: u32,
) -> io::Result<Option<GroupHeader>> {
    let mut bytes = read_blocks(file, slot, 1)?;
    let Ok(blocks) = GroupHeader::peek(&bytes) else { return Ok(None) };
    if blocks > 1 {
        bytes = read_blocks(file, slot, blocks.min(GROUP_HEADER_BLOCKS_MAX))?;
    }
    Ok(GroupHeader::decode(&bytes).ok().filter(|header| header.sequence == sequence))
}

/// The groups of the data segment with this number, each with its first slot. Stops at the first slot where none
/// of them starts.
pub(crate) fn groups(file: &dyn DiskFile, sequence: u32) -> io::Result<Vec<(Slot, GroupHeader)>> {
    let mut found = Vec::new();
    let mut slot = Slot(1);
    while slot.0 < SEGMENT_SLOTS
        && let Some(header) = group_at(file, slot, sequence)?
    {
        let next = slot.after(header.blocks() as u32);
        found.push((slot, header));
        slot = next;
    }
    Ok(found)
}

/// Blocks from a slot on, as far as the file goes.
pub(crate) fn read_blocks(file: &dyn DiskFile, slot: Slot, blocks: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; blocks * BLOCK_BYTES as usize];
    let n = file.read_at(slot.offset_bytes(), &mut bytes)?;
    bytes.truncate(n);
    Ok(bytes)
}
