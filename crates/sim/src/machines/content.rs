//! The contents that an image has had. Contents that follow each other share what is equal, because an image is
//! changed thousands of times, and every content it has had counts.

use std::sync::Arc;

/// Bytes that are shared or not, together.
const PART_BYTES: usize = 4096;

/// One content.
#[derive(Debug, Clone)]
pub(super) struct Content(Vec<Arc<[u8]>>);

impl Content {
    /// A content that shares nothing.
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self(bytes.chunks(PART_BYTES).map(Arc::from).collect())
    }

    /// A content that shares with this one what is equal.
    pub(super) fn like(&self, bytes: &[u8]) -> Self {
        let mut before = self.0.iter();
        let part = |bytes: &[u8]| match before.next() {
            Some(part) if **part == *bytes => Arc::clone(part),
            _ => Arc::from(bytes),
        };
        Self(bytes.chunks(PART_BYTES).map(part).collect())
    }

    /// True where these are the bytes of this content.
    pub(super) fn is(&self, bytes: &[u8]) -> bool {
        self.0.len() == bytes.len().div_ceil(PART_BYTES)
            && self.0.iter().zip(bytes.chunks(PART_BYTES)).all(|(part, bytes)| **part == *bytes)
    }

    /// The bytes.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_shares_what_is_equal_and_has_its_own_bytes() {
        let mut bytes = vec![1; 2 * PART_BYTES + 7];
        let first = Content::new(&bytes);
        bytes[PART_BYTES + 3] = 2;
        let second = first.like(&bytes);
        assert!(second.is(&bytes) && !first.is(&bytes));
        assert_eq!(second.bytes(), bytes);
        let shared: Vec<bool> =
            first.0.iter().zip(&second.0).map(|(a, b)| Arc::ptr_eq(a, b)).collect();
        assert_eq!(shared, [true, false, true]);

        assert!(!second.is(&bytes[..bytes.len() - 1]), "another length");
        assert!(!second.is(&bytes[..PART_BYTES]));
        assert!(first.like(&bytes[..5]).is(&bytes[..5]));
    }
}
