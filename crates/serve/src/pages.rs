//! Zero-filled memory straight from the kernel, for socket buffers.
//!
//! A buffer must be able to hold the largest request, but a thousand idle connections must cost almost
//! nothing. Anonymous mappings do both: a page takes memory only once it is touched, growing moves no bytes,
//! and a release gives all memory back at once.

use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap_anonymous, mremap, munmap};

/// Mappings are multiples of this. It is a power of two, and not smaller than a page.
const GRAIN_BYTES: usize = 64 << 10;

/// A mapping grows by at least this part of its new size.
const GROWTH_PARTS: usize = 32;

/// The bytes that are mapped for `bytes_min`; `None` where that is more than any machine has.
pub(crate) fn capacity_for(bytes_min: usize) -> Option<usize> {
    let step = bytes_min.checked_next_power_of_two()? / GROWTH_PARTS;
    bytes_min.checked_next_multiple_of(step.max(GRAIN_BYTES))
}

/// A private anonymous mapping, or nothing.
///
/// Invariant: `start` is the first of `bytes` mapped, readable and writable bytes that nobody else
/// refers to; with `bytes == 0` nothing is mapped and `start` dangles.
pub(crate) struct Pages {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone, as the memory of a `Vec<u8>` does.
unsafe impl Send for Pages {}

impl Pages {
    /// Nothing mapped.
    pub(crate) const fn empty() -> Self {
        Self { start: NonNull::dangling(), bytes: 0 }
    }

    /// Bytes mapped.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Makes at least `bytes_min` bytes available, keeping content; new bytes are zero.
    ///
    /// # Errors
    /// When the kernel has no memory to give.
    pub(crate) fn grow(&mut self, bytes_min: usize) -> io::Result<()> {
        if bytes_min <= self.bytes {
            return Ok(());
        }
        let bytes =
            capacity_for(bytes_min).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let start = if self.bytes == 0 {
            // SAFETY: a new private mapping, at an address that the kernel chooses, does not touch
            // existing memory.
            unsafe {
                mmap_anonymous(
                    ptr::null_mut(),
                    bytes,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::PRIVATE,
                )
            }?
        } else {
            // SAFETY: the old range is exactly our mapping, and `&mut self` proves that no slice
            // of it is alive while it moves.
            unsafe { mremap(self.start.as_ptr().cast(), self.bytes, bytes, MremapFlags::MAYMOVE) }?
        };
        self.start = NonNull::new(start.cast())
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        self.bytes = bytes;
        Ok(())
    }

    /// Gives all memory back.
    pub(crate) fn release(&mut self) {
        *self = Self::empty();
    }

    /// The bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: the type's invariant; a dangling pointer is fine for an empty slice.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// The bytes, to change.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes the slice the only one.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.bytes != 0 {
            // SAFETY: unmaps exactly our mapping; no slice can outlive `self`. A failure would
            // leak memory and nothing else.
            let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_keeps_bytes_and_adds_zeros() {
        let mut pages = Pages::empty();
        assert!(pages.as_slice().is_empty());
        pages.grow(10).unwrap();
        assert_eq!(pages.len(), GRAIN_BYTES);
        pages.as_mut_slice()[9] = 7;
        pages.grow(3 << 20).unwrap();
        assert_eq!(pages.as_slice()[9], 7);
        assert!(pages.as_slice()[10..].iter().all(|&b| b == 0));
        pages.release();
        assert_eq!(pages.len(), 0);
    }

    #[test]
    fn capacities_are_close_to_what_is_asked_for() {
        for (bytes, capacity) in [(1, 64 << 10), (66 << 10, 128 << 10), (4 << 20, 4 << 20)] {
            assert_eq!(capacity_for(bytes), Some(capacity));
        }
        assert!(capacity_for((32 << 20) + 1).unwrap() <= 34 << 20);
        assert_eq!(capacity_for(usize::MAX), None);
    }

    #[test]
    fn absurd_sizes_are_an_error() {
        assert!(Pages::empty().grow(usize::MAX).is_err());
        assert!(Pages::empty().grow(1 << 62).is_err());
    }
}
