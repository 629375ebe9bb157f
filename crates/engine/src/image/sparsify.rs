//! Giving back the space of data that consists of zeros.

use marcot_format::BLOCK_BYTES;

use super::Image;
use crate::error::{ErrorKind, Result, fail};

/// Bytes that are read at once.
const PART_BYTES: u64 = 1 << 20;

impl Image {
    /// Makes holes of zeros: of pieces of `piece_bytes` that consist of zeros, in a range. The pieces begin at
    /// multiples of their length. Returns how many bytes that are.
    pub(super) fn sparsify_range(
        &mut self,
        offset: u64,
        length: u64,
        piece_bytes: u64,
    ) -> Result<u64> {
        self.check_may_change()?;
        if !piece_bytes.is_power_of_two() || piece_bytes < BLOCK_BYTES {
            let message = format!("{piece_bytes} is no power of two from {BLOCK_BYTES} on");
            return fail(ErrorKind::Invalid, message);
        }
        let size = self.size_bytes();
        let end = offset.saturating_add(length).min(size);
        let mut piece = offset / piece_bytes * piece_bytes;
        let mut freed_bytes = 0;
        while piece < end {
            let piece_end = (piece + piece_bytes).min(size);
            if self.is_data_of_zeros(piece, piece_end)? {
                self.discard(piece, piece_end - piece)?;
                freed_bytes += piece_end - piece;
            }
            piece = piece_end;
        }
        Ok(freed_bytes)
    }

    /// True for a range with data in it that reads as zeros. Only the data is read.
    fn is_data_of_zeros(&mut self, start: u64, end: u64) -> Result<bool> {
        let extents = self.extents_of(start, end - start, usize::MAX)?;
        let mut any = false;
        for extent in extents.into_iter().filter(|extent| extent.data) {
            let mut at = extent.offset;
            let extent_end = extent.offset + extent.length;
            while at < extent_end {
                let part = PART_BYTES.min(extent_end - at);
                let mut bytes = vec![0; usize::try_from(part).unwrap_or_default()];
                self.read_at(at, &mut bytes)?;
                if bytes.iter().any(|byte| *byte != 0) {
                    return Ok(false);
                }
                (at, any) = (at + part, true);
            }
        }
        Ok(any)
    }
}
