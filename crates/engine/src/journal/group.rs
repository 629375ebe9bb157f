//! A group being gathered: what is appended to the log in one piece, and recovered whole or not at all.

use std::borrow::Cow;

use marcot_format::BLOCK_BYTES;
use marcot_format::group::{
    GROUP_DATA_BLOCKS_MAX, GROUP_RECORDS_MAX, Record, RecordKind, header_blocks,
};

/// Writes and discards of whole blocks, in order.
#[derive(Default)]
pub(crate) struct Group<'a> {
    pub(super) records: Vec<Record>,
    pub(super) parts: Vec<Cow<'a, [u8]>>,
    data_blocks: usize,
}

impl<'a> Group<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// True where the group writes or discards a block.
    pub(crate) fn has(&self, block: u64) -> bool {
        self.records.iter().any(|r| r.block <= block && block - r.block < r.count)
    }

    /// Slots that the group takes in a segment, with its header.
    pub(crate) fn slots(&self) -> u32 {
        (header_blocks(self.records.len(), self.data_blocks) + self.data_blocks) as u32
    }

    /// Data blocks that still fit; 0 where the group must be appended first.
    pub(crate) fn room_blocks(&self) -> usize {
        if self.records.len() >= GROUP_RECORDS_MAX {
            return 0;
        }
        GROUP_DATA_BLOCKS_MAX - self.data_blocks
    }

    /// Adds whole blocks, at most [`Self::room_blocks`] of them.
    pub(crate) fn write(&mut self, block: u64, data: Cow<'a, [u8]>) {
        let count = data.len() as u64 / BLOCK_BYTES;
        self.data_blocks += count as usize;
        self.parts.push(data);
        match self.records.last_mut() {
            Some(r) if r.kind == RecordKind::Write && r.block + r.count == block => {
                r.count += count;
            }
            _ => self.records.push(Record { kind: RecordKind::Write, block, count }),
        }
    }

    /// Adds a run of holes.
    pub(crate) fn discard(&mut self, block: u64, count: u64) {
        self.records.push(Record { kind: RecordKind::Discard, block, count });
    }
}
