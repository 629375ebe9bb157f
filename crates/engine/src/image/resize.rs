//! Growing and shrinking.

use marcot_format::record::HeadRecord;
use marcot_format::{BLOCK_BYTES, IMAGE_BYTES_MAX};

use super::Image;
use crate::device::Write;
use crate::error::{ErrorKind, Result, fail};
use crate::fault::{self, Fault};

impl Image {
    /// Changes the size; durable when it returns.
    ///
    /// # Errors
    /// `Invalid` for a size beyond [`IMAGE_BYTES_MAX`], or a smaller one without `allow_shrink`.
    pub(super) fn change_size(&mut self, size_bytes: u64, allow_shrink: bool) -> Result<()> {
        self.check_may_change()?;
        if size_bytes > IMAGE_BYTES_MAX {
            let message = format!("the largest image is {} TiB", IMAGE_BYTES_MAX >> 40);
            return fail(ErrorKind::Invalid, message);
        }
        let shrinks = size_bytes < self.state.size_bytes;
        if shrinks {
            if !allow_shrink {
                return fail(
                    ErrorKind::Invalid,
                    "shrinking loses the data beyond the new end, and was not allowed",
                );
            }
            if !fault::is(Fault::ShrinkKeepsEnd) {
                self.for_room(|image| image.cut(size_bytes))?;
            }
        }
        let before = self.state.size_bytes;
        self.state.size_bytes = size_bytes;
        let change = |head: &mut HeadRecord| {
            if let Some(parent) = &mut head.parent {
                parent.overlap_bytes = parent.overlap_bytes.min(size_bytes);
            }
        };
        let stored = match shrinks {
            true => self.checkpoint_for_room(change),
            false => self.checkpoint_with(change),
        };
        if stored.is_err() {
            self.state.size_bytes = before;
        }
        stored?;
        if shrinks {
            self.reclaim_unnamed()?;
        }
        Ok(())
    }

    /// Drops everything beyond `size_bytes`, so that growing again shows zeros.
    fn cut(&mut self, size_bytes: u64) -> Result<()> {
        let within = size_bytes % BLOCK_BYTES;
        let block = size_bytes / BLOCK_BYTES;
        if within != 0 && self.state.map.may_map(block, block + 1) {
            let end = self.state.size_bytes.min((block + 1) * BLOCK_BYTES);
            let zeros = vec![0; (end - size_bytes) as usize];
            self.write_all(&[Write { offset: size_bytes, data: &zeros }])?;
        }
        let first = size_bytes.div_ceil(BLOCK_BYTES);
        let last = self.state.size_bytes.div_ceil(BLOCK_BYTES);
        if first < last && self.state.map.may_map(first, last) {
            self.discard_range(first * BLOCK_BYTES, self.state.size_bytes - first * BLOCK_BYTES)?;
        }
        Ok(())
    }
}
