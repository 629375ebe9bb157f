//! The identity of an open image, which all its parts share.

use marcot_backend::SegmentSet;
use marcot_format::ImageId;

use super::Pool;
use crate::segment::SegmentName;

/// The pool and the number of an open image, and how messages name it.
pub(crate) struct Identity {
    pub pool: Pool,
    pub id: ImageId,
    /// `pool/image`, or `pool/image@snap`.
    pub label: String,
}

impl Identity {
    /// The segments that the image writes.
    pub(crate) fn own_set(&self) -> SegmentSet {
        SegmentSet { author: self.id, copies: 0 }
    }

    /// Removes segments that nobody needs. Those that cannot be removed are left behind, and logged.
    pub(crate) fn remove_segments(&self, names: impl IntoIterator<Item = SegmentName>) {
        for name in names {
            if let Err(error) = self.pool.files().remove(name) {
                tracing::warn!(image = %self.label, segment = %name, error = %error.sentence(), "left behind; a later reclaim removes it");
            }
        }
    }
}
