//! Memory for writes that bypass the page cache.

/// Memory, offsets and lengths of such writes are multiples of this, in bytes. No medium in use needs more.
pub const ALIGNMENT_BYTES: usize = 4096;

/// Size of the pages that the memory consists of, where the system has them. Finding one such page, and
/// pinning it for a write, replaces 512 small pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Bytes at an aligned address, of any length up to their capacity.
#[derive(Debug, Default)]
pub struct AlignedBytes {
    /// Longer than the capacity, so that an aligned part of it is long enough.
    memory: Vec<u8>,
    start: usize,
    capacity: usize,
    length: usize,
}

impl AlignedBytes {
    /// An empty buffer with room for at least `capacity_bytes` bytes.
    #[must_use]
    pub fn with_capacity(capacity_bytes: usize) -> Self {
        let capacity = capacity_bytes.next_multiple_of(HUGE_PAGE_BYTES);
        // Zeroed memory that is not touched takes no physical memory.
        let mut memory = vec![0; capacity + HUGE_PAGE_BYTES];
        let start = memory.as_ptr().align_offset(HUGE_PAGE_BYTES);
        let part = &mut memory[start..start + capacity];
        // SAFETY: the range is part of an allocation that only this code uses, and the advice does not
        // change its content. Where it is refused, small pages do as well.
        unsafe { libc::madvise(part.as_mut_ptr().cast(), capacity, libc::MADV_HUGEPAGE) };
        Self { memory, start, capacity, length: 0 }
    }

    /// The capacity in bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes it empty. The memory is kept.
    pub fn clear(&mut self) {
        self.length = 0;
    }

    /// Appends bytes.
    ///
    /// # Panics
    /// Where they exceed the capacity.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let at = self.start + self.length;
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_start_at_an_aligned_address() {
        let mut bytes = AlignedBytes::with_capacity(3 * ALIGNMENT_BYTES);
        assert!(bytes.capacity() >= 3 * ALIGNMENT_BYTES);
        bytes.extend_from_slice(&[1; ALIGNMENT_BYTES]);
        bytes.extend_from_slice(&[2; 2 * ALIGNMENT_BYTES]);
        assert_eq!(bytes.as_slice().as_ptr().align_offset(ALIGNMENT_BYTES), 0);
        assert_eq!(bytes.as_slice()[ALIGNMENT_BYTES - 1..=ALIGNMENT_BYTES], [1, 2]);
        bytes.clear();
        assert!(bytes.as_slice().is_empty());
    }
}
