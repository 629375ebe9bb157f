//! Memory that the medium can be written from without the page cache between.

/// What memory, offsets and lengths of such a transfer are multiples of, in bytes: no medium in use
/// asks for more.
pub const ALIGNMENT_BYTES: usize = 4096;

/// Memory comes in pages of this size where the system has such: one is found, and held for the
/// medium, 512 times as fast as as many small ones.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Bytes at an aligned address, of any length up to their capacity.
#[derive(Debug, Default)]
pub struct AlignedBytes {
    /// Longer than needed, so that an aligned part of it is long enough.
    memory: Vec<u8>,
    start: usize,
    capacity: usize,
    length: usize,
}

impl AlignedBytes {
    /// Room for so many bytes, or some more, and none of them in use.
    #[must_use]
    pub fn with_capacity(capacity_bytes: usize) -> Self {
        let capacity = capacity_bytes.next_multiple_of(HUGE_PAGE_BYTES);
        // Zeros that nobody has touched take no memory.
        let mut memory = vec![0; capacity + HUGE_PAGE_BYTES];
        let start = memory.as_ptr().align_offset(HUGE_PAGE_BYTES);
        let part = &mut memory[start..start + capacity];
        // SAFETY: the range is a part of an allocation that is ours alone, and the advice changes
        // nothing of its content. Where it is refused, small pages do as well.
        unsafe { libc::madvise(part.as_mut_ptr().cast(), capacity, libc::MADV_HUGEPAGE) };
        Self { memory, start, capacity, length: 0 }
    }

    /// Bytes that there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets what is there.
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
    fn bytes_lie_where_the_medium_takes_them_from() {
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
