//! Preallocation: zeros behind the log, so that small flushes need no allocation.
//!
//! To make an append to a growing file durable, a file system writes its journal too: a new length, new
//! extents. Overwriting what was written before needs the data only, and takes half the time. Where flushes
//! follow small writes, zeros are therefore written behind the end of the log. Zeros are no group, so
//! recovery sees the end of the log where it is.

use marcot_format::{BLOCK_BYTES, SEGMENT_SLOTS};
use marcot_store::DiskFile;

/// Bytes of zeros that are written at a time.
const ZEROS_BYTES: usize = 1 << 20;
/// Most blocks between two syncs that make a small flush.
const SMALL_BLOCKS_MAX: u32 = 64;
/// Small flushes in a row before zeros are worth writing.
const SMALL_FLUSHES_MIN: u32 = 8;

static ZEROS: [u8; ZEROS_BYTES] = [0; ZEROS_BYTES];

/// How far the open segment is written.
#[derive(Default)]
pub(super) struct Preallocation {
    /// Slot up to which the file is written with data or zeros; 0 where no zeros were written.
    end: u32,
    /// Slot up to which room on the medium was taken for direct writes; 0 where none was. Using such room
    /// costs the file system's journal as much as growing does, so zeros are written all the same.
    room_end: u32,
    synced_slot: u32,
    small_flushes: u32,
    /// Fewer slots than this are not cut off, because cutting waits for the medium.
    cut_slots_min: u32,
}

impl Preallocation {
    /// For a segment whose file is `bytes` long: one that is used again has been written before. Of that, fewer
    /// slots than `cut_slots_min` are not cut off.
    pub(super) fn of_file(bytes: u64, cut_slots_min: u32) -> Self {
        let end = (bytes / BLOCK_BYTES).min(u64::from(SEGMENT_SLOTS)) as u32;
        // The first slot holds the segment's header.
        match end {
            0 | 1 => Self::default(),
            end => Self { end, cut_slots_min, ..Self::default() },
        }
    }

    /// To be called before the segment is synced, with the block where the next group will start.
    pub(super) fn before_sync(&mut self, file: &dyn DiskFile, slot: u32) {
        let written = slot - self.synced_slot.min(slot);
        self.synced_slot = slot;
        if written == 0 {
            return;
        }
        self.small_flushes = if written <= SMALL_BLOCKS_MAX { self.small_flushes + 1 } else { 0 };
        if self.small_flushes < SMALL_FLUSHES_MIN || slot + SMALL_BLOCKS_MAX <= self.end {
            return;
        }
        let from = self.end.max(slot);
        let to = SEGMENT_SLOTS.min(from + (ZEROS_BYTES as u64 / BLOCK_BYTES) as u32);
        let zeros = &ZEROS[..(to - from) as usize * BLOCK_BYTES as usize];
        // Without zeros, the flush is only slower. Where some of them were written, they are overwritten or
        // cut off.
        if file.write_at(u64::from(from) * BLOCK_BYTES, &[zeros]).is_ok() {
            self.end = to;
        } else {
            self.small_flushes = 0;
        }
    }

    /// True where the medium has room for all that lies before `slot`.
    pub(super) fn has_room(&self, slot: u32) -> bool {
        // What an earlier segment has written does not count: a part of it may have been given back.
        let written = if self.cut_slots_min > 0 { 0 } else { self.end };
        written.max(self.room_end) >= slot
    }

    /// Room for all that lies before `slot` was taken.
    pub(super) fn took_room(&mut self, slot: u32) {
        self.room_end = slot;
    }

    /// Gives back room that was taken for direct writes, but not the zeros. No write may be in flight there.
    pub(super) fn cut_room(&mut self, file: &dyn DiskFile, slot: u32) {
        let end = self.end.max(slot);
        if std::mem::take(&mut self.room_end) > end {
            // Where this fails, the room comes back together with the segment.
            let _ = file.set_length(u64::from(end) * BLOCK_BYTES);
        }
    }

    /// Cuts off what lies behind the last group; true if there was anything. No write may be in flight there.
    pub(super) fn cut(&mut self, file: &dyn DiskFile, slot: u32) -> bool {
        let end = self.end.max(self.room_end);
        if end < slot + self.cut_slots_min {
            return false;
        }
        (self.end, self.room_end) = (0, 0);
        // Zeros at the end of a file do no harm.
        end > slot && file.set_length(u64::from(slot) * BLOCK_BYTES).is_ok()
    }
}
